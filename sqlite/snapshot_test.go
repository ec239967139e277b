package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
)

// TestSnapshotUnderLoad takes snapshots while entries are appended: each is a store that holds a whole part of the journal,
// from its beginning, and its copies begin epochs of their own.
func TestSnapshotUnderLoad(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	alive := start.Add(time.Hour)
	if err := s.Append(t.Context(), &statussync.Batch{Entries: updates("e1", 0, 500, 10), AliveAt: alive}); err != nil {
		t.Fatal(err)
	}
	stop, appended := make(chan struct{}), make(chan uint64, 1)
	go func() {
		seq := uint64(500)
		defer func() { appended <- seq }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := s.Append(context.Background(), &statussync.Batch{Entries: updates("e1", seq, 20, 10)}); err != nil {
				t.Error(err)
				return
			}
			seq += 20
			pause(context.Background(), 5*time.Millisecond)
		}
	}()
	var heads []statussync.Cursor
	epochs := map[statussync.Epoch]bool{"e1": true}
	for i := range quantity(8, 4) {
		before, _ := s.Head()
		to := filepath.Join(t.TempDir(), FileName)
		if err := s.Snapshot(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		after, _ := s.Head()
		info, err := Check(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		if info.Head.Epoch != "e1" || info.Head.Seq < before.Seq || info.Head.Seq > after.Seq || !info.AliveAt.Equal(alive) {
			t.Fatalf("a snapshot between %v and %v says %+v", before, after, info)
		}
		heads = append(heads, info.Head)
		if fi, err := os.Stat(to); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", fi, err)
		}
		if i%2 == 1 { // restored twice from the same snapshot
			again := t.TempDir()
			b, err := os.ReadFile(to)
			if err == nil {
				err = os.WriteFile(filepath.Join(again, FileName), b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			restoredAs(t, again, info.Head, alive, epochs)
		}
		restoredAs(t, filepath.Dir(to), info.Head, alive, epochs)
	}
	close(stop)
	if last := <-appended; heads[len(heads)-1].Seq > last {
		t.Error("a snapshot holds what was never appended")
	}
}

// restoredAs marks the store in dir as restored, opens it twice, and finds the journal up to head under an epoch that is
// not among those given, which stays.
func restoredAs(t *testing.T, dir string, head statussync.Cursor, alive time.Time, epochs map[statussync.Epoch]bool) {
	t.Helper()
	for range 2 { // the mark may be set twice
		if err := Restored(t.Context(), filepath.Join(dir, FileName)); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, Options{Dir: dir})
	now, _ := s.Head()
	if epochs[now.Epoch] || now.Seq != head.Seq {
		t.Fatalf("the restored head is %v, the snapshot's %v; epochs so far %v", now, head, epochs)
	}
	epochs[now.Epoch] = true
	if !s.AliveAt().Equal(alive) {
		t.Errorf("alive at %v, not %v: the time since then would not count as downtime", s.AliveAt(), alive)
	}
	if _, err := s.Read(t.Context(), head, 10, nil); statussync.CodeOf(err) != statussync.CodeExpired {
		t.Errorf("the old head is continued: %v", err)
	}
	list, err := s.Read(t.Context(), statussync.Cursor{Epoch: now.Epoch}, int(head.Seq)+1, nil)
	if err != nil || uint64(len(list)) != head.Seq {
		t.Fatalf("%d entries of %d, %v", len(list), head.Seq, err)
	}
	for i, e := range list {
		if want := update("e1", uint64(i)+1, 10); string(e.JSON) != string(want.JSON) {
			t.Fatalf("entry %d: %s", i+1, e.JSON)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Options{Dir: dir})
	if again, _ := s.Head(); again != now {
		t.Errorf("opened again the head is %v, not %v", again, now)
	}
}

// TestSnapshotOfARelativePath: data: ./data is the default, and the driver's file URIs know absolute paths only.
func TestSnapshotOfARelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	s := open(t, Options{Dir: "data"})
	if err := s.Append(t.Context(), &statussync.Batch{Entries: updates("e1", 0, 3, 1)}); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir("copy", 0o700); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join("copy", FileName)
	if err := SnapshotFile(t.Context(), filepath.Join("data", FileName), to); err != nil {
		t.Fatal(err)
	}
	info, err := Check(t.Context(), to)
	if want, _ := s.Head(); err != nil || info.Head != want {
		t.Errorf("%v, %v, want %v", info.Head, err, want)
	}
}

func TestSnapshotRefusals(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	if err := s.Append(t.Context(), &statussync.Batch{Entries: updates("e1", 0, 2000, 10)}); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), FileName)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Snapshot(ctx, to); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := s.Snapshot(t.Context(), filepath.Join(dir, "no", "folder")); statussync.CodeOf(err) != statussync.CodeUnavailable {
		t.Error(err)
	}
	if err := SnapshotFile(t.Context(), filepath.Join(dir, "nothing.db"), to); statussync.CodeOf(err) != statussync.CodeUnavailable {
		t.Error(err)
	}
	if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
	if err := os.WriteFile(to, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Snapshot(t.Context(), to); err == nil {
		t.Error("a file that exists was overwritten")
	}
	if b, err := os.ReadFile(to); err != nil || string(b) != "mine" {
		t.Errorf("%q, %v", b, err)
	}
	if err := Room(dir, 1<<60); statussync.CodeOf(err) != statussync.CodeUnavailable || !strings.Contains(err.Error(), "MiB are free") {
		t.Errorf("an exabyte has room: %v", err)
	}
	if err := Room(dir, 0); err != nil {
		t.Error(err)
	}
}

func TestCheckRefuses(t *testing.T) {
	good := func(t *testing.T) string {
		s := open(t, Options{Dir: t.TempDir()})
		if err := s.Append(t.Context(), &statussync.Batch{Entries: updates("e1", 0, 400, 10)}); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(t.TempDir(), FileName)
		if err := s.Snapshot(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		return to
	}
	sql := func(statements string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			db, err := sql.Open("sqlite", dsn(path))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if _, err := db.Exec(statements); err != nil {
				t.Fatal(err)
			}
		}
	}
	bytes := func(change func(b []byte) []byte) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, change(b), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, path string)
		say   string
	}{
		"trigger":         {sql(`CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM entries; END`), "trigger t, which no store has"},
		"view":            {sql(`CREATE VIEW v AS SELECT 1`), "view v, which no store has"},
		"newer schema":    {sql(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`), "newer version of this program"},
		"another program": {sql(`PRAGMA application_id = 1`), "belongs to another program"},
		"another schema":  {sql(`DROP TABLE meta`), "no such table"},
		"empty":           {bytes(func([]byte) []byte { return nil }), "not the file of a store"},
		"no database":     {bytes(func([]byte) []byte { return []byte(strings.Repeat("no database", 1000)) }), "damaged"},
		"cut short":       {bytes(func(b []byte) []byte { return b[:len(b)/2] }), "damaged"},
		"a page of zeros": {bytes(func(b []byte) []byte { clear(b[50*pageSize : 51*pageSize]); return b }), "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			path := good(t)
			tc.spoil(t, path)
			if _, err := Check(t.Context(), path); statussync.CodeOf(err) != statussync.CodeUnavailable || !strings.Contains(err.Error(), tc.say) {
				t.Errorf("%v does not say %q", err, tc.say)
			}
		})
	}
}

// BenchmarkSnapshot takes a snapshot of a store with 100,000 entries (130 MB) both ways while 10 entries are appended
// every 2 ms, and tells how long the appends took meanwhile.
func BenchmarkSnapshot(b *testing.B) {
	ways := []struct {
		name string
		copy func(ctx context.Context, from, to string) error
	}{
		{"nothing", func(ctx context.Context, _, _ string) error { pause(ctx, 3*time.Second); return nil }},
		{"backup", SnapshotFile},
		{"vacuum", func(ctx context.Context, from, to string) error {
			db, err := sql.Open("sqlite", dsn(from))
			if err != nil {
				return err
			}
			defer db.Close()
			_, err = db.ExecContext(ctx, `VACUUM INTO ?`, to)
			return err
		}},
	}
	for _, way := range ways {
		b.Run(way.name, func(b *testing.B) {
			dir := b.TempDir()
			s := open(b, Options{Dir: dir})
			seq := uint64(0)
			for ; seq < 100_000; seq += 1000 {
				if err := s.Append(b.Context(), &statussync.Batch{Entries: updates("e1", seq, 1000, 1000)}); err != nil {
					b.Fatal(err)
				}
			}
			var took []time.Duration
			n := 0
			for b.Loop() {
				n++
				done := make(chan error, 1)
				go func() { done <- way.copy(b.Context(), s.path, filepath.Join(dir, fmt.Sprint("copy", n))) }()
				for over := false; !over; {
					batch := &statussync.Batch{Entries: updates("e1", seq, 10, 1000)}
					begun := time.Now()
					if err := s.Append(b.Context(), batch); err != nil {
						b.Fatal(err)
					}
					took = append(took, time.Since(begun))
					seq += 10
					pause(b.Context(), 2*time.Millisecond)
					select {
					case err := <-done:
						if err != nil {
							b.Fatal(err)
						}
						over = true
					default:
					}
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			b.ReportMetric(float64(took[len(took)-1].Microseconds()), "max-µs")
		})
	}
}

// TestRelativePaths: a store, its snapshot and what looks at that may be named from where the process stands.
func TestRelativePaths(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("data", 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, Options{Dir: "data"})
	if err := s.Append(t.Context(), &statussync.Batch{Entries: updates("e1", 0, 5, 1)}); err != nil {
		t.Fatal(err)
	}
	if err := SnapshotFile(t.Context(), filepath.Join("data", FileName), "copy.db"); err != nil {
		t.Fatal(err)
	}
	if err := Restored(t.Context(), "copy.db"); err != nil {
		t.Fatal(err)
	}
	if info, err := Check(t.Context(), "copy.db"); err != nil || info.Head.Seq != 5 {
		t.Errorf("%+v, %v", info, err)
	}
}
