package mcpprobe

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
)

// message is any JSON-RPC 2.0 message.
type message struct {
	JSONRPC string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Method  string          `json:"method"`
	Result  json.RawMessage `json:"result"`
	Error   *rpcError       `json:"error"`
}

type rpcError struct {
	Code    int             `json:"code"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data"`
}

// The error codes that decide something: JSON-RPC 2.0 §5.1 and the specification of 2026-07-28.
const (
	codeMethodNotFound     = -32601
	codeInvalidParams      = -32602
	codeInternal           = -32603
	codeUnsupportedVersion = -32022
)

// maxBatch bounds the messages of one batch, which versions before 2025-06-18 allow.
const maxBatch = 100

var errBatch = errors.New("a batch of more than " + strconv.Itoa(maxBatch) + " messages")

// parseMessages reads one message or a batch.
func parseMessages(data []byte) ([]message, error) {
	data = bytes.TrimSpace(data)
	if len(data) == 0 || data[0] != '[' {
		var m message
		if err := json.Unmarshal(data, &m); err != nil {
			return nil, err
		}
		return []message{m}, nil
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, err
	}
	if len(raw) > maxBatch {
		return nil, errBatch
	}
	out := make([]message, len(raw))
	for i := range raw {
		if err := json.Unmarshal(raw[i], &out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// isAnswer reports whether m is a well-formed response: a result or an error, not both.
func (m *message) isAnswer() bool {
	return m.JSONRPC == "2.0" && m.Method == "" && (m.Result != nil) != (m.Error != nil)
}

// answers reports whether m answers the question with that id. An error may have no id: its sender could not read ours.
func (m *message) answers(id int64) bool {
	if !m.isAnswer() {
		return false
	}
	got := string(bytes.TrimSpace(m.ID))
	return got == strconv.FormatInt(id, 10) || m.Error != nil && (got == "" || got == "null")
}

// id returns the id of a response, if it is one that we could have given.
func (m *message) id() (int64, bool) {
	if !m.isAnswer() {
		return 0, false
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(m.ID)), 10, 64)
	return n, err == nil
}

// isPing reports whether m is the server asking whether we live.
func (m *message) isPing() bool { return m.Method == "ping" && len(m.ID) > 0 && len(m.ID) <= 128 }

// pong is the answer to a server's ping.
func pong(id json.RawMessage) []byte {
	b := append([]byte(`{"jsonrpc":"2.0","id":`), id...)
	return append(b, `,"result":{}}`...)
}

// find returns the answer to the question with that id among the messages of data; nil where there is none. Pings of
// the server are handed to onPing, everything else is skipped.
func find(data []byte, id int64, onPing func(json.RawMessage)) (*message, error) {
	ms, err := parseMessages(data)
	if err != nil {
		return nil, err
	}
	for i := range ms {
		switch m := &ms[i]; {
		case m.answers(id):
			return m, nil
		case m.isPing() && onPing != nil:
			onPing(m.ID)
		}
	}
	return nil, nil
}
