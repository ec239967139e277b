package postgres

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/agentopia/statussync"
)

// CheckItem is one thing that the service can do with a platform's database.
type CheckItem struct {
	Feature string   `json:"feature"`
	OK      bool     `json:"ok"`
	Detail  string   `json:"detail"`
	Grants  []string `json:"grants"` // what the role lacks, as statements; their owner can run them
}

// CheckReport is what Check found.
type CheckReport struct {
	Role    string      `json:"role"`
	Server  string      `json:"server"`  // version of PostgreSQL
	Version int         `json:"version"` // of what Migrate installed; 0: nothing
	Items   []CheckItem `json:"items"`
	OK      bool        `json:"ok"` // everything that is needed is there; what only serves convenience may be missing
}

const checkTimeout = 20 * time.Second

// Check says what the service can do with a platform's database by this role, and which rights are missing for the rest. It
// changes nothing. Errors are *statussync.Error: CodeInvalid for the DSN, CodeUnavailable where it can't be reached.
func Check(ctx context.Context, dsn, schema string) (*CheckReport, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, dsnError(err)
	}
	c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, statussync.NewError(statussync.CodeUnavailable, "the database can't be reached: "+errorText(err), nil)
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(end) // it only read
	}()
	k := &checking{ctx: ctx, conn: conn, schema: schema}
	r := &CheckReport{OK: true}
	if err := conn.QueryRow(ctx, `select current_user::text, current_setting('server_version')`).Scan(&r.Role, &r.Server); err != nil {
		return nil, k.unreadable(err)
	}
	for _, f := range checkFeatures {
		item, err := k.feature(r.Role, f)
		if err != nil {
			return nil, k.unreadable(err)
		}
		r.Items = append(r.Items, item)
		r.OK = r.OK && (item.OK || !f.required)
	}
	if err := k.notify(r); err != nil {
		return nil, k.unreadable(err)
	}
	return r, nil
}

// checkFeature is what a part of the service needs.
type checkFeature struct {
	name     string
	required bool
	tables   []checkTable
}

type checkTable struct {
	name      string
	privilege string   // SELECT, INSERT, DELETE; UPDATE is asked for each column
	columns   []string // that there must be
}

// checkFeatures are the parts of the service, and what each needs (docs/protocols.md §5).
var checkFeatures = []checkFeature{
	{"read servers and environments", true, []checkTable{
		{tableInstances, "SELECT", []string{"id", "account_tool_environment_id", "instance_name_on_toolbox", "status_on_toolbox", "mcp_server_type"}},
		{tableEnvironments, "SELECT", []string{"id", "user_id"}},
	}},
	{"let agents in by their token", false, []checkTable{{tableEnvironments, "SELECT", []string{"dtma_bearer_token"}}}},
	{"write heartbeats (heartbeat_write_back)", false, []checkTable{
		{tableInstances, "UPDATE", []string{"status_on_toolbox", "runtime_details", "last_heartbeat_from_dtma"}},
		{tableEnvironments, "UPDATE", []string{"last_heartbeat_at", "dtma_last_known_version", "dtma_health_details_json", "status"}},
	}},
	{"write updates (status_log)", false, []checkTable{{tableLog, "INSERT", []string{"id", "server_id", "current_status"}}}},
	{"delete old updates (status_log.retention)", false, []checkTable{{tableLog, "DELETE", []string{"id", "timestamp"}}, {tableLog, "SELECT", []string{"id", "timestamp"}}}},
	{"tell agents' connections", false, []checkTable{{"agent_mcp_connections", "SELECT", []string{"agent_id", "mcp_server_instance_id"}}}},
}

type checking struct {
	ctx    context.Context
	conn   *pgx.Conn
	schema string
}

func (k *checking) unreadable(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "3F000" {
		return statussync.NewError(statussync.CodeNotFound, "there is no such schema", err)
	}
	return statussync.NewError(statussync.CodeUnavailable, "the database can't be read: "+errorText(err), nil)
}

