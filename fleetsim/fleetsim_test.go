package fleetsim

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOptions(t *testing.T) {
	for name, opt := range map[string]Options{
		"Environments":   {Environments: -1},
		"Servers":        {Servers: MaxServers + 1},
		"HeartbeatEvery": {HeartbeatEvery: -time.Second},
		"TimeScale":      {TimeScale: -1},
	} {
		f, err := New(opt)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("New(%+v): error %v does not name %s", opt, err, name)
		}
		if f != nil {
			f.Close()
		}
	}
}

func TestLayout(t *testing.T) {
	f, err := New(Options{Seed: 7})
	must(t, err)
	defer f.Close()
	if len(f.Environments()) != 5 || len(f.Servers()) != 24 {
		t.Fatalf("%d environments, %d servers", len(f.Environments()), len(f.Servers()))
	}
	if f.TimeScale() != 1.0/30 {
		t.Errorf("scale %v, want 1/30", f.TimeScale())
	}
	tokens, shapes, addresses := map[Secret]bool{}, map[Shape]int{}, map[string]bool{}
	for _, e := range f.Environments() {
		tokens[e.AgentToken] = true
		shapes[e.Shape]++
		addresses[e.AgentURL] = true
		if len(e.AgentToken) != 64 {
			t.Errorf("token of %s has %d characters", e.ID, len(e.AgentToken))
		}
		if s := fmt.Sprintf("%v %+v", e, e); strings.Contains(s, string(e.AgentToken)) {
			t.Errorf("printing an environment shows its token: %s", s)
		}
	}
	if len(tokens) != 5 || shapes[ShapeDocumented] != 1 {
		t.Errorf("%d tokens, shapes %v", len(tokens), shapes)
	}
	ids, kinds, desired, homes := map[string]bool{}, map[Kind]int{}, map[string]int{}, map[string][]string{}
	for _, s := range f.Servers() {
		if ids[s.ID] {
			t.Errorf("id %s twice", s.ID)
		}
		ids[s.ID] = true
		kinds[s.Kind]++
		desired[s.Desired]++
		homes[s.Container] = append(homes[s.Container], s.EnvironmentID)
		addresses[strings.TrimSuffix(s.ProbeURL, "/health")] = true
		if s.Labels["team"] == "" || s.Labels["tier"] == "" {
			t.Errorf("%s has labels %v", s.ID, s.Labels)
		}
	}
	if len(addresses) != 29 {
		t.Errorf("%d different addresses, want 29", len(addresses))
	}
	if kinds[KindModern] != 4 || kinds[KindLegacy] != 4 || kinds[KindPlain] != 16 || desired["stopped"] != 1 {
		t.Errorf("kinds %v, desired %v", kinds, desired)
	}
	shared := 0
	for c, envs := range homes {
		if n := len(envs); n > 1 {
			shared++
			if slices.Sort(envs); len(slices.Compact(envs)) != n {
				t.Errorf("container %s twice in one environment", c)
			}
		}
	}
	if shared < 2 {
		t.Errorf("%d container names are shared between environments", shared)
	}

	// The same seed gives the same fleet, but for ports, tokens and the clock.
	g, err := New(Options{Seed: 7})
	must(t, err)
	defer g.Close()
	for i, s := range f.servers {
		o := g.servers[i]
		if s.ID != o.ID || s.c.id != o.c.id || s.c.image != o.c.image || o.c.startedAt.Sub(s.c.startedAt).Abs() > patience {
			t.Errorf("%s differs between two fleets of one seed", s.ID)
		}
	}
}

func TestPlainFleet(t *testing.T) {
	r := newReceiver(t)
	begin := time.Now()
	f := start(t, Options{Environments: 200, Servers: 5000, HeartbeatEvery: 2 * time.Second, Plain: true})
	t.Logf("5000 servers were made in %v", time.Since(begin))
	must(t, f.SetTarget(r.URL))
	if len(f.doors) != 400 {
		t.Errorf("%d sockets, want 400", len(f.doors))
	}
	c := newClient(t)
	all := f.Servers()
	a, b := all[3], all[203] // of one environment
	if a.EnvironmentID != b.EnvironmentID || a.ProbeURL == b.ProbeURL || a.PublicPort != b.PublicPort || a.Kind != KindPlain {
		t.Fatalf("%+v and %+v", a, b)
	}
	check := func(s Server, want string) {
		t.Helper()
		if got, _ := ask(c, s.ProbeURL, patience); got != want {
			t.Errorf("%s is %s, want %s", s.ID, got, want)
		}
	}
	check(a, "200")
	must(t, f.Crash(a.ID, 137))
	check(a, "reset")
	check(b, "200")
	must(t, f.EnvironmentDown(a.EnvironmentID, true))
	check(a, "refused")
	check(b, "refused")
	check(all[4], "200")
	must(t, f.EnvironmentDown(a.EnvironmentID, false))
	check(a, "reset")
	check(b, "200")
	must(t, f.Heal(a.ID))
	check(a, "200")
	for _, e := range []int{0, 99, 199} {
		r.await(t, f.Environments()[e], "25 servers", func(_ beat, l []map[string]any) bool { return len(l) >= 25 })
	}
}

// A stop waits for nobody: not for requests that hang, nor for a service that takes heartbeats and does not answer.
func TestStopInTime(t *testing.T) {
	block := make(chan struct{})
	service := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-block }))
	defer service.Close()
	defer close(block)
	f, err := New(Options{HeartbeatEvery: 10 * time.Millisecond, TimeScale: 1})
	must(t, err)
	must(t, f.SetTarget(service.URL))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	must(t, f.Hang("weather"))
	must(t, f.Slow("github", time.Hour))
	got := make(chan string, 2)
	for _, id := range []string{"weather", "github"} {
		go func() {
			r, _ := ask(newRawClient(), serverOf(t, f, named(id)).ProbeURL, patience)
			got <- r
		}()
		awaitBusy(t, f.byID[id].door, 1)
	}
	begin := time.Now()
	cancel()
	must(t, <-done)
	if d := time.Since(begin); d > StopWithin {
		t.Errorf("stopping took %v", d)
	}
	for range 2 {
		if g := <-got; g != "reset" {
			t.Errorf("a waiting request ended with %s", g)
		}
	}
	if err := f.Run(context.Background()); err == nil {
		t.Error("a fleet runs twice")
	}
}
