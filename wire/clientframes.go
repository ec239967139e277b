package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strconv"

	"github.com/agentopia/statussync"
)

// MaxClientFrame bounds what a client may send in one frame, in bytes.
const MaxClientFrame = 64 << 10

// maxFrameID bounds the id of a frame: it is echoed.
const maxFrameID = 128

// ClientType is the type of a frame that a client sends.
type ClientType string

// The frames that a client sends. ClientPublish is only known on the original design's path, where it is refused.
const (
	ClientSubscribe   ClientType = "subscribe"
	ClientUnsubscribe ClientType = "unsubscribe"
	ClientPing        ClientType = "ping"
	ClientAuth        ClientType = "auth"
	ClientPublish     ClientType = "publish"
)

// ClientFrame is a frame of a client. Type and Channel are required in a subscribe, Type and Token in an auth; every
// other member may be absent, and must be where it has no meaning.
type ClientFrame struct {
	Type     ClientType          `json:"type"`
	Channel  string              `json:"channel,omitempty"`
	ID       string              `json:"id,omitempty"` // echoed
	Cursor   statussync.Cursor   `json:"cursor,omitzero"`
	Snapshot bool                `json:"snapshot,omitempty"`
	Mode     statussync.Mode     `json:"mode,omitempty"`
	Leave    bool                `json:"leave,omitempty"`
	Filters  []statussync.Clause `json:"filters,omitempty"`
	Token    string              `json:"token,omitempty"`
}

// Request is what a subscribe frame asks the hub for.
func (f *ClientFrame) Request() statussync.SubscribeRequest {
	return statussync.SubscribeRequest{
		Filter: statussync.Filter{Clauses: f.Filters, Leave: f.Leave || f.Snapshot || f.Mode == statussync.ModeLatest},
		Cursor: f.Cursor, Snapshot: f.Snapshot, Mode: f.Mode,
	}
}

// DecodeClientFrame reads a frame of /api/v1/ws. Everything in it must be known: an unknown type, key or word, a value
// of the wrong kind, or a key twice is an error with CodeInvalid that names it. On an error the frame is returned as far
// as it could be read, so that its ID can be echoed; it is never nil.
func DecodeClientFrame(b []byte) (*ClientFrame, error) { return decodeClient(b, false) }

// DecodeLegacyFrame reads a frame of /ws/mcp-status, the path of the original design's clients. Unlike on the other
// path, keys that are not known are ignored, filters that are no list (theirs is an object that names a database table)
// mean everything, and "publish" is a known type.
func DecodeLegacyFrame(b []byte) (*ClientFrame, error) { return decodeClient(b, true) }

// membersOf lists the members that a frame of a type may have; nil: there is no such type.
func membersOf(t ClientType) []string {
	switch t {
	case ClientSubscribe:
		return []string{"type", "channel", "id", "cursor", "snapshot", "mode", "leave", "filters"}
	case ClientUnsubscribe:
		return []string{"type", "id", "channel"}
	case ClientPing:
		return []string{"type", "id"}
	case ClientAuth:
		return []string{"type", "id", "token"}
	}
	return nil
}

