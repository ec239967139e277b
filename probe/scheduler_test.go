package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is an Observer that keeps what it is given.
type recorder struct {
	mu      sync.Mutex
	results []*statussync.ProbeResult
	batches []int
	gate    chan struct{} // if not nil, Observe waits until it is closed
	err     error
}

func (r *recorder) Observe(ctx context.Context, obs ...statussync.Observation) error {
	r.mu.Lock()
	gate, err := r.gate, r.err
	r.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batches = append(r.batches, len(obs))
	for _, o := range obs {
		r.results = append(r.results, o.(*statussync.ProbeResult))
	}
	return nil
}

func (r *recorder) TryObserve(...statussync.Observation) error { return errors.ErrUnsupported }

func (r *recorder) Submit(context.Context, ...statussync.Observation) ([]*statussync.Entry, error) {
	return nil, errors.ErrUnsupported
}

func (r *recorder) of(id string) []*statussync.ProbeResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*statussync.ProbeResult
	for _, p := range r.results {
		if p.ServerID == id {
			out = append(out, p)
		}
	}
	return out
}

// host is a prober in virtual time that answers as each server's behaviour says, and checks the limits all the while.
type host struct {
	mu       sync.Mutex
	behave   func(p *statussync.ProbePlan) (statussync.Outcome, time.Duration) // by default a success at once
	inFlight map[string]int                                                    // by server
	byEnv    map[string]int
	all      int
	maxAll   int
	maxEnv   int
	maxOne   int
	plans    []statussync.ProbePlan
	canceled int
}

func newHost() *host { return &host{inFlight: map[string]int{}, byEnv: map[string]int{}} }

func (h *host) probe(ctx context.Context, p *statussync.ProbePlan) statussync.ProbeResult {
	env := p.EnvironmentID
	h.mu.Lock()
	h.plans = append(h.plans, *p)
	h.inFlight[p.ServerID]++
	h.byEnv[env]++
	h.all++
	h.maxOne = max(h.maxOne, h.inFlight[p.ServerID])
	h.maxEnv = max(h.maxEnv, h.byEnv[env])
	h.maxAll = max(h.maxAll, h.all)
	out, wait := statussync.OutcomeSuccess, time.Duration(0)
	if h.behave != nil {
		out, wait = h.behave(p)
	}
	h.mu.Unlock()
	res := statussync.ProbeResult{Outcome: out, StartedAt: time.Now()}
	if wait > 0 {
		select {
		case <-time.After(min(wait, p.Timeout)):
		case <-ctx.Done():
			h.mu.Lock()
			h.canceled++
			h.mu.Unlock()
			res.Outcome, res.Cause = statussync.OutcomeFailure, "canceled"
		}
	}
	if wait > p.Timeout {
		res.Outcome, res.Cause = statussync.OutcomeFailure, "timeout"
	}
	res.FinishedAt = time.Now()
	h.mu.Lock()
	h.inFlight[p.ServerID]--
	h.byEnv[env]--
	h.all--
	h.mu.Unlock()
	return res
}

// seen is what a host counted.
type seen struct {
	maxAll, maxEnv, maxOne, canceled int
	plans                            []statussync.ProbePlan
}

func (h *host) see() seen {
	h.mu.Lock()
	defer h.mu.Unlock()
	return seen{h.maxAll, h.maxEnv, h.maxOne, h.canceled, slices.Clone(h.plans)}
}

func (r *recorder) all() []*statussync.ProbeResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.results)
}

// run starts a scheduler in the bubble; stop ends it and waits.
func run(t testing.TB, o Options, h *host, to *recorder) (s *Scheduler, stop func()) {
	t.Helper()
	o.Probers = map[statussync.ProbeKind]statussync.Prober{statussync.ProbeHTTP: h.probe}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx, to); err != nil {
			t.Error(err)
		}
	}()
	synctest.Wait()
	return s, func() { cancel(); <-done }
}

func planOf(id, env string, every time.Duration) statussync.Request {
	return statussync.Request{Plan: &statussync.ProbePlan{
		ServerID: id, EnvironmentID: env, Kind: statussync.ProbeHTTP, URL: "http://" + id + ".example/health",
		Interval: every, Timeout: 10 * time.Second,
	}}
}

func now(id string, after, timeout time.Duration) statussync.Request {
	return statussync.Request{Probe: &statussync.ProbeNow{ServerID: id, After: after, Timeout: timeout}}
}

func pass(d time.Duration) {
	time.Sleep(d) // virtual
	synctest.Wait()
}

func TestCadenceAndJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &recorder{}
		s, stop := run(t, Options{}, newHost(), to)
		defer stop()
		s.Do([]statussync.Request{planOf("a", "e", 30*time.Second)})
		pass(time.Hour)
		got := to.of("a")
		if len(got) < 110 || len(got) > 130 {
			t.Fatalf("%d probes in an hour", len(got))
		}
		gaps := map[time.Duration]bool{}
		for i := 1; i < len(got); i++ {
			gap := got[i].StartedAt.Sub(got[i-1].StartedAt)
			if gap < 27*time.Second || gap > 33*time.Second+time.Millisecond {
				t.Errorf("gap of %s", gap)
			}
			gaps[gap] = true
		}
		if len(gaps) < 50 {
			t.Error("there is no jitter")
		}
	})
}

func TestFirstProbesAreSpread(t *testing.T) {
	for _, early := range []bool{false, true} { // plans may come long before Run
		synctest.Test(t, func(t *testing.T) {
			to, h := &recorder{}, newHost()
			s, err := New(Options{Probers: map[statussync.ProbeKind]statussync.Prober{statussync.ProbeHTTP: h.probe}})
			if err != nil {
				t.Fatal(err)
			}
			give := func() {
				for i := range 1000 {
					s.Do([]statussync.Request{planOf(fmt.Sprint("s", i), fmt.Sprint("e", i/20), 10*time.Second)})
				}
			}
			if early {
				give()
				pass(time.Minute)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			begin := time.Now()
			go func() { done <- s.Run(ctx, to) }()
			synctest.Wait()
			if !early {
				give()
			}
			pass(10 * time.Second)
			cancel()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			perSecond, seen := map[int]int{}, map[string]bool{}
			for _, r := range to.all() {
				if !seen[r.ServerID] {
					seen[r.ServerID] = true
					perSecond[int(r.StartedAt.Sub(begin)/time.Second)]++
				}
			}
			for i := range 10 {
				if n := perSecond[i]; n < 90 || n > 110 {
					t.Errorf("early %v: %d first probes in second %d", early, n, i)
				}
			}
		})
	}
}

func TestChangedInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &recorder{}
		s, stop := run(t, Options{}, newHost(), to)
		defer stop()
		s.Do([]statussync.Request{planOf("a", "e", time.Minute)})
		pass(time.Minute)
		last := to.of("a")[0]
		pass(2 * time.Second)
		s.Do([]statussync.Request{planOf("a", "e", 10*time.Second)})
		pass(10*time.Second + time.Minute)
		got := to.of("a")
		if gap := got[1].StartedAt.Sub(last.StartedAt); gap > max(10*time.Second, 63*time.Second) || len(got) < 6 {
			t.Errorf("the next probe came %s after the last, %d in all", gap, len(got))
		}
		// Shorter: due at most the new interval after the last, or at once where that has passed.
		n := len(got)
		at := time.Now()
		s.Do([]statussync.Request{planOf("a", "e", 5*time.Minute)})
		pass(time.Millisecond)
		s.Do([]statussync.Request{planOf("a", "e", time.Second)})
		pass(time.Second)
		if got = to.of("a"); len(got) == n || got[n].StartedAt.Sub(at) > time.Second {
			t.Error("a shorter interval did not apply at once")
		}
		// Longer: no probe before 0.9 of it.
		n = len(got)
		at = got[n-1].StartedAt
		s.Do([]statussync.Request{planOf("a", "e", 5*time.Minute)})
		pass(10 * time.Minute)
		if got = to.of("a"); len(got) < n+1 || got[n].StartedAt.Sub(at) < 4*time.Minute {
			t.Error("a longer interval did not apply")
		}
	})
}

func TestChangedURL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{}, newHost()
		h.behave = func(p *statussync.ProbePlan) (statussync.Outcome, time.Duration) {
			if p.URL == "http://new.example/" {
				return statussync.OutcomeSuccess, 0
			}
			return statussync.OutcomeSuccess, time.Hour
		}
		s, stop := run(t, Options{}, h, to)
		defer stop()
		s.Do([]statussync.Request{planOf("a", "e", time.Minute), now("a", 0, 0)})
		pass(time.Second)
		p := planOf("a", "e", time.Minute)
		p.Plan.URL = "http://new.example/"
		s.Do([]statussync.Request{p})
		pass(1100 * time.Millisecond)
		got := to.of("a")
		if len(got) != 1 || got[0].Outcome != statussync.OutcomeSuccess || h.see().canceled != 1 || h.see().maxOne != 1 {
			t.Errorf("%d results, %d canceled, %d at once", len(got), h.see().canceled, h.see().maxOne)
		}
	})
}

