package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/agentopia/statussync"
)

// The values of Options.Sync. The package documentation says what each survives.
const (
	SyncNormal = "normal" // an Append does not wait for the disk
	SyncFull   = "full"   // every Append waits for fsync
)

// Defaults and limits of Options.
const (
	DefaultRetention = 90 * 24 * time.Hour
	DefaultMaxBytes  = 10 << 30
	// MinMaxBytes is the least that Options.MaxBytes may be: the write-ahead log alone grows to a few MiB.
	MinMaxBytes = 8 << 20
)

const (
	fileName = "statussync.db"
	lockName = "statussync.lock"

	// pageSize is SQLite's default; the store sets no other.
	pageSize  = 4096
	readers   = 4
	closeWait = 5 * time.Second
	// busyTimeout bounds how long one of ours waits for a lock of another program, such as an sqlite3 shell.
	busyTimeout = time.Second
)

// Options says where a store is and what bounds it.
type Options struct {
	// Dir is the data directory, created with mode 0700 where it is missing. Required.
	Dir string
	// Sync is SyncNormal (the default) or SyncFull.
	Sync string
	// Retention is the age, by Entry.Timestamp, from which entries are deleted. Default DefaultRetention.
	Retention time.Duration
	// MaxBytes bounds the file and its write-ahead log together: beyond it the oldest entries are deleted. Records are
	// never deleted for it, nor the newest 1000 entries. Deleting begins at 15/16 of it. Default DefaultMaxBytes, at least
	// MinMaxBytes.
	MaxBytes int64
	// Logger receives what Run and Open do. Default: nowhere.
	Logger *slog.Logger
	// Now is the clock that retention goes by. Default time.Now.
	Now func() time.Time

	bootIDFile string // default bootIDFile
	migrations fs.FS  // default the embedded ones
}

