import { environments } from "../../store";

/** EnvironmentView shows one environment. It is loaded when it is first needed. */
export default function EnvironmentView({ id }: { id: string }) {
  const e = environments.value.get(id);
  return (
    <section class="page">
      <h1 class="page-title">{e?.name ?? id}</h1>
    </section>
  );
}
