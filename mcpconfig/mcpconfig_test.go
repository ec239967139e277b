package mcpconfig

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
)

var env = map[string]string{"TOKEN": "tok-0123456789", "EMPTY": "", "PORT": "9000", "HOST": "h.example"}

func options() Options {
	return Options{Home: "/home/u", Lookup: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
}

// want is what of an entry a test compares.
type want struct {
	Name, Transport, URL, Command, Dir, Needs string
	Args                                      []string
	Env, Headers                              map[string]string
	Disabled                                  bool
}

func wants(f *File) (out []want) {
	for _, e := range f.Entries {
		out = append(out, want{e.Name, string(e.Transport), e.URL, e.Command, e.Dir, e.NeedsConfig, e.Args, e.Env, e.Headers, e.Disabled})
	}
	return out
}

func TestFormats(t *testing.T) {
	for _, c := range []struct {
		name, file string
		format     Format
		in         string
		want       []want
	}{
		{"claude", "/p/.mcp.json", FormatMCPServers, `{"mcpServers": {
			"fs": {"command": "npx", "args": ["-y", "pkg", "${HOME_OF:-/data}"], "env": {"K": "${K:-x}", "T": "${TOKEN}"}},
			"api": {"type": "http", "url": "https://${HOST}/mcp", "headers": {"Authorization": "Bearer ${TOKEN}"}},
			"old": {"type": "sse", "url": "https://h/sse"}, // a comment
			"plain": {"url": "http://localhost:${PORT}/mcp",},
			"off": {"command": "x", "disabled": true},
			"needs": {"command": "x", "env": {"GITHUB_TOKEN": "${GITHUB_TOKEN}"}},
			"empty": {"command": "x", "env": {"A": "${EMPTY:-d}", "B": "${EMPTY}", "N": 5, "F": false, "Z": null}}
		}}`, []want{
			{Name: "fs", Transport: "stdio", Command: "npx", Args: []string{"-y", "pkg", "/data"}, Env: map[string]string{"K": "x", "T": "tok-0123456789"}},
			{Name: "api", Transport: "streamable-http", URL: "https://h.example/mcp", Headers: map[string]string{"Authorization": "Bearer tok-0123456789"}},
			{Name: "old", Transport: "sse", URL: "https://h/sse"},
			{Name: "plain", Transport: "streamable-http", URL: "http://localhost:9000/mcp"},
			{Name: "off", Transport: "stdio", Command: "x", Disabled: true},
			{Name: "needs", Transport: "stdio", Command: "x", Env: map[string]string{"GITHUB_TOKEN": "${GITHUB_TOKEN}"}, Needs: "GITHUB_TOKEN is not set"},
			{Name: "empty", Transport: "stdio", Command: "x", Env: map[string]string{"A": "d", "B": "", "N": "5", "F": "false"}},
		}},
		{"cursor and others", "/x/mcp.json", FormatMCPServers, "\xef\xbb\xbf" + `{"mcpServers": {
			"a": {"url": "https://a/mcp", "headers": {"X": "${env:TOKEN}"}},
			"w": {"serverUrl": "https://w/mcp"},
			"cline": {"type": "streamableHttp", "url": "https://c/mcp", "disabled": false, "autoApprove": []},
			"copilot": {"type": "local", "command": "~/bin/s", "args": [], "tools": ["*"], "cwd": "~/w"}
		}}`, []want{
			{Name: "a", Transport: "streamable-http", URL: "https://a/mcp", Headers: map[string]string{"X": "tok-0123456789"}},
			{Name: "w", Transport: "streamable-http", URL: "https://w/mcp"},
			{Name: "cline", Transport: "streamable-http", URL: "https://c/mcp"},
			{Name: "copilot", Transport: "stdio", Command: "/home/u/bin/s", Args: []string{}, Dir: "/home/u/w"},
		}},
		{"gemini", "/home/u/.gemini/settings.json", FormatMCPServers, `{"theme": "dark", "mcpServers": {
			"h": {"httpUrl": "https://h/mcp", "timeout": 5000}, "s": {"url": "https://h/sse"}, "t": {"url": "https://h/mcp", "type": "http"}}}`, []want{
			{Name: "h", Transport: "streamable-http", URL: "https://h/mcp"},
			{Name: "s", Transport: "sse", URL: "https://h/sse"},
			{Name: "t", Transport: "streamable-http", URL: "https://h/mcp"},
		}},
		{"vscode", "/work/p/.vscode/mcp.json", FormatVSCode, `{
			"inputs": [{"type": "promptString", "id": "k", "password": true}],
			"servers": {
				"api": {"type": "http", "url": "https://a/mcp", "headers": {"X": "${input:k}"}},
				"local": {"type": "stdio", "command": "node", "args": ["${workspaceFolder}/s.js", "${userHome}"]}
			}}`, []want{
			{Name: "api", Transport: "streamable-http", URL: "https://a/mcp", Headers: map[string]string{"X": "${input:k}"}, Needs: "k is asked for by the editor (input:k)"},
			{Name: "local", Transport: "stdio", Command: "node", Args: []string{"/work/p/s.js", "/home/u"}},
		}},
		{"vscode settings", "/s/settings.json", FormatVSCode, `{"editor.x": 1, "mcp": {"servers": {"a": {"url": "http://a"}}}}`, []want{
			{Name: "a", Transport: "streamable-http", URL: "http://a"},
		}},
		{"server.json", "server.json", FormatServerJSON, `{"name": "io.github.u/x", "description": "d", "version": "1.0.0", "remotes": [
			{"type": "sse", "url": "https://h/sse"},
			{"type": "streamable-http", "url": "https://{tenant}.h/mcp", "variables": {"tenant": {"default": "t1"}},
			 "headers": [{"name": "Authorization", "value": "Bearer ${TOKEN}", "isRequired": true, "isSecret": true}, {"name": "Opt"}]}],
			"packages": [{"registryType": "npm", "identifier": "@u/x", "version": "1.0.0", "transport": {"type": "stdio"}}]}`, []want{
			{Name: "io.github.u/x", Transport: "streamable-http", URL: "https://t1.h/mcp", Headers: map[string]string{"Authorization": "Bearer tok-0123456789"}},
		}},
		{"server.json that needs", "server.json", FormatServerJSON, `{"name": "x", "remotes": [{"type": "streamable-http", "url": "https://{tenant}.h/mcp",
			"headers": [{"name": "Authorization", "isRequired": true}]}]}`, []want{
			{Name: "x", Transport: "streamable-http", URL: "https://{tenant}.h/mcp", Needs: "tenant has no value, the header Authorization has no value"},
		}},
		{"packages", "list.json", FormatRegistryList, `{"servers": [
			{"server": {"name": "npm", "packages": [{"registryType": "npm", "identifier": "@u/x", "version": "1.2.3", "transport": {"type": "stdio"},
				"environmentVariables": [{"name": "TOKEN", "isRequired": true, "isSecret": true}, {"name": "NOPE", "isRequired": true}],
				"packageArguments": [{"type": "positional", "value": "/d"}, {"type": "named", "name": "--n", "value": "1"}]}]},
			 "_meta": {"io.modelcontextprotocol.registry/official": {"status": "active", "isLatest": true}}},
			{"server": {"name": "older", "packages": [{"registryType": "npm", "identifier": "y"}]},
			 "_meta": {"io.modelcontextprotocol.registry/official": {"status": "active", "isLatest": false}}},
			{"server": {"name": "py", "packages": [{"registryType": "pypi", "identifier": "z", "version": "2"}]}},
			{"server": {"name": "oci", "packages": [{"registryType": "oci", "identifier": "ghcr.io/u/i:1", "environmentVariables": [{"name": "TOKEN"}]}]}},
			{"server": {"name": "served", "packages": [{"registryType": "npm", "identifier": "q", "transport": {"type": "streamable-http", "url": "http://localhost:3000/mcp"}}]}},
			{"server": {"name": "nothing"}}], "metadata": {"nextCursor": "…"}}`, []want{
			{Name: "npm", Transport: "stdio", Command: "npx", Args: []string{"-y", "@u/x@1.2.3", "/d", "--n", "1"}, Env: map[string]string{"TOKEN": "tok-0123456789"}, Needs: "NOPE is not set"},
			{Name: "py", Transport: "stdio", Command: "uvx", Args: []string{"z==2"}},
			{Name: "oci", Transport: "stdio", Command: "docker", Args: []string{"run", "-i", "--rm", "-e", "TOKEN", "ghcr.io/u/i:1"}, Env: map[string]string{"TOKEN": "tok-0123456789"}},
			{Name: "served", Transport: "streamable-http", URL: "http://localhost:3000/mcp"},
		}},
		{"toolhive", "run.json", FormatToolHive, `{"schema_version": "v0.1.0", "name": "x", "image": "i", "transport": "streamable-http", "host": "0.0.0.0", "port": 4321, "target_port": 80}`, []want{
			{Name: "x", Transport: "streamable-http", URL: "http://127.0.0.1:4321/mcp"},
		}},
		{"toolhive stdio", "run.json", FormatToolHive, `{"schema_version": "v0.1.0", "name": "x", "transport": "stdio", "host": "::1", "port": 1}`, []want{
			{Name: "x", Transport: "sse", URL: "http://[::1]:1/sse"},
		}},
		{"toolhive remote", "run.json", FormatToolHive, `{"schema_version": "v0.1.0", "name": "x", "remote_url": "https://r/mcp", "transport": "streamable-http"}`, []want{
			{Name: "x", Transport: "streamable-http", URL: "https://r/mcp"},
		}},
		{"docker inspect", "c.json", FormatDocker, `[
			{"Id": "1", "Name": "/th", "Config": {"Labels": {"toolhive": "true", "toolhive-name": "fetch", "toolhive-transport": "stdio", "toolhive-port": "5555"}}},
			{"Id": "2", "Name": "/dm", "Config": {"Labels": {"docker-mcp": "true", "docker-mcp-name": "time", "docker-mcp-transport": "stdio"}}},
			{"Id": "3", "Name": "/http", "Config": {"Labels": {"docker-mcp": "true", "docker-mcp-transport": "streamable-http"}}, "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "", "HostPort": "8081"}], "1/udp": null}}},
			{"Id": "4", "Name": "/shut", "Config": {"Labels": {"docker-mcp": "true", "docker-mcp-transport": "sse"}}},
			{"Id": "5", "Name": "/db", "Config": {"Labels": null}}]`, []want{
			{Name: "fetch", Transport: "sse", URL: "http://127.0.0.1:5555/sse"},
			{Name: "time", Transport: "stdio"},
			{Name: "http", Transport: "streamable-http", URL: "http://127.0.0.1:8081/mcp"},
			{Name: "shut", Transport: "sse", Needs: "its container publishes no port"},
		}},
		{"empty", "e.json", FormatMCPServers, `{"mcpServers": {}}`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := Parse(c.file, []byte(c.in), options())
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, wants(f)); d != "" || len(f.Errors) > 0 || f.Format != c.format {
				t.Errorf("%s %v\n%s", f.Format, f.Errors, d)
			}
		})
	}
}

