/**
 * The shapes of the service's JSON, as docs/protocols.md §2 to §4 and the OpenAPI document of a running service have
 * them. Keys are snake_case, what is absent is undefined, times are RFC 3339 in UTC with milliseconds, and a number
 * carries its unit in its name. Shapes only grow: a newer service may send keys and words that are not listed here.
 *
 * Text that servers, agents and people wrote (names, errors, details, notes, tools) is untrusted: show it as text.
 */

/** A word of a closed list today, to which a newer service may add. Completion knows the list, the type takes any. */
export type Open<T extends string> = T | (string & Record<never, never>);

/** RFC 3339 in UTC with milliseconds: "2026-11-24T12:03:41.000Z". */
export type Timestamp = string;

/** A length of time as requests have it: Go's form, and days: "90s", "1h30m", "30d". */
export type Duration = string;

/** A position in the journal: "e7:41". Everything up to and including it has been considered. */
export type Cursor = string;

/** What a server is. */
export type State = 'running' | 'stopped' | 'starting' | 'stopping' | 'error' | 'unknown';

/** Whether that is good. */
export type Health = 'healthy' | 'degraded' | 'unhealthy' | 'unknown';

/** The user's layer: one word, one colour. */
export type Availability = 'available' | 'limited' | 'unavailable' | 'changing' | 'off' | 'unknown';

/** Why a status is what it is, in one coarse word. */
export type Reason = Open<
  | 'ok' | 'never_seen' | 'stale' | 'needs_agent' | 'needs_config' | 'heartbeat_late' | 'heartbeat_lost' | 'agent_silent'
  | 'probe_failing' | 'probe_slow' | 'not_mcp' | 'auth_failed' | 'throttled' | 'crashed' | 'crash_loop'
  | 'stopped_unexpectedly' | 'container_unhealthy' | 'container_error' | 'stuck_starting' | 'stuck_stopping'
  | 'tools_changed' | 'override'
>;

/** A flag beside a status. */
export type Mark = Open<'flapping' | 'maintenance' | 'override'>;

/** How an MCP server is spoken to. */
export type Transport = 'streamable-http' | 'sse' | 'http' | 'stdio';

/** What somebody wants of a server. */
export type Desired = 'running' | 'stopped' | 'unknown';

/** Where a definition came from. */
export type Origin = Open<'config' | 'managed' | 'postgres' | 'mcp_config' | 'discovered'>;

/** What a probe learned about a server's login. */
export type Auth = Open<'none' | 'required' | 'ok' | 'failed'>;

/** How a server is probed. */
export type ProbeKind = Open<'http' | 'mcp' | 'none'>;

/** The code of a problem. */
export type Code = Open<
  | 'invalid' | 'unauthorized' | 'forbidden' | 'not_found' | 'method_not_allowed' | 'conflict' | 'expired' | 'too_large'
  | 'rate_limited' | 'internal' | 'unavailable'
>;

/** One server with what is concluded about it. */
export interface Server {
  id: string;
  name: string;
  environment_id?: string;
  owner?: string;
  /** Without userinfo and query. */
  endpoint?: string;
  transport?: Transport;
  type?: string;
  /** Name under which the agent reports it. */
  container?: string;
  desired?: Desired;
  labels?: Record<string, string>;
  capabilities?: Record<string, unknown>;
  origin?: Origin;
  probe?: Probe;
  /** What of its configuration could not be resolved; it is not probed then. */
  needs_config?: string;
  disabled?: boolean;
  status: Status;
}

/** How a server is probed in effect. Kind none, without a URL, is a server that is not probed. */
export interface Probe {
  kind?: ProbeKind;
  /** Without userinfo and query. */
  url?: string;
  /** Only where the URL is not known yet. */
  path?: string;
  interval_seconds?: number;
  /** The tool that is called now and then. */
  canary?: string;
}

