package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/time/rate"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Close codes beside wire's.
const (
	closeDraining = wire.CloseDraining
	closeLost     = 1006 // never sent: the connection ended without a Close frame
	closeNoStatus = 1005 // never sent: the peer's Close frame had no code, or one that is no code
)

const (
	maxInbound      = 16          // frames that wait for the writer; the reader waits then
	maxBadFrames    = 10          // frames in a row that can't be understood
	maxPending      = 1000        // connections without a credential
	closeWait       = time.Second // for a Close frame to be written, and to be answered
	subscribeWait   = 10 * time.Second
	sendBuffer      = 128 << 10 // bytes that the kernel holds for a client: what is slow shows soon
	maxReasonLength = 123       // of a Close frame (RFC 6455, 5.5)
)

// socket is a WebSocket (docs/protocols.md §2). The reader's goroutine only decodes; the writer's owns everything below
// the line and is the only one that writes.
type socket struct {
	a      *API
	ws     *websocket.Conn // for reading
	nc     net.Conn        // for writing
	legacy bool
	open   bool // it comes from this machine, and not through a proxy
	addr   netip.Addr

	in     chan inbound
	gone   chan struct{} // closed when the writer has ended: nothing is taken any more
	reader chan struct{} // closed when the reader has ended; then parted is set
	parted bool          // by a Close frame of the client: nothing unread is left
	waker  waker
	why    atomic.Pointer[closeReason] // set by others: end
	dueAt  atomic.Int64                // Unix nanoseconds

	// ---
	cred      *Credential // nil: not yet
	checked   uint64      // API.generation when cred was last looked at; 0: it was not
	counted   string      // the name under which the connection is counted; "" while it has no credential
	isCounted bool
	limits    Limits // of cred
	// subCounted says that a subscription is counted, under the name subCountedAs.
	subCounted   bool
	subCountedAs string
	authBy       time.Time
	frames       *rate.Limiter
	bad          int // frames in a row that could not be understood

	sub        statussync.Subscription // nil: none
	subID      string
	sent       uint64            // entries on this connection
	replay     statussync.Cursor // entries up to it are replay
	replayed   int               // bytes of replay in buf
	notBefore  time.Time         // the credential has read too much; go on then
	bookmarkAt time.Time
	marked     statussync.Cursor // the last bookmark's
	markedSent uint64

	pingAt time.Time // the next ping
	pongBy time.Time // zero: no ping is unanswered

	latest bool      // sub is in mode latest; then pings are numbered
	pings  uint64    // the newest number
	gate   uint64    // the ping that follows what was told last; nothing more is told until it is answered. 0: none
	gateAt time.Time // when it was written
	// gateFull says that there may have been more to tell.
	gateFull bool

	events []statussync.Event
	buf    *buffers // nil: nothing is waiting to be written
}

// buffers are what a socket needs while it has something to write.
type buffers struct {
	out     []byte // frames
	payload []byte // of one frame
}

var bufferPool = sync.Pool{New: func() any { return new(buffers) }}

// inbound is what the reader tells the writer: one of its fields is set.
type inbound struct {
	frame *wire.ClientFrame
	err   error        // why frame could not be understood
	ping  []byte       // to be answered; not nil
	pong  []byte       // not nil
	end   *closeReason // nothing more comes
}

func (c *socket) due(now time.Time) bool { return now.UnixNano() >= c.dueAt.Load() }
func (c *socket) wake()                  { c.waker.wake() }

func (c *socket) end(why closeReason) {
	c.why.CompareAndSwap(nil, &why)
	c.waker.wake()
}

// cut ends the connection without a word. Blocked reads and writes return.
func (c *socket) cut() {
	c.end(closeReason{code: closeLost})
	abort(c.nc)
}

// abort closes a connection and throws away what the kernel holds for it. It does not block: a TLS connection is not told,
// which could wait for a client that does not read.
func abort(nc net.Conn) {
	nc = belowTLS(nc)
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // otherwise the kernel keeps what is unsent; it is closed in any case
	}
	_ = nc.Close()
}

// belowTLS returns the connection that carries a TLS connection, and every other as it is.
func belowTLS(nc net.Conn) net.Conn {
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn()
	}
	return nc
}

