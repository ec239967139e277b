package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync/wire"
)

// Eraser makes the service forget a person. It is safe for concurrent use.
type Eraser interface {
	// Erase does what docs/operations.md says, and returns when it is done and the service is back. CodeInvalid: not
	// exactly one name; CodeConflict: another erasure is under way; CodeUnavailable: the store could not be rewritten, and
	// is as it was.
	Erase(ctx context.Context, r wire.EraseRequest) (wire.EraseReport, error)
}

// eraseTimeout is how long an erasure may take: it reads the whole store and writes it anew.
const eraseTimeout = 30 * time.Minute

type eraseInput struct{ Body wire.EraseRequest }

// eraseRoutes mounts POST /api/v1/erase.
func (a *API) eraseRoutes() {
	register(a, huma.Operation{
		Method: http.MethodPost, Path: wire.PathErase, OperationID: "erase", Tags: []string{"service"},
		Summary:     "Forget a person",
		Description: "Takes the name of an owner or an actor out of the store (docs/operations.md). The service is away for as long as that takes, and clients resync.",
		Metadata:    map[string]any{metaTimeout: eraseTimeout}, MaxBodyBytes: maxDefinition,
	}, accessAdmin, func(ctx context.Context, in *eraseInput) (*body[wire.EraseReport], error) {
		r, err := a.opts.Eraser.Erase(ctx, in.Body)
		if err != nil {
			return nil, inBody(err)
		}
		// Who it was is not to be kept anywhere, not even in a log.
		a.log.Info("a person was erased", "by", requestIn(ctx).cred.Name, "request_id", requestIn(ctx).id, "dry_run", r.DryRun, "entries", r.Entries)
		return &body[wire.EraseReport]{r}, nil
	})
}
