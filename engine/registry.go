package engine

import (
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// registryUpdate takes what one registry defines.
func (e *Engine) registryUpdate(now time.Time, u *statussync.RegistryUpdate, eff *Effects) {
	for i := range u.Environments {
		e.putEnvironment(now, &u.Environments[i], eff)
	}
	for i := range u.Servers {
		e.putServer(now, &u.Servers[i], eff)
	}
	removedServers, removedEnvs := slices.Clone(u.RemovedServers), slices.Clone(u.RemovedEnvironments)
	if u.Full {
		told := map[string]bool{}
		for i := range u.Servers {
			told[u.Servers[i].ID] = true
		}
		for id, s := range e.servers {
			if s.Def.Origin == u.Origin && !told[id] {
				removedServers = append(removedServers, id)
			}
		}
		told = map[string]bool{}
		for i := range u.Environments {
			told[u.Environments[i].ID] = true
		}
		for id, env := range e.envs {
			if env.Def.Origin == u.Origin && !told[id] && !env.implicit {
				removedEnvs = append(removedEnvs, id)
			}
		}
	}
	slices.Sort(removedServers)
	slices.Sort(removedEnvs)
	for _, id := range slices.Compact(removedServers) {
		e.removeServer(now, id, u.Origin, eff)
	}
	for _, id := range slices.Compact(removedEnvs) {
		env := e.envs[id]
		switch {
		case env == nil || env.implicit:
			eff.fail(statussync.NotFound("environment", id))
		case env.Def.Origin != u.Origin:
			eff.fail(&statussync.Error{Code: statussync.CodeConflict, Location: id, Detail: "environment " + strconv.Quote(id) + " is defined by " + string(env.Def.Origin)})
		default:
			e.removeEnvironment(now, id, eff)
		}
	}
	e.settle(now, eff) // a server that waited for a question may have gone where there is none
}

func (e *Engine) putEnvironment(now time.Time, def *statussync.Environment, eff *Effects) {
	if def.ID == "" {
		eff.fail(statussync.Invalid("id", "an environment without an id"))
		return
	}
	env := e.envs[def.ID]
	if env == nil {
		env = e.newEnvironment(def, now)
	} else if env.Def.Origin != def.Origin && !env.implicit {
		eff.fail(&statussync.Error{Code: statussync.CodeConflict, Location: def.ID, Detail: "environment " + strconv.Quote(def.ID) + " is defined by " + string(env.Def.Origin) + " already"})
		return
	}
	same := *env.Def == *def && !env.implicit
	env.implicit = false
	if same && !env.FirstSeen.Equal(now) {
		return
	}
	env.Def = def
	e.touchEnv(env)
	e.evalEnv(env, now, eff)
	for _, s := range env.servers {
		e.refreshTarget(s)
		e.eval(s, now, statussync.SourceSystem, eff)
	}
}

func (e *Engine) newEnvironment(def *statussync.Environment, now time.Time) *environment {
	env := &environment{envMemory: envMemory{Def: def, FirstSeen: now, BeatSkip: e.skipped(def.Origin, now)}, byContainer: map[string]*server{}}
	e.addEnvironment(env)
	return env
}

func (e *Engine) addEnvironment(env *environment) {
	env.node = dueNode{kind: dueEnv, index: -1, env: env}
	delete(e.dirtyDelete, recordKey{statussync.RecordEnvironment, env.Def.ID})
	e.envs[env.Def.ID] = env
	i, _ := slices.BinarySearchFunc(e.envOrder, env.Def.ID, func(a *environment, id string) int { return compare(a.Def.ID, id) })
	e.envOrder = slices.Insert(e.envOrder, i, env)
	e.touchEnv(env)
}

func (e *Engine) removeEnvironment(now time.Time, id string, eff *Effects) {
	env := e.envs[id]
	if env == nil {
		return
	}
	if len(env.servers) > 0 { // servers of another registry still live there
		env.implicit = true
		env.Def = &statussync.Environment{ID: id, Name: id, Origin: env.servers[0].Def.Origin}
		e.touchEnv(env)
		e.evalEnv(env, now, eff)
		for _, s := range env.servers {
			e.refreshTarget(s)
			e.eval(s, now, statussync.SourceSystem, eff)
		}
		return
	}
	e.due.remove(&env.node)
	delete(e.envs, id)
	delete(e.dirtyEnvs, env)
	i, _ := slices.BinarySearchFunc(e.envOrder, id, func(a *environment, id string) int { return compare(a.Def.ID, id) })
	e.envOrder = slices.Delete(e.envOrder, i, i+1)
	e.dirtyDelete[recordKey{statussync.RecordEnvironment, id}] = struct{}{}
	e.touchedEnvs[id] = struct{}{}
}

// environmentOf finds or makes the environment that a server names.
func (e *Engine) environmentOf(def *statussync.Server, now time.Time) *environment {
	if def.EnvironmentID == "" {
		return nil
	}
	if env := e.envs[def.EnvironmentID]; env != nil {
		return env
	}
	env := e.newEnvironment(&statussync.Environment{ID: def.EnvironmentID, Name: def.EnvironmentID, Origin: def.Origin}, now)
	env.implicit = true
	return env
}

func (e *Engine) putServer(now time.Time, def *statussync.Server, eff *Effects) {
	if def.ID == "" {
		eff.fail(statussync.Invalid("id", "a server without an id"))
		return
	}
	s := e.servers[def.ID]
	if s == nil {
		s = &server{memory: memory{Def: def, FirstSeen: now}}
		s.Pub = statussync.Status{State: statussync.StateUnknown, Health: statussync.HealthUnknown, Reason: statussync.ReasonNeverSeen, Version: e.versions.take(def.ID)}
		delete(e.dirtyGone, def.ID)
		delete(e.dirtyDelete, recordKey{statussync.RecordServer, def.ID})
		e.addServer(s, now)
		eff.Entries = append(eff.Entries, &statussync.Entry{
			Kind: statussync.KindServerAdded, Timestamp: now, Source: statussync.SourceSystem, ServerID: def.ID,
			EnvironmentID: def.EnvironmentID, Labels: def.Labels, Details: "server " + def.ID + " was added by " + string(def.Origin),
		})
		e.eval(s, now, statussync.SourceSystem, eff)
		return
	}
	if s.Def.Origin != def.Origin {
		eff.fail(&statussync.Error{Code: statussync.CodeConflict, Location: def.ID, Detail: "server " + strconv.Quote(def.ID) + " is defined by " + string(s.Def.Origin) + " already"})
		return
	}
	changed := changedFields(s.Def, def)
	if a, b := &s.Def.Probe, &def.Probe; !maps.Equal(a.Headers, b.Headers) || a.SecretURL != b.SecretURL || !slices.Equal(a.Unshown, b.Unshown) { // a secret changed: replanned, and never told
		s.replan = true
	}
	if len(changed) == 0 && !s.replan {
		return
	}
	before, old := s.desired(), s.env
	e.leaveWindows(s)
	e.unlink(s)
	if s.Def.EnvironmentID != def.EnvironmentID { // what another host's agent said is not about this one
		s.Container, s.stopWait = containerEvidence{}, nil
	}
	s.Def = def
	e.joinWindows(s)
	e.link(s, now)
	if old != nil && old.implicit && len(old.servers) == 0 {
		e.removeEnvironment(now, old.Def.ID, eff)
	}
	e.touch(s)
	if d := s.desired(); d != before {
		e.desireChanged(s, d, now)
	}
	if len(changed) > 0 {
		eff.Entries = append(eff.Entries, &statussync.Entry{
			Kind: statussync.KindServerChanged, Timestamp: now, Source: statussync.SourceSystem, ServerID: def.ID,
			EnvironmentID: def.EnvironmentID, Labels: def.Labels, Changes: changed,
			Details: "the definition of server " + def.ID + " changed: " + strings.Join(changed, ", "),
		})
		s.replan = true
	}
	e.eval(s, now, statussync.SourceSystem, eff)
}

// changedFields names, as the API does, what differs between two definitions.
func changedFields(a, b *statussync.Server) []string {
	var out []string
	add := func(name string, same bool) {
		if !same {
			out = append(out, name)
		}
	}
	add("name", a.Name == b.Name)
	add("environment_id", a.EnvironmentID == b.EnvironmentID)
	add("owner", a.Owner == b.Owner)
	add("container", a.Container == b.Container)
	add("endpoint", a.Endpoint == b.Endpoint)
	add("transport", a.Transport == b.Transport)
	add("type", a.Type == b.Type)
	add("desired", a.Desired == b.Desired)
	add("labels", maps.Equal(a.Labels, b.Labels))
	add("capabilities", len(a.Capabilities) == 0 && len(b.Capabilities) == 0 || reflect.DeepEqual(normalJSON(a.Capabilities), normalJSON(b.Capabilities)))
	pa, pb := a.Probe, b.Probe
	pa.Headers, pb.Headers, pa.SecretURL, pb.SecretURL, pa.Unshown, pb.Unshown = nil, nil, "", "", nil, nil
	add("probe", reflect.DeepEqual(pa, pb))
	add("needs_config", a.NeedsConfig == b.NeedsConfig)
	add("disabled", a.Disabled == b.Disabled)
	return out
}

// normalJSON makes numbers alike that differ only by having been stored as JSON in between.
func normalJSON(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, x := range v {
			out[k] = normalJSON(x)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = normalJSON(x)
		}
		return out
	case int:
		return float64(v)
	case int64:
		return float64(v)
	case uint64:
		return float64(v)
	}
	return v
}