// handshake lets gorilla do the handshake on a connection, and afterwards only read it: what it would write by itself
// (answers to protocol errors) could come between the writer's bytes.
type handshake struct {
	net.Conn
	over atomic.Bool
}

func (h *handshake) Write(b []byte) (int, error) {
	if h.over.Load() {
		return len(b), nil
	}
	return h.Conn.Write(b)
}

func (h *handshake) SetWriteDeadline(t time.Time) error {
	if h.over.Load() {
		return nil
	}
	return h.Conn.SetWriteDeadline(t)
}

// hijacker is a ResponseWriter that is hijacked with a handshake around the connection.
type hijacker struct {
	http.ResponseWriter
	conn *handshake
}

func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.conn = &handshake{Conn: nc}
	return h.conn, rw, nil
}

// websocket takes a connection over. A token that is wrong is refused before the handshake; without one, the client has
// Options.AuthWait to present one.
func (a *API) websocket(w http.ResponseWriter, r *http.Request, legacy bool) {
	if err := a.checkOrigin(r); err != nil {
		a.fail(w, r, err)
		return
	}
	cred, err := a.authenticate(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	if cred == nil && legacy && a.set.Load().legacyViewer {
		c := legacyViewer
		cred = &c
	}
	if !a.streams.enter() {
		a.fail(w, r, statussync.NewError(statussync.CodeUnavailable, "the service is stopping", nil))
		return
	}
	up := websocket.Upgrader{
		HandshakeTimeout: a.opts.WriteTimeout,
		// Clients say little, and the writer has buffers of its own: the server's 4 KiB for each direction would only lie there.
		ReadBufferSize: 512, WriteBufferSize: 512, WriteBufferPool: &a.handshakes,
		CheckOrigin: func(*http.Request) bool { return true }, // done above
		Error: func(w http.ResponseWriter, r *http.Request, status int, reason error) {
			if status >= 500 {
				a.fail(w, r, statussync.NewError(statussync.CodeInternal, "", reason))
				return
			}
			w.Header().Set("Sec-WebSocket-Version", "13")
			a.fail(w, r, statussync.NewError(statussync.CodeInvalid, "this is no WebSocket handshake: "+statussync.CleanText(reason.Error(), 200), nil))
		},
	}
	h := &hijacker{ResponseWriter: w}
	ws, err := up.Upgrade(h, r, nil)
	if err != nil {
		a.streams.leave()
		return // answered by up.Error, or the client is gone
	}
	h.conn.over.Store(true)
	nc := h.conn.Conn
	if t, ok := belowTLS(nc).(interface{ SetWriteBuffer(int) error }); ok {
		_ = t.SetWriteBuffer(sendBuffer) // a hint
	}
	now := time.Now()
	addr, direct := a.remote(r)
	perSecond := a.limitsOf(cred).CommandsPerSecond
	c := &socket{
		a: a, ws: ws, nc: nc, legacy: legacy, addr: addr, open: direct && addr.IsLoopback(),
		in: make(chan inbound, maxInbound), gone: make(chan struct{}), reader: make(chan struct{}),
		// The request's context ends with its handler; the connection lives on.
		waker: waker{parent: context.Background()}, authBy: a.by(now, a.opts.AuthWait),
		frames: rate.NewLimiter(rate.Limit(perSecond), perSecond),
		pingAt: a.by(now, a.opts.PingEvery), events: make([]statussync.Event, 0, fewEvents),
	}
	a.streams.add(c)
	var full *closeReason
	if !c.become(cred) {
		why := c.full(cred)
		full = &why
	}
	go c.read()
	go c.run(full)
}

// become makes cred (nil: nobody yet) the connection's credential and counts the connection by it; false: it has too
// many, and the connection is counted as before.
func (c *socket) become(cred *Credential) bool {
	name, most := "", maxPending
	limits := c.a.limitsOf(cred)
	if cred != nil {
		name, most = cred.Name, limits.Connections
	}
	if !c.isCounted || c.counted != name {
		if !c.a.limits.connect(name, most) {
			return false
		}
		c.uncount()
		c.counted, c.isCounted = name, true
	}
	c.cred, c.limits, c.checked = cred, limits, 0 // tokens may have changed since it was looked up
	setRate(c.frames, limits.CommandsPerSecond)
	return true
}

// full is why a connection is closed that a credential, nil where there is none, has no room for.
func (c *socket) full(cred *Credential) closeReason {
	if cred == nil {
		return closeReason{code: wire.CloseLimit, text: "too many connections without a credential"}
	}
	return closeReason{code: wire.CloseLimit, text: tooMany("connections", c.a.limitsOf(cred).Connections, "connections")}
}

// countSubscription counts the one subscription that a connection may have, by its credential as it is now. False: the
// credential has too many.
func (c *socket) countSubscription() bool {
	if c.subCounted && c.subCountedAs == c.cred.Name {
		return true
	}
	if !c.a.limits.subscribe(c.cred.Name, c.limits.Subscriptions) {
		return false
	}
	c.uncountSubscription()
	c.subCounted, c.subCountedAs = true, c.cred.Name
	return true
}

func (c *socket) uncountSubscription() {
	if c.subCounted {
		c.a.limits.unsubscribe(c.subCountedAs)
		c.subCounted = false
	}
}

func (c *socket) uncount() {
	if c.isCounted {
		c.a.limits.disconnect(c.counted)
		c.isCounted = false
	}
}

// read decodes what the client sends and hands it to the writer, until the connection ends or breaks the rules.
func (c *socket) read() {
	defer close(c.reader)
	c.ws.SetPingHandler(func(data string) error {
		c.tell(inbound{ping: append([]byte{}, data...)})
		return nil
	})
	c.ws.SetPongHandler(func(data string) error {
		c.tell(inbound{pong: append([]byte{}, data...)})
		return nil
	})
	c.ws.SetCloseHandler(func(int, string) error { return nil }) // the writer answers
	decode := wire.DecodeClientFrame
	if c.legacy {
		decode = wire.DecodeLegacyFrame
	}
	for {
		end, frame, err := c.readFrame(decode)
		if end != nil {
			c.parted = end.theirs
			c.tell(inbound{end: end})
			return
		}
		if !c.tell(inbound{frame: frame, err: err}) {
			return
		}
	}
}

var readPool = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func (c *socket) readFrame(decode func([]byte) (*wire.ClientFrame, error)) (*closeReason, *wire.ClientFrame, error) {
	kind, r, err := c.ws.NextReader()
	if err != nil {
		return endOf(err), nil, nil
	}
	if kind == websocket.BinaryMessage {
		return &closeReason{code: wire.CloseBadRequest, text: "binary frames are not understood; send JSON as text"}, nil, nil
	}
	buf := readPool.Get().(*bytes.Buffer)
	defer readPool.Put(buf)
	buf.Reset()
	n, err := buf.ReadFrom(io.LimitReader(r, wire.MaxClientFrame+1))
	if err != nil {
		return endOf(err), nil, nil
	}
	if n > wire.MaxClientFrame {
		return &closeReason{code: wire.CloseBadRequest, text: "a frame may have at most 65536 bytes"}, nil, nil
	}
	frame, err := decode(buf.Bytes())
	return nil, frame, err
}

// endOf says how a connection ended from the error of a read.
func endOf(err error) *closeReason {
	var closed *websocket.CloseError
	if errors.As(err, &closed) {
		switch code := closed.Code; {
		case code == closeLost: // the library's word for a connection that just ended
			return &closeReason{code: closeLost}
		case code == 1000, code == 1001, knownCode(code):
			return &closeReason{code: code, theirs: true}
		}
		return &closeReason{code: closeNoStatus, theirs: true}
	}
	var ne net.Error
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.As(err, &ne) {
		return &closeReason{code: closeLost}
	}
	return &closeReason{code: wire.CloseBadRequest, text: "this is not the WebSocket protocol"}
}

// knownCode bounds the codes by which closes are counted.
func knownCode(code int) bool {
	switch code {
	case wire.CloseTokenExpired, wire.CloseTooSlow, wire.CloseDraining, wire.CloseRate, wire.CloseUnauthorized,
		wire.CloseBadRequest, wire.CloseForbidden, wire.CloseLimit:
		return true
	}
	return false
}

// tell hands m to the writer; false: there is none any more.
func (c *socket) tell(m inbound) bool {
	select {
	case c.in <- m:
		c.waker.wake()
		return true
	case <-c.gone:
		return false
	}
}

// run writes until the connection ends, then ends it. full, if not nil, says that its credential has no room for it.
func (c *socket) run(full *closeReason) {
	var why closeReason
	if full != nil {
		why = *full
	} else {
		why = c.loop()
	}
	close(c.gone)
	if c.sub != nil {
		c.sub.Close()
	}
	c.hangUp(why)
	<-c.reader
	c.uncountSubscription()
	c.uncount()
	if c.buf != nil {
		c.release()
	}
	c.a.streams.remove(c, why.code, false)
	c.a.streams.leave()
	c.a.log.Debug("websocket closed", "remote", c.addr, "code", why.code, "reason", why.text, "sent", c.sent)
}

func (c *socket) loop() closeReason {
	for {
		armed := c.waker.arm() // what comes from here on ends the wait below
		for more := true; more; {
			select {
			case m := <-c.in:
				if why := c.handle(m); why != nil {
					return *why
				}
			default:
				more = false
			}
		}
		if why := c.why.Load(); why != nil {
			return *why
		}
		if why := c.clock(time.Now()); why != nil {
			return *why
		}
		if why := c.flush(); why != nil {
			return *why
		}
		if c.sub == nil || c.gate != 0 {
			<-armed.Done()
			continue
		}
		if wait := time.Until(c.notBefore); wait > 0 {
			pause(armed, wait)
			continue
		}
		events, err := c.sub.Next(armed, c.events[:0])
		for i := range events {
			if why := c.event(&events[i]); why != nil {
				return *why
			}
		}
		clear(events)
		switch {
		case c.latest && len(events) > 0:
			// What was read of the socket is what is known to be read: kernels on both sides hold much more than a slow
			// client reads in a second. So the next entries are merged when the client has answered.
			c.ping()
			c.gate, c.gateAt, c.gateFull = c.pings, time.Now(), len(events) == cap(c.events)
		case c.latest:
		case len(events) == cap(c.events) && cap(c.events) == fewEvents:
			c.events = make([]statussync.Event, 0, manyEvents)
		case len(events) < fewEvents && cap(c.events) > fewEvents:
			c.events = make([]statussync.Event, 0, fewEvents)
		}
		if why := c.flush(); why != nil {
			return *why
		}
		if err != nil && armed.Err() == nil {
			return closeReason{code: closeDraining, text: "the service is stopping"}
		}
	}
}

// clock does what is due at now, and notes what is next.
func (c *socket) clock(now time.Time) *closeReason {
	if c.cred == nil && !now.Before(c.authBy) {
		return &closeReason{code: wire.CloseUnauthorized, text: "no credential was presented in time"}
	}
	if g := c.a.generation.Load(); g != c.checked {
		c.checked = g
		if !c.a.current(c.cred) {
			return &closeReason{code: wire.CloseTokenExpired, text: "the credential is not valid any more"}
		}
		c.limits = c.a.limitsOf(c.cred) // a token's own limits are those of when it was presented
		setRate(c.frames, c.limits.CommandsPerSecond)
	}
	var expires time.Time
	if c.cred != nil {
		c.cred.session.touch(now)
		if expires = c.cred.ExpiresAt; !expires.IsZero() && !now.Before(expires) {
			return &closeReason{code: wire.CloseTokenExpired, text: "the token has expired"}
		}
	}
	if !c.pongBy.IsZero() && !now.Before(c.pongBy) {
		return &closeReason{code: wire.CloseTooSlow, text: "a ping was not answered in time"}
	}
	if c.pongBy.IsZero() && !now.Before(c.pingAt) {
		c.ping()
		c.pongBy, c.pingAt = c.a.by(now, c.a.opts.PongWait), c.a.by(now, c.a.opts.PingEvery)
	}
	next := earliest(c.pongBy, c.pingAt, expires)
	if c.cred == nil {
		next = earliest(next, c.authBy)
	}
	if c.sub != nil && !c.legacy {
		if !now.Before(c.bookmarkAt) {
			// While something is on its way there is nothing to mark; it is tried again when the clock comes by.
			if at, ok := c.sub.Bookmark(); ok {
				if at != c.marked || c.sent != c.markedSent {
					b := c.payload()
					c.text(wire.AppendBookmark(b, at, c.sent))
					c.marked, c.markedSent = at, c.sent
				}
				c.bookmarkAt = c.a.by(now, c.a.opts.BookmarkEvery)
			}
		}
		next = earliest(next, c.bookmarkAt)
	}
	c.dueAt.Store(next.UnixNano())
	return nil
}

// handle does what the client wants.
func (c *socket) handle(m inbound) *closeReason {
	if m.end != nil {
		return m.end
	}
	if m.pong != nil {
		c.pongBy = time.Time{}
		c.answered(m.pong)
		return nil
	}
	if !c.frames.Allow() {
		return &closeReason{code: wire.CloseRate, text: "too many frames per second"}
	}
	if m.ping != nil {
		c.control(websocket.PongMessage, m.ping)
		return nil
	}
	f := m.frame
	if m.err != nil {
		if c.bad++; c.bad >= maxBadFrames {
			return &closeReason{code: wire.CloseBadRequest, text: "too many frames that can't be understood"}
		}
		c.text(wire.AppendError(c.payload(), f.ID, m.err))
		return nil
	}
	c.bad = 0
	switch f.Type {
	case wire.ClientAuth:
		return c.auth(f)
	case wire.ClientPing:
		var at statussync.Cursor
		if c.sub != nil && !c.legacy {
			at, _ = c.sub.Bookmark() // zero where there is no position to resume from right now
		}
		c.text(wire.AppendPong(c.payload(), at))
	case wire.ClientPublish:
		c.text(wire.AppendError(c.payload(), f.ID, statussync.NewError(statussync.CodeForbidden, "clients can't publish; statuses are concluded from what is observed", nil)))
	case wire.ClientUnsubscribe:
		if c.sub != nil {
			c.sub.Close()
			c.sub = nil
			c.uncountSubscription()
		}
		c.text(wire.AppendUnsubscribed(c.payload()))
	case wire.ClientSubscribe:
		if c.cred == nil {
			c.text(wire.AppendError(c.payload(), f.ID, statussync.NewError(statussync.CodeUnauthorized, "send an auth frame first", nil)))
			return nil
		}
		if !c.countSubscription() {
			return &closeReason{code: wire.CloseLimit, text: tooMany("subscriptions", c.limits.Subscriptions, "subscriptions")}
		}
		if err := c.subscribe(f); err != nil {
			if c.sub == nil {
				c.uncountSubscription()
			}
			if statussync.CodeOf(err) == statussync.CodeInternal {
				c.a.log.Error("subscribe failed", "error", err)
			}
			c.text(wire.AppendError(c.payload(), f.ID, err))
		}
	}
	return nil
}

// Bounds of what is on its way to a client in mode latest: a batch should be read within paceSlow, so that what is read
// is hardly older than that, and a batch that is read within paceFast costs more waiting than it is worth.
const (
	leastEvents = 2
	paceFast    = 100 * time.Millisecond
	paceSlow    = 400 * time.Millisecond
)

// ping appends a ping; in mode latest with the next number, so that the answer says what was read.
func (c *socket) ping() {
	if !c.latest {
		c.control(websocket.PingMessage, nil)
		return
	}
	c.pings++
	c.control(websocket.PingMessage, binary.BigEndian.AppendUint64(nil, c.pings))
}

// answered takes a pong: in mode latest, it may say that what was told last is read. A pong that is no number of ours is
// taken for that, too: better too early than never.
func (c *socket) answered(data []byte) {
	if c.gate == 0 || (len(data) == 8 && binary.BigEndian.Uint64(data) < c.gate) {
		return
	}
	c.gate = 0
	size, took := cap(c.events), time.Since(c.gateAt)
	switch {
	case took > paceSlow:
		size = max(size/2, leastEvents)
	case !c.gateFull:
		size = min(size, fewEvents)
	case took < paceFast:
		size = min(size*2, manyEvents)
	}
	if size != cap(c.events) {
		c.events = make([]statussync.Event, 0, size)
	}
}

func (c *socket) auth(f *wire.ClientFrame) *closeReason {
	cred := c.cred
	if !c.open || !c.a.set.Load().openLoopback {
		var err error
		if cred, err = c.a.login(c.addr, f.Token); err != nil {
			switch statussync.CodeOf(err) {
			case statussync.CodeForbidden:
				return &closeReason{code: wire.CloseForbidden, text: "an agent's token is good only for its heartbeats"}
			case statussync.CodeRateLimited:
				return &closeReason{code: wire.CloseRate, text: "too many failed logins from this address"}
			}
			return &closeReason{code: wire.CloseUnauthorized, text: wire.Detail(err)}
		}
	}
	if !c.become(cred) {
		why := c.full(cred)
		return &why
	}
	if c.sub != nil && !c.countSubscription() {
		return &closeReason{code: wire.CloseLimit, text: tooMany("subscriptions", c.limits.Subscriptions, "subscriptions")}
	}
	c.text(wire.AppendAuthOK(c.payload(), cred.ExpiresAt))
	return nil
}

// subscribe begins a subscription in place of the one that there is; where that fails, the old one goes on.
func (c *socket) subscribe(f *wire.ClientFrame) error {
	req := f.Request()
	if c.legacy {
		// The original's clients know one frame, and no positions.
		req.Cursor, req.Snapshot, req.Mode = statussync.Cursor{}, false, ""
		if len(req.Filter.Clauses) == 0 {
			req.Filter.Clauses = []statussync.Clause{{Kinds: []statussync.Kind{statussync.KindStatus}}}
		}
	}
	if err := c.limits.checkFilter(req.Filter); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), subscribeWait)
	defer cancel()
	sub, err := c.a.opts.Hub.Subscribe(ctx, req)
	if err != nil {
		return err
	}
	if c.sub != nil {
		c.sub.Close()
	}
	c.sub, c.subID = sub, f.ID
	if c.latest = req.Mode == statussync.ModeLatest; !c.latest {
		c.gate = 0
	}
	c.events = make([]statussync.Event, 0, fewEvents)
	c.replay = c.a.opts.Hub.Ready().Head
	c.bookmarkAt = c.a.by(time.Now(), c.a.opts.BookmarkEvery)
	return nil
}

