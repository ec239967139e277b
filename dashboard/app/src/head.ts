// Title and icon say how many servers are broken, so that a tab in the background tells it, too.
import { effect } from "@preact/signals";
import { count } from "./format";
import { route } from "./router";
import { connection, counts, environments, loaded, membership, servers } from "./store";
import { signInNeeded } from "./api";

/** titleOf is the document's title: the number first, as tabs are narrow. */
export function titleOf(o: { broken: number; loaded: boolean; live: boolean; name: string }): string {
  const page = o.name ? o.name + " · statussync" : "statussync";
  if (!o.loaded) return page;
  if (!o.live) return "(?) " + page;
  return o.broken > 0 ? `(${count(o.broken)}) ${page}` : page;
}

export function startHead() {
  effect(() => {
    const r = route.value;
    const c = counts.value;
    const live = connection.value.state === "live" && !signInNeeded.value;
    membership.value;
    let name = "Fleet";
    if (r.view === "server") name = servers.get(r.id)?.peek().name ?? r.id;
    if (r.view === "environment") name = environments.peek().get(r.id)?.name ?? r.id;
    const title = titleOf({ broken: c.broken, loaded: loaded.value, live, name: name.slice(0, 80) });
    if (document.title !== title) document.title = title;
    drawIcon(!loaded.value ? "none" : !live ? "stale" : c.broken > 0 ? c.broken : "ok");
  });
}

let drawn: unknown;

function drawIcon(what: "none" | "ok" | "stale" | number) {
  if (typeof what === "number") what = Math.min(what, 100); // all that are more look alike
  if (what === drawn) return;
  drawn = what;
  const size = 64;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  const g = canvas.getContext("2d");
  if (!g) return;
  const colours = { none: "#78818e", ok: "#1f883d", stale: "#78818e" };
  g.fillStyle = typeof what === "number" ? "#cf222e" : colours[what];
  g.beginPath();
  g.roundRect(2, 2, size - 4, size - 4, 16);
  g.fill();
  g.fillStyle = g.strokeStyle = "#fff";
  g.textAlign = "center";
  g.textBaseline = "middle";
  if (typeof what === "number" || what === "stale") {
    const text = what === "stale" ? "?" : what > 99 ? "99+" : String(what);
    g.font = `bold ${text.length > 2 ? 30 : text.length > 1 ? 40 : 48}px system-ui, sans-serif`;
    g.fillText(text, size / 2, size / 2 + 3);
  } else {
    g.lineWidth = 8;
    g.lineCap = g.lineJoin = "round";
    g.beginPath();
    g.moveTo(18, 34);
    g.lineTo(28, 44);
    g.lineTo(46, 22);
    g.stroke();
  }
  const link = document.querySelector<HTMLLinkElement>('link[rel="icon"]');
  if (link) link.href = canvas.toDataURL("image/png");
}
