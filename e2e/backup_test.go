//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/sqlite"
)

// TestBackupUnderLoad takes a backup of the real service while heartbeats change its servers, lets it go on for a while,
// kills it, and starts it again from the backup at the same address. Clients come back by themselves with cursors from
// before: behind the restored head, at it, and beyond it, where the new journal then uses the same numbers for other
// entries. Each must be told to start afresh, once, and end with the right state, entry by entry.
func TestBackupUnderLoad(t *testing.T) {
	const flips = 6
	servers := list{unprobed("steady", "box", "running")}
	for i := range flips {
		servers = append(servers, unprobed(fmt.Sprintf("flip-%d", i), "box", "stopped"))
	}
	conf := obj{"environments": list{envOf("box", "token-box")}, "servers": servers}
	s := startService(t, conf)

	n := 0
	beat := func() {
		n++
		all := []obj{container("steady", "running", "Up 2 hours")}
		for i := range flips {
			c := container(fmt.Sprintf("flip-%d", i), "running", "Up 2 hours")
			if (n+i)%2 == 0 {
				c = container(fmt.Sprintf("flip-%d", i), "exited", "Exited (0) 2 hours ago")
			}
			all = append(all, c)
		}
		s.postHeartbeat("token-box", heartbeat(all...))
	}
	load := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			for ctx.Err() == nil {
				beat()
				pause(ctx, 15*time.Millisecond)
			}
		})
		return func() { cancel(); wg.Wait() }
	}
	head := func() string { _, c := s.servers(""); return c }
	grow := func(what, from string, by uint64) string {
		var now string
		waitFor(t, 20*time.Second, what, func() (bool, string) {
			now = head()
			return seqOf(now) >= seqOf(from)+by, now
		})
		return now
	}
	beat()
	s.waitStatus(15*time.Second, "steady", "running", "healthy", "ok")
	start := head()
	// These three live through it all, on connections that break with the service.
	ws, sse := &follower{name: "ws"}, &follower{name: "sse", sse: true}
	impish := &follower{name: "impish", impish: true}
	for _, f := range []*follower{ws, sse, impish} {
		s.follow(f, start)
	}
	stop := load()
	behind := grow("load before the backup", start, 100)
	file := filepath.Join(t.TempDir(), "backup.tar")
	code, out, errs := cli(t, []string{"STATUSSYNC_SERVER=" + s.base}, "backup", file, "-o", "json")
	if code != 0 {
		t.Fatalf("backup: %d %s%s", code, out, errs)
	}
	beyond := grow("load after the backup", head(), 120)
	stop()
	s.settled("steady")
	journal := s.updates(start, "")
	end := journal[len(journal)-1]
	for _, f := range []*follower{ws, sse, impish} {
		f.waitLast(t, 10*time.Second, end)
		f.check(t, journal)
	}
	s.kill()

	s.data = filepath.Join(s.dir, "restored")
	if code, out, errs := cli(t, nil, "restore", file, "--data", s.data); code != 0 {
		t.Fatalf("restore: %d %s%s", code, out, errs)
	}
	s.configure(conf)
	s.start()
	s.ready()
	restored := head()
	if epochOf(restored) == epochOf(start) || seqOf(restored) < seqOf(behind) || seqOf(restored) >= seqOf(beyond) {
		t.Fatalf("restored at %s; the backup was taken between %s and %s", restored, behind, beyond)
	}
	at := fmt.Sprintf("%s:%d", epochOf(start), seqOf(restored))
	late := []*follower{
		{name: "behind"}, {name: "at the restored head"}, {name: "beyond"}, {name: "beyond, sse", sse: true},
		{name: "beyond, filtered", sub: obj{"filters": list{obj{"server_ids": list{"flip-0"}}}}},
	}
	for i, cursor := range []string{behind, at, beyond, beyond, beyond} {
		s.follow(late[i], cursor)
	}
	for _, cursor := range []string{behind, at, beyond} {
		if code, b := s.request("GET", "/api/v1/updates?after="+cursor, nil); code != 410 || !strings.Contains(string(b), `"expired"`) {
			t.Errorf("updates after %s: %d %s", cursor, code, clip(b))
		}
	}
	stop = load()
	grow("the new journal passes the old one", end.cursor(), 20)
	stop()
	s.settled("steady")
	// One more change, so that everybody has an end to wait for.
	beat()
	s.settled("steady")
	now, _ := s.servers("")
	again := s.updates(restored, "")
	last := again[len(again)-1]
	if last.Seq <= end.Seq || last.Epoch == end.Epoch {
		t.Fatalf("%s does not reuse the numbers up to %s", last.cursor(), end.cursor())
	}
	if _, err := versionsRise(again); err != nil {
		t.Error(err)
	}
	for _, f := range append([]*follower{ws, sse, impish}, late...) {
		want := again
		if f.sub != nil {
			want = only(again, func(e *entryJSON) bool { return e.ServerID == "flip-0" })
		}
		f.waitLast(t, 15*time.Second, want[len(want)-1])
		f.mu.Lock()
		if len(f.resyncs) != 1 || f.resyncs[0] != "epoch" {
			t.Errorf("%s was resynced %v, not once for the epoch", f.name, f.resyncs)
		}
		for i := range f.subscribed {
			if fr := f.subscribed[i]; fr.Recovered && epochOf(fr.Cursor) != epochOf(restored) && i >= len(f.subscribed)-1 {
				t.Errorf("%s resumed at %s", f.name, fr.Cursor)
			}
		}
		first := f.told[0].Seq
		for id, v := range f.view {
			if want := now[id].Status; v.key() != want.key() || v.Version != want.Version {
				t.Errorf("%s believes that %s is %s version %d; it is %s version %d", f.name, id, v.key(), v.Version, want.key(), want.Version)
			}
		}
		known := flips + 1
		if f.sub != nil {
			known = 1
		}
		if len(f.view) != known {
			t.Errorf("%s knows %d servers of %d", f.name, len(f.view), known)
		}
		f.mu.Unlock()
		f.check(t, only(want, func(e *entryJSON) bool { return e.Seq >= first }))
	}
	t.Logf("%d entries, restored at %s of %s, %d entries since", len(journal), restored, end.cursor(), len(again))
	s.stop()
}

