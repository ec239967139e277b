package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/agentopia/statussync"
)

// The keys of the history's meta table.
const (
	metaHoursTo     = "hours_to"     // Unix hour
	metaMinutesFrom = "minutes_from" // Unix minute
	metaRun         = "run"
	metaBatch       = "batch"
	metaSpansEpoch  = "spans_epoch"
	metaSpansSeq    = "spans_seq"
	metaSpansAt     = "spans_at" // Unix ms
)

// endsIncident are the classes with SpanClass.EndsIncident, by number.
const endsIncident = `(2, 3, 5, 7, 8)`

var (
	putMinutes = newBulk(`REPLACE INTO minutes (minute, server, count, failures, sketch)`, 5, ``)
	putHours   = newBulk(`REPLACE INTO hours (hour, server, count, failures, sketch)`, 5, ``)
	putSpans   = newBulk(`REPLACE INTO spans (server, begin, class, state, health, reason, cause, details)`, 8, ``)
)

func unixMinute(t time.Time) int64 { return floorDiv(t.Unix(), 60) }

// unixHour is 0 for the zero time.
func unixHour(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return floorDiv(t.Unix(), 3600)
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

func hourTime(h int64) time.Time   { return time.Unix(h*3600, 0).UTC() }
func minuteTime(m int64) time.Time { return time.Unix(m*60, 0).UTC() }

func (h *History) readable() error {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	if h.f.closed {
		return errClosed
	}
	return nil
}

// rows calls f for each row of a query.
func (h *History) rows(ctx context.Context, q querier, f func(*sql.Rows) error, query string, args ...any) error {
	if err := h.readable(); err != nil {
		return err
	}
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return explain(h.f.path, "reading", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return explain(h.f.path, "reading", errors.Join(rows.Err(), rows.Close()))
}

// meta reads the meta table.
func (h *History) meta(ctx context.Context, q querier) (text map[string]string, number map[string]int64, err error) {
	text, number = map[string]string{}, map[string]int64{}
	err = h.rows(ctx, q, func(rows *sql.Rows) error {
		var k string
		var v any
		if err := rows.Scan(&k, &v); err != nil {
			return err
		}
		switch v := v.(type) {
		case string:
			text[k] = v
		case int64:
			number[k] = v
		}
		return nil
	}, `SELECT key, value FROM meta`)
	return text, number, err
}

// Marks returns how far the rows of probes reach.
func (h *History) Marks(ctx context.Context) (statussync.ProbeMarks, error) {
	return h.marks(ctx, h.f.reads)
}

func (h *History) marks(ctx context.Context, q querier) (m statussync.ProbeMarks, err error) {
	text, number, err := h.meta(ctx, q)
	if v, ok := number[metaHoursTo]; ok {
		m.HoursTo = hourTime(v)
	}
	if v, ok := number[metaMinutesFrom]; ok {
		m.MinutesFrom = minuteTime(v)
	}
	m.Run, m.Batch = text[metaRun], uint64(number[metaBatch])
	return m, err
}

// Minutes yields the rows of all servers with from ≤ Start < to, by Start. An error of yield ends it and is returned.
func (h *History) Minutes(ctx context.Context, from, to time.Time, yield func(statussync.ProbeRow) error) error {
	return h.rows(ctx, h.f.reads, func(rows *sql.Rows) error {
		r, err := scanProbe(rows, minuteTime)
		if err != nil {
			return err
		}
		return yield(r)
	}, `SELECT m.minute, m.count, m.failures, m.sketch, s.id FROM minutes m CROSS JOIN servers s ON s.num = m.server
		WHERE m.minute >= ? AND m.minute < ? ORDER BY m.minute`, unixMinute(from), unixMinute(to))
}

func scanProbe(rows *sql.Rows, at func(int64) time.Time) (r statussync.ProbeRow, err error) {
	var start, count, failures int64
	err = rows.Scan(&start, &count, &failures, &r.Sketch, &r.ServerID)
	r.Start, r.Count, r.Failures = at(start), uint64(count), uint64(failures)
	return r, err
}

// probeArgs are the arguments of the bulk insert, in the order of the key. A server twice at one time is an error of the
// caller's; the last counts.
func (h *History) probeArgs(w *writer, rows []statussync.ProbeRow, at func(time.Time) int64) ([]any, error) {
	type keyed struct {
		at, num int64
		row     *statussync.ProbeRow
	}
	list := make([]keyed, len(rows))
	for i := range rows {
		num, err := h.number(w, rows[i].ServerID)
		if err != nil {
			return nil, err
		}
		list[i] = keyed{at(rows[i].Start), num, &rows[i]}
	}
	slices.SortStableFunc(list, func(a, b keyed) int {
		switch {
		case a.at != b.at:
			return int(a.at - b.at)
		case a.num < b.num:
			return -1
		case a.num > b.num:
			return 1
		}
		return 0
	})
	args := make([]any, 0, 5*len(list))
	for _, k := range list {
		var sketch any
		if len(k.row.Sketch) > 0 {
			sketch = k.row.Sketch
		}
		args = append(args, k.at, k.num, int64(k.row.Count), int64(k.row.Failures), sketch)
	}
	return args, nil
}

func never() error { return nil }

// PutMinutes stores rows of minutes, in place of those that are there, as batch number batch of a run, whole or not at
// all. A batch that is the newest stored one already changes nothing: after an error it may be tried again without being
// counted twice. The hours of these minutes are to be made again: HoursTo goes back to the first of them.
func (h *History) PutMinutes(ctx context.Context, run string, batch uint64, rows []statussync.ProbeRow) error {
	return h.write(ctx, "storing minutes", func(w *writer) error {
		done, err := w.number(`SELECT count(*) FROM meta r JOIN meta b ON b.key = ? AND b.value = ? WHERE r.key = ? AND r.value = ?`,
			metaBatch, int64(batch), metaRun, run)
		if err != nil || done > 0 {
			return err
		}
		args, err := h.probeArgs(w, rows, unixMinute)
		if err != nil {
			return err
		}
		if err := w.rows(putMinutes, args, never); err != nil {
			return err
		}
		if len(args) > 0 {
			first := floorDiv(args[0].(int64), 60)
			err := w.exec(`INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = min(value, excluded.value)`, metaHoursTo, first)
			if err != nil {
				return err
			}
		}
		return w.setMeta(metaRun, run, metaBatch, int64(batch))
	})
}

// PutHour stores the rows of one whole hour, in place of what is there of it, and moves HoursTo behind it.
func (h *History) PutHour(ctx context.Context, hour time.Time, rows []statussync.ProbeRow) error {
	n := unixHour(hour)
	return h.write(ctx, "storing an hour", func(w *writer) error {
		args, err := h.probeArgs(w, rows, unixHour)
		if err != nil {
			return err
		}
		if err := w.exec(`DELETE FROM hours WHERE hour = ?`, n); err != nil {
			return err
		}
		if err := w.rows(putHours, args, never); err != nil {
			return err
		}
		return w.setMeta(metaHoursTo, n+1)
	})
}

// ServerProbes returns the rows of one server with from ≤ Start < to: hours up to HoursTo and minutes from there, where
// hours are asked for, otherwise minutes; and the marks as of the same moment. known says whether anything was ever
// stored of the server.
func (h *History) ServerProbes(ctx context.Context, id string, hours bool, from, to time.Time) (rows []statussync.ProbeRow, m statussync.ProbeMarks, known bool, err error) {
	if err := h.readable(); err != nil {
		return nil, m, false, err
	}
	tx, err := h.f.reads.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, m, false, explain(h.f.path, "reading", err)
	}
	defer func() { _ = tx.Rollback() }() // it only read
	if m, err = h.marks(ctx, tx); err != nil {
		return nil, m, false, err
	}
	num := int64(-1)
	err = h.rows(ctx, tx, func(r *sql.Rows) error { return r.Scan(&num) }, `SELECT num FROM servers WHERE id = ?`, id)
	if err != nil || num < 0 {
		return nil, m, false, err
	}
	// Each time is looked up by the whole key: the table has the other servers' rows in between.
	read := func(table string, at func(int64) time.Time, from, to int64) error {
		if from >= to {
			return nil
		}
		return h.rows(ctx, tx, func(r *sql.Rows) error {
			row, err := scanProbe(r, at)
			rows = append(rows, row)
			return err
		}, fmt.Sprintf(`WITH RECURSIVE t(n) AS (VALUES (?1) UNION ALL SELECT n + 1 FROM t WHERE n + 1 < ?2)
			SELECT t.n, x.count, x.failures, x.sketch, ?4 FROM t CROSS JOIN %[1]ss x ON x.%[1]s = t.n AND x.server = ?3`, table), from, to, num, id)
	}
	fromMinute := unixMinute(from)
	if hours && !m.HoursTo.IsZero() {
		merged := unixHour(m.HoursTo)
		if err := read("hour", hourTime, unixHour(from), min(merged, unixHour(to)+1)); err != nil {
			return nil, m, true, err
		}
		fromMinute = max(fromMinute, merged*60)
	}
	return rows, m, true, read("minute", minuteTime, fromMinute, unixMinute(to.Add(time.Minute-1)))
}

// Tracks returns the last span of every server that is not removed, and the checkpoint.
func (h *History) Tracks(ctx context.Context) (tracks []statussync.SpanTrack, at statussync.SpanCheckpoint, err error) {
	if err := h.readable(); err != nil {
		return nil, at, err
	}
	tx, err := h.f.reads.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, at, explain(h.f.path, "reading", err)
	}
	defer func() { _ = tx.Rollback() }() // it only read
	text, number, err := h.meta(ctx, tx)
	if err != nil {
		return nil, at, err
	}
	if e := text[metaSpansEpoch]; e != "" {
		at.Cursor = statussync.Cursor{Epoch: statussync.Epoch(e), Seq: uint64(number[metaSpansSeq])}
		at.At = time.UnixMilli(number[metaSpansAt]).UTC()
	}
	err = h.rows(ctx, tx, func(rows *sql.Rows) error {
		var t statussync.SpanTrack
		var begin, class, state, health int64
		if err := rows.Scan(&t.ServerID, &begin, &class, &state, &health); err != nil {
			return err
		}
		t.Begin, t.Class = time.UnixMilli(begin).UTC(), classOf(class)
		t.State, t.Health = wordOf(statussync.States, state), wordOf(statussync.Healths, health)
		if t.Class != statussync.SpanRemoved {
			tracks = append(tracks, t)
		}
		return nil
	}, `SELECT v.id, s.begin, s.class, coalesce(s.state, 0), coalesce(s.health, 0) FROM servers v CROSS JOIN spans s
		ON s.server = v.num AND s.begin = (SELECT max(begin) FROM spans WHERE server = v.num)`)
	return tracks, at, err
}

