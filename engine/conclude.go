package engine

import (
	"strconv"
	"time"

	"github.com/agentopia/statussync"
)

// sight is the evidence of one server as it counts at one moment: what steps 1 to 3 are a function of.
type sight struct {
	desired statussync.Desired
	agent   statussync.AgentState // none where nobody reports for it

	container      statussync.State // StateUnknown: says nothing now
	containerFresh bool
	recordState    statussync.State
	verdict        verdict
	verdictFresh   bool
}

// see gathers the evidence at now and tells due when any of it changes by time alone.
func (e *Engine) see(s *server, now time.Time, due *nearest) sight {
	v := sight{desired: s.desired(), agent: statussync.AgentNone, container: statussync.StateUnknown, recordState: statussync.StateUnknown}
	env := s.env
	var lastBeat time.Time
	if env != nil {
		v.agent, lastBeat = env.Judged, env.LastBeat
		if v.agent == "" {
			v.agent = statussync.AgentNone
		}
	}
	if s.RowBeat.After(lastBeat) { // its own row's heartbeat is newer than its environment's
		v.agent = e.judgeRow(s, now, due)
	}
	c := &s.Container
	if c.known() && v.agent != statussync.AgentLost && e.containerFresh(s, now, due) {
		v.containerFresh = true
		if !c.Overruled {
			v.container = c.stateFor(v.desired)
		}
	}
	if rec := &s.Record; rec.State != "" && !rec.Overruled && v.agent != statussync.AgentLost {
		v.recordState = rec.State
	}
	p := &s.Probe
	v.verdict = p.Verdict
	if p.Attempts > 0 {
		due.add(e.gone(s))
		if p.Verdict != verdictNone {
			until := e.freshUntil(s)
			v.verdictFresh = now.Before(until)
			due.add(until)
		}
	}
	return v
}

// containerFresh reports whether the container's words are younger than the heartbeat's lost limit. Words of the newest
// heartbeat live as long as its agent is not lost.
func (e *Engine) containerFresh(s *server, now time.Time, due *nearest) bool {
	if s.env == nil {
		return false
	}
	interval, _, lost := e.limits(s.env)
	until := notAtStart(s.Container.AssertedAt.Add(lost), interval, e.started)
	due.add(until)
	if !s.Container.AssertedAt.Before(s.env.LastBeat) && !s.RowBeat.After(s.env.LastBeat) {
		return true
	}
	return now.Before(until)
}

// notAtStart moves a limit that would pass in the first heartbeat interval after a start to its end; one that had passed
// before stays so.
func notAtStart(limit time.Time, interval time.Duration, started time.Time) time.Time {
	if !limit.After(started) {
		return limit
	}
	return later(limit, started.Add(interval))
}

// rowLimits are the limits of a server's own row: its environment's, or the policy's where it has none.
func (e *Engine) rowLimits(s *server) (interval, late, lost time.Duration) {
	if s.env != nil {
		return e.limits(s.env)
	}
	return e.limits(&environment{})
}

// judgeRow judges the life of a server's agent by the server's own row.
func (e *Engine) judgeRow(s *server, now time.Time, due *nearest) statussync.AgentState {
	interval, late, lost := e.rowLimits(s)
	floor := s.FirstSeen.Add(interval)
	h := e.heardRow(s, now)
	lateAt := later(notAtStart(h.at.Add(late), interval, h.started), floor)
	lostAt := later(notAtStart(h.at.Add(lost), interval, h.started), floor)
	if !h.waits {
		due.add(lateAt)
		due.add(lostAt)
	}
	switch {
	case !h.asOf.Before(lostAt):
		return statussync.AgentLost
	case !h.asOf.Before(lateAt):
		return statussync.AgentLate
	}
	return statussync.AgentOK
}

// base is step 1: the state, who said so, and the reason where nobody did.
func (e *Engine) base(s *server, v *sight) (state statussync.State, by string, reason statussync.Reason) {
	rec := &s.Record
	if v.container != statussync.StateUnknown {
		recordLater := v.recordState != statussync.StateUnknown && rec.AssertedAt.After(s.Container.AssertedAt)
		if !recordLater && !(v.recordState != statussync.StateUnknown && s.underWay(v.container)) {
			if v.container == statussync.StateRunning && v.desired == statussync.DesiredStopped && v.verdict == verdictDown &&
				s.Probe.Fell && s.Probe.Since.After(s.Container.FirstSaid) {
				// It was to stop, and nobody answers any more: the agent's next report will say so too.
				return statussync.StateStopped, "probe", ""
			}
			return v.container, "container", ""
		}
	}
	if v.recordState != statussync.StateUnknown {
		if v.recordState == statussync.StateStopping && v.verdict == verdictDown && s.Probe.Fell && s.Probe.Since.After(rec.AssertedAt) {
			return statussync.StateStopped, "record", ""
		}
		return v.recordState, "record", ""
	}
	switch v.verdict {
	case verdictUp:
		return statussync.StateRunning, "probe", ""
	case verdictDown:
		if v.desired == statussync.DesiredStopped {
			return statussync.StateStopped, "probe", ""
		}
		return statussync.StateError, "probe", ""
	}
	switch {
	case s.Def.NeedsConfig != "" || rec.Word == "pending_config":
		reason = statussync.ReasonNeedsConfig
	case s.Ever:
		reason = statussync.ReasonStale
	case s.Def.Transport == statussync.TransportStdio && v.agent == statussync.AgentNone:
		reason = statussync.ReasonNeedsAgent
	default:
		reason = statussync.ReasonNeverSeen
	}
	return statussync.StateUnknown, "", reason
}

