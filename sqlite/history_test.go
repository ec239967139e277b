package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
)

func openHistory(t testing.TB, o HistoryOptions) *History {
	t.Helper()
	h, err := OpenHistory(context.Background(), o)
	if err != nil {
		t.Fatalf("OpenHistory: %v", err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return h
}

func probeRow(id string, at time.Time, count uint64) statussync.ProbeRow {
	return statussync.ProbeRow{ServerID: id, Start: at, Count: count, Failures: 1, Sketch: []byte{1, 2, byte(count)}}
}

func put(t testing.TB, h *History, batch uint64, rows ...statussync.ProbeRow) {
	t.Helper()
	if err := h.PutMinutes(context.Background(), "r", batch, rows); err != nil {
		t.Fatal(err)
	}
}

func minutesOf(t testing.TB, h *History) (out []string) {
	t.Helper()
	err := h.Minutes(context.Background(), time.Unix(0, 0), start.AddDate(1, 0, 0), func(r statussync.ProbeRow) error {
		out = append(out, fmt.Sprintf("%s %s %d/%d %x", r.ServerID, r.Start.Sub(start), r.Count, r.Failures, r.Sketch))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestHistoryProbes(t *testing.T) {
	ctx := t.Context()
	o := HistoryOptions{Dir: t.TempDir()}
	h := openHistory(t, o)
	if m, err := h.Marks(ctx); err != nil || m != (statussync.ProbeMarks{}) {
		t.Errorf("a new file: %+v %v", m, err)
	}
	put(t, h, 1, probeRow("b", start, 5), probeRow("a", start, 3))
	put(t, h, 1, probeRow("a", start, 99)) // the batch is there already
	put(t, h, 2, probeRow("a", start.Add(61*time.Minute), 4), probeRow("a", start, 7))
	want := []string{"b 0s 5/1 010205", "a 0s 7/1 010207", "a 1h1m0s 4/1 010204"}
	if d := cmp.Diff(want, minutesOf(t, h)); d != "" {
		t.Error(d)
	}
	if m, err := h.Marks(ctx); err != nil || !m.HoursTo.Equal(start) || m.Run != "r" || m.Batch != 2 {
		t.Errorf("%+v %v", m, err)
	}
	if err := h.PutHour(ctx, start, []statussync.ProbeRow{probeRow("a", start, 7), probeRow("c", start, 1)}); err != nil {
		t.Fatal(err)
	}
	if err := h.PutHour(ctx, start, []statussync.ProbeRow{probeRow("a", start, 8)}); err != nil { // whole, in place of before
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = openHistory(t, o)
	check := func(id string, hours bool, from, to time.Duration, known bool, want ...string) {
		t.Helper()
		rows, m, k, err := h.ServerProbes(ctx, id, hours, start.Add(from), start.Add(to))
		if err != nil || k != known || !m.HoursTo.Equal(start.Add(time.Hour)) {
			t.Errorf("%s: %v %+v %v", id, k, m, err)
		}
		var got []string
		for _, r := range rows {
			if r.ServerID != id {
				t.Errorf("a row of %s", r.ServerID)
			}
			got = append(got, fmt.Sprintf("%s %d", r.Start.Sub(start), r.Count))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s hours=%v [%v, %v): %q, want %q", id, hours, from, to, got, want)
		}
	}
	check("a", false, 0, 2*time.Hour, true, "0s 7", "1h1m0s 4")
	check("a", false, time.Minute, 61*time.Minute, true)
	check("a", false, time.Minute, 61*time.Minute+1, true, "1h1m0s 4")
	check("a", true, 0, 2*time.Hour, true, "0s 8", "1h1m0s 4")
	check("a", true, time.Hour, 2*time.Hour, true, "1h1m0s 4")
	check("c", true, 0, 2*time.Hour, true)
	check("nobody", true, 0, 2*time.Hour, false)
	put(t, h, 3, probeRow("b", start.Add(time.Minute), 1)) // its hour is to be made again
	if m, err := h.Marks(ctx); err != nil || !m.HoursTo.Equal(start) {
		t.Errorf("%+v %v", m, err)
	}
}

func span(id string, at time.Duration, c statussync.SpanClass) statussync.Span {
	s := statussync.Span{ServerID: id, Begin: start.Add(at), Class: c, Reason: statussync.ReasonOK}
	if c == statussync.SpanUnavailable {
		s.Reason, s.Cause, s.Details = statussync.ReasonProbeFailing, "http_503", "it fails"
	}
	return s
}

func TestHistorySpans(t *testing.T) {
	ctx := t.Context()
	o := HistoryOptions{Dir: t.TempDir()}
	h := openHistory(t, o)
	at := statussync.SpanCheckpoint{Cursor: statussync.Cursor{Epoch: "e7abc", Seq: 41}, At: start.Add(time.Hour)}
	all := []statussync.Span{
		span("a", 0, statussync.SpanAvailable), span("a", 10*time.Minute, statussync.SpanUnavailable), span("a", 20*time.Minute, statussync.SpanChanging),
		span("a", 30*time.Minute, statussync.SpanAvailable), span("b", 5*time.Minute, statussync.SpanUnknown), span("c", 0, statussync.SpanOff),
		span("c", time.Minute, statussync.SpanRemoved),
	}
	if err := h.PutSpans(ctx, all, at, false); err != nil {
		t.Fatal(err)
	}
	if err := h.PutSpans(ctx, all[:3], statussync.SpanCheckpoint{}, false); err != nil { // again: nothing changes, the checkpoint stays
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = openHistory(t, o)
	tracks, got, err := h.Tracks(ctx)
	if err != nil || got != at {
		t.Errorf("%+v %v", got, err)
	}
	want := []statussync.SpanTrack{{ServerID: "a", Begin: start.Add(30 * time.Minute), Class: statussync.SpanAvailable}, {ServerID: "b", Begin: start.Add(5 * time.Minute), Class: statussync.SpanUnknown}}
	if d := cmp.Diff(want, tracks); d != "" {
		t.Error(d)
	}
	read := func(ids []string, from, to time.Duration) (out []statussync.Span) {
		t.Helper()
		if err := h.Spans(ctx, ids, start.Add(from), start.Add(to), func(id string, list []statussync.Span) error {
			for _, s := range list {
				if s.ServerID != id {
					t.Errorf("%s among those of %s", s.ServerID, id)
				}
			}
			out = append(out, list...)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, c := range []struct {
		ids      []string
		from, to time.Duration
		want     []statussync.Span
	}{
		{nil, 0, time.Hour, all},
		{[]string{"c", "nobody", "a"}, 0, time.Hour, append(slices.Clone(all[5:]), all[:4]...)},
		{[]string{"a"}, 25 * time.Minute, 30 * time.Minute, all[:3]}, // from the last that ends an incident
		{[]string{"a"}, 30 * time.Minute, time.Hour, all[3:4]},
		{[]string{"b"}, -time.Hour, 0, nil},
		{[]string{"b"}, time.Hour, 2 * time.Hour, all[4:5]},
	} {
		if d := cmp.Diff(c.want, read(c.ids, c.from, c.to)); d != "" {
			t.Errorf("%v %v %v: %s", c.ids, c.from, c.to, d)
		}
	}
	if err := h.PutSpans(ctx, nil, statussync.SpanCheckpoint{}, true); err != nil {
		t.Fatal(err)
	}
	if tracks, got, err := h.Tracks(ctx); err != nil || len(tracks) != 0 || !got.Cursor.IsZero() || read(nil, 0, time.Hour) != nil {
		t.Errorf("after a reset: %v %v %v", tracks, got, err)
	}
}

// TestHistoryRetention: minutes go after 48 h, once their hour is made; hours and spans after 90 d; an incident that
// reaches into what is kept keeps its beginning; a server that was removed long ago is forgotten.
func TestHistoryRetention(t *testing.T) {
	ctx := t.Context()
	c := &clock{t: start}
	h := openHistory(t, HistoryOptions{Dir: t.TempDir(), Now: c.now})
	day := 24 * time.Hour
	put(t, h, 1, probeRow("a", start, 1), probeRow("a", start.Add(59*time.Minute), 2), probeRow("a", start.Add(time.Hour), 3))
	if err := h.PutSpans(ctx, []statussync.Span{
		span("a", -10*day, statussync.SpanUnavailable), span("a", -5*day, statussync.SpanAvailable), span("a", 0, statussync.SpanUnavailable),
		span("a", day, statussync.SpanChanging), span("gone", 0, statussync.SpanAvailable), span("gone", day, statussync.SpanRemoved),
		span("back", 0, statussync.SpanRemoved), span("back", 100*day, statussync.SpanAvailable),
	}, statussync.SpanCheckpoint{}, false); err != nil {
		t.Fatal(err)
	}
	state := func() string {
		t.Helper()
		var n [4]int
		err := h.f.reads.QueryRow(`SELECT (SELECT count(*) FROM minutes), (SELECT count(*) FROM hours), (SELECT count(*) FROM spans), (SELECT count(*) FROM servers)`).Scan(&n[0], &n[1], &n[2], &n[3])
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(n)
	}
	at := func(d time.Duration, want string) {
		t.Helper()
		c.t = start.Add(d)
		if err := h.retain(ctx); err != nil {
			t.Fatal(err)
		}
		if got := state(); got != want {
			t.Errorf("after %v: minutes, hours, spans, servers %s, want %s", d, got, want)
		}
	}
	at(47*time.Hour, "[3 0 8 3]")
	at(50*time.Hour, "[3 0 8 3]") // no hour is made yet
	if err := h.PutHour(ctx, start, []statussync.ProbeRow{probeRow("a", start, 3)}); err != nil {
		t.Fatal(err)
	}
	at(50*time.Hour, "[1 1 8 3]")
	if m, err := h.Marks(ctx); err != nil || !m.MinutesFrom.Equal(start.Add(time.Hour)) {
		t.Errorf("%+v %v", m, err)
	}
	if err := h.PutHour(ctx, start.Add(time.Hour), []statussync.ProbeRow{probeRow("a", start.Add(time.Hour), 3)}); err != nil {
		t.Fatal(err)
	}
	at(86*day, "[0 2 7 3]") // the incident of long ago is over
	at(90*day+90*time.Minute, "[0 1 7 3]")
	at(92*day, "[0 0 5 2]") // gone is forgotten, back is not; a is down since its first day
	at(400*day, "[0 0 4 2]")
	if err := h.PutMinutes(ctx, "r", 9, []statussync.ProbeRow{probeRow("gone", c.t, 1)}); err != nil { // numbered anew
		t.Fatal(err)
	}
}

// TestHistorySize: the file stays within its bound, and what is newest stays.
func TestHistorySize(t *testing.T) {
	ctx := t.Context()
	c := &clock{t: start}
	const limit = MinMaxBytes
	h := openHistory(t, HistoryOptions{Dir: t.TempDir(), MaxBytes: limit, Now: c.now})
	const servers, minutes = 20, 12 * 60
	rows := make([]statussync.ProbeRow, servers)
	for m := 4; m < minutes; m += 5 {
		c.t = start.Add(time.Duration(m) * time.Minute)
		for i := range rows {
			rows[i] = statussync.ProbeRow{ServerID: fmt.Sprint("s", i), Start: c.t, Count: 2, Sketch: make([]byte, 5000)}
		}
		put(t, h, uint64(m+1), rows...)
		if m%60 == 59 {
			if err := h.PutHour(ctx, c.t.Truncate(time.Hour), rows); err != nil {
				t.Fatal(err)
			}
			if err := h.f.keepHouse(ctx, h.retain, ""); err != nil {
				t.Fatal(err)
			}
			if st := h.Stats(); st.FileBytes > limit {
				t.Fatalf("after %d minutes: %+v", m, st)
			}
		}
	}
	minute, hour, _, err := h.oldest(ctx)
	if err != nil || minute <= unixMinute(start) || hour != unixHour(start) {
		t.Errorf("the oldest minute is %v, hour %v: %v", minuteTime(minute).Sub(start), hourTime(hour).Sub(start), err)
	}
	got, _, _, err := h.ServerProbes(ctx, "s7", false, c.t.Add(-30*time.Minute), c.t.Add(time.Minute))
	if err != nil || len(got) != 7 {
		t.Errorf("%d of the newest minutes: %v", len(got), err)
	}
}

// TestHistoryFull: a disk that is full is said, changes nothing, and is over when there is room.
func TestHistoryFull(t *testing.T) {
	ctx := t.Context()
	h := openHistory(t, HistoryOptions{Dir: t.TempDir()})
	put(t, h, 1, probeRow("a", start, 1))
	if err := h.f.w.exec(`PRAGMA max_page_count = 20`); err != nil {
		t.Fatal(err)
	}
	var rows []statussync.ProbeRow
	for i := range 3000 {
		rows = append(rows, statussync.ProbeRow{ServerID: fmt.Sprint("s", i), Start: start, Count: 1, Sketch: make([]byte, 50)})
	}
	err := h.PutMinutes(ctx, "r", 2, rows)
	if statussync.CodeOf(err) != statussync.CodeUnavailable || !strings.Contains(err.Error(), "disk is full") || h.Healthy(ctx) == nil {
		t.Errorf("%v, %v", err, h.Healthy(ctx))
	}
	if got := minutesOf(t, h); len(got) != 1 {
		t.Errorf("%d rows", len(got))
	}
	h.f.dropWriter() // the bound is the connection's
	if err := h.PutMinutes(ctx, "r", 2, rows); err != nil || h.Healthy(ctx) != nil {
		t.Errorf("%v, %v", err, h.Healthy(ctx))
	}
	if got := minutesOf(t, h); len(got) != 3001 {
		t.Errorf("%d rows", len(got))
	}
}

func TestHistoryOpen(t *testing.T) {
	ctx := t.Context()
	_, err := OpenHistory(ctx, HistoryOptions{})
	wantError(t, err, statussync.CodeInvalid, "Options.Dir")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, HistoryFileName), []byte(strings.Repeat("no database at all", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = OpenHistory(ctx, HistoryOptions{Dir: dir})
	wantError(t, err, statussync.CodeUnavailable, HistoryFileName)

	h := openHistory(t, HistoryOptions{Dir: t.TempDir()})
	for range 2 {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, marks := h.Marks(ctx)
	_, _, tracks := h.Tracks(ctx)
	_, _, _, rows := h.ServerProbes(ctx, "a", false, start, start)
	for name, err := range map[string]error{
		"Marks": marks, "Tracks": tracks, "ServerProbes": rows, "PutMinutes": h.PutMinutes(ctx, "r", 1, nil), "PutHour": h.PutHour(ctx, start, nil),
		"PutSpans": h.PutSpans(ctx, nil, statussync.SpanCheckpoint{}, true), "Healthy": h.Healthy(ctx), "Run": h.Run(ctx),
		"Spans": h.Spans(ctx, []string{"a"}, start, start, nil), "Minutes": h.Minutes(ctx, start, start, nil),
	} {
		if !errors.Is(err, errClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
}