// event appends an event's frame, and writes where enough has come together.
func (c *socket) event(e *statussync.Event) *closeReason {
	if c.legacy {
		c.legacyEvent(e)
	} else {
		b := wire.AppendEvent(c.payload(), c.subID, e)
		c.text(b)
		if isReplay(e, c.replay) {
			c.replayed += len(b)
		}
		if e.Type == statussync.EventEntry {
			c.sent++
			c.a.streams.entries.Add(1)
		}
	}
	if len(c.buf.out) >= writeChunk {
		return c.flush()
	}
	return nil
}

// legacyEvent tells a client of the original design what its one frame can say. After a resync, every server's status
// is told as if it had just become that: such a client has no other way to make its screen true again.
func (c *socket) legacyEvent(e *statussync.Event) {
	switch e.Type {
	case statussync.EventSubscribed:
		c.text(wire.AppendEvent(c.payload(), c.subID, e))
	case statussync.EventEntry:
		if b, ok := wire.AppendLegacyUpdate(c.payload(), e.Entry); ok {
			c.text(b)
			c.sent++
			c.a.streams.entries.Add(1)
		}
	case statussync.EventSnapshot:
		for i := range e.Items {
			v := &e.Items[i]
			now := statussync.Entry{
				Kind: statussync.KindStatus, ServerID: v.Server.ID, Previous: &v.Status, Current: &v.Status, Timestamp: v.Now,
				Source: statussync.SourceSystem, Details: "as it is after a gap in the stream",
			}
			if b, ok := wire.AppendLegacyUpdate(c.payload(), &now); ok {
				c.text(b)
			}
		}
	}
	c.buffers() // something is there for the caller to look at
}