/** What is concluded about a server, and the facts beside it. */
export interface Status {
  state: State;
  health: Health;
  reason: Reason;
  /** The fine word: http_503, refused, exit_137. */
  cause?: string;
  availability: Availability;
  /** A sorted set. */
  marks: Mark[];
  /** When this state and health began. */
  since?: Timestamp;
  override?: Override;
  last_checked?: Timestamp;
  last_started?: Timestamp;
  /** Since last_started, only while running. */
  uptime_seconds?: number;
  /** Untrusted text for people. */
  last_error?: string;
  /** Of the last answered probe. */
  latency_ms?: number;
  auth?: Auth;
  /** MCP protocol version that the newest successful probe spoke. */
  protocol_version?: string;
  /** What the server calls itself. Untrusted. */
  server?: ServerInfo;
  heartbeat_age_seconds?: number;
  check_count: number;
  error_count: number;
  /** Grows by one with each update of this server. */
  version: number;
}

/** The name and version that an MCP server tells. */
export interface ServerInfo {
  name?: string;
  version?: string;
}

/** A person's word that holds until it expires. */
export interface Override {
  state: State;
  health: Health;
  note?: string;
  /** The name of the credential that set it. */
  actor?: string;
  set_at?: Timestamp;
  expires_at?: Timestamp;
}

/** What an entry of the journal is about. */
export type Kind = Open<
  | 'status' | 'server_added' | 'server_changed' | 'server_removed' | 'environment_silent' | 'environment_back'
  | 'self_doubt' | 'tool_drift' | 'maintenance_begin' | 'maintenance_end'
>;

/** Whose doing an entry is: an agent's report, a probe, a person, or time, a restart or the registry. */
export type EventSource = 'dtma' | 'heartbeat' | 'manual' | 'system';

/**
 * An entry of the journal. previous_status and current_status are there for kind status, previous_status alone for
 * server_removed, server_ids for entries about an environment or a maintenance window (then at most 1,000).
 */
export interface Update {
  /** Position in the journal. */
  seq: number;
  /** Name of the log. */
  epoch: string;
  kind: Kind;
  server_id?: string;
  environment_id?: string;
  server_ids?: string[];
  maintenance_id?: string;
  version?: number;
  previous_status?: UpdateStatus;
  current_status?: UpdateStatus;
  timestamp: Timestamp;
  source: EventSource;
  /** One sentence for people; untrusted text may be part of it. */
  details: string;
  /** status: which of state, health, reason, marks; server_changed: which fields. */
  changes?: string[];
  /** tool_drift: what differs. */
  tools?: ToolDrift;
}

/** An Update of kind status, which has a server and both statuses. */
export interface StatusEntry extends Update {
  kind: 'status';
  server_id: string;
  version: number;
  previous_status: UpdateStatus;
  current_status: UpdateStatus;
}

/** What an entry keeps of a status. */
export interface UpdateStatus {
  state: State;
  health: Health;
  reason: Reason;
  cause?: string;
  marks: Mark[];
  since?: Timestamp;
  last_error?: string;
  last_started?: Timestamp;
  uptime_seconds?: number;
}

/** State of an environment's agent. */
export type AgentState = 'none' | 'never_seen' | 'ok' | 'late' | 'lost';

/** A host with what its agent told last. */
export interface Environment {
  id: string;
  name: string;
  owner?: string;
  address?: string;
  /** Without userinfo and query. */
  agent_url?: string;
  origin?: Origin;
  agent: AgentState;
  agent_version?: string;
  last_heartbeat?: Timestamp;
  heartbeat_age_seconds?: number;
  /** How the last heartbeat came: sent, answered when asked, or told at once because something happened. */
  heard_via?: Open<'push' | 'pull' | 'event'>;
  /** Between heartbeats, as learned. */
  heartbeat_interval_seconds?: number;
  late_after_seconds?: number;
  lost_after_seconds?: number;
  system?: SystemStatus;
  /** How many servers it has. */
  servers: number;
  /** Containers that no server claims. */
  discovered?: Discovered[];
}

