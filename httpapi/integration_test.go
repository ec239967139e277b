package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/recur"
	"github.com/agentopia/statussync/statussynctest"
	"github.com/agentopia/statussync/wire"
)

// checker is the part of the hub's surroundings that is not here: no server is reached.
type checker struct{ hub *hub.Hub }

func (c *checker) Check(ctx context.Context, id string) (statussync.ProbeResult, error) {
	now := time.Now()
	r := statussync.ProbeResult{ServerID: id, Outcome: statussync.OutcomeFailure, Cause: "refused", ByConnect: true, StartedAt: now, FinishedAt: now}
	res := r
	return r, c.hub.Observe(ctx, &res)
}

// whole serves the API over the real hub, engine and all, with a journal in memory.
func whole(t *testing.T, servers int, with ...func(*Options)) *service {
	t.Helper()
	c := &checker{}
	h, err := hub.New(hub.Options{Journal: statussynctest.NewJournal(), Checker: c, RingSize: 64, Recurrence: recur.Parse})
	if err != nil {
		t.Fatal(err)
	}
	c.hub = h
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	<-h.Started()
	reg := &statussync.RegistryUpdate{
		Origin: statussync.OriginConfig, Full: true,
		Environments: []statussync.Environment{{ID: "box-7", Name: "box-7", HasToken: true, Origin: statussync.OriginConfig}},
	}
	for i := range servers {
		id := fmt.Sprintf("s%02d", i)
		reg.Servers = append(reg.Servers, statussync.Server{
			ID: id, Name: id, EnvironmentID: "box-7", Desired: statussync.DesiredRunning, Origin: statussync.OriginConfig, Labels: map[string]string{"n": id[1:]},
			Probe: statussync.ProbeSpec{Kind: statussync.ProbeNone},
		})
	}
	if _, err := h.Submit(ctx, reg); err != nil {
		t.Fatal(err)
	}
	o := Options{Hub: h, Maintenance: h, Tools: h, Auth: tokens(), CommandsPerSecond: 100_000}
	for _, f := range with {
		f(&o)
	}
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s := &service{API: a, srv: httptest.NewServer(a)}
	t.Cleanup(func() {
		a.Close()
		s.srv.Close()
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestWhole follows observations from the agent's heartbeat to every way out.
func TestWhole(t *testing.T) {
	s := whole(t, 2)
	ws := s.dial(t, viewerToken)
	ws.send(subscribe + `,"snapshot":true}`)
	ws.want(wire.FrameSubscribed)
	if f := ws.want(wire.FrameSnapshot); len(f.Items) != 2 || f.More || f.Items[0].Status.State != statussync.StateUnknown {
		t.Fatalf("%+v", f)
	}
	ws.want(wire.FrameSnapshotEnd)
	events := s.sse(t, "?server_ids=s00")
	events.begin()
	if b, err := events.next(); err != nil || b.event != "subscribed" || b.id == "" {
		t.Fatalf("%+v %v", b, err)
	}

	beat := func(word, text string) {
		t.Helper()
		body := fmt.Sprintf(`{"dtma_version":"0.1.0","tool_statuses":[{"id":"c","names":["s00"],"state":%q,"status":%q}]}`, word, text)
		if a := s.do(t, agentToken, "POST /heartbeat", body); a.status != 204 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	update := func(state statussync.State, health statussync.Health) wire.ServerFrame {
		t.Helper()
		for {
			f := ws.want(wire.FrameStatusUpdate)
			e, err := f.Entry()
			if err != nil {
				t.Fatal(err)
			}
			if e.ServerID != "s00" {
				continue
			}
			if e.Current.State != state || e.Current.Health != health {
				t.Fatalf("%s, want %s/%s", f.Data, state, health)
			}
			b, err := events.next()
			if err != nil || b.data != string(f.Data) || b.id != f.Cursor.String() {
				t.Fatalf("the stream says %+v (%v), the socket %s", b, err, f.Data)
			}
			return *f
		}
	}
	beat("running", "Up 2 hours")
	first := update(statussync.StateRunning, statussync.HealthHealthy)
	beat("exited", "Exited (137) 2 seconds ago")
	update(statussync.StateStopped, statussync.HealthUnhealthy)
	x := decode[wire.Explain](t, s.do(t, viewerToken, "GET /api/v1/servers/s00/status?explain=true", ""))
	if x.Reason != statussync.ReasonCrashed || x.Cause != "exit_137" || x.Explain == nil || len(x.Explain.Evidence) == 0 || len(x.Explain.Rules) == 0 {
		t.Errorf("%+v", x)
	}
	if st := decode[wire.Status](t, s.do(t, operatorToken, "PUT /api/v1/servers/s00/override", `{"state":"running","note":"replaced"}`)); st.State != statussync.StateRunning || st.Reason != statussync.ReasonOverride || st.Override.Actor != "otto" {
		t.Errorf("%+v", st)
	}
	update(statussync.StateRunning, statussync.HealthHealthy)
	if st := decode[wire.Status](t, s.do(t, operatorToken, "DELETE /api/v1/servers/s00/override", "")); st.State != statussync.StateStopped || st.Override != nil {
		t.Errorf("%+v", st)
	}
	last := update(statussync.StateStopped, statussync.HealthUnhealthy)

	// Who was away since the first update is told the rest, on either way, and by a query.
	again := s.dial(t, viewerToken)
	again.send(subscribe + `,"cursor":"` + first.Cursor.String() + `","filters":[{"server_ids":["s00"]}]}`)
	if f := again.want(wire.FrameSubscribed); !f.Recovered || !f.Durable {
		t.Errorf("%+v", f)
	}
	missed := s.sse(t, "?server_ids=s00", "Last-Event-ID: "+first.Cursor.String())
	missed.begin()
	if b, err := missed.next(); err != nil || b.event != "subscribed" {
		t.Fatal(b, err)
	}
	page := decode[wire.Page[json.RawMessage]](t, s.do(t, viewerToken, "GET /api/v1/updates?server_ids=s00&after="+first.Cursor.String(), ""))
	if len(page.Items) != 3 || page.Cursor != last.Cursor.String() {
		t.Fatalf("%d items up to %s: %s", len(page.Items), page.Cursor, page.Items)
	}
	for _, item := range page.Items {
		f := again.want(wire.FrameStatusUpdate)
		if b, err := missed.next(); err != nil || b.data != string(item) || string(f.Data) != string(item) {
			t.Errorf("query  %s\nsocket %s\nstream %s (%v)", item, f.Data, b.data, err)
		}
	}
	if h := decode[wire.Page[wire.Update]](t, s.do(t, viewerToken, "GET /api/v1/servers/s00/history?limit=3", "")); len(h.Items) != 3 || h.Items[0].Seq != last.Cursor.Seq || h.NextCursor == "" {
		t.Errorf("%+v", h)
	}
	if e := decode[wire.Environment](t, s.do(t, viewerToken, "GET /api/v1/environments/box-7", "")); e.Agent != statussync.AgentOK || e.AgentVersion != "0.1.0" || e.Servers != 2 {
		t.Errorf("%+v", e)
	}
	again.send(subscribe + `}`) // in place of the one that it has
	again.want(wire.FrameSubscribed)
	if m := decode[wire.Metrics](t, s.do(t, viewerToken, "GET /api/v1/sync/metrics", "")); m.TotalServers != 2 || m.ErrorServers != 1 || m.Subscriptions != 4 {
		t.Errorf("%+v", m)
	}
	if r := decode[wire.Ready](t, s.do(t, viewerToken, "GET /readyz", "")); r.Status != wire.ReadyYes || r.Cursor != last.Cursor.String() {
		t.Errorf("%+v", r)
	}
	if p := decode[wire.ProbeResult](t, s.do(t, operatorToken, "POST /api/v1/servers/s00/probe", "")); p.Outcome != statussync.OutcomeFailure || p.Cause != "refused" {
		t.Errorf("%+v", p)
	}
	for call, want := range map[string]statussync.Code{
		"GET /api/v1/servers/no": statussync.CodeNotFound, "POST /api/v1/servers/no/probe": statussync.CodeNotFound,
		"DELETE /api/v1/servers/no/override": statussync.CodeNotFound, "GET /api/v1/servers/no/status?explain=true": statussync.CodeNotFound,
		"GET /api/v1/servers/no/history": statussync.CodeNotFound, "GET /api/v1/environments/no": statussync.CodeNotFound,
		"GET /api/v1/updates?after=e99:1":                    statussync.CodeExpired,
		"GET /api/v1/updates?after=" + farAhead(last.Cursor): statussync.CodeExpired,
	} {
		if a := s.do(t, operatorToken, call, ""); a.problem(t).Code != want {
			t.Errorf("%s: %s", call, a.body)
		}
	}
}

func farAhead(c statussync.Cursor) string {
	c.Seq += 1000
	return c.String()
}

// TestHandOver: clients that come while updates pour in, by snapshot or by cursor, whole or filtered, each end with the
// fleet's true state, and see versions rise by one.
func TestHandOver(t *testing.T) {
	const servers, rounds, clients = 6, 40, 24
	s := whole(t, servers)
	start := s.API.opts.Hub.Ready().Head
	var wg sync.WaitGroup
	type result struct {
		name   string
		states map[string]statussync.State
		err    error
	}
	results := make(chan result, clients)
	for i := range clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := result{name: fmt.Sprintf("client %d", i), states: map[string]statussync.State{}}
			defer func() { results <- r }()
			h := http.Header{"Authorization": {"Bearer " + viewerToken}}
			c, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(s.srv.URL, "http")+wire.PathWebSocket, h)
			if err != nil {
				r.err = err
				return
			}
			defer c.Close()
			req := subscribe
			switch i % 3 {
			case 0:
				req += `,"snapshot":true`
			case 1:
				req += `,"cursor":"` + start.String() + `"`
			case 2:
				req += `,"snapshot":true,"filters":[{"states":["error","stopped","running","unknown","starting","stopping"]}]`
			}
			if r.err = c.WriteMessage(websocket.TextMessage, []byte(req+`}`)); r.err != nil {
				return
			}
			versions := map[string]uint64{}
			for {
				c.SetReadDeadline(time.Now().Add(patience))
				_, b, err := c.ReadMessage()
				if err != nil {
					r.err = err
					return
				}
				f, err := wire.DecodeServerFrame(b)
				if err != nil {
					r.err = err
					return
				}
				for _, v := range f.Items {
					r.states[v.ID], versions[v.ID] = v.Status.State, v.Status.Version
				}
				if f.Type == wire.FrameSnapshotEnd && r.states["s00"] == statussync.StateStarting {
					return // it came after the last word
				}
				if f.Type != wire.FrameStatusUpdate {
					continue
				}
				e, err := f.Entry()
				if err != nil {
					r.err = err
					return
				}
				if v, known := versions[e.ServerID]; known && e.Version != v+1 {
					r.err = fmt.Errorf("%s: version %d after %d", e.ServerID, e.Version, v)
					return
				}
				r.states[e.ServerID], versions[e.ServerID] = e.Current.State, e.Version
				if e.ServerID == "s00" && e.Current.State == statussync.StateStarting { // the last word
					return
				}
			}
		}()
	}
	states := []string{"running", "error", "stopped"}
	for round := range rounds {
		for i := range servers {
			st := states[(round+i)%len(states)]
			if a := s.do(t, operatorToken, fmt.Sprintf("PUT /api/v1/servers/s%02d/override", i), `{"state":"`+st+`"}`); a.status != 200 {
				t.Fatalf("%d %s", a.status, a.body)
			}
		}
	}
	s.waitStats(t, "all are there", func(st Stats) bool { return st.WebSockets == clients })
	if a := s.do(t, operatorToken, "PUT /api/v1/servers/s00/override", `{"state":"starting"}`); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	wg.Wait()
	close(results)
	truth := decode[wire.Page[wire.Server]](t, s.do(t, viewerToken, "GET /api/v1/servers", ""))
	for r := range results {
		if r.err != nil && r.err != io.EOF {
			t.Errorf("%s: %v", r.name, r.err)
			continue
		}
		for _, v := range truth.Items {
			if r.states[v.ID] != v.Status.State {
				t.Errorf("%s believes that %s is %s; it is %s", r.name, v.ID, r.states[v.ID], v.Status.State)
			}
		}
	}
}
