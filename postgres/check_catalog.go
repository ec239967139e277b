package postgres

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync"
)

// The platform's tables.
const (
	checkInstances    = "account_tool_instances"
	checkEnvironments = "account_tool_environments"
	checkLogs         = "mcp_server_status_logs"
	checkConnections  = "agent_mcp_connections"
	checkAgents       = "agents"
	checkUserRoles    = "user_roles"
)

// catalogTable is what the catalog says of a table, and what the role may do with it.
type catalogTable struct {
	name     string
	kind     string // pg_class.relkind
	rls      bool   // row level security counts for the role
	owned    bool   // the role is its owner, or a member of it
	triggers bool   // the role may make triggers on it
	deletes  bool
	policies map[string]bool // SELECT, INSERT, UPDATE, DELETE: a policy lets some rows through
	columns  map[string]catalogColumn
}

type catalogColumn struct {
	typ                    string // as format_type writes it, with its modifier
	notNull, filled        bool   // filled: has a default, an identity, or is generated
	reads, inserts, writes bool
}

func (t *catalogTable) has(column string) bool {
	if t == nil {
		return false
	}
	_, ok := t.columns[column]
	return ok
}

// isTable reports whether rows can be inserted into it and triggers be made on it: no view, no foreign table.
func (t *catalogTable) isTable() bool { return t != nil && (t.kind == "r" || t.kind == "p") }

// catalogTables reads the named tables of a schema. Those that don't exist are missing from the result. It needs no right
// but to connect.
func catalogTables(ctx context.Context, q catalogQuerier, schema string, names ...string) (map[string]*catalogTable, error) {
	rows, err := q.Query(ctx, `
select c.relname, c.relkind::text,
       c.relrowsecurity and not (r.rolsuper or r.rolbypassrls) and (c.relforcerowsecurity or not pg_catalog.pg_has_role(c.relowner, 'USAGE')),
       pg_catalog.pg_has_role(c.relowner, 'USAGE'), pg_catalog.has_table_privilege(c.oid, 'TRIGGER'), pg_catalog.has_table_privilege(c.oid, 'DELETE'),
       coalesce((select pg_catalog.array_agg(p.polcmd::text) from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polpermissive
                 and exists (select from pg_catalog.unnest(p.polroles) o where o = 0 or pg_catalog.pg_has_role(o, 'USAGE'))), '{}'),
       coalesce(a.attname, ''), coalesce(pg_catalog.format_type(a.atttypid, a.atttypmod), ''),
       coalesce(a.attnotnull, false), coalesce(a.atthasdef or a.attidentity <> '', false),
       coalesce(pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT'), false),
       coalesce(pg_catalog.has_column_privilege(c.oid, a.attnum, 'INSERT'), false),
       coalesce(pg_catalog.has_column_privilege(c.oid, a.attnum, 'UPDATE'), false)
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_roles r on r.rolname = current_user
left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where n.nspname = $1::text and c.relname = any($2::text[]) and c.relkind in ('r', 'p', 'v', 'm', 'f')`, schema, names)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string]*catalogTable{}
	for rows.Next() {
		var t catalogTable
		var c catalogColumn
		var column string
		var policies []string
		if err := rows.Scan(&t.name, &t.kind, &t.rls, &t.owned, &t.triggers, &t.deletes, &policies, &column, &c.typ, &c.notNull, &c.filled, &c.reads, &c.inserts, &c.writes); err != nil {
			return nil, err
		}
		have := out[t.name]
		if have == nil {
			t.columns, t.policies = map[string]catalogColumn{}, map[string]bool{}
			for _, p := range policies {
				for word, letter := range map[string]string{"SELECT": "r", "INSERT": "a", "UPDATE": "w", "DELETE": "d"} {
					if p == letter || p == "*" {
						t.policies[word] = true
					}
				}
			}
			have = &t
			out[t.name] = have
		}
		if column != "" {
			have.columns[column] = c
		}
	}
	return out, rows.Err()
}

// catalogQuerier is a connection, a pool or a transaction.
type catalogQuerier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func catalogName(parts ...string) string { return pgx.Identifier(parts).Sanitize() }

// catalogPlain is a name as people would write it: quoted only where it must be.
func catalogPlain(name string) string {
	plain := name != "" && (name[0] == '_' || (name[0] >= 'a' && name[0] <= 'z'))
	for _, r := range name {
		plain = plain && (r == '_' || (r >= 'a' && r <= 'z') || (r >= '0' && r <= '9'))
	}
	if plain && !slices.Contains([]string{"user", "table", "default", "timestamp", "all"}, name) {
		return name
	}
	return catalogName(name)
}

func catalogList(names []string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = catalogPlain(n)
	}
	return strings.Join(out, ", ")
}

func catalogLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// catalogConfig reads a DSN. Statements are sent without being prepared under a name, so that poolers in transaction mode
// work; the price is that the server parses each again. The error never shows the DSN.
func catalogConfig(dsn string) (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, statussync.Invalid("dsn", "is not a PostgreSQL address such as postgres://user:password@host:5432/database")
	}
	c.DefaultQueryExecMode = pgx.QueryExecModeExec
	c.StatementCacheCapacity, c.DescriptionCacheCapacity = 0, 0
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "statussync"
	}
	return c, nil
}

// catalogConnect connects, with catalogConfig. The error is CodeUnavailable, or CodeUnauthorized where the server refused the
// role.
func catalogConnect(ctx context.Context, dsn string) (*pgx.Conn, error) {
	cfg, err := catalogConfig(dsn)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, catalogConnectError(err)
	}
	return conn, nil
}

func catalogConnectError(err error) error {
	switch checkSQLState(err) {
	case "28000", "28P01": // invalid authorization, invalid password
		return statussync.NewError(statussync.CodeUnauthorized, "the database refused the role or its password", err)
	case "3D000":
		return statussync.NewError(statussync.CodeNotFound, "the server has no database of that name", err)
	case "42501":
		return statussync.NewError(statussync.CodeForbidden, "the role may not connect to the database (grant connect on database … to …)", err)
	}
	return statussync.NewError(statussync.CodeUnavailable, "the database can't be reached", err)
}