/** A host's resources, as its agent told them. */
export interface SystemStatus {
  cpu_load_percent?: number;
  memory?: MemoryStatus;
  disk?: DiskStatus;
  /** By part (system, cpu, memory, disk): what the agent could not tell. Untrusted. */
  errors?: Record<string, string>;
}

/** A host's memory. */
export interface MemoryStatus {
  total_bytes: number;
  active_bytes: number;
  free_bytes: number;
  used_bytes: number;
}

/** A host's disk. */
export interface DiskStatus {
  mount: string;
  total_bytes: number;
  used_bytes: number;
  free_bytes: number;
}

/** A container that an agent listed and no server claims. */
export interface Discovered {
  environment_id: string;
  container: string;
  image?: string;
  /** The container engine's word. */
  state?: string;
  /** What the agent said in full. Untrusted. */
  text?: string;
  public_port?: number;
  last_seen?: Timestamp;
}

/** A status and, where it was asked for, how it came about. */
export interface Explain extends Status {
  explain?: Explanation;
}

/** Enough to recompute a status by hand. */
export interface Explanation {
  now: Timestamp;
  evidence: Evidence[];
  rules: Rule[];
}

/** One piece of evidence as it counts at that moment. */
export interface Evidence {
  kind: Open<'container' | 'heartbeat' | 'record' | 'probe' | 'tools' | 'override' | 'maintenance' | 'desired'>;
  value: string;
  asserted_at?: Timestamp;
  age_seconds?: number;
  fresh: boolean;
}

/** One rule of docs/domain.md and what it gave. */
export interface Rule {
  rule: string;
  state?: State;
  health?: Health;
  reason?: Reason;
  won: boolean;
  why?: string;
}

/** What a check on demand gave, with the status that followed. */
export interface ProbeResult {
  server_id: string;
  outcome: 'success' | 'alive' | 'failure';
  cause?: string;
  /** Untrusted text for people. */
  detail?: string;
  latency_ms?: number;
  http_status?: number;
  checked_at?: Timestamp;
  status: Status;
}

/** What a check of all servers gave; those that could not be checked are named, the rest went on. */
export interface ProbeResults {
  items: ProbeResult[];
  failed: Failed[];
  duration_ms: number;
}

/** A server that something could not be done with, and why. */
export interface Failed {
  server_id: string;
  code: Code;
  detail: string;
}

/** Numbers of the fleet. */
export interface Metrics {
  total_servers: number;
  /** In state running. */
  active_servers: number;
  /** Unhealthy or in state error. */
  error_servers: number;
  last_sync_time?: Timestamp;
  sync_duration_ms: number;
  /** Updates journaled since the start of the service. */
  status_changes: number;
  subscriptions: number;
  cache_hits: number;
  cache_misses: number;
  /** Hits per read, 0 to 1; absent before the first read. */
  cache_hit_rate?: number;
  /** false: the monitoring is switched off. */
  probing_enabled?: boolean;
  /** The databases that servers come from. */
  registries?: Registry[];
}

/** The answer of /readyz. Without a credential it is only status and durable. */
export interface Ready {
  /** degraded: it serves, but something that it promises is missing. */
  status: 'ready' | 'degraded' | 'unready';
  /** false: the store takes no entries; what is told meanwhile does not survive a restart. */
  durable: boolean;
  /** The newest entry. */
  cursor?: Cursor;
  inbox_used_percent?: number;
  detail?: string;
  version?: string;
  probing?: Probing;
  checks?: Record<string, ReadyCheck>;
  /** The databases that servers come from; one that is away makes the service degraded, not unready. */
  registries?: Registry[];
}

