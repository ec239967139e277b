//go:build linux

package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestDemo starts the demo as a user does, waits for its first update, watches it for a while, and presses Ctrl-C.
func TestDemo(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(theBinary(t), "demo", "--listen", freeAddr(t))
	cmd.Env = append(environ(), "TMPDIR="+dir, "NO_COLOR=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs lockedBuffer
	cmd.Stderr = &errs
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var (
		mu      sync.Mutex
		base    string
		first   time.Duration
		lines   []string
		updates int
	)
	update := regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3} +\S+ +(running|stopped|starting|stopping|error|unknown)/`)
	address := regexp.MustCompile(`(http://127\.0\.0\.1:\d+)/api/v1/servers`)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for sc := bufio.NewScanner(stdout); sc.Scan(); {
			mu.Lock()
			lines = append(lines, sc.Text())
			if m := address.FindStringSubmatch(sc.Text()); m != nil {
				base = m[1]
			}
			if update.MatchString(sc.Text()) {
				if updates++; updates == 1 {
					first = time.Since(began)
				}
			}
			mu.Unlock()
		}
	}()
	defer func() { cmd.Process.Kill(); <-read; cmd.Wait() }()
	show := func() string {
		mu.Lock()
		defer mu.Unlock()
		out := errs.String()
		for _, l := range lines[max(0, len(lines)-40):] {
			out += l + "\n"
		}
		return out
	}
	waitFor(t, 10*time.Second, "the demo's first update", func() (bool, string) {
		mu.Lock()
		defer mu.Unlock()
		return updates > 0 && base != "", ""
	})
	mu.Lock()
	t.Logf("first update after %s at %s", first.Round(time.Millisecond), base)
	mu.Unlock()

	client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	get := func(path string, out any) {
		t.Helper()
		resp, err := client.Get(base + path)
		if err != nil {
			t.Fatalf("%s: %v\n%s", path, err, show())
		}
		defer closeBody(resp)
		b, _ := io.ReadAll(resp.Body)
		if err := json.Unmarshal(b, out); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %s %s", path, resp.Status, clip(b))
		}
	}
	// What is seen of the fleet: reasons of unhealthy and other conclusions, marks, kinds of entries.
	seen := func() map[string]bool {
		m := map[string]bool{}
		after := ""
		kinds := "&kinds=status,server_added,environment_silent,environment_back,self_doubt"
		for {
			var p pageJSON[entryJSON]
			get("/api/v1/updates?limit=1000"+kinds+"&after="+after, &p)
			for _, e := range p.Items {
				m[e.Kind] = true
				if e.Current == nil {
					continue
				}
				m[e.Current.Reason] = true
				for _, mark := range e.Current.Marks {
					m[mark] = true
				}
				if e.Previous.Health == "unhealthy" && e.Current.Health == "healthy" {
					m["recovery"] = true
				}
			}
			if p.NextCursor == "" || len(p.Items) == 0 {
				return m
			}
			after = p.NextCursor
		}
	}
	limit, want := 25*time.Second, []string{"ok", "crashed", "probe_failing"}
	if full() {
		limit, want = 120*time.Second, []string{
			"ok", "crashed", "probe_failing", "probe_slow", "throttled", "crash_loop", "stuck_starting", "container_unhealthy",
			"not_mcp", "agent_silent", "flapping", "environment_silent", "environment_back", "recovery",
		}
	}
	waitFor(t, limit-time.Since(began).Truncate(time.Second), "the kinds of update", func() (bool, string) {
		got := seen()
		var missing []string
		for _, w := range want {
			if !got[w] {
				missing = append(missing, w)
			}
		}
		return len(missing) == 0, "missing " + joinSorted(missing)
	})
	var p pageJSON[serverJSON]
	get("/api/v1/servers?limit=1000", &p)
	if len(p.Items) != 24 {
		t.Errorf("%d servers, not 24", len(p.Items))
	}
	var envs pageJSON[struct{ ID string }]
	get("/api/v1/environments", &envs)
	if len(envs.Items) != 5 {
		t.Errorf("%d environments, not 5", len(envs.Items))
	}

	pressed := time.Now()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case <-read:
	case <-time.After(10 * time.Second):
		t.Fatalf("Ctrl-C did not end the demo within 10 s\n%s", show())
	}
	err = cmd.Wait()
	if took := time.Since(pressed); took > 3*time.Second {
		t.Errorf("Ctrl-C took %s, not under 3 s", took)
	}
	if err != nil {
		t.Errorf("the demo ended with %v\n%s", err, show())
	}
	if errs.String() != "" {
		t.Errorf("the demo said on its standard error: %s", errs.String())
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("the demo left %v behind", left)
	}
}

func joinSorted(words []string) string {
	slices.Sort(words)
	out := ""
	for _, w := range words {
		out += w + " "
	}
	return out
}

// lockedBuffer is a buffer that a process writes to while the test reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b = append(b.b, p...)
	return len(p), nil
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.b)
}
