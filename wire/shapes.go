package wire

import (
	"time"

	"github.com/agentopia/statussync"
)

// Server is one server with what is concluded about it.
type Server struct {
	ID            string               `json:"id"`
	Name          string               `json:"name"`
	EnvironmentID string               `json:"environment_id,omitempty"`
	Owner         string               `json:"owner,omitempty"`
	Endpoint      string               `json:"endpoint,omitempty" doc:"Without userinfo and query."`
	Transport     statussync.Transport `json:"transport,omitempty" enum:"streamable-http,sse,http,stdio"`
	Type          string               `json:"type,omitempty"`
	Container     string               `json:"container,omitempty" doc:"Name under which the agent reports it."`
	Desired       statussync.Desired   `json:"desired,omitempty" enum:"running,stopped,unknown"`
	Labels        map[string]string    `json:"labels,omitempty"`
	Capabilities  map[string]any       `json:"capabilities,omitempty"`
	Origin        statussync.Origin    `json:"origin,omitempty" doc:"config, managed, postgres, mcp_config or discovered; of a second database and further ones postgres:NAME." example:"config"`
	Probe         *Probe               `json:"probe,omitempty"`
	NeedsConfig   string               `json:"needs_config,omitempty" doc:"What of its configuration could not be resolved; it is not probed then."`
	Disabled      bool                 `json:"disabled,omitempty"`
	Status        Status               `json:"status"`
}

// Probe is how a server is probed in effect: its definition, completed by the service's defaults. Kind none, without a
// URL, is a server that is not probed.
type Probe struct {
	Kind            statussync.ProbeKind `json:"kind,omitempty" enum:"http,mcp,none"`
	URL             string               `json:"url,omitempty" doc:"Without userinfo and query."`
	Path            string               `json:"path,omitempty" doc:"Only where the URL is not known yet."`
	IntervalSeconds float64              `json:"interval_seconds,omitzero"`
	Canary          string               `json:"canary,omitempty" doc:"The tool that is called now and then."`
}

// Status is what is concluded about a server, and the facts beside it.
type Status struct {
	State               statussync.State        `json:"state" enum:"running,stopped,starting,stopping,error,unknown"`
	Health              statussync.Health       `json:"health" enum:"healthy,degraded,unhealthy,unknown"`
	Reason              statussync.Reason       `json:"reason"`
	Cause               string                  `json:"cause,omitempty" example:"http_503"`
	Availability        statussync.Availability `json:"availability" enum:"available,limited,unavailable,changing,off,unknown"`
	Marks               []string                `json:"marks" nullable:"false" doc:"A sorted set of flapping, maintenance, override."`
	Since               Time                    `json:"since,omitzero" doc:"When this state and health began."`
	Override            *Override               `json:"override,omitempty"`
	LastChecked         Time                    `json:"last_checked,omitzero"`
	LastStarted         Time                    `json:"last_started,omitzero"`
	UptimeSeconds       *int64                  `json:"uptime_seconds,omitempty" doc:"Since last_started, only while running."`
	LastError           string                  `json:"last_error,omitempty" doc:"Untrusted text for people."`
	LatencyMS           float64                 `json:"latency_ms,omitzero" doc:"Of the last answered probe."`
	Auth                statussync.Auth         `json:"auth,omitempty" enum:"none,required,ok,failed"`
	ProtocolVersion     string                  `json:"protocol_version,omitempty" doc:"MCP protocol version that the newest successful probe spoke." example:"2025-11-25"`
	Server              *ServerInfo             `json:"server,omitempty" doc:"What the server calls itself. Untrusted."`
	HeartbeatAgeSeconds *float64                `json:"heartbeat_age_seconds,omitempty"`
	CheckCount          uint64                  `json:"check_count"`
	ErrorCount          uint64                  `json:"error_count"`
	Version             uint64                  `json:"version" doc:"Grows by one with each update of this server."`
}

