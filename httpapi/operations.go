package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync/wire"
)

// Control is how the running service is operated. Its methods are safe for concurrent use; their errors are
// *statussync.Error, or join several. actor is the name of the credential.
type Control interface {
	// Reload reads the configuration again and puts it in force; CodeInvalid names every fault by file and line, and then
	// nothing has changed. CodeConflict: the service has no configuration file, or the file defines what is managed.
	Reload(ctx context.Context, actor string) (wire.Reload, error)
	// Restart checks that the configuration is good, and returns; then everything is stopped and started again.
	Restart(ctx context.Context, actor string) error
	// Probing returns whether servers are probed. It answers from memory.
	Probing() wire.Probing
	// SetProbing starts and stops the monitoring; it is durable when it returns.
	SetProbing(ctx context.Context, enabled bool, actor string) (wire.Probing, error)
}

// Syncer reads again what defines and reports servers. Its methods are safe for concurrent use. What could not be read is
// named in the answer, the rest goes on; an error means that nothing could be done.
type Syncer interface {
	// SyncAll reads every registry and asks every agent.
	SyncAll(ctx context.Context) (wire.Sync, error)
	// SyncServer reads the registry that defines a server and asks its agent; CodeNotFound.
	SyncServer(ctx context.Context, id string) (wire.Sync, error)
}

// Times that handlers may take: a reload waits for one before it, a sync for agents that don't answer.
const (
	reloadTimeout  = 2 * time.Minute
	probingTimeout = 20 * time.Second
	syncTimeout    = 2 * time.Minute
)

// syncResult is wire.Sync with updates that describe themselves.
type syncResult struct {
	Updates      []encoded          `json:"updates" nullable:"false" doc:"Updates of statuses that it caused, at most 1,000; updates_count counts all."`
	UpdatesCount int                `json:"updates_count"`
	Failed       []wire.SyncFailure `json:"failed" nullable:"false" doc:"At most 1,000; failed_count counts all."`
	FailedCount  int                `json:"failed_count"`
	DurationMS   float64            `json:"duration_ms"`
}

func fromSync(s wire.Sync, err error) (*body[syncResult], error) {
	if err != nil {
		return nil, err
	}
	out := syncResult{
		Updates: make([]encoded, 0, len(s.Updates)), UpdatesCount: s.UpdatesCount, Failed: s.Failed, FailedCount: s.FailedCount,
		DurationMS: s.DurationMS,
	}
	for _, e := range s.Updates {
		out.Updates = append(out.Updates, e.AppendJSON(nil))
	}
	return &body[syncResult]{out}, nil
}

type probingInput struct{ Body wire.ProbingRequest }

// operationRoutes mounts what operates the service itself.
func (a *API) operationRoutes() {
	op := func(method, path, id, tag, summary string, timeout time.Duration) huma.Operation {
		o := huma.Operation{Method: method, Path: wire.BasePath + path, OperationID: id, Tags: []string{tag}, Summary: summary}
		if timeout > 0 {
			o.Metadata = map[string]any{metaTimeout: timeout}
		}
		return o
	}
	if c := a.opts.Control; c != nil {
		register(a, op(http.MethodPost, "/reload", "reload", "service", "Read the configuration again and put it in force; a bad one changes nothing", reloadTimeout), accessAdmin,
			func(ctx context.Context, _ *empty) (*body[wire.Reload], error) {
				r, err := c.Reload(ctx, requestIn(ctx).cred.Name)
				if err != nil {
					return nil, err
				}
				return &body[wire.Reload]{r}, nil
			})
		restart := op(http.MethodPost, "/restart", "restart", "service", "Stop everything and start again with the configuration read anew; /readyz says when it is done", reloadTimeout)
		restart.DefaultStatus = http.StatusAccepted
		register(a, restart, accessAdmin, func(ctx context.Context, _ *empty) (*body[wire.Restarting], error) {
			if err := c.Restart(ctx, requestIn(ctx).cred.Name); err != nil {
				return nil, err
			}
			return &body[wire.Restarting]{wire.Restarting{Status: "restarting"}}, nil
		})
		register(a, op(http.MethodGet, "/probing", "get-probing", "service", "Whether servers are probed", 0), accessViewer,
			func(context.Context, *empty) (*body[wire.Probing], error) {
				return &body[wire.Probing]{c.Probing()}, nil
			})
		register(a, op(http.MethodPut, "/probing", "set-probing", "service", "Start or stop the monitoring", probingTimeout), accessAdmin,
			func(ctx context.Context, in *probingInput) (*body[wire.Probing], error) {
				p, err := c.SetProbing(ctx, in.Body.Enabled, requestIn(ctx).cred.Name)
				if err != nil {
					return nil, err
				}
				return &body[wire.Probing]{p}, nil
			})
	}
	if s := a.opts.Syncer; s != nil {
		register(a, op(http.MethodPost, "/sync", "sync-all", "servers", "Read all registries again and ask all agents", syncTimeout), accessOperator,
			func(ctx context.Context, _ *empty) (*body[syncResult], error) { return fromSync(s.SyncAll(ctx)) })
		register(a, op(http.MethodPost, "/servers/{id}/sync", "sync-server", "servers", "Read the registry of one server again and ask its agent", syncTimeout), accessOperator,
			func(ctx context.Context, in *idInput) (*body[syncResult], error) {
				return fromSync(s.SyncServer(ctx, in.ID))
			})
	}
}
