package postgres

import (
	"cmp"
	"crypto/sha256"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/agentopia/statussync"
)

// knownRows is what was last read of the rows, as little of it as is needed to see what differs, and what was written to them.
// It does no I/O. Whoever reads changes it, one at a time; the lock is for those who look beside it.
type knownRows struct {
	o    *Options
	seed maphash.Seed

	mu         sync.Mutex
	envs       map[string]*envState
	rows       map[string]*rowState
	words      map[string]string // one string for each word
	faults     map[faultKey][]string
	faultCount int
	gen        uint64 // of the full read
	reads      uint64
	tokens     bool // some token, or whose it is, may have changed since told
	told       map[[sha256.Size]byte]string
	primed     bool                // everything was read once
	nameless   map[faultKey]uint64 // rows whose id can't be used, with the full read that saw them last
	servers    int                 // rows that are MCP servers
}

type faultKey struct{ table, id string }

type envState struct {
	id     string
	def    uint64 // hash of the defining columns
	token  [sha256.Size]byte
	has    bool   // a token
	raw    uint64 // hash of the heartbeat as it was read
	gen    uint64
	heard  time.Time // until everything was read: when the receiver had heard of the agent
	asked  bool      // for heard
	foul   bool      // another registry defines it
	taken  string    // what was said of that last
	known  bool      // read, and not only named by an instance
	ours   ours
	byName map[string]*rowState
	count  int // instances
}

type rowState struct {
	id   string
	env  *envState
	name string
	def  uint64
	word string // as it was last read, or as we wrote it
	text uint64 // hash of the error message
	beat uint64 // hash of the heartbeat as it was read
	gen  uint64
	read uint64 // number of the read that saw it last
	// wordAt is when word was first seen. A report from before cannot have answered it.
	wordAt time.Time
	mine   bool // word is what we wrote
	server bool // an MCP server; others are known only to write reports back
	foul   bool
	taken  string    // what was said last of who else defines it
	ours   *ours     // nil: never written
	next   *rowState // another of the same environment and name
}

// ours remembers the newest heartbeats that we wrote, in microseconds since 1970, and the words beside them. More than one,
// because a read may show a row as it was some writes ago.
type ours struct {
	at   [4]int64
	word [4]string
	next int
}

func (o *ours) note(at time.Time, word string) {
	o.at[o.next], o.word[o.next] = at.UnixMicro(), word
	o.next = (o.next + 1) % len(o.at)
}

func (o *ours) wrote(at time.Time) bool { return slices.Contains(o.at[:], at.UnixMicro()) }

func (o *ours) wroteWord(at time.Time, word string) bool {
	for i, t := range o.at {
		if t == at.UnixMicro() && o.word[i] == word {
			return true
		}
	}
	return false
}

func newKnownRows(o *Options) *knownRows {
	return &knownRows{o: o, seed: maphash.MakeSeed(), envs: map[string]*envState{}, rows: map[string]*rowState{}, words: map[string]string{}, faults: map[faultKey][]string{},
		nameless: map[faultKey]uint64{}}
}

// delta is what one read has shown to differ. The definitions come first: their refusal keeps what follows from counting
// for somebody else's server.
type delta struct {
	update statussync.RegistryUpdate
	after  []statussync.Observation // RecordSeen and RowHeartbeat
}

func (d *delta) empty() bool {
	return len(d.update.Servers)+len(d.update.Environments)+len(d.update.RemovedServers)+len(d.update.RemovedEnvironments)+len(d.after) == 0 && !d.update.Full
}

func (d *delta) size() int {
	return len(d.update.Servers) + len(d.update.Environments) + len(d.after)
}

// begin starts a read and returns its number; full: everything is read.
func (f *knownRows) begin(full bool) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if full {
		f.gen++
	}
	f.reads++
	return f.reads
}

func (f *knownRows) hash(parts ...[]byte) uint64 {
	var h maphash.Hash
	h.SetSeed(f.seed)
	var n [2]byte
	for _, p := range parts {
		n[0], n[1] = byte(len(p)), byte(len(p)>>8)
		if p == nil {
			n[0], n[1] = 0xff, 0xff
		}
		h.Write(n[:])
		h.Write(p)
	}
	return h.Sum64()
}

