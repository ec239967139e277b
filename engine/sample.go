package engine

import (
	"fmt"
	"slices"
	"time"

	"github.com/agentopia/statussync"
)

// Before a fall is told, two questions are asked at once, and one sample serves everybody for a while: is it the host?
// (hostSample, one per environment) and is it us? (doubt, one for all).

type answer uint8

const (
	waiting answer = iota
	alive
	failed // but somebody answered the connection
	connectFailed
)

// sampleWave is how many probes of one environment go on at once by default (probe.per_environment).
const sampleWave = 16

// hostSample asks all probed servers of an environment, and its agent, at one moment.
type hostSample struct {
	at, until time.Time
	first     time.Time // when the first fall that waits for it became one
	members   map[*server]answer
	agent     answer
}

// lost reports whether the sample is decided, and whether the host is lost.
func (h *hostSample) lost(now time.Time) (decided, lost bool) {
	open := h.agent == waiting
	for _, a := range h.members {
		switch a {
		case alive, failed:
			return true, false // somebody is there
		case waiting:
			open = true
		}
	}
	if h.agent == alive {
		return true, false
	}
	if !open {
		return true, true
	}
	return !now.Before(h.until), false // who did not answer in time proves nothing
}

// doubt is the question whether it is us, and the hold while it may be.
type doubt struct {
	node      dueNode
	at, until time.Time // of the newest sample
	members   map[*server]answer
	active    bool
	byAgents  bool
	holdUntil time.Time
	recheck   time.Time
	spent     bool      // a hold ran out, or is going on: the same trouble makes no second one
	agentsAt  time.Time // when the agents were counted, and whether they spoke against us
	agents    bool
}

func (d *doubt) holds(now time.Time) bool { return d.active && now.Before(d.holdUntil) }

// decided reports whether the newest sample has an answer, and whether it speaks against us.
func (d *doubt) decided(now time.Time, share float64) (decided, us bool) {
	if len(d.members) == 0 {
		return true, false
	}
	open, bad := 0, 0
	for _, a := range d.members {
		switch a {
		case waiting:
			open++
		case failed, connectFailed:
			bad++
		}
	}
	if open > 0 && now.Before(d.until) {
		return false, false
	}
	bad += open // asked, and silent for longer than a probe may take
	return true, float64(bad) >= share*float64(len(d.members))
}

// wouldFall is called for a confirmed failure: the fall is told now, or waits for the two questions.
func (e *Engine) wouldFall(s *server, now time.Time, eff *Effects) {
	if s.falling {
		return
	}
	host := e.askHost(s, now, eff)
	us := e.askUs(s, now, eff)
	if !host && !us && !e.doubt.holds(now) {
		e.setVerdict(s, verdictDown, now)
		return
	}
	s.falling, s.waitAt = true, len(e.pending)
	e.pending = append(e.pending, s)
}

// askHost starts, or joins, the sample of s's environment. It is false where there is no such question.
func (e *Engine) askHost(s *server, now time.Time, eff *Effects) bool {
	env := s.env
	if env == nil || !s.Probe.ByConnect {
		return false // a host that answers the connection is there
	}
	if h := env.sample; h != nil && now.Sub(h.at) < e.p.SampleServes {
		h.members[s] = connectFailed
		return true
	}
	h := &hostSample{at: now, first: now, members: map[*server]answer{}}
	for _, o := range env.servers {
		if o.probed() {
			h.members[o] = waiting
		}
	}
	// Where all hang, an environment's probes are taken in waves; the answer is still waited for as long as it serves.
	waves := time.Duration(len(h.members)+sampleWave-1) / sampleWave
	h.until = now.Add(min(e.p.SampleTimeout*waves+e.p.RetryAfter, max(e.p.SampleServes, e.p.SampleTimeout+e.p.RetryAfter)))
	if len(h.members) < 2 {
		return false
	}
	h.members[s] = connectFailed
	for _, o := range env.servers {
		if o != s && o.probed() {
			e.probeNow(o, 0, e.p.SampleTimeout, "sample", eff)
		}
	}
	h.agent = connectFailed // nobody to ask
	if env.Def.AgentURL != "" {
		h.agent = waiting
		e.askNow(env, e.p.SampleTimeout, 0, eff)
	}
	env.sample = h
	return true
}

// askUs starts, or joins, the sample of other environments. It is false where there are too few.
func (e *Engine) askUs(s *server, now time.Time, eff *Effects) bool {
	d := &e.doubt
	if !d.at.IsZero() && now.Sub(d.at) < e.p.SampleServes {
		return len(d.members) > 0
	}
	d.members = map[*server]answer{}
	d.at, d.until = now, now.Add(e.p.SampleTimeout+e.p.RetryAfter)
	e.pickSample(s.env, now, eff)
	return len(d.members) > 0
}

