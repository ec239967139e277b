//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// checkRig is remote MCP servers, real and not, on one address.
type checkRig struct {
	t       *testing.T
	url     string
	refused string
	server  *mcp.Server // of all real ones; its sessions are those that clients have open
}

func newCheckRig(t *testing.T) *checkRig {
	srv := mcp.NewServer(&mcp.Implementation{Name: "weather", Version: "2.1.0"}, nil)
	for _, n := range []string{"forecast", "alerts"} {
		mcp.AddTool(srv, &mcp.Tool{Name: n}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
			return nil, nil, nil
		})
	}
	get := func(*http.Request) *mcp.Server { return srv }
	mux := http.NewServeMux()
	mux.Handle("/modern", mcp.NewStreamableHTTPHandler(get, &mcp.StreamableHTTPOptions{Stateless: true}))
	mux.Handle("/legacy", mcp.NewStreamableHTTPHandler(get, nil))
	mux.Handle("/sse", mcp.NewSSEHandler(get, nil))
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer resource_metadata="https://login.example/.well-known/oauth-protected-resource"`)
		http.Error(w, "log in", http.StatusUnauthorized)
	})
	mux.HandleFunc("/html", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, "<html><body>Welcome</body></html>")
	})
	over := make(chan struct{})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-over:
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { // says whatever it was given
		b, _ := json.Marshal(fmt.Sprintf("no: %s, %s, %s", r.Header.Get("Authorization"), r.Header.Get("X-Api-Key"), r.URL.RawQuery))
		var q struct{ ID json.RawMessage }
		_ = json.NewDecoder(r.Body).Decode(&q) // no id is answered with none
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32001,"message":%s}}`, q.ID, b)
	})
	ts := httptest.NewServer(mux)
	refused := "http://" + freeAddr(t) + "/mcp"
	t.Cleanup(func() {
		close(over)
		for ss := range srv.Sessions() {
			ss.Close()
		}
		ts.CloseClientConnections()
		ts.Close()
	})
	return &checkRig{t: t, url: ts.URL, refused: refused, server: srv}
}

func (r *checkRig) sessions() int { return len(slices.Collect(r.server.Sessions())) }

// write makes a configuration file of servers.
func (r *checkRig) write(servers obj) string {
	r.t.Helper()
	b, err := json.MarshalIndent(obj{"mcpServers": servers}, "", "  ")
	if err != nil {
		r.t.Fatal(err)
	}
	file := filepath.Join(r.t.TempDir(), "mcp.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return file
}

// checking is one `statussync check`, whose processes carry a mark.
type checking struct {
	t        *testing.T
	cmd      *exec.Cmd
	mark     string
	out, err bytes.Buffer
	began    time.Time
}

const checkMark = "STATUSSYNC_TEST_MARK"

func newChecking(t *testing.T, dir string, env []string, args ...string) *checking {
	t.Helper()
	c := &checking{t: t, mark: checkMark + "=" + strconv.FormatInt(time.Now().UnixNano(), 36), cmd: exec.Command(theBinary(t), append([]string{"check"}, args...)...)}
	c.cmd.Dir, c.cmd.Env = dir, append(append(environ(), env...), c.mark)
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.err
	c.began = time.Now()
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.cmd.Process.Kill() })
	return c
}

// wait returns the exit code, and how long it took.
func (c *checking) wait() (code int, took time.Duration) {
	_ = c.cmd.Wait() // its code is what is asked
	return c.cmd.ProcessState.ExitCode(), time.Since(c.began)
}

// alive are the processes that carry the mark.
func (c *checking) alive() (list []string) {
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !slices.Contains(strings.Split(string(b), "\x00"), c.mark) {
			continue // gone meanwhile, or another's
		}
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		list = append(list, strings.ReplaceAll(string(line), "\x00", " "))
	}
	return list
}

// nodeServer is the path of an MCP server from npm.
func nodeServer(t *testing.T, name string) (node, path string) {
	t.Helper()
	node, err := exec.LookPath("node")
	if err == nil {
		path, err = filepath.Abs("../probe/mcpprobe/testdata/node/node_modules/@modelcontextprotocol/" + name + "/dist/index.js")
	}
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing; .ci/setup installs it: %v", name, err)
		}
		t.Skipf("%s is missing; .ci/setup installs it: %v", name, err)
	}
	return node, path
}

type checkResult struct {
	Name, Source, Transport, Verdict, Outcome, Cause, Auth, Detail, Advice string
	ProtocolVersion                                                        string `json:"protocol_version"`
	Server                                                                 *struct{ Name, Version string }
	Tools, Resources, Prompts                                              *int
	LatencyMS                                                              *float64 `json:"latency_ms"`
}

