package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/statussynctest"
)

// collect calls Next until nothing more comes, and returns the events.
func collect(t *testing.T, sub statussync.Subscription, room int) []statussync.Event {
	t.Helper()
	var out []statussync.Event
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		evs, err := sub.Next(ctx, make([]statussync.Event, 0, room))
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				t.Fatal(err)
			}
			return out
		}
		out = append(out, evs...)
	}
}

// brief writes events as "subscribed! snapshot:500+ snapshot_end resync:epoch status:5 …".
func brief(evs []statussync.Event) string {
	s := ""
	for _, e := range evs {
		if s != "" {
			s += " "
		}
		s += string(e.Type)
		switch e.Type {
		case statussync.EventSubscribed:
			if e.Recovered {
				s += "+recovered"
			}
			if !e.Durable {
				s += "+volatile"
			}
			s += fmt.Sprintf("@%d", e.Cursor.Seq)
		case statussync.EventSnapshot:
			s += fmt.Sprintf(":%d", len(e.Items))
			if e.More {
				s += "+"
			}
		case statussync.EventSnapshotEnd:
			s += fmt.Sprintf("@%d", e.Cursor.Seq)
		case statussync.EventResync:
			s += ":" + string(e.Reason)
		case statussync.EventEntry:
			s += fmt.Sprintf(":%d", e.Cursor.Seq)
		}
	}
	return s
}

func TestSubscribeStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{RingSize: 8})
		r.define(2) // added and concluded: entries 1 to 4, in whatever order
		ep := r.head().Epoch
		for i := uint64(r.head().Seq); i < 20; i++ {
			r.change(serverID(0), int(i))
		}
		at := func(seq uint64) statussync.Cursor { return statussync.Cursor{Epoch: ep, Seq: seq} }
		if r.head() != at(20) {
			t.Fatalf("head is %v", r.head())
		}
		r.j.Expire(6)
		one := statussync.Filter{Clauses: []statussync.Clause{{ServerIDs: []string{serverID(1)}}}}
		none := statussync.Filter{Clauses: []statussync.Clause{{ServerIDs: []string{}}}}
		for name, c := range map[string]struct {
			req  statussync.SubscribeRequest
			want string
		}{
			"from now":           {statussync.SubscribeRequest{}, "subscribed@20"},
			"snapshot":           {statussync.SubscribeRequest{Snapshot: true}, "subscribed@20 snapshot:2 snapshot_end@20"},
			"snapshot of one":    {statussync.SubscribeRequest{Snapshot: true, Filter: one}, "subscribed@20 snapshot:1 snapshot_end@20"},
			"snapshot of none":   {statussync.SubscribeRequest{Snapshot: true, Filter: none}, "subscribed@20 snapshot:0 snapshot_end@20"},
			"at the head":        {statussync.SubscribeRequest{Cursor: at(20)}, "subscribed+recovered@20"},
			"in the ring":        {statussync.SubscribeRequest{Cursor: at(17)}, "subscribed+recovered@17 entry:18 entry:19 entry:20"},
			"at the ring's base": {statussync.SubscribeRequest{Cursor: at(12)}, "subscribed+recovered@12 entry:13 entry:14 entry:15 entry:16 entry:17 entry:18 entry:19 entry:20"},
			"in the store":       {statussync.SubscribeRequest{Cursor: at(9)}, "subscribed+recovered@9 entry:10 entry:11 entry:12 entry:13 entry:14 entry:15 entry:16 entry:17 entry:18 entry:19 entry:20"},
			"oldest in the store": {statussync.SubscribeRequest{Cursor: at(6), Filter: statussync.Filter{Clauses: []statussync.Clause{{Kinds: []statussync.Kind{statussync.KindSelfDoubt}}}}},
				"subscribed+recovered@6"},
			"for another server":  {statussync.SubscribeRequest{Cursor: at(9), Filter: one}, "subscribed+recovered@9"},
			"expired":             {statussync.SubscribeRequest{Cursor: at(5)}, "subscribed@20 resync:expired snapshot:2 snapshot_end@20"},
			"expired, one server": {statussync.SubscribeRequest{Cursor: at(5), Filter: one}, "subscribed@20 resync:expired snapshot:1 snapshot_end@20"},
			"beyond the head":     {statussync.SubscribeRequest{Cursor: at(21)}, "subscribed@20 resync:expired snapshot:2 snapshot_end@20"},
			"another epoch":       {statussync.SubscribeRequest{Cursor: statussync.Cursor{Epoch: "e9zz", Seq: 20}}, "subscribed@20 resync:epoch snapshot:2 snapshot_end@20"},
			"cursor and snapshot": {statussync.SubscribeRequest{Cursor: at(17), Snapshot: true}, "subscribed@20 snapshot:2 snapshot_end@20"},
		} {
			for _, room := range []int{1, 2, 64} {
				sub, err := r.Subscribe(t.Context(), c.req)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if got := brief(collect(t, sub, room)); got != c.want {
					t.Errorf("%s, room for %d:\n got %s\nwant %s", name, room, got, c.want)
				}
				if at, ok := sub.Bookmark(); !ok || at != r.head() {
					t.Errorf("%s: bookmark %v, %v", name, at, ok)
				}
				sub.Close()
				sub.Close()
				_, err = sub.Next(t.Context(), make([]statussync.Event, 0, 1))
				wantCode(t, err, statussync.CodeUnavailable)
			}
		}
		if n := r.SyncMetrics().Subscriptions; n != 0 {
			t.Errorf("%d subscriptions are left", n)
		}
	})
}

