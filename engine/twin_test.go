package engine

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"pgregory.net/rapid"
)

// twin concludes steps 1 to 3 of docs/domain.md in the most naive way: it has no deadlines and no incremental state that
// is kept fresh by anybody; it is simply looked at four times a second and computes everything from the history of what
// was seen. It covers one server that is alone on its host, whose agent cannot be asked, so that no question is put
// before a fall is told; and no flapping, override or maintenance.
type twin struct {
	p Policy

	// what was seen
	added     time.Time
	config    statussync.Desired
	token     bool
	probed    bool
	transport statussync.Transport
	beats     []time.Time // pushed heartbeats
	pulse     []time.Time // pushed heartbeats and moves of the row: what the interval is learned from
	rowBeat   time.Time
	rowAt     time.Time
	rowSeen   time.Time      // when that was read
	aways     [][2]time.Time // times without the database; the last one may go on (zero)
	neverLost bool           // a heartbeat that never came was counted as lost
	noGap     map[int]bool   // places in pulse before which nobody saw what came
	listed    []twinReport   // what agents said of the container, oldest first
	records   []twinRecord
	wanted    statussync.Desired // by records
	results   []twinResult       // since nothing was known
	verdict   verdict
	turned    time.Time
	fell      bool
	unsettled time.Time // since when outcomes contradict the verdict
	both      bool
	grace     time.Time
	slow      []bool // of non-failures, since nothing was known; over failures
	throttled []bool
	authBad   []bool
	tools     []statussync.ToolRef // as last listed
	listedAny bool
	pin       []statussync.ToolRef // nil: none

	wait     *twinWait
	lastExit *int

	// the past of the base state
	base      statussync.State
	ever      bool
	runFrom   time.Time
	startFrom time.Time
	stopFrom  time.Time
	restarts  []time.Time // sightings of restarting that count
	starts    []time.Time // that nobody asked for
	startLo   time.Time
	startHi   time.Time
	badFrom   time.Time
	every     time.Duration
	longest   time.Duration // longest interval since the last probe

	told conclusion

	known   time.Duration
	knownOf int
}

type twinReport struct {
	at, firstSaid time.Time
	word, check   string
	exit          *int
	exitLo        time.Time
	exitHi        time.Time
	overruled     bool
}

type twinRecord struct {
	at        time.Time
	word      string
	echo      bool // asserts nothing
	done      bool
	overruled bool
}

type twinResult struct {
	at, began time.Time
	fail      bool
	connect   bool
	notMCP    bool
}

type twinWait struct {
	since, until time.Time
	report       statussync.ContainerReport
	came         time.Time
	absent       bool
	next         bool // the next heartbeat decides
}

func (w *twin) desired() statussync.Desired {
	if w.config == statussync.DesiredRunning || w.config == statussync.DesiredStopped {
		return w.config
	}
	if w.wanted != "" {
		return w.wanted
	}
	return statussync.DesiredUnknown
}

// learned is the heartbeat interval.
func (w *twin) learned() time.Duration {
	if w.knownOf != len(w.pulse) || w.known == 0 { // a pure function of pulse, which only grows
		w.knownOf, w.known = len(w.pulse), w.learn()
	}
	return w.known
}

func (w *twin) learn() time.Duration {
	var gaps []time.Duration
	for i := 1; i < len(w.pulse); i++ {
		if w.noGap[i] {
			continue
		}
		if g := w.pulse[i].Sub(w.pulse[i-1]); g > 0 {
			gaps = append(gaps, g)
		}
	}
	if len(gaps) < 3 {
		return 60 * time.Second
	}
	gaps = gaps[max(0, len(gaps)-10):]
	last := gaps[len(gaps)-1]
	sorted := slices.Sorted(slices.Values(gaps))
	n := len(sorted)
	median := (sorted[(n-1)/2] + sorted[n/2]) / 2
	return max(median, min(last, 60*time.Second), 10*time.Second)
}

func (w *twin) late() time.Duration { return w.learned() * 5 / 2 }
func (w *twin) lost() time.Duration { return w.learned() * 4 }

// connected is how much of a time the database could be read in.
func (w *twin) connected(from, to time.Time) time.Duration {
	d := max(0, to.Sub(from))
	for _, a := range w.aways {
		end := a[1]
		if end.IsZero() || end.After(to) {
			end = to
		}
		d -= max(0, end.Sub(later(a[0], from)))
	}
	return d
}

// lastAway is when the database was there again, if it ever was away, and as of when rows are judged.
func (w *twin) lastAway(t time.Time) (back, asOf time.Time) {
	asOf = t
	for _, a := range w.aways {
		if a[1].IsZero() {
			asOf = a[0]
		} else {
			back = a[1]
		}
	}
	return back, asOf
}

