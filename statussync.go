// Package statussync is the domain language of the service: servers and the environments that run them, what is
// observed of them, the status that is concluded, the entries that are journaled, and the contracts between the rooms
// that do this work.
//
// Every other package of the module imports this one; this one imports nothing but the standard library. All types are
// plain data. Unless a comment says otherwise, a value that has been handed to another room is shared and must not be
// changed any more, functions are pure and safe for concurrent use, and times are in the engine's time (see Observer).
package statussync

import (
	"time"
)

// State is what a server is doing.
type State string

// The states. Their JSON is the same word.
const (
	StateRunning  State = "running"
	StateStopped  State = "stopped"
	StateStarting State = "starting"
	StateStopping State = "stopping"
	StateError    State = "error"
	StateUnknown  State = "unknown"
)

// States lists every State in the order in which people are shown them.
var States = []State{StateRunning, StateStopped, StateStarting, StateStopping, StateError, StateUnknown}

// Valid reports whether s is one of States.
func (s State) Valid() bool {
	switch s {
	case StateRunning, StateStopped, StateStarting, StateStopping, StateError, StateUnknown:
		return true
	}
	return false
}

// Health is whether what a server does is good.
type Health string

// The healths. Their JSON is the same word.
const (
	HealthHealthy   Health = "healthy"
	HealthDegraded  Health = "degraded"
	HealthUnhealthy Health = "unhealthy"
	HealthUnknown   Health = "unknown"
)

// Healths lists every Health from best known to unknown.
var Healths = []Health{HealthHealthy, HealthDegraded, HealthUnhealthy, HealthUnknown}

// Valid reports whether h is one of Healths.
func (h Health) Valid() bool {
	switch h {
	case HealthHealthy, HealthDegraded, HealthUnhealthy, HealthUnknown:
		return true
	}
	return false
}

// Rank orders healths by how bad they are: unhealthy 3, degraded 2, healthy 1, unknown 0. The worst that a rule gives
// wins (step 3 of the rules in docs/domain.md).
func (h Health) Rank() int {
	switch h {
	case HealthUnhealthy:
		return 3
	case HealthDegraded:
		return 2
	case HealthHealthy:
		return 1
	}
	return 0
}

// Reason is the one coarse, stable word for why a status is what it is.
type Reason string

// The reasons.
const (
	ReasonOK                  Reason = "ok"
	ReasonNeverSeen           Reason = "never_seen"
	ReasonStale               Reason = "stale"
	ReasonNeedsAgent          Reason = "needs_agent"
	ReasonNeedsConfig         Reason = "needs_config"
	ReasonHeartbeatLate       Reason = "heartbeat_late"
	ReasonHeartbeatLost       Reason = "heartbeat_lost"
	ReasonAgentSilent         Reason = "agent_silent"
	ReasonProbeFailing        Reason = "probe_failing"
	ReasonProbeSlow           Reason = "probe_slow"
	ReasonNotMCP              Reason = "not_mcp"
	ReasonAuthFailed          Reason = "auth_failed"
	ReasonThrottled           Reason = "throttled"
	ReasonCrashed             Reason = "crashed"
	ReasonCrashLoop           Reason = "crash_loop"
	ReasonStoppedUnexpectedly Reason = "stopped_unexpectedly"
	ReasonContainerUnhealthy  Reason = "container_unhealthy"
	ReasonContainerError      Reason = "container_error"
	ReasonStuckStarting       Reason = "stuck_starting"
	ReasonStuckStopping       Reason = "stuck_stopping"
	ReasonToolsChanged        Reason = "tools_changed"
	ReasonOverride            Reason = "override"
)

// Reasons lists every Reason.
var Reasons = []Reason{
	ReasonOK, ReasonNeverSeen, ReasonStale, ReasonNeedsAgent, ReasonNeedsConfig, ReasonHeartbeatLate, ReasonHeartbeatLost,
	ReasonAgentSilent, ReasonProbeFailing, ReasonProbeSlow, ReasonNotMCP, ReasonAuthFailed, ReasonThrottled, ReasonCrashed,
	ReasonCrashLoop, ReasonStoppedUnexpectedly, ReasonContainerUnhealthy, ReasonContainerError, ReasonStuckStarting,
	ReasonStuckStopping, ReasonToolsChanged, ReasonOverride,
}

// Marks is a set of flags beside a status. The zero value is the empty set; sets are compared with ==.
type Marks uint8

// The marks, in their sorted order.
const (
	MarkFlapping Marks = 1 << iota
	MarkMaintenance
	MarkOverride
)

var markNames = [...]struct {
	m    Marks
	name string
}{{MarkFlapping, "flapping"}, {MarkMaintenance, "maintenance"}, {MarkOverride, "override"}}

// Has reports whether every mark of x is in m.
func (m Marks) Has(x Marks) bool { return m&x == x }

// Strings returns the marks as words, sorted; never nil.
func (m Marks) Strings() []string {
	out := make([]string, 0, len(markNames))
	for _, n := range markNames {
		if m&n.m != 0 {
			out = append(out, n.name)
		}
	}
	return out
}

