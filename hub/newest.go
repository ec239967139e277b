package hub

import (
	"context"
	"sort"

	"github.com/agentopia/statussync"
)

// minGone is how many removed servers, and windows that are not open, are remembered at least, for subscribers that were not told yet.
const minGone = 1024

// topic is what one entry replaces another of in mode latest: a server's status and its removal are one topic, and so
// are the silence and the return of an environment, and the begin and the end of a window; every other kind is a topic of its own for each server.
type topic struct {
	kind statussync.Kind
	id   string
}

func topicOf(e *statussync.Entry) topic {
	switch e.Kind {
	case statussync.KindStatus, statussync.KindServerRemoved:
		return topic{statussync.KindStatus, e.ServerID}
	case statussync.KindEnvironmentSilent, statussync.KindEnvironmentBack:
		return topic{statussync.KindEnvironmentSilent, e.EnvironmentID}
	case statussync.KindMaintenanceBegin, statussync.KindMaintenanceEnd:
		return topic{statussync.KindMaintenanceBegin, e.MaintenanceID}
	}
	if e.ServerID != "" {
		return topic{e.Kind, e.ServerID}
	}
	return topic{e.Kind, e.EnvironmentID}
}

// besides are the topics of a server that end with its removal.
var besides = []statussync.Kind{statussync.KindServerAdded, statussync.KindServerChanged, statussync.KindToolDrift}

// merged is the newest entry of a topic; Entry is nil when the topic was dropped. Guarded by reader.mu.
type merged struct {
	statussync.Encoded
	place int // in newest.log
	// seen, for a server's status, is by pair of state and health the Seq of the newest entry before or after which the
	// server had it: enough to say for every position which statuses it has had since.
	seen *[statussync.StatusPairs]uint64
}

// since returns the statuses that the server had from position seq on.
func (m *merged) since(seq uint64) (had statussync.StatusSet) {
	if m.seen == nil {
		return 0
	}
	for p, at := range m.seen {
		if at > seq {
			had.AddPair(p)
		}
	}
	return had
}

func (m *merged) note(e *statussync.Entry) {
	if m.seen == nil {
		m.seen = new([statussync.StatusPairs]uint64)
	}
	for _, st := range [2]*statussync.Status{e.Previous, e.Current} {
		if st == nil {
			continue
		}
		if p := statussync.PairOf(st); p >= 0 {
			m.seen[p] = max(m.seen[p], e.Seq)
		}
	}
}

// newest is the log with only the newest entry of each topic left in it: bounded by the fleet, and enough for every
// subscriber in mode latest whose position is not before floor, however far behind it is. The reader's goroutine
// changes it under reader.mu.
type newest struct {
	floor  uint64 // positions from here on can be continued
	log    []logged
	holes  int // places of log whose topic has a newer entry
	topics map[topic]*merged
	live   int // servers and windows, and
	gone   int // those of them that were removed, or are not open: the next window has another id
}

// logged is a place in the log: m is nil where something newer replaced the entry.
type logged struct {
	seq uint64
	m   *merged
}

func newNewest(floor uint64) newest { return newest{floor: floor, topics: map[topic]*merged{}} }

// after is the place of the first entry after seq.
func (n *newest) after(seq uint64) int {
	return sort.Search(len(n.log), func(i int) bool { return n.log[i].seq > seq })
}

// push adds an entry, newer than all.
func (n *newest) push(e statussync.Encoded) {
	t := topicOf(e.Entry)
	m := n.topics[t]
	if m == nil {
		m = &merged{}
		n.topics[t] = m
	} else {
		n.hole(m)
	}
	m.Encoded, m.place = e, len(n.log)
	n.log = append(n.log, logged{e.Seq, m})
	if t.kind == statussync.KindStatus {
		m.note(e.Entry)
	}
	n.count(m, 1)
	if e.Kind == statussync.KindMaintenanceEnd {
		n.forget()
	}
	if t.kind == statussync.KindStatus {
		if e.Kind == statussync.KindServerRemoved {
			for _, k := range besides {
				n.drop(topic{k, e.ServerID})
			}
			n.forget()
		}
	}
	if n.holes > 64 && n.holes > len(n.log)/2 {
		n.compact()
	}
}

// count counts what can end, as ended or not.
func (n *newest) count(m *merged, by int) {
	switch {
	case ended(m.Kind):
		n.gone += by
	case m.seen != nil, m.Kind == statussync.KindMaintenanceBegin:
		n.live += by
	}
}

func ended(k statussync.Kind) bool {
	return k == statussync.KindServerRemoved || k == statussync.KindMaintenanceEnd
}

// hole takes m's entry out of the log.
func (n *newest) hole(m *merged) {
	n.log[m.place].m = nil
	n.holes++
	n.count(m, -1)
}

