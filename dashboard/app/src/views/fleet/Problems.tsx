import { useState } from "preact/hooks";
import { Glyph } from "../../components/Glyph";
import { Since } from "../../components/Since";
import type { Problem } from "../../core/problems";
import { at, availabilityOf, count, plural, reasonWords, why } from "../../format";
import { environmentHref, href, serverHref } from "../../router";
import { environments, now, servers } from "../../store";
import type { Server } from "../../types";
import { problems, setFilter } from "./model";

/** How many problems are shown at first, and at most. */
const FIRST = 8;
const MOST = 200;

/** Problems says what is wrong, since when, how far it reaches and why; the worst and newest first. */
export function Problems() {
  const [more, setMore] = useState(false);
  const p = problems.value;
  const [held, setHeld] = useState<readonly Problem[] | undefined>();
  if (!held && p.items.length === 0 && p.unknownCount === 0 && p.maintained === 0) return null;
  const room = more ? MOST : p.items.length <= FIRST + 2 ? FIRST + 2 : FIRST;
  const items = held ? kept(held, p.items) : p.items;
  const shown = items.slice(0, room);
  const hidden = items.length - shown.length;
  const waiting = held ? p.items.filter((x) => !held.some((h) => h.key === x.key)).length : 0;
  return (
    <section
      class="card problems"
      aria-labelledby="problems-title"
      onMouseEnter={() => setHeld((h) => h ?? problems.peek().items.slice(0, MOST))}
      onMouseLeave={() => setHeld(undefined)}
    >
      <h2 class="card-title" id="problems-title">
        What is wrong
        {waiting > 0 && <span class="badge-new">{count(waiting)} new</span>}
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

/**
 * kept is the list as it was held, each line as it is now: under the pointer nothing moves away. Who is well again stays
 * until the pointer leaves.
 */
function kept(held: readonly Problem[], items: readonly Problem[]): Problem[] {
  const now = new Map(items.map((x) => [x.key, x]));
  const out: Problem[] = [];
  for (const h of held) {
    const x = now.get(h.key);
    if (x) out.push(x);
    else if (h.kind === "server") {
      const server = servers.get(h.server.id)?.peek();
      if (server) out.push({ ...h, server });
    }
  }
  return out;
}

function Row({ s }: { s: Server }) {
  const a = availabilityOf(s.status);
  const st = s.status;
  const words = why(st);
  const error = st.last_error ?? "";
  // An error may begin with the reason's words, which stand before it.
  const more = error.toLowerCase().startsWith(words.toLowerCase() + ": ") ? error.slice(words.length + 2) : error;
  return (
    <li class={"problem p-" + a + (s.environment_id ? "" : " problem-homeless")}>
      <Glyph a={a} label />
      <a class="problem-name" href={serverHref(s.id)} data-stop="problem" data-id={s.id}>
        <bdi>{s.name}</bdi>
      </a>
      <span class="problem-why">
        <span class={"problem-reason t-" + a}>{words}</span>
        {st.marks?.includes("flapping") && <span class="tag">flapping</span>}
        {st.marks?.includes("override") && st.reason !== "override" && <span class="tag">set by a person</span>}
        {(st.last_error || st.override?.note) && (
          <bdi class="problem-error" title={(st.last_error ?? st.override?.note ?? "").slice(0, 600)}>
            {(st.override?.note ?? more).slice(0, 400)}
          </bdi>
        )}
      </span>
      {s.environment_id ? (
        <a class="problem-env" href={environmentHref(s.environment_id)}>
          <bdi>{environments.value.get(s.environment_id)?.name ?? s.environment_id}</bdi>
        </a>
      ) : null}
      <Began at={st.since} />
    </li>
  );
}

/** Began is since when, as a time and as a length. */
function Began({ at: t }: { at: string | undefined }) {
  return (
    <span class="problem-since">
      <Since at={t} class="problem-age" />
      <span class="problem-at num">{t && "since " + at(t, now.value)}</span>
    </span>
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
            {/* The line names the host already. */}
            {p.details.replace(/^environment \S+ is silent: /, "").slice(0, 400)}
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
      <Began at={p.since} />
    </li>
  );
}
