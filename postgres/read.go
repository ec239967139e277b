package postgres

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync"
)

// chunk is how many rows' differences are handed over at once: large enough that a journal's transaction is well filled,
// small enough that it is written long before the hub gives an append up.
const chunk = 1000

// rowReader is what is known to read rows. It is a seam: the rules of what follows from rows are tested without a database, too.
type rowReader interface {
	// all yields every environment and then every instance, as of one moment.
	all(ctx context.Context, env func(*environmentRow) error, instance func(*instanceRow) error) error
	// some yields those of the given ids that exist.
	some(ctx context.Context, instances, envs []string, env func(*environmentRow) error, instance func(*instanceRow) error) error
}

// database reads rows from PostgreSQL.
type database struct {
	r *Registry
	s *shape
	// progress is called whenever the database has answered; who watches then knows that it lives.
	progress func()
}

// beginRead also bounds each statement: one whose reader is gone must not go on for ever.
const beginRead = "begin isolation level repeatable read read only; set local statement_timeout = '2min'"

func (d *database) all(ctx context.Context, env func(*environmentRow) error, instance func(*instanceRow) error) error {
	d.r.queries.Add(2)
	// One snapshot: an instance never belongs to an environment that this read does not show.
	tx, err := d.r.pool.BeginTx(ctx, pgx.TxOptions{BeginQuery: beginRead})
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = tx.Rollback(end) // nothing was changed; a transaction that can't be ended ends with its connection
	}()
	d.progress()
	last := ""
	for n := pageRows; n == pageRows; {
		if n, err = d.page(ctx, tx, d.s.environments, len(environmentColumns), func(v [][]byte) error {
			w := environmentOf(v)
			last = string(w.id)
			return env(&w)
		}, last, pageRows); err != nil {
			return err
		}
	}
	last = ""
	for n := pageRows; n == pageRows; {
		if n, err = d.page(ctx, tx, d.s.instances, len(instanceColumns), func(v [][]byte) error {
			w := instanceOf(v)
			last = string(w.id)
			return instance(&w)
		}, last, pageRows); err != nil {
			return err
		}
	}
	return nil
}

// page runs one statement and hands its rows on as they come.
func (d *database) page(ctx context.Context, q querier, sql string, columns int, row func([][]byte) error, args ...any) (n int, err error) {
	d.r.queries.Add(1)
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		n++
		if n%chunk == 1 {
			d.progress()
		}
		if err := row(rows.RawValues()[:columns]); err != nil {
			return n, err
		}
	}
	d.progress()
	return n, rows.Err()
}

// maxIDs bounds the ids of one statement.
const maxIDs = 5000

func (d *database) some(ctx context.Context, instances, envs []string, env func(*environmentRow) error, instance func(*instanceRow) error) error {
	read := func(ids []string, isUUID bool, sql string, columns int, row func([][]byte) error) error {
		for len(ids) > 0 {
			part := ids[:min(len(ids), maxIDs)]
			ids = ids[len(part):]
			list := arrayOf(part, isUUID)
			if list == "{}" {
				continue
			}
			if _, err := d.page(ctx, d.r.pool, sql, columns, row, list); err != nil {
				return err
			}
		}
		return nil
	}
	if err := read(envs, d.s.environmentUUID, d.s.environmentsByID, len(environmentColumns), func(v [][]byte) error {
		w := environmentOf(v)
		return env(&w)
	}); err != nil {
		return err
	}
	return read(instances, d.s.instanceUUID, d.s.instancesByID, len(instanceColumns), func(v [][]byte) error {
		w := instanceOf(v)
		return instance(&w)
	})
}

