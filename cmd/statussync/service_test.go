package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

const serviceConfig = `
listen: 127.0.0.1:0
data: %s
log: {level: info, format: json}
auth:
  tokens:
    - {name: ops, role: operator, token: "operator-token"}
    - {name: eye, role: viewer, token: "viewer-token"}
    - {name: ada, role: admin, token: "admin-token"}
environments:
  - {id: box-7, name: box-7, owner: u1, agent_token: "agent-token-7"}
servers:
  - {id: weather, environment: box-7, endpoint: "%[2]s/mcp", transport: streamable-http, desired: running, labels: {team: core}, probe: {kind: http, url: "%[2]s/health"}}
  - {id: unseen, environment: box-7, endpoint: "%[2]s/mcp", transport: streamable-http, probe: {kind: none}}
probe: {interval: 1h, max_retries: 0, rise: 1, start_grace: 1s}
`

// lines is an output that can be read while it is written, and waited for.
type lines struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{}
}

func newLines() *lines { return &lines{more: make(chan struct{}, 1)} }

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.buf.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// wait blocks until re matches what was written, and returns the match.
func (l *lines) wait(t *testing.T, re string) []string {
	t.Helper()
	timeout := time.NewTimer(20 * time.Second)
	defer timeout.Stop()
	for {
		if m := regexp.MustCompile(re).FindStringSubmatch(l.String()); m != nil {
			return m
		}
		select {
		case <-l.more:
		case <-timeout.C:
			t.Fatalf("never wrote %s:\n%s", re, l)
		}
	}
}

// start runs a command beside the test; stop ends it as Ctrl-C does and returns its exit code.
func start(t *testing.T, args ...string) (out, errOut *lines, stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, errOut = newLines(), newLines()
	code := make(chan int, 1)
	go func() {
		code <- exec(ctx, args, func(s *system) { s.stdout, s.stderr, s.now = out, errOut, time.Now }).code
	}()
	var once sync.Once
	c := -1
	stop = func() int {
		once.Do(func() {
			cancel()
			select {
			case c = <-code:
			case <-time.After(10 * time.Second):
				t.Errorf("%v did not stop", args)
			}
		})
		return c
	}
	t.Cleanup(func() { stop() })
	return out, errOut, stop
}

