package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// The keys of the history's meta table that are about resources.
const (
	metaResourceRun   = "resource_run"
	metaResourceBatch = "resource_batch"
)

const resourceColumns = `cpu_n, cpu_sum, cpu_max, memory_n, memory_sum, memory_max, memory_total, disk_n, disk_sum, disk_max, disk_total`

var (
	addMinutes = newBulk(`INSERT INTO resource_minutes (minute, environment, `+resourceColumns+`)`, 13, addResources("minute"))
	addHours   = newBulk(`INSERT INTO resource_hours (hour, environment, `+resourceColumns+`)`, 13, addResources("hour"))
)

// addResources is the end of an INSERT that adds to what is there. A size is only replaced by one that was seen.
func addResources(unit string) string {
	set := make([]string, 0, 11)
	for _, c := range strings.Split(resourceColumns, ", ") {
		part, kind, _ := strings.Cut(c, "_")
		switch kind {
		case "max":
			set = append(set, fmt.Sprintf("%[1]s = max(%[1]s, excluded.%[1]s)", c))
		case "total":
			set = append(set, fmt.Sprintf("%[1]s = CASE WHEN excluded.%[2]s_n > 0 THEN excluded.%[1]s ELSE %[1]s END", c, part))
		default:
			set = append(set, fmt.Sprintf("%[1]s = %[1]s + excluded.%[1]s", c))
		}
	}
	return " ON CONFLICT (" + unit + ", environment) DO UPDATE SET " + strings.Join(set, ", ")
}

// PutResources adds rows of minutes to what is there of them, and of their hours, as batch number batch of a run, whole
// or not at all. A batch that is the newest stored one already changes nothing: after an error it may be tried again
// without being counted twice.
func (h *History) PutResources(ctx context.Context, run string, batch uint64, rows []statussync.ResourceRow) error {
	return h.write(ctx, "storing resources", func(w *writer) error {
		done, err := w.number(`SELECT count(*) FROM meta r JOIN meta b ON b.key = ? AND b.value = ? WHERE r.key = ? AND r.value = ?`,
			metaResourceBatch, int64(batch), metaResourceRun, run)
		if err != nil || done > 0 {
			return err
		}
		type keyed struct {
			at, num int64
			row     *statussync.ResourceRow
		}
		list := make([]keyed, len(rows))
		for i := range rows {
			num, err := w.number(`INSERT INTO environments (id, seen) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET seen = max(seen, excluded.seen) RETURNING num`,
				rows[i].EnvironmentID, unixHour(rows[i].Start))
			if err != nil {
				return err
			}
			list[i] = keyed{unixMinute(rows[i].Start), num, &rows[i]}
		}
		slices.SortStableFunc(list, func(a, b keyed) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.num, b.num)) })
		minutes, hours := make([]any, 0, 13*len(list)), make([]any, 0, 13*len(list))
		for _, k := range list {
			r := k.row
			sums := []any{
				int64(r.CPU.Count), r.CPU.Sum, r.CPU.Max, int64(r.Memory.Count), r.Memory.Sum, r.Memory.Max, r.Memory.Total,
				int64(r.Disk.Count), r.Disk.Sum, r.Disk.Max, r.Disk.Total,
			}
			minutes = append(append(minutes, k.at, k.num), sums...)
			hours = append(append(hours, floorDiv(k.at, 60), k.num), sums...)
		}
		if err := w.rows(addMinutes, minutes, never); err != nil {
			return err
		}
		if err := w.rows(addHours, hours, never); err != nil {
			return err
		}
		return w.setMeta(metaResourceRun, run, metaResourceBatch, int64(batch))
	})
}

