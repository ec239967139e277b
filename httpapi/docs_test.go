package httpapi

import (
	"bytes"
	"compress/gzip"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/agentopia/statussync"
)

// TestDocs: the page and everything that it names is served from here, and the policy allows nothing else.
func TestDocs(t *testing.T) {
	s := serve(t, nil)
	page := s.do(t, "", "GET /docs", "")
	policy := page.header.Get("Content-Security-Policy")
	if page.status != 200 || !strings.HasPrefix(page.header.Get("Content-Type"), "text/html") {
		t.Fatalf("%d %v", page.status, page.header)
	}
	for _, want := range []string{"default-src 'none'", "script-src 'self';", "connect-src 'self'", "frame-ancestors 'none'", "form-action 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy %q lacks %s", policy, want)
		}
	}
	if regexp.MustCompile(`<script>|<style|style=|\son[a-z]+=|//`).Match(page.body) {
		t.Errorf("the page has something inline or of another host:\n%s", page.body)
	}
	named := regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllSubmatch(page.body, -1)
	if len(named) < 6 {
		t.Fatalf("the page names only %d files", len(named))
	}
	for _, m := range named {
		path := "/" + string(m[1])
		plain := s.do(t, "", "GET "+path, "")
		if plain.status != 200 || len(plain.body) == 0 || plain.header.Get("Content-Encoding") != "" || plain.header.Get("Content-Type") == "" {
			t.Errorf("%s: %d %v", path, plain.status, plain.header)
			continue
		}
		if !strings.HasPrefix(path, "/docs/") {
			continue
		}
		zipped := s.do(t, "", "GET "+path, "", "Accept-Encoding: br, gzip;q=0.8")
		body := zipped.body
		if zipped.header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(bytes.NewReader(zipped.body))
			if err != nil {
				t.Fatal(err)
			}
			if body, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(body, plain.body) {
			t.Errorf("%s: gzipped it is another file", path)
		}
		if a := s.do(t, "", "GET "+path, "", "Accept-Encoding: gzip;q=0"); !bytes.Equal(a.body, plain.body) {
			t.Errorf("%s is gzipped for a client that does not want it", path)
		}
		if a := s.do(t, "", "GET "+path, "", "If-None-Match: "+plain.header.Get("Etag")); a.status != 304 || len(a.body) != 0 {
			t.Errorf("%s again: %d", path, a.status)
		}
	}
	for _, path := range []string{"/docs/", "/docs/index.html", "/docs/swagger-ui-bundle.js.gz", "/docs/..%2fdocs.go", "/docs/x"} {
		if a := s.do(t, "", "GET "+path, ""); a.status != 404 || a.problem(t).Code != statussync.CodeNotFound {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if a := s.do(t, "", "POST /docs", "{}"); a.status != 405 {
		t.Errorf("POST: %d", a.status)
	}
}
