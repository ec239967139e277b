package mcpprobe

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/guard"
)

func rpcOf(res string) *message { return &message{JSONRPC: "2.0", Result: []byte(res)} }

func errOf(code int, text, data string) *message {
	return &message{JSONRPC: "2.0", Error: &rpcError{Code: code, Message: text, Data: []byte(data)}}
}

// TestJudge is the table of docs/protocols.md §6, row by row.
func TestJudge(t *testing.T) {
	const (
		success = statussync.OutcomeSuccess
		alive   = statussync.OutcomeAlive
		failure = statussync.OutcomeFailure
	)
	for _, c := range []struct {
		row     string
		k       kind
		session bool
		a       answer
		outcome statussync.Outcome
		cause   string
		then    action
		version string
	}{
		{"a result", askPing, true, answer{status: 200, rpc: rpcOf(`{}`)}, success, "", conclude, ""},
		{"a result", askTools, false, answer{status: 200, rpc: rpcOf(`{"tools":[]}`)}, success, "", conclude, ""},
		{"a result: modern", askDiscover, false, answer{status: 200, rpc: rpcOf(`{"supportedVersions":["2025-11-25","2026-07-28"]}`)}, success, "", conclude, "2026-07-28"},
		{"a result: a later era", askDiscover, false, answer{status: 200, rpc: rpcOf(`{"supportedVersions":["2028-01-01","2027-01-01"]}`)}, success, "", conclude, "2027-01-01"},
		{"a result: legacy versions only", askDiscover, false, answer{status: 200, rpc: rpcOf(`{"supportedVersions":["2024-11-05","2025-06-18"]}`)}, success, "", initialize, "2025-06-18"},
		{"a result: no versions", askDiscover, false, answer{status: 200, rpc: rpcOf(`{}`)}, success, "", initialize, versionLegacy},
		{"a result: unknown versions", askDiscover, false, answer{status: 200, rpc: rpcOf(`{"supportedVersions":["2023-01-01"]}`)}, success, "", conclude, ""},
		{"a result: initialize", askInitialize, false, answer{status: 200, rpc: rpcOf(`{}`)}, success, "", ping, ""},

		{"2xx that is not MCP", askPing, true, answer{status: 200, mediaType: "text/html"}, failure, causeNotMCP, conclude, ""},
		{"2xx that is not MCP", askInitialize, false, answer{status: 202}, failure, causeNotMCP, conclude, ""},
		{"2xx that is not MCP: a page", askDiscover, false, answer{status: 200, mediaType: "text/html"}, failure, causeNotMCP, conclude, ""},
		{"2xx that is not MCP: perhaps legacy", askDiscover, false, answer{status: 200, mediaType: mediaJSON}, failure, causeNotMCP, initialize, ""},

		{"-32022: modern", askDiscover, false, answer{status: 400, rpc: errOf(-32022, "x", `{"supported":["2026-07-28"]}`)}, alive, causeNoVersion, renegotiate, "2026-07-28"},
		{"-32022: legacy", askDiscover, false, answer{status: 400, rpc: errOf(-32022, "x", `{"supported":["2025-03-26","2024-11-05"]}`)}, alive, causeNoVersion, initialize, "2025-03-26"},
		{"-32022: none of ours", askDiscover, false, answer{status: 400, rpc: errOf(-32022, "x", `{"supported":["1999-01-01"]}`)}, alive, causeNoVersion, conclude, ""},
		{"-32022: now modern", askPing, true, answer{status: 400, rpc: errOf(-32022, "x", `{"supported":["2026-07-28"]}`)}, alive, causeNoVersion, renegotiate, "2026-07-28"},
		{"-32022: no data", askPing, true, answer{status: 400, rpc: errOf(-32022, "x", ``)}, alive, causeNoVersion, discover, ""},
		{"-32602 of initialize", askInitialize, false, answer{status: 400, rpc: errOf(-32602, "x", `{"supported":["2024-11-05"]}`)}, alive, causeNoVersion, initialize, "2024-11-05"},

		{"other 400 JSON-RPC", askDiscover, false, answer{status: 400, rpc: errOf(-32000, "Bad Request: Server not initialized", "")}, alive, causeMCPError, initialize, ""},
		{"other 400 JSON-RPC", askPing, false, answer{status: 400, rpc: errOf(-32000, "Bad Request: Server not initialized", "")}, alive, causeMCPError, reopen, ""},
		{"other 400 JSON-RPC", askPing, true, answer{status: 400, rpc: errOf(-32000, "Bad Request", "")}, alive, causeMCPError, reopen, ""},
		{"other 400 JSON-RPC", askInitialize, false, answer{status: 400, rpc: errOf(-32600, "Invalid Request", "")}, alive, causeMCPError, conclude, ""},
		{"an error with 200", askPing, true, answer{status: 200, rpc: errOf(-32099, "busy", "")}, alive, causeMCPError, conclude, ""},

		{"401", askDiscover, false, answer{status: 401}, alive, "http_401", conclude, ""},
		{"401", askStream, false, answer{status: 401}, alive, "http_401", conclude, ""},
		{"403", askPing, true, answer{status: 403, rpc: errOf(-32000, "session", "")}, alive, "http_403", conclude, ""},

		{"404 with a session", askPing, true, answer{status: 404, text: "session not found"}, failure, causeSessionLost, reopen, ""},
		{"404 with a session", askPing, true, answer{status: 404}, failure, causeSessionLost, reopen, ""},
		{"404 with a session", askTools, true, answer{status: 404, rpc: errOf(-32001, "Session not found", "")}, failure, causeSessionLost, reopen, ""},
		{"400 that says session", askPing, true, answer{status: 400, text: "no valid session id provided"}, failure, causeSessionLost, reopen, ""},
		{"400 that says session", askPing, true, answer{status: 400, rpc: errOf(-32000, "Bad Request: No valid session ID provided", "")}, failure, causeSessionLost, reopen, ""},

		{"400 that says version", askPing, true, answer{status: 400, text: "bad request: unsupported protocol version"}, failure, causeSessionLost, reopen, ""},

		{"404 -32601", askDiscover, false, answer{status: 404, rpc: errOf(-32601, "Method not found", "")}, alive, causeNoMethod, initialize, ""},
		{"404 -32601", askInitialize, false, answer{status: 404, rpc: errOf(-32601, "Method not found", "")}, alive, causeNoMethod, discover, ""},
		{"404 -32601", askTools, true, answer{status: 404, rpc: errOf(-32601, "Method not found", "")}, alive, causeNoMethod, conclude, ""},

		{"405 on GET", askStream, false, answer{status: 405}, failure, "http_405", conclude, ""},
		{"a stream", askStream, false, answer{status: 200, mediaType: mediaEvents}, success, "", initialize, versionLegacy},
		{"no stream", askStream, false, answer{status: 200, mediaType: "text/html", problem: "x"}, failure, causeNotMCP, conclude, ""},

		{"429", askPing, true, answer{status: 429}, alive, "http_429", conclude, ""},

		{"ping unsupported", askPing, true, answer{status: 200, rpc: errOf(-32601, "Method not found", "")}, alive, causeNoMethod, listTools, ""},
		{"ping unsupported", askPing, true, answer{status: 404, rpc: errOf(-32601, "Method not found", "")}, alive, causeNoMethod, listTools, ""},
		{"ping unsupported", askPing, true, answer{status: 400, rpc: errOf(-32601, "no such session method", "")}, alive, causeNoMethod, listTools, ""},
		{"ping unsupported", askPing, true, answer{status: 200, rpc: errOf(-32603, "Method not supported", "")}, alive, causeNoMethod, listTools, ""},
		{"ping unsupported", askPing, true, answer{status: 200, rpc: errOf(0, "Unknown method: ping", "")}, alive, causeNoMethod, listTools, ""},
		{"ping unsupported", askPing, true, answer{status: 500, rpc: errOf(-32603, "Internal error", "")}, failure, "http_500", listTools, ""},

		{"5xx", askPing, true, answer{status: 503}, failure, "http_503", conclude, ""},
		{"5xx", askDiscover, false, answer{status: 502}, failure, "http_502", conclude, ""},
		{"5xx: perhaps only the question", askDiscover, false, answer{status: 500}, failure, "http_500", initialize, ""},
		{"5xx", askInitialize, false, answer{status: 500, rpc: errOf(-32603, "Internal error", "")}, failure, "http_500", conclude, ""},
		{"5xx", askTools, true, answer{status: 503, rpc: errOf(-32603, "Internal error", "")}, failure, "http_503", conclude, ""},

		{"plain 404", askDiscover, false, answer{status: 404, text: "invalid session id"}, failure, "http_404", initialize, ""},
		{"plain 404", askInitialize, false, answer{status: 404}, failure, "http_404", tryStream, ""},
		{"plain 404", askPing, false, answer{status: 404}, failure, "http_404", conclude, ""},
		{"3xx", askDiscover, false, answer{status: 302}, failure, "http_302", conclude, ""},
		{"406", askDiscover, false, answer{status: 406, rpc: errOf(-32000, "Not Acceptable", "")}, alive, causeMCPError, initialize, ""},
		{"406", askInitialize, false, answer{status: 406, rpc: errOf(-32000, "Not Acceptable", "")}, failure, "http_406", conclude, ""},
		{"415", askPing, true, answer{status: 415}, failure, "http_415", conclude, ""},
		{"400 that is not JSON-RPC", askPing, true, answer{status: 400, text: "bad request"}, failure, "http_400", conclude, ""},
		{"400 that is not JSON-RPC", askInitialize, false, answer{status: 400}, failure, "http_400", tryStream, ""},
		{"a list too long for L1", askTools, true, answer{status: 200, tooLong: true, problem: "x"}, alive, causeTooLarge, conclude, ""},
	} {
		got := judge(c.k, c.session, &c.a)
		if got.outcome != c.outcome || got.cause != c.cause || got.then != c.then || (c.version != "" && got.version != c.version) {
			t.Errorf("%s, asked %d: %+v", c.row, c.k, got)
		}
		if (got.detail == "") != (got.outcome == success) || got.notMCP != (got.cause == causeNotMCP) ||
			got.login != (c.a.status == 401 || c.a.status == 403) || got.throttled != (c.a.status == 429) {
			t.Errorf("%s: %+v", c.row, got)
		}
	}
}

