package mcpprobe

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/agentopia/statussync"
)

// Tool is one tool as its server lists it. Name is untrusted and cleaned.
type Tool = statussync.ToolRef

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// readTool reads one element of tools/list.
func readTool(raw json.RawMessage) (Tool, bool) {
	var t struct {
		Name         *string         `json:"name"`
		Description  json.RawMessage `json:"description"`
		InputSchema  json.RawMessage `json:"inputSchema"`
		OutputSchema json.RawMessage `json:"outputSchema"`
		Annotations  json.RawMessage `json:"annotations"`
	}
	if json.Unmarshal(raw, &t) != nil || t.Name == nil || *t.Name == "" {
		return Tool{}, false
	}
	var b bytes.Buffer
	writeString(&b, *t.Name)
	for _, part := range [...]json.RawMessage{t.Description, t.InputSchema, t.OutputSchema, t.Annotations} {
		b.WriteByte('\n')
		if len(part) == 0 || string(part) == "null" {
			continue
		}
		dec := json.NewDecoder(bytes.NewReader(part))
		dec.UseNumber()
		var v any
		if dec.Decode(&v) != nil {
			return Tool{}, false
		}
		writeCanonical(&b, v)
	}
	return Tool{Name: clean(*t.Name, maxToolName), Hash: digest(b.Bytes())}, true
}

// writeCanonical writes a decoded JSON value in one way only, in the manner of RFC 8785. Keys are sorted by their bytes.
func writeCanonical(b *bytes.Buffer, v any) {
	switch v := v.(type) {
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		b.WriteByte('{')
		for i, k := range keys {
			if i > 0 {
				b.WriteByte(',')
			}
			writeString(b, k)
			b.WriteByte(':')
			if list, ok := v[k].([]any); ok && k == "required" {
				// A set in JSON Schema, which some servers list in the order of a hash map.
				writeCanonical(b, sortedStrings(list))
				continue
			}
			writeCanonical(b, v[k])
		}
		b.WriteByte('}')
	case []any:
		b.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			writeCanonical(b, e)
		}
		b.WriteByte(']')
	case json.Number:
		b.WriteString(number(v))
	case string:
		writeString(b, v)
	case bool:
		b.WriteString(strconv.FormatBool(v))
	default:
		b.WriteString("null")
	}
}

func sortedStrings(list []any) []any {
	for _, e := range list {
		if _, ok := e.(string); !ok {
			return list
		}
	}
	out := slices.Clone(list)
	slices.SortFunc(out, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
	return out
}

// number spells a number in one way: 1, 1.0 and 1e0 are the same. One that a float64 doesn't hold exactly as written
// keeps its spelling where it is an integer.
func number(n json.Number) string {
	if i, err := strconv.ParseInt(string(n), 10, 64); err == nil {
		return strconv.FormatInt(i, 10)
	}
	f, err := strconv.ParseFloat(string(n), 64)
	if err != nil || !strings.ContainsAny(string(n), ".eE") {
		return string(n)
	}
	if f == float64(int64(f)) && f > -1<<53 && f < 1<<53 {
		return strconv.FormatInt(int64(f), 10)
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}

func writeString(b *bytes.Buffer, s string) {
	enc, _ := json.Marshal(s) // a string: can't fail
	b.Write(enc)
}
