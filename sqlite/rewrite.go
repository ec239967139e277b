package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/agentopia/statussync"
)

// rewriteRows is how many rows a Rewriting has in memory at once.
const rewriteRows = 500

// Rewriting is the whole content of a store that nobody else uses, and of the history beside it, within one transaction. Its methods may be called by
// one goroutine, and only until the function that Rewrite called has returned.
type Rewriting struct {
	ctx  context.Context
	w    *writer
	path string
	o    Options
	keep bool
	n    int64 // rows changed
	swap bool  // a history was rewritten
}

// Rewrite lets f change what the store in o.Dir holds, for which no service may run on it. All that f changes becomes
// durable at once when it returns nil, and nothing of it otherwise, or where keep is false. Where anything changed, the
// next Open begins a new epoch, because of why: bytes that clients hold may not be what the journal says any more.
//
// Afterwards nothing of what was changed or ever deleted is left in the file, its log or its free pages; nor are copies
// that migrations made, whose names are returned. If the process dies in between, the next Open or Rewrite does that.
// It needs room for two copies of the store, one beside it and one in the operating system's folder for temporary files,
// and for two of the history, if f rewrites that.
//
// CodeNotFound: there is no store. CodeConflict: a process, such as a running service, uses it. CodeUnavailable as with
// Open. It blocks as long as reading and writing the whole store take; ctx ends it only before the changes are durable.
func Rewrite(ctx context.Context, o Options, keep bool, why string, f func(*Rewriting) error) (copies []string, err error) {
	o, err = o.complete()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(o.Dir, fileName)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, statussync.NewError(statussync.CodeNotFound, "there is no store in "+o.Dir, err)
	}
	lock, err := takeLock(o.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	if err := prepareFile(path); err != nil {
		return nil, err
	}
	if err := migrate(ctx, path, o.migrations, o.Logger); err != nil {
		return nil, explain(path, "rewriting", err)
	}
	w, err := openWriter(path, o)
	if err != nil {
		return nil, explain(path, "rewriting", err)
	}
	defer func() { w.close() }()
	if w, err = finishScrub(w, o, path); err != nil { // of one that was interrupted
		return nil, explain(path, "rewriting", err)
	}
	if copies, err = Copies(o.Dir); err != nil {
		return nil, err
	}
	err = func() error {
		if err := w.exec(`PRAGMA synchronous = FULL`); err != nil {
			return err
		}
		pages, err := w.number(`PRAGMA page_count`)
		if err != nil {
			return err
		}
		if keep {
			if err := Room(o.Dir, 2*pages*pageSize); err != nil {
				return err
			}
		}
		if err := w.exec(`BEGIN IMMEDIATE`); err != nil {
			return err
		}
		r := &Rewriting{ctx: ctx, w: w, path: path, o: o, keep: keep}
		if err := f(r); err != nil || !keep {
			return errors.Join(err, w.exec(`ROLLBACK`), removeDrafts(o.Dir))
		}
		set := []any{metaScrub, int64(1)}
		if r.swap {
			set = append(set, metaSwap, int64(1))
		}
		if r.n > 0 {
			set = append(set, metaNewEpoch, why)
		}
		if err := errors.Join(w.setMeta(set...), ctx.Err()); err != nil {
			return errors.Join(err, w.exec(`ROLLBACK`), removeDrafts(o.Dir))
		}
		// From here on the copy of the history stays: whether the commit is durable after an error, only the next Open knows.
		if err := w.exec(`COMMIT`); err != nil {
			return err
		}
		return scrub(w, o.Dir)
	}()
	if err != nil || !keep {
		return copies, explain(path, "rewriting", err)
	}
	return copies, removeCopies(o.Dir, copies)
}

// Copies lists the copies of the store and its history in a data directory that migrations made.
func Copies(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, statussync.NewError(statussync.CodeUnavailable, "the data directory cannot be read", err)
	}
	var out []string
	for _, e := range entries {
		n := e.Name()
		ours := strings.HasPrefix(n, fileName+".v") || strings.HasPrefix(n, HistoryFileName+".v")
		if ours && (strings.HasSuffix(n, ".bak") || strings.HasSuffix(n, ".bak.part")) {
			out = append(out, n)
		}
	}
	return out, nil
}

func removeCopies(dir string, copies []string) error {
	for _, c := range copies {
		if err := os.Remove(filepath.Join(dir, c)); err != nil {
			return statussync.NewError(statussync.CodeUnavailable, "a copy of the store cannot be removed", err)
		}
	}
	return nil
}

