package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync"
)

// HistoryFileName is the name of the history's file in the data directory. It is a plain SQLite file with a write-ahead
// log: a backup copies it as it copies the journal's.
const HistoryFileName = "history.db"

// DefaultHistoryMaxBytes bounds a history where HistoryOptions does not say otherwise. 3,000 servers that are probed
// twice a minute take about 700 MB.
const DefaultHistoryMaxBytes = 1 << 30

//go:embed migrations_history/*.sql
var historyMigrations embed.FS

// HistoryOptions says where a history is and what bounds it.
type HistoryOptions struct {
	// Dir is the data directory. It must exist and be this process's: a Store holds its lock. Required.
	Dir string
	// MaxBytes bounds the file and its log together, like Options.MaxBytes: the oldest minutes go first, then the oldest
	// hours, then the oldest spans. The hour that runs, the newest 24 hours and each server's present span stay. Default
	// DefaultHistoryMaxBytes, at least MinMaxBytes.
	MaxBytes int64
	// Logger receives what Run and Open do. Default: nowhere.
	Logger *slog.Logger
	// Now is the clock that retention goes by. Default time.Now.
	Now func() time.Time
}

// History keeps counts of probes per minute and per hour, and the spans of uptime, in a SQLite file of its own, so that
// writing them never holds an append of the journal. All methods are safe for concurrent use; writes take turns, reads
// see one consistent state each. Errors are like the Store's.
//
// A write that returned nil survives the death of the process; that of the machine may take the newest ones with it,
// whole, which spans recover from the journal. A write does not end with its context while the disk hangs.
type History struct {
	// f is the part of a Store that handles a file: turn, writer, log, size. It has no journal.
	f      *Store
	nums   map[string]int64 // ids of servers that are numbered; of whoever has the turn
	pruned time.Time        // when spans were last looked through; Run's
	dead   atomic.Uint64
}

// OpenHistory opens the history in o.Dir, or makes a new one, and migrates an older file like Open.
func OpenHistory(ctx context.Context, o HistoryOptions) (*History, error) {
	so, err := Options{Dir: o.Dir, MaxBytes: o.MaxBytes, Logger: o.Logger, Now: o.Now}.complete()
	if o.MaxBytes == 0 {
		so.MaxBytes = DefaultHistoryMaxBytes
	}
	if err != nil {
		return nil, err
	}
	so.Retention = statussync.KeepSpans
	if so.migrations, err = fs.Sub(historyMigrations, "migrations_history"); err != nil {
		return nil, err
	}
	s := &Store{opts: so, log: so.Logger, path: filepath.Join(so.Dir, HistoryFileName), turn: make(chan struct{}, 1), closing: make(chan struct{})}
	h := &History{f: s, nums: map[string]int64{}}
	if err := h.open(ctx); err != nil {
		s.release()
		return nil, explain(s.path, "opening", err)
	}
	return h, nil
}

func (h *History) open(ctx context.Context) (err error) {
	s := h.f
	if err := prepareFile(s.path); err != nil {
		return err
	}
	if err := migrate(ctx, s.path, s.opts.migrations, s.log); err != nil {
		return err
	}
	if s.file, err = os.Stat(s.path); err != nil {
		return err
	}
	if s.w, err = openWriter(s.path, s.opts); err != nil {
		return err
	}
	if s.reads, err = sql.Open("sqlite", dsn(s.path, "query_only(1)", "cache_size(-8000)")); err != nil {
		return err
	}
	s.reads.SetMaxOpenConns(readers)
	s.reads.SetMaxIdleConns(readers)
	var n int
	return s.reads.QueryRowContext(ctx, `SELECT count(*) FROM meta`).Scan(&n)
}

// Close ends the history: it waits for the write under way, at most 5 s, and moves the log into the file. Later calls
// of other methods fail with CodeUnavailable, of Close do nothing.
func (h *History) Close() error {
	s := h.f
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.closing)
	s.mu.Unlock()
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case s.turn <- struct{}{}: // never given back
	case <-t.C:
		return statussync.NewError(statussync.CodeUnavailable, "the history's store hangs",
			fmt.Errorf("%s: a write did not end within %v; it was not closed", s.path, closeWait))
	}
	s.release() // the last connection that closes moves the log
	return nil
}

// HistoryStats are numbers about a history.
type HistoryStats struct {
	FileBytes int64
	LogBytes  int64  // of the write-ahead log beside it
	Deleted   uint64 // rows deleted because they were too old or too much
}

// Stats returns numbers about the history, from two calls of stat.
func (h *History) Stats() HistoryStats {
	st := HistoryStats{Deleted: h.dead.Load()}
	st.FileBytes, st.LogBytes = h.f.sizes()
	return st
}

