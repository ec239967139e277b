package rollup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
)

// observer takes everything, or refuses it.
type observer struct {
	statussync.Observer
	err error
}

func (o observer) Observe(context.Context, ...statussync.Observation) error { return o.err }

func probed(id string, at time.Time, latency time.Duration, ok bool) *statussync.ProbeResult {
	r := &statussync.ProbeResult{ServerID: id, Outcome: statussync.OutcomeSuccess, Latency: latency, StartedAt: at.Add(-latency), FinishedAt: at}
	if !ok {
		r.Outcome = statussync.OutcomeFailure
	}
	return r
}

func observe(t testing.TB, s *Service, obs ...statussync.Observation) {
	t.Helper()
	if err := s.Observer(observer{}).Observe(context.Background(), obs...); err != nil {
		t.Fatal(err)
	}
}

// exact is the quantile as the sketch means it: the value of rank floor(q (n − 1)).
func exact(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)-1))]
}

// TestQuantiles: 100,000 skewed latencies of three kinds, counted as probes over 26 hours, stored by minute, merged
// into hours and then into windows, give quantiles within 2 % of the exact ones; counts are exact.
func TestQuantiles(t *testing.T) {
	for name, draw := range map[string]func(*rand.Rand) float64{ // ms
		"lognormal": func(r *rand.Rand) float64 { return math.Exp(r.NormFloat64()*1.2 + 3) },
		"bimodal": func(r *rand.Rand) float64 {
			if r.IntN(10) == 0 {
				return 900 + 100*r.NormFloat64()*r.NormFloat64()
			}
			return 4 + r.Float64()
		},
		"pareto": func(r *rand.Rand) float64 { return 2 * math.Pow(1-r.Float64(), -1/1.1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			r := rand.New(rand.NewPCG(1, 2))
			c := &clock{}
			s := newService(t, openStore(t, t.TempDir(), c.now), c.now)
			end := day.Add(26 * time.Hour)
			byHour := map[int64][]time.Duration{}
			var newest, all []time.Duration // of the newest 24 hours, and of all
			const n = 100_000
			for i := range n {
				at := day.Add(time.Duration(i) * (26 * time.Hour / n))
				if r.IntN(3) == 0 { // some share a minute, some lie apart
					at = at.Truncate(time.Minute)
				}
				d := time.Duration(math.Abs(draw(r)) * float64(time.Millisecond))
				c.set(at)
				observe(t, s, probed("a", at, d, true))
				if i%50 == 0 {
					observe(t, s, probed("a", at, 10*time.Second, false)) // a timeout: no latency of the server's
				}
				if i%5000 == 0 {
					if err := s.flush(ctx, false); err != nil {
						t.Fatal(err)
					}
				}
				byHour[at.Unix()/3600] = append(byHour[at.Unix()/3600], d)
				all = append(all, d)
				if !at.Before(end.Add(-24 * time.Hour)) {
					newest = append(newest, d)
				}
			}
			c.set(end)
			if err := s.flush(ctx, false); err != nil {
				t.Fatal(err)
			}
			check := func(what string, got statussync.ProbeStep, want []time.Duration) {
				t.Helper()
				slices.Sort(want)
				if got.Count-got.Failures != uint64(len(want)) {
					t.Errorf("%s: %d of %d counted", what, got.Count-got.Failures, len(want))
				}
				for _, q := range []struct {
					q   float64
					got time.Duration
				}{{0.5, got.P50}, {0.95, got.P95}, {0.99, got.P99}} {
					w := exact(want, q.q)
					if off := math.Abs(float64(q.got-w)) / float64(w); off > 0.02 {
						t.Errorf("%s: p%v is %v, exactly %v: off by %.2f %%", what, 100*q.q, q.got, w, 100*off)
					}
				}
			}
			// To the nanosecond: steps begin at whole minutes, and "now" is one.
			minutes, err := s.Probes(ctx, "a", 24*time.Hour, time.Hour)
			if err != nil || minutes.Resolution != statussync.ResolutionMinute || len(minutes.Steps) != 24 {
				t.Fatalf("%d steps of %s: %v", len(minutes.Steps), minutes.Resolution, err)
			}
			check("24h of minutes", minutes.Total, newest)
			for _, st := range minutes.Steps {
				check("an hour of minutes", st, byHour[st.Start.Unix()/3600])
			}
			hours, err := s.Probes(ctx, "a", 30*24*time.Hour, 0)
			if err != nil || hours.Resolution != statussync.ResolutionHour || len(hours.Steps) != 26 || hours.Step != time.Hour {
				t.Fatalf("%d steps of %s: %v", len(hours.Steps), hours.Resolution, err)
			}
			if hours.Total.Failures != n/50 {
				t.Errorf("%d failures", hours.Total.Failures)
			}
			check("30d of hours", hours.Total, all)
			for _, st := range hours.Steps {
				check("an hour", st, byHour[st.Start.Unix()/3600])
			}
		})
	}
}

