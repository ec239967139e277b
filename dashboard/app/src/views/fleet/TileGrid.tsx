// The tiles of the fleet. Only the rows in sight are in the document, each tile follows its server by itself, and an
// update touches that tile only: thousands of servers cost what is seen of them.
import { effect, untracked } from "@preact/signals";
import { render } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { glyphs } from "../../components/Glyph";
import { arrange, visible, type Group, type Layout } from "../../core/layout";
import { agentWords, availabilityOf, availabilityWords, count, plural, since, why } from "../../format";
import { environmentHref, serverHref } from "../../router";
import { environments, now, servers, silent } from "../../store";
import type { Server } from "../../types";
import { compact, groupCounts, groups } from "./model";

/** TileGrid shows the selected servers by environment. */
export function TileGrid() {
  const ref = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const g = new Grid(ref.current!);
    return () => g.dispose();
  }, []);
  return <div class="tiles" ref={ref} />;
}

// A label has three lines beside the tiles of one row: its gap to the next group counts.
const SIZES = {
  names: { width: 148, tile: 36, gap: 6, label: 172, labelMin: 44, groupGap: 12 },
  compact: { width: 17, tile: 17, gap: 3, label: 160, labelMin: 20, groupGap: 7 },
};
const OVERSCAN = 300; // px above and below the window that are kept
const NARROW = 640; // px below which labels stand above the tiles

/** How long rows are made for in one frame, in ms, and how much longer others may be taken away: the rest follows in the next. */
const BUDGET = 6;
const MARGIN = 4;

/** Shown is a row that is in the document. */
interface Shown {
  el: HTMLElement;
  group: string;
  ids: readonly string[];
  label: boolean;
  dispose: () => void;
}

class Grid {
  #root: HTMLElement;
  #layout: Layout = { rows: [], height: 0, columns: 1 };
  #shown = new Map<number, Shown>(); // by index of the row in the layout
  #stop: (() => void)[] = [];
  #frame = 0;
  #width = 0;
  #small: boolean | undefined;
  #refocus: string | undefined; // the server whose tile lost the focus with its row, until it is drawn again
  #tip: HTMLElement | undefined;
  #tipStop: (() => void) | undefined;

