//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// mcpChild makes the test binary a process of MCP servers made with the official SDK (runMCPServers).
const mcpChild = "mcp"

// mcpCounts is what its servers count: sessions open now and opened in all, by path.
type mcpCounts map[string]struct{ Live, Opened int }

// runMCPServers serves /s1, /s2, /s3 (sessions), /sse (HTTP+SSE), /stateless, /login (401 for everybody) and /echo (an error
// that quotes the whole request), and at /counts what it counts.
func runMCPServers() int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	mux := http.NewServeMux()
	servers := map[string]*mcp.Server{}
	opened := map[string]*atomic.Int64{}
	for _, name := range []string{"s1", "s2", "s3", "sse", "stateless"} {
		n := new(atomic.Int64)
		srv := mcp.NewServer(&mcp.Implementation{Name: name, Version: "1.2.3"}, &mcp.ServerOptions{
			InitializedHandler: func(context.Context, *mcp.InitializedRequest) { n.Add(1) },
		})
		mcp.AddTool(srv, &mcp.Tool{Name: "noop"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, struct{}, error) {
			return nil, struct{}{}, nil
		})
		servers[name], opened[name] = srv, n
		get := func(*http.Request) *mcp.Server { return srv }
		var h http.Handler = mcp.NewStreamableHTTPHandler(get, &mcp.StreamableHTTPOptions{Stateless: name == "stateless"})
		if name == "sse" {
			h = mcp.NewSSEHandler(get, nil)
		}
		mux.Handle("/"+name, h)
	}
	mux.HandleFunc("/login", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer resource_metadata="http://example.com/.well-known/oauth-protected-resource"`)
		http.Error(w, "who are you?", http.StatusUnauthorized)
	})
	mux.HandleFunc("/echo/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		msg, _ := json.Marshal(fmt.Sprintf("no %s %s for %q", r.Method, r.URL, r.Header))
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":%s}}`, msg)
	})
	mux.HandleFunc("/counts", func(w http.ResponseWriter, _ *http.Request) {
		c := mcpCounts{}
		for name, srv := range servers {
			live := 0
			for range srv.Sessions() {
				live++
			}
			c[name] = struct{ Live, Opened int }{live, int(opened[name].Load())}
		}
		json.NewEncoder(w).Encode(c)
	})
	fmt.Println(ln.Addr())
	go func() { // ends with the test that started it
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	http.Serve(ln, mux)
	return 0
}

func (c *child) counts(t testing.TB) mcpCounts {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get("http://" + c.addr + "/counts")
	if err != nil {
		t.Fatal(err)
	}
	defer closeBody(resp)
	var out mcpCounts
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

// noSessions waits until a path has no session left.
func (c *child) noSessions(t testing.TB, limit time.Duration, why string, names ...string) {
	t.Helper()
	waitFor(t, limit, "no session after "+why, func() (bool, string) {
		counts := c.counts(t)
		for _, n := range names {
			if counts[n].Live > 0 {
				return false, fmt.Sprint(counts)
			}
		}
		return true, ""
	})
}

type mcpStatusJSON struct {
	statusJSON
	Auth            string `json:"auth"`
	ProtocolVersion string `json:"protocol_version"`
	Server          struct{ Name, Version string }
}

func (s *service) mcpStatus(id string) (st mcpStatusJSON) {
	s.t.Helper()
	s.getJSON("/api/v1/servers/"+id+"/status", &st)
	return st
}

func mcpServer(id, addr, transport string) obj {
	return obj{"id": id, "endpoint": "http://" + addr + "/" + id, "transport": transport}
}

// mcpProbes are the probe defaults of these tests: the kind is not said, so MCP servers are asked as such.
func mcpProbes() obj { return obj{"kind": nil, "interval": "1s", "slow_after": "5s", "timeout": "10s"} }

// TestMCPSessions counts, at the servers, the sessions that probing opens: never more than one of each server, and none
// after it was removed by a reload or by API, and after SIGTERM.
func TestMCPSessions(t *testing.T) {
	c := startChildAs(t, mcpChild)
	servers := list{
		mcpServer("s1", c.addr, "streamable-http"), mcpServer("s2", c.addr, "streamable-http"), mcpServer("sse", c.addr, "sse"),
		mcpServer("stateless", c.addr, "streamable-http"), mcpServer("login", c.addr, "streamable-http"),
	}
	conf := obj{"servers": servers, "probe": mcpProbes(), "allow_networks": list{"127.0.0.0/8"}}
	s := startService(t, conf)
	for _, id := range []string{"s1", "s2", "sse", "stateless"} {
		s.waitStatus(20*time.Second, id, "running", "healthy", "ok")
		st := s.mcpStatus(id)
		if want := map[string]string{"s1": "2025-11-25", "s2": "2025-11-25", "sse": "2025-11-25", "stateless": "2026-07-28"}[id]; st.ProtocolVersion != want || st.Auth != "none" {
			t.Errorf("%s: %+v, want %s", id, st, want)
		}
		if id != "stateless" && (st.Server.Name != id || st.Server.Version != "1.2.3") {
			t.Errorf("%s: %+v", id, st)
		}
	}
	code, _ := s.request("POST", "/api/v1/servers", []byte(`{"id":"s3","endpoint":"http://`+c.addr+`/s3"}`), "Content-Type", "application/json")
	if code != 201 {
		t.Fatalf("POST /servers: %d", code)
	}
	s.waitStatus(20*time.Second, "s3", "running", "healthy", "ok")

	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); <-tick.C {
		for name, n := range c.counts(t) {
			if n.Live > 1 || n.Opened > 1 {
				t.Fatalf("%s: %d sessions, %d opened in all", name, n.Live, n.Opened)
			}
		}
	}
	for _, id := range []string{"s1", "sse", "stateless"} {
		if st := s.status(id); st.CheckCount < 8 {
			t.Errorf("%s was asked %d times in 15 s at an interval of 1 s", id, st.CheckCount)
		}
	}
	// Who wants a login never alarms.
	if st := s.mcpStatus("login"); st.key() != "running/healthy/ok/" || st.Auth != "required" {
		t.Errorf("login: %+v", st)
	}
	for _, e := range s.history("login") {
		if e.Current != nil && (e.Current.Health == "unhealthy" || e.Current.Health == "degraded") {
			t.Errorf("login: %s", e)
		}
	}
	if v, _ := s.metric("statussync_mcp_sessions"); v != 3 {
		t.Errorf("%v sessions by the metrics, want 3 and a stream", v)
	}

	if code, _ := s.request("DELETE", "/api/v1/servers/s3", nil); code != 204 {
		t.Fatalf("DELETE: %d", code)
	}
	c.noSessions(t, 10*time.Second, "a removal", "s3")
	conf["servers"] = list{servers[0], servers[2], servers[3], servers[4]}
	s.configure(conf)
	s.reload()
	c.noSessions(t, 10*time.Second, "a reload that removes it", "s2")
	if n := c.counts(t); n["s1"].Live != 1 || n["s1"].Opened != 1 || n["sse"].Live != 1 {
		t.Errorf("a reload touched others: %v", n)
	}
	s.stop()
	c.noSessions(t, 5*time.Second, "SIGTERM", "s1", "s2", "s3", "sse", "stateless")
}

