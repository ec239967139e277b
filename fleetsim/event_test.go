package fleetsim

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
)

// TestEvents: an agent that supports it tells at once what happened, and only that; the others wait for their heartbeat.
func TestEvents(t *testing.T) {
	r := newReceiver(t)
	f := start(t, Options{HeartbeatEvery: time.Hour, TimeScale: 0.01, EventAgents: 1, Seed: 1})
	must(t, f.SetTarget(r.URL))
	env := f.Environments()[0]
	var own, other Server
	for _, s := range f.Servers() {
		if s.EnvironmentID == env.ID {
			own = s
		} else if s.EnvironmentID == f.Environments()[1].ID {
			other = s
		}
	}
	isEvent := func(b beat) bool { return bytes.Contains(b.body, []byte(`"event":true`)) }
	// The first heartbeat of the first agent comes at once; what it tells is no news afterwards.
	r.next(t, env, "all", func(b beat, list []map[string]any) bool { return !isEvent(b) && tool(list, own.Container) != nil })

	only := func(word string) func(b beat, list []map[string]any) bool {
		return func(b beat, list []map[string]any) bool {
			return isEvent(b) && len(list) == 1 && tool(list, own.Container) != nil && list[0]["state"] == word
		}
	}
	must(t, f.Crash(own.ID, 137))
	b := r.next(t, env, "the crash alone", only("exited"))
	var m map[string]any
	must(t, json.Unmarshal(b.body, &m))
	if len(m) != 3 || b.path != "POST /functions/v1/heartbeat" {
		t.Errorf("%s %s", b.path, b.body)
	}
	must(t, f.Crash(other.ID, 1)) // its agent tells nothing of it: the next line would fail on what follows from a wrong agent
	must(t, f.Start(own.ID))
	r.next(t, env, "the start alone", only("running"))
	must(t, f.Unhealthy(own.ID))
	r.next(t, env, "the failing check", func(b beat, list []map[string]any) bool {
		return only("running")(b, list) && bytes.Contains(b.body, []byte("(unhealthy)"))
	})
	if st, err := f.AgentStats(env.ID); err != nil || st.Events < 2 {
		t.Errorf("%+v, %v", st, err)
	}
	if st, err := f.AgentStats(f.Environments()[1].ID); err != nil || st.Events != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	// An agent that can't reach its engine sees nothing; what it missed it tells afterwards.
	must(t, f.EngineDown(env.ID, true))
	must(t, f.Crash(own.ID, 1))
	must(t, f.EngineDown(env.ID, false))
	r.next(t, env, "what it missed", only("exited"))
}
