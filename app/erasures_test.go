package app

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/sqlite"
	"github.com/agentopia/statussync/wire"
)

func TestEraseOnline(t *testing.T) {
	data := t.TempDir()
	if err := os.MkdirAll(filepath.Join(data, eraseFolder), 0o700); err != nil { // a dry run of an earlier process
		t.Fatal(err)
	}
	r := peopled(t, data)
	c := r.as("admin-token")
	ctx := t.Context()
	if _, err := c.SetProbing(ctx, false); err != nil {
		t.Fatal(err)
	}
	for _, m := range []wire.MaintenanceRequest{{ServerIDs: []string{"billing"}, Duration: "1h", Note: "her words"}, {ServerIDs: []string{"fixed"}, Duration: "2h", Note: "her words"}} {
		if _, err := c.AddMaintenance(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	r.followed()
	ready, err := c.Ready(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range []wire.EraseRequest{{}, {Owner: "u1", Actor: "ada"}, {Owner: "x"}} {
		_, err := c.Erase(ctx, req)
		wantCode(t, err, statussync.CodeInvalid)
	}
	_, err = r.as("operator-token").Erase(ctx, wire.EraseRequest{Owner: "u1 & sons"})
	wantCode(t, err, statussync.CodeForbidden)
	_, err = c.Erasure(ctx, "none")
	wantCode(t, err, statussync.CodeNotFound)

	dry, err := c.Erase(ctx, wire.EraseRequest{Owner: "u1 & sons", DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if now, err := c.Ready(ctx); err != nil || now.Cursor != ready.Cursor || !dry.DryRun || len(dry.ServersRemoved) != 1 {
		t.Errorf("a dry run: %+v, %v; %+v", now, err, dry)
	}
	if _, err := os.Stat(filepath.Join(data, eraseFolder)); err == nil {
		t.Error("the snapshot of the dry run is still there")
	}
	rep, err := c.Erase(ctx, wire.EraseRequest{Owner: "u1 & sons"})
	if err != nil {
		t.Fatal(err)
	}
	if rep.DryRun || !rep.NewEpoch || rep.Tokens != 1 || rep.History != 1 || strings.Join(rep.ServersRemoved, " ") != "billing" || strings.Join(rep.EnvironmentsRemoved, " ") != "box-9" {
		t.Errorf("%+v", rep)
	}
	for _, word := range []string{"u1 & sons", `u1 \u0026 sons`, "& sons", "billing", "box-9", "very-secret"} {
		if in := holding(t, data, word); in != nil {
			t.Errorf("%q is still in %v", word, in)
		}
	}
	now, err := c.Ready(ctx)
	if err != nil || now.Cursor == ready.Cursor {
		t.Fatalf("%+v, %v: no new epoch", now, err)
	}
	_, err = c.Server(ctx, "billing")
	wantCode(t, err, statussync.CodeNotFound)
	_, err = c.ServerUptime(ctx, "billing", "1h")
	wantCode(t, err, statussync.CodeNotFound)
	if list, err := r.as("viewer-token").Maintenances(ctx, 0, ""); err != nil || len(list.Items) != 1 || list.Items[0].ServerIDs[0] != "fixed" {
		t.Errorf("%+v, %v: the window of the one server is left", list, err)
	}
	if strings.Contains(r.log.String(), "u1 & sons") {
		t.Error("the log says who was erased")
	}

	rep, err = c.Erase(ctx, wire.EraseRequest{Actor: "ada"})
	if err != nil || rep.Entries == 0 || rep.Records != 2 || rep.History == 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	for _, word := range []string{"by ada", `"ada"`, "note of the one", "her words"} { // three letters alone turn up in hashes
		if in := holding(t, data, word); in != nil {
			t.Errorf("%q is still in %v", word, in)
		}
	}
	if p, err := c.Probing(ctx); err != nil || p.Enabled || p.ChangedBy != "erased" {
		t.Errorf("%+v, %v", p, err)
	}
}

// A failure reaches who asked, the service is back, and nothing has changed.
func TestEraseOnlineFails(t *testing.T) {
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, sqlite.HistoryFileName), bytes.Repeat([]byte("no database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	r := peopled(t, data)
	c := r.as("admin-token")
	before, _ := theJournal(t, c)
	_, err := c.Erase(t.Context(), wire.EraseRequest{Actor: "ada"})
	wantCode(t, err, statussync.CodeUnavailable, "history.db: ")
	after, _ := theJournal(t, c)
	if d := cmp.Diff(before, after); d != "" {
		t.Error(d)
	}
	_, err = c.Erase(t.Context(), wire.EraseRequest{Actor: "ada", DryRun: true})
	wantCode(t, err, statussync.CodeUnavailable)
	for _, name := range list(t, data) {
		if strings.Contains(name, "erase") {
			t.Errorf("%s is left", name)
		}
	}
	// Such a file does not spoil backups: they have none.
	m, err := CheckBackup(bytes.NewReader(archived(t, c)))
	if err != nil || len(m.Files) != 1 {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestErasures(t *testing.T) {
	var e erasures
	var first wire.Erasure
	for i := range keptErasures + 2 {
		x, err := e.begin(i%2 == 0)
		if err != nil || x.Status != wire.ErasureRunning || x.DryRun != (i%2 == 0) {
			t.Fatalf("%+v, %v", x, err)
		}
		if i == 0 {
			first = x
		}
		_, err = e.begin(false)
		wantCode(t, err, statussync.CodeConflict, "another erasure")
		if i == 5 { // one that was refused
			e.drop(x.ID)
			_, err := e.get(x.ID)
			wantCode(t, err, statussync.CodeNotFound)
			continue
		}
		var why error
		if i == 3 {
			why = cannot("the disk has no room", errors.New("/var/lib/secret"))
		}
		if got := e.end(x.ID, &wire.EraseReport{Entries: i}, why); (got.Status == wire.ErasureFailed) != (i == 3) || got.FinishedAt == nil {
			t.Errorf("%+v", got)
		}
		got, err := e.get(x.ID)
		switch {
		case err != nil:
			t.Error(err)
		case i == 3:
			if d := cmp.Diff(&wire.ErasureError{Code: statussync.CodeUnavailable, Detail: "the disk has no room"}, got.Error); d != "" || got.Report != nil {
				t.Errorf("%+v %s", got, d)
			}
		case got.Status != wire.ErasureDone || got.Report.Entries != i:
			t.Errorf("%+v", got)
		}
	}
	_, err := e.get(first.ID)
	wantCode(t, err, statussync.CodeNotFound)
	if len(e.list) != keptErasures {
		t.Errorf("%d are kept", len(e.list))
	}
}

// filesOf are the files of a backup.
func filesOf(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if err == io.EOF {
			delete(files, "manifest.json")
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// Uptime after a restore: what has kept its class is counted on, the rest is unknown between what is stored and what is
// seen again, and nothing is counted twice; also where the two files of a backup are not of the same moment.
func TestUptimeAfterRestore(t *testing.T) {
	data := t.TempDir()
	r := peopled(t, data) // fixed is off since it was stopped, billing unavailable
	c := r.as("admin-token")
	r.followed()
	r.stored(data, "fixed", statussync.SpanOff)
	early := filesOf(t, archived(t, c))
	if _, err := c.SetOverride(t.Context(), "fixed", wire.OverrideRequest{State: "running"}); err != nil {
		t.Fatal(err)
	}
	r.followed()
	r.stored(data, "fixed", statussync.SpanAvailable)
	late := filesOf(t, archived(t, c))
	r.stop()
	if d := cmp.Diff([]string{sqlite.HistoryFileName, sqlite.FileName}, slices.Sorted(maps.Keys(early))); d != "" {
		t.Fatal(d)
	}
	const j, h = sqlite.FileName, sqlite.HistoryFileName
	for _, tc := range []struct {
		name  string
		files map[string][]byte
		want  []statussync.SpanClass // of fixed, the newest
	}{
		{"the same moment", early, []statussync.SpanClass{"off"}},
		{"the same moment, later", late, []statussync.SpanClass{"off", "available"}},
		{"the history is newer", map[string][]byte{j: early[j], h: late[h]}, []statussync.SpanClass{"unknown", "off"}},
		{"the history is older", map[string][]byte{j: late[j], h: early[h]}, []statussync.SpanClass{"unknown", "available"}},
		{"no history", map[string][]byte{j: late[j]}, []statussync.SpanClass{"off", "available"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if _, err := Restore(t.Context(), RestoreOptions{Archive: bytes.NewReader(forgedArchive(t, tc.files, nil)), Dir: dir}); err != nil {
				t.Fatal(err)
			}
			r := startWhole(t, dir, "")
			r.followed()
			c := r.as("viewer-token")
			for _, id := range []string{"fixed", "billing"} {
				u, err := c.ServerUptime(t.Context(), id, "1h")
				if err != nil {
					t.Fatal(err)
				}
				sum := u.AvailableSeconds + u.LimitedSeconds + u.UnavailableSeconds + u.ChangingSeconds + u.OffSeconds + u.UnknownSeconds + u.MaintenanceSeconds
				if sum < u.WindowSeconds-0.1 || sum > u.WindowSeconds+0.1 {
					t.Errorf("%s: %v of %v seconds: %+v", id, sum, u.WindowSeconds, u)
				}
			}
			r.stop()
			spans := spansIn(t, dir)
			for id, list := range spans {
				for i := 1; i < len(list); i++ {
					if !list[i].Begin.After(list[i-1].Begin) || list[i].Class == list[i-1].Class {
						t.Errorf("%s: %v, then %v", id, list[i-1], list[i])
					}
				}
			}
			var got []statussync.SpanClass
			for _, s := range spans["fixed"] {
				got = append(got, s.Class)
			}
			got = got[max(0, len(got)-len(tc.want)):]
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("%s in %v", d, spans["fixed"])
			}
			// What has not changed goes on through it all.
			if l := spans["billing"]; len(l) == 0 || l[len(l)-1].Class != statussync.SpanUnavailable || l[len(l)-1].Reason != "override" {
				t.Errorf("%v", l)
			}
		})
	}
}

// stored waits until a class is the newest that is stored of a server.
func (r *running) stored(dir, id string, class statussync.SpanClass) {
	r.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		to := filepath.Join(r.t.TempDir(), sqlite.HistoryFileName)
		if err := sqlite.SnapshotFile(r.t.Context(), filepath.Join(dir, sqlite.HistoryFileName), to); err != nil {
			r.t.Fatal(err)
		}
		if l := spansIn(r.t, filepath.Dir(to))[id]; len(l) > 0 && l[len(l)-1].Class == class {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			r.t.Fatalf("%s is never %s", id, class)
		}
	}
}

// spansIn are all spans in the history of a data directory that nobody uses.
func spansIn(t *testing.T, dir string) map[string][]statussync.Span {
	t.Helper()
	h, err := sqlite.OpenHistory(t.Context(), sqlite.HistoryOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	out := map[string][]statussync.Span{}
	err = h.Spans(t.Context(), nil, time.Time{}, time.Now().Add(time.Hour), func(id string, list []statussync.Span) error {
		out[id] = slices.Clone(list)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
