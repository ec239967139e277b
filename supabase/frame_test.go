package supabase

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
)

// TestFrames holds what is sent against the protocol, byte by byte.
func TestFrames(t *testing.T) {
	now := time.Unix(1e9, 0)
	c := channel{
		topic: "realtime:mcp", clean: func(s string) string { return s },
		join: func(token string) any { return joinConfig("public", []string{"account_tool_instances"}, token) },
		wait: func(time.Time, *loss) time.Duration { return time.Second },
	}
	c.needToken = true
	if e := c.start(now); !e.ask || e.send != nil {
		t.Fatalf("%+v", e)
	}
	check := func(got [][]byte, want string) {
		t.Helper()
		if len(got) != 1 || string(got[0]) != want {
			t.Errorf("sent %s\nwant %s", got, want)
		}
	}
	check(c.gotToken(now, token{text: "JWT"}, nil).send,
		`["1","1","realtime:mcp","phx_join",{"config":{"broadcast":{"ack":false,"self":false},"presence":{"key":"","enabled":false},"postgres_changes":[{"event":"*","schema":"public","table":"account_tool_instances"}],"private":false},"access_token":"JWT"}]`)
	take := func(frame string) effects {
		t.Helper()
		m, err := decodeFrame([]byte(frame))
		if err != nil {
			t.Fatal(err)
		}
		return c.take(now, m)
	}
	if e := take(`["1","1","realtime:mcp","phx_reply",{"status":"ok","response":{"postgres_changes":[{"id":106243155,"event":"*","schema":"public","table":"account_tool_instances"}]}}]`); e.live || e.lost != nil {
		t.Errorf("the answer to the join: %+v", e)
	}
	if e := take(`["1",null,"realtime:mcp","system",{"extension":"postgres_changes","status":"ok","message":"Subscribed to PostgreSQL","channel":"mcp"}]`); !e.live {
		t.Errorf("the word of the server: %+v", e)
	}
	check(c.tick(now.Add(HeartbeatEvery)).send, `[null,"2","phoenix","heartbeat",{}]`)
	take(`[null,"2","phoenix","phx_reply",{"status":"ok","response":{}}]`)
	check(c.gotToken(now, token{text: "NEW"}, nil).send, `["1","3","realtime:mcp","access_token",{"access_token":"NEW"}]`)
	if got := c.leave(); string(got) != `["1","4","realtime:mcp","phx_leave",{}]` {
		t.Errorf("left with %s", got)
	}
	b, err := json.Marshal(joinConfig("s", []string{"t"}, ""))
	if err != nil || strings.Contains(string(b), "access_token") {
		t.Errorf("without a token: %s %v", b, err)
	}
}

func TestDecodeFrame(t *testing.T) {
	for frame, says := range map[string]string{
		``: "not JSON", `{`: "not JSON", `{}`: "not [join_ref", `[]`: "not [join_ref", `null`: "not [join_ref", `[null,null,"t","e"]`: "not [join_ref",
		`[null,null,"t","e",{},1]`: "not [join_ref", `[1,null,"t","e",{}]`: "element 0", `[null,[],"t","e",{}]`: "element 1", `[null,null,null,"e",{}]`: "topic",
		`[null,null,"t",null,{}]`: "event", `[null,null,7,"e",{}]`: "element 2",
	} {
		if _, err := decodeFrame([]byte(frame)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", frame, err, says)
		}
	}
	m, err := decodeFrame([]byte(` [ null , "7" , "t" , "e" , null ] `))
	if err != nil || m.ref != "7" || m.joinRef != "" || m.topic != "t" || m.event != "e" || string(m.payload) != "null" {
		t.Errorf("%+v %v", m, err)
	}
}

