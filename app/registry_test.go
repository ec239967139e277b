package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

const registryConfig = `
listen: 127.0.0.1:0
data: %s
auth:
  commands_per_second: 100000
  tokens:
    - {name: ada, role: admin, token: "admin-token"}
    - {name: otto, role: operator, token: "operator-token"}
    - {name: eve, role: viewer, token: "viewer-token"}
environments:
  - {id: box-7, address: 127.0.0.1, agent_token: "agent-token-7"}
servers:
  - {id: fixed, environment: box-7, probe: {kind: none}}
probe: {interval: 1h, max_retries: 0, rise: 1, start_grace: 1s}
`

// syncBuffer is a log that can be read while it is written.
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

// running is the whole service, in this process.
type running struct {
	t    *testing.T
	url  string
	log  *syncBuffer
	stop func()
}

// startWhole runs the service on a data directory until the test ends or stop is called. more is further YAML.
func startWhole(t *testing.T, dir, more string) *running {
	t.Helper()
	r := &running{t: t, log: &syncBuffer{}}
	err := r.start(dir, more)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *running) start(dir, more string) error {
	c, err := ParseConfig("statussync.yaml", fmt.Appendf(nil, registryConfig+more, dir))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan Ready, 1), make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Config: c, Version: "test", Logger: slog.New(slog.NewTextHandler(r.log, nil)), OnReady: func(x Ready) {
			select { // it comes again after each restart
			case ready <- x:
			default:
			}
		}})
	}()
	select {
	case x := <-ready:
		r.url = x.BaseURL
	case err := <-done:
		cancel()
		return err
	}
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				r.t.Errorf("stopped with %v", err)
			}
		})
	}
	r.t.Cleanup(r.stop)
	return nil
}

func (r *running) as(token string) *client.Client {
	r.t.Helper()
	tr := &http.Transport{MaxIdleConnsPerHost: 8}
	r.t.Cleanup(tr.CloseIdleConnections)
	c, err := client.New(client.Options{BaseURL: r.url, Token: token, HTTPClient: &http.Client{Transport: tr}})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// heartbeat sends one with a token and returns the status of the answer.
func (r *running) heartbeat(token, body string) int {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, r.url+"/heartbeat", strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	return resp.StatusCode
}

// do sends a raw request and returns the status and body of the answer.
func (r *running) do(token, method, path, body string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.url+"/api/v1"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func wantCode(t *testing.T, err error, code statussync.Code, parts ...string) {
	t.Helper()
	if statussync.CodeOf(err) != code {
		t.Errorf("%v has code %q, want %q", err, statussync.CodeOf(err), code)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%q does not say %q", err, p)
		}
	}
}

// waitFor polls until holds is true.
func waitFor(t *testing.T, what string, holds func() (bool, string)) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for {
		ok, last := holds()
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: last: %s", what, last)
		}
	}
}

