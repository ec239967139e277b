package hub

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/statussynctest"
)

// settle waits until the hub is durable again.
func (r *rig) settle() {
	r.t.Helper()
	for range 200 {
		synctest.Wait()
		if r.Ready().Durable {
			return
		}
		time.Sleep(time.Second)
	}
	r.t.Fatalf("not durable after 200 s: %+v", r.Ready())
}

// sameAsJournal checks that everything that a client got under the current epoch is in the journal, as it was told.
func (r *rig) sameAsJournal(c *statussynctest.Recorder) {
	r.t.Helper()
	bySeq := map[statussync.Cursor]statussync.Encoded{}
	for _, e := range r.j.Entries() {
		bySeq[e.Cursor()] = e
	}
	for _, e := range c.Entries() {
		if e.Epoch != r.head().Epoch {
			continue
		}
		got, ok := bySeq[e.Cursor()]
		if !ok || string(got.JSON) != string(e.AppendJSON(nil)) {
			r.t.Errorf("%v was told, and is not in the journal as it was", e.Cursor())
		}
	}
}

func TestVolatileEpoch(t *testing.T) {
	for name, failing := range map[string]func(j *statussynctest.MemoryJournal) (back func()){
		"fails": func(j *statussynctest.MemoryJournal) func() {
			j.Fail(errDisk)
			return func() { j.Fail(nil) }
		},
		"too slow": func(j *statussynctest.MemoryJournal) func() {
			j.Slow(1500 * time.Millisecond)
			return func() { j.Slow(0) }
		},
		"hangs, then fails": func(j *statussynctest.MemoryJournal) func() {
			_, release := j.Hang()
			return func() { release(false) }
		},
		"hangs, then succeeds": func(j *statussynctest.MemoryJournal) func() {
			_, release := j.Hang()
			return func() { release(true) }
		},
		"stores, and says that it failed": func(j *statussynctest.MemoryJournal) func() {
			j.Intercept(func(_ context.Context, _ *statussync.Batch, commit func() error) error {
				_ = commit()
				return errDisk
			})
			return func() { j.Intercept(nil) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, nil, Options{})
				r.define(10)
				c := r.subscribe(statussync.SubscribeRequest{Snapshot: true})
				one := r.subscribe(statussync.SubscribeRequest{Filter: statussync.Filter{Clauses: []statussync.Clause{{ServerIDs: []string{serverID(9)}}}}})
				r.catchUp(c)
				r.catchUp(one)
				told := r.head()

				back := failing(r.j)
				begun := time.Now()
				e := r.change(serverID(0), 0)
				if d := time.Since(begun); d > time.Second {
					t.Errorf("the live path stood still for %v", d)
				}
				if e.Epoch == told.Epoch || e.Seq != told.Seq+1 {
					t.Errorf("after %v came %v", told, e.Cursor())
				}
				if rd := r.Ready(); rd.Durable || rd.Detail == "" {
					t.Errorf("ready: %+v", rd)
				}
				begun = time.Now()
				for i := range 100 {
					r.change(serverID(i%10), i/10+1)
				}
				if d := time.Since(begun); d > 100*time.Millisecond {
					t.Errorf("100 updates without the store took %v", d)
				}
				r.checkTruth(c)
				r.checkTruth(one)
				for _, x := range []*statussynctest.Recorder{c, one} {
					if got := x.Resyncs(); len(got) != 1 || got[0] != statussync.ResyncEpoch {
						t.Errorf("resyncs: %v", got)
					}
				}
				late := r.subscribe(statussync.SubscribeRequest{Snapshot: true})
				r.checkTruth(late)
				if late.Durable() {
					t.Error("subscribed says that it is durable")
				}
				h, err := r.History(t.Context(), statussync.HistoryQuery{ServerID: serverID(3), Limit: 100})
				if err != nil {
					t.Fatal(err)
				}
				seen := map[uint64]bool{}
				for i, e := range h {
					if seen[e.Seq] || (i > 0 && e.Seq > h[i-1].Seq) || (e.Seq > told.Seq && e.Epoch == told.Epoch) {
						t.Errorf("history has %v in a wrong place", e.Cursor())
					}
					seen[e.Seq] = true
				}
				if len(h) < 11 {
					t.Errorf("history has %d entries", len(h))
				}

				back()
				r.settle()
				if got := r.head().Epoch; got != e.Epoch {
					t.Errorf("the store has everything, and still epoch %s became %s", e.Epoch, got)
				}
				r.change(serverID(4), 100)
				r.checkTruth(c)
				r.checkTruth(one)
				r.checkTruth(late)
				if n := len(c.Resyncs()); n != 1 {
					t.Errorf("%d resyncs", n)
				}
				r.sameAsJournal(c)
				r.sameAsJournal(late)
				checkJournal(t, r.j)
				if _, ok := r.j.Record(statussync.RecordHub, noteID); ok {
					t.Error("the note of the recovery is still there")
				}
				if d := r.Ready().Detail; d != "" {
					t.Errorf("ready says %q", d)
				}

				// A client of the volatile epoch resumes after a restart.
				req := statussync.SubscribeRequest{Cursor: c.Cursor()}
				again := start(t, r.crash(), Options{})
				sub, err := again.Subscribe(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				defer sub.Close()
				c.Resume(sub, req)
				again.change(serverID(5), 100)
				again.checkTruth(c)
				if !c.Recovered() {
					t.Error("a cursor of the epoch that was stored was not continued")
				}
			})
		})
	}
}

