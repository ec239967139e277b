import { environmentHref } from "../../router";
import { servers } from "../../store";

/** ServerView shows one server. It is loaded when it is first needed. */
export default function ServerView({ id }: { id: string }) {
  const s = servers.get(id)?.value;
  return (
    <section class="page">
      <h1 class="page-title">{s?.name ?? id}</h1>
      {s?.environment_id && <a href={environmentHref(s.environment_id)}>{s.environment_id}</a>}
    </section>
  );
}
