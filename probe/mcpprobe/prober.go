package mcpprobe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/guard"
)

// Options are the settings of a Prober. The zero value of each field means its default.
type Options struct {
	Guard     *guard.Guard // judges every connection; nil: untrusted plans may reach public addresses only
	UserAgent string       // "statussync"
	Version   string       // of the product, as servers are told beside its name; "0"
	// MaxBody bounds what is read of an answer of L1, in bytes; 1 MiB.
	MaxBody int64
	// MaxIdle bounds the idle connections kept for the next probe, of trusted and of untrusted plans each; 2,048. Each
	// costs a file descriptor and about 20 KiB. Beyond it the longest idle one is closed.
	MaxIdle int
	// MaxIdlePerHost bounds them for one host and port; 4.
	MaxIdlePerHost int
	RootCAs        *x509.CertPool // whom to believe certificates from; nil: the system's authorities
	Logger         *slog.Logger   // nil: nothing is logged
}

const (
	defaultTimeout = 10 * time.Second // a plan without one: docs/domain.md, probe cadence
	closeTimeout   = time.Second      // for ending one session
	closeAll       = 2 * time.Second  // for ending all of them
	closersRunning = 8                // sessions ended side by side while probing goes on
	closersAtEnd   = 64               // and in the end
	maxClosing     = 4096             // sessions that wait for their end
	maxSteps       = 10               // questions of one probe
	streamAgain    = 5 * time.Minute  // until a server that is no HTTP+SSE is asked again whether it is
	maxLost        = 3                // sessions that a server may lose at once before it gets fewer
	maxLostWait    = 10 * time.Minute // until it gets another, in the end
)

// Prober makes MCP probes. It is safe for concurrent use.
type Prober struct {
	o          Options
	log        *slog.Logger
	clientInfo []byte
	// An idle connection is used without asking the guard again, so the two degrees of trust share none.
	trusted, untrusted atomic.Pointer[http.Transport]
	make               func(trusted bool) *http.Transport

	base    context.Context // of held streams
	cancel  context.CancelFunc
	streams sync.WaitGroup
	closing chan ending

	mu      sync.Mutex // guards what follows
	servers map[string]*server
	closed  bool

	unclosed atomic.Uint64
}

// ending is a session that is to be ended.
type ending struct {
	t                *target
	session, version string
}

