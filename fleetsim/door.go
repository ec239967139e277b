package fleetsim

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxConns bounds the connections of one listening socket; more are reset as they come. A Plain fleet's sockets serve a
// whole environment, hence the room.
const maxConns = 1024

// door is a listening socket that can be closed and opened again at the same address while its http.Server lives. A
// closed door has no socket at all, so the kernel refuses connections; those that were open are reset.
type door struct {
	addr string
	srv  *http.Server
	next http.Handler
	idle chan struct{} // closed once the door is closed for good and the last request has ended

	mu     sync.Mutex
	ln     *net.TCPListener // nil: shut
	conns  map[*conn]struct{}
	busy   int // requests being served
	wg     *sync.WaitGroup
	base   context.Context // nil: not started
	closed bool
}

// newDoor binds a free port of 127.0.0.1. Nothing is accepted before start.
func newDoor(next http.Handler, log *slog.Logger) (*door, error) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &door{
		addr: ln.Addr().String(), ln: ln.(*net.TCPListener), next: next,
		conns: map[*conn]struct{}{}, idle: make(chan struct{}),
	}
	d.srv = &http.Server{
		Handler: d, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return d.base },
	}
	return d, nil
}

func (d *door) port() int {
	a, _ := net.ResolveTCPAddr("tcp4", d.addr)
	return a.Port
}

// start begins to accept. Requests' contexts end with ctx; goroutines are added to wg before start or set returns.
func (d *door) start(ctx context.Context, wg *sync.WaitGroup) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.base, d.wg = ctx, wg
	if d.ln != nil && !d.closed {
		d.serveLocked()
	}
}

func (d *door) serveLocked() {
	ln := &listener{d.ln, d}
	d.wg.Go(func() { d.srv.Serve(ln) }) // ends when ln is closed
}

// set opens or shuts the door. Opening fails where somebody else has taken the port meanwhile. After close it does
// nothing.
func (d *door) set(open bool) error {
	d.mu.Lock()
	if d.closed || open == (d.ln != nil) {
		d.mu.Unlock()
		return nil
	}
	if open {
		defer d.mu.Unlock()
		ln, err := net.Listen("tcp4", d.addr)
		if err != nil {
			return err
		}
		d.ln = ln.(*net.TCPListener)
		if d.base != nil {
			d.serveLocked()
		}
		return nil
	}
	ln, conns := d.ln, d.conns
	d.ln, d.conns = nil, map[*conn]struct{}{}
	d.mu.Unlock()
	ln.Close()
	for c := range conns {
		c.reset()
	}
	return nil
}

// close shuts the door for good. It does not wait; idle does.
func (d *door) close() {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	d.closed = true
	ln := d.ln
	d.ln = nil
	if d.busy == 0 {
		close(d.idle)
	}
	d.mu.Unlock()
	if ln != nil {
		ln.Close()
	}
	d.srv.Close()
}

// ServeHTTP counts requests, so that close can be waited for.
func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	closed := d.closed
	if !closed {
		d.busy++
	}
	d.mu.Unlock()
	if closed {
		panic(http.ErrAbortHandler)
	}
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.busy--
		if d.closed && d.busy == 0 {
			close(d.idle)
		}
	}()
	d.next.ServeHTTP(w, r)
}

// listener hands out connections that their door knows.
type listener struct {
	*net.TCPListener
	d *door
}

// Accept resets connections beyond maxConns, and those that were accepted while the door was being shut.
func (l *listener) Accept() (net.Conn, error) {
	for {
		t, err := l.TCPListener.AcceptTCP()
		if err != nil {
			return nil, err
		}
		c := &conn{t, l.d}
		l.d.mu.Lock()
		take := l.d.ln == l.TCPListener && len(l.d.conns) < maxConns
		if take {
			l.d.conns[c] = struct{}{}
		}
		l.d.mu.Unlock()
		if take {
			return c, nil
		}
		c.reset()
	}
}

type conn struct {
	*net.TCPConn
	d *door
}

// Close also makes the door forget the connection.
func (c *conn) Close() error {
	c.d.mu.Lock()
	delete(c.d.conns, c)
	c.d.mu.Unlock()
	return c.TCPConn.Close()
}

// reset ends the connection with RST: the peer's reads and writes fail, as when a process dies with data unread.
func (c *conn) reset() {
	c.SetLinger(0)
	c.Close()
}

type modeKind uint8

const (
	modePass   modeKind = iota
	modeSlow            // answer after latency
	modeStatus          // answer with code
	modeHang            // accept, read, never answer
	modeReset           // cut the connection when a request comes
	modePage            // answer everything with 200 and a web page
	modeRefuse          // no listening socket: the door's affair
)

func (k modeKind) String() string {
	return [...]string{"", "slow", "status", "hang", "reset", "page", "refuse"}[k]
}

// mode is the fault of one server on the wire; the zero mode is none.
type mode struct {
	kind    modeKind
	latency time.Duration
	code    int
}

// overlay stands between a socket and a server and plays the fault in force.
type overlay struct {
	next http.Handler

	mu      sync.Mutex
	m       mode
	changed chan struct{} // closed at the next change
}

func newOverlay(next http.Handler) *overlay {
	return &overlay{next: next, changed: make(chan struct{})}
}

func (o *overlay) set(m mode) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m == o.m {
		return
	}
	o.m = m
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *overlay) get() (mode, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.m, o.changed
}

// maxBody bounds what is read of a request.
const maxBody = 1 << 20

// ServeHTTP answers as the mode in force when the request came says. A request that waits when the mode changes is cut:
// the process that it was waiting for is thought of as gone.
func (o *overlay) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	m, changed := o.get()
	switch m.kind {
	case modePass:
		o.next.ServeHTTP(w, r)
	case modeSlow:
		t := time.NewTimer(m.latency)
		defer t.Stop()
		select {
		case <-t.C:
			o.next.ServeHTTP(w, r)
			return
		case <-changed:
		case <-r.Context().Done():
		}
		cut(w)
	case modeStatus:
		switch m.code {
		case http.StatusUnauthorized:
			w.Header().Set("WWW-Authenticate", `Bearer realm="simulated"`)
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			w.Header().Set("Retry-After", "1")
		}
		http.Error(w, http.StatusText(m.code), m.code)
	case modePage:
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, "<!doctype html><title>Sign in</title><p>Welcome. Please sign in.</p>\n")
	case modeHang:
		io.Copy(io.Discard, r.Body) // only then does net/http notice that the peer has gone
		select {
		case <-changed:
		case <-r.Context().Done(): // the peer went away, or the fleet stops: even then no answer
		}
		cut(w)
	default:
		cut(w)
	}
}

// cut resets the request's connection without an answer.
func cut(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if c, ok := c.(*conn); ok {
		c.reset()
		return
	}
	c.Close()
}
