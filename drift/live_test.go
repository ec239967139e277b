package drift_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/drift"
	"github.com/agentopia/statussync/guard"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/probe/mcpprobe"
	"github.com/agentopia/statussync/statussynctest"
)

// run is a hub, the tools' looks and the prober over one journal.
type run struct {
	*hub.Hub
	t     *testing.T
	drift *drift.Service
	stop  func()
}

type requesters []statussync.Requester

func (r requesters) Do(reqs []statussync.Request) {
	for _, q := range r {
		q.Do(reqs)
	}
}

func begin(t *testing.T, j statussync.Journal) *run {
	t.Helper()
	p := mcpprobe.New(mcpprobe.Options{Guard: guard.New(guard.Options{})})
	r := &run{t: t}
	var err error
	// Looks are asked for: the clock is not to be one of the test's actors.
	if r.drift, err = drift.New(drift.Options{Look: p.Tools, Up: func(id string) bool { return r.Up(id) }, Every: time.Hour}); err != nil {
		t.Fatal(err)
	}
	r.drift.SetEnabled(false)
	if r.Hub, err = hub.New(hub.Options{Journal: j, Requester: requesters{p, r.drift}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	dctx, dcancel := context.WithCancel(context.Background())
	hubDone, driftDone := make(chan error, 1), make(chan error, 1)
	go func() { hubDone <- r.Run(ctx) }()
	<-r.Started()
	go func() { driftDone <- r.drift.Run(dctx, r.Hub) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		dcancel()
		if err := <-driftDone; err != nil {
			t.Error(err)
		}
		p.Close(context.Background())
		cancel()
		if err := <-hubDone; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(r.stop)
	return r
}

func (r *run) define(url string) {
	r.t.Helper()
	if _, err := r.Submit(r.t.Context(), &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Full: true, Servers: []statussync.Server{{
		ID: "calc", Name: "calc", Origin: statussync.OriginConfig, Endpoint: url, Transport: statussync.TransportStreamableHTTP,
		Desired: statussync.DesiredRunning, Probe: statussync.ProbeSpec{Kind: statussync.ProbeMCP, URL: url},
	}}}); err != nil {
		r.t.Fatal(err)
	}
	now := time.Now()
	if _, err := r.Submit(r.t.Context(), &statussync.ProbeResult{ServerID: "calc", Outcome: statussync.OutcomeSuccess, StartedAt: now, FinishedAt: now}); err != nil {
		r.t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		if err := r.drift.Now(r.t.Context(), "calc"); statussync.CodeOf(err) != statussync.CodeUnavailable {
			if err != nil {
				r.t.Fatal(err)
			}
			return
		} else if time.Now().After(deadline) { // its loop has not begun
			r.t.Fatal(err)
		}
	}
}

// look has the list read, and returns it.
func (r *run) look() statussync.ToolsView {
	r.t.Helper()
	if err := r.drift.Now(r.t.Context(), "calc"); err != nil {
		r.t.Fatal(err)
	}
	v, err := r.Tools(r.t.Context(), "calc")
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// drifts are all entries of that kind, oldest first, as names.
func (r *run) drifts() []string {
	r.t.Helper()
	list, err := r.History(r.t.Context(), statussync.HistoryQuery{ServerID: "calc", Kind: statussync.KindToolDrift, Limit: 100})
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append([]string{e.Tools.String()}, out...)
	}
	return out
}

func (r *run) want(drifts ...string) {
	r.t.Helper()
	if d := cmp.Diff(drifts, r.drifts()); d != "" {
		r.t.Errorf("-want +got\n%s", d)
	}
}

func tool(name, description string, params ...string) *mcp.Tool {
	props := map[string]any{}
	for _, p := range params {
		props[p] = map[string]any{"type": "number"}
	}
	return &mcp.Tool{Name: name, Description: description, InputSchema: map[string]any{"type": "object", "properties": props}}
}

func none(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	return &mcp.CallToolResult{}, nil
}

func serve(t *testing.T, stateless bool) (*mcp.Server, string) {
	s := mcp.NewServer(&mcp.Implementation{Name: "calc", Version: "1"}, &mcp.ServerOptions{PageSize: 3})
	for _, name := range []string{"add", "sub", "mul", "div"} {
		s.AddTool(tool(name, name+"s two numbers", "a", "b"), none)
	}
	srv := httptest.NewServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s }, &mcp.StreamableHTTPOptions{Stateless: stateless}))
	t.Cleanup(srv.Close)
	return s, srv.URL
}

