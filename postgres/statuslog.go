package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/agentopia/statussync"
)

// tableLog is where updates are written for the platform's screens.
const tableLog = "mcp_server_status_logs"

// JournalReader is what a StatusLog reads; the hub is one.
type JournalReader interface {
	// Updates returns entries after a position, oldest first, and the position up to which entries were considered;
	// CodeExpired where the position can't be continued. The zero position stands for the oldest entry that is kept.
	Updates(ctx context.Context, after statussync.Cursor, limit int, m *statussync.Matcher) ([]statussync.Encoded, statussync.Cursor, error)
	// Ready tells the position of the newest entry.
	Ready() statussync.Readiness
}

// Checkpoint keeps a StatusLog's position over restarts.
type Checkpoint interface {
	// Load returns the stored position; ok is false where there is none.
	Load() (at statussync.Cursor, ok bool)
	// Store keeps a position. It may block until it is durable, or ctx ends.
	Store(ctx context.Context, at statussync.Cursor) error
}

// StatusLogOptions of a StatusLog.
type StatusLogOptions struct {
	DSN        string // secret; required
	Schema     string // of the platform's tables. Default public
	Journal    JournalReader
	Checkpoint Checkpoint
	// Retention deletes rows of the table that are older, whoever wrote them. 0: nothing is deleted.
	Retention time.Duration
	Logger    *slog.Logger // nil: discards
}

// StatusLogStatus is how a StatusLog is doing.
type StatusLogStatus struct {
	Cursor    statussync.Cursor // everything up to here is written
	Behind    uint64            // entries of the journal that are still to be looked at
	Rows      uint64            // inserted
	Repeated  uint64            // that were there already
	Skipped   uint64            // of servers that the database does not have (any more)
	Failed    uint64            // that the database refused for what is in them
	Deleted   uint64            // older than the retention
	LastError string            // empty while all is well
}

// StatusLog writes every update of the journal into mcp_server_status_logs. It is an outlet: it follows the journal from
// its own checkpoint, as fast as the database takes batches, and goes on where it was when the database was away. A row's
// id is derived from the entry's position, so what is written twice is there once.
type StatusLog struct {
	o   StatusLogOptions
	log *slog.Logger

	mu sync.Mutex
	st StatusLogStatus
}

