package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/statussynctest"
)

var errNothing = errors.New("nothing to tell now")

// narrow is a subscription whose Next never waits and has room for only so many.
type narrow struct {
	*subscription
	room int
}

func (n *narrow) Next(ctx context.Context, buf []statussync.Event) ([]statussync.Event, error) {
	start := len(buf)
	buf = buf[:start:min(cap(buf), start+n.room)]
	if !n.begun {
		if err := n.begin(ctx); err != nil {
			return buf, err
		}
		n.begun = true
	}
	for {
		var wait bool
		var err error
		buf, wait, err = n.fill(ctx, buf, start)
		if len(buf) > start || err != nil {
			return buf, err
		}
		if wait {
			n.stopWaiting()
			return buf, errNothing
		}
	}
}

// world is a fleet whose truth is known, and a reader that is told of it, without the rest of a hub.
type world struct {
	t interface {
		Fatalf(string, ...any)
		Helper()
	}
	j       *statussynctest.MemoryJournal
	r       *reader
	ring    int
	epoch   statussync.Epoch
	seq     uint64
	epochs  int
	servers []fleetServer
	batch   published
}

type fleetServer struct {
	server  *statussync.Server
	present bool
	status  statussync.Status
}

func newWorld(t interface {
	Fatalf(string, ...any)
	Helper()
}, servers, ring int) *world {
	w := &world{t: t, j: statussynctest.NewJournal(), ring: ring, epoch: "e1a"}
	for i := range servers {
		w.servers = append(w.servers, fleetServer{server: &statussync.Server{
			ID: serverID(i), EnvironmentID: fmt.Sprintf("box-%d", i%3), Labels: map[string]string{"team": fmt.Sprintf("t%d", i%2)},
		}})
	}
	w.restart()
	return w
}

// restart makes a new reader on what the journal holds.
func (w *world) restart() {
	w.r = newReader(w.j, w.ring, 100, time.Now, slog.New(slog.NewTextHandler(io.Discard, nil)))
	w.r.seed(statussync.Cursor{Epoch: w.epoch, Seq: w.seq})
	w.batch = published{}
	for i := range w.servers {
		if w.servers[i].present {
			w.changed(i)
		}
	}
	w.publish()
}

func (w *world) changed(i int) {
	f := &w.servers[i]
	u := serverUpdate{id: f.server.ID}
	if f.present {
		u.state = &serverState{server: f.server, status: f.status}
	}
	w.batch.servers = append(w.batch.servers, u)
}

func (w *world) entry(i int, e statussync.Entry) {
	f := &w.servers[i]
	w.seq++
	e.Seq, e.Epoch, e.ServerID, e.EnvironmentID, e.Labels = w.seq, w.epoch, f.server.ID, f.server.EnvironmentID, f.server.Labels
	e.Timestamp, e.Source = time.UnixMilli(int64(w.seq)), statussync.SourceSystem
	w.batch.entries = append(w.batch.entries, statussync.Encoded{Entry: &e, JSON: e.AppendJSON(nil)})
}

// set makes a status of a server, which is added where it is not there.
func (w *world) set(i int, st statussync.State, h statussync.Health) {
	f := &w.servers[i]
	prev := f.status
	if !f.present {
		f.present = true
		prev = statussync.Status{State: statussync.StateUnknown, Health: statussync.HealthUnknown, Reason: statussync.ReasonNeverSeen}
		w.entry(i, statussync.Entry{Kind: statussync.KindServerAdded})
	}
	f.status = statussync.Status{State: st, Health: h, Reason: statussync.ReasonOK, Version: f.status.Version + 1}
	cur := f.status
	w.entry(i, statussync.Entry{Kind: statussync.KindStatus, Version: cur.Version, Previous: &prev, Current: &cur})
	w.changed(i)
}

func (w *world) remove(i int) {
	f := &w.servers[i]
	if !f.present {
		return
	}
	prev := f.status
	f.present = false
	f.status.Version++
	w.entry(i, statussync.Entry{Kind: statussync.KindServerRemoved, Version: f.status.Version, Previous: &prev})
	w.changed(i)
}

func (w *world) publish() {
	w.t.Helper()
	b := w.batch
	w.batch = published{}
	if len(b.entries) > 0 {
		if err := w.j.Append(context.Background(), &statussync.Batch{Entries: b.entries}); err != nil {
			w.t.Fatalf("append: %v", err)
		}
	}
	b.epoch, b.base, b.stored, b.durable = w.epoch, w.seq-uint64(len(b.entries)), w.seq, true
	w.r.apply(&b)
}

