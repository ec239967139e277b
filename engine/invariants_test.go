package engine

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"pgregory.net/rapid"
)

var fuzzBegin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// fuzzServers and fuzzEnvs are the names that random observations are about; some environments have agents that can be
// asked, some have tokens.
const (
	fuzzServers = 10
	fuzzEnvs    = 6
)

// dice turns bytes into choices; when they run out it gives zeros.
type dice struct{ b []byte }

func (d *dice) more() bool { return len(d.b) > 0 }

func (d *dice) n(limit int) int {
	if len(d.b) == 0 {
		return 0
	}
	v := int(d.b[0]) % limit
	d.b = d.b[1:]
	return v
}

func pick[T any](d *dice, list ...T) T { return list[d.n(len(list))] }

func (d *dice) server() string { return fmt.Sprintf("s%d", d.n(fuzzServers)) }
func (d *dice) env() string    { return fmt.Sprintf("e%d", d.n(fuzzEnvs)) }

func fuzzEnvironment(d *dice, id string) statussync.Environment {
	env := statussync.Environment{ID: id, Origin: statussync.OriginConfig, HasToken: d.n(2) == 0, Address: "10.0.0.9"}
	if d.n(2) == 0 {
		env.AgentURL = "http://10.0.0.9:30000"
	}
	return env
}

func fuzzServer(d *dice, id string) statussync.Server {
	s := statussync.Server{
		ID: id, Name: id, EnvironmentID: pick(d, "e"+id[1:], "e0", "e1", "e2", "", "elsewhere"), Origin: statussync.OriginConfig,
		Desired: pick(d, statussync.DesiredRunning, "", statussync.DesiredStopped), Transport: statussync.TransportHTTP,
		Endpoint: "http://10.0.0.1:1/mcp", Labels: map[string]string{"team": pick(d, "a", "b")},
	}
	switch d.n(10) {
	case 0:
		s.Endpoint = ""
	case 1:
		s.Transport = statussync.TransportStdio
	case 2:
		s.NeedsConfig = "no key"
	case 3:
		s.Disabled = true
	case 4:
		s.Probe.Interval = pick(d, 5*time.Second, 5*time.Minute, 1<<62)
		s.Probe.StartGrace = time.Second
	case 5:
		retries := 0
		s.Probe.MaxRetries, s.Probe.Rise, s.Probe.Expect = &retries, 1, "open"
		s.Probe.Headers = map[string]string{"Authorization": pick(d, "top-secret-1", "top-secret-2")}
	}
	return s
}

// action is a thing that is done to an engine at one time.
type action func(e *Engine, now time.Time, eff *Effects)

func observe(o statussync.Observation) action {
	return func(e *Engine, now time.Time, eff *Effects) { e.Step(now, o, eff) }
}

