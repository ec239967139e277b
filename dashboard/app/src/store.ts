// The live fleet as signals. Views read it; only this file writes it.
//
// servers holds one signal a server, so that an update renders what shows that server and nothing else. What comes is
// gathered and applied once an animation frame, or more seldom where that costs much: applying never takes more than
// about a tenth of the time, whatever the fleet does.
import type { ConnectionState, Subscription, SubscriptionEvent } from "@statussync/client";
import { batch, signal, type ReadonlySignal, type Signal } from "@preact/signals";
import { all, ApiError, get, getServer, identify, me, serverClock, signInNeeded } from "./api";
import { told, type Line } from "./core/feed";
import { applied, countsOf, needsReading, ordered, type Counts } from "./core/fleet";
import type { Silence } from "./core/problems";
import { watchFleet } from "./live";
import type { Environment, Page, Server, Update } from "./types";

/** How far what is shown can be trusted. */
export interface Connection {
  /** connecting: nothing was shown yet. live. reconnecting: what is shown is as of asOf. refused: see detail. */
  state: "connecting" | "live" | "reconnecting" | "refused";
  /** when the service last spoke while the page was live, in ms of this machine's clock; 0 before */
  asOf: number;
  detail?: string;
}

/** connection is how the live feed is doing. */
export const connection: Signal<Connection> = signal({ state: "connecting", asOf: 0 });

/** servers has a signal for every server. Who reads it reactively reads membership or revision first. */
export const servers = new Map<string, Signal<Server>>();

/** order is servers by environment and name; it changes with membership. */
export let order: readonly string[] = [];

/** membership counts the changes of who is in servers, and in what order; revision the changes of any server. */
export const membership = signal(0);
export const revision = signal(0);

/** loaded is set once the fleet is known as a whole. */
export const loaded = signal(false);

/** counts are of the whole fleet. */
export const counts: Signal<Counts> = signal(countsOf([]));

/** serverOf is the server with that id, and follows it; undefined while there is none. */
export function serverOf(id: string): Server | undefined {
  membership.value;
  return servers.get(id)?.value;
}

/** environments are the hosts, read again every few seconds. */
export const environments: Signal<ReadonlyMap<string, Environment>> = signal(new Map());

/** silent are the hosts that the journal called silent, and did not call back since. */
export const silent: Signal<ReadonlyMap<string, Silence>> = signal(new Map());

/** feed is the live list, newest first. */
export const feed: Signal<readonly Line[]> = signal([]);

/** now is the service's clock in ms, once a second; while the page is not live it stands still at what is shown. */
const clockSignal = signal(Date.now());
export const now: ReadonlySignal<number> = clockSignal;

const listeners = new Set<(e: Update) => void>();

/**
 * onEntry calls f with every entry as it comes, until the function that it returns is called. Of one server versions
 * may skip: between two frames only the newest is certain to be told.
 */
export function onEntry(f: (e: Update) => void): () => void {
  listeners.add(f);
  return () => listeners.delete(f);
}

let subscription: Subscription | undefined;
let queue: SubscriptionEvent[] = [];
let incoming: Map<string, Server> | undefined; // a snapshot that is not complete yet
let scheduled = false;
let notBefore = 0; // performance.now() before which nothing is applied

/** start makes the page live. It may be called again, after a sign-in. */
export async function start(): Promise<void> {
  stop();
  try {
    await identify();
  } catch (e) {
    if (e instanceof ApiError && e.status === 401) return; // the sign-in view is shown
    // The service is away, or starting: the subscription tries on, and says so.
  }
  subscription = watchFleet({ onEvent: take, onState: follow, onError: end });
  poll();
}

/** stop ends what start began; what is known stays. */
export function stop() {
  subscription?.close();
  subscription = undefined;
  queue = [];
  incoming = undefined;
  untold = [];
  uncounted = false;
  clearTimeout(summing);
  summing = undefined;
  clearTimeout(polling);
}

/** forget drops everything that is known: somebody else may sign in. */
export function forget() {
  stop();
  batch(() => {
    servers.clear();
    order = [];
    membership.value++;
    revision.value++;
    counts.value = countsOf([]);
    environments.value = new Map();
    silent.value = new Map();
    feed.value = [];
    loaded.value = false;
    connection.value = { state: "connecting", asOf: 0 };
  });
}

/** tryNow does not wait for the next attempt to connect. */
export function tryNow() {
  if (subscription && connection.value.state !== "refused") subscription.check();
  else void start();
}

