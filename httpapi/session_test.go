package httpapi

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// memSessions is a SessionStore that lives as long as its test.
type memSessions struct {
	mu   sync.Mutex
	list []SessionRecord
	err  error
	n    int
}

func (m *memSessions) Sessions() ([]SessionRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list, m.err
}

func (m *memSessions) SaveSessions(list []SessionRecord) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.list, m.n = list, m.n+1
	}
	return m.err
}

func (m *memSessions) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func cookieIn(t *testing.T, a answer) *http.Cookie {
	t.Helper()
	list := (&http.Response{Header: a.header}).Cookies()
	if len(list) != 1 || list[0].Name != SessionCookie {
		t.Fatalf("cookies %v of %d %s", list, a.status, a.body)
	}
	return list[0]
}

// signIn signs in and returns the header that a browser sends from then on.
func (s *service) signIn(t *testing.T, token string, headers ...string) string {
	t.Helper()
	a := s.do(t, "", "POST "+wire.PathSession, `{"token":"`+token+`"}`, headers...)
	if a.status != 200 {
		t.Fatalf("sign in: %d %s", a.status, a.body)
	}
	return "Cookie: " + SessionCookie + "=" + cookieIn(t, a).Value
}

func TestSignIn(t *testing.T) {
	s := serve(t, nil)
	a := s.do(t, "", "POST "+wire.PathSession, `{"token":" `+operatorToken+` "}`)
	c := cookieIn(t, a)
	if a.status != 200 || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Secure || c.Path != "/" || c.MaxAge <= 0 || c.Domain != "" {
		t.Errorf("%d %v", a.status, a.header["Set-Cookie"])
	}
	if a.header.Get("Cache-Control") != "no-store" || strings.Contains(a.header.Get("Set-Cookie"), operatorToken) || strings.Contains(string(a.body), operatorToken) {
		t.Errorf("the answer may be kept, or shows the token: %v %s", a.header, a.body)
	}
	cookie := "Cookie: " + SessionCookie + "=" + c.Value
	var who wire.Whoami
	a = s.do(t, "", "GET "+wire.PathWhoami, "", cookie)
	if err := json.Unmarshal(a.body, &who); err != nil || who.Name != "otto" || who.Role != "operator" || !who.Session || who.ExpiresAt.IsZero() {
		t.Errorf("whoami: %v %s", err, a.body)
	}
	if a := s.do(t, "", "GET /api/v1/servers", ""); a.status != 401 {
		t.Errorf("without the cookie: %d", a.status)
	}
	for header, want := range map[string]string{cookie: `{"whoami":{"name":"otto"`, "X-None: x": "{}", "Cookie: " + SessionCookie + "=x": "{}"} {
		if a := s.do(t, "", "GET "+wire.PathSession, "", header); a.status != 200 || !strings.HasPrefix(string(a.body), want) {
			t.Errorf("who asks with %.12s: %d %s", header, a.status, a.body)
		}
	}
	s.hub.add("a")
	if a := s.do(t, "", "PUT /api/v1/servers/a/override", `{"state":"error","note":"n"}`, cookie); a.status != 200 {
		t.Errorf("an override: %d %s", a.status, a.body)
	}
	// A token that is sent counts, not the cookie that comes along.
	if a := s.do(t, viewerToken, "GET "+wire.PathWhoami, "", cookie); !strings.Contains(string(a.body), `"eve"`) || strings.Contains(string(a.body), `"session"`) {
		t.Errorf("a token beside a cookie: %s", a.body)
	}
	if a := s.do(t, "wrong-token-0001", "GET "+wire.PathWhoami, "", cookie); a.status != 401 {
		t.Errorf("a wrong token beside a good cookie: %d", a.status)
	}
	if strings.Contains(s.log.String(), operatorToken) || strings.Contains(s.log.String(), c.Value) {
		t.Errorf("the log has a secret: %s", s.log)
	}
}

