package httpapi

import (
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/agentopia/statussync"
)

// rootPaths are served at the root as well as below the base path: who watches the process, and agents, come to the service
// itself, not through the proxy that adds the path.
var rootPaths = []string{"/healthz", "/readyz", "/metrics", "/heartbeat", "/functions/v1/heartbeat"}

// basePathForm leaves out what would be escaped in a URL: a path is then written in one way only.
var basePathForm = regexp.MustCompile(`^(/[A-Za-z0-9._~-]+)+$`)

// BasePathFault says what is wrong with a base path, "" for nothing. Empty is right: everything is served at the root.
func BasePathFault(p string) string {
	switch {
	case p == "":
		return ""
	case !strings.HasPrefix(p, "/"):
		return "must begin with /, such as /statussync"
	case strings.HasSuffix(p, "/"):
		return "must not end with /; leave it out to serve at the root"
	case strings.ContainsAny(p, "?#"):
		return "is a path only, without a query or a fragment"
	case path.Clean(p) != p:
		return "must be a clean path, without //, /./ and /../"
	case !basePathForm.MatchString(p):
		return "may hold letters, digits and . _ ~ - between its slashes"
	case len(p) > 200:
		return "is longer than 200 bytes"
	}
	for _, root := range rootPaths {
		if p == root || strings.HasPrefix(root, "/") && strings.HasPrefix(p, root+"/") {
			return "is the path of something that is also served at the root"
		}
	}
	return ""
}

// below takes the base path off a request's path. inside is false where r is for nothing that is served.
func (a *API) below(r *http.Request) (inner *http.Request, inside, prefixed bool) {
	base := a.opts.BasePath
	if base == "" {
		return r, true, false
	}
	p, under := strings.CutPrefix(r.URL.Path, base+"/")
	raw, rawUnder := strings.CutPrefix(r.URL.RawPath, base+"/")
	if under && (r.URL.RawPath == "" || rawUnder) {
		u := *r.URL
		if u.Path = "/" + p; u.RawPath != "" {
			u.RawPath = "/" + raw
		}
		inner := new(http.Request)
		*inner = *r
		inner.URL = &u
		return inner, true, true
	}
	for _, root := range rootPaths {
		if r.URL.Path == root {
			return r, true, false
		}
	}
	return r, false, false
}

// outside answers what is not below the base path.
func (a *API) outside(w http.ResponseWriter, r *http.Request) {
	base := a.opts.BasePath
	if r.URL.Path == base && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		// Links on pages are relative, so they need the slash.
		http.Redirect(w, r, (&url.URL{Path: base + "/", RawQuery: r.URL.RawQuery}).String(), http.StatusPermanentRedirect)
		return
	}
	a.fail(w, r, statussync.NewError(statussync.CodeNotFound, "nothing is served at "+strconv.Quote(statussync.CleanText(r.URL.Path, 200))+"; everything is below "+base+"/", nil))
}
