package registry_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/registry"
	"github.com/agentopia/statussync/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shaky is the real hub and the real store, which can be made to fail.
type shaky struct {
	*hub.Hub
	*sqlite.Store
	hubDown, storeDown atomic.Bool
	lost               atomic.Bool // the store makes the change and fails nevertheless
	agents             atomic.Pointer[map[[sha256.Size]byte]string]
}

var errDown = statussync.NewError(statussync.CodeUnavailable, "down for the test", nil)

func (s *shaky) Submit(ctx context.Context, obs ...statussync.Observation) ([]*statussync.Entry, error) {
	if s.hubDown.Load() {
		return nil, errDown
	}
	return s.Hub.Submit(ctx, obs...)
}

func (s *shaky) ChangeManaged(ctx context.Context, c *statussync.ManagedChange) error {
	if s.storeDown.Load() {
		return errDown
	}
	err := s.Store.ChangeManaged(ctx, c)
	if s.lost.Load() {
		return errDown
	}
	return err
}

func (s *shaky) agent(token string) string {
	all := s.agents.Load()
	if all == nil {
		return ""
	}
	return (*all)[sha256.Sum256([]byte(token))]
}

// rig runs a hub on a new store, with one server and one environment of the configuration.
func rig(t *testing.T) (*shaky, *registry.Manager) {
	t.Helper()
	store, err := sqlite.Open(t.Context(), sqlite.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	h, err := hub.New(hub.Options{Journal: store})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	<-h.Started()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, store.Close()); err != nil {
			t.Error(err)
		}
	})
	_, err = h.Submit(t.Context(), &statussync.RegistryUpdate{
		Origin: statussync.OriginConfig, Full: true,
		Environments: []statussync.Environment{{ID: "box-7", Name: "box-7", AgentURL: "http://box-7.example.com:30000", Origin: statussync.OriginConfig}},
		Servers:      []statussync.Server{{ID: "fixed", Name: "fixed", EnvironmentID: "box-7", Origin: statussync.OriginConfig}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &shaky{Hub: h, Store: store}
	m := manager(t, s)
	return s, m
}

func manager(t *testing.T, s *shaky) *registry.Manager {
	t.Helper()
	m, err := registry.New(t.Context(), registry.Options{Store: s, Hub: s, Agents: func(a map[[sha256.Size]byte]string) { s.agents.Store(&a) }})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
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

// TestHubDown: what the hub cannot take is stored and told, and handed over later, by Run or by the next change.
func TestHubDown(t *testing.T) {
	s, m := rig(t)
	s.hubDown.Store(true)
	_, err := m.AddServer(t.Context(), statussync.Server{ID: "a"})
	wantCode(t, err, statussync.CodeUnavailable, "this is stored", "takes effect as soon as")
	if all, err := s.Managed(t.Context()); err != nil || len(all.Servers) != 1 {
		t.Fatalf("%+v %v", all, err)
	}
	if _, err := s.Server("a"); statussync.CodeOf(err) != statussync.CodeNotFound {
		t.Errorf("the hub knows it already: %v", err)
	}
	_, err = m.AddServer(t.Context(), statussync.Server{ID: "b"}) // nothing new before the old is settled
	wantCode(t, err, statussync.CodeUnavailable)
	s.hubDown.Store(false)
	if _, err := m.AddServer(t.Context(), statussync.Server{ID: "b"}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b"} {
		if v, err := s.Server(id); err != nil || v.Server.Origin != statussync.OriginManaged {
			t.Errorf("%s: %+v %v", id, v, err)
		}
	}

	// Run does it without another change.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	s.hubDown.Store(true)
	wantCode(t, m.RemoveServer(t.Context(), "a"), statussync.CodeUnavailable, "this is stored")
	sub, err := s.Subscribe(t.Context(), statussync.SubscribeRequest{Filter: statussync.Filter{Clauses: []statussync.Clause{{Kinds: []statussync.Kind{statussync.KindServerRemoved}}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	s.hubDown.Store(false)
	wait, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	for gone := false; !gone; {
		evs, err := sub.Next(wait, make([]statussync.Event, 0, 8))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range evs {
			gone = gone || e.Entry != nil && e.Entry.ServerID == "a"
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestStoreDown: a change that is not stored has not happened; one that was stored although it failed is found again.
func TestStoreDown(t *testing.T) {
	s, m := rig(t)
	s.storeDown.Store(true)
	_, err := m.AddServer(t.Context(), statussync.Server{ID: "a"})
	wantCode(t, err, statussync.CodeUnavailable)
	if _, err := s.Server("a"); statussync.CodeOf(err) != statussync.CodeNotFound {
		t.Errorf("in force although not stored: %v", err)
	}
	s.storeDown.Store(false)
	s.lost.Store(true)
	_, err = m.AddServer(t.Context(), statussync.Server{ID: "a"})
	wantCode(t, err, statussync.CodeUnavailable)
	s.lost.Store(false)
	_, err = m.AddServer(t.Context(), statussync.Server{ID: "a"})
	wantCode(t, err, statussync.CodeConflict, `"a" exists already`, "the managed registry")
	if _, err := s.Server("a"); err != nil {
		t.Errorf("stored, and not in force: %v", err)
	}
}

// TestRefused: an id that another registry takes at the same moment is not left in the store.
func TestRefused(t *testing.T) {
	s, m := rig(t)
	race := &racing{shaky: s}
	m2, err := registry.New(t.Context(), registry.Options{Store: s, Hub: race})
	if err != nil {
		t.Fatal(err)
	}
	_ = m
	_, err = m2.AddServer(t.Context(), statussync.Server{ID: "late"})
	wantCode(t, err, statussync.CodeConflict, "late", "config")
	if all, err := s.Managed(t.Context()); err != nil || len(all.Servers) != 0 {
		t.Errorf("left in the store: %+v %v", all, err)
	}
	wantCode(t, m2.RemoveServer(t.Context(), "late"), statussync.CodeConflict, "the configuration file")
}

// racing lets the configuration define whatever is submitted just before it is.
type racing struct{ *shaky }

func (r *racing) Submit(ctx context.Context, obs ...statussync.Observation) ([]*statussync.Entry, error) {
	u := obs[0].(*statussync.RegistryUpdate)
	theirs := &statussync.RegistryUpdate{Origin: statussync.OriginConfig}
	for _, v := range u.Servers {
		v.Origin = statussync.OriginConfig
		theirs.Servers = append(theirs.Servers, v)
	}
	if _, err := r.Hub.Submit(ctx, theirs); err != nil {
		return nil, err
	}
	return r.shaky.Submit(ctx, obs...)
}

// TestStart: what another manager stored is in force, what the hub remembers and the store does not is removed, and
// what both registries define is named.
func TestStart(t *testing.T) {
	s, m := rig(t)
	ctx := t.Context()
	if _, err := m.AddEnvironment(ctx, statussync.Environment{ID: "box-9", Address: "box-9.example.com"}); err != nil {
		t.Fatal(err)
	}
	token, valid, err := m.RotateAgentToken(ctx, "box-9")
	if err != nil || len(valid) != 1 || s.agent(token) != "box-9" {
		t.Fatalf("%v %v %q", err, valid, s.agent(token))
	}
	secret := map[string]string{"Authorization": "Bearer hidden"}
	for _, id := range []string{"a", "b"} {
		if _, err := m.AddServer(ctx, statussync.Server{ID: id, EnvironmentID: "box-9", Probe: statussync.ProbeSpec{Headers: secret}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Store.ChangeManaged(ctx, &statussync.ManagedChange{RemoveServers: []string{"b"}}); err != nil { // a crash in between
		t.Fatal(err)
	}
	s.agents.Store(nil)
	m = manager(t, s)
	if s.agent(token) != "box-9" {
		t.Error("the token is not in force")
	}
	if v, err := s.Server("a"); err != nil || v.Server.Probe.Headers["Authorization"] != secret["Authorization"] {
		t.Errorf("%+v %v", v, err)
	}
	if _, err := s.Server("b"); statussync.CodeOf(err) != statussync.CodeNotFound {
		t.Errorf("what is not stored is still in force: %v", err)
	}
	if v, err := s.Environment("box-9"); err != nil || !v.Environment.HasToken || v.Agent != statussync.AgentNeverSeen {
		t.Errorf("%+v %v", v, err)
	}
	err = m.Conflicts(ctx, &statussync.RegistryUpdate{
		Servers: []statussync.Server{{ID: "a"}, {ID: "c"}}, Environments: []statussync.Environment{{ID: "box-9"}},
	})
	wantCode(t, err, statussync.CodeConflict, `the server "a" is managed by API already`, "statussync server remove a", `the environment "box-9"`)
	if err := m.Conflicts(ctx, &statussync.RegistryUpdate{Servers: []statussync.Server{{ID: "c"}}}); err != nil {
		t.Error(err)
	}
}

// TestTokens: two are valid at a time, also where the clock stands still, and which environment has an agent follows.
func TestTokens(t *testing.T) {
	s, m := rig(t)
	ctx := t.Context()
	if _, err := m.AddEnvironment(ctx, statussync.Environment{ID: "box-9"}); err != nil {
		t.Fatal(err)
	}
	agent := func() statussync.AgentState {
		v, err := s.Environment("box-9")
		if err != nil {
			t.Fatal(err)
		}
		return v.Agent
	}
	if agent() != statussync.AgentNone {
		t.Errorf("an agent without a token: %s", agent())
	}
	var all []string
	for i := range 4 {
		token, valid, err := m.RotateAgentToken(ctx, "box-9")
		if err != nil || len(valid) != min(i+1, statussync.MaxAgentTokens) {
			t.Fatalf("%v %v", valid, err)
		}
		all = append(all, token)
		for j, old := range all {
			if ok := s.agent(old) == "box-9"; ok != (j >= i-1) {
				t.Errorf("after %d rotations token %d is valid: %v", i+1, j, ok)
			}
		}
	}
	if agent() != statussync.AgentNeverSeen {
		t.Errorf("no agent with a token: %s", agent())
	}
	// A definition is replaced; its tokens stay.
	if _, err := m.SetEnvironment(ctx, statussync.Environment{ID: "box-9", Owner: "u2"}); err != nil || s.agent(all[3]) != "box-9" || agent() != statussync.AgentNeverSeen {
		t.Errorf("%v %q %s", err, s.agent(all[3]), agent())
	}
	list, err := m.AgentTokens(ctx, "box-9")
	if err != nil || len(list) != 2 || !list[0].CreatedAt.After(list[1].CreatedAt) {
		t.Fatalf("%v %v", list, err)
	}
	wantCode(t, m.DropAgentToken(ctx, "box-9", "000000000000"), statussync.CodeNotFound, "000000000000")
	for i, want := range []statussync.AgentState{statussync.AgentNeverSeen, statussync.AgentNone} {
		if err := m.DropAgentToken(ctx, "box-9", list[i].ID()); err != nil {
			t.Fatal(err)
		}
		if agent() != want {
			t.Errorf("after %d were dropped: %s, want %s", i+1, agent(), want)
		}
	}
	if s.agent(all[2])+s.agent(all[3]) != "" {
		t.Error("a dropped token is still valid")
	}
	for _, err := range []error{m.DropAgentToken(ctx, "box-7", "x"), second(m.AgentTokens(ctx, "box-7"))} {
		wantCode(t, err, statussync.CodeConflict, "the configuration file")
	}
	_, _, err = m.RotateAgentToken(ctx, "nowhere")
	wantCode(t, err, statussync.CodeNotFound)
}

func second[T any](_ T, err error) error { return err }

// TestValidation: each fault is named by its field, all of them at once, and nothing of it is stored.
func TestValidation(t *testing.T) {
	s, m := rig(t)
	ctx := t.Context()
	many := map[string]string{}
	for i := range 70 {
		many[fmt.Sprint("X-", i)] = "v"
	}
	retries := 21
	probe := func(p statussync.ProbeSpec) statussync.Server { return statussync.Server{ID: "a", Probe: p} }
	for _, c := range []struct {
		field string
		s     statussync.Server
	}{
		{"id", statussync.Server{}}, {"id", statussync.Server{ID: "a b"}}, {"id", statussync.Server{ID: ".."}}, {"id", statussync.Server{ID: strings.Repeat("a", 129)}},
		{"name", statussync.Server{ID: "a", Name: "a\x1b[31m"}}, {"owner", statussync.Server{ID: "a", Owner: "u\u202e"}},
		{"type", statussync.Server{ID: "a", Type: strings.Repeat("t", 257)}}, {"container", statussync.Server{ID: "a", Container: "c\n"}},
		{"environment_id", statussync.Server{ID: "a", EnvironmentID: "nowhere"}}, {"environment_id", statussync.Server{ID: "a", EnvironmentID: "a/b"}},
		{"transport", statussync.Server{ID: "a", Transport: "carrier-pigeon"}}, {"desired", statussync.Server{ID: "a", Desired: "unknown"}},
		{"endpoint", statussync.Server{ID: "a", Endpoint: "ftp://x"}}, {"endpoint", statussync.Server{ID: "a", Endpoint: "http://u:secret@x/"}},
		{"endpoint", statussync.Server{ID: "a", Endpoint: "http://x:99999/"}}, {"endpoint", statussync.Server{ID: "a", Endpoint: "http://"}},
		{"endpoint", statussync.Server{ID: "a", Endpoint: "http://x/" + strings.Repeat("y", 2048)}},
		{"endpoint", statussync.Server{ID: "a", EnvironmentID: "box-7", Endpoint: "http://BOX-7.example.com:30000/mcp"}},
		{"probe.url", statussync.Server{ID: "a", EnvironmentID: "box-7", Endpoint: "http://x/", Probe: statussync.ProbeSpec{URL: "http://box-7.example.com:30000/health"}}},
		{"labels", statussync.Server{ID: "a", Labels: map[string]string{"": "x"}}}, {"labels", statussync.Server{ID: "a", Labels: map[string]string{"a=b": "x"}}},
		{"labels.team", statussync.Server{ID: "a", Labels: map[string]string{"team": "\x00"}}}, {"labels", statussync.Server{ID: "a", Labels: many}},
		{"capabilities", statussync.Server{ID: "a", Capabilities: map[string]any{"x": strings.Repeat("y", 20<<10)}}},
		{"probe.kind", probe(statussync.ProbeSpec{Kind: "ftp"})}, {"probe.path", probe(statussync.ProbeSpec{Path: "health"})},
		{"probe.interval", probe(statussync.ProbeSpec{Interval: time.Millisecond})}, {"probe.timeout", probe(statussync.ProbeSpec{Timeout: -1})},
		{"probe.slow_after", probe(statussync.ProbeSpec{SlowAfter: 31 * 24 * time.Hour})}, {"probe.max_retries", probe(statussync.ProbeSpec{MaxRetries: &retries})},
		{"probe.backoff_multiplier", probe(statussync.ProbeSpec{BackoffMultiplier: 0.5})}, {"probe.rise", probe(statussync.ProbeSpec{Rise: -1})},
		{"probe.expect", probe(statussync.ProbeSpec{Expect: "closed"})},
		{"probe.canary.tool", probe(statussync.ProbeSpec{Canary: statussync.Canary{Expect: "x"}})},
		{"probe.canary.arguments", probe(statussync.ProbeSpec{Canary: statussync.Canary{Tool: "t", Arguments: strings.Repeat("x", statussync.MaxCanaryArguments+1)}})},
		{"probe.canary", probe(statussync.ProbeSpec{Kind: statussync.ProbeHTTP, Canary: statussync.Canary{Tool: "t"}})}, {"probe.headers", probe(statussync.ProbeSpec{Headers: many})},
		{"probe.headers", probe(statussync.ProbeSpec{Headers: map[string]string{"A B": "x"}})},
		{"probe.headers", probe(statussync.ProbeSpec{Headers: map[string]string{"A": "x\r\nB: y"}})},
		{"probe.headers", probe(statussync.ProbeSpec{Headers: map[string]string{"A": strings.Repeat("x", 9000)}})},
	} {
		_, err := m.AddServer(ctx, c.s)
		wantCode(t, err, statussync.CodeInvalid, c.field+": ")
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%v shows a password", err)
		}
	}
	_, err := m.AddServer(ctx, statussync.Server{ID: "a b", Endpoint: "ftp://x", Desired: "gone"})
	for _, field := range []string{"id: ", "endpoint: ", "desired: "} {
		wantCode(t, err, statussync.CodeInvalid, field)
	}
	_, err = m.AddServer(ctx, statussync.Server{ID: "a", EnvironmentID: "box-7", Container: "fixed"})
	wantCode(t, err, statussync.CodeConflict, "container: ", `the server "fixed"`)
	if _, err = m.AddServer(ctx, statussync.Server{ID: "beside", EnvironmentID: "box-7"}); err != nil {
		t.Fatal(err)
	}
	_, err = m.AddServer(ctx, statussync.Server{ID: "a", EnvironmentID: "box-7", Container: "fixed"}) // also among our own
	wantCode(t, err, statussync.CodeConflict, "container: ", `the server "fixed"`)
	if err := m.RemoveServer(ctx, "beside"); err != nil {
		t.Fatal(err)
	}

	for field, e := range map[string]statussync.Environment{
		"id": {ID: "a/b"}, "name": {ID: "a", Name: "\x07"}, "owner": {ID: "a", Owner: "\u200b"}, "address": {ID: "a", Address: "host:80"},
		"agent_url": {ID: "a", AgentURL: "box:30000"},
	} {
		_, err := m.AddEnvironment(ctx, e)
		wantCode(t, err, statussync.CodeInvalid, field+": ")
	}
	// The agent's address must not become a server's afterwards either.
	if _, err := m.AddEnvironment(ctx, statussync.Environment{ID: "box-9"}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.AddServer(ctx, statussync.Server{ID: "web", EnvironmentID: "box-9", Endpoint: "https://box-9.example.com/mcp"}); err != nil {
		t.Fatal(err)
	}
	_, err = m.SetEnvironment(ctx, statussync.Environment{ID: "box-9", AgentURL: "https://box-9.example.com:443"})
	wantCode(t, err, statussync.CodeInvalid, "agent_url: ", `"web"`)
	_, err = m.SetEnvironment(ctx, statussync.Environment{ID: "box-9", Address: "BOX-9.example.com", AgentURL: "https://agent.example.com:443"})
	wantCode(t, err, statussync.CodeInvalid, "address: with the port of agent_url", `"web"`)
	_, err = m.AddServer(ctx, statussync.Server{ID: "door", EnvironmentID: "box-7", Endpoint: "https://BOX-7.example.com.:30000/mcp"})
	wantCode(t, err, statussync.CodeInvalid, "endpoint: is the address of the agent")
	for i, target := range []string{"http://localhost:30000/mcp", "http://127.0.0.1:30000", "http://[::1]:30000", "http://10.0.0.7:30000/health"} {
		id := "local-" + string(rune('a'+i))
		if _, err := m.AddEnvironment(ctx, statussync.Environment{ID: id, Address: "10.0.0.7", AgentURL: "http://LOCALHOST:30000"}); err != nil {
			t.Fatal(err)
		}
		_, err := m.AddServer(ctx, statussync.Server{ID: "door", EnvironmentID: id, Probe: statussync.ProbeSpec{URL: target}})
		wantCode(t, err, statussync.CodeInvalid, "probe.url: is the address of the agent")
		if err := m.RemoveEnvironment(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, m.RemoveEnvironment(ctx, "box-9"), statussync.CodeConflict, `"web"`)
	_, err = m.AddServer(ctx, statussync.Server{ID: "web2", EnvironmentID: "box-9", Container: "web"})
	wantCode(t, err, statussync.CodeConflict, "container: ", `the server "web"`)

	if all, err := s.Managed(ctx); err != nil || len(all.Servers) != 1 || len(all.Environments) != 1 {
		t.Errorf("%+v %v", all, err)
	}
}
