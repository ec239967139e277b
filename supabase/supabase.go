// Package supabase follows the changes of a Supabase project's tables through Realtime: a client of its Phoenix channel
// protocol, version 2.0.0, as a statussync.ChangeFeed.
//
// What it promises: when Live is called, the server has said that it follows the database (not merely that the channel is
// joined: seconds may lie between the two). When it may have stopped, for whatever reason, Lost is called, and Live again
// once it follows the database anew. It never gives up: attempts are spaced with exponential backoff and full jitter, wider
// where only a person can help (a wrong key), and the error says what is wrong.
//
// What it cannot promise: Realtime keeps nothing for a client that was away, and discards changes above its rate limits
// without a word. So changes are hints, and a receiver reads everything again at every Live and now and then.
package supabase

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/agentopia/statussync"
)

// DefaultSchema is PostgreSQL's own default.
const DefaultSchema = "public"

// DefaultKey is the primary key of the platform's tables.
const DefaultKey = "id"

// maxTables bounds what one channel asks for.
const maxTables = 100

// Options are the settings of a Feed.
type Options struct {
	// URL is the project's address: "https://ref.supabase.co", or that of a self-hosted installation, to whose path
	// /realtime/v1/websocket is added; one that ends in /websocket is taken as it is ("http://realtime:4000/socket/websocket",
	// the Realtime server without the gateway before it). ws and wss are taken for http and https. Required.
	URL string
	// APIKey is the project's key (service_role, or one that begins with sb_secret_). It is part of the address that is
	// connected to, and in no error and no log. Required.
	APIKey string
	// Token, if not nil, gives the JWT as whose role the tables are read. It is asked before every join and before the
	// last one ends, by one goroutine at a time, for at most 10 s; it must return when ctx ends. nil: the role of the key.
	Token func(ctx context.Context) (string, error)

	// Schema is that of the tables. Default: DefaultSchema.
	Schema string
	// Tables are followed, all in one channel. They must be in the publication supabase_realtime. Required.
	Tables []string
	// Keys are the columns that are a table's primary key, where that is not DefaultKey.
	Keys map[string]string

	// Dial, if not nil, makes the connections, as a net.Dialer does; proxies of the environment are then not asked.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// TLS, if not nil, is the configuration for https, such as the root certificates of a self-hosted installation. It is
	// cloned.
	TLS *tls.Config
	// Logger, if not nil, is told of losses and recoveries.
	Logger *slog.Logger
}

// State is where a Feed stands.
type State string

// The states of a Feed.
const (
	StateConnecting State = "connecting" // a connection is being made
	StateJoining    State = "joining"    // connected; the server does not follow the database yet
	StateLive       State = "live"       // changes are told
	StateWaiting    State = "waiting"    // until the next attempt
	StateStopped    State = "stopped"    // Run is not running
)

// Status is how a Feed is doing.
type Status struct {
	State State     `json:"state"`
	Since time.Time `json:"since,omitzero"` // when it came into this state
	// RetryAt is when it is tried again, in StateWaiting.
	RetryAt time.Time `json:"retry_at,omitzero"`

	Connects   uint64 `json:"connects"`   // connections made
	Reconnects uint64 `json:"reconnects"` // attempts to connect after the first
	Joins      uint64 `json:"joins"`      // joins sent
	Lives      uint64 `json:"lives"`      // times that it became live, or live anew
	Messages   uint64 `json:"messages"`   // frames received
	Changes    uint64 `json:"changes"`    // changes told

	// LastHeartbeat is when the server last answered one, HeartbeatRTT how long that took.
	LastHeartbeat time.Time     `json:"last_heartbeat,omitzero"`
	HeartbeatRTT  time.Duration `json:"heartbeat_rtt"` // nanoseconds

	// LastError is the newest reason for a loss or a failed attempt, for people. It names no secret and stays after a
	// recovery.
	LastError     string          `json:"last_error,omitempty"`
	LastErrorCode statussync.Code `json:"last_error_code,omitempty"`
	LastErrorAt   time.Time       `json:"last_error_at,omitzero"`
}

// Feed follows tables through Realtime. It is a statussync.ChangeFeed.
type Feed struct {
	o      Options
	target *url.URL // without the key
	keys   map[string]string
	client *http.Client
	log    *slog.Logger

	mu     sync.Mutex
	status Status

	// Run's own.
	running sync.Mutex // held while Run runs
	space   spacing
	told    string // the cause that the receiver was told last; "": it was told Live
	secrets []string
}

var _ statussync.ChangeFeed = (*Feed)(nil)

