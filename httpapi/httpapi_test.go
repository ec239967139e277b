package httpapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

const (
	viewerToken   = "viewer-token-0001"
	operatorToken = "operator-token-01"
	adminToken    = "admin-token-00001"
	agentToken    = "agent-token-00001"
)

func tokens() *Tokens {
	return NewTokens([]TokenSpec{
		{Name: "eve", Role: RoleViewer, Token: viewerToken}, {Name: "otto", Role: RoleOperator, Token: operatorToken},
		{Name: "ada", Role: RoleAdmin, Token: adminToken},
	}, map[string][]string{"box-7": {agentToken}})
}

// service is an API on a real socket.
type service struct {
	*API
	hub *memHub
	srv *httptest.Server
	log *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func serve(t *testing.T, change func(*Options)) *service {
	t.Helper()
	s := &service{hub: newMemHub(), log: &syncBuffer{}}
	o := Options{Hub: s.hub, Auth: tokens(), Version: "1.2.3", Logger: slog.New(slog.NewTextHandler(s.log, nil))}
	if change != nil {
		change(&o)
	}
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.API = a
	s.srv = httptest.NewServer(a)
	t.Cleanup(func() {
		a.Close()
		s.srv.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return s
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) problem(t *testing.T) wire.Problem {
	t.Helper()
	var p wire.Problem
	if ct := a.header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("content type %q of %d %s", ct, a.status, a.body)
	}
	if err := json.Unmarshal(a.body, &p); err != nil {
		t.Fatalf("no problem: %v: %s", err, a.body)
	}
	if p.Status != a.status || p.Code == "" || p.Title == "" || p.Type != "about:blank" || p.RequestID == "" || p.RequestID != a.header.Get("X-Request-Id") {
		t.Errorf("incomplete problem: %s", a.body)
	}
	return p
}

// do sends "METHOD path" with a token ("" none), a body ("" none) and headers "Key: value".
func (s *service) do(t *testing.T, token, methodPath, body string, headers ...string) answer {
	t.Helper()
	method, path, _ := strings.Cut(methodPath, " ")
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, s.srv.URL+path, rd)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		if k == "Host" {
			req.Host = v
		}
		req.Header.Set(k, v)
	}
	client := *http.DefaultClient
	client.Timeout = patience // what should have been refused may be a stream
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, b}
}

