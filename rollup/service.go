package rollup

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync"
)

// Options says what a Service works with. Store and Hub are required.
type Options struct {
	Store  Store
	Hub    Hub
	Logger *slog.Logger // nil logs nothing. The service adds component=rollup
	// Now is the wall clock, by which probes are counted. Default time.Now.
	Now func() time.Time
}

// Service counts probes, follows the journal, and answers. All methods are safe for concurrent use.
type Service struct {
	opts   Options
	log    *slog.Logger
	run    string // names this process's batches
	probes collector
	follow follower

	flushed, flushFailures, unreadable atomic.Uint64
}

const (
	// flushAfter is how long after the end of a minute it is stored: a result takes a moment from its end to the hub.
	flushAfter = 2 * time.Second
	// retryAfter is how long to wait after a store failed.
	retryAfter = 10 * time.Second
	// lastFlush bounds the storing of the minute that runs when Run ends.
	lastFlush = 5 * time.Second
)

// New returns a Service that does nothing before Run but count.
func New(o Options) (*Service, error) {
	if o.Store == nil {
		return nil, statussync.Invalid("Options.Store", "is required")
	}
	if o.Hub == nil {
		return nil, statussync.Invalid("Options.Hub", "is required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails, as crypto/rand documents
	s := &Service{opts: o, log: o.Logger.With("component", "rollup"), run: hex.EncodeToString(id[:])}
	s.probes.limit = maxCells
	s.follow = follower{store: o.Store, hub: o.Hub, log: s.log, t: tracker{open: map[string]track{}}}
	return s, nil
}

// Run stores what was counted and follows the journal of the hub, which has started, until ctx ends; it then stores the minute that runs, which takes
// at most 5 s where the store works, and returns nil. A store that fails never ends it. It may be called once, and joins
// its goroutines before it returns.
func (s *Service) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { s.follow.run(ctx) })
	parts.Go(func() { s.keep(ctx) })
	parts.Wait()
	return nil
}

// keep stores each minute after its end.
func (s *Service) keep(ctx context.Context) {
	t := time.NewTimer(0) // the hours that ended while the service was down
	defer t.Stop()
	var last string // what was logged
	for {
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
			defer cancel()
			if err := s.flush(end, true); err != nil {
				s.flushFailures.Add(1)
				s.log.Error("the last minute's probes are not stored", "error", err)
			}
			return
		case <-t.C:
		}
		wait := retryAfter
		if err := s.flush(ctx, false); err == nil {
			if last != "" {
				s.log.Info("probes are stored again")
			}
			last = ""
			now := s.opts.Now()
			wait = now.Truncate(time.Minute).Add(time.Minute + flushAfter).Sub(now)
		} else if ctx.Err() == nil {
			s.flushFailures.Add(1)
			if err.Error() != last {
				last = err.Error()
				s.log.Error("probes cannot be stored; they wait in memory", "error", err)
			}
		}
		t.Reset(wait)
	}
}

// Observer returns an Observer that hands everything to to, and counts the probe results that were taken. It never
// blocks for longer than to does.
func (s *Service) Observer(to statussync.Observer) statussync.Observer { return &tee{to, s} }

type tee struct {
	statussync.Observer
	s *Service
}

// Observe implements statussync.Observer.
func (t *tee) Observe(ctx context.Context, obs ...statussync.Observation) error {
	err := t.Observer.Observe(ctx, obs...)
	if err == nil {
		t.count(obs)
	}
	return err
}

// TryObserve implements statussync.Observer.
func (t *tee) TryObserve(obs ...statussync.Observation) error {
	err := t.Observer.TryObserve(obs...)
	if err == nil {
		t.count(obs)
	}
	return err
}

// Submit implements statussync.Observer. What it returns with an error may have been taken in part, so only without one
// its results are counted.
func (t *tee) Submit(ctx context.Context, obs ...statussync.Observation) ([]*statussync.Entry, error) {
	es, err := t.Observer.Submit(ctx, obs...)
	if err == nil {
		t.count(obs)
	}
	return es, err
}

func (t *tee) count(obs []statussync.Observation) {
	for _, o := range obs {
		if r, ok := o.(*statussync.ProbeResult); ok {
			at := r.FinishedAt
			if at.IsZero() {
				at = t.s.opts.Now()
			}
			t.s.probes.add(r, minuteOf(at))
		}
	}
}

// Stats are the service's own numbers. Counters count since the start.
type Stats struct {
	Minutes        uint64 // batches of a minute stored
	FlushFailures  uint64 // tries to store probes that failed
	Dropped        uint64 // probes that were counted and will not be stored
	Waiting        int    // counts of a server and minute that are not stored yet
	Unreadable     uint64 // stored sketches that were left out
	FollowFailures uint64 // tries to follow the journal, or to store what follows, that failed
	Resyncs        uint64 // positions in the journal that could not be continued
	Spans          uint64 // spans stored
	Position       statussync.Cursor
}

