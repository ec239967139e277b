//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// TestBadInput throws at every open door what should never come through it, while two subscribers listen who must not
// lose anything by it.
func TestBadInput(t *testing.T) {
	s := startService(t, obj{
		"environments": list{envOf("good", "token-good"), envOf("bad", "token-bad1")},
		"servers": list{
			unprobed("good-1", "good", "running"), unprobed("good-2", "good", "stopped"),
			unprobed("bad-1", "bad", "running"), unprobed("bad-2", "bad", "running"),
		},
	})
	beats := [2][]byte{
		heartbeat(container("good-1", "running", "Up 2 hours"), container("good-2", "running", "Up 2 hours")),
		heartbeat(container("good-1", "running", "Up 2 hours"), container("good-2", "exited", "Exited (0) 2 hours ago")),
	}
	s.postHeartbeat("token-good", beats[0])
	s.postHeartbeat("token-bad1", heartbeat(container("bad-1", "running", "Up 2 hours"), container("bad-2", "running", "Up 2 hours")))
	for _, id := range []string{"good-1", "good-2", "bad-1", "bad-2"} {
		s.waitStatus(10*time.Second, id, "running", "healthy", "ok")
	}
	_, start := s.servers("")
	followers := []*follower{{name: "ws"}, {name: "sse", sse: true}}
	for _, f := range followers {
		s.follow(f, start)
	}
	// alive makes one change and checks that both subscribers hear of it: nobody was harmed by what came before.
	n := 0
	alive := func(t *testing.T) {
		t.Helper()
		n++
		s.postHeartbeat("token-good", beats[n%2])
		s.waitStatus(5*time.Second, "good-2", []string{"running", "stopped"}[n%2], "", "")
		journal := s.updates(start, "")
		for _, f := range followers {
			f.waitLast(t, 10*time.Second, journal[len(journal)-1])
			f.check(t, journal)
		}
	}

	t.Run("heartbeats", func(t *testing.T) {
		tools := func(v string) []byte { return []byte(`{"dtma_version":"0.1.0","tool_statuses":` + v + `}`) }
		many := func(n int, each func(int) string) []byte {
			var b bytes.Buffer
			for i := range n {
				if i > 0 {
					b.WriteByte(',')
				}
				b.WriteString(each(i))
			}
			return tools("[" + b.String() + "]")
		}
		const refused, large = "400", "413"
		for _, c := range []struct {
			name, want string // want: the codes that are right
			body       []byte
		}{
			{"not JSON", refused, []byte("not json at all")},
			{"empty", refused, []byte{}},
			{"cut short", refused, []byte(`{"tool_statuses":[{"names":["bad-1"]`)},
			{"two documents", refused, []byte(`{"tool_statuses":[]}{"tool_statuses":[]}`)},
			{"a list", refused, []byte(`[]`)},
			{"a number", refused, []byte(`7`)},
			{"null", refused, []byte(`null`)},
			{"a NUL byte", refused, []byte("\x00")},
			{"invalid UTF-8", "204 400", tools("[{\"names\":[\"bad-1\xff\xfe\"],\"state\":\"running\",\"status\":\"Up\"},{\"names\":[\"bad-1\"],\"state\":\"running\",\"status\":\"Up\"},{\"names\":[\"bad-2\"],\"state\":\"running\",\"status\":\"Up\"}]")},
			{"5 MB of blanks", large, bytes.Repeat([]byte(" "), 5<<20)},
			{"5 MB of containers", large, many(50_000, func(i int) string {
				return fmt.Sprintf(`{"names":["c%06d"],"state":"running","status":"Up 2 hours","image":"registry.example/some/image:1.2.3"}`, i)
			})},
			{"100,000 containers", large, many(100_000, func(i int) string { return fmt.Sprintf(`{"names":["%d"],"state":"exited"}`, i) })},
			{"100,000 empty containers", "204 400 413", many(100_000, func(int) string { return `{}` })},
			{"20,000 containers", "204 413", many(20_000, func(i int) string {
				return fmt.Sprintf(`{"names":["x%d"],"state":"running"},{"names":["bad-1"],"state":"running"}`, i)
			})},
			{"deep list", refused, tools(strings.Repeat("[", 200_000))},
			{"deep and closed", "204 400", tools(strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000))},
			{"deep objects", "204 400", tools("[{\"runtime_details\":" + strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000) + "}]")},
			{"statuses a text", "204 400", tools(`"running"`)},
			{"statuses a number", "204 400", tools(`7`)},
			{"statuses an object", "204 400", tools(`{"weather":"running"}`)},
			{"statuses a mixture", "204 400", tools(`[1,"a",null,[],{"names":7,"state":[]},{"names":"bad-1","state":5,"status":{}}]`)},
			{"system a list", "204 400", []byte(`{"system_status":[1,2],"dtma_version":{"a":1}}`)},
			{"huge numbers", "204 400", tools(`[{"names":["bad-1"],"state":"running","status":"Up 2 hours","created":1e400,"ports":[{"public_port":99999999999999999999}]},{"names":["bad-2"],"state":"running","status":"Up 999999999999999999 years"}]`)},
			{"strange ports", "204 400", tools(`[{"names":["bad-1"],"state":"running","status":"Up 2 hours","ports":[{"public_port":-1},{"public_port":70000},{"public_port":"6379@10.0.0.5"},7]},{"names":["bad-2"],"state":"running","status":"Up 1 hour"}]`)},
			{"a name of 500 kB", "204 400", tools(`[{"names":["` + strings.Repeat("n", 500_000) + `"],"state":"running","status":"` + strings.Repeat("s", 100_000) + `"},{"names":["bad-1"],"state":"running"},{"names":["bad-2"],"state":"running"}]`)},
			{"terminal escapes", "204 400", tools(`[{"names":["\u001b[31mred\u202e"],"image":"\u001b]0;x\u0007","state":"running","status":"\u001b[2J"},{"names":["bad-1"],"state":"running"},{"names":["bad-2"],"state":"running"}]`)},
		} {
			code, b := s.request("POST", "/heartbeat", c.body, "Authorization", "Bearer token-bad1")
			if !strings.Contains(c.want, fmt.Sprint(code)) {
				t.Errorf("%s: %d %s, not %s", c.name, code, clip(b), c.want)
			}
			if code == 204 && len(b) > 0 {
				t.Errorf("%s: 204 with a body", c.name)
			}
			if code != 204 {
				checkProblem(t, c.name, code, b)
			}
		}
		// None of this was a report that bad-1 or bad-2 stopped.
		for _, id := range []string{"bad-1", "bad-2"} {
			if st := s.status(id); st.State != "running" {
				t.Errorf("%s is %s after heartbeats that make no sense: %v", id, st.key(), s.history(id))
			}
		}
		var d struct {
			Items []struct{ Container, Text, Image string }
		}
		s.getJSON("/api/v1/discovered?limit=1000", &d)
		if len(d.Items) > 200 {
			t.Errorf("%d discovered containers are kept of one environment", len(d.Items))
		}
		for _, it := range d.Items {
			if strings.ContainsAny(it.Container+it.Text+it.Image, "\x1b\x07\u202e") || len(it.Container) > 300 {
				t.Errorf("untrusted text is kept as it came: %q", clip([]byte(it.Container+it.Text)))
			}
		}
		alive(t)
	})

	t.Run("foreign servers and duplicates", func(t *testing.T) {
		s.postHeartbeat("token-bad1", []byte(`{"tool_statuses":[
			{"account_tool_instance_id":"good-1","instance_name_on_toolbox":"good-1","status_on_toolbox":"error"},
			{"id":"x","names":["good-1"],"state":"exited","status":"Exited (137) 1 second ago"},
			{"names":["bad-1"],"state":"running","status":"Up 2 hours"},{"names":["bad-2"],"state":"running","status":"Up 2 hours"}]}`))
		s.postHeartbeat("token-bad1", []byte(`{"tool_statuses":[
			{"names":["bad-1"],"state":"running","status":"Up 2 hours"},{"names":["bad-1"],"state":"running","status":"Up 2 hours"},
			{"names":["bad-1","bad-2"],"state":"running","status":"Up 2 hours"},{"names":["/bad-2"],"state":"running","status":"Up 2 hours"}]}`))
		alive(t)
		if st := s.status("good-1"); st.key() != "running/healthy/ok/" {
			t.Errorf("another environment's agent made good-1 %s", st.key())
		}
		for _, id := range []string{"bad-1", "bad-2"} {
			if st := s.status(id); st.State != "running" {
				t.Errorf("duplicates made %s %s", id, st.key())
			}
		}
		// Without or with a wrong token nothing is taken, and the right one still works afterwards from this address.
		crash := heartbeat(container("good-1", "exited", "Exited (137) 1 second ago"), container("good-2", "exited", "Exited (0) 1 second ago"))
		for _, auth := range []string{"", "Bearer", "Bearer wrong-token", "Basic dG9rZW4tZ29vZA==", "Bearer " + strings.Repeat("x", 5000), "Bearer token-goo", "Bearer token-good1"} {
			var h []string
			if auth != "" {
				h = []string{"Authorization", auth}
			}
			code, b := s.request("POST", "/heartbeat", crash, h...)
			if code != 401 && code != 429 {
				t.Errorf("a heartbeat with %q: %d %s, not 401", clip([]byte(auth)), code, clip(b))
			}
			checkProblem(t, "token", code, b)
		}
		for _, m := range []string{"GET", "PUT", "DELETE", "PATCH"} {
			if code, b := s.request(m, "/heartbeat", nil, "Authorization", "Bearer token-good"); code != 405 {
				t.Errorf("%s /heartbeat: %d %s, not 405", m, code, clip(b))
			}
		}
		alive(t)
		if st := s.status("good-1"); st.key() != "running/healthy/ok/" {
			t.Errorf("a heartbeat without a right token made good-1 %s", st.key())
		}
	})

	t.Run("websocket", func(t *testing.T) {
		deep := strings.Repeat("[", 20_000)
		manyIDs := `["` + strings.Repeat(`a","`, 1500) + `a"]`
		sub := func(rest string) string { return `{"type":"subscribe","channel":"mcp_server_status",` + rest + `}` }
		for _, path := range []string{"/api/v1/ws", "/ws/mcp-status"} {
			for _, bad := range []string{
				"", "hello", "7", "null", `"subscribe"`, "[]", "{}", `{"type":7}`, `{"type":"shutdown"}`, `{"type":"subscribe"}`,
				`{"type":"subscribe","channel":"other"}`, `{"type":"subscribe"`, deep, "\x00\x01", `{"type":"ping"}{"type":"ping"}`,
				sub(`"cursor":"nonsense"`), sub(`"cursor":"e1:-1"`), sub(`"cursor":"e1:99999999999999999999"`), sub(`"cursor":7`),
				sub(`"cursor":"` + strings.Repeat("e", 10_000) + `:1"`), sub(`"filters":[{"server_ids":` + manyIDs + `}]`),
				sub(`"filters":[{"servers":["good-1"]}]`), sub(`"filters":[{"states":["sleepy"]}]`), sub(`"filters":[7]`),
				sub(`"mode":"sometimes"`), sub(`"mode":"latest","filters":[{"type":"recovery"}]`),
			} {
				c := s.ws(path)
				if err := c.WriteMessage(websocket.TextMessage, []byte(bad)); err != nil {
					t.Fatal(err)
				}
				// An error frame, or a close with a code of ours; on the old path some of it is understood, and tolerated.
				if what := answer(c); path == "/api/v1/ws" && what != "error" && what != "close 4501" {
					t.Errorf("%s: %q was answered with %s", path, clip([]byte(bad)), what)
				}
				c.Close()
			}
			for name, write := range map[string]func(c *websocket.Conn) error{
				"binary": func(c *websocket.Conn) error { return c.WriteMessage(websocket.BinaryMessage, []byte{1, 2, 3, 0xff}) },
				"huge": func(c *websocket.Conn) error {
					return c.WriteMessage(websocket.TextMessage, bytes.Repeat([]byte("x"), 1<<20))
				},
				"huge JSON": func(c *websocket.Conn) error {
					return c.WriteMessage(websocket.TextMessage, []byte(`{"type":"ping","id":"`+strings.Repeat("x", 100_000)+`"}`))
				},
				"no WebSocket": func(c *websocket.Conn) error {
					_, err := c.NetConn().Write([]byte("GET / HTTP/1.1\r\n\r\n\r\n\r\n\r\n"))
					return err
				},
				"reserved opcode": func(c *websocket.Conn) error {
					_, err := c.NetConn().Write([]byte{0x83, 0x80, 1, 2, 3, 4})
					return err
				},
				"not masked": func(c *websocket.Conn) error {
					_, err := c.NetConn().Write([]byte("\x81\x0f{\"type\":\"ping\"}"))
					return err
				},
			} {
				c := s.ws(path)
				if err := write(c); err != nil && !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "broken pipe") {
					t.Fatal(err)
				}
				if what := answer(c); !strings.HasPrefix(what, "close") && what != "cut" && what != "error" {
					t.Errorf("%s: %s was answered with %s", path, name, what)
				}
				c.Close()
			}
		}
		// A bad frame does not end what was subscribed before it; nor do ten pings at once. One that never subscribes is
		// answered when it pings, and told nothing.
		c, idle := s.ws("/api/v1/ws"), s.ws("/api/v1/ws")
		send(t, c, obj{"type": "subscribe", "channel": "mcp_server_status"})
		expect(t, c, "subscribed")
		if err := c.WriteMessage(websocket.TextMessage, []byte("oops")); err != nil {
			t.Fatal(err)
		}
		if what := answer(c); what != "error" {
			t.Errorf("a bad frame was answered with %s", what)
		}
		for range 10 {
			send(t, c, obj{"type": "ping"})
		}
		alive(t)
		expect(t, c, "status_update")
		send(t, idle, obj{"type": "ping"})
		idle.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, b, err := idle.ReadMessage(); err != nil || !bytes.Contains(b, []byte(`"pong"`)) {
			t.Errorf("one that never subscribed was told %s %v", b, err)
		}
	})

	t.Run("cursors", func(t *testing.T) {
		_, now := s.servers("")
		epoch := epochOf(now)
		garbage := []string{"x", "e", "e1", ":", "e1:", "e1:x", "e1:-1", "e1:01", "1:1", "e1:1:1", "e1:99999999999999999999", "é1:1", "e1%00:1", strings.Repeat("e", 3000)}
		for _, g := range garbage {
			for _, path := range []string{"/api/v1/updates?after=", "/api/v1/stream?cursor="} {
				code, b := s.request("GET", path+g, nil)
				if code != 400 && code != 422 {
					t.Errorf("%s%s: %d %s, not 400", path, clip([]byte(g)), code, clip(b))
				}
				checkProblem(t, path, code, b)
			}
			// An EventSource that is refused never comes back: a bad Last-Event-ID is told in-band.
			if ev := firstEvents(t, s, g, 2); !slices.Contains(ev, "resync") {
				t.Errorf("Last-Event-ID %q: %v, without a resync", clip([]byte(g)), ev)
			}
		}
		// Well-formed cursors of nowhere: another epoch, and a position that nothing has reached.
		for _, g := range []string{"e9zzzz:3", epoch + ":9000000000000"} {
			if code, b := s.request("GET", "/api/v1/updates?after="+g, nil); code != 410 {
				t.Errorf("updates after %s: %d %s, not 410", g, code, clip(b))
			}
			if ev := firstEvents(t, s, g, 2); !slices.Contains(ev, "resync") {
				t.Errorf("Last-Event-ID %s: %v, without a resync", g, ev)
			}
			c := s.ws("/api/v1/ws")
			send(t, c, obj{"type": "subscribe", "channel": "mcp_server_status", "cursor": g})
			if f := expect(t, c, "subscribed"); f.Recovered {
				t.Errorf("a subscription resumed from %s", g)
			}
			expect(t, c, "resync")
			expect(t, c, "snapshot_end")
			c.Close()
		}
		for _, path := range []string{
			"/api/v1/updates?limit=x", "/api/v1/updates?colour=red", "/api/v1/stream?states=sleepy", "/api/v1/stream?sever_ids=a",
			"/api/v1/servers?states=sleepy", "/api/v1/servers?limit=-1", "/api/v1/servers?cursor=%FF", "/api/v1/servers/good-1/history?hours=minus",
			"/api/v1/servers/good-1/status?explain=perhaps",
		} {
			code, b := s.request("GET", path, nil)
			if code != 400 && code != 422 {
				t.Errorf("%s: %d %s, not 400", path, code, clip(b))
			}
			checkProblem(t, path, code, b)
		}
		for _, path := range []string{"/api/v1/servers/nobody", "/api/v1/servers/nobody/status", "/api/v1/servers/%2e%2e%2fetc/status", "/api/v1/servers/" + strings.Repeat("n", 10_000) + "/status", "/api/v1/nothing", "/etc/passwd"} {
			code, b := s.request("GET", path, nil)
			if code < 400 || code >= 500 {
				t.Errorf("%s: %d %s, not a 4xx", clip([]byte(path)), code, clip(b))
			}
		}
		for _, body := range []string{"", "x", "[]", `{"state":"sleepy"}`, `{"state":"stopped","health":"healthy"}`, `{"state":"running","expires_in":"31d"}`,
			`{"state":"running","expires_in":"-1h"}`, `{"state":"running","note":"` + strings.Repeat("n", 2000) + `"}`, `{"state":7}`} {
			code, b := s.request("PUT", "/api/v1/servers/good-1/override", []byte(body))
			if code != 400 && code != 422 {
				t.Errorf("override %s: %d %s, not 400 or 422", clip([]byte(body)), code, clip(b))
			}
			checkProblem(t, "override", code, b)
		}
		if code, _ := s.request("PUT", "/api/v1/servers/nobody/override", []byte(`{"state":"running"}`)); code != 404 {
			t.Errorf("an override of nobody: %d, not 404", code)
		}
		alive(t)
	})

	t.Run("foreign hosts and origins", func(t *testing.T) {
		for _, path := range []string{"/api/v1/servers", "/api/v1/stream", "/metrics", "/api/v1/ws"} {
			if code, b := s.request("GET", path, nil, "Host", "evil.example"); code != 403 && code != 421 {
				t.Errorf("GET %s with a foreign Host: %d %s, not 403", path, code, clip(b))
			}
		}
		if code, _ := s.request("GET", "/api/v1/servers", nil, "Host", "localhost:9999"); code != 200 {
			t.Errorf("Host localhost: %d, not 200", code)
		}
		for _, path := range []string{"/api/v1/ws", "/ws/mcp-status"} {
			for _, origin := range []string{"http://evil.example", "null", "http://" + s.addr + ".evil.example", "http://127.0.0.1:1"} {
				_, resp, err := dialer(0).Dial("ws://"+s.addr+path, http.Header{"Origin": {origin}})
				if err == nil {
					t.Errorf("%s: a page of %s may connect", path, origin)
				} else if resp == nil || resp.StatusCode != 403 {
					t.Errorf("%s with Origin %s: %v, not 403", path, origin, err)
				}
			}
			c, _, err := dialer(0).Dial("ws://"+s.addr+path, http.Header{"Origin": {s.base}})
			if err != nil {
				t.Errorf("%s: a page of the service itself may not connect: %v", path, err)
			} else {
				c.Close()
			}
		}
		body := []byte(`{"state":"error"}`)
		for _, h := range [][]string{
			{"Origin", "http://evil.example"}, {"Sec-Fetch-Site", "cross-site"}, {"Origin", "null"}, {"Content-Type", "text/plain"},
			{"Content-Type", "application/x-www-form-urlencoded"},
		} {
			if code, b := s.request("PUT", "/api/v1/servers/good-1/override", body, h...); code/100 != 4 {
				t.Errorf("an override with %v: %d %s, not refused", h, code, clip(b))
			}
			if code, b := s.request("POST", "/api/v1/probes", []byte("{}"), h...); code/100 != 4 {
				t.Errorf("probes with %v: %d %s, not refused", h, code, clip(b))
			}
		}
		if st := s.status("good-1"); st.key() != "running/healthy/ok/" {
			t.Errorf("a foreign page made good-1 %s", st.key())
		}
		alive(t)
	})

	t.Run("raw bytes", func(t *testing.T) {
		for _, raw := range []string{
			"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\r\n\r\n\r\n", "GET", "GET / HTTP/9.9\r\n\r\n",
			"POST /heartbeat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n",
			"POST /heartbeat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
			"POST /heartbeat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
			"GET /" + strings.Repeat("a", 200_000) + " HTTP/1.1\r\nHost: localhost\r\n\r\n",
			"GET /api/v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 99\r\nSec-WebSocket-Key: x\r\n\r\n",
		} {
			c, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, raw)
			c.Close()
		}
		// One that dies in the middle of a heartbeat and holds its connection open harms nobody.
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "POST /heartbeat HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer token-good\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
		alive(t)
	})
	s.stop()
}

