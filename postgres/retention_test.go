package postgres

import (
	"testing"
	"time"

	"github.com/agentopia/statussync/postgres/pgtest"
)

// TestRetention: what is older than is kept goes, more than one batch of it, and nothing else.
func TestRetention(t *testing.T) {
	dsn := shared.Get(t).Database(t)
	pgtest.Exec(t, dsn, `insert into auth.users (id) values ('00000000-0000-4000-8000-000000000001')`)
	pgtest.Exec(t, dsn, `insert into account_tool_environments (id, user_id) values ('10000000-0000-4000-8000-000000000001', '00000000-0000-4000-8000-000000000001')`)
	pgtest.Exec(t, dsn, `insert into account_tool_instances (id, account_tool_environment_id) values ('20000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000001')`)
	pgtest.Exec(t, dsn, `insert into mcp_server_status_logs (server_id, source, timestamp)
select '20000000-0000-4000-8000-000000000001', 'system', now() - interval '3 days' from generate_series(1, 6000)`)
	pgtest.Exec(t, dsn, `insert into mcp_server_status_logs (server_id, source, timestamp)
select '20000000-0000-4000-8000-000000000001', 'system', now() - interval '1 day' from generate_series(1, 7)`)
	r, err := NewRetention(RetentionOptions{DSN: dsn, Keep: 48 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.once(t.Context()); err != nil || r.Deleted() != 6000 {
		t.Fatalf("deleted %d: %v", r.Deleted(), err)
	}
	pgtest.Exec(t, dsn, `do $$ begin assert (select count(*) from mcp_server_status_logs) = 7; end $$`)
	if _, err := NewRetention(RetentionOptions{DSN: dsn}); err == nil {
		t.Error("a retention that keeps nothing")
	}
}
