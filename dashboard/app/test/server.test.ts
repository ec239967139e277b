import { describe, expect, it } from "vitest";
import { addedReason, evidenceAge, evidenceWords, headline, healthsOf, judge, left, reasoned, ruleName, scope, selects, short } from "../src/views/server/words";
import { joined } from "../src/views/server/joined";
import type { Maintenance, Rule, Status, Update } from "../src/types";

const rule = (r: string, more: Partial<Rule> = {}): Rule => ({ rule: r, won: false, ...more });
const status = (more: Partial<Status>): Status => ({ state: "running", health: "healthy", reason: "ok", availability: "available", marks: [], check_count: 0, error_count: 0, version: 1, ...more });

describe("headline", () => {
  it("says what people can do with it, and why", () => {
    expect(headline(status({}))).toEqual({ what: "Available", why: "Running and healthy" });
    expect(headline(status({ state: "stopped", health: "unknown", availability: "off" })).why).toBe("Stopped, as it should be");
    expect(headline(status({ health: "unhealthy", reason: "probe_failing", cause: "http_503", availability: "unavailable" }))).toEqual({ what: "Unavailable", why: "Probes fail: HTTP 503" });
  });
});

describe("judge", () => {
  const rules = [
    rule("1 base state", { state: "running" }),
    rule("2 deadline"),
    rule("3e", { health: "unhealthy", reason: "probe_failing", won: true }),
    rule("3k", { health: "healthy", reason: "ok" }),
    rule("3l", { health: "unknown" }),
    rule("5 override"),
  ];
  const j = judge(rules);
  it("sorts every rule into one place", () => {
    expect(j.won.map((r) => r.rule)).toEqual(["3e"]);
    expect(j.base?.rule).toBe("1 base state");
    expect(j.lost.map((r) => r.rule)).toEqual(["3k"]);
    expect(j.silent.map((r) => r.rule)).toEqual(["2 deadline", "3l", "5 override"]);
    expect(j.won.length + j.lost.length + j.silent.length + 1).toBe(rules.length);
  });
  it("names rules", () => {
    expect(ruleName("1 base state")).toEqual({ number: "1", name: "base state" });
    expect(ruleName("3j")).toEqual({ number: "3j", name: "" });
    expect(reasoned("not the case: state error")).toBe("state error");
    expect(reasoned(undefined)).toBe("");
  });
});

describe("a rule's reason", () => {
  it.each([
    ["probe_failing", "probes fail (4 in a row): HTTP 503", ""],
    ["probe_slow", "it answers slowly: 200ms", ""],
    ["crash_loop", "it restarts again and again", "Crash loop"],
    ["override", "set by ops until 12:03", ""],
    ["ok", "running", ""],
    [undefined, "running", ""],
  ])("%s beside %j adds %j", (reason, text, want) => {
    expect(addedReason(reason, text)).toBe(want);
  });
});

describe("evidence", () => {
  it("has words for what a newer service says, too", () => {
    expect(evidenceWords("probe").name).toBe("Probe");
    expect(evidenceWords("crystal_ball")).toEqual({ name: "crystal ball", from: "" });
    expect(evidenceWords("constructor")).toEqual({ name: "constructor", from: "" });
  });
  it("has an age by when it was asserted", () => {
    const e = { kind: "probe", value: "up", fresh: true } as const;
    expect(evidenceAge(e, 0)).toBeUndefined();
    expect(evidenceAge({ ...e, asserted_at: "2026-03-01T00:00:00.000Z" }, Date.UTC(2026, 2, 1, 0, 1))).toBe(60);
    expect(evidenceAge({ ...e, asserted_at: "2026-03-01T00:00:00.000Z" }, 0)).toBe(0); // a clock that is behind
  });
  it("is cut only where it is a digest", () => {
    expect(short("every 1m0s, late after 2m30s, lost after 1h4m0s, asked after 20s")).toBe("every 1 min, late after 2 min 30 s, lost after 1 h 4 min, asked after 20 s");
    expect(short("3 tools, sha256:" + "ab".repeat(32))).toBe("3 tools, sha256:ababababab…");
    expect(short("sha256:beef <b>")).toBe("sha256:beef <b>");
    expect(short("until 2026-03-01T12:00:00.000Z")).toMatch(/^until 2026-0[23]-\d\d \d\d:\d\d:\d\d$/);
  });
});

describe("overrides and windows", () => {
  it("offer only healths that the service takes with a state", () => {
    for (const s of ["stopped", "starting", "stopping", "error", "unknown"] as const) {
      expect(healthsOf(s)).not.toContain("healthy");
      expect(healthsOf(s)).not.toContain("degraded");
    }
    expect(healthsOf("running")[0]).toBe("healthy");
    expect(healthsOf("error")[0]).toBe("unhealthy");
  });
  const window = (more: Partial<Maintenance>): Maintenance => ({ id: "w", starts_at: "", ends_at: "", open: true, servers: 1, ...more });
  it("know whom they are about", () => {
    const s = { id: "a", environment_id: "box", labels: { team: "core" } };
    expect(selects(window({ server_ids: ["b", "a"] }), s)).toBe(true);
    expect(selects(window({ environment_ids: ["box"] }), s)).toBe(true);
    expect(selects(window({ labels: { team: "core" } }), s)).toBe(true);
    expect(selects(window({ labels: { team: "core", tier: "1" } }), s)).toBe(false);
    expect(selects(window({ labels: {} }), s)).toBe(false);
    expect(selects(window({ environment_ids: ["box"] }), { id: "a" })).toBe(false);
  });
  it("say whom else they are about", () => {
    expect(scope(window({ server_ids: ["a"] }))).toBe("");
    expect(scope(window({ server_ids: ["a", "b"], servers: 2 }))).toBe("2 servers");
    expect(scope(window({ environment_ids: ["box"], servers: 5 }))).toBe("environment box, 5 servers");
  });
  it("say how long they last", () => {
    expect(left("2026-03-01T00:01:00.000Z", Date.UTC(2026, 2, 1))).toBe("1 min");
    expect(left("2026-03-01T00:01:00.000Z", Date.UTC(2026, 2, 2))).toBe("");
    expect(left(undefined, 0)).toBe("");
  });
});

describe("joined", () => {
  const e = (seq: number, epoch = "e1") => ({ seq, epoch }) as Update;
  const seqs = (l: Update[]) => l.map((x) => x.seq);
  it("puts the newest page before what is there", () => {
    expect(seqs(joined([e(9), e(8), e(7)], [e(8), e(7), e(6), e(5)]))).toEqual([9, 8, 7, 6, 5]);
    expect(seqs(joined([e(9), e(8)], undefined))).toEqual([9, 8]);
  });
  it("shows no hole where they don't meet", () => {
    expect(seqs(joined([e(19), e(18)], [e(8), e(7)]))).toEqual([19, 18]);
    expect(seqs(joined([e(9, "e2"), e(8, "e2")], [e(8), e(7)]))).toEqual([9, 8]);
  });
});
