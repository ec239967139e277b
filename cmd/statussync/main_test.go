package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// now is when the tests run their commands.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// result is what a command left.
type result struct {
	code     int
	out, err string
}

type option func(*system)

func onTerminal(s *system) { s.terminal = true }

func withEnv(kv ...string) option {
	return func(s *system) {
		s.getenv = func(k string) string {
			for i := 0; i < len(kv); i += 2 {
				if kv[i] == k {
					return kv[i+1]
				}
			}
			return ""
		}
	}
}

func exec(ctx context.Context, args []string, opts ...option) result {
	var out, errOut bytes.Buffer
	sys := system{
		stdout: &out, stderr: &errOut, getenv: func(string) string { return "" },
		now: func() time.Time { return now }, version: "v9",
	}
	for _, o := range opts {
		o(&sys)
	}
	code := run(ctx, args, sys)
	return result{code, out.String(), errOut.String()}
}

// fake is a service that answers from a table of "METHOD /path?query".
func fake(t *testing.T, answers map[string]string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		key := r.Method + " " + r.RequestURI
		a, ok := answers[key]
		if !ok {
			a, ok = answers[key+" "+string(body)]
		}
		if !ok && key == "GET /api/v1/probing" {
			a, ok = `{"enabled":true}`, true
		}
		if !ok {
			t.Errorf("asked %s %s", key, body)
			w.WriteHeader(http.StatusTeapot)
			return
		}
		if status, problem, is := strings.Cut(a, " {"); is && len(status) == 3 {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(int(status[0]-'0')*100 + int(status[1]-'0')*10 + int(status[2]-'0'))
			io.WriteString(w, "{"+problem)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, a)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func ago_(d time.Duration) wire.Time { return wire.Time{Time: now.Add(-d)} }

// fleet is a page with one server of each kind, and texts that must not reach a terminal as they are.
func fleet() wire.Page[wire.Server] {
	up := int64(7384)
	beat := 12.4
	return wire.Page[wire.Server]{Cursor: "e7:57", Items: []wire.Server{
		{ID: "weather", Name: "weather", EnvironmentID: "box-7", Endpoint: "http://127.0.0.1:9101/mcp", Labels: map[string]string{"team": "core", "a": "b"}, Desired: "running",
			Status: wire.Status{State: "running", Health: "healthy", Reason: "ok", Availability: "available", Marks: []string{}, Since: ago_(3*time.Hour + 5*time.Minute),
				LatencyMS: 12.3, UptimeSeconds: &up, HeartbeatAgeSeconds: &beat, CheckCount: 120, ErrorCount: 3, Version: 4, LastChecked: ago_(4 * time.Second), Auth: "none"}},
		{ID: "天気", Name: "天気", EnvironmentID: "box-7",
			Status: wire.Status{State: "running", Health: "degraded", Reason: "probe_slow", Availability: "limited", Marks: []string{"flapping", "maintenance"}, Since: ago_(72 * time.Second), LatencyMS: 2345}},
		{ID: "search", EnvironmentID: "box-8", Status: wire.Status{State: "error", Health: "unhealthy", Reason: "probe_failing", Cause: "http_503", Availability: "unavailable", Marks: []string{},
			Since: ago_(26 * time.Hour), LastError: "bad\x1b[2J gateway"}},
		{ID: "evil\x1b[31m\u202etxt", Status: wire.Status{State: "unknown", Health: "unknown", Reason: "never_seen", Availability: "unknown", Marks: []string{}}},
	}}
}

const fleetPath = "GET /api/v1/servers?limit=1000"

func TestStatusTable(t *testing.T) {
	url := fake(t, map[string]string{fleetPath: jsonOf(t, fleet())})
	want := `ID           ENVIRONMENT  STATE    HEALTH     REASON                    MARKS                 SINCE  LATENCY
weather      box-7        running  healthy    ok                        -                      3h5m     12ms
天気         box-7        running  degraded   probe_slow                flapping,maintenance  1m12s     2.3s
search       box-8        error    unhealthy  probe_failing (http_503)  -                      1d2h        -
evil[31mtxt  -            unknown  unknown    never_seen                -                         -        -

4 servers: 1 available, 1 limited, 1 unavailable, 1 unknown
`
	r := exec(t.Context(), []string{"status", "--server", url})
	if d := cmp.Diff(want, r.out); d != "" || r.code != 0 || r.err != "" {
		t.Errorf("exit %d, stderr %q, (-want +got):\n%s", r.code, r.err, d)
	}
}

func TestColours(t *testing.T) {
	url := fake(t, map[string]string{fleetPath: jsonOf(t, fleet())})
	coloured := exec(t.Context(), []string{"status", "--server", url}, onTerminal).out
	for _, want := range []string{"\x1b[32mrunning\x1b[0m  \x1b[32mhealthy\x1b[0m", "\x1b[33mdegraded\x1b[0m", "\x1b[31merror\x1b[0m", "\x1b[2;90munknown\x1b[0m"} {
		if !strings.Contains(coloured, want) {
			t.Errorf("no %q in\n%q", want, coloured)
		}
	}
	plain := exec(t.Context(), []string{"status", "--server", url}).out
	var stripped strings.Builder
	for i, part := range strings.Split(coloured, "\x1b[") {
		if i > 0 {
			_, part, _ = strings.Cut(part, "m")
		}
		stripped.WriteString(part)
	}
	if d := cmp.Diff(plain, stripped.String()); d != "" {
		t.Errorf("colours change the text:\n%s", d)
	}
	for name, opts := range map[string][]option{
		"NO_COLOR": {onTerminal, withEnv("NO_COLOR", "1")}, "dumb terminal": {onTerminal, withEnv("TERM", "dumb")}, "no terminal": nil,
	} {
		if r := exec(t.Context(), []string{"status", "--server", url}, opts...); r.out != plain {
			t.Errorf("%s: %q", name, r.out)
		}
	}
	if r := exec(t.Context(), []string{"status", "--no-color", "--server", url}, onTerminal); r.out != plain {
		t.Errorf("--no-color: %q", r.out)
	}
}

// TestJSON: what a command prints with -o json is what the API answered.
func TestJSON(t *testing.T) {
	f := fleet()
	one := jsonOf(t, f.Items[0])
	entry := `{"seq":42,"epoch":"e7","kind":"status","server_id":"a","version":3,"previous_status":{"state":"running","health":"healthy","reason":"ok","marks":[]},"current_status":{"state":"running","health":"degraded","reason":"probe_slow","marks":[],"last_started":"2026-01-02T03:04:00.000Z","uptime_seconds":5},"timestamp":"2026-01-02T03:04:05.678Z","source":"heartbeat","details":"slow","changes":["health","reason"]}`
	explain := `{"state":"running","health":"healthy","reason":"ok","availability":"available","marks":[],"check_count":1,"error_count":0,"version":1,"explain":{"now":"2026-03-01T12:00:00.000Z","evidence":[],"rules":[]}}`
	for _, tc := range []struct{ args, path, answer string }{
		{"status", fleetPath, jsonOf(t, f)},
		{"status weather", "GET /api/v1/servers/weather", one},
		{"status weather --explain", "GET /api/v1/servers/weather/status?explain=true", explain},
		{"history weather", "GET /api/v1/servers/weather/history?hours=24&limit=100", `{"items":[` + entry + `],"cursor":"e7:57"}`},
		{"environments", "GET /api/v1/environments?limit=1000", `{"items":[{"id":"box","name":"b","agent":"ok","servers":2}],"cursor":"e7:1"}`},
		{"metrics", "GET /api/v1/sync/metrics", `{"total_servers":2,"active_servers":1,"error_servers":1,"sync_duration_ms":1.5,"status_changes":9,"subscriptions":1,"cache_hits":0,"cache_misses":0}`},
		{"probe weather", "POST /api/v1/servers/weather/probe", `{"server_id":"weather","outcome":"success","status":` + jsonOf(t, f.Items[0].Status) + `}`},
		{"override clear weather", "DELETE /api/v1/servers/weather/override", jsonOf(t, f.Items[0].Status)},
	} {
		t.Run(tc.args, func(t *testing.T) {
			url := fake(t, map[string]string{tc.path: tc.answer})
			r := exec(t.Context(), append(strings.Fields(tc.args), "-o", "json", "--server", url))
			var got, want any
			if err := json.Unmarshal([]byte(r.out), &got); err != nil {
				t.Fatalf("%v in %q, stderr %q", err, r.out, r.err)
			}
			if err := json.Unmarshal([]byte(tc.answer), &want); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" || r.code != 0 {
				t.Errorf("exit %d (-answered +printed):\n%s", r.code, d)
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	f := fleet()
	healthy, sick := jsonOf(t, f.Items[0]), jsonOf(t, f.Items[2])
	slow := jsonOf(t, f.Items[1])
	const notFound = `404 {"code":"not_found","status":404,"detail":"no server has the id \"x\""}`
	probe := func(outcome string) string {
		return `{"server_id":"x","outcome":"` + outcome + `","cause":"refused","detail":"connection refused","status":` + jsonOf(t, f.Items[2].Status) + `}`
	}
	const server = "GET /api/v1/servers/x"
	for _, tc := range []struct {
		args   string
		path   string
		answer string
		code   int
		err    string // all of stderr, URL for the address
	}{
		{"status x", server, healthy, 0, ""},
		{"status x", server, sick, 0, ""},
		{"status x --fail-on unhealthy", server, healthy, 0, ""},
		{"status x --fail-on unhealthy", server, slow, 0, ""},
		{"status x --fail-on degraded", server, slow, 1, "statussync: x is degraded\n"},
		{"status x --fail-on degraded", server, sick, 1, "statussync: x is unhealthy\n"},
		{"status x --fail-on unhealthy", server, sick, 1, "statussync: x is unhealthy\n"},
		{"status", fleetPath, jsonOf(t, f), 0, ""},
		{"status --fail-on unhealthy", fleetPath, jsonOf(t, f), 1, "statussync: 1 of 4 servers are unhealthy\n"},
		{"status --fail-on degraded -o json", fleetPath, jsonOf(t, f), 1, "statussync: 2 of 4 servers are degraded or unhealthy\n"},
		{"probe x", "POST /api/v1/servers/x/probe", probe("success"), 0, ""},
		{"probe x", "POST /api/v1/servers/x/probe", probe("alive"), 0, ""},
		{"probe x", "POST /api/v1/servers/x/probe", probe("failure"), 1, "statussync: the probe of x failed\n"},
		{"probe --all", "POST /api/v1/probes", `{"items":[` + probe("success") + `],"failed":[{"server_id":"y","code":"conflict","detail":"is not probed"}],"duration_ms":12}`, 0, ""},
		{"probe --all", "POST /api/v1/probes", `{"items":[` + probe("failure") + `],"failed":[{"server_id":"y","code":"unavailable","detail":"busy"}],"duration_ms":12}`, 1, "statussync: 2 of 2 probes failed\n"},

		{"", "", "", 0, ""},
		{"nonsense", "", "", 2, "statussync: unknown command \"nonsense\" for \"statussync\"\nRun 'statussync --help' for usage.\n"},
		{"override nonsense", "", "", 2, "statussync: unknown command \"nonsense\" for \"statussync override\"\n"},
		{"status --nonsense", "", "", 2, "statussync: unknown flag: --nonsense\nRun 'statussync status --help' for usage.\n"},
		{"status --state up", "", "", 2, "statussync: invalid argument \"up\" for \"--state\" flag: \"up\" is not one of running, stopped, starting, stopping, error, unknown\nRun 'statussync status --help' for usage.\n"},
		{"status --health healthy,", "", "", 2, "statussync: invalid argument \"healthy,\" for \"--health\" flag: holds an empty word\nRun 'statussync status --help' for usage.\n"},
		{"status --label team", "", "", 2, "statussync: invalid argument \"team\" for \"--label\" flag: must look like key=value\nRun 'statussync status --help' for usage.\n"},
		{"status --label a=1 --label a=2", "", "", 2, "statussync: invalid argument \"a=2\" for \"--label\" flag: asks for two values of \"a\"; no server has both\nRun 'statussync status --help' for usage.\n"},
		{"status -o yaml", "", "", 2, "statussync: invalid argument \"yaml\" for \"-o, --output\" flag: must be one of table, json\nRun 'statussync status --help' for usage.\n"},
		{"status a b", "", "", 2, "statussync: accepts at most 1 arg(s), received 2\nRun 'statussync status --help' for usage.\n"},
		{"status --explain", "", "", 2, "statussync: --explain wants the ID of a server\n"},
		{"status x --state error", "", "", 2, "statussync: --state selects servers; with the ID of one it has no meaning\n"},
		{"status --fail-on healthy", "", "", 2, "statussync: invalid argument \"healthy\" for \"--fail-on\" flag: must be one of unhealthy, degraded\nRun 'statussync status --help' for usage.\n"},
		{"watch --since yesterday", "", "", 2, "statussync: invalid argument \"yesterday\" for \"--since\" flag: is not a cursor; one looks like e7:41 and comes from an earlier answer\nRun 'statussync watch --help' for usage.\n"},
		{"history", "", "", 2, "statussync: accepts 1 arg(s), received 0\nRun 'statussync history --help' for usage.\n"},
		{"history x --hours 0", "", "", 2, "statussync: --hours must be at least 1\n"},
		{"history x --limit -1", "", "", 2, "statussync: --limit must be at least 1\n"},
		{"probe", "", "", 2, "statussync: give the ID of one server, or --all\nRun 'statussync probe --help' for usage.\n"},
		{"probe x --all", "", "", 2, "statussync: give the ID of a server or --all, not both\nRun 'statussync probe --help' for usage.\n"},
		{"override set x", "", "", 2, "statussync: required flag(s) \"state\" not set\nRun 'statussync override set --help' for usage.\n"},
		{"override set x --state error --for soon", "", "", 2, "statussync: invalid argument \"soon\" for \"--for\" flag: is not a duration; one looks like 90s, 15m, 1h or 2d\nRun 'statussync override set --help' for usage.\n"},
		{"override set x --state error --for -1h", "", "", 2, "statussync: invalid argument \"-1h\" for \"--for\" flag: must be greater than zero\nRun 'statussync override set --help' for usage.\n"},
		{"serve", "", "", 2, "statussync: at least one of the flags in the group [config mcp-config] is required\nRun 'statussync serve --help' for usage.\n"},
		{"config check", "", "", 2, "statussync: accepts 1 arg(s), received 0\nRun 'statussync config check --help' for usage.\n"},

		{"status x", server, notFound, 4, "statussync: refused: no server has the id \"x\"\n"},
		{"status x", server, `401 {"code":"unauthorized","detail":"a token is needed"}`, 4, "statussync: refused: a token is needed (give a token: STATUSSYNC_TOKEN or --token)\n"},
		{"status x --token wrong", server, `401 {"code":"unauthorized","detail":"not known"}`, 4, "statussync: refused: not known (the token is not one that this service knows)\n"},
		{"metrics", "GET /api/v1/sync/metrics", `403 {"code":"forbidden","detail":"this needs the role operator"}`, 4, "statussync: refused: this needs the role operator (the token's role does not allow this)\n"},
		{"override set x --state stopped --health healthy", `PUT /api/v1/servers/x/override {"state":"stopped","health":"healthy","expires_in":"1h"}`,
			`400 {"code":"invalid","detail":"bad","errors":[{"location":"body.health","message":"healthy goes only with state running"}]}`, 4, "statussync: refused: body.health: healthy goes only with state running\n"},
		{"metrics", "GET /api/v1/sync/metrics", `500 {"code":"internal","status":500,"detail":"internal error","request_id":"r-1"}`, 4, "statussync: refused: internal error (request r-1)\n"},
		{"metrics", "GET /api/v1/sync/metrics", `503 {"code":"unavailable","status":503,"detail":"stopping","request_id":"r-1"}`, 4, "statussync: refused: stopping (the service's log says more under request r-1)\n"},
		{"environments", "GET /api/v1/environments?limit=1000", "[]", 3, "statussync: cannot reach URL: the answer is not what the statussync service sends: json: cannot unmarshal array into Go value of type wire.Page[github.com/agentopia/statussync/wire.Environment] (is the service running? --server URL)\n"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			answers := map[string]string{}
			if tc.path != "" {
				answers[tc.path] = tc.answer
			}
			url := fake(t, answers)
			r := exec(t.Context(), append(strings.Fields(tc.args), "--server", url))
			if got := strings.ReplaceAll(r.err, url, "URL"); r.code != tc.code || got != tc.err {
				t.Errorf("exit %d, want %d\nstderr %q\nwant   %q", r.code, tc.code, got, tc.err)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + ln.Addr().String()
	ln.Close()
	for _, args := range []string{"status", "status x", "watch", "history x", "probe x", "probe --all", "override set x --state error", "override clear x", "environments", "metrics", "version --service"} {
		r := exec(t.Context(), append(strings.Fields(args), "--server", url))
		if want := "statussync: cannot reach " + url + ": connection refused (is the service running? --server URL)\n"; r.code != 3 || r.err != want || r.out != "" {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", args, r.code, r.out, r.err)
		}
	}
	// The environment names the service, too; a flag wins over it.
	if r := exec(t.Context(), []string{"metrics"}, withEnv("STATUSSYNC_SERVER", url)); r.code != 3 || !strings.Contains(r.err, url) {
		t.Errorf("STATUSSYNC_SERVER: exit %d, %q", r.code, r.err)
	}
	if r := exec(t.Context(), []string{"metrics", "--server", "nonsense"}, withEnv("STATUSSYNC_SERVER", url)); r.code != 2 || r.err != "statussync: server URL: must begin with http:// or https://\n" {
		t.Errorf("bad URL: exit %d, %q", r.code, r.err)
	}
}

func TestToken(t *testing.T) {
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization") + " " + r.UserAgent()
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{}`)
	}))
	defer srv.Close()
	env := withEnv("STATUSSYNC_TOKEN", "from-env")
	for want, args := range map[string][]string{
		"Bearer from-env statussync/v9": {"metrics"}, "Bearer from-flag statussync/v9": {"metrics", "--token", "from-flag"},
	} {
		if r := exec(t.Context(), append(args, "--server", srv.URL), env); r.code != 0 || got != want {
			t.Errorf("%v: exit %d %s, sent %q", args, r.code, r.err, got)
		}
	}
	for _, args := range [][]string{{"--help"}, {"status", "--help"}, {"status", "--nonsense"}} {
		if r := exec(t.Context(), args, env); strings.Contains(r.out+r.err, "from-env") {
			t.Errorf("%v shows the token", args)
		}
	}
}

func TestStatusQuery(t *testing.T) {
	url := fake(t, map[string]string{
		"GET /api/v1/servers?availability=limited%2Coff&environment_ids=box-7&healths=degraded&label=team%3Dcore&label=x%3D1&limit=1000&q=wea&states=running%2Cerror":                  `{"items":[{"id":"a","status":{}}],"next_cursor":"after:a","cursor":"e1:5"}`,
		"GET /api/v1/servers?availability=limited%2Coff&cursor=after%3Aa&environment_ids=box-7&healths=degraded&label=team%3Dcore&label=x%3D1&limit=1000&q=wea&states=running%2Cerror": `{"items":[{"id":"b","status":{}}],"cursor":"e1:9"}`,
	})
	r := exec(t.Context(), []string{"status", "--server", url, "-o", "json", "--state", "running,error", "--health", "degraded", "--environment", "box-7",
		"--label", "team=core", "--label", "x=1", "--availability", "limited", "--availability", "off", "-q", "wea"})
	var page wire.Page[wire.Server]
	if err := json.Unmarshal([]byte(r.out), &page); err != nil || r.code != 0 {
		t.Fatalf("exit %d, %v, %s", r.code, err, r.err)
	}
	if len(page.Items) != 2 || page.Items[1].ID != "b" || page.Cursor != "e1:5" || page.NextCursor != "" {
		t.Errorf("pages are not joined: %+v", page)
	}
}

func TestStatusOfOne(t *testing.T) {
	f := fleet()
	f.Items[2].Status.Override = &wire.Override{State: "error", Health: "unhealthy", Actor: "ops", Note: "broken\nfor good", ExpiresAt: wire.Time{Time: now.Add(90 * time.Minute)}}
	url := fake(t, map[string]string{
		"GET /api/v1/servers/weather": jsonOf(t, f.Items[0]), "GET /api/v1/servers/search": jsonOf(t, f.Items[2]), "GET /api/v1/servers/none": `{"id":"none","status":{"state":"stopped","health":"unknown","reason":"ok","availability":"off","marks":[],"version":1}}`,
	})
	for id, want := range map[string]string{
		"weather": `weather is running and healthy.
  environment   box-7
  endpoint      http://127.0.0.1:9101/mcp
  reason        ok
  since         3h5m (2026-03-01 08:55:00Z)
  last checked  4s ago
  latency       12ms
  heartbeat     12s ago
  uptime        2h3m
  login         none
  checks        120, of which 3 failed
  version       4
  labels        a=b,team=core
  desired       running
`,
		"search": `search is in error and unhealthy: its probe fails (http_503).
  environment  box-8
  reason       probe_failing
  since        1d2h (2026-02-28 10:00:00Z)
  last error   bad[2J gateway
  override     error/unhealthy by ops, for another 1h30m: broken for good
  version      0
`,
		"none": `none is stopped.
  reason   ok
  version  1
`,
	} {
		r := exec(t.Context(), []string{"status", id, "--server", url})
		if d := cmp.Diff(want, r.out); d != "" || r.code != 0 {
			t.Errorf("exit %d %s (-want +got):\n%s", r.code, r.err, d)
		}
	}
}

func TestExplain(t *testing.T) {
	a, b := 4.2, 3700.0
	x := wire.Explain{Status: fleet().Items[2].Status, Explain: &wire.Explanation{
		Now: ago_(0),
		Evidence: []wire.Evidence{
			{Kind: "container", Value: "running (Up 2 hours)", AgeSeconds: &b}, {Kind: "probe", Value: "down: http_503", AgeSeconds: &a, Fresh: true}, {Kind: "override", Value: "none"},
		},
		Rules: []wire.Rule{
			{Rule: "1 base state", State: "error", Reason: "probe_failing", Won: true, Why: "the probe says down"},
			{Rule: "3a", Health: "unhealthy", Reason: "probe_failing", Won: true, Why: "state is error"},
			{Rule: "3g", Health: "degraded", Reason: "agent_silent", Why: "unhealthy is worse"},
			{Rule: "4 flapping", Why: "2 changes in 30 min, at most 6 are allowed"},
		},
	}}
	url := fake(t, map[string]string{"GET /api/v1/servers/search/status?explain=true": jsonOf(t, x)})
	want := `search is in error and unhealthy: its probe fails (http_503).
  reason      probe_failing
  since       1d2h (2026-02-28 10:00:00Z)
  last error  bad[2J gateway
  version     0

Evidence
KIND        AGE  COUNTS  VALUE
container  1h1m  stale   running (Up 2 hours)
probe        4s  fresh   down: http_503
override      -  stale   none

Decided by
RULE          GAVE       REASON         WHY
1 base state  error      probe_failing  the probe says down
3a            unhealthy  probe_failing  state is error

Considered
RULE        GAVE      REASON        WHY
3g          degraded  agent_silent  unhealthy is worse
4 flapping  -         -             2 changes in 30 min, at most 6 are allowed
`
	r := exec(t.Context(), []string{"status", "search", "--explain", "--server", url})
	if d := cmp.Diff(want, r.out); d != "" || r.code != 0 {
		t.Errorf("exit %d %s (-want +got):\n%s", r.code, r.err, d)
	}
}

// entry is an update as the journal has it.
func entry(seq uint64, id string, version uint64, from, to statussync.Status) *statussync.Entry {
	return &statussync.Entry{
		Seq: seq, Epoch: "e7", Kind: statussync.KindStatus, ServerID: id, EnvironmentID: "box-7", Version: version, Source: statussync.SourceHeartbeat,
		Timestamp: now.Add(-time.Minute), Previous: &from, Current: &to, Details: "details\u202e of it", Changes: statussync.StatusChanges(&from, &to),
	}
}

var (
	good = statussync.Status{State: "running", Health: "healthy", Reason: "ok"}
	bad  = statussync.Status{State: "error", Health: "unhealthy", Reason: "probe_failing", Cause: "timeout", Marks: statussync.MarkFlapping}
)

func TestHistory(t *testing.T) {
	removed := &statussync.Entry{Seq: 45, Epoch: "e7", Kind: statussync.KindServerRemoved, ServerID: "weather", Version: 4, Source: statussync.SourceSystem, Timestamp: now, Previous: &good}
	first, second := entry(42, "weather", 2, good, bad), entry(43, "weather", 3, bad, good)
	url := fake(t, map[string]string{
		"GET /api/v1/servers/weather/history?hours=48&limit=3":                jsonOf(t, wire.Page[*statussync.Entry]{Items: []*statussync.Entry{removed, second}, NextCursor: "e7:43"}),
		"GET /api/v1/servers/weather/history?cursor=e7%3A43&hours=48&limit=1": jsonOf(t, wire.Page[*statussync.Entry]{Items: []*statussync.Entry{first}, NextCursor: "e7:42"}),
		"GET /api/v1/servers/quiet/history?hours=1&limit=100":                 `{"items":[]}`,
	})
	want := `TIME                 VERSION  STATE    HEALTH     REASON                   MARKS     SOURCE     DETAILS
2026-03-01 12:00:00        4  -        -          server_removed           -         system     
2026-03-01 11:59:00        3  running  healthy    ok                       -         heartbeat  details of it
2026-03-01 11:59:00        2  error    unhealthy  probe_failing (timeout)  flapping  heartbeat  details of it

There is more: --limit 6
`
	r := exec(t.Context(), []string{"history", "weather", "--hours", "48", "--limit", "3", "--server", url})
	if d := cmp.Diff(want, r.out); d != "" || r.code != 0 {
		t.Errorf("exit %d %s (-want +got):\n%s", r.code, r.err, d)
	}
	r = exec(t.Context(), []string{"history", "quiet", "--hours", "1", "--server", url})
	if r.out != "Nothing happened to quiet in the last 1 hour.\n" || r.code != 0 {
		t.Errorf("exit %d, %q", r.code, r.out)
	}
}

func TestProbeAndOverrideAndTheRest(t *testing.T) {
	f := fleet()
	rate, age, cpu := 0.875, 61.0, 12.6
	overridden := f.Items[0].Status
	overridden.State, overridden.Health, overridden.Availability, overridden.Reason, overridden.Marks = "stopped", "unknown", "off", "override", []string{"override"}
	overridden.UptimeSeconds, overridden.LatencyMS = nil, 0
	url := fake(t, map[string]string{
		"POST /api/v1/servers/search/probe": jsonOf(t, wire.ProbeResult{ServerID: "search", Outcome: "failure", Cause: "http_503", Detail: "no\x07pe", HTTPStatus: 503, Status: f.Items[2].Status}),
		"POST /api/v1/probes": jsonOf(t, wire.ProbeResults{DurationMS: 1234.5, Failed: []wire.Failed{{ServerID: "stdio", Code: "conflict", Detail: "has no address"}}, Items: []wire.ProbeResult{
			{ServerID: "weather", Outcome: "success", LatencyMS: 3.25, HTTPStatus: 200, Status: f.Items[0].Status}, {ServerID: "search", Outcome: "failure", Cause: "refused", Status: f.Items[2].Status}}}),
		`PUT /api/v1/servers/weather/override {"state":"stopped","note":"moving house","expires_in":"2d"}`: jsonOf(t, overridden),
		"GET /api/v1/environments?limit=1000": jsonOf(t, wire.Page[wire.Environment]{Items: []wire.Environment{
			{ID: "box-7", Agent: "ok", AgentVersion: "0.1.0", HeartbeatAgeSeconds: &age, HeartbeatIntervalSeconds: 60, Servers: 3, Address: "10.0.0.7", Discovered: []wire.Discovered{{Container: "x"}},
				System: &statussync.SystemStatus{CPULoadPercent: &cpu, Memory: &statussync.MemoryStatus{TotalBytes: 8 << 30, UsedBytes: 3 << 29}, Disk: &statussync.DiskStatus{TotalBytes: 100 << 30, UsedBytes: 25 << 30}}},
			{ID: "laptop", Agent: "none", Servers: 1}}}),
		"GET /api/v1/sync/metrics": jsonOf(t, wire.Metrics{TotalServers: 24, ActiveServers: 20, ErrorServers: 3, LastSyncTime: ago_(5 * time.Second), SyncDurationMS: 1.25, StatusChanges: 99, Subscriptions: 2, CacheHits: 7, CacheMisses: 1, CacheHitRate: &rate}),
		"GET /readyz":              `{"status":"ready","durable":true,"version":"v8"}`,
	})
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"probe", "search"}, 1, `search did not answer as it should (http_503, HTTP 503).
  nope
search is in error and unhealthy: its probe fails (http_503).
`},
		{[]string{"probe", "--all"}, 1, `ID       OUTCOME      CAUSE     HTTP  LATENCY  STATE    HEALTH     REASON
weather  success      -          200    3.2ms  running  healthy    ok
search   failure      refused      -        -  error    unhealthy  probe_failing
stdio    not checked  conflict     -        -  -        -          has no address

2 servers checked in 1.2s, 1 failed, 1 not checked
`},
		{[]string{"override", "set", "weather", "--state", "stopped", "--note", "moving house", "--for", "2d"}, 0, `weather is stopped, health unknown: a person said so.
  reason        override
  marks         override
  since         3h5m (2026-03-01 08:55:00Z)
  last checked  4s ago
  heartbeat     12s ago
  login         none
  checks        120, of which 3 failed
  version       4
`},
		{[]string{"environments"}, 0, `ID      AGENT  VERSION  HEARTBEAT  EVERY  SERVERS  UNCLAIMED  CPU         MEMORY            DISK  ADDRESS
box-7   ok     0.1.0     1m1s ago     1m        3          1  13%  1.5GiB/8.0GiB  25.0GiB/100GiB  10.0.0.7
laptop  none   -                -      -        1          0    -              -               -  -

2 environments
`},
		{[]string{"metrics"}, 0, `  servers         24
  running         20
  in error        3
  status changes  99
  subscriptions   2
  last sync       5s ago, took 1.2ms
  cache hit rate  87.5% (7 hits, 1 misses)
`},
	} {
		r := exec(t.Context(), append(tc.args, "--server", url))
		if d := cmp.Diff(tc.want, r.out); d != "" || r.code != tc.code {
			t.Errorf("%v: exit %d %s (-want +got):\n%s", tc.args, r.code, r.err, d)
		}
	}
	if r := exec(t.Context(), []string{"version", "--service", "--server", url}); !strings.HasPrefix(r.out, "statussync v9 (go1.") || !strings.HasSuffix(r.out, "\nservice    v8 ("+url+")\n") {
		t.Errorf("version: %q %q", r.out, r.err)
	}
}

// feed is a service whose WebSocket follows one script a connection; after the last it waits for the client to leave.
func feed(t *testing.T, scripts ...[]string) (url string, hellos <-chan wire.ClientFrame) {
	t.Helper()
	got := make(chan wire.ClientFrame, len(scripts)+1)
	var count atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer ws.CloseNow()
		_, b, err := ws.Read(r.Context())
		if err != nil {
			return
		}
		f, err := wire.DecodeClientFrame(b)
		if err != nil {
			t.Errorf("%s: %v", b, err)
		}
		got <- *f
		n := int(count.Add(1))
		if n > len(scripts) {
			t.Error("too many connections")
			return
		}
		frames := scripts[n-1]
		for _, s := range frames {
			if err := ws.Write(r.Context(), websocket.MessageText, []byte(s)); err != nil {
				return
			}
		}
		if n == len(scripts) {
			<-ws.CloseRead(context.Background()).Done()
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, got
}

func frameOf(e *statussync.Entry) string {
	return string(wire.AppendEntry(nil, e.Kind, e.Cursor(), e.AppendJSON(nil)))
}

// endsWith is an output that ends a command, as Ctrl-C does, once it has shown a text.
type endsWith struct {
	shown  bytes.Buffer
	text   string
	cancel context.CancelFunc
}

func (u *endsWith) Write(b []byte) (int, error) {
	n, err := u.shown.Write(b)
	if strings.Contains(u.shown.String(), u.text) {
		u.cancel()
	}
	return n, err
}

func watch(t *testing.T, last string, args ...string) result {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out := &endsWith{text: last, cancel: cancel}
	r := exec(ctx, append([]string{"watch"}, args...), func(s *system) { s.stdout = out })
	r.out = out.shown.String()
	if !strings.Contains(r.out, last) && r.code == 0 {
		t.Errorf("never showed %q:\n%s%s", last, r.out, r.err)
	}
	return r
}

func TestWatch(t *testing.T) {
	silent := &statussync.Entry{Seq: 46, Epoch: "e7", Kind: statussync.KindEnvironmentSilent, EnvironmentID: "box-7", ServerIDs: []string{"a", "b", "c", "d", "e", "f", "g"}, Timestamp: now, Details: "no heartbeat for 4m"}
	snapshot := `{"type":"snapshot","items":` + jsonOf(t, fleet().Items[:1]) + `,"more":false}`
	url, hellos := feed(t,
		[]string{`{"type":"subscribed","cursor":"e7:40","recovered":true,"durable":false}`, frameOf(entry(42, "weather", 2, good, bad))},
		[]string{`{"type":"subscribed","cursor":"e8:1","recovered":false,"durable":true}`, `{"type":"resync","reason":"epoch"}`, snapshot, `{"type":"snapshot_end","cursor":"e7:45"}`, frameOf(silent), frameOf(entry(47, "weather", 5, bad, good))},
	)
	r := watch(t, "error/unhealthy → running", "--server", url, "--since", "e7:40")
	want := `11:59:00  weather       running/healthy → error/unhealthy      probe_failing (timeout) [flapping]  details of it
ID       ENVIRONMENT  STATE    HEALTH   REASON  MARKS  SINCE  LATENCY
weather  box-7        running  healthy  ok      -       3h5m     12ms

1 server: 1 available

12:00:00  box-7         environment silent (7 servers: a, b, c, d, e, and 2 more)  no heartbeat for 4m
11:59:00  weather       error/unhealthy → running/healthy      ok  details of it
`
	if d := cmp.Diff(want, r.out); d != "" || r.code != 0 {
		t.Errorf("exit %d (-want +got):\n%s", r.code, d)
	}
	for _, part := range []string{"watching " + url + " after e7:40; Ctrl-C ends\n", "cannot write to its store", "the connection was lost", "trying again in", "reconnected, going on after e7:42\n", "begun a new journal; the current statuses follow\n"} {
		if !strings.Contains(r.err, part) {
			t.Errorf("no %q in\n%s", part, r.err)
		}
	}
	if h := <-hellos; h.Cursor.String() != "e7:40" || h.Snapshot || h.Filters != nil {
		t.Errorf("first subscription %+v", h)
	}
	if h := <-hellos; h.Cursor.String() != "e7:42" {
		t.Errorf("second subscription %+v", h)
	}
}

func TestWatchJSON(t *testing.T) {
	frames := []string{`{"type":"subscribed","cursor":"e7:40","recovered":true,"durable":true}`, `{"type":"snapshot","items":[],"more":false}`, `{"type":"snapshot_end","cursor":"e7:41"}`,
		frameOf(entry(42, "weather", 2, good, bad)), `{"type":"bookmark","cursor":"e7:50","sent":1}`}
	url, hellos := feed(t, frames)
	r := watch(t, "bookmark", "--server", url, "-o", "json", "--snapshot", "--latest")
	if want := strings.Join(frames, "\n") + "\n"; r.out != want || r.code != 0 {
		t.Errorf("exit %d %s\ngot  %s\nwant %s", r.code, r.err, r.out, want)
	}
	if h := <-hellos; !h.Snapshot || h.Mode != statussync.ModeLatest {
		t.Errorf("subscription %+v", h)
	}
}

func TestWatchRefused(t *testing.T) {
	url, _ := feed(t, []string{`{"type":"error","code":"forbidden","detail":"not yours","retryable":false}`})
	if r := watch(t, "never", "--server", url); r.code != 4 || r.err != "statussync: refused: not yours (the token's role does not allow this)\n" {
		t.Errorf("exit %d, %q", r.code, r.err)
	}
	url = fake(t, map[string]string{"GET /api/v1/ws": `401 {"code":"unauthorized","detail":"a token is needed"}`})
	if r := watch(t, "never", "--server", url); r.code != 4 || r.err != "statussync: refused: a token is needed (give a token: STATUSSYNC_TOKEN or --token)\n" {
		t.Errorf("exit %d, %q", r.code, r.err)
	}
	url = fake(t, map[string]string{"GET /api/v1/ws": `{}`})
	if r := watch(t, "never", "--server", url); r.code != 3 {
		t.Errorf("another program: exit %d, %q", r.code, r.err)
	}
}
