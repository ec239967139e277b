package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	"github.com/gorilla/websocket"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

type wsClient struct {
	*websocket.Conn
	t *testing.T
}

func (s *service) dialWith(t *testing.T, path string, h http.Header) (*wsClient, *http.Response, error) {
	c, resp, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(s.srv.URL, "http")+path, h)
	if err != nil {
		return nil, resp, err
	}
	t.Cleanup(func() { c.Close() })
	return &wsClient{c, t}, resp, nil
}

func (s *service) dial(t *testing.T, token string) *wsClient {
	t.Helper()
	h := http.Header{}
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	c, _, err := s.dialWith(t, wire.PathWebSocket, h)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *wsClient) send(frame string) {
	c.t.Helper()
	if err := c.WriteMessage(websocket.TextMessage, []byte(frame)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *wsClient) raw() []byte {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	kind, b, err := c.ReadMessage()
	if err != nil || kind != websocket.TextMessage {
		c.t.Fatalf("no frame: kind %d, %v", kind, err)
	}
	return b
}

func (c *wsClient) next() *wire.ServerFrame {
	c.t.Helper()
	b := c.raw()
	f, err := wire.DecodeServerFrame(b)
	if err != nil {
		c.t.Fatalf("%v: %s", err, b)
	}
	return f
}

// want reads a frame and checks its type.
func (c *wsClient) want(k wire.FrameType) *wire.ServerFrame {
	c.t.Helper()
	f := c.next()
	if f.Type != k {
		c.t.Fatalf("got %+v, want %s", f, k)
	}
	return f
}

func (c *wsClient) wantClose(code int) {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	for {
		_, b, err := c.ReadMessage()
		if err == nil {
			if bytes.Contains(b, []byte(`"error"`)) || bytes.Contains(b, []byte(`"pong"`)) {
				continue
			}
			c.t.Fatalf("a frame instead of a close: %s", b)
		}
		var closed *websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != code {
			c.t.Fatalf("closed by %v, want %d", err, code)
		}
		return
	}
}

const subscribe = `{"type":"subscribe","channel":"mcp_server_status","id":"s1"`

func (s *service) waitStats(t *testing.T, what string, ok func(Stats) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok(s.Stats()) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never: %s; %+v", what, s.Stats())
		}
	}
}

func TestSubscribe(t *testing.T) {
	s := serve(t, nil)
	s.hub.add(ids(5)...)
	c := s.dial(t, viewerToken)
	c.send(subscribe + `,"snapshot":true}`)
	if f := c.want(wire.FrameSubscribed); f.ID != "s1" || f.Recovered || !f.Durable || f.Cursor.String() != "e7:0" {
		t.Errorf("%+v", f)
	}
	var got []string
	for more := true; more; {
		f := c.want(wire.FrameSnapshot)
		for _, v := range f.Items {
			got = append(got, v.ID)
		}
		more = f.More
	}
	if strings.Join(got, " ") != "a-000 a-003 b-001 b-004 c-002" {
		t.Errorf("snapshot %v", got)
	}
	c.want(wire.FrameSnapshotEnd)
	e := s.hub.change("b-001", statussync.StateRunning, statussync.HealthHealthy)
	b := c.raw()
	if want := fmt.Sprintf(`{"type":"status_update","cursor":"e7:1","data":%s}`, e.AppendJSON(nil)); string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	// Missed while away: resumed without a gap, and nothing twice.
	c.Close()
	for range 600 {
		s.hub.change("b-001", statussync.StateError, statussync.HealthUnhealthy)
		s.hub.change("a-000", statussync.StateError, statussync.HealthUnhealthy)
	}
	c = s.dial(t, viewerToken)
	c.send(subscribe + `,"cursor":"e7:1","filters":[{"server_ids":["b-001"]}]}`)
	if f := c.want(wire.FrameSubscribed); !f.Recovered {
		t.Errorf("%+v", f)
	}
	for i := range 600 {
		e, err := c.want(wire.FrameStatusUpdate).Entry()
		if err != nil || e.ServerID != "b-001" || e.Version != uint64(i+2) {
			t.Fatalf("%d: %v %v", i, e, err)
		}
	}
	// A second subscription takes the place of the first.
	c.send(`{"type":"subscribe","channel":"mcp_server_status","id":"s2","filters":[{"server_ids":["a-000"]}]}`)
	if f := c.want(wire.FrameSubscribed); f.ID != "s2" {
		t.Errorf("%+v", f)
	}
	s.hub.change("b-001", statussync.StateRunning, statussync.HealthHealthy)
	s.hub.change("a-000", statussync.StateRunning, statussync.HealthHealthy)
	if e, _ := c.want(wire.FrameStatusUpdate).Entry(); e.ServerID != "a-000" {
		t.Errorf("%+v", e)
	}
	// A refused one leaves it as it is.
	c.send(`{"type":"subscribe","channel":"mcp_server_status","id":"s3","filters":[{"states":["bad"]}]}`)
	if f := c.want(wire.FrameError); f.ID != "s3" || f.Code != statussync.CodeInvalid || !strings.Contains(f.Detail, "filters.states") || f.Retryable {
		t.Errorf("%+v", f)
	}
	s.hub.change("a-000", statussync.StateError, statussync.HealthUnhealthy)
	c.want(wire.FrameStatusUpdate)
	c.send(`{"type":"ping"}`)
	if f := c.want(wire.FramePong); f.Cursor != (statussync.Cursor{Epoch: "e7", Seq: s.hub.Ready().Head.Seq}) {
		t.Errorf("%+v", f)
	}
	c.send(`{"type":"unsubscribe"}`)
	c.want(wire.FrameUnsubscribed)
	s.hub.change("a-000", statussync.StateRunning, statussync.HealthHealthy)
	c.send(`{"type":"ping","id":"p"}`)
	if f := c.want(wire.FramePong); !f.Cursor.IsZero() {
		t.Errorf("a position without a subscription: %+v", f)
	}
	s.hub.fail["Subscribe"] = statussync.NewError(statussync.CodeUnavailable, "too many subscriptions", nil)
	c.send(subscribe + `}`)
	if f := c.want(wire.FrameError); f.Code != statussync.CodeUnavailable || !f.Retryable {
		t.Errorf("%+v", f)
	}
	s.hub.mu.Lock()
	s.hub.fail["Subscribe"] = errors.New("hunter2")
	s.hub.mu.Unlock()
	c.send(subscribe + `}`)
	if f := c.want(wire.FrameError); f.Code != statussync.CodeInternal || strings.Contains(f.Detail, "hunter2") {
		t.Errorf("%+v", f)
	}
}