// A result that waits for the Observer when the plan's address changes is about the old one, and is not handed over.
func TestChangedURLDropsWaitingResults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{gate: make(chan struct{})}, newHost()
		s, stop := run(t, Options{}, h, to)
		defer stop()
		s.Do([]statussync.Request{planOf("first", "e", time.Hour), planOf("a", "e", time.Hour), now("first", 0, 0)})
		pass(time.Second) // the Observer is busy with the first
		s.Do([]statussync.Request{now("a", 0, 0)})
		pass(time.Second)
		changed := time.Now()
		p := planOf("a", "e", time.Hour)
		p.Plan.URL = "http://new.example/"
		s.Do([]statussync.Request{p})
		pass(time.Second)
		close(to.gate)
		pass(3 * time.Second)
		if got := to.of("a"); len(got) != 1 || got[0].StartedAt.Before(changed) {
			t.Errorf("%d results, %+v", len(got), got)
		}
	})
}

func TestProbeNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{}, newHost()
		s, stop := run(t, Options{}, h, to)
		defer stop()
		s.Do([]statussync.Request{planOf("a", "e", time.Hour)})
		begin := time.Now()
		s.Do([]statussync.Request{
			now("a", 7*time.Second, 0), now("a", 0, 0), now("a", 0, 2*time.Second), now("a", 0, 0),
			now("a", 3*time.Second, 0), now("a", 3*time.Second, 0), now("nobody", 0, 0),
		})
		pass(10 * time.Second)
		var at []time.Duration
		for _, r := range to.of("a") {
			at = append(at, r.StartedAt.Sub(begin))
		}
		if want := []time.Duration{0, 3 * time.Second, 7 * time.Second}; !slices.Equal(at, want) {
			t.Errorf("probes at %v, want %v", at, want)
		}
		if h.see().plans[0].Timeout != 2*time.Second || h.see().plans[1].Timeout != 10*time.Second {
			t.Errorf("timeouts %s, %s", h.see().plans[0].Timeout, h.see().plans[1].Timeout)
		}
		// Far too many: bounded, and none is forgotten altogether.
		for i := range 1000 {
			s.Do([]statussync.Request{now("a", time.Duration(i)*time.Millisecond, 0)})
		}
		s.mu.Lock()
		if n := len(s.targets["a"].once); n > maxOnce {
			t.Errorf("%d wait", n)
		}
		s.mu.Unlock()
		before := len(to.of("a"))
		pass(2 * time.Second)
		if n := len(to.of("a")) - before; n < 1 || n > maxOnce {
			t.Errorf("%d probes", n)
		}
	})
}

// A question that wants its answer in 2 s does not wait behind a probe that may take 10.
func TestSampleReplacesAHangingProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{}, newHost()
		h.behave = func(*statussync.ProbePlan) (statussync.Outcome, time.Duration) {
			return statussync.OutcomeFailure, time.Hour
		}
		s, stop := run(t, Options{}, h, to)
		defer stop()
		s.Do([]statussync.Request{planOf("a", "e", time.Hour), now("a", 0, 0)})
		pass(time.Second)
		asked := time.Now()
		s.Do([]statussync.Request{now("a", 0, 2*time.Second)})
		pass(2 * time.Second)
		got := to.of("a")
		if len(got) != 1 || got[0].FinishedAt.Sub(asked) != 2*time.Second || got[0].StartedAt.Before(asked) || h.see().maxOne != 1 {
			t.Errorf("%d results, %+v", len(got), got)
		}
		for range 10 { // asked again and again, it is still answered
			s.Do([]statussync.Request{now("a", 0, 2*time.Second)})
			pass(time.Second)
		}
		if n := len(to.of("a")); n != 6 {
			t.Errorf("%d results after 10 more seconds", n)
		}
	})
}

