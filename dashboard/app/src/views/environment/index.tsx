import "../shared/detail.css";
import { useEffect } from "preact/hooks";
import { getEnvironment } from "../../api";
import { Glyph } from "../../components/Glyph";
import { agentWords, availabilityWords, moment, plural, why } from "../../format";
import { href, serverHref } from "../../router";
import { environments, membership, now, revision, servers, silent } from "../../store";
import { useLoad } from "../shared/load";
import { Age, Card, Empty, Facts, Loading, Long, Trouble } from "../shared/parts";
import { beatOf, interval, tallies, worstFirst } from "./model";
import { DiscoveredCard } from "./Discovered";
import { Resources } from "./Resources";
import type { Environment, Server } from "../../types";

/** EnvironmentView shows one host: its agent, what it has left, its servers, and the containers that nobody claims. */
export default function EnvironmentView({ id }: { id: string }) {
  // The list of all is read every few seconds; this one oftener, and also where the list does not have it.
  const x = useLoad(id, (signal) => getEnvironment(id, signal), { every: 5000, on: environments.value.get(id)?.agent, min: 1000 });
  useEffect(() => {
    document.getElementById("main")?.focus({ preventScroll: true });
  }, []);
  const gone = x.error?.status === 404;
  const e = gone ? undefined : (x.data ?? environments.value.get(id));
  if (!e) {
    return (
      <div class="page detail">
        <Crumbs name={id} />
        {!x.error ? (
          <Loading lines={6} />
        ) : (
          <>
            <div class="d-head">
              <h1 class="d-title">
                <bdi>{id}</bdi>
              </h1>
              {gone ? <p class="d-lead">There is no such environment. It was removed, or never was.</p> : <Trouble error={x.error} retry={x.reload} what="This environment cannot be read." />}
              <p>
                <a href={href("")}>Back to the fleet</a>
              </p>
            </div>
            {gone && <Resources id={id} e={undefined} removed />}
          </>
        )}
      </div>
    );
  }
  return (
    <article class="page detail" aria-label={"Environment " + e.name}>
      <Crumbs name={e.name} />
      <Head e={e} />
      {x.error && <Trouble error={x.error} retry={x.reload} what="What is shown may be old." />}
      <div class="d-columns">
        <div class="d-main">
          <Resources id={id} e={e} />
          <DiscoveredCard e={e} changed={x.reload} />
        </div>
        <div class="d-side">
          <Servers id={id} />
          <Agent e={e} />
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

function Head({ e }: { e: Environment }) {
  const quiet = silent.value.get(e.id);
  return (
    <header class={"d-head d-agent g-" + e.agent}>
      <div class="d-head-line">
        <h1 class="d-title">
          <bdi>{e.name}</bdi>
        </h1>
        <span class="d-env muted">environment</span>
      </div>
      <div class="d-verdict">
        <span class={"d-agent-sign g-" + e.agent} aria-hidden="true" />
        <p>
          <strong class="d-what" role="status">
            {words(e)}
          </strong>
          <Beat e={e} />
        </p>
      </div>
      {quiet && (
        <p class="d-error">
          <Long text={quiet.details} />
        </p>
      )}
    </header>
  );
}

function words(e: Environment): string {
  if (e.agent === "none") return "No agent";
  const w = agentWords[e.agent];
  return w.charAt(0).toUpperCase() + w.slice(1);
}

/** Beat ticks: how old the last heartbeat is, against the limits. */
function Beat({ e }: { e: Environment }) {
  const b = beatOf(e, now.value);
  if (e.agent === "none") return <span class="d-why">This host's servers live by our probes alone.</span>;
  if (!b) return <span class="d-why">It should have an agent, which never reported.</span>;
  return (
    <>
      <span class="d-why">
        heartbeat <Age at={e.last_heartbeat} suffix=" ago" />, {b.words}
      </span>
      <svg class={"d-beat b-" + b.level} viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true" focusable="false">
        <rect class="d-beat-ground" width="100" height="4" />
        <rect class="d-beat-fill" width={Math.max(1, b.used * 100)} height="4" />
        <rect class="d-beat-late" x={b.late * 100 - 0.4} width="0.8" height="4" />
      </svg>
    </>
  );
}

function Agent({ e }: { e: Environment }) {
  return (
    <Card title="Agent">
      <Facts
        items={[
          ["Last heartbeat", e.last_heartbeat && <span class="num">{moment(e.last_heartbeat)}</span>],
          ["Came", e.heard_via && { push: "by itself", pull: "when it was asked", event: "because something happened" }[e.heard_via as string]],
          ["Every", interval(e.heartbeat_interval_seconds)],
          ["Late after", interval(e.late_after_seconds)],
          ["Lost after", interval(e.lost_after_seconds)],
          ["Version", e.agent_version && <bdi>{e.agent_version}</bdi>],
          ["Its API", e.agent_url && <bdi class="d-code">{e.agent_url}</bdi>],
          ["Address", e.address && <bdi class="d-code">{e.address}</bdi>],
          ["Owner", e.owner && <bdi>{e.owner}</bdi>],
          ["Defined by", e.origin && { config: "the configuration file", managed: "the API", postgres: "the platform's database" }[e.origin as string]],
          ["Id", e.id !== e.name && <bdi class="d-code">{e.id}</bdi>],
        ]}
      />
    </Card>
  );
}

/** Servers are those that run there, the worst first. */
function Servers({ id }: { id: string }) {
  membership.value;
  revision.value;
  const list: Server[] = [];
  for (const s of servers.values()) if (s.peek().environment_id === id) list.push(s.peek());
  const sorted = worstFirst(list);
  return (
    <Card title="Servers" class="d-first" aside={<span class="muted num d-small">{plural(list.length, "server")}</span>}>
      {list.length === 0 && <Empty>No server is defined here.</Empty>}
      {list.length > 0 && (
        <>
          <p class="d-shares">
            {tallies(list).map(([a, n]) => (
              <span key={a}>
                <Glyph a={a} /> <span class="num">{n}</span> {availabilityWords[a].toLowerCase()}
              </span>
            ))}
          </p>
          <ul class="d-servers">
            {sorted.slice(0, 500).map((s) => (
              <li key={s.id}>
                <a href={serverHref(s.id)}>
                  <Glyph a={s.status.availability} label />
                  <span class="d-server-name">
                    <bdi>{s.name}</bdi>
                    {s.status.marks.map((m) => (
                      <span key={m} class={"d-mark m-" + m}>
                        {m}
                      </span>
                    ))}
                  </span>
                  <span class={"d-server-why t-" + s.status.availability}>{s.status.availability === "available" ? "" : why(s.status)}</span>
                  <span class="d-server-since muted">
                    <Age at={s.status.since} />
                  </span>
                </a>
              </li>
            ))}
          </ul>
          {sorted.length > 500 && <p class="d-hint">The first 500 are shown; the fleet view has all.</p>}
        </>
      )}
    </Card>
  );
}
