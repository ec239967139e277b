package engine

import (
	"maps"
	"slices"
	"time"

	"github.com/agentopia/statussync"
)

// window is a maintenance window (step 6). Whether it is open is its own affair, decided at its own deadline, so that
// the rules of a server only look at a number.
type window struct {
	def     *statussync.Maintenance
	rule    statussync.Recurrence // nil: it is open once
	servers map[string]struct{}   // def.ServerIDs and
	envs    map[string]struct{}   // def.EnvironmentIDs as sets
	node    dueNode

	open       bool // its begin was told and its end was not
	begin, end time.Time
	done       time.Time // occurrences that end up to then are over, or were ended
	count      int       // servers that it selects
	peeked     bool      // next is known
	next       time.Time // while it is open: when the occurrence after this one begins; zero: there is none
}

// maintenance is all windows, and which of them a server could be selected by.
type maintenance struct {
	parse    statussync.RecurrenceParser
	windows  map[string]*window
	byServer map[string][]*window
	byEnv    map[string][]*window
	byLabel  map[[2]string][]*window // by the least of a window's labels

	dirtyWindows map[string]struct{} // also of those that are gone
	touchedAny   bool
}

func newMaintenance() maintenance {
	return maintenance{
		windows: map[string]*window{}, byServer: map[string][]*window{}, byEnv: map[string][]*window{},
		byLabel: map[[2]string][]*window{}, dirtyWindows: map[string]struct{}{},
	}
}

// SetRecurrence gives the engine what reads the rules of recurring windows; without it they are refused. It is to be
// called before anything is restored or set.
func (e *Engine) SetRecurrence(parse statussync.RecurrenceParser) { e.parse = parse }

func setOf(ids []string) map[string]struct{} {
	m := make(map[string]struct{}, len(ids))
	for _, id := range ids {
		m[id] = struct{}{}
	}
	return m
}

// newWindow reads a window; the error names the field of a rule that is wrong.
func (e *Engine) newWindow(def *statussync.Maintenance) (*window, error) {
	w := &window{def: def, servers: setOf(def.ServerIDs), envs: setOf(def.EnvironmentIDs)}
	w.node = dueNode{kind: dueWindow, index: -1, window: w}
	if def.RRule == "" {
		return w, nil
	}
	if e.parse == nil {
		return nil, statussync.Invalid("rrule", "recurring windows are not served here: nothing that reads their rules was given")
	}
	var err error
	w.rule, err = e.parse(def)
	return w, err
}

