package fleetsim

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Event is a step of the script that was taken.
type Event struct {
	At     time.Time
	Target string // id of a server or an environment
	What   string // the rest of the sentence that Target begins: "crashes with exit code 137"
	Heals  bool   // the end of a fault
}

// Step is one thing that the script does.
type Step struct {
	After  time.Duration // since the cycle's begin
	Target string
	What   string
	Heals  bool

	do func() error
}

// Script is an endless sequence of faults and recoveries, in cycles. Each cycle has every kind of fault that the fleet
// has room for: servers that are affected by anything, or were until shortly before, are never more than half of it.
// What happens when, and to whom, depends on the fleet's seed and the cycle's number only. It is immutable and safe for
// concurrent use, but two that run at once, or one beside other faults, undo each other's work.
type Script struct {
	f     *Fleet
	scale float64
}

// Script returns the fleet's script at a time scale, 0 being the fleet's own. At scale 1/30 (heartbeats every 2 s) a
// cycle of the default fleet takes 96 s.
func (f *Fleet) Script(scale float64) *Script {
	if scale <= 0 {
		scale = f.opt.TimeScale
	}
	return &Script{f, scale}
}

// beats is a time in a script: 1 is 60 s × scale, the field's heartbeat interval.
type beats float64

func (s *Script) time(b beats) time.Duration {
	return time.Duration(float64(b) * s.scale * float64(time.Minute))
}

// act is a fault with its end, before it is known to whom it happens. Either server or environment is set.
type act struct {
	at, lasts    beats
	begins, ends string // what Step.What says
	server       func(id string, on bool) error
	environment  func(id string, on bool) error

	recovers beats // how long its target counts as affected after the end; 0: recovery

	harmless  bool // an environment's servers go on as they were
	speaksMCP bool // to be seen only by who asks for MCP
	inDocker  bool // to be seen in Docker's words only, so not where reports are in shape A
	owners    bool // aimed at a server that its owner starts and stops, if there is one
}

const (
	// recovery is what most faults need after their end until the service has seen it: two heartbeats and a margin.
	recovery beats = 3
	// A crash loop is one until its sightings are 10 min old; flapping is held for 15 min of quiet.
	crashLoopRecovery beats = 12
	flapRecovery      beats = 17
	// cycleBeats is the least length of a cycle.
	cycleBeats beats = 48
	// placeStep and placeTries bound the search for a moment at which a fault has room.
	placeStep  beats = 0.5
	placeTries int   = 200
)

// acts are a cycle's faults. The times leave room for what the service needs to notice each at the limits of
// docs/domain.md: 10 min to be stuck, 3 sightings of a crash loop, more than 6 changes to flap, 4 intervals to be lost.
func (s *Script) acts() []act {
	f := s.f
	once := func(begin, end func(id string) error) func(string, bool) error {
		return func(id string, on bool) error {
			if on {
				return begin(id)
			}
			return end(id)
		}
	}
	status := func(code int) func(string, bool) error {
		return once(func(id string) error { return f.Status(id, code) }, f.Heal)
	}
	crash := func(code int) func(string, bool) error {
		return once(func(id string) error { return f.Crash(id, code) }, f.Start)
	}
	slow := time.Duration(4.5 * s.scale * float64(time.Second))
	return []act{
		{at: 0.5, lasts: 7, begins: "crashes with exit code 137", ends: "is started again", server: crash(137)},
		{at: 1, lasts: 8, begins: fmt.Sprintf("becomes slow: answers after %v", slow.Round(time.Millisecond)), ends: "is fast again",
			server: once(func(id string) error { return f.Slow(id, slow) }, f.Heal)},
		{at: 1.5, lasts: 12, begins: "flaps between 503 and well", ends: "stops flapping", server: f.Flap, recovers: flapRecovery},
		{at: 2, lasts: 6, begins: "answers 503", ends: "answers 200 again", server: status(503)},
		{at: 2.5, lasts: 15, begins: "was made anew and gets stuck starting", ends: "has started at last",
			server: once(f.StuckStarting, f.Start), inDocker: true},
		{at: 3, lasts: 9, begins: "is in a crash loop", ends: "is out of its crash loop", server: f.CrashLoop,
			recovers: crashLoopRecovery, inDocker: true},
		{at: 6, lasts: 6, begins: "hangs: takes requests and never answers", ends: "answers again", server: once(f.Hang, f.Heal)},
		{at: 9, lasts: 4, begins: "refuses connections while its container runs", ends: "takes connections again",
			server: once(f.Refuse, f.Heal)},
		{at: 10, lasts: 5, begins: "wants a login: answers 401", ends: "is open again", server: status(401)},
		{at: 10.5, lasts: 5, begins: "answers with a web page in place of MCP", ends: "speaks MCP again",
			server: once(f.Page, f.Heal), speaksMCP: true},
		{at: 11, lasts: 5, begins: "throttles: answers 429", ends: "no longer throttles", server: status(429)},
		{at: 12, lasts: 5, begins: "fails Docker's own health check", ends: "passes Docker's health check again",
			server: once(f.Unhealthy, f.Heal), inDocker: true},
		{at: 13, lasts: 5, begins: "is stopped on purpose by its owner", ends: "is started by its owner",
			server: once(f.StopOnPurpose, f.Start), owners: true},
		{at: 18, lasts: 1, begins: "is restarted by its owner, which should alarm nobody", ends: "is back from its restart",
			server: once(f.Restart, f.Start)},
		{at: 20, lasts: 8, begins: "has a silent agent: no heartbeats, but its servers answer", ends: "has its agent back",
			environment: f.AgentSilent},
		{at: 22, lasts: 5, begins: "crashes with exit code 1", ends: "is started again", server: crash(1)},
		{at: 31, lasts: 6, begins: "is down as a whole", ends: "is back", environment: f.EnvironmentDown},
		{at: 40, lasts: 3, begins: "has lost its container engine: heartbeats without containers", ends: "has its container engine back",
			environment: f.EngineDown, harmless: true},
	}
}

