package registry

import (
	"context"

	"github.com/agentopia/statussync"
)

// WithoutConflicts is Conflicts, and calls do where there are none, before anything is defined here that would make one.
func (m *Manager) WithoutConflicts(ctx context.Context, u *statussync.RegistryUpdate, do func() error) error {
	if err := m.take(ctx); err != nil {
		return err
	}
	defer m.give()
	if err := m.conflictsLocked(u); err != nil {
		return err
	}
	return do()
}

// Reread makes memory and the hub what the store holds, and returns the updates that this caused. An error means that the
// store could not be read, and nothing has changed, or that the hub cannot take it now; Run then tries again.
func (m *Manager) Reread(ctx context.Context) ([]*statussync.Entry, error) {
	if err := m.take(ctx); err != nil {
		return nil, err
	}
	defer m.give()
	if err := m.readLocked(ctx); err != nil {
		return nil, err
	}
	return m.submitLocked(ctx)
}
