package probe

import (
	"container/heap"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"time"

	"github.com/agentopia/statussync"
)

// Options are the settings of a Scheduler.
type Options struct {
	// Probers do the asking, by the kind that a plan names. A plan of another kind is not probed, and logged.
	Probers        map[statussync.ProbeKind]statussync.Prober
	Concurrency    int          // probes in flight at most; 0: 512
	PerEnvironment int          // of one environment at most; 0: 16
	Logger         *slog.Logger // nil: nothing is logged
}

const (
	defaultConcurrency    = 512
	defaultPerEnvironment = 16
	defaultInterval       = 30 * time.Second // a plan without one
	defaultTimeout        = 10 * time.Second // likewise
	minInterval           = time.Millisecond // no plan, however wrong, makes a busy loop

	jitter        = 0.1              // of the interval, to both sides
	soon          = time.Second      // a changed address is probed within this
	checkFloor    = time.Second      // an on-demand check answers a result that is younger
	maxRetryAfter = time.Hour        // a server can't silence its probes for longer
	slowFrom      = time.Second      // a probe that took this long makes its server slow
	maxOnce       = 8                // probes asked for beside the cadence that a server can have waiting
	golden        = 0.61803398874989 // multiples of it, modulo 1, fill an interval evenly however many there are
)

// Scheduler probes servers as their plans say. Its methods are safe for concurrent use.
type Scheduler struct {
	probers map[statussync.ProbeKind]statussync.Prober
	log     *slog.Logger

	wake    chan struct{} // something is due earlier, or a place is free
	results chan struct{} // done is not empty
	// jobs is rarely full: it has room for all places that there were at first, and a flight holds its place until its
	// result is taken. Where limits were raised since, a flight may wait for its worker to come back, which it does soon.
	jobs chan *flight

	mu             sync.Mutex
	concurrency    int
	perEnvironment int
	phase          phase
	disabled       bool
	targets        map[string]*target
	due            dueHeap // idle targets by time
	groups         map[string]*group
	lanes          [2]ring // groups that may start something
	turn           lane    // which lane is asked first
	inFlight       int     // places taken: running, or waiting for the Observer
	slow           int     // of these, slow ones
	workers        int
	busy           int // flights that a worker has or will have
	done           []*flight
	spread         float64 // position in the golden sequence
	stats          Stats
}

type phase uint8

const (
	phaseNew phase = iota
	phaseRunning
	phaseStopped
)

// target is one server. It is in exactly one of these places: the due heap, its group's queue, or in flight; or in none,
// where it is not probed.
type target struct {
	id     string
	plan   *statussync.ProbePlan
	prober statussync.Prober // nil: not probed
	host   string            // of plan.URL

	at        time.Time // next probe by the cadence; of no meaning while in flight
	started   time.Time // of the last probe that was not given up; zero: never
	notBefore time.Time // Retry-After
	once      []once    // beside the cadence, by time
	slow      bool

	key    time.Time // its place in the heap; while queued, when it was due
	index  int       // in the heap; -1: not there
	queued *place
	flight *flight

	last *statussync.ProbeResult // taken by the Observer; of this plan's address
	call *call                   // who waits for the next result
}

// once is one ProbeNow.
type once struct {
	at      time.Time
	timeout time.Duration
}

// flight is one probe under way.
type flight struct {
	t      *target
	g      *group
	plan   *statussync.ProbePlan
	slow   bool
	ctx    context.Context
	cancel context.CancelFunc
	start  time.Time
	void   bool // given up: its result says nothing
	res    *statussync.ProbeResult
}

// call is an on-demand check that any number of callers share. res and err are set before done is closed.
type call struct {
	done chan struct{}
	res  statussync.ProbeResult
	err  error
}

func (c *call) end(res *statussync.ProbeResult, err error) {
	if res != nil {
		c.res = *res
	}
	c.err = err
	close(c.done)
}