// ServerInfo is the name and version that an MCP server tells.
type ServerInfo struct {
	Name    string `json:"name,omitempty"`
	Version string `json:"version,omitempty"`
}

// Override is a person's word that holds until it expires.
type Override struct {
	State     statussync.State  `json:"state"`
	Health    statussync.Health `json:"health"`
	Note      string            `json:"note,omitempty"`
	Actor     string            `json:"actor,omitempty"`
	SetAt     Time              `json:"set_at,omitzero"`
	ExpiresAt Time              `json:"expires_at,omitzero"`
}

// FromServer returns v as the wire has it.
func FromServer(v *statussync.ServerView) Server {
	s := v.Server
	out := Server{
		ID: s.ID, Name: s.Name, EnvironmentID: s.EnvironmentID, Owner: s.Owner, Endpoint: PublicURL(s.Endpoint),
		Transport: s.Transport, Type: s.Type, Container: s.ContainerName(), Desired: s.Desired, Labels: s.Labels,
		Capabilities: s.Capabilities, Origin: s.Origin, NeedsConfig: s.NeedsConfig, Disabled: s.Disabled,
		Status: FromStatus(&v.Status, v.Now),
	}
	p := Probe{Canary: s.Probe.Canary.Tool, Kind: s.Probe.Kind, URL: PublicURL(s.Probe.URL), Path: PublicURL(s.Probe.Path), IntervalSeconds: Seconds(s.Probe.Interval)}
	if e := v.Probing; e.Kind != "" { // what is in effect says more than what was written
		p.Kind = e.Kind
		if e.URL != "" {
			p.URL, p.Path, p.IntervalSeconds = PublicURL(e.URL), "", Seconds(e.Interval)
		}
	}
	if p != (Probe{}) {
		out.Probe = &p
	}
	return out
}

// FromServers is FromServer of each; never nil.
func FromServers(views []statussync.ServerView) []Server {
	out := make([]Server, len(views))
	for i := range views {
		out[i] = FromServer(&views[i])
	}
	return out
}

// FromStatus returns s as it is at now, to which ages and the uptime are counted.
func FromStatus(s *statussync.Status, now time.Time) Status {
	out := Status{
		State: s.State, Health: s.Health, Reason: s.Reason, Cause: s.Cause, Availability: s.Availability(),
		Marks: s.Marks.Strings(), Since: Time{s.Since}, LastChecked: Time{s.LastChecked}, LastStarted: Time{s.LastStarted},
		LastError: s.LastError, LatencyMS: Millis(s.Latency), Auth: s.Auth, ProtocolVersion: s.Protocol,
		CheckCount: s.CheckCount, ErrorCount: s.ErrorCount, Version: s.Version,
	}
	if s.ServerInfo != (statussync.ServerInfo{}) {
		out.Server = &ServerInfo{Name: s.ServerInfo.Name, Version: s.ServerInfo.Version}
	}
	if up := s.UptimeSeconds(now); up >= 0 {
		out.UptimeSeconds = &up
	}
	out.HeartbeatAgeSeconds = age(s.LastHeartbeat, now)
	if o := s.Override; o != nil {
		out.Override = &Override{
			State: o.State, Health: o.Health, Note: o.Note, Actor: o.Actor, SetAt: Time{o.SetAt}, ExpiresAt: Time{o.ExpiresAt},
		}
	}
	return out
}

// age is how long ago at was, not below 0, and nil where at is zero: never.
func age(at, now time.Time) *float64 {
	if at.IsZero() {
		return nil
	}
	s := Seconds(max(0, now.Sub(at)))
	return &s
}