// TestIncompleteRing: more was told than the ring holds; another epoch begins in the store.
func TestIncompleteRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{RingSize: 32})
		r.define(5)
		c := r.subscribe(statussync.SubscribeRequest{Snapshot: true})
		r.catchUp(c)
		told := r.head()
		r.j.Fail(errDisk)
		for i := range 100 {
			r.change(serverID(i%5), i/5)
		}
		volatile := r.head().Epoch
		behind := r.subscribe(statussync.SubscribeRequest{Cursor: statussync.Cursor{Epoch: volatile, Seq: told.Seq + 10}})
		r.checkTruth(behind)
		if got := behind.Resyncs(); len(got) != 1 || got[0] != statussync.ResyncExpired {
			t.Errorf("behind the ring of a volatile epoch: %v", got)
		}
		r.checkTruth(c)
		r.j.Fail(nil)
		r.settle()
		if now := r.head(); now.Epoch == volatile || now.Epoch == told.Epoch || now.Seq != told.Seq {
			t.Errorf("the head is %v, after %v and %s", now, told, volatile)
		}
		e := r.change(serverID(0), 1000)
		if e.Seq != told.Seq+1 {
			t.Errorf("the first entry is %v", e.Cursor())
		}
		r.checkTruth(c)
		r.checkTruth(behind)
		if got := c.Resyncs(); len(got) != 2 || got[1] != statussync.ResyncEpoch {
			t.Errorf("resyncs: %v", got)
		}
		checkJournal(t, r.j)
		again := start(t, r.crash(), Options{})
		for _, v := range r.all() {
			if w, err := again.Server(v.Server.ID); err != nil || w.Status.Version != v.Status.Version || !w.Status.Equal(&v.Status) {
				t.Errorf("%s: version %d became %d", v.Server.ID, v.Status.Version, w.Status.Version)
			}
		}
		resumed := statussync.SubscribeRequest{Cursor: c.Cursor()}
		sub, err := again.Subscribe(t.Context(), resumed)
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Close()
		c.Resume(sub, resumed)
		again.checkTruth(c)
		if !c.Recovered() {
			t.Error("the new epoch's cursor was not continued")
		}
	})
}

// TestHangingAppendBlocksNobody: one goroutine hangs, for as long as it likes, and no second append is tried beside it.
func TestHangingAppendBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{})
		r.define(3)
		entered, release := r.j.Hang()
		r.change(serverID(0), 0)
		<-entered
		for i := range 60 {
			time.Sleep(time.Minute)
			r.change(serverID(i%3), i/3+1)
		}
		select {
		case <-entered:
			t.Error("a second append was tried beside the one that hangs")
		default:
		}
		release(true)
		r.settle()
		checkJournal(t, r.j)
	})
}

// TestLargeBacklog is stored in several appends, while updates go on.
func TestLargeBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{})
		r.define(20)
		c := r.subscribe(statussync.SubscribeRequest{Snapshot: true})
		r.catchUp(c)
		r.j.Fail(errDisk)
		n := 0
		push := func(count int) {
			var obs []statussync.Observation
			for range count {
				obs = append(obs, force(serverID(n%20), n/20))
				n++
			}
			if _, err := r.Submit(t.Context(), obs...); err != nil {
				t.Fatal(err)
			}
		}
		for range 10 {
			push(500)
		}
		if b := r.Stats().Backlog; b < 5000 {
			t.Errorf("backlog %d", b)
		}
		before := r.j.Appends()
		r.j.Slow(200 * time.Millisecond)
		for range 50 {
			push(10)
			time.Sleep(100 * time.Millisecond)
		}
		r.settle()
		r.j.Slow(0)
		if a := r.j.Appends() - before; a < 5 {
			t.Errorf("5,500 entries were stored in %d appends", a)
		}
		r.checkTruth(c)
		if got := len(c.Resyncs()); got != 1 {
			t.Errorf("%d resyncs", got)
		}
		r.sameAsJournal(c)
		checkJournal(t, r.j)
	})
}

