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

// Retention deletes rows of mcp_server_status_logs that are older than Keep, whoever wrote them: some at a time, each time in a
// transaction of its own, so that nobody waits for a lock for long; it waits for nobody's lock for long, either. It walks along
// an index that begins with timestamp, or else one that begins with server_id, as the platform's own does. Its methods are safe for concurrent use; Run is called once.
type Retention struct {
	o       RetentionOptions
	log     *slog.Logger
	deleted atomic.Uint64
}

const (
	keepEvery   = 10 * time.Minute // between two looks
	keepRetry   = time.Minute      // after a failure
	keepRows    = 2000             // deleted at once
	keepServers = 500              // looked at in one statement, where the index begins with server_id
	keepPause   = 100 * time.Millisecond
	keepTimeout = 30 * time.Second // of one batch, its round trips included
)

// keepBegin bounds a batch at the server: its statement, and how long it waits for somebody's lock.
const keepBegin = "begin; set local statement_timeout = '10s'; set local lock_timeout = '1s'"

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
	c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol // works through poolers, too
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
	walk, err := r.walk(ctx, conn)
	if err != nil {
		return err
	}
	before := time.Now().Add(-r.o.Keep)
	for after := ""; ; {
		n, last, more, err := batch(ctx, conn, walk, before, after)
		if err != nil {
			return err
		}
		r.deleted.Add(uint64(n))
		if n < keepRows { // else there may be more of the same servers
			after = last
		}
		if !more {
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

// batch deletes once. last is the last server that was looked at; more: it was not all.
func batch(ctx context.Context, conn *pgx.Conn, walk func(after string) string, before time.Time, after string) (n int64, last string, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{BeginQuery: keepBegin})
	if err != nil {
		return 0, "", false, err
	}
	defer func() { _ = tx.Rollback(ctx) }() // after a commit it does nothing
	var servers int64
	args := []any{before}
	if after != "" {
		args = append(args, after)
	}
	if err := tx.QueryRow(ctx, walk(after), args...).Scan(&n, &servers, &last); err != nil {
		return 0, "", false, err
	}
	return n, last, n >= keepRows || servers >= keepServers, tx.Commit(ctx)
}

// walk returns the statement that deletes a batch and tells how many rows those were, how many servers were looked at, and
// which was the last. $1: before when; $2: behind which server, where after is not empty.
func (r *Retention) walk(ctx context.Context, conn *pgx.Conn) (func(after string) string, error) {
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	table := pgx.Identifier{r.o.Schema, "mcp_server_status_logs"}.Sanitize()
	var first string // column of an index
	err := conn.QueryRow(ctx, `select coalesce((select a.attname::text from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
where i.indrelid = to_regclass($1) and i.indisvalid and i.indpred is null and a.attname in ('timestamp', 'server_id')
order by a.attname = 'timestamp' desc limit 1), '')`, table).Scan(&first)
	if err != nil {
		return nil, err
	}
	if first != "server_id" { // or there is none, and each batch looks for old rows from the table's beginning
		order := ""
		if first == "timestamp" {
			order = ` order by "timestamp"`
		}
		return func(string) string {
			return `with gone as (delete from ` + table + ` where id = any(array(select id from ` + table + ` where "timestamp" < $1` + order + ` limit ` + strconv.Itoa(keepRows) + `)) returning 1)
select count(*), 0::bigint, '' from gone`
		}, nil
	}
	return func(after string) string {
		behind := ""
		if after != "" {
			behind = " where server_id > $2"
		}
		// Each step of s is one look into the index; from there each server's oldest rows are one more.
		return `with recursive s(id) as (
  (select server_id from ` + table + behind + ` order by server_id limit 1)
  union all
  select (select t.server_id from ` + table + ` t where t.server_id > s.id order by t.server_id limit 1) from s where s.id is not null
), part as materialized (select id from s where id is not null limit ` + strconv.Itoa(keepServers) + `),
gone as (
  delete from ` + table + ` where id = any(array(
    select o.id from part cross join lateral (
      select t.id from ` + table + ` t where t.server_id = part.id and t."timestamp" < $1 order by t."timestamp" limit ` + strconv.Itoa(keepRows) + `) o
    limit ` + strconv.Itoa(keepRows) + `)) returning 1
) select (select count(*) from gone), (select count(*) from part), coalesce((select id::text from part order by id desc limit 1), '')`
	}, nil
}