// roll makes the next action. Everything that it points to is made before, so that it can be done to several engines.
func (d *dice) roll(now time.Time) (what string, list []action) {
	one := func(o statussync.Observation) []action { return []action{observe(o)} }
	switch d.n(18) {
	case 0, 1, 2:
		r := &statussync.AgentReport{EnvironmentID: d.env(), Via: pick(d, statussync.ViaPush, statussync.ViaPush, statussync.ViaPull, statussync.ViaEvent), List: pick(d, statussync.ListComplete, statussync.ListPartial, statussync.ListNone)}
		for range d.n(5) {
			c := statussync.ContainerReport{Names: []string{d.server()}, Word: pick(d, "running", "running", "running", "exited", "created", "restarting", "restarting", "dead", "removing", "Gibberish"), Text: "as told"}
			switch d.n(6) {
			case 0:
				code := pick(d, 0, 1, 137)
				c.ExitCode = &code
				c.ExitAge = statussync.AgeRange{Min: time.Second, Max: 3 * time.Second}
			case 1:
				c.HealthCheck = pick(d, "healthy", "unhealthy", "starting")
			case 2:
				c.StartAge = statussync.AgeRange{Min: time.Second, Max: time.Duration(2+d.n(100)) * time.Second}
			case 3:
				c.Shape, c.ServerID = statussync.ShapeDocumented, d.server()
			case 4:
				c.PublicPort = 30000 + d.n(3)
			}
			r.Containers = append(r.Containers, c)
		}
		return "heartbeat", one(r)
	case 3, 4, 5:
		r := &statussync.ProbeResult{ServerID: d.server(), Outcome: pick(d, statussync.OutcomeSuccess, statussync.OutcomeFailure, statussync.OutcomeFailure, statussync.OutcomeAlive),
			StartedAt: now.Add(-time.Duration(d.n(3)) * time.Second), Cause: "cause", Detail: "detail"}
		switch d.n(6) {
		case 0, 1, 2:
			r.ByConnect = r.Outcome == statussync.OutcomeFailure
		case 3:
			r.Latency = 3 * time.Second
		case 4:
			r.Throttled = true
		case 5:
			r.Auth = pick(d, statussync.AuthFailed, statussync.AuthRequired, statussync.AuthOK)
		}
		for range 1 + d.n(5) {
			list = append(list, observe(r))
		}
		return "probe", list
	case 6, 7: // a wave over a host, or over everything
		from, to := 0, fuzzServers
		if d.n(2) == 0 {
			from = d.n(fuzzServers)
			to = min(from+3, fuzzServers)
		}
		fails := d.n(3) != 0
		for range 1 + d.n(5) {
			for i := from; i < to; i++ {
				r := &statussync.ProbeResult{ServerID: fmt.Sprintf("s%d", i), Outcome: statussync.OutcomeSuccess, StartedAt: now}
				if fails {
					r.Outcome, r.ByConnect, r.Cause = statussync.OutcomeFailure, true, "refused"
				}
				list = append(list, observe(r))
			}
		}
		return "wave", list
	case 8:
		return "record", one(&statussync.RecordSeen{ServerID: d.server(), Echo: d.n(5) == 0,
			Word: pick(d, "running", "starting", "stopping", "stopped", "error_install", "pending_config", "deleting", "exited", "Gibberish ")})
	case 9:
		f := &statussync.AgentFailed{EnvironmentID: d.env(), StartedAt: now, Cause: "refused", NobodyToAsk: d.n(3) == 0}
		for range 1 + d.n(4) {
			list = append(list, observe(f))
		}
		return "agent failed", list
	case 10:
		if d.n(4) == 0 {
			return "database", one(&statussync.DatabaseConnection{Origin: statussync.OriginConfig, Connected: d.n(2) == 0})
		}
		at := now.Add(-time.Duration(pick(d, 0, 10, 1000, -20)) * time.Second)
		r := &statussync.RowHeartbeat{At: at, Read: uint64(d.n(200))}
		if d.n(2) == 0 {
			r.ServerID = d.server()
		} else {
			r.EnvironmentID = d.env()
		}
		return "row", one(r)
	case 11:
		u := &statussync.RegistryUpdate{Origin: statussync.OriginConfig}
		switch d.n(6) {
		case 0, 1:
			u.Servers = []statussync.Server{fuzzServer(d, d.server())}
		case 2:
			u.RemovedServers = []string{d.server()}
		case 3:
			u.RemovedEnvironments = []string{d.env()}
		case 4:
			u.Environments = []statussync.Environment{fuzzEnvironment(d, d.env())}
		case 5:
			u.Full = true
			for i := range fuzzServers - 1 {
				u.Servers = append(u.Servers, fuzzServer(d, fmt.Sprintf("s%d", i)))
			}
			u.Environments = []statussync.Environment{fuzzEnvironment(d, "e0"), fuzzEnvironment(d, "e1")}
		}
		return "registry", one(u)
	case 12:
		if d.n(3) == 0 {
			return "override ends", one(&statussync.OverrideClear{ServerID: d.server(), Actor: "ann"})
		}
		return "override", one(&statussync.OverrideSet{ServerID: d.server(), Override: statussync.Override{
			State: pick(d, statussync.StateRunning, statussync.StateError, statussync.StateStopped), Actor: "ann", ExpiresAt: now.Add(time.Duration(1+d.n(200)) * 10 * time.Second)}})
	case 13:
		if d.n(3) == 0 {
			return "maintenance ends", one(&statussync.MaintenanceEnd{ID: pick(d, "w0", "w1", "w2")})
		}
		if d.n(4) == 0 {
			return "occurrence ends", one(&statussync.MaintenanceEnd{ID: pick(d, "w0", "w1", "w2"), OccurrenceOnly: true})
		}
		from := now.Add(time.Duration(d.n(10)-3) * time.Minute)
		m := statussync.Maintenance{ID: pick(d, "w0", "w1", "w2"), StartsAt: from, EndsAt: from.Add(time.Duration(1+d.n(10)) * time.Minute), RRule: pick(d, "", "every 12 minutes")}
		switch d.n(3) {
		case 0:
			m.ServerIDs = []string{d.server(), d.server()}
		case 1:
			m.EnvironmentIDs, m.ServerIDs = []string{d.env()}, []string{d.server()}
		case 2:
			m.Labels, m.EnvironmentIDs = map[string]string{"team": "a"}, []string{d.env()}
		}
		return "maintenance", one(&statussync.MaintenanceSet{Window: m})
	case 14:
		p := DefaultPolicy()
		if d.n(2) == 0 {
			p.LateAfter, p.LostAfter = 20*time.Second, 45*time.Second
			p.FlapChanges = 2
		}
		return "policy", []action{func(e *Engine, now time.Time, eff *Effects) {
			if err := e.SetPolicy(now, p, eff); err != nil {
				panic(err)
			}
		}}
	}
	if kind := d.n(3); kind > 0 {
		switch d.n(5) {
		case 0:
			return "pin", one(&statussync.ToolsPin{ServerID: d.server(), Actor: "ann", Hash: pick(d, "", "", "wrong")})
		case 1:
			return "unpin", one(&statussync.ToolsUnpin{ServerID: d.server()})
		case 2:
			return "no tools", one(&statussync.ToolsSeen{ServerID: d.server(), Error: "timeout"})
		}
		o := &statussync.ToolsSeen{ServerID: d.server(), At: now}
		for range d.n(4) {
			o.Tools = append(o.Tools, statussync.ToolRef{Name: pick(d, "a", "b", "c"), Hash: pick(d, "1", "2")})
		}
		return "tools", one(o)
	}
	gap := time.Duration(d.n(100)) * time.Second
	return "gap", []action{func(e *Engine, now time.Time, eff *Effects) {
		e.Tick(now, eff) // a gap speaks of a time in which nothing was told
		e.Gap(now, gap, eff)
	}}
}

