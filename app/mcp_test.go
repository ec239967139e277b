package app

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// TestToolsOfService: the running service reads the tools of a real server that keeps sessions, and leaves none behind.
func TestToolsOfService(t *testing.T) {
	m := mcp.NewServer(&mcp.Implementation{Name: "calc", Version: "1"}, &mcp.ServerOptions{SupportedProtocolVersions: []string{"2025-06-18"}})
	add := func(name string) {
		m.AddTool(&mcp.Tool{Name: name, InputSchema: map[string]any{"type": "object"}},
			func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) { return nil, nil })
	}
	add("add")
	srv := httptest.NewServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return m }, nil))
	defer srv.Close()
	sessions := func() (n int) {
		for range m.Sessions() {
			n++
		}
		return n
	}

	c := DefaultConfig()
	c.Listen, c.Data = "127.0.0.1:0", t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan Ready, 1), make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{Config: c, Logger: quiet(), Version: "test", OnReady: func(r Ready) { ready <- r }})
	}()
	var r Ready
	select {
	case r = <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	now := time.Now()
	if _, err := r.Hub.Submit(t.Context(), &statussync.RegistryUpdate{Origin: statussync.OriginMCPConfig, Servers: []statussync.Server{{
		ID: "calc", Name: "calc", Origin: statussync.OriginMCPConfig, Endpoint: srv.URL, Transport: statussync.TransportStreamableHTTP,
		Probe: statussync.ProbeSpec{Kind: statussync.ProbeMCP, URL: srv.URL},
	}}}, &statussync.ProbeResult{ServerID: "calc", Outcome: statussync.OutcomeSuccess, StartedAt: now, FinishedAt: now}); err != nil {
		t.Fatal(err)
	}
	call := func(method, path, body string) (int, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, r.BaseURL+"/api/v1/servers/calc"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, b
	}
	tools := func(method, path string) (v wire.Tools) {
		t.Helper()
		code, b := call(method, path, "{}")
		if err := json.Unmarshal(b, &v); err != nil || code != 200 {
			t.Fatalf("%s %s: %d %s", method, path, code, b)
		}
		return v
	}
	if v := tools("POST", "/tools"); v.Count != 1 || v.Tools[0].Name != "add" {
		t.Errorf("%+v", v)
	}
	tools("PUT", "/tools/pin")
	add("sub")
	if v := tools("POST", "/tools"); v.Count != 2 || !v.Drifted {
		t.Errorf("%+v", v)
	}
	if _, b := call("GET", "/drift", ""); !strings.Contains(string(b), `"added":[{"name":"sub"`) {
		t.Errorf("%s", b)
	}
	if _, b := call("GET", "/status", ""); !strings.Contains(string(b), `"reason":"tools_changed"`) {
		t.Errorf("%s", b)
	}
	if n := sessions(); n != 1 {
		t.Errorf("%d sessions", n)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := sessions(); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}
