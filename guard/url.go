package guard

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/agentopia/statussync"
)

// maxURL bounds the length of a URL, in bytes; common servers take no longer request line than 8 KiB.
const maxURL = 4096

// BuildURL makes a URL from its parts. The host of the result is the host given, whatever the other parts hold.
//
// scheme is http or https. host is a DNS name or an IP address (IPv6 with or without brackets, without a zone). port is
// 0 for the scheme's own, else 1 to 65535. path starts with "/"; it may be percent-encoded and may be followed by "?"
// and a query. Every error is a *statussync.Error with CodeInvalid whose location is the part at fault; it never holds
// a query.
func BuildURL(scheme, host string, port int, path string) (*url.URL, error) {
	scheme, err := checkScheme(scheme)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
		if !strings.Contains(host, ":") {
			return nil, statussync.Invalid("host", "only an IPv6 address may stand in brackets")
		}
	}
	if host, err = checkHost(host); err != nil {
		return nil, err
	}
	if port < 0 || port > 65535 {
		return nil, statussync.Invalid("port", "must be 1 to 65535, not "+strconv.Itoa(port))
	}
	if len(path) > maxURL {
		return nil, statussync.Invalid("path", "is longer than "+strconv.Itoa(maxURL)+" bytes")
	}
	if !strings.HasPrefix(path, "/") {
		return nil, statussync.Invalid("path", `must start with "/"`)
	}
	for i := 0; i < len(path); i++ {
		if path[i] < 0x20 || path[i] == 0x7f || path[i] == '#' {
			return nil, statussync.Invalid("path", "must not hold control characters or a fragment (#)")
		}
	}
	raw, query, hasQuery := strings.Cut(path, "?")
	plain, err := url.PathUnescape(raw)
	if err != nil {
		return nil, statussync.Invalid("path", "has a bad percent-encoding")
	}
	for i := 0; i < len(query); i++ {
		if query[i] <= 0x20 || query[i] >= 0x7f {
			return nil, statussync.Invalid("path", "its query must be percent-encoded")
		}
	}
	return &url.URL{
		Scheme: scheme, Host: hostPort(host, port), Path: plain, RawPath: raw, RawQuery: query,
		ForceQuery: hasQuery && query == "",
	}, nil
}

// ParseURL reads a whole URL and checks it by the same rules as BuildURL: scheme http or https, a host, no userinfo, no
// fragment. An empty path becomes "/". Every error is a *statussync.Error with CodeInvalid and location "url"; it holds
// nothing of the URL but its scheme.
func ParseURL(raw string) (*url.URL, error) {
	bad := func(detail string) (*url.URL, error) { return nil, statussync.Invalid("url", detail) }
	if len(raw) > maxURL {
		return bad("is longer than " + strconv.Itoa(maxURL) + " bytes")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return bad("is not a URL") // url.Parse's own text holds the URL, and so its secrets
	}
	scheme, err := checkScheme(u.Scheme)
	if err != nil {
		return bad(err.(*statussync.Error).Detail)
	}
	if u.Opaque != "" || u.Host == "" {
		return bad("has no host; it must look like " + scheme + "://host/path")
	}
	if u.User != nil {
		return bad("must not hold a user name or password")
	}
	if u.Fragment != "" || strings.Contains(raw, "#") {
		return bad("must not hold a fragment (#)")
	}
	host, err := checkHost(u.Hostname())
	if err != nil {
		return bad(err.(*statussync.Error).Detail)
	}
	port := 0
	if s := u.Port(); s != "" {
		if port, err = strconv.Atoi(s); err != nil || port < 1 || port > 65535 {
			return bad("its port must be 1 to 65535")
		}
	}
	if u.Path == "" {
		u.Path, u.RawPath = "/", ""
	}
	u.Scheme, u.Host = scheme, hostPort(host, port)
	return u, nil
}

func checkScheme(s string) (string, error) {
	switch l := strings.ToLower(s); l {
	case "http", "https":
		return l, nil
	}
	return "", statussync.Invalid("scheme", "must be http or https, not "+strconv.Quote(statussync.CleanText(s, 32)))
}

// checkHost returns a host in its canonical form. Names are letters, digits, "-", "_" and "."; a name that ends in a
// number is refused, because some resolvers read "127.1" or "2130706433" as an address.
func checkHost(h string) (string, error) {
	bad := func(detail string) (string, error) { return "", statussync.Invalid("host", detail) }
	if h == "" {
		return bad("is empty")
	}
	if a, err := netip.ParseAddr(h); err == nil {
		if a.Zone() != "" {
			return bad("an IPv6 zone is not supported")
		}
		return a.String(), nil
	}
	if len(h) > 253 {
		return bad("is longer than 253 bytes")
	}
	h = strings.ToLower(h)
	labels := strings.Split(strings.TrimSuffix(h, "."), ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 {
			return bad("is not a host name: each of its labels must have 1 to 63 characters")
		}
		for i := 0; i < len(l); i++ {
			if c := l[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return bad("is not a host name: it may hold letters, digits, '-', '_' and '.' (an international name in its xn-- form)")
			}
		}
	}
	if c := labels[len(labels)-1][0]; c >= '0' && c <= '9' {
		return bad("ends in a number and is not an IP address")
	}
	return h, nil
}

func hostPort(host string, port int) string {
	if port != 0 {
		return net.JoinHostPort(host, strconv.Itoa(port))
	}
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}
