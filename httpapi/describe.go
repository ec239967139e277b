package httpapi

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync/wire"
)

func text(description, contentType string) *huma.Response {
	return &huma.Response{Description: description, Content: map[string]*huma.MediaType{contentType: {Schema: &huma.Schema{Type: "string"}}}}
}

func param(name, doc string, list bool, enum ...any) *huma.Param {
	s := &huma.Schema{Type: "string", Enum: enum}
	p := &huma.Param{Name: name, In: "query", Description: doc, Schema: s}
	if list {
		no := false
		p.Schema, p.Explode = &huma.Schema{Type: "array", Items: s}, &no
	}
	return p
}

// rawRoutes mounts what huma does not call: bodies in the agents' shapes, streams, and the description itself.
func (a *API) rawRoutes(registry huma.Registry) {
	heartbeat := func(path, id string) huma.Operation {
		return huma.Operation{
			Method: http.MethodPost, Path: path, OperationID: id, Tags: []string{"agents"},
			Summary:     "An agent's heartbeat, with its environment's token",
			RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{Type: "object", AdditionalProperties: true}}}},
			Responses:   map[string]*huma.Response{"204": {Description: "Taken. The body is empty."}},
		}
	}
	a.raw(heartbeat("/heartbeat", "heartbeat"), accessSelf, a.heartbeat)
	a.raw(heartbeat("/functions/v1/heartbeat", "heartbeat-functions"), accessSelf, a.heartbeat)

	socket := func(path, id, summary string) huma.Operation {
		return huma.Operation{
			Method: http.MethodGet, Path: path, OperationID: id, Tags: []string{"streams"}, Summary: summary,
			Description: "The frames are described in docs/protocols.md §2.",
			Responses:   map[string]*huma.Response{"101": {Description: "A WebSocket"}},
		}
	}
	a.raw(socket(wire.PathWebSocket, "websocket", "The live stream as a WebSocket"), accessSelf, func(w http.ResponseWriter, r *http.Request) { a.websocket(w, r, false) })
	a.raw(socket(wire.PathLegacy, "websocket-legacy", "The live stream for clients of the original design"), accessSelf, func(w http.ResponseWriter, r *http.Request) { a.websocket(w, r, true) })
	a.raw(huma.Operation{
		Method: http.MethodGet, Path: wire.PathStream, OperationID: "stream", Tags: []string{"streams"}, Summary: "The live stream as server-sent events",
		Parameters: []*huma.Param{
			param("cursor", "Resume after this position. Last-Event-ID goes before it.", false),
			param("snapshot", "First all current statuses.", false, "true", "false"),
			param("mode", "Each entry, or the newest per server.", false, "every", "latest"),
			param("leave", "Also what left the states or healths that are listed.", false, "true", "false"),
			param("type", "What changed.", false, "status_change", "health_change", "error_state", "recovery"),
			param("kinds", "Kinds of entries; default status and server_removed.", true),
			param("server_ids", "", true), param("environment_ids", "", true),
			param("states", "", true, "running", "stopped", "starting", "stopping", "error", "unknown"),
			param("healths", "", true, "healthy", "degraded", "unhealthy", "unknown"),
			param("label", "key=value; given several times, all must match.", false),
			{Name: "Last-Event-ID", In: "header", Description: "Resume after this position; sent by EventSource.", Schema: &huma.Schema{Type: "string"}},
		},
		Responses: map[string]*huma.Response{"200": text("Events without end", "text/event-stream")},
	}, accessViewer, a.stream)

	a.mcpRoutes()
	if a.opts.Metrics != nil {
		a.raw(huma.Operation{
			Method: http.MethodGet, Path: "/metrics", OperationID: "metrics", Tags: []string{"service"}, Summary: "Numbers for Prometheus",
			Responses: map[string]*huma.Response{"200": text("Metrics", "text/plain")},
		}, accessViewer, a.opts.Metrics.ServeHTTP)
	}
	static := func(path, id, summary, contentType string, content *[]byte) {
		a.raw(huma.Operation{
			Method: http.MethodGet, Path: path, OperationID: id, Tags: []string{"service"}, Summary: summary,
			Responses: map[string]*huma.Response{"200": text(summary, contentType)},
		}, accessOpen, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", contentType)
			_, _ = w.Write(*content) // the client may be gone
		})
	}
	static("/openapi.json", "openapi-json", "This description as JSON", "application/openapi+json", &a.openapiJSON)
	static("/openapi.yaml", "openapi-yaml", "This description as YAML", "application/openapi+yaml", &a.openapiYAML)
}

// describe renders the description, once.
func (a *API) describe(registry huma.Registry) error {
	doc := a.huma.OpenAPI()
	fault := registry.Schema(reflect.TypeFor[wire.Problem](), true, "Problem")
	for _, item := range doc.Paths {
		for _, op := range operations(item) {
			op.Responses["default"] = &huma.Response{
				Description: "A problem (RFC 9457); code tells which.",
				Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: fault}},
			}
		}
	}
	// huma describes its own form of errors, which transform replaces.
	delete(registry.Map(), "ErrorModel")
	delete(registry.Map(), "ErrorDetail")
	var err error
	if a.openapiJSON, err = json.Marshal(doc); err != nil {
		return err
	}
	a.openapiYAML, err = doc.YAML()
	return err
}

// operations lists a path's operations in a fixed order.
func operations(p *huma.PathItem) []*huma.Operation {
	return slices.DeleteFunc([]*huma.Operation{p.Get, p.Put, p.Post, p.Delete, p.Patch, p.Head, p.Options, p.Trace},
		func(op *huma.Operation) bool { return op == nil })
}
