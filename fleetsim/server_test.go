package fleetsim

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

func connect(t *testing.T, s Server) (*mcp.ClientSession, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	c := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil)
	return c.Connect(ctx, &mcp.StreamableClientTransport{
		Endpoint: s.Endpoint, MaxRetries: -1, HTTPClient: &http.Client{Transport: tr},
	}, nil)
}

func TestMCPServersWork(t *testing.T) {
	f := start(t, Options{})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for kind, version := range map[Kind]string{KindModern: "2026-07-28", KindLegacy: "2025-11-25"} {
		s := serverOf(t, f, func(s Server) bool { return s.Kind == kind })
		cs, err := connect(t, s)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		defer cs.Close()
		if got := cs.InitializeResult().ProtocolVersion; got != version {
			t.Errorf("%s speaks %s, want %s", kind, got, version)
		}
		list, err := cs.ListTools(ctx, nil)
		must(t, err)
		if n := len(list.Tools); n < 2 || n > 3 {
			t.Errorf("%s has %d tools", kind, n)
		}
		call := func() (string, error) {
			res, err := cs.CallTool(ctx, &mcp.CallToolParams{Name: "sum", Arguments: map[string]any{"numbers": []float64{2, 3, 4}}})
			if err != nil {
				return "", err
			}
			return res.Content[0].(*mcp.TextContent).Text, nil
		}
		if got, err := call(); err != nil || !strings.Contains(got, "9") {
			t.Errorf("%s: 2+3+4 is %q, %v", kind, got, err)
		}
		must(t, f.Status(s.ID, 503))
		if got, err := call(); err == nil {
			t.Errorf("%s answers %q while it is faulted", kind, got)
		}
		must(t, f.Heal(s.ID))
		must(t, f.Crash(s.ID, 137))
		if _, err := connect(t, s); err == nil {
			t.Errorf("%s: a connection to a crashed server", kind)
		}
		must(t, f.Start(s.ID))
		cs2, err := connect(t, s)
		if err != nil {
			t.Fatalf("%s after a start: %v", kind, err)
		}
		cs2.Close()
	}
}

// A process takes its sessions with it: one that was opened before a crash is unknown afterwards.
func TestSessionsEndWithTheProcess(t *testing.T) {
	f := start(t, Options{})
	s := serverOf(t, f, func(s Server) bool { return s.Kind == KindLegacy })
	post := func(session, body string) *http.Response {
		req, err := http.NewRequest("POST", s.Endpoint, strings.NewReader(body))
		must(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
		if session != "" {
			req.Header.Set("Mcp-Session-Id", session)
		}
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}).Do(req)
		must(t, err)
		res.Body.Close()
		return res
	}
	res := post("", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`)
	session := res.Header.Get("Mcp-Session-Id")
	if session == "" {
		t.Fatalf("no session: %s", res.Status)
	}
	const ping = `{"jsonrpc":"2.0","id":2,"method":"ping"}`
	if res := post(session, ping); res.StatusCode != 200 {
		t.Errorf("ping in a session: %s", res.Status)
	}
	must(t, f.Crash(s.ID, 1))
	must(t, f.Start(s.ID))
	if res := post(session, ping); res.StatusCode != 404 {
		t.Errorf("ping in a session of the process before: %s", res.Status)
	}
}

func TestPlainServerSpeaksEnough(t *testing.T) {
	f := start(t, Options{})
	s := serverOf(t, f, func(s Server) bool { return s.Kind == KindPlain })
	cs, err := connect(t, s)
	must(t, err)
	defer cs.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := cs.Ping(ctx, nil); err != nil {
		t.Errorf("ping: %v", err)
	}
	if list, err := cs.ListTools(ctx, nil); err != nil || len(list.Tools) != 0 {
		t.Errorf("tools: %v, %v", list, err)
	}
	c := newClient(t)
	for body, want := range map[string]int{`{"jsonrpc":"2.0","method":"notifications/initialized"}`: 202, `{`: 400, `{"jsonrpc":"2.0","id":1,"method":"nonsense"}`: 200} {
		res, err := c.Post(s.Endpoint, "application/json", strings.NewReader(body))
		must(t, err)
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %s", body, res.Status)
		}
	}
	if got, _ := ask(c, s.Endpoint, patience); got != "405" {
		t.Errorf("GET: %s", got)
	}
}
