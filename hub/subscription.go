package hub

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/agentopia/statussync"
)

const (
	snapshotPage = 500 // servers in one snapshot event
	// snapshotBytes is about how large the JSON of one snapshot event may be, unless one server alone is larger:
	// everybody who is told one holds it at the same time where all begin afresh, and clients have limits too.
	snapshotBytes = 256 << 10
	scanChunk     = 1024 // ring entries looked at under one hold of the lock
	replayPage    = 256  // entries read from the store at once
)

// subscription is a position in the log and a filter. It has no queue and no goroutine: whoever calls Next does the
// reading.
type subscription struct {
	r       *reader
	m       *statussync.Matcher
	want    statussync.SubscribeRequest
	ids     []string // the servers that it is restricted to, where indexed
	indexed bool
	wake    chan struct{}
	closed  chan struct{}
	once    sync.Once

	// These belong to whoever calls Next and Bookmark.
	begun bool
	pos   statussync.Cursor    // everything up to it was considered
	queue []statussync.Event   // to be told before anything else
	snap  *snapshot            // being told
	items []*serverState       // of snap: those that match and are not told yet
	page  []statussync.Encoded // read from the store and not considered yet
	round rounds               // mode latest
	// Mode latest: mark is from where a subscriber can go on that was told what the round has told so far. Where the
	// filter looks at statuses it stays at the round's beginning: who resumed in the middle could not be told from there
	// which statuses the rest had before.
	mark  statussync.Cursor
	marks bool
	older *older // mode latest, while it begins

	// These are written by apply under reader.mu, and by the owner under reader.mu.RLock.
	next    uint64 // indexed: the first entry after pos that may match; 0: none up to the head
	waiting bool
	place   int // in reader.waiters, while it waits and is not indexed
}

var errClosed = statussync.NewError(statussync.CodeUnavailable, "the subscription is closed", nil)

// Subscribe opens a subscription. It waits until the hub has started; later, ctx has no meaning to it. An error has
// CodeInvalid where the request is wrong, and CodeUnavailable where there are too many subscriptions or the hub has
// stopped.
//
// With Snapshot, a Cursor is not continued: the snapshot holds what happened since, and Recovered is false. The first
// event's cursor is the one given where it is continued, otherwise the position from which entries or the snapshot
// follow. A position whose entries can't be read, because they are deleted or the store fails, gets a resync with
// reason expired.
//
// In ModeLatest a subscriber that is behind is told, of each server that changed, the newest status or removal as it is
// when Next returns it, and of the other kinds that its filter asks for the newest of each kind and server, and of
// environment_silent and environment_back the newer one of each environment; what was about a server that is removed
// since is not told any more. A filter's states and healths match when the server had such a status at any time since
// it was last told, so that none stays on a list that it has left. The events of one Next are in journal order; those of
// several need not be, so an entry's event has as its cursor the position that is valid after it, which may be before
// the entry itself: who resumes there may be told some entries again. It moves on with each Next, but where the filter
// has states or healths only when everything is told that had changed when the telling began. Nothing is read from the store but at the
// beginning, for a cursor from before the hub's start; one that is more than RingSize entries before that start gets a
// resync with reason expired, and so does one that is further back than the removed servers that are remembered (at
// least 1,024, and as many as there are servers).
func (h *Hub) Subscribe(ctx context.Context, req statussync.SubscribeRequest) (statussync.Subscription, error) {
	switch req.Mode {
	case "", statussync.ModeEvery:
	case statussync.ModeLatest:
		for _, c := range req.Filter.Clauses {
			if c.Type != "" {
				return nil, statussync.Invalid("filters.type", "can't be given with mode latest, which merges changes")
			}
		}
	default:
		return nil, statussync.Invalid("mode", "must be every or latest")
	}
	f := req.Filter
	f.Leave = f.Leave || req.Snapshot || req.Mode == statussync.ModeLatest
	m, err := f.Compile()
	if err != nil {
		return nil, err
	}
	select {
	case <-h.started:
	case <-h.stopped:
		return nil, errStopped
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return h.reader.subscribe(m, req)
}

func (r *reader) subscribe(m *statussync.Matcher, req statussync.SubscribeRequest) (*subscription, error) {
	s := &subscription{r: r, m: m, want: req, pos: req.Cursor, wake: make(chan struct{}, 1), closed: make(chan struct{})}
	s.ids, s.indexed = m.ServerIDs()
	s.marks = !slices.ContainsFunc(req.Filter.Clauses, func(c statussync.Clause) bool { return c.States != nil || c.Healths != nil })
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return nil, errStopped
	}
	if len(r.subs) >= r.maxSubs {
		return nil, statussync.NewError(statussync.CodeUnavailable, fmt.Sprintf("there are %d subscriptions already, the most that are allowed", r.maxSubs), nil)
	}
	r.subs[s] = struct{}{}
	if s.indexed {
		for _, id := range s.ids {
			set := r.index[id]
			if set == nil {
				set = map[*subscription]struct{}{}
				r.index[id] = set
			}
			set[s] = struct{}{}
		}
		if !req.Cursor.IsZero() {
			s.next = req.Cursor.Seq + 1
		}
	}
	if req.Cursor.IsZero() {
		s.pos = r.cursorLocked()
	}
	return s, nil
}

