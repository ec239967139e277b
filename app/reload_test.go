package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	gcmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/statussynctest"
	"github.com/agentopia/statussync/wire"
)

// controlled is a service that runs on a configuration file, in this process and within reach.
type controlled struct {
	*service
	t    testing.TB
	dir  string
	base string
	hup  chan os.Signal
}

// startControlled writes the files and runs the service on c.yaml until the test ends.
func startControlled(t testing.TB, files map[string]string) *controlled {
	t.Helper()
	dir := t.TempDir()
	x := &controlled{t: t, dir: dir, hup: make(chan os.Signal, 1)}
	x.write(files)
	file := filepath.Join(dir, "c.yaml")
	c, err := LoadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	door, err := openDoor(c.Listen)
	if err != nil {
		t.Fatal(err)
	}
	x.service, err = newService(context.Background(), c, Options{ConfigFile: file, Logger: quiet(), Version: "test", Hangups: x.hup}, door.entrance())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan Ready, 1), make(chan error, 1)
	go func() {
		_, _, err := x.run(ctx, func(r Ready) { ready <- r })
		ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("stopped with %v", err)
		}
		door.close()
		http.DefaultClient.CloseIdleConnections()
	})
	select {
	case r := <-ready:
		x.base = r.BaseURL
	case err := <-ended:
		ended <- nil
		t.Fatalf("did not start: %v", err)
	}
	return x
}

// write replaces the configuration: c.yaml gets listen and data, and the fragments that are not given go.
func (x *controlled) write(files map[string]string) {
	x.t.Helper()
	if err := os.RemoveAll(filepath.Join(x.dir, fragmentDir)); err != nil {
		x.t.Fatal(err)
	}
	all := maps.Clone(files)
	if !strings.Contains(all["c.yaml"], "listen:") {
		all["c.yaml"] = "listen: 127.0.0.1:0\n" + all["c.yaml"]
	}
	if !strings.Contains(all["c.yaml"], "data:") {
		all["c.yaml"] = "data: " + filepath.Join(x.dir, "data") + "\n" + all["c.yaml"]
	}
	writeFiles(x.t, x.dir, all)
}

// state is all that a reload may change, as it is in force.
type state struct {
	Effective string
	Servers   map[string]statussync.Server
	Envs      map[string]statussync.Environment
	Tokens    map[string]string
}

// knownTokens are all tokens that these tests use.
var knownTokens = []string{"ops-token-1", "ops-token-2", "eve-token-1", "box-token-1", "box-token-2"}

func (x *controlled) state() state {
	x.t.Helper()
	out := stateOf(x.t, x.hub, x.current.Load())
	for _, token := range knownTokens {
		if c, ok := x.tokens.Token(token); ok {
			out.Tokens[token] = c.Name + " " + string(c.Role)
		} else if env, ok := x.tokens.Agent(token); ok {
			out.Tokens[token] = "agent of " + env
		}
	}
	return out
}

func stateOf(t testing.TB, h *hub.Hub, c *Config) state {
	t.Helper()
	b, err := c.Effective()
	if err != nil {
		t.Fatal(err)
	}
	out := state{Effective: string(b), Servers: map[string]statussync.Server{}, Envs: map[string]statussync.Environment{}, Tokens: map[string]string{}}
	views, _, _ := h.Servers(statussync.ServerQuery{Limit: 1 << 20})
	for _, v := range views {
		out.Servers[v.Server.ID] = *v.Server
	}
	for _, v := range h.Environments() {
		out.Envs[v.Environment.ID] = *v.Environment
	}
	return out
}

