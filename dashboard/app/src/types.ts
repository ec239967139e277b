// The shapes of the API are the client's (docs/protocols.md §4).
export type * from "@statussync/client/types";
import type { Whoami as ClientWhoami } from "@statussync/client/types";

/** Whoami is the credential of the page. With session it is a cookie, which a sign-out ends. */
export type Whoami = ClientWhoami & { session?: boolean };
