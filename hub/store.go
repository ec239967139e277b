package hub

import (
	"context"
	"fmt"
	"time"

	"github.com/agentopia/statussync"
)

// noteID names the hub's own record that stands in the store while a recovery is under way: from its first append to
// the first append after its last. Who finds it at the start can't know which of the entries that were told are here,
// and must begin a new epoch.
const noteID = "volatile"

const (
	retryFirst = time.Second
	retryMax   = 30 * time.Second
)

// flight is an append under way.
type flight struct {
	batch *statussync.Batch
	told  *batch // what is published when it has landed; nil for a recovery
	since time.Time
	flush bool // it holds everything that was dirty after the stop
	late  bool // it took too long; nobody waits for it any more

	// Of a recovery.
	recovery bool
	epoch    statussync.Epoch // the epoch that begins when it has landed; "" where the volatile one goes on
	final    bool             // it holds all that is missing
	holds    bool             // nothing is told while it is under way, so that it is the last
}

// volatile is what the writer keeps while the store can't be trusted.
type volatile struct {
	durable    bool
	cause      error                           // of the newest failure
	backlog    []statussync.Encoded            // told, and not known to be stored
	incomplete bool                            // there were more of them than the ring holds; the backlog is empty
	pending    map[recordKey]statussync.Record // of appends that failed
	order      []recordKey                     // keys of pending, oldest first
	retryAt    time.Time                       //
	backoff    time.Duration                   //
	trusted    bool                            // the last append of this recovery landed in time
	dropNote   bool                            // durable again; the note is to be deleted
	stopFailed bool                            // the hub is stopping and the store failed: it is not tried again
}

type recordKey struct {
	kind statussync.RecordKind
	id   string
}

// appendLoop makes the appends, one at a time, so that one that hangs holds this goroutine and nobody else.
func (w *writer) appendLoop() {
	for f := range w.work {
		ctx, cancel := context.WithTimeout(context.Background(), w.h.opts.AppendTimeout)
		begun := time.Now()
		err := w.j.Append(ctx, f.batch)
		cancel()
		w.h.count.appendNanos.Add(uint64(time.Since(begun)))
		w.appended <- err
	}
}

func (w *writer) fly(f *flight) {
	f.since = time.Now()
	w.flying = f
	w.work <- f // has room: nothing else is flying
}

// landed is told how the append under way ended.
func (w *writer) landed(err error) {
	f := w.flying
	w.flying = nil
	if err == nil {
		w.h.count.batches.Add(1)
		w.h.count.records.Add(uint64(len(f.batch.Records)))
		if !f.batch.AliveAt.IsZero() {
			w.nextAlive = time.Now().Add(aliveEvery - houseEvery/2)
		}
	} else {
		w.h.count.appendFails.Add(1)
	}
	switch {
	case f.recovery:
		w.recovered(f, err)
	case f.late:
		// What it held was told under the volatile epoch meanwhile. Whether it is stored or not, the recovery replaces it.
		w.retry(err)
	case err != nil:
		w.fail(err, f)
	default:
		w.confirmed = statussync.Cursor{Epoch: w.epoch, Seq: f.told.base + uint64(len(f.told.entries))}
		w.dropNote = w.dropNote && !hasNote(f.batch)
		w.publish(f.told)
		w.flushed = w.flushed || f.flush
	}
}

func hasNote(b *statussync.Batch) bool {
	for i := len(b.Records) - 1; i >= 0; i-- {
		if b.Records[i].Kind == statussync.RecordHub && b.Records[i].ID == noteID {
			return true
		}
	}
	return false
}

// overdue gives the append under way up.
func (w *writer) overdue() {
	f := w.flying
	f.late = true
	w.h.count.appendFails.Add(1)
	err := fmt.Errorf("an append took more than %v", w.h.opts.AppendTimeout)
	if f.recovery {
		f.holds = false
		w.trusted = false
		w.setCause(err)
		return
	}
	w.fail(err, f)
}

// fail opens a volatile epoch: the batch that could not be stored is told under it, and so is what follows.
func (w *writer) fail(err error, f *flight) {
	old := w.confirmed
	w.durable = false
	w.h.count.durable.Store(false)
	w.epoch = nextEpoch(w.epoch)
	w.h.count.epochs.Add(1)
	w.backlog, w.incomplete, w.trusted, w.dropNote = nil, false, false, false
	w.backoff = retryFirst
	w.retryAt = time.Now().Add(w.backoff)
	w.setCause(err)
	w.stash(f.batch.Records)
	w.h.log.Error("the store failed: going on in a volatile epoch", "error", err, "epoch", w.epoch, "after", old)

	// The append may still be reading the entries that it was given, so these are new ones.
	b := f.told
	again := make([]statussync.Encoded, len(b.entries))
	for i, e := range b.entries {
		c := *e.Entry
		c.Epoch = w.epoch
		again[i] = w.encode(&c)
	}
	b.entries = again
	w.keepVolatile(b)
	w.publish(b)
}

func (w *writer) setCause(err error) {
	w.cause = err
	text := statussync.CleanText(err.Error(), statussync.MaxErrorText)
	w.h.trouble.Store(&text)
}