// TestMinuteFlush: with the clock as it runs, a minute is stored once it has ended, the one that runs when the service
// stops, and a restart within a minute merges with what is there.
func TestMinuteFlush(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		run := func(f func(s *Service)) {
			store := openStore(t, dir, nil)
			r := newRig(t, dir)
			r.startHub()
			s, err := New(Options{Store: store, Hub: r.hub})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- s.Run(ctx) }()
			f(s)
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			store.Close()
			r.endHub()
		}
		stored := func(s *Service, want ...uint64) {
			t.Helper()
			var got []uint64
			if err := s.opts.Store.Minutes(t.Context(), time.Time{}.AddDate(1970, 0, 0), time.Now().Add(time.Hour), func(r statussync.ProbeRow) error {
				got = append(got, r.Count)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, want) {
				t.Errorf("stored %v, want %v", got, want)
			}
		}
		total := func(s *Service, want uint64) {
			t.Helper()
			r, err := s.Probes(t.Context(), "a", time.Hour, 0)
			if err != nil || r.Total.Count != want {
				t.Errorf("%d probes are told, want %d: %v", r.Total.Count, want, err)
			}
		}
		hit := func(s *Service) { observe(t, s, probed("a", time.Now(), 20*time.Millisecond, true)) }
		run(func(s *Service) {
			time.Sleep(time.Until(time.Now().Truncate(time.Minute).Add(time.Minute)))
			hit(s)
			time.Sleep(30 * time.Second)
			hit(s)
			stored(s)
			total(s, 2) // what is not stored yet is told as well
			time.Sleep(29 * time.Second)
			stored(s)
			time.Sleep(4 * time.Second)
			stored(s, 2)
			total(s, 2)
			hit(s)
			total(s, 3)
		})
		run(func(s *Service) {
			stored(s, 2, 1)
			hit(s)
			total(s, 4)
			time.Sleep(time.Minute)
			stored(s, 2, 2)
			total(s, 4)
		})
	})
}

