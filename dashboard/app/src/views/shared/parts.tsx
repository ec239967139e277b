// Pieces that the server's and the environment's view are made of.
import type { ComponentChildren } from "preact";
import { useId, useState } from "preact/hooks";
import type { ApiError } from "../../api";
import { at as near, duration, moment } from "../../format";
import { now } from "../../store";
import { cut, windows, type Window } from "./series";

/** Card is a titled part of a view. */
export function Card(p: { title: string; aside?: ComponentChildren; busy?: boolean; class?: string; children: ComponentChildren; id?: string }) {
  const id = useId();
  return (
    <section class={"d-card " + (p.class ?? "")} aria-labelledby={id} aria-busy={p.busy || undefined} id={p.id}>
      <header class="d-card-head">
        <h2 id={id}>{p.title}</h2>
        {p.aside && <div class="d-card-aside">{p.aside}</div>}
      </header>
      {p.children}
    </section>
  );
}

/** Empty says that there is nothing, and what that means. */
export function Empty({ children }: { children: ComponentChildren }) {
  return <p class="d-empty">{children}</p>;
}

/** Loading holds the place of what was not answered yet. */
export function Loading({ lines = 3 }: { lines?: number }) {
  return (
    <div class="d-loading" role="status">
      <span class="visually-hidden">Loading…</span>
      {Array.from({ length: lines }, (_, i) => (
        <span key={i} class="d-bone" aria-hidden="true" />
      ))}
    </div>
  );
}

/** Trouble says why something could not be read or done, where it happened. */
export function Trouble({ error, retry, what }: { error?: ApiError; retry?: () => void; what?: string }) {
  if (!error) return null;
  const faults = error.errors.filter((e) => !error.message.includes(e.message)).slice(0, 5); // the only one is the message
  return (
    <div class="d-trouble" role="alert">
      <span class="d-trouble-sign" aria-hidden="true">
        !
      </span>
      <div>
        {what && <strong>{what} </strong>}
        <bdi>{error.message}</bdi>
        {faults.length > 0 && (
          <ul>
            {faults.map((e, i) => (
              <li key={i}>
                {e.location && <code>{e.location}</code>} <bdi>{e.message}</bdi>
              </li>
            ))}
          </ul>
        )}
        {error.requestId && <span class="muted d-small"> Request {error.requestId}</span>}
      </div>
      {retry && (
        <button type="button" class="button small" onClick={retry}>
          Try again
        </button>
      )}
    </div>
  );
}

/** WindowPicker chooses how far back a part looks. */
export function WindowPicker({ value, onChange, label, name }: { value: Window; onChange: (w: Window) => void; label: string; name: string }) {
  return (
    <fieldset class="d-windows">
      <legend class="visually-hidden">{label}</legend>
      {windows.map((w) => (
        <label key={w.id} class={w.id === value.id ? "on" : ""}>
          <input type="radio" name={name} value={w.id} checked={w.id === value.id} onChange={() => onChange(w)} />
          <span aria-hidden="true">{w.id}</span>
          <span class="visually-hidden">{w.words}</span>
        </label>
      ))}
    </fieldset>
  );
}

/** Long is text of others, of which a long one is cut until somebody wants all of it. */
export function Long({ text, most = 260, class: c }: { text: string; most?: number; class?: string }) {
  const [all, setAll] = useState(false);
  const short = cut(text, most);
  return (
    <span class={c}>
      <bdi>{all ? text : short}</bdi>
      {short !== text && (
        <>
          {" "}
          <button type="button" class="link d-small" aria-expanded={all} onClick={() => setAll(!all)}>
            {all ? "Less" : "Show all"}
          </button>
        </>
      )}
    </span>
  );
}

/** Age ticks: how long ago something was. Its title is the moment itself. */
export function Age({ at, suffix = "" }: { at?: string; suffix?: string }) {
  const t = at ? Date.parse(at) : NaN;
  if (Number.isNaN(t)) return <span class="muted">never</span>;
  return (
    <time dateTime={at} title={moment(t)} class="num">
      {duration((now.value - t) / 1000)}
      {suffix}
    </time>
  );
}

/** At is a moment: the time of day; where that is not of today, with the date. */
export function At({ at }: { at: string }) {
  const t = Date.parse(at);
  return (
    <time dateTime={at} title={moment(t)} class="num">
      {near(t, now.peek())}
    </time>
  );
}

/** Facts are names and values. What has no value is left out. */
export function Facts({ items }: { items: [string, ComponentChildren][] }) {
  return (
    <dl class="d-facts">
      {items
        .filter(([, v]) => v !== undefined && v !== null && v !== "" && v !== false)
        .map(([k, v]) => (
          <div key={k}>
            <dt>{k}</dt>
            <dd>{v}</dd>
          </div>
        ))}
    </dl>
  );
}
