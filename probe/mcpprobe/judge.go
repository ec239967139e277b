package mcpprobe

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/agentopia/statussync"
)

// The protocol versions that we speak, newest first.
const (
	versionModern = "2026-07-28"
	versionLegacy = "2025-11-25" // the newest with initialize and sessions
	versionHeader = "2025-06-18" // the first that wants the header MCP-Protocol-Version
)

var legacyVersions = []string{versionLegacy, "2025-06-18", "2025-03-26", "2024-11-05"}

// Causes beside guard's and http_<code>.
const (
	causeBadConfig   = "bad_config"          // the plan can't be carried out: its URL or headers are not valid
	causeNotMCP      = "not_mcp"             // it answered, but not in the protocol
	causeMCPError    = "mcp_error"           // a JSON-RPC error that proves life and nothing more
	causeNoMethod    = "method_not_found"    // it speaks the protocol, but knows none of the methods that we could ask
	causeNoVersion   = "unsupported_version" // it speaks the protocol, in no version that we do
	causeTooLarge    = "too_large"           // a list that is longer than we read
	causeSessionLost = "session_lost"        // it forgets sessions that it has just opened
)

// kind is what a server is asked.
type kind uint8

const (
	askDiscover   kind = iota // POST server/discover, modern
	askInitialize             // POST initialize, legacy
	askPing                   // POST ping, legacy, in a session where there is one
	askTools                  // POST tools/list, where ping or discover is not supported
	askStream                 // GET, HTTP+SSE: the stream whose first event is the endpoint
)

// answer is what came back, as far as judge needs it.
type answer struct {
	status    int
	mediaType string // lower case, without parameters
	rpc       *message
	text      string // the beginning of a body without an answer to us, lower case
	problem   string // why there is no rpc, for people
	tooLong   bool   // it was longer than it may be
	told      *handshake
	session   string // of the session that the answer opens, or ""
	header    http.Header
}

// action is what follows from an answer.
type action uint8

const (
	conclude    action = iota
	renegotiate        // ask server/discover with another version
	discover           // decide the era anew
	initialize         // open a session, or use the one there is
	reopen             // the session is gone: open another, once
	ping               // the session is open: ask in it
	listTools          // ask tools/list in place of what is not supported
	tryStream          // perhaps it is a server of HTTP+SSE
)

// conclusion is what an answer says. Everything but then, version and forGood counts only where then can't be done.
type conclusion struct {
	outcome   statussync.Outcome
	cause     string
	detail    string
	login     bool // 401, 403
	throttled bool
	notMCP    bool

	then    action
	version string // with renegotiate and initialize: the version to speak
	forGood bool   // with listTools: the other method is not asked any more
}

func up(then action, version string) conclusion {
	return conclusion{outcome: statussync.OutcomeSuccess, then: then, version: version}
}

// judge is the table of docs/protocols.md §6: what the answer to one question says. inSession tells whether the question
// named a session, or was asked on a held stream.
func judge(k kind, inSession bool, a *answer) conclusion {
	c := httpConclusion(a)
	ok := a.status >= 200 && a.status <= 299
	switch {
	case c.login, c.throttled:
		return c
	case a.status >= 300 && a.status <= 399:
		return c
	case k == askStream:
		return judgeStream(c, ok, a)
	case ok && a.rpc == nil:
		c = conclusion{outcome: statussync.OutcomeFailure, cause: causeNotMCP, notMCP: true, detail: "answers, but not MCP: " + a.problem}
		if k == askTools && a.tooLong { // asked only because ping is not supported, which is no fault
			return conclusion{outcome: statussync.OutcomeAlive, cause: causeTooLarge, detail: "its list of tools is " + a.problem}
		}
		// A server of the other era may answer a method that it doesn't know with anything; a web page is one.
		if k == askDiscover && a.mediaType != "text/html" {
			c.then = initialize
		}
		return c
	case ok && a.rpc.Error == nil:
		return judgeResult(k, a)
	case a.rpc != nil && a.rpc.Error != nil:
		return judgeError(c, k, inSession, a)
	}
	switch {
	case inSession && (a.status == http.StatusNotFound || a.status == http.StatusBadRequest && (saysSession(a.text) || strings.Contains(a.text, "protocol version"))):
		return lost(c) // or the server was replaced by one that speaks other versions
	case k == askDiscover && (a.status <= 499 || a.status == http.StatusInternalServerError || a.status == http.StatusNotImplemented):
		// Real servers refuse the unknown question, or one without a session, in every way that HTTP has. What they say
		// to initialize decides.
		c.then = initialize
	case k == askInitialize && (a.status == http.StatusBadRequest || a.status == http.StatusNotFound || a.status == http.StatusMethodNotAllowed):
		c.then = tryStream // the specification's rule for servers of 2024-11-05
	}
	return c
}

