// Time series for charts and for those who can't see them. Pure functions, tested in test/series.test.ts.
import { clock, moment } from "../../format";

/** Window is how far back a view looks, and in which steps. */
export interface Window {
  /** as the API has it */
  id: "1h" | "24h" | "7d" | "30d" | "90d";
  words: string;
  seconds: number;
  /** the step that gives a chart about 60 to 300 points */
  step: string;
}

export const windows: readonly Window[] = [
  { id: "1h", words: "hour", seconds: 3600, step: "1m" },
  { id: "24h", words: "24 hours", seconds: 86_400, step: "5m" },
  { id: "7d", words: "7 days", seconds: 7 * 86_400, step: "1h" },
  { id: "30d", words: "30 days", seconds: 30 * 86_400, step: "4h" },
  { id: "90d", words: "90 days", seconds: 90 * 86_400, step: "1d" },
];

export const windowOf = (id: string): Window => windows.find((w) => w.id === id) ?? windows[1]!;

/**
 * fitting is the window to begin with: a day, or an hour where nothing is known from before it (a young service would
 * show an empty day). known is how many seconds of the last day are known; undefined: not told yet.
 */
export function fitting(known: number | undefined): Window {
  return known !== undefined && known < 3600 ? windowOf("1h") : windowOf("24h");
}

/** Series are columns of equal length: times in seconds, and what was measured; null breaks the line. */
export interface Series {
  times: number[];
  columns: (number | null)[][];
}

/**
 * toSeries makes columns of steps. Where steps are missing the line is broken: nothing was measured there. step is their
 * length in seconds; a point stands in the middle of its step, that of the step that runs at its begin or later.
 */
export function toSeries<T extends { start: string }>(
  items: readonly T[],
  step: number,
  columns: readonly ((item: T) => number | undefined)[],
): Series {
  const out: Series = { times: [], columns: columns.map(() => []) };
  let last = NaN;
  for (const it of items) {
    const at = Date.parse(it.start) / 1000;
    if (Number.isNaN(at)) continue;
    if (at - last > step * 1.5) {
      out.times.push(last + step);
      for (const c of out.columns) c.push(null);
    }
    out.times.push(at);
    columns.forEach((f, i) => out.columns[i]!.push(f(it) ?? null));
    last = at;
  }
  return out;
}

/** Extent is the least, the mean and the largest of what was measured, and the newest. */
export interface Extent {
  min: number;
  mean: number;
  max: number;
  last: number;
}

/** extentOf says it of a column; undefined where nothing was measured. */
export function extentOf(column: readonly (number | null)[]): Extent | undefined {
  let n = 0;
  let sum = 0;
  let min = Infinity;
  let max = -Infinity;
  let last = 0;
  for (const v of column) {
    if (v === null) continue;
    n++;
    sum += v;
    if (v < min) min = v;
    if (v > max) max = v;
    last = v;
  }
  return n ? { min, mean: sum / n, max, last } : undefined;
}

/** trend says how the second half of a column compares with the first: for those who hear a chart. */
export function trend(column: readonly (number | null)[]): "rising" | "falling" | "steady" | "" {
  const v = column.filter((x): x is number => x !== null);
  if (v.length < 4) return "";
  const mean = (l: number[]) => l.reduce((a, b) => a + b, 0) / l.length;
  const a = mean(v.slice(0, v.length >> 1));
  const b = mean(v.slice(v.length >> 1));
  const noise = 0.1 * Math.max(Math.abs(a), Math.abs(b));
  if (Math.abs(b - a) <= noise) return "steady";
  return b > a ? "rising" : "falling";
}

/** cut shortens a text to about so many characters; one that is only a little longer stays whole. */
export function cut(text: string, most: number): string {
  if (text.length <= most * 1.25) return text;
  const letters = Array.from(text); // not to halve a character
  return letters.length <= most * 1.25 ? text : letters.slice(0, most).join("") + "…";
}

/** when names a moment of a chart: the time of day, with the date where the window is longer than a day. */
export function when(seconds: number, window: number): string {
  return window > 86_400 ? moment(seconds * 1000).slice(0, 16) : clock(seconds * 1000).slice(0, 5);
}
