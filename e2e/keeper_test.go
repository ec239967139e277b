//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// keeper is a client that keeps the state of the whole fleet, as a screen does: from a snapshot or a cursor on, by what
// it is told alone, across connections. It judges what docs/protocols.md promises it: in mode every no gap in seq and
// versions that rise by one, in mode latest versions that rise; that a removed server goes on counting from unknown; and
// that a cursor is continued rightly or not at all. Many keepers cost little: entries are decoded once for all of them.
type keeper struct {
	name    string
	entries *entryCache
	latest  bool
	sse     bool
	impish  bool          // drops its connection by itself every now and then
	slow    time.Duration // waits so long after each few frames
	hurry   *atomic.Bool  // ends both

	mu      sync.Mutex
	cursor  string // to resume from; "" before the first connection
	view    map[string]held
	seen    map[string]uint64 // highest version of each server ever, also of those that were removed
	gone    map[string]bool   // removed, as far as it knows
	pending map[string]held   // snapshot under way
	placed  bool              // the position on this connection is known
	chain   uint64            // mode every: seq of the newest entry, or the position
	kinds   map[string]int    // entries told
	conns   int
	recover int // connections that were continued
	resyncs []string
	faults  []string
}

// held is what a keeper holds of a server.
type held struct {
	key     string
	version uint64
}

// entryCache holds each entry decoded once; all subscribers get the same bytes, which it checks.
type entryCache struct{ byCursor sync.Map } // entryAt → *entryJSON

type entryAt struct {
	epoch string
	seq   uint64
}

func (c *entryCache) entry(data []byte) (*entryJSON, error) {
	seq, err1 := numberAfter(data, `"seq":`)
	epoch, err2 := stringAfter(data, `"epoch":"`)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	at := entryAt{epoch, seq}
	if e, ok := c.byCursor.Load(at); ok {
		e := e.(*entryJSON)
		if !bytes.Equal(e.raw, data) {
			return nil, fmt.Errorf("two subscribers were told entry %d in different words: %s and %s", seq, e.raw, data)
		}
		return e, nil
	}
	e, err := decodeEntry(bytes.Clone(data))
	if err != nil {
		return nil, err
	}
	if e.Seq != seq || e.Epoch != epoch {
		return nil, fmt.Errorf("seq and epoch are not the first members of these names in %s", clip(data))
	}
	c.byCursor.Store(at, e)
	return e, nil
}

// allKinds is what a subscription lists that wants every entry there is.
var allKinds = []string{
	"status", "server_added", "server_changed", "server_removed", "environment_silent", "environment_back", "self_doubt", "tool_drift",
}

func newKeeper(name string, entries *entryCache, latest, sse bool) *keeper {
	return &keeper{
		name: name, entries: entries, latest: latest, sse: sse,
		view: map[string]held{}, seen: map[string]uint64{}, gone: map[string]bool{}, kinds: map[string]int{},
	}
}

// keep runs k until the test ends or the function returned is called; it can be called again afterwards.
func (s *service) keep(k *keeper) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.run(ctx, s)
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	s.t.Cleanup(stop)
	return stop
}

func (k *keeper) run(ctx context.Context, s *service) {
	tr := &http.Transport{DisableCompression: true}
	defer tr.CloseIdleConnections()
	for n := 0; ctx.Err() == nil; n++ {
		cctx, cancel := context.WithCancel(ctx)
		if k.impish && !k.hurry.Load() {
			cctx, cancel = context.WithTimeout(ctx, time.Duration(700+n*137%1500)*time.Millisecond)
		}
		if k.sse {
			k.runSSE(cctx, s, tr)
		} else {
			k.runWS(cctx, s)
		}
		cancel()
		pause(ctx, 20*time.Millisecond)
	}
}

// fault notes what is wrong. The caller holds mu.
func (k *keeper) fault(format string, args ...any) {
	if len(k.faults) < 5 {
		k.faults = append(k.faults, fmt.Sprintf(format, args...))
	}
}

func (k *keeper) noted(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fault(format, args...)
}

// dawdle is how a slow client reads: some frames, then nothing for a while.
func (k *keeper) dawdle(ctx context.Context, n int) {
	if k.slow > 0 && n%16 == 0 && !k.hurry.Load() {
		pause(ctx, k.slow)
	}
}

func (k *keeper) begin() (asked string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conns++
	k.pending = nil
	k.placed = false
	return k.cursor
}