// Close implements statussync.Subscription.
func (s *subscription) Close() {
	s.once.Do(func() {
		close(s.closed)
		r := s.r
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.subs, s)
		for _, id := range s.ids {
			set := r.index[id]
			delete(set, s)
			if len(set) == 0 {
				delete(r.index, id)
			}
		}
		if s.waiting {
			s.waiting = false
			if !s.indexed {
				r.unwait(s)
			}
		}
	})
}

// unwait takes s off the list of waiters. The caller holds mu, or waitMu beside mu.RLock.
func (r *reader) unwait(s *subscription) {
	last := len(r.waiters) - 1
	r.waiters[s.place] = r.waiters[last]
	r.waiters[s.place].place = s.place
	r.waiters[last] = nil
	r.waiters = r.waiters[:last]
}

func (s *subscription) over() error {
	select {
	case <-s.closed:
		return errClosed
	case <-s.r.done:
		return errStopped
	default:
		return nil
	}
}

// Next implements statussync.Subscription. One call returns at most one page of a snapshot.
func (s *subscription) Next(ctx context.Context, buf []statussync.Event) ([]statussync.Event, error) {
	if len(buf) == cap(buf) {
		return buf, statussync.Invalid("buf", "has no room for an event")
	}
	start := len(buf)
	for {
		if err := s.over(); err != nil {
			return buf, err
		}
		if err := ctx.Err(); err != nil {
			return buf, err
		}
		if !s.begun {
			if err := s.begin(ctx); err != nil {
				return buf, err
			}
			s.begun = true
		}
		var wait bool
		var err error
		buf, wait, err = s.fill(ctx, buf, start)
		if len(buf) > start {
			return buf, nil // an error comes back at the next call
		}
		if err != nil {
			return buf, err
		}
		if !wait {
			continue
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			s.stopWaiting()
			return buf, ctx.Err()
		case <-s.closed:
			s.stopWaiting()
			return buf, errClosed
		case <-s.r.done:
			s.stopWaiting()
			return buf, errStopped
		}
	}
}

// begin decides how the subscription starts. After an error, it can be called again.
func (s *subscription) begin(ctx context.Context) error {
	ev := statussync.Event{Type: statussync.EventSubscribed}
	var resync statussync.ResyncReason
	switch {
	case s.want.Snapshot:
		s.takeSnapshot()
		ev.Cursor, ev.Durable = s.snap.at, s.snap.durable
	case s.want.Cursor.IsZero():
		ev.Cursor, ev.Durable = s.pos, s.r.isDurable()
	default:
		reason, ok := s.r.covers(s.pos)
		if ok && s.want.Mode == statussync.ModeLatest {
			var err error
			if ok, err = s.reach(ctx); err != nil {
				return err
			}
			reason = statussync.ResyncExpired
		}
		if !ok {
			s.takeSnapshot()
			resync = reason
			ev.Cursor, ev.Durable = s.snap.at, s.snap.durable
			break
		}
		ev.Cursor, ev.Durable, ev.Recovered = s.pos, s.r.isDurable(), true
	}
	s.queue = append(s.queue, ev)
	if resync != "" {
		s.r.resyncs.Add(1)
		s.queue = append(s.queue, statussync.Event{Type: statussync.EventResync, Reason: resync})
	}
	return nil
}

func (r *reader) isDurable() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.durable
}

