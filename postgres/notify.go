package postgres

import (
	"encoding/json"

	"github.com/agentopia/statussync"
)

// Channel is the NOTIFY channel on which the triggers that Migrate installs tell of changed rows.
const Channel = "statussync"

// WriterSetting is the setting by which a transaction tells the triggers that it is our own write-back:
//
//	select set_config('statussync.writer', 'on', true)
//
// as its first statement. The triggers then don't tell of environments whose heartbeat moved; of rows whose other columns
// changed they tell as ever. It is a setting of the transaction and not of the connection, so that it works through a pooler
// in transaction mode, too.
//
// What the triggers tell of at all:
//   - account_tool_instances: a row with mcp_server_type that was inserted or deleted, or changed in a column that defines the
//     server or its record. A changed last_heartbeat_from_dtma, runtime_details or updated_at alone is never told: platforms
//     write these of every row every few seconds, and each transaction that notifies takes a lock that all such commits of the
//     whole database cluster share. Who wants them reads them with the environment, or every minute.
//   - account_tool_environments: a row that was inserted or deleted, or changed in a column that defines the environment; and,
//     unless WriterSetting is on, one whose last_heartbeat_at moved into another 10 s of the clock: its agent reports to
//     somebody else, and is known to live within 10 s. Its instances' own heartbeats were probably written beside it.
const WriterSetting = "statussync.writer"

// MaxNotification bounds what ParseNotification reads. PostgreSQL allows 7,999 bytes in the encoding of the database.
const MaxNotification = 32 << 10

// Operation is what a Notification says was done to rows.
type Operation string

// The operations.
const (
	OperationInsert Operation = "I"
	OperationUpdate Operation = "U"
	OperationDelete Operation = "D"
	// OperationAll: so much was changed, or something so unusual was done, that the whole table is to be read again.
	OperationAll Operation = "*"
)

// Notification is what one NOTIFY of our triggers tells. Like everything from a feed it is a hint to read rows again: an id
// that is told as updated and is not found is a row that is gone.
type Notification struct {
	Table     string // without its schema
	Operation Operation
	IDs       []string // none for OperationAll, else at least one
}

// ParseNotification reads the payload of a NOTIFY on Channel: {"t":table,"o":"I"|"U"|"D","ids":[…]} or {"t":table,"o":"*"}.
// Unknown keys are ignored. Every role that may connect can send on a channel: anything else is an Error with CodeInvalid,
// which shows nothing of the payload.
func ParseNotification(payload string) (Notification, error) {
	bad := func(why string) (Notification, error) {
		return Notification{}, statussync.Invalid("channel "+Channel, "a notification that no trigger of ours sends: "+why)
	}
	if len(payload) > MaxNotification {
		return bad("too long")
	}
	var p struct {
		T   string   `json:"t"`
		O   string   `json:"o"`
		IDs []string `json:"ids"`
	}
	if err := json.Unmarshal([]byte(payload), &p); err != nil {
		return bad("not the JSON object that it should be")
	}
	n := Notification{Table: p.T, Operation: Operation(p.O), IDs: p.IDs}
	if n.Table == "" {
		return bad("it names no table")
	}
	switch n.Operation {
	case OperationAll:
		n.IDs = nil
		return n, nil
	case OperationInsert, OperationUpdate, OperationDelete:
	default:
		return bad("it names no operation that we know")
	}
	if len(n.IDs) == 0 {
		return bad("it names no rows")
	}
	for _, id := range n.IDs {
		if id == "" {
			return bad("an id is empty")
		}
	}
	return n, nil
}

// Changes returns the notification as a ChangeFeed tells it: one change for each row, or one without an id.
func (n Notification) Changes() []statussync.RowChange {
	if n.Operation == OperationAll {
		return []statussync.RowChange{{Table: n.Table}}
	}
	out := make([]statussync.RowChange, len(n.IDs))
	for i, id := range n.IDs {
		out[i] = statussync.RowChange{Table: n.Table, ID: id, Deleted: n.Operation == OperationDelete}
	}
	return out
}