func (k *keeper) runWS(ctx context.Context, s *service) {
	rcv := 0
	if k.slow > 0 {
		rcv = 64 << 10 // less, and loopback waits for its timers instead of the client
	}
	c, _, err := dialer(rcv).DialContext(ctx, "ws://"+s.addr+"/api/v1/ws", nil)
	if err != nil {
		return
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	asked := k.begin()
	sub := obj{"type": "subscribe", "channel": "mcp_server_status", "filters": list{obj{"kinds": allKinds}}}
	if k.latest {
		sub["mode"] = "latest"
	}
	if asked == "" {
		sub["snapshot"] = true
	} else {
		sub["cursor"] = asked
	}
	if c.WriteJSON(sub) != nil {
		return
	}
	var buf bytes.Buffer
	for n := 1; ; n++ {
		_, r, err := c.NextReader()
		if err == nil {
			buf.Reset()
			_, err = buf.ReadFrom(r)
		}
		if err != nil {
			return
		}
		b := buf.Bytes()
		// The frame of an entry is taken apart by hand; its data is decoded once for all.
		if head, data, ok := bytes.Cut(b, []byte(`,"data":`)); ok && !bytes.HasPrefix(b, []byte(`{"type":"snapshot"`)) {
			typ, err1 := stringAfter(head, `"type":"`)
			cursor, err2 := stringAfter(head, `"cursor":"`)
			if err1 != nil || err2 != nil {
				k.noted("frame %s: %v %v", clip(b), err1, err2)
				return
			}
			k.takeEntry(typ, cursor, bytes.TrimSuffix(data, []byte("}")))
		} else {
			var f frame
			if err := json.Unmarshal(b, &f); err != nil {
				k.noted("a frame that is no JSON: %s", clip(b))
				return
			}
			k.take(&f, asked)
		}
		k.dawdle(ctx, n)
	}
}

func (k *keeper) runSSE(ctx context.Context, s *service, tr *http.Transport) {
	q := url.Values{"snapshot": {"true"}, "kinds": {strings.Join(allKinds, ",")}}
	if k.latest {
		q.Set("mode", "latest")
	}
	req, err := http.NewRequestWithContext(ctx, "GET", s.base+"/api/v1/stream?"+q.Encode(), nil)
	if err != nil {
		k.noted("%v", err)
		return
	}
	req.Header.Set("Accept", "text/event-stream")
	asked := k.begin()
	if asked != "" { // an EventSource keeps its URL
		req.Header.Set("Last-Event-ID", asked)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		if resp.StatusCode != 503 { // as while the service starts
			k.noted("the stream answered %s %s", resp.Status, b)
		}
		return
	}
	n := 0
	readSSE(resp.Body, func(event, id string, data []byte) {
		switch event {
		case "subscribed", "snapshot", "snapshot_end", "resync", "error":
			var f frame
			if err := json.Unmarshal(data, &f); err != nil {
				k.noted("an event that is no JSON: %s %s", event, clip(data))
				return
			}
			f.Type = event
			if id != "" {
				f.Cursor = id
			}
			k.take(&f, asked)
		case "":
			if len(data) > 0 {
				k.noted("an event without a name: %s", clip(data))
			}
			k.take(&frame{Type: "bookmark", Cursor: id}, asked)
		default:
			k.takeEntry(event, id, data)
		}
		n++
		k.dawdle(ctx, n)
	})
}

func seqOf(cursor string) uint64 {
	_, n, _ := strings.Cut(cursor, ":")
	seq, _ := strconv.ParseUint(n, 10, 64)
	return seq
}

// take keeps what a frame that carries no entry tells.
func (k *keeper) take(f *frame, asked string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch f.Type {
	case "subscribed":
		if f.Recovered {
			k.recover++
			if asked == "" || epochOf(f.Cursor) != epochOf(asked) {
				k.fault("%q was continued as %s", asked, f.Cursor)
			}
			k.placed, k.chain = true, seqOf(asked)
		}
	case "resync":
		if asked == "" {
			k.fault("a resync without a cursor: %s", f.Reason)
		}
		k.resyncs = append(k.resyncs, f.Reason)
		k.placed = false
	case "snapshot":
		if k.pending == nil {
			k.pending = map[string]held{}
		}
		for _, v := range f.Items {
			if _, twice := k.pending[v.ID]; twice {
				k.fault("%s is twice in a snapshot", v.ID)
			}
			k.pending[v.ID] = held{v.Status.key(), v.Status.Version}
		}
	case "snapshot_end":
		if k.pending == nil {
			k.pending = map[string]held{}
		}
		for id, v := range k.pending {
			if v.version < k.seen[id] || v.version == 0 {
				k.fault("a snapshot has version %d of %s, which had version %d before", v.version, id, k.seen[id])
			}
			k.seen[id] = v.version
		}
		k.view, k.pending = k.pending, nil
		clear(k.gone)
		k.cursor, k.placed, k.chain = f.Cursor, true, seqOf(f.Cursor)
	case "bookmark":
		k.move(f.Cursor)
		if k.placed && seqOf(f.Cursor) > k.chain {
			if !k.latest { // every entry was wanted
				k.fault("a bookmark says that %s was considered; the newest entry told is %d", f.Cursor, k.chain)
			}
			k.chain = seqOf(f.Cursor)
		}
	case "error":
		k.fault("error frame: %s %s", f.Code, f.Detail)
	default:
		k.fault("unexpected frame %s", f.Type)
	}
}

// move takes a cursor as the position to resume from. It may stay, and never goes back.
func (k *keeper) move(cursor string) {
	if k.cursor != "" {
		if back, ok := laterCursor(cursor, k.cursor); !ok || back { // of another epoch only by a resync
			k.fault("the cursor goes from %s to %s", k.cursor, cursor)
		}
	}
	k.cursor = cursor
}

func (k *keeper) takeEntry(typ, cursor string, data []byte) {
	e, err := k.entries.entry(data)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		k.fault("%s: %v", typ, err)
		return
	}
	if typ != e.Kind && (typ != "status_update" || e.Kind != "status") {
		k.fault("a %s frame carries %s", typ, e)
	}
	if !k.placed || k.pending != nil {
		k.fault("told %s before the position it follows", e)
	}
	k.move(cursor)
	k.kinds[e.Kind]++
	if !k.latest {
		if e.Seq != k.chain+1 {
			k.fault("%s follows %d", e, k.chain)
		}
		if cursor != e.cursor() {
			k.fault("the cursor of %s is %s", e, cursor)
		}
		k.chain = e.Seq
	}
	switch e.Kind {
	case "status":
		k.version(e)
		if first := k.gone[e.ServerID] || e.Version == 1; first && !k.latest && (e.Previous.State != "unknown" || e.Previous.Health != "unknown") {
			k.fault("%s is the first after it was added, and does not begin from unknown", e)
		}
		delete(k.gone, e.ServerID)
		k.view[e.ServerID] = held{e.Current.key(), e.Version}
	case "server_removed":
		k.version(e)
		k.gone[e.ServerID] = true
		delete(k.view, e.ServerID)
	case "server_added":
		if _, has := k.view[e.ServerID]; has && !k.latest {
			k.fault("%s, which is there already", e)
		}
	}
}

