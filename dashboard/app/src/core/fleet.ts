// What entries of the journal do to what is known of the fleet. Pure functions.
import { availabilityOf, availabilities } from "../format";
import type { Availability, Server, Update } from "../types";
import { inMaintenance } from "./filter";

/**
 * applied is the server after an entry of kind status; the same object where the entry is not newer, or is of another
 * kind. An entry has only what a status is made of: the facts beside it that it can't know stay as they were, and those
 * that it contradicts go.
 */
export function applied(s: Server, e: Update): Server {
  const cur = e.current_status;
  if (e.kind !== "status" || !cur || e.server_id !== s.id) return s;
  if (e.version !== undefined && e.version <= s.status.version) return s;
  const overridden = cur.marks.includes("override");
  return {
    ...s,
    environment_id: e.environment_id ?? s.environment_id,
    status: {
      ...s.status,
      state: cur.state,
      health: cur.health,
      reason: cur.reason,
      cause: cur.cause,
      marks: cur.marks,
      since: cur.since,
      last_error: cur.last_error,
      last_started: cur.last_started,
      uptime_seconds: cur.uptime_seconds,
      availability: availabilityOf(cur),
      override: overridden ? s.status.override : undefined,
      version: e.version ?? s.status.version,
    },
  };
}

/** needsReading tells whether the entry says that something changed which it does not hold. */
export function needsReading(e: Update): boolean {
  if (e.kind === "server_added" || e.kind === "server_changed") return true;
  // Who set an override, until when and why stands in the server only.
  return e.kind === "status" && (e.changes?.includes("marks") ?? false) && (e.current_status?.marks.includes("override") ?? false);
}

export interface Counts {
  total: number;
  by: Record<Availability, number>;
  maintenance: number;
  /** unavailable and not in maintenance: what somebody should look at */
  broken: number;
}

/** countsOf counts servers by availability. */
export function countsOf(servers: Iterable<Server>): Counts {
  const by = Object.fromEntries(availabilities.map((a) => [a, 0])) as Record<Availability, number>;
  const c: Counts = { total: 0, by, maintenance: 0, broken: 0 };
  for (const s of servers) {
    const a = availabilityOf(s.status);
    const m = inMaintenance(s);
    c.total++;
    c.by[a]++;
    if (m) c.maintenance++;
    else if (a === "unavailable") c.broken++;
  }
  return c;
}

/** compareText orders names as people do: box-2 before box-10. */
const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
export const compareText = (a: string, b: string) => collator.compare(a, b) || (a < b ? -1 : a > b ? 1 : 0);

/** ordered are the ids of servers by environment, name and id; those without an environment come last. */
export function ordered(servers: Iterable<Server>): string[] {
  // By environment first: comparing names as people do is what takes time with thousands.
  const by = new Map<string, Server[]>();
  for (const s of servers) {
    const env = s.environment_id ?? "";
    const list = by.get(env);
    if (list) list.push(s);
    else by.set(env, [s]);
  }
  const envs = [...by].sort(([a], [b]) => (a === "" ? 1 : b === "" ? -1 : compareText(a, b)));
  return envs.flatMap(([, list]) =>
    list.sort((a, b) => compareText(a.name, b.name) || compareText(a.id, b.id)).map((s) => s.id),
  );
}