func TestSubscribeRefuses(t *testing.T) {
	r := start(t, nil, Options{MaxSubscriptions: 2})
	for _, req := range []statussync.SubscribeRequest{
		{Mode: statussync.ModeLatest, Filter: statussync.Filter{Clauses: []statussync.Clause{{States: []statussync.State{"error"}}, {Type: statussync.FilterRecovery}}}},
		{Mode: "sometimes"},
		{Filter: statussync.Filter{Clauses: []statussync.Clause{{States: []statussync.State{"asleep"}}}}},
	} {
		_, err := r.Subscribe(t.Context(), req)
		wantCode(t, err, statussync.CodeInvalid)
	}
	first, err := r.Subscribe(t.Context(), statussync.SubscribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	r.subscribe(statussync.SubscribeRequest{Mode: statussync.ModeEvery})
	_, err = r.Subscribe(t.Context(), statussync.SubscribeRequest{})
	wantCode(t, err, statussync.CodeUnavailable)
	if _, err := first.Next(t.Context(), nil); statussync.CodeOf(err) != statussync.CodeInvalid {
		t.Errorf("Next without room: %v", err)
	}
	first.Close()
	if sub, err := r.Subscribe(t.Context(), statussync.SubscribeRequest{}); err != nil {
		t.Error(err)
	} else {
		sub.Close()
	}
	// A hub that has not started lets subscribers wait.
	h, err := New(Options{Journal: statussynctest.NewJournal()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := h.Subscribe(ctx, statussync.SubscribeRequest{}); err != context.DeadlineExceeded {
		t.Error(err)
	}
	if d := h.Ready().Detail; d == "" {
		t.Error("ready before it has started")
	}
}

func TestSnapshotPages(t *testing.T) {
	r := start(t, nil, Options{})
	r.define(1201)
	sub, err := r.Subscribe(t.Context(), statussync.SubscribeRequest{Snapshot: true})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	var all []statussync.Event
	for range 3 {
		evs, err := sub.Next(t.Context(), make([]statussync.Event, 0, 64))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := sub.Bookmark(); ok && len(all) == 0 {
			t.Error("a bookmark inside a snapshot")
		}
		all = append(all, evs...)
		r.change(serverID(7), len(all)) // changes what was already taken
	}
	if got, want := brief(all), fmt.Sprintf("subscribed@%[1]d snapshot:500+ snapshot:500+ snapshot:201 snapshot_end@%[1]d entry:%[2]d entry:%[3]d",
		all[0].Cursor.Seq, all[0].Cursor.Seq+1, all[0].Cursor.Seq+2); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestSnapshotBytes: a page of a snapshot is bounded by its size, too, so that neither a client's limit nor our memory
// is at the mercy of how large definitions are.
func TestSnapshotBytes(t *testing.T) {
	r := start(t, nil, Options{})
	u := registry(40)
	text := strings.Repeat("x", 200)
	for i := range u.Servers {
		s := &u.Servers[i]
		if i == 30 { // larger than a page, alone
			s.Capabilities = map[string]any{"all": []any{strings.Repeat(text, 2000)}}
			continue
		}
		s.Labels = map[string]string{}
		for n := range 100 {
			s.Labels[fmt.Sprintf("%d-%s", n, text)] = text
		}
	}
	if _, err := r.Submit(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	sub, err := r.Subscribe(t.Context(), statussync.SubscribeRequest{Snapshot: true})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	seen, pages := map[string]bool{}, 0
	for ended := false; !ended; {
		evs, err := sub.Next(t.Context(), make([]statussync.Event, 0, 8))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range evs {
			ended = ended || e.Type == statussync.EventSnapshotEnd
			if e.Type != statussync.EventSnapshot {
				continue
			}
			pages++
			size, last := 0, 0
			for _, it := range e.Items {
				seen[it.Server.ID] = true
				b, err := json.Marshal(it.Server)
				if err != nil {
					t.Fatal(err)
				}
				size, last = size+len(b), len(b)
			}
			if size-last > 256<<10 {
				t.Errorf("page %d has %d servers of %d bytes", pages, len(e.Items), size)
			}
		}
	}
	if len(seen) != 40 || pages < 5 {
		t.Errorf("%d servers in %d pages", len(seen), pages)
	}
}

// TestHandOver is the promise of docs/protocols.md §2: clients of every sort subscribe, read slowly or fast, leave and come back
// while updates pour in; the ring is small, so that many are fed from the store. Each ends with exactly the truth and
// none sees a gap or a repeat.
func TestHandOver(t *testing.T) {
	const servers, clients, updates = 40, 90, 1500
	r := start(t, nil, Options{RingSize: 32})
	r.define(servers)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	var pouring sync.WaitGroup
	done := make(chan struct{})
	pouring.Go(func() {
		defer close(done)
		for i := range updates {
			if err := r.Observe(ctx, force(serverID(i*7%servers), i/servers)); err != nil {
				t.Error(err)
				return
			}
			if i%16 == 0 { // many batches, not one
				if _, err := r.Submit(ctx); err != nil {
					t.Error(err)
				}
			}
			if i%997 == 0 { // servers go and come
				id := serverID(i % servers)
				u := registry(servers)
				for _, s := range u.Servers {
					if s.ID == id {
						_, err := r.Submit(ctx, &statussync.RegistryUpdate{Origin: statussync.OriginConfig, RemovedServers: []string{id}})
						if err == nil {
							_, err = r.Submit(ctx, &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Servers: []statussync.Server{s}})
						}
						if err != nil {
							t.Error(err)
						}
					}
				}
			}
		}
	})
	filters := []statussync.Filter{
		{}, {},
		{Clauses: []statussync.Clause{{Healths: []statussync.Health{statussync.HealthUnhealthy}}}, Leave: true},
		{Clauses: []statussync.Clause{{ServerIDs: []string{serverID(3)}}}, Leave: true},
		{Clauses: []statussync.Clause{{EnvironmentIDs: []string{"box-1", "box-2"}, States: []statussync.State{statussync.StateRunning}}}, Leave: true},
		{Clauses: []statussync.Clause{{Labels: map[string]string{"team": "t1"}, States: []statussync.State{statussync.StateStopped}}, {ServerIDs: []string{serverID(1), serverID(2)}}}, Leave: true},
	}
	var readers sync.WaitGroup
	recorders := make([]*statussynctest.Recorder, clients)
	for c := range clients {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(c)))
			req := statussync.SubscribeRequest{Snapshot: true, Filter: filters[c%len(filters)]}
			sub, err := r.Subscribe(ctx, req)
			if err != nil {
				t.Error(err)
				return
			}
			rec := statussynctest.NewRecorder(sub, req)
			recorders[c] = rec
			for steps := rng.IntN(40); ; steps-- {
				select {
				case <-done:
					pouring.Wait()
					if _, err := r.Submit(ctx); err != nil { // the last ones are published
						t.Error(err)
					}
					at := r.head()
					if err := rec.RunUntil(ctx, at); err != nil {
						t.Errorf("client %d: %v", c, err)
					}
					sub.Close()
					return
				default:
				}
				if steps < 0 && rec.Snapshots() > 0 {
					// Lost its connection: it comes back with its cursor, after others have gone on.
					sub.Close()
					for away := uint64(rng.IntN(100)); r.head().Seq < rec.Cursor().Seq+away; {
						if _, err := r.Submit(ctx); err != nil { // lets a batch pass
							t.Error(err)
							return
						}
						select {
						case <-done:
							away = 0
						default:
						}
					}
					req = statussync.SubscribeRequest{Cursor: rec.Cursor(), Filter: req.Filter}
					if sub, err = r.Subscribe(ctx, req); err != nil {
						t.Error(err)
						return
					}
					rec.Resume(sub, req)
					steps = rng.IntN(200)
				}
				step, stop := context.WithTimeout(ctx, 20*time.Millisecond)
				err := rec.Step(step)
				stop()
				if err != nil && step.Err() == nil {
					t.Errorf("client %d: %v", c, err)
					return
				}
			}
		})
	}
	readers.Wait()
	pouring.Wait()
	truth := r.all()
	for c, rec := range recorders {
		if rec == nil {
			continue
		}
		if err := rec.Check(truth); err != nil {
			t.Errorf("client %d: %v", c, err)
		}
		if n := len(rec.Resyncs()); n > 0 {
			t.Errorf("client %d had to resync %d times, though nothing expired", c, n)
		}
	}
	s := r.Stats()
	t.Logf("%d entries in %d appends, %d pages read from the store, %d evicted", s.Entries, s.Batches, s.StoreReads, s.Evictions)
	if s.StoreReads == 0 {
		t.Error("nobody was fed from the store")
	}
	checkJournal(t, r.j)
}

