package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
	"github.com/agentopia/statussync/sqlite"
	"github.com/agentopia/statussync/wire"
)

// EraseOptions say who is to be forgotten.
type EraseOptions struct {
	// Owner or Actor: exactly one.
	Owner, Actor string
	DryRun       bool         // change nothing, and report what would be changed
	Logger       *slog.Logger // nil: nobody is told
}

// EraseReport says what an erasure changed.
type EraseReport = wire.EraseReport

// minEraseName is the shortest name that can be erased, in bytes. The name of a person is no single letter, and one
// would be found everywhere.
const minEraseName = 2

// check judges what was asked for.
func (o *EraseOptions) check() error {
	name := o.Owner + o.Actor
	switch {
	case (o.Owner == "") == (o.Actor == ""):
		return statussync.Invalid("owner", "either an owner or an actor must be given, and not both")
	case len(name) < minEraseName || name == engine.Erased:
		return statussync.Invalid("owner", "this is no name that can be erased")
	}
	return nil
}

// Erase makes the store in dataDir forget a person (docs/operations.md says what that means), for which no service may
// run on it. Either everything is done when it returns nil, or nothing was, or the next Open or Erase completes it. If
// anything changed the store begins a new epoch when it is opened, as bytes that clients hold are not the journal's any
// more.
//
// CodeInvalid: not exactly one name. CodeNotFound: there is no store. CodeConflict: a process uses it. CodeUnavailable: it
// or its history cannot be read or written, or the disk has no room for two copies of both. It blocks as long as reading the whole store
// and writing it anew take, or until ctx ends before the changes are durable.
func Erase(ctx context.Context, dataDir string, o EraseOptions) (EraseReport, error) {
	report := EraseReport{
		DryRun: o.DryRun, ServersRemoved: []string{}, EnvironmentsRemoved: []string{}, Servers: []string{}, Environments: []string{},
		StillDefined: []wire.StillDefined{}, FilesRemoved: []string{},
	}
	name := o.Owner + o.Actor
	if err := o.check(); err != nil {
		return report, err
	}
	x := engine.NewEraser(o.Actor, o.Owner, func() string {
		var b [6]byte
		_, _ = rand.Read(b[:]) // never fails, as crypto/rand documents
		return engine.Erased + "-" + hex.EncodeToString(b[:])
	})
	texts := []string{name}
	if quoted := statussync.AppendJSONString(nil, name); string(quoted[1:len(quoted)-1]) != name {
		texts = append(texts, string(quoted[1:len(quoted)-1]))
	}
	if clean := statussync.CleanText(name, statussync.MaxErrorText); clean != name { // as it stands in sentences
		texts = append(texts, clean)
	}
	copies, err := sqlite.Rewrite(ctx, sqlite.Options{Dir: dataDir, Logger: o.Logger}, !o.DryRun, "a person was erased", func(r *sqlite.Rewriting) error {
		managed, err := r.Managed()
		if err != nil {
			return err
		}
		if err := learn(r, x, managed); err != nil {
			return err
		}
		// Windows' entries all have this member; those of the actor's windows need not hold the name.
		const ofWindows = `"maintenance_id":`
		if o.Actor != "" {
			err := r.Entries([]string{ofWindows}, func(e *statussync.Entry) (bool, error) { x.Told(e); return false, nil })
			if err != nil {
				return err
			}
		}
		ids := x.Decide()
		decided(&report, ids)
		change := managedErasure(managed, o.Owner, ids)
		report.Tokens = len(slices.DeleteFunc(slices.Clone(managed.Tokens), func(t statussync.AgentToken) bool {
			return !slices.Contains(ids.RemovedEnvironments, t.EnvironmentID)
		}))
		if err := r.ChangeManaged(change); err != nil {
			return err
		}
		err = r.Records(func(rec statussync.Record) ([]byte, bool, error) {
			data, changed, err := x.Record(rec)
			if changed {
				report.Records++
			}
			return data, changed, err
		})
		if err != nil {
			return err
		}
		which := append([]string{ofWindows}, texts...)
		if o.Owner != "" {
			which = nil // their servers' entries don't hold the name
		}
		if o.Actor != "" || len(ids.RemovedServers)+len(ids.Servers)+len(ids.RemovedEnvironments) > 0 {
			err = r.Entries(which, func(e *statussync.Entry) (bool, error) {
				changed := x.Entry(e)
				if changed {
					report.Entries++
				}
				return changed, nil
			})
			if err != nil {
				return err
			}
		}
		err = r.OtherRows(texts, func(_ string, row map[string]any) bool {
			changed := x.Row(row)
			if changed {
				report.Rows++
			}
			return changed
		})
		if err != nil {
			return err
		}
		if err := r.History(func(h *sqlite.HistoryRewriting) error { return eraseHistory(h, x, name, &report) }); err != nil {
			return err
		}
		report.NewEpoch = report.Entries+report.Records+report.Rows+len(change.PutServers)+len(change.PutEnvironments)+len(change.RemoveServers)+len(change.RemoveEnvironments) > 0
		return r.Rows(texts, func(_ string, row map[string]any) {
			for _, v := range row {
				if s, ok := v.(string); ok {
					v = []byte(s)
				}
				if b, ok := v.([]byte); ok && engine.HasName(b, name) {
					report.Mentions++
					return
				}
			}
		})
	})
	if err != nil {
		return report, err
	}
	report.FilesRemoved = append(report.FilesRemoved, copies...)
	if !o.DryRun {
		// What an interrupted backup left behind holds the name as well.
		if err := os.RemoveAll(filepath.Join(dataDir, backupFolder)); err != nil {
			return report, cannot("what is left of an interrupted backup cannot be removed", err)
		}
	}
	return report, nil
}

