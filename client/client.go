package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Limits of one call.
const (
	// DefaultTimeout ends a call whose context has no deadline.
	DefaultTimeout = 30 * time.Second
	// ProbeTimeout takes its place where the service probes before it answers: a probe may take its timeout (10 s by
	// default) and wait for its turn.
	ProbeTimeout = 2 * time.Minute
	// MaxBody bounds an answer, in bytes. A page of 1,000 servers is about 1 MiB.
	MaxBody = 32 << 20

	maxProblem = 64 << 10
)

// DefaultBaseURL is where a service with the default configuration listens.
const DefaultBaseURL = "http://127.0.0.1:8080"

// Options says which service a Client talks to.
type Options struct {
	// BaseURL is the service's address: scheme http or https, a host, and a path only where a proxy adds one. Empty:
	// DefaultBaseURL.
	BaseURL string
	// Token is the bearer token; empty sends none. It is never logged and never sent to another host.
	Token string
	// HTTPClient carries all calls and the handshake of subscriptions. Nil: one with its own connections, which honours
	// the proxy variables of the process's environment and gives up a connection attempt after 5 s.
	HTTPClient *http.Client
	// TLS is for the Client's own connections (TrustCA makes one); nil: the machine's authorities decide whom to believe. It
	// can't be given beside HTTPClient.
	TLS *tls.Config
	// UserAgent is sent with every request; empty: "statussync-client".
	UserAgent string
	// Logger is told of reconnects and breaches of protocol. Nil: nobody is.
	Logger *slog.Logger
}

// Client calls one service. It is safe for concurrent use.
type Client struct {
	base      *url.URL
	token     string
	http      *http.Client
	userAgent string
	log       *slog.Logger
}

// New checks the options and returns a Client; it makes no connection. The error has code CodeInvalid.
func New(o Options) (*Client, error) {
	if o.BaseURL == "" {
		o.BaseURL = DefaultBaseURL
	}
	u, err := url.Parse(o.BaseURL)
	switch {
	case err != nil:
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // without the URL, which may hold a password
		}
		return nil, statussync.Invalid("server URL", "is not a URL: "+err.Error())
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, statussync.Invalid("server URL", "must begin with http:// or https://")
	case u.Hostname() == "":
		return nil, statussync.Invalid("server URL", "names no host")
	case u.User != nil:
		return nil, statussync.Invalid("server URL", "must not hold a user or password; the credential is the token")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, statussync.Invalid("server URL", "must not have a query or a fragment")
	}
	if strings.ContainsFunc(o.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, statussync.Invalid("token", "must be visible ASCII characters without spaces")
	}
	if o.TLS != nil && o.HTTPClient != nil {
		return nil, statussync.Invalid("TLS", "is given beside HTTPClient, which has its own")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = ""
	c := &Client{base: u, token: o.Token, http: o.HTTPClient, userAgent: o.UserAgent, log: o.Logger}
	if c.http == nil {
		c.http = &http.Client{Transport: newTransport(o.TLS)}
	}
	if c.userAgent == "" {
		c.userAgent = "statussync-client"
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.log = c.log.With("component", "client")
	return c, nil
}

func newTransport(conf *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second,
		TLSClientConfig:     conf,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     30 * time.Second,
	}
}

// BaseURL is the service's address as it is used.
func (c *Client) BaseURL() string { return c.base.String() }

// CloseIdle closes the connections that no call is using.
func (c *Client) CloseIdle() { c.http.CloseIdleConnections() }

// ErrUnreachable matches (errors.Is) every error that means that no answer of the service came.
var ErrUnreachable = errors.New("cannot reach the service")

// UnreachableError says why no answer of the service came. It matches ErrUnreachable.
type UnreachableError struct {
	BaseURL string
	Err     error // why
}

// Error names the service and why it could not be reached.
func (e *UnreachableError) Error() string {
	return "cannot reach " + e.BaseURL + ": " + e.Err.Error()
}

// Unwrap returns why.
func (e *UnreachableError) Unwrap() error { return e.Err }

// Is makes errors.Is(err, ErrUnreachable) true.
func (e *UnreachableError) Is(target error) bool { return target == ErrUnreachable }

// Problem is what a refusal said beside code and detail. It stands in the chain of the *statussync.Error that a call
// returns, and only there: a *statussync.Error without one was made by this package, before anything was sent.
type Problem struct {
	Status     int           // the HTTP status; 0 where the refusal came on a subscription
	CloseCode  int           // the WebSocket close code, where the refusal came on a subscription; else 0
	RequestID  string        // for the service's operator, who finds it in the log
	RetryAfter time.Duration // as the service asked; 0: it did not
	Faults     []Fault       // each fault where there are several, at most 100
}

// Fault is one of several things that are wrong with a request, or with a file that it is about.
type Fault struct {
	Location string // a field, or file:line; may be empty
	Message  string
}

// Error returns location and message.
func (f Fault) Error() string {
	if f.Location == "" {
		return f.Message
	}
	return f.Location + ": " + f.Message
}

const maxFaults = 100

// Error says where the refusal came from, for logs: the detail for people is that of the *statussync.Error around it.
func (p *Problem) Error() string {
	var s string
	if p.CloseCode != 0 {
		s = "WebSocket close code " + strconv.Itoa(p.CloseCode)
	} else if p.Status != 0 {
		s = "HTTP " + strconv.Itoa(p.Status)
	} else {
		s = "refused on the subscription"
	}
	if p.RequestID != "" {
		s += ", request " + p.RequestID
	}
	return s
}

