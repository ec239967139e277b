package statussync

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
)

// FilterType selects updates by what changed.
type FilterType string

// The filter types.
const (
	FilterStatusChange FilterType = "status_change" // the state changed
	FilterHealthChange FilterType = "health_change" // the health changed
	FilterErrorState   FilterType = "error_state"   // the current health is unhealthy
	FilterRecovery     FilterType = "recovery"      // unhealthy before, healthy or degraded now
)

// MaxFilterIDs bounds the ids (and words) that one list of a clause may hold; MaxClauses the clauses of a filter.
const (
	MaxFilterIDs = 1000
	MaxClauses   = 100
)

// Clause is one alternative of a Filter: all fields that are given must match. A nil field is absent and matches all;
// a present but empty list matches nothing.
type Clause struct {
	Type           FilterType        `json:"type,omitempty"`
	Kinds          []Kind            `json:"kinds,omitzero"` // absent: status and server_removed
	ServerIDs      []string          `json:"server_ids,omitzero"`
	EnvironmentIDs []string          `json:"environment_ids,omitzero"`
	States         []State           `json:"states,omitzero"`
	Healths        []Health          `json:"healths,omitzero"`
	Labels         map[string]string `json:"labels,omitzero"` // every label given has that value
}

// UnmarshalJSON also takes the original design's spellings serverIds, statusStates and healthLevels. An unknown key
// and an unknown word are errors with CodeInvalid: a filter that is misspelt must not silently match everything.
func (c *Clause) UnmarshalJSON(b []byte) error {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(b, &keys); err != nil || keys == nil {
		return Invalid("filters", "a clause must be an object")
	}
	*c = Clause{}
	names := make([]string, 0, len(keys))
	for k := range keys {
		names = append(names, k)
	}
	sort.Strings(names)
	for _, k := range names {
		raw := keys[k]
		if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
			continue // absent means null
		}
		var dst any
		switch k {
		case "type":
			dst = &c.Type
		case "kinds":
			dst = &c.Kinds
		case "server_ids", "serverIds":
			dst = &c.ServerIDs
		case "environment_ids":
			dst = &c.EnvironmentIDs
		case "states", "statusStates":
			dst = &c.States
		case "healths", "healthLevels":
			dst = &c.Healths
		case "labels":
			dst = &c.Labels
		default:
			return Invalid("filters."+CleanText(k, MaxWordText), "is no field of a filter; the fields are type, kinds, server_ids, environment_ids, states, healths, labels")
		}
		if err := json.Unmarshal(raw, dst); err != nil {
			return Invalid("filters."+k, "has the wrong type")
		}
	}
	return c.Validate()
}

// Validate checks words and bounds. The error has CodeInvalid and names the field.
func (c *Clause) Validate() error {
	switch c.Type {
	case "", FilterStatusChange, FilterHealthChange, FilterErrorState, FilterRecovery:
	default:
		return Invalid("filters.type", quote(string(c.Type))+" is not one of status_change, health_change, error_state, recovery")
	}
	for _, k := range c.Kinds {
		if !slices.Contains(Kinds, k) {
			return Invalid("filters.kinds", quote(string(k))+" is not a kind of entry")
		}
	}
	for _, s := range c.States {
		if !s.Valid() {
			return Invalid("filters.states", quote(string(s))+" is not one of running, stopped, starting, stopping, error, unknown")
		}
	}
	for _, h := range c.Healths {
		if !h.Valid() {
			return Invalid("filters.healths", quote(string(h))+" is not one of healthy, degraded, unhealthy, unknown")
		}
	}
	for _, l := range []struct {
		name string
		n    int
	}{{"kinds", len(c.Kinds)}, {"server_ids", len(c.ServerIDs)}, {"environment_ids", len(c.EnvironmentIDs)},
		{"states", len(c.States)}, {"healths", len(c.Healths)}, {"labels", len(c.Labels)}} {
		if l.n > MaxFilterIDs {
			return Invalid("filters."+l.name, fmt.Sprintf("holds %d values; at most %d are allowed", l.n, MaxFilterIDs))
		}
	}
	return nil
}

