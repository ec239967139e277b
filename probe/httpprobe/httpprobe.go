// Package httpprobe asks servers over plain HTTP whether they work: one GET, one answer.
//
// A success is a 2xx. 401, 403 and 429 prove life. Everything else, a redirect too, is a failure with the cause
// http_<code>; so is no answer, with one of guard's causes. No redirect is followed, no body is believed: the header
// decides. Connections are kept alive between probes; one that the server closed meanwhile is replaced without a
// failure being seen.
package httpprobe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/guard"
)

// Options are the settings of a Prober. The zero value of each field means its default.
type Options struct {
	Guard     *guard.Guard // judges every connection; nil: untrusted plans may reach public addresses only
	UserAgent string       // "statussync"
	// MaxBody is how much of an answer's body is read so that its connection can be used again, in bytes; 64 KiB. A
	// longer or slower body costs the connection, never the result.
	MaxBody int64
	// MaxIdle bounds the idle connections kept for the next probe, of trusted and of untrusted plans each; 2,048. Each
	// costs a file descriptor and about 20 KiB. Beyond it the longest idle one is closed.
	MaxIdle int
	// MaxIdlePerHost bounds them for one host and port; 4.
	MaxIdlePerHost int
	RootCAs        *x509.CertPool // whom to believe certificates from; nil: the system's authorities
}

const (
	defaultTimeout = 10 * time.Second // a plan without one: docs/domain.md, probe cadence
	maxDrain       = time.Second      // spent on reading a body at most
)

// causeBadConfig is a plan that can't be carried out: its URL or headers are not valid.
const causeBadConfig = "bad_config"

// Prober makes HTTP probes. It is safe for concurrent use and has no goroutine beyond those of its connections.
type Prober struct {
	userAgent string
	maxBody   int64
	// An idle connection is used without asking the guard again, so the two degrees of trust share none.
	trusted   *http.Transport
	untrusted atomic.Pointer[http.Transport]
	make      func(trusted bool) *http.Transport
}

// New returns a Prober. Close releases its connections.
func New(o Options) *Prober {
	if o.UserAgent == "" {
		o.UserAgent = "statussync"
	}
	if o.MaxBody <= 0 {
		o.MaxBody = 64 << 10
	}
	if o.MaxIdle <= 0 {
		o.MaxIdle = 2048
	}
	if o.MaxIdlePerHost <= 0 {
		o.MaxIdlePerHost = 4
	}
	transport := func(trusted bool) *http.Transport {
		t := o.Guard.Transport(trusted)
		t.MaxIdleConns, t.MaxIdleConnsPerHost = o.MaxIdle, o.MaxIdlePerHost
		t.TLSClientConfig = &tls.Config{RootCAs: o.RootCAs}
		return t
	}
	p := &Prober{userAgent: o.UserAgent, maxBody: o.MaxBody, trusted: transport(true), make: transport}
	p.untrusted.Store(transport(false))
	return p
}

// Renew has every later probe of an untrusted plan connect anew, so that the Guard judges it by the networks that it
// allows now. Probes under way end as they began; their connections are not used again.
func (p *Prober) Renew() {
	p.untrusted.Swap(p.make(false)).CloseIdleConnections()
}

// Close closes all idle connections. Probes under way end by their own contexts; call Close after them.
func (p *Prober) Close() {
	p.trusted.CloseIdleConnections()
	p.untrusted.Load().CloseIdleConnections()
}

// Probe asks plan.URL once; it is a statussync.Prober. It blocks for at most plan.Timeout (10 s where that is zero) and
// ends early, with the cause "canceled", when ctx does.
//
// Latency is measured to the end of the response header. Auth says what is known of the login: with configured headers
// ok or failed, without them none or required. ByConnect is set where nobody answered at all: refused, unreachable, an
// unresolved name, no connection in time, or one that was ended before its first byte. A server that takes the
// connection and then hangs is there, and so is one with a bad certificate.
func (p *Prober) Probe(ctx context.Context, plan *statussync.ProbePlan) statussync.ProbeResult {
	res := statussync.ProbeResult{ServerID: plan.ServerID, StartedAt: time.Now()}
	p.probe(ctx, plan, &res)
	res.FinishedAt = time.Now()
	return res
}

func (p *Prober) probe(parent context.Context, plan *statussync.ProbePlan, res *statussync.ProbeResult) {
	req, err := p.request(plan)
	if err != nil {
		res.Outcome, res.Cause = statussync.OutcomeFailure, causeBadConfig
		res.Detail = statussync.CleanText(err.Error(), statussync.MaxErrorText)
		return
	}
	timeout := plan.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(parent, timeout)
	defer cancel()
	var a guard.Attempt
	req = req.WithContext(a.Context(ctx))

	transport := p.untrusted.Load()
	if plan.Trusted {
		transport = p.trusted
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		f := a.Failure(parent, ctx, err, timeout)
		res.Outcome, res.Cause, res.Detail, res.ByConnect = statussync.OutcomeFailure, f.Cause, f.Detail, f.ByConnect
		return
	}
	res.Latency = time.Since(res.StartedAt)
	judge(resp, len(plan.Headers) > 0, res)
	p.drain(resp, cancel)
}

func (p *Prober) request(plan *statussync.ProbePlan) (*http.Request, error) {
	u, err := guard.ParseURL(plan.URL)
	if err != nil {
		return nil, err
	}
	h := make(http.Header, 2+len(plan.Headers))
	h.Set("User-Agent", p.userAgent)
	h.Set("Accept", "*/*")
	req := &http.Request{
		Method: http.MethodGet, URL: u, Host: u.Host, Header: h, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if err := guard.SetHeaders(req, plan.Headers); err != nil {
		return nil, err
	}
	return req, nil
}

// judge is the table of docs/domain.md, "Probe verdict", for one answer.
func judge(resp *http.Response, credentials bool, res *statussync.ProbeResult) {
	code := resp.StatusCode
	res.HTTPStatus = code
	if code >= 200 && code <= 299 {
		res.Outcome, res.Auth = statussync.OutcomeSuccess, statussync.AuthNone
		if credentials {
			res.Auth = statussync.AuthOK
		}
		return
	}
	res.Cause = "http_" + strconv.Itoa(code)
	res.Detail = "HTTP " + strconv.Itoa(code)
	if text := http.StatusText(code); text != "" {
		res.Detail += " " + text
	}
	switch {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		res.Outcome, res.Auth = statussync.OutcomeAlive, statussync.AuthRequired
		if credentials {
			res.Auth = statussync.AuthFailed
		}
	case code == http.StatusTooManyRequests:
		res.Outcome, res.Throttled = statussync.OutcomeAlive, true
		res.RetryAfter = guard.RetryAfter(resp.Header, time.Now())
	default:
		res.Outcome = statussync.OutcomeFailure
		if code >= 300 && code <= 399 && resp.Header.Get("Location") != "" {
			res.Detail += " (redirects are not followed)"
		}
	}
}

// drain reads what is left of an answer, so that its connection can be used again, within limits of size and time. A
// stream of events never ends and is not read at all.
func (p *Prober) drain(resp *http.Response, cancel context.CancelFunc) {
	defer func() { _ = resp.Body.Close() }() // closing early ends the connection, which is what is wanted then
	if resp.StatusCode == http.StatusSwitchingProtocols || resp.Body == http.NoBody || resp.ContentLength > p.maxBody ||
		strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return
	}
	late := time.AfterFunc(maxDrain, cancel)
	defer late.Stop()
	// One byte more than the limit, so that the end of a body of exactly that length is seen.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, p.maxBody+1))
}