/** A database that servers come from, and how well it is followed. */
export interface Registry {
  name: string;
  kind: 'postgres' | 'supabase' | 'sql';
  /** live: changes are told as they happen; polling: all is read again and again; down: it can't be reached. */
  feed: 'live' | 'catching_up' | 'polling' | 'down';
  detail?: string;
  lag_ms: number;
  reconnects: number;
  last_sync?: Timestamp;
  sync_duration_ms?: number;
  servers: number;
  environments: number;
  /** Rows that can't be used, or not in full; at most 20. */
  faults?: RegistryFault[];
  faults_count: number;
  /** Columns and rights that are missed. */
  missing?: string[];
  write_back?: WriteBack;
  status_log?: StatusLog;
}

/** One row that can't be used. */
export interface RegistryFault {
  table?: string;
  id?: string;
  detail: string;
}

/** How agents' reports get into the rows. */
export interface WriteBack {
  queued: number;
  oldest_ms: number;
  rows: number;
  round_trips: number;
  failed: number;
  detail?: string;
  last_written?: Timestamp;
}

/** How updates get into mcp_server_status_logs. */
export interface StatusLog {
  /** Everything up to here is written. */
  cursor?: Cursor;
  behind: number;
  rows: number;
  skipped: number;
  failed?: number;
  lost?: number;
  deleted?: number;
  detail?: string;
}

/** An agent's connections to MCP servers, as the platform's database has them, with live status. */
export interface Connections {
  agent_id: string;
  items: Connection[];
  /** A stream of these server_ids that begins here misses nothing. */
  cursor: Cursor;
}

/** One connection of an agent to an MCP server. */
export interface Connection {
  id: string;
  server_id: string;
  server_name?: string;
  /** As the platform's row has it. */
  active: boolean;
  created_at?: Timestamp;
  status: 'connected' | 'disconnected' | 'error';
  /** Absent: no such server is known. */
  server_status?: Status;
}

/** One dependency's state. */
export interface ReadyCheck {
  ok: boolean;
  detail?: string;
}

/** One part of a list. */
export interface Page<T> {
  items: T[];
  /** Ask for the following page with it; absent on the last one. */
  next_cursor?: string;
  /** Position in the journal at which this list was true: a subscription that starts there misses nothing. */
  cursor?: Cursor;
}

/** An error as RFC 9457 has it, with the members code, request_id and errors. */
export interface Problem {
  type: string;
  title: string;
  status: number;
  code: Code;
  /** What is wrong, for people. */
  detail?: string;
  /** Names this request in the service's log. */
  request_id?: string;
  /** Each fault and where it is. */
  errors?: ProblemError[];
}

/** One fault: where it is (a field, parameter or file:line) and what is wrong there. */
export interface ProblemError {
  location?: string;
  message: string;
}

/** The body of PUT /servers/{id}/override. The actor is the credential's name and can't be given. */
export interface OverrideRequest {
  state: State;
  /** Default: running is healthy, error is unhealthy, the others are unknown. healthy and degraded go only with running. */
  health?: Health;
  /** Why; shown beside the status. At most 1,000 characters. */
  note?: string;
  /** How long it holds. Default 1h, at most 30d. */
  expires_in?: Duration;
}

/** A tool and the hash of its definition. */
export interface ToolRef {
  name: string;
  hash: string;
}

/** A tool of which the definition changed. */
export interface ToolChange {
  name: string;
  hash: string;
  previous_hash: string;
}

/** From one set of tools to another. Lists hold at most 100, counts count all. */
export interface ToolDrift {
  added?: ToolRef[];
  removed?: ToolRef[];
  changed?: ToolChange[];
  added_count: number;
  removed_count: number;
  changed_count: number;
  /** Of the whole set. */
  hash: string;
  previous_hash: string;
}

/** What a server lists as its tools. */
export interface Tools {
  server_id: string;
  /** Of the whole set. Absent: the list was never read. */
  hash?: string;
  /** By name. Names are untrusted text. */
  tools: ToolRef[];
  count: number;
  /** When this set was first seen. */
  since?: Timestamp;
  /** When the list was last asked for. */
  checked_at?: Timestamp;
  /** The set that the server should have. */
  pinned?: PinnedTools;
  /** A set is pinned, and the current one is another. */
  drifted: boolean;
  /** From the pinned set to the current one, where they differ. */
  against_pin?: ToolDrift;
  /** Why the list could not be read the last time. Untrusted. */
  last_error?: string;
}

