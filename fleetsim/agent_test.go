package fleetsim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// merge unites two JSON values: the keys of objects, the elements of lists.
func merge(a, b any) any {
	switch b := b.(type) {
	case map[string]any:
		out, _ := a.(map[string]any)
		out = maps.Clone(out)
		if out == nil {
			out = map[string]any{}
		}
		for k, v := range b {
			out[k] = merge(out[k], v)
		}
		return out
	case []any:
		l, _ := a.([]any)
		return append(slices.Clone(l), b...)
	}
	return b
}

func keys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

// sample reads a heartbeat of testdata, as it came from the field or from the documentation.
func sample(t *testing.T, name string) map[string]any {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	must(t, err)
	var m map[string]any
	must(t, json.Unmarshal(b, &m))
	return m
}

// sameKeys compares the keys of two JSON values all the way down; of lists, each element of got against the union of
// want's. Keys in optional may be missing.
func sameKeys(t *testing.T, at string, got, want any, optional ...string) {
	t.Helper()
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			t.Errorf("%s is %T, want an object", at, got)
			return
		}
		for k := range g {
			if _, ok := w[k]; !ok {
				t.Errorf("%s has a key %q that the sample has not (%v)", at, k, keys(w))
				continue
			}
			sameKeys(t, at+"."+k, g[k], w[k], optional...)
		}
		for k := range w {
			if _, ok := g[k]; !ok && !slices.Contains(optional, k) {
				t.Errorf("%s lacks %q", at, k)
			}
		}
	case []any:
		var union any
		for _, e := range w {
			union = merge(union, e)
		}
		g, ok := got.([]any)
		if !ok {
			t.Errorf("%s is %T, want a list", at, got)
			return
		}
		for i, e := range g {
			sameKeys(t, fmt.Sprintf("%s[%d]", at, i), e, union, optional...)
		}
	default:
		if fmt.Sprintf("%T", got) != fmt.Sprintf("%T", want) {
			t.Errorf("%s is a %T, in the sample a %T", at, got, want)
		}
	}
}

func TestHeartbeatShapes(t *testing.T) {
	r := newReceiver(t)
	f := start(t, Options{HeartbeatEvery: 20 * time.Millisecond, Seed: 1})
	must(t, f.SetTarget(r.URL+"/"))
	any1 := func(beat, []map[string]any) bool { return true }
	decode := func(b beat) (m map[string]any) {
		must(t, json.Unmarshal(b.body, &m))
		return m
	}

	must(t, f.Crash("github", 137))
	for _, e := range f.Environments() {
		b := r.await(t, e, "anything", any1)
		if b.path != "POST /functions/v1/heartbeat" || b.contentType != "application/json" {
			t.Errorf("%s: %s, %s", e.ID, b.path, b.contentType)
		}
		name, optional := "heartbeat-field.json", []string{"ip", "public_port"}
		if e.Shape == ShapeDocumented {
			name, optional = "heartbeat-documented.json", []string{"exit_code"}
		}
		sameKeys(t, e.ID, decode(b), sample(t, name), optional...)
		n := 0
		for _, s := range f.Servers() {
			if s.EnvironmentID == e.ID {
				n++
				if tool(tools(t, b.body), s.Container) == nil {
					t.Errorf("%s does not list %s", e.ID, s.ID)
				}
			}
		}
		if e.ID == "box-1" {
			n++ // somebody else's
		}
		if got := len(tools(t, b.body)); got != n {
			t.Errorf("%s lists %d containers, want %d", e.ID, got, n)
		}
	}

	github := serverOf(t, f, named("github"))
	e := environmentOf(t, f, github.EnvironmentID)
	b := r.await(t, e, "github", any1)
	g := tool(tools(t, b.body), "github")
	if g["state"] != "exited" || !strings.HasPrefix(g["status"].(string), "Exited (137) ") || len(g["ports"].([]any)) != 0 {
		t.Errorf("crashed: %v", g)
	}
	w := tool(tools(t, r.await(t, environmentOf(t, f, "box-1"), "weather", any1).body), "weather")
	weather := serverOf(t, f, named("weather"))
	if p := w["ports"].([]any)[0].(map[string]any); w["state"] != "running" || p["public_port"] != float64(weather.PublicPort) || p["private_port"] != 8080.0 {
		t.Errorf("running: %v", w)
	}

	must(t, f.EngineDown(e.ID, true))
	b = r.await(t, e, "shape C", func(_ beat, l []map[string]any) bool { return l[0]["error"] != nil })
	if want := sample(t, "heartbeat-engine-down.json")["tool_statuses"].([]any)[0]; len(tools(t, b.body)) != 1 ||
		fmt.Sprint(tools(t, b.body)[0]) != fmt.Sprint(want) {
		t.Errorf("engine down: %s", b.body)
	}
	must(t, f.EngineDown(e.ID, false))
	r.await(t, e, "containers again", func(_ beat, l []map[string]any) bool { return tool(l, "github") != nil })
}

