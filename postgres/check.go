package postgres

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync"
)

// Feature is something that the service does with the platform's database, and needs rights for.
type Feature string

// The features.
const (
	FeatureRegistry    Feature = "registry"    // read the servers and environments
	FeatureWriteBack   Feature = "write_back"  // write what agents report
	FeatureStatusLog   Feature = "status_log"  // append to mcp_server_status_logs
	FeatureListen      Feature = "listen"      // hear of changes by LISTEN/NOTIFY
	FeatureRealtime    Feature = "realtime"    // hear of changes by Supabase Realtime
	FeatureConnections Feature = "connections" // an agent's connections
	FeatureRetention   Feature = "retention"   // delete old rows of mcp_server_status_logs
)

// Features lists every Feature.
var Features = []Feature{FeatureRegistry, FeatureWriteBack, FeatureStatusLog, FeatureListen, FeatureRealtime, FeatureConnections, FeatureRetention}

// CheckOptions says what Check looks at.
type CheckOptions struct {
	Schema   string    // of the platform's tables. Default "public"
	Features []Feature // nil: all
}

// CheckReport is what a role finds in a platform's database.
type CheckReport struct {
	Role     string          `json:"role"`
	Database string          `json:"database"`
	Server   string          `json:"server_version"`
	Schema   string          `json:"schema"`
	Features []CheckedResult `json:"features"`
}

// CheckedResult is one feature: it works when nothing is missing.
type CheckedResult struct {
	Feature Feature  `json:"feature"`
	OK      bool     `json:"ok"`
	Missing []string `json:"missing"` // tables, columns, triggers, a direct connection: in words
	Grants  []string `json:"grants"`  // statements that give the role what it lacks
	Notes   []string `json:"notes"`   // what is gone without
}

// OK reports whether everything that was looked at works.
func (r *CheckReport) OK() bool {
	return !slices.ContainsFunc(r.Features, func(f CheckedResult) bool { return !f.OK })
}

// checkNeed is what a feature needs of a table. Where a column in optional is missing it is gone without.
type checkNeed struct {
	table    string
	right    string // SELECT, INSERT, UPDATE or DELETE
	needed   []string
	optional []string
}

var checkNeeds = map[Feature][]checkNeed{
	FeatureRegistry: {
		{checkInstances, "SELECT", []string{"id", "account_tool_environment_id"}, []string{"instance_name_on_toolbox", "status_on_toolbox", "last_heartbeat_from_dtma",
			"instance_error_message", "mcp_server_type", "mcp_transport_type", "mcp_endpoint_path", "mcp_server_capabilities", "mcp_discovery_metadata"}},
		{checkEnvironments, "SELECT", []string{"id"}, []string{"user_id", "name", "public_ip_address", "status", "dtma_bearer_token", "last_heartbeat_at", "dtma_last_known_version"}},
	},
	FeatureWriteBack: {
		{checkInstances, "SELECT", []string{"id", "account_tool_environment_id"}, []string{"status_on_toolbox", "runtime_details", "last_heartbeat_from_dtma"}},
		{checkEnvironments, "SELECT", []string{"id"}, []string{"last_heartbeat_at", "dtma_last_known_version", "dtma_health_details_json", "status"}},
		{checkInstances, "UPDATE", nil, []string{"status_on_toolbox", "runtime_details", "last_heartbeat_from_dtma"}},
		{checkEnvironments, "UPDATE", nil, []string{"last_heartbeat_at", "dtma_last_known_version", "dtma_health_details_json", "status"}},
	},
	FeatureStatusLog: {
		{checkInstances, "SELECT", []string{"id"}, nil},
		{checkLogs, "INSERT", []string{"id", "server_id", "current_status", "timestamp"}, []string{"previous_status", "source", "details", "response_time_ms", "uptime_seconds", "sync_session_id", "batch_id"}},
	},
	FeatureConnections: {{checkConnections, "SELECT", []string{"agent_id", "mcp_server_instance_id"}, []string{"id", "is_active", "created_at"}}},
	FeatureRetention: {
		{checkLogs, "SELECT", []string{"id", "timestamp"}, nil},
		{checkLogs, "DELETE", nil, nil},
	},
}

// Check tells what of the platform's database is there for each feature, and what the role lacks. A role that has no right but
// to connect is enough. For FeatureListen it also sends itself a notification, through a second connection: where that does
// not arrive within 3 s there is a pooler in transaction mode in between. Errors are those of connecting.
func Check(ctx context.Context, dsn string, o CheckOptions) (*CheckReport, error) {
	conn, err := catalogConnect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	r := &CheckReport{Schema: cmp.Or(o.Schema, "public")}
	if err := conn.QueryRow(ctx, "select current_user::text, current_database()::text, current_setting('server_version')").Scan(&r.Role, &r.Database, &r.Server); err != nil {
		return nil, statussync.NewError(statussync.CodeUnavailable, "the database can't be read", err)
	}
	features := o.Features
	if features == nil {
		features = Features
	}
	for _, f := range features {
		got, err := checkFeature(ctx, conn, r.Schema, r.Role, f)
		if err != nil {
			return nil, statussync.NewError(statussync.CodeUnavailable, "the database can't be read", err)
		}
		if f == FeatureListen {
			if err := checkHears(ctx, dsn); err != nil {
				got.Missing = append(got.Missing, err.Error())
			}
		}
		got.OK = len(got.Missing)+len(got.Grants) == 0
		r.Features = append(r.Features, got)
	}
	return r, nil
}

