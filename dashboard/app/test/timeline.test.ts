import { describe, expect, it } from "vitest";
import { at, layout, portion, say, shares, sharesOf, ticks, type SpanClass } from "../src/views/server/timeline";
import type { Stretch } from "../src/types";

const t0 = Date.UTC(2026, 2, 1);
const iso = (s: number) => new Date(t0 + s * 1000).toISOString();
const stretch = (c: SpanClass, from: number, to?: number, more: Partial<Stretch> = {}): Stretch => ({ class: c, begin: iso(from), end: to === undefined ? undefined : iso(to), ...more });

describe("layout", () => {
  const items = [stretch("available", 100, 500), stretch("unavailable", 500, 501), stretch("available", 501)];
  const pieces = layout(items, t0, t0 + 1_000_000, 1000);
  it("shows what is not known before the first stretch", () => {
    expect(pieces).toContainEqual({ x: 0, width: 100, class: "unknown", index: -1 });
    expect(layout([], t0, t0 + 1000, 50)).toEqual([{ x: 0, width: 50, class: "unknown", index: -1 }]);
  });
  it("reaches the edge with what goes on", () => {
    expect(pieces).toContainEqual({ x: 501, width: 499, class: "available", index: 2 });
  });
  it("keeps short trouble visible, drawn over what is well", () => {
    const bad = pieces.findIndex((p) => p.class === "unavailable");
    expect(pieces[bad]!.width).toBe(2);
    expect(bad).toBe(pieces.length - 1);
  });
  it("keeps trouble at the very end inside the picture", () => {
    const [p] = layout([stretch("available", 0, 999.9), stretch("unavailable", 999.9)], t0, t0 + 1_000_000, 1000).slice(-1);
    expect(p!.x + p!.width).toBeLessThanOrEqual(1000);
  });
  it("cuts at the edges, and takes a class of a newer service for unknown", () => {
    expect(layout([stretch("novel" as SpanClass, -500)], t0, t0 + 1000, 10)).toEqual([{ x: 0, width: 10, class: "unknown", index: 0 }]);
  });
  it("makes nothing of nothing", () => {
    expect(layout(items, t0, t0, 100)).toEqual([]);
    expect(layout(items, t0, t0 + 1000, 0)).toEqual([]);
  });
});

describe("words", () => {
  const items = [stretch("available", 100, 400), stretch("unavailable", 400, 500, { reason: "probe_failing", cause: "refused" }), stretch("available", 500)];
  it("find the stretch of a moment", () => {
    expect([50, 100, 450, 9999].map((s) => at(items, t0 + s * 1000))).toEqual([-1, 0, 1, 2]);
  });
  it("say what it was, why, and for how long", () => {
    const s = say(items[1]!, t0 + 1_000_000);
    expect(s.what).toBe("Unavailable: Probes fail: connection refused");
    expect(s.when).toMatch(/1 min 40 s$/);
    expect(say(items[2]!, t0 + 600_000).when).toMatch(/now, 1 min 40 s$/);
    expect(say(stretch("unavailable", 0, 9, { merged: 12 }), t0).what).toContain("worst of 12");
  });
  it("share the window out without a rest", () => {
    const list = shares(items, t0, t0 + 1_000_000);
    expect(list).toEqual([
      { class: "available", seconds: 800 },
      { class: "unavailable", seconds: 100 },
      { class: "unknown", seconds: 100 },
    ]);
    expect(shares([], t0, t0 + 60_000)).toEqual([{ class: "unknown", seconds: 60 }]);
  });
  it("share it by the uptime where stretches were merged", () => {
    const u = { window_seconds: 100, available_seconds: 80, limited_seconds: 0, unavailable_seconds: 15, changing_seconds: 0, off_seconds: 0, unknown_seconds: 5, maintenance_seconds: 0, incidents: 9 };
    expect(sharesOf(u).map((x) => x.class + " " + x.seconds)).toEqual(["available 80", "unavailable 15", "unknown 5"]);
  });
  it("say 100 % only of the whole", () => {
    expect(portion(100, 100)).toBe("100 %");
    expect(portion(99.99, 100)).toBe("> 99.9 %");
    expect(portion(0.01, 100)).toBe("< 0.1 %");
    expect(portion(97.3, 100)).toBe("97.3 %");
  });
});

describe("ticks", () => {
  it("are few, in order and inside", () => {
    for (const hours of [1, 24, 24 * 7, 24 * 30, 24 * 90]) {
      for (const n of [2, 5, 10]) {
        const to = t0 + 12_345_678;
        const from = to - hours * 3_600_000;
        const list = ticks(from, to, n);
        expect(list.length).toBeLessThanOrEqual(n + 1);
        expect(list.every((t, i) => t >= from && t <= to && (i === 0 || t > list[i - 1]!))).toBe(true);
        if (n >= 5) expect(list.length).toBeGreaterThan(0);
      }
    }
  });
});
