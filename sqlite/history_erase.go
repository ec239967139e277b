package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// HistoryErasure says what a history is to forget.
type HistoryErasure struct {
	// Keep: false changes nothing, and reports what would be changed.
	Keep bool
	// Servers are forgotten whole: their spans, their counts of probes and their ids.
	Servers []string
	// Details says what the sentence of a span becomes; changed is false where it stays as it is.
	Details func(text string) (to string, changed bool)
	// Names reports whether a text that stays still holds the name; such rows are counted.
	Names func(text string) bool
}

// ErasedHistory is what an erasure changed in a history.
type ErasedHistory struct {
	Rows     int      // deleted, or with another sentence
	Mentions int      // rows that still hold the name
	Copies   []string // that migrations had made, removed
}

// EraseHistory makes the history in o.Dir forget, for which the caller has the directory's lock (Rewrite's function has). All
// of it becomes durable at once. Afterwards nothing of what was changed or ever deleted is left in the file, its log or its
// free pages; if the process dies before that, the next OpenHistory or EraseHistory does it. Without a file there is nothing
// to forget. Room, blocking and CodeUnavailable as with Rewrite.
func EraseHistory(ctx context.Context, o HistoryOptions, e HistoryErasure) (out ErasedHistory, err error) {
	so, err := o.complete()
	if err != nil {
		return out, err
	}
	path := filepath.Join(so.Dir, HistoryFileName)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	out.Copies, err = rewriteFile(ctx, path, so, e.Keep, func(w *writer) error { return eraseHistory(ctx, w, &e, &out) })
	return out, err
}

func eraseHistory(ctx context.Context, w *writer, e *HistoryErasure, out *ErasedHistory) error {
	for _, id := range e.Servers {
		if err := ctx.Err(); err != nil {
			return err
		}
		num, err := w.number(`SELECT coalesce((SELECT num FROM servers WHERE id = ?), -1)`, id)
		if err != nil {
			return err
		}
		for _, table := range []string{`spans WHERE server`, `minutes WHERE server`, `hours WHERE server`, `servers WHERE num`} {
			if err := w.exec(`DELETE FROM `+table+` = ?`, num); err != nil {
				return err
			}
			n, err := w.number(`SELECT changes()`)
			if err != nil {
				return err
			}
			out.Rows += int(n)
		}
	}
	type row struct {
		server, begin int64
		details       string
	}
	for at := (row{server: -1}); ; {
		var page []row
		err := each(ctx, w.conn, `SELECT server, begin, details FROM spans WHERE (server, begin) > (?, ?) AND details IS NOT NULL
			ORDER BY server, begin LIMIT ?`, func(rows *sql.Rows) error {
			var r row
			err := rows.Scan(&r.server, &r.begin, &r.details)
			page = append(page, r)
			return err
		}, at.server, at.begin, rewriteRows)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			at = r
			to, changed := e.Details(r.details)
			if e.Names(to) {
				out.Mentions++
			}
			if !changed {
				continue
			}
			if err := w.exec(`UPDATE spans SET details = ? WHERE server = ? AND begin = ?`, to, r.server, r.begin); err != nil {
				return err
			}
			out.Rows++
		}
	}
	return each(ctx, w.conn, `SELECT id FROM servers`, func(rows *sql.Rows) error {
		var id string
		err := rows.Scan(&id)
		if e.Names(id) {
			out.Mentions++
		}
		return err
	})
}

// CheckHistory is Check of the file of a history. It may take as long.
func CheckHistory(ctx context.Context, path string) error {
	migrations, err := historyFS()
	if err != nil {
		return err
	}
	return inspecting(ctx, path, func(db *sql.DB) error {
		if _, err := checkFile(ctx, db, path, migrations, true); err != nil {
			return err
		}
		var n int // its tables are there
		return db.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT num FROM servers UNION ALL SELECT count FROM minutes
			UNION ALL SELECT count FROM hours UNION ALL SELECT class FROM spans UNION ALL SELECT 1 FROM meta LIMIT 1)`).Scan(&n)
	})
}
