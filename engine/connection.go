package engine

import (
	"time"

	"github.com/agentopia/statussync"
)

// maxRowClocks bounds the databases whose connections are followed; a configuration names a handful.
const maxRowClocks = 64

// rowClock measures the heartbeats that come from one database. It stands still while there is no connection to it:
// nobody could have seen a heartbeat then. What was seen is remembered with the clock's reading (RowSkip, BeatSkip), so
// nothing has to be moved when a connection comes back.
type rowClock struct {
	Away  time.Duration `json:",omitzero"` // without a connection in all, but for the present time
	Since time.Time     `json:",omitzero"` // since when there is none; zero: there is one
	back  time.Time     // when there was one again; a restart gives everybody time anyway
}

// skipped is for how long there was no connection to the origin's database, in all.
func (e *Engine) skipped(o statussync.Origin, now time.Time) time.Duration {
	c := e.rowClocks[o]
	switch {
	case c == nil:
		return 0
	case c.Since.IsZero() || c.Since.After(now):
		return c.Away
	}
	return c.Away + now.Sub(c.Since)
}

// skippedAny is the same over all databases: a gap between two readings of it had a time without some connection.
func (e *Engine) skippedAny(now time.Time) (sum time.Duration) {
	for o := range e.rowClocks {
		sum += e.skipped(o, now)
	}
	return sum
}

// databaseConnection notes that a database can be read, or not any more.
func (e *Engine) databaseConnection(now time.Time, o *statussync.DatabaseConnection, eff *Effects) {
	c := e.rowClocks[o.Origin]
	if c == nil {
		if o.Connected {
			return // as it was
		}
		if o.Origin == "" || len(e.rowClocks) >= maxRowClocks {
			eff.fail(statussync.Invalid("origin", "of a database connection is missing, or one of too many"))
			return
		}
		c = &rowClock{}
		e.rowClocks[o.Origin] = c
	}
	if o.Connected == c.Since.IsZero() {
		return
	}
	e.dirtySelf = true
	if !o.Connected {
		c.Since = now
		return
	}
	c.Away += now.Sub(c.Since)
	c.Since, c.back = time.Time{}, now
	for id, s := range e.servers {
		if !s.RowBeat.IsZero() {
			e.touched[id] = struct{}{}
		}
	}
	for id, env := range e.envs {
		if env.fromRow() {
			e.touchedEnvs[id] = struct{}{}
		}
	}
	e.evalAll(now, eff)
}

// heard is a sign of life as its limits are to be counted.
type heard struct {
	at      time.Time // when it came, the time without a connection since then taken off; zero: never
	asOf    time.Time // when to look: now, but not after the connection was lost that it came by
	started time.Time // no limit passes in the first interval after it
	waits   bool      // the connection is away: no limit passes by itself
}

func (h *heard) age() time.Duration { return h.asOf.Sub(h.at) }

func (e *Engine) heardBy(o statussync.Origin, at time.Time, skip time.Duration, now time.Time) heard {
	h := heard{at: at, asOf: now, started: e.started}
	c := e.rowClocks[o]
	if c == nil {
		return h
	}
	h.started = later(h.started, c.back)
	if !c.Since.IsZero() && !c.Since.After(now) {
		h.asOf, h.waits = c.Since, true
	}
	if !at.IsZero() {
		h.at = at.Add(c.Away - skip)
	}
	return h
}

// heardEnv is the newest that was heard of an environment's agent.
func (e *Engine) heardEnv(env *environment, now time.Time) heard {
	if !env.fromRow() {
		return heard{at: env.LastBeat, asOf: now, started: e.started}
	}
	return e.heardBy(env.Def.Origin, env.LastBeat, env.BeatSkip, now)
}

// heardRow is the newest heartbeat of a server's own row.
func (e *Engine) heardRow(s *server, now time.Time) heard {
	return e.heardBy(s.Def.Origin, s.RowBeat, s.RowSkip, now)
}

// lastHeard is the newest sign of life of a server's agent: of its environment's, or of its own row.
func (e *Engine) lastHeard(s *server, now time.Time) heard {
	if s.env != nil && !s.RowBeat.After(s.env.LastBeat) {
		return e.heardEnv(s.env, now)
	}
	return e.heardRow(s, now)
}

// skippedSince is the time without a connection since an environment was first seen that was never heard of.
func (e *Engine) skippedSince(env *environment, at time.Time) time.Duration {
	if c := e.rowClocks[env.Def.Origin]; c != nil && env.fromRow() {
		return e.skipped(env.Def.Origin, at) - env.BeatSkip
	}
	return 0
}

// shownAt is when h's heartbeat was, as its age is counted at now.
func (h *heard) shownAt(now time.Time) time.Time {
	if h.at.IsZero() {
		return time.Time{}
	}
	return h.at.Add(now.Sub(h.asOf))
}

// fromRow reports whether what was last heard of the agent came from the database, or would: it never reported to us.
func (env *environment) fromRow() bool { return env.HeardVia == "" }
