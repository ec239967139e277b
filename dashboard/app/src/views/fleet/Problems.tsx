import { useState } from "preact/hooks";
import { Glyph } from "../../components/Glyph";
import { Since } from "../../components/Since";
import type { Problem } from "../../core/problems";
import { availabilityOf, count, plural, reasonWords, why } from "../../format";
import { environmentHref, href, serverHref } from "../../router";
import { environments } from "../../store";
import type { Server } from "../../types";
import { problems, setFilter } from "./model";

/** How many problems are shown at first, and at most. */
const FIRST = 8;
const MOST = 200;

/** Problems says what is wrong, since when, how far it reaches and why; the worst and newest first. */
export function Problems() {
  const [more, setMore] = useState(false);
  const p = problems.value;
  if (p.items.length === 0 && p.unknownCount === 0 && p.maintained === 0) return null;
  const room = more ? MOST : p.items.length <= FIRST + 2 ? FIRST + 2 : FIRST;
  const shown = p.items.slice(0, room);
  const hidden = p.items.length - shown.length;
  return (
    <section class="card problems" aria-labelledby="problems-title">
      <h2 class="card-title" id="problems-title">
        What is wrong
      </h2>
      <ol class="problem-list">
        {shown.map((x) =>
          x.kind === "environment" ? <Host key={x.key} p={x} /> : <Row key={x.key} s={x.server} />,
        )}
      </ol>
      {(hidden > 0 || more) && (
        <p class="problem-more">
          {more && hidden > 0 ? (
            <span class="muted">{count(hidden)} more: narrow them down with the filters.</span>
          ) : (
            <button class="button small" type="button" aria-expanded={more} onClick={() => setMore(!more)}>
              {more ? "Show fewer" : `Show ${count(Math.min(hidden, MOST - shown.length))} more`}
            </button>
          )}
        </p>
      )}
      {p.unknownCount > 0 && (
        <p class="problem-note">
          <Glyph a="unknown" />
          <span>
            <a
              href={href("", "?availability=unknown")}
              onClick={(e) => {
                e.preventDefault();
                setFilter({ availability: ["unknown"] });
              }}
            >
              {plural(p.unknownCount, "server is", "servers are")} unknown
            </a>
            <span class="muted">
              :{" "}
              {[...p.unknown]
                .sort((a, b) => b[1] - a[1])
                .slice(0, 4)
                .map(([r, n]) => `${count(n)} × ${reasonWords(r).toLowerCase()}`)
                .join(", ")}
            </span>
          </span>
        </p>
      )}
      {p.maintained > 0 && (
        <p class="problem-note muted">
          <span class="glyph glyph-plain" aria-hidden="true">
            M
          </span>
          {plural(p.maintained, "more server is", "more servers are")} not well, in maintenance.
        </p>
      )}
    </section>
  );
}

function Row({ s }: { s: Server }) {
  const a = availabilityOf(s.status);
  const st = s.status;
  return (
    <li class={"problem p-" + a}>
      <Glyph a={a} label />
      <a class="problem-name" href={serverHref(s.id)} data-stop="problem" data-id={s.id}>
        <bdi>{s.name}</bdi>
      </a>
      <span class="problem-why">
        <span class={"problem-reason t-" + a}>{why(st)}</span>
        {st.marks?.includes("flapping") && <span class="tag">flapping</span>}
        {st.marks?.includes("override") && <span class="tag">set by a person</span>}
        {(st.last_error || st.override?.note) && (
          <bdi class="problem-error" title={(st.last_error ?? st.override?.note ?? "").slice(0, 600)}>
            {(st.override?.note ?? st.last_error ?? "").slice(0, 400)}
          </bdi>
        )}
      </span>
      {s.environment_id ? (
        <a class="problem-env" href={environmentHref(s.environment_id)}>
          <bdi>{environments.value.get(s.environment_id)?.name ?? s.environment_id}</bdi>
        </a>
      ) : (
        <span class="problem-env" />
      )}
      <Since at={st.since} class="problem-since" />
    </li>
  );
}

const NAMED = 8;

function Host({ p }: { p: Extract<Problem, { kind: "environment" }> }) {
  const e = environments.value.get(p.id);
  const a = p.unavailable > 0 ? "unavailable" : "limited";
  const named = p.servers.slice(0, NAMED);
  return (
    <li class={"problem problem-host p-" + a}>
      <Glyph a={a} label />
      <a class="problem-name" href={environmentHref(p.id)} data-stop="problem" data-id={"env:" + p.id}>
        <bdi>{e?.name ?? p.id}</bdi>
      </a>
      <span class="problem-why">
        <span class={"problem-reason t-" + a}>
          {p.unavailable > 0
            ? `Host is silent: ${count(p.unavailable)} of ${plural(p.total, "server")} unavailable`
            : `Its agent is silent; ${p.total === p.servers.length ? "all" : count(p.servers.length) + " of"} ${plural(p.total, "server")} still answer`}
        </span>
        {p.details && (
          <bdi class="problem-error" title={p.details.slice(0, 600)}>
            {p.details.slice(0, 400)}
          </bdi>
        )}
        <span class="problem-servers">
          {named.map((s) => (
            <a key={s.id} class={"chip-link t-" + availabilityOf(s.status)} href={serverHref(s.id)}>
              <bdi>{s.name}</bdi>
            </a>
          ))}
          {p.servers.length > NAMED && (
            <button class="chip-link" type="button" onClick={() => setFilter({ environments: [p.id] })}>
              {count(p.servers.length - NAMED)} more
            </button>
          )}
        </span>
      </span>
      <span class="problem-env" />
      <Since at={p.since} class="problem-since" />
    </li>
  );
}
