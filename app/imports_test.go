package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/agentopia/statussync"
)

func TestShownURL(t *testing.T) {
	for _, c := range []struct {
		in, want string
		unshown  []string
	}{
		{"https://a.example/mcp", "https://a.example/mcp", nil},
		{"https://a.example:8443/v1/mcp?key=secret#x", "https://a.example:8443/v1/mcp", nil},
		{"https://u:p@a.example/mcp", "https://a.example/mcp", nil},
		{"https://a.example/u/tok-en/mcp", "https://a.example/u/***/mcp", []string{"tok-en"}},
		{"https://a.example/u/x-tok%20en-y/mcp", "https://a.example/u/***/mcp", []string{"tok en"}},
		{"https://a.example/a/b/mcp", "https://a.example/***", []string{"a/b/mcp"}},
		{"http://127.0.0.1:9000/mcp", "http://127.0.0.1:9000/mcp", []string{"9000"}},
		{"https://a.example/s/0123456789abcdef0123/mcp", "https://a.example/s/***/mcp", nil},
		{"https://a.example/modelcontextprotocol/mcp", "https://a.example/modelcontextprotocol/mcp", nil},
		{"https://${HOST}/mcp", "", nil},
		{"not a url", "", nil},
	} {
		if got := shownURL(c.in, c.unshown); got != c.want {
			t.Errorf("%s: %s, want %s", c.in, got, c.want)
		}
	}
}