// wait is how much time passes before the next action.
func (d *dice) wait() time.Duration {
	return pick(d, 0, 0, time.Second, time.Second, 2*time.Second, 3*time.Second, 7*time.Second, 15*time.Second, 40*time.Second, 61*time.Second, 3*time.Minute, 11*time.Minute)
}

// start makes an engine with the fleet that actions are about.
func fuzzStart(d *dice) (*Engine, []action) {
	e, err := New(DefaultPolicy())
	if err != nil {
		panic(err)
	}
	e.SetRecurrence(parseEvery12)
	u := &statussync.RegistryUpdate{Origin: statussync.OriginConfig}
	for i := range fuzzEnvs {
		u.Environments = append(u.Environments, fuzzEnvironment(d, fmt.Sprintf("e%d", i)))
	}
	for i := range fuzzServers {
		u.Servers = append(u.Servers, fuzzServer(d, fmt.Sprintf("s%d", i)))
	}
	return e, []action{
		func(e *Engine, now time.Time, eff *Effects) { e.Start(now, time.Time{}, eff) },
		observe(u),
	}
}

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// watched is an engine with everything that must hold of it.
type watched struct {
	t       failer
	e       *Engine
	eff     Effects
	now     time.Time
	last    map[string]statussync.Status // by server, as told
	gone    map[string]uint64            // version of removed servers
	seen    map[string]statussync.Status // with facts, as Touched was last asked
	store   map[string]statussync.Record
	entries []*statussync.Entry
	at      time.Time         // of the newest entry
	open    map[string]bool   // windows that were told open
	tools   map[string]string // hash of the tools by server
}

