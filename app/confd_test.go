package app

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// writeFiles writes files into a folder, making those below it.
func writeFiles(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFragmentsAreMerged(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{
		"c.yaml":             "auth: {legacy_viewer: true, tokens: [{name: ops, role: admin, token: ops-token-1}]}\nservers: [{id: a}]\n",
		"conf.d/10-box.yaml": "environments: [{id: box, agent_token_file: box.token}]\nservers:\n  - {id: b, environment: box}\n",
		"conf.d/box.token":   "box-token-1\n", // beside the fragment that names it
		"conf.d/20-eve.yaml": "auth: {tokens: [{name: eve, role: viewer, token: eve-token-1}]}\n",
		"conf.d/30-c.yaml":   "servers: [{id: c, environment: box}]\nauth:\nenvironments: []\n",
		"conf.d/empty.yaml":  "# nothing\n",
		"conf.d/.#x.yaml":    "no: fragment\n",
		"conf.d/notes.txt":   "no fragment",
		"conf.d/c.yaml~":     "no: fragment\n",
	})
	c, err := LoadConfig(filepath.Join(dir, "c.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, s := range c.Servers {
		ids = append(ids, s.ID)
	}
	if got := strings.Join(ids, " "); got != "a b c" {
		t.Errorf("servers %s", got)
	}
	if len(c.Auth.Tokens) != 2 || !c.Auth.LegacyViewer || c.Auth.Tokens[1].Name != "eve" || c.Environments[0].AgentToken != "box-token-1" {
		t.Errorf("merged to %+v %+v", c.Auth, c.Environments)
	}
	// Bytes have no folder: fragments belong to files.
	if c, err := ParseConfig(filepath.Join(dir, "c.yaml"), []byte("servers: [{id: a}]")); err != nil || len(c.Servers) != 1 {
		t.Errorf("%v %v", c, err)
	}
}

// Tokens may stand in fragments alone: the main file may then listen on any address.
func TestFragmentMakesAuth(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{
		"c.yaml":        "listen: 0.0.0.0:80\nauth: &a\n",
		"conf.d/a.yaml": "auth: {tokens: [{name: ops, role: admin, token: ops-token-1}]}\n",
	})
	if _, err := LoadConfig(filepath.Join(dir, "c.yaml")); err != nil {
		t.Error(err)
	}
}

