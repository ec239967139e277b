//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// TestHandOver lets many clients subscribe while updates pour in: with a snapshot, or with the cursor of a list that
// they read before; some filtered. Each must end with exactly the fleet's true state, and those that want every update
// must have got every one that the journal holds after their beginning, once.
func TestHandOver(t *testing.T) {
	const fleet = 40
	clients := 1000
	if testing.Short() {
		clients = 300
	}
	var servers list
	ids := make([]string, fleet)
	for i := range ids {
		ids[i] = fmt.Sprintf("h-%02d", i)
		servers = append(servers, unprobed(ids[i], "box", "running"))
	}
	s := startService(t, obj{"environments": list{envOf("box", "token-box")}, "servers": servers})
	states := make([]int, fleet)
	post := func() {
		beat := make([]obj, fleet)
		for i, st := range states {
			switch st {
			case 0:
				beat[i] = container(ids[i], "running", "Up 2 hours")
			case 1:
				beat[i] = container(ids[i], "exited", "Exited (137) 2 hours ago")
			case 2:
				beat[i] = container(ids[i], "running", "Up 2 hours (unhealthy)")
			case 3:
				beat[i] = container(ids[i], "restarting", "Restarting (1) 2 hours ago")
			}
		}
		s.postHeartbeat("token-box", heartbeat(beat...))
	}
	post()
	s.waitStatus(10*time.Second, ids[fleet-1], "running", "healthy", "")
	_, begin := s.servers("")

	ctx, cancel := context.WithCancel(context.Background())
	var wg, load sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var loading atomic.Bool
	loading.Store(true)
	load.Go(func() {
		rng := rand.New(rand.NewPCG(1, 2))
		for loading.Load() {
			for range 3 {
				states[rng.IntN(fleet)] = rng.IntN(4)
			}
			post()
			pause(ctx, 30*time.Millisecond)
		}
	})
	frames := &frameCache{byCursor: map[string]*cachedFrame{}}
	kinds := []handoverKind{
		{name: "snapshot", snapshot: true},
		{name: "cursor", list: true},
		{name: "snapshot unhealthy", snapshot: true, unhealthy: true},
		{name: "cursor unhealthy leave", list: true, unhealthy: true},
		{name: "sse snapshot unhealthy", snapshot: true, unhealthy: true, sse: true},
		{name: "two clauses", snapshot: true, twoClauses: true},
	}
	all := make([]*handoverClient, clients)
	slots := make(chan struct{}, 16) // handshakes at once
	for i := range all {
		c := &handoverClient{handoverKind: kinds[i%len(kinds)], frames: frames, view: map[string]string{}}
		c.name = fmt.Sprintf("client %d (%s)", i, c.name)
		all[i] = c
		pause(ctx, 4*time.Second/time.Duration(clients)) // so that they come while much happens
		slots <- struct{}{}
		wg.Go(func() {
			c.begin(ctx, s)
			<-slots
			if c.failed() == "" {
				c.read(ctx)
			}
		})
	}
	for range cap(slots) {
		slots <- struct{}{}
	}
	loading.Store(false)
	load.Wait()
	s.settled(ids[0])

	final, _ := s.servers("")
	journal := s.updates(begin, "")
	if len(journal) < 50 {
		t.Fatalf("only %d updates: nothing poured in", len(journal))
	}
	truth := map[string]string{}
	for id, v := range final {
		truth[id] = fmt.Sprintf("%s v%d", v.Status.key(), v.Status.Version)
	}
	failures := 0
	for _, c := range all {
		want := truth
		if c.filtered() {
			want = map[string]string{}
			for id, v := range final {
				if c.matches(id, v.Status) {
					want[id] = truth[id]
				}
			}
		}
		var last string
		deadline := time.Now().Add(60 * time.Second)
		for {
			c.mu.Lock()
			same := maps.Equal(c.view, want)
			last = fmt.Sprint(diffViews(c.view, want))
			c.mu.Unlock()
			if same || c.failed() != "" || time.Now().After(deadline) {
				break
			}
			pause(ctx, 5*time.Millisecond)
		}
		c.mu.Lock()
		err := c.fault
		if err == "" && !maps.Equal(c.view, want) {
			err = "does not end with the fleet's true state: " + last
		}
		if err == "" {
			err = c.compare(journal)
		}
		c.mu.Unlock()
		if err != "" {
			failures++
			if failures <= 10 {
				t.Errorf("%s: %s", c.name, err)
			}
		}
	}
	t.Logf("%d clients, %d updates, %d clients with a failure", clients, len(journal), failures)
	cancel()
	wg.Wait()
	s.stop()
}