// rowPast reports whether a limit has passed for the row.
func (w *twin) rowPast(t time.Time, limit time.Duration) bool {
	back, asOf := w.lastAway(t)
	at := asOf.Add(limit - w.rowAge(t))
	if at.After(back) && !back.IsZero() {
		at = later(at, back.Add(w.learned()))
	}
	return !asOf.Before(later(at, w.added.Add(w.learned())))
}

func (w *twin) rowAge(t time.Time) time.Duration {
	return w.rowSeen.Sub(w.rowBeat) + w.connected(w.rowSeen, t)
}

// neverPast reports whether a heartbeat that never came counts as lost.
func (w *twin) neverPast(t time.Time) bool {
	back, asOf := w.lastAway(t)
	at := asOf.Add(10*time.Minute - w.connected(w.added, asOf))
	if !w.neverLost {
		at = later(at, later(w.added, back).Add(w.learned()))
	}
	w.neverLost = !asOf.Before(at)
	return w.neverLost
}

// agent is how the reporter of the server is doing.
func (w *twin) agent(t time.Time) statussync.AgentState {
	var beat time.Time
	if len(w.beats) > 0 {
		beat = w.beats[len(w.beats)-1]
	}
	if w.rowBeat.After(beat) {
		switch {
		case w.rowPast(t, w.lost()):
			return statussync.AgentLost
		case w.rowPast(t, w.late()):
			return statussync.AgentLate
		}
		return statussync.AgentOK
	}
	if beat.IsZero() {
		switch {
		case !w.token:
			return statussync.AgentNone
		case !w.neverPast(t):
			return statussync.AgentNeverSeen
		}
		return statussync.AgentLost
	}
	if t.Sub(w.added) < w.learned() { // no limit passes in the first interval
		return statussync.AgentOK
	}
	switch age := t.Sub(beat); {
	case age >= w.lost():
		return statussync.AgentLost
	case age >= w.late():
		return statussync.AgentLate
	}
	return statussync.AgentOK
}

func (w *twin) container() *twinReport {
	if len(w.listed) == 0 {
		return nil
	}
	return &w.listed[len(w.listed)-1]
}

func (w *twin) record() *twinRecord {
	if len(w.records) == 0 {
		return nil
	}
	return &w.records[len(w.records)-1]
}

func (w *twin) said(c *twinReport) statussync.State {
	s, _ := statussync.ContainerState(c.word, c.check == "starting", w.desired() == statussync.DesiredStopped)
	return s
}

func (w *twin) forget() {
	w.results, w.verdict, w.turned, w.fell, w.unsettled = nil, verdictNone, time.Time{}, false, time.Time{}
	w.slow, w.throttled, w.authBad = nil, nil, nil
	w.longest = 0
}

func (w *twin) runs() (fails int, since time.Time, oks int) {
	for i := len(w.results) - 1; i >= 0 && w.results[i].fail; i-- {
		fails++
		since = w.results[i].began
	}
	for i := len(w.results) - 1; i >= 0 && !w.results[i].fail; i-- {
		oks++
	}
	return fails, since, oks
}

// on is whether a condition that begins after two in a row has not ended by two others.
func on(list []bool) bool {
	is := false
	for i := 1; i < len(list); i++ {
		if list[i] == list[i-1] {
			is = list[i]
		}
	}
	return is
}

// look concludes at t.
func (w *twin) look(t time.Time) conclusion {
	if n := len(w.results); n > 0 && t.Sub(w.results[n-1].at) >= 3*w.longest+w.p.Probe.Timeout {
		w.forget()
		if r := w.record(); r != nil {
			r.overruled = false
		}
	}
	if wt := w.wait; wt != nil && (!t.Before(wt.until) || w.verdict == verdictDown || w.desired() != statussync.DesiredRunning) {
		w.wait = nil
		w.hear(wt.came, &wt.report)
		w.container().firstSaid = wt.since
	}
	base, _, _ := w.baseState(t)
	w.past(t, base)
	base, by, why := w.baseState(t)
	c := w.judge(t, base, by, why)
	if w.paceOf(t, c) {
		c = w.judge(t, base, by, why)
		w.paceOf(t, c)
	}
	w.told = c
	return c
}

func (w *twin) containerFresh(t time.Time) bool {
	c := w.container()
	return c != nil && w.agent(t) != statussync.AgentLost && t.Sub(c.at) < w.lost() && w.envAgent(t) != statussync.AgentLost
}