// httpConclusion is what the status alone says.
func httpConclusion(a *answer) conclusion {
	c := conclusion{outcome: statussync.OutcomeFailure, cause: "http_" + strconv.Itoa(a.status), detail: "HTTP " + strconv.Itoa(a.status)}
	if t := http.StatusText(a.status); t != "" {
		c.detail += " " + t
	}
	switch {
	case a.status == http.StatusUnauthorized, a.status == http.StatusForbidden:
		c.outcome, c.login = statussync.OutcomeAlive, true
		if t := challenge(a.header); t != "" {
			c.detail += "; " + t
		}
	case a.status == http.StatusTooManyRequests:
		c.outcome, c.throttled = statussync.OutcomeAlive, true
	case a.status >= 300 && a.status <= 399 && a.header.Get("Location") != "":
		c.detail += " (redirects are not followed)"
	}
	return c
}

// judgeStream is for the GET of HTTP+SSE.
func judgeStream(c conclusion, ok bool, a *answer) conclusion {
	switch {
	case !ok:
		return c
	case a.problem != "":
		return conclusion{outcome: statussync.OutcomeFailure, cause: causeNotMCP, notMCP: true, detail: "answers, but not MCP: " + a.problem}
	}
	return up(initialize, versionLegacy)
}

func judgeResult(k kind, a *answer) conclusion {
	switch k {
	case askDiscover:
		versions := a.handshake().SupportedVersions
		v, modern := choose(versions)
		switch {
		case modern:
			return up(conclude, v)
		case v != "":
			return up(initialize, v)
		case len(versions) > 0:
			return up(conclude, "") // it works, though not with anything that we know
		}
		return up(initialize, versionLegacy)
	case askInitialize:
		return up(ping, "")
	}
	return up(conclude, "")
}

// judgeError is for JSON-RPC errors, whatever HTTP status they came with.
func judgeError(c conclusion, k kind, inSession bool, a *answer) conclusion {
	e := a.rpc.Error
	text := strings.ToLower(e.Message)
	detail := "MCP error " + strconv.Itoa(e.Code) + ": " + clean(e.Message, 300)
	alive := conclusion{outcome: statussync.OutcomeAlive, cause: causeMCPError, detail: detail}
	if a.status >= 500 {
		alive = c // whatever it says, it says that it is broken
	}
	unknown := e.Code == codeMethodNotFound || (strings.Contains(text, "method") || strings.Contains(text, "ping")) &&
		(strings.Contains(text, "unknown") || strings.Contains(text, "not supported") || strings.Contains(text, "unsupported") ||
			strings.Contains(text, "not found") || strings.Contains(text, "not implemented"))
	switch {
	case (k == askPing || k == askDiscover) && e.Code == codeUnsupportedVersion, k == askTools && e.Code == codeUnsupportedVersion,
		k == askInitialize && (e.Code == codeUnsupportedVersion || e.Code == codeInvalidParams && len(e.Data) > 0):
		v, modern := choose(supported(e.Data))
		alive.cause = causeNoVersion
		switch {
		case modern:
			alive.then, alive.version = renegotiate, v
		case v != "":
			alive.then, alive.version = initialize, v
		case k == askPing || k == askTools:
			alive.then = discover
		}
		return alive
	case k == askPing && inSession && (a.status == http.StatusNotFound || a.status == http.StatusBadRequest || a.status <= 299) &&
		!unknown && saysSession(text):
		return lost(conclusion{detail: detail})
	case k == askPing && (unknown || e.Code == codeInternal):
		alive.then, alive.forGood = listTools, unknown
		if a.status < 500 && unknown {
			alive.cause = causeNoMethod
		}
		return alive
	case inSession && a.status == http.StatusNotFound:
		if unknown {
			alive.cause = causeNoMethod
			return alive
		}
		return lost(conclusion{detail: detail})
	case k == askDiscover && (a.status <= 501):
		if unknown && a.status < 500 {
			alive.cause = causeNoMethod
		}
		alive.then = initialize
		return alive
	case a.status >= 500:
		return c
	case unknown:
		alive.cause = causeNoMethod
		if k == askInitialize {
			alive.then = discover
		}
		return alive
	case k == askPing && (a.status == http.StatusBadRequest || saysSession(text)):
		alive.then = reopen
		return alive
	case a.status <= 299, a.status == http.StatusBadRequest:
		return alive
	}
	return c // 404, 405, 406, 415 …: our request is not one for this server
}

