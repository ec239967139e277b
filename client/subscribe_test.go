package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"pgregory.net/rapid"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// script is what the service does on one connection: it has read hello, and the connection is cut when it returns.
type script func(k *peer)

// peer is the service's end of a connection.
type peer struct {
	t     testing.TB
	ws    *websocket.Conn
	hello wire.ClientFrame
}

func (k *peer) send(frames ...string) {
	for _, f := range frames {
		if err := k.ws.Write(context.Background(), websocket.MessageText, []byte(f)); err != nil {
			return // the client left: what it saw is checked there
		}
	}
}

// wait blocks until the client has gone.
func (k *peer) wait() { <-k.ws.CloseRead(context.Background()).Done() }

// scripted answers the n-th connection with the n-th script; each must be used.
func scripted(t testing.TB, scripts ...script) (h http.HandlerFunc, done func()) {
	var (
		mu sync.Mutex
		n  int
	)
	return func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			i := n
			n++
			mu.Unlock()
			if r.URL.Path != "/api/v1/ws" || r.Header.Get("Authorization") != "Bearer secret-token" {
				t.Errorf("handshake at %s with %v", r.URL, r.Header)
			}
			if i >= len(scripts) {
				t.Errorf("connection %d was not expected", i+1)
				answer(w, 403, "application/problem+json", `{"code":"forbidden","detail":"no more script"}`)
				return
			}
			ws, err := websocket.Accept(w, r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer ws.CloseNow()
			_, b, err := ws.Read(context.Background())
			if err != nil {
				return
			}
			f, err := wire.DecodeClientFrame(b)
			if err != nil || f.Type != wire.ClientSubscribe {
				t.Errorf("the client sent %s: %v", b, err)
			}
			scripts[i](&peer{t: t, ws: ws, hello: *f})
		}, func() {
			if n != len(scripts) {
				t.Errorf("%d connections, want %d", n, len(scripts))
			}
		}
}

const subscribed0 = `{"type":"subscribed","cursor":"e1:0","recovered":false,"durable":true}`

func recovered(at string) string {
	return `{"type":"subscribed","cursor":"` + at + `","recovered":true,"durable":true}`
}

// update is the frame of the version-th update of a server.
func update(epoch string, seq uint64, id string, version uint64) string {
	return updateAt(statussync.Cursor{Epoch: statussync.Epoch(epoch), Seq: seq}, seq, id, version)
}

// at1 is a position of epoch e1.
func at1(seq uint64) statussync.Cursor { return statussync.Cursor{Epoch: "e1", Seq: seq} }

// updateAt is an update whose frame has a cursor of its own, as in mode latest.
func updateAt(at statussync.Cursor, seq uint64, id string, version uint64) string {
	e := statussync.Entry{
		Seq: seq, Epoch: at.Epoch, Kind: statussync.KindStatus, ServerID: id, Version: version, Source: statussync.SourceSystem,
		Timestamp: time.UnixMilli(1700000000000), Previous: &statussync.Status{State: "running", Health: "healthy", Reason: "ok"},
		Current: &statussync.Status{State: "error", Health: "unhealthy", Reason: "probe_failing"}, Details: "<d>", Changes: []string{"state", "health", "reason"},
	}
	return string(wire.AppendEntry(nil, e.Kind, at, e.AppendJSON(nil)))
}

