package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/fleetsim"
	"github.com/agentopia/statussync/hub"
)

// DemoOptions says how RunDemo shows itself.
type DemoOptions struct {
	Listen  string // empty: 127.0.0.1:8080, or a free port where that is taken
	Data    string // where the journal is kept; empty: a temporary folder that is removed at the end
	Logger  *slog.Logger
	Version string
	Command string    // how the user calls the binary, for the hints; empty: statussync
	Out     io.Writer // the live stream for people; never written to concurrently
	Color   bool
	Quiet   bool // no stream, only where to look
}

// demoHeartbeat is how often the simulated agents report; in the field it is once a minute.
const demoHeartbeat = 2 * time.Second

// demoEventAgents is how many of the demo's hosts tell at once what happens to a container. The others' servers show what
// heartbeats and probes see by themselves.
const demoEventAgents = 2

const demoScale = float64(demoHeartbeat) / float64(time.Minute)

// RunDemo runs the real service on its embedded store, and beside it a simulated fleet on real loopback sockets with a
// script of faults that keeps going. All times of the rules are compressed by 30. It blocks until ctx ends and has
// stopped everything when it returns.
func RunDemo(ctx context.Context, o DemoOptions) (err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Data == "" {
		dir, err := os.MkdirTemp("", "statussync-demo-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		o.Data = dir
	}
	if o.Listen == "" {
		o.Listen = demoAddress()
	}
	fleet, err := fleetsim.New(fleetsim.Options{HeartbeatEvery: demoHeartbeat, TimeScale: demoScale, EventAgents: demoEventAgents, Logger: o.Logger})
	if err != nil {
		return err
	}
	out := &demoOut{w: o.Out, color: o.Color}
	fleet.OnFault(func(e fleetsim.Event) {
		if !o.Quiet {
			out.fault(e)
		}
	})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	run := func(f func() error) {
		wg.Go(func() {
			if err := f(); err != nil && !errors.Is(err, context.Canceled) {
				errs <- err
			}
			cancel() // one part gone: the demo is over
		})
	}
	config := demoConfig(fleet, o)
	var told sync.Once
	run(func() error {
		return Run(ctx, Options{Config: config, Logger: o.Logger, Version: o.Version, OnReady: func(r Ready) {
			if err := fleet.SetTarget(r.BaseURL); err != nil {
				errs <- err
				cancel()
				return
			}
			told.Do(func() {
				out.header(r.BaseURL, firstOf(o.Command, "statussync"), len(config.Servers), len(config.Environments))
			})
			if !o.Quiet {
				wg.Go(func() { // it ends with this hub; after a restart there is another one
					if err := out.follow(ctx, r.Hub); err != nil && !errors.Is(err, context.Canceled) {
						errs <- err
						cancel()
					}
				})
			}
		}})
	})
	run(func() error { return fleet.Run(ctx) })
	run(func() error { return fleet.Script(demoScale).Run(ctx) })
	wg.Wait()
	close(errs)
	for e := range errs {
		err = errors.Join(err, e)
	}
	return err
}

// demoAddress prefers the documented port and takes a free one where it is in use.
func demoAddress() string {
	const usual = "127.0.0.1:8080"
	ln, err := net.Listen("tcp", usual)
	if err == nil {
		ln.Close()
		return usual
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return "127.0.0.1:0"
	}
	return usual
}

func demoConfig(fleet *fleetsim.Fleet, o DemoOptions) *Config {
	c := DefaultConfig()
	c.Listen, c.Data, c.scale = o.Listen, o.Data, demoScale
	for _, e := range fleet.Environments() {
		c.Environments = append(c.Environments, EnvironmentConfig{
			ID: e.ID, Name: e.Name, Owner: e.Owner, Address: e.Address, AgentToken: Secret(e.AgentToken), AgentURL: e.AgentURL,
		})
	}
	for _, s := range fleet.Servers() {
		var probe ProbeConfig // MCP servers are asked as such, at their endpoint
		if s.Kind == fleetsim.KindPlain {
			probe = ProbeConfig{Kind: "http", URL: s.ProbeURL}
		}
		c.Servers = append(c.Servers, ServerConfig{
			ID: s.ID, Name: s.Name, Environment: s.EnvironmentID, Container: s.Container, Endpoint: s.Endpoint,
			Transport: s.Transport, Type: s.Type, Desired: s.Desired, Labels: s.Labels, Probe: probe,
		})
	}
	return c
}

// demoOut writes the demo's stream, a line at a time, from several goroutines.
type demoOut struct {
	mu    sync.Mutex
	w     io.Writer
	color bool
}

func (d *demoOut) line(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintln(d.w, s)
}

func (d *demoOut) paint(code, s string) string {
	if !d.color || code == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (d *demoOut) header(base, command string, servers, envs int) {
	at := ""
	if base != "http://127.0.0.1:8080" {
		at = " --server " + base
	}
	d.line(fmt.Sprintf(`%s: the real service, and %d simulated servers on %d hosts with faults that keep coming.
Times are compressed 30×: a heartbeat every 2 s stands for one a minute, and all limits with it.

  the page      %[4]s/
  the fleet     %[5]s status%[6]s
  why           %[5]s status github --explain%[6]s
  live          %[5]s watch%[6]s
  API           %[4]s/api/v1/servers
  stream        curl -N %[4]s/api/v1/stream
  API document  %[4]s/docs

Ctrl-C stops everything. What follows is the journal, live (» marks what the script does to the fleet):
`, d.paint("1", "statussync demo"), servers, envs, base, command, at))
}

func (d *demoOut) fault(e fleetsim.Event) {
	d.line(d.paint("2", fmt.Sprintf("%s » %s", e.At.Format("15:04:05.000"), e.Target+" "+statussync.CleanText(e.What, 200))))
}

// follow shows every entry of the journal from now on.
func (d *demoOut) follow(ctx context.Context, h *hub.Hub) error {
	sub, err := h.Subscribe(ctx, statussync.SubscribeRequest{Filter: statussync.Filter{Clauses: []statussync.Clause{{Kinds: statussync.Kinds}}}})
	if err != nil {
		return err
	}
	defer sub.Close()
	buf := make([]statussync.Event, 0, 64)
	for {
		buf, err = sub.Next(ctx, buf[:0])
		if err != nil {
			if ctx.Err() != nil || statussync.CodeOf(err) == statussync.CodeUnavailable {
				return nil
			}
			return err
		}
		for i := range buf {
			if e := buf[i].Entry; e != nil {
				d.line(d.entry(e))
			}
		}
	}
}

var demoColor = map[statussync.Availability]string{
	statussync.Unavailable: "31", statussync.Available: "32", statussync.Limited: "33", statussync.Changing: "34",
	statussync.Off: "37", statussync.AvailabilityUnknown: "37",
}

func (d *demoOut) entry(e *statussync.Entry) string {
	at := e.Timestamp.Local().Format("15:04:05.000")
	if e.Kind != statussync.KindStatus {
		who := e.ServerID
		if who == "" {
			who = e.EnvironmentID + e.MaintenanceID // at most one of them
		}
		return fmt.Sprintf("%s   %-18s %s: %s", at, who, d.paint("1", string(e.Kind)), e.Details)
	}
	cur := e.Current
	what := string(cur.State) + "/" + string(cur.Health)
	marks := ""
	if cur.Marks != 0 {
		marks = " [" + strings.Join(cur.Marks.Strings(), " ") + "]"
	}
	return fmt.Sprintf("%s   %-18s %s %s%s · %s", at, e.ServerID,
		d.paint(demoColor[cur.Availability()], fmt.Sprintf("%-17s", what)), cur.Reason, marks, e.Details)
}
