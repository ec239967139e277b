package client

import (
	"context"
	"net/http"
	"time"

	"github.com/agentopia/statussync/wire"
)

// OperationTimeout takes the place of DefaultTimeout where the service reads files and asks agents before it answers.
const OperationTimeout = 3 * time.Minute

// Reload has the service read its configuration again and returns what that changed. It needs the role admin. The error
// has code CodeInvalid where the configuration is wrong, with every fault in its Problem, and then nothing has changed.
func (c *Client) Reload(ctx context.Context) (*wire.Reload, error) {
	return send[wire.Reload](ctx, c, OperationTimeout, http.MethodPost, wire.BasePath+"/reload", nil)
}

// Restart has the service stop and start again with its configuration read anew. It needs the role admin, and returns when
// the request is accepted: from then on Ready says that the service is not ready, until it is again. The error is like
// that of Reload.
func (c *Client) Restart(ctx context.Context) error {
	return c.call(ctx, OperationTimeout, http.MethodPost, wire.BasePath+"/restart", nil, nil, nil)
}

// Probing returns whether servers are probed.
func (c *Client) Probing(ctx context.Context) (*wire.Probing, error) {
	return get[wire.Probing](ctx, c, wire.BasePath+"/probing", nil)
}

// SetProbing starts or stops the monitoring, which outlasts restarts. It needs the role admin.
func (c *Client) SetProbing(ctx context.Context, enabled bool) (*wire.Probing, error) {
	return send[wire.Probing](ctx, c, DefaultTimeout, http.MethodPut, wire.BasePath+"/probing", wire.ProbingRequest{Enabled: enabled})
}

// SyncAll has the service read all registries again and ask all agents, and returns what followed. It needs the role
// operator. What could not be read is in Sync.Failed.
func (c *Client) SyncAll(ctx context.Context) (*wire.Sync, error) {
	return send[wire.Sync](ctx, c, OperationTimeout, http.MethodPost, wire.BasePath+"/sync", nil)
}

// SyncServer is SyncAll for the registry of one server and its agent.
func (c *Client) SyncServer(ctx context.Context, id string) (*wire.Sync, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return send[wire.Sync](ctx, c, OperationTimeout, http.MethodPost, serverPath(id, "/sync"), nil)
}
