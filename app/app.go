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
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lmittmann/tint"
	"github.com/mattn/go-isatty"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/dashboard"
	"github.com/agentopia/statussync/drift"
	"github.com/agentopia/statussync/dtma"
	"github.com/agentopia/statussync/guard"
	"github.com/agentopia/statussync/httpapi"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/mcpserver"
	"github.com/agentopia/statussync/probe"
	"github.com/agentopia/statussync/probe/httpprobe"
	"github.com/agentopia/statussync/probe/mcpprobe"
	"github.com/agentopia/statussync/prom"
	"github.com/agentopia/statussync/recur"
	"github.com/agentopia/statussync/registry"
	"github.com/agentopia/statussync/rollup"
	"github.com/agentopia/statussync/sqlite"
)

// Options says what Run runs.
type Options struct {
	ConfigFile string // read where Config is nil
	// MCPConfigs are files of MCP clients whose servers are monitored too, beside those of the configuration's mcp_config.
	MCPConfigs []string
	Config     *Config // from LoadConfig, ParseConfig or DefaultConfig
	// Logger: nil makes one that writes to LogOutput as the configuration says, and anew at each restart. Level and format
	// of a Logger that is given are its owner's affair.
	Logger    *slog.Logger
	LogOutput io.Writer // where Logger is nil; nil: the standard error
	Version   string
	// Hangups, if not nil, gives a value each time that the configuration file is to be read again (SIGHUP). What that gave
	// is logged.
	Hangups <-chan os.Signal
	// Notify tells the service manager that the environment names (NOTIFY_SOCKET, WATCHDOG_USEC; sd_notify(3)) how the
	// service is. A watchdog gets signs of life only while the hub answers.
	Notify bool

	// OnReady, if not nil, is called when the service answers requests: once, and after each restart again. None of these
	// functions may block, and none is called while another one is.
	OnReady func(Ready)
	// OnReload, if not nil, is called when a reload or a restart that was accepted begins. A reload ends with OnReloaded, a
	// restart with OnReady.
	OnReload func()
	// OnReloaded, if not nil, is called when a reload is over; err is why it was refused, nil where it is in force.
	OnReloaded func(err error)
	erasures   *erasures // of this process; nil: persons can't be erased by API

	// OnStopping, if not nil, is called once, when the service begins to stop for good.
	OnStopping func()
}

// Ready is what can be used once the service is up.
type Ready struct {
	BaseURL string   // of the API, with the base path where there is one
	Hub     *hub.Hub // the running hub
}

// How long each part may take to stop before it is given up and named in the log. Together they stay under 3 s.
const (
	stopHTTP    = 1 * time.Second
	stopStreams = 300 * time.Millisecond
	stopSources = 500 * time.Millisecond
	stopHub     = 1 * time.Second
	stopStore   = 500 * time.Millisecond

	stopRegistry = 1 * time.Second
	stopAll      = 2800 * time.Millisecond
	stopAgain    = 20 * time.Second // hub and store, each, before a restart
)

// NewLogger returns a logger that writes to w. Format auto is text for people on a terminal and JSON otherwise.
func NewLogger(w io.Writer, level, format string) *slog.Logger {
	return newLogger(w, parseLevel(level), format)
}

func parseLevel(level string) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	return l
}

func newLogger(w io.Writer, l slog.Leveler, format string) *slog.Logger {
	f, isFile := w.(*os.File)
	terminal := isFile && isatty.IsTerminal(f.Fd())
	if format == "text" || (format == "auto" && terminal) {
		return slog.New(tint.NewTextHandler(w, &tint.Options{Level: l, TimeFormat: time.TimeOnly, NoColor: !terminal || os.Getenv("NO_COLOR") != ""}))
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l}))
}

