package mcpprobe

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/guard"
)

const (
	mediaJSON   = "application/json"
	mediaEvents = "text/event-stream"

	headerSession = "Mcp-Session-Id"
	headerVersion = "Mcp-Protocol-Version"
	headerMethod  = "Mcp-Method"
	headerName    = "Mcp-Name"

	maxErrorBody = 64 << 10               // of an answer that is no success
	maxDrain     = 100 * time.Millisecond // spent on what follows an answer, so that its connection can be used again
	maxPongs     = 3                      // pings of a server that are answered within one answer
	maxSessionID = 1024                   // bytes; the specification sets no limit
)

// target is how one plan's server is asked. It is immutable.
type target struct {
	plan   *statussync.ProbePlan
	url    *url.URL
	host   string
	header http.Header // the configured ones and ours that are the same for every request
	pool   *atomic.Pointer[http.Transport]
	login  bool // credentials are configured
}

// newTarget checks what a plan says. The error tells what is wrong and shows no secret.
func (p *Prober) newTarget(plan *statussync.ProbePlan) (*target, error) {
	u, err := guard.ParseURL(plan.URL)
	if err != nil {
		return nil, err
	}
	r := http.Request{Host: u.Host, Header: make(http.Header, 8+len(plan.Headers))}
	r.Header.Set("User-Agent", p.o.UserAgent)
	if err := guard.SetHeaders(&r, plan.Headers); err != nil {
		return nil, err
	}
	for _, name := range [...]string{headerSession, headerVersion, headerMethod, headerName} {
		r.Header.Del(name)
	}
	r.Header.Set("Content-Type", mediaJSON)
	r.Header.Set("Accept", mediaJSON+", "+mediaEvents)
	t := &target{plan: plan, url: u, host: r.Host, header: r.Header, pool: &p.untrusted, login: len(plan.Headers) > 0}
	if plan.Trusted {
		t.pool = &p.trusted
	}
	return t, nil
}

// sameTarget reports whether two plans ask the same server in the same way, so that a session can be kept.
func sameTarget(a, b *statussync.ProbePlan) bool {
	return a == b || a.URL == b.URL && a.Transport == b.Transport && a.Trusted == b.Trusted && maps.Equal(a.Headers, b.Headers)
}

