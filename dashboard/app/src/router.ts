// Routes by the History API, below the document's base: the service writes its base path into <base href>.
import { computed, signal } from "@preact/signals";

export type Route =
  | { view: "fleet" }
  | { view: "server"; id: string }
  | { view: "environment"; id: string }
  | { view: "not_found"; path: string };

/** parseRoute reads a path that is relative to the base, without a leading slash. */
export function parseRoute(path: string): Route {
  const parts = path.split("/");
  if (path === "") return { view: "fleet" };
  if (parts.length === 2 && parts[1] !== "") {
    const id = decode(parts[1]!);
    if (id !== undefined && parts[0] === "servers") return { view: "server", id };
    if (id !== undefined && parts[0] === "environments") return { view: "environment", id };
  }
  return { view: "not_found", path };
}

function decode(part: string): string | undefined {
  try {
    return decodeURIComponent(part);
  } catch {
    return undefined;
  }
}

/** basePath is the path of the document's base, with a slash at its end. */
export function basePath(): string {
  return (base ??= new URL(".", document.baseURI).pathname); // a page has one base for its life
}

let base: string | undefined;

/** href makes the address of a view. A search begins with "?". */
export function href(path: string, search = ""): string {
  return basePath() + path + search;
}

export const serverHref = (id: string) => href("servers/" + encodeURIComponent(id));
export const environmentHref = (id: string) => href("environments/" + encodeURIComponent(id));

const here = signal({ path: "", search: "" });

/** route is the view that is shown; search the part of the address after "?", with it. */
export const route = computed(() => parseRoute(here.value.path));
export const search = computed(() => here.value.search);

/** fleetSearch is the fleet view's last search, so that the way back to it keeps the filters. */
export const fleetSearch = signal("");

function read() {
  const base = basePath();
  const p = location.pathname;
  const path = p.startsWith(base) ? p.slice(base.length) : p + "/" === base ? "" : p;
  here.value = { path, search: location.search };
  if (parseRoute(path).view === "fleet") fleetSearch.value = location.search;
}

/** navigate goes to an address below the base; with replace, the present one is not kept in the history. */
export function navigate(to: string, replace = false) {
  if (to === location.pathname + location.search) return;
  if (replace) history.replaceState(history.state, "", to);
  else {
    history.replaceState({ ...history.state, scroll: scrollY }, "");
    history.pushState({}, "", to);
    scrollTo(0, 0);
  }
  read();
}

/** start follows the address and takes plain clicks on links to other views. */
export function startRouter() {
  history.scrollRestoration = "manual";
  read();
  addEventListener("popstate", (e) => {
    read();
    const y = (e.state as { scroll?: number } | null)?.scroll ?? 0;
    requestAnimationFrame(() => requestAnimationFrame(() => scrollTo(0, y)));
  });
  document.addEventListener("click", (e) => {
    if (e.defaultPrevented || e.button !== 0 || e.metaKey || e.ctrlKey || e.shiftKey || e.altKey) return;
    const a = (e.target as Element | null)?.closest?.("a");
    if (!a || a.target || a.hasAttribute("download") || a.origin !== location.origin) return;
    const base = basePath();
    if (!a.pathname.startsWith(base)) return;
    if (parseRoute(a.pathname.slice(base.length)).view === "not_found") return; // the API, its documents
    e.preventDefault();
    navigate(a.pathname + a.search);
  });
}