func watch(t failer, e *Engine) *watched {
	return &watched{t: t, e: e, last: map[string]statussync.Status{}, gone: map[string]uint64{}, seen: map[string]statussync.Status{}, store: map[string]statussync.Record{}, open: map[string]bool{}, tools: map[string]string{}}
}

// every12 is a rule that is open once in twelve minutes, as long as the template.
type every12 struct{ m statussync.Maintenance }

func parseEvery12(m *statussync.Maintenance) (statussync.Recurrence, error) {
	if m.RRule != "every 12 minutes" {
		return nil, statussync.Invalid("rrule", "is another")
	}
	return every12{*m}, nil
}

func (r every12) Next(after time.Time) (start, end time.Time, ok bool) {
	start, end = r.m.StartsAt, r.m.EndsAt
	for !end.After(after) {
		start, end = start.Add(12*time.Minute), end.Add(12*time.Minute)
	}
	return start, end, true
}

// checkWindows holds marks and entries against what the windows' definitions say.
func (w *watched) checkWindows() {
	w.t.Helper()
	views := w.e.Maintenances()
	open := map[string]bool{}
	for _, v := range views {
		if v.Open {
			open[v.Window.ID] = true
		}
		if once := v.Window.RRule == ""; once && v.Open != (!w.e.now.Before(v.Window.StartsAt) && w.e.now.Before(v.Window.EndsAt)) {
			w.t.Fatalf("it is %v, and the window is %+v", w.e.now, v)
		}
		n := 0
		for _, s := range w.e.servers {
			if v.Window.Selects(s.Def) {
				n++
			}
		}
		if n != v.Servers {
			w.t.Fatalf("%s selects %d servers, not %d", v.Window.ID, n, v.Servers)
		}
	}
	if !maps.Equal(open, w.open) {
		w.t.Fatalf("open are %v, and told open were %v", open, w.open)
	}
	for id, s := range w.e.servers {
		want := slices.ContainsFunc(views, func(v statussync.MaintenanceView) bool { return v.Open && v.Window.Selects(s.Def) })
		if got := s.Pub.Marks.Has(statussync.MarkMaintenance); got != want {
			w.t.Fatalf("%s: the mark is %v, and should be %v", id, got, want)
		}
	}
}

// checkTools holds the statuses against what is pinned.
func (w *watched) checkTools() {
	w.t.Helper()
	clear(w.tools)
	for id, s := range w.e.servers {
		v, _ := w.e.Tools(id)
		if v.Known != (v.Hash != "") || v.Known && v.Hash != statussync.HashTools(v.Tools) {
			w.t.Fatalf("%s: %+v", id, v)
		}
		if v.Known {
			w.tools[id] = v.Hash
		}
		if v.Drifted() != (v.Pinned != nil && v.Pinned.Hash != v.Hash) {
			w.t.Fatalf("%s has drifted is %v: %+v", id, v.Drifted(), v)
		}
		if s.raw.Reason == statussync.ReasonToolsChanged && (!v.Drifted() || s.raw.State != statussync.StateRunning || s.raw.Health != statussync.HealthDegraded) {
			w.t.Fatalf("%s is %+v, and its tools %+v", id, s.raw, v)
		}
		if s.raw.State == statussync.StateRunning && s.raw.Health == statussync.HealthHealthy && v.Drifted() {
			w.t.Fatalf("%s is healthy, and its tools are not the pinned ones", id)
		}
	}
}

