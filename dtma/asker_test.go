package dtma

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
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/guard"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// channel is an Observer that passes on what it is given.
type channel struct {
	c   chan statussync.Observation
	err error
}

func (o channel) Observe(ctx context.Context, obs ...statussync.Observation) error {
	for _, x := range obs {
		select {
		case o.c <- x:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return o.err
}

func (o channel) TryObserve(...statussync.Observation) error { return errors.ErrUnsupported }

func (o channel) Submit(context.Context, ...statussync.Observation) ([]*statussync.Entry, error) {
	return nil, errors.ErrUnsupported
}

func (o channel) next(t *testing.T) statussync.Observation {
	t.Helper()
	select {
	case x := <-o.c:
		return x
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was observed")
		return nil
	}
}

func start(t *testing.T, o AskerOptions) (*Asker, channel) {
	t.Helper()
	a, to := NewAsker(o), channel{c: make(chan statussync.Observation, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, to) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(a.agents) != 0 && a.asking != 0 {
			t.Errorf("%d agents are left, %d asked", len(a.agents), a.asking)
		}
	})
	return a, to
}

func agentServer(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

func ask(env, url string) statussync.Request {
	return statussync.Request{Ask: &statussync.AskAgent{EnvironmentID: env, URL: url, Trusted: true, Timeout: 500 * time.Millisecond}}
}

func TestAskerReports(t *testing.T) {
	var heartbeat struct {
		System json.RawMessage `json:"system_status"`
		Tools  json.RawMessage `json:"tool_statuses"`
	}
	if err := json.Unmarshal(sample(t, "heartbeat-field.json"), &heartbeat); err != nil {
		t.Fatal(err)
	}
	seen := make(chan *http.Request, 1)
	url := agentServer(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		_, _ = fmt.Fprintf(w, `{"status":"healthy","timestamp":"2026-01-02T03:04:05Z","version":"0.1.0","tool_instances":%s,"system_metrics":%s}`,
			heartbeat.Tools, heartbeat.System)
	})
	a, to := start(t, AskerOptions{UserAgent: "statussync/1"})
	for base, path := range map[string]string{url: "/status", url + "/": "/status", url + "/base/?secret=x": "/base/status"} {
		a.Do([]statussync.Request{{}, ask("box", base)})
		rep, ok := to.next(t).(*statussync.AgentReport)
		if !ok || rep.EnvironmentID != "box" || rep.Via != statussync.ViaPull || rep.List != statussync.ListComplete ||
			len(rep.Containers) != 4 || rep.AgentVersion != "0.1.0" || rep.AgentTime.IsZero() || rep.System.Disk == nil {
			t.Errorf("%+v", rep)
		}
		r := <-seen
		if r.Method != "GET" || r.RequestURI != path || r.Header.Get("Authorization") != "" || r.UserAgent() != "statussync/1" {
			t.Errorf("the agent saw %s %s, %v", r.Method, r.RequestURI, r.Header)
		}
	}
}

func TestAskerFailures(t *testing.T) {
	hang := agentServer(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	answer := func(code int, body string) string {
		return agentServer(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "http://" + l.Addr().String()
	_ = l.Close()
	stuck := agentServer(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"status":`)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	a, to := start(t, AskerOptions{})
	for url, cause := range map[string]string{
		"":                    causeNobody,
		hang:                  guard.CauseTimeout,
		stuck:                 guard.CauseTimeout,
		closed:                guard.CauseRefused,
		answer(500, "{}"):     "http_500",
		answer(204, ""):       "http_204",
		answer(302, ""):       "http_302",
		answer(200, "<html>"): causeBad,
		answer(200, ""):       causeBad,
		answer(200, "[1]"):    causeBad,
		answer(200, `{"x":"`+strings.Repeat("x", 2<<20)+`"}`): causeTooLarge,
		"ftp://h/":                causeBadURL,
		"http://u:secret@h/":      causeBadURL,
		"http://169.254.169.254/": guard.CauseGuard,
	} {
		before := time.Now()
		a.Do([]statussync.Request{ask("box", url)})
		f, ok := to.next(t).(*statussync.AgentFailed)
		if !ok || f.EnvironmentID != "box" || f.Cause != cause || f.NobodyToAsk != (url == "") || f.StartedAt.Before(before) ||
			f.Detail == "" || strings.Contains(f.Detail, "secret") {
			t.Errorf("%q: %+v, want %s", url, f, cause)
		}
	}
	untrusted := ask("box", closed)
	untrusted.Ask.Trusted = false
	a.Do([]statussync.Request{untrusted})
	if f, ok := to.next(t).(*statussync.AgentFailed); !ok || f.Cause != guard.CauseGuard {
		t.Errorf("untrusted: %+v", f)
	}
}

// Questions of one environment are coalesced and never under way together, whatever is asked meanwhile.
func TestAskerCoalesces(t *testing.T) {
	var now, most, count atomic.Int32
	entered, release := make(chan struct{}, 100), make(chan struct{})
	url := agentServer(t, func(w http.ResponseWriter, _ *http.Request) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		count.Add(1)
		entered <- struct{}{}
		<-release
		_, _ = io.WriteString(w, "{}")
	})
	a, to := start(t, AskerOptions{})
	slow := ask("box", url)
	slow.Ask.Timeout = 10 * time.Second
	a.Do([]statussync.Request{slow, slow, slow})
	<-entered
	for range 50 {
		a.Do([]statussync.Request{slow})
	}
	a.mu.Lock()
	if n := len(a.agents["box"].pending); n > maxPending {
		t.Errorf("%d questions wait", n)
	}
	a.mu.Unlock()
	close(release)
	to.next(t)
	to.next(t)
	select {
	case x := <-to.c:
		t.Errorf("a third answer: %+v", x)
	case <-time.After(100 * time.Millisecond):
	}
	if count.Load() != 2 || most.Load() != 1 {
		t.Errorf("%d questions, %d at once", count.Load(), most.Load())
	}
}

func TestAskerWaitsAndLimits(t *testing.T) {
	var now, most atomic.Int32
	var times sync.Map
	url := agentServer(t, func(w http.ResponseWriter, _ *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		_, _ = io.WriteString(w, "{}")
	})
	a, to := start(t, AskerOptions{Concurrency: 3})
	begin := time.Now()
	var reqs []statussync.Request
	for i := range 30 {
		r := ask(fmt.Sprint("box", i), url)
		r.Ask.After = time.Duration(i%3) * 60 * time.Millisecond
		times.Store(r.Ask.EnvironmentID, begin.Add(r.Ask.After))
		reqs = append(reqs, r)
	}
	a.Do(reqs)
	for range 30 {
		rep, ok := to.next(t).(*statussync.AgentReport)
		if !ok {
			t.Fatal("no report")
		}
		if at, _ := times.Load(rep.EnvironmentID); time.Now().Before(at.(time.Time)) {
			t.Errorf("%s was asked too early", rep.EnvironmentID)
		}
	}
	if most.Load() > 3 {
		t.Errorf("%d at once", most.Load())
	}
}

// A question beside the engine's is answered to who asks, and the Observer hears nothing of it.
func TestAsk(t *testing.T) {
	url := agentServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"version":"1.2"}`) })
	a, to := start(t, AskerOptions{})
	q := ask("box", url).Ask
	q.After = time.Hour // not looked at
	r, ok := a.Ask(t.Context(), q).(*statussync.AgentReport)
	if !ok || r.EnvironmentID != "box" || r.Via != statussync.ViaPull || r.AgentVersion != "1.2" {
		t.Errorf("%+v", r)
	}
	f, ok := a.Ask(t.Context(), ask("cab", "http://127.0.0.1:1").Ask).(*statussync.AgentFailed)
	if !ok || f.EnvironmentID != "cab" || f.Cause != "refused" {
		t.Errorf("%+v", f)
	}
	a.Do([]statussync.Request{ask("den", url)})
	if r, ok := to.next(t).(*statussync.AgentReport); !ok || r.EnvironmentID != "den" {
		t.Errorf("the Observer was told %+v", r)
	}
}

func TestSetConcurrency(t *testing.T) {
	release := make(chan struct{})
	var now atomic.Int32
	url := agentServer(t, func(w http.ResponseWriter, _ *http.Request) {
		now.Add(1)
		<-release
		_, _ = io.WriteString(w, "{}")
	})
	a, to := start(t, AskerOptions{Concurrency: 1})
	for i := range 12 {
		a.Do([]statussync.Request{ask(fmt.Sprint("box", i), url)})
	}
	a.SetConcurrency(12) // all of them at once: none is answered before
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for now.Load() < 12 {
		if time.Now().After(deadline) {
			t.Errorf("%d at once, want 12", now.Load())
			break
		}
		<-tick.C
	}
	close(release)
	for range 12 {
		if _, ok := to.next(t).(*statussync.AgentReport); !ok {
			t.Error("no report")
		}
	}
}

func TestAskerEnds(t *testing.T) {
	entered := make(chan struct{})
	url := agentServer(t, func(_ http.ResponseWriter, r *http.Request) { close(entered); <-r.Context().Done() })
	a, to := NewAsker(AskerOptions{}), channel{c: make(chan statussync.Observation, 10)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, to) }()
	r := ask("box", url)
	r.Ask.Timeout = time.Hour
	a.Do([]statussync.Request{r})
	<-entered
	cancel()
	if err := <-done; err != nil || len(to.c) != 0 {
		t.Errorf("%v, %d observations", err, len(to.c))
	}
	if err := a.Run(t.Context(), to); err == nil {
		t.Error("Run ran twice")
	}

	b := NewAsker(AskerOptions{})
	b.Do([]statussync.Request{ask("box", "")})
	err := b.Run(t.Context(), channel{c: to.c, err: statussync.NewError(statussync.CodeUnavailable, "closed", nil)})
	if statussync.CodeOf(err) != statussync.CodeUnavailable {
		t.Errorf("a refusal ended Run with %v", err)
	}
}
