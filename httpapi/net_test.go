package httpapi

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// TestBasePath asks for every route below the base path and at the root.
func TestBasePath(t *testing.T) {
	const base = "/status.sync/v2"
	s := serve(t, func(o *Options) {
		o.BasePath = base
		o.Registry = &memRegistry{}
		o.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "metrics") })
	})
	s.fill()
	plain := serve(t, func(o *Options) { o.Registry, o.Metrics = &memRegistry{}, s.opts.Metrics })
	plain.fill()
	atRoot := map[string]bool{"/healthz": true, "/readyz": true, "/metrics": true, "/heartbeat": true, "/functions/v1/heartbeat": true}
	if len(s.patterns) < 25 {
		t.Fatalf("only %d routes", len(s.patterns))
	}
	for _, p := range s.patterns {
		method, path, _ := strings.Cut(p, " ")
		if path == wire.PathStream { // it has no end; TestBasePathStreams
			continue
		}
		path = strings.NewReplacer("{id}", "a-000", "{environment_id}", "box-a", "{container}", "x", "{token_id}", "t").Replace(path)
		token := adminToken
		if strings.HasSuffix(path, "heartbeat") {
			token = agentToken
		}
		body := ""
		if method == http.MethodPost || method == http.MethodPut {
			body = "{}"
		}
		want := plain.do(t, token, method+" "+path, body)
		if got := s.do(t, token, method+" "+base+path, body); got.status != want.status || got.header.Get("Content-Type") != want.header.Get("Content-Type") {
			t.Errorf("%s %s below: %d %s, without a base path %d", method, path, got.status, got.body, want.status)
		}
		root := s.do(t, token, method+" "+path, body)
		if atRoot[path] && root.status != want.status || !atRoot[path] && root.status != 404 {
			t.Errorf("%s %s at the root: %d %s", method, path, root.status, root.body)
		}
		if root.status == 404 && !strings.Contains(root.problem(t).Detail, base) {
			t.Errorf("%s %s does not say where to look: %s", method, path, root.body)
		}
	}

	for ask, want := range map[string]struct {
		status   int
		location string
	}{
		"GET " + base:                             {308, base + "/"},
		"GET " + base + "?x=1":                    {308, base + "/?x=1"},
		"POST " + base:                            {404, ""},
		"GET " + base + "/":                       {200, ""},
		"GET /":                                   {404, ""},
		"GET " + base + "x/healthz":               {404, ""},
		"GET " + base + base + "/healthz":         {404, ""},
		"GET " + base + "//docs":                  {307, base + "/docs"},
		"GET " + base + "/api/../docs":            {307, base + "/docs"},
		"GET " + base + "/../../healthz":          {307, base + "/healthz"},
		"GET /status%2Esync/v2/healthz":           {404, ""}, // one spelling only
		"GET " + base + "/api/v1/servers/a%2D000": {200, ""},
		"GET /x/../healthz":                       {404, ""},
	} {
		a := s.do(t, viewerToken, ask, "")
		if a.status != want.status || a.header.Get("Location") != want.location {
			t.Errorf("%s: %d, Location %q: %s; want %d %q", ask, a.status, a.header.Get("Location"), a.body, want.status, want.location)
		}
	}
	made := s.do(t, adminToken, "POST "+base+"/api/v1/servers", `{"id":"new","endpoint":"https://new.example/mcp"}`)
	if at := made.header.Get("Location"); made.status != 201 || at != base+"/api/v1/servers/new" {
		t.Errorf("%d, Location %q: %s", made.status, at, made.body)
	}

	var doc struct {
		Servers []struct{ URL string }
		Paths   map[string]any
	}
	a := s.do(t, "", "GET "+base+"/openapi.json", "")
	if err := json.Unmarshal(a.body, &doc); err != nil || len(doc.Servers) != 1 || doc.Servers[0].URL != base || doc.Paths["/api/v1/servers"] == nil {
		t.Errorf("%v %+v", err, doc.Servers)
	}
	if b := plain.do(t, "", "GET /openapi.json", ""); strings.Contains(string(b.body), `"servers":[`) {
		t.Error("without a base path the description names servers")
	}
	docs := string(s.do(t, "", "GET "+base+"/docs", "").body)
	if !strings.Contains(docs, `src="docs/docs.js"`) || strings.Contains(docs, `="/`) {
		t.Errorf("the page's links are not relative: %s", docs)
	}
	if asset := s.do(t, "", "GET "+base+"/docs/docs.js", ""); asset.status != 200 {
		t.Errorf("the page's script: %d", asset.status)
	}
	if landing := string(s.do(t, "", "GET "+base+"/", "").body); !strings.Contains(landing, base+"/api/v1") || !strings.Contains(landing, base+"/docs") {
		t.Error(landing)
	}
}