// Healthy returns nil when the newest write succeeded and the file is in its place. It never waits for a writer.
func (h *History) Healthy(context.Context) error {
	s := h.f
	s.mu.Lock()
	trouble, closed := s.trouble, s.closed
	s.mu.Unlock()
	if closed {
		return errClosed
	}
	if err := s.inPlace(); err != nil {
		return err
	}
	return trouble
}

// write runs f in a transaction when it is our turn.
func (h *History) write(ctx context.Context, doing string, f func(w *writer) error) error {
	s := h.f
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	if err := s.write(doing, f); err != nil {
		clear(h.nums) // those that were made in it are gone
		return err
	}
	s.mu.Lock()
	s.trouble = nil
	s.mu.Unlock()
	return nil
}

// number returns the number of a server, and makes one where it has none. Only within write.
func (h *History) number(w *writer, id string) (int64, error) {
	if n, ok := h.nums[id]; ok {
		return n, nil
	}
	n, err := w.number(`INSERT INTO servers (id) VALUES (?) ON CONFLICT (id) DO UPDATE SET id = id RETURNING num`, id)
	if err == nil {
		h.nums[id] = n
	}
	return n, err
}

const (
	historyHouseEvery = 5 * time.Second
	// pruneEvery is how often all servers' spans are looked through for old ones.
	pruneEvery = time.Hour
	// historyStep is how many rows, or servers' spans, one transaction of retention deletes at most.
	historyStep = 1024
	// keepHours of the hourly rows are never deleted for size.
	keepHours = 24
)

