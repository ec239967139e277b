package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// A history is rewritten in a copy, which takes its place once the journal's transaction says so: two files can't be
// changed in one transaction, and a rename can be done again.
const (
	historyDraft = HistoryFileName + ".erase"  // the copy while it is changed, and the beginning of the names of all that goes with it
	historyNext  = HistoryFileName + ".erased" // the copy when it is done, without what was ever deleted from it
)

// HistoryRewriting is the whole content of a history. Its methods may be called by one goroutine, and only until the
// function that Rewriting.History called has returned.
type HistoryRewriting struct {
	ctx context.Context
	w   *writer
}

// History lets f change what the history beside the store holds, in the same transaction; without a history it does
// nothing. It may be called once. It needs room for two copies of the history. CodeUnavailable: the history can't be read,
// or there is no room.
func (r *Rewriting) History(f func(*HistoryRewriting) error) error {
	dir := filepath.Dir(r.path)
	path, draft, next := filepath.Join(dir, HistoryFileName), filepath.Join(dir, historyDraft), filepath.Join(dir, historyNext)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := r.rewriteHistory(path, draft, next, f)
	if err = explain(path, "rewriting", err); err != nil {
		var e *statussync.Error
		if errors.As(err, &e) { // which of the two files it is
			err = &statussync.Error{Code: e.Code, Location: e.Location, Detail: HistoryFileName + ": " + e.Detail, Err: err}
		}
		return errors.Join(err, removeDrafts(dir))
	}
	r.swap = r.keep
	return nil
}

func (r *Rewriting) rewriteHistory(path, draft, next string, f func(*HistoryRewriting) error) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	if r.keep {
		if err := Room(filepath.Dir(path), 2*fi.Size()); err != nil {
			return err
		}
	}
	if err := SnapshotFile(r.ctx, path, draft); err != nil {
		return err
	}
	migrations, err := fs.Sub(historyMigrations, "migrations_history")
	if err != nil {
		return err
	}
	if err := migrate(r.ctx, draft, migrations, r.o.Logger); err != nil {
		return err
	}
	w, err := openWriter(draft, r.o)
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.exec(`BEGIN IMMEDIATE`); err != nil {
		return err
	}
	if err := f(&HistoryRewriting{ctx: r.ctx, w: w}); err != nil || !r.keep {
		return err
	}
	if err := w.exec(`COMMIT`); err != nil {
		return err
	}
	if err := r.ctx.Err(); err != nil {
		return err
	}
	file, err := os.OpenFile(next, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	// It writes only what is in use: no free page, and no rest of a page, comes along.
	err = w.exec(`VACUUM INTO ?`, next)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return syncDir(filepath.Dir(next))
}

// Servers calls f with the id of each server, and forgets those for which it says so: their spans and their probes.
func (r *HistoryRewriting) Servers(f func(id string) (remove bool)) error {
	type server struct {
		num int64
		id  string
	}
	var list []server // as many as a fleet has
	err := each(r.ctx, r.w.conn, `SELECT num, id FROM servers ORDER BY num`, func(rows *sql.Rows) error {
		var s server
		err := rows.Scan(&s.num, &s.id)
		list = append(list, s)
		return err
	})
	if err != nil {
		return err
	}
	if err := r.w.exec(`CREATE TEMP TABLE gone (num INTEGER PRIMARY KEY)`); err != nil {
		return err
	}
	for _, s := range list {
		if !f(s.id) {
			continue
		}
		for _, q := range []string{`INSERT INTO temp.gone VALUES (?)`, `DELETE FROM spans WHERE server = ?`, `DELETE FROM servers WHERE num = ?`} {
			if err := r.w.exec(q, s.num); err != nil {
				return err
			}
		}
	}
	for _, q := range []string{`DELETE FROM minutes WHERE server IN (SELECT num FROM temp.gone)`, `DELETE FROM hours WHERE server IN (SELECT num FROM temp.gone)`} {
		if err := errors.Join(r.ctx.Err(), r.w.exec(q)); err != nil {
			return err
		}
	}
	return nil
}

// Spans calls f with each span that has a text. f may change its Cause and Details, and says whether it did.
func (r *HistoryRewriting) Spans(f func(*statussync.Span) (changed bool)) error {
	type found struct {
		server, begin int64
		span          statussync.Span
	}
	for server, begin := int64(-1), int64(0); ; {
		var page []found
		err := each(r.ctx, r.w.conn, `SELECT s.server, s.begin, s.class, coalesce(s.reason, ''), coalesce(s.cause, ''), coalesce(s.details, ''), coalesce(v.id, '')
FROM spans s LEFT JOIN servers v ON v.num = s.server WHERE (s.server, s.begin) > (?, ?) AND (s.cause IS NOT NULL OR s.details IS NOT NULL)
ORDER BY s.server, s.begin LIMIT ?`, func(rows *sql.Rows) error {
			var x found
			var class int64
			err := rows.Scan(&x.server, &x.begin, &class, &x.span.Reason, &x.span.Cause, &x.span.Details, &x.span.ServerID)
			x.span.Begin, x.span.Class = time.UnixMilli(x.begin).UTC(), classOf(class)
			page = append(page, x)
			return err
		}, server, begin, rewriteRows)
		if err != nil || len(page) == 0 {
			return err
		}
		for i := range page {
			x := &page[i]
			server, begin = x.server, x.begin
			if !f(&x.span) {
				continue
			}
			if err := r.w.exec(`UPDATE spans SET cause = ?, details = ? WHERE server = ? AND begin = ?`, textOrNull(x.span.Cause), textOrNull(x.span.Details), server, begin); err != nil {
				return err
			}
		}
	}
}

// swapHistory puts a history that was rewritten in its place. It may be done again.
func swapHistory(dir string) error {
	path, next := filepath.Join(dir, HistoryFileName), filepath.Join(dir, historyNext)
	if _, err := os.Stat(next); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // it is in its place
		}
		return err
	}
	// The old file's log must be gone first: SQLite would take it for the new one's.
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return err
	}
	return syncDir(dir)
}

// removeDrafts removes what a rewriting of the history that was given up left behind.
func removeDrafts(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), historyDraft) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// syncDir makes what was renamed and removed in a directory durable, where the operating system has a way to.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// CheckHistory is Check for the file of a history.
func CheckHistory(ctx context.Context, path string) error {
	db, err := sql.Open("sqlite", dsn(path, "query_only(1)", "trusted_schema(0)", "cell_size_check(1)"))
	if err != nil {
		return explain(path, "reading", err)
	}
	db.SetMaxOpenConns(1)
	defer func() { _ = db.Close() }()
	return explain(path, "reading", func() error {
		migrations, err := fs.Sub(historyMigrations, "migrations_history")
		if err != nil {
			return err
		}
		if _, err := knownVersion(ctx, db, path, migrations); err != nil {
			return err
		}
		if err := sound(ctx, db, path, ""); err != nil {
			return err
		}
		// A journal's file has the same mark, and other tables.
		var tables []string
		err = each(ctx, db, `SELECT name FROM sqlite_schema WHERE type = 'table'`, func(rows *sql.Rows) error {
			var n string
			err := rows.Scan(&n)
			tables = append(tables, n)
			return err
		})
		for _, t := range []string{"meta", "servers", "minutes", "hours", "spans"} {
			if err == nil && !slices.Contains(tables, t) {
				err = damaged(path, fmt.Sprintf("it is not the file of a history: it has no table %s", t))
			}
		}
		return err
	}())
}
