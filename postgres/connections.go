package postgres

import (
	"context"
	"errors"
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
	r.queries.Add(1)
	rows, err := r.pool.Query(ctx, `select c.id::text, c.mcp_server_instance_id::text, coalesce(c.is_active, true), c.created_at from `+
		r.qualified("agent_mcp_connections")+` c where c.agent_id = $1 order by 2, 1 limit $2`, agentID, maxConnections)
	if err != nil {
		return nil, connectionsError(err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Connection, err error) {
		var at *time.Time
		if err = row.Scan(&c.ID, &c.ServerID, &c.Active, &at); err == nil && at != nil {
			c.CreatedAt = *at
		}
		return c, err
	})
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
