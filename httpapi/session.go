package httpapi

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// SessionCookie is the name of the cookie by which a browser that signed in is known.
const SessionCookie = "statussync_session"

// Bounds of sessions. One credential can't push out others' before ten do it together.
const (
	maxSessions        = 1000 // open at once; the one that was not used for longest goes
	maxSessionsOfToken = 100
)

// Times of what keeps sessions tidy and stored.
const (
	sessionTick     = time.Minute     // how often sessions that are over are removed
	sessionSaveLate = 5 * time.Minute // how far the stored time of the last use may lie behind
)

// SessionRecord is what is kept of a session. Nothing in it lets anybody in, or tells whose it is.
type SessionRecord struct {
	ID    [sha256.Size]byte // SHA-256 of the session's id
	Bound [sha256.Size]byte // HMAC-SHA-256, keyed with the id, of the token's SHA-256: only who has the cookie can tell the token
	Began time.Time
	Used  time.Time
}

// SessionStore keeps sessions over restarts. Its methods are called by one goroutine at a time and may block.
type SessionStore interface {
	// Sessions returns what was saved last; nothing where nothing was.
	Sessions() ([]SessionRecord, error)
	// SaveSessions replaces what is kept. When it returns nil it is on the disk, whole.
	SaveSessions([]SessionRecord) error
}

// session is somebody who signed in with a token, and stands for that token: it ends with it.
type session struct {
	id    [sha256.Size]byte // its SHA-256
	bound [sha256.Size]byte
	began time.Time
	used  atomic.Int64 // Unix nanoseconds
	ended atomic.Bool

	// token is the SHA-256 of its token where that is known: not after a restart, until somebody comes with the cookie.
	// sessions.mu guards both.
	token [sha256.Size]byte
	known bool
}

// touch notes that the session is in use; a nil one is none.
func (s *session) touch(now time.Time) {
	if s != nil {
		s.used.Store(now.UnixNano())
	}
}

func (s *session) usedAt() time.Time { return time.Unix(0, s.used.Load()) }

// sessions are all that are open. The id of a session is known to its browser alone: here are hashes.
type sessions struct {
	tokens    *Tokens // nil: another Authenticator, whose credentials can't be found again, so nobody signs in
	store     SessionStore
	idle, max time.Duration
	log       *slog.Logger

	mu    sync.Mutex
	open  map[[sha256.Size]byte]*session
	dirty bool // sessions came or went since they were saved

	saving sync.Mutex // held while the store is used; never taken while mu is held
	saved  map[[sha256.Size]byte]int64
}

func newSessions(o Options) *sessions {
	s := &sessions{
		store: o.Sessions, idle: o.SessionIdle, max: o.SessionMax, log: o.Logger,
		open: make(map[[sha256.Size]byte]*session), saved: make(map[[sha256.Size]byte]int64),
	}
	s.tokens, _ = o.Auth.(*Tokens)
	if s.store == nil || s.tokens == nil {
		return s
	}
	list, err := s.store.Sessions()
	if err != nil {
		s.log.Warn("who was signed in could not be read, and has to sign in again", "error", err)
	}
	now := time.Now()
	for _, r := range list[:min(len(list), maxSessions)] {
		x := &session{id: r.ID, bound: r.Bound, began: r.Began}
		x.used.Store(r.Used.UnixNano())
		if !s.over(x, now) {
			s.open[r.ID], s.saved[r.ID] = x, r.Used.UnixNano()
		}
	}
	return s
}

// over reports whether a session has had its time. One that begins in the future was made under a wrong clock.
func (s *sessions) over(x *session, now time.Time) bool {
	return !now.Before(x.began.Add(s.max)) || !now.Before(x.usedAt().Add(s.idle)) || x.began.After(now.Add(time.Hour))
}

func bind(id []byte, token [sha256.Size]byte) (out [sha256.Size]byte) {
	m := hmac.New(sha256.New, id)
	m.Write(token[:])
	m.Sum(out[:0])
	return out
}

// of returns whose session r's cookie is, nil where it has none that is good. The session counts as used.
func (s *sessions) of(r *http.Request, now time.Time) *Credential {
	for _, c := range r.CookiesNamed(SessionCookie) {
		if cred := s.find(c.Value, now); cred != nil {
			return cred
		}
	}
	return nil
}

func (s *sessions) find(cookie string, now time.Time) *Credential {
	id, err := base64.RawURLEncoding.DecodeString(cookie)
	if err != nil || len(id) != sha256.Size || s.tokens == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.open[sha256.Sum256(id)]
	if x == nil {
		return nil
	}
	set := s.tokens.set.Load().tokens
	if !x.known {
		for hash := range set {
			if b := bind(id, hash); hmac.Equal(b[:], x.bound[:]) {
				x.token, x.known = hash, true
				break
			}
		}
	}
	token, ok := set[x.token]
	if !x.known || !ok || s.over(x, now) || !token.ExpiresAt.IsZero() && !now.Before(token.ExpiresAt) {
		s.endLocked(x)
		return nil
	}
	x.touch(now)
	return s.credential(x, token)
}