/** Which set of tools a person wants a server to have. */
export interface PinnedTools {
  hash: string;
  actor?: string;
  at: Timestamp;
}

/** The body of PUT /servers/{id}/tools/pin. */
export interface PinRequest {
  /** The hash of the set that was looked at: 409 where the server lists another one by now. Absent: the current one. */
  hash?: string;
}

/** What an Uptime and an UptimeTotal have in common. The seconds of all classes add up to the window. */
export interface UptimeNumbers {
  window_seconds: number;
  /** (available + limited) / (window - unknown - maintenance - off); absent where no time counts. */
  availability_percent?: number;
  available_seconds: number;
  limited_seconds: number;
  unavailable_seconds: number;
  /** Starting and stopping; counts as time in which the server could not be used. */
  changing_seconds: number;
  off_seconds: number;
  /** Also the time before anything was known of the server, and after its removal. */
  unknown_seconds: number;
  maintenance_seconds: number;
  /** That overlap the window. */
  incidents: number;
  /** Mean whole length of the incidents that ended in the window; absent where none did. */
  mttr_seconds?: number;
  /** (available + limited) / incidents; absent where there was none. */
  mtbf_seconds?: number;
}

/** How a server's time was spent in a window that ends now. */
export interface Uptime extends UptimeNumbers {
  server_id: string;
}

/** The sum of the uptimes of many servers: its seconds are server-seconds. */
export interface UptimeTotal extends UptimeNumbers {
  servers: number;
}

/** One part of a list of uptimes, by server id. */
export interface UptimePage extends Page<Uptime> {
  /** Of all servers that are selected; on the first page only. */
  total?: UptimeTotal;
}

/** A time during which a server could not be used, outside maintenance. */
export interface Incident {
  server_id: string;
  begin: Timestamp;
  /** Absent: it goes on. */
  end?: Timestamp;
  /** So far, where it goes on. */
  duration_seconds: number;
  /** Of the status with which it began, like cause and details. */
  reason?: Reason;
  cause?: string;
  /** One sentence for people; untrusted. */
  details?: string;
}

/** What one server's probes gave in a window that ends now. */
export interface ProbeReport {
  server_id: string;
  window_seconds: number;
  step_seconds: number;
  /** How fine the counts are that this was made from. */
  resolution: Open<'minute' | 'hour'>;
  /** By time; steps without a probe are left out. The first and the last may be partial. */
  items: ProbeStep[];
  total: ProbeNumbers;
}

/** Counts of probes. The quantiles are of the latencies of those that did not fail, and absent where all did. */
export interface ProbeNumbers {
  count: number;
  failures: number;
  p50_ms?: number;
  p95_ms?: number;
  p99_ms?: number;
}

/** The probes of one step of time. */
export interface ProbeStep extends ProbeNumbers {
  start: Timestamp;
}

/** What one environment's agent told of its host in a window that ends now. */
export interface ResourceReport {
  environment_id: string;
  window_seconds: number;
  step_seconds: number;
  /** How fine the counts are that this was made from. */
  resolution: Open<'minute' | 'hour'>;
  /** By time; steps without a report are left out. The first and the last may be partial. */
  items: ResourceStep[];
}

/** One step of time. What the agent did not tell is absent. Means are over the reports of the step. */
export interface ResourceStep {
  start: Timestamp;
  /** Mean. */
  cpu_percent?: number;
  cpu_max_percent?: number;
  /** Mean of what is in use. */
  memory_bytes?: number;
  memory_max_bytes?: number;
  /** The newest. */
  memory_size_bytes?: number;
  /** Mean of what is used of the main file system. */
  disk_bytes?: number;
  disk_max_bytes?: number;
  /** The newest. */
  disk_size_bytes?: number;
}

