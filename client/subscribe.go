package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/coder/websocket"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Defaults and limits of a subscription.
const (
	// DefaultIdleAfter is how long a connection may show no sign of life. The service pings every 25 s
	// (docs/protocols.md §2), so this is two pings missed.
	DefaultIdleAfter = 60 * time.Second
	// DefaultBackoffMin and DefaultBackoffMax bound the wait before a reconnect: a random time (full jitter) between 0
	// and a cap that starts at the former and doubles up to the latter.
	DefaultBackoffMin = 250 * time.Millisecond
	DefaultBackoffMax = 30 * time.Second

	handshakeTimeout = 10 * time.Second
	maxFrame         = 16 << 20 // bytes; a page of a snapshot is the largest
	maxTracked       = 1 << 20  // servers whose versions are followed; others are delivered unchecked
)

// EventBookmark says that everything up to Cursor was considered for this subscription. It is worth storing where a
// program wants to resume after a restart of its own.
const EventBookmark statussync.EventType = "bookmark"

// ResyncGap is the reason of a resync that the client made: what came broke the order or number that the service
// promises. A snapshot follows as after any other resync.
const ResyncGap statussync.ResyncReason = "gap"

// Event is one thing that a subscriber is told. Which fields are set depends on Type.
//
// A snapshot is a run of EventSnapshot events, the last with More false, and then EventSnapshotEnd: what it did not list
// is gone. Where the connection breaks in between, EventSubscribed tells that the snapshot is begun anew.
type Event struct {
	Type statussync.EventType
	// Cursor is set on subscribed, snapshot_end, entry and bookmark events. Given to another subscription with the same
	// filter it continues after this event. With ModeLatest an entry's may be a position before the entry itself: some of
	// what was told is then told again.
	Cursor statussync.Cursor

	Entry *statussync.Entry // entry

	Items []wire.Server // snapshot: one page
	More  bool          // snapshot: another page follows

	Reason statussync.ResyncReason // resync

	Recovered bool // subscribed: the cursor given is continued without a gap
	Durable   bool // subscribed: the service's store is working

	// Frame is the service's frame as it came, one JSON object. The receiver may keep it.
	Frame json.RawMessage
}

// ConnState is a change of a subscription's connection.
type ConnState struct {
	Connected bool              // the subscription is live; otherwise it was lost, or an attempt failed
	Err       error             // why it was lost; nil when connected
	RetryIn   time.Duration     // how long it is waited before the next attempt; 0 when connected
	Attempt   int               // how many attempts have failed in a row; 0 when connected
	Cursor    statussync.Cursor // where it is, or will be, resumed
}

// SubscribeOptions says what to be told of, and how.
type SubscribeOptions struct {
	// Filter selects entries; the zero Filter is everything that the credential may see.
	Filter statussync.Filter
	// Cursor resumes after it; zero: from now on.
	Cursor statussync.Cursor
	// Snapshot asks for the current statuses first; it implies Filter.Leave.
	Snapshot bool
	// Mode is every entry in order, or the newest of each server (which implies Filter.Leave); empty: ModeEvery.
	Mode statussync.Mode
	// MustConnect ends the subscription with an error where the first connection fails, instead of trying on.
	MustConnect bool
	// OnState, if not nil, is called at each change of the connection, by the goroutine that iterates.
	OnState func(ConnState)
	// IdleAfter, BackoffMin, BackoffMax: see DefaultIdleAfter and DefaultBackoffMin; zero means the default.
	IdleAfter, BackoffMin, BackoffMax time.Duration
}

// Subscribe connects and yields events until the loop is left, ctx ends or the service refuses for good. The last pair
// holds the error: ctx's, a *statussync.Error (a bad or missing credential, a filter that is not valid, a limit) or,
// with MustConnect, one that matches ErrUnreachable. Every other loss of the connection is repaired: the sequence goes
// on after a wait, from where it was.
//
// The loop's body runs between reads. While it runs, the service's pings stay unanswered: a body that blocks for more
// than some 30 s may cost a reconnect, though no event.
func (c *Client) Subscribe(ctx context.Context, o SubscribeOptions) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		s, err := c.newSubscriber(o)
		if err == nil {
			err = s.run(ctx, yield)
		}
		if err != nil && !errors.Is(err, errLeft) {
			yield(Event{}, err)
		}
	}
}

// subscriber is one loop over Subscribe.
type subscriber struct {
	c *Client
	o SubscribeOptions

	resume       statussync.Cursor // everything up to here was delivered
	needSnapshot bool              // a snapshot is wanted and was not delivered to its end
	connected    bool              // ever
	attempt      int
	checkOrder   bool // versions rise by exactly one
	// versions are the newest of each server, followed where checkOrder holds and, to drop repeats, in ModeLatest.
	versions map[string]uint64
}

