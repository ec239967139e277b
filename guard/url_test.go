package guard

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/agentopia/statussync"
)

func TestBuildURL(t *testing.T) {
	for _, c := range []struct {
		scheme, host string
		port         int
		path, want   string // want "!x": an error at x
	}{
		{"http", "example.com", 0, "/health", "http://example.com/health"},
		{"HTTPS", "Example.COM", 8443, "/", "https://example.com:8443/"},
		{"http", "10.0.0.5", 30001, "/mcp", "http://10.0.0.5:30001/mcp"},
		{"http", "::1", 80, "/mcp", "http://[::1]:80/mcp"},
		{"http", "[2001:db8::1]", 0, "/mcp", "http://[2001:db8::1]/mcp"},
		{"http", "my_box.internal.", 1, "/a%2Fb?x=1&y=%20", "http://my_box.internal.:1/a%2Fb?x=1&y=%20"},
		{"http", "h", 0, "//evil.example/x", "http://h//evil.example/x"},
		{"http", "h", 0, "/a b", "http://h/a%20b"},
		{"http", "h", 0, "/@10.0.0.5:6379/", "http://h/@10.0.0.5:6379/"},

		{"http", "10.0.0.4", 30000, "@10.0.0.5:6379/", "!path"},
		{"http", "h", 0, "", "!path"},
		{"http", "h", 0, "health", "!path"},
		{"http", "h", 0, "/x#y", "!path"},
		{"http", "h", 0, "/x\r\nHost: y", "!path"},
		{"http", "h", 0, "/%zz", "!path"},
		{"http", "h", 0, "/x?a b", "!path"},
		{"http", "h", 0, "/" + strings.Repeat("x", maxURL), "!path"},
		{"ftp", "h", 0, "/", "!scheme"},
		{"", "h", 0, "/", "!scheme"},
		{"http", "", 0, "/", "!host"},
		{"http", "a@b", 0, "/", "!host"},
		{"http", "a:80", 0, "/", "!host"},
		{"http", "a/b", 0, "/", "!host"},
		{"http", "a b", 0, "/", "!host"},
		{"http", "a..b", 0, "/", "!host"},
		{"http", "[h]", 0, "/", "!host"},
		{"http", "fe80::1%eth0", 0, "/", "!host"},
		{"http", "127.1", 0, "/", "!host"},
		{"http", "2130706433", 0, "/", "!host"},
		{"http", "0x7f.0x1", 0, "/", "!host"},
		{"http", "bücher.example", 0, "/", "!host"},
		{"http", strings.Repeat("a.", 200) + "a", 0, "/", "!host"},
		{"http", "h", -1, "/", "!port"},
		{"http", "h", 65536, "/", "!port"},
	} {
		u, err := BuildURL(c.scheme, c.host, c.port, c.path)
		if at, bad := strings.CutPrefix(c.want, "!"); bad {
			e, ok := err.(*statussync.Error)
			if !ok || e.Code != statussync.CodeInvalid || e.Location != at {
				t.Errorf("%q %q %d %q: got %v, %v; want an error at %s", c.scheme, c.host, c.port, c.path, u, err, at)
			}
			continue
		}
		if err != nil || u.String() != c.want {
			t.Errorf("%q %q %d %q: got %v, %v; want %s", c.scheme, c.host, c.port, c.path, u, err, c.want)
		}
	}
}