// credential is a token's, as a session has it.
func (s *sessions) credential(x *session, token Credential) *Credential {
	cred := token
	cred.via, cred.session, cred.token = viaSession, x, &token
	cred.ExpiresAt = earliest(token.ExpiresAt, x.began.Add(s.max))
	return &cred
}

// begin opens a session for whose token it is, and returns the cookie's value.
func (s *sessions) begin(token Credential, now time.Time) (value string, cred *Credential) {
	id := make([]byte, sha256.Size)
	_, _ = rand.Read(id) // never fails
	x := &session{id: sha256.Sum256(id), bound: bind(id, token.hash), began: now, token: token.hash, known: true}
	x.touch(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pruneLocked(now)
	same := func(y *session) bool { return y.known && y.token == x.token }
	for n := s.countLocked(same); n >= maxSessionsOfToken; n-- {
		s.endLocked(s.oldestLocked(same))
	}
	for len(s.open) >= maxSessions {
		s.endLocked(s.oldestLocked(func(*session) bool { return true }))
	}
	s.open[x.id], s.dirty = x, true
	return base64.RawURLEncoding.EncodeToString(id), s.credential(x, token)
}

func (s *sessions) countLocked(of func(*session) bool) (n int) {
	for _, x := range s.open {
		if of(x) {
			n++
		}
	}
	return n
}

// oldestLocked returns the session that was not used for longest; there is one.
func (s *sessions) oldestLocked(of func(*session) bool) (oldest *session) {
	for _, x := range s.open {
		if of(x) && (oldest == nil || x.used.Load() < oldest.used.Load()) {
			oldest = x
		}
	}
	return oldest
}

// end ends the sessions of r's cookies, and reports whether there were any.
func (s *sessions) end(r *http.Request) (any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range r.CookiesNamed(SessionCookie) {
		if id, err := base64.RawURLEncoding.DecodeString(c.Value); err == nil {
			if x := s.open[sha256.Sum256(id)]; x != nil {
				s.endLocked(x)
				any = true
			}
		}
	}
	return any
}

func (s *sessions) endLocked(x *session) {
	x.ended.Store(true)
	delete(s.open, x.id)
	s.dirty = true
}

// prune ends the sessions whose time, or token, is over: should the token come back, they don't.
func (s *sessions) prune(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pruneLocked(now)
}

func (s *sessions) pruneLocked(now time.Time) {
	if s.tokens == nil {
		return
	}
	set := s.tokens.set.Load().tokens
	for _, x := range s.open {
		if _, ok := set[x.token]; s.over(x, now) || x.known && !ok {
			s.endLocked(x)
		}
	}
}

// run removes what is over and saves what is left, until stop is closed.
func (s *sessions) run(stop <-chan struct{}) {
	t := time.NewTicker(sessionTick)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			s.prune(now)
			s.logged(s.save(sessionSaveLate))
		case <-stop:
			s.logged(s.save(0))
			return
		}
	}
}

func (s *sessions) logged(err error) {
	if err != nil {
		s.log.Warn("who is signed in could not be stored; after a restart some will have to sign in again", "error", err)
	}
}

// save stores all sessions, unless only times of use changed since the last time, none by as much as late. It blocks
// until they are on the disk.
func (s *sessions) save(late time.Duration) error {
	if s.store == nil {
		return nil
	}
	s.saving.Lock()
	defer s.saving.Unlock()
	s.mu.Lock()
	changed := s.dirty
	s.dirty = false
	list := make([]SessionRecord, 0, len(s.open))
	saved := make(map[[sha256.Size]byte]int64, len(s.open))
	for _, x := range s.open {
		used := x.used.Load()
		changed = changed || used-s.saved[x.id] > int64(late)
		saved[x.id] = used
		list = append(list, SessionRecord{ID: x.id, Bound: x.bound, Began: x.began, Used: time.Unix(0, used)})
	}
	s.mu.Unlock()
	if !changed {
		return nil
	}
	slices.SortFunc(list, func(a, b SessionRecord) int { return a.Began.Compare(b.Began) })
	if err := s.store.SaveSessions(list); err != nil {
		s.mu.Lock()
		s.dirty = true
		s.mu.Unlock()
		return err
	}
	s.saved = saved
	return nil
}

var errSessionEnded = statussync.NewError(statussync.CodeUnauthorized, "the session is over; sign in again, or send a token: Authorization: Bearer <token>", nil)

