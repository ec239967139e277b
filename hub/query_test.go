package hub

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
)

func TestServers(t *testing.T) {
	r := start(t, nil, Options{})
	r.define(30)
	r.change(serverID(5), 1)  // error
	r.change(serverID(6), 0)  // running
	r.change(serverID(21), 2) // stopped
	if _, err := r.Submit(r.ctx(), &statussync.RegistryUpdate{Origin: statussync.OriginConfig, RemovedServers: []string{serverID(29)}}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		q    statussync.ServerQuery
		want string
		more bool
	}{
		"first page":     {statussync.ServerQuery{Limit: 3}, "s000 s001 s002", true},
		"after":          {statussync.ServerQuery{Limit: 3, After: "s026"}, "s027 s028", false},
		"after no one":   {statussync.ServerQuery{Limit: 2, After: "s0015"}, "s002 s003", true},
		"the last":       {statussync.ServerQuery{Limit: 1, After: "s027"}, "s028", false},
		"past the end":   {statussync.ServerQuery{Limit: 1, After: "z"}, "", false},
		"limit nought":   {statussync.ServerQuery{}, "s000", true},
		"error":          {statussync.ServerQuery{Limit: 9, States: []statussync.State{statussync.StateError}}, "s005", false},
		"none":           {statussync.ServerQuery{Limit: 9, States: []statussync.State{}}, "", false},
		"healthy":        {statussync.ServerQuery{Limit: 9, Healths: []statussync.Health{statussync.HealthHealthy}}, "s006", false},
		"off or red":     {statussync.ServerQuery{Limit: 9, Availabilities: []statussync.Availability{statussync.Off, statussync.Unavailable}}, "s005 s021", false},
		"red, other box": {statussync.ServerQuery{Limit: 9, Availabilities: []statussync.Availability{statussync.Unavailable}, EnvironmentIDs: []string{"box-1"}}, "", false},
		"box and label":  {statussync.ServerQuery{Limit: 9, EnvironmentIDs: []string{"box-1"}, Labels: map[string]string{"team": "t1"}}, "s001 s022", false},
		"text":           {statussync.ServerQuery{Limit: 9, Text: "SERVER S02", After: "s026"}, "s027 s028", false},
		"text, id":       {statussync.ServerQuery{Limit: 9, Text: "s011"}, "s011", false},
		"text, endpoint": {statussync.ServerQuery{Limit: 1, Text: "127.0.0.1:9000"}, "s000", true},
	} {
		items, more, at := r.Servers(c.q)
		var ids []string
		for _, v := range items {
			ids = append(ids, v.Server.ID)
		}
		if got := strings.Join(ids, " "); got != c.want || more != c.more {
			t.Errorf("%s: got %q, more %v; want %q, %v", name, got, more, c.want, c.more)
		}
		if at != r.head() {
			t.Errorf("%s: as of %v, head %v", name, at, r.head())
		}
	}
	m := r.SyncMetrics()
	if m.TotalServers != 29 || m.ActiveServers != 1 || m.ErrorServers != 1 || m.StatusChanges != 33 || m.LastSync.IsZero() || m.SyncDuration <= 0 {
		t.Errorf("metrics: %+v", m)
	}
	s := r.Stats()
	if s.Servers != 29 || s.Environments != 7 || s.Observations["override"] != 3 || s.Observations["registry"] != 2 || s.Updates != 33 || s.Head != r.head() {
		t.Errorf("stats: %+v", s)
	}
}

func TestEnvironments(t *testing.T) {
	r := start(t, nil, Options{})
	r.define(7)
	envs := r.Environments()
	if len(envs) != 7 || !slices.IsSortedFunc(envs, func(a, b statussync.EnvironmentView) int {
		return strings.Compare(a.Environment.ID, b.Environment.ID)
	}) {
		t.Fatalf("%d environments, or not by id", len(envs))
	}
	if _, err := r.Submit(r.ctx(), &statussync.AgentReport{EnvironmentID: "box-2", Via: statussync.ViaPush, AgentVersion: "1.2.3"}); err != nil {
		t.Fatal(err)
	}
	v, err := r.Environment("box-2")
	if err != nil || v.AgentVersion != "1.2.3" || v.Agent != statussync.AgentOK || v.LastHeartbeat.IsZero() || v.Now.Before(v.LastHeartbeat) || v.Servers != 1 {
		t.Errorf("box-2: %+v, %v", v, err)
	}
	_, err = r.Environment("nowhere")
	wantCode(t, err, statussync.CodeNotFound)
}