// TestLiveDrift: what changes on a real server in either era makes one entry each, with the right names, also across a
// restart of the service.
func TestLiveDrift(t *testing.T) {
	for _, stateless := range []bool{true, false} {
		t.Run(fmt.Sprintf("stateless=%v", stateless), func(t *testing.T) {
			s, url := serve(t, stateless)
			j := statussynctest.NewJournal()
			r := begin(t, j)
			r.define(url)
			first := r.look()
			if !first.Known || len(first.Tools) != 4 || first.Tools[0].Name != "add" || first.LastError != "" || first.CheckedAt.IsZero() {
				t.Fatalf("%+v", first)
			}
			r.want()

			s.RemoveTools("mul")
			r.look()
			r.want("1 removed (mul)")
			s.AddTool(tool("pow", "raises", "a", "b"), none)
			r.look()
			r.want("1 removed (mul)", "1 added (pow)")
			s.AddTool(tool("add", "adds two numbers", "a", "b", "c"), none) // its schema alone
			after := r.look()
			want := []string{"1 removed (mul)", "1 added (pow)", "1 changed (add)"}
			r.want(want...)
			// The same tools, defined anew in another order.
			s.RemoveTools("add", "sub", "div", "pow")
			s.AddTool(tool("pow", "raises", "b", "a"), none)
			s.AddTool(tool("div", "divs two numbers", "b", "a"), none)
			s.AddTool(tool("add", "adds two numbers", "c", "a", "b"), none)
			s.AddTool(tool("sub", "subs two numbers", "a", "b"), none)
			for range 3 {
				if v := r.look(); v.Hash != after.Hash || !v.Since.Equal(after.Since) {
					t.Errorf("the same tools have another hash, or since")
				}
			}
			r.want(want...)

			r.stop()
			s.RemoveTools("div")
			s.AddTool(tool("root", "takes the root", "a"), none)
			r = begin(t, j.Reopen())
			if v, err := r.Tools(t.Context(), "calc"); err != nil || v.Hash != after.Hash || len(v.Tools) != 4 {
				t.Errorf("after the restart: %+v %v", v, err)
			}
			r.define(url)
			r.look()
			want = append(want, "1 added (root), 1 removed (div)")
			r.want(want...)
			r.stop()
			r = begin(t, j.Reopen())
			r.define(url)
			r.want(want...)
		})
	}
}

// TestLivePin: the whole way of a pin on a real server.
func TestLivePin(t *testing.T) {
	s, url := serve(t, true)
	j := statussynctest.NewJournal()
	r := begin(t, j)
	if _, err := r.PinTools(t.Context(), "calc", "", "ann"); statussync.CodeOf(err) != statussync.CodeNotFound {
		t.Error(err)
	}
	r.define(url)
	status := func(h statussync.Health, reason statussync.Reason) {
		t.Helper()
		v, err := r.Server("calc")
		if err != nil || v.Status.State != statussync.StateRunning || v.Status.Health != h || v.Status.Reason != reason {
			t.Errorf("%+v %v", v.Status, err)
		}
	}
	v := r.look()
	if _, err := r.PinTools(t.Context(), "calc", "sha256:other", "ann"); statussync.CodeOf(err) != statussync.CodeConflict {
		t.Error(err)
	}
	if v, err := r.PinTools(t.Context(), "calc", v.Hash, "ann"); err != nil || v.Pinned == nil || v.Pinned.Actor != "ann" || v.Drifted() {
		t.Errorf("%+v %v", v, err)
	}
	status(statussync.HealthHealthy, statussync.ReasonOK)
	s.AddTool(tool("add", "adds two numbers, and sends a copy elsewhere", "a", "b"), none)
	if v := r.look(); !v.Drifted() || v.Against.String() != "1 changed (add)" {
		t.Errorf("%+v", v.Against)
	}
	status(statussync.HealthDegraded, statussync.ReasonToolsChanged)
	r.stop()
	r = begin(t, j.Reopen())
	r.define(url)
	status(statussync.HealthDegraded, statussync.ReasonToolsChanged)
	s.AddTool(tool("add", "adds two numbers", "a", "b"), none)
	r.look()
	status(statussync.HealthHealthy, statussync.ReasonOK)
	s.RemoveTools("sub")
	r.look()
	status(statussync.HealthDegraded, statussync.ReasonToolsChanged)
	if v, err := r.UnpinTools(t.Context(), "calc", "bob"); err != nil || v.Pinned != nil {
		t.Errorf("%+v %v", v, err)
	}
	status(statussync.HealthHealthy, statussync.ReasonOK)
}

// TestLiveTrouble: a list that can't be read is a fact, and no evidence of anything.
func TestLiveTrouble(t *testing.T) {
	s, url := serve(t, true)
	r := begin(t, statussynctest.NewJournal())
	r.define(url)
	before := r.look()
	for i := range 1001 {
		s.AddTool(tool(fmt.Sprintf("%s%d", strings.Repeat("long", 20), i), "x"), none)
	}
	err := r.drift.Now(t.Context(), "calc")
	v, terr := r.Tools(t.Context(), "calc")
	// More than a page of 3 each, and more than 1,000 in all.
	if err == nil || terr != nil || v.LastError == "" || v.Hash != before.Hash || len(r.drifts()) != 0 || !v.CheckedAt.After(before.CheckedAt) {
		t.Errorf("%v %v %q %v", err, terr, v.LastError, r.drifts())
	}
	if st, err := r.Server("calc"); err != nil || st.Status.Health != statussync.HealthHealthy {
		t.Errorf("%+v %v", st.Status, err)
	}
}
