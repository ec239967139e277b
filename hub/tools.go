package hub

import (
	"context"

	"github.com/agentopia/statussync"
)

// Tools returns what is known of a server's tools. It is answered by the writer, and told when what it speaks of is
// durable. CodeNotFound.
func (h *Hub) Tools(ctx context.Context, id string) (statussync.ToolsView, error) {
	var out statussync.ToolsView
	var found bool
	err := h.ask(ctx, func(w *writer) func() {
		v, ok := w.eng.Tools(id)
		return func() { out, found = v, ok }
	})
	if err != nil {
		return statussync.ToolsView{}, err
	}
	if !found {
		return statussync.ToolsView{}, statussync.NotFound("server", id)
	}
	return out, nil
}

// PinTools makes the tools that a server lists now the ones that it should have, and returns what is known of them once
// that is on the disk. CodeConflict: hash is given and is not that of the current set, or no set is known yet; nothing has
// changed then. CodeNotFound.
func (h *Hub) PinTools(ctx context.Context, id, hash, actor string) (statussync.ToolsView, error) {
	if _, err := h.Submit(ctx, &statussync.ToolsPin{ServerID: id, Hash: hash, Actor: actor}); err != nil {
		return statussync.ToolsView{}, err
	}
	return h.Tools(ctx, id)
}

// UnpinTools ends the pin of a server's tools, and returns what is known of them once that is on the disk. CodeNotFound
// for an unknown server, or where nothing is pinned.
func (h *Hub) UnpinTools(ctx context.Context, id, actor string) (statussync.ToolsView, error) {
	if _, err := h.Submit(ctx, &statussync.ToolsUnpin{ServerID: id, Actor: actor}); err != nil {
		return statussync.ToolsView{}, err
	}
	return h.Tools(ctx, id)
}

// Up reports whether a server is running, and not unhealthy, by what was last told of it. It answers from memory.
func (h *Hub) Up(id string) bool {
	v, err := h.view(id)
	return err == nil && v.Status.State == statussync.StateRunning && v.Status.Health != statussync.HealthUnhealthy
}
