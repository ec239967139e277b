package app

import (
	"strings"
	"testing"

	"github.com/agentopia/statussync"
)

func TestCanaryConfiguration(t *testing.T) {
	c, err := ParseConfig("c.yaml", []byte(`servers: [{id: a, endpoint: "http://127.0.0.1:1/mcp", probe: {canary: {tool: sing, arguments: {song: x, n: 2, deep: {a: [1, true]}}, expect: la}}}]`))
	if err != nil {
		t.Fatal(err)
	}
	want := statussync.Canary{Tool: "sing", Arguments: `{"deep":{"a":[1,true]},"n":2,"song":"x"}`, Expect: "la"}
	if got := c.Registry().Servers[0].Probe.Canary; got != want {
		t.Errorf("%+v", got)
	}
	if b, err := c.Effective(); err != nil || !strings.Contains(string(b), "tool: sing") {
		t.Errorf("%v %s", err, b)
	}
	for in, want := range map[string]string{
		`{canary: {}}`:                                         "probe.canary.tool: is missing",
		`{canary: {tool: x, expect: [1]}}`:                     "probe.canary.expect",
		`{canary: {tool: x, else: 1}}`:                         "else",
		`{kind: http, canary: {tool: x}}`:                      "probe.canary: needs a server that is probed as MCP",
		`{canary: {tool: x, arguments: [1]}}`:                  "probe.canary.arguments",
		`{canary: {tool: "` + strings.Repeat("x", 300) + `"}}`: "probe.canary.tool",
	} {
		_, err := ParseConfig("c.yaml", []byte(`servers: [{id: a, endpoint: "http://127.0.0.1:1/mcp", probe: `+in+`}]`))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v", in, err)
		}
	}
}
