// What is wrong, the worst and newest first, with one line for a host that is lost. Pure functions.
import { availabilityOf } from "../format";
import type { Environment, Server } from "../types";
import { compareText } from "./fleet";
import { inMaintenance } from "./filter";

/** Silence is a host that the journal calls silent. */
export interface Silence {
  since: string;
  details: string;
}

export type Problem =
  | {
      kind: "environment";
      key: string;
      id: string;
      since?: string;
      /** what the journal said when it was lost; untrusted text may be part of it */
      details: string;
      /** its servers that are unavailable or limited */
      servers: Server[];
      unavailable: number;
      /** how many of the servers that were asked about it has */
      total: number;
    }
  | { kind: "server"; key: string; server: Server; limited: boolean };

export interface Problems {
  items: Problem[];
  /** servers of unknown availability, by reason */
  unknown: Map<string, number>;
  unknownCount: number;
  /** servers in maintenance that are not well: nobody needs to run */
  maintained: number;
}

/**
 * problemsOf orders what is wrong among servers: lost hosts with servers that are down, servers that are down, then the
 * same for limited; in each the newest first. Servers in maintenance are counted only.
 */
export function problemsOf(
  servers: Iterable<Server>,
  environments: ReadonlyMap<string, Environment>,
  silent: ReadonlyMap<string, Silence>,
): Problems {
  const groups = new Map<string, { servers: Server[]; unavailable: number; total: number }>();
  const out: Problems = { items: [], unknown: new Map(), unknownCount: 0, maintained: 0 };
  for (const s of servers) {
    const env = s.environment_id ?? "";
    const lost = env !== "" && isSilent(env, environments, silent);
    let g = groups.get(env);
    if (lost && !g) groups.set(env, (g = { servers: [], unavailable: 0, total: 0 }));
    if (lost) g!.total++;
    const a = availabilityOf(s.status);
    const bad = a === "unavailable" || a === "limited";
    if (bad && inMaintenance(s)) {
      out.maintained++;
      continue;
    }
    if (a === "unknown") {
      out.unknownCount++;
      out.unknown.set(s.status.reason, (out.unknown.get(s.status.reason) ?? 0) + 1);
      continue;
    }
    if (!bad) continue;
    if (lost) {
      g!.servers.push(s);
      if (a === "unavailable") g!.unavailable++;
    } else out.items.push({ kind: "server", key: "s:" + s.id, server: s, limited: a === "limited" });
  }
  for (const [id, g] of groups) {
    if (g.servers.length === 0) continue;
    g.servers.sort((x, y) => rank(x) - rank(y) || compareText(x.name, y.name));
    const told = silent.get(id);
    const since = told?.since ?? oldest(g.servers);
    out.items.push({
      kind: "environment",
      key: "e:" + id,
      id,
      since,
      details: told?.details ?? "",
      servers: g.servers,
      unavailable: g.unavailable,
      total: g.total,
    });
  }
  const keyed = out.items.map((p) => ({ p, rank: severity(p), at: startOf(p) }));
  keyed.sort((x, y) => x.rank - y.rank || y.at - x.at || compareText(x.p.key, y.p.key));
  out.items = keyed.map((k) => k.p);
  return out;
}

function isSilent(id: string, environments: ReadonlyMap<string, Environment>, silent: ReadonlyMap<string, Silence>) {
  return silent.has(id) || environments.get(id)?.agent === "lost";
}

const rank = (s: Server) => (availabilityOf(s.status) === "unavailable" ? 0 : 1);

function oldest(list: Server[]): string | undefined {
  let at: string | undefined;
  for (const s of list) if (s.status.since && (at === undefined || s.status.since < at)) at = s.status.since;
  return at;
}

function severity(p: Problem): number {
  if (p.kind === "environment") return p.unavailable > 0 ? 0 : 2;
  return p.limited ? 3 : 1;
}

function startOf(p: Problem): number {
  const at = p.kind === "environment" ? p.since : p.server.status.since;
  return at ? Date.parse(at) || 0 : 0;
}
