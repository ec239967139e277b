package mcpprobe

import (
	"bytes"

	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/guard"
)

// TestHostileBodies: whatever a server sends, a probe ends, says what it was and takes little memory.
func TestHostileBodies(t *testing.T) {
	var written atomic.Int64
	flood := func(w http.ResponseWriter, chunk string, pause time.Duration) {
		tick := time.NewTicker(max(pause, time.Millisecond))
		defer tick.Stop()
		for {
			n, err := io.WriteString(w, chunk)
			written.Add(int64(n))
			if err != nil {
				return
			}
			if pause > 0 {
				_ = http.NewResponseController(w).Flush()
				<-tick.C
			}
		}
	}
	media := func(w http.ResponseWriter, m string) { w.Header().Set("Content-Type", m) }
	for _, c := range []struct {
		name   string
		answer func(w http.ResponseWriter, c *call)
		cause  string
	}{
		{"endless JSON", func(w http.ResponseWriter, c *call) {
			media(w, mediaJSON)
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"x":"`, c.id)
			flood(w, strings.Repeat("x", 32<<10), 0)
		}, causeNotMCP},
		{"endless events", func(w http.ResponseWriter, _ *call) {
			media(w, mediaEvents)
			flood(w, ": ping\n\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\"}\n\n", 0)
		}, causeNotMCP},
		{"an endless event", func(w http.ResponseWriter, _ *call) {
			media(w, mediaEvents)
			_, _ = io.WriteString(w, "data: ")
			flood(w, strings.Repeat("x", 32<<10), 0)
		}, causeNotMCP},
		{"endless lines of one event", func(w http.ResponseWriter, _ *call) {
			media(w, mediaEvents)
			flood(w, "data: x\n", 0)
		}, causeNotMCP},
		{"endless HTML", func(w http.ResponseWriter, _ *call) {
			media(w, "text/html")
			flood(w, strings.Repeat("<p>", 10_000), 0)
		}, causeNotMCP},
		{"endless error", func(w http.ResponseWriter, _ *call) {
			w.WriteHeader(503)
			flood(w, strings.Repeat("x", 32<<10), 0)
		}, "http_503"},
		{"slow drip", func(w http.ResponseWriter, _ *call) {
			media(w, mediaJSON)
			flood(w, " ", 5*time.Millisecond)
		}, guard.CauseTimeout},
		{"slow events", func(w http.ResponseWriter, _ *call) {
			media(w, mediaEvents)
			flood(w, ": ping\n\n", 5*time.Millisecond)
		}, guard.CauseTimeout},
		{"deep JSON", func(w http.ResponseWriter, _ *call) { reply(w, 200, mediaJSON, strings.Repeat("[", 900_000)) }, causeNotMCP},
		{"a huge batch", func(w http.ResponseWriter, _ *call) {
			reply(w, 200, mediaJSON, "["+strings.Repeat("{},", 300_000)+"{}]")
		}, causeNotMCP},
		{"a huge header", func(w http.ResponseWriter, _ *call) {
			for i := range 40 {
				w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("x", 4000))
			}
			w.WriteHeader(200)
		}, guard.CauseProtocol},
		{"a cut body", func(w http.ResponseWriter, _ *call) {
			media(w, mediaJSON)
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, `{"jsonrpc"`)
		}, guard.CauseReset},
		{"bytes that are no text", func(w http.ResponseWriter, _ *call) {
			reply(w, 200, "application/red; x", "\xff\xfe\x00\x1b[2J")
		}, causeNotMCP},
	} {
		t.Run(c.name, func(t *testing.T) {
			written.Store(0)
			_, url := newFake(t, c.answer)
			p := newProber(t, Options{})
			pl := known(p, plan(url))
			if c.cause == guard.CauseTimeout {
				next := *pl
				next.Timeout = 400 * time.Millisecond
				pl = known(p, &next)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r := p.Probe(t.Context(), pl)
			runtime.ReadMemStats(&after)
			if r.Outcome != statussync.OutcomeFailure || r.Cause != c.cause || r.ByConnect || strings.Contains(r.Detail, "\x1b") || !utf8.ValidString(r.Detail) {
				t.Errorf("%+v", r)
			}
			if took := r.FinishedAt.Sub(r.StartedAt); took > 20*time.Second {
				t.Errorf("took %s", took)
			}
			if n := written.Load(); n > 24<<20 {
				t.Errorf("the server could write %d bytes", n)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 120<<20 {
				t.Errorf("%d MiB were allocated", n>>20)
			}
		})
	}
}

func TestGarbageConnections(t *testing.T) {
	for name, c := range map[string]struct{ send, cause string }{
		"not HTTP":   {"SSH-2.0-OpenSSH_9.9\r\n", guard.CauseProtocol},
		"closes":     {"", guard.CauseReset},
		"half":       {"HTTP/1.1 200 OK\r\nX: y", guard.CauseReset},
		"bad chunks": {"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", guard.CauseProtocol},
	} {
		url := rawServer(t, func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, c.send)
		})
		p := newProber(t, Options{})
		r := p.Probe(t.Context(), known(p, plan(url)))
		if r.Outcome != statussync.OutcomeFailure || r.Cause != c.cause || r.ByConnect != (name == "closes") {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// A server can't make a header of ours: what it says is sent back only where HTTP allows it.
func TestHostileSessionID(t *testing.T) {
	for _, id := range []string{strings.Repeat("x", 60_000), "a b", "\xff\xfe"} {
		_, url := newFake(t, legacy(id, func(w http.ResponseWriter, c *call) { result(w, c, "{}") }))
		p := newProber(t, Options{})
		pl := known(p, plan(url))
		for range 2 {
			if r := p.Probe(t.Context(), pl); r.Cause == guard.CauseTimeout {
				t.Errorf("%+v", r)
			}
		}
	}
	_, url := newFake(t, func(w http.ResponseWriter, c *call) {
		if c.method == "server/discover" {
			result(w, c, `{"supportedVersions":["2099-01-01\r\nX: y", "9999"],"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"\u001b[31mred\u202e","version":7}}}`)
			return
		}
		rpcFault(w, c, 400, -32600, "no", "")
	})
	p := newProber(t, Options{})
	for range 2 {
		r := p.Probe(t.Context(), known(p, plan(url)))
		if strings.ContainsAny(r.ServerInfo.Name+r.ServerInfo.Version+r.Protocol, "\x1b\r\n") || r.Outcome == statussync.OutcomeFailure {
			t.Errorf("%+v", r)
		}
	}
}

func TestEvents(t *testing.T) {
	for in, want := range map[string]string{
		"data: a\n\n":                                        "|a",
		"data: a\r\n\r\ndata: b\r\n\r\n":                     "|a |b",
		"data: a\r\rdata: b\r\r":                             "|a |b",
		"\xef\xbb\xbfevent: x\ndata:a\ndata\ndata:  b\n\n":   "x|a\n\n b",
		": c\nid: 1\nretry: 5\n\ndata: a\n\n":                "|a",
		"event: x\n\ndata: a\n\n":                            "|a",
		"data: unfinished\n":                                 "",
		"data: long-long-long-long-long-long\n\ndata: b\n\n": "|b",
		"nonsense\n\n\n\ndata\n\n":                           "|",
	} {
		r := eventReader{r: newBuf(in), limit: func() int { return 16 }, skip: true}
		var got []string
		for {
			ev, err := r.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, ev.name+"|"+string(ev.data))
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%q: %q, want %q", in, s, want)
		}
	}
	r := eventReader{r: newBuf("data: " + strings.Repeat("x", 100)), limit: func() int { return 16 }}
	if _, err := r.next(); !errors.Is(err, errEventSize) {
		t.Errorf("%v", err)
	}
}

// FuzzEvents: an event never holds more than the limit, and how the bytes come makes no difference.
func FuzzEvents(f *testing.F) {
	f.Add([]byte("event: endpoint\ndata: /m\n\ndata: {}\r\n\r\n"), uint8(7), true)
	f.Add([]byte("\xef\xbb\xbfdata:a\rdata:b\r\r:c\n\n"), uint8(1), false)
	f.Add([]byte(strings.Repeat("data: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n", 20)+"\n"), uint8(3), true)
	f.Fuzz(func(t *testing.T, data []byte, step uint8, skip bool) {
		const limit = 64
		read := func(in io.Reader) (out []event, last error) {
			r := eventReader{r: newBufFrom(in), limit: func() int { return limit }, skip: skip}
			for {
				ev, err := r.next()
				if err != nil {
					return out, err
				}
				if len(ev.data) > limit+1 || len(ev.name) > 64 {
					t.Fatalf("%d bytes of data, %d of name", len(ev.data), len(ev.name))
				}
				out = append(out, ev)
			}
		}
		whole, err1 := read(bytes.NewReader(data))
		pieces, err2 := read(&pieceReader{data, int(step%16) + 1})
		if !errors.Is(err1, err2) || len(whole) != len(pieces) {
			t.Fatalf("%v, %d events; in pieces %v, %d", err1, len(whole), err2, len(pieces))
		}
		for i := range whole {
			if whole[i].name != pieces[i].name || !bytes.Equal(whole[i].data, pieces[i].data) {
				t.Fatalf("event %d: %+v, %+v", i, whole[i], pieces[i])
			}
		}
		if skip && err1 != io.EOF {
			t.Fatal(err1)
		}
	})
}

// FuzzAnswer: reading and judging any answer never panics and never takes for an answer what is none.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"jsonrpc":"2.0","id":7,"result":{"supportedVersions":["2026-07-28"],"serverInfo":{"name":"x"}}}`), 200, true)
	f.Add([]byte(`{"jsonrpc":"2.0","id":null,"error":{"code":-32022,"message":"m","data":{"supported":["2025-11-25"]}}}`), 400, false)
	f.Add([]byte("event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}\n\n"), 200, false)
	f.Add([]byte(`[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":7,"result":null}]`), 202, true)
	f.Add([]byte(`{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"Unknown method: ping"}}`), 500, true)
	f.Fuzz(func(t *testing.T, data []byte, status int, session bool) {
		if status < 100 || status > 999 {
			status = 200
		}
		for _, media := range []string{mediaJSON, mediaEvents, "text/html"} {
			a := answer{status: status, mediaType: media, header: http.Header{"Www-Authenticate": {string(data)}}}
			if err := a.read(bytes.NewReader(data), 4096, 7, func(json.RawMessage) {}); err != nil {
				t.Fatal(err)
			}
			if a.rpc != nil {
				if !a.rpc.answers(7) || (a.rpc.Result == nil) == (a.rpc.Error == nil) {
					t.Fatalf("%+v", a.rpc)
				}
			} else if a.problem == "" {
				t.Fatal("neither an answer nor a problem")
			}
			for k := askDiscover; k <= askStream; k++ {
				c := judge(k, session, &a)
				switch c.outcome {
				case statussync.OutcomeSuccess:
					if a.status < 200 || a.status > 299 || k != askStream && (a.rpc == nil || a.rpc.Error != nil) {
						t.Fatalf("a success: %+v of %+v", c, a)
					}
				case statussync.OutcomeAlive, statussync.OutcomeFailure:
					if c.cause == "" || c.detail == "" {
						t.Fatalf("no cause: %+v of %+v", c, a)
					}
				default:
					t.Fatalf("no outcome: %+v of %+v", c, a)
				}
				if c.version != "" && !validVersion(c.version) {
					t.Fatalf("version %q", c.version)
				}
			}
		}
	})
}

type pieceReader struct {
	data []byte
	step int
}

func (r *pieceReader) Read(b []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b, r.data[:min(r.step, len(r.data))])
	r.data = r.data[n:]
	return n, nil
}