func TestBasePathStreams(t *testing.T) {
	s := serve(t, func(o *Options) { o.BasePath, o.LegacyViewer = "/sub", true })
	s.fill()
	c, _, err := s.dialWith(t, "/sub"+wire.PathWebSocket, http.Header{"Authorization": {"Bearer " + viewerToken}})
	if err != nil {
		t.Fatal(err)
	}
	c.send(subscribe + `}`)
	c.want(wire.FrameSubscribed)
	old, _, err := s.dialWith(t, "/sub"+wire.PathLegacy, nil)
	if err != nil {
		t.Fatal(err)
	}
	old.send(`{"type":"subscribe","channel":"mcp_server_status"}`)
	old.want(wire.FrameSubscribed)
	for _, path := range []string{wire.PathWebSocket, wire.PathLegacy} {
		if _, resp, err := s.dialWith(t, path, http.Header{"Authorization": {"Bearer " + viewerToken}}); err == nil || resp.StatusCode != 404 {
			t.Errorf("%s at the root: %v", path, err)
		}
	}
	s.srv.URL += "/sub"
	e := s.sse(t, "")
	e.begin()
	e.want("subscribed", "e7:3")
}

// secure is serve over TLS with HTTP/2.
func secure(t *testing.T, change func(*Options)) *service {
	t.Helper()
	s := serve(t, change)
	srv := httptest.NewUnstartedServer(s.API)
	srv.EnableHTTP2 = true
	srv.Config.ConnContext = ConnContext
	srv.StartTLS()
	t.Cleanup(func() { s.API.Close(); srv.Close() })
	s.srv.Close()
	s.srv = srv
	return s
}

// h2stream opens the stream over HTTP/2 with a small window, so that what is not read soon stays with the service.
func (s *service) h2stream(t *testing.T) *sseClient {
	t.Helper()
	tr := s.srv.Client().Transport.(*http.Transport).Clone()
	tr.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 16 << 10, MaxReceiveBufferPerConnection: 64 << 10}
	t.Cleanup(tr.CloseIdleConnections)
	req, _ := http.NewRequestWithContext(t.Context(), "GET", s.srv.URL+wire.PathStream, nil)
	req.Header.Set("Authorization", "Bearer "+viewerToken)
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.ProtoMajor != 2 || resp.StatusCode != 200 {
		t.Fatalf("%s %s", resp.Proto, resp.Status)
	}
	return &sseClient{t, resp, bufio.NewReader(resp.Body)}
}

// TestHTTP2StreamOutlivesItsDeadlines: a deadline is for a write, not for the stream, and one that can't be met cuts it.
func TestHTTP2StreamOutlivesItsDeadlines(t *testing.T) {
	s := secure(t, func(o *Options) { o.WriteTimeout, o.CommentEvery = 400*time.Millisecond, 1600*time.Millisecond })
	s.hub.add("a-000")
	c := s.h2stream(t)
	c.begin()
	c.want("subscribed", "e7:0")
	for range 2 { // each comes long after the deadline of what was written before
		if b, err := c.next(); err != nil || b.comment == "" {
			t.Fatalf("%+v %v", b, err)
		}
	}
	s.hub.change("a-000", statussync.StateRunning, statussync.HealthHealthy)
	c.want("status_update", "e7:1")
	for i := range 2000 { // nobody reads any more
		s.hub.change("a-000", statussync.States[i%4], statussync.Healths[i%3])
	}
	s.waitStats(t, "the stream is cut", func(st Stats) bool { return st.SSEStreams == 0 })
	if st := s.Stats(); st.SSECut != 1 {
		t.Errorf("%+v", st)
	}
}

