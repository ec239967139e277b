import type { Client } from './client.js';
import type { ConnectionState, Subscription, SubscriptionEvent } from './subscribe.js';
import type { Availability, FilterClause, Kind, Server, State, Health, Status, Update, UpdateStatus } from './types.js';

/** What a Mirror keeps, and whom it tells. */
export interface MirrorOptions {
  /** Selects servers; absent: all. type and kinds are the mirror's own affair. */
  filter?: Omit<FilterClause, 'type' | 'kinds'> | undefined;
  /** Entries about servers, as they come, after the mirror has taken them in; not those that a resync skipped. */
  onEntry?: ((entry: Update) => void) | undefined;
  /** Called after the mirror changed: with the ids that did, or undefined where any may have (a snapshot). */
  onChange?: ((ids: ReadonlySet<string> | undefined) => void) | undefined;
  onState?: ((state: ConnectionState) => void) | undefined;
  /** Called once, where the service refuses for good or the signal ends it. */
  onError?: ((error: Error) => void) | undefined;
  signal?: AbortSignal | undefined;
  /** End with an error where the first connection fails, instead of trying on. */
  mustConnect?: boolean | undefined;
  /** Kinds to hear of in onEntry beside those about servers' statuses and definitions, in the environments and of the servers that filter names. */
  kinds?: readonly Kind[] | undefined;
}

const MAX_SINGLE = 20; // more servers than these are asked for as a list

/**
 * All servers that a filter selects, kept up to date in memory by one subscription. Reads are synchronous and show what was
 * true at state.asOf. It begins at once and goes on until close(), the signal, or a refusal for good.
 */
export class Mirror {
  #client: Client;
  #o: MirrorOptions;
  #sub: Subscription;
  #servers = new Map<string, Server>();
  #pending: Map<string, Server> | undefined; // of a snapshot that is coming
  #entries: Update[] = []; // that came while one was coming
  #complete = false;
  #ready: Promise<void>;
  #setReady!: { resolve: () => void; reject: (e: Error) => void };
  #wanted = new Set<string>(); // servers whose definition is asked for
  #asking = false;
  #stop = new AbortController();

