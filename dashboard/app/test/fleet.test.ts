import { describe, expect, it } from "vitest";
import { applied, compareText, countsOf, needsReading, ordered } from "../src/core/fleet";
import { availabilities, availabilityOf } from "../src/format";
import type { Server, Update, UpdateStatus } from "../src/types";

const down: UpdateStatus = { state: "error", health: "unhealthy", reason: "crashed", cause: "exit_1", marks: [], since: "2026-11-24T00:00:00Z", last_error: "boom" };
const server = (id: string, more: Omit<Partial<Server>, "status"> & { status?: Partial<Server["status"]> } = {}) =>
  ({ id, name: id, ...more, status: { state: "running", health: "healthy", availability: "available", reason: "ok", marks: [], version: 3, ...more.status } }) as Server;
const entry = (more: Partial<Update>): Update => ({
  seq: 9, epoch: "e1", kind: "status", server_id: "a", version: 4, current_status: down, timestamp: "2026-11-24T00:00:00Z", source: "system", details: "", ...more,
});

describe("applied", () => {
  it("is the server as the entry says, and all that the entry can't know as it was", () => {
    const s = Object.freeze(server("a", { endpoint: "http://x", labels: { team: "core" }, environment_id: "box" }));
    const got = applied(s, entry({}));
    expect(got).toMatchObject({ endpoint: "http://x", labels: { team: "core" }, environment_id: "box" });
    expect(got.status).toMatchObject({ ...down, availability: "unavailable", version: 4 });
    expect(s.status.reason).toBe("ok");
  });
  it("takes what is over away", () => {
    const bad = server("a", { status: { ...down, override: { note: "n" } as never } });
    const got = applied(bad, entry({ current_status: { state: "running", health: "healthy", reason: "ok", marks: [] } })).status;
    expect([got.cause, got.last_error, got.override]).toEqual([undefined, undefined, undefined]);
    expect(applied(bad, entry({ current_status: { ...down, marks: ["override"] } })).status.override).toBeDefined();
  });
  it.each<[string, Partial<Update>]>([
    ["an older one", { version: 2 }],
    ["the same again", { version: 3 }],
    ["one of another server", { server_id: "b" }],
    ["one of another kind", { kind: "tool_drift" }],
    ["one without a status", { current_status: undefined }],
  ])("leaves the very same server after %s", (_, e) => {
    const s = server("a");
    expect(applied(s, entry(e))).toBe(s);
  });
  it("comes to the same end in any order", () => {
    const es = [4, 5, 6, 7].map((version) => entry({ version, seq: version, current_status: { ...down, cause: "exit_" + version } }));
    const want = es.reduce(applied, server("a"));
    for (let i = 0; i < es.length; i++) {
      const turned = [...es.slice(i), ...es.slice(0, i)];
      expect(turned.reduce(applied, server("a"))).toEqual(want);
      expect(turned.toReversed().reduce(applied, server("a"))).toEqual(want);
    }
  });
});

it.each<[Partial<Update>, boolean]>([
  [{ kind: "server_added" }, true],
  [{ kind: "server_changed" }, true],
  [{ kind: "server_removed" }, false],
  [{}, false],
  [{ changes: ["marks"], current_status: { ...down, marks: ["override"] } }, true],
  [{ changes: ["marks"], current_status: { ...down, marks: ["flapping"] } }, false],
  [{ changes: ["marks"], current_status: undefined }, false],
])("needsReading %j: %s", (e, want) => expect(needsReading(entry(e))).toBe(want));

it("countsOf counts each server once", () => {
  const fleet = availabilities.flatMap((_, i) => [
    server("a" + i, { status: i % 2 ? { state: "error", health: "unhealthy" } : { state: "stopped", health: "unknown" } }),
    server("b" + i, { status: { state: "error", marks: ["maintenance"] } }),
  ]);
  const c = countsOf(fleet);
  expect(c).toMatchObject({ total: 12, maintenance: 6, broken: 3, by: { unavailable: 9, off: 3 } });
  expect(Object.values(c.by).reduce((n, x) => n + x)).toBe(c.total);
  for (const a of availabilities) expect(c.by[a]).toBe(fleet.filter((s) => availabilityOf(s.status) === a).length);
  expect(countsOf([])).toMatchObject({ total: 0, broken: 0, by: { unavailable: 0 } });
});

describe("order", () => {
  const names = ["box-2", "box-10", "Box-2", "box", "", "é", "e", "10", "9", "😀", "ß"];
  it("compares as people do, and never calls two names one", () => {
    expect(compareText("box-2", "box-10")).toBeLessThan(0);
    for (const a of names) {
      for (const b of names) {
        expect(Math.sign(compareText(a, b)) + Math.sign(compareText(b, a))).toBe(0);
        expect(compareText(a, b) === 0).toBe(a === b);
        for (const c of names) if (compareText(a, b) < 0 && compareText(b, c) < 0) expect(compareText(a, c)).toBeLessThan(0);
      }
    }
  });
  it("goes by environment, name and id, and is the same however they came", () => {
    const fleet = ["box-10", "box-2", undefined].flatMap((environment_id, e) => ["n-10", "n-2", "n-2"].map((name, i) => server(`s${e}${i}`, { name, environment_id })));
    const want = ["s11", "s12", "s10", "s01", "s02", "s00", "s21", "s22", "s20"];
    for (let i = 0; i < fleet.length; i++) expect(ordered([...fleet.slice(i), ...fleet.slice(0, i)])).toEqual(want);
    expect(ordered([])).toEqual([]);
  });
});
