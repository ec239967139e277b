package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// journal is a service that has nothing but a journal: it answers GET /updates by its documented rules, 3 entries a page.
type journal struct {
	entries  []*statussync.Entry
	deleted  uint64 // entries up to here are gone
	expireAt int    // the page with this number says expired; 0: none
	durable  bool
	pages    int
}

func (j *journal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	head := statussync.Cursor{Epoch: "e2", Seq: uint64(len(j.entries))}
	answer := func(v any) { json.NewEncoder(w).Encode(v) }
	if r.URL.Path == "/readyz" {
		answer(wire.Ready{Status: wire.ReadyYes, Durable: j.durable, Cursor: head.String()})
		return
	}
	q := r.URL.Query()
	j.pages++
	var after statussync.Cursor
	if err := after.UnmarshalText([]byte(q.Get("after"))); err != nil || r.URL.Path != "/api/v1/updates" {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	if after.IsZero() {
		after = statussync.Cursor{Epoch: head.Epoch, Seq: j.deleted}
	}
	if after.Epoch != head.Epoch || after.Seq < j.deleted || j.pages == j.expireAt {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusGone)
		answer(wire.Problem{Type: "about:blank", Title: "Gone", Status: 410, Code: statussync.CodeExpired, Detail: "entries after the cursor are not kept any more", RequestID: "r"})
		return
	}
	limit, _ := strconv.Atoi(q.Get("limit"))
	page := wire.Page[*statussync.Entry]{Items: []*statussync.Entry{}}
	for n := min(limit, 3); after.Seq < head.Seq && n > 0; n-- {
		e := j.entries[after.Seq]
		after.Seq++
		if s := q.Get("server_ids"); s == "" || s == e.ServerID {
			page.Items = append(page.Items, e)
		}
	}
	page.Cursor = after.String()
	if after != head {
		page.NextCursor = page.Cursor
	}
	answer(page)
}

// serveJournal serves n entries, one a minute from noon on.
func serveJournal(t *testing.T, n int) (*journal, string) {
	t.Helper()
	j := &journal{durable: true}
	for i := range n {
		e := &statussync.Entry{
			Seq: uint64(i + 1), Epoch: "e2", Kind: statussync.KindStatus, Timestamp: now.Add(time.Duration(i) * time.Minute), Source: statussync.SourceDTMA,
			ServerID: []string{"weather", "billing"}[i%2], Version: uint64(i/2 + 1), Details: fmt.Sprintf("entry <%d>", i+1),
			Previous: &statussync.Status{State: "running", Health: "healthy", Reason: "ok"}, Current: &statussync.Status{State: "error", Health: "unhealthy", Reason: "probe_failing"},
			Changes: []string{"state", "health", "reason"},
		}
		if i < 4 {
			e.Epoch = "e1" // the journal goes on through epochs
		}
		j.entries = append(j.entries, e)
	}
	srv := httptest.NewServer(j)
	t.Cleanup(srv.Close)
	return j, srv.URL
}

func (j *journal) lines(from, to int) string {
	var b []byte
	for _, e := range j.entries[from:to] {
		b = append(e.AppendJSON(b), '\n')
	}
	return string(b)
}