func (e *Engine) addServer(s *server, now time.Time) {
	s.node = dueNode{kind: dueServer, index: -1, server: s}
	e.servers[s.Def.ID] = s
	e.joinWindows(s)
	e.link(s, now)
	e.touch(s)
}

// link puts a server into its environment's lists.
func (e *Engine) link(s *server, now time.Time) {
	s.env = e.environmentOf(s.Def, now)
	e.refreshTarget(s)
	if s.env == nil {
		return
	}
	i, _ := slices.BinarySearchFunc(s.env.servers, s.Def.ID, func(a *server, id string) int { return compare(a.Def.ID, id) })
	s.env.servers = slices.Insert(s.env.servers, i, s)
	name := s.Def.ContainerName()
	if s.env.byContainer[name] == nil {
		s.env.byContainer[name] = s
	}
	delete(s.env.discovered, name)
	e.touchEnv(s.env)
}

func (e *Engine) unlink(s *server) {
	env := s.env
	if env == nil {
		return
	}
	if i, ok := slices.BinarySearchFunc(env.servers, s.Def.ID, func(a *server, id string) int { return compare(a.Def.ID, id) }); ok {
		env.servers = slices.Delete(env.servers, i, i+1)
	}
	if name := s.Def.ContainerName(); env.byContainer[name] == s {
		delete(env.byContainer, name)
		for _, o := range env.servers { // another that wanted the name gets it
			if o.Def.ContainerName() == name {
				env.byContainer[name] = o
				break
			}
		}
	}
	if env.sample != nil {
		delete(env.sample.members, s)
	}
	s.env = nil
	e.touchEnv(env)
}