func (o Options) complete() (Options, error) {
	if o.Dir == "" {
		return o, statussync.Invalid("Options.Dir", "is required")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return o, statussync.Invalid("Options.Dir", err.Error())
	}
	o.Dir = dir
	switch o.Sync {
	case "":
		o.Sync = SyncNormal
	case SyncNormal, SyncFull:
	default:
		return o, statussync.Invalid("Options.Sync", strconv.Quote(o.Sync)+" is not one of normal, full")
	}
	if o.Retention == 0 {
		o.Retention = DefaultRetention
	}
	if o.Retention < 0 {
		return o, statussync.Invalid("Options.Retention", "must be greater than zero")
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxBytes < MinMaxBytes {
		return o, statussync.Invalid("Options.MaxBytes", fmt.Sprintf("is %d; it must be at least %d (8 MiB)", o.MaxBytes, MinMaxBytes))
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Logger = o.Logger.With("component", "sqlite")
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.bootIDFile == "" {
		o.bootIDFile = bootIDFile
	}
	if o.migrations == nil {
		o.migrations = embedded()
	}
	return o, nil
}

// Store is a statussync.Journal in a SQLite file. All methods are safe for concurrent use.
type Store struct {
	opts    Options
	log     *slog.Logger
	path    string
	lock    *os.File
	file    os.FileInfo // what path was when it was opened
	aliveAt time.Time
	reads   *sql.DB
	read    *sql.Stmt
	history *sql.Stmt

	// turn holds one token while somebody writes; it guards the fields up to mu.
	turn    chan struct{}
	closing chan struct{} // closed when Close begins: nobody waits for the turn any more
	w       *writer       // nil: to be opened again
	tail    bool          // the file may hold entries after head that failed or were given up
	rowArgs []any         // reused

	mu       sync.Mutex // held for moments only; guards what follows
	head     statussync.Cursor
	deleted  statussync.Cursor
	oldest   int64  // ts of the entry after deleted, where there is one
	trouble  error  // of the newest write that failed; nil once an append succeeded after it
	lastFail string // of Run, so that a lasting trouble is logged once
	closed   bool
}

var _ statussync.Journal = (*Store)(nil)

// Open opens the store in o.Dir, or makes a new one. It takes the directory's lock, migrates an older file (after copying
// it beside itself, as statussync.db.v1.bak for schema version 1), and begins a new epoch where the machine died without
// a clean Close and Sync was normal. It may take as long as copying the file does.
//
// It refuses, naming the file: a directory that another process uses (CodeConflict, at once), a file that a newer version
// of this program or another program wrote, that is damaged, or cannot be written.
func Open(ctx context.Context, o Options) (*Store, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	s := &Store{opts: o, log: o.Logger, path: filepath.Join(o.Dir, fileName), turn: make(chan struct{}, 1), closing: make(chan struct{})}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, statussync.NewError(statussync.CodeUnavailable, "the data directory cannot be made", err)
	}
	if s.lock, err = takeLock(o.Dir); err != nil {
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	if err := prepareFile(s.path); err != nil {
		return err
	}
	if err := migrate(ctx, s.path, s.opts.migrations, s.log); err != nil {
		return explain(s.path, "opening", err)
	}
	if err := ctx.Err(); err != nil {
		return givenUp("opening", err)
	}
	var err error
	if s.file, err = os.Stat(s.path); err != nil {
		return statussync.NewError(statussync.CodeUnavailable, "the store cannot be opened", err)
	}
	if s.w, err = openWriter(s.path, s.opts); err != nil {
		return explain(s.path, "opening", err)
	}
	if s.w, err = finishScrub(s.w, s.opts, s.path); err != nil {
		return explain(s.path, "opening", err)
	}
	if err := s.openReads(ctx); err != nil {
		return explain(s.path, "opening", err)
	}
	if err := s.load(ctx); err != nil {
		return explain(s.path, "opening", err)
	}
	return nil
}

// takeLock makes the directory ours. The lock file stays when it is released: only its lock means anything.
func takeLock(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, statussync.NewError(statussync.CodeUnavailable, "the data directory cannot be written",
			fmt.Errorf("%w; make the directory and its file system writable for this user", err))
	}
	taken, err := flock(f)
	if err != nil {
		_ = f.Close()
		return nil, statussync.NewError(statussync.CodeUnavailable, "the data directory cannot be locked",
			fmt.Errorf("%s: %w; it must be on a local file system", path, err))
	}
	if !taken {
		who := "another process"
		buf := make([]byte, 32)
		n, _ := f.ReadAt(buf, 0)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n]))); err == nil {
			who = "process " + strconv.Itoa(pid)
		}
		_ = f.Close()
		return nil, statussync.NewError(statussync.CodeConflict, "the data directory is in use by "+who,
			fmt.Errorf("%s is locked; stop that process or use another data directory", path))
	}
	// The pid is for people. Where it cannot be written (a full disk), the lock is good without it.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

// prepareFile makes the file with our mode where it is missing, and finds out with the operating system's own words
// whether it can be written: SQLite would open it for reading only. It must not run while SQLite has the file open.
func prepareFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return statussync.NewError(statussync.CodeUnavailable, "the store cannot be opened for writing",
			fmt.Errorf("%w; make the file, its directory and its file system writable for this user", err))
	}
	return nil
}

// dsn names the file for the driver. No user of it creates the file: prepareFile did, and one that vanished must not
// come back empty. A file URI has no relative paths, so path is made absolute.
func dsn(path string, pragmas ...string) string {
	if abs, err := filepath.Abs(path); err == nil { // else there is no working directory, and nothing relative can be opened
		path = abs
	}
	q := url.Values{"mode": {"rw"}, "_error_rc": {"1"}, "_dqs": {"0"}}
	q["_pragma"] = append([]string{fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())}, pragmas...)
	if abs, err := filepath.Abs(path); err == nil { // a URI's path begins at the root
		path = abs
	}
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: q.Encode()}
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path // a Windows drive
	}
	return u.String()
}

const readQuery = `SELECT seq, labels, json FROM entries WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?`

