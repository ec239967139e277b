package httpapi

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// pipes is a listener within a synctest bubble.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestTimes: what is promised within a time is there by then, and at most about a tick before, whenever a stream begins.
func TestTimes(t *testing.T) {
	for _, begin := range []time.Duration{0, time.Millisecond, 137 * time.Millisecond, 499 * time.Millisecond, 990 * time.Millisecond} {
		t.Run(begin.String(), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { times(t, begin) }) })
	}
}

func times(t *testing.T, begin time.Duration) {
	hub := newMemHub()
	hub.add("a-000")
	a, err := New(Options{Hub: hub, Auth: tokens()})
	if err != nil {
		t.Fatal(err)
	}
	l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	srv := &http.Server{Handler: a}
	var running sync.WaitGroup
	running.Go(func() { srv.Serve(l) })
	defer running.Wait()
	defer srv.Close()
	defer a.Close()
	<-time.After(begin) // fake time: how the beginning lies between the ticks

	within := func(what string, since time.Time, d time.Duration) time.Time {
		t.Helper()
		if took := time.Since(since); took > d || took < d-a.lead {
			t.Errorf("%s after %v, want %v or up to %v less", what, took, d, a.lead)
		}
		return time.Now()
	}
	dial := func(token string) *websocket.Conn {
		t.Helper()
		h := http.Header{}
		if token != "" {
			h.Set("Authorization", "Bearer "+token)
		}
		c, _, err := (&websocket.Dialer{NetDialContext: l.dial}).Dial("ws://localhost"+wire.PathWebSocket, h)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}

	c, start := dial(""), time.Now()
	if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, wire.CloseUnauthorized) {
		t.Error(err)
	}
	within("no credential", start, 10*time.Second)
	c.Close()

	// The first three pings are answered, the fourth is not. With bookmarks: a change at each, that there is one to make.
	c, start = dial(viewerToken), time.Now()
	pings, pinged := 0, start
	c.SetPingHandler(func(data string) error {
		pinged = within("ping", pinged, 25*time.Second)
		if pings++; pings > 3 {
			return nil
		}
		return c.WriteControl(websocket.PongMessage, []byte(data), time.Time{})
	})
	if err := c.WriteMessage(websocket.TextMessage, []byte(subscribe+`,"filters":[{"server_ids":["x"]}]}`)); err != nil {
		t.Fatal(err)
	}
	marks, marked := 0, start
	for {
		_, b, err := c.ReadMessage()
		if err != nil {
			if !websocket.IsCloseError(err, wire.CloseTooSlow) {
				t.Error(err)
			}
			break
		}
		if f, err := wire.DecodeServerFrame(b); err != nil {
			t.Error(err)
		} else if f.Type == wire.FrameBookmark {
			marks++
			marked = within("bookmark", marked, 25*time.Second)
			hub.change("a-000", statussync.StateRunning, statussync.HealthHealthy)
		}
	}
	within("missing pong", pinged, 10*time.Second)
	if pings != 4 || marks < 3 {
		t.Errorf("%d pings, %d bookmarks", pings, marks)
	}
	c.Close()

	tr := &http.Transport{DialContext: l.dial}
	defer tr.CloseIdleConnections()
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://localhost"+wire.PathStream, nil)
	req.Header.Set("Authorization", "Bearer "+viewerToken)
	start = time.Now()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buf, comments, wrote := make([]byte, 4096), 0, start
	for comments < 5 {
		n, err := resp.Body.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(buf[:n]), ":\n\n") {
			comments++
			within("comment", wrote, 15*time.Second)
		}
		wrote = time.Now()
	}
}

// TestHead: HEAD of the stream is answered as GET would be, and is over then.
func TestHead(t *testing.T) {
	s := serve(t, nil)
	s.hub.set(func() {
		s.hub.fail["Subscribe"] = statussync.NewError(statussync.CodeUnavailable, "nothing may be subscribed", nil)
	})
	x := s.do(t, viewerToken, "HEAD "+wire.PathStream+"?snapshot=true", "")
	if x.status != 200 || len(x.body) != 0 || x.header.Get("Content-Type") != "text/event-stream" || x.header.Get("Cache-Control") != "no-store" || x.header.Get("X-Accel-Buffering") != "no" {
		t.Errorf("%d %v", x.status, x.header)
	}
	s.waitStats(t, "no stream", func(st Stats) bool { return st.SSEStreams == 0 })
	for call, want := range map[string]int{"?states=bad": 400, "?nonsense=1": 400, "?mode=latest&type=recovery": 400} {
		if x := s.do(t, viewerToken, "HEAD "+wire.PathStream+call, ""); x.status != want {
			t.Errorf("%s: %d", call, x.status)
		}
	}
	if x := s.do(t, "", "HEAD "+wire.PathStream, ""); x.status != 401 {
		t.Errorf("without a token: %d", x.status)
	}
	s.Drain()
	if x := s.do(t, viewerToken, "HEAD "+wire.PathStream, ""); x.status != 503 {
		t.Errorf("while draining: %d", x.status)
	}
}