func (w *watched) do(now time.Time, a action) {
	w.t.Helper()
	w.now = now
	w.eff.Reset()
	a(w.e, now, &w.eff)
	w.check()
}

// tick makes time pass up to now by way of every deadline.
func (w *watched) tick(now time.Time) {
	w.t.Helper()
	for n := 0; ; n++ {
		at, ok := w.e.Deadline()
		if !ok || at.After(now) {
			break
		}
		if n > 100_000 {
			w.t.Fatalf("the deadlines do not end: %v", at)
		}
		if at.Before(w.now) {
			w.t.Fatalf("a deadline in the past: %v, and it is %v", at, w.now)
		}
		w.do(at, func(e *Engine, now time.Time, eff *Effects) { e.Tick(now, eff) })
	}
	w.do(now, func(e *Engine, now time.Time, eff *Effects) { e.Tick(now, eff) })
}

func (w *watched) check() {
	w.t.Helper()
	if at, ok := w.e.Deadline(); ok && at.Before(w.now) {
		w.t.Fatalf("a deadline in the past: %v, and it is %v", at, w.now)
	}
	for _, en := range w.eff.Entries {
		w.entries = append(w.entries, en)
		if en.Timestamp.Before(w.at) || en.Timestamp.After(w.now) {
			w.t.Fatalf("an entry at %v, after one at %v, and it is %v: %s", en.Timestamp, w.at, w.now, en.Details)
		}
		w.at = en.Timestamp
		if en.Details == "" || en.Source == "" {
			w.t.Fatalf("an entry without details or source: %+v", en)
		}
		prev, known := w.last[en.ServerID]
		switch en.Kind {
		case statussync.KindMaintenanceBegin, statussync.KindMaintenanceEnd:
			if begins := en.Kind == statussync.KindMaintenanceBegin; w.open[en.MaintenanceID] == begins {
				w.t.Fatalf("%s of %s twice", en.Kind, en.MaintenanceID)
			} else if begins {
				w.open[en.MaintenanceID] = true
			} else {
				delete(w.open, en.MaintenanceID)
			}
			if en.ServerIDs == nil {
				w.t.Fatalf("an entry without a list: %+v", en)
			}
		case statussync.KindToolDrift:
			if !known || en.Tools == nil || en.Tools.Empty() || en.Tools.Hash == en.Tools.PreviousHash || w.tools[en.ServerID] != en.Tools.PreviousHash {
				w.t.Fatalf("%s: a drift from %q that is none: %+v", en.ServerID, w.tools[en.ServerID], en.Tools)
			}
		case statussync.KindServerAdded:
			if known {
				w.t.Fatalf("%s was added twice", en.ServerID)
			}
			w.last[en.ServerID] = statussync.Status{State: statussync.StateUnknown, Health: statussync.HealthUnknown, Reason: statussync.ReasonNeverSeen, Version: w.gone[en.ServerID]}
		case statussync.KindServerRemoved:
			if !known || en.Version != prev.Version+1 || !en.Previous.Equal(&prev) {
				w.t.Fatalf("%s was removed at version %d, after %d", en.ServerID, en.Version, prev.Version)
			}
			w.gone[en.ServerID] = en.Version
			delete(w.last, en.ServerID)
		case statussync.KindStatus:
			if !known || en.Version != prev.Version+1 || en.Current.Version != en.Version {
				w.t.Fatalf("%s: version %d after %d", en.ServerID, en.Version, prev.Version)
			}
			if !en.Previous.Equal(&prev) {
				w.t.Fatalf("%s: previous is %+v, but %+v was told", en.ServerID, en.Previous, prev)
			}
			if en.Current.Equal(&prev) && prev.Version != w.gone[en.ServerID] {
				w.t.Fatalf("%s: told the same twice: %+v", en.ServerID, prev)
			}
			if want := statussync.StatusChanges(&prev, en.Current); !slices.Equal(en.Changes, want) {
				w.t.Fatalf("%s: changes %v, want %v", en.ServerID, en.Changes, want)
			}
			h := en.Current.Health
			if (h == statussync.HealthHealthy || h == statussync.HealthDegraded) && en.Current.State != statussync.StateRunning &&
				en.Current.Reason != statussync.ReasonAgentSilent {
				w.t.Fatalf("%s: %s goes only with running: %+v", en.ServerID, h, en.Current)
			}
			if !en.Current.State.Valid() || !h.Valid() || !slices.Contains(statussync.Reasons, en.Current.Reason) {
				w.t.Fatalf("%s: no status: %+v", en.ServerID, en.Current)
			}
			w.last[en.ServerID] = *en.Current
		}
	}
	if len(w.last) != len(w.e.servers) {
		w.t.Fatalf("%d servers were told of, there are %d", len(w.last), len(w.e.servers))
	}
	for id, want := range w.last {
		got, ok := w.e.Status(id)
		if !ok || !got.Equal(&want) || got.Version != want.Version {
			w.t.Fatalf("%s is %+v, but %+v was told", id, got, want)
		}
	}
	w.checkWindows()
	w.checkTools()
	touched := map[string]bool{}
	for _, id := range w.e.Touched(nil) {
		touched[id] = true
	}
	for id := range w.seen {
		if _, ok := w.e.Status(id); !ok {
			if !touched[id] {
				w.t.Fatalf("%s was removed, and is not among those that were touched", id)
			}
			delete(w.seen, id)
		}
	}
	for id := range w.e.servers {
		st, _ := w.e.Status(id)
		st.LastHeartbeat = time.Time{} // of its environment
		if st != w.seen[id] && !touched[id] {
			w.t.Fatalf("%s changed from %+v to %+v, and is not among those that were touched", id, w.seen[id], st)
		}
		w.seen[id] = st
	}
	for _, r := range w.eff.Requests {
		n := 0
		if p := r.Plan; p != nil {
			n++
			if (p.Kind != statussync.ProbeNone) != (p.Interval > 0 && p.Timeout > 0 && p.URL != "") {
				w.t.Fatalf("a plan that is none: %+v", p)
			}
		}
		if p := r.Probe; p != nil {
			n++
			if p.After < 0 || p.Timeout < 0 || p.Why == "" {
				w.t.Fatalf("%+v", p)
			}
		}
		if a := r.Ask; a != nil {
			n++
			if a.Timeout <= 0 || a.EnvironmentID == "" {
				w.t.Fatalf("%+v", a)
			}
		}
		if n != 1 {
			w.t.Fatalf("a request has one field: %+v", r)
		}
	}
	for _, s := range w.e.pending {
		if !s.falling || w.e.servers[s.Def.ID] != s || w.e.pending[s.waitAt] != s {
			w.t.Fatalf("%s waits in vain", s.Def.ID)
		}
	}
	if _, ok := w.e.Deadline(); !ok && len(w.e.pending) > 0 {
		w.t.Fatalf("falls wait, and there is no deadline")
	}
	recs := w.e.DirtyFor(w.eff.Entries, nil)
	recs, more := w.e.Dirty(recs, 0)
	if more {
		w.t.Fatalf("more, without a limit")
	}
	for _, r := range recs {
		key := string(r.Kind) + "/" + r.ID
		if r.Data == nil {
			delete(w.store, key)
			continue
		}
		if bytes.Contains(r.Data, []byte("top-secret")) {
			w.t.Fatalf("a secret in a record: %s", r.Data)
		}
		w.store[key] = r
	}
}