// newEpoch begins one, with the next batch.
func (w *world) newEpoch() {
	w.epochs++
	w.epoch = statussync.Epoch(fmt.Sprintf("e%db", w.epochs+1))
}

func (w *world) truth() (out []statussync.ServerView) {
	for _, f := range w.servers {
		if f.present {
			out = append(out, statussync.ServerView{Server: f.server, Status: f.status})
		}
	}
	return out
}

func (w *world) subscribe(req statussync.SubscribeRequest, room int) *narrow {
	w.t.Helper()
	req.Mode = statussync.ModeLatest
	f := req.Filter
	f.Leave = true
	m, err := f.Compile()
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	s, err := w.r.subscribe(m, req)
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	return &narrow{s, room}
}

func drawFilter(t *rapid.T) statussync.Filter {
	var f statussync.Filter
	for range rapid.IntRange(0, 2).Draw(t, "clauses") {
		var c statussync.Clause
		if rapid.Bool().Draw(t, "by health") {
			c.Healths = rapid.SliceOfNDistinct(rapid.SampledFrom(statussync.Healths), 1, 2, rapid.ID[statussync.Health]).Draw(t, "healths")
		}
		if rapid.Bool().Draw(t, "by state") {
			c.States = rapid.SliceOfNDistinct(rapid.SampledFrom(statussync.States), 1, 3, rapid.ID[statussync.State]).Draw(t, "states")
		}
		switch rapid.IntRange(0, 5).Draw(t, "scope") {
		case 0:
			c.ServerIDs = []string{serverID(0), serverID(2), "none"}
		case 1:
			c.EnvironmentIDs = []string{"box-1"}
		case 2:
			c.Labels = map[string]string{"team": "t1"}
		case 3:
			c.Kinds = []statussync.Kind{statussync.KindStatus, statussync.KindServerRemoved, statussync.KindServerAdded}
		}
		f.Clauses = append(f.Clauses, c)
	}
	return f
}

// TestLatestEndsWithTheTruth: whatever happens, at whatever speed a subscriber in mode latest reads, with whatever
// filter, with reconnects, restarts and new epochs in between: in the end it believes what the view says, and it was
// never told an entry twice by one subscription, nor an older one of a server after a newer one.
func TestLatestEndsWithTheTruth(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt, rapid.IntRange(1, 12).Draw(rt, "servers"), rapid.IntRange(2, 80).Draw(rt, "ring"))
		type client struct {
			*statussynctest.Recorder
			sub *narrow
			req statussync.SubscribeRequest
		}
		var clients []*client
		for range rapid.IntRange(1, 3).Draw(rt, "clients") {
			c := &client{req: statussync.SubscribeRequest{Filter: drawFilter(rt), Snapshot: true, Mode: statussync.ModeLatest}}
			c.sub = w.subscribe(c.req, rapid.IntRange(1, 5).Draw(rt, "room"))
			c.Recorder = statussynctest.NewRecorder(c.sub, c.req)
			clients = append(clients, c)
		}
		read := func(c *client) bool {
			err := c.Step(context.Background())
			if err != nil && err != errNothing {
				rt.Fatalf("%v", err)
			}
			return err == nil
		}
		resume := func(c *client) {
			c.sub.Close()
			if c.Snapshots() > 0 {
				c.req.Snapshot, c.req.Cursor = false, c.Cursor()
			}
			c.sub = w.subscribe(c.req, c.sub.room)
			c.Resume(c.sub, c.req)
		}
		server := rapid.IntRange(0, len(w.servers)-1)
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			switch k := rapid.IntRange(0, 30).Draw(rt, "step"); {
			case k < 14:
				for range rapid.IntRange(1, 6).Draw(rt, "entries") {
					i := server.Draw(rt, "server")
					if rapid.IntRange(0, 7).Draw(rt, "remove") == 0 {
						w.remove(i)
					} else {
						w.set(i, rapid.SampledFrom(statussync.States[:3]).Draw(rt, "state"), rapid.SampledFrom(statussync.Healths[:3]).Draw(rt, "health"))
					}
				}
				w.publish()
			case k < 26:
				c := rapid.SampledFrom(clients).Draw(rt, "client")
				for range rapid.IntRange(1, 4).Draw(rt, "reads") {
					read(c)
				}
			case k < 28:
				resume(rapid.SampledFrom(clients).Draw(rt, "client"))
			case k < 29:
				if rapid.Bool().Draw(rt, "mark") {
					clients[0].sub.Bookmark()
				}
			case k < 30:
				w.newEpoch()
				w.set(server.Draw(rt, "server"), statussync.StateStopped, statussync.HealthUnknown)
				w.publish()
			default:
				w.restart()
				for _, c := range clients {
					resume(c)
				}
			}
		}
		for i, c := range clients {
			for read(c) {
			}
			if at, ok := c.sub.Bookmark(); !ok || at != (statussync.Cursor{Epoch: w.epoch, Seq: w.seq}) {
				rt.Errorf("client %d: bookmark %v, %v; the head is %d", i, at, ok, w.seq)
			}
			if err := c.Check(w.truth()); err != nil {
				rt.Errorf("client %d, filter %+v: %v", i, c.req.Filter, err)
			}
		}
	})
}