// Update is an entry of the journal. The service sends the bytes of statussync.Entry.AppendJSON; this type describes
// and reads them. previous_status and current_status are there for kind status, previous_status alone for
// server_removed, server_ids for entries about an environment or a maintenance window (then at most 1,000).
type Update struct {
	Seq            uint64                 `json:"seq" doc:"Position in the journal."`
	Epoch          statussync.Epoch       `json:"epoch" doc:"Name of the log." example:"e7"`
	Kind           statussync.Kind        `json:"kind" enum:"status,server_added,server_changed,server_removed,environment_silent,environment_back,self_doubt,tool_drift,maintenance_begin,maintenance_end"`
	ServerID       string                 `json:"server_id,omitempty"`
	EnvironmentID  string                 `json:"environment_id,omitempty"`
	ServerIDs      []string               `json:"server_ids,omitempty"`
	MaintenanceID  string                 `json:"maintenance_id,omitempty"`
	Version        uint64                 `json:"version,omitzero"`
	PreviousStatus *UpdateStatus          `json:"previous_status,omitempty"`
	CurrentStatus  *UpdateStatus          `json:"current_status,omitempty"`
	Timestamp      Time                   `json:"timestamp"`
	Source         statussync.EventSource `json:"source" enum:"dtma,heartbeat,manual,system"`
	Details        string                 `json:"details"`
	Changes        []string               `json:"changes,omitempty"`
	Tools          *statussync.ToolDrift  `json:"tools,omitempty" doc:"tool_drift: what differs."`
}

// UpdateStatus is what an entry keeps of a status.
type UpdateStatus struct {
	State         statussync.State  `json:"state"`
	Health        statussync.Health `json:"health"`
	Reason        statussync.Reason `json:"reason"`
	Cause         string            `json:"cause,omitempty"`
	Marks         []string          `json:"marks" nullable:"false"`
	Since         Time              `json:"since,omitzero"`
	LastError     string            `json:"last_error,omitempty"`
	LastStarted   Time              `json:"last_started,omitzero"`
	UptimeSeconds *int64            `json:"uptime_seconds,omitempty"`
}

// Environment is a host with what its agent told last.
type Environment struct {
	ID                       string                   `json:"id"`
	Name                     string                   `json:"name"`
	Owner                    string                   `json:"owner,omitempty"`
	Address                  string                   `json:"address,omitempty"`
	AgentURL                 string                   `json:"agent_url,omitempty" doc:"Without userinfo and query."`
	Origin                   statussync.Origin        `json:"origin,omitempty" doc:"config, managed, postgres, mcp_config or discovered; of a second database and further ones postgres:NAME." example:"config"`
	Agent                    statussync.AgentState    `json:"agent" enum:"none,never_seen,ok,late,lost"`
	AgentVersion             string                   `json:"agent_version,omitempty"`
	LastHeartbeat            Time                     `json:"last_heartbeat,omitzero"`
	HeartbeatAgeSeconds      *float64                 `json:"heartbeat_age_seconds,omitempty"`
	HeardVia                 statussync.ReportVia     `json:"heard_via,omitempty" enum:"push,pull,event" doc:"How the last heartbeat came: sent, answered when asked, or told at once because something happened."`
	HeartbeatIntervalSeconds float64                  `json:"heartbeat_interval_seconds,omitzero" doc:"Between heartbeats, as learned."`
	LateAfterSeconds         float64                  `json:"late_after_seconds,omitzero"`
	LostAfterSeconds         float64                  `json:"lost_after_seconds,omitzero"`
	System                   *statussync.SystemStatus `json:"system,omitempty"`
	Servers                  int                      `json:"servers" doc:"How many servers it has."`
	Discovered               []Discovered             `json:"discovered,omitempty" doc:"Containers that no server claims."`
}

// Discovered is a container that an agent listed and no server claims.
type Discovered struct {
	EnvironmentID string `json:"environment_id"`
	Container     string `json:"container"`
	Image         string `json:"image,omitempty"`
	State         string `json:"state,omitempty" doc:"The container engine's word."`
	Text          string `json:"text,omitempty" doc:"What the agent said in full. Untrusted."`
	PublicPort    int    `json:"public_port,omitzero"`
	LastSeen      Time   `json:"last_seen,omitzero"`
}