// TestNothingTwice: whatever fails at whatever step, in the end every probe is counted once.
func TestNothingTwice(t *testing.T) {
	ctx := t.Context()
	c := &clock{t: day}
	store := &faulty{Store: openStore(t, t.TempDir(), c.now)}
	s := newService(t, store, c.now)
	r := rand.New(rand.NewPCG(3, 4))
	var want uint64
	for n := range 150 {
		observe(t, s, probed(serverName(r.IntN(3)), c.now(), 5*time.Millisecond, r.IntN(4) > 0))
		if r.IntN(10) == 0 { // a straggler of the minute before
			observe(t, s, probed("s0", c.now().Add(-time.Minute), 5*time.Millisecond, true))
			want++
		}
		want++
		c.set(c.now().Add(time.Duration(r.IntN(50)) * time.Second))
		store.fail(nil, false)
		if r.IntN(3) == 0 {
			store.fail(errFull, r.IntN(2) == 0)
		}
		if err := s.flush(ctx, r.IntN(4) == 0); err != nil && !errors.Is(err, errFull) {
			t.Fatal(err)
		}
		if r.IntN(20) == 0 { // another process, after a clean stop
			store.fail(nil, false)
			if err := s.flush(ctx, true); err != nil {
				t.Fatal(err)
			}
			s = newService(t, store, c.now)
		}
		if n%10 > 0 {
			continue
		}
		var got uint64
		for i := range 3 {
			rep, err := s.Probes(ctx, serverName(i), 6*time.Hour, time.Hour)
			if err != nil && statussync.CodeOf(err) != statussync.CodeNotFound {
				t.Fatal(err)
			}
			got += rep.Total.Count
		}
		if got != want {
			t.Fatalf("%d probes are told of %d", got, want)
		}
	}
	store.fail(nil, false)
	c.set(c.now().Add(2 * time.Hour))
	if err := s.flush(ctx, false); err != nil {
		t.Fatal(err)
	}
	var got uint64
	for i := range 3 {
		rep, err := s.Probes(ctx, serverName(i), 60*24*time.Hour, 24*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		got += rep.Total.Count
	}
	if got != want {
		t.Fatalf("hours have %d probes of %d", got, want)
	}
}

// TestStoreFails: a store that fails holds nobody up, memory is bounded, what is dropped is the oldest and counted, and
// the rest is stored when it works again.
func TestStoreFails(t *testing.T) {
	ctx := t.Context()
	c := &clock{t: day}
	store := &faulty{Store: openStore(t, t.TempDir(), c.now)}
	s := newService(t, store, c.now)
	s.probes.limit = 100
	store.fail(errFull, false)
	for range 30 {
		for i := range 10 {
			observe(t, s, probed(serverName(i), c.now(), time.Millisecond, true))
		}
		if err := s.flush(ctx, false); c.now() != day && !errors.Is(err, errFull) {
			t.Fatal(err)
		}
		c.set(c.now().Add(time.Minute))
	}
	if st := s.Stats(); st.Dropped != 200 || st.Waiting != 100 {
		t.Errorf("%+v", st)
	}
	store.fail(nil, false)
	if err := s.flush(ctx, false); err != nil {
		t.Fatal(err)
	}
	rep, err := s.Probes(ctx, "s3", time.Hour, 0)
	if err != nil || rep.Total.Count != 10 || !rep.Steps[0].Start.Equal(day.Add(20*time.Minute)) {
		t.Errorf("%+v %v", rep, err)
	}
	if st := s.Stats(); st.Waiting != 0 {
		t.Errorf("%+v", st)
	}
}

// TestOnlyWhatWasTaken: a result that the hub refused is not counted.
func TestOnlyWhatWasTaken(t *testing.T) {
	s := newService(t, openStore(t, t.TempDir(), nil), nil)
	if err := s.Observer(observer{err: errFull}).Observe(t.Context(), probed("a", time.Now(), 1, true)); !errors.Is(err, errFull) {
		t.Error(err)
	}
	if _, err := s.Probes(t.Context(), "a", time.Hour, 0); statussync.CodeOf(err) != statussync.CodeNotFound {
		t.Error(err)
	}
}

func TestProbesQuery(t *testing.T) {
	s := newService(t, openStore(t, t.TempDir(), nil), nil)
	observe(t, s, probed("a", time.Now(), 0, false), probed("a", time.Now(), 0, true))
	for _, c := range []struct {
		window, step time.Duration
		at, says     string
	}{
		{time.Hour, time.Minute, "", ""},
		{48 * time.Hour, time.Minute, "", ""},
		{90 * 24 * time.Hour, time.Hour, "", ""},
		{90 * 24 * time.Hour, 24 * time.Hour, "", ""},
		{time.Second, 0, "window", "at least 1m"},
		{-time.Hour, 0, "window", "at least 1m"},
		{91 * 24 * time.Hour, 0, "window", "at most 90d"},
		{time.Hour, 90 * time.Second, "step", "whole number of minutes, at least 1m"},
		{time.Hour, time.Second, "step", "at least 1m"},
		{time.Hour, -time.Minute, "step", "at least 1m"},
		{49 * time.Hour, time.Minute, "step", "whole number of hours, at least 1h"},
		{49 * time.Hour, 90 * time.Minute, "step", "whole number of hours"},
		{time.Hour, 100 * 24 * time.Hour, "step", "at most 90d"},
	} {
		t.Run(fmt.Sprint(c.window, c.step), func(t *testing.T) {
			r, err := s.Probes(t.Context(), "a", c.window, c.step)
			if c.at == "" {
				if err != nil || len(r.Steps) != 1 || r.Total.Count != 2 || r.Total.Failures != 1 {
					t.Errorf("%+v %v", r, err)
				}
				return
			}
			var e *statussync.Error
			if !errors.As(err, &e) || e.Code != statussync.CodeInvalid || e.Location != c.at || !contains(e.Detail, c.says) {
				t.Errorf("%v", err)
			}
		})
	}
}

func contains(s, part string) bool {
	for i := 0; i+len(part) <= len(s); i++ {
		if s[i:i+len(part)] == part {
			return true
		}
	}
	return false
}

// TestSketchSize: a minute's row is small, and so is an hour's.
func TestSketchSize(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	s := NewSketch()
	for _, c := range []struct{ samples, most int }{{1, 8}, {2, 10}, {6, 24}, {120, 220}} {
		s.Clear()
		for range c.samples {
			s.Add(time.Duration(math.Exp(r.NormFloat64()*0.5+3) * float64(time.Millisecond)))
		}
		if n := len(s.Append(nil)); n > c.most {
			t.Errorf("%d samples take %d bytes", c.samples, n)
		}
	}
}

// FuzzSketch: whatever a file holds is merged or refused.
func FuzzSketch(f *testing.F) {
	s := NewSketch()
	s.Add(0)
	f.Add(s.Append(nil))
	for i := range 50 {
		s.Add(time.Duration(i*i) * time.Millisecond)
	}
	f.Add(s.Append(nil))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := NewSketch()
		if s.Merge(b) != nil {
			return
		}
		for _, d := range s.Quantiles(0, 0.5, 1) {
			_ = d
		}
		if len(s.Append(nil)) > maxSketchBytes {
			t.Error("grew beyond its bound")
		}
	})
}

