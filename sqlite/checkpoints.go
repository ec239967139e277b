package sqlite

import (
	"context"

	"github.com/agentopia/statussync"
)

// metaCheckpoint begins the keys under which outlets' checkpoints stand in the history's meta table.
const metaCheckpoint = "checkpoint:"

// Checkpoint returns the position in the journal that an outlet of that name stored last; the zero Cursor where it has none.
func (h *History) Checkpoint(ctx context.Context, name string) (statussync.Cursor, error) {
	if err := h.readable(); err != nil {
		return statussync.Cursor{}, err
	}
	text, _, err := h.meta(ctx, h.f.reads)
	if err != nil {
		return statussync.Cursor{}, explain(h.f.path, "reading", err)
	}
	var c statussync.Cursor
	return c, c.UnmarshalText([]byte(text[metaCheckpoint+name]))
}

// PutCheckpoint stores the position up to which an outlet is done. A crash of the machine may take the newest: what follows
// an older one is then done again.
func (h *History) PutCheckpoint(ctx context.Context, name string, at statussync.Cursor) error {
	return h.write(ctx, "storing a checkpoint", func(w *writer) error { return w.setMeta(metaCheckpoint+name, at.String()) })
}
