package httpapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Sizes of what a stream takes and writes at once.
const (
	fewEvents  = 8        // while little happens: the buffer is held by every idle stream
	manyEvents = 256      // while there is more than that
	writeChunk = 64 << 10 // bytes; a longer write is cut up, so that a slow but reading client is not taken for a dead one
)

// noEpoch is an epoch that no log has: a name has something after the "e".
const noEpoch statussync.Epoch = "e"

// eventStream is an SSE stream (docs/protocols.md §3). Its handler's goroutine does everything.
type eventStream struct {
	waker waker
	why   atomic.Pointer[closeReason]
	dueAt atomic.Int64 // Unix nanoseconds
}

func (s *eventStream) due(now time.Time) bool { return now.UnixNano() >= s.dueAt.Load() }
func (s *eventStream) wake()                  { s.waker.wake() }
func (s *eventStream) cut()                   { s.waker.wake() } // a blocked write ends by its own deadline

func (s *eventStream) end(why closeReason) {
	s.why.CompareAndSwap(nil, &why)
	s.waker.wake()
}

// stream serves the live stream as server-sent events. What is wrong with the request is answered before it begins,
// except a Last-Event-ID: an EventSource that meets anything but 200 stops for good, so it gets a resync instead.
func (a *API) stream(w http.ResponseWriter, r *http.Request) {
	if err := a.checkOrigin(r); err != nil {
		a.fail(w, r, err)
		return
	}
	req, err := streamRequest(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	cred := requestOf(r).cred
	limits := a.limitsOf(cred)
	if err := limits.checkFilter(req.Filter); err != nil {
		a.fail(w, r, inQuery(err))
		return
	}
	if !a.limits.connect(cred.Name, limits.Connections) {
		a.fail(w, r, withRetry{statussync.NewError(statussync.CodeRateLimited, tooMany("connections", limits.Connections, "connections"), nil), 30})
		return
	}
	defer a.limits.disconnect(cred.Name)
	if r.Method != http.MethodHead { // which begins no stream
		if !a.limits.subscribe(cred.Name, limits.Subscriptions) {
			a.fail(w, r, withRetry{statussync.NewError(statussync.CodeRateLimited, tooMany("subscriptions", limits.Subscriptions, "subscriptions"), nil), 30})
			return
		}
		defer a.limits.unsubscribe(cred.Name)
	}
	if !a.streams.enter() {
		a.fail(w, r, statussync.NewError(statussync.CodeUnavailable, "the service is stopping", nil))
		return
	}
	defer a.streams.leave()
	if r.Method == http.MethodHead { // its answer has no body, so it would have no end either
		beginStream(w)
		return
	}
	s := &eventStream{waker: waker{parent: r.Context()}}
	a.streams.add(s)
	slow := false
	defer func() { a.streams.remove(s, 0, slow) }()
	sub, err := a.opts.Hub.Subscribe(r.Context(), req)
	if err != nil {
		a.fail(w, r, inQuery(err))
		return
	}
	defer sub.Close()
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // the server's limit on reading a request must not end a stream
	beginStream(w)

	out := &eventWriter{a: a, w: w, rc: rc, cred: cred.Name, perSecond: limits.ReplayBytesPerSecond, replay: a.opts.Hub.Ready().Head, mark: req.Cursor == statussync.Cursor{} && !req.Snapshot}
	if req.Mode == statussync.ModeLatest {
		out.latest = true
		shortQueue(r.Context())
	}
	out.buf = append(out.buf, "retry: 2000\n\n"...)
	err = s.run(r.Context(), a, sub, out, cred)
	_ = rc.SetWriteDeadline(time.Now().Add(a.opts.WriteTimeout)) // for what the server writes when this returns
	slow = errors.Is(err, os.ErrDeadlineExceeded)
}

func beginStream(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
}

// run tells events until the stream ends. The error is that of a write.
func (s *eventStream) run(ctx context.Context, a *API, sub statussync.Subscription, out *eventWriter, cred *Credential) error {
	expires, checked := cred.ExpiresAt, uint64(0)
	buf := make([]statussync.Event, 0, fewEvents)
	bookmarkAt := a.by(time.Now(), a.opts.BookmarkEvery)
	for {
		armed := s.waker.arm()
		now := time.Now()
		if s.why.Load() != nil || ctx.Err() != nil || (!expires.IsZero() && !now.Before(expires)) {
			return nil
		}
		if g := a.generation.Load(); g != checked {
			if checked = g; !a.current(cred) {
				return nil
			}
		}
		cred.session.touch(now)
		if !now.Before(bookmarkAt) {
			if at, ok := sub.Bookmark(); ok {
				out.bookmark(at)
				bookmarkAt = a.by(now, a.opts.BookmarkEvery)
			}
		}
		if !now.Before(a.by(out.wrote, a.opts.CommentEvery)) && len(out.buf) == 0 {
			out.buf = append(out.buf, ":\n\n"...)
		}
		if err := out.flush(); err != nil {
			return err
		}
		next := earliest(bookmarkAt, a.by(out.wrote, a.opts.CommentEvery), expires)
		s.dueAt.Store(next.UnixNano())
		if wait := time.Until(out.notBefore); wait > 0 {
			pause(armed, wait)
			continue
		}
		// In mode latest few are taken at once: what is taken later is newer.
		events, err := sub.Next(armed, buf[:0])
		for i := range events {
			if werr := out.event(&events[i]); werr != nil {
				return werr
			}
		}
		clear(events)
		switch {
		case len(events) == cap(buf) && cap(buf) == fewEvents && !out.latest:
			buf = make([]statussync.Event, 0, manyEvents)
		case len(events) < fewEvents && cap(buf) > fewEvents:
			buf = make([]statussync.Event, 0, fewEvents)
		}
		if werr := out.flush(); werr != nil {
			return werr
		}
		if err != nil && armed.Err() == nil {
			return nil // the hub stops; the client comes again and resumes
		}
	}
}

// latestBuffer is how many bytes the kernel is asked to hold for a stream in mode latest: what waits there grows old. It
// is some 16 updates.
const latestBuffer = 8 << 10

type connKey struct{}

// ConnContext lets streams in mode latest keep the queue of their connection short. It is meant for the ConnContext of
// the http.Server that serves an API; without it, a client of GET /stream that reads slowly reads old updates, those
// that wait in the kernel, before the newest ones.
func ConnContext(ctx context.Context, nc net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, nc)
}

