package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
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

// mcpRoutes mounts the MCP server: a viewer may use it, and what it does for others it asks of CredentialOf.
func (a *API) mcpRoutes() {
	if a.opts.MCP == nil {
		return
	}
	serve := func(w http.ResponseWriter, r *http.Request) {
		// A stream ends with the credential that opened it.
		if until := CredentialOf(r).ExpiresAt; !until.IsZero() {
			ctx, cancel := context.WithDeadline(r.Context(), until)
			defer cancel()
			r = r.WithContext(ctx)
		}
		a.opts.MCP.ServeHTTP(w, r)
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
		a.raw(op, accessViewer, serve)
	}
}