func TestSignInRefused(t *testing.T) {
	s := serve(t, func(o *Options) { o.LoginFailuresPerMinute = 3 })
	for _, c := range []struct {
		body, header string
		status       int
	}{
		{`{"token":""}`, "", 400}, {`{}`, "", 400}, {`[]`, "", 400}, {`{"token":1}`, "", 400}, {`{"token":"x","more":1}`, "", 400}, {`{"token":"x"} {}`, "", 400},
		{`{"token":"` + strings.Repeat("x", maxToken+1) + `"}`, "", 400},
		{`{"token":"` + strings.Repeat("x", 2*maxSignIn) + `"}`, "", 413},
		{`{"token":"` + viewerToken + `"}`, "Content-Type: text/plain", 400},
		{`token=` + viewerToken, "Content-Type: application/x-www-form-urlencoded", 400},
		{`{"token":"` + viewerToken + `"}`, "Origin: https://elsewhere.example", 403},
		{`{"token":"` + viewerToken + `"}`, "Sec-Fetch-Site: cross-site", 403},
		{`{"token":"` + agentToken + `"}`, "", 403},
	} {
		headers := []string{}
		if c.header != "" {
			headers = append(headers, c.header)
		}
		a := s.do(t, "", "POST "+wire.PathSession, c.body, headers...)
		if a.status != c.status || a.header.Get("Set-Cookie") != "" || strings.Contains(string(a.body), "-token-0") {
			t.Errorf("%.60s %s: %d %s %s", c.body, c.header, a.status, a.header.Get("Set-Cookie"), a.body)
		}
	}
	// In the address a token is none.
	if a := s.do(t, "", "POST "+wire.PathSession+"?token="+viewerToken, `{}`); a.status != 400 {
		t.Errorf("a token in the query: %d", a.status)
	}
	for i, want := range []int{401, 401, 401, 429, 429} {
		if a := s.do(t, "", "POST "+wire.PathSession, `{"token":"guess-number-x"}`); a.status != want || want == 429 && a.header.Get("Retry-After") == "" {
			t.Errorf("guess %d: %d, want %d", i, a.status, want)
		}
	}
	// Failures count for all doors together, and cookies that are nobody's for none: their ids can't be guessed.
	if a := s.do(t, "nobody's-token-1", "GET "+wire.PathWhoami, ""); a.status != 429 {
		t.Errorf("another door: %d", a.status)
	}
	other := serve(t, nil)
	for range 20 {
		if a := other.do(t, "", "GET "+wire.PathWhoami, "", "Cookie: "+SessionCookie+"=AAAA"); a.status != 401 || !strings.Contains(string(a.body), "sign in again") {
			t.Fatalf("an unknown cookie: %d %s", a.status, a.body)
		}
	}
}

// TestSessionFixation: a session is always new, whatever cookie came, and the one that came is over.
func TestSessionFixation(t *testing.T) {
	s := serve(t, nil)
	planted := "Cookie: " + SessionCookie + "=" + strings.Repeat("A", 43)
	if got := s.signIn(t, viewerToken, planted); got == planted {
		t.Error("the planted id was taken")
	}
	if a := s.do(t, "", "GET "+wire.PathWhoami, "", planted); a.status != 401 {
		t.Errorf("the planted id is good now: %d", a.status)
	}
	first := s.signIn(t, viewerToken)
	second := s.signIn(t, operatorToken, first)
	if a := s.do(t, "", "GET "+wire.PathWhoami, "", first); a.status != 401 {
		t.Errorf("the session before is still good: %d", a.status)
	}
	// Of several cookies the one that is good counts: another service on this host may have set one for a wider path.
	if a := s.do(t, "", "GET "+wire.PathWhoami, "", first+"; "+strings.TrimPrefix(second, "Cookie: ")); a.status != 200 {
		t.Errorf("two cookies: %d", a.status)
	}
}

