package supabase_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/postgres/pgtest"
	"github.com/agentopia/statussync/supabase"
	"github.com/agentopia/statussync/supabase/realtimetest"
)

// backLive waits until the feed is live, more often than it was told so before, and the server agrees.
func backLive(t *testing.T, rec *recorder, srv *realtimetest.Server, before int) {
	t.Helper()
	rec.until(t, "live again", func() bool { return rec.lives() > before && rec.isLive() && srv.Subscribed() == 1 })
}

// TestRealSockets: the losses of a running system over TCP.
func TestRealSockets(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*testing.T, *restartable){
		"phx_error":         func(_ *testing.T, r *restartable) { r.srv.Crash() },
		"phx_close":         func(_ *testing.T, r *restartable) { r.srv.CloseChannels() },
		"system error":      func(_ *testing.T, r *restartable) { r.srv.Shutdown("Query was cancelled, please try again") },
		"connection closed": func(_ *testing.T, r *restartable) { r.srv.Disconnect() },
		"drained":           func(_ *testing.T, r *restartable) { r.srv.Drain() },
		"a frame of 6 MiB":  func(_ *testing.T, r *restartable) { r.srv.Raw([]byte(`"` + strings.Repeat("x", 6<<20) + `"`)) },
		"server restarted": func(t *testing.T, r *restartable) { // and its port closed meanwhile
			r.hs.Close()
			r.srv.Disconnect()
			r.serve(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &restartable{srv: realtimetest.New(realtimetest.Options{APIKey: apiKey, SubscribeDelay: 10 * time.Millisecond}), addr: "127.0.0.1:0"}
			r.serve(t)
			t.Cleanup(func() { r.srv.Close(); r.hs.Close() })
			rec, log := newRecorder(), &logs{}
			feed := follow(t, supabase.Options{URL: "ws://" + r.addr + "/socket/websocket", APIKey: apiKey, Tables: []string{table}, Logger: slog.New(slog.NewTextHandler(log, nil))}, rec)
			backLive(t, rec, r.srv, 0)
			before := rec.lives()
			fault(t, r)
			backLive(t, rec, r.srv, before)
			for i := range 2000 { // the test server's own queue has 4096 places
				r.srv.Change(row(fmt.Sprint("burst", i)))
			}
			rec.until(t, "the burst", func() bool { return feed.Status().Changes >= 2000 })
			if _, _, c := rec.sum(); len(c) != 2000 || c[1999].ID != "burst1999" {
				t.Errorf("told %d changes", len(c))
			}
			if strings.Contains(log.String(), apiKey) {
				t.Error("the log holds the key")
			}
		})
	}
}

// restartable is a server on a port that it keeps.
type restartable struct {
	srv  *realtimetest.Server
	hs   *http.Server
	addr string
}

func (r *restartable) serve(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	r.hs = &http.Server{Handler: r.srv}
	go r.hs.Serve(ln)
}

// TestTLS: https is verified, and a project's own root is taken.
func TestTLS(t *testing.T) {
	t.Parallel()
	srv := realtimetest.New(realtimetest.Options{APIKey: apiKey})
	hs := httptest.NewUnstartedServer(srv)
	hs.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	hs.StartTLS()
	t.Cleanup(func() { srv.Close(); hs.Close() })
	stranger, trusting := newRecorder(), newRecorder()
	follow(t, supabase.Options{URL: hs.URL, APIKey: apiKey, Tables: []string{table}}, stranger)
	roots := x509.NewCertPool()
	roots.AddCert(hs.Certificate())
	follow(t, supabase.Options{URL: hs.URL, APIKey: apiKey, Tables: []string{table}, TLS: &tls.Config{RootCAs: roots}}, trusting)
	trusting.until(t, "live", trusting.isLive)
	stranger.until(t, "a loss", func() bool { return len(stranger.losses()) > 0 })
	if err := stranger.losses()[0]; !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), "apikey") {
		t.Error(err)
	}
}

// rows reads a table of PostgreSQL as a receiver should: everything at Live, and what is named by a change. Reading takes
// time, so that a goroutine of its own does it.
type rows struct {
	*recorder
	dsn  string
	work chan []string // ids; nil: all

	mu   sync.Mutex
	seen map[string]string
}

func (r *rows) Live() { r.recorder.Live(); r.work <- nil }
func (r *rows) Changed(c []statussync.RowChange) {
	r.recorder.Changed(c)
	var ids []string
	for _, c := range c {
		if c.ID == "" {
			r.work <- nil
			return
		}
		ids = append(ids, c.ID)
	}
	r.work <- ids
}

