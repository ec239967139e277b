package hub

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/agentopia/statussync"
)

// Numbers of the status cache (docs/domain.md, operations).
const (
	maxAge       = 2 * time.Minute  // at least this young is a hit; or younger than twice the server's interval
	askAgain     = 10 * time.Second // a server that reads find too old is asked for at most this often
	checkAtOnce  = 64               // checks of CheckAll under way
	updatesPage  = 512              // entries read from the store at once by Updates
	updatesPages = 8                // pages considered by one call
)

// Server returns a server as it is known now, from memory. It counts as a hit when a probe or report spoke of the
// server within the last 2 minutes or twice its probing interval, whichever is longer; otherwise as a miss, which asks
// the Requester for a probe without waiting for it, at most every 10 s for one server. An unknown id is CodeNotFound.
func (h *Hub) Server(id string) (statussync.ServerView, error) {
	r := h.reader
	r.mu.RLock()
	s := r.byID[id]
	var cur *serverState
	var probed bool
	var interval time.Duration
	if s != nil {
		cur, probed, interval = s.cur, s.probed, s.interval
	}
	r.mu.RUnlock()
	if cur == nil {
		return statussync.ServerView{}, statussync.NotFound("server", id)
	}
	now := h.Now()
	if last := cur.status.LastChecked; !last.IsZero() && now.Sub(last) <= max(maxAge, 2*interval) {
		h.count.hits.Add(1)
	} else {
		h.count.misses.Add(1)
		if before := s.asked.Load(); probed && now.UnixNano()-before >= int64(askAgain) && s.asked.CompareAndSwap(before, now.UnixNano()) {
			select {
			case h.misses <- id:
			default: // enough is asked for already
			}
		}
	}
	return statussync.ServerView{Server: cur.server, Status: cur.status, Probing: cur.probing, Now: now}, nil
}

// view is Server without counting.
func (h *Hub) view(id string) (statussync.ServerView, error) {
	r := h.reader
	r.mu.RLock()
	defer r.mu.RUnlock()
	s := r.byID[id]
	if s == nil {
		return statussync.ServerView{}, statussync.NotFound("server", id)
	}
	return statussync.ServerView{Server: s.cur.server, Status: s.cur.status, Probing: s.cur.probing, Now: h.Now()}, nil
}

// Servers returns the servers that match, by id, at most q.Limit of them (at least 1). more says that there are others
// after the last; at is the position as of which all of them are.
func (h *Hub) Servers(q statussync.ServerQuery) (items []statussync.ServerView, more bool, at statussync.Cursor) {
	v := h.reader.snapshot()
	now := h.Now()
	limit := max(q.Limit, 1)
	text := strings.ToLower(q.Text)
	first := 0
	if q.After != "" {
		first = sort.Search(len(v.items), func(i int) bool { return v.items[i].server.ID > q.After })
	}
	for _, it := range v.items[first:] {
		if !selects(&q, text, it) {
			continue
		}
		if len(items) == limit {
			return items, true, v.at
		}
		items = append(items, statussync.ServerView{Server: it.server, Status: it.status, Probing: it.probing, Now: now})
	}
	return items, false, v.at
}

func selects(q *statussync.ServerQuery, text string, it *serverState) bool {
	s, st := it.server, &it.status
	switch {
	case q.States != nil && !slices.Contains(q.States, st.State),
		q.Healths != nil && !slices.Contains(q.Healths, st.Health),
		q.Availabilities != nil && !slices.Contains(q.Availabilities, st.Availability()),
		q.EnvironmentIDs != nil && !slices.Contains(q.EnvironmentIDs, s.EnvironmentID):
		return false
	}
	for k, v := range q.Labels {
		if have, ok := s.Labels[k]; !ok || have != v {
			return false
		}
	}
	if text == "" {
		return true
	}
	for _, in := range [...]string{s.ID, s.Name, s.Endpoint, s.ContainerName()} {
		if strings.Contains(strings.ToLower(in), text) {
			return true
		}
	}
	return false
}

// Environments returns all environments, by id.
func (h *Hub) Environments() []statussync.EnvironmentView {
	r := h.reader
	r.mu.RLock()
	out := make([]statussync.EnvironmentView, 0, len(r.envs))
	for _, v := range r.envs {
		out = append(out, *v)
	}
	r.mu.RUnlock()
	now := h.Now()
	for i := range out {
		out[i].Now = now
	}
	slices.SortFunc(out, func(a, b statussync.EnvironmentView) int { return cmp.Compare(a.Environment.ID, b.Environment.ID) })
	return out
}

