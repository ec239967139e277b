package hub

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
	"github.com/agentopia/statussync/statussynctest"
)

func TestOptions(t *testing.T) {
	j := statussynctest.NewJournal()
	bad := engine.DefaultPolicy()
	bad.LateFactor = -1
	for name, o := range map[string]Options{
		"no journal":     {},
		"negative inbox": {Journal: j, InboxSize: -1},
		"negative ring":  {Journal: j, RingSize: -1},
		"negative subs":  {Journal: j, MaxSubscriptions: -1},
		"negative time":  {Journal: j, AppendTimeout: -1},
		"nil sink":       {Journal: j, ReportSinks: []statussync.ReportSink{nil}},
		"bad policy":     {Journal: j, Policy: bad},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(o)
			wantCode(t, err, statussync.CodeInvalid)
		})
	}
}

func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{})
		r.define(20)
		before := r.j.Appends()
		r.j.Slow(100 * time.Millisecond)
		const callers, each = 20, 10
		var wg sync.WaitGroup
		for c := range callers {
			wg.Go(func() {
				last := statussync.Cursor{}
				for i := range each {
					e := r.change(serverID(c), i)
					if e.Seq <= last.Seq {
						t.Errorf("caller %d got %v after %v", c, e.Cursor(), last)
					}
					last = e.Cursor()
					stored := r.j.Entries()
					if n := len(stored); stored[n-1].Seq < e.Seq {
						t.Errorf("%v was answered before it was durable", e.Cursor())
					}
				}
			})
		}
		wg.Wait()
		r.j.Slow(0)
		if n := r.j.Appends() - before; n > each+10 {
			t.Errorf("%d updates of %d callers took %d appends", callers*each, callers, n)
		}
		checkJournal(t, r.j)
	})
}

func TestReadYourWrite(t *testing.T) {
	r := start(t, nil, Options{})
	r.define(10)
	for i := range 50 {
		id := serverID(i % 10)
		e := r.change(id, i/10)
		v, err := r.Server(id)
		if err != nil {
			t.Fatal(err)
		}
		if v.Status.Version != e.Version || !v.Status.Equal(e.Current) {
			t.Fatalf("after version %d the view says %d", e.Version, v.Status.Version)
		}
		items, _, at := r.Servers(statussync.ServerQuery{Limit: 100})
		if at.Seq < e.Seq || len(items) != 10 {
			t.Fatalf("after %v the list is as of %v, %d servers", e.Cursor(), at, len(items))
		}
		if _, ok := r.j.Record(statussync.RecordServer, id); !ok {
			t.Fatalf("the evidence of %s is not stored with its update", id)
		}
		x, err := r.Explain(r.ctx(), id)
		if err != nil || x.Status.Version != e.Version {
			t.Fatalf("explain: version %d, %v", x.Status.Version, err)
		}
	}
	if _, err := r.Server("nobody"); statussync.CodeOf(err) != statussync.CodeNotFound {
		t.Error(err)
	}
	_, err := r.Explain(r.ctx(), "nobody")
	wantCode(t, err, statussync.CodeNotFound)
}

func TestSubmitErrors(t *testing.T) {
	r := start(t, nil, Options{})
	r.define(3)
	es, err := r.Submit(r.ctx(), force("nobody", 0), force(serverID(1), 0), force("nothing", 0))
	wantCode(t, err, statussync.CodeNotFound)
	if len(es) != 1 || es[0].ServerID != serverID(1) {
		t.Errorf("the good observation between the bad ones was not taken: %v", es)
	}
	es, err = r.Submit(r.ctx(), nil)
	wantCode(t, err, statussync.CodeInvalid)
	if es != nil {
		t.Error(es)
	}
	if s := r.Stats(); s.Rejected != 2 {
		t.Errorf("rejected: %d", s.Rejected)
	}
	_, err = r.SetOverride(r.ctx(), serverID(1), statussync.Override{State: "sleeping"})
	wantCode(t, err, statussync.CodeInvalid)
	_, err = r.SetOverride(r.ctx(), "nobody", statussync.Override{State: statussync.StateError})
	wantCode(t, err, statussync.CodeNotFound)
	v, err := r.SetOverride(r.ctx(), serverID(2), statussync.Override{State: statussync.StateError, Actor: "ann", Note: "by\x1b hand"})
	if err != nil || v.Status.Health != statussync.HealthUnhealthy || v.Status.Override == nil || v.Status.Override.Note != "by hand" {
		t.Errorf("override: %+v, %v", v.Status, err)
	}
	if want := v.Status.Override.SetAt.Add(time.Hour); !v.Status.Override.ExpiresAt.Equal(want) {
		t.Errorf("expires at %v, want %v", v.Status.Override.ExpiresAt, want)
	}
	v, err = r.ClearOverride(r.ctx(), serverID(2), "ann")
	if err != nil || v.Status.Override != nil || v.Status.Marks.Has(statussync.MarkOverride) {
		t.Errorf("after clearing: %+v, %v", v.Status, err)
	}
}

func TestOverrideExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{})
		r.define(1)
		c := r.subscribe(statussync.SubscribeRequest{Snapshot: true})
		if _, err := r.SetOverride(r.ctx(), serverID(0), statussync.Override{State: statussync.StateStopped}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		if v, _ := r.Server(serverID(0)); v.Status.Override != nil || v.Status.Marks.Has(statussync.MarkOverride) {
			t.Errorf("the override outlived its hour: %+v", v.Status)
		}
		r.checkTruth(c)
	})
}

// TestDurableBeforeTold: while an append is under way, nothing of its batch is seen anywhere.
func TestDurableBeforeTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &requests{}
		r := start(t, nil, Options{Requester: q, AppendTimeout: time.Minute})
		r.define(2)
		old := r.change(serverID(0), 0)
		c := r.subscribe(statussync.SubscribeRequest{})
		go func() { _ = c.Run(t.Context()) }()
		entered, release := r.j.Hang()
		done := make(chan *statussync.Entry)
		go func() { done <- r.change(serverID(0), 1) }()
		<-entered
		explained := make(chan statussync.Explanation, 1)
		go func() {
			x, _ := r.Explain(context.Background(), serverID(0))
			explained <- x
		}()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if v, _ := r.Server(serverID(0)); v.Status.Version != old.Version {
			t.Error("the view shows what is not durable")
		}
		if items, _, _ := r.Updates(r.ctx(), old.Cursor(), 10, nil); len(items) > 0 {
			t.Error("Updates shows what is not durable")
		}
		if c.Received() > 0 {
			t.Error("a subscriber was told what is not durable")
		}
		select {
		case <-done:
			t.Error("the receipt came before the entry was durable")
		case x := <-explained:
			t.Errorf("explained version %d before it was durable", x.Status.Version)
		default:
		}
		release(true)
		e := <-done
		<-explained
		synctest.Wait()
		if c.Received() != 1 || c.Cursor() != e.Cursor() {
			t.Errorf("the subscriber is at %v, want %v", c.Cursor(), e.Cursor())
		}
		if r.head().Epoch != old.Epoch {
			t.Error("an epoch began, though the append was in time")
		}
	})
}

func TestInboxFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{InboxSize: 8, AppendTimeout: time.Hour})
		r.define(3)
		entered, release := r.j.Hang()
		var told atomic.Int64
		submit := func(i int) {
			go func() {
				if _, err := r.Submit(context.Background(), force(serverID(0), i)); err == nil {
					told.Add(1)
				}
			}()
		}
		submit(0)
		<-entered
		// The next batch fills while the append hangs; then the inbox does.
		n := 1
		for ; n < maxBatchEntries+100; n++ {
			synctest.Wait()
			if err := r.TryObserve(force(serverID(1), n)); err != nil {
				wantCode(t, err, statussync.CodeUnavailable)
				break
			}
		}
		if n < maxBatchEntries || n > maxBatchEntries+20 {
			t.Errorf("the inbox was full after %d observations", n)
		}
		if used := r.Ready().InboxUsed; used != 1 {
			t.Errorf("InboxUsed: %v", used)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		if err := r.Observe(ctx, force(serverID(2), 0)); err != context.DeadlineExceeded || time.Since(begun) != time.Second {
			t.Errorf("Observe on a full inbox: %v after %v", err, time.Since(begun))
		}
		blocked := make(chan error)
		go func() { blocked <- r.Observe(context.Background(), force(serverID(2), 0)) }()
		synctest.Wait()
		release(true)
		if err := <-blocked; err != nil {
			t.Errorf("Observe, when there was room again: %v", err)
		}
		// A message larger than the whole inbox passes when the inbox is empty.
		if _, err := r.Submit(t.Context(), registry(1000)); err != nil {
			t.Error(err)
		}
		if told.Load() != 1 {
			t.Error("the first submit was not answered")
		}
		if s := r.Stats(); s.InboxDepth != 0 || s.Refused != 2 {
			t.Errorf("depth %d, refused %d", s.InboxDepth, s.Refused)
		}
		checkJournal(t, r.j)
	})
}

