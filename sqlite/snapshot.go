package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/agentopia/statussync"
	driver "modernc.org/sqlite"
)

// FileName is the name of the store's file in its data directory.
const FileName = fileName

// SpareBytes is what a copy of a file must leave free on the file system, so that the store beside it can go on for a
// while: more than its write-ahead log has at most.
const SpareBytes = 64 << 20

// snapshotPages is how many pages one step of a snapshot copies: 1 MiB, a few milliseconds. Between steps ctx is asked.
const snapshotPages = 256

// Snapshot copies the store, as it is at one moment, into a new file, while appends go on. See SnapshotFile.
func (s *Store) Snapshot(ctx context.Context, to string) error {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return errClosed
	}
	if err := s.inPlace(); err != nil {
		return err
	}
	return SnapshotFile(ctx, s.path, to)
}

// SnapshotFile copies a SQLite database with a write-ahead log, as it is at one moment, into a file that does not exist
// yet and gets mode 0600. Whoever writes to the database meanwhile neither waits for it nor makes it wait; only its log
// is not made shorter until the copy is done. The copy is complete without a log of its own, and not yet on the disk
// when this returns. After an error there is no file.
//
// CodeUnavailable: the file system has no room for the copy and SpareBytes beside it, which is looked at before anything
// is written, or one of the files cannot be read or written. It blocks as long as the copy takes, or until ctx ends.
//
// It is SQLite's online backup within one read transaction. VACUUM INTO, the other way, drops free pages, but takes half
// as long again, during which the log can't be made shorter; appends beside both are equally fast (BenchmarkSnapshot).
func SnapshotFile(ctx context.Context, from, to string) (err error) {
	db, err := sql.Open("sqlite", dsn(from, "query_only(1)"))
	if err != nil {
		return explain(from, "copying", err)
	}
	defer func() { _ = db.Close() }()
	conn, err := db.Conn(ctx)
	if err != nil {
		return explain(from, "copying", err)
	}
	defer func() { _ = conn.Close() }()
	var pages int64
	if _, err := conn.ExecContext(ctx, `BEGIN`); err != nil {
		return explain(from, "copying", err)
	}
	// The first read makes the transaction one of this moment. Without it the backup would begin anew at every append.
	if err := conn.QueryRowContext(ctx, `SELECT (SELECT page_count FROM pragma_page_count) FROM sqlite_schema LIMIT 1`).Scan(&pages); err != nil {
		return explain(from, "copying", err)
	}
	if err := Room(filepath.Dir(to), pages*pageSize); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return statussync.NewError(statussync.CodeUnavailable, "the copy of the store cannot be written", err)
	}
	defer func() {
		if err != nil {
			for _, suffix := range []string{"", "-journal", "-wal", "-shm"} {
				_ = os.Remove(to + suffix)
			}
		}
	}()
	err = conn.Raw(func(c any) error {
		source, ok := c.(interface {
			NewBackup(dst string) (*driver.Backup, error)
		})
		if !ok {
			return errors.New("the driver has no online backup")
		}
		// Nobody reads the copy before it is complete, and one that is not is removed: it needs neither journal nor fsync.
		b, err := source.NewBackup(dsn(to, "synchronous(off)", "journal_mode(off)"))
		if err != nil {
			return err
		}
		for more := true; more && err == nil; {
			if err = ctx.Err(); err == nil {
				more, err = b.Step(snapshotPages)
			}
		}
		return errors.Join(err, b.Finish())
	})
	return explain(to, "copying", err)
}

// Room reports, as an error with CodeUnavailable, that the file system of a directory has less than SpareBytes beside
// what is to be written there. Where that cannot be known there is room.
func Room(dir string, bytes int64) error {
	free, ok := freeBytes(dir)
	if !ok || free >= bytes+SpareBytes {
		return nil
	}
	const mib = 1 << 20
	return statussync.NewError(statussync.CodeUnavailable, fmt.Sprintf("the disk has no room: %d MiB are needed, and %d MiB must stay free beside them; %d MiB are free",
		(bytes+mib-1)/mib, SpareBytes/mib, free/mib), fmt.Errorf("%s: free space on its file system", dir))
}

// Info is what a store's file says of itself.
type Info struct {
	SchemaVersion int64
	Head          statussync.Cursor
	AliveAt       time.Time // zero: never
}

