package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/agentopia/statussync"
)

// managedVersion is the form in which managed servers and environments are stored; a newer one is refused.
const managedVersion = 1

type storedServer struct {
	V      int
	Server *statussync.Server // without its headers, which have a column of their own
}

type storedEnvironment struct {
	V           int
	Environment *statussync.Environment
}

// Managed returns everything that the managed registry defines, as of one moment; tokens are ordered by the time at
// which they were made.
func (s *Store) Managed(ctx context.Context) (*statussync.Managed, error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil, errClosed
	}
	m, err := s.managed(ctx)
	return m, explain(s.path, "reading", err)
}

func (s *Store) managed(ctx context.Context) (*statussync.Managed, error) {
	tx, err := s.reads.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // it only read
	return readManaged(ctx, tx, s.path)
}

// querier is a connection or transaction that shows one state.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func readManaged(ctx context.Context, tx querier, path string) (*statussync.Managed, error) {
	m := &statussync.Managed{}
	err := each(ctx, tx, `SELECT hash, environment_id, created_at FROM agent_tokens ORDER BY created_at, hash`, func(rows *sql.Rows) error {
		var t statussync.AgentToken
		var hash []byte
		var at int64
		if err := rows.Scan(&hash, &t.EnvironmentID, &at); err != nil {
			return err
		}
		if len(hash) != len(t.Hash) {
			return damaged(path, "a token's hash has the wrong length")
		}
		copy(t.Hash[:], hash)
		t.CreatedAt = time.Unix(0, at).UTC()
		m.Tokens = append(m.Tokens, t)
		return nil
	})
	if err != nil {
		return nil, err
	}
	hasToken := map[string]bool{}
	for i := range m.Tokens {
		hasToken[m.Tokens[i].EnvironmentID] = true
	}
	err = each(ctx, tx, `SELECT id, json FROM managed_environments ORDER BY id`, func(rows *sql.Rows) error {
		var id string
		var data []byte
		var st storedEnvironment
		if err := rows.Scan(&id, &data); err != nil {
			return err
		}
		if err := json.Unmarshal(data, &st); err != nil || st.Environment == nil || st.V < 1 || st.V > managedVersion {
			return unreadable(path, "environment", id)
		}
		e := *st.Environment
		e.ID, e.Origin, e.HasToken = id, statussync.OriginManaged, hasToken[id]
		m.Environments = append(m.Environments, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = each(ctx, tx, `SELECT id, json, headers FROM managed_servers ORDER BY id`, func(rows *sql.Rows) error {
		var id string
		var data, headers []byte
		var st storedServer
		if err := rows.Scan(&id, &data, &headers); err != nil {
			return err
		}
		if err := json.Unmarshal(data, &st); err != nil || st.Server == nil || st.V < 1 || st.V > managedVersion {
			return unreadable(path, "server", id)
		}
		v := *st.Server
		v.ID, v.Origin = id, statussync.OriginManaged
		if len(headers) > 0 {
			if json.Unmarshal(headers, &v.Probe.Headers) != nil { // its own error would show a secret
				return unreadable(path, "server", id)
			}
		}
		m.Servers = append(m.Servers, v)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

func unreadable(path, kind, id string) error {
	return damaged(path, fmt.Sprintf("the managed %s %q cannot be read; was it written by a newer version of this program?", kind, id))
}

func each(ctx context.Context, tx querier, query string, f func(*sql.Rows) error, args ...any) error {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	for err == nil && rows.Next() {
		err = f(rows)
	}
	return errors.Join(err, rows.Err(), rows.Close())
}

// ChangeManaged makes a change of the managed registry durable, whole or not at all. When it returns nil the change is
// on the disk, whatever Options.Sync says: it is what a person was told, and may have revoked a token. ctx ends only the
// wait for the turn to write. After an error the change may yet be found when the registry is read again, whole.
func (s *Store) ChangeManaged(ctx context.Context, c *statussync.ManagedChange) error {
	list, err := managedStatements(c)
	if err != nil || len(list) == 0 {
		return err
	}
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	return s.writeDurably("changing the registry", func(w *writer) error {
		for _, st := range list {
			if err := w.exec(st.query, st.args...); err != nil {
				return err
			}
		}
		return nil
	})
}

type statement struct {
	query string
	args  []any
}

// managedStatements are what makes a change.
func managedStatements(c *statussync.ManagedChange) ([]statement, error) {
	var list []statement
	add := func(query string, args ...any) { list = append(list, statement{query, args}) }
	for _, id := range c.RemoveServers {
		add(`DELETE FROM managed_servers WHERE id = ?`, id)
	}
	for _, id := range c.RemoveEnvironments {
		add(`DELETE FROM agent_tokens WHERE environment_id = ?`, id)
		add(`DELETE FROM managed_environments WHERE id = ?`, id)
	}
	for _, h := range c.RemoveTokens {
		add(`DELETE FROM agent_tokens WHERE hash = ?`, h[:])
	}
	for i := range c.PutEnvironments {
		e := c.PutEnvironments[i]
		data, err := json.Marshal(storedEnvironment{managedVersion, &e})
		if err != nil || e.ID == "" {
			return nil, statussync.Invalid(fmt.Sprintf("environments[%d]", i), "cannot be stored")
		}
		add(`INSERT INTO managed_environments (id, json) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET json = excluded.json`, e.ID, data)
	}
	for i := range c.PutServers {
		v := c.PutServers[i]
		data, err := json.Marshal(storedServer{managedVersion, &v})
		if err != nil || v.ID == "" {
			return nil, statussync.Invalid(fmt.Sprintf("servers[%d]", i), "cannot be stored")
		}
		var headers any
		if len(v.Probe.Headers) > 0 {
			if headers, err = json.Marshal(v.Probe.Headers); err != nil {
				return nil, statussync.Invalid(fmt.Sprintf("servers[%d]", i), "its headers cannot be stored")
			}
		}
		add(`INSERT INTO managed_servers (id, json, headers) VALUES (?, ?, ?)
ON CONFLICT (id) DO UPDATE SET json = excluded.json, headers = excluded.headers`, v.ID, data, headers)
	}
	for i := range c.PutTokens {
		t := &c.PutTokens[i]
		add(`INSERT INTO agent_tokens (hash, environment_id, created_at) VALUES (?, ?, ?)
ON CONFLICT (hash) DO UPDATE SET environment_id = excluded.environment_id, created_at = excluded.created_at`, t.Hash[:], t.EnvironmentID, t.CreatedAt.UnixNano())
	}
	return list, nil
}

// writeDurably is write whose commit waits for the disk. The caller has the turn.
func (s *Store) writeDurably(doing string, f func(w *writer) error) error {
	if s.opts.Sync == SyncFull {
		return s.write(doing, f)
	}
	w, err := s.writer()
	if err == nil {
		err = w.exec(`PRAGMA synchronous = FULL`)
	}
	if err != nil {
		s.dropWriter()
		return explain(s.path, doing, err)
	}
	err = s.write(doing, f)
	if s.w != nil && s.w.exec(`PRAGMA synchronous = NORMAL`) != nil {
		s.dropWriter() // the next one has the store's setting
	}
	return err
}
