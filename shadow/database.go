package shadow

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync"
)

// Database is a Log over a platform's PostgreSQL. It opens a connection for each question, so that a run of hours does not
// depend on one. Safe for concurrent use.
type Database struct {
	DSN    string // secret
	Schema string // of the platform's tables
	// Ours reports whether a row's id is one that statussync wrote itself; nil: none is.
	Ours func(id string) bool
}

// askTimeout bounds one question.
const askTimeout = 30 * time.Second

func (d *Database) ask(ctx context.Context, query string, args []any, each func(pgx.Rows) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c, err := pgx.ParseConfig(d.DSN)
	if err != nil {
		return statussync.Invalid("dsn", "is no address of a PostgreSQL database") // its text may hold the password
	}
	c.DefaultQueryExecMode = pgx.QueryExecModeExec // works through poolers, too
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return statussync.NewError(statussync.CodeUnavailable, "the database can't be reached", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, query, args...)
	if err != nil {
		return statussync.NewError(statussync.CodeUnavailable, "the database can't be read", err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return statussync.NewError(statussync.CodeUnavailable, "the database can't be read", err)
	}
	return nil
}

func (d *Database) table(name string) string { return pgx.Identifier{d.Schema, name}.Sanitize() }

// Words implements Log. Rows whose current_status names no state are left out.
func (d *Database) Words(ctx context.Context, after Place, limit int) ([]Word, error) {
	var out []Word
	err := d.ask(ctx, `select id::text, server_id::text, "timestamp", coalesce(current_status::text, ''), coalesce(source, ''), coalesce(details, '')
from `+d.table("mcp_server_status_logs")+` where ("timestamp", id::text collate "C") > ($1, $2) order by "timestamp", id::text collate "C" limit $3`, []any{after.At, after.ID, limit}, func(r pgx.Rows) error {
		var w Word
		var status string
		if err := r.Scan(&w.ID, &w.ServerID, &w.At, &status, &w.Source, &w.Details); err != nil {
			return err
		}
		ok := true
		if w.State, w.Health, ok = ParseStatus([]byte(status)); !ok || d.Ours != nil && d.Ours(w.ID) {
			w.State = "" // still counts for the page
		}
		out = append(out, w)
		return nil
	})
	return out, err
}

// Records implements Log.
func (d *Database) Records(ctx context.Context) ([]Word, error) {
	var out []Word
	err := d.ask(ctx, `select id::text, status_on_toolbox::text, updated_at from `+d.table("account_tool_instances")+` where mcp_server_type is not null order by id`, nil, func(r pgx.Rows) error {
		var w Word
		var word *string
		if err := r.Scan(&w.ServerID, &word, &w.At); err != nil || word == nil {
			return err
		}
		w.ID, w.State = w.ServerID, statussync.CleanText(*word, statussync.MaxWordText)
		out = append(out, w)
		return nil
	})
	return out, err
}
