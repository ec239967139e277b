// Where the stretches of a timeline stand. Pure functions, tested in test/timeline.test.ts.
import { at as near, availabilityWords, duration, why } from "../../format";
import type { Availability, Stretch, UptimeNumbers } from "../../types";

/** What a stretch of time counts as in the uptime: the availability, or maintenance, or removed. */
export type SpanClass = Availability | "maintenance" | "removed";

export const classWords: Record<SpanClass, string> = { ...availabilityWords, maintenance: "Maintenance", removed: "Removed" };

/** What people look for goes before what is well; a stretch of a later class is drawn over the others. */
const order: readonly SpanClass[] = ["available", "off", "removed", "maintenance", "unknown", "changing", "limited", "unavailable"];

const known = (c: string): SpanClass => ((order as readonly string[]).includes(c) ? (c as SpanClass) : "unknown");

/** Piece is a stretch on the picture: where, in its units, and which. */
export interface Piece {
  x: number;
  width: number;
  class: SpanClass;
  /** of the stretches; -1: the time before the first, of which nothing is known */
  index: number;
}

/** least is how wide trouble is drawn at least, so that a minute is seen in 90 days. */
const least = 2;

/** layout places stretches on a picture of so many units from `from` to `to` (ms). Pieces come in the order of drawing. */
export function layout(items: readonly Stretch[], from: number, to: number, width: number): Piece[] {
  const span = to - from;
  if (span <= 0 || width <= 0) return [];
  const x = (t: number) => ((Math.min(Math.max(t, from), to) - from) / span) * width;
  const out: Piece[] = [];
  const first = items[0] ? Date.parse(items[0].begin) : to;
  if (first > from) out.push({ x: 0, width: x(first), class: "unknown", index: -1 });
  items.forEach((s, index) => {
    const a = x(Date.parse(s.begin));
    const b = s.end ? x(Date.parse(s.end)) : width;
    const c = known(s.class);
    let w = b - a;
    let at = a;
    if (w < least && (c === "unavailable" || c === "limited" || c === "changing")) {
      at = Math.max(0, Math.min(a, width - least));
      w = least;
    }
    if (w > 0) out.push({ x: at, width: w, class: c, index });
  });
  return out.sort((a, b) => order.indexOf(a.class) - order.indexOf(b.class) || a.x - b.x);
}

/** at finds the stretch that holds a moment (ms): its index; -1 where nothing is known of it. */
export function at(items: readonly Stretch[], t: number): number {
  for (let i = items.length - 1; i >= 0; i--) if (Date.parse(items[i]!.begin) <= t) return i;
  return -1;
}

/** say puts a stretch into a sentence. now ends the one that goes on. */
export function say(s: Stretch, now: number): { class: SpanClass; what: string; when: string } {
  const begin = Date.parse(s.begin);
  const end = s.end ? Date.parse(s.end) : now;
  const c = known(s.class);
  const name = (t: number) => near(t, now);
  const because = s.reason && s.reason !== "ok" && c !== "removed" ? ": " + why({ reason: s.reason, cause: s.cause }) : "";
  const merged = s.merged && s.merged > 1 ? ` (the worst of ${s.merged} short stretches)` : "";
  return {
    class: c,
    what: classWords[c] + because + merged,
    when: `${name(begin)} – ${s.end ? name(end) : "now"}, ${duration((end - begin) / 1000)}`,
  };
}

/** share says in words how the window was spent, the longest first: "97 % available, 2 % unavailable". */
export function shares(items: readonly Stretch[], from: number, to: number): { class: SpanClass; seconds: number }[] {
  const sum = new Map<SpanClass, number>();
  const add = (c: SpanClass, d: number) => d > 0 && sum.set(c, (sum.get(c) ?? 0) + d / 1000);
  let before = to;
  items.forEach((s, i) => {
    const a = Math.max(from, Date.parse(s.begin));
    const b = Math.min(to, s.end ? Date.parse(s.end) : to);
    if (i === 0) before = a;
    add(known(s.class), b - a);
  });
  add("unknown", before - from);
  return [...sum].map(([c, seconds]) => ({ class: c, seconds })).sort((a, b) => b.seconds - a.seconds);
}

/** sharesOf says the same by the uptime, in which time after a removal is unknown. */
export function sharesOf(u: UptimeNumbers): { class: SpanClass; seconds: number }[] {
  const list: { class: SpanClass; seconds: number }[] = [
    { class: "available", seconds: u.available_seconds },
    { class: "limited", seconds: u.limited_seconds },
    { class: "unavailable", seconds: u.unavailable_seconds },
    { class: "changing", seconds: u.changing_seconds },
    { class: "off", seconds: u.off_seconds },
    { class: "unknown", seconds: u.unknown_seconds },
    { class: "maintenance", seconds: u.maintenance_seconds },
  ];
  return list.filter((x) => x.seconds > 0).sort((a, b) => b.seconds - a.seconds);
}

/** portion says a share of the window: "97.3 %", "< 0.1 %". Only the whole is 100 %. */
export function portion(seconds: number, window: number): string {
  const p = (100 * seconds) / window;
  if (p >= 99.95) return seconds >= window ? "100 %" : "> 99.9 %";
  return p < 0.05 ? "< 0.1 %" : p.toFixed(1) + " %";
}

/** ticks are moments (ms) to write below the picture, at most n, at round times of this machine's zone. */
export function ticks(from: number, to: number, n: number): number[] {
  const hour = 3_600_000;
  const steps = [5 * 60_000, 10 * 60_000, 15 * 60_000, 30 * 60_000, hour, 2 * hour, 3 * hour, 6 * hour, 12 * hour, 24 * hour, 48 * hour, 7 * 24 * hour, 14 * 24 * hour, 30 * 24 * hour];
  const step = steps.find((s) => (to - from) / s <= n) ?? steps[steps.length - 1]!;
  const out: number[] = [];
  if (step < 24 * hour) {
    const midnight = new Date(from).setHours(0, 0, 0, 0);
    for (let t = midnight; t <= to; t += step) if (t >= from) out.push(t);
    return out;
  }
  // Days may have 23 or 25 hours.
  const d = new Date(from);
  d.setHours(0, 0, 0, 0);
  for (; d.getTime() <= to; d.setDate(d.getDate() + step / (24 * hour))) if (d.getTime() >= from) out.push(d.getTime());
  return out;
}
