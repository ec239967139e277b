package postgres

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/postgres/pgtest"
)

// TestConnections: what an agent uses, and what is said where tables, columns and rights are missing.
func TestConnections(t *testing.T) {
	c := shared.Get(t)
	dsn := c.Database(t)
	platform(t, dsn, 1, 3)
	const agent, idle = "c0000000-0000-4000-8000-000000000001", "c0000000-0000-4000-8000-000000000002"
	pgtest.Exec(t, dsn, fmt.Sprintf(`insert into agents (id, user_id) select i, 'd0000000-0000-4000-8000-000000000001' from unnest('{%s,%s}'::uuid[]) i`, agent, idle))
	pgtest.Exec(t, dsn, fmt.Sprintf(`insert into agent_mcp_connections (agent_id, mcp_server_instance_id, is_active, created_at) values
('%[1]s', '%[2]s', true, '2026-01-02T03:04:05Z'), ('%[1]s', '%[3]s', false, 'infinity')`, agent, instID(1), instID(2)))
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	role := "reader_of_" + strings.TrimPrefix(u.Path, "/") // roles are the cluster's, databases have names of their own
	pgtest.Exec(t, dsn, "create role "+role+" login; grant usage on schema public to "+role+"; grant select on account_tool_environments, account_tool_instances to "+role)
	start := func(dsn string) *registryRig {
		r := startRegistry(t, dsn, func(o *Options) { o.Feed = FeedPoll })
		r.until("the database can be read", func() bool { return r.Status().Syncs > 0 })
		return r
	}
	r, limited := start(dsn), start(c.DSNAs(role, strings.TrimPrefix(u.Path, "/")))
	got := func(r *registryRig, id string) string {
		t.Helper()
		list, err := r.Connections(t.Context(), id)
		if err != nil {
			return string(statussync.CodeOf(err)) + ": " + err.Error()
		}
		var out []string
		for _, c := range list {
			at := ""
			if !c.CreatedAt.IsZero() {
				at = " " + c.CreatedAt.UTC().Format("2006-01-02T15:04:05Z")
			}
			out = append(out, fmt.Sprintf("%s %v%s %v", c.ServerID[len(c.ServerID)-1:], c.Active, at, c.ID != ""))
		}
		return strings.Join(out, ", ")
	}
	check := func(what, got, want string) {
		t.Helper()
		if got != want && (want == "" || !strings.HasPrefix(got, want)) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	check("all columns", got(r, agent), "1 true 2026-01-02T03:04:05Z true, 2 false true")
	check("an agent without any", got(r, idle), "")
	check("no agent", got(r, "c0000000-0000-4000-8000-000000000003"), "not_found: ")
	check("no id", got(r, "x"), "invalid")
	check("no right", got(limited, agent), "unavailable: the role may not read agent_mcp_connections")
	pgtest.Exec(t, dsn, "grant select (agent_id, mcp_server_instance_id, is_active) on agent_mcp_connections to "+role)
	check("a right to some columns", got(limited, agent), "1 true false, 2 false false")
	pgtest.Exec(t, dsn, "alter table agent_mcp_connections drop column is_active")
	check("without is_active", got(r, agent), "1 true 2026-01-02T03:04:05Z true, 2 true true")
	pgtest.Exec(t, dsn, "alter table agent_mcp_connections drop column created_at")
	check("without both", got(r, agent), "1 true true, 2 true true")
	pgtest.Exec(t, dsn, "alter table agent_mcp_connections drop column mcp_server_instance_id")
	check("without what it is about", got(r, agent), "not_found: the platform's database has no table agent_mcp_connections with")
	pgtest.Exec(t, dsn, "drop table agent_mcp_connections")
	check("without the table", got(r, agent), "not_found: the platform's database has no table agent_mcp_connections with")
}
