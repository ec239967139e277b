import { useEffect, useRef, useState } from "preact/hooks";
import { get, seg } from "../../api";
import { duration } from "../../format";
import { now } from "../../store";
import { FOLLOWS, useLoad } from "../shared/load";
import { Empty, Loading, Trouble } from "../shared/parts";
import { when, type Window } from "../shared/series";
import { at, classWords, layout, portion, say, shares, sharesOf, ticks, type SpanClass } from "./timeline";
import type { Timeline, Uptime } from "../../types";

const HEIGHT = 36;

/** How high a class is drawn: trouble stands out by its height as well as by its colour. */
const heights: Record<SpanClass, number> = {
  unavailable: HEIGHT,
  limited: 29,
  changing: 25,
  maintenance: 21,
  unknown: 12,
  off: 10,
  removed: 6,
  available: 18,
};

/** TimelineChart is how a server's time was spent. The pointer and the arrow keys say what was when. */
export function TimelineChart({ id, window, version, up }: { id: string; window: Window; version: number; up?: Uptime }) {
  const t = useLoad(id + window.id, (signal) => get<Timeline>(`servers/${seg(id)}/timeline`, { window: window.id }, signal), { on: version, min: window.seconds > 86_400 ? 15_000 : 2000, after: FOLLOWS, every: 60_000 });
  const box = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(0);
  const [here, setHere] = useState<number | null>(null); // ms
  useEffect(() => {
    if (!box.current) return;
    const o = new ResizeObserver((e) => setWidth(Math.floor(e[0]!.contentRect.width)));
    o.observe(box.current);
    return () => o.disconnect();
  }, [t.data === undefined]);

  if (!t.data) return t.error ? <Trouble error={t.error} retry={t.reload} what="The timeline cannot be read." /> : <Loading lines={2} />;
  // What goes on reaches the edge, which moves on with the answers.
  const to = Date.parse(t.data.to);
  const from = Date.parse(t.data.from);
  const items = t.data.items;
  const pieces = layout(items, from, to, width);
  const shown = here === null ? -2 : at(items, here);
  const current = shown >= 0 ? items[shown] : undefined;
  // Stretches that were merged count as the worst of them; the uptime has every one.
  const parts = up && items.some((s) => s.merged) ? sharesOf(up) : shares(items, from, to);
  const summary = parts.map((p) => `${classWords[p.class].toLowerCase()} for ${duration(p.seconds)}`).join(", ");

  function key(e: KeyboardEvent) {
    if (e.key === "Escape" && here !== null) {
      e.stopPropagation();
      setHere(null);
      return;
    }
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -items.length, End: items.length }[e.key];
    if (step === undefined || !items.length) return;
    e.preventDefault();
    const i = here === null ? items.length - (step < 0 ? 0 : 1) : at(items, here);
    const next = Math.min(items.length - 1, Math.max(0, i + step));
    const s = items[next]!;
    setHere((Date.parse(s.begin) + (s.end ? Date.parse(s.end) : to)) / 2);
  }
  const told = current ? say(current, now.peek()) : undefined;
  return (
    <div class={"d-timeline" + (t.busy ? " d-busy" : "")}>
      <Trouble error={t.error} retry={t.reload} />
      <div
        ref={box}
        class="d-timeline-box"
        tabIndex={0}
        role="group"
        aria-label={`Timeline of the last ${window.words}: ${summary || "nothing is known"}. Arrow keys go from stretch to stretch.`}
        onKeyDown={key}
        onBlur={() => setHere(null)}
        onPointerMove={(e) => {
          const r = e.currentTarget.getBoundingClientRect();
          setHere(from + (Math.min(Math.max(0, e.clientX - r.left), r.width) / r.width) * (to - from));
        }}
        onPointerLeave={() => setHere(null)}
      >
        <svg width={width} height={HEIGHT} aria-hidden="true" focusable="false">
          <defs>
            <pattern id="d-hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
              <rect width="6" height="6" class="tl-hatch-ground" />
              <rect width="2" height="6" class="tl-hatch-line" />
            </pattern>
            <pattern id="d-works" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(-45)">
              <rect width="8" height="8" class="tl-works-ground" />
              <rect width="3" height="8" class="tl-works-line" />
            </pattern>
          </defs>
          <rect class="tl-base" x="0" y={HEIGHT - 1} width={width} height="1" />
          {pieces.map((p) => (
            <rect
              key={p.index + ":" + p.x}
              class={"tl-" + p.class + (shown === p.index ? " tl-here" : "")}
              x={p.x}
              y={HEIGHT - heights[p.class]}
              width={p.width}
              height={heights[p.class]}
            />
          ))}
          {here !== null && width > 0 && <rect class="tl-cursor" x={Math.min(width - 1, ((here - from) / (to - from)) * width)} y="0" width="1" height={HEIGHT} />}
        </svg>
        <div class="d-ticks" aria-hidden="true">
          {width > 0 &&
            ticks(from, to, Math.max(2, Math.floor(width / 90))).map((x) => {
              const left = ((x - from) / (to - from)) * width;
              return left > width - 72 ? null : (
                <span key={x} style={{ left: left + "px" }}>
                  {tick(x, window)}
                </span>
              );
            })}
          <span class="d-now">now</span>
        </div>
      </div>
      <p class="d-told" role="status">
        {told ? (
          <>
            <span class={"d-swatch c-" + told.class} aria-hidden="true" /> <strong>{told.what}</strong> <span class="num muted">{told.when}</span>
          </>
        ) : shown === -1 ? (
          <>
            <span class="d-swatch c-unknown" aria-hidden="true" /> Nothing is known of {when(here! / 1000, window.seconds)}
          </>
        ) : (
          <span class="d-shares">
            {parts.map((p) => (
              <span key={p.class}>
                <span class={"d-swatch c-" + p.class} aria-hidden="true" /> {classWords[p.class]} <span class="num muted">{portion(p.seconds, (to - from) / 1000)}</span>
              </span>
            ))}
          </span>
        )}
      </p>
      <details class="d-numbers">
        <summary>As a list</summary>
        {items.length === 0 ? (
          <Empty>Nothing is known of this window.</Empty>
        ) : (
          <div class="d-scroll" tabIndex={0} role="region" aria-label="Timeline as a list">
            <ol class="d-stretches" reversed>
              {items
                .slice(-200)
                .reverse()
                .map((s) => {
                  const x = say(s, now.peek());
                  return (
                    <li key={s.begin}>
                      <span class={"d-swatch c-" + x.class} aria-hidden="true" /> {x.what} <span class="num muted">{x.when}</span>
                      {s.state && (
                        <code>
                          {s.state}, {s.health}
                        </code>
                      )}
                    </li>
                  );
                })}
            </ol>
          </div>
        )}
      </details>
    </div>
  );
}

function tick(t: number, w: Window): string {
  const d = new Date(t);
  const midnight = d.getHours() === 0 && d.getMinutes() === 0;
  if (midnight || w.seconds > 7 * 86_400) return d.toLocaleDateString("en", { month: "short", day: "numeric" });
  return when(t / 1000, 0);
}
