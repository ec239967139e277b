package mcpprobe

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

func ssePlan(url string) *statussync.ProbePlan {
	pl := plan(url)
	pl.Transport = statussync.TransportSSE
	return pl
}

func TestRealSSEServer(t *testing.T) {
	for _, transport := range []statussync.Transport{statussync.TransportSSE, statussync.TransportStreamableHTTP} {
		t.Run(string(transport), func(t *testing.T) {
			s := sdkServer()
			var gets atomic.Int64
			h := mcp.NewSSEHandler(func(*http.Request) *mcp.Server { return s }, nil)
			url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet {
					gets.Add(1)
				}
				h.ServeHTTP(w, r)
			})).URL + "/sse"
			p := newProber(t, Options{})
			pl := plan(url)
			pl.Transport = transport
			known(p, pl)
			for range 100 {
				r := p.Probe(t.Context(), pl)
				mustUp(t, r)
				if r.ServerInfo != real123 || r.Protocol != "2025-11-25" || r.HTTPStatus != 200 {
					t.Errorf("%+v", r)
				}
			}
			if n, st := sessions(s), p.Stats(); n != 1 || gets.Load() != 1 || st.Streams != 1 || st.Sessions != 0 {
				t.Errorf("%d sessions, %d streams opened, %+v", n, gets.Load(), st)
			}
			inv, err := p.Inventory(t.Context(), pl)
			if err != nil || len(inv.Tools) != 1 {
				t.Errorf("%+v, %v", inv, err)
			}
			mustUp(t, p.Canary(t.Context(), pl, "add", map[string]any{"a": 1, "b": 2}, `"sum":3`))

			closeSessions(s) // a restart
			await(t, "the stream's end", func() bool { return p.Stats().Streams == 0 })
			mustUp(t, p.Probe(t.Context(), pl))
			if n := sessions(s); n != 1 || gets.Load() != 2 {
				t.Errorf("%d sessions, %d streams opened", n, gets.Load())
			}
			p.Forget("s")
			await(t, "no session after Forget", func() bool { return sessions(s) == 0 })
			mustUp(t, p.Probe(t.Context(), pl)) // in passing
			await(t, "no session after a probe in passing", func() bool { return sessions(s) == 0 })
			mustUp(t, p.Probe(t.Context(), known(p, pl)))
			p.Close(context.Background())
			await(t, "no session after Close", func() bool { return sessions(s) == 0 })
		})
	}
}

// A list may be longer than what a stream takes while nobody asks.
func TestLongListOnTheStream(t *testing.T) {
	s := sdkServer()
	for i := range 300 {
		addTool(s, fmt.Sprint("tool", i), strings.Repeat("long ", 200))
	}
	p := newProber(t, Options{})
	pl := known(p, ssePlan(serve(t, mcp.NewSSEHandler(func(*http.Request) *mcp.Server { return s }, nil)).URL))
	for range 3 {
		if inv, err := p.Inventory(t.Context(), pl); err != nil || len(inv.Tools) != 301 {
			t.Fatalf("%d tools, %v", len(inv.Tools), err)
		}
	}
}

func TestDeathOfSSEServer(t *testing.T) {
	s := sdkServer()
	srv := serve(t, mcp.NewSSEHandler(func(*http.Request) *mcp.Server { return s }, nil))
	p := newProber(t, Options{})
	pl := known(p, ssePlan(srv.URL))
	mustUp(t, p.Probe(t.Context(), pl))
	srv.CloseClientConnections()
	srv.Listener.Close()
	closeSessions(s)
	if r := p.Probe(t.Context(), pl); r.Outcome != statussync.OutcomeFailure || !r.ByConnect {
		t.Errorf("%+v", r)
	}
}

// sseFake is an HTTP+SSE server of which every part can be bad. Its stream sends what is put into events.
type sseFake struct {
	endpoint string // what the endpoint event says
	first    string // sent before it
	status   int    // of the stream; 0: 200
	media    string // of the stream; "": text/event-stream
	post     func(w http.ResponseWriter, c *call, events chan<- string)

	mu     sync.Mutex
	events chan string
}

func (s *sseFake) start(t *testing.T) string {
	f := &fake{t: t}
	f.answer = func(w http.ResponseWriter, c *call) {
		s.mu.Lock()
		events := s.events
		s.mu.Unlock()
		s.post(w, c, events)
	}
	return serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			f.ServeHTTP(w, r)
			return
		}
		events := make(chan string, 100)
		s.mu.Lock()
		s.events = events
		s.mu.Unlock()
		media := s.media
		if media == "" {
			media = mediaEvents
		}
		w.Header().Set("Content-Type", media)
		if s.status != 0 {
			w.WriteHeader(s.status)
			return
		}
		_, _ = io.WriteString(w, s.first)
		if s.endpoint != "" {
			fmt.Fprintf(w, "event: endpoint\ndata: %s\n\n", s.endpoint)
		}
		for {
			_ = http.NewResponseController(w).Flush()
			select {
			case e := <-events:
				if e == "end" {
					return
				}
				if _, err := io.WriteString(w, e); err != nil {
					return
				}
			case <-r.Context().Done():
				return
			}
		}
	})).URL
}