// New returns a Scheduler. The error says which option is wrong.
func New(o Options) (*Scheduler, error) {
	var err error
	if o.Concurrency, o.PerEnvironment, err = limits(o.Concurrency, o.PerEnvironment); err != nil {
		return nil, err
	}
	probers := make(map[statussync.ProbeKind]statussync.Prober, len(o.Probers))
	for k, p := range o.Probers {
		if p == nil {
			return nil, statussync.Invalid("probers", "the prober of kind "+string(k)+" is nil")
		}
		probers[k] = p
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Scheduler{
		probers: probers, concurrency: o.Concurrency, perEnvironment: o.PerEnvironment,
		log:  o.Logger.With("component", "probe"),
		wake: make(chan struct{}, 1), results: make(chan struct{}, 1), jobs: make(chan *flight, o.Concurrency),
		targets: make(map[string]*target), groups: make(map[string]*group), spread: rand.Float64(),
	}
	s.stats.Lateness.Counts = make([]uint64, len(latenessBounds)+1)
	return s, nil
}

// Do takes the plans and the probe requests among reqs, in order; it ignores the others. It never blocks for longer than
// the bookkeeping takes, and may be called before, while and after Run runs.
func (s *Scheduler) Do(reqs []statussync.Request) {
	now := time.Now()
	var unknown []statussync.ProbeKind
	s.mu.Lock()
	for i := range reqs {
		switch r := &reqs[i]; {
		case r.Plan != nil:
			if !s.setPlan(r.Plan, now) {
				unknown = append(unknown, r.Plan.Kind)
			}
		case r.Probe != nil:
			s.probeNow(r.Probe, now)
		}
	}
	s.mu.Unlock()
	signal(s.wake)
	for _, k := range unknown {
		s.log.Warn("no prober for this kind of probe; the server is not probed", "kind", string(k))
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// nextFraction returns a number in [0, 1); its successive values lie evenly however many are taken.
func (s *Scheduler) nextFraction() float64 {
	s.spread += golden
	if s.spread >= 1 {
		s.spread--
	}
	return s.spread
}

func fraction(d time.Duration, f float64) time.Duration { return time.Duration(float64(d) * f) }

func interval(p *statussync.ProbePlan) time.Duration {
	if p.Interval <= 0 {
		return defaultInterval
	}
	return max(p.Interval, minInterval)
}

func timeout(p *statussync.ProbePlan) time.Duration {
	if p.Timeout <= 0 {
		return defaultTimeout
	}
	return p.Timeout
}

// setPlan reports false where the plan's kind has no prober.
func (s *Scheduler) setPlan(p *statussync.ProbePlan, now time.Time) (known bool) {
	t := s.targets[p.ServerID]
	if p.Removed {
		if t != nil {
			s.remove(t)
		}
		return true
	}
	if t == nil {
		t = &target{id: p.ServerID, index: -1}
		s.targets[t.id] = t
	}
	old := t.plan // nil also for one that was removed and whose last probe is still ending
	t.plan = p
	t.prober = s.probers[p.Kind]
	known = t.prober != nil || p.Kind == statussync.ProbeNone
	if t.prober == nil {
		s.quiet(t)
		err := notProbed(t)
		if t.call != nil {
			t.call.end(nil, err)
			t.call = nil
		}
		return known
	}
	if old == nil || old.URL != p.URL {
		t.host = ""
		if u, err := url.Parse(p.URL); err == nil {
			t.host = u.Hostname()
		}
	}
	switch {
	case old == nil || s.probers[old.Kind] == nil:
		t.at = now.Add(fraction(interval(p), s.nextFraction()))
	case old.Kind != p.Kind || old.URL != p.URL:
		// What is known is about another address: it neither answers a check nor postpones a probe.
		s.giveUp(t)
		t.last, t.notBefore, t.slow = nil, time.Time{}, false
		t.at = now.Add(fraction(min(soon, interval(p)), s.nextFraction()))
	case interval(old) != interval(p) && t.flight == nil && t.queued == nil:
		switch {
		case !t.started.IsZero():
			// A shorter one is due at most an interval after the last probe, so its jitter only goes one way.
			j := 1 - jitter*rand.Float64()
			if interval(p) > interval(old) {
				j = 1 + jitter*(2*rand.Float64()-1)
			}
			t.at = t.started.Add(fraction(interval(p), j))
		case t.at.Sub(now) > interval(p):
			t.at = now.Add(fraction(interval(p), s.nextFraction()))
		}
	}
	if t.queued != nil && s.groupKey(t) != t.queued.g.key {
		urgent := t.call != nil
		s.unqueue(t)
		s.enqueue(t, urgent, now)
	}
	s.reschedule(t)
	return true
}

func notProbed(t *target) error {
	detail := "the server is not probed: it is disabled, needs configuration, or lives by its agent's reports"
	if t.plan.Kind != statussync.ProbeNone {
		detail = "the server is not probed: there is no prober of kind " + string(t.plan.Kind)
	}
	return statussync.NewError(statussync.CodeConflict, detail, nil)
}

// quiet takes t out of every schedule and gives up its probe.
func (s *Scheduler) quiet(t *target) {
	s.giveUp(t)
	s.unqueue(t)
	if t.index >= 0 {
		heap.Remove(&s.due, t.index)
	}
	t.at, t.once, t.notBefore, t.last, t.started, t.slow = time.Time{}, nil, time.Time{}, nil, time.Time{}, false
}

func (s *Scheduler) remove(t *target) {
	s.quiet(t)
	t.plan, t.prober = nil, nil
	if t.call != nil {
		t.call.end(nil, statussync.NotFound("server", t.id))
		t.call = nil
	}
	if t.flight == nil {
		delete(s.targets, t.id)
	} // else its end does: a server that is added again meanwhile must not get a second probe in flight
}

// giveUp ends the probe in flight; what it finds is dropped.
func (s *Scheduler) giveUp(t *target) {
	if t.flight != nil && !t.flight.void {
		t.flight.void = true
		t.flight.cancel()
	}
}

func (s *Scheduler) probeNow(r *statussync.ProbeNow, now time.Time) {
	t := s.targets[r.ServerID]
	if t == nil || t.prober == nil || s.disabled {
		return
	}
	s.addOnce(t, once{at: now.Add(max(0, r.After)), timeout: max(0, r.Timeout)})
	if f := t.flight; f != nil && f.res == nil && r.After <= 0 && r.Timeout > 0 && timeout(f.plan) > r.Timeout {
		// The question wants an answer that began after it, and soon: it does not wait for a more patient probe. One
		// that is as brief is waited for, so that questions in a row can't keep each other from ever being answered.
		s.giveUp(t)
	}
	if t.queued != nil && r.After <= 0 {
		s.unqueue(t)
		s.enqueue(t, true, now)
	}
	s.reschedule(t)
}

// addOnce keeps the list sorted and bounded; one more than fits is merged into a neighbour.
func (s *Scheduler) addOnce(t *target, o once) {
	i := len(t.once)
	for i > 0 && t.once[i-1].at.After(o.at) {
		i--
	}
	if len(t.once) == maxOnce {
		n := &t.once[min(i, maxOnce-1)]
		n.at = o.at
		if o.timeout > 0 && (n.timeout == 0 || o.timeout < n.timeout) {
			n.timeout = o.timeout
		}
		return
	}
	t.once = append(t.once, once{})
	copy(t.once[i+1:], t.once[i:])
	t.once[i] = o
}

// reschedule puts an idle target where its due time says.
func (s *Scheduler) reschedule(t *target) {
	if t.prober == nil || t.flight != nil || t.queued != nil {
		return
	}
	t.key = t.at
	if len(t.once) > 0 && t.once[0].at.Before(t.key) {
		t.key = t.once[0].at
	}
	if t.key.Before(t.notBefore) {
		t.key = t.notBefore
	}
	if t.index >= 0 {
		heap.Fix(&s.due, t.index)
	} else {
		heap.Push(&s.due, t)
	}
}

// Check probes one server now and returns what came of it, after the Observer has taken it. A probe in flight is shared,
// and so is a check that others wait for; a result younger than a second is answered as it is. It works while probing
// is disabled.
//
// It blocks until there is a result or ctx ends. The errors: CodeNotFound for a server without a plan, CodeConflict for
// one that is not probed, CodeUnavailable when Run is not running, else ctx's own.
func (s *Scheduler) Check(ctx context.Context, serverID string) (statussync.ProbeResult, error) {
	c, err := s.join(serverID, time.Now())
	if err != nil {
		return statussync.ProbeResult{}, err
	}
	select {
	case <-c.done:
		return c.res, c.err
	case <-ctx.Done():
		return statussync.ProbeResult{}, ctx.Err()
	}
}

func (s *Scheduler) join(id string, now time.Time) (*call, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != phaseRunning {
		return nil, errNotRunning()
	}
	t := s.targets[id]
	if t == nil || t.plan == nil {
		return nil, statussync.NotFound("server", id)
	}
	if t.prober == nil {
		return nil, notProbed(t)
	}
	if t.call != nil {
		return t.call, nil
	}
	c := &call{done: make(chan struct{})}
	if t.last != nil && t.flight == nil && now.Sub(t.last.FinishedAt) < checkFloor {
		c.end(t.last, nil)
		return c, nil
	}
	t.call = c
	switch {
	case t.flight != nil: // its end answers, or starts another where it was given up
	case t.queued != nil:
		s.unqueue(t)
		s.enqueue(t, true, now)
	default:
		heap.Remove(&s.due, t.index)
		t.key = now
		s.enqueue(t, true, now)
	}
	signal(s.wake)
	return c, nil
}

func errNotRunning() error {
	return statussync.NewError(statussync.CodeUnavailable, "probing is not running", nil)
}

// SetEnabled stops and starts the monitoring. While it is stopped no probe begins but those of Check, and requests to
// probe are dropped; probes in flight end as usual. When it starts again, what is overdue is spread over its interval.
func (s *Scheduler) SetEnabled(on bool) {
	now := time.Now()
	s.mu.Lock()
	if s.disabled == on {
		s.disabled = !on
		for _, t := range s.targets {
			if on {
				s.respread(t, now)
				continue
			}
			t.once = nil
			if t.queued != nil && t.call == nil {
				s.unqueue(t)
			}
			s.reschedule(t)
		}
	}
	s.mu.Unlock()
	signal(s.wake)
}

// SetLimits replaces Options.Concurrency and Options.PerEnvironment; 0 means the default. Probes under way are not given
// up where there are more of them than that: fewer begin. The error says which limit is wrong, and nothing was changed.
func (s *Scheduler) SetLimits(concurrency, perEnvironment int) error {
	concurrency, perEnvironment, err := limits(concurrency, perEnvironment)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.concurrency, s.perEnvironment = concurrency, perEnvironment
	for _, g := range s.groups {
		s.offer(g)
	}
	s.mu.Unlock()
	signal(s.wake)
	return nil
}

func limits(concurrency, perEnvironment int) (int, int, error) {
	if concurrency == 0 {
		concurrency = defaultConcurrency
	}
	if perEnvironment == 0 {
		perEnvironment = defaultPerEnvironment
	}
	switch {
	case concurrency < 0:
		return 0, 0, statussync.Invalid("concurrency", "must be at least 1")
	case perEnvironment < 0:
		return 0, 0, statussync.Invalid("per_environment", "must be at least 1")
	}
	return concurrency, perEnvironment, nil
}

// respread moves what is overdue into the interval that begins now.
func (s *Scheduler) respread(t *target, now time.Time) {
	if t.prober != nil && t.at.Before(now) {
		t.at = now.Add(fraction(interval(t.plan), s.nextFraction()))
		s.reschedule(t)
	}
}

var errTwice = errors.New("probe: Run may be called once")
