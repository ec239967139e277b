import { useMemo } from "preact/hooks";
import { get, seg } from "../../api";
import { count, ms, percent, plural } from "../../format";
import { serverClock } from "../../api";
import { Chart, type Line } from "../shared/Chart";
import { useLoad } from "../shared/load";
import { Card, Empty, Loading, Trouble } from "../shared/parts";
import { toSeries, type Window } from "../shared/series";
import type { ProbeReport } from "../../types";

const lines: readonly Line[] = [
  { words: "p50", ink: "ink-a", say: ms, kind: "area" },
  { words: "p95", ink: "ink-b", say: ms },
  { words: "p99", ink: "ink-c", say: ms, dashed: true },
  { words: "failures", ink: "ink-bad", say: (n) => count(n), kind: "bars", aside: true },
];

/** Latency is how fast the server answered our probes, and how many failed. */
export function Latency({ id, window, kind }: { id: string; window: Window; kind?: string }) {
  const x = useLoad(id + window.id, (signal) => get<ProbeReport>(`servers/${seg(id)}/probes`, { window: window.id, step: window.step }, signal), { every: 30_000 });
  const r = x.data;
  const series = useMemo(
    () => r && toSeries(r.items, r.step_seconds, [(i) => i.p50_ms, (i) => i.p95_ms, (i) => i.p99_ms, (i) => i.failures || undefined]),
    [r],
  );
  const to = useMemo(() => serverClock() / 1000, [r]);
  const t = r?.total;
  return (
    <Card
      title="Latency"
      busy={x.busy}
      aside={
        t &&
        t.count > 0 && (
          <span class="muted num d-small">
            {plural(t.count, "probe")}, {t.failures ? percent((t.failures / t.count) * 100) + " failed" : "none failed"}
          </span>
        )
      }
    >
      <Trouble error={x.error} retry={x.reload} what="Probes cannot be read." />
      {!r && !x.error && <Loading lines={4} />}
      {r && r.items.length === 0 && (
        <Empty>{kind === "none" || kind === undefined ? "This server is not probed: it lives by its agent's reports." : `No probe was counted in the last ${window.words}.`}</Empty>
      )}
      {r && series && r.items.length > 0 && (
        <Chart title={`Latency of the last ${window.words}`} series={series} lines={lines} window={r.window_seconds} to={to} axis={(v) => (v === 0 ? "0" : ms(v))} top={1} height={190} busy={x.busy} />
      )}
    </Card>
  );
}
