package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/agentopia/statussync"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got, one JSON value, with testdata/name.json, where it stands indented.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, got, "", "  "); err != nil {
		t.Fatalf("%s is no JSON: %v\n%s", name, err, got)
	}
	b.WriteByte('\n')
	path := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var now = time.Date(2026, 3, 1, 12, 0, 0, 123_456_789, time.UTC)

func fullStatus() statussync.Status {
	return statussync.Status{
		State: statussync.StateRunning, Health: statussync.HealthDegraded, Reason: statussync.ReasonProbeSlow,
		Marks: statussync.MarkFlapping | statussync.MarkOverride, Cause: "slow", LastError: "took <3 s> & \u2028 more",
		Since: now.Add(-time.Minute), LastChecked: now.Add(-1500 * time.Millisecond), LastStarted: now.Add(-2 * time.Hour),
		Latency: 2345678 * time.Nanosecond, Auth: statussync.AuthRequired, Protocol: "2025-11-25", ServerInfo: statussync.ServerInfo{Name: "weather", Version: "1.2"}, LastHeartbeat: now.Add(-12345 * time.Millisecond),
		Override:   &statussync.Override{State: statussync.StateRunning, Health: statussync.HealthDegraded, Note: "on it", Actor: "ops", SetAt: now.Add(-time.Minute), ExpiresAt: now.Add(time.Hour)},
		CheckCount: 10, ErrorCount: 2, Version: 7,
	}
}

func fullServer() *statussync.Server {
	return &statussync.Server{
		ID: "weather", Name: "Weather", EnvironmentID: "box-7", Owner: "u1", Container: "weather-1",
		Endpoint: "https://user:secret@host:9101/mcp?key=secret#frag", Transport: statussync.TransportStreamableHTTP, Type: "node",
		Desired: statussync.DesiredRunning, Labels: map[string]string{"team": "core"}, Capabilities: map[string]any{"tools": true},
		Origin: statussync.OriginConfig,
		Probe: statussync.ProbeSpec{
			Kind: statussync.ProbeHTTP, URL: "http://127.0.0.1:9101/health?token=secret", Path: "/health", Interval: 1500 * time.Millisecond,
			Headers: map[string]string{"Authorization": "secret"},
		},
		NeedsConfig: "KEY", Disabled: true,
	}
}

func fullEntry() *statussync.Entry {
	prev, cur := fullStatus(), fullStatus()
	prev.State, prev.Health, prev.Reason, prev.Marks, prev.Cause, prev.LastError = statussync.StateStopped, statussync.HealthUnhealthy, statussync.ReasonCrashed, 0, "exit_137", ""
	return &statussync.Entry{
		Seq: 58, Epoch: "e7", Kind: statussync.KindStatus, Timestamp: now, Source: statussync.SourceHeartbeat,
		Details: "it answers <slowly>", ServerID: "weather", EnvironmentID: "box-7", Version: 8, Previous: &prev, Current: &cur,
		Changes: []string{"state", "health", "reason", "marks"},
	}
}

func environmentView() *statussync.EnvironmentView {
	cpu := 12.5
	return &statussync.EnvironmentView{
		Environment: &statussync.Environment{ID: "box-7", Name: "Box 7", Owner: "u1", Address: "10.0.0.7", AgentURL: "http://u:secret@10.0.0.7:30000", HasToken: true, Origin: statussync.OriginConfig},
		Agent:       statussync.AgentOK, AgentVersion: "0.1.0", LastHeartbeat: now.Add(-5 * time.Second), HeardVia: statussync.ViaEvent, Interval: time.Minute,
		LateAfter: 150 * time.Second, LostAfter: 4 * time.Minute, Servers: 3, Now: now,
		System: &statussync.SystemStatus{
			CPULoadPercent: &cpu, Memory: &statussync.MemoryStatus{TotalBytes: 4, ActiveBytes: 1, FreeBytes: 2, UsedBytes: 2},
			Disk: &statussync.DiskStatus{Mount: "/", TotalBytes: 9, UsedBytes: 4, FreeBytes: 5}, Errors: map[string]string{"cpu": "no"},
		},
		Discovered: []statussync.Discovered{{EnvironmentID: "box-7", Container: "redis", Image: "redis:7", Word: "running", Text: "Up 2 hours", PublicPort: 6379, LastSeen: now}},
	}
}

