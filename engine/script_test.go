package engine_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
	"github.com/agentopia/statussync/recur"
)

// The scripts in testdata/*.txt pin the rules of docs/domain.md: each line is something that is seen or done, and the
// indented lines below it are everything that follows from it. `go test ./engine -run TestScripts -rewrite` writes what
// the engine does today below each line, so that a change of behaviour is a change of text that a person reads.
//
// # Time
//
// Time is virtual and starts at 0s. A line may begin with @90s (at that time) or +30s (that much later); without it,
// it happens at the same time as the line before. On the way every deadline of the engine is met, one by one; what
// follows from them stands below the line that made time pass, each with its own time. `advance 30s` only lets time
// pass. `repeat 5 every 30s: A; B` does A and B five times, the first time 30 s from now.
//
// # Definitions
//
//	environment box-1 token agent=http://10.0.0.1:30000 address=10.0.0.1 origin=config
//	server weather env=box-1 desired=running probe=http://10.0.0.1/h
//	    other words of a server: endpoint= transport= kind= path= interval= timeout= retries= rise= grace= slow=
//	    expect= container= labels=k:v,k:v header=k:v needs_config= disabled origin=
//	remove weather origin=config · remove-environment box-1 origin=config
//	full origin=config servers=a,b environments=box-1     all that this registry defines now
//	policy late_after=5m lost_after=15m
//
// # Observations
//
//	heartbeat box-1                          a sign of life without a list of containers
//	heartbeat box-1 empty                    … with a complete list that is empty
//	heartbeat box-1 weather=running(up=2h..3h, healthy, port=30001) db=exited(137, ago=5m..6m)
//	heartbeat box-1 partial weather=running  … with a list that proves nothing about who is missing
//	    id:weather=running is named by the platform's id, doc:weather=running by name in the platform's form
//	answer box-1 …                           the same, when the agent was asked
//	event box-1 weather=exited(137)          the same, told at once between two heartbeats
//	agent-failed box-1 refused               asked, and no answer (or: nobody)
//	record weather stopping [error="…"] [echo]
//	database away [origin=config] · database back     there is no connection to it, and there is one again
//	row box-1 at=-20s read=1 · row weather at=50s    a heartbeat that the database tells of, by its own time
//	probe weather ok|alive|fail [cause] [latency=3s] [auth=required] [throttled] [began=9s]
//	    a failure with refused, timeout, unreachable, reset or dns is one by connection
//	tools weather a=1 b=1     the tools that it lists, each with its hash (· tools weather none) · tools weather failed timeout
//	pin weather [hash=HASH|hash=wrong] [by=ann] · unpin weather    (hash=HASH: that of the current set)
//	override weather running degraded for=2h by=ann note="…" · override-clear weather by=ann
//	maintenance w1 servers=a environments=box-1 labels=k:v from=0s to=1h [note="…"] [by=ann] · maintenance-end w1 [by=ann]
//	maintenance w2 servers=a from=26h for=4h rrule=FREQ:DAILY;COUNT:3 zone=Europe/Berlin · maintenance-end w2 this-time
//	    (a rule is written with : for =)
//
// # Life of the service
//
//	restart down=1h      stop, and start again from what was stored
//	kill down=1h         the same, but nothing was stored since the last restart, except what belongs to no server
//	gap 10m              the process was suspended
//
// # Questions
//
//	explain weather · status weather · agent box-1 · windows
//	hide plans requests  (from here on, what is not the point is not shown) · show plans requests
//
// # What follows
//
//	5s weather v2 running/healthy ok -> error/unhealthy probe_failing cause=refused (heartbeat) probes fail: …
//	5s plan weather http http://10.0.0.1/h every 10s · 5s probe weather after 1s to confirm · 5s ask box-1
//	5s error not_found: … · 5s unknown word "…"
var rewrite = flag.Bool("rewrite", false, "write what the engine does into testdata/*.txt")

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 67 {
		t.Fatalf("%d scripts in testdata (%v); there were more", len(files), err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			t.Parallel()
			runScript(t, f)
		})
	}
}