func (e *Engine) removeServer(now time.Time, id string, origin statussync.Origin, eff *Effects) {
	s := e.servers[id]
	if s == nil {
		eff.fail(statussync.NotFound("server", id))
		return
	}
	if s.Def.Origin != origin {
		eff.fail(&statussync.Error{Code: statussync.CodeConflict, Location: id, Detail: "server " + strconv.Quote(id) + " is defined by " + string(s.Def.Origin)})
		return
	}
	if s.falling {
		e.unfall(s)
	}
	delete(e.doubt.members, s)
	e.due.remove(&s.node)
	e.leaveWindows(s)
	env := s.env
	e.unlink(s)
	if s.tools != nil {
		e.touchTools(s) // its record goes
	}
	delete(e.servers, id)
	delete(e.dirty, s)
	last := s.Pub
	last.Override = nil
	version := last.Version + 1
	if dropped := e.versions.put(id, version); dropped != "" {
		delete(e.dirtyGone, dropped)
		e.dirtyDelete[recordKey{statussync.RecordServer, dropped}] = struct{}{}
	}
	e.dirtyGone[id] = version
	e.touched[id] = struct{}{}
	eff.Entries = append(eff.Entries, &statussync.Entry{
		Kind: statussync.KindServerRemoved, Timestamp: now, Source: statussync.SourceSystem, ServerID: id,
		EnvironmentID: s.Def.EnvironmentID, Labels: s.Def.Labels, Version: version, Previous: &last,
		Details: "server " + id + " was removed",
	})
	eff.Requests = append(eff.Requests, statussync.Request{Plan: &statussync.ProbePlan{ServerID: id, EnvironmentID: s.Def.EnvironmentID, Kind: statussync.ProbeNone, Removed: true}})
	if env != nil && env.implicit && len(env.servers) == 0 {
		e.removeEnvironment(now, env.Def.ID, eff)
	}
}