// historyQuery goes through the segments that may hold something, newest first; the order comes from the two indexes,
// so that it stops at the limit. The plus takes the column's affinity away: an index on an expression has none, and
// would not be used.
const historyQuery = `
SELECT e.seq, e.labels, e.json
FROM segments s CROSS JOIN entries e INDEXED BY entries_by_server
WHERE s.segment <= ?1 >> 11 AND s.ts_max >= ?2 AND s.ts_min < ?3
  AND e.seq >> 11 = +s.segment AND e.server_id = ?4 AND e.seq <= ?1 AND e.ts >= ?2 AND e.ts < ?3
  AND (?6 = '' OR e.json ->> '$.kind' = ?6)
ORDER BY s.segment DESC, e.seq DESC LIMIT ?5`

func (s *Store) openReads(ctx context.Context) error {
	var err error
	if s.reads, err = sql.Open("sqlite", dsn(s.path, "query_only(1)", "cache_size(-8000)")); err != nil {
		return err
	}
	s.reads.SetMaxOpenConns(readers)
	s.reads.SetMaxIdleConns(readers)
	if s.read, err = s.reads.PrepareContext(ctx, readQuery); err != nil {
		return err
	}
	s.history, err = s.reads.PrepareContext(ctx, historyQuery)
	return err
}

// The keys of the meta table.
const (
	metaHeadEpoch    = "head_epoch"
	metaDeletedSeq   = "deleted_seq"
	metaDeletedEpoch = "deleted_epoch"
	metaAliveAt      = "alive_at"
	metaBootID       = "boot_id"
	metaSync         = "sync"
	metaClean        = "clean"
	metaNewEpoch     = "new_epoch" // why the next Open begins a new epoch; absent: it does not
	metaScrub        = "scrub"     // what was erased may still stand in free pages; absent: it does not
	metaSwap         = "swap"      // a history that was rewritten takes the place of the one that is there; absent: none does
)

// load reads where the journal stands, and makes what must be durable before the first append is told: that the store
// is in use, by which boot, and a new epoch where one is due.
func (s *Store) load(ctx context.Context) error {
	meta := map[string]any{}
	rows, err := s.reads.QueryContext(ctx, `SELECT key, value FROM meta`)
	if err != nil {
		return err
	}
	for rows.Next() {
		var k string
		var v any
		if err := rows.Scan(&k, &v); err != nil {
			_ = rows.Close()
			return err
		}
		meta[k] = v
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	text := func(k string) string { v, _ := meta[k].(string); return v }
	number := func(k string) int64 { v, _ := meta[k].(int64); return v }

	var newest, oldest sql.NullInt64
	if err := s.reads.QueryRowContext(ctx, `SELECT max(seq) FROM entries`).Scan(&newest); err != nil {
		return err
	}
	err = s.reads.QueryRowContext(ctx, `SELECT ts FROM entries ORDER BY seq LIMIT 1`).Scan(&oldest)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	s.oldest = oldest.Int64
	if n := number(metaDeletedSeq); n > 0 {
		s.deleted = statussync.Cursor{Epoch: statussync.Epoch(text(metaDeletedEpoch)), Seq: uint64(n)}
	}
	s.head = statussync.Cursor{
		Epoch: statussync.Epoch(text(metaHeadEpoch)), Seq: max(uint64(max(newest.Int64, 0)), s.deleted.Seq),
	}
	if v, ok := meta[metaAliveAt].(int64); ok {
		s.aliveAt = time.Unix(0, v).UTC()
	}

	boot := readBootID(s.opts.bootIDFile)
	set := []any{metaBootID, boot, metaSync, s.opts.Sync, metaClean, int64(0)}
	if s.head.Epoch != "" && mayHaveLost(number(metaClean) == 1, text(metaSync), text(metaBootID), boot) {
		old := s.head
		s.head.Epoch = nextEpoch(old.Epoch)
		set = append(set, metaHeadEpoch, string(s.head.Epoch))
		s.log.Warn("the machine was restarted without a clean stop, and the newest entries may be lost: a new epoch begins",
			"head", s.head, "was", old)
	}
	if why := text(metaNewEpoch); why != "" {
		old := s.head
		s.head.Epoch = nextEpoch(old.Epoch)
		set = append(set, metaHeadEpoch, string(s.head.Epoch), metaNewEpoch, "")
		s.log.Info("a new epoch begins: what was told before can't be continued", "why", why, "head", s.head, "was", old)
	}
	return s.w.durably(set...)
}

// Close ends the store: it waits for the append under way, marks the file as complete, and gives the directory free.
// It waits at most 5 s for a write that hangs, and says so. Later calls of other methods fail with CodeUnavailable, of
// Close do nothing.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.closing)
	head := s.head
	s.mu.Unlock()

	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case s.turn <- struct{}{}: // never given back
	case <-t.C:
		return statussync.NewError(statussync.CodeUnavailable, "the store hangs",
			fmt.Errorf("%s: a write did not end within %v; the store was not closed", s.path, closeWait))
	}
	err := s.finish(head)
	s.release()
	return err
}

