import { describe, expect, it } from "vitest";
import { change, MAX_LINES, silenceTone, tally, told, worthTelling, type Line } from "../src/core/feed";
import type { Update, UpdateStatus } from "../src/types";

const t0 = Date.UTC(2026, 10, 24);
const well: UpdateStatus = { state: "running", health: "healthy", reason: "ok", marks: [] };
const down: UpdateStatus = { state: "running", health: "unhealthy", reason: "heartbeat_lost", marks: [] };
const quiet: UpdateStatus = { state: "running", health: "degraded", reason: "agent_silent", marks: [] };

const entry = (seq: number, more: Partial<Update>, after = 0): Update => ({
  seq, epoch: "e1", kind: "status", timestamp: new Date(t0 + after).toISOString(), source: "system", details: "", ...more,
});
const status = (seq: number, id: string, to: UpdateStatus, after = 0, from: UpdateStatus = well) =>
  entry(seq, { server_id: id, version: seq, previous_status: from, current_status: to }, after);
const silent = (seq: number, ids: string[], after = 0) => entry(seq, { kind: "environment_silent", environment_id: "box", server_ids: ids }, after);
const back = (seq: number, ids: string[], after = 0) => entry(seq, { kind: "environment_back", environment_id: "box", server_ids: ids }, after);
const words = (list: readonly Line[]) => list.map((l) => `${l.seq} ${l.entry.kind} ${[...tally(l)].join(" ")}`.trim());

/** every order of a short list */
function orders<T>(list: readonly T[]): T[][] {
  return list.length < 2 ? [[...list]] : list.flatMap((x, i) => orders(list.filter((_, j) => j !== i)).map((r) => [x, ...r]));
}

describe("told", () => {
  it("is newest first, each entry once, whatever the order and however often it comes", () => {
    const es = [status(1, "a", down), status(2, "b", down), status(3, "a", well, 900, down), entry(4, { kind: "server_removed", server_id: "b" })];
    const want = words(told([], es));
    expect(want.map((w) => w[0])).toEqual(["4", "3", "2", "1"]);
    for (const o of orders(es)) {
      expect(words(told([], o))).toEqual(want);
      expect(words(o.reduce<readonly Line[]>((l, e) => told(l, [e, e]), []))).toEqual(want);
    }
  });
  it("makes one line of a host that is lost, whichever comes first", () => {
    for (const o of orders([silent(1, ["a", "b", "c"]), status(2, "a", down), status(3, "b", quiet), status(4, "c", down)])) {
      const l = told([], o);
      expect(l.map((x) => x.seq)).toEqual([1]);
      expect(tally(l[0]!)).toEqual(new Map([["unavailable", 2], ["limited", 1]]));
    }
  });
  it("keeps the newest of a server, also where the past is read after what is live", () => {
    const es = [back(1, ["a"]), status(2, "a", down, 100, down), status(3, "a", quiet, 200, down), status(4, "a", well, 300, quiet)];
    for (const o of orders(es)) expect(words(told([], o))).toEqual(["1 environment_back available,1"]);
    const once = told([], es);
    expect(words(told(once, es.slice(1, 3)))).toEqual(["1 environment_back available,1"]);
  });
  it("leaves to themselves servers that are not meant, times that are far, and other journals", () => {
    const l = told([], [silent(1, ["a", "b", "c"]), status(2, "x", down), status(3, "a", down, 5000), { ...status(4, "b", down), epoch: "e2" }]);
    expect(l.find((x) => x.seq === 1)!.folded.size).toBe(0);
    expect(l).toHaveLength(4);
  });
  it("tells by itself of a server that falls after its host is back, but not of one that stayed down", () => {
    expect(words(told([], [back(1, ["a", "b"]), status(2, "a", down, 3000), status(3, "b", down, 3000, down)]))).toEqual(["2 status", "1 environment_back unavailable,1"]);
  });
  it("is bounded, and keeps the newest", () => {
    const es = Array.from({ length: MAX_LINES * 3 }, (_, i) => status(i + 1, "s" + i, down, i));
    for (const list of [told([], es), told([], es.toReversed()), es.reduce<readonly Line[]>((l, e) => told(l, [e]), [])]) {
      expect(list).toHaveLength(MAX_LINES);
      expect(list[0]!.seq).toBe(es.length);
      expect(list.at(-1)!.seq).toBe(es.length - MAX_LINES + 1);
    }
  });
  it("changes nothing that it was given, and nothing where nothing came", () => {
    const before = Object.freeze(told([], [silent(1, ["a", "b"])])) as readonly Line[];
    expect(told(before, [])).toBe(before);
    told(before, [status(2, "a", down), status(3, "z", down)]);
    expect(words(before)).toEqual(["1 environment_silent"]);
  });
  it("takes what it does not know for what it is", () => {
    for (const kind of ["constructor", "__proto__", "toString", "brand_new"]) {
      const l = told([], [entry(1, { kind: kind as Update["kind"], server_ids: ["a"] }), status(2, "a", down), entry(3, { kind: kind as Update["kind"], timestamp: "never" })]);
      expect(l.map((x) => [x.seq, x.folded.size])).toEqual([[3, 0], [2, 0], [1, 0]]);
    }
    expect(told([], [entry(1, {})])).toEqual([]); // a status without a status
  });
});

it("worthTelling leaves out that a server is known, but not what it does", () => {
  const never: UpdateStatus = { state: "unknown", health: "unknown", reason: "never_seen", marks: [] };
  expect(worthTelling({ ...status(1, "a", never), version: 1 })).toBe(false);
  expect(worthTelling({ ...status(1, "a", never), version: 2 })).toBe(true);
  expect(worthTelling({ ...status(1, "a", down), version: 1 })).toBe(true);
  expect(worthTelling(entry(1, { kind: "self_doubt" }))).toBe(true);
});

it("change needs both ends", () => {
  expect(change(status(1, "a", down))).toEqual({ from: "available", to: "unavailable" });
  expect(change(entry(1, { current_status: down }))).toBeUndefined();
});

describe("silenceTone", () => {
  it.each<[string, Update[], string]>([
    ["servers that still answer", [silent(1, ["a", "b"]), status(2, "a", quiet), status(3, "b", quiet)], "limited"],
    ["one that does not", [silent(1, ["a", "b"]), status(2, "a", quiet), status(3, "b", down)], "unavailable"],
    ["servers of which nothing is told", [silent(1, ["a"])], "unavailable"],
    ["no servers", [silent(1, [])], "limited"],
  ])("%s", (_, es, want) => expect(silenceTone(told([], es)[0]!)).toBe(want));
});
