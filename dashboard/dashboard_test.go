package dashboard

import (
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

const index = `<!doctype html><head><base href="/" /><script type="module" src="./assets/index-Ab3_x9Zk.js"></script></head>`

var script = strings.Repeat("console.log(1);\n", 200)

func dist() fstest.MapFS {
	return fstest.MapFS{
		"index.html":                  {Data: []byte(index)},
		"assets/index-Ab3_x9Zk.js":    {Data: []byte(script)},
		"assets/index-Ab3_x9Zk.js.br": {Data: []byte("as brotli")},
		"assets/plain.css":            {Data: []byte("a{}")},
		"icon.svg":                    {Data: []byte("<svg/>")},
		".gitkeep":                    {},
	}
}

func ask(p http.Handler, method, path string, header ...string) *http.Response {
	r := httptest.NewRequest(method, "http://localhost"+path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPage(t *testing.T) {
	p, err := FromFiles(dist(), "/status")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"/": true, "/servers/weather": true, "/servers/a:b@c.d": true, "/environments/box-7": true, "/assets/index-Ab3_x9Zk.js": true, "/icon.svg": true,
		"/servers": false, "/servers/": false, "/servers/a/b": false, "/index.html": false, "/assets/": false, "/assets/index-Ab3_x9Zk.js.br": false,
		"/.gitkeep": false, "/nothing": false, "": false, "/assets/../icon.svg": false,
	} {
		if p.Has(path) != want {
			t.Errorf("Has(%q) = %t", path, !want)
		}
	}
	if r := ask(p, "GET", "/nothing"); r.StatusCode != 404 {
		t.Errorf("nothing: %d", r.StatusCode)
	}
	for _, path := range []string{"/", "/servers/weather"} {
		r := ask(p, "GET", path)
		csp := r.Header.Get("Content-Security-Policy")
		if got := body(t, r); !strings.Contains(got, `<base href="/status/">`) || strings.Contains(got, `href="/" `) {
			t.Errorf("%s: %s", path, got)
		}
		for _, part := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:", "base-uri 'self'", "form-action 'self'", "frame-ancestors 'none'"} {
			if !strings.Contains(csp+";", part+";") {
				t.Errorf("no %q in %q", part, csp)
			}
		}
		if strings.Contains(csp, "unsafe") || r.Header.Get("X-Content-Type-Options") != "nosniff" || r.Header.Get("Referrer-Policy") == "" || r.Header.Get("Cache-Control") != "no-cache" ||
			r.Header.Get("Content-Type") != "text/html; charset=utf-8" {
			t.Errorf("%s: %v", path, r.Header)
		}
	}
	if c := ask(p, "GET", "/assets/index-Ab3_x9Zk.js").Header; c.Get("Cache-Control") != "public, max-age=31536000, immutable" || c.Get("Content-Type") != "text/javascript; charset=utf-8" {
		t.Errorf("%v", c)
	}
	for _, path := range []string{"/assets/plain.css", "/icon.svg"} {
		if c := ask(p, "GET", path).Header.Get("Cache-Control"); c != "no-cache" {
			t.Errorf("%s, which has no hash in its name, is kept: %s", path, c)
		}
	}
}

func TestCodings(t *testing.T) {
	p, err := FromFiles(dist(), "")
	if err != nil {
		t.Fatal(err)
	}
	const path = "/assets/index-Ab3_x9Zk.js"
	tags := map[string]bool{}
	for accept, want := range map[string]string{
		"gzip, deflate, br, zstd": "br", "br;q=0, gzip": "gzip", "gzip;q=0.5": "gzip", "gzip;q=0": "", "": "", "identity": "", "*": "br", "*;q=0": "",
		"br; q=0.000, *": "gzip", "GZIP": "gzip",
	} {
		r := ask(p, "GET", path, "Accept-Encoding", accept)
		got, tag := r.Header.Get("Content-Encoding"), r.Header.Get("Etag")
		b := body(t, r)
		if got != want || r.Header.Get("Vary") != "Accept-Encoding" || tag == "" {
			t.Errorf("%q: %q, want %q; %v", accept, got, want, r.Header)
		}
		tags[tag] = true
		switch got {
		case "br":
			if b != "as brotli" {
				t.Errorf("br: %q", b)
			}
		case "gzip":
			z, err := gzip.NewReader(strings.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			if plain, err := io.ReadAll(z); err != nil || string(plain) != script {
				t.Errorf("gzip: %v, %d bytes", err, len(plain))
			}
		default:
			if b != script {
				t.Errorf("plain: %d bytes", len(b))
			}
		}
		for _, tags := range []string{tag, "W/" + tag, `"x", ` + tag, "*"} {
			if r := ask(p, "GET", path, "Accept-Encoding", accept, "If-None-Match", tags); r.StatusCode != 304 || body(t, r) != "" || r.Header.Get("Etag") != tag {
				t.Errorf("If-None-Match %s: %d", tags, r.StatusCode)
			}
		}
		if r := ask(p, "GET", path, "Accept-Encoding", accept, "If-None-Match", `"x"`); r.StatusCode != 200 {
			t.Errorf("another tag: %d", r.StatusCode)
		}
		if r := ask(p, "HEAD", path, "Accept-Encoding", accept); body(t, r) != "" || r.Header.Get("Etag") != tag || r.Header.Get("Content-Length") == "" {
			t.Errorf("HEAD: %v", r.Header)
		}
	}
	if len(tags) != 3 {
		t.Errorf("three forms have %d tags", len(tags))
	}
	// The page itself is compressed when the program starts: its base is not known before.
	if r := ask(p, "GET", "/", "Accept-Encoding", "gzip"); r.Header.Get("Content-Encoding") == "gzip" {
		if z, err := gzip.NewReader(r.Body); err != nil {
			t.Error(err)
		} else if b, _ := io.ReadAll(z); !bytes.Contains(b, []byte("<base")) {
			t.Errorf("%s", b)
		}
	}
}

func TestBadFiles(t *testing.T) {
	for name, change := range map[string]func(fstest.MapFS){
		"no index":           func(m fstest.MapFS) { delete(m, "index.html") },
		"no base":            func(m fstest.MapFS) { m["index.html"].Data = []byte("<head></head>") },
		"two bases":          func(m fstest.MapFS) { m["index.html"].Data = []byte(index + `<base href="x">`) },
		"the API's place":    func(m fstest.MapFS) { m["api/x.js"] = &fstest.MapFile{} },
		"the numbers' place": func(m fstest.MapFS) { m["metrics"] = &fstest.MapFile{} },
	} {
		files := dist()
		change(files)
		if _, err := FromFiles(files, ""); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestNotBuilt: a program that was compiled without the page says how to get it, in one line; the rest of it is whole.
func TestNotBuilt(t *testing.T) {
	if _, err := Built(); err == nil {
		t.Skip("this one was compiled with it")
	}
	p, err := New("/status")
	if err != nil {
		t.Fatal(err)
	}
	got := body(t, ask(p, "GET", "/"))
	if strings.Count(got, "\n") != 1 || !strings.Contains(got, "make build") || !strings.Contains(got, "/status/api/v1") {
		t.Errorf("%q", got)
	}
	if p.Has("/servers/x") {
		t.Error("there is no view of a server")
	}
}

// firstView bounds what a browser transfers to show the fleet for the first time, in bytes.
const firstView = 150 << 10

// TestBuilt holds the page that was built to what is promised of it.
func TestBuilt(t *testing.T) {
	files, err := Built()
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("the page was not built: make build")
		}
		t.Skip("the page was not built: make build")
	}
	p, err := New("")
	if err != nil {
		t.Fatal(err)
	}
	html := body(t, ask(p, "GET", "/"))
	if m := regexp.MustCompile(`(?i)<script(?:[^>]*\ssrc=)?[^>]*>[^<]|<style|\sstyle=|\son[a-z]+=|javascript:`).FindString(html); m != "" {
		t.Errorf("index.html has what the policy forbids: %q", m)
	}
	for _, coding := range []string{"br", "gzip"} {
		sum := len(index)
		sum += int(ask(p, "GET", "/", "Accept-Encoding", coding).ContentLength)
		seen := map[string]bool{}
		// What the page names, and what that imports without waiting to be asked: static imports of modules.
		next := regexp.MustCompile(`(?:src|href)="\./([^"]+)"`).FindAllStringSubmatch(html, -1)
		for len(next) > 0 {
			name := next[0][1]
			next = next[1:]
			if seen[name] {
				continue
			}
			seen[name] = true
			b, err := fs.ReadFile(files, name)
			if err != nil {
				t.Fatalf("index.html needs %s: %v", name, err)
			}
			r := ask(p, "GET", "/"+name, "Accept-Encoding", coding)
			if got := r.Header.Get("Content-Encoding"); got != coding && len(b) > 1000 {
				t.Errorf("%s is sent as %q to who takes %s", name, got, coding)
			}
			sum += len(body(t, r)) + 400 // and headers
			if strings.HasSuffix(name, ".js") {
				for _, m := range regexp.MustCompile(`(?:\bfrom|\bimport)\s*"\./([^"]+\.js)"`).FindAllStringSubmatch(string(b), -1) {
					next = append(next, []string{"", "assets/" + m[1]})
				}
			}
		}
		t.Logf("%s: the first view is %d files, %.1f KiB", coding, len(seen)+1, float64(sum)/1024)
		if sum > firstView {
			t.Errorf("%s: the first view transfers %d bytes, more than %d", coding, sum, firstView)
		}
	}
	sameContent(t, files)
	err = fs.WalkDir(files, "assets", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !compressed(name) && !hashed.MatchString(name) {
			t.Errorf("%s has no hash of its content in its name", name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// sameContent: what is sent as Brotli is what is sent plainly.
func sameContent(t *testing.T, files fs.FS) {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		return // it was built elsewhere; .ci/setup fails without
	}
	list, err := fs.Glob(files, "assets/*.br")
	if err != nil || len(list) == 0 {
		t.Fatalf("no Brotli forms: %v", err)
	}
	for _, name := range list {
		br, err := fs.ReadFile(files, name)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := fs.ReadFile(files, strings.TrimSuffix(name, ".br"))
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(node, "-e", `const b = []; process.stdin.on("data", (d) => b.push(d)).on("end", () => process.stdout.write(require("zlib").brotliDecompressSync(Buffer.concat(b))))`)
		cmd.Stdin = bytes.NewReader(br)
		if out, err := cmd.Output(); err != nil || !bytes.Equal(out, plain) {
			t.Errorf("%s is another file than what it is the Brotli form of (%v)", name, err)
		}
	}
}