func TestExportNDJSON(t *testing.T) {
	j, url := serveJournal(t, 20)
	do := func(want string, args ...string) {
		t.Helper()
		j.pages = 0
		r := exec(t.Context(), append([]string{"export"}, args...), withEnv("STATUSSYNC_SERVER", url))
		if r.code != 0 || r.err != "" {
			t.Errorf("%v: %d %s", args, r.code, r.err)
		}
		if d := cmp.Diff(want, r.out); d != "" {
			t.Errorf("%v: %s", args, d)
		}
	}
	do(j.lines(0, 20))
	do(j.lines(5, 9), "--from", "2026-03-01T12:05:00Z", "--to", "2026-03-01T12:09:00Z")
	do(j.lines(2, 4), "--from", "2026-03-01T12:02:00Z", "--to", "2026-03-01T12:04:00Z")
	if j.pages > 9 { // 20 entries are 7 pages of 3, and the search takes as many
		t.Errorf("%d requests for 2 of 20 entries", j.pages)
	}
	do(j.lines(17, 20), "--from", "2026-03-01T12:16:30Z")
	if j.pages > 12 {
		t.Errorf("%d requests for the last 3 of 20 entries", j.pages)
	}
	do(j.lines(0, 20), "--from", "2026-03-01")
	do("", "--from", "2026-03-02")
	do("", "--to", "2026-03-01")
	do(j.lines(0, 20), "--from", "1h", "--to", "2026-03-02")
	j.deleted = 7
	do(j.lines(7, 20))
	do(j.lines(7, 20), "--from", "2026-03-01T12:03:00Z")
	j.deleted = 20
	do("")
	j.deleted = 0
	var billing []byte
	for i := 1; i < 20; i += 2 {
		billing = append(j.entries[i].AppendJSON(billing), '\n')
	}
	do(string(billing), "--server", "billing")

	_, empty := serveJournal(t, 0)
	if r := exec(t.Context(), []string{"export"}, withEnv("STATUSSYNC_SERVER", empty)); r.code != 0 || r.out != "" {
		t.Errorf("%+v", r)
	}
}