func runScript(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(text), "# docs/domain.md") {
		t.Errorf("%s does not begin with the rule that it shows: # docs/domain.md, …", file)
	}
	got, lines, err := play(string(text))
	if err != nil {
		t.Fatalf("%s:%v", file, err)
	}
	if got == string(text) {
		return
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want := strings.Split(string(text), "\n")
	for i, g := range strings.Split(got, "\n") {
		w := "(the end)"
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Fatalf("%s:%d: after %q\n got %s\nwant %s\n(-rewrite takes what it got)", file, i+1, lines[i], g, w)
		}
	}
	t.Fatalf("%s expects more than happens, from line %d on", file, strings.Count(got, "\n")+1)
}

// play runs a script and returns it with what really follows below each line; lines[i] is the script line that line i
// of the result belongs to.
func play(text string) (out string, lines []string, err error) {
	var b strings.Builder
	emit := func(s, owner string) {
		b.WriteString(s)
		b.WriteByte('\n')
		lines = append(lines, owner)
	}
	sc := newScript()
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.HasPrefix(line, "    ") {
			continue // an expectation
		}
		emit(line, line)
		if cmd := strings.TrimSpace(line); cmd == "" || strings.HasPrefix(cmd, "#") {
			continue
		}
		sc.out = nil
		if err := sc.do(line); err != nil {
			return "", nil, fmt.Errorf("%d: %q: %w", i+1, line, err)
		}
		for _, o := range sc.out {
			emit("    "+o, line)
		}
	}
	return b.String(), append(lines, "", ""), nil
}

var scriptZero = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

type script struct {
	e       *engine.Engine
	policy  engine.Policy
	now     time.Time
	eff     engine.Effects
	out     []string
	hide    map[string]bool
	store   map[string]statussync.Record
	servers map[string]statussync.Server
	envs    map[string]statussync.Environment
	told    map[string]statussync.Status // as the entries have it
}

func newScript() *script {
	sc := &script{
		policy: engine.DefaultPolicy(), now: scriptZero, hide: map[string]bool{}, store: map[string]statussync.Record{},
		servers: map[string]statussync.Server{}, envs: map[string]statussync.Environment{}, told: map[string]statussync.Status{},
	}
	sc.start(time.Time{})
	return sc
}

func (sc *script) start(alive time.Time) {
	e, err := engine.New(sc.policy)
	if err != nil {
		panic(err)
	}
	sc.e = e
	e.SetRecurrence(recur.Parse)
	for _, k := range slices.Sorted(maps.Keys(sc.store)) {
		if err := e.Restore(sc.store[k]); err != nil {
			panic(err)
		}
	}
	e.Start(sc.now, alive, &sc.eff)
}

