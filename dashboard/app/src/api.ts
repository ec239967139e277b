// Typed calls of the public API. The page has no other door to the service.
import { signal } from "@preact/signals";
import { basePath } from "./router";
import type { Environment, Page, Problem, Server, Whoami } from "./types";

/** ApiError is a refusal, or that no answer came (status 0, code "unreachable"). Its message is meant for people. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  readonly errors: { location?: string; message: string }[];
  readonly requestId: string;
  /** seconds after which the service wants to be asked again; 0 where it did not say */
  readonly retryAfter: number;

  constructor(status: number, problem: Partial<Problem>, retryAfter = 0) {
    super(problem.detail || problem.title || `The service answered ${status}`);
    this.name = "ApiError";
    this.status = status;
    this.code = problem.code ?? "";
    this.errors = problem.errors ?? [];
    this.requestId = problem.request_id ?? "";
    this.retryAfter = retryAfter;
  }
}

/** signInNeeded is set while the service answers 401. */
export const signInNeeded = signal(false);
/** me is who the page acts as; undefined until the service told. */
export const me = signal<Whoami | undefined>(undefined);

const ranks = { viewer: 0, operator: 1, admin: 2 } as const;

/** may tells whether the page's credential has the role, or a higher one. */
export function may(role: Whoami["role"]): boolean {
  return me.value !== undefined && ranks[me.value.role] >= ranks[role];
}

let clockOffset = 0;

/** serverClock is the service's time in ms, as far as it is known: ages are by its clock, not by this machine's. */
export function serverClock(): number {
  return byServer(Date.now());
}

/** byServer is a time of this machine's clock (ms) by the service's. */
export function byServer(local: number): number {
  return local + clockOffset;
}

function learnClock(date: string | null) {
  const t = date ? Date.parse(date) : NaN;
  if (Number.isNaN(t)) return;
  // The header has whole seconds: a smaller difference is none.
  const off = t + 500 - Date.now();
  clockOffset = Math.abs(off) > 1500 ? off : 0;
}

export type Query = Record<string, string | number | boolean | string[] | undefined>;

/** apiURL is the address of a call: path has no leading slash, and its parts are encoded (see seg). */
export function apiURL(path: string, query: Query = {}): string {
  const q = new URLSearchParams();
  for (const [k, v] of Object.entries(query)) {
    if (v === undefined || v === "") continue;
    if (Array.isArray(v)) {
      if (v.length) q.set(k, v.join(","));
    } else q.set(k, String(v));
  }
  const s = q.toString();
  return basePath() + "api/v1/" + path + (s ? "?" + s : "");
}

/** seg encodes an id as one segment of a path. */
export const seg = encodeURIComponent;

export interface Options {
  query?: Query;
  body?: unknown;
  signal?: AbortSignal;
  /** leave signInNeeded alone: for the sign-in itself */
  quiet?: boolean;
}

/** call asks the API. It throws ApiError; an abort throws what the browser throws. */
export async function call<T>(method: string, path: string, o: Options = {}): Promise<T> {
  const headers: Record<string, string> = { Accept: "application/json" };
  let body: string | undefined;
  if (method !== "GET" && method !== "HEAD") {
    // The service takes JSON only: a foreign page can't send that without being asked first.
    headers["Content-Type"] = "application/json";
    if (o.body !== undefined) body = JSON.stringify(o.body);
  }
  let r: Response;
  try {
    r = await fetch(apiURL(path, o.query), {
      method,
      headers,
      body,
      signal: o.signal,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch (e) {
    if (o.signal?.aborted) throw e;
    throw new ApiError(0, { code: "unreachable", detail: "The service cannot be reached." });
  }
  learnClock(r.headers.get("Date"));
  if (r.status === 401 && !o.quiet) signInNeeded.value = true;
  const text = await r.text();
  if (!r.ok) throw new ApiError(r.status, parse(text), Number(r.headers.get("Retry-After")) || 0);
  return (text === "" ? undefined : JSON.parse(text)) as T;
}

function parse(text: string): Partial<Problem> {
  try {
    const p: unknown = JSON.parse(text);
    return typeof p === "object" && p !== null ? (p as Problem) : {};
  } catch {
    return {}; // a proxy's own page
  }
}

export const get = <T>(path: string, query?: Query, signal?: AbortSignal) => call<T>("GET", path, { query, signal });
export const post = <T>(path: string, body?: unknown) => call<T>("POST", path, { body });
export const put = <T>(path: string, body?: unknown) => call<T>("PUT", path, { body });
export const del = <T>(path: string) => call<T>("DELETE", path);

/** all reads every page of a list, up to a bound of items. */
export async function all<T>(path: string, query: Query = {}, bound = 50_000, signal?: AbortSignal): Promise<T[]> {
  const out: T[] = [];
  let cursor: string | undefined;
  do {
    const p: Page<T> = await get<Page<T>>(path, { ...query, cursor }, signal);
    for (const it of p.items) out.push(it);
    cursor = p.next_cursor;
  } while (cursor && out.length < bound);
  return out;
}

export const getServer = (id: string, signal?: AbortSignal) => get<Server>("servers/" + seg(id), undefined, signal);
export const getEnvironment = (id: string, signal?: AbortSignal) =>
  get<Environment>("environments/" + seg(id), undefined, signal);

/** identify asks who the page is. */
export async function identify(): Promise<void> {
  // Who is nobody yet is told so without an error: /whoami would answer 401, and the browser's console would show it.
  const s = await get<{ whoami?: Whoami }>("session");
  me.value = s.whoami;
  signInNeeded.value = !s.whoami;
  if (!s.whoami) throw new ApiError(401, { code: "unauthorized", detail: "Sign in first." });
}

/** signIn exchanges a token for a cookie that scripts can't read. */
export async function signIn(token: string): Promise<void> {
  await call("POST", "session", { body: { token }, quiet: true });
  await identify();
}

/** signOut ends the session. */
export async function signOut(): Promise<void> {
  await call("DELETE", "session", { quiet: true });
  me.value = undefined;
  signInNeeded.value = true;
}
