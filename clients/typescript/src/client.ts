import { ServiceError, UnreachableError, codeOfStatus, errorOfProblem, invalid } from './errors.js';
import { Subscription, type Connector, type SubscribeOptions, type WebSocketConstructor } from './subscribe.js';
import { Mirror, type MirrorOptions } from './mirror.js';
import type {
  AgentToken, AgentTokens, Availability, Connections, Cursor, Discovered, Duration, Environment, EnvironmentSpec, EraseRequest, Erasure, Explain, FilterClause, FilterType,
  Health, Incident, Maintenance, MaintenanceRequest, Metrics, NewAgentToken, OverrideRequest, Page, PinRequest, ProbeReport,
  ProbeResult, ProbeResults, Probing, Problem, Ready, Reload, ResourceReport,
  Restarting, Server, ServerSpec, State, Status, Sync, Timeline, Tools,
  Update, Uptime, UptimePage, Whoami,
} from './types.js';

/** A bearer token, or a function that gives the one that is valid now: it is asked for each call and each connection. */
export type Token = string | (() => string | undefined | Promise<string | undefined>);

/** Which service a Client talks to, and by what means. */
export interface ClientOptions {
  /**
   * The service's address, with the base path where it has one: "https://status.example.com". Absent: the page's own origin in
   * a browser, http://127.0.0.1:8080 elsewhere.
   */
  baseURL?: string | undefined;
  /** Sent in a header, and on WebSockets in an auth frame; never in a URL. Without one a browser sends its cookies. */
  token?: Token | undefined;
  /** Carries all calls; absent: the global fetch. */
  fetch?: typeof globalThis.fetch | undefined;
  /** Carries subscriptions; absent: the global one. Node 20 has none: hand in that of the package "ws". */
  WebSocket?: WebSocketConstructor | undefined;
  /** Ends a call that has no answer, in ms (30,000; calls that probe, sync or reload: 120,000 at least). Infinity: never. */
  timeoutMs?: number | undefined;
}

/** What every call takes. */
export interface CallOptions {
  /** Ends the call, which then throws the signal's reason. */
  signal?: AbortSignal | undefined;
  /** Instead of ClientOptions.timeoutMs. */
  timeoutMs?: number | undefined;
}

/** Selects servers. An absent field matches all; a present but empty list matches nothing. */
export interface ServerQuery {
  states?: readonly State[] | undefined;
  healths?: readonly Health[] | undefined;
  availability?: readonly Availability[] | undefined;
  environment_ids?: readonly string[] | undefined;
  /** Every label given has that value. */
  labels?: Readonly<Record<string, string>> | undefined;
  /** In id, name, endpoint or container, in any case. */
  q?: string | undefined;
}

/** Which part of a list. */
export interface PageQuery {
  /** 1 to 1,000; absent: 100. A list that pages by itself asks for 1,000 at a time. */
  limit?: number | undefined;
  /** next_cursor of the page before. */
  cursor?: string | undefined;
}

/** Selects entries of the journal. */
export interface UpdatesQuery extends Omit<FilterClause, 'type'> {
  type?: FilterType;
  leave?: boolean | undefined;
  /** Entries after this position; absent: from the oldest that is kept. */
  after?: Cursor | undefined;
}

type Params = Record<string, string | number | boolean | readonly string[] | undefined>;

/**
 * A list that pages by itself: iterate it, or take one page() at a time.
 *
 *     for await (const server of client.list({ healths: ['unhealthy'] })) …
 */
export interface List<T, P extends Page<T> = Page<T>> extends AsyncIterable<T> {
  /** One page; without a cursor the first one. */
  page(q?: PageQuery, o?: CallOptions): Promise<P>;
  /** Everything in one array. */
  all(): Promise<T[]>;
}

const LONG_MS = 120_000;
const MAX_BODY = 32 << 20;
const MAX_TIMER_MS = 2 ** 31 - 1; // a timer with more fires at once

