// Package fleetsim is a simulated fleet on real loopback sockets: environments with an agent each, servers behind a
// layer of faults, and a script of things that go wrong. It serves the demo, end-to-end tests and benchmarks.
//
// It imports no other room and writes its wire bytes with types of its own, so that a mistake in a shared type cannot
// hide from the tests that use it. What it simulates is docs/protocols.md §1: heartbeats as agents in the field send
// them, the agent's own API, and servers that are asked for their health or spoken to in MCP.
//
// Guarantees:
//
//   - Every address is bound by New and stays the same while the fleet lives, so a configuration can be written before
//     anything runs. A server that is down has no listening socket: connections to it are refused by the kernel.
//     (Options.Plain shares sockets and resets connections instead; see there.)
//   - A fault is in force on the wire when the method that asked for it returns: requests that were hanging in the old
//     condition are cut, later ones meet the new one. What an agent reports of it comes with its next heartbeat.
//   - Truth tells what is the case, never what was reported.
//   - Run joins every goroutine before it returns, at most StopWithin after its context ended. Goroutines are bounded by
//     the number of environments, servers and (capped) connections.
//   - All methods of Fleet are safe for concurrent use and none waits for the network, except where said.
package fleetsim

import (
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// StopWithin bounds how long Run takes to return after its context ended.
const StopWithin = 2 * time.Second

// Bounds on Options: more is refused, so that a slip of the pen does not exhaust the machine.
const (
	MaxEnvironments = 10_000
	MaxServers      = 100_000
)

// Options describe a fleet. The zero value is the demo's.
type Options struct {
	Environments int // hosts with an agent each; 0: 5
	Servers      int // 0: 24
	// HeartbeatEvery is how often each agent reports; 0: 2 s. The field's agents report every 60 s.
	HeartbeatEvery time.Duration
	// TimeScale compresses what takes time in the simulation (a restart of 5 s takes 5 s × TimeScale); it should be the
	// scale of the service's policy. 0: HeartbeatEvery / 60 s. Ages in Docker's texts are never scaled: they are read
	// beside a real clock.
	TimeScale float64
	// Seed fixes the layout, the ages of containers and the script's choices. Agent tokens are random in any case.
	Seed uint64
	// Plain makes fleets of thousands cheap: no MCP servers, and one listening socket for all servers of an
	// environment, told apart by path. A single server that is down then resets connections instead of refusing them;
	// a whole environment that is down still refuses. All servers of an environment have the same public port.
	Plain bool
	// EventAgents is how many environments, the first ones, have an agent that also reports at once what starts, exits or
	// turns (un)healthy, between its heartbeats. 0: none; -1: all.
	EventAgents int
	Logger      *slog.Logger // nil: silent
}

// Secret is a credential. Printing or logging it shows nothing; string(s) is its value.
type Secret string

// String hides the value.
func (Secret) String() string { return "***" }

// LogValue hides the value.
func (Secret) LogValue() slog.Value { return slog.StringValue("***") }

// Shape is the form of an environment's heartbeats (docs/protocols.md §1).
type Shape string

// The shapes that a whole environment can report in. Shape C is what EngineDown makes of either.
const (
	ShapeDocumented Shape = "A" // the platform's ids and words
	ShapeDocker     Shape = "B" // Docker's words, as agents in the field send them
)

// Kind says what a simulated server is made of.
type Kind string

// The kinds of server. Each answers 200 at its probe URL, and speaks MCP at its endpoint.
const (
	KindModern Kind = "mcp-modern" // the official Go SDK, stateless: negotiates protocol version 2026-07-28
	KindLegacy Kind = "mcp-legacy" // the official Go SDK, stateful: sessions, up to 2025-11-25
	KindPlain  Kind = "plain"      // plain HTTP, and just enough hand-written JSON-RPC for initialize, ping, tools/list
)

// Environment describes one simulated host, as a configuration needs it.
type Environment struct {
	ID         string
	Name       string
	Owner      string
	Address    string // always 127.0.0.1
	AgentToken Secret // what its heartbeats carry as Bearer token; 32 random bytes in hex
	AgentURL   string // base URL of its agent's own API
	Shape      Shape
}

// Server describes one simulated server, as a configuration needs it.
type Server struct {
	ID            string
	Name          string
	EnvironmentID string
	Container     string // not unique: containers of different environments share names
	Endpoint      string // its MCP URL
	ProbeURL      string // its health URL
	Transport     string // streamable-http or http
	Type          string // what the server is for; free text
	Kind          Kind
	Desired       string // running, or stopped for one that its owner starts and stops at will
	Labels        map[string]string
	PublicPort    int
}

// Fleet is a simulated fleet. Make one with New; Run it once, or Close it.
type Fleet struct {
	opt    Options
	log    *slog.Logger
	client *http.Client

	targetSet chan struct{} // closed when the first target is known
	wake      chan struct{} // capacity 1: the director has something new to look at
	wg        sync.WaitGroup

	envs    []*environment // fixed after New, as is what they describe
	servers []*server
	byEnv   map[string]*environment
	byID    map[string]*server
	doors   []*door

	mu      sync.Mutex // guards what follows, all container truth and all fault settings
	target  string
	onFault func(Event)
	phase   phase
	active  map[*server]struct{} // servers whose program has a next step
	ajar    map[*door]struct{}   // doors that should be open and could not be opened yet
}

type phase uint8

const (
	phaseNew phase = iota
	phaseRunning
	phaseDone
)

type environment struct {
	Environment
	index   int
	servers []*server
	agent   *agent
	door    *door // Plain: shared by its servers
	extra   []*container

	down       bool // guarded by Fleet.mu, as are the next two
	silent     bool
	engineDown bool
}

type server struct {
	Server
	env      *environment
	c        *container
	door     *door // nil in a Plain fleet
	overlay  *overlay
	mcp      sessionCloser // nil for KindPlain
	fault    mode          // guarded by Fleet.mu, as are the next three
	doing    activity
	program  func(now time.Time) (next time.Time) // of doing; a zero next: it has ended
	nextStep time.Time
}

// activity is what goes on with a server by itself.
type activity uint8

const (
	doingNothing activity = iota
	doingRestart
	doingCrashLoop
	doingFlapping
)

// New makes a fleet and binds all its addresses on 127.0.0.1. Nothing is answered and nothing reported before Run;
// connections made earlier wait. The error says which option is wrong or which socket could not be had.
func New(opt Options) (*Fleet, error) {
	if err := opt.complete(); err != nil {
		return nil, err
	}
	f := &Fleet{
		opt: opt, log: opt.Logger.With("component", "fleetsim"),
		targetSet: make(chan struct{}), wake: make(chan struct{}, 1),
		byEnv: map[string]*environment{}, byID: map[string]*server{},
		active: map[*server]struct{}{}, ajar: map[*door]struct{}{},
	}
	f.client = &http.Client{
		Timeout: min(max(opt.HeartbeatEvery, time.Second), 10*time.Second),
		Transport: &http.Transport{
			Proxy: nil, MaxIdleConns: opt.Environments, MaxIdleConnsPerHost: opt.Environments, MaxConnsPerHost: opt.Environments,
			IdleConnTimeout: 2 * time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if err := f.build(rand.New(rand.NewPCG(opt.Seed, 1))); err != nil {
		f.closeDoors()
		return nil, err
	}
	return f, nil
}

func (o *Options) complete() error {
	if o.Environments == 0 {
		o.Environments = 5
	}
	if o.Servers == 0 {
		o.Servers = 24
	}
	if o.HeartbeatEvery == 0 {
		o.HeartbeatEvery = 2 * time.Second
	}
	if o.TimeScale == 0 {
		o.TimeScale = o.HeartbeatEvery.Seconds() / 60
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.Environments < 1 || o.Environments > MaxEnvironments:
		return fmt.Errorf("fleetsim: Environments is %d, must be 1 to %d", o.Environments, MaxEnvironments)
	case o.Servers < 1 || o.Servers > MaxServers:
		return fmt.Errorf("fleetsim: Servers is %d, must be 1 to %d", o.Servers, MaxServers)
	case o.HeartbeatEvery < time.Millisecond:
		return fmt.Errorf("fleetsim: HeartbeatEvery is %v, must be at least 1ms", o.HeartbeatEvery)
	case o.EventAgents < -1:
		return fmt.Errorf("fleetsim: EventAgents is %d, must be -1 or more", o.EventAgents)
	case !(o.TimeScale > 0 && o.TimeScale <= 100):
		return fmt.Errorf("fleetsim: TimeScale is %v, must be greater than 0 and at most 100", o.TimeScale)
	}
	return nil
}

// newToken returns a random agent token.
func newToken() Secret {
	var b [32]byte
	crand.Read(b[:])
	return Secret(hex.EncodeToString(b[:]))
}

// Environments describes all environments, in a fixed order.
func (f *Fleet) Environments() []Environment {
	out := make([]Environment, len(f.envs))
	for i, e := range f.envs {
		out[i] = e.Environment
	}
	return out
}

// Servers describes all servers, in a fixed order. The label maps are shared and must not be changed.
func (f *Fleet) Servers() []Server {
	out := make([]Server, len(f.servers))
	for i, s := range f.servers {
		out[i] = s.Server
	}
	return out
}

// TimeScale is the scale in force.
func (f *Fleet) TimeScale() float64 { return f.opt.TimeScale }

// scaled is d of the real world in the fleet's compressed time.
func (f *Fleet) scaled(d time.Duration) time.Duration {
	return time.Duration(float64(d) * f.opt.TimeScale)
}

// SetTarget tells the agents the base URL of the service that they report to (they post to
// {base}/functions/v1/heartbeat). Before it is called they report nowhere; it may be called at any time, and again.
func (f *Fleet) SetTarget(base string) error {
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("fleetsim: target %q is not a base URL such as http://127.0.0.1:8080", base)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.target == "" {
		close(f.targetSet)
	}
	f.target = strings.TrimSuffix(base, "/")
	return nil
}

// OnFault sets who is told of the script's steps. fn is called by Script.Run, one call at a time, right after the step
// took effect; while it runs the script waits.
func (f *Fleet) OnFault(fn func(Event)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onFault = fn
}

// Run serves and reports until ctx ends; it then stops everything, waits for it and returns nil. The sockets are closed
// for good. It can be called once. An error means that something did not stop within StopWithin.
func (f *Fleet) Run(ctx context.Context) error {
	f.mu.Lock()
	if f.phase != phaseNew {
		f.mu.Unlock()
		return errors.New("fleetsim: the fleet was already run or closed")
	}
	f.phase = phaseRunning
	for _, d := range f.doors {
		d.start(ctx, &f.wg)
	}
	f.mu.Unlock()

	f.wg.Go(func() { f.direct(ctx) })
	for _, e := range f.envs {
		f.wg.Go(func() { e.agent.run(ctx) })
	}
	f.log.Info("the simulated fleet is running", "environments", len(f.envs), "servers", len(f.servers), "heartbeat_every", f.opt.HeartbeatEvery)

	<-ctx.Done()
	f.mu.Lock()
	f.phase = phaseDone
	f.mu.Unlock()
	joined := make(chan struct{})
	go func() {
		defer close(joined)
		f.closeDoors()
		for _, s := range f.servers {
			if s.mcp != nil {
				s.mcp.closeSessions()
			}
		}
		f.wg.Wait()
	}()
	late := time.NewTimer(StopWithin)
	defer late.Stop()
	select {
	case <-joined:
	case <-late.C:
		return fmt.Errorf("fleetsim: not everything stopped within %v", StopWithin)
	}
	f.client.CloseIdleConnections()
	return nil
}

// Close releases the sockets of a fleet that is not run. While Run is running it does nothing: end Run's context.
func (f *Fleet) Close() {
	f.mu.Lock()
	idle := f.phase == phaseNew
	if idle {
		f.phase = phaseDone
	}
	f.mu.Unlock()
	if idle {
		f.closeDoors()
	}
}

// closeDoors closes all doors for good and waits for the requests that are being served.
func (f *Fleet) closeDoors() {
	for _, d := range f.doors {
		d.close()
	}
	for _, d := range f.doors {
		<-d.idle
	}
}

// direct runs the programs of crash-looping, flapping and restarting servers, and tries doors again that could not be
// opened. It is the only timer of the simulation beside the agents' own.
func (f *Fleet) direct(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(f.step(time.Now()))
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		case <-timer.C:
		}
	}
}

// reopenEvery is how often a port that was lost to somebody else is tried again.
const reopenEvery = 20 * time.Millisecond

// step does what is due and returns how long nothing will be.
func (f *Fleet) step(now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	wait := time.Hour
	for s := range f.active {
		if !s.nextStep.After(now) {
			s.nextStep = s.program(now)
			if s.nextStep.IsZero() {
				f.endLocked(s)
			}
			f.applyLocked(s)
		}
		if s.doing != doingNothing {
			wait = min(wait, s.nextStep.Sub(now))
		}
	}
	for d := range f.ajar {
		f.openDoorLocked(d, true)
		wait = min(wait, reopenEvery)
	}
	return max(wait, 0)
}

// doLocked replaces what goes on with s by itself; the program's first step is due at next.
func (f *Fleet) doLocked(s *server, a activity, next time.Time, program func(now time.Time) time.Time) {
	s.doing, s.nextStep, s.program = a, next, program
	if a == doingNothing {
		delete(f.active, s)
	} else {
		f.active[s] = struct{}{}
	}
}

// endLocked ends what goes on with s by itself.
func (f *Fleet) endLocked(s *server) { f.doLocked(s, doingNothing, time.Time{}, nil) }

// nudge makes the director look again.
func (f *Fleet) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// applyLocked makes the wire agree with what is true of s. Whoever changes the truth calls it before unlocking.
func (f *Fleet) applyLocked(s *server) {
	s.env.agent.noticeNow()
	m := s.fault
	if s.door == nil {
		if !s.answersLocked() {
			m = mode{kind: modeReset}
		}
		s.overlay.set(m)
		return
	}
	s.overlay.set(m)
	f.openDoorLocked(s.door, s.answersLocked())
}

// answersLocked reports whether anything listens at the server's address.
func (s *server) answersLocked() bool {
	return !s.env.down && s.c.listening && s.fault.kind != modeRefuse
}

func (f *Fleet) openDoorLocked(d *door, open bool) {
	err := d.set(open)
	if err == nil {
		delete(f.ajar, d)
		return
	}
	if _, known := f.ajar[d]; !known {
		f.ajar[d] = struct{}{}
		f.log.Warn("a port is taken; it is tried again", "address", d.addr, "error", err)
	}
}
