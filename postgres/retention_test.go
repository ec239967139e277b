package postgres

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync/postgres/pgtest"
)

// logOf fills a database: servers with each old rows and 2 new ones; the first server has more old ones than one batch.
func logOf(t *testing.T, dsn string, servers, each int) (old, young int) {
	t.Helper()
	platform(t, dsn, 1, servers)
	pgtest.Exec(t, dsn, `insert into mcp_server_status_logs (server_id, source, timestamp)
select i.id, 'system', now() - interval '3 days' - k * interval '1 second' from account_tool_instances i, generate_series(1, `+strconv.Itoa(each)+`) k`)
	pgtest.Exec(t, dsn, `insert into mcp_server_status_logs (server_id, source, timestamp)
select '`+instID(1)+`', 'system', now() - interval '3 days' from generate_series(1, `+strconv.Itoa(keepRows+10)+`)`)
	pgtest.Exec(t, dsn, `insert into mcp_server_status_logs (server_id, source, timestamp)
select i.id, 'system', now() - interval '1 day' from account_tool_instances i, generate_series(1, 2)`)
	return servers*each + keepRows + 10, servers * 2
}

// TestRetention: what is older than is kept goes, whatever index there is, and nothing else.
func TestRetention(t *testing.T) {
	const servers = keepServers + 20
	for name, change := range map[string]string{
		"by server": "analyze",
		"by time":   `create index on mcp_server_status_logs ("timestamp")`,
		"no index":  "drop index mcp_server_status_logs_server_id_timestamp_idx",
	} {
		t.Run(name, func(t *testing.T) {
			dsn := shared.Get(t).Database(t)
			old, young := logOf(t, dsn, servers, 3)
			pgtest.Exec(t, dsn, change)
			r, err := NewRetention(RetentionOptions{DSN: dsn, Keep: 48 * time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			if err := r.once(t.Context()); err != nil || r.Deleted() != uint64(old) {
				t.Fatalf("deleted %d of %d: %v", r.Deleted(), old, err)
			}
			if n := rowOf(t, dsn, "select count(*) from mcp_server_status_logs"); n != strconv.Itoa(young) {
				t.Errorf("%s rows are left, not %d", n, young)
			}
			if err := r.once(t.Context()); err != nil || r.Deleted() != uint64(old) {
				t.Errorf("and again %d: %v", r.Deleted(), err)
			}
		})
	}
	if _, err := NewRetention(RetentionOptions{DSN: "postgres://h/d"}); err == nil {
		t.Error("a retention that keeps nothing")
	}
}

// TestRetentionWalks: with the platform's own index, a batch never looks through the table.
func TestRetentionWalks(t *testing.T) {
	dsn := shared.Get(t).Database(t)
	logOf(t, dsn, 300, 30)
	pgtest.Exec(t, dsn, "analyze mcp_server_status_logs")
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	r, err := NewRetention(RetentionOptions{DSN: dsn, Keep: 48 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	walk, err := r.walk(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, after := range []string{"", instID(7)} {
		args := []any{pgx.QueryExecModeSimpleProtocol, time.Now().Add(-48 * time.Hour)}
		if after != "" {
			args = append(args, after)
		}
		rows, err := conn.Query(t.Context(), "explain "+walk(after), args...)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(plan, "\n"); strings.Contains(text, "Seq Scan on mcp_server_status_logs") || !strings.Contains(text, "Index") {
			t.Errorf("after %q:\n%s", after, text)
		}
	}
}

// TestRetentionWaitsForNobody: who holds a lock on an old row is not waited for long, and what is not locked goes later.
func TestRetentionWaitsForNobody(t *testing.T) {
	dsn := shared.Get(t).Database(t)
	old, _ := logOf(t, dsn, 5, 2)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `select * from mcp_server_status_logs where server_id = $1 for update`, instID(1)); err != nil {
		t.Fatal(err)
	}
	r, err := NewRetention(RetentionOptions{DSN: dsn, Keep: 48 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.once(t.Context()); err == nil || !strings.Contains(errorText(err), "lock timeout") {
		t.Errorf("%v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.once(t.Context()); err != nil || r.Deleted() != uint64(old) {
		t.Errorf("deleted %d of %d: %v", r.Deleted(), old, err)
	}
}