// noteBase keeps the clocks of step 2, and what a start resets. It reports whether evidence was dropped by it.
func (e *Engine) noteBase(s *server, state statussync.State, now time.Time) (dropped bool) {
	if state != statussync.StateUnknown {
		s.Ever = true
	}
	if state == s.Base {
		return false
	}
	was := s.Base
	s.Base = state
	e.touch(s)
	if state == statussync.StateRunning {
		s.RunningSince = now
		if was == statussync.StateStopped || was == statussync.StateStarting {
			s.Probe.GraceFrom = now
			if s.Probe.Verdict == verdictDown {
				s.Probe.forget()
				dropped = true
			}
			if s.falling {
				e.unfall(s)
			}
		}
		return dropped
	}
	if was == statussync.StateRunning && now.Sub(s.RunningSince) >= e.p.StuckForgivenAfter {
		s.StartingSince, s.StoppingSince = time.Time{}, time.Time{}
	}
	s.RunningSince = time.Time{}
	switch state {
	case statussync.StateStopped:
		s.StartingSince, s.StoppingSince = time.Time{}, time.Time{}
	case statussync.StateStarting:
		if s.StartingSince.IsZero() {
			s.StartingSince = now
		}
	case statussync.StateStopping:
		if s.StoppingSince.IsZero() {
			s.StoppingSince = now
		}
	}
	return false
}

// trace collects what every rule gave; nil costs nothing.
type trace struct {
	rules []statussync.ExplainedRule
	won   int
}

// health is steps 2 and 3: a function of the evidence, the policy and now.
func (e *Engine) health(s *server, v *sight, state statussync.State, by string, reason statussync.Reason, now time.Time, due *nearest, tr *trace) conclusion {
	c := conclusion{State: state, Health: statussync.HealthUnknown}
	stuck := statussync.Reason("")
	switch state {
	case statussync.StateStarting:
		stuck = e.stuck(s.StartingSince, statussync.ReasonStuckStarting, now, due)
	case statussync.StateStopping:
		stuck = e.stuck(s.StoppingSince, statussync.ReasonStuckStopping, now, due)
	}
	if tr != nil {
		tr.add("1 base state", state, "", reason, whyBase(state, by, reason))
		if stuck != "" {
			tr.add("2 deadline", statussync.StateError, "", stuck, string(state)+" for longer than "+e.p.StuckAfter.String())
		} else {
			tr.add("2 deadline", "", "", "", "not in a transition for too long")
		}
	}
	if stuck != "" {
		state, c.State = statussync.StateError, statussync.StateError
	}
	won := false
	give := func(rule string, applies bool, h statussync.Health, r statussync.Reason, why string) {
		if tr != nil {
			if !applies {
				tr.add(rule, "", "", "", "not the case: "+why)
			} else {
				tr.add(rule, "", h, r, why)
			}
		}
		if applies && h.Rank() > c.Health.Rank() {
			c.Health, c.Reason, won = h, r, true
			if tr != nil {
				tr.won = len(tr.rules) - 1
			}
		}
	}
	running := state == statussync.StateRunning
	p := &s.Probe
	failing := statussync.ReasonProbeFailing
	if p.NotMCP {
		failing = statussync.ReasonNotMCP
	}
	const unhealthy, degraded = statussync.HealthUnhealthy, statussync.HealthDegraded

	ra := failing
	switch {
	case stuck != "":
		ra = stuck
	case by == "container" || by == "record":
		ra = statussync.ReasonContainerError
	}
	give("3a", state == statussync.StateError, unhealthy, ra, "state error")

	badExit := s.LastExit != nil && !statussync.CleanExit(*s.LastExit)
	rb := statussync.ReasonStoppedUnexpectedly
	if badExit {
		rb = statussync.ReasonCrashed
	}
	give("3b", state == statussync.StateStopped && (v.desired == statussync.DesiredRunning || v.desired == statussync.DesiredUnknown && badExit),
		unhealthy, rb, "stopped while it should run, or with a bad exit code")

	restarting := e.looping(s.Restarting, now, due)
	starts := e.looping(s.Starts, now, due)
	off := state == statussync.StateStopped && v.desired == statussync.DesiredStopped // who was stopped on purpose loops no more
	give("3c", (restarting || starts) && !off, unhealthy, statussync.ReasonCrashLoop, "restarts again and again")
	give("3d", running && v.containerFresh && !s.Container.Overruled && s.Container.HealthCheck == "unhealthy", unhealthy, statussync.ReasonContainerUnhealthy, "Docker's own check says unhealthy")
	give("3e", running && v.verdict == verdictDown, unhealthy, failing, "probes fail")

	up := v.verdict == verdictUp
	freshUp := up && v.verdictFresh
	lost := v.agent == statussync.AgentLost
	give("3f", lost && !freshUp && v.desired != statussync.DesiredStopped, unhealthy, statussync.ReasonHeartbeatLost, "its agent is lost and no fresh probe says that it is up")
	give("3g", lost && freshUp, degraded, statussync.ReasonAgentSilent, "it answers, its agent is lost")
	give("3h", running && v.agent == statussync.AgentLate && !freshUp, degraded, statussync.ReasonHeartbeatLate, "its agent's heartbeat is late and no fresh probe says that it is up")
	give("3i", running && p.AuthBad.On, degraded, statussync.ReasonAuthFailed, "the login is rejected")
	_, changed := s.toolsDiffer()
	give("3j", running && changed, degraded, statussync.ReasonToolsChanged, "its tools are not the pinned ones")
	give("3j", running && p.Slow.On, degraded, statussync.ReasonProbeSlow, "answers slowly")
	give("3j", running && p.Throttled.On, degraded, statussync.ReasonThrottled, "asks us to slow down")

	own := up
	if v.containerFresh && !s.Container.Overruled && s.Container.State == statussync.StateRunning && !(p.Verdict == verdictNone && p.FailRun > 0) {
		own = true
	}
	if !s.RowBeat.IsZero() && v.agent != statussync.AgentLost && e.rowFresh(s, now, due) {
		own = true
	}
	give("3k", running && own, statussync.HealthHealthy, statussync.ReasonOK, "running, with fresh evidence of its own")
	if !won {
		switch state {
		case statussync.StateStopped, statussync.StateStarting, statussync.StateStopping:
			c.Reason = statussync.ReasonOK
		case statussync.StateRunning:
			c.Reason = statussync.ReasonNeverSeen
		default:
			c.Reason = reason
		}
	}
	if tr != nil {
		tr.add("3l", "", statussync.HealthUnknown, c.Reason, "what remains where no other rule gave anything")
		if won {
			tr.rules[len(tr.rules)-1].Reason = ""
		} else {
			tr.won = len(tr.rules) - 1
		}
	}
	e.cause(s, v, &c)
	return c
}

