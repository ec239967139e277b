package fleetsim

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// says lists a cycle's steps as people are told.
func says(steps []Step) []string {
	var out []string
	for _, s := range steps {
		out = append(out, s.After.String()+" "+s.Target+" "+s.What)
	}
	return out
}

func TestScriptOfTheDemo(t *testing.T) {
	for seed := range uint64(20) {
		f, err := New(Options{Seed: seed})
		must(t, err)
		defer f.Close()
		steps, length := f.Script(0).Steps(0)
		if want := 2 * len(f.Script(0).acts()); len(steps) != want {
			t.Errorf("seed %d: %d steps, want %d: something had no room", seed, len(steps), want)
		}
		if length > 100*time.Second {
			t.Errorf("seed %d: a cycle takes %v", seed, length)
		}
		told := strings.Join(says(steps), "\n")
		for _, what := range []string{"exit code 137", "slow", "flaps", "503", "stuck starting", "crash loop", "hangs", "refuses", "401", "429",
			"Docker's own", "nightly-import is stopped on purpose", "restarted", "silent agent", "down as a whole", "container engine"} {
			if !strings.Contains(told, what) {
				t.Errorf("seed %d: nothing with %q in\n%s", seed, what, told)
			}
		}
	}
}

func TestScriptIsDeterministic(t *testing.T) {
	f, err := New(Options{Seed: 3})
	must(t, err)
	defer f.Close()
	g, err := New(Options{Seed: 3})
	must(t, err)
	defer g.Close()
	for cycle := range 5 {
		a, _ := f.Script(0).Steps(cycle)
		b, _ := g.Script(0).Steps(cycle)
		if !reflect.DeepEqual(says(a), says(b)) {
			t.Errorf("cycle %d differs", cycle)
		}
		c, _ := f.Script(0).Steps(cycle + 1)
		if reflect.DeepEqual(says(a), says(c)) {
			t.Errorf("cycles %d and %d are the same", cycle, cycle+1)
		}
	}
}

// Whatever the fleet: half of it is untouched at every moment, nobody has two faults at once, each fault ends before
// its cycle does.
func TestScriptLeavesHalf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// A layout without sockets: the plan looks at nothing else.
		f := &Fleet{opt: Options{Seed: rapid.Uint64().Draw(t, "seed"), TimeScale: 1}}
		envs := rapid.IntRange(1, 12).Draw(t, "environments")
		for i := range envs {
			e := &environment{index: i, Environment: Environment{ID: "e" + string(rune('a'+i)), Shape: ShapeDocker}}
			if i == envs-1 {
				e.Shape = ShapeDocumented
			}
			f.envs = append(f.envs, e)
		}
		for i := range rapid.IntRange(1, 60).Draw(t, "servers") {
			e := f.envs[i%envs]
			s := &server{env: e, Server: Server{ID: e.ID + "-" + string(rune('0'+i)), Desired: "running"}}
			f.servers = append(f.servers, s)
			e.servers = append(e.servers, s)
		}
		script := f.Script(0)
		plan := script.plan(rapid.IntRange(0, 100).Draw(t, "cycle"))
		_, length := script.Steps(0)
		if length < script.time(cycleBeats) {
			t.Fatalf("a cycle of %v", length)
		}
		for at := beats(0); at < 200; at += 0.25 {
			affected := map[*server]int{}
			for _, p := range plan {
				if p.at <= at && at < p.over() {
					for _, s := range p.servers {
						affected[s]++
						if affected[s] > 1 {
							t.Fatalf("%s has two faults at %v", s.ID, at)
						}
						if p.inDocker && s.env.Shape != ShapeDocker {
							t.Fatalf("%s: %s can't be seen in shape A", s.ID, p.begins)
						}
					}
				}
			}
			if 2*len(affected) > len(f.servers) {
				t.Fatalf("%d of %d servers are affected at %v", len(affected), len(f.servers), at)
			}
		}
	})
}

// A cycle in fast motion on real sockets: all steps are taken, told in order, and leave the fleet well.
func TestScriptRuns(t *testing.T) {
	f := start(t, Options{HeartbeatEvery: time.Minute, TimeScale: 1.0 / 3000})
	script := f.Script(0)
	steps, _ := script.Steps(0)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var told []Event
	f.OnFault(func(e Event) {
		if len(told) < len(steps) {
			told = append(told, e)
			if len(told) < len(steps) {
				return
			}
			for _, s := range f.Servers() {
				tr, err := f.Truth(s.ID)
				if err != nil || tr.State != StateRunning || tr.Fault != "" || !tr.Answers || tr.Health == "unhealthy" {
					t.Errorf("after the cycle: %s %+v, %v", s.ID, tr, err)
				}
			}
			cancel()
		}
	})
	if err := script.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if len(told) != len(steps) {
		t.Fatalf("%d of %d steps were taken", len(told), len(steps))
	}
	for i, e := range told {
		if e.Target != steps[i].Target || e.What != steps[i].What || e.Heals != steps[i].Heals || e.At.IsZero() {
			t.Errorf("step %d: told %+v, planned %+v", i, e, steps[i])
		}
	}
	c := newClient(t)
	for _, s := range f.Servers() {
		if got, _ := ask(c, s.ProbeURL, patience); got != "200" {
			t.Errorf("after the cycle %s is %s", s.ID, got)
		}
	}
}
