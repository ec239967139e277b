package rollup

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync"
)

// ResourceStore keeps rows of resources. Its methods are safe for concurrent use; one process writes.
type ResourceStore interface {
	// PutResources adds rows of minutes to what is there of them and of their hours, as a numbered batch of a run, whole
	// or not at all; the newest stored batch given again changes nothing.
	PutResources(ctx context.Context, run string, batch uint64, rows []statussync.ResourceRow) error
	// Resources returns the rows of one environment with from ≤ Start < to, of hours or of minutes, by Start, and the
	// newest batch stored, as of one moment. known: anything is stored of the environment.
	Resources(ctx context.Context, id string, hours bool, from, to time.Time) (rows []statussync.ResourceRow, run string, batch uint64, known bool, err error)
}

const (
	// maxResourceRows bounds what waits for a store that fails: 20 minutes of 10,000 environments, about 40 MB.
	maxResourceRows = 200_000
	// maxResourceSamples of one environment and minute are counted; more say nothing, and their sum must not overflow.
	maxResourceSamples = 10_000
	// maxKiB and maxLoad are the largest numbers that are believed: 2^53 bytes, and 10,000 cores.
	maxKiB  = 1 << 43
	maxLoad = 1e6
)

// ResourceOptions says what Resources work with. Store is required.
type ResourceOptions struct {
	Store  ResourceStore
	Logger *slog.Logger     // nil logs nothing. component=resources is added
	Now    func() time.Time // the wall clock, by which reports are counted. Default time.Now
}

// Resources counts what agents tell of their hosts: CPU, memory and disk, per environment and minute. It is a ReportSink:
// Report takes a mutex for a moment and never waits for the store. A minute that has ended is stored in one batch, 2 s
// later; the one that runs is stored when Run ends, and reads see it before. A crash loses the minute that runs. While
// the store fails, up to 200,000 rows wait, then the oldest minutes are dropped, and counted. Safe for concurrent use.
type Resources struct {
	opts ResourceOptions
	log  *slog.Logger
	run  string

	mu      sync.Mutex
	parts   []*resourcePart
	last    uint64
	rows    int
	limit   int
	dropped uint64

	failures atomic.Uint64
}

// resourcePart is what was counted in one minute and is not stored yet. Its number is that of the batch.
type resourcePart struct {
	number uint64
	minute int64
	rows   map[string]*statussync.ResourceRow
	sealed bool // being stored: nothing is added any more
}

// NewResources returns Resources that only count before Run.
func NewResources(o ResourceOptions) (*Resources, error) {
	if o.Store == nil {
		return nil, statussync.Invalid("ResourceOptions.Store", "is required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails, as crypto/rand documents
	return &Resources{opts: o, log: o.Logger.With("component", "resources"), run: hex.EncodeToString(id[:]), limit: maxResourceRows}, nil
}

// Report implements statussync.ReportSink. A report that says nothing of the host counts nothing.
func (r *Resources) Report(a *statussync.AgentReport) {
	if x, ok := sampleOf(a.System); ok {
		r.add(a.EnvironmentID, minuteOf(r.opts.Now()), &x)
	}
}

// sampleOf is one report as a row of one sample. What programs need of the memory is what is active, where the agent
// tells it: used has the file cache in it, and is near the whole on every host that runs for long.
func sampleOf(s *statussync.SystemStatus) (x statussync.ResourceRow, ok bool) {
	if s == nil {
		return x, false
	}
	if p := s.CPULoadPercent; p != nil && *p >= 0 && !math.IsInf(*p, 0) {
		x.CPU.Add(int64(math.Round(min(*p, maxLoad)*100)), 0)
	}
	if m := s.Memory; m != nil && m.TotalBytes > 0 {
		used := m.UsedBytes
		if m.ActiveBytes > 0 {
			used = m.ActiveBytes
		}
		x.Memory.Add(kib(used), kib(m.TotalBytes))
	}
	if d := s.Disk; d != nil && d.TotalBytes > 0 {
		x.Disk.Add(kib(d.UsedBytes), kib(d.TotalBytes))
	}
	return x, x.CPU.Count+x.Memory.Count+x.Disk.Count > 0
}

func kib(b int64) int64 { return min(max(0, b)/1024, maxKiB) }

func (r *Resources) add(id string, minute int64, x *statussync.ResourceRow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var p *resourcePart
	for i := len(r.parts) - 1; i >= 0 && p == nil; i-- {
		if q := r.parts[i]; q.minute == minute && !q.sealed {
			p = q
		}
	}
	if p == nil {
		r.last++
		p = &resourcePart{number: r.last, minute: minute, rows: map[string]*statussync.ResourceRow{}}
		r.parts = append(r.parts, p)
	}
	row := p.rows[id]
	if row == nil {
		row = &statussync.ResourceRow{EnvironmentID: id, Start: time.Unix(minute*60, 0).UTC()}
		p.rows[id] = row
		r.rows++
		for r.rows > r.limit && len(r.parts) > 1 {
			r.dropped += uint64(len(r.parts[0].rows))
			r.rows -= len(r.parts[0].rows)
			r.parts = r.parts[1:]
		}
	}
	if max(row.CPU.Count, row.Memory.Count, row.Disk.Count) < maxResourceSamples {
		row.Merge(x)
	}
}

// seal returns the first part, for storing, unless its minute runs still; with all also then. nil: there is none.
func (r *Resources) seal(running int64, all bool) (*resourcePart, []statussync.ResourceRow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.parts) == 0 || (r.parts[0].minute == running && !all) {
		return nil, nil
	}
	p := r.parts[0]
	p.sealed = true
	rows := make([]statussync.ResourceRow, 0, len(p.rows))
	for _, x := range p.rows {
		rows = append(rows, *x)
	}
	return p, rows
}

func (r *Resources) stored(p *resourcePart) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.parts) > 0 && r.parts[0] == p { // else it was dropped meanwhile
		r.parts, r.rows = r.parts[1:], r.rows-len(p.rows)
	}
}