func TestSignOut(t *testing.T) {
	store := &memSessions{}
	s := serve(t, func(o *Options) { o.Sessions = store })
	cookie, other := s.signIn(t, viewerToken), s.signIn(t, viewerToken)
	ws, _, err := s.dialWith(t, wire.PathWebSocket, http.Header{"Cookie": {strings.TrimPrefix(cookie, "Cookie: ")}})
	if err != nil {
		t.Fatal(err)
	}
	ws.send(subscribe + `}`)
	ws.want(wire.FrameSubscribed)
	if a := s.do(t, "", "DELETE "+wire.PathSession, "", cookie, "Origin: https://elsewhere.example"); a.status != 403 {
		t.Errorf("from another origin: %d", a.status)
	}
	a := s.do(t, "", "DELETE "+wire.PathSession, "", cookie)
	if c := cookieIn(t, a); a.status != 204 || c.MaxAge >= 0 || c.Value != "" || c.Path != "/" {
		t.Errorf("%d %v", a.status, a.header["Set-Cookie"])
	}
	ws.wantClose(wire.CloseTokenExpired)
	if a := s.do(t, "", "GET "+wire.PathWhoami, "", cookie); a.status != 401 {
		t.Errorf("after it: %d", a.status)
	}
	if a := s.do(t, "", "GET "+wire.PathWhoami, "", other); a.status != 200 {
		t.Errorf("the other session: %d", a.status)
	}
	if a := s.do(t, "", "DELETE "+wire.PathSession, "", cookie); a.status != 204 {
		t.Errorf("again: %d", a.status)
	}
	store.fail(errors.New("the disk is full"))
	if a := s.do(t, "", "DELETE "+wire.PathSession, "", other); a.status != 503 || cookieIn(t, a).MaxAge >= 0 || strings.Contains(string(a.body), "disk") {
		t.Errorf("that can't be stored: %d %s", a.status, a.body)
	}
	if a := s.do(t, "", "GET "+wire.PathWhoami, "", other); a.status != 401 {
		t.Errorf("is ended all the same: %d", a.status)
	}
}

// TestSessionStreams: the cookie opens both WebSockets and the SSE stream; a page of another origin gets none of them; and
// they are closed when the token goes.
func TestSessionStreams(t *testing.T) {
	s := serve(t, nil)
	cookie := strings.TrimPrefix(s.signIn(t, viewerToken), "Cookie: ")
	var open []*wsClient
	for _, path := range []string{wire.PathWebSocket, wire.PathLegacy} {
		if _, resp, err := s.dialWith(t, path, http.Header{"Cookie": {cookie}, "Origin": {"https://elsewhere.example"}}); err == nil || resp.StatusCode != 403 {
			t.Errorf("%s from another origin: %v", path, err)
		}
		ws, _, err := s.dialWith(t, path, http.Header{"Cookie": {cookie}, "Origin": {s.srv.URL}})
		if err != nil {
			t.Fatal(err)
		}
		ws.send(subscribe + `}`)
		ws.want(wire.FrameSubscribed)
		open = append(open, ws)
	}
	req, _ := http.NewRequest("GET", s.srv.URL+wire.PathStream, nil)
	req.Header.Set("Cookie", cookie)
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("SSE: %v %v", err, resp)
	}
	defer resp.Body.Close()
	s.waitStats(t, "open streams", func(st Stats) bool { return st.WebSockets == 2 && st.SSEStreams == 1 })
	// A stale cookie is none: who means to present a token still may.
	stale, _, err := s.dialWith(t, wire.PathWebSocket, http.Header{"Cookie": {SessionCookie + "=" + strings.Repeat("B", 43)}})
	if err != nil {
		t.Fatal(err)
	}
	stale.send(subscribe + `}`)
	if f := stale.want(wire.FrameError); f.Code != statussync.CodeUnauthorized {
		t.Errorf("%+v", f)
	}
	stale.send(`{"type":"auth","token":"` + viewerToken + `"}`)
	stale.want(wire.FrameAuthOK)

	// The token has another secret now, as after a reload.
	next := NewTokens([]TokenSpec{{Name: "eve", Role: RoleViewer, Token: "viewer-token-0002"}}, nil)
	if err := s.opts.Auth.(*Tokens).Replace(next); err != nil {
		t.Fatal(err)
	}
	s.CheckCredentials()
	for _, ws := range open {
		ws.wantClose(wire.CloseTokenExpired)
	}
	s.waitStats(t, "closed streams", func(st Stats) bool { return st.WebSockets == 0 && st.SSEStreams == 0 })
	if a := s.do(t, "", "GET "+wire.PathWhoami, "", "Cookie: "+cookie); a.status != 401 {
		t.Errorf("the token is gone: %d", a.status)
	}
	// Should it come back, the session does not.
	if err := s.opts.Auth.(*Tokens).Replace(tokens()); err != nil {
		t.Fatal(err)
	}
	if a := s.do(t, "", "GET "+wire.PathWhoami, "", "Cookie: "+cookie); a.status != 401 {
		t.Errorf("the token is back: %d", a.status)
	}
}

