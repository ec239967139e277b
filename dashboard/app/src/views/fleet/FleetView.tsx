import { useEffect, useState } from "preact/hooks";
import { Since } from "../../components/Since";
import { helpOpen } from "../../components/Help";
import { signInNeeded } from "../../api";
import { count, plural } from "../../format";
import { connection, counts, environments, loaded, membership, servers } from "../../store";
import { Feed } from "./Feed";
import { Counts, DensitySwitch, FilterBar } from "./FilterBar";
import { clearFilter, compact, filter, groups, headline, selected } from "./model";
import { isEmpty } from "../../core/filter";
import { Problems } from "./Problems";
import { TileGrid } from "./TileGrid";

/** FleetView is the first view: what is wrong, then everything. */
export function FleetView() {
  const wide = useMedia("(min-width: 1180px)");
  useEffect(startKeys, []);
  if (!loaded.value) {
    return (
      <div class="fleet-loading" role="status">
        {connection.value.detail ? "Waiting for the service…" : "Loading the fleet…"}
      </div>
    );
  }
  membership.value;
  if (servers.size === 0) return <NoServers />;
  return (
    <div class="fleet">
      <Headline />
      <Counts />
      <FilterBar />
      <div class="fleet-columns">
        <div class="fleet-main">
          <Problems />
          {!wide && <Feed few />}
          <Tiles />
        </div>
        {wide && <Feed few={false} />}
      </div>
      <Announcer />
    </div>
  );
}

function Headline() {
  const h = headline.value;
  const bad = h.broken > 0;
  const c = counts.value;
  return (
    <div class={"headline" + (bad ? " headline-bad" : "")}>
      <h1>
        {bad
          ? `${count(h.broken)} of ${plural(h.total, "server")} unavailable`
          : h.limited > 0
            ? `No server is unavailable; ${count(h.limited)} of ${count(h.total)} limited`
            : c.by.available === h.total
              ? h.total === 1
                ? "The server is available"
                : `All ${count(h.total)} servers are available`
              : "No server is unavailable"}
      </h1>
      <p class="headline-sub">
        {bad ? (
          <>
            {h.environments > 1 && h.reach > 0 && <span>On {h.reach === 1 ? "one" : count(h.reach)} of {plural(h.environments, "environment")}</span>}
            {h.causes.map(([w, n]) => (
              <span key={w}>
                {count(n)} × {w}
              </span>
            ))}
            {h.newest && (
              <span>
                newest <Since at={h.newest} /> ago
              </span>
            )}
          </>
        ) : (
          <span>
            {plural(h.total, "server")}
            {h.environments > 0 && " on " + plural(h.environments, "environment")}
          </span>
        )}
      </p>
    </div>
  );
}

function Tiles() {
  const n = selected.value.length;
  groups.value;
  return (
    <section class="card servers" aria-labelledby="servers-title">
      <div class="card-head">
        <h2 class="card-title" id="servers-title">
          Servers <span class="muted num">{isEmpty(filter.value) ? count(n) : `${count(n)} of ${count(servers.size)}`}</span>
        </h2>
        {n > 0 && <DensitySwitch />}
      </div>
      {n === 0 ? (
        <div class="none">
          <p>No server fits these filters.</p>
          <button class="button" type="button" onClick={clearFilter}>
            Clear the filters
          </button>
        </div>
      ) : (
        <TileGrid key={String(compact.value)} />
      )}
    </section>
  );
}

function NoServers() {
  const found = [...environments.value.values()].reduce((n, e) => n + (e.discovered?.length ?? 0), 0);
  return (
    <div class="page empty">
      <h1>No servers yet</h1>
      <p>Tell the service which MCP servers to keep an eye on. Any of these does it; the page follows by itself.</p>
      {found > 0 && (
        <Way words={`${plural(found, "container")} reported by agents and claimed by nobody`} code="statussync discovered" />
      )}
      <Way words="The servers of an MCP client's file" code="statussync serve --mcp-config ~/.cursor/mcp.json" />
      <Way words="One server by its address" code="statussync server add weather --endpoint https://example.com/mcp" />
      <Way words="A configuration file, with hosts and their agents" code="statussync serve --config statussync.yaml" />
    </div>
  );
}

function Way({ words, code }: { words: string; code: string }) {
  return (
    <div class="way">
      <p>{words}</p>
      <pre tabIndex={0}>
        <code>{code}</code>
      </pre>
    </div>
  );
}

/** Announcer tells who can't see the page when the number of broken servers changes, at most every 5 s. */
function Announcer() {
  const [said, say] = useState("");
  useEffect(() => {
    let last = counts.peek().broken;
    const t = setInterval(() => {
      const n = counts.peek().broken;
      if (n !== last) say(n === 0 ? "No server is unavailable any more" : `${plural(n, "server")} unavailable, ${last} before`);
      last = n;
    }, 5000);
    return () => clearInterval(t);
  }, []);
  return (
    <div class="visually-hidden" role="status">
      {said}
    </div>
  );
}

function useMedia(query: string): boolean {
  const [m, set] = useState(() => matchMedia(query).matches);
  useEffect(() => {
    const q = matchMedia(query);
    const f = () => set(q.matches);
    q.addEventListener("change", f);
    return () => q.removeEventListener("change", f);
  }, [query]);
  return m;
}

/** startKeys: "/" searches, j and k go from server to server, in the order of the page; Enter opens as on any link. */
function startKeys(): () => void {
  const onKey = (e: KeyboardEvent) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.defaultPrevented || helpOpen.value || signInNeeded.value) return;
    const t = e.target;
    if (t instanceof HTMLElement && (t.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(t.tagName))) return;
    if (e.key === "/") {
      e.preventDefault();
      const input = document.getElementById("search") as HTMLInputElement | null;
      input?.focus();
      input?.select();
    } else if (e.key === "j" || e.key === "k") {
      e.preventDefault();
      step(e.key === "j" ? 1 : -1);
    }
  };
  document.addEventListener("keydown", onKey);
  return () => document.removeEventListener("keydown", onKey);
}

/** step moves the focus among the problems and the tiles. Rows that are out of sight appear as they are come to. */
function step(by: number) {
  const stops = [...document.querySelectorAll<HTMLElement>("[data-stop]")];
  if (stops.length === 0) return;
  const at = stops.indexOf(document.activeElement as HTMLElement);
  const next = at < 0 ? 0 : Math.max(0, Math.min(stops.length - 1, at + by));
  const el = stops[next]!;
  el.focus({ preventScroll: true });
  el.scrollIntoView({ block: "nearest" });
}
