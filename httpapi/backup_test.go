package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// oneBackup is a Backuper whose backups have that content, or fail in the middle.
type oneBackup struct {
	content []byte
	fail    error
	busy    atomic.Bool
	taken   atomic.Int32
}

func (o *oneBackup) Backup(context.Context) (Backup, error) {
	if !o.busy.CompareAndSwap(false, true) {
		return nil, statussync.NewError(statussync.CodeConflict, "another backup is being taken", nil)
	}
	o.taken.Add(1)
	return o, nil
}

func (o *oneBackup) Name() string { return "statussync-1.tar" }
func (o *oneBackup) Size() int64  { return int64(len(o.content)) }
func (o *oneBackup) Close() error { o.busy.Store(false); return nil }

func (o *oneBackup) WriteTo(w io.Writer) (int64, error) {
	if o.fail != nil {
		n, _ := w.Write(o.content[:len(o.content)/2])
		return int64(n), o.fail
	}
	return io.Copy(w, bytes.NewReader(o.content))
}

func TestBackupRoute(t *testing.T) {
	b := &oneBackup{content: bytes.Repeat([]byte("backup"), 200_000)}
	s := serve(t, func(o *Options) { o.Backup = b })
	for _, token := range []string{"", viewerToken, operatorToken, agentToken} {
		if a := s.do(t, token, "GET /api/v1/backup", ""); a.status != 401 && a.status != 403 {
			t.Errorf("%d for %q", a.status, token)
		}
	}
	if a := s.do(t, adminToken, "GET /api/v1/backup?compress=1", ""); a.status != 400 || !strings.Contains(string(a.body), "query.compress") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.do(t, adminToken, "HEAD /api/v1/backup", ""); a.status != 200 {
		t.Errorf("HEAD: %d", a.status)
	}
	if n := b.taken.Load(); n != 0 {
		t.Fatalf("%d backups were taken for nothing", n)
	}
	a := s.do(t, adminToken, "GET /api/v1/backup", "")
	if a.status != 200 || !bytes.Equal([]byte(a.body), b.content) {
		t.Fatalf("%d, %d bytes", a.status, len(a.body))
	}
	for k, want := range map[string]string{
		"Content-Type": "application/x-tar", "Content-Length": "1200000", "Content-Disposition": "attachment; filename=statussync-1.tar", "Cache-Control": "no-store",
	} {
		if got := a.header.Get(k); got != want {
			t.Errorf("%s: %q, not %q", k, got, want)
		}
	}
	b.busy.Store(true)
	if a := s.do(t, adminToken, "GET /api/v1/backup", ""); a.status != 409 || !strings.Contains(string(a.body), `"code":"conflict"`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	b.busy.Store(false)

	// One that breaks off must not look whole, and must give the place free.
	b.fail = errors.New("the disk broke")
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.srv.URL+"/api/v1/backup", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("half a backup was answered as if it were whole")
	}
	if b.busy.Load() {
		t.Error("it was not closed")
	}
	if a := s.do(t, adminToken, "GET /openapi.json", ""); !strings.Contains(string(a.body), `"/api/v1/backup"`) {
		t.Error("not described")
	}
	if a := serve(t, nil).do(t, adminToken, "GET /api/v1/backup", ""); a.status != 404 {
		t.Errorf("served without a Backuper: %d", a.status)
	}
}

// lastErase is an Eraser that keeps what it was asked for.
type lastErase struct {
	req wire.EraseRequest
	err error
}

func (l *lastErase) Erase(_ context.Context, r wire.EraseRequest) (wire.EraseReport, error) {
	l.req = r
	return wire.EraseReport{DryRun: r.DryRun, Entries: 3, ServersRemoved: []string{"a"}, EnvironmentsRemoved: []string{}, Servers: []string{}, Environments: []string{},
		StillDefined: []wire.StillDefined{{ServerID: "b", Origin: "config"}}, FilesRemoved: []string{}}, l.err
}

func TestEraseRoute(t *testing.T) {
	l := &lastErase{}
	s := serve(t, func(o *Options) { o.Eraser = l })
	for _, token := range []string{"", viewerToken, operatorToken, agentToken} {
		if a := s.do(t, token, "POST /api/v1/erase", `{"actor":"ada"}`); a.status != 401 && a.status != 403 {
			t.Errorf("%d for %q", a.status, token)
		}
	}
	a := s.do(t, adminToken, "POST /api/v1/erase", `{"owner":"u1","dry_run":true}`)
	want := `{"dry_run":true,"new_epoch":false,"entries":3,"records":0,"rows":0,"history_rows":0,"tokens":0,"mentions":0,"servers_removed":["a"],"environments_removed":[],` +
		`"servers":[],"environments":[],"still_defined":[{"server_id":"b","origin":"config"}],"files_removed":[]}`
	if d := cmp.Diff(want, strings.TrimSpace(string(a.body))); a.status != 200 || d != "" {
		t.Errorf("%d %s", a.status, d)
	}
	if d := cmp.Diff(wire.EraseRequest{Owner: "u1", DryRun: true}, l.req); d != "" {
		t.Error(d)
	}
	if strings.Contains(s.log.String(), "u1") {
		t.Errorf("the log holds who was erased: %s", s.log.String())
	}
	if a := s.do(t, adminToken, "POST /api/v1/erase", `{"name":"u1"}`); a.status != 422 {
		t.Errorf("an unknown key: %d %s", a.status, a.body)
	}
	l.err = statussync.Invalid("owner", "either an owner or an actor must be given, and not both")
	if a := s.do(t, adminToken, "POST /api/v1/erase", `{}`); a.status != 400 || !strings.Contains(string(a.body), `"location":"body.owner"`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := serve(t, nil).do(t, adminToken, "POST /api/v1/erase", `{"owner":"u1"}`); a.status != 404 {
		t.Errorf("served without an Eraser: %d", a.status)
	}
}
