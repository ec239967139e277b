package rollup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/agentopia/statussync"
)

// spansOf reads "0 available, 60 unavailable, …": seconds after day.
func spansOf(t testing.TB, script string) []statussync.Span {
	t.Helper()
	var out []statussync.Span
	for _, part := range strings.Split(script, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		var at int
		var class string
		if _, err := fmt.Sscanf(part, "%d %s", &at, &class); err != nil || !slices.Contains(statussync.SpanClasses, statussync.SpanClass(class)) {
			t.Fatalf("%q: %v", part, err)
		}
		out = append(out, statussync.Span{ServerID: "a", Begin: day.Add(time.Duration(at) * time.Second), Class: statussync.SpanClass(class), Reason: statussync.Reason(fmt.Sprint("r", at))})
	}
	return out
}

// TestReport: the window is 1000 to 2000 s.
func TestReport(t *testing.T) {
	for _, c := range []struct{ name, spans, want, incidents string }{
		{"nothing", "", "unknown=1000", ""},
		{"always well", "0 available", "available=1000 100%", ""},
		{"begins in it", "1400 available", "unknown=400 available=600 100%", ""},
		{"after it", "2000 unavailable", "unknown=1000", ""},
		{"slow counts as up", "0 limited, 1500 available", "limited=500 available=500 100%", ""},
		{"an incident", "0 available, 1200 unavailable, 1300 available", "unavailable=100 available=900 90%", "1200-1300 r1200"},
		{"through a restart", "0 available, 1200 unavailable, 1250 changing, 1300 available", "unavailable=50 changing=50 available=900 90%", "1200-1300 r1200"},
		{"through a gap", "0 available, 1200 unavailable, 1250 unknown, 1300 unavailable, 1400 limited", "unavailable=150 unknown=50 limited=600 available=200 84.2105%", "1200-1400 r1200"},
		{"a deploy is none", "0 available, 1200 changing, 1300 available", "changing=100 available=900 90%", ""},
		{"unknown is none", "0 available, 1200 unknown, 1300 available", "unknown=100 available=900 100%", ""},
		{"switched off ends it", "0 unavailable, 1200 off", "unavailable=200 off=800 0%", "0-1200 r0"},
		{"maintenance ends it", "1000 unavailable, 1100 maintenance, 1200 unavailable, 1300 available", "unavailable=200 maintenance=100 available=700 77.7778%", "1000-1100 r1000; 1200-1300 r1200"},
		{"removal ends it", "0 available, 1500 unavailable, 1600 removed", "available=500 unavailable=100 unknown=400 83.3333%", "1500-1600 r1500"},
		{"added again", "0 available, 1500 removed, 1800 unavailable, 1900 available", "available=600 unknown=300 unavailable=100 85.7143%", "1800-1900 r1800"},
		{"goes on", "0 available, 1900 unavailable", "available=900 unavailable=100 90%", "1900- r1900"},
		{"goes on, starting", "0 available, 1900 unavailable, 1950 changing", "available=900 unavailable=50 changing=50 90%", "1900- r1900"},
		{"began before", "0 available, 500 unavailable, 1500 available", "unavailable=500 available=500 50%", "500-1500 r500"},
		{"began before, changing at the edge", "0 available, 500 unavailable, 800 changing, 1500 available", "changing=500 available=500 50%", "500-1500 r500"},
		{"ended at the edge", "0 unavailable, 1000 available", "available=1000 100%", ""},
		{"only off", "0 off", "off=1000", ""},
		{"only maintenance", "0 maintenance", "maintenance=1000", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			u, list := Report("a", spansOf(t, c.spans), day.Add(1000*time.Second), day.Add(2000*time.Second))
			var parts []string
			want := map[string]bool{}
			for _, w := range strings.Fields(c.want) {
				want[w] = true
			}
			for name, d := range map[string]time.Duration{
				"available": u.Available, "limited": u.Limited, "unavailable": u.Unavailable, "changing": u.Changing, "off": u.Off,
				"unknown": u.Unknown, "maintenance": u.Maintenance,
			} {
				if d != 0 {
					parts = append(parts, fmt.Sprintf("%s=%d", name, d/time.Second))
				}
			}
			if a, ok := u.Availability(); ok {
				parts = append(parts, fmt.Sprintf("%.6g%%", 100*a))
			}
			for _, p := range parts {
				if !want[p] {
					t.Errorf("%s is not in %s", p, c.want)
				}
			}
			if len(parts) != len(want) {
				t.Errorf("%v, want %s", parts, c.want)
			}
			var got []string
			for _, i := range list {
				end := ""
				if !i.End.IsZero() {
					end = fmt.Sprint(int(i.End.Sub(day).Seconds()))
				}
				got = append(got, fmt.Sprintf("%d-%s %s", int(i.Begin.Sub(day).Seconds()), end, i.Reason))
			}
			if s := strings.Join(got, "; "); s != c.incidents || u.Incidents != len(list) {
				t.Errorf("incidents %q (%d), want %q", s, u.Incidents, c.incidents)
			}
		})
	}
	// MTTR and MTBF: incidents of 100 s (from before the window), 200 s and one that goes on.
	u, _ := Report("a", spansOf(t, "950 unavailable, 1050 available, 1200 unavailable, 1400 limited, 1990 unavailable"), day.Add(1000*time.Second), day.Add(2000*time.Second))
	mttr, _ := u.MTTR()
	mtbf, _ := u.MTBF()
	if mttr != 150*time.Second || mtbf != 740*time.Second/3 || u.Incidents != 3 || u.Ended != 2 {
		t.Errorf("MTTR %v MTBF %v %+v", mttr, mtbf, u)
	}
}

