package httpapi

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io"
	"net/http"
	"path"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/swaggest/swgui/v5/static"
)

// docsFiles is the page at /docs; the rest of it is Swagger UI, which comes embedded in a module.
//
//go:embed docs
var docsFiles embed.FS

// docsPolicy lets the page load its own files, call this service and nothing else. Swagger UI sets style attributes and
// has its icons as data: URLs.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; " +
	"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

// docsAssets are the files below /docs, each with its type. Nothing else is served there.
var docsAssets = map[string]string{
	"docs.js":              "text/javascript; charset=utf-8",
	"docs.css":             "text/css; charset=utf-8",
	"swagger-ui-bundle.js": "text/javascript; charset=utf-8",
	"swagger-ui.css":       "text/css; charset=utf-8",
	"favicon-32x32.png":    "image/png",
}

// docsTags are the groups of the description, in the order in which people need them. A tag that is not listed comes last.
var docsTags = []*huma.Tag{
	{Name: "servers", Description: "Servers with their status; overrides, probes on demand, and the definitions that people manage"},
	{Name: "environments", Description: "Hosts with their agents, what they run that nobody claims, and agents' tokens"},
	{Name: "uptime", Description: "How long servers were available, incidents, and latencies of probes"},
	{Name: "journal", Description: "What happened, durable and in order"},
	{Name: "streams", Description: "What happens, live, resumed by a cursor"},
	{Name: "agents", Description: "What agents send"},
	{Name: "service", Description: "The service itself: health, numbers, this description"},
}

// docsRoutes mounts the page that shows the description. It needs nothing from other hosts.
func (a *API) docsRoutes() error {
	a.huma.OpenAPI().Tags = docsTags
	page, err := docsFiles.ReadFile("docs/index.html")
	if err != nil {
		return err
	}
	assets := make(map[string]asset, len(docsAssets))
	for name, contentType := range docsAssets {
		if assets[name], err = readAsset(name, contentType); err != nil {
			return err
		}
	}
	a.raw(huma.Operation{
		Method: http.MethodGet, Path: "/docs", OperationID: "docs", Tags: []string{"service"}, Summary: "This description as a page",
		Responses: map[string]*huma.Response{"200": text("The page", "text/html")},
	}, accessOpen, func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", docsPolicy)
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		_, _ = w.Write(page) // the client may be gone
	})
	// The page's parts are not of the API, so the description does not list them.
	a.raw(huma.Operation{Method: http.MethodGet, Path: "/docs/{file}", OperationID: "docs-file", Hidden: true}, accessOpen,
		func(w http.ResponseWriter, r *http.Request) {
			f, ok := assets[r.PathValue("file")]
			if !ok {
				a.unrouted(w, r, http.NotFoundHandler())
				return
			}
			f.serve(w, r)
		})
	return nil
}

// asset is a file of the page. It is gzipped where the module ships it so.
type asset struct {
	contentType string
	data        []byte
	gzipped     bool
	etag        string
}

func readAsset(name, contentType string) (asset, error) {
	f := asset{contentType: contentType}
	var err error
	if f.data, err = docsFiles.ReadFile(path.Join("docs", name)); err != nil {
		if f.data, err = static.FS.ReadFile(name); err != nil {
			f.gzipped = true
			f.data, err = static.FS.ReadFile(name + ".gz")
		}
	}
	sum := sha256.Sum256(f.data)
	f.etag = `"` + hex.EncodeToString(sum[:8]) + `"`
	return f, err
}

// serve answers with the file, gzipped as it is where the client takes that.
func (f asset) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", f.contentType)
	h.Set("Vary", "Accept-Encoding")
	h.Set("Etag", f.etag)
	h.Set("Cache-Control", "no-cache") // asked again each time, answered by 304: another version of the service has other files
	if r.Header.Get("If-None-Match") == f.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	switch {
	case !f.gzipped:
		_, _ = w.Write(f.data) // here and below: the client may be gone
	case acceptsGzip(r):
		h.Set("Content-Encoding", "gzip")
		_, _ = w.Write(f.data)
	default:
		z, err := gzip.NewReader(bytes.NewReader(f.data))
		if err != nil { // the module's file is damaged
			http.Error(w, "the file is damaged", http.StatusInternalServerError)
			return
		}
		_, _ = io.Copy(w, z)
	}
}

// acceptsGzip reports whether the client says that it reads gzip.
func acceptsGzip(r *http.Request) bool {
	for _, v := range r.Header.Values("Accept-Encoding") {
		for _, coding := range strings.Split(v, ",") {
			name, q, _ := strings.Cut(strings.TrimSpace(coding), ";")
			if strings.EqualFold(strings.TrimSpace(name), "gzip") && strings.TrimSpace(q) != "q=0" {
				return true
			}
		}
	}
	return false
}
