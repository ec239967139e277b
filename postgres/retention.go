package postgres

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync"
)

// RetentionOptions of a Retention.
type RetentionOptions struct {
	DSN    string // secret; required
	Schema string // of the platform's tables. Default public
	Keep   time.Duration
	Logger *slog.Logger // nil: discards
}

// Retention deletes rows of mcp_server_status_logs that are older than Keep, whoever wrote them: some at a time, so that
// nobody waits for a lock for long. Its methods are safe for concurrent use; Run is called once.
type Retention struct {
	o       RetentionOptions
	log     *slog.Logger
	deleted atomic.Uint64
}

const (
	keepEvery   = 10 * time.Minute // between two looks
	keepRetry   = time.Minute      // after a failure
	keepRows    = 5000             // deleted at once
	keepPause   = 100 * time.Millisecond
	keepTimeout = 30 * time.Second // of one statement
)

// NewRetention checks the options and connects to nothing.
func NewRetention(o RetentionOptions) (*Retention, error) {
	if o.Keep <= 0 {
		return nil, statussync.Invalid("retention", "must be greater than zero")
	}
	if _, err := pgx.ParseConfig(o.DSN); err != nil {
		return nil, dsnError(err)
	}
	if o.Schema == "" {
		o.Schema = "public"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Retention{o: o, log: o.Logger.With("component", "retention")}, nil
}

// Deleted is how many rows were deleted since the start.
func (r *Retention) Deleted() uint64 { return r.deleted.Load() }

// Run deletes until ctx ends; it then returns nil.
func (r *Retention) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	told := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		err := r.once(ctx)
		wait := keepEvery
		switch text := errorText(err); {
		case err == nil:
			told = ""
		case ctx.Err() != nil:
			return nil
		default:
			if wait = keepRetry; text != told {
				told = text
				r.log.Warn("old rows of mcp_server_status_logs can't be deleted just now", "error", text)
			}
		}
		timer.Reset(wait)
	}
}

// once deletes everything that is too old now.
func (r *Retention) once(ctx context.Context) (err error) {
	c, err := pgx.ParseConfig(r.o.DSN)
	if err != nil {
		return dsnError(err)
	}
	c.ConnectTimeout = DefaultConnectTimeout
	c.DefaultQueryExecMode = pgx.QueryExecModeExec // works through poolers, too
	c.RuntimeParams["application_name"] = "statussync"
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if cerr := conn.Close(end); err == nil && !errors.Is(cerr, context.DeadlineExceeded) {
			err = cerr
		}
	}()
	table := pgx.Identifier{r.o.Schema, "mcp_server_status_logs"}.Sanitize()
	before := time.Now().Add(-r.o.Keep)
	for {
		sctx, cancel := context.WithTimeout(ctx, keepTimeout)
		tag, err := conn.Exec(sctx, `delete from `+table+` where id in (select id from `+table+` where "timestamp" < $1 limit `+strconv.Itoa(keepRows)+`)`, before)
		cancel()
		if err != nil {
			return err
		}
		r.deleted.Add(uint64(tag.RowsAffected()))
		if tag.RowsAffected() < keepRows {
			return nil
		}
		pause := time.NewTimer(keepPause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-pause.C:
		}
	}
}