// checkProblem checks that an error is an RFC 9457 problem that names a code and says what is wrong.
func checkProblem(t testing.TB, what string, code int, b []byte) {
	t.Helper()
	var p struct {
		Type, Title, Code, Detail string
		Status                    int
		RequestID                 string `json:"request_id"`
	}
	if err := json.Unmarshal(b, &p); err != nil || p.Status != code || p.Code == "" || p.Title == "" || p.Code == "internal" {
		t.Errorf("%s: the error is no problem of ours: %d %s", what, code, clip(b))
	}
}

// answer is what a WebSocket says next: the type of its frame, "close CODE", or "cut".
func answer(c *websocket.Conn) string {
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, b, err := c.ReadMessage()
	if err != nil {
		if isTimeout(err) {
			return "silence"
		}
		if ce, ok := err.(*websocket.CloseError); ok && ce.Code != websocket.CloseAbnormalClosure {
			return fmt.Sprintf("close %d", ce.Code)
		}
		return "cut"
	}
	var f frame
	if err := json.Unmarshal(b, &f); err != nil {
		return "no JSON: " + string(b)
	}
	if f.Type == "error" && (f.Code == "" || f.Detail == "" || f.Code == "internal") {
		return "an error that says nothing: " + string(b)
	}
	return f.Type
}