func decode[T any](t *testing.T, a answer) T {
	t.Helper()
	var v T
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	d := json.NewDecoder(bytes.NewReader(a.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	return v
}

func (s *service) fill() {
	s.hub.add(ids(5)...)
	s.hub.change("a-000", statussync.StateRunning, statussync.HealthHealthy)
	s.hub.change("b-001", statussync.StateError, statussync.HealthUnhealthy)
	s.hub.change("a-000", statussync.StateStopped, statussync.HealthUnhealthy)
	for i, id := range []string{"box-b", "box-a", "box-7"} {
		s.hub.envs = append(s.hub.envs, statussync.EnvironmentView{
			Environment: &statussync.Environment{ID: id, Name: id}, Agent: statussync.AgentOK, Now: time.Now(), Servers: i,
			Discovered: []statussync.Discovered{{EnvironmentID: id, Container: "y"}, {EnvironmentID: id, Container: "x"}},
		})
	}
}

func TestQueries(t *testing.T) {
	s := serve(t, nil)
	s.fill()
	s.hub.metrics = statussync.SyncMetrics{TotalServers: 5, CacheHits: 1, CacheMisses: 3}

	t.Run("servers", func(t *testing.T) {
		for q, want := range map[string]string{
			"":                              "a-000 a-003 b-001 b-004 c-002",
			"?states=error":                 "b-001",
			"?states=error,stopped":         "a-000 b-001",
			"?states=error&states=stopped":  "a-000 b-001",
			"?states=":                      "",
			"?healths=unhealthy":            "a-000 b-001",
			"?availability=unavailable":     "a-000 b-001",
			"?availability=off":             "",
			"?environment_ids=box-c,box-b":  "b-001 b-004 c-002",
			"?label=team=a":                 "a-000 a-003",
			"?label=team=a&states=stopped":  "a-000",
			"?q=NAME+of+c":                  "c-002",
			"?healths=unknown&q=003&limit=": "a-003",
		} {
			p := decode[wire.Page[wire.Server]](t, s.do(t, viewerToken, "GET /api/v1/servers"+q, ""))
			var got []string
			for _, x := range p.Items {
				got = append(got, x.ID)
			}
			if strings.Join(got, " ") != want || p.NextCursor != "" || p.Cursor != "e7:3" {
				t.Errorf("%s: %v next %q cursor %q, want %s", q, got, p.NextCursor, p.Cursor, want)
			}
		}
		var got []string
		for cursor, n := "", 0; ; n++ {
			p := decode[wire.Page[wire.Server]](t, s.do(t, viewerToken, "GET /api/v1/servers?limit=2&cursor="+url.QueryEscape(cursor), ""))
			for _, x := range p.Items {
				got = append(got, x.ID)
			}
			if cursor = p.NextCursor; cursor == "" || n > 5 {
				break
			}
		}
		if strings.Join(got, " ") != "a-000 a-003 b-001 b-004 c-002" {
			t.Errorf("by pages: %v", got)
		}
	})
	t.Run("server", func(t *testing.T) {
		v := decode[wire.Server](t, s.do(t, viewerToken, "GET /api/v1/servers/b-001", ""))
		if v.ID != "b-001" || v.Status.State != statussync.StateError || v.Status.Availability != statussync.Unavailable || v.Status.Version != 1 {
			t.Errorf("%+v", v)
		}
	})
	t.Run("id with a slash", func(t *testing.T) {
		s.hub.add("a/b c")
		if v := decode[wire.Server](t, s.do(t, viewerToken, "GET /api/v1/servers/a%2Fb%20c", "")); v.ID != "a/b c" {
			t.Errorf("%+v", v)
		}
		s.hub.set(func() { delete(s.hub.views, "a/b c") })
	})
	t.Run("status", func(t *testing.T) {
		v := decode[wire.Explain](t, s.do(t, viewerToken, "GET /api/v1/servers/b-001/status", ""))
		if v.State != statussync.StateError || v.Explain != nil {
			t.Errorf("%+v", v)
		}
		v = decode[wire.Explain](t, s.do(t, viewerToken, "GET /api/v1/servers/b-001/status?explain=true", ""))
		if v.State != statussync.StateError || v.Explain == nil || len(v.Explain.Rules) != 1 || !v.Explain.Rules[0].Won {
			t.Errorf("%+v", v)
		}
	})
	t.Run("environments", func(t *testing.T) {
		p := decode[wire.Page[wire.Environment]](t, s.do(t, viewerToken, "GET /api/v1/environments?limit=2", ""))
		q := decode[wire.Page[wire.Environment]](t, s.do(t, viewerToken, "GET /api/v1/environments?limit=2&cursor="+p.NextCursor, ""))
		if len(p.Items) != 2 || len(q.Items) != 1 || p.Items[0].ID != "box-7" || p.Items[1].ID != "box-a" || q.Items[0].ID != "box-b" || q.NextCursor != "" {
			t.Errorf("%+v %+v", p, q)
		}
		if e := decode[wire.Environment](t, s.do(t, viewerToken, "GET /api/v1/environments/box-a", "")); e.ID != "box-a" || len(e.Discovered) != 2 {
			t.Errorf("%+v", e)
		}
	})
	t.Run("discovered", func(t *testing.T) {
		var got []string
		for cursor, n := "", 0; n < 9; n++ {
			p := decode[wire.Page[wire.Discovered]](t, s.do(t, viewerToken, "GET /api/v1/discovered?limit=4&cursor="+url.QueryEscape(cursor), ""))
			for _, d := range p.Items {
				got = append(got, d.EnvironmentID+"/"+d.Container)
			}
			if cursor = p.NextCursor; cursor == "" {
				break
			}
		}
		if strings.Join(got, " ") != "box-7/x box-7/y box-a/x box-a/y box-b/x box-b/y" {
			t.Error(got)
		}
	})
	t.Run("history", func(t *testing.T) {
		p := decode[wire.Page[wire.Update]](t, s.do(t, viewerToken, "GET /api/v1/servers/a-000/history?limit=1&hours=1", ""))
		q := decode[wire.Page[wire.Update]](t, s.do(t, viewerToken, "GET /api/v1/servers/a-000/history?limit=1&cursor="+p.NextCursor, ""))
		if len(p.Items) != 1 || p.Items[0].Seq != 3 || len(q.Items) != 1 || q.Items[0].Seq != 1 || q.NextCursor != "" {
			t.Errorf("%+v %+v", p, q)
		}
		if p := decode[wire.Page[wire.Update]](t, s.do(t, viewerToken, "GET /api/v1/servers/c-002/history", "")); p.Items == nil || len(p.Items) != 0 {
			t.Errorf("%+v", p)
		}
	})
	t.Run("updates", func(t *testing.T) {
		a := s.do(t, viewerToken, "GET /api/v1/updates", "")
		if p := decode[wire.Page[wire.Update]](t, a); len(p.Items) != 3 || p.Cursor != "e7:3" || p.NextCursor != "" {
			t.Errorf("%s", a.body)
		}
		if !bytes.Contains(a.body, s.hub.log[0].JSON) {
			t.Errorf("the entry's bytes are not as they are: %s", a.body)
		}
		p := decode[wire.Page[wire.Update]](t, s.do(t, viewerToken, "GET /api/v1/updates?limit=2", ""))
		q := decode[wire.Page[wire.Update]](t, s.do(t, viewerToken, "GET /api/v1/updates?limit=2&after="+p.NextCursor, ""))
		if len(p.Items) != 2 || len(q.Items) != 1 || q.Items[0].Seq != 3 || q.NextCursor != "" {
			t.Errorf("%+v %+v", p, q)
		}
		for filter, want := range map[string]int{"states=error": 1, "server_ids=a-000": 2, "type=error_state": 2, "states=running": 1, "states=running&leave=true": 2, "label=team=b": 1, "kinds=self_doubt": 0, "environment_ids=box-a&healths=unhealthy": 1} {
			if p := decode[wire.Page[wire.Update]](t, s.do(t, viewerToken, "GET /api/v1/updates?"+filter, "")); len(p.Items) != want {
				t.Errorf("%s: %d, want %d", filter, len(p.Items), want)
			}
		}
	})
	t.Run("metrics", func(t *testing.T) {
		m := decode[wire.Metrics](t, s.do(t, viewerToken, "GET /api/v1/sync/metrics", ""))
		if m.TotalServers != 5 || m.CacheHitRate == nil || *m.CacheHitRate != 0.25 {
			t.Errorf("%+v", m)
		}
	})
}

func TestCommands(t *testing.T) {
	s := serve(t, nil)
	s.fill()
	st := decode[wire.Status](t, s.do(t, operatorToken, "PUT /api/v1/servers/a-000/override", `{"state":"running","note":"on it","expires_in":"1d"}`))
	if o := st.Override; o == nil || o.Actor != "otto" || o.Health != statussync.HealthHealthy || time.Until(o.ExpiresAt.Time) < 23*time.Hour {
		t.Errorf("%+v", st.Override)
	}
	if st := decode[wire.Status](t, s.do(t, adminToken, "DELETE /api/v1/servers/a-000/override", "")); st.Override != nil || !slices.Equal(s.hub.actors, []string{"ada"}) {
		t.Errorf("%+v by %v", st.Override, s.hub.actors)
	}
	if r := decode[wire.ProbeResult](t, s.do(t, operatorToken, "POST /api/v1/servers/b-001/probe", "")); r.ServerID != "b-001" || r.Outcome != statussync.OutcomeSuccess || r.Status.State != statussync.StateError {
		t.Errorf("%+v", r)
	}
	all := decode[wire.ProbeResults](t, s.do(t, operatorToken, "POST /api/v1/probes", ""))
	if len(all.Items) != 4 || len(all.Failed) != 1 || all.Failed[0] != (wire.Failed{ServerID: "a-000", Code: statussync.CodeConflict, Detail: "is not probed"}) {
		t.Errorf("%+v", all)
	}
}

// TestRefusals: every way of being refused is a problem with the right status, code and place.
func TestRefusals(t *testing.T) {
	s := serve(t, nil)
	s.fill()
	s.hub.expire(2)
	s.hub.fail["History"] = errors.New("password is hunter2")
	s.hub.fail["CheckNow"] = statussync.NewError(statussync.CodeConflict, "is not probed", nil)
	const override = "PUT /api/v1/servers/a-000/override"
	for _, c := range []struct {
		token, call, body string
		status            int
		code              statussync.Code
		where             string
	}{
		{viewerToken, "GET /api/v1/nothing", "", 404, statussync.CodeNotFound, ""},
		{"", "GET /nothing", "", 404, statussync.CodeNotFound, ""},
		{"", "POST /nothing", "", 404, statussync.CodeNotFound, ""},
		{viewerToken, "GET /api/v1/servers/no", "", 404, statussync.CodeNotFound, ""},
		{viewerToken, "GET /api/v1/servers/no/status", "", 404, statussync.CodeNotFound, ""},
		{viewerToken, "GET /api/v1/servers/no/status?explain=true", "", 404, statussync.CodeNotFound, ""},
		{viewerToken, "GET /api/v1/environments/no", "", 404, statussync.CodeNotFound, ""},
		{operatorToken, "DELETE /api/v1/servers/no/override", "", 404, statussync.CodeNotFound, ""},
		{viewerToken, "DELETE /api/v1/servers", "", 405, statussync.CodeMethodNotAllowed, ""},
		{agentToken, "GET /heartbeat", "", 405, statussync.CodeMethodNotAllowed, ""},
		{agentToken, "PUT /functions/v1/heartbeat", "{}", 405, statussync.CodeMethodNotAllowed, ""},
		{"", "GET /api/v1/servers", "", 401, statussync.CodeUnauthorized, ""},
		{"", "GET /api/v1/stream", "", 401, statussync.CodeUnauthorized, ""},
		{"", "GET /api/v1/servers?token=" + viewerToken, "", 401, statussync.CodeUnauthorized, ""},
		{agentToken, "GET /api/v1/servers", "", 403, statussync.CodeForbidden, ""},
		{viewerToken, override, `{"state":"running"}`, 403, statussync.CodeForbidden, ""},
		{viewerToken, "POST /api/v1/probes", "", 403, statussync.CodeForbidden, ""},
		{viewerToken, "POST /heartbeat", "{}", 401, statussync.CodeUnauthorized, ""},
		{"", "POST /heartbeat", "{}", 401, statussync.CodeUnauthorized, ""},
		{viewerToken, "GET /api/v1/servers?cursor=nonsense", "", 400, statussync.CodeInvalid, "query.cursor"},
		{viewerToken, "GET /api/v1/environments?cursor=nonsense", "", 400, statussync.CodeInvalid, "query.cursor"},
		{viewerToken, "GET /api/v1/discovered?cursor=nonsense", "", 400, statussync.CodeInvalid, "query.cursor"},
		{viewerToken, "GET /api/v1/servers/a-000/history?cursor=nonsense", "", 400, statussync.CodeInvalid, "query.cursor"},
		{viewerToken, "GET /api/v1/updates?after=nonsense", "", 400, statussync.CodeInvalid, "query.after"},
		{viewerToken, "GET /api/v1/updates?after=e7:1", "", 410, statussync.CodeExpired, ""},
		{viewerToken, "GET /api/v1/updates?after=e6:3", "", 410, statussync.CodeExpired, ""},
		{viewerToken, "GET /api/v1/servers?states=bad", "", 422, statussync.CodeInvalid, "query.states[0]"},
		{viewerToken, "GET /api/v1/servers?states=error&states=bad", "", 400, statussync.CodeInvalid, "query.states"},
		{viewerToken, "GET /api/v1/servers?state=error", "", 422, statussync.CodeInvalid, "query.state"},
		{viewerToken, "GET /api/v1/servers?limit=0", "", 422, statussync.CodeInvalid, "query.limit"},
		{viewerToken, "GET /api/v1/servers?limit=x", "", 422, statussync.CodeInvalid, "query.limit"},
		{viewerToken, "GET /api/v1/servers?label=team", "", 400, statussync.CodeInvalid, "query.label"},
		{viewerToken, "GET /api/v1/servers/a-000/history?hours=0", "", 422, statussync.CodeInvalid, "query.hours"},
		{viewerToken, "GET /api/v1/updates?kinds=bad", "", 400, statussync.CodeInvalid, "query.kinds"},
		{viewerToken, "GET /api/v1/stream?cursor=nonsense", "", 400, statussync.CodeInvalid, "query.cursor"},
		{viewerToken, "GET /api/v1/stream?states=bad", "", 400, statussync.CodeInvalid, "query.states"},
		{viewerToken, "GET /api/v1/stream?state=error", "", 400, statussync.CodeInvalid, "query.state"},
		{viewerToken, "GET /api/v1/stream?snapshot=maybe", "", 400, statussync.CodeInvalid, "query.snapshot"},
		{viewerToken, "GET /api/v1/stream?mode=sometimes", "", 400, statussync.CodeInvalid, "query.mode"},
		{viewerToken, "GET /api/v1/stream?mode=latest&type=recovery", "", 400, statussync.CodeInvalid, "query.type"},
		{operatorToken, override, `{"state":"bad"}`, 422, statussync.CodeInvalid, "body.state"},
		{operatorToken, override, `{"state":"stopped","health":"healthy"}`, 400, statussync.CodeInvalid, "body.health"},
		{operatorToken, override, `{"state":"running","expires_in":"soon"}`, 400, statussync.CodeInvalid, "body.expires_in"},
		{operatorToken, override, `{"state":"running","expires_in":"31d"}`, 400, statussync.CodeInvalid, "body.expires_in"},
		{operatorToken, override, `{"state":"running","expires_in":"-1h"}`, 400, statussync.CodeInvalid, "body.expires_in"},
		{operatorToken, override, `{"state":"running","actor":"eve"}`, 422, statussync.CodeInvalid, "body.actor"},
		{operatorToken, override, `{"health":"healthy"}`, 422, statussync.CodeInvalid, "body"},
		{operatorToken, override, `nonsense`, 400, statussync.CodeInvalid, "body"},
		{operatorToken, override, `{"state":"running","note":"` + strings.Repeat("x", 1001) + `"}`, 422, statussync.CodeInvalid, "body.note"},
		{operatorToken, override, `{"note":"` + strings.Repeat("x", 2<<20) + `"}`, 413, statussync.CodeTooLarge, ""},
		{operatorToken, "POST /api/v1/servers/a-000/probe", "", 409, statussync.CodeConflict, ""},
		{agentToken, "POST /heartbeat", "nonsense", 400, statussync.CodeInvalid, ""},
		{agentToken, "POST /heartbeat", `{"x":"` + strings.Repeat("x", 1<<20) + `"}`, 413, statussync.CodeTooLarge, ""},
		{viewerToken, "GET /api/v1/ws", "", 400, statussync.CodeInvalid, ""},
		{viewerToken, "GET /api/v1/servers/a-000/history", "", 500, statussync.CodeInternal, ""},
	} {
		a := s.do(t, c.token, c.call, c.body)
		p := a.problem(t)
		at := ""
		if len(p.Errors) > 0 {
			at = p.Errors[0].Location
		}
		if a.status != c.status || p.Code != c.code || (c.where != "" && at != c.where) {
			t.Errorf("%s: %d %s at %q, want %d %s at %q: %s", c.call, a.status, p.Code, at, c.status, c.code, c.where, a.body)
		}
		if bytes.Contains(a.body, []byte("hunter2")) || bytes.Contains(a.body, []byte("xxxxxxxxxxxxxxxxxxxxxxxxx")) {
			t.Errorf("%s shows too much: %.300s", c.call, a.body)
		}
		switch a.status {
		case 401:
			if a.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: 401 without WWW-Authenticate", c.call)
			}
		case 405:
			if a.header.Get("Allow") == "" {
				t.Errorf("%s: 405 without Allow", c.call)
			}
		}
	}
	if !strings.Contains(s.log.String(), "hunter2") {
		t.Error("the internal error is not in the log")
	}
	for _, secret := range []string{viewerToken, operatorToken, agentToken} {
		if strings.Contains(s.log.String(), secret) {
			t.Errorf("the log holds the token %s", secret)
		}
	}
}

func TestBadTokens(t *testing.T) {
	s := serve(t, nil)
	for _, h := range []string{"Bearer nobody", "Bearer", "Bearer ", "Basic dTpw", viewerToken, "Bearer " + strings.Repeat("x", 5000)} {
		if a := s.do(t, "", "GET /api/v1/servers", "", "Authorization: "+h); a.status != 401 || a.problem(t).Code != statussync.CodeUnauthorized {
			t.Errorf("%.40q: %d", h, a.status)
		}
	}
	if a := s.do(t, "", "GET /api/v1/servers", "", "Authorization: bearer "+viewerToken); a.status != 200 {
		t.Errorf("the scheme's case matters: %d", a.status)
	}
}

// TestLoginLimit: an address that fails too often is not looked at any more, but a token that was good from there still
// is; others are not affected.
func TestLoginLimit(t *testing.T) {
	s := serve(t, func(o *Options) {
		o.LoginFailuresPerMinute = 3
		o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	from := func(addr, token string) answer {
		return s.do(t, token, "GET /api/v1/servers", "", "X-Forwarded-For: "+addr)
	}
	if a := from("203.0.113.7", viewerToken); a.status != 200 {
		t.Fatal(a.status)
	}
	for i := range 3 {
		if a := from("203.0.113.7", fmt.Sprint("guess", i)); a.status != 401 {
			t.Fatalf("guess %d: %d", i, a.status)
		}
	}
	a := from("203.0.113.7", "guess4")
	if p := a.problem(t); a.status != 429 || p.Code != statussync.CodeRateLimited || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := from("203.0.113.7", adminToken); a.status != 429 {
		t.Errorf("a token that was never seen from a blocked address: %d", a.status)
	}
	if a := from("203.0.113.7", viewerToken); a.status != 200 {
		t.Errorf("a token that was good from there before: %d", a.status)
	}
	if a := from("203.0.113.8", adminToken); a.status != 200 {
		t.Errorf("another address: %d", a.status)
	}
	if n := s.Stats().LoginsFailed; n != 3 {
		t.Errorf("%d failed logins counted", n)
	}
}

// TestHeartbeatLimit: wrong tokens of heartbeats are limited apart from other logins, and nothing that others do wrong at
// its address silences an agent, even one that was never heard before.
func TestHeartbeatLimit(t *testing.T) {
	s := serve(t, func(o *Options) {
		o.LoginFailuresPerMinute = 3
		o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	from := func(addr, token, call string) answer { return s.do(t, token, call, "{}", "X-Forwarded-For: "+addr) }
	const a, read = "203.0.113.7", "GET /api/v1/servers"
	for i, c := range []struct {
		addr, token, call string
		want              int
	}{
		{a, "guess", read, 401}, {a, "guess", read, 401}, {a, "guess", read, 401}, {a, "guess", read, 429},
		{a, agentToken, "POST /heartbeat", 204},
		{a, "guess", "POST /heartbeat", 401}, {a, viewerToken, "POST /heartbeat", 401},
		{a, "guess", "POST /functions/v1/heartbeat", 401}, {a, "guess", "POST /heartbeat", 429},
		{a, "guess", "POST /functions/v1/heartbeat", 429},
		{a, agentToken, "POST /heartbeat", 204}, {a, agentToken, "POST /functions/v1/heartbeat", 204},
		{"203.0.113.8", "guess", "POST /heartbeat", 401}, {"203.0.113.8", "guess", "POST /heartbeat", 401},
		{"203.0.113.8", "guess", "POST /heartbeat", 401}, {"203.0.113.8", "guess", "POST /heartbeat", 429},
		{"203.0.113.8", viewerToken, read, 200},
		{"2001:db8::1", "guess", "POST /heartbeat", 401}, {"2001:db8::2", "guess", "POST /heartbeat", 401},
		{"2001:db8::3", "guess", "POST /heartbeat", 401}, {"2001:db8::4", "guess", "POST /heartbeat", 429},
		{"2001:db8::4", agentToken, "POST /heartbeat", 204},
	} {
		x := from(c.addr, c.token, c.call)
		if x.status != c.want || (c.want == 429) != (x.header.Get("Retry-After") != "") {
			t.Errorf("%d: %s from %s: %d with Retry-After %q, want %d", i, c.call, c.addr, x.status, x.header.Get("Retry-After"), c.want)
		}
	}
	if st := s.Stats(); st.LoginsFailed != 12 || st.Heartbeats != 4 {
		t.Errorf("%+v", st)
	}
}

func TestLoginsAreBounded(t *testing.T) {
	l := newLogins(5)
	for i := range maxAddresses + 100 {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		if err := l.try(addr, "x", func() bool { return false }); statussync.CodeOf(err) != statussync.CodeUnauthorized {
			t.Fatal(err)
		}
		if err := l.try(addr, "good", func() bool { return true }); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.fails.items) != maxAddresses || len(l.good.items) != maxAddresses || l.fails.order.Len() != maxAddresses {
		t.Errorf("%d and %d remembered", len(l.fails.items), len(l.good.items))
	}
	// The whole /64 of an IPv6 address is one.
	for i := range 6 {
		err := l.try(netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i)), "x", func() bool { return false })
		if want := i == 5; (statussync.CodeOf(err) == statussync.CodeRateLimited) != want {
			t.Errorf("try %d: %v", i, err)
		}
	}
}

func TestCommandLimit(t *testing.T) {
	s := serve(t, func(o *Options) { o.CommandsPerSecond = 2 })
	s.fill()
	var last answer
	for range 6 {
		last = s.do(t, operatorToken, "DELETE /api/v1/servers/a-000/override", "")
	}
	if last.status != 429 || last.problem(t).Code != statussync.CodeRateLimited || last.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", last.status, last.body)
	}
	if a := s.do(t, adminToken, "DELETE /api/v1/servers/a-000/override", ""); a.status != 200 {
		t.Errorf("another credential: %d", a.status)
	}
	if a := s.do(t, operatorToken, "GET /api/v1/servers", ""); a.status != 200 {
		t.Errorf("a read: %d", a.status)
	}
}

func TestHeartbeat(t *testing.T) {
	s := serve(t, nil)
	const beat = `{"dtma_version":"0.1.0","tool_statuses":[{"id":"c","names":["weather"],"state":"running","status":"Up 2 hours"}]}`
	for _, path := range []string{"/heartbeat", "/functions/v1/heartbeat"} {
		a := s.do(t, agentToken, "POST "+path, beat)
		if a.status != 204 || len(a.body) != 0 {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if a := s.do(t, agentToken, "POST /heartbeat", beat, "Content-Type: application/json; charset=utf-8"); a.status != 204 {
		t.Errorf("with a charset: %d", a.status)
	}
	s.hub.mu.Lock()
	if len(s.hub.observed) != 3 {
		t.Fatalf("%d observed", len(s.hub.observed))
	}
	r, ok := s.hub.observed[0].(*statussync.AgentReport)
	if !ok || r.EnvironmentID != "box-7" || r.Via != statussync.ViaPush || r.AgentVersion != "0.1.0" || len(r.Containers) != 1 {
		t.Errorf("%+v", s.hub.observed[0])
	}
	s.hub.full = true
	s.hub.mu.Unlock()
	a := s.do(t, agentToken, "POST /heartbeat", beat)
	if p := a.problem(t); a.status != 503 || p.Code != statussync.CodeUnavailable || a.header.Get("Retry-After") != "5" {
		t.Errorf("full: %d %s", a.status, a.body)
	}
	if a := s.do(t, agentToken, "POST /heartbeat", beat, "Content-Type: text/plain"); a.status != 503 {
		t.Errorf("as text, which is not refused for that: %d", a.status)
	}
	if st := s.Stats(); st.Heartbeats != 3 || st.InboxFull != 2 {
		t.Errorf("%+v", st)
	}
}

func TestFieldHeartbeats(t *testing.T) {
	s := serve(t, nil)
	files, err := os.ReadDir("../dtma/testdata")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), "heartbeat") || !strings.HasSuffix(f.Name(), ".json") {
			continue
		}
		b, err := os.ReadFile("../dtma/testdata/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if a := s.do(t, agentToken, "POST /heartbeat", string(b)); a.status != 204 {
			t.Errorf("%s: %d %s", f.Name(), a.status, a.body)
		}
		n++
	}
	if n == 0 {
		t.Error("no examples")
	}
}

// TestPanics: a handler that panics is a problem with the request's id, and the service lives.
func TestPanics(t *testing.T) {
	s := serve(t, nil)
	s.fill()
	s.hub.panics["Server"] = "boom hunter2"
	s.hub.panics["TryObserve"] = errors.New("boom")
	a := s.do(t, viewerToken, "GET /api/v1/servers/a-000", "")
	p := a.problem(t)
	if a.status != 500 || p.Code != statussync.CodeInternal || bytes.Contains(a.body, []byte("boom")) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.do(t, agentToken, "POST /heartbeat", "{}"); a.status != 500 || a.problem(t).Code != statussync.CodeInternal {
		t.Errorf("%d %s", a.status, a.body)
	}
	if log := s.log.String(); !strings.Contains(log, "boom hunter2") || !strings.Contains(log, p.RequestID) || !strings.Contains(log, "routes.go") {
		t.Errorf("the log lacks the panic, its request or its stack: %s", log)
	}
	if a := s.do(t, viewerToken, "GET /api/v1/servers", ""); a.status != 200 {
		t.Errorf("afterwards: %d", a.status)
	}
}

func TestGuards(t *testing.T) {
	s := serve(t, func(o *Options) {
		o.AllowedHosts = []string{"status.example.com", "other.example.com:8443"}
		o.AllowedOrigins = []string{"https://dash.example.com"}
	})
	s.fill()
	for host, want := range map[string]int{
		"localhost": 200, "localhost:99": 200, "LOCALHOST": 200, "127.0.0.1": 200, "127.9.9.9:1": 200, "[::1]:8080": 200, "localhost.": 200,
		"status.example.com": 200, "status.example.com:123": 200, "other.example.com:8443": 200,
		"other.example.com": 403, "evil.example.com": 403, "localhost.evil.com": 403, "10.0.0.1": 403, "status.example.com.evil.com": 403, "169.254.169.254": 403,
	} {
		a := s.do(t, viewerToken, "GET /api/v1/servers", "", "Host: "+host)
		if a.status != want {
			t.Errorf("Host %s: %d, want %d", host, a.status, want)
		}
		if want == 403 && a.problem(t).Code != statussync.CodeForbidden {
			t.Errorf("Host %s: %s", host, a.body)
		}
	}
	const del = "DELETE /api/v1/servers/a-000/override"
	for name, c := range map[string]struct {
		want    int
		headers []string
	}{
		"no origin":      {200, nil},
		"same origin":    {200, []string{"Origin: " + s.srv.URL}},
		"allowed origin": {200, []string{"Origin: https://dash.example.com"}},
		"foreign origin": {403, []string{"Origin: https://evil.example.com"}},
		"cross-site":     {403, []string{"Sec-Fetch-Site: cross-site"}},
		"null origin":    {403, []string{"Origin: null"}},
		"form":           {400, []string{"Content-Type: application/x-www-form-urlencoded"}},
		"text":           {400, []string{"Content-Type: text/plain"}},
		"json":           {200, []string{"Content-Type: application/json"}},
	} {
		if a := s.do(t, operatorToken, del, "", c.headers...); a.status != c.want {
			t.Errorf("%s: %d, want %d: %s", name, a.status, c.want, a.body)
		}
	}
	if a := s.do(t, operatorToken, "PUT /api/v1/servers/a-000/override", `{"state":"running"}`, "Content-Type: text/plain"); a.status != 400 {
		t.Errorf("a body as text: %d", a.status)
	}
	for _, origin := range []string{"https://evil.example.com", "null", "http://127.0.0.1"} {
		for _, path := range []string{"/api/v1/stream", "/api/v1/ws", "/ws/mcp-status"} {
			if a := s.do(t, viewerToken, "GET "+path, "", "Origin: "+origin); a.status != 403 {
				t.Errorf("%s from %s: %d", path, origin, a.status)
			}
		}
	}
}

// TestWildcardHost: listening on every address, the one that was reached is ours, and no other.
func TestWildcardHost(t *testing.T) {
	l, err := newHostList("0.0.0.0:8080", nil)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("GET", "http://192.168.1.5:8080/", nil)
	if l.check(r) == nil {
		t.Error("taken without knowing where it arrived")
	}
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.IPv4(192, 168, 1, 5), Port: 8080})))
	if err := l.check(r); err != nil {
		t.Error(err)
	}
	r.Host = "192.168.1.6:8080"
	if l.check(r) == nil {
		t.Error("another address is taken")
	}
	if l, _ = newHostList("192.168.1.6:8080", nil); l.check(r) != nil {
		t.Error("the listen address is not taken")
	}
}

