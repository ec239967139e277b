package drift

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/agentopia/statussync"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is servers that answer as a test says, and what was observed of them.
type world struct {
	mu      sync.Mutex
	begun   map[string][]time.Time
	now     map[string]int // looks that run
	most    int            // at once, of all
	all     int
	down    map[string]bool
	takes   map[string]time.Duration
	err     map[string]error
	seen    []*statussync.ToolsSeen
	refuse  error
	twice   bool // one server was asked by two looks at once
	answers map[string][]statussync.ToolRef
}

func newWorld() *world {
	return &world{begun: map[string][]time.Time{}, now: map[string]int{}, down: map[string]bool{}, takes: map[string]time.Duration{},
		err: map[string]error{}, answers: map[string][]statussync.ToolRef{}}
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) look(ctx context.Context, p *statussync.ProbePlan) ([]statussync.ToolRef, error) {
	id := p.ServerID
	w.mu.Lock()
	w.begun[id] = append(w.begun[id], time.Now())
	w.now[id]++
	w.all++
	w.most = max(w.most, w.all)
	w.twice = w.twice || w.now[id] > 1
	takes, err, tools := w.takes[id], w.err[id], w.answers[id]
	w.mu.Unlock()
	defer w.set(func() { w.now[id]--; w.all-- })
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return tools, err
}

func (w *world) up(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.down[id]
}

func (w *world) Observe(context.Context, ...statussync.Observation) error { panic("not used") }
func (w *world) TryObserve(...statussync.Observation) error               { panic("not used") }
func (w *world) Submit(_ context.Context, obs ...statussync.Observation) ([]*statussync.Entry, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse != nil {
		return nil, w.refuse
	}
	for _, o := range obs {
		w.seen = append(w.seen, o.(*statussync.ToolsSeen))
	}
	return nil, nil
}

func (w *world) looks(id string) []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]time.Time(nil), w.begun[id]...)
}

func mcpPlan(id string) statussync.Request {
	return statussync.Request{Plan: &statussync.ProbePlan{ServerID: id, Kind: statussync.ProbeMCP, URL: "http://10.0.0.1/" + id, Interval: 30 * time.Second}}
}

// begin runs a service in the bubble until the test's end.
func begin(t *testing.T, w *world, o Options) *Service {
	t.Helper()
	o.Look, o.Up = w.look, w.up
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, w) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Now(context.Background(), "x"); statussync.CodeOf(err) != statussync.CodeUnavailable {
			t.Errorf("after the end: %v", err)
		}
	})
	return s
}

func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestRhythm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := begin(t, w, Options{})
		start := time.Now()
		s.Do([]statussync.Request{mcpPlan("a"), {Plan: &statussync.ProbePlan{ServerID: "h", Kind: statussync.ProbeHTTP}}, {Probe: &statussync.ProbeNow{ServerID: "a"}}})
		sleep(30 * time.Second)
		if n := len(w.looks("a")); n != 1 {
			t.Fatalf("%d looks in the first 30 s", n)
		}
		// The plan is told again with each change of cadence; that moves nothing.
		for range 59 {
			sleep(time.Minute)
			s.Do([]statussync.Request{mcpPlan("a")})
		}
		at := w.looks("a")
		for i := 1; i < len(at); i++ {
			if d := at[i].Sub(at[i-1]); d < 9*time.Minute || d > 11*time.Minute+time.Second {
				t.Errorf("look %d after %v", i, d)
			}
		}
		if len(at) < 6 || len(w.looks("h")) > 0 {
			t.Errorf("%d looks in %v, %d at a server that is not MCP", len(at), time.Since(start), len(w.looks("h")))
		}
	})
}

