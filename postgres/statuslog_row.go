package postgres

import (
	"encoding/binary"
	"encoding/json"
	"hash/fnv"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/agentopia/statussync"
)

// Bounds of text in a row, in bytes.
const (
	statusLogDetails = 2000
	statusLogError   = 2000
)

// StatusLogID is the id of an entry's row: the same entry always has the same, so a repeat inserts nothing. It is a UUID of
// version 8 (RFC 9562 §5.8): milliseconds of the timestamp, the low 42 bits of seq, 32 bits of a hash of the epoch. So the
// order of ids is the journal's, and rows are appended at the end of their index.
func StatusLogID(e *statussync.Entry) uuid.UUID {
	h := fnv.New32a()
	_, _ = h.Write([]byte(e.Epoch)) // never fails, as hash.Hash documents
	ms, seq := uint64(e.Timestamp.UnixMilli()), e.Seq&(1<<42-1)
	var u uuid.UUID
	binary.BigEndian.PutUint64(u[:8], ms<<16|8<<12|seq>>30)
	binary.BigEndian.PutUint64(u[8:], 2<<62|(seq&(1<<30-1))<<32|uint64(h.Sum32()))
	return u
}

// statusLogRow is a row of mcp_server_status_logs. A nil pointer is null.
type statusLogRow struct {
	id, server        string
	previous, current *string
	source, details   string
	latency, uptime   *int64
	at                string
}

// statusLogStatus has the keys that the platform's screens read, and after them those that say why.
type statusLogStatus struct {
	State       statussync.State  `json:"state"`
	Health      statussync.Health `json:"health"`
	Uptime      *int64            `json:"uptime"` // seconds
	LastStarted *string           `json:"lastStarted"`
	LastError   *string           `json:"lastError"`
	Reason      statussync.Reason `json:"reason,omitempty"`
	Cause       string            `json:"cause,omitempty"`
	Marks       []string          `json:"marks,omitempty"`
}

// statusLogText makes text that every PostgreSQL takes: valid UTF-8 without NUL, cut to a limit.
func statusLogText(s string, limit int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}

func statusLogJSON(s *statussync.Status, at time.Time) *string {
	if s == nil {
		return nil
	}
	v := statusLogStatus{
		State: s.State, Health: s.Health, Reason: s.Reason, Cause: statusLogText(s.Cause, statussync.MaxNameText), Marks: s.Marks.Strings(),
	}
	if up := s.UptimeSeconds(at); up >= 0 {
		v.Uptime = &up
	}
	if !s.LastStarted.IsZero() {
		t := s.LastStarted.UTC().Format(statussync.TimeFormat)
		v.LastStarted = &t
	}
	if s.LastError != "" {
		t := statusLogText(s.LastError, statusLogError)
		v.LastError = &t
	}
	b, err := json.Marshal(v)
	if err != nil { // strings and numbers always marshal
		panic(err)
	}
	text := string(b)
	return &text
}

// statusLogRowOf makes the row of an update.
func statusLogRowOf(e *statussync.Entry) statusLogRow {
	r := statusLogRow{
		id: StatusLogID(e).String(), server: e.ServerID, source: string(e.Source), details: statusLogText(e.Details, statusLogDetails),
		previous: statusLogJSON(e.Previous, e.Timestamp), current: statusLogJSON(e.Current, e.Timestamp),
		at: e.Timestamp.UTC().Format(statussync.TimeFormat),
	}
	if e.Current != nil {
		if up := e.Current.UptimeSeconds(e.Timestamp); up >= 0 {
			r.uptime = &up
		}
		// An entry that was read back from the store has no latency any more.
		if ms := e.Current.Latency.Milliseconds(); e.Source == statussync.SourceHeartbeat && e.Current.Latency > 0 && ms <= math.MaxInt32 {
			r.latency = &ms
		}
	}
	return r
}
