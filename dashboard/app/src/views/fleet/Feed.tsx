import { Component } from "preact";
import { useComputed } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { glyphs } from "../../components/Glyph";
import { change, silenceTone, tally, type Line } from "../../core/feed";
import { at, availabilities, availabilityWords, count, moment, plural } from "../../format";
import { environmentHref, serverHref } from "../../router";
import { environments, feed, now, servers } from "../../store";
import type { Availability, Update } from "../../types";

/** Feed is the journal as it grows, newest first. It rests while it is read: under the pointer, or with the focus in it. */
export function Feed({ few }: { few: boolean }) {
  const [held, setHeld] = useState<readonly Line[] | undefined>();
  const [all, setAll] = useState(false);
  const list = useSteady(held);
  const today = useComputed(() => new Date(now.value).setHours(0, 0, 0, 0)).value;
  const room = few && !all ? 6 : 80;
  const waiting = held ? feed.value.filter((l) => !held.some((h) => h.key === l.key)).length : 0;
  const hold = () => setHeld((h) => h ?? feed.peek());
  const release = () => setHeld(undefined);
  return (
    <section
      class="card feed"
      aria-labelledby="feed-title"
      onMouseEnter={hold}
      onMouseLeave={release}
      onFocusIn={hold}
      onFocusOut={(e) => {
        if (!(e.currentTarget as Element).contains(e.relatedTarget as Node | null)) release();
      }}
    >
      <h2 class="card-title" id="feed-title">
        What happened
        {waiting > 0 && <span class="badge-new">{count(waiting)} new</span>}
      </h2>
      {list.length === 0 ? (
        <p class="feed-none muted">Nothing yet. Changes appear here as they happen.</p>
      ) : (
        <ol class="feed-list" tabIndex={few ? undefined : 0} aria-label="Changes, newest first">
          {list.slice(0, room).map((l) => (
            <FeedLine key={l.key} line={l} today={today} />
          ))}
        </ol>
      )}
      {few && list.length > 6 && (
        <p class="problem-more">
          <button class="button small" type="button" aria-expanded={all} onClick={() => setAll(!all)}>
            {all ? "Show fewer" : "Show more"}
          </button>
        </p>
      )}
    </section>
  );
}

/** How often the list may change, in ms: faster is not read by anybody. */
const STEADY = 400;

function useSteady(held: readonly Line[] | undefined): readonly Line[] {
  const [list, set] = useState(feed.peek());
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  const last = useRef(0);
  useEffect(() => {
    const stop = feed.subscribe((v) => {
      if (timer.current !== undefined) return;
      const wait = last.current + STEADY - performance.now();
      const go = () => {
        timer.current = undefined;
        last.current = performance.now();
        set(feed.peek());
      };
      if (wait <= 0) {
        last.current = performance.now();
        set(v);
      } else timer.current = setTimeout(go, wait);
    });
    return () => {
      stop();
      clearTimeout(timer.current);
      timer.current = undefined;
    };
  }, []);
  return held ?? list;
}

/** FeedLine is rendered again only when its line changed, or the day: what is not of today has a date. */
class FeedLine extends Component<{ line: Line; today: number }> {
  override shouldComponentUpdate(next: { line: Line; today: number }) {
    return next.line !== this.props.line || next.today !== this.props.today;
  }
  override render() {
    const l = this.props.line;
    const v = view(l);
    return (
      <li class="feed-line">
        <time class="feed-time num" dateTime={l.entry.timestamp} title={moment(l.at)}>
          {at(l.at, this.props.today)}
        </time>
        <span class={"glyph " + (v.tone ? "a-" + v.tone : "glyph-plain")} aria-hidden="true">
          {v.tone ? glyphs[v.tone] : "i"}
        </span>
        <div class="feed-text">
          <span class="feed-head">
            {v.link ? (
              <a class="feed-name" href={v.link}>
                <bdi>{v.name}</bdi>
              </a>
            ) : (
              v.name && (
                <span class="feed-name">
                  <bdi>{v.name}</bdi>
                </span>
              )
            )}{" "}
            <span class={v.tone ? "t-" + v.tone : ""}>{v.words}</span>
          </span>
          {v.more && (
            <bdi class="feed-more" title={v.more}>
              {v.more}
            </bdi>
          )}
        </div>
      </li>
    );
  }
}

interface View {
  tone?: Availability;
  name?: string;
  link?: string;
  words: string;
  more?: string;
}

/** view puts a line into words. */
function view(l: Line): View {
  const e = l.entry;
  const details = e.details.slice(0, 400);
  const env = e.environment_id ?? "";
  const host = { name: environments.peek().get(env)?.name ?? env, link: environmentHref(env) };
  switch (e.kind) {
    case "status":
      return { ...server(e), ...status(e), more: details };
    case "server_added":
      return { ...server(e), words: "was added", more: details };
    case "server_changed":
      return { ...server(e), words: "has a new definition", more: e.changes?.join(", ") };
    case "server_removed":
      return { name: e.server_id, words: "was removed", more: details };
    case "environment_silent":
      return { ...host, tone: silenceTone(l), words: "is silent · " + members(l), more: details };
    case "environment_back":
      return { ...host, tone: "available", words: "is heard again · " + members(l), more: details };
    case "self_doubt":
      return { tone: "unknown", words: "So much fails at once that it may be us", more: details };
    case "tool_drift":
      return { ...server(e), tone: "limited", words: "lists other tools", more: details };
    case "maintenance_begin":
      return { words: "Maintenance began · " + members(l), more: details };
    case "maintenance_end":
      return { words: "Maintenance ended · " + members(l), more: details };
  }
  return { ...(e.server_id ? server(e) : {}), words: e.kind.replaceAll("_", " "), more: details };
}

function server(e: Update): { name: string; link: string } {
  const id = e.server_id ?? "";
  return { name: servers.get(id)?.peek().name ?? id, link: serverHref(id) };
}

function status(e: Update): { tone: Availability; words: string } {
  const c = change(e);
  const cur = e.current_status!;
  const to = c?.to ?? "unknown";
  let words = availabilityWords[to].toLowerCase();
  if (c && c.from === c.to) words = "still " + words;
  if (cur.marks.includes("override") && e.changes?.includes("marks")) words = availabilityWords[to].toLowerCase() + ", set by a person";
  return { tone: to, words };
}

function members(l: Line): string {
  const n = l.entry.server_ids?.length ?? 0;
  const t = tally(l);
  const parts = availabilities.filter((a) => t.has(a)).map((a) => count(t.get(a)!) + " " + availabilityWords[a].toLowerCase());
  return plural(n, "server") + (parts.length ? ": " + parts.join(", ") : "");
}
