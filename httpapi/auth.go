package httpapi

import (
	"container/list"
	"crypto/sha256"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/agentopia/statussync"
)

// Role is what a credential may do; each may do what the one before may.
type Role string

// The roles.
const (
	RoleViewer   Role = "viewer"   // read
	RoleOperator Role = "operator" // probe, override, maintenance
	RoleAdmin    Role = "admin"    // change the registry, reload
)

// rank orders roles; an unknown one may do nothing.
func (r Role) rank() int {
	switch r {
	case RoleViewer:
		return 1
	case RoleOperator:
		return 2
	case RoleAdmin:
		return 3
	}
	return 0
}

// Credential is who somebody proved to be.
type Credential struct {
	Name      string // stands as the actor in what follows; limits are counted by it
	Role      Role
	ExpiresAt time.Time // zero: never. A WebSocket is closed with 4001 when it is passed
}

// Authenticator knows tokens. Its methods are safe for concurrent use, don't block, and take the same time whether a
// token is nearly right or not at all.
type Authenticator interface {
	// Token returns whose token it is; false: nobody's, or it has expired.
	Token(token string) (Credential, bool)
	// Agent returns which environment's agent a token belongs to.
	Agent(token string) (environmentID string, ok bool)
}

// TokenSpec is a configured token.
type TokenSpec struct {
	Name      string
	Role      Role
	Token     string
	ExpiresAt time.Time // zero: never
}

// Tokens is an Authenticator over a fixed set, and agents' tokens that come and go. It keeps only SHA-256 hashes and looks
// up by hash: how long a lookup takes depends on the hash, which tells nothing about the token.
type Tokens struct {
	tokens  map[[sha256.Size]byte]Credential
	agents  map[[sha256.Size]byte]string
	managed atomic.Pointer[map[[sha256.Size]byte]string] // replaced whole, never changed
	now     func() time.Time
	err     error // a wrong spec; New reports it
}

// SetManagedAgents replaces the agents' tokens beside the fixed set by these: environment ids by the SHA-256 of the token.
// It takes effect for the next request. The map must not be changed afterwards. Safe for concurrent use.
func (t *Tokens) SetManagedAgents(agents map[[sha256.Size]byte]string) { t.managed.Store(&agents) }

// NewTokens returns the Authenticator of these tokens and agents' tokens (by environment id). New refuses it where a
// token is empty or given twice, or a role is unknown.
func NewTokens(specs []TokenSpec, agents map[string][]string) *Tokens {
	t := &Tokens{tokens: make(map[[sha256.Size]byte]Credential), agents: make(map[[sha256.Size]byte]string), now: time.Now}
	for i, s := range specs {
		at := "Auth.tokens[" + strconv.Itoa(i) + "]"
		h := sha256.Sum256([]byte(s.Token))
		switch _, twice := t.tokens[h]; {
		case s.Token == "":
			t.err = statussync.Invalid(at, "has no token")
		case twice:
			t.err = statussync.Invalid(at, "has a token that another one has too")
		case s.Role.rank() == 0:
			t.err = statussync.Invalid(at, "has the unknown role "+strconv.Quote(string(s.Role))+"; it must be viewer, operator or admin")
		}
		t.tokens[h] = Credential{Name: s.Name, Role: s.Role, ExpiresAt: s.ExpiresAt}
	}
	for env, list := range agents {
		for _, token := range list {
			h := sha256.Sum256([]byte(token))
			if other, twice := t.agents[h]; token == "" {
				t.err = statussync.Invalid("Auth.agents", "environment "+strconv.Quote(env)+" has an empty token")
			} else if _, user := t.tokens[h]; user || (twice && other != env) {
				t.err = statussync.Invalid("Auth.agents", "the token of environment "+strconv.Quote(env)+" is also somebody else's")
			}
			t.agents[h] = env
		}
	}
	return t
}

// Token implements Authenticator.
func (t *Tokens) Token(token string) (Credential, bool) {
	c, ok := t.tokens[sha256.Sum256([]byte(token))]
	if ok && !c.ExpiresAt.IsZero() && !t.now().Before(c.ExpiresAt) {
		return Credential{}, false
	}
	return c, ok
}

// Agent implements Authenticator.
func (t *Tokens) Agent(token string) (string, bool) {
	h := sha256.Sum256([]byte(token))
	env, ok := t.agents[h]
	if managed := t.managed.Load(); !ok && managed != nil {
		env, ok = (*managed)[h]
	}
	return env, ok
}

