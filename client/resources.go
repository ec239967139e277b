package client

import (
	"context"
	"net/url"

	"github.com/agentopia/statussync/wire"
)

// Resources returns CPU, memory and disk of one environment in the last window ("24h"), by steps of time ("5m"); empty:
// as the service decides.
func (c *Client) Resources(ctx context.Context, environment, window, step string) (*wire.ResourceReport, error) {
	if err := checkID(environment); err != nil {
		return nil, err
	}
	v := make(url.Values)
	setText(v, "window", window)
	setText(v, "step", step)
	return get[wire.ResourceReport](ctx, c, wire.BasePath+"/environments/"+url.PathEscape(environment)+"/resources", v)
}

// Timeline returns how one server's time was spent in the last window ("30d"), as stretches of time; empty: as the
// service decides. A server that was removed is answered as long as something is kept of it.
func (c *Client) Timeline(ctx context.Context, id, window string) (*wire.Timeline, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	v := make(url.Values)
	setText(v, "window", window)
	return get[wire.Timeline](ctx, c, serverPath(id, "/timeline"), v)
}
