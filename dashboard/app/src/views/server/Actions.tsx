import { useEffect, useId, useRef, useState } from "preact/hooks";
import { all, del, may, post, put, seg } from "../../api";
import { causeWords, clock, ms } from "../../format";
import { now } from "../../store";
import { useDoing, useLoad, type Doing } from "../shared/load";
import { At, Long, Trouble } from "../shared/parts";
import { durations, healthsOf, left, scope, selects } from "./words";
import type { Maintenance, ProbeResult, Server, State } from "../../types";

type Panel = "" | "override" | "maintenance";

/** Actions are what may be done with a server, by those who may, and what others did: the override and the windows. */
export function Actions({ s }: { s: Server }) {
  const [panel, setPanel] = useState<Panel>("");
  const [probed, setProbed] = useState<ProbeResult | undefined>(undefined);
  const probing = useDoing();
  const operator = may("operator");
  const windows = useLoad(
    s.id,
    async (signal) => (await all<Maintenance>("maintenance", { limit: 1000 }, 1000, signal)).filter((w) => selects(w, s)),
    { on: s.status.version, every: 60_000 },
  );
  const o = s.status.override;
  const toggle = (p: Panel) => setPanel(panel === p ? "" : p);
  const kind = s.probe?.kind;
  return (
    <>
      {o && <OverrideNotice s={s} operator={operator} />}
      {(windows.data ?? []).map((w) => (
        <WindowNotice key={w.id} w={w} operator={operator} changed={windows.reload} />
      ))}
      {operator && (
        <div class="d-actions" role="toolbar" aria-label="Actions">
          {kind && kind !== "none" && (
            <button
              type="button"
              class="button"
              disabled={probing.busy}
              onClick={() => void probing.run(async () => setProbed(await post<ProbeResult>(`servers/${seg(s.id)}/probe`)))}
            >
              {probing.busy ? "Probing…" : "Probe now"}
            </button>
          )}
          <button type="button" class="button" aria-expanded={panel === "override"} aria-controls="override-form" onClick={() => toggle("override")}>
            {o ? "Change override" : "Override"}
          </button>
          <button type="button" class="button" aria-expanded={panel === "maintenance"} aria-controls="maintenance-form" onClick={() => toggle("maintenance")}>
            Maintenance
          </button>
          <span class="d-result" role="status">
            {probed && !probing.busy && !probing.error && <Probed r={probed} />}
          </span>
        </div>
      )}
      <Trouble error={probing.error} what="It could not be probed." />
      {operator && panel === "override" && <OverrideForm s={s} done={() => setPanel("")} />}
      {operator && panel === "maintenance" && (
        <MaintenanceForm
          s={s}
          done={() => {
            setPanel("");
            windows.reload();
          }}
        />
      )}
    </>
  );
}

function Probed({ r }: { r: ProbeResult }) {
  const at = r.checked_at ? clock(r.checked_at) : "";
  const speed = r.latency_ms !== undefined ? " in " + ms(r.latency_ms) : "";
  const what =
    r.outcome === "success" ? "Answered" + speed : r.outcome === "alive" ? "Alive: " + (causeWords(r.cause) || "answered") : "Failed: " + (causeWords(r.cause) || "no answer");
  return (
    <>
      <span class={"d-outcome o-" + r.outcome}>{what}</span> <span class="muted num">{at}</span>
      {r.outcome !== "success" && r.detail && <Long class="d-hint" text={r.detail} />}
    </>
  );
}

function Left({ until }: { until?: string }) {
  const l = left(until, now.value);
  return <span class="num">{l ? l + " left" : "ending"}</span>;
}

function OverrideNotice({ s, operator }: { s: Server; operator: boolean }) {
  const doing = useDoing();
  const o = s.status.override!;
  return (
    <div class="d-notice n-override">
      <div>
        <strong>
          Overridden as {o.state}, {o.health}
        </strong>
        {o.actor && (
          <>
            {" "}
            by <bdi>{o.actor}</bdi>
          </>
        )}
        {o.expires_at && (
          <>
            {" "}
            until <At at={o.expires_at} />, <Left until={o.expires_at} />
          </>
        )}
        {o.note && (
          <p class="d-note">
            <Long text={o.note} />
          </p>
        )}
        <Trouble error={doing.error} what="It was not cleared." />
      </div>
      {operator && (
        <button type="button" class="button small" disabled={doing.busy} onClick={() => void doing.run(() => del(`servers/${seg(s.id)}/override`))}>
          {doing.busy ? "Clearing…" : "Clear override"}
        </button>
      )}
    </div>
  );
}

function WindowNotice({ w, operator, changed }: { w: Maintenance; operator: boolean; changed: () => void }) {
  const doing = useDoing();
  const about = scope(w);
  const recurring = w.rrule !== undefined;
  const end = (query: string) =>
    void doing.run(async () => {
      await del(`maintenance/${seg(w.id)}${query}`);
      changed();
    });
  return (
    <div class={"d-notice n-maintenance" + (w.open ? " open" : "")}>
      <div>
        {w.open ? (
          <>
            <strong>In maintenance</strong>
            {w.next_end && (
              <>
                {" "}
                until <At at={w.next_end} />, <Left until={w.next_end} />
              </>
            )}
          </>
        ) : (
          <>
            <strong>Maintenance planned</strong>
            {w.next_begin && (
              <>
                {" "}
                for <At at={w.next_begin} />
              </>
            )}
          </>
        )}
        {w.actor && (
          <>
            , by <bdi>{w.actor}</bdi>
          </>
        )}
        {about && (
          <span class="muted">
            {" "}
            (<bdi>{about}</bdi>)
          </span>
        )}
        {recurring && (
          <span class="d-hint">
            recurs: <code>{w.rrule}</code>
          </span>
        )}
        {w.note && (
          <p class="d-note">
            <Long text={w.note} />
          </p>
        )}
        <Trouble error={doing.error} what="It was not ended." />
      </div>
      {operator && (
        <span class="d-buttons">
          {recurring && w.open && (
            <button type="button" class="button small" disabled={doing.busy} onClick={() => end("?occurrence=true")}>
              End this occurrence
            </button>
          )}
          <button type="button" class="button small" disabled={doing.busy} onClick={() => end("")}>
            {w.open && !recurring ? "End now" : "Remove"}
            {about && <span class="visually-hidden"> for {about}</span>}
          </button>
        </span>
      )}
    </div>
  );
}

