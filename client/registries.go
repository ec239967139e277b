package client

import (
	"context"
	"net/url"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Connections returns an agent's connections to MCP servers with their statuses. To follow them, subscribe with the
// server ids from the answer's cursor on. CodeNotFound: there is no such agent, or no database that has agents;
// CodeUnavailable: the platform's database can't be read now.
func (c *Client) Connections(ctx context.Context, agentID string) (*wire.Connections, error) {
	if agentID == "" {
		return nil, statussync.Invalid("agent_id", "is missing")
	}
	return get[wire.Connections](ctx, c, wire.BasePath+"/connections", url.Values{"agent_id": {agentID}})
}