// stateAt is the independent script's idea of a server at one moment.
type stateAt int

const (
	gone stateAt = iota
	up
	slow
	down
	moving
	resting
	unsure
	repaired
)

func judge(e *statussync.Entry) stateAt {
	if e.Kind == statussync.KindServerRemoved {
		return gone
	}
	s := e.Current
	for _, m := range s.Marks.Strings() {
		if m == "maintenance" {
			return repaired
		}
	}
	switch string(s.State) + "/" + string(s.Health) {
	case "running/healthy":
		return up
	case "running/degraded":
		return slow
	case "starting/unknown", "stopping/unknown":
		return moving
	case "stopped/unknown":
		return resting
	case "unknown/unknown", "running/unknown":
		return unsure
	}
	return down
}

// figures is what the script counts, in ms.
type figures struct {
	In                      [8]int64
	Incidents, Ended        int
	Repair                  int64
	Begins, Ends, Durations []int64
}

// count walks through the window millisecond by millisecond, or rather from change to change of any server, with a
// lamp per server that is lit while an incident goes on. It knows nothing of spans.
func count(journal []*statussync.Entry, id string, from, to time.Time) figures {
	var f figures
	now, lit := unsure, int64(-1)
	a, b := from.UnixMilli(), to.UnixMilli()
	at := a
	var mine []*statussync.Entry
	for _, e := range journal {
		if e.ServerID != id {
			continue
		}
		if n := len(mine); n > 0 && mine[n-1].Timestamp.Equal(e.Timestamp) {
			mine = mine[:n-1] // what did not last a millisecond does not count
		}
		mine = append(mine, e)
	}
	for _, e := range append(mine, nil) {
		next := b
		if e != nil {
			next = e.Timestamp.UnixMilli()
		}
		if stop := min(next, b); stop > at {
			f.In[now] += stop - at
			at = stop
		}
		if e == nil || next >= b {
			break
		}
		now = judge(e)
		switch {
		case now == down && lit < 0:
			lit = next
		case lit >= 0 && (now == up || now == slow || now == resting || now == gone || now == repaired):
			if next > a {
				f.Incidents++
				f.Ended++
				f.Repair += next - lit
				f.Begins, f.Ends, f.Durations = append(f.Begins, lit), append(f.Ends, next), append(f.Durations, next-lit)
			}
			lit = -1
		}
	}
	if lit >= 0 {
		f.Incidents++
		f.Begins, f.Ends, f.Durations = append(f.Begins, lit), append(f.Ends, 0), append(f.Durations, b-lit)
	}
	f.In[unsure] += f.In[gone]
	f.In[gone] = 0
	return f
}

