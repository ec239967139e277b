package sqlite

import (
	"database/sql"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	"github.com/agentopia/statussync"
	"github.com/google/go-cmp/cmp"
)

func resourceRow(env string, at time.Time, cpu int64) statussync.ResourceRow {
	r := statussync.ResourceRow{EnvironmentID: env, Start: at}
	r.CPU.Add(cpu, 0)
	r.Memory.Add(10*cpu, 1000)
	return r
}

// resourcesOf is what is stored: "minute-or-hour-since-start:samples".
func resourcesOf(t *testing.T, h *History, env string, hours bool) (out []string) {
	t.Helper()
	rows, _, _, _, err := h.Resources(t.Context(), env, hours, start.Add(-100*24*time.Hour), start.Add(10*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	unit := time.Minute
	if hours {
		unit = time.Hour
	}
	for _, r := range rows {
		out = append(out, fmt.Sprintf("%d:%d", r.Start.Sub(start)/unit, r.CPU.Count))
	}
	return out
}

func TestResourceRetention(t *testing.T) {
	now := start
	h := openHistory(t, HistoryOptions{Dir: t.TempDir(), Now: func() time.Time { return now }})
	var batch uint64
	put := func(at time.Duration, envs ...string) {
		t.Helper()
		batch++
		var rows []statussync.ResourceRow
		for _, e := range envs {
			rows = append(rows, resourceRow(e, start.Add(at), 100))
		}
		for range 2 { // the second changes nothing
			if err := h.PutResources(t.Context(), "run", batch, rows); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(-91*24*time.Hour, "old", "box")
	put(-49*time.Hour, "box")
	put(-47*time.Hour, "box")
	put(-47*time.Hour+time.Minute, "box", "other")
	if err := h.retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"-2820:1", "-2819:1"}, resourcesOf(t, h, "box", false)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"-49:1", "-47:2"}, resourcesOf(t, h, "box", true)); d != "" {
		t.Error(d)
	}
	for env, want := range map[string]bool{"old": false, "box": true, "other": true} {
		if _, _, _, known, err := h.Resources(t.Context(), env, true, start, start); err != nil || known != want {
			t.Errorf("%s is known: %v, %v", env, known, err)
		}
	}
	now = start.Add(91 * 24 * time.Hour)
	if err := h.retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := h.f.reads.QueryRow(`SELECT (SELECT count(*) FROM environments) + (SELECT count(*) FROM resource_minutes) + (SELECT count(*) FROM resource_hours)`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d rows are left, %v", n, err)
	}
}

// TestResourceSize: a history that is too large gives up its oldest resources, too, but not the newest day.
func TestResourceSize(t *testing.T) {
	h := openHistory(t, HistoryOptions{Dir: t.TempDir(), MaxBytes: MinMaxBytes, Now: func() time.Time { return start }})
	const environments, times = 30, 94 // every half an hour of 47 h
	rows := make([]statussync.ResourceRow, environments)
	for i := range times {
		for e := range rows {
			rows[e] = resourceRow(fmt.Sprint("box-", e), start.Add(time.Duration(i-times)*30*time.Minute), 1<<40)
		}
		if err := h.PutResources(t.Context(), "run", uint64(i+1), rows); err != nil {
			t.Fatal(err)
		}
	}
	// What takes the rest of the room, with the log at its largest, can't be deleted; 48 KiB are too much.
	pages, free, err := h.f.pages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = h.write(t.Context(), "filling", func(w *writer) error {
		if err := w.exec(`CREATE TABLE ballast (b BLOB)`); err != nil {
			return err
		}
		return w.exec(`INSERT INTO ballast VALUES (zeroblob(?))`, int64(MinMaxBytes)*15/16-(pages-free+h.f.opts.logPages())*pageSize+48<<10)
	})
	if err != nil {
		t.Fatal(err)
	}
	if large, err := h.f.tooMuch(t.Context()); err != nil || !large {
		t.Fatalf("the test is too small: %v, %v", large, err)
	}
	if err := h.retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if large, err := h.f.tooMuch(t.Context()); err != nil || large {
		t.Errorf("it is still too large: %v, %v", large, err)
	}
	minutes, hours := resourcesOf(t, h, "box-7", false), resourcesOf(t, h, "box-7", true)
	if len(minutes) == times || len(hours) < 24 || hours[len(hours)-1] != "-1:2" {
		t.Errorf("%v, %v", minutes, hours)
	}
}

func TestRewriteOfResources(t *testing.T) {
	dir := named(t, 10)
	h := openHistory(t, HistoryOptions{Dir: dir})
	if err := h.PutResources(t.Context(), "run", 1, []statussync.ResourceRow{resourceRow(secret, start, 1), resourceRow("box", start, 1)}); err != nil {
		t.Fatal(err)
	}
	h.Close()
	_, err := Rewrite(t.Context(), Options{Dir: dir}, true, "a test", func(r *Rewriting) error {
		if err := forget(r); err != nil {
			return err
		}
		return r.History(func(h *HistoryRewriting) error {
			var seen []string
			err := h.Environments(func(id string) bool {
				seen = append(seen, id)
				return id == secret
			})
			if slices.Sort(seen); len(seen) != 2 {
				t.Errorf("%v", seen)
			}
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if in := grep(t, dir, secret); in != nil {
		t.Errorf("the name is still in %v", in)
	}
	h = openHistory(t, HistoryOptions{Dir: dir})
	for _, hours := range []bool{false, true} {
		if got := resourcesOf(t, h, "box", hours); len(got) != 1 {
			t.Errorf("%v", got)
		}
		if got := resourcesOf(t, h, secret, hours); len(got) != 0 {
			t.Errorf("%v", got)
		}
	}
}

// TestHistoryOfBefore: a file of the version before is taken over with its spans, whose states nobody knows.
func TestHistoryOfBefore(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, HistoryFileName)
	first, err := fs.ReadFile(historyMigrations, "migrations_history/00001_history.sql")
	if err != nil {
		t.Fatal(err)
	}
	o, err := Options{Dir: dir}.complete()
	if err != nil {
		t.Fatal(err)
	}
	if err := prepareFile(path); err != nil {
		t.Fatal(err)
	}
	if err := migrate(t.Context(), path, fstest.MapFS{"00001_history.sql": {Data: first}}, o.Logger); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`INSERT INTO servers VALUES (1, 'a'); INSERT INTO spans VALUES (1, ?, 1, 'crashed', 'exit_137', 'it fell')`, start.UnixMilli()); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	h := openHistory(t, HistoryOptions{Dir: dir})
	next := statussync.Span{ServerID: "a", Begin: start.Add(time.Second), Class: statussync.SpanAvailable, State: statussync.StateRunning, Health: statussync.HealthHealthy}
	if err := h.PutSpans(t.Context(), []statussync.Span{next}, statussync.SpanCheckpoint{}, false); err != nil {
		t.Fatal(err)
	}
	var got []statussync.Span
	err = h.Spans(t.Context(), nil, start, start.Add(time.Hour), func(_ string, list []statussync.Span) error {
		got = slices.Clone(list)
		return nil
	})
	want := []statussync.Span{{ServerID: "a", Begin: start, Class: statussync.SpanUnavailable, Reason: "crashed", Cause: "exit_137", Details: "it fell"}, next}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(d, err)
	}
	if tracks, _, err := h.Tracks(t.Context()); err != nil || len(tracks) != 1 || tracks[0].Health != statussync.HealthHealthy {
		t.Errorf("%+v %v", tracks, err)
	}
}
