package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync"
)

const (
	statusLogTell    = 30 * time.Second       // between two reasons of one outage in the log
	statusLogEvery   = 250 * time.Millisecond // between looks at the journal's head where nothing happens
	statusLogPage    = 1000                   // entries read, and rows written, at once
	statusLogTimeout = 10 * time.Second       // of one statement
	statusLogConnect = 4 * time.Second        // of connecting: what a black hole swallowed is not waited for when it is over
	statusLogBackoff = 4 * time.Second        // longest pause after a failure, before jitter
	statusLogNote    = time.Second            // between stored checkpoints while rows are written
	statusLogIdle    = time.Minute            // between stored checkpoints where no row was
	statusLogLast    = 500 * time.Millisecond // for what is left when Run ends; the rest is written after the next start
	statusLogMark    = 250 * time.Millisecond // for its position, whether that was written or not
)

// StatusLogHub is what the status log needs of the running hub.
type StatusLogHub interface {
	// Updates returns up to limit entries that match after a position (zero: the oldest that are kept), oldest first, and the
	// position up to which entries were considered; CodeExpired.
	Updates(ctx context.Context, after statussync.Cursor, limit int, m *statussync.Matcher) ([]statussync.Encoded, statussync.Cursor, error)
	// Servers returns servers, and the position as of which they are; only that is used.
	Servers(q statussync.ServerQuery) (items []statussync.ServerView, more bool, at statussync.Cursor)
	// Ready tells whether the store is working.
	Ready() statussync.Readiness
}

// CheckpointStore keeps positions in the journal by name, across restarts.
type CheckpointStore interface {
	Checkpoint(ctx context.Context, name string) (statussync.Cursor, error)
	PutCheckpoint(ctx context.Context, name string, at statussync.Cursor) error
}

// StatusLogOptions says what a StatusLog works with. DSN, Hub and Store are required.
type StatusLogOptions struct {
	DSN    string
	Schema string // of the platform's tables. Default "public"
	Hub    StatusLogHub
	Store  CheckpointStore
	// Name tells several status logs apart: it names the checkpoint. Default "status_log".
	Name string
	// Mine says whose updates are written, by the server's id; it must not block. Default: everybody's who is in the database.
	Mine   func(serverID string) bool
	Logger *slog.Logger // nil logs nothing. The status log adds component=status_log
}

// StatusLog appends every update of the journal to the platform's mcp_server_status_logs. It is a reader like any other: it
// has a position of its own, and its database being away delays nobody.
//
// Each update becomes exactly one row, in the journal's order: rows are written at least once, and a repeat has the same id
// and inserts nothing. It begins with the oldest entry that the journal keeps. Updates of servers that are not (or no more) in
// the database are skipped and counted, as is a row that the table refuses for its values; neither holds up the others. Where
// retention deleted entries before they were written, they are counted as lost, and told.
type StatusLog struct {
	opts    StatusLogOptions
	cfg     *pgx.ConnConfig
	log     *slog.Logger
	session string
	all     *statussync.Matcher

	// These belong to Run.
	conn    *pgx.Conn
	table   *statusLogTable
	noted   statussync.Cursor // the stored checkpoint
	notedAt time.Time
	trouble string    // what keeps it from writing now; empty: nothing
	told    time.Time // when that was logged last

	mu     sync.Mutex
	st     StatusLogStatus
	oldest time.Time // timestamp of the oldest entry that is known to wait; zero: none
}

// StatusLogStatus is how a status log is doing. Counts are since the start.
type StatusLogStatus struct {
	Position  statussync.Cursor // up to here everything is written
	Connected bool
	Lag       uint64        // entries of the journal behind its head
	LagTime   time.Duration // age of the oldest entry that waits; 0: none does

	Written  uint64 // rows inserted
	Repeated uint64 // rows that were there already
	Gone     uint64 // updates of servers that are not in the database
	Refused  uint64 // rows that the table refused for their values
	Lost     uint64 // entries that retention deleted before they were read; at most so many updates are missing
	Batches  uint64 // statements that wrote rows
	Failures uint64

	LastWritten time.Time
	LastError   string // what keeps it from writing, or else of the newest refused row; empty once a failure is over
	LastErrorAt time.Time
}

