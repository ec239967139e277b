package app

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/postgres/pgtest"
)

// A report that was taken is written as its agent sent it, also one of the last moment before a stop; and a database that does not
// answer then does not make the stop a failure.
func TestLastReportsOfAStop(t *testing.T) {
	c := pgtest.Start(t)
	dsn := c.Database(t)
	const env, server = "e0000000-0000-4000-8000-000000000001", "a0000000-0000-4000-8000-000000000001"
	pgtest.Exec(t, dsn, fmt.Sprintf(`insert into auth.users (id) values ('d0000000-0000-4000-8000-000000000001');
insert into account_tool_environments (id, user_id, name, status, dtma_bearer_token, last_heartbeat_at) values ('%s', 'd0000000-0000-4000-8000-000000000001', 'box', 'awaiting_heartbeat', 'token-of-the-box', now() - interval '1 day');
insert into account_tool_instances (id, account_tool_environment_id, instance_name_on_toolbox, status_on_toolbox, mcp_server_type) values ('%s', '%s', 's', 'running', 'files')`, env, server, env))
	value := func(sql string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(ctx)
		var v string
		if err := conn.QueryRow(ctx, sql).Scan(&v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	beat := func(r *running, n int) {
		t.Helper()
		body := fmt.Sprintf(`{"dtma_version":"9.%d","system_status":{"cpu_load_percent":%d,"more":{"kept":12345678901234567890}},"tool_statuses":[
{"account_tool_instance_id":"%s","status_on_toolbox":"running","runtime_details":{"round":%[2]d,"deep":{"list":[1,"two",null]}}}]}`, n, n, server)
		if status := r.heartbeat("token-of-the-box", body); status != 204 {
			t.Fatalf("heartbeat: %d", status)
		}
	}
	ready := func(r *running) {
		t.Helper()
		c := r.as("admin-token")
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for range 12_000 {
			if _, err := c.Server(t.Context(), server); err == nil {
				if m, err := c.SyncMetrics(t.Context()); err == nil && len(m.Registries) == 1 && !m.Registries[0].LastSync.IsZero() {
					return
				}
			}
			<-tick.C
		}
		t.Fatal("the database was not read")
	}
	data, more := t.TempDir(), "registries: [{postgres: {dsn: '"+dsn+"'}}]\n"
	for n := 1; n <= 3; n++ { // the first round trip goes at once, what comes behind it waits
		r := startWhole(t, data, more)
		ready(r)
		if e, err := r.as("admin-token").Environment(t.Context(), env); err != nil || n > 1 && e.HeardVia != statussync.ViaPush {
			t.Errorf("what was written before the restart was taken for a heartbeat of the database: %+v, %v", e, err)
		}
		for i := range 4 {
			beat(r, 10*n+i)
		}
		r.stop()
		got := value(`select e.dtma_last_known_version || ' ' || (e.dtma_health_details_json::jsonb)::text || ' ' || (i.runtime_details::jsonb)::text
from account_tool_environments e join account_tool_instances i on i.account_tool_environment_id = e.id`)
		if want := fmt.Sprintf(`9.%[1]d {"more": {"kept": 12345678901234567890}, "cpu_load_percent": %[1]d} {"deep": {"list": [1, "two", null]}, "round": %[1]d}`, 10*n+3); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	r := startWhole(t, data, more)
	ready(r)
	c.Freeze()
	defer c.Thaw()
	beat(r, 99)
	began := time.Now()
	r.stop() // it tells what did not stop in time
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

// An agent whose token nobody could read yet is asked to come again: its database was away when the service started for the
// first time. Afterwards a token that is not known is refused.
func TestHeartbeatsBeforeTheFirstRead(t *testing.T) {
	c := pgtest.Start(t)
	dsn := c.Database(t)
	pgtest.Exec(t, dsn, `insert into auth.users (id) values ('d0000000-0000-4000-8000-000000000001');
insert into account_tool_environments (id, user_id, name, status, dtma_bearer_token) values ('e0000000-0000-4000-8000-000000000001', 'd0000000-0000-4000-8000-000000000001', 'box', 'active', 'token-of-the-box')`)
	c.Down()
	r := startWhole(t, t.TempDir(), "registries: [{postgres: {dsn: '"+dsn+"'}}]\n")
	defer r.stop()
	for range 20 { // more than wrong tokens are allowed in a minute
		if status := r.heartbeat("token-of-the-box", "{}"); status != 503 {
			t.Fatalf("before the first read: %d", status)
		}
	}
	if err := c.Up(); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		status := r.heartbeat("token-of-the-box", "{}")
		if status == 204 {
			break
		}
		if status != 503 || n > 3000 {
			t.Fatalf("while it is read: %d", status)
		}
		<-tick.C
	}
	if status := r.heartbeat("another-token", "{}"); status != 401 {
		t.Errorf("a wrong token: %d", status)
	}
}
