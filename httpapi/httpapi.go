// Package httpapi is the service's door: agents' heartbeats in; queries, commands, the WebSocket and the SSE stream out
// (docs/protocols.md §1 to §4), behind the guards of §9. It needs only contracts; what it serves is handed to it.
//
// Guarantees:
//
//   - Ordering. A stream tells the entries of its subscription in the order of the journal, each in one frame or event.
//   - Loss. Nothing is dropped. A client that reads too slowly is disconnected (close code 4008) and goes on where it
//     was by giving its cursor. A position that can't be continued is told in-band as a resync with a snapshot.
//   - Blocking. No client waits for another. A write that is blocked for Options.WriteTimeout ends the connection.
//     A heartbeat never waits for the engine: where the inbox is full it is answered with 503 at once.
//   - Bounds. Bodies, frames, connections per credential, remembered addresses and waiting replies are bounded.
//   - Errors. Every refusal is an RFC 9457 problem with one of the codes of docs/protocols.md, also for paths that
//     don't exist; errors of unknown kind become "internal" with a request id, and their text goes only to the log.
//
// A connection of the WebSocket has two goroutines: one reads, and one writes and owns everything else about it. An SSE
// stream has only its handler's. One more goroutine for all of them looks at clocks (pings, bookmarks, deadlines), so
// that there is no timer per connection. Nobody sends while holding a lock.
package httpapi

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync"
)

// Hub is what this package needs of the running service. Its methods are safe for concurrent use; their errors are
// *statussync.Error where a client may see them.
type Hub interface {
	statussync.Observer
	// Subscribe begins a subscription; its first event says from where.
	Subscribe(ctx context.Context, r statussync.SubscribeRequest) (statussync.Subscription, error)
	// Server returns one server as it is now; CodeNotFound.
	Server(id string) (statussync.ServerView, error)
	// Servers returns servers by id in byte order, whether more follow, and the position at which this was true.
	Servers(q statussync.ServerQuery) ([]statussync.ServerView, bool, statussync.Cursor)
	// Environments returns all environments.
	Environments() []statussync.EnvironmentView
	// Environment returns one environment; CodeNotFound.
	Environment(id string) (statussync.EnvironmentView, error)
	// Explain returns how a server's status comes about; CodeNotFound.
	Explain(ctx context.Context, id string) (statussync.Explanation, error)
	// History returns entries of one server, newest first.
	History(ctx context.Context, q statussync.HistoryQuery) ([]statussync.Encoded, error)
	// Updates returns up to limit matching entries after a position (zero: the oldest that are kept), oldest first, and
	// the position up to which entries were considered; CodeExpired.
	Updates(ctx context.Context, after statussync.Cursor, limit int, m *statussync.Matcher) ([]statussync.Encoded, statussync.Cursor, error)
	// CheckNow probes one server and returns once what follows is journaled; CodeNotFound, CodeConflict.
	CheckNow(ctx context.Context, id string) (statussync.ProbeResult, statussync.ServerView, error)
	// CheckAll is CheckNow of every server that is probed.
	CheckAll(ctx context.Context) ([]statussync.CheckResult, error)
	// SetOverride puts a person's word over a server's status; CodeNotFound, CodeInvalid.
	SetOverride(ctx context.Context, id string, o statussync.Override) (statussync.ServerView, error)
	// ClearOverride ends an override; without one it changes nothing. CodeNotFound.
	ClearOverride(ctx context.Context, id, actor string) (statussync.ServerView, error)
	// SyncMetrics returns the numbers of the whole fleet.
	SyncMetrics() statussync.SyncMetrics
	// Ready reports whether the service can do all that it promises.
	Ready() statussync.Readiness
	// Now is engine time.
	Now() time.Time
}