func shortQueue(ctx context.Context) {
	nc := ctx.Value(connKey{})
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok { // TLS
		nc = t.NetConn()
	}
	if t, ok := nc.(interface{ SetWriteBuffer(int) error }); ok {
		_ = t.SetWriteBuffer(latestBuffer) // a hint
	}
}

// pause waits until ctx ends, or for d.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// earliest returns the first of the times that are not zero.
func earliest(times ...time.Time) time.Time {
	var min time.Time
	for _, t := range times {
		if !t.IsZero() && (min.IsZero() || t.Before(min)) {
			min = t
		}
	}
	return min
}

// streamParams are what /stream knows beside filterParams.
var streamParams = []string{"cursor", "snapshot", "mode"}

func streamRequest(r *http.Request) (req statussync.SubscribeRequest, err error) {
	q := r.URL.Query()
	if err := knownParams(q, filterParams, streamParams); err != nil {
		return req, err
	}
	if req.Filter, err = filterParam(q); err != nil {
		return req, err
	}
	if req.Snapshot, err = boolParam(q, "snapshot"); err != nil {
		return req, err
	}
	req.Mode = statussync.Mode(q.Get("mode"))
	req.Filter.Leave = req.Filter.Leave || req.Snapshot || req.Mode == statussync.ModeLatest
	if req.Cursor, err = cursorParam(q, "cursor"); err != nil {
		return req, err
	}
	if err := wire.CheckRequest(req); err != nil {
		return req, inQuery(err)
	}
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		// An EventSource reconnects with the URL that it began with. It has its snapshot already, and is told by a
		// resync, which brings a new one, where its position can't be continued.
		req.Snapshot = false
		if req.Cursor, err = statussync.ParseCursor(id); err != nil {
			req.Cursor, err = statussync.Cursor{Epoch: noEpoch, Seq: 1}, nil
		}
	}
	return req, err
}