func (c *Client) newSubscriber(o SubscribeOptions) (*subscriber, error) {
	if o.Mode == "" {
		o.Mode = statussync.ModeEvery
	}
	if err := wire.CheckRequest(statussync.SubscribeRequest{Filter: o.Filter, Mode: o.Mode}); err != nil {
		return nil, err
	}
	if o.IdleAfter <= 0 {
		o.IdleAfter = DefaultIdleAfter
	}
	if o.BackoffMin <= 0 {
		o.BackoffMin = DefaultBackoffMin
	}
	if o.BackoffMax <= 0 {
		o.BackoffMax = max(DefaultBackoffMax, o.BackoffMin)
	}
	if o.Snapshot || o.Mode == statussync.ModeLatest {
		o.Filter.Leave = true // as they imply: it must hold after a reconnect that asks for no snapshot, too
	}
	s := &subscriber{
		c: c, o: o, resume: o.Cursor, needSnapshot: o.Snapshot,
		checkOrder: o.Mode == statussync.ModeEvery && len(o.Filter.Clauses) == 0,
	}
	s.forget()
	return s, nil
}

// forget drops what is known of versions: what follows is not a continuation.
func (s *subscriber) forget() {
	s.versions = nil
	if s.checkOrder || s.o.Mode == statussync.ModeLatest {
		s.versions = make(map[string]uint64)
	}
}

var (
	errLeft = errors.New("the loop was left")
	errIdle = errors.New("no sign of life")
)

// lostError is a loss of the connection that a reconnect repairs.
type lostError struct {
	text string
	wait time.Duration // as the service asked; 0: it did not
	err  error
}

func (e *lostError) Error() string { return e.text }
func (e *lostError) Unwrap() error { return e.err }

// gapError is a breach of order or number.
type gapError struct{ text string }

func (e *gapError) Error() string { return e.text }

func (s *subscriber) run(ctx context.Context, yield func(Event, error) bool) error {
	for {
		began := time.Now()
		err := s.connect(ctx, yield)
		var (
			gap  *gapError
			lost *lostError
		)
		switch {
		case errors.Is(err, errLeft):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &gap):
			s.needSnapshot, s.resume = true, statussync.Cursor{}
			s.forget()
			if !yield(Event{Type: statussync.EventResync, Reason: ResyncGap, Frame: json.RawMessage(`{"type":"resync","reason":"gap"}`)}, nil) {
				return errLeft
			}
		case errors.As(err, &lost), errors.Is(err, ErrUnreachable):
			if s.o.MustConnect && !s.connected {
				return err
			}
		default:
			return err
		}
		if time.Since(began) > s.o.BackoffMax {
			s.attempt = 0 // it lived: whatever ended it is a new affair
		}
		wait := s.backoff()
		if lost != nil {
			wait = max(wait, lost.wait)
		}
		s.attempt++
		s.c.log.Warn("subscription lost, reconnecting", "error", err, "retry_in", wait, "attempt", s.attempt, "cursor", s.resume.String())
		s.tell(ConnState{Err: err, RetryIn: wait, Attempt: s.attempt, Cursor: s.resume})
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}

// backoff is a random wait below a cap that doubles with each failed attempt (full jitter): many clients that lost the
// same service come back spread out.
func (s *subscriber) backoff() time.Duration {
	limit := s.o.BackoffMin
	for i := 0; i < s.attempt && limit < s.o.BackoffMax; i++ {
		limit *= 2
	}
	return rand.N(min(limit, s.o.BackoffMax) + 1)
}

func (s *subscriber) tell(st ConnState) {
	if s.o.OnState != nil {
		s.o.OnState(st)
	}
}

// connect makes one connection and reads it to its end; it always returns an error.
func (s *subscriber) connect(ctx context.Context, yield func(Event, error) bool) error {
	connCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(s.o.IdleAfter, func() { cancel(errIdle) })
	defer idle.Stop()

	ws, err := s.dial(ctx, func() { idle.Reset(s.o.IdleAfter) })
	if err != nil {
		return err
	}
	defer ws.CloseNow()
	ws.SetReadLimit(maxFrame)

	hello, err := json.Marshal(wire.ClientFrame{
		Type: wire.ClientSubscribe, Channel: wire.Channel, Cursor: s.resume, Snapshot: s.needSnapshot,
		Mode: s.o.Mode, Leave: s.o.Filter.Leave, Filters: s.o.Filter.Clauses,
	})
	if err != nil {
		return fmt.Errorf("encode the subscription: %w", err)
	}
	writeCtx, cancelWrite := context.WithTimeout(connCtx, handshakeTimeout)
	err = ws.Write(writeCtx, websocket.MessageText, hello)
	cancelWrite()
	if err != nil {
		return s.lost(err, nil)
	}

	k := link{s: s}
	for {
		idle.Reset(s.o.IdleAfter)
		typ, data, err := ws.Read(connCtx)
		idle.Stop() // the time that the caller takes is not the service's silence
		if err != nil {
			if errors.Is(context.Cause(connCtx), errIdle) {
				return &lostError{text: fmt.Sprintf("the service showed no sign of life for %s", s.o.IdleAfter), err: errIdle}
			}
			return s.lost(err, k.refused)
		}
		if typ != websocket.MessageText {
			return &lostError{text: "the service sent a binary frame"}
		}
		ev, deliver, err := k.take(data)
		if err != nil {
			return err
		}
		if deliver && !yield(ev, nil) {
			return errLeft
		}
	}
}