// fault notes what is wrong with a row now; none clears it.
func (f *knownRows) fault(table, id string, details []string) {
	k := faultKey{table, id}
	if old, ok := f.faults[k]; ok {
		f.faultCount--
		if len(details) == 0 {
			delete(f.faults, k)
			return
		}
		_ = old
	}
	if len(details) > 0 {
		f.faultCount++
		f.faults[k] = details
	}
}

// badID notes a row of which nothing can be known, until a full read does not see it any more.
func (f *knownRows) badID(table string, id []byte, fault string) {
	k := faultKey{table, statussync.CleanText(string(id), statussync.MaxWordText)}
	f.nameless[k] = f.gen
	f.fault(k.table, k.id, []string{fault})
}

// environment takes a row. It is called with f.mu held.
func (f *knownRows) environment(w *environmentRow, read uint64, d *delta) {
	if fault := faultOfID(string(w.id)); fault != "" {
		f.badID(tableEnvironments, w.id, fault)
		return
	}
	e := f.envs[string(w.id)]
	if e == nil {
		e = f.newEnvironment(string(w.id))
	}
	e.gen = f.gen
	def := f.hash(w.owner, w.name, w.address)
	if !e.known || def != e.def || e.foul {
		env, faults := w.environment(f.o)
		f.fault(tableEnvironments, e.id, faults)
		f.tokens = f.tokens || e.has && (e.foul || !e.known)
		e.def, e.known, e.foul = def, true, false
		d.update.Environments = append(d.update.Environments, env)
	}
	has, token := len(w.token) > 0, [sha256.Size]byte{}
	if has {
		token = sha256.Sum256(w.token)
	}
	if has != e.has || token != e.token {
		e.has, e.token, f.tokens = has, token, true
	}
	if raw := f.hash(w.beat); raw != e.raw {
		e.raw = raw
		if at, ok := timeOf(w.beat); ok && !e.ours.wrote(at) && !f.earlierLife(e, at) {
			d.after = append(d.after, &statussync.RowHeartbeat{EnvironmentID: e.id, At: at, Read: read, Origin: f.o.Origin})
		}
	}
}

// heardSlack is how much later than the receiver is known to have heard of an agent the time may be that was written for it:
// evidence is stored within 10 s (docs/domain.md, promise 1).
const heardSlack = 12 * time.Second

// earlierLife reports whether a heartbeat that is read for the first time says no more than what was heard before the start:
// then it is what we wrote, or no news. It is called with f.mu held.
func (f *knownRows) earlierLife(e *envState, at time.Time) bool {
	if f.primed || e == nil || f.o.Heard == nil {
		return false
	}
	if !e.asked {
		e.asked, e.heard = true, f.o.Heard(e.id)
	}
	return !e.heard.IsZero() && !at.After(e.heard.Add(heardSlack))
}

// prime is told when everything has been read.
func (f *knownRows) prime() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.primed = true
}

func (f *knownRows) newEnvironment(id string) *envState {
	e := &envState{id: id, byName: map[string]*rowState{}}
	f.envs[id] = e
	return e
}

