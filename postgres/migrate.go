package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync"
)

// MigrationSchema is the schema of everything that Migrate makes, but for the triggers, which must stand on the tables.
const MigrationSchema = "statussync"

// MigrationVersion is the version of what Migrate installs. It is part of the schema's comment.
const MigrationVersion = 1

// Bounds of what a trigger sends. PostgreSQL refuses a payload of 8,000 bytes, and with it the writer's transaction.
const (
	migrateMaxIDs  = 10_000 // changed in one statement; more are told as "the whole table"
	migrateMaxID   = 1000   // bytes of one id as JSON; a longer one likewise
	migrateChunk   = 6000   // a payload has less than this, and one id, and some 60 bytes around them
	migrateTries   = 5
	migrateDefault = time.Second
)

// MigrateOptions says what Migrate does. The zero value only plans.
type MigrateOptions struct {
	Apply  bool   // run the plan; otherwise nothing is changed
	Down   bool   // remove everything that was installed
	Schema string // of the platform's tables. Default "public"
	// LockTimeout bounds how long a table's lock is waited for; writers of the table wait behind. Default 1 s. It is tried
	// 5 times.
	LockTimeout time.Duration
}

// MigratePlan is what is to be done, or was done.
type MigratePlan struct {
	Installed  int      `json:"installed_version"` // before; 0: nothing
	Version    int      `json:"version"`           // afterwards
	Statements []string `json:"statements"`        // none: everything is as it should be
	Notes      []string `json:"notes"`             // what is left out, and why
	Missing    []string `json:"missing_grants"`    // what the role lacks for it, as statements
	Applied    bool     `json:"applied"`
}

// SQL returns the plan as a script for psql: one transaction, or a comment where there is nothing to do.
func (p *MigratePlan) SQL() string {
	var b strings.Builder
	for _, n := range p.Notes {
		b.WriteString("-- " + n + "\n")
	}
	for _, g := range p.Missing {
		b.WriteString("-- the role lacks: " + g + "\n")
	}
	if len(p.Statements) == 0 {
		b.WriteString("-- nothing to do\n")
		return b.String()
	}
	b.WriteString("begin;\n")
	for _, s := range p.Statements {
		b.WriteString(s + ";\n")
	}
	b.WriteString("commit;\n")
	return b.String()
}