// Stats returns the service's own numbers, from memory.
func (s *Service) Stats() Stats {
	dropped, waiting := s.probes.counts()
	f := &s.follow
	st := Stats{
		Minutes: s.flushed.Load(), FlushFailures: s.flushFailures.Load(), Dropped: dropped, Waiting: waiting,
		Unreadable: s.unreadable.Load(), FollowFailures: f.failures.Load(), Resyncs: f.resyncs.Load(), Spans: f.stored.Load(),
	}
	f.mu.Lock()
	st.Position = f.pos
	f.mu.Unlock()
	return st
}

const (
	maxWindow = statussync.KeepSpans
	minStep   = time.Minute
)

// checkWindow judges a window; its error is located at "window".
func checkWindow(w time.Duration) error {
	switch {
	case w < time.Minute:
		return statussync.Invalid("window", "must be at least 1m")
	case w > maxWindow:
		return statussync.Invalid("window", fmt.Sprintf("must be at most %dd: nothing is kept for longer", int(maxWindow.Hours()/24)))
	}
	return nil
}

// checkSteps judges a window and a step, and returns the unit of the rows to make them from, and the step; its error is
// located at "window" or "step".
func checkSteps(window, step time.Duration) (unit, asked time.Duration, err error) {
	if err := checkWindow(window); err != nil {
		return 0, step, err
	}
	if unit = minStep; window > statussync.KeepProbeMinutes {
		unit = time.Hour
	}
	if step == 0 {
		step = unit
	}
	switch {
	case step < unit || step%unit != 0:
		detail := "must be a whole number of minutes, at least 1m"
		if unit == time.Hour {
			detail = "must be a whole number of hours, at least 1h, where the window is longer than 48h"
		}
		return unit, step, statussync.Invalid("step", detail)
	case step > maxWindow:
		return unit, step, statussync.Invalid("step", "must be at most 90d")
	}
	return unit, step, nil
}

// known returns nil where the running service has a server of that id.
func (s *Service) known(id string) error {
	if s.follow.has(id) {
		return nil
	}
	_, err := s.opts.Hub.Server(id)
	return err
}

// Probes returns what one server's probes gave in the last window, by steps; step 0 is the smallest that is allowed.
// Where the window is longer than 48 h it is made from hours. CodeInvalid is located at window or step; CodeNotFound:
// nothing is known of the server, and nothing stored.
func (s *Service) Probes(ctx context.Context, id string, window, step time.Duration) (statussync.ProbeReport, error) {
	out := statussync.ProbeReport{ServerID: id, Window: window, Step: step, Resolution: statussync.ResolutionMinute}
	unit, step, err := checkSteps(window, step)
	if err != nil {
		return out, err
	}
	if out.Step = step; unit == time.Hour {
		out.Resolution = statussync.ResolutionHour
	}
	now := s.opts.Now()
	from, to := now.Add(-window).UTC().Truncate(unit), now.Add(time.Nanosecond)
	// What waits is read first: what is stored meanwhile is then in both, and told apart by its batch's number.
	wait, err := s.probes.of(id)
	if err != nil {
		return out, err
	}
	rows, marks, known, err := s.opts.Store.ServerProbes(ctx, id, unit == time.Hour, from, to)
	if err != nil {
		return out, err
	}
	if !known && len(wait) == 0 {
		if err := s.known(id); err != nil {
			return out, err
		}
	}
	for _, w := range wait {
		if (marks.Run == s.run && w.number <= marks.Batch) || w.row.Start.Before(from) {
			continue
		}
		rows = append(rows, w.row)
	}
	var total sum
	steps := map[int64]*sum{}
	for i := range rows {
		n := floorDiv(rows[i].Start.Unix(), int64(step/time.Second))
		x := steps[n]
		if x == nil {
			x = &sum{}
			steps[n] = x
		}
		s.add(x, &rows[i])
		s.add(&total, &rows[i])
	}
	out.Steps = make([]statussync.ProbeStep, 0, len(steps))
	for n, x := range steps {
		out.Steps = append(out.Steps, x.step(time.Unix(n*int64(step/time.Second), 0).UTC()))
	}
	slices.SortFunc(out.Steps, func(a, b statussync.ProbeStep) int { return a.Start.Compare(b.Start) })
	out.Total = total.step(time.Time{})
	return out, nil
}

// spans yields the spans of servers, those that are not stored yet included.
func (s *Service) spans(ctx context.Context, ids []string, from, to time.Time, yield func(id string, spans []statussync.Span) error) error {
	pending := s.follow.waiting(ids) // before what is stored: what is in both replaces itself
	err := s.opts.Store.Spans(ctx, ids, from, to, func(id string, list []statussync.Span) error {
		more := pending[id]
		delete(pending, id)
		return yield(id, extend(list, more))
	})
	if err != nil {
		return err
	}
	for id, list := range pending {
		if err := yield(id, extend(nil, list)); err != nil {
			return err
		}
	}
	return nil
}

