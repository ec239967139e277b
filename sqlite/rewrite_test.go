package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/agentopia/statussync"
	"github.com/google/go-cmp/cmp"
)

const secret = "Melusine"

// grep returns the files of a folder that hold text.
func grep(t *testing.T, dir, text string) (in []string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(text)) {
			in = append(in, f.Name())
		}
	}
	return in
}

// named makes a store of n entries, every third of which names somebody, with records that do, some of them deleted.
func named(t *testing.T, n int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	s := open(t, Options{Dir: dir})
	list := updates("e1", 0, n, 10)
	for i := range list {
		if i%3 == 0 {
			list[i].Details = "overridden by " + secret
			list[i].JSON = list[i].AppendJSON(nil)
		}
	}
	for len(list) > 0 {
		k := min(1000, len(list))
		err := s.Append(t.Context(), &statussync.Batch{Entries: list[:k], Records: []statussync.Record{
			{Kind: statussync.RecordServer, ID: "a", Data: []byte(`{"who":"` + secret + `"}`)},
			{Kind: statussync.RecordServer, ID: "b", Data: []byte(`{"who":"nobody"}`)},
			{Kind: statussync.RecordServer, ID: "gone", Data: bytes.Repeat([]byte(secret), 10_000)},
		}})
		if err != nil {
			t.Fatal(err)
		}
		list = list[k:]
	}
	if err := s.Append(t.Context(), &statussync.Batch{Records: []statussync.Record{{Kind: statussync.RecordServer, ID: "gone"}}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if len(grep(t, dir, secret)) == 0 {
		t.Fatal("the name is nowhere to begin with")
	}
	return dir
}

// forget takes the name out of everything.
func forget(r *Rewriting) error {
	err := r.Records(func(rec statussync.Record) ([]byte, bool, error) {
		if !bytes.Contains(rec.Data, []byte(secret)) {
			return nil, false, nil
		}
		return bytes.ReplaceAll(rec.Data, []byte(secret), []byte("x")), true, nil
	})
	if err != nil {
		return err
	}
	return r.Entries([]string{secret}, func(e *statussync.Entry) (bool, error) {
		if !strings.Contains(e.Details, secret) {
			return false, errors.New("an entry without the text was shown")
		}
		e.Details = "overridden by x"
		return true, nil
	})
}

// content is everything that readers of a store see.
func content(t *testing.T, dir string) (head statussync.Cursor, entries []string, records map[string]string) {
	t.Helper()
	s := open(t, Options{Dir: dir})
	defer s.Close()
	head, _ = s.Head()
	list, err := s.Read(t.Context(), statussync.Cursor{Epoch: head.Epoch}, 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		entries = append(entries, string(e.JSON))
	}
	records = map[string]string{}
	for r, err := range s.Records(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		records[r.ID] = string(r.Data)
	}
	return head, entries, records
}

func TestRewriteLeavesNothingBehind(t *testing.T) {
	dir := named(t, 1500)
	if err := os.WriteFile(filepath.Join(dir, FileName+".v1.bak"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	copies, err := Rewrite(t.Context(), Options{Dir: dir}, true, "a test", forget)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{FileName + ".v1.bak"}, copies); d != "" {
		t.Error(d)
	}
	if in := grep(t, dir, secret); in != nil {
		t.Errorf("the name is still in %v", in)
	}
	head, entries, records := content(t, dir)
	if head.Epoch == "e1" || head.Seq != 1500 || len(entries) != 1500 {
		t.Errorf("%d entries up to %v", len(entries), head)
	}
	for i, e := range entries {
		want := update("e1", uint64(i)+1, 10)
		if i%3 == 0 {
			want.Details = "overridden by x"
		}
		if string(want.AppendJSON(nil)) != e {
			t.Fatalf("entry %d: %s", i+1, e)
		}
	}
	if d := cmp.Diff(map[string]string{"a": `{"who":"x"}`, "b": `{"who":"nobody"}`}, records); d != "" {
		t.Error(d)
	}
	if in := grep(t, dir, secret); in != nil {
		t.Errorf("the name came back in %v", in)
	}
	// The labels and the index by server are whole.
	s := open(t, Options{Dir: dir})
	h, err := s.History(t.Context(), statussync.HistoryQuery{ServerID: serverID(3), Limit: 1000})
	if err != nil || len(h) != 150 || h[0].Labels["team"] != "core" {
		t.Errorf("%d, %v", len(h), err)
	}
}

func TestRewriteChangesAllOrNothing(t *testing.T) {
	mine := errors.New("mine")
	for name, tc := range map[string]struct {
		keep bool
		f    func(*Rewriting) error
		want error
	}{
		"an error": {true, func(r *Rewriting) error { return errors.Join(forget(r), mine) }, mine},
		"dry run":  {false, forget, nil},
		"a moved entry": {true, func(r *Rewriting) error {
			return r.Entries(nil, func(e *statussync.Entry) (bool, error) { e.Seq++; return true, nil })
		}, statussync.NewError(statussync.CodeUnavailable, "", nil)},
	} {
		t.Run(name, func(t *testing.T) {
			dir := named(t, 100)
			head, entries, records := content(t, dir)
			_, err := Rewrite(t.Context(), Options{Dir: dir}, tc.keep, "a test", tc.f)
			if (err == nil) != (tc.want == nil) || (tc.want == mine && !errors.Is(err, mine)) {
				t.Error(err)
			}
			h, e, r := content(t, dir)
			if h != head || !cmp.Equal(e, entries) || !cmp.Equal(r, records) {
				t.Errorf("something changed: %v, %v", h, head)
			}
		})
	}
}

// TestInterruptedScrub: the process died after the changes were durable, before the old bytes were gone.
func TestInterruptedScrub(t *testing.T) {
	dir := named(t, 1000)
	path := filepath.Join(dir, FileName)
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(`BEGIN; UPDATE entries SET json = CAST(replace(CAST(json AS TEXT), '` + secret + `', 'x') AS BLOB);
UPDATE records SET data = CAST('{}' AS BLOB); INSERT INTO meta (key, value) VALUES ('scrub', 1), ('new_epoch', 'a test'); COMMIT`)
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".v1.bak", []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	if grep(t, dir, secret) == nil {
		t.Fatal("nothing is left to do")
	}
	head, entries, _ := content(t, dir)
	if in := grep(t, dir, secret); in != nil {
		t.Errorf("opened, the name is still in %v", in)
	}
	if head.Epoch == "e1" || len(entries) != 1000 {
		t.Errorf("%v, %d", head, len(entries))
	}
	if again, _, _ := content(t, dir); again != head {
		t.Errorf("%v, then %v", head, again)
	}
}

func TestRewriteOfOtherTables(t *testing.T) {
	dir := named(t, 10)
	db, err := sql.Open("sqlite", dsn(filepath.Join(dir, FileName)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(`CREATE TABLE "win dows" (id TEXT PRIMARY KEY, actor TEXT, n INTEGER, body BLOB) STRICT;
INSERT INTO "win dows" VALUES ('1', ?1, 7, NULL), ('2', 'other', 8, CAST('{"k":"' || ?1 || '"}' AS BLOB)), ('3', 'other', 9, NULL)`, secret)
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	_, err = Rewrite(t.Context(), Options{Dir: dir}, true, "a test", func(r *Rewriting) error {
		err := r.OtherRows([]string{secret}, func(table string, row map[string]any) bool {
			if table != "win dows" || row["id"] == "3" {
				t.Errorf("%s %v", table, row)
			}
			row["actor"], row["body"] = "x", nil
			return true
		})
		return errors.Join(err, r.Rows([]string{secret}, func(table string, _ map[string]any) { seen[table]++ }))
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]int{"entries": 4, "records": 1}, seen); d != "" {
		t.Error(d)
	}
	db, err = sql.Open("sqlite", dsn(filepath.Join(dir, FileName)))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var sum, actors int
	if err := db.QueryRow(`SELECT sum(n), count(*) FILTER (WHERE actor = 'x' AND body IS NULL) FROM "win dows"`).Scan(&sum, &actors); err != nil || sum != 24 || actors != 2 {
		t.Errorf("%d, %d, %v", sum, actors, err)
	}
}

func TestRewriteRefusals(t *testing.T) {
	f := func(*Rewriting) error { t.Error("called"); return nil }
	dir := t.TempDir()
	if _, err := Rewrite(t.Context(), Options{Dir: dir}, true, "", f); statussync.CodeOf(err) != statussync.CodeNotFound {
		t.Error(err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("%v, %v: something was made", list, err)
	}
	open(t, Options{Dir: dir})
	if _, err := Rewrite(t.Context(), Options{Dir: dir}, true, "", f); statussync.CodeOf(err) != statussync.CodeConflict || !strings.Contains(err.Error(), "in use by process") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	dir = named(t, 10)
	_, err := Rewrite(ctx, Options{Dir: dir}, true, "", func(r *Rewriting) error { err := forget(r); cancel(); return err })
	if !errors.Is(err, context.Canceled) || grep(t, dir, secret) == nil {
		t.Errorf("given up: %v", err)
	}
}
