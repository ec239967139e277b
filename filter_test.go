package statussync

import (
	"encoding/json"
	"strings"
	"testing"
)

func update(prev, cur Status) *Entry {
	return &Entry{Kind: KindStatus, ServerID: "a", EnvironmentID: "e", Labels: map[string]string{"team": "core"}, Previous: &prev, Current: &cur}
}

var (
	stHealthy   = Status{State: StateRunning, Health: HealthHealthy}
	stUnhealthy = Status{State: StateRunning, Health: HealthUnhealthy}
	stDegraded  = Status{State: StateRunning, Health: HealthDegraded}
	stStopped   = Status{State: StateStopped, Health: HealthUnknown}
)

// Every row of the filter table, read from JSON as a client sends it.
func TestFilter(t *testing.T) {
	fall, back := update(stHealthy, stUnhealthy), update(stUnhealthy, stHealthy)
	removed := &Entry{Kind: KindServerRemoved, ServerID: "a", EnvironmentID: "e", Labels: map[string]string{"team": "core"}, Previous: &stUnhealthy}
	silent := &Entry{Kind: KindEnvironmentSilent, EnvironmentID: "e", ServerIDs: []string{"a", "b"}}
	for _, c := range []struct {
		name    string
		filters string
		leave   bool
		e       *Entry
		want    bool
	}{
		{"no clauses", `[]`, false, fall, true},
		{"no clauses, removed", `[]`, false, removed, true},
		{"no clauses, other kind", `[]`, false, silent, false},
		{"empty clause", `[{}]`, false, fall, true},
		{"null is absent", `[{"states":null,"type":null}]`, false, fall, true},
		{"status_change without", `[{"type":"status_change"}]`, false, fall, false},
		{"status_change with", `[{"type":"status_change"}]`, false, update(stHealthy, stStopped), true},
		{"health_change with", `[{"type":"health_change"}]`, false, fall, true},
		{"health_change without", `[{"type":"health_change"}]`, false, update(stStopped, Status{State: StateStarting, Health: HealthUnknown}), false},
		{"error_state", `[{"type":"error_state"}]`, false, fall, true},
		{"error_state left", `[{"type":"error_state"}]`, false, back, false},
		{"error_state left, leave", `[{"type":"error_state"}]`, true, back, true},
		{"recovery", `[{"type":"recovery"}]`, false, back, true},
		{"recovery to degraded", `[{"type":"recovery"}]`, false, update(stUnhealthy, stDegraded), true},
		{"recovery to stopped", `[{"type":"recovery"}]`, false, update(stUnhealthy, stStopped), false},
		{"not from unhealthy", `[{"type":"recovery"}]`, false, update(stDegraded, stHealthy), false},
		{"kinds", `[{"kinds":["environment_silent"]}]`, false, silent, true},
		{"kinds without", `[{"kinds":["environment_silent"]}]`, false, fall, false},
		{"kinds empty", `[{"kinds":[]}]`, false, fall, false},
		{"server", `[{"server_ids":["b","a"]}]`, false, fall, true},
		{"other server", `[{"server_ids":["b"]}]`, false, fall, false},
		{"no server", `[{"server_ids":[]}]`, false, fall, false},
		{"old spelling", `[{"serverIds":["a"],"healthLevels":["unhealthy"],"statusStates":["running"]}]`, false, fall, true},
		{"old spelling, other", `[{"statusStates":["stopped"]}]`, false, fall, false},
		{"server in a list", `[{"server_ids":["b"],"kinds":["environment_silent"]}]`, false, silent, true},
		{"environment", `[{"environment_ids":["e"]}]`, false, fall, true},
		{"other environment", `[{"environment_ids":["f"]}]`, false, fall, false},
		{"state", `[{"states":["running"]}]`, false, fall, true},
		{"health", `[{"healths":["unhealthy"]}]`, false, fall, true},
		{"health before does not count", `[{"healths":["healthy"]}]`, false, fall, false},
		{"unless leave", `[{"healths":["healthy"]}]`, true, fall, true},
		{"leave needs the whole clause", `[{"healths":["healthy"],"states":["stopped"]}]`, true, fall, false},
		{"all within a clause", `[{"states":["running"],"healths":["healthy"]}]`, false, fall, false},
		{"any of the clauses", `[{"states":["stopped"]},{"healths":["unhealthy"]}]`, false, fall, true},
		{"labels", `[{"labels":{"team":"core"}}]`, false, fall, true},
		{"other label", `[{"labels":{"team":"edge"}}]`, false, fall, false},
		{"no such label", `[{"labels":{"tier":""}}]`, false, fall, false},
		{"empty labels", `[{"labels":{}}]`, false, fall, false},
		{"removed by last status", `[{"healths":["unhealthy"]}]`, false, removed, true},
		{"removed, other status", `[{"healths":["healthy"]}]`, false, removed, false},
		{"removed, error_state", `[{"type":"error_state"}]`, false, removed, true},
		{"removed, status_change", `[{"type":"status_change"}]`, false, removed, false},
		{"silent has no status", `[{"kinds":["environment_silent"],"healths":["unhealthy"]}]`, false, silent, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var clauses []Clause
			if err := json.Unmarshal([]byte(c.filters), &clauses); err != nil {
				t.Fatal(err)
			}
			m, err := Filter{Clauses: clauses, Leave: c.leave}.Compile()
			if err != nil {
				t.Fatal(err)
			}
			if got := m.Match(c.e); got != c.want {
				t.Errorf("matches: %v", got)
			}
		})
	}
	var none *Matcher
	if !none.Match(fall) || none.Match(silent) {
		t.Error("the nil matcher is not the filter without clauses")
	}
}

