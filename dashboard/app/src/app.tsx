import { signInNeeded } from "./api";
import { Banner } from "./components/Banner";
import { Help, helpOpen } from "./components/Help";
import { Lazy } from "./components/Lazy";
import { SignIn } from "./components/SignIn";
import { TopBar } from "./components/TopBar";
import { fleetSearch, href, navigate, route } from "./router";
import { connection } from "./store";
import { FleetView } from "./views/fleet/FleetView";

const serverView = () => import("./views/server");
const environmentView = () => import("./views/environment");

/** App chooses the view. */
export function App() {
  if (signInNeeded.value) return <SignIn />;
  const r = route.value;
  const stale = connection.value.state === "reconnecting" || connection.value.state === "refused";
  return (
    <>
      <TopBar />
      <Banner />
      <main id="main" tabIndex={-1} class={stale ? "stale" : ""}>
        {r.view === "fleet" && <FleetView />}
        {r.view === "server" && <Lazy key={"s" + r.id} load={serverView} props={{ id: r.id }} />}
        {r.view === "environment" && <Lazy key={"e" + r.id} load={environmentView} props={{ id: r.id }} />}
        {r.view === "not_found" && (
          <div class="page empty">
            <h1>There is no such page</h1>
            <p>
              <a href={href("")}>Back to the fleet</a>
            </p>
          </div>
        )}
      </main>
      <Help />
    </>
  );
}

// Keys that every view has. The fleet view has more.
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.defaultPrevented || signInNeeded.value) return;
  if (typing(e.target)) return;
  if (e.key === "?") {
    e.preventDefault();
    helpOpen.value = !helpOpen.value;
  } else if (e.key === "Escape" && !document.querySelector("dialog[open]") && route.value.view !== "fleet") {
    navigate(href("", fleetSearch.value));
  }
});

function typing(t: EventTarget | null): boolean {
  return t instanceof HTMLElement && (t.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(t.tagName));
}