function follow(s: ConnectionState) {
  const before = connection.value;
  switch (s.phase) {
    case "live":
      connection.value = { state: "live", asOf: Date.now() };
      if (before.state !== "live") {
        poll();
        if (!me.value) void identify().catch(() => {});
      }
      break;
    case "catching_up":
      // What is shown is still as old as it was.
      break;
    case "connecting":
      if (!loaded.value) connection.value = { state: "connecting", asOf: 0 };
      break;
    case "reconnecting":
    case "paused": {
      const asOf = s.asOf?.getTime() ?? before.asOf;
      connection.value = { state: loaded.value ? "reconnecting" : "connecting", asOf, detail: s.error?.message };
      break;
    }
    case "closed":
      break; // end tells why, where it was not ourselves
  }
}

function end(e: Error) {
  if ((e as { code?: string }).code === "unauthorized") signInNeeded.value = true;
  connection.value = { state: "refused", asOf: connection.value.asOf, detail: e.message };
}

function take(ev: SubscriptionEvent) {
  queue.push(ev);
  schedule();
}

function schedule() {
  if (scheduled) return;
  scheduled = true;
  const wait = notBefore - performance.now();
  // A page in the background gets no animation frames; its title still tells how many servers are broken.
  if (document.hidden) setTimeout(flush, Math.max(wait, 250));
  else if (wait > 17) setTimeout(() => requestAnimationFrame(flush), wait - 8);
  else {
    let done = false;
    const once = () => {
      if (!done) {
        done = true;
        flush();
      }
    };
    requestAnimationFrame(once);
    setTimeout(once, 500); // hidden meanwhile
  }
}

function flush() {
  scheduled = false;
  const began = performance.now();
  const events = queue;
  queue = [];
  batch(() => apply(events));
  notBefore = performance.now() + Math.min(1000, (performance.now() - began) * 9);
}

function apply(events: readonly SubscriptionEvent[]) {
  let changed = false;
  const entries: Update[] = [];
  const reread = new Set<string>();
  let moved = false;
  let whole = false;
  for (const ev of events) {
    switch (ev.type) {
      case "subscribed":
        incoming = undefined;
        break;
      case "resync":
        incoming = new Map();
        break;
      case "snapshot":
        incoming ??= new Map();
        for (const s of ev.items) incoming.set(s.id, s);
        break;
      case "snapshot_end":
        replace(incoming ?? new Map());
        incoming = undefined;
        whole = changed = true;
        void recent(ev.cursor);
        break;
      case "entry": {
        const e = ev.entry;
        entries.push(e);
        if (e.kind === "server_removed" && e.server_id) {
          if (servers.delete(e.server_id)) moved = changed = true;
        } else if (e.server_id) {
          const sig = servers.get(e.server_id);
          if (sig) {
            const next = applied(sig.peek(), e);
            if (next !== sig.peek()) {
              if (next.environment_id !== sig.peek().environment_id) moved = true;
              sig.value = next;
              changed = true;
            }
          }
          if (needsReading(e) || (!sig && e.kind === "status")) reread.add(e.server_id);
        }
        break;
      }
      case "bookmark":
        break;
    }
  }
  if (moved) reorder();
  if (changed) uncounted = true;
  if (entries.length) {
    hearSilence(entries);
    untold.push(...entries);
    if (entries.some((e) => e.kind.startsWith("environment_"))) pollSoon();
    for (const e of entries) for (const f of listeners) f(e);
  }
  if (reread.size) read(reread);
  if (uncounted || untold.length) sumUpSoon(moved || whole);
}

/** How far what is made of the whole fleet (counts, lists, the feed) may be behind the tiles while much changes, in ms. */
const SUM_EVERY = 250;
let uncounted = false; // servers have changed since they were counted
let untold: Update[] = []; // entries that are not in the feed yet
let summing: ReturnType<typeof setTimeout> | undefined;
let summed = -Infinity; // performance.now() of the last time

/** sumUpSoon does it now, unless it was just done; now in any case where servers came or went. */
function sumUpSoon(now: boolean) {
  const wait = summed + SUM_EVERY - performance.now();
  if (now || wait <= 0) sumUp();
  // In a task of its own: a frame is not held up by all of it at once.
  else summing ??= setTimeout(sumUp, wait);
}

function sumUp() {
  clearTimeout(summing);
  summing = undefined;
  summed = performance.now();
  const entries = untold;
  untold = [];
  batch(() => {
    if (uncounted) {
      uncounted = false;
      counts.value = countsOf(all_());
      revision.value++;
    }
    if (entries.length) feed.value = told(feed.value, entries);
  });
}