// dial makes the handshake. A refusal that would come again is a *statussync.Error; the rest is worth another try.
func (s *subscriber) dial(ctx context.Context, onPing func()) (*websocket.Conn, error) {
	dialCtx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	h := make(http.Header)
	s.c.setHeaders(h)
	ws, resp, err := websocket.Dial(dialCtx, s.c.endpoint(wire.PathWebSocket, nil), &websocket.DialOptions{
		HTTPClient: s.c.http, HTTPHeader: h, CompressionMode: websocket.CompressionDisabled,
		OnPingReceived: func(context.Context, []byte) bool { onPing(); return true },
	})
	if err == nil {
		return ws, nil
	}
	if resp == nil || resp.StatusCode == http.StatusSwitchingProtocols {
		return nil, s.c.unreachable(ctx, err)
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxProblem)) // what there is: the library keeps 1 KiB of it
	err = s.c.refusal(resp, body)
	if !errors.Is(err, ErrUnreachable) && (resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500) {
		var p *Problem
		errors.As(err, &p)
		return nil, &lostError{text: "the service refused for now: " + err.Error(), wait: p.RetryAfter, err: err}
	}
	return nil, err
}

// terminal says what a terminal close code means (docs/protocols.md §2).
func terminal(c websocket.StatusCode) (code statussync.Code, detail string) {
	switch c {
	case wire.CloseUnauthorized:
		return statussync.CodeUnauthorized, "a valid credential is needed"
	case wire.CloseBadRequest:
		return statussync.CodeInvalid, "the service did not understand the subscription"
	case wire.CloseForbidden:
		return statussync.CodeForbidden, "the credential does not allow this"
	case wire.CloseLimit:
		return statussync.CodeRateLimited, "a limit of the service is reached"
	}
	return statussync.CodeForbidden, "the service refused for good" // newer than this client
}

// closeText says in words what a close code means after which a client comes back.
func closeText(c websocket.StatusCode) string {
	switch c {
	case websocket.StatusGoingAway:
		return "the service is going away"
	case wire.CloseTokenExpired:
		return "the token has expired"
	case wire.CloseTooSlow:
		return "this client reads too slowly"
	case wire.CloseDraining:
		return "the service is shutting down"
	case wire.CloseRate:
		return "too many requests"
	}
	return "the service closed the connection"
}

// lost tells the end of a connection in words; refused is the last error frame, if one came.
func (s *subscriber) lost(err error, refused *statussync.Error) error {
	var ce websocket.CloseError
	if errors.As(err, &ce) {
		reason := statussync.CleanText(ce.Reason, statussync.MaxErrorText)
		if !wire.Reconnect(int(ce.Code)) {
			code, detail := terminal(ce.Code)
			e := &statussync.Error{Code: code, Detail: reason, Err: &Problem{CloseCode: int(ce.Code)}}
			if refused != nil {
				e.Code, e.Detail = refused.Code, refused.Detail
			}
			if e.Detail == "" {
				e.Detail = detail
			}
			return e
		}
		text := fmt.Sprintf("%s (close code %d", closeText(ce.Code), ce.Code)
		if reason != "" {
			text += ": " + reason
		}
		return &lostError{text: text + ")", err: err}
	}
	if errors.Is(err, websocket.ErrMessageTooBig) {
		return statussync.NewError(statussync.CodeTooLarge, fmt.Sprintf("the service sent a frame larger than %d MiB", maxFrame>>20), err)
	}
	return &lostError{text: "the connection was lost: " + plainCause(err).Error(), err: err}
}

// link is what is known of one connection.
type link struct {
	s       *subscriber
	live    bool              // subscribed
	at      statussync.Cursor // newest position on this connection
	sent    uint64            // entries received on it
	refused *statussync.Error // the last error frame
}

