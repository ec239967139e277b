package engine

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

func itoa(n int) string { return strconv.Itoa(n) }

func compare(a, b string) int { return strings.Compare(a, b) }

// roundAge is a duration for a sentence.
func roundAge(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// eval concludes one server anew: steps 1 to 6, an entry where the conclusion changed, the plan of its probes, and the
// time at which to look again.
func (e *Engine) eval(s *server, now time.Time, src statussync.EventSource, eff *Effects) {
	due := nearest{now: now}
	e.expireVerdict(s, now)
	e.checkStopWait(s, now, &due, eff)

	v := e.see(s, now, &due)
	state, by, reason := e.base(s, &v)
	if e.noteBase(s, state, now) { // a start dropped the verdict: look again without it
		v = e.see(s, now, &due)
		state, by, reason = e.base(s, &v)
	}
	raw := e.health(s, &v, state, by, reason, now, &due, nil)
	if e.pace(s, raw, now, &due) { // how long a verdict is fresh follows from the interval: look again
		v = e.see(s, now, &due)
		raw = e.health(s, &v, state, by, reason, now, &due, nil)
		e.pace(s, raw, now, &due)
	}
	if s.Base == statussync.StateRunning && !s.RunningSince.IsZero() && (!s.StartingSince.IsZero() || !s.StoppingSince.IsZero()) {
		if at := s.RunningSince.Add(e.p.StuckForgivenAfter); now.Before(at) {
			due.add(at)
		} else {
			s.StartingSince, s.StoppingSince = time.Time{}, time.Time{}
			e.touch(s)
		}
	}
	s.raw = raw
	shown, marks := e.flap(s, raw, now, &due)

	actor := ""
	if o := s.Override; o != nil {
		if !now.Before(o.ExpiresAt) {
			s.Override = nil
			e.touch(s)
		} else {
			due.add(o.ExpiresAt)
			shown = conclusion{State: o.State, Health: o.Health, Reason: statussync.ReasonOverride}
			marks |= statussync.MarkOverride
			actor = o.Actor
		}
	}
	if s.open > 0 {
		marks |= statussync.MarkMaintenance
	}
	e.publish(s, shown, marks, now, src, actor, eff)
	e.replanned(s, eff)
	if s.Probe.Verdict != verdictNone {
		due.add(e.freshUntil(s)) // by the interval of the new plan
	}
	e.due.set(&s.node, due.at)
}

// publish makes an entry of a conclusion that differs from the last one, and refreshes the facts beside it.
func (e *Engine) publish(s *server, c conclusion, marks statussync.Marks, now time.Time, src statussync.EventSource, actor string, eff *Effects) {
	cur := &s.Pub
	if !cur.Since.IsZero() && cur.State == c.State && cur.Health == c.Health && cur.Reason == c.Reason && cur.Marks == marks {
		if cur.Cause != c.Cause || cur.LastError != c.LastError || cur.Override != s.Override {
			cur.Cause, cur.LastError, cur.Override = c.Cause, c.LastError, s.Override
			e.touch(s)
		}
		return
	}
	prev := *cur
	prev.Override = nil
	if cur.State != c.State || cur.Health != c.Health || cur.Since.IsZero() {
		cur.Since = now
	}
	cur.State, cur.Health, cur.Reason, cur.Marks = c.State, c.Health, c.Reason, marks
	cur.Cause, cur.LastError, cur.Override = c.Cause, c.LastError, s.Override
	cur.Version++
	told := *cur
	told.Override = nil
	entry := &statussync.Entry{
		Kind: statussync.KindStatus, Timestamp: now, Source: src, ServerID: s.Def.ID, EnvironmentID: s.Def.EnvironmentID,
		Version: cur.Version, Previous: &prev, Current: &told, Labels: s.Def.Labels,
	}
	entry.Changes = statussync.StatusChanges(&prev, &told)
	entry.Details = e.describe(s, &prev, &told, actor, now)
	eff.Entries = append(eff.Entries, entry)
	e.touch(s)
}

// describe is the one sentence for people.
func (e *Engine) describe(s *server, prev, cur *statussync.Status, actor string, now time.Time) string {
	if cur.Marks.Has(statussync.MarkOverride) {
		t := overriddenBy + orSomebody(actor) + ": " + string(cur.State) + ", " + string(cur.Health)
		if s.Override != nil && s.Override.Note != "" {
			t += " (" + s.Override.Note + ")"
		}
		return cut(t)
	}
	t := e.why(s, cur, now)
	if prev.Marks.Has(statussync.MarkOverride) {
		t = "the override ended; " + t
	}
	switch {
	case cur.Marks.Has(statussync.MarkFlapping) && !prev.Marks.Has(statussync.MarkFlapping):
		t = "flapping: more than " + itoa(e.p.FlapChanges) + " changes in " + e.p.FlapWindow.String() + "; held at the worst: " + t
	case prev.Marks.Has(statussync.MarkFlapping) && !cur.Marks.Has(statussync.MarkFlapping):
		t = "no longer flapping; " + t
	}
	switch {
	case cur.Marks.Has(statussync.MarkMaintenance) && !prev.Marks.Has(statussync.MarkMaintenance):
		t = "maintenance began; " + t
	case prev.Marks.Has(statussync.MarkMaintenance) && !cur.Marks.Has(statussync.MarkMaintenance):
		t = "maintenance ended; " + t
	}
	return cut(t)
}

// overriddenBy begins the sentence of an override; Eraser looks for it.
const overriddenBy = "overridden by "

func cut(s string) string { return statussync.CleanText(s, statussync.MaxErrorText) }

func orSomebody(actor string) string {
	if actor == "" {
		return "somebody"
	}
	return actor
}

func withText(t, cause, text string) string {
	switch {
	case text != "":
		return t + ": " + text
	case cause != "":
		return t + ": " + cause
	}
	return t
}

func (e *Engine) why(s *server, c *statussync.Status, now time.Time) string {
	age := ""
	if h := e.lastHeard(s, now); !h.at.IsZero() {
		age = " for " + roundAge(h.age())
	}
	switch c.Reason {
	case statussync.ReasonOK:
		switch c.State {
		case statussync.StateRunning:
			return "running and healthy"
		}
		return string(c.State)
	case statussync.ReasonNeverSeen:
		if c.State == statussync.StateRunning {
			return "said to be running, but nothing of its own confirms it"
		}
		return "nothing has been seen of it yet"
	case statussync.ReasonStale:
		return "what was known of it is too old"
	case statussync.ReasonNeedsAgent:
		return "a stdio server is seen only through its host's agent, and none reports"
	case statussync.ReasonNeedsConfig:
		return withText("its configuration is not complete", "", c.LastError)
	case statussync.ReasonHeartbeatLate:
		return "its agent is late: no heartbeat" + age
	case statussync.ReasonHeartbeatLost:
		return "its agent is lost: no heartbeat" + age
	case statussync.ReasonAgentSilent:
		return "it answers, but its agent is lost: no heartbeat" + age
	case statussync.ReasonProbeFailing:
		t := "probes fail"
		if n := s.Probe.FailRun; n > 1 {
			t += " (" + itoa(n) + " in a row)"
		}
		return withText(t, c.Cause, c.LastError)
	case statussync.ReasonNotMCP:
		return withText("it answers, but not MCP", c.Cause, c.LastError)
	case statussync.ReasonProbeSlow:
		return "it answers slowly: " + roundAge(c.Latency)
	case statussync.ReasonAuthFailed:
		return withText("the login is rejected", c.Cause, c.LastError)
	case statussync.ReasonThrottled:
		return "it asks us to slow down"
	case statussync.ReasonToolsChanged:
		return withText("its tools are not the pinned ones", "", c.LastError)
	case statussync.ReasonCrashed:
		return withText("crashed", c.Cause, c.LastError)
	case statussync.ReasonCrashLoop:
		return withText("it restarts again and again", c.Cause, c.LastError)
	case statussync.ReasonStoppedUnexpectedly:
		return withText("stopped, though it should run", "", c.LastError)
	case statussync.ReasonContainerUnhealthy:
		return withText("its container's own health check fails", "", c.LastError)
	case statussync.ReasonContainerError:
		return withText("its container is in error", c.Cause, c.LastError)
	case statussync.ReasonStuckStarting:
		return "starting for longer than " + e.p.StuckAfter.String()
	case statussync.ReasonStuckStopping:
		return "stopping for longer than " + e.p.StuckAfter.String()
	}
	return string(c.State) + ", " + string(c.Health)
}

// flap is step 4: what is shown of a raw conclusion.
func (e *Engine) flap(s *server, raw conclusion, now time.Time, due *nearest) (conclusion, statussync.Marks) {
	f := &s.Flap
	if raw.Health != statussync.HealthUnknown {
		if f.Last != "" && f.Last != raw.Health {
			f.Changes = remember(f.Changes, now, e.p.FlapChanges+1)
			e.touch(s)
			if !f.On && len(f.Changes) > e.p.FlapChanges && now.Sub(f.Changes[0]) <= e.p.FlapWindow {
				f.On = true
				f.Held = raw
				if f.Prev.Health.Rank() >= raw.Health.Rank() { // the first of equals
					f.Held = f.Prev
				}
			}
		}
		if f.Prev.Health != raw.Health || f.Prev.State != raw.State || f.Prev.Reason != raw.Reason {
			e.touch(s)
		}
		f.Last = raw.Health
		f.Prev = raw
		if f.On && raw.Health.Rank() > f.Held.Health.Rank() {
			f.Held = raw
		}
	}
	if !f.On {
		return raw, 0
	}
	quiet := f.Changes[len(f.Changes)-1].Add(e.p.FlapQuiet)
	if !now.Before(quiet) {
		*f = flapping{Last: f.Last, Prev: f.Prev}
		e.touch(s)
		return raw, 0
	}
	due.add(quiet)
	return f.Held, statussync.MarkFlapping
}

// pace is how often the server is probed from now on: a function of the computed status, before flapping and override.
// The first that matches. It reports whether that changed.
func (e *Engine) pace(s *server, raw conclusion, now time.Time, due *nearest) bool {
	p := &e.p
	var d time.Duration
	bad := raw.State == statussync.StateError || raw.Health == statussync.HealthUnhealthy
	if !bad {
		s.BadSince = time.Time{}
	} else if s.BadSince.IsZero() {
		s.BadSince = now
		e.touch(s)
	}
	scale := float64(s.spec.Interval) / float64(p.BaseInterval)
	switch {
	case bad:
		d = p.CadenceBad
		if until := s.BadSince.Add(p.BadFor); now.Before(until) {
			due.add(until)
		} else {
			d = p.CadenceBadLong
		}
	case raw.State == statussync.StateStopped:
		d = p.CadenceStopped
	case raw.State != statussync.StateRunning, raw.Health == statussync.HealthUnknown, s.Probe.Verdict == verdictNone:
		d = p.CadenceChanging
	default:
		d, scale = s.spec.Interval, 1
	}
	if scale != 1 {
		d = time.Duration(math.Round(float64(d) * scale))
	}
	if d == s.Every {
		return false
	}
	s.Every = d
	if s.Probe.Attempts > 0 { // a verdict outlives a longer interval: its next probe is due only then
		s.Probe.Taken = max(s.Probe.Taken, d)
	}
	e.touch(s)
	return true
}

// replanned tells how the server is probed, where that differs from what was told last.
func (e *Engine) replanned(s *server, eff *Effects) {
	d := s.Every
	if !s.probed() {
		if s.planned && s.plan.Kind == statussync.ProbeNone {
			s.replan = false
			return
		}
		s.plan = statussync.ProbePlan{ServerID: s.Def.ID, EnvironmentID: s.Def.EnvironmentID, Kind: statussync.ProbeNone}
	} else {
		if s.planned && s.plan.Interval == d && s.plan.URL == s.target && s.plan.Kind == s.spec.Kind && s.plan.Timeout == s.spec.Timeout && s.plan.Trusted == e.trusted(s) && s.plan.Transport == s.Def.Transport && s.plan.Canary == s.spec.Canary && !s.replan {
			return
		}
		s.plan = statussync.ProbePlan{
			ServerID: s.Def.ID, EnvironmentID: s.Def.EnvironmentID, Kind: s.spec.Kind, Transport: s.Def.Transport, URL: s.target, Interval: d,
			Timeout: s.spec.Timeout, Trusted: e.trusted(s), Expect: s.spec.Expect, Headers: s.spec.Headers,
			Unshown: s.spec.Unshown, Canary: s.spec.Canary,
		}
	}
	s.planned, s.replan = true, false
	plan := s.plan
	eff.Requests = append(eff.Requests, statussync.Request{Plan: &plan})
}

// overrideSet puts a person's word over a server.
func (e *Engine) overrideSet(now time.Time, o *statussync.OverrideSet, eff *Effects) {
	s := e.servers[o.ServerID]
	if s == nil {
		eff.fail(statussync.NotFound("server", o.ServerID))
		return
	}
	ov := o.Override
	if err := ov.Complete(now); err != nil {
		if se, ok := err.(*statussync.Error); ok {
			eff.fail(se)
		}
		return
	}
	ov.Note = statussync.CleanText(ov.Note, statussync.MaxNoteLen)
	s.Override = &ov
	e.touch(s)
	e.eval(s, now, statussync.SourceManual, eff)
}

// overrideClear ends an override early.
func (e *Engine) overrideClear(now time.Time, o *statussync.OverrideClear, eff *Effects) {
	s := e.servers[o.ServerID]
	switch {
	case s == nil:
		eff.fail(statussync.NotFound("server", o.ServerID))
	case s.Override == nil:
		eff.fail(&statussync.Error{Code: statussync.CodeNotFound, Detail: "the server has no override"})
	default:
		s.Override = nil
		e.touch(s)
		e.eval(s, now, statussync.SourceManual, eff)
	}
}
