package postgres

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/postgres/pgtest"
	"github.com/agentopia/statussync/statussynctest"
)

// sqlRig is an SQLRegistry that feeds a real hub.
type sqlRig struct {
	*SQLRegistry
	t   *testing.T
	hub *hub.Hub
}

// startSQL runs one; h nil: with a hub of its own.
func startSQL(t *testing.T, o SQLOptions, h *hub.Hub) *sqlRig {
	t.Helper()
	o.Origin, o.Resync, o.Logger = "postgres:inventory", time.Hour, testLog(t)
	s, err := NewSQL(o)
	if err != nil {
		t.Fatal(err)
	}
	hctx, hcancel := context.WithCancel(context.Background())
	var hubs, all sync.WaitGroup
	if h == nil {
		if h, err = hub.New(hub.Options{Journal: statussynctest.NewJournal(), Logger: testLog(t)}); err != nil {
			t.Fatal(err)
		}
		hubs.Go(func() { _ = h.Run(hctx) })
		<-h.Started()
	}
	ctx, cancel := context.WithCancel(context.Background())
	all.Go(func() {
		if err := s.Run(ctx, h); err != nil {
			t.Error("the registry ended:", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		all.Wait()
		hcancel()
		hubs.Wait()
	})
	return &sqlRig{SQLRegistry: s, t: t, hub: h}
}

func (r *sqlRig) sync() []RowFault {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	_, faults, err := r.Sync(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	return faults
}

func (r *sqlRig) server(id string) statussync.ServerView {
	r.t.Helper()
	v, err := r.hub.Server(id)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// TestSQLRegistry: rows that can't be used, or not in full, are named and counted one by one, and the others go on.
func TestSQLRegistry(t *testing.T) {
	dsn := shared.Get(t).Empty(t)
	pgtest.Exec(t, dsn, `create table inventory (n serial, id text, name text, endpoint text, labels text, kind text, every interval, secs text, tries int, off bool, status text, beat timestamptz)`)
	insert := func(id, name, endpoint, labels, kind, every, secs, tries, status string) {
		pgtest.Exec(t, dsn, `insert into inventory (id, name, endpoint, labels, kind, every, secs, tries, off, status, beat) values
(nullif($1, '-'), $2, $3, $4, $5, nullif($6, '')::interval, $7, nullif($8, '')::int, false, nullif($9, ''), now())`, id, name, endpoint, labels, kind, every, secs, tries, status)
	}
	insert("good", "Good", "http://203.0.113.1/mcp", `{"team":"a"}`, "http", "1 day 02:03:04.5", "2.5", "0", "running")
	insert("-", "no id", "", "", "", "", "", "", "")
	insert("", "an empty id", "", "", "", "", "", "", "")
	insert("good", "Twice", "", "", "", "", "", "", "")
	insert(strings.Repeat("x", 129), "a long id", "", "", "", "", "", "", "")
	insert("a b", "an id of other letters", "", "", "", "", "", "", "")
	insert("bad", strings.Repeat("n", 10_000), "ftp://203.0.113.1", `["no object"]`, "ping", "-1 day", "1 fortnight", "21", "mumble")
	insert("secret", "Secret", "http://user:hunter22@203.0.113.1/", `{"a=b":"x"}`, "none", "00:00:30", "10s", "3", "")
	insert("last", "Last", "", "", "", "", "", "", "error")
	r := startSQL(t, SQLOptions{DSN: dsn, Query: `select id, name, endpoint, labels, kind as probe_kind, every as probe_interval, secs as probe_timeout,
tries as probe_max_retries, off as disabled, status, beat as heartbeat_at from inventory order by n`}, nil)
	faults := r.sync()
	st := r.Status()
	if st.Servers != 4 || st.FaultsCount != 7 || st.Feed != statussync.FeedPolling {
		t.Errorf("%+v", st)
	}
	var ids []string
	all := ""
	for _, f := range faults {
		ids = append(ids, f.ID[:min(len(f.ID), 8)])
		all += f.Detail + "\n"
	}
	if got := strings.Join(ids, ","); got != ",,good,xxxxxxxx,a b,bad,secret" {
		t.Errorf("faults of %s", got)
	}
	for _, word := range []string{"has no id", "another row has the same id", "longer than 128", "its name holds", "its endpoint is no http", "its labels are no", "its probe_kind is none of",
		"its probe_interval is no duration", "its probe_timeout is no duration", "its probe_max_retries is no whole number from 0 to 20", "its endpoint holds a user name or password"} {
		if !strings.Contains(all, word) {
			t.Errorf("nothing says %q in\n%s", word, all)
		}
	}
	if strings.Contains(all, "hunter22") {
		t.Error("a fault shows a password")
	}
	good := r.server("good")
	p := good.Server.Probe
	if good.Server.Name != "Good" || good.Server.Labels["team"] != "a" || p.Kind != statussync.ProbeHTTP || p.Interval != 26*time.Hour+3*time.Minute+4500*time.Millisecond ||
		p.Timeout != 2500*time.Millisecond || p.MaxRetries == nil || *p.MaxRetries != 0 || good.Server.Disabled || good.Server.Origin != "postgres:inventory" {
		t.Errorf("%+v", good.Server)
	}
	if s := r.server("secret").Server; s.Endpoint != "" || s.Probe.Kind != statussync.ProbeNone || s.Probe.Interval != 30*time.Second || s.Probe.Timeout != 10*time.Second || len(s.Labels) != 0 {
		t.Errorf("%+v", s)
	}
	if s := r.server("bad").Server; len(s.Name) > statussync.MaxNameText || s.Endpoint != "" || s.Probe.Interval != 0 {
		t.Errorf("%+v", s)
	}
	if s := r.server("last").Status.State; s != statussync.StateError {
		t.Errorf("the row after all those is %s", s)
	}
	// A word that goes does not count any more, and a row that goes is removed.
	pgtest.Exec(t, dsn, `update inventory set status = null where id = 'last'`)
	pgtest.Exec(t, dsn, `delete from inventory where id = 'bad'`)
	r.sync()
	if s := r.server("last").Status.State; s == statussync.StateError {
		t.Error("a row that says nothing any more is still an error")
	}
	if _, err := r.hub.Server("bad"); statussync.CodeOf(err) != statussync.CodeNotFound {
		t.Error("a deleted row is still a server:", err)
	}
}

// TestSQLColumns: a column that is not known, or there twice, is named, and nothing counts that its query gave.
func TestSQLColumns(t *testing.T) {
	dsn := shared.Get(t).Empty(t)
	for query, want := range map[string]string{
		"select 'a' as id, 'http://203.0.113.1' as enpoint, 1 as \"Wrong\"": `gives columns that are not known here: "enpoint", "Wrong"; known are id, name,`,
		"select 'a' as id, 'b' as id":                                       `gives more than one column "id"`,
		"select 'a' as name":                                                "gives no column id",
		"select id from nowhere":                                            `relation "nowhere" does not exist`,
		"delete from pg_class where oid = 0 returning 'a' as id":            "read-only transaction",
	} {
		r := startSQL(t, SQLOptions{DSN: dsn, Query: query}, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, _, err := r.Sync(ctx)
		cancel()
		if statussync.CodeOf(err) != statussync.CodeUnavailable || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", query, err)
		}
		if st := r.Status(); !strings.Contains(st.LastError, want) || st.Feed != statussync.FeedDown {
			t.Errorf("%s: %+v", query, st)
		}
		if n, _, _ := r.hub.Servers(statussync.ServerQuery{Limit: 1}); len(n) != 0 {
			t.Errorf("%s: gave a server", query)
		}
	}
}

// TestSQLMassLoss: most servers being gone at once is believed when it is read twice, after a restart, too.
func TestSQLMassLoss(t *testing.T) {
	dsn := shared.Get(t).Empty(t)
	pgtest.Exec(t, dsn, "create table inventory as select 's' || i as id from generate_series(1, 20) i")
	const query = "select id from inventory"
	first := startSQL(t, SQLOptions{DSN: dsn, Query: query}, nil)
	first.sync()
	count := func() int {
		items, _, _ := first.hub.Servers(statussync.ServerQuery{Limit: 100})
		return len(items)
	}
	if n := count(); n != 20 {
		t.Fatal(n, "servers")
	}
	known := func() (ids []string) {
		for i := range 20 {
			ids = append(ids, fmt.Sprintf("s%d", i+1))
		}
		return ids
	}
	// As many others in their place are no consolation.
	pgtest.Exec(t, dsn, "alter table inventory rename to hidden; create table inventory as select 'other' || i as id from generate_series(1, 20) i")
	began := time.Now()
	second := startSQL(t, SQLOptions{DSN: dsn, Query: query, Known: known}, first.hub)
	for end := began.Add(settleWait / 2); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if second.Status().Syncs == 0 && count() != 20 && time.Since(began) < settleWait {
			t.Fatal("believed at once")
		}
	}
	pgtest.Exec(t, dsn, "drop table inventory; alter table hidden rename to inventory") // it was a mistake, and is mended before the second read
	second.sync()
	if st := second.Status(); st.Servers != 20 {
		t.Errorf("%+v", st)
	}
	// What is gone at the second read, too, is gone.
	pgtest.Exec(t, dsn, "delete from inventory")
	began = time.Now()
	second.sync()
	if took := time.Since(began); took < settleWait || count() != 0 {
		t.Errorf("%d servers after %s", count(), took)
	}
}

func TestDurationOf(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"30": 30 * time.Second, "0.25": 250 * time.Millisecond, "1m30s": 90 * time.Second, "00:00:30": 30 * time.Second, "2 days": 48 * time.Hour,
		"1 day 00:00:01.5": 24*time.Hour + 1500*time.Millisecond, "30:00:00": 30 * time.Hour, " 5s ": 5 * time.Second,
	} {
		if d, ok := durationOf(text); !ok || d != want {
			t.Errorf("%q is %s %v", text, d, ok)
		}
	}
	for _, text := range []string{"", " ", "-5", "1 mon", "NaN", "Inf", "1e300", "soon", "1 year 2 days", "00:00", "@ 1 day"} {
		if d, ok := durationOf(text); ok && d > 0 {
			t.Errorf("%q is %s", text, d)
		}
	}
}
