package app

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/backup"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/sqlite"
	"github.com/agentopia/statussync/wire"
)

// peopled runs a service on dir in which ada and u1 are known from everywhere.
func peopled(t *testing.T, dir string) *running {
	t.Helper()
	r := startWhole(t, dir, "")
	c := r.as("admin-token")
	ctx := t.Context()
	if _, err := c.AddEnvironment(ctx, wire.EnvironmentSpec{ID: "box-9", Owner: "u1 & sons"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RotateAgentToken(ctx, "box-9"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddServer(ctx, wire.ServerSpec{ID: "billing", EnvironmentID: "box-9", Probe: &wire.ProbeSpec{Kind: "none", Headers: map[string]string{"X-Key": "very-secret"}}}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"billing", "fixed"} {
		if _, err := c.SetOverride(ctx, id, wire.OverrideRequest{State: "error", Note: "note of the one"}); err != nil {
			t.Fatal(err)
		}
	}
	<-time.NewTimer(5 * time.Millisecond).C // a span that does not last a millisecond is not kept
	if _, err := r.as("operator-token").SetOverride(ctx, "fixed", wire.OverrideRequest{State: "stopped", Note: "note of another"}); err != nil {
		t.Fatal(err)
	}
	return r
}

// archived is a backup of a running service.
func archived(t *testing.T, c *client.Client) []byte {
	t.Helper()
	body, size, err := c.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	if err != nil || int64(len(b)) != size {
		t.Fatalf("%d of %d bytes, %v", len(b), size, err)
	}
	return b
}

// forgedArchive makes an archive of files, with right checksums.
func forgedArchive(t *testing.T, files map[string][]byte, change func(m *backup.Manifest)) []byte {
	t.Helper()
	m := &backup.Manifest{FormatVersion: backup.FormatVersion, CreatedAt: time.Unix(1772366400, 0).UTC(), ServiceVersion: "forged"}
	for name, content := range files {
		sum := sha256.Sum256(content)
		m.Files = append(m.Files, backup.File{Name: name, Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])})
	}
	slices.SortFunc(m.Files, func(a, b backup.File) int { return strings.Compare(a.Name, b.Name) })
	if change != nil {
		change(m)
	}
	var b bytes.Buffer
	if err := backup.Write(&b, m, func(n string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files[n])), nil }); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// list is what a folder holds.
