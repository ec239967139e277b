package supabase

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/agentopia/statussync"
)

// Limits of what is taken in.
const (
	// MaxFrame is the largest inbound frame in bytes: the server's own limit. A larger one ends the connection.
	MaxFrame = 5 << 20
	// maxID is the longest primary key that is passed on; a longer one stands for "some row".
	maxID = 256
)

// Events and topics of the Phoenix channel protocol, and of Realtime on it.
const (
	eventJoin        = "phx_join"
	eventLeave       = "phx_leave"
	eventReply       = "phx_reply"
	eventError       = "phx_error"
	eventClose       = "phx_close"
	eventHeartbeat   = "heartbeat"
	eventSystem      = "system"
	eventAccessToken = "access_token"
	eventChanges     = "postgres_changes"

	topicPhoenix = "phoenix"
	// topicName is ours to choose: postgres_changes go to every channel that asks for them, whatever its name.
	topicName = "realtime:statussync"

	extensionChanges = "postgres_changes"
	statusOK         = "ok"
)

// message is a frame of version 2.0.0: [join_ref, ref, topic, event, payload]. Refs are "" where the frame has null.
type message struct {
	joinRef, ref, topic, event string
	payload                    json.RawMessage
	changes                    []statussync.RowChange // of a postgres_changes frame
}

// encodeFrame writes a frame; an empty ref becomes null.
func encodeFrame(joinRef, ref, topic, event string, payload any) ([]byte, error) {
	null := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode([]any{null(joinRef), null(ref), topic, event, payload}); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}

// decodeFrame reads a text frame. Its errors repeat nothing of the frame.
func decodeFrame(data []byte) (m message, err error) {
	var parts []json.RawMessage
	if !json.Valid(data) {
		return m, errors.New("a frame that is not JSON")
	}
	if err := json.Unmarshal(data, &parts); err != nil || len(parts) != 5 {
		return m, fmt.Errorf("a frame that is not [join_ref, ref, topic, event, payload]")
	}
	for i, to := range []*string{&m.joinRef, &m.ref, &m.topic, &m.event} {
		if parts[i] == nil || string(parts[i]) == "null" { // json leaves nil for null
			if i >= 2 {
				return m, fmt.Errorf("a frame without its topic or event")
			}
			continue
		}
		if err := json.Unmarshal(parts[i], to); err != nil {
			return m, fmt.Errorf("a frame whose element %d is not a string", i)
		}
	}
	m.payload = parts[4]
	return m, nil
}

// joinConfig is what phx_join asks for: no broadcasts, no presence, every change of our tables, unfiltered (which filters
// a server understands depends on its version).
func joinConfig(schema string, tables []string, token string) any {
	type wanted struct {
		Event  string `json:"event"`
		Schema string `json:"schema"`
		Table  string `json:"table"`
	}
	type broadcast struct {
		Ack  bool `json:"ack"`
		Self bool `json:"self"`
	}
	type presence struct {
		Key     string `json:"key"`
		Enabled bool   `json:"enabled"`
	}
	type config struct {
		Broadcast broadcast `json:"broadcast"`
		Presence  presence  `json:"presence"`
		Changes   []wanted  `json:"postgres_changes"`
		Private   bool      `json:"private"`
	}
	p := struct {
		Config config `json:"config"`
		Token  string `json:"access_token,omitempty"`
	}{Token: token}
	for _, t := range tables {
		p.Config.Changes = append(p.Config.Changes, wanted{Event: "*", Schema: schema, Table: t})
	}
	return p
}

// reply is the payload of phx_reply.
type reply struct {
	Status   string          `json:"status"`
	Response json.RawMessage `json:"response"`
}

// failure is what an error reply gives as its reason.
func (r reply) failure() string {
	var named struct {
		Reason  json.RawMessage `json:"reason"`
		Message string          `json:"message"`
	}
	if json.Unmarshal(r.Response, &named) != nil {
		return text(r.Response)
	}
	if s := text(named.Reason); s != "" {
		return s
	}
	return named.Message
}

// text is a JSON string's content, or the JSON itself where it is something else.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw[:min(len(raw), statussync.MaxErrorText)])
}

// system is the payload of a system message.
type system struct {
	Extension string          `json:"extension"`
	Status    string          `json:"status"`
	Message   json.RawMessage `json:"message"`
}

// changesOf makes hints of a postgres_changes payload. keys gives each followed table's primary key. Of what can't be
// understood nothing is lost: it stands for every row of its table, or of all tables where even that is not said.
//
// A row without its content (errors 413, 401, 400) is a hint like any other: nobody believes the content anyway.
func changesOf(payload json.RawMessage, schema string, keys map[string]string) []statussync.RowChange {
	var p struct {
		Data *struct {
			Schema    string          `json:"schema"`
			Table     string          `json:"table"`
			Type      string          `json:"type"`
			Record    json.RawMessage `json:"record"`
			OldRecord json.RawMessage `json:"old_record"`
		} `json:"data"`
	}
	if json.Unmarshal(payload, &p) != nil || p.Data == nil || p.Data.Table == "" {
		all := make([]statussync.RowChange, 0, len(keys))
		for t := range keys {
			all = append(all, statussync.RowChange{Table: t})
		}
		slices.SortFunc(all, func(a, b statussync.RowChange) int { return strings.Compare(a.Table, b.Table) })
		return all
	}
	d := p.Data
	key, ours := keys[d.Table]
	if !ours || d.Schema != "" && d.Schema != schema {
		return nil
	}
	now, before := identity(d.Record, key), identity(d.OldRecord, key)
	switch d.Type {
	case "INSERT":
		return []statussync.RowChange{{Table: d.Table, ID: now}}
	case "DELETE":
		// The receiver must not take "some row was deleted" for "the table is empty".
		return []statussync.RowChange{{Table: d.Table, ID: before, Deleted: before != ""}}
	case "UPDATE":
		if now == "" {
			return []statussync.RowChange{{Table: d.Table, ID: before}} // cut short: the key did not change, or is not known
		}
		c := []statussync.RowChange{{Table: d.Table, ID: now}}
		if before != "" && before != now { // the key itself was changed
			c = append(c, statussync.RowChange{Table: d.Table, ID: before, Deleted: true})
		}
		return c
	}
	return []statussync.RowChange{{Table: d.Table}}
}

// identity returns the column key of a record as text, "" where it has none that can serve as an id. The record is read
// as a stream, so that a hostile one of many columns costs no more memory than it is long.
func identity(record json.RawMessage, key string) string {
	if len(record) == 0 {
		return ""
	}
	d := json.NewDecoder(bytes.NewReader(record))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return ""
	}
	var found string
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return ""
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return ""
		}
		if name == key {
			found = idText(v)
		}
	}
	if _, err := d.Token(); err != nil && err != io.EOF {
		return ""
	}
	return found
}

func idText(v json.RawMessage) string {
	if len(v) == 0 || len(v) > maxID {
		return ""
	}
	switch c := v[0]; {
	case c == '"':
		var s string
		if json.Unmarshal(v, &s) != nil || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
			return "" // PostgreSQL takes no NUL, and no key of the platform has such characters
		}
		return s
	case c == '-' || c >= '0' && c <= '9':
		return string(v)
	}
	return ""
}