// TestCrashInRecovery: a hub that starts from a store that was being recovered begins a new epoch; nobody resumes in
// the one that is only half there.
func TestCrashInRecovery(t *testing.T) {
	for allowed := 1; allowed <= 5; allowed++ {
		t.Run(fmt.Sprint("after append ", allowed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, nil, Options{})
				r.define(20)
				c := r.subscribe(statussync.SubscribeRequest{Snapshot: true})
				r.catchUp(c)
				r.j.Fail(errDisk)
				for i := range 3000 {
					if err := r.Observe(t.Context(), force(serverID(i%20), i/20)); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				volatile := r.head().Epoch
				r.catchUp(c)
				n := 0
				gone := make(chan struct{})
				r.j.Intercept(func(ctx context.Context, _ *statussync.Batch, commit func() error) error {
					if n++; n > allowed {
						if n == allowed+1 {
							close(gone)
						}
						<-ctx.Done()
						return ctx.Err()
					}
					return commit()
				})
				select {
				case <-gone:
				case <-time.After(time.Minute):
				}
				_, noted := r.j.Record(statussync.RecordHub, noteID)
				j := r.crash()
				again := start(t, j, Options{})
				if noted == (again.head().Epoch == volatile) {
					t.Errorf("noted %v, and the epoch is %s after %s", noted, again.head().Epoch, volatile)
				}
				req := statussync.SubscribeRequest{Cursor: c.Cursor()}
				sub, err := again.Subscribe(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				defer sub.Close()
				c.Resume(sub, req)
				again.checkTruth(c)
				for i := range 40 {
					again.change(serverID(i%20), 2000+i/20)
				}
				again.checkTruth(c)
				checkJournal(t, j)
			})
		})
	}
}

// TestStoreReplacedUnderneath: entries that were told are missing in the store when it is back.
func TestStoreReplacedUnderneath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{})
		r.define(3)
		c := r.subscribe(statussync.SubscribeRequest{Snapshot: true})
		for i := range 9 {
			r.change(serverID(i%3), i/3)
		}
		r.catchUp(c)
		// Somebody puts an older state in its place: the next append does not continue it.
		if err := r.j.Append(t.Context(), &statussync.Batch{Replace: statussync.Cursor{Epoch: r.head().Epoch, Seq: 2}}); err != nil {
			t.Fatal(err)
		}
		told := r.head().Epoch
		r.change(serverID(0), 100)
		r.settle()
		if r.head().Epoch == told {
			t.Error("the epoch went on")
		}
		r.change(serverID(0), 101)
		r.checkTruth(c)
		checkJournal(t, r.j)
	})
}

// TestRandomFaults plays random histories of updates, faults of the store, crashes, restarts and clients that come and
// go, and checks every promise that a client can check.
func TestRandomFaults(t *testing.T) {
	for seed := range uint64(25) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { randomFaults(t, rand.New(rand.NewPCG(7, seed))) })
		})
	}
}

