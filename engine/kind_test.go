package engine_test

import (
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
)

// TestProbeKinds: how a server is probed follows from its definition, the policy and its transport, in this order.
func TestProbeKinds(t *testing.T) {
	const endpoint, health = "https://a.example/v1/mcp?key=x", "https://a.example/health"
	for _, c := range []struct {
		name      string
		policy    statussync.ProbeKind
		transport statussync.Transport
		spec      statussync.ProbeSpec
		kind      statussync.ProbeKind
		url       string
	}{
		{"streamable-http is MCP", "", statussync.TransportStreamableHTTP, statussync.ProbeSpec{}, statussync.ProbeMCP, endpoint},
		{"sse is MCP", "", statussync.TransportSSE, statussync.ProbeSpec{}, statussync.ProbeMCP, endpoint},
		{"no transport is streamable-http", "", "", statussync.ProbeSpec{}, statussync.ProbeMCP, endpoint},
		{"http is HTTP", "", statussync.TransportHTTP, statussync.ProbeSpec{}, statussync.ProbeHTTP, health},
		{"stdio is nothing", "", statussync.TransportStdio, statussync.ProbeSpec{}, statussync.ProbeNone, ""},
		{"stdio is nothing, whatever is said", "", statussync.TransportStdio, statussync.ProbeSpec{Kind: statussync.ProbeMCP}, statussync.ProbeNone, ""},
		{"its own kind", "", statussync.TransportHTTP, statussync.ProbeSpec{Kind: statussync.ProbeMCP}, statussync.ProbeMCP, endpoint},
		{"its own kind, against the policy", statussync.ProbeHTTP, statussync.TransportSSE, statussync.ProbeSpec{Kind: statussync.ProbeMCP}, statussync.ProbeMCP, endpoint},
		{"its own kind, against none for all", statussync.ProbeNone, statussync.TransportSSE, statussync.ProbeSpec{Kind: statussync.ProbeHTTP}, statussync.ProbeHTTP, health},
		{"a health URL", "", statussync.TransportStreamableHTTP, statussync.ProbeSpec{URL: "https://b.example/up"}, statussync.ProbeHTTP, "https://b.example/up"},
		{"a health path", "", statussync.TransportStreamableHTTP, statussync.ProbeSpec{Path: "/up"}, statussync.ProbeHTTP, "https://a.example/up"},
		{"a health URL, against mcp for all", statussync.ProbeMCP, statussync.TransportStreamableHTTP, statussync.ProbeSpec{URL: "https://b.example/up"}, statussync.ProbeHTTP, "https://b.example/up"},
		{"a health URL, none for all", statussync.ProbeNone, statussync.TransportStreamableHTTP, statussync.ProbeSpec{URL: "https://b.example/up"}, statussync.ProbeNone, ""},
		{"another URL, as MCP", "", statussync.TransportHTTP, statussync.ProbeSpec{Kind: statussync.ProbeMCP, URL: "https://b.example/m?x=1"}, statussync.ProbeMCP, "https://b.example/m?x=1"},
		{"another path, as MCP", "", statussync.TransportHTTP, statussync.ProbeSpec{Kind: statussync.ProbeMCP, Path: "/m"}, statussync.ProbeMCP, "https://a.example/m"},
		{"http for all", statussync.ProbeHTTP, statussync.TransportStreamableHTTP, statussync.ProbeSpec{}, statussync.ProbeHTTP, health},
		{"mcp for all", statussync.ProbeMCP, statussync.TransportHTTP, statussync.ProbeSpec{}, statussync.ProbeMCP, endpoint},
		{"none for all", statussync.ProbeNone, statussync.TransportStreamableHTTP, statussync.ProbeSpec{}, statussync.ProbeNone, ""},
		{"what is secret is asked and not told", "", statussync.TransportSSE, statussync.ProbeSpec{SecretURL: "https://a.example/token/mcp"}, statussync.ProbeMCP, endpoint},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := engine.DefaultPolicy()
			p.Probe.Kind = c.policy
			e, err := engine.New(p)
			if err != nil {
				t.Fatal(err)
			}
			var eff engine.Effects
			now := time.Unix(1_800_000_000, 0)
			e.Start(now, time.Time{}, &eff)
			e.Step(now, &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Servers: []statussync.Server{
				{ID: "a", Endpoint: endpoint, Transport: c.transport, Origin: statussync.OriginConfig, Probe: c.spec},
			}}, &eff)
			if got := e.Probing("a"); got.Kind != c.kind || got.URL != c.url {
				t.Errorf("probed as %s at %q", got.Kind, got.URL)
			}
			asked := c.url
			if c.spec.SecretURL != "" {
				asked = c.spec.SecretURL
			}
			last := eff.Requests[len(eff.Requests)-1].Plan
			if last.Kind != c.kind || last.URL != asked {
				t.Errorf("planned as %s at %q", last.Kind, last.URL)
			}
		})
	}
}

