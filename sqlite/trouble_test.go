package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/agentopia/statussync"
)

// crash lets go of everything like a process that dies: the file is not marked clean.
func crash(t testing.TB, s *Store) {
	t.Helper()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.release()
}

func mustAppend(t testing.TB, s *Store, b *statussync.Batch) {
	t.Helper()
	if err := s.Append(context.Background(), b); err != nil {
		t.Fatalf("Append: %v", err)
	}
}

func wantHead(t testing.TB, s *Store, epoch statussync.Epoch, seq uint64) {
	t.Helper()
	if h, _ := s.Head(); h != (statussync.Cursor{Epoch: epoch, Seq: seq}) {
		t.Fatalf("the head is %v, want %s:%d", h, epoch, seq)
	}
}

func wantRead(t testing.TB, s *Store, after, to uint64) {
	t.Helper()
	h, _ := s.Head()
	got, err := s.Read(context.Background(), statussync.Cursor{Epoch: h.Epoch, Seq: after}, 1<<30, nil)
	if err != nil || uint64(len(got)) != to-after {
		t.Fatalf("read %d entries after %d: %v; want up to %d", len(got), after, err, to)
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
		says string
	}{
		{"no directory", Options{}, "Options.Dir"},
		{"sync", Options{Dir: "x", Sync: "off"}, `Options.Sync: "off" is not one of normal, full`},
		{"retention", Options{Dir: "x", Retention: -1}, "Options.Retention"},
		{"max bytes", Options{Dir: "x", MaxBytes: 1000}, "Options.MaxBytes: is 1000; it must be at least 8388608"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Open(t.Context(), c.o)
			wantError(t, err, statussync.CodeInvalid, c.says)
		})
	}
	// Modes, and a name with everything that a URL would take amiss.
	dir := filepath.Join(t.TempDir(), "a b?c=1&d%20#é", "data")
	s := open(t, Options{Dir: dir})
	mustAppend(t, s, &statussync.Batch{Entries: updates("e1", 0, 3, 2)})
	for name, want := range map[string]fs.FileMode{"": 0o700, fileName: 0o600, lockName: 0o600} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("%q: %v, %v; want mode %v", name, fi.Mode(), err, want)
		}
	}
}

func TestSecondOpen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	wantLocked(t, dir, os.Getpid())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, Options{Dir: dir})
}

