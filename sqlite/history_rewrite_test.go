package sqlite

import (
	"bytes"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/google/go-cmp/cmp"
)

// withHistory adds a history to a store, in which somebody is named by a server's id, and in the spans of another.
func withHistory(t *testing.T, dir string) {
	t.Helper()
	h, err := OpenHistory(t.Context(), HistoryOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	put(t, h, 1, probeRow(secret, start, 1), probeRow("other", start, 2))
	err = h.PutHour(t.Context(), start, []statussync.ProbeRow{probeRow(secret, start, 1), probeRow("other", start, 2)})
	var spans []statussync.Span
	for i := range 500 {
		for _, id := range []string{secret, "other"} {
			s := span(id, time.Duration(2*i)*time.Second, statussync.SpanUnavailable)
			s.Details = "overridden by " + secret
			spans = append(spans, s, span(id, time.Duration(2*i+1)*time.Second, statussync.SpanAvailable))
		}
	}
	at := statussync.SpanCheckpoint{Cursor: statussync.Cursor{Epoch: "e1", Seq: 1}, At: start}
	if err = errors.Join(err, h.PutSpans(t.Context(), spans, at, false), h.Close()); err != nil {
		t.Fatal(err)
	}
}

// forgetHistory takes the name out of it.
func forgetHistory(r *Rewriting) error {
	return r.History(func(h *HistoryRewriting) error {
		err := h.Servers(func(id string) bool { return id == secret })
		return errors.Join(err, h.Spans(func(s *statussync.Span) bool {
			if s.ServerID != "other" || s.Cause != "http_503" || s.Class != statussync.SpanUnavailable {
				panic(s)
			}
			s.Details = "overridden by x"
			return true
		}))
	})
}

func both(r *Rewriting) error { return errors.Join(forget(r), forgetHistory(r)) }

// historyIn tells what a history holds: how many spans and probes of each server, and its details.
func historyIn(t *testing.T, dir string) (spans map[string]int, details map[string]int) {
	t.Helper()
	h := openHistory(t, HistoryOptions{Dir: dir})
	defer h.Close()
	spans, details = map[string]int{}, map[string]int{}
	err := h.Spans(t.Context(), nil, start, start.Add(time.Hour), func(id string, list []statussync.Span) error {
		spans[id] = len(list)
		for _, s := range list {
			details[s.Details]++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return spans, details
}

func TestRewriteOfHistory(t *testing.T) {
	dir := named(t, 100)
	withHistory(t, dir)
	if err := os.WriteFile(filepath.Join(dir, HistoryFileName+".v1.bak"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(*Rewriting) error{
		"dry run":  both,
		"an error": func(r *Rewriting) error { return errors.Join(both(r), errors.New("mine")) },
	} {
		if _, err := Rewrite(t.Context(), Options{Dir: dir}, name != "dry run", "a test", f); (err == nil) != (name == "dry run") {
			t.Fatalf("%s: %v", name, err)
		}
		if spans, _ := historyIn(t, dir); len(spans) != 2 {
			t.Errorf("%s: %v", name, spans)
		}
		if after, err := os.ReadDir(dir); err != nil || len(after) != len(before) {
			t.Errorf("%s: %v, %v", name, after, err)
		}
	}
	copies, err := Rewrite(t.Context(), Options{Dir: dir}, true, "a test", both)
	if d := cmp.Diff([]string{HistoryFileName + ".v1.bak"}, copies); err != nil || d != "" {
		t.Fatal(err, d)
	}
	if in := grep(t, dir, secret); in != nil {
		t.Errorf("the name is still in %v", in)
	}
	spans, details := historyIn(t, dir)
	if d := cmp.Diff(map[string]int{"other": 1000}, spans); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string]int{"overridden by x": 500, "": 500}, details); d != "" {
		t.Error(d)
	}
	h := openHistory(t, HistoryOptions{Dir: dir})
	for _, hours := range []bool{false, true} {
		rows, _, known, err := h.ServerProbes(t.Context(), "other", hours, start, start.Add(time.Hour))
		if err != nil || !known || len(rows) != 1 || rows[0].Count != 2 {
			t.Errorf("%v, %v, %v", rows, known, err)
		}
		if _, _, known, err := h.ServerProbes(t.Context(), secret, hours, start, start.Add(time.Hour)); err != nil || known {
			t.Errorf("%v, %v", known, err)
		}
	}
	if _, at, err := h.Tracks(t.Context()); err != nil || at.Cursor.Seq != 1 {
		t.Errorf("%v, %v: the checkpoint is to stay", at, err)
	}
	if fi, err := os.Stat(filepath.Join(dir, HistoryFileName)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}

// The process died between the two files: what the journal's transaction says counts.
func TestInterruptedSwap(t *testing.T) {
	rewritten := named(t, 10)
	withHistory(t, rewritten)
	if _, err := Rewrite(t.Context(), Options{Dir: rewritten}, true, "a test", both); err != nil {
		t.Fatal(err)
	}
	next, err := os.ReadFile(filepath.Join(rewritten, HistoryFileName))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		marks   string
		next    bool
		servers int
	}{
		{"before the commit", "", true, 2},
		{"after it", "('scrub', 1), ('swap', 1)", true, 1},
		{"after the rename", "('scrub', 1), ('swap', 1)", false, 2},
		{"without a history", "('scrub', 1)", false, 2},
	} {
		for _, again := range []string{"open", "rewrite"} {
			t.Run(tc.name+", "+again, func(t *testing.T) {
				dir := named(t, 10)
				withHistory(t, dir)
				if tc.next {
					if err := os.WriteFile(filepath.Join(dir, historyNext), next, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.WriteFile(filepath.Join(dir, historyDraft+"-wal"), []byte(secret), 0o600); err != nil {
					t.Fatal(err)
				}
				// A log beside the old file: it must not be taken for the new one's.
				if tc.servers == 1 {
					if err := os.WriteFile(filepath.Join(dir, HistoryFileName+"-wal"), bytes.Repeat([]byte(secret), 1000), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if tc.marks != "" {
					db, err := sql.Open("sqlite", dsn(filepath.Join(dir, FileName)))
					if err != nil {
						t.Fatal(err)
					}
					_, err = db.Exec(`INSERT INTO meta (key, value) VALUES ` + tc.marks)
					if err = errors.Join(err, db.Close()); err != nil {
						t.Fatal(err)
					}
				}
				if again == "open" {
					content(t, dir)
				} else if _, err := Rewrite(t.Context(), Options{Dir: dir}, false, "", func(*Rewriting) error { return nil }); err != nil {
					t.Fatal(err)
				}
				if spans, _ := historyIn(t, dir); len(spans) != tc.servers {
					t.Errorf("%v", spans)
				}
				list, err := os.ReadDir(dir)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range list {
					if strings.HasPrefix(f.Name(), historyDraft) {
						t.Errorf("%s is left", f.Name())
					}
				}
			})
		}
	}
}

func TestCheckHistory(t *testing.T) {
	dir := named(t, 10)
	withHistory(t, dir)
	path := filepath.Join(dir, HistoryFileName)
	if err := CheckHistory(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	err := CheckHistory(t.Context(), filepath.Join(dir, FileName))
	if statussync.CodeOf(err) != statussync.CodeUnavailable {
		t.Errorf("a journal: %v", err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for statement, say := range map[string]string{
		`CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM spans; END`:    "trigger t",
		`CREATE VIEW journal AS SELECT 1`:                                       "view journal",
		`INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`: "newer version",
		`DROP TABLE spans`: "no table spans",
	} {
		p := filepath.Join(t.TempDir(), HistoryFileName)
		if err := os.WriteFile(p, good, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := sql.Open("sqlite", p)
		if err == nil {
			_, err = db.Exec(statement)
			err = errors.Join(err, db.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckHistory(t.Context(), p); statussync.CodeOf(err) != statussync.CodeUnavailable || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v", statement, err)
		}
	}
	torn := filepath.Join(t.TempDir(), HistoryFileName)
	clear(good[len(good)-8192 : len(good)-100])
	if err := os.WriteFile(torn, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CheckHistory(t.Context(), torn); statussync.CodeOf(err) != statussync.CodeUnavailable || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("torn: %v", err)
	}
}
