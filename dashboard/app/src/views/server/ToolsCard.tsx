import { get, may, post, put, del, seg } from "../../api";
import { plural } from "../../format";
import { useDoing, useLoad } from "../shared/load";
import { Age, At, Card, Empty, Loading, Long, Trouble } from "../shared/parts";
import type { Page, ToolDrift, Tools, Update } from "../../types";

/** ToolsCard is what an MCP server lists as its tools, how that changed, and which set is pinned. */
export function ToolsCard({ id, mcp }: { id: string; mcp: boolean }) {
  const tools = useLoad(id, (signal) => get<Tools>(`servers/${seg(id)}/tools`, undefined, signal), { every: 20_000 });
  const drift = useLoad(id, (signal) => get<Page<Update>>(`servers/${seg(id)}/drift`, { limit: 5 }, signal), { every: 20_000 });
  const doing = useDoing();
  const t = tools.data;
  if (!mcp && !t?.hash) return null;
  const act = (f: () => Promise<unknown>) =>
    void doing.run(async () => {
      await f();
      tools.reload();
      drift.reload();
    });
  return (
    <Card title="Tools" busy={tools.busy} aside={t?.hash && <span class="muted num d-small">{plural(t.count, "tool")}</span>}>
      <Trouble error={tools.error} retry={tools.reload} what="Tools cannot be read." />
      {!t && !tools.error && <Loading />}
      {t && !t.hash && <Empty>{t.last_error ? "The list could not be read." : "The list was not read yet."}</Empty>}
      {t?.last_error && (
        <p class="d-error">
          <Long text={t.last_error} />
        </p>
      )}
      {t?.drifted && t.against_pin && (
        <div class="d-notice n-limited">
          <strong>Not the pinned tools.</strong> <Difference d={t.against_pin} />
        </div>
      )}
      {t?.hash && (
        <>
          <p class="d-hint">
            {t.pinned ? (
              <>
                Pinned{t.pinned.actor && <> by <bdi>{t.pinned.actor}</bdi></>} <Age at={t.pinned.at} suffix=" ago" />
              </>
            ) : (
              "No set is pinned"
            )}
            {t.checked_at && (
              <>
                , read <Age at={t.checked_at} suffix=" ago" />
              </>
            )}
            {t.since && (
              <>
                , the same since <At at={t.since} />
              </>
            )}
          </p>
          {t.tools.length > 0 && (
            <details class="d-numbers" open={t.tools.length <= 8}>
              <summary>{plural(t.tools.length, "tool")}</summary>
              <ul class="d-tools">
                {t.tools.slice(0, 300).map((x, i) => (
                  <li key={x.name + i}>
                    <bdi title={x.hash}>{x.name}</bdi>
                  </li>
                ))}
              </ul>
            </details>
          )}
        </>
      )}
      {may("operator") && t && (
        <div class="d-buttons">
          {t.hash && (!t.pinned || t.drifted) && (
            <button type="button" class="button small" disabled={doing.busy} onClick={() => act(() => put(`servers/${seg(id)}/tools/pin`, { hash: t.hash }))}>
              {t.pinned ? "Pin the current set" : "Pin this set"}
            </button>
          )}
          {t.pinned && (
            <button type="button" class="button small" disabled={doing.busy} onClick={() => act(() => del(`servers/${seg(id)}/tools/pin`))}>
              Remove the pin
            </button>
          )}
          <button type="button" class="button small" disabled={doing.busy} onClick={() => act(() => post(`servers/${seg(id)}/tools`))}>
            {doing.busy ? "Working…" : "Read now"}
          </button>
        </div>
      )}
      <Trouble error={doing.error} />
      {drift.data && drift.data.items.length > 0 && (
        <>
          <h3>Drift</h3>
          <ul class="d-drift">
            {drift.data.items.map((e) => (
              <li key={e.epoch + e.seq}>
                <span class="muted">
                  <At at={e.timestamp} />
                </span>{" "}
                {e.tools ? <Difference d={e.tools} /> : <bdi>{e.details}</bdi>}
              </li>
            ))}
          </ul>
        </>
      )}
    </Card>
  );
}

function Difference({ d }: { d: ToolDrift }) {
  const part = (sign: string, words: string, list: readonly { name: string }[] | undefined, n: number) =>
    n > 0 && (
      <span class={"d-diff " + words}>
        <span class="visually-hidden">{words}: </span>
        {(list ?? []).slice(0, 4).map((t, i) => (
          <code key={i}>
            <span aria-hidden="true">{sign}</span>
            <bdi>{t.name}</bdi>
          </code>
        ))}
        {n > 4 && <span class="muted">and {n - 4} more</span>}
      </span>
    );
  return (
    <>
      {part("+", "added", d.added, d.added_count)}
      {part("−", "removed", d.removed, d.removed_count)}
      {part("~", "changed", d.changed, d.changed_count)}
    </>
  );
}
