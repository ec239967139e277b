package mcpprobe

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/agentopia/statussync"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"pgregory.net/rapid"
)

func newBuf(s string) *bufio.Reader { return newBufFrom(strings.NewReader(s)) }

func newBufFrom(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, 16) }

func TestInventoryOfRealServer(t *testing.T) {
	for _, stateless := range []bool{true, false} {
		s := mcp.NewServer(&mcp.Implementation{Name: "real", Version: "9"}, &mcp.ServerOptions{PageSize: 7})
		for i := range 50 {
			addTool(s, fmt.Sprintf("tool%02d", i), "adds")
		}
		for i := range 20 {
			s.AddResource(&mcp.Resource{URI: fmt.Sprintf("file:///r%d", i), Name: fmt.Sprint("r", i)},
				func(context.Context, *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) { return nil, nil })
		}
		s.AddPrompt(&mcp.Prompt{Name: "p"}, func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) { return nil, nil })
		url := serve(t, sdkHandler(s, mcp.StreamableHTTPOptions{Stateless: stateless})).URL
		p := newProber(t, Options{})
		pl := known(p, plan(url))
		inv, err := p.Inventory(t.Context(), pl)
		if err != nil || len(inv.Tools) != 50 || inv.Resources != 20 || inv.Prompts != 1 || inv.Auth != statussync.AuthNone ||
			!slices.Contains(inv.Capabilities, "tools") || !slices.Contains(inv.Capabilities, "prompts") {
			t.Fatalf("%+v, %v", inv, err)
		}
		again, err := p.Inventory(t.Context(), pl)
		if err != nil || again.ToolsHash != inv.ToolsHash || !statussync.DiffTools(inv.Tools, again.Tools).Empty() {
			t.Errorf("%v, the same tools have another hash", err)
		}
		s.RemoveTools("tool03")
		addTool(s, "new", "adds")
		addTool(s, "tool05", "adds, and sends a copy elsewhere")
		// A modern answer says how long a client may cache it; we never do.
		now, err := p.Inventory(t.Context(), pl)
		d := statussync.DiffTools(inv.Tools, now.Tools)
		if err != nil || d.AddedCount != 1 || d.RemovedCount != 1 || d.ChangedCount != 1 ||
			d.Added[0].Name != "new" || d.Removed[0].Name != "tool03" || d.Changed[0].Name != "tool05" || now.ToolsHash == inv.ToolsHash {
			t.Errorf("%v, %+v", err, d)
		}
	}
}

// listing makes a legacy server whose lists are what answer says.
func listing(caps string, answer func(w http.ResponseWriter, c *call)) func(http.ResponseWriter, *call) {
	inner := legacy("x", func(w http.ResponseWriter, c *call) {
		if c.method == "ping" {
			result(w, c, "{}")
			return
		}
		answer(w, c)
	})
	return func(w http.ResponseWriter, c *call) {
		if c.method == "initialize" {
			w.Header().Set(headerSession, "x")
			result(w, c, `{"protocolVersion":"2025-06-18","capabilities":`+caps+`,"serverInfo":{"name":"fake","version":"7"}}`)
			return
		}
		inner(w, c)
	}
}