func TestResync(t *testing.T) {
	s := serve(t, nil)
	s.hub.add(ids(3)...)
	for range 10 {
		s.hub.change("a-000", statussync.StateError, statussync.HealthUnhealthy)
	}
	s.hub.expire(5)
	for cursor, reason := range map[string]statussync.ResyncReason{"e7:3": statussync.ResyncExpired, "e6:9": statussync.ResyncEpoch} {
		c := s.dial(t, viewerToken)
		c.send(subscribe + `,"cursor":"` + cursor + `"}`)
		if f := c.want(wire.FrameSubscribed); f.Recovered {
			t.Errorf("%+v", f)
		}
		if f := c.want(wire.FrameResync); f.Reason != reason {
			t.Errorf("%+v", f)
		}
		c.want(wire.FrameSnapshot)
		c.want(wire.FrameSnapshot)
		if f := c.want(wire.FrameSnapshotEnd); f.Cursor.Seq != 10 {
			t.Errorf("%+v", f)
		}
	}
}

// TestBadFrames: what can't be understood is answered with an error and loses nothing; after ten in a row it ends.
func TestBadFrames(t *testing.T) {
	s := serve(t, nil)
	s.hub.add("a-000")
	c := s.dial(t, viewerToken)
	c.send(subscribe + `}`)
	c.want(wire.FrameSubscribed)
	for _, bad := range []string{`nonsense`, `{"type":"dance","id":"x"}`, `[]`, `{"type":"subscribe"}`, `{"type":"subscribe","channel":"mcp_server_status","cursor":"garbage"}`, "", "\xff\xfe", `{"type":"publish"}`, strings.Repeat(`{"a":`, 5000)} {
		c.send(bad)
		if f := c.want(wire.FrameError); f.Code != statussync.CodeInvalid || f.Detail == "" || f.Retryable {
			t.Errorf("%.50s: %+v", bad, f)
		}
	}
	s.hub.change("a-000", statussync.StateRunning, statussync.HealthHealthy)
	c.want(wire.FrameStatusUpdate)
	c.send(`{"type":"ping"}`) // a good one: counting begins anew
	c.want(wire.FramePong)
	for range 10 {
		c.send(`nonsense`)
	}
	c.wantClose(wire.CloseBadRequest)
}