// flush stores every minute that has ended, or with all the one that runs, too.
func (r *Resources) flush(ctx context.Context, all bool) error {
	for {
		p, rows := r.seal(minuteOf(r.opts.Now()), all)
		if p == nil {
			return nil
		}
		if err := r.opts.Store.PutResources(ctx, r.run, p.number, rows); err != nil {
			r.failures.Add(1)
			return err
		}
		r.stored(p)
	}
}

// Run stores what was counted until ctx ends, then the minute that runs, which takes at most 5 s, and returns nil. A
// store that fails never ends it. It may be called once.
func (r *Resources) Run(ctx context.Context) error {
	t := time.NewTimer(0)
	defer t.Stop()
	var last string // what was logged
	for {
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
			defer cancel()
			if err := r.flush(end, true); err != nil {
				r.log.Error("the last minute's resources are not stored", "error", err)
			}
			return nil
		case <-t.C:
		}
		wait := retryAfter
		if err := r.flush(ctx, false); err == nil {
			if last != "" {
				r.log.Info("resources are stored again")
			}
			last = ""
			now := r.opts.Now()
			wait = now.Truncate(time.Minute).Add(time.Minute + flushAfter).Sub(now)
		} else if ctx.Err() == nil && err.Error() != last {
			last = err.Error()
			r.log.Error("resources cannot be stored; they wait in memory", "error", err)
		}
		t.Reset(wait)
	}
}

// ResourceStats are the numbers of Resources. Counters count since the start.
type ResourceStats struct {
	Waiting  int    // rows of one environment and minute that are not stored yet
	Dropped  uint64 // of those that will never be
	Failures uint64 // tries to store that failed
}

// Stats returns the numbers, from memory.
func (r *Resources) Stats() ResourceStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return ResourceStats{Waiting: r.rows, Dropped: r.dropped, Failures: r.failures.Load()}
}

// Resources returns what one environment's agent told in the last window, by steps; step 0 is the smallest that is
// allowed. Where the window is longer than 48 h it is made from hours. known: anything was ever told and is kept.
// CodeInvalid is located at window or step.
func (r *Resources) Resources(ctx context.Context, id string, window, step time.Duration) (out statussync.ResourceReport, known bool, err error) {
	out = statussync.ResourceReport{EnvironmentID: id, Window: window, Resolution: statussync.ResolutionMinute}
	unit, step, err := checkSteps(window, step)
	if err != nil {
		return out, false, err
	}
	out.Step = step
	if unit == time.Hour {
		out.Resolution = statussync.ResolutionHour
	}
	now := r.opts.Now()
	from, to := now.Add(-window).UTC().Truncate(unit), now.Add(time.Nanosecond)
	// What waits is read first: what is stored meanwhile is then in both, and told apart by its batch's number.
	wait := r.waiting(id)
	rows, run, batch, known, err := r.opts.Store.Resources(ctx, id, unit == time.Hour, from, to)
	if err != nil {
		return out, false, err
	}
	for _, w := range wait {
		if (run != r.run || w.number > batch) && !w.row.Start.Before(from) {
			rows, known = append(rows, w.row), true
		}
	}
	out.Steps = []statussync.ResourceRow{}
	place := map[int64]int{}
	seconds := int64(step / time.Second)
	for i := range rows {
		n := floorDiv(rows[i].Start.Unix(), seconds)
		at, ok := place[n]
		if !ok {
			at = len(out.Steps)
			place[n] = at
			out.Steps = append(out.Steps, statussync.ResourceRow{EnvironmentID: id, Start: time.Unix(n*seconds, 0).UTC()})
		}
		out.Steps[at].Merge(&rows[i])
	}
	slices.SortFunc(out.Steps, func(a, b statussync.ResourceRow) int { return cmp.Compare(a.Start.Unix(), b.Start.Unix()) })
	return out, known, nil
}

// waitingRow is what is counted and not stored, with the number of the batch.
type waitingRow struct {
	number uint64
	row    statussync.ResourceRow
}

func (r *Resources) waiting(id string) (out []waitingRow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.parts {
		if x := p.rows[id]; x != nil {
			out = append(out, waitingRow{p.number, *x})
		}
	}
	return out
}
