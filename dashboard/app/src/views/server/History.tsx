import { useEffect, useState } from "preact/hooks";
import { get, seg } from "../../api";
import { Glyph } from "../../components/Glyph";
import { connection, onEntry } from "../../store";
import { useDoing } from "../shared/load";
import { At, Card, Empty, Loading, Long, Trouble } from "../shared/parts";
import { joined, MOST } from "./joined";
import { entryAvailability, sourceWords } from "./words";
import type { Page, Update } from "../../types";

const PAGE = 15;

/** History is what the journal says of one server, newest first, and goes on by itself. */
export function History({ id }: { id: string }) {
  const [list, setList] = useState<Update[] | undefined>(undefined);
  const [next, setNext] = useState<string | undefined>(undefined);
  const [again, setAgain] = useState(0);
  const doing = useDoing();
  const live = connection.value.state === "live";

  // Between two frames only the newest entry of a server is certain to be told: the list is read, not put together.
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    let gone = false;
    const read = () => {
      timer = undefined;
      void doing.run(async () => {
        const p = await page(id);
        if (gone) return;
        setList((old) => joined(p.items, old));
        setNext((n) => n ?? p.next_cursor);
      });
    };
    if (live || list === undefined) read();
    const end = onEntry((e) => {
      if ((e.server_id === id || e.server_ids?.includes(id)) && timer === undefined) timer = setTimeout(read, 400);
    });
    return () => {
      gone = true;
      clearTimeout(timer);
      end();
    };
  }, [id, live, again]);

  async function older() {
    await doing.run(async () => {
      const p = await page(id, next);
      setList((old) => [...(old ?? []), ...p.items].slice(0, MOST));
      setNext(p.next_cursor);
    });
  }

  return (
    <Card title="History" class="d-last">
      <Trouble error={doing.error} retry={() => setAgain(again + 1)} what="The journal cannot be read." />
      {!list && !doing.error && <Loading lines={5} />}
      {list?.length === 0 && <Empty>The journal has nothing of this server any more.</Empty>}
      {list && list.length > 0 && (
        <ol class="d-history">
          {list.map((e) => (
            <Entry key={e.epoch + ":" + e.seq} e={e} />
          ))}
        </ol>
      )}
      {next && list && list.length < MOST && (
        <button type="button" class="button small" disabled={doing.busy} onClick={() => void older()}>
          {doing.busy ? "Reading…" : "Older entries"}
        </button>
      )}
    </Card>
  );
}

const page = (id: string, cursor?: string) => get<Page<Update>>(`servers/${seg(id)}/history`, { hours: 24 * 90, limit: PAGE, cursor });

function Entry({ e }: { e: Update }) {
  const a = entryAvailability(e);
  const st = e.current_status;
  return (
    <li>
      <span class="d-when">
        <At at={e.timestamp} />
      </span>
      {a ? <Glyph a={a} label /> : <span class="d-dot" aria-hidden="true" />}
      <span class="d-entry">
        <Long text={e.details || e.kind.replaceAll("_", " ")} />
        {st && (
          <code>
            {st.state}, {st.health}
          </code>
        )}
      </span>
      <span class="d-source">{sourceWords(e.source)}</span>
    </li>
  );
}