// finish removes what was never told and marks the file clean. The commit that does it waits for the disk, and with it
// for everything that was written before.
func (s *Store) finish(head statussync.Cursor) error {
	w, err := s.writer()
	if err == nil && s.tail {
		if err = w.exec(cutEntries, int64(head.Seq)); err == nil {
			err = w.setMeta(metaHeadEpoch, string(head.Epoch))
		}
	}
	if err == nil {
		err = w.durably(metaClean, int64(1))
	}
	return explain(s.path, "closing", err)
}

// release lets go of everything that is open.
func (s *Store) release() {
	if s.reads != nil {
		_ = s.reads.Close()
	}
	s.dropWriter()
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// Head implements statussync.Journal. It answers from memory and never blocks for long. The head of a new store is the
// zero Cursor.
func (s *Store) Head() (head, deleted statussync.Cursor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head, s.deleted
}

// AliveAt implements statussync.Journal: the AliveAt that was stored last before the store was opened.
func (s *Store) AliveAt() time.Time { return s.aliveAt }

// Stats are numbers about the store.
type Stats struct {
	FileBytes int64     // of the database file
	LogBytes  int64     // of the write-ahead log beside it
	Entries   uint64    // stored now
	Oldest    time.Time // timestamp of the oldest entry; zero where there is none
}

// Stats returns numbers about the store, from memory and two calls of stat. After Close it goes on answering.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	st := Stats{Entries: s.head.Seq - s.deleted.Seq}
	if st.Entries > 0 {
		st.Oldest = time.UnixMilli(s.oldest).UTC()
	}
	s.mu.Unlock()
	st.FileBytes, st.LogBytes = s.sizes()
	return st
}

func (s *Store) sizes() (file, log int64) {
	if fi, err := os.Stat(s.path); err == nil {
		file = fi.Size()
	}
	if fi, err := os.Stat(s.path + "-wal"); err == nil {
		log = fi.Size()
	}
	return file, log
}

// Healthy returns nil when the newest write succeeded, its file is in its place and can be read. The error has
// CodeUnavailable and says what to do. After a write that failed it stays until an Append succeeds. It never waits for a
// writer.
func (s *Store) Healthy(ctx context.Context) error {
	s.mu.Lock()
	trouble, closed := s.trouble, s.closed
	s.mu.Unlock()
	if closed {
		return errClosed
	}
	if err := s.inPlace(); err != nil {
		return err
	}
	if trouble != nil {
		return trouble
	}
	var n int
	err := s.reads.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 FROM entries ORDER BY seq DESC LIMIT 1)`).Scan(&n)
	return explain(s.path, "reading", err)
}

// inPlace makes sure that the file that is open is still the one that will be found after a restart: SQLite would go on
// writing to a file that was deleted.
func (s *Store) inPlace() error {
	fi, err := os.Stat(s.path)
	if err == nil && os.SameFile(fi, s.file) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%s is another file than the one that was opened", s.path)
	}
	return statussync.NewError(statussync.CodeUnavailable, "the store's file is gone",
		fmt.Errorf("%w; put it back, or restart the service to begin with what is there", err))
}

// take waits for the turn to write.
func (s *Store) take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return givenUp("the write", err)
	}
	select {
	case s.turn <- struct{}{}:
	case <-s.closing:
		return errClosed
	case <-ctx.Done():
		return givenUp("the write", ctx.Err())
	}
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		s.give()
		return errClosed
	}
	return nil
}

func (s *Store) give() { <-s.turn }