// classOf is the class of a number that is stored; one of a newer program is unknown.
func classOf(n int64) statussync.SpanClass {
	if n < 1 || n > int64(len(statussync.SpanClasses)) {
		return statussync.SpanUnknown
	}
	return statussync.SpanClasses[n-1]
}

// stateNumber and healthNumber are how a span's state and health are stored: their place in States and Healths, which are
// therefore only ever appended to. NULL: not known.
func stateNumber(s statussync.State) any   { return placeOf(statussync.States, s) }
func healthNumber(h statussync.Health) any { return placeOf(statussync.Healths, h) }

func placeOf[T comparable](list []T, v T) any {
	if i := slices.Index(list, v); i >= 0 {
		return int64(i + 1)
	}
	return nil
}

// wordOf is the inverse of placeOf; one of a newer program is not known.
func wordOf[T ~string](list []T, n int64) T {
	if n < 1 || n > int64(len(list)) {
		return ""
	}
	return list[n-1]
}

// PutSpans stores spans, and the checkpoint where it is not zero, whole or not at all. A span replaces one of its server
// that begins at the same time. With reset everything that was stored of spans is deleted first.
func (h *History) PutSpans(ctx context.Context, spans []statussync.Span, at statussync.SpanCheckpoint, reset bool) error {
	return h.write(ctx, "storing spans", func(w *writer) error {
		if reset {
			if err := w.exec(`DELETE FROM spans`); err != nil {
				return err
			}
			if err := w.exec(`DELETE FROM meta WHERE key IN (?, ?, ?)`, metaSpansEpoch, metaSpansSeq, metaSpansAt); err != nil {
				return err
			}
		}
		text := func(s string) any {
			if s == "" {
				return nil
			}
			return s
		}
		args := make([]any, 0, 8*len(spans))
		for i := range spans {
			s := &spans[i]
			num, err := h.number(w, s.ServerID)
			if err != nil {
				return err
			}
			args = append(args, num, s.Begin.UnixMilli(), int64(slices.Index(statussync.SpanClasses, s.Class)+1),
				stateNumber(s.State), healthNumber(s.Health), text(string(s.Reason)), text(s.Cause), text(s.Details))
		}
		if err := w.rows(putSpans, args, never); err != nil || at.Cursor.IsZero() {
			return err
		}
		return w.setMeta(metaSpansEpoch, string(at.Cursor.Epoch), metaSpansSeq, int64(at.Cursor.Seq), metaSpansAt, at.At.UnixMilli())
	})
}