// TestMCPServerDies: a server that is gone is found within its interval.
func TestMCPServerDies(t *testing.T) {
	c := startChildAs(t, mcpChild)
	s := startService(t, obj{"probe": mcpProbes(), "servers": list{
		mcpServer("s1", c.addr, "streamable-http"), mcpServer("sse", c.addr, "sse"), mcpServer("stateless", c.addr, "streamable-http"),
	}})
	ids := []string{"s1", "sse", "stateless"}
	for _, id := range ids {
		s.waitStatus(20*time.Second, id, "running", "healthy", "ok")
	}
	waitFor(t, 20*time.Second, "the start to be long ago", func() (bool, string) {
		for _, id := range ids {
			if st := s.status(id); st.CheckCount < 4 { // failures right after a start are forgiven
				return false, fmt.Sprintf("%+v", st)
			}
		}
		return true, ""
	})
	died := time.Now()
	c.signal(t, syscall.SIGKILL)
	for _, id := range ids {
		s.waitStatus(20*time.Second, id, "error", "unhealthy", "probe_failing")
		h := s.history(id)
		// An interval with its jitter, and what a loaded machine may add.
		if took := h[0].Timestamp.Sub(died); took > 4*time.Second {
			t.Errorf("%s: found %s after it died", id, took)
		}
	}
}

