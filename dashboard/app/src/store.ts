// The live fleet as signals. Views read it; only this file writes it.
//
// servers holds one signal a server, so that an update renders what shows that server and nothing else. Updates are
// gathered and applied once an animation frame.
import { signal, type ReadonlySignal, type Signal } from "@preact/signals";
import type { Environment, Server, Update } from "./types";

/** How far what is shown can be trusted. */
export interface Connection {
  /** connecting: nothing was ever shown. live. reconnecting: what is shown is as of asOf. refused: see detail. */
  state: "connecting" | "live" | "reconnecting" | "refused";
  /** when the service last spoke, in ms of this machine's clock; 0 before */
  asOf: number;
  detail?: string;
}

/** connection is how the live feed is doing. */
export const connection: Signal<Connection> = signal({ state: "connecting", asOf: 0 });

/** servers has a signal for every server. Read membership first, where it matters who is in it. */
export const servers = new Map<string, Signal<Server>>();

/** membership counts the changes of who is in servers. */
export const membership = signal(0);

/** serverOf is the server with that id, and follows it; undefined while there is none. */
export function serverOf(id: string): Server | undefined {
  membership.value;
  return servers.get(id)?.value;
}

/** environments are the hosts, asked for every few seconds. */
export const environments: Signal<ReadonlyMap<string, Environment>> = signal(new Map());

/** now ticks once a second: the service's clock in ms, for ages. */
export const now: ReadonlySignal<number> = signal(Date.now());

const listeners = new Set<(e: Update) => void>();

/** onEntry calls f with every entry of the journal as it comes, until the answer is called. In mode latest versions skip. */
export function onEntry(f: (e: Update) => void): () => void {
  listeners.add(f);
  return () => listeners.delete(f);
}