// takeSnapshot puts the subscription at the head, with the statuses as of there to be told first. What is published
// from then on is noted in next.
func (s *subscription) takeSnapshot() {
	r := s.r
	s.page, s.round, s.older = nil, rounds{}, nil
	r.mu.RLock()
	if !s.indexed {
		s.snap = r.snapshotLocked()
	} else {
		s.snap = &snapshot{at: r.cursorLocked(), durable: r.durable}
		for _, id := range s.ids {
			if sl := r.byID[id]; sl != nil {
				s.snap.items = append(s.snap.items, sl.cur)
			}
		}
	}
	s.pos = s.snap.at
	s.next = 0
	r.mu.RUnlock()
	s.items = make([]*serverState, 0, len(s.snap.items))
	for _, it := range s.snap.items {
		if s.m.MatchServer(it.server, &it.status) {
			s.items = append(s.items, it)
		}
	}
}

func (s *subscription) resync(reason statussync.ResyncReason) {
	s.r.resyncs.Add(1)
	s.takeSnapshot()
	s.queue = append(s.queue, statussync.Event{Type: statussync.EventResync, Reason: reason})
}

// fill appends what there is to tell. wait says that there is nothing, and that the subscription is registered to be
// woken when there may be.
func (s *subscription) fill(ctx context.Context, buf []statussync.Event, start int) (out []statussync.Event, wait bool, err error) {
	for len(buf) < cap(buf) && len(s.queue) > 0 {
		buf = append(buf, s.queue[0])
		s.queue = s.queue[1:]
	}
	if len(buf) < cap(buf) && s.snap != nil {
		buf = s.fillSnapshot(buf)
	}
	for len(buf) < cap(buf) && s.snap == nil && len(s.queue) == 0 {
		var more bool
		buf, more, wait, err = s.fillLive(ctx, buf, len(buf) == start)
		if !more || err != nil {
			break
		}
	}
	return buf, wait, err
}

// fillSnapshot appends one page, and the end where it was the last and there is room. An empty snapshot has one empty
// page.
func (s *subscription) fillSnapshot(buf []statussync.Event) []statussync.Event {
	if s.items != nil {
		n, size := 0, 0
		for n < min(len(s.items), snapshotPage) && size < snapshotBytes {
			size += sizeOf(s.items[n].server)
			n++
		}
		ev := statussync.Event{Type: statussync.EventSnapshot, Items: make([]statussync.ServerView, n), More: n < len(s.items)}
		for i, it := range s.items[:n] {
			ev.Items[i] = statussync.ServerView{Server: it.server, Status: it.status, Probing: it.probing, Now: s.r.now()}
		}
		buf = append(buf, ev)
		s.items = s.items[n:]
		if ev.More {
			return buf
		}
		s.items = nil
	}
	if len(buf) < cap(buf) {
		buf = append(buf, statussync.Event{Type: statussync.EventSnapshotEnd, Cursor: s.snap.at})
		s.snap = nil
	}
	return buf
}

// sizeOf is about how many bytes of JSON a server with its status is.
func sizeOf(s *statussync.Server) int {
	n := 400 + len(s.ID) + len(s.Name) + len(s.Container) + len(s.Owner) + len(s.Endpoint) + len(s.Type) + len(s.Probe.URL)
	for k, v := range s.Labels {
		n += len(k) + len(v) + 6
	}
	for k, v := range s.Capabilities {
		n += len(k) + 4 + sizeOfValue(v)
	}
	return n
}

func sizeOfValue(v any) (n int) {
	switch v := v.(type) {
	case string:
		return len(v) + 2
	case []any:
		for _, v := range v {
			n += 1 + sizeOfValue(v)
		}
		return n + 2
	case map[string]any:
		for k, v := range v {
			n += len(k) + 4 + sizeOfValue(v)
		}
		return n + 2
	}
	return 8
}

// fillLive considers the next piece of the log. more: there is more to consider. With mayWait, a subscription that has
// considered everything is registered to be woken.
func (s *subscription) fillLive(ctx context.Context, buf []statussync.Event, mayWait bool) (out []statussync.Event, more, wait bool, err error) {
	if len(s.page) > 0 {
		return s.fillPage(buf), true, false, nil
	}
	if s.want.Mode == statussync.ModeLatest {
		return s.fillLatest(buf, mayWait)
	}
	r := s.r
	r.mu.RLock()
	if s.pos.Epoch != r.epoch {
		r.mu.RUnlock()
		s.resync(statussync.ResyncEpoch)
		return buf, false, false, nil
	}
	s.skip()
	if s.pos.Seq >= r.head {
		if mayWait {
			s.wait()
		}
		r.mu.RUnlock()
		return buf, false, mayWait, nil
	}
	if s.pos.Seq < r.ring.base() {
		head := r.head
		r.mu.RUnlock()
		err := s.replay(ctx, head)
		return buf, err == nil && s.snap == nil, false, err
	}
	for n := 0; n < scanChunk && s.pos.Seq < r.head && len(buf) < cap(buf); n++ {
		e := r.ring.at(s.pos.Seq + 1)
		s.pos.Seq++
		if s.m.Match(e.Entry) {
			buf = append(buf, statussync.Event{Type: statussync.EventEntry, Cursor: s.pos, Entry: e.Entry, JSON: e.JSON})
		}
	}
	if s.indexed {
		s.next = 0
		if s.pos.Seq < r.head {
			s.next = s.pos.Seq + 1
		}
	}
	r.mu.RUnlock()
	return buf, true, false, nil
}

