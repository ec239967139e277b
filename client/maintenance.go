package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"

	"github.com/agentopia/statussync/wire"
)

func maintenancePath(id string) string { return wire.BasePath + "/maintenance/" + url.PathEscape(id) }

// AddMaintenance defines a maintenance window, once or recurring. It needs the role operator, and is durable and in force
// when it returns. The error has code CodeInvalid where the window is wrong, and CodeNotFound where it names a server or an
// environment that does not exist.
func (c *Client) AddMaintenance(ctx context.Context, m wire.MaintenanceRequest) (*wire.Maintenance, error) {
	return send[wire.Maintenance](ctx, c, DefaultTimeout, http.MethodPost, wire.BasePath+"/maintenance", m)
}

// Maintenances returns one page of the maintenance windows that are open or will be, by id.
func (c *Client) Maintenances(ctx context.Context, limit int, cursor string) (*wire.Page[wire.Maintenance], error) {
	v := make(url.Values)
	setPage(v, limit, cursor)
	return get[wire.Page[wire.Maintenance]](ctx, c, wire.BasePath+"/maintenance", v)
}

// AllMaintenances yields all maintenance windows, page by page. After an error it stops.
func (c *Client) AllMaintenances(ctx context.Context) iter.Seq2[wire.Maintenance, error] {
	return pages("", func(cursor string) (*wire.Page[wire.Maintenance], error) { return c.Maintenances(ctx, 0, cursor) })
}

// Maintenance returns one maintenance window.
func (c *Client) Maintenance(ctx context.Context, id string) (*wire.Maintenance, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return get[wire.Maintenance](ctx, c, maintenancePath(id), nil)
}

// EndMaintenance ends a maintenance window and removes it. With occurrenceOnly a recurring one goes on with its next
// occurrence; CodeConflict: none is running.
func (c *Client) EndMaintenance(ctx context.Context, id string, occurrenceOnly bool) error {
	if err := checkID(id); err != nil {
		return err
	}
	var q url.Values
	if occurrenceOnly {
		q = url.Values{"occurrence": {"true"}}
	}
	return c.call(ctx, DefaultTimeout, http.MethodDelete, maintenancePath(id), q, nil, nil)
}