  constructor(root: HTMLElement) {
    this.#root = root;
    const onScroll = () => this.#soon();
    addEventListener("scroll", onScroll, { passive: true });
    addEventListener("resize", onScroll, { passive: true });
    const size = new ResizeObserver(() => {
      const w = root.clientWidth;
      if (w !== this.#width) {
        this.#width = w;
        this.#arrange();
      } else this.#soon();
    });
    size.observe(root);
    size.observe(document.body); // what stands above may grow
    this.#stop.push(
      () => removeEventListener("scroll", onScroll),
      () => removeEventListener("resize", onScroll),
      () => size.disconnect(),
      effect(() => {
        groups.value;
        compact.value;
        untracked(() => this.#arrange());
      }),
    );
    const tip = (e: Event) => this.#showTip((e.target as Element).closest?.<HTMLElement>(".tile") ?? undefined);
    root.addEventListener("mouseover", tip);
    root.addEventListener("mouseleave", () => this.#showTip(undefined));
    root.addEventListener("focusin", (e) => {
      tip(e);
      const tile = (e.target as Element).closest<HTMLElement>(".tile");
      if (tile) this.#rove(tile);
    });
    root.addEventListener("keydown", (e) => this.#keys(e));
    root.addEventListener("focusout", () => this.#showTip(undefined));
  }

  dispose() {
    for (const f of this.#stop) f();
    cancelAnimationFrame(this.#frame);
    this.#showTip(undefined);
    this.#clear();
  }

  #clear() {
    for (const r of this.#shown.values()) r.dispose();
    this.#shown.clear();
  }

  #arrange() {
    const w = this.#width || this.#root.clientWidth;
    if (w === 0) return;
    const small = compact.peek();
    const z = small ? SIZES.compact : SIZES.names;
    const narrow = w < NARROW;
    const room = w - (narrow ? 0 : z.label);
    const columns = Math.floor((room + z.gap) / (z.width + z.gap));
    const list = groups.peek();
    this.#layout = arrange(list, {
      columns: small ? columns : Math.max(2, columns),
      tile: z.tile,
      gap: z.gap,
      labelMin: narrow ? 0 : z.labelMin,
      labelAbove: narrow ? 24 : 0,
      groupGap: z.groupGap,
    });
    this.#root.classList.toggle("tiles-compact", small);
    this.#root.classList.toggle("tiles-narrow", narrow);
    this.#root.style.height = this.#layout.height + "px";
    this.#root.style.setProperty("--columns", String(this.#layout.columns));
    this.#showTip(undefined);
    const focused = document.activeElement;
    const had = focused instanceof HTMLElement && this.#root.contains(focused) ? focused.dataset.id : undefined;
    if (small !== this.#small) this.#clear();
    this.#small = small;
    this.#keep(list);
    if (had !== undefined && !focused!.isConnected) this.#refocus = had;
    this.#draw();
  }

  /** Rows that are the same in the new layout are moved; the others go. */
  #keep(list: readonly Group[]) {
    const old = new Map([...this.#shown.values()].map((r) => [r.group + "\n" + r.ids[0], r]));
    this.#shown.clear();
    if (old.size) {
      this.#layout.rows.forEach((row, i) => {
        const g = list[row.group]!;
        const key = g.id + "\n" + g.servers[row.from];
        const r = old.get(key);
        if (!r || r.label !== row.label || r.ids.length !== row.to - row.from) return;
        for (let n = 0; n < r.ids.length; n++) if (r.ids[n] !== g.servers[row.from + n]) return;
        old.delete(key);
        r.el.style.top = row.y + "px";
        this.#shown.set(i, r);
      });
    }
    for (const r of old.values()) r.dispose();
  }

  #soon() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #draw() {
    const top = -this.#root.getBoundingClientRect().top;
    const began = performance.now();
    const rows = this.#layout.rows;
    const wide = visible(rows, top - OVERSCAN, top + innerHeight + OVERSCAN);
    // What is in sight first, then what may be soon.
    const near = visible(rows, top, top + innerHeight);
    const wanted: number[] = [];
    for (let i = near.from; i < near.to; i++) wanted.push(i);
    for (let i = near.to; i < wide.to; i++) wanted.push(i);
    for (let i = near.from - 1; i >= wide.from; i--) wanted.push(i);
    let made = false;
    for (const i of wanted) {
      if (this.#shown.has(i)) continue;
      if (made && performance.now() - began > BUDGET) {
        this.#soon();
        break;
      }
      this.#shown.set(i, this.#row(i));
      made = true;
    }
    if (made) this.#order();
    this.#focusAgain();
    const focused = document.activeElement;
    let gone = false; // at least one a frame, as of those that are made: both come to their end on any machine
    for (const [i, r] of this.#shown) {
      // The row with the focus stays, else the keyboard would lose its place.
      if ((i >= wide.from && i < wide.to) || r.el.contains(focused)) continue;
      if (gone && performance.now() - began > BUDGET + MARGIN) {
        this.#soon();
        break;
      }
      r.dispose();
      this.#shown.delete(i);
      gone = true;
    }
    if (!this.#root.querySelector('.tile[tabindex="0"]')) this.#root.querySelector(".tile")?.setAttribute("tabindex", "0");
  }

  /** Who was at a tile whose row was made anew comes to it again, unless something else has the focus by now. */
  #focusAgain() {
    if (this.#refocus === undefined) return;
    const tile = this.#root.querySelector<HTMLElement>(`[data-id="${CSS.escape(this.#refocus)}"]`);
    if (tile || document.activeElement !== document.body) this.#refocus = undefined;
    if (tile && document.activeElement === document.body) tile.focus({ preventScroll: true });
  }

  /** The document's order is that of the tiles, whichever way they came into sight: readers and keys go by it. */
  #order() {
    let next: Node | null = null;
    const order = [...this.#shown.keys()].sort((a, b) => b - a);
    for (const i of order) {
      const el = this.#shown.get(i)!.el;
      if (el.parentNode !== this.#root || el.nextSibling !== next) this.#root.insertBefore(el, next);
      next = el;
    }
  }

  /** Tab comes to one tile; from there arrows, j and k go on. */
  #rove(tile: HTMLElement) {
    for (const t of this.#root.querySelectorAll('.tile[tabindex="0"]')) t.setAttribute("tabindex", "-1");
    tile.tabIndex = 0;
  }

  #keys(e: KeyboardEvent) {
    const t = e.target;
    if (!(t instanceof HTMLElement) || !t.classList.contains("tile") || e.ctrlKey || e.metaKey || e.altKey) return;
    const row = t.closest(".tile-row")!;
    let to: Element | null | undefined;
    if (e.key === "ArrowRight" || e.key === "ArrowLeft") {
      const tiles = [...this.#root.querySelectorAll(".tile")];
      to = tiles[tiles.indexOf(t) + (e.key === "ArrowRight" ? 1 : -1)];
    } else if (e.key === "ArrowDown" || e.key === "ArrowUp") {
      const next = e.key === "ArrowDown" ? row.nextElementSibling : row.previousElementSibling;
      const tiles = next?.querySelectorAll(".tile");
      const at = [...row.querySelectorAll(".tile")].indexOf(t);
      to = tiles?.[Math.min(at, tiles.length - 1)];
    } else return;
    e.preventDefault();
    if (to instanceof HTMLElement) {
      to.focus({ preventScroll: true });
      to.scrollIntoView({ block: "nearest" });
    }
  }

  #row(i: number): Shown {
    const r = this.#layout.rows[i]!;
    const g = groups.peek()[r.group]!;
    const el = document.createElement("div");
    el.className = r.label ? "tile-row tile-row-first" : "tile-row";
    el.style.top = r.y + "px";
    el.setAttribute("role", "group");
    el.setAttribute("aria-label", g.id === "" ? "Without an environment" : "Environment " + g.id);
    const stops: (() => void)[] = [];
    if (r.label) {
      const label = document.createElement("div");
      label.className = "tile-label";
      render(<Label id={g.id} />, label);
      stops.push(() => render(null, label));
      el.append(label);
    }
    const tiles = document.createElement("div");
    tiles.className = "tile-line";
    for (let n = r.from; n < r.to; n++) {
      const id = g.servers[n]!;
      const sig = servers.get(id);
      if (!sig) continue;
      const a = document.createElement("a");
      a.href = serverHref(id);
      a.dataset.id = id;
      a.dataset.stop = "tile";
      a.tabIndex = -1;
      const sign = document.createElement("span");
      sign.className = "tile-sign";
      sign.setAttribute("aria-hidden", "true");
      a.append(sign);
      let name: HTMLElement | undefined;
      let marks: HTMLElement | undefined;
      if (!compact.peek()) {
        name = document.createElement("bdi");
        name.className = "tile-name";
        marks = document.createElement("span");
        marks.className = "tile-marks";
        marks.setAttribute("aria-hidden", "true");
        a.append(name, marks);
      }
      stops.push(
        effect(() => {
          const s = sig.value;
          const av = availabilityOf(s.status);
          const m = s.status.marks ?? [];
          a.className = `tile a-${av}${m.includes("maintenance") ? " in-maintenance" : ""}`;
          sign.textContent = glyphs[av];
          a.setAttribute("aria-label", tileWords(s));
          if (name) name.textContent = s.name;
          // Drawn by the style sheet: the label says them in words.
          if (marks) marks.dataset.marks = m.map((x) => markSigns[x] ?? "").join("");
        }),
      );
      tiles.append(a);
    }
    el.append(tiles);
    return {
      el,
      group: g.id,
      ids: g.servers.slice(r.from, r.to),
      label: r.label,
      dispose: () => {
        for (const f of stops) f();
        el.remove();
      },
    };
  }

  /** One tip at a time says what the tile under the pointer, or with the focus, is. */
  #showTip(tile: HTMLElement | undefined) {
    if (this.#tip && tile && this.#tip.dataset.for === tile.dataset.id) return;
    this.#tipStop?.();
    this.#tipStop = undefined;
    this.#tip?.remove();
    this.#tip = undefined;
    const sig = tile && servers.get(tile.dataset.id ?? "");
    if (!tile || !sig) return;
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.dataset.for = tile.dataset.id;
    tip.setAttribute("role", "presentation");
    render(<Tip get={() => sig.value} />, tip);
    document.body.append(tip);
    this.#tip = tip;
    this.#tipStop = () => render(null, tip);
    const at = tile.getBoundingClientRect();
    const w = tip.offsetWidth;
    const h = tip.offsetHeight;
    tip.style.left = Math.max(8, Math.min(innerWidth - w - 8, at.left)) + scrollX + "px";
    tip.style.top = (at.bottom + h + 12 > innerHeight ? at.top - h - 6 : at.bottom + 6) + scrollY + "px";
  }
}

const markSigns: Record<string, string> = { maintenance: "M", override: "O", flapping: "~" };

function tileWords(s: Server): string {
  const av = availabilityWords[availabilityOf(s.status)].toLowerCase();
  const parts = [cut(s.name), av];
  if (s.status.reason !== "ok") parts.push(why(s.status).toLowerCase());
  for (const m of s.status.marks ?? []) parts.push(m);
  return parts.join(", ");
}

const cut = (t: string) => (t.length > 120 ? t.slice(0, 120) + "…" : t);

function Tip({ get }: { get: () => Server }) {
  const s = get();
  const a = availabilityOf(s.status);
  return (
    <>
      <strong class="tip-name">
        <bdi>{s.name}</bdi>
      </strong>
      <span class={"tip-status t-" + a}>
        {availabilityWords[a]}
        {s.status.reason !== "ok" && " · " + why(s.status)}
      </span>
      {s.status.last_error && a !== "available" && (
        <span class="tip-error">
          <bdi>{s.status.last_error.slice(0, 300)}</bdi>
        </span>
      )}
      <span class="muted">
        {s.status.since && "for " + since(s.status.since, now.value)}
        {s.environment_id && " · " + s.environment_id}
        {(s.status.marks ?? []).map((m) => " · " + m)}
      </span>
    </>
  );
}

function Label({ id }: { id: string }) {
  const e = environments.value.get(id);
  const c = groupCounts.value.get(id);
  const total = c?.total ?? 0;
  const quiet = silent.value.has(id);
  const agent = quiet ? "silent" : e && e.agent !== "ok" && e.agent !== "none" ? agentWords[e.agent] : "";
  const small = compact.value;
  const bad = quiet || e?.agent === "lost" || e?.agent === "late";
  return (
    <>
      {id === "" ? (
        <span class="tile-env">No environment</span>
      ) : (
        <a class="tile-env" href={environmentHref(id)} title={e?.name ?? id}>
          <bdi>{e?.name ?? id}</bdi>
        </a>
      )}
      <span class="tile-sub">
        {bad ? <span class="t-unavailable">{agent} · </span> : agent && !small ? agent + " · " : ""}
        {c && c.unavailable > 0 ? (
          <span class="t-unavailable">{small ? `${c.unavailable} down` : `${c.unavailable} of ${plural(total, "server")} down`}</span>
        ) : c && c.limited > 0 ? (
          <span class="t-limited">{small ? `${c.limited} limited` : `${c.limited} of ${total} limited`}</span>
        ) : small ? (
          count(total)
        ) : (
          plural(total, "server")
        )}
      </span>
    </>
  );
}
