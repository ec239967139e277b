package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/postgres/pgtest"
	"github.com/agentopia/statussync/sqlite"
	"github.com/agentopia/statussync/statussynctest"
)

// logRig is a hub on a journal in memory that changes statuses on demand, and a store for checkpoints.
type logRig struct {
	t     *testing.T
	hub   *hub.Hub
	store CheckpointStore
	flips int
}

func newLogRig(t *testing.T, ids []string) *logRig {
	h, err := hub.New(hub.Options{Journal: statussynctest.NewJournal(), RingSize: 1024})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = h.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	<-h.Started()
	store, err := sqlite.OpenHistory(t.Context(), sqlite.HistoryOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	r := &logRig{t: t, hub: h, store: store}
	u := &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Full: true}
	for _, id := range ids {
		u.Servers = append(u.Servers, statussync.Server{ID: id, Name: id, Origin: statussync.OriginConfig, Desired: statussync.DesiredRunning})
	}
	r.submit(u)
	return r
}

func (r *logRig) submit(obs ...statussync.Observation) {
	r.t.Helper()
	if _, err := r.hub.Submit(context.Background(), obs...); err != nil {
		r.t.Fatal(err)
	}
}

// flip makes one update of each server, by a person's word.
func (r *logRig) flip(ids []string, note string) {
	r.t.Helper()
	r.flips++
	var obs []statussync.Observation
	for _, id := range ids {
		now := time.Now()
		o := statussync.Override{State: []statussync.State{statussync.StateStopped, statussync.StateRunning}[r.flips%2], Actor: "test", Note: note, ExpiresAt: now.Add(24 * time.Hour)}
		if err := o.Complete(now); err != nil {
			r.t.Fatal(err)
		}
		obs = append(obs, &statussync.OverrideSet{ServerID: id, Override: o})
	}
	r.submit(obs...)
}

func (r *logRig) start(o StatusLogOptions) (s *StatusLog, stop func()) {
	r.t.Helper()
	o.Hub, o.Store = r.hub, r.store
	s, err := NewStatusLog(o)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = s.Run(ctx) })
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); done.Wait() }) }
	r.t.Cleanup(stop)
	return s, stop
}

func (r *logRig) caughtUp(s *StatusLog) {
	r.t.Helper()
	defer func() {
		if r.t.Failed() {
			r.t.Logf("%+v", s.Status())
		}
	}()
	checkUntil(r.t, "the status log at the journal's head", func() bool { st := s.Status(); return st.Connected && st.Lag == 0 })
}

// updates are the journal's updates, as ids of rows in their order.
func (r *logRig) updates() (ids []string) {
	var at statussync.Cursor
	for {
		list, next, err := r.hub.Updates(context.Background(), at, 500, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, e := range list {
			if e.Kind == statussync.KindStatus {
				ids = append(ids, StatusLogID(e.Entry).String())
			}
		}
		if next == at {
			return ids
		}
		at = next
	}
}

func loggedIDs(t *testing.T, dsn string) []string {
	t.Helper()
	conn, err := catalogConnect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), "select id::text from mcp_server_status_logs order by id")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// exactly checks that the rows are the journal's updates, each once, and in its order.
func (r *logRig) exactly(dsn string) {
	r.t.Helper()
	want, got := r.updates(), loggedIDs(r.t, dsn)
	if len(want) == 0 || strings.Join(want, " ") != strings.Join(got, " ") {
		r.t.Errorf("%d rows for %d updates, or not in their order", len(got), len(want))
	}
}