// pickSample asks up to DoubtServers servers that were up, spread over other environments, at least DoubtHosts of them.
func (e *Engine) pickSample(but *environment, now time.Time, eff *Effects) {
	d := &e.doubt
	start := 0
	if but != nil {
		start, _ = slices.BinarySearchFunc(e.envOrder, but.Def.ID, func(a *environment, id string) int { return compare(a.Def.ID, id) })
	}
	var picked []*server
	hosts := 0
	for round := 0; len(picked) < e.p.DoubtServers; round++ {
		more := false
		for i := range e.envOrder {
			env := e.envOrder[(start+i)%len(e.envOrder)]
			if env == but || len(picked) == e.p.DoubtServers {
				continue
			}
			if s := nthUp(env, round); s != nil {
				picked = append(picked, s)
				more = true
				if round == 0 {
					hosts++
				}
			}
		}
		if round == 0 && hosts < e.p.DoubtHosts {
			return
		}
		if !more {
			break
		}
	}
	for _, s := range picked {
		d.members[s] = waiting
		e.probeNow(s, 0, e.p.SampleTimeout, "sample", eff)
	}
}

// nthUp is the n-th server of an environment whose verdict is up.
func nthUp(env *environment, n int) *server {
	for _, s := range env.servers {
		if s.probed() && s.Probe.Verdict == verdictUp && !s.falling {
			if n == 0 {
				return s
			}
			n--
		}
	}
	return nil
}

// sampleResult counts a probe towards the samples that it was taken after.
func (e *Engine) sampleResult(s *server, r *statussync.ProbeResult, began time.Time) {
	a := alive
	if r.Outcome == statussync.OutcomeFailure {
		a = failed
		if r.ByConnect {
			a = connectFailed
		}
	}
	if s.env != nil && s.env.sample != nil && !began.Before(s.env.sample.at) {
		if _, ok := s.env.sample.members[s]; ok {
			s.env.sample.members[s] = a
		}
	}
	if _, ok := e.doubt.members[s]; ok && !began.Before(e.doubt.at) {
		e.doubt.members[s] = a
	}
}

// sampleAgent counts an agent's answer, or its failure.
func (e *Engine) sampleAgent(env *environment, ok bool) {
	if env.sample == nil || env.sample.agent != waiting {
		return
	}
	env.sample.agent = connectFailed
	if ok {
		env.sample.agent = alive
	}
}

// settle tells the falls whose questions are answered, and says when to look again.
func (e *Engine) settle(now time.Time, eff *Effects) {
	d := &e.doubt
	if len(e.pending) == 0 && !d.active {
		e.due.remove(&d.node)
		return
	}
	due := nearest{now: now}
	decided, us := d.decided(now, e.p.DoubtShare)
	if decided && len(d.members) > 0 {
		switch {
		case us && !d.active && !e.doubtSpent(now):
			e.beginDoubt(now, false, eff)
		case !us && d.active && !d.byAgents:
			d.active = false // it was not us after all
			d.spent = false
			e.evalEnvs(now, eff)
		case !us && !d.active:
			d.spent = false
		}
	}
	if d.active {
		switch {
		case !now.Before(d.holdUntil):
			d.active = false // held long enough: now the truth is told, whatever the newest sample will say
			d.members, decided = nil, true
			e.evalEnvs(now, eff)
		case d.byAgents && !now.Before(d.recheck):
			d.recheck = now.Add(e.p.RetryAfter)
			if !e.agentsSpeakAgainstUs(now) {
				d.active, d.spent = false, false
				e.evalEnvs(now, eff)
			}
		case !d.byAgents && now.Sub(d.at) >= e.p.SampleServes:
			d.members = map[*server]answer{}
			d.at, d.until = now, now.Add(e.p.SampleTimeout+e.p.RetryAfter)
			e.resample(now, eff)
		}
	}
	if d.active {
		due.add(d.holdUntil)
		if d.byAgents {
			due.add(d.recheck)
		} else {
			due.add(d.at.Add(e.p.SampleServes))
		}
	}
	if !decided {
		due.add(d.until)
	}
	if d.holds(now) { // everybody waits
		e.due.set(&d.node, due.at)
		return
	}
	e.settled = append(e.settled[:0], e.pending...)
	for _, s := range e.settled {
		if !s.falling {
			continue
		}
		hostDecided, lost := true, false
		if s.env != nil && s.env.sample != nil && s.Probe.ByConnect {
			hostDecided, lost = s.env.sample.lost(now)
			if !hostDecided {
				due.add(s.env.sample.until)
			}
		}
		if !hostDecided || !decided || d.holds(now) {
			continue
		}
		if lost {
			e.gatherFalls(s.env, now)
			if !s.env.groupAt.IsZero() {
				continue // told with the others of its host
			}
		}
		e.unfall(s)
		e.setVerdict(s, verdictDown, now)
		e.eval(s, now, statussync.SourceHeartbeat, eff)
	}
	clear(e.settled)
	e.due.set(&d.node, due.at)
}

