package guard

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Attempt watches how far one request came, so that its failure can be told from another's: nobody there, or somebody
// who does not answer. The zero value is ready; it serves one request, and may be read while that is under way.
type Attempt struct{ resolving, connected, answered atomic.Bool }

// Context returns a context for the request. It carries the trace that a watches by, and WithAttempt of ctx.
func (a *Attempt) Context(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(WithAttempt(ctx), &httptrace.ClientTrace{
		// A request that meets a dead idle connection starts anew with another one.
		GetConn:  func(string) { a.connected.Store(false) },
		DNSStart: func(httptrace.DNSStartInfo) { a.resolving.Store(true) },
		DNSDone:  func(httptrace.DNSDoneInfo) { a.resolving.Store(false) },
		ConnectDone: func(_, _ string, err error) {
			if err == nil {
				a.connected.Store(true)
			}
		},
		GotConn:              func(httptrace.GotConnInfo) { a.connected.Store(true) },
		GotFirstResponseByte: func() { a.answered.Store(true) },
	})
}

// Failure is why a request got no answer.
type Failure struct {
	Cause     string // one of this package's causes
	Detail    string // text for people, fit to be stored and shown
	ByConnect bool   // nobody answered at all: refused, unreachable, an unresolved name, no connection in time, or one ended before its first byte
}

// Failure classifies err, with which the watched request (or the reading of its answer) ended. parent is the context of
// whoever asked, ctx the one of the request, which ended by itself after timeout.
//
// A server that takes the connection and then hangs is there, and so is one with a bad certificate: ByConnect is not set.
func (a *Attempt) Failure(parent, ctx context.Context, err error, timeout time.Duration) Failure {
	var f Failure
	f.Cause, f.Detail = CleanError(err)
	switch {
	case parent.Err() != nil && errors.Is(parent.Err(), context.Canceled):
		return Failure{Cause: CauseCanceled, Detail: "the probe was given up"}
	case ctx.Err() != nil && f.Cause != CauseDNS:
		// Whatever broke when the time was up broke because of that, be it the server or a silent name server.
		f.Cause = CauseTimeout
		if a.resolving.Load() {
			f.Cause, f.Detail = CauseDNS, "the name was not resolved within "+timeout.String()
		}
	}
	switch f.Cause {
	case CauseRefused, CauseUnreachable, CauseDNS:
		f.ByConnect = true
	case CauseReset:
		f.ByConnect = !a.answered.Load()
	case CauseTimeout:
		f.ByConnect = !a.connected.Load()
		if f.ByConnect {
			f.Detail = "no connection within " + timeout.String()
		} else {
			f.Detail = "connected, but no answer within " + timeout.String()
		}
	}
	return f
}

// SetHeaders puts configured headers into r, "Host" into its Host. The error of one that HTTP does not allow shows
// neither its name nor its value: a header in the wrong place may be the secret itself.
func SetHeaders(r *http.Request, headers map[string]string) error {
	for k, v := range headers {
		if !validHeader(k, v) {
			return errors.New("a configured header has characters that HTTP does not allow")
		}
		if strings.EqualFold(k, "Host") {
			r.Host = v
			continue
		}
		r.Header.Set(k, v)
	}
	return nil
}

// validHeader is RFC 9110's token for the name, and no control character in the value.
func validHeader(name, value string) bool {
	for i := 0; i < len(name); i++ {
		if c := name[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	for i := 0; i < len(value); i++ {
		if c := value[i]; (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return name != ""
}

// MaxRetryAfter is the longest that a server can keep probes away.
const MaxRetryAfter = time.Hour

// RetryAfter reads Retry-After (RFC 9110 §10.2.3): seconds, or a date, which is counted from the server's own Date where
// it gives one, since its clock may be wrong. 0 where it says nothing usable; never more than MaxRetryAfter.
func RetryAfter(h http.Header, now time.Time) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if v == "" {
		return 0
	}
	if strings.Trim(v, "0123456789") == "" {
		s, err := strconv.Atoi(v)
		if err != nil || s > int(MaxRetryAfter/time.Second) {
			return MaxRetryAfter
		}
		return time.Duration(s) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return min(max(at.Sub(now), 0), MaxRetryAfter)
}