// Environment returns one environment. An unknown id is CodeNotFound.
func (h *Hub) Environment(id string) (statussync.EnvironmentView, error) {
	r := h.reader
	r.mu.RLock()
	v := r.envs[id]
	r.mu.RUnlock()
	if v == nil {
		return statussync.EnvironmentView{}, statussync.NotFound("environment", id)
	}
	out := *v
	out.Now = h.Now()
	return out, nil
}

// Explain returns all evidence of a server and what every rule makes of it now. It is answered by the writer, and told
// when what it speaks of is durable. An unknown id is CodeNotFound.
func (h *Hub) Explain(ctx context.Context, id string) (statussync.Explanation, error) {
	var out statussync.Explanation
	var found bool
	err := h.ask(ctx, func(w *writer) func() {
		x, ok := w.eng.Explain(id, w.h.clock.now())
		return func() { out, found = x, ok }
	})
	if err != nil {
		return statussync.Explanation{}, err
	}
	if !found {
		return statussync.Explanation{}, statussync.NotFound("server", id)
	}
	return out, nil
}

// History returns entries of one server, newest first, across epochs. In a volatile epoch those that the store does
// not have yet come from memory. An id that has neither a server nor entries is CodeNotFound.
func (h *Hub) History(ctx context.Context, q statussync.HistoryQuery) ([]statussync.Encoded, error) {
	if q.Limit < 1 {
		return nil, statussync.Invalid("limit", "must be at least 1")
	}
	out, err := h.history(ctx, q)
	if err != nil || len(out) > 0 {
		return out, err
	}
	if _, err := h.view(q.ServerID); err == nil {
		return out, nil
	}
	any, err := h.history(ctx, statussync.HistoryQuery{ServerID: q.ServerID, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(any) == 0 {
		return nil, statussync.NotFound("server", q.ServerID)
	}
	return out, nil
}

func (h *Hub) history(ctx context.Context, q statussync.HistoryQuery) ([]statussync.Encoded, error) {
	r := h.reader
	var out []statussync.Encoded
	r.mu.RLock()
	// Entries above stored are in the ring alone; what the store may have there was given up.
	stored := r.stored
	for seq := r.ring.last; seq > max(stored, r.ring.base()) && len(out) < q.Limit; seq-- {
		e := r.ring.at(seq)
		if e.ServerID != q.ServerID || (q.Kind != "" && e.Kind != q.Kind) || (q.Before != 0 && seq >= q.Before) ||
			(!q.From.IsZero() && e.Timestamp.Before(q.From)) || (!q.To.IsZero() && !e.Timestamp.Before(q.To)) {
			continue
		}
		out = append(out, *e)
	}
	r.mu.RUnlock()
	if len(out) == q.Limit {
		return out, nil
	}
	rest := q
	rest.Limit -= len(out)
	if rest.Before == 0 || rest.Before > stored+1 {
		rest.Before = stored + 1
	}
	old, err := r.journal.History(ctx, rest)
	if err != nil {
		if ctxErr := ctx.Err(); ctxErr != nil {
			return nil, ctxErr
		}
		return nil, statussync.NewError(statussync.CodeUnavailable, "the store can't be read now", err)
	}
	return append(out, old...), nil
}

// Updates returns entries after a position that match, oldest first, at most limit. A nil matcher matches updates and
// removals. The zero cursor stands for the oldest entry that there is. Everything up to next was considered: one call
// considers a bounded number of entries, so that fewer than limit, even none, do not mean that the end is reached; next
// not moving does. CodeExpired: the position's entries are deleted, or it is of another epoch, or beyond the head.
func (h *Hub) Updates(ctx context.Context, after statussync.Cursor, limit int, m *statussync.Matcher) (items []statussync.Encoded, next statussync.Cursor, err error) {
	if limit < 1 {
		return nil, after, statussync.Invalid("limit", "must be at least 1")
	}
	r := h.reader
	if after.IsZero() {
		_, deleted := r.journal.Head()
		r.mu.RLock()
		after = statussync.Cursor{Epoch: r.epoch, Seq: deleted.Seq}
		if !r.durable {
			after.Seq = r.ring.base()
		}
		r.mu.RUnlock()
	}
	expired := func(detail string) error { return statussync.NewError(statussync.CodeExpired, detail, nil) }
	var buf []statussync.Encoded
	for page := 0; page < updatesPages && len(items) < limit; page++ {
		r.mu.RLock()
		epoch, head, base := r.epoch, r.head, r.ring.base()
		if after.Epoch != epoch || after.Seq > head {
			r.mu.RUnlock()
			if page > 0 {
				break // what was found is true; the next call will say it
			}
			if after.Epoch != epoch {
				return nil, after, expired("the cursor is of another epoch")
			}
			return nil, after, expired("the cursor lies beyond the newest entry")
		}
		if after.Seq == head {
			r.mu.RUnlock()
			break
		}
		buf = buf[:0]
		if after.Seq >= base {
			for seq := after.Seq + 1; seq <= min(head, after.Seq+updatesPage); seq++ {
				buf = append(buf, *r.ring.at(seq))
			}
			r.mu.RUnlock()
		} else {
			r.mu.RUnlock()
			r.storeReads.Add(1)
			buf, err = r.journal.Read(ctx, after, updatesPage, buf)
			for len(buf) > 0 && buf[len(buf)-1].Seq > head {
				buf = buf[:len(buf)-1]
			}
			if err != nil || len(buf) == 0 {
				if page > 0 && ctx.Err() == nil {
					break
				}
				switch {
				case ctx.Err() != nil:
					return nil, after, ctx.Err()
				case err == nil || statussync.CodeOf(err) == statussync.CodeExpired:
					return nil, after, expired("entries after the cursor are not kept any more")
				}
				return nil, after, statussync.NewError(statussync.CodeUnavailable, "the store can't be read now", err)
			}
		}
		for _, e := range buf {
			if len(items) == limit {
				break
			}
			after.Seq = e.Seq
			if m.Match(e.Entry) {
				items = append(items, e)
			}
		}
	}
	return items, after, nil
}

// CheckNow probes a server and returns the result and the status that follows from it.
func (h *Hub) CheckNow(ctx context.Context, id string) (statussync.ProbeResult, statussync.ServerView, error) {
	if h.opts.Checker == nil {
		return statussync.ProbeResult{}, statussync.ServerView{}, errNoChecker
	}
	if _, err := h.view(id); err != nil {
		return statussync.ProbeResult{}, statussync.ServerView{}, err
	}
	res, err := h.opts.Checker.Check(ctx, id)
	if err != nil {
		return res, statussync.ServerView{}, err
	}
	if _, err := h.Submit(ctx); err != nil { // behind the result, which was handed over before
		return res, statussync.ServerView{}, err
	}
	v, err := h.view(id)
	return res, v, err
}

var errNoChecker = statussync.NewError(statussync.CodeUnavailable, "nothing is probed here", nil)

// CheckAll probes every server, at most 64 at a time, and returns a result for each, by id. A server that can't be
// checked has its Err; the others go on. When ctx ends the rest have its error.
func (h *Hub) CheckAll(ctx context.Context) ([]CheckResult, error) {
	if h.opts.Checker == nil {
		return nil, errNoChecker
	}
	v := h.reader.snapshot()
	out := make([]CheckResult, len(v.items))
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(checkAtOnce, len(out)) {
		workers.Go(func() {
			for i := range next {
				if out[i].Err = ctx.Err(); out[i].Err == nil {
					out[i].Result, out[i].Err = h.opts.Checker.Check(ctx, out[i].ServerID)
				}
			}
		})
	}
	for i, it := range v.items {
		out[i].ServerID = it.server.ID
		next <- i
	}
	close(next)
	workers.Wait()
	if _, err := h.Submit(ctx); err != nil {
		return out, err
	}
	for i := range out {
		view, err := h.view(out[i].ServerID)
		out[i].View = view
		if out[i].Err == nil {
			out[i].Err = err // removed meanwhile
		}
	}
	return out, nil
}

// SetOverride puts a person's word over a server's status until it expires (the original service's forceStatusUpdate).
// What o leaves out is filled in by Override.Complete at engine time. CodeNotFound, CodeInvalid.
func (h *Hub) SetOverride(ctx context.Context, id string, o statussync.Override) (statussync.ServerView, error) {
	o.Note = statussync.CleanText(o.Note, math.MaxInt)
	if err := o.Complete(h.Now()); err != nil {
		return statussync.ServerView{}, err
	}
	if _, err := h.Submit(ctx, &statussync.OverrideSet{ServerID: id, Override: o}); err != nil {
		return statussync.ServerView{}, err
	}
	return h.view(id)
}

// ClearOverride ends a server's override. CodeNotFound for an unknown server.
func (h *Hub) ClearOverride(ctx context.Context, id, actor string) (statussync.ServerView, error) {
	if _, err := h.Submit(ctx, &statussync.OverrideClear{ServerID: id, Actor: actor}); err != nil {
		return statussync.ServerView{}, err
	}
	return h.view(id)
}

// SyncMetrics returns the numbers that the original service reported. LastSync is when a registry, a database row or an
// agent's report was last concluded from, SyncDuration the time from taking it (or the first that shared its batch) to
// its publication.
func (h *Hub) SyncMetrics() statussync.SyncMetrics {
	r := h.reader
	m := statussync.SyncMetrics{
		StatusChanges: r.updates.Load(), CacheHits: h.count.hits.Load(), CacheMisses: h.count.misses.Load(),
	}
	for _, it := range r.snapshot().items {
		m.TotalServers++
		if it.status.State == statussync.StateRunning {
			m.ActiveServers++
		}
		if it.status.Health == statussync.HealthUnhealthy || it.status.State == statussync.StateError {
			m.ErrorServers++
		}
	}
	if s := h.lastSync.Load(); s != nil {
		m.LastSync, m.SyncDuration = s.at, s.took
	}
	r.mu.RLock()
	m.Subscriptions = len(r.subs)
	r.mu.RUnlock()
	return m
}

// Ready returns whether the hub can do all that it promises. It never blocks on the store.
func (h *Hub) Ready() Readiness {
	r := h.reader
	r.mu.RLock()
	out := Readiness{Durable: r.durable, Head: r.cursorLocked()}
	r.mu.RUnlock()
	out.InboxUsed = float64(h.inboxUsed.Load()) / float64(h.inboxSize)
	switch cause := h.trouble.Load(); {
	case !h.Active():
		out.Durable = false
		out.Detail = "the hub is not running"
		select {
		case <-h.stopped:
		case <-h.started:
		default:
			out.Detail = "the hub has not started yet"
		}
	case cause != nil:
		out.Detail = "the store does not take entries: " + *cause
	case out.InboxUsed >= 0.9:
		out.Detail = "the inbox is nearly full"
	}
	return out
}

// Stats are the hub's own numbers, for metrics and people. Counters count since the start.
type Stats struct {
	InboxDepth    int // in the units of Options.InboxSize
	InboxCapacity int

	Observations map[string]uint64 // by kind: agent_report, agent_failed, row_heartbeat, record, probe, registry, override, maintenance
	Rejected     uint64            // observations that the engine could not take
	Refused      uint64            // observations that found no room in the inbox
	Foreign      uint64            // containers in reports that named a server of another environment
	UnknownWords uint64            // container and record words that no table knows

	Batches        uint64        // appends that succeeded
	Entries        uint64        // entries published
	Updates        uint64        // of them, of kind status
	SelfDoubts     uint64        // of them, of kind self_doubt
	Records        uint64        // records stored
	AppendTime     time.Duration // spent in appends, all together
	AppendFailures uint64        // appends that failed or took too long
	EpochChanges   uint64        // epochs that this hub began
	Durable        bool          // false: a volatile epoch is open
	Backlog        int           // entries told in the volatile epoch and not stored
	Requests       uint64        // handed to the Requester

	Head          statussync.Cursor
	Servers       int
	Environments  int
	Subscriptions int
	Resyncs       uint64
	RingLength    int
	RingCapacity  int
	Evictions     uint64 // entries that left the ring for newer ones
	StoreReads    uint64 // pages read from the store for those behind the ring
	CacheHits     uint64
	CacheMisses   uint64

	ClockLag   time.Duration // the wall clock ahead of engine time; negative: behind
	ClockJumps uint64        // times that the wall clock went ahead
}

// Stats returns the hub's own numbers.
func (h *Hub) Stats() Stats {
	c, r := &h.count, h.reader
	_, lag := h.clock.look()
	s := Stats{
		InboxDepth: int(h.inboxUsed.Load()), InboxCapacity: int(h.inboxSize),
		Observations: make(map[string]uint64, obsKinds), Rejected: c.rejected.Load(), Refused: c.refused.Load(),
		Foreign: c.foreign.Load(), UnknownWords: c.unknownWords.Load(), Batches: c.batches.Load(), Entries: c.entries.Load(),
		Updates: r.updates.Load(), SelfDoubts: r.doubts.Load(), Records: c.records.Load(), AppendTime: time.Duration(c.appendNanos.Load()),
		AppendFailures: c.appendFails.Load(), EpochChanges: c.epochs.Load(), Durable: c.durable.Load(),
		Backlog: int(c.backlog.Load()), Requests: c.requests.Load(), Resyncs: r.resyncs.Load(), Evictions: r.evicted.Load(),
		StoreReads: r.storeReads.Load(), CacheHits: c.hits.Load(), CacheMisses: c.misses.Load(),
		ClockLag: lag, ClockJumps: c.clockJumps.Load(),
	}
	for i, n := range obsNames {
		s.Observations[n] = c.observations[i].Load()
	}
	r.mu.RLock()
	s.Head = r.cursorLocked()
	s.Servers, s.Environments, s.Subscriptions = len(r.slots), len(r.envs), len(r.subs)
	s.RingLength, s.RingCapacity = r.ring.n, len(r.ring.buf)
	r.mu.RUnlock()
	return s
}