/** How one server's time was spent in a window that ends now. */
export interface Timeline {
  server_id: string;
  window_seconds: number;
  from: Timestamp;
  to: Timestamp;
  /** By time, without holes; time before the first is unknown. At most 1,000. */
  items: Stretch[];
}

/** A part of a timeline. */
export interface Stretch {
  begin: Timestamp;
  /** Absent: it goes on. */
  end?: Timestamp;
  /** What the time counts as in the uptime: the availability, or maintenance, or removed. */
  class: Open<Availability | 'maintenance' | 'removed'>;
  /** Absent, like health, where it is not known any more. */
  state?: State;
  health?: Health;
  /** Of the status with which it began, like cause; incidents have the details. */
  reason?: Reason;
  cause?: string;
  /** How many stretches, each too short for this window, it stands for; it is then like the worst of them. */
  merged?: number;
}

/** What a credential may do. */
export type Role = 'viewer' | 'operator' | 'admin';

/** What a credential is and may use. */
export interface Whoami {
  /** Stands as the actor in what it does. */
  name: string;
  role: Role;
  /** Of the token, or of the session where that ends before. Absent: never. */
  expires_at?: Timestamp;
  /** It signed in, and is known by a cookie. */
  session?: boolean;
  limits: Limits;
}

/** The body of POST /session. */
export interface SessionRequest {
  /** The token that a program would send as a bearer. */
  token: string;
}

/** What one credential may use. */
export interface Limits {
  /** WebSockets and SSE streams open at once. */
  connections: number;
  /** How many of them may have a subscription. */
  subscriptions: number;
  /** Calls that change something, and frames per WebSocket. */
  commands_per_second: number;
  /** Bytes of stored entries and snapshots. */
  replay_bytes_per_second: number;
  /** Values in one list of a filter. */
  filter_ids: number;
  /** Clauses of a filter. */
  filter_clauses: number;
}

/** What changed of one kind of thing that has ids or names; lists hold at most 100. */
export interface Difference {
  added: string[];
  changed: string[];
  removed: string[];
  added_count: number;
  changed_count: number;
  removed_count: number;
  unchanged: number;
}

/** What a reload of the configuration changed. */
export interface Reload {
  servers: Difference;
  environments: Difference;
  /** Credentials by name; never the tokens. */
  tokens: Difference;
  /** Keys of the configuration whose change is in force. */
  settings: string[];
  /** Keys whose value in the file differs from what is in force, and counts only after a restart. */
  needs_restart: string[];
  /** What a person should look at. */
  warnings: string[];
  /** Updates of statuses that followed at once. */
  updates: number;
  duration_ms: number;
}

/** The answer to a request to restart that was accepted. */
export interface Restarting {
  status: 'restarting';
}

/** Whether servers are probed, and who decided that. */
export interface Probing {
  enabled: boolean;
  /** Absent where nobody ever switched it. */
  since?: Timestamp;
  changed_by?: string;
}

/** What reading the registries again gave; what failed is named, the rest went on. */
export interface Sync {
  /** At most 1,000; updates_count counts all. */
  updates: Update[];
  updates_count: number;
  /** At most 1,000; failed_count counts all. */
  failed: SyncFailure[];
  failed_count: number;
  duration_ms: number;
}

/** One thing that could not be read. Where it is about a whole source, it has neither id. */
export interface SyncFailure {
  server_id?: string;
  environment_id?: string;
  detail: string;
}

/** The body of POST /erase: exactly one of owner and actor is given. */
export interface EraseRequest {
  /** Whose servers and environments are to be forgotten. */
  owner?: string;
  /** Who set overrides and maintenance windows, and is to be forgotten. */
  actor?: string;
  /** Only report what would be done. */
  dry_run?: boolean;
}