// scrub writes the file anew, without what was ever deleted from it, and empties the log; before that it puts a history
// that was rewritten in its place. Whatever interrupts it, the mark that it is due stays until it is done.
func scrub(w *writer, dir string) error {
	swap, err := w.number(`SELECT count(*) FROM meta WHERE key = ?`, metaSwap)
	if err != nil {
		return err
	}
	if swap > 0 {
		if err := swapHistory(dir); err != nil {
			return err
		}
	}
	if err := removeDrafts(dir); err != nil {
		return err
	}
	// In memory the whole file would have to fit there.
	if err := w.exec(`PRAGMA temp_store = file`); err != nil {
		return err
	}
	if err := w.exec(`VACUUM`); err != nil {
		return err
	}
	empty := func() error {
		var busy, inLog, done int
		err := w.conn.QueryRowContext(context.Background(), `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &inLog, &done)
		if err == nil && busy != 0 {
			err = errors.New("another program has the file open: what was erased is still in its log")
		}
		return err
	}
	if err := empty(); err != nil {
		return err
	}
	if err := w.exec(`BEGIN IMMEDIATE`); err != nil {
		return err
	}
	if err := w.exec(`DELETE FROM meta WHERE key IN (?, ?)`, metaScrub, metaSwap); err != nil {
		return err
	}
	if err := w.exec(`COMMIT`); err != nil {
		return err
	}
	return empty()
}

// finishScrub does what a Rewrite that was interrupted left to do, before anything else happens to a store and its
// history. w is its writer; the result takes its place, also after an error.
func finishScrub(w *writer, o Options, path string) (*writer, error) {
	due, err := w.number(`SELECT count(*) FROM meta WHERE key = ?`, metaScrub)
	if err != nil {
		return w, err
	}
	if due == 0 {
		return w, removeDrafts(o.Dir)
	}
	o.Logger.Warn("an erasure was interrupted after its changes were stored; finishing it")
	if err := scrub(w, o.Dir); err != nil {
		return w, err
	}
	copies, err := Copies(o.Dir)
	if err == nil {
		err = removeCopies(o.Dir, copies)
	}
	if err != nil {
		return w, err
	}
	again, err := openWriter(path, o) // with the store's settings
	if err != nil {
		return w, err
	}
	w.close()
	return again, nil
}

// Managed returns what Store.Managed does.
func (r *Rewriting) Managed() (*statussync.Managed, error) {
	return readManaged(r.ctx, r.w.conn, r.path)
}

// ChangeManaged does what Store.ChangeManaged does.
func (r *Rewriting) ChangeManaged(c *statussync.ManagedChange) error {
	list, err := managedStatements(c)
	for _, st := range list {
		if err = r.w.exec(st.query, st.args...); err != nil {
			return err
		}
		r.n++
	}
	return err
}

// Records calls f with every stored record. Where changed is true, data takes the place of the record's; nil deletes it.
func (r *Rewriting) Records(f func(statussync.Record) (data []byte, changed bool, err error)) error {
	var kind, id string
	for { // no kind is empty
		var page []statussync.Record
		err := r.each(`SELECT kind, id, data FROM records WHERE (kind, id) > (?, ?) ORDER BY kind, id LIMIT ?`, []any{kind, id, rewriteRows}, func(rows *sql.Rows) error {
			var rec statussync.Record
			err := rows.Scan(&rec.Kind, &rec.ID, &rec.Data)
			page = append(page, rec)
			return err
		})
		if err != nil || len(page) == 0 {
			return err
		}
		for _, rec := range page {
			kind, id = string(rec.Kind), rec.ID
			data, changed, err := f(rec)
			switch {
			case err != nil:
				return err
			case !changed:
				continue
			case data == nil:
				err = r.w.exec(`DELETE FROM records WHERE kind = ? AND id = ?`, kind, id)
			default:
				err = r.w.exec(`UPDATE records SET data = ? WHERE kind = ? AND id = ?`, data, kind, id)
			}
			if err != nil {
				return err
			}
			r.n++
		}
	}
}

// Entries calls f with every entry of the journal whose JSON or labels hold one of the texts, oldest first; without texts
// with every one. f may change the entry, but for its Seq, Epoch and Timestamp, and says whether it did.
func (r *Rewriting) Entries(texts []string, f func(*statussync.Entry) (changed bool, err error)) error {
	where, args := holding([]string{"json", "labels"}, texts)
	for seq := int64(0); ; {
		var page []statussync.Encoded
		last := seq
		rows, err := r.w.conn.QueryContext(r.ctx, `SELECT seq, labels, json FROM entries WHERE seq > ?`+where+` ORDER BY seq LIMIT ?`,
			append(append([]any{seq}, args...), rewriteRows)...)
		if err != nil {
			return err
		}
		if page, err = scan(rows, nil); err != nil || len(page) == 0 {
			return err
		}
		for i := range page {
			e := page[i].Entry
			seq = int64(e.Seq)
			place, at := e.Cursor(), e.Timestamp
			changed, err := f(e)
			if err != nil {
				return err
			}
			if !changed {
				continue
			}
			if e.Cursor() != place || !e.Timestamp.Equal(at) {
				return fmt.Errorf("the entry %v was moved to %v", place, e.Cursor())
			}
			err = r.w.exec(`UPDATE entries SET server_id = ?, labels = ?, json = ? WHERE seq = ?`, textOrNull(e.ServerID), labelsText(e.Labels), e.AppendJSON(nil), seq)
			if err != nil {
				return err
			}
			r.n++
		}
		if seq == last {
			return errors.New("the entries are not in order")
		}
	}
}

// holding is a condition on columns that may hold one of the texts, beginning with AND; empty without texts.
func holding(columns, texts []string) (where string, args []any) {
	var or []string
	for _, c := range columns {
		for _, t := range texts {
			or = append(or, `instr(CAST(`+c+` AS BLOB), CAST(? AS BLOB)) > 0`)
			args = append(args, t)
		}
	}
	if len(or) > 0 {
		where = ` AND (` + strings.Join(or, ` OR `) + `)`
	}
	return where, args
}

// table is a table of the store.
type table struct {
	name    string
	columns []string
}

// tables lists those with rows that have an id of their own.
func (r *Rewriting) tables() ([]table, error) {
	var names []string
	err := r.each(`SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND NOT wr
AND name NOT LIKE 'sqlite\_%' ESCAPE '\' AND name NOT LIKE 'goose\_%' ESCAPE '\' ORDER BY name`, nil, func(rows *sql.Rows) error {
		var n string
		err := rows.Scan(&n)
		names = append(names, n)
		return err
	})
	var out []table
	for _, n := range names {
		t := table{name: n}
		if err == nil {
			err = r.each(`SELECT name FROM pragma_table_info(?)`, []any{n}, func(rows *sql.Rows) error {
				var c string
				err := rows.Scan(&c)
				t.columns = append(t.columns, c)
				return err
			})
		}
		out = append(out, t)
	}
	return out, err
}

