// Package realtimetest is a Supabase Realtime server for tests: its handshake, its Phoenix channels with postgres_changes,
// tokens and their end, and every way in which it is known to refuse, fail and fall silent, on demand. It speaks on real
// WebSockets; the official JavaScript client is run against it.
//
// It writes its wire bytes itself and imports nothing of the client's, so that no shared mistake hides.
package realtimetest

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// Options are the settings of a Server. The zero value is a server that takes any key and no wrong token.
type Options struct {
	// APIKey is the only one that is let in; empty: any.
	APIKey string
	// JWTSecret verifies access tokens (HS256). Empty: their signature is not looked at.
	JWTSecret string
	// RefusalDelay is how long refusals of a handshake are held back (the real server: 2 s), JoinErrorDelay those of a join
	// (the real server: 5 s).
	RefusalDelay, JoinErrorDelay time.Duration
	// SubscribeDelay is the time between the answer to a join and the word that the database is followed, or followed
	// again after a fresh token. Changes in between are lost.
	SubscribeDelay time.Duration
	// IdleTimeout closes a connection that sent nothing for so long. Default: 60 s, as Phoenix has it.
	IdleTimeout time.Duration
	// Publication, if not nil, are the tables that can be followed, as schema.table.
	Publication []string
}

// Join is what became of a join, for the test to decide. The zero value succeeds.
type Join struct {
	Reason      string // refused with this reason
	Silent      bool   // never answered
	NoSystem    bool   // answered, but never followed by the word that the database is followed
	SystemError string // followed by this error of postgres_changes instead
	Disconnect  bool   // the connection is closed after the answer, as after ClientJoinRateLimitReached
}

// Refusal is how a handshake is refused.
type Refusal struct {
	Status     int
	Message    string
	RetryAfter string
}

// Fate is what happens to a frame.
type Fate int

// The fates.
const (
	Pass Fate = iota
	Drop
	Double
)

// Frame is a frame that passes.
type Frame struct {
	ToClient     bool
	JoinRef, Ref string // empty: null
	Topic, Event string
	Payload      json.RawMessage
}

// Change is a change of a row, as the database tells it.
type Change struct {
	Schema, Table string
	Type          string         // INSERT, UPDATE, DELETE
	Record        map[string]any // not of a DELETE
	OldRecord     map[string]any // not of an INSERT; usually the primary key alone
	Errors        []string
}

// Server is a Realtime server: an http.Handler whose hooks and methods make it fail. Its fields may be set before it
// serves; its methods are safe for concurrent use. Close it before its listener.
type Server struct {
	// OnHandshake, if not nil, decides about each handshake; nil: it is let in where the key is right.
	OnHandshake func(n int) *Refusal
	// OnJoin, if not nil, decides about each join.
	OnJoin func(n int) Join
	// OnFrame, if not nil, decides about each frame, in both directions.
	OnFrame func(Frame) Fate

	o      Options
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu         sync.Mutex
	conns      map[*conn]bool
	handshakes []time.Time
	joins      []JoinSeen
	tokens     []string
	leaves     int
	heartbeats int
	down       bool
	frozen     bool
	closed     bool
	wake       chan struct{} // closed at each change of frozen
	nextID     int
}

// JoinSeen is a join that came.
type JoinSeen struct {
	At      time.Time
	Topic   string
	Payload json.RawMessage
}

// New returns a Server.
func New(o Options) *Server {
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = 60 * time.Second
	}
	s := &Server{o: o, conns: map[*conn]bool{}, wake: make(chan struct{}), nextID: 106243155}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close ends all connections and waits for their goroutines.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

// Handshakes returns when connections were tried, those that were refused included.
func (s *Server) Handshakes() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.handshakes)
}

// Joins returns the joins that came.
func (s *Server) Joins() []JoinSeen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.joins)
}

// Tokens returns the tokens that came by access_token messages.
func (s *Server) Tokens() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.tokens)
}

// Counts returns the numbers of heartbeats and phx_leave that came, and of connections that are open.
func (s *Server) Counts() (heartbeats, leaves, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heartbeats, s.leaves, len(s.conns)
}

// Subscribed returns how many channels are told of changes.
func (s *Server) Subscribed() (n int) {
	for _, c := range s.all() {
		c.mu.Lock()
		for _, ch := range c.channels {
			if ch.following {
				n++
			}
		}
		c.mu.Unlock()
	}
	return n
}

func (s *Server) all() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.conns))
}

// SetDown makes the server refuse handshakes with 503 and close what is open (a restart), or end that.
func (s *Server) SetDown(down bool) {
	s.mu.Lock()
	s.down = down
	s.mu.Unlock()
	if down {
		s.Disconnect()
	}
}

// SetFrozen makes the server neither read nor write while connections stay open, or end that.
func (s *Server) SetFrozen(frozen bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = frozen
	close(s.wake)
	s.wake = make(chan struct{})
}

// thaw returns when the server is not frozen; false: c has ended.
func (s *Server) thaw(ctx context.Context) bool {
	for {
		s.mu.Lock()
		frozen, wake := s.frozen, s.wake
		s.mu.Unlock()
		if !frozen {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-wake:
		}
	}
}

// Disconnect closes every connection without a farewell.
func (s *Server) Disconnect() {
	for _, c := range s.all() {
		c.cancel()
	}
}

// Drain does what the server does when it is told to let everybody go: it says so, with status ok, and closes.
func (s *Server) Drain() {
	for _, c := range s.all() {
		c.each(func(ch *channel) {
			c.system(ch, "system", "ok", "Server requested disconnect")
		})
		c.finish()
	}
}

