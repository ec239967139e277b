package postgres

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync"
)

// statusLogColumn is a column that is written: its value in v, whose types statusLogTable.insert has.
type statusLogColumn struct {
	name, value string
	needed      bool
}

var statusLogColumns = []statusLogColumn{
	{"id", "v.id", true}, {"server_id", "v.server_id", true}, {"timestamp", "v.at::timestamptz", true},
	{"previous_status", "v.previous", false}, {"current_status", "v.current", true}, {"source", "v.source", false}, {"details", "v.details", false},
	{"response_time_ms", "v.latency", false}, {"uptime_seconds", "v.uptime", false},
	{"sync_session_id", "p.session", false}, {"batch_id", "p.batch", false},
}

// statusLogTable is how rows are written to the table as it is here.
type statusLogTable struct {
	insert  string
	uuids   bool     // server_id is a uuid: servers with other ids can't be in this database
	missing []string // columns that it does not have: written without them
}

// statusLogRead reads what the table is like. What is missing and needed is an Error with CodeNotFound.
func statusLogRead(ctx context.Context, q catalogQuerier, schema string) (*statusLogTable, error) {
	tables, err := catalogTables(ctx, q, schema, checkLogs, checkInstances)
	if err != nil {
		return nil, err
	}
	logs, instances := tables[checkLogs], tables[checkInstances]
	for name, t := range map[string]*catalogTable{checkLogs: logs, checkInstances: instances} {
		if t == nil || !t.has("id") {
			return nil, statussync.NewError(statussync.CodeNotFound, "the schema "+schema+" has no table "+name+" with a column id", nil)
		}
	}
	t := &statusLogTable{uuids: logs.columns["server_id"].typ == "uuid"}
	var names, values []string
	for _, c := range statusLogColumns {
		have, ok := logs.columns[c.name]
		if !ok {
			if c.needed {
				return nil, statussync.NewError(statussync.CodeNotFound, "the table "+checkLogs+" has no column "+c.name, nil)
			}
			t.missing = append(t.missing, c.name)
			continue
		}
		value := c.value
		if c.name == "timestamp" && have.typ != "timestamp with time zone" && strings.HasPrefix(have.typ, "timestamp") {
			value = "(" + value + " at time zone 'UTC')"
		}
		names, values = append(names, catalogName(c.name)), append(values, value+"::"+have.typ)
	}
	if id := logs.columns["id"].typ; id != "uuid" && id != "text" && !strings.HasPrefix(id, "character varying") {
		return nil, statussync.NewError(statussync.CodeConflict, "the column id of "+checkLogs+" is "+id+": rows need ids that repeat when they do, a uuid or text", nil)
	}
	// The commit waits for the disk, whatever the role's default: the checkpoint moves on behind it.
	// Rows of servers that are not, or no more, in the database are left out here: a violated foreign key would cost the batch.
	t.insert = `with v as (select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::text[])
  with ordinality as v (id, server_id, previous, current, source, details, latency, uptime, at, n)),
p as (select $10::text as session, $11::text as batch),
known as (select v.* from v where exists (select from ` + catalogName(schema, checkInstances) + ` i where i.id = v.server_id::` + instances.columns["id"].typ + `)),
written as (insert into ` + catalogName(schema, checkLogs) + ` (` + strings.Join(names, ", ") + `) select ` + strings.Join(values, ", ") + ` from known v, p order by v.n on conflict do nothing returning 1)
select (select count(*) from known), (select count(*) from written) from (select set_config('synchronous_commit', 'on', true)) as c`
	return t, nil
}

// put writes rows in one statement, and tells how many of their servers are in the database and how many rows were not there.
func (t *statusLogTable) put(ctx context.Context, conn *pgx.Conn, rows []statusLogRow, session, batch string) (known, written int, err error) {
	n := len(rows)
	id, server, source, details, at := make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	previous, current := make([]*string, n), make([]*string, n)
	latency, uptime := make([]*int64, n), make([]*int64, n)
	for i := range rows {
		r := &rows[i]
		id[i], server[i], previous[i], current[i], source[i], details[i], latency[i], uptime[i], at[i] = r.id, r.server, r.previous, r.current, r.source, r.details, r.latency, r.uptime, r.at
	}
	err = conn.QueryRow(ctx, t.insert, id, server, previous, current, source, details, latency, uptime, at, session, batch).Scan(&known, &written)
	return known, written, err
}