// ParseMarks is the inverse of Strings. Unknown words are ignored, so that an older reader survives a newer journal.
func ParseMarks(words []string) Marks {
	var m Marks
	for _, w := range words {
		for _, n := range markNames {
			if n.name == w {
				m |= n.m
			}
		}
	}
	return m
}

// Availability is the user's layer: one word, one colour.
type Availability string

// The availabilities, in the order of the colours red, green, yellow, blue, grey, hatched grey.
const (
	Unavailable         Availability = "unavailable"
	Available           Availability = "available"
	Limited             Availability = "limited"
	Changing            Availability = "changing"
	Off                 Availability = "off"
	AvailabilityUnknown Availability = "unknown"
)

// Auth is what a probe learned about a server's login.
type Auth string

// The auth states; the zero value means that nothing is known yet.
const (
	AuthNone     Auth = "none"     // answers without a credential
	AuthRequired Auth = "required" // wants a login, and no credential is configured
	AuthOK       Auth = "ok"       // accepts the configured credential
	AuthFailed   Auth = "failed"   // rejects the configured credential
)

// Desired is what somebody wants of a server.
type Desired string

// The desires. The zero value means: not said.
const (
	DesiredRunning Desired = "running"
	DesiredStopped Desired = "stopped"
	DesiredUnknown Desired = "unknown"
)

// Transport is how an MCP server is spoken to.
type Transport string

// The transports.
const (
	TransportStreamableHTTP Transport = "streamable-http"
	TransportSSE            Transport = "sse"
	TransportHTTP           Transport = "http"
	TransportStdio          Transport = "stdio"
)

// Valid reports whether t is one of the transports.
func (t Transport) Valid() bool {
	switch t {
	case TransportStreamableHTTP, TransportSSE, TransportHTTP, TransportStdio:
		return true
	}
	return false
}

// Origin is where the definition of a server or environment came from.
type Origin string

// The origins.
const (
	OriginConfig     Origin = "config"
	OriginManaged    Origin = "managed"
	OriginPostgres   Origin = "postgres"
	OriginMCPConfig  Origin = "mcp_config"
	OriginDiscovered Origin = "discovered"
)

// Trusted reports whether addresses from this origin may name loopback and private networks without an entry in
// allow_networks: files on the service's own machine may, everything else may not (docs/protocols.md §9).
func (o Origin) Trusted() bool { return o == OriginConfig || o == OriginMCPConfig }

// Status is what is concluded about one server. State, Health, Reason and Marks are the conclusion; everything else is
// a fact beside it and never makes two statuses differ.
type Status struct {
	State  State
	Health Health
	Reason Reason
	Marks  Marks

	Cause         string        // the fine word: http_503, refused, timeout, exit_137, …; empty when nothing is wrong
	LastError     string        // text for people; untrusted
	Since         time.Time     // when this State and Health began
	LastChecked   time.Time     // when a probe or report last spoke of this server; zero if never
	LastStarted   time.Time     // zero if not known
	Latency       time.Duration // of the last answered probe; zero if none
	Auth          Auth
	Protocol      string     // MCP protocol version that the newest successful probe spoke; empty if not known
	ServerInfo    ServerInfo // what the server calls itself; untrusted
	Override      *Override  // the override in force, if any
	LastHeartbeat time.Time  // of its environment or row, the newer; zero if never
	CheckCount    uint64     // probes taken
	ErrorCount    uint64     // probes failed
	Version       uint64     // +1 for each update of this server; 0 before the first
}

// ServerInfo is what an MCP server calls itself when it is first asked. It is untrusted text, cleaned and cut.
type ServerInfo struct {
	Name    string
	Version string
}

// Equal reports whether two statuses are the same conclusion: state, health, reason and marks.
func (s *Status) Equal(o *Status) bool {
	return s.State == o.State && s.Health == o.Health && s.Reason == o.Reason && s.Marks == o.Marks
}

// Availability maps the status to the user's layer: the first row of the table that fits.
func (s *Status) Availability() Availability {
	switch {
	case s.Health == HealthUnhealthy || s.State == StateError:
		return Unavailable
	case s.State == StateRunning && s.Health == HealthHealthy:
		return Available
	case s.State == StateRunning && s.Health == HealthDegraded:
		return Limited
	case s.State == StateStarting || s.State == StateStopping:
		return Changing
	case s.State == StateStopped:
		return Off
	}
	return AvailabilityUnknown
}

// UptimeSeconds is how long the server has been running at now, or -1 where it is not running or its start is unknown.
func (s *Status) UptimeSeconds(now time.Time) int64 {
	if s.State != StateRunning || s.LastStarted.IsZero() {
		return -1
	}
	return max(0, int64(now.Sub(s.LastStarted)/time.Second))
}

// ProbeKind names a way to ask a server whether it works.
type ProbeKind string

// The probe kinds.
const (
	ProbeHTTP ProbeKind = "http" // GET; success is a 2xx
	ProbeMCP  ProbeKind = "mcp"  // success is an MCP result
	ProbeNone ProbeKind = "none" // never probed: lives by its agent's reports
)