// endpoint joins a path of already escaped segments to the base URL.
func (c *Client) endpoint(path string, q url.Values) string {
	u := *c.base
	s := u.Scheme + "://" + u.Host + u.EscapedPath() + path
	if len(q) > 0 {
		s += "?" + q.Encode()
	}
	return s
}

func (c *Client) setHeaders(h http.Header) {
	h.Set("User-Agent", c.userAgent)
	if c.token != "" {
		h.Set("Authorization", "Bearer "+c.token)
	}
}

// call makes one request. in, if not nil, is sent as JSON; out, if not nil, is filled from the answer. okStatus lists
// statuses outside 2xx whose body is an answer, not a problem.
func (c *Client) call(ctx context.Context, timeout time.Duration, method, path string, q url.Values, in, out any, okStatus ...int) error {
	caller := ctx
	if _, has := ctx.Deadline(); !has {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.endpoint(path, q), body)
	if err != nil {
		return statussync.Invalid("request", err.Error())
	}
	c.setHeaders(req.Header)
	req.Header.Set("Accept", "application/json, application/problem+json")
	if method != http.MethodGet { // also without a body: every writing route wants it, against forged forms of a browser
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(caller, err)
	}
	defer resp.Body.Close()
	ok := resp.StatusCode/100 == 2
	for _, s := range okStatus {
		ok = ok || resp.StatusCode == s
	}
	ctype, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if !ok || ctype == "application/problem+json" {
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
		if err != nil {
			return c.unreachable(caller, err)
		}
		return c.refusal(resp, b)
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	if ctype != "application/json" {
		return c.notService(fmt.Errorf("something answered HTTP %d with content type %q, which is not the statussync service", resp.StatusCode, statussync.CleanText(ctype, statussync.MaxWordText)))
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	if err != nil {
		return c.unreachable(caller, err)
	}
	if len(b) > MaxBody {
		return c.notService(fmt.Errorf("the answer is larger than %d MiB", MaxBody>>20))
	}
	if err := json.Unmarshal(b, out); err != nil {
		return c.notService(fmt.Errorf("the answer is not what the statussync service sends: %w", err))
	}
	return nil
}

// unreachable wraps a transport error; the caller's own cancellation stays what it is.
func (c *Client) unreachable(caller context.Context, err error) error {
	if caller.Err() != nil {
		return context.Cause(caller)
	}
	return &UnreachableError{BaseURL: c.BaseURL(), Err: plainCause(err)}
}

func (c *Client) notService(err error) error {
	return &UnreachableError{BaseURL: c.BaseURL(), Err: err}
}

// plainCause unwraps what net/http and net put around a failure to the words that help a person: without the URL
// (already told) and without "dial tcp 127.0.0.1:8080: connect:".
func plainCause(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if cause := tlsCause(err); cause != nil {
		return cause
	}
	var (
		dns   *net.DNSError
		errno syscall.Errno
	)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("no answer in time")
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return &wrapped{"no such host " + strconv.Quote(dns.Name), err}
		}
		return err
	case errors.As(err, &errno):
		return &wrapped{errno.Error(), err}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &wrapped{"the connection was closed before the answer was complete", err}
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return &wrapped{"no answer in time", err}
	}
	return err
}

// wrapped is an error with a text of its own.
type wrapped struct {
	text string
	err  error
}

func (w *wrapped) Error() string { return w.text }
func (w *wrapped) Unwrap() error { return w.err }

// refusal makes an error of an answer that is none of the expected. Only a problem with a code is the service's own
// word; anything else (a proxy's page, another program at that address) means that the service was not reached.
func (c *Client) refusal(resp *http.Response, body []byte) error {
	var p wire.Problem
	if json.Unmarshal(body, &p) != nil || p.Code == "" {
		ctype, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
		if resp.StatusCode == http.StatusBadRequest && bytes.Contains(body, []byte("HTTP request to an HTTPS server")) { // net/http's words
			return c.notService(errors.New("it speaks TLS there: the address must begin with https://"))
		}
		if ctype != "application/problem+json" {
			return c.notService(fmt.Errorf("something answered HTTP %d, but not as the statussync service does", resp.StatusCode))
		}
		// The body of a refused handshake may be cut short: what the status says is enough.
		p = wire.Problem{Code: wire.CodeOfHTTP(resp.StatusCode), Title: http.StatusText(resp.StatusCode)}
	}
	e := p.Err()
	prob := &Problem{
		Status: resp.StatusCode, RequestID: statussync.CleanText(p.RequestID, statussync.MaxWordText),
		RetryAfter: retryAfter(resp.Header.Get("Retry-After")),
	}
	if len(p.Errors) > 1 {
		for _, f := range p.Errors[:min(len(p.Errors), maxFaults)] {
			prob.Faults = append(prob.Faults, Fault{
				Location: statussync.CleanText(f.Location, statussync.MaxErrorText), Message: statussync.CleanText(f.Message, statussync.MaxErrorText),
			})
		}
	}
	return &statussync.Error{
		Code:     statussync.Code(statussync.CleanText(string(e.Code), statussync.MaxWordText)),
		Location: statussync.CleanText(e.Location, statussync.MaxNameText),
		Detail:   statussync.CleanText(e.Detail, maxDetail), Err: prob,
	}
}

// maxDetail bounds what is kept of a problem's text, in bytes: a request may have many faults.
const maxDetail = 4000

// retryAfter reads the header's seconds; a date or garbage is 0. More than an hour counts as an hour.
func retryAfter(s string) time.Duration {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(min(n, 3600)) * time.Second
}