func TestChangesOf(t *testing.T) {
	keys := map[string]string{"a": "id", "b": "nr"}
	type rc = statussync.RowChange
	all := []rc{{Table: "a"}, {Table: "b"}}
	some := []rc{{Table: "a"}}
	for payload, want := range map[string][]rc{
		`{"ids":[1],"data":{"schema":"public","table":"a","type":"INSERT","record":{"id":"x","y":[{"id":"no"}]},"errors":null}}`:       {{Table: "a", ID: "x"}},
		`{"data":{"schema":"public","table":"a","type":"UPDATE","record":{"id":"x"},"old_record":{"id":"x"}}}`:                         {{Table: "a", ID: "x"}},
		`{"data":{"schema":"public","table":"a","type":"UPDATE","record":{"id":"x"},"old_record":{"id":"w"}}}`:                         {{Table: "a", ID: "x"}, {Table: "a", ID: "w", Deleted: true}},
		`{"data":{"schema":"public","table":"a","type":"DELETE","old_record":{"id":"x"}}}`:                                             {{Table: "a", ID: "x", Deleted: true}},
		`{"data":{"schema":"public","table":"b","type":"UPDATE","record":{"id":"x","nr":12345678901234567890}}}`:                       {{Table: "b", ID: "12345678901234567890"}},
		`{"data":{"schema":"public","table":"a","type":"UPDATE","record":{"id":"x"},"errors":["Error 413: Payload Too Large"]}}`:       {{Table: "a", ID: "x"}},
		`{"data":{"schema":"public","table":"a","type":"UPDATE","record":{},"old_record":{},"errors":["Error 401: Unauthorized"]}}`:    some,
		`{"data":{"schema":"public","table":"a","type":"UPDATE","record":{},"old_record":{"id":"x"},"errors":["Error 413"]}}`:          {{Table: "a", ID: "x"}},
		`{"data":{"schema":"public","table":"a","type":"INSERT","record":{},"errors":["Error 400: Bad Request, no primary key"]}}`:     some,
		`{"data":{"schema":"public","table":"a","type":"DELETE","old_record":{},"errors":["Error 400: Bad Request, no primary key"]}}`: some,
		`{"data":{"schema":"public","table":"a","type":"INSERT","record":{"id":null}}}`:                                                some,
		`{"data":{"schema":"public","table":"a","type":"INSERT","record":{"id":{"id":1}}}}`:                                            some,
		`{"data":{"schema":"public","table":"a","type":"INSERT","record":{"id":"a\u0000b"}}}`:                                          some,
		`{"data":{"schema":"public","table":"a","type":"INSERT","record":{"id":"` + strings.Repeat("x", 300) + `"}}}`:                  some,
		`{"data":{"schema":"public","table":"a","type":"INSERT","record":[1]}}`:                                                        some,
		`{"data":{"schema":"public","table":"a","type":"TRUNCATE"}}`:                                                                   some,
		`{"data":{"table":"a"}}`: some,
		`{"data":{"schema":"public","table":"c","type":"INSERT","record":{"id":"x"}}}`: nil,
		`{"data":{"schema":"auth","table":"a","type":"INSERT","record":{"id":"x"}}}`:   nil,
		`{"data":{}}`: all, `{}`: all, `7`: all, `null`: all, `{"data":[]}`: all, `{"data":{"table":7}}`: all,
	} {
		if got := changesOf(json.RawMessage(payload), "public", keys); !reflect.DeepEqual(got, want) && len(got)+len(want) > 0 {
			t.Errorf("%s\n got %v\nwant %v", payload, got, want)
		}
	}
}

func TestClean(t *testing.T) {
	const key, jwt = "sb_secret_abcdef", "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYW5vbiJ9.c2lnbmF0dXJl"
	for s, want := range map[string]string{
		"no":                                   "no",
		"key my-own-key is bad\x1b[31m":        "key … is bad[31m",
		"sb_\u200bsecret_zzz and " + jwt + ".": "… and …",
		"wss://h/x?apikey=abc&vsn=2":           "wss://h/x?…&vsn=2",
		"my-\x00own-key":                       "…",
	} {
		if got := clean(s, "my-own-key", key); got != want {
			t.Errorf("clean(%q) = %q, want %q", s, got, want)
		}
	}
	if n := len(clean(strings.Repeat("a", 1<<20))); n > statussync.MaxErrorText {
		t.Errorf("%d bytes", n)
	}
}

func TestTokenClaims(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for s, want := range map[string]time.Time{
		"":                                 {},
		"sb_secret_x":                      {},
		"a.b.c":                            {},
		"h.eyJleHAiOjE3MDAwMDAwMDB9.s":     now, // {"exp":1700000000}
		"h.eyJleHAiOjE3MDAwMDAwMDAuNX0.s":  now, // {"exp":1700000000.5}
		"h.eyJleHAiOjE3MDAwMDAwMDAuNX0=.s": now,
		"h.eyJleHAiOjFlMzAwfQ.s":           {}, // {"exp":1e300}
		"h.eyJleHAiOi0xfQ.s":               {}, // {"exp":-1}
		"h.eyJyb2xlIjoiYW5vbiJ9.s":         {}, // {"role":"anon"}
	} {
		if got, _ := tokenClaims(s); !got.Equal(want) {
			t.Errorf("%q ends %v, want %v", s, got, want)
		}
	}
	// {"iat":1600000000,"exp":1600003600}, long ago: our clock is taken to be wrong.
	old, err := parseToken(" h.eyJpYXQiOjE2MDAwMDAwMDAsImV4cCI6MTYwMDAwMzYwMH0.s\n")
	if err != nil || old.life != time.Hour {
		t.Fatal(old, err)
	}
	if old.planRefresh(now); !old.refreshAt.Equal(now.Add(58 * time.Minute)) {
		t.Errorf("replaced in %s", old.refreshAt.Sub(now))
	}
	for left, want := range map[time.Duration]time.Duration{
		time.Hour: 58 * time.Minute, 6 * time.Minute: 4 * time.Minute, 3 * time.Minute: 2 * time.Minute, time.Second: tokenRetry, -time.Hour: skewedLife * 2 / 3,
	} {
		tk := token{expires: now.Add(left)}
		tk.planRefresh(now)
		if !tk.refreshAt.Equal(now.Add(want)) {
			t.Errorf("one that ends in %s is replaced in %s, want %s", left, tk.refreshAt.Sub(now), want)
		}
	}
}

