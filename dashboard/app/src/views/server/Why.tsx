import { get, seg } from "../../api";
import { duration } from "../../format";
import { connection, now } from "../../store";
import { useLoad } from "../shared/load";
import { Card, Empty, Loading, Long, Trouble } from "../shared/parts";
import { addedReason, evidenceAge, evidenceWords, judge, reasoned, ruleName, short, verdict } from "./words";
import type { Evidence, Explain, Rule } from "../../types";

/** Why is how the status came about: the evidence, the rule that won, and the rules that did not. */
export function Why({ id, version }: { id: string; version: number }) {
  const x = useLoad(id, (signal) => get<Explain>(`servers/${seg(id)}/status`, { explain: true }, signal), { on: version, min: 500, every: 5000 });
  const e = x.data?.explain;
  return (
    <Card title="Why" id="why">
      <Trouble error={x.error} retry={x.reload} what="How the status came about cannot be read." />
      {!e && !x.error && <Loading lines={4} />}
      {e && (
        <>
          <Rules rules={e.rules} />
          <EvidenceTable list={e.evidence} stale={connection.value.state !== "live"} />
        </>
      )}
    </Card>
  );
}

function Rules({ rules }: { rules: readonly Rule[] }) {
  const j = judge(rules);
  return (
    <>
      <ol class="d-rules">
        {j.base && <RuleLine key="base" r={j.base} kind="base" />}
        {j.won.map((r, i) => (
          <RuleLine key={"won" + i} r={r} kind="won" />
        ))}
      </ol>
      {j.won.length === 0 && !j.base && <Empty>No rule said anything yet.</Empty>}
      <details class="d-others">
        <summary>
          {j.lost.length + j.silent.length} other rules
          {j.lost.length > 0 && <span class="muted">, {j.lost.length} outweighed</span>}
        </summary>
        <ul class="d-rules">
          {j.lost.map((r, i) => (
            <RuleLine key={"lost" + i} r={r} kind="lost" />
          ))}
          {j.silent.map((r, i) => (
            <RuleLine key={"silent" + i} r={r} kind="silent" />
          ))}
        </ul>
      </details>
    </>
  );
}

const kinds = { won: "decided", base: "began with", lost: "outweighed", silent: "not the case" };

function RuleLine({ r, kind }: { r: Rule; kind: keyof typeof kinds }) {
  const n = ruleName(r.rule);
  const gives = verdict(r);
  const text = short(reasoned(r.why)) || n.name;
  const reason = kind === "silent" ? "" : addedReason(r.reason, text);
  return (
    <li class={"d-rule r-" + kind}>
      <span class="d-rule-number" title={"Rule " + r.rule + " of the documentation"}>
        {n.number}
      </span>
      <span class="d-rule-text">
        <bdi>{text}</bdi>
        {reason && <span class="muted"> · {reason}</span>}
      </span>
      {gives && <code class="d-rule-gives">{gives}</code>}
      <span class="d-rule-kind">{kinds[kind]}</span>
    </li>
  );
}

function EvidenceTable({ list, stale }: { list: readonly Evidence[]; stale: boolean }) {
  if (!list.length) return <Empty>There is no evidence yet: nobody has seen this server.</Empty>;
  return (
    <div class="d-scroll" tabIndex={0} role="region" aria-label="Evidence">
      <table class="d-table d-evidence">
        <caption class="visually-hidden">Evidence{stale ? ", as of when the page was last live" : ""}</caption>
        <thead>
          <tr>
            <th scope="col">Evidence</th>
            <th scope="col">Says</th>
            <th scope="col" class="r">
              Age
            </th>
          </tr>
        </thead>
        <tbody>
          {list.map((e, i) => {
            const w = evidenceWords(e.kind);
            return (
              <tr key={e.kind + i} class={e.fresh ? "" : "d-stale"}>
                <th scope="row">
                  {w.name}
                  <span class="d-hint">{w.from}</span>
                </th>
                <td>
                  <Long text={short(e.value)} />
                  {!e.fresh && e.asserted_at && <span class="d-mark">stale</span>}
                </td>
                <td class="r num">
                  <EvidenceAge e={e} />
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

function EvidenceAge({ e }: { e: Evidence }) {
  const age = evidenceAge(e, now.value);
  return age === undefined ? <span class="muted">–</span> : <>{duration(age)}</>;
}
