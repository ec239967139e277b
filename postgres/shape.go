package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/agentopia/statussync"
)

// The platform's tables that are read and written here.
const (
	tableInstances    = "account_tool_instances"
	tableEnvironments = "account_tool_environments"
)

// shapeColumn is what the catalog tells of one.
type shapeColumn struct {
	typ            string // as SQL names it
	enum           []string
	isEnum         bool
	canRead, write bool
}

// shapeCatalog is what the database has of the platform's tables, and what the role may do with it.
type shapeCatalog struct {
	role   string
	schema string
	usage  bool // USAGE of the schema
	found  bool // the schema exists
	tables map[string]*shapeTable
}

type shapeTable struct {
	columns  map[string]*shapeColumn
	anyRead  bool // SELECT of the table as a whole
	filtered bool // row-level security hides rows from this role
	trigger  bool // one that tells our channel
}

// catalogQuery gives one row per column. It reads the catalog itself: information_schema hides what the role has no right
// to, so that a missing right would look like a missing column.
const catalogQuery = `select current_user::text, n.nspname::text, has_schema_privilege(n.oid, 'USAGE'), coalesce(c.relname::text, ''),
  coalesce(a.attname::text, ''), coalesce(format_type(a.atttypid, a.atttypmod), ''),
  coalesce(case when t.typtype = 'e' then (select string_agg(enumlabel, E'\n' order by enumsortorder) from pg_enum where enumtypid = t.oid) end, ''),
  coalesce(t.typtype = 'e', false),
  coalesce(has_column_privilege(c.oid, a.attnum, 'SELECT'), false), coalesce(has_column_privilege(c.oid, a.attnum, 'UPDATE'), false),
  coalesce(has_table_privilege(c.oid, 'SELECT'), false), coalesce(row_security_active(c.oid), false),
  exists (select from pg_trigger g join pg_proc p on p.oid = g.tgfoid join pg_namespace pn on pn.oid = p.pronamespace
          where g.tgrelid = c.oid and not g.tgisinternal and g.tgenabled in ('O', 'A') and pn.nspname = 'statussync')
from pg_namespace n
left join pg_class c on c.relnamespace = n.oid and c.relname in ('account_tool_instances', 'account_tool_environments') and c.relkind in ('r', 'p', 'v', 'm', 'f')
left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_type t on t.oid = a.atttypid
where n.nspname = $1`

func readCatalog(ctx context.Context, q querier, schema string) (*shapeCatalog, error) {
	rows, err := q.Query(ctx, catalogQuery, schema)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	c := &shapeCatalog{schema: schema, tables: map[string]*shapeTable{}}
	for rows.Next() {
		var name, tab, col, typ, labels string
		var isEnum, canRead, canWrite, anyRead, filtered, trigger bool
		if err := rows.Scan(&c.role, &name, &c.usage, &tab, &col, &typ, &labels, &isEnum, &canRead, &canWrite, &anyRead, &filtered, &trigger); err != nil {
			return nil, err
		}
		c.found = true
		if tab == "" {
			continue
		}
		t := c.tables[tab]
		if t == nil {
			t = &shapeTable{columns: map[string]*shapeColumn{}, anyRead: anyRead, filtered: filtered, trigger: trigger}
			c.tables[tab] = t
		}
		if col != "" {
			t.columns[col] = &shapeColumn{typ: typ, enum: strings.Split(labels, "\n"), isEnum: isEnum, canRead: canRead, write: canWrite}
		}
	}
	return c, rows.Err()
}

// querier is what a pool, a connection and a transaction have in common.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// shape is what of the platform's tables can be used here, as statements.
type shape struct {
	instances, instancesByID       string
	environments, environmentsByID string
	instanceUUID, environmentUUID  bool // their ids are of type uuid
	trigger                        bool
	write                          string   // empty: nothing can be written
	words                          []string // that the status column takes; nil: any
	missing                        []string
}

// pageRows is how many rows one statement reads. docs/protocols.md §5.
const pageRows = 10_000

// The columns of a read, in order; those marked are needed.
var (
	instanceColumns = [...]struct {
		name, expr string
		needed     bool
	}{
		{"id", "%s::text", true},
		{"account_tool_environment_id", "%s::text", true},
		{"instance_name_on_toolbox", "left(%s::text, 600)", false},
		{"status_on_toolbox", "%s::text", false},
		{"instance_error_message", "left(%s::text, 1000)", false},
		{"mcp_server_type", "left(%s::text, 600)", true},
		{"mcp_transport_type", "left(%s::text, 100)", false},
		{"mcp_endpoint_path", "left(%s::text, 2049)", false},
		{"mcp_server_capabilities", "case when length(%[1]s::text) > 16384 then '!' else %[1]s::text end", false},
		{"last_heartbeat_from_dtma", "%s::text", false},
	}
	environmentColumns = [...]struct {
		name, expr string
		needed     bool
	}{
		{"id", "%s::text", true},
		{"user_id", "left(%s::text, 200)", false},
		{"name", "left(%s::text, 600)", false},
		{"public_ip_address", "left(%s::text, 300)", false},
		{"dtma_bearer_token", "left(%s::text, 4096)", false},
		{"last_heartbeat_at", "%s::text", false},
	}
)

