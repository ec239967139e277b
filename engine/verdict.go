package engine

import (
	"math"
	"time"

	"github.com/agentopia/statussync"
)

type verdict uint8

const (
	verdictNone verdict = iota
	verdictUp
	verdictDown
)

// probeEvidence is what probes have said, as a verdict with its counters.
type probeEvidence struct {
	Verdict   verdict       `json:",omitzero"`
	Since     time.Time     `json:",omitzero"` // of the verdict
	Attempts  uint64        `json:",omitzero"` // since there was last nothing known
	LastAt    time.Time     `json:",omitzero"`
	Taken     time.Duration `json:",omitzero"` // the interval under which the last attempt was made
	Wait      time.Duration `json:",omitzero"` // how long the server asked us to stay away then: the interval is widened to it
	OKRun     int           `json:",omitzero"` // non-failures in a row
	FailRun   int           `json:",omitzero"` // failures in a row
	FailSince time.Time     `json:",omitzero"` // when the first of them began
	OKAt      time.Time     `json:",omitzero"` // when the newest non-failure began
	GraceFrom time.Time     `json:",omitzero"` // became running, or desired running
	AltSince  time.Time     `json:",omitzero"` // since when outcomes contradict the verdict without settling it
	AltBoth   bool          `json:",omitzero"` // and there were both kinds since
	ByConnect bool          `json:",omitzero"` // the newest failure was one by connection
	Fell      bool          `json:",omitzero"` // the verdict turned down by connection
	NotMCP    bool          `json:",omitzero"`
	Cause     string        `json:",omitzero"` // of the newest attempt that was no success
	Detail    string        `json:",omitzero"`
	Slow      trend         `json:",omitzero"`
	Throttled trend         `json:",omitzero"`
	AuthBad   trend         `json:",omitzero"`
}

// trend is a condition that begins after two in a row and ends after `rise` others.
type trend struct {
	On         bool `json:",omitzero"`
	Run, Other int  `json:",omitzero"`
}

func (t *trend) note(is bool, rise int) {
	if is {
		t.Run, t.Other = t.Run+1, 0
		if t.Run >= 2 {
			t.On = true
		}
		return
	}
	t.Run, t.Other = 0, t.Other+1
	if t.Other >= rise {
		t.On = false
	}
}

// forget makes the next outcome the first again; a grace that is running goes on.
func (p *probeEvidence) forget() { *p = probeEvidence{GraceFrom: p.GraceFrom} }

// maxWait is the longest that a throttling server can keep us away, as the scheduler of probes has it too.
const maxWait = time.Hour

// gone is when a verdict that is not renewed is given up: after three of the intervals under which it was taken, or of a
// longer one that followed from it (a stopped server is asked so seldom that it would be given up in between).
func (e *Engine) gone(s *server) time.Time {
	return s.Probe.LastAt.Add(3*max(s.Probe.Taken, s.Probe.Wait) + s.spec.Timeout)
}

// freshUntil is how long a verdict counts as fresh: two of the current intervals.
func (e *Engine) freshUntil(s *server) time.Time {
	return s.Probe.LastAt.Add(2*max(e.currentInterval(s), s.Probe.Wait) + s.spec.Timeout)
}

func (e *Engine) currentInterval(s *server) time.Duration {
	if s.Every > 0 {
		return s.Every
	}
	return s.spec.Interval
}

// probeResult takes one attempt.
func (e *Engine) probeResult(now time.Time, r *statussync.ProbeResult, eff *Effects) {
	s := e.servers[r.ServerID]
	if s == nil {
		eff.fail(statussync.NotFound("server", r.ServerID))
		return
	}
	switch r.Outcome {
	case statussync.OutcomeSuccess, statussync.OutcomeAlive, statussync.OutcomeFailure:
	default:
		eff.fail(statussync.Invalid("outcome", "must be one of success, alive, failure"))
		return
	}
	e.expireVerdict(s, now)
	began := r.StartedAt
	if began.IsZero() || began.After(now) {
		began = now
	}
	p := &s.Probe
	p.Attempts++
	p.LastAt = now
	p.Taken, p.Wait = e.currentInterval(s), 0
	if r.Throttled {
		p.Wait = min(max(0, r.RetryAfter), maxWait)
	}
	s.Pub.CheckCount++
	s.Pub.LastChecked = now
	if r.Outcome != statussync.OutcomeFailure || r.HTTPStatus != 0 {
		s.Pub.Latency = r.Latency
	}
	if r.Auth != "" {
		s.Pub.Auth = r.Auth
	}
	if r.Outcome == statussync.OutcomeSuccess && (r.Protocol != "" || r.ServerInfo != statussync.ServerInfo{}) {
		s.Pub.Protocol, s.Pub.ServerInfo = r.Protocol, r.ServerInfo
	}
	p.Cause, p.Detail = r.Cause, r.Detail
	if p.Verdict == verdictNone && p.AltSince.IsZero() {
		p.AltSince, p.AltBoth = now, false
	}
	if r.Outcome == statussync.OutcomeFailure {
		s.Pub.ErrorCount++
		e.failure(s, now, began, r, eff)
	} else {
		e.nonFailure(s, now, began, r, eff)
	}
	if !p.AltSince.IsZero() && p.Attempts > 1 && now.Sub(p.AltSince) >= time.Duration(e.p.AlternateFactor*float64(s.spec.StartGrace)) && !s.falling {
		// Outcomes that alternate for so long never settle: the latest is the truth.
		if r.Outcome == statussync.OutcomeFailure {
			if p.Verdict != verdictDown && p.AltBoth {
				e.wouldFall(s, now, eff)
			}
		} else if p.Verdict != verdictUp {
			e.setVerdict(s, verdictUp, now)
			e.overrule(s, began)
		}
	}
	e.sampleResult(s, r, began)
	e.touch(s)
	e.eval(s, now, statussync.SourceHeartbeat, eff)
	e.settle(now, eff)
}

