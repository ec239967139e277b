package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/agentopia/statussync"
	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

func embedded() fs.FS {
	sub, err := fs.Sub(migrationFiles, "migrations")
	if err != nil { // the name is valid
		panic(err)
	}
	return sub
}

// applicationID marks our files in SQLite's header: "stsy".
const applicationID = 0x73747379

// migrate brings the file to the newest schema that migrations know. An existing file is copied first. It opens and
// closes its own connection: copying needs the file closed.
func migrate(ctx context.Context, path string, migrations fs.FS, log *slog.Logger) error {
	db, err := openMigrating(path)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	provider, err := newProvider(db, migrations)
	if err != nil {
		return err
	}
	sources := provider.ListSources()
	newest := sources[len(sources)-1].Version
	version, err := schemaVersion(ctx, db, path)
	if err != nil {
		return err
	}
	switch {
	case version == newest:
		return nil
	case version > newest:
		return newerSchema(path, version, newest)
	}
	if version > 0 {
		// Everything must be in the one file that is copied.
		var busy, inLog, done int
		if err := db.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &inLog, &done); err != nil {
			return err
		}
		if busy != 0 {
			return fmt.Errorf("%s cannot be copied: another program has it open", path)
		}
		if err := db.Close(); err != nil {
			return err
		}
		to := copyName(path, version)
		log.Info("migrating the store; copying it first", "from", version, "to", newest, "copy", to)
		if err := copyFile(path, to); err != nil {
			return statussync.NewError(statussync.CodeUnavailable, "the store cannot be copied before its migration",
				fmt.Errorf("%w; the store is unchanged: make room for a second copy of it and start again", err))
		}
		if db, err = openMigrating(path); err != nil {
			return err
		}
		if provider, err = newProvider(db, migrations); err != nil {
			return err
		}
	}
	if _, err := db.ExecContext(ctx, fmt.Sprintf(`PRAGMA application_id = %d`, applicationID)); err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrating from schema version %d to %d: %w", version, newest, err)
	}
	return nil
}

func openMigrating(path string) (*sql.DB, error) {
	// auto_vacuum can only be chosen before anything is written, which the change to WAL does. FULL: a migration is
	// rare and must not be lost halfway.
	db, err := sql.Open("sqlite", dsn(path, "auto_vacuum(incremental)", "journal_mode(wal)", "synchronous(full)"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

func newProvider(db *sql.DB, migrations fs.FS) (*goose.Provider, error) {
	return goose.NewProvider(goose.DialectSQLite3, db, migrations, goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
}

// schemaVersion is 0 for a new file. A file of another program is an error.
func schemaVersion(ctx context.Context, db *sql.DB, path string) (int64, error) {
	var mode string
	if err := db.QueryRowContext(ctx, `PRAGMA journal_mode`).Scan(&mode); err != nil {
		return 0, err
	}
	if mode != "wal" {
		return 0, statussync.NewError(statussync.CodeUnavailable, "the store cannot have a write-ahead log",
			fmt.Errorf("%s: journal mode is %s; the data directory must be on a local file system", path, mode))
	}
	return fileVersion(ctx, db, path)
}

func newerSchema(path string, version, newest int64) error {
	return statussync.NewError(statussync.CodeUnavailable, "the store was written by a newer version of this program",
		fmt.Errorf("%s has schema version %d, this program knows up to %d; run the newer program, or put back the copy that it made (%s) ",
			path, version, newest, filepath.Base(copyName(path, newest))))
}

// fileVersion is schemaVersion whatever the journal mode.
func fileVersion(ctx context.Context, db *sql.DB, path string) (int64, error) {
	var id, tables, versioned int64
	if err := db.QueryRowContext(ctx, `PRAGMA application_id`).Scan(&id); err != nil {
		return 0, err
	}
	err := db.QueryRowContext(ctx, `SELECT count(*), count(*) FILTER (WHERE name = ?) FROM sqlite_schema`, goose.DefaultTablename).Scan(&tables, &versioned)
	if err != nil {
		return 0, err
	}
	if tables > 0 && id != applicationID {
		return 0, statussync.NewError(statussync.CodeUnavailable, "the store's file belongs to another program",
			fmt.Errorf("%s is a database, but not one of this program; use another data directory", path))
	}
	if versioned == 0 {
		return 0, nil
	}
	var version sql.NullInt64
	err = db.QueryRowContext(ctx, `SELECT max(version_id) FROM `+goose.DefaultTablename+` WHERE is_applied`).Scan(&version)
	return version.Int64, err
}

// copyName is where the copy of a file with that schema version goes.
func copyName(path string, version int64) string { return fmt.Sprintf("%s.v%d.bak", path, version) }

// copyFile makes a durable copy; to appears whole or not at all. An older copy of the same version is replaced.
func copyFile(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	part := to + ".part"
	dst, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err == nil {
		err = dst.Sync()
	}
	if err = errors.Join(err, dst.Close()); err == nil {
		err = os.Rename(part, to)
	}
	if err != nil {
		_ = os.Remove(part)
	}
	return err
}
