// The live list: entries of the journal as lines for people, newest first. Pure functions.
//
// A host that is lost is one line, not one a server: its entry lists who fell with it, and their entries are folded into
// that line whichever comes first (in mode latest, entries of different servers need not come in order). What a host's
// servers do in the seconds after it is back is folded in the same way.
import { availabilityOf } from "../format";
import type { Availability, UpdateStatus, Update } from "../types";

/** Line is one line of the list. */
export interface Line {
  /** stable name of the line */
  key: string;
  seq: number;
  at: number; // ms
  entry: Update;
  /** servers whose entries are part of the line, with what they are since, by the newest of these entries */
  folded: ReadonlyMap<string, Folded>;
}

interface Folded {
  seq: number;
  is: Availability;
}

/** MAX_LINES bounds the list. */
export const MAX_LINES = 200;

/** How long entries of the servers that a line lists belong to it, in ms after (or, for the same batch, before) it. */
const window: ReadonlyMap<string, number> = new Map([
  ["environment_silent", 250],
  ["environment_back", 10_000],
  ["maintenance_begin", 250],
  ["maintenance_end", 250],
]);
const BEFORE = 250;

/** worthTelling leaves out what says nothing to people: that a server is known, but not yet what it does. */
export function worthTelling(e: Update): boolean {
  if (e.kind !== "status") return true;
  if (!e.current_status) return false;
  return !(e.version === 1 && e.current_status.reason === "never_seen");
}

/** told is the list after more entries. The old list is not changed; entries that it has already are left out. */
export function told(lines: readonly Line[], entries: readonly Update[]): readonly Line[] {
  const out = lines.slice();
  const keys = new Set(out.map((l) => l.key));
  const had = out.length;
  for (const e of entries) {
    const key = e.epoch + ":" + e.seq;
    if (keys.has(key) || !worthTelling(e)) continue;
    keys.add(key);
    const at = Date.parse(e.timestamp);
    if (e.kind === "status") {
      const i = out.findIndex((l) => takes(l, e, at));
      if (i >= 0) {
        const l = out[i]!;
        const folded = new Map(l.folded);
        if (fold(folded, e)) out[i] = { ...l, folded };
        continue;
      }
    }
    const line: Line = { key, seq: e.seq, at, entry: e, folded: new Map() };
    if (window.has(e.kind) && e.server_ids) {
      const folded = new Map<string, Folded>();
      for (let i = out.length - 1; i >= 0; i--) {
        const l = out[i]!;
        if (l.entry.kind !== "status" || !takes(line, l.entry, l.at)) continue;
        fold(folded, l.entry);
        out.splice(i, 1);
      }
      line.folded = folded;
    }
    insert(out, line);
  }
  if (out.length > MAX_LINES) out.length = MAX_LINES;
  return out.length === had && entries.length === 0 ? lines : out;
}

/** fold adds an entry, unless a newer one of its server is there: what is read of the past may come after what is live. */
function fold(folded: Map<string, Folded>, e: Update): boolean {
  if ((folded.get(e.server_id!)?.seq ?? -1) >= e.seq) return false;
  folded.set(e.server_id!, { seq: e.seq, is: availabilityOf(e.current_status!) });
  return true;
}

/** takes tells whether a line is the one under which an entry of kind status is told. */
function takes(l: Line, e: Update, at: number): boolean {
  const w = window.get(l.entry.kind);
  if (w === undefined || !e.server_id || l.entry.epoch !== e.epoch) return false;
  if (at < l.at - BEFORE || at > l.at + w) return false;
  if (!(l.entry.server_ids?.includes(e.server_id) ?? false)) return false;
  if (l.entry.kind === "environment_back" && e.current_status && availabilityOf(e.current_status) === "unavailable") {
    // A server that falls after its host came back has a story of its own, unless it only stayed as it was.
    return e.previous_status?.health === "unhealthy";
  }
  return true;
}

/** insert keeps the list ordered: newest first, by position where the journal is the same. */
function insert(out: Line[], line: Line) {
  let i = 0;
  while (i < out.length && newer(out[i]!, line)) i++;
  out.splice(i, 0, line);
}

function newer(a: Line, b: Line): boolean {
  return a.entry.epoch === b.entry.epoch ? a.seq > b.seq : a.at > b.at;
}

/** change says what became of a server: from and to are availabilities. */
export function change(e: Update): { from: Availability; to: Availability } | undefined {
  const a = (s: UpdateStatus | undefined) => s && availabilityOf(s);
  const from = a(e.previous_status);
  const to = a(e.current_status);
  return from && to ? { from, to } : undefined;
}

/** tally counts the servers of a line by what they are since. */
export function tally(l: Line): Map<Availability, number> {
  const m = new Map<Availability, number>();
  for (const f of l.folded.values()) m.set(f.is, (m.get(f.is) ?? 0) + 1);
  return m;
}

/**
 * silenceTone is the sign of a host that went silent: by its servers, as in the list of what is wrong. Limited where they
 * still answer, or it has none; unavailable where one is down, and where nothing was told of them.
 */
export function silenceTone(l: Line): Availability {
  if (l.folded.size === 0) return l.entry.server_ids?.length ? "unavailable" : "limited";
  return tally(l).has("unavailable") ? "unavailable" : "limited";
}
