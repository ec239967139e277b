package engine

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/agentopia/statussync"
)

// recordVersion is the form of stored records; a newer one is refused.
const recordVersion = 1

// recordKey names a record that is to be deleted.
type recordKey struct {
	kind statussync.RecordKind
	id   string
}

type storedServer struct {
	V       int
	At      time.Time     `json:",omitzero"`  // engine time when this was stored: the service was alive then
	Removed uint64        `json:",omitempty"` // the version at removal; then there is no memory
	Skipped time.Duration `json:",omitempty"` // Engine.skippedAll when this was stored
	Def     *storedDef    `json:",omitempty"`
	Pub     *storedStatus `json:",omitempty"`
	Memory  *memory       `json:",omitempty"`
}

// storedDef is a statussync.Server, and storedStatus a statussync.Status, of which only what is set is stored: a restart
// reads 100,000 of them.
type storedDef struct {
	ID            string
	Name          string               `json:",omitzero"`
	EnvironmentID string               `json:",omitzero"`
	Owner         string               `json:",omitzero"`
	Container     string               `json:",omitzero"`
	Endpoint      string               `json:",omitzero"`
	Transport     statussync.Transport `json:",omitzero"`
	Type          string               `json:",omitzero"`
	Desired       statussync.Desired   `json:",omitzero"`
	Labels        map[string]string    `json:",omitzero"`
	Capabilities  map[string]any       `json:",omitzero"`
	Origin        statussync.Origin    `json:",omitzero"`
	Probe         statussync.ProbeSpec `json:",omitzero"`
	NeedsConfig   string               `json:",omitzero"`
	Disabled      bool                 `json:",omitzero"`
}

type storedStatus struct {
	State         statussync.State
	Health        statussync.Health
	Reason        statussync.Reason
	Marks         statussync.Marks      `json:",omitzero"`
	Cause         string                `json:",omitzero"`
	LastError     string                `json:",omitzero"`
	Since         time.Time             `json:",omitzero"`
	LastChecked   time.Time             `json:",omitzero"`
	LastStarted   time.Time             `json:",omitzero"`
	Latency       time.Duration         `json:",omitzero"`
	Auth          statussync.Auth       `json:",omitzero"`
	Protocol      string                `json:",omitzero"`
	ServerInfo    statussync.ServerInfo `json:",omitzero"`
	Override      *statussync.Override  `json:"-"` // the memory has it
	LastHeartbeat time.Time             `json:"-"` // the environment has it
	CheckCount    uint64                `json:",omitzero"`
	ErrorCount    uint64                `json:",omitzero"`
	Version       uint64                `json:",omitzero"`
}

type storedEnvironment struct {
	V        int
	At       time.Time     `json:",omitzero"`
	Implicit bool          `json:",omitempty"`
	Skipped  time.Duration `json:",omitempty"` // Engine.skippedAll when this was stored
	Memory   *envMemory
}

type storedEngine struct {
	V       int
	At      time.Time                       `json:",omitzero"`
	Skipped time.Duration                   `json:",omitempty"`
	Rows    map[statussync.Origin]*rowClock `json:",omitempty"`
	// Windows were stored here before each had a record of its own.
	Windows []statussync.Maintenance `json:",omitempty"`
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("engine: a record that cannot be encoded: " + err.Error()) // only plain data is in them
	}
	return b
}

func (e *Engine) serverRecord(s *server) statussync.Record {
	return statussync.Record{Kind: statussync.RecordServer, ID: s.Def.ID, Data: encode(storedServer{
		V: recordVersion, At: e.now, Skipped: e.skippedAll, Def: (*storedDef)(s.Def), Pub: (*storedStatus)(&s.Pub), Memory: &s.memory,
	})}
}

func (e *Engine) envRecord(env *environment) statussync.Record {
	return statussync.Record{Kind: statussync.RecordEnvironment, ID: env.Def.ID, Data: encode(storedEnvironment{V: recordVersion, At: e.now, Implicit: env.implicit, Skipped: e.skippedAll, Memory: &env.envMemory})}
}