// All servers of a host hang, and all are asked at once for an answer within 2 s: they are not put off as slow ones are.
func TestSampleOfSlowServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{}, newHost()
		h.behave = func(*statussync.ProbePlan) (statussync.Outcome, time.Duration) {
			return statussync.OutcomeFailure, time.Hour
		}
		s, stop := run(t, Options{PerEnvironment: 16}, h, to)
		defer stop()
		var plans, sample []statussync.Request
		for i := range 16 {
			id := fmt.Sprint("s", i)
			plans = append(plans, planOf(id, "e", 10*time.Second))
			sample = append(sample, now(id, 0, 2*time.Second))
		}
		s.Do(plans)
		pass(65 * time.Second) // some are in flight, some wait in the slow lane
		asked := time.Now()
		s.Do(sample)
		pass(2 * time.Second)
		answered := 0
		for _, r := range to.all() {
			if !r.StartedAt.Before(asked) {
				answered++
			}
		}
		if answered != 16 {
			t.Errorf("%d of 16 answered within 2 s", answered)
		}
	})
}

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{}, newHost()
		h.behave = func(*statussync.ProbePlan) (statussync.Outcome, time.Duration) {
			return statussync.OutcomeSuccess, 500 * time.Millisecond
		}
		s, stop := run(t, Options{Concurrency: 50, PerEnvironment: 4}, h, to)
		defer stop()
		for i := range 400 {
			s.Do([]statussync.Request{planOf(fmt.Sprint("s", i), fmt.Sprint("e", i%20), time.Second)})
		}
		pass(time.Minute)
		if h.see().maxAll != 50 || h.see().maxEnv != 4 || h.see().maxOne != 1 {
			t.Errorf("at most %d, %d of one environment, %d of one server", h.see().maxAll, h.see().maxEnv, h.see().maxOne)
		}
		seen := map[string]int{}
		for _, r := range to.all() {
			seen[r.ServerID]++
		}
		// 100 probes a second for 400 servers: each gets its turn every 4 s.
		for i := range 400 {
			if n := seen[fmt.Sprint("s", i)]; n < 10 || n > 20 {
				t.Errorf("s%d was probed %d times", i, n)
			}
		}
		if st := s.Stats(); st.Workers > 50 || st.Waiting == 0 || st.Targets != 400 {
			t.Errorf("%+v", st)
		}
	})
}

func TestServersWithoutEnvironmentShareTheirHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{}, newHost()
		h.behave = func(*statussync.ProbePlan) (statussync.Outcome, time.Duration) {
			return statussync.OutcomeSuccess, 900 * time.Millisecond
		}
		s, stop := run(t, Options{PerEnvironment: 3}, h, to)
		defer stop()
		for i := range 30 {
			r := planOf(fmt.Sprint("s", i), "", time.Second)
			r.Plan.URL = fmt.Sprintf("http://box.example:%d/", 9000+i)
			s.Do([]statussync.Request{r})
		}
		pass(10 * time.Second)
		if h.see().maxAll != 3 {
			t.Errorf("%d at once on one host", h.see().maxAll)
		}
	})
}

// Of 2,000 servers 2 % hang and 3 % refuse: nobody else is late. Once they are everywhere, once on few hosts, and once
// there are more of them than places.
func TestNobodyWaitsForAHangingServer(t *testing.T) {
	for _, c := range []struct {
		name    string
		hangs   func(i int) bool
		perEnv  int
		minutes int
	}{
		{"everywhere", func(i int) bool { return i%50 == 0 }, 20, 5},
		{"on two hosts", func(i int) bool { return i < 40 }, 20, 5},
		{"more than places", func(i int) bool { return i%3 == 0 }, 20, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				to, h := &recorder{}, newHost()
				var index sync.Map
				h.behave = func(p *statussync.ProbePlan) (statussync.Outcome, time.Duration) {
					v, _ := index.Load(p.ServerID)
					switch i := v.(int); {
					case c.hangs(i):
						return statussync.OutcomeFailure, time.Hour
					case i%33 == 1:
						return statussync.OutcomeFailure, time.Millisecond
					}
					return statussync.OutcomeSuccess, 5 * time.Millisecond
				}
				s, stop := run(t, Options{}, h, to)
				defer stop()
				var reqs []statussync.Request
				for i := range 2000 {
					id := fmt.Sprint("s", i)
					index.Store(id, i)
					every := 30 * time.Second
					if c.hangs(i) {
						every = 10 * time.Second // what is unhealthy is asked more often
					}
					reqs = append(reqs, planOf(id, fmt.Sprint("e", i/c.perEnv), every))
				}
				s.Do(reqs)
				// Until every hanging server was met once it is not known to be one.
				pass(45 * time.Second)
				learned := time.Now()
				pass(time.Duration(c.minutes) * time.Minute)
				last := map[string]time.Time{}
				worst := time.Duration(0)
				for _, r := range to.all() {
					if v, _ := index.Load(r.ServerID); c.hangs(v.(int)) {
						continue
					}
					if p, ok := last[r.ServerID]; ok && p.After(learned) {
						worst = max(worst, r.StartedAt.Sub(p)-33*time.Second)
					}
					last[r.ServerID] = r.StartedAt
				}
				if worst > 100*time.Millisecond {
					t.Errorf("somebody was %s late", worst)
				}
				for id, at := range last {
					if time.Since(at) > 34*time.Second {
						t.Errorf("%s was last probed %s ago", id, time.Since(at))
					}
				}
				if h.see().maxEnv > 16 || h.see().maxAll > 512 || h.see().maxOne > 1 {
					t.Errorf("limits: %d %d %d", h.see().maxAll, h.see().maxEnv, h.see().maxOne)
				}
			})
		})
	}
}

func TestCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{}, newHost()
		wait := time.Second
		h.behave = func(*statussync.ProbePlan) (statussync.Outcome, time.Duration) {
			return statussync.OutcomeAlive, wait
		}
		s, stop := run(t, Options{}, h, to)
		none := planOf("none", "e", time.Hour)
		none.Plan.Kind = statussync.ProbeNone
		other := planOf("mcp", "e", time.Hour)
		other.Plan.Kind = statussync.ProbeMCP
		s.Do([]statussync.Request{planOf("a", "e", time.Hour), planOf("b", "e", time.Hour), none, other})
		for id, want := range map[string]statussync.Code{
			"nobody": statussync.CodeNotFound, "none": statussync.CodeConflict, "mcp": statussync.CodeConflict,
		} {
			if _, err := s.Check(t.Context(), id); statussync.CodeOf(err) != want {
				t.Errorf("%s: %v", id, err)
			}
		}

		s.SetEnabled(false) // a person may still ask
		var wg sync.WaitGroup
		results := make([]statussync.ProbeResult, 50)
		for i := range results {
			wg.Go(func() {
				r, err := s.Check(t.Context(), "a")
				if err != nil {
					t.Error(err)
				}
				if !slices.ContainsFunc(to.of("a"), func(o *statussync.ProbeResult) bool { return o.StartedAt.Equal(r.StartedAt) }) {
					t.Error("the result was answered before the Observer had it")
				}
				results[i] = r
			})
			time.Sleep(15 * time.Millisecond)
		}
		wg.Wait()
		if n := len(to.of("a")); n != 1 || results[0].Outcome != statussync.OutcomeAlive || results[49] != results[0] {
			t.Errorf("50 checks made %d probes", n)
		}
		pass(900 * time.Millisecond)
		if r, err := s.Check(t.Context(), "a"); err != nil || r != results[0] {
			t.Errorf("within the floor: %+v, %v", r, err)
		}
		pass(100 * time.Millisecond)
		if r, err := s.Check(t.Context(), "a"); err != nil || r == results[0] {
			t.Errorf("after the floor: %+v, %v", r, err)
		}
		s.SetEnabled(true)

		// It is asked for while a probe of the cadence is in flight.
		s.Do([]statussync.Request{now("b", 0, 0)})
		pass(300 * time.Millisecond)
		if r, err := s.Check(t.Context(), "b"); err != nil || len(to.of("b")) != 1 || r.FinishedAt.Sub(r.StartedAt) != wait {
			t.Errorf("in flight: %+v, %v", r, err)
		}

		// Whoever asks may go, and the server may.
		pass(2 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := s.Check(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("impatient: %v", err)
		}
		errs := make(chan error, 2)
		go func() { _, err := s.Check(t.Context(), "a"); errs <- err }()
		synctest.Wait()
		s.Do([]statussync.Request{{Plan: &statussync.ProbePlan{ServerID: "a", Removed: true}}})
		if err := <-errs; statussync.CodeOf(err) != statussync.CodeNotFound {
			t.Errorf("removed: %v", err)
		}
		pass(2 * time.Second)
		go func() { _, err := s.Check(t.Context(), "b"); errs <- err }()
		synctest.Wait()
		stop()
		if err := <-errs; statussync.CodeOf(err) != statussync.CodeUnavailable {
			t.Errorf("at the end: %v", err)
		}
		if _, err := s.Check(t.Context(), "b"); statussync.CodeOf(err) != statussync.CodeUnavailable {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestCheckSurvivesAChangedURL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{}, newHost()
		h.behave = func(*statussync.ProbePlan) (statussync.Outcome, time.Duration) {
			return statussync.OutcomeSuccess, 3 * time.Second
		}
		s, stop := run(t, Options{}, h, to)
		defer stop()
		s.Do([]statussync.Request{planOf("a", "e", time.Hour)})
		type answer struct {
			r   statussync.ProbeResult
			err error
		}
		got := make(chan answer, 1)
		go func() { r, err := s.Check(t.Context(), "a"); got <- answer{r, err} }()
		pass(time.Second)
		changed := time.Now()
		p := planOf("a", "e", time.Hour)
		p.Plan.URL = "http://new.example/"
		s.Do([]statussync.Request{p})
		if a := <-got; a.err != nil || a.r.StartedAt.Before(changed) || len(to.of("a")) != 1 || h.see().maxOne != 1 {
			t.Errorf("%+v", a)
		}
	})
}