// Migrate plans, and with Apply makes, what LISTEN/NOTIFY needs: the schema statussync with two functions, and four triggers
// on each of account_tool_instances and account_tool_environments (WriterSetting has what they tell). Nothing else is altered.
// What is installed already, and as it should be, is not touched: a second call does nothing. Everything happens in one
// transaction, which waits for each table's lock only shortly and is tried again.
//
// The triggers run once for each statement and never fail it: an error within them is caught, and then "read the whole table"
// is told. While the server's queue of notifications is half full (a listener hangs, for gigabytes) they tell nothing; the
// minute's re-read finds what they left out. A platform that uses PREPARE TRANSACTION can't have them: PostgreSQL refuses it
// after a NOTIFY.
//
// Needs PostgreSQL 14. Errors: CodeInvalid names an option; CodeUnavailable: not reached, or a table stayed locked, and then
// nothing was changed; CodeForbidden names what the role lacks; CodeNotFound: the schema has none of the tables. The plan is
// returned also with the last three where it is known.
func Migrate(ctx context.Context, dsn string, o MigrateOptions) (*MigratePlan, error) {
	if o.Schema == "" {
		o.Schema = "public"
	}
	if o.LockTimeout <= 0 {
		o.LockTimeout = migrateDefault
	}
	if o.Schema == MigrationSchema {
		return nil, statussync.Invalid("schema", "is the one that is ours, not the platform's")
	}
	conn, err := catalogConnect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for try := 1; ; try++ {
		p, err := migrateOnce(ctx, conn, o)
		if checkSQLState(err) != "55P03" || try == migrateTries || ctx.Err() != nil {
			return p, migrateError(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(o.LockTimeout): // writers that waited behind us go first
		}
	}
}

func migrateError(err error) error {
	switch checkSQLState(err) {
	case "":
		return err
	case "55P03":
		return statussync.NewError(statussync.CodeUnavailable, "a table stayed locked by somebody else; nothing was changed, try again", err)
	case "42501":
		return statussync.NewError(statussync.CodeForbidden, "the role may not do this; nothing was changed", err)
	}
	return statussync.NewError(statussync.CodeUnavailable, "the database refused the migration; nothing was changed", err)
}

// migrateOnce plans and applies in one transaction.
func migrateOnce(ctx context.Context, conn *pgx.Conn, o MigrateOptions) (*MigratePlan, error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if o.Apply {
		// One migration at a time; the number only has to be ours.
		if _, err := tx.Exec(ctx, "select pg_catalog.set_config('lock_timeout', $1::text, true), pg_catalog.pg_advisory_xact_lock(7304857201)", strconv.FormatInt(o.LockTimeout.Milliseconds(), 10)); err != nil {
			return nil, err
		}
	}
	have, err := migrateRead(ctx, tx, o.Schema)
	if err != nil {
		return nil, err
	}
	if have.server < 140000 {
		return nil, statussync.Invalid("dsn", "the server is older than PostgreSQL 14; without the triggers it is polled")
	}
	p := &MigratePlan{Installed: have.version}
	if o.Down {
		migrateDown(p, have)
	} else {
		if err := migrateUp(p, have, o.Schema); err != nil {
			return p, err
		}
	}
	if !o.Apply {
		return p, nil
	}
	if len(p.Missing) > 0 {
		return p, statussync.NewError(statussync.CodeForbidden, "the role lacks: "+strings.Join(p.Missing, "; "), nil)
	}
	for _, s := range p.Statements {
		if _, err := tx.Exec(ctx, s); err != nil {
			return p, err
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return p, err
	}
	p.Applied = true
	return p, nil
}

// migrateHave is what is installed.
type migrateHave struct {
	server    int
	role      string
	database  string
	tables    map[string]*catalogTable
	schema    bool // there is a schema of our name
	mine      bool // its comment is ours
	creates   bool // the role may make schemas, or functions in ours
	owns      bool // the role owns our schema
	version   int
	functions map[string]string // name: body
	triggers  []migrateTrigger
	strangers int // things in our schema that are not ours
}

type migrateTrigger struct {
	schema, table, name, function, shape string
	enabled, owned                       bool
}

func migrateComment() string {
	return "statussync " + strconv.Itoa(MigrationVersion) + ": triggers that tell statussync of changed rows; removed by \"statussync migrate --down\""
}

func migrateRead(ctx context.Context, tx pgx.Tx, schema string) (*migrateHave, error) {
	h := &migrateHave{functions: map[string]string{}}
	var comment string
	err := tx.QueryRow(ctx, `
select current_setting('server_version_num')::int, current_user::text, current_database()::text, n.oid is not null,
       case when n.oid is null then pg_catalog.has_database_privilege(current_database(), 'CREATE') else pg_catalog.has_schema_privilege(n.oid, 'CREATE') end,
       coalesce(pg_catalog.pg_has_role(n.nspowner, 'USAGE'), true),
       coalesce(pg_catalog.obj_description(n.oid, 'pg_namespace'), ''),
       (select count(*) from pg_catalog.pg_class c where c.relnamespace = n.oid) + (select count(*) from pg_catalog.pg_proc p where p.pronamespace = n.oid and p.proname <> all($2::text[]))
       + (select count(*) from pg_catalog.pg_type t where t.typnamespace = n.oid and t.typrelid = 0 and t.typelem = 0)
from (select) one left join pg_catalog.pg_namespace n on n.nspname = $1::text`, MigrationSchema, []string{checkInstances, checkEnvironments}).
		Scan(&h.server, &h.role, &h.database, &h.schema, &h.creates, &h.owns, &comment, &h.strangers)
	if err != nil {
		return nil, err
	}
	if rest, ok := strings.CutPrefix(comment, "statussync "); ok {
		number, _, _ := strings.Cut(rest, ":")
		if h.version, err = strconv.Atoi(number); err == nil {
			h.mine = true
		}
	}
	if h.tables, err = catalogTables(ctx, tx, schema, checkInstances, checkEnvironments); err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, `select p.proname::text, p.prosrc from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
where n.nspname = $1::text and p.proname = any($2::text[]) and p.pronargs = 0`, MigrationSchema, []string{checkInstances, checkEnvironments})
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name, body string
		if err := rows.Scan(&name, &body); err != nil {
			return nil, err
		}
		h.functions[name] = body
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	rows, err = tx.Query(ctx, `select tn.nspname::text, c.relname::text, t.tgname::text, p.proname::text,
       pg_catalog.concat_ws(' ', t.tgtype, t.tgoldtable, t.tgnewtable), t.tgenabled = 'O', pg_catalog.pg_has_role(c.relowner, 'USAGE')
from pg_catalog.pg_trigger t join pg_catalog.pg_proc p on p.oid = t.tgfoid join pg_catalog.pg_namespace n on n.oid = p.pronamespace
join pg_catalog.pg_class c on c.oid = t.tgrelid join pg_catalog.pg_namespace tn on tn.oid = c.relnamespace
where n.nspname = $1::text and p.proname = any($2::text[]) order by 1, 2, 3`, MigrationSchema, []string{checkInstances, checkEnvironments})
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var t migrateTrigger
		if err := rows.Scan(&t.schema, &t.table, &t.name, &t.function, &t.shape, &t.enabled, &t.owned); err != nil {
			return nil, err
		}
		h.triggers = append(h.triggers, t)
	}
	return h, rows.Err()
}