func page(more bool, items ...string) string {
	var list []wire.Server
	for i, id := range items {
		list = append(list, wire.Server{ID: id, Status: wire.Status{State: "running", Version: uint64(i + 1)}})
	}
	b, err := json.Marshal(map[string]any{"type": "snapshot", "items": list, "more": more})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// story is an event in a few characters.
func story(ev Event) string {
	switch ev.Type {
	case statussync.EventEntry:
		return ev.Cursor.String() + "=" + ev.Entry.ServerID + fmt.Sprint(ev.Entry.Version)
	case statussync.EventSnapshot:
		s := "["
		for _, i := range ev.Items {
			s += i.ID
		}
		if ev.More {
			s += "…"
		}
		return s + "]"
	case statussync.EventResync:
		return "resync:" + string(ev.Reason)
	}
	return string(ev.Type) + ":" + ev.Cursor.String()
}

// follow reads a subscription until it ends or has told n events; it returns them and the error.
func follow(ctx context.Context, c *Client, o SubscribeOptions, n int) (told []string, err error) {
	if o.BackoffMax == 0 {
		o.BackoffMin, o.BackoffMax = time.Microsecond, time.Millisecond
	}
	for ev, err := range c.Subscribe(ctx, o) {
		if err != nil {
			return told, err
		}
		told = append(told, story(ev))
		if !json.Valid(ev.Frame) {
			return told, fmt.Errorf("frame %q", ev.Frame)
		}
		if len(told) == n {
			return told, nil
		}
	}
	return told, errors.New("the sequence ended without an error")
}

func expectHello(k *peer, want string) {
	k.t.Helper()
	got := fmt.Sprintf("cursor=%s snapshot=%v leave=%v mode=%s filters=%d", k.hello.Cursor, k.hello.Snapshot, k.hello.Leave, k.hello.Mode, len(k.hello.Filters))
	if got != want {
		k.t.Errorf("subscribed with %s\nwant            %s", got, want)
	}
}

func TestSubscribe(t *testing.T) {
	const every = "cursor= snapshot=false leave=false mode=every filters=0"
	for _, tc := range []struct {
		name    string
		o       SubscribeOptions
		scripts []script
		want    string
	}{
		{"in order, with bookmarks; unknown frames are passed over", SubscribeOptions{}, []script{func(k *peer) {
			expectHello(k, every)
			k.send(`{"type":"auth_ok"}`, subscribed0, update("e1", 1, "a", 4), `{"type":"weather","temperature":7}`, update("e1", 5, "b", 1),
				`{"type":"bookmark","cursor":"e1:9","sent":2}`, update("e1", 12, "a", 5))
			k.wait()
		}}, "subscribed:e1:0 e1:1=a4 e1:5=b1 bookmark:e1:9 e1:12=a5"},

		{"resumes after the last entry", SubscribeOptions{MustConnect: true}, []script{
			func(k *peer) { k.send(subscribed0, update("e1", 1, "a", 1), update("e1", 2, "a", 2)) },
			func(k *peer) {
				expectHello(k, "cursor=e1:2 snapshot=false leave=false mode=every filters=0")
				k.send(recovered("e1:4"), update("e1", 3, "a", 3), update("e1", 4, "a", 4))
				k.wait()
			},
		}, "subscribed:e1:0 e1:1=a1 e1:2=a2 subscribed:e1:4 e1:3=a3 e1:4=a4"},

		{"resumes after a bookmark", SubscribeOptions{}, []script{
			func(k *peer) { k.send(subscribed0, `{"type":"bookmark","cursor":"e1:30","sent":0}`) },
			func(k *peer) {
				expectHello(k, "cursor=e1:30 snapshot=false leave=false mode=every filters=0")
				k.send(recovered("e1:30"))
				k.wait()
			},
		}, "subscribed:e1:0 bookmark:e1:30 subscribed:e1:30"},

		{"without an entry it resumes from where it began", SubscribeOptions{}, []script{
			func(k *peer) { k.send(`{"type":"subscribed","cursor":"e1:57"}`) },
			func(k *peer) {
				expectHello(k, "cursor=e1:57 snapshot=false leave=false mode=every filters=0")
				k.send(recovered("e1:60"), update("e1", 58, "a", 1))
				k.wait()
			},
		}, "subscribed:e1:57 subscribed:e1:60 e1:58=a1"},

		{"a snapshot that breaks off is begun anew; afterwards it is not asked for again, but leaving is", SubscribeOptions{Snapshot: true}, []script{
			func(k *peer) {
				expectHello(k, "cursor= snapshot=true leave=true mode=every filters=0")
				k.send(subscribed0, page(true, "a", "b"))
			},
			func(k *peer) {
				expectHello(k, "cursor= snapshot=true leave=true mode=every filters=0")
				k.send(subscribed0, page(true, "a", "b"), page(false, "c"), `{"type":"snapshot_end","cursor":"e1:8"}`, update("e1", 9, "b", 3))
			},
			func(k *peer) {
				expectHello(k, "cursor=e1:9 snapshot=false leave=true mode=every filters=0")
				k.send(recovered("e1:9"))
				k.wait()
			},
		}, "subscribed:e1:0 [ab…] subscribed:e1:0 [ab…] [c] snapshot_end:e1:8 e1:9=b3 subscribed:e1:9"},

		{"a resync is passed on and survives a break in it", SubscribeOptions{Cursor: statussync.Cursor{Epoch: "e1", Seq: 4}}, []script{
			func(k *peer) {
				expectHello(k, "cursor=e1:4 snapshot=false leave=false mode=every filters=0")
				k.send(`{"type":"subscribed","cursor":"e2:7","recovered":false}`, `{"type":"resync","reason":"epoch"}`, page(true, "a"))
			},
			func(k *peer) {
				expectHello(k, "cursor= snapshot=true leave=false mode=every filters=0")
				k.send(`{"type":"subscribed","cursor":"e2:7"}`, page(false, "a"), `{"type":"snapshot_end","cursor":"e2:7"}`, update("e2", 8, "a", 2))
				k.wait()
			},
		}, "subscribed:e2:7 resync:epoch [a…] subscribed:e2:7 [a] snapshot_end:e2:7 e2:8=a2"},

		{"a resync under way changes the epoch", SubscribeOptions{}, []script{func(k *peer) {
			k.send(subscribed0, update("e1", 1, "a", 1), `{"type":"resync","reason":"epoch"}`, page(false, "a"), `{"type":"snapshot_end","cursor":"e2:1"}`, update("e2", 2, "a", 2))
			k.wait()
		}}, "subscribed:e1:0 e1:1=a1 resync:epoch [a] snapshot_end:e2:1 e2:2=a2"},

		{"a version that is missing is a gap", SubscribeOptions{}, []script{
			func(k *peer) { k.send(subscribed0, update("e1", 1, "a", 1), update("e1", 2, "a", 3)); k.wait() },
			func(k *peer) {
				expectHello(k, "cursor= snapshot=true leave=false mode=every filters=0")
				k.send(subscribed0, page(false, "x", "y", "a"), `{"type":"snapshot_end","cursor":"e1:2"}`, update("e1", 3, "a", 4))
				k.wait()
			},
		}, "subscribed:e1:0 e1:1=a1 resync:gap subscribed:e1:0 [xya] snapshot_end:e1:2 e1:3=a4"},

		{"a version that is missing after a resume is a gap", SubscribeOptions{}, []script{
			func(k *peer) { k.send(subscribed0, update("e1", 1, "a", 1)) },
			func(k *peer) { k.send(recovered("e1:3"), update("e1", 3, "a", 3)); k.wait() },
			func(k *peer) { expectHello(k, "cursor= snapshot=true leave=false mode=every filters=0") },
			func(k *peer) { k.send(subscribed0); k.wait() },
		}, "subscribed:e1:0 e1:1=a1 subscribed:e1:3 resync:gap subscribed:e1:0"},

		{"a repeat is a gap", SubscribeOptions{}, []script{
			func(k *peer) { k.send(subscribed0, update("e1", 1, "a", 1), update("e1", 1, "a", 1)); k.wait() },
			func(k *peer) { k.send(subscribed0); k.wait() },
		}, "subscribed:e1:0 e1:1=a1 resync:gap subscribed:e1:0"},

		{"a repeat is a gap behind a filter, too", SubscribeOptions{Filter: statussync.Filter{Clauses: []statussync.Clause{{Healths: []statussync.Health{"unhealthy"}}}}}, []script{
			func(k *peer) { k.send(subscribed0, update("e1", 1, "a", 1), update("e1", 1, "a", 1)); k.wait() },
			func(k *peer) { k.send(subscribed0); k.wait() },
		}, "subscribed:e1:0 e1:1=a1 resync:gap subscribed:e1:0"},

		{"another epoch without a resync is a gap", SubscribeOptions{}, []script{
			func(k *peer) { k.send(subscribed0, update("e2", 1, "a", 1)); k.wait() },
			func(k *peer) { k.send(subscribed0); k.wait() },
		}, "subscribed:e1:0 resync:gap subscribed:e1:0"},

		{"a wrong number of entries is a gap", SubscribeOptions{}, []script{
			func(k *peer) {
				k.send(subscribed0, update("e1", 1, "a", 1), `{"type":"bookmark","cursor":"e1:9","sent":2}`)
				k.wait()
			},
			func(k *peer) { k.send(subscribed0); k.wait() },
		}, "subscribed:e1:0 e1:1=a1 resync:gap subscribed:e1:0"},

		{"a filter leaves versions out", SubscribeOptions{Filter: statussync.Filter{Clauses: []statussync.Clause{{Healths: []statussync.Health{"unhealthy"}}}}}, []script{func(k *peer) {
			expectHello(k, "cursor= snapshot=false leave=false mode=every filters=1")
			k.send(subscribed0, update("e1", 1, "a", 1), update("e1", 4, "a", 4), `{"type":"bookmark","cursor":"e1:9","sent":2}`)
			k.wait()
		}}, "subscribed:e1:0 e1:1=a1 e1:4=a4 bookmark:e1:9"},

		{"latest: resumes from the frames' cursors, drops what comes again", SubscribeOptions{Mode: statussync.ModeLatest}, []script{
			func(k *peer) {
				expectHello(k, "cursor= snapshot=false leave=true mode=latest filters=0")
				k.send(subscribed0, updateAt(at1(0), 9, "a", 5), updateAt(at1(7), 4, "b", 2), `{"type":"bookmark","cursor":"e1:10","sent":2}`, updateAt(at1(10), 12, "b", 7))
			},
			func(k *peer) {
				expectHello(k, "cursor=e1:10 snapshot=false leave=true mode=latest filters=0")
				k.send(recovered("e1:10"), updateAt(at1(10), 12, "b", 7), updateAt(at1(13), 13, "a", 8))
			},
			func(k *peer) {
				expectHello(k, "cursor=e1:13 snapshot=false leave=true mode=latest filters=0")
				k.send(recovered("e1:13"), `{"type":"bookmark","cursor":"e1:14","sent":0}`)
				k.wait()
			},
		}, "subscribed:e1:0 e1:0=a5 e1:7=b2 bookmark:e1:10 e1:10=b7 subscribed:e1:10 e1:13=a8 subscribed:e1:13 bookmark:e1:14"},

		{"frames that are no frames cost a reconnect", SubscribeOptions{}, []script{
			func(k *peer) { k.send(subscribed0, `{"type":`); k.wait() },
			func(k *peer) { k.send(`[]`); k.wait() },
			func(k *peer) { k.send(`{"type":"bookmark","cursor":"seven"}`); k.wait() },
			func(k *peer) { k.send(update("e1", 1, "a", 1)); k.wait() }, // before "subscribed"
			func(k *peer) {
				_ = k.ws.Write(context.Background(), websocket.MessageBinary, []byte(subscribed0))
				k.wait()
			},
			func(k *peer) {
				k.send(`{"type":"error","code":"unavailable","detail":"starting","retryable":true}`)
				k.wait()
			},
			func(k *peer) { k.send(recovered("e1:0"), update("e1", 1, "a", 1)); k.wait() },
		}, "subscribed:e1:0 subscribed:e1:0 e1:1=a1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, done := scripted(t, tc.scripts...)
			c := newTest(t, h)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			want := strings.Fields(tc.want)
			told, err := follow(ctx, c, tc.o, len(want))
			if !slices.Equal(told, want) || err != nil {
				t.Errorf("told %v, %v\nwant %v", told, err, want)
			}
			done()
		})
	}
}

