/**
 * StatusSyncService with the method names, types and semantics of the original service's TypeScript class, so that its callers
 * change one import. It is a client of a running statussync service; docs/typescript-client.md says what differs.
 */
import { Client, type ClientOptions } from './client.js';
import type { Mirror } from './mirror.js';
import type { ConnectionState } from './subscribe.js';
import type { Environment, Server, Status, Update, UpdateStatus } from './types.js';

/** A server's status as the original has it. */
export interface MCPServerStatus {
  state: 'running' | 'stopped' | 'error' | 'starting' | 'stopping' | 'unknown';
  health: 'healthy' | 'degraded' | 'unhealthy' | 'unknown';
  /** Seconds since lastStarted, while running. */
  uptime?: number;
  lastStarted?: Date;
  /** Untrusted text for people. */
  lastError?: string;
}

/** One change of one server's status. */
export interface StatusUpdate {
  serverId: string;
  previousStatus: MCPServerStatus;
  currentStatus: MCPServerStatus;
  timestamp: Date;
  source: 'dtma' | 'heartbeat' | 'manual' | 'system';
  details?: string;
}

/** Somebody who is told. */
export interface StatusSubscription {
  id: string;
  serverId?: string;
  callback: (update: StatusUpdate) => void;
  filters?: StatusUpdateFilter[];
  isActive: boolean;
  createdAt: Date;
}

/** One alternative of a filter: all that is given must match. An empty list matches nothing. */
export interface StatusUpdateFilter {
  type: 'status_change' | 'health_change' | 'error_state' | 'recovery';
  serverIds?: string[];
  statusStates?: string[];
  healthLevels?: string[];
}

/** What is held in memory of one server. */
export interface StatusCache {
  serverId: string;
  status: MCPServerStatus;
  lastUpdated: Date;
  lastChecked: Date;
  checkCount: number;
  errorCount: number;
}

/** Numbers of the fleet; subscriptions are those of this object. */
export interface SyncMetrics {
  totalServers: number;
  activeServers: number;
  errorServers: number;
  lastSyncTime: Date;
  syncDuration: number;
  statusChanges: number;
  subscriptions: number;
  cacheHitRate: number;
}

/** How the original probed. The service probes now, as its configuration says: these values are taken and have no effect. */
export interface HeartbeatConfig {
  interval: number;
  timeout: number;
  maxRetries: number;
  backoffMultiplier: number;
  healthCheckEndpoint: string;
}

/** What a connection test found. */
export interface ConnectionTest {
  success: boolean;
  error?: string;
  /** In ms. */
  latency?: number;
  capabilities?: string[];
  timestamp: Date;
}

/** A server as the original's screens have it. */
export interface EnhancedMCPServer {
  id: string;
  config_id: number;
  name: string;
  endpoint_url: string;
  vault_api_key_id?: string | null;
  timeout_ms: number;
  max_retries: number;
  retry_backoff_ms: number;
  priority: number;
  is_active: boolean;
  capabilities?: Record<string, any> | null;
  status: { state: MCPServerStatus['state']; uptime?: number; restartCount?: number; lastStarted?: Date; lastError?: string };
  health: {
    overall: MCPServerStatus['health'];
    checks: { connectivity: boolean; responseTime: number; errorRate: number; memoryUsage: number; cpuUsage: number };
    lastChecked: Date;
  };
  lastSeen?: Date;
  tags?: string[];
  environment: { id: string; name: string; publicIP: string; privateIP: string; region: string; size: string };
  endpoint: string;
  lastHeartbeat: Date | null;
  serverType: string;
  transport: 'http' | 'stdio' | 'websocket';
  discoveryMetadata: Record<string, any>;
}

const TOLD_WITHIN_MS = 5_000;

/**
 * The original's surface on a live mirror of the service. After start() statuses are read from memory, and subscribers are told
 * of every change of state or health, and of every person's word.
 */