// eraseHistory is the part of an erasure that is about probes and uptime.
func eraseHistory(h *sqlite.HistoryRewriting, x *engine.Eraser, name string, report *EraseReport) error {
	err := h.Servers(func(id string) bool {
		changed, remove := x.Span(&statussync.Span{ServerID: id})
		if changed {
			report.History++
		} else if engine.HasName([]byte(id), name) {
			report.Mentions++
		}
		return remove
	})
	if err != nil {
		return err
	}
	err = h.Environments(func(id string) bool {
		remove := x.Host(id)
		if remove {
			report.History++
		} else if engine.HasName([]byte(id), name) {
			report.Mentions++
		}
		return remove
	})
	if err != nil {
		return err
	}
	return h.Spans(func(s *statussync.Span) bool {
		changed, _ := x.Span(s)
		if changed {
			report.History++
		}
		if engine.HasName([]byte(s.Details), name) || engine.HasName([]byte(s.Cause), name) {
			report.Mentions++
		}
		return changed
	})
}

// learn tells x of everything that is defined, environments before the servers in them.
func learn(r *sqlite.Rewriting, x *engine.Eraser, m *statussync.Managed) error {
	for i := range m.Environments {
		x.Environment(&m.Environments[i])
	}
	for _, kind := range []statussync.RecordKind{statussync.RecordEnvironment, statussync.RecordServer, statussync.RecordMaintenance} {
		err := r.Records(func(rec statussync.Record) ([]byte, bool, error) {
			if rec.Kind != kind {
				return nil, false, nil
			}
			return nil, false, x.Definition(rec)
		})
		if err != nil {
			return err
		}
	}
	for i := range m.Servers {
		x.Server(&m.Servers[i])
	}
	return nil
}

// managedErasure is what an erasure changes in the managed registry.
func managedErasure(m *statussync.Managed, owner string, ids engine.ErasedIDs) *statussync.ManagedChange {
	c := &statussync.ManagedChange{RemoveServers: ids.RemovedServers, RemoveEnvironments: ids.RemovedEnvironments}
	if owner == "" {
		return c
	}
	for _, e := range m.Environments {
		if e.Owner == owner && !slices.Contains(ids.RemovedEnvironments, e.ID) {
			e.Owner = ""
			c.PutEnvironments = append(c.PutEnvironments, e)
		}
	}
	return c // servers of that owner are all removed
}

// decided notes what an erasure is about.
func decided(r *EraseReport, ids engine.ErasedIDs) {
	r.ServersRemoved = append(r.ServersRemoved, ids.RemovedServers...)
	r.EnvironmentsRemoved = append(r.EnvironmentsRemoved, ids.RemovedEnvironments...)
	r.Servers = append(r.Servers, ids.Servers...)
	r.Environments = append(r.Environments, ids.Environments...)
	for _, d := range ids.Defined {
		r.StillDefined = append(r.StillDefined, wire.StillDefined{ServerID: d.Server, EnvironmentID: d.Environment, Origin: d.Origin})
	}
}
