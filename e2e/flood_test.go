//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// glimpse is what a client was told, and when it read that.
type glimpse struct {
	id      string
	version uint64
	at      time.Time
}

// slowReader is a client in mode latest that reads ten frames a second.
type slowReader struct {
	name string
	next func() (typ string, data []byte, err error) // the next frame of an entry

	mu    sync.Mutex
	held  map[string]uint64 // server → version
	seen  []glimpse
	err   error
	hurry atomic.Bool
	// resumed counts the connections after the first. What was told before may then come again.
	resumed atomic.Int64
}

// read reads until ctx ends. frames of entries are paced; what a snapshot tells is where it begins.
func (r *slowReader) read(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		typ, data, err := r.next()
		r.mu.Lock()
		if err == nil {
			err = r.take(typ, data)
		}
		if err != nil && ctx.Err() == nil {
			r.err = fmt.Errorf("%s, after %d entries: %w", r.name, len(r.seen), err)
		}
		r.mu.Unlock()
		if err != nil {
			return
		}
		if typ == "status_update" && !r.hurry.Load() {
			<-tick.C
		}
	}
}

func (r *slowReader) take(typ string, data []byte) error {
	switch typ {
	case "snapshot":
		var f frame
		if err := json.Unmarshal(data, &f); err != nil {
			return err
		}
		for _, v := range f.Items {
			r.held[v.ID] = v.Status.Version
		}
	case "status_update":
		id, err1 := stringAfter(data, `"server_id":"`)
		version, err2 := numberAfter(data, `"version":`)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if version < r.held[id] || version == r.held[id] && r.resumed.Load() == 0 {
			return fmt.Errorf("%s goes from version %d to %d", id, r.held[id], version)
		}
		r.held[id] = version
		r.seen = append(r.seen, glimpse{id, version, time.Now()})
	case "resync", "error":
		return fmt.Errorf("%s: %s", typ, data)
	}
	return nil
}

func (s *service) slowWS(ctx context.Context, name string, environments list) *slowReader {
	s.t.Helper()
	c, _, err := dialer(0).DialContext(ctx, "ws://"+s.addr+"/api/v1/ws", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	sub := obj{"type": "subscribe", "channel": "mcp_server_status", "mode": "latest", "snapshot": true}
	if environments != nil {
		sub["filters"] = list{obj{"environment_ids": environments}}
	}
	send(s.t, c, sub)
	context.AfterFunc(ctx, func() { c.Close() })
	return &slowReader{name: name, held: map[string]uint64{}, next: func() (string, []byte, error) {
		kind, b, err := c.ReadMessage()
		if err == nil && kind != websocket.TextMessage {
			err = fmt.Errorf("a message of kind %d", kind)
		}
		typ, terr := stringAfter(b, `"type":"`)
		return typ, b, errors.Join(err, terr)
	}}
}

// inBits reads little at a time: what a client's own buffers hold is its own doing, and this one has hardly any.
type inBits struct{ r io.Reader }

func (b inBits) Read(p []byte) (int, error) { return b.r.Read(p[:min(len(p), 512)]) }

// slowSSE is an EventSource: it comes back with the last id where its stream ends, as one does that was blocked for too
// long because its kernel tells only now and then that there is room again.
func (s *service) slowSSE(ctx context.Context, name string) *slowReader {
	tr := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(4 << 10)
		}
		return c, err
	}}
	type event struct {
		typ  string
		data []byte
		err  error
	}
	events := make(chan event) // without room, so that it reads no faster than it is asked
	put := func(e event) {
		select {
		case events <- e:
		case <-ctx.Done():
		}
	}
	r := &slowReader{name: name, held: map[string]uint64{}}
	go func() {
		defer close(events)
		defer tr.CloseIdleConnections()
		for last := ""; ctx.Err() == nil; r.resumed.Add(1) {
			req, err := http.NewRequestWithContext(ctx, "GET", s.base+"/api/v1/stream?mode=latest&snapshot=true", nil)
			if err == nil && last != "" {
				req.Header.Set("Last-Event-ID", last)
			}
			var resp *http.Response
			if err == nil {
				resp, err = tr.RoundTrip(req)
			}
			if err != nil {
				put(event{err: err})
				return
			}
			readSSE(inBits{resp.Body}, func(typ, id string, data []byte) {
				if id != "" {
					last = id
				}
				put(event{typ: typ, data: bytes.Clone(data)})
			})
			resp.Body.Close()
			pause(ctx, 50*time.Millisecond)
		}
	}()
	r.next = func() (string, []byte, error) {
		e, ok := <-events
		if !ok {
			return "", nil, io.ErrUnexpectedEOF
		}
		return e.typ, e.data, e.err
	}
	return r
}

