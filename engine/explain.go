package engine

import (
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// Explain returns all the evidence of a server and what every rule makes of it at now. It changes nothing.
func (e *Engine) Explain(id string, now time.Time) (statussync.Explanation, bool) {
	s, ok := e.servers[id]
	if !ok {
		return statussync.Explanation{}, false
	}
	if now.Before(e.now) {
		now = e.now
	}
	st, _ := e.Status(id)
	x := statussync.Explanation{Now: now, Status: st}
	v := e.see(s, now, nil)
	e.explainEvidence(s, &v, now, &x)

	state, by, reason := e.base(s, &v)
	tr := &trace{}
	raw := e.health(s, &v, state, by, reason, now, nil, tr)
	if s.stopWait != nil {
		tr.rules[0].Why += "; a newer report of a clean stop is held until it is confirmed"
	}
	winner := tr.won
	f := s.Flap
	if f.On {
		tr.add("4 flapping", f.Held.State, f.Held.Health, f.Held.Reason, "held at the worst until "+f.Changes[len(f.Changes)-1].Add(e.p.FlapQuiet).UTC().Format(statussync.TimeFormat))
		winner = len(tr.rules) - 1
	} else {
		tr.add("4 flapping", "", "", "", itoa(len(f.Changes))+" changes of health are remembered; more than "+itoa(e.p.FlapChanges)+" in "+e.p.FlapWindow.String()+" are flapping")
	}
	if o := s.Override; o != nil && now.Before(o.ExpiresAt) {
		tr.add("5 override", o.State, o.Health, statussync.ReasonOverride, "set by "+orSomebody(o.Actor)+" until "+o.ExpiresAt.UTC().Format(statussync.TimeFormat)+"; without it: "+string(raw.State)+", "+string(raw.Health)+", "+string(raw.Reason))
		winner = len(tr.rules) - 1
	} else {
		tr.add("5 override", "", "", "", "no override is in force")
	}
	if s.open > 0 {
		tr.add("6 maintenance", "", "", "", "a window is open: the mark is set, the status is as computed")
	} else {
		tr.add("6 maintenance", "", "", "", "no window is open")
	}
	tr.rules[winner].Won = true
	x.Rules = tr.rules
	return x, true
}

func (e *Engine) explainEvidence(s *server, v *sight, now time.Time, x *statussync.Explanation) {
	add := func(kind, value string, at time.Time, fresh bool) {
		x.Evidence = append(x.Evidence, statussync.ExplainedEvidence{Kind: kind, Value: value, AssertedAt: at, Fresh: fresh})
	}
	add("desired", string(v.desired), time.Time{}, true)
	c := &s.Container
	switch {
	case !c.known():
		add("container", "no agent has listed it", time.Time{}, false)
	default:
		t := c.Word
		if c.Text != "" {
			t += " (" + c.Text + ")"
		}
		if c.HealthCheck != "" && !strings.Contains(c.Text, c.HealthCheck) {
			t += ", its own check: " + c.HealthCheck
		}
		if s.LastExit != nil && !strings.Contains(c.Text, "("+itoa(*s.LastExit)+")") {
			t += ", exit code " + itoa(*s.LastExit)
		}
		if c.Overruled {
			t += "; overruled by a newer answer"
		}
		add("container", t, c.AssertedAt, v.containerFresh)
	}
	if w := s.stopWait; w != nil {
		t := "held: " + w.report.Word
		if w.report.Text != "" {
			t += " (" + w.report.Text + ")"
		}
		add("container", t+"; a clean stop waits for a sign of life until "+w.until.UTC().Format(statussync.TimeFormat), w.since, true)
	}
	switch {
	case s.env == nil:
		add("heartbeat", "it has no environment", time.Time{}, false)
	default:
		interval, late, lost := e.limits(s.env)
		t := "agent " + string(v.agent)
		if via := s.env.HeardVia; via == statussync.ViaPull || via == statussync.ViaEvent {
			t += ", last heard via " + string(via)
		}
		t += "; every " + roundAge(interval) + ", late after " + roundAge(late) + ", lost after " + roundAge(lost)
		h := e.lastHeard(s, now)
		if h.waits {
			t += "; the database that it comes from can't be read: no limit passes"
		}
		add("heartbeat", t, h.shownAt(now), v.agent == statussync.AgentOK)
	}
	if rec := &s.Record; rec.Word != "" {
		t := rec.Word
		if rec.Overruled {
			t += "; overruled by a newer answer"
		}
		add("record", t, rec.AssertedAt, v.recordState != statussync.StateUnknown)
	}
	p := &s.Probe
	switch {
	case !s.probed() && p.Attempts == 0:
		add("probe", "it is not probed", time.Time{}, false)
	case p.Attempts == 0:
		where, _, _ := strings.Cut(s.target, "?") // a query may hold a secret
		add("probe", "no attempt yet at "+where, time.Time{}, false)
	default:
		words := map[verdict]string{verdictNone: "no verdict", verdictUp: "up", verdictDown: "down"}
		t := words[p.Verdict]
		if p.FailRun > 0 {
			t += ", " + itoa(p.FailRun) + " failures in a row"
		} else {
			t += ", " + itoa(p.OKRun) + " answers in a row"
		}
		if p.Cause != "" {
			t += ", newest: " + p.Cause
		}
		for _, tr := range []struct {
			on   bool
			word string
		}{{p.Slow.On, "slow"}, {p.Throttled.On, "throttled"}, {p.AuthBad.On, "login rejected"}} {
			if tr.on {
				t += ", " + tr.word
			}
		}
		if s.falling {
			t += "; a fall waits for the answers of its neighbours"
		}
		add("probe", t, p.LastAt, v.verdictFresh)
	}
	if t, at, ok := s.explainTools(); ok {
		add("tools", t, at, s.tools.Known)
	}
	if o := s.Override; o != nil {
		t := string(o.State) + ", " + string(o.Health) + " by " + orSomebody(o.Actor)
		if o.Note != "" {
			t += ": " + o.Note
		}
		add("override", t, o.SetAt, now.Before(o.ExpiresAt))
	}
	for _, w := range e.windowsOf(s.Def) {
		t := w.def.ID + " from " + w.begin.UTC().Format(statussync.TimeFormat) + " to " + w.end.UTC().Format(statussync.TimeFormat)
		add("maintenance", t, w.begin, w.open)
	}
}
