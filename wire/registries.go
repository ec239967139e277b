package wire

import "github.com/agentopia/statussync"

// Registry is how a database that defines servers is doing (docs/protocols.md §5).
type Registry struct {
	Name           string               `json:"name"`
	Kind           string               `json:"kind" enum:"postgres,supabase,sql"`
	Feed           statussync.FeedState `json:"feed" enum:"live,catching_up,polling,down" doc:"live: changes are told as they happen. polling: everything is read again and again. down: the database can't be reached; what was known of it stays in force."`
	Detail         string               `json:"detail,omitempty" doc:"Why it is not live, for people."`
	LagMS          float64              `json:"lag_ms" doc:"How long the newest changes waited from when the feed told of them until they were handed over."`
	Reconnects     uint64               `json:"reconnects" doc:"Since the start of the service."`
	LastSync       Time                 `json:"last_sync,omitzero" doc:"When everything was last read."`
	SyncDurationMS float64              `json:"sync_duration_ms,omitzero"`
	Servers        int                  `json:"servers"`
	Environments   int                  `json:"environments"`
	Faults         []RegistryFault      `json:"faults,omitempty" doc:"Rows that can't be used, or not in full; at most 20."`
	FaultsCount    int                  `json:"faults_count"`
	Missing        []string             `json:"missing,omitempty" doc:"Columns and rights that are missed; what needs them is left out."`
	WriteBack      *WriteBack           `json:"write_back,omitempty" doc:"Agents' reports on their way into the rows; absent where they are not written."`
	StatusLog      *StatusLog           `json:"status_log,omitempty" doc:"Updates on their way into mcp_server_status_logs; absent where they are not written."`
}

// RegistryFault is one row that can't be used.
type RegistryFault struct {
	Table  string `json:"table,omitempty"`
	ID     string `json:"id,omitempty"`
	Detail string `json:"detail"`
}

// WriteBack is how agents' reports get into the rows.
type WriteBack struct {
	Queued      int     `json:"queued" doc:"Rows that wait to be written; of each row only the newest."`
	OldestMS    float64 `json:"oldest_ms" doc:"How long the oldest of them has been waiting."`
	Rows        uint64  `json:"rows" doc:"Written since the start of the service."`
	RoundTrips  uint64  `json:"round_trips"`
	Failed      uint64  `json:"failed" doc:"Rows that the database refused."`
	Detail      string  `json:"detail,omitempty"`
	LastWritten Time    `json:"last_written,omitzero"`
}

// StatusLog is how updates get into mcp_server_status_logs.
type StatusLog struct {
	Cursor  string `json:"cursor,omitempty" doc:"Everything up to here is written."`
	Behind  uint64 `json:"behind" doc:"Entries of the journal that are still to be looked at."`
	Rows    uint64 `json:"rows" doc:"Written since the start of the service."`
	Skipped uint64 `json:"skipped" doc:"Updates of servers that the database does not have any more."`
	Failed  uint64 `json:"failed,omitzero" doc:"Updates that the database refused for what is in them."`
	Lost    uint64 `json:"lost,omitzero" doc:"Entries that the journal's retention deleted before they were written; at most so many updates are missing."`
	Deleted uint64 `json:"deleted,omitzero" doc:"Rows deleted because they were older than the retention."`
	Detail  string `json:"detail,omitempty"`
}

// Connections is the answer of GET /connections.
type Connections struct {
	AgentID string       `json:"agent_id"`
	Items   []Connection `json:"items" nullable:"false"`
	Cursor  string       `json:"cursor" doc:"The statuses are at least as new as this position: a stream of these server_ids that begins here misses nothing."`
}

// Connection is one connection of an agent to an MCP server, with how that is doing.
type Connection struct {
	ID           string           `json:"id"`
	ServerID     string           `json:"server_id"`
	ServerName   string           `json:"server_name,omitempty"`
	Active       bool             `json:"active" doc:"As the platform's row has it."`
	CreatedAt    Time             `json:"created_at,omitzero"`
	Status       ConnectionStatus `json:"status" enum:"connected,disconnected,error"`
	ServerStatus *Status          `json:"server_status,omitempty" doc:"Absent: no such server is known."`
}

// ConnectionStatus is how a connection is doing.
type ConnectionStatus string

// The statuses of a connection.
const (
	ConnectionConnected    ConnectionStatus = "connected"
	ConnectionDisconnected ConnectionStatus = "disconnected"
	ConnectionError        ConnectionStatus = "error"
)

// ConnectionStatusOf is how a connection to a server is doing; nil: no such server is known. One that is not active is
// disconnected whatever its server does. A server that can be used is connected, one that is broken an error; everything
// else (off, changing, not known) is disconnected.
func ConnectionStatusOf(active bool, s *statussync.Status) ConnectionStatus {
	if !active || s == nil {
		return ConnectionDisconnected
	}
	switch s.Availability() {
	case statussync.Available, statussync.Limited:
		return ConnectionConnected
	case statussync.Unavailable:
		return ConnectionError
	}
	return ConnectionDisconnected
}
