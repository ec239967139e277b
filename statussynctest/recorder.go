package statussynctest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/agentopia/statussync"
)

// Recorder reads a subscription like a careful client: it keeps what it believes the statuses to be, and notes every
// promise that is broken. It outlives subscriptions: a client that reconnects goes on with Resume.
//
// One goroutine calls Run, Step or Resume; the other methods are safe beside it.
type Recorder struct {
	sub  statussync.Subscription
	want statussync.SubscribeRequest
	m    *statussync.Matcher
	buf  []statussync.Event

	mu         sync.Mutex
	phase      phase
	mustResync bool // not recovered: the next event must be a resync
	whole      bool // what it believes is the whole truth: it began with a snapshot, or goes on from one
	cursor     statussync.Cursor
	durable    bool
	recovered  bool
	state      map[string]statussync.Status
	versions   map[string]uint64
	incoming   map[string]statussync.Status // of the snapshot under way
	lastItem   string
	lastPage   bool
	told       map[uint64]struct{} // mode latest: Seq of what this subscription told
	entries    []*statussync.Entry
	received   int
	resyncs    []statussync.ResyncReason
	snapshots  int
	problems   []string
}

type phase int

const (
	phaseStart phase = iota // subscribed comes first
	phaseLive
	phaseSnapshot // a snapshot must come, or is under way
)

// maxProblems bounds what is noted: the first ones tell the story.
const maxProblems = 20

// NewRecorder returns a Recorder of a new subscription, which was made by req.
func NewRecorder(sub statussync.Subscription, req statussync.SubscribeRequest) *Recorder {
	r := &Recorder{state: map[string]statussync.Status{}, versions: map[string]uint64{}, buf: make([]statussync.Event, 0, 64)}
	r.attach(sub, req)
	return r
}

// Resume goes on with another subscription, which was made by req. Where req.Cursor is not Cursor(), what was missed
// between them is the caller's affair.
func (r *Recorder) Resume(sub statussync.Subscription, req statussync.SubscribeRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attach(sub, req)
}

func (r *Recorder) attach(sub statussync.Subscription, req statussync.SubscribeRequest) {
	f := req.Filter
	f.Leave = f.Leave || req.Snapshot || req.Mode == statussync.ModeLatest
	m, err := f.Compile()
	if err != nil {
		r.problem("the filter is wrong: %v", err)
	}
	r.sub, r.want, r.m, r.phase, r.mustResync = sub, req, m, phaseStart, false
	r.incoming = nil
	r.told = map[uint64]struct{}{}
}

// Run reads until ctx ends (it then returns nil) or the subscription does (its error).
func (r *Recorder) Run(ctx context.Context) error {
	for {
		if err := r.Step(ctx); err != nil {
			if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
				return nil
			}
			return err
		}
	}
}