func (k *checking) feature(role string, f checkFeature) (CheckItem, error) {
	item := CheckItem{Feature: f.name, OK: true, Grants: []string{}}
	var faults []string
	grantee := pgx.Identifier{role}.Sanitize()
	for _, t := range f.tables {
		table := pgx.Identifier{k.schema, t.name}.Sanitize()
		var exists, usage bool
		// A schema that may not be used hides its tables from to_regclass.
		err := k.conn.QueryRow(k.ctx, `select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p', 'v', 'f')),
coalesce((select has_schema_privilege(n.oid, 'USAGE') from pg_namespace n where n.nspname = $1), false)`, k.schema, t.name).Scan(&exists, &usage)
		if err != nil {
			return item, err
		}
		if !exists {
			faults = append(faults, "there is no table "+t.name)
			continue
		}
		if !usage {
			faults, item.Grants = append(faults, "the schema may not be used"), append(item.Grants, "grant usage on schema "+pgx.Identifier{k.schema}.Sanitize()+" to "+grantee)
		}
		var missing, denied []string
		for _, c := range t.columns {
			var there, may bool
			err := k.conn.QueryRow(k.ctx, `select count(*) > 0, coalesce(bool_or(has_column_privilege(a.attrelid, a.attnum, $4)), false)
from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and c.relname = $2 and a.attname = $3 and a.attnum > 0 and not a.attisdropped`, k.schema, t.name, c, columnPrivilege(t.privilege)).Scan(&there, &may)
			switch {
			case err != nil:
				return item, err
			case !there:
				missing = append(missing, c)
			case !may && t.privilege != "DELETE":
				denied = append(denied, c)
			}
		}
		if t.privilege == "DELETE" {
			var may bool
			if err := k.conn.QueryRow(k.ctx, `select coalesce(bool_or(has_table_privilege(c.oid, 'DELETE')), false) from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = $2`, k.schema, t.name).Scan(&may); err != nil {
				return item, err
			}
			if !may {
				denied = append(denied, "rows")
			}
		}
		if len(missing) > 0 {
			faults = append(faults, t.name+" has no column "+strings.Join(missing, ", "))
		}
		if len(denied) > 0 {
			grant := strings.ToLower(t.privilege)
			if t.privilege == "UPDATE" { // not more than is needed
				grant += " (" + strings.Join(denied, ", ") + ")"
			}
			faults = append(faults, "no right to "+strings.ToLower(t.privilege)+" "+t.name)
			item.Grants = append(item.Grants, "grant "+grant+" on "+table+" to "+grantee)
		}
	}
	item.OK, item.Detail = len(faults) == 0, strings.Join(faults, "; ")
	return item, nil
}

func columnPrivilege(p string) string {
	if p == "DELETE" { // there is none for columns
		return "SELECT"
	}
	return p
}

// notify looks at what LISTEN/NOTIFY needs.
func (k *checking) notify(r *CheckReport) error {
	item := CheckItem{Feature: "be told of changes at once (LISTEN/NOTIFY)", Grants: []string{}}
	// What the feed looks for: the triggers by which it is told, on both tables.
	var tables int
	err := k.conn.QueryRow(k.ctx, `select count(distinct c.relname) from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
join pg_proc p on p.oid = t.tgfoid join pg_namespace pn on pn.oid = p.pronamespace
where n.nspname = $1 and c.relname in ($2, $3) and pn.nspname = $4 and t.tgenabled <> 'D'`, k.schema, tableInstances, tableEnvironments, MigrationSchema).Scan(&tables)
	if err != nil {
		return err
	}
	switch tables {
	case 2:
		r.Version, item.OK = MigrationVersion, true
	case 0:
		item.Detail = "its triggers are not installed: statussync migrate --apply does it; without them everything is read again now and then"
	default:
		item.Detail = "its triggers are on one table only: statussync migrate --apply completes them"
	}
	r.Items = append(r.Items, item)
	return nil
}
