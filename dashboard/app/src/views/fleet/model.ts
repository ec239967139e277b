// What the fleet view shows, derived from the fleet and the filter in the address.
import { computed, signal } from "@preact/signals";
import { availabilityOf, why } from "../../format";
import { countsOf, type Counts } from "../../core/fleet";
import { formatFilter, isEmpty, matcher, parseFilter, type Filter } from "../../core/filter";
import type { Group } from "../../core/layout";
import { problemsOf } from "../../core/problems";
import { fleetSearch, href, navigate } from "../../router";
import { environments, membership, order, revision, servers, silent } from "../../store";
import type { Server } from "../../types";

/** filter is the one in the address. */
export const filter = computed<Filter>(() => parseFilter(fleetSearch.value));

/** setFilter changes the address; typing replaces, choosing makes a step that "back" undoes. */
export function setFilter(change: Partial<Filter>, replace = false) {
  navigate(href("", formatFilter({ ...filter.peek(), ...change })), replace);
}

export function clearFilter() {
  navigate(href(""));
}

/** selected are the servers that the filter selects, in order. */
export const selected = computed<readonly Server[]>(() => {
  revision.value;
  membership.value;
  const f = filter.value;
  const fits = isEmpty(f) ? undefined : matcher(f);
  const out: Server[] = [];
  for (const id of order) {
    const s = servers.get(id)?.peek();
    if (s && (!fits || fits(s))) out.push(s);
  }
  return out;
});

/** facets counts what the filter would select with any availability: the numbers on the buttons. */
export const facets = computed<Counts>(() => {
  revision.value;
  membership.value;
  const fits = matcher({ ...filter.value, availability: [], maintenance: undefined });
  const out: Server[] = [];
  for (const sig of servers.values()) if (fits(sig.peek())) out.push(sig.peek());
  return countsOf(out);
});

let last: readonly Group[] = [];

/** groups are the selected servers by environment. It is the same value for as long as nobody comes or goes. */
export const groups = computed<readonly Group[]>(() => {
  const next: { id: string; servers: string[] }[] = [];
  for (const s of selected.value) {
    const id = s.environment_id ?? "";
    let g = next[next.length - 1];
    if (!g || g.id !== id) next.push((g = { id, servers: [] }));
    g.servers.push(s.id);
  }
  if (!sameGroups(last, next)) last = next;
  return last;
});

function sameGroups(a: readonly Group[], b: readonly Group[]): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) {
    const x = a[i]!;
    const y = b[i]!;
    if (x.id !== y.id || x.servers.length !== y.servers.length) return false;
    for (let j = 0; j < x.servers.length; j++) if (x.servers[j] !== y.servers[j]) return false;
  }
  return true;
}

/** problems is what is wrong among the selected. */
export const problems = computed(() => problemsOf(selected.value, environments.value, silent.value));

/** groupCounts counts each environment's selected servers that are unavailable and limited. */
export const groupCounts = computed(() => {
  const m = new Map<string, { total: number; unavailable: number; limited: number }>();
  for (const s of selected.value) {
    const id = s.environment_id ?? "";
    let g = m.get(id);
    if (!g) m.set(id, (g = { total: 0, unavailable: 0, limited: 0 }));
    g.total++;
    const a = availabilityOf(s.status);
    if (a === "unavailable") g.unavailable++;
    else if (a === "limited") g.limited++;
  }
  return m;
});

export interface Headline {
  total: number;
  broken: number;
  limited: number;
  /** environments with a server that is broken */
  reach: number;
  environments: number;
  /** the commonest causes among what is broken, with their numbers */
  causes: [string, number][];
  newest?: string;
}

/** headline sums up the whole fleet, whatever the filter. */
export const headline = computed<Headline>(() => {
  revision.value;
  membership.value;
  const all = new Set<string>();
  const hit = new Set<string>();
  const causes = new Map<string, number>();
  const h: Headline = { total: 0, broken: 0, limited: 0, reach: 0, environments: 0, causes: [] };
  for (const sig of servers.values()) {
    const s = sig.peek();
    h.total++;
    if (s.environment_id) all.add(s.environment_id);
    if (s.status.marks?.includes("maintenance")) continue;
    const a = availabilityOf(s.status);
    if (a === "limited") h.limited++;
    if (a !== "unavailable") continue;
    h.broken++;
    if (s.environment_id) hit.add(s.environment_id);
    const w = why(s.status);
    causes.set(w, (causes.get(w) ?? 0) + 1);
    const at = s.status.since;
    if (at && (h.newest === undefined || at > h.newest)) h.newest = at;
  }
  h.environments = all.size;
  h.reach = hit.size;
  h.causes = [...causes].sort((x, y) => y[1] - x[1]).slice(0, 3);
  return h;
});

/** options are what the filters offer: environments, and labels of the fleet, the commonest first. */
export const options = computed(() => {
  membership.value;
  const envs = new Set<string>();
  const labels = new Map<string, number>();
  for (const sig of servers.values()) {
    const s = sig.peek();
    if (s.environment_id) envs.add(s.environment_id);
    for (const [k, v] of Object.entries(s.labels ?? {})) {
      const l = k + "=" + v;
      labels.set(l, (labels.get(l) ?? 0) + 1);
    }
  }
  const top = [...labels].sort((a, b) => b[1] - a[1]).slice(0, 300).map(([l]) => l);
  return { environments: [...envs].sort(new Intl.Collator("en", { numeric: true }).compare), labels: top.sort() };
});

/** Density of the tiles: with names, or small. auto chooses by the size of the fleet. */
export type Density = "auto" | "names" | "compact";
export const density = signal<Density>(readDensity());

/** Above that many servers tiles are small, unless somebody chose otherwise. */
export const MANY = 400;

export const compact = computed(() =>
  density.value === "auto" ? selected.value.length > MANY : density.value === "compact",
);

export function setDensity(d: Density) {
  density.value = d;
  try {
    localStorage.setItem("statussync.density", d);
  } catch {
    // not kept
  }
}

function readDensity(): Density {
  try {
    const d = localStorage.getItem("statussync.density");
    if (d === "names" || d === "compact") return d;
  } catch {
    // a browser that keeps nothing
  }
  return "auto";
}
