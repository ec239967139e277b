import { ServiceError, StatusSyncError, UnreachableError, invalid } from './errors.js';
import type { ClientFrame, Code, Cursor, FilterClause, Mode, Open, Server, ServerFrame, Update } from './types.js';

/** The part of a WebSocket that is used: browsers, Node ≥ 22 and the package "ws" have it. */
export interface WebSocketLike {
  readonly readyState: number;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(data: string): void;
  close(code?: number, reason?: string): void;
}

/** A WebSocket's constructor. */
export interface WebSocketConstructor {
  new (url: string): WebSocketLike;
}

/**
 * One thing that a subscriber is told.
 *
 * A snapshot is a run of "snapshot" events, the last with more false, and then "snapshot_end": what it did not list is
 * gone. Where the connection breaks in between, "subscribed" tells that the snapshot begins anew; what had come of it is
 * to be forgotten. After "resync" a snapshot follows: some of what happened since the last event may never be told.
 *
 * A cursor given to another subscription with the same filter continues after the event that has it.
 */
export type SubscriptionEvent =
  /**
   * The connection is made. recovered: the position that was given is continued without a gap; durable: the service's store is
   * working. Without a cursor there is no position to go on from yet: a snapshot follows.
   */
  | { type: 'subscribed'; cursor: Cursor | undefined; recovered: boolean; durable: boolean }
  | { type: 'snapshot'; items: Server[]; more: boolean }
  | { type: 'snapshot_end'; cursor: Cursor }
  | { type: 'entry'; cursor: Cursor; entry: Update }
  /** Everything up to cursor was considered for this subscription: worth storing where a program wants to resume. */
  | { type: 'bookmark'; cursor: Cursor }
  /** gap: this client found that something is missing; expired, epoch: the service can't continue the position. */
  | { type: 'resync'; reason: Open<'expired' | 'epoch' | 'gap'> };

/**
 * How a subscription's connection is doing.
 *
 * connecting: the first attempt. catching_up: connected, and what is known is not yet the present. live: what is known is
 * the present. reconnecting: the connection was lost, and is tried again; what is known is true as of asOf.
 * paused: the reader of the iterator is behind by more than its buffer; see SubscribeOptions.maxBuffer. closed: it is over.
 */
export type ConnectionPhase = 'connecting' | 'catching_up' | 'live' | 'reconnecting' | 'paused' | 'closed';

/** A subscription's connection as it is. */
export interface ConnectionState {
  phase: ConnectionPhase;
  /** When this phase began; with reconnecting, when the connection was lost, however many attempts failed since. */
  since: Date;
  /** When the service was last heard while the subscription was live: what is known was true then. Undefined: never. */
  asOf: Date | undefined;
  /** How many attempts have failed in a row; 0 while connected. */
  attempt: number;
  /** reconnecting: how long is waited before the next attempt. */
  retryInMs: number | undefined;
  /** reconnecting, closed: why. */
  error: Error | undefined;
}

/** How to be told. */
export interface SubscribeOptions {
  /** Resume after it; absent: from now on. */
  cursor?: Cursor | undefined;
  /** The current statuses first; implies leave. */
  snapshot?: boolean | undefined;
  /** Every entry in order (default), or the newest of each server, which implies leave. */
  mode?: Mode | undefined;
  /** An update matches also when the previous status did, so that a list of "all unhealthy" hears who left it. */
  leave?: boolean | undefined;
  /** Ends the subscription; an iterator then throws the signal's reason. */
  signal?: AbortSignal | undefined;
  /** Called for each event. With it the subscription starts at once and can't be iterated. What it throws is reported, and the subscription goes on. */
  onEvent?: ((event: SubscriptionEvent) => void) | undefined;
  /** Called at each change of the connection. */
  onState?: ((state: ConnectionState) => void) | undefined;
  /** Called once, where the subscription ends for another reason than close(): a refusal for good, or the signal. */
  onError?: ((error: Error) => void) | undefined;
  /** End with an error where the first connection fails, instead of trying on. */
  mustConnect?: boolean | undefined;
  /**
   * How many events an iterator holds for a reader that is behind (default 10,000). When they are more, the connection
   * is closed (phase paused) until the reader has taken half of them, and is resumed where it stopped: memory stays bounded,
   * and nothing is lost, unless the service's retention passes the position, which is a resync. In mode latest, what changed
   * meanwhile is merged by the service. A snapshot is always held whole.
   */
  maxBuffer?: number | undefined;
  /** Bounds of the wait before a reconnect, in ms: random between 0 and a cap from min (250), doubling up to max (30,000). */
  backoffMinMs?: number | undefined;
  backoffMaxMs?: number | undefined;
  /** After how long a silence the service is asked for a sign of life, in ms (15,000), and how long that may take (10,000). */
  pingAfterMs?: number | undefined;
  pongWithinMs?: number | undefined;
}