const spansQuery = `SELECT v.id, s.begin, s.class, coalesce(s.state, 0), coalesce(s.health, 0), coalesce(s.reason, ''), coalesce(s.cause, ''), coalesce(s.details, '')
	FROM servers v CROSS JOIN spans s ON s.server = v.num AND s.begin >= coalesce((SELECT begin FROM spans
		WHERE server = v.num AND begin <= ?1 AND class IN ` + endsIncident + ` ORDER BY begin DESC LIMIT 1), 0) AND s.begin < ?2
	%s ORDER BY v.num, s.begin`

// Spans yields the spans of each server before to, by time, from the last one at or before from that ends an incident:
// so many that an incident which reaches into the time asked for has its beginning. ids nil: of all servers, in no order;
// otherwise of those, and yield is called once for each that has any. The slice is reused after yield returns.
func (h *History) Spans(ctx context.Context, ids []string, from, to time.Time, yield func(id string, spans []statussync.Span) error) error {
	var list []statussync.Span
	give := func() (err error) {
		if len(list) > 0 {
			err = yield(list[0].ServerID, list)
		}
		list = list[:0]
		return err
	}
	scan := func(rows *sql.Rows) error {
		var s statussync.Span
		var begin, class, state, health int64
		var reason string
		if err := rows.Scan(&s.ServerID, &begin, &class, &state, &health, &reason, &s.Cause, &s.Details); err != nil {
			return err
		}
		s.Begin, s.Class, s.Reason = time.UnixMilli(begin).UTC(), classOf(class), statussync.Reason(reason)
		s.State, s.Health = wordOf(statussync.States, state), wordOf(statussync.Healths, health)
		if len(list) > 0 && list[0].ServerID != s.ServerID {
			if err := give(); err != nil {
				return err
			}
		}
		list = append(list, s)
		return nil
	}
	// A span that begins within the millisecond of "to" counts only from the next one on.
	f, t := from.UnixMilli(), to.UnixMilli()
	if ids == nil {
		if err := h.rows(ctx, h.f.reads, scan, fmt.Sprintf(spansQuery, ""), f, t); err != nil {
			return err
		}
		return give()
	}
	if err := h.readable(); err != nil {
		return err
	}
	st, err := h.f.reads.PrepareContext(ctx, fmt.Sprintf(spansQuery, "WHERE v.id = ?3"))
	if err != nil {
		return explain(h.f.path, "reading", err)
	}
	defer func() { _ = st.Close() }()
	for _, id := range ids {
		rows, err := st.QueryContext(ctx, f, t, id)
		if err != nil {
			return explain(h.f.path, "reading", err)
		}
		for err == nil && rows.Next() {
			err = scan(rows)
		}
		if err = errors.Join(err, rows.Err(), rows.Close()); err != nil {
			return explain(h.f.path, "reading", err)
		}
		if err := give(); err != nil {
			return err
		}
	}
	return nil
}
