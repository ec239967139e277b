// Package drift looks at the tools that MCP servers list (L2 of docs/protocols.md §6): each server that is up is asked for
// its list every ten minutes, and what it lists becomes an observation. What differs from before, and whether that is
// good, is the engine's to say.
//
// Guarantees:
//
//   - A server is asked at most once at a time, and not before it is up. Looks are spread over the interval and moved by
//     ±10 %; at most Options.Concurrency run at once, so a slow server delays no more than one place.
//   - One that comes up, is new, or has another address is looked at within Options.Soon where that many looks fit into
//     the time; where more come up at once than 20 a second they take as long as that needs, at most the interval.
//   - A list that can't be read is told as such. It is no evidence of health: probes tell that.
//   - There is one goroutine that waits for time, and one for each look that may run at once; no timer for a server.
package drift

import (
	"container/heap"
	"context"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/agentopia/statussync"
)

// Defaults of Options.
const (
	DefaultEvery       = 10 * time.Minute
	DefaultSoon        = 30 * time.Second
	DefaultConcurrency = 8
)

// perLook is how much time one look is given where many servers come up at once.
const perLook = 50 * time.Millisecond

// Options says how a Service looks. Look and Up are required.
type Options struct {
	// Look asks a server for its tools, now and not from a cache. It returns within a minute and when ctx ends, and is safe
	// for concurrent use. Its error's text is shown to people.
	Look func(ctx context.Context, plan *statussync.ProbePlan) ([]statussync.ToolRef, error)
	// Up reports whether a server is known to be up. It is asked for every MCP server a few times a minute, and must not
	// block.
	Up func(serverID string) bool
	// Every is the time between two looks at one server. 0: DefaultEvery.
	Every time.Duration
	// Soon is how long after it came up a server is looked at at the latest. 0: DefaultSoon.
	Soon time.Duration
	// Concurrency bounds the looks that run at once. 0: DefaultConcurrency.
	Concurrency int
	Logger      *slog.Logger // nil logs nothing. The service adds component=drift.
}

// Service looks at tools. It is a statussync.Requester, which learns from plans which servers there are, and a
// statussync.Source. All methods are safe for concurrent use.
type Service struct {
	o    Options
	log  *slog.Logger
	jobs chan *target
	wake chan struct{}

	mu       sync.Mutex // held for moments; guards what follows
	targets  map[string]*target
	due      dueHeap // those that wait for a time, and look while enabled
	asked    []*target
	running  int
	enabled  bool
	phase    phase
	stats    Stats
	stopping chan struct{} // closed when Run ends
}

type phase uint8

const (
	phaseNew phase = iota
	phaseRunning
	phaseStopped
)

// target is one server.
type target struct {
	plan    *statussync.ProbePlan
	gone    bool // removed: what is under way counts no more
	up      bool // as last seen
	at      time.Time
	index   int // in the heap; -1: not in it
	busy    bool
	again   bool          // somebody asked, or its address changed, while it was being looked at
	waiters []chan result // of Now, for a look that begins from now on
	serving []chan result // for the one that runs
}

type result struct{ err error }

// Stats are numbers since the start.
type Stats struct {
	Servers int    // that could be looked at
	Waiting int    // that are up and wait for their next look
	Looks   uint64 // that ended
	Failed  uint64 // of them, those that gave no list
}