func TestRemote(t *testing.T) {
	a := &API{}
	a.set.Store(&settings{proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}})
	for _, c := range []struct {
		peer, forwarded, want string
		direct                bool
	}{
		{"192.0.2.1:5", "", "192.0.2.1", true},
		{"192.0.2.1:5", "127.0.0.1", "192.0.2.1", false},
		{"127.0.0.1:5", "203.0.113.1", "127.0.0.1", false},
		{"127.0.0.1:5", "", "127.0.0.1", true},
		{"[::ffff:127.0.0.1]:5", "", "127.0.0.1", true},
		{"10.0.0.1:5", "203.0.113.1", "203.0.113.1", true},
		{"10.0.0.1:5", "127.0.0.1, 203.0.113.1", "203.0.113.1", true},
		{"10.0.0.1:5", "6.6.6.6, 203.0.113.1, 10.0.0.2", "203.0.113.1", true},
		{"10.0.0.1:5", "203.0.113.1:1234", "203.0.113.1", true},
		{"10.0.0.1:5", "[2001:db8::1]:1234", "2001:db8::1", true},
		{"10.0.0.1:5", "2001:db8::1", "2001:db8::1", true},
		{"10.0.0.1:5", "", "10.0.0.1", false},
		{"10.0.0.1:5", "127.0.0.1, nonsense", "10.0.0.1", false},
		{"[::1]:5", "203.0.113.1", "203.0.113.1", true},
		{"nonsense", "", "invalid IP", false},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.peer
		if c.forwarded != "" {
			r.Header.Set("X-Forwarded-For", c.forwarded)
		}
		if addr, direct := a.remote(r); addr.String() != c.want || direct != c.direct {
			t.Errorf("%s for %q: %s %v, want %s %v", c.peer, c.forwarded, addr, direct, c.want, c.direct)
		}
	}
}

