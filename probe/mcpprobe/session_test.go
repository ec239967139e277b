package mcpprobe

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// front is a stable address before a server that can be replaced, as by a restart.
type front struct{ h atomic.Pointer[http.Handler] }

func (f *front) set(h http.Handler) { f.h.Store(&h) }

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) { (*f.h.Load()).ServeHTTP(w, r) }

func mustUp(t testing.TB, r statussync.ProbeResult) {
	t.Helper()
	if r.Outcome != statussync.OutcomeSuccess {
		t.Fatalf("%+v", r)
	}
}

// TestRealServers asks servers of the official SDK, of both eras.
func TestRealServers(t *testing.T) {
	for _, c := range []struct {
		name     string
		versions []string
		o        mcp.StreamableHTTPOptions
		protocol string
		sessions int
	}{
		{"modern", nil, mcp.StreamableHTTPOptions{Stateless: true}, "2026-07-28", 0},
		{"modern, JSON", nil, mcp.StreamableHTTPOptions{Stateless: true, JSONResponse: true}, "2026-07-28", 0},
		{"stateless, legacy versions", []string{"2025-06-18"}, mcp.StreamableHTTPOptions{Stateless: true}, "2025-06-18", 0},
		{"stateful", nil, mcp.StreamableHTTPOptions{}, "2025-11-25", 1},
		{"stateful, JSON", nil, mcp.StreamableHTTPOptions{JSONResponse: true}, "2025-11-25", 1},
		{"2025-11-25", []string{"2025-11-25"}, mcp.StreamableHTTPOptions{}, "2025-11-25", 1},
		{"2025-06-18", []string{"2025-06-18"}, mcp.StreamableHTTPOptions{}, "2025-06-18", 1},
		{"2025-03-26", []string{"2025-03-26"}, mcp.StreamableHTTPOptions{}, "2025-03-26", 1},
		{"2024-11-05", []string{"2024-11-05"}, mcp.StreamableHTTPOptions{}, "2024-11-05", 1},
		{"resumable", nil, mcp.StreamableHTTPOptions{EventStore: mcp.NewMemoryEventStore(nil)}, "2025-11-25", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := sdkServer(c.versions...)
			url := serve(t, sdkHandler(s, c.o)).URL
			p := New(Options{})
			pl := known(p, plan(url))
			for range 5 {
				r := p.Probe(t.Context(), pl)
				mustUp(t, r)
				if r.Protocol != c.protocol || r.ServerInfo != real123 {
					t.Errorf("%+v", r)
				}
			}
			await(t, "as many sessions as there should be", func() bool { return sessions(s) == c.sessions })
			if st := p.Stats(); st.Sessions != c.sessions || st.Servers != 1 {
				t.Errorf("%+v", st)
			}
			inv, err := p.Inventory(t.Context(), pl)
			if err != nil || inv.Protocol != c.protocol || inv.Name != "real" || inv.Version != "1.2.3" || len(inv.Tools) != 1 ||
				inv.Tools[0].Name != "add" || inv.Resources != -1 || inv.Prompts != -1 || inv.Latency <= 0 {
				t.Errorf("%+v, %v", inv, err)
			}
			res := p.Canary(t.Context(), pl, "add", map[string]any{"a": 2, "b": 40}, "42")
			mustUp(t, res)
			if n := sessions(s); n != c.sessions {
				t.Errorf("%d sessions after inventory and canary", n)
			}
			p.Close(t.Context())
			if n := sessions(s); n != 0 {
				t.Errorf("%d sessions after Close", n)
			}
			if r := p.Probe(t.Context(), pl); r.Outcome != statussync.OutcomeFailure || sessions(s) != 0 {
				t.Errorf("a probe after Close: %+v", r)
			}
		})
	}
}