// NewStatusLog checks the options. It does not connect. An error is an Error with CodeInvalid that names the option.
func NewStatusLog(o StatusLogOptions) (*StatusLog, error) {
	switch {
	case o.Hub == nil:
		return nil, statussync.Invalid("StatusLogOptions.Hub", "is required")
	case o.Store == nil:
		return nil, statussync.Invalid("StatusLogOptions.Store", "is required")
	}
	cfg, err := catalogConfig(o.DSN)
	if err != nil {
		return nil, err
	}
	o.Schema, o.Name = cmp.Or(o.Schema, "public"), cmp.Or(o.Name, "status_log")
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	all, err := statussync.Filter{Clauses: []statussync.Clause{{Kinds: statussync.Kinds}}}.Compile()
	if err != nil {
		return nil, err
	}
	session, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	return &StatusLog{opts: o, cfg: cfg, log: o.Logger.With("component", "status_log"), session: session.String(), all: all}, nil
}

// Status returns how the status log is doing. It never blocks on the database.
func (s *StatusLog) Status() StatusLogStatus {
	_, _, head := s.opts.Hub.Servers(statussync.ServerQuery{Limit: 1})
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.st
	if head.Seq > st.Position.Seq {
		st.Lag = head.Seq - st.Position.Seq
		if !s.oldest.IsZero() {
			st.LagTime = max(0, time.Since(s.oldest))
		}
	}
	return st
}

// Run writes until ctx ends, through all trouble; then what the journal has by then, if the database answers,
// for less than a second. It returns nil.
func (s *StatusLog) Run(ctx context.Context) error {
	defer s.disconnect()
	for failures := 0; ctx.Err() == nil; {
		before := s.position()
		err := s.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		if s.position() != before {
			failures = 0
		}
		failures++
		s.failed(err)
		pause := min(statusLogBackoff, 250*time.Millisecond<<min(failures, 10))
		t := time.NewTimer(pause/2 + rand.N(pause/2+1)) // several instances don't come back at once
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), statusLogLast)
	defer cancel()
	if s.conn != nil && !s.conn.IsClosed() && !s.position().IsZero() {
		if _, err := s.catchUp(end); err != nil {
			s.failed(err)
		}
	}
	mark, cancelMark := context.WithTimeout(context.WithoutCancel(ctx), statusLogMark)
	defer cancelMark()
	if err := s.note(mark, 0); err != nil {
		s.failed(err)
	}
	return nil
}

func (s *StatusLog) position() statussync.Cursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.st.Position
}

func (s *StatusLog) failed(err error) {
	text := statussync.CleanText(withoutLocalPort(err.Error()), statussync.MaxErrorText)
	s.mu.Lock()
	s.st.Failures++
	s.st.LastError, s.st.LastErrorAt = text, time.Now()
	s.mu.Unlock()
	// An outage is told when it begins, and another reason now and then: reasons take turns while connections are refused.
	if s.trouble == "" || text != s.trouble && time.Since(s.told) > statusLogTell {
		s.told = time.Now()
		s.log.Error("the status log can't be written; it will catch up", "error", text)
	}
	s.trouble = text
}

// recovered forgets a failure that is over.
func (s *StatusLog) recovered() {
	if s.trouble == "" {
		return
	}
	s.mu.Lock()
	if s.st.LastError == s.trouble { // not that of a row that was refused meanwhile
		s.st.LastError = ""
	}
	s.mu.Unlock()
	s.trouble = ""
	s.log.Info("the status log is written again", "position", s.position())
}

func (s *StatusLog) disconnect() {
	if s.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = s.conn.Close(ctx) // it is given up either way
		cancel()
		s.conn = nil
	}
	s.mu.Lock()
	s.st.Connected = false
	s.mu.Unlock()
}

