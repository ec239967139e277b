// Package engine concludes: observations in, entries and requests out. It holds every rule of docs/domain.md and
// nothing else: no clock, lock, goroutine, I/O or log. Time is an argument, effects are data.
//
// An Engine is owned by one goroutine; none of its methods may be called concurrently. Time never goes back: a now that
// is older than the newest seen is taken as the newest seen. The same observations at the same times give the same
// effects.
package engine

import (
	"iter"
	"maps"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// Effects is what follows from a step. The caller owns it and reuses it: the engine only appends. What the elements
// point to is immutable from then on.
type Effects struct {
	// Entries are to be journaled in this order, in one batch where several came of one call. Seq and Epoch are left
	// for the journal's writer.
	Entries []*statussync.Entry
	// Requests are to be handed to a statussync.Requester after the entries are durable.
	Requests []statussync.Request
	// Errors are observations that could not be taken, in the order of the call; each is a *statussync.Error.
	Errors []error
	// Unknown are container and record words that no table knows, each told once in the engine's life.
	Unknown []string
	// Foreign counts containers in agent reports that named a server of another environment.
	Foreign int
}

// Reset empties e and keeps its memory.
func (e *Effects) Reset() {
	clear(e.Entries)
	clear(e.Requests)
	clear(e.Errors)
	*e = Effects{Entries: e.Entries[:0], Requests: e.Requests[:0], Errors: e.Errors[:0], Unknown: e.Unknown[:0]}
}

func (e *Effects) fail(err *statussync.Error) { e.Errors = append(e.Errors, err) }

// maxUnknownWords bounds the memory of words that no table knows; beyond it they are no longer told.
const maxUnknownWords = 1000

// Engine is the rules' memory: what is known of every server and environment.
type Engine struct {
	p       Policy
	now     time.Time // the newest seen
	started time.Time // of this run of the service: no heartbeat limit passes within the first interval after it

	servers  map[string]*server
	envs     map[string]*environment
	envOrder []*environment // by id, so that samples are the same for the same history
	versions versions       // of removed servers
	maintenance

	due     dueHeap
	doubt   doubt
	pending []*server // falls that wait for the two questions
	settled []*server // reused
	unknown map[string]struct{}
	listed  []*server // reused: the servers that a report speaks of
	reports uint64    // counts lists, so that who was listed is known without a set

	dirty       map[*server]struct{}
	dirtyEnvs   map[*environment]struct{}
	dirtyTools  map[string]struct{} // servers whose tools or pin changed, also of those that are gone
	dirtyGone   map[string]uint64   // removed servers whose record is to be written, with their version
	dirtyDelete map[recordKey]struct{}
	dirtySelf   bool
	restoredAt  time.Time // the newest time of a restored record: the service was alive then
	// skipped is all the time that was ever taken off evidence clocks. Records are stored with it: one that was stored
	// before the newest downtime, and not since, still lacks that when the service dies again.
	skippedAll    time.Duration
	rowClocks     map[statussync.Origin]*rowClock
	restoredTools map[string]*toolMemory // until Start
	touched       map[string]struct{}
	touchedEnvs   map[string]struct{}
}

// New returns an empty engine. An invalid policy is a *statussync.Error that names the field.
func New(p Policy) (*Engine, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	e := &Engine{
		p: p, servers: map[string]*server{}, envs: map[string]*environment{}, maintenance: newMaintenance(),
		unknown: map[string]struct{}{}, dirty: map[*server]struct{}{}, dirtyEnvs: map[*environment]struct{}{},
		dirtyTools: map[string]struct{}{}, restoredTools: map[string]*toolMemory{}, dirtyGone: map[string]uint64{}, dirtyDelete: map[recordKey]struct{}{},
		touched: map[string]struct{}{}, touchedEnvs: map[string]struct{}{}, rowClocks: map[statussync.Origin]*rowClock{},
	}
	e.versions.init()
	e.doubt.node.kind = dueDoubt
	e.doubt.node.index = -1
	return e, nil
}

func (e *Engine) advance(now time.Time) time.Time {
	if now.After(e.now) {
		e.now = now
	}
	return e.now
}

// Step takes one observation. What was due before now happens first. Nothing else but Tick and Gap makes time pass.
func (e *Engine) Step(now time.Time, o statussync.Observation, eff *Effects) {
	e.Tick(now, eff)
	now = e.now
	switch o := o.(type) {
	case *statussync.AgentReport:
		e.agentReport(now, o, eff)
	case *statussync.AgentFailed:
		e.agentFailed(now, o, eff)
	case *statussync.RowHeartbeat:
		e.rowHeartbeat(now, o, eff)
	case *statussync.DatabaseConnection:
		e.databaseConnection(now, o, eff)
	case *statussync.RecordSeen:
		e.recordSeen(now, o, eff)
	case *statussync.ProbeResult:
		e.probeResult(now, o, eff)
	case *statussync.RegistryUpdate:
		e.registryUpdate(now, o, eff)
	case *statussync.OverrideSet:
		e.overrideSet(now, o, eff)
	case *statussync.OverrideClear:
		e.overrideClear(now, o, eff)
	case *statussync.MaintenanceSet:
		e.maintenanceSet(now, o, eff)
	case *statussync.MaintenanceEnd:
		e.maintenanceEnd(now, o, eff)
	case *statussync.ToolsSeen:
		e.toolsSeen(now, o, eff)
	case *statussync.ToolsPin:
		e.toolsPin(now, o, eff)
	case *statussync.ToolsUnpin:
		e.toolsUnpin(now, o, eff)
	default:
		eff.fail(statussync.Invalid("observation", "is of a kind that the engine does not know"))
	}
}

// Tick does everything that is due at now, in the order of the deadlines and each as of its own time: a late call gives
// the same entries, with the same times, as one at every deadline. Calling it early or often is harmless.
func (e *Engine) Tick(now time.Time, eff *Effects) {
	for len(e.due) > 0 && !e.due[0].at.After(now) {
		n := e.due[0]
		at := e.advance(n.at)
		e.due.remove(n)
		switch n.kind {
		case dueWindow:
			e.windowsDue(n.window, at, eff)
		case dueEnv:
			e.evalEnv(n.env, at, eff)
		case dueDoubt:
			e.settle(at, eff)
		case dueServer:
			e.eval(n.server, at, statussync.SourceSystem, eff)
		}
	}
	e.advance(now)
}

// Deadline is when Tick should be called next; ok is false when nothing is waiting.
func (e *Engine) Deadline() (at time.Time, ok bool) {
	if len(e.due) == 0 {
		return time.Time{}, false
	}
	return e.due[0].at, true
}

// SetPolicy replaces the policy; what follows is concluded at once.
func (e *Engine) SetPolicy(now time.Time, p Policy, eff *Effects) error {
	if err := p.Validate(); err != nil {
		return err
	}
	e.Tick(now, eff)
	now = e.now
	e.p = p
	for id, s := range e.servers {
		before := e.Probing(id)
		if e.refreshTarget(s); e.Probing(id) != before {
			e.touched[id] = struct{}{}
		}
	}
	for id := range e.envs { // their limits may have moved
		e.touchedEnvs[id] = struct{}{}
	}
	e.evalAll(now, eff)
	return nil
}

func (e *Engine) evalAll(now time.Time, eff *Effects) {
	for _, env := range e.envOrder {
		e.evalEnv(env, now, eff)
	}
	for _, s := range e.sorted() {
		e.eval(s, now, statussync.SourceSystem, eff)
	}
	e.settle(now, eff)
}

// Server returns a server's definition.
func (e *Engine) Server(id string) (*statussync.Server, bool) {
	if s, ok := e.servers[id]; ok {
		return s.Def, true
	}
	return nil, false
}

// Status returns a server's conclusion, as last told in an entry, with its facts of now.
func (e *Engine) Status(id string) (statussync.Status, bool) {
	s, ok := e.servers[id]
	if !ok {
		return statussync.Status{}, false
	}
	st := s.Pub
	h := e.lastHeard(s, e.now)
	st.LastHeartbeat = h.shownAt(e.now)
	return st, true
}

// Probing returns how a server is probed in effect; the zero value for an unknown one.
func (e *Engine) Probing(id string) statussync.Probing {
	s, ok := e.servers[id]
	switch {
	case !ok:
		return statussync.Probing{}
	case !s.probed():
		return statussync.Probing{Kind: statussync.ProbeNone}
	}
	url := s.target
	if s.spec.SecretURL != "" { // what is not to be shown is not told
		url = s.spec.URL
		if url == "" {
			url = s.Def.Endpoint
		}
	}
	return statussync.Probing{Kind: s.spec.Kind, URL: url, Interval: s.spec.Interval}
}

// ServerIDs yields the ids of all servers, in no order; the engine must not change meanwhile.
func (e *Engine) ServerIDs() iter.Seq[string] { return maps.Keys(e.servers) }

// EnvironmentIDs yields the ids of all environments, in no order; the engine must not change meanwhile.
func (e *Engine) EnvironmentIDs() iter.Seq[string] { return maps.Keys(e.envs) }

// Touched appends the ids of the servers whose definition, conclusion or facts changed since it was last called; a
// removed server is among them and no longer found.
func (e *Engine) Touched(buf []string) []string {
	for id := range e.touched {
		buf = append(buf, id)
	}
	clear(e.touched)
	return buf
}

// TouchedEnvironments is Touched for environments.
func (e *Engine) TouchedEnvironments(buf []string) []string {
	for id := range e.touchedEnvs {
		buf = append(buf, id)
	}
	clear(e.touchedEnvs)
	return buf
}

func (e *Engine) touch(s *server) {
	e.dirty[s] = struct{}{}
	e.touched[s.Def.ID] = struct{}{}
}

func (e *Engine) touchEnv(env *environment) {
	e.dirtyEnvs[env] = struct{}{}
	e.touchedEnvs[env.Def.ID] = struct{}{}
}

func (e *Engine) unknownWord(word string, eff *Effects) {
	if word == "" || len(e.unknown) >= maxUnknownWords {
		return
	}
	word = statussync.CleanText(strings.ToLower(strings.TrimSpace(word)), statussync.MaxWordText)
	if _, ok := e.unknown[word]; !ok {
		e.unknown[word] = struct{}{}
		eff.Unknown = append(eff.Unknown, word)
	}
}
