import { byServer, serverClock } from "../api";
import { at } from "../format";
import { connection, loaded, tryNow } from "../store";

/** Banner says that what is shown is not the present, and as of when it is. */
export function Banner() {
  const c = connection.value;
  if (c.state === "live") return null;
  if (c.state === "connecting" && !c.detail) return null;
  const asOf = c.asOf ? ", as of " + at(byServer(c.asOf), serverClock()) : "";
  return (
    <div class={"banner " + (c.state === "refused" ? "banner-bad" : "banner-warn")} role="status">
      <span class="banner-dot" aria-hidden="true" />
      {c.state === "refused" ? (
        <span>
          <strong>Not live{asOf}.</strong> {c.detail}
        </span>
      ) : loaded.value ? (
        <span>
          <strong>Reconnecting{asOf}.</strong> What you see is not the present.
        </span>
      ) : (
        <span>
          <strong>The service does not answer.</strong> Trying again.
        </span>
      )}
      <button class="button small" type="button" onClick={tryNow}>
        Try now
      </button>
    </div>
  );
}
