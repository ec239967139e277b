package rollup

import (
	"context"
	"sync"
	"time"

	"github.com/agentopia/statussync"
)

const (
	// maxCells bounds what waits for a store that fails: 30 minutes of 10,000 servers, about 40 MB.
	maxCells = 300_000
	// maxSamples of one server and minute are kept as they are; more go into a sketch.
	maxSamples = 64
)

// minuteOf is the minute in which t lies, counted from 1970.
func minuteOf(t time.Time) int64 { return floorDiv(t.Unix(), 60) }

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// cell counts one server's probes of one minute. Latencies are few: a list of them is smaller than a sketch.
type cell struct {
	count, failures uint64
	latencies       []float32 // ms
	sketch          *Sketch   // of those that are not in latencies any more; nil: none
}

func (c *cell) add(r *statussync.ProbeResult) {
	c.count++
	if r.Outcome == statussync.OutcomeFailure {
		c.failures++
		return
	}
	if len(c.latencies) == maxSamples {
		if c.sketch == nil {
			c.sketch = NewSketch()
		}
		c.fold(c.sketch)
		c.latencies = c.latencies[:0]
	}
	c.latencies = append(c.latencies, float32(float64(r.Latency)/float64(time.Millisecond)))
}

// fold adds the list of latencies to a sketch.
func (c *cell) fold(s *Sketch) {
	for _, ms := range c.latencies {
		s.Add(time.Duration(float64(ms) * float64(time.Millisecond)))
	}
}

// encode appends all latencies' sketch; scratch is overwritten.
func (c *cell) encode(scratch *Sketch) ([]byte, error) {
	scratch.Clear()
	if c.sketch != nil {
		if err := scratch.Merge(c.sketch.Append(nil)); err != nil {
			return nil, err
		}
	}
	c.fold(scratch)
	return scratch.Append(nil), nil
}

// part is what was counted in one minute and is not stored yet. Its number is that of the batch in which it is stored.
type part struct {
	number uint64
	minute int64
	cells  map[string]*cell
	sealed bool // being stored: nothing is added any more
}

// collector holds what is not stored yet, in the order of the numbers.
type collector struct {
	mu      sync.Mutex
	parts   []*part
	last    uint64 // number
	cells   int
	limit   int
	dropped uint64 // probes that were counted and will not be stored
}

// add counts a result. It never blocks for longer than the bookkeeping takes.
func (c *collector) add(r *statussync.ProbeResult, minute int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var p *part
	for i := len(c.parts) - 1; i >= 0 && p == nil; i-- {
		if q := c.parts[i]; q.minute == minute && !q.sealed {
			p = q
		}
	}
	if p == nil {
		c.last++
		p = &part{number: c.last, minute: minute, cells: map[string]*cell{}}
		c.parts = append(c.parts, p)
	}
	x := p.cells[r.ServerID]
	if x == nil {
		x = &cell{}
		p.cells[r.ServerID] = x
		c.cells++
		for c.cells > c.limit && len(c.parts) > 1 {
			c.dropLocked(c.parts[0])
			c.parts = c.parts[1:]
		}
	}
	x.add(r)
}

func (c *collector) dropLocked(p *part) {
	c.cells -= len(p.cells)
	for _, x := range p.cells {
		c.dropped += x.count
	}
}

// seal returns the first part, for storing, unless its minute runs still; with all also then. nil: there is none.
// Batches are stored in the order of their numbers, so the newest number says which are.
func (c *collector) seal(running int64, all bool) *part {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.parts) == 0 || (c.parts[0].minute == running && !all) {
		return nil
	}
	c.parts[0].sealed = true
	return c.parts[0]
}

// remove forgets a part: it was stored or, with drop, will never be.
func (c *collector) remove(p *part, drop bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.parts) == 0 || c.parts[0] != p {
		return // dropped meanwhile
	}
	if drop {
		c.dropLocked(p)
	} else {
		c.cells -= len(p.cells)
	}
	c.parts = c.parts[1:]
}

// waiting is what is counted of one server and not stored, with the numbers of the batches.
type waiting struct {
	number uint64
	row    statussync.ProbeRow
}

// of returns what waits of one server.
func (c *collector) of(id string) ([]waiting, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []waiting
	scratch := NewSketch()
	for _, p := range c.parts {
		x := p.cells[id]
		if x == nil {
			continue
		}
		sketch, err := x.encode(scratch)
		if err != nil {
			return nil, err
		}
		out = append(out, waiting{p.number, statussync.ProbeRow{
			ServerID: id, Start: time.Unix(p.minute*60, 0).UTC(), Count: x.count, Failures: x.failures, Sketch: sketch,
		}})
	}
	return out, nil
}

