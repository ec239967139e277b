package wire

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/agentopia/statussync"
)

// Channel is the one channel that a client can subscribe to.
const Channel = "mcp_server_status"

// FrameType is a frame's "type". That of an entry is FrameOf(its kind).
type FrameType string

// The frames that the service sends.
const (
	FrameSubscribed   FrameType = "subscribed"
	FrameSnapshot     FrameType = "snapshot"
	FrameSnapshotEnd  FrameType = "snapshot_end"
	FrameStatusUpdate FrameType = "status_update"
	FrameBookmark     FrameType = "bookmark"
	FrameResync       FrameType = "resync"
	FramePong         FrameType = "pong"
	FrameAuthOK       FrameType = "auth_ok"
	FrameUnsubscribed FrameType = "unsubscribed"
	FrameError        FrameType = "error"
)

// FrameOf is the type of the frame, and of the SSE event, that carries entries of kind k.
func FrameOf(k statussync.Kind) FrameType {
	if k == statussync.KindStatus {
		return FrameStatusUpdate
	}
	return FrameType(k)
}

// Close codes of the WebSocket (docs/protocols.md §2).
const (
	CloseTokenExpired = 4001
	CloseTooSlow      = 4008 // a write was blocked, or a ping not answered, for too long
	CloseDraining     = 4011
	CloseRate         = 4029
	CloseUnauthorized = 4500
	CloseBadRequest   = 4501
	CloseForbidden    = 4503
	CloseLimit        = 4504
)

// Reconnect reports whether a client should connect again after a close with this code: 4500 to 4999 would only meet
// the same refusal; everything else, a lost connection among it, is worth another try after a pause.
func Reconnect(code int) bool { return code < 4500 || code > 4999 }

// AppendEvent appends the frame of an event. id is what the subscribe frame gave, to be echoed. Entries are not encoded
// again: their one JSON stands in the frame as it is, so the frame is byte-identical for all subscribers.
func AppendEvent(b []byte, id string, e *statussync.Event) []byte {
	switch e.Type {
	case statussync.EventEntry:
		return AppendEntry(b, e.Entry.Kind, e.Cursor, e.JSON)
	case statussync.EventSubscribed:
		b = append(b, `{"type":"subscribed"`...)
		if id != "" {
			b = append(b, `,"id":`...)
			b = statussync.AppendJSONString(b, id)
		}
		b = append(b, ',')
	default:
		b = append(b, `{"type":`...)
		b = statussync.AppendJSONString(b, string(e.Type))
		b = append(b, ',')
	}
	return append(appendFields(b, e), '}')
}

// AppendEventData appends the "data" of an SSE event: an entry's JSON, and of the other events the members of their
// frame but its type.
func AppendEventData(b []byte, e *statussync.Event) []byte {
	if e.Type == statussync.EventEntry {
		return append(b, e.JSON...)
	}
	return append(appendFields(append(b, '{'), e), '}')
}

// appendFields appends the members of every event but an entry; there is at least one.
func appendFields(b []byte, e *statussync.Event) []byte {
	switch e.Type {
	case statussync.EventSubscribed:
		b = appendCursor(b, e.Cursor)
		b = append(b, `,"recovered":`...)
		b = strconv.AppendBool(b, e.Recovered)
		b = append(b, `,"durable":`...)
		b = strconv.AppendBool(b, e.Durable)
	case statussync.EventSnapshot:
		b = append(b, `"items":`...)
		items, err := json.Marshal(FromServers(e.Items))
		if err != nil {
			// Only Capabilities can hold what JSON can't (they come from JSON or YAML; .nan is possible there).
			items = snapshotWithout(e.Items)
		}
		b = append(b, items...)
		b = append(b, `,"more":`...)
		b = strconv.AppendBool(b, e.More)
	case statussync.EventSnapshotEnd:
		b = appendCursor(b, e.Cursor)
	case statussync.EventResync:
		b = append(b, `"reason":`...)
		b = statussync.AppendJSONString(b, string(e.Reason))
	}
	return b
}

// snapshotWithout marshals items without those capabilities that JSON has no form for.
func snapshotWithout(views []statussync.ServerView) []byte {
	items := FromServers(views)
	for i := range items {
		if _, err := json.Marshal(items[i].Capabilities); err != nil {
			items[i].Capabilities = nil
		}
	}
	b, err := json.Marshal(items)
	if err != nil { // nothing else in a Server can fail
		panic(err)
	}
	return b
}

