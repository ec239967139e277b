package probe

import (
	"slices"
	"time"

	"github.com/agentopia/statussync"
)

// Stats is what a Scheduler counts. Counters begin at zero with the Scheduler.
type Stats struct {
	Enabled  bool
	Targets  int // servers with a plan that is probed
	InFlight int // probes under way, or whose result the Observer has not taken
	Waiting  int // due, but without a place
	Workers  int // goroutines that probe; they grow on demand and stay
	Started  uint64
	GivenUp  uint64 // of these, ended without a result
	Outcomes Outcomes
	Lateness Histogram // of each start against the time it was due
}

// Outcomes counts results that the Observer took.
type Outcomes struct{ Success, Alive, Failure uint64 }

func (o *Outcomes) add(x statussync.Outcome) {
	switch x {
	case statussync.OutcomeSuccess:
		o.Success++
	case statussync.OutcomeAlive:
		o.Alive++
	default:
		o.Failure++
	}
}

// latenessBounds are the upper bounds of all buckets but the last.
var latenessBounds = [...]time.Duration{
	time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	500 * time.Millisecond, time.Second, 5 * time.Second, 10 * time.Second, time.Minute,
}

// Histogram counts durations by size: Counts[i] are those of at most Bounds[i] and more than Bounds[i-1]; the last of
// Counts, which has no bound, are all longer ones.
type Histogram struct {
	Bounds []time.Duration
	Counts []uint64
	Count  uint64
	Sum    time.Duration
}

func (h *Histogram) add(d time.Duration) {
	d = max(d, 0)
	i, _ := slices.BinarySearch(latenessBounds[:], d)
	h.Counts[i]++
	h.Count++
	h.Sum += d
}

// Quantile returns the upper bound of the bucket that holds the q-th part (0 to 1) of all durations: it is at most
// this. It returns 0 where nothing was counted, and -1 for the bucket without a bound.
func (h Histogram) Quantile(q float64) time.Duration {
	rank, seen := q*float64(h.Count), uint64(0)
	for i, n := range h.Counts {
		if seen += n; n > 0 && float64(seen) >= rank {
			if i == len(h.Bounds) {
				return -1
			}
			return h.Bounds[i]
		}
	}
	return 0
}

// Stats returns a copy of the counters, all of one moment.
func (s *Scheduler) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Enabled, st.InFlight, st.Workers = !s.disabled, s.inFlight, s.workers
	for _, t := range s.targets {
		if t.prober != nil {
			st.Targets++
		}
	}
	st.Lateness.Bounds = slices.Clone(latenessBounds[:])
	st.Lateness.Counts = slices.Clone(st.Lateness.Counts)
	return st
}