// plan makes a shape of a catalog. Errors name the table, the column and the right that cannot be done without.
func (c *shapeCatalog) plan(writeBack bool) (*shape, error) {
	if !c.found {
		return nil, statussync.Invalid("schema "+c.schema, "does not exist, or is not visible to the role")
	}
	if !c.usage {
		return nil, statussync.NewError(statussync.CodeForbidden, "role "+c.role+" lacks USAGE on schema "+c.schema, nil)
	}
	s := &shape{}
	list := func(name string, need func(i int) (col, expr string, needed bool), n int) (string, error) {
		t := c.tables[name]
		if t == nil {
			return "", statussync.Invalid(c.schema+"."+name, "the table does not exist")
		}
		var out []string
		for i := range n {
			col, expr, needed := need(i)
			k := t.columns[col]
			where := c.schema + "." + name
			switch {
			case k == nil && needed:
				return "", statussync.Invalid(where, "the column "+col+" does not exist, and nothing works without it")
			case k == nil:
				s.missing = append(s.missing, "column "+where+"."+col)
				out = append(out, "null")
			case !k.canRead && needed:
				if !t.anyRead && !anyReadable(t) {
					return "", statussync.NewError(statussync.CodeForbidden, "role "+c.role+" lacks SELECT on "+where, nil)
				}
				return "", statussync.NewError(statussync.CodeForbidden, "role "+c.role+" lacks SELECT on "+where+" (column "+col+")", nil)
			case !k.canRead:
				s.missing = append(s.missing, "role "+c.role+" lacks SELECT on "+where+" (column "+col+")")
				out = append(out, "null")
			default:
				out = append(out, fmt.Sprintf(expr, ident("x", col)))
			}
		}
		if t.filtered {
			s.missing = append(s.missing, "row-level security may hide rows of "+c.schema+"."+name+" from role "+c.role)
		}
		return strings.Join(out, ", "), nil
	}
	inst, err := list(tableInstances, func(i int) (string, string, bool) {
		k := &instanceColumns[i]
		return k.name, k.expr, k.needed
	}, len(instanceColumns))
	if err != nil {
		return nil, err
	}
	envs, err := list(tableEnvironments, func(i int) (string, string, bool) {
		k := &environmentColumns[i]
		return k.name, k.expr, k.needed
	}, len(environmentColumns))
	if err != nil {
		return nil, err
	}
	ti, te := c.tables[tableInstances], c.tables[tableEnvironments]
	s.trigger = ti.trigger && te.trigger
	s.instanceUUID, s.environmentUUID = ti.columns["id"].typ == "uuid", te.columns["id"].typ == "uuid"
	from := " from " + pgx.Identifier{c.schema, tableInstances}.Sanitize() + " x where "
	if writeBack { // an agent reports its other tools, too, and the platform's function writes them
		from += "true"
	} else {
		from += "x.mcp_server_type is not null"
	}
	s.instances = "select " + inst + from + " and ($1 = '' or x.id > nullif($1, '')::" + ti.columns["id"].typ + ") order by x.id limit $2"
	s.instancesByID = "select " + inst + from + " and x.id = any($1::" + ti.columns["id"].typ + "[])"
	from = " from " + pgx.Identifier{c.schema, tableEnvironments}.Sanitize() + " x"
	s.environments = "select " + envs + from + " where ($1 = '' or x.id > nullif($1, '')::" + te.columns["id"].typ + ") order by x.id limit $2"
	s.environmentsByID = "select " + envs + from + " where x.id = any($1::" + te.columns["id"].typ + "[])"
	if writeBack {
		c.planWrite(s, ti, te)
	}
	slices.Sort(s.missing)
	return s, nil
}

func anyReadable(t *shapeTable) bool {
	for _, c := range t.columns {
		if c.canRead {
			return true
		}
	}
	return false
}