// Filter is a disjunction of clauses; without clauses it matches every entry of the default kinds. With Leave, an
// update also matches when the previous status matched, so that a list of "all unhealthy" hears who left it.
type Filter struct {
	Clauses []Clause
	Leave   bool
}

// Compile checks the filter and prepares it for matching. The error has CodeInvalid.
func (f Filter) Compile() (*Matcher, error) {
	if len(f.Clauses) > MaxClauses {
		return nil, Invalid("filters", fmt.Sprintf("holds %d clauses; at most %d are allowed", len(f.Clauses), MaxClauses))
	}
	m := &Matcher{leave: f.Leave}
	for i := range f.Clauses {
		c := &f.Clauses[i]
		if err := c.Validate(); err != nil {
			return nil, err
		}
		mc := matchClause{Clause: *c, servers: set(c.ServerIDs), envs: set(c.EnvironmentIDs)}
		for _, st := range States {
			for _, h := range Healths {
				if s := (Status{State: st, Health: h}); mc.statusMatches(&s) {
					mc.pairs.Add(&s)
				}
			}
		}
		m.clauses = append(m.clauses, mc)
	}
	return m, nil
}

// Matcher is a compiled Filter. It is immutable and safe for concurrent use. The nil *Matcher matches like a Filter
// without clauses.
type Matcher struct {
	clauses []matchClause
	leave   bool
}

type matchClause struct {
	Clause
	servers, envs map[string]struct{} // nil: absent
	pairs         StatusSet           // the states and healths that match
}

// StatusPairs is how many pairs of a State and a Health there are.
const StatusPairs = 24

// StatusSet is a set of pairs of a State and a Health. The zero value is the empty set.
type StatusSet uint32

// PairOf numbers the State and Health of s from 0 to StatusPairs-1; it is -1 where one of them is no known word.
func PairOf(s *Status) int {
	st, h := slices.Index(States, s.State), slices.Index(Healths, s.Health)
	if st < 0 || h < 0 {
		return -1
	}
	return st*len(Healths) + h
}

// Add adds the State and Health of s. Words that are not known are left out: no filter can name them.
func (x *StatusSet) Add(s *Status) {
	if p := PairOf(s); p >= 0 {
		x.AddPair(p)
	}
}

// AddPair adds what PairOf has numbered p.
func (x *StatusSet) AddPair(p int) { *x |= 1 << p }

func set(list []string) map[string]struct{} {
	if list == nil {
		return nil
	}
	m := make(map[string]struct{}, len(list))
	for _, s := range list {
		m[s] = struct{}{}
	}
	return m
}

// Match reports whether a subscriber with this filter gets e.
func (m *Matcher) Match(e *Entry) bool {
	if m == nil || len(m.clauses) == 0 {
		return e.Kind == KindStatus || e.Kind == KindServerRemoved
	}
	for i := range m.clauses {
		if m.clauses[i].match(e, m.leave) {
			return true
		}
	}
	return false
}

// MatchMerged reports whether a subscriber in ModeLatest gets e, the newest entry of what it is about, in place of all
// since the subscriber's position. had are the statuses that e's server had from that position on, the one that it had
// there among them: states and healths match when one of those does, so that nobody misses that a server left a
// selection, however many entries were merged into e. Kind, ids and labels are matched as they are in e. Leave is
// implied, and clauses may not have a Type.
func (m *Matcher) MatchMerged(e *Entry, had StatusSet) bool {
	if m == nil || len(m.clauses) == 0 {
		return e.Kind == KindStatus || e.Kind == KindServerRemoved
	}
	for i := range m.clauses {
		c := &m.clauses[i]
		if !c.scopeMatches(e) {
			continue
		}
		if e.Kind != KindStatus && e.Kind != KindServerRemoved {
			if c.States == nil && c.Healths == nil {
				return true
			}
			continue
		}
		if (c.States == nil && c.Healths == nil) || c.pairs&had != 0 {
			return true
		}
	}
	return false
}