// results decodes the output, in which there may be no other fields than those that are documented.
func (c *checking) results() map[string]checkResult {
	c.t.Helper()
	d := json.NewDecoder(bytes.NewReader(c.out.Bytes()))
	d.DisallowUnknownFields()
	var list []checkResult
	if err := d.Decode(&list); err != nil {
		c.t.Fatalf("%v\n%s%s", err, c.out.String(), c.err.String())
	}
	out := map[string]checkResult{}
	for _, r := range list {
		out[r.Name] = r
		if r.Name == "" || r.Source == "" || r.Transport == "" || r.Verdict == "" || r.Outcome == "" || (r.Outcome == "success") != (r.Cause == "" && r.Advice == "") {
			c.t.Errorf("incomplete: %+v", r)
		}
	}
	if len(out) != len(list) {
		c.t.Errorf("%d names of %d results", len(out), len(list))
	}
	return out
}

// TestCheck tells every kind of server apart, in its time, and leaves nothing behind: no process, no session, no secret.
func TestCheck(t *testing.T) {
	node, everything := nodeServer(t, "server-everything")
	_, filesystem := nodeServer(t, "server-filesystem")
	r := newCheckRig(t)
	file := r.write(obj{
		"modern": obj{"url": r.url + "/modern"}, "legacy": obj{"type": "http", "url": r.url + "/legacy"}, "sse": obj{"type": "sse", "url": r.url + "/sse"},
		"everything": obj{"command": node, "args": list{everything, "stdio"}}, "files": obj{"command": node, "args": list{filesystem, t.TempDir()}},
		"login": obj{"url": r.url + "/login"}, "nothing": obj{"url": r.url + "/nowhere"}, "page": obj{"url": r.url + "/html"},
		"refused": obj{"url": r.refused}, "hanging": obj{"url": r.url + "/hang"},
		"no-command": obj{"command": "uvx-that-is-not-there", "args": list{"mcp-server-git"}},
		"no-value":   obj{"command": "npx", "args": list{"x"}, "env": obj{"GITHUB_TOKEN": "${E2E_NOT_SET}"}},
		"flood":      obj{"command": "yes", "args": list{"this is no MCP"}},
		// And what is not to be told.
		"rejected": obj{"url": r.url + "/login", "headers": obj{"Authorization": "Bearer planted-1"}},
		"echo":     obj{"url": r.url + "/echo?api_key=planted-2&v=${E2E_SECRET}", "headers": obj{"Authorization": "Bearer planted-3", "X-Api-Key": "${E2E_SECRET}"}},
		"teller": obj{"command": "sh", "args": list{"-c", `echo "Error: bad key $KEY, $E2E_SECRET" "$@" >&2; exit 3`, "sh", "--token", "planted-4", "API_KEY=planted-5", "${E2E_SECRET}"},
			"env": obj{"KEY": "planted-6"}},
	})
	const timeout = 8 * time.Second
	env := []string{"E2E_SECRET=planted-7"}
	c := newChecking(t, "", env, file, "-o", "json", "--timeout", timeout.String())
	code, took := c.wait()
	t.Logf("it took %s", took.Round(time.Millisecond))
	if code != 1 {
		t.Errorf("exit code %d\n%s", code, c.err.String())
	}
	if took > timeout+2*time.Second {
		t.Errorf("it took %s, with a timeout of %s", took, timeout)
	}
	if left := c.alive(); len(left) > 0 {
		t.Errorf("processes are left: %q", left)
	}
	waitFor(t, 10*time.Second, "no session is left", func() (bool, string) { return r.sessions() == 0, fmt.Sprint(r.sessions()) })
	got := c.results()
	for _, w := range []struct{ name, outcome, cause, auth, verdict, protocol, serves string }{
		{"modern", "success", "", "none", "works", "2026-07-28", "weather"},
		{"legacy", "success", "", "none", "works", "2025-11-25", "weather"},
		{"sse", "success", "", "none", "works", "2025-11-25", "weather"},
		{"everything", "success", "", "", "works", "2025-11-25", "mcp-servers/everything"},
		{"files", "success", "", "", "works", "2025-11-25", "secure-filesystem-server"},
		{"login", "alive", "http_401", "required", "wants a login", "", ""},
		{"rejected", "alive", "http_401", "failed", "rejects your login", "", ""},
		{"nothing", "failure", "http_404", "", "nothing at this path", "", ""},
		{"page", "failure", "not_mcp", "", "answers, but not MCP", "", ""},
		{"refused", "failure", "refused", "", "is not running", "", ""},
		{"hanging", "failure", "timeout", "", "does not answer in time", "", ""},
		{"no-command", "failure", "command_not_found", "", "command not found: uvx-that-is-not-there", "", ""},
		{"no-value", "skipped", "needs_config", "", "needs config: E2E_NOT_SET is not set", "", ""},
		{"flood", "failure", "flood", "", "answers, but not MCP", "", ""},
		{"echo", "alive", "mcp_error", "", "answers with an error", "", ""},
		{"teller", "failure", "exit_3", "", "ended at once with code 3", "", ""},
	} {
		g, ok := got[w.name]
		if !ok || g.Outcome != w.outcome || g.Cause != w.cause || g.Auth != w.auth || g.Verdict != w.verdict || g.ProtocolVersion != w.protocol {
			t.Errorf("%s: %+v", w.name, g)
		}
		if (w.serves != "") != (g.Server != nil && g.Tools != nil && *g.Tools > 0) || g.Server != nil && g.Server.Name != w.serves {
			t.Errorf("%s: %+v offers %v", w.name, g.Server, g.Tools)
		}
		if (w.outcome == "success") != (g.LatencyMS != nil && g.Cause == "") && w.cause != "http_401" && w.cause != "http_404" && w.cause != "not_mcp" && w.cause != "mcp_error" {
			t.Errorf("%s: latency %v", w.name, g.LatencyMS)
		}
	}
	if e := got["everything"]; e.Resources == nil || e.Prompts == nil || *e.Resources == 0 || *e.Prompts == 0 {
		t.Errorf("%+v", e)
	}
	if l := got["login"]; !strings.Contains(l.Detail, "https://login.example/.well-known/oauth-protected-resource") {
		t.Errorf("%+v", l)
	}
	if !strings.Contains(got["echo"].Detail, "***") || !strings.Contains(got["teller"].Detail, "***") {
		t.Errorf("nothing was echoed: %+v %+v", got["echo"], got["teller"])
	}
	table := newChecking(t, "", env, file, "--timeout", "3s", "--fail-on", "never")
	if code, _ := table.wait(); code != 0 {
		t.Errorf("--fail-on never: %d", code)
	}
	if left := table.alive(); len(left) > 0 {
		t.Errorf("processes are left: %q", left)
	}
	for _, word := range []string{"VERDICT", "wants a login", "needs config: E2E_NOT_SET is not set"} {
		if !strings.Contains(table.out.String(), word) {
			t.Errorf("no %q in\n%s", word, table.out.String())
		}
	}
	for _, o := range []*bytes.Buffer{&c.out, &c.err, &table.out, &table.err} {
		if strings.Contains(o.String(), "planted") {
			t.Errorf("a secret is shown:\n%s", o.String())
		}
	}
	if !strings.Contains(c.err.String(), "starts teller: sh -c") {
		t.Errorf("commands are not shown:\n%s", c.err.String())
	}
}

