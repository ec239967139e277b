import { Glyph } from "../../components/Glyph";
import { count, duration, ms } from "../../format";
import { environmentHref } from "../../router";
import { environments, now } from "../../store";
import { agentWords } from "../../format";
import { Age, At, Card, Facts, Long } from "../shared/parts";
import { headline } from "./words";
import type { Server } from "../../types";

/** Head is the status in words: what, why, since when. */
export function Head({ s }: { s: Server }) {
  const st = s.status;
  const h = headline(st);
  const env = s.environment_id ? environments.value.get(s.environment_id) : undefined;
  return (
    <header class={"d-head d-status s-" + st.availability}>
      <div class="d-head-line">
        <h1 class="d-title">
          <bdi>{s.name}</bdi>
        </h1>
        {s.environment_id && (
          <a class="d-env" href={environmentHref(s.environment_id)}>
            on <bdi>{env?.name ?? s.environment_id}</bdi>
          </a>
        )}
        {st.marks.map((m) => (
          <span key={m} class={"d-mark m-" + m}>
            {m}
          </span>
        ))}
        {s.disabled && <span class="d-mark">not probed</span>}
      </div>
      <div class="d-verdict" role="status" aria-atomic="true">
        <Glyph a={st.availability} />
        <p>
          <strong class="d-what">{h.what}</strong>
          <span class="d-why"> {h.why}</span>
        </p>
      </div>
      <p class="d-since">
        <span>
          <code>{st.state}</code> <span aria-hidden="true">·</span> <code>{st.health}</code>
        </span>
        {st.since && (
          <span>
            since <At at={st.since} /> (<Age at={st.since} />)
          </span>
        )}
        {env && env.agent !== "ok" && env.agent !== "none" && <span class="d-warn">{agentWords[env.agent]}</span>}
      </p>
      {st.last_error && (
        <p class="d-error">
          <Long text={st.last_error} most={400} />
        </p>
      )}
      {s.needs_config && (
        <p class="d-error">
          Its configuration is not complete: <bdi>{s.needs_config}</bdi>
        </p>
      )}
    </header>
  );
}

function Running({ since }: { since: string }) {
  return <>{duration((now.value - Date.parse(since)) / 1000)}</>;
}

/** About is what is known beside the status. */
export function About({ s }: { s: Server }) {
  const st = s.status;
  const env = s.environment_id ? environments.value.get(s.environment_id) : undefined;
  const labels = Object.entries(s.labels ?? {});
  return (
    <Card title="About">
      <Facts
        items={[
          ["Endpoint", s.endpoint && <Long class="d-code" text={s.endpoint} most={200} />],
          ["Transport", s.transport],
          ["Probed", s.probe?.kind && (s.probe.kind === "none" ? "not at all" : `as ${s.probe.kind}${s.probe.interval_seconds ? ", every " + duration(Math.max(1, s.probe.interval_seconds)) : ""}`)],
          ["Probe address", s.probe?.url && s.probe.url !== s.endpoint && <Long class="d-code" text={s.probe.url} most={200} />],
          ["Last checked", st.last_checked && <Age at={st.last_checked} suffix=" ago" />],
          ["Latency", st.latency_ms !== undefined && <span class="num">{ms(st.latency_ms)}</span>],
          ["Running for", st.state === "running" && st.last_started && <Running since={st.last_started} />],
          ["Heartbeat", env?.last_heartbeat && <Age at={env.last_heartbeat} suffix=" ago" />],
          ["Login", st.auth && { none: "not needed", required: "required, none configured", ok: "accepted", failed: "rejected" }[st.auth as string]],
          ["Calls itself", st.server && <bdi>{[st.server.name, st.server.version].filter(Boolean).join(" ")}</bdi>],
          ["MCP version", st.protocol_version],
          ["Probes", st.check_count > 0 && <span class="num">{count(st.check_count)}, {count(st.error_count)} failed</span>],
          ["Container", s.container && <bdi class="d-code">{s.container}</bdi>],
          ["Wanted", s.desired && s.desired !== "unknown" && s.desired],
          ["Type", s.type && <bdi>{s.type}</bdi>],
          ["Owner", s.owner && <bdi>{s.owner}</bdi>],
          ["Defined by", s.origin && { config: "the configuration file", managed: "the API", postgres: "the platform's database", mcp_config: "an mcp.json file", discovered: "discovery" }[s.origin as string]],
          ["Id", s.id !== s.name && <bdi class="d-code">{s.id}</bdi>],
        ]}
      />
      {labels.length > 0 && (
        <ul class="d-labels" aria-label="Labels">
          {labels.map(([k, v]) => (
            <li key={k}>
              <bdi>{k}</bdi>=<bdi>{v}</bdi>
            </li>
          ))}
        </ul>
      )}
    </Card>
  );
}
