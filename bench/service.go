package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/app"
	"github.com/agentopia/statussync/hub"
)

// asService is the whole service, as `statussync serve` runs it, with a handle to make updates at a given rate.
func asService(args []string) error {
	c, err := app.LoadConfig(args[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ready := make(chan app.Ready, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- app.Run(ctx, app.Options{Config: c, Version: "bench", Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), OnReady: func(r app.Ready) { ready <- r }})
	}()
	select {
	case r := <-ready:
		turn := 0
		err = serveCommands(strings.TrimPrefix(r.BaseURL, "http://"), func(q command) (answer, error) {
			switch q.Op {
			case "updates":
				began := time.Now()
				err := makeUpdates(ctx, r.Hub, q, &turn)
				return answer{Seconds: time.Since(began).Seconds()}, err
			case "head":
				return answer{Text: r.Hub.Ready().Head.String()}, nil
			}
			return answer{}, fmt.Errorf("no such command: %q", q.Op)
		})
		cancel()
		return errors.Join(err, <-ended)
	case err := <-ended:
		return err
	}
}

// makeUpdates makes q.N updates over the first q.Servers servers by turns: overrides that give another state each time. The
// note carries when it was made, for whoever measures latencies. It returns when all are in the journal.
func makeUpdates(ctx context.Context, h *hub.Hub, q command, turn *int) error {
	began := time.Now()
	for i := range q.N {
		if q.Rate > 0 {
			if wait := time.Until(began.Add(time.Duration(float64(i) / q.Rate * 1e9))); wait > 0 {
				time.Sleep(wait)
			}
		}
		if err := h.Observe(ctx, override(serverID(*turn%q.Servers), *turn/q.Servers)); err != nil {
			return err
		}
		*turn++
	}
	_, err := h.Submit(ctx)
	return err
}

// override is an observation that changes a server's status at once.
func override(id string, turn int) *statussync.OverrideSet {
	now := time.Now()
	o := statussync.Override{
		State: []statussync.State{statussync.StateRunning, statussync.StateError, statussync.StateStopped}[turn%3],
		Actor: "bench", Note: fmt.Sprintf("ns=%d;", now.UnixNano()), SetAt: now, ExpiresAt: now.Add(24 * time.Hour),
	}
	if err := o.Complete(now); err != nil {
		panic(err) // can't be: it is complete by the lines above
	}
	return &statussync.OverrideSet{ServerID: id, Override: o}
}

func serverID(i int) string { return fmt.Sprintf("server-%06d", i) }
func envID(i int) string    { return fmt.Sprintf("box-%04d", i) }

const agentToken = "bench-agent-token-of-this-host-"

// fleet is a configuration of servers, perEnv on each environment. probe is the YAML of a server's probe, by its number.
type fleet struct {
	servers, perEnv int
	agents          bool // environments have agent tokens
	probe           func(i int) string
	more            string // further lines
}

// service starts the service with a fleet on an empty store, or on the given one.
func (b *bench) service(ctx context.Context, f fleet, data string) (*child, error) {
	if data == "" {
		var err error
		if data, err = os.MkdirTemp(b.dir, "data"); err != nil {
			return nil, err
		}
	}
	file := filepath.Join(data, "bench.yaml")
	if err := os.WriteFile(file, []byte(f.yaml(data)), 0o600); err != nil {
		return nil, err
	}
	return b.spawn(ctx, "as-service", file)
}

func (f *fleet) yaml(data string) string {
	var y strings.Builder
	fmt.Fprintf(&y, "listen: 127.0.0.1:%d\ndata: %s\n", freePort(), data)
	y.WriteString("limits: {connections: 18000, subscriptions: 18000, replay_bytes_per_second: 4GiB, commands_per_second: 1000000}\n")
	y.WriteString(f.more)
	y.WriteString("environments:\n")
	for e := 0; e*f.perEnv < f.servers; e++ {
		fmt.Fprintf(&y, "  - {id: %s", envID(e))
		if f.agents {
			fmt.Fprintf(&y, ", agent_token: %s%d", agentToken, e)
		}
		y.WriteString("}\n")
	}
	y.WriteString("servers:\n")
	for i := range f.servers {
		p := "{kind: none}"
		if f.probe != nil {
			p = f.probe(i)
		}
		fmt.Fprintf(&y, "  - {id: %s, environment: %s, endpoint: \"http://127.0.0.1:9/mcp\", probe: %s}\n", serverID(i), envID(i/f.perEnv), p)
	}
	return y.String()
}

func freePort() int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// asTarget is an HTTP server to be asked: /health answers, /hang never does, and POST /unmarshal is what the ingest of
// heartbeats is measured against. It listens on every loopback address.
func asTarget([]string) error {
	ln, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })
	mux.HandleFunc("GET /hang", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("POST /unmarshal", unmarshalHeartbeat)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()
	return serveCommands(fmt.Sprintf("127.0.0.1:%d", ln.Addr().(*net.TCPAddr).Port), func(q command) (answer, error) {
		return answer{}, fmt.Errorf("no such command: %q", q.Op)
	})
}