func TestExportThatIsNotComplete(t *testing.T) {
	j, url := serveJournal(t, 20)
	env := withEnv("STATUSSYNC_SERVER", url)
	file := filepath.Join(t.TempDir(), "out.ndjson")
	j.expireAt = 4
	r := exec(t.Context(), []string{"export"}, env)
	if r.code != exitRefused || !strings.Contains(r.err, "not complete: after 9 entries") || r.out != j.lines(0, 9) {
		t.Errorf("%+v", r)
	}
	j.pages = 0
	r = exec(t.Context(), []string{"export", "--output", file}, env)
	if list, err := os.ReadDir(filepath.Dir(file)); r.code != exitRefused || err != nil || len(list) != 0 {
		t.Errorf("%+v, %v, %v", r, list, err)
	}
	j.expireAt = 0
	j.durable = false
	if r = exec(t.Context(), []string{"export"}, env); r.code != exitRefused || r.out != "" || !strings.Contains(r.err, "store is in trouble") {
		t.Errorf("%+v", r)
	}
	j.durable = true
	if r = exec(t.Context(), []string{"export", "--output", file}, env); r.code != 0 || r.out != "" || !strings.Contains(r.err, "20 entries up to e2:20") {
		t.Errorf("%+v", r)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != j.lines(0, 20) {
		t.Errorf("%v: %s", err, b)
	}
	if r = exec(t.Context(), []string{"export", "-o", file}, env); r.code != exitUsage || !strings.Contains(r.err, "--force") {
		t.Errorf("%+v", r)
	}
	for _, args := range [][]string{{"--format", "xml"}, {"--from", "yesterday"}, {"--from", "2026-03-02", "--to", "2026-03-01"}, {"--kinds", "nothing"}} {
		if r = exec(t.Context(), append([]string{"export"}, args...), env); r.code != exitUsage || r.out != "" {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

// TestExportCSV compares with a golden file what becomes of every kind of entry, and of texts that mean harm.
func TestExportCSV(t *testing.T) {
	j, url := serveJournal(t, 0)
	at := now.Add(1500 * time.Microsecond)
	add := func(e statussync.Entry) {
		e.Seq, e.Epoch, e.Timestamp = uint64(len(j.entries)+1), "e2", at
		j.entries = append(j.entries, &e)
	}
	was := &statussync.Status{State: "running", Health: "healthy", Reason: "ok"}
	for _, text := range []string{"plain", `=HYPERLINK("http://evil","x")`, "+1", "-1", "@SUM(A1)", "a,b", `quoted "text"`, "two\r\nlines", "\tTab", "'already", "Zoë 天気", ""} {
		add(statussync.Entry{Kind: statussync.KindStatus, Source: statussync.SourceHeartbeat, ServerID: "@server", EnvironmentID: "-box", Version: 3, Previous: was,
			Current: &statussync.Status{State: "running", Health: "unhealthy", Reason: "probe_failing", Cause: "http_503", LastError: text, Marks: statussync.MarkFlapping | statussync.MarkOverride},
			Changes: []string{"health", "reason"}, Details: text})
	}
	add(statussync.Entry{Kind: statussync.KindServerRemoved, Source: statussync.SourceSystem, ServerID: "weather", Version: 4, Previous: was, Details: "server weather was removed"})
	add(statussync.Entry{Kind: statussync.KindEnvironmentSilent, Source: statussync.SourceSystem, EnvironmentID: "box-7", ServerIDs: []string{"=a", "b"}, Details: "environment box-7 is silent"})
	add(statussync.Entry{Kind: statussync.KindMaintenanceBegin, Source: statussync.SourceManual, MaintenanceID: "-w", ServerIDs: []string{"weather"}, Details: "maintenance began"})
	r := exec(t.Context(), []string{"export", "--format", "csv"}, withEnv("STATUSSYNC_SERVER", url))
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	golden := filepath.Join("testdata", "export.csv")
	if *rewrite {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(r.out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), r.out); d != "" {
		t.Error(d)
	}
	if n := strings.Count(strings.ReplaceAll(r.out, "\r\n", ""), "\n"); n != 0 {
		t.Errorf("%d lines end without CR", n)
	}
	rows, err := csv.NewReader(bytes.NewReader([]byte(r.out))).ReadAll()
	if err != nil || len(rows) != len(j.entries)+1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	for _, row := range rows {
		for _, f := range row {
			if f != "" && strings.ContainsAny(f[:1], "=+-@\t\r\n") {
				t.Errorf("a spreadsheet takes %q for a formula", f)
			}
		}
	}
	empty := exec(t.Context(), []string{"export", "--format", "csv", "--to", "2020-01-01"}, withEnv("STATUSSYNC_SERVER", url))
	if empty.code != 0 || strings.Count(empty.out, "\n") != 1 || !strings.HasPrefix(empty.out, "seq,epoch,timestamp,kind,") {
		t.Errorf("%+v", empty)
	}
}

// TestBackupThatBreaksOff: what is not whole never gets its name.
func TestBackupThatBreaksOff(t *testing.T) {
	answer := func(w http.ResponseWriter, _ *http.Request) {}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r) }))
	defer srv.Close()
	tar := func(length, written int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/x-tar")
			w.Header().Set("Content-Length", strconv.Itoa(length))
			io.WriteString(w, strings.Repeat("x", written))
		}
	}
	for name, tc := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		code   int
		say    string
	}{
		"cut":            {tar(5000, 3000), exitUnreachable, "closed before the answer was complete"},
		"no backup":      {tar(5000, 5000), exitNotHealthy, "the backup cannot be used"},
		"something else": {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }, exitUnreachable, "not a backup"},
		"a refusal": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(503)
			io.WriteString(w, `{"type":"about:blank","title":"x","status":503,"code":"unavailable","detail":"the disk has no room","request_id":"r"}`)
		}, exitRefused, "the disk has no room"},
	} {
		t.Run(name, func(t *testing.T) {
			answer = tc.answer
			dir := t.TempDir()
			file := filepath.Join(dir, "b.tar")
			if err := os.WriteFile(file, []byte("older"), 0o600); err != nil {
				t.Fatal(err)
			}
			r := exec(t.Context(), []string{"backup", file, "--force"}, withEnv("STATUSSYNC_SERVER", srv.URL))
			if r.code != tc.code || !strings.Contains(r.err, tc.say) {
				t.Errorf("%+v", r)
			}
			if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
				t.Errorf("%v, %v", list, err)
			}
			if b, err := os.ReadFile(file); err != nil || string(b) != "older" {
				t.Errorf("the older backup is gone: %q, %v", b, err)
			}
			if r := exec(t.Context(), []string{"backup", "-"}, withEnv("STATUSSYNC_SERVER", srv.URL)); r.code == exitOK {
				t.Errorf("to the standard output: %+v", r)
			}
		})
	}
	if r := exec(t.Context(), []string{"backup", "-"}, onTerminal); r.code != exitUsage {
		t.Errorf("%+v", r)
	}
}
