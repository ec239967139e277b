package statussync

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// endpoint is a host and port in a form in which equal ones compare equal.
type endpoint struct {
	host  string
	port  uint64
	named bool // the port was written out
}

// AgentAnswersAt reports whether a URL leads to the environment's agent: to the endpoint of its AgentURL, or to the
// agent's port, where AgentURL names one, on the environment's address: the same door under the host's other name. (An
// agent at a scheme's own port stands behind a proxy, and servers may use the same port on their host.) A probe there would
// prove nothing about a server. Endpoints are compared without regard to case, with the scheme's port where none is
// given, and with localhost, 127.0.0.1 and [::1] as one host; no name is looked up. What is no http or https URL leads
// nowhere.
func (e *Environment) AgentAnswersAt(target string) bool {
	t, ok := endpointOf(target)
	if !ok {
		return false
	}
	agent, ok := endpointOf(e.AgentURL)
	if !ok || t.port != agent.port {
		return false
	}
	return t.host == agent.host || agent.named && e.Address != "" && t.host == sameHost(strings.Trim(e.Address, "[]"))
}

func endpointOf(s string) (endpoint, bool) {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		return endpoint{}, false
	}
	e := endpoint{host: sameHost(u.Hostname())}
	switch u.Scheme {
	case "http":
		e.port = 80
	case "https":
		e.port = 443
	default:
		return endpoint{}, false
	}
	if p := u.Port(); p != "" {
		e.named = true
		if e.port, err = strconv.ParseUint(p, 10, 16); err != nil {
			return endpoint{}, false
		}
	}
	return e, true
}

// sameHost is the one spelling that stands for all of a host's. Of the loopback addresses only the usual two and their
// name are one host: at 127.0.0.2 something else may listen.
func sameHost(h string) string {
	h = strings.ToLower(strings.TrimSuffix(h, "."))
	if a, err := netip.ParseAddr(h); err == nil {
		h = a.Unmap().String()
	}
	if h == "127.0.0.1" || h == "::1" {
		return "localhost"
	}
	return h
}