func TestHousekeeping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{})
		r.define(3)
		begun := time.Now()
		for range 12 {
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if age := r.Now().Sub(r.j.StoredAlive()); age > 10*time.Second {
				t.Fatalf("after %v alive_at is %v old", time.Since(begun), age)
			}
		}
		// Evidence without an update is stored within 10 s.
		rec, _ := r.j.Record(statussync.RecordServer, serverID(0))
		now := time.Now()
		if _, err := r.Submit(r.ctx(), &statussync.ProbeResult{ServerID: serverID(0), Outcome: statussync.OutcomeSuccess, StartedAt: now, FinishedAt: now}); err != nil {
			t.Fatal(err)
		}
		rec, _ = r.j.Record(statussync.RecordServer, serverID(0))
		now = time.Now()
		es, err := r.Submit(r.ctx(), &statussync.ProbeResult{ServerID: serverID(0), Outcome: statussync.OutcomeSuccess, StartedAt: now, FinishedAt: now})
		if err != nil || len(es) != 0 {
			t.Fatalf("a second success caused %d updates, %v", len(es), err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if again, _ := r.j.Record(statussync.RecordServer, serverID(0)); string(again.Data) == string(rec.Data) {
			t.Error("evidence without an update was not stored within 10 s")
		}
	})
}

// TestStop: what is in the inbox is concluded from, everything dirty is stored, subscriptions end, and nothing is taken
// any more.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{})
		r.define(50)
		sub, err := r.Subscribe(t.Context(), statussync.SubscribeRequest{Snapshot: true})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			buf := make([]statussync.Event, 0, 16)
			for {
				if _, err := sub.Next(context.Background(), buf); err != nil {
					ended <- err
					return
				}
			}
		}()
		synctest.Wait()
		if !r.Active() {
			t.Error("not active")
		}
		time.Sleep(7 * time.Second)
		for i := range 50 {
			if err := r.Observe(t.Context(), force(serverID(i), 1)); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		wantCode(t, <-ended, statussync.CodeUnavailable)
		if !r.j.StoredAlive().Equal(r.Now()) {
			t.Errorf("alive at %v, now %v", r.j.StoredAlive(), r.Now())
		}
		checkJournal(t, r.j)
		wantCode(t, r.Observe(t.Context(), force(serverID(0), 0)), statussync.CodeUnavailable)
		wantCode(t, r.TryObserve(force(serverID(0), 0)), statussync.CodeUnavailable)
		_, err = r.Submit(t.Context(), force(serverID(0), 0))
		wantCode(t, err, statussync.CodeUnavailable)
		_, err = r.Subscribe(t.Context(), statussync.SubscribeRequest{})
		wantCode(t, err, statussync.CodeUnavailable)
		_, err = r.Explain(t.Context(), serverID(0))
		wantCode(t, err, statussync.CodeUnavailable)
		if r.Active() || r.Ready().Detail == "" {
			t.Error("still active")
		}
		if err := r.Run(t.Context()); err == nil {
			t.Error("Run ran twice")
		}
		// Another hub on the same store knows all of it.
		again := start(t, r.j.Reopen(), Options{})
		for i := range 50 {
			v, err := again.Server(serverID(i))
			if err != nil || v.Status.State != statussync.StateError || v.Status.Reason != statussync.ReasonOverride {
				t.Fatalf("%s after the restart: %+v, %v", serverID(i), v.Status, err)
			}
		}
		if again.head().Epoch != r.head().Epoch {
			t.Error("a clean restart began an epoch")
		}
	})
}

func TestStopWithHangingStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{})
		r.define(1)
		entered, release := r.j.Hang()
		_, err := r.Submit(t.Context(), force(serverID(0), 0)) // answered out of the volatile epoch
		if err != nil {
			t.Fatal(err)
		}
		<-entered
		begun := time.Now()
		if err := r.stop(); err == nil {
			t.Error("Run returned nil, though the store hangs")
		}
		if d := time.Since(begun); d > stopWithin {
			t.Errorf("the stop took %v", d)
		}
		release(false) // lets the one goroutine go
	})
}

func TestRunFailsOnBadStore(t *testing.T) {
	j := statussynctest.NewJournal()
	if err := j.Append(t.Context(), &statussync.Batch{Records: []statussync.Record{{Kind: statussync.RecordServer, ID: "x", Data: []byte("garbage")}}}); err != nil {
		t.Fatal(err)
	}
	h, err := New(Options{Journal: j, InboxSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.TryObserve(force("x", 0)); err != nil {
		t.Fatal(err)
	}
	blocked := make(chan error)
	go func() { blocked <- h.Observe(context.Background(), force("x", 0)) }()
	if err := h.Run(t.Context()); err == nil {
		t.Error("Run took garbage for evidence")
	}
	wantCode(t, <-blocked, statussync.CodeUnavailable)
	_, err = h.Subscribe(t.Context(), statussync.SubscribeRequest{})
	wantCode(t, err, statussync.CodeUnavailable)
}

// steppedClock is a machine whose wall clock can be stepped away from the monotonic one.
type steppedClock struct{ step atomic.Int64 }

func (c *steppedClock) read() (mono, wall time.Time) {
	t := time.Now()
	return t, t.Add(time.Duration(c.step.Load())).Round(0)
}

func TestClockSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &steppedClock{}
		r := startWith(t, nil, Options{}, c.read)
		r.define(2)
		r.change(serverID(0), 0)
		before := r.Now()

		c.step.Store(int64(24 * time.Hour)) // forward, as after a suspend
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if got := r.Now().Sub(before); got != 24*time.Hour+6*time.Second {
			t.Errorf("after a step of a day engine time moved by %v", got)
		}
		if s := r.Stats(); s.ClockJumps != 1 || s.ClockLag != 0 {
			t.Errorf("jumps %d, lag %v", s.ClockJumps, s.ClockLag)
		}
		e := r.change(serverID(1), 0)
		if !e.Timestamp.Equal(r.Now().Truncate(time.Millisecond)) {
			t.Errorf("entry at %v, now %v", e.Timestamp, r.Now())
		}

		c.step.Store(-int64(24 * time.Hour)) // back
		at := r.Now()
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if got := r.Now().Sub(at); got != 6*time.Second {
			t.Errorf("after a step back engine time moved by %v", got)
		}
		if lag := r.Stats().ClockLag; lag != -48*time.Hour {
			t.Errorf("lag %v", lag)
		}
		later := r.change(serverID(1), 1)
		if later.Timestamp.Before(e.Timestamp) {
			t.Errorf("time went back from %v to %v", e.Timestamp, later.Timestamp)
		}
		if r.Stats().ClockJumps != 1 {
			t.Error("a step back was taken for a gap")
		}
		// A restart with the wall clock a day back goes on from the stored time.
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		again := startWith(t, r.j.Reopen(), Options{}, c.read)
		if again.Now().Before(r.j.StoredAlive()) {
			t.Errorf("engine time %v is before %v, at which the service was alive", again.Now(), r.j.StoredAlive())
		}
	})
}

func TestTranslatesSendersTimes(t *testing.T) {
	c := newClock(machineClocks)
	sent := time.Now()
	c.jump(time.Hour)
	now := c.now()
	if got := c.at(sent, now); got.After(now) || now.Sub(got) > time.Minute {
		t.Errorf("a time of just now became %v, now is %v", got, now)
	}
	if got := c.at(sent.Add(time.Hour), now); !got.Equal(now) {
		t.Errorf("a time to come became %v, not now, %v", got, now)
	}
	if !c.at(time.Time{}, now).IsZero() {
		t.Error("the zero time became one")
	}
}