// latestOf is a subscription in mode latest to a world whose first servers are running.
func latestOf(t *testing.T, w *world, f statussync.Filter, room int) *narrow {
	t.Helper()
	for i := range w.servers {
		w.set(i, statussync.StateRunning, statussync.HealthHealthy)
	}
	w.publish()
	s := w.subscribe(statussync.SubscribeRequest{Filter: f}, room)
	if evs := s.all(t); brief(evs) != fmt.Sprintf("subscribed@%d", w.seq) {
		t.Fatalf("it begins with %s", brief(evs))
	}
	return s
}

func (n *narrow) some(t *testing.T) []statussync.Event {
	t.Helper()
	evs, err := n.Next(context.Background(), make([]statussync.Event, 0, 64))
	if err != nil && err != errNothing {
		t.Fatal(err)
	}
	return evs
}

func (n *narrow) all(t *testing.T) (out []statussync.Event) {
	t.Helper()
	for evs := n.some(t); len(evs) > 0; evs = n.some(t) {
		out = append(out, evs...)
	}
	return out
}

// told writes entries as "kind id seq@cursor".
func told(evs []statussync.Event) (out string) {
	for _, e := range evs {
		if e.Type != statussync.EventEntry {
			out += string(e.Type) + " "
			continue
		}
		out += fmt.Sprintf("%s %s %d@%d, ", e.Entry.Kind, e.Entry.ServerID, e.Entry.Seq, e.Cursor.Seq)
	}
	return out
}

func TestLatestMerges(t *testing.T) {
	const (
		running, failed = statussync.StateRunning, statussync.StateError
		healthy, sick   = statussync.HealthHealthy, statussync.HealthUnhealthy
	)
	sickOnly := statussync.Filter{Clauses: []statussync.Clause{{Healths: []statussync.Health{sick}}}}
	for name, c := range map[string]struct {
		filter statussync.Filter
		room   int
		do     func(w *world) // the head is 6 before it
		want   string
	}{
		"nothing":                      {statussync.Filter{}, 8, func(*world) {}, ""},
		"the newest of each, in order": {statussync.Filter{}, 8, func(w *world) { w.set(0, failed, sick); w.set(1, failed, sick); w.set(0, running, healthy) }, "status s001 8@6, status s000 9@9, "},
		"cursors move within a round":  {statussync.Filter{}, 1, func(w *world) { w.set(0, failed, sick); w.set(1, failed, sick); w.set(2, failed, sick) }, "status s000 7@7, status s001 8@8, status s002 9@9, "},
		"or wait for its end":          {sickOnly, 1, func(w *world) { w.set(0, failed, sick); w.set(1, failed, sick); w.set(2, failed, sick) }, "status s000 7@6, status s001 8@6, status s002 9@9, "},
		"removed":                      {statussync.Filter{}, 8, func(w *world) { w.set(0, failed, sick); w.remove(0) }, "server_removed s000 8@8, "},
		"removed and added":            {statussync.Filter{}, 8, func(w *world) { w.remove(0); w.set(0, failed, sick) }, "status s000 9@9, "},
		"passed through the selection": {sickOnly, 8, func(w *world) {
			w.set(0, failed, sick)
			w.set(0, running, healthy)
			w.set(0, running, statussync.HealthDegraded)
		}, "status s000 9@9, "},
		"never in the selection":             {sickOnly, 8, func(w *world) { w.set(0, running, statussync.HealthDegraded) }, ""},
		"removed after it had been selected": {sickOnly, 8, func(w *world) { w.set(0, failed, sick); w.set(0, running, healthy); w.remove(0) }, "server_removed s000 9@9, "},
		"another kind, of each server": {statussync.Filter{Clauses: []statussync.Clause{{Kinds: []statussync.Kind{statussync.KindServerChanged}}}}, 8, func(w *world) {
			w.entry(0, statussync.Entry{Kind: statussync.KindServerChanged})
			w.entry(1, statussync.Entry{Kind: statussync.KindServerChanged})
			w.entry(0, statussync.Entry{Kind: statussync.KindServerChanged})
			w.entry(2, statussync.Entry{Kind: statussync.KindServerChanged})
			w.remove(2)
		}, "server_changed s001 8@6, server_changed s000 9@11, "},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3, 2)
			s := latestOf(t, w, c.filter, c.room)
			c.do(w)
			w.publish()
			if got := told(s.all(t)); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if got := told(s.all(t)); got != "" {
				t.Errorf("again: %s", got)
			}
			if at, ok := s.Bookmark(); !ok || at.Seq != w.seq {
				t.Errorf("bookmark %v, %v", at, ok)
			}
			if n := w.r.storeReads.Load(); n != 0 {
				t.Errorf("%d reads of the store", n)
			}
		})
	}
}