// Resources returns the rows of one environment with from ≤ Start < to, of hours or of minutes, by Start, and which
// batch was stored last, all as of one moment. known says whether anything is stored of the environment.
func (h *History) Resources(ctx context.Context, id string, hours bool, from, to time.Time) (rows []statussync.ResourceRow, run string, batch uint64, known bool, err error) {
	if err := h.readable(); err != nil {
		return nil, "", 0, false, err
	}
	tx, err := h.f.reads.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, "", 0, false, explain(h.f.path, "reading", err)
	}
	defer func() { _ = tx.Rollback() }() // it only read
	text, number, err := h.meta(ctx, tx)
	if err != nil {
		return nil, "", 0, false, err
	}
	run, batch = text[metaResourceRun], uint64(number[metaResourceBatch])
	num := int64(-1)
	err = h.rows(ctx, tx, func(r *sql.Rows) error { return r.Scan(&num) }, `SELECT num FROM environments WHERE id = ?`, id)
	if err != nil || num < 0 {
		return nil, run, batch, false, err
	}
	unit, at, first, end := "minute", minuteTime, unixMinute(from), unixMinute(to.Add(time.Minute-1))
	if hours {
		unit, at, first, end = "hour", hourTime, unixHour(from), unixHour(to.Add(time.Hour-1))
	}
	if first >= end {
		return nil, run, batch, true, nil
	}
	// Each time is looked up by the whole key: the table has the other environments' rows in between.
	err = h.rows(ctx, tx, func(x *sql.Rows) error {
		r := statussync.ResourceRow{EnvironmentID: id}
		var start, cpu, memory, disk int64
		err := x.Scan(&start, &cpu, &r.CPU.Sum, &r.CPU.Max, &memory, &r.Memory.Sum, &r.Memory.Max, &r.Memory.Total, &disk, &r.Disk.Sum, &r.Disk.Max, &r.Disk.Total)
		r.Start, r.CPU.Count, r.Memory.Count, r.Disk.Count = at(start), uint64(cpu), uint64(memory), uint64(disk)
		rows = append(rows, r)
		return err
	}, fmt.Sprintf(`WITH RECURSIVE t(n) AS (VALUES (?1) UNION ALL SELECT n + 1 FROM t WHERE n + 1 < ?2)
		SELECT t.n, `+resourceColumns+` FROM t CROSS JOIN resource_%[1]ss x ON x.%[1]s = t.n AND x.environment = ?3`, unit), first, end, num)
	return rows, run, batch, true, err
}

// retainResources deletes resources that are too old, and environments that have none any more.
func (h *History) retainResources(ctx context.Context, now time.Time) error {
	if err := h.deleteResources(ctx, "minute", unixMinute(now.Add(-statussync.KeepResourceMinutes))); err != nil {
		return err
	}
	hour := unixHour(now.Add(-statussync.KeepResourceHours))
	if err := h.deleteResources(ctx, "hour", hour); err != nil {
		return err
	}
	var n int64
	if err := h.rows(ctx, h.f.reads, func(r *sql.Rows) error { return r.Scan(&n) }, `SELECT count(*) FROM environments WHERE seen < ?`, hour); err != nil || n == 0 {
		return err
	}
	return h.write(ctx, "deleting old environments", func(w *writer) error {
		return w.exec(`DELETE FROM environments WHERE seen < ?`, hour)
	})
}

// oldestResources returns the first minute and hour; -1 where there is none.
func (h *History) oldestResources(ctx context.Context) (minute, hour int64, err error) {
	err = h.rows(ctx, h.f.reads, func(r *sql.Rows) error { return r.Scan(&minute, &hour) },
		`SELECT coalesce((SELECT min(minute) FROM resource_minutes), -1), coalesce((SELECT min(hour) FROM resource_hours), -1)`)
	return minute, hour, err
}

// deleteResources deletes the rows of a table, minute or hour, before to.
func (h *History) deleteResources(ctx context.Context, unit string, to int64) error {
	minute, hour, err := h.oldestResources(ctx)
	oldest := minute
	if unit == "hour" {
		oldest = hour
	}
	if err != nil || oldest < 0 || oldest >= to {
		return err
	}
	return h.deleteSteps(ctx, fmt.Sprintf(`DELETE FROM resource_%[1]ss WHERE (%[1]s, environment) IN
		(SELECT %[1]s, environment FROM resource_%[1]ss WHERE %[1]s < ? ORDER BY %[1]s, environment LIMIT ?)`, unit), to)
}

// Environments calls f with the id of each environment whose resources are kept, and forgets those for which it says so.
func (r *HistoryRewriting) Environments(f func(id string) (remove bool)) error {
	type environment struct {
		num int64
		id  string
	}
	var list []environment // as many as a fleet has
	err := each(r.ctx, r.w.conn, `SELECT num, id FROM environments ORDER BY num`, func(rows *sql.Rows) error {
		var e environment
		err := rows.Scan(&e.num, &e.id)
		list = append(list, e)
		return err
	})
	if err != nil {
		return err
	}
	if err := r.w.exec(`CREATE TEMP TABLE gone_environments (num INTEGER PRIMARY KEY)`); err != nil {
		return err
	}
	for _, e := range list {
		if !f(e.id) {
			continue
		}
		for _, q := range []string{`INSERT INTO temp.gone_environments VALUES (?)`, `DELETE FROM environments WHERE num = ?`} {
			if err := r.w.exec(q, e.num); err != nil {
				return err
			}
		}
	}
	for _, t := range []string{"resource_minutes", "resource_hours"} {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if err := r.w.exec(`DELETE FROM ` + t + ` WHERE environment IN (SELECT num FROM temp.gone_environments)`); err != nil {
			return err
		}
	}
	return nil
}