// BenchmarkFlush stores the minute of 10,000 servers with 2 probes each.
func BenchmarkFlush(b *testing.B) {
	c := &clock{t: day}
	s := newService(b, openStore(b, b.TempDir(), c.now), c.now)
	for b.Loop() {
		b.StopTimer()
		obs := make([]statussync.Observation, 0, 20_000)
		for i := range 10_000 {
			for range 2 {
				obs = append(obs, probed(serverName(i), c.now(), time.Duration(rand.IntN(100)+1)*time.Millisecond, true))
			}
		}
		observe(b, s, obs...)
		p := s.probes.seal(0, true)
		b.StartTimer()
		if err := s.store(b.Context(), p); err != nil {
			b.Fatal(err)
		}
		c.set(c.now().Add(time.Minute))
	}
}

// BenchmarkQuery asks for 48 h of one server by 5 minutes in a store of 3,000 servers' minutes.
func BenchmarkQuery(b *testing.B) {
	c := &clock{t: day}
	dir := b.TempDir()
	store := openStore(b, dir, c.now)
	s := newService(b, store, c.now)
	sk := NewSketch()
	sk.Add(20 * time.Millisecond)
	sk.Add(25 * time.Millisecond)
	sketch := sk.Append(nil)
	rows := make([]statussync.ProbeRow, 3000)
	for m := range 48 * 60 {
		at := day.Add(time.Duration(m-48*60) * time.Minute)
		for i := range rows {
			rows[i] = statussync.ProbeRow{ServerID: serverName(i), Start: at, Count: 2, Sketch: sketch}
		}
		if err := store.PutMinutes(b.Context(), "bench", uint64(m+1), rows); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		r, err := s.Probes(b.Context(), serverName(rand.IntN(3000)), 48*time.Hour, 5*time.Minute)
		if err != nil || r.Total.Count < 2*2879 {
			b.Fatal(r.Total, err)
		}
	}
	fi, err := os.Stat(filepath.Join(dir, "history.db"))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(fi.Size())/float64(48*60*len(rows)), "bytes/row")
}

// TestClockAhead: after the wall clock was days ahead for a while, probes are counted again soon, and not only when it is
// there once more.
func TestClockAhead(t *testing.T) {
	c := &clock{t: day}
	h := openStore(t, t.TempDir(), c.now)
	s := newService(t, h, c.now)
	probe := func() {
		t.Helper()
		s.probes.add(&statussync.ProbeResult{ServerID: "a", Outcome: statussync.OutcomeSuccess, Latency: time.Millisecond}, minuteOf(c.now()))
		c.set(c.now().Add(time.Minute))
		if err := s.flush(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	// keepHouse is one round of the store's.
	keepHouse := func(done func(statussync.ProbeMarks) bool) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.Run(ctx) }()
		for {
			m, err := h.Marks(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if done(m) {
				break
			}
			runtime.Gosched()
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	probe()
	c.set(day.Add(5 * 24 * time.Hour))
	probe()
	keepHouse(func(m statussync.ProbeMarks) bool { return m.MinutesFrom.After(day) })
	back := day.Add(10 * time.Minute)
	c.set(back)
	keepHouse(func(m statussync.ProbeMarks) bool { return !m.MinutesFrom.After(back) })
	probe()
	r, err := s.Probes(t.Context(), "a", time.Hour, 0)
	if n := len(r.Steps); err != nil || n == 0 || !r.Steps[n-1].Start.Equal(back) || s.Stats().Dropped != 0 {
		t.Errorf("%+v, %v; %d dropped", r.Steps, err, s.Stats().Dropped)
	}
}