// follow writes until something fails.
func (s *StatusLog) follow(ctx context.Context) error {
	if s.position().IsZero() {
		at, err := s.opts.Store.Checkpoint(ctx, s.opts.Name)
		if err != nil {
			return err
		}
		s.noted, s.notedAt = at, time.Now()
		s.mu.Lock()
		s.st.Position = at
		s.mu.Unlock()
	}
	t := time.NewTicker(statusLogEvery)
	defer t.Stop()
	for {
		if s.conn == nil {
			s.waits(ctx)
			if err := s.connect(ctx); err != nil {
				return err
			}
		}
		for {
			more, err := s.catchUp(ctx)
			if err != nil {
				if s.conn != nil && s.conn.IsClosed() {
					s.disconnect()
				}
				return err
			}
			if !more {
				break
			}
		}
		s.recovered()
		if err := s.note(ctx, statusLogIdle); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// waits notes since when the next entry waits, so that the lag can be told while the database is away.
func (s *StatusLog) waits(ctx context.Context) {
	list, _, err := s.opts.Hub.Updates(ctx, s.position(), 1, s.all)
	if err != nil || len(list) == 0 {
		return
	}
	s.mu.Lock()
	s.oldest = list[0].Timestamp
	s.mu.Unlock()
}

func (s *StatusLog) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statusLogConnect)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, s.cfg)
	if err != nil {
		return catalogConnectError(err)
	}
	s.conn = conn
	if err := s.look(ctx); err != nil {
		s.disconnect()
		return err
	}
	s.mu.Lock()
	s.st.Connected = true
	s.mu.Unlock()
	return nil
}

// look reads what the table is like.
func (s *StatusLog) look(ctx context.Context) error {
	t, err := statusLogRead(ctx, s.conn, s.opts.Schema)
	if err != nil {
		return err
	}
	if s.table == nil || strings.Join(t.missing, " ") != strings.Join(s.table.missing, " ") {
		if len(t.missing) > 0 {
			s.log.Warn("the table mcp_server_status_logs lacks columns and is written without them", "columns", t.missing)
		}
	}
	s.table = t
	return nil
}

