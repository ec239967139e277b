//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childEnv makes the test binary a server of its own: it answers 200 to everything until it is killed, and prints its
// address first. With a value that is JSON it is an agent (runAgent).
const childEnv = "E2E_CHILD"

func runChild() int {
	if spec := os.Getenv(childEnv); strings.HasPrefix(spec, "{") {
		return runAgent(spec)
	} else if spec == mcpChild {
		return runMCPServers()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(ln.Addr())
	go func() { // ends with the test that started it
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "OK") }))
	return 0
}

// child is a real server process.
type child struct {
	cmd  *exec.Cmd
	addr string
}

func startChild(t testing.TB) *child { return startChildAs(t, "1") }

func startChildAs(t testing.TB, what string) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd}
	t.Cleanup(func() { stdin.Close(); cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	c.addr = strings.TrimSpace(line)
	return c
}

func (c *child) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	c.cmd.Wait()
}

// TestOscillation is what the original design got wrong: two inputs that overwrote each other and flipped a sick server
// healthy and unhealthy at every cycle. Here agents report "running" all the time while the probe fails: one update to
// unhealthy, and one back.
func TestOscillation(t *testing.T) {
	g := newTarget(t)
	s := startService(t, obj{
		"environments": list{envOf("box", "token-box")},
		"servers": list{
			obj{"id": "sick", "environment": "box", "probe": g.probe("/sick")},
			obj{"id": "well", "environment": "box", "probe": g.probe("/well")},
		},
	})
	beat := heartbeat(container("sick", "running", "Up 2 hours (healthy)"), container("well", "running", "Up 2 hours"))
	s.postHeartbeat("token-box", beat)
	s.waitStatus(10*time.Second, "sick", "running", "healthy", "ok")
	s.waitStatus(10*time.Second, "well", "running", "healthy", "ok")
	waitFor(t, 10*time.Second, "the first probes", func() (bool, string) { // until then it is well only by report
		return s.status("sick").CheckCount > 1 && s.status("well").CheckCount > 1, ""
	})
	before := len(s.history("sick"))
	wellBefore := len(s.history("well"))

	// cycles waits for n more probes of the sick one, with a heartbeat before each look.
	cycles := func(n uint64) {
		t.Helper()
		begin := s.status("sick").CheckCount
		waitFor(t, 60*time.Second, fmt.Sprintf("%d probes", n), func() (bool, string) {
			s.postHeartbeat("token-box", beat)
			count := s.status("sick").CheckCount
			return count >= begin+n, fmt.Sprintf("%d since", count-begin)
		})
	}
	statuses := []int{503, 500, 404, modeReset}
	for _, mode := range statuses {
		g.set("/sick", mode)
		cycles(10)
	}
	got := s.history("sick")[before:]
	if len(got) != 1 || got[0].Current.Health != "unhealthy" || got[0].Current.Reason != "probe_failing" || got[0].Current.State != "running" {
		t.Fatalf("while the probe failed: %v, not one update to running/unhealthy/probe_failing", got)
	}
	g.set("/sick", 200)
	cycles(30)
	got = s.history("sick")[before:]
	if len(got) != 2 || got[1].Current.Health != "healthy" {
		t.Fatalf("after the recovery: %v, not one update to unhealthy and one back", got)
	}
	if n := len(s.history("well")); n != wellBefore {
		t.Errorf("the well one has %d new entries: %v", n-wellBefore, s.history("well")[wellBefore:])
	}
	s.stop()
}

// TestProcessDies kills real server processes on a host that lives: by accident, which must be told within one
// heartbeat, and on purpose, which must never be told as a fault.
func TestProcessDies(t *testing.T) {
	dies, quick, stopped, wanted, lives := startChild(t), startChild(t), startChild(t), startChild(t), startChild(t)
	probe := func(c *child, interval string) obj {
		return obj{"kind": "http", "url": "http://" + c.addr + "/health", "interval": interval}
	}
	s := startService(t, obj{
		"environments": list{envOf("box", "token-box")},
		"servers": list{
			// Probed too seldom for the probe to tell: only the heartbeat can.
			obj{"id": "dies", "environment": "box", "probe": probe(dies, "30s")},
			obj{"id": "quick", "environment": "box", "probe": probe(quick, "200ms")},
			obj{"id": "stopped", "environment": "box", "desired": "stopped", "probe": probe(stopped, "30s")},
			obj{"id": "wanted", "environment": "box", "desired": "running", "probe": probe(wanted, "30s")},
			// Were it not for this one, the host itself would be taken for dead in the end.
			obj{"id": "lives", "environment": "box", "probe": probe(lives, "200ms")},
		},
	})
	all := map[string]obj{}
	for _, id := range []string{"dies", "quick", "stopped", "wanted", "lives"} {
		all[id] = container(id, "running", "Up 2 hours")
	}
	beat := func() {
		t.Helper()
		s.postHeartbeat("token-box", heartbeat(all["dies"], all["quick"], all["stopped"], all["wanted"], all["lives"]))
	}
	beat()
	for id := range all {
		s.waitStatus(10*time.Second, id, "running", "healthy", "ok")
	}

	// Killed: its probe is not due for 30 s.
	dies.signal(t, syscall.SIGKILL)
	all["dies"] = container("dies", "exited", "Exited (137) Less than a second ago")
	began := time.Now()
	beat()
	st := s.waitStatus(3*time.Second, "dies", "stopped", "unhealthy", "crashed")
	if st.Cause != "exit_137" {
		t.Errorf("the cause is %q, not exit_137", st.Cause)
	}
	t.Logf("told %s after the heartbeat", time.Since(began).Round(time.Millisecond))

	// Killed, and the probe is quicker than the heartbeat.
	quick.signal(t, syscall.SIGKILL)
	s.waitStatus(10*time.Second, "quick", "running", "unhealthy", "probe_failing")
	all["quick"] = container("quick", "exited", "Exited (137) 3 seconds ago")
	beat()
	s.waitStatus(3*time.Second, "quick", "stopped", "unhealthy", "crashed")

	// Stopped on purpose: wanted so, clean exit, and the probe that is triggered by the report finds nobody.
	stopped.signal(t, syscall.SIGTERM)
	all["stopped"] = container("stopped", "exited", "Exited (0) Less than a second ago")
	beat()
	s.waitStatus(3*time.Second, "stopped", "stopped", "unknown", "ok")
	code, b := s.request("POST", "/api/v1/servers/stopped/probe", nil, "Content-Type", "application/json")
	if code != 200 || !strings.Contains(string(b), `"failure"`) {
		t.Errorf("a probe of the stopped one answered %d %s", code, clip(b))
	}
	for range 5 {
		beat()
	}
	s.waitStatus(3*time.Second, "stopped", "stopped", "unknown", "ok")
	for _, e := range s.history("stopped") {
		if e.Current != nil && e.Current.Health == "unhealthy" {
			t.Errorf("a server that was stopped on purpose was called unhealthy: %s", e)
		}
	}

	// A clean exit of a wanted one: the report is doubted, the probe asked, and it is down: stopped_unexpectedly.
	wanted.signal(t, syscall.SIGTERM)
	all["wanted"] = container("wanted", "exited", "Exited (143) Less than a second ago")
	beat()
	s.waitStatus(15*time.Second, "wanted", "stopped", "unhealthy", "stopped_unexpectedly")
	s.stop()
}