// TestSessionHygiene counts on the server's side: a day of probes (one each 30 s) holds one session, and the end of
// monitoring leaves none.
func TestSessionHygiene(t *testing.T) {
	s := sdkServer()
	var most atomic.Int64
	h := sdkHandler(s, mcp.StreamableHTTPOptions{})
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		// discover's own session ends with its request.
		if n := int64(sessions(s)); n > most.Load() {
			most.Store(n)
		}
	})).URL
	p := newProber(t, Options{})
	pl := known(p, plan(url))
	for range 2880 {
		mustUp(t, p.Probe(t.Context(), pl))
	}
	if n := sessions(s); n != 1 || most.Load() > 1 {
		t.Errorf("%d sessions, at most %d", n, most.Load())
	}
	none := func(what string) {
		t.Helper()
		await(t, "no session after "+what, func() bool { return sessions(s) == 0 })
	}
	change := func(what string, edit func(*statussync.ProbePlan)) {
		t.Helper()
		next := *pl
		edit(&next)
		pl = known(p, &next)
		if what != "" {
			none(what)
			pl2 := *pl
			pl2.Kind, pl2.Removed = statussync.ProbeMCP, false
			pl = known(p, &pl2)
			mustUp(t, p.Probe(t.Context(), pl))
		}
		if n := sessions(s); n != 1 {
			t.Fatalf("%d sessions", n)
		}
	}
	change("", func(pl *statussync.ProbePlan) { pl.Interval = time.Minute }) // nothing that matters
	change("another URL", func(pl *statussync.ProbePlan) { pl.URL += "/other" })
	change("another header", func(pl *statussync.ProbePlan) { pl.Headers = map[string]string{"X": "y"} })
	change("another transport", func(pl *statussync.ProbePlan) { pl.Transport = statussync.TransportHTTP })
	change("another kind", func(pl *statussync.ProbePlan) { pl.Kind = statussync.ProbeHTTP })
	change("no probing", func(pl *statussync.ProbePlan) { pl.Kind = statussync.ProbeNone })
	change("removal", func(pl *statussync.ProbePlan) { pl.Removed = true })
	p.Forget("s")
	none("Forget")
	// Nobody told the prober of this one, so nobody would tell it of the end.
	for range 3 {
		mustUp(t, p.Probe(t.Context(), pl))
		if n := sessions(s); n != 0 {
			t.Errorf("%d sessions after a probe in passing", n)
		}
	}
	if _, err := p.Inventory(t.Context(), pl); err != nil || sessions(s) != 0 {
		t.Errorf("an inventory in passing: %v, %d sessions", err, sessions(s))
	}
	if n := most.Load(); n > 1 {
		t.Errorf("at most %d sessions", n)
	}
}

func TestCloseEndsManySessions(t *testing.T) {
	s := sdkServer()
	url := serve(t, sdkHandler(s, mcp.StreamableHTTPOptions{})).URL
	p := New(Options{})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			pl := plan(url)
			pl.ServerID = fmt.Sprint("s", i)
			if r := p.Probe(t.Context(), known(p, pl)); r.Outcome != statussync.OutcomeSuccess {
				t.Errorf("%+v", r)
			}
		})
	}
	wg.Wait()
	if n := sessions(s); n != 100 {
		t.Fatalf("%d sessions", n)
	}
	p.Forget("s1") // nobody runs Run: Close does it all
	p.Close(context.Background())
	if n := sessions(s); n != 0 {
		t.Errorf("%d sessions after Close", n)
	}
	p.Close(context.Background())
}

// Probes, inventories and changes at once still make one session.
func TestConcurrentUse(t *testing.T) {
	s := sdkServer()
	url := serve(t, sdkHandler(s, mcp.StreamableHTTPOptions{})).URL
	p := newProber(t, Options{})
	pl := known(p, plan(url))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				if r := p.Probe(t.Context(), pl); r.Outcome != statussync.OutcomeSuccess {
					t.Errorf("%+v", r)
				}
				if _, err := p.Inventory(t.Context(), pl); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := sessions(s); n != 1 {
		t.Errorf("%d sessions", n)
	}
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				next := *pl
				next.URL = fmt.Sprintf("%s/%d", url, (i+j)%3)
				_ = p.Probe(t.Context(), known(p, &next))
			}
		})
	}
	wg.Wait()
	p.Forget("s")
	await(t, "no session", func() bool { return sessions(s) == 0 })
}