func TestCloseCodes(t *testing.T) {
	for _, tc := range []struct {
		code   int
		before string // a frame sent before
		want   statussync.Code
		detail string
	}{
		{4500, "", statussync.CodeUnauthorized, "by script"},
		{4501, "", statussync.CodeInvalid, "by script"},
		{4503, "", statussync.CodeForbidden, "by script"},
		{4504, "", statussync.CodeRateLimited, "by script"},
		{4599, "", statussync.CodeForbidden, "by script"},
		{4501, `{"type":"error","code":"invalid","detail":"filters: no","retryable":false}`, statussync.CodeInvalid, "filters: no"},
		{1000, "", "", ""}, {1001, "", "", ""}, {1011, "", "", ""}, {1012, "", "", ""},
		{4001, "", "", ""}, {4008, "", "", ""}, {4011, "", "", ""}, {4029, "", "", ""}, {4499, "", "", ""},
	} {
		t.Run(fmt.Sprint(tc.code, tc.before), func(t *testing.T) {
			scripts := []script{func(k *peer) {
				k.send(subscribed0)
				if tc.before != "" {
					k.send(tc.before)
				}
				k.ws.Close(websocket.StatusCode(tc.code), "by script")
			}}
			n := 1
			if tc.want == "" {
				n = 2
				scripts = append(scripts, func(k *peer) { k.send(subscribed0); k.wait() })
			} else {
				n = 100
			}
			h, done := scripted(t, scripts...)
			c := newTest(t, h)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			var lost error
			told, err := follow(ctx, c, SubscribeOptions{OnState: func(s ConnState) {
				if !s.Connected {
					lost = s.Err
				}
			}}, n)
			if tc.want == "" {
				if err != nil || len(told) != 2 || lost == nil || !strings.Contains(lost.Error(), fmt.Sprint(tc.code)) {
					t.Errorf("told %v, %v; lost by %v", told, err, lost)
				}
			} else {
				var e *statussync.Error
				if !errors.As(err, &e) || e.Code != tc.want || e.Detail != tc.detail || lost != nil {
					t.Errorf("ended with %v, lost by %v; want %s %q", err, lost, tc.want, tc.detail)
				}
				var p *Problem
				if !errors.As(err, &p) {
					t.Errorf("no problem in %v", err)
				}
			}
			done()
		})
	}
}