// MatchServer reports whether a server with this status belongs into the snapshot of this filter: whether some clause
// could match an update whose current status it is. Types that speak of a change (status_change, health_change,
// recovery) and kinds don't restrict a snapshot; error_state does.
func (m *Matcher) MatchServer(s *Server, st *Status) bool {
	if m == nil || len(m.clauses) == 0 {
		return true
	}
	for i := range m.clauses {
		c := &m.clauses[i]
		if c.Kinds != nil && !slices.Contains(c.Kinds, KindStatus) {
			continue
		}
		if c.idsMatch(s.ID, s.EnvironmentID, nil) && hasLabels(s.Labels, c.Labels) && c.statusMatches(st) {
			return true
		}
	}
	return false
}

// ServerIDs returns the ids to which every clause is restricted, and false where some clause is not restricted to a
// list of servers. The hub indexes subscriptions by it.
func (m *Matcher) ServerIDs() ([]string, bool) {
	if m == nil || len(m.clauses) == 0 {
		return nil, false
	}
	var ids []string
	for i := range m.clauses {
		if m.clauses[i].servers == nil {
			return nil, false
		}
		ids = append(ids, m.clauses[i].ServerIDs...)
	}
	slices.Sort(ids)
	return slices.Compact(ids), true
}

// scopeMatches is the part of a clause that speaks of no status: kinds, ids and labels.
func (c *matchClause) scopeMatches(e *Entry) bool {
	if c.Kinds != nil {
		if !slices.Contains(c.Kinds, e.Kind) {
			return false
		}
	} else if e.Kind != KindStatus && e.Kind != KindServerRemoved {
		return false
	}
	return c.idsMatch(e.ServerID, e.EnvironmentID, e.ServerIDs) && hasLabels(e.Labels, c.Labels)
}

func (c *matchClause) match(e *Entry, leave bool) bool {
	if !c.scopeMatches(e) {
		return false
	}
	cur := e.Current
	if e.Kind == KindServerRemoved {
		cur = e.Previous // a removed server matches by its last status
	}
	if cur == nil { // an entry without a status matches only where no status was asked for
		return c.Type == "" && c.States == nil && c.Healths == nil
	}
	switch c.Type {
	case FilterStatusChange:
		if e.Current == nil || e.Previous.State == e.Current.State {
			return false
		}
	case FilterHealthChange:
		if e.Current == nil || e.Previous.Health == e.Current.Health {
			return false
		}
	case FilterRecovery:
		if e.Current == nil || e.Previous.Health != HealthUnhealthy ||
			(e.Current.Health != HealthHealthy && e.Current.Health != HealthDegraded) {
			return false
		}
	}
	return c.statusMatches(cur) || (leave && e.Previous != nil && c.statusMatches(e.Previous))
}

// statusMatches is the part of a clause that speaks of one status as it is.
func (c *matchClause) statusMatches(s *Status) bool {
	if c.Type == FilterErrorState && s.Health != HealthUnhealthy {
		return false
	}
	if c.States != nil && !slices.Contains(c.States, s.State) {
		return false
	}
	return c.Healths == nil || slices.Contains(c.Healths, s.Health)
}

func (c *matchClause) idsMatch(serverID, envID string, serverIDs []string) bool {
	if c.servers != nil {
		if _, ok := c.servers[serverID]; !ok && !slices.ContainsFunc(serverIDs, func(id string) bool {
			_, ok := c.servers[id]
			return ok
		}) {
			return false
		}
	}
	if c.envs != nil {
		if _, ok := c.envs[envID]; !ok {
			return false
		}
	}
	return true
}

// hasLabels reports whether have holds every label of want with its value. An absent want (nil) matches; a present but
// empty one matches nothing, like an empty list.
func hasLabels(have, want map[string]string) bool {
	if want == nil {
		return true
	}
	if len(want) == 0 {
		return false
	}
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}
