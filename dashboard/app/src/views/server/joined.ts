import type { Update } from "../../types";

/** MOST bounds the entries that are shown. */
export const MOST = 500;

/** joined puts the newest page before what is there already; where they don't meet, the page stands alone. */
export function joined(page: Update[], old: Update[] | undefined): Update[] {
  const last = page[page.length - 1];
  if (!old || !last) return page;
  const i = old.findIndex((e) => e.epoch === last.epoch && e.seq === last.seq);
  return i < 0 ? page : [...page, ...old.slice(i + 1)].slice(0, MOST);
}
