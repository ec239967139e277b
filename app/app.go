// Package app is the configuration and the wiring: it makes every room from a Config, connects them and runs them
// until its context ends. It is the only room that imports all others, and it decides nothing about statuses.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/lmittmann/tint"
	"github.com/mattn/go-isatty"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/dtma"
	"github.com/agentopia/statussync/guard"
	"github.com/agentopia/statussync/httpapi"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/probe"
	"github.com/agentopia/statussync/probe/httpprobe"
	"github.com/agentopia/statussync/prom"
	"github.com/agentopia/statussync/recur"
	"github.com/agentopia/statussync/registry"
	"github.com/agentopia/statussync/sqlite"
)

// Options says what Run runs.
type Options struct {
	ConfigFile string  // read where Config is nil
	Config     *Config // from LoadConfig, ParseConfig or DefaultConfig
	Logger     *slog.Logger
	Version    string
	// OnReady, if not nil, is called once, when the service answers requests. It must not block.
	OnReady func(Ready)
}

// Ready is what can be used once the service is up.
type Ready struct {
	BaseURL string   // of the API, without a path
	Hub     *hub.Hub // the running hub
}

// How long each part may take to stop before it is given up and named in the log. Together they stay under 3 s.
const (
	stopHTTP    = 1 * time.Second
	stopStreams = 300 * time.Millisecond
	stopSources = 500 * time.Millisecond
	stopHub     = 1 * time.Second
	stopStore   = 500 * time.Millisecond
	stopAll     = 2800 * time.Millisecond
)

// NewLogger returns a logger that writes to w. Format auto is text for people on a terminal and JSON otherwise.
func NewLogger(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	f, isFile := w.(*os.File)
	terminal := isFile && isatty.IsTerminal(f.Fd())
	if format == "text" || (format == "auto" && terminal) {
		return slog.New(tint.NewTextHandler(w, &tint.Options{Level: l, TimeFormat: time.TimeOnly, NoColor: !terminal || os.Getenv("NO_COLOR") != ""}))
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l}))
}

// Run runs the whole service until ctx ends, then stops it within about 3 s: sources first, then the hub, then the
// store. It returns nil after a clean stop. Errors of the configuration, the address or the store come back before
// anything is served.
func Run(ctx context.Context, o Options) error {
	c := o.Config
	if c == nil {
		var err error
		if c, err = LoadConfig(o.ConfigFile); err != nil {
			return err
		}
	}
	log := o.Logger
	if log == nil {
		log = NewLogger(os.Stderr, c.Log.Level, c.Log.Format)
	}
	ln, err := net.Listen("tcp", c.Listen)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return &statussync.Error{Code: statussync.CodeConflict, Location: "listen", Detail: c.Listen + " is in use by another process"}
		}
		return &statussync.Error{Code: statussync.CodeInvalid, Location: "listen", Detail: "cannot listen on " + c.Listen, Err: err}
	}
	defer ln.Close()
	s, err := newService(ctx, c, o, ln, log)
	if err != nil {
		return err
	}
	return s.run(ctx, o.OnReady)
}

// service is everything that Run made.
type service struct {
	log      *slog.Logger
	config   *Config
	listener net.Listener
	store    *sqlite.Store
	hub      *hub.Hub
	probes   *probe.Scheduler
	prober   *httpprobe.Prober
	asker    *dtma.Asker
	registry *registry.Manager
	api      *httpapi.API
	server   *http.Server
}

// requesters hands what the engine wants to those who can do it; each takes what is its own.
type requesters []statussync.Requester

func (r requesters) Do(reqs []statussync.Request) {
	for _, q := range r {
		q.Do(reqs)
	}
}

