import { get, seg } from "../../api";
import { duration, percent, plural, why } from "../../format";
import { now } from "../../store";
import { FOLLOWS, useLoad } from "../shared/load";
import { At, Long, Trouble } from "../shared/parts";
import type { Window } from "../shared/series";
import type { Incident, Page, Uptime } from "../../types";

/** UptimeFigures are availability, incidents, MTTR and MTBF of a window. */
export function UptimeFigures({ up, busy }: { up?: Uptime; busy: boolean }) {
  const p = up?.availability_percent;
  const tone = p === undefined ? "" : p >= 99.9 ? "good" : p >= 99 ? "fair" : "poor";
  const none = busy ? "…" : "–";
  const figure = (name: string, value: string, hint: string, tone = "") => (
    <div class={"d-figure " + tone}>
      <dt>{name}</dt>
      <dd class="num">{value}</dd>
      <dd class="d-hint">{hint}</dd>
    </div>
  );
  return (
    <dl class={"d-figures" + (busy ? " d-busy" : "")}>
      {figure("Uptime", up ? (p === undefined ? "–" : percent(p)) : none, up && p === undefined ? "no time counts" : "of the time that counts", tone)}
      {figure("Down", up ? (up.unavailable_seconds ? duration(up.unavailable_seconds) : "0 s") : none, up && up.changing_seconds >= 1 ? duration(up.changing_seconds) + " changing" : "unavailable")}
      {figure("Incidents", up ? String(up.incidents) : none, "outside maintenance")}
      {figure("MTTR", up ? (up.mttr_seconds === undefined ? "–" : duration(up.mttr_seconds)) : none, "mean time to repair")}
      {figure("MTBF", up ? (up.mtbf_seconds === undefined ? "–" : duration(up.mtbf_seconds)) : none, "mean time between failures")}
    </dl>
  );
}

/** Incidents are the newest of a window. */
export function Incidents({ id, window, version }: { id: string; window: Window; version: number }) {
  const x = useLoad(id + window.id, (signal) => get<Page<Incident>>(`servers/${seg(id)}/incidents`, { window: window.id, limit: 6 }, signal), { on: version, min: 3000, after: FOLLOWS, every: 60_000 });
  if (x.error) return <Trouble error={x.error} retry={x.reload} what="Incidents cannot be read." />;
  const list = x.data?.items ?? [];
  if (!list.length) return null;
  return (
    <div class="d-sideways" tabIndex={0} role="region" aria-label="Incidents">
      <table class="d-table">
        <caption>Incidents</caption>
        <thead>
          <tr>
            <th scope="col">Began</th>
            <th scope="col" class="r">
              Lasted
            </th>
            <th scope="col">Cause</th>
          </tr>
        </thead>
        <tbody>
          {list.map((i) => (
            <tr key={i.begin}>
              <td class="num">
                <At at={i.begin} />
              </td>
              <td class="r num">{i.end ? duration(i.duration_seconds) : <Going since={i.begin} />}</td>
              <td>
                {why({ reason: i.reason ?? "", cause: i.cause })}
                {i.details && <Long class="d-hint" text={i.details} most={200} />}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {x.data?.next_cursor && <p class="d-hint">The {plural(list.length, "newest incident")} of this window.</p>}
    </div>
  );
}

function Going({ since }: { since: string }) {
  return (
    <span class="d-warn">
      {duration((now.value - Date.parse(since)) / 1000)}
      <span class="d-hint">goes on</span>
    </span>
  );
}
