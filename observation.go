package statussync

import "time"

// Observation is one thing that somebody saw. The set of kinds is closed: the engine knows them all. An Observation is
// handed over: its sender must not change it, or anything it points to, afterwards.
type Observation interface{ observation() }

// ReportVia says how an agent's report came.
type ReportVia string

// The ways of a report.
const (
	ViaPush ReportVia = "push" // the agent sent it
	ViaPull ReportVia = "pull" // the agent answered when it was asked; does not count for learning its interval
	// ViaEvent: between two heartbeats the agent told at once what changed. Like a pull it is a sign of life that does not
	// count for learning the interval, and its list proves nothing of who is not on it.
	ViaEvent ReportVia = "event"
)

// ListKind says what the list of containers in a report can prove.
type ListKind uint8

// The kinds of list.
const (
	ListNone     ListKind = iota // no list: nothing is said of containers
	ListPartial                  // the container engine failed: what is listed counts, what is not listed proves nothing
	ListComplete                 // what was listed before and is not listed now is stopped
)

// AgentReport is one heartbeat, or an agent's answer when asked. It asserts every container in it, and the life of its
// environment.
type AgentReport struct {
	EnvironmentID string
	Via           ReportVia
	AgentVersion  string
	AgentTime     time.Time // by the agent's own clock: a fact, never used for age
	System        *SystemStatus
	List          ListKind
	Containers    []ContainerReport // never changed by the receiver
	// Raw is the body as it came, for ReportSinks; nil where nobody needs it.
	Raw []byte
}

// ReportShape is the form in which an agent named a container (docs/protocols.md §1).
type ReportShape uint8

// The shapes.
const (
	// ShapeDocker is shape B: Docker's words, matched by container name. A complete list with at least one such entry,
	// or an empty one, is complete for every server that was listed before.
	ShapeDocker ReportShape = iota
	// ShapeDocumented is shape A: the platform's ids and words. A list of only these is complete only for ids that
	// were named in this shape before. Without an id it matches by name.
	ShapeDocumented
)

// ContainerReport is what an agent saw of one container. All text is cleaned and cut to its limit by the decoder.
type ContainerReport struct {
	Shape       ReportShape
	ServerID    string   // shape A's account_tool_instance_id, if given
	Names       []string // without a leading "/"; at least one unless ServerID is given
	ContainerID string
	Image       string
	// Word is the container word (tables.go, ContainerState); a record word of shape A is already translated into one.
	Word string
	Text string // what it said in full, for people: "Exited (137) 5 minutes ago", "error_starting"
	// HealthCheck is Docker's own check: "healthy", "unhealthy", "starting", or "" where there is none.
	HealthCheck string
	ExitCode    *int     // nil: not known
	StartAge    AgeRange // since the start of a running container
	ExitAge     AgeRange // since the exit of an exited one
	Restarts    *int     // restart count, where the agent tells
	PublicPort  int      // the first published TCP port, 0: none
}

// AgeRange is an age as a rounded text allows it: "Up 2 hours" is [1h30m, 2h30m). The zero value means: not known.
type AgeRange struct {
	Min, Max time.Duration // Min ≤ age < Max
}

// Known reports whether r says anything.
func (r AgeRange) Known() bool { return r.Max > 0 }

// SystemStatus is what an agent tells of its host. A nil part could not be read; Errors then says why.
type SystemStatus struct {
	CPULoadPercent *float64          `json:"cpu_load_percent,omitempty"`
	Memory         *MemoryStatus     `json:"memory,omitempty"`
	Disk           *DiskStatus       `json:"disk,omitempty"`
	Errors         map[string]string `json:"errors,omitempty"` // by part: "system", "cpu", "memory", "disk"
}

// MemoryStatus is an agent host's memory, in bytes.
type MemoryStatus struct {
	TotalBytes  int64 `json:"total_bytes"`
	ActiveBytes int64 `json:"active_bytes"`
	FreeBytes   int64 `json:"free_bytes"`
	UsedBytes   int64 `json:"used_bytes"`
}

// DiskStatus is an agent host's main file system, in bytes.
type DiskStatus struct {
	Mount      string `json:"mount"`
	TotalBytes int64  `json:"total_bytes"`
	UsedBytes  int64  `json:"used_bytes"`
	FreeBytes  int64  `json:"free_bytes"`
}

// AgentFailed says that an agent was asked and did not answer (or, with NobodyToAsk, that there is no way to ask).
type AgentFailed struct {
	EnvironmentID string
	StartedAt     time.Time // when the question was asked
	Cause         string    // refused, timeout, http_500, …
	Detail        string
	NobodyToAsk   bool
}

// RowHeartbeat is a heartbeat that the platform's database tells of, because the agent still reports elsewhere. It must
// not be one that we wrote ourselves.
type RowHeartbeat struct {
	EnvironmentID string // set for an environment's last_heartbeat_at
	ServerID      string // set for a server's last_heartbeat_from_dtma
	At            time.Time
	Read          uint64 // number of the read that saw it: moves seen in one read are one gap
	// Origin, if set, is whose row it is: what another registry defines under this id is not meant.
	Origin Origin
}