// ProbeSpec is how one server is probed. A zero field means: as the policy says.
type ProbeSpec struct {
	Kind              ProbeKind
	URL               string        // whole URL; empty: the endpoint's origin and Path
	Path              string        // used where URL is empty; starts with "/". For ProbeMCP it replaces the endpoint's path
	Interval          time.Duration // between probes of a running server; scales the other cadences
	Timeout           time.Duration
	MaxRetries        *int // confirmations before a failure is believed; nil: as the policy says
	BackoffMultiplier float64
	Rise              int           // non-failures before a recovery is believed
	StartGrace        time.Duration // how long failures are forgiven after a start
	SlowAfter         time.Duration
	Expect            string // "open": a server that wants a login is auth_failed; otherwise empty
	Canary            Canary `json:",omitzero"` // called now and then, beside the probe; the zero value: none
	// Headers are sent with each probe; they are credentials: never logged, journaled or shown, and stored only by the
	// managed registry, whose definitions have no other place.
	Headers map[string]string `json:"-"`
	// SecretURL is asked in place of URL and of the endpoint where these hold less than the whole address, because it has
	// secrets. It is never journaled, stored or shown.
	SecretURL string `json:"-"`
	// Unshown are the values of variables that were put into the definition. What a server answers is shown without them.
	Unshown []string `json:"-"`
}

// Canary is a call of one tool that shows whether an MCP server really serves (docs/protocols.md §6, level 3). It is
// opt-in: a tool may have effects. What it names is stored and shown; it is no place for secrets.
type Canary struct {
	Tool      string
	Arguments string // a JSON object; empty: none
	Expect    string // must stand in the answer's text or structured content; empty: any answer that is no error
}

// MaxCanaryArguments bounds Canary.Arguments, in bytes.
const MaxCanaryArguments = 16 << 10

// Server is one MCP server as its registry defines it. It says nothing about how the server is doing.
type Server struct {
	ID            string
	Name          string
	EnvironmentID string // empty: no environment
	Owner         string // its environment's owner where empty
	Container     string // container name; its Name where empty
	Endpoint      string // URL; empty where it is only reached through its agent
	Transport     Transport
	Type          string
	Desired       Desired // from the configuration; DesiredUnknown or empty: the record decides
	Labels        map[string]string
	Capabilities  map[string]any
	Origin        Origin
	Probe         ProbeSpec
	NeedsConfig   string // what of its configuration could not be resolved; empty: nothing. It is then not probed
	Disabled      bool   // not probed
}

// ContainerName is the name under which the agent reports this server.
func (s *Server) ContainerName() string {
	if s.Container != "" {
		return s.Container
	}
	return s.Name
}

// Environment is one host that runs servers.
type Environment struct {
	ID       string
	Name     string
	Owner    string
	Address  string // host name or IP, without a port; empty if not known
	AgentURL string // base URL of the agent's own API; empty: the agent is never asked
	HasToken bool   // its configuration gives it an agent token. The token itself is never part of this type
	Origin   Origin
}

// Override is a person's word that replaces the conclusion until it expires.
type Override struct {
	State     State
	Health    Health
	Note      string // untrusted text
	Actor     string // the credential's name
	SetAt     time.Time
	ExpiresAt time.Time
}

// Limits of overrides (docs/domain.md, step 5).
const (
	DefaultOverrideFor = time.Hour
	MaxOverrideFor     = 30 * 24 * time.Hour
	MaxNoteLen         = 1000 // bytes
)

// Complete fills what was left out (health from state, expiry from now) and checks the rest. The error has code
// CodeInvalid and names the field.
func (o *Override) Complete(now time.Time) error {
	if !o.State.Valid() {
		return Invalid("state", "must be one of running, stopped, starting, stopping, error, unknown, not "+quote(string(o.State)))
	}
	if o.Health == "" {
		switch o.State {
		case StateRunning:
			o.Health = HealthHealthy
		case StateError:
			o.Health = HealthUnhealthy
		default:
			o.Health = HealthUnknown
		}
	}
	if !o.Health.Valid() {
		return Invalid("health", "must be one of healthy, degraded, unhealthy, unknown, not "+quote(string(o.Health)))
	}
	if (o.Health == HealthHealthy || o.Health == HealthDegraded) && o.State != StateRunning {
		return Invalid("health", string(o.Health)+" goes only with state running, not with "+string(o.State))
	}
	if len(o.Note) > MaxNoteLen {
		return Invalid("note", "is longer than 1000 bytes")
	}
	if o.SetAt.IsZero() {
		o.SetAt = now
	}
	if o.ExpiresAt.IsZero() {
		o.ExpiresAt = now.Add(DefaultOverrideFor)
	}
	if !o.ExpiresAt.After(now) {
		return Invalid("expires_in", "must be greater than zero")
	}
	if o.ExpiresAt.Sub(now) > MaxOverrideFor {
		return Invalid("expires_in", "must be at most 30d")
	}
	return nil
}