func decodeClient(b []byte, legacy bool) (*ClientFrame, error) {
	f := &ClientFrame{}
	if len(b) > MaxClientFrame {
		return f, statussync.NewError(statussync.CodeTooLarge, "a frame may have at most 65536 bytes", nil)
	}
	keys, err := object(b)
	if err != nil {
		return f, err
	}
	get := func(key string, dst any, want string) error {
		raw, ok := keys[key]
		if !ok || bytes.Equal(raw, []byte("null")) {
			return nil
		}
		if err := json.Unmarshal(raw, dst); err != nil {
			if e, ok := asError(err); ok {
				return e
			}
			return statussync.Invalid(key, "must be "+want)
		}
		return nil
	}
	// The id first, so that every later error can echo it.
	if err := get("id", &f.ID, "a string"); err != nil && !legacy {
		return f, err
	}
	if len(f.ID) > maxFrameID {
		f.ID = ""
		return f, statussync.Invalid("id", "may have at most "+strconv.Itoa(maxFrameID)+" bytes")
	}
	if err := get("type", &f.Type, "a string"); err != nil {
		return f, err
	}
	known := membersOf(f.Type)
	switch {
	case f.Type == "":
		return f, statussync.Invalid("type", "is missing; it is one of subscribe, unsubscribe, ping, auth")
	case f.Type == ClientPublish && legacy:
		return f, nil
	case known == nil:
		return f, statussync.Invalid("type", quote(string(f.Type))+" is not one of subscribe, unsubscribe, ping, auth")
	}
	if !legacy {
		for _, k := range sortedKeys(keys) {
			if !slices.Contains(known, k) {
				return f, statussync.Invalid(statussync.CleanText(k, statussync.MaxWordText), "is no member of a "+string(f.Type)+" frame")
			}
		}
	}
	switch f.Type {
	case ClientSubscribe:
		return f, decodeSubscribe(f, keys, get, legacy)
	case ClientAuth:
		if err := get("token", &f.Token, "a string"); err != nil {
			return f, err
		}
		if f.Token == "" {
			return f, statussync.Invalid("token", "is missing")
		}
	}
	return f, nil
}

func decodeSubscribe(f *ClientFrame, keys map[string]json.RawMessage, get func(string, any, string) error, legacy bool) error {
	if err := get("channel", &f.Channel, "a string"); err != nil {
		return err
	}
	if f.Channel != Channel {
		return statussync.Invalid("channel", quote(f.Channel)+" is not "+Channel)
	}
	if legacy {
		if raw := keys["filters"]; len(raw) == 0 || raw[0] != '[' {
			delete(keys, "filters")
		}
	}
	for _, m := range []struct {
		key  string
		dst  any
		want string
	}{
		{"cursor", &f.Cursor, "a string"}, {"snapshot", &f.Snapshot, "true or false"}, {"mode", &f.Mode, "every or latest"},
		{"leave", &f.Leave, "true or false"}, {"filters", &f.Filters, "a list of objects"},
	} {
		if err := get(m.key, m.dst, m.want); err != nil {
			return err
		}
	}
	return CheckRequest(f.Request())
}

// CheckRequest checks what a subscriber asks for beyond what its parts check themselves: the mode's word, the number of
// clauses, and that mode latest has no clause with a type, which would speak of one change where many are merged. The
// error has CodeInvalid.
func CheckRequest(r statussync.SubscribeRequest) error {
	switch r.Mode {
	case "", statussync.ModeEvery:
	case statussync.ModeLatest:
		for _, c := range r.Filter.Clauses {
			if c.Type != "" {
				return statussync.Invalid("filters.type", "can't be given with mode latest, which merges changes")
			}
		}
	default:
		return statussync.Invalid("mode", quote(string(r.Mode))+" is not one of every, latest")
	}
	_, err := r.Filter.Compile()
	return err
}

// object splits a JSON object into its members. encoding/json alone would take a key twice, and keys in another case.
func object(b []byte) (map[string]json.RawMessage, error) {
	bad := func() (map[string]json.RawMessage, error) {
		if json.Valid(b) {
			return nil, statussync.Invalid("", "a frame must be one JSON object")
		}
		return nil, statussync.Invalid("", "a frame must be JSON; this is not")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return bad()
	}
	keys := make(map[string]json.RawMessage)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return bad()
		}
		k, ok := t.(string)
		if !ok {
			return bad()
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return bad()
		}
		if _, twice := keys[k]; twice {
			return nil, statussync.Invalid(statussync.CleanText(k, statussync.MaxWordText), "is there twice")
		}
		keys[k] = raw
	}
	if _, err := d.Token(); err != nil || !json.Valid(b) { // what follows the object
		return bad()
	}
	return keys, nil
}

func sortedKeys(m map[string]json.RawMessage) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// quote shows a client's text in an error.
func quote(s string) string {
	return strconv.Quote(statussync.CleanText(s, statussync.MaxWordText))
}

func asError(err error) (*statussync.Error, bool) {
	var e *statussync.Error
	ok := errors.As(err, &e)
	return e, ok
}