// counts returns how many probes were dropped, and how many cells wait.
func (c *collector) counts() (dropped uint64, cells int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped, c.cells
}

// flush stores every minute that has ended, or with all the one that runs, too, and then makes the hours that are due.
func (s *Service) flush(ctx context.Context, all bool) error {
	now := s.opts.Now()
	for {
		p := s.probes.seal(minuteOf(now), all)
		if p == nil {
			break
		}
		if err := s.store(ctx, p); err != nil {
			return err
		}
		s.flushed.Add(1)
	}
	if all {
		return nil // at the end there is no time; the next start does it
	}
	return s.mergeHours(ctx, now)
}

// store stores one part, merged with what is there of its minute.
func (s *Service) store(ctx context.Context, p *part) error {
	start := time.Unix(p.minute*60, 0).UTC()
	marks, err := s.opts.Store.Marks(ctx)
	if err != nil {
		return err
	}
	if start.Before(marks.MinutesFrom) { // its hour can't be made again: it waited for too long
		s.probes.remove(p, true)
		return nil
	}
	if marks.Run == s.run && marks.Batch >= p.number { // an earlier try succeeded after all
		s.probes.remove(p, false)
		return nil
	}
	rows := make([]statussync.ProbeRow, 0, len(p.cells))
	place := make(map[string]int, len(p.cells))
	scratch := NewSketch()
	for id, x := range p.cells {
		sketch, err := x.encode(scratch)
		if err != nil {
			return err
		}
		place[id] = len(rows)
		rows = append(rows, statussync.ProbeRow{ServerID: id, Start: start, Count: x.count, Failures: x.failures, Sketch: sketch})
	}
	err = s.opts.Store.Minutes(ctx, start, start.Add(time.Minute), func(old statussync.ProbeRow) error {
		i, ok := place[old.ServerID]
		if !ok {
			return nil
		}
		r := &rows[i]
		r.Count += old.Count
		r.Failures += old.Failures
		scratch.Clear()
		for _, b := range [][]byte{old.Sketch, r.Sketch} {
			s.merge(scratch, b)
		}
		r.Sketch = scratch.Append(nil)
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.opts.Store.PutMinutes(ctx, s.run, p.number, rows); err != nil {
		return err
	}
	s.probes.remove(p, false)
	return nil
}

// merge adds a stored sketch. One that can't be read must not hold up what comes after it: it is counted and left out.
func (s *Service) merge(into *Sketch, b []byte) {
	if err := into.Merge(b); err != nil {
		if s.unreadable.Add(1) == 1 {
			s.log.Error("a stored sketch of latencies is left out", "error", err)
		}
	}
}

// sum is a row whose sketch is being merged.
type sum struct {
	count, failures uint64
	sketch          *Sketch
}

func (s *Service) add(x *sum, r *statussync.ProbeRow) {
	x.count += r.Count
	x.failures += r.Failures
	if len(r.Sketch) == 0 {
		return
	}
	if x.sketch == nil {
		x.sketch = NewSketch()
	}
	s.merge(x.sketch, r.Sketch)
}

func (x *sum) step(start time.Time) statussync.ProbeStep {
	out := statussync.ProbeStep{Start: start, Count: x.count, Failures: x.failures}
	if x.sketch != nil {
		q := x.sketch.Quantiles(0.5, 0.95, 0.99)
		out.P50, out.P95, out.P99 = q[0], q[1], q[2]
	}
	return out
}

// mergeHours makes the hourly rows of every hour that has ended and is not made yet.
func (s *Service) mergeHours(ctx context.Context, now time.Time) error {
	marks, err := s.opts.Store.Marks(ctx)
	if err != nil || marks.HoursTo.IsZero() {
		return err
	}
	for hour := latest(marks.HoursTo, marks.MinutesFrom); !hour.Add(time.Hour).After(now) && ctx.Err() == nil; hour = hour.Add(time.Hour) {
		sums := map[string]*sum{}
		err := s.opts.Store.Minutes(ctx, hour, hour.Add(time.Hour), func(r statussync.ProbeRow) error {
			x := sums[r.ServerID]
			if x == nil {
				x = &sum{}
				sums[r.ServerID] = x
			}
			s.add(x, &r)
			return nil
		})
		if err != nil {
			return err
		}
		rows := make([]statussync.ProbeRow, 0, len(sums))
		for id, x := range sums {
			r := statussync.ProbeRow{ServerID: id, Start: hour, Count: x.count, Failures: x.failures}
			if x.sketch != nil {
				r.Sketch = x.sketch.Append(nil)
			}
			rows = append(rows, r)
		}
		if err := s.opts.Store.PutHour(ctx, hour, rows); err != nil {
			return err
		}
	}
	return nil
}