func (e *Engine) setVerdict(s *server, v verdict, now time.Time) {
	s.Probe.Verdict, s.Probe.Since, s.Probe.AltSince = v, now, time.Time{}
	s.Probe.Fell = v == verdictDown && s.Probe.ByConnect
	e.touch(s) // also where the status stays what it was, a verdict that was waited for is to be found again after a restart
}

func (e *Engine) failure(s *server, now, began time.Time, r *statussync.ProbeResult, eff *Effects) {
	p := &s.Probe
	if p.FailRun == 0 {
		p.FailSince = began
	}
	p.FailRun++
	p.OKRun = 0
	p.ByConnect, p.NotMCP = r.ByConnect, r.NotMCP
	retries := *s.spec.MaxRetries
	if p.Verdict == verdictDown {
		if p.FailRun > retries {
			p.AltSince = time.Time{}
		}
		return
	}
	if p.AltSince.IsZero() {
		p.AltSince, p.AltBoth = now, false
	}
	if p.FailRun <= retries {
		after := float64(e.p.RetryAfter) * math.Pow(s.spec.BackoffMultiplier, float64(p.FailRun-1))
		e.probeNow(s, time.Duration(min(after, float64(time.Hour))), 0, "confirm", eff)
		return
	}
	if until := e.grace(s); now.Before(until) {
		if left := until.Sub(now); left < e.currentInterval(s) {
			e.probeNow(s, left, 0, "confirm", eff)
		}
		return
	}
	e.wouldFall(s, now, eff)
}

// grace is until when failures are forgiven: from no verdict, and after a start, down needs some time of failures.
func (e *Engine) grace(s *server) time.Time {
	p := &s.Probe
	if p.Verdict == verdictNone || (!p.GraceFrom.IsZero() && p.FailSince.Before(p.GraceFrom.Add(s.spec.StartGrace))) {
		return p.FailSince.Add(s.spec.StartGrace)
	}
	return time.Time{}
}

func (e *Engine) nonFailure(s *server, now, began time.Time, r *statussync.ProbeResult, eff *Effects) {
	p := &s.Probe
	p.FailRun, p.FailSince = 0, time.Time{}
	p.ByConnect, p.NotMCP = false, false
	p.OKRun++
	p.OKAt = began
	p.AltBoth = true
	if s.falling {
		e.unfall(s)
	}
	rise := s.spec.Rise
	p.Slow.note(r.Latency >= s.spec.SlowAfter, rise)
	p.Throttled.note(r.Throttled, rise)
	p.AuthBad.note(r.Auth == statussync.AuthFailed || s.spec.Expect == "open" && r.Auth == statussync.AuthRequired, rise)
	switch {
	case p.Verdict == verdictUp:
		if p.OKRun >= rise {
			p.AltSince = time.Time{}
		} else if !p.AltSince.IsZero() { // whether they alternate is not left to the next interval
			e.probeNow(s, e.p.RetryAfter, 0, "confirm", eff)
		}
	case p.Verdict == verdictNone && p.Attempts == 1, p.OKRun >= rise:
		e.setVerdict(s, verdictUp, now)
	default:
		if p.Verdict == verdictDown && p.AltSince.IsZero() {
			p.AltSince = now
		}
		e.probeNow(s, e.p.RetryAfter, 0, "confirm", eff)
	}
	if w := s.stopWait; w != nil && began.After(w.since) {
		// A sign of life: what the agent says is older than this answer.
		if s.stopWait = nil; p.Verdict == verdictUp {
			e.applyContainer(s, w.reported, &w.report, eff)
			s.Container.Absent, s.Container.Overruled = w.absent, true
		}
	}
	if p.Verdict == verdictUp {
		e.overrule(s, began)
	}
	if s.env != nil && (s.env.HostLost || !s.env.groupAt.IsZero()) {
		e.hostBack(s.env, now, eff)
	}
}

// overrule lets an answer that began after older words were first said win over them.
func (e *Engine) overrule(s *server, began time.Time) {
	c := &s.Container
	if c.known() && began.After(c.FirstSaid) {
		switch c.stateFor(s.desired()) {
		case statussync.StateStopped, statussync.StateStarting, statussync.StateError:
			c.Overruled = true
		}
	}
	rec := &s.Record
	if rec.State != statussync.StateUnknown && rec.State != "" && began.After(rec.AssertedAt) && !statussync.RecordForbids(rec.Word) {
		rec.Overruled = true
	}
}

// expireVerdict gives up a verdict that was not renewed.
func (e *Engine) expireVerdict(s *server, now time.Time) {
	p := &s.Probe
	if p.Attempts == 0 || now.Before(e.gone(s)) {
		return
	}
	p.forget()
	s.Record.Overruled = false
	if s.falling {
		e.unfall(s)
	}
	e.touch(s)
}

// probeNow asks for one probe beside the plan.
func (e *Engine) probeNow(s *server, after, timeout time.Duration, why string, eff *Effects) {
	if !s.probed() {
		return
	}
	eff.Requests = append(eff.Requests, statussync.Request{Probe: &statussync.ProbeNow{
		ServerID: s.Def.ID, After: after, Timeout: timeout, Why: why,
	}})
}

// unfall takes a server off those that wait for the two questions.
func (e *Engine) unfall(s *server) {
	s.falling = false
	last := len(e.pending) - 1
	if i := s.waitAt; i <= last && e.pending[i] == s {
		e.pending[i] = e.pending[last]
		e.pending[i].waitAt = i
		e.pending[last] = nil
		e.pending = e.pending[:last]
	}
}
