package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/postgres/pgtest"
	"github.com/agentopia/statussync/statussynctest"
)

// shared is the cluster of the tests that leave theirs running.
var shared pgtest.Shared

func TestMain(m *testing.M) {
	code := m.Run()
	shared.Close()
	if code == 0 {
		// pgx closes a connection that was given up in the background, for which a frozen server is waited for.
		if err := goleak.Find(goleak.IgnoreAnyFunction("github.com/jackc/pgx/v5/pgconn.(*PgConn).asyncClose.func1"),
			goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*ToxicStub).Run")); err != nil { // the proxy leaves some behind where it is cut
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// registryRig is a registry that feeds a real hub.
type registryRig struct {
	*Registry
	t    testing.TB
	hub  *hub.Hub
	dsn  string
	stop func()

	mu        sync.Mutex
	connected []bool
	tokens    map[[32]byte]string
}

func startRegistry(t testing.TB, dsn string, change func(*Options)) *registryRig {
	return startRegistryOn(t, dsn, statussynctest.NewJournal(), change)
}

func startRegistryOn(t testing.TB, dsn string, journal statussync.Journal, change func(*Options)) *registryRig {
	t.Helper()
	h, err := hub.New(hub.Options{Journal: journal, Logger: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	r := &registryRig{t: t, hub: h, dsn: dsn}
	o := Options{DSN: dsn, Resync: time.Minute, WriteBack: true, Logger: testLog(t),
		Connection: func(up bool) { r.mu.Lock(); defer r.mu.Unlock(); r.connected = append(r.connected, up) },
		Agents:     func(m map[[32]byte]string) { r.mu.Lock(); defer r.mu.Unlock(); r.tokens = m },
	}
	if change != nil {
		change(&o)
	}
	if r.Registry, err = New(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	hctx, hcancel := context.WithCancel(context.Background())
	var all, hubs sync.WaitGroup
	hubs.Go(func() {
		if err := h.Run(hctx); err != nil {
			t.Error("the hub ended:", err)
		}
	})
	<-h.Started()
	all.Go(func() {
		if err := r.Run(ctx, h); err != nil {
			t.Error("the registry ended:", err)
		}
	})
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			all.Wait()
			hcancel()
			hubs.Wait()
		})
	}
	t.Cleanup(r.stop)
	return r
}

func testLog(t testing.TB) *slog.Logger {
	if os.Getenv("TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// until waits for something that happens elsewhere.
func (r *registryRig) until(what string, ok func() bool) {
	r.t.Helper()
	end := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(end) {
			r.t.Fatalf("waited 60 s in vain: %s; %+v", what, r.Status())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// exec runs a statement as the platform would.
func (r *registryRig) exec(sql string, args ...any) {
	r.t.Helper()
	pgtest.Exec(r.t, r.dsn, sql, args...)
}

// row reads one row as text, its columns joined by "|".
func (r *registryRig) row(sql string, args ...any) string {
	r.t.Helper()
	return rowOf(r.t, r.dsn, sql, args...)
}

func rowOf(t testing.TB, dsn, sql string, args ...any) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), sql, append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	if !rows.Next() {
		t.Fatalf("%s: no row: %v", sql, rows.Err())
	}
	var out []string
	for _, v := range rows.RawValues() {
		if v == nil {
			out = append(out, "null")
		} else {
			out = append(out, string(v))
		}
	}
	return strings.Join(out, "|")
}

// state is a server's state and health, or "" while it is not known.
func (r *registryRig) state(id string) string {
	v, err := r.hub.Server(id)
	if err != nil {
		return ""
	}
	return string(v.Status.State) + "/" + string(v.Status.Health)
}

// Ids of rows that tests make.
func envID(n int) string  { return fmt.Sprintf("e0000000-0000-4000-8000-%012d", n) }
func instID(n int) string { return fmt.Sprintf("a0000000-0000-4000-8000-%012d", n) }

// platform fills a database: environments 1 to envs with each servers; server j of environment i is instID((i-1)*each+j),
// named "s<j>".
func platform(t testing.TB, dsn string, envs, each int) {
	t.Helper()
	pgtest.Exec(t, dsn, fmt.Sprintf(`insert into auth.users (id) values ('d0000000-0000-4000-8000-000000000001');
insert into account_tool_environments (id, user_id, name, public_ip_address, status, dtma_bearer_token)
  select ('e0000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 'd0000000-0000-4000-8000-000000000001', 'env ' || i, '203.0.113.' || (i %% 250), 'awaiting_heartbeat', 'token-' || i
  from generate_series(1, %[1]d) i;
insert into account_tool_instances (id, account_tool_environment_id, instance_name_on_toolbox, status_on_toolbox, mcp_server_type, mcp_transport_type, mcp_server_capabilities)
  select ('a0000000-0000-4000-8000-' || lpad(((i - 1) * %[2]d + j)::text, 12, '0'))::uuid, ('e0000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 's' || j, 'running', 'files', 'http', '{"tools": true}'
  from generate_series(1, %[1]d) i, generate_series(1, %[2]d) j;
analyze`, envs, each))
}

// migrated makes a database with the platform's rows and the triggers.
func migrated(t testing.TB, c *pgtest.Cluster, envs, each int) string {
	t.Helper()
	dsn := c.Database(t)
	platform(t, dsn, envs, each)
	if _, err := Migrate(t.Context(), dsn, MigrateOptions{Apply: true}); err != nil {
		t.Fatal(err)
	}
	return dsn
}

func (r *registryRig) servers() []statussync.ServerView {
	items, _, _ := r.hub.Servers(statussync.ServerQuery{Limit: 1 << 20})
	return items
}
