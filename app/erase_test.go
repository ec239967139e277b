package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/sqlite"
	"github.com/agentopia/statussync/wire"
)

// theJournal is every entry of a running service.
func theJournal(t *testing.T, c *client.Client) (raw []string, entries []*statussync.Entry) {
	t.Helper()
	q := client.UpdatesQuery{Clause: statussync.Clause{Kinds: statussync.Kinds}}
	page, err := c.RawUpdates(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range page.Items {
		var e statussync.Entry
		if err := json.Unmarshal(r, &e); err != nil {
			t.Fatal(err)
		}
		raw, entries = append(raw, string(r)), append(entries, &e)
	}
	return raw, entries
}

// followed waits until uptime knows all of the journal.
func (r *running) followed() {
	r.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, r.url+"/metrics", nil)
		if err != nil {
			r.t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer viewer-token")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			r.t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			r.t.Fatal(err)
		}
		if bytes.Contains(b, []byte("\nstatussync_uptime_lag_entries 0\n")) {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			r.t.Fatal("uptime does not follow the journal")
		}
	}
}

func TestEraseActor(t *testing.T) {
	data := t.TempDir()
	r := peopled(t, data)
	_, err := Erase(t.Context(), data, EraseOptions{Actor: "ada"})
	wantCode(t, err, statussync.CodeConflict, "in use by process")
	before, _ := theJournal(t, r.as("viewer-token"))
	r.followed()
	ready, err := r.as("viewer-token").Ready(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old, err := statussync.ParseCursor(ready.Cursor)
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	for _, left := range []string{sqlite.FileName + ".v1.bak", filepath.Join(backupFolder, sqlite.FileName)} {
		p := filepath.Join(data, left)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("by ada"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dry, err := Erase(t.Context(), data, EraseOptions{Actor: "ada", DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{sqlite.FileName, sqlite.HistoryFileName, sqlite.FileName, sqlite.FileName + ".v1.bak"}, holding(t, data, "by ada")); d != "" {
		t.Errorf("a dry run changed something: %s", d)
	}
	rep, err := Erase(t.Context(), data, EraseOptions{Actor: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	dry.DryRun = false
	if d := cmp.Diff(dry, rep); d != "" {
		t.Errorf("the dry run said something else: %s", d)
	}
	if rep.Entries != 2 || rep.Records != 1 || rep.History < 1 || !rep.NewEpoch || rep.Mentions != 0 || len(rep.FilesRemoved) != 1 {
		t.Errorf("%+v", rep)
	}
	// Not the name alone: three letters also stand in random ids and counts.
	for _, word := range []string{"by ada", `"ada"`, "note of the one"} {
		if in := holding(t, data, word); in != nil {
			t.Errorf("%q is still in %v", word, in)
		}
	}
	if in := holding(t, data, "note of another"); in == nil {
		t.Error("somebody else's note is gone")
	}
	again, err := Erase(t.Context(), data, EraseOptions{Actor: "ada"})
	if err != nil || again.NewEpoch || again.Entries+again.Records+again.Rows+again.History > 0 {
		t.Errorf("%+v, %v", again, err)
	}

	r = startWhole(t, data, "")
	c := r.as("viewer-token")
	after, _ := theJournal(t, c)
	changed := 0
	for i, e := range before {
		if i >= len(after) {
			t.Fatalf("%d entries of %d", len(after), len(before))
		}
		if e != after[i] {
			changed++
			// The note is all that is gone beside the name.
			if want := strings.ReplaceAll(strings.ReplaceAll(e, "by ada", "by erased"), " (note of the one)", ""); after[i] != want {
				t.Errorf("%s\nbecame %s", e, after[i])
			}
		}
	}
	if changed != 2 {
		t.Errorf("%d entries were changed", changed)
	}
	_, err = c.Updates(t.Context(), client.UpdatesQuery{After: old})
	wantCode(t, err, statussync.CodeExpired, "another epoch")
	st, err := c.Status(t.Context(), "billing")
	if err != nil || st.State != "error" || st.Override == nil || st.Override.Actor != "erased" || st.Override.Note != "" {
		t.Errorf("%+v, %v: the override is to stay in force", st, err)
	}
}

func TestEraseOwner(t *testing.T) {
	data := t.TempDir()
	r := peopled(t, data)
	c := r.as("admin-token")
	if _, err := c.AddServer(t.Context(), wire.ServerSpec{ID: "gone", EnvironmentID: "box-9", Probe: &wire.ProbeSpec{Kind: "none"}}); err != nil {
		t.Fatal(err)
	}
	_, before := theJournal(t, c)
	r.followed()
	r.stop()
	if len(holding(t, data, `u1 \u0026 sons`)) == 0 || len(holding(t, data, "very-secret")) == 0 {
		t.Fatal("nothing to erase")
	}
	rep, err := Erase(t.Context(), data, EraseOptions{Owner: "u1 & sons"})
	if err != nil {
		t.Fatal(err)
	}
	want := EraseReport{
		NewEpoch: true, Entries: 6, Records: 3, Tokens: 1, ServersRemoved: []string{"billing", "gone"}, EnvironmentsRemoved: []string{"box-9"},
		Servers: []string{}, Environments: []string{}, StillDefined: []wire.StillDefined{}, FilesRemoved: []string{}, History: 2,
	}
	rep.Entries, want.Entries = min(rep.Entries, 5), 5 // how many the engine makes of it is not the point
	if d := cmp.Diff(want, rep); d != "" {
		t.Error(d)
	}
	for _, word := range []string{"u1 & sons", `u1 \u0026 sons`, "billing", "box-9", "very-secret"} {
		if in := holding(t, data, word); in != nil {
			t.Errorf("%q is still in %v", word, in)
		}
	}
	r = startWhole(t, data, "")
	c = r.as("admin-token")
	_, after := theJournal(t, c)
	for i, e := range before {
		a := after[i]
		if e.Seq != a.Seq || e.Epoch != a.Epoch || e.Kind != a.Kind || !e.Timestamp.Equal(a.Timestamp) || e.Version != a.Version || (e.Current != nil && !e.Current.Equal(a.Current)) {
			t.Errorf("%+v became %+v", e, a)
		}
		if theirs := e.ServerID == "billing" || e.ServerID == "gone"; theirs != strings.HasPrefix(a.ServerID, "erased-") || theirs != (a.Details == "erased") {
			t.Errorf("%+v became %+v", e, a)
		}
	}
	for _, e := range after[len(before):] {
		if e.Kind == statussync.KindServerRemoved {
			t.Errorf("the service tells of what it has forgotten: %+v", e)
		}
	}
	_, err = c.Server(t.Context(), "billing")
	wantCode(t, err, statussync.CodeNotFound)
	if st, err := c.Status(t.Context(), "fixed"); err != nil || st.Override == nil || st.Override.Note != "note of another" {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := c.AddServer(t.Context(), wire.ServerSpec{ID: "billing", Probe: &wire.ProbeSpec{Kind: "none"}}); err != nil {
		t.Errorf("the id is free: %v", err)
	}
}

func TestEraseWhatTheConfigurationDefines(t *testing.T) {
	data := t.TempDir()
	config := "flapping: {changes: 6}\n"
	r := startWhole(t, data, config)
	r.stop()
	// registryConfig names no owner: define one more service's worth of it on the same data.
	c, err := ParseConfig("x.yaml", []byte("listen: 127.0.0.1:0\ndata: "+data+"\nenvironments: [{id: box-7, owner: user-seven}]\nservers: [{id: fixed, environment: box-7, probe: {kind: none}}, {id: own, owner: user-seven, probe: {kind: none}}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	_, stop := runService(t, c)
	stop()
	rep, err := Erase(t.Context(), data, EraseOptions{Owner: "user-seven"})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]wire.StillDefined{{EnvironmentID: "box-7", Origin: "config"}, {ServerID: "own", Origin: "config"}}, rep.StillDefined); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"fixed", "own"}, rep.Servers); d != "" {
		t.Error(d)
	}
	if in := holding(t, data, "user-seven"); in != nil {
		t.Errorf("still in %v", in)
	}
}

func TestEraseRefusals(t *testing.T) {
	dir := t.TempDir()
	for _, o := range []EraseOptions{{}, {Owner: "u1", Actor: "ada"}, {Owner: "u"}, {Actor: "erased"}} {
		_, err := Erase(t.Context(), dir, o)
		wantCode(t, err, statussync.CodeInvalid)
	}
	_, err := Erase(t.Context(), dir, EraseOptions{Owner: "u1"})
	wantCode(t, err, statussync.CodeNotFound, dir)
	r := peopled(t, dir)
	r.stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Erase(ctx, dir, EraseOptions{Actor: "ada"}); err == nil {
		t.Error("done although it was given up before it began")
	}
	if in := holding(t, dir, "ada"); in == nil {
		t.Error("done although it was given up before it began")
	}
}
