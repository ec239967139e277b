// Package mcpserver makes the service an MCP server (docs/protocols.md §7): an agent in any MCP client asks which servers
// are healthy, waits for one to recover, and subscribes to changes of the fleet.
//
// Guarantees:
//
//   - Both eras of the protocol on one path: requests that say MCP-Protocol-Version 2026-07-28 or later are served without a
//     session, the others with one that is closed when nobody has used it for a while.
//   - Rights. A client may do what its credential may do by the HTTP API; what it may not do is not listed. A session is
//     bound to the credential that opened it: another one's is answered as if it did not exist.
//   - Untrusted text, such as servers' names and errors, is only in JSON values of results, never in instructions, names or
//     descriptions of tools.
//   - Freshness. A subscriber is told of a change within notifyEvery of it. Changes of the same resource in between are
//     one notification: it says that something changed, and the resource says what is.
//   - Blocking. A client that does not read is cut when a write has been blocked for writeTimeout. Until then it can delay
//     notifications to clients of its own credential, and nobody else.
//   - Bounds. Sessions, waits and listed items are limited; a request's body is read to maxBody.
package mcpserver

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Service is what the tools and resources are made of: the running service, or a client of one. Its methods are safe for
// concurrent use; their errors are *statussync.Error where a client may see them.
type Service interface {
	// Servers returns one page of servers by id in byte order, and the cursor of the next; it is empty on the last page,
	// and for the first. q.After is not used.
	Servers(ctx context.Context, q statussync.ServerQuery, cursor string) (items []wire.Server, next string, err error)
	// Explain returns a server's status and how it comes about; CodeNotFound.
	Explain(ctx context.Context, id string) (*wire.Explain, error)
	// History returns up to limit entries of one server's last hours, newest first; CodeNotFound.
	History(ctx context.Context, id string, hours float64, limit int) ([]*statussync.Entry, error)
	// Probe checks a server now; CodeNotFound, CodeConflict.
	Probe(ctx context.Context, id string) (*wire.ProbeResult, error)
	// SetOverride puts the actor's word over a server's status; CodeNotFound, CodeInvalid.
	SetOverride(ctx context.Context, id string, o wire.OverrideRequest, actor string) (*wire.Status, error)
	// ClearOverride ends it; CodeNotFound.
	ClearOverride(ctx context.Context, id, actor string) (*wire.Status, error)
	// Watch calls changed with the ids of servers whose status changed, were added or removed; nil ids mean that any may
	// have. ids nil: of all servers. It calls it once, with nil, when changes from then on are seen. It blocks until ctx
	// ends, or changed returns false; both are no error.
	Watch(ctx context.Context, ids []string, changed func(ids []string) bool) error
}

// Caller is who sent a request, as the door in front found out.
type Caller struct {
	Name  string // the credential's; stands as the actor of overrides
	Write bool   // may probe and override
}

// Options are the settings of a Server.
type Options struct {
	Service Service // required
	// Caller returns who sent a request that has been let in.
	Caller func(r *http.Request) Caller
	// WriteTools offers the tools that change something to callers who may.
	WriteTools bool
	Version    string
	Logger     *slog.Logger // nil: discards
}

const (
	modernSince     = "2026-07-28"
	maxBody         = 1 << 20
	maxSessions     = 1000             // of one credential
	maxCallers      = 1000             // credentials that are served at a time; a configuration has a handful
	maxWaits        = 100              // wait_for_status calls under way, of one credential
	sessionTimeout  = 15 * time.Minute // without a request
	keepAlive       = time.Minute      // pings of sessions; an answered one keeps its session
	keepAliveMisses = 10               // a client without an open stream can't answer, and is no less alive
	notifyEvery     = 250 * time.Millisecond
	writeTimeout    = 5 * time.Second
	watchAgain      = time.Second // after the service's changes could not be watched
)

// fleetURI is the resource that subscribers of the whole fleet want: one, since clients open a stream for each.
const (
	fleetURI    = "status://fleet"
	serverURI   = "status://servers/"
	uriTemplate = serverURI + "{id}"
)

// Server serves MCP over HTTP or stdio. It is safe for concurrent use.
type Server struct {
	opts   Options
	log    *slog.Logger
	key    [32]byte // of the MACs in session ids
	schema *mcp.SchemaCache

	mu      sync.Mutex
	closed  bool
	callers map[door]*caller
	used    chan struct{} // closed when there is the first
	stop    context.CancelFunc
	base    context.Context
}

// door is a caller, and how it comes.
type door struct {
	Caller
	stdio bool
}

// caller is what the sessions of one credential share: what they may do, and who tells them of changes.
type caller struct {
	Caller
	s        *Server
	server   *mcp.Server
	handlers [2]http.Handler // with sessions, without
	waits    chan struct{}

	mu         sync.Mutex
	fleet      bool            // something changed since it was told
	dirty      map[string]bool // URIs of subscribed servers that did
	subscribed map[string]bool // URIs of servers that anybody subscribed to; some may have left
}