// maxVersions bounds the memory of removed servers; a server that comes back after so many others counts from 1 again.
const maxVersions = 100_000

// versions remembers the last version of removed servers, the newest maxVersions of them.
type versions struct {
	last  map[string]uint64
	order []string
}

func (v *versions) init() { v.last = map[string]uint64{} }

func (v *versions) take(id string) uint64 {
	n := v.last[id]
	delete(v.last, id)
	return n
}

// put returns the id that was dropped to make room, if any.
func (v *versions) put(id string, n uint64) (dropped string) {
	v.last[id] = n
	v.order = append(v.order, id)
	if len(v.order) > 2*maxVersions { // forget the places of those that came back
		seen := map[string]bool{}
		keep := v.order[:0]
		for _, o := range v.order {
			if _, ok := v.last[o]; ok && !seen[o] {
				seen[o] = true
				keep = append(keep, o)
			}
		}
		v.order = keep
	}
	for len(v.last) > maxVersions {
		o := v.order[0]
		v.order = v.order[1:]
		if _, ok := v.last[o]; ok && o != id {
			delete(v.last, o)
			return o
		}
	}
	return ""
}

// refreshTarget computes how and where a server is probed; it changes only with definitions, the policy and the last
// known port.
func (e *Engine) refreshTarget(s *server) {
	s.spec = e.specOf(s.Def)
	s.target = e.targetOf(s)
	if s.spec.Kind != statussync.ProbeMCP {
		s.Pub.Protocol, s.Pub.ServerInfo = "", statussync.ServerInfo{}
	}
}

// maxDuration bounds the times that definitions give, so that no multiple of them overflows.
const maxDuration = 30 * 24 * time.Hour

// specOf is a server's own way of probing with what it leaves out taken from the policy.
func (e *Engine) specOf(def *statussync.Server) statussync.ProbeSpec {
	sp, d := def.Probe, &e.p.Probe
	sp.Kind = kindOf(def, d.Kind)
	if sp.Path == "" && sp.Kind != statussync.ProbeMCP {
		sp.Path = d.Path
	}
	if sp.Interval <= 0 {
		sp.Interval = d.Interval
	}
	if sp.Timeout <= 0 {
		sp.Timeout = d.Timeout
	}
	if sp.MaxRetries == nil {
		sp.MaxRetries = d.MaxRetries
	}
	if !(sp.BackoffMultiplier >= 1) {
		sp.BackoffMultiplier = d.BackoffMultiplier
	}
	if sp.Rise <= 0 {
		sp.Rise = d.Rise
	}
	if sp.StartGrace <= 0 {
		sp.StartGrace = d.StartGrace
	}
	if sp.SlowAfter <= 0 {
		sp.SlowAfter = d.SlowAfter
	}
	sp.Interval, sp.Timeout, sp.StartGrace = min(sp.Interval, maxDuration), min(sp.Timeout, maxDuration), min(sp.StartGrace, maxDuration)
	return sp
}

