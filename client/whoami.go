package client

import (
	"context"

	"github.com/agentopia/statussync/wire"
)

// Whoami returns the name, role, limits and end of the token that this client presents.
func (c *Client) Whoami(ctx context.Context) (*wire.Whoami, error) {
	return get[wire.Whoami](ctx, c, wire.PathWhoami, nil)
}