func TestServerRestarts(t *testing.T) {
	f := &front{}
	old := sdkServer()
	f.set(sdkHandler(old, mcp.StreamableHTTPOptions{}))
	url := serve(t, f).URL
	p := newProber(t, Options{})
	pl := known(p, plan(url))
	mustUp(t, p.Probe(t.Context(), pl))

	fresh := sdkServer()
	f.set(sdkHandler(fresh, mcp.StreamableHTTPOptions{}))
	r := p.Probe(t.Context(), pl)
	mustUp(t, r)
	if n := sessions(fresh); n != 1 {
		t.Errorf("%d sessions", n)
	}
	closeSessions(old)

	// The same address is another era now.
	next := sdkServer()
	f.set(sdkHandler(next, mcp.StreamableHTTPOptions{Stateless: true}))
	mustUp(t, p.Probe(t.Context(), pl))
	closeSessions(fresh)

	// And back.
	fresh = sdkServer("2025-06-18")
	f.set(sdkHandler(fresh, mcp.StreamableHTTPOptions{}))
	for range 3 {
		mustUp(t, p.Probe(t.Context(), pl))
	}
	if r := p.Probe(t.Context(), pl); r.Protocol != "2025-06-18" || sessions(fresh) != 1 {
		t.Errorf("%+v, %d sessions", r, sessions(fresh))
	}
}

func TestErasChange(t *testing.T) {
	f := &front{}
	url := serve(t, f).URL
	p := newProber(t, Options{})
	pl := known(p, plan(url))
	old := sdkServer("2025-11-25")
	t.Cleanup(func() { closeSessions(old) }) // its own were out of reach when it was replaced
	set := map[string]http.Handler{
		"modern": &fake{t: t, answer: modern},
		"legacy": &fake{t: t, answer: legacy("x", func(w http.ResponseWriter, c *call) { result(w, c, "{}") })},
		"real":   sdkHandler(old, mcp.StreamableHTTPOptions{}),
		"strict": &fake{t: t, answer: func(w http.ResponseWriter, c *call) { // a modern one that refuses everything else as such
			if c.version != versionModern {
				rpcFault(w, c, 400, -32022, "Unsupported protocol version", `{"supported":["2026-07-28"]}`)
				return
			}
			modern(w, c)
		}},
	}
	sse := sdkServer()
	set["sse"] = mcp.NewSSEHandler(func(*http.Request) *mcp.Server { return sse }, nil)
	for _, now := range []string{"sse", "legacy", "sse", "modern", "sse", "real", "legacy", "modern", "legacy", "strict", "real", "strict", "legacy", "real", "modern", "real"} {
		f.set(set[now])
		closeSessions(sse) // the end of its process
		await(t, "the stream's end", func() bool { return p.Stats().Streams == 0 })
		p.forgetStreamTried()
		var r statussync.ProbeResult
		for range 2 { // the second is the confirmation that follows a failure
			r = p.Probe(t.Context(), pl)
		}
		if r.Outcome != statussync.OutcomeSuccess {
			t.Errorf("became %s: %+v", now, r)
		}
	}
}

func TestDeathIsFound(t *testing.T) {
	for _, stateless := range []bool{true, false} {
		s := sdkServer()
		srv := serve(t, sdkHandler(s, mcp.StreamableHTTPOptions{Stateless: stateless}))
		p := newProber(t, Options{})
		pl := known(p, plan(srv.URL))
		mustUp(t, p.Probe(t.Context(), pl))
		if _, err := p.Inventory(t.Context(), pl); err != nil {
			t.Fatal(err)
		}
		closeSessions(s)
		srv.CloseClientConnections()
		srv.Close()
		if r := p.Probe(t.Context(), pl); r.Outcome != statussync.OutcomeFailure || !r.ByConnect {
			t.Errorf("%+v", r)
		}
		if _, err := p.Inventory(t.Context(), pl); statussync.CodeOf(err) != statussync.CodeUnavailable {
			t.Errorf("an inventory of a dead server: %v", err)
		}
	}
}

// A server that keeps no session, as several instances without sticky sessions do, is not flooded with new ones.
func TestSessionsThatAreLost(t *testing.T) {
	var opened atomic.Int64
	_, url := newFake(t, func(w http.ResponseWriter, c *call) {
		if c.method == "initialize" {
			opened.Add(1)
		}
		legacy(fmt.Sprint("x", opened.Load()), func(w http.ResponseWriter, _ *call) { reply(w, 404, "text/plain", "session not found") })(w, c)
	})
	p := newProber(t, Options{})
	pl := known(p, plan(url))
	for i := range 50 {
		if r := p.Probe(t.Context(), pl); r.Outcome != statussync.OutcomeFailure || r.Cause != causeSessionLost {
			t.Fatalf("%d: %+v", i, r)
		}
	}
	if n := opened.Load(); n > 10 {
		t.Errorf("50 probes opened %d sessions", n)
	}
}

func TestLostSessionsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(plan("http://h/"))
		p := New(Options{})
		defer p.Close(context.Background())
		c := &talk{p: p, s: s, opened: true}
		var last time.Duration
		for i := range 20 {
			con := conclusion{outcome: statussync.OutcomeFailure, cause: causeSessionLost, then: reopen}
			if _, ok := c.next(askPing, &con); ok {
				t.Fatal("opened another at once")
			}
			wait := time.Until(s.notBefore)
			if i+1 >= maxLost && (wait <= 0 || wait < last || wait > maxLostWait) || i+1 < maxLost && wait > 0 {
				t.Errorf("after %d losses %s", i+1, wait)
			}
			last = wait
		}
		if last != maxLostWait {
			t.Errorf("in the end %s", last)
		}
		s.era = eraLegacy
		if k := c.first(); k == askInitialize {
			t.Error("asks to initialize too early")
		}
		time.Sleep(maxLostWait)
		if k := c.first(); k != askInitialize {
			t.Errorf("asks %d", k)
		}
	})
}

// What a server opens without being asked is ended too.
func TestSessionOfDiscover(t *testing.T) {
	deleted := make(chan string, 10)
	_, url := newFake(t, func(w http.ResponseWriter, c *call) {
		switch {
		case c.verb == http.MethodDelete:
			deleted <- c.session
		case c.method == "server/discover":
			w.Header().Set(headerSession, "unasked")
			rpcFault(w, c, 400, -32600, "Missing session ID", "")
		case c.method == "initialize":
			w.Header().Set(headerSession, "refused")
			rpcFault(w, c, 200, -32603, "no", "")
		}
	})
	p := newProber(t, Options{})
	if r := p.Probe(t.Context(), known(p, plan(url))); r.Outcome != statussync.OutcomeAlive {
		t.Errorf("%+v", r)
	}
	got := map[string]bool{<-deleted: true, <-deleted: true}
	if !got["unasked"] || !got["refused"] {
		t.Errorf("ended: %v", got)
	}
}

// A server that pings its client within an answer gets its pong.
func TestPingFromTheServer(t *testing.T) {
	pongs := make(chan string, 10)
	_, url := newFake(t, func(w http.ResponseWriter, c *call) {
		if c.method == "" && c.verb == http.MethodPost {
			pongs <- c.body + c.session
			w.WriteHeader(202)
			return
		}
		legacy("x", func(w http.ResponseWriter, c *call) {
			w.Header().Set("Content-Type", mediaEvents)
			for i := range 10 {
				fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"id\":\"p%d\",\"method\":\"ping\"}\n\n", i)
			}
			_ = http.NewResponseController(w).Flush()
			if got := <-pongs; got != `{"jsonrpc":"2.0","id":"p0","result":{}}x` {
				t.Errorf("pong %q", got)
			}
			fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":{}}\n\n", c.id)
		})(w, c)
	})
	p := newProber(t, Options{})
	mustUp(t, p.Probe(t.Context(), known(p, plan(url))))
	if n := len(pongs); n != maxPongs-1 {
		t.Errorf("%d pongs", n+1)
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	stop := make(chan struct{})
	defer close(stop)
	_, url := newFake(t, func(http.ResponseWriter, *call) {
		cancel()
		<-stop
	})
	p := newProber(t, Options{})
	if r := p.Probe(ctx, known(p, plan(url))); r.Outcome != statussync.OutcomeFailure || r.Cause != "canceled" || r.ByConnect {
		t.Errorf("%+v", r)
	}
}

// An idle connection that the server closes is replaced without a failure being seen.
func TestConnectionClosedWhileIdle(t *testing.T) {
	s := sdkServer()
	srv := serve(t, sdkHandler(s, mcp.StreamableHTTPOptions{}))
	p := newProber(t, Options{})
	pl := known(p, plan(srv.URL))
	for range 20 {
		mustUp(t, p.Probe(t.Context(), pl))
		srv.CloseClientConnections()
	}
	if n := sessions(s); n != 1 {
		t.Errorf("%d sessions", n)
	}
}
