import "../shared/detail.css";
import { useEffect, useState } from "preact/hooks";
import { get, getServer, seg } from "../../api";
import { href } from "../../router";
import { connection, loaded, serverOf } from "../../store";
import { Card, Loading, Trouble, WindowPicker } from "../shared/parts";
import { FOLLOWS, useLoad } from "../shared/load";
import { fitting, windowOf, type Window } from "../shared/series";
import { Actions } from "./Actions";
import { About, Head } from "./Head";
import { Incidents, UptimeFigures } from "./Uptime";
import { History } from "./History";
import { Latency } from "./Latency";
import { TimelineChart } from "./TimelineChart";
import { ToolsCard } from "./ToolsCard";
import { Why } from "./Why";
import type { Uptime } from "../../types";

/** ServerView shows one server: what it is, why we think so, how it was, and what can be done. */
export default function ServerView({ id }: { id: string }) {
  const s = serverOf(id);
  const live = connection.value.state === "live";
  const [chosen, setWindow] = useState<Window | undefined>(undefined);
  const day = useLoad(id, (signal) => get<Uptime>(`servers/${seg(id)}/uptime`, { window: "24h" }, signal));
  const window = chosen ?? fitting(day.data && day.data.window_seconds - day.data.unknown_seconds);
  useEffect(() => {
    document.getElementById("main")?.focus({ preventScroll: true });
  }, []);

  if (!s) return loaded.value || !live ? <Missing id={id} window={chosen ?? windowOf("90d")} setWindow={setWindow} /> : <div class="page"><Loading lines={6} /></div>;
  const version = s.status.version;
  return (
    <article class="page detail" aria-label={"Server " + s.name}>
      <Crumbs name={s.name} />
      <Head s={s} />
      <Actions s={s} />
      <div class="d-columns">
        <div class="d-main">
          <Why id={id} version={version} />
          <Past id={id} version={version} window={window} setWindow={setWindow} />
          <Latency id={id} window={window} kind={s.probe?.kind} />
          <History id={id} />
        </div>
        <div class="d-side">
          <About s={s} />
          <ToolsCard id={id} mcp={s.probe?.kind === "mcp"} />
        </div>
      </div>
    </article>
  );
}

function Crumbs({ name }: { name: string }) {
  return (
    <nav class="d-crumbs" aria-label="Where you are">
      <a href={href("")}>Fleet</a>
      <span aria-hidden="true">/</span>
      <bdi aria-current="page">{name}</bdi>
    </nav>
  );
}

/** Past is what the server's time was spent with: timeline, figures and incidents of one window. */
function Past({ id, version, window, setWindow }: { id: string; version: number; window: Window; setWindow: (w: Window) => void }) {
  const up = useLoad(id + window.id, (signal) => get<Uptime>(`servers/${seg(id)}/uptime`, { window: window.id }, signal), { on: version, min: 3000, after: FOLLOWS, every: 60_000 });
  return (
    <Card title="Timeline" busy={up.busy} aside={<WindowPicker value={window} onChange={setWindow} label="How far back" name="window" />}>
      <TimelineChart id={id} window={window} version={version} up={up.data && Math.abs(up.data.window_seconds - window.seconds) < 1 ? up.data : undefined} />
      <Trouble error={up.error} retry={up.reload} what="Uptime cannot be read." />
      <UptimeFigures up={up.data} busy={up.busy} />
      <Incidents id={id} window={window} version={version} />
    </Card>
  );
}

/** Missing is what is left of a server that was removed, or that there is none. */
function Missing({ id, window, setWindow }: { id: string; window: Window; setWindow: (w: Window) => void }) {
  const server = useLoad(id, (signal) => getServer(id, signal));
  const [later, setLater] = useState(false);
  useEffect(() => {
    const t = setTimeout(() => setLater(true), FOLLOWS);
    return () => clearTimeout(t);
  }, []);
  const past = useLoad(id, (signal) => get<Uptime>(`servers/${seg(id)}/uptime`, { window: "90d" }, signal), { on: later, min: 0 });
  if (!server.data && !server.error) return <div class="page"><Loading lines={6} /></div>;
  if (server.error && server.error.status !== 404) {
    return (
      <div class="page detail">
        <Crumbs name={id} />
        <h1 class="d-title">
          <bdi>{id}</bdi>
        </h1>
        <Trouble error={server.error} retry={server.reload} />
      </div>
    );
  }
  const was = past.data !== undefined;
  return (
    <article class="page detail">
      <Crumbs name={id} />
      <div class="d-head">
        <h1 class="d-title">
          <bdi>{id}</bdi>
        </h1>
        <p class="d-lead">
          {server.data ? "The live feed does not have this server yet." : was ? "This server was removed. What is kept of it is below." : "There is no such server, and nothing is kept of one."}
        </p>
        <p>
          <a href={href("")}>Back to the fleet</a>
        </p>
      </div>
      {was && (
        <div class="d-main">
          <Past id={id} version={later ? 1 : 0} window={window} setWindow={setWindow} />
          <History id={id} />
        </div>
      )}
    </article>
  );
}