const states: readonly State[] = ["running", "stopped", "starting", "stopping", "error", "unknown"];

function OverrideForm({ s, done }: { s: Server; done: () => void }) {
  const doing = useDoing();
  const [state, setState] = useState<State>("running");
  const [health, setHealth] = useState("");
  const [note, setNote] = useState("");
  const [lasts, setLasts] = useState("1h");
  const choices = healthsOf(state);
  return (
    <Form
      id="override-form"
      title={`Override ${s.name}`}
      hint="Replaces what the rules conclude, until it expires. What is observed goes on being recorded."
      doing={doing}
      what="It was not overridden."
      submit="Set override"
      cancel={done}
      run={async () => {
        await put(`servers/${seg(s.id)}/override`, { state, health: health || undefined, note: note.trim() || undefined, expires_in: lasts });
        done();
      }}
    >
      <Select
        label="State"
        first
        value={state}
        set={(v) => {
          setState(v as State);
          setHealth("");
        }}
        options={states.map((v) => [v, v])}
      />
      <Select label="Health" value={health} set={setHealth} options={[["", `${choices[0]} (follows from the state)`], ...choices.slice(1).map((h): [string, string] => [h, h])]} />
      <Select label="Expires in" value={lasts} set={setLasts} options={durations} />
      <Note value={note} set={setNote} />
    </Form>
  );
}

function MaintenanceForm({ s, done }: { s: Server; done: () => void }) {
  const doing = useDoing();
  const [lasts, setLasts] = useState("1h");
  const [note, setNote] = useState("");
  const [whole, setWhole] = useState(false);
  return (
    <Form
      id="maintenance-form"
      title={`Maintenance of ${s.name}`}
      hint="Begins now. The status goes on being told, marked as maintenance; its time does not count against the uptime."
      doing={doing}
      what="No window was opened."
      submit="Begin maintenance"
      cancel={done}
      run={async () => {
        const target = whole && s.environment_id ? { environment_ids: [s.environment_id] } : { server_ids: [s.id] };
        await post("maintenance", { ...target, duration: lasts, note: note.trim() || undefined });
        done();
      }}
    >
      <Select label="Lasts" first value={lasts} set={setLasts} options={durations} />
      {s.environment_id && (
        <Select
          label="Of"
          value={whole ? "environment" : "server"}
          set={(v) => setWhole(v === "environment")}
          options={[
            ["server", "this server"],
            ["environment", "all servers of " + s.environment_id],
          ]}
        />
      )}
      <Note value={note} set={setNote} />
    </Form>
  );
}

function Form(p: {
  id: string;
  title: string;
  hint: string;
  doing: Doing;
  what: string;
  submit: string;
  cancel: () => void;
  run: () => Promise<void>;
  children: preact.ComponentChildren;
}) {
  const form = useRef<HTMLFormElement>(null);
  const title = useId();
  useEffect(() => form.current?.querySelector<HTMLElement>("[data-first]")?.focus(), []);
  return (
    <form
      ref={form}
      id={p.id}
      class="d-form"
      aria-labelledby={title}
      onSubmit={(e) => {
        e.preventDefault();
        void p.doing.run(p.run);
      }}
      onKeyDown={(e) => {
        if (e.key === "Escape") {
          e.stopPropagation();
          p.cancel();
        }
      }}
    >
      <div class="d-form-head">
        <strong id={title}>
          <bdi>{p.title}</bdi>
        </strong>
        <span class="d-hint">{p.hint}</span>
      </div>
      <div class="d-fields">{p.children}</div>
      <Trouble error={p.doing.error} what={p.what} />
      <div class="d-buttons">
        <button type="submit" class="button primary" disabled={p.doing.busy}>
          {p.doing.busy ? "Working…" : p.submit}
        </button>
        <button type="button" class="button" onClick={p.cancel}>
          Cancel
        </button>
      </div>
    </form>
  );
}

function Select(p: { label: string; value: string; set: (v: string) => void; options: readonly (readonly [string, string])[]; first?: boolean }) {
  return (
    <label class="d-field">
      <span>{p.label}</span>
      <select value={p.value} data-first={p.first || undefined} onChange={(e) => p.set(e.currentTarget.value)}>
        {p.options.map(([v, words]) => (
          <option key={v} value={v}>
            {words}
          </option>
        ))}
      </select>
    </label>
  );
}

function Note({ value, set }: { value: string; set: (v: string) => void }) {
  return (
    <label class="d-field d-field-wide">
      <span>Note</span>
      <input type="text" value={value} maxLength={1000} placeholder="Why, for those who read it later" onInput={(e) => set(e.currentTarget.value)} />
    </label>
  );
}