// TestOpenLoopback: without tokens everybody on this machine is admin, and nobody else anything.
func TestOpenLoopback(t *testing.T) {
	s := serve(t, func(o *Options) {
		o.Auth, o.OpenLoopback = NewTokens(nil, map[string][]string{"box-7": {agentToken}}), true
	})
	s.fill()
	if a := s.do(t, "", "DELETE /api/v1/servers/a-000/override", ""); a.status != 200 || !slices.Equal(s.hub.actors, []string{"local"}) {
		t.Errorf("%d by %v", a.status, s.hub.actors)
	}
	if a := s.do(t, "", "POST /heartbeat", "{}"); a.status != 401 {
		t.Errorf("a heartbeat without its token: %d", a.status)
	}
	if a := s.do(t, agentToken, "POST /heartbeat", "{}"); a.status != 204 {
		t.Errorf("a heartbeat: %d", a.status)
	}
	if a := s.do(t, "", "GET /api/v1/servers", "", "X-Forwarded-For: 203.0.113.1"); a.status != 401 {
		t.Errorf("through a proxy that nobody trusts: %d", a.status)
	}
	r := httptest.NewRequest("GET", "http://localhost/api/v1/servers", nil)
	r.RemoteAddr = "203.0.113.9:1234"
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if w.Code != 401 {
		t.Errorf("from elsewhere: %d", w.Code)
	}
}

