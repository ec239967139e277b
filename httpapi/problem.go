package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// request is what is known of a request beside the request itself.
type request struct {
	id   string
	url  *url.URL
	cred *Credential // set by the guard of the route
}

type requestKey struct{}

func newRequest(r *http.Request) *request { return &request{id: rand.Text(), url: r.URL} }

// queryIn returns the query of the request whose context it is.
func queryIn(ctx context.Context) url.Values {
	if u := requestIn(ctx).url; u != nil {
		return u.Query()
	}
	return nil
}

// requestOf returns what ServeHTTP noted of r. Every handler runs below ServeHTTP.
func requestOf(r *http.Request) *request { return requestIn(r.Context()) }

func requestIn(ctx context.Context) *request {
	if q, ok := ctx.Value(requestKey{}).(*request); ok {
		return q
	}
	return &request{}
}

// problem is an error on its way out. It is what huma's handlers return and what every other handler writes.
type problem struct {
	wire.Problem
	header http.Header
}

// Error implements error.
func (p *problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *problem) GetStatus() int { return p.Status }

// GetHeaders implements huma.HeadersError.
func (p *problem) GetHeaders() http.Header { return p.header }

// ContentType implements huma.ContentTypeFilter.
func (p *problem) ContentType(string) string { return "application/problem+json" }

// defaultRetryAfter is what Retry-After says where nothing better is known, in seconds.
const defaultRetryAfter = 1

// maxFaults bounds the faults that one problem lists: a file may have any number.
const maxFaults = 50

// withRetry gives an error the Retry-After header that its problem will have.
type withRetry struct {
	error
	seconds int
}

func (w withRetry) Unwrap() error { return w.error }

// toProblem makes a problem of any error. What is not a *statussync.Error, and everything internal, is logged and shown
// only as "internal error" with the request's id. Of what is unavailable the cause is logged, and the detail shown.
func (a *API) toProblem(ctx context.Context, err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = statussync.NewError(statussync.CodeUnavailable, "this took too long", err)
	}
	id := requestIn(ctx).id
	code := statussync.CodeOf(err)
	status := wire.HTTPStatus(code)
	p = &problem{
		Problem: wire.Problem{
			Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, RequestID: id, Detail: wire.Detail(err),
		},
		header: http.Header{},
	}
	var e *statussync.Error
	if all := faults(err); len(all) > 1 && code != statussync.CodeInternal {
		for _, e := range all[:min(len(all), maxFaults)] {
			p.Errors = append(p.Errors, wire.ProblemError{Location: e.Location, Message: e.Detail})
		}
		p.Detail = strconv.Itoa(len(all)) + " faults"
		if len(all) > maxFaults {
			p.Detail += ", the first of which are listed"
		}
	} else if errors.As(err, &e) && e.Location != "" && code != statussync.CodeInternal {
		p.Errors = []wire.ProblemError{{Location: e.Location, Message: e.Detail}}
	}
	switch code {
	case statussync.CodeInternal:
		if !errors.Is(err, context.Canceled) { // the client is gone; nobody reads this
			a.log.Error("request failed", "request_id", id, "error", err)
		}
	case statussync.CodeUnauthorized:
		p.header.Set("WWW-Authenticate", `Bearer realm="statussync"`)
	case statussync.CodeRateLimited, statussync.CodeUnavailable:
		seconds := defaultRetryAfter
		var wr withRetry
		if errors.As(err, &wr) {
			seconds = wr.seconds
		}
		p.header.Set("Retry-After", strconv.Itoa(seconds))
		if code == statussync.CodeUnavailable && errors.As(err, &e) && e.Unwrap() != nil && !errors.Is(err, context.Canceled) {
			a.log.Warn("request failed", "request_id", id, "error", err) // the answer has the detail only, not the cause and what to do
		}
	}
	return p
}