// run does what the bytes say, and returns when they end.
func run(t failer, d *dice, on func(now time.Time, w *watched)) *watched {
	e, first := fuzzStart(d)
	w := watch(t, e)
	now := fuzzBegin
	for _, a := range first {
		w.do(now, a)
	}
	for d.more() {
		now = now.Add(d.wait())
		w.tick(now)
		_, list := d.roll(now)
		for _, a := range list {
			w.do(now, a)
			if now = w.e.now; now.After(w.now) {
				t.Fatalf("time went ahead to %v at %v", now, w.now)
			}
		}
		if on != nil {
			on(now, w)
			now = w.now
		}
	}
	w.tick(now.Add(30 * time.Minute))
	return w
}

func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 30, 500).Draw(t, "bytes")
		run(t, &dice{b}, nil)
	})
}

// TestTickLate: whether time passes by every deadline, in small steps or only with what is observed makes no difference.
func TestTickLate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 30, 200).Draw(t, "bytes")
		play := func(pass func(e *Engine, from, to time.Time, eff *Effects)) []string {
			d := &dice{slices.Clone(b)}
			e, first := fuzzStart(d)
			var eff Effects
			now := fuzzBegin
			for _, a := range first {
				a(e, now, &eff)
			}
			for d.more() {
				next := now.Add(d.wait())
				pass(e, now, next, &eff)
				now = next
				_, list := d.roll(now)
				for _, a := range list {
					a(e, now, &eff)
				}
			}
			pass(e, now, now.Add(2*time.Minute), &eff)
			e.Tick(now.Add(20*time.Minute), &eff)
			var out []string
			for _, en := range eff.Entries {
				out = append(out, string(en.AppendJSON(nil)))
			}
			for _, r := range eff.Requests {
				switch {
				case r.Probe != nil:
					out = append(out, fmt.Sprintf("%+v", *r.Probe))
				case r.Ask != nil:
					out = append(out, fmt.Sprintf("%+v", *r.Ask))
				}
			}
			return out
		}
		exact := play(func(e *Engine, _, to time.Time, eff *Effects) {
			for at, ok := e.Deadline(); ok && !at.After(to); at, ok = e.Deadline() {
				e.Tick(at, eff)
			}
		})
		steps := play(func(e *Engine, from, to time.Time, eff *Effects) {
			for at := from; !at.After(to); at = at.Add(50 * time.Millisecond) {
				e.Tick(at, eff)
			}
		})
		late := play(func(*Engine, time.Time, time.Time, *Effects) {})
		for _, other := range []struct {
			how  string
			list []string
		}{{"in steps", steps}, {"late", late}} {
			for i := range max(len(exact), len(other.list)) {
				if at(exact, i) != at(other.list, i) {
					t.Fatalf("by deadlines and %s differ at %d:\n%s\n%s", other.how, i, at(exact, i), at(other.list, i))
				}
			}
		}
	})
}

func at(list []string, i int) string {
	if i < len(list) {
		return list[i]
	}
	return "nothing"
}

// TestNothingByTimeBetweenDeadlines: looking at everything again when nothing is due finds nothing.
func TestNothingByTimeBetweenDeadlines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 30, 250).Draw(t, "bytes")
		run(t, &dice{b}, func(now time.Time, w *watched) {
			look := func(when string) {
				w.t.Helper()
				w.do(w.now, func(e *Engine, now time.Time, eff *Effects) {
					e.evalAll(now, eff)
					if len(eff.Entries) > 0 {
						w.t.Fatalf("%s: looking again told %s", when, eff.Entries[0].AppendJSON(nil))
					}
				})
			}
			look("at the same time")
			next, ok := w.e.Deadline()
			for range 3 {
				mid := now.Add(5 * time.Second)
				if ok && !mid.Before(next) {
					mid = now.Add(next.Sub(now) / 2)
				}
				w.tick(mid)
				look("before the next deadline")
				now = mid
			}
		})
	})
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