// TestLatestUnderFlood: a fleet makes about 1,000 updates a second, by its agents' heartbeats. A client in mode latest
// that reads ten frames a second is told nothing that has not been true a moment ago, holds nothing old of a selection
// that it can read through in time, and ends with the exact final state; and many of them cost no memory.
func TestLatestUnderFlood(t *testing.T) {
	const (
		hosts   = 15
		perHost = 20
		clients = 50
		recent  = 3 * time.Second
	)
	lasting := 10 * time.Second
	if testing.Short() {
		lasting = 4 * time.Second
	}
	var envs, servers list
	var ids []string
	var beats [hosts][2][]byte
	for h := range hosts {
		env := fmt.Sprintf("host-%02d", h)
		envs = append(envs, envOf(env, "token-"+env))
		var up, down []obj
		for n := range perHost {
			id := fmt.Sprintf("%s-s%02d", env, n)
			ids = append(ids, id)
			servers = append(servers, unprobed(id, env, "stopped"))
			up = append(up, container(id, "running", "Up 2 hours"))
			down = append(down, container(id, "exited", "Exited (0) 2 hours ago"))
		}
		beats[h] = [2][]byte{heartbeat(up...), heartbeat(down...)}
	}
	s := startService(t, obj{"environments": envs, "servers": servers})
	for h := range hosts {
		s.postHeartbeat(fmt.Sprintf("token-host-%02d", h), beats[h][0])
	}
	s.waitStatus(10*time.Second, ids[len(ids)-1], "running", "healthy", "ok")

	ctx, cancel := context.WithCancel(context.Background())
	var reading sync.WaitGroup
	defer func() { cancel(); reading.Wait() }()
	// flood makes 50 heartbeats a second that change 20 servers each, for so long.
	var turn [hosts]int
	flood := func(d time.Duration) {
		fctx, stop := context.WithTimeout(ctx, d)
		defer stop()
		const workers = 3
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				tick := time.NewTicker(workers * 20 * time.Millisecond)
				defer tick.Stop()
				for h := w; fctx.Err() == nil; h = (h + workers) % hosts {
					turn[h]++
					s.postHeartbeat(fmt.Sprintf("token-host-%02d", h), beats[h][turn[h]%2])
					<-tick.C
				}
			})
		}
		wg.Wait()
	}
	flood(2 * time.Second) // the heap settles
	before := s.rssKiB("VmHWM")
	_, start := s.servers("")

	whole := s.slowWS(ctx, "whole fleet", nil)
	some := s.slowWS(ctx, "one host", list{"host-00"})
	events := s.slowSSE(ctx, "events")
	watched := []*slowReader{whole, some, events}
	all := slices.Clone(watched)
	for i := range clients {
		all = append(all, s.slowWS(ctx, fmt.Sprintf("client %d", i), nil))
	}
	for _, r := range all {
		reading.Go(func() { r.read(ctx) })
	}
	// What the machine itself delays is not mode latest's doing: the most that this one waits for an entry.
	var lag atomic.Int64
	live := s.ws("/api/v1/ws")
	send(t, live, obj{"type": "subscribe", "channel": "mcp_server_status"})
	expect(t, live, "subscribed")
	live.SetReadDeadline(time.Time{})
	liveDone := make(chan struct{})
	context.AfterFunc(ctx, func() { live.Close() })
	go func() {
		defer close(liveDone)
		for {
			_, b, err := live.ReadMessage()
			if err != nil {
				return
			}
			if text, err := stringAfter(b, `"timestamp":"`); err == nil {
				if at, err := time.Parse(time.RFC3339, text); err == nil {
					lag.Store(max(lag.Load(), int64(time.Since(at))))
				}
			}
		}
	}()

	began := time.Now()
	flood(lasting)
	took := time.Since(began)
	after := s.rssKiB("VmHWM")
	s.settled(ids[0])
	journal := s.updates(start, "")
	rate := float64(len(journal)) / took.Seconds()
	slack := time.Duration(lag.Load())
	t.Logf("%d updates in %s: %.0f a second; the machine delays by up to %s; most memory %d MiB before, %d MiB with %d slow clients",
		len(journal), took.Round(time.Millisecond), rate, slack.Round(time.Millisecond), before>>10, after>>10, len(all))

	// The selection that can be read through in two seconds is complete soon, at ten frames a second. The others hurry.
	truth, _ := s.servers("")
	for _, r := range all {
		if r != some {
			r.hurry.Store(true)
		}
	}
	ends := func(r *slowReader) {
		t.Helper()
		waitFor(t, 15*time.Second+slack, r.name+" ends with the truth", func() (bool, string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.err != nil {
				t.Fatal(r.err)
			}
			for id, v := range truth {
				if r == some && v.EnvironmentID != "host-00" {
					if r.held[id] != 0 {
						t.Fatalf("%s was told of %s", r.name, id)
					}
					continue
				}
				if r.held[id] != v.Status.Version {
					return false, fmt.Sprintf("%s at version %d, is %d", id, r.held[id], v.Status.Version)
				}
			}
			return true, ""
		})
	}
	ended := time.Now()
	ends(some)
	t.Logf("%s ends with the truth %s after the flood", some.name, time.Since(ended).Round(time.Millisecond))
	for _, r := range all {
		ends(r)
	}

	// When a version was followed by the next, it stopped being true.
	replaced := map[string]map[uint64]time.Time{}
	for _, e := range journal {
		if replaced[e.ServerID] == nil {
			replaced[e.ServerID] = map[uint64]time.Time{}
		}
		replaced[e.ServerID][e.Version-1] = e.Timestamp
	}
	age := func(id string, version uint64, at time.Time) time.Duration {
		if then, ok := replaced[id][version]; ok {
			return max(0, at.Sub(then))
		}
		return 0 // true still
	}
	for _, r := range watched {
		limit := recent + slack
		if r == events {
			limit = 10*time.Second + slack // what waits in buffers of 8 and 4 KiB, which kernels take for more, is read first
		}
		r.mu.Lock()
		var told, holds time.Duration
		held := map[string]glimpse{}
		n := 0
		for _, g := range r.seen {
			if g.at.After(ended) {
				break
			}
			n++
			told = max(told, age(g.id, g.version, g.at))
			held[g.id] = g
			for _, h := range held {
				holds = max(holds, age(h.id, h.version, g.at))
			}
		}
		r.mu.Unlock()
		t.Logf("%s: read %d of %d updates, came back %d times; the oldest that it was told was replaced %s before, the oldest that it held %s",
			r.name, n, len(journal), r.resumed.Load(), told.Round(time.Millisecond), holds.Round(time.Millisecond))
		if told > limit {
			t.Errorf("%s was told something that was replaced %s before, not %s", r.name, told, limit)
		}
		if whole := perHost * 100 * time.Millisecond; r == some && holds > limit+2*whole {
			t.Errorf("%s held something that was replaced %s before, though it reads all in %s", r.name, holds, whole)
		}
		if most := int(ended.Sub(began)/(100*time.Millisecond)) + 10; n > most || n < most/4 {
			t.Errorf("%s read %d frames in %s", r.name, n, ended.Sub(began))
		}
	}
	// The ring of the newest entries is there without them; beyond it each may cost its buffers and a place a server.
	ring, each := 4*len(journal), 256+len(ids)/4
	most := 48<<10 + ring + each*len(all)
	if raceEnabled {
		most *= 4 // its detector has several bytes for each
	}
	if grown := after - before; grown > most {
		t.Errorf("the service grew by %d MiB, which is more than %d", grown>>10, most>>10)
	}
	if n, _ := s.metric(`statussync_ws_closed_total{code="4008"}`); n != 0 {
		t.Errorf("%v slow clients were cut", n)
	}
	cancel()
	<-liveDone
	reading.Wait()
	s.stop()
}