// New checks the options and returns a Service. An error is a *statussync.Error that names the option.
func New(o Options) (*Service, error) {
	switch {
	case o.Look == nil:
		return nil, statussync.Invalid("Options.Look", "is required")
	case o.Up == nil:
		return nil, statussync.Invalid("Options.Up", "is required")
	case o.Every < 0:
		return nil, statussync.Invalid("Options.Every", "must not be negative")
	case o.Soon < 0:
		return nil, statussync.Invalid("Options.Soon", "must not be negative")
	case o.Concurrency < 0:
		return nil, statussync.Invalid("Options.Concurrency", "must not be negative")
	}
	if o.Every == 0 {
		o.Every = DefaultEvery
	}
	if o.Soon == 0 {
		o.Soon = DefaultSoon
	}
	o.Soon = min(o.Soon, o.Every)
	if o.Concurrency == 0 {
		o.Concurrency = DefaultConcurrency
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return &Service{
		o: o, log: o.Logger.With("component", "drift"), jobs: make(chan *target), wake: make(chan struct{}, 1),
		targets: map[string]*target{}, enabled: true, stopping: make(chan struct{}),
	}, nil
}

// Do implements statussync.Requester: plans of kind mcp say which servers there are.
func (s *Service) Do(reqs []statussync.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range reqs {
		p := reqs[i].Plan
		if p == nil {
			continue
		}
		t := s.targets[p.ServerID]
		if p.Removed || p.Kind != statussync.ProbeMCP {
			if t != nil {
				s.removeLocked(t)
			}
			continue
		}
		if t == nil {
			s.targets[p.ServerID] = &target{plan: p, index: -1}
			continue
		}
		was := t.plan
		if t.plan = p; another(was, p) {
			if t.busy {
				t.again = true
			} else {
				s.dropLocked(t)
				t.up = false // found up again, it is looked at soon
			}
		}
	}
}

// another reports whether two plans ask in different ways: what one gave may not be what the other gives.
func another(a, b *statussync.ProbePlan) bool {
	return a.URL != b.URL || a.Transport != b.Transport || !maps.Equal(a.Headers, b.Headers)
}

func (s *Service) removeLocked(t *target) {
	delete(s.targets, t.plan.ServerID)
	t.gone = true
	s.dropLocked(t)
	tell(t.waiters, errGone)
	t.waiters = nil
}

func (s *Service) dropLocked(t *target) {
	if t.index >= 0 {
		heap.Remove(&s.due, t.index)
	}
}

var (
	errGone    = &statussync.Error{Code: statussync.CodeNotFound, Detail: "the server is not probed as an MCP server any more"}
	errStopped = &statussync.Error{Code: statussync.CodeUnavailable, Detail: "the service is stopping"}
)

// tell answers those that wait; each channel has room for its one answer.
func tell(list []chan result, err error) {
	for _, c := range list {
		c <- result{err}
	}
}

// SetEnabled switches looking by the clock on or off; Now works in any case. It does not wait for looks that run.
func (s *Service) SetEnabled(on bool) {
	s.mu.Lock()
	s.enabled = on
	s.mu.Unlock()
	s.poke()
}

func (s *Service) poke() {
	select {
	case s.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Stats returns the numbers of now.
func (s *Service) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Servers, st.Waiting = len(s.targets), len(s.due)
	return st
}

// Now looks at one server, whether it is up or not, and returns once what it lists has been concluded from and is
// visible to readers. It blocks while other looks are before it, until ctx ends. The error is that of the look;
// CodeNotFound: the server is not probed as an MCP server.
func (s *Service) Now(ctx context.Context, serverID string) error {
	answer := make(chan result, 1)
	s.mu.Lock()
	t := s.targets[serverID]
	switch {
	case s.phase != phaseRunning:
		s.mu.Unlock()
		return errStopped
	case t == nil:
		s.mu.Unlock()
		return &statussync.Error{Code: statussync.CodeNotFound, Detail: "the server is not probed as an MCP server: it has no list of tools"}
	}
	first := len(t.waiters) == 0
	t.waiters = append(t.waiters, answer)
	if t.busy {
		t.again = true
	} else if first {
		s.asked = append(s.asked, t)
	}
	s.mu.Unlock()
	s.poke()
	select {
	case r := <-answer:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stopping:
		return errStopped
	}
}

// Run looks until ctx ends, and then returns nil. It may be called once. Looks that run then are given up; it joins all
// its goroutines before it returns.
func (s *Service) Run(ctx context.Context, to statussync.Observer) error {
	s.mu.Lock()
	if s.phase != phaseNew {
		s.mu.Unlock()
		return &statussync.Error{Code: statussync.CodeConflict, Detail: "drift: Run may be called only once"}
	}
	s.phase = phaseRunning
	s.mu.Unlock()
	var workers sync.WaitGroup
	for range s.o.Concurrency {
		workers.Go(func() {
			for t := range s.jobs {
				s.look(ctx, t, to)
			}
		})
	}
	s.loop(ctx)
	close(s.jobs)
	workers.Wait()
	s.mu.Lock()
	s.phase = phaseStopped
	s.mu.Unlock()
	close(s.stopping)
	return nil
}

// scans is how often it is looked who is up: so that one that comes up is seen after a third of Soon at most, and its
// look can be put anywhere into the rest.
const scans = 3

// loop is the only goroutine that waits for time and starts looks.
func (s *Service) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	scanEvery := s.o.Soon / scans
	nextScan := time.Now()
	for {
		now := time.Now()
		if !now.Before(nextScan) {
			s.scan(now)
			nextScan = now.Add(scanEvery)
		}
		for {
			t := s.next(now)
			if t == nil {
				break
			}
			select {
			case s.jobs <- t: // next has seen to it that a worker is free, or about to be
			case <-ctx.Done():
				return
			}
		}
		wait := nextScan.Sub(now)
		s.mu.Lock()
		if s.enabled && s.running < s.o.Concurrency && len(s.due) > 0 {
			wait = min(wait, s.due[0].at.Sub(now))
		}
		s.mu.Unlock()
		timer.Reset(max(wait, time.Millisecond))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.wake:
		}
	}
}