// New returns a Server that can serve at once; subscribers are told of changes while Run runs.
func New(o Options) (*Server, error) {
	if o.Service == nil {
		return nil, statussync.Invalid("Service", "is required")
	}
	if o.Caller == nil {
		o.Caller = func(*http.Request) Caller { return Caller{} }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{opts: o, log: o.Logger, callers: make(map[door]*caller), used: make(chan struct{}), schema: mcp.NewSchemaCache()}
	if _, err := rand.Read(s.key[:]); err != nil {
		return nil, err
	}
	s.base, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// of returns the part of the server that serves c. It is nil where there are too many, or the server is closed.
func (s *Server) of(c door) *caller {
	if !s.opts.WriteTools {
		c.Write = false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.callers[c]; p != nil || s.closed || len(s.callers) >= maxCallers {
		return p
	}
	p := &caller{Caller: c.Caller, s: s, waits: make(chan struct{}, maxWaits), dirty: map[string]bool{}, subscribed: map[string]bool{}}
	// Pings keep the sessions of clients that only listen; a client on standard input is there until that ends.
	every := keepAlive
	if c.stdio {
		every = 0
	}
	p.server = p.newServer(every)
	for i, stateless := range []bool{false, true} {
		p.handlers[i] = mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return p.server }, &mcp.StreamableHTTPOptions{
			Stateless: stateless, SessionTimeout: sessionTimeout, MaxRequestBodyBytes: maxBody,
			DisableLocalhostProtection: true, // the door in front checks the Host header, with a list of its own
		})
	}
	if s.callers[c] = p; len(s.callers) == 1 {
		close(s.used)
	}
	return p
}

// sessionID returns a new id that only this caller can use.
func (p *caller) sessionID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	id := hex.EncodeToString(b[:])
	return id + p.mac(id)
}

func (p *caller) mac(id string) string {
	h := hmac.New(sha256.New, p.s.key[:])
	_, _ = io.WriteString(h, id+"\x00"+p.Name) // a hash takes everything
	return hex.EncodeToString(h.Sum(nil)[:16])
}

func (p *caller) owns(session string) bool {
	return len(session) == 64 && hmac.Equal([]byte(session[32:]), []byte(p.mac(session[:32])))
}

// ServeHTTP serves one request of a caller that has been let in. Streams last until the client or the server ends them.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := s.of(door{Caller: s.opts.Caller(r)})
	if p == nil {
		http.Error(w, "too many clients", http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.base, cancel)()
	r = r.WithContext(ctx)
	lasting := &patient{ResponseWriter: w, rc: http.NewResponseController(w)}
	lasting.rest()
	defer func() { _ = lasting.rc.SetWriteDeadline(time.Now().Add(writeTimeout)) }() // for what the server writes in the end
	w = lasting
	if r.Header.Get("Mcp-Protocol-Version") >= modernSince {
		p.handlers[1].ServeHTTP(w, r)
		return
	}
	session := r.Header.Get("Mcp-Session-Id")
	switch {
	case session != "" && !p.owns(session):
		http.Error(w, "session not found", http.StatusNotFound)
		return
	case session == "" && r.Method == http.MethodPost && p.sessions() >= maxSessions:
		w.Header().Set("Retry-After", "60")
		http.Error(w, "too many sessions; close some, or wait until they time out", http.StatusTooManyRequests)
		return
	}
	p.handlers[0].ServeHTTP(w, r)
}

func (p *caller) sessions() (n int) {
	for range p.server.Sessions() {
		n++
	}
	return n
}

// ServeStdio serves one client over standard input and output until it leaves or ctx ends. Changes are told as by Run,
// which must run beside it.
func (s *Server) ServeStdio(ctx context.Context, c Caller, in io.ReadCloser, out io.WriteCloser) error {
	p := s.of(door{Caller: c, stdio: true})
	if p == nil {
		return statussync.NewError(statussync.CodeUnavailable, "the server is closed", nil)
	}
	err := p.server.Run(ctx, &mcp.IOTransport{Reader: in, Writer: out})
	if ctx.Err() != nil || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// patient gives each write its own deadline, so that a stream lasts as long as its reader reads. Between writes there is
// none: over HTTP/2 one that passes ends the stream, whether anything is written or not.
type patient struct {
	http.ResponseWriter
	rc *http.ResponseController
}

// Unwrap lets http.ResponseController reach the writer below.
func (w *patient) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *patient) Write(b []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // a writer without deadlines, as in tests, can't be blocked
	defer w.rest()
	return w.ResponseWriter.Write(b)
}

// FlushError implements what http.ResponseController asks for.
func (w *patient) FlushError() error {
	_ = w.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	defer w.rest()
	return w.rc.Flush()
}

