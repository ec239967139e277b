import { useState } from "preact/hooks";
import { may, post, seg } from "../../api";
import { plural } from "../../format";
import { serverHref } from "../../router";
import { useDoing } from "../shared/load";
import { Age, Card, Empty, Trouble } from "../shared/parts";
import { suggestedID } from "./model";
import type { Discovered, Environment, Server } from "../../types";

/** DiscoveredCard lists containers that the agent saw and no server claims. Admins adopt them. */
export function DiscoveredCard({ e, changed }: { e: Environment; changed: () => void }) {
  const list = e.discovered ?? [];
  const [adopted, setAdopted] = useState<{ container: string; id: string }[]>([]);
  const admin = may("admin");
  return (
    <Card title="Discovered containers" aside={list.length > 0 && <span class="muted num d-small">{plural(list.length, "container")}</span>}>
      {adopted.map((a) => (
        <p key={a.container} class="d-notice n-good" role="status">
          <span>
            <bdi>{a.container}</bdi> is now the server{" "}
            <a href={serverHref(a.id)}>
              <bdi>{a.id}</bdi>
            </a>
            .
          </span>
        </p>
      ))}
      {list.length === 0 ? (
        <Empty>{e.agent === "none" ? "Without an agent no containers are seen." : "Every container that the agent lists belongs to a server."}</Empty>
      ) : (
        <ul class="d-discovered">
          {list.map((d) => (
            <Container
              key={d.container}
              d={d}
              admin={admin}
              adopted={(id) => {
                setAdopted((l) => [...l, { container: d.container, id }]);
                changed();
              }}
            />
          ))}
        </ul>
      )}
      {list.length > 0 && !admin && <p class="d-hint">An admin can adopt them.</p>}
      {list.length >= 200 && <p class="d-hint">At most 200 are kept.</p>}
    </Card>
  );
}

function Container({ d, admin, adopted }: { d: Discovered; admin: boolean; adopted: (id: string) => void }) {
  const [open, setOpen] = useState(false);
  const [id, setID] = useState(() => suggestedID(d.container));
  const doing = useDoing();
  const form = "adopt-" + suggestedID(d.container);
  const adopt = () =>
    void doing.run(async () => {
      const s = await post<Server>(`discovered/${seg(d.environment_id)}/${seg(d.container)}/adopt`, id.trim() === d.container ? undefined : { id: id.trim() });
      adopted(s.id);
    });
  return (
    <li>
      <div class="d-container">
        <span class="d-container-name">
          <bdi>{d.container}</bdi>
          {d.image && <bdi class="d-hint d-code">{d.image}</bdi>}
        </span>
        <span class="d-container-text">
          <bdi>{d.text || d.state}</bdi>
          {d.public_port !== undefined && <span class="d-hint num">port {d.public_port}</span>}
        </span>
        <span class="muted d-small">
          seen <Age at={d.last_seen} suffix=" ago" />
        </span>
        {admin && (
          <button type="button" class="button small" aria-expanded={open} aria-controls={form} onClick={() => setOpen(!open)}>
            Adopt<span class="visually-hidden"> {d.container}</span>
          </button>
        )}
      </div>
      {open && (
        <form
          id={form}
          class="d-form"
          onSubmit={(e) => {
            e.preventDefault();
            adopt();
          }}
          onKeyDown={(e) => {
            if (e.key === "Escape") {
              e.stopPropagation();
              setOpen(false);
            }
          }}
        >
          <span class="d-hint">It becomes a server that is monitored from then on: by the agent's reports, and by probes where it publishes a port.</span>
          <div class="d-fields">
            <label class="d-field d-field-wide">
              <span>Id of the server</span>
              <input type="text" value={id} maxLength={128} required onInput={(e) => setID(e.currentTarget.value)} />
            </label>
          </div>
          <Trouble error={doing.error} what="It was not adopted." />
          <div class="d-buttons">
            <button type="submit" class="button primary" disabled={doing.busy}>
              {doing.busy ? "Adopting…" : "Adopt"}
            </button>
            <button type="button" class="button" onClick={() => setOpen(false)}>
              Cancel
            </button>
          </div>
        </form>
      )}
    </li>
  );
}