// request returns a request with the target's headers and our own.
func (t *target) request(method string, body []byte) *http.Request {
	h := make(http.Header, len(t.header)+4)
	maps.Copy(h, t.header) // the values are shared and never changed
	r := &http.Request{Method: method, URL: t.url, Host: t.host, Header: h, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	if body != nil {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	return r
}

// inSession adds what a request of a legacy session carries.
func inSession(h http.Header, session, version string) {
	if session != "" {
		h[headerSession] = []string{session}
	}
	if version >= versionHeader {
		h[headerVersion] = []string{version}
	}
}

// question is one JSON-RPC request.
type question struct {
	method  string
	fields  string // members of params, without the braces
	version string // protocol version to speak
	modern  bool
	session string
	name    string // of the tool, for the header Mcp-Name
	limit   int64  // of the answer's body, in bytes
	once    bool   // must not be sent twice, whatever the connection does
}

func (p *Prober) body(id int64, q *question) []byte {
	b := make([]byte, 0, 256+len(q.fields))
	b = append(b, `{"jsonrpc":"2.0","id":`...)
	b = strconv.AppendInt(b, id, 10)
	b = append(b, `,"method":"`...)
	b = append(b, q.method...)
	b = append(b, `","params":{`...)
	if q.modern {
		b = append(b, `"_meta":{"io.modelcontextprotocol/protocolVersion":"`...)
		b = append(b, q.version...)
		b = append(b, `","io.modelcontextprotocol/clientInfo":`...)
		b = append(b, p.clientInfo...)
		b = append(b, `,"io.modelcontextprotocol/clientCapabilities":{}}`...)
		if q.fields != "" {
			b = append(b, ',')
		}
	}
	b = append(b, q.fields...)
	return append(b, `}}`...)
}

// readers are the buffers of event streams that are read for one answer.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4096) }}

// post asks one question by POST. It returns the answer, or why none came before ctx ended; parent is whose cancellation
// is not the server's fault.
func (p *Prober) post(parent, ctx context.Context, t *target, q *question, id int64) (*answer, *guard.Failure) {
	r := t.request(http.MethodPost, p.body(id, q))
	if q.modern {
		r.Header[headerVersion] = []string{q.version}
		r.Header[headerMethod] = []string{q.method}
		if q.name != "" {
			r.Header[headerName] = []string{headerValue(q.name)}
		}
	} else {
		inSession(r.Header, q.session, q.version)
	}
	if !q.once {
		// net/http repeats a request on a fresh connection, where the server closed an idle one, only if it may take it
		// for idempotent. An empty list says so and is not sent.
		r.Header["X-Idempotency-Key"] = nil
	}
	var at guard.Attempt
	began := time.Now()
	fail := func(err error) *guard.Failure {
		f := at.Failure(parent, ctx, err, time.Since(began).Round(time.Millisecond))
		return &f
	}
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := t.pool.Load().RoundTrip(r.WithContext(at.Context(rctx)))
	if err != nil {
		return nil, fail(err)
	}
	defer func() { _ = resp.Body.Close() }()
	a := newAnswer(resp)
	pongs := 0
	onPing := func(mid json.RawMessage) {
		if pongs++; pongs <= maxPongs && !q.modern {
			p.send(rctx, t, t.url, q.session, q.version, pong(mid))
		}
	}
	if err := a.read(resp.Body, q.limit, id, onPing); err != nil {
		return nil, fail(err)
	}
	drain(resp.Body, cancel)
	return a, nil
}

func newAnswer(resp *http.Response) *answer {
	a := &answer{status: resp.StatusCode, header: resp.Header}
	ct := resp.Header.Get("Content-Type")
	switch ct { // the usual ones, without the cost of parsing
	case mediaJSON, mediaEvents:
		a.mediaType = ct
	default:
		mt, _, err := mime.ParseMediaType(ct)
		if err != nil {
			mt = strings.ToLower(strings.TrimSpace(strings.SplitN(ct, ";", 2)[0]))
		}
		a.mediaType = mt
	}
	if s := resp.Header.Get(headerSession); s != "" && len(s) <= maxSessionID {
		a.session = s
	}
	return a
}

// read takes the answer to question id from a body; its errors are those of reading. What is wrong with the content
// stands in problem.
func (a *answer) read(body io.Reader, limit, id int64, onPing func(json.RawMessage)) error {
	ok := a.status >= 200 && a.status <= 299
	if !ok {
		limit = min(limit, maxErrorBody)
	}
	var left atomic.Int64
	left.Store(limit)
	in := budget{body, &left}
	if a.mediaType == mediaEvents {
		br := readers.Get().(*bufio.Reader)
		br.Reset(in)
		defer func() {
			br.Reset(nil)
			readers.Put(br)
		}()
		events := eventReader{r: br, limit: func() int { return int(limit) }}
		for {
			ev, err := events.next()
			switch {
			case err == io.EOF:
				a.problem = "the event stream ended without an answer"
				return nil
			case errors.Is(err, errTooMuch), errors.Is(err, errEventSize):
				a.problem, a.tooLong = "more than "+size(limit)+" of events without an answer", true
				return nil
			case err != nil:
				return err
			case ev.name != "" && ev.name != "message", len(ev.data) == 0: // an empty one only gives the stream an id
				continue
			}
			m, err := find(ev.data, id, onPing)
			if err != nil {
				a.problem = "an event that is no JSON-RPC"
				a.text = beginning(ev.data)
				return nil
			}
			if m != nil {
				a.rpc = m
				return nil
			}
		}
	}
	data, err := io.ReadAll(in)
	switch {
	case errors.Is(err, errTooMuch):
		// The end of a body of exactly the limit is not seen; nobody's answer is that long.
		a.problem, a.tooLong = "an answer of more than "+size(limit), true
		a.text = beginning(data)
		return nil
	case err != nil && ok:
		return err
	}
	m, err := find(data, id, nil)
	if m != nil {
		a.rpc = m
		return nil
	}
	a.text = beginning(data)
	what := a.mediaType
	if what == "" {
		what = "no content type"
	}
	switch {
	case len(data) == 0:
		a.problem = "HTTP " + strconv.Itoa(a.status) + " with an empty body"
	case err == nil && json.Valid(data):
		a.problem = "JSON that is no answer to our question"
	default:
		a.problem = "a body that is no JSON-RPC (" + clean(what, 64) + ")"
	}
	return nil
}

func size(n int64) string {
	if n >= 1<<20 {
		return strconv.FormatInt(n>>20, 10) + " MiB"
	}
	return strconv.FormatInt(n>>10, 10) + " KiB"
}

func beginning(data []byte) string { return strings.ToLower(string(data[:min(len(data), 1024)])) }

// drain reads a little of what follows an answer: normally its end, which frees the connection.
func drain(body io.Reader, cancel context.CancelFunc) {
	late := time.AfterFunc(maxDrain, cancel)
	defer late.Stop()
	_, _ = io.Copy(io.Discard, io.LimitReader(body, 4<<10))
}

// send posts what has no answer: a notification, or our answer to a server's ping. Nothing is concluded from how it
// went; the next question tells. It ends with ctx, at the latest after two seconds.
func (p *Prober) send(ctx context.Context, t *target, to *url.URL, session, version string, body []byte) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	r := t.request(http.MethodPost, body)
	r.URL = to
	inSession(r.Header, session, version)
	r.Header["X-Idempotency-Key"] = nil
	resp, err := t.pool.Load().RoundTrip(r.WithContext(guard.WithAttempt(ctx)))
	if err != nil {
		return
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.Header.Get("Content-Type") != mediaEvents {
		drain(resp.Body, cancel)
	}
}

// headerValue writes a tool's name for a header, as the specification of 2026-07-28 has it: in Base64 where it is not
// plain ASCII.
func headerValue(s string) string {
	plain := s != "" && s == strings.TrimSpace(s) && !(strings.HasPrefix(s, "=?base64?") && strings.HasSuffix(s, "?="))
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= 0x20 && s[i] <= 0x7e
	}
	if plain || s == "" {
		return s
	}
	return "=?base64?" + base64Encode(s) + "?="
}