func (sc *script) do(line string) error {
	words, err := splitWords(line)
	if err != nil {
		return err
	}
	switch w := words[0]; {
	case strings.HasPrefix(w, "@"):
		d, err := time.ParseDuration(w[1:])
		if err != nil {
			return err
		}
		if scriptZero.Add(d).Before(sc.now) {
			return fmt.Errorf("time is %s already", short(sc.now.Sub(scriptZero)))
		}
		sc.pass(scriptZero.Add(d))
		words = words[1:]
	case strings.HasPrefix(w, "+"):
		d, err := time.ParseDuration(w[1:])
		if err != nil {
			return err
		}
		sc.pass(sc.now.Add(d))
		words = words[1:]
	}
	if len(words) == 0 {
		return nil
	}
	if words[0] == "repeat" {
		head, body, ok := strings.Cut(line[strings.Index(line, "repeat"):], ":")
		h := strings.Fields(head)
		if !ok || len(h) != 4 || h[2] != "every" {
			return fmt.Errorf("say: repeat 5 every 30s: …")
		}
		n, err := strconv.Atoi(h[1])
		if err != nil {
			return err
		}
		every, err := time.ParseDuration(h[3])
		if err != nil {
			return err
		}
		for range n {
			sc.pass(sc.now.Add(every))
			for _, cmd := range strings.Split(body, ";") {
				if err := sc.do(strings.TrimSpace(cmd)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := sc.command(words[0], words[1:]); err != nil {
		return err
	}
	sc.flush()
	return sc.check()
}

// pass lets time pass: every deadline on the way is met, as the hub's one timer would.
func (sc *script) pass(to time.Time) {
	for n := 0; ; n++ {
		at, ok := sc.e.Deadline()
		if !ok || at.After(to) {
			break
		}
		if n > 100_000 {
			panic("deadlines without end")
		}
		if at.After(sc.now) {
			sc.now = at
		}
		sc.e.Tick(sc.now, &sc.eff)
		sc.flush()
	}
	sc.now = to
	sc.e.Tick(sc.now, &sc.eff)
	sc.flush()
}

func (sc *script) see(o statussync.Observation) { sc.e.Step(sc.now, o, &sc.eff) }

func (sc *script) command(cmd string, args []string) error {
	a := newArgs(args)
	switch cmd {
	case "environment":
		env := statussync.Environment{
			ID: a.next(), Address: a.get("address"), AgentURL: a.get("agent"), HasToken: a.flag("token"),
			Origin: statussync.Origin(a.or("origin", "config")),
		}
		env.Name = env.ID
		if old, ok := sc.envs[env.ID]; !ok || old.Origin == env.Origin { // else it will be refused
			sc.envs[env.ID] = env
		}
		sc.see(&statussync.RegistryUpdate{Origin: env.Origin, Environments: []statussync.Environment{env}})
	case "server":
		s, err := parseServer(a)
		if err != nil {
			return err
		}
		if old, ok := sc.servers[s.ID]; !ok || old.Origin == s.Origin {
			sc.servers[s.ID] = s
		}
		sc.see(&statussync.RegistryUpdate{Origin: s.Origin, Servers: []statussync.Server{s}})
	case "remove":
		sc.see(&statussync.RegistryUpdate{RemovedServers: []string{a.next()}, Origin: statussync.Origin(a.or("origin", "config"))})
	case "remove-environment":
		sc.see(&statussync.RegistryUpdate{RemovedEnvironments: []string{a.next()}, Origin: statussync.Origin(a.or("origin", "config"))})
	case "full":
		u := &statussync.RegistryUpdate{Full: true, Origin: statussync.Origin(a.or("origin", "config"))}
		for _, id := range a.list("servers") {
			u.Servers = append(u.Servers, sc.servers[id])
		}
		for _, id := range a.list("environments") {
			u.Environments = append(u.Environments, sc.envs[id])
		}
		sc.see(u)
	case "policy":
		sc.policy.LateAfter, sc.policy.LostAfter = a.duration("late_after"), a.duration("lost_after")
		if err := sc.e.SetPolicy(sc.now, sc.policy, &sc.eff); err != nil {
			return err
		}
	case "heartbeat", "answer", "event":
		r := &statussync.AgentReport{EnvironmentID: a.next(), Via: statussync.ViaPush}
		switch cmd {
		case "answer":
			r.Via = statussync.ViaPull
		case "event":
			r.Via = statussync.ViaEvent
		}
		partial, empty := a.flag("partial"), a.flag("empty")
		for _, w := range a.rest() {
			c, err := parseContainer(w)
			if err != nil {
				return err
			}
			r.Containers = append(r.Containers, c)
		}
		switch {
		case partial:
			r.List = statussync.ListPartial
		case empty || len(r.Containers) > 0:
			r.List = statussync.ListComplete
		}
		sc.see(r)
	case "agent-failed":
		f := &statussync.AgentFailed{EnvironmentID: a.next(), Cause: a.next(), StartedAt: sc.now}
		if f.Cause == "nobody" {
			f.Cause, f.NobodyToAsk = "", true
		}
		sc.see(f)
	case "record":
		sc.see(&statussync.RecordSeen{ServerID: a.next(), Word: a.next(), Error: a.get("error"), Echo: a.flag("echo")})
	case "database":
		origin := statussync.Origin(a.or("origin", "config"))
		switch w := a.next(); w {
		case "away", "back":
			sc.see(&statussync.DatabaseConnection{Origin: origin, Connected: w == "back"})
		default:
			return fmt.Errorf("a database is away or back, not %q", w)
		}
	case "row":
		id := a.next()
		r := &statussync.RowHeartbeat{At: scriptZero.Add(a.duration("at")), Read: uint64(a.int("read"))}
		if _, ok := sc.servers[id]; ok {
			r.ServerID = id
		} else {
			r.EnvironmentID = id
		}
		sc.see(r)
	case "probe":
		r, err := sc.parseProbe(a)
		if err != nil {
			return err
		}
		sc.see(r)
	case "tools":
		o := &statussync.ToolsSeen{ServerID: a.next(), At: sc.now}
		if a.flag("failed") {
			o.Error = a.next()
		} else if !a.flag("none") {
			for _, w := range a.rest() {
				name, hash, _ := strings.Cut(w, "=")
				o.Tools = append(o.Tools, statussync.ToolRef{Name: name, Hash: hash})
			}
		}
		sc.see(o)
	case "pin":
		o := &statussync.ToolsPin{ServerID: a.next(), Hash: a.get("hash"), Actor: a.get("by")}
		if o.Hash == "HASH" {
			v, _ := sc.e.Tools(o.ServerID)
			o.Hash = v.Hash
		}
		sc.see(o)
	case "unpin":
		sc.see(&statussync.ToolsUnpin{ServerID: a.next(), Actor: a.get("by")})
	case "override":
		o := statussync.Override{Note: a.get("note"), Actor: a.get("by")}
		id := a.next()
		o.State = statussync.State(a.next())
		o.Health = statussync.Health(a.next())
		if d := a.duration("for"); d != 0 {
			o.SetAt, o.ExpiresAt = sc.now, sc.now.Add(d)
		}
		sc.see(&statussync.OverrideSet{ServerID: id, Override: o})
	case "override-clear":
		sc.see(&statussync.OverrideClear{ServerID: a.next(), Actor: a.get("by")})
	case "maintenance":
		sc.see(&statussync.MaintenanceSet{Window: statussync.Maintenance{
			ID: a.next(), ServerIDs: a.list("servers"), EnvironmentIDs: a.list("environments"), Labels: a.labels("labels"),
			StartsAt: scriptZero.Add(a.duration("from")), EndsAt: sc.at(a.duration("to")), Duration: a.duration("for"),
			RRule: strings.ReplaceAll(a.get("rrule"), ":", "="), TimeZone: a.get("zone"), Note: a.get("note"), Actor: a.get("by"),
		}})
	case "maintenance-end":
		sc.see(&statussync.MaintenanceEnd{OccurrenceOnly: a.flag("this-time"), Actor: a.get("by"), ID: a.next()})
	case "windows":
		for _, v := range sc.e.Maintenances() {
			t := "window " + v.Window.ID
			if v.Open {
				t += " open"
			}
			if !v.NextBegin.IsZero() {
				t += ", begins " + short(v.NextBegin.Sub(scriptZero))
			}
			sc.say("%s, ends %s, %d servers", t, short(v.NextEnd.Sub(scriptZero)), v.Servers)
		}
	case "advance":
		d, err := time.ParseDuration(a.next())
		if err != nil {
			return err
		}
		sc.pass(sc.now.Add(d))
	case "restart":
		sc.save(func(statussync.RecordKind) bool { return true })
		alive := sc.now
		sc.now = sc.now.Add(a.duration("down"))
		sc.start(alive)
	case "kill":
		sc.save(func(k statussync.RecordKind) bool {
			return k == statussync.RecordEngine || k == statussync.RecordMaintenance || k == statussync.RecordTools
		})
		alive := sc.now
		sc.now = sc.now.Add(a.duration("down"))
		sc.start(alive)
	case "gap":
		d, err := time.ParseDuration(a.next())
		if err != nil {
			return err
		}
		sc.now = sc.now.Add(d)
		sc.e.Gap(sc.now, d, &sc.eff)
	case "explain":
		return sc.explain(a.next(), a)
	case "status":
		id := a.next()
		st, ok := sc.e.Status(id)
		if !ok {
			return fmt.Errorf("no server %q", id)
		}
		sc.say("%s", sc.facts(&st))
	case "agent":
		v, ok := sc.e.Environment(a.next(), sc.now)
		if !ok {
			return fmt.Errorf("no such environment")
		}
		sc.say("agent %s, interval %s, late after %s, lost after %s", v.Agent, short(v.Interval), short(v.LateAfter), short(v.LostAfter))
		for _, d := range v.Discovered {
			sc.say("discovered %s: %s, port %d", d.Container, d.Word, d.PublicPort)
		}
	case "hide", "show":
		for w := a.next(); w != ""; w = a.next() {
			sc.hide[w] = cmd == "hide"
		}
	default:
		return fmt.Errorf("no such command: %s", cmd)
	}
	return a.done()
}

// at is a time of the script, and the zero time for 0.
func (sc *script) at(d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return scriptZero.Add(d)
}

func (sc *script) say(format string, args ...any) {
	sc.out = append(sc.out, short(sc.now.Sub(scriptZero))+" "+fmt.Sprintf(format, args...))
}

// flush writes the effects down and checks what must hold of every entry.
func (sc *script) flush() {
	for _, en := range sc.eff.Entries {
		if !en.Timestamp.Equal(sc.now) {
			sc.say("WRONG: the timestamp is %s", short(en.Timestamp.Sub(scriptZero)))
		}
		switch en.Kind {
		case statussync.KindStatus:
			sc.say("%s v%d %s -> %s (%s) %s", en.ServerID, en.Version, words(en.Previous, false), words(en.Current, true), en.Source, en.Details)
			prev, known := sc.told[en.ServerID]
			if !known {
				prev = statussync.Status{State: statussync.StateUnknown, Health: statussync.HealthUnknown, Reason: statussync.ReasonNeverSeen}
			} else if prev.Equal(en.Current) && prev.State != "" {
				sc.say("WRONG: an update without a change")
			}
			if prev.State != "" && !prev.Equal(en.Previous) {
				sc.say("WRONG: the previous status was %s", words(&prev, false))
			}
			if en.Version != prev.Version+1 {
				sc.say("WRONG: the version before was %d", prev.Version)
			}
			if !slices.Equal(en.Changes, statussync.StatusChanges(en.Previous, en.Current)) {
				sc.say("WRONG: changes are %v", en.Changes)
			}
			sc.told[en.ServerID] = *en.Current
		case statussync.KindServerRemoved:
			sc.say("%s %s v%d, last %s (%s) %s", en.Kind, en.ServerID, en.Version, words(en.Previous, false), en.Source, en.Details)
			sc.told[en.ServerID] = statussync.Status{Version: en.Version}
		case statussync.KindToolDrift:
			sc.say("%s %s (%s) %s", en.Kind, en.ServerID, en.Source, en.Details)
			if en.Tools == nil || en.Tools.Empty() || en.Tools.Hash == en.Tools.PreviousHash {
				sc.say("WRONG: nothing differs: %+v", en.Tools)
			}
		case statussync.KindServerAdded, statussync.KindServerChanged:
			sc.say("%s %s%s (%s) %s", en.Kind, en.ServerID, listed(en.Changes), en.Source, en.Details)
		default:
			t := string(en.Kind)
			if id := en.EnvironmentID + en.MaintenanceID; id != "" {
				t += " " + id
			}
			sc.say("%s%s (%s) %s", t, listed(en.ServerIDs), en.Source, en.Details)
		}
	}
	for _, r := range sc.eff.Requests {
		switch {
		case r.Plan != nil && (sc.hide["plans"] || sc.hide["requests"]), sc.hide["requests"]:
		case r.Plan != nil:
			sc.say("%s", planText(r.Plan))
		case r.Probe != nil:
			why := "to " + r.Probe.Why
			if r.Probe.Why != "confirm" {
				why = "for a " + r.Probe.Why
			}
			sc.say("probe %s %s %s%s", r.Probe.ServerID, when(r.Probe.After), why, within(r.Probe.Timeout))
		case r.Ask != nil:
			sc.say("ask %s %s at %s%s%s", r.Ask.EnvironmentID, when(r.Ask.After), r.Ask.URL, within(r.Ask.Timeout), trusted(r.Ask.Trusted))
		}
	}
	for _, err := range sc.eff.Errors {
		sc.say("error %s: %v", statussync.CodeOf(err), err)
	}
	for _, w := range sc.eff.Unknown {
		sc.say("unknown word %q", w)
	}
	if sc.eff.Foreign > 0 {
		sc.say("%d foreign", sc.eff.Foreign)
	}
	sc.eff.Reset()
}

// check is what must hold after every line: an explanation agrees with the status, and nothing that is due waits.
func (sc *script) check() error {
	if at, ok := sc.e.Deadline(); ok && !at.After(sc.now) {
		return fmt.Errorf("a deadline at %s was left behind", short(at.Sub(scriptZero)))
	}
	for id := range sc.e.ServerIDs() {
		x, _ := sc.e.Explain(id, sc.now)
		for _, r := range x.Rules {
			if r.Won && r.Reason != x.Status.Reason {
				return fmt.Errorf("%s is %s, but rule %s explains %s", id, words(&x.Status, false), r.Rule, r.Reason)
			}
		}
		if told := sc.told[id]; !told.Equal(&x.Status) || told.Version != x.Status.Version {
			return fmt.Errorf("%s is %s, but was told as %s", id, words(&x.Status, false), words(&told, false))
		}
	}
	return nil
}

// save keeps what the engine wants to find again.
func (sc *script) save(keep func(statussync.RecordKind) bool) {
	for more := true; more; {
		var recs []statussync.Record
		recs, more = sc.e.Dirty(nil, 2)
		for _, r := range recs {
			k := string(r.Kind) + " " + r.ID
			if !keep(r.Kind) {
				continue
			}
			if r.Data == nil {
				delete(sc.store, k)
			} else {
				sc.store[k] = r
			}
		}
	}
}

func (sc *script) explain(id string, a *args) error {
	x, ok := sc.e.Explain(id, sc.now)
	if !ok {
		return fmt.Errorf("no server %q", id)
	}
	if a.flag("evidence") {
		for _, ev := range x.Evidence {
			t := ev.Kind + ": " + ev.Value
			if !ev.AssertedAt.IsZero() {
				t += ", at " + short(ev.AssertedAt.Sub(scriptZero))
			}
			if !ev.Fresh {
				t += " (does not count)"
			}
			sc.say("%s", t)
		}
	}
	for _, r := range x.Rules {
		var t []string
		for _, w := range []string{string(r.State), string(r.Health), string(r.Reason)} {
			if w != "" {
				t = append(t, w)
			}
		}
		switch {
		case r.Won:
			sc.say("rule %s WON: %s: %s", r.Rule, strings.Join(t, " "), r.Why)
		case r.State != "" || r.Health != "" && r.Reason != "":
			sc.say("rule %s: %s: %s", r.Rule, strings.Join(t, " "), r.Why)
		}
	}
	return a.done()
}

func (sc *script) facts(st *statussync.Status) string {
	t := words(st, true)
	add := func(name, v string) { t += " " + name + "=" + v }
	at := func(name string, v time.Time) {
		if !v.IsZero() {
			add(name, short(v.Sub(scriptZero)))
		}
	}
	add("version", strconv.FormatUint(st.Version, 10))
	add("availability", string(st.Availability()))
	at("since", st.Since)
	at("last_checked", st.LastChecked)
	at("last_started", st.LastStarted)
	at("last_heartbeat", st.LastHeartbeat)
	if up := st.UptimeSeconds(sc.now); up >= 0 {
		add("uptime", short(time.Duration(up)*time.Second))
	}
	if st.Latency > 0 {
		add("latency", short(st.Latency))
	}
	if st.Auth != "" {
		add("auth", string(st.Auth))
	}
	add("checks", strconv.FormatUint(st.CheckCount, 10))
	add("errors", strconv.FormatUint(st.ErrorCount, 10))
	if st.LastError != "" {
		add("last_error", strconv.Quote(st.LastError))
	}
	if st.Override != nil {
		at("override_until", st.Override.ExpiresAt)
	}
	return t
}

func planText(p *statussync.ProbePlan) string {
	if p.Removed {
		return "plan " + p.ServerID + " removed"
	}
	if p.Kind == statussync.ProbeNone {
		return "plan " + p.ServerID + " none"
	}
	t := fmt.Sprintf("plan %s %s %s every %s%s%s", p.ServerID, p.Kind, p.URL, short(p.Interval), within(p.Timeout), trusted(p.Trusted))
	if p.Transport != "" && p.Transport != statussync.TransportStreamableHTTP {
		t += " over " + string(p.Transport)
	}
	if p.Expect != "" {
		t += " expect=" + p.Expect
	}
	for _, k := range slices.Sorted(maps.Keys(p.Headers)) {
		t += " header=" + k + ":" + p.Headers[k]
	}
	return t
}

func when(d time.Duration) string {
	if d == 0 {
		return "now"
	}
	return "after " + short(d)
}

func within(d time.Duration) string {
	if d == 0 || d == 10*time.Second {
		return "" // as usual
	}
	return " within " + short(d)
}

func trusted(yes bool) string {
	if yes {
		return ""
	}
	return " untrusted"
}

func listed(ids []string) string { return " [" + strings.Join(ids, " ") + "]" }

func words(s *statussync.Status, cause bool) string {
	t := string(s.State) + "/" + string(s.Health) + " " + string(s.Reason)
	if s.Marks != 0 {
		t += " [" + strings.Join(s.Marks.Strings(), " ") + "]"
	}
	if cause && s.Cause != "" {
		t += " cause=" + s.Cause
	}
	return t
}

// short writes 1h30m where Go writes 1h30m0s.
func short(d time.Duration) string {
	t := d.String()
	if strings.HasSuffix(t, "m0s") {
		t = strings.TrimSuffix(t, "0s")
	}
	if strings.HasSuffix(t, "h0m") {
		t = strings.TrimSuffix(t, "0m")
	}
	return t
}

// splitWords splits at spaces outside of quotes and parentheses.
func splitWords(line string) ([]string, error) {
	var out []string
	var cur strings.Builder
	quoted, depth, any := false, 0, false
	for _, r := range line {
		switch {
		case r == '"':
			quoted, any = !quoted, true
			continue
		case quoted:
		case r == '(':
			depth++
		case r == ')':
			depth--
		case r == ' ' && depth == 0:
			if any {
				out = append(out, cur.String())
				cur.Reset()
				any = false
			}
			continue
		}
		cur.WriteRune(r)
		any = true
	}
	if quoted || depth != 0 {
		return nil, fmt.Errorf("a quote or parenthesis is not closed")
	}
	if any {
		out = append(out, cur.String())
	}
	return out, nil
}

// args are the words of a line: named ones (k=v) are taken by name, others in their order.
type args struct {
	words []string
	err   error
}

func newArgs(w []string) *args { return &args{words: w} }

func (a *args) take(i int) string {
	w := a.words[i]
	a.words = slices.Delete(slices.Clone(a.words), i, i+1)
	return w
}

func (a *args) next() string {
	for i, w := range a.words {
		if !strings.Contains(w, "=") {
			return a.take(i)
		}
	}
	return ""
}

func (a *args) get(name string) string {
	for i, w := range a.words {
		if v, ok := strings.CutPrefix(w, name+"="); ok {
			a.take(i)
			return v
		}
	}
	return ""
}

func (a *args) or(name, otherwise string) string {
	if v := a.get(name); v != "" {
		return v
	}
	return otherwise
}

func (a *args) flag(name string) bool {
	for i, w := range a.words {
		if w == name {
			a.take(i)
			return true
		}
	}
	return false
}

func (a *args) duration(name string) time.Duration {
	v := a.get(name)
	if v == "" {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		a.err = err
	}
	return d
}

func (a *args) int(name string) int {
	v := a.get(name)
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		a.err = err
	}
	return n
}

func (a *args) list(name string) []string {
	if v := a.get(name); v != "" {
		return strings.Split(v, ",")
	}
	return nil
}

func (a *args) labels(name string) map[string]string {
	var m map[string]string
	for _, kv := range a.list(name) {
		k, v, _ := strings.Cut(kv, ":")
		if m == nil {
			m = map[string]string{}
		}
		m[k] = v
	}
	return m
}

func (a *args) rest() []string {
	w := a.words
	a.words = nil
	return w
}

func (a *args) done() error {
	if a.err != nil {
		return a.err
	}
	if len(a.words) > 0 {
		return fmt.Errorf("not understood: %s", strings.Join(a.words, " "))
	}
	return nil
}

func parseServer(a *args) (statussync.Server, error) {
	s := statussync.Server{
		ID: a.next(), EnvironmentID: a.get("env"), Container: a.get("container"), Endpoint: a.get("endpoint"),
		Transport: statussync.Transport(a.or("transport", "streamable-http")), Type: a.get("type"),
		Desired: statussync.Desired(a.get("desired")), Labels: a.labels("labels"),
		Origin: statussync.Origin(a.or("origin", "config")), NeedsConfig: a.get("needs_config"), Disabled: a.flag("disabled"),
		Probe: statussync.ProbeSpec{
			Kind: statussync.ProbeKind(a.get("kind")), URL: a.get("probe"), Path: a.get("path"), Interval: a.duration("interval"),
			Timeout: a.duration("timeout"), Rise: a.int("rise"), StartGrace: a.duration("grace"),
			SlowAfter: a.duration("slow"), Expect: a.get("expect"), Headers: a.labels("header"),
		},
	}
	if r := a.get("retries"); r != "" {
		n, err := strconv.Atoi(r)
		if err != nil {
			return s, err
		}
		s.Probe.MaxRetries = &n
	}
	s.Name = s.ID
	return s, nil
}

// parseContainer reads name=word(arg, …).
func parseContainer(w string) (statussync.ContainerReport, error) {
	var c statussync.ContainerReport
	name, what, ok := strings.Cut(w, "=")
	if !ok {
		return c, fmt.Errorf("%q is not name=word", w)
	}
	if id, ok := strings.CutPrefix(name, "id:"); ok {
		c.Shape, c.ServerID, c.Names = statussync.ShapeDocumented, id, []string{id}
	} else if n, ok := strings.CutPrefix(name, "doc:"); ok {
		c.Shape, c.Names = statussync.ShapeDocumented, []string{n}
	} else {
		c.Names = strings.Split(name, "|")
	}
	word, in, _ := strings.Cut(strings.TrimSuffix(what, ")"), "(")
	c.Word, c.Text = word, what
	if in == "" {
		return c, nil
	}
	for _, arg := range strings.Split(in, ",") {
		arg = strings.TrimSpace(arg)
		k, v, _ := strings.Cut(arg, "=")
		var err error
		switch k {
		case "healthy", "unhealthy", "starting":
			c.HealthCheck = k
		case "up":
			c.StartAge, err = parseRange(v)
		case "ago":
			c.ExitAge, err = parseRange(v)
		case "port":
			c.PublicPort, err = strconv.Atoi(v)
		default:
			var n int
			n, err = strconv.Atoi(arg)
			c.ExitCode = &n
		}
		if err != nil {
			return c, err
		}
	}
	return c, nil
}

func parseRange(v string) (r statussync.AgeRange, err error) {
	lo, hi, ok := strings.Cut(v, "..")
	if !ok {
		return r, fmt.Errorf("%q is not 1h..2h", v)
	}
	if r.Min, err = time.ParseDuration(lo); err != nil {
		return r, err
	}
	r.Max, err = time.ParseDuration(hi)
	return r, err
}

func (sc *script) parseProbe(a *args) (*statussync.ProbeResult, error) {
	r := &statussync.ProbeResult{
		ServerID: a.next(), StartedAt: sc.now, FinishedAt: sc.now, Latency: a.duration("latency"),
		Auth: statussync.Auth(a.get("auth")), Throttled: a.flag("throttled"),
	}
	if b := a.get("began"); b != "" {
		d, err := time.ParseDuration(b)
		if err != nil {
			return nil, err
		}
		r.StartedAt = scriptZero.Add(d)
	}
	switch w := a.next(); w {
	case "ok":
		r.Outcome = statussync.OutcomeSuccess
	case "alive":
		r.Outcome = statussync.OutcomeAlive
	case "fail":
		r.Outcome = statussync.OutcomeFailure
	default:
		return nil, fmt.Errorf("a probe ends in ok, alive or fail, not in %q", w)
	}
	r.Cause = a.next()
	switch r.Cause {
	case "refused", "timeout", "unreachable", "reset", "dns":
		r.ByConnect = r.Outcome == statussync.OutcomeFailure
	case "not_mcp":
		r.NotMCP, r.HTTPStatus = true, 200
	}
	if code, ok := strings.CutPrefix(r.Cause, "http_"); ok {
		n, err := strconv.Atoi(code)
		if err != nil {
			return nil, err
		}
		r.HTTPStatus = n
	}
	return r, nil
}