// local is who connects over loopback to a service without tokens.
var local = Credential{Name: "local", Role: RoleAdmin}

// legacyViewer is who connects without a credential where Options.LegacyViewer allows it.
var legacyViewer = Credential{Name: "legacy", Role: RoleViewer}

// maxToken bounds what is hashed.
const maxToken = 4096

// bearer returns the request's token; ok is false where there is none. A token in the query is none: it would stand in
// logs and histories.
func bearer(r *http.Request) (token string, ok bool, err error) {
	h := r.Header.Get("Authorization")
	if h == "" {
		return "", false, nil
	}
	scheme, token, _ := strings.Cut(h, " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxToken {
		return "", false, statussync.NewError(statussync.CodeUnauthorized, `the Authorization header must be "Bearer" and a token`, nil)
	}
	return token, true, nil
}

// authenticate returns who sent r, nil where r has no credential, or an error: CodeUnauthorized for a token that is
// nobody's, CodeForbidden for an agent's, CodeRateLimited.
func (a *API) authenticate(r *http.Request) (*Credential, error) {
	addr, direct := a.remote(r)
	if a.opts.OpenLoopback && direct && addr.IsLoopback() {
		c := local
		return &c, nil
	}
	token, ok, err := bearer(r)
	if err != nil || !ok {
		return nil, err
	}
	return a.login(addr, token)
}

// login checks a token that came from addr.
func (a *API) login(addr netip.Addr, token string) (*Credential, error) {
	var cred Credential
	var agent bool
	err := a.logins.try(addr, token, func() (ok bool) {
		if cred, ok = a.opts.Auth.Token(token); !ok {
			_, agent = a.opts.Auth.Agent(token)
		}
		return ok || agent
	})
	if err != nil {
		return nil, err
	}
	if agent {
		return nil, statussync.NewError(statussync.CodeForbidden, "an agent's token is good only for its heartbeats", nil)
	}
	return &cred, nil
}

// agentOf returns which environment's agent sent r. A valid token is taken whatever else came from its address: an agent
// must not go silent because of a misconfigured neighbour, or of somebody who guesses, behind the same address.
func (a *API) agentOf(r *http.Request) (string, error) {
	addr, _ := a.remote(r)
	token, ok, err := bearer(r)
	if err != nil {
		return "", err
	}
	if !ok {
		return "", statussync.NewError(statussync.CodeUnauthorized, "a heartbeat needs its environment's token: Authorization: Bearer <token>", nil)
	}
	env, ok := a.opts.Auth.Agent(token)
	if !ok {
		return "", a.beats.refuse(addr)
	}
	return env, nil
}

// maxAddresses bounds how many addresses are remembered, of failures and of successes; the least recently seen goes.
const maxAddresses = 10_000

// logins limits how fast one address may try tokens. An address that failed too often is not even looked at until time
// has passed, except with a token that was good from there before: who shares an address with somebody who guesses must
// not be locked out by it.
type logins struct {
	perMinute int
	failed    atomic.Uint64

	mu    sync.Mutex
	fails lru[netip.Addr, *rate.Limiter]
	good  lru[goodLogin, struct{}]
}

type goodLogin struct {
	addr netip.Addr
	hash [sha256.Size]byte
}

func newLogins(perMinute int) *logins {
	return &logins{perMinute: perMinute, fails: newLRU[netip.Addr, *rate.Limiter](maxAddresses), good: newLRU[goodLogin, struct{}](maxAddresses)}
}

// try calls check, unless addr failed too often, and counts its outcome. The error has CodeUnauthorized or
// CodeRateLimited.
func (l *logins) try(addr netip.Addr, token string, check func() bool) error {
	addr = counted(addr)
	key := goodLogin{addr, sha256.Sum256([]byte(token))}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock() // check doesn't block
	if _, known := l.good.get(key); !known {
		if err := l.blockedLocked(addr, now); err != nil {
			return err
		}
	}
	if check() {
		l.good.put(key, struct{}{})
		return nil
	}
	l.good.remove(key)
	return l.failLocked(addr, now)
}

// refuse counts a token from addr that has been found wrong. The error has CodeUnauthorized, or CodeRateLimited where
// addr failed too often.
func (l *logins) refuse(addr netip.Addr) error {
	addr = counted(addr)
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.blockedLocked(addr, now); err != nil {
		return err
	}
	return l.failLocked(addr, now)
}

