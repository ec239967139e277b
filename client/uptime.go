package client

import (
	"context"
	"iter"
	"net/url"

	"github.com/agentopia/statussync/wire"
)

// UptimeQuery selects servers as ServerQuery does, and how far back.
type UptimeQuery struct {
	ServerQuery
	Window string // "30d", "24h"; empty: as the service decides (30d)
}

// Uptime returns one page of the uptimes of the servers that q selects, by id; on the first page with the total of all
// that are selected.
func (c *Client) Uptime(ctx context.Context, q UptimeQuery) (*wire.UptimePage, error) {
	v := q.values()
	setText(v, "window", q.Window)
	return get[wire.UptimePage](ctx, c, wire.BasePath+"/uptime", v)
}

// ServerUptime returns one server's uptime in the last window ("30d"); empty: as the service decides. A server that was
// removed is answered as long as something is kept of it.
func (c *Client) ServerUptime(ctx context.Context, id, window string) (*wire.Uptime, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	v := make(url.Values)
	setText(v, "window", window)
	return get[wire.Uptime](ctx, c, serverPath(id, "/uptime"), v)
}

// IncidentQuery selects incidents.
type IncidentQuery struct {
	ServerID string // empty: of all servers
	Window   string // that they overlap: "30d"; empty: as the service decides (30d)
	Limit    int    // of one page; 0: as the service decides
	Cursor   string // NextCursor of the page before; empty: the newest
}

// Incidents returns one page of incidents, the newest first.
func (c *Client) Incidents(ctx context.Context, q IncidentQuery) (*wire.Page[wire.Incident], error) {
	path := wire.BasePath + "/incidents"
	if q.ServerID != "" {
		if err := checkID(q.ServerID); err != nil {
			return nil, err
		}
		path = serverPath(q.ServerID, "/incidents")
	}
	v := make(url.Values)
	setText(v, "window", q.Window)
	setPage(v, q.Limit, q.Cursor)
	return get[wire.Page[wire.Incident]](ctx, c, path, v)
}

// AllIncidents yields incidents, the newest first, page by page. After an error it stops.
func (c *Client) AllIncidents(ctx context.Context, q IncidentQuery) iter.Seq2[wire.Incident, error] {
	return pages(q.Cursor, func(cursor string) (*wire.Page[wire.Incident], error) {
		q.Cursor = cursor
		return c.Incidents(ctx, q)
	})
}

// Probes returns what one server's probes gave in the last window ("24h"), by steps of time ("1m"); empty: as the
// service decides.
func (c *Client) Probes(ctx context.Context, id, window, step string) (*wire.ProbeReport, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	v := make(url.Values)
	setText(v, "window", window)
	setText(v, "step", step)
	return get[wire.ProbeReport](ctx, c, serverPath(id, "/probes"), v)
}
