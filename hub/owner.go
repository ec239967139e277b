package hub

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
)

// SetPolicy replaces the numbers of the rules. When it returns, what follows from them is durable and visible; the updates
// among that are returned. An invalid policy is a *statussync.Error that names the field, and changes nothing.
//
// When ctx ends first, the policy is replaced all the same.
func (h *Hub) SetPolicy(ctx context.Context, p engine.Policy) ([]*statussync.Entry, error) {
	return h.Reconfigure(ctx, &p)
}

// Reconfigure is SetPolicy (nil: the policy stays) and Submit in one step: nothing is concluded in between, and what
// follows is told in one batch.
func (h *Hub) Reconfigure(ctx context.Context, p *engine.Policy, obs ...statussync.Observation) ([]*statussync.Entry, error) {
	m, err := h.message(obs, &receipt{done: make(chan struct{})})
	if err != nil {
		return nil, err
	}
	if p != nil {
		if err := p.Validate(); err != nil {
			return nil, fmt.Errorf("hub: policy: %w", err)
		}
		own := *p
		m.policy = &own
	}
	return h.submit(ctx, m)
}

const (
	notePrefix = "owner/" // before the ids of the owner's notes, so that they are never taken for the hub's own
	maxNoteID  = 64
	maxNote    = 4096
)

// Remember keeps a note of the hub's owner in the store, under an id, in the place of an earlier one; nil deletes it. When
// it returns the note is as durable as an entry. The id has at most 64 bytes, the note at most 4 KiB; both are few and
// chosen by the program, never by its users.
func (h *Hub) Remember(ctx context.Context, id string, note []byte) error {
	if id == "" || len(id) > maxNoteID || len(note) > maxNote {
		return statussync.Invalid("note", "is too large, or has no id")
	}
	note = slices.Clone(note)
	m, err := h.message(nil, &receipt{done: make(chan struct{})})
	if err != nil {
		return err
	}
	m.note = &statussync.Record{Kind: statussync.RecordHub, ID: notePrefix + id, Data: note}
	if _, err := h.submit(ctx, m); err != nil {
		return err
	}
	if note == nil {
		h.notes.Delete(notePrefix + id)
	} else {
		h.notes.Store(notePrefix+id, note)
	}
	return nil
}

// Remembered returns the note under an id, nil where there is none. It is known once Started is closed. The caller must
// not change it.
func (h *Hub) Remembered(id string) []byte {
	if n, ok := h.notes.Load(notePrefix + id); ok {
		return n.([]byte)
	}
	return nil
}

// Synced notes that its owner has just read all registries again, and how long that took, for SyncMetrics.
func (h *Hub) Synced(took time.Duration) { h.lastSync.Store(&syncMark{at: h.Now(), took: took}) }
