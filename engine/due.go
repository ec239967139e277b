package engine

import "time"

type dueKind uint8

// The kinds of deadline, in the order in which equal ones happen: a window marks what falls at the same moment, and a
// lost environment falls as one before its servers are looked at one by one.
const (
	dueWindow dueKind = iota
	dueEnv
	dueDoubt
	dueServer
)

// dueNode is the one place in the heap that a window, a server, an environment or the doubt has: the nearest of its deadlines.
type dueNode struct {
	at     time.Time
	kind   dueKind
	index  int // in the heap; -1: not in it
	server *server
	env    *environment
	window *window
}

func (n *dueNode) before(o *dueNode) bool {
	if !n.at.Equal(o.at) {
		return n.at.Before(o.at)
	}
	if n.kind != o.kind {
		return n.kind < o.kind
	}
	switch n.kind { // by id, so that equal histories have equal effects
	case dueWindow:
		return n.window.def.ID < o.window.def.ID
	case dueEnv:
		return n.env.Def.ID < o.env.Def.ID
	case dueServer:
		return n.server.Def.ID < o.server.Def.ID
	}
	return false
}

// dueHeap is a binary heap with indexes; container/heap would box every call.
type dueHeap []*dueNode

// set puts n at a time, or takes it out where at is zero.
func (h *dueHeap) set(n *dueNode, at time.Time) {
	if at.IsZero() {
		h.remove(n)
		return
	}
	if n.index >= 0 {
		if n.at.Equal(at) {
			return
		}
		n.at = at
		h.down(n.index)
		h.up(n.index)
		return
	}
	n.at, n.index = at, len(*h)
	*h = append(*h, n)
	h.up(n.index)
}

func (h *dueHeap) remove(n *dueNode) {
	i := n.index
	if i < 0 {
		return
	}
	last := len(*h) - 1
	h.swap(i, last)
	(*h)[last] = nil
	*h = (*h)[:last]
	n.index = -1
	if i < last {
		h.down(i)
		h.up(i)
	}
}

func (h *dueHeap) swap(i, j int) {
	a := *h
	a[i], a[j] = a[j], a[i]
	a[i].index, a[j].index = i, j
}

func (h *dueHeap) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if !(*h)[i].before((*h)[p]) {
			return
		}
		h.swap(i, p)
		i = p
	}
}

func (h *dueHeap) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(*h) {
			return
		}
		if c+1 < len(*h) && (*h)[c+1].before((*h)[c]) {
			c++
		}
		if !(*h)[c].before((*h)[i]) {
			return
		}
		h.swap(i, c)
		i = c
	}
}

// nearest collects the earliest time that lies after now: each rule that looks at a limit tells it when it passes.
type nearest struct {
	now time.Time
	at  time.Time
}

func (n *nearest) add(t time.Time) {
	if n == nil || t.IsZero() || !t.After(n.now) {
		return
	}
	if n.at.IsZero() || t.Before(n.at) {
		n.at = t
	}
}
