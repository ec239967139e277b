package rollup

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync"
)

const (
	// followEvery is how often the journal is looked at, and what follows is stored. It costs a look at the head where
	// nothing happened; a subscription would save that and be counted among the clients'.
	followEvery = time.Second
	followPage  = 1000        // entries read at once
	maxPending  = 4096        // spans that wait; then they are stored before more are read
	checkpoints = time.Minute // how often a position at which nothing happened is stored
	// publishBy is how much older than now an entry may be that is published now (hub.DefaultAppendTimeout, doubled).
	publishBy = 2 * time.Second
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
	seenAll bool // the beginning is done: what is stored and what waits is complete up to pos

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
	// Up to now everything is known: where the next start can't continue, only what comes after it is not.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
	defer cancel()
	_ = f.flush(end, 0)
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
		open[t.ServerID] = track{t.Class, t.Begin, t.State, t.Health}
	}
	f.mu.Lock()
	f.t = tracker{open: open, at: at.At}
	f.pos, f.seenAll = at.Cursor, !at.Cursor.IsZero()
	f.mu.Unlock()
	f.loaded, f.saved = true, at.At
	return nil
}

// follow follows until something fails.
func (f *follower) follow(ctx context.Context) error {
	if err := f.load(ctx); err != nil {
		return err
	}
	if !f.seenAll {
		if err := f.begin(ctx); err != nil {
			f.loaded = false // what is stored is a part of the beginning
			return err
		}
	}
	t := time.NewTicker(followEvery)
	defer t.Stop()
	for {
		if err := f.flush(ctx, checkpoints); err != nil { // what is left of a try before goes first
			return err
		}
		if err := f.catchUp(ctx); err != nil {
			return err
		}
		if err := f.flush(ctx, checkpoints); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// catchUp takes every entry from the position to the head.
func (f *follower) catchUp(ctx context.Context) error {
	for {
		asked, after := f.hub.Now(), f.pos
		list, next, err := f.hub.Updates(ctx, after, followPage, nil)
		if statussync.CodeOf(err) == statussync.CodeExpired {
			f.resyncs.Add(1)
			f.log.Warn("uptime could not go on where it was in the journal; what changed meanwhile is unknown", "cursor", after, "error", err)
			return f.begin(ctx)
		}
		if err != nil {
			return err
		}
		f.mu.Lock()
		for i := range list {
			f.t.entry(list[i].Entry)
		}
		f.pos = next
		if next == after {
			f.t.at = latest(f.t.at, asked.Add(-publishBy))
		}
		n := len(f.t.out)
		f.mu.Unlock()
		if next == after {
			return nil
		}
		if n >= maxPending {
			if err := f.flush(ctx, checkpoints); err != nil {
				return err
			}
		}
	}
}

// begin takes all statuses as of a position: after a gap they are compared with what is known; the first time everything
// that the journal has is read before.
func (f *follower) begin(ctx context.Context) error {
	views, _, at := f.hub.Servers(statussync.ServerQuery{Limit: math.MaxInt})
	all := make([]present, len(views))
	for i := range views {
		all[i] = present{views[i].Server.ID, views[i].Status}
	}
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
	return nil
}

// backfill reads the whole journal up to a position.
func (f *follower) backfill(ctx context.Context, to statussync.Cursor) error {
	var after statussync.Cursor
	for {
		list, next, err := f.hub.Updates(ctx, after, followPage, nil)
		if statussync.CodeOf(err) == statussync.CodeExpired {
			return nil // what is left is told by the statuses
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
			if err := f.flush(ctx, checkpoints); err != nil {
				return err
			}
		}
		if next == after || next.Seq >= to.Seq {
			return nil
		}
		after = next
	}
}

// flush stores what waits, with the position where it is one that can be continued; without anything that waits, a
// position that is older than every.
func (f *follower) flush(ctx context.Context, every time.Duration) error {
	f.mu.Lock()
	spans := f.t.out
	var at statussync.SpanCheckpoint
	if f.seenAll {
		at = statussync.SpanCheckpoint{Cursor: f.pos, At: f.t.at}
	}
	f.mu.Unlock()
	if !f.loaded || (len(spans) == 0 && (at.Cursor.IsZero() || at.At.Sub(f.saved) < every)) {
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
