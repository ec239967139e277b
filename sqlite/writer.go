package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// writer is the one connection that writes. It is used by whoever has the turn.
//
// Its statements run without a context: the driver would start a goroutine for each to interrupt it, and an interrupt
// can't end what really takes long, a disk that hangs. Whoever uses it asks its context between statements.
type writer struct {
	db    *sql.DB
	conn  *sql.Conn
	stmts map[string]*sql.Stmt // by text; the texts are few and fixed
}

func openWriter(path string, o Options) (*writer, error) {
	db, err := sql.Open("sqlite", dsn(path, "synchronous("+o.Sync+")", "cache_size(-16000)", "temp_store(memory)",
		fmt.Sprintf("wal_autocheckpoint(%d)", o.logPages()), fmt.Sprintf("journal_size_limit(%d)", o.logPages()*pageSize)))
	if err != nil {
		return nil, err
	}
	w := &writer{db: db, stmts: map[string]*sql.Stmt{}}
	if w.conn, err = db.Conn(context.Background()); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *writer) close() {
	for _, st := range w.stmts {
		_ = st.Close()
	}
	if w.conn != nil {
		_ = w.conn.Close()
	}
	_ = w.db.Close() // what is not committed is rolled back by it
}

func (w *writer) stmt(query string) (*sql.Stmt, error) {
	if st := w.stmts[query]; st != nil {
		return st, nil
	}
	st, err := w.conn.PrepareContext(context.Background(), query)
	if err == nil {
		w.stmts[query] = st
	}
	return st, err
}

func (w *writer) exec(query string, args ...any) error {
	st, err := w.stmt(query)
	if err == nil {
		_, err = st.ExecContext(context.Background(), args...)
	}
	return err
}

func (w *writer) number(query string, args ...any) (n int64, err error) {
	st, err := w.stmt(query)
	if err == nil {
		err = st.QueryRowContext(context.Background(), args...).Scan(&n)
	}
	return n, err
}

const upsertMeta = `INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value`

// setMeta stores pairs of key and value, one after the other.
func (w *writer) setMeta(pairs ...any) error {
	for i := 0; i < len(pairs); i += 2 {
		err := w.exec(upsertMeta, pairs[i], pairs[i+1])
		if err != nil {
			return err
		}
	}
	return nil
}

// durably is setMeta in one transaction that is on the disk when it returns, whatever the store's setting.
func (w *writer) durably(pairs ...any) error {
	old, err := w.number(`PRAGMA synchronous`)
	if err != nil {
		return err
	}
	if err := w.exec(`PRAGMA synchronous = FULL`); err != nil {
		return err
	}
	return w.transact(func() error {
		return w.setMeta(pairs...)
	}, func() error {
		return w.exec(fmt.Sprintf(`PRAGMA synchronous = %d`, old))
	})
}

// transact runs f in a transaction, and after once it is committed. After an error the transaction may be open still:
// the caller rolls back or closes the writer.
func (w *writer) transact(f, after func() error) error {
	if err := w.exec(`BEGIN IMMEDIATE`); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	if err := w.exec(`COMMIT`); err != nil {
		return err
	}
	if after == nil {
		return nil
	}
	return after()
}

// rows runs a statement that takes many rows of args, cols to a row, in as few executions as fit. check is asked before
// each; it must not be nil.
func (w *writer) rows(b *bulk, args []any, check func() error) error {
	for len(args) > 0 {
		n := len(args) / b.cols
		size := bulkSizes[len(bulkSizes)-1]
		for i, s := range bulkSizes {
			if n >= s {
				size = bulkSizes[i]
				break
			}
		}
		if err := check(); err != nil {
			return err
		}
		if err := w.exec(b.query(size), args[:size*b.cols]...); err != nil {
			return err
		}
		args = args[size*b.cols:]
	}
	return nil
}

// bulkSizes are the numbers of rows for which there is a prepared statement.
var bulkSizes = [...]int{256, 64, 16, 4, 1}

// bulk is an INSERT of any number of rows.
type bulk struct {
	cols    int
	queries map[int]string // by number of rows
}

func newBulk(head string, cols int, tail string) *bulk {
	b := &bulk{cols: cols, queries: map[int]string{}}
	row := "(" + strings.TrimSuffix(strings.Repeat("?,", cols), ",") + ")"
	for _, n := range bulkSizes {
		b.queries[n] = head + " VALUES " + strings.TrimSuffix(strings.Repeat(row+",", n), ",") + tail
	}
	return b
}

func (b *bulk) query(n int) string { return b.queries[n] }

// writer returns the connection that writes, opened again where it was thrown away. The caller has the turn.
func (s *Store) writer() (*writer, error) {
	if s.w == nil {
		w, err := openWriter(s.path, s.opts)
		if err != nil {
			return nil, err
		}
		s.w = w
	}
	return s.w, nil
}

func (s *Store) dropWriter() {
	if s.w != nil {
		s.w.close()
		s.w = nil
	}
}

// write runs f in a transaction of the one who has the turn. Whatever happens, the store can be written afterwards:
// what failed is rolled back, or its connection thrown away and opened again by the next. It explains errors.
func (s *Store) write(doing string, f func(w *writer) error) error {
	err := s.inPlace()
	var w *writer
	if err == nil {
		w, err = s.writer()
	}
	if err == nil {
		err = w.transact(func() error { return f(w) }, nil)
		if err != nil && (!benign(err) || w.exec(`ROLLBACK`) != nil) {
			// A commit that failed may be found in the log when the file is opened again.
			s.tail = true
			s.dropWriter()
		}
	}
	err = explain(s.path, doing, err)
	if err != nil && !benign(err) {
		s.mu.Lock()
		s.trouble = err
		s.mu.Unlock()
	}
	return err
}
