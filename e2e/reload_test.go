//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// cadence is a target that notes when each path was asked.
type cadence struct {
	srv   *httptest.Server
	began time.Time
	mu    sync.Mutex
	times map[string][]time.Duration // since began
}

func newCadence(t *testing.T, paths int) *cadence {
	c := &cadence{began: time.Now(), times: make(map[string][]time.Duration, paths)}
	c.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at := time.Since(c.began)
		c.mu.Lock()
		c.times[r.URL.Path] = append(c.times[r.URL.Path], at)
		c.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	}))
	c.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	c.srv.Start()
	t.Cleanup(c.srv.Close)
	return c
}

func (c *cadence) count(path string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.times[path])
}

// writeFragment puts a fragment beside the configuration, in the place of an earlier one.
func (s *service) writeFragment(name string, v any) {
	s.t.Helper()
	dir := filepath.Join(s.dir, "conf.d")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

type differenceJSON struct {
	Added     []string `json:"added"`
	Changed   []string `json:"changed"`
	Removed   []string `json:"removed"`
	Unchanged int      `json:"unchanged"`
}

type reloadJSON struct {
	Servers      differenceJSON `json:"servers"`
	Tokens       differenceJSON `json:"tokens"`
	Settings     []string       `json:"settings"`
	NeedsRestart []string       `json:"needs_restart"`
	DurationMS   float64        `json:"duration_ms"`
}

func (s *service) reload() reloadJSON {
	s.t.Helper()
	code, b := s.request("POST", "/api/v1/reload", []byte(""))
	if code != 200 {
		s.t.Fatalf("POST /reload: %d %s\n%s", code, clip(b), s.tail())
	}
	var r reloadJSON
	if err := json.Unmarshal(b, &r); err != nil {
		s.t.Fatal(err)
	}
	return r
}

// listener reads a WebSocket until it ends, and notes entries' servers by kind.
type listener struct {
	conn  *websocket.Conn
	ended chan struct{}
	err   error

	mu   sync.Mutex
	told map[string]map[string]int // frame type → server → count
}

func (s *service) listen() *listener {
	s.t.Helper()
	l := &listener{conn: s.ws("/api/v1/ws"), ended: make(chan struct{}), told: map[string]map[string]int{}}
	send(s.t, l.conn, obj{"type": "subscribe", "channel": "mcp_server_status", "filters": list{obj{"kinds": list{"status", "server_added", "server_changed", "server_removed"}}}})
	expect(s.t, l.conn, "subscribed")
	l.conn.SetReadDeadline(time.Time{})
	go func() {
		defer close(l.ended)
		for {
			var f frame
			_, b, err := l.conn.ReadMessage()
			if err == nil {
				err = json.Unmarshal(b, &f)
			}
			if err != nil {
				l.err = err
				return
			}
			var e struct {
				ServerID string `json:"server_id"`
			}
			if f.Data != nil && json.Unmarshal(f.Data, &e) == nil {
				l.mu.Lock()
				if l.told[f.Type] == nil {
					l.told[f.Type] = map[string]int{}
				}
				l.told[f.Type][e.ServerID]++
				l.mu.Unlock()
			}
		}
	}()
	return l
}

func (s *service) wholeLog() string {
	b, err := os.ReadFile(s.logFile)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// lateness is how many probes began within each bound of the time that they were due, and not within the bound before.
func (s *service) lateness() map[time.Duration]int {
	s.t.Helper()
	code, b := s.request("GET", "/metrics", nil)
	if code != 200 {
		s.t.Fatalf("/metrics: %d", code)
	}
	out := map[time.Duration]int{}
	before := 0
	for _, m := range regexp.MustCompile(`(?m)^statussync_probe_lateness_seconds_bucket\{le="([^"]+)"\} (\S+)$`).FindAllStringSubmatch(string(b), -1) {
		bound, err := strconv.ParseFloat(m[1], 64)
		n, err2 := strconv.ParseFloat(m[2], 64)
		if err != nil || err2 != nil {
			s.t.Fatal(m)
		}
		if bound > 3600 {
			bound = 3600
		}
		out[time.Duration(bound*float64(time.Second))] = int(n) - before
		before = int(n)
	}
	if len(out) < 5 {
		s.t.Fatal("no histogram of lateness")
	}
	return out
}

// TestReloadUnderLoad: 5,000 probed servers, clients that listen, and reloads that change 10 servers each while probes run.
// Unchanged servers are probed as if nothing happened, nothing is told about them, and no connection ends.
func TestReloadUnderLoad(t *testing.T) {
	const (
		fleet   = 5000
		moving  = 10  // servers that every reload changes
		quick   = 300 // of the others, those that are probed every few seconds; two thirds of an interval of the rest is longer than the test
		often   = 4 * time.Second
		seldom  = 2 * time.Minute
		hearers = 20
		watched = 12 * time.Second
	)
	target := newCadence(t, fleet)
	id := func(i int) string { return fmt.Sprintf("s%04d", i) }
	still := make(list, 0, fleet-moving)
	for i := moving; i < fleet; i++ {
		probe := obj{"url": target.srv.URL + "/" + id(i)}
		if i < moving+quick {
			probe["interval"] = often.String()
		}
		still = append(still, obj{"id": id(i), "probe": probe})
	}
	turn := 0
	moved := func() obj { // the other 10, each time otherwise
		l := list{}
		for i := range moving {
			l = append(l, obj{"id": id(i), "name": fmt.Sprintf("turn %d", turn), "probe": obj{"url": target.srv.URL + "/" + id(i), "interval": often.String()}})
		}
		turn++
		return obj{"servers": l}
	}
	s := newService(t, obj{
		"auth":    obj{"commands_per_second": 1000, "tokens": list{obj{"name": "ops", "role": "admin", "token": "ops-token-1"}}},
		"servers": still,
		"probe":   obj{"interval": seldom.String(), "timeout": "9s", "concurrency": 32, "per_environment": 32, "slow_after": "8900ms", "start_grace": "30s", "max_retries": 3},
		"log":     obj{"level": "warn"},
	})
	s.token = "ops-token-1"
	s.http.Timeout = 2 * time.Minute // a machine that is busy with other things is no failure
	s.writeFragment("moving.yaml", moved())
	s.start()
	s.ready()
	waitFor(t, 2*time.Minute, "probes of the quick servers, and a store that has kept up", func() (bool, string) {
		n := 0
		for i := moving; i < moving+quick; i++ {
			n += min(1, target.count("/"+id(i)))
		}
		return n == quick, fmt.Sprint(n)
	})
	waitFor(t, time.Minute, "a store that has kept up", func() (bool, string) {
		_, r := s.readyz()
		return r.Durable, fmt.Sprintf("%+v", r)
	})
	var page pageJSON[serverJSON]
	s.getJSON("/api/v1/servers?limit=1", &page)
	var hear []*listener
	for range hearers {
		hear = append(hear, s.listen())
	}
	from, quiet := time.Since(target.began), len(s.wholeLog())
	lateBefore := s.lateness()
	// The longest time that this process did not run: what it measures can be late by that.
	var stall atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stalls sync.WaitGroup
	stalls.Go(func() {
		for last := time.Now(); ctx.Err() == nil; last = time.Now() {
			pause(ctx, 10*time.Millisecond)
			stall.Store(max(stall.Load(), int64(time.Since(last)-10*time.Millisecond)))
		}
	})

	reloads, longest := 0, 0.0
	for deadline := time.Now().Add(watched); time.Now().Before(deadline); reloads++ {
		s.writeFragment("moving.yaml", moved())
		if r := s.reload(); len(r.Servers.Changed) != moving || r.Servers.Unchanged != fleet-moving || len(r.Servers.Added)+len(r.Servers.Removed)+len(r.NeedsRestart)+len(r.Settings) > 0 {
			t.Fatalf("reload %d: %+v", reloads, r)
		} else {
			longest = max(longest, r.DurationMS)
		}
		if reloads%4 == 3 { // a bad one in between changes nothing
			s.writeFragment("zz-bad.yaml", obj{"servers": list{obj{"id": id(0)}}})
			code, b := s.request("POST", "/api/v1/reload", []byte(""))
			if code != 400 || !strings.Contains(string(b), "zz-bad.yaml:1") {
				t.Fatalf("a bad file: %d %s", code, clip(b))
			}
			if err := os.Remove(filepath.Join(s.dir, "conf.d", "zz-bad.yaml")); err != nil {
				t.Fatal(err)
			}
		}
		pause(ctx, 500*time.Millisecond)
	}
	to := time.Since(target.began)
	cancel()
	stalls.Wait()
	slack := time.Duration(stall.Load())
	// A probe that begins late makes a longer gap, and says so in its histogram; one that was planned otherwise does not.
	for bound, n := range s.lateness() {
		if n > lateBefore[bound] {
			slack = max(slack, bound)
		}
	}

	// Where the machine had no time for us, what the service promises about time can't be seen.
	_, head := s.servers("&q=s0000")
	var faults []string
	fault := func(format string, args ...any) {
		if len(faults) < 20 {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	defer func() {
		log := s.wholeLog()[quiet:]
		busy := strings.Contains(log, "the process did not run") || strings.Contains(log, "an append took more than") || time.Duration(stall.Load()) > 2*time.Second
		switch {
		case len(faults) == 0:
		case busy:
			t.Skipf("the machine was too busy to see: stood still for %v; %v\n%s", time.Duration(stall.Load()), faults, log)
		default:
			t.Error(strings.Join(faults, "\n"))
		}
	}()

	// Nobody's connection ended.
	for i, l := range hear {
		select {
		case <-l.ended:
			fault("connection %d ended: %v", i, l.err)
		default:
		}
	}
	// Nothing was told about unchanged servers but what their first probe found, and every change of the others once.
	s.settled(id(0))
	if epochOf(head) != epochOf(page.Cursor) {
		fault("the epoch went from %s to %s", page.Cursor, head)
		return
	}
	kinds := map[string]int{}
	firsts := map[string]bool{}
	for _, e := range s.updates(page.Cursor, "&kinds=status,server_added,server_changed,server_removed") {
		switch first := e.Kind == "status" && e.Previous.State == "unknown" && e.Current.State == "running" && !firsts[e.ServerID]; {
		case first:
			firsts[e.ServerID] = true
		case e.ServerID >= id(moving):
			fault("about an unchanged server: %s", e)
		default:
			kinds[e.Kind]++
		}
	}
	if kinds["server_changed"] != reloads*moving || len(kinds) != 1 {
		fault("%v entries after %d reloads of %d servers", kinds, reloads, moving)
	}
	for i, l := range hear {
		deadline := time.Now().Add(20 * time.Second)
		for n := 0; n != reloads*moving; pause(t.Context(), 10*time.Millisecond) {
			n = 0
			l.mu.Lock()
			for _, k := range l.told["server_changed"] {
				n += k
			}
			l.mu.Unlock()
			if time.Now().After(deadline) {
				fault("connection %d was told %d changes, not %d", i, n, reloads*moving)
				break
			}
		}
		l.conn.Close()
		<-l.ended
	}

	// Probes kept their cadence: ±10 % of the interval, and what this machine was late.
	target.mu.Lock()
	defer target.mu.Unlock()
	doubled, skipped, probes := 0, 0, 0
	for i := moving; i < fleet; i++ {
		times := target.times["/"+id(i)]
		if i >= moving+quick {
			// The first comes within a third of the interval, the second not before half of one.
			if probes += len(times); len(times) > 1 {
				doubled++
			}
			continue
		}
		last := times[0]
		for _, at := range times[1:] {
			// Before its first status a server is asked more often.
			if gap := at - last; last >= from {
				probes++
				if gap < often/2-slack {
					doubled++
				}
				if gap > often*3/2+slack {
					skipped++
				}
			}
			last = at
		}
		if to-last > often*3/2+slack {
			skipped++
		}
	}
	t.Logf("%d reloads of up to %.0f ms, %d probes of unchanged servers, %d too early, %d too late; slack %v", reloads, longest, probes, doubled, skipped, slack)
	if reloads < 3 || probes < quick {
		fault("only %d reloads and %d probes", reloads, probes)
	}
	if doubled > 0 {
		fault("%d servers were probed twice within half the interval", doubled)
	}
	if skipped > 0 {
		fault("%d servers were not probed within one and a half intervals", skipped)
	}
}

// TestHangup: SIGHUP reloads the real process; a bad file is logged and changes nothing.
func TestHangup(t *testing.T) {
	s := startService(t, obj{"servers": list{unprobed("a", "", "running")}})
	hup := func() {
		t.Helper()
		if err := syscall.Kill(s.pid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	has := func(id string) bool {
		code, _ := s.request("GET", "/api/v1/servers/"+id, nil)
		return code == 200
	}
	s.writeFragment("b.yaml", obj{"servers": list{unprobed("b", "", "running")}})
	hup()
	waitFor(t, 20*time.Second, "the new server", func() (bool, string) { return has("b"), "" })
	s.writeFragment("b.yaml", obj{"servers": list{obj{"id": "c", "environment": "nowhere"}}})
	hup()
	waitFor(t, 20*time.Second, "why not, in the log", func() (bool, string) {
		log := s.tail()
		return strings.Contains(log, "b.yaml:1: servers[0].environment: no environment has the id") && strings.Contains(log, "nothing has changed"), ""
	})
	if !has("a") || !has("b") || has("c") {
		t.Error("a bad file changed something")
	}
	s.stop()
}

// TestRestartByAPI: the process stays, everything else is new; a client that follows sees no gap, and whoever connects
// meanwhile is served and never refused.
func TestRestartByAPI(t *testing.T) {
	s := startService(t, obj{"servers": list{unprobed("a", "", "running"), unprobed("b", "", "running")}})
	pid := s.pid()
	f := &follower{name: "ws", sub: obj{}}
	stop := s.follow(f, "")
	sse := &follower{name: "sse", sse: true, query: url.Values{}}
	stopSSE := s.follow(sse, "")
	waitFor(t, 20*time.Second, "both followers", func() (bool, string) {
		n := 0
		for _, x := range []*follower{f, sse} {
			x.mu.Lock()
			n += len(x.subscribed)
			x.mu.Unlock()
		}
		return n == 2, fmt.Sprint(n)
	})
	_, ready := s.readyz()
	var p pageJSON[serverJSON]
	s.getJSON("/api/v1/servers?limit=1", &p)
	if ready.Status != "ready" {
		t.Fatalf("%+v", ready)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var knocking sync.WaitGroup
	var knocks atomic.Int64
	knocking.Go(func() {
		for ctx.Err() == nil {
			c, err := net.DialTimeout("tcp", s.addr, 20*time.Second)
			if errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("refused after %d connections", knocks.Load())
				return
			}
			if err == nil {
				knocks.Add(1)
				c.Close()
			}
		}
	})
	force := func(turn int) {
		t.Helper()
		state := []string{"stopped", "running", "error"}[turn%3]
		b, err := json.Marshal(obj{"state": state, "note": "turn"})
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, 20*time.Second, "an override", func() (bool, string) {
			code, answer, err := s.tryRequest("PUT", "/api/v1/servers/"+[]string{"a", "b"}[turn%2]+"/override", b)
			return err == nil && code == 200, fmt.Sprint(code, err, clip(answer))
		})
	}
	turn := 0
	for range 3 {
		for range 4 {
			force(turn)
			turn++
		}
		code, stdout, stderr := cli(t, []string{"STATUSSYNC_SERVER=" + s.base}, "restart")
		if code != 0 || !strings.Contains(stdout, "ready again") {
			t.Fatalf("statussync restart: %d %s %s\n%s", code, stdout, stderr, s.tail())
		}
	}
	for range 4 {
		force(turn)
		turn++
	}
	cancel()
	knocking.Wait()
	if s.pid() != pid {
		t.Error("it is another process")
	}
	want := s.updates(p.Cursor, "")
	if len(want) < turn {
		t.Errorf("%d updates after %d overrides", len(want), turn)
	}
	for _, x := range []*follower{f, sse} {
		waitFor(t, 20*time.Second, x.name+" to catch up", func() (bool, string) {
			x.mu.Lock()
			defer x.mu.Unlock()
			return len(x.told) > 0 && x.told[len(x.told)-1].Seq == want[len(want)-1].Seq, fmt.Sprint(len(x.told), x.faults)
		})
	}
	stop()
	stopSSE()
	for _, x := range []*follower{f, sse} {
		if len(x.resyncs) > 0 || len(x.faults) > 0 {
			t.Errorf("%s: resyncs %v, faults %v", x.name, x.resyncs, x.faults)
		}
		seqs := map[uint64]bool{}
		for _, e := range x.told {
			if seqs[e.Seq] {
				t.Errorf("%s was told %s twice", x.name, e)
			}
			seqs[e.Seq] = true
		}
		for _, e := range want {
			if !seqs[e.Seq] {
				t.Errorf("%s was never told %s", x.name, e)
			}
		}
	}
	s.stop()
}