func randomFaults(t *testing.T, rng *rand.Rand) {
	const servers = 12
	o := Options{RingSize: 24 + rng.IntN(200)}
	j := statussynctest.NewJournal()
	r := start(t, j, o)
	r.define(servers)
	type client struct {
		rec    *statussynctest.Recorder
		sub    statussync.Subscription
		filter statussync.Filter
	}
	var clients []*client
	join := func(c *client, req statussync.SubscribeRequest) {
		req.Filter = c.filter
		sub, err := r.Subscribe(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		c.sub = sub
		if c.rec == nil {
			c.rec = statussynctest.NewRecorder(sub, req)
		} else {
			c.rec.Resume(sub, req)
		}
	}
	filters := []statussync.Filter{
		{},
		{Clauses: []statussync.Clause{{ServerIDs: []string{serverID(1), serverID(2)}}}, Leave: true},
		{Clauses: []statussync.Clause{{Healths: []statussync.Health{statussync.HealthUnhealthy}}}, Leave: true},
	}
	for i := range 6 {
		c := &client{filter: filters[i%len(filters)]}
		join(c, statussync.SubscribeRequest{Snapshot: true})
		clients = append(clients, c)
	}
	var hanging []func(bool)
	release := func(succeed bool) {
		for _, f := range hanging {
			f(succeed)
		}
		hanging = nil
	}
	defer func() { release(false) }()
	turn := 0
	for range 120 {
		switch k := rng.IntN(20); k {
		case 0:
			r.j.Fail(errDisk)
		case 1:
			_, f := r.j.Hang()
			hanging = append(hanging, f)
		case 2:
			r.j.Slow(time.Duration(rng.IntN(3000)) * time.Millisecond)
		case 3:
			ok := rng.IntN(2) == 0
			r.j.Intercept(func(_ context.Context, _ *statussync.Batch, commit func() error) error {
				if ok {
					_ = commit()
				}
				return errDisk
			})
		case 4, 5, 6:
			release(rng.IntN(2) == 0)
			r.j.Intercept(nil)
		case 7: // crash, or stop
			if rng.IntN(2) == 0 {
				release(true)
				r.j.Intercept(nil)
				_ = r.stop()
				j = r.j.Reopen()
			} else {
				j = r.j.Reopen()
				release(rng.IntN(2) == 0) // too late: it can't commit any more
				_ = r.stop()
			}
			for _, c := range clients {
				c.sub.Close()
			}
			r = start(t, j, o)
			for _, c := range clients {
				join(c, statussync.SubscribeRequest{Cursor: c.rec.Cursor(), Snapshot: c.rec.Snapshots() == 0})
			}
		case 8: // a client comes back
			c := clients[rng.IntN(len(clients))]
			c.sub.Close()
			join(c, statussync.SubscribeRequest{Cursor: c.rec.Cursor(), Snapshot: c.rec.Snapshots() == 0})
		case 9, 10:
			time.Sleep(time.Duration(rng.IntN(5000)) * time.Millisecond)
		case 11, 12, 13:
			c := clients[rng.IntN(len(clients))]
			r.catchUp(c.rec)
		default:
			for range rng.IntN(30) {
				turn++
				if err := r.Observe(t.Context(), force(serverID(rng.IntN(servers)), turn)); err != nil {
					t.Fatal(err)
				}
			}
			if rng.IntN(2) == 0 {
				synctest.Wait()
			}
		}
	}
	release(true)
	r.j.Intercept(nil)
	r.settle()
	if _, err := r.Submit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, c := range clients {
		r.catchUp(c.rec)
		if err := c.rec.Check(r.all()); err != nil {
			t.Errorf("client %d: %v", i, err)
		}
		r.sameAsJournal(c.rec)
		c.sub.Close()
	}
	checkJournal(t, r.j)
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	again := start(t, r.j.Reopen(), o)
	for _, v := range r.all() {
		w, err := again.Server(v.Server.ID)
		if err != nil || w.Status.Version != v.Status.Version || !w.Status.Equal(&v.Status) {
			t.Errorf("after a clean restart %s is %s at version %d, was %s at %d (%v)", v.Server.ID, w.Status.State, w.Status.Version, v.Status.State, v.Status.Version, err)
		}
	}
}

// slowJournal takes half a millisecond for each record.
type slowJournal struct {
	*statussynctest.MemoryJournal
}

func (j slowJournal) Append(ctx context.Context, b *statussync.Batch) error {
	select {
	case <-time.After(time.Duration(len(b.Records)) * time.Millisecond / 2):
		return j.MemoryJournal.Append(ctx, b)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestStopStoresALargeFleet: the evidence of 5,000 servers, all of it new, is more than one append may take.
func TestStopStoresALargeFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 5000
		j := slowJournal{statussynctest.NewJournal()}
		h, err := New(Options{Journal: j, AppendTimeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.Run(ctx) }()
		<-h.Started()
		u := registry(n)
		for part := range slices.Chunk(u.Servers, 1000) {
			if _, err := h.Submit(ctx, &statussync.RegistryUpdate{Origin: u.Origin, Environments: u.Environments, Servers: part}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute) // all of that is stored
		for i := range n {
			if err := h.Observe(ctx, &statussync.ProbeResult{ServerID: serverID(i), Outcome: statussync.OutcomeFailure, Cause: "refused", StartedAt: time.Now(), FinishedAt: time.Now()}); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		stored := 0
		for r, err := range j.Records(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if r.Kind == statussync.RecordServer && bytes.Contains(r.Data, []byte("refused")) {
				stored++
			}
		}
		if stored != n {
			t.Errorf("the evidence of %d of %d servers is stored", stored, n)
		}
	})
}