// TestLatestStarvesNobody: a server that changes between any two reads is told once a round like the others, and as it
// is when it is told.
func TestLatestStarvesNobody(t *testing.T) {
	const servers = 20
	w := newWorld(t, servers, 4)
	s := latestOf(t, w, statussync.Filter{}, 1)
	rnd := rand.New(rand.NewPCG(1, 2))
	last := make([]int, servers)
	for step := 1; step <= 400; step++ {
		for range 20 {
			w.set(1+rnd.IntN(servers-1), statussync.States[rnd.IntN(3)], statussync.HealthUnhealthy)
			w.set(0, statussync.States[step%3], statussync.HealthUnhealthy)
		}
		w.publish()
		evs := s.some(t)
		if len(evs) != 1 {
			t.Fatalf("step %d: %s", step, told(evs))
		}
		for i := range servers {
			if serverID(i) == evs[0].Entry.ServerID {
				if got := evs[0].Entry.Version; got != w.servers[i].status.Version {
					t.Fatalf("step %d: %s was told with version %d, it has %d", step, serverID(i), got, w.servers[i].status.Version)
				}
				last[i] = step
			}
			if step-last[i] > 2*servers {
				t.Fatalf("step %d: %s was last told in step %d", step, serverID(i), last[i])
			}
		}
	}
}

// TestNewestIsBounded: neither updates nor servers that come and go make the memory of mode latest grow.
func TestNewestIsBounded(t *testing.T) {
	w := newWorld(t, 50, 64)
	s := latestOf(t, w, statussync.Filter{}, 8)
	for i := range 20_000 {
		w.set(i%50, statussync.States[i%3], statussync.HealthUnhealthy)
		w.publish()
	}
	n := &w.r.news
	if len(n.topics) != 100 || len(n.log) > 300 || cap(n.log) > 1000 {
		t.Errorf("%d topics, a log of %d (room for %d)", len(n.topics), len(n.log), cap(n.log))
	}
	s.some(t)
	if k := len(s.round.todo) + len(s.round.early); k > 100 {
		t.Errorf("a subscription holds %d", k)
	}
	for i := 50; i < 50+4*minGone; i++ {
		w.servers = append(w.servers, fleetServer{server: &statussync.Server{ID: fmt.Sprintf("x%d", i)}})
		w.set(i, statussync.StateRunning, statussync.HealthHealthy)
		w.remove(i)
		w.publish()
	}
	if len(n.topics) > 100+minGone || n.gone > minGone || n.live != 50 || len(w.r.byID) != 50 {
		t.Errorf("%d topics, %d live, %d gone", len(n.topics), n.live, n.gone)
	}
	if got := brief(s.all(t)); got != fmt.Sprintf("resync:expired snapshot:50 snapshot_end@%d", w.seq) {
		t.Errorf("who was before all that is told %s", got)
	}
}