func testStatusLogRows(t *testing.T, c *pgtest.Cluster) {
	dsn := c.Database(t)
	conn := checkConn(t, dsn)
	ids := fleet(t, conn, 2, 3)
	r := newLogRig(t, append(ids, "not-of-this-database", "00000000-0000-0000-0000-0000000000aa"))
	s, stop := r.start(StatusLogOptions{DSN: dsn})
	r.flip(ids, "by hand")
	checkExec(t, conn, "delete from account_tool_instances where id = $1::text::uuid", ids[5])
	r.flip(ids, "again")
	r.caughtUp(s)
	var previous, current map[string]any
	var source, details string
	var whole bool
	err := conn.QueryRow(t.Context(), `select previous_status, current_status, source, details, sync_session_id is not null and batch_id is not null and abs(extract(epoch from now() - timestamp)) < 600
from mcp_server_status_logs where server_id = $1::text::uuid order by id desc limit 1`, ids[0]).Scan(&previous, &current, &source, &details, &whole)
	if err != nil {
		t.Fatal(err)
	}
	if source != "manual" || !strings.Contains(details, "again") || current["state"] != "stopped" || current["health"] != "unknown" || previous["state"] != "running" || !whole {
		t.Errorf("%v %v %q %q %v", previous, current, source, details, whole)
	}
	for _, k := range []string{"state", "health", "uptime", "lastStarted", "lastError"} {
		if _, ok := current[k]; !ok {
			t.Errorf("the key %s is missing", k)
		}
	}
	if st := s.Status(); st.Gone == 0 || st.Refused != 0 || st.Repeated != 0 || st.LagTime != 0 {
		t.Errorf("%+v", st)
	}
	stop()

	// Killed between the insert and the checkpoint: everything is written again, and nothing is there twice.
	before := loggedIDs(t, dsn)
	if err := r.store.PutCheckpoint(t.Context(), "status_log", statussync.Cursor{}); err != nil {
		t.Fatal(err)
	}
	s, stop = r.start(StatusLogOptions{DSN: dsn})
	r.caughtUp(s)
	if st := s.Status(); st.Written != 0 || int(st.Repeated) != len(before) {
		t.Errorf("repeated: %+v", st)
	}
	stop()

	// A position of another epoch that is nowhere to be found, or beyond the head.
	for _, at := range []statussync.Cursor{{Epoch: "e99zzz", Seq: 1 << 40}, {Epoch: "e1old", Seq: 3}} {
		if err := r.store.PutCheckpoint(t.Context(), "status_log", at); err != nil {
			t.Fatal(err)
		}
		r.flip(ids[:1], "later")
		s, stop = r.start(StatusLogOptions{DSN: dsn})
		r.caughtUp(s)
		if st := s.Status(); st.Written != 1 || st.Lost != 0 {
			t.Errorf("%v: %+v", at, st)
		}
		stop()
	}
}

// testStatusLogDurable: whatever the role's default, a crash of the database loses nothing behind the checkpoint.
func testStatusLogDurable(t *testing.T, c *pgtest.Cluster) {
	conn := checkConn(t, c.Database(t))
	table, err := statusLogRead(t.Context(), conn, "public")
	if err != nil {
		t.Fatal(err)
	}
	checkExec(t, conn, "set synchronous_commit = off")
	checkExec(t, conn, "begin")
	if _, _, err := table.put(t.Context(), conn, nil, "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"); err != nil {
		t.Fatal(err)
	}
	if got := checkValue[string](t, conn, "show synchronous_commit"); got != "on" {
		t.Errorf("the commit does not wait for the disk: %s", got)
	}
	checkExec(t, conn, "commit")
}

// testStatusLogRefusals: values that a table refuses, and tables that lack columns.
func testStatusLogRefusals(t *testing.T, c *pgtest.Cluster) {
	dsn := c.Database(t)
	conn := checkConn(t, dsn)
	ids := fleet(t, conn, 1, 5)
	checkExec(t, conn, `alter table mcp_server_status_logs drop column response_time_ms, drop column batch_id, alter column details type varchar(60), alter column timestamp type timestamp,
add constraint odd check (details not like '%odd%'); alter table mcp_server_status_logs alter column current_status type text`)
	r := newLogRig(t, ids)
	s, _ := r.start(StatusLogOptions{DSN: dsn})
	r.flip(ids[:2], strings.Repeat("long ", 100))
	r.flip(ids, "fine")
	r.flip(ids[2:3], "odd")
	r.flip(ids[3:], "fine too")
	r.caughtUp(s)
	if st := s.Status(); st.Refused != 1 || int(st.Written) != len(r.updates())-1 || !strings.Contains(st.LastError, "odd") {
		t.Errorf("%+v, %d updates", st, len(r.updates()))
	}
	// A change of the table while we are connected.
	checkExec(t, conn, "alter table mcp_server_status_logs drop column source")
	r.flip(ids, "without a source")
	r.caughtUp(s)
	// A column that must be filled, and is unknown here: nothing is skipped.
	checkExec(t, conn, "alter table mcp_server_status_logs add column tenant int not null default 1; alter table mcp_server_status_logs alter column tenant drop default")
	before := s.Status().Written
	r.flip(ids, "blocked")
	checkUntil(t, "an error that names the trouble", func() bool { return strings.Contains(s.Status().LastError, "not known here") })
	if st := s.Status(); st.Written != before || st.Lag == 0 {
		t.Errorf("%+v", st)
	}
	checkExec(t, conn, "alter table mcp_server_status_logs alter column tenant set default 1")
	r.caughtUp(s)
	if st := s.Status(); st.Written != before+5 {
		t.Errorf("%+v", st)
	}
}