// TestComesUp: who is down is not asked, and who comes up is within 30 s.
func TestComesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.down["a"] = true
		s := begin(t, w, Options{})
		s.Do([]statussync.Request{mcpPlan("a")})
		sleep(time.Hour)
		if n := len(w.looks("a")); n != 0 {
			t.Fatalf("%d looks at a server that is down", n)
		}
		for range 3 {
			before := len(w.looks("a"))
			w.set(func() { w.down["a"] = false })
			sleep(30 * time.Second)
			if n := len(w.looks("a")); n != before+1 {
				t.Errorf("%d looks 30 s after it came up, there were %d", n, before)
			}
			w.set(func() { w.down["a"] = true })
			sleep(time.Hour)
			if n := len(w.looks("a")); n != before+1 {
				t.Errorf("%d looks, and it was down", n)
			}
		}
		// Another address, or another credential, is another server.
		w.set(func() { w.down["a"] = false })
		sleep(time.Minute)
		before := len(w.looks("a"))
		p := mcpPlan("a")
		p.Plan.URL += "/moved"
		s.Do([]statussync.Request{p})
		sleep(30 * time.Second)
		q := mcpPlan("a")
		q.Plan.URL, q.Plan.Headers = p.Plan.URL, map[string]string{"Authorization": "x"}
		s.Do([]statussync.Request{q})
		sleep(30 * time.Second)
		if n := len(w.looks("a")); n != before+2 {
			t.Errorf("%d looks after it moved twice", n-before)
		}
		s.Do([]statussync.Request{{Plan: &statussync.ProbePlan{ServerID: "a", Kind: statussync.ProbeNone, Removed: true}}})
		sleep(time.Hour)
		if n := len(w.looks("a")); n != before+2 || s.Stats().Servers != 0 {
			t.Errorf("a removed server is asked")
		}
	})
}

// TestSpread: many that come up at once are asked evenly, at most eight at a time and each once.
func TestSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := begin(t, w, Options{})
		const n = 3000
		start := time.Now()
		var plans []statussync.Request
		for i := range n {
			id := fmt.Sprint("s", i)
			w.takes[id] = 100 * time.Millisecond
			plans = append(plans, mcpPlan(id))
		}
		w.takes["s7"] = time.Hour // hangs
		s.Do(plans)
		sleep(4 * time.Minute)
		perMinute := map[int]int{}
		for i := range n {
			at := w.looks(fmt.Sprint("s", i))
			if len(at) != 1 {
				t.Fatalf("s%d was asked %d times", i, len(at))
			}
			perMinute[int(at[0].Sub(start)/time.Minute)]++
		}
		if perMinute[0] > 1300 || perMinute[1] < 1000 { // 20 a second
			t.Errorf("not even: %v", perMinute)
		}
		sleep(2 * time.Hour)
		w.set(func() {
			if w.most > 8 || w.twice {
				t.Errorf("%d looks at once, one server twice: %v", w.most, w.twice)
			}
		})
		if k := len(w.looks("s8")); k < 11 {
			t.Errorf("%d looks in two hours beside a server that hangs", k)
		}
	})
}

// TestTells: what a server lists, and that it lists nothing, comes as an observation of the time at which it was asked.
func TestTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := begin(t, w, Options{})
		w.answers["a"] = []statussync.ToolRef{{Name: "add", Hash: "1"}}
		w.takes["a"] = 5 * time.Second
		w.err["b"] = &statussync.Error{Code: statussync.CodeUnavailable, Detail: "refused: \x1b[31mnobody"}
		w.err["c"] = errors.New(strings.Repeat("x", 10_000))
		s.Do([]statussync.Request{mcpPlan("a"), mcpPlan("b"), mcpPlan("c")})
		sleep(time.Minute)
		got := map[string]*statussync.ToolsSeen{}
		for _, o := range w.seen {
			got[o.ServerID] = o
		}
		if a := got["a"]; a == nil || len(a.Tools) != 1 || a.Error != "" || !a.At.Equal(w.looks("a")[0]) {
			t.Errorf("%+v", a)
		}
		if b := got["b"]; b == nil || b.Tools != nil || b.Error != "refused: [31mnobody" {
			t.Errorf("%+v", b)
		}
		if c := got["c"]; c == nil || len(c.Error) > statussync.MaxErrorText {
			t.Errorf("%+v", c)
		}
		if st := s.Stats(); st != (Stats{Servers: 3, Waiting: 3, Looks: 3, Failed: 2}) {
			t.Errorf("%+v", st)
		}
	})
}

func TestNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.down["a"], w.down["b"] = true, true
		w.takes["a"] = 10 * time.Second
		w.err["b"] = &statussync.Error{Code: statussync.CodeUnavailable, Detail: "refused"}
		s := begin(t, w, Options{})
		s.SetEnabled(false)
		s.Do([]statussync.Request{mcpPlan("a"), mcpPlan("b")})
		sleep(time.Minute)

		if err := s.Now(t.Context(), "nobody"); statussync.CodeOf(err) != statussync.CodeNotFound {
			t.Error(err)
		}
		if err := s.Now(t.Context(), "b"); statussync.CodeOf(err) != statussync.CodeUnavailable {
			t.Error(err)
		}
		// Three that ask at once share a look; who comes while it runs gets another one.
		var wg sync.WaitGroup
		for _, after := range []time.Duration{0, 0, 0, 5 * time.Second, 6 * time.Second} {
			wg.Go(func() {
				time.Sleep(after)
				asked := time.Now()
				if err := s.Now(t.Context(), "a"); err != nil {
					t.Error(err)
				}
				fresh := false
				for _, at := range w.looks("a") {
					fresh = fresh || !at.Before(asked) && !time.Now().Before(at.Add(10*time.Second))
				}
				if !fresh {
					t.Error("answered from a look that began before it was asked for")
				}
			})
		}
		wg.Wait()
		if n := len(w.looks("a")); n != 2 {
			t.Errorf("%d looks", n)
		}
		// A server that goes while somebody waits.
		gone := make(chan error, 1)
		go func() { gone <- s.Now(t.Context(), "a") }()
		sleep(time.Second)
		s.Do([]statussync.Request{{Plan: &statussync.ProbePlan{ServerID: "a", Removed: true}}})
		if err := <-gone; statussync.CodeOf(err) != statussync.CodeNotFound {
			t.Error(err)
		}
		before := len(w.seen)
		sleep(time.Minute)
		if len(w.seen) != before {
			t.Error("what a removed server listed was told")
		}
		// Who does not wait any longer.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		w.set(func() { w.takes["b"] = time.Hour })
		if err := s.Now(ctx, "b"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// TestEnabled: while it is switched off nobody is asked by the clock; what became due meanwhile is asked afterwards.
func TestEnabled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := begin(t, w, Options{})
		s.SetEnabled(false)
		s.Do([]statussync.Request{mcpPlan("a")})
		sleep(2 * time.Hour)
		if n := len(w.looks("a")); n != 0 {
			t.Errorf("%d looks while switched off", n)
		}
		s.SetEnabled(true)
		sleep(time.Minute)
		if n := len(w.looks("a")); n != 1 {
			t.Errorf("%d looks after it was switched on", n)
		}
	})
}

// TestMovesWhileAsked: what an old address listed is not told of the new one.
func TestMovesWhileAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.takes["a"] = 10 * time.Second
		s := begin(t, w, Options{})
		s.Do([]statussync.Request{mcpPlan("a")})
		answer := make(chan error, 1)
		sleep(time.Second)
		go func() { answer <- s.Now(t.Context(), "a") }()
		sleep(5 * time.Second)
		p := mcpPlan("a")
		p.Plan.URL = "http://10.0.0.2/"
		s.Do([]statussync.Request{p})
		if err := <-answer; err != nil {
			t.Fatal(err)
		}
		w.set(func() {
			if len(w.seen) != 1 || len(w.begun["a"]) != 2 {
				t.Errorf("%d lists were told of %d", len(w.seen), len(w.begun["a"]))
			}
		})
	})
}

func TestOptions(t *testing.T) {
	w := newWorld()
	for _, c := range []struct {
		o    Options
		says string
	}{
		{Options{Up: w.up}, "Options.Look"}, {Options{Look: w.look}, "Options.Up"},
		{Options{Look: w.look, Up: w.up, Every: -1}, "Options.Every"}, {Options{Look: w.look, Up: w.up, Soon: -1}, "Options.Soon"},
		{Options{Look: w.look, Up: w.up, Concurrency: -1}, "Options.Concurrency"},
	} {
		var e *statussync.Error
		if _, err := New(c.o); !errors.As(err, &e) || e.Location != c.says {
			t.Errorf("%v, want %s", err, c.says)
		}
	}
}