// skip goes over entries that are known not to match. The caller holds mu.RLock, and pos is of the reader's epoch.
func (s *subscription) skip() {
	if !s.indexed {
		return
	}
	if s.next == 0 {
		s.pos.Seq = s.r.head
	} else if s.next-1 > s.pos.Seq {
		s.pos.Seq = s.next - 1
	}
}

// wait registers the subscription to be woken. The caller holds mu.RLock.
func (s *subscription) wait() {
	r := s.r
	select {
	case <-s.wake: // of an earlier time
	default:
	}
	s.waiting = true
	if s.indexed {
		return
	}
	r.waitMu.Lock()
	s.place = len(r.waiters)
	r.waiters = append(r.waiters, s)
	r.waitMu.Unlock()
}

// stopWaiting takes the registration back.
func (s *subscription) stopWaiting() {
	r := s.r
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !s.waiting {
		return
	}
	s.waiting = false
	if !s.indexed {
		r.waitMu.Lock()
		r.unwait(s)
		r.waitMu.Unlock()
	}
}

// replay reads the next page from the store. Where the store can't give it, the subscription resyncs.
func (s *subscription) replay(ctx context.Context, head uint64) error {
	page, err := s.readStore(ctx, s.pos, head)
	if err != nil {
		return err
	}
	if len(page) == 0 {
		s.resync(statussync.ResyncExpired)
	}
	s.page = page
	return nil
}

// readStore reads the page of entries that follow after. Entries beyond head, which was published, are left: they may
// have been given up. The page is empty where the store can't give it; the error is only ctx's.
func (s *subscription) readStore(ctx context.Context, after statussync.Cursor, head uint64) ([]statussync.Encoded, error) {
	s.r.storeReads.Add(1)
	page, err := s.r.journal.Read(ctx, after, replayPage, make([]statussync.Encoded, 0, replayPage))
	for len(page) > 0 && page[len(page)-1].Seq > head {
		page = page[:len(page)-1]
	}
	if err == nil && len(page) > 0 && page[0].Seq == after.Seq+1 {
		return page, nil
	}
	if ctxErr := ctx.Err(); ctxErr != nil {
		return nil, ctxErr
	}
	if statussync.CodeOf(err) != statussync.CodeExpired {
		s.r.log.Warn("a subscriber's position can't be read from the store: it resyncs", "cursor", after, "error", err)
	}
	return nil, nil
}

// fillPage considers entries that were read from the store.
func (s *subscription) fillPage(buf []statussync.Event) []statussync.Event {
	for len(s.page) > 0 && len(buf) < cap(buf) {
		e := s.page[0]
		s.page = s.page[1:]
		s.pos.Seq = e.Seq
		if s.m.Match(e.Entry) {
			buf = append(buf, statussync.Event{Type: statussync.EventEntry, Cursor: s.pos, Entry: e.Entry, JSON: e.JSON})
		}
	}
	if len(s.page) == 0 {
		s.page = nil
	}
	return buf
}

// Bookmark implements statussync.Subscription. It never blocks on the store: behind the ring it says false.
func (s *subscription) Bookmark() (at statussync.Cursor, ok bool) {
	if !s.begun || len(s.queue) > 0 || s.snap != nil || len(s.page) > 0 {
		return statussync.Cursor{}, false
	}
	r := s.r
	r.mu.RLock()
	defer r.mu.RUnlock()
	if s.pos.Epoch != r.epoch {
		return statussync.Cursor{}, false
	}
	if s.want.Mode == statussync.ModeLatest {
		return s.bookmarkLatest()
	}
	s.skip()
	if s.pos.Seq < r.ring.base() {
		return statussync.Cursor{}, false
	}
	for n := 0; s.pos.Seq < r.head; n++ {
		if n == scanChunk || s.m.Match(r.ring.at(s.pos.Seq+1).Entry) {
			return statussync.Cursor{}, false
		}
		s.pos.Seq++
	}
	s.next = 0
	return s.pos, true
}
