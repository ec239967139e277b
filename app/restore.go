package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/backup"
	"github.com/agentopia/statussync/sqlite"
)

// RestoreOptions say what Restore puts where.
type RestoreOptions struct {
	Archive io.Reader // a backup
	Dir     string    // the data directory to be: absent or empty
	// Force moves a Dir with content aside, to Dir.before-restore-<time>, in place of refusing it.
	Force bool
	Now   time.Time // names what is moved aside
}

// RestoreReport is what Restore did.
type RestoreReport struct {
	Manifest BackupManifest `json:"manifest"`
	Dir      string         `json:"dir"`
	// MovedTo is where the former content of Dir is now; empty: it had none.
	MovedTo string `json:"moved_to,omitempty"`
}

// stageName is what a restore writes to before it is complete: beside Dir, or in it where Dir exists already.
const stageName = ".restoring"

// Restore makes a data directory of a backup. The archive's manifest, checksums and names are verified, and each file's
// content (SQLite's integrity check, the schema's version) before anything appears in Dir; everything is on the disk
// then. A refused archive leaves nothing behind. The restored store begins a new epoch when it is opened, so that no
// client resumes from what happened after the backup.
//
// CodeInvalid: the archive is damaged, cut short, or not a backup. CodeConflict: Dir has content, or a process uses it.
// CodeUnavailable: a file of the archive cannot be used by this program, or Dir cannot be written. It blocks as long as
// reading and checking all of it takes, or until ctx ends.
func Restore(ctx context.Context, o RestoreOptions) (*RestoreReport, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil || o.Dir == "" {
		return nil, statussync.Invalid("data", "must name the directory to restore into")
	}
	names, err := content(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return restoreBeside(ctx, o, dir, "")
	case err != nil:
		return nil, cannot("the data directory cannot be read", err)
	case slices.Contains(names, stageName):
		return nil, interrupted(filepath.Join(dir, stageName))
	case len(names) == 0:
		return restoreInside(ctx, o, dir)
	case !o.Force:
		return nil, statussync.NewError(statussync.CodeConflict, dir+" is not empty (it has "+namesOf(names)+"); restore into another directory, or move its content aside with --force", nil)
	}
	// A service at work there must not find its files moved.
	lock, err := sqlite.Lock(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	return restoreBeside(ctx, o, dir, dir+".before-restore-"+o.Now.UTC().Format("20060102T150405Z"))
}

// content lists what a directory holds; what file systems put there themselves does not count.
func content(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		if e.Name() != "lost+found" {
			names = append(names, e.Name())
		}
	}
	return names, err
}

func namesOf(names []string) string {
	const most = 3
	s := statussync.CleanText(strings.Join(names[:min(most, len(names))], ", "), statussync.MaxNameText)
	if len(names) > most {
		s += ", …"
	}
	return s
}

func cannot(what string, err error) error {
	return statussync.NewError(statussync.CodeUnavailable, what, err)
}

func interrupted(stage string) error {
	return statussync.NewError(statussync.CodeConflict, stage+" is there: another restore is under way, or was interrupted; if none is, remove it and try again", nil)
}

// restoreBeside writes beside dir and renames the whole, so that dir appears at once. aside, if not empty, is where the
// dir that is there goes.
func restoreBeside(ctx context.Context, o RestoreOptions, dir, aside string) (_ *RestoreReport, err error) {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, cannot("the data directory cannot be made", err)
	}
	if aside != "" {
		if _, err := os.Lstat(aside); !errors.Is(err, fs.ErrNotExist) {
			return nil, statussync.NewError(statussync.CodeConflict, aside+" is there already; try again in a second", err)
		}
	}
	stage := filepath.Join(parent, "."+filepath.Base(dir)+stageName)
	r, err := unpack(ctx, o, stage)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(stage)
		}
	}()
	r.Dir = dir
	if aside != "" {
		if err := os.Rename(dir, aside); err != nil {
			return nil, cannot("the content of the data directory cannot be moved aside (is it a mount point? then move its content away yourself)", err)
		}
		r.MovedTo = aside
	}
	if err := os.Rename(stage, dir); err != nil {
		if aside != "" {
			err = errors.Join(err, os.Rename(aside, dir))
		}
		return nil, cannot("the restored files cannot be put in place", err)
	}
	return r, syncDir(parent)
}

