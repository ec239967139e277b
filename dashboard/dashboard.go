// Package dashboard serves the page on which people see the fleet. The page is made from dashboard/app by Vite (`make
// build`), embedded when the program is compiled, and holds no data: everything it shows, it asks of the public API.
//
// Guarantees: everything is in memory and nothing changes after New, so no request waits for another. What is named by
// its content may be kept by browsers for ever; all else is asked for again, and answered by 304 where it is the same.
// No page is served that could load, or speak to, anything but this service, or run a script that is not one of its files.
package dashboard

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// built is the page as it was when the program was compiled. The star lets a tree compile in which the page was never
// made: dist.txt is always there.
//
//go:embed all:dist*
var built embed.FS

// policy is the page's Content-Security-Policy: its own files, this service's API and WebSocket, and icons that it draws.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"base-uri 'self'; form-action 'self'; frame-ancestors 'none'"

// Built returns the files of the page that this program was compiled with; an error that is fs.ErrNotExist: it was compiled
// without.
func Built() (fs.FS, error) {
	if _, err := fs.Stat(built, "dist/index.html"); err != nil {
		return nil, err
	}
	return fs.Sub(built, "dist")
}

// Page serves the page. It is safe for concurrent use.
type Page struct {
	files map[string]*file // by path, "/assets/x.js"; "/" is the page itself
}

// file is one file in the forms in which it may be sent.
type file struct {
	contentType string
	caching     string
	forms       []form // in order of preference; the last one is plain
	page        bool
}

// form is a file under one content coding.
type form struct {
	coding string // br, gzip, or "" for none
	etag   string
	data   []byte
}

// New returns the page that this program was compiled with, to be served below basePath ("" for the root). Where it was
// compiled without, "/" says so and how to get it, in one line. The error names the file that is not as it must be.
func New(basePath string) (*Page, error) {
	dist, err := Built()
	if errors.Is(err, fs.ErrNotExist) {
		return &Page{map[string]*file{"/": newFile("index.txt", []byte("statussync: this program was built without the dashboard; `make build` with Node.js makes it with it. "+
			"The API is under "+basePath+"/api/v1, described at "+basePath+"/openapi.json and "+basePath+"/docs\n"), nil)}}, nil
	}
	if err != nil {
		return nil, err
	}
	return FromFiles(dist, basePath)
}

// FromFiles is New of other files: an index.html, and what belongs to it. A file beside "x" that is called "x.gz" or "x.br" is
// its compressed form.
func FromFiles(dist fs.FS, basePath string) (*Page, error) {
	p := &Page{files: map[string]*file{}}
	err := fs.WalkDir(dist, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || compressed(name) || strings.HasPrefix(path.Base(name), ".") {
			return err
		}
		data, err := fs.ReadFile(dist, name)
		if err != nil {
			return err
		}
		if name == "index.html" {
			if data, err = withBase(data, basePath); err != nil {
				return err
			}
			p.files["/"] = newFile(name, data, nil)
			return nil
		}
		at := "/" + name
		if taken(at) {
			return fmt.Errorf("the page's file %s has the place of something else that the service serves", name)
		}
		p.files[at] = newFile(name, data, dist)
		return nil
	})
	if err == nil && p.files["/"] == nil {
		err = errors.New("the page has no index.html")
	}
	return p, err
}

// taken reports whether a path is the service's own: it would never be asked of the page.
func taken(at string) bool {
	first, _, _ := strings.Cut(at[1:], "/")
	switch first {
	case "api", "docs", "openapi.json", "openapi.yaml", "metrics", "healthz", "readyz", "heartbeat", "functions", "mcp", "ws", "servers", "environments":
		return true
	}
	return false
}

var baseTag = regexp.MustCompile(`<base href="[^"]*"\s*/?>`)

// withBase writes into the page where it is: all its addresses are relative to that.
func withBase(page []byte, basePath string) ([]byte, error) {
	at := baseTag.FindAllIndex(page, -1)
	if len(at) != 1 {
		return nil, fmt.Errorf("index.html has %d <base href>, not one", len(at))
	}
	tag := `<base href="` + html.EscapeString(basePath+"/") + `">`
	return bytes.Join([][]byte{page[:at[0][0]], []byte(tag), page[at[0][1]:]}, nil), nil
}

// hashed is what Vite calls a file after its content: name-Ab3_x9Zk.js.
var hashed = regexp.MustCompile(`^assets/.*-[A-Za-z0-9_-]{8}\.[a-z0-9]+$`)

// types are those of web pages, whatever the machine's own tables say.
var types = map[string]string{
	".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
	".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8", ".json": "application/json", ".png": "image/png", ".ico": "image/x-icon",
	".woff2": "font/woff2", ".webmanifest": "application/manifest+json",
}

