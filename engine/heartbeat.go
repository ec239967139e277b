package engine

import (
	"slices"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// agentReport takes a heartbeat, or an agent's answer.
func (e *Engine) agentReport(now time.Time, r *statussync.AgentReport, eff *Effects) {
	env := e.envs[r.EnvironmentID]
	if env == nil {
		eff.fail(statussync.NotFound("environment", r.EnvironmentID))
		return
	}
	switch r.Via {
	case statussync.ViaPull:
		env.Answered = true
		e.sampleAgent(env, true)
	case statussync.ViaEvent: // it comes when something happens, which says nothing of when the next heartbeat is due
	default:
		e.learnGap(env, now)
	}
	e.alive(env, now)
	env.HeardVia = r.Via
	if r.AgentVersion != "" {
		env.AgentVersion = r.AgentVersion
	}
	if r.System != nil {
		env.System = r.System
	}
	listed := e.matchContainers(env, now, r, eff)
	e.evalEnv(env, now, eff)
	for _, s := range listed {
		e.eval(s, now, statussync.SourceDTMA, eff)
	}
	if len(listed) < len(env.servers) { // the others' limits may have moved
		for _, s := range env.servers {
			if s.seenIn != e.reports {
				e.eval(s, now, statussync.SourceSystem, eff)
			}
		}
	}
	e.listed = listed[:0]
	e.settle(now, eff)
}

// alive is any sign of life of an environment's agent.
func (e *Engine) alive(env *environment, now time.Time) {
	env.LastBeat = now
	env.AskFails = 0
	env.AskLost = false
	env.HostLost = false
	env.groupAt = time.Time{}
	if h := env.sample; h != nil && !env.LastBeat.Before(h.at) {
		h.agent = alive // asked or not: the host is there
	}
	e.touchEnv(env)
}

// learnGap counts a pushed heartbeat towards the learned interval.
func (e *Engine) learnGap(env *environment, now time.Time) {
	if !env.LastPush.IsZero() {
		if gap := now.Sub(env.LastPush); gap > 0 {
			if len(env.Gaps) == 10 {
				copy(env.Gaps, env.Gaps[1:])
				env.Gaps[9] = gap
			} else {
				env.Gaps = append(env.Gaps, gap)
			}
		}
	}
	env.LastPush, env.PushSkip = now, e.skippedAny(now)
}

// matchContainers applies a report's list and returns the servers that it speaks of, in a buffer that is reused.
func (e *Engine) matchContainers(env *environment, now time.Time, r *statussync.AgentReport, eff *Effects) []*server {
	listed := e.listed[:0]
	e.reports++
	if r.List == statussync.ListNone {
		return listed
	}
	onlyDocumented := len(r.Containers) > 0
	for i := range r.Containers {
		c := &r.Containers[i]
		if c.Shape == statussync.ShapeDocker {
			onlyDocumented = false
		}
		s := e.match(env, c, eff)
		if s == nil {
			continue
		}
		if s.seenIn != e.reports {
			s.seenIn, s.seenAt = e.reports, i
			listed = append(listed, s)
		} else if c.Shape == statussync.ShapeDocker && r.Containers[s.seenAt].Shape == statussync.ShapeDocumented {
			s.seenAt = i // Docker's own words say more than the platform's
		}
	}
	for _, s := range listed {
		e.contain(s, now, &r.Containers[s.seenAt], r.Via == statussync.ViaEvent, eff)
	}
	if r.List != statussync.ListComplete || r.Via == statussync.ViaEvent {
		return listed
	}
	for _, s := range env.servers {
		if s.seenIn == e.reports || !s.Container.known() {
			continue
		}
		if onlyDocumented && s.Container.Shape != statussync.ShapeDocumented {
			continue // a list of ids is complete only for ids that were named before
		}
		e.absent(s, now, eff)
		s.seenIn = e.reports
		listed = append(listed, s)
	}
	if !onlyDocumented {
		for name, d := range env.discovered {
			if !d.LastSeen.Equal(now) {
				delete(env.discovered, name)
			}
		}
	}
	return listed
}

// match finds the server that a container is, or notes the container as discovered.
func (e *Engine) match(env *environment, c *statussync.ContainerReport, eff *Effects) *server {
	if c.ServerID != "" {
		if s := e.servers[c.ServerID]; s != nil {
			if s.env == env {
				return s
			}
			eff.Foreign++ // an agent may only speak for servers of its own environment
			return nil
		}
	}
	for _, n := range c.Names {
		if s := env.byContainer[n]; s != nil && (c.ServerID == "" || c.ServerID == s.Def.ID) {
			return s
		}
	}
	if len(c.Names) == 0 || c.Names[0] == "" {
		return nil
	}
	name := c.Names[0]
	d := env.discovered[name]
	if d == nil {
		if len(env.discovered) >= statussync.MaxDiscovered {
			return nil
		}
		if env.discovered == nil {
			env.discovered = map[string]*statussync.Discovered{}
		}
		d = &statussync.Discovered{EnvironmentID: env.Def.ID, Container: name}
		env.discovered[name] = d
	}
	d.Image, d.Word, d.Text, d.PublicPort, d.LastSeen = c.Image, c.Word, c.Text, c.PublicPort, e.now
	return nil
}

// rowHeartbeat takes a heartbeat that the platform's database tells of.
func (e *Engine) rowHeartbeat(now time.Time, r *statussync.RowHeartbeat, eff *Effects) {
	move := func(at, last *time.Time) bool { // whether it counts, and as of when
		switch {
		case r.At.IsZero() || r.At.Equal(*at):
			return false
		case at.IsZero(): // at first sight by its own time
			*last = r.At
			if r.At.After(now) {
				*last = now
			}
		case r.At.Before(*at):
			return false
		default: // afterwards as a heartbeat at the moment that we see it move
			*last = now
		}
		*at = r.At
		return true
	}
	if r.ServerID != "" {
		s := e.servers[r.ServerID]
		if s == nil {
			eff.fail(statussync.NotFound("server", r.ServerID))
			return
		}
		if foreign(r.Origin, s.Def.Origin, r.ServerID, "server", eff) {
			return
		}
		first := s.RowBeatAt.IsZero()
		var last time.Time
		if !move(&s.RowBeatAt, &last) {
			return
		}
		if last.After(s.RowBeat) {
			s.RowBeat, s.RowSkip = last, e.skipped(s.Def.Origin, now)
		}
		e.touch(s)
		if s.env != nil && !first {
			e.learnRead(s.env, now, r.Read)
			e.evalEnv(s.env, now, eff) // the interval, and with it everybody's limits, may have moved
			e.evalServers(s.env, now, statussync.SourceDTMA, eff)
			return
		}
		e.eval(s, now, statussync.SourceDTMA, eff)
		return
	}
	env := e.envs[r.EnvironmentID]
	if env == nil {
		eff.fail(statussync.NotFound("environment", r.EnvironmentID))
		return
	}
	if foreign(r.Origin, env.Def.Origin, r.EnvironmentID, "environment", eff) {
		return
	}
	first := env.BeatAt.IsZero()
	var last time.Time
	if !move(&env.BeatAt, &last) {
		return
	}
	e.touchEnv(env) // also where the row tells of an older heartbeat than we know
	if !first {
		e.learnRead(env, now, r.Read)
	}
	if last.After(env.LastBeat) {
		e.alive(env, last)
		env.HeardVia, env.BeatSkip = "", e.skipped(env.Def.Origin, now)
	}
	e.evalEnv(env, now, eff)
	e.evalServers(env, now, statussync.SourceDTMA, eff)
	e.settle(now, eff)
}

// learnRead counts the moves that one read of the database saw as one gap.
func (e *Engine) learnRead(env *environment, now time.Time, read uint64) {
	if read != 0 && env.BeatRead == read {
		return
	}
	env.BeatRead = read
	if env.PushSkip != e.skippedAny(now) {
		env.LastPush = time.Time{} // nobody saw what came in between: that gap teaches nothing
	}
	e.learnGap(env, now)
	e.touchEnv(env)
}

// agentFailed takes the failure of a question.
func (e *Engine) agentFailed(now time.Time, f *statussync.AgentFailed, eff *Effects) {
	env := e.envs[f.EnvironmentID]
	if env == nil {
		eff.fail(statussync.NotFound("environment", f.EnvironmentID))
		return
	}
	e.sampleAgent(env, strings.HasPrefix(f.Cause, "http_")) // an error that somebody answers is no silence
	if env.Answered && !f.NobodyToAsk && !env.LastBeat.IsZero() {
		_, late, _ := e.limits(env)
		if h := e.heardEnv(env, now); h.age() >= late {
			env.AskFails++
			if env.AskFails >= e.p.AskFailures {
				env.AskLost = true
			}
			e.touchEnv(env)
		}
	}
	e.evalEnv(env, now, eff)
	e.settle(now, eff)
}

// judge is how the environment's agent is doing at now. It is not made worse while we doubt ourselves.
func (e *Engine) judge(env *environment, now time.Time, due *nearest) statussync.AgentState {
	if !env.hasAgent() {
		return statussync.AgentNone
	}
	if env.HostLost || env.AskLost && (env.Judged == statussync.AgentLost || !e.doubt.holds(now)) {
		return statussync.AgentLost
	}
	if env.AskLost {
		due.add(e.doubt.holdUntil)
	}
	interval, late, lost := e.limits(env)
	h := e.heardEnv(env, now)
	floor := later(env.FirstSeen, h.started).Add(interval) // no limit passes in the first interval after a start or a first sight
	held := func(t time.Time, already bool) time.Time {
		if !already { // a limit that has passed before stays so
			t = later(t, floor)
			if e.doubt.holds(now) {
				t = later(t, e.doubt.holdUntil)
			}
		}
		if !h.waits {
			due.add(t)
		}
		return t
	}
	if h.at.IsZero() {
		never := env.FirstSeen.Add(e.p.StuckAfter + e.skippedSince(env, h.asOf))
		if h.asOf.Before(held(never, env.Judged == statussync.AgentLost)) {
			return statussync.AgentNeverSeen
		}
		return statussync.AgentLost
	}
	isLost := env.Judged == statussync.AgentLost
	lostAt := held(h.at.Add(lost), isLost)
	lateAt := held(h.at.Add(late), isLost || env.Judged == statussync.AgentLate)
	switch {
	case !h.asOf.Before(lostAt):
		return statussync.AgentLost
	case !h.asOf.Before(lateAt):
		return statussync.AgentLate
	}
	return statussync.AgentOK
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// evalEnv judges an environment anew, tells the edges of silence, asks a silent agent, and looks at its servers where
// the judgement changed.
func (e *Engine) evalEnv(env *environment, now time.Time, eff *Effects) {
	due := nearest{now: now}
	switch {
	case env.groupAt.IsZero():
	case e.doubt.holds(now):
		due.add(e.doubt.holdUntil)
	case !now.Before(env.groupAt):
		env.groupAt = time.Time{}
		e.hostFalls(env, now, eff)
	default:
		due.add(env.groupAt)
	}
	judged := e.judge(env, now, &due)
	worse := judged == statussync.AgentLate && env.Judged == statussync.AgentOK || judged == statussync.AgentLost && env.Judged != statussync.AgentLost
	if worse && !env.HostLost && e.doubtAgents(now, eff) {
		due.add(e.doubt.holdUntil)
		judged = e.judge(env, now, &due)
	}
	if judged != env.Judged {
		env.Judged = judged
		e.touchEnv(env)
		start := len(eff.Entries)
		switch {
		case judged == statussync.AgentLost:
			e.evalServers(env, now, statussync.SourceSystem, eff)
			e.tellSilent(env, now, start, eff)
		case env.Silent != nil:
			e.tellBack(env, now, eff)
			e.evalServers(env, now, statussync.SourceDTMA, eff)
		default:
			src := statussync.SourceDTMA
			if judged == statussync.AgentLate {
				src = statussync.SourceSystem
			}
			e.evalServers(env, now, src, eff)
		}
	}
	e.ask(env, now, &due, eff)
	e.due.set(&env.node, due.at)
}

// hostBack is for an environment without an agent: one of its servers answers again.
func (e *Engine) hostBack(env *environment, now time.Time, eff *Effects) {
	env.HostLost = false
	env.groupAt = time.Time{}
	env.sample = nil // it is not the host: who else is failing falls alone
	e.touchEnv(env)
	if !env.hasAgent() && env.Silent != nil {
		e.tellBack(env, now, eff)
	}
	e.evalEnv(env, now, eff)
}

func (e *Engine) evalServers(env *environment, now time.Time, src statussync.EventSource, eff *Effects) {
	for _, s := range env.servers {
		e.eval(s, now, src, eff)
	}
}

// tellSilent puts one entry before those that the silence caused (from start on): one cause, not N alarms.
func (e *Engine) tellSilent(env *environment, now time.Time, start int, eff *Effects) {
	if env.Silent != nil {
		return
	}
	ids := []string{}
	for _, en := range eff.Entries[start:] {
		if en.Kind == statussync.KindStatus && en.EnvironmentID == env.Def.ID {
			ids = append(ids, en.ServerID)
		}
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	env.Silent = ids
	e.touchEnv(env)
	h := e.heardEnv(env, now)
	why := "no heartbeat for " + roundAge(h.age())
	switch {
	case env.HostLost:
		if why = "its servers cannot be reached"; env.Def.AgentURL != "" {
			why += " and its agent does not answer"
		}
	case env.LastBeat.IsZero():
		why = "its agent never reported"
	case env.AskLost:
		why += " and its agent does not answer"
	}
	eff.Entries = slices.Insert(eff.Entries, start, &statussync.Entry{
		Kind: statussync.KindEnvironmentSilent, Timestamp: now, Source: statussync.SourceSystem, EnvironmentID: env.Def.ID,
		ServerIDs: ids, Details: "environment " + env.Def.ID + " is silent: " + why + affected(len(ids)),
	})
}

func (e *Engine) tellBack(env *environment, now time.Time, eff *Effects) {
	eff.Entries = append(eff.Entries, &statussync.Entry{
		Kind: statussync.KindEnvironmentBack, Timestamp: now, Source: statussync.SourceSystem, EnvironmentID: env.Def.ID,
		ServerIDs: env.Silent, Details: "environment " + env.Def.ID + " is heard again" + affected(len(env.Silent)),
	})
	env.Silent = nil
	e.touchEnv(env)
}

func affected(n int) string {
	switch n {
	case 0:
		return "; no server's status depends on it"
	case 1:
		return "; 1 server is affected"
	}
	return "; " + itoa(n) + " servers are affected"
}

// ask questions an agent that has been silent for too long (docs/domain.md, heartbeat limits).
func (e *Engine) ask(env *environment, now time.Time, due *nearest, eff *Effects) {
	if env.Def.AgentURL == "" || env.LastBeat.IsZero() {
		env.nextAsk = time.Time{}
		return
	}
	interval := e.interval(env)
	h := e.heardEnv(env, now)
	from := later(h.at.Add(time.Duration(float64(interval)*e.p.AskFactor)), h.started.Add(interval))
	if h.asOf.Before(from) {
		env.nextAsk = time.Time{}
		if !h.waits {
			due.add(from)
		}
		return
	}
	if !now.Before(env.nextAsk) {
		e.askNow(env, e.p.Probe.Timeout, 0, eff)
		every := e.p.AskEvery
		if env.Judged == statussync.AgentLost && !env.Answered {
			every *= 6 // behind NAT, most likely: it will report by itself
		}
		env.nextAsk = now.Add(every)
	}
	due.add(env.nextAsk)
}

func (e *Engine) askNow(env *environment, timeout, after time.Duration, eff *Effects) {
	eff.Requests = append(eff.Requests, statussync.Request{Ask: &statussync.AskAgent{
		EnvironmentID: env.Def.ID, URL: env.Def.AgentURL, Trusted: env.Def.Origin.Trusted(), After: after, Timeout: timeout,
	}})
}

func (e *Engine) environmentView(env *environment, now time.Time) statussync.EnvironmentView {
	interval, late, lost := e.limits(env)
	h := e.heardEnv(env, now)
	v := statussync.EnvironmentView{
		Environment: env.Def, Agent: env.Judged, AgentVersion: env.AgentVersion, LastHeartbeat: h.shownAt(now), HeardVia: env.HeardVia,
		Interval: interval, LateAfter: late, LostAfter: lost, System: env.System, Servers: len(env.servers), Now: now,
	}
	if v.Agent == "" {
		v.Agent = statussync.AgentNone
	}
	for _, d := range env.discovered {
		v.Discovered = append(v.Discovered, *d)
	}
	slices.SortFunc(v.Discovered, func(a, b statussync.Discovered) int { return strings.Compare(a.Container, b.Container) })
	return v
}

// Environment returns what is known of an environment.
func (e *Engine) Environment(id string, now time.Time) (statussync.EnvironmentView, bool) {
	env, ok := e.envs[id]
	if !ok {
		return statussync.EnvironmentView{}, false
	}
	return e.environmentView(env, now), true
}
