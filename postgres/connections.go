package postgres

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/agentopia/statussync"
)

// Connection is one row of agent_mcp_connections: an agent that uses an MCP server.
type Connection struct {
	ID        string
	ServerID  string
	Active    bool
	CreatedAt time.Time // zero: not known
}

// maxConnections bounds the connections of one agent that are read.
const maxConnections = 10_000

// connectionsTimeout bounds the question, where the caller allows more.
const connectionsTimeout = 5 * time.Second

// Connections reads an agent's connections, by server id. It asks the database and ends when ctx does; it is safe for
// concurrent use. CodeInvalid: the id can be no agent's. CodeNotFound: there is no such agent, or the database has no such
// tables. CodeUnavailable: it can't be read now, or not by this role.
func (r *Registry) Connections(ctx context.Context, agentID string) ([]Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, connectionsTimeout)
	defer cancel()
	if r.Status().Feed == statussync.FeedDown { // an answer at once, not after a timeout
		return nil, statussync.NewError(statussync.CodeUnavailable, "the platform's database can't be reached just now", nil)
	}
	out, err := r.connections(ctx, agentID, connectionColumns)
	var lack *pgconn.PgError
	if errors.As(err, &lack) && (lack.Code == "42703" || lack.Code == "42501") { // a column or a right; some can be done without
		var can []string
		if can, err = r.connectionColumns(ctx); err == nil {
			out, err = r.connections(ctx, agentID, can)
		}
	}
	if err != nil {
		return nil, connectionsError(err)
	}
	if len(out) > 0 {
		return out, nil
	}
	r.queries.Add(1)
	var there bool
	err = r.pool.QueryRow(ctx, `select exists (select from `+r.qualified("agents")+` where id = $1)`, agentID).Scan(&there)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "42501" || pg.Code == "42703"):
		return nil, nil // who the agents are can't be read: it has no connections, whoever it is
	case err != nil:
		return nil, connectionsError(err)
	case !there:
		return nil, statussync.NotFound("agent", agentID)
	}
	return nil, nil
}

// connectionColumns are those that can be done without.
var connectionColumns = []string{"id", "is_active", "created_at"}

// connections reads them with those of the columns that can be read.
func (r *Registry) connections(ctx context.Context, agentID string, can []string) ([]Connection, error) {
	column := func(name, expr, without string) string {
		if slices.Contains(can, name) {
			return expr
		}
		return without
	}
	r.queries.Add(1)
	rows, err := r.pool.Query(ctx, `select `+column("id", "coalesce(c.id::text, '')", "''")+`, c.mcp_server_instance_id::text, `+
		column("is_active", "coalesce(c.is_active, true)", "true")+`, `+
		column("created_at", "case when isfinite(c.created_at) then c.created_at end", "null::timestamptz")+` from `+
		r.qualified("agent_mcp_connections")+` c where c.agent_id = $1 and c.mcp_server_instance_id is not null order by 2, 1 limit $2`, agentID, maxConnections)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Connection, err error) {
		var at *time.Time
		if err = row.Scan(&c.ID, &c.ServerID, &c.Active, &at); err == nil && at != nil {
			c.CreatedAt = *at
		}
		return c, err
	})
}

// connectionColumns asks the catalog which of them this role can read.
func (r *Registry) connectionColumns(ctx context.Context) ([]string, error) {
	r.queries.Add(1)
	rows, err := r.pool.Query(ctx, `select a.attname::text from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and c.relname = 'agent_mcp_connections' and a.attnum > 0 and not a.attisdropped and a.attname in ('id', 'is_active', 'created_at')
  and has_column_privilege(c.oid, a.attnum, 'SELECT')`, r.o.Schema)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func (r *Registry) qualified(table string) string {
	return pgx.Identifier{r.o.Schema, table}.Sanitize()
}

func connectionsError(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "22P02":
			return statussync.Invalid("agent_id", "is not of the form that the platform's ids have")
		case "42P01", "42703":
			return statussync.NewError(statussync.CodeNotFound, "the platform's database has no table agent_mcp_connections with the columns agent_id and mcp_server_instance_id", err)
		case "42501":
			return statussync.NewError(statussync.CodeUnavailable, "the role may not read agent_mcp_connections; grant select on it", err)
		}
	}
	return statussync.NewError(statussync.CodeUnavailable, "the platform's database can't be read just now", err)
}
