package httpapi

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Maintenance keeps maintenance windows; the hub does. Its methods are safe for concurrent use; their errors are
// *statussync.Error, located by the field of the window at fault.
type Maintenance interface {
	// SetMaintenance defines a window and returns it once it is durable and in force; CodeInvalid, CodeNotFound for a server
	// or an environment that it names, CodeTooLarge.
	SetMaintenance(ctx context.Context, m statussync.Maintenance) (statussync.MaintenanceView, error)
	// EndMaintenance removes a window, or ends the occurrence that is running; CodeNotFound, CodeConflict.
	EndMaintenance(ctx context.Context, id, actor string, occurrenceOnly bool) error
	// Maintenances returns all windows.
	Maintenances() []statussync.MaintenanceView
	// Maintenance returns one window; CodeNotFound.
	Maintenance(id string) (statussync.MaintenanceView, error)
}

type addMaintenanceInput struct{ Body wire.MaintenanceRequest }

type windowInput struct {
	ID string `path:"id" doc:"The window's id."`
}

type endMaintenanceInput struct {
	ID         string `path:"id" doc:"The window's id."`
	Occurrence bool   `query:"occurrence" doc:"End only the occurrence that is running; a recurring window goes on with the next one."`
}

// maintenanceRoutes mounts maintenance windows.
func (a *API) maintenanceRoutes() {
	m := a.opts.Maintenance
	op := func(method, path, id, summary string, status int) huma.Operation {
		return huma.Operation{
			Method: method, Path: wire.BasePath + "/maintenance" + path, OperationID: id, Tags: []string{"maintenance"}, Summary: summary,
			DefaultStatus: status, MaxBodyBytes: maxWindow,
		}
	}
	register(a, op(http.MethodPost, "", "add-maintenance", "Define a maintenance window, once or recurring", http.StatusCreated), accessOperator,
		func(ctx context.Context, in *addMaintenanceInput) (*created[wire.Maintenance], error) {
			w, err := in.Body.Maintenance()
			if err != nil {
				return nil, inBody(err)
			}
			w.Actor = requestIn(ctx).cred.Name
			v, err := m.SetMaintenance(ctx, w)
			if err != nil {
				return nil, inBody(err)
			}
			return &created[wire.Maintenance]{wire.BasePath + "/maintenance/" + url.PathEscape(v.Window.ID), wire.FromMaintenance(&v)}, nil
		})
	register(a, op(http.MethodGet, "", "list-maintenance", "Maintenance windows that are open or will be, by id", http.StatusOK), accessViewer, a.listMaintenance)
	register(a, op(http.MethodGet, "/{id}", "get-maintenance", "One maintenance window", http.StatusOK), accessViewer,
		func(_ context.Context, in *windowInput) (*body[wire.Maintenance], error) {
			v, err := m.Maintenance(in.ID)
			if err != nil {
				return nil, err
			}
			return &body[wire.Maintenance]{wire.FromMaintenance(&v)}, nil
		})
	register(a, op(http.MethodDelete, "/{id}", "end-maintenance", "End a maintenance window and remove it", http.StatusNoContent), accessOperator,
		func(ctx context.Context, in *endMaintenanceInput) (*empty, error) {
			return nil, m.EndMaintenance(ctx, in.ID, requestIn(ctx).cred.Name, in.Occurrence)
		})
}

// maxWindow bounds the body of a window, in bytes: 1,000 servers, environments and labels with ids of usual length.
const maxWindow = 256 << 10

func (a *API) listMaintenance(_ context.Context, in *pageInput) (*body[wire.Page[wire.Maintenance]], error) {
	after, err := afterParam(in.Cursor)
	if err != nil {
		return nil, err
	}
	head := a.opts.Hub.Ready().Head // before the list: who goes on from here misses nothing
	views := a.opts.Maintenance.Maintenances()
	slices.SortFunc(views, func(x, y statussync.MaintenanceView) int { return cmp.Compare(x.Window.ID, y.Window.ID) })
	out := wire.Page[wire.Maintenance]{Items: []wire.Maintenance{}, Cursor: head.String()}
	limit := limitParam(in.Limit)
	for i := range views {
		if views[i].Window.ID <= after {
			continue
		}
		if len(out.Items) == limit {
			out.NextCursor = afterPrefix + out.Items[limit-1].ID
			break
		}
		out.Items = append(out.Items, wire.FromMaintenance(&views[i]))
	}
	return &body[wire.Page[wire.Maintenance]]{out}, nil
}