// counted returns what failures are counted by: whoever has one IPv6 address of a /64 has them all.
func counted(addr netip.Addr) netip.Addr {
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return addr
}

func (l *logins) blockedLocked(addr netip.Addr, now time.Time) error {
	bucket, seen := l.fails.get(addr)
	if !seen || bucket.TokensAt(now) >= 1 {
		return nil
	}
	wait := time.Duration((1 - bucket.TokensAt(now)) * float64(time.Minute) / float64(l.perMinute))
	return withRetry{statussync.NewError(statussync.CodeRateLimited, "too many failed logins from this address; try again later", nil), int(wait/time.Second) + 1}
}

func (l *logins) failLocked(addr netip.Addr, now time.Time) error {
	l.failed.Add(1)
	bucket, seen := l.fails.get(addr)
	if !seen {
		bucket = rate.NewLimiter(rate.Limit(float64(l.perMinute)/60), l.perMinute)
		l.fails.put(addr, bucket)
	}
	bucket.AllowN(now, 1)
	return statussync.NewError(statussync.CodeUnauthorized, "this token is not known", nil)
}

// lru is a map of bounded size that forgets what was not asked for longest. Not safe for concurrent use.
type lru[K comparable, V any] struct {
	limit int
	items map[K]*list.Element
	order *list.List // front: newest
}

type lruItem[K comparable, V any] struct {
	key K
	val V
}

func newLRU[K comparable, V any](limit int) lru[K, V] {
	return lru[K, V]{limit: limit, items: make(map[K]*list.Element), order: list.New()}
}

func (c *lru[K, V]) get(k K) (v V, ok bool) {
	e, ok := c.items[k]
	if !ok {
		return v, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*lruItem[K, V]).val, true
}

func (c *lru[K, V]) put(k K, v V) {
	if e, ok := c.items[k]; ok {
		e.Value.(*lruItem[K, V]).val = v
		c.order.MoveToFront(e)
		return
	}
	c.items[k] = c.order.PushFront(&lruItem[K, V]{k, v})
	if len(c.items) > c.limit {
		c.remove(c.order.Back().Value.(*lruItem[K, V]).key)
	}
}

func (c *lru[K, V]) remove(k K) {
	if e, ok := c.items[k]; ok {
		c.order.Remove(e)
		delete(c.items, k)
	}
}

// limits are what one credential may use at once or per second.
type limits struct {
	perSecond, conns, replay int

	mu   sync.Mutex
	open map[string]int // connections; an entry is removed at 0
	cmds lru[string, *rate.Limiter]
	read lru[string, *rate.Limiter]
}

// maxCredentials bounds whose rates are remembered.
const maxCredentials = 10_000

func newLimits(perSecond, conns, replay int) *limits {
	return &limits{
		perSecond: perSecond, conns: conns, replay: replay, open: make(map[string]int),
		cmds: newLRU[string, *rate.Limiter](maxCredentials), read: newLRU[string, *rate.Limiter](maxCredentials),
	}
}

// connect counts a connection of a credential; false: it has too many.
func (l *limits) connect(name string) bool { return l.connectUpTo(name, l.conns) }

func (l *limits) connectUpTo(name string, most int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[name] >= most {
		return false
	}
	l.open[name]++
	return true
}

// disconnect is the inverse of connect.
func (l *limits) disconnect(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[name]--; l.open[name] <= 0 {
		delete(l.open, name)
	}
}

// command counts a command of a credential. The error has CodeRateLimited.
func (l *limits) command(name string) error {
	l.mu.Lock()
	lim, ok := l.cmds.get(name)
	if !ok {
		lim = rate.NewLimiter(rate.Limit(l.perSecond), l.perSecond)
		l.cmds.put(name, lim)
	}
	l.mu.Unlock()
	if !lim.Allow() {
		return statussync.NewError(statussync.CodeRateLimited, "more than "+strconv.Itoa(l.perSecond)+" commands per second with this credential", nil)
	}
	return nil
}

// replayed counts n bytes of replay of a credential and returns how long to wait before sending more.
func (l *limits) replayed(name string, n int) time.Duration {
	l.mu.Lock()
	lim, ok := l.read.get(name)
	if !ok {
		lim = rate.NewLimiter(rate.Limit(l.replay), l.replay)
		l.read.put(name, lim)
	}
	l.mu.Unlock()
	return lim.ReserveN(time.Now(), min(n, l.replay)).Delay()
}