func newService(ctx context.Context, c *Config, o Options, ln net.Listener, log *slog.Logger) (s *service, err error) {
	s = &service{log: log.With("component", "app"), config: c, listener: ln}
	s.store, err = sqlite.Open(ctx, sqlite.Options{
		Dir: c.Data, Sync: c.Journal.Sync, Retention: time.Duration(c.Journal.Retention), MaxBytes: int64(c.Journal.MaxBytes),
		Logger: log,
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.store.Close()
		}
	}()
	var networks []netip.Prefix
	for _, n := range c.AllowNetworks {
		p, err := parsePrefix(n)
		if err != nil {
			return nil, statussync.Invalid("allow_networks", err.Error())
		}
		networks = append(networks, p)
	}
	g := guard.New(guard.Options{AllowNetworks: networks})
	userAgent := "statussync/" + o.Version
	s.prober = httpprobe.New(httpprobe.Options{Guard: g, UserAgent: userAgent})
	s.probes, err = probe.New(probe.Options{
		Probers:     map[statussync.ProbeKind]statussync.Prober{statussync.ProbeHTTP: s.prober.Probe},
		Concurrency: c.Probe.Concurrency, PerEnvironment: c.Probe.PerEnvironment, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	s.asker = dtma.NewAsker(dtma.AskerOptions{
		Guard: g, UserAgent: userAgent, Logger: log,
		Concurrency: max(32, len(c.Environments)), // agents that hang, however many, must not delay another's question
	})
	s.hub, err = hub.New(hub.Options{
		Journal: s.store, Policy: c.Policy(), Requester: requesters{s.probes, s.asker}, Checker: s.probes,
		Recurrence: recur.Parse, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	tokens := newTokens(c)
	s.registry, err = registry.New(ctx, registry.Options{
		Store: s.store, Hub: s.hub, Agents: tokens.SetManagedAgents, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	if s.api, err = s.newAPI(c, tokens, o.Version, log); err != nil {
		return nil, err
	}
	s.server = &http.Server{
		Handler: s.api, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 60 * time.Second, IdleTimeout: 2 * time.Minute,
		ConnContext: httpapi.ConnContext, MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(log.With("component", "http").Handler(), slog.LevelDebug),
	}
	return s, nil
}

// newTokens returns the Authenticator of the configuration's tokens.
func newTokens(c *Config) *httpapi.Tokens {
	var specs []httpapi.TokenSpec
	if c.Auth != nil {
		for _, t := range c.Auth.Tokens {
			specs = append(specs, httpapi.TokenSpec{Name: t.Name, Role: httpapi.Role(t.Role), Token: string(t.Token)})
		}
	}
	agents := map[string][]string{}
	for _, e := range c.Environments {
		if e.AgentToken != "" {
			agents[e.ID] = []string{string(e.AgentToken)}
		}
	}
	return httpapi.NewTokens(specs, agents)
}

func (s *service) newAPI(c *Config, tokens *httpapi.Tokens, version string, log *slog.Logger) (*httpapi.API, error) {
	opts := httpapi.Options{
		Hub: s.hub, Auth: tokens, Registry: s.registry, Maintenance: s.hub, Listen: s.listener.Addr().String(), AllowedHosts: c.AllowedHosts, AllowedOrigins: c.AllowedOrigins,
		Version: version, Logger: log.With("component", "httpapi"), OpenLoopback: true,
		ReadyChecks: map[string]func(context.Context) error{"store": s.store.Healthy},
	}
	for _, p := range c.TrustedProxies {
		prefix, err := parsePrefix(p)
		if err != nil {
			return nil, statussync.Invalid("trusted_proxies", err.Error())
		}
		opts.TrustedProxies = append(opts.TrustedProxies, prefix)
	}
	if c.Auth != nil {
		opts.OpenLoopback = len(c.Auth.Tokens) == 0
		opts.LegacyViewer = c.Auth.LegacyViewer
		opts.LoginFailuresPerMinute = c.Auth.LoginFailuresPerMinute
		opts.CommandsPerSecond = c.Auth.CommandsPerSecond
	}
	var api *httpapi.API
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), prom.New(prom.Options{
		Servers: s.hub.Servers, Environments: s.hub.Environments,
		Samples: func() []prom.Sample { return s.samples(api) },
	}))
	opts.Metrics = promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
	var err error
	api, err = httpapi.New(opts)
	return api, err
}

// part is one long-lived part while it runs.
type part struct {
	name string
	stop context.CancelFunc
	done chan struct{} // closed when it has ended; err is set before
	err  error
}

// start runs a part; ended is told of every end, with the part's name in the error, and must have room.
func start(name string, ended chan<- error, run func(context.Context) error) *part {
	ctx, cancel := context.WithCancel(context.Background())
	p := &part{name: name, stop: cancel, done: make(chan struct{})}
	go func() {
		err := run(ctx)
		if err != nil && !errors.Is(err, context.Canceled) {
			p.err = fmt.Errorf("%s: %w", name, err)
		}
		close(p.done)
		ended <- p.err
	}()
	return p
}

// join stops p and waits for it, at most for the time given.
func (p *part) join(limit time.Duration) error {
	p.stop()
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		return fmt.Errorf("%s did not stop within %s", p.name, limit)
	}
}

// within runs a stop that may block, and gives it up after the limit.
func within(name string, limit time.Duration, stop func() error) error {
	done := make(chan error, 1)
	go func() { done <- stop() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		return fmt.Errorf("%s did not stop within %s", name, limit)
	}
}

func (s *service) run(ctx context.Context, onReady func(Ready)) (err error) {
	ended := make(chan error, 8) // room for every part, so that none waits to end
	core := start("hub", ended, s.hub.Run)
	var parts []*part
	defer func() { err = errors.Join(err, s.shutdown(core, parts)) }()

	select {
	case <-s.hub.Started():
	case <-core.done:
		return errors.New("the hub ended before it had started") // its own error is joined by shutdown
	case <-ctx.Done():
		return nil
	}
	if err := s.define(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("registry: %w", err)
	}
	parts = append(parts,
		start("http", ended, func(context.Context) error {
			if err := s.server.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		}),
		start("probes", ended, func(ctx context.Context) error { return s.probes.Run(ctx, s.hub) }),
		start("agents", ended, func(ctx context.Context) error { return s.asker.Run(ctx, s.hub) }),
		start("store", ended, s.store.Run),
		start("registry", ended, s.registry.Run),
	)
	base := "http://" + s.listener.Addr().String()
	s.log.Info("serving", "url", base, "servers", len(s.config.Servers), "environments", len(s.config.Environments), "data", s.config.Data)
	if onReady != nil {
		onReady(Ready{BaseURL: base, Hub: s.hub})
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended: // half a service would tell half-truths
		if err == nil {
			err = errors.New("a part of the service ended by itself")
		}
		return err
	}
}

// define hands over what the configuration defines, then what people defined by API. Where both define the same the service
// does not start: it can't know which is meant.
func (s *service) define(ctx context.Context) error {
	u := s.config.Registry()
	if err := s.registry.Conflicts(ctx, u); err != nil {
		return err
	}
	if _, err := s.hub.Submit(ctx, u); err != nil {
		return err
	}
	return s.registry.Start(ctx)
}

// shutdown stops everything in the order in which nothing is lost: who brings observations in, then the hub, which
// stores what it knows, then the store. Each stop is bounded and named.
func (s *service) shutdown(core *part, others []*part) error {
	began := time.Now()
	var errs []error
	s.api.Drain()
	hctx, cancel := context.WithTimeout(context.Background(), stopHTTP)
	defer cancel()
	if err := s.server.Shutdown(hctx); err != nil {
		s.server.Close()
	}
	for _, p := range others {
		errs = append(errs, p.join(stopSources))
	}
	sctx, cancelStreams := context.WithTimeout(context.Background(), stopStreams)
	defer cancelStreams()
	s.api.Shutdown(sctx)
	s.prober.Close()
	errs = append(errs, core.join(stopHub))
	// A busy disk may take its time to close the store; it gets what the others have left.
	errs = append(errs, within("store", max(stopStore, stopAll-time.Since(began)), s.store.Close))
	err := errors.Join(errs...)
	if err != nil {
		s.log.Error("stopped", "took_ms", time.Since(began).Milliseconds(), "error", err)
	} else {
		s.log.Info("stopped", "took_ms", time.Since(began).Milliseconds())
	}
	return err
}