// fail answers a request with a problem.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := a.toProblem(r.Context(), err)
	a.log.Log(r.Context(), slog.LevelDebug, "refused", "request_id", p.RequestID, "method", r.Method, "path", r.URL.Path, "status", p.Status, "code", p.Code)
	for k, v := range p.header {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Del("Content-Length")
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		_ = json.NewEncoder(w).Encode(&p.Problem) // the client may be gone
	}
}

// transform turns huma's own errors into our problems. It is set on this API alone, so huma's package-wide NewError
// stays as it is. The value that was refused is not echoed: it may hold a secret.
func (a *API) transform(ctx huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	p := wire.Problem{
		Type: "about:blank", Title: http.StatusText(m.Status), Status: m.Status, Code: wire.CodeOfHTTP(m.Status),
		Detail: m.Detail, RequestID: requestIn(ctx.Context()).id,
	}
	if m.Status >= 500 {
		a.log.Error("request failed", "request_id", p.RequestID, "error", m.Detail, "errors", m.Errors)
		p.Detail = "internal error"
		return &p, nil
	}
	for _, e := range m.Errors {
		if e != nil {
			p.Errors = append(p.Errors, wire.ProblemError{Location: e.Location, Message: statussync.CleanText(e.Message, statussync.MaxErrorText)})
		}
	}
	return &p, nil
}

// recovered ends a handler that panicked: the client gets a problem where nothing was written yet, the log the stack,
// and the service lives on.
func (a *API) recovered(w *response, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler {
		panic(v)
	}
	if r.Context().Err() != nil { // the client went away under the answer; huma panics where a write fails
		a.log.Debug("client gone", "request_id", requestOf(r).id, "path", r.URL.Path, "error", v)
		return
	}
	a.log.Error("panic in a handler", "request_id", requestOf(r).id, "method", r.Method, "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
	if !w.begun {
		a.fail(w, r, statussync.NewError(statussync.CodeInternal, "", errPanicked))
	}
}

var errPanicked = errors.New("panic")

// unrouted answers what no route serves: h is what the mux would have done (404, 405 or a redirect to the cleaned path).
func (a *API) unrouted(w http.ResponseWriter, r *http.Request, h http.Handler) {
	dry := &dryRun{header: http.Header{}}
	h.ServeHTTP(dry, r)
	if dry.status >= 300 && dry.status < 400 {
		h.ServeHTTP(w, r)
		return
	}
	if dry.status == http.StatusMethodNotAllowed {
		allow := dry.header.Get("Allow")
		w.Header().Set("Allow", allow)
		a.fail(w, r, statussync.NewError(statussync.CodeMethodNotAllowed, r.Method+" is not served here; what is: "+allow, nil))
		return
	}
	if (r.Method == http.MethodGet || r.Method == http.MethodHead) && !strings.HasPrefix(r.URL.Path, "/api/") {
		if a.opts.Page != nil && a.opts.Page.Has(r.URL.Path) && (r.URL.Path != "/" || acceptsHTML(r)) {
			a.opts.Page.ServeHTTP(w, r)
			return
		}
		if r.URL.Path == "/" {
			w.Header().Set("Vary", "Accept")
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			base := a.opts.BasePath
			_, _ = w.Write([]byte("statussync: the API is under " + base + wire.BasePath + ", described at " + base + "/openapi.json and " + base + "/docs\n"))
			return
		}
	}
	a.fail(w, r, statussync.NewError(statussync.CodeNotFound, "nothing is served at "+strconv.Quote(statussync.CleanText(r.URL.Path, 200)), nil))
}

// dryRun is a ResponseWriter that only notes what would have been answered.
type dryRun struct {
	header http.Header
	status int
}

func (d *dryRun) Header() http.Header { return d.header }

func (d *dryRun) WriteHeader(status int) {
	if d.status == 0 {
		d.status = status
	}
}

func (d *dryRun) Write(b []byte) (int, error) {
	d.WriteHeader(http.StatusOK)
	return len(b), nil
}
