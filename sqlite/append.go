package sqlite

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/agentopia/statussync"
)

const (
	segmentShift = 11 // as in the migrations: seq >> 11
	entryCols    = 5
	recordCols   = 3
	// keepArgs bounds the memory that is kept from one Append to the next, in values.
	keepArgs = 64 << 10

	cutEntries  = `DELETE FROM entries WHERE seq > ?`
	cutSegments = `DELETE FROM segments WHERE segment > ? >> 11`
)

// plan is a batch that was found good, as rows.
type plan struct {
	head     statussync.Cursor // after it
	base     uint64            // what it continues
	cut      bool              // entries after base are to be deleted first
	newEpoch bool
	oldest   int64 // ts of its first entry
	entries  []any
	segments []any
	records  []any
	removed  []any // kind, id
	alive    any   // nil: not said

	// Guarded by Store.mu.
	settled   bool // the outcome is decided
	abandoned bool // nobody waits for the outcome: it counts as failed
}

// Append implements statussync.Journal. Beside the contract's reasons, CodeConflict is returned where entries of one
// batch have different epochs, where Replace lies beyond the head, or before what retention has deleted; CodeInvalid
// where an entry has no JSON or a record no kind. Nothing is then changed.
//
// It waits for its turn, for the disk with SyncFull, and for at most one step of retention. When ctx ends first, it
// returns at once with ctx's error in the chain and CodeUnavailable; the package documentation says what then holds.
// The elements of b.Entries and b.Records are read until then, those of a batch that was given up until a later Append
// or Close returns: they must not be changed.
func (s *Store) Append(ctx context.Context, b *statussync.Batch) error {
	if err := s.take(ctx); err != nil {
		return err
	}
	p, err := s.plan(b)
	if err != nil || p == nil {
		s.give()
		return err
	}
	done := make(chan error, 1)
	go func() {
		done <- s.commit(ctx, p)
		s.give()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	s.mu.Lock()
	if p.settled {
		s.mu.Unlock()
		return <-done
	}
	p.abandoned = true
	s.mu.Unlock()
	return givenUp("the append", ctx.Err())
}

// commit makes p durable and its head visible. It runs with the turn.
func (s *Store) commit(ctx context.Context, p *plan) error {
	err := s.write("appending", func(w *writer) error { return s.store(ctx, w, p) })
	s.mu.Lock()
	defer s.mu.Unlock()
	p.settled = true
	switch {
	case err != nil:
	case p.abandoned:
		s.tail = true
	default:
		s.tail = false
		s.trouble = nil
		s.head = p.head
		if p.base == s.deleted.Seq {
			s.oldest = p.oldest
		}
	}
	return err
}

var (
	insertEntries  = newBulk(`INSERT INTO entries (seq, server_id, ts, labels, json)`, entryCols, ``)
	upsertRecords  = newBulk(`INSERT INTO records (kind, id, data)`, recordCols, ` ON CONFLICT (kind, id) DO UPDATE SET data = excluded.data`)
	upsertSegments = newBulk(`INSERT INTO segments (segment, ts_min, ts_max)`, 3,
		` ON CONFLICT (segment) DO UPDATE SET ts_min = min(ts_min, excluded.ts_min), ts_max = max(ts_max, excluded.ts_max)`)
)

func (s *Store) store(ctx context.Context, w *writer, p *plan) error {
	if p.cut {
		if err := w.exec(cutEntries, int64(p.base)); err != nil {
			return err
		}
		if err := w.exec(cutSegments, int64(p.base)); err != nil {
			return err
		}
	}
	for _, r := range []struct {
		b    *bulk
		args []any
	}{{insertEntries, p.entries}, {upsertSegments, p.segments}, {upsertRecords, p.records}} {
		if err := w.rows(r.b, r.args, ctx.Err); err != nil {
			return err
		}
	}
	for i := 0; i < len(p.removed); i += 2 {
		if err := w.exec(`DELETE FROM records WHERE kind = ? AND id = ?`, p.removed[i], p.removed[i+1]); err != nil {
			return err
		}
	}
	if p.newEpoch {
		if err := w.setMeta(metaHeadEpoch, string(p.head.Epoch)); err != nil {
			return err
		}
	}
	if p.alive != nil {
		if err := w.setMeta(metaAliveAt, p.alive); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// plan checks a batch against the head and turns it into rows. It returns nil where there is nothing to do.
func (s *Store) plan(b *statussync.Batch) (*plan, error) {
	s.mu.Lock()
	head, deleted := s.head, s.deleted
	s.mu.Unlock()
	p := &plan{head: head, cut: s.tail}
	if r := b.Replace; !r.IsZero() {
		switch {
		case r.Seq > head.Seq:
			return nil, conflict("replace at %v lies beyond the head, %v", r, head)
		case r.Seq < deleted.Seq:
			return nil, conflict("replace at %v lies before %v, up to which entries are deleted", r, deleted)
		}
		p.head = r
		p.cut = p.cut || r.Seq < head.Seq
	}
	p.base = p.head.Seq
	if b.Epoch != "" {
		p.head.Epoch = b.Epoch
	}
	if err := s.planEntries(p, b); err != nil {
		return nil, err
	}
	if err := p.planRecords(b.Records); err != nil {
		return nil, err
	}
	// The file may name another epoch than the head where something is to be cut off.
	p.newEpoch = p.head.Epoch != head.Epoch || p.cut
	if !b.AliveAt.IsZero() {
		p.alive = b.AliveAt.UnixNano()
	}
	if len(b.Entries)+len(b.Records) == 0 && p.alive == nil && !p.newEpoch && p.head == head {
		return nil, nil
	}
	return p, nil
}

func (s *Store) planEntries(p *plan, b *statussync.Batch) error {
	args := s.rowArgs[:0]
	var lo, hi int64
	for i := range b.Entries {
		e := &b.Entries[i]
		switch {
		case e.Entry == nil || len(e.JSON) == 0:
			return statussync.Invalid(fmt.Sprintf("entries[%d]", i), "has no entry or no JSON")
		case e.Epoch == "" || e.Epoch != b.Entries[0].Epoch || (b.Epoch != "" && e.Epoch != b.Epoch):
			return conflict("entry %v: all entries of a batch have one epoch, the batch's if it names one", e.Cursor())
		case e.Seq != p.head.Seq+1 || e.Seq > math.MaxInt64:
			return conflict("entry %v does not continue the head, %v", e.Cursor(), p.head)
		}
		p.head = e.Cursor()
		ts := e.Timestamp.UnixMilli()
		if i == 0 {
			p.oldest = ts
		}
		// A segment's row is due where it ends, and at the end of the batch.
		if i == 0 || e.Seq&(1<<segmentShift-1) == 0 {
			if i > 0 {
				p.segments = append(p.segments, int64((e.Seq-1)>>segmentShift), lo, hi)
			}
			lo, hi = ts, ts
		}
		lo, hi = min(lo, ts), max(hi, ts)
		args = append(args, int64(e.Seq), textOrNull(e.ServerID), ts, labelsText(e.Labels), e.JSON)
	}
	if len(b.Entries) > 0 {
		p.segments = append(p.segments, int64(p.head.Seq>>segmentShift), lo, hi)
	}
	p.entries = args
	if cap(args) <= keepArgs {
		s.rowArgs = args
	} else {
		s.rowArgs = nil
	}
	return nil
}

type recordKey struct {
	kind statussync.RecordKind
	id   string
}

func (p *plan) planRecords(records []statussync.Record) error {
	var last map[recordKey]int // the last word on each record; only needed where some are deleted
	for i := range records {
		if records[i].Kind == "" {
			return statussync.Invalid(fmt.Sprintf("records[%d].kind", i), "is empty")
		}
		if records[i].Data == nil && last == nil {
			last = make(map[recordKey]int, len(records))
		}
	}
	if last != nil {
		for i, r := range records {
			last[recordKey{r.Kind, r.ID}] = i
		}
	}
	p.records = make([]any, 0, len(records)*recordCols)
	for i, r := range records {
		switch {
		case last != nil && last[recordKey{r.Kind, r.ID}] != i:
		case r.Data == nil:
			p.removed = append(p.removed, string(r.Kind), r.ID)
		default:
			p.records = append(p.records, string(r.Kind), r.ID, r.Data)
		}
	}
	return nil
}

func textOrNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// labelsText is the labels as a JSON object with sorted keys, or nil.
func labelsText(labels map[string]string) any {
	if labels == nil {
		return nil
	}
	keys := make([]string, 0, len(labels))
	for k := range labels {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	b := append(make([]byte, 0, 64), '{')
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = statussync.AppendJSONString(b, k)
		b = append(b, ':')
		b = statussync.AppendJSONString(b, labels[k])
	}
	b = append(b, '}')
	return string(b)
}
