package postgres

import (
	"encoding/json"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// instanceRow is a row of account_tool_instances as it was read, in the order of instanceColumns; nil is null. Its bytes are
// the connection's own until the next row.
type instanceRow struct {
	id, env, name, word, errText, typ, transport, path, caps, beat []byte
}

// environmentRow is a row of account_tool_environments, in the order of environmentColumns.
type environmentRow struct {
	id, owner, name, address, token, beat []byte
}

// maxIDLen bounds ids, as everywhere (docs/configuration.md).
const maxIDLen = 128

// faultOfID says what is wrong with an id: it must fit into a URL, a label and a terminal.
func faultOfID(id string) string {
	switch {
	case id == "":
		return "has no id"
	case len(id) > maxIDLen:
		return "its id is longer than " + strconv.Itoa(maxIDLen) + " bytes"
	case id == "." || id == "..":
		return "its id is made of dots alone"
	case strings.ContainsFunc(id, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._:@-", r))
	}):
		return "its id holds other characters than letters, digits and . _ : @ -"
	}
	return ""
}

// server makes the definition of a row. faults name what of it could not be used; the rest counts.
func (w *instanceRow) server(origin statussync.Origin) (s statussync.Server, faults []string) {
	s = statussync.Server{
		ID: string(w.id), EnvironmentID: string(w.env), Origin: origin,
		Type: statussync.CleanText(string(w.typ), statussync.MaxNameText),
	}
	// Agents' names are cleaned in the same way, so that both still fit.
	s.Name = strings.TrimPrefix(statussync.CleanText(string(w.name), statussync.MaxNameText), "/")
	if s.Name == "" {
		s.Name = s.ID
	}
	if fault := faultOfID(s.EnvironmentID); s.EnvironmentID != "" && fault != "" {
		faults = append(faults, "account_tool_environment_id: "+fault)
		s.EnvironmentID = ""
	}
	switch t := strings.ToLower(strings.TrimSpace(string(w.transport))); t {
	case "", "http", "streamable-http", "streamable_http", "streamablehttp": // the platform says http of servers that speak MCP over HTTP
		s.Transport, s.Probe.Kind = statussync.TransportStreamableHTTP, statussync.ProbeMCP
	case "sse":
		s.Transport, s.Probe.Kind = statussync.TransportSSE, statussync.ProbeMCP
	case "stdio":
		s.Transport = statussync.TransportStdio
	case "websocket", "ws": // nobody speaks it here: the server lives by its agent's reports and its record
		s.Transport, s.Probe.Kind = statussync.TransportHTTP, statussync.ProbeNone
	default:
		s.Transport, s.Probe.Kind = statussync.TransportHTTP, statussync.ProbeNone
		faults = append(faults, "mcp_transport_type: "+strconv.Quote(statussync.CleanText(t, 32))+" is none that can be probed")
	}
	// The path goes onto the address of the container's published port, with net/url, so it can't change the host. A server
	// whose path is none is not asked at all: what it would be asked at is not what its owner meant.
	if path := string(w.path); path != "" && s.Probe.Kind == statussync.ProbeMCP {
		if fault := pathFault(path); fault != "" {
			faults = append(faults, "mcp_endpoint_path: "+fault)
			s.Probe.Kind = statussync.ProbeNone
		} else if path != "/mcp" {
			s.Probe.Path = path
		}
	}
	if len(w.caps) > 0 {
		if string(w.caps) == "!" {
			faults = append(faults, "mcp_server_capabilities: more than 16 KiB")
		} else if err := json.Unmarshal(w.caps, &s.Capabilities); err != nil {
			faults = append(faults, "mcp_server_capabilities: no JSON object")
			s.Capabilities = nil
		}
	}
	return s, faults
}

// pathFault judges the path of an endpoint.
func pathFault(p string) string {
	switch {
	case len(p) > 2048:
		return "longer than 2048 bytes"
	case !strings.HasPrefix(p, "/"):
		return `does not begin with "/"`
	case strings.HasPrefix(p, "//"):
		return `begins with "//", which may name a host`
	case strings.ContainsFunc(p, func(r rune) bool { return r < 0x21 || r == 0x7f || r == '#' || r == '\\' || r == '\ufffd' }):
		return "holds spaces, control characters, a backslash or #"
	}
	u, err := url.Parse("http://h" + p)
	if err != nil || u.Host != "h" || u.User != nil {
		return "is not the path of a URL"
	}
	return ""
}

// environment makes the definition of a row.
func (w *environmentRow) environment(o *Options) (e statussync.Environment, faults []string) {
	e = statussync.Environment{
		ID: string(w.id), Origin: o.Origin,
		Name:  statussync.CleanText(string(w.name), statussync.MaxNameText),
		Owner: statussync.CleanText(string(w.owner), statussync.MaxNameText),
	}
	if e.Name == "" {
		e.Name = e.ID
	}
	address := strings.TrimSpace(string(w.address))
	address, _, _ = strings.Cut(address, "/") // inet::text has the mask
	if address == "" {
		return e, nil
	}
	host := address
	if a, err := netip.ParseAddr(strings.Trim(address, "[]")); err == nil && a.Zone() == "" {
		host = a.String()
		if a.Is6() {
			host = "[" + host + "]"
		}
	} else if !hostName(address) {
		return e, []string{"public_ip_address: neither an IP address nor a host name"}
	}
	e.Address = strings.Trim(host, "[]")
	if o.AgentPort > 0 {
		u := url.URL{Scheme: "http", Host: host + ":" + strconv.Itoa(o.AgentPort)}
		e.AgentURL = u.String()
	}
	return e, nil
}

// hostName reports whether h is a DNS name. One that ends in a number is none: some resolvers read "127.1" as an address.
func hostName(h string) bool {
	if len(h) > 253 {
		return false
	}
	labels := strings.Split(strings.TrimSuffix(h, "."), ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || strings.ContainsFunc(l, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
		}) {
			return false
		}
	}
	c := labels[len(labels)-1][0]
	return c < '0' || c > '9'
}

// timeOf reads a timestamptz in PostgreSQL's ISO form; ok is false for what no time is (null, infinity, before Christ).
func timeOf(b []byte) (t time.Time, ok bool) {
	if len(b) < 19 {
		return t, false
	}
	for _, form := range [...]string{"2006-01-02 15:04:05.999999999Z07", "2006-01-02 15:04:05.999999999Z07:00", time.RFC3339Nano, "2006-01-02 15:04:05.999999999"} {
		if t, err := time.Parse(form, string(b)); err == nil {
			return t.UTC(), true
		}
	}
	return t, false
}
