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
	ExpiresAt time.Time // zero: never. A WebSocket is closed with 4001, an SSE stream ended, when it is passed
	Limits    Limits    // zero numbers: those of Options

	via  via
	hash [sha256.Size]byte // of the token, with viaToken

	session *session    // with viaSession
	token   *Credential // what the session stands for, with viaSession
}

// via is how somebody proved who they are, where that can end.
type via uint8

const (
	viaOther via = iota // an Authenticator's own affair
	viaToken            // one of Tokens
	viaLoopback
	viaLegacy
	viaSession // a session's cookie
)

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
	Limits    Limits    // zero numbers: those of Options
}

// Tokens is an Authenticator over a configured set, which can be replaced, and agents' tokens that come and go. It keeps
// only SHA-256 hashes and looks up by hash: how long a lookup takes depends on the hash, which tells nothing about the
// token.
type Tokens struct {
	set     atomic.Pointer[tokenSet]
	managed atomic.Pointer[map[[sha256.Size]byte]string] // replaced whole, never changed
	rows    atomic.Pointer[map[[sha256.Size]byte]string] // likewise: those of databases
	now     func() time.Time
	err     error // a wrong spec; New and Replace report it
}

// tokenSet is what a configuration says. It is never changed.
type tokenSet struct {
	tokens map[[sha256.Size]byte]Credential
	agents map[[sha256.Size]byte]string
}

// Err returns what is wrong with the tokens, nil for nothing. New and Replace refuse those with an error.
func (t *Tokens) Err() error { return t.err }

// Replace puts the configured set of another Tokens in the place of this one's, all at once, for every request that comes
// from now on; managed agents' tokens stay. Streams that are open are looked at by API.CheckCredentials. Safe for
// concurrent use. On error nothing has changed.
func (t *Tokens) Replace(by *Tokens) error {
	if by.err != nil {
		return by.err
	}
	t.set.Store(by.set.Load())
	return nil
}

// Valid implements Verifier.
func (t *Tokens) Valid(c Credential) bool {
	now, ok := t.set.Load().tokens[c.hash]
	return c.via != viaToken || ok && now.Name == c.Name && now.Role == c.Role && now.ExpiresAt.Equal(c.ExpiresAt)
}

// SetManagedAgents replaces the agents' tokens beside the configured set by these: environment ids by the SHA-256 of the token.
// It takes effect for the next request. The map must not be changed afterwards. Safe for concurrent use.
func (t *Tokens) SetManagedAgents(agents map[[sha256.Size]byte]string) { t.managed.Store(&agents) }

// SetDatabaseAgents is SetManagedAgents for the tokens that databases define. What is configured or managed counts first:
// who may write to a platform's database can't take over somebody else's token.
func (t *Tokens) SetDatabaseAgents(agents map[[sha256.Size]byte]string) { t.rows.Store(&agents) }

// NewTokens returns the Authenticator of these tokens and agents' tokens (by environment id). New refuses it where a
// token is empty or given twice, or a role is unknown.
func NewTokens(specs []TokenSpec, agents map[string][]string) *Tokens {
	t := &Tokens{now: time.Now}
	set := &tokenSet{tokens: make(map[[sha256.Size]byte]Credential), agents: make(map[[sha256.Size]byte]string)}
	t.set.Store(set)
	for i, s := range specs {
		at := "Auth.tokens[" + strconv.Itoa(i) + "]"
		h := sha256.Sum256([]byte(s.Token))
		switch _, twice := set.tokens[h]; {
		case s.Token == "":
			t.err = statussync.Invalid(at, "has no token")
		case twice:
			t.err = statussync.Invalid(at, "has a token that another one has too")
		case s.Role.rank() == 0:
			t.err = statussync.Invalid(at, "has the unknown role "+strconv.Quote(string(s.Role))+"; it must be viewer, operator or admin")
		}
		if err := s.Limits.check(at + ".limits."); err != nil {
			t.err = err
		}
		set.tokens[h] = Credential{Name: s.Name, Role: s.Role, ExpiresAt: s.ExpiresAt, Limits: s.Limits, via: viaToken, hash: h}
	}
	for env, list := range agents {
		for _, token := range list {
			h := sha256.Sum256([]byte(token))
			if other, twice := set.agents[h]; token == "" {
				t.err = statussync.Invalid("Auth.agents", "environment "+strconv.Quote(env)+" has an empty token")
			} else if _, user := set.tokens[h]; user || (twice && other != env) {
				t.err = statussync.Invalid("Auth.agents", "the token of environment "+strconv.Quote(env)+" is also somebody else's")
			}
			set.agents[h] = env
		}
	}
	return t
}

// Token implements Authenticator.
func (t *Tokens) Token(token string) (Credential, bool) {
	c, ok := t.set.Load().tokens[sha256.Sum256([]byte(token))]
	if ok && !c.ExpiresAt.IsZero() && !t.now().Before(c.ExpiresAt) {
		return Credential{}, false
	}
	return c, ok
}

// Expired reports whether a token is one of the fixed set whose time is over. Who has it may be told so.
func (t *Tokens) Expired(token string) bool {
	c, ok := t.set.Load().tokens[sha256.Sum256([]byte(token))]
	return ok && !c.ExpiresAt.IsZero() && !t.now().Before(c.ExpiresAt)
}

// Agent implements Authenticator.
func (t *Tokens) Agent(token string) (string, bool) {
	h := sha256.Sum256([]byte(token))
	env, ok := t.set.Load().agents[h]
	if managed := t.managed.Load(); !ok && managed != nil {
		env, ok = (*managed)[h]
	}
	if rows := t.rows.Load(); !ok && rows != nil {
		env, ok = (*rows)[h]
	}
	return env, ok
}

// local is who connects over loopback to a service without tokens.
var local = Credential{Name: "local", Role: RoleAdmin, via: viaLoopback}

// legacyViewer is who connects without a credential where Options.LegacyViewer allows it.
var legacyViewer = Credential{Name: "legacy", Role: RoleViewer, via: viaLegacy}

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
	if a.set.Load().openLoopback && direct && addr.IsLoopback() {
		c := local
		return &c, nil
	}
	token, ok, err := bearer(r)
	if err != nil {
		return nil, err
	}
	if !ok {
		// A cookie comes by itself, also where somebody means to present something else: one that is good no more is none.
		return a.sessions.of(r, time.Now()), nil
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
	if x, ok := a.opts.Auth.(interface{ Expired(token string) bool }); ok && statussync.CodeOf(err) == statussync.CodeUnauthorized && x.Expired(token) {
		err = statussync.NewError(statussync.CodeUnauthorized, "this token has expired", nil)
	}
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
	if !ok && a.opts.AgentsPending != nil && a.opts.AgentsPending() {
		return "", withRetry{statussync.NewError(statussync.CodeUnavailable, "the agents' tokens are not read yet; try again later", nil), heartbeatRetryAfter}
	}
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
