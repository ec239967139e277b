import { describe, expect, it } from "vitest";
import { beatOf, interval, partsOf, round, suggestedID, tallies, worstFirst } from "../src/views/environment/model";
import type { Environment, Server } from "../src/types";

const t = Date.UTC(2026, 2, 1);
const env = (more: Partial<Environment>): Environment => ({ id: "box", name: "box", agent: "ok", servers: 0, late_after_seconds: 150, lost_after_seconds: 240, last_heartbeat: new Date(t).toISOString(), ...more });
const server = (name: string, availability: Server["status"]["availability"]) => ({ id: name, name, status: { availability } }) as Server;

describe("beatOf", () => {
  it("judges by the limits that were learned, between two answers, too", () => {
    expect(beatOf(env({}), t + 60_000)).toMatchObject({ age: 60, used: 0.25, level: "ok", words: "late in 1 min 30 s" });
    expect(beatOf(env({}), t + 200_000)).toMatchObject({ level: "late", words: "lost in 40 s" });
    expect(beatOf(env({}), t + 300_000)).toMatchObject({ level: "lost", used: 1, words: "lost after 4 min" });
    expect(beatOf(env({ agent: "lost" }), t + 1000)!.level).toBe("lost");
  });
  it("says nothing of one that never was", () => {
    expect(beatOf(env({ last_heartbeat: undefined }), t)).toBeUndefined();
  });
  it("is no negative age where clocks differ", () => {
    expect(beatOf(env({}), t - 5000)!.age).toBe(0);
  });
});

describe("partsOf", () => {
  const report = {
    environment_id: "box",
    window_seconds: 3600,
    step_seconds: 60,
    resolution: "minute",
    items: [{ start: new Date(t).toISOString(), cpu_percent: 10, cpu_max_percent: 20, memory_bytes: 256, memory_max_bytes: 512, memory_size_bytes: 1024 }],
  };
  it("makes shares of bytes, and keeps what was not told apart from nothing", () => {
    const [cpu, memory, disk] = partsOf(
      env({ system: { cpu_load_percent: 0, memory: { total_bytes: 2048, active_bytes: 512, used_bytes: 1900, free_bytes: 148 }, errors: { disk: "no main file system" } } }),
      report,
    );
    expect(cpu).toMatchObject({ now: "0.0 %", any: true, error: undefined });
    expect(memory).toMatchObject({ percent: 25, of: "512 B of 2.0 KiB", any: true });
    expect(memory!.series.columns).toEqual([[25], [50]]);
    expect(disk).toMatchObject({ any: false, error: "no main file system" });
    expect(disk!.now).toBeUndefined();
  });
  it("goes without a report, and without an environment", () => {
    expect(partsOf(undefined, undefined).map((p) => p.any)).toEqual([false, false, false]);
    expect(partsOf(env({ system: { errors: { system: "denied" } } }), undefined).map((p) => p.error)).toEqual(["denied", "denied", "denied"]);
  });
});

describe("servers", () => {
  it("come with what is wrong first", () => {
    const list = [server("b", "available"), server("a", "available"), server("z", "unavailable"), server("m", "limited")];
    expect(worstFirst(list).map((s) => s.name)).toEqual(["z", "m", "a", "b"]);
    expect(tallies(list)).toEqual([
      ["unavailable", 1],
      ["limited", 1],
      ["available", 2],
    ]);
  });
});

it("round, interval", () => {
  expect([round(9.96), round(41.4), round(100)]).toEqual(["9.9 %", "41 %", "100 %"]);
  expect([interval(undefined), interval(4.999), interval(2.54), interval(60)]).toEqual(["", "5 s", "2.5 s", "1 min"]);
});

it("suggests ids that the registry takes", () => {
  expect(suggestedID("my redis/<7>")).toBe("my-redis-7");
  expect(suggestedID("somebody-elses-redis")).toBe("somebody-elses-redis");
  expect(suggestedID("x".repeat(300))).toHaveLength(128);
});