// TestRows has a server for each row of the table; what is asked counts as much as what is concluded.
func TestRows(t *testing.T) {
	always := func(status int, mediaType, body string) func(http.ResponseWriter, *call) {
		return func(w http.ResponseWriter, _ *call) { reply(w, status, mediaType, body) }
	}
	const opened = "server/discover initialize notifications/initialized "
	for _, c := range []struct {
		name    string
		answer  func(http.ResponseWriter, *call)
		outcome statussync.Outcome
		cause   string
		asked   string // by the first probe
		again   string // by the second; "": the same
	}{
		{"modern", modern, statussync.OutcomeSuccess, "", "server/discover", ""},
		{"legacy", legacy("x", func(w http.ResponseWriter, c *call) { result(w, c, "{}") }),
			statussync.OutcomeSuccess, "", opened + "ping", "ping"},
		{"legacy without sessions", legacy("", func(w http.ResponseWriter, c *call) { result(w, c, "{}") }),
			statussync.OutcomeSuccess, "", opened + "ping", "ping"},
		{"a page", always(200, "text/html; charset=utf-8", "<html>"), statussync.OutcomeFailure, causeNotMCP, "server/discover", ""},
		{"other JSON", always(200, mediaJSON, `{"status":"ok"}`), statussync.OutcomeFailure, causeNotMCP, "server/discover initialize", ""},
		{"an answer to somebody else", func(w http.ResponseWriter, _ *call) {
			reply(w, 200, mediaJSON, `{"jsonrpc":"2.0","id":987654,"result":{}}`)
		}, statussync.OutcomeFailure, causeNotMCP, "server/discover initialize", ""},
		{"202 and nothing", always(202, "", ""), statussync.OutcomeFailure, causeNotMCP, "server/discover initialize", ""},
		{"another version", func(w http.ResponseWriter, c *call) {
			if c.version != "2027-01-01" {
				rpcFault(w, c, 400, -32022, "Unsupported protocol version", `{"supported":["2027-01-01"],"requested":"2026-07-28"}`)
				return
			}
			result(w, c, `{"supportedVersions":["2027-01-01"]}`)
		}, statussync.OutcomeSuccess, "", "server/discover server/discover", "server/discover"},
		{"no version in common", func(w http.ResponseWriter, c *call) {
			rpcFault(w, c, 400, -32022, "Unsupported protocol version", `{"supported":["1999-01-01"]}`)
		}, statussync.OutcomeAlive, causeNoVersion, "server/discover", ""},
		{"never initialized", func(w http.ResponseWriter, c *call) {
			rpcFault(w, c, 400, -32000, "Bad Request: Server not initialized", "")
		}, statussync.OutcomeAlive, causeMCPError, "server/discover initialize", ""},
		{"404 that knows no method", func(w http.ResponseWriter, c *call) { rpcFault(w, c, 404, -32601, "Method not found", "") },
			statussync.OutcomeAlive, causeNoMethod, "server/discover initialize", ""},
		{"plain 404 for what is not initialize", func(w http.ResponseWriter, c *call) {
			if c.method == "server/discover" {
				reply(w, 404, "text/plain", "Invalid session ID")
				return
			}
			legacy("x", func(w http.ResponseWriter, c *call) { result(w, c, "{}") })(w, c)
		}, statussync.OutcomeSuccess, "", opened + "ping", "ping"},
		{"401", always(401, "", ""), statussync.OutcomeAlive, "http_401", "server/discover", ""},
		{"403", always(403, "", ""), statussync.OutcomeAlive, "http_403", "server/discover", ""},
		{"429", always(429, "", ""), statussync.OutcomeAlive, "http_429", "server/discover", ""},
		{"ping -32601", legacy("x", func(w http.ResponseWriter, c *call) {
			if c.method == "ping" {
				rpcFault(w, c, 200, -32601, "Method not found", "")
				return
			}
			result(w, c, `{"tools":[]}`)
		}), statussync.OutcomeSuccess, "", opened + "ping tools/list", "tools/list"},
		{"ping -32603", legacy("x", func(w http.ResponseWriter, c *call) {
			if c.method == "ping" {
				rpcFault(w, c, 200, -32603, "Method not supported", "")
				return
			}
			result(w, c, `{"tools":[]}`)
		}), statussync.OutcomeSuccess, "", opened + "ping tools/list", "tools/list"},
		{"ping: words only", legacy("x", func(w http.ResponseWriter, c *call) {
			if c.method == "ping" {
				rpcFault(w, c, 200, 0, "Unknown method: ping", "")
				return
			}
			result(w, c, `{"tools":[]}`)
		}), statussync.OutcomeSuccess, "", opened + "ping tools/list", "tools/list"},
		{"neither ping nor tools", legacy("x", func(w http.ResponseWriter, c *call) { rpcFault(w, c, 200, -32601, "Method not found", "") }),
			statussync.OutcomeAlive, causeNoMethod, opened + "ping tools/list", "tools/list"},
		{"503", always(503, "", ""), statussync.OutcomeFailure, "http_503", "server/discover", ""},
		{"500", always(500, "", ""), statussync.OutcomeFailure, "http_500", "server/discover initialize", ""},
		{"404", always(404, "text/html", "<html>"), statussync.OutcomeFailure, "http_404", "server/discover initialize GET", "server/discover initialize"},
		{"302", func(w http.ResponseWriter, _ *call) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(302)
		}, statussync.OutcomeFailure, "http_302", "server/discover", ""},
		{"406", always(406, "", ""), statussync.OutcomeFailure, "http_406", "server/discover initialize", ""},
		{"415", always(415, "", ""), statussync.OutcomeFailure, "http_415", "server/discover initialize", ""},
		{"plain 400", always(400, "text/plain", "no"), statussync.OutcomeFailure, "http_400", "server/discover initialize GET", "server/discover initialize"},
		{"sends its answers as events", func(w http.ResponseWriter, c *call) {
			reply(w, 200, mediaEvents, ": hello\n\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\"}\n\n"+
				"data: {\"jsonrpc\":\"2.0\",\"id\":\"theirs\",\"method\":\"sampling/createMessage\"}\n\n"+
				"event: message\r\ndata: {\"jsonrpc\":\"2.0\",\"id\":"+c.id+",\r\ndata: \"result\":{\"supportedVersions\":[\"2026-07-28\"]}}\r\n\r\n")
		}, statussync.OutcomeSuccess, "", "server/discover", ""},
		{"a stream that ends without the answer", always(200, mediaEvents, ": hello\n\n"), statussync.OutcomeFailure, causeNotMCP, "server/discover initialize", ""},
		{"in a batch", func(w http.ResponseWriter, c *call) {
			reply(w, 200, mediaJSON, `[{"jsonrpc":"2.0","method":"x"},{"jsonrpc":"2.0","id":`+c.id+`,"result":{"supportedVersions":["2026-07-28"]}}]`)
		}, statussync.OutcomeSuccess, "", "server/discover", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, url := newFake(t, c.answer)
			p := newProber(t, Options{})
			pl := known(p, plan(url))
			want := c.asked
			for i := range 3 {
				r := p.Probe(t.Context(), pl)
				if r.Outcome != c.outcome || r.Cause != c.cause || r.NotMCP != (c.cause == causeNotMCP) || r.ByConnect ||
					(r.Detail == "") != (c.outcome == statussync.OutcomeSuccess) || r.Throttled != (c.cause == "http_429") {
					t.Errorf("probe %d: %+v", i, r)
				}
				if r.HTTPStatus == 0 || r.Latency <= 0 || r.Latency > r.FinishedAt.Sub(r.StartedAt) || r.ServerID != "s" {
					t.Errorf("probe %d: %+v", i, r)
				}
				if got := f.asked(); got != want {
					t.Errorf("probe %d asked %q, want %q", i, got, want)
				}
				if c.again != "" {
					want = c.again
				}
			}
		})
	}
}

