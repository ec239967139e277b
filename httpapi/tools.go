package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Tools knows what servers list as their tools, and keeps which sets are pinned; the hub does. Its methods are safe for
// concurrent use; their errors are *statussync.Error.
type Tools interface {
	// Tools returns what is known of a server's tools; CodeNotFound.
	Tools(ctx context.Context, id string) (statussync.ToolsView, error)
	// PinTools pins the current set, once durable; CodeNotFound, CodeConflict where hash is given and not the current one.
	PinTools(ctx context.Context, id, hash, actor string) (statussync.ToolsView, error)
	// UnpinTools ends a pin; CodeNotFound.
	UnpinTools(ctx context.Context, id, actor string) (statussync.ToolsView, error)
}

// ToolLooker reads a server's tools on demand.
type ToolLooker interface {
	// Now reads the list and returns once what follows is visible to readers; CodeNotFound for a server that has none. It
	// ends when ctx does, and is safe for concurrent use.
	Now(ctx context.Context, serverID string) error
}

type pinInput struct {
	ID   string           `path:"id"`
	Body *wire.PinRequest `required:"false"`
}

type driftInput struct {
	ID     string `path:"id"`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Cursor string `query:"cursor" doc:"next_cursor of the page before."`
}

func (a *API) toolRoutes() {
	op := func(method, path, id, summary string) huma.Operation {
		return huma.Operation{Method: method, Path: wire.BasePath + "/servers/{id}" + path, OperationID: id, Tags: []string{"tools"}, Summary: summary}
	}
	t := a.opts.Tools
	answer := func(v statussync.ToolsView, err error) (*body[wire.Tools], error) {
		if err != nil {
			return nil, err
		}
		return &body[wire.Tools]{wire.FromTools(&v)}, nil
	}
	register(a, op(http.MethodGet, "/tools", "get-tools", "The tools that a server lists, and which are pinned"), accessViewer,
		func(ctx context.Context, in *idInput) (*body[wire.Tools], error) { return answer(t.Tools(ctx, in.ID)) })
	register(a, op(http.MethodPut, "/tools/pin", "pin-tools", "Pin the current tools: another set makes the server degraded"), accessOperator,
		func(ctx context.Context, in *pinInput) (*body[wire.Tools], error) {
			hash := ""
			if in.Body != nil {
				hash = in.Body.Hash
			}
			v, err := t.PinTools(ctx, in.ID, hash, requestIn(ctx).cred.Name)
			if err != nil {
				return nil, inBody(err)
			}
			return answer(v, nil)
		})
	register(a, op(http.MethodDelete, "/tools/pin", "unpin-tools", "End a pin"), accessOperator,
		func(ctx context.Context, in *idInput) (*body[wire.Tools], error) {
			return answer(t.UnpinTools(ctx, in.ID, requestIn(ctx).cred.Name))
		})
	if look := a.opts.ToolLooker; look != nil {
		now := op(http.MethodPost, "/tools", "read-tools", "Read the tools of one server now")
		now.Metadata = map[string]any{metaTimeout: 90 * time.Second}
		register(a, now, accessOperator, func(ctx context.Context, in *idInput) (*body[wire.Tools], error) {
			if _, err := a.opts.Hub.Server(in.ID); err != nil {
				return nil, err
			}
			if err := look.Now(ctx, in.ID); statussync.CodeOf(err) == statussync.CodeNotFound {
				return nil, statussync.NewError(statussync.CodeConflict, "the server is not probed as an MCP server: it has no list of tools", nil)
			} else if ctx.Err() != nil {
				return nil, ctx.Err()
			} // that the list could not be read is part of the answer
			return answer(t.Tools(ctx, in.ID))
		})
	}
	register(a, op(http.MethodGet, "/drift", "list-drift", "How a server's tools changed, newest first"), accessViewer, a.drift)
}

// drift answers the entries of kind tool_drift, as far back as the journal reaches.
func (a *API) drift(ctx context.Context, in *driftInput) (*body[wire.Page[encoded]], error) {
	before, err := cursorParam(queryIn(ctx), "cursor")
	if err != nil {
		return nil, err
	}
	limit := limitParam(in.Limit)
	list, err := a.opts.Hub.History(ctx, statussync.HistoryQuery{ServerID: in.ID, Kind: statussync.KindToolDrift, Before: before.Seq, Limit: limit + 1})
	if err != nil {
		return nil, err
	}
	out := wire.Page[encoded]{Cursor: a.opts.Hub.Ready().Head.String()}
	if len(list) > limit { // one more tells whether a page follows
		list = list[:limit]
		out.NextCursor = list[limit-1].Cursor().String()
	}
	out.Items = encodedOf(list)
	return &body[wire.Page[encoded]]{out}, nil
}
