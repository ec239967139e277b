import { describe, expect, it } from "vitest";
import { problemsOf, type Problem, type Silence } from "../src/core/problems";
import type { Environment, Server } from "../src/types";

const at = (minute: number) => `2026-11-24T00:${String(minute).padStart(2, "0")}:00Z`;
const server = (id: string, what: "down" | "limited" | "unknown" | "well" | "off", since = 0, more: { env?: string; maintenance?: boolean } = {}) =>
  ({
    id, name: id, environment_id: more.env,
    status: {
      state: what === "off" ? "stopped" : what === "unknown" ? "unknown" : "running",
      health: { down: "unhealthy", limited: "degraded", unknown: "unknown", well: "healthy", off: "unknown" }[what],
      reason: what === "unknown" ? "never_seen" : "r", since: at(since), marks: more.maintenance ? ["maintenance"] : [],
    },
  }) as Server;
const none = new Map<string, never>();
const silence = (...ids: string[]) => new Map<string, Silence>(ids.map((id) => [id, { since: at(9), details: "lost " + id }]));
const keys = (list: Problem[]) => list.map((p) => p.key);

describe("problemsOf", () => {
  it("puts the worst first, and the newest of these", () => {
    const fleet = [
      server("limited", "limited", 50), server("old", "down", 1), server("new", "down", 30), server("well", "well"), server("off", "off"),
      server("a", "down", 2, { env: "box" }), server("b", "limited", 2, { env: "quiet" }),
    ];
    for (const list of [fleet, fleet.toReversed()]) {
      expect(keys(problemsOf(list, none, silence("box", "quiet")).items)).toEqual(["e:box", "s:new", "s:old", "e:quiet", "s:limited"]);
    }
  });
  it("tells of a lost host once, with all that is not well on it", () => {
    const fleet = [server("c-10", "limited", 1, { env: "box" }), server("c-2", "limited", 1, { env: "box" }), server("z", "down", 1, { env: "box" }), server("ok", "well", 1, { env: "box" })];
    const [p] = problemsOf(fleet, none, silence("box")).items;
    expect(p).toMatchObject({ kind: "environment", id: "box", unavailable: 1, total: 4, since: at(9), details: "lost box" });
    expect(p!.kind === "environment" && p!.servers.map((s) => s.id)).toEqual(["z", "c-2", "c-10"]);
  });
  it("knows a lost host by its agent, too, and then its oldest fault", () => {
    const env = new Map([["box", { id: "box", agent: "lost" } as Environment]]);
    const [p] = problemsOf([server("a", "down", 7, { env: "box" }), server("b", "down", 3, { env: "box" })], env, none).items;
    expect(p).toMatchObject({ kind: "environment", since: at(3), details: "" });
  });
  it("has no line for a lost host whose servers are all well", () => {
    expect(problemsOf([server("a", "well", 0, { env: "box" })], none, silence("box", "empty")).items).toEqual([]);
  });
  it("counts what is unknown, and what is in maintenance", () => {
    const p = problemsOf([server("a", "unknown"), server("b", "unknown"), server("c", "down", 0, { maintenance: true }), server("d", "down", 0, { maintenance: true, env: "box" })], none, silence("box"));
    expect(p).toMatchObject({ items: [], unknownCount: 2, maintained: 2 });
    expect(p.unknown).toEqual(new Map([["never_seen", 2]]));
  });
  it("takes times that are none, and names of every kind", () => {
    const odd = ["", "never"].map((since, i) => ({ ...server("__proto__" + i, "down", 0, { env: "constructor" }), status: { ...server("x", "down").status, since } }) as Server);
    expect(keys(problemsOf([...odd, server("dated", "down", 1)], none, none).items)).toEqual(["s:dated", "s:__proto__0", "s:__proto__1"]);
    expect(problemsOf(odd, none, silence("constructor")).items).toHaveLength(1);
  });
  it("loses nobody", () => {
    const kinds = ["down", "limited", "unknown", "well", "off"] as const;
    const fleet = Array.from({ length: 300 }, (_, i) => server("s" + i, kinds[(i * 7) % 5]!, i % 60, { env: i % 4 ? "box-" + (i % 6) : undefined, maintenance: i % 11 === 0 }));
    const p = problemsOf(fleet, none, silence("box-1", "box-2"));
    const told = p.items.flatMap((x) => (x.kind === "server" ? [x.server.id] : x.servers.map((s) => s.id)));
    const bad = fleet.filter((s) => ["unhealthy", "degraded"].includes(s.status.health));
    expect(new Set(told).size).toBe(told.length);
    expect(told.length + p.maintained).toBe(bad.length);
    expect(p.unknownCount).toBe(fleet.filter((s) => s.status.state === "unknown").length);
    expect(new Set(keys(p.items)).size).toBe(p.items.length);
  });
});