func (e *Engine) rowFresh(s *server, now time.Time, due *nearest) bool {
	_, _, lost := e.rowLimits(s)
	h := e.heardRow(s, now)
	until := h.at.Add(lost)
	if !h.waits {
		due.add(until)
	}
	return h.asOf.Before(until)
}

func (e *Engine) stuck(since time.Time, r statussync.Reason, now time.Time, due *nearest) statussync.Reason {
	if since.IsZero() {
		return ""
	}
	at := since.Add(e.p.StuckAfter)
	due.add(at)
	if now.Before(at) {
		return ""
	}
	return r
}

// cause fills the fine word and the text for people that go with the conclusion's reason.
func (e *Engine) cause(s *server, v *sight, c *conclusion) {
	switch c.Reason {
	case statussync.ReasonProbeFailing, statussync.ReasonNotMCP, statussync.ReasonAuthFailed, statussync.ReasonThrottled:
		c.Cause, c.LastError = s.Probe.Cause, s.Probe.Detail
	case statussync.ReasonProbeSlow:
		c.Cause = "slow"
	case statussync.ReasonCrashed, statussync.ReasonStoppedUnexpectedly, statussync.ReasonCrashLoop:
		if s.LastExit != nil {
			c.Cause = exitCause(*s.LastExit)
		}
		c.LastError = s.Container.Text
	case statussync.ReasonContainerUnhealthy:
		c.Cause, c.LastError = "health_check", s.Container.Text
	case statussync.ReasonContainerError:
		c.Cause, c.LastError = s.Container.Word, s.Container.Text
		if v.container != statussync.StateError {
			c.Cause, c.LastError = s.Record.Word, s.Record.Error
		}
	case statussync.ReasonToolsChanged:
		c.LastError, _ = s.toolsDiffer()
	case statussync.ReasonNeedsConfig:
		c.LastError = s.Def.NeedsConfig
	}
}

func exitCause(code int) string {
	switch code { // the usual ones without an allocation
	case 0:
		return "exit_0"
	case 1:
		return "exit_1"
	case 137:
		return "exit_137"
	case 143:
		return "exit_143"
	}
	return "exit_" + strconv.Itoa(code)
}

func whyBase(state statussync.State, by string, reason statussync.Reason) string {
	if by == "" {
		return "nothing fresh says what it is: " + string(reason)
	}
	return "the " + by + " says " + string(state)
}

func (t *trace) add(rule string, s statussync.State, h statussync.Health, r statussync.Reason, why string) {
	t.rules = append(t.rules, statussync.ExplainedRule{Rule: rule, State: s, Health: h, Reason: r, Why: why})
}