// envAgent is the environment's agent alone.
func (w *twin) envAgent(t time.Time) statussync.AgentState {
	row := w.rowBeat
	w.rowBeat = time.Time{}
	a := w.agent(t)
	w.rowBeat = row
	return a
}

func (w *twin) baseState(t time.Time) (statussync.State, string, statussync.Reason) {
	const unknown = statussync.StateUnknown
	agent := w.agent(t)
	cs, rs := unknown, unknown
	c, r := w.container(), w.record()
	if w.containerFresh(t) && !c.overruled {
		cs = w.said(c)
	}
	if r != nil && !r.overruled && !r.echo && agent != statussync.AgentLost {
		rs, _ = statussync.RecordState(r.word)
	}
	if cs != unknown {
		wins := true
		if rs != unknown {
			if r.at.After(c.at) {
				wins = false
			}
			leaving := rs == statussync.StateStarting && cs == statussync.StateStopped || rs == statussync.StateStopping && cs == statussync.StateRunning
			if leaving && !r.done && !(!c.exitLo.IsZero() && c.exitLo.After(r.at)) {
				wins = false
			}
		}
		if wins {
			if cs == statussync.StateRunning && w.desired() == statussync.DesiredStopped && w.verdict == verdictDown && w.fell && w.turned.After(c.firstSaid) {
				return statussync.StateStopped, "probe", ""
			}
			return cs, "container", ""
		}
	}
	if rs != unknown {
		if rs == statussync.StateStopping && w.verdict == verdictDown && w.fell && w.turned.After(r.at) {
			return statussync.StateStopped, "record", ""
		}
		return rs, "record", ""
	}
	switch w.verdict {
	case verdictUp:
		return statussync.StateRunning, "probe", ""
	case verdictDown:
		if w.desired() == statussync.DesiredStopped {
			return statussync.StateStopped, "probe", ""
		}
		return statussync.StateError, "probe", ""
	}
	switch {
	case r != nil && r.word == "pending_config":
		return unknown, "", statussync.ReasonNeedsConfig
	case w.ever:
		return unknown, "", statussync.ReasonStale
	case w.transport == statussync.TransportStdio && agent == statussync.AgentNone:
		return unknown, "", statussync.ReasonNeedsAgent
	}
	return unknown, "", statussync.ReasonNeverSeen
}

// past keeps what steps 2 and the start grace need to know of the base state's past.
func (w *twin) past(t time.Time, s statussync.State) {
	if w.base == statussync.StateRunning && t.Sub(w.runFrom) >= 2*time.Minute {
		w.startFrom, w.stopFrom = time.Time{}, time.Time{}
	}
	if s != statussync.StateUnknown {
		w.ever = true
	}
	if s == w.base {
		return
	}
	if s == statussync.StateRunning {
		w.runFrom = t
		if w.base == statussync.StateStopped || w.base == statussync.StateStarting {
			w.grace = t
			if w.verdict == verdictDown {
				w.forget()
			}
		}
	}
	switch s {
	case statussync.StateStopped:
		w.startFrom, w.stopFrom = time.Time{}, time.Time{}
	case statussync.StateStarting:
		if w.startFrom.IsZero() {
			w.startFrom = t
		}
	case statussync.StateStopping:
		if w.stopFrom.IsZero() {
			w.stopFrom = t
		}
	}
	w.base = s
}

