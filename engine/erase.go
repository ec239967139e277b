package engine

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/agentopia/statussync"
)

// Erased stands where the name of a person was.
const Erased = "erased"

// Eraser makes a store forget a person (docs/operations.md says what that means). It is pure: it is told everything that
// the store holds, in two rounds, and says what each piece becomes. In the first round Environment, Server and Definition
// are told of every definition, environments first, and Told of entries; Decide ends it. In the second Record, Entry, Span
// and Row are asked. Exactly one of actor and owner is set. Not safe for concurrent use.
type Eraser struct {
	actor, owner string
	pseudonym    func() string

	envs    map[string]*erasedDef
	servers map[string]*erasedDef
	names   map[string]string // of servers and environments whose ids are replaced
	windows map[string]bool   // maintenance windows that the actor set: the notes are theirs
}

// erasedDef is what the first round found.
type erasedDef struct {
	named   bool // the definition names the owner
	theirs  bool
	env     string
	origin  statussync.Origin
	managed bool // the managed registry defines it: it can be removed
	removed bool
}

// NewEraser begins to forget an actor or an owner. pseudonym gives a new random id at each call.
func NewEraser(actor, owner string, pseudonym func() string) *Eraser {
	return &Eraser{
		actor: actor, owner: owner, pseudonym: pseudonym,
		envs: map[string]*erasedDef{}, servers: map[string]*erasedDef{}, names: map[string]string{}, windows: map[string]bool{},
	}
}

// Environment tells of an environment that is defined.
func (x *Eraser) Environment(e *statussync.Environment) {
	if x.owner == "" {
		return
	}
	d := x.envs[e.ID]
	if d == nil {
		d = &erasedDef{}
		x.envs[e.ID] = d
	}
	d.named = d.named || e.Owner == x.owner
	d.theirs = d.named
	d.origin = e.Origin
	d.managed = d.managed || e.Origin == statussync.OriginManaged
}

// Server tells of a server that is defined. Without an owner of its own it has its environment's.
func (x *Eraser) Server(s *statussync.Server) {
	if x.owner == "" {
		return
	}
	d := x.servers[s.ID]
	if d == nil {
		d = &erasedDef{}
		x.servers[s.ID] = d
	}
	d.named = d.named || s.Owner == x.owner
	d.env, d.origin = s.EnvironmentID, s.Origin
	d.managed = d.managed || s.Origin == statussync.OriginManaged
	env := x.envs[s.EnvironmentID]
	d.theirs = d.theirs || d.named || (s.Owner == "" && env != nil && env.theirs)
}

// Definition tells of a stored record. One that defines nothing is passed over. CodeInvalid: it cannot be read.
func (x *Eraser) Definition(r statussync.Record) error {
	switch r.Kind {
	case statussync.RecordEnvironment:
		var st struct {
			Memory struct{ Def *statussync.Environment }
		}
		if err := json.Unmarshal(r.Data, &st); err != nil {
			return unreadable(r, err)
		}
		if st.Memory.Def != nil {
			x.Environment(st.Memory.Def)
		}
	case statussync.RecordServer:
		var st struct{ Def *storedDef }
		if err := json.Unmarshal(r.Data, &st); err != nil {
			return unreadable(r, err)
		}
		if st.Def != nil {
			x.Server((*statussync.Server)(st.Def))
		}
	case statussync.RecordMaintenance:
		var st struct{ Actor string }
		if err := json.Unmarshal(r.Data, &st); err != nil {
			return unreadable(r, err)
		}
		if x.actor != "" && st.Actor == x.actor {
			x.windows[r.ID] = true
		}
	}
	return nil
}

// Told tells of an entry, which it does not change: where it says that the actor set a maintenance window, that one's
// other entries are known by it. They repeat its note and name nobody.
func (x *Eraser) Told(e *statussync.Entry) {
	if x.actor == "" || e.MaintenanceID == "" {
		return
	}
	if name := x.inSentences(); hasWord(e.Details, "set by "+name) || hasWord(e.Details, "replaced by "+name) {
		x.windows[e.MaintenanceID] = true
	}
}

// inSentences is the actor's name as sentences have it.
func (x *Eraser) inSentences() string { return statussync.CleanText(x.actor, statussync.MaxErrorText) }

func unreadable(r statussync.Record, err error) error {
	return &statussync.Error{Code: statussync.CodeInvalid, Location: string(r.Kind) + " " + statussync.CleanText(r.ID, statussync.MaxNameText), Detail: "the stored record cannot be read", Err: err}
}

// ErasedIDs are the definitions that an erasure is about, each list sorted.
type ErasedIDs struct {
	RemovedServers      []string // managed ones: they are gone
	RemovedEnvironments []string
	Servers             []string // they stay, without their owner in the store
	Environments        []string
	Defined             []DefinedElsewhere // of those that stay: who still names the owner
}

