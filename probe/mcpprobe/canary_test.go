package mcpprobe

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/agentopia/statussync"
)

// TestProbeWithCanary: a plan's canary is called with the first probe and then seldom, and with every probe while its
// tool fails; what it finds is the probe's outcome.
func TestProbeWithCanary(t *testing.T) {
	var calls, broken atomic.Int64
	s := sdkServer()
	mcp.AddTool(s, &mcp.Tool{Name: "sing"}, func(context.Context, *mcp.CallToolRequest, struct{ Song string }) (*mcp.CallToolResult, any, error) {
		calls.Add(1)
		if broken.Load() > 0 {
			return nil, nil, errors.New("a sore throat")
		}
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "la la"}}}, nil, nil
	})
	url := serve(t, sdkHandler(s, mcp.StreamableHTTPOptions{})).URL
	p := newProber(t, Options{})
	pl := plan(url)
	pl.Canary = statussync.Canary{Tool: "sing", Arguments: `{"Song":"x"}`, Expect: "la"}
	due := func() { // the next call's time has come
		srv := p.servers[pl.ServerID]
		srv.mu.Lock()
		defer srv.mu.Unlock()
		srv.canaryAt = time.Now().Add(-canaryEvery)
	}
	probe := func(what string, called int64, outcome statussync.Outcome, cause string) {
		t.Helper()
		before := calls.Load()
		r := p.Probe(t.Context(), pl)
		if r.Outcome != outcome || r.Cause != cause || calls.Load()-before != called {
			t.Errorf("%s: %+v, %d calls", what, r, calls.Load()-before)
		}
	}
	probe("a server that nobody told of", 0, statussync.OutcomeSuccess, "")
	known(p, pl)
	probe("the first", 1, statussync.OutcomeSuccess, "")
	probe("soon after", 0, statussync.OutcomeSuccess, "")
	broken.Store(1)
	probe("before its time", 0, statussync.OutcomeSuccess, "")
	due()
	probe("the tool fails", 1, statussync.OutcomeFailure, causeToolError)
	probe("it still does", 1, statussync.OutcomeFailure, causeToolError)
	broken.Store(0)
	probe("it is well", 1, statussync.OutcomeSuccess, "")
	probe("and left in peace", 0, statussync.OutcomeSuccess, "")
	again := *pl
	again.Canary.Expect = "do re mi"
	pl = &again
	known(p, pl)
	probe("another expectation", 1, statussync.OutcomeFailure, causeToolUnexpected)
	none := *pl
	none.Canary = statussync.Canary{}
	pl = &none
	known(p, pl)
	probe("no canary any more", 0, statussync.OutcomeSuccess, "")
	bad := *pl
	bad.Canary = statussync.Canary{Tool: "sing", Arguments: `[1]`}
	pl = &bad
	known(p, pl)
	probe("arguments that are no object", 0, statussync.OutcomeFailure, causeBadConfig)
}