// drop ends a topic.
func (n *newest) drop(t topic) {
	if m := n.topics[t]; m != nil {
		n.hole(m)
		m.Encoded = statussync.Encoded{} // some subscriber may still hold m
		delete(n.topics, t)
	}
}

// forget drops the oldest of the servers and windows that are gone, where those are too many. Positions before them have ended.
func (n *newest) forget() {
	if n.gone <= max(minGone, n.live) {
		return
	}
	for i, left := 0, n.gone/2; i < len(n.log) && left > 0; i++ {
		if m := n.log[i].m; m != nil && ended(m.Kind) {
			n.floor = max(n.floor, m.Seq)
			n.drop(topicOf(m.Entry))
			left--
		}
	}
}

func (n *newest) compact() {
	kept := n.log[:0]
	for _, l := range n.log {
		if l.m != nil {
			l.m.place = len(kept)
			kept = append(kept, l)
		}
	}
	clear(n.log[len(kept):])
	n.log, n.holes = kept, 0
}

// extend puts before n what old holds: the entries up to n's floor.
func (n *newest) extend(old *newest) {
	log := make([]logged, 0, len(old.log)+len(n.log))
	for _, l := range old.log {
		if l.m == nil {
			continue
		}
		t := topicOf(l.m.Entry)
		if m := n.topics[t]; m != nil {
			if m.seen != nil {
				for p, at := range l.m.seen {
					m.seen[p] = max(m.seen[p], at)
				}
			}
			continue
		}
		if t.kind != statussync.KindStatus && l.m.ServerID != "" {
			if m := n.topics[topic{statussync.KindStatus, t.id}]; m != nil && m.Kind == statussync.KindServerRemoved {
				continue
			}
		}
		n.topics[t] = l.m
		n.count(l.m, 1)
		log = append(log, l)
	}
	n.log, n.floor = append(log, n.log...), old.floor
	n.compact()
	n.forget()
}

// rounds is how a subscription in mode latest goes on. A round tells, as they are at the moment of telling, all topics
// that had changed between the subscription's position and the head when the round began; the position moves when the
// round is over. So a topic waits for one round at most, and one that changes all the time neither waits for ever nor
// makes others wait. The subscription's owner has it to itself.
type rounds struct {
	open   bool
	end    uint64   // the head when the round began
	upTo   uint64   // todo is complete up to here
	looked bool     // todo is complete
	todo   []logged // to be told, in the order of the log
	// also has what is in todo, once the log grew while it was looked through: what moved to its end must be found there,
	// or would be missed, but not be told twice.
	also map[*merged]struct{}
	// told holds the Seq beyond the position that were told; early those that this round told of what came after its
	// beginning.
	told, early []uint64
}

func (o *rounds) wasTold(seq uint64) bool {
	i := sort.Search(len(o.told), func(i int) bool { return o.told[i] >= seq })
	return i < len(o.told) && o.told[i] == seq
}

// collect goes on through the log to its end, some way at a time. The caller holds mu.RLock.
func (s *subscription) collect() {
	o, n := &s.round, &s.r.news
	i := n.after(o.upTo)
	for step := 0; step < scanChunk; i, step = i+1, step+1 {
		if i == len(n.log) {
			o.looked, o.also = true, nil
			return
		}
		l := n.log[i]
		o.upTo = l.seq
		if l.m == nil || o.wasTold(l.seq) || !s.m.MatchMerged(l.m.Entry, l.m.since(s.pos.Seq)) {
			continue
		}
		if l.seq > o.end {
			if o.also == nil {
				o.also = make(map[*merged]struct{}, len(o.todo))
				for _, t := range o.todo {
					o.also[t.m] = struct{}{}
				}
			}
			if _, ok := o.also[l.m]; ok {
				continue
			}
			o.also[l.m] = struct{}{}
		}
		o.todo = append(o.todo, l)
	}
}