func (r *rows) read(ctx context.Context, conn *pgx.Conn, ids []string) error {
	got, err := conn.Query(ctx, "select id::text, coalesce(instance_error_message, '') from account_tool_instances where $1::text[] is null or id::text = any($1)", ids)
	if err != nil {
		return err
	}
	defer got.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	if ids == nil {
		clear(r.seen)
	}
	for _, id := range ids {
		delete(r.seen, id)
	}
	for got.Next() {
		var id, text string
		if err := got.Scan(&id, &text); err != nil {
			return err
		}
		r.seen[id] = text
	}
	return got.Err()
}

// run reads until work is closed; what fails is read again.
func (r *rows) run(ctx context.Context) {
	var conn *pgx.Conn
	for ids := range r.work {
		for range 1000 {
			var err error
			if conn == nil || conn.IsClosed() {
				conn, err = pgx.Connect(ctx, r.dsn)
			}
			if err == nil {
				if err = r.read(ctx, conn, ids); err == nil {
					break
				}
				conn.Close(ctx)
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	if conn != nil {
		conn.Close(ctx)
	}
}

func (r *rows) holds(want map[string]string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, text := range want {
		if got, ok := r.seen[id]; !ok || got != text {
			return false
		}
	}
	return len(r.seen) == len(want)
}

// TestRowsOfPostgreSQL: what happens in a real database arrives, also where it happened while that or the server was away.
func TestRowsOfPostgreSQL(t *testing.T) {
	t.Parallel()
	cluster := pgtest.Start(t, "synchronous_commit = on") // what was committed before the crash must be there after it
	instructions(t, cluster)
	dsn := cluster.Database(t)
	pgtest.Exec(t, dsn, `insert into auth.users (id) values ('00000000-0000-0000-0000-000000000001');
		insert into account_tool_environments (id, user_id) values ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-000000000001')`)
	want := map[string]string{}
	id := func(n int) string { return fmt.Sprintf("00000000-0000-0000-0001-%012d", n) }
	set := func(n int, text string) {
		t.Helper()
		pgtest.Exec(t, dsn, `insert into account_tool_instances (id, account_tool_environment_id, instance_error_message) values ($1, '00000000-0000-0000-0000-000000000002', $2)
			on conflict (id) do update set instance_error_message = excluded.instance_error_message`, id(n), text)
		want[id(n)] = text
	}
	set(1, "before")

	srv := realtimetest.New(realtimetest.Options{APIKey: apiKey, SubscribeDelay: 50 * time.Millisecond})
	hs := httptest.NewServer(srv)
	t.Cleanup(func() { srv.Close(); hs.Close() })
	if err := srv.Follow(t.Context(), dsn, "public", "account_tool_instances", "account_tool_environments"); err != nil {
		t.Fatal(err)
	}
	to := &rows{recorder: newRecorder(), dsn: dsn, work: make(chan []string, 1000), seen: map[string]string{}}
	var reader sync.WaitGroup
	reader.Go(func() { to.run(context.Background()) })
	t.Cleanup(func() { close(to.work); reader.Wait() })
	followTo(t, supabase.Options{URL: hs.URL, APIKey: apiKey, Tables: []string{"account_tool_instances"}}, to)
	same := func() bool { return to.holds(want) }
	to.until(t, "what was there", same)

	set(2, "inserted")
	set(1, "updated")
	set(3, strings.Repeat("long", 5000)) // longer than a notification can be
	to.until(t, "what was changed", same)
	pgtest.Exec(t, dsn, "delete from account_tool_instances where id = $1", id(2))
	delete(want, id(2))
	pgtest.Exec(t, dsn, "update account_tool_environments set name = 'another' where id = '00000000-0000-0000-0000-000000000002'")
	to.until(t, "what was deleted", same)
	if _, _, c := to.sum(); len(c) == 0 || c[len(c)-1] != (statussync.RowChange{Table: "account_tool_instances", ID: id(2), Deleted: true}) {
		t.Errorf("told %v", c)
	}

	before := to.lives()
	cluster.Kill()
	to.until(t, "the loss of the database", func() bool { return !to.isLive() })
	if err := cluster.Up(); err != nil {
		t.Fatal(err)
	}
	set(1, "after the crash")
	backLive(t, to.recorder, srv, before)
	to.until(t, "what was changed after the crash", same)

	before = to.lives()
	srv.SetDown(true)
	set(4, "while Realtime was away")
	to.until(t, "the loss of the server", func() bool { return !to.isLive() })
	srv.SetDown(false)
	backLive(t, to.recorder, srv, before)
	to.until(t, "what was changed while Realtime was away", same)
}

// instructions runs the statements of docs/supabase.md as an operator would, and sees whether the role can do what a feed
// needs and nothing else.
func instructions(t *testing.T, cluster *pgtest.Cluster) {
	t.Helper()
	doc, err := os.ReadFile("../docs/supabase.md")
	if err != nil {
		t.Fatal(err)
	}
	dsn := cluster.Database(t)
	pgtest.Exec(t, dsn, "create publication supabase_realtime") // a project has one
	blocks := strings.Split(string(doc), "```sql")
	for _, b := range blocks[1:] {
		sql, _, _ := strings.Cut(b, "```")
		pgtest.Exec(t, dsn, sql)
	}
	pgtest.Exec(t, dsn, `alter table account_tool_instances enable row level security;
		insert into auth.users (id) values ('00000000-0000-0000-0000-000000000001');
		insert into account_tool_environments (id, user_id) values ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-000000000001');
		insert into account_tool_instances (account_tool_environment_id) values ('00000000-0000-0000-0000-000000000002')`)
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var tables, visible int
	if err := conn.QueryRow(ctx, "select count(*) from pg_publication_tables where pubname = 'supabase_realtime'").Scan(&tables); err != nil || tables != 2 {
		t.Errorf("%d tables are published: %v", tables, err)
	}
	if _, err := conn.Exec(ctx, "set role statussync_feed"); err != nil {
		t.Fatal(err)
	}
	if err := conn.QueryRow(ctx, "select count(id) from account_tool_instances").Scan(&visible); err != nil || visible != 1 {
		t.Errorf("the role sees %d rows: %v", visible, err)
	}
	if _, err := conn.Exec(ctx, "select runtime_details from account_tool_instances"); err == nil {
		t.Error("the role may read more than it needs")
	}
}

// toxic is a proxy with faults before a server.
type toxic struct {
	*testing.T
	p *toxiproxy.Proxy
}

func newToxic(t *testing.T, upstream string) *toxic {
	t.Helper()
	s := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	p := toxiproxy.NewProxy(s, "realtime", "127.0.0.1:0", upstream)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return &toxic{T: t, p: p}
}

func (x *toxic) add(json string) {
	x.Helper()
	if _, err := x.p.Toxics.AddToxicJson(strings.NewReader(json)); err != nil {
		x.Fatal(err)
	}
}

func (x *toxic) heal() { x.p.Toxics.ResetToxics(context.Background()) }

// TestBadNetwork: slow, cut to pieces, reset, down, and (with E2E_FULL=1: it takes a minute) black-holed.
func TestBadNetwork(t *testing.T) {
	t.Parallel()
	srv := realtimetest.New(realtimetest.Options{APIKey: apiKey, SubscribeDelay: 10 * time.Millisecond})
	hs := httptest.NewServer(srv)
	t.Cleanup(func() { srv.Close(); hs.Close() })
	u, err := url.Parse(hs.URL)
	if err != nil {
		t.Fatal(err)
	}
	x := newToxic(t, u.Host)
	rec := newRecorder()
	follow(t, supabase.Options{URL: "http://" + x.p.Listen, APIKey: apiKey, Tables: []string{table}}, rec)
	arrives := func(id string) {
		t.Helper()
		srv.Change(row(id))
		rec.until(t, id, func() bool {
			_, _, c := rec.sum()
			return len(c) > 0 && c[len(c)-1].ID == id
		})
	}
	backLive(t, rec, srv, 0)
	arrives("plain")

	x.add(`{"type":"latency","stream":"downstream","attributes":{"latency":300,"jitter":200}}`)
	x.add(`{"type":"slicer","name":"slicer","stream":"downstream","attributes":{"average_size":20,"size_variation":10,"delay":1}}`)
	before := rec.lives()
	arrives("slow and sliced")
	srv.Crash()
	backLive(t, rec, srv, before)
	arrives("joined over a slow line")
	x.heal()

	before = rec.lives()
	x.add(`{"type":"reset_peer","stream":"downstream","attributes":{"timeout":50}}`)
	srv.Change(row("reset"))
	rec.until(t, "the loss", func() bool { return !rec.isLive() })
	x.heal()
	backLive(t, rec, srv, before)
	arrives("after a reset")

	before = rec.lives()
	x.add(`{"type":"limit_data","stream":"downstream","attributes":{"bytes":600}}`) // breaks off within a frame
	for range 10 {
		srv.Change(row("limit"))
	}
	rec.until(t, "the loss", func() bool { return !rec.isLive() })
	x.heal()
	backLive(t, rec, srv, before)
	arrives("after a cut")

	before = rec.lives()
	x.p.Stop()
	rec.until(t, "the loss", func() bool { return !rec.isLive() })
	if err := x.p.Start(); err != nil {
		t.Fatal(err)
	}
	backLive(t, rec, srv, before)
	arrives("after the line was down")

	if os.Getenv("E2E_FULL") != "1" {
		return
	}
	before = rec.lives()
	x.add(`{"type":"timeout","name":"down","stream":"downstream","attributes":{"timeout":0}}`)
	x.add(`{"type":"timeout","name":"up","stream":"upstream","attributes":{"timeout":0}}`)
	began := time.Now()
	rec.until(t, "the loss", func() bool { return !rec.isLive() })
	t.Logf("a black hole was noticed after %s", time.Since(began))
	x.heal()
	backLive(t, rec, srv, before)
	arrives("after a black hole")
}
