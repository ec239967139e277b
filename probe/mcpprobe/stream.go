package mcpprobe

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync/guard"
)

const (
	maxIdleEvent   = 64 << 10 // of an event that nobody waits for
	maxBetween     = 8 << 20  // bytes that a held stream may send between two questions
	pongEvery      = time.Second
	maxEndpointLen = 4096
)

func base64Encode(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// stream is the held GET of one HTTP+SSE server. One goroutine reads it and hands answers to whoever waits for their id.
type stream struct {
	p      *Prober
	t      *target
	cancel context.CancelFunc
	left   atomic.Int64  // of maxBetween
	ready  chan struct{} // closed when endpoint or a refusal is known
	done   chan struct{} // closed when the reader has ended; err is then set

	// Set before ready is closed.
	endpoint *url.URL
	refusal  *answer // the server did not give a stream with an endpoint

	err     error
	attempt guard.Attempt

	mu       sync.Mutex
	waiting  map[int64]waiter
	version  string
	lastPong time.Time
}

type waiter struct {
	to    chan *message // has room for its one answer
	limit int64
}

// openStream opens a stream and waits for its endpoint. The stream outlives ctx unless it could not be opened; end ends
// it.
func (p *Prober) openStream(parent, ctx context.Context, t *target) (*stream, *answer, *guard.Failure) {
	sctx, cancel := context.WithCancel(p.base)
	s := &stream{
		p: p, t: t, cancel: cancel, ready: make(chan struct{}), done: make(chan struct{}), waiting: make(map[int64]waiter),
	}
	s.left.Store(maxBetween)
	began := time.Now()
	if !p.startReader(func() { s.run(sctx) }) {
		cancel()
		return nil, nil, &guard.Failure{Cause: guard.CauseCanceled, Detail: "the prober is closed"}
	}
	fail := func() *guard.Failure {
		s.end()
		<-s.done
		err := s.err
		if err == nil {
			err = ctx.Err()
		}
		f := s.attempt.Failure(parent, ctx, err, time.Since(began).Round(time.Millisecond))
		return &f
	}
	select {
	case <-s.ready:
	case <-s.done:
		select {
		case <-s.ready:
		default:
			return nil, nil, fail()
		}
	case <-ctx.Done():
		return nil, nil, fail()
	}
	if s.refusal != nil {
		s.end()
		return nil, s.refusal, nil
	}
	return s, &answer{status: http.StatusOK, mediaType: mediaEvents}, nil
}

// end ends the stream and with it the session. It does not wait for the reader; Close does.
func (s *stream) end() { s.cancel() }

// ended reports whether the server, or end, has ended the stream.
func (s *stream) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *stream) run(ctx context.Context) {
	defer close(s.done)
	defer s.cancel()
	r := s.t.request(http.MethodGet, nil)
	r.Header["Accept"] = []string{mediaEvents}
	delete(r.Header, "Content-Type")
	resp, err := s.t.pool.Load().RoundTrip(r.WithContext(s.attempt.Context(ctx)))
	if err != nil {
		s.err = err
		return
	}
	defer func() { _ = resp.Body.Close() }()
	a := newAnswer(resp)
	refuse := func(problem string) {
		a.problem, s.refusal = problem, a
		close(s.ready)
	}
	if a.status < 200 || a.status > 299 {
		refuse("no event stream")
		return
	}
	if a.mediaType != mediaEvents {
		refuse("no event stream but " + clean(a.mediaType, 64))
		return
	}
	events := eventReader{r: bufio.NewReaderSize(budget{resp.Body, &s.left}, 2048), limit: s.limit, skip: true}
	for {
		ev, err := events.next()
		if err != nil {
			s.err = err
			return
		}
		if s.endpoint == nil {
			// The specification of 2024-11-05 has the endpoint as the first event; whatever else comes first is skipped.
			if ev.name != "endpoint" {
				continue
			}
			u, err := sameOrigin(s.t.url, string(ev.data))
			if err != nil {
				refuse(err.Error())
				return
			}
			s.endpoint = u
			close(s.ready)
			continue
		}
		if ev.name == "" || ev.name == "message" {
			s.message(ctx, ev.data)
		}
	}
}