  /** Use Client.mirror. */
  constructor(client: Client, o: MirrorOptions = {}) {
    this.#client = client;
    this.#o = o;
    this.#ready = new Promise((resolve, reject) => (this.#setReady = { resolve, reject }));
    this.#ready.catch(() => {}); // whoever waits is told; nobody need to
    const { filter, kinds = [] } = o;
    // Definitions are followed by ids alone: one that changes may leave the selection, or come into it.
    const ids: FilterClause = {};
    if (filter?.server_ids) ids.server_ids = filter.server_ids;
    if (filter?.environment_ids) ids.environment_ids = filter.environment_ids;
    this.#sub = client.subscribe([{ ...filter, kinds: ['status', 'server_removed'] }, { ...ids, kinds: [...new Set<Kind>(['server_added', 'server_changed', ...kinds])] }], {
      snapshot: true, signal: o.signal, mustConnect: o.mustConnect, onState: o.onState, onError: o.onError,
      onEvent: (ev) => this.#take(ev),
    });
    void this.#sub.closed.then((e) => {
      this.#stop.abort();
      this.#setReady.reject(e ?? new Error('the mirror was closed'));
    });
  }

  /** Resolves when the first snapshot is complete; rejects where the mirror ends before. */
  ready(): Promise<void> {
    return this.#ready;
  }

  /** Whether a snapshot was ever completed: before it, a server that is not here may exist. */
  get complete(): boolean {
    return this.#complete;
  }

  /** How the connection is doing; what is here was true at its asOf. */
  get state(): ConnectionState {
    return this.#sub.state;
  }

  /** One server. Not to be changed. */
  get(id: string): Server | undefined {
    return this.#servers.get(id);
  }

  /** How many servers there are. */
  get size(): number {
    return this.#servers.size;
  }

  /** All servers, in no promised order. */
  values(): IterableIterator<Server> {
    return this.#servers.values();
  }

  /** Takes in a status that a call answered, where it is newer than what is here. */
  apply(id: string, status: Status): void {
    const s = this.#servers.get(id);
    if (s && status.version >= s.status.version) {
      this.#servers.set(id, { ...s, status });
      this.#changed(new Set([id]));
    }
  }

  /** Connects now where a reconnect is being waited for. */
  check(): void {
    this.#sub.check();
  }

  /** Ends it; what is here stays as it was last. */
  close(): void {
    this.#sub.close();
  }

  #changed(ids: ReadonlySet<string> | undefined): void {
    this.#o.onChange?.(ids);
  }

  #take(ev: SubscriptionEvent): void {
    switch (ev.type) {
      case 'subscribed':
        this.#pending = undefined;
        this.#entries = [];
        return;
      case 'snapshot':
        this.#pending ??= new Map();
        for (const s of ev.items) this.#pending.set(s.id, s);
        return;
      case 'snapshot_end': {
        this.#servers = this.#pending ?? new Map();
        this.#pending = undefined;
        this.#complete = true;
        const held = this.#entries;
        this.#entries = [];
        this.#setReady.resolve();
        this.#changed(undefined);
        for (const e of held) this.#entry(e);
        return;
      }
      case 'entry':
        // What comes within a snapshot is newer than the part of it that is still to come.
        if (this.#pending) this.#entries.push(ev.entry);
        else this.#entry(ev.entry);
        return;
      case 'resync':
        this.#pending = undefined;
        this.#entries = [];
    }
  }

  #entry(e: Update): void {
    const id = e.server_id;
    if (id !== undefined) {
      const s = this.#servers.get(id);
      switch (e.kind) {
        case 'status':
          if (!e.current_status || e.version === undefined) break;
          if (!s || e.version <= s.status.version) {
            if (!s) this.#want(id);
            break;
          }
          if (this.#leaves(e.current_status)) { // it came because its status before was selected
            this.#servers.delete(id);
          } else {
            const had = s.status.override;
            const status = merged(s.status, e.current_status, e.version);
            this.#servers.set(id, { ...s, status });
            // An entry says that there is an override, not whose.
            if (e.current_status.marks.includes('override') && (!had || e.source === 'manual')) this.#want(id);
          }
          break;
        case 'server_removed':
          this.#servers.delete(id);
          this.#wanted.delete(id);
          break;
        case 'server_added':
        case 'server_changed':
          this.#want(id);
      }
      this.#changed(new Set([id]));
    }
    this.#o.onEntry?.(e);
  }

  #leaves(s: UpdateStatus): boolean {
    const f = this.#o.filter;
    return Boolean((f?.states && !f.states.includes(s.state)) || (f?.healths && !f.healths.includes(s.health)));
  }

  /** Asks for a server's definition: entries don't have it. */
  #want(id: string): void {
    this.#wanted.add(id);
    if (this.#asking) return;
    this.#asking = true;
    void this.#ask().finally(() => (this.#asking = false));
  }

  async #ask(): Promise<void> {
    const signal = this.#stop.signal;
    for (let failures = 0; this.#wanted.size > 0 && !signal.aborted; ) {
      const ids = new Set(this.#wanted);
      this.#wanted.clear();
      try {
        const got = ids.size <= MAX_SINGLE ? await this.#each(ids) : await this.#client.list({}, { signal }).all();
        const changed = new Set<string>();
        for (const s of got) {
          if (!ids.has(s.id)) continue;
          const old = this.#servers.get(s.id);
          const status = old && old.status.version > s.status.version ? old.status : s.status;
          if (this.#selects(s) && !this.#leaves(status)) this.#servers.set(s.id, { ...s, status });
          else if (!this.#servers.delete(s.id)) continue;
          changed.add(s.id);
        }
        failures = 0;
        if (changed.size) this.#changed(changed);
      } catch {
        // The service is gone or busy; where it was away for long a snapshot follows anyway.
        for (const id of ids) this.#wanted.add(id);
        await pause(Math.random() * Math.min(30_000, 500 * 2 ** failures++), signal);
      }
    }
  }

  async #each(ids: ReadonlySet<string>): Promise<Server[]> {
    const out = await Promise.all([...ids].map((id) => this.#client.get(id, { signal: this.#stop.signal }).catch((e: unknown) => {
      if ((e as { code?: unknown }).code === 'not_found') return undefined; // removed meanwhile: that is told
      throw e;
    })));
    return out.filter((s) => s !== undefined);
  }

  #selects(s: Server): boolean {
    const f = this.#o.filter;
    return (
      (!f?.server_ids || f.server_ids.includes(s.id)) &&
      (!f?.environment_ids || f.environment_ids.includes(s.environment_id ?? '')) &&
      (!f?.labels || Object.entries(f.labels).every(([k, v]) => s.labels?.[k] === v))
    );
  }
}

/** What an entry says of a status, put over what was known of it. */
function merged(old: Status, now: UpdateStatus, version: number): Status {
  const { cause: _1, since: _2, last_error: _3, last_started: _4, uptime_seconds: _5, override, ...rest } = old;
  return {
    ...rest, ...now, availability: availabilityOf(now.state, now.health), version,
    ...(override && now.marks.includes('override') ? { override } : {}),
  };
}

/** The user's layer of a state and health: the table of docs/domain.md, layer 4. */
export function availabilityOf(state: State, health: Health): Availability {
  if (health === 'unhealthy' || state === 'error') return 'unavailable';
  if (state === 'running' && health === 'healthy') return 'available';
  if (state === 'running' && health === 'degraded') return 'limited';
  if (state === 'starting' || state === 'stopping') return 'changing';
  return state === 'stopped' ? 'off' : 'unknown';
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      clearTimeout(t);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const t = setTimeout(done, ms);
    signal.addEventListener('abort', done, { once: true });
  });
}
