package engine

import (
	"time"

	"github.com/agentopia/statussync"
)

// server is all that is known of one server. The embedded memory is what survives a restart.
type server struct {
	memory
	env  *environment
	node dueNode

	target  string               // URL to probe; empty: none
	plan    statussync.ProbePlan // as last told
	planned bool

	spec     statussync.ProbeSpec // its own and the policy's together
	raw      conclusion           // steps 1 to 3, as last computed
	seenIn   uint64               // number of the last report that listed it, and where
	seenAt   int
	falling  bool // a fall waits for the two questions
	waitAt   int  // its place among those that wait
	stopWait *stopWait
	replan   bool          // its definition changed: the plan is told again
	storedAt time.Duration // restored: Engine.skippedAll when its record was stored
	recordAt time.Time     // restored: when that was
	open     int           // windows that select it and are open
	tools    *toolMemory   // nil: nobody has looked yet
}

// memory is the stored part of a server; fields are exported for encoding/json.
type memory struct {
	Def *statussync.Server `json:"-"`
	Pub statussync.Status  `json:"-"` // as last told, with facts

	Container containerEvidence    `json:",omitzero"`
	Record    recordEvidence       `json:",omitzero"`
	Probe     probeEvidence        `json:",omitzero"`
	Override  *statussync.Override `json:",omitzero"`

	RowBeat   time.Time     `json:",omitzero"` // our time of its row's last heartbeat
	RowBeatAt time.Time     `json:",omitzero"` // the row's own word
	RowSkip   time.Duration `json:",omitzero"` // rowClock's reading at RowBeat

	FirstSeen     time.Time        `json:",omitzero"`
	Every         time.Duration    `json:",omitzero"` // interval of its probes, as last planned
	Ever          bool             `json:",omitzero"` // some state was known once: its loss is stale, not never_seen
	Base          statussync.State `json:",omitzero"`
	RunningSince  time.Time        `json:",omitzero"` // base state running without a break
	StartingSince time.Time        `json:",omitzero"` // step 2's clocks
	StoppingSince time.Time        `json:",omitzero"`
	BadSince      time.Time        `json:",omitzero"` // computed health unhealthy or state error, for the cadence
	LastExit      *int             `json:",omitzero"` // last known exit code; forgotten when it is seen running

	Restarting []time.Time `json:",omitzero"` // sightings that count, newest last
	Starts     []time.Time `json:",omitzero"` // starts that nobody asked for
	Flap       flapping    `json:",omitzero"`
}

// containerEvidence is the newest that the agent said of a server's container.
type containerEvidence struct {
	Word        string                 `json:",omitzero"`
	State       statussync.State       `json:",omitzero"` // with "created" as starting; stateFor corrects it
	Created     bool                   `json:",omitzero"`
	Text        string                 `json:",omitzero"`
	HealthCheck string                 `json:",omitzero"`
	Exit        *int                   `json:",omitzero"`
	AssertedAt  time.Time              `json:",omitzero"` // of the newest report that listed it, or missed it from a complete list
	FirstSaid   time.Time              `json:",omitzero"` // since when it says just this
	StartMin    time.Time              `json:",omitzero"` // where the texts allow its start to lie; zero: not known
	StartMax    time.Time              `json:",omitzero"`
	ExitMin     time.Time              `json:",omitzero"`
	ExitMax     time.Time              `json:",omitzero"`
	Port        int                    `json:",omitzero"` // last known published port
	Shape       statussync.ReportShape `json:",omitzero"`
	Overruled   bool                   `json:",omitzero"` // a newer answer won over these words
	Absent      bool                   `json:",omitzero"` // listed before, listed no more
}

func (c *containerEvidence) known() bool { return !c.AssertedAt.IsZero() }

func (c *containerEvidence) stateFor(d statussync.Desired) statussync.State {
	if c.Created && d == statussync.DesiredStopped {
		return statussync.StateStopped
	}
	return c.State
}

// recordEvidence is the database's word.
type recordEvidence struct {
	Word       string             `json:",omitzero"`
	Error      string             `json:",omitzero"`
	State      statussync.State   `json:",omitzero"`
	Desired    statussync.Desired `json:",omitzero"` // what records made of the desire so far
	AssertedAt time.Time          `json:",omitzero"`
	SaidAt     time.Time          `json:",omitzero"` // AssertedAt without downtime taken off: to be compared with exits, which are real times
	Done       bool               `json:",omitzero"` // a report after this command showed another state than the one it leaves
	Overruled  bool               `json:",omitzero"`
}

// flapping is step 4's memory.
type flapping struct {
	Last    statussync.Health `json:",omitzero"` // last raw health that was not unknown
	Changes []time.Time       `json:",omitzero"` // newest last, at most FlapChanges+1
	On      bool              `json:",omitzero"`
	Held    conclusion        `json:",omitzero"`
	Prev    conclusion        `json:",omitzero"` // the raw conclusion with Last
}

