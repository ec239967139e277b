// The subscription that feeds the page: the public WebSocket, by the project's own client.
import { Client, type Subscription, type SubscribeOptions } from "@statussync/client";
import { basePath } from "./router";

/** Every kind of entry that the page tells of. */
const kinds = [
  "status",
  "server_added",
  "server_changed",
  "server_removed",
  "environment_silent",
  "environment_back",
  "self_doubt",
  "tool_drift",
  "maintenance_begin",
  "maintenance_end",
];

/**
 * watchFleet subscribes to everything, beginning with a snapshot.
 *
 * Mode latest: what a screen can't show in time is merged by the service, so that neither a slow network nor a laptop
 * that slept for a night has a backlog to work off; on a fast link it tells every entry.
 */
export function watchFleet(o: Pick<SubscribeOptions, "onEvent" | "onState" | "onError">): Subscription {
  const client = new Client({ baseURL: location.origin + basePath() });
  return client.subscribe([{ kinds }], {
    ...o,
    snapshot: true,
    mode: "latest",
    backoffMinMs: 250,
    backoffMaxMs: 5_000,
    // A dead network closes nothing: within 8 s the page says that it is no longer live.
    pingAfterMs: 5_000,
    pongWithinMs: 3_000,
  });
}