// planWrite makes the statement of the write-back, of the columns that are there and may be written. One statement writes
// environments and instances, and tells what it wrote. $1 and $2 are JSON lists.
func (c *shapeCatalog) planWrite(s *shape, ti, te *shapeTable) {
	can := func(name string, t *shapeTable, col string) bool {
		k := t.columns[col]
		switch {
		case k == nil: // reading has named those that it misses, too
			if text := "column " + c.schema + "." + name + "." + col; !slices.Contains(s.missing, text) {
				s.missing = append(s.missing, text)
			}
			return false
		case !k.write:
			s.missing = append(s.missing, "role "+c.role+" lacks UPDATE on "+c.schema+"."+name+" (column "+col+"): it is not written back")
			return false
		case !k.canRead: // what is there is compared, or kept where a report says nothing
			if text := "role " + c.role + " lacks SELECT on " + c.schema + "." + name + " (column " + col + ")"; !slices.Contains(s.missing, text) {
				s.missing = append(s.missing, text)
			}
			return false
		}
		return true
	}
	var env, inst []string
	newerEnv, newerInst := "true", "true"
	if can(tableEnvironments, te, "last_heartbeat_at") {
		env = append(env, "last_heartbeat_at = h.at")
		newerEnv = "(x.last_heartbeat_at is null or x.last_heartbeat_at < h.at)"
	}
	if can(tableEnvironments, te, "dtma_last_known_version") {
		env = append(env, "dtma_last_known_version = coalesce(h.version, x.dtma_last_known_version::text)::"+te.columns["dtma_last_known_version"].typ)
	}
	if can(tableEnvironments, te, "dtma_health_details_json") {
		env = append(env, "dtma_health_details_json = coalesce(h.health, x.dtma_health_details_json::text)::"+te.columns["dtma_health_details_json"].typ)
	}
	if can(tableEnvironments, te, "status") {
		if k := te.columns["status"]; !k.isEnum || slices.Contains(k.enum, "active") {
			env = append(env, "status = case when x.status::text in ('provisioning', 'awaiting_heartbeat') then 'active'::"+k.typ+" else x.status end")
		}
	}
	if can(tableInstances, ti, "last_heartbeat_from_dtma") {
		inst = append(inst, "last_heartbeat_from_dtma = h.at")
		newerInst = "(x.last_heartbeat_from_dtma is null or x.last_heartbeat_from_dtma < h.at)"
	}
	if can(tableInstances, ti, "runtime_details") {
		inst = append(inst, "runtime_details = coalesce(h.details, x.runtime_details::text)::"+ti.columns["runtime_details"].typ)
	}
	word := "null::text"
	if k := ti.columns["status_on_toolbox"]; can(tableInstances, ti, "status_on_toolbox") && k.canRead {
		inst = append(inst, "status_on_toolbox = case when h.word is not null and x.status_on_toolbox::text = h.over then h.word::"+k.typ+" else x.status_on_toolbox end")
		word = "x.status_on_toolbox::text"
		if k.isEnum {
			s.words = k.enum
		}
	}
	if len(env) == 0 && len(inst) == 0 {
		return
	}
	id, envID := ti.columns["id"].typ, te.columns["id"].typ
	e, i := "select $1 as id where false", "select $2 as id, null::text as word where false"
	if len(env) > 0 {
		e = "update " + pgx.Identifier{c.schema, tableEnvironments}.Sanitize() + " x set " + strings.Join(env, ", ") +
			" from json_to_recordset($1::json) as h(id text, at timestamptz, version text, health text) where x.id = h.id::" + envID + " and " + newerEnv + " returning x.id::text as id"
	}
	if len(inst) > 0 {
		i = "update " + pgx.Identifier{c.schema, tableInstances}.Sanitize() + " x set " + strings.Join(inst, ", ") +
			" from json_to_recordset($2::json) as h(id text, env text, at timestamptz, word text, over text, details text) where x.id = h.id::" + id +
			" and x.account_tool_environment_id = h.env::" + ti.columns["account_tool_environment_id"].typ + " and " + newerInst +
			" returning x.id::text as id, " + word + " as word"
	}
	s.write = "with e as (" + e + "), i as (" + i + ") select id, word from i union all select null, id from e"
}

// ident names a column of the row that is read.
func ident(alias, col string) string { return alias + "." + pgx.Identifier{col}.Sanitize() }

// dsnError says that a DSN cannot be read. pgx masks the password; the rest of a DSN is the operator's own.
func dsnError(err error) error {
	detail := "is not a PostgreSQL address that can be understood"
	var p *pgconn.ParseConfigError
	if errors.As(err, &p) {
		if u := errors.Unwrap(p); u != nil && !strings.Contains(u.Error(), "://") && !strings.Contains(u.Error(), "=") {
			detail = statussync.CleanText(u.Error(), statussync.MaxErrorText)
		}
	}
	return statussync.Invalid("dsn", detail)
}

// hasPoolSize reports whether the DSN says how many connections there may be.
func hasPoolSize(dsn string) bool { return strings.Contains(dsn, "pool_max_conns") }

// errorText is a database error for people. It holds no DSN: pgx's own texts of failed connections name the host, user and
// database at most.
func errorText(err error) string {
	var pg *pgconn.PgError
	var n net.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &pg):
		return statussync.CleanText(pg.Message+" (SQLSTATE "+pg.Code+")", statussync.MaxErrorText)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &n) && n.Timeout():
		return "the database does not answer"
	}
	return statussync.CleanText(withoutLocalPort(err.Error()), statussync.MaxErrorText)
}

var localPort = regexp.MustCompile(`\b(tcp|tcp4|tcp6|unix) \S+->`)

// withoutLocalPort leaves out the near end of connections, which is another with each try: so one trouble keeps one text.
func withoutLocalPort(text string) string { return localPort.ReplaceAllString(text, "$1 ") }
