package fleetsim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait of these tests; only a failing test waits that long.
const patience = 10 * time.Second

// beat is a heartbeat as the receiver got it.
type beat struct {
	path, contentType, token string
	body                     []byte
}

// receiver is a small service that agents report to.
type receiver struct {
	*httptest.Server
	beats  chan beat // those for which there is no room are not kept
	mu     sync.Mutex
	answer int // status
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{beats: make(chan beat, 4096), answer: http.StatusNoContent}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		b := beat{req.Method + " " + req.URL.Path, req.Header.Get("Content-Type"), strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer "), body}
		select {
		case r.beats <- b:
		default:
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		w.WriteHeader(r.answer)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) answerWith(code int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = code
}

// await returns the first heartbeat of an environment for which ok holds, from now on.
func (r *receiver) await(t *testing.T, e Environment, what string, ok func(b beat, tools []map[string]any) bool) beat {
	t.Helper()
	r.drain()
	return r.next(t, e, what, ok)
}

// drain forgets the heartbeats that came so far.
func (r *receiver) drain() {
	for len(r.beats) > 0 {
		<-r.beats
	}
}

// next returns the first heartbeat of an environment for which ok holds, since the last drain: for one that is sent
// only once, and may come before anybody waits for it.
func (r *receiver) next(t *testing.T, e Environment, what string, ok func(b beat, tools []map[string]any) bool) beat {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case b := <-r.beats:
			if b.token == string(e.AgentToken) && ok(b, tools(t, b.body)) {
				return b
			}
		case <-late:
			t.Fatalf("no heartbeat of %s with %s", e.ID, what)
		}
	}
}

func tools(t *testing.T, body []byte) []map[string]any {
	t.Helper()
	var hb struct {
		Tools []map[string]any `json:"tool_statuses"`
	}
	if err := json.Unmarshal(body, &hb); err != nil {
		t.Fatalf("heartbeat %s: %v", body, err)
	}
	return hb.Tools
}

// tool finds a container by name in either shape.
func tool(list []map[string]any, container string) map[string]any {
	for _, m := range list {
		if m["instance_name_on_toolbox"] == container {
			return m
		}
		if names, _ := m["names"].([]any); len(names) == 1 && names[0] == container {
			return m
		}
	}
	return nil
}

// start runs a fleet until the test ends, and checks that it stops in time.
func start(t *testing.T, opt Options) *Fleet {
	t.Helper()
	f, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		begin := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > StopWithin {
			t.Errorf("stopping took %v", d)
		}
	})
	return f
}

func serverOf(t *testing.T, f *Fleet, ok func(s Server) bool) Server {
	t.Helper()
	all := f.Servers()
	i := slices.IndexFunc(all, ok)
	if i < 0 {
		t.Fatal("the fleet has no such server")
	}
	return all[i]
}

func named(id string) func(Server) bool { return func(s Server) bool { return s.ID == id } }

func environmentOf(t *testing.T, f *Fleet, id string) Environment {
	t.Helper()
	all := f.Environments()
	return all[slices.IndexFunc(all, func(e Environment) bool { return e.ID == id })]
}

// client keeps connections alive, as probes do.
func newClient(t *testing.T) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 8}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// ask says in one word how a GET ends: its status, refused, reset, timeout.
func ask(c *http.Client, url string, timeout time.Duration) (string, time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return err.Error(), 0
	}
	begin := time.Now()
	res, err := c.Do(req)
	took := time.Since(begin)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused", took
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout", took
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF):
		return "reset", took
	case err != nil:
		return err.Error(), took
	}
	defer res.Body.Close()
	io.Copy(io.Discard, res.Body)
	return fmt.Sprint(res.StatusCode), took
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newRawClient makes no second attempt on a connection of its own and keeps none.
func newRawClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
}

// awaitBusy waits until a door is serving n requests.
func awaitBusy(t *testing.T, d *door, n int) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		d.mu.Lock()
		busy := d.busy
		d.mu.Unlock()
		if busy == n {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%d requests under way, want %d", busy, n)
		}
	}
}