func TestServiceRoutes(t *testing.T) {
	checkErr := error(nil)
	s := serve(t, func(o *Options) {
		o.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "up 1") })
		o.ReadyChecks = map[string]func(context.Context) error{"store": func(context.Context) error { return checkErr }}
	})
	if a := s.do(t, "", "GET /healthz", ""); a.status != 200 || !bytes.Contains(a.body, []byte("alive")) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if r := decode[wire.Ready](t, s.do(t, "", "GET /readyz", "")); r.Status != wire.ReadyYes || !r.Durable || r.Checks != nil || r.Cursor != "" || r.Version != "" {
		t.Errorf("without a credential: %+v", r)
	}
	r := decode[wire.Ready](t, s.do(t, viewerToken, "GET /readyz", ""))
	if r.Status != wire.ReadyYes || r.Version != "1.2.3" || !r.Checks["store"].OK || r.InboxUsedPercent == nil || *r.InboxUsedPercent != 25 {
		t.Errorf("%+v", r)
	}
	s.hub.set(func() { s.hub.durable = false })
	if r := decode[wire.Ready](t, s.do(t, viewerToken, "GET /readyz", "")); r.Status != wire.ReadyDegraded || r.Durable {
		t.Errorf("%+v", r)
	}
	checkErr = errors.New("hunter2")
	a := s.do(t, viewerToken, "GET /readyz", "")
	if a.status != 200 || !bytes.Contains(a.body, []byte(wire.ReadyDegraded)) || !bytes.Contains(a.body, []byte(`"ok":false`)) || bytes.Contains(a.body, []byte("hunter2")) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.do(t, "", "GET /metrics", ""); a.status != 401 {
		t.Errorf("%d", a.status)
	}
	if a := s.do(t, viewerToken, "GET /metrics", ""); a.status != 200 || string(a.body) != "up 1\n" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.do(t, "", "GET /", ""); a.status != 200 || !bytes.Contains(a.body, []byte("/api/v1")) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.do(t, "", "HEAD /healthz", ""); a.status != 200 || len(a.body) != 0 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.do(t, "", "GET //healthz", ""); a.status/100 != 3 {
		t.Errorf("an uncleaned path: %d", a.status)
	}
	if a := s.do(t, "", "GET /docs", ""); a.status != 200 || !bytes.Contains(a.body, []byte("swagger-ui")) {
		t.Errorf("%d %s", a.status, a.body)
	}
	s.Drain()
	if a := s.do(t, viewerToken, "GET /readyz", ""); a.status != 503 || !bytes.Contains(a.body, []byte("stopping")) {
		t.Errorf("%d %s", a.status, a.body)
	}
	for _, p := range []string{"/api/v1/stream", "/api/v1/ws"} {
		if a := s.do(t, viewerToken, "GET "+p, "", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="); a.status != 503 || a.problem(t).Code != statussync.CodeUnavailable || a.header.Get("Retry-After") == "" {
			t.Errorf("%s while stopping: %d %s", p, a.status, a.body)
		}
	}
	if a := s.do(t, viewerToken, "GET /api/v1/servers", ""); a.status != 200 {
		t.Errorf("a query while stopping: %d", a.status)
	}
}