// TestSlowSubscriber: subscribers that never read, or read one event at a time, hold nobody up, keep no queue, and lose
// nothing.
func TestSlowSubscriber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{RingSize: 64})
		r.define(5)
		var slow []statussync.Subscription
		var slowRec []*statussynctest.Recorder
		for range 20 {
			req := statussync.SubscribeRequest{Snapshot: true}
			sub, err := r.Subscribe(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			defer sub.Close()
			slow = append(slow, sub)
			rec := statussynctest.NewRecorder(sub, req)
			for rec.Snapshots() == 0 {
				if err := rec.Step(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			slowRec = append(slowRec, rec)
		}
		fast := r.subscribe(statussync.SubscribeRequest{Snapshot: true})
		r.catchUp(fast)
		begun := time.Now()
		for i := range 1000 {
			r.change(serverID(i%5), i/5)
			r.catchUp(fast)
		}
		if d := time.Since(begun); d > 0 {
			t.Errorf("1000 updates took %v beside subscribers that do not read", d)
		}
		if err := fast.Check(r.all()); err != nil || fast.Received() != 1000 {
			t.Errorf("the fast one got %d: %v", fast.Received(), err)
		}
		for i, rec := range slowRec {
			if _, ok := slow[i].Bookmark(); ok {
				t.Error("a bookmark past what was not read")
			}
			r.checkTruth(rec)
			if rec.Received() != 1000 {
				t.Errorf("a slow one got %d of 1000", rec.Received())
			}
		}
	})
}