// kindOf is how a server is probed (docs/domain.md, probe verdict): as it says itself; not at all where it is stdio, or the
// policy says so; by HTTP where it gives a health URL or path; as the policy says; else as its transport is spoken.
func kindOf(def *statussync.Server, policy statussync.ProbeKind) statussync.ProbeKind {
	switch {
	case def.Transport == statussync.TransportStdio:
		return statussync.ProbeNone
	case def.Probe.Kind != "":
		return def.Probe.Kind
	case policy == statussync.ProbeNone:
		return statussync.ProbeNone
	case def.Probe.URL != "", def.Probe.Path != "":
		return statussync.ProbeHTTP
	case policy != "":
		return policy
	case def.Transport == statussync.TransportHTTP:
		return statussync.ProbeHTTP
	}
	return statussync.ProbeMCP
}

// mcpPath is where an MCP server is asked of which only host and port are known: the platform's default of
// mcp_endpoint_path (docs/protocols.md §5).
const mcpPath = "/mcp"

// targetOf is the address to probe: its own, else its endpoint (as MCP) or its endpoint's origin and the path (by HTTP),
// else the last published port of its container on its environment's address. Empty: it is not probed and lives by its
// agent's reports.
func (e *Engine) targetOf(s *server) string {
	def := s.Def
	if s.spec.Kind == statussync.ProbeNone || def.Disabled || def.NeedsConfig != "" || def.Transport == statussync.TransportStdio {
		return ""
	}
	mcp, path := s.spec.Kind == statussync.ProbeMCP, s.spec.Path
	var u *url.URL
	switch {
	case s.spec.SecretURL != "":
		u = parseHTTP(s.spec.SecretURL)
	case s.spec.URL != "":
		u = parseHTTP(s.spec.URL)
	case def.Endpoint != "":
		if u = parseHTTP(def.Endpoint); u != nil && (!mcp || path != "") {
			u = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: path}
		}
	case s.env != nil && s.env.Def.Address != "" && s.Container.Port > 0 && s.Container.Port < 65536:
		if mcp && path == "" {
			path = mcpPath
		}
		u = &url.URL{Scheme: "http", Host: joinHostPort(strings.Trim(s.env.Def.Address, "[]"), s.Container.Port), Path: path}
		if u = parseHTTP(u.String()); u != nil && u.Hostname() != strings.Trim(s.env.Def.Address, "[]") {
			u = nil // an address that is not only a host
		}
	}
	if u == nil || (u.Path != "" && !strings.HasPrefix(u.Path, "/")) {
		return ""
	}
	target := u.String()
	if s.env != nil && s.env.Def.AgentURL != "" && s.env.Def.AgentAnswersAt(target) {
		return "" // a probe of the agent proves nothing about the server
	}
	return target
}

// trusted reports whether the address to probe comes from a file on this machine.
func (e *Engine) trusted(s *server) bool {
	if s.spec.URL == "" && s.spec.SecretURL == "" && s.Def.Endpoint == "" && s.env != nil {
		return s.env.Def.Origin.Trusted() && s.Def.Origin.Trusted()
	}
	return s.Def.Origin.Trusted()
}

// joinHostPort brackets an IPv6 address. (net.JoinHostPort does; the engine imports nothing that could do I/O.)
func joinHostPort(host string, port int) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(port)
}

func parseHTTP(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil || u.Opaque != "" {
		return nil
	}
	return u
}