function* all_(): Iterable<Server> {
  for (const s of servers.values()) yield s.peek();
}

/** replace makes the fleet what a snapshot says. */
function replace(fleet: ReadonlyMap<string, Server>) {
  let moved = false;
  for (const id of servers.keys()) {
    if (!fleet.has(id)) {
      servers.delete(id);
      moved = true;
    }
  }
  for (const s of fleet.values()) if (put(s)) moved = true;
  if (moved || !loaded.value) reorder();
  loaded.value = true;
}

/** put takes a server as it was read; the answer is whether the order may change. */
function put(s: Server): boolean {
  const sig = servers.get(s.id);
  if (!sig) {
    servers.set(s.id, signal(s));
    return true;
  }
  const old = sig.peek();
  sig.value = s;
  return old.environment_id !== s.environment_id || old.name !== s.name;
}

function reorder() {
  order = ordered(all_());
  membership.value++;
}

function hearSilence(entries: readonly Update[]) {
  let next: Map<string, Silence> | undefined;
  for (const e of entries) {
    if (!e.environment_id) continue;
    if (e.kind === "environment_silent") {
      (next ??= new Map(silent.value)).set(e.environment_id, { since: e.timestamp, details: e.details });
    } else if (e.kind === "environment_back") {
      (next ??= new Map(silent.value)).delete(e.environment_id);
    }
  }
  if (next) silent.value = next;
}

/** How many positions of the journal are looked at for the list's beginning. */
const RECENT = 400;

/** recent reads the end of the journal, so that the list tells what just happened. */
async function recent(cursor: string) {
  const at = cursor.lastIndexOf(":");
  const epoch = cursor.slice(0, at);
  const seq = Number(cursor.slice(at + 1));
  if (at <= 0 || !(seq > 0)) return;
  try {
    const p = await get<Page<Update>>("updates", {
      after: epoch + ":" + Math.max(0, seq - RECENT),
      limit: RECENT,
      kinds: "status,server_added,server_changed,server_removed,environment_silent,environment_back,self_doubt,tool_drift,maintenance_begin,maintenance_end",
    });
    batch(() => {
      feed.value = told(feed.value, p.items);
      hearSilence(p.items.filter((e) => !silent.value.has(e.environment_id ?? "")));
    });
  } catch {
    // The journal does not reach back that far, or the service is away: the list begins with what comes.
  }
}

let reading = false;
let toRead = new Set<string>();

/** read asks for servers as they are now, a few at a time; where they are many, for all of them. */
function read(ids: Iterable<string>) {
  for (const id of ids) toRead.add(id);
  if (reading) return;
  reading = true;
  void (async () => {
    while (toRead.size) {
      const ids = [...toRead];
      toRead = new Set();
      try {
        const list =
          ids.length > 20 ? await all<Server>("servers", { limit: 1000 }) : (await Promise.all(ids.map(one))).filter((s) => s !== undefined);
        batch(() => {
          let moved = false;
          for (const s of list) if (newerThanKnown(s) && put(s)) moved = true;
          if (moved) reorder();
          counts.value = countsOf(all_());
          revision.value++;
        });
      } catch {
        break; // the next snapshot, or the next entry, tells
      }
    }
    reading = false;
  })();
}

async function one(id: string): Promise<Server | undefined> {
  try {
    return await getServer(id);
  } catch (e) {
    if (e instanceof ApiError && e.status === 404) return undefined; // gone again
    throw e;
  }
}

function newerThanKnown(s: Server): boolean {
  const sig = servers.get(s.id);
  return !sig || s.status.version >= sig.peek().status.version;
}

const POLL_MS = 10_000;
let polling: ReturnType<typeof setTimeout> | undefined;

/** poll reads the environments: no entry tells of their load and heartbeats. */
function poll() {
  clearTimeout(polling);
  polling = setTimeout(poll, POLL_MS);
  if (document.hidden || connection.value.state === "reconnecting") return;
  all<Environment>("environments", { limit: 1000 }).then(
    (list) => {
      environments.value = new Map(list.map((e) => [e.id, e]));
    },
    () => {}, // asked again soon
  );
}

function pollSoon() {
  clearTimeout(polling);
  polling = setTimeout(poll, 300);
}

/** startClock keeps now. It is called once. */
export function startClock() {
  setInterval(() => {
    const c = connection.peek();
    if (document.hidden) return;
    if (c.state === "live") clockSignal.value = serverClock();
  }, 1000);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    if (connection.peek().state === "live") clockSignal.value = serverClock();
    if (subscription) poll();
  });
}