// RunUntil reads until the position is reached, in that epoch.
func (r *Recorder) RunUntil(ctx context.Context, at statussync.Cursor) error {
	for !r.Reached(at) {
		if err := r.Step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Reached reports whether everything up to at has been considered, in that epoch.
func (r *Recorder) Reached(at statussync.Cursor) bool {
	c := r.Cursor()
	if c.Epoch == at.Epoch && c.Seq >= at.Seq {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.phase == phaseLive
	}
	if b, ok := r.sub.Bookmark(); ok {
		return b.Epoch == at.Epoch && b.Seq >= at.Seq
	}
	return false
}

// Step calls Next once and checks what it returns.
func (r *Recorder) Step(ctx context.Context) error {
	var err error
	r.buf, err = r.sub.Next(ctx, r.buf[:0])
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil && len(r.buf) == 0 {
		r.problem("Next returned nothing and no error")
	}
	for i := range r.buf {
		r.event(&r.buf[i])
	}
	return err
}

func (r *Recorder) problem(format string, args ...any) {
	if len(r.problems) < maxProblems {
		r.problems = append(r.problems, fmt.Sprintf("%v: ", r.cursor)+fmt.Sprintf(format, args...))
	}
}

func (r *Recorder) event(ev *statussync.Event) {
	if (r.phase == phaseStart) != (ev.Type == statussync.EventSubscribed) {
		r.problem("%s came, but subscribed comes first and once", ev.Type)
	}
	if r.mustResync && ev.Type != statussync.EventResync {
		r.problem("%s came after a cursor that was not continued; want resync", ev.Type)
	}
	r.mustResync = false
	switch ev.Type {
	case statussync.EventSubscribed:
		r.subscribed(ev)
	case statussync.EventResync:
		if r.phase == phaseSnapshot && r.incoming != nil {
			r.problem("a resync inside a snapshot")
		}
		if ev.Reason != statussync.ResyncEpoch && ev.Reason != statussync.ResyncExpired {
			r.problem("a resync without a reason: %q", ev.Reason)
		}
		r.resyncs = append(r.resyncs, ev.Reason)
		r.phase, r.incoming = phaseSnapshot, nil
	case statussync.EventSnapshot:
		r.snapshot(ev)
	case statussync.EventSnapshotEnd:
		if r.phase != phaseSnapshot || r.incoming == nil || !r.lastPage {
			r.problem("snapshot_end without a last page")
		}
		r.state, r.incoming, r.phase, r.whole = r.incoming, nil, phaseLive, true
		if r.state == nil {
			r.state = map[string]statussync.Status{}
		}
		r.versions = map[string]uint64{}
		for id, st := range r.state {
			r.versions[id] = st.Version
		}
		r.cursor = ev.Cursor
		r.snapshots++
	case statussync.EventEntry:
		r.entry(ev)
	default:
		r.problem("an event of type %q", ev.Type)
	}
}

func (r *Recorder) subscribed(ev *statussync.Event) {
	r.durable, r.recovered = ev.Durable, ev.Recovered
	r.phase = phaseLive
	switch {
	case r.want.Snapshot:
		r.phase = phaseSnapshot
		if ev.Recovered {
			r.problem("recovered, though a snapshot replaces what was missed")
		}
	case r.want.Cursor.IsZero():
		r.whole = false
		r.state, r.versions = map[string]statussync.Status{}, map[string]uint64{}
		r.cursor = ev.Cursor
	case ev.Recovered:
		if ev.Cursor != r.want.Cursor {
			r.problem("continues at %v, asked for %v", ev.Cursor, r.want.Cursor)
		}
		r.cursor = ev.Cursor
	default:
		r.mustResync = true
	}
}

func (r *Recorder) snapshot(ev *statussync.Event) {
	if r.phase != phaseSnapshot {
		r.problem("a snapshot that nobody asked for")
	}
	if r.incoming == nil {
		r.incoming, r.lastItem = map[string]statussync.Status{}, ""
	} else if r.lastPage {
		r.problem("a page after the last page")
	}
	r.lastPage = !ev.More
	if ev.More && len(ev.Items) == 0 {
		r.problem("an empty page that is not the last")
	}
	if len(ev.Items) > 500 {
		r.problem("a page of %d", len(ev.Items))
	}
	for i := range ev.Items {
		it := &ev.Items[i]
		if it.Server == nil {
			r.problem("an item without a server")
			continue
		}
		if it.Server.ID <= r.lastItem {
			r.problem("server %q after %q in a snapshot", it.Server.ID, r.lastItem)
		}
		r.lastItem = it.Server.ID
		if !r.m.MatchServer(it.Server, &it.Status) {
			r.problem("server %q in the snapshot does not match the filter", it.Server.ID)
		}
		r.incoming[it.Server.ID] = it.Status
	}
}

func (r *Recorder) entry(ev *statussync.Event) {
	e := ev.Entry
	if r.phase != phaseLive {
		r.problem("entry %v came while a snapshot is due", ev.Cursor)
	}
	latest := r.want.Mode == statussync.ModeLatest
	if e == nil || (ev.Cursor.Seq != e.Seq && !latest) {
		r.problem("an event at %v without its entry", ev.Cursor)
		return
	}
	if ev.Cursor.Epoch != r.cursor.Epoch {
		r.problem("entry of epoch %s without a resync", ev.Cursor.Epoch)
	}
	if e.Seq <= r.cursor.Seq {
		r.problem("entry %d again, or out of order", e.Seq)
	}
	if _, again := r.told[e.Seq]; again || ev.Cursor.Seq < r.cursor.Seq {
		r.problem("entry %d again, or its cursor %v goes back", e.Seq, ev.Cursor)
	}
	if !bytes.Equal(ev.JSON, e.AppendJSON(nil)) {
		r.problem("entry %d: its JSON is another's: %s", e.Seq, ev.JSON)
	}
	if latest {
		r.told[e.Seq] = struct{}{}
	} else if !r.m.Match(e) {
		r.problem("entry %d does not match the filter", e.Seq)
	}
	r.cursor = ev.Cursor
	r.received++
	r.entries = append(r.entries, e)
	if e.Kind != statussync.KindStatus && e.Kind != statussync.KindServerRemoved {
		return
	}
	if latest {
		if e.Version <= r.versions[e.ServerID] {
			return // again, after a resume
		}
	} else if len(r.want.Filter.Clauses) == 0 { // sees every version
		if v, ok := r.versions[e.ServerID]; ok && e.Version != v+1 {
			r.problem("entry %d: %s goes from version %d to %d", e.Seq, e.ServerID, v, e.Version)
		}
		if st, ok := r.state[e.ServerID]; ok && e.Previous != nil && !st.Equal(e.Previous) {
			r.problem("entry %d: %s was believed %v, the entry says that it was %v", e.Seq, e.ServerID, st.State, e.Previous.State)
		}
	} else if v, ok := r.versions[e.ServerID]; ok && e.Version <= v {
		r.problem("entry %d: %s goes from version %d to %d", e.Seq, e.ServerID, v, e.Version)
	}
	r.versions[e.ServerID] = e.Version
	if e.Kind == statussync.KindServerRemoved {
		delete(r.state, e.ServerID)
		return
	}
	s := &statussync.Server{ID: e.ServerID, EnvironmentID: e.EnvironmentID, Labels: e.Labels}
	if !r.m.MatchServer(s, e.Current) {
		delete(r.state, e.ServerID)
		return
	}
	st := *e.Current
	st.Version = e.Version
	r.state[e.ServerID] = st
}

// Cursor is the position up to which the client knows everything.
func (r *Recorder) Cursor() statussync.Cursor {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cursor
}

// Durable and Recovered are what the newest subscribed said.
func (r *Recorder) Durable() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.durable
}

// Recovered reports whether the newest subscription continued the cursor that it was given.
func (r *Recorder) Recovered() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.recovered
}