// TestWebSocketOverTLS: it is told, and cut where it does not read, as without TLS.
func TestWebSocketOverTLS(t *testing.T) {
	s := secure(t, func(o *Options) { o.WriteTimeout = 300 * time.Millisecond })
	s.hub.add("a-000")
	d := websocket.Dialer{TLSClientConfig: s.srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()}
	d.TLSClientConfig.NextProtos = []string{"http/1.1"}
	dial := func() *wsClient {
		conn, _, err := d.Dial("wss"+strings.TrimPrefix(s.srv.URL, "https")+wire.PathWebSocket, http.Header{"Authorization": {"Bearer " + viewerToken}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return &wsClient{conn, t}
	}
	c, slow := dial(), dial()
	for _, x := range []*wsClient{c, slow} {
		x.send(subscribe + `}`)
		x.want(wire.FrameSubscribed)
	}
	s.hub.change("a-000", statussync.StateRunning, statussync.HealthHealthy)
	c.want("status_update")
	c.Close()
	for i := range 40_000 {
		s.hub.change("a-000", statussync.States[i%4], statussync.Healths[i%3])
	}
	s.waitStats(t, "the slow one is cut", func(st Stats) bool { return st.WSClosed[wire.CloseTooSlow] == 1 && st.WebSockets == 0 })
}

// TestCaps: what a credential may use, on every path.
func TestCaps(t *testing.T) {
	own := Limits{Connections: 2, Subscriptions: 1, CommandsPerSecond: 1, FilterIDs: 2, FilterClauses: 1, ReplayBytesPerSecond: 5000}
	s := serve(t, func(o *Options) {
		o.MaxFilterIDs, o.Rollups = 4, noRollups{}
		o.Auth = NewTokens([]TokenSpec{
			{Name: "eve", Role: RoleViewer, Token: viewerToken}, {Name: "tiny", Role: RoleOperator, Token: operatorToken, Limits: own},
		}, nil)
	})
	s.fill()
	mine := decode[wire.Whoami](t, s.do(t, operatorToken, "GET /api/v1/whoami", ""))
	if mine != (wire.Whoami{Name: "tiny", Role: "operator", Limits: wire.Limits{Connections: 2, Subscriptions: 1, CommandsPerSecond: 1, ReplayBytesPerSecond: 5000, FilterIDs: 2, FilterClauses: 1}}) {
		t.Errorf("%+v", mine)
	}
	if other := decode[wire.Whoami](t, s.do(t, viewerToken, "GET /api/v1/whoami", "")); other.Limits.FilterIDs != 4 || other.Limits.Connections != 10_000 || other.Limits.FilterClauses != statussync.MaxClauses {
		t.Errorf("%+v", other)
	}

	for _, row := range []struct {
		token, path, location, says string
	}{
		{operatorToken, "/api/v1/servers?environment_ids=a,b,c", "query.environment_ids", "may give 2 (limit filter_ids)"},
		{operatorToken, "/api/v1/updates?server_ids=a,b,c", "query.server_ids", "may give 2 (limit filter_ids)"},
		{operatorToken, "/api/v1/stream?server_ids=a,b,c", "query.server_ids", "may give 2 (limit filter_ids)"},
		{operatorToken, "/api/v1/stream?environment_ids=a&environment_ids=b,c", "query.environment_ids", "may give 2"},
		{viewerToken, "/api/v1/updates?server_ids=a,b,c,d,e", "query.server_ids", "may give 4 (limit filter_ids)"},
		{operatorToken, "/api/v1/servers?environment_ids=a,b", "", ""},
		{viewerToken, "/api/v1/updates?server_ids=a,b,c,d", "", ""},
		{operatorToken, "/api/v1/uptime?environment_ids=a,b,c", "query.environment_ids", "may give 2 (limit filter_ids)"},
	} {
		a := s.do(t, row.token, "GET "+row.path, "")
		if row.says == "" {
			if a.status != 200 {
				t.Errorf("%s: %d %s", row.path, a.status, a.body)
			}
			continue
		}
		p := a.problem(t)
		if p.Code != statussync.CodeInvalid || len(p.Errors) != 1 || p.Errors[0].Location != row.location || !strings.Contains(p.Errors[0].Message, row.says) {
			t.Errorf("%s: %s", row.path, a.body)
		}
	}

	ws := s.dial(t, operatorToken)
	for frame, says := range map[string]string{
		`,"filters":[{"server_ids":["a","b","c"]}]}`:              "(limit filter_ids)",
		`,"filters":[{"server_ids":["a"]},{"server_ids":["b"]}]}`: "may give 1 (limit filter_clauses)",
	} {
		ws.send(subscribe + frame)
		if f := ws.want(wire.FrameError); f.Code != statussync.CodeInvalid || !strings.Contains(f.Detail, says) {
			t.Errorf("%s: %+v", frame, f)
		}
		ws.Close()
		s.waitStats(t, "it is gone", func(st Stats) bool { return st.WebSockets == 0 })
		ws = s.dial(t, operatorToken) // one frame a second
	}
	ws.send(subscribe + `}`)
	ws.want(wire.FrameSubscribed)

	// A second subscription is one too many, on the WebSocket and as a stream.
	second := s.dial(t, operatorToken)
	second.send(subscribe + `}`)
	wantCap(t, second, wire.CloseLimit, "more than 1 subscriptions with this credential (limit subscriptions)")
	s.waitStats(t, "it is gone", func(st Stats) bool { return st.WebSockets == 1 })
	if a := s.do(t, operatorToken, "GET /api/v1/stream", ""); a.status != 429 || !strings.Contains(a.problem(t).Detail, "more than 1 subscriptions") || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.do(t, operatorToken, "HEAD /api/v1/stream", ""); a.status != 200 {
		t.Errorf("HEAD begins no stream: %d", a.status)
	}
	// A third connection is one too many.
	idle := s.dial(t, operatorToken)
	s.waitStats(t, "two are open", func(st Stats) bool { return st.WebSockets == 2 })
	wantCap(t, s.dial(t, operatorToken), wire.CloseLimit, "more than 2 connections with this credential (limit connections)")
	if a := s.do(t, operatorToken, "GET /api/v1/stream", ""); a.status != 429 || !strings.Contains(a.problem(t).Detail, "more than 2 connections") {
		t.Errorf("%d %s", a.status, a.body)
	}
	idle.Close()
	ws.Close()
	s.waitStats(t, "all are gone", func(st Stats) bool { return st.WebSockets == 0 })
	again := s.dial(t, operatorToken) // nothing of what ended is still counted
	again.send(subscribe + `}`)
	again.want(wire.FrameSubscribed)

	// Frames and commands are counted apart.
	for range 5 {
		if again.WriteMessage(websocket.TextMessage, []byte(`{"type":"ping"}`)) != nil {
			break
		}
	}
	wantCap(t, again, wire.CloseRate, "too many frames per second")
	first := s.do(t, operatorToken, "DELETE /api/v1/servers/a-000/override", "")
	if a := s.do(t, operatorToken, "DELETE /api/v1/servers/a-000/override", ""); first.status != 200 || a.status != 429 || !strings.Contains(a.problem(t).Detail, "more than 1 commands per second with this credential (limit commands_per_second)") {
		t.Errorf("%d, then %d %s", first.status, a.status, a.body)
	}
}

// TestSubscriptionFollowsItsCredential: who logs in anew on a connection counts there.
func TestSubscriptionFollowsItsCredential(t *testing.T) {
	s := serve(t, func(o *Options) {
		o.Auth = NewTokens([]TokenSpec{
			{Name: "eve", Role: RoleViewer, Token: viewerToken}, {Name: "tiny", Role: RoleViewer, Token: operatorToken, Limits: Limits{Subscriptions: 1}},
		}, nil)
	})
	a, b := s.dial(t, viewerToken), s.dial(t, operatorToken)
	for _, c := range []*wsClient{a, b} {
		c.send(subscribe + `}`)
		c.want(wire.FrameSubscribed)
		c.send(subscribe + `}`) // in place of the first
		c.want(wire.FrameSubscribed)
	}
	a.send(`{"type":"auth","token":"` + operatorToken + `"}`)
	wantCap(t, a, wire.CloseLimit, "more than 1 subscriptions")
	b.send(`{"type":"unsubscribe"}`)
	b.want(wire.FrameUnsubscribed)
	c := s.dial(t, operatorToken)
	c.send(subscribe + `}`)
	c.want(wire.FrameSubscribed)
}

func wantCap(t *testing.T, c *wsClient, code int, says string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	for {
		_, _, err := c.ReadMessage()
		if err == nil {
			continue
		}
		closed, ok := err.(*websocket.CloseError)
		if !ok || closed.Code != code || !strings.Contains(closed.Text, says) {
			t.Errorf("closed by %v, want %d %s", err, code, says)
		}
		return
	}
}

func TestLimitsAreChecked(t *testing.T) {
	for want, o := range map[string]Options{
		"MaxSubscriptions": {MaxSubscriptions: -1},
		"MaxFilterIDs":     {MaxFilterIDs: statussync.MaxFilterIDs + 1},
		"MaxFilterClauses": {MaxFilterClauses: -1},
		"Auth.tokens[0].limits.Connections": {Auth: NewTokens([]TokenSpec{
			{Name: "a", Role: RoleViewer, Token: "t", Limits: Limits{Connections: -1}}}, nil)},
		"BasePath": {BasePath: "x"},
	} {
		o.Hub = newMemHub()
		_, err := New(o)
		e, ok := err.(*statussync.Error)
		if !ok || e.Location != want {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestTokenEnds: after its end a token is refused, and what it has opened is closed.
func TestTokenEnds(t *testing.T) {
	end := time.Now().Add(5 * time.Second)
	s := serve(t, func(o *Options) {
		o.Auth = NewTokens([]TokenSpec{{Name: "guest", Role: RoleViewer, Token: viewerToken, ExpiresAt: end}}, nil)
	})
	s.fill()
	if w := decode[wire.Whoami](t, s.do(t, viewerToken, "GET /api/v1/whoami", "")); !w.ExpiresAt.Equal(end.Truncate(time.Millisecond).UTC()) {
		t.Errorf("%v, want %v", w.ExpiresAt, end)
	}
	ws := s.dial(t, "")
	ws.send(`{"type":"auth","token":"` + viewerToken + `"}`)
	if f := ws.want(wire.FrameAuthOK); f.ExpiresAt.IsZero() {
		t.Errorf("%+v", f)
	}
	ws.send(subscribe + `}`)
	ws.want(wire.FrameSubscribed)
	e := s.sse(t, "")
	wantCap(t, ws, wire.CloseTokenExpired, "expired")
	for {
		if _, err := e.next(); err != nil {
			break
		}
	}
	if time.Now().Before(end) {
		t.Error("closed before its end")
	}
	a := s.do(t, viewerToken, "GET /api/v1/servers", "")
	if p := a.problem(t); a.status != 401 || p.Detail != "this token has expired" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.do(t, viewerToken+"x", "GET /api/v1/servers", ""); a.problem(t).Detail != "this token is not known" {
		t.Errorf("%s", a.body)
	}
}

// TestAgentCert: its word is the answer, after the token's.
func TestAgentCert(t *testing.T) {
	var asked []string
	s := serve(t, func(o *Options) {
		o.AgentCert = func(env string, state *tls.ConnectionState) error {
			asked = append(asked, fmt.Sprint(env, state != nil))
			return statussync.NewError(statussync.CodeForbidden, "not this one", nil)
		}
	})
	if a := s.do(t, "nobody", "POST /heartbeat", "{}"); a.status != 401 || len(asked) != 0 {
		t.Errorf("%d %v", a.status, asked)
	}
	if a := s.do(t, agentToken, "POST /heartbeat", "{}"); a.status != 403 || a.problem(t).Detail != "not this one" || !slices.Equal(asked, []string{"box-7false"}) {
		t.Errorf("%d %v", a.status, asked)
	}
	if len(s.hub.observed) != 0 {
		t.Error("what was refused was taken")
	}
}

// memRegistry takes every new server and knows nothing else.
type memRegistry struct{}

func (memRegistry) AddServer(_ context.Context, s statussync.Server) (statussync.ServerView, error) {
	return statussync.ServerView{Server: &s}, nil
}
func (memRegistry) SetServer(_ context.Context, s statussync.Server) (v statussync.ServerView, err error) {
	return v, statussync.NotFound("server", s.ID)
}
func (memRegistry) RemoveServer(_ context.Context, id string) error {
	return statussync.NotFound("server", id)
}
func (memRegistry) Adopt(_ context.Context, env, _ string, _ statussync.Server) (v statussync.ServerView, err error) {
	return v, statussync.NotFound("environment", env)
}
func (memRegistry) AddEnvironment(_ context.Context, e statussync.Environment) (statussync.EnvironmentView, error) {
	return statussync.EnvironmentView{Environment: &e}, nil
}
func (memRegistry) SetEnvironment(_ context.Context, e statussync.Environment) (v statussync.EnvironmentView, err error) {
	return v, statussync.NotFound("environment", e.ID)
}
func (memRegistry) RemoveEnvironment(_ context.Context, id string) error {
	return statussync.NotFound("environment", id)
}
func (memRegistry) AgentTokens(_ context.Context, id string) ([]statussync.AgentToken, error) {
	return nil, statussync.NotFound("environment", id)
}
func (memRegistry) RotateAgentToken(_ context.Context, id string) (string, []statussync.AgentToken, error) {
	return "", nil, statussync.NotFound("environment", id)
}
func (memRegistry) DropAgentToken(_ context.Context, id, _ string) error {
	return statussync.NotFound("environment", id)
}

// noRollups is asked nothing.
type noRollups struct{ Rollups }