// TestFilteredAdvance: a subscription whose filter passes over everything stays at the head without being fed from the
// store, and its bookmark says so.
func TestFilteredAdvance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{RingSize: 16})
		r.define(3)
		idle := statussync.SubscribeRequest{Filter: statussync.Filter{Clauses: []statussync.Clause{{ServerIDs: []string{serverID(2), "not yet"}}}}}
		sub, err := r.Subscribe(t.Context(), idle)
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Close()
		rec := statussynctest.NewRecorder(sub, idle)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- rec.Run(ctx) }()
		for i := range 1000 {
			r.change(serverID(0), i)
		}
		synctest.Wait()
		if n := r.Stats().StoreReads; n > 0 {
			t.Errorf("%d reads of the store for a subscriber that nothing was for", n)
		}
		e := r.change(serverID(2), 0)
		synctest.Wait()
		if rec.Received() != 1 || rec.Cursor() != e.Cursor() {
			t.Errorf("got %d entries, at %v; want the one at %v", rec.Received(), rec.Cursor(), e.Cursor())
		}
		for i := range 100 {
			r.change(serverID(1), i)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if at, ok := sub.Bookmark(); !ok || at != r.head() {
			t.Errorf("bookmark %v, %v; head %v", at, ok, r.head())
		}
		r.change(serverID(2), 1)
		if _, ok := sub.Bookmark(); ok {
			t.Error("a bookmark, while something that matches is waiting")
		}
		if n := r.Stats().StoreReads; n > 0 {
			t.Errorf("%d reads of the store", n)
		}
		if p := rec.Problems(); len(p) > 0 {
			t.Error(p)
		}
	})
}