func figuresOf(u *statussync.Uptime, list []statussync.Incident) figures {
	f := figures{Incidents: u.Incidents, Ended: u.Ended, Repair: u.Repair.Milliseconds()}
	for s, d := range map[stateAt]time.Duration{
		up: u.Available, slow: u.Limited, down: u.Unavailable, moving: u.Changing, resting: u.Off, unsure: u.Unknown, repaired: u.Maintenance,
	} {
		f.In[s] = d.Milliseconds()
	}
	slices.Reverse(list) // told newest first
	for _, i := range list {
		end := int64(0)
		if !i.End.IsZero() {
			end = i.End.UnixMilli()
		}
		f.Begins, f.Ends, f.Durations = append(f.Begins, i.Begin.UnixMilli()), append(f.Ends, end), append(f.Durations, i.Duration.Milliseconds())
	}
	return f
}

// journalOf reads the whole journal, as GET /updates does.
func journalOf(t interface{ Fatal(...any) }, r *rig) []*statussync.Entry {
	var out []*statussync.Entry
	var after statussync.Cursor
	for {
		list, next, err := r.hub.Updates(context.Background(), after, 500, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			var x statussync.Entry // as a reader of the wire has it
			if err := x.UnmarshalJSON(e.JSON); err != nil {
				t.Fatal(err)
			}
			out = append(out, &x)
		}
		if next == after {
			return out
		}
		after = next
	}
}

// TestUptimeEqualsJournal: random statuses, maintenance, removals and returns, with restarts of the service, of the hub,
// crashes and stores that fail in between, in virtual time; uptime and incidents are in the end those that an
// independent script counts in the journal.
func TestUptimeEqualsJournal(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.IntRange(0, 1<<30), 5, 60).Draw(rt, "steps")
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) { uptimeScript(t, dir, steps) })
	})
}

func uptimeScript(t *testing.T, dir string, steps []int) {
	r := newRig(t, dir)
	r.startHub()
	r.startService()
	defer r.stop()
	began := time.Now()
	ids := []string{"a", "b", "c"}
	here := map[string]bool{"a": true, "b": true, "c": true}
	define := func() {
		var list []string
		for _, id := range ids {
			if here[id] {
				list = append(list, id)
			}
		}
		r.define(list...)
	}
	define()
	window := 0
	for _, n := range steps {
		id := ids[n%3]
		n /= 3
		what := n % 16
		n /= 16
		switch {
		case what < 7:
			if !here[id] {
				break
			}
			st := statussync.States[n%len(statussync.States)]
			h := statussync.Health("")
			if st == statussync.StateRunning {
				h = statussync.Healths[n/8%len(statussync.Healths)]
			}
			r.force(id, st, h)
		case what < 9:
			// Where there is none it is refused, and changes nothing.
			_, _ = r.hub.Submit(context.Background(), &statussync.OverrideClear{ServerID: id, Actor: "t"})
		case what == 9:
			if !here[id] {
				break // a window for nobody is refused
			}
			window++
			now := time.Now()
			r.submit(&statussync.MaintenanceSet{Window: statussync.Maintenance{
				ID: fmt.Sprint("m", window), ServerIDs: []string{id}, StartsAt: now, EndsAt: now.Add(time.Duration(1+n%100) * time.Minute), Actor: "t",
			}})
		case what == 10:
			here[id] = !here[id]
			define()
		case what == 11: // the service alone starts again: what happens meanwhile is in the journal
			r.endSvc()
			if here[id] {
				r.force(id, statussync.StateError, "")
			}
			time.Sleep(time.Duration(n%1000) * time.Second)
			r.startService()
		case what == 12: // all of it
			r.stop()
			r.startHub()
			r.startService()
		case what == 13:
			r.store.fail(errFull, n%2 == 0)
		case what == 14:
			r.store.fail(nil, false)
		}
		time.Sleep(time.Duration(n%10_000) * 137 * time.Millisecond)
	}
	r.store.fail(nil, false)
	time.Sleep(time.Minute) // what failed is tried again
	journal := journalOf(t, r)
	ctx := t.Context()
	for _, w := range []time.Duration{time.Since(began) + time.Hour, time.Since(began) / 2, 2 * time.Minute} {
		w = max(w.Truncate(time.Second), time.Minute)
		now := r.hub.Now().Truncate(time.Millisecond)
		var total, sum statussync.Uptime
		var all []statussync.Incident
		for _, id := range ids {
			u, err := r.s.ServerUptime(ctx, id, w)
			if err != nil {
				t.Fatal(err)
			}
			list, more, err := r.s.Incidents(ctx, statussync.IncidentQuery{ServerID: id, Window: w, Limit: 1000})
			if err != nil || more {
				t.Fatal(more, err)
			}
			all = append(all, list...)
			sum.Add(&u)
			got, want := figuresOf(&u, list), count(journal, id, now.Add(-w), now)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s in the last %v (-script +service):\n%s", id, w, d)
				for _, e := range journal {
					if e.ServerID == id {
						t.Logf("%s %s", e.Timestamp.Format("15:04:05.000"), e.Details)
					}
				}
			}
		}
		total, err := r.s.TotalUptime(ctx, ids, w)
		if err != nil || total != sum {
			t.Errorf("total %+v, sum %+v: %v", total, sum, err)
		}
		// Pages of all servers' incidents are the same list.
		slices.SortFunc(all, newestFirst)
		var paged []statussync.Incident
		q := statussync.IncidentQuery{Window: w, Limit: 2}
		for more := true; more; {
			var list []statussync.Incident
			if list, more, err = r.s.Incidents(ctx, q); err != nil {
				t.Fatal(err)
			}
			paged = append(paged, list...)
			if more {
				q.After = &list[len(list)-1]
			}
		}
		if d := cmp.Diff(len(all), len(paged)); d != "" || !slices.EqualFunc(all, paged, func(a, b statussync.Incident) bool { return a == b }) {
			t.Errorf("pages differ: %v\n%v", all, paged)
		}
	}
	if n := r.s.follow.resyncs.Load(); n != 0 {
		t.Errorf("%d resyncs", n)
	}
}