// sessionRoutes mounts signing in and out.
func (a *API) sessionRoutes(registry huma.Registry) {
	if a.sessions.tokens == nil {
		return
	}
	register(a, huma.Operation{
		Method: http.MethodGet, Path: wire.PathSession, OperationID: "get-session", Tags: []string{"service"},
		Summary: "Who asks, if anybody: for pages that want to know whether to ask for a token",
	}, accessOptional, func(ctx context.Context, _ *empty) (*body[wire.Session], error) {
		out := wire.Session{}
		if cred := requestIn(ctx).cred; cred != nil {
			who := a.whoami(cred)
			out.Whoami = &who
		}
		return &body[wire.Session]{out}, nil
	})
	whoami := registry.Schema(reflect.TypeFor[wire.Whoami](), true, "Whoami")
	a.raw(huma.Operation{
		Method: http.MethodPost, Path: wire.PathSession, OperationID: "sign-in", Tags: []string{"service"},
		Summary: "Sign in with a token: sets a cookie that counts like the token, for browsers",
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
			"application/json": {Schema: registry.Schema(reflect.TypeFor[wire.SessionRequest](), true, "SessionRequest")},
		}},
		Responses: map[string]*huma.Response{"200": {
			Description: "Signed in.", Headers: map[string]*huma.Param{"Set-Cookie": {Schema: &huma.Schema{Type: "string"}}},
			Content: map[string]*huma.MediaType{"application/json": {Schema: whoami}},
		}},
	}, accessOpen, a.signIn)
	a.raw(huma.Operation{
		Method: http.MethodDelete, Path: wire.PathSession, OperationID: "sign-out", Tags: []string{"service"},
		Summary:   "Sign out: the cookie's session ends, and what it has opened is closed",
		Responses: map[string]*huma.Response{"204": {Description: "There is no session any more. The body is empty."}},
	}, accessOpen, a.signOut)
}

// maxSignIn bounds the body of a sign-in: a token, escaped at worst.
const maxSignIn = 6*maxToken + 1024

func (a *API) signIn(w http.ResponseWriter, r *http.Request) {
	token, err := signInToken(w, r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	addr, _ := a.remote(r)
	cred, err := a.login(addr, token)
	if err == nil {
		err = a.limits.command(cred.Name, a.limitsOf(cred).CommandsPerSecond)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	// A session is never taken over, not even one's own: who planted a cookie here has nothing of what begins now.
	if a.sessions.end(r) {
		a.CheckCredentials()
	}
	now := time.Now()
	value, session := a.sessions.begin(*cred, now)
	a.sessions.logged(a.sessions.save(0))
	http.SetCookie(w, a.cookie(r, value, int(session.ExpiresAt.Sub(now)/time.Second)))
	a.log.Info("signed in", "name", cred.Name, "remote", addr)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a.whoami(session)) // the client may be gone
}

// signInToken reads the body of a sign-in. Its errors show nothing of it.
func signInToken(w http.ResponseWriter, r *http.Request) (string, error) {
	if err := checkJSON(r); err != nil {
		return "", err
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxSignIn))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return "", statussync.NewError(statussync.CodeTooLarge, "a sign-in holds a token and nothing else", err)
	case err != nil:
		return "", statussync.Invalid("body", "could not be read")
	}
	var in wire.SessionRequest
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil || d.Decode(new(any)) != io.EOF {
		return "", statussync.Invalid("body", `must be {"token":"…"}`)
	}
	switch token := strings.TrimSpace(in.Token); {
	case token == "":
		return "", statussync.Invalid("body.token", "is missing")
	case len(token) > maxToken:
		return "", statussync.Invalid("body.token", "is longer than any token")
	default:
		return token, nil
	}
}

func (a *API) signOut(w http.ResponseWriter, r *http.Request) {
	var err error
	if a.sessions.end(r) { // who has no session can't make the service write
		a.CheckCredentials()
		err = a.sessions.save(0)
	}
	http.SetCookie(w, a.cookie(r, "", -1))
	if err != nil {
		a.fail(w, r, statussync.NewError(statussync.CodeUnavailable, "the session has ended, but that could not be stored: after a restart of the service it may be good again", err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// cookie is what a browser keeps: no script sees it, no other site causes it to be sent, and where the browser came over
// TLS it goes nowhere else.
func (a *API) cookie(r *http.Request, value string, maxAge int) *http.Cookie {
	path := a.opts.BasePath
	if path == "" {
		path = "/"
	}
	return &http.Cookie{
		Name: SessionCookie, Value: value, Path: path, MaxAge: maxAge,
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: a.overTLS(r),
	}
}

// overTLS reports whether the client came over TLS, as far as that can be told: to the service itself, or to a trusted
// proxy that says so.
func (a *API) overTLS(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !a.trusted(ap.Addr().Unmap().WithZone("")) {
		return false
	}
	proto, _, _ := strings.Cut(r.Header.Get("X-Forwarded-Proto"), ",")
	return strings.EqualFold(strings.TrimSpace(proto), "https")
}