// NewStatusLog checks the options and connects to nothing.
func NewStatusLog(o StatusLogOptions) (*StatusLog, error) {
	if o.DSN == "" || o.Journal == nil || o.Checkpoint == nil {
		return nil, statussync.Invalid("status_log", "needs a DSN, a journal and a checkpoint")
	}
	if o.Retention < 0 {
		return nil, statussync.Invalid("status_log.retention", "must not be negative")
	}
	if o.Schema == "" {
		o.Schema = "public"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if _, err := pgx.ParseConfig(o.DSN); err != nil {
		return nil, dsnError(err)
	}
	return &StatusLog{o: o, log: o.Logger.With("component", "status_log")}, nil
}

// Status tells how it is doing. Safe for concurrent use.
func (l *StatusLog) Status() StatusLogStatus {
	head := l.o.Journal.Ready().Head
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.st
	if head.Seq > st.Cursor.Seq {
		st.Behind = head.Seq - st.Cursor.Seq
	}
	return st
}

const (
	logBatch    = 1000 // entries of one statement
	logLook     = 100 * time.Millisecond
	logTimeout  = 5 * time.Second  // of one statement
	logStore    = time.Second      // between two checkpoints
	logKeep     = 10 * time.Minute // between two looks for rows that are too old
	logDelete   = 5000             // of them at once
	logRetryMax = 1500 * time.Millisecond
	logHopeless = 30 * time.Second // between attempts where a person must do something
)

// LogRowID is the id of the row for the entry at a position: a UUID of version 8, which no platform makes by itself.
func LogRowID(at statussync.Cursor) string { return derivedID("row", at.String()) }

// OwnLogRow reports whether a row's id is one that LogRowID makes.
func OwnLogRow(id string) bool {
	return len(id) == 36 && id[14] == '8'
}

func derivedID(kind, of string) string {
	sum := sha256.Sum256([]byte("statussync status log\x00" + kind + "\x00" + of))
	b := sum[:16]
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Begin fixes the position from which updates are written, where there is none yet: the newest entry as it is now. Call it
// before anything new is told. Without it Run begins where the journal is then.
func (l *StatusLog) Begin(ctx context.Context) error {
	at, ok := l.o.Checkpoint.Load()
	if !ok {
		at = l.o.Journal.Ready().Head
		if err := l.o.Checkpoint.Store(ctx, at); err != nil {
			return err
		}
	}
	l.mu.Lock()
	l.st.Cursor = at
	l.mu.Unlock()
	return nil
}

// Run writes until ctx ends; it then returns nil. It never gives up.
func (l *StatusLog) Run(ctx context.Context) error {
	if err := l.Begin(ctx); err != nil && ctx.Err() == nil {
		l.log.Warn("where the status log was can't be read; it begins at the newest entry", "error", err)
	}
	w := &logWriter{l: l}
	defer w.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	retry := 0
	for {
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			w.checkpoint(end, true)
			return nil
		case <-timer.C:
		}
		more, err := w.turn(ctx)
		wait := logLook
		switch {
		case ctx.Err() != nil:
			wait = 0
		case err != nil:
			w.close()
			wait = l.failed(err, retry)
			retry++
		default:
			retry = 0
			l.well()
			if more {
				wait = 0
			}
		}
		timer.Reset(wait)
	}
}

func (l *StatusLog) failed(err error, retry int) time.Duration {
	text := errorText(err)
	l.mu.Lock()
	news := text != l.st.LastError
	l.st.LastError = text
	l.mu.Unlock()
	if news {
		l.log.Warn("updates can't be written to "+tableLog+" just now; they wait in the journal", "error", text)
	}
	if hopeless(err) {
		return logHopeless
	}
	limit := min(logRetryMax, 50*time.Millisecond<<min(retry, 10))
	return time.Duration(rand.Int64N(int64(limit)) + 1)
}

func (l *StatusLog) well() {
	l.mu.Lock()
	was := l.st.LastError
	l.st.LastError = ""
	l.mu.Unlock()
	if was != "" {
		l.log.Info("updates are written to " + tableLog + " again")
	}
}

// hopeless reports whether trying again soon can't help: a right, a table or a password is missing.
func hopeless(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return strings.HasPrefix(pg.Code, "42") || strings.HasPrefix(pg.Code, "28") || pg.Code == "3D000"
	}
	return statussync.CodeOf(err) == statussync.CodeNotFound
}

// logWriter is what Run's goroutine owns.
type logWriter struct {
	l       *StatusLog
	conn    *pgx.Conn
	columns map[string]string // with their types
	stored  statussync.Cursor
	storeAt time.Time
	keepAt  time.Time
}

func (w *logWriter) close() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = w.conn.Close(ctx) // it is given up
	w.conn = nil
}

// turn writes the next batch, and reports whether there may be more.
func (w *logWriter) turn(ctx context.Context) (more bool, err error) {
	l := w.l
	l.mu.Lock()
	at := l.st.Cursor
	l.mu.Unlock()
	if l.o.Journal.Ready().Head == at {
		w.checkpoint(ctx, false)
		return w.tidy(ctx)
	}
	list, next, err := l.o.Journal.Updates(ctx, at, logBatch, nil)
	if statussync.CodeOf(err) == statussync.CodeExpired {
		// Retention was faster, or the journal has begun anew. Rows that are there already are not written twice.
		l.log.Warn("the journal does not reach back to where the status log was; it goes on with the oldest entry that is kept", "was_at", at.String())
		list, next, err = l.o.Journal.Updates(ctx, statussync.Cursor{}, logBatch, nil)
	}
	if err != nil {
		return false, err
	}
	entries := list[:0]
	for _, e := range list {
		if e.Kind == statussync.KindStatus && e.Current != nil {
			entries = append(entries, e)
		}
	}
	if len(entries) > 0 {
		if err := w.connect(ctx); err != nil {
			return false, err
		}
		if err := w.write(ctx, entries); err != nil {
			return false, err
		}
	}
	l.mu.Lock()
	l.st.Cursor = next
	l.mu.Unlock()
	w.checkpoint(ctx, false)
	return next != at, nil
}