func appendCursor(b []byte, c statussync.Cursor) []byte {
	b = append(b, `"cursor":"`...)
	b = AppendCursor(b, c)
	return append(b, '"')
}

// AppendCursor appends c as Cursor.String has it.
func AppendCursor(b []byte, c statussync.Cursor) []byte {
	if c.IsZero() {
		return b
	}
	b = append(b, c.Epoch...)
	b = append(b, ':')
	return strconv.AppendUint(b, c.Seq, 10)
}

// AppendEntry appends the frame of an entry: {"type":…,"cursor":"e7:58","data":…} around its JSON.
func AppendEntry(b []byte, k statussync.Kind, at statussync.Cursor, data []byte) []byte {
	b = append(b, `{"type":`...)
	b = statussync.AppendJSONString(b, string(FrameOf(k)))
	b = append(b, ',')
	b = appendCursor(b, at)
	b = append(b, `,"data":`...)
	b = append(b, data...)
	return append(b, '}')
}

// AppendBookmark appends a bookmark: everything up to at was considered; sent entries went over this connection.
func AppendBookmark(b []byte, at statussync.Cursor, sent uint64) []byte {
	b = append(b, `{"type":"bookmark",`...)
	b = appendCursor(b, at)
	b = append(b, `,"sent":`...)
	b = strconv.AppendUint(b, sent, 10)
	return append(b, '}')
}

// AppendPong appends the answer to a ping frame, with the newest position where there is one.
func AppendPong(b []byte, at statussync.Cursor) []byte {
	b = append(b, `{"type":"pong"`...)
	if !at.IsZero() {
		b = append(b, ',')
		b = appendCursor(b, at)
	}
	return append(b, '}')
}

// AppendAuthOK appends the answer to an auth frame; a zero time is a credential that does not expire.
func AppendAuthOK(b []byte, expires time.Time) []byte {
	b = append(b, `{"type":"auth_ok"`...)
	if !expires.IsZero() {
		b = append(b, `,"expires_at":`...)
		b = statussync.AppendTime(b, expires)
	}
	return append(b, '}')
}

// AppendUnsubscribed appends the answer to an unsubscribe frame.
func AppendUnsubscribed(b []byte) []byte { return append(b, `{"type":"unsubscribed"}`...) }

// AppendError appends an error frame about the frame with this id ("" where there is none). What can be shown of err is
// shown; an error that is not a *statussync.Error becomes "internal". Errors with CodeUnavailable and CodeRateLimited
// are retryable.
func AppendError(b []byte, id string, err error) []byte {
	code, detail := statussync.CodeOf(err), Detail(err)
	b = append(b, `{"type":"error"`...)
	if id != "" {
		b = append(b, `,"id":`...)
		b = statussync.AppendJSONString(b, id)
	}
	b = append(b, `,"code":`...)
	b = statussync.AppendJSONString(b, string(code))
	b = append(b, `,"detail":`...)
	b = statussync.AppendJSONString(b, detail)
	b = append(b, `,"retryable":`...)
	b = strconv.AppendBool(b, code == statussync.CodeUnavailable || code == statussync.CodeRateLimited)
	return append(b, '}')
}

// AppendLegacyUpdate appends a status entry as clients of the original design read it, and reports whether e is one:
// the others have no form there. Old and new status have our keys and, beside them, those that the original's screens
// read: uptime (seconds), lastStarted, lastError.
func AppendLegacyUpdate(b []byte, e *statussync.Entry) ([]byte, bool) {
	if e.Kind != statussync.KindStatus || e.Previous == nil || e.Current == nil {
		return b, false
	}
	b = append(b, `{"type":"status_update","data":{"server_id":`...)
	b = statussync.AppendJSONString(b, e.ServerID)
	b = append(b, `,"old_status":`...)
	b = appendLegacyStatus(b, e.Previous, e.Timestamp)
	b = append(b, `,"new_status":`...)
	b = appendLegacyStatus(b, e.Current, e.Timestamp)
	b = append(b, `,"timestamp":`...)
	b = statussync.AppendTime(b, e.Timestamp)
	b = append(b, `,"source":`...)
	b = statussync.AppendJSONString(b, string(e.Source))
	b = append(b, `,"details":`...)
	b = statussync.AppendJSONString(b, e.Details)
	return append(b, '}', '}'), true
}

