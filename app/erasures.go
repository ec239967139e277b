package app

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/httpapi"
	"github.com/agentopia/statussync/sqlite"
	"github.com/agentopia/statussync/wire"
)

const (
	// keptErasures is how many erasures a process remembers.
	keptErasures = 10
	// eraseLimit is how long an erasure may take, and as long the service manager is told that the process lives.
	eraseLimit = 30 * time.Minute
	// eraseFolder is where a dry run's snapshot is, in the data directory. What a crash left there is removed at the next
	// start.
	eraseFolder = "erase.tmp"
)

// erasures remembers what was erased in a process, across its services: each erasure happens between two of them. Safe for
// concurrent use.
type erasures struct {
	mu   sync.Mutex // held for moments; guards list and what it points to
	list []*wire.Erasure
}

// begin notes that an erasure begins; CodeConflict while another one runs.
func (e *erasures) begin(dryRun bool) (wire.Erasure, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if slices.ContainsFunc(e.list, func(x *wire.Erasure) bool { return x.Status == wire.ErasureRunning }) {
		return wire.Erasure{}, statussync.NewError(statussync.CodeConflict, "another erasure is under way; try again when it is done", nil)
	}
	x := &wire.Erasure{ID: rand.Text()[:12], Status: wire.ErasureRunning, DryRun: dryRun, StartedAt: wire.Time{Time: time.Now()}}
	if e.list = append(e.list, x); len(e.list) > keptErasures {
		e.list = slices.Delete(e.list, 0, 1) // it is over: only the newest can be running
	}
	return *x, nil
}

// end notes how the erasure ended, and returns it.
func (e *erasures) end(id string, report *wire.EraseReport, err error) wire.Erasure {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.IndexFunc(e.list, func(x *wire.Erasure) bool { return x.ID == id })
	if i < 0 {
		return wire.Erasure{}
	}
	x := e.list[i]
	x.FinishedAt = &wire.Time{Time: time.Now()}
	if x.Status, x.Report = wire.ErasureDone, report; err != nil {
		x.Status, x.Report = wire.ErasureFailed, nil
		x.Error = &wire.ErasureError{Code: statussync.CodeOf(err), Detail: "the erasure failed"}
		var ours *statussync.Error
		if errors.As(err, &ours) { // what others say may hold paths and names; the log has it
			x.Error.Detail = ours.Detail
		}
	}
	return *x
}

// drop forgets an erasure that did not begin.
func (e *erasures) drop(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = slices.DeleteFunc(e.list, func(x *wire.Erasure) bool { return x.ID == id })
}

// get returns an erasure; CodeNotFound.
func (e *erasures) get(id string) (wire.Erasure, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, x := range e.list {
		if x.ID == id {
			return *x, nil
		}
	}
	return wire.Erasure{}, statussync.NotFound("erasure", id)
}

// eraser erases from a running service: it is stopped, its store is rewritten, and it starts again.
type eraser struct {
	s    *service
	jobs *erasures
}

var _ httpapi.Eraser = (*eraser)(nil)

// newEraser removes what an earlier run left behind. The store's lock must be held.
func newEraser(s *service, jobs *erasures) httpapi.Eraser {
	if jobs == nil {
		return nil // such a service is not started again
	}
	if err := os.RemoveAll(filepath.Join(s.config.Data, eraseFolder)); err != nil {
		s.log.Warn("what is left of an interrupted dry run cannot be removed", "error", err)
	}
	return &eraser{s, jobs}
}

// Erase implements httpapi.Eraser.
func (e *eraser) Erase(ctx context.Context, r wire.EraseRequest) (wire.Erasure, error) {
	o := EraseOptions{Owner: r.Owner, Actor: r.Actor, DryRun: r.DryRun, Logger: e.s.log}
	if err := o.check(); err != nil {
		return wire.Erasure{}, err
	}
	job, err := e.jobs.begin(r.DryRun)
	if err != nil {
		return job, err
	}
	if r.DryRun {
		report, err := e.dry(ctx, o)
		if err != nil {
			e.jobs.drop(job.ID)
			return wire.Erasure{}, err
		}
		return e.jobs.end(job.ID, &report, nil), nil
	}
	// A snapshot that is still being taken would have the files open; and who reads one would read half of it.
	if !e.s.backups.busy.CompareAndSwap(false, true) {
		e.jobs.drop(job.ID)
		return wire.Erasure{}, statussync.NewError(statussync.CodeConflict, "a backup is being taken; try again when it is done", nil)
	}
	err = e.s.requestRestart(ctx, func(ctx context.Context, dataDir string, unclosed error) error {
		defer e.s.notifier.during("erasing")()
		ctx, cancel := context.WithTimeout(ctx, eraseLimit)
		defer cancel()
		var report wire.EraseReport
		err := unclosed
		if err == nil {
			report, err = Erase(ctx, dataDir, o)
		}
		e.jobs.end(job.ID, &report, err)
		return err
	})
	if err != nil {
		e.s.backups.busy.Store(false)
		e.jobs.drop(job.ID)
		return wire.Erasure{}, err
	}
	return job, nil
}

// dry reports what an erasure would do, from a snapshot of the store as it is now. The service goes on.
func (e *eraser) dry(ctx context.Context, o EraseOptions) (report wire.EraseReport, err error) {
	data := e.s.config.Data
	dir := filepath.Join(data, eraseFolder)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return report, cannot("the snapshot cannot be written", err)
	}
	defer func() {
		if rerr := os.RemoveAll(dir); rerr != nil && err == nil {
			err = cannot("the snapshot cannot be removed", rerr)
		}
	}()
	for _, f := range storeFiles() {
		from := filepath.Join(data, f.name)
		if _, err := os.Stat(from); errors.Is(err, os.ErrNotExist) && !f.required {
			continue
		}
		if err := sqlite.SnapshotFile(ctx, from, filepath.Join(dir, f.name)); err != nil {
			return report, err
		}
	}
	if report, err = Erase(ctx, dir, o); err != nil {
		return report, err
	}
	copies, err := sqlite.Copies(data)
	report.FilesRemoved = append(report.FilesRemoved, copies...)
	return report, err
}

// Erasure implements httpapi.Eraser.
func (e *eraser) Erasure(_ context.Context, id string) (wire.Erasure, error) { return e.jobs.get(id) }
