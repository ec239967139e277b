package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/postgres/pgtest"
)

func mustMigrate(t testing.TB, dsn string, o MigrateOptions) *MigratePlan {
	t.Helper()
	p, err := Migrate(t.Context(), dsn, o)
	if err != nil {
		t.Fatalf("%+v: %v", p, err)
	}
	return p
}

// catalogOf is everything in a database that a migration could leave behind.
func catalogOf(t testing.TB, conn *pgx.Conn) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), `
select 'schema ' || nspname || ' ' || coalesce(nspacl::text, '') from pg_namespace where nspname !~ '^pg_'
union all select 'relation ' || n.nspname || '.' || relname || relkind::text || coalesce(relacl::text, '') || relhastriggers::text from pg_class c join pg_namespace n on n.oid = relnamespace where n.nspname !~ '^pg_(cat|toast)' and n.nspname <> 'information_schema'
union all select 'function ' || p.oid::regprocedure || prosrc from pg_proc p join pg_namespace n on n.oid = pronamespace where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
union all select 'trigger ' || tgrelid::regclass || pg_get_triggerdef(oid) from pg_trigger
union all select 'column ' || attrelid::regclass || attname || atttypid::regtype from pg_attribute join pg_class c on c.oid = attrelid join pg_namespace n on n.oid = relnamespace where n.nspname = 'public'
order by 1`)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func testMigrate(t *testing.T, c *pgtest.Cluster) {
	dsn := c.Database(t)
	conn := checkConn(t, dsn)
	before := catalogOf(t, conn)

	dry := mustMigrate(t, dsn, MigrateOptions{})
	if dry.Applied || dry.Installed != 0 || dry.Version != MigrationVersion || len(dry.Statements) != 12 || len(dry.Notes)+len(dry.Missing) != 0 {
		t.Errorf("dry run: %+v", dry)
	}
	if d := cmp.Diff(before, catalogOf(t, conn)); d != "" {
		t.Fatalf("a dry run changed something: %s", d)
	}
	for _, want := range []string{"begin;\n", "create schema statussync;\n", "commit;\n", "create or replace trigger statussync_update after update on public.account_tool_instances "} {
		if !strings.Contains(dry.SQL(), want) {
			t.Errorf("the script lacks %q", want)
		}
	}

	done := mustMigrate(t, dsn, MigrateOptions{Apply: true})
	if !done.Applied || cmp.Diff(done.Statements, dry.Statements) != "" {
		t.Errorf("applied: %+v", done)
	}
	after := catalogOf(t, conn)
	for _, o := range []MigrateOptions{{}, {Apply: true}} {
		if p := mustMigrate(t, dsn, o); len(p.Statements) != 0 || p.Installed != MigrationVersion {
			t.Errorf("again: %+v", p)
		}
	}

	// What somebody broke is mended, and only that.
	checkExec(t, conn, `drop trigger statussync_update on account_tool_instances; alter table account_tool_environments disable trigger statussync_delete;
create or replace function statussync.account_tool_environments() returns trigger language plpgsql as 'begin return null; end'`)
	mended := mustMigrate(t, dsn, MigrateOptions{Apply: true})
	if len(mended.Statements) != 3 {
		t.Errorf("mended by %q", mended.Statements)
	}
	if d := cmp.Diff(after, catalogOf(t, conn)); d != "" {
		t.Errorf("mended: %s", d)
	}

	// The printed script does the same.
	down := mustMigrate(t, dsn, MigrateOptions{Down: true})
	if down.Version != 0 || down.Applied {
		t.Errorf("down: %+v", down)
	}
	for _, p := range []*MigratePlan{down, mustMigrate(t, c.Database(t), MigrateOptions{})} {
		if _, err := conn.PgConn().Exec(t.Context(), p.SQL()).ReadAll(); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(after, catalogOf(t, conn)); d != "" {
		t.Errorf("by script: %s", d)
	}

	mustMigrate(t, dsn, MigrateOptions{Down: true, Apply: true})
	if d := cmp.Diff(before, catalogOf(t, conn)); d != "" {
		t.Errorf("down left: %s", d)
	}
	if p := mustMigrate(t, dsn, MigrateOptions{Down: true, Apply: true}); len(p.Statements) != 0 {
		t.Errorf("down again: %+v", p)
	}

	// What others keep in the schema is theirs.
	mustMigrate(t, dsn, MigrateOptions{Apply: true})
	checkExec(t, conn, `create table statussync.theirs (id int)`)
	if p := mustMigrate(t, dsn, MigrateOptions{Down: true, Apply: true}); len(p.Notes) != 1 {
		t.Errorf("with a stranger's table: %+v", p)
	}
	if checkValue[int](t, conn, "select count(*) from statussync.theirs") != 0 {
		t.Error("?")
	}
	if _, err := Migrate(t.Context(), dsn, MigrateOptions{}); statussync.CodeOf(err) != statussync.CodeConflict {
		t.Errorf("into a stranger's schema: %v", err)
	}
	checkExec(t, conn, `drop table statussync.theirs; comment on schema statussync is 'statussync 99: later'`)
	if _, err := Migrate(t.Context(), dsn, MigrateOptions{}); statussync.CodeOf(err) != statussync.CodeConflict {
		t.Errorf("over a newer version: %v", err)
	}
}

// testMigrateOthers: tables in another schema, with other types, and without some columns.
func testMigrateOthers(t *testing.T, c *pgtest.Cluster) {
	dsn := c.Empty(t)
	conn := checkConn(t, dsn)
	if _, err := Migrate(t.Context(), dsn, MigrateOptions{}); statussync.CodeOf(err) != statussync.CodeNotFound {
		t.Errorf("without tables: %v", err)
	}
	checkExec(t, conn, `create schema "The App"; create table "The App".account_tool_instances (id bigint primary key, status_on_toolbox text, mcp_server_capabilities json, instance_name_on_toolbox text);
create view "The App".account_tool_environments as select 1 as id`)
	p := mustMigrate(t, dsn, MigrateOptions{Schema: "The App", Apply: true})
	if text := strings.Join(p.Notes, "\n"); !strings.Contains(text, "no column mcp_server_type") || !strings.Contains(text, "is no table") {
		t.Errorf("notes: %q", p.Notes)
	}
	l := listen(t, dsn)
	checkExec(t, conn, `insert into "The App".account_tool_instances values (1, 'running', '{}'), (2, 'running', '{}')`)
	checkExec(t, conn, `update "The App".account_tool_instances set mcp_server_capabilities = '{"a":1}' where id = 2`)
	l.want("I account_tool_instances 1,2", "U account_tool_instances 2")
	mustMigrate(t, dsn, MigrateOptions{Schema: "The App", Down: true, Apply: true})
	if _, err := Migrate(t.Context(), "mysql://secret@x", MigrateOptions{}); statussync.CodeOf(err) != statussync.CodeInvalid || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

// listener collects what comes on our channel.
type listener struct {
	t    testing.TB
	conn *pgx.Conn
	from *pgx.Conn
}

func listen(t testing.TB, dsn string) *listener {
	l := &listener{t, checkConn(t, dsn), checkConn(t, dsn)}
	checkExec(t, l.conn, "listen "+Channel)
	return l
}

// raw returns the payloads of everything that was committed before.
func (l *listener) raw() []string {
	l.t.Helper()
	checkExec(l.t, l.from, "select pg_notify($1::text, 'end')", Channel)
	var out []string
	for {
		ctx, cancel := context.WithTimeout(l.t.Context(), 60*time.Second)
		n, err := l.conn.WaitForNotification(ctx)
		cancel()
		if err != nil {
			l.t.Fatal(err)
		}
		if n.Payload == "end" {
			return out
		}
		out = append(out, n.Payload)
	}
}

func (l *listener) want(want ...string) {
	l.t.Helper()
	var got []string
	for _, payload := range l.raw() {
		n, err := ParseNotification(payload)
		if err != nil {
			l.t.Errorf("%s: %v", payload, err)
		}
		slices.Sort(n.IDs)
		got = append(got, strings.TrimSpace(string(n.Operation)+" "+n.Table+" "+strings.Join(n.IDs, ",")))
	}
	if d := cmp.Diff(want, got); d != "" {
		l.t.Errorf("told: %s", d)
	}
}

func testTriggers(t *testing.T, c *pgtest.Cluster) {
	dsn := c.Database(t)
	conn := checkConn(t, dsn)
	ids := fleet(t, conn, 1, 2)
	env := checkValue[string](t, conn, "select id::text from account_tool_environments")
	mustMigrate(t, dsn, MigrateOptions{Apply: true})
	l := listen(t, dsn)
	one, both := ids[0], ids[0]+","+ids[1]
	for _, c := range []struct {
		sql  string
		want []string
	}{
		{"update account_tool_instances set status_on_toolbox = 'stopped' where id = '" + one + "'", []string{"U account_tool_instances " + one}},
		{"update account_tool_instances set status_on_toolbox = 'stopped' where id = '" + one + "'", nil}, // as it was
		{"update account_tool_instances set status_on_toolbox = 'deploying'", []string{"U account_tool_instances " + both}},
		{"update account_tool_instances set last_heartbeat_from_dtma = now(), updated_at = now(), runtime_details = '{\"x\":1}'", nil},
		{"update account_tool_instances set mcp_endpoint_path = null where id = '" + one + "'", []string{"U account_tool_instances " + one}},
		{"update account_tool_instances set mcp_server_type = null where id = '" + one + "'", []string{"U account_tool_instances " + one}},
		{"update account_tool_instances set status_on_toolbox = 'exited' where id = '" + one + "'", nil}, // no MCP server any more
		{"update account_tool_instances set mcp_server_type = 'x' where id = '" + one + "'", []string{"U account_tool_instances " + one}},
		{"update account_tool_instances set status_on_toolbox = 'exited' where false", nil},
		{"update account_tool_environments set last_heartbeat_at = '2026-01-01T00:00:05Z'", []string{"U account_tool_environments " + env}},
		{"update account_tool_environments set last_heartbeat_at = '2026-01-01T00:00:09Z'", nil},
		{"update account_tool_environments set last_heartbeat_at = '2026-01-01T00:00:10Z'", []string{"U account_tool_environments " + env}},
		{"begin; select set_config('statussync.writer', 'on', true); update account_tool_environments set last_heartbeat_at = '2026-01-01T00:01:00Z'; commit", nil},
		{"begin; select set_config('statussync.writer', 'on', true); update account_tool_environments set status = 'unresponsive'; commit", []string{"U account_tool_environments " + env}},
		{"update account_tool_environments set last_heartbeat_at = '2026-01-01T00:02:00Z', updated_at = now()", []string{"U account_tool_environments " + env}},
		{"update account_tool_environments set dtma_health_details_json = '{}', updated_at = now()", nil},
		{"begin; update account_tool_environments set name = 'a'; update account_tool_environments set name = 'b'; commit", []string{"U account_tool_environments " + env}}, // once
		{"begin; update account_tool_environments set name = 'c'; rollback", nil},
		{"insert into account_tool_instances (id, account_tool_environment_id) values (gen_random_uuid(), '" + env + "')", nil},
		{"update account_tool_instances set id = '00000000-0000-0000-0000-000000000001' where id = '" + one + "'", []string{"U account_tool_instances 00000000-0000-0000-0000-000000000001," + one}},
		{"delete from account_tool_environments", []string{"D account_tool_environments " + env, "D account_tool_instances 00000000-0000-0000-0000-000000000001," + ids[1]}},
		{"truncate account_tool_instances cascade", []string{"* account_tool_instances"}},
	} {
		if _, err := conn.PgConn().Exec(t.Context(), c.sql).ReadAll(); err != nil {
			t.Fatalf("%s: %v", c.sql, err)
		}
		if t.Run(c.sql, func(t *testing.T) { l.t = t; l.want(c.want...) }); t.Failed() {
			return
		}
	}
}

// testPayloads: however many ids of whatever length, each is told, and no payload is refused.
func testPayloads(t *testing.T, c *pgtest.Cluster) {
	dsn := c.Empty(t)
	conn := checkConn(t, dsn)
	checkExec(t, conn, `create table account_tool_instances (id text primary key)`)
	mustMigrate(t, dsn, MigrateOptions{Apply: true})
	l := listen(t, dsn)
	rapid.Check(t, func(r *rapid.T) {
		// Also quotes, which JSON doubles, and characters of more bytes.
		id := rapid.StringOfN(rapid.RuneFrom([]rune("abc\"\\\n€é<")), 1, -1, rapid.SampledFrom([]int{10, 200, 1100}).Draw(r, "longest"))
		ids := rapid.SliceOfNDistinct(id, 1, 300, rapid.ID[string]).Draw(r, "ids")
		checkExec(t, conn, "insert into account_tool_instances select unnest($1::text[])", ids)
		checkExec(t, conn, "delete from account_tool_instances")
		long := slices.ContainsFunc(ids, func(id string) bool { return len(strconv.Quote(id)) > migrateMaxID-100 })
		got := map[Operation][]string{}
		for _, payload := range l.raw() {
			if len(payload) >= 7999 {
				r.Fatalf("%d bytes", len(payload))
			}
			n, err := ParseNotification(payload)
			if err != nil {
				r.Fatal(err)
			}
			got[n.Operation] = append(got[n.Operation], n.IDs...)
			if n.Operation == OperationAll && !long {
				r.Fatalf("everything is to be read for %d ids", len(ids))
			}
			if n.Operation == OperationAll {
				return
			}
		}
		slices.Sort(ids)
		for _, op := range []Operation{OperationInsert, OperationDelete} {
			slices.Sort(got[op])
			if d := cmp.Diff(ids, got[op]); d != "" {
				r.Fatalf("%s: %s", op, d)
			}
		}
	})
}

func testBulk(t *testing.T, c *pgtest.Cluster) {
	dsn := c.Database(t)
	conn := checkConn(t, dsn)
	ids := fleet(t, conn, 100, 100)
	mustMigrate(t, dsn, MigrateOptions{Apply: true})
	l := listen(t, dsn)
	all := func(what string) {
		t.Helper()
		var got []string
		payloads := l.raw()
		for _, payload := range payloads {
			n, err := ParseNotification(payload)
			if err != nil || n.Operation != OperationUpdate {
				t.Fatal(n.Operation, err)
			}
			got = append(got, n.IDs...)
		}
		slices.Sort(got)
		if d := cmp.Diff(ids, got); d != "" {
			t.Errorf("%s: %.500s", what, d)
		}
		t.Logf("%s: %d rows in %d notifications", what, len(got), len(payloads))
	}
	begun := time.Now()
	checkExec(t, conn, "update account_tool_instances set status_on_toolbox = 'stopped'")
	t.Logf("one statement: %v", time.Since(begun))
	all("one statement")
	begun = time.Now()
	checkExec(t, conn, `do $$ declare r record; begin for r in select id from account_tool_instances loop update account_tool_instances set status_on_toolbox = 'running' where id = r.id; end loop; end $$`)
	t.Logf("a statement for each: %v", time.Since(begun))
	all("a statement for each")
	checkExec(t, conn, `insert into account_tool_instances (account_tool_environment_id, mcp_server_type) select account_tool_environment_id, 'x' from account_tool_instances limit 1`)
	l.raw()
	checkExec(t, conn, "update account_tool_instances set status_on_toolbox = 'stopped'")
	l.want("* account_tool_instances") // 10,001
}

// testTriggersNeverFail: a column that vanished after the migration.
func testTriggersNeverFail(t *testing.T, c *pgtest.Cluster) {
	dsn := c.Database(t)
	conn := checkConn(t, dsn)
	fleet(t, conn, 1, 1)
	mustMigrate(t, dsn, MigrateOptions{Apply: true})
	l := listen(t, dsn)
	checkExec(t, conn, "alter table account_tool_instances drop column mcp_endpoint_path")
	checkExec(t, conn, "update account_tool_instances set status_on_toolbox = 'stopped'")
	l.want("* account_tool_instances")
	p := mustMigrate(t, dsn, MigrateOptions{Apply: true})
	if len(p.Statements) != 1 || len(p.Notes) != 1 {
		t.Errorf("%+v", p)
	}
	id := checkValue[string](t, conn, "update account_tool_instances set status_on_toolbox = 'running' returning id::text")
	l.want("U account_tool_instances " + id)

	// A writer with no right but to its own table, and a search path of its own.
	checkExec(t, conn, `create role writer1 login; grant update, select on account_tool_instances to writer1; create schema evil; grant usage on schema evil to writer1;
create function evil.pg_notify(text, text) returns void language sql as 'select 1/0'`)
	w := checkConn(t, c.DSNAs("writer1", conn.Config().Database))
	checkExec(t, w, "set search_path = evil, public, pg_catalog")
	checkExec(t, w, "update account_tool_instances set status_on_toolbox = 'stopped'")
	l.want("U account_tool_instances " + id)
}

func testMigrateLocked(t *testing.T, c *pgtest.Cluster) {
	dsn := c.Database(t)
	conn := checkConn(t, dsn)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "lock table account_tool_environments in row exclusive mode"); err != nil {
		t.Fatal(err)
	}
	_, err = Migrate(t.Context(), dsn, MigrateOptions{Apply: true, LockTimeout: 10 * time.Millisecond})
	if statussync.CodeOf(err) != statussync.CodeUnavailable {
		t.Errorf("locked: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p := mustMigrate(t, dsn, MigrateOptions{}); p.Installed != 0 || len(p.Statements) != 12 {
		t.Errorf("a failed migration left something: %+v", p)
	}
}

func testMigrateRights(t *testing.T, c *pgtest.Cluster) {
	dsn := c.Database(t)
	conn := checkConn(t, dsn)
	checkExec(t, conn, "create role installer1 login")
	mine := c.DSNAs("installer1", conn.Config().Database)
	for i := 0; ; i++ {
		p, err := Migrate(t.Context(), mine, MigrateOptions{Apply: true})
		if err == nil {
			break
		}
		if i > 5 || p == nil || statussync.CodeOf(err) != statussync.CodeForbidden || len(p.Missing) == 0 {
			t.Fatalf("%+v %v", p, err)
		}
		checkExec(t, conn, p.Missing[0]) // what it names is what it needs
	}
	checkExec(t, conn, "update account_tool_instances set status_on_toolbox = 'stopped'")
	if _, err := Migrate(t.Context(), mine, MigrateOptions{Apply: true, Down: true}); statussync.CodeOf(err) != statussync.CodeForbidden || !strings.Contains(err.Error(), "ownership of public.account_tool_instances") {
		t.Errorf("down without the tables' ownership: %v", err)
	}
	mustMigrate(t, dsn, MigrateOptions{Apply: true, Down: true})
}

// BenchmarkWriter is what the triggers cost a writer.
func BenchmarkWriter(b *testing.B) {
	c := pgtest.Start(b)
	for _, size := range []int{1, 20, 1000} {
		for _, sql := range []string{"status_on_toolbox = case when status_on_toolbox = 'running' then 'stopped' else 'running' end::account_tool_installation_status_enum", "last_heartbeat_from_dtma = clock_timestamp()"} {
			for _, with := range []bool{false, true} {
				b.Run(fmt.Sprintf("%s/%d rows/triggers=%v", strings.Fields(sql)[0], size, with), func(b *testing.B) {
					dsn := c.Database(b)
					conn := checkConn(b, dsn)
					fleet(b, conn, 1, size)
					if with {
						mustMigrate(b, dsn, MigrateOptions{Apply: true})
					}
					for b.Loop() {
						checkExec(b, conn, "update account_tool_instances set "+sql)
					}
				})
			}
		}
	}
}