func TestImportPrefix(t *testing.T) {
	for path, want := range map[string]string{
		"/home/u/.cursor/mcp.json": "cursor.", "/home/u/project/.mcp.json": "project.", "/home/u/.vscode/mcp.json": "vscode.",
		"/x/claude_desktop_config.json": "claude_desktop_config.", "/x/.claude.json": "claude.", "/x/team servers.json": "team-servers.",
	} {
		if got := importPrefix(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

// TestDiscreet: what a server quotes of a request is shown without its credentials.
func TestDiscreet(t *testing.T) {
	plan := &statussync.ProbePlan{
		URL:     "https://a.example/path-secret/mcp?key=query%20secret",
		Headers: map[string]string{"Authorization": "Bearer header-secret", "X": "ok"}, Unshown: []string{"path-secret", "env/secret"},
	}
	r := discreet(func(context.Context, *statussync.ProbePlan) statussync.ProbeResult {
		return statussync.ProbeResult{
			Detail:     "no POST /path-secret/mcp?key=query%20secret (query secret, query+secret) for Bearer header-secret, header-secret, env%2Fsecret ok",
			ServerInfo: statussync.ServerInfo{Name: "I am header-secret", Version: "path-secret"},
		}
	})(t.Context(), plan)
	for _, s := range []string{r.Detail, r.ServerInfo.Name, r.ServerInfo.Version} {
		if strings.Contains(s, "secret") {
			t.Error(s)
		}
	}
	if !strings.HasPrefix(r.Detail, "no POST /***/mcp?***") || !strings.HasSuffix(r.Detail, " ok") {
		t.Error(r.Detail)
	}
}

type importsTest struct {
	*imports
	t     *testing.T
	paths []string
}

func (x importsTest) write(i int, text string) {
	x.t.Helper()
	if err := os.WriteFile(x.paths[i], []byte(text), 0o600); err != nil {
		x.t.Fatal(err)
	}
}

func (x importsTest) refresh(doubt bool) (again bool, faults []string) {
	found, again := x.imports.refresh(x.paths, doubt)
	for _, f := range found {
		faults = append(faults, fmt.Sprintf("%t %t %v", f.unusable, f.told, f.err))
	}
	return again, faults
}

func (x importsTest) want(ids ...string) {
	x.t.Helper()
	var got []string
	for _, s := range x.servers() {
		got = append(got, s.ID)
	}
	if !slices.Equal(got, ids) {
		x.t.Errorf("%v, want %v", got, ids)
	}
}

func newImports(t *testing.T, files ...string) importsTest {
	x := importsTest{imports: &imports{}, t: t}
	dir := t.TempDir()
	for _, f := range files {
		x.paths = append(x.paths, filepath.Join(dir, f))
	}
	return x
}

func fileOf(names ...string) string {
	var parts []string
	for _, n := range names {
		parts = append(parts, fmt.Sprintf("%q: {\"url\": \"https://a.example/%s\"}", n, n))
	}
	return "{\"mcpServers\": {\n" + strings.Join(parts, ",\n") + "\n}}"
}

func TestImportsSeveralFiles(t *testing.T) {
	x := newImports(t, "one.json", "two.json")
	x.write(0, fileOf("github", "weather"))
	x.write(1, fileOf("github", "mail", "git hub", "two.github"))
	if again, faults := x.refresh(true); again || faults != nil {
		t.Fatal(again, faults)
	}
	x.want("github", "weather", "two.github", "mail", "git-hub", "two.two.github")
	for _, s := range x.servers() {
		if s.Origin != statussync.OriginMCPConfig || s.Desired != statussync.DesiredRunning {
			t.Errorf("%+v", s)
		}
	}
	x.paths = x.paths[1:]
	x.refresh(true)
	x.want("github", "mail", "git-hub", "two.github")
}

// TestImportsBadFile: what can't be understood leaves in force what was there, and is told once, with its place.
func TestImportsBadFile(t *testing.T) {
	x := newImports(t, "a.json")
	if _, faults := x.refresh(true); len(faults) != 1 || !strings.HasPrefix(faults[0], "true false "+x.paths[0]+": cannot be read: ") {
		t.Fatalf("%q", faults)
	}
	x.want()
	good := fileOf("a", "b", "c")
	x.write(0, good)
	x.refresh(true)
	x.want("a", "b", "c")
	for _, bad := range []string{good[:len(good)/2], "", "[1,2]", "{\"theme\": \"dark\"}"} {
		x.write(0, bad)
		if _, faults := x.refresh(true); len(faults) != 1 || !strings.HasPrefix(faults[0], "true false "+x.paths[0]) {
			t.Errorf("%q: %q", bad, faults)
		}
		if _, faults := x.refresh(true); len(faults) != 1 || !strings.HasPrefix(faults[0], "true true ") {
			t.Errorf("%q: %q was told already", bad, faults)
		}
		x.want("a", "b", "c")
	}
	if err := os.Remove(x.paths[0]); err != nil {
		t.Fatal(err)
	}
	x.refresh(true)
	x.want("a", "b", "c")
	// One server that is being edited stays as it was; the others follow.
	x.write(0, strings.Replace(fileOf("a", "b", "d"), `"https://a.example/b"`, "17", 1))
	if _, faults := x.refresh(true); len(faults) != 1 || !strings.HasPrefix(faults[0], "false false "+x.paths[0]+":3: ") {
		t.Errorf("%q", faults)
	}
	x.want("a", "d", "b")
	x.write(0, fileOf("a", "b", "d"))
	if _, faults := x.refresh(true); faults != nil {
		t.Errorf("%q", faults)
	}
	x.want("a", "b", "d")
}

// TestImportsLoseMany: a file that has lost more than 20 % and more than 5 of its servers is read twice before that counts.
func TestImportsLoseMany(t *testing.T) {
	x := newImports(t, "a.json")
	many := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	x.write(0, fileOf(many...))
	x.refresh(true)
	x.write(0, fileOf("a"))
	if again, _ := x.refresh(true); !again {
		t.Error("that is to be doubted")
	}
	x.want(many...)
	x.write(0, fileOf("b"))
	if again, _ := x.refresh(true); !again {
		t.Error("that, too")
	}
	x.want(many...)
	if again, _ := x.refresh(true); again {
		t.Error("it was the same twice")
	}
	x.want("b")
	x.write(0, fileOf(many...))
	x.refresh(true)
	x.write(0, fileOf("a"))
	if again, _ := x.refresh(false); again { // on somebody's word
		t.Error("it was asked for")
	}
	x.want("a")
}

func TestMCPConfigKey(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("good.json", fileOf("a"))
	write("bad.json", "{\n\"mcpServers\": [}")
	for text, want := range map[string]string{
		"mcp_config: [good.json]\n":                              "",
		"mcp_config: [bad.json]\n":                               "bad.json:2: ",
		"mcp_config: [missing.json]\n":                           "missing.json: cannot be read: ",
		"mcp_config: [good.json, ./good.json]\n":                 "mcp_config[1]: \"./good.json\" is given twice",
		"mcp_config: ['']\n":                                     "mcp_config[0]: must name a file",
		"mcp_config: [.]\n":                                      "is no file",
		"mcp_config: [" + strings.Repeat("x.json, ", 33) + "]\n": "at most 32",
	} {
		write("c.yaml", text)
		c, err := LoadConfig(filepath.Join(dir, "c.yaml"))
		switch {
		case want == "" && (err != nil || len(c.MCPConfig) != 1):
			t.Errorf("%s: %v", text, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "c.yaml:1: mcp_config")):
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func TestPlainConfig(t *testing.T) {
	c, err := PlainConfig("127.0.0.1:0", "")
	if err != nil || c.Listen != "127.0.0.1:0" || c.Data != DefaultConfig().Data {
		t.Errorf("%+v %v", c, err)
	}
	if _, err := PlainConfig("0.0.0.0:8080", ""); err == nil {
		t.Error("anybody could come in")
	}
}

// TestImportsGiveWay: the configuration may claim an id that a file of mcp_config has, at a reload too; the file's server gives
// way and comes back when the id is free. What people define by API stays theirs.
func TestImportsGiveWay(t *testing.T) {
	none := "servers: [{id: own, probe: {kind: none}}]\nmcp_config: [mcp.json]\n"
	x := startControlled(t, map[string]string{"c.yaml": none, "mcp.json": fileOf("a", "b", "own")})
	origin := func(id string) statussync.Origin {
		v, err := x.hub.Server(id)
		if err != nil {
			return ""
		}
		return v.Server.Origin
	}
	want := func(when string, origins map[string]statussync.Origin) {
		t.Helper()
		for id, o := range origins {
			if got := origin(id); got != o {
				t.Errorf("%s: %s comes from %q, want %q", when, id, got, o)
			}
		}
	}
	reload := func(config string) []string {
		t.Helper()
		x.write(map[string]string{"c.yaml": config})
		r, err := x.Reload(t.Context(), "test")
		if err != nil {
			t.Fatal(err)
		}
		return r.Warnings
	}
	want("at the start", map[string]statussync.Origin{"a": statussync.OriginMCPConfig, "b": statussync.OriginMCPConfig, "own": statussync.OriginConfig})
	if w := reload(strings.Replace(none, "{id: own", "{id: a, probe: {kind: none}}, {id: own", 1)); len(w) != 2 || !strings.Contains(w[0], `"a"`) || !strings.Contains(w[1], `"own"`) {
		t.Errorf("%q", w)
	}
	want("claimed", map[string]statussync.Origin{"a": statussync.OriginConfig, "b": statussync.OriginMCPConfig})
	reload(none)
	want("free again", map[string]statussync.Origin{"a": statussync.OriginMCPConfig, "own": statussync.OriginConfig})
	if _, err := x.registry.AddServer(t.Context(), statussync.Server{ID: "b"}); statussync.CodeOf(err) != statussync.CodeConflict {
		t.Errorf("%v", err)
	}
	if _, err := x.registry.AddServer(t.Context(), statussync.Server{ID: "later", Probe: statussync.ProbeSpec{Kind: statussync.ProbeNone}}); err != nil {
		t.Fatal(err)
	}
	x.write(map[string]string{"mcp.json": fileOf("a", "later", "new")})
	sync, err := x.SyncAll(t.Context())
	if err != nil || len(sync.Failed) != 1 || !strings.Contains(sync.Failed[0].Detail, `"later"`) {
		t.Errorf("%+v %v", sync, err)
	}
	want("synced", map[string]statussync.Origin{"a": statussync.OriginMCPConfig, "b": "", "later": statussync.OriginManaged, "new": statussync.OriginMCPConfig})

	// Without the key nothing of it is left.
	reload("servers: [{id: own, probe: {kind: none}}]\n")
	want("not read any more", map[string]statussync.Origin{"a": "", "new": "", "own": statussync.OriginConfig})
	// A bad file is refused by a reload like every other fault, and nothing has changed.
	x.write(map[string]string{"mcp.json": "{", "c.yaml": none})
	if _, err := x.Reload(t.Context(), "test"); err == nil || !strings.Contains(err.Error(), "mcp.json:1") {
		t.Errorf("%v", err)
	}

	// Nor does a restart stop a service that could not start again.
	x.write(map[string]string{"c.yaml": "servers: []\n"})
	x.options.MCPConfigs = []string{filepath.Join(x.dir, "mcp.json")}
	if err := x.Restart(t.Context(), "test"); err == nil || !strings.Contains(err.Error(), "mcp.json:1") {
		t.Errorf("%v", err)
	}
}