func TestWhatServersTell(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter, *call){
		"fake 8 2026-07-28": modern,
		"fake 7 2025-06-18": legacy("x", func(w http.ResponseWriter, c *call) {
			if c.session != "x" || c.version != "2025-06-18" || c.header.Get("Accept") != "application/json, text/event-stream" {
				t.Errorf("%+v", c)
			}
			result(w, c, "{}")
		}),
	} {
		_, url := newFake(t, answer)
		p := newProber(t, Options{})
		pl := known(p, plan(url))
		for range 2 {
			if r := p.Probe(t.Context(), pl); r.ServerInfo.Name+" "+r.ServerInfo.Version+" "+r.Protocol != name || r.Auth != statussync.AuthNone {
				t.Errorf("%+v", r)
			}
		}
	}
}

func TestLogin(t *testing.T) {
	_, url := newFake(t, func(w http.ResponseWriter, c *call) {
		if c.header.Get("Authorization") == "Bearer good" {
			modern(w, c)
			return
		}
		w.Header().Add("WWW-Authenticate", `Bearer realm="a, b", error="invalid_token", resource_metadata="https://u:pw@h.example/.well-known/oauth-protected-resource/mcp?k=secret", scope="read \"all\""`)
		w.Header().Add("WWW-Authenticate", "Basic realm=x, DPoP algs=\"ES256\"")
		w.WriteHeader(401)
	})
	p := newProber(t, Options{})
	for _, c := range []struct {
		headers map[string]string
		outcome statussync.Outcome
		auth    statussync.Auth
	}{
		{nil, statussync.OutcomeAlive, statussync.AuthRequired},
		{map[string]string{"Authorization": "Bearer bad"}, statussync.OutcomeAlive, statussync.AuthFailed},
		{map[string]string{"authorization": "Bearer good", "Accept": "text/html", "Mcp-Method": "x"}, statussync.OutcomeSuccess, statussync.AuthOK},
	} {
		pl := plan(url)
		pl.Headers = c.headers
		r := p.Probe(t.Context(), known(p, pl))
		if r.Outcome != c.outcome || r.Auth != c.auth {
			t.Errorf("%+v", r)
		}
		const want = `HTTP 401 Unauthorized; wants Bearer or Basic or DPoP; resource metadata at ` +
			`https://h.example/.well-known/oauth-protected-resource/mcp; scope read "all"; it says invalid_token`
		if c.outcome == statussync.OutcomeAlive && r.Detail != want {
			t.Errorf("detail %q", r.Detail)
		}
	}
}