func testStatusLogRights(t *testing.T, c *pgtest.Cluster) {
	dsn := c.Database(t)
	conn := checkConn(t, dsn)
	ids := fleet(t, conn, 1, 2)
	checkExec(t, conn, "create role logger1 login; revoke all on schema public from public; alter table mcp_server_status_logs enable row level security")
	mine := c.DSNAs("logger1", conn.Config().Database)
	r := newLogRig(t, ids)
	s, _ := r.start(StatusLogOptions{DSN: mine})
	r.flip(ids, "x")
	checkUntil(t, "the missing grant in the error", func() bool {
		return strings.Contains(s.Status().LastError, "grant select (id) on public.account_tool_instances to logger1")
	})
	for range 6 {
		rep, err := Check(t.Context(), mine, CheckOptions{Features: []Feature{FeatureStatusLog}})
		if err != nil {
			t.Fatal(err)
		}
		if rep.OK() {
			break
		}
		checkExec(t, conn, rep.Features[0].Grants[0])
	}
	r.caughtUp(s)
	r.exactly(dsn)
}

func TestStatusLogText(t *testing.T) {
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	e := &statussync.Entry{Seq: 7, Epoch: "e1a", Timestamp: at, Details: "a\x00b\xff" + strings.Repeat("é", 5000), Source: statussync.SourceHeartbeat, ServerID: "s",
		Current: &statussync.Status{State: statussync.StateRunning, Health: statussync.HealthHealthy, LastError: "x\x00y", LastStarted: at.Add(-time.Hour), Latency: 1500 * time.Microsecond}}
	r := statusLogRowOf(e)
	if len(r.details) > statusLogDetails || !strings.HasPrefix(r.details, "ab\uFFFDé") || strings.Contains(*r.current, "u0000") || *r.uptime != 3600 || *r.latency != 1 || r.previous != nil {
		t.Errorf("%.40q %s", r.details, *r.current)
	}
	var v map[string]any
	if err := json.Unmarshal([]byte(*r.current), &v); err != nil || v["uptime"] != 3600.0 || v["lastError"] != "xy" || v["lastStarted"] != "2026-02-28T23:00:00.000Z" {
		t.Error(err, v)
	}
	// Other entries have other ids, and later ones greater ones.
	seen := map[string]bool{}
	last := ""
	for seq := range uint64(3000) {
		id := StatusLogID(&statussync.Entry{Seq: seq << 20, Epoch: "e1a", Timestamp: at}).String()
		if seen[id] || id <= last {
			t.Fatal(id, last)
		}
		seen[id], last = true, id
	}
	if StatusLogID(e) == StatusLogID(&statussync.Entry{Seq: 7, Epoch: "e1b", Timestamp: at}) {
		t.Error("the epoch does not count")
	}
}

// TestStatusLogOutages: the database is killed and frozen while statuses change.
func TestStatusLogOutages(t *testing.T) {
	c := pgtest.Start(t)
	dsn := c.Database(t)
	conn := checkConn(t, dsn)
	ids := fleet(t, conn, 10, 50)
	conn.Close(t.Context())
	r := newLogRig(t, ids)
	s, stop := r.start(StatusLogOptions{DSN: dsn})
	r.flip(ids, "before")
	r.caughtUp(s)
	for name, outage := range map[string][2]func(){
		"killed": {c.Kill, func() {
			if err := c.Up(); err != nil {
				t.Fatal(err)
			}
		}},
		"frozen": {c.Freeze, c.Thaw},
	} {
		outage[0]()
		for range 6 { // three times the ring: most of it is read back from the journal
			r.flip(ids, name)
		}
		checkUntil(t, "a lag that is told", func() bool { st := s.Status(); return st.Lag > 0 && st.LagTime > 0 })
		outage[1]()
		begun, had := time.Now(), s.Status().Written
		r.caughtUp(s)
		t.Logf("%s: %d rows written %v after it was back", name, s.Status().Written-had, time.Since(begun))
		r.exactly(dsn)
		checkUntil(t, "no trouble that is told", func() bool { return s.Status().LastError == "" })
		if t.Failed() {
			t.Logf("%+v", s.Status())
		}
	}
	// Stopped in the middle of its work, and started again.
	for range 4 {
		r.flip(ids, "stopped")
		stop()
		s, stop = r.start(StatusLogOptions{DSN: dsn})
	}
	r.caughtUp(s)
	stop()
	r.exactly(dsn)
	if st := s.Status(); st.Refused+st.Gone+st.Lost != 0 {
		t.Errorf("%+v", st)
	}
}