// catchUp reads a page of the journal and writes its updates. more: there may be another page.
func (s *StatusLog) catchUp(ctx context.Context) (more bool, err error) {
	at := s.position()
	list, next, err := s.opts.Hub.Updates(ctx, at, statusLogPage, s.all)
	if statussync.CodeOf(err) == statussync.CodeExpired {
		to, lost, err := s.relocate(ctx, at)
		if err != nil {
			return false, err
		}
		if lost > 0 {
			s.log.Error("entries of the journal were deleted before they could be written to the status log", "entries", lost, "from", at, "to", to)
		}
		s.mu.Lock()
		s.st.Lost += lost
		s.st.Position = to
		s.mu.Unlock()
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if next == at {
		s.mu.Lock()
		s.oldest = time.Time{}
		s.mu.Unlock()
		return false, nil
	}
	rows := make([]statusLogRow, 0, len(list))
	var gone uint64
	for i := range list {
		e := list[i].Entry
		if e.Kind != statussync.KindStatus || (s.opts.Mine != nil && !s.opts.Mine(e.ServerID)) {
			continue
		}
		if s.table.uuids && !statusLogUUID(e.ServerID) {
			gone++
			continue
		}
		rows = append(rows, statusLogRowOf(e))
	}
	if len(list) > 0 {
		s.mu.Lock()
		s.oldest = list[0].Timestamp
		s.mu.Unlock()
	}
	if err := s.write(ctx, rows); err != nil {
		return false, err
	}
	s.mu.Lock()
	s.st.Position = next
	s.st.Gone += gone
	s.mu.Unlock()
	every := statusLogIdle
	if len(rows) > 0 {
		every = statusLogNote
	}
	return true, s.note(ctx, every)
}

// statusLogUUID reports whether PostgreSQL reads it as a uuid in its canonical form.
func statusLogUUID(id string) bool {
	u, err := uuid.Parse(id)
	return err == nil && strings.EqualFold(u.String(), id)
}

// note stores the position where the stored one is older than every.
func (s *StatusLog) note(ctx context.Context, every time.Duration) error {
	at := s.position()
	if at.IsZero() || at == s.noted || time.Since(s.notedAt) < every {
		return nil
	}
	if err := s.opts.Store.PutCheckpoint(ctx, s.opts.Name, at); err != nil {
		return err
	}
	s.noted, s.notedAt = at, time.Now()
	return nil
}

// write writes rows, and finds those that the table refuses.
func (s *StatusLog) write(ctx context.Context, rows []statusLogRow) error {
	if len(rows) == 0 {
		return nil
	}
	err := s.put(ctx, rows)
	switch state := checkSQLState(err); {
	case err == nil:
		return nil
	case state == "42703" || state == "42P01" || state == "42804": // the table changed under us
		lookCtx, cancel := context.WithTimeout(ctx, statusLogTimeout)
		defer cancel()
		return errors.Join(err, s.look(lookCtx))
	case state == "42501":
		lookCtx, cancel := context.WithTimeout(ctx, statusLogTimeout)
		defer cancel()
		return checkForbidden(lookCtx, s.conn, s.opts.Schema, FeatureStatusLog, err)
	case state == "23502": // a column that we don't know must not be null: no value of ours mends that
		return statussync.NewError(statussync.CodeConflict, "the table mcp_server_status_logs wants a column that is not known here", err)
	case state == "23503" && len(rows) > 1, strings.HasPrefix(state, "22"), strings.HasPrefix(state, "23"), strings.HasPrefix(state, "54"), strings.HasPrefix(state, "P0"):
	default:
		return err
	}
	if len(rows) > 1 {
		half := len(rows) / 2
		if err := s.write(ctx, rows[:half]); err != nil {
			return err
		}
		return s.write(ctx, rows[half:])
	}
	text := statussync.CleanText(err.Error(), statussync.MaxErrorText)
	s.mu.Lock()
	defer s.mu.Unlock()
	if checkSQLState(err) == "23503" { // deleted between our look and the foreign key's
		s.st.Gone++
		return nil
	}
	if s.st.Refused++; s.st.LastError != text {
		s.log.Error("a row of the status log was refused and is skipped", "server", rows[0].server, "error", text)
	}
	s.st.LastError, s.st.LastErrorAt = text, time.Now()
	return nil
}

func (s *StatusLog) put(ctx context.Context, rows []statusLogRow) error {
	ctx, cancel := context.WithTimeout(ctx, statusLogTimeout)
	defer cancel()
	batch, err := uuid.NewV7()
	if err != nil {
		return err
	}
	known, written, err := s.table.put(ctx, s.conn, rows, s.session, batch.String())
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.st.Batches++
	s.st.Written += uint64(written)
	s.st.Repeated += uint64(known - written)
	s.st.Gone += uint64(len(rows) - known)
	s.st.LastWritten = time.Now()
	return nil
}

// relocate finds where to go on when a position can't be continued as it is: in a new epoch, which may continue the log (a
// volatile one, an unclean start) or have left a part of it behind (a restored backup), or where retention has passed.
// lost is how many entries can't be read any more. Where the position's epoch is nowhere to be found all that is kept is
// written again; repeats insert nothing.
func (s *StatusLog) relocate(ctx context.Context, at statussync.Cursor) (to statussync.Cursor, lost uint64, err error) {
	durable := s.opts.Hub.Ready().Durable
	first, _, err := s.opts.Hub.Updates(ctx, statussync.Cursor{}, 1, s.all)
	if err != nil {
		return at, 0, err
	}
	_, _, head := s.opts.Hub.Servers(statussync.ServerQuery{Limit: 1})
	base := head.Seq // the position before the oldest that can be read
	if len(first) > 0 {
		base = first[0].Seq - 1
	}
	from := statussync.Cursor{Epoch: head.Epoch, Seq: base}
	if at.Seq < base {
		if !durable {
			// What is missing is in the store, which is not asked now.
			return at, 0, statussync.NewError(statussync.CodeUnavailable, fmt.Sprintf("entries after %v can't be read before the store is back", at), nil)
		}
		return from, base - at.Seq, nil
	}
	// The newest entry of the position's own epoch, at or before it.
	for end := min(at.Seq, head.Seq); end > base; {
		begin := base
		if end > base+statusLogPage {
			begin = end - statusLogPage
		}
		list, _, err := s.opts.Hub.Updates(ctx, statussync.Cursor{Epoch: head.Epoch, Seq: begin}, int(end-begin), s.all)
		if err != nil {
			return at, 0, err
		}
		for i := len(list) - 1; i >= 0; i-- {
			if list[i].Epoch == at.Epoch {
				return statussync.Cursor{Epoch: head.Epoch, Seq: list[i].Seq}, 0, nil
			}
		}
		end = begin
	}
	return from, 0, nil
}