func tools(n int, pad string) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"name":"t%d","description":%q,"inputSchema":{"type":"object"}}`, i, pad)
	}
	return b.String()
}

func TestInventoryBounds(t *testing.T) {
	page := 0
	for _, c := range []struct {
		name   string
		answer func(w http.ResponseWriter, c *call)
		code   statussync.Code
		says   string
		known  int
	}{
		{"none", func(w http.ResponseWriter, c *call) { result(w, c, `{"tools":[]}`) }, "", "", 0},
		{"as many as may be", func(w http.ResponseWriter, c *call) { result(w, c, `{"tools":[`+tools(1000, "")+`]}`) }, "", "", 1000},
		{"one more", func(w http.ResponseWriter, c *call) { result(w, c, `{"tools":[`+tools(1001, "")+`]}`) }, statussync.CodeTooLarge, "1000", 1000},
		{"5 MiB", func(w http.ResponseWriter, c *call) {
			result(w, c, `{"tools":[`+tools(5, strings.Repeat("x", 1<<20))+`]}`)
		}, statussync.CodeTooLarge, "4 MiB", 0},
		{"pages that add up", func(w http.ResponseWriter, c *call) {
			page++
			result(w, c, fmt.Sprintf(`{"tools":[%s],"nextCursor":"p%d"}`, tools(1, strings.Repeat("x", 1<<20)), page))
		}, statussync.CodeTooLarge, "4 MiB", 3},
		{"endless pages", func(w http.ResponseWriter, c *call) {
			page++
			result(w, c, fmt.Sprintf(`{"tools":[],"nextCursor":"p%d"}`, page))
		}, statussync.CodeTooLarge, "200 pages", 0},
		{"a circle", func(w http.ResponseWriter, c *call) { result(w, c, `{"tools":[],"nextCursor":"p"}`) }, statussync.CodeInvalid, "no end", 0},
		{"no list", func(w http.ResponseWriter, c *call) { result(w, c, `{"tools":{}}`) }, statussync.CodeInvalid, "tools", 0},
		{"a tool without a name", func(w http.ResponseWriter, c *call) { result(w, c, `{"tools":[{"name":"a"},{}]}`) }, statussync.CodeInvalid, "tools/list[1]", 1},
		{"declares what it does not have", func(w http.ResponseWriter, c *call) { rpcFault(w, c, 200, -32601, "Method not found", "") }, statussync.CodeInvalid, "declares", 0},
		{"an error", func(w http.ResponseWriter, c *call) { rpcFault(w, c, 200, -32603, "database\u202e gone", "") }, statussync.CodeUnavailable, "database gone", 0},
		{"503", func(w http.ResponseWriter, c *call) { reply(w, 503, "", "") }, statussync.CodeUnavailable, "HTTP 503", 0},
		{"401", func(w http.ResponseWriter, c *call) { reply(w, 401, "", "") }, statussync.CodeUnauthorized, "HTTP 401", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			page = 0
			_, url := newFake(t, listing(`{"tools":{}}`, c.answer))
			p := newProber(t, Options{})
			inv, err := p.Inventory(t.Context(), known(p, plan(url)))
			if statussync.CodeOf(err) != c.code || err != nil && !strings.Contains(err.Error(), c.says) || len(inv.Tools) != c.known || inv.Name != "fake" {
				t.Errorf("%d tools, %v", len(inv.Tools), err)
			}
		})
	}
	t.Run("declares nothing", func(t *testing.T) {
		_, url := newFake(t, listing(`{}`, func(w http.ResponseWriter, c *call) { rpcFault(w, c, 200, -32601, "Method not found", "") }))
		p := newProber(t, Options{})
		if inv, err := p.Inventory(t.Context(), known(p, plan(url))); err != nil || len(inv.Tools) != 0 || inv.Resources != -1 || inv.Capabilities != nil {
			t.Errorf("%+v, %v", inv, err)
		}
	})
	t.Run("wants a login", func(t *testing.T) {
		_, url := newFake(t, func(w http.ResponseWriter, _ *call) { reply(w, 401, "", "") })
		p := newProber(t, Options{})
		inv, err := p.Inventory(t.Context(), known(p, plan(url)))
		if statussync.CodeOf(err) != statussync.CodeUnauthorized || inv.Auth != statussync.AuthRequired {
			t.Errorf("%+v, %v", inv, err)
		}
	})
}

func TestHash(t *testing.T) {
	hash := func(s string) string {
		tool, ok := readTool(json.RawMessage(s))
		if !ok {
			t.Fatalf("%s is no tool", s)
		}
		return tool.Hash
	}
	const base = `{"name":"a","description":"d","inputSchema":{"type":"object","properties":{"x":{"type":"number","maximum":10},"y":{"enum":[1,2]}},"required":["x","y"]}}`
	for _, same := range []string{
		`{"inputSchema":{"required":["y","x"],"properties":{"y":{"enum":[1,2]},"x":{"maximum":1e1,"type":"number"}},"type":"object"},"description":"d","name":"a"}`,
		`{"name":"\u0061","description":"d","annotations":null,"title":"T","_meta":{"n":1},"icons":[],"inputSchema": {"type":"object","properties":{"x":{"type":"number","maximum":10.0},"y":{"enum":[1,2]}},"required":["x","y"]}}`,
	} {
		if hash(same) != hash(base) {
			t.Errorf("%s has another hash", same)
		}
	}
	seen := map[string]string{hash(base): base}
	for _, other := range []string{
		strings.Replace(base, `"d"`, `"e"`, 1), strings.Replace(base, `10`, `11`, 1), strings.Replace(base, `[1,2]`, `[2,1]`, 1),
		strings.Replace(base, `["x","y"]`, `["x"]`, 1), strings.Replace(base, `"name":"a"`, `"name":"b"`, 1),
		strings.Replace(base, `"number"`, `"string"`, 1), strings.Replace(base, `{"name"`, `{"annotations":{"readOnlyHint":true},"name"`, 1),
		strings.Replace(base, `{"name"`, `{"outputSchema":{},"name"`, 1), strings.Replace(base, `10`, `9007199254740993`, 1),
		strings.Replace(base, `10`, `9007199254740992`, 1), strings.Replace(base, `10`, `"10"`, 1), strings.Replace(base, `10`, `10.5`, 1),
		`{"name":"a","description":"d"}`, `{"name":"a","inputSchema":"d"}`, `{"name":"a","outputSchema":"d"}`,
	} {
		h := hash(other)
		if was, ok := seen[h]; ok {
			t.Errorf("%s and %s have the same hash", was, other)
		}
		seen[h] = other
	}
	for _, bad := range []string{`{}`, `null`, `7`, `{"name":7}`, `{"name":""}`, `{"name":null}`} {
		if _, ok := readTool(json.RawMessage(bad)); ok {
			t.Errorf("%s is a tool", bad)
		}
	}
	if tool, _ := readTool(json.RawMessage(`{"name":"\u001b[31m` + strings.Repeat("x", 1000) + `"}`)); len(tool.Name) > maxToolName || strings.Contains(tool.Name, "\x1b") {
		t.Errorf("%q", tool.Name)
	}
}

// TestCanonical: the order of keys never matters, and whatever else differs does.
func TestCanonical(t *testing.T) {
	var value func(depth int) *rapid.Generator[any]
	value = func(depth int) *rapid.Generator[any] {
		gens := []*rapid.Generator[any]{
			rapid.Just[any](nil), rapid.Bool().AsAny(), rapid.String().AsAny(),
			rapid.Custom(func(t *rapid.T) any { return json.Number(fmt.Sprint(rapid.Int32().Draw(t, "n"))) }),
		}
		if depth > 0 {
			gens = append(gens, rapid.SliceOfN(value(depth-1), 0, 4).AsAny(), rapid.MapOfN(rapid.StringN(0, 4, -1), value(depth-1), 0, 4).AsAny())
		}
		return rapid.OneOf(gens...)
	}
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.MapOfN(rapid.StringN(0, 4, -1), value(3), 0, 5).Draw(t, "v")
		shuffled := shuffle(t, v)
		a, ok1 := readTool(json.RawMessage(`{"name":"x","inputSchema":` + encode(v) + `}`))
		b, ok2 := readTool(json.RawMessage(`{"inputSchema":` + shuffled + `,"name":"x"}`))
		if !ok1 || !ok2 || a != b {
			t.Fatalf("%v, %v: %s and %s", a, b, encode(v), shuffled)
		}
		w := rapid.MapOfN(rapid.StringN(0, 4, -1), value(3), 0, 5).Draw(t, "w")
		c, _ := readTool(json.RawMessage(`{"name":"x","inputSchema":` + encode(w) + `}`))
		if (encode(v) == encode(w)) != (a == c) && !strings.Contains(encode(v)+encode(w), "required") {
			t.Fatalf("%s and %s", encode(v), encode(w))
		}
	})
}

func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// shuffle encodes v with its keys in any order.
func shuffle(t *rapid.T, v any) string {
	switch v := v.(type) {
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		keys = rapid.Permutation(keys).Draw(t, "order")
		parts := make([]string, len(keys))
		for i, k := range keys {
			parts[i] = encode(k) + ": " + shuffle(t, v[k])
		}
		return "{" + strings.Join(parts, " , ") + "}"
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			parts[i] = shuffle(t, e)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	return encode(v)
}

func TestCanary(t *testing.T) {
	s := sdkServer()
	mcp.AddTool(s, &mcp.Tool{Name: "sänger, fails"}, func(context.Context, *mcp.CallToolRequest, addIn) (*mcp.CallToolResult, addOut, error) {
		return nil, addOut{}, fmt.Errorf("no voice")
	})
	for _, stateless := range []bool{true, false} {
		url := serve(t, sdkHandler(s, mcp.StreamableHTTPOptions{Stateless: stateless})).URL
		p := newProber(t, Options{})
		pl := known(p, plan(url))
		ok := map[string]any{"a": 20, "b": 22}
		for _, c := range []struct {
			tool   string
			args   map[string]any
			expect string
			cause  string
		}{
			{"add", ok, "", ""},
			{"add", ok, "42", ""},
			{"add", ok, "43", causeToolUnexpected},
			{"sänger, fails", ok, "", causeToolError},
			{"missing", nil, "", causeToolError},
			{"add", map[string]any{"a": "x"}, "", causeToolError},
			{"", nil, "", causeBadConfig},
			{"add", map[string]any{"a": func() {}}, "", causeBadConfig},
			{"add", map[string]any{"a": strings.Repeat("x", maxArguments)}, "", causeBadConfig},
		} {
			r := p.Canary(t.Context(), pl, c.tool, c.args, c.expect)
			if r.Cause != c.cause || (r.Outcome == statussync.OutcomeSuccess) != (c.cause == "") || (r.Detail == "") != (c.cause == "") || r.ServerID != "s" {
				t.Errorf("%+v: %+v", c, r)
			}
		}
	}
	_, url := newFake(t, func(w http.ResponseWriter, _ *call) { reply(w, 401, "", "") })
	p := newProber(t, Options{})
	if r := p.Canary(t.Context(), known(p, plan(url)), "add", nil, ""); r.Outcome != statussync.OutcomeAlive || r.Auth != statussync.AuthRequired {
		t.Errorf("%+v", r)
	}
}
