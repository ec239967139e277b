package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/agentopia/statussync"
)

func expired(detail string) error {
	return statussync.NewError(statussync.CodeExpired, detail, nil)
}

// Read implements statussync.Journal. It never returns entries beyond the Head of the moment at which it was called, and
// may return fewer than limit only where there are no more up to there. A position of the head's epoch that lies before
// that epoch's beginning reads on through the entries of earlier epochs.
func (s *Store) Read(ctx context.Context, after statussync.Cursor, limit int, buf []statussync.Encoded) ([]statussync.Encoded, error) {
	head, err := s.readable(after)
	if err != nil || limit < 1 || after.Seq == head.Seq {
		return buf, err
	}
	n := len(buf)
	rows, err := s.read.QueryContext(ctx, int64(after.Seq), int64(head.Seq), limit)
	if err == nil {
		buf, err = scan(rows, buf)
	}
	if err != nil {
		return buf[:n], explain(s.path, "reading", err)
	}
	// Retention, or an append that replaces, may have been here meanwhile.
	if _, err := s.readable(after); err != nil {
		return buf[:n], err
	}
	want := after.Seq
	for _, e := range buf[n:] {
		if want++; e.Seq != want {
			break
		}
	}
	if got := len(buf) - n; got == 0 || want != after.Seq+uint64(got) {
		return buf[:n], damaged(s.path, fmt.Sprintf("an entry after %v is missing", after))
	}
	return buf, nil
}

// readable returns the head, or why nothing can be read after that position.
func (s *Store) readable(after statussync.Cursor) (head statussync.Cursor, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return s.head, errClosed
	case after.Epoch != s.head.Epoch:
		return s.head, expired("the cursor is of another epoch")
	case after.Seq > s.head.Seq:
		return s.head, expired("the cursor lies beyond the newest entry")
	case after.Seq < s.deleted.Seq:
		return s.head, expired("entries after the cursor have been deleted")
	}
	return s.head, nil
}

// History implements statussync.Journal. A server's history is found without reading those of others, and only where
// its times can be.
func (s *Store) History(ctx context.Context, q statussync.HistoryQuery) ([]statussync.Encoded, error) {
	s.mu.Lock()
	newest, closed := s.head.Seq, s.closed
	s.mu.Unlock()
	if closed {
		return nil, errClosed
	}
	if q.Limit < 1 {
		return nil, statussync.Invalid("limit", "must be at least 1")
	}
	if q.Before != 0 {
		newest = min(newest, q.Before-1)
	}
	if newest == 0 || q.ServerID == "" {
		return nil, nil
	}
	from, to := int64(math.MinInt64), int64(math.MaxInt64)
	if !q.From.IsZero() {
		from = ceilMilli(q.From)
	}
	if !q.To.IsZero() {
		to = ceilMilli(q.To)
	}
	rows, err := s.history.QueryContext(ctx, int64(newest), from, to, q.ServerID, q.Limit, string(q.Kind))
	var out []statussync.Encoded
	if err == nil {
		out, err = scan(rows, nil)
	}
	if err != nil {
		return nil, explain(s.path, "reading", err)
	}
	return out, nil
}

// ceilMilli is the first whole millisecond that is not before t: entries have whole ones.
func ceilMilli(t time.Time) int64 {
	ms := t.UnixMilli()
	if t.Nanosecond()%int(time.Millisecond) != 0 {
		ms++
	}
	return ms
}

// scan appends the entries of rows of seq, labels, json, and closes rows.
func scan(rows *sql.Rows, buf []statussync.Encoded) (_ []statussync.Encoded, err error) {
	defer func() {
		if cerr := rows.Close(); err == nil {
			err = cerr
		}
	}()
	known := map[string]map[string]string{} // a server's labels seldom change from one entry to the next
	for rows.Next() {
		var seq int64
		var labels, raw sql.RawBytes
		if err := rows.Scan(&seq, &labels, &raw); err != nil {
			return buf, err
		}
		e := statussync.Encoded{Entry: new(statussync.Entry), JSON: append([]byte(nil), raw...)}
		if err := e.UnmarshalJSON(e.JSON); err != nil {
			return buf, fmt.Errorf("entry %d: %w", seq, err)
		}
		if e.Seq != uint64(seq) {
			return buf, fmt.Errorf("entry %d says that it is %d", seq, e.Seq)
		}
		if labels != nil {
			m, ok := known[string(labels)]
			if !ok {
				if err := json.Unmarshal(labels, &m); err != nil {
					return buf, fmt.Errorf("labels of entry %d: %w", seq, err)
				}
				known[string(labels)] = m
			}
			e.Labels = m
		}
		buf = append(buf, e)
	}
	return buf, rows.Err()
}

// Records implements statussync.Journal. It holds one read connection and one consistent state of the file while the
// loop runs, so the loop must not take its time while entries are being appended: the write-ahead log grows meanwhile.
func (s *Store) Records(ctx context.Context) iter.Seq2[statussync.Record, error] {
	return func(yield func(statussync.Record, error) bool) {
		fail := func(err error) { yield(statussync.Record{}, explain(s.path, "reading", err)) }
		s.mu.Lock()
		closed := s.closed
		s.mu.Unlock()
		if closed {
			fail(errClosed)
			return
		}
		rows, err := s.reads.QueryContext(ctx, `SELECT kind, id, data FROM records`)
		if err != nil {
			fail(err)
			return
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			r := statussync.Record{Data: []byte{}}
			var data sql.RawBytes
			if err := rows.Scan(&r.Kind, &r.ID, &data); err != nil {
				fail(err)
				return
			}
			r.Data = append(r.Data, data...)
			if !yield(r, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			fail(err)
		}
	}
}