// filled makes a data directory with a journal of n entries, in which ada has overridden something every now and then.
func filled(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	j, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-time.Hour)
	batch := &statussync.Batch{AliveAt: at.Add(time.Hour)}
	for seq := 1; seq <= n; seq++ {
		e := &statussync.Entry{
			Seq: uint64(seq), Epoch: "e1", Kind: statussync.KindStatus, Timestamp: at.Add(time.Duration(seq) * time.Millisecond), Source: statussync.SourceManual,
			ServerID: fmt.Sprintf("s%d", seq%10), Version: uint64(seq/10 + 1), Details: strings.Repeat("running and healthy ", 20),
			Previous: &statussync.Status{State: "running", Health: "healthy", Reason: "ok"}, Current: &statussync.Status{State: "error", Health: "unhealthy", Reason: "override", Marks: statussync.MarkOverride},
			Changes: []string{"state"},
		}
		if seq%2 == 0 {
			e.Details = "overridden by ada-l: error, unhealthy"
		}
		batch.Entries = append(batch.Entries, statussync.Encoded{Entry: e, JSON: e.AppendJSON(nil)})
		if len(batch.Entries) == 500 || seq == n {
			if err := j.Append(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			batch.Entries = nil
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestKillDuringBackup kills the service while it takes a backup, and while somebody who asked for one does not read it:
// the store is sound afterwards, nothing is left behind, and meanwhile heartbeats were taken.
func TestKillDuringBackup(t *testing.T) {
	const entries = 15_000 // about 10 MB: more than the kernel takes for a reader who does not read (4 MiB of tcp_wmem)
	dir := filled(t, entries)
	s := newService(t, obj{"data": dir, "environments": list{envOf("box", "token-box")}, "servers": list{unprobed("a", "box", "running")}})
	rounds := 4
	if full() {
		rounds = 30
	}
	left := 0
	for round := range rounds {
		s.start()
		s.ready()
		if _, err := os.Stat(filepath.Join(dir, "backup.tmp")); !os.IsNotExist(err) {
			t.Errorf("what the last backup left is still there: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		answered, reading := make(chan struct{}), make(chan int, 1)
		go func() {
			defer close(answered)
			req, err := http.NewRequestWithContext(ctx, "GET", s.base+"/api/v1/backup", nil)
			if err != nil {
				return
			}
			// A small buffer here, so that the kernel does not take it all.
			tr := &http.Transport{DialContext: dialer(8 << 10).NetDialContext, DisableCompression: true}
			defer tr.CloseIdleConnections()
			resp, err := tr.RoundTrip(req)
			if err != nil {
				return
			}
			defer resp.Body.Close()
			io.ReadFull(resp.Body, make([]byte, 100)) // and no more: the rest waits in the service
			reading <- resp.StatusCode
			<-ctx.Done()
		}()
		if round%2 == 0 {
			waitFor(t, 20*time.Second, "a snapshot", func() (bool, string) {
				_, err := os.Stat(filepath.Join(dir, "backup.tmp"))
				return err == nil, fmt.Sprint(err)
			})
			pause(ctx, time.Duration(rand.IntN(40))*time.Millisecond)
		} else {
			select {
			case code := <-reading:
				if code != 200 {
					t.Fatalf("backup: %d", code)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("no backup came")
			}
			if code, b := s.request("GET", "/api/v1/backup", nil); code != 409 {
				t.Errorf("a second backup was not refused: %d, %d bytes", code, len(b))
			}
			for range 20 {
				s.postHeartbeat("token-box", heartbeat(container("a", "running", "Up 2 hours")))
			}
		}
		s.kill()
		if _, err := os.Stat(filepath.Join(dir, "backup.tmp")); err == nil {
			left++
		}
		cancel()
		<-answered
	}
	if left == 0 {
		t.Error("no kill hit a backup")
	}
	s.start()
	s.ready()
	list := s.updates("", "&kinds=status,server_added")
	if len(list) < entries {
		t.Errorf("%d entries of %d", len(list), entries)
	}
	for i, e := range list {
		if e.Seq != uint64(i+1) {
			t.Fatalf("number %d is %s", i, e.cursor())
		}
	}
	s.stop()
	if _, err := sqlite.Check(t.Context(), filepath.Join(dir, sqlite.FileName)); err != nil {
		t.Error(err)
	}
}

// TestEraseKill kills an erasure at random moments: then either nothing was done, or everything that readers see, and
// whoever opens the store next, or erases again, finishes it.
func TestEraseKill(t *testing.T) {
	const entries = 1000
	src := filled(t, entries)
	h, err := sqlite.OpenHistory(t.Context(), sqlite.HistoryOptions{Dir: src})
	if err != nil {
		t.Fatal(err)
	}
	var spans []statussync.Span
	for i := range entries {
		spans = append(spans, statussync.Span{ServerID: fmt.Sprintf("s%d", i%10), Begin: time.UnixMilli(int64(i)), Class: statussync.SpanUnavailable, Details: "overridden by ada-l: error, unhealthy"})
	}
	if err := errors.Join(h.PutSpans(t.Context(), spans, statussync.SpanCheckpoint{}, false), h.Close()); err != nil {
		t.Fatal(err)
	}
	content := map[string][]byte{}
	for _, name := range []string{sqlite.FileName, sqlite.HistoryFileName} {
		if content[name], err = os.ReadFile(filepath.Join(src, name)); err != nil {
			t.Fatal(err)
		}
	}
	rounds := 4
	if full() {
		rounds = 60
	}
	names := func(dir string) (n int) {
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(filepath.Join(dir, f.Name()))
			if err != nil {
				t.Fatal(err)
			}
			n += bytes.Count(b, []byte("ada-l"))
		}
		return n
	}
	var took time.Duration
	var before, after int
	for round := range rounds {
		dir := t.TempDir()
		for name, b := range content {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(theBinary(t), "erase", "--actor", "ada-l", "--data", dir)
		cmd.Env = environ()
		begun := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if round > 0 {
			at := rand.Int64N(int64(took))
			if round%2 == 0 { // the writing is at the end
				at = int64(took)/2 + at/2
			}
			pause(t.Context(), time.Duration(at))
			cmd.Process.Kill()
		}
		cmd.Wait()
		if round == 0 { // the first is not killed: it tells how long one takes
			took = time.Since(begun)
			if n := names(dir); n != 0 {
				t.Fatalf("%d names are left by one that was not killed", n)
			}
		}
		j, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		head, _ := j.Head()
		list, err := j.Read(t.Context(), statussync.Cursor{Epoch: head.Epoch}, entries+1, nil)
		if err != nil || len(list) != entries {
			t.Fatalf("%d entries, %v", len(list), err)
		}
		told := 0
		for _, e := range list {
			if strings.Contains(e.Details, "ada-l") {
				told++
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		switch {
		case told == entries/2 && head.Epoch == "e1":
			before++
		case told == 0 && head.Epoch != "e1":
			after++
			if n := names(dir); n != 0 {
				t.Errorf("%d names are left in the files of a store that tells none", n)
			}
		default:
			t.Errorf("killed after %v, %d of %d entries name her, in %s", time.Since(begun), told, entries/2, head)
		}
		if code, out, errs := cli(t, nil, "erase", "--actor", "ada-l", "--data", dir); code != 0 || names(dir) != 0 {
			t.Errorf("done again: %d %s%s, %d names", code, out, errs, names(dir))
		}
	}
	t.Logf("%d killed before, %d after it was durable", before, after)
}

// TestEraseOnline makes the real service forget an owner and then an actor while clients are connected: they resync, and
// nothing of the names is left in the files although the service goes on.
func TestEraseOnline(t *testing.T) {
	s := startService(t, obj{"environments": list{envOf("box", "token-box")}, "servers": list{unprobed("steady", "box", "running")}})
	env := []string{"STATUSSYNC_SERVER=" + s.base}
	must := func(args ...string) string {
		t.Helper()
		code, out, errs := cli(t, env, args...)
		if code != 0 {
			t.Fatalf("%v: %d %s%s", args, code, out, errs)
		}
		return out
	}
	pid := s.pid()
	must("environment", "add", "box-9", "--owner", "Mrs Melusine")
	must("server", "add", "billing-m", "--environment", "box-9")
	must("override", "set", "billing-m", "--state", "error", "--note", "words of the owner")
	beat := func() { s.postHeartbeat("token-box", heartbeat(container("steady", "running", "Up 2 hours"))) }
	beat()
	s.waitStatus(15*time.Second, "steady", "running", "healthy", "ok")
	_, start := s.servers("")
	ws, sse := &follower{name: "ws"}, &follower{name: "sse", sse: true}
	for _, f := range []*follower{ws, sse} {
		s.follow(f, start)
		waitFor(t, 20*time.Second, f.name+" to be subscribed", func() (bool, string) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return len(f.subscribed) > 0, fmt.Sprint(f.faults)
		})
	}
	waitFor(t, 20*time.Second, "uptime to know of it", func() (bool, string) {
		out := must("incidents")
		return strings.Contains(out, "billing-m"), out
	})
	if out := must("erase", "--owner", "Mrs Melusine", "--dry-run"); !strings.Contains(out, "nothing has been changed") || !strings.Contains(out, "billing-m") {
		t.Error(out)
	}
	var rep struct {
		NewEpoch bool     `json:"new_epoch"`
		History  int      `json:"history_rows"`
		Servers  []string `json:"servers_removed"`
	}
	if err := json.Unmarshal([]byte(must("erase", "--owner", "Mrs Melusine", "-o", "json")), &rep); err != nil || !rep.NewEpoch || rep.History == 0 || len(rep.Servers) != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
	if s.pid() != pid {
		t.Error("it is another process")
	}
	files, err := os.ReadDir(s.data)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(s.data, f.Name()))
		for _, word := range []string{"Melusine", "billing-m", "box-9", "words of the owner"} {
			if bytes.Contains(b, []byte(word)) {
				t.Errorf("%q is still in %s", word, f.Name())
			}
		}
		if err != nil || strings.Contains(f.Name(), "erase") {
			t.Errorf("%s: %v", f.Name(), err)
		}
	}
	code, b := s.request("GET", "/api/v1/updates?after="+start, nil)
	if code != 410 {
		t.Errorf("a cursor from before: %d %s", code, clip(b))
	}
	now, head := s.servers("")
	if len(now) != 1 || epochOf(head) == epochOf(start) {
		t.Errorf("%v at %s after %s", now, head, start)
	}
	for _, f := range []*follower{ws, sse} {
		waitFor(t, 20*time.Second, f.name+" to resync", func() (bool, string) {
			f.mu.Lock()
			defer f.mu.Unlock()
			_, there := f.view["billing-m"]
			return len(f.resyncs) == 1 && f.resyncs[0] == "epoch" && !there && len(f.view) == 1, fmt.Sprint(f.resyncs, f.faults, f.view)
		})
	}
	// A configuration that is not good refuses the erasure, with its fault, and nothing has changed.
	if err := os.WriteFile(s.file, []byte("listen: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := cli(t, env, "erase", "--actor", "nobody-here"); code != 4 {
		t.Errorf("%d %s%s", code, out, errs)
	}
	if _, at := s.servers(""); at != head {
		t.Errorf("%s became %s", head, at)
	}
	s.stop()
}

// TestExport compares an export of the real service with what its journal says, byte for byte.
func TestExport(t *testing.T) {
	const entries = 2000
	s := newService(t, obj{"data": filled(t, entries), "environments": list{envOf("box", "token-box")}, "servers": list{unprobed("a", "box", "running")}})
	s.start()
	s.ready()
	var want bytes.Buffer
	for _, e := range s.updates("", "&kinds=status,server_added,server_changed,server_removed,environment_silent,environment_back,self_doubt,tool_drift") {
		want.Write(e.raw)
		want.WriteByte('\n')
	}
	env := []string{"STATUSSYNC_SERVER=" + s.base}
	code, out, errs := cli(t, env, "export")
	if code != 0 || out != want.String() {
		t.Errorf("%d %s: %d bytes, %d expected", code, errs, len(out), want.Len())
	}
	code, out, errs = cli(t, env, "export", "--server", "s3", "--kinds", "status", "--format", "csv")
	if lines := strings.Count(out, "\r\n"); code != 0 || lines != entries/10+1 {
		t.Errorf("%d %s: %d lines", code, errs, lines)
	}
	s.stop()
}
