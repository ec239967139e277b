//go:build linux

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestKill kills the real service with SIGKILL at random moments under heartbeat and probe load, starts it again on the
// same data, and looks from outside whether "durable before told" held: subscribers that resume by their last cursor
// were told exactly what the journal holds, byte for byte, nothing twice; versions rise by one; and servers that were
// steady throughout have no entry of any restart.
func TestKill(t *testing.T) {
	kills := 30
	if testing.Short() {
		kills = 8
	}
	g := newTarget(t)
	const flips, toggles = 8, 3
	var servers list
	for i := range flips {
		servers = append(servers, unprobed(fmt.Sprintf("flip-%d", i), "flip", "stopped"))
	}
	for i := range toggles {
		id := fmt.Sprintf("toggle-%d", i)
		servers = append(servers, obj{"id": id, "environment": "steady", "probe": g.probe("/" + id)})
	}
	steady := map[string]string{ // id → the conclusion that it must keep
		"well":        "running/healthy/ok/",
		"well-silent": "running/healthy/ok/",
		"failing":     "running/unhealthy/probe_failing/",
		"crashed":     "stopped/unhealthy/crashed/",
		"off":         "stopped/unknown/ok/",
		"outside":     "running/healthy/ok/",
		"overridden":  "error/unhealthy/override/override",
	}
	g.set("/failing", 503)
	servers = append(servers,
		obj{"id": "well", "environment": "steady", "probe": g.probe("/well")},
		unprobed("well-silent", "steady", "running"),
		obj{"id": "failing", "environment": "steady", "probe": g.probe("/failing")},
		unprobed("crashed", "steady", "running"),
		unprobed("off", "steady", "stopped"),
		obj{"id": "outside", "probe": g.probe("/outside")},
		unprobed("overridden", "steady", "running"),
	)
	s := startService(t, obj{
		"environments": list{envOf("flip", "token-flip"), envOf("steady", "token-steady")},
		"servers":      servers,
	})

	steadyBeat := []obj{
		container("well", "running", "Up 2 hours"), container("well-silent", "running", "Up 3 hours (healthy)"),
		container("failing", "running", "Up 2 hours"), container("crashed", "exited", "Exited (137) 5 minutes ago"),
		container("off", "exited", "Exited (0) 2 hours ago"), container("overridden", "running", "Up 2 hours"),
	}
	for i := range toggles {
		steadyBeat = append(steadyBeat, container(fmt.Sprintf("toggle-%d", i), "running", "Up 2 hours"))
	}
	if code, b := s.request("PUT", "/api/v1/servers/overridden/override", []byte(`{"state":"error","note":"drill","expires_in":"2h"}`)); code/100 != 2 {
		t.Fatalf("override: %d %s", code, b)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	defer load.Wait()
	defer cancel()
	post := func(token string, body []byte) { // a service that is down is not told: an agent tries again at its next beat
		s.tryRequest("POST", "/heartbeat", body, "Authorization", "Bearer "+token)
	}
	load.Go(func() {
		for ctx.Err() == nil {
			post("token-steady", heartbeat(steadyBeat...))
			pause(ctx, 50*time.Millisecond)
		}
	})
	for id, key := range steady {
		state, health, reason := split3(key)
		s.waitStatus(15*time.Second, id, state, health, reason)
	}
	load.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			beat := make([]obj, flips)
			for i := range beat {
				beat[i] = container(fmt.Sprintf("flip-%d", i), "running", "Up 2 hours")
				if (n+i)%2 == 0 {
					beat[i] = container(fmt.Sprintf("flip-%d", i), "exited", "Exited (0) 2 hours ago")
				}
			}
			post("token-flip", heartbeat(beat...))
			pause(ctx, 25*time.Millisecond)
		}
	})
	load.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			mode := 200
			if n/toggles%2 == 0 {
				mode = 503
			}
			g.set(fmt.Sprintf("/toggle-%d", n%toggles), mode)
			pause(ctx, 300*time.Millisecond)
		}
	})

	steadyBefore, start := s.servers("")
	followers := []*follower{
		{name: "ws"}, {name: "sse", sse: true}, {name: "ws impish", impish: true}, {name: "sse impish", sse: true, impish: true},
		{name: "ws leave", sub: obj{"leave": true, "filters": list{obj{"healths": list{"unhealthy"}}}}},
		{name: "sse leave", sse: true, query: url.Values{"leave": {"true"}, "healths": {"unhealthy"}}},
	}
	for _, f := range followers {
		s.follow(f, start)
	}

	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 7))
	for n := range kills {
		after := time.Duration(rng.IntN(350)) * time.Millisecond
		if n%5 != 4 { // every fifth dies at any moment of its start
			s.ready()
		}
		pause(ctx, after)
		s.kill()
		s.start()
	}
	s.ready()
	pause(ctx, 300*time.Millisecond)
	cancel()
	load.Wait()

	journal := s.updates(start, "")
	if len(journal) < 10*kills {
		t.Fatalf("only %d updates: no load worth the name", len(journal))
	}
	// Probes go on beside; what they change after this moment is not asked for.
	for _, f := range followers {
		want := journal
		if strings.HasSuffix(f.name, "leave") {
			want = only(journal, func(e *entryJSON) bool {
				return e.Current.Health == "unhealthy" || e.Previous.Health == "unhealthy"
			})
		}
		if len(want) == 0 {
			t.Fatalf("nothing to tell %s of", f.name)
		}
		f.waitLast(t, 15*time.Second, want[len(want)-1])
		f.mu.Lock()
		last := want[len(want)-1].Seq
		f.told = only(f.told, func(e *entryJSON) bool { return e.Seq <= last || e.Epoch != want[0].Epoch })
		f.mu.Unlock()
		f.check(t, want)
		f.mu.Lock()
		if len(f.resyncs) > 0 {
			t.Errorf("%s was resynced %v: no kill of the process ends an epoch", f.name, f.resyncs)
		}
		if len(f.subscribed) < kills/2 {
			t.Errorf("%s connected only %d times through %d kills", f.name, len(f.subscribed), kills)
		}
		for _, fr := range f.subscribed {
			if !fr.Recovered || !fr.Durable {
				t.Errorf("%s: subscribed with recovered %v, durable %v", f.name, fr.Recovered, fr.Durable)
				break
			}
		}
		f.mu.Unlock()
	}
	if _, err := versionsRise(journal); err != nil {
		t.Error(err)
	}
	for _, e := range journal {
		if _, ok := steady[e.ServerID]; ok {
			t.Errorf("a server that was steady throughout has an entry: %s", e)
		}
	}
	now, _ := s.servers("")
	for id, key := range steady {
		if got := now[id].Status; got.key() != key || got.Version != steadyBefore[id].Status.Version {
			t.Errorf("%s is %s version %d, not %s version %d", id, got.key(), got.Version, key, steadyBefore[id].Status.Version)
		}
	}
	// The journal itself has no hole and no entry about the fleet as a whole.
	kinds := "&kinds=status,server_added,server_changed,server_removed,environment_silent,environment_back,self_doubt,tool_drift"
	whole := s.updates(start, kinds)
	for i, e := range whole {
		if i > 0 && (e.Seq != whole[i-1].Seq+1 || e.Epoch != whole[0].Epoch) {
			t.Errorf("a hole: %s follows %s", e.cursor(), whole[i-1].cursor())
		}
		if e.Kind != "status" {
			t.Errorf("an entry that nothing in the fleet gave a reason for: %s", e)
		}
	}
	t.Logf("%d kills, %d updates", kills, len(journal))
	s.stop()
	s.start()
	s.ready()
	if again := s.updates(start, ""); len(again) < len(journal) {
		t.Errorf("%d updates after a clean restart, %d before", len(again), len(journal))
	} else if err := sameEntries(again[:len(journal)], journal); err != nil {
		t.Errorf("after a clean restart: %v", err)
	}
}

func split3(key string) (a, b, c string) {
	f := strings.Split(key, "/")
	return f[0], f[1], f[2]
}