// TestGolden pins every shape and frame. A change here is a change of the wire.
func TestGolden(t *testing.T) {
	status := fullStatus()
	view := statussync.ServerView{Server: fullServer(), Status: status, Now: now}
	bare := statussync.ServerView{
		Server: &statussync.Server{ID: "s", Name: "s"},
		Status: statussync.Status{State: statussync.StateUnknown, Health: statussync.HealthUnknown, Reason: statussync.ReasonNeverSeen}, Now: now,
	}
	entry := fullEntry()
	data := entry.AppendJSON(nil)
	at := statussync.Cursor{Epoch: "e7", Seq: 58}
	probe := statussync.ProbeResult{Outcome: statussync.OutcomeFailure, Cause: "http_503", Detail: "busy", HTTPStatus: 503, Latency: 12 * time.Millisecond, FinishedAt: now}
	metrics := statussync.SyncMetrics{TotalServers: 5, ActiveServers: 3, ErrorServers: 1, LastSync: now, SyncDuration: 1500 * time.Microsecond, StatusChanges: 9, Subscriptions: 2, CacheHits: 3, CacheMisses: 1}
	explanation := statussync.Explanation{
		Now: now, Status: status,
		Evidence: []statussync.ExplainedEvidence{{Kind: "container", Value: "running", AssertedAt: now.Add(-time.Second), Fresh: true}, {Kind: "record", Value: "never"}},
		Rules:    []statussync.ExplainedRule{{Rule: "1 base state", State: statussync.StateRunning, Reason: statussync.ReasonOK, Why: "the container runs"}, {Rule: "3j", Health: statussync.HealthDegraded, Reason: statussync.ReasonProbeSlow, Won: true, Why: "slow twice"}},
	}
	used := 12.5
	event := func(e statussync.Event) []byte { return AppendEvent(nil, "s1", &e) }
	subscribed := statussync.Event{Type: statussync.EventSubscribed, Cursor: at, Recovered: true, Durable: true}
	snapshot := statussync.Event{Type: statussync.EventSnapshot, Items: []statussync.ServerView{bare}, More: true}
	snapshotEnd := statussync.Event{Type: statussync.EventSnapshotEnd, Cursor: at}
	resync := statussync.Event{Type: statussync.EventResync, Reason: statussync.ResyncExpired}
	update := statussync.Event{Type: statussync.EventEntry, Cursor: at, Entry: entry, JSON: data}
	removed := &statussync.Entry{Seq: 59, Epoch: "e7", Kind: statussync.KindServerRemoved, Timestamp: now, Source: statussync.SourceSystem, Details: "gone", ServerID: "weather", Version: 9, Previous: &status}
	legacy, ok := AppendLegacyUpdate(nil, entry)
	if !ok {
		t.Fatal("a status entry has no legacy frame")
	}
	for name, got := range map[string][]byte{
		"server":             marshal(t, FromServer(&view)),
		"server-bare":        marshal(t, FromServer(&bare)),
		"status":             marshal(t, FromStatus(&status, now)),
		"update":             data,
		"update-removed":     removed.AppendJSON(nil),
		"environment":        marshal(t, FromEnvironment(environmentView())),
		"page":               marshal(t, Page[Server]{Items: FromServers(nil), NextCursor: "after:weather", Cursor: "e7:58"}),
		"explain":            marshal(t, FromExplanation(&explanation)),
		"explain-without":    marshal(t, Explain{Status: FromStatus(&bare.Status, now)}),
		"probe":              marshal(t, FromProbe("weather", &probe, &view)),
		"probes":             marshal(t, ProbeResults{Items: []ProbeResult{}, Failed: []Failed{{"weather", statussync.CodeConflict, "is not probed"}}, DurationMS: 1.5}),
		"metrics":            marshal(t, FromMetrics(&metrics)),
		"metrics-empty":      marshal(t, FromMetrics(&statussync.SyncMetrics{})),
		"ready":              marshal(t, Ready{Status: ReadyDegraded, Cursor: at.String(), InboxUsedPercent: &used, Detail: "the store is full", Version: "1.0", Checks: map[string]ReadyCheck{"store": {Detail: "full"}}}),
		"problem":            marshal(t, Problem{Type: "about:blank", Title: "Bad Request", Status: 400, Code: statussync.CodeInvalid, Detail: "query.cursor: is no cursor", RequestID: "R", Errors: []ProblemError{{"query.cursor", "is no cursor"}}}),
		"override-request":   marshal(t, OverrideRequest{State: statussync.StateError, ExpiresIn: "1h"}),
		"frame-subscribed":   event(subscribed),
		"frame-snapshot":     event(snapshot),
		"frame-snapshot-end": event(snapshotEnd),
		"frame-update":       event(update),
		"frame-removed":      AppendEntry(nil, removed.Kind, removed.Cursor(), removed.AppendJSON(nil)),
		"frame-resync":       event(resync),
		"frame-bookmark":     AppendBookmark(nil, at, 2),
		"frame-pong":         AppendPong(nil, at),
		"frame-pong-bare":    AppendPong(nil, statussync.Cursor{}),
		"frame-auth-ok":      AppendAuthOK(nil, now),
		"frame-auth-ok-bare": AppendAuthOK(nil, time.Time{}),
		"frame-unsubscribed": AppendUnsubscribed(nil),
		"frame-error":        AppendError(nil, "s1", statussync.Invalid("filters.states", "x is no state")),
		"frame-error-secret": AppendError(nil, "", errors.New("password is hunter2")),
		"frame-error-busy":   AppendError(nil, "", statussync.NewError(statussync.CodeUnavailable, "busy", errors.New("cause"))),
		"legacy-update":      legacy,
		"event-subscribed":   AppendEventData(nil, &subscribed),
		"event-snapshot":     AppendEventData(nil, &snapshot),
		"event-snapshot-end": AppendEventData(nil, &snapshotEnd),
		"event-update":       AppendEventData(nil, &update),
		"event-resync":       AppendEventData(nil, &resync),
		"client-subscribe": marshal(t, ClientFrame{Type: ClientSubscribe, Channel: Channel, ID: "s1", Cursor: at, Snapshot: true, Mode: statussync.ModeEvery, Leave: true,
			Filters: []statussync.Clause{{ServerIDs: []string{}, States: []statussync.State{statussync.StateError}}}}),
		"client-auth": marshal(t, ClientFrame{Type: ClientAuth, Token: "t"}),
	} {
		t.Run(name, func(t *testing.T) { golden(t, name, got) })
	}
	for name, got := range map[string][]byte{"server": marshal(t, FromServer(&view)), "environment": marshal(t, FromEnvironment(environmentView()))} {
		if bytes.Contains(got, []byte("secret")) {
			t.Errorf("%s shows a secret: %s", name, got)
		}
	}
	if bytes.Contains(AppendError(nil, "", errors.New("hunter2")), []byte("hunter2")) {
		t.Error("an unknown error is shown")
	}
	if !bytes.Contains(event(update), data) {
		t.Error("the entry's bytes are not in its frame as they are")
	}
}

