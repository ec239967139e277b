package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Tools returns what a server lists as its tools, and which set is pinned.
func (c *Client) Tools(ctx context.Context, id string) (*wire.Tools, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return get[wire.Tools](ctx, c, serverPath(id, "/tools"), nil)
}

// ReadTools has a server asked for its tools now, and returns what is known then; LastError says that it gave no list. It
// needs the role operator. CodeConflict: the server is not probed as an MCP server.
func (c *Client) ReadTools(ctx context.Context, id string) (*wire.Tools, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return send[wire.Tools](ctx, c, ProbeTimeout, http.MethodPost, serverPath(id, "/tools"), nil)
}

// PinTools makes a server's current tools the ones that it should have: another set makes it degraded. It needs the role
// operator. hash, if not empty, is the one of the set that was looked at; CodeConflict: the server lists another one by
// now, or was never asked.
func (c *Client) PinTools(ctx context.Context, id, hash string) (*wire.Tools, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return send[wire.Tools](ctx, c, DefaultTimeout, http.MethodPut, serverPath(id, "/tools/pin"), wire.PinRequest{Hash: hash})
}

// UnpinTools ends a pin. It needs the role operator. CodeNotFound: nothing is pinned.
func (c *Client) UnpinTools(ctx context.Context, id string) (*wire.Tools, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return send[wire.Tools](ctx, c, DefaultTimeout, http.MethodDelete, serverPath(id, "/tools/pin"), nil)
}

// Drift returns one page of the entries that tell how a server's tools changed, newest first.
func (c *Client) Drift(ctx context.Context, id string, limit int, cursor string) (*wire.Page[*statussync.Entry], error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	v := make(url.Values)
	setPage(v, limit, cursor)
	return get[wire.Page[*statussync.Entry]](ctx, c, serverPath(id, "/drift"), v)
}

// AllDrift yields the entries that tell how a server's tools changed, newest first, page by page. After an error it stops.
func (c *Client) AllDrift(ctx context.Context, id string) iter.Seq2[*statussync.Entry, error] {
	return pages("", func(cursor string) (*wire.Page[*statussync.Entry], error) { return c.Drift(ctx, id, 0, cursor) })
}