// Received is how many entries came.
func (r *Recorder) Received() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.received
}

// Entries are the entries that came, in order.
func (r *Recorder) Entries() []*statussync.Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.entries)
}

// Resyncs are the reasons of the resyncs that came, in order.
func (r *Recorder) Resyncs() []statussync.ResyncReason {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.resyncs)
}

// Snapshots is how many snapshots were completed.
func (r *Recorder) Snapshots() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.snapshots
}

// Problems are the promises that were broken, at most 20 of them.
func (r *Recorder) Problems() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.problems)
}

// State is what the client believes the statuses to be. It is the whole truth only for a client that began with a
// snapshot (or went on from one) and, where it filters, asked for Leave.
func (r *Recorder) State() map[string]statussync.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.state)
}

// Check returns what is wrong: problems, and every difference between what the client believes and truth, which is
// narrowed down to what its filter selects. Facts are not compared.
func (r *Recorder) Check(truth []statussync.ServerView) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	wrong := slices.Clone(r.problems)
	if !r.whole {
		wrong = append(wrong, "it never had a snapshot, and can't know the whole truth")
	}
	want := map[string]statussync.Status{}
	for _, v := range truth {
		if r.m.MatchServer(v.Server, &v.Status) {
			want[v.Server.ID] = v.Status
		}
	}
	for _, id := range slices.Sorted(maps.Keys(want)) {
		w := want[id]
		got, ok := r.state[id]
		if !ok {
			wrong = append(wrong, fmt.Sprintf("%s is missing", id))
		} else if !got.Equal(&w) || got.Version != w.Version {
			wrong = append(wrong, fmt.Sprintf("%s is believed %s/%s version %d, and is %s/%s version %d", id,
				got.State, got.Health, got.Version, w.State, w.Health, w.Version))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.state)) {
		if _, ok := want[id]; !ok {
			wrong = append(wrong, fmt.Sprintf("%s is believed, but is not there", id))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	if len(wrong) > maxProblems {
		wrong = append(wrong[:maxProblems], "…")
	}
	return errors.New(fmt.Sprint(len(wrong), " things are wrong: ", wrong))
}
