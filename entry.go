package statussync

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// Kind is what an entry of the journal is about.
type Kind string

// The kinds of entries.
const (
	KindStatus            Kind = "status" // an update: one change of one server's status
	KindServerAdded       Kind = "server_added"
	KindServerChanged     Kind = "server_changed"
	KindServerRemoved     Kind = "server_removed"
	KindEnvironmentSilent Kind = "environment_silent" // a host was lost; ServerIDs lists who fell with it
	KindEnvironmentBack   Kind = "environment_back"
	KindSelfDoubt         Kind = "self_doubt"        // so much fails at once that it may be us
	KindToolDrift         Kind = "tool_drift"        // a server lists other tools than before
	KindMaintenanceBegin  Kind = "maintenance_begin" // a window opened; ServerIDs lists whom it selects
	KindMaintenanceEnd    Kind = "maintenance_end"
)

// Kinds lists every Kind that an entry can have today.
var Kinds = []Kind{
	KindStatus, KindServerAdded, KindServerChanged, KindServerRemoved,
	KindEnvironmentSilent, KindEnvironmentBack, KindSelfDoubt, KindToolDrift,
	KindMaintenanceBegin, KindMaintenanceEnd,
}

// EventSource says whose doing an entry is.
type EventSource string

// The event sources.
const (
	SourceDTMA      EventSource = "dtma"      // an agent's report or a database row
	SourceHeartbeat EventSource = "heartbeat" // our own probe
	SourceManual    EventSource = "manual"    // a person
	SourceSystem    EventSource = "system"    // time, restart, registry
)

// Entry is one event in the journal. An Entry that was appended is never changed.
type Entry struct {
	Seq       uint64
	Epoch     Epoch
	Kind      Kind
	Timestamp time.Time // engine time, kept to the millisecond
	Source    EventSource
	Details   string // one sentence for people; untrusted text may be part of it

	ServerID      string   // empty for entries about an environment or the service
	EnvironmentID string   // empty where there is none
	ServerIDs     []string // environment_silent, environment_back, self_doubt: who is meant; maintenance: the first MaxEntryServers
	MaintenanceID string   // maintenance_begin, maintenance_end: the window
	Version       uint64   // of the server's status; status and server_removed take the next one

	// Previous and Current are set for KindStatus; Previous alone for KindServerRemoved. Of a Status an entry keeps
	// state, health, reason, cause, marks, since, last_error and last_started.
	Previous *Status
	Current  *Status
	Changes  []string // KindStatus: which of state, health, reason, marks; KindServerChanged: which fields

	Tools *ToolDrift // KindToolDrift: what differs

	// Labels are the server's labels at that time. Filters need them; they are no part of the JSON.
	Labels map[string]string
}

// MaxEntryServers bounds the servers that the entry of a maintenance window lists; its details have their number.
const MaxEntryServers = 1000

// Cursor is the position of e.
func (e *Entry) Cursor() Cursor { return Cursor{Epoch: e.Epoch, Seq: e.Seq} }

// StatusChanges lists which of state, health, reason and marks differ, in that order.
func StatusChanges(prev, cur *Status) []string {
	c := make([]string, 0, 4)
	if prev.State != cur.State {
		c = append(c, "state")
	}
	if prev.Health != cur.Health {
		c = append(c, "health")
	}
	if prev.Reason != cur.Reason {
		c = append(c, "reason")
	}
	if prev.Marks != cur.Marks {
		c = append(c, "marks")
	}
	return c
}

// TimeFormat is how times are written on every wire: RFC 3339, UTC, milliseconds.
const TimeFormat = "2006-01-02T15:04:05.000Z"

// AppendTime appends t in TimeFormat, with quotes.
func AppendTime(b []byte, t time.Time) []byte {
	b = append(b, '"')
	b = t.UTC().AppendFormat(b, TimeFormat)
	return append(b, '"')
}