// placed is an act with its target and its moment.
type placed struct {
	act
	target  string
	env     *environment
	servers []*server // affected
}

// over is when the act's target is sure to be well again.
func (a *act) over() beats {
	return a.at + a.lasts + cmp.Or(a.recovers, recovery)
}

// plan finds a moment and a target for each act of a cycle: the wanted moment, or the next at which the fleet has room.
// What never has room (half of the fleet is less than an environment) is left out.
func (s *Script) plan(cycle int) []placed {
	r := rand.New(rand.NewPCG(s.f.opt.Seed, 2+uint64(cycle)))
	var out []placed
	for _, a := range s.acts() {
		candidates := s.candidates(a, r)
		for try := range placeTries {
			a.at += placeStep * beats(min(try, 1))
			i := slices.IndexFunc(candidates, func(c placed) bool { return s.fits(a, c, out) })
			if i >= 0 {
				c := candidates[i]
				c.act = a
				out = append(out, c)
				break
			}
		}
	}
	return out
}

// candidates lists whom an act may happen to, in the order in which they are tried.
func (s *Script) candidates(a act, r *rand.Rand) []placed {
	var out []placed
	if a.environment != nil {
		for _, i := range r.Perm(len(s.f.envs)) {
			e := s.f.envs[i]
			c := placed{target: e.ID, env: e}
			if !a.harmless {
				c.servers = e.servers
			}
			out = append(out, c)
		}
		return out
	}
	for _, i := range r.Perm(len(s.f.servers)) {
		v := s.f.servers[i]
		if (a.inDocker && v.env.Shape != ShapeDocker) || (a.speaksMCP && v.Kind == KindPlain) || (!a.owners && v.Desired == "stopped") {
			continue
		}
		out = append(out, placed{target: v.ID, env: v.env, servers: []*server{v}})
	}
	if a.owners {
		slices.SortStableFunc(out, func(x, y placed) int {
			return cmp.Compare(y.servers[0].Desired, x.servers[0].Desired) // "stopped" before "running"
		})
	}
	return out
}

// fits reports whether act a may happen to c beside what is placed already: no server has two faults at once, no
// environment has another while it or its servers are affected, and half of the fleet stays untouched at every moment.
func (s *Script) fits(a act, c placed, others []placed) bool {
	var beside []placed
	for _, o := range others {
		if o.at >= a.over() || a.at >= o.over() {
			continue
		}
		if o.target == c.target || (o.env == c.env && (a.environment != nil || o.environment != nil)) {
			return false
		}
		beside = append(beside, o)
	}
	// The number of affected servers only grows where an act begins.
	moments := []beats{a.at}
	for _, o := range beside {
		moments = append(moments, max(o.at, a.at))
	}
	for _, m := range moments {
		n := len(c.servers)
		for _, o := range beside {
			if o.at <= m && m < o.over() {
				n += len(o.servers)
			}
		}
		if 2*n > len(s.f.servers) {
			return false
		}
	}
	return true
}

// Steps lists a cycle's steps in order, and how long the cycle takes. The first cycle is 0.
func (s *Script) Steps(cycle int) (steps []Step, length time.Duration) {
	end := cycleBeats
	for _, p := range s.plan(cycle) {
		do := p.server
		if do == nil {
			do = p.environment
		}
		steps = append(steps,
			Step{After: s.time(p.at), Target: p.target, What: p.begins, do: func() error { return do(p.target, true) }},
			Step{After: s.time(p.at + p.lasts), Target: p.target, What: p.ends, Heals: true, do: func() error { return do(p.target, false) }})
		end = max(end, p.over())
	}
	slices.SortStableFunc(steps, func(a, b Step) int { return cmp.Compare(a.After, b.After) })
	return steps, s.time(end)
}

// Run takes the steps, each at its time, and tells each to the OnFault callback, until ctx ends; it then returns nil.
// It belongs beside Fleet.Run. A step that can't be taken, because somebody else changed its target meanwhile, is
// logged and not told.
func (s *Script) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	begin := time.Now()
	for cycle := 0; ; cycle++ {
		steps, length := s.Steps(cycle)
		for _, st := range steps {
			if !sleepUntil(ctx, timer, begin.Add(st.After)) {
				return nil
			}
			if err := st.do(); err != nil {
				s.f.log.Warn("a step of the script was not possible", "target", st.Target, "step", st.What, "error", err)
				continue
			}
			s.f.mu.Lock()
			tell := s.f.onFault
			s.f.mu.Unlock()
			if tell != nil {
				tell(Event{At: time.Now(), Target: st.Target, What: st.What, Heals: st.Heals})
			}
		}
		begin = begin.Add(length)
		if !sleepUntil(ctx, timer, begin) {
			return nil
		}
	}
}

// sleepUntil returns false if ctx ended first.
func sleepUntil(ctx context.Context, timer *time.Timer, at time.Time) bool {
	timer.Reset(time.Until(at))
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
