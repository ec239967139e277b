//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// buildDir holds the binary; TestMain makes and removes it.
var buildDir string

// full says that the long forms were asked for.
func full() bool { return os.Getenv("E2E_FULL") == "1" }

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(runChild())
	}
	dir, err := os.MkdirTemp("", "statussync-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	buildDir = dir
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

var build = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(buildDir, "statussync")
	args := []string{"build", "-o", bin}
	if raceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "../cmd/statussync")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return bin, nil
})

// theBinary is the path of the binary under test, built at the first call.
func theBinary(t testing.TB) string {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// environ is the environment of a process under test: with the race detector it must not linger for a second at its
// end, as it would by default.
func environ() []string { return append(os.Environ(), "GORACE=atexit_sleep_ms=0") }

type (
	obj  = map[string]any
	list = []any
)

// freeAddr is a loopback address with a port that nobody has. It lies below the ephemeral range: a client that dials a
// closed port of that range again and again can connect to itself and then holds the port.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range 200 {
		addr := "127.0.0.1:" + strconv.Itoa(18000+rand.IntN(14000))
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			ln.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

// waitFor polls until what holds, and fails the test with what's last word where it does not within limit.
func waitFor(t testing.TB, limit time.Duration, what string, holds func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, last := holds()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s; last: %s", what, limit, last)
		}
		<-tick.C
	}
}

// pause waits for d or the end of ctx; it spaces load out and is never what a check relies on.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// service is one configuration, its data, and the process that runs on them, if any.
type service struct {
	t       testing.TB
	dir     string
	file    string // the configuration
	data    string
	addr    string
	base    string
	logFile string
	env     []string // beside the test's own
	args    []string // of the program; nil: serve --config
	token   string   // what calls of the API send, if anything
	http    *http.Client

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
	err  error         // of cmd.Wait, after done
}

// baseConfig has the short intervals that the tests want. Flapping is out of the way unless a test asks for it.
func baseConfig(addr, data string) obj {
	return obj{
		"listen": addr, "data": data, "log": obj{"level": "info", "format": "json"},
		"probe": obj{
			"kind": "http", "path": "/health", "interval": "200ms", "timeout": "2s", "max_retries": 0, "rise": 1,
			"start_grace": "1s", "slow_after": "1900ms",
		},
		"heartbeat": obj{"late_after": "5m", "lost_after": "10m"},
		"flapping":  obj{"changes": 1000000},
	}
}

// newService writes a configuration made of baseConfig and what is given, and starts nothing. The process is ended and
// its log searched for races and panics when the test ends.
func newService(t testing.TB, conf obj) *service {
	t.Helper()
	theBinary(t)
	dir := t.TempDir()
	s := &service{
		t: t, dir: dir, file: filepath.Join(dir, "statussync.yaml"), data: filepath.Join(dir, "data"),
		addr: freeAddr(t), logFile: filepath.Join(dir, "log"),
	}
	s.base = "http://" + s.addr
	tr := &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true}
	s.http = &http.Client{Transport: tr, Timeout: 30 * time.Second}
	if d, ok := conf["data"].(string); ok {
		s.data = d
	}
	s.configure(conf)
	t.Cleanup(func() {
		s.kill()
		tr.CloseIdleConnections()
		s.checkLog()
	})
	return s
}