func accept(w http.ResponseWriter, c *call, events chan<- string) {
	w.WriteHeader(202)
	if c.id != "" {
		events <- "event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":" + c.id + ",\"result\":{\"protocolVersion\":\"2024-11-05\",\"capabilities\":{}}}\n\n"
	}
}

func TestSSEServersOfAllKinds(t *testing.T) {
	for _, c := range []struct {
		name    string
		s       *sseFake
		outcome statussync.Outcome
		cause   string
	}{
		{"good", &sseFake{endpoint: "/messages?sessionId=1", post: accept}, statussync.OutcomeSuccess, ""},
		{"absolute comment first", &sseFake{first: ": hi\n\nevent: other\ndata: x\n\n", endpoint: "messages", post: accept}, statussync.OutcomeSuccess, ""},
		{"another origin", &sseFake{endpoint: "http://other.example/messages", post: accept}, statussync.OutcomeFailure, causeNotMCP},
		{"another port", &sseFake{endpoint: "http://127.0.0.1:1/messages", post: accept}, statussync.OutcomeFailure, causeNotMCP},
		{"a scheme-relative host", &sseFake{endpoint: "//other.example/messages", post: accept}, statussync.OutcomeFailure, causeNotMCP},
		{"an endpoint that is no URL", &sseFake{endpoint: "http://[", post: accept}, statussync.OutcomeFailure, causeNotMCP},
		{"a page", &sseFake{endpoint: "/m", media: "text/html", post: accept}, statussync.OutcomeFailure, causeNotMCP},
		{"401", &sseFake{status: 401}, statussync.OutcomeAlive, "http_401"},
		{"404", &sseFake{status: 404}, statussync.OutcomeFailure, "http_404"},
		{"405", &sseFake{status: 405}, statussync.OutcomeFailure, "http_405"},
		{"503", &sseFake{status: 503}, statussync.OutcomeFailure, "http_503"},
		{"endpoint refuses", &sseFake{endpoint: "/m", post: func(w http.ResponseWriter, _ *call, _ chan<- string) { w.WriteHeader(500) }}, statussync.OutcomeFailure, "http_500"},
		{"401 at the endpoint", &sseFake{endpoint: "/m", post: func(w http.ResponseWriter, _ *call, _ chan<- string) { w.WriteHeader(401) }}, statussync.OutcomeAlive, "http_401"},
		{"ends when asked", &sseFake{endpoint: "/m", post: func(w http.ResponseWriter, _ *call, events chan<- string) {
			w.WriteHeader(202)
			events <- "end"
		}}, statussync.OutcomeFailure, "reset"},
		{"floods", &sseFake{endpoint: "/m", post: func(w http.ResponseWriter, c *call, events chan<- string) {
			w.WriteHeader(202)
			for range 60 {
				events <- "data: " + strings.Repeat("x", 256<<10) + "\n\n"
			}
		}}, statussync.OutcomeFailure, causeNotMCP},
		{"noise, then the answer", &sseFake{endpoint: "/m", post: func(w http.ResponseWriter, c *call, events chan<- string) {
			events <- "data: " + strings.Repeat("x", 2<<20) + "\n\ndata: [\n\ndata: {\"jsonrpc\":\"2.0\",\"id\":999999,\"result\":{}}\n\n" +
				"data: {\"jsonrpc\":\"2.0\",\"error\":{\"code\":1,\"message\":\"whose?\"}}\n\n"
			accept(w, c, events)
		}}, statussync.OutcomeSuccess, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			url := c.s.start(t)
			p := newProber(t, Options{})
			pl := known(p, ssePlan(url+"/sse"))
			for range 2 {
				r := p.Probe(t.Context(), pl)
				if r.Outcome != c.outcome || r.Cause != c.cause || r.NotMCP != (c.cause == causeNotMCP) || r.ByConnect {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}

// A stream whose server pings is answered, also between probes, but not as often as it likes.
func TestPingOnTheStream(t *testing.T) {
	var pongs atomic.Int64
	s := sseFake{endpoint: "/m"}
	s.post = func(w http.ResponseWriter, c *call, events chan<- string) {
		if c.method == "" {
			pongs.Add(1)
			w.WriteHeader(202)
			return
		}
		accept(w, c, events)
	}
	p := newProber(t, Options{})
	pl := known(p, ssePlan(s.start(t)))
	mustUp(t, p.Probe(t.Context(), pl))
	for range 50 {
		s.events <- "data: {\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"ping\"}\n\n"
	}
	await(t, "a pong", func() bool { return pongs.Load() > 0 })
	mustUp(t, p.Probe(t.Context(), pl))
	if n := pongs.Load(); n > 25 {
		t.Errorf("50 pings at once had %d pongs", n)
	}
}

// No endpoint, no answer: the probe ends by its timeout, and so does the stream.
func TestSSEThatHangs(t *testing.T) {
	for name, s := range map[string]*sseFake{
		"no endpoint": {},
		"no answer":   {endpoint: "/m", post: func(w http.ResponseWriter, _ *call, _ chan<- string) { w.WriteHeader(202) }},
	} {
		p := newProber(t, Options{})
		pl := ssePlan(s.start(t))
		pl.Timeout = 300 * time.Millisecond
		r := p.Probe(t.Context(), known(p, pl))
		if r.Outcome != statussync.OutcomeFailure || r.Cause != "timeout" || r.ByConnect || r.FinishedAt.Sub(r.StartedAt) > 20*time.Second {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
