package postgres

import (
	"bytes"
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/httpapi"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/postgres/pgtest"
	"github.com/agentopia/statussync/sqlite"
)

// sqliteJournal is the store that the service has.
func sqliteJournal(b *testing.B) *sqlite.Store {
	b.Helper()
	s, err := sqlite.Open(b.Context(), sqlite.Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

// statements counts at the server what was run in the database.
func statements(b *testing.B, dsn string) float64 {
	b.Helper()
	n, err := strconv.ParseFloat(rowOf(b, dsn, "select coalesce(sum(calls), 0) from pg_stat_statements where dbid = (select oid from pg_database where datname = current_database()) and query !~ 'pg_stat_statements'"), 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// peak watches the heap while f runs, and returns its largest size in bytes.
func peak(f func()) float64 {
	var most atomic.Uint64
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most.Store(max(most.Load(), m.HeapInuse+m.StackInuse))
			}
		}
	})
	f()
	close(stop)
	all.Wait()
	return float64(most.Load())
}

// BenchmarkFullRead is the first read of a fleet to all statuses concluded and journaled, as a ratio to reading the same
// rows with plain pgx into nothing; then a read that finds nothing new. ROWS sets the number of instances.
func BenchmarkFullRead(b *testing.B) {
	rows := 100_000
	if s := os.Getenv("ROWS"); s != "" {
		rows, _ = strconv.Atoi(s)
	}
	c := pgtest.Start(b)
	dsn := c.Database(b)
	platform(b, dsn, rows/50, 50)
	pgtest.Exec(b, dsn, "create extension pg_stat_statements")
	plain := func() time.Duration {
		conn, err := pgx.Connect(b.Context(), dsn)
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close(context.Background())
		began := time.Now()
		for _, q := range []string{"select id, user_id, name, public_ip_address, dtma_bearer_token, last_heartbeat_at from account_tool_environments",
			`select id, account_tool_environment_id, instance_name_on_toolbox, status_on_toolbox, instance_error_message, mcp_server_type, mcp_transport_type,
  mcp_endpoint_path, mcp_server_capabilities, last_heartbeat_from_dtma from account_tool_instances where mcp_server_type is not null`} {
			r, err := conn.Query(b.Context(), q)
			if err != nil {
				b.Fatal(err)
			}
			for r.Next() {
			}
			r.Close()
			if r.Err() != nil {
				b.Fatal(r.Err())
			}
		}
		return time.Since(began)
	}
	plain()
	for b.Loop() {
		base := min(plain(), plain(), plain())
		before := statements(b, dsn)
		var first, again time.Duration
		var queries, resync float64
		memory := peak(func() {
			r := startRegistryOn(b, dsn, sqliteJournal(b), func(o *Options) {
				o.Feed, o.Resync = FeedPoll, time.Hour
				o.Known = func() ([]string, []string) { return nil, nil }
			})
			began, used := time.Now(), cpuTime()
			r.until("all is read", func() bool { return r.Status().Syncs == 1 })
			if _, err := r.hub.Submit(b.Context()); err != nil {
				b.Fatal(err)
			}
			first = time.Since(began)
			b.ReportMetric((cpuTime() - used).Seconds(), "first-cpu-s")
			if n := len(r.servers()); n != rows {
				b.Fatal(n, "servers")
			}
			queries = statements(b, dsn) - before
			before = statements(b, dsn)
			began = time.Now()
			if _, _, err := r.Sync(b.Context()); err != nil {
				b.Fatal(err)
			}
			again = time.Since(began)
			resync = statements(b, dsn) - before
			r.stop()
		})
		b.ReportMetric(base.Seconds(), "plain-s")
		b.ReportMetric(first.Seconds(), "first-s")
		b.ReportMetric(first.Seconds()/base.Seconds(), "first/plain")
		b.ReportMetric(again.Seconds(), "again-s")
		b.ReportMetric(again.Seconds()/base.Seconds(), "again/plain")
		b.ReportMetric(queries, "first-queries")
		b.ReportMetric(resync, "again-queries")
		b.ReportMetric(memory/(1<<20), "peak-MiB")
	}
}

// cpuTime is what this process has used of the processors.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// watcher subscribes as a page does: over a WebSocket, through the API. It returns when it is live.
func watcher(b testing.TB, h *hub.Hub) *websocket.Conn {
	b.Helper()
	api, err := httpapi.New(httpapi.Options{Hub: h, OpenLoopback: true})
	if err != nil {
		b.Fatal(err)
	}
	srv := httptest.NewServer(api)
	b.Cleanup(func() {
		api.Close()
		srv.Close()
	})
	conn, _, err := websocket.DefaultDialer.DialContext(b.Context(), "ws"+strings.TrimPrefix(srv.URL, "http")+"/api/v1/ws", nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	if err := conn.WriteJSON(map[string]any{"type": "subscribe", "channel": "mcp_server_status"}); err != nil {
		b.Fatal(err)
	}
	framesOf(b, conn, "subscribed", 1)
	return conn
}

// framesOf reads until n frames of a type came.
func framesOf(b testing.TB, conn *websocket.Conn, typ string, n int) {
	b.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		b.Fatal(err)
	}
	for n > 0 {
		_, frame, err := conn.ReadMessage()
		if err != nil {
			b.Fatalf("%d frames %s are missing: %v", n, typ, err)
		}
		if bytes.HasPrefix(frame, []byte(`{"type":"`+typ+`"`)) {
			n--
		} else if bytes.HasPrefix(frame, []byte(`{"type":"error"`)) {
			b.Fatalf("%s", frame)
		}
	}
}

