import type UPlotType from "uplot";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { theme } from "../../theme";
import { extentOf, trend, when, type Series } from "./series";

/** Line is one column of a chart. */
export interface Line {
  words: string;
  /** class of its colour: ink-a, ink-b, ink-c, ink-bad */
  ink: string;
  kind?: "line" | "area" | "bars";
  /** a scale of its own, which leaves the lower part of the chart to bars */
  aside?: boolean;
  dashed?: boolean;
  /** how a value is said */
  say: (v: number) => string;
}

interface Props {
  title: string;
  series: Series;
  lines: readonly Line[];
  /** how far back, in seconds, and until when, in seconds */
  window: number;
  to: number;
  height?: number;
  /** the vertical axis: how a value is written, and its least upper end */
  axis: (v: number) => string;
  top?: number;
  /** the upper end is fixed at top */
  fixed?: boolean;
  /** the table says more than the lines */
  busy?: boolean;
}

/** Chart draws columns over time. The pointer and the arrow keys read values; the numbers are there as text, too. */
export function Chart(p: Props) {
  const box = useRef<HTMLDivElement>(null);
  const legend = useRef<HTMLUListElement>(null);
  const plot = useRef<UPlotType | undefined>(undefined);
  const [at, setAt] = useState<number | null>(null);
  const [failed, fail] = useState(false);
  const id = useId();
  const [dark, setDark] = useState(() => matchMedia("(prefers-color-scheme: dark)").matches);
  const chosen = theme.value;
  const latest = useRef(p);
  latest.current = p;

  useEffect(() => {
    const m = matchMedia("(prefers-color-scheme: dark)");
    const f = () => setDark(m.matches);
    m.addEventListener("change", f);
    return () => m.removeEventListener("change", f);
  }, []);

  // A canvas has no style sheet: colours are read from the legend, so a change of theme draws anew.
  const shape = p.lines.map((l) => l.ink + l.kind + l.aside).join() + p.fixed + p.top;
  useEffect(() => {
    const host = box.current;
    if (!host) return;
    let gone = false;
    let watch: ResizeObserver | undefined;
    import("./plot").then(
      ({ default: UPlot }) => {
        if (gone) return;
        const ink = (c: string) => getComputedStyle(legend.current!.querySelector("." + c)!).color;
        const style = getComputedStyle(host);
        const grid = { stroke: style.borderTopColor, width: 1 };
        const font = `11px ${style.fontFamily}`;
        const { lines } = latest.current;
        const size = () => ({ width: Math.max(120, host.clientWidth), height: latest.current.height ?? 180 });
        const wide = (alpha: number, c: string) => c.replace(/^rgb\((.+)\)$/, `rgba($1, ${alpha})`);
        const u = new UPlot(
          {
            ...size(),
            padding: [8, 14, 0, 0],
            legend: { show: false },
            cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
            scales: {
              x: { time: true, range: () => [latest.current.to - latest.current.window, latest.current.to] },
              y: {
                range: (_u, _min, max) => {
                  const { top = 0, fixed } = latest.current;
                  return [0, fixed ? top : Math.max(top, (max ?? 0) * 1.1)];
                },
              },
              aside: { range: (_u, _min, max) => [0, Math.max(4, (max ?? 0) * 5)] },
            },
            axes: [
              { stroke: style.color, grid: { show: false }, ticks: grid, font, size: 28, space: 64, values: timeLabels },
              { stroke: style.color, grid, ticks: { show: false }, font, size: 52, space: 32, incrs: steps, values: (_u, v) => v.map((x) => latest.current.axis(x)) },
            ],
            series: [
              {},
              ...lines.map((l) => ({
                label: l.words,
                scale: l.aside ? "aside" : "y",
                stroke: ink(l.ink),
                width: l.kind === "bars" ? 0 : 1.5,
                dash: l.dashed ? [4, 3] : undefined,
                fill: l.kind === "bars" ? wide(0.75, ink(l.ink)) : l.kind === "area" ? wide(0.14, ink(l.ink)) : undefined,
                paths: l.kind === "bars" ? UPlot.paths.bars!({ size: [0.8, 8] }) : undefined,
                points: {
                  // Few points make no line that anybody sees.
                  show: (u: UPlotType, i: number) => l.kind !== "bars" && [...(u.data[i] ?? [])].filter((v) => v !== null && v !== undefined).length < 12,
                  size: 4,
                  fill: ink(l.ink),
                  width: 0,
                },
              })),
            ],
            hooks: { setCursor: [(u) => setAt(u.cursor.idx ?? null)] },
          },
          dataOf(latest.current.series),
          host,
        );
        plot.current = u;
        let width = host.clientWidth;
        watch = new ResizeObserver(() => {
          if (host.clientWidth !== width) {
            width = host.clientWidth;
            u.setSize(size());
          }
        });
        watch.observe(host);
      },
      () => !gone && fail(true),
    );
    return () => {
      gone = true;
      watch?.disconnect();
      plot.current?.destroy();
      plot.current = undefined;
    };
  }, [shape, chosen, dark]);

  useEffect(() => {
    plot.current?.setData(dataOf(p.series));
  }, [p.series, p.window, p.to]);

  function key(e: KeyboardEvent) {
    const u = plot.current;
    const n = p.series.times.length;
    if (!u || !n || !["ArrowLeft", "ArrowRight", "Home", "End", "Escape"].includes(e.key)) return;
    if (e.key === "Escape") {
      if (at === null) return; // the page's own
      e.stopPropagation();
      u.setCursor({ left: -10, top: -10 });
      setAt(null);
      return;
    }
    e.preventDefault();
    let i = at ?? n;
    const dir = e.key === "ArrowLeft" || e.key === "End" ? -1 : 1;
    if (e.key === "Home") i = -1;
    if (e.key === "End") i = n;
    do i += dir;
    while (i >= 0 && i < n && p.series.columns.every((c) => c[i] === null));
    if (i < 0 || i >= n) return;
    u.setCursor({ left: u.valToPos(p.series.times[i]!, "x"), top: 10 });
    setAt(i);
  }

  const seen = at !== null && p.series.times[at] !== undefined ? at : null;
  const said = (i: number | null) =>
    p.lines.map((l, k) => {
      const c = p.series.columns[k] ?? [];
      const v = i === null ? undefined : c[i];
      return v === undefined || v === null ? "–" : l.say(v);
    });
  const values = said(seen);
  return (
    <figure class={"d-chart" + (p.busy ? " d-busy" : "")} aria-labelledby={id}>
      <figcaption id={id} class="visually-hidden">
        {p.title}. {describe(p)}
      </figcaption>
      <div class="d-chart-read">
        <ul ref={legend} class="d-legend">
          {p.lines.map((l, i) => (
            <li key={l.words}>
              <span class={"d-swatch " + l.ink + (l.dashed ? " dashed" : "")} aria-hidden="true" />
              {l.words}
              {seen !== null && <span class="num d-value">{values[i]}</span>}
            </li>
          ))}
        </ul>
        {seen !== null && <span class="num muted">{when(p.series.times[seen]!, p.window)}</span>}
      </div>
      {failed ? (
        <p class="d-empty">The chart did not load; the numbers are below.</p>
      ) : (
        <div
          ref={box}
          class="d-plot"
          role="group"
          aria-label={p.title + ": chart. Arrow keys read its values."}
          tabIndex={0}
          onKeyDown={key}
          onBlur={() => setAt(null)}
          style={{ minHeight: (p.height ?? 180) + "px" }}
        />
      )}
      <span class="visually-hidden" role="status">
        {seen !== null && document.activeElement === box.current
          ? when(p.series.times[seen]!, p.window) + ": " + p.lines.map((l, i) => l.words + " " + values[i]).join(", ")
          : ""}
      </span>
      <details class="d-numbers">
        <summary>Numbers</summary>
        <div class="d-scroll" tabIndex={0} role="region" aria-label={p.title + ": numbers"}>
          <Numbers {...p} />
        </div>
      </details>
    </figure>
  );
}

