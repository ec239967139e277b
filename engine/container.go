package engine

import (
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// contain takes what a report says of one server's container; event: it was told at once (statussync.ViaEvent).
func (e *Engine) contain(s *server, now time.Time, r *statussync.ContainerReport, event bool, eff *Effects) {
	if _, known := statussync.ContainerState(r.Word, false, false); !known {
		e.unknownWord(r.Word, eff)
	}
	if e.holdStop(s, now, r, false, event, eff) {
		return
	}
	e.applyContainer(s, now, r, eff)
}

// absent takes that a complete list no longer holds a server that was listed before: it is stopped.
func (e *Engine) absent(s *server, now time.Time, eff *Effects) {
	r := absentReport(s)
	if e.holdStop(s, now, &r, true, false, eff) {
		return
	}
	e.applyContainer(s, now, &r, eff)
	s.Container.Absent = true
}

func absentReport(s *server) statussync.ContainerReport {
	return statussync.ContainerReport{Shape: s.Container.Shape, Word: "stopped", Text: "no longer listed"}
}

// says reports whether a report repeats what the evidence says already.
func (c *containerEvidence) says(now time.Time, r *statussync.ContainerReport) bool {
	if !c.known() || !strings.EqualFold(strings.TrimSpace(c.Word), strings.TrimSpace(r.Word)) ||
		(c.HealthCheck == "starting") != (r.HealthCheck == "starting") {
		return false
	}
	if r.ExitCode != nil && (c.Exit == nil || *c.Exit != *r.ExitCode) {
		return false
	}
	// A newer exit is news even in the same words.
	return !(r.ExitAge.Known() && !c.ExitMax.IsZero() && now.Add(-r.ExitAge.Max).After(c.ExitMax))
}

func (e *Engine) applyContainer(s *server, now time.Time, r *statussync.ContainerReport, eff *Effects) {
	c := &s.Container
	first := !c.known()
	wasRunning := c.State == statussync.StateRunning
	same := c.says(now, r)
	word := strings.ToLower(strings.TrimSpace(r.Word))
	if !same {
		c.FirstSaid = now
		c.Overruled = false
		c.Word = word
		c.Created = word == "created"
		c.State, _ = statussync.ContainerState(word, r.HealthCheck == "starting", false)
	}
	c.Absent = false
	c.Shape = r.Shape
	c.HealthCheck = r.HealthCheck
	c.Text = r.Text
	c.AssertedAt = now
	if r.PublicPort != 0 && r.PublicPort != c.Port { // an exited container lists none; the last known counts
		c.Port = r.PublicPort
		e.refreshTarget(s)
	}
	if r.ExitCode != nil {
		c.Exit = r.ExitCode
		s.LastExit = r.ExitCode
	}
	if r.ExitAge.Known() {
		narrow(&c.ExitMin, &c.ExitMax, now, r.ExitAge)
	}
	if word == "restarting" {
		e.sightRestarting(s, now)
	}
	if c.State == statussync.StateRunning {
		e.noteStart(s, now, r, first, wasRunning)
		s.LastExit, c.Exit = nil, nil
		c.ExitMin, c.ExitMax = time.Time{}, time.Time{}
	}
	s.Pub.LastChecked = later(s.Pub.LastChecked, now)
	e.touch(s)
	e.recordGoal(s)
	if !same {
		e.contradict(s, eff)
	}
}

// narrow intersects a known range of moments with what a rounded age allows; where they don't overlap the new one
// replaces it, and moved is true where it lies later.
func narrow(lo, hi *time.Time, now time.Time, age statussync.AgeRange) (moved bool) {
	nlo, nhi := now.Add(-age.Max), now.Add(-age.Min)
	switch {
	case hi.IsZero():
		*lo, *hi = nlo, nhi
	case nlo.After(*hi):
		*lo, *hi = nlo, nhi
		return true
	case nhi.Before(*lo):
		*lo, *hi = nlo, nhi
	default:
		if nlo.After(*lo) {
			*lo = nlo
		}
		if nhi.Before(*hi) {
			*hi = nhi
		}
	}
	return false
}

// noteStart learns when a running container was started, and counts starts that nobody asked for.
func (e *Engine) noteStart(s *server, now time.Time, r *statussync.ContainerReport, first, wasRunning bool) {
	c := &s.Container
	since := c.StartMax // of the start before
	var started bool
	if r.StartAge.Known() {
		hadStart := !c.StartMax.IsZero()
		moved := narrow(&c.StartMin, &c.StartMax, now, r.StartAge)
		started = moved || (!hadStart && !first && !wasRunning)
		s.Pub.LastStarted = c.StartMin.Add(c.StartMax.Sub(c.StartMin) / 2)
	} else if !first && !wasRunning {
		started = true
		c.StartMin, c.StartMax = time.Time{}, time.Time{}
		s.Pub.LastStarted = now
	}
	if !started || first {
		return
	}
	rec := &s.Record
	asked := rec.SaidAt.After(since) && (rec.State == statussync.StateStarting || rec.State == statussync.StateRunning)
	if !asked {
		s.Starts = remember(s.Starts, now, e.p.CrashLoopCount)
	}
}

// sightRestarting counts sightings that are far enough apart to be different ones.
func (e *Engine) sightRestarting(s *server, now time.Time) {
	if n := len(s.Restarting); n > 0 && now.Sub(s.Restarting[n-1]) < e.p.RestartingGap {
		return
	}
	s.Restarting = remember(s.Restarting, now, e.p.CrashLoopCount)
}

// remember appends t and keeps the newest limit.
func remember(list []time.Time, t time.Time, limit int) []time.Time {
	if len(list) >= limit {
		n := copy(list, list[len(list)-limit+1:])
		list = list[:n]
	}
	return append(list, t)
}

// looping reports whether enough of list lies within the window.
func (e *Engine) looping(list []time.Time, now time.Time, due *nearest) bool {
	if len(list) < e.p.CrashLoopCount {
		return false
	}
	end := list[len(list)-e.p.CrashLoopCount].Add(e.p.CrashLoopWindow)
	due.add(end)
	return now.Before(end)
}

// contradict asks for a probe at once where new words say the opposite of the verdict.
func (e *Engine) contradict(s *server, eff *Effects) {
	if !s.probed() {
		return
	}
	said := s.Container.stateFor(s.desired())
	up := s.Probe.Verdict == verdictUp && (said == statussync.StateStopped || said == statussync.StateError || said == statussync.StateStarting)
	down := s.Probe.Verdict == verdictDown && said == statussync.StateRunning
	if up || down {
		e.probeNow(s, 0, 0, "contradiction", eff)
	}
}

// holdStop keeps a clean stop of a healthy server that should run from counting until it is confirmed, so that a
// restart of a few seconds alarms nobody. It reports whether the report was kept back.
func (e *Engine) holdStop(s *server, now time.Time, r *statussync.ContainerReport, absent, event bool, eff *Effects) bool {
	desired := s.desired()
	state, _ := statussync.ContainerState(r.Word, r.HealthCheck == "starting", desired == statussync.DesiredStopped)
	clean := r.ExitCode == nil || statussync.CleanExit(*r.ExitCode)
	if w := s.stopWait; w != nil {
		if state != statussync.StateStopped || !clean || desired != statussync.DesiredRunning {
			s.stopWait = nil // a sign of life, or a stop of another kind
			return false
		}
		w.report, w.reported, w.absent = *r, now, absent
		if !w.probed && !w.asked && !w.pushed && !event { // one stop may be told by several events
			s.stopWait = nil // this is the heartbeat that was awaited
			return false
		}
		return true
	}
	if state != statussync.StateStopped || !clean || desired != statussync.DesiredRunning ||
		s.Container.says(now, r) || s.raw.State != statussync.StateRunning || s.raw.Health != statussync.HealthHealthy {
		return false
	}
	w := &stopWait{since: now, until: now.Add(e.p.StopWait), report: *r, reported: now, absent: absent}
	switch {
	case s.probed():
		w.probed = true
		e.probeNow(s, 0, 0, "contradiction", eff)
	case s.env != nil && s.env.Def.AgentURL != "":
		w.asked = true
	case event:
		w.pushed = true
	default:
		w.until = now.Add(e.interval(s.env) + e.p.StopWait) // heartbeats are never exactly on time
	}
	s.stopWait = w
	return true
}

// checkStopWait asks further, or lets the stop count.
func (e *Engine) checkStopWait(s *server, now time.Time, due *nearest, eff *Effects) {
	w := s.stopWait
	if w == nil {
		return
	}
	if !now.Before(w.until) || s.Probe.Verdict == verdictDown || s.desired() != statussync.DesiredRunning {
		e.endStopWait(s, now, eff)
		return
	}
	due.add(w.until)
	if w.asked {
		for w.asks < len(e.p.StopAsks) && !now.Before(w.since.Add(e.p.StopAsks[w.asks])) {
			w.asks++
			e.askNow(s.env, e.p.SampleTimeout, 0, eff)
		}
		if w.asks < len(e.p.StopAsks) {
			due.add(w.since.Add(e.p.StopAsks[w.asks]))
		}
	}
}

// endStopWait lets the stop count from now on, as asserted when it was told.
func (e *Engine) endStopWait(s *server, now time.Time, eff *Effects) {
	w := s.stopWait
	s.stopWait = nil
	e.applyContainer(s, w.reported, &w.report, eff) // it was asserted then
	s.Container.FirstSaid = w.since
	s.Container.Absent = w.absent
}