export class StatusSyncService {
  /** The client that everything goes through. */
  readonly client: Client;

  #mirror: Mirror | undefined;
  #running = false;
  #connection: ConnectionState | undefined;
  #subscriptions = new Map<string, StatusSubscription>();
  #last = new Map<string, MCPServerStatus>(); // what subscribers know
  #waiting = new Set<(id: string, version: number) => void>();
  #nextID = 0;

  /**
   * Takes a Client or its options. Whatever else is given (the original took a Supabase client) is ignored: then the service is that
   * of the page's own origin in a browser, and elsewhere the one at STATUSSYNC_SERVER (default http://127.0.0.1:8080), with the
   * token STATUSSYNC_TOKEN.
   */
  constructor(service?: Client | ClientOptions, heartbeatConfig?: Partial<HeartbeatConfig>);
  constructor(supabaseClient: object | undefined, heartbeatConfig?: Partial<HeartbeatConfig>);
  constructor(service?: object, _heartbeatConfig?: Partial<HeartbeatConfig>) {
    this.client = service instanceof Client ? service : new Client(isOptions(service) ? service : fromEnvironment());
  }

  // --- lifecycle

  /** Connects and reads all statuses. Rejects where the service can't be reached or refuses; later losses repair themselves. */
  async start(): Promise<void> {
    if (this.#mirror) {
      console.warn('StatusSyncService is already running');
      return;
    }
    const mirror = this.client.mirror({
      mustConnect: true,
      onEntry: (e) => this.#entry(e),
      onChange: (ids) => ids === undefined && this.#compare(),
      onState: (s) => (this.#connection = s),
      onError: (e) => {
        const was = this.#running;
        this.#running = false;
        if (!was) return; // start() tells it
        this.#mirror = undefined; // start() may be called again
        console.error('StatusSyncService: the service refused for good:', e);
      },
    });
    this.#mirror = mirror;
    try {
      await mirror.ready();
    } catch (e) {
      if (this.#mirror === mirror) await this.stop();
      throw e;
    }
    if (this.#mirror === mirror) this.#running = true;
  }

  /** Disconnects, and ends all subscriptions. The service itself goes on. */
  async stop(): Promise<void> {
    this.#running = false;
    this.#mirror?.close();
    this.#mirror = undefined;
    this.#connection = undefined;
    this.#last.clear();
    this.unsubscribeAll();
  }

  /** stop() and start(). */
  async restart(): Promise<void> {
    await this.stop();
    await this.start();
  }

  /** Whether it was started and not stopped since; getWebSocketStatus() says whether it is connected. */
  isActive(): boolean {
    return this.#running;
  }

  // --- synchronization

  /** Has the service read all its registries again and ask all agents; answers the changes that this caused. Role operator. */
  async syncAllServerStatuses(): Promise<StatusUpdate[]> {
    return this.#tellIfDeaf((await this.client.syncAll()).updates.flatMap(toUpdate));
  }

  /** The same for one server; null: nothing changed. Role operator. */
  async syncServerStatus(serverId: string): Promise<StatusUpdate | null> {
    const { updates } = await this.client.sync(serverId);
    const own = this.#tellIfDeaf(updates.filter((u) => u.server_id === serverId).flatMap(toUpdate));
    return own.at(-1) ?? null;
  }

  /**
   * Puts a person's word over the status, for an hour where nothing else is said. lastError becomes its note. Subscribers are
   * told before it resolves. Role operator.
   */
  async forceStatusUpdate(serverId: string, status: MCPServerStatus, options: { note?: string; expiresIn?: string } = {}): Promise<void> {
    const note = options.note ?? status.lastError?.slice(0, 1000);
    const live = this.#mirror && this.#connection?.phase === 'live' ? this.#mirror : undefined;
    let toldUpTo = -1;
    let wake: (() => void) | undefined;
    const hear = (id: string, version: number) => {
      if (id !== serverId) return;
      toldUpTo = Math.max(toldUpTo, version);
      wake?.();
    };
    this.#waiting.add(hear);
    try {
      const before = live?.get(serverId)?.status.version;
      const previous = live ? undefined : await this.client.status(serverId);
      const now = await this.client.setOverride(serverId, {
        state: status.state, health: status.health, ...(note ? { note } : {}), ...(options.expiresIn ? { expires_in: options.expiresIn } : {}),
      });
      if (!live) {
        if (this.#mirror) return; // they are told when it is connected again
        this.#notify({
          serverId, previousStatus: toStatus(previous!), currentStatus: toStatus(now), timestamp: new Date(), source: 'manual',
          details: 'Manual status override',
        });
        return;
      }
      live.apply(serverId, now);
      if (before === undefined || now.version <= before || toldUpTo >= now.version) return;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, TOLD_WITHIN_MS); // the connection broke meanwhile: they are told later
        wake = () => {
          if (toldUpTo < now.version) return;
          clearTimeout(timer);
          resolve();
        };
      });
    } finally {
      this.#waiting.delete(hear);
    }
  }

  // --- subscriptions

  /** Tells callback of every update that some filter matches, all without filters. Returns the id for unsubscribe(). */
  subscribe(callback: (update: StatusUpdate) => void, filters?: StatusUpdateFilter[]): string {
    const id = `sub_${Date.now()}_${++this.#nextID}`;
    this.#subscriptions.set(id, { id, callback, ...(filters ? { filters } : {}), isActive: true, createdAt: new Date() });
    return id;
  }

  /** Tells callback when that server's state changes; a change of health alone is not told. */
  subscribeToServer(serverId: string, callback: (update: StatusUpdate) => void): string {
    return this.subscribe(callback, [{ type: 'status_change', serverIds: [serverId] }]);
  }

  /** Ends a subscription; an unknown id is no error. */
  unsubscribe(subscriptionId: string): void {
    const s = this.#subscriptions.get(subscriptionId);
    if (s) s.isActive = false;
    this.#subscriptions.delete(subscriptionId);
  }

  /** Ends all subscriptions. */
  unsubscribeAll(): void {
    for (const id of [...this.#subscriptions.keys()]) this.unsubscribe(id);
  }

  // --- queries

  /** One server's status: from memory while that is live, otherwise asked for. Rejects for an unknown server. */
  async getServerStatus(serverId: string): Promise<MCPServerStatus> {
    const held = this.#live()?.get(serverId);
    return toStatus(held ? held.status : await this.client.status(serverId));
  }

  /** What is held in memory of a server, as it was when the service was last heard; null where nothing is. Synchronous. */
  getFromCache(serverId: string): StatusCache | null {
    const s = this.#mirror?.get(serverId);
    if (!s) return null;
    const st = s.status;
    const asOf = this.#mirror!.state.asOf ?? new Date(0);
    return {
      serverId, status: toStatus(st), lastUpdated: asOf, lastChecked: date(st.last_checked) ?? asOf, checkCount: st.check_count,
      errorCount: st.error_count,
    };
  }

  /** All servers' statuses, by id. */
  async getAllServerStatuses(): Promise<Record<string, MCPServerStatus>> {
    const out: Record<string, MCPServerStatus> = Object.create(null) as Record<string, MCPServerStatus>; // an id may be "__proto__"
    for (const s of await this.#all()) out[s.id] = toStatus(s.status);
    return out;
  }

  /** Servers in that state. */
  async getServersByStatus(status: string): Promise<EnhancedMCPServer[]> {
    return this.#enhanced((await this.#all()).filter((s) => s.status.state === status));
  }

  /** Servers of that health. */
  async getServersByHealth(health: string): Promise<EnhancedMCPServer[]> {
    return this.#enhanced((await this.#all()).filter((s) => s.status.health === health));
  }

  /** All servers, by name. */
  async getServers(): Promise<EnhancedMCPServer[]> {
    const all = await this.#enhanced(await this.#all());
    return all.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
  }

  /** One server; null where there is none. */
  async getServerById(serverId: string): Promise<EnhancedMCPServer | null> {
    const held = this.#live()?.get(serverId);
    try {
      return (await this.#enhanced([held ?? (await this.client.get(serverId))]))[0]!;
    } catch (e) {
      if ((e as { code?: unknown }).code === 'not_found') return null;
      throw e;
    }
  }

  // --- checks

  /** Turns the service's probing on, where it is off, and has everything probed once. Role admin where it is off, else operator. */
  async startHeartbeatMonitoring(): Promise<void> {
    if (!(await this.client.probing()).enabled) await this.client.setProbing(true);
    await this.performBulkHeartbeatCheck();
  }

  /** Turns the service's probing off: for everybody, also beyond the end of this program. Role admin. */
  async stopHeartbeatMonitoring(): Promise<void> {
    await this.client.setProbing(false);
  }

  /** Has one server probed now; true: it answered. false also where the check itself was refused, which is logged. Role operator. */
  async performHeartbeatCheck(serverId: string): Promise<boolean> {
    try {
      return (await this.client.probe(serverId)).outcome !== 'failure';
    } catch (e) {
      console.error(`Error in heartbeat check for server ${serverId}:`, e);
      return false;
    }
  }

  /** Has all servers probed now; answers those that were running. Role operator. */
  async performBulkHeartbeatCheck(): Promise<Record<string, boolean>> {
    const out: Record<string, boolean> = Object.create(null) as Record<string, boolean>;
    try {
      const running = new Set((await this.#all()).filter((s) => s.status.state === 'running').map((s) => s.id));
      const { items, failed } = await this.client.probeAll();
      for (const r of items) if (running.has(r.server_id)) out[r.server_id] = r.outcome !== 'failure';
      for (const f of failed) if (running.has(f.server_id)) out[f.server_id] = false;
    } catch (e) {
      console.error('Error in bulk heartbeat check:', e);
    }
    return out;
  }

  /** Has one server probed now, and says what was found. Role operator. */
  async testServerConnection(serverId: string): Promise<ConnectionTest> {
    try {
      const r = await this.client.probe(serverId);
      const success = r.outcome !== 'failure';
      return {
        success, timestamp: date(r.checked_at) ?? new Date(), ...(r.latency_ms !== undefined ? { latency: r.latency_ms } : {}),
        ...(success ? {} : { error: r.detail ?? r.cause ?? 'Connection failed' }),
      };
    } catch (e) {
      return { success: false, error: e instanceof Error ? e.message : String(e), timestamp: new Date() };
    }
  }

  // --- numbers and history

  /** Numbers of the fleet. */
  async getSyncMetrics(): Promise<SyncMetrics> {
    const m = await this.client.metrics();
    return {
      totalServers: m.total_servers, activeServers: m.active_servers, errorServers: m.error_servers,
      lastSyncTime: date(m.last_sync_time) ?? new Date(0), syncDuration: m.sync_duration_ms, statusChanges: m.status_changes,
      subscriptions: this.#subscriptions.size, cacheHitRate: m.cache_hit_rate ?? 0,
    };
  }

  /** One server's updates of the last hours, newest first. Empty also where they could not be read, which is logged. */
  async getStatusHistory(serverId: string, hours = 24): Promise<StatusUpdate[]> {
    try {
      return (await this.client.history(serverId, { hours }).all()).flatMap(toUpdate);
    } catch (e) {
      console.error(`Error fetching status history for ${serverId}:`, e);
      return [];
    }
  }

  // --- the connection

  /** How the live feed is doing. "error": the service refused for good. */
  getWebSocketStatus(): 'connected' | 'connecting' | 'disconnected' | 'error' {
    const s = this.#connection;
    switch (s?.phase) {
      case 'live':
      case 'catching_up':
        return 'connected';
      case 'connecting':
      case 'reconnecting':
        return 'connecting';
      case 'closed':
        return s.error ? 'error' : 'disconnected';
    }
    return 'disconnected';
  }

  /**
   * Clients can't publish: the service concludes statuses from what is observed, and refuses. This warns, and sends nothing.
   * @deprecated forceStatusUpdate() is how a person's word gets in.
   */
  publishStatusUpdate(topic: string, _data: unknown): void {
    console.warn(`StatusSyncService: nothing is published to ${topic}: statuses are concluded by the service. Use forceStatusUpdate().`);
  }

  // --- inside

  #live(): Mirror | undefined {
    return this.#mirror?.complete && this.#connection?.phase === 'live' ? this.#mirror : undefined;
  }

  async #all(): Promise<Server[]> {
    const m = this.#live();
    return m ? [...m.values()] : this.client.list().all();
  }

  #entry(e: Update): void {
    for (const u of toUpdate(e)) {
      const differs = u.previousStatus.state !== u.currentStatus.state || u.previousStatus.health !== u.currentStatus.health;
      this.#last.set(u.serverId, u.currentStatus);
      // A change of reason or marks alone is none to the original; a person's word always is.
      if (differs || e.source === 'manual') this.#notify(u);
    }
    if (e.kind === 'server_removed' && e.server_id !== undefined) this.#last.delete(e.server_id);
    if (e.server_id !== undefined && e.version !== undefined) for (const hear of this.#waiting) hear(e.server_id, e.version);
  }

  /** After a snapshot: tells what changed while nothing could be heard; after the first one, as the original, everything that is known. */
  #compare(): void {
    const now = new Map<string, MCPServerStatus>();
    const missed: StatusUpdate[] = [];
    for (const s of this.#mirror?.values() ?? []) {
      const currentStatus = toStatus(s.status);
      const previousStatus = this.#last.get(s.id) ?? { state: 'unknown', health: 'unknown', uptime: 0 };
      now.set(s.id, currentStatus);
      if (previousStatus.state !== currentStatus.state || previousStatus.health !== currentStatus.health) {
        missed.push({
          serverId: s.id, previousStatus, currentStatus, timestamp: date(s.status.since) ?? new Date(), source: 'system',
          details: `Status changed from ${previousStatus.state} to ${currentStatus.state}`,
        });
      }
    }
    this.#last = now;
    for (const u of missed) this.#notify(u);
  }

  /** Where no live feed tells subscribers, what a call answered does. */
  #tellIfDeaf(updates: StatusUpdate[]): StatusUpdate[] {
    if (!this.#mirror) for (const u of updates) this.#notify(u);
    return updates;
  }

  #notify(u: StatusUpdate): void {
    for (const s of [...this.#subscriptions.values()]) {
      if (!s.isActive || !matches(s.filters, u)) continue;
      try {
        s.callback(u);
      } catch (e) {
        console.error(`Error notifying subscriber ${s.id}:`, e);
      }
    }
  }

  async #enhanced(servers: readonly Server[]): Promise<EnhancedMCPServer[]> {
    if (servers.length === 0) return [];
    const environments = new Map((await this.client.environments().all()).map((e) => [e.id, e]));
    return servers.map((s) => enhanced(s, environments.get(s.environment_id ?? '')));
  }
}

function matches(filters: readonly StatusUpdateFilter[] | undefined, u: StatusUpdate): boolean {
  if (!filters || filters.length === 0) return true;
  const { previousStatus: was, currentStatus: is } = u;
  return filters.some((f) => {
    if (f.serverIds && !f.serverIds.includes(u.serverId)) return false;
    if (f.statusStates && !f.statusStates.includes(is.state)) return false;
    if (f.healthLevels && !f.healthLevels.includes(is.health)) return false;
    switch (f.type) {
      case 'status_change': return was.state !== is.state;
      case 'health_change': return was.health !== is.health;
      case 'error_state': return is.health === 'unhealthy';
      case 'recovery': return was.health === 'unhealthy' && is.health !== 'unhealthy';
    }
    return true;
  });
}

function isOptions(o: object | undefined): o is ClientOptions {
  if (!o || typeof (o as { from?: unknown }).from === 'function') return false; // a Supabase client
  return ['baseURL', 'token', 'fetch', 'WebSocket', 'timeoutMs'].some((k) => k in o);
}

function fromEnvironment(): ClientOptions {
  const env = (globalThis as { process?: { env?: Record<string, string | undefined> } }).process?.env;
  const baseURL = env?.['STATUSSYNC_SERVER'];
  const token = env?.['STATUSSYNC_TOKEN'];
  return { ...(baseURL ? { baseURL } : {}), ...(token ? { token } : {}) };
}

function date(s: string | undefined): Date | undefined {
  return s === undefined ? undefined : new Date(s);
}

function toStatus(s: Status | UpdateStatus): MCPServerStatus {
  const lastStarted = date(s.last_started);
  let uptime = s.uptime_seconds;
  // What is held in memory was counted when it was told.
  if ('availability' in s && s.state === 'running' && lastStarted) uptime = Math.max(0, Math.floor((Date.now() - lastStarted.getTime()) / 1000));
  return {
    state: s.state, health: s.health, ...(uptime !== undefined ? { uptime } : {}), ...(lastStarted ? { lastStarted } : {}),
    ...(s.last_error ? { lastError: s.last_error } : {}),
  };
}

/** An entry as an update: none for those that are no change of a status. */
function toUpdate(e: Update): StatusUpdate[] {
  if (e.kind !== 'status' || e.server_id === undefined || !e.current_status) return [];
  return [{
    serverId: e.server_id, previousStatus: e.previous_status ? toStatus(e.previous_status) : { state: 'unknown', health: 'unknown', uptime: 0 },
    currentStatus: toStatus(e.current_status), timestamp: new Date(e.timestamp), source: e.source, details: e.details,
  }];
}

function enhanced(s: Server, env: Environment | undefined): EnhancedMCPServer {
  const st = toStatus(s.status);
  const endpoint = s.endpoint ?? s.probe?.url ?? '';
  const memory = env?.system?.memory;
  const seen = date(env?.last_heartbeat);
  return {
    id: s.id, config_id: 0, name: s.name, endpoint_url: endpoint, vault_api_key_id: null, timeout_ms: 30_000, max_retries: 3,
    retry_backoff_ms: 1_000, priority: 1, is_active: st.state === 'running', capabilities: s.capabilities ?? null,
    status: {
      state: st.state, ...(st.uptime !== undefined ? { uptime: st.uptime } : {}), ...(st.lastStarted ? { lastStarted: st.lastStarted } : {}),
      ...(st.lastError ? { lastError: st.lastError } : {}),
    },
    health: {
      overall: st.health,
      checks: {
        connectivity: s.status.availability === 'available' || s.status.availability === 'limited', responseTime: s.status.latency_ms ?? 0,
        errorRate: s.status.check_count > 0 ? (100 * s.status.error_count) / s.status.check_count : 0,
        memoryUsage: memory?.total_bytes ? (100 * memory.used_bytes) / memory.total_bytes : 0, cpuUsage: env?.system?.cpu_load_percent ?? 0,
      },
      lastChecked: date(s.status.last_checked) ?? new Date(0),
    },
    ...(seen ? { lastSeen: seen } : {}),
    tags: Object.entries(s.labels ?? {}).map(([k, v]) => `${k}=${v}`),
    environment: { id: s.environment_id ?? '', name: env?.name ?? s.environment_id ?? '', publicIP: env?.address ?? '', privateIP: '', region: '', size: '' },
    endpoint, lastHeartbeat: seen ?? null, serverType: s.type ?? 'generic', transport: s.transport === 'stdio' ? 'stdio' : 'http',
    discoveryMetadata: { origin: s.origin, labels: s.labels ?? {} },
  };
}