// migrateKinds are the triggers of each table. The shape is what the catalog says of one: pg_trigger.tgtype (AFTER, for each
// statement: INSERT 4, DELETE 8, UPDATE 16, TRUNCATE 32) and the names of its transition tables.
var migrateKinds = []struct{ name, event, referencing, shape string }{
	{"statussync_insert", "insert", " referencing new table as new_rows", "4 new_rows"},
	{"statussync_update", "update", " referencing old table as old_rows new table as new_rows", "16 old_rows new_rows"},
	{"statussync_delete", "delete", " referencing old table as old_rows", "8 old_rows"},
	{"statussync_truncate", "truncate", "", "32"},
}

// migrateWatched are the columns whose change is told. Those that a platform does not have are left out.
var migrateWatched = map[string][]string{
	checkInstances: {"account_tool_environment_id", "instance_name_on_toolbox", "status_on_toolbox", "instance_error_message", "mcp_server_type",
		"mcp_transport_type", "mcp_endpoint_path", "mcp_server_capabilities", "mcp_discovery_metadata"},
	checkEnvironments: {"user_id", "name", "public_ip_address", "status", "dtma_bearer_token", "dtma_last_known_version"},
}

func migrateUp(p *MigratePlan, have *migrateHave, schema string) error {
	p.Version = MigrationVersion
	if have.version > MigrationVersion {
		return statussync.NewError(statussync.CodeConflict, fmt.Sprintf("version %d is installed, and this program knows %d: use a newer program, or remove it first with --down", have.version, MigrationVersion), nil)
	}
	if have.schema && !have.mine && have.strangers > 0 {
		return statussync.NewError(statussync.CodeConflict, "the database has a schema statussync that is somebody else's", nil)
	}
	role := catalogPlain(have.role)
	installed := 0
	var make []string
	for _, name := range []string{checkInstances, checkEnvironments} {
		t := have.tables[name]
		full := catalogPlain(schema) + "." + catalogPlain(name)
		switch {
		case t == nil:
			p.Notes = append(p.Notes, full+" does not exist: nothing is installed for it")
			continue
		case !t.isTable():
			p.Notes = append(p.Notes, full+" is no table, so it can't have these triggers: it is polled")
			continue
		case !t.has("id"):
			p.Notes = append(p.Notes, full+" has no column id: nothing is installed for it")
			continue
		}
		installed++
		body, notes := migrateBody(t)
		p.Notes = append(p.Notes, notes...)
		if have.functions[name] != body {
			make = append(make, "create or replace function "+MigrationSchema+"."+name+"() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $statussync$"+body+"$statussync$")
		}
		if !t.triggers {
			p.Missing = append(p.Missing, "grant trigger on "+full+" to "+role)
		}
		for _, k := range migrateKinds {
			ok := slices.ContainsFunc(have.triggers, func(h migrateTrigger) bool {
				return h.schema == schema && h.table == name && h.name == k.name && h.function == name && h.shape == k.shape && h.enabled
			})
			if !ok {
				make = append(make, "create or replace trigger "+k.name+" after "+k.event+" on "+full+k.referencing+" for each statement execute function "+MigrationSchema+"."+name+"()")
			}
		}
	}
	if installed == 0 {
		return statussync.NewError(statussync.CodeNotFound, "the schema "+schema+" has no table that triggers could be made on", nil)
	}
	switch {
	case !have.schema:
		make = append([]string{"create schema " + MigrationSchema}, make...)
		if !have.creates {
			p.Missing = append(p.Missing, "grant create on database "+catalogPlain(have.database)+" to "+role)
		}
	case !have.creates && len(make) > 0:
		p.Missing = append(p.Missing, "grant create on schema "+MigrationSchema+" to "+role)
	}
	if have.version != MigrationVersion {
		make = append(make, "comment on schema "+MigrationSchema+" is "+catalogLiteral(migrateComment()))
	}
	p.Statements = make
	if len(make) == 0 {
		p.Missing = nil
	}
	return nil
}