func TestStatusLogLoss(t *testing.T) {
	for _, c := range []struct {
		name      string
		epochs    string // of the entries from seq base+1 on, one letter each
		base      uint64
		at        statussync.Cursor
		volatile  bool
		want      uint64
		lost      uint64
		wantError bool
	}{
		{name: "continued by another epoch", epochs: "aaabb", at: statussync.Cursor{Epoch: "a", Seq: 3}, want: 3},
		{name: "behind the new epoch", epochs: "aaabb", at: statussync.Cursor{Epoch: "a", Seq: 1}, want: 1},
		{name: "a part was left behind", epochs: "aaabb", at: statussync.Cursor{Epoch: "a", Seq: 5}, want: 3},
		{name: "beyond the head", epochs: "aaabb", at: statussync.Cursor{Epoch: "a", Seq: 50}, want: 3},
		{name: "its epoch was left behind", epochs: "aaabb", at: statussync.Cursor{Epoch: "x", Seq: 4}, want: 0},
		{name: "retention", epochs: "bbb", base: 10, at: statussync.Cursor{Epoch: "b", Seq: 4}, want: 10, lost: 6},
		{name: "retention and another epoch", epochs: "bbb", base: 10, at: statussync.Cursor{Epoch: "a", Seq: 4}, want: 10, lost: 6},
		{name: "volatile, at its beginning", epochs: "bbb", base: 10, volatile: true, at: statussync.Cursor{Epoch: "a", Seq: 10}, want: 10},
		{name: "volatile, before it", epochs: "bbb", base: 10, volatile: true, at: statussync.Cursor{Epoch: "a", Seq: 9}, wantError: true},
		{name: "nothing is kept", base: 10, at: statussync.Cursor{Epoch: "a", Seq: 9}, want: 10, lost: 1},
	} {
		j := &shortJournal{base: c.base, durable: !c.volatile, epoch: "b"}
		for i, e := range c.epochs {
			j.entries = append(j.entries, statussync.Encoded{Entry: &statussync.Entry{Epoch: statussync.Epoch(e), Seq: c.base + 1 + uint64(i)}})
		}
		s := &StatusLog{opts: StatusLogOptions{Hub: j}}
		to, lost, err := s.relocate(t.Context(), c.at)
		if (err != nil) != c.wantError {
			t.Errorf("%s: %v", c.name, err)
		} else if want := (statussync.Cursor{Epoch: "b", Seq: c.want}); err == nil && (to != want || lost != c.lost) {
			t.Errorf("%s: %v, %d lost; want %v, %d", c.name, to, lost, want, c.lost)
		}
	}
}

// shortJournal is what a hub shows of a journal: a real one can't be brought into these states within a test.
type shortJournal struct {
	base    uint64
	epoch   statussync.Epoch
	durable bool
	entries []statussync.Encoded
}

func (j *shortJournal) head() statussync.Cursor {
	return statussync.Cursor{Epoch: j.epoch, Seq: j.base + uint64(len(j.entries))}
}

func (j *shortJournal) Updates(_ context.Context, after statussync.Cursor, limit int, _ *statussync.Matcher) ([]statussync.Encoded, statussync.Cursor, error) {
	if after.IsZero() {
		after = statussync.Cursor{Epoch: j.epoch, Seq: j.base}
	}
	if after.Epoch != j.epoch || after.Seq < j.base || after.Seq > j.head().Seq {
		return nil, after, statussync.NewError(statussync.CodeExpired, fmt.Sprint(after), nil)
	}
	list := j.entries[after.Seq-j.base:]
	list = list[:min(limit, len(list))]
	after.Seq += uint64(len(list))
	return list, after, nil
}

func (j *shortJournal) Servers(statussync.ServerQuery) ([]statussync.ServerView, bool, statussync.Cursor) {
	return nil, false, j.head()
}

func (j *shortJournal) Ready() statussync.Readiness { return statussync.Readiness{Durable: j.durable} }