// arrayOf is a list of ids as PostgreSQL writes arrays. The ids have passed faultOfID, so none needs quotes; those that are
// no UUIDs where the column has only such would fail the statement for all.
func arrayOf(ids []string, isUUID bool) string {
	var b strings.Builder
	b.WriteByte('{')
	for _, id := range ids {
		if isUUID {
			if _, err := uuid.Parse(id); err != nil {
				continue
			}
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		b.WriteString(id)
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

func environmentOf(v [][]byte) environmentRow {
	return environmentRow{id: v[0], owner: v[1], name: v[2], address: v[3], token: v[4], beat: v[5]}
}

func instanceOf(v [][]byte) instanceRow {
	return instanceRow{id: v[0], env: v[1], name: v[2], word: v[3], errText: v[4], typ: v[5], transport: v[6], path: v[7], caps: v[8], beat: v[9]}
}

// outcome is what a read has caused.
type outcome struct{ updates []*statussync.Entry }

// senders is how many deltas of one read are handed over at once: while one is written to the journal another is concluded
// from, and a third is on its way.
const senders = 3

// deltaSender hands deltas over while the next rows are being read. The deltas of one read are about different rows, so
// their order doesn't matter, but where wait stands between them.
type deltaSender struct {
	ctx  context.Context
	r    *Registry
	to   statussync.Observer
	in   chan *delta
	keep bool // what was caused is wanted

	started int // goroutines; of who sends
	workers sync.WaitGroup
	busy    sync.WaitGroup // deltas under way

	mu  sync.Mutex
	out outcome
	err error // the first one; what comes after it is dropped
}

func (r *Registry) newSender(ctx context.Context, to statussync.Observer, keep bool) *deltaSender {
	return &deltaSender{ctx: ctx, r: r, to: to, in: make(chan *delta), keep: keep}
}

// send hands a delta to a goroutine that submits it. It blocks while all of them are at work.
func (s *deltaSender) send(d *delta) error {
	if d.empty() {
		return nil
	}
	s.busy.Add(1)
	select {
	case s.in <- d:
	default:
		if s.started < senders {
			s.started++
			s.workers.Go(s.run)
		}
		s.in <- d
	}
	return s.failure()
}

func (s *deltaSender) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// wait waits until everything that was sent was handed over.
func (s *deltaSender) wait() { s.busy.Wait() }

// finish ends the goroutines when everything was handed over.
func (s *deltaSender) finish() (outcome, error) {
	close(s.in)
	s.workers.Wait()
	return s.out, s.err
}

func (s *deltaSender) run() {
	for d := range s.in {
		err := s.failure()
		if err == nil {
			err = s.hand(d)
		}
		s.mu.Lock()
		if s.err == nil {
			s.err = err
		}
		s.mu.Unlock()
		s.busy.Done()
	}
}

func (s *deltaSender) hand(d *delta) error {
	u := &d.update
	if len(u.Servers)+len(u.Environments)+len(u.RemovedServers)+len(u.RemovedEnvironments) == 0 && !u.Full {
		return s.submit(d.after)
	}
	u.Origin = s.r.o.Origin
	return s.submit(append([]statussync.Observation{u}, d.after...))
}

func (s *deltaSender) submit(obs []statussync.Observation) error {
	if len(obs) == 0 {
		return nil
	}
	updates, err := s.to.Submit(s.ctx, obs...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keep {
		s.out.updates = append(s.out.updates, updates...)
	}
	for _, e := range faultsIn(err) {
		known, news := false, false
		if e.Code == statussync.CodeConflict {
			known, news = s.r.fleet.refused(e.Location, e.Detail)
		}
		switch {
		case news:
			s.r.log.Warn("a row names what is defined elsewhere; it is passed over", "id", e.Location, "detail", e.Detail)
		case known: // told already, and offered again with each full read
		case e.Code == statussync.CodeUnavailable || e.Code == statussync.CodeInternal:
			return err
		default: // a server that went meanwhile
			s.r.log.Debug("an observation was refused", "error", e.Error())
		}
	}
	if err != nil && s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	return nil
}

// faultsIn lists the Errors of a Submit.
func faultsIn(err error) []*statussync.Error {
	switch e := err.(type) {
	case nil:
		return nil
	case interface{ Unwrap() []error }:
		var out []*statussync.Error
		for _, one := range e.Unwrap() {
			out = append(out, faultsIn(one)...)
		}
		return out
	case *statussync.Error:
		return []*statussync.Error{e}
	}
	return []*statussync.Error{{Code: statussync.CodeInternal, Err: err}}
}
