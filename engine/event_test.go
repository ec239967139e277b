package engine

import (
	"slices"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"pgregory.net/rapid"
)

// TestEventsTeachNoInterval compares an engine that is told of events with one that is not: whatever they hold and whenever
// they come, both have learned the same interval and the same limits, and the event that just came says that the agent
// lives.
func TestEventsTeachNoInterval(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		all, some := &Engine{}, &Engine{}
		var eff Effects
		for _, p := range []**Engine{&all, &some} {
			e, err := New(DefaultPolicy())
			if err != nil {
				t.Fatal(err)
			}
			e.Start(begin, time.Time{}, &eff)
			e.Step(begin, &statussync.RegistryUpdate{Origin: statussync.OriginConfig,
				Environments: []statussync.Environment{{ID: "e", HasToken: true, Origin: statussync.OriginConfig}},
				Servers: []statussync.Server{
					{ID: "a", Name: "a", EnvironmentID: "e", Desired: statussync.DesiredRunning, Origin: statussync.OriginConfig},
					{ID: "b", Name: "b", EnvironmentID: "e", Desired: statussync.DesiredRunning, Origin: statussync.OriginConfig},
				}}, &eff)
			*p = e
		}
		now := begin
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 90_000).Draw(t, "wait_ms")) * time.Millisecond)
			r := &statussync.AgentReport{EnvironmentID: "e",
				Via:  rapid.SampledFrom([]statussync.ReportVia{statussync.ViaPush, statussync.ViaEvent, statussync.ViaEvent}).Draw(t, "via"),
				List: rapid.SampledFrom([]statussync.ListKind{statussync.ListNone, statussync.ListPartial, statussync.ListComplete}).Draw(t, "list"),
			}
			if r.List != statussync.ListNone {
				for _, name := range []string{"a", "b"} {
					if word := rapid.SampledFrom([]string{"", "running", "exited"}).Draw(t, name); word != "" {
						r.Containers = append(r.Containers, statussync.ContainerReport{Names: []string{name}, Word: word})
					}
				}
			}
			all.Tick(now, &eff)
			some.Tick(now, &eff)
			before := statusOf(all, "a", "b")
			all.Step(now, r, &eff)
			if r.Via != statussync.ViaEvent {
				some.Step(now, r, &eff)
			}
			x, _ := all.Environment("e", now)
			y, _ := some.Environment("e", now)
			if x.Interval != y.Interval || x.LateAfter != y.LateAfter || x.LostAfter != y.LostAfter {
				t.Fatalf("with events the limits are %v %v %v, without %v %v %v", x.Interval, x.LateAfter, x.LostAfter, y.Interval, y.LateAfter, y.LostAfter)
			}
			if x.Agent != statussync.AgentOK || !x.LastHeartbeat.Equal(now) || x.HeardVia != r.Via {
				t.Fatalf("after %s at %v the agent is %s, heard %v via %q", r.Via, now, x.Agent, x.LastHeartbeat, x.HeardVia)
			}
			if r.Via != statussync.ViaEvent {
				continue
			}
			for i, s := range statusOf(all, "a", "b") { // whatever its kind of list, an event stops nobody whom it does not list
				listed := slices.ContainsFunc(r.Containers, func(c statussync.ContainerReport) bool { return c.Names[0] == []string{"a", "b"}[i] })
				if !listed && s.State == statussync.StateStopped && before[i].State != statussync.StateStopped {
					t.Fatalf("an event that does not list it stopped server %d", i)
				}
			}
		}
	})
}

func statusOf(e *Engine, ids ...string) (out []statussync.Status) {
	for _, id := range ids {
		s, _ := e.Status(id)
		out = append(out, s)
	}
	return out
}

// TestExplainTellsEvent is about the words that people read.
func TestExplainTellsEvent(t *testing.T) {
	e, err := New(DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	var eff Effects
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	e.Start(now, time.Time{}, &eff)
	e.Step(now, &statussync.RegistryUpdate{Origin: statussync.OriginConfig,
		Environments: []statussync.Environment{{ID: "e", HasToken: true, Origin: statussync.OriginConfig}},
		Servers:      []statussync.Server{{ID: "a", Name: "a", EnvironmentID: "e", Origin: statussync.OriginConfig}}}, &eff)
	for via, want := range map[statussync.ReportVia]string{
		statussync.ViaPush:  "agent ok; every 1m0s, late after 2m30s, lost after 4m0s",
		statussync.ViaPull:  "agent ok, last heard via pull; every 1m0s, late after 2m30s, lost after 4m0s",
		statussync.ViaEvent: "agent ok, last heard via event; every 1m0s, late after 2m30s, lost after 4m0s",
	} {
		e.Step(now, &statussync.AgentReport{EnvironmentID: "e", Via: via}, &eff)
		x, _ := e.Explain("a", now)
		i := slices.IndexFunc(x.Evidence, func(v statussync.ExplainedEvidence) bool { return v.Kind == "heartbeat" })
		if i < 0 || x.Evidence[i].Value != want {
			t.Errorf("via %s: %+v, want %q", via, x.Evidence, want)
		}
	}
}