func (c *socket) buffers() *buffers {
	if c.buf == nil {
		c.buf = bufferPool.Get().(*buffers)
	}
	return c.buf
}

// payload returns the emptied buffer in which one frame's payload is made; text takes it back.
func (c *socket) payload() []byte { return c.buffers().payload[:0] }

// text appends a text frame. payload is what payload returned, filled.
func (c *socket) text(payload []byte) {
	b := c.buffers()
	b.payload = payload
	b.out = append(appendHeader(b.out, websocket.TextMessage, len(payload)), payload...)
}

// control appends a control frame; data has at most 125 bytes.
func (c *socket) control(kind int, data []byte) {
	b := c.buffers()
	b.out = append(appendHeader(b.out, kind, len(data)), data...)
}

// appendHeader appends the header of a whole, unmasked frame (RFC 6455, 5.2).
func appendHeader(b []byte, kind, n int) []byte {
	b = append(b, 0x80|byte(kind))
	switch {
	case n < 126:
		return append(b, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	}
	return binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
}

// frameEnd returns where the frame that holds byte n of out ends; n, where a frame begins there.
func frameEnd(out []byte, n int) int {
	at := 0
	for at < n {
		size := int(out[at+1])
		switch size {
		case 126:
			size = 2 + int(binary.BigEndian.Uint16(out[at+2:]))
		case 127:
			size = 8 + int(binary.BigEndian.Uint64(out[at+2:]))
		}
		at += 2 + size
	}
	return at
}

// release gives the buffers back, unless they grew large.
func (c *socket) release() {
	if b := c.buf; cap(b.out) <= 4*writeChunk && cap(b.payload) <= 4*writeChunk {
		b.out, b.payload = b.out[:0], b.payload[:0]
		bufferPool.Put(b)
	}
	c.buf = nil
}

// flush writes what is waiting. Where a write is blocked for too long, a Close is tried and the connection cut.
func (c *socket) flush() *closeReason {
	if c.buf == nil {
		return nil
	}
	out, n := c.buf.out, 0
	for n < len(out) {
		if err := c.nc.SetWriteDeadline(time.Now().Add(c.a.opts.WriteTimeout)); err != nil {
			return &closeReason{code: closeLost}
		}
		m, err := c.nc.Write(out[n:min(len(out), n+writeChunk)])
		n += m
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.tooSlow(out, n)
			return &closeReason{code: wire.CloseTooSlow, text: "too slow", told: true}
		}
		if err != nil {
			return &closeReason{code: closeLost}
		}
	}
	if c.replayed > 0 {
		c.notBefore = time.Now().Add(c.a.limits.replayed(c.counted, c.limits.ReplayBytesPerSecond, c.replayed))
		c.replayed = 0
	}
	c.release()
	return nil
}