// TestAgentGoesLate: what time alone changes is seen without an observation or an entry.
func TestAgentGoesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{})
		r.define(1)
		if _, err := r.Submit(r.ctx(), &statussync.AgentReport{EnvironmentID: "box-3", Via: statussync.ViaPush}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if v, err := r.Environment("box-3"); err != nil || v.Agent != statussync.AgentLost {
			t.Errorf("silent for 30 min, and the agent is %q, %v", v.Agent, err)
		}
	})
}

func TestCacheHits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &requests{}
		r := start(t, nil, Options{Requester: q})
		r.define(2)
		read := func(hits, misses uint64) {
			t.Helper()
			if _, err := r.Server(serverID(0)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if m := r.SyncMetrics(); m.CacheHits != hits || m.CacheMisses != misses {
				t.Errorf("%d hits, %d misses; want %d, %d", m.CacheHits, m.CacheMisses, hits, misses)
			}
		}
		read(0, 1) // never checked
		read(0, 2)
		if got := q.stale(); len(got) != 1 || got[0] != serverID(0) {
			t.Errorf("asked for %v; want one probe", got)
		}
		time.Sleep(askAgain)
		read(0, 3)
		if got := q.stale(); len(got) != 2 {
			t.Errorf("asked for %v; want two probes", got)
		}
		now := time.Now()
		if _, err := r.Submit(r.ctx(), &statussync.ProbeResult{ServerID: serverID(0), Outcome: statussync.OutcomeSuccess, StartedAt: now, FinishedAt: now}); err != nil {
			t.Fatal(err)
		}
		read(1, 3)
		time.Sleep(maxAge)
		read(2, 3)
		time.Sleep(time.Second)
		read(2, 4)
	})
}

func TestHistoryAndUpdates(t *testing.T) {
	r := start(t, nil, Options{RingSize: 16})
	r.define(4)
	for i := range 100 {
		r.change(serverID(i%4), i/4)
	}
	head := r.head()
	all, err := r.History(t.Context(), statussync.HistoryQuery{ServerID: serverID(1), Limit: 1000})
	if err != nil || len(all) != 27 { // added, concluded, 25 changes
		t.Fatalf("%d entries, %v", len(all), err)
	}
	page, err := r.History(t.Context(), statussync.HistoryQuery{ServerID: serverID(1), Limit: 5, Before: all[4].Seq})
	if err != nil || len(page) != 5 || page[0].Seq != all[5].Seq {
		t.Errorf("the second page: %d entries, %v", len(page), err)
	}
	none, err := r.History(t.Context(), statussync.HistoryQuery{ServerID: serverID(1), Limit: 5, To: time.Unix(1, 0)})
	if err != nil || len(none) != 0 {
		t.Errorf("before everything: %d entries, %v", len(none), err)
	}
	_, err = r.History(t.Context(), statussync.HistoryQuery{ServerID: "nobody", Limit: 5})
	wantCode(t, err, statussync.CodeNotFound)
	_, err = r.History(t.Context(), statussync.HistoryQuery{ServerID: serverID(1)})
	wantCode(t, err, statussync.CodeInvalid)
	if _, err := r.Submit(t.Context(), &statussync.RegistryUpdate{Origin: statussync.OriginConfig, RemovedServers: []string{serverID(1)}}); err != nil {
		t.Fatal(err)
	}
	gone, err := r.History(t.Context(), statussync.HistoryQuery{ServerID: serverID(1), Limit: 5, From: time.Now().Add(time.Hour)})
	if err != nil || len(gone) != 0 {
		t.Errorf("a removed server with entries, but none in the time asked for: %d, %v", len(gone), err)
	}

	// Updates, from the oldest to the newest, with several page sizes and filters.
	stored := r.j.Entries()
	one, err := statussync.Filter{Clauses: []statussync.Clause{{ServerIDs: []string{serverID(2)}}}}.Compile()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*statussync.Matcher{nil, one} {
		var want []uint64
		for _, e := range stored {
			if m.Match(e.Entry) {
				want = append(want, e.Seq)
			}
		}
		for _, limit := range []int{1, 7, 1000} {
			var got []uint64
			var at statussync.Cursor
			for {
				items, next, err := r.Updates(t.Context(), at, limit, m)
				if err != nil || len(items) > limit {
					t.Fatalf("after %v: %d items, %v", at, len(items), err)
				}
				for _, e := range items {
					got = append(got, e.Seq)
				}
				if next == at {
					break
				}
				at = next
			}
			if !slices.Equal(got, want) || at != r.head() {
				t.Errorf("limit %d: got %v up to %v, want %v", limit, got, at, want)
			}
		}
	}
	r.j.Expire(10)
	for name, at := range map[string]statussync.Cursor{
		"deleted": {Epoch: head.Epoch, Seq: 9}, "beyond": {Epoch: head.Epoch, Seq: head.Seq + 100}, "another epoch": {Epoch: "e5x", Seq: 20},
	} {
		_, _, err := r.Updates(t.Context(), at, 10, nil)
		if statussync.CodeOf(err) != statussync.CodeExpired {
			t.Errorf("%s: %v", name, err)
		}
	}
	items, _, err := r.Updates(t.Context(), statussync.Cursor{}, 1, nil)
	if err != nil || len(items) != 1 || items[0].Seq != 11 {
		t.Errorf("the oldest that there is: %v, %v", items, err)
	}
	_, _, err = r.Updates(t.Context(), head, 0, nil)
	wantCode(t, err, statussync.CodeInvalid)
}