// fillLatest is fillLive in mode latest. One call appends entries of one round, in journal order.
func (s *subscription) fillLatest(buf []statussync.Event, mayWait bool) (out []statussync.Event, more, wait bool, err error) {
	r, o := s.r, &s.round
	r.mu.RLock()
	if s.pos.Epoch != r.epoch {
		r.mu.RUnlock()
		s.resync(statussync.ResyncEpoch)
		return buf, false, false, nil
	}
	if !o.open {
		s.skip()
		if s.pos.Seq >= r.head {
			if mayWait {
				s.wait()
			}
			r.mu.RUnlock()
			return buf, false, mayWait, nil
		}
		o.open, o.end, o.upTo = true, r.head, s.pos.Seq
		s.mark, s.next = s.pos, 0
	}
	if s.pos.Seq < r.news.floor {
		r.mu.RUnlock()
		s.resync(statussync.ResyncExpired)
		return buf, false, false, nil
	}
	defer r.mu.RUnlock()
	if !o.looked {
		s.collect()
		return buf, true, false, nil
	}
	from, before := len(buf), s.mark
	for n := 0; n < scanChunk && len(o.todo) > 0 && len(buf) < cap(buf); n++ {
		l := o.todo[0]
		o.todo[0], o.todo = logged{}, o.todo[1:]
		if s.marks {
			s.mark.Seq = max(s.mark.Seq, min(l.seq, o.end))
		}
		// It may have been dropped, or have become something that was not asked for: then a later round looks again.
		m := l.m
		if m.Entry == nil || !s.m.MatchMerged(m.Entry, m.since(s.pos.Seq)) {
			continue
		}
		buf = append(buf, statussync.Event{Type: statussync.EventEntry, Cursor: before, Entry: m.Entry, JSON: m.JSON})
		if m.Seq > o.end {
			o.early = append(o.early, m.Seq)
		}
	}
	told := buf[from:]
	sort.Slice(told, func(i, k int) bool { return told[i].Entry.Seq < told[k].Entry.Seq })
	if len(o.todo) == 0 {
		s.pos.Seq = o.end
		s.mark = s.pos
		sort.Slice(o.early, func(i, k int) bool { return o.early[i] < o.early[k] })
		*o = rounds{told: o.early}
	}
	if len(told) > 0 {
		told[len(told)-1].Cursor = s.mark
	}
	return buf, len(told) == 0, false, nil
}

// bookmarkLatest is Bookmark in mode latest. The caller holds mu.RLock, and pos is of the reader's epoch.
func (s *subscription) bookmarkLatest() (at statussync.Cursor, ok bool) {
	r, o := s.r, &s.round
	if o.open {
		return statussync.Cursor{}, false
	}
	s.skip()
	if s.pos.Seq < r.news.floor {
		return statussync.Cursor{}, false
	}
	for i, step := r.news.after(s.pos.Seq), 0; i < len(r.news.log); i, step = i+1, step+1 {
		l := r.news.log[i]
		if step == scanChunk || (l.m != nil && !o.wasTold(l.seq) && s.m.MatchMerged(l.m.Entry, l.m.since(s.pos.Seq))) {
			return statussync.Cursor{}, false
		}
	}
	s.pos.Seq, s.next = max(s.pos.Seq, r.head), 0
	*o = rounds{}
	return s.pos, true
}

// older is what a subscription has read of the log before the reader's memory.
type older struct {
	newest
	at statussync.Cursor // read up to here
}

// reach makes the reader's memory reach back to the subscription's position, by reading the store once for everybody.
// It is for positions from before the hub's start. ok is false where the store can't give the entries, or where they
// are so many that a snapshot is shorter. After ctx's end it can be called again, and goes on.
func (s *subscription) reach(ctx context.Context) (ok bool, err error) {
	r := s.r
	if ok, _, _ := r.reaches(s.pos); ok {
		return true, nil
	}
	select {
	case r.reading <- struct{}{}: // others then find it done
		defer func() { <-r.reading }()
	case <-ctx.Done():
		return false, ctx.Err()
	case <-s.closed:
		return false, errClosed
	case <-r.done:
		return false, errStopped
	}
	for {
		ok, possible, floor := r.reaches(s.pos)
		if ok || !possible {
			return ok, nil
		}
		if s.older == nil {
			s.older = &older{newest: newNewest(s.pos.Seq), at: s.pos}
		}
		if s.older.at.Seq >= floor {
			break
		}
		page, err := s.readStore(ctx, s.older.at, floor)
		if err != nil || len(page) == 0 {
			return false, err
		}
		for _, e := range page {
			s.older.push(e)
		}
		s.older.at.Seq = page[len(page)-1].Seq
		if err := s.over(); err != nil {
			return false, err
		}
	}
	r.mu.Lock()
	if r.epoch == s.pos.Epoch && r.news.floor <= s.older.at.Seq && r.news.floor > s.older.floor {
		r.news.extend(&s.older.newest)
	}
	r.mu.Unlock()
	s.older = nil
	ok, _, _ = r.reaches(s.pos) // not where so many servers are gone that they had to be forgotten
	return ok, nil
}

// reaches reports whether the memory reaches back to at, and else up to where it does not and whether it should.
func (r *reader) reaches(at statussync.Cursor) (ok, possible bool, floor uint64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	floor = r.news.floor
	if at.Epoch != r.epoch {
		return false, false, floor
	}
	return at.Seq >= floor, at.Seq < floor && floor-at.Seq <= uint64(len(r.ring.buf)), floor
}
