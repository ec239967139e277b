//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// manager is the socket of a service manager: what the process tells it, in order.
type manager struct {
	path  string
	conn  *net.UnixConn
	lines chan string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify-") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{path: filepath.Join(dir, "s"), lines: make(chan string, 1000)}
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 64<<10)
		for {
			n, err := m.conn.Read(b)
			if err != nil {
				return
			}
			for _, l := range strings.Split(string(b[:n]), "\n") {
				m.lines <- l
			}
		}
	}()
	t.Cleanup(func() {
		m.conn.Close()
		<-done
		os.RemoveAll(dir)
	})
	return m
}

// until waits for a line with the prefix and returns it; it fails where one of not comes first.
func (m *manager) until(t *testing.T, prefix string, not ...string) string {
	t.Helper()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	var before []string
	for {
		select {
		case l := <-m.lines:
			if strings.HasPrefix(l, prefix) {
				return l
			}
			for _, n := range not {
				if strings.HasPrefix(l, n) {
					t.Fatalf("%q came before %q", l, prefix)
				}
			}
			before = append(before, l)
		case <-limit.C:
			t.Fatalf("no %q; there was %q", prefix, before)
		}
	}
}

// TestServiceManager: the real process tells a service manager that it serves, gives signs of life and tells its end.
func TestServiceManager(t *testing.T) {
	m := newManager(t)
	s := newService(t, obj{"servers": list{unprobed("weather", "", "running")}})
	s.env = []string{"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=1000000"}
	s.start()
	m.until(t, "READY=1", "WATCHDOG=1", "STOPPING=1")
	if resp, err := s.http.Get(s.base + "/readyz"); err != nil || resp.StatusCode != 200 {
		t.Errorf("READY=1 was told before it was true: %v", err)
	} else {
		resp.Body.Close()
	}
	if l := m.until(t, "STATUS="); !strings.Contains(l, s.addr) || !strings.Contains(l, "1 servers") {
		t.Errorf("%q", l)
	}
	for range 3 {
		m.until(t, "WATCHDOG=1", "STOPPING=1")
	}
	// A process that does not run gives no sign; when it goes on it does again.
	if err := syscall.Kill(s.pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for drained := false; !drained; {
		select {
		case <-m.lines:
		default:
			drained = true
		}
	}
	pause(t.Context(), 1500*time.Millisecond)
	if n := len(m.lines); n > 2 { // what was under way
		t.Errorf("%d lines of a process that is stopped", n)
	}
	if err := syscall.Kill(s.pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.until(t, "WATCHDOG=1")
	s.stop()
	m.until(t, "STOPPING=1")
	// A watchdog that can't be understood is refused at the start, not found out by a kill later.
	s.env = []string{"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=soon"}
	s.start()
	if code := s.waitExit(10 * time.Second); code == 0 || !strings.Contains(s.tail(), "WATCHDOG_USEC") {
		t.Errorf("exit %d: %s", code, s.tail())
	}
}

// TestRulesAndDashboardAskForWhatThereIs: every metric and label that the rules and the dashboard name is in the /metrics
// of a real service, and Prometheus finds nothing to complain of there.
func TestRulesAndDashboardAskForWhatThereIs(t *testing.T) {
	healthy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer healthy.Close()
	s := startService(t, obj{
		"environments": list{envOf("box", "token-box")},
		"servers": list{
			unprobed("weather", "box", "running"),
			obj{"id": "probed", "environment": "box", "endpoint": healthy.URL + "/mcp", "probe": obj{"url": healthy.URL}},
		},
	})
	call := func(method, path, token, body string, want int) string {
		t.Helper()
		req, err := http.NewRequest(method, s.base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := s.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != want {
			t.Fatalf("%s %s: %d %v %s", method, path, resp.StatusCode, err, b)
		}
		return string(b)
	}
	// What makes the series that are not there from the start: a heartbeat, a mark, a probe, a WebSocket that has ended.
	call("POST", "/heartbeat", "token-box", `{"tool_statuses":[{"names":["weather"],"state":"running","status":"Up 2 hours"}]}`, 204)
	call("PUT", "/api/v1/servers/weather/override", "", `{"state":"running","note":"t"}`, 200)
	call("POST", "/api/v1/servers/probed/probe", "", "", 200)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "ws://"+s.addr+"/api/v1/ws", &websocket.DialOptions{HTTPClient: s.http})
	if err != nil {
		t.Fatal(err)
	}
	ws.CloseNow()
	var text string
	waitFor(t, 20*time.Second, "all series", func() (bool, string) {
		text = call("GET", "/metrics", "", "", 200)
		for _, want := range []string{"statussync_ws_closed_total{", "statussync_server_mark{", "statussync_environment_agent_up{", "statussync_server_probe_latency_seconds{", "statussync_environment_heartbeat_age_seconds{"} {
			if !strings.Contains(text, want) {
				return false, "no " + want
			}
		}
		return true, ""
	})

	if promtool, err := exec.LookPath("promtool"); err == nil {
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics: %v\n%s", err, out)
		}
	} else if os.Getenv("CI") == "true" {
		t.Error("promtool is missing; .ci/setup installs it")
	}

	// Each series there is: its name with the names of its labels.
	labels := map[string]map[string]bool{"up": {"job": true, "instance": true}}
	for _, m := range regexp.MustCompile(`(?m)^([a-zA-Z_:]+)(?:\{(.*)\})? `).FindAllStringSubmatch(text, -1) {
		if labels[m[1]] == nil {
			labels[m[1]] = map[string]bool{"job": true, "instance": true} // Prometheus adds these
		}
		for _, l := range regexp.MustCompile(`([a-z_]+)="`).FindAllStringSubmatch(m[2], -1) {
			labels[m[1]][l[1]] = true
		}
	}
	rules, err := os.ReadFile("../deploy/prometheus/statussync.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	recorded := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)- record: (\S+)`).FindAllStringSubmatch(string(rules), -1) {
		recorded[m[1]] = true
	}
	var exprs []string
	for _, m := range regexp.MustCompile(`(?m)^ {8}expr: (?:\|\n((?: {10}.*\n)+)|(.*)\n)`).FindAllStringSubmatch(string(rules), -1) {
		exprs = append(exprs, m[1]+m[2])
	}
	if want := strings.Count(string(rules), "expr:"); len(exprs) != want {
		t.Fatalf("%d of %d expressions were found", len(exprs), want)
	}
	dashboard, err := os.ReadFile("../deploy/grafana/statussync.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels     []struct{ Targets []struct{ Expr string } }
		Templating struct{ List []struct{ Definition string } }
	}
	if err := json.Unmarshal(dashboard, &d); err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			exprs = append(exprs, q.Expr)
		}
	}
	for _, v := range d.Templating.List {
		exprs = append(exprs, v.Definition)
	}
	name := regexp.MustCompile(`\b(statussync[a-z0-9_:]*|(?:process|go|up)(?:_[a-z_]+)?)\b(\{[^}]*\})?`)
	used := map[string]bool{}
	for _, e := range exprs {
		for _, m := range name.FindAllStringSubmatch(withoutStrings(e), -1) {
			metric := m[1]
			if metric == "statussync" || metric == "go" || metric == "process" {
				continue
			}
			used[metric] = true
			if recorded[metric] {
				continue
			}
			have := labels[metric]
			if have == nil {
				t.Errorf("there is no metric %s: %s", metric, e)
				continue
			}
			for _, l := range regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`).FindAllStringSubmatch(m[2], -1) {
				if !have[l[1]] {
					t.Errorf("%s has no label %s: %s", metric, l[1], e)
				}
			}
		}
		for _, m := range regexp.MustCompile(`\b(?:by|without|on|ignoring)\s*\(([^)]*)\)`).FindAllStringSubmatch(e, -1) {
			for _, l := range strings.Split(m[1], ",") {
				if l = strings.TrimSpace(l); !strings.Contains(fmt.Sprint(labels), " "+l+":true") && !strings.Contains(fmt.Sprint(labels), "["+l+":true") {
					t.Errorf("no metric has the label %s: %s", l, e)
				}
			}
		}
	}
	if len(used) < 35 {
		t.Errorf("only %d metrics are used: %v", len(used), used)
	}
}

// withoutStrings empties the strings of an expression, whose words are no metrics.
func withoutStrings(e string) string {
	return regexp.MustCompile(`"[^"]*"`).ReplaceAllString(e, `""`)
}
