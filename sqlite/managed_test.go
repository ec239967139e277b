package sqlite

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/agentopia/statussync"
)

func managedServer(id string) statussync.Server {
	retries := 2
	return statussync.Server{
		ID: id, Name: "the " + id, EnvironmentID: "box-9", Owner: "u1", Container: id, Endpoint: "https://" + id + ".example.com/mcp",
		Transport: statussync.TransportSSE, Type: "demo", Desired: statussync.DesiredStopped, Labels: map[string]string{"team": "core"},
		Capabilities: map[string]any{"tools": true}, Origin: statussync.OriginManaged, Disabled: true,
		Probe: statussync.ProbeSpec{
			Kind: statussync.ProbeHTTP, URL: "https://" + id + ".example.com/health", Path: "/h", Interval: time.Minute, Timeout: time.Second,
			MaxRetries: &retries, BackoffMultiplier: 1.5, Rise: 3, StartGrace: time.Second, SlowAfter: time.Second, Expect: "open",
			Headers: map[string]string{"Authorization": "Bearer the-secret-of-" + id},
		},
	}
}

func managedToken(env, token string, at int64) statussync.AgentToken {
	return statussync.AgentToken{EnvironmentID: env, Hash: sha256.Sum256([]byte(token)), CreatedAt: time.Unix(0, at).UTC()}
}

func change(t testing.TB, s *Store, c *statussync.ManagedChange) {
	t.Helper()
	if err := s.ChangeManaged(context.Background(), c); err != nil {
		t.Fatal(err)
	}
}

func wantManaged(t testing.TB, s *Store, want *statussync.Managed) {
	t.Helper()
	got, err := s.Managed(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("the registry (-want +got):\n%s", d)
	}
}

// TestManaged: what is stored comes back whole after the process died, and no token stands in the file.
func TestManaged(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	s := open(t, o)
	wantManaged(t, s, &statussync.Managed{})
	box := statussync.Environment{ID: "box-9", Name: "box", Owner: "u1", Address: "box-9.example.com", AgentURL: "https://box-9.example.com:30000", Origin: statussync.OriginManaged}
	bare := statussync.Environment{ID: "bare", Name: "bare", Origin: statussync.OriginManaged}
	const secret = "ssa_NOT-IN-THE-FILE"
	first, second := managedToken("box-9", secret, 10), managedToken("box-9", "other-"+secret, 20)
	change(t, s, &statussync.ManagedChange{
		PutEnvironments: []statussync.Environment{box, bare}, PutServers: []statussync.Server{managedServer("b"), managedServer("a")},
		PutTokens: []statussync.AgentToken{second, first},
	})
	box.HasToken = true // not stored: it is whether there is one
	all := &statussync.Managed{
		Environments: []statussync.Environment{bare, box}, Servers: []statussync.Server{managedServer("a"), managedServer("b")},
		Tokens: []statussync.AgentToken{first, second},
	}
	wantManaged(t, s, all)
	for _, f := range []string{s.path, s.path + "-wal"} { // before the log is emptied into the file
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte(secret)) {
			t.Errorf("%s holds a token", f)
		}
	}
	if fi, err := os.Stat(s.path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v %v", fi.Mode(), err)
	}
	crash(t, s)
	s = open(t, o)
	wantManaged(t, s, all)

	// Replacing is whole, removing an environment takes its tokens along.
	plain := statussync.Server{ID: "a", Name: "a", Origin: statussync.OriginManaged}
	change(t, s, &statussync.ManagedChange{PutServers: []statussync.Server{plain}, RemoveServers: []string{"b", "never"}, RemoveTokens: [][32]byte{first.Hash}})
	wantManaged(t, s, &statussync.Managed{Environments: all.Environments, Servers: []statussync.Server{plain}, Tokens: []statussync.AgentToken{second}})
	change(t, s, &statussync.ManagedChange{RemoveEnvironments: []string{"box-9"}})
	wantManaged(t, s, &statussync.Managed{Environments: []statussync.Environment{bare}, Servers: []statussync.Server{plain}})
	change(t, s, &statussync.ManagedChange{})

	// Other writes go on with the store's own setting.
	if n, err := s.w.number(`PRAGMA synchronous`); err != nil || n != 1 {
		t.Errorf("synchronous is %d %v, not NORMAL", n, err)
	}
	mustAppend(t, s, &statussync.Batch{Entries: updates("e1", 0, 3, 20)})
	wantRead(t, s, 0, 3)
}