// instance takes a row, and reports whether it is there: a server that is none any more is gone. It is called with f.mu held.
func (f *knownRows) instance(w *instanceRow, read uint64, now time.Time, d *delta) bool {
	r := f.rows[string(w.id)]
	if w.typ == nil && r != nil && r.server {
		return false
	}
	if r == nil {
		if fault := faultOfID(string(w.id)); fault != "" {
			f.badID(tableInstances, w.id, fault)
			return true
		}
		r = &rowState{id: string(w.id)}
		f.rows[r.id] = r
	}
	if w.typ == nil {
		f.tool(r, w, read, now)
		return true
	}
	first := !r.server
	if first {
		r.server, r.word, r.text, r.beat = true, "", 0, 0
		f.servers++
	}
	r.gen, r.read = f.gen, read
	def := f.hash(w.env, w.name, w.typ, w.transport, w.path, w.caps)
	if first || def != r.def || r.foul {
		s, faults := w.server(f.o.Origin)
		f.fault(tableInstances, r.id, faults)
		f.place(r, s.EnvironmentID, s.Name)
		if r.foul { // what was said of it did not count
			r.word, r.beat = "", 0
		}
		r.def, r.foul = def, false
		d.update.Servers = append(d.update.Servers, s)
	}
	raw := f.hash(w.beat)
	moved := raw != r.beat
	text := f.hash(w.errText)
	changed := string(w.word) != r.word
	if !moved && !changed && text == r.text {
		return true
	}
	var at time.Time
	mine, dated := false, false
	if r.ours != nil || moved {
		at, dated = timeOf(w.beat)
		mine = dated && r.ours != nil && r.ours.wrote(at)
	}
	if changed || text != r.text { // without a word, too: what the row said before does not count any more
		word := statussync.CleanText(string(w.word), statussync.MaxWordText)
		echo := changed && mine && r.ours.wroteWord(at, string(w.word))
		d.after = append(d.after, &statussync.RecordSeen{ServerID: r.id, Word: word, Error: statussync.CleanText(string(w.errText), statussync.MaxErrorText), Echo: echo, Origin: f.o.Origin})
		if changed {
			r.mine, r.wordAt = echo, now
		}
	}
	r.word, r.text = f.word(w.word), text
	if moved {
		r.beat = raw
		if dated && !mine && !f.earlierLife(r.env, at) {
			d.after = append(d.after, &statussync.RowHeartbeat{ServerID: r.id, At: at, Read: read, Origin: f.o.Origin})
		}
	}
	return true
}

// tool takes a row that is no MCP server. Nobody is told of it; what its agent reports is written into it like into others.
func (f *knownRows) tool(r *rowState, w *instanceRow, read uint64, now time.Time) {
	r.gen, r.read = f.gen, read
	if def := f.hash(w.env, w.name); r.env == nil || def != r.def {
		s, _ := w.server(f.o.Origin)
		f.place(r, s.EnvironmentID, s.Name)
		r.def = def
	}
	if string(w.word) != r.word {
		at, ok := timeOf(w.beat)
		r.mine, r.wordAt = ok && r.ours != nil && r.ours.wroteWord(at, string(w.word)), now
		r.word = f.word(w.word)
	}
}

// word returns one string for all rows that have the same. Statuses are few; what is none of them must not fill memory.
func (f *knownRows) word(b []byte) string {
	if s, ok := f.words[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(f.words) < 1000 {
		f.words[s] = s
	}
	return s
}

// place puts a row into its environment's names.
func (f *knownRows) place(r *rowState, env, name string) {
	if r.env != nil {
		if r.env.id == env && r.name == name {
			return
		}
		f.unplace(r)
	}
	e := f.envs[env]
	if e == nil {
		e = f.newEnvironment(env)
	}
	r.env, r.name = e, name
	e.count++
	if head := e.byName[name]; head != nil {
		r.next, head.next = head.next, r // the first one keeps the name
	} else {
		e.byName[name] = r
	}
}

func (f *knownRows) unplace(r *rowState) {
	e := r.env
	r.env = nil
	e.count--
	switch head := e.byName[r.name]; {
	case head != r:
		for head.next != r {
			head = head.next
		}
		head.next = r.next
	case r.next != nil:
		e.byName[r.name] = r.next // another that wanted the name gets it
	default:
		delete(e.byName, r.name)
	}
	r.next = nil
	f.forgetEnv(e)
}

func (f *knownRows) forgetEnv(e *envState) {
	if !e.known && e.count == 0 && f.envs[e.id] == e {
		delete(f.envs, e.id)
	}
}

// gone lists what the full read that began last has not seen; servers is how many of the rows are such.
func (f *knownRows) gone() (rows, envs []string, servers int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, gen := range f.nameless {
		if gen != f.gen {
			delete(f.nameless, k)
			f.fault(k.table, k.id, nil)
		}
	}
	for id, r := range f.rows {
		if r.gen != f.gen {
			rows = append(rows, id)
			if r.server {
				servers++
			}
		}
	}
	for id, e := range f.envs {
		if e.known && e.gen != f.gen {
			envs = append(envs, id)
		}
	}
	slices.Sort(rows)
	slices.Sort(envs)
	return rows, envs, servers
}

// remove forgets rows that are not there any more.
func (f *knownRows) remove(rows, envs []string, d *delta) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range rows {
		r := f.rows[id]
		if r == nil {
			continue
		}
		delete(f.rows, id)
		f.fault(tableInstances, id, nil)
		f.unplace(r)
		if !r.server {
			continue
		}
		f.servers--
		if !r.foul {
			d.update.RemovedServers = append(d.update.RemovedServers, id)
		}
	}
	for _, id := range envs {
		e := f.envs[id]
		if e == nil || !e.known {
			continue
		}
		f.fault(tableEnvironments, id, nil)
		if e.has {
			f.tokens = true
		}
		e.known, e.has = false, false
		if !e.foul {
			d.update.RemovedEnvironments = append(d.update.RemovedEnvironments, id)
		}
		f.forgetEnv(e)
	}
}