// TestUpdateDescribesEntries: the type that documents entries reads and writes the bytes that the service sends.
func TestUpdateDescribesEntries(t *testing.T) {
	for _, e := range []*statussync.Entry{fullEntry(), {Seq: 1, Epoch: "e1", Kind: statussync.KindEnvironmentSilent, EnvironmentID: "b", ServerIDs: []string{"x"}, Timestamp: now, Source: statussync.SourceSystem}} {
		data := e.AppendJSON(nil)
		var u Update
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		if err := d.Decode(&u); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		if diff := cmp.Diff(string(data), string(marshal(t, u))); diff != "" {
			t.Errorf("(-sent +described):\n%s", diff)
		}
	}
}

// TestClientReadsServer: every frame and event that the service makes is read back as what it was.
func TestClientReadsServer(t *testing.T) {
	entry := fullEntry()
	at := statussync.Cursor{Epoch: "e7", Seq: 58}
	view := statussync.ServerView{Server: fullServer(), Status: fullStatus(), Now: now}
	for _, e := range []statussync.Event{
		{Type: statussync.EventSubscribed, Cursor: at, Recovered: true, Durable: true},
		{Type: statussync.EventSnapshot, Items: []statussync.ServerView{view, view}, More: true},
		{Type: statussync.EventSnapshotEnd, Cursor: at},
		{Type: statussync.EventResync, Reason: statussync.ResyncEpoch},
		{Type: statussync.EventEntry, Cursor: at, Entry: entry, JSON: entry.AppendJSON(nil)},
	} {
		f, err := DecodeServerFrame(AppendEvent(nil, "", &e))
		if err != nil {
			t.Fatalf("%s: %v", e.Type, err)
		}
		name := FrameType(e.Type)
		if e.Type == statussync.EventEntry {
			name = FrameStatusUpdate
			got, err := f.Entry()
			if err != nil || !bytes.Equal(got.AppendJSON(nil), e.JSON) {
				t.Errorf("the entry came back as %v, %v", got, err)
			}
		} else if _, err := f.Entry(); err == nil {
			t.Errorf("%s has an entry", e.Type)
		}
		if f.Type != name || f.Cursor != e.Cursor || f.Recovered != e.Recovered || f.Durable != e.Durable || len(f.Items) != len(e.Items) || f.More != e.More || f.Reason != e.Reason {
			t.Errorf("%s came back as %+v", e.Type, f)
		}
		g, err := DecodeServerEvent(string(name), e.Cursor.String(), AppendEventData(nil, &e))
		if err != nil {
			t.Fatalf("event %s: %v", e.Type, err)
		}
		if diff := cmp.Diff(f, g); diff != "" {
			t.Errorf("%s differs between WebSocket and SSE (-ws +sse):\n%s", e.Type, diff)
		}
	}
	mark, err := DecodeServerEvent("", "e7:63", nil)
	if err != nil || mark.Type != FrameBookmark || mark.Cursor.Seq != 63 {
		t.Errorf("a bare id is %+v, %v", mark, err)
	}
	for _, bad := range []string{"", "{", "[]", "{}", `{"type":7}`, `{"type":"bookmark","cursor":"x"}`} {
		if f, err := DecodeServerFrame([]byte(bad)); err == nil {
			t.Errorf("%q is taken as %+v", bad, f)
		}
	}
	if _, err := DecodeServerEvent("status_update", "e1:1", []byte("{")); err == nil {
		t.Error("an event that is no JSON is taken")
	}
	if _, err := DecodeServerEvent("", "nonsense", nil); err == nil {
		t.Error("an id that is no cursor is taken")
	}
}