// TestFirstStart: a journal that is older than the history is read from its beginning, and servers of which it has no
// entry any more count from when their status began.
func TestFirstStart(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, dir)
		r.startHub()
		defer func() { r.endHub() }()
		r.define("a", "b")
		r.force("a", statussync.StateRunning, "")
		r.force("b", statussync.StateRunning, "")
		time.Sleep(time.Hour)
		r.force("a", statussync.StateError, "")
		time.Sleep(time.Hour)
		r.force("a", statussync.StateRunning, "")
		time.Sleep(time.Hour)
		r.startService()
		defer r.endSvc()
		time.Sleep(5 * time.Second)
		u, err := r.s.ServerUptime(t.Context(), "a", 3*time.Hour)
		if err != nil || u.Unavailable != time.Hour || u.Incidents != 1 {
			t.Errorf("%+v %v", u, err)
		}
		if u, err = r.s.ServerUptime(t.Context(), "b", 3*time.Hour); err != nil || u.Available != 3*time.Hour {
			t.Errorf("%+v %v", u, err)
		}
	})
}

// TestGap: where the journal can't be continued, what was steady goes on, and what changed meanwhile is unknown until
// its present status began.
func TestGap(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, dir)
		r.startHub()
		r.define("steady", "changed", "removed", "failing")
		for _, id := range []string{"steady", "changed", "removed"} {
			r.force(id, statussync.StateRunning, "")
		}
		r.force("failing", statussync.StateError, "")
		r.startService()
		time.Sleep(time.Hour)
		r.stop()
		// The journal is lost, and everything begins again without what was said; only the history is kept.
		r.j = newRig(t, dir).j
		time.Sleep(time.Hour)
		r.startHub()
		r.define("steady", "changed", "failing", "new")
		time.Sleep(time.Minute)
		r.force("changed", statussync.StateError, "")
		time.Sleep(time.Minute)
		r.startService()
		defer r.stop()
		time.Sleep(58 * time.Minute)
		for id, want := range map[string]statussync.Uptime{
			"changed": {Available: time.Hour, Unknown: time.Hour + time.Minute, Unavailable: 59 * time.Minute, Incidents: 1},
			"removed": {Available: time.Hour, Unknown: 2 * time.Hour},
			"failing": {Unavailable: time.Hour, Unknown: 2 * time.Hour, Incidents: 1},
			"new":     {Unknown: 3 * time.Hour},
		} {
			u, err := r.s.ServerUptime(t.Context(), id, 3*time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			near := func(name string, got, want time.Duration) {
				t.Helper()
				if d := got - want; d < -15*time.Second || d > 15*time.Second { // the checkpoint is up to 10 s older than the end
					t.Errorf("%s: %s %v, want %v", id, name, got, want)
				}
			}
			near("available", u.Available, want.Available)
			near("unknown", u.Unknown, want.Unknown)
			near("unavailable", u.Unavailable, want.Unavailable)
			if u.Incidents != want.Incidents {
				t.Errorf("%s: %d incidents, want %d", id, u.Incidents, want.Incidents)
			}
		}
		if r.s.Stats().Resyncs != 1 {
			t.Errorf("%+v", r.s.Stats())
		}
	})
}