// lost is the conclusion that a session is gone.
func lost(c conclusion) conclusion {
	detail := "the server forgot a session that it had just opened (several instances without sticky sessions?)"
	if c.detail != "" {
		detail += "; " + c.detail
	}
	return conclusion{outcome: statussync.OutcomeFailure, cause: causeSessionLost, detail: detail, then: reopen}
}

// saysSession reports whether an error is about the session, in the words of the servers in the field.
func saysSession(lower string) bool {
	return strings.Contains(lower, "session") || strings.Contains(lower, "not initialized") || strings.Contains(lower, "not yet initialized") ||
		strings.Contains(lower, "before initialization")
}

// choose takes the best of a server's versions: ours, else a modern one that we don't know yet (server/discover is the
// same in all), else the newest legacy one that we know; "" where there is none.
func choose(versions []string) (v string, modern bool) {
	if slices.Contains(versions, versionModern) {
		return versionModern, true
	}
	next := ""
	for _, v := range versions {
		if validVersion(v) && v > versionModern && (next == "" || v < next) {
			next = v
		}
	}
	if next != "" {
		return next, true
	}
	for _, v := range legacyVersions {
		if slices.Contains(versions, v) {
			return v, false
		}
	}
	return "", false
}

// validVersion reports whether v is a date, as all protocol versions are: only such a one is sent back in a header.
func validVersion(v string) bool {
	if len(v) != len("2006-01-02") {
		return false
	}
	for i := 0; i < len(v); i++ {
		if i == 4 || i == 7 {
			if v[i] != '-' {
				return false
			}
		} else if v[i] < '0' || v[i] > '9' {
			return false
		}
	}
	return true
}

// implementation is how a server names itself.
type implementation struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// String is its name and version, cleaned.
func (i implementation) String() string {
	return clean(strings.TrimSpace(i.Name+" "+i.Version), statussync.MaxNameText)
}

// handshake is what server/discover and initialize tell.
type handshake struct {
	SupportedVersions []string                   `json:"supportedVersions"`
	ProtocolVersion   string                     `json:"protocolVersion"`
	Capabilities      map[string]json.RawMessage `json:"capabilities"`
	ServerInfo        implementation             `json:"serverInfo"`
	Meta              struct {
		ServerInfo implementation `json:"io.modelcontextprotocol/serverInfo"`
	} `json:"_meta"`
}

// handshake reads the result as one, once.
func (a *answer) handshake() *handshake {
	if a.told == nil {
		h := discovered(a.rpc.Result)
		a.told = &h
	}
	return a.told
}

// discovered reads a handshake; of one that is not as it should be, nothing.
func discovered(result json.RawMessage) handshake {
	var h handshake
	if json.Unmarshal(result, &h) != nil {
		return handshake{}
	}
	if len(h.SupportedVersions) > 64 {
		h.SupportedVersions = h.SupportedVersions[:64]
	}
	if h.ServerInfo == (implementation{}) {
		h.ServerInfo = h.Meta.ServerInfo
	}
	return h
}

// supported reads the data of an error about the version.
func supported(data json.RawMessage) []string {
	var d struct {
		Supported []string `json:"supported"`
	}
	if json.Unmarshal(data, &d) != nil {
		return nil
	}
	return d.Supported[:min(len(d.Supported), 64)]
}