// restoreInside writes into dir, which exists and is empty: it may be a mount point, and has the owner that the service
// wants. The files are moved up one by one, the store's own last: before it there is no store.
func restoreInside(ctx context.Context, o RestoreOptions, dir string) (*RestoreReport, error) {
	stage := filepath.Join(dir, stageName)
	r, err := unpack(ctx, o, stage)
	if err != nil {
		return nil, err
	}
	r.Dir = dir
	files := slices.Clone(r.Manifest.Files)
	slices.SortStableFunc(files, func(a, b backup.File) int {
		switch sqlite.FileName {
		case a.Name:
			return 1
		case b.Name:
			return -1
		}
		return 0
	})
	for i, f := range files {
		if err := os.Rename(filepath.Join(stage, f.Name), filepath.Join(dir, f.Name)); err != nil {
			for _, g := range files[:i] {
				_ = os.Remove(filepath.Join(dir, g.Name))
			}
			_ = os.RemoveAll(stage)
			return nil, cannot("the restored files cannot be put in place", err)
		}
	}
	if err := os.RemoveAll(stage); err != nil {
		return nil, cannot("the folder of the restore cannot be removed", err)
	}
	return r, syncDir(dir)
}

// unpack makes the folder stage of the archive, checked, marked as restored and on the disk. After an error there is no
// stage, and if it made the parent of it, that stays.
func unpack(ctx context.Context, o RestoreOptions, stage string) (_ *RestoreReport, err error) {
	if err := os.Mkdir(stage, 0o700); errors.Is(err, fs.ErrExist) {
		return nil, interrupted(stage)
	} else if err != nil {
		return nil, cannot("the data directory cannot be written", err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(stage)
		}
	}()
	files := storeFiles()
	var known []string
	for _, f := range files {
		known = append(known, f.name)
	}
	m, err := backup.Read(withContext{ctx, o.Archive}, backup.ReadOptions{
		Known: known,
		Accept: func(m *backup.Manifest) error {
			for _, f := range files {
				if f.required && !slices.ContainsFunc(m.Files, func(g backup.File) bool { return g.Name == f.name }) {
					return statussync.NewError(statussync.CodeInvalid, "the backup cannot be used: it holds no "+f.name, nil)
				}
			}
			return sqlite.Room(stage, m.Bytes())
		},
		Create: func(f backup.File) (io.WriteCloser, error) {
			return os.OpenFile(filepath.Join(stage, f.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		},
	})
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		path := filepath.Join(stage, f.name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := f.check(ctx, path); err != nil {
			return nil, err
		}
		if f.name == sqlite.FileName {
			if err := sqlite.Restored(ctx, path); err != nil {
				return nil, err
			}
		}
		if err := syncFile(path); err != nil {
			return nil, cannot("the restored files cannot be written", err)
		}
	}
	if err := onlyFiles(stage, m); err != nil {
		return nil, err
	}
	return &RestoreReport{Manifest: *m}, syncDir(stage)
}

// onlyFiles removes what SQLite left beside the files, and makes sure that nothing of it was still needed.
func onlyFiles(stage string, m *backup.Manifest) error {
	names, err := content(stage)
	if err != nil {
		return cannot("the restored files cannot be read", err)
	}
	for _, n := range names {
		if slices.ContainsFunc(m.Files, func(f backup.File) bool { return f.Name == n }) {
			continue
		}
		if fi, err := os.Stat(filepath.Join(stage, n)); err == nil && strings.HasSuffix(n, "-wal") && fi.Size() > 0 {
			return cannot("the restored files cannot be written", fmt.Errorf("%s is not empty", n))
		}
		if err := os.Remove(filepath.Join(stage, n)); err != nil {
			return cannot("the restored files cannot be written", err)
		}
	}
	return nil
}

// withContext is a reader that ends with a context.
type withContext struct {
	ctx context.Context
	r   io.Reader
}

func (w withContext) Read(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.r.Read(p)
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncDir makes renames in a directory durable, where the operating system has a way to.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(dir)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		return cannot("the data directory cannot be written", err)
	}
	return nil
}