// Options say what an API serves and how it is guarded. A zero number or duration means its default.
type Options struct {
	Hub  Hub           // required
	Auth Authenticator // nil: nobody has a token

	// OpenLoopback makes everybody who connects from this machine's loopback, and not through a proxy, an admin named
	// "local". It is for services without configured tokens; agents need theirs in any case.
	OpenLoopback bool
	// LegacyViewer lets clients without a credential read on /ws/mcp-status.
	LegacyViewer bool

	Listen         string         // address that is listened on, "host:port"; its host is a valid Host header
	AllowedHosts   []string       // further valid Host headers, with or without a port
	AllowedOrigins []string       // further web origins that may connect and write, "https://host[:port]"
	TrustedProxies []netip.Prefix // whose X-Forwarded-For counts

	LoginFailuresPerMinute int // per address, of heartbeats counted apart; default 5
	CommandsPerSecond      int // per credential, and frames per WebSocket; default 100
	MaxConnections         int // WebSockets and SSE streams per credential; default 10,000
	ReplayBytesPerSecond   int // of stored entries and snapshots, per credential; default 64 MiB
	MaxSubscriptions       int // per credential; default 10,000
	MaxFilterIDs           int // values in one list of a filter; default and most: statussync.MaxFilterIDs
	MaxFilterClauses       int // clauses of a filter; default and most: statussync.MaxClauses

	// BasePath is a path below which everything is served, such as "/statussync"; empty: at the root. /healthz, /readyz,
	// /metrics and agents' heartbeats are served at the root as well.
	BasePath string
	// AgentCert judges the client certificate of an agent's heartbeat, beside its token; state is nil for a connection
	// without TLS. Its error is the answer. It must not block. nil: none is needed.
	AgentCert func(environmentID string, state *tls.ConnectionState) error

	// The five times from PingEvery on are not exceeded; they may fall short by a tick of the clock, about half a second.
	WriteTimeout  time.Duration // a write blocked for so long ends a stream; default 5 s
	PingEvery     time.Duration // default 25 s
	PongWait      time.Duration // a ping unanswered for so long ends a WebSocket; default 10 s
	AuthWait      time.Duration // for a WebSocket to present a credential; default 10 s
	BookmarkEvery time.Duration // from one bookmark to the next; default 25 s
	CommentEvery  time.Duration // SSE's sign of life; default 15 s

	Registry    Registry    // the managed registry; nil: it is not served
	Control     Control     // how the service is operated; nil: that is not served
	Syncer      Syncer      // reads the registries again; nil: that is not served
	Rollups     Rollups     // counts of probes, and uptime; nil: they are not served
	Resources   Resources   // what agents told of their hosts; nil: it is not served
	Backup      Backuper    // nil: backups are not served
	Eraser      Eraser      // nil: persons can't be erased by API
	Maintenance Maintenance // maintenance windows; nil: they are not served
	Registries  Registries  // databases that define servers; nil: there are none
	// Reports are told of agents' heartbeats as they came, once they are accepted.
	Reports []statussync.ReportSink
	// AgentsPending, if not nil, reports whether agents' tokens are still to be read: an agent whose token is not known is
	// then asked to come again, and not refused. It must not block; it is called concurrently.
	AgentsPending func() bool
	Tools         Tools      // tool lists and their pins; nil: they are not served
	ToolLooker    ToolLooker // reads tool lists on demand; nil: they are not

	// Sessions keeps who is signed in over restarts; nil: a restart signs everybody out.
	Sessions    SessionStore
	SessionIdle time.Duration // a session ends that was not used for so long; default 24 h. An open stream uses it
	SessionMax  time.Duration // a session ends so long after it began; default 7 days

	MCP http.Handler // serves /mcp to who may read; CredentialOf says who it is. nil: not served

	Metrics     http.Handler                               // GET /metrics; nil: not served
	Page        Page                                       // what people see at "/"; nil: "/" says where the API is
	ReadyChecks map[string]func(ctx context.Context) error // an error makes /readyz say degraded; each may take 2 s
	Version     string
	Logger      *slog.Logger // nil: discards
}

const (
	defaultLoginFailures = 5
)

func (o Options) withDefaults() Options {
	num := func(n *int, d int) {
		if *n == 0 {
			*n = d
		}
	}
	dur := func(n *time.Duration, d time.Duration) {
		if *n == 0 {
			*n = d
		}
	}
	num(&o.LoginFailuresPerMinute, defaultLoginFailures)
	limits := DefaultLimits()
	num(&o.CommandsPerSecond, limits.CommandsPerSecond)
	num(&o.MaxConnections, limits.Connections)
	num(&o.ReplayBytesPerSecond, limits.ReplayBytesPerSecond)
	num(&o.MaxSubscriptions, limits.Subscriptions)
	num(&o.MaxFilterIDs, limits.FilterIDs)
	num(&o.MaxFilterClauses, limits.FilterClauses)
	dur(&o.WriteTimeout, 5*time.Second)
	dur(&o.PingEvery, 25*time.Second)
	dur(&o.PongWait, 10*time.Second)
	dur(&o.AuthWait, 10*time.Second)
	dur(&o.BookmarkEvery, 25*time.Second)
	dur(&o.CommentEvery, 15*time.Second)
	dur(&o.SessionIdle, 24*time.Hour)
	dur(&o.SessionMax, 7*24*time.Hour)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Auth == nil {
		o.Auth = NewTokens(nil, nil)
	}
	return o
}