func TestFilterErrors(t *testing.T) {
	many := `[{"server_ids":["` + strings.Repeat(`x","`, MaxFilterIDs) + `x"]}]`
	for in, want := range map[string]string{
		`[{"server_id":["a"]}]`:   "filters.server_id",
		`[{"type":"everything"}]`: "filters.type",
		`[{"states":["up"]}]`:     "filters.states",
		`[{"healths":["fine"]}]`:  "filters.healths",
		`[{"kinds":["news"]}]`:    "filters.kinds",
		`[{"states":"running"}]`:  "filters.states",
		`[{"labels":["a"]}]`:      "filters.labels",
		`[7]`:                     "filters",
		`[null]`:                  "filters",
		many:                      "filters.server_ids",
	} {
		var clauses []Clause
		err := json.Unmarshal([]byte(in), &clauses)
		if in == `[null]` {
			continue // encoding/json hands null over as an empty clause
		}
		if err == nil || !strings.Contains(err.Error(), want) || CodeOf(err) != CodeInvalid {
			t.Errorf("%.40s: %v, want an error at %s", in, err, want)
		}
	}
	if _, err := (Filter{Clauses: make([]Clause, MaxClauses+1)}).Compile(); CodeOf(err) != CodeInvalid {
		t.Error("too many clauses are accepted")
	}
}

func TestMatchServer(t *testing.T) {
	s := &Server{ID: "a", EnvironmentID: "e", Labels: map[string]string{"team": "core"}}
	for _, c := range []struct {
		filters string
		want    bool
	}{
		{`[]`, true}, {`[{"type":"error_state"}]`, true}, {`[{"type":"recovery"}]`, true}, {`[{"healths":["healthy"]}]`, false},
		{`[{"server_ids":["b"]}]`, false}, {`[{"kinds":["environment_silent"]}]`, false}, {`[{"labels":{"team":"core"}}]`, true},
		{`[{"environment_ids":["f"]},{"states":["running"]}]`, true},
	} {
		var clauses []Clause
		if err := json.Unmarshal([]byte(c.filters), &clauses); err != nil {
			t.Fatal(err)
		}
		m, err := Filter{Clauses: clauses}.Compile()
		if err != nil {
			t.Fatal(err)
		}
		if got := m.MatchServer(s, &stUnhealthy); got != c.want {
			t.Errorf("%s: %v", c.filters, got)
		}
	}
}

func TestMatcherServerIDs(t *testing.T) {
	m, _ := Filter{Clauses: []Clause{{ServerIDs: []string{"b", "a"}}, {ServerIDs: []string{"a"}}}}.Compile()
	if ids, ok := m.ServerIDs(); !ok || strings.Join(ids, ",") != "a,b" {
		t.Errorf("%v %v", ids, ok)
	}
	m, _ = Filter{Clauses: []Clause{{ServerIDs: []string{"b"}}, {States: []State{StateError}}}}.Compile()
	if _, ok := m.ServerIDs(); ok {
		t.Error("a clause without servers is not restricted to servers")
	}
}