func (w *twin) judge(t time.Time, state statussync.State, by string, why statussync.Reason) conclusion {
	type given struct {
		h statussync.Health
		r statussync.Reason
	}
	const (
		bad  = statussync.HealthUnhealthy
		meh  = statussync.HealthDegraded
		good = statussync.HealthHealthy
	)
	var all []given
	give := func(if_ bool, h statussync.Health, r statussync.Reason) {
		if if_ {
			all = append(all, given{h, r})
		}
	}
	fails, _, _ := w.runs()
	failing := statussync.ReasonProbeFailing
	if fails > 0 && w.results[len(w.results)-1].notMCP {
		failing = statussync.ReasonNotMCP
	}
	errorReason := failing
	if by == "container" || by == "record" {
		errorReason = statussync.ReasonContainerError
	}
	if state == statussync.StateStarting && t.Sub(w.startFrom) >= 10*time.Minute {
		state, errorReason = statussync.StateError, statussync.ReasonStuckStarting
	}
	if state == statussync.StateStopping && t.Sub(w.stopFrom) >= 10*time.Minute {
		state, errorReason = statussync.StateError, statussync.ReasonStuckStopping
	}
	running := state == statussync.StateRunning
	agent, desired := w.agent(t), w.desired()
	up := w.verdict == verdictUp
	fresh := up && t.Sub(w.results[len(w.results)-1].at) < 2*w.every+w.p.Probe.Timeout
	cFresh := w.containerFresh(t)
	badExit := w.lastExit != nil && *w.lastExit != 0 && *w.lastExit != 130 && *w.lastExit != 143

	give(state == statussync.StateError, bad, errorReason)
	stopReason := statussync.ReasonStoppedUnexpectedly
	if badExit {
		stopReason = statussync.ReasonCrashed
	}
	give(state == statussync.StateStopped && (desired == statussync.DesiredRunning || desired == statussync.DesiredUnknown && badExit), bad, stopReason)
	third := func(list []time.Time) bool {
		return len(list) >= 3 && t.Sub(list[len(list)-3]) < 10*time.Minute
	}
	off := state == statussync.StateStopped && desired == statussync.DesiredStopped // who was stopped on purpose loops no more
	give((third(w.restarts) || third(w.starts)) && !off, bad, statussync.ReasonCrashLoop)
	give(running && cFresh && !w.container().overruled && w.container().check == "unhealthy", bad, statussync.ReasonContainerUnhealthy)
	give(running && w.verdict == verdictDown, bad, failing)
	lost := agent == statussync.AgentLost
	give(lost && !fresh && desired != statussync.DesiredStopped, bad, statussync.ReasonHeartbeatLost)
	give(lost && fresh, meh, statussync.ReasonAgentSilent)
	give(running && agent == statussync.AgentLate && !fresh, meh, statussync.ReasonHeartbeatLate)
	give(running && on(w.authBad), meh, statussync.ReasonAuthFailed)
	give(running && w.pin != nil && !sameTools(w.pin, w.tools), meh, statussync.ReasonToolsChanged)
	give(running && on(w.slow), meh, statussync.ReasonProbeSlow)
	give(running && on(w.throttled), meh, statussync.ReasonThrottled)
	own := up
	if cFresh && !w.container().overruled && w.said(w.container()) == statussync.StateRunning && !(w.verdict == verdictNone && fails > 0) {
		own = true
	}
	if !w.rowBeat.IsZero() && !lost && w.rowAge(t) < w.lost() {
		own = true
	}
	give(running && own, good, statussync.ReasonOK)

	c := conclusion{State: state, Health: statussync.HealthUnknown}
	for _, h := range []statussync.Health{bad, meh, good} {
		for _, g := range all {
			if g.h == h {
				c.Health, c.Reason = g.h, g.r
				return c
			}
		}
	}
	switch state {
	case statussync.StateStopped, statussync.StateStarting, statussync.StateStopping:
		c.Reason = statussync.ReasonOK
	case statussync.StateRunning:
		c.Reason = statussync.ReasonNeverSeen
	default:
		c.Reason = why
	}
	return c
}

// paceOf is the cadence table; it reports a change.
func (w *twin) paceOf(t time.Time, c conclusion) bool {
	bad := c.State == statussync.StateError || c.Health == statussync.HealthUnhealthy
	if !bad {
		w.badFrom = time.Time{}
	} else if w.badFrom.IsZero() {
		w.badFrom = t
	}
	d := 30 * time.Second
	switch {
	case bad && t.Sub(w.badFrom) < 10*time.Minute:
		d = 10 * time.Second
	case bad:
		d = 60 * time.Second
	case c.State == statussync.StateStopped:
		d = 5 * time.Minute
	case c.State != statussync.StateRunning || c.Health == statussync.HealthUnknown || w.verdict == verdictNone:
		d = 10 * time.Second
	}
	changed := d != w.every
	w.every = d
	w.longest = max(w.longest, d)
	return changed
}