func compressed(name string) bool {
	return strings.HasSuffix(name, ".gz") || strings.HasSuffix(name, ".br")
}

// newFile makes a file of its content. Its compressed forms are taken from dist, where they are; gzip is made otherwise.
func newFile(name string, data []byte, dist fs.FS) *file {
	f := &file{caching: "no-cache", contentType: types[path.Ext(name)], page: path.Ext(name) == ".html"}
	if f.contentType == "" {
		f.contentType = mime.TypeByExtension(path.Ext(name))
	}
	if f.contentType == "" {
		f.contentType = "application/octet-stream"
	}
	if hashed.MatchString(name) {
		f.caching = "public, max-age=31536000, immutable"
	}
	add := func(coding string, b []byte) {
		sum := sha256.Sum256(append([]byte(coding+"\n"), b...))
		f.forms = append(f.forms, form{coding, `"` + hex.EncodeToString(sum[:12]) + `"`, b})
	}
	var zipped []byte
	if dist != nil {
		if b, err := fs.ReadFile(dist, name+".br"); err == nil && len(b) < len(data) {
			add("br", b)
		}
		zipped, _ = fs.ReadFile(dist, name+".gz") // where there is none it is made
	}
	if zipped == nil {
		zipped = gzipped(data)
	}
	if len(zipped) < len(data) {
		add("gzip", zipped)
	}
	add("", data)
	return f
}

func gzipped(data []byte) []byte {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // the level exists
	_, _ = z.Write(data)                                  // into memory
	_ = z.Close()
	return b.Bytes()
}

// Has reports whether a path, below the base path, is the page's: one of its files, or an address that it shows a view for.
func (p *Page) Has(at string) bool { return p.file(at) != nil }

func (p *Page) file(at string) *file {
	if f := p.files[at]; f != nil {
		return f
	}
	index := p.files["/"]
	if !index.page {
		return nil
	}
	for _, view := range []string{"/servers/", "/environments/"} {
		if id, ok := strings.CutPrefix(at, view); ok && id != "" && !strings.Contains(id, "/") {
			return index
		}
	}
	return nil
}

// ServeHTTP answers GET and HEAD of what Has; everything else is 404.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := p.file(r.URL.Path)
	if f == nil {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", f.contentType)
	h.Set("Cache-Control", f.caching)
	h.Set("Vary", "Accept-Encoding")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	if f.page {
		h.Set("Vary", "Accept, Accept-Encoding") // "/" is something else for who takes no page
		h.Set("Content-Security-Policy", policy)
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
	}
	c := f.choose(r.Header)
	h.Set("Etag", c.etag)
	if matches(r.Header.Values("If-None-Match"), c.etag) {
		h.Del("Content-Type")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if c.coding != "" {
		h.Set("Content-Encoding", c.coding)
	}
	h.Set("Content-Length", strconv.Itoa(len(c.data)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(c.data) // the client may be gone
	}
}

// choose returns the first form that the client takes. Who refuses even the plain one (identity;q=0) gets it all the same.
func (f *file) choose(h http.Header) *form {
	takes := codings(h)
	for i := range f.forms {
		if takes[f.forms[i].coding] {
			return &f.forms[i]
		}
	}
	return &f.forms[len(f.forms)-1]
}

// codings reads Accept-Encoding (RFC 9110 §12.5.3): which of br and gzip the client takes. "*" speaks for those not named.
func codings(h http.Header) map[string]bool {
	said := map[string]bool{}
	for _, v := range h.Values("Accept-Encoding") {
		for _, part := range strings.Split(v, ",") {
			name, params, _ := strings.Cut(strings.TrimSpace(part), ";")
			q := 1.0
			if k, v, ok := strings.Cut(strings.TrimSpace(params), "="); ok && strings.EqualFold(strings.TrimSpace(k), "q") {
				if n, err := strconv.ParseFloat(strings.TrimSpace(v), 64); err == nil {
					q = n
				}
			}
			said[strings.ToLower(strings.TrimSpace(name))] = q > 0
		}
	}
	out := map[string]bool{}
	for _, c := range []string{"br", "gzip"} {
		takes, named := said[c]
		out[c] = takes || !named && said["*"]
	}
	return out
}

// matches reports whether one of If-None-Match's tags is etag, by the weak comparison (RFC 9110 §13.1.2).
func matches(values []string, etag string) bool {
	for _, v := range values {
		for _, tag := range strings.Split(v, ",") {
			if tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/"); tag == etag || tag == "*" {
				return true
			}
		}
	}
	return false
}
