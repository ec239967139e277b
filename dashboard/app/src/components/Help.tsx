import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

/** helpOpen shows the list of keys. */
export const helpOpen = signal(false);

const keys: [string[], string][] = [
  [["/"], "Search"],
  [["j"], "Next server"],
  [["k"], "Previous server"],
  [["Enter"], "Open it"],
  [["Esc"], "Back to the fleet; in the search: clear it, then leave it"],
  [["?"], "This list"],
];

/** Help is a dialog with the page's keys. */
export function Help() {
  const ref = useRef<HTMLDialogElement>(null);
  const open = helpOpen.value;
  useEffect(() => {
    const d = ref.current;
    if (open && d && !d.open) d.showModal();
    if (!open && d?.open) d.close();
  }, [open]);
  return (
    <dialog ref={ref} class="dialog" aria-labelledby="help-title" onClose={() => (helpOpen.value = false)}>
      <h2 id="help-title">Keyboard</h2>
      <dl class="keys">
        {keys.map(([k, words]) => (
          <div key={words}>
            <dt>
              {k.map((x) => (
                <kbd key={x}>{x}</kbd>
              ))}
            </dt>
            <dd>{words}</dd>
          </div>
        ))}
      </dl>
      <h2>Signs</h2>
      <ul class="legend">
        <li><span class="glyph a-unavailable" aria-hidden="true">✕</span> Unavailable: does not serve</li>
        <li><span class="glyph a-limited" aria-hidden="true">!</span> Limited: serves, but not well</li>
        <li><span class="glyph a-changing" aria-hidden="true">…</span> Changing: starts or stops</li>
        <li><span class="glyph a-unknown" aria-hidden="true">?</span> Unknown: too little is known</li>
        <li><span class="glyph a-off" aria-hidden="true">–</span> Off: stopped, as wanted</li>
        <li><span class="glyph a-available" aria-hidden="true">✓</span> Available</li>
      </ul>
      <form method="dialog">
        <button class="button" type="submit">
          Close
        </button>
      </form>
    </dialog>
  );
}
