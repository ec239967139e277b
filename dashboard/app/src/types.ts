// The shapes of the API are the client's (docs/protocols.md §4).
export type * from "@statussync/client/types";