func TestProjects(t *testing.T) {
	in := `{"numStartups": 3, "mcpServers": {"everywhere": {"command": "a"}}, "projects": {
		"/p": {"mcpServers": {"here": {"type": "stdio", "command": "${workspaceFolder}/b"}}, "history": []}, "/q": {"mcpServers": {"there": {"command": "c"}}}}}`
	o := options()
	o.Project = "/p"
	f, err := Parse("/home/u/.claude.json", []byte(in), o)
	if err != nil || len(f.Entries) != 2 || f.Entries[0].Name != "everywhere" || f.Entries[1].Command != "/p/b" {
		t.Errorf("%v %+v", err, f)
	}
	if f, err := Parse("c", []byte(`{"projects": {}}`), o); err != nil || len(f.Entries) != 0 {
		t.Errorf("%v %+v", err, f)
	}
}

// Each fault is told with its place and the server's name, and the other servers are read.
func TestFaults(t *testing.T) {
	for in, want := range map[string]string{
		`{"command": 5}`:                                    "must be a string",
		`{"command": "x", "args": "y"}`:                     "args must be a list",
		`{"command": "x", "args": [{}]}`:                    "args[0] must be a string",
		`{"command": "x", "env": []}`:                       "env must be an object",
		`{"command": "x", "env": {"A": []}}`:                "env.A must be a string",
		`{"command": "x", "env": {"A=": "b"}}`:              "characters that are not allowed",
		`{"url": "http://h", "headers": {"A": "b\r\nC:d"}}`: "characters that are not allowed",
		`{"url": "h/mcp"}`:                                  "must begin with http",
		`{"url": "ws://h/mcp"}`:                             "WebSocket",
		`{"url": "http://u:p@h/mcp"}`:                       "user name or password",
		`{"url": "http://"}`:                                "no host",
		`{"url": "http://h:port"}`:                          "is not a URL",
		`{"type": "carrier-pigeon", "url": "http://h"}`:     "type must be one of",
		`{"type": "http", "command": "x"}`:                  "no url",
		`{"type": "stdio", "url": "http://h"}`:              "no command",
		`{}`:                                                "neither a command nor a url",
		`[]`:                                                "must be an object",
		`{"command": "x", "disabled": "no"}`:                "true or false",
	} {
		f, err := Parse("m.json", []byte("{\n\"mcpServers\": {\n\"good\": {\"command\": \"x\"},\n/* why\n */ \"bad\":\n"+in+"}}"), options())
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if len(f.Entries) != 1 || len(f.Errors) != 1 || f.Errors[0].Location != "m.json:6" ||
			!strings.HasPrefix(f.Errors[0].Detail, `"bad": `) || !strings.Contains(f.Errors[0].Detail, want) {
			t.Errorf("%s: %d entries, %v", in, len(f.Entries), f.Errors)
		}
	}
}