// FromEnvironment returns v as the wire has it.
func FromEnvironment(v *statussync.EnvironmentView) Environment {
	e := v.Environment
	out := Environment{
		ID: e.ID, Name: e.Name, Owner: e.Owner, Address: e.Address, AgentURL: PublicURL(e.AgentURL), Origin: e.Origin,
		Agent: v.Agent, AgentVersion: v.AgentVersion, LastHeartbeat: Time{v.LastHeartbeat},
		HeartbeatAgeSeconds: age(v.LastHeartbeat, v.Now), HeardVia: v.HeardVia, HeartbeatIntervalSeconds: Seconds(v.Interval),
		LateAfterSeconds: Seconds(v.LateAfter), LostAfterSeconds: Seconds(v.LostAfter), System: v.System, Servers: v.Servers,
	}
	for i := range v.Discovered {
		out.Discovered = append(out.Discovered, FromDiscovered(&v.Discovered[i]))
	}
	return out
}

// FromDiscovered returns d as the wire has it.
func FromDiscovered(d *statussync.Discovered) Discovered {
	return Discovered{
		EnvironmentID: d.EnvironmentID, Container: d.Container, Image: d.Image, State: d.Word, Text: d.Text,
		PublicPort: d.PublicPort, LastSeen: Time{d.LastSeen},
	}
}

// Explain is a status and, where it was asked for, how it came about.
type Explain struct {
	Status
	Explain *Explanation `json:"explain,omitempty"`
}

// Explanation is enough to recompute a status by hand.
type Explanation struct {
	Now      Time       `json:"now"`
	Evidence []Evidence `json:"evidence" nullable:"false"`
	Rules    []Rule     `json:"rules" nullable:"false"`
}

// Evidence is one piece of evidence as it counts at that moment.
type Evidence struct {
	Kind       string   `json:"kind" enum:"container,heartbeat,record,probe,tools,override,maintenance,desired"`
	Value      string   `json:"value"`
	AssertedAt Time     `json:"asserted_at,omitzero"`
	AgeSeconds *float64 `json:"age_seconds,omitempty"`
	Fresh      bool     `json:"fresh"`
}

// Rule is one rule of docs/domain.md and what it gave.
type Rule struct {
	Rule   string            `json:"rule" example:"3e"`
	State  statussync.State  `json:"state,omitempty"`
	Health statussync.Health `json:"health,omitempty"`
	Reason statussync.Reason `json:"reason,omitempty"`
	Won    bool              `json:"won"`
	Why    string            `json:"why,omitempty"`
}

// FromExplanation returns x as the wire has it.
func FromExplanation(x *statussync.Explanation) Explain {
	e := &Explanation{Now: Time{x.Now}, Evidence: make([]Evidence, 0, len(x.Evidence)), Rules: make([]Rule, 0, len(x.Rules))}
	for _, v := range x.Evidence {
		e.Evidence = append(e.Evidence, Evidence{
			Kind: v.Kind, Value: v.Value, AssertedAt: Time{v.AssertedAt}, AgeSeconds: age(v.AssertedAt, x.Now), Fresh: v.Fresh,
		})
	}
	for _, r := range x.Rules {
		e.Rules = append(e.Rules, Rule{Rule: r.Rule, State: r.State, Health: r.Health, Reason: r.Reason, Won: r.Won, Why: r.Why})
	}
	return Explain{Status: FromStatus(&x.Status, x.Now), Explain: e}
}

// ProbeResult is what a check on demand gave, with the status that followed.
type ProbeResult struct {
	ServerID   string             `json:"server_id"`
	Outcome    statussync.Outcome `json:"outcome" enum:"success,alive,failure"`
	Cause      string             `json:"cause,omitempty" example:"refused"`
	Detail     string             `json:"detail,omitempty" doc:"Untrusted text for people."`
	LatencyMS  float64            `json:"latency_ms,omitzero"`
	HTTPStatus int                `json:"http_status,omitzero"`
	CheckedAt  Time               `json:"checked_at,omitzero"`
	Status     Status             `json:"status"`
}

