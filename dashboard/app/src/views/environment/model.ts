// What the environment's view says, as pure functions; tested in test/environment.test.ts.
import { availabilities, bytes, duration, percent } from "../../format";
import type { Availability, Environment, ResourceReport, ResourceStep, Server } from "../../types";
import { toSeries, type Series } from "../shared/series";

/** Beat is how an agent's heartbeat is doing at a moment: its age, where that stands between two limits, and in words. */
export interface Beat {
  age: number; // seconds
  /** 0 to 1, of the time until it is lost */
  used: number;
  /** where on the same scale it is late */
  late: number;
  words: string;
  level: "ok" | "late" | "lost";
}

/** beatOf judges by the limits that the service learned; undefined where there is no heartbeat to judge. */
export function beatOf(e: Environment, now: number): Beat | undefined {
  const t = e.last_heartbeat ? Date.parse(e.last_heartbeat) : NaN;
  if (Number.isNaN(t)) return undefined;
  const age = Math.max(0, (now - t) / 1000);
  const lost = e.lost_after_seconds ?? 0;
  const late = e.late_after_seconds ?? 0;
  const level = e.agent === "lost" || (lost > 0 && age > lost) ? "lost" : e.agent === "late" || (late > 0 && age > late) ? "late" : "ok";
  const rest = late > 0 && age < late ? `late in ${duration(late - age)}` : lost > 0 && age < lost ? `lost in ${duration(lost - age)}` : "past its limit";
  return {
    age,
    used: lost > 0 ? Math.min(1, age / lost) : 0,
    late: lost > 0 ? Math.min(1, late / lost) : 0,
    words: level === "lost" && lost > 0 ? `lost after ${interval(lost)}` : rest,
    level,
  };
}

/** interval says a length of time that may be below a second: "2 s", "1 min". */
export function interval(seconds: number | undefined): string {
  if (!seconds) return "";
  const tenths = Math.round(seconds * 10) / 10;
  return tenths < 10 && tenths % 1 ? tenths + " s" : duration(tenths);
}

/** Part is one of the host's resources. */
export interface Part {
  id: "cpu" | "memory" | "disk";
  words: string;
  now?: string;
  /** of what: "of 1.9 GiB" */
  of?: string;
  /** 0 to 100, where it is a share */
  percent?: number;
  /** why the agent could not tell */
  error?: string;
  series: Series;
  /** whether any step has it */
  any: boolean;
}

const share = (used: number | undefined, size: number | undefined) => (used !== undefined && size ? Math.min(100, (100 * used) / size) : undefined);

/** partsOf puts what the agent told last, and what it told before, together for each resource. */
export function partsOf(e: Environment | undefined, r: ResourceReport | undefined): Part[] {
  const s = e?.system;
  const items = r?.items ?? [];
  const step = r?.step_seconds ?? 60;
  const series = (a: (i: ResourceStep) => number | undefined, b: (i: ResourceStep) => number | undefined) => toSeries(items, step, [a, b]);
  const error = (id: string) => s?.errors?.[id] ?? s?.errors?.["system"];
  const m = s?.memory;
  const inUse = m ? m.active_bytes || m.used_bytes : undefined;
  const parts: Part[] = [
    { id: "cpu", words: "CPU", percent: s?.cpu_load_percent, error: error("cpu"), any: false, series: series((i) => i.cpu_percent, (i) => i.cpu_max_percent) },
    {
      id: "memory",
      words: "Memory",
      percent: share(inUse, m?.total_bytes),
      of: m?.total_bytes ? `${bytes(inUse!)} of ${bytes(m.total_bytes)}` : undefined,
      error: error("memory"),
      any: false,
      series: series((i) => share(i.memory_bytes, i.memory_size_bytes), (i) => share(i.memory_max_bytes, i.memory_size_bytes)),
    },
    {
      id: "disk",
      words: "Disk",
      percent: share(s?.disk?.used_bytes, s?.disk?.total_bytes),
      of: s?.disk?.total_bytes ? `${bytes(s.disk.used_bytes)} of ${bytes(s.disk.total_bytes)}` : undefined,
      error: error("disk"),
      any: false,
      series: series((i) => share(i.disk_bytes, i.disk_size_bytes), (i) => share(i.disk_max_bytes, i.disk_size_bytes)),
    },
  ];
  for (const p of parts) {
    if (p.percent !== undefined) {
      p.now = round(p.percent);
      p.error = undefined;
    }
    p.any = p.series.columns.some((c) => c.some((v) => v !== null));
  }
  return parts;
}

/** round says a share as people compare it: whole numbers from 10 on. */
export function round(p: number): string {
  return p >= 10 ? Math.round(p) + " %" : percent(p);
}

/** tallies are how many servers have which availability, the worst first; those without any are left out. */
export function tallies(list: readonly Server[]): [Availability, number][] {
  const n = new Map<Availability, number>();
  for (const s of list) n.set(s.status.availability, (n.get(s.status.availability) ?? 0) + 1);
  return availabilities.filter((a) => n.has(a)).map((a) => [a, n.get(a)!]);
}

/** worstFirst orders servers: what people look for before what is well, then by name. */
export function worstFirst(list: readonly Server[]): Server[] {
  return [...list].sort((a, b) => {
    const d = availabilities.indexOf(a.status.availability) - availabilities.indexOf(b.status.availability);
    return d || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);
  });
}

/** suggestedID makes an id that the registry takes of a container's name. */
export function suggestedID(container: string): string {
  return container.replace(/[^A-Za-z0-9._:@-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 128);
}