func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// holding returns the files under dir that hold a text.
func holding(t *testing.T, dir string, text string) (in []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if bytes.Contains(b, []byte(text)) {
			in = append(in, d.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func TestBackupAndRestore(t *testing.T) {
	root := t.TempDir()
	data := filepath.Join(root, "data")
	if err := os.MkdirAll(filepath.Join(data, backupFolder), 0o700); err != nil { // an earlier run died
		t.Fatal(err)
	}
	r := peopled(t, data)
	if _, err := os.Stat(filepath.Join(data, backupFolder)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what an interrupted backup left is still there: %v", err)
	}
	c := r.as("admin-token")
	for _, token := range []string{"operator-token", "viewer-token"} {
		_, _, err := r.as(token).Backup(t.Context())
		wantCode(t, err, statussync.CodeForbidden)
	}
	b := archived(t, c)
	m, err := CheckBackup(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	ready, err := c.Ready(t.Context())
	if err != nil || m.Head.String() != ready.Cursor || m.ServiceVersion != "test" {
		t.Errorf("%+v, %v; the service is at %s", m, err, ready.Cursor)
	}
	if len(list(t, data)) > 7 {
		t.Errorf("something is left: %v", list(t, data))
	}
	wantCode(t, restoreErr(t, RestoreOptions{Archive: bytes.NewReader(b), Dir: data, Force: true}), statussync.CodeConflict, "in use by process")
	r.stop()
	wantCode(t, restoreErr(t, RestoreOptions{Archive: bytes.NewReader(b), Dir: data}), statussync.CodeConflict, "is not empty", "statussync.db")
	wantCode(t, restoreErr(t, RestoreOptions{Archive: bytes.NewReader(b)}), statussync.CodeInvalid, "data")

	// Into a folder that is not there, one that is empty, and over one with content.
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	empty := filepath.Join(root, "empty")
	if err := os.Mkdir(empty, 0o750); err != nil {
		t.Fatal(err)
	}
	epochs := map[string]bool{string(m.Head.Epoch): true}
	for _, dir := range []string{filepath.Join(root, "new", "deep"), empty, data} {
		before := 0
		if dir == data {
			before = len(list(t, data))
		}
		rep, err := Restore(t.Context(), RestoreOptions{Archive: bytes.NewReader(b), Dir: dir, Force: dir == data, Now: now})
		if err != nil {
			t.Fatalf("%s: %v", dir, err)
		}
		if d := cmp.Diff([]string{sqlite.HistoryFileName, sqlite.FileName}, list(t, dir)); d != "" {
			t.Errorf("%s: %s", dir, d)
		}
		aside := data + ".before-restore-20260301T120000Z"
		if dir == data && (rep.MovedTo != aside || len(list(t, aside)) != before) || dir != data && rep.MovedTo != "" {
			t.Errorf("%+v", rep)
		}
		again := startWhole(t, dir, "")
		c := again.as("admin-token")
		st, err := c.Status(t.Context(), "billing")
		if err != nil || st.State != "error" || st.Override == nil {
			t.Errorf("%+v, %v", st, err)
		}
		if st, err := c.Status(t.Context(), "fixed"); err != nil || st.State != "stopped" {
			t.Errorf("%+v, %v", st, err)
		}
		ready, err := c.Ready(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		cur, err := statussync.ParseCursor(ready.Cursor)
		if err != nil || epochs[string(cur.Epoch)] {
			t.Errorf("%s is an epoch that was there before: %v", ready.Cursor, err)
		}
		epochs[string(cur.Epoch)] = true
		_, err = c.Updates(t.Context(), client.UpdatesQuery{After: m.Head})
		wantCode(t, err, statussync.CodeExpired, "another epoch")
		again.stop()
	}
	if fi, err := os.Stat(empty); err != nil || fi.Mode().Perm() != 0o750 {
		t.Errorf("the folder that was there is another one: %v, %v", fi, err)
	}
	if names := list(t, root); len(names) != 4 {
		t.Errorf("%v", names)
	}
}

func restoreErr(t *testing.T, o RestoreOptions) error {
	t.Helper()
	rep, err := Restore(t.Context(), o)
	if err == nil {
		t.Errorf("restored: %+v", rep)
	}
	return err
}

func TestRestoreRefusesAndLeavesNothing(t *testing.T) {
	src := t.TempDir()
	s, err := sqlite.Open(t.Context(), sqlite.Options{Dir: src})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(src, sqlite.FileName))
	if err != nil {
		t.Fatal(err)
	}
	spoilt := func(statements string) []byte {
		p := filepath.Join(t.TempDir(), "x.db")
		if err := os.WriteFile(p, good, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := sql.Open("sqlite", p)
		if err == nil {
			_, err = db.Exec(statements + `; PRAGMA wal_checkpoint(TRUNCATE)`)
			err = errors.Join(err, db.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	whole := forgedArchive(t, map[string][]byte{sqlite.FileName: good}, nil)
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-2000] ^= 1
	torn := bytes.Clone(good)
	clear(torn[len(torn)-8192 : len(torn)-100])
	for name, tc := range map[string]struct {
		archive []byte
		code    statussync.Code
		say     string
	}{
		"nothing":      {nil, statussync.CodeInvalid, "it is empty"},
		"no backup":    {bytes.Repeat([]byte("x"), 5000), statussync.CodeInvalid, "no tar archive"},
		"cut short":    {whole[:len(whole)/2], statussync.CodeInvalid, "cut short"},
		"no end":       {whole[:len(whole)-600], statussync.CodeInvalid, "cut short"},
		"a bit":        {flipped, statussync.CodeInvalid, "damaged"},
		"not ours":     {forgedArchive(t, map[string][]byte{"other.db": good}, nil), statussync.CodeInvalid, "does not know"},
		"one too many": {forgedArchive(t, map[string][]byte{"other.db": good, sqlite.FileName: good}, nil), statussync.CodeInvalid, "does not know"},
		"no database":  {forgedArchive(t, map[string][]byte{sqlite.FileName: []byte("select")}, nil), statussync.CodeUnavailable, "statussync.db of the backup"},
		"torn":         {forgedArchive(t, map[string][]byte{sqlite.FileName: torn}, nil), statussync.CodeUnavailable, "damaged"},
		"trigger":      {forgedArchive(t, map[string][]byte{sqlite.FileName: spoilt(`CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM entries; END`)}, nil), statussync.CodeUnavailable, "trigger t"},
		"newer":        {forgedArchive(t, map[string][]byte{sqlite.FileName: spoilt(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`)}, nil), statussync.CodeUnavailable, "newer version of this program"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			err := restoreErr(t, RestoreOptions{Archive: bytes.NewReader(tc.archive), Dir: filepath.Join(root, "data")})
			wantCode(t, err, tc.code, tc.say)
			if names := list(t, root); len(names) > 0 {
				t.Errorf("%v is left", names)
			}
			// The same over a folder that is empty, and one that has content: both stay as they are.
			for _, content := range []string{"", "mine"} {
				dir := t.TempDir()
				if content != "" {
					if err := os.WriteFile(filepath.Join(dir, content), nil, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				before := list(t, filepath.Dir(dir))
				wantCode(t, restoreErr(t, RestoreOptions{Archive: bytes.NewReader(tc.archive), Dir: dir, Force: true}), tc.code, tc.say)
				names := slices.DeleteFunc(list(t, dir), func(n string) bool { return n == "statussync.lock" }) // a lock file of nobody
				if strings.Join(names, " ") != content || !cmp.Equal(before, list(t, filepath.Dir(dir))) {
					t.Errorf("%v, %v", names, list(t, filepath.Dir(dir)))
				}
			}
		})
	}
	// Another restore at the same place.
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, ".data"+stageName), 0o700); err != nil {
		t.Fatal(err)
	}
	wantCode(t, restoreErr(t, RestoreOptions{Archive: bytes.NewReader(whole), Dir: filepath.Join(root, "data")}), statussync.CodeConflict, "another restore", "remove it")
	wantCode(t, restoreErr(t, RestoreOptions{Archive: bytes.NewReader(whole), Dir: filepath.Join(root, ".data"+stageName, "..")}), statussync.CodeConflict, "not empty")
}

func TestOneBackupAtATime(t *testing.T) {
	dir := t.TempDir()
	s, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := os.WriteFile(filepath.Join(dir, "second.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	files := append(storeFiles(), storeFile{name: "absent.db"})
	b := newBackups(dir, files, "v", quiet())
	one, err := b.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Backup(t.Context())
	wantCode(t, err, statussync.CodeConflict, "another backup")
	if err := s.Append(t.Context(), &statussync.Batch{Epoch: "e1"}); err != nil { // what waits to be read holds nothing
		t.Error(err)
	}
	var buf bytes.Buffer
	if n, err := one.WriteTo(&buf); err != nil || n != one.Size() || int64(buf.Len()) != n {
		t.Errorf("%d of %d, %v", n, one.Size(), err)
	}
	if m, err := CheckBackup(&buf); err != nil || len(m.Files) != 1 {
		t.Errorf("%+v, %v", m, err)
	}
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	two, err := b.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := two.Close(); err != nil {
		t.Error(err)
	}
	// After a restart the service before may still be reading from its own, and close it late.
	late, err := b.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	next := newBackups(dir, files, "v", quiet())
	three, err := next.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = late.Close()
	buf.Reset()
	if _, err := three.WriteTo(&buf); err != nil {
		t.Error(err)
	}
	if err := three.Close(); err != nil {
		t.Error(err)
	}
	// One that fails gives the place free.
	missing := newBackups(dir, append(files, storeFile{name: "gone.db", required: true}), "v", quiet())
	for range 2 {
		_, err := missing.Backup(t.Context())
		wantCode(t, err, statussync.CodeUnavailable)
	}
	if d := cmp.Diff([]string{"second.db", "statussync.db", "statussync.db-shm", "statussync.db-wal", "statussync.lock"}, list(t, dir)); d != "" {
		t.Error(d)
	}
}