// DefinedElsewhere is a definition that the store only has a copy of.
type DefinedElsewhere struct {
	Server, Environment string // one of them
	Origin              statussync.Origin
}

// Decide ends the first round.
func (x *Eraser) Decide() ErasedIDs {
	var out ErasedIDs
	inUse := map[string]bool{}
	for id, d := range x.servers {
		switch {
		case !d.theirs:
			inUse[d.env] = true
			continue
		case d.managed:
			d.removed = true
			out.RemovedServers = append(out.RemovedServers, id)
		default:
			inUse[d.env] = true
			out.Servers = append(out.Servers, id)
			if d.named {
				out.Defined = append(out.Defined, DefinedElsewhere{Server: id, Origin: d.origin})
			}
		}
		x.names[id] = ""
	}
	for id, d := range x.envs {
		switch {
		case !d.theirs:
		case d.managed && !inUse[id]:
			d.removed = true
			out.RemovedEnvironments = append(out.RemovedEnvironments, id)
			x.names[id] = ""
		default: // others' servers are in it, or it is defined elsewhere
			out.Environments = append(out.Environments, id)
			if !d.managed {
				out.Defined = append(out.Defined, DefinedElsewhere{Environment: id, Origin: d.origin})
			}
		}
	}
	for _, list := range [][]string{out.RemovedServers, out.RemovedEnvironments, out.Servers, out.Environments} {
		slices.Sort(list)
	}
	slices.SortFunc(out.Defined, func(a, b DefinedElsewhere) int { return compare(a.Environment+a.Server, b.Environment+b.Server) })
	ids := make([]string, 0, len(x.names))
	for id := range x.names {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		x.names[id] = x.pseudonym()
	}
	return out
}

// Record says what a record becomes: nil for one that is to be deleted. changed is false where it stays as it is.
func (x *Eraser) Record(r statussync.Record) (data []byte, changed bool, err error) {
	gone := ((r.Kind == statussync.RecordServer || r.Kind == statussync.RecordTools) && x.removedServer(r.ID)) || (r.Kind == statussync.RecordEnvironment && x.removedEnvironment(r.ID))
	if gone {
		return nil, true, nil
	}
	data, changed, err = x.JSON(r.Data)
	switch {
	case err != nil && r.Kind == statussync.RecordHub:
		return r.Data, false, nil // a word of the hub's own, not JSON: of no person
	case err != nil:
		return nil, false, unreadable(r, err)
	case r.Kind == statussync.RecordMaintenance && changed:
		// One that was about their servers only is about nothing any more, and would not be understood.
		var st storedWindow
		if err := json.Unmarshal(data, &st); err != nil {
			return nil, false, unreadable(r, err)
		}
		if len(st.ServerIDs)+len(st.EnvironmentIDs)+len(st.Labels) == 0 {
			return nil, true, nil
		}
	}
	return data, changed, nil
}

func (x *Eraser) removedServer(id string) bool { d := x.servers[id]; return d != nil && d.removed }

func (x *Eraser) removedEnvironment(id string) bool { d := x.envs[id]; return d != nil && d.removed }

// JSON says what a stored object becomes, wherever it stands: in it, and in everything below, an actor that is the one
// loses the name and the note beside it, an owner that is the one the name, and lists of ids those that were removed.
func (x *Eraser) JSON(raw []byte) (data []byte, changed bool, err error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber() // times in nanoseconds do not fit a float64
	var v any
	if err := dec.Decode(&v); err != nil {
		return raw, false, err
	}
	if !x.walk(v) {
		return raw, false, nil
	}
	data, err = json.Marshal(v)
	return data, true, err
}

func (x *Eraser) walk(v any) (changed bool) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			changed = x.walk(e) || changed
		}
	case map[string]any:
		changed = x.fields(v)
		for key, e := range v {
			if list, ok := e.([]any); ok && x.idList(key) {
				kept := slices.DeleteFunc(list, func(id any) bool {
					s, ok := id.(string)
					return ok && (x.removedServer(s) || x.removedEnvironment(s))
				})
				if len(kept) < len(list) {
					v[key] = kept
					changed = true
				}
				continue
			}
			changed = x.walk(e) || changed
		}
	}
	return changed
}

func (x *Eraser) idList(key string) bool {
	switch strings.ReplaceAll(strings.ToLower(key), "_", "") {
	case "serverids", "environmentids", "silent":
		return true
	}
	return false
}

// fields looks at the members of an object, or the columns of a row.
func (x *Eraser) fields(m map[string]any) (changed bool) {
	for key, v := range m {
		s, ok := v.(string)
		if !ok {
			continue
		}
		switch strings.ToLower(key) {
		case "actor", "changed_by", "changedby":
			if x.actor != "" && s == x.actor {
				m[key] = Erased
				changed = true
				for k, n := range m {
					if t, ok := n.(string); ok && t != "" && strings.EqualFold(k, "note") {
						m[k] = ""
					}
				}
			}
		case "owner":
			if x.owner != "" && s == x.owner {
				m[key] = ""
				changed = true
			}
		}
	}
	return changed
}