func TestReportSinks(t *testing.T) {
	var sink reports
	r := start(t, nil, Options{ReportSinks: []statussync.ReportSink{&sink}})
	r.define(1)
	for i := range 5 {
		rep := &statussync.AgentReport{EnvironmentID: "box-1", Via: statussync.ViaPush, AgentVersion: fmt.Sprint(i)}
		if _, err := r.Submit(r.ctx(), rep, &statussync.AgentReport{EnvironmentID: "unheard of"}); err == nil {
			t.Error("a report of an unknown environment was taken")
		}
	}
	sink.mu.Lock()
	defer sink.mu.Unlock()
	if len(sink.list) != 5 {
		t.Fatalf("%d reports", len(sink.list))
	}
	for i, rep := range sink.list {
		if rep.AgentVersion != fmt.Sprint(i) {
			t.Errorf("report %d is %s", i, rep.AgentVersion)
		}
	}
	if n := r.Stats().Observations["agent_report"]; n != 10 {
		t.Errorf("counted %d reports", n)
	}
}

type reports struct {
	mu   sync.Mutex
	list []*statussync.AgentReport
}

func (s *reports) Report(r *statussync.AgentReport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, r)
}

func TestNextEpoch(t *testing.T) {
	for prev, want := range map[statussync.Epoch]string{
		"": "e1", "e1abc": "e2", "e8k3f9qa": "e9", "e99zzzzzz": "e100", "e": "e1", "x7abc": "e1",
		"e99999999999999999999abc": "e1",
	} {
		got := nextEpoch(prev)
		if len(got) != len(want)+6 || string(got[:len(want)]) != want || got[len(want)] < 'a' || got[len(want)] > 'z' {
			t.Errorf("after %q comes %q, want %s and six characters", prev, got, want)
		}
		if _, err := statussync.ParseCursor(string(got) + ":1"); err != nil {
			t.Errorf("%q is no epoch of a cursor: %v", got, err)
		}
		if got == nextEpoch(prev) {
			t.Errorf("after %q the same name came twice", prev)
		}
	}
}

// biggest remembers the largest append.
type biggest struct {
	*statussynctest.MemoryJournal
	entries, records int
}

func (j *biggest) Append(ctx context.Context, b *statussync.Batch) error {
	j.entries, j.records = max(j.entries, len(b.Entries)), max(j.records, len(b.Records))
	return j.MemoryJournal.Append(ctx, b)
}

// TestLargeRegistryInPieces: what a large registry defines comes into the journal in batches of bounded size; the receipt is
// for all of it, and what a full one does not name is removed.
func TestLargeRegistryInPieces(t *testing.T) {
	const n = 3*maxPiece + 10
	j := &biggest{MemoryJournal: statussynctest.NewJournal()}
	h, err := New(Options{Journal: j})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	<-h.Started()
	u := registry(n)
	u.Full = true
	es, err := h.Submit(ctx, u)
	if err != nil || len(es) != n {
		t.Errorf("%d updates, %v", len(es), err)
	}
	var all []statussync.Observation
	for i := range n {
		all = append(all, &statussync.RecordSeen{ServerID: serverID(i), Word: "running"})
	}
	all = append(all, &statussync.RecordSeen{ServerID: "nobody", Word: "running"})
	es, err = h.Submit(ctx, all...)
	if statussync.CodeOf(err) != statussync.CodeNotFound || len(es) != n {
		t.Errorf("%d updates, %v", len(es), err)
	}
	less := registry(2*maxPiece + 5)
	less.Full = true
	if _, err := h.Submit(ctx, less); err != nil {
		t.Error(err)
	}
	if got, _, _ := h.Servers(statussync.ServerQuery{Limit: n}); len(got) != 2*maxPiece+5 {
		t.Errorf("%d servers are left", len(got))
	}
	if _, err := h.Submit(ctx, all[0], nil); statussync.CodeOf(err) != statussync.CodeInvalid {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if most := 2*maxPiece + maxBatchEntries; j.entries > most || j.records > most+maxBatchRecords {
		t.Errorf("one append had %d entries and %d records", j.entries, j.records)
	}
}