// scan finds who came up, and who is up no more. Up is asked without the lock.
func (s *Service) scan(now time.Time) {
	s.mu.Lock()
	list := make([]*target, 0, len(s.targets))
	ids := make([]string, 0, len(s.targets))
	for id, t := range s.targets {
		list, ids = append(list, t), append(ids, id)
	}
	s.mu.Unlock()
	up := make([]bool, len(list))
	for i, id := range ids {
		up[i] = s.o.Up(id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var came []*target
	for i, t := range list {
		switch {
		case t.gone || t.up == up[i]:
		case up[i]:
			t.up = true
			if !t.busy {
				came = append(came, t)
			}
		default:
			t.up = false
			s.dropLocked(t)
		}
	}
	// All at once would be a burst; at most so many a second are begun.
	room := max(s.o.Soon-s.o.Soon/scans, min(s.o.Every, time.Duration(len(came))*perLook))
	rand.Shuffle(len(came), func(i, k int) { came[i], came[k] = came[k], came[i] })
	for i, t := range came {
		s.setLocked(t, now.Add(room*time.Duration(i)/time.Duration(len(came))+rand.N(room/time.Duration(len(came))+1)))
	}
}

func (s *Service) setLocked(t *target, at time.Time) {
	s.dropLocked(t)
	t.at = at
	heap.Push(&s.due, t)
}

// next takes the next server to look at: one that somebody asked for, else one that is due; nil where there is none, or
// as many looks run as may.
func (s *Service) next(now time.Time) *target {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running >= s.o.Concurrency {
		return nil
	}
	var t *target
	for len(s.asked) > 0 && t == nil {
		if t = s.asked[0]; t.gone || t.busy {
			t = nil
		}
		s.asked = s.asked[1:]
	}
	if t == nil && s.enabled && len(s.due) > 0 && !s.due[0].at.After(now) {
		t = s.due[0]
	}
	if t == nil {
		return nil
	}
	s.dropLocked(t)
	t.busy = true
	t.serving, t.waiters = t.waiters, nil
	s.running++
	return t
}

// look asks one server and tells what it lists.
func (s *Service) look(ctx context.Context, t *target, to statussync.Observer) {
	s.mu.Lock()
	plan := t.plan
	s.mu.Unlock()
	seen := &statussync.ToolsSeen{ServerID: plan.ServerID, At: time.Now()}
	tools, err := s.o.Look(ctx, plan)
	if err != nil {
		seen.Error = reason(err)
	} else {
		seen.Tools = tools
	}
	s.mu.Lock()
	stale := t.gone || another(t.plan, plan) // it speaks of another server
	s.mu.Unlock()
	if ctx.Err() == nil && !stale {
		if _, told := to.Submit(ctx, seen); told != nil && err == nil {
			err = told
		}
	}
	if err != nil && ctx.Err() == nil {
		s.log.Debug("the tools of a server could not be read", "server", plan.ServerID, "error", err)
	}

	s.mu.Lock()
	t.busy = false
	s.running--
	s.stats.Looks++
	if err != nil {
		s.stats.Failed++
	}
	serving := t.serving
	t.serving = nil
	switch {
	case t.gone:
		err = errGone
	case t.again:
		if t.again = false; stale {
			t.waiters, serving = append(serving, t.waiters...), nil
		}
		s.asked = append(s.asked, t)
	case t.up:
		s.setLocked(t, time.Now().Add(jittered(s.o.Every)))
	}
	s.mu.Unlock()
	tell(serving, err)
	s.poke()
}

// jittered moves d by up to ±10 %.
func jittered(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5+1) }

// reason is an error for people: what was wrong, without the code.
func reason(err error) string {
	text := err.Error()
	if e, ok := err.(*statussync.Error); ok && e.Detail != "" {
		text = e.Detail
		if e.Location != "" {
			text = e.Location + " " + text
		}
	}
	return statussync.CleanText(text, statussync.MaxErrorText)
}

// dueHeap orders targets by the time of their next look.
type dueHeap []*target

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, k int) bool { return h[i].at.Before(h[k].at) }
func (h dueHeap) Swap(i, k int)      { h[i], h[k] = h[k], h[i]; h[i].index, h[k].index = i, k }
func (h *dueHeap) Push(x any)        { t := x.(*target); t.index = len(*h); *h = append(*h, t) }
func (h *dueHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = -1
	return t
}