func quoteName(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// OtherRows calls f with every row of the tables that no other method is about, by column, if one of its values holds
// one of the texts. f may change text ([]byte or string) in it, and says whether it did.
func (r *Rewriting) OtherRows(texts []string, f func(table string, row map[string]any) (changed bool)) error {
	return r.rows(texts, func(t string) bool {
		return !slices.Contains([]string{"entries", "records", "segments", "managed_servers", "managed_environments", "agent_tokens"}, t)
	}, f)
}

// Rows calls f with every row of all tables as OtherRows does, but to look at only: what it changes is not stored.
func (r *Rewriting) Rows(texts []string, f func(table string, row map[string]any)) error {
	return r.rows(texts, func(string) bool { return true }, func(t string, row map[string]any) bool { f(t, row); return false })
}

func (r *Rewriting) rows(texts []string, wanted func(table string) bool, f func(table string, row map[string]any) bool) error {
	tables, err := r.tables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		if !wanted(t.name) {
			continue
		}
		quoted := make([]string, len(t.columns))
		for i, c := range t.columns {
			quoted[i] = quoteName(c)
		}
		where, args := holding(quoted, texts)
		query := `SELECT rowid, ` + strings.Join(quoted, `, `) + ` FROM ` + quoteName(t.name) + ` WHERE rowid > ?` + where + ` ORDER BY rowid LIMIT ?`
		type found struct {
			id  int64
			row map[string]any
		}
		for last := int64(-1 << 63); ; {
			var page []found
			err := r.each(query, append(append([]any{last}, args...), rewriteRows), func(rows *sql.Rows) error {
				values := make([]any, len(t.columns))
				into := make([]any, len(t.columns)+1)
				var fnd found
				into[0] = &fnd.id
				for i := range values {
					into[i+1] = &values[i]
				}
				if err := rows.Scan(into...); err != nil {
					return err
				}
				fnd.row = map[string]any{}
				for i, c := range t.columns {
					fnd.row[c] = values[i]
				}
				page = append(page, fnd)
				return nil
			})
			if err != nil {
				return err
			}
			if len(page) == 0 {
				break
			}
			for _, p := range page {
				last = p.id
				if !f(t.name, p.row) {
					continue
				}
				set := make([]string, len(t.columns))
				args := make([]any, 0, len(t.columns)+1)
				for i, c := range t.columns {
					set[i] = quoted[i] + ` = ?`
					args = append(args, p.row[c])
				}
				if err := r.w.exec(`UPDATE `+quoteName(t.name)+` SET `+strings.Join(set, `, `)+` WHERE rowid = ?`, append(args, p.id)...); err != nil {
					return err
				}
				r.n++
			}
		}
	}
	return nil
}

func (r *Rewriting) each(query string, args []any, f func(*sql.Rows) error) error {
	return each(r.ctx, r.w.conn, query, f, args...)
}
