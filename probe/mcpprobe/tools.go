package mcpprobe

import (
	"context"
	"encoding/json"

	"github.com/agentopia/statussync"
)

// Tools asks a server for its tools alone, as Inventory does: within the same time and bounds, in the same session, never
// from a cache, with the same errors. With an error there is no list.
func (p *Prober) Tools(ctx context.Context, plan *statussync.ProbePlan) ([]Tool, error) {
	c, done := p.talk(ctx, plan, max(timeoutOf(plan), inventoryIn))
	defer done()
	var res statussync.ProbeResult
	if !c.probe(&res) {
		return nil, problem(&res)
	}
	return c.tools()
}

// tools asks for all pages of tools/list.
func (c *talk) tools() (tools []Tool, err error) {
	c.s.mu.Lock()
	declared := c.s.caps["tools"]
	c.s.mu.Unlock()
	// Some servers declare nothing and have tools all the same.
	err = c.list("tools/list", "tools", maxTools, func(raw json.RawMessage) bool {
		t, ok := readTool(raw)
		if ok {
			tools = append(tools, t)
		}
		return ok
	})
	if err == errNoMethod && !declared {
		err = nil
	}
	return tools, err
}