// TestSessionRole: a session may do what its token may now.
func TestSessionRole(t *testing.T) {
	s := serve(t, nil)
	cookie := s.signIn(t, viewerToken)
	if a := s.do(t, "", "POST /api/v1/probes", "", cookie); a.status != 403 {
		t.Errorf("a viewer: %d", a.status)
	}
	if err := s.opts.Auth.(*Tokens).Replace(NewTokens([]TokenSpec{{Name: "eve", Role: RoleOperator, Token: viewerToken}}, nil)); err != nil {
		t.Fatal(err)
	}
	if a := s.do(t, "", "POST /api/v1/probes", "", cookie); a.status != 200 {
		t.Errorf("an operator: %d %s", a.status, a.body)
	}
}

// TestSessionsOutliveRestart: who is signed in stays so, who signed out does not come back, and what is kept lets nobody in.
func TestSessionsOutliveRestart(t *testing.T) {
	store := &memSessions{}
	s := serve(t, func(o *Options) { o.Sessions = store })
	stays, gone, removed := s.signIn(t, viewerToken), s.signIn(t, viewerToken), s.signIn(t, adminToken)
	if a := s.do(t, "", "DELETE "+wire.PathSession, "", gone); a.status != 204 {
		t.Fatal(a.status)
	}
	// Nothing is told of the end: the process may be killed.
	next := serve(t, func(o *Options) {
		o.Sessions = store
		o.Auth = NewTokens([]TokenSpec{{Name: "eve", Role: RoleViewer, Token: viewerToken}}, nil)
	})
	for cookie, want := range map[string]int{stays: 200, gone: 401, removed: 401} {
		if a := next.do(t, "", "GET "+wire.PathWhoami, "", cookie); a.status != want {
			t.Errorf("%d, want %d", a.status, want)
		}
	}
	kept, _ := json.Marshal(store.list)
	for _, cookie := range []string{stays, removed} {
		if strings.Contains(string(kept), strings.TrimPrefix(cookie, "Cookie: "+SessionCookie+"=")) {
			t.Error("the store has a cookie")
		}
	}
	broken := &memSessions{err: errors.New("no such luck")}
	s = serve(t, func(o *Options) { o.Sessions = broken })
	if a := s.do(t, "", "GET "+wire.PathWhoami, "", s.signIn(t, viewerToken)); a.status != 200 {
		t.Errorf("without a store that works: %d", a.status)
	}
}

