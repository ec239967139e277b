package hub

import (
	"log/slog"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync"
)

// reader is the second half of the hub: the status view, the ring and the subscriptions. One goroutine (run) changes
// them, under mu, batch by batch; everybody else reads under mu.RLock and never holds it for long.
type reader struct {
	journal statussync.Journal
	log     *slog.Logger
	maxSubs int
	now     func() time.Time // engine time

	mu      sync.RWMutex
	epoch   statussync.Epoch
	head    uint64 // Seq of the newest entry that was published
	stored  uint64 // up to here the store has everything
	durable bool
	stopped bool
	ring    ring
	news    newest
	slots   []*slot // by id
	byID    map[string]*slot
	envs    map[string]*statussync.EnvironmentView
	windows []statussync.MaintenanceView // by id; replaced, never changed
	subs    map[*subscription]struct{}
	index   map[string]map[*subscription]struct{} // those that are restricted to servers

	// waiters are the others that wait in Next. Guarded by waitMu beside mu.RLock, or by mu.Lock alone.
	waitMu  sync.Mutex
	waiters []*subscription

	// latest is the view as of head, made when somebody wants it; nil: not made yet. Changed under mu.Lock, filled under
	// mu.RLock.
	latest atomic.Pointer[snapshot]

	done    chan struct{} // closed by stop
	reading chan struct{} // holds one: whoever extends news from the store

	updates, doubts, evicted, resyncs, storeReads atomic.Uint64
	wake                                          []*subscription // scratch of apply
}

// slot is a server's place in the view. cur and interval are guarded by reader.mu.
type slot struct {
	id       string
	cur      *serverState
	interval time.Duration // as the probing plan says; 0: not known
	probed   bool
	asked    atomic.Int64 // engine time, in nanoseconds, of the last probe asked for because a read found it too old
}

// serverState is one server at one time. It is never changed.
type serverState struct {
	server  *statussync.Server
	status  statussync.Status
	probing statussync.Probing
}

// snapshot is the whole view at one position, by id. It is never changed.
type snapshot struct {
	at      statussync.Cursor
	durable bool
	items   []*serverState
}

// ring holds the newest entries of the epoch.
type ring struct {
	buf  []statussync.Encoded
	last uint64 // Seq of the newest
	n    int
}

// base is the Seq before the oldest entry: a position at or after it can be read here.
func (r *ring) base() uint64 { return r.last - uint64(r.n) }

func (r *ring) at(seq uint64) *statussync.Encoded { return &r.buf[seq%uint64(len(r.buf))] }

// reset empties the ring and puts it after seq.
func (r *ring) reset(seq uint64) {
	clear(r.buf)
	r.last, r.n = seq, 0
}

// push adds the next entry and reports whether the oldest had to go for it.
func (r *ring) push(e statussync.Encoded) (evicted bool) {
	r.last++
	*r.at(r.last) = e
	if r.n == len(r.buf) {
		return true
	}
	r.n++
	return false
}

func newReader(j statussync.Journal, ringSize, maxSubs int, now func() time.Time, log *slog.Logger) *reader {
	return &reader{
		journal: j, log: log, maxSubs: maxSubs, now: now, durable: true,
		ring: ring{buf: make([]statussync.Encoded, ringSize)},
		byID: map[string]*slot{}, envs: map[string]*statussync.EnvironmentView{},
		subs: map[*subscription]struct{}{}, index: map[string]map[*subscription]struct{}{},
		done: make(chan struct{}), reading: make(chan struct{}, 1), news: newNewest(0),
	}
}

// seed puts the reader where the journal ends, before anything is published.
func (r *reader) seed(at statussync.Cursor) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch, r.head, r.stored = at.Epoch, at.Seq, at.Seq
	r.ring.reset(at.Seq)
	r.news = newNewest(at.Seq)
}

// run applies what the writer publishes until the channel is closed.
func (r *reader) run(tail <-chan *published) {
	for p := range tail {
		r.apply(p)
		if p.started != nil {
			p.started()
		}
		for _, c := range p.receipts {
			for _, e := range p.entries[c.from:c.to] {
				if e.Kind == statussync.KindStatus {
					c.r.entries = append(c.r.entries, e.Entry)
				}
			}
			close(c.r.done)
		}
		for _, f := range p.answers {
			f()
		}
	}
}

// stop ends all subscriptions, and every later one.
func (r *reader) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	close(r.done)
	clear(r.subs)
	clear(r.index)
}