// FromProbe returns a result and the view after it as the wire has them. id is the server's, as r may not name it.
func FromProbe(id string, r *statussync.ProbeResult, v *statussync.ServerView) ProbeResult {
	return ProbeResult{
		ServerID: id, Outcome: r.Outcome, Cause: r.Cause, Detail: r.Detail, LatencyMS: Millis(r.Latency),
		HTTPStatus: r.HTTPStatus, CheckedAt: Time{r.FinishedAt}, Status: FromStatus(&v.Status, v.Now),
	}
}

// ProbeResults is what a check of all servers gave; those that could not be checked are named, the rest went on.
type ProbeResults struct {
	Items      []ProbeResult `json:"items" nullable:"false"`
	Failed     []Failed      `json:"failed" nullable:"false"`
	DurationMS float64       `json:"duration_ms"`
}

// Failed names a server that something could not be done with, and why.
type Failed struct {
	ServerID string          `json:"server_id"`
	Code     statussync.Code `json:"code"`
	Detail   string          `json:"detail"`
}

// Metrics are the numbers of GET /sync/metrics.
type Metrics struct {
	TotalServers   int        `json:"total_servers"`
	ActiveServers  int        `json:"active_servers" doc:"In state running."`
	ErrorServers   int        `json:"error_servers" doc:"Unhealthy or in state error."`
	LastSyncTime   Time       `json:"last_sync_time,omitzero"`
	SyncDurationMS float64    `json:"sync_duration_ms"`
	StatusChanges  uint64     `json:"status_changes" doc:"Updates journaled since the start of the service."`
	Subscriptions  int        `json:"subscriptions"`
	CacheHits      uint64     `json:"cache_hits"`
	CacheMisses    uint64     `json:"cache_misses"`
	CacheHitRate   *float64   `json:"cache_hit_rate,omitempty" doc:"Hits per read, 0 to 1; absent before the first read."`
	ProbingEnabled *bool      `json:"probing_enabled,omitempty" doc:"false: the monitoring is switched off."`
	Registries     []Registry `json:"registries,omitempty" doc:"Databases that define servers."`
}

// FromMetrics returns m as the wire has it.
func FromMetrics(m *statussync.SyncMetrics) Metrics {
	out := Metrics{
		TotalServers: m.TotalServers, ActiveServers: m.ActiveServers, ErrorServers: m.ErrorServers,
		LastSyncTime: Time{m.LastSync}, SyncDurationMS: Millis(m.SyncDuration), StatusChanges: m.StatusChanges,
		Subscriptions: m.Subscriptions, CacheHits: m.CacheHits, CacheMisses: m.CacheMisses,
	}
	if n := m.CacheHits + m.CacheMisses; n > 0 {
		r := float64(m.CacheHits) / float64(n)
		out.CacheHitRate = &r
	}
	return out
}

// Ready is the answer of /readyz. Without a credential it is only Status and Durable.
type Ready struct {
	Status           string                `json:"status" enum:"ready,degraded,unready" doc:"degraded: it serves, but something that it promises is missing. unready is answered with 503."`
	Durable          bool                  `json:"durable" doc:"false: the store takes no entries; what is told meanwhile does not survive a restart."`
	Cursor           string                `json:"cursor,omitempty" doc:"The newest entry."`
	InboxUsedPercent *float64              `json:"inbox_used_percent,omitempty"`
	Detail           string                `json:"detail,omitempty"`
	Version          string                `json:"version,omitempty"`
	Probing          *Probing              `json:"probing,omitempty"`
	Checks           map[string]ReadyCheck `json:"checks,omitempty"`
	Registries       []Registry            `json:"registries,omitempty" doc:"Databases that define servers."`
}

// The words of Ready.Status.
const (
	ReadyYes      = "ready"
	ReadyDegraded = "degraded"
	ReadyNo       = "unready"
)

// ReadyCheck is one dependency's state.
type ReadyCheck struct {
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}