// TestCheckEnds: nothing is left where the check is interrupted, and where it is killed.
func TestCheckEnds(t *testing.T) {
	r := newCheckRig(t)
	servers := obj{"legacy": obj{"url": r.url + "/legacy"}, "hang": obj{"url": r.url + "/hang"}}
	for i := range 3 { // they ignore every request to go, and have children, one of which leaves the group
		servers["deaf"+strconv.Itoa(i)] = obj{"command": "sh", "args": list{"-c", `trap "" TERM INT HUP PIPE; setsid sleep 600 & sleep 600 & while :; do sleep 600; done`}}
	}
	file := r.write(servers)
	begin := func() *checking {
		c := newChecking(t, "", nil, file, "--timeout", "60s")
		// The check, and three guards with a shell and three children each.
		waitFor(t, 20*time.Second, "all are running", func() (bool, string) { n := c.alive(); return len(n) >= 1+3*5, fmt.Sprintf("%q", n) })
		return c
	}
	t.Run("interrupted", func(t *testing.T) {
		c := begin()
		interrupted := time.Now()
		if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		code, _ := c.wait()
		if took := time.Since(interrupted); code != 1 || took > 5*time.Second {
			t.Errorf("exit code %d after %s", code, took)
		}
		if left := c.alive(); len(left) > 0 {
			t.Errorf("processes are left: %q", left)
		}
		if !strings.Contains(c.err.String(), "interrupted") || !strings.Contains(c.out.String(), "not tried") {
			t.Errorf("%s%s", c.out.String(), c.err.String())
		}
		waitFor(t, 10*time.Second, "no session is left", func() (bool, string) { return r.sessions() == 0, fmt.Sprint(r.sessions()) })
	})
	t.Run("killed", func(t *testing.T) {
		c := begin()
		if err := c.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c.wait()
		waitFor(t, 20*time.Second, "no process is left", func() (bool, string) { n := c.alive(); return len(n) == 0, fmt.Sprintf("%q", n) })
	})
}

