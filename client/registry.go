package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/agentopia/statussync/wire"
)

func environmentPath(id, rest string) string {
	return wire.BasePath + "/environments/" + url.PathEscape(id) + rest
}

// AddServer defines a new managed server. Like all changes of the managed registry it needs the role admin, and is
// durable and in force when it returns. The error has code CodeConflict where the id or the container is taken, and
// CodeInvalid where the definition is wrong.
func (c *Client) AddServer(ctx context.Context, s wire.ServerSpec) (*wire.Server, error) {
	return send[wire.Server](ctx, c, DefaultTimeout, http.MethodPost, wire.BasePath+"/servers", s)
}

// SetServer replaces the whole definition of a managed server: what s leaves out has its default afterwards, also its
// probe's headers, which are never read back. CodeConflict: another registry defines it.
func (c *Client) SetServer(ctx context.Context, id string, s wire.ServerSpec) (*wire.Server, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return send[wire.Server](ctx, c, DefaultTimeout, http.MethodPut, serverPath(id, ""), s)
}

// RemoveServer removes a managed server.
func (c *Client) RemoveServer(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return c.call(ctx, DefaultTimeout, http.MethodDelete, serverPath(id, ""), nil, nil, nil)
}

// Adopt defines a managed server for a container that an agent listed and no server claims. s may be empty: the id is
// then the container's name.
func (c *Client) Adopt(ctx context.Context, environmentID, container string, s wire.ServerSpec) (*wire.Server, error) {
	for _, id := range []string{environmentID, container} {
		if err := checkID(id); err != nil {
			return nil, err
		}
	}
	path := wire.BasePath + "/discovered/" + url.PathEscape(environmentID) + "/" + url.PathEscape(container) + "/adopt"
	return send[wire.Server](ctx, c, DefaultTimeout, http.MethodPost, path, s)
}

// AddEnvironment defines a new managed environment, without an agent's token; RotateAgentToken makes one.
func (c *Client) AddEnvironment(ctx context.Context, e wire.EnvironmentSpec) (*wire.Environment, error) {
	return send[wire.Environment](ctx, c, DefaultTimeout, http.MethodPost, wire.BasePath+"/environments", e)
}

// SetEnvironment replaces the whole definition of a managed environment; its tokens stay.
func (c *Client) SetEnvironment(ctx context.Context, id string, e wire.EnvironmentSpec) (*wire.Environment, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return send[wire.Environment](ctx, c, DefaultTimeout, http.MethodPut, environmentPath(id, ""), e)
}

// RemoveEnvironment removes a managed environment and its tokens. CodeConflict: servers are in it.
func (c *Client) RemoveEnvironment(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return c.call(ctx, DefaultTimeout, http.MethodDelete, environmentPath(id, ""), nil, nil, nil)
}

// AgentTokens returns the valid tokens of a managed environment's agent, without the tokens, the newest first.
func (c *Client) AgentTokens(ctx context.Context, environmentID string) (*wire.AgentTokens, error) {
	if err := checkID(environmentID); err != nil {
		return nil, err
	}
	return get[wire.AgentTokens](ctx, c, environmentPath(environmentID, "/tokens"), nil)
}

// RotateAgentToken makes a new token for a managed environment's agent; the answer is the only place where it ever
// stands. At most statussync.MaxAgentTokens are valid: the new one and the one before.
func (c *Client) RotateAgentToken(ctx context.Context, environmentID string) (*wire.NewAgentToken, error) {
	if err := checkID(environmentID); err != nil {
		return nil, err
	}
	return send[wire.NewAgentToken](ctx, c, DefaultTimeout, http.MethodPost, environmentPath(environmentID, "/tokens"), nil)
}

// DropAgentToken ends a token of a managed environment's agent, by its id. The next heartbeat with it is refused.
func (c *Client) DropAgentToken(ctx context.Context, environmentID, tokenID string) error {
	for _, id := range []string{environmentID, tokenID} {
		if err := checkID(id); err != nil {
			return err
		}
	}
	return c.call(ctx, DefaultTimeout, http.MethodDelete, environmentPath(environmentID, "/tokens/"+url.PathEscape(tokenID)), nil, nil, nil)
}