// sameOrigin resolves an endpoint against the URL of its stream. One of another origin is refused: our credentials would
// go there.
func sameOrigin(base *url.URL, ref string) (*url.URL, error) {
	if len(ref) > maxEndpointLen {
		return nil, errors.New("an endpoint that is too long")
	}
	u, err := base.Parse(strings.TrimSpace(ref))
	if err != nil {
		return nil, errors.New("an endpoint that is no URL")
	}
	if u.Scheme != base.Scheme || !strings.EqualFold(u.Hostname(), base.Hostname()) || port(u) != port(base) || u.User != nil {
		return nil, errors.New("an endpoint on another origin, which is not asked")
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "https" {
		return "443"
	}
	return "80"
}

// limit is the largest event that somebody waits for.
func (s *stream) limit() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := int64(maxIdleEvent)
	for _, w := range s.waiting {
		n = max(n, w.limit)
	}
	return int(n)
}

func (s *stream) message(ctx context.Context, data []byte) {
	ms, err := parseMessages(data)
	if err != nil {
		return
	}
	for i := range ms {
		m := &ms[i]
		if id, ok := m.id(); ok {
			s.mu.Lock()
			w, ok := s.waiting[id]
			delete(s.waiting, id)
			s.mu.Unlock()
			if ok {
				w.to <- m
			}
			continue
		}
		if m.isPing() {
			s.mu.Lock()
			now, version := time.Now(), s.version
			due := now.Sub(s.lastPong) >= pongEvery
			if due {
				s.lastPong = now
			}
			s.mu.Unlock()
			if due {
				s.p.send(ctx, s.t, s.endpoint, "", version, pong(m.ID))
			}
		}
	}
}

var errStreamEnded = errors.New("the server ended the event stream")

// ask posts one question to the endpoint and waits for its answer on the stream.
func (s *stream) ask(parent, ctx context.Context, q *question, id int64) (*answer, *guard.Failure) {
	w := waiter{to: make(chan *message, 1), limit: q.limit}
	s.left.Store(maxBetween)
	s.mu.Lock()
	s.waiting[id] = w
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, id)
		s.mu.Unlock()
	}()
	var at guard.Attempt
	began := time.Now()
	fail := func(err error) *guard.Failure {
		f := at.Failure(parent, ctx, err, time.Since(began).Round(time.Millisecond))
		return &f
	}
	r := s.t.request(http.MethodPost, s.p.body(id, q))
	r.URL = s.endpoint
	inSession(r.Header, "", q.version)
	if !q.once {
		r.Header["X-Idempotency-Key"] = nil
	}
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := s.t.pool.Load().RoundTrip(r.WithContext(at.Context(rctx)))
	if err != nil {
		return nil, fail(err)
	}
	a := newAnswer(resp)
	if a.status < 200 || a.status > 299 {
		err = a.read(resp.Body, q.limit, id, nil)
		_ = resp.Body.Close()
		if err != nil {
			return nil, fail(err)
		}
		return a, nil
	}
	drain(resp.Body, cancel) // "Accepted"; the answer comes on the stream
	_ = resp.Body.Close()
	got := func(m *message) (*answer, *guard.Failure) {
		return &answer{status: http.StatusOK, mediaType: mediaEvents, rpc: m, header: resp.Header}, nil
	}
	select {
	case m := <-w.to:
		return got(m)
	case <-s.done:
		select {
		case m := <-w.to:
			return got(m)
		default:
		}
		if errors.Is(s.err, errTooMuch) {
			return &answer{status: http.StatusOK, mediaType: mediaEvents, header: resp.Header,
				problem: "more than " + size(maxBetween) + " of events without an answer"}, nil
		}
		if s.err == nil || errors.Is(s.err, io.EOF) {
			f := fail(errStreamEnded)
			f.Cause = guard.CauseReset
			return nil, f
		}
		return nil, fail(s.err)
	case <-ctx.Done():
		return nil, fail(ctx.Err())
	}
}

// notify posts a notification to the endpoint.
func (s *stream) notify(ctx context.Context, version string, body []byte) {
	s.mu.Lock()
	s.version = version
	s.mu.Unlock()
	s.p.send(ctx, s.t, s.endpoint, "", version, body)
}