func TestChallenges(t *testing.T) {
	for in, want := range map[string]string{
		"":                                    "",
		"Bearer":                              "wants Bearer",
		"Negotiate abc==, Bearer scope=a":     "wants Negotiate",
		"Bearer scope=\"\u202eevil\"":         "wants Bearer; scope evil",
		"Bearer resource_metadata=\"file:/\"": "wants Bearer",
		`Bearer scope="unterminated`:          "wants Bearer; scope unterminated",
		", ,":                                 "",
		strings.Repeat("a=b,", 10_000):        "",
	} {
		h := http.Header{}
		h.Set("WWW-Authenticate", in)
		if got := challenge(h); got != want && !strings.HasPrefix(got, want+" ") {
			t.Errorf("%.60q: %q, want %q", in, got, want)
		}
	}
}

func TestThrottled(t *testing.T) {
	_, url := newFake(t, func(w http.ResponseWriter, _ *call) {
		w.Header().Set("Retry-After", "90")
		w.WriteHeader(429)
	})
	p := newProber(t, Options{})
	if r := p.Probe(t.Context(), known(p, plan(url))); !r.Throttled || r.RetryAfter != 90*time.Second || r.Auth != "" {
		t.Errorf("%+v", r)
	}
}

func TestBadPlan(t *testing.T) {
	p := newProber(t, Options{})
	for _, u := range []string{"", "x", "ftp://h/", "http://u:secret@h/"} {
		if r := p.Probe(t.Context(), plan(u)); r.Cause != causeBadConfig || r.Outcome != statussync.OutcomeFailure || strings.Contains(r.Detail, "secret") {
			t.Errorf("%q: %+v", u, r)
		}
	}
	pl := plan("http://127.0.0.1:1/")
	pl.Headers = map[string]string{"X": "secret\r\nY: z"}
	if r := p.Probe(t.Context(), pl); r.Cause != causeBadConfig || strings.Contains(r.Detail, "secret") {
		t.Errorf("%+v", r)
	}
}

func TestNoAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := fmt.Sprintf("http://%s/", l.Addr())
	_ = l.Close()
	hang := rawServer(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1<<20))
		_, _ = c.Read(make([]byte, 1))
		_, _ = c.Read(make([]byte, 1<<20))
	})
	p := newProber(t, Options{})
	for _, c := range []struct {
		url, cause string
		byConnect  bool
		transport  statussync.Transport
	}{
		{refused, guard.CauseRefused, true, ""},
		{refused, guard.CauseRefused, true, statussync.TransportSSE},
		{"http://no-such-host.invalid/", guard.CauseDNS, true, ""},
		{hang, guard.CauseTimeout, false, ""},
		{hang, guard.CauseTimeout, false, statussync.TransportSSE},
		{"http://169.254.169.254/mcp", guard.CauseGuard, false, ""},
	} {
		pl := plan(c.url)
		pl.Transport = c.transport
		if c.cause == guard.CauseTimeout || c.cause == guard.CauseDNS {
			pl.Timeout = 600 * time.Millisecond
		}
		r := p.Probe(t.Context(), known(p, pl))
		if r.Outcome != statussync.OutcomeFailure || r.Cause != c.cause || r.ByConnect != c.byConnect || r.HTTPStatus != 0 || r.Latency != 0 || r.Detail == "" {
			t.Errorf("%s %s: %+v", c.url, c.transport, r)
		}
	}
	pl := plan(refused)
	pl.Trusted = false
	if r := p.Probe(t.Context(), known(p, pl)); r.Cause != guard.CauseGuard {
		t.Errorf("an untrusted loopback address: %+v", r)
	}
}

// A legacy server may leave a question that it does not know without an answer.
func TestLegacyThatHangsOnDiscover(t *testing.T) {
	inner := legacy("x", func(w http.ResponseWriter, c *call) { result(w, c, "{}") })
	stop := make(chan struct{})
	defer close(stop)
	f, url := newFake(t, func(w http.ResponseWriter, c *call) {
		if c.method == "server/discover" {
			<-stop
			return
		}
		inner(w, c)
	})
	p := newProber(t, Options{})
	pl := plan(url)
	pl.Timeout = 4 * time.Second
	known(p, pl)
	for range 2 {
		if r := p.Probe(t.Context(), pl); r.Outcome != statussync.OutcomeSuccess {
			t.Errorf("%+v", r)
		}
	}
	if got := f.asked(); got != "server/discover initialize notifications/initialized ping ping" {
		t.Errorf("asked %q", got)
	}
}
