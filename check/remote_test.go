package check

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/mcpconfig"
)

// tricky is a server with sessions that greets, and then does not serve.
type tricky struct {
	opened, ended atomic.Int64
	lists         func(w http.ResponseWriter, r *http.Request, id json.RawMessage)
}

func (s *tricky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodDelete {
		s.ended.Add(1)
		return
	}
	var m message
	_ = json.NewDecoder(r.Body).Decode(&m) // whatever is no message is refused below
	w.Header().Set("Content-Type", "application/json")
	switch m.Method {
	case "initialize":
		w.Header().Set("Mcp-Session-Id", fmt.Sprint("s", s.opened.Add(1)))
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"tricky","version":"1"}}}`, m.ID)
	case "ping":
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{}}`, m.ID)
	case "notifications/initialized":
		w.WriteHeader(http.StatusAccepted)
	case "tools/list":
		s.lists(w, r, m.ID)
	default:
		http.Error(w, "no", http.StatusBadRequest)
	}
}

// What greets and then does not list its tools does not work, says why in the time that there is, and is left no session.
func TestRemoteThatDoesNotList(t *testing.T) {
	over := make(chan struct{})
	hang := func(_ http.ResponseWriter, r *http.Request, _ json.RawMessage) {
		select {
		case <-over:
		case <-r.Context().Done():
		}
	}
	for _, c := range []struct {
		name    string
		timeout time.Duration
		cancel  bool
		lists   func(w http.ResponseWriter, r *http.Request, id json.RawMessage)
		outcome Outcome
		cause   string
		verdict string
		detail  string
	}{
		{name: "hangs", timeout: time.Second, lists: hang, outcome: Failure, cause: CauseTimeout, verdict: "does not answer in time", detail: "greets, but did not list what it offers within 1s"},
		{name: "interrupted", timeout: time.Minute, cancel: true, lists: hang, outcome: Skipped, cause: CauseCanceled, verdict: "not tried"},
		{name: "login", timeout: time.Minute, lists: func(w http.ResponseWriter, _ *http.Request, _ json.RawMessage) { w.WriteHeader(401) }, outcome: Alive, cause: "http_401", verdict: "wants a login"},
		{name: "error", timeout: time.Minute, lists: func(w http.ResponseWriter, _ *http.Request, id json.RawMessage) {
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32603,"message":"database is gone"}}`, id)
		}, outcome: Alive, cause: CauseRPC, verdict: "answers with an error", detail: "database is gone"},
		{name: "too many", timeout: time.Minute, lists: func(w http.ResponseWriter, _ *http.Request, id json.RawMessage) {
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"tools":[{"name":"a"}%s]}}`, id, strings.Repeat(`,{"name":"b"}`, 1000))
		}, outcome: Alive, cause: causeTooLarge, verdict: "offers more than can be read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &tricky{lists: c.lists}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.cancel {
				s.lists = func(w http.ResponseWriter, r *http.Request, id json.RawMessage) { cancel(); hang(w, r, id) }
			}
			ts := httptest.NewServer(s)
			defer ts.Close()
			remote, end := NewRemote("test")
			began := time.Now()
			r := Run(ctx, []mcpconfig.Entry{{Name: "x", Transport: statussync.TransportStreamableHTTP, URL: ts.URL}}, Options{Timeout: c.timeout, Remote: remote})[0]
			end()
			if took := time.Since(began); c.timeout == time.Second && took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
			if r.Outcome != c.outcome || r.Cause != c.cause || r.Verdict != c.verdict || !strings.Contains(r.Detail, c.detail) {
				t.Errorf("%+v", r)
			}
			if o, e := s.opened.Load(), s.ended.Load(); o == 0 || o != e {
				t.Errorf("%d sessions opened, %d ended", o, e)
			}
		})
	}
	close(over)
}

// Of a server whose type is wrong, or that wants a login, the right thing is said whatever its transport.
func TestRemoteSSE(t *testing.T) {
	for _, c := range []struct {
		name    string
		status  int
		verdict string
		advice  string
	}{
		{"login", 401, "wants a login", "log in"},
		{"streamable", 405, "refuses: it answers 405", "type http"},
		{"streamable, without a session", 400, "refuses: it answers 400", "type http"},
		{"nothing", 404, "nothing at this path", "type http"},
		{"broken", 503, "is broken: it answers 503", "logs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("WWW-Authenticate", `Bearer resource_metadata="https://h.example/meta"`)
				http.Error(w, "no", c.status)
			}))
			defer ts.Close()
			remote, end := NewRemote("test")
			r := Run(t.Context(), []mcpconfig.Entry{{Name: "x", Transport: statussync.TransportSSE, URL: ts.URL}}, Options{Remote: remote})[0]
			end()
			if r.Verdict != c.verdict || !strings.Contains(r.Advice, c.advice) || (c.status == 401) != (r.Auth == statussync.AuthRequired && strings.Contains(r.Detail, "h.example/meta")) {
				t.Errorf("%+v", r)
			}
		})
	}
}