// lost reports whether so many servers are missing that a read is not believed before it is repeated: more than 20 % and
// more than 5 (docs/domain.md, journal entries).
func lost(missing, known int) bool { return missing > 5 && missing*5 > known }

// refused notes that another registry defines an id. Its definition is offered again with each full read; news: the refusal
// before, if there was one, was another.
func (f *knownRows) refused(id, detail string) (known, news bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.rows[id]; r != nil && r.server && !strings.HasPrefix(detail, "environment ") {
		known, news, r.foul, r.taken = true, r.taken != detail, true, detail
		f.fault(tableInstances, id, []string{detail})
	}
	if e := f.envs[id]; e != nil && e.known && !strings.HasPrefix(detail, "server ") {
		f.tokens = f.tokens || e.has && !e.foul
		known, news, e.foul, e.taken = true, news || e.taken != detail, true, detail
		f.fault(tableEnvironments, id, []string{detail})
	}
	return known, news
}

// agents returns all tokens if something of them has changed since the last call.
func (f *knownRows) agents() (tokens map[[sha256.Size]byte]string, changed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.tokens {
		return nil, false
	}
	f.tokens = false
	tokens = map[[sha256.Size]byte]string{}
	for id, e := range f.envs {
		if !e.has || !e.known || e.foul { // an environment that the configuration defines has the configuration's token
			continue
		}
		if other, twice := tokens[e.token]; twice && other < id { // whose it is must not depend on the order of a map
			continue
		}
		tokens[e.token] = id
	}
	if f.told != nil && maps.Equal(tokens, f.told) { // an environment that is refused again with each full read
		return nil, false
	}
	f.told = maps.Clone(tokens) // the map is the receiver's
	return tokens, true
}

func (f *knownRows) stats() (envs, servers int, faults []RowFault, count int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.envs {
		if e.known {
			envs++
		}
	}
	order := func(a, b faultKey) int { return cmp.Or(cmp.Compare(a.table, b.table), cmp.Compare(a.id, b.id)) }
	var first []faultKey // the first maxFaults of all, which may be as many as there are rows
	for k := range f.faults {
		i, _ := slices.BinarySearchFunc(first, k, order)
		if i == maxFaults {
			continue
		}
		first = slices.Insert(first, i, k)
		first = first[:min(len(first), maxFaults)]
	}
	for _, k := range first {
		faults = append(faults, RowFault{Table: k.table, ID: k.id, Detail: strings.Join(f.faults[k], "; ")})
	}
	return envs, f.servers, faults, f.faultCount
}

// known tells how many servers there are, and which of ids are known rows, and how many of these are servers.
func (f *knownRows) known(ids []string) (servers int, of []string, ofServers int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		if r := f.rows[id]; r != nil {
			of = append(of, id)
			if r.server {
				ofServers++
			}
		}
	}
	return f.servers, of, ofServers
}

// serversOf tells which of ids are servers.
func (f *knownRows) serversOf(ids []string) (of []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		if r := f.rows[id]; r != nil && r.server {
			of = append(of, id)
		}
	}
	return of
}

func (f *knownRows) knownEnvironments(ids []string) (of []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		if e := f.envs[id]; e != nil && e.known {
			of = append(of, id)
		}
	}
	return of
}