func TestRetryAfterPostpones(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &recorder{}
		var after atomic.Int64
		s, err := New(Options{Probers: map[statussync.ProbeKind]statussync.Prober{
			statussync.ProbeHTTP: func(context.Context, *statussync.ProbePlan) statussync.ProbeResult {
				return statussync.ProbeResult{Outcome: statussync.OutcomeAlive, Throttled: true, RetryAfter: time.Duration(after.Load())}
			},
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx, to) }()
		after.Store(int64(5 * time.Minute))
		s.Do([]statussync.Request{planOf("a", "e", 10*time.Second)})
		pass(10 * time.Second)
		s.Do([]statussync.Request{now("a", 0, 0)})
		pass(4 * time.Minute)
		if n := len(to.of("a")); n != 1 {
			t.Errorf("%d probes although the server asked for 5 minutes", n)
		}
		after.Store(int64(100 * time.Hour))
		pass(70 * time.Second)
		n := len(to.of("a"))
		pass(61 * time.Minute)
		if m := len(to.of("a")); n < 2 || m != n+1 {
			t.Errorf("%d, %d probes: a server may ask for an hour at most", n, m)
		}
		cancel()
		<-done
	})
}

func TestRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{}, newHost()
		h.behave = func(*statussync.ProbePlan) (statussync.Outcome, time.Duration) {
			return statussync.OutcomeSuccess, 5 * time.Second
		}
		s, err := New(Options{Probers: map[statussync.ProbeKind]statussync.Prober{
			statussync.ProbeHTTP: func(ctx context.Context, p *statussync.ProbePlan) statussync.ProbeResult {
				return h.probe(context.WithoutCancel(ctx), p) // takes its time to end
			},
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx, to) }()
		synctest.Wait()
		s.Do([]statussync.Request{planOf("a", "e", 10*time.Second), now("a", 0, 0)})
		pass(time.Second)
		gone := statussync.Request{Plan: &statussync.ProbePlan{ServerID: "a", Removed: true}}
		s.Do([]statussync.Request{gone, gone, planOf("a", "e", 10*time.Second), now("a", 0, 0)})
		pass(3 * time.Second)
		if h.see().maxOne != 1 || len(h.see().plans) != 1 {
			t.Errorf("%d at once, %d probes, while the first is still ending", h.see().maxOne, len(h.see().plans))
		}
		pass(2 * time.Second)
		if len(h.see().plans) != 2 || len(to.of("a")) != 0 {
			t.Errorf("%d probes, %d results", len(h.see().plans), len(to.of("a")))
		}
		s.Do([]statussync.Request{gone})
		pass(time.Minute)
		st := s.Stats()
		s.mu.Lock()
		left := len(s.targets) + len(s.groups)
		s.mu.Unlock()
		if len(h.see().plans) != 2 || st.Targets != 0 || st.InFlight != 0 || left != 0 {
			t.Errorf("%d probes, %+v", len(h.see().plans), st)
		}
		cancel()
		<-done
	})
}

func TestSlowObserverBoundsWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{gate: make(chan struct{})}, newHost()
		s, stop := run(t, Options{Concurrency: 20}, h, to)
		defer stop()
		for i := range 500 {
			s.Do([]statussync.Request{planOf(fmt.Sprint("s", i), fmt.Sprint("e", i), 10*time.Second)})
		}
		pass(time.Minute)
		if len(h.see().plans) != 20 || s.Stats().InFlight != 20 {
			t.Errorf("%d probes were made, %d in flight", len(h.see().plans), s.Stats().InFlight)
		}
		close(to.gate)
		pass(11 * time.Second)
		if len(to.all()) < 500 {
			t.Errorf("%d results", len(to.all()))
		}
		if slices.Max(to.batches) < 2 {
			t.Error("results that were ready together were handed over one by one")
		}
	})
}

