package sqlite

import (
	"context"
	"errors"
	"fmt"

	"github.com/agentopia/statussync"
	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"
)

var errClosed = statussync.NewError(statussync.CodeUnavailable, "the store is closed", nil)

func conflict(format string, args ...any) error {
	return statussync.NewError(statussync.CodeConflict, fmt.Sprintf(format, args...), nil)
}

// givenUp reports an append or read whose context ended. errors.Is finds the context's error in it.
func givenUp(doing string, err error) error {
	return statussync.NewError(statussync.CodeUnavailable, doing+" was given up", err)
}

// explain turns an error of SQLite into one that names the file and what to do. Its Detail is fit for clients; path and
// advice are in the cause, which only logs show.
func explain(path, doing string, err error) error {
	if err == nil {
		return nil
	}
	var ours *statussync.Error
	if errors.As(err, &ours) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return givenUp(doing, err)
	}
	detail, advice := diagnose(path, err)
	return statussync.NewError(statussync.CodeUnavailable, detail, fmt.Errorf("%s: %s: %w; %s", path, doing, err, advice))
}

func diagnose(path string, err error) (detail, advice string) {
	var e *driver.Error
	if !errors.As(err, &e) {
		return "the store failed", "if this stays, restart the service"
	}
	switch e.Code() & 0xff {
	case lib.SQLITE_FULL:
		return "the store's disk is full", "free space on its file system, or lower the journal's max_bytes; the store goes on by itself then"
	case lib.SQLITE_READONLY, lib.SQLITE_PERM, lib.SQLITE_AUTH:
		return "the store is read-only", "make the file, its directory and its file system writable for this user; the store goes on by itself then"
	case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB, lib.SQLITE_FORMAT:
		return "the store is damaged", "stop the service, move the data directory aside and restore a backup; what is left in it can be read with: sqlite3 FILE .recover"
	case lib.SQLITE_BUSY, lib.SQLITE_LOCKED:
		return "the store is locked by another program", "close whatever has the file open for writing, such as an sqlite3 shell"
	case lib.SQLITE_NOMEM:
		return "out of memory in the store", "give the service more memory"
	}
	if why := unwritable(path); why != "" {
		return "the store is read-only", why + "; make the file, its directory and its file system writable for this user; the store goes on by itself then"
	}
	switch e.Code() & 0xff {
	case lib.SQLITE_CANTOPEN:
		return "the store cannot be opened", "check that the directory exists, is on a local disk and may be written by this user"
	case lib.SQLITE_IOERR:
		return "the store's disk fails", "check the disk, its quotas and the file size limit of the process, and the system's log; the store goes on by itself when writes work again"
	}
	return "the store failed", "if this stays, restart the service"
}

// benign reports whether the connection that gave err can go on after a rollback. Of everything else it is thrown away.
func benign(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// damaged reports a file whose content can't be.
func damaged(path, what string) error {
	return statussync.NewError(statussync.CodeUnavailable, "the store is damaged",
		fmt.Errorf("%s: %s; stop the service, move the data directory aside and restore a backup", path, what))
}