/**
 * A client of one service. It holds no connection of its own between calls, and may be shared.
 *
 * Every call rejects with a ServiceError where the service refused, with an UnreachableError where no answer came, and with the
 * signal's reason where it was aborted.
 */
export class Client {
  /** The service's address as it is used. */
  readonly baseURL: string;
  #token: Token | undefined;
  #fetch: typeof globalThis.fetch;
  #WebSocket: WebSocketConstructor | undefined;
  #timeoutMs: number;

  /** Makes no connection. Throws a ServiceError with code invalid where an option is. */
  constructor(o: ClientOptions = {}) {
    this.baseURL = checkURL(o.baseURL);
    if (typeof o.token === 'string') checkToken(o.token);
    this.#token = o.token;
    const f = o.fetch ?? globalThis.fetch;
    if (typeof f !== 'function') throw invalid('fetch', 'is not given, and there is no global one');
    this.#fetch = f === globalThis.fetch ? f.bind(globalThis) : f;
    this.#WebSocket = o.WebSocket;
    this.#timeoutMs = o.timeoutMs ?? 30_000;
    if (!(this.#timeoutMs > 0)) throw invalid('timeoutMs', 'must be greater than 0');
  }

  // --- servers

  /** Servers with their status, by id. */
  list(q: ServerQuery = {}, o: CallOptions = {}): List<Server> {
    return this.#list('/servers', serverParams(q), o);
  }

  /** One server with its status. */
  get(id: string, o?: CallOptions): Promise<Server> {
    return this.#call('GET', server(id), {}, undefined, o);
  }

  /** One server's status. */
  status(id: string, o?: CallOptions): Promise<Status> {
    return this.#call('GET', server(id, '/status'), {}, undefined, o);
  }

  /** One server's status with every piece of evidence and every rule behind it. */
  explain(id: string, o?: CallOptions): Promise<Explain & Required<Pick<Explain, 'explain'>>> {
    return this.#call('GET', server(id, '/status'), { explain: true }, undefined, o);
  }

  /** Puts a person's word over the status until it expires; the actor is the credential's name. Role operator. */
  setOverride(id: string, override: OverrideRequest, o?: CallOptions): Promise<Status> {
    return this.#call('PUT', server(id, '/override'), {}, override, o);
  }

  /** Ends an override. Role operator. */
  clearOverride(id: string, o?: CallOptions): Promise<Status> {
    return this.#call('DELETE', server(id, '/override'), {}, undefined, o);
  }

  /** Probes one server now. Role operator. */
  probe(id: string, o?: CallOptions): Promise<ProbeResult> {
    return this.#call('POST', server(id, '/probe'), {}, undefined, this.#long(o));
  }

  /** Probes all servers now. Role operator. */
  probeAll(o?: CallOptions): Promise<ProbeResults> {
    return this.#call('POST', '/probes', {}, undefined, this.#long(o, 200_000));
  }

  /** Reads the registry of one server again, and asks its agent. Role operator. */
  sync(id: string, o?: CallOptions): Promise<Sync> {
    return this.#call('POST', server(id, '/sync'), {}, undefined, this.#long(o));
  }

  /** Reads all registries again, and asks all agents. Role operator. */
  syncAll(o?: CallOptions): Promise<Sync> {
    return this.#call('POST', '/sync', {}, undefined, this.#long(o));
  }

  /** Defines a managed server. Role admin. */
  addServer(spec: ServerSpec, o?: CallOptions): Promise<Server> {
    return this.#call('POST', '/servers', {}, spec, o);
  }

  /** Replaces the whole definition of a managed server. Role admin. */
  setServer(id: string, spec: ServerSpec, o?: CallOptions): Promise<Server> {
    return this.#call('PUT', server(id), {}, spec, o);
  }

  /** Removes a managed server. Role admin. */
  removeServer(id: string, o?: CallOptions): Promise<void> {
    return this.#call('DELETE', server(id), {}, undefined, o);
  }

  // --- time

  /** One server's entries of the last hours (24), newest first. */
  history(id: string, q: { hours?: number | undefined } = {}, o: CallOptions = {}): List<Update> {
    return this.#list(server(id, '/history'), { hours: q.hours }, o);
  }

  /**
   * The journal, oldest first, up to its present end. ServiceError with code expired where retention has passed the position. To
   * go on with what comes, subscribe() with the last cursor.
   */
  updates(q: UpdatesQuery = {}, o: CallOptions = {}): List<Update> {
    const params: Params = {
      type: q.type, kinds: q.kinds, server_ids: q.server_ids, environment_ids: q.environment_ids, states: q.states, healths: q.healths,
      label: labels(q.labels), leave: q.leave || undefined,
    };
    return this.#list('/updates', params, o, 'after', q.after);
  }

  /** Availability, incidents, MTTR and MTBF of servers, by id; the first page() has the total of all. Window: 30d. */
  uptime(q: ServerQuery & { window?: Duration | undefined } = {}, o: CallOptions = {}): List<Uptime, UptimePage> {
    return this.#list('/uptime', { ...serverParams(q), window: q.window }, o);
  }

  /** Availability, incidents, MTTR and MTBF of one server. Window: 30d. */
  serverUptime(id: string, q: { window?: Duration | undefined } = {}, o?: CallOptions): Promise<Uptime> {
    return this.#call('GET', server(id, '/uptime'), { window: q.window }, undefined, o);
  }

  /** Incidents that overlap the window (30d), newest first; of one server where its id is given. */
  incidents(q: { server_id?: string | undefined; window?: Duration | undefined } = {}, o: CallOptions = {}): List<Incident> {
    return this.#list(q.server_id === undefined ? '/incidents' : server(q.server_id, '/incidents'), { window: q.window }, o);
  }

  /** How one server's time was spent, as stretches of time. Window: 30d. */
  timeline(id: string, q: { window?: Duration | undefined } = {}, o?: CallOptions): Promise<Timeline> {
    return this.#call('GET', server(id, '/timeline'), { window: q.window }, undefined, o);
  }

  /** What one server's probes gave, by steps of time. Window: 24h; step: 1m, or 1h beyond 48h. */
  probes(id: string, q: { window?: Duration | undefined; step?: Duration | undefined } = {}, o?: CallOptions): Promise<ProbeReport> {
    return this.#call('GET', server(id, '/probes'), { window: q.window, step: q.step }, undefined, o);
  }

  // --- tools

  /** What a server lists as its tools, and which are pinned. */
  tools(id: string, o?: CallOptions): Promise<Tools> {
    return this.#call('GET', server(id, '/tools'), {}, undefined, o);
  }

  /** Reads a server's tools now. Role operator. */
  readTools(id: string, o?: CallOptions): Promise<Tools> {
    return this.#call('POST', server(id, '/tools'), {}, undefined, this.#long(o));
  }

  /** Pins the current tools, or only those with that hash: ServiceError with code conflict where they are others by now. Role operator. */
  pinTools(id: string, pin: PinRequest = {}, o?: CallOptions): Promise<Tools> {
    return this.#call('PUT', server(id, '/tools/pin'), {}, pin, o);
  }

  /** Ends a pin. Role operator. */
  unpinTools(id: string, o?: CallOptions): Promise<Tools> {
    return this.#call('DELETE', server(id, '/tools/pin'), {}, undefined, o);
  }

  /** How a server's tools changed, newest first. */
  drift(id: string, o: CallOptions = {}): List<Update> {
    return this.#list(server(id, '/drift'), {}, o);
  }

  // --- environments

  /** Hosts with their agent, by id. */
  environments(o: CallOptions = {}): List<Environment> {
    return this.#list('/environments', {}, o);
  }

  /** One host with its agent. */
  environment(id: string, o?: CallOptions): Promise<Environment> {
    return this.#call('GET', environment(id), {}, undefined, o);
  }

  /** A host's CPU, memory and disk, as its agent told them, by steps of time. Window: 24h; step: 1m, or 1h beyond 48h. */
  resources(id: string, q: { window?: Duration | undefined; step?: Duration | undefined } = {}, o?: CallOptions): Promise<ResourceReport> {
    return this.#call('GET', environment(id, '/resources'), { window: q.window, step: q.step }, undefined, o);
  }

  /** An agent's connections to MCP servers, as the platform's database has them, with live status. */
  connections(agentID: string, o?: CallOptions): Promise<Connections> {
    return this.#call('GET', '/connections', { agent_id: agentID }, undefined, o);
  }

  /** Containers that agents list and no server claims. */
  discovered(o: CallOptions = {}): List<Discovered> {
    return this.#list('/discovered', {}, o);
  }

  /** Makes a managed server of a discovered container. Role admin. */
  adopt(environmentID: string, container: string, spec?: ServerSpec, o?: CallOptions): Promise<Server> {
    return this.#call('POST', `/discovered/${segment('environment id', environmentID)}/${segment('container', container)}/adopt`, {}, spec, o);
  }

  /** Defines a managed environment. Role admin. */
  addEnvironment(spec: EnvironmentSpec, o?: CallOptions): Promise<Environment> {
    return this.#call('POST', '/environments', {}, spec, o);
  }

  /** Replaces the whole definition of a managed environment; its tokens stay. Role admin. */
  setEnvironment(id: string, spec: EnvironmentSpec, o?: CallOptions): Promise<Environment> {
    return this.#call('PUT', environment(id), {}, spec, o);
  }

  /** Removes a managed environment that has no servers, and its tokens. Role admin. */
  removeEnvironment(id: string, o?: CallOptions): Promise<void> {
    return this.#call('DELETE', environment(id), {}, undefined, o);
  }

  /** The valid tokens of a managed environment's agent, without the tokens, newest first. Role admin. */
  async agentTokens(id: string, o?: CallOptions): Promise<AgentToken[]> {
    return (await this.#call<AgentTokens>('GET', environment(id, '/tokens'), {}, undefined, o)).items;
  }

  /** Makes a new token for a managed environment's agent; the one before stays valid. Role admin. */
  rotateAgentToken(id: string, o?: CallOptions): Promise<NewAgentToken> {
    return this.#call('POST', environment(id, '/tokens'), {}, undefined, o);
  }

  /** Ends a token of a managed environment's agent. Role admin. */
  dropAgentToken(id: string, tokenID: string, o?: CallOptions): Promise<void> {
    return this.#call('DELETE', environment(id, `/tokens/${segment('token id', tokenID)}`), {}, undefined, o);
  }

  // --- maintenance

  /** Maintenance windows that are open or will be, by id. */
  maintenance(o: CallOptions = {}): List<Maintenance> {
    return this.#list('/maintenance', {}, o);
  }

  /** One maintenance window. */
  maintenanceWindow(id: string, o?: CallOptions): Promise<Maintenance> {
    return this.#call('GET', `/maintenance/${segment('maintenance id', id)}`, {}, undefined, o);
  }

  /** Defines a maintenance window. Role operator. */
  addMaintenance(window: MaintenanceRequest, o?: CallOptions): Promise<Maintenance> {
    return this.#call('POST', '/maintenance', {}, window, o);
  }

  /** Ends a maintenance window and removes it; with occurrence, only the occurrence that is running. Role operator. */
  endMaintenance(id: string, q: { occurrence?: boolean | undefined } = {}, o?: CallOptions): Promise<void> {
    return this.#call('DELETE', `/maintenance/${segment('maintenance id', id)}`, { occurrence: q.occurrence || undefined }, undefined, o);
  }

  // --- the service

  /** What the credential is and may use. */
  whoami(o?: CallOptions): Promise<Whoami> {
    return this.#call('GET', '/whoami', {}, undefined, o);
  }

  /** Numbers of the fleet. */
  metrics(o?: CallOptions): Promise<Metrics> {
    return this.#call('GET', '/sync/metrics', {}, undefined, o);
  }

  /** Whether the service can do what it promises; also an unready one is an answer, not an error. */
  ready(o?: CallOptions): Promise<Ready> {
    return this.#request('GET', '/readyz', {}, undefined, o, 503);
  }

  /** Whether servers are probed. */
  probing(o?: CallOptions): Promise<Probing> {
    return this.#call('GET', '/probing', {}, undefined, o);
  }

  /** Starts or stops the monitoring, for everybody. Role admin. */
  setProbing(enabled: boolean, o?: CallOptions): Promise<Probing> {
    return this.#call('PUT', '/probing', {}, { enabled }, this.#long(o));
  }

  /** Reads the configuration again and puts it in force; a bad one changes nothing. Role admin. */
  reload(o?: CallOptions): Promise<Reload> {
    return this.#call('POST', '/reload', {}, undefined, this.#long(o));
  }

  /** Stops the service and starts it again. Role admin. */
  restart(o?: CallOptions): Promise<Restarting> {
    return this.#call('POST', '/restart', {}, undefined, this.#long(o));
  }

  /** Has a person's name forgotten: the service stops, erases and starts again, and erasure() says how far it is. Role admin. */
  erase(what: EraseRequest, o?: CallOptions): Promise<Erasure> {
    return this.#call('POST', '/erase', {}, what, this.#long(o));
  }

  /** How far an erasure is. Role admin. */
  erasure(id: string, o?: CallOptions): Promise<Erasure> {
    return this.#call('GET', `/erase/${segment('erasure id', id)}`, {}, undefined, o);
  }

  /** For pages: signs in with a token, by a cookie that scripts can't read. The client itself then needs no token. */
  signIn(token: string, o?: CallOptions): Promise<Whoami> {
    return this.#call('POST', '/session', {}, { token }, o);
  }

  /** For pages: ends what signIn() began. */
  signOut(o?: CallOptions): Promise<void> {
    return this.#call('DELETE', '/session', {}, undefined, o);
  }

  // --- live

  /**
   * What happens from now on, or after a cursor: as an async iterator or, with onEvent, as callbacks. It repairs every loss of the
   * connection, says when what came may have holes (resync), and ends only by you or where the service refuses for good.
   *
   *     for await (const event of client.subscribe([{ healths: ['unhealthy'] }], { snapshot: true })) …
   */
  subscribe(filters: readonly FilterClause[] = [], o: SubscribeOptions = {}): Subscription {
    return new Subscription(this.#connector(), filters, o);
  }

  /** All servers that a filter selects, kept up to date in memory, with synchronous reads. */
  mirror(o: MirrorOptions = {}): Mirror {
    return new Mirror(this, o);
  }

  #connector(): Connector {
    const WebSocket = this.#WebSocket ?? (globalThis as { WebSocket?: WebSocketConstructor }).WebSocket;
    if (typeof WebSocket !== 'function') {
      throw invalid('WebSocket', 'is not given, and there is no global one: hand in that of the package "ws", or use Node 22');
    }
    const base = this.baseURL || pageOrigin();
    return {
      baseURL: this.baseURL, WebSocket, webSocketURL: `${base.replace(/^http/, 'ws')}/api/v1/ws`, token: () => this.#bearer(),
      admitted: async (signal) => void (await this.whoami({ signal })),
    };
  }

  // --- calls

  /** For calls that are answered when something long is done. */
  #long(o: CallOptions = {}, ms = LONG_MS): CallOptions {
    return { ...o, timeoutMs: o.timeoutMs ?? Math.max(ms, this.#timeoutMs) };
  }

  async #bearer(): Promise<string | undefined> {
    const t = typeof this.#token === 'function' ? await this.#token() : this.#token;
    if (t) checkToken(t);
    return t || undefined;
  }

  #call<T>(method: string, path: string, params: Params, body?: unknown, o?: CallOptions): Promise<T> {
    return this.#request(method, `/api/v1${path}`, params, body, o);
  }

  async #request<T>(method: string, path: string, params: Params, body: unknown, o: CallOptions = {}, alsoOK = 0): Promise<T> {
    const { signal } = o;
    signal?.throwIfAborted();
    const ms = o.timeoutMs ?? this.#timeoutMs;
    const ending = new AbortController();
    const abort = () => ending.abort();
    signal?.addEventListener('abort', abort, { once: true });
    const timer = ms <= MAX_TIMER_MS ? setTimeout(abort, ms) : undefined;
    try {
      const token = await orAborted(this.#bearer(), ending.signal);
      const headers: Record<string, string> = { Accept: 'application/json, application/problem+json' };
      if (token) headers['Authorization'] = `Bearer ${token}`;
      if (method !== 'GET') headers['Content-Type'] = 'application/json'; // also without a body: every writing route wants it
      const resp = await this.#fetch(this.baseURL + path + query(params), {
        method, headers, signal: ending.signal, cache: 'no-store', redirect: 'error',
        // With a token, cookies have no say; without one, those of the page's own origin have.
        credentials: token ? 'omit' : 'same-origin',
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      return (await this.#answer(resp, alsoOK)) as T;
    } catch (e) {
      if (signal?.aborted) throw signal.reason;
      if (e instanceof ServiceError || e instanceof UnreachableError) throw e;
      if (ending.signal.aborted) throw new UnreachableError(this.baseURL, `no answer within ${ms / 1000} s`, { cause: e });
      throw new UnreachableError(this.baseURL, causeOf(e), { cause: e });
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', abort);
    }
  }

  async #answer(resp: Response, alsoOK: number): Promise<unknown> {
    const type = (resp.headers.get('content-type') ?? '').split(';')[0]!.trim().toLowerCase();
    const ok = (resp.ok || resp.status === alsoOK) && type !== 'application/problem+json';
    if (ok && resp.status === 204) return undefined;
    const text = await bounded(resp, ok ? MAX_BODY : 64 << 10);
    if (text === undefined) throw new UnreachableError(this.baseURL, 'the answer is larger than 32 MiB');
    let json: unknown;
    try {
      json = JSON.parse(text);
    } catch {
      json = undefined;
    }
    if (!ok) {
      // Only a problem is the service's own word; anything else is a proxy's page, or another program at that address.
      if (type !== 'application/problem+json') throw new UnreachableError(this.baseURL, `something answered HTTP ${resp.status}, but not as the statussync service does`);
      const p = (typeof json === 'object' && json !== null ? json : {}) as Partial<Problem>;
      const after = Number(resp.headers.get('retry-after') ?? NaN);
      throw errorOfProblem(
        { type: 'about:blank', title: resp.statusText, ...p, status: resp.status, code: p.code ?? codeOfStatus(resp.status) },
        Number.isFinite(after) && after >= 0 ? Math.min(after, 3600) * 1000 : undefined);
    }
    if (type !== 'application/json' || json === undefined) {
      throw new UnreachableError(this.baseURL, `something answered HTTP ${resp.status} with content type "${type}", which is not the statussync service`);
    }
    return json;
  }

  #list<T, P extends Page<T> = Page<T>>(path: string, params: Params, o: CallOptions, pageParam = 'cursor', first?: string): List<T, P> {
    const page = (q: PageQuery = {}, own: CallOptions = {}): Promise<P> =>
      this.#call('GET', path, { ...params, limit: q.limit, [pageParam]: q.cursor ?? first }, undefined, { ...o, ...own });
    async function* each(): AsyncGenerator<T, void, undefined> {
      for (let cursor: string | undefined; ; ) {
        const p = await page({ limit: 1000, cursor });
        yield* p.items;
        if (!p.next_cursor) return;
        cursor = p.next_cursor;
      }
    }
    return {
      page,
      all: async () => {
        const out: T[] = [];
        for await (const item of each()) out.push(item);
        return out;
      },
      [Symbol.asyncIterator]: each,
    };
  }
}

function checkURL(baseURL: string | undefined): string {
  if (baseURL === undefined) return pageOrigin() ? '' : 'http://127.0.0.1:8080';
  if (baseURL === '' || baseURL.startsWith('/')) {
    if (!pageOrigin()) throw invalid('baseURL', 'must begin with http:// or https://');
    return baseURL.replace(/\/+$/, '');
  }
  let u: URL;
  try {
    u = new URL(baseURL);
  } catch {
    throw invalid('baseURL', 'is not a URL'); // without it: it may hold a password
  }
  if (u.protocol !== 'http:' && u.protocol !== 'https:') throw invalid('baseURL', 'must begin with http:// or https://');
  if (u.username || u.password) throw invalid('baseURL', 'must not hold a user or password; the credential is the token');
  if (u.search || u.hash) throw invalid('baseURL', 'must not have a query or a fragment');
  return u.origin + u.pathname.replace(/\/+$/, '');
}

/** The origin of the page that runs this, "" where there is none. */
function pageOrigin(): string {
  const l = (globalThis as { location?: { origin?: string } }).location;
  return typeof l?.origin === 'string' && /^https?:/.test(l.origin) ? l.origin : '';
}

function checkToken(t: string): void {
  if (!/^[!-~]+$/.test(t)) throw invalid('token', 'must be visible ASCII characters without spaces');
}

function segment(what: string, s: string): string {
  if (typeof s !== 'string' || s === '') throw invalid(what, 'is missing');
  if (s === '.' || s === '..') throw invalid(what, `"${s}" is not one`); // a URL would lose it
  return encodeURIComponent(s);
}

function server(id: string, rest = ''): string {
  return `/servers/${segment('server id', id)}${rest}`;
}

function environment(id: string, rest = ''): string {
  return `/environments/${segment('environment id', id)}${rest}`;
}

function labels(l: Readonly<Record<string, string>> | undefined): readonly string[] | undefined {
  return l && Object.entries(l).map(([k, v]) => `${k}=${v}`);
}

function serverParams(q: ServerQuery): Params {
  return {
    states: q.states, healths: q.healths, availability: q.availability, environment_ids: q.environment_ids, label: labels(q.labels),
    q: q.q || undefined,
  };
}

function query(params: Params): string {
  const q = new URLSearchParams();
  for (const [k, v] of Object.entries(params)) {
    if (v === undefined) continue;
    if (typeof v !== 'object') q.append(k, String(v));
    else if (k === 'label') v.forEach((l) => q.append(k, l)); // values may hold commas
    else q.append(k, v.join(','));
  }
  const s = q.toString();
  return s && `?${s}`;
}

/** The promise, unless the signal is first. */
function orAborted<T>(p: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    p.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}

/** Reads a body of at most max bytes; undefined where it is larger. */
async function bounded(resp: Response, max: number): Promise<string | undefined> {
  const body = resp.body;
  if (!body) return resp.text();
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = '';
  for (let n = 0; ; ) {
    const { done, value } = await reader.read();
    if (done) return text + decoder.decode();
    n += value.byteLength;
    if (n > max) {
      await reader.cancel();
      return undefined;
    }
    text += decoder.decode(value, { stream: true });
  }
}

/** The words that help a person: fetch hides them in the cause. */
function causeOf(e: unknown): string {
  let err = e as { message?: unknown; cause?: unknown; errors?: unknown[]; code?: unknown };
  for (let i = 0; i < 3 && err && typeof err === 'object'; i++) {
    const inner = err.cause ?? err.errors?.[0];
    if (typeof inner !== 'object' || inner === null) break;
    err = inner as typeof err;
  }
  return String(err?.message || err?.code || e).slice(0, 300);
}