func (w *patient) rest() { _ = w.rc.SetWriteDeadline(time.Time{}) }

// Flush implements http.Flusher.
func (w *patient) Flush() { _ = w.FlushError() }

// Run watches the service and tells subscribers of what changed, until ctx ends; it then ends every session and stream
// and returns nil. It may run once.
func (s *Server) Run(ctx context.Context) error {
	defer s.close()
	var told sync.WaitGroup
	defer told.Wait()
	defer s.stop() // requests end before those who tell them anything are waited for
	// A service that nobody asks by MCP is not watched for nothing.
	select {
	case <-ctx.Done():
		return nil
	case <-s.used:
	}
	told.Go(func() { s.tell(ctx, &told) })
	for {
		err := s.opts.Service.Watch(ctx, nil, func(ids []string) bool {
			s.changed(ids)
			return ctx.Err() == nil
		})
		if ctx.Err() != nil {
			return nil
		}
		s.log.Debug("changes can't be watched; trying again", "error", err)
		if !pause(ctx, watchAgain) {
			return nil
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (s *Server) close() {
	s.stop()
	s.mu.Lock()
	s.closed = true
	callers := s.all()
	s.mu.Unlock()
	for _, p := range callers {
		for ss := range p.server.Sessions() {
			_ = ss.Close() // its client is told by the end of its streams
		}
	}
}

// all returns the callers; s.mu is held.
func (s *Server) all() []*caller {
	out := make([]*caller, 0, len(s.callers))
	for _, p := range s.callers {
		out = append(out, p)
	}
	return out
}

// maxSubscribed bounds the servers that one credential's clients subscribe to.
const maxSubscribed = 10_000

// subscribe notes that somebody wants to be told of a resource.
func (p *caller) subscribe(uri string) error {
	if _, ok := serverOf(uri); !ok {
		if uri == fleetURI {
			return nil
		}
		return mcp.ResourceNotFoundError(uri)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.subscribed) >= maxSubscribed && !p.subscribed[uri] {
		return errors.New("too many subscriptions; subscribe to " + fleetURI)
	}
	p.subscribed[uri] = true
	return nil
}

// changed notes what is to be told; nil is everything.
func (s *Server) changed(ids []string) {
	s.mu.Lock()
	callers := s.all()
	s.mu.Unlock()
	for _, p := range callers {
		p.mu.Lock()
		p.fleet = true
		if ids == nil {
			maps.Copy(p.dirty, p.subscribed)
		}
		for _, id := range ids {
			if uri := serverURI + id; p.subscribed[uri] {
				p.dirty[uri] = true
			}
		}
		p.mu.Unlock()
	}
}

// tell sends the notifications. The SDK sends them one after the other, so each caller has a goroutine while it is told.
func (s *Server) tell(ctx context.Context, group *sync.WaitGroup) {
	t := time.NewTicker(notifyEvery)
	defer t.Stop()
	busy := map[*caller]chan struct{}{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		s.mu.Lock()
		callers := s.all()
		s.mu.Unlock()
		for _, p := range callers {
			if done := busy[p]; done != nil {
				select {
				case <-done:
				default:
					continue // still telling; it is told the rest next time
				}
			}
			p.mu.Lock()
			fleet, dirty := p.fleet, p.dirty
			if fleet {
				p.fleet, p.dirty = false, map[string]bool{}
			}
			p.mu.Unlock()
			if !fleet {
				continue
			}
			done := make(chan struct{})
			busy[p] = done
			group.Go(func() {
				defer close(done)
				p.notify(ctx, fleetURI)
				for uri := range dirty {
					p.notify(ctx, uri)
				}
			})
		}
	}
}

func (p *caller) notify(ctx context.Context, uri string) {
	if err := p.server.ResourceUpdated(ctx, &mcp.ResourceUpdatedNotificationParams{URI: uri}); err != nil {
		p.s.log.Debug("a subscriber was not told", "error", err)
	}
}

// toolError is what a tool says where it fails: our own words, or none.
func toolError(err error) *mcp.CallToolResult {
	text := "internal: the request could not be served"
	var e *statussync.Error
	switch {
	case errors.As(err, &e):
		text = string(e.Code) + ": " + e.Detail
		if e.Location != "" {
			text = string(e.Code) + ": " + e.Location + " " + e.Detail
		}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		text = "unavailable: it took too long"
	}
	return &mcp.CallToolResult{IsError: true, Content: []mcp.Content{&mcp.TextContent{Text: text}}}
}

// resource is the result of reading one.
func resource(uri string, v any) (*mcp.ReadResourceResult, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: uri, MIMEType: "application/json", Text: string(b)}}}, nil
}

// serverOf returns the server's id in a resource's URI.
func serverOf(uri string) (string, bool) {
	id, ok := strings.CutPrefix(uri, serverURI)
	return id, ok && id != ""
}
