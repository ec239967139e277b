// The fleet view's filter: a pure value, its form in the address, and what it selects.
//
// The address has the spelling of GET /api/v1/servers (states, healths, availability, environment_ids, label, q), so a
// filter can be taken from one to the other. Words that mean nothing are left out rather than refused: an address is
// typed and pasted by people.
import type { Availability, Health, Server, State } from "../types";
import { availabilities, availabilityOf, reasonWords } from "../format";

export const states: readonly State[] = ["error", "starting", "stopping", "running", "stopped", "unknown"];
export const healths: readonly Health[] = ["unhealthy", "degraded", "unknown", "healthy"];
/** A server is selected when it fits every field; an empty field fits all. */
export interface Filter {
  /** words; each must be found in what is known of the server */
  q: string;
  availability: readonly Availability[];
  states: readonly State[];
  healths: readonly Health[];
  environments: readonly string[];
  /** key and value; all must match */
  labels: readonly (readonly [string, string])[];
  /** only servers in, or only servers out of maintenance */
  maintenance?: boolean;
}

export const noFilter: Filter = { q: "", availability: [], states: [], healths: [], environments: [], labels: [] };

/** MAX_QUERY bounds the text that is searched for, as the API does. */
export const MAX_QUERY = 200;

/** parseFilter reads the part of an address after "?". */
export function parseFilter(search: string): Filter {
  const p = new URLSearchParams(search);
  const list = (name: string) => [
    ...new Set(p.getAll(name).flatMap((v) => v.split(",")).map((v) => v.trim()).filter((v) => v !== "")),
  ];
  const words = <T extends string>(name: string, known: readonly T[]): T[] => {
    const given = list(name);
    return known.filter((w) => given.includes(w));
  };
  const labels = new Map<string, string>();
  for (const l of p.getAll("label")) {
    const i = l.indexOf("=");
    if (i > 0) labels.set(l.slice(0, i), l.slice(i + 1));
  }
  const f: Filter = {
    q: (p.get("q") ?? "").slice(0, MAX_QUERY).replace(/[\ud800-\udbff]$/, ""), // no half of a character
    availability: words("availability", availabilities),
    states: words("states", states),
    healths: words("healths", healths),
    environments: list("environment_ids"),
    labels: [...labels],
  };
  const m = p.get("maintenance");
  return m === "true" || m === "false" ? { ...f, maintenance: m === "true" } : f;
}

/** formatFilter is the inverse of parseFilter: "" for no filter, else it begins with "?". */
export function formatFilter(f: Filter): string {
  const p = new URLSearchParams();
  if (f.q !== "") p.set("q", f.q);
  if (f.availability.length) p.set("availability", f.availability.join(","));
  if (f.states.length) p.set("states", f.states.join(","));
  if (f.healths.length) p.set("healths", f.healths.join(","));
  if (f.environments.length) p.set("environment_ids", f.environments.join(","));
  for (const [k, v] of f.labels) p.append("label", k + "=" + v);
  if (f.maintenance !== undefined) p.set("maintenance", String(f.maintenance));
  // Commas, colons and equals signs need no escape in a query, and read better without.
  const s = p.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
  return s === "" ? "" : "?" + s;
}

/** isEmpty tells whether f selects everything. */
export function isEmpty(f: Filter): boolean {
  return formatFilter(f) === "";
}

/** toggled has the word added, or taken away where it is there. */
export function toggled<T>(list: readonly T[], word: T): T[] {
  return list.includes(word) ? list.filter((w) => w !== word) : [...list, word];
}

/** matcher makes the test of f. Without `availability` it tells what the counts of the availabilities are about. */
export function matcher(f: Filter): (s: Server) => boolean {
  const words = f.q.toLowerCase().split(/\s+/).filter((w) => w !== "");
  return (s) => {
    const st = s.status;
    if (f.availability.length && !f.availability.includes(availabilityOf(st))) return false;
    if (f.states.length && !f.states.includes(st.state)) return false;
    if (f.healths.length && !f.healths.includes(st.health)) return false;
    if (f.environments.length && !f.environments.includes(s.environment_id ?? "")) return false;
    for (const [k, v] of f.labels) {
      if (!s.labels || !Object.hasOwn(s.labels, k) || s.labels[k] !== v) return false;
    }
    if (f.maintenance !== undefined && inMaintenance(s) !== f.maintenance) return false;
    if (words.length) {
      const hay = haystackOf(s);
      for (const w of words) if (!hay.includes(w)) return false;
    }
    return true;
  };
}

/** inMaintenance tells whether an open window selects the server. */
export function inMaintenance(s: Server): boolean {
  return s.status.marks?.includes("maintenance") ?? false;
}

/** A server is a value: what is searched in it is made once, and goes with it. */
const haystacks = new WeakMap<Server, string>();

function haystackOf(s: Server): string {
  let hay = haystacks.get(s);
  if (hay === undefined) haystacks.set(s, (hay = haystack(s)));
  return hay;
}

/** haystack is the text in which words are searched, in lower case. */
function haystack(s: Server): string {
  const parts = [s.id, s.name, s.environment_id, s.endpoint, s.container, s.type, s.status.reason];
  parts.push(reasonWords(s.status.reason), s.status.cause);
  for (const [k, v] of Object.entries(s.labels ?? {})) parts.push(k + "=" + v);
  return parts.join("\n").toLowerCase();
}