// API serves everything. It is safe for concurrent use.
type API struct {
	opts       Options // what Settings has of it counts in set
	set        atomic.Pointer[settings]
	generation atomic.Uint64 // counts CheckCredentials
	log        *slog.Logger
	mux        *http.ServeMux
	huma       huma.API
	logins     *logins
	beats      *logins // heartbeats' wrong tokens, which are counted apart
	sessions   *sessions
	lead       time.Duration // how long before its time a stream becomes due; see by
	limits     *limits
	handshakes sync.Pool // of write buffers for WebSocket handshakes

	patterns []string // what is on the mux and described

	openapiJSON, openapiYAML []byte

	streams  streams
	draining atomic.Bool
	stop     chan struct{} // closed by Close: the clock ends
	stopOnce sync.Once
	clock    sync.WaitGroup
}

// New checks the options and returns an API that can serve at once. It starts two goroutines; Close ends them. An error
// is a *statussync.Error with CodeInvalid that names the option.
func New(o Options) (*API, error) {
	o = o.withDefaults()
	if o.Hub == nil {
		return nil, statussync.Invalid("Hub", "is required")
	}
	if t, ok := o.Auth.(*Tokens); ok && t.err != nil {
		return nil, t.err
	}
	for _, n := range []struct {
		name string
		v    int64
	}{
		{"LoginFailuresPerMinute", int64(o.LoginFailuresPerMinute)}, {"CommandsPerSecond", int64(o.CommandsPerSecond)},
		{"MaxConnections", int64(o.MaxConnections)}, {"ReplayBytesPerSecond", int64(o.ReplayBytesPerSecond)},
		{"MaxSubscriptions", int64(o.MaxSubscriptions)},
		{"WriteTimeout", int64(o.WriteTimeout)}, {"PingEvery", int64(o.PingEvery)}, {"PongWait", int64(o.PongWait)},
		{"AuthWait", int64(o.AuthWait)}, {"BookmarkEvery", int64(o.BookmarkEvery)}, {"CommentEvery", int64(o.CommentEvery)},
		{"SessionIdle", int64(o.SessionIdle)}, {"SessionMax", int64(o.SessionMax)},
	} {
		if n.v < 0 {
			return nil, statussync.Invalid(n.name, "must not be negative")
		}
	}
	if fault := BasePathFault(o.BasePath); fault != "" {
		return nil, statussync.Invalid("BasePath", fault)
	}
	a := &API{opts: o, log: o.Logger, mux: http.NewServeMux(), stop: make(chan struct{})}
	set, err := newSettings(o.Listen, Settings{
		OpenLoopback: o.OpenLoopback, LegacyViewer: o.LegacyViewer, AllowedHosts: o.AllowedHosts, AllowedOrigins: o.AllowedOrigins,
		TrustedProxies: o.TrustedProxies, LoginFailuresPerMinute: o.LoginFailuresPerMinute,
		Limits: Limits{
			Connections: o.MaxConnections, Subscriptions: o.MaxSubscriptions, CommandsPerSecond: o.CommandsPerSecond,
			ReplayBytesPerSecond: o.ReplayBytesPerSecond, FilterIDs: o.MaxFilterIDs, FilterClauses: o.MaxFilterClauses,
		},
	})
	if err != nil {
		return nil, err
	}
	a.set.Store(set)
	a.generation.Store(1)
	a.logins, a.beats = newLogins(o.LoginFailuresPerMinute), newLogins(o.LoginFailuresPerMinute)
	a.limits = newLimits()
	a.sessions = newSessions(o)
	a.streams.init()
	if err := a.routes(); err != nil {
		return nil, err
	}
	every := clockTick
	for _, d := range []time.Duration{o.PingEvery, o.PongWait, o.AuthWait, o.BookmarkEvery, o.CommentEvery} {
		every = min(every, max(d/4, time.Millisecond))
	}
	a.lead = every + every/20
	a.clock.Add(1)
	go a.runClock(every)
	a.clock.Go(func() { a.sessions.run(a.stop) })
	return a, nil
}

// clockTick is how often the clock looks at the streams; more often only where an option is shorter than 2 s.
const clockTick = 500 * time.Millisecond

