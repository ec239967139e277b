package app

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/agentopia/statussync"
)

// Run runs the whole service until ctx ends, then stops it within about 3 s: sources first, then the hub, then the
// store. It returns nil after a clean stop. Errors of the configuration, the address or the store come back before
// anything is served. A restart that somebody asks for happens inside: the listening socket stays open meanwhile, so that
// who connects waits and is not refused.
func Run(ctx context.Context, o Options) error {
	c := o.Config
	if c == nil {
		var err error
		if c, err = LoadConfig(o.ConfigFile); err != nil {
			return err
		}
	}
	door, err := openDoor(c.Listen)
	if err != nil {
		return err
	}
	o.erasures = &erasures{}
	r := &runner{o: o, door: door}
	defer func() { r.door.close() }()
	return r.run(ctx, c)
}

// runner runs one service after the other behind one door.
type runner struct {
	o    Options
	door *door
	old  *door // still open, until the service behind the new one answers
}

// restart is what a service ends with when another one is to follow.
type restart struct {
	config *Config
	door   *door // nil: the one that is open, or late
	late   bool  // the new address can be opened only after the old one is closed: they share a port
	// between, if not nil, runs while nothing does: the store in dataDir is closed, and opened again afterwards. unclosed is
	// why it is not closed, where that failed: then it must be left alone. The error is logged.
	between  func(ctx context.Context, dataDir string, unclosed error) error
	unclosed error
}

// logger returns the logger for a configuration; level is nil where it is not ours.
func (o *Options) logger(c *Config) (*slog.Logger, *slog.LevelVar) {
	if o.Logger != nil {
		return o.Logger, nil
	}
	w := o.LogOutput
	if w == nil {
		w = os.Stderr
	}
	level := new(slog.LevelVar)
	level.Set(parseLevel(c.Log.Level))
	return newLogger(w, level, c.Log.Format), level
}

func (r *runner) run(ctx context.Context, c *Config) error {
	defer func() { r.old.close() }()
	var before *Config // what there was before the restart, until it has succeeded
	for {
		next, started, err := r.once(ctx, c, before != nil)
		log, _ := r.o.logger(c)
		log = log.With("component", "app")
		switch {
		case started:
			before = nil
		case err != nil && before != nil && ctx.Err() == nil:
			// It was checked before, but not everything can be. Who asked for a restart wants a service.
			log.Error("the service did not start again; going back to the configuration before", "error", err)
			if r.old != nil {
				r.door.close()
				r.door, r.old = r.old, nil
			} else if c.Listen != before.Listen {
				r.door.close()
				if r.door, err = openDoor(before.Listen); err != nil {
					return err
				}
			}
			c, before = before, nil
			continue
		}
		if next == nil {
			return err
		}
		if err != nil {
			log.Error("the stop before the restart was not clean", "error", err)
		}
		before, c = c, next.config
		if next.between != nil {
			if err := next.between(ctx, c.Data, next.unclosed); err != nil {
				log.Error("what was to be done during the restart failed", "error", err)
			}
		}
		switch {
		case next.door != nil:
			r.old, r.door = r.door, next.door
		case next.late:
			r.door.close()
			if r.door, err = openDoor(c.Listen); err != nil {
				log.Error("the new address can't be listened on; going back to the configuration before", "listen", c.Listen, "error", err)
				if c, before = before, nil; ctx.Err() != nil {
					return nil
				}
				if r.door, err = openDoor(c.Listen); err != nil {
					return err
				}
			}
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// once makes a service and runs it. fallback: another one follows where it does not start.
func (r *runner) once(ctx context.Context, c *Config, fallback bool) (next *restart, started bool, err error) {
	s, err := newService(ctx, c, r.o, r.door.entrance())
	if err != nil {
		return nil, false, err
	}
	s.fallback = fallback
	return s.run(ctx, func(ready Ready) {
		r.old.close()
		r.old = nil
		if r.o.OnReady != nil {
			r.o.OnReady(ready)
		}
	})
}

// door is a listening socket that stays open while services come and go behind it.
type door struct {
	socket *net.TCPListener
	// left is a connection that was taken just when a service closed its entrance; the next one serves it.
	left chan net.Conn
}

func openDoor(listen string) (*door, error) {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, &statussync.Error{Code: statussync.CodeConflict, Location: "listen", Detail: listen + " is in use by another process"}
		}
		return nil, &statussync.Error{Code: statussync.CodeInvalid, Location: "listen", Detail: "cannot listen on " + listen, Err: err}
	}
	return &door{socket: ln.(*net.TCPListener), left: make(chan net.Conn, 1)}, nil
}

// close closes the socket; who still waits there is refused. A nil door is closed.
func (d *door) close() {
	if d == nil {
		return
	}
	d.socket.Close()
	select {
	case c := <-d.left:
		c.Close()
	default:
	}
}

// entrance is the door as one service has it: closing it leaves the socket open.
func (d *door) entrance() net.Listener {
	_ = d.socket.SetDeadline(time.Time{}) // where that fails, so does Accept
	return &entrance{door: d}
}

type entrance struct {
	door   *door
	closed atomic.Bool
}

// Accept implements net.Listener.
func (e *entrance) Accept() (net.Conn, error) {
	if e.closed.Load() {
		return nil, net.ErrClosed
	}
	select {
	case c := <-e.door.left:
		return c, nil
	default:
	}
	c, err := e.door.socket.Accept()
	if !e.closed.Load() {
		return c, err
	}
	if err == nil {
		select {
		case e.door.left <- c:
		default: // can't be: there is one Accept at a time
			c.Close()
		}
	}
	return nil, net.ErrClosed
}

// Close implements net.Listener: a blocked Accept returns.
func (e *entrance) Close() error {
	e.closed.Store(true)
	return e.door.socket.SetDeadline(time.Unix(1, 0))
}

// Addr implements net.Listener.
func (e *entrance) Addr() net.Addr { return e.door.socket.Addr() }