// Whatever bytes come: an error with code invalid, or a filter that compiles.
func FuzzClause(f *testing.F) {
	f.Add([]byte(`{"type":"error_state","server_ids":["a"],"labels":{"a":"b"}}`))
	f.Add([]byte(`{"serverIds":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Clause
		if err := c.UnmarshalJSON(b); err != nil {
			if CodeOf(err) != CodeInvalid {
				t.Fatalf("%v", err)
			}
			return
		}
		m, err := Filter{Clauses: []Clause{c}}.Compile()
		if err != nil {
			t.Fatal(err)
		}
		m.Match(update(stHealthy, stUnhealthy))
	})
}

// TestMatchMerged: an entry that nothing was merged into is told in mode latest exactly when it is told with Leave, and
// merging more into it only makes it match more.
func TestMatchMerged(t *testing.T) {
	var sets []Filter
	for _, c := range []Clause{
		{}, {Healths: []Health{HealthUnhealthy}}, {States: []State{StateError, StateStopped}}, {States: []State{}},
		{States: []State{StateRunning}, Healths: []Health{HealthDegraded}}, {ServerIDs: []string{"a"}}, {EnvironmentIDs: []string{"x"}},
		{Labels: map[string]string{"team": "t1"}}, {Kinds: []Kind{KindStatus}}, {Kinds: []Kind{KindServerRemoved, KindEnvironmentSilent}},
		{Kinds: []Kind{KindEnvironmentSilent}, Healths: []Health{HealthHealthy}},
	} {
		sets = append(sets, Filter{Clauses: []Clause{c}, Leave: true}, Filter{Clauses: []Clause{{ServerIDs: []string{"b"}, Healths: []Health{HealthUnknown}}, c}, Leave: true})
	}
	sets = append(sets, Filter{Leave: true})
	var all StatusSet
	seen := map[int]bool{}
	for _, st := range States {
		for _, h := range Healths {
			s := Status{State: st, Health: h}
			all.Add(&s)
			seen[PairOf(&s)] = true
		}
	}
	if len(seen) != StatusPairs || seen[-1] || all != 1<<StatusPairs-1 {
		t.Fatalf("%d pairs, %x", len(seen), all)
	}
	if other := (Status{State: "asleep", Health: HealthHealthy}); PairOf(&other) != -1 {
		t.Error("an unknown word has a number")
	}
	matched := 0
	for _, f := range sets {
		m, err := f.Compile()
		if err != nil {
			t.Fatal(err)
		}
		try := func(e Entry) {
			var had StatusSet
			for _, s := range []*Status{e.Previous, e.Current} {
				if s != nil {
					had.Add(s)
				}
			}
			want := m.Match(&e)
			if got := m.MatchMerged(&e, had); got != want {
				t.Errorf("filter %+v, entry %s %s %+v → %+v: got %v, want %v", f, e.Kind, e.ServerID, e.Previous, e.Current, got, want)
			}
			if want {
				matched++
				if !m.MatchMerged(&e, all) {
					t.Errorf("filter %+v, entry %s %s: more statuses make it not match", f, e.Kind, e.ServerID)
				}
			}
		}
		for _, id := range []string{"a", "b"} {
			e := Entry{ServerID: id, EnvironmentID: map[string]string{"a": "x"}[id], Labels: map[string]string{"team": map[string]string{"a": "t1", "b": "t2"}[id]}}
			for _, prev := range []Status{{State: StateRunning, Health: HealthHealthy}, {State: StateError, Health: HealthUnhealthy}, {State: StateUnknown, Health: HealthUnknown}} {
				for _, cur := range []Status{{State: StateRunning, Health: HealthDegraded}, {State: StateStopped, Health: HealthUnhealthy}} {
					e.Kind, e.Previous, e.Current = KindStatus, &prev, &cur
					try(e)
				}
				e.Kind, e.Previous, e.Current = KindServerRemoved, &prev, nil
				try(e)
			}
			e.Kind, e.Previous, e.Current = KindServerAdded, nil, nil
			try(e)
		}
		try(Entry{Kind: KindEnvironmentSilent, EnvironmentID: "x", ServerIDs: []string{"a", "b"}})
	}
	if matched < 50 {
		t.Errorf("only %d entries matched: too little was tried", matched)
	}
}
