package rollup

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/agentopia/statussync"
)

func stretchesOf(list []statussync.Stretch) string {
	var out []string
	for _, x := range list {
		end := ""
		if !x.End.IsZero() {
			end = fmt.Sprint(int(x.End.Sub(day).Seconds()))
		}
		out = append(out, fmt.Sprintf("%d-%s %s %s", int(x.Begin.Sub(day).Seconds()), end, x.Class, x.Reason))
	}
	return strings.Join(out, "; ")
}

// TestStretches: the window is 1000 to 2000 s.
func TestStretches(t *testing.T) {
	for _, c := range []struct{ name, spans, want string }{
		{"nothing", "", ""},
		{"always", "0 available", "1000- available r0"},
		{"begins in it", "1400 available", "1400- available r1400"},
		{"ended at the edge", "0 unavailable, 1000 available", "1000- available r1000"},
		{"cut at the edge", "0 unavailable, 1001 available", "1000-1001 unavailable r0; 1001- available r1001"},
		{"after it", "0 available, 2000 unavailable", "1000- available r0"},
		{"removed", "0 available, 1500 removed", "1000-1500 available r0; 1500- removed r1500"},
	} {
		if got := stretchesOf(Stretches(spansOf(t, c.spans), day.Add(1000*time.Second), day.Add(2000*time.Second))); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestStretchesBound: however a server flaps, a timeline is small, has no hole, and hides no long stretch and no trouble.
func TestStretchesBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := day
		to := day.Add(90 * 24 * time.Hour)
		// Bursts of short spans between long ones, as many as make the most of the bound.
		var spans []statussync.Span
		at, i := from.Add(-time.Hour), 0
		quiet := time.Duration(rapid.Int64Range(int64(time.Second), int64(20*time.Hour)).Draw(t, "quiet"))
		burst := rapid.IntRange(1, 40).Draw(t, "burst")
		for at.Before(to) && len(spans) < 20_000 {
			for range burst {
				spans = append(spans, statussync.Span{ServerID: "a", Begin: at, Class: statussync.SpanClasses[i%len(statussync.SpanClasses)]})
				at = at.Add(time.Duration(1+i%7) * time.Second)
				i++
			}
			spans = append(spans, statussync.Span{ServerID: "a", Begin: at, Class: statussync.SpanAvailable})
			at = at.Add(quiet)
			i++
		}
		list := Stretches(spans, from, to)
		if len(list) > statussync.MaxStretches {
			t.Fatalf("%d stretches", len(list))
		}
		worst := map[statussync.SpanClass]bool{}
		for k, x := range list {
			worst[x.Class] = true
			if k > 0 && !list[k-1].End.Equal(x.Begin) {
				t.Fatalf("a hole at %d: %v, %v", k, list[k-1].End, x.Begin)
			}
			if k == len(list)-1 && !x.End.IsZero() {
				t.Fatalf("the last ends: %+v", x)
			}
		}
		if !list[0].Begin.Equal(from) {
			t.Fatalf("begins at %v", list[0].Begin)
		}
		if burst >= 8 && !worst[statussync.SpanUnavailable] {
			t.Fatal("nothing is unavailable any more")
		}
	})
}

// TestSpansOfStates: a span begins where state or health change, too, and a restart begins none.
func TestSpansOfStates(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.startHub()
	r.startService()
	defer func() { r.stop() }()
	r.define("a")
	r.force("a", statussync.StateStarting, statussync.HealthUnknown)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	<-tick.C
	r.force("a", statussync.StateStopping, statussync.HealthUnknown)
	<-tick.C
	r.force("a", statussync.StateRunning, statussync.HealthUnhealthy)
	followed := func() {
		t.Helper()
		for range 12000 {
			if r.s.Stats().Position.Seq == r.hub.Ready().Head.Seq {
				return
			}
			<-tick.C
		}
		t.Fatal("the follower does not follow")
	}
	states := func() string {
		t.Helper()
		l, err := r.s.Timeline(t.Context(), "a", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, x := range l.Stretches {
			out = append(out, fmt.Sprintf("%s/%s/%s", x.Class, x.State, x.Health))
		}
		return strings.Join(out, " ")
	}
	followed()
	want := "changing/starting/unknown changing/stopping/unknown unavailable/running/unhealthy"
	if got := states(); !strings.HasSuffix(got, want) {
		t.Errorf("%s, want … %s", got, want)
	}
	before := states()
	r.stop()
	r.startHub()
	r.startService()
	followed()
	if got := states(); got != before {
		t.Errorf("after a restart %s, before %s", got, before)
	}
	if _, err := r.s.Timeline(t.Context(), "nobody", time.Hour); statussync.CodeOf(err) != statussync.CodeNotFound {
		t.Error(err)
	}
	if _, err := r.s.Timeline(t.Context(), "a", 91*24*time.Hour); statussync.CodeOf(err) != statussync.CodeInvalid {
		t.Error(err)
	}
}