// checker probes by handing a success over, as the probing scheduler does.
type checker struct {
	h       *Hub
	now     atomic.Int64
	most    atomic.Int64
	failing string
}

func (c *checker) Check(ctx context.Context, id string) (statussync.ProbeResult, error) {
	n := c.now.Add(1)
	defer c.now.Add(-1)
	for m := c.most.Load(); n > m && !c.most.CompareAndSwap(m, n); m = c.most.Load() {
	}
	if id == c.failing {
		return statussync.ProbeResult{}, statussync.NewError(statussync.CodeUnavailable, "it has no address", nil)
	}
	now := time.Now()
	time.Sleep(time.Millisecond)
	res := statussync.ProbeResult{ServerID: id, Outcome: statussync.OutcomeSuccess, StartedAt: now, FinishedAt: time.Now()}
	return res, c.h.Observe(ctx, &res)
}

func TestChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &checker{failing: serverID(17)}
		r := start(t, nil, Options{Checker: c})
		c.h = r.Hub
		r.define(200)
		res, v, err := r.CheckNow(t.Context(), serverID(3))
		if err != nil || res.Outcome != statussync.OutcomeSuccess || v.Status.Health != statussync.HealthHealthy || v.Status.CheckCount != 1 {
			t.Errorf("check: %+v, %+v, %v", res, v.Status, err)
		}
		_, _, err = r.CheckNow(t.Context(), "nobody")
		wantCode(t, err, statussync.CodeNotFound)
		_, _, err = r.CheckNow(t.Context(), serverID(17))
		wantCode(t, err, statussync.CodeUnavailable)
		list, err := r.CheckAll(t.Context())
		if err != nil || len(list) != 200 {
			t.Fatalf("%d results, %v", len(list), err)
		}
		for i, x := range list {
			if x.ServerID != serverID(i) || x.View.Server.ID != x.ServerID {
				t.Fatalf("result %d is of %s", i, x.ServerID)
			}
			if x.ServerID == c.failing {
				wantCode(t, x.Err, statussync.CodeUnavailable)
			} else if x.Err != nil || x.View.Status.Health != statussync.HealthHealthy {
				t.Errorf("%s: %s, %v", x.ServerID, x.View.Status.Health, x.Err)
			}
		}
		if m := c.most.Load(); m > checkAtOnce || m < 2 {
			t.Errorf("%d checks at a time", m)
		}
	})
	r := start(t, nil, Options{})
	_, err := r.CheckAll(t.Context())
	wantCode(t, err, statussync.CodeUnavailable)
	_, _, err = r.CheckNow(t.Context(), "x")
	wantCode(t, err, statussync.CodeUnavailable)
}

// TestQueriesBesideUpdates: queries of every sort run beside the writer, under the race detector.
func TestQueriesBesideUpdates(t *testing.T) {
	r := start(t, nil, Options{RingSize: 64})
	r.define(50)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for _, f := range []func(){
		func() { r.Servers(statussync.ServerQuery{Limit: 100, Text: "s0"}) },
		func() {
			_, _ = r.Server(serverID(3))
			r.SyncMetrics()
			r.Stats()
			r.Ready()
			r.Now()
			r.Active()
		},
		func() { r.Environments(); _, _ = r.Environment("box-1") },
		func() { _, _ = r.Explain(r.ctx(), serverID(7)) },
		func() {
			_, _ = r.History(r.ctx(), statussync.HistoryQuery{ServerID: serverID(1), Limit: 20})
			_, _, _ = r.Updates(r.ctx(), statussync.Cursor{}, 20, nil)
		},
		func() {
			if sub, err := r.Subscribe(r.ctx(), statussync.SubscribeRequest{Snapshot: true}); err == nil {
				_, _ = sub.Next(r.ctx(), make([]statussync.Event, 0, 8))
				sub.Close()
			}
		},
	} {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					f()
				}
			}
		})
	}
	for i := range 60 {
		r.change(serverID(i%50), i/50)
	}
	close(done)
	wg.Wait()
}
