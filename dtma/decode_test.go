package dtma

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/agentopia/statussync"
	"github.com/google/go-cmp/cmp"
)

func sample(t testing.TB, name string) []byte {
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func pct(f float64) *float64 { return &f }

func TestSamples(t *testing.T) {
	memory := func(active, free, used int64) *statussync.MemoryStatus {
		return &statussync.MemoryStatus{TotalBytes: 2079121408, ActiveBytes: active, FreeBytes: free, UsedBytes: used}
	}
	twoHours := age(90*time.Minute, 150*time.Minute)
	for file, want := range map[string]*statussync.AgentReport{
		"heartbeat-field.json": {
			Via: statussync.ViaPush, AgentVersion: "0.1.0", List: statussync.ListComplete,
			System: &statussync.SystemStatus{CPULoadPercent: pct(37.4182), Memory: memory(911536128, 214454272, 1864667136),
				Disk: &statussync.DiskStatus{Mount: "/", TotalBytes: 51848359936, UsedBytes: 18304884736, FreeBytes: 33543475200}},
			Containers: []statussync.ContainerReport{
				{Names: []string{"weather"}, ContainerID: "9f1c2f0b6d7a41e6b6f7a9b1d0c4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f6",
					Image: "registry.example/mcp/weather:1.4.2", Word: "running", Text: "Up 2 hours (healthy)",
					HealthCheck: "healthy", StartAge: twoHours, PublicPort: 30001},
				{Names: []string{"github"}, ContainerID: "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f809",
					Image: "registry.example/mcp/github:0.9.0", Word: "exited", Text: "Exited (137) 5 minutes ago",
					ExitCode: code(137), ExitAge: age(5*time.Minute, 6*time.Minute)},
				{Names: []string{"postgres-tools"}, ContainerID: "aa00bb11cc22dd33ee44ff5566778899aa00bb11cc22dd33ee44ff5566778899",
					Image: "registry.example/mcp/pg:2.0.1", Word: "running", Text: "Up 3 minutes (unhealthy)",
					HealthCheck: "unhealthy", StartAge: age(3*time.Minute, 4*time.Minute), PublicPort: 30003},
				{Names: []string{"somebody-elses-redis"}, ContainerID: "00ffee", Image: "redis:7", Word: "running",
					Text: "Up 26 hours", StartAge: age(25*time.Hour+30*time.Minute, 26*time.Hour+30*time.Minute)},
			},
		},
		"heartbeat-documented.json": {
			Via: statussync.ViaPush, AgentVersion: "0.2.0", List: statussync.ListComplete,
			System: &statussync.SystemStatus{CPULoadPercent: pct(3.1), Memory: memory(411536128, 1214454272, 864667136),
				Errors: map[string]string{"disk": "Could not determine main filesystem usage."}},
			Containers: []statussync.ContainerReport{
				{Shape: statussync.ShapeDocumented, ServerID: "3f2b7c1e-9a55-4c1c-8f0e-6a2f5b7e9d10", Names: []string{"weather"},
					Word: "running", Text: "running", Restarts: code(0)},
				{Shape: statussync.ShapeDocumented, ServerID: "7d0e6c52-3b1f-4a8a-9a63-0c5fd9f3b0aa", Names: []string{"github"},
					Word: "error", Text: "error_starting", ExitCode: code(1)},
				{Shape: statussync.ShapeDocumented, Names: []string{"no-id-here"}, Word: "running", Text: "running"},
			},
		},
		"heartbeat-event.json": {
			Via: statussync.ViaEvent, AgentVersion: "0.3.0", List: statussync.ListPartial,
			Containers: []statussync.ContainerReport{{
				Names: []string{"github"}, ContainerID: "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f809",
				Image: "registry.example/mcp/github:0.9.0", Word: "exited", Text: "Exited (137) Less than a second ago",
				ExitCode: code(137), ExitAge: statussync.AgeRange{Max: time.Second},
			}},
		},
		"heartbeat-engine-down.json": {
			Via: statussync.ViaPush, AgentVersion: "0.1.0", List: statussync.ListPartial,
			System: &statussync.SystemStatus{Errors: map[string]string{"system": "Failed to fetch system status"}},
		},
	} {
		got, err := Decode(sample(t, file))
		if err != nil {
			t.Errorf("%s: %v", file, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", file, d)
		}
	}
}

// one decodes a heartbeat with one item.
func one(t *testing.T, item string) statussync.ContainerReport {
	t.Helper()
	rep, err := Decode([]byte(`{"tool_statuses":[` + item + `]}`))
	if err != nil || len(rep.Containers) != 1 || rep.List != statussync.ListComplete {
		t.Fatalf("%s: %+v, %v", item, rep, err)
	}
	return rep.Containers[0]
}

func TestWords(t *testing.T) {
	for in, want := range map[string][2]string{ // word, text
		`"names":["n"],"state":"running","status":"Up 2 hours (Paused)"`: {"running", "Up 2 hours (Paused)"},
		`"names":["n"],"state":" Exited ","status":"x"`:                  {"exited", "x"},
		`"names":["n"],"status":"Restarting (1) 3 seconds ago"`:          {"restarting", "Restarting (1) 3 seconds ago"},
		`"names":["n"],"status":"Up 3 minutes (Paused)"`:                 {"paused", "Up 3 minutes (Paused)"},
		`"names":["n"],"status":"running"`:                               {"running", "running"},
		`"names":["n"],"state":"weird","status":"Up 2 hours"`:            {"weird", "Up 2 hours"},
		`"names":["n"]`:                                                                                {"unknown", ""},
		`"names":["n"],"state":5,"status":[]`:                                                          {"unknown", ""},
		`"names":["n"],"error":"inspect failed"`:                                                       {"unknown", ""},
		`"account_tool_instance_id":"i","status_on_toolbox":"running"`:                                 {"running", "running"},
		`"account_tool_instance_id":"i","status_on_toolbox":"ACTIVE"`:                                  {"running", "ACTIVE"},
		`"account_tool_instance_id":"i","status_on_toolbox":"error_starting"`:                          {"error", "error_starting"},
		`"account_tool_instance_id":"i","status_on_toolbox":"error_never_heard_of"`:                    {"error", "error_never_heard_of"},
		`"account_tool_instance_id":"i","status_on_toolbox":"starting_on_toolbox"`:                     {"starting", "starting_on_toolbox"},
		`"account_tool_instance_id":"i","status_on_toolbox":"stopping_on_toolbox"`:                     {"stopping", "stopping_on_toolbox"},
		`"account_tool_instance_id":"i","status_on_toolbox":"pending_delete"`:                          {"stopping", "pending_delete"},
		`"account_tool_instance_id":"i","status_on_toolbox":"disabled"`:                                {"stopped", "disabled"},
		`"account_tool_instance_id":"i","status_on_toolbox":"pending_config"`:                          {"unknown", "pending_config"},
		`"account_tool_instance_id":"i","status_on_toolbox":"exited"`:                                  {"exited", "exited"},
		`"account_tool_instance_id":"i","status_on_toolbox":"restarting"`:                              {"restarting", "restarting"},
		`"account_tool_instance_id":"i","status_on_toolbox":"Up 2 hours (healthy)"`:                    {"running", "Up 2 hours (healthy)"},
		`"account_tool_instance_id":"i","status_on_toolbox":"flying"`:                                  {"flying", "flying"},
		`"account_tool_instance_id":"i"`:                                                               {"unknown", ""},
		`"account_tool_instance_id":"i","status_on_toolbox":"running","status":"Up 2 hours"`:           {"running", "Up 2 hours"},
		`"account_tool_instance_id":"i","status_on_toolbox":"error_stopping","status":"Up 2 hours"`:    {"error", "error_stopping"},
		`"account_tool_instance_id":"i","instance_name_on_toolbox":"n","status":"exited","state":null`: {"exited", "exited"},
	} {
		c := one(t, "{"+in+"}")
		if c.Word != want[0] || c.Text != want[1] {
			t.Errorf("%s: word %q, text %q", in, c.Word, c.Text)
		}
	}
	if c := one(t, `{"account_tool_instance_id":"i","status_on_toolbox":"Up 5 seconds (health: starting)"}`); c.HealthCheck != "starting" ||
		c.StartAge != age(5*time.Second, 6*time.Second) {
		t.Errorf("Docker's text in shape A: %+v", c)
	}
}

func TestItems(t *testing.T) {
	for in, want := range map[string]statussync.ContainerReport{
		`"names":["/a","b","",7,"/"],"container_id":"x"`: {Names: []string{"a", "b"}, ContainerID: "x"},
		`"names":"/single"`:                                                                                         {Names: []string{"single"}},
		`"instance_name_on_toolbox":"/n","names":["n"]`:                                                             {Shape: statussync.ShapeDocumented, Names: []string{"n"}},
		`"names":["n"],"runtime_details":{"exit_code":3,"restart_count":7}`:                                         {Names: []string{"n"}, ExitCode: code(3), Restarts: code(7)},
		`"names":["n"],"runtime_details":{"exit_code":"3","restart_count":-1}`:                                      {Names: []string{"n"}},
		`"names":["n"],"runtime_details":{"exit_code":1.5,"restart_count":2e0,"started_at":"2026-01-01T00:00:00Z"}`: {Names: []string{"n"}, Restarts: code(2)},
		`"names":["n"],"runtime_details":[{"exit_code":3}]`:                                                         {Names: []string{"n"}},
		`"names":["n"],"ports":[{"private_port":1,"type":"tcp"},{"public_port":53,"type":"udp"},{"public_port":80,"type":"TCP"},{"public_port":81}]`: {Names: []string{"n"}, PublicPort: 80},
		`"names":["n"],"ports":[7,null,{"public_port":"80"},{"public_port":70000},{"public_port":0},{"PublicPort":8080,"Type":"tcp"}]`:               {Names: []string{"n"}, PublicPort: 8080},
		`"names":["n"],"ports":{"public_port":80}`:      {Names: []string{"n"}},
		`"names":["n"],"id":5,"image":{"a":1},"x":[[]]`: {Names: []string{"n"}},
		`"names":["old"],"names":["new"]`:               {Names: []string{"new"}},
		`"names":["\u0061\ud83d\ude00\ud83d\/\n"]`:      {Names: []string{"a😀/"}},
	} {
		want.Word = "unknown"
		if d := cmp.Diff(want, one(t, "{"+in+"}")); d != "" {
			t.Errorf("%s (-want +got):\n%s", in, d)
		}
	}
}

func TestLists(t *testing.T) {
	for in, want := range map[string]struct {
		kind statussync.ListKind
		n    int
	}{
		`{}`:                               {statussync.ListNone, 0},
		`{"tool_statuses":null}`:           {statussync.ListNone, 0},
		`{"tool_statuses":[]}`:             {statussync.ListComplete, 0},
		`{"tool_statuses":[{"error":""}]}`: {statussync.ListPartial, 0},
		`{"tool_statuses":{"error":"x"}}`:  {statussync.ListPartial, 0},
		`{"tool_statuses":[{"names":["a"]},{"error":"x"},{"names":["b"]}]}`: {statussync.ListPartial, 2},
		`{"tool_statuses":[{"names":["a"]},7,null,"x",[],{"names":["b"]}]}`: {statussync.ListPartial, 2},
		`{"tool_statuses":[{"names":["a"]},{"id":"no name"}]}`:              {statussync.ListPartial, 1},
		`{"tool_statuses":[{"names":["a"]},{}]}`:                            {statussync.ListPartial, 1},
		`{"tool_statuses":[{"names":["a"]}],"tool_statuses":null}`:          {statussync.ListNone, 0},
		`{"tool_instances":[{"names":["a"]}]}`:                              {statussync.ListNone, 0},
	} {
		rep, err := Decode([]byte(in))
		if err != nil || rep.List != want.kind || len(rep.Containers) != want.n {
			t.Errorf("%s: %+v, %v", in, rep, err)
		}
	}
}

func TestEvent(t *testing.T) {
	for in, want := range map[string]struct {
		via  statussync.ReportVia
		list statussync.ListKind
		n    int
	}{
		`{"event":true}`: {statussync.ViaEvent, statussync.ListNone, 0},
		`{"event":true,"tool_statuses":[{"names":["a"],"state":"running"}]}`:                {statussync.ViaEvent, statussync.ListPartial, 1},
		`{"tool_statuses":[{"names":["a"],"state":"running"}],"event":true}`:                {statussync.ViaEvent, statussync.ListPartial, 1},
		`{"event":true,"tool_statuses":[]}`:                                                 {statussync.ViaEvent, statussync.ListPartial, 0},
		`{"event":true,"tool_statuses":null}`:                                               {statussync.ViaEvent, statussync.ListNone, 0},
		`{"event":true,"tool_statuses":[{"error":"x"}]}`:                                    {statussync.ViaEvent, statussync.ListPartial, 0},
		`{"event":true,"tool_statuses":[{"account_tool_instance_id":"i"},{"names":["b"]}]}`: {statussync.ViaEvent, statussync.ListPartial, 2},
		`{"event":false,"tool_statuses":[]}`:                                                {statussync.ViaPush, statussync.ListComplete, 0},
		`{"event":null,"tool_statuses":[]}`:                                                 {statussync.ViaPush, statussync.ListComplete, 0},
		`{"event":true,"event":false,"tool_statuses":[]}`:                                   {statussync.ViaPush, statussync.ListComplete, 0},
		`{"":true,"tool_statuses":[]}`:                                                      {statussync.ViaPush, statussync.ListComplete, 0},
	} {
		rep, err := Decode([]byte(in))
		if err != nil || rep.Via != want.via || rep.List != want.list || len(rep.Containers) != want.n {
			t.Errorf("%s: %+v, %v", in, rep, err)
		}
	}
	for _, in := range []string{`{"event":"true"}`, `{"event":1}`, `{"event":{}}`, `{"event":["start"],"tool_statuses":[]}`} {
		_, err := Decode([]byte(in))
		var e *statussync.Error
		if !errors.As(err, &e) || e.Code != statussync.CodeInvalid || e.Location != "event" {
			t.Errorf("%s: %v", in, err)
		}
	}
	if rep, err := DecodeStatus([]byte(`{"event":true,"tool_instances":[]}`)); err != nil || rep.Via != statussync.ViaPull || rep.List != statussync.ListComplete {
		t.Errorf("an answer is no event: %+v, %v", rep, err)
	}
}

func TestSystem(t *testing.T) {
	wrong := func(kv ...string) *statussync.SystemStatus {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return &statussync.SystemStatus{Errors: m}
	}
	for in, want := range map[string]*statussync.SystemStatus{
		`null`:                      nil,
		`{}`:                        {},
		`{"error":"x\u0000\u202e"}`: wrong("system", "x"),
		`"down"`:                    wrong("system", "has the wrong type"),
		`{"cpu_load_percent":{"error":"no cpu"},"memory":{"error":"no memory"},"disk":{"error":"no disk"}}`: wrong("cpu", "no cpu", "memory", "no memory", "disk", "no disk"),
		`{"cpu_load_percent":"5","memory":[],"disk":7}`:                                                     wrong("cpu", "has the wrong type", "memory", "has the wrong type", "disk", "has the wrong type"),
		`{"cpu_load_percent":1e999}`:                                                                        wrong("cpu", "is out of range"),
		`{"cpu_load_percent":null,"memory":null}`:                                                           {},
		`{"memory":{"total_bytes":2.5e3,"used_bytes":-1,"free_bytes":"x","active_bytes":9e99}}`:             {Memory: &statussync.MemoryStatus{TotalBytes: 2500}},
		`{"memory":{}}`: {},
	} {
		rep, err := Decode([]byte(`{"system_status":` + in + `}`))
		if err != nil {
			t.Errorf("%s: %v", in, err)
		} else if d := cmp.Diff(want, rep.System); d != "" {
			t.Errorf("%s (-want +got):\n%s", in, d)
		}
	}
}

func TestStatusAnswer(t *testing.T) {
	rep, err := DecodeStatus([]byte(`{"status":"ok","timestamp":"2026-01-02T03:04:05.678Z","version":"0.1.0",
		"tool_instances":[{"id":"x","names":["weather"],"state":"running","status":"Up 5 seconds"}],
		"system_metrics":{"cpu_load_percent":1}}`))
	if err != nil || rep.Via != statussync.ViaPull || rep.AgentVersion != "0.1.0" || rep.List != statussync.ListComplete ||
		len(rep.Containers) != 1 || *rep.System.CPULoadPercent != 1 ||
		!rep.AgentTime.Equal(time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)) {
		t.Errorf("%+v, %v", rep, err)
	}
	for in, want := range map[string]time.Time{
		`1767323045`: time.Unix(1767323045, 0), `1767323045678`: time.UnixMilli(1767323045678), `"x"`: {}, `-5`: {}, `null`: {}, `{}`: {},
	} {
		if rep, err := DecodeStatus([]byte(`{"timestamp":` + in + `}`)); err != nil || !rep.AgentTime.Equal(want) {
			t.Errorf("timestamp %s: %v, %v", in, rep.AgentTime, err)
		}
	}
}

func TestBadInput(t *testing.T) {
	many := `{"tool_statuses":[` + strings.Repeat(`{"names":["a"]},`, MaxContainers) + `{"names":["a"]}]}`
	for in, want := range map[string]struct {
		code statussync.Code
		says string
	}{
		"":                                {statussync.CodeInvalid, "body: is empty"},
		"  \n":                            {statussync.CodeInvalid, "body: is empty"},
		"null":                            {statussync.CodeInvalid, "body: must be a JSON object"},
		"[]":                              {statussync.CodeInvalid, "body: must be a JSON object"},
		`"x"`:                             {statussync.CodeInvalid, "body: must be a JSON object"},
		"<html>":                          {statussync.CodeInvalid, "body: is not JSON: unexpected character at byte 0"},
		"\x00{}":                          {statussync.CodeInvalid, "at byte 0"},
		"{":                               {statussync.CodeInvalid, "expected a key at byte 1"},
		`{"a":1`:                          {statussync.CodeInvalid, `expected "," or "}" at byte 6`},
		`{"a":1}}`:                        {statussync.CodeInvalid, "something follows the object at byte 7"},
		`{"a":01}`:                        {statussync.CodeInvalid, "at byte 6"},
		`{"a":"\x"}`:                      {statussync.CodeInvalid, "bad escape at byte 7"},
		`{"a":tru}`:                       {statussync.CodeInvalid, "at byte 5"},
		"{\"a\":\"\n\"}":                  {statussync.CodeInvalid, "control character in a string at byte 6"},
		`{"a":` + strings.Repeat("[", 65): {statussync.CodeInvalid, "nested deeper than 64 levels at byte 68"},
		`{"tool_statuses":"x"}`:           {statussync.CodeInvalid, "tool_statuses: must be a list"},
		`{"tool_statuses":5}`:             {statussync.CodeInvalid, "tool_statuses: must be a list"},
		`{"tool_statuses":{"a":1}}`:       {statussync.CodeInvalid, "tool_statuses: must be a list"},
		many:                              {statussync.CodeTooLarge, "tool_statuses: lists more than 20000 containers"},
	} {
		rep, err := Decode([]byte(in))
		if statussync.CodeOf(err) != want.code || !strings.Contains(err.Error(), want.says) || rep != nil {
			t.Errorf("%.40q: %v, %v; want %s", in, rep, err, want.says)
		}
	}
}

func TestTextIsCut(t *testing.T) {
	long := strings.Repeat("é\u202e", 5000)
	c := one(t, fmt.Sprintf(`{"names":[%q],"id":%q,"image":%q,"state":%q,"status":%q,"account_tool_instance_id":%q}`, long, long, long, long, long, long))
	checkContainer(t, &c)
	names := strings.Repeat(`"n",`, 100) + `"n"`
	if c := one(t, `{"names":[`+names+`]}`); len(c.Names) != maxNames {
		t.Errorf("%d names", len(c.Names))
	}
}

func checkContainer(t *testing.T, c *statussync.ContainerReport) {
	t.Helper()
	texts := map[string]int{c.Image: statussync.MaxNameText, c.Text: statussync.MaxNameText, c.ServerID: statussync.MaxNameText,
		c.ContainerID: statussync.MaxWordText}
	for _, n := range c.Names {
		texts[n] = statussync.MaxNameText
	}
	texts[c.Word] = statussync.MaxNameText
	for s, limit := range texts {
		if len(s) > limit || !utf8.ValidString(s) || strings.ContainsAny(s, "\x00\n\u202e\x7f") {
			t.Errorf("text %.80q of %d bytes", s, len(s))
		}
	}
	if len(c.Names) == 0 && c.ServerID == "" || len(c.Names) > maxNames+1 || c.Word == "" || c.PublicPort < 0 || c.PublicPort > 65535 {
		t.Errorf("%+v", c)
	}
}

func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		f.Fatal("no samples", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, s := range []string{
		`{"tool_statuses":[{"names":"a","state":5,"ports":[{"public_port":1e2}]}],"timestamp":-1e9,"x":[[[{}]]]}`,
		`{"\u0061":"\ud83d\ude00\ud83d","system_status":{"cpu_load_percent":1e999,"memory":[],"disk":{"error":{}}}}`,
		"{\"a\":\"\xff\",\"b\":-0.0e+1}", `{"tool_statuses":{"error":1}}`, `{"a":1}x`, `{"a":1,}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, decode := range []func([]byte) (*statussync.AgentReport, error){Decode, DecodeStatus} {
			in := bytes.Clone(b)
			rep, err := decode(in)
			if !bytes.Equal(in, b) {
				t.Fatal("the input was changed")
			}
			if err != nil {
				if c := statussync.CodeOf(err); c != statussync.CodeInvalid && c != statussync.CodeTooLarge {
					t.Fatalf("error without a code: %v", err)
				}
				// What is a JSON object is refused for a reason of its own only.
				if json.Valid(b) && bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("{")) && strings.Contains(err.Error(), "is not JSON") {
					t.Fatalf("%q is JSON: %v", b, err)
				}
				continue
			}
			if !json.Valid(b) {
				t.Fatalf("%q is not JSON", b)
			}
			clear(in) // nothing may point into it
			if rep.Via == statussync.ViaEvent && rep.List == statussync.ListComplete {
				t.Fatalf("an event proves that somebody is absent: %+v", rep)
			}
			if len(rep.Containers) > MaxContainers || (rep.List == statussync.ListNone && len(rep.Containers) > 0) {
				t.Fatalf("%+v", rep)
			}
			for i := range rep.Containers {
				checkContainer(t, &rep.Containers[i])
			}
		}
	})
}

// body20 is a heartbeat of 20 containers in the field's shape.
func body20() []byte {
	var b bytes.Buffer
	b.WriteString(`{"dtma_version":"0.1.0","system_status":{"cpu_load_percent":37.4182,"memory":{"total_bytes":2079121408,"active_bytes":911536128,"free_bytes":214454272,"used_bytes":1864667136},"disk":{"mount":"/","total_bytes":51848359936,"used_bytes":18304884736,"free_bytes":33543475200}},"tool_statuses":[`)
	for i := range 20 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"id":"%064x","names":["server-%d"],"image":"registry.example/mcp/server-%d:1.4.2","image_id":"sha256:%064x","command":"node dist/index.js","created":1732300000,"state":"running","status":"Up %d hours (healthy)","ports":[{"ip":"0.0.0.0","private_port":8080,"public_port":%d,"type":"tcp"},{"ip":"::","private_port":8080,"public_port":%d,"type":"tcp"}]}`, i, i, i, i, i+2, 30000+i, 30000+i)
	}
	b.WriteString("]}")
	return b.Bytes()
}

func BenchmarkDecode20(b *testing.B) {
	body := body20()
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if rep, err := Decode(body); err != nil || len(rep.Containers) != 20 {
			b.Fatal(rep, err)
		}
	}
}

// BenchmarkUnmarshal20 is the measure: encoding/json into plain structs of just the fields that Decode reads, without
// reading Docker's texts, cleaning or checking anything.
func BenchmarkUnmarshal20(b *testing.B) {
	type report struct {
		Version string                  `json:"dtma_version"`
		System  statussync.SystemStatus `json:"system_status"`
		Tools   []struct {
			ID     string   `json:"id"`
			Names  []string `json:"names"`
			Image  string   `json:"image"`
			State  string   `json:"state"`
			Status string   `json:"status"`
			Ports  []struct {
				Public int    `json:"public_port"`
				Type   string `json:"type"`
			} `json:"ports"`
		} `json:"tool_statuses"`
	}
	body := body20()
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		var r report
		if err := json.Unmarshal(body, &r); err != nil || len(r.Tools) != 20 {
			b.Fatal(r, err)
		}
	}
}
