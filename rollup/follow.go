package rollup

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync"
)

const (
	followBatch = 256              // entries taken at once
	spansWait   = time.Second      // the longest that a span waits to be stored
	maxPending  = 4096             // spans that wait; then they are stored at once
	idle        = 10 * time.Second // how often a quiet follower notes that nothing happened
	checkpoints = time.Minute      // how often it stores that
	backfillBy  = 1000             // entries read at once where everything is read
)

// follower reads the journal into spans.
type follower struct {
	store Store
	hub   Hub
	log   *slog.Logger

	// These belong to run.
	loaded bool
	saved  time.Time // At of the stored checkpoint

	mu      sync.Mutex // held for moments; guards what follows. Only run changes it
	t       tracker    // t.out are the spans that are not stored yet
	pos     statussync.Cursor
	seenAll bool // the position was reached once: the stored spans are complete up to pos

	failures, resyncs, stored atomic.Uint64
}

// run follows until ctx ends, through all trouble.
func (f *follower) run(ctx context.Context) {
	last := ""
	for ctx.Err() == nil {
		err := f.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		f.failures.Add(1)
		if err.Error() != last {
			last = err.Error()
			f.log.Error("uptime does not follow the journal; it will catch up", "error", err)
		}
		t := time.NewTimer(retryAfter)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
	// What waits is in the journal; storing it now only saves the next start a moment.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
	defer cancel()
	_ = f.flush(end)
}

// load reads what is stored. Without a checkpoint what is there of spans is of a beginning that was not finished, and
// deleted.
func (f *follower) load(ctx context.Context) error {
	if f.loaded {
		return nil
	}
	tracks, at, err := f.store.Tracks(ctx)
	if err != nil {
		return err
	}
	if at.Cursor.IsZero() {
		if err := f.store.PutSpans(ctx, nil, at, true); err != nil {
			return err
		}
		tracks = nil
	}
	open := make(map[string]track, len(tracks))
	for _, t := range tracks {
		open[t.ServerID] = track{t.Class, t.Begin}
	}
	f.mu.Lock()
	f.t = tracker{open: open, at: at.At}
	f.pos, f.seenAll = at.Cursor, !at.Cursor.IsZero()
	f.mu.Unlock()
	f.loaded, f.saved = true, at.At
	return nil
}

// follow is one subscription's life.
func (f *follower) follow(ctx context.Context) error {
	if err := f.load(ctx); err != nil {
		return err
	}
	if err := f.flush(ctx); err != nil { // of the time before
		return err
	}
	if !f.seenAll {
		// A first try may have been given up halfway.
		f.loaded = false
		if err := f.load(ctx); err != nil {
			return err
		}
	}
	req := statussync.SubscribeRequest{Cursor: f.pos, Snapshot: f.pos.IsZero()}
	sub, err := f.hub.Subscribe(ctx, req)
	if err != nil {
		return err
	}
	defer sub.Close()
	var all []present
	var due time.Time // when what waits is to be stored; zero: nothing waits
	buf := make([]statussync.Event, 0, followBatch)
	for {
		wait := idle
		if !due.IsZero() {
			wait = max(time.Until(due), 0)
		}
		nctx, cancel := context.WithTimeout(ctx, wait)
		var nextErr error
		buf, nextErr = sub.Next(nctx, buf[:0])
		cancel()
		if nextErr != nil && (ctx.Err() != nil || !errors.Is(nextErr, context.DeadlineExceeded)) {
			return nextErr
		}
		for i := range buf {
			switch e := &buf[i]; e.Type {
			case statussync.EventResync:
				f.resyncs.Add(1)
				f.log.Warn("uptime could not go on where it was in the journal; what changed meanwhile is unknown", "reason", string(e.Reason))
				all = nil
			case statussync.EventSnapshot:
				for j := range e.Items {
					all = append(all, present{e.Items[j].Server.ID, e.Items[j].Status})
				}
			case statussync.EventSnapshotEnd:
				if err := f.begin(ctx, all, e.Cursor); err != nil {
					return err
				}
				all = nil
			case statussync.EventEntry:
				f.mu.Lock()
				f.t.entry(e.Entry)
				f.pos = e.Cursor
				f.mu.Unlock()
			}
		}
		if at, ok := sub.Bookmark(); ok && f.seenAll {
			now := f.hub.Now()
			f.mu.Lock()
			// An entry that is published just now may be a little older than now.
			f.pos, f.t.at = at, latest(f.t.at, now.Add(-time.Second))
			f.mu.Unlock()
		}
		f.mu.Lock()
		n, at := len(f.t.out), f.t.at
		f.mu.Unlock()
		switch {
		case n == 0 && (!f.seenAll || at.Sub(f.saved) < checkpoints):
			due = time.Time{}
			continue
		case n > 0 && n < maxPending && due.IsZero():
			due = time.Now().Add(spansWait)
			continue
		case n > 0 && n < maxPending && time.Now().Before(due):
			continue
		}
		due = time.Time{}
		if err := f.flush(ctx); err != nil {
			return err
		}
	}
}

// begin takes a whole snapshot as of a position: after a gap it is compared with what is known; the first time
// everything that the journal has is read before.
func (f *follower) begin(ctx context.Context, all []present, at statussync.Cursor) error {
	if !f.seenAll {
		if err := f.backfill(ctx, at); err != nil {
			return err
		}
	}
	now := f.hub.Now()
	f.mu.Lock()
	f.t.compare(all, now)
	f.pos, f.seenAll = at, true
	f.mu.Unlock()
	return f.flush(ctx)
}

// backfill reads the whole journal up to a position.
func (f *follower) backfill(ctx context.Context, to statussync.Cursor) error {
	var after statussync.Cursor
	for ctx.Err() == nil {
		list, next, err := f.hub.Updates(ctx, after, backfillBy, nil)
		if statussync.CodeOf(err) == statussync.CodeExpired {
			return nil // what is left is told by the snapshot
		}
		if err != nil {
			return err
		}
		f.mu.Lock()
		for i := range list {
			if list[i].Seq <= to.Seq {
				f.t.entry(list[i].Entry)
			}
		}
		n := len(f.t.out)
		f.mu.Unlock()
		if n >= maxPending {
			if err := f.flush(ctx); err != nil {
				return err
			}
		}
		if next == after || next.Seq >= to.Seq {
			return nil
		}
		after = next
	}
	return ctx.Err()
}

// flush stores what waits, and the position where it is one that can be continued.
func (f *follower) flush(ctx context.Context) error {
	f.mu.Lock()
	spans := f.t.out
	var at statussync.SpanCheckpoint
	if f.seenAll {
		at = statussync.SpanCheckpoint{Cursor: f.pos, At: f.t.at}
	}
	f.mu.Unlock()
	if !f.loaded || (len(spans) == 0 && (at.Cursor.IsZero() || at.At.Equal(f.saved))) {
		return nil
	}
	if err := f.store.PutSpans(ctx, spans, at, false); err != nil {
		return err
	}
	f.stored.Add(uint64(len(spans)))
	if !at.Cursor.IsZero() {
		f.saved = at.At
	}
	f.mu.Lock()
	f.t.out = append([]statussync.Span(nil), f.t.out[len(spans):]...)
	f.mu.Unlock()
	return nil
}

// has reports whether the journal has a server of that id now, as far as it was followed.
func (f *follower) has(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.t.open[id]
	return ok
}

// waiting returns the spans that are not stored yet, by server; ids nil: of all.
func (f *follower) waiting(ids []string) map[string][]statussync.Span {
	want := map[string]bool{}
	for _, id := range ids {
		want[id] = true
	}
	out := map[string][]statussync.Span{}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.t.out {
		if ids == nil || want[s.ServerID] {
			out[s.ServerID] = append(out[s.ServerID], s)
		}
	}
	return out
}
