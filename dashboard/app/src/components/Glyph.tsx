import { availabilityWords } from "../format";
import type { Availability } from "../types";

/** The letter or sign of an availability: colour is never the only way to tell. */
export const glyphs: Record<Availability, string> = {
  unavailable: "✕",
  limited: "!",
  changing: "…",
  unknown: "?",
  off: "–",
  available: "✓",
};

/** Glyph is the coloured sign of an availability. With label it is read out; otherwise words stand beside it. */
export function Glyph({ a, label = false }: { a: Availability; label?: boolean }) {
  return label ? (
    <span class={"glyph a-" + a} role="img" aria-label={availabilityWords[a]}>
      {glyphs[a]}
    </span>
  ) : (
    <span class={"glyph a-" + a} aria-hidden="true">
      {glyphs[a]}
    </span>
  );
}