// BenchmarkChange is the time from an update of a row, before it is sent, to its frame at a subscriber with a WebSocket; then 10,000 rows in
// one transaction, from its commit to the last of them.
func BenchmarkChange(b *testing.B) {
	c := pgtest.Start(b)
	dsn := migrated(b, c, 500, 20)
	r := startRegistryOn(b, dsn, sqliteJournal(b), func(o *Options) { o.Known = func() ([]string, []string) { return nil, nil } })
	r.until("all is read and followed", func() bool { return len(r.servers()) == 10_000 && r.Status().Feed == statussync.FeedLive })
	conn := checkConn(b, dsn)
	words := []string{"error", "stopped"}
	const change = "update account_tool_instances set status_on_toolbox = $1::text::account_tool_installation_status_enum where id = $2"
	var took []time.Duration
	sub := watcher(b, r.hub)
	i := 0
	for b.Loop() {
		began := time.Now()
		checkExec(b, conn, change, words[i%2], instID(1))
		framesOf(b, sub, "status_update", 1)
		took = append(took, time.Since(began))
		i++
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(0, "ns/op")
	tx, err := conn.Begin(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if _, err := tx.Exec(b.Context(), "update account_tool_instances set status_on_toolbox = 'error_install' where status_on_toolbox = 'running'"); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	if err := tx.Commit(b.Context()); err != nil {
		b.Fatal(err)
	}
	framesOf(b, sub, "status_update", 9_999)
	b.ReportMetric(time.Since(began).Seconds(), "10k-rows-s")
}

// BenchmarkWriteBack has 500 agents with 20 containers each report as fast as their reports are taken and written: each
// round of all agents begins when half of the one before is written. SECONDS=60 reports every 5 s for that long instead.
func BenchmarkWriteBack(b *testing.B) {
	const agents, each = 500, 20
	c := pgtest.Start(b)
	dsn := migrated(b, c, agents, each)
	r := startRegistryOn(b, dsn, sqliteJournal(b), func(o *Options) { o.Known = func() ([]string, []string) { return nil, nil } })
	r.until("all is read and followed", func() bool { return len(r.servers()) == agents*each && r.Status().Feed == statussync.FeedLive })
	seconds, _ := strconv.Atoi(os.Getenv("SECONDS"))
	report := func(e, round int) {
		rep := &statussync.AgentReport{EnvironmentID: envID(e), AgentVersion: "1.0", List: statussync.ListComplete, System: &statussync.SystemStatus{}}
		for s := 1; s <= each; s++ {
			rep.Containers = append(rep.Containers, statussync.ContainerReport{Names: []string{"s" + strconv.Itoa(s)}, ContainerID: "c", Image: "img", Word: "running", Text: fmt.Sprintf("Up %d minutes", round+2)})
		}
		if err := r.hub.Observe(b.Context(), rep); err != nil {
			b.Fatal(err)
		}
		r.Report(rep)
	}
	before := r.Status().WriteBack
	head := func() uint64 {
		if _, err := r.hub.Submit(b.Context()); err != nil {
			b.Fatal(err)
		}
		_, _, at := r.hub.Servers(statussync.ServerQuery{Limit: 1})
		return at.Seq
	}
	used := cpuTime()
	began, beats := time.Now(), 0
	var entries uint64
	for b.Loop() {
		if seconds > 0 {
			tick := time.NewTicker(5 * time.Second / agents)
			for time.Since(began) < time.Duration(seconds)*time.Second {
				report(beats%agents+1, beats/agents)
				if beats++; beats == 2*agents {
					entries = head()
				}
				<-tick.C
			}
			tick.Stop()
		} else {
			for e := 1; e <= agents; e++ {
				report(e, beats/agents)
				beats++
			}
		}
		r.until("half is written", func() bool { return r.Status().WriteBack.Queued < agents*(each+1)/2 })
	}
	r.until("all is written", func() bool { return r.Status().WriteBack.Queued == 0 })
	took := time.Since(began)
	used = cpuTime() - used
	w := r.Status().WriteBack
	b.ReportMetric(float64(beats)/took.Seconds(), "heartbeats/s")
	b.ReportMetric(float64(w.Rows-before.Rows)/took.Seconds(), "rows/s")
	b.ReportMetric(float64(w.Batches-before.Batches)/float64(beats), "round-trips/heartbeat")
	b.ReportMetric(used.Seconds()/took.Seconds(), "cores")
	b.ReportMetric(0, "ns/op")
	if entries > 0 {
		b.ReportMetric(float64(head()-entries), "entries")
	}
	if w.Failed > 0 {
		b.Errorf("%+v", w)
	}
}
