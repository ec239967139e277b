package engine

import (
	"strconv"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// recordSeen takes a row's word as it was read; only a change of it asserts anything.
func (e *Engine) recordSeen(now time.Time, r *statussync.RecordSeen, eff *Effects) {
	s := e.servers[r.ServerID]
	if s == nil {
		eff.fail(statussync.NotFound("server", r.ServerID))
		return
	}
	if foreign(r.Origin, s.Def.Origin, r.ServerID, "server", eff) {
		return
	}
	rec := &s.Record
	word := strings.ToLower(strings.TrimSpace(r.Word))
	if word == rec.Word {
		rec.Error = r.Error
		return
	}
	before := s.desired()
	*rec = recordEvidence{Word: word, Error: r.Error, Desired: rec.Desired, State: statussync.StateUnknown}
	if r.Echo {
		// Our own write-back: it only repeats what the agent said to us.
		e.touch(s)
		e.eval(s, now, statussync.SourceDTMA, eff)
		return
	}
	state, known := statussync.RecordState(word)
	if !known && word != "" { // a row that says nothing any more is no riddle
		e.unknownWord(word, eff)
	}
	rec.State, rec.AssertedAt, rec.SaidAt = state, now, now
	if d, keep := statussync.RecordDesired(word); !keep {
		rec.Desired = d
	}
	if d := s.desired(); d != before {
		e.desireChanged(s, d, now)
	}
	e.touch(s)
	if s.probed() && state != statussync.StateUnknown {
		up := s.Probe.Verdict == verdictUp && state != statussync.StateRunning
		down := s.Probe.Verdict == verdictDown && state == statussync.StateRunning
		if up || down {
			e.probeNow(s, 0, 0, "contradiction", eff)
		}
	}
	e.eval(s, now, statussync.SourceDTMA, eff)
}

// foreign reports that a row is not the one that a server or environment was defined by.
func foreign(row, defined statussync.Origin, id, kind string, eff *Effects) bool {
	if row == "" || row == defined {
		return false
	}
	eff.fail(&statussync.Error{Code: statussync.CodeConflict, Location: id, Detail: kind + " " + strconv.Quote(id) + " is defined by " + string(defined)})
	return true
}

// leaves is the state that a command leaves: while reports still show it, the command is under way.
func leaves(command statussync.State) statussync.State {
	if command == statussync.StateStarting {
		return statussync.StateStopped
	}
	return statussync.StateRunning
}

// recordGoal notes that a report after a command showed another state than the one that the command leaves: from then
// on reports are believed again.
func (e *Engine) recordGoal(s *server) {
	rec, c := &s.Record, &s.Container
	if rec.Done || (rec.State != statussync.StateStarting && rec.State != statussync.StateStopping) || !c.AssertedAt.After(rec.AssertedAt) {
		return
	}
	st := c.stateFor(s.desired())
	if st != statussync.StateUnknown && st != leaves(rec.State) {
		rec.Done = true
	}
}

// underWay reports whether the record is a command that the container's newest words don't overrule yet.
func (s *server) underWay(cState statussync.State) bool {
	rec, c := &s.Record, &s.Container
	if rec.Done || rec.Overruled || (rec.State != statussync.StateStarting && rec.State != statussync.StateStopping) {
		return false
	}
	if cState != leaves(rec.State) {
		return false
	}
	return c.ExitMin.IsZero() || !c.ExitMin.After(rec.SaidAt) // an exit after the command is its answer
}

// desireChanged is for any change of what is wanted: flapping ends, and one who should run now gets time to start.
func (e *Engine) desireChanged(s *server, d statussync.Desired, now time.Time) {
	s.Flap = flapping{}
	if d == statussync.DesiredRunning {
		s.Probe.GraceFrom = now
	}
}