// apply brings view, ring and position to the batch's end at once, and then wakes whom it may concern.
func (r *reader) apply(p *published) {
	r.mu.Lock()
	wake := r.wake[:0]
	if p.epoch != r.epoch {
		r.epoch = p.epoch
		r.ring.reset(p.base)
		r.news = newNewest(p.base)
		r.head = p.base
		clear(r.waiters)
		r.waiters = r.waiters[:0]
		for s := range r.subs { // all of them must resync
			if s.waiting {
				s.waiting = false
				wake = append(wake, s)
			}
		}
	}
	evicted := uint64(0)
	for _, e := range p.entries {
		if r.ring.push(e) {
			evicted++
		}
		r.news.push(e)
		switch e.Kind {
		case statussync.KindStatus:
			r.updates.Add(1)
		case statussync.KindSelfDoubt:
			r.doubts.Add(1)
		}
		wake = r.concerned(wake, e.Seq, e.ServerID)
		for _, id := range e.ServerIDs {
			wake = r.concerned(wake, e.Seq, id)
		}
	}
	r.head = r.ring.last
	r.stored, r.durable = p.stored, p.durable
	if len(p.entries) > 0 {
		for _, s := range r.waiters {
			s.waiting = false
		}
		wake = append(wake, r.waiters...)
		clear(r.waiters)
		r.waiters = r.waiters[:0]
	}
	r.applyView(p)
	r.latest.Store(nil)
	r.mu.Unlock()

	r.evicted.Add(evicted)
	for i, s := range wake {
		select {
		case s.wake <- struct{}{}:
		default: // it has not taken the last one yet
		}
		wake[i] = nil
	}
	r.wake = wake[:0]
}

// concerned notes at the subscriptions that are restricted to server id that there is something for them, and adds
// those that wait to wake.
func (r *reader) concerned(wake []*subscription, seq uint64, id string) []*subscription {
	if id == "" {
		return wake
	}
	for s := range r.index[id] {
		if s.next == 0 {
			s.next = seq
		}
		if s.waiting {
			s.waiting = false
			wake = append(wake, s)
		}
	}
	return wake
}

func (r *reader) applyView(p *published) {
	var added []*slot
	removed := false
	for _, u := range p.servers {
		s := r.byID[u.id]
		switch {
		case u.state == nil && s != nil:
			delete(r.byID, u.id)
			s.cur = nil
			removed = true
		case u.state == nil:
		case s == nil:
			s = &slot{id: u.id, cur: u.state}
			r.byID[u.id] = s
			added = append(added, s)
		default:
			s.cur = u.state
		}
	}
	if removed || len(added) > 0 {
		keep := make([]*slot, 0, len(r.byID))
		sort.Slice(added, func(i, k int) bool { return added[i].id < added[k].id })
		for _, s := range r.slots {
			if s.cur == nil {
				continue
			}
			for len(added) > 0 && added[0].id < s.id {
				if added[0].cur != nil {
					keep = append(keep, added[0])
				}
				added = added[1:]
			}
			keep = append(keep, s)
		}
		for _, s := range added {
			if s.cur != nil {
				keep = append(keep, s)
			}
		}
		r.slots = keep
	}
	for _, q := range p.requests {
		if q.Plan == nil {
			continue
		}
		if s := r.byID[q.Plan.ServerID]; s != nil {
			s.probed = q.Plan.Kind != statussync.ProbeNone && q.Plan.Kind != ""
			s.interval = q.Plan.Interval
		}
	}
	if p.windows != nil {
		r.windows = p.windows
	}
	for _, u := range p.envs {
		if u.view == nil {
			delete(r.envs, u.id)
			r.news.drop(topic{statussync.KindEnvironmentSilent, u.id})
			continue
		}
		r.envs[u.id] = u.view
	}
}

// cursorLocked is the position of the newest entry. The caller holds mu.
func (r *reader) cursorLocked() statussync.Cursor {
	return statussync.Cursor{Epoch: r.epoch, Seq: r.head}
}

// snapshotLocked returns the view as of the newest entry. The caller holds mu.RLock.
func (r *reader) snapshotLocked() *snapshot {
	if s := r.latest.Load(); s != nil {
		return s
	}
	s := &snapshot{at: r.cursorLocked(), durable: r.durable, items: make([]*serverState, len(r.slots))}
	for i, sl := range r.slots {
		s.items[i] = sl.cur
	}
	r.latest.Store(s)
	return s
}

func (r *reader) snapshot() *snapshot {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.snapshotLocked()
}

// covers reports whether the entries after at can still be read, from the ring or the store, and else why not.
func (r *reader) covers(at statussync.Cursor) (reason statussync.ResyncReason, ok bool) {
	r.mu.RLock()
	epoch, head, base := r.epoch, r.head, r.ring.base()
	r.mu.RUnlock()
	switch {
	case at.Epoch != epoch:
		return statussync.ResyncEpoch, false
	case at.Seq > head:
		return statussync.ResyncExpired, false
	case at.Seq >= base:
		return "", true
	}
	storeHead, deleted := r.journal.Head()
	if storeHead.Epoch != at.Epoch || at.Seq < deleted.Seq {
		return statussync.ResyncExpired, false
	}
	return "", true
}