func TestSnapshotSurvivesWhatJSONCannotSay(t *testing.T) {
	good, bad := fullServer(), fullServer()
	bad.Capabilities = map[string]any{"x": math.NaN()}
	b := AppendEvent(nil, "", &statussync.Event{Type: statussync.EventSnapshot, Items: []statussync.ServerView{{Server: bad, Now: now}, {Server: good, Now: now}}})
	f, err := DecodeServerFrame(b)
	if err != nil || len(f.Items) != 2 || f.Items[0].Capabilities != nil || f.Items[1].Capabilities == nil {
		t.Errorf("%v, %s", err, b)
	}
}

func TestDecodeClientFrame(t *testing.T) {
	big := `{"type":"ping","id":"` + strings.Repeat("x", MaxClientFrame) + `"}`
	ids := make([]string, 1001)
	for i := range ids {
		ids[i] = fmt.Sprint(i)
	}
	manyIDs, _ := json.Marshal(ids)
	sub := func(rest string) string { return `{"type":"subscribe","channel":"mcp_server_status"` + rest + `}` }
	for _, c := range []struct {
		in     string
		where  string // location of the error; "-": there is none, "": an error without a location
		legacy string // the same for the other path
	}{
		{`{"type":"ping"}`, "-", "-"},
		{`{"type":"ping","id":null}`, "-", "-"},
		{` {"type" : "unsubscribe" } `, "-", "-"},
		{`{"type":"auth","token":"x"}`, "-", "-"},
		{sub(``), "-", "-"},
		{sub(`,"filters":[],"cursor":"","mode":"every"`), "-", "-"},
		{sub(`,"id":"s1","cursor":"e7:41","snapshot":true,"mode":"latest","leave":true,"filters":[{"states":["error"]},{"serverIds":["a"]}]`), "-", "-"},
		{sub(`,"filters":{"table":"account_tool_instances","filter":"mcp_server_type=not.is.null"}`), "filters", "-"},
		{`{"type":"publish","channel":"x","data":1}`, "type", "-"},
		{`{"type":"ping","extra":1}`, "extra", "-"},
		{`{"type":"ping","Type":"auth"}`, "Type", "-"},
		{``, "", ""}, {`nonsense`, "", ""}, {`[]`, "", ""}, {`"x"`, "", ""}, {`null`, "", ""}, {`{`, "", ""}, {`{"type":"ping"} x`, "", ""}, {`{"type":"ping"}{}`, "", ""},
		{`{"type":"ping","type":"ping"}`, "type", "type"},
		{`{}`, "type", "type"}, {`{"type":""}`, "type", "type"}, {`{"type":7}`, "type", "type"}, {`{"type":"dance"}`, "type", "type"},
		{`{"type":"ping","id":7}`, "id", "-"},
		{`{"type":"ping","id":"` + strings.Repeat("x", 129) + `"}`, "id", "id"},
		{`{"type":"auth"}`, "token", "token"}, {`{"type":"auth","token":[]}`, "token", "token"},
		{`{"type":"subscribe"}`, "channel", "channel"}, {`{"type":"subscribe","channel":"other"}`, "channel", "channel"},
		{sub(`,"cursor":"nonsense"`), "cursor", "cursor"}, {sub(`,"cursor":7`), "cursor", "cursor"},
		{sub(`,"snapshot":"yes"`), "snapshot", "snapshot"},
		{sub(`,"mode":"sometimes"`), "mode", "mode"},
		{sub(`,"mode":"latest","filters":[{"type":"recovery"}]`), "filters.type", "filters.type"},
		{sub(`,"filters":"all"`), "filters", "-"}, {sub(`,"filters":[1]`), "filters", "filters"},
		{sub(`,"filters":[{"state":["error"]}]`), "filters.state", "filters.state"},
		{sub(`,"filters":[{"states":["bad"]}]`), "filters.states", "filters.states"},
		{sub(`,"filters":[{"server_ids":` + string(manyIDs) + `}]`), "filters.server_ids", "filters.server_ids"},
		{sub(`,"filters":[` + strings.Repeat(`{},`, 100) + `{}]`), "filters", "filters"},
		{sub(`,"token":"x"`), "token", "-"},
		{big, "", ""},
	} {
		for path, want := range map[string]string{"": c.where, "legacy ": c.legacy} {
			decode := DecodeClientFrame
			if path != "" {
				decode = DecodeLegacyFrame
			}
			f, err := decode([]byte(c.in))
			shown := c.in
			if len(shown) > 100 {
				shown = shown[:100]
			}
			if f == nil {
				t.Fatalf("%s%s: no frame", path, shown)
			}
			var e *statussync.Error
			switch {
			case want == "-":
				if err != nil {
					t.Errorf("%s%s: %v", path, shown, err)
				}
			case !errors.As(err, &e):
				t.Errorf("%s%s: no error of ours: %v", path, shown, err)
			case e.Location != want || e.Detail == "":
				t.Errorf("%s%s: error at %q: %v; want %q", path, shown, e.Location, e, want)
			}
		}
	}
	if _, err := DecodeClientFrame([]byte(big)); statussync.CodeOf(err) != statussync.CodeTooLarge {
		t.Errorf("a frame that is too large: %v", err)
	}
	f, err := DecodeClientFrame([]byte(`{"id":"s9","type":"dance"}`))
	if err == nil || f.ID != "s9" {
		t.Errorf("the id of a refused frame is %q", f.ID)
	}
}

