package httpapi

import (
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/agentopia/statussync"
)

// hostList is which Host headers are ours. A page that makes its own name resolve to our address (DNS rebinding) sends
// its name, and is refused.
type hostList struct {
	any   map[string]bool // valid with every port
	exact map[string]bool // valid with this port, "host:port"
	// wildcard: we listen on every address of the machine; then the address that the client reached is ours too.
	wildcard bool
}

func newHostList(listen string, allowed []string) (hostList, error) {
	l := hostList{any: map[string]bool{"localhost": true}, exact: map[string]bool{}}
	if listen != "" {
		host, _, err := net.SplitHostPort(listen)
		if err != nil {
			return l, &statussync.Error{Code: statussync.CodeInvalid, Location: "Listen", Detail: "must be host:port", Err: err}
		}
		if ip, err := netip.ParseAddr(host); host == "" || (err == nil && ip.IsUnspecified()) {
			l.wildcard = true
		} else {
			l.any[strings.ToLower(host)] = true
		}
	}
	for _, h := range allowed {
		h = strings.ToLower(strings.TrimSuffix(h, "."))
		switch {
		case h == "" || strings.ContainsAny(h, "/@*? "):
			return l, statussync.Invalid("AllowedHosts", "an entry is a host name or address, with or without a port")
		case strings.HasPrefix(h, "[") && !strings.HasSuffix(h, "]"), strings.Count(h, ":") == 1:
			l.exact[h] = true
		default:
			l.any[hostOf(h)] = true
		}
	}
	return l, nil
}

func (l hostList) check(r *http.Request) error {
	hostport := strings.ToLower(r.Host)
	host := strings.TrimSuffix(hostOf(hostport), ".")
	if l.any[host] || l.exact[hostport] {
		return nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		ip = ip.Unmap().WithZone("")
		if ip.IsLoopback() {
			return nil
		}
		if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && l.wildcard {
			if a, err := netip.ParseAddrPort(local.String()); err == nil && a.Addr().Unmap().WithZone("") == ip {
				return nil
			}
		}
	}
	return statussync.NewError(statussync.CodeForbidden, "the Host header is not one of this service's names; allowed_hosts: adds one", nil)
}

// remote returns who sent r. A trusted proxy is believed about whom it forwards for; direct is false where somebody
// else than that may stand between (an untrusted proxy, or a trusted one that did not say for whom).
func (a *API) remote(r *http.Request) (addr netip.Addr, direct bool) {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}, false
	}
	addr = ap.Addr().Unmap().WithZone("")
	forwarded := r.Header.Values("X-Forwarded-For")
	if !a.trusted(addr) {
		return addr, len(forwarded) == 0 && r.Header.Get("Forwarded") == "" && r.Header.Get("X-Real-Ip") == ""
	}
	// Each proxy appends whom it saw: from the right, the first that is no trusted proxy is the client.
	hops := strings.Split(strings.Join(forwarded, ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop, err := netip.ParseAddr(strings.Trim(hostOf(strings.TrimSpace(hops[i])), "[]"))
		if err != nil {
			return addr, false
		}
		addr, direct = hop.Unmap().WithZone(""), true
		if !a.trusted(addr) {
			break
		}
	}
	return addr, direct
}

func (a *API) trusted(addr netip.Addr) bool {
	for _, p := range a.set.Load().proxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// checkOrigin refuses a stream to a page of a foreign web origin. Programs send no Origin.
func (a *API) checkOrigin(r *http.Request) error {
	origin := r.Header.Get("Origin")
	if origin == "" || a.set.Load().allowed[strings.ToLower(origin)] {
		return nil
	}
	if u, err := url.Parse(origin); err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host) {
		return nil
	}
	return statussync.NewError(statussync.CodeForbidden, "this web origin may not connect; allowed_origins: adds one", nil)
}

// checkJSON refuses a body that does not say it is JSON: forms and text/plain are what a foreign page can send without
// asking first.
func checkJSON(r *http.Request) error {
	ct := r.Header.Get("Content-Type")
	if ct == "" && r.ContentLength == 0 {
		return nil
	}
	if mt, _, err := mime.ParseMediaType(ct); err != nil || mt != "application/json" {
		return statussync.Invalid("header.Content-Type", "must be application/json")
	}
	return nil
}
