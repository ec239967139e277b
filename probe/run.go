package probe

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/agentopia/statussync"
)

// Run probes until ctx ends, and then returns nil; or until the Observer refuses results, and then returns its error. It
// may be called once. Before it returns, all probes in flight have ended (they are given up, without results) and all
// its goroutines too; checks that somebody waits for get CodeUnavailable.
func (s *Scheduler) Run(ctx context.Context, to statussync.Observer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	now := time.Now()
	s.mu.Lock()
	if s.phase != phaseNew {
		s.mu.Unlock()
		return errTwice
	}
	s.phase = phaseRunning
	for _, t := range s.targets { // plans may have been given long before
		s.respread(t, now)
	}
	s.mu.Unlock()

	var workers, delivery sync.WaitGroup
	var err error
	delivery.Go(func() {
		if err = s.deliver(ctx, to); err != nil {
			cancel(err)
		}
	})
	s.loop(ctx, &workers)
	close(s.jobs) // only loop sends
	workers.Wait()
	delivery.Wait()
	s.stop()
	return err
}

// loop is the only goroutine that starts probes and waits for time.
func (s *Scheduler) loop(ctx context.Context, workers *sync.WaitGroup) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var start []*flight
	for {
		now := time.Now()
		grow := 0
		start = start[:0]
		s.mu.Lock()
		next, waiting := s.collect(now)
		for {
			t, g, l := s.next()
			if t == nil {
				break
			}
			start = append(start, s.begin(ctx, t, g, l, now))
		}
		s.busy += len(start)
		if s.busy > s.workers {
			grow = s.busy - s.workers
			s.workers = s.busy
		}
		s.mu.Unlock()
		for range grow {
			workers.Go(s.work)
		}
		for _, f := range start {
			s.jobs <- f
		}
		clear(start)

		wait := time.Hour
		if waiting {
			wait = time.Until(next)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.wake:
		}
	}
}

// begin makes the flight of t, which has just been taken out of its queue.
func (s *Scheduler) begin(ctx context.Context, t *target, g *group, l lane, now time.Time) *flight {
	f := &flight{t: t, g: g, plan: t.plan, slow: l == laneSlow, start: now}
	f.ctx, f.cancel = context.WithCancel(ctx)
	// This probe answers every question that is due by now, in the time that the most impatient of them allows.
	limit := time.Duration(0)
	n := 0
	for ; n < len(t.once) && !t.once[n].at.After(now); n++ {
		if d := t.once[n].timeout; d > 0 && (limit == 0 || d < limit) {
			limit = d
		}
	}
	t.once = append(t.once[:0], t.once[n:]...)
	if limit == 0 {
		limit = timeout(t.plan)
	}
	if limit != f.plan.Timeout {
		p := *t.plan
		p.Timeout = limit
		f.plan = &p
	}
	t.flight = f
	s.stats.Started++
	s.stats.Lateness.add(now.Sub(t.key))
	return f
}

// work is one worker: it makes one probe after another until there are no more.
func (s *Scheduler) work() {
	for f := range s.jobs {
		var res statussync.ProbeResult
		if f.ctx.Err() == nil {
			res = s.probers[f.plan.Kind](f.ctx, f.plan)
		}
		ended := time.Now()
		gaveUp := f.ctx.Err() != nil
		f.cancel()
		s.mu.Lock()
		s.busy--
		if gaveUp || f.void {
			s.drop(f, ended)
		} else {
			res.ServerID = f.t.id
			if res.StartedAt.IsZero() {
				res.StartedAt = f.start
			}
			if res.FinishedAt.IsZero() {
				res.FinishedAt = ended
			}
			f.res = &res
			s.done = append(s.done, f)
		}
		s.mu.Unlock()
		if f.res != nil {
			signal(s.results)
		} else {
			signal(s.wake)
		}
	}
}

// deliver hands results to the Observer, as many at a time as there are. It returns an error only where the Observer
// refuses them while ctx goes on.
func (s *Scheduler) deliver(ctx context.Context, to statussync.Observer) error {
	var batch []*flight
	for {
		s.mu.Lock()
		clear(batch)
		batch, s.done = s.done, batch[:0]
		obs := make([]statussync.Observation, 0, len(batch)) // the Observer may keep it
		for _, f := range batch {
			if !f.void { // its plan may have been replaced since it ended
				obs = append(obs, f.res)
			}
		}
		s.mu.Unlock()
		if len(batch) == 0 {
			select {
			case <-s.results:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		var err error
		if len(obs) > 0 {
			err = to.Observe(ctx, obs...)
		}
		now := time.Now()
		s.mu.Lock()
		for _, f := range batch {
			if err != nil || f.void {
				s.drop(f, now)
			} else {
				s.finish(f)
			}
		}
		s.mu.Unlock()
		signal(s.wake)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("probe: results were refused: %w", err)
		}
	}
}

// finish ends a flight whose result was taken.
func (s *Scheduler) finish(f *flight) {
	t, res := f.t, f.res
	s.release(f)
	t.flight = nil
	t.last, t.started = res, f.start
	t.slow = res.FinishedAt.Sub(res.StartedAt) >= slowFrom
	s.stats.Outcomes.add(res.Outcome)
	if res.Throttled && res.RetryAfter > 0 {
		t.notBefore = res.FinishedAt.Add(min(res.RetryAfter, maxRetryAfter))
	}
	t.at = f.start.Add(fraction(interval(t.plan), 1+jitter*(2*rand.Float64()-1)))
	if t.call != nil {
		t.call.end(res, nil)
		t.call = nil
	}
	s.reschedule(t)
}

// drop ends a flight that gives no result.
func (s *Scheduler) drop(f *flight, now time.Time) {
	t := f.t
	s.release(f)
	t.flight = nil
	s.stats.GivenUp++
	switch {
	case t.plan == nil:
		delete(s.targets, t.id)
	case t.prober == nil:
	case t.call != nil:
		t.key = now
		s.enqueue(t, true, now)
	default:
		s.reschedule(t)
	}
}

// stop ends what still waits when Run returns.
func (s *Scheduler) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = phaseStopped
	s.workers = 0
	for _, t := range s.targets {
		if t.call != nil {
			t.call.end(nil, errNotRunning())
			t.call = nil
		}
	}
}