func TestRequest(t *testing.T) {
	f, err := DecodeClientFrame([]byte(`{"type":"subscribe","channel":"mcp_server_status","cursor":"e7:41","snapshot":true,"filters":[{"healthLevels":["unhealthy"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := statussync.SubscribeRequest{
		Filter: statussync.Filter{Clauses: []statussync.Clause{{Healths: []statussync.Health{statussync.HealthUnhealthy}}}, Leave: true},
		Cursor: statussync.Cursor{Epoch: "e7", Seq: 41}, Snapshot: true,
	}
	if diff := cmp.Diff(want, f.Request()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !(&ClientFrame{Mode: statussync.ModeLatest}).Request().Filter.Leave {
		t.Error("mode latest does not imply leave")
	}
}

func TestParseDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "30d": 720 * time.Hour, "1d12h": 36 * time.Hour, "0.5d": 12 * time.Hour,
		"0": 0, "-1h": -time.Hour, "-2d": -48 * time.Hour, "250ms": 250 * time.Millisecond,
	} {
		if got, err := ParseDuration(in); err != nil || got != want {
			t.Errorf("%q is %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "d", "1", "1x", "1h2d", "NaNd", "infd", "1e9d", "0x4d", "--1h", "-d", "1d-1h", "1d+1h", ".d", "1.2.3d", "106751d200h", "99999999h", strings.Repeat("1", 40) + "s"} {
		if got, err := ParseDuration(in); statussync.CodeOf(err) != statussync.CodeInvalid {
			t.Errorf("%q is taken as %v (%v)", in, got, err)
		}
	}
}

func TestPublicURL(t *testing.T) {
	for in, want := range map[string]string{
		"":                            "",
		"http://h:1/p":                "http://h:1/p",
		"http://u:p@h:1/p?k=v#f":      "http://h:1/p",
		"http://h/?":                  "http://h/",
		"/health?key=1":               "/health",
		"http://[::1]:9/x?y":          "http://[::1]:9/x",
		"mailto:u@h?x":                "",
		"http://h/%zz?secret":         "",
		"postgres://u:pw@db/x?ssl=no": "postgres://db/x",
	} {
		if got := PublicURL(in); got != want {
			t.Errorf("%q becomes %q, not %q", in, got, want)
		}
	}
}

func TestCodes(t *testing.T) {
	for _, c := range []statussync.Code{
		statussync.CodeInvalid, statussync.CodeUnauthorized, statussync.CodeForbidden, statussync.CodeNotFound, statussync.CodeMethodNotAllowed,
		statussync.CodeConflict, statussync.CodeExpired, statussync.CodeTooLarge, statussync.CodeRateLimited, statussync.CodeInternal, statussync.CodeUnavailable,
	} {
		if got := CodeOfHTTP(HTTPStatus(c)); got != c {
			t.Errorf("%s becomes %d and comes back as %s", c, HTTPStatus(c), got)
		}
	}
	if CodeOfHTTP(422) != statussync.CodeInvalid || CodeOfHTTP(502) != statussync.CodeUnavailable || HTTPStatus("x") != 500 {
		t.Error("statuses that no code has")
	}
	for code, again := range map[int]bool{1000: true, 1006: true, 4001: true, 4008: true, 4011: true, 4029: true, 4500: false, 4501: false, 4503: false, 4504: false} {
		if Reconnect(code) != again {
			t.Errorf("Reconnect(%d) is %v", code, !again)
		}
	}
}

func TestProblemErr(t *testing.T) {
	p := Problem{Status: 422, Code: statussync.CodeInvalid, Detail: "validation failed", Errors: []ProblemError{{"query.states", "no"}, {"query.limit", "too much"}}}
	e := p.Err()
	if e.Code != statussync.CodeInvalid || e.Location != "query.states" || e.Detail != "no; query.limit: too much" {
		t.Errorf("%+v", e)
	}
	e = (&Problem{Status: 404, Title: "Not Found"}).Err()
	if e.Code != statussync.CodeNotFound || e.Detail != "Not Found" {
		t.Errorf("%+v", e)
	}
	e = (&Problem{Status: 500, Code: statussync.CodeInternal, Detail: "internal error", RequestID: "R7"}).Err()
	if !strings.Contains(e.Detail, "R7") {
		t.Errorf("the request's id is missing: %v", e)
	}
}

// TestLegacyUpdateOfOthers: only updates have a form there.
func TestLegacyUpdateOfOthers(t *testing.T) {
	e := fullEntry()
	e.Kind, e.Current = statussync.KindServerRemoved, nil
	if b, ok := AppendLegacyUpdate([]byte("x"), e); ok || string(b) != "x" {
		t.Errorf("%v %s", ok, b)
	}
}

func TestStatusRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := statussync.Status{
			State: rapid.SampledFrom(statussync.States).Draw(t, "state"), Health: rapid.SampledFrom(statussync.Healths).Draw(t, "health"),
			Reason: rapid.SampledFrom(statussync.Reasons).Draw(t, "reason"), Marks: statussync.Marks(rapid.Uint8Range(0, 7).Draw(t, "marks")),
			LastError: rapid.String().Draw(t, "error"), Latency: time.Duration(rapid.Int64Range(0, 1e11).Draw(t, "latency")),
			Version: rapid.Uint64().Draw(t, "version"),
		}
		if rapid.Bool().Draw(t, "started") {
			s.LastStarted = now.Add(-time.Duration(rapid.Int64Range(0, 1e15).Draw(t, "up")))
		}
		w := FromStatus(&s, now)
		b, err := json.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		var back Status
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(back)
		if err != nil || !bytes.Equal(b, again) {
			t.Fatalf("%s\ncame back as\n%s (%v)", b, again, err)
		}
		if up := s.UptimeSeconds(now); (up >= 0) != (back.UptimeSeconds != nil) {
			t.Fatalf("uptime %d came as %v", up, back.UptimeSeconds)
		}
	})
}

func FuzzDecodeClientFrame(f *testing.F) {
	for _, s := range []string{
		`{"type":"ping"}`, `{"type":"subscribe","channel":"mcp_server_status","cursor":"e7:41","filters":[{"states":["error"],"labels":{"a":"b"}}]}`,
		`{"type":"subscribe","channel":"mcp_server_status","filters":{"table":"t"}}`, `{"type":"auth","token":"x"}`, `{"type":"publish"}`,
		`{"type":"ping","type":"ping"}`, "\xff\x00", `{"a":{"a":{"a":[]}}}`, `{"id":"` + "\u2028" + `","type":"x"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, decode := range []func([]byte) (*ClientFrame, error){DecodeClientFrame, DecodeLegacyFrame} {
			frame, err := decode(b)
			if frame == nil {
				t.Fatal("no frame")
			}
			if len(frame.ID) > maxFrameID {
				t.Fatalf("an id of %d bytes", len(frame.ID))
			}
			if err != nil {
				if _, ok := asError(err); !ok {
					t.Fatalf("not an error of ours: %v", err)
				}
				if !json.Valid(AppendError(nil, frame.ID, err)) {
					t.Fatal("the error frame is no JSON")
				}
				continue
			}
			if frame.Type == ClientSubscribe {
				if err := CheckRequest(frame.Request()); err != nil {
					t.Fatalf("taken, but: %v", err)
				}
			}
			again, err := json.Marshal(frame)
			if err != nil {
				t.Fatal(err)
			}
			if len(again) > MaxClientFrame || frame.Type == ClientPublish { // escapes make it longer
				continue
			}
			back, err := DecodeClientFrame(again)
			if err != nil {
				t.Fatalf("%s was taken, but its form %s is not: %v", b, again, err)
			}
			if diff := cmp.Diff(frame.Type, back.Type); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

func FuzzDecodeServerFrame(f *testing.F) {
	e := fullEntry()
	f.Add(AppendEvent(nil, "s", &statussync.Event{Type: statussync.EventEntry, Entry: e, Cursor: e.Cursor(), JSON: e.AppendJSON(nil)}))
	f.Add(AppendBookmark(nil, e.Cursor(), 3))
	f.Add([]byte(`{"type":"snapshot","items":[{"id":"x","status":{}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := DecodeServerFrame(b)
		if err == nil && frame.Type == "" {
			t.Fatal("a frame without a type")
		}
		if err == nil {
			if entry, err := frame.Entry(); err == nil {
				_ = entry.AppendJSON(nil)
			}
		}
	})
}

// What is in effect is shown, whatever the definition left out; a query of the address stays hidden.
func TestFromServerShowsTheProbeInEffect(t *testing.T) {
	v := &statussync.ServerView{
		Server:  &statussync.Server{ID: "a", Probe: statussync.ProbeSpec{Path: "/h"}},
		Probing: statussync.Probing{Kind: statussync.ProbeHTTP, URL: "http://10.0.0.1:80/h?key=hush", Interval: 30 * time.Second},
	}
	if got, want := FromServer(v).Probe, (&Probe{Kind: "http", URL: "http://10.0.0.1:80/h", IntervalSeconds: 30}); *got != *want {
		t.Errorf("%+v", *got)
	}
	v.Probing = statussync.Probing{Kind: statussync.ProbeNone}
	if got := FromServer(v).Probe; got.Kind != "none" || got.URL != "" {
		t.Errorf("%+v", *got)
	}
}