// New returns a Feed. Its errors have CodeInvalid, name the option and repeat no value that may hold a secret.
func New(o Options) (*Feed, error) {
	target, err := endpoint(o.URL)
	if err != nil {
		return nil, err
	}
	o.APIKey = strings.TrimSpace(o.APIKey)
	switch {
	case o.APIKey == "":
		return nil, statussync.Invalid("api_key", "the project's key is required")
	case len(o.APIKey) > maxToken:
		return nil, statussync.Invalid("api_key", "is longer than 16 KiB")
	case strings.ContainsFunc(o.APIKey, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return nil, statussync.Invalid("api_key", "has characters that no key has")
	case len(o.Tables) == 0:
		return nil, statussync.Invalid("tables", "at least one table is required")
	case len(o.Tables) > maxTables:
		return nil, statussync.Invalid("tables", "more than 100")
	}
	o.Schema = cmp.Or(o.Schema, DefaultSchema)
	f := &Feed{o: o, target: target, keys: make(map[string]string, len(o.Tables)), log: o.Logger}
	tables := make([]string, 0, len(o.Tables))
	for _, t := range o.Tables {
		if t == "" || t == "*" {
			return nil, statussync.Invalid("tables", "a table needs a name")
		}
		if _, twice := f.keys[t]; !twice {
			tables = append(tables, t)
		}
		f.keys[t] = cmp.Or(o.Keys[t], DefaultKey)
	}
	f.o.Tables = tables
	for t := range o.Keys {
		if _, ok := f.keys[t]; !ok {
			return nil, statussync.Invalid("keys", "the table "+statussync.CleanText(t, statussync.MaxWordText)+" is not among the tables")
		}
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.log = f.log.With("component", "supabase")
	f.client = f.newClient()
	f.status.State = StateStopped
	return f, nil
}

// endpoint makes the WebSocket's address of a project's, without the key.
func endpoint(s string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSpace(s))
	if err != nil { // whose text repeats the address
		return nil, statussync.Invalid("url", "is not a URL")
	}
	switch u.Scheme {
	case "https", "wss":
		u.Scheme = "https"
	case "http", "ws":
		u.Scheme = "http"
	default:
		return nil, statussync.Invalid("url", "must begin with https:// (or http://)")
	}
	switch {
	case u.Hostname() == "":
		return nil, statussync.Invalid("url", "has no host")
	case u.User != nil:
		return nil, statussync.Invalid("url", "must not hold a user or password")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, statussync.Invalid("url", "must not have a query or fragment; the key has its own setting")
	}
	p := strings.TrimRight(u.Path, "/")
	switch {
	case path.Base(p) == "websocket":
	case strings.HasSuffix(p, "/realtime/v1"), strings.HasSuffix(p, "/socket"):
		p += "/websocket"
	default:
		p += "/realtime/v1/websocket"
	}
	u.Path, u.RawPath = p, ""
	return u, nil
}

// Status returns how the feed is doing. It does not block.
func (f *Feed) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

func (f *Feed) update(change func(*Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.status)
}

func (f *Feed) enter(s State) {
	f.update(func(st *Status) {
		if st.State != s {
			st.State, st.Since = s, time.Now()
		}
		st.RetryAt = time.Time{}
	})
}

// Run follows the tables until ctx ends; it then returns nil. It never gives up. A Feed runs once at a time: a second Run
// beside the first returns an error with CodeConflict.
func (f *Feed) Run(ctx context.Context, to statussync.FeedReceiver) error {
	if !f.running.TryLock() {
		return statussync.NewError(statussync.CodeConflict, "this feed is running already", nil)
	}
	defer f.running.Unlock()
	defer f.client.CloseIdleConnections()
	defer f.enter(StateStopped)
	f.space, f.told = spacing{}, ""
	for first := true; ; first = false {
		if !first {
			f.update(func(s *Status) { s.Reconnects++ })
		}
		f.enter(StateConnecting)
		l := f.connect(ctx, to)
		if ctx.Err() != nil {
			return nil
		}
		wait := max(time.Until(l.at), 0)
		if l.at.IsZero() {
			wait = f.space.next(time.Now(), l)
		}
		f.lost(to, l, wait)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// lost notes a loss, and tells of it where it is news. wait is negative where the server itself tries again.
func (f *Feed) lost(to statussync.FeedReceiver, l *loss, wait time.Duration) {
	now := time.Now()
	detail := l.err.Error()
	f.update(func(s *Status) {
		s.LastError, s.LastErrorCode, s.LastErrorAt = detail, l.err.Code, now
		if wait >= 0 {
			if s.State != StateWaiting {
				s.State, s.Since = StateWaiting, now
			}
			s.RetryAt = now.Add(wait)
		} else if s.State != StateJoining {
			s.State, s.Since = StateJoining, now
		}
	})
	about := []any{"error", l.err}
	if wait >= 0 {
		about = append(about, "retry_in", wait.Round(time.Millisecond))
	}
	if f.told == detail {
		f.log.Debug("no Realtime channel yet", about...)
		return
	}
	f.told = detail
	level := slog.LevelWarn
	if l.pace == slow {
		level = slog.LevelError
	}
	f.log.Log(context.Background(), level, "no Realtime channel", about...)
	to.Lost(l.err)
}

// connect makes one connection and follows the channel on it until it is lost or ctx ends.
func (f *Feed) connect(ctx context.Context, to statussync.FeedReceiver) *loss {
	f.secrets = append(f.secrets[:0], f.o.APIKey, url.QueryEscape(f.o.APIKey))
	ws, l := f.dial(ctx)
	if l != nil {
		return l
	}
	f.update(func(s *Status) { s.Connects++ })
	f.enter(StateJoining)

	// The library closes a connection whose Read is canceled: the reading goroutine must outlive ctx by a farewell.
	reading, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ws.CloseNow()
	defer stopReading()
	defer cancel()

	k := &link{f: f, to: to, ws: ws, frames: make(chan inbound, 64), tokens: make(chan tokenAnswer, 1), wg: &wg}
	k.ch = channel{
		topic: topicName, needToken: f.o.Token != nil, clean: f.clean,
		join: func(token string) any { return joinConfig(f.o.Schema, f.o.Tables, token) },
		wait: func(now time.Time, l *loss) time.Duration { k.waiting = f.space.next(now, l); return k.waiting },
	}
	wg.Go(func() { f.read(reading, ws, k.frames) })
	return k.follow(ctx)
}

func (f *Feed) clean(s string) string { return clean(s, f.secrets...) }

// keepSecret remembers a token, so that no text shows it.
func (f *Feed) keepSecret(t string) {
	const keys, tokens = 2, 4
	if len(f.secrets) >= keys+tokens {
		f.secrets = append(f.secrets[:keys], f.secrets[keys+1:]...)
	}
	f.secrets = append(f.secrets, t)
}