// eventWriter writes events with a deadline per write.
type eventWriter struct {
	a    *API
	w    http.ResponseWriter
	rc   *http.ResponseController
	cred string
	// perSecond is how many bytes of replay the credential may read.
	perSecond int
	buf       []byte
	wrote     time.Time         // when something was last written
	last      statussync.Cursor // the newest id that was written
	mark      bool              // "subscribed" is a position to resume from, also where nothing is recovered: no snapshot comes
	replay    statussync.Cursor // what was there when the subscription began, and counts as replay
	latest    bool              // mode latest

	replayed  int       // bytes of replay in buf
	notBefore time.Time // the credential has read too much; go on then
}

func (o *eventWriter) event(e *statussync.Event) error {
	var name string
	id := false
	switch e.Type {
	case statussync.EventEntry:
		name, id = string(wire.FrameOf(e.Entry.Kind)), true
		o.a.streams.entries.Add(1)
	case statussync.EventSubscribed:
		name, id = string(e.Type), o.mark || e.Recovered
	case statussync.EventSnapshotEnd:
		name, id = string(e.Type), true
	default:
		name = string(e.Type)
	}
	from := len(o.buf)
	if id {
		o.id(e.Cursor)
	}
	o.buf = append(o.buf, "event: "...)
	o.buf = append(o.buf, name...)
	o.buf = append(o.buf, "\ndata: "...)
	o.buf = wire.AppendEventData(o.buf, e)
	o.buf = append(o.buf, "\n\n"...)
	if isReplay(e, o.replay) {
		o.replayed += len(o.buf) - from
	}
	if len(o.buf) >= writeChunk {
		return o.flush()
	}
	return nil
}

// isReplay reports whether an event was not caused by something new.
func isReplay(e *statussync.Event, head statussync.Cursor) bool {
	return e.Type == statussync.EventSnapshot || (e.Type == statussync.EventEntry && e.Entry.Seq <= head.Seq)
}

func (o *eventWriter) id(at statussync.Cursor) {
	o.buf = append(o.buf, "id: "...)
	o.buf = wire.AppendCursor(o.buf, at)
	o.buf = append(o.buf, '\n')
	o.last = at
}

// bookmark writes a block that only moves the client's Last-Event-ID; EventSource tells nobody of it.
func (o *eventWriter) bookmark(at statussync.Cursor) {
	if at != o.last {
		o.id(at)
		o.buf = append(o.buf, '\n')
	}
}

func (o *eventWriter) flush() error {
	if len(o.buf) == 0 {
		return nil
	}
	for b := o.buf; len(b) > 0; {
		n := min(len(b), writeChunk)
		by := time.Now().Add(o.a.opts.WriteTimeout)
		_ = o.rc.SetWriteDeadline(by) // no deadlines: in tests only
		_, err := o.w.Write(b[:n])
		if err == nil {
			err = o.rc.Flush()
		}
		if err != nil {
			if !time.Now().Before(by) && !errors.Is(err, os.ErrDeadlineExceeded) {
				err = errors.Join(os.ErrDeadlineExceeded, err) // HTTP/2 says only that the stream is closed
			}
			return err
		}
		b = b[n:]
	}
	// In HTTP/2 a deadline cuts the stream when it passes, whether or not something is being written then.
	_ = o.rc.SetWriteDeadline(time.Time{})
	if o.wrote = time.Now(); cap(o.buf) > 4*writeChunk {
		o.buf = nil // a snapshot's; not worth keeping
	}
	o.buf = o.buf[:0]
	if o.replayed > 0 {
		o.notBefore = o.wrote.Add(o.a.limits.replayed(o.cred, o.perSecond, o.replayed))
		o.replayed = 0
	}
	return nil
}
