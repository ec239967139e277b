package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql"
)

// DatabaseAgents returns the agents' tokens that the registry of that name was last known to define: environment ids by
// the SHA-256 of the token. Safe for concurrent use.
func (s *Store) DatabaseAgents(ctx context.Context, registry string) (map[[sha256.Size]byte]string, error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil, errClosed
	}
	out := map[[sha256.Size]byte]string{}
	err := each(ctx, s.reads, `SELECT hash, environment_id FROM database_agents WHERE registry = ?`, func(rows *sql.Rows) error {
		var hash []byte
		var env string
		if err := rows.Scan(&hash, &env); err != nil {
			return err
		}
		if len(hash) != sha256.Size {
			return damaged(s.path, "the hash of a token has the wrong length")
		}
		out[[sha256.Size]byte(hash)] = env
		return nil
	}, registry)
	return out, explain(s.path, "reading", err)
}

// SetDatabaseAgents replaces what DatabaseAgents returns, whole or not at all; an empty map removes it. It writes only
// what differs. When it returns nil the change is on the disk, whatever Options.Sync says: a token may have been revoked.
// ctx ends only the wait for the turn to write. Safe for concurrent use.
func (s *Store) SetDatabaseAgents(ctx context.Context, registry string, agents map[[sha256.Size]byte]string) error {
	old, err := s.DatabaseAgents(ctx, registry)
	if err != nil {
		return err
	}
	var list []statement
	for h := range old {
		if _, ok := agents[h]; !ok {
			list = append(list, statement{`DELETE FROM database_agents WHERE registry = ? AND hash = ?`, []any{registry, h[:]}})
		}
	}
	for h, env := range agents {
		if was, ok := old[h]; !ok || was != env {
			list = append(list, statement{`INSERT INTO database_agents (registry, hash, environment_id) VALUES (?, ?, ?)
ON CONFLICT (registry, hash) DO UPDATE SET environment_id = excluded.environment_id`, []any{registry, h[:], env}})
		}
	}
	if len(list) == 0 {
		return nil
	}
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	return s.writeDurably("storing agents' tokens", func(w *writer) error {
		for _, st := range list {
			if err := w.exec(st.query, st.args...); err != nil {
				return err
			}
		}
		return nil
	})
}

// ForgetDatabaseAgents removes the tokens of all registries but these.
func (s *Store) ForgetDatabaseAgents(ctx context.Context, but []string) error {
	var gone []string
	err := each(ctx, s.reads, `SELECT DISTINCT registry FROM database_agents`, func(rows *sql.Rows) error {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
		for _, keep := range but {
			if keep == name {
				return nil
			}
		}
		gone = append(gone, name)
		return nil
	})
	if err != nil {
		return explain(s.path, "reading", err)
	}
	for _, name := range gone {
		if err := s.SetDatabaseAgents(ctx, name, nil); err != nil {
			return err
		}
	}
	return nil
}
