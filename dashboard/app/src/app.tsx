import { Lazy } from "./components/Lazy";
import { href, route } from "./router";
import { FleetView } from "./views/fleet/FleetView";

const serverView = () => import("./views/server");
const environmentView = () => import("./views/environment");

/** App chooses the view. */
export function App() {
  const r = route.value;
  return (
    <>
      <header class="topbar">
        <a class="brand" href={href("")}>
          statussync
        </a>
      </header>
      <main id="main">
        {r.view === "fleet" && <FleetView />}
        {r.view === "server" && <Lazy key={"s" + r.id} load={serverView} props={{ id: r.id }} />}
        {r.view === "environment" && <Lazy key={"e" + r.id} load={environmentView} props={{ id: r.id }} />}
        {r.view === "not_found" && (
          <div class="page empty">
            <h1>There is no such page</h1>
            <a href={href("")}>Back to the fleet</a>
          </div>
        )}
      </main>
    </>
  );
}