type legacyStatus struct {
	UpdateStatus
	Uptime      *int64 `json:"uptime,omitempty"`
	LastStarted Time   `json:"lastStarted,omitzero"`
	LastError   string `json:"lastError,omitempty"`
}

func appendLegacyStatus(b []byte, s *statussync.Status, at time.Time) []byte {
	l := legacyStatus{
		UpdateStatus: UpdateStatus{
			State: s.State, Health: s.Health, Reason: s.Reason, Cause: s.Cause, Marks: s.Marks.Strings(), Since: Time{s.Since},
			LastError: s.LastError, LastStarted: Time{s.LastStarted},
		},
		LastStarted: Time{s.LastStarted}, LastError: s.LastError,
	}
	if up := s.UptimeSeconds(at); up >= 0 {
		l.UptimeSeconds, l.Uptime = &up, &up
	}
	j, err := json.Marshal(&l)
	if err != nil { // strings, times and numbers always marshal
		panic(err)
	}
	return append(b, j...)
}

// Detail is what may be shown of an error: location and detail of a *statussync.Error, and of others only that it was
// an internal one.
func Detail(err error) string {
	e, ok := asError(err)
	if !ok || e.Code == statussync.CodeInternal {
		return "internal error"
	}
	d := e.Detail
	if d == "" {
		d = string(e.Code)
	}
	if e.Location != "" {
		d = e.Location + ": " + d
	}
	return d
}

// ServerFrame is any frame of the service as a client reads it; which members are set depends on Type. Its slices are
// its own.
type ServerFrame struct {
	Type      FrameType               `json:"type"`
	ID        string                  `json:"id,omitempty"`
	Cursor    statussync.Cursor       `json:"cursor,omitzero"`
	Recovered bool                    `json:"recovered,omitempty"`
	Durable   bool                    `json:"durable,omitempty"`
	Items     []Server                `json:"items,omitempty"`
	More      bool                    `json:"more,omitempty"`
	Data      json.RawMessage         `json:"data,omitempty"`
	Sent      uint64                  `json:"sent,omitempty"`
	Reason    statussync.ResyncReason `json:"reason,omitempty"`
	ExpiresAt time.Time               `json:"expires_at,omitzero"`
	Code      statussync.Code         `json:"code,omitempty"`
	Detail    string                  `json:"detail,omitempty"`
	Retryable bool                    `json:"retryable,omitempty"`
}

// DecodeServerFrame reads a WebSocket frame of the service. Keys and types that it does not know are no error.
func DecodeServerFrame(b []byte) (*ServerFrame, error) {
	var f ServerFrame
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("frame of the service: %w", err)
	}
	if f.Type == "" {
		return nil, statussync.Invalid("type", "is missing in a frame of the service")
	}
	return &f, nil
}

// DecodeServerEvent reads an SSE event as the frame that it stands for: event and id are the event's fields of that
// name. A block that has only an id is a bookmark, whose Sent is not known.
func DecodeServerEvent(event, id string, data []byte) (*ServerFrame, error) {
	f := &ServerFrame{}
	if event == "" && len(data) == 0 {
		f.Type = FrameBookmark
	} else {
		switch FrameType(event) {
		case FrameSubscribed, FrameSnapshot, FrameSnapshotEnd, FrameResync, FrameError:
			if err := json.Unmarshal(data, f); err != nil {
				return nil, fmt.Errorf("event %s of the service: %w", event, err)
			}
		default:
			if !json.Valid(data) {
				return nil, statussync.Invalid("data", "of an event of the service is no JSON")
			}
			f.Data = append(f.Data, data...)
		}
		f.Type = FrameType(event)
	}
	if id != "" {
		c, err := statussync.ParseCursor(id)
		if err != nil {
			return nil, err
		}
		f.Cursor = c
	}
	return f, nil
}

// Entry decodes the entry of a frame that carries one: Data is set on no other.
func (f *ServerFrame) Entry() (*statussync.Entry, error) {
	if len(f.Data) == 0 {
		return nil, statussync.Invalid("data", "a "+string(f.Type)+" frame carries no entry")
	}
	e := new(statussync.Entry)
	if err := e.UnmarshalJSON(f.Data); err != nil {
		return nil, err
	}
	return e, nil
}