// What the truth is, agents report: in each shape's words.
func TestReports(t *testing.T) {
	r := newReceiver(t)
	f := start(t, Options{HeartbeatEvery: 20 * time.Millisecond, TimeScale: 1})
	must(t, f.SetTarget(r.URL))
	docker := serverOf(t, f, func(s Server) bool { return s.EnvironmentID == "box-1" && s.Kind == KindPlain })
	documented := serverOf(t, f, func(s Server) bool { return s.EnvironmentID == "box-5" && s.Kind == KindPlain })
	checked := serverOf(t, f, func(s Server) bool { h, _ := f.Truth(s.ID); return h.Health == "healthy" && s.EnvironmentID == "box-1" })

	for _, tc := range []struct {
		name   string
		do     func(id string) error
		server Server
		state  string // shape B's state, shape A's status
		text   string // shape B
		code   any    // shape A's exit code
	}{
		{"crash", func(id string) error { return f.Crash(id, 137) }, docker, "exited", "Exited (137) Less than a second ago", nil},
		{"start", f.Start, docker, "running", "Up Less than a second", nil},
		{"stop", f.StopOnPurpose, docker, "exited", "Exited (143) Less than a second ago", nil},
		{"stuck", f.StuckStarting, docker, "created", "Created", nil},
		{"heal", f.Heal, docker, "running", "Up Less than a second", nil},
		{"crash loop", func(id string) error { return f.CrashLoop(id, true) }, docker, "restarting", "Restarting (1) Less than a second ago", nil},
		{"crash loop ends", func(id string) error { return f.CrashLoop(id, false) }, docker, "running", "Up Less than a second", nil},
		{"restart", f.Restart, docker, "exited", "Exited (143) Less than a second ago", nil},
		{"unhealthy", f.Unhealthy, checked, "running", "(unhealthy)", nil},
		{"healthy", f.Heal, checked, "running", "(healthy)", nil},
		{"check after a start", func(id string) error { return errors.Join(f.Crash(id, 1), f.Start(id)) }, checked, "running", "(health: starting)", nil},
		{"A crash", func(id string) error { return f.Crash(id, 1) }, documented, "exited", "", 1.0},
		{"A start", f.Start, documented, "running", "", nil},
		{"A crash loop", func(id string) error { return f.CrashLoop(id, true) }, documented, "starting", "", nil},
	} {
		must(t, tc.do(tc.server.ID))
		r.await(t, environmentOf(t, f, tc.server.EnvironmentID), tc.name, func(_ beat, l []map[string]any) bool {
			m := tool(l, tc.server.Container)
			if tc.server.EnvironmentID == "box-5" {
				d := m["runtime_details"].(map[string]any)
				return m["account_tool_instance_id"] == tc.server.ID && m["status_on_toolbox"] == tc.state && d["exit_code"] == tc.code
			}
			return m["state"] == tc.state && strings.Contains(m["status"].(string), tc.text)
		})
	}
}

func TestAgentAPI(t *testing.T) {
	f := start(t, Options{HeartbeatEvery: time.Minute})
	c := newClient(t)
	for _, e := range f.Environments() {
		res, err := c.Get(e.AgentURL + "/health")
		must(t, err)
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if string(b) != "OK" {
			t.Errorf("%s /health: %s", e.ID, b)
		}
		res, err = c.Get(e.AgentURL + "/status")
		must(t, err)
		var m map[string]any
		err = json.NewDecoder(res.Body).Decode(&m)
		res.Body.Close()
		must(t, err)
		if got := keys(m); !slices.Equal(got, []string{"status", "system_metrics", "timestamp", "tool_instances", "version"}) {
			t.Errorf("%s /status has %v", e.ID, got)
		}
		field := sample(t, "heartbeat-field.json")
		sameKeys(t, e.ID+" tools", m["tool_instances"], field["tool_statuses"], "ip", "public_port")
		if e.Shape == ShapeDocker {
			sameKeys(t, e.ID+" system", m["system_metrics"], field["system_status"])
		}
	}
}

func TestFailedHeartbeats(t *testing.T) {
	r := newReceiver(t)
	f := start(t, Options{Environments: 2, Servers: 2, HeartbeatEvery: 10 * time.Millisecond})
	r.answerWith(http.StatusUnauthorized)
	must(t, f.SetTarget(r.URL))
	e := f.Environments()[0]
	always := func(beat, []map[string]any) bool { return true }
	for range 3 {
		r.await(t, e, "failures", always)
	}
	st, err := f.AgentStats(e.ID)
	must(t, err)
	if st.Failed < 2 || st.Sent != 0 || !strings.Contains(st.LastError, "401") {
		t.Errorf("refused: %+v", st)
	}
	r.answerWith(http.StatusOK) // not 204: a failure, as the reference agent has it
	for range 3 {
		r.await(t, e, "200s", always)
	}
	if st, _ := f.AgentStats(e.ID); st.Sent != 0 || !strings.Contains(st.LastError, "200") {
		t.Errorf("answered 200: %+v", st)
	}
	r.answerWith(http.StatusNoContent)
	for range 3 {
		r.await(t, e, "successes", always)
	}
	if st, _ := f.AgentStats(e.ID); st.Sent < 1 || st.LastError != "" {
		t.Errorf("answered 204: %+v", st)
	}
}