func TestCloseCodes(t *testing.T) {
	t.Run("4500 bad token in the header", func(t *testing.T) {
		s := serve(t, nil)
		_, resp, err := s.dialWith(t, wire.PathWebSocket, http.Header{"Authorization": {"Bearer nobody"}})
		if err == nil || resp == nil || resp.StatusCode != 401 {
			t.Errorf("%v %v", resp, err)
		}
		_, resp, err = s.dialWith(t, wire.PathWebSocket, http.Header{"Authorization": {"Bearer " + agentToken}})
		if err == nil || resp == nil || resp.StatusCode != 403 {
			t.Errorf("%v %v", resp, err)
		}
	})
	t.Run("4500 no credential in time", func(t *testing.T) {
		s := serve(t, func(o *Options) { o.AuthWait = 50 * time.Millisecond })
		c := s.dial(t, "")
		c.send(`{"type":"ping"}`)
		c.wantClose(wire.CloseUnauthorized)
		s.waitStats(t, "4500 counted", func(st Stats) bool { return st.WSClosed[4500] == 1 && st.WebSockets == 0 })
	})
	t.Run("4500 bad token in a frame", func(t *testing.T) {
		s := serve(t, nil)
		c := s.dial(t, "")
		c.send(`{"type":"auth","token":"nobody"}`)
		c.wantClose(wire.CloseUnauthorized)
	})
	t.Run("4503 agent token", func(t *testing.T) {
		s := serve(t, nil)
		c := s.dial(t, "")
		c.send(`{"type":"auth","token":"` + agentToken + `"}`)
		c.wantClose(wire.CloseForbidden)
	})
	t.Run("4029 too many logins", func(t *testing.T) {
		s := serve(t, func(o *Options) { o.LoginFailuresPerMinute = 1 })
		c := s.dial(t, "")
		c.send(`{"type":"auth","token":"nobody"}`)
		c.wantClose(wire.CloseUnauthorized)
		c = s.dial(t, "")
		c.send(`{"type":"auth","token":"nobody"}`)
		c.wantClose(wire.CloseRate)
	})
	t.Run("4029 too many frames", func(t *testing.T) {
		s := serve(t, func(o *Options) { o.CommandsPerSecond = 5 })
		c := s.dial(t, viewerToken)
		for range 10 {
			if c.WriteMessage(websocket.TextMessage, []byte(`{"type":"ping"}`)) != nil {
				break
			}
		}
		c.wantClose(wire.CloseRate)
	})
	t.Run("4001 expired", func(t *testing.T) {
		s := serve(t, func(o *Options) {
			o.CommentEvery = 20 * time.Millisecond // only to make the clock quick
			o.Auth = brief{tokens()}
		})
		c := s.dial(t, "")
		c.send(`{"type":"auth","token":"` + viewerToken + `"}`)
		if f := c.want(wire.FrameAuthOK); f.ExpiresAt.IsZero() {
			t.Errorf("%+v", f)
		}
		c.wantClose(wire.CloseTokenExpired)
	})
	t.Run("4501 binary", func(t *testing.T) {
		s := serve(t, nil)
		c := s.dial(t, viewerToken)
		if err := c.WriteMessage(websocket.BinaryMessage, []byte(`{"type":"ping"}`)); err != nil {
			t.Fatal(err)
		}
		c.wantClose(wire.CloseBadRequest)
	})
	t.Run("4501 huge", func(t *testing.T) {
		s := serve(t, nil)
		c := s.dial(t, viewerToken)
		c.send(`{"type":"ping","id":"` + strings.Repeat("x", 70<<10) + `"}`)
		c.wantClose(wire.CloseBadRequest)
	})
	t.Run("4504 too many connections", func(t *testing.T) {
		s := serve(t, func(o *Options) { o.MaxConnections = 2 })
		counted := func() *wsClient { // the handshake is answered before the connection is counted
			c := s.dial(t, viewerToken)
			c.send(`{"type":"ping"}`)
			c.want(wire.FramePong)
			return c
		}
		a, b := counted(), counted()
		s.dial(t, viewerToken).wantClose(wire.CloseLimit)
		c := s.dial(t, "")
		c.send(`{"type":"auth","token":"` + viewerToken + `"}`)
		c.wantClose(wire.CloseLimit)
		if x := s.do(t, viewerToken, "GET /api/v1/stream", ""); x.status != 429 || x.problem(t).Code != statussync.CodeRateLimited {
			t.Errorf("a stream beside: %d", x.status)
		}
		s.dial(t, operatorToken).send(`{"type":"ping"}`)
		a.Close()
		s.waitStats(t, "one left", func(st Stats) bool { return st.WebSockets == 2 })
		d := s.dial(t, viewerToken)
		d.send(`{"type":"ping"}`)
		d.want(wire.FramePong)
		b.Close()
	})
	t.Run("4008 missing pong", func(t *testing.T) {
		s := serve(t, func(o *Options) { o.PingEvery, o.PongWait = 20*time.Millisecond, 50*time.Millisecond })
		c := s.dial(t, viewerToken)
		pinged := 0
		c.SetPingHandler(func(string) error { pinged++; return nil })
		c.wantClose(wire.CloseTooSlow)
		if pinged != 1 {
			t.Errorf("%d pings", pinged)
		}
		// One that answers stays.
		d := s.dial(t, viewerToken)
		n := 0
		d.SetPingHandler(func(data string) error {
			if n++; n == 8 {
				d.WriteMessage(websocket.TextMessage, []byte(`{"type":"ping"}`))
			}
			return d.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(time.Second))
		})
		d.want(wire.FramePong)
	})
	t.Run("4011 draining", func(t *testing.T) {
		s := serve(t, nil)
		c, d := s.dial(t, viewerToken), s.dial(t, "")
		c.send(subscribe + `}`)
		c.want(wire.FrameSubscribed)
		s.Drain()
		c.wantClose(wire.CloseDraining)
		d.wantClose(wire.CloseDraining)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Wait(ctx); err != nil {
			t.Error(err)
		}
		if st := s.Stats(); st.WSClosed[4011] != 2 || st.WebSockets != 0 {
			t.Errorf("%+v", st)
		}
	})
	t.Run("4011 the hub stops", func(t *testing.T) {
		s := serve(t, nil)
		c := s.dial(t, viewerToken)
		c.send(subscribe + `}`)
		c.want(wire.FrameSubscribed)
		s.hub.set(func() { s.hub.stopped = true })
		c.wantClose(wire.CloseDraining)
	})
	t.Run("the client's own", func(t *testing.T) {
		s := serve(t, nil)
		c := s.dial(t, viewerToken)
		c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, "bye"))
		c.wantClose(1000)
		c = s.dial(t, viewerToken)
		c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(3999, ""))
		c.wantClose(1005)
		s.dial(t, viewerToken).Conn.NetConn().Close()
		s.waitStats(t, "all counted", func(st Stats) bool {
			return st.WSClosed[1000] == 1 && st.WSClosed[1005] == 1 && st.WSClosed[1006] == 1
		})
	})
}

// TestAuthFrame: until it says who it is, a connection is kept but told nothing.
func TestAuthFrame(t *testing.T) {
	s := serve(t, nil)
	s.hub.add("a-000")
	c := s.dial(t, "")
	c.send(subscribe + `}`)
	if f := c.want(wire.FrameError); f.Code != statussync.CodeUnauthorized || f.ID != "s1" {
		t.Errorf("%+v", f)
	}
	c.send(`{"type":"auth","token":"` + viewerToken + `"}`)
	if f := c.want(wire.FrameAuthOK); !f.ExpiresAt.IsZero() {
		t.Errorf("%+v", f)
	}
	c.send(subscribe + `}`)
	c.want(wire.FrameSubscribed)
	c.send(`{"type":"auth","token":"` + adminToken + `"}`) // again, as somebody else
	c.want(wire.FrameAuthOK)
	s.hub.change("a-000", statussync.StateRunning, statussync.HealthHealthy)
	c.want(wire.FrameStatusUpdate)
	if n := s.limits.open; n["ada"] != 1 || len(n) != 1 {
		t.Errorf("counted as %v", n)
	}
	// A token in the address is none.
	d, _, err := s.dialWith(t, wire.PathWebSocket+"?token="+viewerToken, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.send(subscribe + `}`)
	if f := d.want(wire.FrameError); f.Code != statussync.CodeUnauthorized {
		t.Errorf("%+v", f)
	}
}

// TestNeverSubscribe: with a credential a silent connection is kept, and pinged.
func TestNeverSubscribe(t *testing.T) {
	s := serve(t, func(o *Options) {
		o.PingEvery, o.PongWait, o.AuthWait = 20*time.Millisecond, patience, 50*time.Millisecond
	})
	c := s.dial(t, viewerToken)
	pings := make(chan struct{}, 100)
	c.SetPingHandler(func(data string) error {
		pings <- struct{}{}
		return c.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(time.Second))
	})
	go c.ReadMessage()
	for range 6 {
		<-pings
	}
	c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""))
	s.waitStats(t, "closed", func(st Stats) bool { return st.WSClosed[1000] == 1 })
}

