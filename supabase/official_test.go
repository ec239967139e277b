package supabase_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/supabase"
	"github.com/agentopia/statussync/supabase/realtimetest"
)

// official is a process of the official JavaScript client.
type official struct {
	*testing.T
	in    io.WriteCloser
	lines chan map[string]any
}

const secret = "the project's secret"

func needOfficial(t *testing.T) {
	t.Helper()
	var missing string
	if _, err := exec.LookPath("node"); err != nil {
		missing = "Node.js"
	} else if _, err := os.Stat("testdata/node/node_modules/@supabase/realtime-js"); err != nil {
		missing = "@supabase/realtime-js (.ci/setup installs it)"
	}
	switch {
	case missing == "":
	case os.Getenv("CI") == "true":
		t.Fatalf("not installed: %s", missing)
	default:
		t.Skipf("not installed: %s", missing)
	}
}

func startOfficial(t *testing.T, url, key, vsn string) *official {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	cmd := exec.CommandContext(ctx, "node", "follow.mjs", url, key, vsn, table)
	cmd.Dir = "testdata/node"
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	o := &official{T: t, in: in, lines: make(chan map[string]any, 1000)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(o.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			var m map[string]any
			if json.Unmarshal(s.Bytes(), &m) == nil {
				o.lines <- m
			}
		}
	}()
	t.Cleanup(func() {
		fmt.Fprintln(in, "quit")
		in.Close()
		<-read
		_ = cmd.Wait() // however it ends
		cancel()
	})
	return o
}

func (o *official) say(command string) {
	o.Helper()
	if _, err := fmt.Fprintln(o.in, command); err != nil {
		o.Fatal(err)
	}
}

// expect reads lines until one has these values; path is dotted.
func (o *official) expect(want map[string]any) map[string]any {
	o.Helper()
	var seen []map[string]any
	limit := time.After(60 * time.Second)
	for {
		select {
		case m, ok := <-o.lines:
			if !ok {
				o.Fatalf("the official client ended; waited for %v, saw %v", want, seen)
			}
			fits := true
			for path, v := range want {
				var at any = m
				for _, k := range strings.Split(path, ".") {
					obj, _ := at.(map[string]any)
					at = obj[k]
				}
				if s, ok := at.(string); ok && strings.HasSuffix(fmt.Sprint(v), "…") {
					fits = fits && strings.Contains(s, strings.TrimSuffix(fmt.Sprint(v), "…"))
				} else {
					fits = fits && reflect.DeepEqual(at, v)
				}
			}
			if fits {
				return m
			}
			if m["what"] != "heartbeat" {
				seen = append(seen, m)
			}
		case <-limit:
			o.Fatalf("not within a minute: %v; saw %v", want, seen)
		}
	}
}

// TestOfficialClient proves the test server right: the official client joins it, sees changes, renews its token, loses and
// regains its channel and leaves, in both versions of the protocol that it speaks.
func TestOfficialClient(t *testing.T) {
	t.Parallel()
	needOfficial(t)
	for _, vsn := range []string{"2.0.0", "1.0.0"} {
		t.Run(vsn, func(t *testing.T) {
			t.Parallel()
			srv := realtimetest.New(realtimetest.Options{APIKey: apiKey, JWTSecret: secret, SubscribeDelay: 50 * time.Millisecond})
			var refuseJoin atomic.Pointer[string]
			srv.OnJoin = func(int) realtimetest.Join {
				if r := refuseJoin.Swap(nil); r != nil {
					return realtimetest.Join{Reason: *r}
				}
				return realtimetest.Join{}
			}
			hs := httptest.NewServer(srv)
			t.Cleanup(func() { srv.Close(); hs.Close() })
			o := startOfficial(t, strings.Replace(hs.URL, "http", "ws", 1)+"/socket", apiKey, vsn)

			// Join: subscribed by the reply, followed by the word of the server.
			first := srv.Token("statussync", time.Now().Add(time.Hour))
			o.say("token " + first)
			o.expect(map[string]any{"what": "done"})
			o.say("subscribe")
			o.expect(map[string]any{"what": "status", "status": "SUBSCRIBED"})
			o.expect(map[string]any{"what": "system", "payload.status": "ok", "payload.extension": "postgres_changes", "payload.channel": "mcp", "payload.message": "Subscribed to PostgreSQL"})

			// Changes, as it gives them to an application.
			srv.Change(realtimetest.Change{Schema: "public", Table: table, Type: "INSERT", Record: map[string]any{"id": "a", "n": 7, "ok": true}})
			o.expect(map[string]any{"what": "change", "payload.eventType": "INSERT", "payload.new.id": "a", "payload.new.n": 7.0, "payload.new.ok": true, "payload.old": map[string]any{}, "payload.errors": nil, "payload.table": table})
			srv.Change(realtimetest.Change{Schema: "public", Table: table, Type: "UPDATE", Record: map[string]any{"id": "a", "n": 8}, OldRecord: map[string]any{"id": "a"}})
			o.expect(map[string]any{"what": "change", "payload.eventType": "UPDATE", "payload.new.n": 8.0, "payload.old.id": "a"})
			srv.Change(realtimetest.Change{Schema: "public", Table: "another", Type: "DELETE", OldRecord: map[string]any{"id": "no"}})
			srv.Change(realtimetest.Change{Schema: "public", Table: table, Type: "DELETE", OldRecord: map[string]any{"id": "a"}})
			o.expect(map[string]any{"what": "change", "payload.eventType": "DELETE", "payload.old.id": "a", "payload.new": map[string]any{}})
			srv.Change(realtimetest.Change{Schema: "public", Table: table, Type: "UPDATE", Errors: []string{"Error 413: Payload Too Large"}})
			o.expect(map[string]any{"what": "change", "payload.errors": []any{"Error 413: Payload Too Large"}})

			// Heartbeats.
			o.expect(map[string]any{"what": "heartbeat", "status": "ok"})

			// A fresh token is silent but for the word that the database is followed anew.
			second := srv.Token("statussync", time.Now().Add(2*time.Hour))
			o.say("token " + second)
			o.expect(map[string]any{"what": "system", "payload.status": "ok", "payload.extension": "postgres_changes"})
			if got := srv.Tokens(); len(got) == 0 || got[len(got)-1] != second {
				t.Errorf("%d tokens came", len(got))
			}

			// Losing the channel and the connection.
			srv.Crash()
			o.expect(map[string]any{"what": "status", "status": "CHANNEL_ERROR"})
			o.expect(map[string]any{"what": "status", "status": "SUBSCRIBED"})
			srv.Disconnect()
			o.expect(map[string]any{"what": "status", "status": "CHANNEL_ERROR"})
			o.expect(map[string]any{"what": "status", "status": "SUBSCRIBED"})
			reason := "ConnectionRateLimitReached: Too many connected users"
			refuseJoin.Store(&reason)
			srv.Crash()
			o.expect(map[string]any{"what": "status", "status": "CHANNEL_ERROR", "error": "ConnectionRateLimitReached…"})
			o.expect(map[string]any{"what": "status", "status": "SUBSCRIBED"})
			srv.LoseDatabase("UnableToSubscribeToPostgres", 50*time.Millisecond)
			o.expect(map[string]any{"what": "system", "payload.status": "error", "payload.message": "UnableToSubscribeToPostgres"})
			o.expect(map[string]any{"what": "system", "payload.status": "ok", "payload.extension": "postgres_changes"})

			// The end of a token is a system message and phx_close, after which it does not come back by itself.
			o.say("token " + srv.Token("statussync", time.Now().Add(2*time.Second)))
			o.expect(map[string]any{"what": "system", "payload.status": "error", "payload.extension": "system", "payload.message": "Token has expired…"})
			o.expect(map[string]any{"what": "status", "status": "CLOSED"})

			// What it asks for in a join is what our client asks for.
			compareJoins(t, srv)

			o.say("token " + srv.Token("statussync", time.Now().Add(time.Hour)))
			o.say("subscribe")
			o.expect(map[string]any{"what": "status", "status": "SUBSCRIBED"})
			o.expect(map[string]any{"what": "system", "payload.status": "ok", "payload.extension": "postgres_changes"})
			o.say("unsubscribe")
			o.expect(map[string]any{"what": "left", "result": "ok"}) // it does not wait for the answer
			newRecorder().until(t, "the leave", func() bool { _, leaves, _ := srv.Counts(); return leaves == 1 && srv.Subscribed() == 0 })
		})
	}
}