// TestOnlyTheConcernedWake: an update wakes those that are restricted to its server and those that are not restricted,
// nobody else.
func TestOnlyTheConcernedWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{})
		r.define(10)
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for i := range 10 {
			for range 3 {
				req := statussync.SubscribeRequest{Filter: statussync.Filter{Clauses: []statussync.Clause{{ServerIDs: []string{serverID(i)}}}}}
				rec := r.subscribe(req)
				all.Go(func() { _ = rec.Run(ctx) })
			}
		}
		for range 2 {
			rec := r.subscribe(statussync.SubscribeRequest{})
			all.Go(func() { _ = rec.Run(ctx) })
		}
		synctest.Wait()
		waiting := func() (indexed, others int) {
			r.reader.mu.Lock()
			defer r.reader.mu.Unlock()
			for s := range r.reader.subs {
				if s.indexed && s.waiting {
					indexed++
				}
			}
			return indexed, len(r.reader.waiters)
		}
		if i, o := waiting(); i != 30 || o != 2 {
			t.Fatalf("%d and %d wait", i, o)
		}
		// What apply wakes is what it takes out of waiting.
		r.reader.apply(&published{
			epoch: r.head().Epoch, durable: true, stored: r.head().Seq,
			entries: []statussync.Encoded{{Entry: &statussync.Entry{Kind: statussync.KindToolDrift, Seq: r.head().Seq + 1, ServerID: serverID(4)}}},
		})
		if i, o := waiting(); i != 27 || o != 0 {
			t.Errorf("right after an entry of one server %d and %d wait, want 27 and 0", i, o)
		}
		synctest.Wait()
		if i, o := waiting(); i != 30 || o != 2 {
			t.Errorf("afterwards %d and %d wait", i, o)
		}
		cancel()
		all.Wait()
		if i, o := waiting(); i != 0 || o != 0 {
			t.Errorf("%d and %d wait after their contexts have ended", i, o)
		}
	})
}

// TestStoreReadFails: a subscriber behind the ring whose position can't be read resyncs, and knows the truth.
func TestStoreReadFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{RingSize: 8})
		r.define(3)
		req := statussync.SubscribeRequest{Snapshot: true}
		c := r.subscribe(req)
		r.catchUp(c)
		for i := range 60 {
			r.change(serverID(i%3), i/3)
		}
		r.j.FailReads(func(context.Context) error { return errDisk })
		r.checkTruth(c)
		if got := c.Resyncs(); len(got) != 1 || got[0] != statussync.ResyncExpired {
			t.Errorf("resyncs: %v", got)
		}
		_, _, err := r.Updates(t.Context(), statussync.Cursor{Epoch: r.head().Epoch, Seq: 1}, 10, nil)
		wantCode(t, err, statussync.CodeUnavailable)
		_, err = r.History(t.Context(), statussync.HistoryQuery{ServerID: serverID(0), Limit: 10})
		wantCode(t, err, statussync.CodeUnavailable)
		// A store that hangs holds up only who asks.
		r.j.FailReads(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := r.Updates(ctx, statussync.Cursor{Epoch: r.head().Epoch, Seq: 1}, 10, nil); err != context.DeadlineExceeded {
			t.Error(err)
		}
		r.change(serverID(0), 100)
		r.j.FailReads(nil)
	})
}

// TestReplayStopsAtTheHead: what is in the store, but not published, is told to nobody: its append may be given up.
func TestReplayStopsAtTheHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{RingSize: 4, AppendTimeout: time.Second})
		r.define(2)
		for i := range 20 {
			r.change(serverID(0), i)
		}
		told := r.head()
		stored := make(chan struct{})
		r.j.Intercept(func(_ context.Context, _ *statussync.Batch, commit func() error) error {
			_ = commit()
			close(stored)
			r.j.Intercept(nil)
			time.Sleep(500 * time.Millisecond)
			return errDisk // it is there, and says that it is not
		})
		if err := r.Observe(t.Context(), force(serverID(1), 0)); err != nil {
			t.Fatal(err)
		}
		<-stored
		from := statussync.Cursor{Epoch: told.Epoch, Seq: 1}
		c := r.subscribe(statussync.SubscribeRequest{Cursor: from})
		step, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
		for c.Step(step) == nil {
		}
		stop()
		if c.Cursor() != told {
			t.Errorf("a subscriber was told up to %v; published was %v", c.Cursor(), told)
		}
		if items, next, err := r.Updates(t.Context(), from, 1000, nil); err != nil || next != told || items[len(items)-1].Seq > told.Seq {
			t.Errorf("Updates went up to %v, %v; published was %v", next, err, told)
		}
		if h, err := r.History(t.Context(), statussync.HistoryQuery{ServerID: serverID(1), Limit: 1}); err != nil || h[0].Seq > told.Seq {
			t.Errorf("History shows %v, %v; published was %v", h[0].Cursor(), err, told)
		}
		r.settle()
		r.catchUp(c)
		if p := c.Problems(); len(p) > 0 {
			t.Error(p)
		}
		r.sameAsJournal(c)
	})
}
