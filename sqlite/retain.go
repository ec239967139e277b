package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/agentopia/statussync"
)

const (
	houseEvery = time.Second // between looks at the log's and the file's size
	// stepRows is how many entries one transaction of retention deletes at most: a few milliseconds of an append's time.
	stepRows = 256
	// stepPause is the least time between two steps; where a step took longer, the pause is as long as it took.
	stepPause = 2 * time.Millisecond
	// keepNewest entries are never deleted for size.
	keepNewest = 1000
	// vacuumPages is how many pages one step gives back to the file system.
	vacuumPages = 256
)

// logPages is how large the log may become, in pages: an eighth of MaxBytes, 1 to 16 MiB. There an append moves it into
// the file itself. Run does so at a quarter of it, beside the appends, and holds them for the rest at half of it.
func (o *Options) logPages() int64 { return min(max(o.MaxBytes/8/pageSize, 256), 4096) }

// Run keeps the store within its bounds until ctx ends; it then returns nil. It deletes in small steps that never make
// an Append wait for more than one of them, and moves the log into the file beside the appends. Trouble is logged once
// and tried again; it never ends Run. One Run at a time is enough; without it nothing is ever deleted.
func (s *Store) Run(ctx context.Context) error {
	t := time.NewTicker(houseEvery)
	defer t.Stop()
	for {
		if err := s.keepHouse(ctx, s.retain, "the store cannot be kept within its bounds"); errors.Is(err, errClosed) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// keepHouse does everything that is due, with what deletes old rows; trouble is what is logged where it fails.
func (s *Store) keepHouse(ctx context.Context, retain func(context.Context) error, trouble string) error {
	err := s.checkpoint(ctx)
	if err == nil {
		err = retain(ctx)
	}
	if err == nil {
		err = s.shrink(ctx)
	}
	if ctx.Err() != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.lastFail = ""
	case err.Error() != s.lastFail:
		s.lastFail = err.Error()
		s.log.Error(trouble, "error", err)
	}
	return err
}

// moveLog asks for a checkpoint of that mode. It returns how many pages of the log are not yet in the file, and how many it has in all.
func (s *Store) moveLog(ctx context.Context, mode string) (waiting, all int64, err error) {
	var busy, inLog, done int64
	err = s.reads.QueryRowContext(ctx, `PRAGMA wal_checkpoint(`+mode+`)`).Scan(&busy, &inLog, &done)
	return max(inLog-done, 0), inLog, err
}

// checkpoint moves the log into the file. Appends go on beside it; only where they keep adding to a log that is large
// already they are held for the little that is left.
func (s *Store) checkpoint(ctx context.Context) error {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return errClosed
	}
	waiting, all, err := s.moveLog(ctx, "NOOP")
	if err == nil && waiting >= s.opts.logPages()/4 {
		waiting, all, err = s.moveLog(ctx, "PASSIVE")
	}
	if err == nil && waiting > 0 && all >= s.opts.logPages()/2 {
		if err := s.take(ctx); err != nil {
			return err
		}
		_, _, err = s.moveLog(ctx, "PASSIVE")
		s.give()
	}
	return explain(s.path, "moving the log into the file", err)
}

// retain deletes what is too old or too much.
func (s *Store) retain(ctx context.Context) error {
	var total uint64
	for {
		begun := time.Now()
		n, err := s.retainStep(ctx)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		total += n
		if !pause(ctx, max(stepPause, time.Since(begun))) {
			break
		}
	}
	if total > 0 {
		_, deleted := s.Head()
		s.log.Info("deleted old entries", "count", total, "up_to", deleted)
	}
	return nil
}

// pause waits and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// tooMuch reports whether the used part of the file, and the log, come near to what is allowed: so near that the file
// itself, which also has free pages, stays below. A log that a reader keeps from shrinking does not count.
func (s *Store) tooMuch(ctx context.Context) (bool, error) {
	limit := s.opts.MaxBytes - s.opts.MaxBytes/16
	file, log := s.sizes()
	log = min(log, s.opts.logPages()*pageSize)
	if file+log <= limit {
		return false, nil
	}
	pages, free, err := s.pages(ctx)
	return (pages-free)*pageSize+log > limit, err
}