// TestProbeFacts: what an MCP server tells of itself stays until it tells something else, or is not asked as MCP any more.
func TestProbeFacts(t *testing.T) {
	e, err := engine.New(engine.DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	var eff engine.Effects
	now := time.Unix(1_800_000_000, 0)
	e.Start(now, time.Time{}, &eff)
	define := func(spec statussync.ProbeSpec) {
		e.Step(now, &statussync.RegistryUpdate{Origin: statussync.OriginMCPConfig, Servers: []statussync.Server{
			{ID: "a", Endpoint: "https://a.example/***/mcp", Origin: statussync.OriginMCPConfig, Probe: spec},
		}}, &eff)
	}
	told := statussync.ServerInfo{Name: "weather", Version: "1.2"}
	want := func(protocol string, info statussync.ServerInfo) {
		t.Helper()
		if st, _ := e.Status("a"); st.Protocol != protocol || st.ServerInfo != info {
			t.Errorf("%q %+v", st.Protocol, st.ServerInfo)
		}
	}
	define(statussync.ProbeSpec{SecretURL: "https://a.example/planted-secret/mcp", Headers: map[string]string{"A": "planted-secret"}, Unshown: []string{"planted-secret"}})
	e.Step(now, &statussync.ProbeResult{ServerID: "a", Outcome: statussync.OutcomeSuccess, Protocol: "2025-11-25", ServerInfo: told, StartedAt: now}, &eff)
	want("2025-11-25", told)
	now = now.Add(time.Second)
	e.Step(now, &statussync.ProbeResult{ServerID: "a", Outcome: statussync.OutcomeFailure, Cause: "refused", ByConnect: true, StartedAt: now}, &eff)
	want("2025-11-25", told)

	// They are found again after a restart; what is secret is not, and is not stored.
	records, _ := e.Dirty(nil, 0)
	again, err := engine.New(engine.DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if containsSecret(string(r.Data)) {
			t.Errorf("stored: %s", r.Data)
		}
		if err := again.Restore(r); err != nil {
			t.Fatal(err)
		}
	}
	e, eff = again, engine.Effects{}
	e.Start(now, now, &eff)
	want("2025-11-25", told)
	entries := len(eff.Entries)
	define(statussync.ProbeSpec{SecretURL: "https://a.example/planted-secret/mcp", Headers: map[string]string{"A": "planted-secret"}, Unshown: []string{"planted-secret"}})
	if len(eff.Entries) != entries {
		t.Errorf("%+v: what is secret is no change", eff.Entries[entries])
	}
	if p := eff.Requests[len(eff.Requests)-1].Plan; p == nil || p.URL != "https://a.example/planted-secret/mcp" || len(p.Headers) != 1 || len(p.Unshown) != 1 {
		t.Errorf("%+v", p)
	}
	define(statussync.ProbeSpec{Kind: statussync.ProbeHTTP})
	want("", statussync.ServerInfo{})
	for _, en := range eff.Entries {
		if containsSecret(en.Details) {
			t.Error(en.Details)
		}
	}
}

func containsSecret(s string) bool { return strings.Contains(s, "planted-secret") }

// TestCanaryIsPlanned: a canary reaches the prober, and another one is a new plan.
func TestCanaryIsPlanned(t *testing.T) {
	e, err := engine.New(engine.DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	planned := func(c statussync.Canary) (out []statussync.Canary) {
		t.Helper()
		now = now.Add(time.Second)
		var eff engine.Effects
		e.Step(now, &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Full: true, Servers: []statussync.Server{{
			ID: "a", Endpoint: "https://a.example/mcp", Origin: statussync.OriginConfig, Desired: statussync.DesiredRunning, Probe: statussync.ProbeSpec{Canary: c},
		}}}, &eff)
		for _, r := range eff.Requests {
			if r.Plan != nil {
				out = append(out, r.Plan.Canary)
			}
		}
		return out
	}
	one, two := statussync.Canary{Tool: "sing"}, statussync.Canary{Tool: "sing", Arguments: `{"a":1}`, Expect: "x"}
	for i, step := range []struct {
		c    statussync.Canary
		want int
	}{{one, 1}, {one, 0}, {two, 1}, {two, 0}, {statussync.Canary{}, 1}} {
		got := planned(step.c)
		if len(got) != step.want || step.want == 1 && got[0] != step.c {
			t.Errorf("step %d: %+v", i, got)
		}
	}
}