// TestManagedRegistry: the whole life of managed servers and environments by the API, beside the configuration's, across
// a restart, without a secret ever coming out.
func TestManagedRegistry(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	r := startWhole(t, dir, "")
	ada := r.as("admin-token")
	ctx := t.Context()

	env, err := ada.AddEnvironment(ctx, wire.EnvironmentSpec{ID: "box-9", Owner: "u9", Address: "box-9.example.com"})
	if err != nil || env.Origin != statussync.OriginManaged || env.Name != "box-9" || env.Agent != statussync.AgentNone {
		t.Fatalf("%+v %v", env, err)
	}
	spec := wire.ServerSpec{
		ID: "weather", EnvironmentID: "box-9", Endpoint: "https://weather.example.com/mcp?key=query-secret", Labels: map[string]string{"team": "core"},
		Probe: &wire.ProbeSpec{Kind: "none", Interval: "1m", Headers: map[string]string{"Authorization": "Bearer header-secret"}},
	}
	s, err := ada.AddServer(ctx, spec)
	if err != nil || s.Origin != statussync.OriginManaged || s.Name != "weather" || s.Desired != statussync.DesiredRunning ||
		s.Transport != statussync.TransportStreamableHTTP || s.Endpoint != "https://weather.example.com/mcp" || s.Probe.IntervalSeconds != 60 || s.Status.Version != 1 {
		t.Fatalf("%+v %v", s, err)
	}
	// Servers of the API may live in environments of the configuration.
	if _, err := ada.AddServer(ctx, wire.ServerSpec{ID: "guest", EnvironmentID: "box-7", Probe: &wire.ProbeSpec{Kind: "none"}}); err != nil {
		t.Fatal(err)
	}

	// Conflicts say where the other comes from; nothing unknown is changed.
	_, err = ada.AddServer(ctx, spec)
	wantCode(t, err, statussync.CodeConflict, "body.id", "the managed registry")
	_, err = ada.AddServer(ctx, wire.ServerSpec{ID: "fixed"})
	wantCode(t, err, statussync.CodeConflict, "the configuration file")
	_, err = ada.SetServer(ctx, "fixed", wire.ServerSpec{})
	wantCode(t, err, statussync.CodeConflict, "the configuration file", "only be changed there")
	wantCode(t, ada.RemoveServer(ctx, "fixed"), statussync.CodeConflict, "the configuration file")
	_, err = ada.AddEnvironment(ctx, wire.EnvironmentSpec{ID: "box-7"})
	wantCode(t, err, statussync.CodeConflict, "the configuration file")
	_, err = ada.SetEnvironment(ctx, "box-7", wire.EnvironmentSpec{})
	wantCode(t, err, statussync.CodeConflict, "the configuration file")
	wantCode(t, ada.RemoveEnvironment(ctx, "box-7"), statussync.CodeConflict, "the configuration file")
	_, err = ada.RotateAgentToken(ctx, "box-7")
	wantCode(t, err, statussync.CodeConflict, "the configuration file")
	wantCode(t, ada.RemoveEnvironment(ctx, "box-9"), statussync.CodeConflict, `"weather"`)
	_, err = ada.SetServer(ctx, "nobody", wire.ServerSpec{})
	wantCode(t, err, statussync.CodeNotFound)
	wantCode(t, ada.RemoveServer(ctx, "nobody"), statussync.CodeNotFound)
	wantCode(t, ada.RemoveEnvironment(ctx, "nowhere"), statussync.CodeNotFound)
	_, err = ada.SetServer(ctx, "weather", wire.ServerSpec{ID: "other"})
	wantCode(t, err, statussync.CodeInvalid, "body.id")
	_, err = ada.AddServer(ctx, wire.ServerSpec{ID: "x", Probe: &wire.ProbeSpec{Timeout: "soon"}})
	wantCode(t, err, statussync.CodeInvalid, "body.probe.timeout")
	_, err = ada.AddServer(ctx, wire.ServerSpec{ID: "x y", Endpoint: "ftp://x"})
	wantCode(t, err, statussync.CodeInvalid, "body.id", "body.endpoint")
	for _, c := range []struct {
		status       int
		method, path string
		body         string
		says         string
	}{
		{422, "POST", "/servers", `{"id":"x","endpoit":"http://x/"}`, "endpoit"},
		{400, "POST", "/servers", `{`, ""},
		{413, "POST", "/servers", `{"id":"x","name":"` + strings.Repeat("n", 70<<10) + `"}`, "too_large"},
		{422, "PUT", "/servers/weather", `{"desired":"maybe"}`, "desired"},
		{400, "POST", "/environments", `{}`, "body.id"},
	} {
		if status, body := r.do("admin-token", c.method, c.path, c.body); status != c.status || !strings.Contains(body, c.says) {
			t.Errorf("%s %s %.40s: %d %s, want %d with %q", c.method, c.path, c.body, status, body, c.status, c.says)
		}
	}
	// Only an administrator changes anything, or sees which tokens there are.
	for _, token := range []string{"operator-token", "viewer-token"} {
		for _, route := range []string{
			"POST /servers", "PUT /servers/weather", "DELETE /servers/weather", "POST /environments", "PUT /environments/box-9", "DELETE /environments/box-9",
			"POST /environments/box-9/tokens", "GET /environments/box-9/tokens", "DELETE /environments/box-9/tokens/x", "POST /discovered/box-9/c/adopt",
		} {
			method, path, _ := strings.Cut(route, " ")
			if status, body := r.do(token, method, path, "{}"); status != 403 || !strings.Contains(body, "admin") {
				t.Errorf("%s with the %s: %d %s", route, token, status, body)
			}
		}
	}

	made, err := ada.RotateAgentToken(ctx, "box-9")
	if err != nil {
		t.Fatal(err)
	}
	if got := r.heartbeat(made.Token, `{"tool_statuses":[{"names":["weather"],"state":"running","status":"Up 2 hours"}]}`); got != 204 {
		t.Fatalf("the agent's token is not good at once: %d", got)
	}
	waitFor(t, "the agent's word", func() (bool, string) {
		s, err := ada.Server(ctx, "weather")
		return err == nil && s.Status.Health == statussync.HealthHealthy, fmt.Sprint(s, err)
	})

	r.stop()
	log := r.log.String()
	r = startWhole(t, dir, "")
	ada = r.as("admin-token")
	s, err = ada.Server(ctx, "weather")
	if err != nil || s.Origin != statussync.OriginManaged || s.Labels["team"] != "core" || s.Status.Health != statussync.HealthHealthy {
		t.Fatalf("after the restart: %+v %v", s, err)
	}
	if got := r.heartbeat(made.Token, `{"tool_statuses":[]}`); got != 204 {
		t.Errorf("the token after the restart: %d", got)
	}
	if _, err := ada.SetServer(ctx, "weather", wire.ServerSpec{EnvironmentID: "box-9", Probe: &wire.ProbeSpec{Kind: "none"}}); err != nil {
		t.Fatal(err)
	}
	if s, err = ada.Server(ctx, "weather"); err != nil || s.Endpoint != "" || len(s.Labels) != 0 {
		t.Errorf("PUT kept something: %+v %v", s, err)
	}

	// Nothing came out that should not.
	var all strings.Builder
	for _, path := range []string{"/servers", "/servers/weather", "/servers/weather/status?explain=true", "/servers/weather/history", "/environments", "/environments/box-9",
		"/environments/box-9/tokens", "/updates?kinds=status,server_added,server_changed,server_removed"} {
		status, body := r.do("admin-token", "GET", path, "")
		if status != 200 {
			t.Errorf("%s: %d %s", path, status, body)
		}
		all.WriteString(body)
	}
	for name, text := range map[string]string{"an answer": all.String(), "the log": log + r.log.String()} {
		for _, secret := range []string{"header-secret", "query-secret", made.Token} {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds %s", name, secret)
			}
		}
	}
	if !strings.Contains(log, "by=ada") || !strings.Contains(log, "id=weather") {
		t.Error("the log does not tell who changed what")
	}

	for _, id := range []string{"weather", "guest"} {
		if err := ada.RemoveServer(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if err := ada.RemoveEnvironment(ctx, "box-9"); err != nil {
		t.Fatal(err)
	}
	if got := r.heartbeat(made.Token, `{}`); got != 401 {
		t.Errorf("the token of a removed environment: %d", got)
	}
	r.stop()
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if fi, err := d.Info(); err != nil || fi.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v %v", path, fi.Mode(), err)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestManagedAndConfigured: a configuration that names what is managed is refused at the start, with what to do.
func TestManagedAndConfigured(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	r := startWhole(t, dir, "")
	if _, err := r.as("admin-token").AddServer(t.Context(), wire.ServerSpec{ID: "both", Probe: &wire.ProbeSpec{Kind: "none"}}); err != nil {
		t.Fatal(err)
	}
	r.stop()
	c, err := ParseConfig("statussync.yaml", fmt.Appendf(nil, "listen: 127.0.0.1:0\ndata: %s\nservers: [{id: both}]\n", dir))
	if err != nil {
		t.Fatal(err)
	}
	err = Run(t.Context(), Options{Config: c, Logger: slog.New(slog.DiscardHandler)})
	wantCode(t, err, statussync.CodeConflict, `the server "both" is managed by API already`, "statussync server remove both")
	r = startWhole(t, dir, "")
	if _, err := r.as("viewer-token").Server(t.Context(), "both"); err != nil {
		t.Error(err)
	}
}

// TestManagedVersions: a server that is removed and added again goes on counting, and a subscriber that comes back with
// an old cursor is told so in order.
func TestManagedVersions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	r := startWhole(t, dir, "")
	ada := r.as("admin-token")
	ctx := t.Context()
	spec := wire.ServerSpec{ID: "again", Probe: &wire.ProbeSpec{Kind: "none"}}
	s, err := ada.AddServer(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	page, err := ada.Servers(ctx, client.ServerQuery{})
	if err != nil {
		t.Fatal(err)
	}
	old, err := statussync.ParseCursor(page.Cursor)
	if err != nil {
		t.Fatal(err)
	}
	last := s.Status.Version
	for i := range 6 {
		if i == 3 { // what was removed is remembered across a restart
			if err := ada.RemoveServer(ctx, "again"); err != nil {
				t.Fatal(err)
			}
			r.stop()
			r = startWhole(t, dir, "")
			ada = r.as("admin-token")
		} else if err := ada.RemoveServer(ctx, "again"); err != nil {
			t.Fatal(err)
		}
		if s, err = ada.AddServer(ctx, spec); err != nil {
			t.Fatal(err)
		}
		if s.Status.Version != last+2 { // one for the removal, one for the first conclusion
			t.Errorf("version %d after %d", s.Status.Version, last)
		}
		last = s.Status.Version
	}
	timed, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var version uint64 = 1
	alive, told := true, 0
	for ev, err := range r.as("viewer-token").Subscribe(timed, client.SubscribeOptions{
		Filter: statussync.Filter{Clauses: []statussync.Clause{{ServerIDs: []string{"again"}}}}, Cursor: old,
	}) {
		if err != nil {
			t.Fatalf("%v after %d", err, told)
		}
		switch {
		case ev.Type == statussync.EventSubscribed && !ev.Recovered, ev.Type == statussync.EventResync:
			t.Fatalf("not continued: %+v", ev)
		case ev.Entry == nil:
			continue
		}
		e := ev.Entry
		if e.Version != version+1 || (e.Kind == statussync.KindServerRemoved) != alive {
			t.Fatalf("%s with version %d after %d", e.Kind, e.Version, version)
		}
		version, alive = e.Version, e.Kind == statussync.KindStatus
		if told++; version == last {
			break
		}
	}
	if told != 12 {
		t.Errorf("told %d entries", told)
	}
}

// TestAgentTokenRotation: heartbeats go on without a gap while the agent is given a new token.
func TestAgentTokenRotation(t *testing.T) {
	r := startWhole(t, filepath.Join(t.TempDir(), "data"), "")
	ada := r.as("admin-token")
	ctx := t.Context()
	if _, err := ada.AddEnvironment(ctx, wire.EnvironmentSpec{ID: "box-9"}); err != nil {
		t.Fatal(err)
	}
	var tokens []*wire.NewAgentToken
	for range 3 {
		made, err := ada.RotateAgentToken(ctx, "box-9")
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, made)
	}
	want := func(when string, statuses ...int) {
		t.Helper()
		for i, status := range statuses {
			if got := r.heartbeat(tokens[i].Token, `{}`); got != status {
				t.Errorf("%s: token %d is answered with %d, want %d", when, i, got, status)
			}
		}
	}
	want("after a second rotation", 401, 204, 204)
	list, err := ada.AgentTokens(ctx, "box-9")
	if err != nil || len(list.Items) != 2 || list.Items[0].ID != tokens[2].ID || list.Items[1].ID != tokens[1].ID {
		t.Fatalf("%+v %v", list, err)
	}
	if err := ada.DropAgentToken(ctx, "box-9", tokens[1].ID); err != nil {
		t.Fatal(err)
	}
	want("after the old one was dropped", 401, 401, 204)
	wantCode(t, ada.DropAgentToken(ctx, "box-9", tokens[1].ID), statussync.CodeNotFound)
	// An agent's token is good for nothing else.
	_, err = r.as(tokens[2].Token).Servers(ctx, client.ServerQuery{})
	wantCode(t, err, statussync.CodeForbidden)
	if env, err := ada.Environment(ctx, "box-9"); err != nil || env.Agent != statussync.AgentOK {
		t.Errorf("%+v %v", env, err)
	}
}

// TestAdopt: a container that nobody claimed becomes a server by one call, and then has the evidence of its agent.
func TestAdopt(t *testing.T) {
	r := startWhole(t, filepath.Join(t.TempDir(), "data"), "")
	ada := r.as("admin-token")
	ctx := t.Context()
	report := `{"tool_statuses":[{"names":["weather"],"image":"img","state":"running","status":"Up 2 hours"},{"names":["odd name"],"state":"running","status":"Up 2 hours"},
		{"names":["fixed"],"state":"running","status":"Up 2 hours"}]}`
	if got := r.heartbeat("agent-token-7", report); got != 204 {
		t.Fatal(got)
	}
	waitFor(t, "discovery", func() (bool, string) {
		page, err := ada.Discovered(ctx, 0, "")
		return err == nil && len(page.Items) == 2, fmt.Sprint(page, err)
	})
	for _, c := range []struct{ env, container string }{{"box-7", "nothing"}, {"box-7", "fixed"}, {"nowhere", "weather"}} {
		_, err := ada.Adopt(ctx, c.env, c.container, wire.ServerSpec{})
		wantCode(t, err, statussync.CodeNotFound, c.env)
	}
	_, err := ada.Adopt(ctx, "box-7", "odd name", wire.ServerSpec{})
	wantCode(t, err, statussync.CodeInvalid, "body.id")
	_, err = ada.Adopt(ctx, "box-7", "weather", wire.ServerSpec{EnvironmentID: "box-9"})
	wantCode(t, err, statussync.CodeInvalid, "body.environment_id")
	_, err = ada.Adopt(ctx, "box-7", "weather", wire.ServerSpec{ID: "fixed"})
	wantCode(t, err, statussync.CodeConflict, "the configuration file")

	if status, body := r.do("admin-token", "POST", "/discovered/box-7/weather/adopt", ""); status != 201 || !strings.Contains(body, `"origin":"managed"`) {
		t.Fatalf("without a body: %d %s", status, body)
	}
	s, err := ada.Adopt(ctx, "box-7", "odd name", wire.ServerSpec{ID: "odd", Labels: map[string]string{"team": "core"}})
	if err != nil || s.Container != "odd name" || s.EnvironmentID != "box-7" || s.Labels["team"] != "core" {
		t.Fatalf("%+v %v", s, err)
	}
	_, err = ada.Adopt(ctx, "box-7", "weather", wire.ServerSpec{ID: "twice"})
	wantCode(t, err, statussync.CodeNotFound)
	if page, err := ada.Discovered(ctx, 0, ""); err != nil || len(page.Items) != 0 {
		t.Errorf("still unclaimed: %+v %v", page, err)
	}
	if got := r.heartbeat("agent-token-7", report); got != 204 {
		t.Fatal(got)
	}
	waitFor(t, "the container's evidence", func() (bool, string) {
		s, err := ada.Server(ctx, "weather")
		return err == nil && s.Status.State == statussync.StateRunning, fmt.Sprint(s, err)
	})
}

// TestHostileAddresses: whatever somebody defines by API, nothing is connected to that is not public, unless the
// configuration allows it; the service says why.
func TestHostileAddresses(t *testing.T) {
	victim, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var touched atomic.Int64
	served := make(chan struct{})
	go func() {
		defer close(served)
		srv := &http.Server{
			Handler:   http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
			ConnState: func(_ net.Conn, s http.ConnState) { touched.Add(int64(1 - min(1, int(s)))) }, // 1 for StateNew
		}
		_ = srv.Serve(victim) // ends with the listener
		srv.Close()
	}()
	t.Cleanup(func() { victim.Close(); <-served })
	_, port, _ := net.SplitHostPort(victim.Addr().String())

	r := startWhole(t, filepath.Join(t.TempDir(), "data"), "")
	ada := r.as("admin-token")
	ctx := t.Context()
	if _, err := ada.AddEnvironment(ctx, wire.EnvironmentSpec{ID: "box-9", Address: "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	for i, host := range []string{"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "169.254.169.254", "10.0.0.1", "127.1.2.3"} {
		spec := wire.ServerSpec{ID: fmt.Sprint("s", i), Endpoint: "http://" + host + ":" + port + "/mcp"}
		if i%2 == 1 {
			spec.Endpoint, spec.Probe = "https://public.example.com/", &wire.ProbeSpec{URL: "http://" + host + ":" + port + "/"}
		}
		if _, err := ada.AddServer(ctx, spec); err != nil {
			t.Fatalf("%s: %v", host, err)
		}
		res, err := ada.Probe(ctx, spec.ID)
		if err != nil || res.Outcome != statussync.OutcomeFailure || res.Cause != "refused_by_guard" {
			t.Errorf("%s: %+v %v", host, res, err)
		}
	}
	// An agent's word does not open a door either: its address and port make the one of an adopted server.
	made, err := ada.RotateAgentToken(ctx, "box-9")
	if err != nil {
		t.Fatal(err)
	}
	for env, token := range map[string]string{"box-9": made.Token, "box-7": "agent-token-7"} {
		body := `{"tool_statuses":[{"names":["trap"],"state":"running","status":"Up 2 hours","ports":[{"public_port":` + port + `,"private_port":80,"type":"tcp"}]}]}`
		if got := r.heartbeat(token, body); got != 204 {
			t.Fatal(got)
		}
		waitFor(t, "discovery", func() (bool, string) {
			_, err := ada.Adopt(ctx, env, "trap", wire.ServerSpec{ID: "trap-" + env})
			return err == nil || statussync.CodeOf(err) == statussync.CodeConflict, fmt.Sprint(err)
		})
		if got := r.heartbeat(token, body); got != 204 { // from now on its port is known
			t.Fatal(got)
		}
		waitFor(t, "a probe of what was adopted", func() (bool, string) {
			res, err := ada.Probe(ctx, "trap-"+env)
			return err == nil && res.Cause == "refused_by_guard", fmt.Sprint(res, err)
		})
	}
	if n := touched.Load(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
	r.stop()

	r = startWhole(t, filepath.Join(t.TempDir(), "data"), "allow_networks: [127.0.0.1/32]\n")
	ada = r.as("admin-token")
	if _, err := ada.AddServer(ctx, wire.ServerSpec{ID: "ok", Endpoint: "http://127.0.0.1:" + port + "/mcp", Probe: &wire.ProbeSpec{Kind: "http"}}); err != nil {
		t.Fatal(err)
	}
	if res, err := ada.Probe(ctx, "ok"); err != nil || res.Outcome != statussync.OutcomeSuccess || touched.Load() == 0 {
		t.Errorf("what the configuration allows: %+v %v, %d connections", res, err, touched.Load())
	}
}

// TestManyManagedServers: thousands are added by API, then some removed, while subscribers listen; each of them ends
// with what the service has. E2E_FULL=1 asks for 3,000 and 200 within a minute, which is not meant for the race detector.
func TestManyManagedServers(t *testing.T) {
	servers, subscribers, limit := 500, 50, 2*time.Minute
	if os.Getenv("E2E_FULL") == "1" {
		servers, subscribers, limit = 3000, 200, time.Minute
	}
	r := startWhole(t, filepath.Join(t.TempDir(), "data"), "")
	ada := r.as("admin-token")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()

	type fleet struct {
		versions map[string]uint64 // of those that there are
		highest  map[string]uint64 // ever seen
		err      error
	}
	const last = "zz-last" // the last server that is added: who was told of it was told of everything before
	results := make(chan fleet, subscribers)
	var listening sync.WaitGroup
	listening.Add(subscribers)
	for range subscribers {
		go func() {
			f := fleet{versions: map[string]uint64{}, highest: map[string]uint64{}}
			var once sync.Once
			for ev, err := range r.as("viewer-token").Subscribe(ctx, client.SubscribeOptions{Snapshot: true}) {
				if err != nil {
					f.err = err
					break
				}
				switch ev.Type {
				case statussync.EventResync:
					f.err = errors.New("a resync without a cause")
				case statussync.EventSnapshot:
					for _, s := range ev.Items {
						f.versions[s.ID] = s.Status.Version
					}
				case statussync.EventSnapshotEnd:
					once.Do(listening.Done)
				case statussync.EventEntry:
					e := ev.Entry
					if e.Version <= f.highest[e.ServerID] {
						f.err = fmt.Errorf("%s went from version %d to %d", e.ServerID, f.highest[e.ServerID], e.Version)
					}
					f.highest[e.ServerID], f.versions[e.ServerID] = e.Version, e.Version
					if e.Kind == statussync.KindServerRemoved {
						delete(f.versions, e.ServerID)
					}
				}
				if f.err != nil || ev.Entry != nil && ev.Entry.ServerID == last {
					break
				}
			}
			once.Do(listening.Done)
			results <- f
		}()
	}
	listening.Wait()

	began := time.Now()
	const writers = 8
	errs := make(chan error, writers)
	for w := range writers {
		go func() {
			c := r.as("admin-token")
			for i := w; i < servers; i += writers {
				spec := wire.ServerSpec{ID: fmt.Sprintf("m%04d", i), EnvironmentID: "box-7", Probe: &wire.ProbeSpec{Kind: "none"}, Labels: map[string]string{"n": fmt.Sprint(i)}}
				if i%5 == 0 { // some go and come back
					if _, err := c.AddServer(ctx, spec); err != nil {
						errs <- err
						return
					}
					if err := c.RemoveServer(ctx, spec.ID); err != nil {
						errs <- err
						return
					}
				}
				if _, err := c.AddServer(ctx, spec); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(began)
	t.Logf("%d servers added, a fifth of them twice, in %v", servers, took.Round(time.Millisecond))
	if took > limit {
		t.Errorf("took longer than %v", limit)
	}
	if _, err := ada.AddServer(ctx, wire.ServerSpec{ID: last, Probe: &wire.ProbeSpec{Kind: "none"}}); err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{}
	for s, err := range ada.AllServers(ctx, client.ServerQuery{Limit: 1000}) {
		if err != nil {
			t.Fatal(err)
		}
		want[s.ID] = s.Status.Version
	}
	if len(want) != servers+2 { // the configuration's, and the last
		t.Errorf("there are %d servers", len(want))
	}
	for range subscribers {
		f := <-results
		if f.err != nil {
			t.Error(f.err)
			continue
		}
		for id, v := range want {
			if f.versions[id] != v {
				t.Errorf("a subscriber has version %d of %s, the service %d", f.versions[id], id, v)
				break
			}
		}
		if len(f.versions) != len(want) {
			t.Errorf("a subscriber has %d servers, the service %d", len(f.versions), len(want))
		}
	}
}