// TestLatestResumes: after a restart, one reader of the store makes the memory reach back for everybody.
func TestLatestResumes(t *testing.T) {
	w := newWorld(t, 3, 64)
	for i := range 30 {
		w.set(i%3, statussync.States[i%2], statussync.HealthUnhealthy)
	}
	w.publish()
	w.remove(2)
	w.publish()
	w.restart()
	at := func(seq uint64) statussync.SubscribeRequest {
		return statussync.SubscribeRequest{Cursor: statussync.Cursor{Epoch: w.epoch, Seq: seq}}
	}
	head := w.seq
	w.set(0, statussync.StateStopped, statussync.HealthUnknown)
	w.publish()
	want := fmt.Sprintf("subscribed status s001 %d@%d, server_removed s002 %d@%d, status s000 %d@%d, ", head-2, 10, head, 10, w.seq, w.seq)
	if got := told(w.subscribe(at(10), 8).all(t)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	reads := w.r.storeReads.Load()
	if reads == 0 {
		t.Error("the store was not read")
	}
	want = fmt.Sprintf("subscribed server_removed s002 %d@%d, status s000 %d@%d, ", head, head-1, w.seq, w.seq)
	if got := told(w.subscribe(at(head-1), 8).all(t)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if n := w.r.storeReads.Load(); n != reads {
		t.Errorf("the store was read %d times more", n-reads)
	}
	w.restart()
	w.j.FailReads(func(context.Context) error { return errDisk })
	if got := brief(w.subscribe(at(10), 8).all(t)); got != fmt.Sprintf("subscribed@%d resync:expired snapshot:2 snapshot_end@%d", w.seq, w.seq) {
		t.Errorf("with a broken store: %s", got)
	}
	w.j.FailReads(nil)
	canceled, cancel := context.WithCancel(context.Background())
	w.j.FailReads(func(ctx context.Context) error { cancel(); return ctx.Err() })
	s := w.subscribe(at(10), 8)
	if _, err := s.subscription.Next(canceled, make([]statussync.Event, 0, 8)); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled beginning gives %v", err)
	}
	w.j.FailReads(nil)
	if got := brief(s.all(t)[:1]); got != "subscribed+recovered@10" {
		t.Errorf("after a canceled beginning: %s", got)
	}
}

// TestLatestLive runs subscribers of every speed against a whole hub.
func TestLatestLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{RingSize: 16})
		r.define(20)
		ctx, cancel := context.WithCancel(t.Context())
		var readers sync.WaitGroup
		var recorders []*statussynctest.Recorder
		for i := range 8 {
			req := statussync.SubscribeRequest{Snapshot: true, Mode: statussync.ModeLatest}
			switch i % 4 {
			case 1:
				req.Filter.Clauses = []statussync.Clause{{Healths: []statussync.Health{statussync.HealthUnhealthy}}}
			case 2:
				req.Filter.Clauses = []statussync.Clause{{ServerIDs: []string{serverID(1), serverID(3)}, States: []statussync.State{statussync.StateRunning}}}
			case 3:
				req.Filter.Clauses = []statussync.Clause{{Labels: map[string]string{"team": "t1"}}}
			}
			c := r.subscribe(req)
			recorders = append(recorders, c)
			readers.Go(func() {
				tick := time.NewTicker(time.Duration(1+i*i*i) * time.Millisecond)
				defer tick.Stop()
				for ctx.Err() == nil {
					_ = c.Step(ctx)
					<-tick.C
				}
			})
		}
		rnd := rand.New(rand.NewPCG(3, 4))
		for turn := range 600 {
			if err := r.Observe(t.Context(), force(serverID(rnd.IntN(20)), turn)); err != nil {
				t.Fatal(err)
			}
			if turn%10 == 0 {
				tick := time.NewTimer(time.Millisecond)
				<-tick.C
			}
		}
		cancel()
		readers.Wait()
		for _, c := range recorders {
			r.checkTruth(c)
		}
		if n := r.Stats().StoreReads; n != 0 {
			t.Errorf("%d reads of the store", n)
		}
	})
}

// TestLatestMovesMeanwhile: a server that changes while a subscription still looks through the log has left its old
// place and is not at its new one yet, and is told all the same.
func TestLatestMovesMeanwhile(t *testing.T) {
	const (
		servers = scanChunk + 200
		leaves  = scanChunk + 100
	)
	w := newWorld(t, servers, 64)
	s := latestOf(t, w, statussync.Filter{Clauses: []statussync.Clause{{Healths: []statussync.Health{statussync.HealthUnhealthy}}}}, 8)
	w.set(leaves, statussync.StateRunning, statussync.HealthUnhealthy)
	w.publish()
	if got := told(s.all(t)); got != fmt.Sprintf("status %s %d@%d, ", serverID(leaves), w.seq, w.seq) {
		t.Fatalf("got %s", got)
	}
	for i := range servers {
		w.set(i, statussync.StateRunning, statussync.HealthDegraded)
	}
	w.publish()
	head := w.seq
	for moved := false; ; {
		evs, more, _, err := s.fillLatest(make([]statussync.Event, 0, 8), false)
		if err != nil {
			t.Fatal(err)
		}
		if len(evs) > 0 {
			if got := told(evs); !moved || got != fmt.Sprintf("status %s %d@%d, ", serverID(leaves), w.seq, head) {
				t.Errorf("got %s", got)
			}
			break
		}
		if !more {
			t.Fatal("that it has left is not told")
		}
		if !moved { // it has looked through the first part
			w.set(leaves, statussync.StateRunning, statussync.HealthHealthy)
			w.publish()
			moved = true
		}
	}
	if got := told(s.all(t)); got != "" {
		t.Errorf("again: %s", got)
	}
}