// service is everything that Run made.
type service struct {
	log       *slog.Logger
	options   Options
	config    *Config                // what it was started with
	current   atomic.Pointer[Config] // what is in force
	level     *slog.LevelVar         // of log; nil: somebody else's
	listener  net.Listener
	guard     *guard.Guard
	tokens    *httpapi.Tokens
	store     *sqlite.Store
	hub       *hub.Hub
	probes    *probe.Scheduler
	prober    *httpprobe.Prober
	mcp       *mcpprobe.Prober
	drift     *drift.Service
	imports   imports
	databases *databases
	asker     *dtma.Asker
	registry  *registry.Manager
	certs     *certKeeper // nil: without TLS
	history   *history
	rollups   *rollup.Service
	resources *rollup.Resources
	backups   *backups
	mcpServer *mcpserver.Server
	api       *httpapi.API
	server    *http.Server

	operations
	fallback bool // where it does not start, the one before it is started again
	version  string
	notifier *notifier // nil: no service manager
}

// requesters hands what the engine wants to those who can do it; each takes what is its own.
type requesters []statussync.Requester

func (r requesters) Do(reqs []statussync.Request) {
	for _, q := range r {
		q.Do(reqs)
	}
}

func newService(ctx context.Context, c *Config, o Options, ln net.Listener) (s *service, err error) {
	log, level := o.logger(c)
	s = &service{
		log: log.With("component", "app"), options: o, config: c, level: level, listener: ln,
		version: statussync.CleanText(o.Version, statussync.MaxWordText),
	}
	if s.notifier, err = newNotifier(o, log); err != nil {
		return nil, err
	}
	s.operations.init()
	s.current.Store(c)
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
	s.history = openHistory(ctx, c, log)
	defer func() {
		if err != nil {
			s.history.close()
		}
	}()
	networks, err := prefixes("allow_networks", c.AllowNetworks)
	if err != nil {
		return nil, err
	}
	s.guard = guard.New(guard.Options{AllowNetworks: networks})
	g := s.guard
	userAgent := "statussync/" + o.Version
	s.prober = httpprobe.New(httpprobe.Options{Guard: g, UserAgent: userAgent})
	s.mcp = newMCPProber(g, userAgent, o.Version, log)
	s.probes, err = probe.New(probe.Options{
		Probers: map[statussync.ProbeKind]statussync.Prober{
			statussync.ProbeHTTP: discreet(s.prober.Probe), statussync.ProbeMCP: discreet(s.mcp.Probe),
		},
		Concurrency: c.Probe.Concurrency, PerEnvironment: c.Probe.PerEnvironment, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	s.asker = dtma.NewAsker(dtma.AskerOptions{
		Guard: g, UserAgent: userAgent, Logger: log,
		Concurrency: askConcurrency(c), // agents that hang, however many, must not delay another's question
	})
	if s.drift, err = s.newDrift(log); err != nil {
		return nil, err
	}
	if err = s.firstImport(c); err != nil {
		return nil, err
	}
	if s.resources, err = rollup.NewResources(rollup.ResourceOptions{Store: s.history, Logger: log}); err != nil {
		return nil, err
	}
	s.hub, err = hub.New(hub.Options{
		Journal: s.store, Policy: c.Policy(), Requester: requesters{s.probes, s.asker, s.drift, s.mcp}, Checker: s.probes,
		Recurrence: recur.Parse, ReportSinks: []statussync.ReportSink{s.resources}, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	if s.rollups, err = rollup.New(rollup.Options{Store: s.history, Hub: s.hub, Logger: log}); err != nil {
		return nil, err
	}
	s.tokens = newTokens(c)
	s.registry, err = registry.New(ctx, registry.Options{
		Store: s.store, Hub: s.hub, Agents: s.tokens.SetManagedAgents, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	if s.databases, err = newDatabases(s, c, log); err != nil {
		return nil, err
	}
	if c.TLS != nil {
		if s.certs, err = newCertKeeper(c, log); err != nil {
			return nil, err
		}
	}
	if s.mcpServer, err = s.newMCPServer(c, log); err != nil {
		return nil, err
	}
	if s.api, err = s.newAPI(c, o.Version, log); err != nil {
		return nil, err
	}
	s.server = &http.Server{
		Handler: s.api, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 60 * time.Second, IdleTimeout: 2 * time.Minute,
		ConnContext: httpapi.ConnContext, MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(log.With("component", "http").Handler(), slog.LevelDebug),
	}
	s.secure()
	s.notifier = s.notifier.of(s)
	return s, nil
}

// newTokens returns the Authenticator of the configuration's tokens.
func newTokens(c *Config) *httpapi.Tokens {
	var specs []httpapi.TokenSpec
	if c.Auth != nil {
		for _, t := range c.Auth.Tokens {
			specs = append(specs, httpapi.TokenSpec{Name: t.Name, Role: httpapi.Role(t.Role), Token: string(t.Token), ExpiresAt: t.expiresAt(), Limits: t.Limits.api()})
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

func (s *service) newAPI(c *Config, version string, log *slog.Logger) (*httpapi.API, error) {
	set, err := apiSettings(c)
	if err != nil {
		return nil, err
	}
	opts := httpapi.Options{
		Hub: s.hub, Auth: s.tokens, Registry: s.registry, Control: s, Syncer: s, Rollups: s.rollups, Resources: s.resources, Maintenance: s.hub, MCP: s.mcpServer, Tools: s.hub, ToolLooker: s.drift, Listen: s.listener.Addr().String(),
		OpenLoopback: set.OpenLoopback, LegacyViewer: set.LegacyViewer, AllowedHosts: set.AllowedHosts, AllowedOrigins: set.AllowedOrigins,
		TrustedProxies: set.TrustedProxies, LoginFailuresPerMinute: set.LoginFailuresPerMinute,
		Version: version, Logger: log.With("component", "httpapi"),
		ReadyChecks: map[string]func(context.Context) error{"store": s.store.Healthy, "history": s.history.healthy},
	}
	if len(s.databases.list) > 0 {
		opts.Registries, opts.Reports, opts.AgentsPending = s.databases, s.databases.sinks(), s.databases.agentsPending
	}
	s.netOptions(c, &opts)
	opts.Sessions = sessionsFile{c.Data}
	if opts.Page, err = dashboard.New(c.BasePath); err != nil {
		return nil, err
	}
	s.backups = newBackups(c.Data, s.storeFiles(), version, log)
	opts.Backup, opts.Eraser = s.backups, newEraser(s, s.options.erasures)
	var api *httpapi.API
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), prom.New(prom.Options{
		Servers: s.hub.Servers, Environments: s.hub.Environments,
		Samples: func() []prom.Sample { return s.samples(api) },
	}))
	opts.Metrics = promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
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

// run runs the service until ctx ends, a part of it does, or a restart is asked for, which it returns; and stops it.
// started says whether it ever answered requests.
func (s *service) run(ctx context.Context, onReady func(Ready)) (next *restart, started bool, err error) {
	ended := make(chan error, 64) // room for every part, so that none waits to end
	core := start("hub", ended, s.hub.Run)
	var parts []*part
	defer func() {
		again := next != nil || s.fallback && !started && ctx.Err() == nil
		if !again && s.options.OnStopping != nil {
			s.options.OnStopping()
		}
		s.close()
		stopped, unclosed := s.shutdown(core, parts, again)
		if err = errors.Join(err, stopped); next != nil {
			next.unclosed = unclosed
		}
	}()

	select {
	case <-s.hub.Started():
	case <-core.done:
		return nil, false, errors.New("the hub ended before it had started") // its own error is joined by shutdown
	case <-ctx.Done():
		return nil, false, nil
	}
	s.recallProbing()
	if err := s.define(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("registry: %w", err)
	}
	parts = append(parts,
		start("http", ended, func(context.Context) error {
			if err := s.serve(); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		}),
		start("mcp server", ended, s.mcpServer.Run), // its streams end with the API's
		start("probes", ended, func(ctx context.Context) error { return s.probes.Run(ctx, s.rollups.Observer(s.hub)) }),
		start("MCP sessions", ended, s.mcp.Run),
		start("agents", ended, func(ctx context.Context) error { return s.asker.Run(ctx, s.hub) }),
		start("tools", ended, func(ctx context.Context) error { return s.drift.Run(ctx, s.hub) }),
		start("store", ended, s.store.Run),
		start("registry", ended, s.registry.Run),
		start("hangups", ended, s.hangups),
		start("mcp_config", ended, s.followImports),
		start("history", ended, s.history.run),
		start("resources", ended, s.resources.Run),
		start("rollups", ended, s.rollups.Run), // stops behind the probes, whose last results it stores
	)
	parts = append(parts, s.databases.parts(ended)...)
	if s.certs != nil {
		parts = append(parts, start("certificates", ended, s.certs.Run))
	}
	if s.notifier != nil {
		parts = append(parts, start("service manager", ended, s.notifier.Run))
	}
	base := s.baseURL()
	s.log.Info("serving", "url", base, "servers", len(s.config.Servers)+s.imports.stats().servers, "environments", len(s.config.Environments), "registries", len(s.config.Registries), "data", s.config.Data)
	onReady(Ready{BaseURL: base, Hub: s.hub})
	select {
	case <-ctx.Done():
		return nil, true, nil
	case next := <-s.restarts:
		return next, true, nil
	case err := <-ended: // half a service would tell half-truths
		if err == nil {
			err = errors.New("a part of the service ended by itself")
		}
		return nil, true, err
	}
}

// define hands over what the configuration defines, what people defined by API, and what mcp_config adds to that. Where the
// first two define the same the service does not start: it can't know which is meant.
func (s *service) define(ctx context.Context) error {
	u := s.config.Registry()
	if err := s.registry.Conflicts(ctx, u); err != nil {
		return err
	}
	if _, err := s.retreat(ctx, u); err != nil {
		return err
	}
	if err := s.databases.begin(ctx, u); err != nil {
		return err
	}
	if _, err := s.hub.Submit(ctx, u); err != nil {
		return err
	}
	if err := s.registry.Start(ctx); err != nil {
		return err
	}
	_, _, err := s.advance(ctx)
	return err
}

// shutdown stops everything in the order in which nothing is lost: who brings observations in, then the hub, which
// stores what it knows, then the store. Each stop is bounded and named. Before a restart hub, history and store may take
// longer: who opens the store again must find it closed. unclosed is the part of the error that says that it is not.
func (s *service) shutdown(core *part, others []*part, again bool) (err, unclosed error) {
	began := time.Now()
	hubLimit, historyLimit, storeLimit := stopHub, stopStore, func() time.Duration { return max(stopStore, stopAll-time.Since(began)) }
	if again {
		hubLimit, historyLimit, storeLimit = stopAgain, stopAgain, func() time.Duration { return stopAgain }
	}
	var errs []error
	if again {
		s.notifier.restarting()
	} else {
		s.notifier.stopping()
	}
	s.api.Drain()
	hctx, cancel := context.WithTimeout(context.Background(), stopHTTP)
	defer cancel()
	if err := s.server.Shutdown(hctx); err != nil {
		s.server.Close()
	}
	for _, p := range others { // what they bring to their databases takes its time, for all at once; no report comes any more
		if strings.HasPrefix(p.name, registryPart) {
			p.stop()
		}
	}
	databasesBy := time.Now().Add(stopRegistry)
	for _, p := range others {
		limit := stopSources
		switch {
		case p.name == "rollups" || p.name == "resources":
			limit = stopRollups
		case strings.HasPrefix(p.name, registryPart):
			limit = max(stopSources, time.Until(databasesBy))
		}
		errs = append(errs, p.join(limit))
	}
	sctx, cancelStreams := context.WithTimeout(context.Background(), stopStreams)
	defer cancelStreams()
	s.api.Shutdown(sctx)
	s.prober.Close()
	var sessions sync.WaitGroup
	sessions.Go(s.closeSessions) // servers that don't answer are not waited for by the hub
	errs = append(errs, core.join(hubLimit))
	sessions.Wait()
	unclosed = within("history", historyLimit, s.history.close)
	// A busy disk may take its time to close the store; it gets what the others have left.
	unclosed = errors.Join(unclosed, within("store", storeLimit(), s.store.Close))
	err = errors.Join(append(errs, unclosed)...)
	if err != nil {
		s.log.Error("stopped", "took_ms", time.Since(began).Milliseconds(), "error", err)
	} else {
		s.log.Info("stopped", "took_ms", time.Since(began).Milliseconds())
	}
	if unclosed != nil {
		unclosed = statussync.NewError(statussync.CodeUnavailable, "the store could not be closed; nothing was changed", unclosed)
	}
	return err, unclosed
}
