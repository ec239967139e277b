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
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// frame is any frame of the WebSocket, and any event of the SSE stream as the frame that it stands for.
type frame struct {
	Type      string          `json:"type"`
	ID        string          `json:"id"`
	Cursor    string          `json:"cursor"`
	Recovered bool            `json:"recovered"`
	Durable   bool            `json:"durable"`
	Items     []serverJSON    `json:"items"`
	More      bool            `json:"more"`
	Data      json.RawMessage `json:"data"`
	Sent      uint64          `json:"sent"`
	Reason    string          `json:"reason"`
	Code      string          `json:"code"`
	Detail    string          `json:"detail"`
	Retryable bool            `json:"retryable"`
}

// dialer opens WebSockets as a client without compression or proxy. rcvbuf, if not 0, is the size of the socket's
// receive buffer.
func dialer(rcvbuf int) *websocket.Dialer {
	return &websocket.Dialer{
		HandshakeTimeout: 10 * time.Second,
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err == nil && rcvbuf > 0 {
				err = c.(*net.TCPConn).SetReadBuffer(rcvbuf)
			}
			return c, err
		},
	}
}

// ws opens a WebSocket of the service; it is closed when the test ends.
func (s *service) ws(path string, header ...string) *websocket.Conn {
	s.t.Helper()
	h := http.Header{}
	if s.token != "" {
		h.Set("Authorization", "Bearer "+s.token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	c, resp, err := dialer(0).Dial("ws://"+s.addr+path, h)
	if err != nil {
		msg := err.Error()
		if resp != nil {
			b, _ := io.ReadAll(resp.Body)
			msg += " " + resp.Status + " " + string(b)
		}
		s.t.Fatalf("WebSocket %s: %s\n%s", path, msg, s.tail())
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// expect reads frames until one of the type given comes, which it returns. Frames before it are dropped.
func expect(t testing.TB, c *websocket.Conn, typ string) frame {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		_, b, err := c.ReadMessage()
		if err != nil {
			t.Fatalf("waiting for a %s frame: %v", typ, err)
		}
		var f frame
		if err := json.Unmarshal(b, &f); err != nil {
			t.Fatalf("frame %s: %v", clip(b), err)
		}
		if f.Type == typ {
			return f
		}
		if f.Type == "error" {
			t.Fatalf("waiting for a %s frame: error frame %s", typ, b)
		}
	}
}

func send(t testing.TB, c *websocket.Conn, v any) {
	t.Helper()
	c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if err := c.WriteJSON(v); err != nil {
		t.Fatal(err)
	}
}

// follower is a client that wants to miss nothing: it subscribes, keeps what it was told, and whenever the connection
// ends it comes back with its last cursor, for ever. It judges nothing but the protocol's own rules.
type follower struct {
	name   string
	addr   string
	token  string
	sse    bool
	query  url.Values // SSE: filters
	sub    obj        // WebSocket: members beside type, channel and cursor
	impish bool       // drops its connection by itself every now and then

	mu         sync.Mutex
	cursor     string       // last valid position
	told       []*entryJSON // all entries since the beginning or the last resync
	before     []*entryJSON // entries told before the last resync
	view       map[string]statusJSON
	pending    map[string]statusJSON // snapshot under way
	resyncs    []string              // reasons
	subscribed []frame
	faults     []string
}

// follow starts f at a cursor; it ends with the test, or when the function returned is called.
func (s *service) follow(f *follower, cursor string) (stop func()) {
	f.addr, f.token, f.cursor = s.addr, s.token, cursor
	f.view = map[string]statusJSON{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.run(ctx)
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	s.t.Cleanup(stop)
	return stop
}

func (f *follower) fault(format string, args ...any) {
	if len(f.faults) < 20 {
		f.faults = append(f.faults, f.name+": "+fmt.Sprintf(format, args...))
	}
}

func (f *follower) run(ctx context.Context) {
	tr := &http.Transport{DisableCompression: true}
	defer tr.CloseIdleConnections()
	for n := 0; ctx.Err() == nil; n++ {
		cctx, cancel := context.WithCancel(ctx)
		if f.impish {
			cctx, cancel = context.WithTimeout(ctx, time.Duration(150+n*37%400)*time.Millisecond)
		}
		if f.sse {
			f.runSSE(cctx, tr)
		} else {
			f.runWS(cctx)
		}
		cancel()
		pause(ctx, 10*time.Millisecond)
	}
}

func (f *follower) runWS(ctx context.Context) {
	h := http.Header{}
	if f.token != "" {
		h.Set("Authorization", "Bearer "+f.token)
	}
	c, _, err := dialer(0).DialContext(ctx, "ws://"+f.addr+"/api/v1/ws", h)
	if err != nil {
		return
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	f.mu.Lock()
	asked := f.cursor
	f.mu.Unlock()
	sub := obj{"type": "subscribe", "channel": "mcp_server_status"}
	maps.Copy(sub, f.sub)
	if asked != "" {
		sub["cursor"] = asked
	}
	if c.WriteJSON(sub) != nil {
		return
	}
	for {
		_, b, err := c.ReadMessage()
		if err != nil {
			return
		}
		var fr frame
		if err := json.Unmarshal(b, &fr); err != nil {
			f.mu.Lock()
			f.fault("a frame that is no JSON: %s", clip(b))
			f.mu.Unlock()
			return
		}
		f.take(&fr, asked)
	}
}

func (f *follower) runSSE(ctx context.Context, tr *http.Transport) {
	q := url.Values{}
	maps.Copy(q, f.query)
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+f.addr+"/api/v1/stream", nil)
	if err != nil {
		return
	}
	f.mu.Lock()
	asked, resumed := f.cursor, len(f.subscribed) > 0
	f.mu.Unlock()
	if resumed && asked != "" {
		req.Header.Set("Last-Event-ID", asked)
	} else if asked != "" {
		q.Set("cursor", asked)
	}
	req.URL.RawQuery = q.Encode()
	req.Header.Set("Accept", "text/event-stream")
	if f.token != "" {
		req.Header.Set("Authorization", "Bearer "+f.token)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		if resp.StatusCode != 503 { // a service that is just stopping or starting may say so
			f.mu.Lock()
			f.fault("stream answered %s %s %s", resp.Status, resp.Header.Get("Content-Type"), b)
			f.mu.Unlock()
		}
		return
	}
	readSSE(resp.Body, func(event, id string, data []byte) {
		fr := frame{}
		switch event {
		case "":
			if len(data) == 0 {
				fr.Type = "bookmark"
				break
			}
			fallthrough
		default:
			if event == "subscribed" || event == "snapshot" || event == "snapshot_end" || event == "resync" || event == "error" {
				json.Unmarshal(data, &fr)
			} else {
				fr.Data = bytes.Clone(data)
			}
			fr.Type = event
		}
		if id != "" {
			fr.Cursor = id
		}
		f.take(&fr, asked)
	})
}

// readSSE reads an event stream until it ends and calls each for every block that has anything in it.
func readSSE(r io.Reader, each func(event, id string, data []byte)) {
	br := bufio.NewReaderSize(r, 64<<10)
	var event, id string
	var data []byte
	hasData := false
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return // a block that is not complete is dropped, as the standard says
		}
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			if event != "" || id != "" || hasData {
				each(event, id, data)
			}
			event, id, data, hasData = "", "", nil, false
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "event":
			event = value
		case "id":
			id = value
		case "data":
			if hasData {
				data = append(data, '\n')
			}
			data, hasData = append(data, value...), true
		}
	}
}

// take keeps what one frame tells.
func (f *follower) take(fr *frame, asked string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch fr.Type {
	case "subscribed":
		f.subscribed = append(f.subscribed, *fr)
		if fr.Recovered && asked != "" && epochOf(fr.Cursor) != epochOf(asked) {
			f.fault("resumed from %s and was told that %s continues it", asked, fr.Cursor)
		}
		if asked == "" && f.cursor == "" {
			f.cursor = fr.Cursor
		}
	case "resync":
		f.resyncs = append(f.resyncs, fr.Reason)
		f.before = append(f.before, f.told...)
		f.told = nil
	case "snapshot":
		if f.pending == nil {
			f.pending = map[string]statusJSON{}
		}
		for _, v := range fr.Items {
			f.pending[v.ID] = v.Status
		}
	case "snapshot_end":
		f.view, f.pending = f.pending, nil
		if f.view == nil {
			f.view = map[string]statusJSON{}
		}
		f.cursor = fr.Cursor
	case "bookmark":
		if newer, ok := laterCursor(f.cursor, fr.Cursor); ok && newer {
			f.cursor = fr.Cursor
		}
	case "error":
		f.fault("error frame %s %s", fr.Code, fr.Detail)
	case "pong", "unsubscribed", "auth_ok":
	default:
		e, err := decodeEntry(fr.Data)
		if err != nil {
			f.fault("%s: %v", fr.Type, err)
			return
		}
		if e.cursor() != fr.Cursor {
			f.fault("the frame's cursor is %s, its entry's %s", fr.Cursor, e.cursor())
		}
		if want := e.Kind; fr.Type != want && (want != "status" || fr.Type != "status_update") {
			f.fault("a %s frame carries a %s entry", fr.Type, want)
		}
		if newer, ok := laterCursor(f.cursor, fr.Cursor); f.cursor != "" && (!ok || !newer) {
			f.fault("was told %s after %s", fr.Cursor, f.cursor)
		}
		f.cursor = fr.Cursor
		f.told = append(f.told, e)
		if e.Current != nil {
			cur := *e.Current
			cur.Version = e.Version
			f.view[e.ServerID] = cur
		}
	}
}

func epochOf(cursor string) string {
	ep, _, _ := strings.Cut(cursor, ":")
	return ep
}

// laterCursor reports whether b is later than a; ok is false where they are of different epochs.
func laterCursor(a, b string) (later, ok bool) {
	ea, na, _ := strings.Cut(a, ":")
	eb, nb, _ := strings.Cut(b, ":")
	x, err1 := strconv.ParseUint(na, 10, 64)
	y, err2 := strconv.ParseUint(nb, 10, 64)
	return y > x, ea == eb && err1 == nil && err2 == nil
}

// waitLast waits until the follower's last entry is at least the last one of want.
func (f *follower) waitLast(t testing.TB, limit time.Duration, want *entryJSON) {
	t.Helper()
	waitFor(t, limit, f.name+" gets "+want.cursor(), func() (bool, string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.told) == 0 {
			return false, "nothing told since the last resync; at " + f.cursor
		}
		last := f.told[len(f.told)-1]
		later, ok := laterCursor(want.cursor(), last.cursor())
		return ok && (later || last.Seq == want.Seq), last.cursor()
	})
}