// by returns from when on what must happen within d of from is due. That is a tick of the clock earlier, as the next tick
// would be too late, and a little more for what the clock and the stream's goroutine are late themselves.
func (a *API) by(from time.Time, d time.Duration) time.Time { return from.Add(d - a.lead) }

// runClock wakes the streams whose time has come.
func (a *API) runClock(every time.Duration) {
	defer a.clock.Done()
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			a.streams.wakeDue(now)
		case <-a.stop:
			return
		}
	}
}

// Drain ends every WebSocket with close code 4011 and every SSE stream, and refuses new ones; /readyz answers 503 from
// now on. Everything else is still served. It does not wait; Wait does.
func (a *API) Drain() {
	a.draining.Store(true)
	a.streams.closeAll(closeReason{code: closeDraining, text: "the service is stopping"})
}

// Wait waits until every stream has ended and its goroutines are gone, or ctx ends.
func (a *API) Wait(ctx context.Context) error {
	select {
	case <-a.streams.ended():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close is Shutdown with Options.WriteTimeout. It may be called more than once.
func (a *API) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), a.opts.WriteTimeout)
	defer cancel()
	a.Shutdown(ctx)
}

// Shutdown is Drain, waits until every stream has ended or ctx ends, cuts what is left then, and joins every goroutine
// of the API. A client that does not read its close frame so delays a stop no longer than ctx.
func (a *API) Shutdown(ctx context.Context) {
	a.Drain()
	if a.Wait(ctx) != nil {
		a.streams.cutAll()
		<-a.streams.ended()
	}
	a.stopOnce.Do(func() { close(a.stop) })
	a.clock.Wait()
}

// Stats are the numbers of the streams, for metrics.
type Stats struct {
	WebSockets   int            // open now
	SSEStreams   int            // open now
	MCPRequests  int            // requests to the MCP server under way, streams among them
	WSClosed     map[int]uint64 // ended WebSockets by close code; 1006: the connection was lost without one
	SSECut       uint64         // SSE streams cut because a write was blocked too long
	EntriesSent  uint64         // entries written to all streams
	LoginsFailed uint64         // credentials refused
	Heartbeats   uint64         // accepted
	InboxFull    uint64         // heartbeats refused because the inbox was full
}

// Stats returns the numbers as they are now. The map is the caller's.
func (a *API) Stats() Stats {
	s := a.streams.stats()
	s.LoginsFailed = a.logins.failed.Load() + a.beats.failed.Load()
	return s
}

// ServeHTTP implements http.Handler. It sets a write deadline on each request, so the http.Server needs none; it should
// have a ReadHeaderTimeout.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rw := &response{ResponseWriter: w}
	r, inside, prefixed := a.below(r)
	if prefixed {
		rw.base = a.opts.BasePath
	}
	r = r.WithContext(context.WithValue(r.Context(), requestKey{}, newRequest(r)))
	defer a.recovered(rw, r)
	h := w.Header()
	h.Set("X-Request-Id", requestOf(r).id)
	h.Set("X-Content-Type-Options", "nosniff")
	if strings.HasPrefix(r.URL.Path, "/api/") {
		h.Set("Cache-Control", "no-store")
	}
	// Streams replace this by a deadline per write. Errors: a writer without deadlines (in tests) can't be blocked.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTimeout))
	if err := a.set.Load().hosts.check(r); err != nil {
		a.fail(rw, r, err)
		return
	}
	if err := a.set.Load().origins.Check(r); err != nil {
		a.fail(rw, r, statussync.NewError(statussync.CodeForbidden, "requests that change something are not taken from other web origins", err))
		return
	}
	if !inside {
		a.outside(rw, r)
		return
	}
	if handler, pattern := a.mux.Handler(r); pattern == "" {
		a.unrouted(rw, r, handler)
		return
	}
	a.mux.ServeHTTP(rw, r)
}

// answerTimeout is how long a client may take to read an answer that is no stream.
const answerTimeout = 30 * time.Second

// response remembers whether an answer has begun, so that a panic afterwards does not write a second one, and puts the base
// path, which no handler knows of, before the Location of an answer to a request that came below it.
type response struct {
	http.ResponseWriter
	begun bool
	base  string
}

// Unwrap lets http.ResponseController reach the writer below.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) WriteHeader(status int) {
	if at := w.Header().Get("Location"); !w.begun && w.base != "" && strings.HasPrefix(at, "/") {
		w.Header().Set("Location", w.base+at)
	}
	w.begun = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(b)
}

