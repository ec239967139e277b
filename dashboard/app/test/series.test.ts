import { describe, expect, it } from "vitest";
import { extentOf, fitting, toSeries, trend, windowOf, windows } from "../src/views/shared/series";

const at = (minute: number) => ({ start: new Date(Date.UTC(2026, 2, 1, 0, minute)).toISOString(), v: minute });

describe("toSeries", () => {
  it("breaks the line where steps are missing, and only there", () => {
    const s = toSeries([at(0), at(1), at(5), at(6)], 60, [(i) => i.v, (i) => (i.v > 1 ? i.v : undefined)]);
    expect(s.times.map((t) => (t / 60) % 60)).toEqual([0, 1, 2, 5, 6]);
    expect(s.columns).toEqual([
      [0, 1, null, 5, 6],
      [null, null, null, 5, 6],
    ]);
  });
  it("takes nothing for a series, and leaves out what is no time", () => {
    expect(toSeries([], 60, [() => 1])).toEqual({ times: [], columns: [[]] });
    expect(toSeries([{ start: "soon" }], 60, [() => 1]).times).toEqual([]);
  });
  it("keeps zero apart from nothing", () => {
    expect(toSeries([{ start: at(0).start, v: 0 }], 60, [(i) => i.v]).columns).toEqual([[0]]);
  });
});

describe("words for who can't see a chart", () => {
  it("extent", () => {
    expect(extentOf([null, 4, 2, null, 6])).toEqual({ min: 2, mean: 4, max: 6, last: 6 });
    expect(extentOf([null])).toBeUndefined();
  });
  it("trend", () => {
    expect(trend([1, 1, 5, 5])).toBe("rising");
    expect(trend([5, 5, null, 1, 1])).toBe("falling");
    expect(trend([100, 101, 99, 102])).toBe("steady");
    expect(trend([0, 0, 0, 0])).toBe("steady");
    expect(trend([1, 9])).toBe("");
  });
});

describe("windows", () => {
  it("make charts of a bounded number of points, in steps that the API takes", () => {
    for (const w of windows) {
      const m = /^(\d+)([mhd])$/.exec(w.step)!;
      const step = Number(m[1]) * { m: 60, h: 3600, d: 86_400 }[m[2] as "m" | "h" | "d"];
      expect(w.seconds / step).toBeGreaterThanOrEqual(60);
      expect(w.seconds / step).toBeLessThanOrEqual(300);
      if (w.seconds > 48 * 3600) expect(step % 3600).toBe(0); // beyond 48 h there are only hours
    }
    expect(windowOf("nonsense").id).toBe("24h");
  });
  it("begin with an hour where a day would be empty", () => {
    expect(fitting(undefined).id).toBe("24h");
    expect(fitting(1800).id).toBe("1h");
    expect(fitting(7200).id).toBe("24h");
  });
});
