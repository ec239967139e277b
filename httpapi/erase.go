package httpapi

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Eraser makes the service forget a person. It is safe for concurrent use.
type Eraser interface {
	// Erase begins what docs/operations.md says, for which the service stops and starts again, and returns before it does;
	// a dry run is done when it returns, and the service goes on. CodeInvalid: not exactly one name, or the configuration
	// with which the service would start again is wrong; CodeConflict: another erasure or a restart is under way;
	// CodeUnavailable: there is no room for a dry run.
	Erase(ctx context.Context, r wire.EraseRequest) (wire.Erasure, error)
	// Erasure returns how an erasure of this process stands; CodeNotFound.
	Erasure(ctx context.Context, id string) (wire.Erasure, error)
}

// eraseTimeout is how long a dry run may take: it reads the whole store.
const eraseTimeout = 30 * time.Minute

type eraseInput struct{ Body wire.EraseRequest }

type erasureInput struct {
	ID string `path:"id" doc:"The erasure's id."`
}

// erasureAnswer is an erasure with where to ask for it.
type erasureAnswer struct {
	Status   int
	Location string `header:"Location" doc:"Where to ask how it stands."`
	Body     wire.Erasure
}

// eraseRoutes mounts POST /api/v1/erase and GET /api/v1/erase/{id}.
func (a *API) eraseRoutes() {
	begin := huma.Operation{
		Method: http.MethodPost, Path: wire.PathErase, OperationID: "erase", Tags: []string{"service"},
		Summary: "Forget a person",
		Description: "Takes the name of an owner or an actor out of the store (docs/operations.md). The service stops, and starts again when that is done; clients resync. " +
			"The answer comes before, with status running: ask again at its Location, where connections wait meanwhile. A dry run is answered with its report, and the service goes on.",
		Metadata: map[string]any{metaTimeout: eraseTimeout}, MaxBodyBytes: maxDefinition, DefaultStatus: http.StatusAccepted,
	}
	register(a, begin, accessAdmin, func(ctx context.Context, in *eraseInput) (*erasureAnswer, error) {
		e, err := a.opts.Eraser.Erase(ctx, in.Body)
		if err != nil {
			if e := (*statussync.Error)(nil); errors.As(err, &e) && e.Location == "owner" { // others are located in files
				return nil, inBody(err)
			}
			return nil, err
		}
		// Who it was is not to be kept anywhere, not even in a log.
		a.log.Info("the erasure of a person was asked for", "by", requestIn(ctx).cred.Name, "request_id", requestIn(ctx).id, "dry_run", e.DryRun, "erasure", e.ID)
		out := &erasureAnswer{Status: http.StatusAccepted, Location: wire.PathErase + "/" + url.PathEscape(e.ID), Body: e}
		if e.Status != wire.ErasureRunning {
			out.Status = http.StatusOK
		}
		return out, nil
	})
	register(a, huma.Operation{
		Method: http.MethodGet, Path: wire.PathErase + "/{id}", OperationID: "get-erasure", Tags: []string{"service"},
		Summary: "How an erasure stands: the last 10 since the process was started",
	}, accessAdmin, func(ctx context.Context, in *erasureInput) (*body[wire.Erasure], error) {
		e, err := a.opts.Eraser.Erasure(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		return &body[wire.Erasure]{e}, nil
	})
}
