// Light or dark: as the system has it, unless somebody chose. The choice is kept in this browser.
import { signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";

const KEY = "statussync.theme";

export const theme = signal<Theme>("auto");

export function startTheme() {
  try {
    const t = localStorage.getItem(KEY);
    if (t === "light" || t === "dark") theme.value = t;
  } catch {
    // a browser that keeps nothing
  }
  show();
}

export function setTheme(t: Theme) {
  theme.value = t;
  try {
    if (t === "auto") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, t);
  } catch {
    // not kept
  }
  show();
}

/** The style sheet's colours are light-dark() pairs: color-scheme chooses. */
function show() {
  const t = theme.peek();
  const root = document.documentElement;
  if (t === "auto") delete root.dataset.theme;
  else root.dataset.theme = t;
}