// tooSlow tries to tell a client that did not read that it is cut off: a Close can only follow a whole frame, so the one
// that was begun is finished first. There is little hope, so there is little time.
func (c *socket) tooSlow(out []byte, n int) {
	last := append([]byte{}, out[n:frameEnd(out, n)]...)
	last = appendClose(last, wire.CloseTooSlow, "too slow")
	if c.nc.SetWriteDeadline(time.Now().Add(closeWait/4)) == nil {
		if _, err := c.nc.Write(last); err == nil {
			return // hangUp lets the client read it
		}
	}
	abort(c.nc)
}

func appendClose(b []byte, code int, reason string) []byte {
	if len(reason) > maxReasonLength {
		reason = reason[:maxReasonLength]
	}
	b = appendHeader(b, websocket.CloseMessage, 2+len(reason))
	b = binary.BigEndian.AppendUint16(b, uint16(code))
	return append(b, reason...)
}

// hangUp ends the connection: it tells the client why, lets it answer, and closes.
func (c *socket) hangUp(why closeReason) {
	defer c.nc.Close()
	if why.code == closeLost {
		return
	}
	if !why.told {
		var out []byte
		if c.buf != nil {
			out = c.buf.out // what was to be said before
		}
		if why.code == closeNoStatus {
			out = appendHeader(out, websocket.CloseMessage, 0)
		} else {
			out = appendClose(out, why.code, why.text)
		}
		if c.nc.SetWriteDeadline(time.Now().Add(closeWait)) != nil {
			return
		}
		if _, err := c.nc.Write(out); err != nil {
			abort(c.nc)
			return
		}
	}
	// Closing a connection with unread bytes resets it, and the client may then never see the Close. So the rest is
	// read, for a short time: the client answers and closes.
	if c.nc.SetReadDeadline(time.Now().Add(closeWait)) != nil {
		return
	}
	if t, ok := c.nc.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite() // it is closed in any case
	}
	if <-c.reader; !c.parted {
		_, _ = io.CopyN(io.Discard, c.nc, 1<<20)
	}
}
