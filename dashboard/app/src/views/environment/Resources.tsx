import { useEffect, useMemo, useState } from "preact/hooks";
import { get, seg, serverClock } from "../../api";
import { Chart, type Line } from "../shared/Chart";
import { useLoad } from "../shared/load";
import { Card, Empty, Loading, Long, Trouble, WindowPicker } from "../shared/parts";
import { fitting, windowOf, type Window } from "../shared/series";
import { partsOf, round, type Part } from "./model";
import type { Environment, ResourceReport } from "../../types";

/** Resources are CPU, memory and disk of a host, now and over time. */
export function Resources({ id, e, removed = false }: { id: string; e: Environment | undefined; removed?: boolean }) {
  const [chosen, setWindow] = useState<Window | undefined>(removed ? windowOf("90d") : undefined);
  const [known, setKnown] = useState<number | undefined>(undefined);
  const window = chosen ?? fitting(known);
  const x = useLoad(id + window.id, (signal) => get<ResourceReport>(`environments/${seg(id)}/resources`, { window: window.id, step: window.step }, signal), { every: 15_000 });
  const first = x.data?.items[0]?.start;
  useEffect(() => {
    if (!chosen && known === undefined && first) setKnown((serverClock() - Date.parse(first)) / 1000);
  }, [first]);
  const parts = useMemo(() => partsOf(e, x.data), [e, x.data]);
  const to = useMemo(() => serverClock() / 1000, [x.data]);
  if (removed && x.error?.status === 404) return null;
  const any = parts.some((p) => p.any || p.now !== undefined || p.error);
  return (
    <Card title="Resources" busy={x.busy} aside={<WindowPicker value={window} onChange={setWindow} label="How far back" name="resources" />}>
      <Trouble error={x.error} retry={x.reload} what="Resources cannot be read." />
      {!x.data && !x.error && <Loading lines={5} />}
      {x.data && !any && (
        <Empty>{e?.agent === "none" ? "Without an agent nothing is known of this host's resources." : "The agent told nothing of this host's resources."}</Empty>
      )}
      {(x.data || x.error) &&
        any &&
        parts.map((p) => <ResourcePart key={p.id} p={p} window={window} to={to} report={x.data} busy={x.busy} />)}
    </Card>
  );
}

const lines: readonly Line[] = [
  { words: "mean", ink: "ink-a", kind: "area", say: round },
  { words: "highest", ink: "ink-c", dashed: true, say: round },
];

function ResourcePart({ p, window, to, report, busy }: { p: Part; window: Window; to: number; report: ResourceReport | undefined; busy: boolean }) {
  const level = p.id === "cpu" || p.percent === undefined ? "" : p.percent >= 95 ? "poor" : p.percent >= 85 ? "fair" : "";
  return (
    <section class="d-resource" aria-label={p.words}>
      <div class="d-resource-now">
        <h3>{p.words}</h3>
        <p class={"d-big num " + level}>{p.now ?? "–"}</p>
        {p.of && <p class="d-hint num">{p.of}</p>}
        {p.error && (
          <p class="d-hint d-warn">
            <Long text={p.error} most={120} />
          </p>
        )}
      </div>
      {p.any && report ? (
        <Chart
          title={`${p.words} of the last ${window.words}`}
          series={p.series}
          lines={lines}
          window={report.window_seconds}
          to={to}
          axis={(v) => v + " %"}
          top={100}
          fixed={p.id !== "cpu"}
          height={112}
          busy={busy}
        />
      ) : (
        <Empty>Nothing was told in the last {window.words}.</Empty>
      )}
    </section>
  );
}