/** How far an erasure is. It never says who it was. */
export interface Erasure {
  /** Ask for it with erasure(): the process remembers its last 10. */
  id: string;
  status: 'running' | 'done' | 'failed';
  dry_run: boolean;
  started_at: Timestamp;
  finished_at?: Timestamp;
  /** Of one that is done. */
  report?: EraseReport;
  /** Of one that failed: nothing was changed, unless it says otherwise. */
  error?: ErasureError;
}

/** Why an erasure failed. */
export interface ErasureError {
  code: Code;
  detail: string;
}

/** What an erasure changed, or with dry_run would change. */
export interface EraseReport {
  dry_run: boolean;
  /** Something changed: clients resync. */
  new_epoch: boolean;
  /** Entries of the journal that were reduced. */
  entries: number;
  /** Pieces of stored evidence that were changed. */
  records: number;
  /** Rows of other tables that were changed. */
  rows: number;
  /** Servers whose uptime and probes were deleted, and spans of others that were changed. */
  history_rows: number;
  /** Agents' tokens that ended with their environments. */
  tokens: number;
  /** Stored rows that still hold the name as a word. */
  mentions: number;
  /** Managed servers that are gone. */
  servers_removed: string[];
  /** Managed environments that are gone. */
  environments_removed: string[];
  /** Servers that lost their owner. */
  servers: string[];
  /** Environments that lost their owner. */
  environments: string[];
  /** Definitions outside the store that name the owner: they bring the name back unless they are edited first. */
  still_defined: StillDefined[];
  /** Copies of the store that migrations had made. */
  files_removed: string[];
}

/** A definition that names an owner who was erased. */
export interface StillDefined {
  server_id?: string;
  environment_id?: string;
  origin: Origin;
}

/** The whole definition of a managed server. What is left out has its default. */
export interface ServerSpec {
  /** Letters, digits and . _ : @ -. A PUT may leave it to the path; adopting takes the container's name. */
  id?: string;
  /** Default: the id. */
  name?: string;
  /** An environment that exists. */
  environment_id?: string;
  /** Default: the environment's. */
  owner?: string;
  endpoint?: string;
  /** Default: streamable-http. */
  transport?: Transport;
  type?: string;
  /** Name under which the agent reports it; default: the name. Unique in its environment. */
  container?: string;
  /** Default: running. */
  desired?: 'running' | 'stopped';
  labels?: Record<string, string>;
  capabilities?: Record<string, unknown>;
  /** It is not probed. */
  disabled?: boolean;
  probe?: ProbeSpec;
}

/** How a managed server is probed; what is left out is as the service's policy says. */
export interface ProbeSpec {
  kind?: ProbeKind;
  /** Default: the endpoint's origin and the path. */
  url?: string;
  path?: string;
  interval?: Duration;
  timeout?: Duration;
  max_retries?: number;
  backoff_multiplier?: number;
  rise?: number;
  start_grace?: Duration;
  slow_after?: Duration;
  expect?: 'open';
  /** Only where it is probed as MCP. */
  canary?: CanarySpec;
  /** Credentials: sent with each probe, never returned or logged. */
  headers?: Record<string, string>;
}

/** A tool that is called now and then to see that it works. */
export interface CanarySpec {
  tool: string;
  arguments?: Record<string, unknown>;
  expect?: string;
}

/** The whole definition of a managed environment. */
export interface EnvironmentSpec {
  /** Letters, digits and . _ : @ -. A PUT may leave it to the path. */
  id?: string;
  /** Default: the id. */
  name?: string;
  owner?: string;
  /** Host name or IP address, without a port. */
  address?: string;
  /** Where a silent agent is asked. */
  agent_url?: string;
}

/** A valid token of an environment's agent, without the token. */
export interface AgentToken {
  /** Names it among those of its environment. */
  id: string;
  created_at: Timestamp;
}

/** The valid tokens of an environment's agent, the newest first. */
export interface AgentTokens {
  items: AgentToken[];
}