// New returns a Prober. Close ends its sessions and releases its connections.
func New(o Options) *Prober {
	if o.UserAgent == "" {
		o.UserAgent = "statussync"
	}
	if o.Version == "" {
		o.Version = "0"
	}
	if o.MaxBody <= 0 {
		o.MaxBody = 1 << 20
	}
	if o.MaxIdle <= 0 {
		o.MaxIdle = 2048
	}
	if o.MaxIdlePerHost <= 0 {
		o.MaxIdlePerHost = 4
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Prober{
		o: o, log: o.Logger.With("component", "mcpprobe"), servers: make(map[string]*server), closing: make(chan ending, maxClosing),
	}
	p.clientInfo, _ = json.Marshal(implementation{Name: "statussync", Version: o.Version}) // two strings: can't fail
	p.base, p.cancel = context.WithCancel(context.Background())
	transport := func(trusted bool) *http.Transport {
		t := o.Guard.Transport(trusted)
		t.MaxIdleConns, t.MaxIdleConnsPerHost = o.MaxIdle, o.MaxIdlePerHost
		t.TLSClientConfig = &tls.Config{RootCAs: o.RootCAs}
		return t
	}
	p.make = transport
	p.trusted.Store(transport(true))
	p.untrusted.Store(transport(false))
	return p
}

// Do learns from plans which servers are to be remembered, and forgets those that are removed, not probed as MCP any
// more, or to be asked in another way; other requests are ignored. It is a statussync.Requester: it never blocks on a
// server. A session that is forgotten is ended by Run, a held stream at once.
//
// Where a scheduler takes the same requests, let it have them first: then no probe of a removed server begins any more.
func (p *Prober) Do(reqs []statussync.Request) {
	for i := range reqs {
		plan := reqs[i].Plan
		switch {
		case plan == nil:
		case plan.Removed || plan.Kind != statussync.ProbeMCP:
			p.Forget(plan.ServerID)
		default:
			p.mu.Lock()
			s := p.servers[plan.ServerID]
			if s == nil && !p.closed {
				p.servers[plan.ServerID] = newServer(plan)
			}
			p.mu.Unlock()
			if s != nil {
				p.dispose(s.follow(plan))
			}
		}
	}
}

// Forget drops all that is known of a server. Its session is ended by Run, its held stream at once. It does not block.
func (p *Prober) Forget(serverID string) {
	p.mu.Lock()
	s := p.servers[serverID]
	delete(p.servers, serverID)
	p.mu.Unlock()
	if s != nil {
		p.dispose(s.forget())
	}
}

// Renew has every later request of an untrusted plan connect anew, so that the Guard judges it by the networks that it
// allows now. Held streams of such plans end, and are opened again by the next probe; sessions are kept. Requests under way
// end as they began; their connections are not used again. It does not block on a server.
func (p *Prober) Renew() {
	p.untrusted.Swap(p.make(false)).CloseIdleConnections()
	p.mu.Lock()
	all := make([]*server, 0, len(p.servers))
	for _, s := range p.servers {
		all = append(all, s)
	}
	p.mu.Unlock()
	for _, s := range all {
		var e ending
		s.mu.Lock()
		if s.stream != nil && !s.plan.Trusted {
			e = s.dropLocked()
		}
		s.mu.Unlock()
		p.dispose(e)
	}
}

// Run ends the sessions of servers that were forgotten or have changed, some at a time. It blocks until ctx ends, and
// then leaves what is still waiting to Close. Without it they are ended by Close alone.
func (p *Prober) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range closersRunning {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case e := <-p.closing:
					p.end(ctx, e)
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// Close ends every session and held stream and closes all idle connections, within two seconds or until ctx ends. Call
// it after the last probe; later ones are refused. A second call does nothing.
func (p *Prober) Close(ctx context.Context) {
	p.mu.Lock()
	was := p.closed
	p.closed = true
	all := p.servers
	p.servers = make(map[string]*server)
	p.mu.Unlock()
	if was {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, closeAll)
	defer cancel()
	var endings []ending
	for _, s := range all {
		if e := s.forget(); e.session != "" {
			endings = append(endings, e)
		}
	}
	p.cancel()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(closersAtEnd, len(endings)+len(p.closing)) {
		wg.Go(func() {
			for {
				if i := int(next.Add(1)) - 1; i < len(endings) {
					p.end(ctx, endings[i])
					continue
				}
				select {
				case e := <-p.closing:
					p.end(ctx, e)
				default:
					return
				}
			}
		})
	}
	wg.Wait()
	p.streams.Wait()
	p.trusted.Load().CloseIdleConnections()
	p.untrusted.Load().CloseIdleConnections()
	if n := p.unclosed.Load(); n > 0 {
		p.log.Warn("sessions were left to their servers' own timeouts", "count", n)
	}
}

// Stats are a Prober's numbers at one moment.
type Stats struct {
	Servers  int    // that are remembered
	Sessions int    // legacy sessions held
	Streams  int    // HTTP+SSE streams held
	Closing  int    // sessions that wait for their end
	Unclosed uint64 // sessions whose end could not be told to their server, since New
}

// Stats returns the numbers. It takes each server's lock for a moment.
func (p *Prober) Stats() Stats {
	p.mu.Lock()
	all := make([]*server, 0, len(p.servers))
	for _, s := range p.servers {
		all = append(all, s)
	}
	p.mu.Unlock()
	st := Stats{Servers: len(all), Closing: len(p.closing), Unclosed: p.unclosed.Load()}
	for _, s := range all {
		s.mu.Lock()
		if s.session != "" {
			st.Sessions++
		}
		if s.stream != nil && !s.stream.ended() {
			st.Streams++
		}
		s.mu.Unlock()
	}
	return st
}

// startReader runs f in a goroutine that Close waits for; false after Close.
func (p *Prober) startReader(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.streams.Go(f)
	return true
}

func (p *Prober) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// dispose lets a session be ended soon, without waiting for it.
func (p *Prober) dispose(e ending) {
	if e.session == "" {
		return
	}
	if p.isClosed() { // by a probe that outlived Close: nobody else would do it
		p.end(context.Background(), e)
		return
	}
	select {
	case p.closing <- e:
	default:
		p.unclosed.Add(1)
		p.log.Warn("too many sessions wait for their end; one is left to its server's own timeout", "server", e.t.plan.ServerID)
	}
}

// disposeLocked is dispose for a caller that holds a server's lock: it never waits.
func (p *Prober) disposeLocked(e ending) {
	if e.session == "" {
		return
	}
	select {
	case p.closing <- e:
	default:
		p.unclosed.Add(1)
	}
}

// end tells a server that a session has ended. Whatever it answers, it knows: 404 is a session that is gone, 405 a server
// that doesn't let clients end any.
func (p *Prober) end(ctx context.Context, e ending) {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	r := e.t.request(http.MethodDelete, nil)
	delete(r.Header, "Content-Type")
	inSession(r.Header, e.session, e.version)
	r.Header["X-Idempotency-Key"] = nil
	resp, err := e.t.pool.Load().RoundTrip(r.WithContext(guard.WithAttempt(ctx)))
	if err != nil {
		p.unclosed.Add(1)
		_, detail := guard.CleanError(err)
		p.log.Debug("a session could not be ended", "server", e.t.plan.ServerID, "error", detail)
		return
	}
	drain(resp.Body, cancel)
	_ = resp.Body.Close()
}

// era is which of the protocol's two eras a server is of.
type era uint8

const (
	eraUnknown era = iota
	eraModern
	eraLegacy
)

// server is what is remembered of one server.
type server struct {
	ids     atomic.Int64
	opening chan struct{} // holds a token while nobody opens a session

	mu     sync.Mutex // guards what follows; held for moments
	plan   *statussync.ProbePlan
	target *target // of plan; nil until the first probe
	gone   bool    // forgotten: nothing may be remembered any more

	era     era
	version string // that is spoken
	hello   bool   // legacy: initialize was answered, and session, if any, is open
	session string
	stream  *stream
	sse     bool            // HTTP+SSE, by its plan or as was found out
	list    bool            // ping or discover is not supported: tools/list is asked
	caps    map[string]bool // capabilities that the server declared
	who     implementation

	canary    statussync.Canary // whose call the next two are about
	canaryAt  time.Time         // of the last call that had an outcome
	canaryBad bool              // which was bad

	streamTried time.Time
	lost        int // sessions in a row that were lost as soon as they were opened
	notBefore   time.Time
	lossy       conclusion // what that is called meanwhile
}

func newServer(plan *statussync.ProbePlan) *server {
	s := &server{plan: plan, opening: make(chan struct{}, 1), sse: plan.Transport == statussync.TransportSSE}
	s.opening <- struct{}{}
	return s
}

// follow takes a new plan. It returns the session that is to be ended because of it.
func (s *server) follow(plan *statussync.ProbePlan) ending {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan == plan {
		return ending{}
	}
	if sameTarget(s.plan, plan) {
		s.plan = plan // its timeout; the target goes on being used
		return ending{}
	}
	e := s.dropLocked()
	s.plan, s.target, s.era, s.version, s.list, s.caps = plan, nil, eraUnknown, "", false, nil
	s.sse = plan.Transport == statussync.TransportSSE
	s.streamTried, s.lost, s.notBefore, s.lossy = time.Time{}, 0, time.Time{}, conclusion{}
	return e
}

func (s *server) forget() ending {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	return s.dropLocked()
}

// dropLocked forgets the session and ends the stream; the caller ends the session it returns.
func (s *server) dropLocked() ending {
	e := ending{t: s.target, session: s.session, version: s.version}
	s.session, s.hello = "", false
	if s.stream != nil {
		s.stream.end()
		s.stream = nil
	}
	return e
}