// DatabaseConnection says whether the database of a registry can be read just now. While it can't, its heartbeats don't
// age: nobody could have seen a newer one. A registry of which nothing is told counts as connected.
type DatabaseConnection struct {
	Origin    Origin // whose heartbeats come from it
	Connected bool
}

// RecordSeen is a database row's status word as it was read. The engine asserts it only where the word differs from the
// last one; with Echo the word is what our own write-back wrote, and asserts nothing.
type RecordSeen struct {
	ServerID string
	Word     string
	Error    string // instance_error_message, for people
	Echo     bool
	Origin   Origin // if set, whose row it is: what another registry defines under this id is not meant
}

// Outcome is how one probe ended.
type Outcome string

// The outcomes.
const (
	OutcomeSuccess Outcome = "success" // for http a 2xx, for mcp an MCP result
	OutcomeAlive   Outcome = "alive"   // it answered, though not with what was asked for: 401, 403, 429, …
	OutcomeFailure Outcome = "failure"
)

// ProbeResult is one attempt to reach a server.
type ProbeResult struct {
	ServerID   string
	Outcome    Outcome
	Cause      string // why it was no success: refused, timeout, dns, tls, unreachable, reset, http_503, not_mcp, …
	Detail     string // text for people
	HTTPStatus int    // 0: no HTTP answer
	Latency    time.Duration
	Auth       Auth          // what was learned of the login; empty: nothing
	Throttled  bool          // 429
	RetryAfter time.Duration // as the server asked, with Throttled; 0: not said
	NotMCP     bool          // answered, but not MCP
	ByConnect  bool          // a failure by connection: nobody answered at all (refused, timeout, unreachable, reset, DNS)
	StartedAt  time.Time     // when the attempt began; FinishedAt when it ended. Both are time.Now() values
	FinishedAt time.Time
	Protocol   string     // MCP protocol version, if known
	ServerInfo ServerInfo // what the server calls itself, if known
}

// RegistryUpdate tells what one registry defines. Servers and environments that are equal to what is known change
// nothing.
type RegistryUpdate struct {
	Origin              Origin
	Environments        []Environment
	Servers             []Server
	RemovedServers      []string
	RemovedEnvironments []string
	// Full says that this is all: what the origin defined before and does not now is removed.
	Full bool
}

// OverrideSet puts a person's word over a server's status, replacing an earlier one. The override is complete
// (Override.Complete).
type OverrideSet struct {
	ServerID string
	Override Override
}

// OverrideClear ends an override before its time.
type OverrideClear struct {
	ServerID string
	Actor    string
}

// MaintenanceSet defines a window, or replaces the one with its id. The window is complete (Maintenance.Complete), and
// the servers and environments that it names exist.
type MaintenanceSet struct{ Window Maintenance }

// MaintenanceEnd removes a window, and with it ends the occurrence that is running.
type MaintenanceEnd struct {
	ID    string
	Actor string
	// OccurrenceOnly ends the occurrence that is running, and a recurring window goes on with the next one.
	OccurrenceOnly bool
}

func (*AgentReport) observation()        {}
func (*AgentFailed) observation()        {}
func (*RowHeartbeat) observation()       {}
func (*RecordSeen) observation()         {}
func (*DatabaseConnection) observation() {}
func (*ProbeResult) observation()        {}
func (*RegistryUpdate) observation()     {}
func (*OverrideSet) observation()        {}
func (*OverrideClear) observation()      {}
func (*MaintenanceSet) observation()     {}
func (*MaintenanceEnd) observation()     {}

// Request is something that the engine wants done. It travels as data, like entries do. Exactly one field is set.
type Request struct {
	Plan  *ProbePlan
	Probe *ProbeNow
	Ask   *AskAgent
}

// ProbePlan says how a server is probed from now on; it replaces the server's earlier plan. A shorter interval applies
// at once: the next probe is due at most that long after the last.
type ProbePlan struct {
	ServerID      string
	EnvironmentID string
	Kind          ProbeKind     // ProbeNone: not probed any more; the other fields are then zero
	Transport     Transport     // how an MCP server is spoken to; empty: streamable-http
	URL           string        // whole URL to ask
	Interval      time.Duration // until the next probe
	Timeout       time.Duration // of one probe
	Trusted       bool          // the address may be loopback or private (Origin.Trusted)
	Expect        string
	Canary        Canary            // the zero value: none
	Headers       map[string]string // secret
	Unshown       []string          // secret, too: values that may stand in URL and must not be shown
	Removed       bool              // the server is gone: sessions are closed, everything about it is forgotten
}

// ProbeNow asks for one probe beside the plan's cadence, as the plan says how.
type ProbeNow struct {
	ServerID string
	After    time.Duration // how long to wait first; 0: at once
	Timeout  time.Duration // 0: as the plan says
	Why      string        // confirm, contradiction, sample: for logs and metrics
}

// AskAgent asks for one GET /status of an agent; the answer comes back as an AgentReport via pull, or as AgentFailed.
type AskAgent struct {
	EnvironmentID string
	URL           string // the agent's base URL; empty: nobody to ask, answer AgentFailed with NobodyToAsk
	Trusted       bool
	After         time.Duration
	Timeout       time.Duration
}