// Crash ends every channel with phx_error.
func (s *Server) Crash() { s.endChannels("phx_error") }

// CloseChannels ends every channel with phx_close.
func (s *Server) CloseChannels() { s.endChannels("phx_close") }

func (s *Server) endChannels(event string) {
	for _, c := range s.all() {
		c.each(func(ch *channel) { c.end(ch, event) })
	}
}

// Shutdown ends every channel as the server does by itself: a system message and phx_close.
func (s *Server) Shutdown(message string) {
	for _, c := range s.all() {
		c.each(func(ch *channel) { c.shutdown(ch, message) })
	}
}

// LoseDatabase says an error of postgres_changes to every channel and tells no changes; with back it follows the database
// again after that time.
func (s *Server) LoseDatabase(message string, back time.Duration) {
	for _, c := range s.all() {
		c.each(func(ch *channel) {
			c.following(ch, false)
			if message != "" { // the server also loses it without a word
				c.system(ch, "postgres_changes", "error", message)
			}
			if back > 0 {
				c.after(back, func() { c.follow(ch) })
			}
		})
	}
}

// Raw sends bytes as one frame to everybody.
func (s *Server) Raw(data []byte) {
	for _, c := range s.all() {
		c.write(data, true)
	}
}

// RawBinary sends a binary frame to everybody.
func (s *Server) RawBinary(data []byte) {
	for _, c := range s.all() {
		c.write(data, false)
	}
}

// Change tells a change to every channel that follows its table. Nobody else ever hears of it.
func (s *Server) Change(ch Change) {
	for _, c := range s.all() {
		c.each(func(of *channel) { c.change(of, ch) })
	}
}

// Token makes a JWT for a role that ends at exp, with the server's secret.
func (s *Server) Token(role string, exp time.Time) string {
	enc := base64.RawURLEncoding
	head := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))
	claims, _ := json.Marshal(map[string]any{"role": role, "exp": exp.Unix(), "iat": exp.Unix() - 3600})
	body := head + "." + enc.EncodeToString(claims)
	return body + "." + enc.EncodeToString(s.sign(body))
}

func (s *Server) sign(body string) []byte {
	m := hmac.New(sha256.New, []byte(s.o.JWTSecret))
	m.Write([]byte(body))
	return m.Sum(nil)
}

// checkToken returns when a token ends, or why it is refused.
func (s *Server) checkToken(t string) (exp time.Time, refused string) {
	parts := strings.Split(t, ".")
	if len(parts) != 3 {
		return exp, "MalformedJWT: The token provided is not a valid JWT"
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if s.o.JWTSecret != "" && (err != nil || !hmac.Equal(sig, s.sign(parts[0]+"."+parts[1]))) {
		return exp, "JwtSignatureError: Failed to validate JWT signature"
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	var c struct {
		Role string `json:"role"`
		Exp  int64  `json:"exp"`
	}
	if err != nil || json.Unmarshal(raw, &c) != nil {
		return exp, "MalformedJWT: The token provided is not a valid JWT"
	}
	if c.Role == "" || c.Exp == 0 {
		return exp, "InvalidJWTToken: Fields `role` and `exp` are required in JWT"
	}
	exp = time.Unix(c.Exp, 0)
	if past := time.Since(exp); past >= 0 {
		return exp, fmt.Sprintf("InvalidJWTToken: Token has expired %d seconds ago", int(past.Seconds()))
	}
	return exp, ""
}

// ServeHTTP takes WebSockets at /realtime/v1/websocket and /socket/websocket.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/realtime/v1/websocket" && r.URL.Path != "/socket/websocket" {
		http.NotFound(w, r)
		return
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.wg.Add(1)
	s.handshakes = append(s.handshakes, time.Now())
	n, down := len(s.handshakes), s.down
	s.mu.Unlock()
	defer s.wg.Done()
	if !s.thaw(r.Context()) {
		return
	}

	refusal := s.refusal(r, n, down)
	if refusal != nil {
		select {
		case <-time.After(s.o.RefusalDelay):
		case <-s.ctx.Done():
		}
		w.Header().Set("Content-Type", "application/json")
		if refusal.RetryAfter != "" {
			w.Header().Set("Retry-After", refusal.RetryAfter)
		}
		w.WriteHeader(refusal.Status)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": refusal.Message})
		return
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	c := &conn{s: s, ws: ws, ctx: ctx, cancel: cancel, objects: r.URL.Query().Get("vsn") != "2.0.0", out: make(chan outgoing, 4096), channels: map[string]*channel{}}
	if key := r.URL.Query().Get("apikey"); r.Header.Get("X-Api-Key") == "" {
		c.key = key
	} else {
		c.key = r.Header.Get("X-Api-Key")
	}
	s.mu.Lock()
	s.conns[c] = true
	s.mu.Unlock()
	c.run()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

func (s *Server) refusal(r *http.Request, n int, down bool) *Refusal {
	key := r.Header.Get("X-Api-Key")
	if key == "" {
		key = r.URL.Query().Get("apikey")
	}
	switch {
	case down:
		return &Refusal{Status: http.StatusServiceUnavailable, Message: "Service Unavailable"}
	case s.OnHandshake != nil:
		if refusal := s.OnHandshake(n); refusal != nil {
			return refusal
		}
	}
	switch {
	case key == "":
		return &Refusal{Status: http.StatusUnauthorized, Message: "API key is missing"}
	case s.o.APIKey != "" && key != s.o.APIKey:
		return &Refusal{Status: http.StatusUnauthorized, Message: "Failed to validate JWT signature"}
	}
	return nil
}