func migrateDown(p *MigratePlan, have *migrateHave) {
	role := catalogPlain(have.role)
	for _, t := range have.triggers {
		p.Statements = append(p.Statements, "drop trigger "+catalogPlain(t.name)+" on "+catalogPlain(t.schema)+"."+catalogPlain(t.table))
		if !t.owned {
			p.Missing = append(p.Missing, "ownership of "+catalogPlain(t.schema)+"."+catalogPlain(t.table)+": "+role+" must be a member of its owner")
		}
	}
	for _, name := range []string{checkInstances, checkEnvironments} {
		if _, ok := have.functions[name]; ok {
			p.Statements = append(p.Statements, "drop function "+MigrationSchema+"."+name+"()")
		}
	}
	switch {
	case !have.mine:
	case have.strangers > 0:
		p.Notes = append(p.Notes, "the schema statussync stays: it holds things that are not ours")
		p.Statements = append(p.Statements, "comment on schema "+MigrationSchema+" is null")
	default:
		p.Statements = append(p.Statements, "drop schema "+MigrationSchema)
	}
	if len(p.Statements) > 0 && !have.owns {
		p.Missing = append(p.Missing, "ownership of the schema statussync")
	}
}

// migrateBody is the function behind a table's triggers. It is written for the columns that the table has: one that comes
// later is watched after the next migration.
func migrateBody(t *catalogTable) (body string, notes []string) {
	var changed []string
	for _, c := range migrateWatched[t.name] {
		if !t.has(c) {
			notes = append(notes, "the table "+t.name+" has no column "+c+": it is not watched")
			continue
		}
		// As text: every type can be compared so, json and citext too.
		changed = append(changed, "o."+c+"::text is distinct from n."+c+"::text")
	}
	if t.name == checkEnvironments {
		switch c := t.columns["last_heartbeat_at"]; {
		case strings.HasPrefix(c.typ, "timestamp"):
			changed = append(changed, "(floor(extract(epoch from o.last_heartbeat_at) / 10) is distinct from floor(extract(epoch from n.last_heartbeat_at) / 10) and current_setting('"+WriterSetting+"', true) is distinct from 'on')")
		case c.typ == "":
			notes = append(notes, "the table "+t.name+" has no column last_heartbeat_at: it is not watched")
		default:
			notes = append(notes, "the column last_heartbeat_at of "+t.name+" is "+c.typ+", no timestamp: it is not watched")
		}
	}
	changed = append(changed, "o.id is null", "n.id is null") // the primary key itself changed: both are told
	inserted, deleted, updated := "", "", ""
	if t.name == checkInstances && t.has("mcp_server_type") { // other rows are nobody's MCP server
		inserted, deleted = " where n.mcp_server_type is not null", " where o.mcp_server_type is not null"
		updated = "(o.mcp_server_type is not null or n.mcp_server_type is not null) and "
	}
	limit := " limit " + strconv.Itoa(migrateMaxIDs+1)
	all := "perform pg_notify('" + Channel + "', '{\"t\":\"" + t.name + "\",\"o\":\"*\"}');"
	return `
declare
  ids text[];
begin
  if pg_notification_queue_usage() > 0.5 then
    return null;
  end if;
  begin
    if tg_op = 'UPDATE' then
      select array_agg(c.id) into ids from (
        select coalesce(n.id, o.id)::text as id from old_rows o full join new_rows n on n.id = o.id
        where ` + updated + `(` + strings.Join(changed, "\n          or ") + `)` + limit + `) c;
    elsif tg_op = 'INSERT' then
      select array_agg(c.id) into ids from (select n.id::text as id from new_rows n` + inserted + limit + `) c;
    elsif tg_op = 'DELETE' then
      select array_agg(c.id) into ids from (select o.id::text as id from old_rows o` + deleted + limit + `) c;
    else
      ` + all + `
      return null;
    end if;
    if ids is null then
      return null;
    end if;
    if cardinality(ids) > ` + strconv.Itoa(migrateMaxIDs) + ` or exists (select from unnest(ids) u (id) where octet_length(to_json(u.id)::text) > ` + strconv.Itoa(migrateMaxID) + `) then
      ` + all + `
      return null;
    end if;
    perform pg_notify('` + Channel + `', '{"t":"` + t.name + `","o":"' || left(tg_op, 1) || '","ids":[' || string_agg(c.id, ',') || ']}')
    from (select j.id, sum(octet_length(j.id) + 1) over (rows unbounded preceding) / ` + strconv.Itoa(migrateChunk) + ` as chunk
          from (select to_json(u.id)::text as id from unnest(ids) u (id)) j) c
    group by c.chunk;
  exception when others then
    begin
      ` + all + `
    exception when others then
      null;
    end;
  end;
  return null;
end
`, notes
}