// extend appends later spans of the same server; the first of them may already be in list.
func extend(list, more []statussync.Span) []statussync.Span {
	for _, m := range more {
		for len(list) > 0 && !list[len(list)-1].Begin.Before(m.Begin) {
			list = list[:len(list)-1]
		}
		list = append(list, m)
	}
	return list
}

func (s *Service) window(window time.Duration) (from, to time.Time, err error) {
	to = s.opts.Hub.Now().Truncate(time.Millisecond)
	return to.Add(-window), to, checkWindow(window)
}

// ServerUptime returns one server's uptime in the last window. CodeInvalid is located at window; CodeNotFound: nothing
// is known of the server, and nothing stored.
func (s *Service) ServerUptime(ctx context.Context, id string, window time.Duration) (statussync.Uptime, error) {
	list, err := s.uptimes(ctx, []string{id}, window, true)
	if err != nil {
		return statussync.Uptime{}, err
	}
	return list[0], nil
}

// Uptimes returns the uptime of each of these servers, in their order. Of one of which nothing is stored all is unknown.
func (s *Service) Uptimes(ctx context.Context, ids []string, window time.Duration) ([]statussync.Uptime, error) {
	return s.uptimes(ctx, ids, window, false)
}

func (s *Service) uptimes(ctx context.Context, ids []string, window time.Duration, must bool) ([]statussync.Uptime, error) {
	from, to, err := s.window(window)
	if err != nil {
		return nil, err
	}
	found := make(map[string]statussync.Uptime, len(ids))
	err = s.spans(ctx, ids, from, to, func(id string, spans []statussync.Span) error {
		found[id], _ = Report(id, spans, from, to)
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]statussync.Uptime, len(ids))
	for i, id := range ids {
		u, ok := found[id]
		if !ok {
			if must {
				if err := s.known(id); err != nil {
					return nil, err
				}
			}
			u, _ = Report(id, nil, from, to)
		}
		out[i] = u
	}
	return out, nil
}

// TotalUptime returns the sums of the uptimes of these servers. It reads the spans of the window of all servers.
func (s *Service) TotalUptime(ctx context.Context, ids []string, window time.Duration) (statussync.Uptime, error) {
	from, to, err := s.window(window)
	if err != nil {
		return statussync.Uptime{}, err
	}
	wanted := make(map[string]bool, len(ids))
	for _, id := range ids {
		wanted[id] = true
	}
	total := statussync.Uptime{From: from, To: to}
	err = s.spans(ctx, nil, from, to, func(id string, spans []statussync.Span) error {
		if wanted[id] {
			u, _ := Report(id, spans, from, to)
			total.Add(&u)
			delete(wanted, id)
		}
		return nil
	})
	for id := range wanted { // nothing is stored of it
		u, _ := Report(id, nil, from, to)
		total.Add(&u)
	}
	return total, err
}

// Incidents returns incidents that overlap the last window, the newest (by begin) first, and whether others follow.
// CodeInvalid is located at window; CodeNotFound: ServerID is of no server that is known or has spans.
func (s *Service) Incidents(ctx context.Context, q statussync.IncidentQuery) (list []statussync.Incident, more bool, err error) {
	from, to, err := s.window(q.Window)
	if err != nil {
		return nil, false, err
	}
	if q.Limit < 1 {
		return nil, false, statussync.Invalid("limit", "must be at least 1")
	}
	var ids []string
	if q.ServerID != "" {
		ids = []string{q.ServerID}
	}
	list = []statussync.Incident{}
	cut := func() { // keeps the first Limit and one
		slices.SortFunc(list, newestFirst)
		list = list[:min(len(list), q.Limit+1)]
	}
	found := false
	err = s.spans(ctx, ids, from, to, func(id string, spans []statussync.Span) error {
		found = true
		_, incidents := Report(id, spans, from, to)
		for i := range incidents {
			if q.After != nil && newestFirst(incidents[i], *q.After) <= 0 {
				continue
			}
			if list = append(list, incidents[i]); len(list) > 4*q.Limit+64 {
				cut()
			}
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	if !found && q.ServerID != "" {
		if err := s.known(q.ServerID); err != nil {
			return nil, false, err
		}
	}
	cut()
	if len(list) > q.Limit {
		return list[:q.Limit], true, nil
	}
	return list, false, nil
}

// newestFirst orders incidents by begin, the newest first, and then by server.
func newestFirst(a, b statussync.Incident) int {
	if c := b.Begin.Compare(a.Begin); c != 0 {
		return c
	}
	return cmp.Compare(a.ServerID, b.ServerID)
}