func TestSetEnabled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{}, newHost()
		s, stop := run(t, Options{}, h, to)
		defer stop()
		for i := range 100 {
			s.Do([]statussync.Request{planOf(fmt.Sprint("s", i), "e", 10*time.Second)})
		}
		pass(20 * time.Second)
		s.SetEnabled(false)
		s.SetEnabled(false)
		n := len(h.see().plans)
		s.Do([]statussync.Request{now("s1", 0, 0), planOf("new", "e", 10*time.Second)})
		pass(time.Hour)
		if len(h.see().plans) != n || s.Stats().Enabled {
			t.Errorf("%d probes while stopped", len(h.see().plans)-n)
		}
		s.SetEnabled(true)
		pass(time.Second)
		if m := len(h.see().plans) - n; m < 5 || m > 20 {
			t.Errorf("%d of 101 overdue probes in the first second of the interval of 10", m)
		}
		pass(9 * time.Second)
		if m := len(h.see().plans) - n; m < 101 {
			t.Errorf("%d of 101 after an interval", m)
		}
	})
}

func TestShutdownGivesNoResults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{}, newHost()
		h.behave = func(*statussync.ProbePlan) (statussync.Outcome, time.Duration) {
			return statussync.OutcomeFailure, time.Hour
		}
		s, stop := run(t, Options{}, h, to)
		for i := range 300 {
			s.Do([]statussync.Request{planOf(fmt.Sprint("s", i), fmt.Sprint("e", i), time.Second)})
		}
		pass(2 * time.Second)
		begin := time.Now()
		stop()
		if h.see().canceled != 300 || len(to.all()) != 0 || time.Since(begin) > 0 {
			t.Errorf("%d canceled, %d results, took %s", h.see().canceled, len(to.all()), time.Since(begin))
		}
		if err := s.Run(t.Context(), to); err == nil {
			t.Error("Run ran twice")
		}
	})
}

func TestRefusedResultsEndRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, h := &recorder{err: statussync.NewError(statussync.CodeUnavailable, "closed", nil)}, newHost()
		s, err := New(Options{Probers: map[statussync.ProbeKind]statussync.Prober{statussync.ProbeHTTP: h.probe}})
		if err != nil {
			t.Fatal(err)
		}
		s.Do([]statussync.Request{planOf("a", "e", time.Second)})
		if err := s.Run(t.Context(), to); statussync.CodeOf(err) != statussync.CodeUnavailable {
			t.Errorf("got %v", err)
		}
	})
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{
		{Concurrency: -1}, {PerEnvironment: -1},
		{Probers: map[statussync.ProbeKind]statussync.Prober{statussync.ProbeHTTP: nil}},
	} {
		if _, err := New(o); statussync.CodeOf(err) != statussync.CodeInvalid {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestLateness(t *testing.T) {
	h := Histogram{Bounds: latenessBounds[:], Counts: make([]uint64, len(latenessBounds)+1)}
	if h.Quantile(0.99) != 0 {
		t.Error("an empty histogram has a quantile")
	}
	for range 99 {
		h.add(time.Millisecond)
	}
	h.add(2 * time.Minute)
	if h.Quantile(0.5) != time.Millisecond || h.Quantile(0.99) != time.Millisecond || h.Quantile(1) != -1 || h.Count != 100 {
		t.Errorf("%+v", h)
	}
}

// step is one thing that happens in TestAnyOrder.
type step struct {
	what, id, env, url    string
	every, after, timeout time.Duration
	on                    bool
}

// Whatever is asked in whatever order: one probe of a server at a time, the limits hold, and in the end every server
// that has a plan is probed at its cadence and nobody else is.
func TestAnyOrder(t *testing.T) {
	seconds := func(lo, hi int) *rapid.Generator[time.Duration] {
		return rapid.Map(rapid.IntRange(lo*1000, hi*1000), func(ms int) time.Duration { return time.Duration(ms) * time.Millisecond })
	}
	gen := rapid.Custom(func(rt *rapid.T) step {
		return step{
			what:    rapid.SampledFrom([]string{"plan", "plan", "remove", "none", "now", "check", "enable", "pass", "pass"}).Draw(rt, "what"),
			id:      rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(rt, "id"),
			env:     rapid.SampledFrom([]string{"", "x", "y"}).Draw(rt, "env"),
			url:     rapid.SampledFrom([]string{"http://h1/", "http://h2/"}).Draw(rt, "url"),
			every:   seconds(1, 20).Draw(rt, "every"),
			after:   rapid.SampledFrom([]time.Duration{0, 0, time.Second, 3 * time.Second}).Draw(rt, "after"),
			timeout: rapid.SampledFrom([]time.Duration{0, time.Second}).Draw(rt, "timeout"),
			on:      rapid.Bool().Draw(rt, "on"),
		}
	})
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(gen, 1, 40).Draw(rt, "steps")
		var faults []string
		synctest.Test(t, func(*testing.T) { faults = anyOrder(steps) })
		for _, f := range faults {
			rt.Error(f)
		}
	})
}