// selects is Maintenance.Selects with sets.
func (w *window) selects(s *statussync.Server) bool {
	if _, ok := w.servers[s.ID]; ok {
		return true
	}
	if _, ok := w.envs[s.EnvironmentID]; ok {
		return true
	}
	if len(w.def.Labels) == 0 {
		return false
	}
	for k, v := range w.def.Labels {
		if have, ok := s.Labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// seek finds the occurrence that runs or comes next; ok is false where there is none.
func (w *window) seek(now time.Time) (ok bool) {
	from := later(w.done, now)
	if w.rule == nil {
		w.begin, w.end = w.def.StartsAt, w.def.EndsAt
		return w.end.After(from)
	}
	w.begin, w.end, ok = w.rule.Next(from)
	return ok && w.end.After(w.begin) && w.end.After(from)
}

// firstLabel is the label under which a window is found.
func (w *window) firstLabel() (kv [2]string, ok bool) {
	for k, v := range w.def.Labels {
		if !ok || k < kv[0] {
			kv, ok = [2]string{k, v}, true
		}
	}
	return kv, ok
}

func (e *Engine) addWindow(w *window) {
	e.windows[w.def.ID] = w
	for id := range w.servers {
		e.byServer[id] = append(e.byServer[id], w)
	}
	for id := range w.envs {
		e.byEnv[id] = append(e.byEnv[id], w)
	}
	if kv, ok := w.firstLabel(); ok {
		e.byLabel[kv] = append(e.byLabel[kv], w)
	}
	e.touchWindow(w)
}

func (e *Engine) dropWindow(w *window) {
	e.due.remove(&w.node)
	delete(e.windows, w.def.ID)
	for id := range w.servers {
		without(e.byServer, id, w)
	}
	for id := range w.envs {
		without(e.byEnv, id, w)
	}
	if kv, ok := w.firstLabel(); ok {
		without(e.byLabel, kv, w)
	}
	e.touchWindow(w)
}

func without[K comparable](m map[K][]*window, k K, w *window) {
	if m[k] = slices.DeleteFunc(m[k], func(o *window) bool { return o == w }); len(m[k]) == 0 {
		delete(m, k)
	}
}

func (e *Engine) touchWindow(w *window) {
	e.dirtyWindows[w.def.ID] = struct{}{}
	e.touchedAny = true
}

// windowsOf are the windows that select a server, by id.
func (e *Engine) windowsOf(s *statussync.Server) []*window {
	var out []*window
	if len(e.windows) == 0 {
		return nil
	}
	out = append(out, e.byServer[s.ID]...)
	out = append(out, e.byEnv[s.EnvironmentID]...)
	if len(e.byLabel) > 0 {
		for k, v := range s.Labels {
			for _, w := range e.byLabel[[2]string{k, v}] {
				if w.selects(s) {
					out = append(out, w)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b *window) int { return compare(a.def.ID, b.def.ID) })
	return slices.Compact(out)
}

// joinWindows counts a server where it is selected; leaveWindows, before its definition changes, takes it off.
func (e *Engine) joinWindows(s *server) {
	s.open = 0
	for _, w := range e.windowsOf(s.Def) {
		w.count++
		if w.open {
			s.open++
		}
		e.touchedAny = true
	}
}

func (e *Engine) leaveWindows(s *server) {
	for _, w := range e.windowsOf(s.Def) {
		w.count--
		e.touchedAny = true
	}
	s.open = 0
}

// selected are the servers that a window selects, by id.
func (e *Engine) selected(w *window) []*server {
	var out []*server
	if len(w.def.Labels) > 0 {
		for _, s := range e.servers {
			if w.selects(s.Def) {
				out = append(out, s)
			}
		}
	} else {
		for id := range w.servers {
			if s := e.servers[id]; s != nil {
				out = append(out, s)
			}
		}
		for id := range w.envs {
			if env := e.envs[id]; env != nil {
				out = append(out, env.servers...)
			}
		}
	}
	return byID(out)
}

// byID sorts servers and leaves each in once.
func byID(list []*server) []*server {
	slices.SortFunc(list, func(a, b *server) int { return compare(a.Def.ID, b.Def.ID) })
	return slices.Compact(list)
}

// maintenanceSet defines or replaces a window.
func (e *Engine) maintenanceSet(now time.Time, o *statussync.MaintenanceSet, eff *Effects) {
	def := o.Window
	def.Clean()
	fail := func(err error) bool {
		if se, ok := err.(*statussync.Error); ok {
			eff.fail(se)
		}
		return err != nil
	}
	if def.ID == "" || len(def.ID) > statussync.MaxNameText {
		eff.fail(statussync.Invalid("id", "must have 1 to "+itoa(statussync.MaxNameText)+" bytes"))
		return
	}
	if fail(def.Complete(now)) || fail(e.known(&def)) {
		return
	}
	w, err := e.newWindow(&def)
	if fail(err) {
		return
	}
	old := e.windows[def.ID]
	if !w.seek(now) {
		if w.rule == nil {
			eff.fail(statussync.Invalid("ends_at", "lies in the past"))
		} else {
			eff.fail(statussync.Invalid("rrule", "has no occurrence that ends in the future"))
		}
		return
	}
	if old == nil && len(e.windows) >= statussync.MaxMaintenances {
		eff.fail(&statussync.Error{Code: statussync.CodeTooLarge, Detail: "there are " + itoa(statussync.MaxMaintenances) + " maintenance windows already"})
		return
	}
	var hit []*server
	opens := !w.begin.After(now)
	if old != nil {
		if goesOn := old.open && opens && old.begin.Equal(w.begin) && sameServers(old.def, &def); goesOn {
			// Only its end, its rule or its text changed: the occurrence that runs stays the same.
			e.dropWindow(old)
			w.open, w.count, w.done = true, old.count, old.done
			e.addWindow(w)
			e.due.set(&w.node, w.end)
			return
		}
		if old.open {
			hit = e.shut(old, now, statussync.SourceManual, "was replaced by "+orSomebody(def.Actor), eff)
		}
		e.dropWindow(old)
	}
	e.addWindow(w)
	list := e.selected(w)
	w.count = len(list)
	if opens {
		hit = append(hit, e.unlock(w, list, now, statussync.SourceManual, "began, set by "+orSomebody(def.Actor), eff)...)
	}
	e.schedule(w)
	e.evalMarked(hit, now, statussync.SourceManual, eff)
}

// known refuses ids that name nothing: a window with a misspelt one would protect nobody, silently.
func (e *Engine) known(def *statussync.Maintenance) error {
	unknown := func(field, kind, id string) error {
		err := statussync.NotFound(kind, id)
		err.Location = field
		return err
	}
	for _, id := range def.ServerIDs {
		if e.servers[id] == nil {
			return unknown("server_ids", "server", id)
		}
	}
	for _, id := range def.EnvironmentIDs {
		if e.envs[id] == nil {
			return unknown("environment_ids", "environment", id)
		}
	}
	return nil
}

func sameServers(a, b *statussync.Maintenance) bool {
	return maps.Equal(setOf(a.ServerIDs), setOf(b.ServerIDs)) && maps.Equal(setOf(a.EnvironmentIDs), setOf(b.EnvironmentIDs)) && maps.Equal(a.Labels, b.Labels)
}

// maintenanceEnd removes a window, or ends the occurrence that is running.
func (e *Engine) maintenanceEnd(now time.Time, o *statussync.MaintenanceEnd, eff *Effects) {
	w := e.windows[o.ID]
	if w == nil {
		eff.fail(statussync.NotFound("maintenance window", o.ID))
		return
	}
	if o.OccurrenceOnly && !w.open {
		eff.fail(&statussync.Error{Code: statussync.CodeConflict, Detail: "the window is not open now"})
		return
	}
	var hit []*server
	if w.open {
		hit = e.shut(w, now, statussync.SourceManual, "was ended by "+orSomebody(o.Actor), eff)
	}
	if o.OccurrenceOnly && w.seek(now) {
		e.schedule(w)
	} else {
		e.dropWindow(w)
	}
	e.evalMarked(hit, now, statussync.SourceManual, eff)
}

// windowsDue opens and shuts the window that is due, and all others that are at the same moment: one that begins as
// another ends leaves no hole.
func (e *Engine) windowsDue(w *window, now time.Time, eff *Effects) {
	list := []*window{w}
	for len(e.due) > 0 && e.due[0].kind == dueWindow && !e.due[0].at.After(now) {
		list = append(list, e.due[0].window)
		e.due.remove(e.due[0])
	}
	e.evalMarked(e.pass(list, now, eff), now, statussync.SourceSystem, eff)
}

// windowsPassed opens and shuts what became due while the engine did not run; whoever calls it looks at all servers
// afterwards.
func (e *Engine) windowsPassed(now time.Time, eff *Effects) {
	var list []*window
	for _, id := range slices.Sorted(maps.Keys(e.windows)) {
		if w := e.windows[id]; w.node.index < 0 || !w.node.at.After(now) {
			e.due.remove(&w.node)
			list = append(list, w)
		}
	}
	e.pass(list, now, eff)
}

// pass tells the ends and begins of windows that are due, and returns the servers that they select. An occurrence that
// came and went while the service was down is not told.
func (e *Engine) pass(list []*window, now time.Time, eff *Effects) (hit []*server) {
	for _, w := range list {
		if w.open && !w.end.After(now) {
			hit = append(hit, e.shut(w, now, statussync.SourceSystem, "ended"+missed(w.end, now), eff)...)
		}
	}
	for _, w := range list {
		if !w.open {
			if !w.seek(now) {
				e.dropWindow(w)
				continue
			}
			if !w.begin.After(now) {
				hit = append(hit, e.unlock(w, e.selected(w), now, statussync.SourceSystem, "began"+missed(w.begin, now), eff)...)
			}
		}
		e.schedule(w)
	}
	return hit
}

// missed says of something that is told late when it was.
func missed(at, now time.Time) string {
	if !at.Before(now) {
		return ""
	}
	return " at " + at.UTC().Format(statussync.TimeFormat) + ", while the service did not run"
}

func (e *Engine) schedule(w *window) {
	if w.open {
		e.due.set(&w.node, w.end)
	} else {
		e.due.set(&w.node, w.begin)
	}
}

// unlock opens a window and tells it; the marks follow.
func (e *Engine) unlock(w *window, list []*server, now time.Time, src statussync.EventSource, what string, eff *Effects) []*server {
	w.open = true
	for _, s := range list {
		s.open++
	}
	e.touchWindow(w)
	e.tellWindow(statussync.KindMaintenanceBegin, w, list, now, src, what+", until "+w.end.UTC().Format(statussync.TimeFormat), eff)
	return list
}

// shut is the opposite. The occurrence is over, however early that is.
func (e *Engine) shut(w *window, now time.Time, src statussync.EventSource, what string, eff *Effects) []*server {
	list := e.selected(w)
	w.open, w.peeked, w.done = false, false, later(w.done, w.end)
	for _, s := range list {
		s.open--
	}
	e.touchWindow(w)
	e.tellWindow(statussync.KindMaintenanceEnd, w, list, now, src, what, eff)
	return list
}

func (e *Engine) tellWindow(kind statussync.Kind, w *window, list []*server, now time.Time, src statussync.EventSource, what string, eff *Effects) {
	ids := make([]string, 0, min(len(list), statussync.MaxEntryServers))
	for _, s := range list[:cap(ids)] {
		ids = append(ids, s.Def.ID)
	}
	t := "maintenance " + what + ": "
	switch n := len(list); {
	case n == 1:
		t += "1 server"
	case n > len(ids):
		t += itoa(n) + " servers, of which the first " + itoa(len(ids)) + " are listed"
	default:
		t += itoa(n) + " servers"
	}
	if w.def.Note != "" {
		t += " (" + w.def.Note + ")"
	}
	eff.Entries = append(eff.Entries, &statussync.Entry{
		Kind: kind, Timestamp: now, Source: src, ServerIDs: ids, MaintenanceID: w.def.ID, Details: cut(t),
	})
}

// evalMarked looks at servers whose mark may have changed, by id.
func (e *Engine) evalMarked(hit []*server, now time.Time, src statussync.EventSource, eff *Effects) {
	for _, s := range byID(hit) {
		e.eval(s, now, src, eff)
	}
}

// peek is when the occurrence after the one that is open begins.
func (w *window) peek() time.Time {
	if !w.peeked {
		w.peeked, w.next = true, time.Time{}
		if w.rule != nil {
			if begin, _, ok := w.rule.Next(later(w.done, w.end)); ok {
				w.next = begin
			}
		}
	}
	return w.next
}

// Maintenances returns all windows, by id. Those that are over are gone.
func (e *Engine) Maintenances() []statussync.MaintenanceView {
	out := make([]statussync.MaintenanceView, 0, len(e.windows))
	for _, w := range e.windows {
		v := statussync.MaintenanceView{Window: w.def, Open: w.open, NextBegin: w.begin, NextEnd: w.end, Servers: w.count}
		if w.open {
			v.NextBegin = w.peek()
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b statussync.MaintenanceView) int { return compare(a.Window.ID, b.Window.ID) })
	return out
}

// TouchedMaintenances reports whether any window changed since it was last called.
func (e *Engine) TouchedMaintenances() bool {
	was := e.touchedAny
	e.touchedAny = false
	return was
}

// storedWindow is a window's record.
type storedWindow struct {
	V              int
	At             time.Time `json:",omitzero"`
	ID             string
	ServerIDs      []string          `json:",omitempty"`
	EnvironmentIDs []string          `json:",omitempty"`
	Labels         map[string]string `json:",omitempty"`
	StartsAt       time.Time
	EndsAt         time.Time
	RRule          string        `json:",omitzero"`
	TimeZone       string        `json:",omitzero"`
	Duration       time.Duration `json:",omitzero"`
	Note           string        `json:",omitzero"`
	Actor          string        `json:",omitzero"`
	Open           bool          `json:",omitzero"`
	Begin          time.Time     `json:",omitzero"` // of the occurrence that is open
	End            time.Time     `json:",omitzero"`
	Done           time.Time     `json:",omitzero"`
}

// dirtyWindowRecords appends the records of all windows that changed.
func (e *Engine) dirtyWindowRecords(buf []statussync.Record) []statussync.Record {
	for len(e.dirtyWindows) > 0 {
		buf = e.nextWindowRecord(buf)
	}
	return buf
}

func (e *Engine) nextWindowRecord(buf []statussync.Record) []statussync.Record {
	for id := range e.dirtyWindows {
		delete(e.dirtyWindows, id)
		rec := statussync.Record{Kind: statussync.RecordMaintenance, ID: id}
		if w := e.windows[id]; w != nil {
			d := w.def
			st := storedWindow{
				V: recordVersion, At: e.now, ID: id, ServerIDs: d.ServerIDs, EnvironmentIDs: d.EnvironmentIDs, Labels: d.Labels,
				StartsAt: d.StartsAt, EndsAt: d.EndsAt, RRule: d.RRule, TimeZone: d.TimeZone, Duration: d.Duration, Note: d.Note,
				Actor: d.Actor, Open: w.open, Done: w.done,
			}
			if w.open {
				st.Begin, st.End = w.begin, w.end
			}
			rec.Data = encode(st)
		}
		return append(buf, rec)
	}
	return buf
}

func (e *Engine) restoreWindow(st *storedWindow) error {
	def := statussync.Maintenance{
		ID: st.ID, ServerIDs: st.ServerIDs, EnvironmentIDs: st.EnvironmentIDs, Labels: st.Labels, StartsAt: st.StartsAt, EndsAt: st.EndsAt,
		RRule: st.RRule, TimeZone: st.TimeZone, Duration: st.Duration, Note: st.Note, Actor: st.Actor,
	}
	if st.StartsAt.IsZero() {
		return statussync.Invalid("StartsAt", "is missing")
	}
	if err := def.Complete(st.StartsAt); err != nil {
		return err
	}
	w, err := e.newWindow(&def)
	if err != nil {
		return err
	}
	if w.done = st.Done; st.Open {
		if !st.End.After(st.Begin) || st.End.Year() > 9999 {
			return statussync.Invalid("End", "lies before its begin")
		}
		w.open, w.begin, w.end = true, st.Begin, st.End
	}
	if old := e.windows[st.ID]; old != nil { // the same, as it was stored before
		e.dropWindow(old)
	}
	e.addWindow(w)
	delete(e.dirtyWindows, st.ID)
	return nil
}

// restoreLegacyWindows takes the windows of an engine's record; each gets its own. Those that could never be open are
// left out.
func (e *Engine) restoreLegacyWindows(list []statussync.Maintenance) {
	for i := range list {
		def := &list[i]
		if def.ID == "" || def.StartsAt.IsZero() || e.windows[def.ID] != nil || len(e.windows) >= statussync.MaxMaintenances {
			continue
		}
		if def.Complete(def.StartsAt) != nil || def.RRule != "" {
			continue
		}
		if w, err := e.newWindow(def); err == nil {
			e.addWindow(w)
			e.dirtySelf = true
		}
	}
}

// startWindows counts the restored servers where they are selected.
func (e *Engine) startWindows() {
	for _, s := range e.servers {
		e.joinWindows(s)
	}
}
