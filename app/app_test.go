package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/agentopia/statussync"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// runService runs a service on a free port and returns its base URL and a stop that checks for a clean end in time.
func runService(t *testing.T, c *Config) (base string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan Ready, 1), make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{Config: c, Logger: quiet(), Version: "test", OnReady: func(r Ready) { ready <- r }})
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			began := time.Now()
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("stopped with %v", err)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("stopping took %v", took)
			}
			http.DefaultClient.CloseIdleConnections()
		})
	}
	t.Cleanup(stop)
	select {
	case r := <-ready:
		return r.BaseURL, stop
	case err := <-ended:
		t.Fatalf("did not start: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("did not start in time")
	}
	return "", nil
}

func testConfig(t *testing.T, yaml string) *Config {
	t.Helper()
	c, err := ParseConfig("test.yaml", []byte("listen: 127.0.0.1:0\ndata: "+t.TempDir()+"\n"+yaml))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func get(t *testing.T, url string, into any) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("GET %s: %d %v %s", url, resp.StatusCode, err, b)
	}
	if s, ok := into.(*string); ok {
		*s = string(b)
		return
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

func TestServiceKeepsWhatItKnows(t *testing.T) {
	c := testConfig(t, "environments: [{id: box, agent_token: box-secret}]\nservers: [{id: weather, environment: box}]\n")
	base, stop := runService(t, c)
	req, _ := http.NewRequest("POST", base+"/heartbeat", strings.NewReader(`{"tool_statuses":[{"names":["weather"],"state":"running","status":"Up 2 hours (healthy)"}]}`))
	req.Header.Set("Authorization", "Bearer box-secret")
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != 204 {
		t.Fatalf("heartbeat: %v %v", resp, err)
	}
	resp.Body.Close()
	type status struct {
		State, Health, Reason string
		Version               uint64
	}
	var st status
	for deadline := time.Now().Add(5 * time.Second); st.Health != "healthy"; {
		if time.Now().After(deadline) {
			t.Fatalf("still %+v", st)
		}
		get(t, base+"/api/v1/servers/weather/status", &st)
	}
	var metrics string
	get(t, base+"/metrics", &metrics)
	for _, want := range []string{`statussync_server_health{environment_id="box",server_id="weather"} 1`, "statussync_journal_durable 1", "statussync_heartbeats_total 1", "statussync_probe_lateness_seconds_bucket"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	stop()
	base, _ = runService(t, c)
	var again status
	get(t, base+"/api/v1/servers/weather/status", &again)
	if again != st {
		t.Errorf("after a restart: %+v, was %+v", again, st)
	}
}

func TestServiceRefusals(t *testing.T) {
	c := testConfig(t, "")
	base, _ := runService(t, c)
	run := func(c *Config) error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return Run(ctx, Options{Config: c, Logger: quiet()})
	}
	second := testConfig(t, "")
	second.Listen = strings.TrimPrefix(base, "http://")
	if err := run(second); statussync.CodeOf(err) != statussync.CodeConflict || !strings.Contains(err.Error(), "in use") {
		t.Errorf("the same address: %v", err)
	}
	second = testConfig(t, "")
	second.Data = c.Data
	if err := run(second); statussync.CodeOf(err) != statussync.CodeConflict {
		t.Errorf("the same folder: %v", err)
	}
	if err := Run(context.Background(), Options{ConfigFile: "/nowhere.yaml"}); statussync.CodeOf(err) != statussync.CodeInvalid {
		t.Errorf("no such file: %v", err)
	}
}

// The demo shows its first update in time and stops in time, whatever it is doing.
func TestDemo(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	out := &demoBuffer{first: make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		ended <- RunDemo(ctx, DemoOptions{Listen: "127.0.0.1:0", Version: "test", Out: out})
	}()
	select {
	case <-out.first:
	case err := <-ended:
		t.Fatalf("ended: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatalf("no update within 10 s:\n%s", out.String())
	}
	began := time.Now()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("stopping took %v", took)
	}
}

type demoBuffer struct {
	mu    sync.Mutex
	b     bytes.Buffer
	first chan struct{}
	seen  bool
}

func (d *demoBuffer) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.seen && bytes.Contains(p, []byte("running/healthy")) {
		d.seen = true
		close(d.first)
	}
	return d.b.Write(p)
}

func (d *demoBuffer) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.b.String()
}

func TestDemoTakesAFreePort(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:8080")
	if errors.Is(err, net.ErrClosed) || err != nil {
		return // somebody has it: then the next line is what is tested all the same
	}
	defer ln.Close()
	if got := demoAddress(); got != "127.0.0.1:0" {
		t.Errorf("with 8080 in use: %s", got)
	}
}

func TestSecretsAreMasked(t *testing.T) {
	s := Secret("hush-hush")
	var b bytes.Buffer
	NewLogger(&b, "info", "json").Info("x", "secret", s)
	NewLogger(&b, "info", "text").Info("x", "secret", s)
	if strings.Contains(b.String(), "hush") || s.String() != "***" {
		t.Errorf("a secret shows: %s", b.String())
	}
}
