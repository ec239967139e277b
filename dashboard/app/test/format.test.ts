import { describe, expect, it } from "vitest";
import { at, availabilities, availabilityOf, availabilityWords, bytes, causeWords, clock, count, duration, moment, ms, percent, plural, reasonWords, since, why } from "../src/format";
import { healths, states } from "../src/core/filter";

describe("availabilityOf", () => {
  it("is the user's layer, for every state and health", () => {
    for (const state of states) {
      for (const health of healths) {
        const want =
          health === "unhealthy" || state === "error" ? "unavailable"
          : state === "running" ? (health === "healthy" ? "available" : health === "degraded" ? "limited" : "unknown")
          : state === "starting" || state === "stopping" ? "changing"
          : state === "stopped" ? "off"
          : "unknown";
        expect(availabilityOf({ state, health })).toBe(want);
        expect(availabilities).toContain(want);
        expect(availabilityWords[want]).toBeTruthy();
      }
    }
  });
});

describe("words", () => {
  it.each([
    ["crashed", "exit_137", "Crashed: exit code 137"],
    ["probe_failing", "http_503", "Probes fail: HTTP 503"],
    ["auth_failed", "http_401", "Rejects our credential"],
    ["not_mcp", "not_mcp", "Answers, but not MCP"],
    ["ok", undefined, "All is well"],
    ["some_new_reason", "some_new_cause", "some new reason: some new cause"],
    ["constructor", "__proto__", "constructor:   proto  "],
    ["toString", "http_", "toString: http "],
    ["", "", ""],
  ])("%s, %s", (reason, cause, want) => {
    expect(why({ reason, cause })).toBe(want);
  });
  it("are texts whatever comes", () => {
    for (const w of ["constructor", "hasOwnProperty", "__proto__", "valueOf", "http_12a", "exit_-1", "<b>"]) {
      expect(typeof reasonWords(w)).toBe("string");
      expect(typeof causeWords(w)).toBe("string");
    }
  });
});

describe("duration", () => {
  it.each([
    [0, "0 s"], [-5, "0 s"], [59.9, "59 s"], [60, "1 min"], [61, "1 min 1 s"], [599, "9 min 59 s"], [600, "10 min"], [659, "10 min"],
    [3599, "59 min"], [3600, "1 h"], [7500, "2 h 5 min"], [86399, "23 h 59 min"], [86400, "1 d"], [356400, "4 d 3 h"], [864000, "10 d"], [950400, "11 d"],
    [NaN, ""], [Infinity, ""], [-Infinity, ""],
  ])("%s s", (s, want) => expect(duration(s)).toBe(want));
  it("never goes back as time goes on", () => {
    const unit: Record<string, number> = { s: 1, min: 60, h: 3600, d: 86400 };
    const read = (t: string) => [...t.matchAll(/(\d+) (\w+)/g)].reduce((n, x) => n + Number(x[1]) * unit[x[2]!]!, 0);
    let last = 0;
    for (let s = 0; s < 2_000_000; s += s < 8000 ? 1 : 61) {
      const v = read(duration(s));
      expect(v >= last && v <= s).toBe(true);
      last = v;
    }
  });
});

describe("times", () => {
  const now = new Date(2026, 10, 24, 12, 3, 41).getTime();
  const iso = (...d: [number, number, number, number, number, number]) => new Date(...d).toISOString();
  it("tells near ones shortly", () => {
    expect(at(iso(2026, 10, 24, 0, 0, 5), now)).toBe("00:00:05");
    expect(at(iso(2026, 10, 23, 23, 59, 59), now)).toBe("Nov 23 23:59");
    expect(at(iso(2025, 10, 24, 12, 3, 41), now)).toBe("Nov 24 2025");
    expect(moment(now)).toBe("2026-11-24 12:03:41");
    expect(since(new Date(now - 61_000).toISOString(), now)).toBe("1 min 1 s");
    expect(since(new Date(now + 61_000).toISOString(), now)).toBe("0 s");
  });
  it.each(["", "never", "2026-99-99T00:00:00Z", undefined])("says nothing of %s", (t) => {
    expect([at(t, now), since(t, now)]).toEqual(["", ""]);
    if (t !== undefined) expect([clock(t), moment(t)]).toEqual(["", ""]);
  });
});

describe("amounts", () => {
  it.each([
    [0, "0 B"], [1023, "1023 B"], [1024, "1.0 KiB"], [1536, "1.5 KiB"], [1024 * 99.96, "100 KiB"], [1024 ** 2 - 1, "1.0 MiB"], [1024 ** 3 * 1.9, "1.9 GiB"],
    [1024 ** 5 * 5000, "5000 PiB"],
  ])("%s bytes", (n, want) => expect(bytes(n)).toBe(want));
  it.each([[0, "0.0 ms"], [0.84, "0.8 ms"], [9.94, "9.9 ms"], [9.96, "10 ms"], [24.4, "24 ms"], [999.4, "999 ms"], [999.6, "1.0 s"], [2400, "2.4 s"]])(
    "%s ms",
    (n, want) => expect(ms(n)).toBe(want),
  );
  it.each([[100, "100 %"], [99.9999, "99.999 %"], [99.98, "99.98 %"], [99, "99 %"], [98.99, "98.9 %"], [0, "0.0 %"]])("%s percent", (p, want) => expect(percent(p)).toBe(want));
  it("keeps a percentage that it can show in full", () => {
    for (let i = 99_000; i < 100_000; i++) expect(percent(Number(`${Math.floor(i / 1000)}.${String(i % 1000).padStart(3, "0")}`))).toBe(String(i / 1000) + " %");
    for (let i = 0; i < 990; i++) expect(percent(Number((i / 10).toFixed(1)))).toBe((i / 10).toFixed(1) + " %");
  });
  it("never says of less than all that it is all", () => {
    for (let d = 1; d > 1e-12; d /= 2) expect(percent(100 - d)).not.toBe("100 %");
  });
  it.each([[0, "0"], [999, "999"], [1000, "1\u202f000"], [1234567, "1\u202f234\u202f567"]])("count %s", (n, want) => expect(count(n)).toBe(want));
  it("has one and many", () => {
    expect([plural(0, "server"), plural(1, "server"), plural(2, "box", "boxes")]).toEqual(["0 servers", "1 server", "2 boxes"]);
  });
});

describe("a time", () => {
  const now = new Date(2026, 10, 24, 1, 45).getTime();
  const cases: [string, Date, string][] = [
    ["of today is a time of day", new Date(2026, 10, 24, 0, 0, 5), "00:00:05"],
    ["of yesterday has a date, however near it is", new Date(2026, 10, 23, 23, 59, 58), "Nov 23 23:59"],
    ["of this year has no year", new Date(2026, 0, 2, 3, 4), "Jan 2 03:04"],
    ["of another year has it", new Date(2025, 10, 24, 1, 45), "Nov 24 2025"],
  ];
  it.each(cases)("%s", (_, t, want) => {
    expect(at(t.getTime(), now)).toBe(want);
    expect(at(t.toISOString(), now)).toBe(want);
  });
  it("that is none is empty", () => {
    expect(at(undefined, now)).toBe("");
    expect(at("yesterday", now)).toBe("");
  });
});