// stash keeps the records of an append that failed. Later ones of the same thing replace earlier ones, so that they are
// bounded by what the engine knows.
func (w *writer) stash(records []statussync.Record) {
	for _, r := range records {
		if r.Kind == statussync.RecordHub && r.ID == noteID {
			continue
		}
		if w.pending == nil {
			w.pending = map[recordKey]statussync.Record{}
		}
		k := recordKey{r.Kind, r.ID}
		if _, ok := w.pending[k]; !ok {
			w.order = append(w.order, k)
		}
		w.pending[k] = r
	}
}

// keepVolatile remembers the entries of a batch that is told without being stored, as long as there are no more of
// them than the ring may hold.
func (w *writer) keepVolatile(b *batch) {
	if w.incomplete {
		return
	}
	if len(w.backlog)+len(b.entries) > w.h.opts.RingSize {
		w.incomplete = true
		w.backlog = nil
		w.h.log.Error("more entries than the ring holds could not be stored: another epoch begins when the store is back", "ring", w.h.opts.RingSize)
	}
	if !w.incomplete {
		w.backlog = append(w.backlog, b.entries...)
	}
	w.h.count.backlog.Store(int64(len(w.backlog)))
}

// retry plans the next try after an append that failed, or was late.
func (w *writer) retry(err error) {
	if err == nil { // late, but it came through: the store is back
		w.backoff = retryFirst
		w.retryAt = time.Now()
		return
	}
	w.setCause(err)
	w.trusted = false
	w.stopFailed = w.stopping
	w.retryAt = time.Now().Add(w.backoff)
	w.backoff = min(2*w.backoff, retryMax)
}

// resume starts the next append of what the store is missing. The first of a recovery only tries the store: told
// entries go on being told beside it. Once one has landed in time, the one that holds all that is missing also holds
// back what is concluded meanwhile, for at most AppendTimeout, so that it is the last.
func (w *writer) resume() {
	f := &flight{recovery: true, batch: &statussync.Batch{Replace: w.confirmed, AliveAt: w.h.clock.now()}}
	b := f.batch
	b.Records = append(b.Records, statussync.Record{Kind: statussync.RecordHub, ID: noteID, Data: []byte(w.epoch)})
	n := min(len(w.order), maxBatchRecords)
	for _, k := range w.order[:n] {
		b.Records = append(b.Records, w.pending[k])
		delete(w.pending, k)
	}
	w.order = append([]recordKey(nil), w.order[n:]...)
	more := len(w.order) > 0
	if !more {
		b.Records, more = w.eng.Dirty(b.Records, maxBatchRecords)
	}
	if w.incomplete {
		if !more && w.trusted {
			f.epoch = nextEpoch(w.epoch)
			b.Epoch = f.epoch
		}
	} else {
		n := min(len(w.backlog), maxBatchEntries)
		b.Entries = append([]statussync.Encoded(nil), w.backlog[:n]...)
		b.Epoch = w.epoch
		more = more || n < len(w.backlog)
	}
	f.final = !more && w.trusted
	f.holds = f.final
	w.fly(f)
}

// recovered is told how an append of a recovery ended.
func (w *writer) recovered(f *flight, err error) {
	if err != nil {
		var newer []statussync.Record // made while this append was under way; the engine's own are dirty again instead
		for _, r := range w.pending {
			if r.Kind == statussync.RecordHub {
				newer = append(newer, r)
			}
		}
		w.stash(f.batch.Records)
		w.stash(newer)
		if statussync.CodeOf(err) == statussync.CodeConflict {
			// The store is not where we left it: somebody else wrote to it, or put an older one in its place. What was told
			// can't be continued there.
			head, _ := w.j.Head()
			w.h.log.Error("the store's head is not ours: another epoch begins", "head", head, "ours", w.confirmed)
			w.confirmed = head
			w.incomplete, w.backlog = true, nil
			w.h.count.backlog.Store(0)
		}
		w.retry(err)
		return
	}
	if !w.incomplete { // it may have become so while this append was under way; the entries are then dropped anyway
		n := len(f.batch.Entries)
		w.confirmed = statussync.Cursor{Epoch: w.epoch, Seq: w.confirmed.Seq + uint64(n)}
		w.backlog = w.backlog[n:]
		w.h.count.backlog.Store(int64(len(w.backlog)))
	} else if n := len(f.batch.Entries); n > 0 {
		w.confirmed = f.batch.Entries[n-1].Cursor()
	}
	w.retryAt = time.Now()
	w.backoff = retryFirst
	w.trusted = !f.late
	if !f.final || f.late {
		return
	}
	w.durable = true
	w.h.count.durable.Store(true)
	w.dropNote = true
	w.cause = nil
	w.h.trouble.Store(nil)
	w.backlog, w.incomplete, w.pending, w.order = nil, false, nil, nil
	if f.epoch != "" {
		w.epoch = f.epoch
		w.seq = w.confirmed.Seq
		w.confirmed.Epoch = w.epoch
		w.h.count.epochs.Add(1)
	}
	w.h.log.Info("the store is back", "epoch", w.epoch, "head", w.confirmed)
	w.publish(&batch{base: w.seq}) // no entries: tells the reader where it stands now
}
