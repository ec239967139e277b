import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";

const loaded = new Map<unknown, ComponentType<never>>();

/** Lazy loads a view when it is first shown. */
export function Lazy<P extends object>({ load, props }: { load: () => Promise<{ default: ComponentType<P> }>; props: P }) {
  const [View, set] = useState<{ c: ComponentType<P> } | undefined>(() => {
    const c = loaded.get(load) as ComponentType<P> | undefined;
    return c && { c };
  });
  const [failed, fail] = useState(false);
  useEffect(() => {
    let gone = false;
    load().then(
      (m) => {
        loaded.set(load, m.default as ComponentType<never>);
        if (!gone) set({ c: m.default });
      },
      () => !gone && fail(true),
    );
    return () => {
      gone = true;
    };
  }, [load]);
  if (View) return <View.c {...props} />;
  if (!failed) return <p class="page muted" role="status">Loading…</p>;
  return (
    <div class="page empty" role="alert">
      <h1>This part of the page did not load</h1>
      <p>The service was renewed, or cannot be reached. Load the page again.</p>
      <button class="button" type="button" onClick={() => location.reload()}>
        Load again
      </button>
    </div>
  );
}