// DirtyFor appends the records of the servers and environments that entries speak of, so that they are stored in the
// same transaction, and those of maintenance windows and tools: a person who set or pinned one was told that it is kept.
// It takes them off Dirty's list.
func (e *Engine) DirtyFor(entries []*statussync.Entry, buf []statussync.Record) []statussync.Record {
	buf = e.dirtyWindowRecords(buf)
	for len(e.dirtyTools) > 0 {
		buf = e.nextToolsRecord(buf)
	}
	for _, en := range entries {
		if en.ServerID != "" {
			if s := e.servers[en.ServerID]; s != nil {
				if _, ok := e.dirty[s]; ok {
					delete(e.dirty, s)
					buf = append(buf, e.serverRecord(s))
				}
			} else if v, ok := e.dirtyGone[en.ServerID]; ok {
				delete(e.dirtyGone, en.ServerID)
				buf = append(buf, goneRecord(en.ServerID, v))
			}
		}
		if env := e.envs[en.EnvironmentID]; env != nil {
			if _, ok := e.dirtyEnvs[env]; ok {
				delete(e.dirtyEnvs, env)
				buf = append(buf, e.envRecord(env))
			}
		}
	}
	return buf
}

func goneRecord(id string, version uint64) statussync.Record {
	return statussync.Record{Kind: statussync.RecordServer, ID: id, Data: encode(storedServer{V: recordVersion, Removed: version})}
}

// Dirty appends the records of what else changed since it was last asked, at most limit of them (0: all), and reports
// whether more is waiting.
func (e *Engine) Dirty(buf []statussync.Record, limit int) (out []statussync.Record, more bool) {
	room := func() bool {
		limit--
		return limit != -1
	}
	if limit <= 0 {
		limit = -2 // never reaches the end
		room = func() bool { return true }
	}
	for key := range e.dirtyDelete {
		if !room() {
			return buf, true
		}
		delete(e.dirtyDelete, key)
		buf = append(buf, statussync.Record{Kind: key.kind, ID: key.id})
	}
	for len(e.dirtyWindows) > 0 { // before the engine's own record, which may still hold them
		if !room() {
			return buf, true
		}
		buf = e.nextWindowRecord(buf)
	}
	for len(e.dirtyTools) > 0 {
		if !room() {
			return buf, true
		}
		buf = e.nextToolsRecord(buf)
	}
	if e.dirtySelf {
		if !room() {
			return buf, true
		}
		e.dirtySelf = false
		buf = append(buf, statussync.Record{Kind: statussync.RecordEngine, Data: encode(storedEngine{V: recordVersion, At: e.now, Skipped: e.skippedAll, Rows: e.rowClocks})})
	}
	for id, v := range e.dirtyGone {
		if !room() {
			return buf, true
		}
		delete(e.dirtyGone, id)
		buf = append(buf, goneRecord(id, v))
	}
	for env := range e.dirtyEnvs {
		if !room() {
			return buf, true
		}
		delete(e.dirtyEnvs, env)
		buf = append(buf, e.envRecord(env))
	}
	for s := range e.dirty {
		if !room() {
			return buf, true
		}
		delete(e.dirty, s)
		buf = append(buf, e.serverRecord(s))
	}
	return buf, false
}