// Row says what a row of a table becomes of which only the names of its columns are known. Columns with JSON are treated
// as JSON. It changes row.
func (x *Eraser) Row(row map[string]any) (changed bool) {
	changed = x.fields(row)
	for key, v := range row {
		var raw []byte
		text, isText := v.(string)
		if isText {
			raw = []byte(text)
		} else if b, ok := v.([]byte); ok {
			raw = b
		}
		if len(raw) == 0 || (raw[0] != '{' && raw[0] != '[') {
			continue
		}
		if data, ok, err := x.JSON(raw); err == nil && ok {
			changed = true
			row[key] = data
			if isText {
				row[key] = string(data)
			}
		}
	}
	return changed
}

// Entry changes an entry of the journal, and reports whether it did. Its place, kind and time stay, so that the journal
// stays whole.
func (x *Eraser) Entry(e *statussync.Entry) bool {
	if x.actor != "" {
		return x.actorEntry(e)
	}
	changed, told := false, hasWord(e.Details, x.owner)
	rename := func(id *string) bool {
		p, ok := x.names[*id]
		if ok {
			told = told || hasWord(e.Details, *id)
			*id = p
			changed = true
		}
		return ok
	}
	rename(&e.EnvironmentID)
	for i := range e.ServerIDs {
		rename(&e.ServerIDs[i])
	}
	if rename(&e.ServerID) {
		// What the status was is no word of anybody; everything that somebody wrote is.
		e.Previous, e.Current = bare(e.Previous), bare(e.Current)
		e.Labels, e.Tools = nil, nil
		told = true
	}
	if told {
		e.Details = Erased
	}
	return changed || told
}

func bare(s *statussync.Status) *statussync.Status {
	if s == nil {
		return nil
	}
	return &statussync.Status{State: s.State, Health: s.Health, Reason: s.Reason, Marks: s.Marks}
}

// actorEntry takes the name out of the sentence. In that of an override (Engine.describe) it stands in one place, with
// the note behind the status; of other sentences, where a note may stand anywhere, nothing is kept but who it was not.
func (x *Eraser) actorEntry(e *statussync.Entry) bool {
	if c := e.Current; c != nil && c.Marks.Has(statussync.MarkOverride) && strings.HasPrefix(e.Details, overriddenBy+x.inSentences()+": ") {
		e.Details = overriddenBy + Erased + ": " + string(c.State) + ", " + string(c.Health)
		return true
	}
	switch {
	case e.Current != nil:
	case hasWord(e.Details, "by "+x.inSentences()):
		e.Details = strings.ReplaceAll(string(e.Kind), "_", " ") + " by " + Erased
		return true
	case x.windows[e.MaintenanceID]:
		// The note is at the end, in brackets (Engine.tellWindow). What may be cut too early names nobody either.
		said, _, noted := strings.Cut(e.Details, " (")
		e.Details = said
		return noted
	}
	return false
}

// Span changes a span of uptime, and reports whether it did; remove says that it is of a server which is forgotten with
// its id. A span has the sentence of the entry that it began with.
func (x *Eraser) Span(s *statussync.Span) (changed, remove bool) {
	if _, ok := x.names[s.ServerID]; ok {
		return true, true
	}
	told := hasWord(s.Details, x.owner)
	for id := range x.envs {
		if _, ok := x.names[id]; ok && !told {
			told = hasWord(s.Details, id)
		}
	}
	if told {
		s.Details = Erased
	}
	if by := overriddenBy + x.inSentences() + ": "; x.actor != "" && strings.HasPrefix(s.Details, by) {
		said, _, _ := strings.Cut(strings.TrimPrefix(s.Details, by), " (")
		s.Details = overriddenBy + Erased + ": " + said
		return true, false
	}
	return told, false
}

// Host reports whether what is counted of an environment is to be forgotten: it is forgotten with its id.
func (x *Eraser) Host(id string) (remove bool) {
	_, remove = x.names[id]
	return remove
}

// hasWord reports whether word stands in s with no letter or digit around it.
func hasWord(s, word string) bool {
	if word == "" {
		return false
	}
	for from := 0; ; {
		i := strings.Index(s[from:], word)
		if i < 0 {
			return false
		}
		i += from
		before, _ := utf8.DecodeLastRuneInString(s[:i])
		after, _ := utf8.DecodeRuneInString(s[i+len(word):])
		if !inWord(before) && !inWord(after) {
			return true
		}
		from = i + 1
	}
}

// HasName reports whether text holds a name as a word of its own, plain or as it stands in JSON.
func HasName(text []byte, name string) bool {
	if hasWord(string(text), name) {
		return true
	}
	quoted := statussync.AppendJSONString(nil, name)
	return hasWord(string(text), string(quoted[1:len(quoted)-1]))
}

func inWord(r rune) bool { return r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r)) }
