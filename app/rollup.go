package app

import (
	"context"
	"log/slog"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/prom"
	"github.com/agentopia/statussync/rollup"
	"github.com/agentopia/statussync/sqlite"
)

// RollupsConfig says how much is kept of probes and uptime.
type RollupsConfig struct {
	MaxBytes Size `yaml:"max_bytes"`
}

const (
	defaultRollupsBytes = sqlite.DefaultHistoryMaxBytes
	minRollupsBytes     = 16 << 20
	// stopRollups is how long storing the minute that runs may take at the end.
	stopRollups = time.Second
)

func (c *Config) checkRollups(d *decoder) {
	if c.Rollups.MaxBytes < minRollupsBytes {
		d.failAt("rollups.max_bytes", "must be at least 16MiB")
	}
}

// history is where rollups are kept. Without it the service works: statuses need none of it.
type history struct {
	rollup.Store
	rollup.ResourceStore
	file *sqlite.History // nil: it could not be opened
	err  error           // why
}

// openHistory opens the history beside the journal. Where that fails the service does without, says so in its log and
// in /readyz, and whoever asks for uptime is told.
func openHistory(ctx context.Context, c *Config, log *slog.Logger) *history {
	f, err := sqlite.OpenHistory(ctx, sqlite.HistoryOptions{Dir: c.Data, MaxBytes: int64(c.Rollups.MaxBytes), Logger: log})
	if err != nil {
		log.Error("probes and uptime are not kept: their store cannot be opened; everything else works", "component", "app", "error", err)
		return &history{Store: noStore{err}, ResourceStore: noStore{err}, err: err}
	}
	return &history{Store: f, ResourceStore: f, file: f}
}

// run keeps the file within its bounds.
func (h *history) run(ctx context.Context) error {
	if h.file == nil {
		<-ctx.Done()
		return nil
	}
	return h.file.Run(ctx)
}

func (h *history) healthy(ctx context.Context) error {
	if h.file == nil {
		return h.err
	}
	return h.file.Healthy(ctx)
}

func (h *history) close() error {
	if h.file == nil {
		return nil
	}
	return h.file.Close()
}

// noStore answers everything with why there is no store.
type noStore struct{ err error }

func (n noStore) Marks(context.Context) (m statussync.ProbeMarks, err error) { return m, n.err }
func (n noStore) Minutes(context.Context, time.Time, time.Time, func(statussync.ProbeRow) error) error {
	return n.err
}
func (n noStore) PutMinutes(context.Context, string, uint64, []statussync.ProbeRow) error {
	return n.err
}
func (n noStore) PutHour(context.Context, time.Time, []statussync.ProbeRow) error { return n.err }
func (n noStore) ServerProbes(context.Context, string, bool, time.Time, time.Time) (r []statussync.ProbeRow, m statussync.ProbeMarks, known bool, err error) {
	return nil, m, false, n.err
}
func (n noStore) Tracks(context.Context) (t []statussync.SpanTrack, at statussync.SpanCheckpoint, err error) {
	return nil, at, n.err
}
func (n noStore) PutSpans(context.Context, []statussync.Span, statussync.SpanCheckpoint, bool) error {
	return n.err
}
func (n noStore) Spans(context.Context, []string, time.Time, time.Time, func(string, []statussync.Span) error) error {
	return n.err
}
func (n noStore) PutResources(context.Context, string, uint64, []statussync.ResourceRow) error {
	return n.err
}
func (n noStore) Resources(context.Context, string, bool, time.Time, time.Time) (r []statussync.ResourceRow, run string, batch uint64, known bool, err error) {
	return nil, "", 0, false, n.err
}

// rollupSamples are the numbers of probes' counts and of uptime.
func (s *service) rollupSamples(head uint64) []prom.Sample {
	r := s.rollups.Stats()
	lag := 0.0
	if head > r.Position.Seq {
		lag = float64(head - r.Position.Seq)
	}
	number := func(name, help string, counter bool, v float64) prom.Sample {
		return prom.Sample{Name: name, Help: help, Counter: counter, Value: v}
	}
	out := []prom.Sample{
		number("rollup_rows_stored_total", "Counts of one server and minute that were stored.", true, float64(r.Minutes)),
		number("rollup_flush_failures_total", "Tries to store probes that failed.", true, float64(r.FlushFailures)),
		number("rollup_probes_dropped_total", "Probes that were counted and could not be stored.", true, float64(r.Dropped)),
		number("rollup_waiting", "Counts of one server and minute that are not stored yet.", false, float64(r.Waiting)),
		number("uptime_spans_stored_total", "Spans of uptime stored.", true, float64(r.Spans)),
		number("uptime_follow_failures_total", "Times that following the journal for uptime failed.", true, float64(r.FollowFailures)),
		number("uptime_resyncs_total", "Times that uptime could not go on where it was in the journal.", true, float64(r.Resyncs)),
		number("uptime_lag_entries", "Entries of the journal that uptime has not seen yet.", false, lag),
	}
	res := s.resources.Stats()
	out = append(out,
		number("resource_rows_waiting", "Counts of one environment and minute that are not stored yet.", false, float64(res.Waiting)),
		number("resource_rows_dropped_total", "Counts of one environment and minute that could not be stored.", true, float64(res.Dropped)),
		number("resource_failures_total", "Tries to store resources that failed.", true, float64(res.Failures)))
	if f := s.history.file; f != nil {
		st := f.Stats()
		out = append(out,
			number("history_file_bytes", "Size of the file with probes and uptime.", false, float64(st.FileBytes)),
			number("history_log_bytes", "Size of the write-ahead log beside it.", false, float64(st.LogBytes)))
	}
	return out
}
