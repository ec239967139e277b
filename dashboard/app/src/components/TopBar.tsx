import { byServer, me, serverClock, signOut } from "../api";
import { at as near, clock } from "../format";
import { fleetSearch, href, route } from "../router";
import { connection, forget, now } from "../store";
import { setTheme, theme, type Theme } from "../theme";
import { helpOpen } from "./Help";

/** TopBar is on every view: the way home, whether the page is live, and the page's own switches. */
export function TopBar() {
  return (
    <header class="topbar">
      <a class="skip" href="#main" onClick={skip}>
        Skip to the content
      </a>
      <a class="brand" href={href("", route.value.view === "fleet" ? "" : fleetSearch.value)} aria-label="statussync, the fleet">
        <span class="brand-mark" aria-hidden="true" />
        <span class="brand-word">statussync</span>
      </a>
      <Live />
      <span class="spacer" />
      <ThemeSwitch />
      <button class="icon-button" type="button" aria-label="Keyboard shortcuts" title="Keyboard shortcuts (?)" onClick={() => (helpOpen.value = true)}>
        ?
      </button>
      <User />
    </header>
  );
}

function skip(e: Event) {
  e.preventDefault();
  const main = document.getElementById("main");
  main?.focus();
  main?.scrollIntoView();
}

function Live() {
  const c = connection.value;
  const words = { connecting: "Connecting", live: "Live", reconnecting: "Reconnecting", refused: "Not live" }[c.state];
  const at = c.state === "live" ? clock(now.value) : c.asOf ? "as of " + near(byServer(c.asOf), serverClock()) : "";
  return (
    <span class={"live live-" + c.state}>
      <span class="live-dot" aria-hidden="true" />
      {words}
      {at && <span class="live-at num">{at}</span>}
    </span>
  );
}

const themes: Theme[] = ["auto", "light", "dark"];
const themeWords = { auto: "as the system", light: "light", dark: "dark" };
const themeSigns = { auto: "◐", light: "☀", dark: "☾" };

function ThemeSwitch() {
  const t = theme.value;
  const next = themes[(themes.indexOf(t) + 1) % themes.length]!;
  return (
    <button
      class="icon-button"
      type="button"
      aria-label={`Colours: ${themeWords[t]}. Change to ${themeWords[next]}`}
      title={`Colours: ${themeWords[t]}`}
      onClick={() => setTheme(next)}
    >
      <span aria-hidden="true">{themeSigns[t]}</span>
    </button>
  );
}

function User() {
  const w = me.value;
  if (!w) return null;
  return (
    <span class="user">
      <span class="user-name" title={`${w.name}, ${w.role}`}>
        <bdi>{w.name}</bdi> <span class="muted">{w.role}</span>
      </span>
      {w.session && (
        <button
          class="button small"
          type="button"
          onClick={() => {
            signOut().then(forget, () => {});
          }}
        >
          Sign out
        </button>
      )}
    </span>
  );
}