// TestCheckPlaces finds the files of the well-known clients; exit codes are those that are documented.
func TestCheckPlaces(t *testing.T) {
	r := newCheckRig(t)
	home, project := t.TempDir(), t.TempDir()
	at := r.url + "/modern"
	for path, conf := range map[string]obj{
		filepath.Join(home, ".config/Claude/claude_desktop_config.json"): {"mcpServers": obj{"desktop": obj{"command": "npx", "args": list{"x"}}}},
		filepath.Join(home, ".claude.json"):                              {"mcpServers": obj{"claude-code": obj{"type": "http", "url": at}}, "projects": obj{project: obj{"mcpServers": obj{"of-project": obj{"type": "http", "url": at}}}}},
		filepath.Join(home, ".cursor/mcp.json"):                          {"mcpServers": obj{"cursor": obj{"url": at}}},
		filepath.Join(home, ".config/Code/User/mcp.json"):                {"servers": obj{"vscode": obj{"type": "http", "url": at}}},
		filepath.Join(home, ".codeium/windsurf/mcp_config.json"):         {"mcpServers": obj{"windsurf": obj{"serverUrl": at}}},
		filepath.Join(home, ".gemini/settings.json"):                     {"mcpServers": obj{"gemini": obj{"httpUrl": at}}, "theme": "dark"},
		filepath.Join(project, ".mcp.json"):                              {"mcpServers": obj{"here": obj{"type": "http", "url": at}}},
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		b, _ := json.Marshal(conf) // of strings
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"HOME=" + home, "XDG_CONFIG_HOME=", "APPDATA="}
	c := newChecking(t, project, env, "-o", "json", "--no-stdio", "--timeout", "20s")
	if code, _ := c.wait(); code != 0 {
		t.Errorf("%d\n%s", code, c.err.String())
	}
	got := c.results()
	for name, client := range map[string]string{
		"desktop": "Claude Desktop", "claude-code": "Claude Code", "of-project": "Claude Code", "cursor": "Cursor", "vscode": "VS Code",
		"windsurf": "Windsurf", "gemini": "Gemini", "here": "Claude Code (project)",
	} {
		want := "success"
		if name == "desktop" {
			want = "skipped"
		}
		if g := got[name]; g.Outcome != want || !strings.Contains(c.err.String(), client) {
			t.Errorf("%s: %+v\n%s", name, g, c.err.String())
		}
	}
	if strings.Contains(c.err.String(), "starts ") || got["desktop"].Cause != "left_out" || len(got) != 8 {
		t.Errorf("%s%+v", c.err.String(), got["desktop"])
	}
	empty := newChecking(t, t.TempDir(), []string{"HOME=" + t.TempDir(), "XDG_CONFIG_HOME="})
	if code, _ := empty.wait(); code != 2 || !strings.Contains(empty.err.String(), ".cursor/mcp.json") {
		t.Errorf("nothing is configured: %d %s", code, empty.err.String())
	}

	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte("{\n \"mcpServers\": {\n  \"x\": }\n}"), 0o600); err != nil {
		t.Fatal(err)
	}
	odd := r.write(obj{"good": obj{"url": at}, "odd": obj{"url": 5}})
	for _, e := range []struct {
		args string
		code int
		says string
	}{
		{at, 0, "works"},
		{at + " " + r.url + "/login", 0, "wants a login"},
		{r.url + "/login --fail-on alive", 1, "wants a login"},
		{r.url + "/sse", 0, "sse"},
		{r.refused, 1, "is not running"},
		{r.refused + " --fail-on never", 0, "is not running"},
		{r.refused + " " + at, 1, "1 of 2 servers does not work"},
		{odd, 1, "cannot be understood"},
		{broken, 2, "broken.json:3"},
		{"/nowhere/mcp.json", 2, "cannot be read"},
		{"http://user:pass@h/mcp", 2, "is not an address"},
		{at + " --timeout 0s", 2, "greater than zero"},
		{at + " --fail-on sometimes", 2, "never"},
	} {
		c := newChecking(t, "", nil, strings.Fields(e.args)...)
		code, _ := c.wait()
		both := c.out.String() + c.err.String()
		if code != e.code || !strings.Contains(both, e.says) || strings.Contains(both, "user:pass") {
			t.Errorf("check %s: %d, not %d, or no %q:\n%s", e.args, code, e.code, e.says, both)
		}
	}
}