// serve starts the real service for one server that is as healthy as ok says, and returns its address.
func serve(t *testing.T) (url string, ok *atomic.Bool, stop func() int) {
	t.Helper()
	ok = new(atomic.Bool)
	ok.Store(true)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !ok.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	file := filepath.Join(dir, "statussync.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, serviceConfig, filepath.Join(dir, "data"), server.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	_, errOut, stop := start(t, "serve", "--config", file)
	return errOut.wait(t, `"url":"(http://[0-9.:]+)"`)[1], ok, stop
}

// TestAgainstTheService runs the commands against the real one.
func TestAgainstTheService(t *testing.T) {
	url, ok, stop := serve(t)
	as := func(token, args string) result {
		return exec(t.Context(), append(strings.Fields(args), "--server", url, "--token", token), func(s *system) { s.now = time.Now })
	}
	expect := func(r result, code int, parts ...string) {
		t.Helper()
		if r.code != code {
			t.Errorf("exit %d, want %d: %s%s", r.code, code, r.out, r.err)
		}
		for _, p := range parts {
			if !regexp.MustCompile(p).MatchString(r.out + r.err) {
				t.Errorf("no %q in\n%s%s", p, r.out, r.err)
			}
		}
	}
	expect(as("wrong-token", "status"), 4, `^statussync: refused: .*token.*\n$`)
	expect(as("viewer-token", "probe weather"), 4, `operator`)
	expect(as("viewer-token", "status nobody"), 4, `no server has the id "nobody"`)

	watched, notes, stopWatch := start(t, "watch", "weather", "--snapshot", "--server", url, "--token", "viewer-token")
	watched.wait(t, `weather +box-7`)
	notes.wait(t, "watching "+url)
	newest, _, stopNewest := start(t, "watch", "--latest", "--snapshot", "--health", "unhealthy,unknown", "--server", url, "--token", "viewer-token")
	newest.wait(t, `weather +box-7`)

	expect(as("operator-token", "probe weather"), 0, `weather answered in`, `weather is running and healthy`)
	expect(as("viewer-token", "status --fail-on degraded"), 0, `(?m)^weather +box-7 +running +healthy +ok `, `2 servers: 1 available, 1 unknown`)
	expect(as("viewer-token", "status --label team=core --availability available -o json"), 0, `"id": "weather"`, `"cursor": "e`)
	if r := as("viewer-token", "status --state error"); r.out != "0 servers\n" {
		t.Errorf("nothing selected: %q %s", r.out, r.err)
	}

	ok.Store(false)
	// A result serves everybody for a second, so the first answer may still be the old one.
	expect(until(t, 1, func() result { return as("operator-token", "probe weather") }), 1, `did not answer as it should \(http_503`)
	watched.wait(t, `weather +running/healthy → error/unhealthy +probe_failing \(http_503\)`)
	expect(as("viewer-token", "status weather --fail-on unhealthy"), 1, `weather is in error and unhealthy: its probe fails \(http_503\)`)
	expect(as("viewer-token", "status weather --explain"), 0, `(?m)^probe +.*fresh`, `Decided by`, `probe_failing`, `Considered`)

	expect(as("operator-token", "override set weather --state stopped --note moving --for 2h"), 0, `weather is stopped`, `by ops, for another (1h59m|2h): moving`)
	watched.wait(t, `error/unhealthy → stopped/unknown +override \[override\]`)
	expect(as("operator-token", "override set weather --state stopped --health healthy"), 4, `health: healthy goes only with state running`)
	expect(as("operator-token", "override clear weather"), 0, `weather is in error and unhealthy`)
	ok.Store(true)
	expect(until(t, 0, func() result { return as("operator-token", "probe --all") }), 0, `weather +success`)
	watched.wait(t, `error/unhealthy → running/healthy`)
	newest.wait(t, `→ error/unhealthy`)
	newest.wait(t, `error/unhealthy → running/healthy`)
	if code := stopNewest(); code != 0 {
		t.Errorf("watch --latest ended with %d", code)
	}

	expect(as("viewer-token", "history weather --limit 2"), 0, `(?m)^.* running +healthy +ok `, `There is more`)
	expect(as("viewer-token", "environments"), 0, `box-7 +never_seen`, `1 environment\n`)
	expect(as("viewer-token", "metrics"), 0, `servers +2\n`, `subscriptions +1\n`)
	expect(as("viewer-token", "version --service"), 0, `service    v9 `)

	if code := stop(); code != 0 {
		t.Errorf("serve ended with %d", code)
	}
	notes.wait(t, `trying again in`)
	if code := stopWatch(); code != 0 {
		t.Errorf("watch ended with %d", code)
	}
}

// until repeats a command a few times a second until it ends with code.
func until(t *testing.T, code int, f func() result) (r result) {
	t.Helper()
	again := time.NewTicker(150 * time.Millisecond)
	defer again.Stop()
	for range 100 {
		if r = f(); r.code == code {
			break
		}
		<-again.C
	}
	return r
}

// TestSubscriptionSurvivesCuts: behind a proxy that cuts connections at random, a subscription tells each entry of the
// journal once and in order.
func TestSubscriptionSurvivesCuts(t *testing.T) {
	url, _, _ := serve(t)
	direct, err := client.New(client.Options{BaseURL: url, Token: "operator-token"})
	if err != nil {
		t.Fatal(err)
	}
	defer direct.CloseIdle()
	proxy := newProxy(t, strings.TrimPrefix(url, "http://"))
	shaky, err := client.New(client.Options{BaseURL: "http://" + proxy.addr, Token: "viewer-token"})
	if err != nil {
		t.Fatal(err)
	}
	defer shaky.CloseIdle()
	timed, stop := context.WithTimeout(t.Context(), 25*time.Second)
	defer stop()
	ctx, cancel := context.WithCancelCause(timed)
	defer cancel(nil)

	const updates = 60 // a credential has 100 commands a second
	live := make(chan statussync.Cursor, 1)
	wrote := make(chan error, 1)
	go func() {
		wrote <- func() error {
			select {
			case <-live:
			case <-ctx.Done():
				return ctx.Err()
			}
			for i := range updates {
				state := []statussync.State{"stopped", "running", "error"}[i%3]
				if _, err := direct.SetOverride(ctx, "weather", wire.OverrideRequest{State: state, ExpiresIn: "1h"}); err != nil {
					cancel(err)
					return err
				}
			}
			return nil
		}()
	}()
	var told []string
	var from statussync.Cursor
	lost := 0
	for ev, err := range shaky.Subscribe(ctx, client.SubscribeOptions{
		Filter:     statussync.Filter{Clauses: []statussync.Clause{{ServerIDs: []string{"weather"}}}},
		BackoffMin: time.Millisecond, BackoffMax: 20 * time.Millisecond,
		OnState: func(s client.ConnState) {
			if !s.Connected {
				lost++
			}
		},
	}) {
		if err != nil {
			t.Fatalf("%v after %d entries and %d cuts", err, len(told), lost)
		}
		switch ev.Type {
		case statussync.EventSubscribed:
			if from.IsZero() {
				from = ev.Cursor
				live <- from
			} else if !ev.Recovered {
				t.Fatalf("the service did not go on after %s", told[len(told)-1])
			}
		case statussync.EventEntry:
			var frame struct{ Data json.RawMessage }
			if err := json.Unmarshal(ev.Frame, &frame); err != nil {
				t.Fatal(err)
			}
			told = append(told, string(frame.Data))
		case statussync.EventResync:
			t.Fatalf("a resync after %d entries", len(told))
		}
		if len(told) == updates {
			break
		}
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	var journal []string
	for after := from; len(journal) < updates; {
		p, err := direct.Updates(ctx, client.UpdatesQuery{After: after, Clause: statussync.Clause{ServerIDs: []string{"weather"}}, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Items {
			journal = append(journal, string(e.AppendJSON(nil)))
		}
		if p.NextCursor == "" {
			break
		}
		if after, err = statussync.ParseCursor(p.NextCursor); err != nil {
			t.Fatal(err)
		}
	}
	if len(journal) != len(told) {
		t.Fatalf("the journal has %d entries, %d were told", len(journal), len(told))
	}
	for i := range told {
		if told[i] != journal[i] {
			t.Fatalf("entry %d\ntold    %s\njournal %s", i, told[i], journal[i])
		}
	}
	if lost < 3 {
		t.Errorf("only %d cuts: the test tests little", lost)
	}
	t.Logf("%d entries, %d cuts", len(told), lost)
}

// proxy passes connections on and cuts each after a random number of bytes towards the client.
type proxy struct{ addr string }

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				wg.Go(func() {
					defer out.Close()
					_, _ = io.Copy(out, in)
				})
				_, _ = io.CopyN(in, out, 200+rand.Int64N(4000))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return &proxy{addr: ln.Addr().String()}
}

func TestConfigCheck(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	good := write("good.yaml", "listen: 0.0.0.0:8080\nauth:\n  tokens:\n    - {name: ops, role: admin, token: \"very-secret-token\"}\n")
	r := exec(t.Context(), []string{"config", "check", good})
	if r.code != 0 || r.err != "" || !strings.HasPrefix(r.out, "# "+good+" is valid.") || !strings.Contains(r.out, "stuck_after: 10m") {
		t.Errorf("exit %d %s\n%s", r.code, r.err, r.out)
	}
	if strings.Contains(r.out, "very-secret-token") {
		t.Errorf("a secret is shown:\n%s", r.out)
	}
	bad := write("bad.yaml", "listen: 127.0.0.1:8080\nlog: {level: loud}\njournal:\n  sync: sometimes\n")
	for _, args := range [][]string{{"config", "check", bad}, {"serve", "--config", bad}} {
		r = exec(t.Context(), args)
		for _, line := range strings.Split(strings.TrimSuffix(r.err, "\n"), "\n") {
			if !strings.HasPrefix(line, "statussync: "+bad+":") {
				t.Errorf("%v: line %q names no place", args, line)
			}
		}
		if r.code != 2 || strings.Count(r.err, "\n") != 2 || !strings.Contains(r.err, bad+":2") || !strings.Contains(r.err, bad+":4") || r.out != "" {
			t.Errorf("%v: exit %d %s", args, r.code, r.err)
		}
	}
	if r = exec(t.Context(), []string{"config", "check", filepath.Join(dir, "none.yaml")}); r.code != 2 || !strings.Contains(r.err, "none.yaml: cannot be read: no such file or directory") {
		t.Errorf("exit %d %s", r.code, r.err)
	}
}

func TestServeOnATakenAddress(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "c.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "listen: %s\ndata: %s\n", ln.Addr(), filepath.Join(dir, "data")), 0o600); err != nil {
		t.Fatal(err)
	}
	r := exec(t.Context(), []string{"serve", "--config", file})
	if want := fmt.Sprintf("statussync: listen: %s is in use by another process\n", ln.Addr()); r.code != 1 || r.err != want {
		t.Errorf("exit %d, %q, want %q", r.code, r.err, want)
	}
}
