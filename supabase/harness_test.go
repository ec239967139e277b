package supabase_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/supabase"
	"github.com/agentopia/statussync/supabase/realtimetest"
)

const (
	apiKey = "sb_secret_0123456789abcdef"
	table  = "account_tool_instances"
)

// told is one call to a receiver.
type told struct {
	at      time.Time
	live    bool
	lost    error
	changes []statussync.RowChange
}

// recorder is a FeedReceiver that keeps what it is told.
type recorder struct {
	mu     sync.Mutex
	all    []told
	change chan struct{} // closed and made anew at each call
}

func newRecorder() *recorder { return &recorder{change: make(chan struct{})} }

func (r *recorder) add(t told) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t.at = time.Now()
	r.all = append(r.all, t)
	close(r.change)
	r.change = make(chan struct{})
}

func (r *recorder) Live()          { r.add(told{live: true}) }
func (r *recorder) Lost(err error) { r.add(told{lost: err}) }
func (r *recorder) calls() []told {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]told(nil), r.all...)
}
func (r *recorder) isLive() bool    { live, _, _ := r.sum(); return live }
func (r *recorder) losses() []error { _, l, _ := r.sum(); return l }
func (r *recorder) Changed(c []statussync.RowChange) {
	r.add(told{changes: append([]statussync.RowChange(nil), c...)})
}

// sum returns whether it is live now, all losses and all changes.
func (r *recorder) sum() (live bool, losses []error, changes []statussync.RowChange) {
	for _, t := range r.calls() {
		switch {
		case t.live:
			live = true
		case t.lost != nil:
			live = false
			losses = append(losses, t.lost)
		}
		changes = append(changes, t.changes...)
	}
	return live, losses, changes
}

func (r *recorder) lives() (n int) {
	for _, t := range r.calls() {
		if t.live {
			n++
		}
	}
	return n
}

// until waits for real time until ok holds.
func (r *recorder) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.NewTimer(2 * time.Minute)
	defer limit.Stop()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for !ok() {
		r.mu.Lock()
		change := r.change
		r.mu.Unlock()
		select {
		case <-limit.C:
			t.Fatalf("not in time: %s; told: %v", what, r.calls())
		case <-change:
		case <-poll.C:
		}
	}
}

// logs is a log that tests look into.
type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logs) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *logs) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

// pipes is a listener of in-memory connections, which a synctest bubble can see through.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once

	mu      sync.Mutex
	refuse  bool
	dialled []time.Time
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipes) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	p.mu.Lock()
	p.dialled = append(p.dialled, time.Now())
	refuse := p.refuse
	p.mu.Unlock()
	if refuse {
		return nil, fmt.Errorf("connection refused")
	}
	a, b := net.Pipe()
	select {
	case p.conns <- b:
		return a, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// rig is a feed and a server in a bubble of virtual time.
type rig struct {
	*testing.T
	srv    *realtimetest.Server
	feed   *supabase.Feed
	rec    *recorder
	to     statussync.FeedReceiver // rec, unless set
	pipes  *pipes
	logs   *logs
	server realtimetest.Options
	client supabase.Options
	start  time.Time
}

// bubble runs body in virtual time; setup may change the settings, the server's hooks (which are set after) and to.
func bubble(t *testing.T, setup func(*rig), body func(*rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{T: t, rec: newRecorder(), pipes: newPipes(), logs: &logs{}, start: time.Now()}
		r.to = r.rec
		r.server = realtimetest.Options{
			APIKey: apiKey, JWTSecret: "a secret of the project", RefusalDelay: 2 * time.Second, JoinErrorDelay: 5 * time.Second, SubscribeDelay: 2 * time.Second,
		}
		r.client = supabase.Options{
			URL: "http://realtime.test", APIKey: apiKey, Tables: []string{table}, Dial: r.pipes.Dial,
			Logger: slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		}
		r.srv = realtimetest.New(r.server)
		if setup != nil {
			setup(r)
			hooked := r.srv
			r.srv = realtimetest.New(r.server)
			r.srv.OnHandshake, r.srv.OnJoin, r.srv.OnFrame = hooked.OnHandshake, hooked.OnJoin, hooked.OnFrame
		}
		hs := &http.Server{Handler: r.srv}
		served := make(chan error, 1)
		go func() { served <- hs.Serve(r.pipes) }()
		feed, err := supabase.New(r.client)
		if err != nil {
			t.Fatal(err)
		}
		r.feed = feed
		ctx, cancel := context.WithCancel(context.Background())
		ran := make(chan error, 1)
		go func() { ran <- feed.Run(ctx, r.to) }()
		body(r)
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
		if st := feed.Status(); st.State != supabase.StateStopped {
			t.Errorf("after Run: %s", st.State)
		}
		r.srv.SetFrozen(false)
		r.srv.Close()
		hs.Close()
		<-served
	})
}

// sleep lets virtual time pass and everything settle.
func (r *rig) sleep(d time.Duration) { time.Sleep(d); synctest.Wait() }

// untilLive waits for the channel to be live at both ends, and returns how long that took.
func (r *rig) untilLive(limit time.Duration) time.Duration {
	r.Helper()
	began := time.Now()
	for !(r.rec.isLive() && r.srv.Subscribed() == 1) {
		if time.Since(began) > limit {
			r.Fatalf("not live within %s: %+v\n%s", limit, r.feed.Status(), r.logs)
		}
		r.sleep(100 * time.Millisecond)
	}
	return time.Since(began)
}

func row(id string) realtimetest.Change {
	return realtimetest.Change{Schema: "public", Table: table, Type: "UPDATE", Record: map[string]any{"id": id, "name": "n"}, OldRecord: map[string]any{"id": id}}
}
