package app

import (
	"context"
	"log/slog"
	"time"

	"github.com/agentopia/statussync/drift"
	"github.com/agentopia/statussync/guard"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/probe/mcpprobe"
)

// mcpParts are those that speak MCP to servers.
type mcpParts struct {
	prober *mcpprobe.Prober
	drift  *drift.Service
}

// newMCP makes the parts that speak MCP to servers. The hub is asked once it runs; h returns it.
func newMCP(g *guard.Guard, version string, h func() *hub.Hub, log *slog.Logger) (m mcpParts, err error) {
	m.prober = mcpprobe.New(mcpprobe.Options{Guard: g, UserAgent: "statussync/" + version, Version: version, Logger: log})
	m.drift, err = drift.New(drift.Options{
		Look:   m.prober.Tools,
		Up:     func(id string) bool { return h().Up(id) },
		Logger: log,
	})
	return m, err
}

// stopMCP is how long ending the sessions with servers may take.
const stopMCP = 500 * time.Millisecond

// close ends the sessions with servers; nothing may be asked of them any more.
func (m *mcpParts) close() {
	ctx, cancel := context.WithTimeout(context.Background(), stopMCP)
	defer cancel()
	m.prober.Close(ctx)
}

// samples are the metrics of the parts that speak MCP.
func (m *mcpParts) samples(gauge func(name, help string, v float64), counter func(name, help string, v uint64)) {
	st := m.drift.Stats()
	gauge("tool_lists_targets", "MCP servers whose tools can be read.", float64(st.Servers))
	counter("tool_lists_total", "Tool lists asked for.", st.Looks)
	counter("tool_lists_failed_total", "Tool lists that could not be read.", st.Failed)
}