func anyOrder(steps []step) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	to, h := &recorder{}, newHost()
	h.behave = func(*statussync.ProbePlan) (statussync.Outcome, time.Duration) {
		return statussync.OutcomeSuccess, time.Duration(len(h.plans)%7) * 700 * time.Millisecond
	}
	s, err := New(Options{Concurrency: 4, PerEnvironment: 2,
		Probers: map[statussync.ProbeKind]statussync.Prober{statussync.ProbeHTTP: h.probe}})
	if err != nil {
		return []string{err.Error()}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, to) }()
	synctest.Wait()
	var checks sync.WaitGroup
	want := map[string]bool{}
	for _, st := range steps {
		switch st.what {
		case "plan":
			r := planOf(st.id, st.env, st.every)
			r.Plan.URL = st.url
			s.Do([]statussync.Request{r})
			want[st.id] = true
		case "remove":
			s.Do([]statussync.Request{{Plan: &statussync.ProbePlan{ServerID: st.id, Removed: true}}})
			delete(want, st.id)
		case "none":
			s.Do([]statussync.Request{{Plan: &statussync.ProbePlan{ServerID: st.id, Kind: statussync.ProbeNone}}})
			delete(want, st.id)
		case "now":
			s.Do([]statussync.Request{now(st.id, st.after, st.timeout)})
		case "check":
			checks.Go(func() { _, _ = s.Check(ctx, st.id) })
		case "enable":
			s.SetEnabled(st.on)
		case "pass":
			pass(st.every / 4)
		}
	}
	s.SetEnabled(true)
	pass(time.Minute)
	from := time.Now()
	pass(40 * time.Second) // the longest interval with its jitter, the longest probe, and the wait for a place
	checks.Wait()          // every check has an answer by now; otherwise the bubble is stuck, and says so
	probed := map[string]bool{}
	for _, r := range to.all() {
		if r.StartedAt.After(from) {
			probed[r.ServerID] = true
		}
	}
	st := s.Stats()
	cancel()
	if err := <-done; err != nil {
		fault("%v", err)
	}
	if n := h.see(); n.maxOne > 1 || n.maxAll > 4 {
		fault("limits: %d of one server, %d in all", n.maxOne, n.maxAll)
	}
	for id := range want {
		if !probed[id] {
			fault("%s is not probed any more", id)
		}
	}
	for id := range probed {
		if !want[id] {
			fault("%s is still probed", id)
		}
	}
	if st.Targets != len(want) || s.inFlight != 0 || s.slow != 0 || s.busy != 0 {
		fault("%+v, %d in flight, %d slow, %d busy at the end", st, s.inFlight, s.slow, s.busy)
	}
	for _, g := range s.groups {
		if g.inFlight != 0 || g.slow != 0 {
			fault("group %q keeps %d places, %d slow", g.key, g.inFlight, g.slow)
		}
	}
	return faults
}

// Raised limits count at once, lowered ones as places become free.
func TestSetLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		h.behave = func(*statussync.ProbePlan) (statussync.Outcome, time.Duration) {
			return statussync.OutcomeSuccess, 400 * time.Millisecond
		}
		s, stop := run(t, Options{Concurrency: 2, PerEnvironment: 2}, h, &recorder{})
		defer stop()
		for i := range 100 {
			s.Do([]statussync.Request{planOf(fmt.Sprint("s", i), "e", time.Second)})
		}
		most := func(want int) {
			t.Helper()
			pass(time.Second) // what was under way ends
			h.mu.Lock()
			h.maxAll = 0
			h.mu.Unlock()
			pass(3 * time.Second)
			if got := h.see().maxAll; got != want {
				t.Errorf("%d at once, want %d", got, want)
			}
		}
		most(2)
		for _, c := range []struct{ all, one, want int }{{30, 20, 20}, {5, 20, 5}, {40, 7, 7}} {
			if err := s.SetLimits(c.all, c.one); err != nil {
				t.Fatal(err)
			}
			most(c.want)
		}
		for _, bad := range [][2]int{{-1, 1}, {1, -1}} {
			if err := s.SetLimits(bad[0], bad[1]); statussync.CodeOf(err) != statussync.CodeInvalid {
				t.Errorf("%v: %v", bad, err)
			}
		}
		most(7)
	})
}