func (s *Store) pages(ctx context.Context) (all, free int64, err error) {
	err = s.reads.QueryRowContext(ctx, `SELECT (SELECT page_count FROM pragma_page_count), (SELECT freelist_count FROM pragma_freelist_count)`).Scan(&all, &free)
	return all, free, err
}

// retainStep deletes one step's worth of the oldest entries, and returns how many.
func (s *Store) retainStep(ctx context.Context) (uint64, error) {
	large, err := s.tooMuch(ctx)
	if err != nil {
		return 0, explain(s.path, "measuring", err)
	}
	cutoff := s.opts.Now().Add(-s.opts.Retention).UnixMilli()
	s.mu.Lock()
	due := s.head.Seq > s.deleted.Seq && (large || s.oldest < cutoff)
	s.mu.Unlock()
	if !due {
		return 0, nil
	}
	if err := s.take(ctx); err != nil {
		return 0, err
	}
	defer s.give()
	s.mu.Lock()
	head, deleted := s.head.Seq, s.deleted
	s.mu.Unlock()
	var to statussync.Cursor
	var oldest int64
	err = s.write("deleting old entries", func(w *writer) (err error) {
		if to, oldest, err = oldEnough(w, deleted, head, cutoff, large); err != nil || to.Seq == deleted.Seq {
			return err
		}
		if err := w.exec(`DELETE FROM entries WHERE seq <= ?`, int64(to.Seq)); err != nil {
			return err
		}
		if err := w.exec(`DELETE FROM segments WHERE segment < (? + 1) >> 11`, int64(to.Seq)); err != nil {
			return err
		}
		return w.setMeta(metaDeletedSeq, int64(to.Seq), metaDeletedEpoch, string(to.Epoch))
	})
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deleted, s.oldest = to, oldest
	return to.Seq - deleted.Seq, nil
}

// oldEnough finds the last of the oldest entries that are to go in one step, and the time of the one after it. Entries
// go strictly in order: where the clock was once set back, a newer one in front keeps an older one behind it.
func oldEnough(w *writer, deleted statussync.Cursor, head uint64, cutoff int64, large bool) (to statussync.Cursor, next int64, err error) {
	to = deleted
	st, err := w.stmt(`SELECT seq, ts FROM entries WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?`)
	if err != nil {
		return to, 0, err
	}
	rows, err := st.QueryContext(context.Background(), int64(deleted.Seq), int64(head), stepRows+1)
	if err != nil {
		return to, 0, err
	}
	defer func() { _ = rows.Close() }()
	for n := 0; rows.Next(); n++ {
		var seq, ts int64
		if err := rows.Scan(&seq, &ts); err != nil {
			return to, 0, err
		}
		if n == stepRows || (ts >= cutoff && (!large || uint64(seq)+keepNewest > head)) {
			next = ts
			break
		}
		to.Seq = uint64(seq)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || to.Seq == deleted.Seq {
		return to, next, err
	}
	st, err = w.stmt(`SELECT json ->> '$.epoch' FROM entries WHERE seq = ?`)
	if err == nil {
		var epoch sql.NullString
		err = st.QueryRowContext(context.Background(), int64(to.Seq)).Scan(&epoch)
		to.Epoch = statussync.Epoch(epoch.String)
	}
	return to, next, err
}

// shrink gives free pages back to the file system while the file is larger than allowed, in steps like retain.
func (s *Store) shrink(ctx context.Context) error {
	for {
		file, log := s.sizes()
		if file+log <= s.opts.MaxBytes {
			return nil
		}
		_, free, err := s.pages(ctx)
		if err != nil || free == 0 {
			return explain(s.path, "measuring", err)
		}
		begun := time.Now()
		if err := s.take(ctx); err != nil {
			return err
		}
		err = s.write("shrinking", func(w *writer) error { return w.exec(fmt.Sprintf(`PRAGMA incremental_vacuum(%d)`, vacuumPages)) })
		if err == nil {
			_, _, err = s.moveLog(ctx, "PASSIVE") // the file shrinks when the log reaches it
		}
		s.give()
		if err != nil {
			return explain(s.path, "shrinking", err)
		}
		if !pause(ctx, max(stepPause, time.Since(begun))) {
			return nil
		}
	}
}