func (e *Engine) evalEnvs(now time.Time, eff *Effects) {
	for _, env := range e.envOrder {
		e.evalEnv(env, now, eff)
	}
}

// resample asks the servers that wait and others again while we are in doubt.
func (e *Engine) resample(now time.Time, eff *Effects) {
	d := &e.doubt
	e.pickSample(nil, now, eff)
	if len(d.members) == 0 { // too few are left that were up: those who wait are the sample
		for _, s := range e.pending[:min(len(e.pending), e.p.DoubtServers)] {
			d.members[s] = waiting
			e.probeNow(s, 0, e.p.SampleTimeout, "sample", eff)
		}
	}
}

func (e *Engine) beginDoubt(now time.Time, byAgents bool, eff *Effects) {
	d := &e.doubt
	d.active, d.byAgents, d.spent = true, byAgents, true
	d.holdUntil = now.Add(e.p.HoldFalls)
	d.recheck = now.Add(e.p.RetryAfter)
	details := "most of the environments are late at once: it may be us; falls are held for up to " + e.p.HoldFalls.String()
	ids := []string{}
	if !byAgents {
		for s, a := range d.members {
			if a != alive {
				ids = append(ids, s.Def.ID)
			}
		}
		slices.Sort(ids)
		details = fmt.Sprintf("%d of %d servers on other environments that were up fail at once: it may be us; falls are held for up to %s",
			len(ids), len(d.members), e.p.HoldFalls)
	}
	eff.Entries = append(eff.Entries, &statussync.Entry{
		Kind: statussync.KindSelfDoubt, Timestamp: now, Source: statussync.SourceSystem, ServerIDs: ids, Details: details,
	})
	due := d.recheck
	if !byAgents {
		due = d.at.Add(e.p.SampleServes)
	}
	e.due.set(&d.node, due)
}

// doubtAgents asks "is it us?" for an environment that turns late or lost; it is true while falls are held.
func (e *Engine) doubtAgents(now time.Time, eff *Effects) bool {
	d := &e.doubt
	if d.active {
		return d.holds(now)
	}
	if !d.agentsAt.Equal(now) { // one count serves all that are looked at now
		d.agentsAt, d.agents = now, e.agentsSpeakAgainstUs(now)
	}
	against := d.agents
	if !against {
		if d.byAgents {
			d.spent = false
		}
		return false
	}
	if e.doubtSpent(now) {
		return false
	}
	e.beginDoubt(now, true, eff)
	return true
}

// doubtSpent reports whether the trouble is still the one that falls were held for already.
func (e *Engine) doubtSpent(now time.Time) bool {
	return e.doubt.spent && now.Sub(e.doubt.holdUntil) < e.p.BadFor
}

// agentsSpeakAgainstUs reports whether so many environments are past their time at once that it may be us. Those that
// were told lost before are not news and don't count.
func (e *Engine) agentsSpeakAgainstUs(now time.Time) bool {
	n, past := 0, 0
	for _, env := range e.envOrder {
		if env.LastBeat.IsZero() || env.Judged == statussync.AgentLost {
			continue
		}
		n++
		if h := e.heardEnv(env, now); h.age() > time.Duration(e.p.DoubtFactor*float64(e.interval(env))) {
			past++
		}
	}
	return n >= e.p.DoubtAgents && float64(past) >= e.p.DoubtShare*float64(n)
}

// gatherFalls lets the falls of one host be told together, some time after the first of them.
func (e *Engine) gatherFalls(env *environment, now time.Time) {
	if env.HostLost || !env.groupAt.IsZero() {
		return
	}
	env.groupAt = later(env.sample.first.Add(e.p.GatherFalls), now.Add(time.Millisecond))
	if env.node.index < 0 || env.groupAt.Before(env.node.at) {
		e.due.set(&env.node, env.groupAt)
	}
}

// hostFalls lets all servers of a lost host fall in one go: their failed samples count as confirmed failures.
func (e *Engine) hostFalls(env *environment, now time.Time, eff *Effects) {
	env.HostLost = true
	e.touchEnv(env)
	for _, s := range env.servers {
		if s.falling {
			e.unfall(s)
		}
		if s.probed() && s.Probe.FailRun > 0 && s.Probe.ByConnect && s.Probe.Verdict != verdictDown {
			e.setVerdict(s, verdictDown, now)
		}
	}
	if env.hasAgent() && env.Judged != statussync.AgentLost {
		return // evalEnv, who calls this, goes on to the edge
	}
	start := len(eff.Entries)
	e.evalServers(env, now, statussync.SourceHeartbeat, eff)
	e.tellSilent(env, now, start, eff)
}