// version judges the version of an entry by what was known before, and remembers it.
func (k *keeper) version(e *entryJSON) {
	before := k.seen[e.ServerID]
	now, has := k.view[e.ServerID]
	switch {
	case k.latest && e.Version > before:
	case !k.latest && e.Version == before+1:
	case !k.latest && e.Version > before && !has && !k.gone[e.ServerID] && len(k.resyncs) > 0:
		// It was removed among what the resync has skipped.
	case k.latest && e.Version == before && k.conns > 1:
		// Told again after a resumption: it must be the same.
		if has != (e.Kind == "status") || has && now.key != e.Current.key() {
			k.fault("%s is told again, and was %v", e, now)
		}
	default:
		k.fault("%s follows version %d", e, before)
	}
	k.seen[e.ServerID] = e.Version
}

// differs says how k's view differs from the truth; "" where it does not.
func (k *keeper) differs(truth map[string]held) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if maps.Equal(k.view, truth) {
		return ""
	}
	var diff []string
	for id, want := range truth {
		if got := k.view[id]; got != want {
			diff = append(diff, fmt.Sprintf("%s is %v, not %v", id, got, want))
		}
	}
	for id := range k.view {
		if _, ok := truth[id]; !ok {
			diff = append(diff, id+" should not be there")
		}
	}
	slices.Sort(diff)
	return fmt.Sprintf("%d differ: %v; at %s, %d connections, resyncs %v", len(diff), diff[:min(len(diff), 3)], k.cursor, k.conns, k.resyncs)
}

// endsWith waits until k holds the truth, and reports what it found wrong on the way.
func (k *keeper) endsWith(t testing.TB, limit time.Duration, truth map[string]held) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		diff := k.differs(truth)
		if diff == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("%s does not end with the true state: %s", k.name, diff)
			break
		}
		pause(context.Background(), 10*time.Millisecond)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.faults {
		t.Errorf("%s: %s", k.name, f)
	}
	k.faults = nil
}

// fleet is every server as GET /servers has it, page by page. It is one truth only while nothing changes.
func (s *service) fleet() (map[string]held, string) {
	s.t.Helper()
	all := map[string]held{}
	for next, at := "", ""; ; {
		var p pageJSON[serverJSON]
		s.getJSON("/api/v1/servers?limit=1000"+next, &p)
		for _, v := range p.Items {
			all[v.ID] = held{v.Status.key(), v.Status.Version}
		}
		if at == "" {
			at = p.Cursor
		}
		if p.NextCursor == "" {
			return all, at
		}
		next = "&cursor=" + url.QueryEscape(p.NextCursor)
	}
}