// hear takes what an agent said of the container at t.
func (w *twin) hear(t time.Time, r *statussync.ContainerReport) {
	c := w.container()
	word := strings.ToLower(strings.TrimSpace(r.Word))
	n := twinReport{at: t, firstSaid: t, word: word, check: r.HealthCheck}
	var lo, hi time.Time
	if r.ExitAge.Known() {
		lo, hi = t.Add(-r.ExitAge.Max), t.Add(-r.ExitAge.Min)
	}
	wasRunning := c != nil && w.rawState(c) == statussync.StateRunning
	if c != nil {
		n.exit, n.exitLo, n.exitHi = c.exit, c.exitLo, c.exitHi
		same := c.word == word && (c.check == "starting") == (r.HealthCheck == "starting") &&
			(r.ExitCode == nil || c.exit != nil && *c.exit == *r.ExitCode) &&
			!(r.ExitAge.Known() && !c.exitHi.IsZero() && lo.After(c.exitHi))
		if same {
			n.firstSaid, n.overruled = c.firstSaid, c.overruled
		}
	}
	if r.ExitCode != nil {
		n.exit, w.lastExit = r.ExitCode, r.ExitCode
	}
	if r.ExitAge.Known() {
		if n.exitHi.IsZero() || lo.After(n.exitHi) || hi.Before(n.exitLo) {
			n.exitLo, n.exitHi = lo, hi
		} else {
			if lo.After(n.exitLo) {
				n.exitLo = lo
			}
			if hi.Before(n.exitHi) {
				n.exitHi = hi
			}
		}
	}
	if word == "restarting" && (len(w.restarts) == 0 || t.Sub(w.restarts[len(w.restarts)-1]) >= 30*time.Second) {
		w.restarts = append(w.restarts, t)
	}
	if w.rawState(&n) == statussync.StateRunning {
		w.lastExit, n.exit, n.exitLo, n.exitHi = nil, nil, time.Time{}, time.Time{}
		before := w.startHi
		started := false
		if r.StartAge.Known() {
			lo, hi := t.Add(-r.StartAge.Max), t.Add(-r.StartAge.Min)
			switch {
			case w.startHi.IsZero():
				started = c != nil && !wasRunning
				w.startLo, w.startHi = lo, hi
			case lo.After(w.startHi):
				started = true
				w.startLo, w.startHi = lo, hi
			case hi.Before(w.startLo):
				w.startLo, w.startHi = lo, hi
			default:
				if lo.After(w.startLo) {
					w.startLo = lo
				}
				if hi.Before(w.startHi) {
					w.startHi = hi
				}
			}
		} else if c != nil && !wasRunning {
			started = true
			w.startLo, w.startHi = time.Time{}, time.Time{}
		}
		if started && c != nil {
			asked := false
			if rec := w.record(); rec != nil && !rec.echo && rec.at.After(before) {
				s, _ := statussync.RecordState(rec.word)
				asked = s == statussync.StateStarting || s == statussync.StateRunning
			}
			if !asked {
				w.starts = append(w.starts, t)
			}
		}
	}
	w.listed = append(w.listed, n)
	if rec := w.record(); rec != nil && !rec.echo && n.at.After(rec.at) {
		rs, _ := statussync.RecordState(rec.word)
		s := w.said(&n)
		if rs == statussync.StateStarting && s != statussync.StateStopped && s != statussync.StateUnknown ||
			rs == statussync.StateStopping && s != statussync.StateRunning && s != statussync.StateUnknown {
			rec.done = true
		}
	}
}

// sameTools compares two sets of tools, however they are ordered.
func sameTools(a, b []statussync.ToolRef) bool {
	in := func(list []statussync.ToolRef) func(t statussync.ToolRef) bool {
		return func(t statussync.ToolRef) bool { return !slices.Contains(list, t) }
	}
	return !slices.ContainsFunc(a, in(b)) && !slices.ContainsFunc(b, in(a))
}

func (w *twin) rawState(c *twinReport) statussync.State {
	s, _ := statussync.ContainerState(c.word, c.check == "starting", false)
	return s
}

// report takes one heartbeat: nil says nothing of containers, else it is a complete list with or without the server. An
// event is no heartbeat to learn from, and says nothing of who is not on its list.
func (w *twin) report(t time.Time, list, event bool, r *statussync.ContainerReport) {
	w.beats = append(w.beats, t)
	if !event {
		w.pulse = append(w.pulse, t)
	}
	if !list || event && r == nil {
		return
	}
	absent := r == nil
	if absent {
		if len(w.listed) == 0 {
			return
		}
		r = &statussync.ContainerReport{Word: "stopped"}
	}
	state, _ := statussync.ContainerState(r.Word, r.HealthCheck == "starting", w.desired() == statussync.DesiredStopped)
	clean := r.ExitCode == nil || *r.ExitCode == 0 || *r.ExitCode == 130 || *r.ExitCode == 143
	quiet := state == statussync.StateStopped && clean && w.desired() == statussync.DesiredRunning
	if wt := w.wait; wt != nil {
		if quiet && (!wt.next || event) {
			wt.report, wt.came, wt.absent = *r, t, absent
			return
		}
		w.wait = nil
		w.hear(t, r)
		return
	}
	news := true
	if c := w.container(); c != nil {
		lo := t.Add(-r.ExitAge.Max)
		news = !(c.word == strings.ToLower(r.Word) && (c.check == "starting") == (r.HealthCheck == "starting") &&
			(r.ExitCode == nil || c.exit != nil && *c.exit == *r.ExitCode) &&
			!(r.ExitAge.Known() && !c.exitHi.IsZero() && lo.After(c.exitHi)))
	}
	if quiet && news && w.told.State == statussync.StateRunning && w.told.Health == statussync.HealthHealthy {
		w.wait = &twinWait{since: t, until: t.Add(10 * time.Second), report: *r, came: t, absent: absent}
		if !w.probed && !event { // of an event: the start would be told at once as well
			w.wait.next, w.wait.until = true, t.Add(w.learned()+10*time.Second) // an interval, and what a heartbeat may be late
		}
		return
	}
	w.hear(t, r)
}