func TestEndpoint(t *testing.T) {
	for in, want := range map[string]string{
		"https://ref.supabase.co":                     "https://ref.supabase.co/realtime/v1/websocket",
		" wss://ref.supabase.co/ ":                    "https://ref.supabase.co/realtime/v1/websocket",
		"https://ref.supabase.co/realtime/v1":         "https://ref.supabase.co/realtime/v1/websocket",
		"wss://ref.supabase.co/realtime/v1/websocket": "https://ref.supabase.co/realtime/v1/websocket",
		"http://realtime:4000/socket":                 "http://realtime:4000/socket/websocket",
		"ws://realtime:4000/socket/websocket/":        "http://realtime:4000/socket/websocket",
		"https://example.com/supabase":                "https://example.com/supabase/realtime/v1/websocket",
		"http://[::1]:54321":                          "http://[::1]:54321/realtime/v1/websocket",
	} {
		if u, err := endpoint(in); err != nil || u.String() != want {
			t.Errorf("%s: %v %v", in, u, err)
		}
	}
	for in, says := range map[string]string{
		"": "https://", "ref.supabase.co": "https://", "ftp://x": "https://", "https://": "host", "https://user:geheimnis@h": "user", "https://h?apikey=geheimnis": "query",
		"https://h#geheimnis": "fragment", "https://h:geheimnis": "not a URL", "postgres://u:geheimnis@h/db": "https://",
	} {
		_, err := endpoint(in)
		if statussync.CodeOf(err) != statussync.CodeInvalid || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "url: ") || strings.Contains(err.Error(), "geheimnis") {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestOptions(t *testing.T) {
	good := Options{URL: "https://ref.supabase.co", APIKey: "k", Tables: []string{"t"}}
	for says, change := range map[string]func(*Options){
		"api_key: the":         func(o *Options) { o.APIKey = " " },
		"api_key: has":         func(o *Options) { o.APIKey = "a b" },
		"api_key: is longer":   func(o *Options) { o.APIKey = strings.Repeat("x", 20000) },
		"tables: at least one": func(o *Options) { o.Tables = nil },
		"tables: a table":      func(o *Options) { o.Tables = []string{"*"} },
		"keys: the table u":    func(o *Options) { o.Keys = map[string]string{"u": "id"} },
		"url: ":                func(o *Options) { o.URL = "" },
	} {
		o := good
		change(&o)
		if _, err := New(o); statussync.CodeOf(err) != statussync.CodeInvalid || !strings.HasPrefix(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
}

// FuzzFrame: whatever comes, the decoder and the channel don't panic, hints are bounded by what came, and what is said
// about it is bounded.
func FuzzFrame(f *testing.F) {
	for _, s := range []string{
		`["1","1","realtime:statussync","phx_reply",{"status":"ok","response":{"postgres_changes":[{"id":1}]}}]`,
		`["1","1","realtime:statussync","phx_reply",{"status":"error","response":{"reason":"InvalidJWTToken: Token has expired 9 seconds ago"}}]`,
		`["1",null,"realtime:statussync","system",{"extension":"postgres_changes","status":"ok","message":"Subscribed to PostgreSQL","channel":"mcp"}]`,
		`["1",null,"realtime:statussync","system",{"extension":"postgres_changes","status":"error","message":{"a":1}}]`,
		`[null,null,"realtime:statussync","postgres_changes",{"ids":[1],"data":{"schema":"public","table":"t","type":"UPDATE","record":{"id":1},"old_record":{"id":"x"},"errors":null}}]`,
		`["1","1","realtime:statussync","phx_error",{}]`, `["1","1","realtime:statussync","phx_close",{}]`, `[null,"2","phoenix","phx_reply",{"status":"ok","response":{}}]`,
		`[null,null,"t","e"]`, `[`, `[[[[[[[[[[`,
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, live bool) {
		m, err := decodeFrame(data)
		if err != nil {
			if len(err.Error()) > 200 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		changes := changesOf(m.payload, "public", map[string]string{"t": "id"})
		if len(changes) > 2 {
			t.Errorf("%d changes of one frame", len(changes))
		}
		for _, c := range changes {
			if c.Table != "t" || len(c.ID) > maxID {
				t.Errorf("%+v", c)
			}
		}
		now := time.Unix(1e9, 0)
		c := channel{
			topic: topicName, clean: func(s string) string { return clean(s, "key") },
			join: func(token string) any { return joinConfig("public", []string{"t"}, token) },
			wait: func(time.Time, *loss) time.Duration { return time.Second },
		}
		c.start(now)
		if live {
			c.phase, c.until = phaseLive, time.Time{}
		}
		e := c.take(now, m)
		if e.lost != nil && len(e.lost.err.Error()) > 2*statussync.MaxErrorText {
			t.Errorf("a loss of %d bytes", len(e.lost.err.Error()))
		}
		if e.live && e.lost != nil {
			t.Error("live and lost at once")
		}
		if d := c.deadline(); d.Before(now) || d.Sub(now) > HeartbeatEvery {
			t.Errorf("nothing is due before %s", d)
		}
	})
}