// check compares what the follower was told with what it should have been: exactly want, in order, byte for byte.
func (f *follower) check(t testing.TB, want []*entryJSON) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.faults {
		t.Error(s)
	}
	if err := sameEntries(f.told, want); err != nil {
		t.Errorf("%s (%d entries told, %d expected, %d connections, resyncs %v): %v",
			f.name, len(f.told), len(want), len(f.subscribed), f.resyncs, err)
	}
}

// sameEntries compares two lists of entries, byte for byte.
func sameEntries(got, want []*entryJSON) error {
	for i := range min(len(got), len(want)) {
		g, w := got[i], want[i]
		switch {
		case g.Epoch != w.Epoch || g.Seq != w.Seq:
			return fmt.Errorf("number %d is %s, not %s", i, g, w)
		case !bytes.Equal(g.raw, w.raw):
			return fmt.Errorf("the bytes of %s differ:\n got %s\nwant %s", g.cursor(), g.raw, w.raw)
		}
	}
	switch {
	case len(got) < len(want):
		return fmt.Errorf("the last %d are missing, first %s", len(want)-len(got), want[len(got)])
	case len(got) > len(want):
		return fmt.Errorf("%d too many, first %s", len(got)-len(want), got[len(want)])
	}
	return nil
}

// versionsRise checks that each server's versions rise by exactly one through the entries, and returns the last.
func versionsRise(entries []*entryJSON) (map[string]uint64, error) {
	last := map[string]uint64{}
	for _, e := range entries {
		if e.Kind != "status" && e.Kind != "server_removed" {
			continue
		}
		if v, ok := last[e.ServerID]; ok && e.Version != v+1 {
			return last, fmt.Errorf("%s follows version %d", e, v)
		}
		last[e.ServerID] = e.Version
	}
	return last, nil
}

// only returns the entries that keep.
func only(entries []*entryJSON, keep func(*entryJSON) bool) []*entryJSON {
	return slices.DeleteFunc(slices.Clone(entries), func(e *entryJSON) bool { return !keep(e) })
}

// closeCode reads until the WebSocket ends and returns its close code, 0 where it was only cut.
func closeCode(t testing.TB, c *websocket.Conn, limit time.Duration) int {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(limit))
	for {
		_, _, err := c.ReadMessage()
		var ce *websocket.CloseError
		switch {
		case err == nil:
		case errors.As(err, &ce) && ce.Code != websocket.CloseAbnormalClosure:
			return ce.Code
		case isTimeout(err):
			t.Fatalf("the WebSocket was not closed within %s", limit)
		default:
			return 0
		}
	}
}