func (w *twin) row(t, at time.Time) {
	switch {
	case w.rowAt.IsZero():
		w.rowBeat = at
		if at.After(t) {
			w.rowBeat = t
		}
	case at.After(w.rowAt):
		w.rowBeat = t
		if n := len(w.pulse); n > 0 && w.connected(w.pulse[n-1], t) != t.Sub(w.pulse[n-1]) {
			w.noGap[n] = true
		}
		w.pulse = append(w.pulse, t)
	default:
		return
	}
	w.rowAt, w.rowSeen = at, t
}

// database takes that the database can be read, or not.
func (w *twin) database(t time.Time, connected bool) {
	n := len(w.aways)
	if away := n > 0 && w.aways[n-1][1].IsZero(); away && connected {
		w.aways[n-1][1] = t
	} else if !away && !connected {
		w.aways = append(w.aways, [2]time.Time{t})
	}
}

func (w *twin) says(t time.Time, word string, echo bool) {
	word = strings.ToLower(strings.TrimSpace(word))
	if r := w.record(); r != nil && r.word == word || r == nil && word == "" {
		return
	}
	if echo {
		w.records = append(w.records, twinRecord{at: t, word: word, echo: true})
		return
	}
	before := w.desired()
	w.records = append(w.records, twinRecord{at: t, word: word})
	if d, keep := statussync.RecordDesired(word); !keep {
		w.wanted = d
	}
	if d := w.desired(); d != before && d == statussync.DesiredRunning {
		w.grace = t
	}
}

func (w *twin) probe(t time.Time, r *statussync.ProbeResult) {
	// An old verdict is gone before the new result counts: look did that.
	fail := r.Outcome == statussync.OutcomeFailure
	w.results = append(w.results, twinResult{at: t, began: r.StartedAt, fail: fail, connect: r.ByConnect, notMCP: r.NotMCP})
	w.longest = w.every
	first := len(w.results) == 1
	fails, since, oks := w.runs()
	turn := func(v verdict) {
		w.verdict, w.turned, w.unsettled, w.fell = v, t, time.Time{}, v == verdictDown && r.ByConnect
	}
	contradicts := first || w.verdict == verdictUp && fail || w.verdict == verdictDown && !fail
	if contradicts && w.unsettled.IsZero() {
		w.unsettled, w.both = t, false
	}
	if fail {
		switch {
		case w.verdict == verdictDown:
			if fails > 3 {
				w.unsettled = time.Time{}
			}
		case fails > 3:
			soon := w.verdict == verdictNone || !w.grace.IsZero() && since.Before(w.grace.Add(30*time.Second))
			if !soon || t.Sub(since) >= 30*time.Second {
				turn(verdictDown)
			}
		}
	} else {
		w.both = true
		w.slow = append(w.slow, r.Latency >= 2*time.Second)
		w.throttled = append(w.throttled, r.Throttled)
		w.authBad = append(w.authBad, r.Auth == statussync.AuthFailed)
		switch {
		case w.verdict == verdictUp:
			if oks >= 2 {
				w.unsettled = time.Time{}
			}
		case first || oks >= 2:
			turn(verdictUp)
		}
		if wt := w.wait; wt != nil && r.StartedAt.After(wt.since) {
			w.wait = nil
			if w.verdict == verdictUp {
				w.hear(wt.came, &wt.report)
				w.container().overruled = true
			}
		}
	}
	if !w.unsettled.IsZero() && w.both && t.Sub(w.unsettled) >= 60*time.Second {
		if fail && w.verdict != verdictDown {
			turn(verdictDown)
		}
		if !fail && w.verdict != verdictUp {
			turn(verdictUp)
		}
	}
	if !fail && w.verdict == verdictUp {
		if c := w.container(); c != nil && r.StartedAt.After(c.firstSaid) {
			switch w.said(c) {
			case statussync.StateStopped, statussync.StateStarting, statussync.StateError:
				c.overruled = true
			}
		}
		if rec := w.record(); rec != nil && r.StartedAt.After(rec.at) {
			if s, _ := statussync.RecordState(rec.word); s != statussync.StateUnknown && !statussync.RecordForbids(rec.word) {
				rec.overruled = true
			}
		}
	}
}