// conclusion is what steps 1 to 3 give.
type conclusion struct {
	State     statussync.State  `json:",omitzero"`
	Health    statussync.Health `json:",omitzero"`
	Reason    statussync.Reason `json:",omitzero"`
	Cause     string            `json:",omitzero"`
	LastError string            `json:",omitzero"`
}

// stopWait is a clean stop of a healthy, wanted server that waits for a sign of life before it counts.
type stopWait struct {
	since, until time.Time
	report       statussync.ContainerReport
	reported     time.Time // when it came
	absent       bool
	asks         int  // of Policy.StopAsks, how many are done
	probed       bool // else its agent is asked, else the next heartbeat is awaited
	asked        bool
	// pushed: its agent told of the stop at once, and so would of a start. Who is neither probed nor asked then waits for
	// that, not for a heartbeat, which may come the next moment.
	pushed bool
}

// environment is all that is known of one host.
type environment struct {
	envMemory
	servers     []*server // by id
	byContainer map[string]*server
	node        dueNode

	sample     *hostSample
	nextAsk    time.Time // zero: none due
	groupAt    time.Time // when the gathered falls of the host are told; zero: none are gathered
	discovered map[string]*statussync.Discovered
	implicit   bool          // made by a server that names it; its registry never told of it
	storedAt   time.Duration // restored: Engine.skippedAll when its record was stored
	recordAt   time.Time     // restored: when that was
}

// envMemory is the stored part of an environment.
type envMemory struct {
	Def          *statussync.Environment  `json:",omitzero"`
	FirstSeen    time.Time                `json:",omitzero"`
	LastBeat     time.Time                `json:",omitzero"` // our time
	BeatAt       time.Time                `json:",omitzero"` // the database's own word of it, where it comes from there
	BeatSkip     time.Duration            `json:",omitzero"` // rowClock's reading at LastBeat, or at FirstSeen where there is none
	BeatRead     uint64                   `json:"-"`
	HeardVia     statussync.ReportVia     `json:",omitzero"` // how LastBeat came; empty: from the database
	LastPush     time.Time                `json:",omitzero"` // the last one that counts for gaps
	PushSkip     time.Duration            `json:",omitzero"` // Engine.skippedAny then
	Gaps         []time.Duration          `json:",omitzero"`
	AgentVersion string                   `json:",omitzero"`
	System       *statussync.SystemStatus `json:",omitzero"`
	Judged       statussync.AgentState    `json:",omitzero"` // as its servers see it
	HostLost     bool                     `json:",omitzero"` // found silent by its servers and agent at once
	AskLost      bool                     `json:",omitzero"` // lost by failed questions
	AskFails     int                      `json:",omitzero"` // past late, in a row
	Answered     bool                     `json:",omitzero"` // it ever answered a question
	Silent       []string                 `json:",omitzero"` // told silent, with these servers; nil: not
}

func (env *environment) hasAgent() bool { return env.Def.HasToken || !env.LastBeat.IsZero() }

// limits are when an environment of this heartbeat interval is late and lost.
func (e *Engine) limits(env *environment) (interval, late, lost time.Duration) {
	interval = e.interval(env)
	if e.p.LateAfter > 0 && e.p.LostAfter > 0 {
		return interval, e.p.LateAfter, e.p.LostAfter
	}
	return interval, time.Duration(float64(interval) * e.p.LateFactor), time.Duration(float64(interval) * e.p.LostFactor)
}

// interval is the learned one: the larger of the median of the last ten gaps and the last gap (up to a minute).
func (e *Engine) interval(env *environment) time.Duration {
	if env == nil || len(env.Gaps) < 3 {
		return e.p.DefaultInterval
	}
	var buf [10]time.Duration
	g := buf[:copy(buf[:], env.Gaps)]
	for i := 1; i < len(g); i++ { // insertion sort: ten at most, and no allocation
		for j := i; j > 0 && g[j] < g[j-1]; j-- {
			g[j], g[j-1] = g[j-1], g[j]
		}
	}
	median := g[len(g)/2]
	if len(g)%2 == 0 {
		median = (g[len(g)/2-1] + g[len(g)/2]) / 2
	}
	return max(median, min(env.Gaps[len(env.Gaps)-1], e.p.MaxLastGap), e.p.MinInterval)
}

// desired is what somebody wants of the server: the configuration's word, else the records', else unknown.
func (s *server) desired() statussync.Desired {
	if s.Def.Desired == statussync.DesiredRunning || s.Def.Desired == statussync.DesiredStopped {
		return s.Def.Desired
	}
	if s.Record.Desired != "" {
		return s.Record.Desired
	}
	return statussync.DesiredUnknown
}

// probed reports whether the server has an address that is asked.
func (s *server) probed() bool {
	return s.target != "" && s.raw.Reason != statussync.ReasonNeedsConfig && s.Record.Word != "disabled"
}