func diffViews(got, want map[string]string) (diff []string) {
	for id := range want {
		if got[id] != want[id] {
			diff = append(diff, fmt.Sprintf("%s: has %q, true is %q", id, got[id], want[id]))
		}
	}
	for id := range got {
		if _, ok := want[id]; !ok {
			diff = append(diff, fmt.Sprintf("%s: has %q, should not be there", id, got[id]))
		}
	}
	slices.Sort(diff)
	return diff[:min(len(diff), 4)]
}

// frameCache holds each entry's frame decoded once; all subscribers get the same bytes, which it checks.
type frameCache struct {
	mu       sync.Mutex
	byCursor map[string]*cachedFrame
}

type cachedFrame struct {
	data  []byte
	entry *entryJSON
}

func (fc *frameCache) entry(cursor string, data []byte) (*entryJSON, error) {
	fc.mu.Lock()
	defer fc.mu.Unlock()
	if c := fc.byCursor[cursor]; c != nil {
		if !bytes.Equal(c.data, data) {
			return nil, fmt.Errorf("two subscribers were told %s in different words: %s and %s", cursor, c.data, data)
		}
		return c.entry, nil
	}
	data = bytes.Clone(data)
	e, err := decodeEntry(data)
	if err != nil {
		return nil, err
	}
	if e.cursor() != cursor {
		return nil, fmt.Errorf("the frame's cursor is %s, its entry's %s", cursor, e.cursor())
	}
	fc.byCursor[cursor] = &cachedFrame{data, e}
	return e, nil
}

// handoverKind is what a client asks for.
type handoverKind struct {
	name                                       string
	snapshot, list, unhealthy, twoClauses, sse bool
}

// handoverClient keeps the state of the fleet, or of the part of it that it asked for.
type handoverClient struct {
	handoverKind
	frames *frameCache
	conn   *websocket.Conn
	resp   *http.Response
	close  func()

	mu    sync.Mutex
	view  map[string]string // server → conclusion and version
	start string            // cursor after which everything is told
	told  []*entryJSON
	fault string
}

func (c *handoverClient) filtered() bool { return c.unhealthy || c.twoClauses }

// matches says whether a server with this status belongs into the client's view.
func (c *handoverClient) matches(id string, st statusJSON) bool {
	switch {
	case c.unhealthy:
		return st.Health == "unhealthy"
	case c.twoClauses: // any unhealthy one, or running ones of a list
		return st.Health == "unhealthy" || (st.State == "running" && strings.HasSuffix(id, "7"))
	}
	return true
}

func (c *handoverClient) filters() list {
	switch {
	case c.unhealthy:
		return list{obj{"healths": list{"unhealthy"}}}
	case c.twoClauses:
		return list{obj{"type": "error_state"}, obj{"states": list{"running"}, "server_ids": list{"h-07", "h-17", "h-27", "h-37"}}}
	}
	return nil
}

func (c *handoverClient) fail(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fault == "" {
		c.fault = fmt.Sprintf(format, args...)
	}
}

func (c *handoverClient) failed() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fault
}

