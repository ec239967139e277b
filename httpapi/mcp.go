package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync"
)

// PathMCP is where the service is an MCP server itself (docs/protocols.md §7).
const PathMCP = "/mcp"

// CredentialOf returns whose request r is, once it has been let in; the zero Credential for a route that asks for none.
// It is for handlers that are handed to an API.
func CredentialOf(r *http.Request) Credential {
	if q, ok := r.Context().Value(requestKey{}).(*request); ok && q.cred != nil {
		return *q.cred
	}
	return Credential{}
}

const maxMessage = 1 << 20 // bytes of one message to the MCP server

// exchange is one request to the MCP server, which may last: a stream, or a tool that waits. It ends when the service
// stops and when its credential is good no more.
type exchange struct {
	a      *API
	cred   *Credential
	cancel context.CancelFunc
}

func (x *exchange) due(time.Time) bool { return false } // its context knows when the credential expires
func (x *exchange) end(closeReason)    { x.cancel() }
func (x *exchange) cut()               { x.cancel() }

func (x *exchange) wake() {
	if !x.a.current(x.cred) {
		x.cancel()
	}
}

// mcp serves one request to the MCP server. Each counts as a connection of its credential while it lasts.
func (a *API) mcp(w http.ResponseWriter, r *http.Request) {
	cred := requestOf(r).cred
	most := a.limitsOf(cred).Connections
	if !a.limits.connect(cred.Name, most) {
		a.fail(w, r, withRetry{statussync.NewError(statussync.CodeRateLimited, tooMany("connections", most, "connections"), nil), 30})
		return
	}
	defer a.limits.disconnect(cred.Name)
	if !a.streams.enter() {
		a.fail(w, r, statussync.NewError(statussync.CodeUnavailable, "the service is stopping", nil))
		return
	}
	defer a.streams.leave()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if !cred.ExpiresAt.IsZero() {
		var stop context.CancelFunc
		ctx, stop = context.WithDeadline(ctx, cred.ExpiresAt)
		defer stop()
	}
	x := &exchange{a: a, cred: cred, cancel: cancel}
	a.streams.add(x)
	defer a.streams.remove(x, 0, false)
	x.wake() // the credentials may have changed since it was let in
	// The server's limit on reading a request must not end what lasts; a body is read within it.
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		a.fail(w, r, statussync.NewError(statussync.CodeTooLarge, "a message has 1 MiB at most", err))
		return
	case err != nil:
		a.fail(w, r, statussync.Invalid("body", "could not be read"))
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(b))
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // a reader without deadlines, as in tests, has none to be rid of
	a.opts.MCP.ServeHTTP(w, r.WithContext(ctx))
}

// mcpRoutes mounts the MCP server: a viewer may use it, and what it does for others it asks of CredentialOf.
func (a *API) mcpRoutes() {
	if a.opts.MCP == nil {
		return
	}
	for _, m := range []struct{ method, id, summary string }{
		{http.MethodPost, "mcp-post", "A message to the service as an MCP server"},
		{http.MethodGet, "mcp-stream", "The stream of an MCP session (protocol versions before 2026-07-28)"},
		{http.MethodDelete, "mcp-end", "End an MCP session"},
	} {
		op := huma.Operation{
			Method: m.method, Path: PathMCP, OperationID: m.id, Tags: []string{"mcp"}, Summary: m.summary,
			Description: "The Model Context Protocol over streamable HTTP; docs/protocols.md §7 lists tools and resources.",
			Responses: map[string]*huma.Response{"200": {Description: "As the protocol says.", Content: map[string]*huma.MediaType{
				"application/json": {}, "text/event-stream": {},
			}}},
		}
		if m.method == http.MethodPost {
			op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{Type: "object"}}}}
		}
		a.raw(op, accessViewer, a.mcp)
	}
}