// TestMCPConfig runs the service on an mcp.json alone: its changes are followed, a half-written file changes nothing, and what
// is secret in it is nowhere to be found.
func TestMCPConfig(t *testing.T) {
	c := startChildAs(t, mcpChild)
	s := newService(t, obj{})
	file := filepath.Join(s.dir, ".cursor", "mcp.json")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	url := "http://" + c.addr
	const (
		inHeader, inQuery, inPath, inEnv, literal = "planted-header-1", "planted-query-2", "planted-path-3", "planted-env-4", "planted-literal-5"
	)
	text := `{
  // as the clients accept it
  "mcpServers": {
    "one": {"url": "` + url + `/s1?key=${PLANTED_QUERY}", "headers": {"Authorization": "Bearer ${PLANTED_HEADER}"}},
    "two": {"url": "` + url + `/s2"},
    "echo": {"url": "` + url + `/echo/${PLANTED_PATH}/x?key=` + literal + `", "headers": {"X-Key": "` + literal + `"}},
    "local": {"command": "npx", "args": ["${PLANTED_ENV}"], "env": {"KEY": "${PLANTED_ENV}", "K2": "` + literal + `"}},
    "unset": {"url": "` + url + `/s3", "headers": {"Authorization": "Bearer ${NOT_THERE}"}},
  },
}`
	write(text)
	s.env = []string{"PLANTED_HEADER=" + inHeader, "PLANTED_QUERY=" + inQuery, "PLANTED_PATH=" + inPath, "PLANTED_ENV=" + inEnv}
	s.args = []string{"serve", "--mcp-config", file, "--listen", s.addr, "--data", s.data}
	s.start()
	s.ready()
	s.waitStatus(20*time.Second, "one", "running", "healthy", "ok")
	s.waitStatus(20*time.Second, "two", "running", "healthy", "ok")
	s.waitStatus(5*time.Second, "local", "unknown", "unknown", "needs_agent")
	s.waitStatus(5*time.Second, "unset", "unknown", "unknown", "needs_config")
	s.waitStatus(20*time.Second, "echo", "running", "healthy", "ok") // an MCP error proves that it lives
	if st := s.mcpStatus("one"); st.Auth != "ok" || st.Server.Name != "s1" {
		t.Errorf("%+v", st)
	}

	// Half written: nothing changes, and it is told with file and line.
	write(text[:len(text)/2])
	waitFor(t, 20*time.Second, "the fault in the log", func() (bool, string) {
		return strings.Contains(s.wholeLog(), file+":"), s.tail()
	})
	if all, _ := s.servers(""); len(all) != 5 {
		t.Errorf("%v", all)
	}
	// Changed: one goes, one comes.
	write(strings.Replace(text, `"two": {"url": "`+url+`/s2"}`, `"three": {"type": "sse", "url": "`+url+`/sse"}`, 1))
	waitFor(t, 20*time.Second, "the new server", func() (bool, string) {
		all, _ := s.servers("")
		return all["three"].ID != "", s.tail()
	})
	s.waitStatus(20*time.Second, "three", "running", "healthy", "ok")
	if all, _ := s.servers(""); len(all) != 5 || all["two"].ID != "" {
		t.Errorf("%v", all)
	}
	c.noSessions(t, 10*time.Second, "it left the file", "s2")
	if n := c.counts(t); n["s1"].Live != 1 || n["s1"].Opened != 1 {
		t.Errorf("the others are not to be touched: %v", n)
	}
	if code, b := s.request("POST", "/api/v1/servers", []byte(`{"id":"one","endpoint":"https://example.com/mcp"}`), "Content-Type", "application/json"); code != 409 || !bytes.Contains(b, []byte("an MCP configuration file")) {
		t.Errorf("%d %s", code, b)
	}
	s.reload()

	// What is secret is nowhere to be found.
	secrets := []string{inHeader, inQuery, inPath, inEnv, literal}
	search := func(where string, b []byte) {
		for _, v := range secrets {
			if bytes.Contains(b, []byte(v)) {
				t.Errorf("%s has %s", where, v)
			}
		}
	}
	if code, _ := s.request("POST", "/api/v1/probes", []byte("{}"), "Content-Type", "application/json"); code != 200 {
		t.Errorf("POST /probes: %d", code)
	}
	for _, path := range []string{
		"/api/v1/servers", "/api/v1/servers/one", "/api/v1/servers/echo", "/api/v1/servers/echo/status?explain=true", "/api/v1/servers/local",
		"/api/v1/servers/unset/status?explain=true", "/api/v1/updates?limit=1000&kinds=status,server_added,server_changed,server_removed",
		"/api/v1/servers/echo/history", "/api/v1/uptime", "/api/v1/incidents", "/api/v1/servers/echo/probes", "/api/v1/sync/metrics",
		"/metrics", "/readyz", "/openapi.json",
	} {
		code, b := s.request("GET", path, nil)
		if code != 200 {
			t.Errorf("%s: %d %s", path, code, clip(b))
		}
		search(path, b)
	}
	code, b := s.request("POST", "/api/v1/sync", []byte("{}"), "Content-Type", "application/json")
	if code != 200 {
		t.Errorf("POST /sync: %d %s", code, clip(b))
	}
	search("POST /sync", b)
	code, b = s.request("POST", "/api/v1/servers/echo/probe", []byte("{}"), "Content-Type", "application/json")
	if code != 200 {
		t.Errorf("POST probe: %d %s", code, clip(b))
	}
	search("POST probe", b)
	if !bytes.Contains(b, []byte("no POST /echo/***/x?***")) {
		t.Errorf("the server's own words are to be shown, without what is secret: %s", b)
	}
	stored := func() {
		t.Helper()
		files := 0
		if err := filepath.WalkDir(s.data, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if err == nil {
				files++
				search(path, b)
			}
			return nil // one that SQLite has just removed
		}); err != nil || files == 0 {
			t.Errorf("%d files, %v", files, err)
		}
	}
	stored()
	s.stop()
	c.noSessions(t, 5*time.Second, "SIGTERM", "s1", "s2", "sse")
	stored()
	search("the log", []byte(s.wholeLog()))

	// After a restart nothing is told anew of what did not change.
	s.start()
	s.ready()
	s.waitStatus(20*time.Second, "one", "running", "healthy", "ok")
	for _, id := range []string{"one", "echo", "local"} {
		for _, e := range s.history(id) {
			if e.Kind == "server_changed" {
				t.Errorf("%s", e)
			}
		}
	}
	s.stop()

	// A file that can't be used is refused at the start, with file and line.
	write(text[:len(text)/2])
	code, _, errs := cli(t, nil, s.args...)
	if code != 2 || !strings.Contains(errs, file+":") {
		t.Errorf("%d %s", code, errs)
	}
}
