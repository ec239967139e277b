package hub

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/statussynctest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a running hub on an in-memory journal.
type rig struct {
	*Hub
	t      testing.TB
	j      *statussynctest.MemoryJournal
	cancel context.CancelFunc
	ended  chan struct{}
	err    error
}

// start runs a hub; the test's end stops it, if the test has not.
func start(t testing.TB, j *statussynctest.MemoryJournal, o Options) *rig {
	t.Helper()
	return startWith(t, j, o, machineClocks)
}

func startWith(t testing.TB, j *statussynctest.MemoryJournal, o Options, clocks func() (mono, wall time.Time)) *rig {
	t.Helper()
	if j == nil {
		j = statussynctest.NewJournal()
	}
	o.Journal = j
	h, err := newHub(o, clocks)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &rig{Hub: h, t: t, j: j, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		r.err = h.Run(ctx)
	}()
	t.Cleanup(func() { _ = r.stop() })
	select {
	case <-h.Started():
	case <-r.ended:
		t.Fatalf("Run: %v", r.err)
	}
	return r
}

func (r *rig) stop() error {
	r.cancel()
	<-r.ended
	return r.err
}

// crash ends the hub without giving it a chance to store anything more, and returns the store as the next one finds it.
func (r *rig) crash() *statussynctest.MemoryJournal {
	j := r.j.Reopen()
	_ = r.stop()
	return j
}

func serverID(i int) string { return fmt.Sprintf("s%03d", i) }

// registry defines n servers on 7 environments.
func registry(n int) *statussync.RegistryUpdate {
	u := &statussync.RegistryUpdate{Origin: statussync.OriginConfig}
	for i := range 7 {
		u.Environments = append(u.Environments, statussync.Environment{ID: fmt.Sprintf("box-%d", i), Name: "box", Origin: statussync.OriginConfig})
	}
	for i := range n {
		u.Servers = append(u.Servers, statussync.Server{
			ID: serverID(i), Name: "server " + serverID(i), EnvironmentID: fmt.Sprintf("box-%d", i%7), Origin: statussync.OriginConfig,
			Endpoint: "http://127.0.0.1:9000/mcp", Transport: statussync.TransportStreamableHTTP, Desired: statussync.DesiredRunning,
			Labels: map[string]string{"team": fmt.Sprintf("t%d", i%3)},
		})
	}
	return u
}

func (r *rig) define(n int) {
	r.t.Helper()
	if _, err := r.Submit(r.ctx(), registry(n)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) ctx() context.Context { return context.Background() }

// force is an observation that changes a server's status at once: overrides by turns.
func force(id string, turn int) *statussync.OverrideSet {
	st := []statussync.State{statussync.StateRunning, statussync.StateError, statussync.StateStopped}[turn%3]
	now := time.Now()
	o := statussync.Override{State: st, Actor: "test", SetAt: now, ExpiresAt: now.Add(29 * 24 * time.Hour)}
	if err := o.Complete(now); err != nil {
		panic(err)
	}
	return &statussync.OverrideSet{ServerID: id, Override: o}
}

// change makes one update of the server, and waits for it.
func (r *rig) change(id string, turn int) *statussync.Entry {
	r.t.Helper()
	o := force(id, turn)
	if v, err := r.view(id); err == nil && v.Status.State == o.Override.State && v.Status.Marks.Has(statussync.MarkOverride) {
		o = force(id, turn+1) // it is that already
	}
	es, err := r.Submit(r.ctx(), o)
	if err != nil {
		r.t.Fatalf("change of %s: %v", id, err)
	}
	if len(es) != 1 {
		r.t.Fatalf("change of %s caused %d updates", id, len(es))
	}
	return es[0]
}

func (r *rig) subscribe(req statussync.SubscribeRequest) *statussynctest.Recorder {
	r.t.Helper()
	sub, err := r.Subscribe(r.ctx(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(sub.Close)
	return statussynctest.NewRecorder(sub, req)
}

func (r *rig) head() statussync.Cursor { return r.Stats().Head }

// all returns every server of the view.
func (r *rig) all() []statussync.ServerView {
	var out []statussync.ServerView
	q := statussync.ServerQuery{Limit: 100}
	for {
		items, more, _ := r.Servers(q)
		out = append(out, items...)
		if !more {
			return out
		}
		q.After = items[len(items)-1].Server.ID
	}
}

// catchUp reads until the newest entry has been considered.
func (r *rig) catchUp(c *statussynctest.Recorder) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx(), 30*time.Second)
	defer cancel()
	for !c.Reached(r.head()) { // the head may move, even to another epoch, meanwhile
		step, stop := context.WithTimeout(ctx, 100*time.Millisecond)
		err := c.Step(step)
		stop()
		if err != nil && (ctx.Err() != nil || step.Err() == nil) {
			r.t.Fatalf("catching up with %v at %v: %v; problems: %v", r.head(), c.Cursor(), err, c.Problems())
		}
	}
}

func (r *rig) checkTruth(c *statussynctest.Recorder) {
	r.t.Helper()
	r.catchUp(c)
	if err := c.Check(r.all()); err != nil {
		r.t.Error(err)
	}
}

// checkJournal checks that the journal holds an unbroken log, and per server versions without a hole within an epoch.
func checkJournal(t testing.TB, j *statussynctest.MemoryJournal) {
	t.Helper()
	type key struct {
		epoch statussync.Epoch
		id    string
	}
	versions := map[key]uint64{}
	var last uint64
	for _, e := range j.Entries() {
		if last != 0 && e.Seq != last+1 {
			t.Fatalf("entry %v after %d", e.Cursor(), last)
		}
		last = e.Seq
		if e.Version == 0 {
			continue
		}
		k := key{e.Epoch, e.ServerID}
		if v, ok := versions[k]; ok && e.Version != v+1 {
			t.Fatalf("entry %v: %s goes from version %d to %d", e.Cursor(), e.ServerID, v, e.Version)
		}
		versions[k] = e.Version
	}
}

func wantCode(t testing.TB, err error, code statussync.Code) {
	t.Helper()
	if got := statussync.CodeOf(err); got != code {
		t.Errorf("got code %q (%v), want %q", got, err, code)
	}
}

// requests is a Requester that remembers.
type requests struct {
	mu   sync.Mutex
	list []statussync.Request
}

func (q *requests) Do(reqs []statussync.Request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = append(q.list, reqs...)
}

func (q *requests) stale() (ids []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range q.list {
		if r.Probe != nil && r.Probe.Why == "stale" {
			ids = append(ids, r.Probe.ServerID)
		}
	}
	return ids
}

var errDisk = errors.New("no space left on device")