func TestSessionCookieOverTLS(t *testing.T) {
	s := serve(t, func(o *Options) {
		o.BasePath = "/status"
		o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	sign := func(headers ...string) *http.Cookie {
		a := s.do(t, "", "POST /status"+wire.PathSession, `{"token":"`+viewerToken+`"}`, headers...)
		return cookieIn(t, a)
	}
	if c := sign(); c.Secure || c.Path != "/status" {
		t.Errorf("plain: %v", c)
	}
	if c := sign("X-Forwarded-Proto: https", "X-Forwarded-For: 192.0.2.1"); !c.Secure {
		t.Errorf("behind a proxy with TLS: %v", c)
	}
	untrusted := serve(t, nil)
	a := untrusted.do(t, "", "POST "+wire.PathSession, `{"token":"`+viewerToken+`"}`, "X-Forwarded-Proto: https")
	if cookieIn(t, a).Secure {
		t.Error("anybody may say https")
	}
	rec := httptest.NewRecorder()
	req := httptest.NewRequest("POST", "https://localhost"+wire.PathSession, strings.NewReader(`{"token":"`+viewerToken+`"}`))
	req.TLS = &tls.ConnectionState{}
	req.Header.Set("Content-Type", "application/json")
	untrusted.ServeHTTP(rec, req)
	if list := rec.Result().Cookies(); len(list) != 1 || !list[0].Secure {
		t.Errorf("own TLS: %v", rec.Result().Header)
	}
}

// TestSessionTimes: idle and absolute ends, the token's own, and what is stored of times of use.
func TestSessionTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memSessions{}
		expires := time.Now().Add(50 * time.Hour)
		auth := NewTokens([]TokenSpec{{Name: "eve", Role: RoleViewer, Token: viewerToken}, {Name: "tim", Role: RoleViewer, Token: operatorToken, ExpiresAt: expires}}, nil)
		open := func() *sessions {
			return newSessions(Options{Auth: auth, Sessions: store, SessionIdle: 24 * time.Hour, SessionMax: 7 * 24 * time.Hour}.withDefaults())
		}
		s := open()
		begin := func(token string) string {
			cred, ok := auth.Token(token)
			if !ok {
				t.Fatal("no such token")
			}
			value, _ := s.begin(cred, time.Now())
			return value
		}
		good := func(value string) bool { return s.find(value, time.Now()) != nil }
		idle, used, tim := begin(viewerToken), begin(viewerToken), begin(operatorToken)
		for range 3 {
			time.Sleep(20 * time.Hour)
			if time.Now().Before(expires) != good(tim) {
				t.Errorf("the token's end is not the session's at %s", time.Now())
			}
			if !good(used) {
				t.Fatal("a session that is used ended")
			}
		}
		if good(idle) {
			t.Error("an idle session lives on")
		}
		stop, done := make(chan struct{}), make(chan struct{})
		go func() { s.run(stop); close(done) }()
		// Used for the last time 10 minutes before the process dies: of that at most some minutes are lost.
		for range 10 {
			time.Sleep(time.Minute)
			good(used)
		}
		last := time.Now()
		time.Sleep(23 * time.Hour)
		s = open() // the one before was killed
		if !good(used) {
			t.Errorf("ended, though used %s ago", time.Since(last))
		}
		close(stop)
		<-done
		for range 6 {
			time.Sleep(20 * time.Hour)
			good(used)
		}
		if good(used) {
			t.Error("a session lives for more than 7 days")
		}
		if n := len(s.open); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

// TestSessionBounds: whoever signs in again and again pushes out their own sessions first.
func TestSessionBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var specs []TokenSpec
		for i := range 15 {
			specs = append(specs, TokenSpec{Name: string(rune('a' + i)), Role: RoleViewer, Token: "token-" + strings.Repeat(string(rune('a'+i)), 8)})
		}
		auth := NewTokens(specs, nil)
		s := newSessions(Options{Auth: auth}.withDefaults())
		begin := func(i int) string {
			time.Sleep(time.Second)
			cred, _ := auth.Token(specs[i].Token)
			v, _ := s.begin(cred, time.Now())
			return v
		}
		other := begin(1)
		first := begin(0)
		for range maxSessionsOfToken {
			begin(0)
		}
		if s.find(first, time.Now()) != nil || s.find(other, time.Now()) == nil || len(s.open) != maxSessionsOfToken+1 {
			t.Errorf("%d sessions", len(s.open))
		}
		for i := range specs {
			for range maxSessionsOfToken {
				begin(i)
			}
		}
		if len(s.open) != maxSessions {
			t.Errorf("%d sessions, want %d", len(s.open), maxSessions)
		}
		if err := s.save(0); err != nil {
			t.Error(err)
		}
	})
}

func TestSessionsNeedTokens(t *testing.T) {
	s := serve(t, func(o *Options) { o.Auth = struct{ Authenticator }{tokens()} })
	if a := s.do(t, "", "POST "+wire.PathSession, `{"token":"`+viewerToken+`"}`); a.status != 404 {
		t.Errorf("%d", a.status)
	}
	if a := s.do(t, "", "GET "+wire.PathWhoami, "", "Cookie: "+SessionCookie+"="+strings.Repeat("A", 43)); a.status != 401 {
		t.Errorf("%d", a.status)
	}
}