func TestManagedTrouble(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	change(t, s, &statussync.ManagedChange{PutServers: []statussync.Server{managedServer("a")}})

	// All or nothing: the second can't be stored.
	bad := managedServer("c")
	bad.Capabilities = map[string]any{"f": func() {}}
	err := s.ChangeManaged(t.Context(), &statussync.ManagedChange{RemoveServers: []string{"a"}, PutServers: []statussync.Server{managedServer("b"), bad}})
	wantError(t, err, statussync.CodeInvalid, "servers[1]")
	wantManaged(t, s, &statussync.Managed{Servers: []statussync.Server{managedServer("a")}})

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = s.ChangeManaged(ctx, &statussync.ManagedChange{RemoveServers: []string{"a"}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	wantManaged(t, s, &statussync.Managed{Servers: []statussync.Server{managedServer("a")}})

	// What a newer version wrote is refused by name, and no secret is shown.
	if _, err := s.w.conn.ExecContext(t.Context(), `UPDATE managed_servers SET json = CAST('{"V":7,"Server":{}}' AS BLOB)`); err != nil {
		t.Fatal(err)
	}
	_, err = s.Managed(t.Context())
	wantError(t, err, statussync.CodeUnavailable, `the managed server "a"`, "newer version", s.path)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = s.Managed(t.Context())
	wantError(t, err, statussync.CodeUnavailable)
	wantError(t, s.ChangeManaged(t.Context(), &statussync.ManagedChange{RemoveServers: []string{"a"}}), statussync.CodeUnavailable)
}

// TestManagedModel: any sequence of changes leaves what a map would hold.
func TestManagedModel(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	servers, envs, tokens := map[string]statussync.Server{}, map[string]statussync.Environment{}, map[[32]byte]statussync.AgentToken{}
	rapid.Check(t, func(rt *rapid.T) {
		ids := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 2)
		c := &statussync.ManagedChange{RemoveServers: ids.Draw(rt, "rs"), RemoveEnvironments: ids.Draw(rt, "re")}
		for _, id := range ids.Draw(rt, "rt") {
			c.RemoveTokens = append(c.RemoveTokens, sha256.Sum256([]byte(id)))
		}
		for _, id := range ids.Draw(rt, "ps") {
			v := managedServer(id)
			v.Name = rapid.StringMatching(`[a-z]{0,4}`).Draw(rt, "name")
			if rapid.Bool().Draw(rt, "open") {
				v.Probe.Headers = nil
			}
			c.PutServers = append(c.PutServers, v)
		}
		for _, id := range ids.Draw(rt, "pe") {
			c.PutEnvironments = append(c.PutEnvironments, statussync.Environment{ID: id, Origin: statussync.OriginManaged, Name: rapid.StringMatching(`[a-z]{0,4}`).Draw(rt, "name")})
		}
		for _, id := range ids.Draw(rt, "pt") {
			c.PutTokens = append(c.PutTokens, managedToken(rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "env"), id, int64(len(id)+int(id[0]))))
		}
		change(t, s, c)
		for _, id := range c.RemoveServers {
			delete(servers, id)
		}
		for _, id := range c.RemoveEnvironments {
			delete(envs, id)
			maps.DeleteFunc(tokens, func(_ [32]byte, v statussync.AgentToken) bool { return v.EnvironmentID == id })
		}
		for _, h := range c.RemoveTokens {
			delete(tokens, h)
		}
		for _, v := range c.PutServers {
			servers[v.ID] = v
		}
		for _, v := range c.PutEnvironments {
			envs[v.ID] = v
		}
		for _, v := range c.PutTokens {
			tokens[v.Hash] = v
		}
		want := &statussync.Managed{}
		for _, id := range slices.Sorted(maps.Keys(servers)) {
			want.Servers = append(want.Servers, servers[id])
		}
		for _, id := range slices.Sorted(maps.Keys(envs)) {
			e := envs[id]
			for _, v := range tokens {
				e.HasToken = e.HasToken || v.EnvironmentID == id
			}
			want.Environments = append(want.Environments, e)
		}
		want.Tokens = slices.SortedFunc(maps.Values(tokens), func(a, b statussync.AgentToken) int { return a.CreatedAt.Compare(b.CreatedAt) })
		wantManaged(t, s, want)
	})
}