// begin reads the list, where the client wants one, and subscribes.
func (c *handoverClient) begin(ctx context.Context, s *service) {
	sub := obj{"type": "subscribe", "channel": "mcp_server_status"}
	if c.list {
		path := "/api/v1/servers?limit=1000"
		if c.unhealthy {
			path += "&healths=unhealthy"
		}
		code, b, err := s.tryRequest("GET", path, nil)
		var p pageJSON[serverJSON]
		if err == nil {
			err = json.Unmarshal(b, &p)
		}
		if err != nil || code != 200 {
			c.fail("list: %d %s %v", code, clip(b), err)
			return
		}
		c.put(p.Items)
		c.start = p.Cursor
		sub["cursor"] = p.Cursor
		sub["leave"] = true
	}
	if c.snapshot {
		sub["snapshot"] = true
	}
	if f := c.filters(); f != nil {
		sub["filters"] = f
	}
	if c.sse {
		req, err := http.NewRequestWithContext(ctx, "GET", s.base+"/api/v1/stream?snapshot=true&healths=unhealthy", nil)
		if err != nil {
			c.fail("%v", err)
			return
		}
		resp, err := s.http.Transport.RoundTrip(req)
		if err != nil || resp.StatusCode != 200 {
			c.fail("stream: %v %v", resp, err)
			return
		}
		c.resp, c.close = resp, func() { resp.Body.Close() }
		return
	}
	conn, _, err := dialer(0).DialContext(ctx, "ws://"+s.addr+"/api/v1/ws", nil)
	if err == nil {
		err = conn.WriteJSON(sub)
	}
	if err != nil {
		c.fail("%v", err)
		return
	}
	c.conn, c.close = conn, func() { conn.Close() }
}

// put takes servers as they are.
func (c *handoverClient) put(items []serverJSON) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range items {
		c.view[v.ID] = fmt.Sprintf("%s v%d", v.Status.key(), v.Status.Version)
	}
}

func (c *handoverClient) read(ctx context.Context) {
	defer c.close()
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	if c.sse {
		readSSE(c.resp.Body, func(event, id string, data []byte) { c.take(event, id, data, data) })
	} else {
		for {
			_, b, err := c.conn.ReadMessage()
			if err != nil {
				if ctx.Err() == nil {
					c.fail("the connection ended: %v", err)
				}
				return
			}
			const head = `{"type":"status_update","cursor":"`
			if rest, ok := bytes.CutPrefix(b, []byte(head)); ok {
				if cursor, data, ok := bytes.Cut(rest, []byte(`","data":`)); ok {
					c.take("status_update", string(cursor), bytes.TrimSuffix(data, []byte("}")), nil)
					continue
				}
			}
			var f frame
			if err := json.Unmarshal(b, &f); err != nil {
				c.fail("%v in %s", err, clip(b))
				return
			}
			c.take(f.Type, f.Cursor, f.Data, b)
		}
	}
	if ctx.Err() == nil {
		c.fail("the stream ended")
	}
}

func (c *handoverClient) take(typ, cursor string, data, whole []byte) {
	var f frame
	switch typ {
	case "subscribed":
		json.Unmarshal(whole, &f)
		if c.list && !f.Recovered {
			c.fail("the cursor %s was not continued", c.start)
		}
		if !f.Durable {
			c.fail("not durable")
		}
	case "snapshot":
		json.Unmarshal(whole, &f)
		c.put(f.Items)
	case "snapshot_end":
		c.mu.Lock()
		c.start = cursor
		if cursor == "" {
			json.Unmarshal(whole, &f)
			c.start = f.Cursor
		}
		c.mu.Unlock()
	case "status_update":
		e, err := c.frames.entry(cursor, data)
		if err != nil {
			c.fail("%v", err)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.told = append(c.told, e)
		cur := *e.Current
		if c.matches(e.ServerID, cur) {
			c.view[e.ServerID] = fmt.Sprintf("%s v%d", cur.key(), e.Version)
		} else {
			delete(c.view, e.ServerID)
		}
	case "bookmark", "":
	default:
		c.fail("unexpected %s: %s", typ, clip(whole))
	}
}

// compare checks that the client was told exactly what the journal holds of its concern after its beginning.
func (c *handoverClient) compare(journal []*entryJSON) string {
	var want []*entryJSON
	for _, e := range journal {
		if later, ok := laterCursor(c.start, e.cursor()); !ok {
			return "began at " + c.start + ", which is not of the journal's epoch"
		} else if later && (!c.filtered() || c.matches(e.ServerID, *e.Current) || c.matches(e.ServerID, *e.Previous)) {
			want = append(want, e)
		}
	}
	if err := sameEntries(c.told, want); err != nil {
		return fmt.Sprintf("began at %s, was told %d: %v", c.start, len(c.told), err)
	}
	return ""
}