/** What a subscription needs of its client. */
export interface Connector {
  readonly baseURL: string;
  readonly webSocketURL: string;
  readonly WebSocket: WebSocketConstructor;
  token(): Promise<string | undefined>;
  /** Asks over HTTP whether the service would let us in: a browser doesn't tell why a handshake failed. */
  admitted(signal: AbortSignal): Promise<void>;
}

const HANDSHAKE_MS = 10_000;
const TOKEN_MS = 30_000; // for a function that gives a token
const MAX_TIMER_MS = 2 ** 31 - 1; // a timer with more fires at once
const MAX_CLIENT_FRAME = 64 << 10;
const MAX_TRACKED = 1 << 20; // servers whose versions are followed; others are delivered unchecked

/** Close codes of docs/protocols.md §2, and what they mean. */
const CLOSE_TEXT: Record<number, string> = {
  1000: 'the service closed the connection', 1001: 'the service is going away', 1006: 'the connection was lost',
  4001: 'the token has expired', 4008: 'this client reads too slowly', 4011: 'the service is shutting down', 4029: 'too many requests',
};
const TERMINAL: Record<number, [Code, string]> = {
  4500: ['unauthorized', 'a valid credential is needed'],
  4501: ['invalid', 'the service did not understand the subscription'],
  4503: ['forbidden', 'the credential does not allow this'],
  4504: ['rate_limited', 'a limit of the service is reached'],
};

/** Whether a client should connect again after a close with this code: 4500 to 4999 would only meet the same refusal. */
export function reconnects(closeCode: number): boolean {
  return closeCode < 4500 || closeCode > 4999;
}

interface Position {
  epoch: string;
  seq: number;
}

function position(cursor: Cursor): Position | undefined {
  const at = cursor.lastIndexOf(':');
  const seq = Number(cursor.slice(at + 1));
  return at > 0 && Number.isSafeInteger(seq) ? { epoch: cursor.slice(0, at), seq } : undefined;
}

/** A loss of the connection that a reconnect repairs. */
class Lost {
  constructor(readonly error: Error, readonly waitMs = 0, readonly atLeastAttempt = 0) {}
}

/** What came broke the order or number that the service promises. */
class Gap {
  constructor(readonly text: string) {}
}

/** What is known of one connection. */
class Link {
  open = false;
  subscribed = false;
  at: Position | undefined; // newest position on this connection
  target: Position | undefined; // from here on it is live
  received = 0; // entries
  refused: ServiceError | undefined; // the last error frame
  heard = Date.now();
  pinged = 0; // when a sign of life was asked for; 0: it was not
  within = 0; // how long that may take
  watch: ReturnType<typeof setTimeout> | undefined;
  again: ReturnType<typeof setTimeout> | undefined;
  readonly began = Date.now();
  errorText = '';
  constructor(readonly ws: WebSocketLike) {}
}

/**
 * A live subscription. It repairs every loss of its connection: after a wait it goes on from where it was. It ends by
 * close(), by its signal, by leaving a loop over it, and where the service refuses for good.
 *
 * Use it as an async iterator (once), or with SubscribeOptions.onEvent. An iterated subscription connects when the
 * iteration begins.
 */
export class Subscription implements AsyncIterable<SubscriptionEvent> {
  /** Resolves when the subscription is over, with the reason; undefined: it was closed. Never rejects. */
  readonly closed: Promise<Error | undefined>;