/** A token that was just made, the only time that it is shown. */
export interface NewAgentToken {
  token: string;
  id: string;
  /** All that are valid now, the newest first. */
  valid: AgentToken[];
}

/**
 * A maintenance window to be defined. Of server_ids, environment_ids and labels at least one is given; a server is
 * selected by any of them, also one that comes later.
 */
export interface MaintenanceRequest {
  server_ids?: string[];
  environment_ids?: string[];
  /** Servers with all of these labels. */
  labels?: Record<string, string>;
  /** Default: now. With rrule it is required: the begin of the first occurrence. */
  starts_at?: Timestamp;
  /** This or duration. */
  ends_at?: Timestamp;
  /** Instead of ends_at; at most 366d. */
  duration?: Duration;
  /** RFC 5545. */
  rrule?: string;
  /** IANA name; only with rrule. Default: UTC. */
  time_zone?: string;
  /** Why; shown to people. At most 1,000 characters. */
  note?: string;
}

/** A maintenance window as it stands now. */
export interface Maintenance {
  id: string;
  server_ids?: string[];
  environment_ids?: string[];
  labels?: Record<string, string>;
  /** With rrule: the begin of the first occurrence. */
  starts_at: Timestamp;
  ends_at: Timestamp;
  /** Each occurrence lasts exactly that long; absent: it ends at the time of day of ends_at. */
  duration_seconds?: number;
  rrule?: string;
  time_zone?: string;
  /** Untrusted text for people. */
  note?: string;
  actor?: string;
  /** It is running. */
  open: boolean;
  /** When it begins the next time; absent: never again. */
  next_begin?: Timestamp;
  next_end?: Timestamp;
  /** How many servers it selects now. */
  servers: number;
}

/** Selects updates by what changed. */
export type FilterType = 'status_change' | 'health_change' | 'error_state' | 'recovery';

/**
 * One alternative of a filter: all fields that are given must match. An absent field matches all; a present but empty
 * list matches nothing. Without clauses a filter matches everything that the credential may see.
 */
export interface FilterClause {
  /** Not with mode latest. */
  type?: FilterType;
  /** Absent: status and server_removed. */
  kinds?: Kind[];
  server_ids?: string[];
  environment_ids?: string[];
  /** The current state is one of them. */
  states?: State[];
  /** The current health is one of them. */
  healths?: Health[];
  /** Every label given has that value. */
  labels?: Record<string, string>;
}

/** Every entry in order, or the newest of each server. */
export type Mode = 'every' | 'latest';

/** A frame that a client sends on the WebSocket. */
export type ClientFrame =
  | {
      type: 'subscribe';
      channel: 'mcp_server_status';
      id?: string;
      cursor?: Cursor;
      snapshot?: boolean;
      mode?: Mode;
      leave?: boolean;
      filters?: readonly FilterClause[];
    }
  | { type: 'unsubscribe'; id?: string; channel?: 'mcp_server_status' }
  | { type: 'ping'; id?: string }
  | { type: 'auth'; token: string; id?: string };

/** A frame that carries an entry: its type is status_update for kind status, and otherwise the kind. */
export interface EntryFrame {
  type: Open<'status_update'>;
  cursor: Cursor;
  data: Update;
}

/** The other frames that the service sends on the WebSocket. */
export type ServerFrame =
  | { type: 'subscribed'; id?: string; cursor: Cursor; recovered: boolean; durable: boolean }
  | { type: 'snapshot'; items: Server[]; more: boolean }
  | { type: 'snapshot_end'; cursor: Cursor }
  | { type: 'bookmark'; cursor: Cursor; sent: number }
  | { type: 'resync'; reason: Open<'expired' | 'epoch'> }
  | { type: 'pong'; cursor?: Cursor }
  | { type: 'auth_ok'; expires_at?: Timestamp }
  | { type: 'unsubscribed' }
  | { type: 'error'; id?: string; code: Code; detail: string; retryable: boolean };
