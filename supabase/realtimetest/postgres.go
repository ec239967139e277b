package realtimetest

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Follow makes the server tell what really changes in a database, until the server is closed: triggers of a schema of its
// own tell which row it was, and the row is read. While the database is away every channel is told so, and told when it is
// followed again; what changed in between is lost, as it is with the real server. The tables need a primary key named id.
func (s *Server) Follow(ctx context.Context, dsn, schema string, tables ...string) error {
	l := &listener{s: s, dsn: dsn, schema: schema, tables: tables}
	if err := l.connect(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return l.conn.Close(ctx)
	}
	s.wg.Go(l.run)
	return nil
}

type listener struct {
	s           *Server
	dsn, schema string
	tables      []string
	conn        *pgx.Conn
}

const setUp = `
create schema if not exists realtimetest;
create or replace function realtimetest.tell() returns trigger language plpgsql security definer as $$
begin
  perform pg_notify('realtimetest', json_build_object('table', tg_table_name, 'type', tg_op,
    'id', case when tg_op = 'DELETE' then old.id::text else new.id::text end,
    'old', case when tg_op = 'INSERT' then null else old.id::text end)::text);
  return null;
end $$;`

func (l *listener) connect(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if l.conn, err = pgx.Connect(ctx, l.dsn); err != nil {
		return err
	}
	sql := setUp
	for _, t := range l.tables {
		name := pgx.Identifier{l.schema, t}.Sanitize()
		sql += fmt.Sprintf("\ncreate or replace trigger realtimetest after insert or update or delete on %s for each row execute function realtimetest.tell();", name)
	}
	if _, err = l.conn.Exec(ctx, sql+"\nlisten realtimetest;"); err != nil {
		l.conn.Close(ctx)
	}
	return err
}

func (l *listener) run() {
	for {
		err := l.listen()
		l.conn.Close(context.Background())
		if l.s.ctx.Err() != nil {
			return
		}
		l.s.LoseDatabase("UnableToSubscribeToPostgres: "+err.Error(), 0)
		for l.connect(l.s.ctx) != nil {
			select {
			case <-l.s.ctx.Done():
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
		for _, c := range l.s.all() {
			c.each(func(ch *channel) { c.follow(ch) })
		}
	}
}

func (l *listener) listen() error {
	for {
		n, err := l.conn.WaitForNotification(l.s.ctx)
		if err != nil {
			return err
		}
		var p struct{ Table, Type, ID, Old string }
		if err := json.Unmarshal([]byte(n.Payload), &p); err != nil {
			return err
		}
		c := Change{Schema: l.schema, Table: p.Table, Type: p.Type}
		if p.Type != "INSERT" {
			c.OldRecord = map[string]any{"id": p.Old}
		}
		if p.Type != "DELETE" {
			c.Record = map[string]any{"id": p.ID}
			err := l.conn.QueryRow(l.s.ctx, "select to_jsonb(t) from "+pgx.Identifier{l.schema, p.Table}.Sanitize()+" t where id::text = $1", p.ID).Scan(&c.Record)
			if err != nil && err != pgx.ErrNoRows { // gone meanwhile: what the trigger said is still true
				return err
			}
		}
		l.s.Change(c)
	}
}