// Restore fills a new engine from a stored record; Start ends the restoration. A record that cannot be read is a
// *statussync.Error with CodeInvalid; the engine is as before then.
func (e *Engine) Restore(r statussync.Record) error {
	bad := func(detail string, err error) error {
		return &statussync.Error{Code: statussync.CodeInvalid, Location: string(r.Kind) + " " + statussync.CleanText(r.ID, statussync.MaxNameText), Detail: detail, Err: err}
	}
	version := func(v int) error {
		if v < 1 || v > recordVersion {
			return bad("is stored in a form that this version does not know; was the store written by a newer one?", nil)
		}
		return nil
	}
	switch r.Kind {
	case statussync.RecordServer:
		var st storedServer
		if err := json.Unmarshal(r.Data, &st); err != nil {
			return bad("cannot be read", err)
		}
		if err := version(st.V); err != nil {
			return err
		}
		e.restoredAt = later(e.restoredAt, st.At)
		if st.Memory == nil {
			e.versions.put(r.ID, st.Removed)
			return nil
		}
		if st.Def == nil || st.Pub == nil || st.Def.ID != r.ID || r.ID == "" || e.servers[r.ID] != nil {
			return bad("is not the record of that server", nil)
		}
		st.Memory.Def, st.Memory.Pub = (*statussync.Server)(st.Def), statussync.Status(*st.Pub)
		st.Memory.Pub.Override = st.Memory.Override
		s := &server{memory: *st.Memory, storedAt: st.Skipped, recordAt: st.At}
		s.node = dueNode{kind: dueServer, index: -1, server: s}
		if f := &s.Flap; f.On && len(f.Changes) == 0 {
			f.On = false // written by nobody we know; it would never become quiet
		}
		e.servers[r.ID] = s
	case statussync.RecordEnvironment:
		var st storedEnvironment
		if err := json.Unmarshal(r.Data, &st); err != nil {
			return bad("cannot be read", err)
		}
		if err := version(st.V); err != nil {
			return err
		}
		if st.Memory == nil || st.Memory.Def == nil || st.Memory.Def.ID != r.ID || r.ID == "" || e.envs[r.ID] != nil {
			return bad("is not the record of that environment", nil)
		}
		env := &environment{envMemory: *st.Memory, byContainer: map[string]*server{}, implicit: st.Implicit, storedAt: st.Skipped, recordAt: st.At}
		env.Gaps = slices.DeleteFunc(env.Gaps, func(d time.Duration) bool { return d <= 0 || d > maxDuration })
		if len(env.Gaps) > 10 {
			env.Gaps = env.Gaps[len(env.Gaps)-10:]
		}
		env.node = dueNode{kind: dueEnv, index: -1, env: env}
		e.envs[env.Def.ID] = env
		e.envOrder = append(e.envOrder, env) // Start sorts them
		e.restoredAt = later(e.restoredAt, st.At)
	case statussync.RecordEngine:
		var st storedEngine
		if err := json.Unmarshal(r.Data, &st); err != nil {
			return bad("cannot be read", err)
		}
		if err := version(st.V); err != nil {
			return err
		}
		e.skippedAll = st.Skipped
		for o, c := range st.Rows {
			if c != nil && c.Away >= 0 && len(e.rowClocks) < maxRowClocks {
				e.rowClocks[o] = c
			}
		}
		e.restoredAt = later(e.restoredAt, st.At)
		e.restoreLegacyWindows(st.Windows)
	case statussync.RecordMaintenance:
		var st storedWindow
		if err := json.Unmarshal(r.Data, &st); err != nil {
			return bad("cannot be read", err)
		}
		if err := version(st.V); err != nil {
			return err
		}
		if st.ID != r.ID || r.ID == "" {
			return bad("is not the record of that window", nil)
		}
		e.restoredAt = later(e.restoredAt, st.At)
		if err := e.restoreWindow(&st); err != nil {
			return bad("cannot be understood", err)
		}
	case statussync.RecordTools:
		var st storedTools
		if err := json.Unmarshal(r.Data, &st); err != nil {
			return bad("cannot be read", err)
		}
		if err := version(st.V); err != nil {
			return err
		}
		if st.ID != r.ID || r.ID == "" {
			return bad("is not the record of that server's tools", nil)
		}
		e.restoredAt = later(e.restoredAt, st.At)
		if err := e.restoreTools(&st); err != nil {
			return bad("cannot be understood", err)
		}
	default:
		return bad("is of a kind that this version does not know", nil)
	}
	return nil
}

// Start begins, or goes on after a restoration: alive is when the service was last alive (zero: never before). It emits
// every probe plan. Definitions from configuration are told afterwards by a RegistryUpdate with Full.
func (e *Engine) Start(now, alive time.Time, eff *Effects) {
	now = e.advance(now)
	e.started = now
	gap := time.Duration(0)
	if e.restoredAt.After(alive) && !e.restoredAt.After(now) {
		alive = e.restoredAt // what was told then must still follow from what is known
	}
	if !alive.IsZero() && now.After(alive) {
		gap = now.Sub(alive)
	}
	forgiven := make(map[*environment]time.Duration, len(e.envs))
	for _, env := range e.envs {
		lacks := e.skippedAll - env.storedAt
		forgiven[env] = unstored(alive, env.recordAt, lacks)
		env.shift(gap + lacks + forgiven[env])
	}
	for _, s := range e.servers {
		lacks := e.skippedAll - s.storedAt // an earlier run took it off, but did not store this record again
		mine := unstored(alive, s.recordAt, lacks)
		s.shift(gap + lacks)
		s.renew(mine)
		// Which of the two was the newer sign of life must not depend on whose record is older.
		if env := e.envs[s.Def.EnvironmentID]; env != nil && !s.RowBeat.IsZero() && !env.LastBeat.IsZero() {
			newer := s.RowBeat.Add(-mine).After(env.LastBeat.Add(-forgiven[env]))
			switch {
			case newer && !s.RowBeat.After(env.LastBeat):
				s.RowBeat = env.LastBeat.Add(1)
			case !newer && s.RowBeat.After(env.LastBeat):
				s.RowBeat = env.LastBeat
			}
		}
	}
	slices.SortFunc(e.envOrder, func(a, b *environment) int { return compare(a.Def.ID, b.Def.ID) })
	for _, s := range e.sorted() {
		e.link(s, now)
	}
	for _, c := range e.rowClocks {
		move(gap, &c.Since)
	}
	if gap > 0 {
		e.skippedAll += gap
		e.dirtySelf = true
	}
	e.startWindows()
	e.startTools()
	clear(e.dirty)
	clear(e.dirtyEnvs)
	e.windowsPassed(now, eff)
	e.evalAll(now, eff)
	for _, s := range e.servers {
		e.touched[s.Def.ID] = struct{}{}
	}
	for id := range e.envs {
		e.touchedEnvs[id] = struct{}{}
	}
}