// Every fault of a fragment names its file and line, and each is told once.
func TestFragmentFaults(t *testing.T) {
	const main = "servers:\n  - {id: a}\n"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []string // how the errors begin, after the folder
	}{
		{"not YAML", map[string]string{"conf.d/x.yaml": "a: [\n"}, []string{"conf.d/x.yaml:2: is not YAML"}},
		{"a list", map[string]string{"conf.d/x.yaml": "- a\n"}, []string{"conf.d/x.yaml:1: must be a mapping, not a list"}},
		{"two documents", map[string]string{"conf.d/x.yaml": "servers: []\n---\nservers: []\n"}, []string{"conf.d/x.yaml:2: a second YAML document"}},
		{"a setting", map[string]string{"conf.d/x.yaml": "servers: [{id: b}]\nprobe: {interval: 1s}\n"},
			[]string{"conf.d/x.yaml:2: probe: belongs into the main file, c.yaml; a fragment may hold environments, servers, auth.tokens"}},
		{"a setting of auth", map[string]string{"conf.d/x.yaml": "auth:\n  legacy_viewer: true\n"}, []string{"conf.d/x.yaml:2: auth.legacy_viewer: belongs into the main file"}},
		{"listen", map[string]string{"conf.d/x.yaml": "listen: 0.0.0.0:1\n"}, []string{"conf.d/x.yaml:1: listen: belongs into the main file"}},
		{"a misspelt key", map[string]string{"conf.d/x.yaml": "server: [{id: b}]\n"}, []string{"conf.d/x.yaml:1: server: is no key of a fragment; a fragment may hold"}},
		{"a key twice", map[string]string{"conf.d/x.yaml": "servers: []\nservers: []\n"}, []string{"conf.d/x.yaml:2"}},
		{"no list", map[string]string{"conf.d/x.yaml": "servers: 7\n"}, []string{"conf.d/x.yaml:1: servers: must be a list, not a single value"}},
		{"no auth", map[string]string{"conf.d/x.yaml": "auth: 7\n"}, []string{"conf.d/x.yaml:1: auth: must be a mapping"}},
		{"a bad server", map[string]string{"conf.d/x.yaml": "servers:\n  - {id: b}\n  - id: c\n    transport: smoke\n"}, []string{"conf.d/x.yaml:4: servers[1].transport: must be one of"}},
		{"an unknown key of a server", map[string]string{"conf.d/x.yaml": "servers:\n  - {idd: b}\n"}, []string{"conf.d/x.yaml:2: servers[0].idd: is no key"}},
		{"the same server in main and fragment", map[string]string{"conf.d/x.yaml": "servers:\n\n  - {id: a}\n"}, []string{`conf.d/x.yaml:3: servers[0].id: "a" is given twice; it stands at DIR/c.yaml:2 already`}},
		{"the same server in two fragments", map[string]string{"conf.d/x.yaml": "servers: [{id: b}]\n", "conf.d/y.yaml": "servers:\n  - {id: b}\n"},
			[]string{`conf.d/y.yaml:2: servers[0].id: "b" is given twice; it stands at DIR/conf.d/x.yaml:1 already`}},
		{"the same environment", map[string]string{"conf.d/x.yaml": "environments: [{id: e}]\n", "conf.d/y.yaml": "environments: [{id: e}]\n"},
			[]string{`conf.d/y.yaml:1: environments[0].id: "e" is given twice; it stands at DIR/conf.d/x.yaml:1 already`}},
		{"the same token's name", map[string]string{"conf.d/x.yaml": "auth: {tokens: [{name: o, role: admin, token: token-one-1}]}\n", "conf.d/y.yaml": "auth: {tokens: [{name: o, role: admin, token: token-two-2}]}\n"},
			[]string{`conf.d/y.yaml:1: auth.tokens[0].name: "o" is given twice; it stands at DIR/conf.d/x.yaml:1 already`}},
		{"the same secret", map[string]string{"conf.d/x.yaml": "auth: {tokens: [{name: o, role: admin, token: token-one-1}]}\n", "conf.d/y.yaml": "environments: [{id: e, agent_token: token-one-1}]\n"},
			[]string{`conf.d/y.yaml:1: environments[0].agent_token: is the same token as auth.tokens[0].token (DIR/conf.d/x.yaml:1)`}},
		{"the same container", map[string]string{"conf.d/x.yaml": "environments: [{id: e}]\nservers: [{id: b, environment: e, container: k}]\n", "conf.d/y.yaml": "servers: [{id: c, environment: e, container: k}]\n"},
			[]string{`conf.d/y.yaml:1: servers[0].container: "k" is the container of servers[0] (DIR/conf.d/x.yaml:2) already`}},
		{"no such environment", map[string]string{"conf.d/x.yaml": "servers:\n  - {id: b, environment: nowhere}\n"}, []string{`conf.d/x.yaml:2: servers[0].environment: no environment has the id "nowhere"`}},
		{"a missing token file", map[string]string{"conf.d/x.yaml": "environments:\n  - {id: e, agent_token_file: e.token}\n", "e.token": "not-beside-it"},
			[]string{"conf.d/x.yaml:2: environments[0].agent_token_file: e.token cannot be read"}},
		{"a name that is not read", map[string]string{"conf.d/x.yml": "servers: []\n"}, []string{"conf.d/x.yml: is not read: the name of a fragment ends in .yaml"}},
		{"a folder", map[string]string{"conf.d/x.yaml/y": ""}, []string{"conf.d/x.yaml: is a directory"}},
		{"conf.d is a file", map[string]string{"conf.d": ""}, []string{"conf.d: cannot be read: "}},
		{"in both files", map[string]string{"c.yaml": "probe: {rise: 0}\n", "conf.d/x.yaml": "servers: [{id: '', environment: f}]\n", "conf.d/a.yaml": "servers:\n  - {}\n"},
			[]string{"c.yaml:1: probe.rise: ", "conf.d/a.yaml:2: servers[0].id: is missing", "conf.d/x.yaml:1: servers[0].environment: ", "conf.d/x.yaml:1: servers[0].id: is missing"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			files := map[string]string{"c.yaml": main}
			maps.Copy(files, c.files)
			writeFiles(t, dir, files)
			_, err := LoadConfig(filepath.Join(dir, "c.yaml"))
			if err == nil {
				t.Fatal("accepted")
			}
			got := strings.Split(strings.ReplaceAll(strings.ReplaceAll(err.Error(), dir, "DIR"), "DIR"+string(filepath.Separator)+"c", "DIR/c"), "\n")
			want := slices.Clone(c.want)
			if c.name == "in both files" { // two faults of one line come in any order
				slices.Sort(got)
			}
			same := len(got) == len(want)
			for i := 0; same && i < len(got); i++ {
				same = strings.HasPrefix(strings.TrimPrefix(got[i], "DIR/"), want[i])
			}
			if !same {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

func TestFragmentBounds(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{"c.yaml": "{}"}
	for i := range maxFragments {
		files[fmt.Sprintf("conf.d/%04d.yaml", i)] = fmt.Sprintf("servers: [{id: s%d}]\n", i)
	}
	writeFiles(t, dir, files)
	c, err := LoadConfig(filepath.Join(dir, "c.yaml"))
	if err != nil || len(c.Servers) != maxFragments {
		t.Fatalf("%d fragments: %v", maxFragments, err)
	}
	writeFiles(t, dir, map[string]string{"conf.d/one-more.yaml": ""})
	if _, err := LoadConfig(filepath.Join(dir, "c.yaml")); err == nil || !strings.Contains(err.Error(), "holds more than 1000 fragments") {
		t.Errorf("one more: %v", err)
	}
	dir = t.TempDir()
	writeFiles(t, dir, map[string]string{"c.yaml": "{}", "conf.d/a.yaml": "#", "conf.d/b.yaml": "#"})
	for _, n := range []string{"a", "b"} {
		if err := os.Truncate(filepath.Join(dir, "conf.d", n+".yaml"), maxConfigBytes/2+1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := LoadConfig(filepath.Join(dir, "c.yaml")); err == nil || !strings.Contains(err.Error(), "b.yaml: is too large") {
		t.Errorf("too large together: %v", err)
	}
}