  #c: Connector;
  #o: SubscribeOptions;
  #filters: readonly FilterClause[];
  #mode: Mode;
  #leave: boolean;
  #checkOrder: boolean;

  #link: Link | undefined;
  #started = false;
  #over = false;
  #end: Error | undefined;
  #resume: Cursor | undefined; // everything up to here was handed over
  #delivered: Cursor | undefined; // everything up to here was taken by the reader
  #needSnapshot: boolean;
  #everConnected = false;
  #attempt = 0; // of the backoff: a connection that is lost soon does not begin it anew
  #versions = new Map<string, number>();
  #retry: ReturnType<typeof setTimeout> | undefined;
  #dialing: AbortController | undefined;
  #phase: ConnectionPhase = 'connecting';
  #since = new Date();
  #asOf = 0;
  #retryIn: number | undefined;
  #error: Error | undefined;

  #buffer: SubscriptionEvent[] = [];
  #head = 0;
  #maxBuffer: number;
  #waiting: { resolve: (r: IteratorResult<SubscriptionEvent, undefined>) => void; reject: (e: unknown) => void } | undefined;
  #iterated = false;
  #resolveClosed!: (e: Error | undefined) => void;
  #unhook: (() => void)[] = [];

  /** Use Client.subscribe. */
  constructor(c: Connector, filters: readonly FilterClause[], o: SubscribeOptions) {
    this.#c = c;
    this.#o = o;
    this.#filters = filters;
    this.#mode = o.mode ?? 'every';
    this.#leave = Boolean(o.leave || o.snapshot || this.#mode === 'latest'); // must hold after a reconnect without a snapshot, too
    this.#needSnapshot = Boolean(o.snapshot);
    this.#resume = o.cursor || undefined;
    this.#delivered = this.#resume;
    this.#maxBuffer = o.maxBuffer ?? 10_000;
    this.#checkOrder = this.#mode === 'every' && complete(filters);
    if (this.#mode !== 'every' && this.#mode !== 'latest') throw invalid('mode', `"${String(o.mode)}" is not one of every, latest`);
    if (!Array.isArray(filters)) throw invalid('filters', 'must be a list of clauses');
    if (!(this.#maxBuffer >= 1)) throw invalid('maxBuffer', 'must be at least 1');
    if (new TextEncoder().encode(JSON.stringify(this.#hello())).length > MAX_CLIENT_FRAME) {
      throw new ServiceError('filters are longer than the 64 KiB that the service takes', { code: 'too_large', location: 'filters' });
    }
    this.closed = new Promise((resolve) => (this.#resolveClosed = resolve));
    const signal = o.signal;
    if (signal) {
      const abort = () => this.#finish(asError(signal.reason), true);
      signal.addEventListener('abort', abort, { once: true });
      this.#unhook.push(() => signal.removeEventListener('abort', abort));
    }
    if (o.onEvent) queueMicrotask(() => this.#start());
  }

  /** How the connection is doing now. */
  get state(): ConnectionState {
    const connected = this.#phase === 'live' || this.#phase === 'catching_up';
    return {
      phase: this.#phase, since: this.#since, asOf: this.#asOf ? new Date(this.#asOf) : undefined, attempt: connected ? 0 : this.#attempt,
      retryInMs: this.#retryIn, error: this.#error,
    };
  }

  /** Where another subscription continues after the last event that was taken; undefined: nothing was told yet. */
  get cursor(): Cursor | undefined {
    return this.#delivered;
  }

  /** Ends the subscription; a second call does nothing. A loop over it ends without an error; what it held is dropped. */
  close(): void {
    this.#buffer = [];
    this.#head = 0;
    this.#finish(undefined, true);
  }

  /** Connects now where a reconnect is being waited for, and checks a connection that seems live. */
  check(): void {
    if (this.#retry !== undefined) {
      clearTimeout(this.#retry);
      this.#retry = undefined;
      this.#connect();
    } else if (this.#link?.subscribed) {
      this.#askForLife(this.#link, Math.min(5_000, this.#pongWithin));
    }
  }

  /** The events; can be asked for once. */
  [Symbol.asyncIterator](): AsyncIterator<SubscriptionEvent, undefined> {
    if (this.#o.onEvent) throw invalid('subscription', 'has an onEvent and can\'t be iterated as well');
    if (this.#iterated) throw invalid('subscription', 'can be iterated only once');
    this.#iterated = true;
    this.#start();
    return {
      next: () => this.#next(),
      return: () => {
        this.close();
        return Promise.resolve({ done: true, value: undefined });
      },
    };
  }

  #start(): void {
    if (this.#started || this.#over) return;
    this.#started = true;
    const signal = this.#o.signal;
    if (signal?.aborted) return this.#finish(asError(signal.reason), true);
    const g = globalThis as any;
    if (typeof g.document !== 'undefined' && typeof g.addEventListener === 'function') {
      // Hints only: what they lead to is checked.
      const check = () => this.check();
      const offline = () => this.#link && this.check();
      const seen = () => g.document.visibilityState === 'visible' && this.check();
      g.addEventListener('online', check);
      g.addEventListener('offline', offline);
      g.addEventListener('pageshow', check);
      g.document.addEventListener?.('visibilitychange', seen);
      this.#unhook.push(() => {
        g.removeEventListener('online', check);
        g.removeEventListener('offline', offline);
        g.removeEventListener('pageshow', check);
        g.document.removeEventListener?.('visibilitychange', seen);
      });
    }
    this.#tell('connecting');
    this.#connect();
  }

  #next(): Promise<IteratorResult<SubscriptionEvent, undefined>> {
    if (this.#head < this.#buffer.length) {
      const ev = this.#buffer[this.#head]!;
      this.#head++;
      if (this.#head === this.#buffer.length) {
        this.#buffer = [];
        this.#head = 0;
      } else if (this.#head > 1024 && this.#head * 2 > this.#buffer.length) {
        this.#buffer = this.#buffer.slice(this.#head);
        this.#head = 0;
      }
      this.#taken(ev);
      if (this.#phase === 'paused' && (this.#buffer.length - this.#head) * 2 <= this.#maxBuffer) this.#connect();
      return Promise.resolve({ done: false, value: ev });
    }
    if (this.#over) {
      const err = this.#end;
      this.#end = undefined; // told once, as generators do
      return err ? Promise.reject(err) : Promise.resolve({ done: true, value: undefined });
    }
    if (this.#waiting) return Promise.reject(invalid('subscription', 'has one reader; next() was called before the last one was answered'));
    return new Promise((resolve, reject) => (this.#waiting = { resolve, reject }));
  }

  #taken(ev: SubscriptionEvent): void {
    if (ev.type === 'resync') this.#delivered = undefined;
    else if (ev.type !== 'snapshot') this.#delivered = ev.cursor;
  }

  #deliver(ev: SubscriptionEvent): void {
    if (this.#o.onEvent) {
      this.#taken(ev);
      guarded(() => this.#o.onEvent!(ev));
      return;
    }
    const w = this.#waiting;
    if (w) {
      this.#waiting = undefined;
      this.#taken(ev);
      w.resolve({ done: false, value: ev });
      return;
    }
    this.#buffer.push(ev);
    // Each connection must get on by an entry at least; and a snapshot that is cut begins anew, so it is held whole.
    if ((ev.type === 'entry' || ev.type === 'snapshot_end') && !this.#needSnapshot && this.#buffer.length - this.#head >= this.#maxBuffer && this.#link) {
      this.#drop(this.#link);
      this.#link = undefined;
      this.#retryIn = undefined;
      this.#tell('paused');
    }
  }

  #tell(phase: ConnectionPhase): void {
    if (phase !== this.#phase) this.#since = new Date();
    this.#phase = phase;
    if (phase !== 'reconnecting') this.#retryIn = undefined;
    if (phase === 'live') {
      this.#error = undefined;
      this.#asOf = Date.now();
    }
    const onState = this.#o.onState;
    if (onState) {
      const s = this.state;
      guarded(() => onState(s));
    }
  }

  /** Ends everything. Where now is false, what an iterator holds is still read. */
  #finish(err: Error | undefined, now: boolean): void {
    if (this.#over) return;
    this.#over = true;
    this.#end = err;
    this.#error = err;
    for (const f of this.#unhook) f();
    clearTimeout(this.#retry);
    this.#retry = undefined;
    this.#dialing?.abort();
    if (this.#link) this.#drop(this.#link);
    this.#link = undefined;
    if (now) {
      this.#buffer = [];
      this.#head = 0;
    }
    this.#versions.clear();
    this.#tell('closed');
    const w = this.#waiting;
    this.#waiting = undefined;
    if (w) {
      this.#end = undefined;
      if (err) w.reject(err);
      else w.resolve({ done: true, value: undefined });
    }
    if (err && this.#o.onError) guarded(() => this.#o.onError!(err));
    this.#resolveClosed(err);
  }

  #hello(): ClientFrame {
    return {
      type: 'subscribe', channel: 'mcp_server_status',
      ...(this.#resume && !this.#needSnapshot ? { cursor: this.#resume } : {}),
      ...(this.#needSnapshot ? { snapshot: true } : {}),
      ...(this.#mode === 'every' ? {} : { mode: this.#mode }),
      ...(this.#leave ? { leave: true } : {}),
      ...(this.#filters.length ? { filters: this.#filters } : {}),
    };
  }

  #connect(): void {
    const dialing = new AbortController();
    this.#dialing = dialing;
    if (this.#phase === 'paused') this.#tell('reconnecting');
    let waiting = true;
    const answered = (f: () => void) => {
      clearTimeout(late);
      if (waiting && !this.#over) f();
      waiting = false;
    };
    const late = setTimeout(() => answered(() => this.#lost(undefined, new Lost(new Error(`there was no token within ${TOKEN_MS / 1000} s`)))), TOKEN_MS);
    dialing.signal.addEventListener('abort', () => answered(() => {}));
    this.#c.token().then(
      (token) => answered(() => this.#dial(token)),
      (e: unknown) => answered(() => this.#lost(undefined, new Lost(asError(e)))),
    );
  }

  #dial(token: string | undefined): void {
    let ws: WebSocketLike;
    try {
      ws = new this.#c.WebSocket(this.#c.webSocketURL);
    } catch (e) {
      this.#finish(new ServiceError(`the address ${this.#c.webSocketURL} can't be opened: ${asError(e).message}`, { code: 'invalid', location: 'baseURL' }), false);
      return;
    }
    const link = new Link(ws);
    this.#link = link;
    const mine = () => this.#link === link && !this.#over;
    link.watch = setTimeout(() => mine() && this.#failed(link, new UnreachableError(this.#c.baseURL, 'no answer in time')), HANDSHAKE_MS);
    ws.onopen = () => {
      if (!mine()) return;
      link.open = true;
      link.heard = Date.now();
      clearTimeout(link.watch);
      link.watch = setTimeout(
        () => mine() && this.#lost(link, new Lost(new UnreachableError(this.#c.baseURL, 'the subscription was not answered in time'))), HANDSHAKE_MS);
      if (token) this.#send(link, { type: 'auth', token });
      this.#send(link, this.#hello());
    };
    ws.onmessage = (ev: { data: unknown }) => {
      if (!mine()) return;
      this.#message(link, ev.data);
    };
    ws.onerror = (ev: { message?: unknown }) => {
      if (typeof ev?.message === 'string') link.errorText = ev.message.slice(0, 300);
    };
    ws.onclose = (ev: { code: number; reason: unknown }) => {
      if (!mine()) return;
      if (!link.open) return this.#failed(link, new UnreachableError(this.#c.baseURL, link.errorText || 'the WebSocket handshake failed'));
      this.#closedBy(link, ev.code, typeof ev.reason === 'string' ? ev.reason : '');
    };
  }

  /** The handshake failed, and a browser does not tell why: a refusal for good is found out by asking over HTTP. */
  #failed(link: Link, err: Error): void {
    this.#drop(link);
    this.#link = undefined;
    const dialing = this.#dialing!;
    const stop = setTimeout(() => dialing.abort(), HANDSHAKE_MS);
    this.#c.admitted(dialing.signal).then(
      () => this.#over || this.#lost(undefined, new Lost(err)),
      (e: unknown) => {
        if (this.#over) return;
        if (!(e instanceof ServiceError)) return this.#lost(undefined, new Lost(e instanceof StatusSyncError ? e : err));
        if (e.code === 'unauthorized' || e.code === 'forbidden') return this.#finish(e, false);
        this.#lost(undefined, new Lost(e, e.retryAfterMs ?? 0));
      },
    ).finally(() => clearTimeout(stop));
  }

  #closedBy(link: Link, code: number, reason: string): void {
    if (!reconnects(code)) {
      const [c, text] = TERMINAL[code] ?? ['forbidden', 'the service refused for good']; // newer than this client
      this.#finish(new ServiceError(link.refused?.message || reason || text, { code: link.refused?.code ?? c, closeCode: code }), false);
      return;
    }
    let text = `${CLOSE_TEXT[code] ?? 'the service closed the connection'} (close code ${code}`;
    if (reason) text += `: ${reason}`;
    if (link.errorText) text += `: ${link.errorText}`;
    this.#lost(link, new Lost(new UnreachableError(this.#c.baseURL, `${text})`), 0, code === 4029 ? 4 : 0));
  }

  /** Lets a connection go: nothing of it counts any more. A dead one is not said goodbye to, where that can be left out. */
  #drop(link: Link, dead = false): void {
    clearTimeout(link.watch);
    clearTimeout(link.again);
    link.ws.onopen = link.ws.onmessage = link.ws.onclose = null;
    link.ws.onerror = () => {}; // the package "ws" throws where nobody listens
    try {
      const ws: WebSocketLike & { terminate?: () => void } = link.ws;
      if (dead && typeof ws.terminate === 'function') ws.terminate(); // the package "ws" would wait 30 s for an answer
      else ws.close(1000);
    } catch {
      // It never was one.
    }
  }

  #lost(link: Link | undefined, why: Lost | Gap): void {
    if (link) this.#drop(link);
    this.#link = undefined;
    let error: Error;
    let wait = 0;
    if (why instanceof Gap) {
      error = new UnreachableError(this.#c.baseURL, `something is missing in what came: ${why.text}`);
      this.#needSnapshot = true;
      this.#resume = undefined;
      this.#versions.clear();
    } else {
      error = why.error;
      wait = why.waitMs;
      if (this.#o.mustConnect && !this.#everConnected) return this.#finish(error, false);
      this.#attempt = Math.max(this.#attempt, why.atLeastAttempt);
    }
    const max = Math.min(this.#o.backoffMaxMs ?? 30_000, MAX_TIMER_MS);
    if (link && Date.now() - link.began > max) this.#attempt = 0; // it lived: whatever ended it is a new affair
    wait = Math.max(wait, backoff(this.#attempt, this.#o.backoffMinMs ?? 250, max));
    this.#attempt++;
    this.#error = error;
    this.#retryIn = wait;
    this.#retry = setTimeout(() => {
      this.#retry = undefined;
      this.#connect();
    }, wait);
    this.#tell('reconnecting');
    // Last, as the reader may close the subscription now, or be behind.
    if (why instanceof Gap) this.#deliver({ type: 'resync', reason: 'gap' });
  }

  #send(link: Link, f: ClientFrame): void {
    try {
      link.ws.send(JSON.stringify(f));
    } catch {
      // It is closing: that is told by its close event.
    }
  }

  get #pongWithin(): number {
    return Math.min(this.#o.pongWithinMs ?? 10_000, MAX_TIMER_MS);
  }

  /** Watches for silence: a dead network closes nothing by itself. The service's own pings are not visible here. */
  #watch(link: Link): void {
    clearTimeout(link.watch);
    const after = Math.min(this.#o.pingAfterMs ?? 15_000, MAX_TIMER_MS);
    const now = Date.now();
    if (link.pinged && link.heard >= link.pinged) link.pinged = 0;
    let wait: number;
    if (link.pinged) {
      wait = link.pinged + link.within - now;
      if (wait <= 0) {
        this.#drop(link, true);
        this.#lost(link, new Lost(new UnreachableError(this.#c.baseURL, `no sign of life for ${Math.round((now - link.heard) / 1000)} s`)));
        return;
      }
      wait = Math.min(wait, after); // it may answer at once, and fall silent again
    } else {
      wait = link.heard + after - now;
      if (wait <= 0) {
        this.#askForLife(link, this.#pongWithin);
        return;
      }
    }
    link.watch = setTimeout(() => this.#link === link && this.#watch(link), wait);
  }

  #askForLife(link: Link, within: number): void {
    const now = Date.now();
    if (link.pinged && link.heard < link.pinged && link.pinged + link.within <= now + within) return; // asked already
    link.pinged = now;
    link.within = within;
    // What came in this very millisecond came before.
    if (link.heard >= now) link.heard = now - 1;
    this.#send(link, { type: 'ping' });
    this.#watch(link);
  }

  #message(link: Link, data: unknown): void {
    link.heard = Date.now();
    if (this.#phase === 'live') this.#asOf = link.heard;
    let f: ServerFrame | undefined;
    if (typeof data === 'string') {
      try {
        f = JSON.parse(data) as ServerFrame;
      } catch {
        // told below
      }
    }
    if (typeof f !== 'object' || f === null || typeof f.type !== 'string') {
      return this.#lost(link, new Lost(new UnreachableError(this.#c.baseURL, 'the service sent a frame that is not understood')));
    }
    try {
      this.#take(link, f);
    } catch (e) {
      // A frame without what its type has: as bad as one that is no JSON.
      if (this.#link === link) this.#lost(link, new Lost(new UnreachableError(this.#c.baseURL, `the service sent a ${f.type} frame that is not understood`, { cause: e })));
    }
  }

  #live(link: Link): void {
    link.target = undefined;
    clearTimeout(link.again);
    if (this.#phase === 'live') return;
    this.#tell('live');
  }

  /** Asks where the service is: its answer has a cursor as soon as nothing is on its way to us any more. */
  #askWhere(link: Link): void {
    this.#send(link, { type: 'ping' });
  }

  #take(link: Link, f: ServerFrame): void {
    switch (f.type) {
      case 'subscribed': {
        const asked = this.#resume;
        link.subscribed = true;
        link.at = position(f.cursor);
        if (!asked || !f.recovered) this.#versions.clear();
        if (asked && f.recovered && !this.#needSnapshot) {
          link.target = link.at;
          link.at = position(asked);
        }
        // Where nothing is to be replayed or shown first, the subscription is live from this position.
        if (!asked && !this.#needSnapshot) this.#resume = f.cursor;
        this.#everConnected = true;
        this.#watch(link);
        const live = !asked && !this.#needSnapshot;
        if (!live) this.#tell('catching_up');
        // What is between the position given and the service's is still to be told.
        const safe = this.#needSnapshot ? undefined : asked ? (f.recovered ? asked : undefined) : f.cursor;
        this.#deliver({ type: 'subscribed', cursor: safe, recovered: f.recovered, durable: f.durable });
        if (this.#link !== link) return;
        if (live) this.#live(link);
        else if (link.target) this.#askWhere(link);
        return;
      }
      case 'snapshot':
        this.#needSnapshot = true;
        for (const s of f.items) this.#track(s.id, s.status.version);
        return this.#deliver({ type: 'snapshot', items: f.items, more: f.more });
      case 'snapshot_end':
        this.#needSnapshot = false;
        this.#resume = f.cursor;
        link.at = position(f.cursor);
        this.#deliver({ type: 'snapshot_end', cursor: f.cursor });
        if (this.#link === link) this.#live(link);
        return;
      case 'resync':
        this.#needSnapshot = true;
        this.#resume = undefined;
        link.at = link.target = undefined;
        this.#versions.clear();
        this.#tell('catching_up');
        return this.#deliver({ type: 'resync', reason: f.reason });
      case 'bookmark':
        if (f.sent !== link.received) return this.#lost(link, new Gap(`the service sent ${f.sent} entries, ${link.received} came`));
        if (!this.#needSnapshot) this.#resume = f.cursor;
        this.#deliver({ type: 'bookmark', cursor: f.cursor });
        if (this.#link === link && !this.#needSnapshot) this.#live(link);
        return;
      case 'pong':
        if (this.#needSnapshot || !link.subscribed) return;
        if (f.cursor) return this.#live(link);
        if (link.target) {
          clearTimeout(link.again);
          link.again = setTimeout(() => this.#link === link && link.target && this.#askWhere(link), 500);
        }
        return;
      case 'error': {
        const e = new ServiceError(f.detail || f.code, { code: f.code });
        link.refused = e;
        if (f.retryable) return this.#lost(link, new Lost(e));
        return this.#finish(e, false);
      }
      case 'auth_ok':
      case 'unsubscribed':
        return;
      default: {
        const entry = (f as { data?: unknown }).data;
        const cursor = (f as { cursor?: unknown }).cursor;
        // Whatever else a newer service says is no affair of ours.
        if (typeof entry === 'object' && entry !== null && typeof cursor === 'string') this.#entry(link, cursor, entry as Update);
      }
    }
  }

  #entry(link: Link, cursor: Cursor, e: Update): void {
    const versioned = (e.kind === 'status' || e.kind === 'server_removed') && e.server_id !== undefined && e.version !== undefined;
    const known = versioned ? this.#versions.get(e.server_id!) : undefined;
    if (this.#mode === 'latest') {
      // Entries of different servers come in no promised order. The frame's cursor is the place to resume from, and what was
      // told after it may come again.
      link.received++;
      if (!this.#needSnapshot) this.#resume = cursor;
      if (versioned) {
        if (known !== undefined && e.version! <= known) return;
        this.#track(e.server_id!, e.version!);
      }
      return this.#deliver({ type: 'entry', cursor, entry: e });
    }
    if (!link.subscribed) return this.#lost(link, new Lost(new UnreachableError(this.#c.baseURL, 'the service sent an entry before the subscription was confirmed')));
    if (link.at) {
      if (e.epoch !== link.at.epoch) return this.#lost(link, new Gap(`the journal changed from ${link.at.epoch} to ${e.epoch} without a resync`));
      if (e.seq === link.at.seq || (e.seq < link.at.seq && known !== undefined && e.version! <= known)) return; // a repeat: somebody between us told it twice
      if (e.seq < link.at.seq) return this.#lost(link, new Gap(`entry ${e.seq} came after ${link.at.seq}`));
    }
    link.received++;
    if (versioned) {
      if (this.#checkOrder && known !== undefined && e.version !== known + 1) {
        return this.#lost(link, new Gap(`version ${e.version} of server ${JSON.stringify(e.server_id)} came after version ${known}`));
      }
      this.#track(e.server_id!, e.version!);
    }
    link.at = { epoch: e.epoch, seq: e.seq };
    if (!this.#needSnapshot) this.#resume = cursor;
    const t = link.target;
    this.#deliver({ type: 'entry', cursor, entry: e });
    if (this.#link === link && t && t.epoch === e.epoch && e.seq >= t.seq) this.#live(link);
  }

  #track(id: string, version: number): void {
    if (this.#versions.has(id) || this.#versions.size < MAX_TRACKED) this.#versions.set(id, version);
  }
}

/** Whether a filter lets every status and server_removed through, so that versions rise by exactly one. */
function complete(filters: readonly FilterClause[]): boolean {
  return (
    filters.length === 0 ||
    filters.some((f) => {
      const given = (Object.keys(f) as (keyof FilterClause)[]).filter((k) => f[k] !== undefined && f[k] !== null);
      return given.every((k) => k === 'kinds') && (!f.kinds || (f.kinds.includes('status') && f.kinds.includes('server_removed')));
    })
  );
}

/**
 * A random wait below a cap that doubles with each failed attempt (full jitter): many clients that lost the same service
 * come back spread out.
 */
export function backoff(attempt: number, minMs: number, maxMs: number): number {
  return Math.random() * Math.min(maxMs, minMs * 2 ** Math.min(attempt, 30));
}

function asError(e: unknown): Error {
  return e instanceof Error ? e : new Error(String(e));
}

/** Calls what the user gave; what it throws is the user's bug, is shown as one, and stops nothing here. */
function guarded(f: () => void): void {
  try {
    f();
  } catch (e) {
    const report = (globalThis as { reportError?: (e: unknown) => void }).reportError;
    if (typeof report === 'function') report(e);
    else console.error(e);
  }
}