// TestVolatileEpoch: while the journal fails the follower goes on with what is told, and nothing is lost.
func TestVolatileEpoch(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, dir)
		r.startHub()
		r.startService()
		defer r.stop()
		r.define("a")
		r.force("a", statussync.StateRunning, "")
		time.Sleep(time.Minute)
		r.j.Fail(errFull)
		r.force("a", statussync.StateError, "")
		time.Sleep(time.Minute)
		r.force("a", statussync.StateRunning, "")
		time.Sleep(time.Minute)
		r.j.Fail(nil)
		time.Sleep(time.Minute)
		u, err := r.s.ServerUptime(t.Context(), "a", 4*time.Minute)
		if err != nil || u.Incidents != 1 || u.Unavailable < 50*time.Second || u.Unavailable > 70*time.Second || u.Unknown > 11*time.Second {
			t.Errorf("%+v %v", u, err)
		}
	})
}

func TestUnknownServers(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, dir)
		r.startHub()
		r.startService()
		defer r.stop()
		r.define("a", "b")
		r.force("a", statussync.StateRunning, "")
		time.Sleep(2 * time.Second)
		r.define("b")
		time.Sleep(2 * time.Second)
		ctx := t.Context()
		if u, err := r.s.ServerUptime(ctx, "a", time.Minute); err != nil || u.Available == 0 { // removed, and not forgotten
			t.Errorf("%+v %v", u, err)
		}
		_, err1 := r.s.ServerUptime(ctx, "nobody", time.Minute)
		_, err2 := r.s.Probes(ctx, "nobody", time.Minute, 0)
		_, _, err3 := r.s.Incidents(ctx, statussync.IncidentQuery{ServerID: "nobody", Window: time.Minute, Limit: 1})
		for _, err := range []error{err1, err2, err3} {
			if statussync.CodeOf(err) != statussync.CodeNotFound {
				t.Error(err)
			}
		}
		for _, id := range []string{"a", "b"} {
			if _, err := r.s.Probes(ctx, id, time.Hour, 0); err != nil {
				t.Error(id, err)
			}
			if _, _, err := r.s.Incidents(ctx, statussync.IncidentQuery{ServerID: id, Window: time.Minute, Limit: 1}); err != nil {
				t.Error(id, err)
			}
		}
		for _, w := range []time.Duration{0, -time.Hour, 91 * 24 * time.Hour} {
			if _, err := r.s.ServerUptime(ctx, "a", w); !errors.Is(err, &statussync.Error{Code: statussync.CodeInvalid}) {
				t.Error(w, err)
			}
		}
	})
}

// BenchmarkTotal sums 30 days of 3,000 servers with 100 spans each.
func BenchmarkTotal(b *testing.B) {
	store := openStore(b, b.TempDir(), nil)
	now := time.Now()
	var ids []string
	for i := range 3000 {
		id := serverName(i)
		ids = append(ids, id)
		var spans []statussync.Span
		for k := range 100 {
			c := statussync.SpanAvailable
			if k%2 == 1 {
				c = statussync.SpanUnavailable
			}
			spans = append(spans, statussync.Span{ServerID: id, Begin: now.Add(-time.Duration(rand.IntN(30*24*3600)) * time.Second), Class: c})
		}
		if err := store.PutSpans(b.Context(), spans, statussync.SpanCheckpoint{}, false); err != nil {
			b.Fatal(err)
		}
	}
	s := newService(b, store, nil)
	s.opts.Hub = nowHub{}
	for b.Loop() {
		if _, err := s.TotalUptime(b.Context(), ids, 30*24*time.Hour); err != nil {
			b.Fatal(err)
		}
	}
}

type nowHub struct{ noHub }

func (nowHub) Now() time.Time { return time.Now() }