function Numbers(p: Props) {
  const rows = p.series.times.map((_, i) => i).filter((i) => p.series.columns.some((c) => c[i] !== null));
  return (
    <table class="d-table">
      <thead>
        <tr>
          <th scope="col">Time</th>
          {p.lines.map((l) => (
            <th scope="col" key={l.words} class="r">
              {l.words}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {rows
          .slice(-300)
          .reverse()
          .map((i) => (
            <tr key={p.series.times[i]}>
              <th scope="row" class="num">
                {when(p.series.times[i]!, p.window)}
              </th>
              {p.lines.map((l, k) => {
                const v = p.series.columns[k]?.[i];
                return (
                  <td key={l.words} class="r num">
                    {v === null || v === undefined ? "–" : l.say(v)}
                  </td>
                );
              })}
            </tr>
          ))}
      </tbody>
    </table>
  );
}

/** describe says in words what a chart shows. */
function describe(p: Props): string {
  return p.lines
    .map((l, i) => {
      const c = p.series.columns[i] ?? [];
      const e = extentOf(c);
      if (!e) return l.words + ": nothing measured.";
      const t = trend(c);
      return `${l.words}: between ${l.say(e.min)} and ${l.say(e.max)}, newest ${l.say(e.last)}${t ? ", " + t : ""}.`;
    })
    .join(" ");
}

function dataOf(s: Series): [number[], ...(number | null)[][]] {
  return [s.times, ...s.columns];
}

/** steps of the vertical axis: 1, 2 and 5 with zeros. */
const steps = Array.from({ length: 30 }, (_, i) => [1, 2, 5][i % 3]! * 10 ** (Math.floor(i / 3) - 1));

const two = (n: number) => String(n).padStart(2, "0");
const days = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

/** timeLabels writes the horizontal axis: times of day, or days where ticks are that far apart. */
function timeLabels(_u: unknown, splits: number[], _axis: number, _space: number, step: number): string[] {
  return splits.map((s) => {
    const d = new Date(s * 1000);
    const midnight = d.getHours() === 0 && d.getMinutes() === 0;
    if (step >= 86_400) return `${two(d.getMonth() + 1)}-${two(d.getDate())}`;
    if (midnight) return `${days[d.getDay()]} ${d.getDate()}`;
    return `${two(d.getHours())}:${two(d.getMinutes())}`;
  });
}