// configure writes the configuration anew; it counts from the next start on. JSON is YAML.
func (s *service) configure(conf obj) {
	s.t.Helper()
	all := baseConfig(s.addr, s.data)
	for k, v := range conf {
		if part, ok := v.(obj); ok {
			if old, ok := all[k].(obj); ok {
				for pk, pv := range part {
					old[pk] = pv
				}
				continue
			}
		}
		all[k] = v
	}
	b, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(s.file, b, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// start starts the process and does not wait for it to be ready.
func (s *service) start() {
	s.t.Helper()
	logf, err := os.OpenFile(s.logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer logf.Close()
	args := s.args
	if args == nil {
		args = []string{"serve", "--config", s.file}
	}
	cmd := exec.Command(theBinary(s.t), args...)
	cmd.Env = append(environ(), s.env...)
	cmd.Stdout, cmd.Stderr = logf, logf
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	s.mu.Lock()
	s.cmd, s.done = cmd, done
	s.mu.Unlock()
	go func() {
		err := cmd.Wait()
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
		close(done)
	}()
}

// ready waits until the service answers /readyz with success.
func (s *service) ready() *service {
	s.t.Helper()
	s.mu.Lock()
	done := s.done
	s.mu.Unlock()
	waitFor(s.t, 20*time.Second, "/readyz", func() (bool, string) {
		select {
		case <-done:
			s.t.Fatalf("the service ended: %v\n%s", s.err, s.tail())
		default:
		}
		resp, err := s.http.Get(s.base + "/readyz")
		if err != nil {
			return false, err.Error()
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode == 200, resp.Status + " " + string(b)
	})
	return s
}

// startService is newService, start and ready.
func startService(t testing.TB, conf obj) *service {
	t.Helper()
	s := newService(t, conf)
	s.start()
	return s.ready()
}

func (s *service) pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd.Process.Pid
}

// kill ends the process with SIGKILL, if it lives, and waits for its end.
func (s *service) kill() {
	s.mu.Lock()
	cmd, done := s.cmd, s.done
	s.mu.Unlock()
	if cmd == nil {
		return
	}
	cmd.Process.Kill()
	<-done
}

// stop ends the process with SIGTERM; it must end by itself within 3 s, with success.
func (s *service) stop() {
	s.t.Helper()
	s.mu.Lock()
	cmd, done := s.cmd, s.done
	s.mu.Unlock()
	began := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		cmd.Process.Signal(syscall.SIGQUIT)
		<-done
		s.t.Fatalf("SIGTERM did not end the service\n%s", s.tail())
	}
	if took := time.Since(began); took > 3*time.Second {
		s.t.Errorf("the stop took %s, not under 3 s\n%s", took, s.tail())
	}
	if s.err != nil {
		s.t.Errorf("the stop ended with %v\n%s", s.err, s.tail())
	}
}

// waitExit waits for the process to end by itself and returns its exit code.
func (s *service) waitExit(limit time.Duration) int {
	s.t.Helper()
	s.mu.Lock()
	cmd, done := s.cmd, s.done
	s.mu.Unlock()
	select {
	case <-done:
	case <-time.After(limit):
		s.t.Fatalf("the process did not end within %s\n%s", limit, s.tail())
	}
	return cmd.ProcessState.ExitCode()
}

// tail is the end of the log.
func (s *service) tail() string {
	b, err := os.ReadFile(s.logFile)
	if err != nil {
		return err.Error()
	}
	const most = 8000
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return "log of the service:\n" + string(b)
}

func (s *service) checkLog() {
	b, err := os.ReadFile(s.logFile)
	if err != nil {
		return // never started
	}
	for _, bad := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: ", "goroutine 1 ["} {
		if i := bytes.Index(b, []byte(bad)); i >= 0 {
			s.t.Errorf("the service's log has %q:\n%s", bad, b[i:min(len(b), i+6000)])
			return
		}
	}
	if s.t.Failed() {
		s.t.Log(s.tail())
	}
}

// rssKiB is a line of the process's /proc status in KiB: VmRSS now, VmHWM the most so far.
func (s *service) rssKiB(key string) int {
	s.t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", s.pid()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if rest, ok := strings.CutPrefix(sc.Text(), key+":"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(rest, "kB")))
			if err != nil {
				s.t.Fatal(err)
			}
			return n
		}
	}
	s.t.Fatalf("no %s in /proc", key)
	return 0
}

// request makes one call and returns the status and the body. A failure to connect fails the test.
func (s *service) request(method, path string, body []byte, header ...string) (int, []byte) {
	s.t.Helper()
	code, b, err := s.tryRequest(method, path, body, header...)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", method, path, err, s.tail())
	}
	return code, b
}

