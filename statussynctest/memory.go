package statussynctest

import (
	"context"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/agentopia/statussync"
)

// MemoryJournal is a statussync.Journal in memory. All methods are safe for concurrent use, though as with every
// Journal only one Append may run at a time: an overlapping one is refused with CodeInternal.
//
// It survives nothing but Reopen. Its memory is not bounded; tests bound what they append.
type MemoryJournal struct {
	mu        sync.RWMutex
	appending bool
	closed    bool
	intercept Interceptor
	readFault func(ctx context.Context) error
	data      *memoryData
	openAlive time.Time
}

// memoryData is what outlives Reopen; guarded by the mu of the journal that is open.
type memoryData struct {
	head    statussync.Cursor
	deleted statussync.Cursor
	entries []statussync.Encoded // Seq deleted.Seq+1 … head.Seq, without holes
	records map[recordKey]statussync.Record
	alive   time.Time
	appends int
}

type recordKey struct {
	kind statussync.RecordKind
	id   string
}

// Interceptor stands in for Append: commit does the real thing and returns its error. An interceptor may call commit
// at any time while it runs, once, or not at all, and return what it likes: that is how a test makes an append fail,
// hang, be slow, or succeed although it reported a failure. It runs without a lock.
type Interceptor func(ctx context.Context, b *statussync.Batch, commit func() error) error

// NewJournal returns an empty journal.
func NewJournal() *MemoryJournal {
	return &MemoryJournal{data: &memoryData{records: map[recordKey]statussync.Record{}}}
}

// Reopen closes j and returns a journal with the same content, as after a restart of the process. Every later call on
// j itself fails. An Append that is under way in j (held by an interceptor) can't commit any more.
func (j *MemoryJournal) Reopen() *MemoryJournal {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	return &MemoryJournal{data: j.data, openAlive: j.data.alive}
}

// Intercept makes every later Append go through f; nil restores the plain one. Appends under way are not affected.
func (j *MemoryJournal) Intercept(f Interceptor) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.intercept = f
}

// Fail makes every later Append fail with err, without storing anything, until Fail(nil).
func (j *MemoryJournal) Fail(err error) {
	if err == nil {
		j.Intercept(nil)
		return
	}
	j.Intercept(func(context.Context, *statussync.Batch, func() error) error { return err })
}

// Slow makes every later Append take d longer, whatever its context says; 0 ends it.
func (j *MemoryJournal) Slow(d time.Duration) {
	if d <= 0 {
		j.Intercept(nil)
		return
	}
	j.Intercept(func(_ context.Context, _ *statussync.Batch, commit func() error) error {
		time.Sleep(d)
		return commit()
	})
}

// Hang makes every later Append hang, whatever its context says, until release is called: then those that hang are
// committed (succeed) or fail with CodeUnavailable, and later ones are plain again. entered receives a value when an
// Append begins to hang.
func (j *MemoryJournal) Hang() (entered <-chan struct{}, release func(succeed bool)) {
	in := make(chan struct{}, 1024)
	gate := make(chan struct{})
	var once sync.Once
	var ok bool
	j.Intercept(func(_ context.Context, _ *statussync.Batch, commit func() error) error {
		select {
		case in <- struct{}{}:
		default:
		}
		<-gate
		if ok {
			return commit()
		}
		return statussync.NewError(statussync.CodeUnavailable, "the store hung and gave up", nil)
	})
	return in, func(succeed bool) {
		once.Do(func() {
			j.Intercept(nil)
			ok = succeed
			close(gate)
		})
	}
}

// FailReads makes Read and History fail with what f returns, until FailReads(nil). f may block.
func (j *MemoryJournal) FailReads(f func(ctx context.Context) error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.readFault = f
}

// Expire deletes the entries up to and including seq, as retention does.
func (j *MemoryJournal) Expire(seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	d := j.data
	n := 0
	for n < len(d.entries) && d.entries[n].Seq <= seq {
		d.deleted = d.entries[n].Cursor()
		n++
	}
	d.entries = slices.Clone(d.entries[n:])
}

// Entries returns a copy of all entries that are stored, oldest first.
func (j *MemoryJournal) Entries() []statussync.Encoded {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return slices.Clone(j.data.entries)
}

// Appends returns how many Appends were committed.
func (j *MemoryJournal) Appends() int {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.data.appends
}

// Record returns the stored record of that kind and id.
func (j *MemoryJournal) Record(kind statussync.RecordKind, id string) (statussync.Record, bool) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	r, ok := j.data.records[recordKey{kind, id}]
	return r, ok
}

// StoredAlive returns the newest AliveAt that was appended.
func (j *MemoryJournal) StoredAlive() time.Time {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.data.alive
}

// Head implements statussync.Journal.
func (j *MemoryJournal) Head() (head, deleted statussync.Cursor) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.data.head, j.data.deleted
}

// AliveAt implements statussync.Journal.
func (j *MemoryJournal) AliveAt() time.Time { return j.openAlive }

var errClosed = statussync.NewError(statussync.CodeUnavailable, "the journal is closed", nil)