// greedyPage claims every path, and says which it served.
type greedyPage struct{}

func (greedyPage) Has(path string) bool { return path != "/nothing" }

func (greedyPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, "page ", r.URL.Path)
}

// TestPage: a page gets what nothing else serves, and takes nothing from the API, however greedy it is.
func TestPage(t *testing.T) {
	s := serve(t, func(o *Options) { o.Page = greedyPage{} })
	for path, want := range map[string]string{"/": "page /", "/x/y.css": "page /x/y.css", "/servers/x": "page /servers/x"} {
		if a := s.do(t, "", "GET "+path, ""); string(a.body) != want {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	for _, path := range []string{"/api/v1/servers", "/docs", "/openapi.json", "/healthz", "/readyz", wire.PathLegacy, wire.PathWebSocket, "/api/nothing"} {
		if a := s.do(t, "", "GET "+path, ""); bytes.HasPrefix(a.body, []byte("page ")) {
			t.Errorf("%s was the page's", path)
		}
	}
	for accept, page := range map[string]bool{
		"text/html,application/xhtml+xml,*/*;q=0.8": true, "*/*": true, "text/*": true, "text/plain": false, "application/json": false,
		"text/html;q=0, text/plain": false,
	} {
		a := s.do(t, "", "GET /", "", "Accept: "+accept)
		if got := string(a.body) == "page /"; got != page || !page && !bytes.Contains(a.body, []byte("/api/v1")) {
			t.Errorf("Accept %q: %d %s", accept, a.status, a.body)
		}
	}
	if a := s.do(t, "", "GET /nothing", ""); a.status != 404 || a.problem(t).Code != statussync.CodeNotFound {
		t.Errorf("an unknown path: %d %s", a.status, a.body)
	}
	if a := s.do(t, "", "POST /servers/x", "{}"); a.status != 404 && a.status != 405 {
		t.Errorf("POST of a page: %d", a.status)
	}
	if a := s.do(t, "", "GET /api/v2", ""); a.status != 404 {
		t.Errorf("below /api/: %d", a.status)
	}
	if a := s.do(t, "", "GET /heartbeat", ""); a.status != 405 {
		t.Errorf("a wrong method: %d", a.status)
	}
}

// TestOpenAPI: the description parses, in both forms, describes every route of the mux and no other, with our errors.
func TestOpenAPI(t *testing.T) {
	s := serve(t, func(o *Options) {
		o.Metrics = http.NotFoundHandler()
		o.Registry = struct{ Registry }{} // only its routes are looked at
		o.Rollups = struct{ Rollups }{}
		type windows interface{ Maintenance }
		o.Maintenance = struct{ windows }{}
	})
	var doc struct {
		OpenAPI string                               `json:"openapi" yaml:"openapi"`
		Paths   map[string]map[string]map[string]any `json:"paths" yaml:"paths"`
		Comp    struct {
			Schemas map[string]any `json:"schemas" yaml:"schemas"`
		} `json:"components" yaml:"components"`
	}
	list := func() []string {
		var out []string
		for path, ops := range doc.Paths {
			for method, op := range ops {
				out = append(out, strings.ToUpper(method)+" "+path)
				resp, _ := op["responses"].(map[string]any)
				if fmt.Sprint(resp["default"]) == "<nil>" || !strings.Contains(fmt.Sprint(resp["default"]), "Problem") {
					t.Errorf("%s %s does not describe its errors: %v", method, path, resp)
				}
			}
		}
		slices.Sort(out)
		return out
	}
	want := slices.Sorted(slices.Values(s.patterns))
	j := s.do(t, "", "GET /openapi.json", "")
	if err := json.Unmarshal(j.body, &doc); err != nil {
		t.Fatal(err)
	}
	if got := list(); !slices.Equal(got, want) || !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("openapi.json %s has\n%v, the mux\n%v", doc.OpenAPI, got, want)
	}
	for _, name := range []string{"Problem", "Server", "Update", "PageServer"} {
		if doc.Comp.Schemas[name] == nil {
			t.Errorf("no schema %s", name)
		}
	}
	if doc.Comp.Schemas["ErrorModel"] != nil || bytes.Contains(j.body, []byte("ErrorModel")) {
		t.Error("the library's errors are described")
	}
	refs := 0
	for _, part := range bytes.Split(j.body, []byte(`"$ref":"#/components/schemas/`))[1:] {
		name, _, _ := bytes.Cut(part, []byte(`"`))
		if doc.Comp.Schemas[string(name)] == nil {
			t.Errorf("a reference to %s leads nowhere", name)
		}
		refs++
	}
	if refs == 0 {
		t.Error("no references")
	}
	doc.Paths = nil
	y := s.do(t, "", "GET /openapi.yaml", "")
	if err := yaml.Unmarshal(y.body, &doc); err != nil {
		t.Fatal(err)
	}
	if got := list(); !slices.Equal(got, want) {
		t.Errorf("openapi.yaml has\n%v, the mux\n%v", got, want)
	}
	for _, must := range []string{
		"POST /heartbeat", "POST /functions/v1/heartbeat", "GET /api/v1/ws", "GET /ws/mcp-status", "GET /api/v1/stream", "GET /api/v1/servers",
		"GET /api/v1/servers/{id}", "GET /api/v1/servers/{id}/status", "PUT /api/v1/servers/{id}/override", "DELETE /api/v1/servers/{id}/override",
		"POST /api/v1/servers/{id}/probe", "POST /api/v1/probes", "GET /api/v1/servers/{id}/history", "GET /api/v1/updates", "GET /api/v1/environments",
		"GET /api/v1/environments/{id}", "GET /api/v1/discovered", "GET /api/v1/sync/metrics", "GET /metrics", "GET /healthz", "GET /readyz",
		"POST /api/v1/servers", "PUT /api/v1/servers/{id}", "DELETE /api/v1/servers/{id}", "POST /api/v1/environments", "PUT /api/v1/environments/{id}",
		"DELETE /api/v1/environments/{id}", "GET /api/v1/environments/{id}/tokens", "POST /api/v1/environments/{id}/tokens",
		"DELETE /api/v1/environments/{id}/tokens/{token_id}", "POST /api/v1/discovered/{environment_id}/{container}/adopt",
	} {
		if !slices.Contains(want, must) {
			t.Errorf("%s is not served", must)
		}
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"Hub":                    {},
		"WriteTimeout":           {Hub: newMemHub(), WriteTimeout: -1},
		"LoginFailuresPerMinute": {Hub: newMemHub(), LoginFailuresPerMinute: -1},
		"AllowedOrigins":         {Hub: newMemHub(), AllowedOrigins: []string{"dash.example.com"}},
		"AllowedHosts":           {Hub: newMemHub(), AllowedHosts: []string{"https://x/"}},
		"Listen":                 {Hub: newMemHub(), Listen: "nonsense"},
		"Auth.tokens[0]":         {Hub: newMemHub(), Auth: NewTokens([]TokenSpec{{Name: "x", Role: "king", Token: "t"}}, nil)},
		"Auth.tokens[1]":         {Hub: newMemHub(), Auth: NewTokens([]TokenSpec{{Role: RoleAdmin, Token: "t"}, {Role: RoleAdmin, Token: "t"}}, nil)},
		"Auth.agents":            {Hub: newMemHub(), Auth: NewTokens(nil, map[string][]string{"a": {"t"}, "b": {"t"}})},
	} {
		a, err := New(o)
		var e *statussync.Error
		if a != nil || !errors.As(err, &e) || e.Location != name {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTimeout(t *testing.T) {
	a := &API{opts: Options{}.withDefaults(), log: slog.New(slog.DiscardHandler)}
	if p := a.toProblem(context.Background(), fmt.Errorf("asked: %w", context.DeadlineExceeded)); p.Status != 503 || p.Code != statussync.CodeUnavailable {
		t.Errorf("%+v", p)
	}
}

// TestClientGone: a client that leaves ends the work for it.
func TestClientGone(t *testing.T) {
	s := serve(t, nil)
	s.fill()
	s.hub.block = make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "POST", s.srv.URL+"/api/v1/servers/a-000/probe", nil)
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	done := make(chan error, 1)
	go func() {
		_, err := http.DefaultClient.Do(req)
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// Close of the test server waits for the handler: it ends only because its context did.
}

// TestManagedAgents: agents' tokens come and go while requests are served, beside the fixed ones, which stay.
func TestManagedAgents(t *testing.T) {
	auth := tokens()
	const other = "managed-token-01"
	if _, ok := auth.Agent(other); ok {
		t.Fatal("known before it was made")
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 1000 {
				if env, ok := auth.Agent(agentToken); !ok || env != "box-7" {
					t.Error("a fixed token was lost")
					return
				}
				if env, ok := auth.Agent(other); ok && env != "box-9" {
					t.Errorf("the managed token is %q's", env)
					return
				}
			}
		}()
	}
	for i := range 1000 {
		m := map[[sha256.Size]byte]string{}
		if i%2 == 0 {
			m[sha256.Sum256([]byte(other))] = "box-9"
		}
		auth.SetManagedAgents(m)
		if _, ok := auth.Agent(other); ok != (i%2 == 0) {
			t.Errorf("round %d: %v", i, ok)
		}
	}
	wg.Wait()
	// A token of the configuration can't be taken over.
	auth.SetManagedAgents(map[[sha256.Size]byte]string{sha256.Sum256([]byte(agentToken)): "box-9"})
	if env, _ := auth.Agent(agentToken); env != "box-7" {
		t.Errorf("taken over by %q", env)
	}
}

// TestFaultsAreAllTold: an error that joins several is one problem with all of them; one of unknown kind hides the rest.
func TestFaultsAreAllTold(t *testing.T) {
	a := &API{opts: Options{}.withDefaults(), log: slog.New(slog.DiscardHandler)}
	two := errors.Join(statussync.Invalid("id", "is missing"), errors.Join(statussync.Invalid("name", "is too long")))
	p := a.toProblem(context.Background(), inBody(two))
	if p.Status != 400 || len(p.Errors) != 2 || p.Errors[0] != (wire.ProblemError{Location: "body.id", Message: "is missing"}) || p.Errors[1].Location != "body.name" {
		t.Errorf("%+v", p)
	}
	if p := a.toProblem(context.Background(), inBody(statussync.Invalid("id", "is missing"))); len(p.Errors) != 1 || p.Detail != "body.id: is missing" {
		t.Errorf("%+v", p)
	}
	p = a.toProblem(context.Background(), errors.Join(errors.New("password=hunter2"), two))
	if b, _ := json.Marshal(p); bytes.Contains(b, []byte("hunter2")) {
		t.Errorf("%s", b)
	}
}
