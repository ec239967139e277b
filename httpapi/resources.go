package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Resources is what this package needs of the counts of what agents tell of their hosts. It is safe for concurrent use.
type Resources interface {
	// Resources returns what an environment's agent told in the last window; step 0 is the smallest that is allowed.
	// known: something is kept of the environment. CodeInvalid is located at window or step.
	Resources(ctx context.Context, id string, window, step time.Duration) (r statussync.ResourceReport, known bool, err error)
}

type resourcesInput struct {
	ID     string `path:"id"`
	Window string `query:"window" default:"24h" doc:"How far back: Go's durations and d for days, at most 90d. Beyond 48h it is made from hours."`
	Step   string `query:"step" example:"5m" doc:"A whole number of minutes; of hours where the window is longer than 48h. Default: 1m, or 1h."`
}

// resourceRoutes mounts what Options.Resources answers.
func (a *API) resourceRoutes() {
	register(a, huma.Operation{
		Method: http.MethodGet, Path: wire.BasePath + "/environments/{id}/resources", OperationID: "get-resources", Tags: []string{"environments"},
		Summary: "CPU, memory and disk of an environment, by steps of time",
	}, accessViewer, func(ctx context.Context, in *resourcesInput) (*body[wire.ResourceReport], error) {
		window, err := durationParam("window", in.Window)
		if err != nil {
			return nil, err
		}
		var step time.Duration
		if in.Step != "" {
			if step, err = durationParam("step", in.Step); err != nil {
				return nil, err
			}
		}
		r, known, err := a.opts.Resources.Resources(ctx, in.ID, window, step)
		if err != nil {
			return nil, inParam(err)
		}
		if !known { // one that was removed is answered while something is kept of it; one that never was is not
			if _, err := a.opts.Hub.Environment(in.ID); err != nil {
				return nil, err
			}
		}
		return &body[wire.ResourceReport]{wire.FromResourceReport(&r)}, nil
	})
}
