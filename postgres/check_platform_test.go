package postgres

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync/postgres/pgtest"
)

// TestOnPlatform is everything that needs no cluster of its own, each in a database of its own.
func TestOnPlatform(t *testing.T) {
	c := pgtest.Start(t)
	for name, f := range map[string]func(*testing.T, *pgtest.Cluster){
		"migrate": testMigrate, "migrate other platforms": testMigrateOthers, "triggers": testTriggers, "payloads": testPayloads,
		"bulk": testBulk, "triggers never fail": testTriggersNeverFail, "migrate locked": testMigrateLocked, "migrate rights": testMigrateRights,
		"check": testCheck, "status log": testStatusLogRows, "status log durable": testStatusLogDurable, "status log refusals": testStatusLogRefusals, "status log rights": testStatusLogRights,
	} {
		t.Run(name, func(t *testing.T) { f(t, c) })
	}
}

// checkConn is a connection that ends with the test.
func checkConn(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := catalogConnect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func checkExec(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%.200s: %v", sql, err)
	}
}

func checkValue[T any](t testing.TB, conn *pgx.Conn, sql string, args ...any) (v T) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%.200s: %v", sql, err)
	}
	return v
}

// checkUntil polls until ok holds, for as long as a loaded machine may need.
func checkUntil(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 60 s in vain for: %s", what)
		}
	}
}

// fleet makes an environment for each of n users' droplets, with some MCP servers on each; it returns the servers' ids.
func fleet(t testing.TB, conn *pgx.Conn, environments, each int) []string {
	t.Helper()
	checkExec(t, conn, `with u as (insert into auth.users (email) select 'u' || i from generate_series(1, $1::int) i returning id),
e as (insert into account_tool_environments (user_id, name, public_ip_address, status, dtma_bearer_token) select id, 'env', '203.0.113.7', 'active', id::text from u returning id)
insert into account_tool_instances (account_tool_environment_id, instance_name_on_toolbox, status_on_toolbox, mcp_server_type)
select e.id, 'server-' || i, 'running', 'files' from e, generate_series(1, $2::int) i`, environments, each)
	rows, err := conn.Query(t.Context(), "select id::text from account_tool_instances order by id")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return ids
}