func TestNoConfiguration(t *testing.T) {
	deep := strings.Repeat(`{"a":[`, MaxDepth) + strings.Repeat(`]}`, MaxDepth)
	for in, want := range map[string]struct {
		code statussync.Code
		text string
	}{
		"":                         {statussync.CodeInvalid, "f:1: is not JSON"},
		"{\n\"a\": nope-secret}":   {statussync.CodeInvalid, "f:2: is not JSON"},
		"{\"mcpServers\": {}\n} x": {statussync.CodeInvalid, "f:2: is not JSON"},
		`"x"`:                      {statussync.CodeInvalid, "must be an object"},
		`{"mcpServers": []}`:       {statussync.CodeInvalid, "mcpServers must be an object"},
		`[{"a": 1}]`:               {statussync.CodeInvalid, "docker inspect"},
		`{"editor.fontSize": 12}`:  {statussync.CodeNotFound, "names no MCP servers"},
		deep:                       {statussync.CodeInvalid, "deeper"},
		"\n// [[[ {{{\n/* \n */ {\"a\\\"[\": \n" + deep: {statussync.CodeInvalid, "f:5: objects and lists"},
		strings.Repeat(" ", MaxBytes+1):                 {statussync.CodeInvalid, "larger than"},
	} {
		_, err := Parse("f", []byte(in), options())
		if statussync.CodeOf(err) != want.code || !strings.Contains(err.Error(), want.text) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.40q: %v", in, err)
		}
	}
	many := map[string]any{}
	for i := range MaxServers + 1 {
		many[string(rune('a'+i%26))+strings.Repeat("x", i/26)] = map[string]any{"command": "x"}
	}
	b, _ := json.Marshal(map[string]any{"mcpServers": many})
	if _, err := Parse("f", b, options()); statussync.CodeOf(err) != statussync.CodeInvalid {
		t.Errorf("%v", err)
	}
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadFile(filepath.Join(dir, "none"), Options{}); statussync.CodeOf(err) != statussync.CodeNotFound {
		t.Error(err)
	}
	if _, err := ReadFile(dir, Options{}); statussync.CodeOf(err) != statussync.CodeInvalid {
		t.Error(err)
	}
	p := filepath.Join(dir, "mcp.json")
	if err := os.WriteFile(p, []byte(`{"mcpServers": {"a": {"command": "x"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := ReadFile(p, Options{}); err != nil || len(f.Entries) != 1 || f.Entries[0].Source != p || f.Entries[0].Line != 1 {
		t.Errorf("%v %+v", err, f)
	}
}

func TestServers(t *testing.T) {
	f, err := Parse("m.json", []byte(`{"mcpServers": {"a b": {"url": "http://h/mcp", "headers": {"X": "secret-value"}}, "a/b": {"command": "x"}, "ü": {"url": "${NOPE}"}, "": {"command": "x"}}}`), options())
	if err != nil || len(f.Errors) > 0 {
		t.Fatal(err, f.Errors)
	}
	var got []string
	for _, s := range f.Servers("mcp-") {
		got = append(got, s.ID+" "+string(s.Transport)+" "+s.NeedsConfig)
		if s.Origin != statussync.OriginMCPConfig {
			t.Error(s.Origin)
		}
	}
	if d := cmp.Diff([]string{"mcp-a-b streamable-http ", "mcp-a-b-2 stdio ", "mcp-server streamable-http NOPE is not set", "mcp-without-a-name stdio "}, got); d != "" {
		t.Error(d)
	}
}

// Values that are secret are in the entry's own fields and in nothing that is shown.
func TestSecrets(t *testing.T) {
	in := `{"mcpServers": {
		"a": {"command": "x", "env": {"A": "planted-1"}},
		"b": {"url": "http://planted-2@h", "headers": {"H": "planted-3"}},
		"c": {"url": "planted-4", "headers": {"H": "planted-5\r\n"}},
		"d": {"type": "planted-6", "command": 1},
		"e": {"url": "https://${V}/x y", "headers": {"H": "${W}"}}}}`
	f, err := Parse("m.json", []byte(in), Options{Lookup: func(k string) (string, bool) { return "planted-7", k == "V" }})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range f.Errors {
		if strings.Contains(strings.ReplaceAll(e.Error(), "planted-6", ""), "planted") { // a type is no place for secrets
			t.Error(e)
		}
	}
	for _, e := range f.Entries {
		if strings.Contains(e.NeedsConfig+e.Name, "planted") {
			t.Errorf("%+v", e)
		}
	}
	if len(f.Entries) != 2 || len(f.Errors) != 3 {
		t.Errorf("%d %v", len(f.Entries), f.Errors)
	}
}

func TestPlaces(t *testing.T) {
	none := func(string) string { return "" }
	for _, c := range []struct {
		goos string
		want string
	}{
		{"linux", "/home/u/.config/Claude/claude_desktop_config.json"},
		{"darwin", "/home/u/Library/Application Support/Claude/claude_desktop_config.json"},
	} {
		found := map[string]bool{}
		for _, p := range Places(c.goos, "/home/u", "/p", none) {
			if p.Client == "" || !filepath.IsAbs(p.Path) || found[p.Path] {
				t.Errorf("%+v", p)
			}
			found[p.Path] = true
		}
		for _, w := range []string{c.want, "/p/.mcp.json", "/home/u/.claude.json", "/home/u/.cursor/mcp.json", "/home/u/.gemini/settings.json", "/home/u/.codeium/windsurf/mcp_config.json", "/p/.vscode/mcp.json"} {
			if !found[w] {
				t.Errorf("%s: %s is not looked at", c.goos, w)
			}
		}
	}
	if got := Places("linux", "", "", none); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"mcpServers":{"a":{"command":"x","args":["${A:-b}"],"env":{"K":"v"}}}}`, `{"servers":{"a":{"type":"http","url":"https://h/${input:k}"}}}`,
		`{"name":"x","remotes":[{"type":"sse","url":"https://{a}/"}],"packages":[]}`, `{"servers":[{"server":{"packages":[{"registryType":"npm","identifier":"x"}]}}]}`,
		`{"schema_version":"1","transport":"sse","port":1}`, `[{"Id":"1","Config":{"Labels":{"docker-mcp":"true"}}}]`, "// c\n{\"mcpServers\":{},}", `{"a":/**/"\u12"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Parse("f", b, Options{Home: "/h", Lookup: func(k string) (string, bool) { return "value of " + k, len(k)%2 == 0 }})
		if err != nil {
			var se *statussync.Error
			if !errors.As(err, &se) || se.Detail == "" || !strings.HasPrefix(se.Location, "f") {
				t.Fatalf("%v", err)
			}
			return
		}
		ids := map[string]bool{}
		for i, s := range file.Servers("p-") {
			e := &file.Entries[i]
			if ids[s.ID] || s.Name != statussync.CleanText(s.Name, statussync.MaxNameText) || e.Line < 1 {
				t.Fatalf("%+v", e)
			}
			ids[s.ID] = true
			switch {
			case e.Transport != statussync.TransportStdio && e.Transport != statussync.TransportSSE && e.Transport != statussync.TransportStreamableHTTP:
				t.Fatalf("transport %q", e.Transport)
			case e.Transport == statussync.TransportStdio && e.URL != "", e.Transport != statussync.TransportStdio && e.Command != "":
				t.Fatalf("%+v", e)
			case e.Transport != statussync.TransportStdio && e.NeedsConfig == "" && urlFault(e.URL) != "":
				t.Fatalf("%+v", e)
			}
		}
	})
}
