package hub

import (
	"context"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/agentopia/statussync"
)

// SetMaintenance defines a maintenance window, or replaces the one with its id; without an id it gets a new one. What m
// leaves out is filled in by Maintenance.Complete at engine time. It returns the window once it is on the disk and in
// force. CodeInvalid names the field; CodeNotFound: a server or an environment that m names does not exist; CodeTooLarge:
// there are statussync.MaxMaintenances windows.
func (h *Hub) SetMaintenance(ctx context.Context, m statussync.Maintenance) (statussync.MaintenanceView, error) {
	if m.ID == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return statussync.MaintenanceView{}, err
		}
		m.ID = id.String()
	}
	m.Clean()
	if err := m.Complete(h.Now()); err != nil { // also fixes its begin, where that is now
		return statussync.MaintenanceView{}, err
	}
	if _, err := h.Submit(ctx, &statussync.MaintenanceSet{Window: m}); err != nil {
		return statussync.MaintenanceView{}, err
	}
	v, err := h.Maintenance(m.ID)
	if err != nil { // somebody has ended it meanwhile
		v = statussync.MaintenanceView{Window: &m}
	}
	return v, nil
}

// EndMaintenance removes a window and ends the occurrence that is running; with occurrenceOnly a recurring window goes on
// with its next occurrence. CodeNotFound; CodeConflict where only the occurrence is to end and none is running.
func (h *Hub) EndMaintenance(ctx context.Context, id, actor string, occurrenceOnly bool) error {
	_, err := h.Submit(ctx, &statussync.MaintenanceEnd{ID: id, Actor: actor, OccurrenceOnly: occurrenceOnly})
	return err
}

// Maintenances returns all windows that are open or will be, by id.
func (h *Hub) Maintenances() []statussync.MaintenanceView {
	h.reader.mu.RLock()
	defer h.reader.mu.RUnlock()
	return slices.Clone(h.reader.windows)
}

// Maintenance returns one window; CodeNotFound.
func (h *Hub) Maintenance(id string) (statussync.MaintenanceView, error) {
	h.reader.mu.RLock()
	list := h.reader.windows
	h.reader.mu.RUnlock()
	i, ok := slices.BinarySearchFunc(list, id, func(v statussync.MaintenanceView, id string) int { return strings.Compare(v.Window.ID, id) })
	if !ok {
		return statussync.MaintenanceView{}, statussync.NotFound("maintenance window", id)
	}
	return list[i], nil
}
