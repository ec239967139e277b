package supabase

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/agentopia/statussync"
)

const (
	// dialTimeout is for a connection with its handshake; the server delays refusals by 2 s.
	dialTimeout  = 15 * time.Second
	writeTimeout = 10 * time.Second
	leaveTimeout = time.Second

	maxRefusal = 4 << 10 // bytes of a refusal's body
	maxBatch   = 1000    // changes told at once
	maxDrain   = 256     // frames taken before the clock is looked at again
)

func (f *Feed) newClient() *http.Client {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: HeartbeatEvery}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext,
		TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: dialTimeout,
		DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
	}
	if f.o.Dial != nil {
		t.DialContext, t.Proxy = f.o.Dial, nil
	}
	if f.o.TLS != nil {
		t.TLSClientConfig = f.o.TLS.Clone()
	}
	return &http.Client{
		Transport: t,
		// A redirect would carry the key to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// dial makes the connection and its handshake.
func (f *Feed) dial(ctx context.Context) (*websocket.Conn, *loss) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	u := *f.target
	u.RawQuery = url.Values{"apikey": {f.o.APIKey}, "vsn": {"2.0.0"}}.Encode()
	ws, resp, err := websocket.Dial(ctx, u.String(), &websocket.DialOptions{HTTPClient: f.client, CompressionMode: websocket.CompressionDisabled})
	if err == nil {
		ws.SetReadLimit(MaxFrame)
		return ws, nil
	}
	if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal)) // what the library kept of it
		return nil, judgeHandshake(resp.StatusCode, f.clean(refusal(body)), retryAfter(resp.Header))
	}
	return nil, lossOf(statussync.CodeUnavailable, quick, "cannot connect to "+f.target.Host+": "+f.clean(cause(ctx, err)))
}

// cause is why a connection could not be made, without the address that it was made to: that holds the key.
func cause(ctx context.Context, err error) string {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return "no answer within " + dialTimeout.String()
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return err.Error()
}

// refusal is the reason in a refused handshake's body: the server's {"error"}, or a gateway's {"message"}.
func refusal(body []byte) string {
	var e struct {
		Error   json.RawMessage `json:"error"`
		Message json.RawMessage `json:"message"`
		Msg     json.RawMessage `json:"msg"`
	}
	if json.Unmarshal(body, &e) == nil {
		for _, raw := range []json.RawMessage{e.Message, e.Error, e.Msg} {
			if len(raw) > 0 {
				return text(raw)
			}
		}
	}
	return "" // a page of somebody before the server
}

// retryAfter reads Retry-After in seconds; the date form is not used by this server.
func retryAfter(h http.Header) time.Duration {
	n, err := strconv.ParseUint(strings.TrimSpace(h.Get("Retry-After")), 10, 31)
	if err != nil {
		return 0
	}
	return min(time.Duration(n)*time.Second, maxRetryAfter)
}

// inbound is what the reading goroutine hands over: a frame, or why there are no more.
type inbound struct {
	m   message
	err error
}

// read reads until the connection ends, and says at last why. It decodes here, so that a large frame delays no heartbeat.
func (f *Feed) read(ctx context.Context, ws *websocket.Conn, to chan<- inbound) {
	for {
		typ, data, err := ws.Read(ctx)
		in := inbound{err: err}
		if err == nil {
			if typ == websocket.MessageBinary { // broadcasts only, which we did not ask for
				continue
			}
			if in.m, in.err = decodeFrame(data); in.err == nil && in.m.event == eventChanges {
				in.m.changes = changesOf(in.m.payload, f.o.Schema, f.keys)
				in.m.payload = nil
			}
			if in.err != nil {
				in.err = &strangeError{in.err.Error()}
			}
		}
		select {
		case to <- in:
		case <-ctx.Done():
			return
		}
		if in.err != nil {
			return
		}
	}
}

// strangeError is a frame that no Realtime server sends.
type strangeError struct{ text string }

func (e *strangeError) Error() string { return e.text }

// tokenAnswer is what Options.Token gave.
type tokenAnswer struct {
	t   token
	err error
}

// link is one connection with its channel.
type link struct {
	f       *Feed
	to      statussync.FeedReceiver
	ws      *websocket.Conn
	ch      channel
	frames  chan inbound
	tokens  chan tokenAnswer
	wg      *sync.WaitGroup
	batch   []statussync.RowChange
	waiting time.Duration // of the channel's newest wait
}

// follow runs the connection; nil where ctx ended.
func (k *link) follow(ctx context.Context) *loss {
	if l := k.do(ctx, k.ch.start(time.Now())); l != nil {
		return l
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(k.ch.deadline()))
		var l *loss
		select {
		case <-ctx.Done():
			k.farewell()
			return nil
		case in := <-k.frames:
			l = k.drain(ctx, in)
		case a := <-k.tokens:
			l = k.do(ctx, k.ch.gotToken(time.Now(), a.t, a.err))
		case <-timer.C:
			l = k.do(ctx, k.ch.tick(time.Now()))
		}
		if l != nil {
			return k.ch.cut(l)
		}
	}
}

