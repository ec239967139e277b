package sqlite

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
)

// childMain is what the processes do that the tests start. Its exit code is 0 when all was as it should be.
func childMain(mode, dir string) int {
	var err error
	switch mode {
	case "append":
		err = childAppend(dir)
	default:
		err = childOS(mode, dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		return 1
	}
	return 0
}

// child is a command that runs childMain.
func child(t *testing.T, mode, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+mode, "SQLITE_TEST_DIR="+dir)
	return cmd
}

// childAppend appends until it is killed, with housekeeping beside it, and prints the head after each Append that was
// acknowledged.
func childAppend(dir string) error {
	ctx := context.Background()
	s, err := Open(ctx, Options{Dir: dir, MaxBytes: MinMaxBytes})
	if err != nil {
		return err
	}
	go func() {
		for {
			if err := s.keepHouse(ctx, s.retain, ""); err != nil {
				fmt.Fprintln(os.Stderr, "child:", err)
			}
			pause(ctx, 5*time.Millisecond)
		}
	}()
	head, _ := s.Head()
	if head.Epoch == "" {
		head.Epoch = "e1"
	}
	fmt.Println(head.Seq)
	for {
		n := 1 + rand.IntN(quantity(300, 20))
		b := &statussync.Batch{Entries: updates(head.Epoch, head.Seq, n, 20)}
		head.Seq += uint64(n)
		b.Records = []statussync.Record{{Kind: statussync.RecordEngine, Data: []byte(strconv.FormatUint(head.Seq, 10))}}
		b.AliveAt = start
		if err := s.Append(ctx, b); err != nil {
			return err
		}
		if _, err := fmt.Println(head.Seq); err != nil {
			return err
		}
	}
}

// TestKill kills a process that appends, again and again, and finds everything that it acknowledged, whole and without a
// hole, under the same epoch.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	for round := range quantity(8, 3) {
		cmd := child(t, "append", dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var acked uint64
		lines := bufio.NewScanner(out)
		for kill := 1 + rand.IntN(quantity(60, 10)); lines.Scan(); kill-- {
			if acked, err = strconv.ParseUint(lines.Text(), 10, 64); err != nil {
				t.Fatalf("the child says %q", lines.Text())
			}
			if kill == 0 {
				if round == 0 {
					wantLocked(t, dir, cmd.Process.Pid)
				}
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
			t.Fatalf("the child ended by itself: %v", cmd.ProcessState)
		}

		s, err := Open(t.Context(), Options{Dir: dir})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		head, deleted := s.Head()
		if head.Seq < acked || head.Epoch != "e1" {
			t.Fatalf("round %d: the head is %v, but e1:%d was acknowledged", round, head, acked)
		}
		all, err := s.Read(t.Context(), statussync.Cursor{Epoch: "e1", Seq: deleted.Seq}, 1<<30, nil)
		if err != nil || uint64(len(all)) != head.Seq-deleted.Seq {
			t.Fatalf("round %d: read %d entries of %d: %v", round, len(all), head.Seq-deleted.Seq, err)
		}
		for _, e := range all {
			if want := update("e1", e.Seq, 20); string(want.JSON) != string(e.JSON) {
				t.Fatalf("round %d: entry %d is %s", round, e.Seq, e.JSON)
			}
		}
		for r, err := range s.Records(t.Context()) {
			if err != nil || string(r.Data) != strconv.FormatUint(head.Seq, 10) {
				t.Fatalf("round %d: the batch of %v is torn: its record says %s (%v)", round, head, r.Data, err)
			}
		}
		var check string
		if err := s.reads.QueryRow(`PRAGMA integrity_check`).Scan(&check); err != nil || check != "ok" {
			t.Fatalf("round %d: integrity: %s, %v", round, check, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// wantLocked tries to open a directory that another process has.
func wantLocked(t *testing.T, dir string, pid int) {
	t.Helper()
	_, err := Open(t.Context(), Options{Dir: dir})
	wantError(t, err, statussync.CodeConflict, fmt.Sprintf("in use by process %d", pid), lockName)
}

// wantError checks the code of an error and that its text has all that a person needs.
func wantError(t testing.TB, err error, code statussync.Code, parts ...string) {
	t.Helper()
	if err := checkError(err, code, parts...); err != nil {
		t.Fatal(err)
	}
}

func checkError(err error, code statussync.Code, parts ...string) error {
	if statussync.CodeOf(err) != code {
		return fmt.Errorf("error %v with code %q, want code %q", err, statussync.CodeOf(err), code)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			return fmt.Errorf("the error %q does not say %q", err, p)
		}
	}
	var e *statussync.Error
	if errors.As(err, &e) && code == statussync.CodeUnavailable && strings.Contains(e.Detail, "/") {
		return fmt.Errorf("the detail %q shows a path to clients", e.Detail)
	}
	return nil
}
