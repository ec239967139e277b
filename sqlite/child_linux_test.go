package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/agentopia/statussync"
	"golang.org/x/sys/unix"
)

func childOS(mode, dir string) error {
	switch mode {
	case "limit":
		return childLimit(dir)
	case "full":
		return childFull(dir)
	}
	return fmt.Errorf("unknown mode %q", mode)
}

// fillBatch is large enough that one batch no longer fits where the one before did.
const fillBatch = 100

// fill appends until that fails, and checks what must hold then. It returns the head.
func fill(s *Store, detail string) (statussync.Cursor, error) {
	ctx := context.Background()
	head, _ := s.Head()
	head.Epoch = "e1"
	var err error
	for range 1000 {
		if err = s.Append(ctx, &statussync.Batch{Entries: padded("e1", head.Seq, fillBatch)}); err != nil {
			break
		}
		head.Seq += fillBatch
	}
	if err := checkError(err, statussync.CodeUnavailable, detail, s.path); err != nil {
		return head, err
	}
	for range 3 { // it stays like that
		err := s.Append(ctx, &statussync.Batch{Entries: padded("e1", head.Seq, fillBatch)})
		if err := checkError(err, statussync.CodeUnavailable, s.path); err != nil {
			return head, err
		}
	}
	if err := checkError(s.Healthy(ctx), statussync.CodeUnavailable, s.path); err != nil {
		return head, fmt.Errorf("Healthy: %w", err)
	}
	return head, checkAll(s, head)
}

// checkAll reads everything.
func checkAll(s *Store, head statussync.Cursor) error {
	if h, _ := s.Head(); h != head {
		return fmt.Errorf("the head is %v, want %v", h, head)
	}
	all, err := s.Read(context.Background(), statussync.Cursor{Epoch: head.Epoch}, 1<<30, nil)
	if err != nil || uint64(len(all)) != head.Seq {
		return fmt.Errorf("read %d entries of %d: %w", len(all), head.Seq, err)
	}
	return nil
}

// goOn appends what failed before, and finds everything after opening again.
func goOn(s *Store, head statussync.Cursor) error {
	ctx := context.Background()
	if err := s.Append(ctx, &statussync.Batch{Entries: padded("e1", head.Seq, fillBatch)}); err != nil {
		return fmt.Errorf("the store does not go on: %w", err)
	}
	head.Seq += fillBatch
	if err := s.Healthy(ctx); err != nil {
		return fmt.Errorf("Healthy: %w", err)
	}
	if err := checkAll(s, head); err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	s, err := Open(ctx, Options{Dir: filepath.Dir(s.path)})
	if err != nil {
		return err
	}
	return errors.Join(checkAll(s, head), s.Close())
}

// childLimit has writes begin to fail under way: the process may not make its files any larger.
func childLimit(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	s, err := Open(context.Background(), Options{Dir: dir})
	if err != nil {
		return err
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1 << 20, Max: old.Max}); err != nil {
		return err
	}
	head, err := fill(s, "disk fails")
	if err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		return err
	}
	return goOn(s, head)
}

// errNoMount begins what a child says that may not mount.
var errNoMount = errors.New("mounting is not permitted here")

// childFull fills a small file system of its own, makes room, goes on, and meets it read-only.
func childFull(dir string) error {
	// The mount namespace is this process's own: nothing is left behind however it ends.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("%w: %w", errNoMount, err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		return fmt.Errorf("%w: %w", errNoMount, err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, bytes.Repeat([]byte("x"), 5<<20), 0o600); err != nil {
		return err
	}
	s, err := Open(context.Background(), Options{Dir: filepath.Join(dir, "data")})
	if err != nil {
		return err
	}
	head, err := fill(s, "disk is full")
	if err != nil {
		return err
	}
	if err := os.Remove(ballast); err != nil {
		return err
	}
	if err := goOn(s, head); err != nil {
		return err
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	_, err = Open(context.Background(), Options{Dir: filepath.Join(dir, "data")})
	if err := checkError(err, statussync.CodeUnavailable, "read-only", filepath.Dir(s.path)); err != nil {
		return err
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
		return err
	}
	if s, err = Open(context.Background(), Options{Dir: filepath.Join(dir, "data")}); err != nil {
		return err
	}
	return s.Close()
}

func TestWritesFailUnderWay(t *testing.T) {
	if out, err := child(t, "limit", t.TempDir()).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestFullFileSystem(t *testing.T) {
	cmd := child(t, "full", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if uid := os.Getuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || bytes.Contains(out, []byte(errNoMount.Error())) {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no file system can be mounted here, and in CI this must be tested: %v\n%s", err, out)
		}
		t.Skipf("no file system can be mounted here: %v\n%s", err, out)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