// streams is every open WebSocket and SSE stream.
type streams struct {
	mu     sync.Mutex
	open   map[stream]struct{}
	inside int           // between enter and leave
	closed closeReason   // set once: no stream enters any more
	done   chan struct{} // closed when closed is set and none is inside
	ws     int
	mcp    int
	counts Stats

	entries, heartbeats, inboxFull atomic.Uint64
}

// stream is what the clock and Drain need of a WebSocket or SSE stream. The methods don't block.
type stream interface {
	due(now time.Time) bool // it has something to do at now
	wake()
	end(why closeReason)
	cut()
}

// closeReason is why a stream is ended: a close code of docs/protocols.md §2, and a word for people.
type closeReason struct {
	code int
	text string
	told bool // the client has been told, as far as that was possible

	theirs bool // a Close frame of the client
}

func (s *streams) init() {
	s.open = make(map[stream]struct{})
	s.done = make(chan struct{})
	s.counts.WSClosed = make(map[int]uint64)
}

// enter lets a stream begin; leave is called when its goroutines have ended. False: the service is stopping.
func (s *streams) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.code != 0 {
		return false
	}
	s.inside++
	return true
}

func (s *streams) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inside--
	s.checkDoneLocked()
}

func (s *streams) checkDoneLocked() {
	if s.closed.code == 0 || s.inside > 0 {
		return
	}
	select {
	case <-s.done:
	default:
		close(s.done)
	}
}

// add makes a stream that has entered known to the clock and to Drain; where Drain has been, it is ended at once.
func (s *streams) add(x stream) {
	s.mu.Lock()
	s.open[x] = struct{}{}
	switch x.(type) {
	case *socket:
		s.ws++
	case *exchange:
		s.mcp++
	}
	why := s.closed
	s.mu.Unlock()
	if why.code != 0 {
		x.end(why)
	}
}

// remove forgets a stream. code is how a WebSocket was closed; cut, that an SSE stream was too slow.
func (s *streams) remove(x stream, code int, cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, x)
	switch x.(type) {
	case *socket:
		s.ws--
		s.counts.WSClosed[code]++
	case *exchange:
		s.mcp--
	default:
		if cut {
			s.counts.SSECut++
		}
	}
}

// each calls f for all open streams, without the lock.
func (s *streams) each(f func(stream)) {
	s.mu.Lock()
	list := make([]stream, 0, len(s.open))
	for x := range s.open {
		list = append(list, x)
	}
	s.mu.Unlock()
	for _, x := range list {
		f(x)
	}
}

func (s *streams) wakeDue(now time.Time) {
	s.each(func(x stream) {
		if x.due(now) {
			x.wake()
		}
	})
}

func (s *streams) closeAll(why closeReason) {
	s.mu.Lock()
	if s.closed.code == 0 {
		s.closed = why
	}
	s.checkDoneLocked()
	s.mu.Unlock()
	s.each(func(x stream) { x.end(why) })
}

func (s *streams) cutAll() { s.each(stream.cut) }

func (s *streams) ended() <-chan struct{} { return s.done }

func (s *streams) stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.counts
	out.WebSockets, out.SSEStreams, out.MCPRequests = s.ws, len(s.open)-s.ws-s.mcp, s.mcp
	out.WSClosed = make(map[int]uint64, len(s.counts.WSClosed))
	for k, v := range s.counts.WSClosed {
		out.WSClosed[k] = v
	}
	out.EntriesSent, out.Heartbeats, out.InboxFull = s.entries.Load(), s.heartbeats.Load(), s.inboxFull.Load()
	return out
}

// waker interrupts a goroutine that waits in Subscription.Next, so that it looks at what else there is to do. Between
// arm and the wait nothing is missed: a wake ends the context that arm returned.
type waker struct {
	parent context.Context
	mu     sync.Mutex
	ctx    context.Context
	cancel context.CancelFunc
}

// arm returns a context that the next wake ends. Only the goroutine that waits calls it.
func (w *waker) arm() context.Context {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx == nil || w.ctx.Err() != nil {
		w.ctx, w.cancel = context.WithCancel(w.parent)
	}
	return w.ctx
}

// wake ends the armed context. It never blocks.
func (w *waker) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel != nil {
		w.cancel()
	}
}

// hostOf cuts the port off a host, and the brackets off an IPv6 address.
func hostOf(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
}