// Append implements statussync.Journal.
func (j *MemoryJournal) Append(ctx context.Context, b *statussync.Batch) error {
	j.mu.Lock()
	if j.appending {
		j.mu.Unlock()
		return statussync.NewError(statussync.CodeInternal, "two appends at a time: a journal has one writer", nil)
	}
	j.appending = true
	f := j.intercept
	j.mu.Unlock()
	defer func() {
		j.mu.Lock()
		j.appending = false
		j.mu.Unlock()
	}()
	if f == nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		return j.commit(b)
	}
	return f(ctx, b, func() error { return j.commit(b) })
}

func conflict(detail string) error {
	return statussync.NewError(statussync.CodeConflict, detail, nil)
}

func (j *MemoryJournal) commit(b *statussync.Batch) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return errClosed
	}
	d := j.data
	head := d.head
	if !b.Replace.IsZero() {
		if b.Replace.Seq > head.Seq {
			return conflict("replace lies beyond the head")
		}
		if b.Replace.Seq < d.deleted.Seq {
			return conflict("replace lies before what retention has deleted")
		}
		head = b.Replace
	}
	keep := len(d.entries) - int(d.head.Seq-head.Seq)
	if b.Epoch != "" {
		head.Epoch = b.Epoch
	}
	for i := range b.Entries {
		e := b.Entries[i]
		if e.Epoch != b.Entries[0].Epoch || (b.Epoch != "" && e.Epoch != b.Epoch) {
			return conflict("the entries of a batch must have one epoch, and the batch's if it has one")
		}
		if e.Epoch == "" || e.Seq != head.Seq+1 {
			return conflict("the entries do not continue the head")
		}
		head = e.Cursor()
	}
	// Nothing below can fail: the batch is stored whole.
	if keep < len(d.entries) {
		// A copy, so that slices that readers hold are never written over.
		d.entries = slices.Clone(d.entries[:keep])
	}
	d.entries = append(d.entries, b.Entries...)
	d.head = head
	for _, r := range b.Records {
		if r.Data == nil {
			delete(d.records, recordKey{r.Kind, r.ID})
			continue
		}
		d.records[recordKey{r.Kind, r.ID}] = r
	}
	if !b.AliveAt.IsZero() {
		d.alive = b.AliveAt
	}
	d.appends++
	return nil
}

func (j *MemoryJournal) beforeRead(ctx context.Context) error {
	j.mu.RLock()
	f, closed := j.readFault, j.closed
	j.mu.RUnlock()
	if closed {
		return errClosed
	}
	if f != nil {
		if err := f(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Read implements statussync.Journal.
func (j *MemoryJournal) Read(ctx context.Context, after statussync.Cursor, limit int, buf []statussync.Encoded) ([]statussync.Encoded, error) {
	if err := j.beforeRead(ctx); err != nil {
		return buf, err
	}
	j.mu.RLock()
	defer j.mu.RUnlock()
	d := j.data
	switch {
	case after.Epoch != d.head.Epoch:
		return buf, statussync.NewError(statussync.CodeExpired, "the cursor is of another epoch", nil)
	case after.Seq > d.head.Seq:
		return buf, statussync.NewError(statussync.CodeExpired, "the cursor lies beyond the head", nil)
	case after.Seq < d.deleted.Seq:
		return buf, statussync.NewError(statussync.CodeExpired, "entries after the cursor are deleted", nil)
	}
	rest := d.entries[after.Seq-d.deleted.Seq:]
	return append(buf, rest[:min(limit, len(rest))]...), nil
}

// History implements statussync.Journal.
func (j *MemoryJournal) History(ctx context.Context, q statussync.HistoryQuery) ([]statussync.Encoded, error) {
	if err := j.beforeRead(ctx); err != nil {
		return nil, err
	}
	j.mu.RLock()
	defer j.mu.RUnlock()
	var out []statussync.Encoded
	for i := len(j.data.entries) - 1; i >= 0 && len(out) < q.Limit; i-- {
		e := j.data.entries[i]
		switch {
		case e.ServerID != q.ServerID,
			q.Kind != "" && e.Kind != q.Kind,
			q.Before != 0 && e.Seq >= q.Before,
			!q.From.IsZero() && e.Timestamp.Before(q.From),
			!q.To.IsZero() && !e.Timestamp.Before(q.To):
			continue
		}
		out = append(out, e)
	}
	return out, nil
}

// Records implements statussync.Journal.
func (j *MemoryJournal) Records(ctx context.Context) iter.Seq2[statussync.Record, error] {
	return func(yield func(statussync.Record, error) bool) {
		j.mu.RLock()
		closed := j.closed
		list := make([]statussync.Record, 0, len(j.data.records))
		for _, r := range j.data.records {
			list = append(list, r)
		}
		j.mu.RUnlock()
		if closed {
			yield(statussync.Record{}, errClosed)
			return
		}
		for _, r := range list {
			if err := ctx.Err(); err != nil {
				yield(statussync.Record{}, err)
				return
			}
			if !yield(r, nil) {
				return
			}
		}
	}
}