// take makes an event of a frame and follows the position. deliver is false for frames that are not the caller's
// affair.
func (k *link) take(data []byte) (ev Event, deliver bool, err error) {
	f, err := wire.DecodeServerFrame(data)
	if err != nil {
		return ev, false, &lostError{text: "the service sent a frame that is not understood: " + statussync.CleanText(err.Error(), statussync.MaxErrorText), err: err}
	}
	cur := f.Cursor
	s := k.s
	ev = Event{Type: statussync.EventType(f.Type), Cursor: cur, Frame: data}
	switch f.Type {
	case wire.FrameSubscribed:
		ev.Recovered, ev.Durable = f.Recovered, f.Durable
		k.live, k.at = true, cur
		if s.resume.IsZero() || !f.Recovered {
			s.forget()
		}
		// Where nothing is to be replayed or shown first, the subscription is live from this position.
		if s.resume.IsZero() && !s.needSnapshot {
			s.resume = cur
		}
		if !s.resume.IsZero() && f.Recovered {
			k.at = s.resume
		}
		s.connected = true
		s.tell(ConnState{Connected: true, Cursor: s.resume})
		return ev, true, nil
	case wire.FrameSnapshot:
		ev.Items, ev.More = f.Items, f.More
		s.needSnapshot = true
		for i := range f.Items {
			s.track(f.Items[i].ID, f.Items[i].Status.Version)
		}
		return ev, true, nil
	case wire.FrameSnapshotEnd:
		s.needSnapshot = false
		s.resume, k.at = cur, cur
		return ev, true, nil
	case wire.FrameResync:
		ev.Reason = f.Reason
		s.needSnapshot, s.resume, k.at = true, statussync.Cursor{}, statussync.Cursor{}
		s.forget()
		return ev, true, nil
	case wire.FrameBookmark:
		if f.Sent != k.sent {
			return ev, false, &gapError{fmt.Sprintf("the service says that it sent %d entries, %d came", f.Sent, k.sent)}
		}
		if !s.needSnapshot {
			s.resume = cur
		}
		return ev, true, nil
	case wire.FrameError:
		e := &statussync.Error{
			Code:   statussync.Code(statussync.CleanText(string(f.Code), statussync.MaxWordText)),
			Detail: statussync.CleanText(f.Detail, statussync.MaxErrorText),
		}
		k.refused = e
		if f.Retryable {
			return ev, false, &lostError{text: "the service refused for now: " + e.Error(), err: e}
		}
		e.Err = &Problem{}
		return ev, false, e
	}
	if f.Data == nil {
		return ev, false, nil // pong, auth_ok, and whatever a newer service says
	}
	e, err := f.Entry()
	if err != nil {
		return ev, false, &lostError{text: "the service sent an entry that is not understood: " + statussync.CleanText(err.Error(), statussync.MaxErrorText), err: err}
	}
	return k.entry(ev, e)
}

// entry checks an entry's place.
func (k *link) entry(ev Event, e *statussync.Entry) (_ Event, deliver bool, err error) {
	s := k.s
	k.sent++
	ev.Type, ev.Entry = statussync.EventEntry, e
	versioned := e.Kind == statussync.KindStatus || e.Kind == statussync.KindServerRemoved
	if s.o.Mode == statussync.ModeLatest {
		// Entries of different servers come in no promised order. The frame's cursor, not the entry's own position, is
		// the place to resume from, and what was delivered after it may come again.
		if !s.needSnapshot && !ev.Cursor.IsZero() {
			s.resume = ev.Cursor
		}
		if versioned {
			if e.Version <= s.versions[e.ServerID] {
				return ev, false, nil
			}
			s.track(e.ServerID, e.Version)
		}
		return ev, true, nil
	}
	if !k.live {
		return ev, false, &lostError{text: "the service sent an entry before the subscription was confirmed"}
	}
	at := e.Cursor()
	if !k.at.IsZero() {
		if at.Epoch != k.at.Epoch {
			return ev, false, &gapError{fmt.Sprintf("the journal changed from %s to %s without a resync", k.at, at)}
		}
		if at.Seq <= k.at.Seq {
			return ev, false, &gapError{fmt.Sprintf("%s came after %s", at, k.at)}
		}
	}
	if s.checkOrder && versioned {
		if last, ok := s.versions[e.ServerID]; ok && e.Version != last+1 {
			return ev, false, &gapError{fmt.Sprintf("version %d of server %q came after version %d", e.Version,
				statussync.CleanText(e.ServerID, statussync.MaxWordText), last)}
		}
		s.track(e.ServerID, e.Version)
	}
	k.at = at
	if !s.needSnapshot {
		s.resume = at
	}
	return ev, true, nil
}

func (s *subscriber) track(id string, version uint64) {
	if s.versions == nil {
		return
	}
	if _, ok := s.versions[id]; ok || len(s.versions) < maxTracked {
		s.versions[id] = version
	}
}
