package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/backup"
	"github.com/agentopia/statussync/httpapi"
	"github.com/agentopia/statussync/sqlite"
)

// storeFile is a SQLite file of a data directory that a backup holds.
type storeFile struct {
	name     string
	required bool // a backup without it is none
	// check looks at a file that came out of an archive. It has checked the file's name, size and checksum before.
	check func(ctx context.Context, path string) error
}

// storeFiles are the files of a data directory that belong to the service's memory. Each is a SQLite database with a
// write-ahead log. Whoever adds one adds it here, and so to backups and restores.
func storeFiles() []storeFile {
	return []storeFile{
		{name: sqlite.FileName, required: true, check: checkStore},
		// Taken after the journal, it may know a little more: of what the journal then does not have, a restored service
		// says that it is unknown. Backups of older services have none.
		{name: sqlite.HistoryFileName, check: checkHistory},
	}
}

// storeFiles are those of them that the service has open: a history that can't be opened would spoil each backup.
func (s *service) storeFiles() []storeFile {
	files := storeFiles()
	if s.history.file == nil {
		files = slices.DeleteFunc(files, func(f storeFile) bool { return f.name == sqlite.HistoryFileName })
	}
	return files
}

// BackupManifest says what a backup holds.
type BackupManifest = backup.Manifest

// CheckBackup reads a backup to its end and checks it against its manifest. It writes nothing. It needs no knowledge of
// what the files hold, so it also takes backups of newer services.
func CheckBackup(r io.Reader) (*BackupManifest, error) {
	return backup.Read(r, backup.ReadOptions{})
}

// backupFolder is where snapshots are while they are downloaded, in the data directory. What a crash left there is
// removed at the next start.
const backupFolder = "backup.tmp"

// backups takes backups of a running service, one at a time.
type backups struct {
	dir     string
	files   []storeFile
	version string
	log     *slog.Logger
	busy    atomic.Bool
}

var _ httpapi.Backuper = (*backups)(nil)

// newBackups removes what an earlier run left behind. The store's lock must be held: nobody else is at work there.
func newBackups(dir string, files []storeFile, version string, log *slog.Logger) *backups {
	b := &backups{dir: dir, files: files, version: version, log: log.With("component", "backup")}
	if err := os.RemoveAll(filepath.Join(dir, backupFolder)); err != nil {
		b.log.Warn("what is left of an interrupted backup cannot be removed", "error", err)
	}
	return b
}

// Backup implements httpapi.Backuper. It blocks while the snapshot is taken; nothing of the store is held afterwards.
func (b *backups) Backup(ctx context.Context) (_ httpapi.Backup, err error) {
	if !b.busy.CompareAndSwap(false, true) {
		return nil, statussync.NewError(statussync.CodeConflict, "another backup is being taken; try again when it is done", nil)
	}
	s := &snapshot{b: b}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	begun := time.Now()
	// A folder of its own: after a restart the last service's backup may still be on its way out.
	all := filepath.Join(b.dir, backupFolder)
	err = os.MkdirAll(all, 0o700)
	if err == nil {
		s.dir, err = os.MkdirTemp(all, "")
	}
	if err != nil {
		return nil, statussync.NewError(statussync.CodeUnavailable, "the snapshot cannot be written", err)
	}
	s.m = backup.Manifest{FormatVersion: backup.FormatVersion, CreatedAt: begun.UTC().Truncate(time.Millisecond), ServiceVersion: b.version}
	for _, f := range b.files {
		from, to := filepath.Join(b.dir, f.name), filepath.Join(s.dir, f.name)
		if _, err := os.Stat(from); errors.Is(err, os.ErrNotExist) && !f.required {
			continue
		}
		if err := sqlite.SnapshotFile(ctx, from, to); err != nil {
			return nil, err
		}
		if !f.required {
			// A restore would refuse the whole backup for it.
			if err := f.check(ctx, to); err != nil && ctx.Err() == nil {
				b.log.Error("a file is left out of the backup: it is damaged", "file", f.name, "error", err)
				if err := os.Remove(to); err != nil {
					return nil, cannot("the snapshot cannot be written", err)
				}
				continue
			}
		}
		if f.name == sqlite.FileName {
			info, err := sqlite.Inspect(ctx, to)
			if err != nil {
				return nil, err
			}
			s.m.Head = info.Head
		}
		sum, err := sumOf(ctx, to)
		if err != nil {
			return nil, err
		}
		sum.Name = f.name
		s.m.Files = append(s.m.Files, sum)
	}
	if s.size, err = backup.Size(&s.m); err != nil {
		return nil, err
	}
	b.log.Info("took a snapshot for a backup", "head", s.m.Head, "bytes", s.size, "took_ms", time.Since(begun).Milliseconds())
	return s, nil
}

// sumOf measures a file.
func sumOf(ctx context.Context, path string) (backup.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return backup.File{}, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	var size int64
	for {
		n, err := io.CopyN(h, f, 1<<20)
		size += n
		if errors.Is(err, io.EOF) {
			return backup.File{Size: size, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return backup.File{}, err
		}
	}
}

// snapshot is a backup that has been taken and waits to be written.
type snapshot struct {
	b    *backups
	dir  string
	m    backup.Manifest
	size int64
}

// Name implements httpapi.Backup.
func (s *snapshot) Name() string {
	return "statussync-" + s.m.CreatedAt.UTC().Format("20060102T150405Z") + ".tar"
}

// Size implements httpapi.Backup.
func (s *snapshot) Size() int64 { return s.size }

// WriteTo implements httpapi.Backup.
func (s *snapshot) WriteTo(w io.Writer) (int64, error) {
	c := &counting{w: w}
	err := backup.Write(c, &s.m, func(name string) (io.ReadCloser, error) { return os.Open(filepath.Join(s.dir, name)) })
	return c.n, err
}

// Close implements httpapi.Backup.
func (s *snapshot) Close() error {
	var err error
	if s.dir != "" {
		if err = os.RemoveAll(s.dir); err != nil {
			s.b.log.Error("the snapshot of a backup cannot be removed", "error", err)
		}
		_ = os.Remove(filepath.Join(s.b.dir, backupFolder)) // where it is empty
	}
	s.b.busy.Store(false)
	return err
}

type counting struct {
	w io.Writer
	n int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func checkHistory(ctx context.Context, path string) error {
	if err := sqlite.CheckHistory(ctx, path); err != nil {
		return fmt.Errorf("the %s of the backup: %w", filepath.Base(path), err)
	}
	return nil
}

func checkStore(ctx context.Context, path string) error {
	if _, err := sqlite.Check(ctx, path); err != nil {
		return fmt.Errorf("the %s of the backup: %w", filepath.Base(path), err)
	}
	return nil
}
