package app

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

type withToken struct {
	rt    http.RoundTripper
	token string
	mu    sync.Mutex
	proto []string // of the answers
}

func (w *withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+w.token)
	resp, err := w.rt.RoundTrip(r)
	if err == nil {
		w.mu.Lock()
		w.proto = append(w.proto, resp.Proto)
		w.mu.Unlock()
	}
	return resp, err
}

// A stream of /mcp over TLS lasts longer than any write may take, over HTTP/2 and 1.1, below a base path.
func TestMCPStreamsLast(t *testing.T) {
	ca := lasting(t, "authority")
	base, stop := runService(t, tlsConfig(t, tlsFolder(t, ca, nil), "", `base_path: /statussync
mcp: {write_tools: false}
auth: {tokens: [{name: ops, role: operator, token: token-of-ops}]}
servers: [{id: weather, probe: {kind: none}}]
`))
	defer stop()
	conf, err := client.TrustCA(ca.pem)
	if err != nil {
		t.Fatal(err)
	}
	cl, err := client.New(client.Options{BaseURL: base, Token: "token-of-ops", TLS: conf})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.CloseIdle()
	var group sync.WaitGroup
	defer group.Wait()
	told := map[string]chan string{}
	for _, h2 := range []string{"HTTP/1.1", "HTTP/2.0"} {
		for _, era := range []string{"2026-07-28", "2025-11-25"} {
			name, got := h2+" "+era, make(chan string, 100)
			told[name] = got
			rt := &withToken{rt: httpsClient(t, ca, h2 == "HTTP/2.0").Transport, token: "token-of-ops"}
			cs, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, &mcp.ClientOptions{
				ResourceUpdatedHandler: func(_ context.Context, r *mcp.ResourceUpdatedNotificationRequest) { got <- r.Params.URI },
			}).Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: base + "/mcp", HTTPClient: &http.Client{Transport: rt}, MaxRetries: -1},
				&mcp.ClientSessionOptions{ProtocolVersion: era})
			if err != nil {
				t.Fatal(err)
			}
			defer cs.Close()
			if err := cs.Subscribe(t.Context(), &mcp.SubscribeParams{URI: "status://fleet"}); err != nil {
				t.Fatal(err)
			}
			tools, err := cs.ListTools(t.Context(), nil)
			if err != nil || slices.ContainsFunc(tools.Tools, func(x *mcp.Tool) bool { return strings.Contains(x.Name, "override") }) {
				t.Fatalf("%v %+v", err, tools)
			}
			rt.mu.Lock()
			if !slices.Contains(rt.proto, h2) {
				t.Errorf("%s: %v", name, rt.proto)
			}
			rt.mu.Unlock()
		}
	}
	change := func(state statussync.State) {
		t.Helper()
		if _, err := cl.SetOverride(t.Context(), "weather", wire.OverrideRequest{State: state}); err != nil {
			t.Fatal(err)
		}
		for name, got := range told {
			select {
			case <-got:
			case <-time.After(20 * time.Second):
				t.Fatalf("%s, %s: not told", name, state)
			}
		}
	}
	change(statussync.StateError)
	// Longer than a write may be blocked; whoever is told meanwhile has been told of the first change twice.
	quiet := time.NewTimer(7 * time.Second)
	defer quiet.Stop()
	<-quiet.C
	for _, got := range told {
		for len(got) > 0 {
			<-got
		}
	}
	change(statussync.StateStopped)
}