func (s *service) tryRequest(method, path string, body []byte, header ...string) (int, []byte, error) {
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequest(method, s.base+path, r)
	if err != nil {
		return 0, nil, err
	}
	if s.token != "" {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// getJSON reads an answer that must be a success into out.
func (s *service) getJSON(path string, out any) {
	s.t.Helper()
	code, b := s.request("GET", path, nil)
	if code != 200 {
		s.t.Fatalf("GET %s: %d %s", path, code, b)
	}
	if err := json.Unmarshal(b, out); err != nil {
		s.t.Fatalf("GET %s: %v in %s", path, err, clip(b))
	}
}

func clip(b []byte) string {
	if len(b) > 500 {
		return string(b[:500]) + "…"
	}
	return string(b)
}

// postHeartbeat sends a heartbeat that must be accepted: 204, no body.
func (s *service) postHeartbeat(token string, body []byte) {
	s.t.Helper()
	code, b := s.request("POST", "/heartbeat", body, "Authorization", "Bearer "+token)
	if code != 204 || len(b) != 0 {
		s.t.Fatalf("heartbeat: %d %q, not 204 without a body\n%s", code, clip(b), s.tail())
	}
}

// container is a container in Docker's words (shape B of a heartbeat).
func container(name, state, text string) obj {
	return obj{
		"id": "c-" + name, "names": list{name}, "image": "registry.example/" + name + ":1", "image_id": "sha256:1",
		"command": "/app/server", "created": 1732300000, "state": state, "status": text, "ports": list{},
	}
}

func heartbeat(containers ...obj) []byte {
	l := make(list, len(containers))
	for i, c := range containers {
		l[i] = c
	}
	b, err := json.Marshal(obj{
		"dtma_version": "0.1.0", "tool_statuses": l,
		"system_status": obj{"cpu_load_percent": 1.5, "memory": obj{"total_bytes": 8, "active_bytes": 4, "free_bytes": 4, "used_bytes": 4},
			"disk": obj{"mount": "/", "total_bytes": 8, "used_bytes": 4, "free_bytes": 4}},
	})
	if err != nil {
		panic(err)
	}
	return b
}

// statusJSON, serverJSON and entryJSON are what docs/protocols.md §4 says of a status, a server and an entry.
type statusJSON struct {
	State        string   `json:"state"`
	Health       string   `json:"health"`
	Reason       string   `json:"reason"`
	Cause        string   `json:"cause"`
	Availability string   `json:"availability"`
	Marks        []string `json:"marks"`
	LastError    string   `json:"last_error"`
	Version      uint64   `json:"version"`
	CheckCount   uint64   `json:"check_count"`
}

// key is the conclusion of a status, by which two are equal.
func (s statusJSON) key() string {
	return s.State + "/" + s.Health + "/" + s.Reason + "/" + strings.Join(s.Marks, "+")
}

type serverJSON struct {
	ID            string     `json:"id"`
	EnvironmentID string     `json:"environment_id"`
	Status        statusJSON `json:"status"`
}

type entryJSON struct {
	Seq           uint64      `json:"seq"`
	Epoch         string      `json:"epoch"`
	Kind          string      `json:"kind"`
	ServerID      string      `json:"server_id"`
	EnvironmentID string      `json:"environment_id"`
	ServerIDs     []string    `json:"server_ids"`
	Version       uint64      `json:"version"`
	Previous      *statusJSON `json:"previous_status"`
	Current       *statusJSON `json:"current_status"`
	Timestamp     time.Time   `json:"timestamp"`
	Source        string      `json:"source"`
	Details       string      `json:"details"`
	Changes       []string    `json:"changes"`

	raw json.RawMessage
}

func (e *entryJSON) cursor() string { return e.Epoch + ":" + strconv.FormatUint(e.Seq, 10) }

func (e *entryJSON) String() string {
	if e.Current == nil || e.Previous == nil {
		return fmt.Sprintf("%s %s %s%s: %s", e.cursor(), e.Kind, e.ServerID, e.EnvironmentID, e.Details)
	}
	return fmt.Sprintf("%s %s v%d %s → %s (%s)", e.cursor(), e.ServerID, e.Version, e.Previous.key(), e.Current.key(), e.Details)
}

func decodeEntry(raw json.RawMessage) (*entryJSON, error) {
	e := &entryJSON{raw: raw}
	if err := json.Unmarshal(raw, e); err != nil {
		return nil, fmt.Errorf("%w in %s", err, clip(raw))
	}
	if e.Seq == 0 || e.Epoch == "" || e.Kind == "" {
		return nil, fmt.Errorf("no seq, epoch or kind in %s", clip(raw))
	}
	return e, nil
}

// status is a server's status now.
func (s *service) status(id string) statusJSON {
	s.t.Helper()
	var st statusJSON
	s.getJSON("/api/v1/servers/"+id+"/status", &st)
	return st
}

// waitStatus waits until a server's state, health and reason are those given; an empty word is not compared.
func (s *service) waitStatus(limit time.Duration, id, state, health, reason string) statusJSON {
	s.t.Helper()
	var st statusJSON
	waitFor(s.t, limit, fmt.Sprintf("%s %s/%s/%s", id, state, health, reason), func() (bool, string) {
		st = s.status(id)
		return (state == "" || st.State == state) && (health == "" || st.Health == health) && (reason == "" || st.Reason == reason),
			fmt.Sprintf("%+v", st)
	})
	return st
}

type pageJSON[T any] struct {
	Items      []T    `json:"items"`
	NextCursor string `json:"next_cursor"`
	Cursor     string `json:"cursor"`
}

// servers is every server that matches the query ("" or "&healths=unhealthy"), and the cursor at which the list was
// true.
func (s *service) servers(query string) (map[string]serverJSON, string) {
	s.t.Helper()
	var p pageJSON[serverJSON]
	s.getJSON("/api/v1/servers?limit=1000"+query, &p)
	if p.NextCursor != "" {
		s.t.Fatal("more than 1000 servers")
	}
	m := make(map[string]serverJSON, len(p.Items))
	for _, v := range p.Items {
		m[v.ID] = v
	}
	return m, p.Cursor
}

// updates is the journal after a cursor, oldest first, from GET /updates page by page. query is "" or begins with "&".
func (s *service) updates(after, query string) []*entryJSON {
	s.t.Helper()
	var all []*entryJSON
	for {
		var p pageJSON[json.RawMessage]
		s.getJSON("/api/v1/updates?limit=1000&after="+after+query, &p)
		for _, raw := range p.Items {
			e, err := decodeEntry(raw)
			if err != nil {
				s.t.Fatal(err)
			}
			all = append(all, e)
		}
		if p.NextCursor == "" || len(p.Items) == 0 {
			return all
		}
		after = p.NextCursor
	}
}

// history is a server's entries, oldest first, across epochs.
func (s *service) history(id string) []*entryJSON {
	s.t.Helper()
	var all []*entryJSON
	cursor := ""
	for {
		var p pageJSON[json.RawMessage]
		s.getJSON("/api/v1/servers/"+id+"/history?hours=24&limit=1000"+cursor, &p)
		for _, raw := range p.Items {
			e, err := decodeEntry(raw)
			if err != nil {
				s.t.Fatal(err)
			}
			all = append([]*entryJSON{e}, all...)
		}
		if p.NextCursor == "" || len(p.Items) == 0 {
			return all
		}
		cursor = "&cursor=" + p.NextCursor
	}
}

// readyJSON is the answer of /readyz.
type readyJSON struct {
	Status  string `json:"status"`
	Durable bool   `json:"durable"`
	Detail  string `json:"detail"`
}

func (s *service) readyz() (int, readyJSON) {
	s.t.Helper()
	code, b := s.request("GET", "/readyz", nil)
	var r readyJSON
	if err := json.Unmarshal(b, &r); err != nil {
		s.t.Fatalf("/readyz: %d %s", code, clip(b))
	}
	return code, r
}

// settled waits until everything that was accepted before has been concluded from: a command, here one that ends an
// override that is not there, is answered only after what came before it.
func (s *service) settled(id string) {
	s.t.Helper()
	if code, b := s.request("DELETE", "/api/v1/servers/"+id+"/override", nil); code >= 500 {
		s.t.Fatalf("DELETE override: %d %s", code, clip(b))
	}
}

// metric is the value of the first sample of /metrics whose line begins with name; found is false where there is none.
func (s *service) metric(name string) (v float64, found bool) {
	s.t.Helper()
	code, b := s.request("GET", "/metrics", nil)
	if code != 200 {
		s.t.Fatalf("/metrics: %d %s", code, clip(b))
	}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		line := sc.Text()
		if !strings.HasPrefix(line, name) {
			continue
		}
		f := strings.Fields(line)
		n, err := strconv.ParseFloat(f[len(f)-1], 64)
		if err != nil {
			s.t.Fatalf("metric line %q", line)
		}
		return n, true
	}
	return 0, false
}

// target answers probes. Each path has a mode that the test switches: an HTTP status, or one of the words below.
type target struct {
	srv   *httptest.Server
	modes sync.Map // path → int
	hits  atomic.Int64
}

// Modes beside HTTP statuses.
const (
	modeHang  = -1 // accepts and never answers
	modeReset = -2 // cuts the connection
)

// newTarget listens on loopback; every path answers 200 until it is told otherwise.
func newTarget(t testing.TB) *target {
	t.Helper()
	g := &target{}
	g.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.hits.Add(1)
		mode := 200
		if m, ok := g.modes.Load(r.URL.Path); ok {
			mode = m.(int)
		}
		switch mode {
		case modeHang:
			<-r.Context().Done()
		case modeReset:
			if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
				c.Close()
			}
		default:
			w.WriteHeader(mode)
			io.WriteString(w, "health\n")
		}
	}))
	t.Cleanup(g.srv.Close)
	return g
}

func (g *target) url(path string) string    { return g.srv.URL + path }
func (g *target) set(path string, mode int) { g.modes.Store(path, mode) }
func (g *target) probe(path string) obj     { return obj{"kind": "http", "url": g.url(path)} }
func (g *target) addr() string              { return g.srv.Listener.Addr().String() }
func closeBody(r *http.Response)            { io.Copy(io.Discard, r.Body); r.Body.Close() }
func isTimeout(err error) bool              { var ne net.Error; return errors.As(err, &ne) && ne.Timeout() }
func envOf(id, token string) obj            { return obj{"id": id, "agent_token": token} }
func unprobed(id, env, desired string) obj {
	return obj{"id": id, "environment": env, "desired": desired, "probe": obj{"kind": "none"}}
}
func cli(t testing.TB, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, theBinary(t), args...)
	cmd.Env = append(environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatalf("statussync %v: %v", args, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("statussync %v did not end within 30 s\n%s%s", args, out.String(), errs.String())
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}