// compareJoins holds our join against the official client's: every key that we send it sends too, and of the same kind.
func compareJoins(t *testing.T, srv *realtimetest.Server) {
	t.Helper()
	theirs := srv.Joins()[0].Payload
	mine := realtimetest.New(realtimetest.Options{})
	hs := httptest.NewServer(mine)
	defer hs.Close()
	defer mine.Close()
	rec := newRecorder()
	follow(t, supabase.Options{URL: hs.URL, APIKey: apiKey, Tables: []string{table}, Token: supabase.StaticToken(srv.Token("statussync", time.Now().Add(time.Hour)))}, rec)
	rec.until(t, "live", rec.isLive)
	var a, b map[string]any
	if err := json.Unmarshal(theirs, &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(mine.Joins()[0].Payload, &b); err != nil {
		t.Fatal(err)
	}
	var compare func(path string, a, b any)
	compare = func(path string, a, b any) {
		if reflect.TypeOf(a) != reflect.TypeOf(b) {
			t.Errorf("the official client's %s is %v, ours %v", path, a, b)
			return
		}
		switch b := b.(type) {
		case map[string]any:
			for k, v := range b {
				compare(path+"."+k, a.(map[string]any)[k], v)
			}
		case []any:
			if len(a.([]any)) != len(b) {
				t.Errorf("the official client's %s is %v, ours %v", path, a, b)
				return
			}
			for i, v := range b {
				compare(path, a.([]any)[i], v)
			}
		case string:
			if path != "join.access_token" && a != b {
				t.Errorf("the official client's %s is %v, ours %v", path, a, b)
			}
		}
	}
	compare("join", a, b)
}

// follow runs a feed until the test ends.
func follow(t *testing.T, o supabase.Options, rec *recorder) *supabase.Feed {
	t.Helper()
	return followTo(t, o, rec)
}

func followTo(t *testing.T, o supabase.Options, rec statussync.FeedReceiver) *supabase.Feed {
	t.Helper()
	feed, err := supabase.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- feed.Run(ctx, rec) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return feed
}

// TestOfficialClientIsRefused: a wrong key is refused to it as it is to us.
func TestOfficialClientIsRefused(t *testing.T) {
	t.Parallel()
	needOfficial(t)
	srv := realtimetest.New(realtimetest.Options{APIKey: apiKey})
	hs := httptest.NewServer(srv)
	t.Cleanup(func() { srv.Close(); hs.Close() })
	o := startOfficial(t, strings.Replace(hs.URL, "http", "ws", 1)+"/socket", "wrong", "2.0.0")
	o.say("subscribe")
	o.expect(map[string]any{"what": "status", "status": "CHANNEL_ERROR"})
	if n := len(srv.Joins()); n != 0 {
		t.Errorf("%d joins", n)
	}
}