func TestHandshakeRefused(t *testing.T) {
	for _, tc := range []struct {
		status int
		body   string
		must   bool
		want   statussync.Code // "": retried
		lost   bool
	}{
		{401, `{"code":"unauthorized","detail":"who are you"}`, false, statussync.CodeUnauthorized, false},
		{403, `{"code":"forbidden","detail":"no"}`, false, statussync.CodeForbidden, false},
		{400, `{"code":"invalid","detail":"Origin"}`, false, statussync.CodeInvalid, false},
		{401, `{"code":"unauthorized","detail":"` + strings.Repeat("long ", 400) + `"}`, false, statussync.CodeUnauthorized, false},
		{503, `{"code":"unavailable","detail":"draining"}`, false, "", false},
		{429, `{"code":"rate_limited","detail":"slowly"}`, false, "", false},
		{502, `<html>`, false, "", false},
		{404, `not here`, false, "", false},
		{404, `not here`, true, "", true},
		{503, `{"code":"unavailable","detail":"draining"}`, true, "", true},
	} {
		t.Run(fmt.Sprint(tc.status, tc.must), func(t *testing.T) {
			n := 0
			ok, _ := scripted(t, func(k *peer) { k.send(subscribed0); k.wait() })
			c := newTest(t, func(w http.ResponseWriter, r *http.Request) {
				if n++; n > 1 && tc.want == "" {
					ok(w, r)
					return
				}
				ctype := "text/html"
				if tc.body[0] == '{' {
					ctype = "application/problem+json"
				}
				answer(w, tc.status, ctype, tc.body)
			})
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			told, err := follow(ctx, c, SubscribeOptions{MustConnect: tc.must}, 1)
			switch {
			case tc.lost:
				if err == nil || n != 1 {
					t.Errorf("told %v after %d attempts, %v", told, n, err)
				}
			case tc.want == "":
				if err != nil || len(told) != 1 || n != 2 {
					t.Errorf("told %v after %d attempts, %v", told, n, err)
				}
			default:
				var p *Problem
				if statussync.CodeOf(err) != tc.want || n != 1 || !errors.As(err, &p) || p.Status != tc.status {
					t.Errorf("got %v after %d attempts, want %s", err, n, tc.want)
				}
			}
		})
	}
}

