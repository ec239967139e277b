package registry

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/agentopia/statussync"
)

// The rules for single values are the same for everybody who defines servers, by file or by API. Each function returns
// what is wrong in words that follow the name of the field, or "" where nothing is.

// maxID bounds ids, in bytes.
const maxID = 128

// IDFault judges an id: letters, digits and . _ : @ -, so that it can stand in a URL, a label and a terminal.
func IDFault(id string) string {
	switch {
	case id == "":
		return "is missing"
	case len(id) > maxID:
		return "is longer than " + strconv.Itoa(maxID) + " bytes"
	case id == "." || id == "..":
		return "must not be made of dots alone" // no URL could name it
	case strings.ContainsFunc(id, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._:@-", r))
	}):
		return shown(id) + " must be made of letters, digits and . _ : @ -"
	}
	return ""
}

// TextFault judges text for people.
func TextFault(s string) string {
	if s != statussync.CleanText(s, statussync.MaxNameText) {
		return "holds characters that cannot be shown, or is longer than " + strconv.Itoa(statussync.MaxNameText) + " bytes"
	}
	return ""
}

// URLFault judges an address to be asked: http or https, a host, no user name or password. The words never hold more
// of the URL than its host and port.
func URLFault(s string) string {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return "is not a URL"
	case u.Scheme != "http" && u.Scheme != "https":
		return "must begin with http:// or https://"
	case u.Host == "" || u.Hostname() == "":
		return "names no host"
	case u.User != nil:
		return "must not hold a user name or password; use headers"
	case !ValidHost(u.Hostname()):
		return shown(u.Hostname()) + " is not a host name or an IP address"
	case !validPort(u.Port()):
		return shown(u.Port()) + " is not a port"
	}
	return ""
}

func validPort(p string) bool {
	if p == "" {
		return true
	}
	ap, err := netip.ParseAddrPort("127.0.0.1:" + p)
	return err == nil && ap.Port() != 0
}

// ValidHost reports whether h is a host name or an IP address, without a port.
func ValidHost(h string) bool {
	if _, err := netip.ParseAddr(h); err == nil {
		return true
	}
	if h == "" || len(h) > 253 {
		return false
	}
	for _, label := range strings.Split(strings.TrimSuffix(h, "."), ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
		}) {
			return false
		}
	}
	return true
}

// shown is untrusted text inside an error.
func shown(s string) string {
	return strconv.Quote(statussync.CleanText(s, statussync.MaxWordText))
}

// CanaryFault judges a canary, and names the field at fault.
func CanaryFault(c statussync.Canary) (field, fault string) {
	switch {
	case c.Tool == "":
		return "tool", "is missing"
	case len(c.Tool) > statussync.MaxNameText || c.Tool != statussync.CleanText(c.Tool, statussync.MaxNameText):
		return "tool", "holds characters that cannot be shown, or is longer than " + strconv.Itoa(statussync.MaxNameText) + " bytes"
	case len(c.Arguments) > statussync.MaxCanaryArguments:
		return "arguments", "are longer than " + strconv.Itoa(statussync.MaxCanaryArguments) + " bytes of JSON"
	case len(c.Expect) > statussync.MaxErrorText:
		return "expect", "is longer than " + strconv.Itoa(statussync.MaxErrorText) + " bytes"
	}
	return "", ""
}
