package postgres

import (
	"slices"
	"strings"
	"testing"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/postgres/pgtest"
)

func mustCheck(t *testing.T, dsn string, features ...Feature) *CheckReport {
	t.Helper()
	r, err := Check(t.Context(), dsn, CheckOptions{Features: features})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// testCheck: a role that may do nothing but connect is told what it lacks; with that, and no more, every feature is ready.
func testCheck(t *testing.T, c *pgtest.Cluster) {
	dsn := c.Database(t)
	conn := checkConn(t, dsn)
	checkExec(t, conn, "create role minimal1 login; revoke all on schema public from public; alter table account_tool_environments enable row level security")
	mine := c.DSNAs("minimal1", conn.Config().Database)
	r := mustCheck(t, mine)
	if r.Role != "minimal1" || r.OK() || len(r.Features) != len(Features) {
		t.Errorf("%+v", r)
	}
	done := map[string]bool{}
	for _, f := range r.Features {
		if f.OK {
			t.Errorf("%s: everything is said to be there: %+v", f.Feature, f)
		}
		for _, g := range f.Grants {
			if done[g] {
				continue // two features need the same policy
			}
			done[g] = true
			checkExec(t, conn, g)
		}
	}
	mustMigrate(t, dsn, MigrateOptions{Apply: true})
	checkExec(t, conn, "create publication supabase_realtime for table account_tool_instances")
	for _, f := range mustCheck(t, mine).Features {
		if f.Feature == FeatureRealtime {
			if f.OK || !strings.Contains(strings.Join(f.Missing, " "), "alter publication supabase_realtime add table public.account_tool_environments") {
				t.Errorf("%+v", f)
			}
		} else if !f.OK {
			t.Errorf("with what was named: %+v", f)
		}
	}
	// Not more than that: other columns stay closed.
	for _, sql := range []string{"select do_droplet_id from account_tool_environments", "update account_tool_instances set mcp_server_type = 'x'", "select current_status from mcp_server_status_logs", "select * from user_roles"} {
		if _, err := checkConn(t, mine).Exec(t.Context(), sql); checkSQLState(err) != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
	checkExec(t, conn, "alter table account_tool_instances drop column mcp_endpoint_path; alter table mcp_server_status_logs drop column current_status; alter table account_tool_instances disable trigger statussync_update")
	r = mustCheck(t, dsn, FeatureRegistry, FeatureStatusLog, FeatureListen)
	if reg := r.Features[0]; !reg.OK || !slices.ContainsFunc(reg.Notes, func(n string) bool { return strings.Contains(n, "mcp_endpoint_path") }) {
		t.Errorf("an optional column: %+v", reg)
	}
	if log := r.Features[1]; log.OK || !slices.Contains(log.Missing, "the column current_status of public.mcp_server_status_logs") {
		t.Errorf("a needed column: %+v", log)
	}
	if l := r.Features[2]; l.OK || len(l.Missing) != 1 {
		t.Errorf("a disabled trigger: %+v", l)
	}
	empty := mustCheck(t, c.Empty(t), FeatureRegistry, FeatureConnections)
	if got := empty.Features[1].Missing; len(got) != 1 || got[0] != "the table public.agent_mcp_connections" || len(empty.Features[0].Missing) != 2 {
		t.Errorf("an empty database: %+v", empty)
	}
	if _, err := Check(t.Context(), c.DSN("nowhere"), CheckOptions{}); statussync.CodeOf(err) != statussync.CodeNotFound {
		t.Error(err)
	}
}
