package mcpprobe

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patient is a timeout that only a test whose server hangs meets.
const patient = 30 * time.Second

func newProber(t testing.TB, o Options) *Prober {
	p := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		p.Close(context.Background())
	})
	return p
}

func plan(url string) *statussync.ProbePlan {
	return &statussync.ProbePlan{ServerID: "s", Kind: statussync.ProbeMCP, URL: url, Timeout: patient, Trusted: true}
}

// known tells p of a plan, as the engine does.
func known(p *Prober, plan *statussync.ProbePlan) *statussync.ProbePlan {
	p.Do([]statussync.Request{{Plan: plan}})
	return plan
}

// serve runs a real HTTP server; what it logs of broken connections is of no interest.
func serve(t testing.TB, h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// await waits until a condition holds; it fails after a minute.
func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 12_000 {
		if is() {
			return
		}
		<-tick.C
	}
	t.Fatalf("never: %s", what)
}

type addIn struct {
	A int `json:"a" jsonschema:"one number"`
	B int `json:"b"`
}
type addOut struct {
	Sum int `json:"sum"`
}

// real123 is what sdkServer calls itself.
var real123 = statussync.ServerInfo{Name: "real", Version: "1.2.3"}

// sdkServer is a server of the official SDK with one tool, which adds.
func sdkServer(versions ...string) *mcp.Server {
	s := mcp.NewServer(&mcp.Implementation{Name: "real", Version: "1.2.3"}, &mcp.ServerOptions{SupportedProtocolVersions: versions})
	addTool(s, "add", "Adds two numbers")
	return s
}

func addTool(s *mcp.Server, name, description string) {
	mcp.AddTool(s, &mcp.Tool{Name: name, Description: description},
		func(_ context.Context, _ *mcp.CallToolRequest, in addIn) (*mcp.CallToolResult, addOut, error) {
			return nil, addOut{in.A + in.B}, nil
		})
}

func sdkHandler(s *mcp.Server, o mcp.StreamableHTTPOptions) http.Handler {
	return mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s }, &o)
}

// sessions counts a real server's live sessions.
func sessions(s *mcp.Server) int {
	n := 0
	for range s.Sessions() {
		n++
	}
	return n
}

// closeSessions ends them, as the end of the process does.
func closeSessions(s *mcp.Server) {
	for ss := range s.Sessions() {
		_ = ss.Close()
	}
}

// call is one request as a fake sees it.
type call struct {
	verb    string // of HTTP
	method  string
	id      string
	session string
	version string // header
	path    string
	header  http.Header
	body    string
}

// fake answers each request by a script and remembers what it was asked.
type fake struct {
	t      testing.TB
	answer func(w http.ResponseWriter, c *call)

	mu    sync.Mutex
	calls []call
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var m struct {
		ID     json.RawMessage `json:"id"`
		Method string          `json:"method"`
	}
	if len(body) > 0 {
		if err := json.Unmarshal(body, &m); err != nil {
			f.t.Errorf("the probe sent %q: %v", body, err)
		}
	}
	c := call{
		verb: r.Method, method: m.Method, id: string(m.ID), session: r.Header.Get(headerSession), version: r.Header.Get(headerVersion),
		path: r.URL.Path, header: r.Header, body: string(body),
	}
	f.mu.Lock()
	f.calls = append(f.calls, c)
	f.mu.Unlock()
	f.answer(w, &c)
}

// asked lists what was asked since the last time.
func (f *fake) asked() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, c := range f.calls {
		what := c.method
		if c.verb != http.MethodPost {
			what = c.verb
		}
		out = append(out, what)
	}
	f.calls = nil
	return strings.Join(out, " ")
}

func newFake(t testing.TB, answer func(w http.ResponseWriter, c *call)) (*fake, string) {
	f := &fake{t: t, answer: answer}
	return f, serve(t, f).URL + "/mcp"
}

func reply(w http.ResponseWriter, status int, mediaType, body string) {
	if mediaType != "" {
		w.Header().Set("Content-Type", mediaType)
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func result(w http.ResponseWriter, c *call, res string) {
	reply(w, 200, mediaJSON, `{"jsonrpc":"2.0","id":`+c.id+`,"result":`+res+`}`)
}

func rpcFault(w http.ResponseWriter, c *call, status, code int, text, data string) {
	if data != "" {
		data = `,"data":` + data
	}
	reply(w, status, mediaJSON, fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"error":{"code":%d,"message":%q%s}}`, c.id, code, text, data))
}

// legacy makes a script of a well-behaved legacy server with one session, in which ping is answered by onPing.
func legacy(session string, onPing func(w http.ResponseWriter, c *call)) func(http.ResponseWriter, *call) {
	return func(w http.ResponseWriter, c *call) {
		switch {
		case c.verb == http.MethodDelete:
			w.WriteHeader(204)
		case c.verb != http.MethodPost:
			w.WriteHeader(405)
		case c.method == "server/discover":
			rpcFault(w, c, 400, -32000, "Bad Request: Server not initialized", "")
		case c.method == "initialize":
			if session != "" {
				w.Header().Set(headerSession, session)
			}
			result(w, c, `{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"fake","version":"7"}}`)
		case c.method == "notifications/initialized":
			w.WriteHeader(202)
		default:
			onPing(w, c)
		}
	}
}

func modern(w http.ResponseWriter, c *call) {
	if c.method != "server/discover" || c.version != versionModern || c.header.Get(headerMethod) != c.method {
		w.WriteHeader(400)
		return
	}
	result(w, c, `{"supportedVersions":["2026-07-28","2025-11-25"],"capabilities":{"tools":{}},"ttlMs":0,
		"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"fake","version":"8"}}}`)
}

// rawServer does with each connection what handle does.
func rawServer(t testing.TB, handle func(c net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return "http://" + l.Addr().String() + "/mcp"
}

// forgetStreamTried lets the next probe try HTTP+SSE, as after five minutes.
func (p *Prober) forgetStreamTried() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.servers {
		s.mu.Lock()
		s.streamTried = time.Time{}
		s.mu.Unlock()
	}
}
