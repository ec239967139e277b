import { describe, expect, it } from "vitest";
import { arrange, visible, type Group, type Metrics } from "../src/core/layout";

const m: Metrics = { columns: 3, tile: 10, gap: 2, labelMin: 15, labelAbove: 0, groupGap: 5 };
const group = (id: string, n: number): Group => ({ id, servers: Array.from({ length: n }, (_, i) => id + i) });

describe("arrange", () => {
  it("puts groups below one another, each with its label once", () => {
    const l = arrange([group("a", 4), group("b", 1)], m);
    expect(l.rows.map((r) => [r.group, r.from, r.to, r.y, r.label])).toEqual([
      [0, 0, 3, 0, true],
      [0, 3, 4, 12, false],
      [1, 0, 1, 27, true],
    ]);
    expect(l.height).toBe(42); // the label's least height
  });
  it("makes room above where labels stand there", () => {
    const l = arrange([group("a", 4)], { ...m, labelAbove: 7, labelMin: 0 });
    expect(l.rows.map((r) => [r.y, r.height])).toEqual([[0, 17], [19, 10]]);
    expect(l.height).toBe(29);
  });
  it("is nothing for nobody, and a label for a group without servers", () => {
    expect(arrange([], m)).toMatchObject({ rows: [], height: 0 });
    expect(arrange([group("a", 0)], m).rows).toHaveLength(1);
  });
  it.each([0, -3, 0.5, NaN, Infinity])("places every tile with %s columns", (columns) => {
    const l = arrange([group("a", 7)], { ...m, columns });
    expect(l.columns).toBeGreaterThanOrEqual(1);
    expect(l.rows.reduce((n, r) => n + r.to - r.from, 0)).toBe(7);
  });
  it("places each tile once, and no row over another", () => {
    for (let n = 0; n < 60; n++) {
      for (const labelAbove of [0, 24]) {
        const groups = [group("a", n), group("b", (n * 7) % 13), group("c", (n * 3) % 5)];
        const l = arrange(groups, { ...m, columns: 1 + (n % 9), labelAbove });
        let end = 0;
        const placed = groups.map(() => 0);
        for (const r of l.rows) {
          expect(r.y).toBeGreaterThanOrEqual(end);
          expect(r.from).toBe(placed[r.group]);
          expect(r.to - r.from).toBeLessThanOrEqual(l.columns);
          expect(r.label).toBe(r.from === 0);
          placed[r.group] = r.to;
          end = r.y + r.height;
        }
        expect(placed).toEqual(groups.map((g) => g.servers.length));
        expect(l.height).toBeGreaterThanOrEqual(end);
      }
    }
  });
});

describe("visible", () => {
  const rows = arrange([group("a", 40), group("b", 5), group("c", 17)], m).rows;
  it("is what a look at every row finds", () => {
    for (let top = -50; top < 300; top += 1) {
      for (const h of [0, 1, 9, 40, 1000]) {
        const v = visible(rows, top, top + h);
        const naive = rows.map((_, i) => i).filter((i) => rows[i]!.y + rows[i]!.height >= top && rows[i]!.y <= top + h);
        expect(Array.from({ length: v.to - v.from }, (_, i) => v.from + i)).toEqual(naive);
      }
    }
  });
  it("is empty where there is nothing, or the span is none", () => {
    expect(visible([], 0, 100)).toEqual({ from: 0, to: 0 });
    const v = visible(rows, 100, 0);
    expect(v.to).toBe(v.from);
  });
});
