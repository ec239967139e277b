import { describe, expect, it } from "vitest";
import { formatFilter, healths, inMaintenance, isEmpty, matcher, MAX_QUERY, noFilter, parseFilter, states, toggled, type Filter } from "../src/core/filter";
import { availabilities } from "../src/format";
import type { Server } from "../src/types";

const server = (more: Omit<Partial<Server>, "status"> & { status?: Partial<Server["status"]> }) =>
  ({ id: "weather", name: "Weather", ...more, status: { state: "running", health: "healthy", reason: "ok", marks: [], ...more.status } }) as Server;

/** random numbers that are the same in each run */
function dice(seed: number) {
  return (n: number) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 2 ** 32) * n);
  };
}

describe("the filter in the address", () => {
  it.each<[string, Partial<Filter>]>([
    ["", {}],
    ["?", {}],
    ["?q=two+words%20more", { q: "two words more" }],
    ["?availability=available,unavailable", { availability: ["unavailable", "available"] }],
    ["?availability=off&availability=off,limited", { availability: ["limited", "off"] }],
    ["?states=error,%20running&healths=unknown", { states: ["error", "running"], healths: ["unknown"] }],
    ["?environment_ids=box-2,,box-1,box-2", { environments: ["box-2", "box-1"] }],
    ["?label=team=a=b&label=tier=", { labels: [["team", "a=b"], ["tier", ""]] }],
    ["?label=team=a&label=team=b", { labels: [["team", "b"]] }],
    ["?maintenance=false", { maintenance: false }],
    // What means nothing is left out.
    ["?states=ERROR,constructor,__proto__&healths=&availability=toString", {}],
    ["?label=&label==x&label=alone&maintenance=maybe&maintenance=", {}],
    ["?q=%E0%A4%A&other=1", { q: "\ufffd%A" }],
    ["?q=" + "x".repeat(5000), { q: "x".repeat(MAX_QUERY) }],
  ])("reads %s", (address, want) => {
    expect(parseFilter(address)).toEqual({ ...noFilter, ...want });
  });

  it("writes what is easy to read", () => {
    expect(formatFilter(noFilter)).toBe("");
    expect(formatFilter({ ...noFilter, environments: ["eu:1", "b"], maintenance: true })).toBe("?environment_ids=eu:1,b&maintenance=true");
  });

  it("comes back as it went, whatever it holds", () => {
    const roll = dice(7);
    const bits = ["a", "=", "&", "+", " ", "%", "%2C", ",", ":", "#", "?", "\u0000", "\n", "ü", "😀", "\u202e", "<img>", "שלום"];
    const text = (n: number, without = "") => {
      let t = "";
      for (let i = roll(n); i >= 0; i--) t += bits[roll(bits.length)];
      if (without !== "") t = t.replaceAll(without, "");
      return t;
    };
    const some = <T>(list: readonly T[]) => list.filter(() => roll(3) === 0);
    for (let i = 0; i < 2000; i++) {
      const f: Filter = {
        q: text(12),
        availability: some(availabilities),
        states: some(states),
        healths: some(healths),
        environments: [...new Set([text(4, ","), text(4, ",")].map((e) => e.trim()).filter((e) => e !== ""))],
        labels: [...new Map([["k" + text(3, "="), text(5)], ["k", text(5)]] as [string, string][])],
        ...(roll(2) ? { maintenance: roll(2) === 1 } : {}),
      };
      const address = formatFilter(f);
      expect(parseFilter(address)).toEqual(f);
      expect(address).not.toMatch(/[\s<>"#]/);
      expect(isEmpty(f)).toBe(address === "");
    }
  });

  it("cuts a long search between characters, so that it can be written again", () => {
    for (const q of ["x".repeat(MAX_QUERY - 1) + "😀", "😀".repeat(MAX_QUERY), "x" + "😀".repeat(MAX_QUERY)]) {
      const f = parseFilter("?q=" + encodeURIComponent(q));
      expect(f.q.length).toBeLessThanOrEqual(MAX_QUERY);
      expect(parseFilter(formatFilter(f))).toEqual(f);
    }
  });
});

describe("matcher", () => {
  const s = server({
    environment_id: "box-1",
    endpoint: "http://10.0.0.1/mcp",
    labels: { team: "Core", constructor: "x" },
    status: { state: "error", health: "unhealthy", reason: "probe_failing", cause: "http_503", marks: ["maintenance"] },
  });
  it.each<[Partial<Filter>, boolean]>([
    [{}, true],
    [{ q: "   " }, true],
    [{ q: "WEATHER" }, true],
    [{ q: "core weather 10.0.0" }, true],
    [{ q: "weather absent" }, false],
    [{ q: "probes fail" }, true],
    [{ q: "probe_failing http_503" }, true],
    [{ q: "team=core" }, true],
    [{ q: "undefined" }, false],
    [{ q: ".*" }, false],
    [{ availability: ["unavailable", "off"] }, true],
    [{ availability: ["available"] }, false],
    [{ states: ["error"], healths: ["unhealthy"] }, true],
    [{ states: ["running"], healths: ["unhealthy"] }, false],
    [{ environments: ["box-1", "box-2"] }, true],
    [{ environments: ["box"] }, false],
    [{ labels: [["team", "Core"]] }, true],
    [{ labels: [["team", "core"]] }, false],
    [{ labels: [["team", "Core"], ["absent", ""]] }, false],
    [{ labels: [["toString", ""]] }, false],
    [{ maintenance: true }, true],
    [{ maintenance: false }, false],
  ])("%j selects it: %s", (f, want) => {
    expect(matcher({ ...noFilter, ...f })(s)).toBe(want);
  });

  it("takes a server that has next to nothing", () => {
    const bare = { id: "x", name: "", status: { state: "unknown", health: "unknown", reason: "never_seen" } } as unknown as Server;
    expect(matcher({ ...noFilter, q: "x never" })(bare)).toBe(true);
    expect(matcher({ ...noFilter, environments: ["b"], labels: [["a", "b"]] })(bare)).toBe(false);
    expect(inMaintenance(bare)).toBe(false);
  });

  it("searches the server as it is, not as it was", () => {
    const f = matcher({ ...noFilter, q: "crashed" });
    expect(f(s)).toBe(false);
    const crashed = { ...s, status: { ...s.status, reason: "crashed" } } as Server;
    expect(f(crashed)).toBe(true);
    expect(f(s)).toBe(false);
  });

  it("selects less with each field, and all with none", () => {
    const roll = dice(3);
    const fleet = Array.from({ length: 200 }, (_, i) =>
      server({ id: "s" + i, environment_id: "box-" + roll(4), status: { state: states[roll(6)]!, health: healths[roll(4)]!, marks: roll(3) ? [] : ["maintenance"] } }),
    );
    for (let i = 0; i < 200; i++) {
      const a: Partial<Filter> = { q: "s" + roll(10) };
      const b: Partial<Filter> = { states: states.slice(roll(3), 3 + roll(4)), environments: ["box-" + roll(5)] };
      const both = fleet.filter(matcher({ ...noFilter, ...a, ...b }));
      expect(both).toEqual(fleet.filter(matcher({ ...noFilter, ...a })).filter(matcher({ ...noFilter, ...b })));
    }
    expect(fleet.filter(matcher(noFilter))).toEqual(fleet);
  });
});

it("toggled twice is as before", () => {
  expect(toggled(["a"], "b")).toEqual(["a", "b"]);
  expect(toggled(toggled(["a", "b"], "c"), "c")).toEqual(["a", "b"]);
});
