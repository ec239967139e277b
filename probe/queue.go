package probe

import (
	"container/heap"
	"container/list"
	"time"
)

// dueHeap orders idle targets by when they are due.
type dueHeap []*target

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].key.Before(h[j].key) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *dueHeap) Push(x any) {
	t := x.(*target)
	t.index = len(*h)
	*h = append(*h, t)
}
func (h *dueHeap) Pop() any {
	old := *h
	n := len(old) - 1
	t := old[n]
	old[n] = nil
	*h = old[:n]
	t.index = -1
	return t
}

// lane separates servers that answer from servers that were slow the last time, so that these can't take every place.
type lane uint8

const (
	laneQuick lane = iota
	laneSlow
)

// group is the targets of one environment, or of one host where there is no environment. It exists while it has a queue
// or something in flight.
type group struct {
	key      string
	queue    [2]list.List // of *target
	ring     [2]*list.Element
	inFlight int
	slow     int
}

// ring is the groups that may start something in one lane, in turn.
type ring struct{ list.List } // of *group

// place is where a queued target stands.
type place struct {
	g    *group
	lane lane
	elem *list.Element
}

// slowShare is how many of n places slow servers may take.
func slowShare(n int) int { return max(1, n/2) }

func (s *Scheduler) groupKey(t *target) string {
	if t.plan.EnvironmentID != "" {
		return "e" + t.plan.EnvironmentID
	}
	return "h" + t.host
}

// enqueue puts t, which is due and in no other place, into its group's queue; an urgent one before the others.
func (s *Scheduler) enqueue(t *target, urgent bool, now time.Time) {
	key := s.groupKey(t)
	g := s.groups[key]
	if g == nil {
		g = &group{key: key}
		s.groups[key] = g
	}
	p := &place{g: g}
	if t.slow && !t.brief(now) {
		p.lane = laneSlow
	}
	if q := &g.queue[p.lane]; urgent {
		p.elem = q.PushFront(t)
	} else {
		p.elem = q.PushBack(t)
	}
	t.queued = p
	s.stats.Waiting++
	s.offer(g)
}

// brief reports whether the probe that is due has less time than the plan gives: it can't hold its place for long, and
// whoever asks so waits for many servers at once.
func (t *target) brief(now time.Time) bool {
	for _, o := range t.once {
		if o.at.After(now) {
			break
		}
		if o.timeout > 0 && o.timeout < timeout(t.plan) {
			return true
		}
	}
	return false
}

// unqueue takes t out of its group's queue, if it is in one.
func (s *Scheduler) unqueue(t *target) {
	p := t.queued
	if p == nil {
		return
	}
	t.queued = nil
	p.g.queue[p.lane].Remove(p.elem)
	s.stats.Waiting--
	s.offer(p.g)
}

func (s *Scheduler) mayStart(g *group, l lane) bool {
	return g.queue[l].Len() > 0 && g.inFlight < s.perEnvironment &&
		(l == laneQuick || g.slow < slowShare(s.perEnvironment))
}

// offer brings g's places in the rings up to date, and forgets g when nothing is left of it.
func (s *Scheduler) offer(g *group) {
	for l := range g.ring {
		switch may := s.mayStart(g, lane(l)); {
		case may && g.ring[l] == nil:
			g.ring[l] = s.lanes[l].PushBack(g)
		case !may && g.ring[l] != nil:
			s.lanes[l].Remove(g.ring[l])
			g.ring[l] = nil
		}
	}
	if g.inFlight == 0 && g.queue[laneQuick].Len() == 0 && g.queue[laneSlow].Len() == 0 {
		delete(s.groups, g.key)
	}
}

// next takes the target whose turn it is out of its queue, or returns nil where nothing may start. Lanes take turns, and
// so do the groups of a lane.
func (s *Scheduler) next() (t *target, g *group, l lane) {
	if s.inFlight >= s.concurrency {
		return nil, nil, 0
	}
	for range s.lanes {
		l = s.turn
		s.turn ^= 1
		if l == laneSlow && s.slow >= slowShare(s.concurrency) {
			continue
		}
		e := s.lanes[l].Front()
		if e == nil {
			continue
		}
		g = e.Value.(*group)
		s.lanes[l].MoveToBack(e)
		q := &g.queue[l]
		t = q.Remove(q.Front()).(*target)
		t.queued = nil
		s.stats.Waiting--
		g.inFlight++
		s.inFlight++
		if l == laneSlow {
			g.slow++
			s.slow++
		}
		s.offer(g)
		return t, g, l
	}
	return nil, nil, 0
}

// release gives back the place that f held.
func (s *Scheduler) release(f *flight) {
	s.inFlight--
	f.g.inFlight--
	if f.slow {
		s.slow--
		f.g.slow--
	}
	s.offer(f.g)
}

// collect moves what is due from the heap into the queues and returns when the next is.
func (s *Scheduler) collect(now time.Time) (next time.Time, ok bool) {
	if s.disabled {
		return time.Time{}, false
	}
	for len(s.due) > 0 {
		t := s.due[0]
		if t.key.After(now) {
			return t.key, true
		}
		heap.Pop(&s.due)
		// A probe beside the cadence is a question that somebody waits for.
		s.enqueue(t, len(t.once) > 0 && !t.once[0].at.After(now), now)
	}
	return time.Time{}, false
}