// Run keeps the history within its bounds until ctx ends; it then returns nil. Minutes live for 48 h, hours and spans
// for 90 d. It deletes in small steps. Trouble is logged once and tried again; it never ends Run.
func (h *History) Run(ctx context.Context) error {
	t := time.NewTicker(historyHouseEvery)
	defer t.Stop()
	for {
		if err := h.f.keepHouse(ctx, h.retain, "the history cannot be kept within its bounds"); errors.Is(err, errClosed) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// retain deletes what is too old, and then, while there is too much, what is oldest.
func (h *History) retain(ctx context.Context) error {
	now := h.f.opts.Now()
	m, err := h.Marks(ctx)
	if err != nil {
		return err
	}
	merged := unixHour(m.HoursTo)
	if err := h.deleteMinutes(ctx, min(unixHour(now.Add(-statussync.KeepProbeMinutes)), merged)); err != nil {
		return err
	}
	if err := h.deleteHours(ctx, unixHour(now.Add(-statussync.KeepProbeHours))); err != nil {
		return err
	}
	if err := h.retainResources(ctx, now); err != nil {
		return err
	}
	if now.Sub(h.pruned) >= pruneEvery || now.Before(h.pruned) {
		if err := h.prune(ctx, now.Add(-statussync.KeepSpans), now); err != nil {
			return err
		}
		h.pruned = now
	}
	spans := time.Time{}
	for ctx.Err() == nil {
		large, err := h.f.tooMuch(ctx)
		if err != nil || !large {
			return explain(h.f.path, "measuring", err)
		}
		minute, hour, begin, err := h.oldest(ctx)
		if err != nil {
			return err
		}
		resourceMinute, resourceHour, err := h.oldestResources(ctx)
		switch {
		case err != nil:
			return err
		case resourceMinute >= 0 && resourceMinute/60 < unixHour(now) && (minute < 0 || resourceMinute <= minute || minute/60 >= merged):
			err = h.deleteResources(ctx, "minute", 60*(resourceMinute/60+1))
		case minute >= 0 && minute/60 < merged:
			err = h.deleteMinutes(ctx, minute/60+1)
		case resourceHour >= 0 && resourceHour < unixHour(now)-keepHours && (hour < 0 || resourceHour <= hour || hour >= merged-keepHours):
			err = h.deleteResources(ctx, "hour", min(resourceHour+24, unixHour(now)-keepHours))
		case hour >= 0 && hour < merged-keepHours:
			err = h.deleteHours(ctx, min(hour+24, merged-keepHours))
		case begin >= 0 && spans.Before(now):
			// A server's oldest span may be the one that lasts: the cut-off goes on from where it was.
			spans = later(spans, time.UnixMilli(begin)).Add(24 * time.Hour)
			err = h.prune(ctx, spans, now)
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// oldest returns the first minute, hour and begin of a span; -1 where there is none.
func (h *History) oldest(ctx context.Context) (minute, hour, begin int64, err error) {
	err = h.f.reads.QueryRowContext(ctx, `SELECT coalesce((SELECT min(minute) FROM minutes), -1),
		coalesce((SELECT min(hour) FROM hours), -1), coalesce((SELECT min(begin) FROM spans), -1)`).Scan(&minute, &hour, &begin)
	return minute, hour, begin, explain(h.f.path, "reading", err)
}

// deleteMinutes deletes the minutes of all hours before hour.
func (h *History) deleteMinutes(ctx context.Context, hour int64) error {
	m, err := h.Marks(ctx)
	if err != nil {
		return err
	}
	ahead := m.MinutesFrom.After(h.f.opts.Now()) // the clock was; until it is there again no minute would be taken
	if (hour > unixHour(m.MinutesFrom) || ahead) && !m.HoursTo.IsZero() {
		// First of all it is noted: an hour is never made again from a part of its minutes.
		err := h.write(ctx, "deleting old minutes", func(w *writer) error { return w.setMeta(metaMinutesFrom, hour*60) })
		if err != nil {
			return err
		}
	}
	minute, _, _, err := h.oldest(ctx)
	if err != nil || minute < 0 || minute >= hour*60 {
		return err
	}
	return h.deleteSteps(ctx, `DELETE FROM minutes WHERE (minute, server) IN (SELECT minute, server FROM minutes WHERE minute < ? ORDER BY minute, server LIMIT ?)`, hour*60)
}

func (h *History) deleteHours(ctx context.Context, hour int64) error {
	_, oldest, _, err := h.oldest(ctx)
	if err != nil || oldest < 0 || oldest >= hour {
		return err
	}
	return h.deleteSteps(ctx, `DELETE FROM hours WHERE (hour, server) IN (SELECT hour, server FROM hours WHERE hour < ? ORDER BY hour, server LIMIT ?)`, hour)
}

// deleteSteps runs a DELETE with a bound and a limit until it deletes nothing, with pauses.
func (h *History) deleteSteps(ctx context.Context, query string, bound int64) error {
	for ctx.Err() == nil {
		begun := time.Now()
		var n int64
		err := h.write(ctx, "deleting what is old", func(w *writer) (err error) {
			if err = w.exec(query, bound, historyStep); err == nil {
				n, err = w.number(`SELECT changes()`)
			}
			return err
		})
		if err != nil || n == 0 {
			return err
		}
		h.dead.Add(uint64(n))
		if !pause(ctx, max(stepPause, time.Since(begun))) {
			return nil
		}
	}
	return nil
}

// prune deletes the spans that ended before the cut-off: of each server all before the last one that ends an incident
// at or before it, so that an incident which reaches into what is kept keeps its beginning. A server that was removed
// for as long as spans are kept is forgotten: its probes are deleted by then.
func (h *History) prune(ctx context.Context, cutoff, now time.Time) error {
	forget := later(time.UnixMilli(0), now.Add(-statussync.KeepSpans)).UnixMilli()
	for after := int64(-1); ctx.Err() == nil; {
		begun := time.Now()
		nums, err := h.numbersAfter(ctx, after, historyStep)
		if err != nil || len(nums) == 0 {
			return err
		}
		after = nums[len(nums)-1]
		var deleted int64
		err = h.write(ctx, "deleting old spans", func(w *writer) error {
			for _, num := range nums {
				err := w.exec(`DELETE FROM spans WHERE server = ?1 AND begin < coalesce((SELECT begin FROM spans
					WHERE server = ?1 AND begin <= ?2 AND class IN `+endsIncident+` ORDER BY begin DESC LIMIT 1), 0)`, num, cutoff.UnixMilli())
				if err != nil {
					return err
				}
				n, err := w.number(`SELECT changes()`)
				if err != nil {
					return err
				}
				deleted += n
				err = w.exec(`DELETE FROM servers WHERE num = ?1 AND EXISTS (SELECT 1 FROM spans WHERE server = ?1 AND begin <= ?2 AND class = 8)
					AND NOT EXISTS (SELECT 1 FROM spans WHERE server = ?1 AND (begin > ?2 OR class <> 8))`, num, forget)
				if err != nil {
					return err
				}
				if n, err = w.number(`SELECT changes()`); err != nil {
					return err
				}
				if n > 0 {
					clear(h.nums)
					if err := w.exec(`DELETE FROM spans WHERE server = ?`, num); err != nil {
						return err
					}
					deleted++
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		h.dead.Add(uint64(deleted))
		if !pause(ctx, max(stepPause, time.Since(begun))) {
			return nil
		}
	}
	return nil
}

func (h *History) numbersAfter(ctx context.Context, after int64, limit int) ([]int64, error) {
	rows, err := h.f.reads.QueryContext(ctx, `SELECT num FROM servers WHERE num > ? ORDER BY num LIMIT ?`, after, limit)
	if err != nil {
		return nil, explain(h.f.path, "reading", err)
	}
	defer func() { _ = rows.Close() }()
	var out []int64
	for rows.Next() {
		var n int64
		if err := rows.Scan(&n); err != nil {
			return nil, explain(h.f.path, "reading", err)
		}
		out = append(out, n)
	}
	return out, explain(h.f.path, "reading", errors.Join(rows.Err(), rows.Close()))
}