func TestSubscribeChecksWhatItIsAsked(t *testing.T) {
	c, err := New(Options{BaseURL: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []SubscribeOptions{
		{Mode: "sometimes"},
		{Filter: statussync.Filter{Clauses: []statussync.Clause{{States: []statussync.State{"up"}}}}},
		{Mode: statussync.ModeLatest, Filter: statussync.Filter{Clauses: []statussync.Clause{{Type: statussync.FilterRecovery}}}},
	} {
		if _, err := follow(context.Background(), c, o, 1); statussync.CodeOf(err) != statussync.CodeInvalid {
			t.Errorf("%+v: %v", o, err)
		}
	}
	_, err = follow(context.Background(), c, SubscribeOptions{MustConnect: true}, 1)
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("nobody listens: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	attempts := 0
	_, err = follow(ctx, c, SubscribeOptions{OnState: func(s ConnState) {
		if attempts++; attempts == 3 {
			cancel()
		}
		if s.Attempt != attempts || s.Connected {
			t.Errorf("attempt %d: %+v", attempts, s)
		}
	}}, 1)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestFrameTooLargeEnds(t *testing.T) {
	h, done := scripted(t, func(k *peer) {
		k.send(subscribed0, `{"type":"snapshot","junk":"`+strings.Repeat("x", maxFrame)+`"}`)
		k.wait()
	})
	c := newTest(t, h)
	_, err := follow(context.Background(), c, SubscribeOptions{}, 5)
	if statussync.CodeOf(err) != statussync.CodeTooLarge {
		t.Errorf("got %v", err)
	}
	done()
}

// virtual runs f in a bubble of virtual time with a service that follows the scripts over in-memory connections.
func virtual(t *testing.T, h http.HandlerFunc, f func(c *Client)) {
	synctest.Test(t, func(t *testing.T) {
		ln := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		srv := &http.Server{Handler: h}
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.Serve(ln) }()
		tr := &http.Transport{DialContext: ln.dial}
		c, err := New(Options{BaseURL: "http://service", Token: "secret-token", HTTPClient: &http.Client{Transport: tr}})
		if err != nil {
			t.Fatal(err)
		}
		f(c)
		tr.CloseIdleConnections()
		srv.Close()
		<-served
	})
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }
func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case l.conns <- b:
		return a, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestSilenceCostsAReconnect(t *testing.T) {
	h, done := scripted(t,
		func(k *peer) {
			k.send(subscribed0)
			gone := k.ws.CloseRead(context.Background())
			for range 8 { // 200 s of nothing but pings: alive
				time.Sleep(25 * time.Second)
				if err := k.ws.Ping(gone); err != nil {
					k.t.Errorf("the client left although it was pinged: %v", err)
				}
			}
			<-gone.Done() // and then not even those
		},
		func(k *peer) { k.send(recovered("e1:0")); k.wait() })
	virtual(t, h, func(c *Client) {
		start := time.Now()
		var lost time.Duration
		var why error
		told, err := follow(context.Background(), c, SubscribeOptions{BackoffMax: time.Second, OnState: func(s ConnState) {
			if !s.Connected {
				lost, why = time.Since(start), s.Err
			}
		}}, 2)
		if err != nil || len(told) != 2 {
			t.Errorf("told %v, %v", told, err)
		}
		if lost != 260*time.Second || !errors.Is(why, errIdle) {
			t.Errorf("lost after %s by %v, want 260 s (60 s after the last ping)", lost, why)
		}
	})
	done()
}

func TestASlowCallerIsNotTakenForASilentService(t *testing.T) {
	h, done := scripted(t, func(k *peer) {
		k.send(subscribed0, update("e1", 1, "a", 1))
		k.wait()
	})
	virtual(t, h, func(c *Client) {
		n := 0
		for _, err := range c.Subscribe(context.Background(), SubscribeOptions{OnState: func(s ConnState) {
			if !s.Connected {
				t.Errorf("lost: %v", s.Err)
			}
		}}) {
			if err != nil {
				t.Error(err)
			}
			time.Sleep(5 * time.Minute)
			if n++; n == 2 {
				break
			}
		}
	})
	done()
}

func TestBackoff(t *testing.T) {
	const failures = 400
	n := 0
	h := func(w http.ResponseWriter, r *http.Request) {
		n++
		if n == failures/2 {
			w.Header().Set("Retry-After", "90")
			answer(w, 503, "application/problem+json", `{"code":"unavailable","detail":"later"}`)
			return
		}
		answer(w, 502, "text/html", "bad gateway")
	}
	virtual(t, h, func(c *Client) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var waits []time.Duration
		for _, err := range c.Subscribe(ctx, SubscribeOptions{OnState: func(s ConnState) {
			waits = append(waits, s.RetryIn)
			if len(waits) == failures {
				cancel()
			}
		}}) {
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		var late time.Duration
		for i, w := range waits {
			limit := DefaultBackoffMax
			if i < 7 {
				limit = DefaultBackoffMin << i
			}
			if i == failures/2-1 {
				if w < 90*time.Second {
					t.Errorf("waited %s though the service asked for 90 s", w)
				}
				continue
			}
			if w < 0 || w > limit {
				t.Errorf("wait %d is %s, limit %s", i, w, limit)
			}
			if i >= 7 {
				late += w
			}
		}
		// Full jitter: the mean is half the cap, 15 s; of 392 uniform draws it is within 2 s of that but once in 10^5.
		if mean := late / (failures - 8); mean < 13*time.Second || mean > 17*time.Second {
			t.Errorf("mean wait %s: not spread evenly below the cap", mean)
		}
	})
}

func TestBackoffStartsAnewAfterALongConnection(t *testing.T) {
	h, done := scripted(t,
		func(*peer) {}, func(*peer) {}, func(*peer) {},
		func(k *peer) { k.send(subscribed0); time.Sleep(40 * time.Second) },
		func(k *peer) { k.send(recovered("e1:0")); k.wait() })
	virtual(t, h, func(c *Client) {
		var attempts []int
		if _, err := follow(context.Background(), c, SubscribeOptions{BackoffMax: DefaultBackoffMax, OnState: func(s ConnState) { attempts = append(attempts, s.Attempt) }}, 2); err != nil {
			t.Error(err)
		}
		if !slices.Equal(attempts, []int{1, 2, 3, 0, 1, 0}) {
			t.Errorf("attempts %v", attempts)
		}
	})
	done()
}

// TestExactlyOnce: whatever the journal, and wherever connections break, each entry after the start is told once, in
// order, and nothing else is.
func TestExactlyOnce(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(rt, "entries")
		servers := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), n, n).Draw(rt, "servers")
		cuts := rapid.SliceOfN(rapid.IntRange(0, 8), 0, 8).Draw(rt, "frames before each cut")
		snapshot := rapid.Bool().Draw(rt, "snapshot")
		versions := map[string]uint64{}
		var frames []string
		var want []string
		for i, id := range servers {
			versions[id]++
			frames = append(frames, update("e1", uint64(i+1), id, versions[id]))
			want = append(want, fmt.Sprintf("e1:%d=%s%d", i+1, id, versions[id]))
		}
		conn := 0
		h := func(w http.ResponseWriter, r *http.Request) {
			left := 1 << 20
			if conn < len(cuts) {
				left = cuts[conn]
			}
			conn++
			ws, err := websocket.Accept(w, r, nil)
			if err != nil {
				return
			}
			defer ws.CloseNow()
			_, b, err := ws.Read(context.Background())
			if err != nil {
				return
			}
			f, err := wire.DecodeClientFrame(b)
			if err != nil {
				rt.Errorf("%s: %v", b, err)
				return
			}
			send := func(s string) bool {
				left--
				return left >= 0 && ws.Write(context.Background(), websocket.MessageText, []byte(s)) == nil
			}
			if !send(fmt.Sprintf(`{"type":"subscribed","cursor":"e1:%d","recovered":%v}`, 0, !f.Cursor.IsZero())) {
				return
			}
			if f.Snapshot && !(send(page(true)) && send(page(false)) && send(`{"type":"snapshot_end","cursor":"e1:0"}`)) {
				return
			}
			sent := 0
			for i := int(f.Cursor.Seq); i < n; i++ {
				if !send(frames[i]) {
					return
				}
				sent++
				if i%3 == 2 && !send(fmt.Sprintf(`{"type":"bookmark","cursor":"e1:%d","sent":%d}`, i+1, sent)) {
					return
				}
			}
			<-ws.CloseRead(context.Background()).Done()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		c := newRapid(rt, h)
		var told []string
		for ev, err := range c.Subscribe(ctx, SubscribeOptions{Snapshot: snapshot, BackoffMin: 1, BackoffMax: time.Millisecond}) {
			if err != nil {
				rt.Fatalf("told %v, then %v", told, err)
			}
			if ev.Type == statussync.EventResync {
				rt.Fatalf("a resync out of nothing after %v", told)
			}
			if ev.Type == statussync.EventEntry {
				if told = append(told, story(ev)); len(told) == n {
					break
				}
			}
		}
		if !slices.Equal(told, want) {
			rt.Errorf("told %v\nwant %v", told, want)
		}
	})
}