// checkpoint stores the position, now and then or at once.
func (w *logWriter) checkpoint(ctx context.Context, now bool) {
	w.l.mu.Lock()
	at := w.l.st.Cursor
	w.l.mu.Unlock()
	if at == w.stored || at.IsZero() || !now && time.Since(w.storeAt) < logStore {
		return
	}
	if err := w.l.o.Checkpoint.Store(ctx, at); err != nil {
		if ctx.Err() == nil {
			w.l.log.Debug("the position of the status log was not stored", "error", err)
		}
		return
	}
	w.stored, w.storeAt = at, time.Now()
}

func (w *logWriter) connect(ctx context.Context) error {
	if w.conn != nil {
		return nil
	}
	c, err := pgx.ParseConfig(w.l.o.DSN)
	if err != nil {
		return dsnError(err)
	}
	c.ConnectTimeout = DefaultConnectTimeout
	c.DefaultQueryExecMode = pgx.QueryExecModeExec // works through poolers, too
	c.RuntimeParams["application_name"] = "statussync"
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return err
	}
	w.conn, w.columns = conn, map[string]string{}
	rows, err := conn.Query(ctx, `select a.attname::text, format_type(a.atttypid, a.atttypmod) from pg_attribute a where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped`, w.table(tableLog))
	if err != nil {
		return err
	}
	var name, typ string
	if _, err := pgx.ForEachRow(rows, []any{&name, &typ}, func() error { w.columns[name] = typ; return nil }); err != nil {
		return err
	}
	for _, need := range []string{"id", "server_id", "current_status"} {
		if w.columns[need] == "" {
			return statussync.NewError(statussync.CodeNotFound, "the table "+tableLog+" is missing, or its column "+need, nil)
		}
	}
	return nil
}

func (w *logWriter) table(name string) string {
	return pgx.Identifier{w.l.o.Schema, name}.Sanitize()
}

// logStatus is a status as the platform's screens read it.
type logStatus struct {
	State       string `json:"state"`
	Health      string `json:"health"`
	Uptime      *int64 `json:"uptime"`
	LastStarted string `json:"lastStarted,omitempty"`
	LastError   string `json:"lastError,omitempty"`
	Reason      string `json:"reason,omitempty"`
	Cause       string `json:"cause,omitempty"`
}

func logStatusOf(s *statussync.Status, at time.Time) (text string, uptime *int64) {
	if s == nil {
		return "null", nil
	}
	v := logStatus{State: string(s.State), Health: string(s.Health), LastError: noNUL(s.LastError), Reason: string(s.Reason), Cause: noNUL(s.Cause)}
	if !s.LastStarted.IsZero() {
		v.LastStarted = s.LastStarted.UTC().Format(statussync.TimeFormat)
	}
	if up := s.UptimeSeconds(at); up >= 0 {
		v.Uptime = &up
	}
	b, err := json.Marshal(v)
	if err != nil { // only text and numbers are in it
		return "{}", v.Uptime
	}
	return string(b), v.Uptime
}

func noNUL(s string) string { return strings.ReplaceAll(s, "\x00", "") }

// isUUID reports whether text is one, in the form that PostgreSQL writes.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range []byte(s) {
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if r != '-' {
				return false
			}
		case r >= '0' && r <= '9' || r >= 'a' && r <= 'f' || r >= 'A' && r <= 'F':
		default:
			return false
		}
	}
	return true
}

// logColumns are the columns that are written, where the table has them, and each one's type in the statement.
var logColumns = []struct{ name, array string }{
	{"id", "text"}, {"server_id", "text"}, {"previous_status", "text"}, {"current_status", "text"}, {"source", "text"}, {"details", "text"},
	{"uptime_seconds", "bigint"}, {"timestamp", "timestamptz"}, {"sync_session_id", "text"}, {"batch_id", "text"},
}

// write inserts entries, at most logBatch. What the database refuses for its content is left out, one by one.
func (w *logWriter) write(ctx context.Context, entries []statussync.Encoded) error {
	err := w.insert(ctx, entries)
	var pg *pgconn.PgError
	if err == nil || !errors.As(err, &pg) || !strings.HasPrefix(pg.Code, "22") && !strings.HasPrefix(pg.Code, "23") {
		return err
	}
	if pg.Code == "23503" { // a server was deleted just now: it is left out the next time
		if err = w.insert(ctx, entries); err == nil {
			return nil
		}
	}
	for i := range entries {
		err := w.insert(ctx, entries[i:i+1])
		switch {
		case err == nil:
		case errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "22") || strings.HasPrefix(pg.Code, "23")):
			w.l.mu.Lock()
			w.l.st.Failed++
			w.l.mu.Unlock()
			w.l.log.Warn("an update could not be written to "+tableLog, "cursor", entries[i].Cursor().String(), "server", entries[i].ServerID, "error", errorText(err))
		default:
			return err
		}
	}
	return nil
}