func TestControlPing(t *testing.T) {
	s := serve(t, nil)
	c := s.dial(t, viewerToken)
	got := make(chan string, 1)
	c.SetPongHandler(func(data string) error { got <- data; return nil })
	if err := c.WriteControl(websocket.PingMessage, []byte("hello"), time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	c.send(`{"type":"ping"}`)
	c.want(wire.FramePong)
	if d := <-got; d != "hello" {
		t.Errorf("%q", d)
	}
}

// TestBookmarks: positions and counts are right for a filtered subscription, and not repeated for nothing.
func TestBookmarks(t *testing.T) {
	s := serve(t, func(o *Options) { o.BookmarkEvery = 30 * time.Millisecond })
	s.hub.add("a-000", "b-000")
	c := s.dial(t, viewerToken)
	c.send(subscribe + `,"filters":[{"server_ids":["a-000"]}]}`)
	c.want(wire.FrameSubscribed)
	if f := c.want(wire.FrameBookmark); f.Cursor.Seq != 0 || f.Sent != 0 {
		t.Errorf("%+v", f)
	}
	s.hub.change("a-000", statussync.StateRunning, statussync.HealthHealthy)
	c.want(wire.FrameStatusUpdate)
	if f := c.want(wire.FrameBookmark); f.Cursor.Seq != 1 || f.Sent != 1 {
		t.Errorf("%+v", f)
	}
	s.hub.change("b-000", statussync.StateRunning, statussync.HealthHealthy)
	if f := c.want(wire.FrameBookmark); f.Cursor.Seq != 2 || f.Sent != 1 {
		t.Errorf("%+v", f)
	}
	s.hub.change("a-000", statussync.StateError, statussync.HealthUnhealthy)
	c.want(wire.FrameStatusUpdate) // and no bookmark between that says the same again
}

// TestLegacy: the frames of the original design's clients, byte for byte.
func TestLegacy(t *testing.T) {
	s := serve(t, func(o *Options) { o.LegacyViewer, o.BookmarkEvery = true, 10*time.Millisecond })
	s.hub.add("a-000")
	c, _, err := s.dialWith(t, wire.PathLegacy, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.send(`{"type":"subscribe","channel":"mcp_server_status","filters":{"table":"account_tool_instances","filter":"mcp_server_type=not.is.null"}}`)
	c.want(wire.FrameSubscribed)
	c.send(`{"type":"ping"}`)
	if b := c.raw(); string(b) != `{"type":"pong"}` {
		t.Errorf("%s", b)
	}
	c.send(`{"type":"publish","channel":"mcp_server_status","payload":{"server_id":"a-000"}}`)
	if f := c.want(wire.FrameError); f.Code != statussync.CodeForbidden {
		t.Errorf("%+v", f)
	}
	s.hub.set(func() { // other kinds have no form there
		h := s.hub
		e := &statussync.Entry{Seq: 1, Epoch: h.epoch, Kind: statussync.KindSelfDoubt, Timestamp: h.Now(), Source: statussync.SourceSystem}
		h.log = append(h.log, statussync.Encoded{Entry: e, JSON: e.AppendJSON(nil)})
	})
	e := s.hub.change("a-000", statussync.StateError, statussync.HealthUnhealthy)
	b := c.raw()
	want, _ := wire.AppendLegacyUpdate(nil, e)
	if !bytes.Equal(b, want) {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	var u struct {
		Type string
		Data struct {
			ServerID  string         `json:"server_id"`
			OldStatus map[string]any `json:"old_status"`
			NewStatus map[string]any `json:"new_status"`
			Timestamp string
			Source    string
			Details   string
		}
	}
	if err := json.Unmarshal(b, &u); err != nil || u.Type != "status_update" || u.Data.ServerID != "a-000" || u.Data.NewStatus["state"] != "error" || u.Data.NewStatus["health"] != "unhealthy" || u.Data.OldStatus["state"] != "unknown" {
		t.Errorf("%v %s", err, b)
	}
	c.send(`{"type":"subscribe","channel":"mcp_server_status","filters":[{"states":["stopped"]}],"some":"thing"}`)
	c.want(wire.FrameSubscribed)
	s.hub.change("a-000", statussync.StateRunning, statussync.HealthHealthy)
	s.hub.change("a-000", statussync.StateStopped, statussync.HealthUnknown)
	if b := c.raw(); !bytes.Contains(b, []byte(`"new_status":{"state":"stopped"`)) {
		t.Errorf("a list of filters: %s", b)
	}

	t.Run("not without permission", func(t *testing.T) {
		s := serve(t, func(o *Options) { o.AuthWait = time.Second })
		c, _, err := s.dialWith(t, wire.PathLegacy, nil)
		if err != nil {
			t.Fatal(err)
		}
		c.send(`{"type":"subscribe","channel":"mcp_server_status"}`)
		if f := c.want(wire.FrameError); f.Code != statussync.CodeUnauthorized {
			t.Errorf("%+v", f)
		}
		c.wantClose(wire.CloseUnauthorized)
		// and only there
		l := serve(t, func(o *Options) { o.LegacyViewer, o.AuthWait = true, 50*time.Millisecond })
		l.dial(t, "").wantClose(wire.CloseUnauthorized)
	})
	t.Run("loopback", func(t *testing.T) {
		s := serve(t, func(o *Options) { o.Auth, o.OpenLoopback = nil, true })
		c, _, err := s.dialWith(t, wire.PathLegacy, nil)
		if err != nil {
			t.Fatal(err)
		}
		c.send(`{"type":"subscribe","channel":"mcp_server_status"}`)
		c.want(wire.FrameSubscribed)
		d := s.dial(t, "")
		d.send(`{"type":"auth","token":"whatever"}`)
		d.want(wire.FrameAuthOK)
		d.send(subscribe + "}")
		d.want(wire.FrameSubscribed)
	})
}

// TestLegacyResync: a client that knows no positions is told the state of all after a gap.
func TestLegacyResync(t *testing.T) {
	c := &socket{a: &API{}, legacy: true}
	v := statussync.ServerView{Server: &statussync.Server{ID: "x"}, Status: statussync.Status{State: statussync.StateError}, Now: time.Now()}
	for _, e := range []statussync.Event{{Type: statussync.EventResync}, {Type: statussync.EventSnapshot, Items: []statussync.ServerView{v, v}}, {Type: statussync.EventSnapshotEnd}} {
		if why := c.event(&e); why != nil {
			t.Fatal(why)
		}
	}
	if n := bytes.Count(c.buf.out, []byte(`"new_status":{"state":"error"`)); n != 2 || bytes.Contains(c.buf.out, []byte("snapshot")) {
		t.Errorf("%s", c.buf.out)
	}
}

// TestSlowConsumer: one that never reads is cut off with 4008; those that do get everything, in order, meanwhile.
func TestSlowConsumer(t *testing.T) {
	s := serve(t, func(o *Options) { o.WriteTimeout = 300 * time.Millisecond })
	s.hub.add("a-000")
	slow := s.dial(t, viewerToken)
	slow.NetConn().(*net.TCPConn).SetReadBuffer(4 << 10)
	slow.send(subscribe + `}`)
	s.waitStats(t, "the slow one is there", func(st Stats) bool { return st.WebSockets == 1 })
	const readers, updates = 5, 20_000
	var wg sync.WaitGroup
	errs := make(chan error, readers)
	for range readers {
		c := s.dial(t, viewerToken)
		c.send(subscribe + `}`)
		c.want(wire.FrameSubscribed)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range updates {
				c.SetReadDeadline(time.Now().Add(3 * patience))
				_, b, err := c.ReadMessage()
				if want := fmt.Sprintf(`"cursor":"e7:%d"`, i+1); err != nil || !bytes.Contains(b[:min(len(b), 80)], []byte(want)) {
					errs <- fmt.Errorf("instead of %s: %.80s %v", want, b, err)
					return
				}
			}
		}()
	}
	for i := range updates {
		s.hub.change("a-000", statussync.States[i%4], statussync.Healths[i%3])
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	s.waitStats(t, "cut with 4008", func(st Stats) bool { return st.WSClosed[4008] == 1 })
	if st := s.Stats(); st.WebSockets != readers || st.EntriesSent < readers*updates {
		t.Errorf("%+v", st)
	}
}

// TestTooSlowTellsWhy: one that begins to read again just then finds whole frames and the Close.
func TestTooSlowTellsWhy(t *testing.T) {
	server, client := net.Pipe()
	defer client.Close()
	a := &API{opts: Options{WriteTimeout: 50 * time.Millisecond}}
	c := &socket{a: a, nc: server}
	c.text([]byte(strings.Repeat("x", 300)))
	c.text([]byte(strings.Repeat("y", 70_000)))
	c.text([]byte("never begun"))
	done := make(chan *closeReason)
	go func() { done <- c.flush() }()
	head := make([]byte, 1000) // into the second frame
	if _, err := io.ReadFull(client, head); err != nil {
		t.Fatal(err)
	}
	// Nothing is read until the write gives up; then all that comes.
	rest := make(chan []byte)
	go func() {
		tick := time.NewTimer(80 * time.Millisecond)
		<-tick.C
		client.SetReadDeadline(time.Now().Add(time.Second))
		b, _ := io.ReadAll(client)
		rest <- b
	}()
	if why := <-done; why == nil || why.code != wire.CloseTooSlow || !why.told {
		t.Fatalf("%+v", why)
	}
	server.Close()
	got := append(head, <-rest...)
	end := frameEnd(got, 4+300)
	if end = frameEnd(got, end+1); end > len(got) || got[end] != 0x88 || binary.BigEndian.Uint16(got[end+2:]) != wire.CloseTooSlow {
		t.Errorf("%d bytes, the second frame ends at %d, then % x", len(got), end, got[min(end, len(got)):])
	}
	if bytes.Contains(got, []byte("never begun")) {
		t.Error("a frame was begun after the decision")
	}
}

func TestFrames(t *testing.T) {
	var b []byte
	var ends []int
	for _, n := range []int{0, 1, 125, 126, 127, 65535, 65536, 100_000} {
		b = append(appendHeader(b, websocket.TextMessage, n), make([]byte, n)...)
		ends = append(ends, len(b))
	}
	at := 0
	for _, end := range ends {
		if got := frameEnd(b, at); got != at {
			t.Errorf("at the beginning of a frame %d: %d", at, got)
		}
		for _, n := range []int{at + 1, end - 1, end} {
			if got := frameEnd(b, n); got != end && n != at {
				t.Errorf("within a frame that ends at %d, at %d: %d", end, n, got)
			}
		}
		at = end
	}
}

// TestHostileTCP: no bytes of a client harm anybody.
func TestHostileTCP(t *testing.T) {
	s := serve(t, nil)
	handshake := "GET /api/v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer " + viewerToken + "\r\n\r\n"
	for name, c := range map[string]struct {
		bytes string
		code  int // 0: the connection only ends
	}{
		"unmasked":              {"\x81\x02{}", 4501},
		"reserved bits":         {"\xf1\x80\x00\x00\x00\x00", 4501},
		"bad opcode":            {"\x83\x80\x00\x00\x00\x00", 4501},
		"endless length":        {"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00" + strings.Repeat("x", 70<<10), 4501},
		"negative length":       {"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00", 4501},
		"long control":          {"\x89\xfe\x01\x00\x00\x00\x00\x00", 4501},
		"continuation first":    {"\x80\x80\x00\x00\x00\x00", 4501},
		"split control":         {"\x09\x80\x00\x00\x00\x00", 4501},
		"bad close code":        {"\x88\x82\x00\x00\x00\x00\x00\x01", 4501},
		"fragments without end": {strings.Repeat("\x01\x80\x00\x00\x00\x00"[:6], 1) + strings.Repeat("\x00\x81\x00\x00\x00\x00x", 70_000), 4501},
		"half a frame":          {"\x81\x85\x00\x00", 0},
		"http again":            {"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 4501},
	} {
		t.Run(name, func(t *testing.T) {
			nc, err := net.Dial("tcp", strings.TrimPrefix(s.srv.URL, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			nc.SetDeadline(time.Now().Add(patience))
			br := bufio.NewReader(nc)
			if _, err := io.WriteString(nc, handshake); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != 101 {
				t.Fatal(resp, err)
			}
			if _, err := io.WriteString(nc, c.bytes); err != nil && c.code == 0 {
				t.Fatal(err)
			}
			if c.code == 0 {
				nc.(*net.TCPConn).CloseWrite()
			}
			got, err := io.ReadAll(br)
			if c.code != 0 && (len(got) < 4 || got[0] != 0x88 || int(binary.BigEndian.Uint16(got[2:])) != c.code) {
				t.Errorf("% x %v, want a close with %d", got[:min(len(got), 40)], err, c.code)
			}
		})
	}
	s.waitStats(t, "all gone", func(st Stats) bool { return st.WebSockets == 0 })
	if strings.Contains(s.log.String(), "panic") {
		t.Error(s.log.String())
	}
}

// TestOtherClient: another implementation of the protocol agrees with what is written here.
func TestOtherClient(t *testing.T) {
	s := serve(t, nil)
	s.hub.add(ids(3)...)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, _, err := coder.Dial(ctx, s.srv.URL+wire.PathWebSocket, &coder.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + viewerToken}}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	if err := c.Write(ctx, coder.MessageText, []byte(subscribe+`}`)); err != nil {
		t.Fatal(err)
	}
	if _, b, err := c.Read(ctx); err != nil || !bytes.Contains(b, []byte(`"subscribed"`)) {
		t.Fatalf("%s %v", b, err)
	}
	for range 500 {
		s.hub.change("a-000", statussync.StateError, statussync.HealthUnhealthy)
	}
	for i := range 500 {
		_, b, err := c.Read(ctx)
		if err != nil || !bytes.Contains(b, []byte(fmt.Sprintf(`"cursor":"e7:%d"`, i+1))) {
			t.Fatalf("%d: %.100s %v", i, b, err)
		}
	}
	s.Drain()
	_, _, err = c.Read(ctx)
	if code := coder.CloseStatus(err); code != wire.CloseDraining {
		t.Errorf("%d %v", code, err)
	}
}

// TestReplayLimit: what is not new is told no faster than allowed, and nothing of it is lost.
func TestReplayLimit(t *testing.T) {
	for whose, change := range map[string]func(*Options){
		"everybody's": func(o *Options) { o.ReplayBytesPerSecond = 400_000 },
		"the token's own": func(o *Options) {
			o.Auth = NewTokens([]TokenSpec{{Name: "eve", Role: RoleViewer, Token: viewerToken, Limits: Limits{ReplayBytesPerSecond: 400_000}}}, nil)
		},
	} {
		t.Run(whose, func(t *testing.T) { testReplayLimit(t, change) })
	}
}

func testReplayLimit(t *testing.T, change func(*Options)) {
	s := serve(t, change)
	s.hub.add("a-000")
	for range 1500 {
		s.hub.change("a-000", statussync.StateError, statussync.HealthUnhealthy)
	}
	began := time.Now()
	c := s.dial(t, viewerToken)
	c.send(subscribe + `,"cursor":"e7:0"}`)
	c.want(wire.FrameSubscribed)
	size := 0
	for range 1500 {
		size += len(c.raw())
	}
	if took, least := time.Since(began), time.Duration(float64(size-400_000-2*writeChunk)/400_000*float64(time.Second)); took < least {
		t.Errorf("%d bytes in %v, at least %v", size, took, least)
	}
}

type sseClient struct {
	t    *testing.T
	resp *http.Response
	sc   *bufio.Reader
}

// block is one block of an event stream.
type block struct{ id, event, data, comment, retry string }

func (s *service) sse(t *testing.T, query string, headers ...string) *sseClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	t.Cleanup(cancel)
	req, _ := http.NewRequestWithContext(ctx, "GET", s.srv.URL+wire.PathStream+query, nil)
	req.Header.Set("Authorization", "Bearer "+viewerToken)
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%d %s", resp.StatusCode, b)
	}
	return &sseClient{t, resp, bufio.NewReader(resp.Body)}
}

func (c *sseClient) next() (b block, err error) {
	n := 0
	for {
		line, err := c.sc.ReadString('\n')
		if err != nil {
			return b, err
		}
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			if n == 0 {
				continue
			}
			return b, nil
		}
		n++
		k, v, _ := strings.Cut(line, ":")
		v = strings.TrimPrefix(v, " ")
		switch k {
		case "":
			b.comment = ":" + v
		case "id":
			b.id = v
		case "event":
			b.event = v
		case "data":
			b.data = v
		case "retry":
			b.retry = v
		}
	}
}

func (c *sseClient) want(event, id string) block {
	c.t.Helper()
	b, err := c.next()
	if err != nil || b.event != event || b.id != id {
		c.t.Fatalf("got %+v, %v, want %s with id %q", b, err, event, id)
	}
	if _, err := wire.DecodeServerEvent(b.event, b.id, []byte(b.data)); err != nil {
		c.t.Fatalf("%+v: %v", b, err)
	}
	return b
}

func (c *sseClient) begin() {
	c.t.Helper()
	if b, err := c.next(); err != nil || b != (block{retry: "2000"}) {
		c.t.Fatalf("%+v %v", b, err)
	}
}

func TestSSE(t *testing.T) {
	s := serve(t, nil)
	s.hub.add(ids(3)...)
	c := s.sse(t, "?snapshot=true")
	for k, want := range map[string]string{"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"} {
		if got := c.resp.Header.Get(k); got != want {
			t.Errorf("%s: %q", k, got)
		}
	}
	c.begin()
	c.want("subscribed", "") // not yet a position to resume from
	c.want("snapshot", "")
	c.want("snapshot", "")
	c.want("snapshot_end", "e7:0")
	e := s.hub.change("b-001", statussync.StateError, statussync.HealthUnhealthy)
	if b := c.want("status_update", "e7:1"); b.data != string(e.AppendJSON(nil)) {
		t.Errorf("%s", b.data)
	}

	// A new one from now on may resume from its beginning.
	c = s.sse(t, "")
	c.begin()
	c.want("subscribed", "e7:1")

	for range 700 {
		s.hub.change("a-000", statussync.StateRunning, statussync.HealthHealthy)
		s.hub.change("b-001", statussync.StateError, statussync.HealthUnhealthy)
	}
	c = s.sse(t, "?server_ids=b-001,x&states=error&snapshot=true", "Last-Event-ID: e7:1")
	c.begin()
	if b := c.want("subscribed", "e7:1"); !strings.Contains(b.data, `"recovered":true`) {
		t.Errorf("%s", b.data)
	}
	for i := range 700 { // no second snapshot
		c.want("status_update", fmt.Sprintf("e7:%d", 2*i+3))
	}

	// Last-Event-ID goes before cursor.
	c = s.sse(t, "?cursor=e7:1", "Last-Event-ID: e7:1400")
	c.begin()
	c.want("subscribed", "e7:1400")
	c.want("status_update", "e7:1401")

	s.hub.expire(10)
	for name, q := range map[string][]string{"expired": {"?cursor=e7:2"}, "epoch": {"?cursor=e6:2"}, "garbage": {"", "Last-Event-ID: garbage"}} {
		c := s.sse(t, q[0], q[1:]...)
		c.begin()
		c.want("subscribed", "")
		if b := c.want("resync", ""); name != "garbage" && !strings.Contains(b.data, name) {
			t.Errorf("%s: %s", name, b.data)
		}
		c.want("snapshot", "")
		c.want("snapshot", "")
		c.want("snapshot_end", "e7:1401")
	}
}

func TestSSEIdle(t *testing.T) {
	s := serve(t, func(o *Options) { o.CommentEvery, o.BookmarkEvery = 20*time.Millisecond, 35*time.Millisecond })
	s.hub.add("a-000", "b-000")
	c := s.sse(t, "?server_ids=a-000")
	c.begin()
	c.want("subscribed", "e7:0")
	s.hub.change("b-000", statussync.StateError, statussync.HealthUnhealthy)
	comments, marks := 0, 0
	for comments < 3 || marks < 1 {
		b, err := c.next()
		switch {
		case err != nil:
			t.Fatal(err)
		case b == block{comment: ":"}:
			comments++
		case b == block{id: "e7:1"}:
			marks++
		default:
			t.Fatalf("%+v", b)
		}
	}
	if marks != 1 {
		t.Errorf("the same bookmark %d times", marks)
	}
}

func TestSSEEnds(t *testing.T) {
	t.Run("drain", func(t *testing.T) {
		s := serve(t, nil)
		c := s.sse(t, "")
		c.begin()
		c.want("subscribed", "e7:0")
		s.Drain()
		if b, err := c.next(); err != io.EOF {
			t.Errorf("%+v %v", b, err)
		}
		if st := s.Stats(); st.SSEStreams != 0 {
			s.waitStats(t, "gone", func(st Stats) bool { return st.SSEStreams == 0 })
		}
	})
	t.Run("the hub stops", func(t *testing.T) {
		s := serve(t, nil)
		c := s.sse(t, "")
		c.begin()
		c.want("subscribed", "e7:0")
		s.hub.set(func() { s.hub.stopped = true })
		if b, err := c.next(); err != io.EOF {
			t.Errorf("%+v %v", b, err)
		}
	})
	t.Run("token expires", func(t *testing.T) {
		s := serve(t, func(o *Options) {
			o.CommentEvery = 20 * time.Millisecond
			o.Auth = brief{tokens()}
		})
		c := s.sse(t, "")
		for {
			if _, err := c.next(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("client gone", func(t *testing.T) {
		s := serve(t, nil)
		c := s.sse(t, "")
		c.begin()
		c.resp.Body.Close()
		s.waitStats(t, "gone", func(st Stats) bool { return st.SSEStreams == 0 })
	})
	t.Run("slow", func(t *testing.T) {
		s := serve(t, func(o *Options) { o.WriteTimeout = 200 * time.Millisecond })
		s.hub.add("a-000")
		nc, err := net.Dial("tcp", strings.TrimPrefix(s.srv.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.(*net.TCPConn).SetReadBuffer(4 << 10)
		fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", wire.PathStream, viewerToken)
		s.waitStats(t, "there", func(st Stats) bool { return st.SSEStreams == 1 })
		for range 20_000 {
			s.hub.change("a-000", statussync.StateError, statussync.HealthUnhealthy)
		}
		s.waitStats(t, "cut", func(st Stats) bool { return st.SSECut == 1 && st.SSEStreams == 0 })
	})
}

// TestManyStreams: clients come, subscribe anew and go while entries pour in and the service is drained; afterwards
// every goroutine is gone and every connection counted.
func TestManyStreams(t *testing.T) {
	s := serve(t, func(o *Options) {
		o.PingEvery, o.BookmarkEvery, o.CommandsPerSecond = 20*time.Millisecond, 5*time.Millisecond, 10_000
	})
	s.hub.add(ids(6)...)
	ctx, cancel := context.WithCancel(context.Background())
	var writers, clients sync.WaitGroup
	writers.Add(1)
	go func() {
		defer writers.Done()
		for i := 0; ctx.Err() == nil; i++ {
			s.hub.change(ids(6)[i%6], statussync.States[i%4], statussync.Healths[i%3])
			if i%100 == 0 {
				pause(ctx, time.Millisecond)
			}
		}
	}()
	const n = 30
	for i := range n {
		clients.Add(1)
		go func() {
			defer clients.Done()
			h := http.Header{"Authorization": {"Bearer " + viewerToken}}
			c, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(s.srv.URL, "http")+wire.PathWebSocket, h)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			last := uint64(0)
			for j := range 400 {
				if j%50 == 0 {
					if err := c.WriteMessage(websocket.TextMessage, []byte(subscribe+`,"snapshot":true}`)); err != nil {
						return
					}
				}
				c.SetReadDeadline(time.Now().Add(patience))
				_, b, err := c.ReadMessage()
				if err != nil {
					if i%3 != 0 {
						t.Errorf("client %d: %v", i, err)
					}
					return
				}
				f, err := wire.DecodeServerFrame(b)
				if err != nil {
					t.Errorf("%v: %s", err, b)
					return
				}
				switch f.Type {
				case wire.FrameStatusUpdate:
					if last != 0 && f.Cursor.Seq != last+1 {
						t.Errorf("client %d: %d after %d", i, f.Cursor.Seq, last)
					}
					last = f.Cursor.Seq
				case wire.FrameSubscribed:
					last = 0
				case wire.FrameBookmark:
					if last != 0 && f.Cursor.Seq < last {
						t.Errorf("client %d: a bookmark at %d after %d", i, f.Cursor.Seq, last)
					}
				}
				if i%3 == 0 && j == 100 {
					c.NetConn().Close()
				}
			}
		}()
	}
	clients.Wait()
	cancel()
	writers.Wait()
	s.Close()
	st := s.Stats()
	var sum uint64
	for _, v := range st.WSClosed {
		sum += v
	}
	if sum != n || st.WebSockets != 0 || len(s.limits.open) != 0 {
		t.Errorf("%+v, %v still counted", st, s.limits.open)
	}
	s.Close() // twice is fine
}

type fakeStream struct{ why closeReason }

func (f *fakeStream) due(time.Time) bool  { return false }
func (f *fakeStream) wake()               {}
func (f *fakeStream) end(why closeReason) { f.why = why }
func (f *fakeStream) cut()                {}

// TestDrainMeetsNewcomers: a stream that was let in before Drain, and is known only after it, is ended all the same, and
// waited for; later ones are not let in.
func TestDrainMeetsNewcomers(t *testing.T) {
	var s streams
	s.init()
	if !s.enter() {
		t.Fatal("not let in")
	}
	s.closeAll(closeReason{code: closeDraining})
	select {
	case <-s.ended():
		t.Fatal("ended while one is inside")
	default:
	}
	f := &fakeStream{}
	if s.add(f); f.why.code != closeDraining {
		t.Error("not ended")
	}
	if s.enter() {
		t.Error("let in after Drain")
	}
	s.remove(f, 0, false)
	s.leave()
	<-s.ended()
}

// brief knows tokens that end soon after each use.
type brief struct{ *Tokens }

func (b brief) Token(token string) (Credential, bool) {
	c, ok := b.Tokens.Token(token)
	c.ExpiresAt = time.Now().Add(100 * time.Millisecond)
	return c, ok
}

func TestTokensExpire(t *testing.T) {
	now := time.Now()
	k := NewTokens([]TokenSpec{{Name: "x", Role: RoleViewer, Token: "t", ExpiresAt: now.Add(time.Second)}}, nil)
	k.now = func() time.Time { return now }
	if c, ok := k.Token("t"); !ok || c.Name != "x" || !c.ExpiresAt.Equal(now.Add(time.Second)) {
		t.Errorf("%+v %v", c, ok)
	}
	k.now = func() time.Time { return now.Add(time.Second) }
	if _, ok := k.Token("t"); ok {
		t.Error("taken after its end")
	}
}
