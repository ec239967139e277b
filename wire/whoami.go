package wire

// PathWhoami is where a credential is told what it is.
const PathWhoami = BasePath + "/whoami"

// Whoami is what a credential is and may use.
type Whoami struct {
	Name      string `json:"name" doc:"Stands as the actor in what it does."`
	Role      string `json:"role" enum:"viewer,operator,admin"`
	ExpiresAt Time   `json:"expires_at,omitzero" doc:"Of the token, or of the session where that ends before. Absent: never."`
	Session   bool   `json:"session,omitempty" doc:"It signed in, and is known by a cookie."`
	Limits    Limits `json:"limits"`
}

// Limits are what one credential may use.
type Limits struct {
	Connections          int `json:"connections" doc:"WebSockets and SSE streams open at once."`
	Subscriptions        int `json:"subscriptions" doc:"How many of them may have a subscription."`
	CommandsPerSecond    int `json:"commands_per_second" doc:"Calls that change something, and frames per WebSocket."`
	ReplayBytesPerSecond int `json:"replay_bytes_per_second" doc:"Bytes of stored entries and snapshots."`
	FilterIDs            int `json:"filter_ids" doc:"Values in one list of a filter."`
	FilterClauses        int `json:"filter_clauses" doc:"Clauses of a filter."`
}
