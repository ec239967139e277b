package mcpprobe

import (
	"net/http"
	"net/netip"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/guard"
)

// TestRenew: what is not allowed any more is not asked any more, over whatever was open before; what is trusted goes on.
func TestRenew(t *testing.T) {
	for _, transport := range []statussync.Transport{statussync.TransportSSE, statussync.TransportStreamableHTTP} {
		t.Run(string(transport), func(t *testing.T) {
			s := sdkServer()
			get := func(*http.Request) *mcp.Server { return s }
			var h http.Handler = mcp.NewStreamableHTTPHandler(get, nil)
			if transport == statussync.TransportSSE {
				h = mcp.NewSSEHandler(get, nil)
			}
			url := serve(t, h).URL
			allowed := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			g := guard.New(guard.Options{AllowNetworks: allowed})
			p := newProber(t, Options{Guard: g})
			near, far := plan(url), plan(url)
			near.ServerID, near.Transport, far.Transport, far.Trusted = "near", transport, transport, false
			mustUp(t, p.Probe(t.Context(), known(p, near)))
			mustUp(t, p.Probe(t.Context(), known(p, far)))

			p.Renew() // nothing was forbidden: the session is kept, a stream is opened again
			mustUp(t, p.Probe(t.Context(), far))
			await(t, "one session each", func() bool { return sessions(s) == 2 })

			g.SetAllowNetworks(nil)
			p.Renew()
			if r := p.Probe(t.Context(), far); r.Cause != guard.CauseGuard {
				t.Errorf("not allowed any more: %+v", r)
			}
			mustUp(t, p.Probe(t.Context(), near))

			g.SetAllowNetworks(allowed)
			p.Renew()
			mustUp(t, p.Probe(t.Context(), far))
			await(t, "one session each", func() bool { return sessions(s) == 2 })
		})
	}
}