// FuzzFrame: nothing that a service may send breaks the client, and no event passes without a check of its place.
func FuzzFrame(f *testing.F) {
	for _, s := range []string{
		subscribed0, recovered("e1:3"), update("e1", 1, "a", 1), page(true, "a"), `{"type":"snapshot_end","cursor":"e1:8"}`,
		`{"type":"bookmark","cursor":"e1:9","sent":2}`, `{"type":"resync","reason":"epoch"}`, `{"type":"error","code":"invalid","retryable":false}`,
		`{"type":"environment_silent","cursor":"e1:2","data":{"seq":2,"epoch":"e1","kind":"environment_silent"}}`, `{"type":"x","data":null}`, `{}`, `[`, ``,
	} {
		f.Add([]byte(s), []byte(s))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		for _, mode := range []statussync.Mode{statussync.ModeEvery, statussync.ModeLatest} {
			c, err := New(Options{})
			if err != nil {
				t.Fatal(err)
			}
			s, err := c.newSubscriber(SubscribeOptions{Mode: mode})
			if err != nil {
				t.Fatal(err)
			}
			k := link{s: s}
			var last statussync.Cursor
			for _, frame := range [][]byte{a, b, a, b} {
				ev, deliver, err := k.take(frame)
				if err != nil {
					break
				}
				if !deliver || ev.Type != statussync.EventEntry || mode == statussync.ModeLatest {
					if deliver && ev.Type != statussync.EventEntry {
						last = statussync.Cursor{} // the place may have been set anew
					}
					continue
				}
				if at := ev.Entry.Cursor(); at.Epoch == last.Epoch && at.Seq <= last.Seq {
					t.Fatalf("%s after %s", at, last)
				} else {
					last = at
				}
			}
		}
	})
}