func TestParseURL(t *testing.T) {
	for raw, want := range map[string]string{
		"http://127.0.0.1:9101/health":   "http://127.0.0.1:9101/health",
		"https://Example.com":            "https://example.com/",
		"http://[::1]:30000":             "http://[::1]:30000/",
		"http://h:/x":                    "http://h/x",
		"http://h/a%2Fb?k=v":             "http://h/a%2Fb?k=v",
		"":                               "",
		"h:80/x":                         "",
		"//h/x":                          "",
		"http:/x":                        "",
		"http:x":                         "",
		"http:///x":                      "",
		"file:///etc/passwd":             "",
		"gopher://h/":                    "",
		"http://user:pw@h/":              "",
		"http://user@h/":                 "",
		"http://10.0.0.4:30000@10.0.0.5": "",
		"http://h/#f":                    "",
		"http://h#":                      "",
		"http://h:0/":                    "",
		"http://h:99999/":                "",
		"http://h:x/":                    "",
		"http://[fe80::1%25eth0]/":       "",
		"http://h/\n":                    "",
		"http://127.1/":                  "",
		"http://h\\@evil/":               "",
	} {
		u, err := ParseURL(raw)
		switch {
		case want == "" && statussync.CodeOf(err) != statussync.CodeInvalid:
			t.Errorf("%q: got %v, %v; want an error", raw, u, err)
		case want != "" && (err != nil || u.String() != want):
			t.Errorf("%q: got %v, %v; want %s", raw, u, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "pw") {
			t.Errorf("%q: the error holds the password: %v", raw, err)
		}
	}
}

// sameHost reports whether got, as a URL shows it, is the host that was given.
func sameHost(given, got string) bool {
	given = strings.TrimSuffix(strings.TrimPrefix(given, "["), "]")
	if a, err := netip.ParseAddr(given); err == nil {
		b, err := netip.ParseAddr(got)
		return err == nil && a == b
	}
	return strings.EqualFold(given, got)
}

func FuzzBuildURL(f *testing.F) {
	for _, s := range []struct {
		scheme, host string
		port         int
		path         string
	}{
		{"http", "10.0.0.4", 30000, "@10.0.0.5:6379/"}, {"https", "::1", 0, "//evil/x?y#z"}, {"http", "a.b", 1, "/%2e%2e/\\@c"},
		{"http", "[::ffff:1.2.3.4]", 80, "/?@x:1/"}, {"http", "h", 0, "/a;b=c?://d@e"}, {"HTTP", "x@y", 0, "/"},
	} {
		f.Add(s.scheme, s.host, s.port, s.path)
	}
	f.Fuzz(func(t *testing.T, scheme, host string, port int, path string) {
		u, err := BuildURL(scheme, host, port, path)
		if err != nil {
			if statussync.CodeOf(err) != statussync.CodeInvalid {
				t.Fatalf("error without a code: %v", err)
			}
			return
		}
		for _, v := range []*url.URL{u, reparse(t, u.String())} {
			if !sameHost(host, v.Hostname()) || v.User != nil || v.Fragment != "" || v.Opaque != "" ||
				(v.Scheme != "http" && v.Scheme != "https") || !strings.HasPrefix(v.Path, "/") {
				t.Fatalf("%q %q %d %q became %q (host %q)", scheme, host, port, path, v, v.Hostname())
			}
		}
		again, err := ParseURL(u.String())
		if err != nil && len(u.String()) <= maxURL {
			t.Fatalf("%q is refused by ParseURL: %v", u, err)
		}
		if err == nil && (again.Host != u.Host || again.EscapedPath() != u.EscapedPath() || again.RawQuery != u.RawQuery) {
			t.Fatalf("%q was read back as %q", u, again)
		}
	})
}

func reparse(t *testing.T, s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		t.Fatalf("%q can't be read back: %v", s, err)
	}
	return u
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"http://h/", "https://u:p@h:1/x?y#z", "http://[::1%25e]:1", "http://h\\@e/", "http:h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := ParseURL(raw)
		if err != nil {
			return
		}
		again, err := ParseURL(u.String())
		if len(u.String()) <= maxURL && (err != nil || again.String() != u.String()) {
			t.Fatalf("%q became %q, which becomes %v, %v", raw, u, again, err)
		}
		if r := reparse(t, raw); !sameHost(r.Hostname(), u.Hostname()) {
			t.Fatalf("%q: host became %q", raw, u.Hostname())
		}
	})
}
