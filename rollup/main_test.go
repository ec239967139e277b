package rollup

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/sqlite"
	"github.com/agentopia/statussync/statussynctest"
)

func TestMain(m *testing.M) {
	// Each check opens a real file; -rapid.checks asks for more.
	if err := flag.Set("rapid.checks", "20"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

var day = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// openStore opens the real store in dir.
func openStore(t testing.TB, dir string, now func() time.Time) *sqlite.History {
	t.Helper()
	h, err := sqlite.OpenHistory(context.Background(), sqlite.HistoryOptions{Dir: dir, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// clock is a settable time.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = t
}

// noHub knows nobody: for tests of probes alone.
type noHub struct{ Hub }

func (noHub) Server(id string) (v statussync.ServerView, err error) {
	return v, statussync.NotFound("server", id)
}

// newService is a Service that is not run.
func newService(t testing.TB, store Store, now func() time.Time) *Service {
	t.Helper()
	s, err := New(Options{Store: store, Hub: noHub{}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// faulty is the real store with errors on demand.
type faulty struct {
	Store
	mu    sync.Mutex
	err   error // of every write
	after bool  // the write succeeds all the same
}

func (f *faulty) fail(err error, after bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.after = err, after
}

func (f *faulty) guard(write func() error) error {
	f.mu.Lock()
	err, after := f.err, f.after
	f.mu.Unlock()
	if err == nil {
		return write()
	}
	if after {
		if werr := write(); werr != nil {
			return werr
		}
	}
	return err
}

func (f *faulty) PutMinutes(ctx context.Context, run string, batch uint64, rows []statussync.ProbeRow) error {
	return f.guard(func() error { return f.Store.PutMinutes(ctx, run, batch, rows) })
}

func (f *faulty) PutHour(ctx context.Context, hour time.Time, rows []statussync.ProbeRow) error {
	return f.guard(func() error { return f.Store.PutHour(ctx, hour, rows) })
}

func (f *faulty) PutSpans(ctx context.Context, spans []statussync.Span, at statussync.SpanCheckpoint, reset bool) error {
	return f.guard(func() error { return f.Store.PutSpans(ctx, spans, at, reset) })
}

var errFull = errors.New("the disk is full")

// rig is a hub on a journal in memory, and a Service on the real store, both running.
type rig struct {
	t      testing.TB
	dir    string
	j      *statussynctest.MemoryJournal
	hub    *hub.Hub
	s      *Service
	store  *faulty
	file   *sqlite.History
	endHub func()
	endSvc func()
}

func newRig(t testing.TB, dir string) *rig {
	return &rig{t: t, dir: dir, j: statussynctest.NewJournal()}
}

// startHub runs a hub on the journal as it is.
func (r *rig) startHub() {
	h, err := hub.New(hub.Options{Journal: r.j})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	<-h.Started()
	r.hub = h
	var once sync.Once
	r.endHub = func() {
		once.Do(func() {
			cancel()
			<-ended
			r.j = r.j.Reopen()
		})
	}
}

// startService runs the Service on the store's file.
func (r *rig) startService() {
	r.file = openStore(r.t, r.dir, nil)
	r.store = &faulty{Store: r.file}
	s, err := New(Options{Store: r.store, Hub: r.hub})
	if err != nil {
		r.t.Fatal(err)
	}
	r.s = s
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	var once sync.Once
	r.endSvc = func() {
		once.Do(func() {
			cancel()
			<-ended
			r.file.Close()
		})
	}
}

func (r *rig) stop() {
	r.endSvc()
	r.endHub()
}

func (r *rig) submit(obs ...statussync.Observation) {
	if _, err := r.hub.Submit(context.Background(), obs...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) define(ids ...string) {
	u := &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Full: true}
	for _, id := range ids {
		u.Servers = append(u.Servers, statussync.Server{ID: id, Name: id, Origin: statussync.OriginConfig, Desired: statussync.DesiredRunning})
	}
	r.submit(u)
}

// force makes a status by a person's word.
func (r *rig) force(id string, state statussync.State, health statussync.Health) {
	now := time.Now()
	o := statussync.Override{State: state, Health: health, Actor: "test", ExpiresAt: now.Add(29 * 24 * time.Hour)}
	if err := o.Complete(now); err != nil {
		r.t.Fatal(err)
	}
	r.submit(&statussync.OverrideSet{ServerID: id, Override: o})
}

func serverName(i int) string { return fmt.Sprintf("s%d", i) }
