package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Registries are the databases that define servers. Its methods are safe for concurrent use.
type Registries interface {
	// Registries tells how each of them is doing, from memory.
	Registries() []wire.Registry
	// Connections returns an agent's connections as the platform's database has them now, by server id. It asks the database
	// and ends when ctx does. Errors are *statussync.Error: CodeInvalid where the id can be none, CodeNotFound where there is
	// no such agent, or no database that has agents, CodeUnavailable where the database can't be read now.
	Connections(ctx context.Context, agentID string) ([]AgentConnection, error)
}

// AgentConnection is one connection of an agent to an MCP server, as the platform's database has it.
type AgentConnection struct {
	ID        string
	ServerID  string
	Active    bool
	CreatedAt time.Time // zero: not known
}

type connectionsInput struct {
	AgentID string `query:"agent_id" required:"true" minLength:"1" maxLength:"128" doc:"The agent's id in the platform's database."`
}

// connectionsTimeout bounds the question to the database.
const connectionsTimeout = 10 * time.Second

func (a *API) registryStateRoutes() {
	op := huma.Operation{
		Method: http.MethodGet, Path: wire.BasePath + "/connections", OperationID: "list-connections", Tags: []string{"servers"},
		Summary: "One agent's connections to MCP servers, with live status",
		Description: "Rows of the platform's agent_mcp_connections joined with the statuses of now. To follow them, subscribe with these `server_ids` from `cursor` on: " +
			"`GET /api/v1/stream?server_ids=…&cursor=…`, or the WebSocket with a filter of the same. Which connections there are changes with the rows: ask again for that.",
		Metadata: map[string]any{metaTimeout: connectionsTimeout},
	}
	register(a, op, accessViewer, func(ctx context.Context, in *connectionsInput) (*body[wire.Connections], error) {
		rows, err := a.opts.Registries.Connections(ctx, in.AgentID)
		if err != nil {
			return nil, err
		}
		// Before the statuses are read: what happens in between is told twice rather than never.
		out := wire.Connections{AgentID: in.AgentID, Items: make([]wire.Connection, 0, len(rows)), Cursor: a.opts.Hub.Ready().Head.String()}
		for i := range rows {
			out.Items = append(out.Items, a.connection(&rows[i]))
		}
		return &body[wire.Connections]{out}, nil
	})
}

func (a *API) connection(row *AgentConnection) wire.Connection {
	out := wire.Connection{ID: row.ID, ServerID: row.ServerID, Active: row.Active, CreatedAt: wire.Time{Time: row.CreatedAt}}
	var status *statussync.Status
	if v, err := a.opts.Hub.Server(row.ServerID); err == nil {
		status = &v.Status
		shown := wire.FromStatus(&v.Status, v.Now)
		out.ServerName, out.ServerStatus = v.Server.Name, &shown
	}
	out.Status = wire.ConnectionStatusOf(row.Active, status)
	return out
}