// Inspect reads what the file of a store says of itself, which nobody must be writing to. CodeUnavailable: it is not the
// file of a store, damaged, or of a newer version of this program.
func Inspect(ctx context.Context, path string) (Info, error) {
	return inspect(ctx, path, false)
}

// Check is Inspect of a file that nobody vouches for: it also reads every page of it, which takes as long as that does,
// and refuses what a store never has, such as triggers, which would run when somebody writes.
func Check(ctx context.Context, path string) (Info, error) {
	return inspect(ctx, path, true)
}

func inspect(ctx context.Context, path string, whole bool) (info Info, err error) {
	db, err := sql.Open("sqlite", dsn(path, "query_only(1)", "trusted_schema(0)", "cell_size_check(1)"))
	if err != nil {
		return info, explain(path, "reading", err)
	}
	db.SetMaxOpenConns(1)
	defer func() { _ = db.Close() }()
	return info, explain(path, "reading", func() (err error) {
		if info.SchemaVersion, err = knownVersion(ctx, db, path, embedded()); err != nil {
			return err
		}
		if whole {
			if err := sound(ctx, db, path, "journal"); err != nil {
				return err
			}
		}
		var epoch sql.NullString
		var alive, seq sql.NullInt64
		err = db.QueryRowContext(ctx, `SELECT (SELECT value FROM meta WHERE key = ?), (SELECT value FROM meta WHERE key = ?),
max((SELECT coalesce(max(seq), 0) FROM entries), coalesce((SELECT value FROM meta WHERE key = ?), 0))`, metaHeadEpoch, metaAliveAt, metaDeletedSeq).Scan(&epoch, &alive, &seq)
		if err != nil {
			return err
		}
		if epoch.Valid {
			info.Head = statussync.Cursor{Epoch: statussync.Epoch(epoch.String), Seq: uint64(max(seq.Int64, 0))}
		}
		if alive.Valid {
			info.AliveAt = time.Unix(0, alive.Int64).UTC()
		}
		return nil
	}())
}

// knownVersion is the file's schema version, which must be one of migrations.
func knownVersion(ctx context.Context, db *sql.DB, path string, migrations fs.FS) (int64, error) {
	provider, err := newProvider(db, migrations)
	if err != nil {
		return 0, err
	}
	sources := provider.ListSources()
	newest := sources[len(sources)-1].Version
	version, err := fileVersion(ctx, db, path)
	switch {
	case err != nil:
	case version == 0:
		err = damaged(path, "it is not the file of a store")
	case version > newest:
		err = newerSchema(path, version, newest)
	}
	return version, err
}

// sound reads the whole file, which may have one view.
func sound(ctx context.Context, db *sql.DB, path, view string) error {
	var odd string
	err := db.QueryRowContext(ctx, `SELECT type || ' ' || name FROM sqlite_schema
WHERE type NOT IN ('table', 'index', 'view') OR sql LIKE 'CREATE VIRTUAL%' OR (type = 'view' AND name <> ?) LIMIT 1`, view).Scan(&odd)
	if err == nil {
		return damaged(path, "it has a "+statussync.CleanText(odd, statussync.MaxNameText)+", which no store has")
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	var word string
	if err := db.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&word); err != nil {
		return err
	}
	if word != "ok" {
		return damaged(path, statussync.CleanText(word, statussync.MaxErrorText))
	}
	return nil
}

// Restored marks a file that was copied from elsewhere, which nobody must have open: who opens it as a store begins a
// new epoch, with a name that was never given before. The mark is on the disk when this returns. It may be set twice.
func Restored(ctx context.Context, path string) error {
	db, err := sql.Open("sqlite", dsn(path, "trusted_schema(0)", "synchronous(full)"))
	if err != nil {
		return explain(path, "marking", err)
	}
	db.SetMaxOpenConns(1)
	_, err = db.ExecContext(ctx, upsertMeta, metaNewEpoch, "it was restored from a backup")
	return explain(path, "marking", errors.Join(err, db.Close()))
}

// Lock makes a data directory the caller's until the result is closed, or the process dies. CodeConflict: another
// process, such as a running service, uses it.
func Lock(dir string) (io.Closer, error) {
	f, err := takeLock(dir)
	if err != nil {
		return nil, err
	}
	return f, nil
}