func checkFeature(ctx context.Context, q catalogQuerier, schema, role string, f Feature) (CheckedResult, error) {
	out := CheckedResult{Feature: f, Missing: []string{}, Grants: []string{}, Notes: []string{}}
	who := catalogPlain(role)
	switch f {
	case FeatureListen:
		var version int
		var installed []string
		err := q.QueryRow(ctx, `select current_setting('server_version_num')::int, coalesce((select array_agg(distinct c.relname::text) from pg_catalog.pg_trigger t
join pg_catalog.pg_class c on c.oid = t.tgrelid join pg_catalog.pg_namespace tn on tn.oid = c.relnamespace
join pg_catalog.pg_proc p on p.oid = t.tgfoid join pg_catalog.pg_namespace n on n.oid = p.pronamespace
where n.nspname = $1::text and tn.nspname = $2::text and t.tgname = 'statussync_update' and t.tgenabled = 'O'), '{}')`, MigrationSchema, schema).Scan(&version, &installed)
		if err != nil {
			return out, err
		}
		for _, name := range []string{checkInstances, checkEnvironments} {
			if !slices.Contains(installed, name) {
				out.Missing = append(out.Missing, "the triggers on "+name+": statussync migrate --apply installs them")
			}
		}
		return out, nil
	case FeatureRealtime:
		var published []string
		err := q.QueryRow(ctx, `select coalesce(array_agg(tablename::text), '{}') from pg_catalog.pg_publication_tables
where pubname = 'supabase_realtime' and schemaname = $1::text`, schema).Scan(&published)
		if err != nil {
			return out, err
		}
		for _, name := range []string{checkInstances, checkEnvironments} {
			if !slices.Contains(published, name) {
				out.Missing = append(out.Missing, "the table "+name+" in the publication supabase_realtime: alter publication supabase_realtime add table "+catalogPlain(schema)+"."+name)
			}
		}
		return out, nil
	}
	needs := checkNeeds[f]
	var names []string
	for _, n := range needs {
		names = append(names, n.table)
	}
	tables, err := catalogTables(ctx, q, schema, names...)
	if err != nil {
		return out, err
	}
	var usage, exists bool
	err = q.QueryRow(ctx, `select count(*) > 0, coalesce(bool_or(pg_catalog.has_schema_privilege(oid, 'USAGE')), false) from pg_catalog.pg_namespace where nspname = $1::text`, schema).Scan(&exists, &usage)
	if err != nil {
		return out, err
	}
	if !exists {
		out.Missing = append(out.Missing, "the schema "+schema)
		return out, nil
	}
	if !usage {
		out.Grants = append(out.Grants, "grant usage on schema "+catalogPlain(schema)+" to "+who)
	}
	for _, n := range needs {
		t := tables[n.table]
		full := catalogPlain(schema) + "." + n.table
		if t == nil {
			if text := "the table " + full; !slices.Contains(out.Missing, text) {
				out.Missing = append(out.Missing, text)
			}
			continue
		}
		var lacks []string
		for i, c := range slices.Concat(n.needed, n.optional) {
			have, ok := t.columns[c]
			switch {
			case !ok && i < len(n.needed):
				out.Missing = append(out.Missing, "the column "+c+" of "+full)
			case !ok:
				out.Notes = append(out.Notes, "no column "+c+" of "+full+": it is gone without")
			case n.right == "SELECT" && !have.reads, n.right == "INSERT" && !have.inserts, n.right == "UPDATE" && !have.writes:
				lacks = append(lacks, c)
			}
		}
		right := strings.ToLower(n.right)
		if len(lacks) > 0 {
			out.Grants = append(out.Grants, "grant "+right+" ("+catalogList(lacks)+") on "+full+" to "+who)
		}
		if n.right == "DELETE" && !t.deletes {
			out.Grants = append(out.Grants, "grant delete on "+full+" to "+who)
		}
		if t.rls && !t.policies[n.right] {
			check := "using"
			if n.right == "INSERT" {
				check = "with check"
			}
			out.Grants = append(out.Grants, "create policy statussync_"+right+" on "+full+" for "+right+" to "+who+" "+check+" (true)")
		} else if t.rls {
			out.Notes = append(out.Notes, full+" has row level security: the role sees and writes only what its policies let through")
		}
	}
	return out, nil
}

// checkForbidden makes an Error with CodeForbidden of what the server said ("permission denied for …"), which names the grants
// that are missing for a feature.
func checkForbidden(ctx context.Context, conn *pgx.Conn, schema string, f Feature, cause error) error {
	var role string
	detail := "the role lacks a right for " + string(f)
	if err := conn.QueryRow(ctx, "select current_user::text").Scan(&role); err == nil {
		if got, err := checkFeature(ctx, conn, schema, role, f); err == nil && len(got.Grants) > 0 {
			detail += ": " + strings.Join(got.Grants, "; ")
		}
	}
	return statussync.NewError(statussync.CodeForbidden, detail, cause)
}

// checkHears sends a notification from one connection to another.
func checkHears(ctx context.Context, dsn string) error {
	deaf := fmt.Errorf("a direct connection: notifications don't arrive through this one, which is the way of poolers in transaction mode (PgBouncer, Supavisor on port 6543)")
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	listener, err := catalogConnect(ctx, dsn)
	if err != nil {
		return err
	}
	defer listener.Close(context.WithoutCancel(ctx))
	name := "statussync_check_" + strings.ToLower(rand.Text())
	if _, err := listener.Exec(ctx, "listen "+name); err != nil {
		return deaf
	}
	sender, err := catalogConnect(ctx, dsn)
	if err != nil {
		return err
	}
	defer sender.Close(context.WithoutCancel(ctx))
	if _, err := sender.Exec(ctx, "select pg_notify($1::text, '')", name); err != nil {
		return deaf
	}
	wait, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if n, err := listener.WaitForNotification(wait); err != nil || n.Channel != name {
		return deaf
	}
	return nil
}