// firstEvents are the first n events that are no entries of a stream that resumes from a Last-Event-ID.
func firstEvents(t testing.TB, s *service, lastEventID string, n int) []string {
	t.Helper()
	req, err := http.NewRequest("GET", s.base+"/api/v1/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Last-Event-ID", lastEventID)
	resp, err := s.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		b, _ := io.ReadAll(resp.Body)
		return []string{resp.Status, clip(b)}
	}
	stop := time.AfterFunc(10*time.Second, func() { resp.Body.Close() })
	defer stop.Stop()
	var events []string
	readSSE(resp.Body, func(event, id string, data []byte) {
		if event != "" {
			events = append(events, event)
		}
		if len(events) == n {
			resp.Body.Close()
		}
	})
	return events
}

// TestHostileAddresses configures, and lets servers and agents answer with, addresses that try to lead the service
// elsewhere. A listener there counts every connection; it must count none.
func TestHostileAddresses(t *testing.T) {
	var forbidden atomic.Int64
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			forbidden.Add(1)
			c.Close()
		}
	}()
	there := ln.Addr().String()
	_, therePort, _ := net.SplitHostPort(there)

	redirects := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+there+"/", http.StatusFound)
	}))
	defer redirects.Close()
	g := newTarget(t)
	agent := newTarget(t)

	// What a configuration must refuse at once.
	for _, c := range []struct {
		name string
		conf obj
	}{
		{"user name in the endpoint", obj{"servers": list{obj{"id": "a", "endpoint": "http://127.0.0.1:30000@" + there + "/"}}}},
		{"user name in the probe URL", obj{"servers": list{obj{"id": "a", "probe": obj{"url": "http://u:p@" + there + "/"}}}}},
		{"path that changes the host", obj{"servers": list{obj{"id": "a", "endpoint": g.url("/"), "probe": obj{"path": "@" + there + "/"}}}}},
		{"path with a port", obj{"servers": list{obj{"id": "a", "endpoint": g.url("/"), "probe": obj{"path": ":" + therePort + "/"}}}}},
		{"address with a port", obj{"environments": list{obj{"id": "e", "address": there}}}},
		{"address with a user", obj{"environments": list{obj{"id": "e", "address": "x@127.0.0.1"}}}},
		{"address that is a URL", obj{"environments": list{obj{"id": "e", "address": "http://127.0.0.1"}}}},
		{"other scheme", obj{"servers": list{obj{"id": "a", "probe": obj{"url": "file:///etc/passwd"}}}}},
		{"gopher", obj{"servers": list{obj{"id": "a", "probe": obj{"url": "gopher://" + there + "/"}}}}},
		{"no host", obj{"servers": list{obj{"id": "a", "probe": obj{"url": "http:///health"}}}}},
		{"line break in the URL", obj{"servers": list{obj{"id": "a", "probe": obj{"url": "http://127.0.0.1/\r\nHost: " + there}}}}},
		{"the agent's own address", obj{
			"environments": list{obj{"id": "e", "agent_url": "http://" + there}},
			"servers":      list{obj{"id": "a", "environment": "e", "probe": obj{"url": "http://" + there + "/health"}}},
		}},
		{"the agent's own address as endpoint", obj{
			"environments": list{obj{"id": "e", "agent_url": "http://" + there}},
			"servers":      list{obj{"id": "a", "environment": "e", "endpoint": "http://" + there + "/mcp"}},
		}},
	} {
		s := newService(t, c.conf)
		code, _, errs := cli(t, nil, "config", "check", s.file)
		if code != 2 || !strings.Contains(errs, s.file+":") {
			t.Errorf("%s: exit %d, %q, not refused with file and line", c.name, code, errs)
		}
		s.start()
		if code := s.waitExit(20 * time.Second); code != 2 {
			t.Errorf("%s: serve ended with %d, not 2", c.name, code)
		}
	}

	// What it takes, but must not be led astray by.
	paths := []string{"//" + there + "/health", "/@" + there + "/", `/\` + there + "/", "/%0d%0aHost:%20" + there, "/../../@" + there, "/?x=@" + there + "#@" + there}
	servers := list{
		obj{"id": "redirected", "environment": "box", "probe": obj{"url": redirects.URL + "/health"}},
		obj{"id": "metadata", "probe": obj{"url": "http://169.254.169.254/latest/meta-data/"}},
		obj{"id": "unspecified", "probe": obj{"url": "http://0.0.0.0:" + therePort + "/"}},
		obj{"id": "unspecified6", "probe": obj{"url": "http://[::]:" + therePort + "/"}},
		obj{"id": "mapped", "probe": obj{"url": "http://[::ffff:169.254.169.254]/"}},
		obj{"id": "proxied", "probe": obj{"url": "http://192.0.2.1/", "timeout": "300ms"}},
		obj{"id": "by-port", "environment": "box"},
		obj{"id": "secretive", "probe": obj{"url": g.url("/secret") + "?token=QUERYSECRET", "headers": obj{"Authorization": "Bearer HEADERSECRET"}}},
	}
	for i, p := range paths {
		servers = append(servers, obj{"id": fmt.Sprintf("path-%d", i), "endpoint": g.url("/mcp"), "probe": obj{"path": p}})
	}
	g.set("/secret", 500)
	agent.set("/status", 302)
	s := newService(t, obj{
		"environments": list{
			obj{"id": "box", "address": "127.0.0.1", "agent_token": "token-box", "agent_url": "http://" + agent.addr()},
		},
		"servers": servers,
	})
	for _, k := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} {
		s.env = append(s.env, k+"=http://"+there)
	}
	s.start()
	s.ready()
	// Ports that a container publishes make an address of the server: these are no ports, or the agent's own.
	_, agentPort, _ := net.SplitHostPort(agent.addr())
	for _, port := range []string{"-1", "0", "65536", "99999999999", `"` + therePort + `"`, `"1@` + there + `"`, "1.5", agentPort} {
		s.request("POST", "/heartbeat", []byte(`{"tool_statuses":[{"names":["by-port"],"state":"running","status":"Up 2 hours","ports":[{"ip":"`+there+`","private_port":1,"public_port":`+port+`,"type":"tcp"}]},
			{"names":["redirected"],"state":"running","status":"Up 2 hours"}]}`), "Authorization", "Bearer token-box")
	}
	// A clean stop of a healthy server that is not probed is doubted: its agent is asked at once, and redirects us.
	s.waitStatus(10*time.Second, "by-port", "running", "healthy", "")
	s.postHeartbeat("token-box", heartbeat(container("by-port", "exited", "Exited (0) 1 second ago"), container("redirected", "running", "Up 2 hours")))
	waitFor(t, 20*time.Second, "every address is tried", func() (bool, string) {
		m, _ := s.servers("")
		for _, id := range []string{"redirected", "metadata", "unspecified", "unspecified6", "mapped", "proxied", "secretive", "path-0", "path-1", "path-2"} {
			if m[id].Status.CheckCount < 2 {
				return false, id + " was not probed"
			}
		}
		return agent.hits.Load() > 0, "the agent was not asked"
	})
	m, _ := s.servers("")
	for _, id := range []string{"redirected", "metadata", "unspecified", "unspecified6", "mapped", "secretive"} {
		if m[id].Status.Health == "healthy" {
			t.Errorf("%s is %+v", id, m[id].Status)
		}
	}
	var by serverJSON
	s.getJSON("/api/v1/servers/by-port", &by)
	if by.Status.CheckCount > 0 {
		t.Errorf("a server without an address of its own was probed: %+v", by.Status)
	}
	// Probing on demand is no way around.
	for _, id := range []string{"redirected", "metadata", "path-0"} {
		s.request("POST", "/api/v1/servers/"+id+"/probe", nil, "Content-Type", "application/json")
	}
	// Secrets of a URL or a header are nowhere.
	s.waitStatus(10*time.Second, "secretive", "", "unhealthy", "probe_failing")
	for _, path := range []string{"/api/v1/servers", "/api/v1/servers/secretive", "/api/v1/servers/secretive/status?explain=true", "/api/v1/servers/secretive/history", "/metrics", "/api/v1/updates?after="} {
		if _, b := s.request("GET", path, nil); bytes.Contains(b, []byte("SECRET")) {
			t.Errorf("%s shows a secret: %s", path, b)
		}
	}
	if strings.Contains(s.tail(), "SECRET") {
		t.Errorf("the log shows a secret\n%s", s.tail())
	}
	_, out, _ := cli(t, nil, "config", "check", s.file)
	if strings.Contains(out, "HEADERSECRET") || strings.Contains(out, "token-box") {
		t.Error("config check prints a secret")
	}
	s.stop()
	ln.Close()
	<-accepted
	if n := forbidden.Load(); n != 0 {
		t.Errorf("%d connections were made to where none may go", n)
	}
}

// TestNoCredential opens the doors of a service that wants a credential without one.
func TestNoCredential(t *testing.T) {
	t.Parallel()
	s := startService(t, obj{
		"auth": obj{"tokens": list{
			obj{"name": "ops", "role": "admin", "token": "token-of-ops"}, obj{"name": "eyes", "role": "viewer", "token": "token-of-eyes"},
		}},
		"environments": list{envOf("box", "token-box")},
		"servers":      list{unprobed("a", "box", "running")},
	})
	// Neither with nor without a subscribe does one without a credential hear anything; it is closed with 4500.
	silent, loud, late := s.ws("/api/v1/ws"), s.ws("/api/v1/ws"), s.ws("/api/v1/ws")
	send(t, loud, obj{"type": "subscribe", "channel": "mcp_server_status", "snapshot": true})
	send(t, late, obj{"type": "auth", "token": "token-of-eyes"})
	expect(t, late, "auth_ok")
	send(t, late, obj{"type": "subscribe", "channel": "mcp_server_status"})
	expect(t, late, "subscribed")
	for _, path := range []string{"/api/v1/servers", "/api/v1/servers/a/status", "/api/v1/updates", "/api/v1/stream", "/api/v1/environments", "/api/v1/sync/metrics", "/metrics"} {
		code, b := s.request("GET", path, nil)
		if code != 401 {
			t.Errorf("GET %s without a token: %d %s, not 401", path, code, clip(b))
		}
		if code, _ := s.request("GET", path, nil, "Authorization", "Bearer token-box"); code == 200 {
			t.Errorf("GET %s with an agent's token: 200", path)
		}
	}
	if code, b := s.request("PUT", "/api/v1/servers/a/override", []byte(`{"state":"error"}`), "Authorization", "Bearer token-of-eyes"); code != 403 {
		t.Errorf("a viewer's override: %d %s, not 403", code, clip(b))
	}
	if code, b := s.request("POST", "/heartbeat", heartbeat(), "Authorization", "Bearer token-of-ops"); code != 401 && code != 403 {
		t.Errorf("a heartbeat with an admin's token: %d %s", code, clip(b))
	}
	if code, b := s.request("GET", "/readyz", nil); code != 200 || bytes.Contains(b, []byte("checks")) || bytes.Contains(b, []byte("cursor")) {
		t.Errorf("/readyz without a token: %d %s", code, b)
	}
	if code, _ := s.request("GET", "/healthz", nil); code != 200 {
		t.Errorf("/healthz without a token: %d", code)
	}
	// What is tried too often is not looked at any more; who has proved himself before goes on.
	for i := range 12 {
		s.request("GET", "/api/v1/servers", nil, "Authorization", fmt.Sprintf("Bearer wrong-token-%d", i))
	}
	if code, _ := s.request("GET", "/api/v1/servers", nil, "Authorization", "Bearer wrong-token-x"); code != 429 {
		t.Errorf("the thirteenth wrong token in a row: %d, not 429", code)
	}
	if code, _ := s.request("GET", "/api/v1/servers", nil, "Authorization", "Bearer token-of-eyes"); code != 200 {
		t.Errorf("who was known before is refused after other people's failures: %d", code)
	}
	for name, c := range map[string]*websocket.Conn{"silent": silent, "loud": loud} {
		if code := closeCode(t, c, 20*time.Second); code != 4500 {
			t.Errorf("the %s one without a credential was closed with %d, not 4500", name, code)
		}
	}
	send(t, late, obj{"type": "ping"})
	expect(t, late, "pong")
	s.stop()
}