// drain takes a frame and those that wait behind it, so that a burst of changes is told at once.
func (k *link) drain(ctx context.Context, in inbound) *loss {
	defer k.flush()
	for n := 1; ; n++ {
		if in.err != nil {
			return k.ended(in.err)
		}
		k.f.update(func(s *Status) { s.Messages++ })
		if l := k.do(ctx, k.ch.take(time.Now(), in.m)); l != nil {
			return l
		}
		if n == maxDrain {
			return nil
		}
		select {
		case in = <-k.frames:
		default:
			return nil
		}
	}
}

// flush tells the changes that were gathered.
func (k *link) flush() {
	if len(k.batch) == 0 {
		return
	}
	k.f.update(func(s *Status) { s.Changes += uint64(len(k.batch)) })
	k.to.Changed(k.batch)
	k.batch = k.batch[:0]
}

// do carries effects out. It returns a loss where the connection is to be given up.
func (k *link) do(ctx context.Context, e effects) *loss {
	for _, c := range e.changes {
		if k.batch = append(k.batch, c); len(k.batch) >= maxBatch {
			k.flush()
		}
	}
	if e.lost != nil || e.live {
		k.flush()
	}
	if e.lost != nil {
		if e.drop {
			return e.lost
		}
		wait := time.Duration(-1)
		if k.ch.phase == phaseWaiting {
			wait = k.waiting
		}
		k.f.lost(k.to, e.lost, wait)
	}
	if e.live {
		k.f.live(k.to)
	}
	if e.joined {
		k.f.update(func(s *Status) { s.Joins++ })
		k.f.enter(StateJoining)
	}
	if !k.ch.heardAt.IsZero() {
		k.f.update(func(s *Status) { s.LastHeartbeat, s.HeartbeatRTT = k.ch.heardAt, k.ch.roundTrip })
	}
	if e.note != "" {
		k.f.log.Warn(e.note, "expires", k.ch.token.expires)
	}
	if e.ask {
		k.wg.Go(func() { k.tokens <- k.f.askToken(ctx) })
	}
	for _, frame := range e.send {
		wctx, cancel := context.WithTimeout(ctx, writeTimeout)
		err := k.ws.Write(wctx, websocket.MessageText, frame)
		late := wctx.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && late:
			return lossOf(statussync.CodeUnavailable, quick, "the server took nothing for "+writeTimeout.String())
		case err != nil:
			return k.ended(err)
		}
	}
	if k.ch.token.text != "" && k.ch.token.text != k.f.secrets[len(k.f.secrets)-1] {
		k.f.keepSecret(k.ch.token.text)
	}
	return nil
}

// farewell leaves the channel, so that the server need not find out. Nothing is waited for.
func (k *link) farewell() {
	if frame := k.ch.leave(); frame != nil {
		ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
		defer cancel()
		_ = k.ws.Write(ctx, websocket.MessageText, frame) // it notices without
	}
}

// ended says in words why a connection ended.
func (k *link) ended(err error) *loss {
	var (
		strange *strangeError
		closed  websocket.CloseError
	)
	switch {
	case errors.As(err, &strange):
		return lossOf(statussync.CodeUnavailable, rate, "the server sent "+strange.text)
	case errors.Is(err, websocket.ErrMessageTooBig):
		return lossOf(statussync.CodeTooLarge, rate, "the server sent a frame larger than "+strconv.Itoa(MaxFrame>>20)+" MiB")
	case errors.As(err, &closed):
		what := "the server closed the connection with code " + strconv.Itoa(int(closed.Code))
		if closed.Reason != "" {
			what += ": " + k.f.clean(closed.Reason)
		}
		return lossOf(statussync.CodeUnavailable, quick, what)
	case errors.Is(err, io.EOF):
		return lossOf(statussync.CodeUnavailable, quick, "the connection was closed without a word")
	}
	return lossOf(statussync.CodeUnavailable, quick, "the connection was lost: "+k.f.clean(lastCause(err)))
}

// lastCause is the innermost error of a chain: what happened, without who noticed.
func lastCause(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err.Error()
		}
		err = next
	}
}

// live notes that the channel is live, and tells it.
func (f *Feed) live(to statussync.FeedReceiver) {
	f.space.live(time.Now())
	f.enter(StateLive)
	f.update(func(s *Status) { s.Lives++ })
	f.log.Info("Realtime follows the database", "tables", f.o.Tables)
	f.told = ""
	to.Live()
}

// askToken asks the owner of the feed for a token.
func (f *Feed) askToken(ctx context.Context) tokenAnswer {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	s, err := f.o.Token(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("no answer within " + tokenTimeout.String())
		}
		return tokenAnswer{err: errors.New(clean(err.Error(), f.o.APIKey))}
	}
	t, err := parseToken(s)
	return tokenAnswer{t: t, err: err}
}