// TestTwin compares the engine with the twin, four times a second and after every observation.
func TestTwin(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		p := DefaultPolicy()
		p.FlapChanges = 1 << 20 // not in the twin
		e, err := New(p)
		if err != nil {
			t.Fatal(err)
		}
		w := &twin{p: p, added: begin, noGap: map[int]bool{}, transport: statussync.TransportHTTP, every: 0}
		w.config = rapid.SampledFrom([]statussync.Desired{"", statussync.DesiredRunning, statussync.DesiredStopped}).Draw(t, "desired")
		w.token = rapid.Bool().Draw(t, "token")
		w.probed = rapid.Bool().Draw(t, "probed")
		def := statussync.Server{ID: "s", Name: "s", EnvironmentID: "e", Desired: w.config, Transport: w.transport, Origin: statussync.OriginConfig}
		if w.probed {
			def.Endpoint = "http://10.0.0.1:1/mcp"
		} else if rapid.Bool().Draw(t, "stdio") {
			w.transport, def.Transport = statussync.TransportStdio, statussync.TransportStdio
		}
		var eff Effects
		e.Start(begin, time.Time{}, &eff)
		e.Step(begin, &statussync.RegistryUpdate{Origin: statussync.OriginConfig,
			Environments: []statussync.Environment{{ID: "e", HasToken: w.token, Origin: statussync.OriginConfig}},
			Servers:      []statussync.Server{def}}, &eff)
		w.look(begin)

		var log []string
		now := begin
		compare := func(what string) {
			t.Helper()
			want := w.told
			got, _ := e.Status("s")
			if got.State != want.State || got.Health != want.Health || got.Reason != want.Reason {
				t.Logf("starts: engine %v, twin %v", e.servers["s"].Starts, w.starts)
				t.Fatalf("%s\nat %v, %s: the engine says %s %s %s, the twin %s %s %s", strings.Join(log, "\n"),
					now.Sub(begin), what, got.State, got.Health, got.Reason, want.State, want.Health, want.Reason)
			}
		}
		words := []string{"running", "running", "running", "exited", "exited", "created", "restarting", "paused", "dead", "removing", "starting", "gibberish"}
		recordWords := []string{"running", "starting", "stopping", "stopped", "exited", "error_install", "pending_config", "deleting", "gibberish", "deploying"}
		steps := rapid.IntRange(1, 40).Draw(t, "steps")
		pushes := uint64(0)
		for range steps {
			wait := rapid.SampledFrom([]int{0, 1, 1, 1, 2, 3, 5, 8, 10, 10, 20, 30, 45, 60, 60, 90, 130, 200, 320, 700}).Draw(t, "wait")
			for range wait * 4 {
				now = now.Add(250 * time.Millisecond)
				e.Tick(now, &eff)
				w.look(now)
				compare("by time alone")
			}
			switch kind := rapid.IntRange(0, 11).Draw(t, "kind"); {
			case kind == 11: // the database goes, or is there again
				connected := rapid.Bool().Draw(t, "connected")
				log = append(log, fmt.Sprintf("%v database %v", now.Sub(begin), connected))
				e.Step(now, &statussync.DatabaseConnection{Origin: statussync.OriginConfig, Connected: connected}, &eff)
				w.database(now, connected)
			case kind <= 2: // heartbeat
				r := &statussync.AgentReport{EnvironmentID: "e", Via: statussync.ViaPush, List: statussync.ListComplete}
				var c *statussync.ContainerReport
				switch rapid.IntRange(0, 5).Draw(t, "list") {
				case 0:
					r.List = statussync.ListNone
				case 1:
				default:
					c = &statussync.ContainerReport{Names: []string{"s"}, Word: rapid.SampledFrom(words).Draw(t, "word")}
					switch c.Word {
					case "running":
						c.HealthCheck = rapid.SampledFrom([]string{"", "", "healthy", "unhealthy", "starting"}).Draw(t, "check")
						if up := rapid.SampledFrom([]int{0, 3, 30, 600}).Draw(t, "up"); up > 0 {
							c.StartAge = statussync.AgeRange{Min: time.Duration(up) * time.Second, Max: time.Duration(up*2) * time.Second}
						}
					case "exited":
						if code := rapid.SampledFrom([]int{-1, 0, 143, 137, 1}).Draw(t, "code"); code >= 0 {
							c.ExitCode = &code
						}
						if ago := rapid.SampledFrom([]int{0, 1, 5, 60}).Draw(t, "ago"); ago > 0 {
							c.ExitAge = statussync.AgeRange{Min: time.Duration(ago) * time.Second, Max: time.Duration(ago+1) * time.Second}
						}
					}
					r.Containers = []statussync.ContainerReport{*c}
				}
				event := rapid.IntRange(0, 3).Draw(t, "event") == 0
				if event {
					r.Via = statussync.ViaEvent
				}
				log = append(log, fmt.Sprintf("%v %s %v %+v", now.Sub(begin), r.Via, r.List, r.Containers))
				e.Step(now, r, &eff)
				w.report(now, r.List == statussync.ListComplete, event, c)
			case kind == 3: // the row's heartbeat
				at := now.Add(-time.Duration(rapid.SampledFrom([]int{0, 5, 100, 1000, -50}).Draw(t, "row")) * time.Second)
				pushes++
				log = append(log, fmt.Sprintf("%v row %v", now.Sub(begin), at.Sub(begin)))
				e.Step(now, &statussync.RowHeartbeat{ServerID: "s", At: at, Read: pushes}, &eff)
				w.row(now, at)
			case kind == 4:
				r := &statussync.RecordSeen{ServerID: "s", Word: rapid.SampledFrom(recordWords).Draw(t, "record"), Echo: rapid.IntRange(0, 5).Draw(t, "echo") == 0}
				log = append(log, fmt.Sprintf("%v record %+v", now.Sub(begin), *r))
				e.Step(now, r, &eff)
				w.says(now, r.Word, r.Echo)
			case kind == 5: // its tools
				switch rapid.IntRange(0, 4).Draw(t, "tools") {
				case 0:
					if w.listedAny {
						e.Step(now, &statussync.ToolsPin{ServerID: "s"}, &eff)
						w.pin = append([]statussync.ToolRef{}, w.tools...)
					}
				case 1:
					if w.pin != nil {
						e.Step(now, &statussync.ToolsUnpin{ServerID: "s"}, &eff)
						w.pin = nil
					}
				default:
					var list []statussync.ToolRef
					for _, name := range []string{"a", "b"} {
						if h := rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, name); h != "" {
							list = append(list, statussync.ToolRef{Name: name, Hash: h})
						}
					}
					if rapid.Bool().Draw(t, "backwards") {
						slices.Reverse(list)
					}
					drifts := 0
					if w.listedAny && !sameTools(w.tools, list) {
						drifts = 1
					}
					before := len(eff.Entries)
					e.Step(now, &statussync.ToolsSeen{ServerID: "s", Tools: list}, &eff)
					for _, en := range eff.Entries[before:] {
						if en.Kind == statussync.KindToolDrift {
							drifts--
						}
					}
					if drifts != 0 {
						t.Fatalf("%v became %v: told %d entries too few", w.tools, list, drifts)
					}
					w.tools, w.listedAny = list, true
				}
				log = append(log, fmt.Sprintf("%v tools %v, pinned %v", now.Sub(begin), w.tools, w.pin))
			default:
				if !w.probed {
					continue
				}
				r := &statussync.ProbeResult{ServerID: "s", Outcome: statussync.OutcomeSuccess, StartedAt: now.Add(-time.Duration(rapid.SampledFrom([]int{0, 0, 1, 4}).Draw(t, "began")) * time.Second)}
				switch rapid.IntRange(0, 8).Draw(t, "outcome") {
				case 0, 1:
					r.Outcome, r.ByConnect, r.Cause = statussync.OutcomeFailure, true, "refused"
				case 2:
					r.Outcome, r.Cause = statussync.OutcomeFailure, "http_503"
				case 3:
					r.Outcome, r.NotMCP = statussync.OutcomeFailure, true
				case 4:
					r.Outcome, r.Throttled = statussync.OutcomeAlive, true
				case 5:
					r.Outcome, r.Auth = statussync.OutcomeAlive, statussync.AuthFailed
				case 6:
					r.Latency = 3 * time.Second
				}
				for range rapid.SampledFrom([]int{1, 1, 2, 4, 5}).Draw(t, "times") {
					log = append(log, fmt.Sprintf("%v probe %s connect=%v began %v", now.Sub(begin), r.Outcome, r.ByConnect, r.StartedAt.Sub(begin)))
					e.Step(now, r, &eff)
					w.probe(now, r)
					w.look(now)
					compare("after a probe")
				}
			}
			if len(eff.Errors) > 0 {
				t.Fatal(eff.Errors)
			}
			w.look(now)
			compare("after an observation")
		}
	})
}
