//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestManagedFleet adds a fleet by API, removes part of it and adds that again, while 200 subscribers of all kinds
// listen: 3,000 servers are added within a minute, nobody misses or misunderstands anything, and whoever comes back
// with an old cursor either hears all that it missed or is told to start afresh.
func TestManagedFleet(t *testing.T) {
	const (
		listeners = 200
		hosts     = 10
		workers   = 8
	)
	fleet := 3000
	if raceEnabled && !full() { // which makes each entry that somebody is told of many times as dear
		fleet = 600
	}
	back := fleet / 5 // as many are removed and added again
	s := startService(t, obj{
		"auth":    obj{"commands_per_second": 1000000},
		"journal": obj{"max_bytes": "16MiB", "retention": "1h"},
	})
	var wrong atomic.Int64
	s.http.Timeout = 3 * time.Minute // this process is the busiest of all; on a machine that has others, it gets little
	call := func(method, path string, body any, want int) {
		b := []byte(`{}`)
		if body != nil {
			b, _ = json.Marshal(body)
		}
		if code, answer, err := s.tryRequest(method, path, b); err != nil || code != want {
			wrong.Add(1)
			t.Errorf("%s %s: %d %s %v", method, path, code, clip(answer), err)
		}
	}
	var tokens [hosts]struct{ Token string }
	for h := range hosts {
		call("POST", "/api/v1/environments", obj{"id": fmt.Sprintf("host-%d", h)}, 201)
		s.postJSON(fmt.Sprintf("/api/v1/environments/host-%d/tokens", h), &tokens[h])
	}
	_, start := s.fleet()
	id := func(n int) string { return fmt.Sprintf("m%04d", n) }
	spec := func(n int, labels obj) obj {
		return obj{"id": id(n), "environment_id": fmt.Sprintf("host-%d", n%hosts), "labels": labels, "probe": obj{"kind": "none"}}
	}
	// each does something for the servers from..to-1, several at a time.
	each := func(from, to int, do func(n int)) {
		var next atomic.Int64
		next.Store(int64(from))
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for n := int(next.Add(1)) - 1; n < to && wrong.Load() < 20; n = int(next.Add(1)) - 1 {
					do(n)
				}
			})
		}
		wg.Wait()
	}
	beat := func(text string) { // of three hosts
		for h := range 3 {
			var all []obj
			for n := h; n < fleet; n += hosts {
				all = append(all, container(id(n), "running", text))
			}
			s.postHeartbeat(tokens[h].Token, heartbeat(all...))
		}
	}

	entries := &entryCache{}
	var hurry atomic.Bool
	keepers := make([]*keeper, listeners)
	for i := range keepers {
		k := newKeeper(fmt.Sprintf("listener %d", i), entries, i%3 == 2, i%4 == 3)
		if k.hurry = &hurry; i%7 == 0 {
			k.slow = 50 * time.Millisecond
		}
		k.impish = i%8 == 0
		k.name += fmt.Sprintf(" (latest %v, sse %v, slow %v, impish %v)", k.latest, k.sse, k.slow > 0, k.impish)
		keepers[i] = k
	}
	const later = listeners / 4 // so many come while servers are added
	for _, k := range keepers[later:] {
		s.keep(k)
	}
	waitFor(t, 30*time.Second, "the listeners are there", func() (bool, string) {
		n := 0
		for _, k := range keepers[later:] {
			k.mu.Lock()
			if k.cursor != "" {
				n++
			}
			k.mu.Unlock()
		}
		return n == listeners-later, fmt.Sprint(n)
	})

	// Added.
	began := time.Now()
	each(0, fleet, func(n int) {
		if n%(fleet/later) == 0 && n/(fleet/later) < later {
			s.keep(keepers[n/(fleet/later)])
		}
		call("POST", "/api/v1/servers", spec(n, nil), 201)
	})
	took := time.Since(began)
	rate := float64(fleet) / took.Seconds()
	t.Logf("%d servers added in %s: %.0f a second", fleet, took.Round(time.Millisecond), rate)
	if rate < 50 && !raceEnabled { // with the race detector on both sides, it is that which is measured
		t.Errorf("%.1f servers a second were added: 3,000 are not done in a minute", rate)
	}
	beat("Up 2 hours")
	s.settled(id(0))
	truth, old := s.fleet()
	if len(truth) != fleet {
		t.Fatalf("%d servers, not %d", len(truth), fleet)
	}
	for n := range fleet {
		want := "unknown/unknown/never_seen/"
		if n%hosts < 3 {
			want = "running/healthy/ok/"
		}
		if got := truth[id(n)]; got.key != want {
			t.Fatalf("%s is %v, not %s", id(n), got, want)
		}
	}
	t.Logf("all visible after %s", time.Since(began).Round(time.Millisecond))

	// Who sleeps from here on has a cursor from before all removals.
	sleepers := make([]*keeper, 8)
	for i := range sleepers {
		k := newKeeper(fmt.Sprintf("sleeper %d (latest %v, sse %v)", i, i%2 == 1, i/2%2 == 1), entries, i%2 == 1, i/2%2 == 1)
		sleepers[i] = k
		stop := s.keep(k)
		waitFor(t, 60*time.Second, k.name+" has all", func() (bool, string) { d := k.differs(truth); return d == "", d })
		stop()
	}
	awake := func(some []*keeper, truth map[string]held) {
		t.Helper()
		for _, k := range some {
			stop := s.keep(k)
			k.endsWith(t, 60*time.Second, truth)
			stop()
		}
	}

	// Removed; some are added again, some stay away for now.
	each(0, back, func(n int) { call("DELETE", "/api/v1/servers/"+id(n), nil, 204) })
	truth, _ = s.fleet()
	if len(truth) != fleet-back {
		t.Errorf("%d servers after %d of %d were removed", len(truth), back, fleet)
	}
	awake(sleepers[:2], truth)
	each(0, back/2, func(n int) { call("POST", "/api/v1/servers", spec(n, nil), 201) })
	beat("Up 2 hours")
	s.settled(id(0))
	truth, _ = s.fleet()
	awake(sleepers[:4], truth)
	// On a machine so busy that the store takes longer than a second, the service goes on in another epoch: then
	// everybody begins afresh, and ends with the truth all the same.
	smooth := func() bool { _, at := s.fleet(); return epochOf(at) == epochOf(start) }
	for _, k := range sleepers[:4] {
		k.mu.Lock()
		if (len(k.resyncs) > 0 || k.recover == 0) && smooth() {
			t.Errorf("%s was continued %d times, resyncs %v", k.name, k.recover, k.resyncs)
		}
		k.mu.Unlock()
	}

	// The journal says the same.
	if smooth() {
		checkVersions(t, s.updates(start, kindsQuery))
	}

	// Some go once more, and all come back.
	each(0, back/2, func(n int) {
		if n%2 == 0 {
			call("DELETE", "/api/v1/servers/"+id(n), nil, 204)
		}
	})
	each(0, back, func(n int) {
		if n%2 == 0 || n >= back/2 {
			call("POST", "/api/v1/servers", spec(n, nil), 201)
		}
	})
	// A few become large, and change often: retention then drops what is old.
	fat := func(turn int) obj {
		labels := obj{"turn": strconv.Itoa(turn)}
		for i := range 60 {
			labels[fmt.Sprintf("label-%02d-%s", i, strings.Repeat("k", 240))] = strings.Repeat("x", 250)
		}
		return labels
	}
	each(0, 18*30, func(n int) { call("PUT", "/api/v1/servers/"+id(n%30), spec(n%30, fat(n)), 200) })
	beat("Up 2 hours")
	beat("Up 2 hours (unhealthy)") // the newest 1,000 entries are kept in any case
	beat("Up 2 hours (healthy)")
	s.settled(id(0))
	truth, _ = s.fleet()
	if len(truth) != fleet {
		t.Errorf("%d servers, not %d", len(truth), fleet)
	}
	for n := range fleet {
		least := uint64(1)
		if n < back {
			least = 3 // added, removed, added
		}
		if got := truth[id(n)].version; got < least {
			t.Errorf("%s is at version %d", id(n), got)
		}
	}
	hurry.Store(true)
	// Everybody ends with the truth.
	for _, k := range keepers {
		k.endsWith(t, 90*time.Second, truth)
	}
	t.Logf("all listeners have everything after %s", time.Since(began).Round(time.Millisecond))
	even := smooth()
	told, resyncs, conns := 0, 0, 0
	for i, k := range keepers {
		k.mu.Lock()
		resyncs += len(k.resyncs)
		conns += k.conns
		for _, n := range k.kinds {
			told += n
		}
		if i >= later && !k.latest && k.kinds["server_added"] < fleet && even {
			t.Errorf("%s was told of %d additions", k.name, k.kinds["server_added"])
		}
		if len(k.resyncs) > 0 && even {
			t.Errorf("%s was resynced: %v", k.name, k.resyncs)
		}
		k.mu.Unlock()
	}
	if !even {
		t.Log("the store was too slow for a while, so another epoch began; what needs one epoch was not looked at")
	}
	t.Logf("%d entries told over %d connections, %d resyncs; most memory %d MiB", told, conns, resyncs, s.rssKiB("VmHWM")>>10)

	// A restart later, what retention has deleted is in no memory either. Who held on is continued; who comes with a
	// cursor from before the oldest entry begins afresh.
	s.kill()
	s.start()
	s.ready()
	truth, _ = s.fleet()
	even = even && smooth()
	waitFor(t, 60*time.Second, "retention drops what is old", func() (bool, string) {
		code, b := s.request("GET", "/api/v1/updates?limit=1&after="+old, nil)
		return code == 410, fmt.Sprint(code, clip(b))
	})
	awake(sleepers[4:], truth)
	for _, k := range sleepers[4:] {
		k.mu.Lock()
		if !slices.Equal(k.resyncs, []string{"expired"}) && even {
			t.Errorf("%s came back from before retention: resyncs %v, continued %d times", k.name, k.resyncs, k.recover)
		}
		k.mu.Unlock()
	}
	for _, k := range keepers {
		k.endsWith(t, 60*time.Second, truth)
	}
	// Definitions are large, and everybody may have had to begin afresh at once.
	if most := s.rssKiB("VmHWM"); most > 1<<20 && !raceEnabled || most > 3<<20 {
		t.Errorf("the service grew to %d MiB", most>>10)
	}
	s.stop()
}

// kindsQuery asks GET /updates for entries of every kind.
var kindsQuery = "&kinds=" + strings.Join(allKinds, ",")

// checkVersions checks in a part of the journal that has no gap that versions rise by one, also over removals, and that
// a server that was added again begins from unknown.
func checkVersions(t testing.TB, journal []*entryJSON) {
	t.Helper()
	if _, err := versionsRise(journal); err != nil {
		t.Error(err)
	}
	gone := map[string]bool{}
	again := 0
	for i, e := range journal {
		if i > 0 && e.Seq != journal[i-1].Seq+1 {
			t.Errorf("%s follows %s", e, journal[i-1])
		}
		switch e.Kind {
		case "server_removed":
			gone[e.ServerID] = true
		case "status":
			if gone[e.ServerID] {
				again++
				if e.Version < 3 || e.Previous.State != "unknown" || e.Previous.Health != "unknown" {
					t.Errorf("the first after it was added again: %s", e)
				}
			}
			delete(gone, e.ServerID)
		}
	}
	if again == 0 {
		t.Error("no server was added again")
	}
}
