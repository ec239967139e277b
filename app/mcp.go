package app

import (
	"cmp"
	"context"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/drift"
	"github.com/agentopia/statussync/guard"
	"github.com/agentopia/statussync/probe/mcpprobe"
)

// stopSessions bounds the end of the sessions that MCP probes hold; mcpprobe itself takes at most two seconds.
const stopSessions = 1 * time.Second

// newMCPProber returns the prober of MCP servers.
func newMCPProber(g *guard.Guard, userAgent, version string, log *slog.Logger) *mcpprobe.Prober {
	return mcpprobe.New(mcpprobe.Options{Guard: g, UserAgent: userAgent, Version: version, Logger: log})
}

// closeSessions ends what MCP probes hold at their servers. Nothing may be probed any more.
func (s *service) closeSessions() {
	ctx, cancel := context.WithTimeout(context.Background(), stopSessions)
	defer cancel()
	s.mcp.Close(ctx)
}

// discreet is a Prober whose results don't repeat the credentials that were sent: servers quote requests in their errors.
func discreet(probe statussync.Prober) statussync.Prober {
	return func(ctx context.Context, p *statussync.ProbePlan) statussync.ProbeResult {
		r := probe(ctx, p)
		if r.Detail == "" && r.ServerInfo == (statussync.ServerInfo{}) {
			return r
		}
		secrets := secretsOf(p)
		for _, s := range []*string{&r.Detail, &r.ServerInfo.Name, &r.ServerInfo.Version} {
			*s = hide(*s, secrets)
		}
		return r
	}
}

// minSecret is the shortest value that is looked for: a shorter one would hide parts of words.
const minSecret = 4

// secretsOf are the values of a plan that must not be shown, the longest first.
func secretsOf(p *statussync.ProbePlan) []string {
	var out []string
	add := func(v string) {
		if len(v) >= minSecret {
			out = append(out, v)
		}
	}
	for _, v := range p.Headers {
		add(v)
		if _, token, ok := strings.Cut(v, " "); ok { // Bearer, Basic, …
			add(strings.TrimSpace(token))
		}
	}
	for _, v := range p.Unshown {
		add(v)
		add(url.QueryEscape(v))
		add(url.PathEscape(v))
	}
	if u, err := url.Parse(p.URL); err == nil {
		add(u.RawQuery)
		for _, values := range u.Query() {
			for _, v := range values {
				add(v)
				add(url.QueryEscape(v))
			}
		}
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	return slices.Compact(out)
}

// hidden stands where a secret was.
const hidden = "***"

func hide(s string, secrets []string) string {
	for _, v := range secrets {
		s = strings.ReplaceAll(s, v, hidden)
	}
	return s
}

// newDrift returns what reads the tools of MCP servers. The hub is asked once it runs.
func (s *service) newDrift(log *slog.Logger) (*drift.Service, error) {
	return drift.New(drift.Options{
		Look: func(ctx context.Context, p *statussync.ProbePlan) ([]statussync.ToolRef, error) {
			tools, err := s.mcp.Tools(ctx, p)
			if e, ok := err.(*statussync.Error); ok { // servers quote requests in their errors
				c := *e
				c.Detail, c.Err = hide(e.Detail, secretsOf(p)), nil
				err = &c
			}
			return tools, err
		},
		Up:     func(id string) bool { return s.hub.Up(id) },
		Logger: log,
	})
}

// driftSamples are the metrics of what reads tools.
func (s *service) driftSamples(gauge func(name, help string, v float64), counter func(name, help string, v uint64)) {
	st := s.drift.Stats()
	gauge("tool_lists_targets", "MCP servers whose tools can be read.", float64(st.Servers))
	counter("tool_lists_total", "Tool lists asked for.", st.Looks)
	counter("tool_lists_failed_total", "Tool lists that could not be read.", st.Failed)
}