func (w *logWriter) insert(ctx context.Context, entries []statussync.Encoded) error {
	uuids := w.columns["server_id"] == "uuid"
	var ids, servers, before, current, sources, details, sessions, batches []string
	var uptimes []*int64
	var times []time.Time
	batch := derivedID("batch", entries[0].Cursor().String())
	for _, e := range entries {
		if uuids && !isUUID(e.ServerID) {
			continue // not a server of this database
		}
		b, _ := logStatusOf(e.Previous, e.Timestamp)
		c, up := logStatusOf(e.Current, e.Timestamp)
		ids, servers = append(ids, LogRowID(e.Cursor())), append(servers, e.ServerID)
		before, current = append(before, b), append(current, c)
		sources, details = append(sources, string(e.Source)), append(details, noNUL(e.Details))
		uptimes, times = append(uptimes, up), append(times, e.Timestamp)
		sessions, batches = append(sessions, derivedID("epoch", string(e.Epoch))), append(batches, batch)
	}
	if len(ids) == 0 {
		return nil
	}
	values := map[string]any{
		"id": ids, "server_id": servers, "previous_status": before, "current_status": current, "source": sources, "details": details,
		"uptime_seconds": uptimes, "timestamp": times, "sync_session_id": sessions, "batch_id": batches,
	}
	var names, casts, from, as []string
	var args []any
	for _, c := range logColumns {
		typ := w.columns[c.name]
		if typ == "" {
			continue
		}
		args = append(args, values[c.name])
		from = append(from, "$"+strconv.Itoa(len(args))+"::"+c.array+"[]")
		as = append(as, `"`+c.name+`"`)
		names = append(names, `"`+c.name+`"`)
		casts = append(casts, `u."`+c.name+`"::`+typ)
	}
	query := `with u (` + strings.Join(names, ", ") + `) as (select ` + strings.Join(casts, ", ") + ` from unnest(` + strings.Join(from, ", ") + `) u (` + strings.Join(as, ", ") + `)),
k as (select u.* from u where exists (select from ` + w.table(tableInstances) + ` i where i.id = u.server_id)),
n as (insert into ` + w.table(tableLog) + ` (` + strings.Join(names, ", ") + `) select * from k on conflict do nothing returning 1)
select (select count(*) from k), (select count(*) from n)`
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	var kept, inserted uint64
	err := pgx.BeginFunc(ctx, w.conn, func(tx pgx.Tx) error {
		// The position moves on behind this: a crash of the database must not lose what was written. Within the
		// transaction, because poolers share sessions.
		if _, err := tx.Exec(ctx, `set local synchronous_commit = on`); err != nil {
			return err
		}
		return tx.QueryRow(ctx, query, args...).Scan(&kept, &inserted)
	})
	if err != nil {
		return err
	}
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	w.l.st.Rows += inserted
	w.l.st.Repeated += kept - inserted
	w.l.st.Skipped += uint64(len(ids)) - kept
	return nil
}

// tidy deletes rows that are too old, some at a time.
func (w *logWriter) tidy(ctx context.Context) (more bool, err error) {
	if w.l.o.Retention == 0 || time.Now().Before(w.keepAt) {
		return false, nil
	}
	if err := w.connect(ctx); err != nil {
		return false, err
	}
	if w.columns["timestamp"] == "" {
		return false, statussync.NewError(statussync.CodeNotFound, "the table "+tableLog+" has no column timestamp to tell what is too old", nil)
	}
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	tag, err := w.conn.Exec(ctx, `delete from `+w.table(tableLog)+` where id in (select id from `+w.table(tableLog)+` where "timestamp" < $1 limit `+strconv.Itoa(logDelete)+`)`, time.Now().Add(-w.l.o.Retention))
	if err != nil {
		return false, err
	}
	n := tag.RowsAffected()
	w.l.mu.Lock()
	w.l.st.Deleted += uint64(n)
	w.l.mu.Unlock()
	if n < logDelete {
		w.keepAt = time.Now().Add(logKeep)
		return false, nil
	}
	return true, nil
}