func TestClosed(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	mustAppend(t, s, &statussync.Batch{Entries: updates("e1", 0, 3, 2)})
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	_, readErr := s.Read(ctx, statussync.Cursor{Epoch: "e1"}, 1, nil)
	_, historyErr := s.History(ctx, statussync.HistoryQuery{ServerID: "x", Limit: 1})
	var recordsErr error
	for _, err := range s.Records(ctx) {
		recordsErr = err
	}
	for name, err := range map[string]error{
		"Append": s.Append(ctx, &statussync.Batch{Entries: updates("e1", 3, 1, 2)}), "Read": readErr, "History": historyErr,
		"Records": recordsErr, "Healthy": s.Healthy(ctx), "Run": s.Run(ctx),
	} {
		if !errors.Is(err, errClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	wantHead(t, s, "e1", 3)
	if st := s.Stats(); st.Entries != 3 || st.FileBytes == 0 || !st.Oldest.Equal(start.Add(time.Millisecond)) {
		t.Errorf("Stats after Close: %+v", st)
	}
}

func TestBoot(t *testing.T) {
	for _, c := range []struct {
		name    string
		sync    string
		clean   bool
		boots   [2]string
		renewed bool
	}{
		{"killed", SyncNormal, false, [2]string{"a", "a"}, false},
		{"closed", SyncNormal, true, [2]string{"a", "a"}, false},
		{"closed, then booted", SyncNormal, true, [2]string{"a", "b"}, false},
		{"power loss", SyncNormal, false, [2]string{"a", "b"}, true},
		{"power loss, synced", SyncFull, false, [2]string{"a", "b"}, false},
		{"killed where boots can't be told apart", SyncNormal, false, [2]string{"", ""}, true},
		{"closed where boots can't be told apart", SyncNormal, true, [2]string{"", ""}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			boot := filepath.Join(t.TempDir(), "boot_id")
			o := Options{Dir: t.TempDir(), Sync: c.sync, bootIDFile: boot}
			set := func(id string) {
				if err := os.WriteFile(boot, []byte(id+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			set(c.boots[0])
			s := open(t, o)
			mustAppend(t, s, &statussync.Batch{Entries: updates("e7abcdef", 0, 10, 3)})
			if c.clean {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			} else {
				crash(t, s)
			}
			set(c.boots[1])
			o.Sync = SyncNormal // what counts is how it was written
			s = open(t, o)
			head, _ := s.Head()
			if renewed := head.Epoch != "e7abcdef"; renewed != c.renewed || head.Seq != 10 {
				t.Fatalf("the head is %v", head)
			}
			if !c.renewed {
				return
			}
			if !strings.HasPrefix(string(head.Epoch), "e8") || len(head.Epoch) != 8 {
				t.Errorf("the new epoch is %s", head.Epoch)
			}
			_, err := s.Read(t.Context(), statussync.Cursor{Epoch: "e7abcdef", Seq: 5}, 10, nil)
			wantError(t, err, statussync.CodeExpired)
			// It is durable at once: a second crash in the same boot keeps it.
			if c.boots[1] != "" {
				crash(t, s)
				s = open(t, o)
				wantHead(t, s, head.Epoch, 10)
			}
			mustAppend(t, s, &statussync.Batch{Entries: updates(head.Epoch, 10, 2, 3)})
			wantRead(t, s, 10, 12)
		})
	}
	t.Run("a new store has no epoch to renew", func(t *testing.T) {
		o := Options{Dir: t.TempDir(), bootIDFile: filepath.Join(t.TempDir(), "none")}
		crash(t, open(t, o))
		wantHead(t, open(t, o), "", 0)
	})
}

func TestNextEpoch(t *testing.T) {
	for prev, want := range map[statussync.Epoch]string{"": "e1", "e1": "e2", "e7abcdef": "e8", "e9a1b2c3": "e10", "x": "e1", "e99999999999999": "e1"} {
		a, b := nextEpoch(prev), nextEpoch(prev)
		if !strings.HasPrefix(string(a), want) || len(a) != len(want)+6 || a == b {
			t.Errorf("after %q: %s, %s", prev, a, b)
		}
		if _, err := statussync.ParseCursor(string(a) + ":1"); err != nil {
			t.Error(err)
		}
	}
}

// TestFull has SQLite itself refuse to make the file larger.
func TestFull(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	mustAppend(t, s, &statussync.Batch{
		Entries: updates("e1", 0, 100, 5), Records: []statussync.Record{{Kind: "server", ID: "a", Data: []byte("old")}},
	})
	limit := func() {
		w, err := s.writer()
		if err == nil {
			_, err = w.number(`PRAGMA max_page_count = 60`)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		limit()
		err := s.Append(t.Context(), &statussync.Batch{
			Entries: updates("e2", 100, 1000, 5), Epoch: "e2", Records: []statussync.Record{{Kind: "server", ID: "a", Data: []byte("new")}},
		})
		wantError(t, err, statussync.CodeUnavailable, "disk is full", s.path, "free space")
		wantHead(t, s, "e1", 100)
		wantRead(t, s, 0, 100)
		for r := range s.Records(t.Context()) {
			if string(r.Data) != "old" {
				t.Fatalf("a batch that failed left a record: %s", r.Data)
			}
		}
	}
	mustAppend(t, s, &statussync.Batch{Entries: updates("e1", 100, 1000, 5)})
	wantRead(t, s, 0, 1100)
	if err := s.Healthy(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestGivenUp has an append succeed that nobody waited for.
func TestGivenUp(t *testing.T) {
	for _, end := range []string{"go on", "replace", "close", "crash"} {
		t.Run(end, func(t *testing.T) {
			o := Options{Dir: t.TempDir()}
			s := open(t, o)
			mustAppend(t, s, &statussync.Batch{Entries: updates("e1", 0, 10, 3)})
			p, err := s.plan(&statussync.Batch{Entries: updates("e2", 10, 300, 3)})
			if err == nil {
				err = s.take(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			p.abandoned = true
			if err := s.commit(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			s.give()
			wantHead(t, s, "e1", 10)
			wantRead(t, s, 0, 10)
			if h, err := s.History(t.Context(), statussync.HistoryQuery{ServerID: serverID(1), Limit: 100}); err != nil || len(h) > 4 {
				t.Fatalf("History shows what was given up: %d entries, %v", len(h), err)
			}
			want := uint64(10)
			switch end {
			case "go on":
				mustAppend(t, s, &statussync.Batch{Entries: updates("e1", 10, 2, 3)})
				want = 12
			case "replace":
				mustAppend(t, s, &statussync.Batch{Replace: statussync.Cursor{Epoch: "e1", Seq: 8}, Entries: updates("e1", 8, 2, 3)})
			case "crash":
				crash(t, s)
				s = open(t, o)
				wantHead(t, s, "e2", 310) // durable, never told
				return
			}
			wantHead(t, s, "e1", want)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, o)
			wantHead(t, s, "e1", want)
			wantRead(t, s, 0, want)
		})
	}
}

// TestLockedByAnother has another program hold the file, so that an append hangs until its context ends.
func TestLockedByAnother(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	mustAppend(t, s, &statussync.Batch{Entries: updates("e1", 0, 10, 3)})
	db, err := sql.Open("sqlite", dsn(s.path))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(t.Context(), `BEGIN IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = s.Append(ctx, &statussync.Batch{Entries: updates("e1", 10, 10, 3)})
	wantError(t, err, statussync.CodeUnavailable, "given up")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v does not tell of the context", err)
	}
	// The next one waits for it, and then for the lock; reads don't.
	wantRead(t, s, 0, 10)
	err = s.Append(t.Context(), &statussync.Batch{Entries: updates("e1", 10, 10, 3)})
	wantError(t, err, statussync.CodeUnavailable, "locked by another program", s.path)
	if _, err := conn.ExecContext(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, s, &statussync.Batch{Entries: updates("e1", 10, 10, 3)})
	wantRead(t, s, 0, 20)
}

func TestFileGone(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	mustAppend(t, s, &statussync.Batch{Entries: updates("e1", 0, 10, 3)})
	aside := s.path + ".aside"
	if err := os.Rename(s.path, aside); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := s.Append(t.Context(), &statussync.Batch{Entries: updates("e1", 10, 1, 3)})
		wantError(t, err, statussync.CodeUnavailable, "file is gone", s.path, "put it back")
		wantError(t, s.Healthy(t.Context()), statussync.CodeUnavailable, "file is gone")
		if _, err := os.Stat(s.path); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal("an empty store was put in the place of the one that is gone")
		}
	}
	if err := copyFile(aside, s.path); err != nil { // such as a backup that is put back under way
		t.Fatal(err)
	}
	err := s.Append(t.Context(), &statussync.Batch{Entries: updates("e1", 10, 1, 3)})
	wantError(t, err, statussync.CodeUnavailable, "file is gone", "another file", s.path)
	if err := os.Rename(aside, s.path); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, s, &statussync.Batch{Entries: updates("e1", 10, 1, 3)})
	wantRead(t, s, 0, 11)
}

func TestDamaged(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(b []byte) []byte
	}{
		{"not a database", func([]byte) []byte { return bytes.Repeat([]byte("not a database "), 5000) }},
		{"short garbage", func([]byte) []byte { return []byte("garbage") }},
		{"header", func(b []byte) []byte { copy(b, "SQLite format 9"); return b }},
		{"first page", func(b []byte) []byte { clear(b[100:pageSize]); return b }},
		{"truncated", func(b []byte) []byte { return b[:len(b)/2/pageSize*pageSize] }},
		{"all pages but the first", func(b []byte) []byte { clear(b[pageSize:]); return b }},
		{"random pages", func(b []byte) []byte {
			r := rand.New(rand.NewPCG(1, 2))
			for page := 1; page < len(b)/pageSize; page++ {
				if r.IntN(3) == 0 {
					for i := range pageSize {
						b[page*pageSize+i] = byte(r.Uint32())
					}
				}
			}
			return b
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Options{Dir: t.TempDir()}
			s := open(t, o)
			mustAppend(t, s, &statussync.Batch{Entries: updates("e1", 0, 600, 20)})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(s.path)
			if err == nil {
				err = os.WriteFile(s.path, c.spoil(b), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			err = func() error {
				s, err := Open(t.Context(), o)
				if err != nil {
					return err
				}
				defer crash(t, s)
				_, err = s.Read(t.Context(), statussync.Cursor{Epoch: "e1"}, 600, nil)
				return err
			}()
			wantError(t, err, statussync.CodeUnavailable, s.path, "damaged", "restore a backup")
		})
	}
}

func TestForeign(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	if err := prepareFile(path); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`CREATE TABLE theirs (x)`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), Options{Dir: dir})
	wantError(t, err, statussync.CodeUnavailable, "another program", path)

	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, fileName), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), Options{Dir: dir})
	wantError(t, err, statussync.CodeUnavailable, "cannot be opened", fileName)
}

// laterVersion is that of a migration that comes after all of ours.
const laterVersion = 99

// ourVersion is the schema version of a store that this program made.
func ourVersion(t *testing.T) int {
	t.Helper()
	list, err := fs.ReadDir(embedded(), ".")
	if err != nil {
		t.Fatal(err)
	}
	v, err := strconv.Atoi(list[len(list)-1].Name()[:5])
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// withLater is our migrations and one that comes later.
func withLater(t *testing.T, later string) fs.FS {
	t.Helper()
	out := fstest.MapFS{fmt.Sprintf("%05d_later.sql", laterVersion): {Data: []byte(later)}}
	list, err := fs.ReadDir(embedded(), ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		data, err := fs.ReadFile(embedded(), f.Name())
		if err != nil {
			t.Fatal(err)
		}
		out[f.Name()] = &fstest.MapFile{Data: data}
	}
	return out
}

func TestMigration(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	s := open(t, o)
	mustAppend(t, s, &statussync.Batch{Entries: updates("e1", 0, 600, 20)})
	crash(t, s) // what is only in the log must be in the copy
	ours := ourVersion(t)
	copied := copyName(s.path, int64(ours))

	// One that fails leaves everything as it was.
	o.migrations = withLater(t, "-- +goose Up\nCREATE TABLE later (x);\nINSERT INTO nowhere VALUES (1);\n")
	_, err := Open(t.Context(), o)
	wantError(t, err, statussync.CodeUnavailable, s.path, fmt.Sprintf("migrating from schema version %d to %d", ours, laterVersion))
	o.migrations = nil
	s = open(t, o)
	wantRead(t, s, 0, 600)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(copied); err != nil {
		t.Fatalf("no copy was made: %v", err)
	}

	o.migrations = withLater(t, "-- +goose Up\nCREATE TABLE later (x);\n")
	s = open(t, o)
	wantRead(t, s, 0, 600)
	var rows int
	if err := s.reads.QueryRow(`SELECT count(*) FROM later`).Scan(&rows); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, s, &statussync.Batch{Entries: updates("e1", 600, 5, 20)})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// An older program refuses it, and says where the copy is.
	o.migrations = nil
	_, err = Open(t.Context(), o)
	wantError(t, err, statussync.CodeUnavailable, "newer version", s.path, fmt.Sprintf("schema version %d", laterVersion), fmt.Sprintf("up to %d", ours), fmt.Sprintf("statussync.db.v%d.bak", ours))
	// The copy works in its place.
	if err := os.Rename(copied, s.path); err != nil {
		t.Fatal(err)
	}
	s = open(t, o)
	wantHead(t, s, "e1", 600)
	wantRead(t, s, 0, 600)
}