// storeWithin is how long evidence that made no update may wait to be stored (docs/domain.md, promise 1).
const storeWithin = 10 * time.Second

// unstored is how long before the service died evidence may have been renewed that the record, written at recordAt,
// does not hold. What could not be known to be old is not taken for old.
func unstored(alive, recordAt time.Time, lacks time.Duration) time.Duration {
	if recordAt.IsZero() {
		return 0
	}
	return min(max(0, alive.Sub(recordAt)-lacks), storeWithin)
}

func (e *Engine) sorted() []*server {
	out := make([]*server, 0, len(e.servers))
	for _, s := range e.servers {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *server) int { return compare(a.Def.ID, b.Def.ID) })
	return out
}

// Gap tells that nothing was observed for d, which ended at now (the process was suspended, or the clock was stepped
// forward): d is taken off heartbeat, evidence, probe, deadline and flapping clocks, not off override and maintenance
// ends.
func (e *Engine) Gap(now time.Time, d time.Duration, eff *Effects) {
	now = e.advance(now)
	if d > 0 {
		e.shift(d)
		e.started = now
		e.allDirty()
	}
	e.windowsPassed(now, eff)
	e.evalAll(now, eff)
}

func (e *Engine) allDirty() {
	for _, s := range e.servers {
		e.dirty[s] = struct{}{}
	}
	for _, env := range e.envs {
		e.dirtyEnvs[env] = struct{}{}
	}
}

// shift takes time during which nothing could be observed off all clocks of evidence. Real times that agents told
// (starts, exits) stay.
func (e *Engine) shift(d time.Duration) {
	for _, s := range e.servers {
		s.shift(d)
	}
	for _, env := range e.envs {
		env.shift(d)
	}
	move(d, &e.doubt.at, &e.doubt.until, &e.doubt.holdUntil, &e.doubt.recheck)
	for _, c := range e.rowClocks {
		move(d, &c.Since, &c.back)
	}
	e.skippedAll += d
	e.dirtySelf = true
}

// move adds d to those times that are known. One that would leave what can be stored (it came from a damaged record)
// stays.
func move(d time.Duration, times ...*time.Time) {
	for _, t := range times {
		if n := t.Add(d); !t.IsZero() && n.Year() > 0 && n.Year() < 10_000 {
			*t = n
		}
	}
}

func (s *server) shift(d time.Duration) {
	s.renew(d)
	move(d, &s.RunningSince, &s.StartingSince, &s.StoppingSince, &s.BadSince)
	for i := range s.Restarting {
		move(d, &s.Restarting[i])
	}
	for i := range s.Starts {
		move(d, &s.Starts[i])
	}
	for i := range s.Flap.Changes {
		move(d, &s.Flap.Changes[i])
	}
	if w := s.stopWait; w != nil {
		move(d, &w.since, &w.until, &w.reported)
	}
}

// renew is shift for those clocks alone that tell how old evidence is; deadlines and windows go on.
func (s *server) renew(d time.Duration) {
	p, c := &s.Probe, &s.Container
	move(d, &c.AssertedAt, &c.FirstSaid, &s.Record.AssertedAt, &p.Since, &p.LastAt, &p.FailSince, &p.OKAt, &p.GraceFrom,
		&p.AltSince, &s.RowBeat, &s.FirstSeen)
}

func (env *environment) shift(d time.Duration) {
	move(d, &env.FirstSeen, &env.LastBeat, &env.LastPush, &env.nextAsk, &env.groupAt)
	if h := env.sample; h != nil {
		move(d, &h.at, &h.until, &h.first)
	}
}