// AppendJSONString appends s as a JSON string. HTML-significant characters are escaped.
func AppendJSONString(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			q, err := json.Marshal(s)
			if err != nil { // a string always marshals
				panic(err)
			}
			return append(b, q...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// AppendJSON appends the entry as every wire and the journal have it (docs/protocols.md §4, Update). It is the one
// encoding: frames and stored rows hold these bytes.
func (e *Entry) AppendJSON(b []byte) []byte {
	b = append(b, `{"seq":`...)
	b = strconv.AppendUint(b, e.Seq, 10)
	b = append(b, `,"epoch":`...)
	b = AppendJSONString(b, string(e.Epoch))
	b = append(b, `,"kind":`...)
	b = AppendJSONString(b, string(e.Kind))
	if e.ServerID != "" {
		b = append(b, `,"server_id":`...)
		b = AppendJSONString(b, e.ServerID)
	}
	if e.EnvironmentID != "" {
		b = append(b, `,"environment_id":`...)
		b = AppendJSONString(b, e.EnvironmentID)
	}
	if e.ServerIDs != nil {
		b = append(b, `,"server_ids":`...)
		b = appendStrings(b, e.ServerIDs)
	}
	if e.MaintenanceID != "" {
		b = append(b, `,"maintenance_id":`...)
		b = AppendJSONString(b, e.MaintenanceID)
	}
	if e.Version != 0 {
		b = append(b, `,"version":`...)
		b = strconv.AppendUint(b, e.Version, 10)
	}
	if e.Previous != nil {
		b = append(b, `,"previous_status":`...)
		b = appendEntryStatus(b, e.Previous, e.Timestamp)
	}
	if e.Current != nil {
		b = append(b, `,"current_status":`...)
		b = appendEntryStatus(b, e.Current, e.Timestamp)
	}
	b = append(b, `,"timestamp":`...)
	b = AppendTime(b, e.Timestamp)
	b = append(b, `,"source":`...)
	b = AppendJSONString(b, string(e.Source))
	b = append(b, `,"details":`...)
	b = AppendJSONString(b, e.Details)
	if e.Changes != nil {
		b = append(b, `,"changes":`...)
		b = appendStrings(b, e.Changes)
	}
	if e.Tools != nil {
		b = append(b, `,"tools":`...)
		t, err := json.Marshal(e.Tools)
		if err != nil { // strings and numbers always marshal
			panic(err)
		}
		b = append(b, t...)
	}
	return append(b, '}')
}

func appendStrings(b []byte, list []string) []byte {
	b = append(b, '[')
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = AppendJSONString(b, s)
	}
	return append(b, ']')
}

func appendEntryStatus(b []byte, s *Status, at time.Time) []byte {
	b = append(b, `{"state":`...)
	b = AppendJSONString(b, string(s.State))
	b = append(b, `,"health":`...)
	b = AppendJSONString(b, string(s.Health))
	b = append(b, `,"reason":`...)
	b = AppendJSONString(b, string(s.Reason))
	if s.Cause != "" {
		b = append(b, `,"cause":`...)
		b = AppendJSONString(b, s.Cause)
	}
	b = append(b, `,"marks":[`...)
	first := true
	for _, n := range markNames {
		if s.Marks&n.m != 0 {
			if !first {
				b = append(b, ',')
			}
			first = false
			b = AppendJSONString(b, n.name)
		}
	}
	b = append(b, ']')
	if !s.Since.IsZero() {
		b = append(b, `,"since":`...)
		b = AppendTime(b, s.Since)
	}
	if s.LastError != "" {
		b = append(b, `,"last_error":`...)
		b = AppendJSONString(b, s.LastError)
	}
	if !s.LastStarted.IsZero() {
		b = append(b, `,"last_started":`...)
		b = AppendTime(b, s.LastStarted)
	}
	if up := s.UptimeSeconds(at); up >= 0 {
		b = append(b, `,"uptime_seconds":`...)
		b = strconv.AppendInt(b, up, 10)
	}
	return append(b, '}')
}

// MarshalJSON returns what AppendJSON appends.
func (e *Entry) MarshalJSON() ([]byte, error) { return e.AppendJSON(nil), nil }

type entryJSON struct {
	Seq           uint64       `json:"seq"`
	Epoch         Epoch        `json:"epoch"`
	Kind          Kind         `json:"kind"`
	ServerID      string       `json:"server_id"`
	EnvironmentID string       `json:"environment_id"`
	ServerIDs     []string     `json:"server_ids"`
	MaintenanceID string       `json:"maintenance_id"`
	Version       uint64       `json:"version"`
	Previous      *entryStatus `json:"previous_status"`
	Current       *entryStatus `json:"current_status"`
	Timestamp     time.Time    `json:"timestamp"`
	Source        EventSource  `json:"source"`
	Details       string       `json:"details"`
	Changes       []string     `json:"changes"`
	Tools         *ToolDrift   `json:"tools"`
}

type entryStatus struct {
	State       State     `json:"state"`
	Health      Health    `json:"health"`
	Reason      Reason    `json:"reason"`
	Cause       string    `json:"cause"`
	Marks       []string  `json:"marks"`
	Since       time.Time `json:"since"`
	LastError   string    `json:"last_error"`
	LastStarted time.Time `json:"last_started"`
}

func (s *entryStatus) status() *Status {
	if s == nil {
		return nil
	}
	return &Status{
		State: s.State, Health: s.Health, Reason: s.Reason, Cause: s.Cause, Marks: ParseMarks(s.Marks),
		Since: s.Since, LastError: s.LastError, LastStarted: s.LastStarted,
	}
}

// UnmarshalJSON reads what AppendJSON wrote; unknown keys are ignored, so that an older client survives a newer
// service. Labels are not part of the JSON and stay nil.
func (e *Entry) UnmarshalJSON(b []byte) error {
	var j entryJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return fmt.Errorf("entry: %w", err)
	}
	*e = Entry{
		Seq: j.Seq, Epoch: j.Epoch, Kind: j.Kind, ServerID: j.ServerID, EnvironmentID: j.EnvironmentID,
		ServerIDs: j.ServerIDs, MaintenanceID: j.MaintenanceID, Version: j.Version, Previous: j.Previous.status(), Current: j.Current.status(),
		Timestamp: j.Timestamp, Source: j.Source, Details: j.Details, Changes: j.Changes, Tools: j.Tools,
	}
	return nil
}