// fresh is the state of a service that was started with a configuration.
func fresh(t testing.TB, c *Config) state {
	t.Helper()
	h, err := hub.New(hub.Options{Journal: statussynctest.NewJournal(), Policy: c.Policy()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	<-h.Started()
	if _, err := h.Submit(ctx, c.Registry()); err != nil {
		t.Fatal(err)
	}
	out := stateOf(t, h, c)
	if c.Auth != nil {
		for _, k := range c.Auth.Tokens {
			out.Tokens[string(k.Token)] = k.Name + " " + k.Role
		}
	}
	for _, e := range c.Environments {
		if e.AgentToken != "" {
			out.Tokens[string(e.AgentToken)] = "agent of " + e.ID
		}
	}
	return out
}

func TestReloadDifference(t *testing.T) {
	const base = `
auth: {tokens: [{name: ops, role: admin, token: ops-token-1}, {name: eve, role: viewer, token: eve-token-1}]}
environments: [{id: box, agent_token: box-token-1}, {id: cab}]
servers: [{id: a, environment: box, labels: {x: y}}, {id: b, capabilities: {tools: 3}}, {id: c}]
`
	var many, few strings.Builder
	for i := range 40 {
		fmt.Fprintf(&many, "  - {id: s%02d}\n", i)
		if i >= 9 {
			fmt.Fprintf(&few, "  - {id: s%02d}\n", i)
		}
	}
	for _, c := range []struct{ name, from, to, want string }{
		{"nothing", base, base, `{"servers":{"unchanged":3},"environments":{"unchanged":2},"tokens":{"unchanged":2}}`},
		{"defaults that are spelt out", base, base + "probe: {interval: 30s}\nallowed_hosts: []\nlog: {}\n", `{"servers":{"unchanged":3},"environments":{"unchanged":2},"tokens":{"unchanged":2}}`},
		{"servers", "servers: [{id: a}, {id: b}, {id: d, name: x}]", "servers: [{id: c}, {id: b}, {id: d, name: y}]",
			`{"servers":{"added":["c"],"added_count":1,"changed":["d"],"changed_count":1,"removed":["a"],"removed_count":1,"unchanged":1}}`},
		{"a header", "servers: [{id: a, probe: {headers: {A: secret-1}}}]", "servers: [{id: a, probe: {headers: {A: secret-2}}}]", `{"servers":{"changed":["a"],"changed_count":1}}`},
		{"an agent's token", "environments: [{id: e, agent_token: box-token-1}, {id: f}]", "environments: [{id: e, agent_token: box-token-2}, {id: f}]",
			`{"environments":{"changed":["e"],"changed_count":1,"unchanged":1}}`},
		{"tokens", "auth: {tokens: [{name: ops, role: admin, token: ops-token-1}, {name: eve, role: viewer, token: eve-token-1}, {name: x, role: viewer, token: xxx-token-1}]}",
			"auth: {tokens: [{name: ops, role: admin, token: ops-token-2}, {name: x, role: operator, token: xxx-token-1}, {name: new, role: viewer, token: new-token-1}]}",
			`{"tokens":{"added":["new"],"added_count":1,"changed":["ops","x"],"changed_count":2,"removed":["eve"],"removed_count":1}}`},
		{"settings", "", "probe: {interval: 5s, concurrency: 3}\nlog: {level: debug}\nauth: {login_failures_per_minute: 9}\nallow_networks: [10.0.0.0/8]\nflapping: {quiet: 1m}\n",
			`{"settings":["log.level","auth.login_failures_per_minute","allow_networks","probe.interval","probe.concurrency","flapping.quiet"]}`},
		{"what needs a restart", "", "listen: 127.0.0.1:1\ndata: /elsewhere\nlog: {format: json}\njournal: {retention: 5d, sync: full}\nprobe: {rise: 3}\n",
			`{"settings":["probe.rise"],"needs_restart":["listen","data","log.format","journal.retention","journal.sync"]}`},
		{"many are removed", "servers:\n" + many.String(), "servers:\n" + few.String(), `{"servers":{"removed":["s00","s01","s02","s03","s04","s05","s06","s07","s08"],"removed_count":9,"unchanged":31},"warnings":["9 of 40 servers were removed"]}`},
		{"few are removed", "servers: [{id: a}, {id: b}, {id: c}, {id: d}, {id: e}]", "", `{"servers":{"removed":["a","b","c","d","e"],"removed_count":5}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			from, err := ParseConfig("from.yaml", []byte(c.from))
			if err != nil {
				t.Fatal(err)
			}
			to, err := ParseConfig("to.yaml", []byte(c.to))
			if err != nil {
				t.Fatal(err)
			}
			wasFrom, wasTo := *from, *to
			merged, got := reloaded(from, to, isLive)
			var want wire.Reload
			if err := json.Unmarshal([]byte(c.want), &want); err != nil {
				t.Fatal(err)
			}
			if d := gcmp.Diff(want, got, gcmp.Transformer("empty", func(s []string) []string { return append([]string{}, s...) })); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			if b, err := json.Marshal(got); err != nil || strings.Contains(string(b), "null") || strings.Contains(string(b), "secret") {
				t.Errorf("as JSON: %s %v", b, err)
			}
			if !reflect.DeepEqual(*from, wasFrom) || !reflect.DeepEqual(*to, wasTo) {
				t.Error("a configuration was changed")
			}
			// What needs a restart stays until there is one, and is told until then.
			_, again := reloaded(merged, to, isLive)
			if !slices.Equal(again.NeedsRestart, got.NeedsRestart) || len(again.Settings) > 0 || again.Servers.Unchanged != len(to.Servers) {
				t.Errorf("a second time: %+v", again)
			}
		})
	}
}

func TestReloadListsAreBounded(t *testing.T) {
	var b strings.Builder
	for i := range 500 {
		fmt.Fprintf(&b, "  - {id: s%03d}\n", i)
	}
	to, err := ParseConfig("to.yaml", []byte("servers:\n"+b.String()))
	if err != nil {
		t.Fatal(err)
	}
	if _, r := reloaded(DefaultConfig(), to, isLive); len(r.Servers.Added) != wire.MaxListed || r.Servers.AddedCount != 500 || r.Servers.Added[99] != "s099" {
		t.Errorf("%d of %d", len(r.Servers.Added), r.Servers.AddedCount)
	}
}

// Every key is either known to be live or told to need a restart; nothing is forgotten when a key is added.
func TestEveryKeyIsAccountedFor(t *testing.T) {
	a, b := DefaultConfig(), DefaultConfig()
	a.Auth, b.Auth = &AuthConfig{}, &AuthConfig{}
	n := 0
	eachSetting("", reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem(), func(key string, _, v reflect.Value) {
		n++
		switch v.Kind() {
		case reflect.String:
			v.SetString("other")
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Int, reflect.Int64:
			v.SetInt(v.Int() + 7)
		case reflect.Float64:
			v.SetFloat(v.Float() + 7)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
		default:
			t.Errorf("%s is of a kind that this test can't change: %s", key, v.Kind())
		}
	})
	merged, r := reloaded(a, b, isLive)
	if got := len(r.Settings) + len(r.NeedsRestart); got != n || n < 25 {
		t.Errorf("%d of %d keys: %v %v", got, n, r.Settings, r.NeedsRestart)
	}
	if merged.Listen != a.Listen || merged.Journal != a.Journal || merged.Probe != b.Probe || merged.Log.Level != b.Log.Level {
		t.Errorf("merged to %+v", merged)
	}
}

// drawFiles makes a configuration, whole and good, spread over the main file and fragments.
func drawFiles(t *rapid.T) map[string]string {
	type m = map[string]any
	lists := []m{{}, {}, {}} // the main file and two fragments
	put := func(key string, v any) {
		f := lists[rapid.IntRange(0, 2).Draw(t, "file of "+key)]
		l, _ := f[key].([]any)
		f[key] = append(l, v)
	}
	var envs []string
	for i, id := range []string{"box", "cab", "den"} {
		if !rapid.Bool().Draw(t, id) {
			continue
		}
		envs = append(envs, id)
		e := m{"id": id, "name": rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "name")}
		if i == 0 && rapid.Bool().Draw(t, "has an agent") {
			e["agent_token"] = rapid.SampledFrom([]string{"box-token-1", "box-token-2"}).Draw(t, "agent token")
		}
		put("environments", e)
	}
	for i := range 8 {
		if !rapid.Bool().Draw(t, "server") {
			continue
		}
		s := m{"id": fmt.Sprintf("s%d", i), "name": rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "name"), "probe": m{"kind": "none"},
			"disabled": rapid.Bool().Draw(t, "disabled"), "labels": m{"l": rapid.SampledFrom([]string{"1", "2"}).Draw(t, "label")}, "container": fmt.Sprintf("c%d", i)}
		if len(envs) > 0 && rapid.Bool().Draw(t, "has an environment") {
			s["environment"] = rapid.SampledFrom(envs).Draw(t, "environment")
		}
		put("servers", s)
	}
	tokens := []any{m{"name": "ops", "role": "admin", "token": rapid.SampledFrom([]string{"ops-token-1", "ops-token-2"}).Draw(t, "ops")}}
	if rapid.Bool().Draw(t, "eve") {
		tokens = append(tokens, m{"name": "eve", "role": rapid.SampledFrom([]string{"viewer", "operator"}).Draw(t, "role"), "token": "eve-token-1"})
	}
	lists[rapid.IntRange(0, 2).Draw(t, "file of tokens")]["auth"] = m{"tokens": tokens}
	lists[0]["probe"] = m{"interval": rapid.SampledFrom([]string{"1h", "2h"}).Draw(t, "interval"), "concurrency": rapid.IntRange(1, 600).Draw(t, "concurrency")}
	lists[0]["flapping"] = m{"changes": rapid.IntRange(2, 9).Draw(t, "changes")}
	if rapid.Bool().Draw(t, "format") {
		lists[0]["journal"] = m{"retention": "5d"}
	}
	files := map[string]string{}
	for i, name := range []string{"c.yaml", "conf.d/1.yaml", "conf.d/2.yaml"} {
		var b strings.Builder
		for _, k := range slices.Sorted(maps.Keys(lists[i])) {
			j, err := json.Marshal(lists[i][k])
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s: %s\n", k, j)
		}
		files[name] = b.String()
	}
	return files
}

// faultyFiles are changes that make any configuration bad, and what the error says.
var faultyFiles = []struct{ name, file, add, want string }{
	{"broken YAML", "c.yaml", "x: [\n", "c.yaml:"},
	{"an unknown key", "c.yaml", "colour: red\n", "colour: is no key"},
	{"a bad value", "c.yaml", "transitions: {stuck_after: soon}\n", "transitions.stuck_after"},
	{"an unset variable", "c.yaml", "allowed_hosts: ['${NOT_SET_ANYWHERE}']\n", "NOT_SET_ANYWHERE is not set"},
	{"a bad network", "c.yaml", "allow_networks: [10.0.0.0/99]\n", "allow_networks[0]"},
	{"broken YAML in a fragment", "conf.d/3.yaml", "x: [\n", "conf.d/3.yaml:"},
	{"a setting in a fragment", "conf.d/3.yaml", "probe: {rise: 3}\n", "conf.d/3.yaml:1: probe: belongs into the main file"},
	{"a missing token file in a fragment", "conf.d/3.yaml", "environments: [{id: new, agent_token_file: nothere}]\n", "conf.d/3.yaml:1: environments[0].agent_token_file: nothere cannot be read"},
	{"a reference to nothing in a fragment", "conf.d/3.yaml", "servers:\n - {id: new, environment: nowhere}\n", `conf.d/3.yaml:2: servers[0].environment: no environment has the id "nowhere"`},
	{"a duplicate in a fragment", "conf.d/3.yaml", "servers: [{id: new}]\nenvironments: [{id: new}, {id: new}]\n", "is given twice"},
	{"what is managed", "conf.d/3.yaml", "servers: [{id: managed}]\n", "managed by API already"},
}

// A file that is cut off before its first byte, as while an editor writes it, does not take servers and tokens away.
func TestAnEmptyFileIsNotReloaded(t *testing.T) {
	x := startControlled(t, map[string]string{"c.yaml": "auth: {tokens: [{name: ops, role: admin, token: ops-token-1}]}\nservers: [{id: a}]\n"})
	before := x.state()
	for _, content := range []string{"", "\n \n"} {
		if err := os.WriteFile(filepath.Join(x.dir, "c.yaml"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Reload(t.Context(), "test"); statussync.CodeOf(err) != statussync.CodeInvalid || !strings.Contains(err.Error(), "c.yaml: is empty") {
			t.Errorf("%q: %v", content, err)
		}
		if d := gcmp.Diff(before, x.state()); d != "" {
			t.Errorf("%q changed something:\n%s", content, d)
		}
	}
}

// A sync that meets a file which is being written reads it again before it removes most servers.
func TestADoubtfulFileIsReadAgain(t *testing.T) {
	with := func(n int) *Config {
		c := DefaultConfig()
		for i := range n {
			c.Servers = append(c.Servers, ServerConfig{ID: fmt.Sprintf("s%d", i)})
		}
		return c
	}
	broken := errors.New("broken")
	for _, c := range []struct {
		name  string
		reads []any // the numbers of servers, or errors, that reads find
		want  any
		loads int
	}{
		{"nothing is lost", []any{30}, 30, 1},
		{"a fifth", []any{24}, 24, 1},
		{"more, for a moment", []any{23, 30}, 30, 2},
		{"more, for good", []any{3, 3}, 3, 2},
		{"more, and then broken", []any{3, broken}, broken, 2},
		{"broken", []any{broken}, broken, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun, loads := time.Now(), 0
				got, err := loadSettled(t.Context(), with(30), func() (*Config, error) {
					loads++
					if err, ok := c.reads[loads-1].(error); ok {
						return nil, err
					}
					return with(c.reads[loads-1].(int)), nil
				})
				if n, ok := c.want.(int); ok && (err != nil || len(got.Servers) != n) || !ok && !errors.Is(err, broken) {
					t.Errorf("%v, %v, want %v", got, err, c.want)
				}
				if waited := time.Since(begun); loads != c.loads || waited != time.Duration(c.loads-1)*settleTime {
					t.Errorf("%d reads in %v", loads, waited)
				}
			})
		})
	}
}

// After any sequence of good and bad files the service is as if it had been started with the last good one: what it
// watches, whom it knows, and its settings. A bad one says why.
func TestReloadsEndWhereAStartBegins(t *testing.T) {
	x := startControlled(t, map[string]string{"c.yaml": "auth: {tokens: [{name: ops, role: admin, token: ops-token-1}]}\njournal: {retention: 7d}\n"})
	if _, err := x.registry.AddServer(t.Context(), statussync.Server{ID: "managed", Probe: statussync.ProbeSpec{Kind: statussync.ProbeNone}}); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		for range rapid.IntRange(1, 4).Draw(rt, "reloads") {
			files := drawFiles(rt)
			x.write(files)
			if rapid.IntRange(0, 2).Draw(rt, "kind") == 0 {
				fault := rapid.SampledFrom(faultyFiles).Draw(rt, "fault")
				files[fault.file] += fault.add
				x.write(files)
				before := x.state()
				_, err := x.Reload(t.Context(), "test")
				if err == nil || !strings.Contains(err.Error(), fault.want) {
					rt.Fatalf("%s: %v does not say %q", fault.name, err, fault.want)
				}
				if code := statussync.CodeOf(err); code != statussync.CodeInvalid && code != statussync.CodeConflict {
					rt.Fatalf("%s has the code %s", fault.name, code)
				}
				if d := gcmp.Diff(before, x.state()); d != "" {
					rt.Fatalf("%s changed something:\n%s", fault.name, d)
				}
				continue
			}
			before := x.state()
			r, err := x.Reload(t.Context(), "test")
			if err != nil {
				rt.Fatal(err)
			}
			if !slices.Equal(r.NeedsRestart, []string{"journal.retention"}) {
				rt.Fatalf("needs a restart: %v", r.NeedsRestart)
			}
			last, err := LoadConfig(filepath.Join(x.dir, "c.yaml"))
			if err != nil {
				rt.Fatal(err)
			}
			last.Journal = x.config.Journal
			want := fresh(t, last)
			want.Servers["managed"] = before.Servers["managed"]
			if d := gcmp.Diff(want, x.state()); d != "" {
				rt.Fatalf("not as after a start (-start +reload):\n%s", d)
			}
			if n := len(want.Servers) - 1; r.Servers.AddedCount+r.Servers.ChangedCount+r.Servers.Unchanged != n {
				rt.Fatalf("the answer does not add up to %d servers: %+v", n, r.Servers)
			}
		}
	})
}

// Unchanged servers keep what is known of them, and nothing is told about them.
func TestReloadLeavesUnchangedServersAlone(t *testing.T) {
	const conf = "auth: {tokens: [{name: ops, role: admin, token: ops-token-1}]}\nenvironments: [{id: box, agent_token: box-token-1}]\nservers:\n  - {id: a, environment: box}\n  - {id: b, environment: box}\n"
	x := startControlled(t, map[string]string{"c.yaml": conf})
	report := &statussync.AgentReport{EnvironmentID: "box", Via: statussync.ViaPush, List: statussync.ListComplete, Containers: []statussync.ContainerReport{
		{Names: []string{"a"}, Word: "running", Text: "Up 2 hours"}, {Names: []string{"b"}, Word: "running", Text: "Up 2 hours"},
	}}
	if _, err := x.hub.Submit(t.Context(), report); err != nil {
		t.Fatal(err)
	}
	before, _ := x.hub.Server("a")
	head := x.hub.Ready().Head
	x.write(map[string]string{"c.yaml": conf + "  - {id: c}\nprobe: {interval: 77s}\n"})
	r, err := x.Reload(t.Context(), "test")
	if err != nil || r.Servers.Unchanged != 2 || r.Servers.AddedCount != 1 {
		t.Fatalf("%+v %v", r, err)
	}
	after, _ := x.hub.Server("a")
	after.Now, before.Now = time.Time{}, time.Time{}
	if d := gcmp.Diff(before, after); d != "" || after.Status.State != statussync.StateRunning {
		t.Errorf("an unchanged server changed:\n%s", d)
	}
	m, err := statussync.Filter{Clauses: []statussync.Clause{{Kinds: statussync.Kinds}}}.Compile()
	if err != nil {
		t.Fatal(err)
	}
	entries, _, err := x.hub.Updates(t.Context(), head, 100, m)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.ServerID != "c" {
			t.Errorf("an entry about an unchanged server: %s", e.JSON)
		}
	}
}

// A policy that changed counts at once.
func TestReloadChangesThePolicy(t *testing.T) {
	x := startControlled(t, map[string]string{"c.yaml": "servers: [{id: a, endpoint: 'http://127.0.0.1:1/mcp'}]\nprobe: {interval: 1h, kind: http}\n"})
	x.write(map[string]string{"c.yaml": "servers: [{id: a, endpoint: 'http://127.0.0.1:1/mcp'}]\nprobe: {interval: 2h, kind: http, path: /up}\n"})
	if _, err := x.Reload(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	v, err := x.hub.Server("a")
	if err != nil || v.Probing.Interval != 2*time.Hour || v.Probing.URL != "http://127.0.0.1:1/up" {
		t.Errorf("%+v %v", v.Probing, err)
	}
}

func (x *controlled) dial(token string) *websocket.Conn {
	x.t.Helper()
	h := http.Header{}
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, x.base+wire.PathWebSocket, &websocket.DialOptions{HTTPHeader: h})
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { c.CloseNow() })
	if err := c.Write(ctx, websocket.MessageText, []byte(`{"type":"subscribe","channel":"mcp_server_status"}`)); err != nil {
		x.t.Fatal(err)
	}
	if _, b, err := c.Read(ctx); err != nil || !strings.Contains(string(b), "subscribed") {
		x.t.Fatalf("%s %v", b, err)
	}
	return c
}

// open reports whether a WebSocket still answers; code is how it was closed otherwise.
func (x *controlled) open(c *websocket.Conn) (ok bool, code websocket.StatusCode) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.Write(ctx, websocket.MessageText, []byte(`{"type":"ping"}`)); err == nil {
		for {
			_, b, err := c.Read(ctx)
			if err != nil {
				return false, websocket.CloseStatus(err)
			}
			if strings.Contains(string(b), "pong") {
				return true, 0
			}
		}
	}
	_, _, err := c.Read(ctx)
	return false, websocket.CloseStatus(err)
}

// waitClosed waits for a WebSocket to be closed by the service.
func waitClosed(t testing.TB, c *websocket.Conn) websocket.StatusCode {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		if _, _, err := c.Read(ctx); err != nil {
			return websocket.CloseStatus(err)
		}
	}
}

// Tokens change without a restart: streams of those that are gone, or have another role, are closed; the others stay.
func TestReloadChangesTokens(t *testing.T) {
	const format = "auth: {tokens: [{name: ops, role: admin, token: ops-token-1}%s]}\nenvironments: [{id: box, agent_token: %s}]\n"
	x := startControlled(t, map[string]string{"c.yaml": fmt.Sprintf(format, ", {name: eve, role: viewer, token: eve-token-1}, {name: otto, role: operator, token: otto-token}, {name: old, role: viewer, token: old-token-1}", "box-token-1")})
	ops, eve, otto, old := x.dial("ops-token-1"), x.dial("eve-token-1"), x.dial("otto-token"), x.dial("old-token-1")
	sse, err := http.NewRequest("GET", x.base+wire.PathStream, nil)
	if err != nil {
		t.Fatal(err)
	}
	sse.Header.Set("Authorization", "Bearer eve-token-1")
	stream, err := http.DefaultClient.Do(sse)
	if err != nil || stream.StatusCode != 200 {
		t.Fatalf("%v %v", stream, err)
	}
	defer stream.Body.Close()

	x.write(map[string]string{"c.yaml": fmt.Sprintf(format, ", {name: otto, role: viewer, token: otto-token}, {name: old, role: viewer, token: new-token-1}", "box-token-2")})
	r, err := x.Reload(t.Context(), "test")
	if err != nil || r.Tokens.RemovedCount != 1 || r.Tokens.ChangedCount != 2 || r.Tokens.Unchanged != 1 || r.Environments.ChangedCount != 1 {
		t.Fatalf("%+v %v", r, err)
	}
	for name, c := range map[string]*websocket.Conn{"removed": eve, "another role": otto, "another secret": old} {
		if code := waitClosed(t, c); code != wire.CloseTokenExpired {
			t.Errorf("%s: closed with %d", name, code)
		}
	}
	buf := make([]byte, 4096)
	for err = nil; err == nil; {
		_, err = stream.Body.Read(buf) // it ends; else the test does
	}
	if ok, code := x.open(ops); !ok {
		t.Errorf("the unchanged token's connection was closed with %d", code)
	}
	for token, want := range map[string]int{"ops-token-1": 200, "eve-token-1": 401, "old-token-1": 401, "new-token-1": 200} {
		req, err := http.NewRequest("GET", x.base+"/api/v1/servers", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s is answered %d", token, resp.StatusCode)
		}
	}
	if env, ok := x.tokens.Agent("box-token-2"); !ok || env != "box" {
		t.Error("the agent's new token is not known")
	}
	if _, ok := x.tokens.Agent("box-token-1"); ok {
		t.Error("the agent's old token is still good")
	}
}

// Where tokens come into a service that was open to its machine, who is in without one is closed out.
func TestReloadClosesTheOpenDoor(t *testing.T) {
	x := startControlled(t, map[string]string{"c.yaml": ""})
	c := x.dial("")
	x.write(map[string]string{"c.yaml": "auth: {tokens: [{name: ops, role: admin, token: ops-token-1}]}\n"})
	if _, err := x.Reload(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	if code := waitClosed(t, c); code != wire.CloseTokenExpired {
		t.Errorf("closed with %d", code)
	}
	resp, err := http.Get(x.base + "/api/v1/servers")
	if err != nil || resp.StatusCode != 401 {
		t.Errorf("%v %v", resp, err)
	}
	resp.Body.Close()
}

// Tokens can't be taken away from under an address that other machines reach, which is kept until a restart.
func TestReloadKeepsWhatIsReachableGuarded(t *testing.T) {
	x := startControlled(t, map[string]string{"c.yaml": "listen: 0.0.0.0:0\nauth: {tokens: [{name: ops, role: admin, token: ops-token-1}]}\n"})
	x.write(map[string]string{"c.yaml": "listen: 127.0.0.1:0\n"})
	before := x.state()
	_, err := x.Reload(t.Context(), "test")
	var e *statussync.Error
	if !errors.As(err, &e) || e.Location != "auth" {
		t.Fatalf("%v", err)
	}
	if d := gcmp.Diff(before, x.state()); d != "" {
		t.Error(d)
	}
}

// Reloads that come at once happen one after the other, and a hangup is one of them.
func TestReloadsAtOnce(t *testing.T) {
	x := startControlled(t, map[string]string{"c.yaml": "servers: [{id: a}]\n"})
	x.write(map[string]string{"c.yaml": "servers: [{id: a}, {id: b}]\n"})
	added := make(chan int, 8)
	for range 8 {
		go func() {
			r, err := x.Reload(context.Background(), "test")
			if err != nil {
				t.Error(err)
			}
			added <- r.Servers.AddedCount
		}()
	}
	sum := 0
	for range 8 {
		sum += <-added
	}
	if sum != 1 {
		t.Errorf("%d reloads say that they added the server", sum)
	}
	done := x.count.reloads.Load()
	x.write(map[string]string{"c.yaml": "servers: [{id: c}]\n"})
	x.hup <- syscall.SIGHUP
	deadline := time.Now().Add(20 * time.Second)
	for x.count.reloads.Load() == done {
		if time.Now().After(deadline) {
			t.Fatal("the hangup reloaded nothing")
		}
		if _, err := x.hub.Submit(t.Context()); err != nil { // a moment
			t.Fatal(err)
		}
	}
	if _, err := x.hub.Server("c"); err != nil {
		t.Error(err)
	}
}

// A service without a file has nothing to reload, and says so.
func TestReloadWithoutAFile(t *testing.T) {
	r := startWhole(t, t.TempDir(), "")
	_, err := r.as("admin-token").Reload(t.Context())
	if statussync.CodeOf(err) != statussync.CodeConflict || !strings.Contains(err.Error(), "not started from a configuration file") {
		t.Error(err)
	}
}

// agentAt serves GET /status, and says how often it was asked.
func agentAt(t *testing.T, answer string) (url string, asked func() int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := make(chan int, 1)
	n <- 0
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n <- <-n + 1
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, answer)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln) // it ends by Close
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return "http://" + ln.Addr().String(), func() int {
		v := <-n
		n <- v
		return v
	}
}

// A sync reads the file, the managed registry and the agents; what fails is named, the rest goes on.
func TestSync(t *testing.T) {
	url, asked := agentAt(t, `{"status":"ok","timestamp":"2026-01-01T00:00:00Z","tool_instances":[{"names":["a"],"state":"running","status":"Up 3 hours (healthy)"}]}`)
	quietURL, quietAsked := agentAt(t, `no JSON`)
	conf := fmt.Sprintf("environments:\n  - {id: box, agent_url: %s}\n  - {id: cab, agent_url: %s}\n  - {id: den}\nprobe: {interval: 1h}\nservers:\n  - {id: a, environment: box}\n  - {id: b, environment: cab}\n", url, quietURL)
	x := startControlled(t, map[string]string{"c.yaml": conf})
	s, err := x.SyncAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.UpdatesCount != 1 || s.Updates[0].ServerID != "a" || s.Updates[0].Current.State != statussync.StateRunning {
		t.Errorf("updates %+v", s.Updates)
	}
	if s.FailedCount != 1 || s.Failed[0].EnvironmentID != "cab" || s.Failed[0].ServerID != "" || !strings.Contains(s.Failed[0].Detail, "did not answer (bad_answer)") {
		t.Errorf("failed %+v", s.Failed)
	}
	if m := x.hub.SyncMetrics(); m.LastSync.IsZero() || m.SyncDuration <= 0 || wire.Millis(m.SyncDuration) != s.DurationMS {
		t.Errorf("metrics %+v, took %v ms", m, s.DurationMS)
	}

	// The file's definitions are read; a server is enough to have that done.
	x.write(map[string]string{"c.yaml": strings.Replace(conf, "interval: 1h", "interval: 2h", 1) + "  - {id: c}\n"})
	if s, err = x.SyncServer(t.Context(), "a"); err != nil || s.FailedCount != 0 {
		t.Fatalf("%+v %v", s, err)
	}
	if _, err := x.hub.Server("c"); err != nil {
		t.Error(err)
	}
	if got := time.Duration(x.current.Load().Probe.Interval); got != time.Hour {
		t.Errorf("a sync changed a setting: %v", got)
	}
	if asked() != 2 || quietAsked() != 1 {
		t.Errorf("asked %d and %d times", asked(), quietAsked())
	}

	// A broken file is one failure; agents are still asked.
	x.write(map[string]string{"c.yaml": conf, "conf.d/x.yaml": "servers: [{id: a}, {id: '?'}]\n"})
	s, err = x.SyncServer(t.Context(), "b")
	if err != nil || s.FailedCount != 2 || s.Failed[0].ServerID != "b" || !strings.Contains(s.Failed[0].Detail, "conf.d/x.yaml:1") || !strings.Contains(s.Failed[0].Detail, "and 1 more") || s.Failed[1].EnvironmentID != "cab" {
		t.Errorf("%+v %v", s, err)
	}
	if _, err := x.SyncServer(t.Context(), "nobody"); statussync.CodeOf(err) != statussync.CodeNotFound {
		t.Errorf("an unknown server: %v", err)
	}

	// The managed registry is read from its store.
	managed := statussync.Server{ID: "m", Name: "m", Origin: statussync.OriginManaged, Transport: statussync.TransportStreamableHTTP, Desired: statussync.DesiredRunning, Probe: statussync.ProbeSpec{Kind: statussync.ProbeNone}}
	if err := x.store.ChangeManaged(t.Context(), &statussync.ManagedChange{PutServers: []statussync.Server{managed}}); err != nil {
		t.Fatal(err)
	}
	if _, err := x.SyncServer(t.Context(), "m"); err != nil {
		t.Errorf("a server that stands in the store: %v", err)
	}
}

// The switch is seen, stops probes, and outlasts the service.
func TestProbingSwitch(t *testing.T) {
	url, asked := agentAt(t, "{}")
	dir := t.TempDir()
	more := "servers: [{id: probed, probe: {url: " + url + ", interval: 100ms}}]\n"
	start := func() *running {
		c, err := ParseConfig("c.yaml", fmt.Appendf(nil, "listen: 127.0.0.1:0\ndata: %s\n%s", dir, more))
		if err != nil {
			t.Fatal(err)
		}
		r := &running{t: t, log: &syncBuffer{}}
		base, stop := runService(t, c)
		r.url, r.stop = base, stop
		return r
	}
	r := start()
	cl := r.as("")
	if p, err := cl.Probing(t.Context()); err != nil || !p.Enabled || !p.Since.IsZero() {
		t.Fatalf("%+v %v", p, err)
	}
	waitUntil(t, "a probe", func() bool { return asked() > 1 })
	off, err := cl.SetProbing(t.Context(), false)
	if err != nil || off.Enabled || off.Since.IsZero() || off.ChangedBy != "local" {
		t.Fatalf("%+v %v", off, err)
	}
	if again, err := cl.SetProbing(t.Context(), false); err != nil || *again != *off {
		t.Errorf("switched off twice: %+v %v", again, err)
	}
	r.stop()
	r = start()
	cl = r.as("")
	before := asked()
	p, err := cl.Probing(t.Context())
	if err != nil || p.Enabled || !p.Since.Equal(off.Since.Time) || p.ChangedBy != "local" {
		t.Fatalf("after a restart %+v %v, before %+v", p, err, off)
	}
	if rd, err := cl.Ready(t.Context()); err != nil || rd.Probing == nil || rd.Probing.Enabled || rd.Status != wire.ReadyYes {
		t.Errorf("ready %+v %v", rd, err)
	}
	if m, err := cl.SyncMetrics(t.Context()); err != nil || m.ProbingEnabled == nil || *m.ProbingEnabled {
		t.Errorf("metrics %+v %v", m, err)
	}
	var metrics string
	get(t, r.url+"/metrics", &metrics)
	if !strings.Contains(metrics, "statussync_probes_enabled 0") {
		t.Error("the metric says that servers are probed")
	}
	// A check on demand is still made, and nothing but it.
	if _, err := cl.Probe(t.Context(), "probed"); err != nil {
		t.Error(err)
	}
	if n := asked() - before; n != 1 {
		t.Errorf("%d probes while it is off", n)
	}
	if on, err := cl.SetProbing(t.Context(), true); err != nil || !on.Enabled || on.ChangedBy != "local" {
		t.Fatalf("%+v %v", on, err)
	}
	at := asked()
	waitUntil(t, "probes again", func() bool { return asked() > at })
}

func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		<-tick.C
	}
}

// restartable runs the service as Run does, on a file.
func restartable(t *testing.T, conf string) (x *controlled, ready chan Ready) {
	t.Helper()
	x = &controlled{t: t, dir: t.TempDir()}
	x.write(map[string]string{"c.yaml": conf})
	ctx, cancel := context.WithCancel(context.Background())
	ready = make(chan Ready, 4)
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{ConfigFile: filepath.Join(x.dir, "c.yaml"), Logger: quiet(), Version: "test", OnReady: func(r Ready) { ready <- r }})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("stopped with %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	x.base = (<-ready).BaseURL
	return x, ready
}

// A restart reads the file anew, keeps what is known, and refuses nobody while it goes on.
func TestRestart(t *testing.T) {
	port := freePort(t)
	conf := fmt.Sprintf("listen: 127.0.0.1:%d\nprobe: {kind: none}\nservers: [{id: a}]\n", port)
	x, ready := restartable(t, conf)
	r := &running{t: t, url: x.base}
	cl := r.as("")
	if _, err := cl.SetOverride(t.Context(), "a", wire.OverrideRequest{State: statussync.StateRunning, Note: "kept"}); err != nil {
		t.Fatal(err)
	}

	// A bad file is refused before anything stops.
	x.write(map[string]string{"c.yaml": conf + "colour: red\nprobee: 1\n"})
	err := cl.Restart(t.Context())
	if statussync.CodeOf(err) != statussync.CodeInvalid || !strings.Contains(err.Error(), "colour") || !strings.Contains(err.Error(), "probee") {
		t.Fatalf("a bad file: %v", err)
	}
	if rd, err := cl.Ready(t.Context()); err != nil || rd.Status != wire.ReadyYes {
		t.Fatalf("%+v %v", rd, err)
	}

	// Somebody connects all the time and must never be refused.
	stop, refused, tries := make(chan struct{}), make(chan error, 1), 0
	knocking := make(chan struct{})
	go func() {
		defer close(knocking)
		for {
			select {
			case <-stop:
				return
			default:
			}
			c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 10*time.Second)
			if err != nil {
				refused <- err
				return
			}
			tries++
			c.Close()
		}
	}()
	x.write(map[string]string{"c.yaml": strings.Replace(conf, "{id: a}", "{id: a}, {id: b}", 1)})
	if err := cl.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := <-ready
	close(stop)
	<-knocking
	select {
	case err := <-refused:
		t.Errorf("refused after %d connections: %v", tries, err)
	default:
	}
	if again.BaseURL != x.base {
		t.Errorf("it listens on %s now, before on %s", again.BaseURL, x.base)
	}
	if s, err := cl.Server(t.Context(), "a"); err != nil || s.Status.Override == nil || s.Status.Override.Note != "kept" {
		t.Errorf("%+v %v", s, err)
	}
	if _, err := cl.Server(t.Context(), "b"); err != nil {
		t.Error(err)
	}

	// Another address is listened on, and the old one given up.
	other := freePort(t)
	x.write(map[string]string{"c.yaml": strings.Replace(conf, fmt.Sprint(port), fmt.Sprint(other), 1)})
	if err := cl.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := <-ready; !strings.HasSuffix(again.BaseURL, fmt.Sprint(":", other)) {
		t.Errorf("it listens on %s", again.BaseURL)
	}
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		c.Close()
		t.Error("the old address is still open")
	}
	// An address that somebody else has is refused before anything stops.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	x.write(map[string]string{"c.yaml": strings.Replace(conf, fmt.Sprint("127.0.0.1:", port), ln.Addr().String(), 1)})
	r.url = fmt.Sprintf("http://127.0.0.1:%d", other)
	if err := r.as("").Restart(t.Context()); statussync.CodeOf(err) != statussync.CodeConflict {
		t.Errorf("an address in use: %v", err)
	}
	// One that only we are in the way of is not.
	x.write(map[string]string{"c.yaml": strings.Replace(conf, fmt.Sprint("127.0.0.1:", port), fmt.Sprint("0.0.0.0:", other), 1) + "auth: {tokens: [{name: ops, role: admin, token: ops-token-1}]}\n"})
	if err := r.as("").Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-ready
	if _, err := r.as("ops-token-1").Server(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	for range 100 { // below the ephemeral range, where a client's own end can't be in the way
		port := 20000 + rand.IntN(12000)
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			ln.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// What is done between a stop and the next start finds the store closed, and the service after it what was done.
func TestRestartBetween(t *testing.T) {
	x := startControlled(t, map[string]string{"c.yaml": "servers: [{id: a}]\n"})
	was := x.current.Load()
	called := false
	if err := x.requestRestart(t.Context(), func(context.Context, string, error) error { called = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := x.requestRestart(context.Background(), nil); statussync.CodeOf(err) != statussync.CodeConflict && statussync.CodeOf(err) != statussync.CodeUnavailable {
		t.Errorf("a second restart meanwhile: %v", err)
	}
	if called || x.current.Load() != was {
		t.Error("it happened too early")
	}

	dir := t.TempDir()
	c, err := ParseConfig("c.yaml", fmt.Appendf(nil, "listen: 127.0.0.1:0\ndata: %s\nservers: [{id: a}]\n", dir))
	if err != nil {
		t.Fatal(err)
	}
	door, err := openDoor(c.Listen)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	first := make(chan *service, 1)
	go func() {
		s, err := newService(ctx, c, Options{Logger: quiet()}, door.entrance())
		if err != nil {
			ended <- err
			return
		}
		first <- s
		next, _, err := s.run(ctx, func(Ready) {})
		if err != nil || next == nil {
			ended <- cmp.Or(err, errors.New("no restart"))
			return
		}
		ended <- next.between(ctx, next.config.Data, next.unclosed)
	}()
	s := <-first
	<-s.hub.Started()
	err = s.requestRestart(ctx, func(_ context.Context, dataDir string, unclosed error) error {
		if dataDir != dir {
			t.Errorf("between got %s", dataDir)
		}
		if unclosed != nil {
			t.Error(unclosed)
		}
		b, err := os.ReadFile(filepath.Join(dataDir, "statussync.db"))
		if err != nil || len(b) == 0 {
			t.Errorf("the store's file: %d bytes, %v", len(b), err)
		}
		if _, err := os.Stat(filepath.Join(dataDir, "statussync.db-wal")); err == nil {
			t.Error("the store is still open: its log is there")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	door.close()
}

// TestFallbackIsNoStop: where the service of a restart does not start and the one before is to come back, nobody is told that
// the process stops: a service manager would kill it soon.
func TestFallbackIsNoStop(t *testing.T) {
	data := t.TempDir()
	r := startWhole(t, data, "")
	if _, err := r.as("admin-token").AddServer(t.Context(), wire.ServerSpec{ID: "taken", Probe: &wire.ProbeSpec{Kind: "none"}}); err != nil {
		t.Fatal(err)
	}
	r.stop()
	c := testConfig(t, "servers: [{id: taken, probe: {kind: none}}]\n")
	c.Data = data
	for _, fallback := range []bool{true, false} {
		door, err := openDoor("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		stopping := 0
		s, err := newService(t.Context(), c, Options{Logger: quiet(), OnStopping: func() { stopping++ }}, door.entrance())
		if err != nil {
			t.Fatal(err)
		}
		s.fallback = fallback
		next, started, err := s.run(t.Context(), func(Ready) { t.Error("ready") })
		if wantCode(t, err, statussync.CodeConflict); next != nil || started {
			t.Errorf("%v %v", next, started)
		}
		if (stopping == 0) != fallback {
			t.Errorf("with fallback %v the stop was told %d times", fallback, stopping)
		}
		door.close()
	}
}

// TestNoReloadBehindARestart: a restart that was accepted goes on with the file as it was then, so nobody may be told that a
// later one is in force.
func TestNoReloadBehindARestart(t *testing.T) {
	x := startControlled(t, map[string]string{"c.yaml": ""})
	if err := x.turn.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.going = true // as between its acceptance and the stop
	x.turn.give()
	_, err := x.Reload(t.Context(), "ada")
	wantCode(t, err, statussync.CodeConflict, "a restart is under way")
	s, err := x.SyncAll(t.Context())
	if err != nil || s.FailedCount != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}
