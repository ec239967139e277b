//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestToldIsKept kills the service at the very moment at which it has answered a command: what was answered is there
// after the restart, with its version, and nothing else is.
func TestToldIsKept(t *testing.T) {
	rounds := 8
	if testing.Short() {
		rounds = 3
	}
	s := startService(t, obj{"environments": list{envOf("box", "token-box")}, "servers": list{unprobed("a", "box", "running"), unprobed("b", "box", "running")}})
	_, start := s.servers("")
	for n := range rounds {
		var note string
		version := s.status("a").Version
		if n%2 == 0 {
			note = fmt.Sprintf("drill %d", n)
			if code, b := s.request("PUT", "/api/v1/servers/a/override", []byte(`{"state":"error","note":"`+note+`","expires_in":"1h"}`)); code/100 != 2 {
				t.Fatalf("override: %d %s", code, b)
			}
		} else if code, b := s.request("DELETE", "/api/v1/servers/a/override", nil); code/100 != 2 {
			t.Fatalf("clear: %d %s", code, b)
		}
		s.kill()
		s.start()
		s.ready()
		var st struct {
			statusJSON
			Override *struct{ Note string }
		}
		s.getJSON("/api/v1/servers/a/status", &st)
		switch {
		case st.Version != version+1:
			t.Errorf("round %d: version %d, not %d", n, st.Version, version+1)
		case note != "" && (st.Override == nil || st.Override.Note != note || st.Reason != "override"):
			t.Errorf("round %d: the override that was answered is not there: %+v", n, st)
		case note == "" && (st.Override != nil || st.Reason == "override"):
			t.Errorf("round %d: the override that was ended is there: %+v", n, st)
		}
	}
	// An override that ends while the service is down ends once it is up, in one update.
	if code, b := s.request("PUT", "/api/v1/servers/b/override", []byte(`{"state":"running","expires_in":"500ms"}`)); code/100 != 2 {
		t.Fatalf("override: %d %s", code, b)
	}
	s.kill()
	pause(context.Background(), 600*time.Millisecond)
	s.start()
	s.ready()
	if st := s.waitStatus(3*time.Second, "b", "unknown", "unknown", ""); st.Version != 3 || len(st.Marks) > 0 {
		t.Errorf("after its override ended: %+v", st)
	}
	journal := s.updates(start, "")
	if _, err := versionsRise(journal); err != nil {
		t.Error(err)
	}
	// Small pages tell the same as large ones.
	var small []*entryJSON
	for after := start; ; {
		var p pageJSON[json.RawMessage]
		s.getJSON("/api/v1/updates?limit=1&after="+after, &p)
		for _, raw := range p.Items {
			e, err := decodeEntry(raw)
			if err != nil {
				t.Fatal(err)
			}
			small = append(small, e)
		}
		if p.NextCursor == "" || len(p.Items) == 0 {
			break
		}
		after = p.NextCursor
	}
	if err := sameEntries(small, journal); err != nil {
		t.Errorf("in pages of one: %v", err)
	}
	s.stop()
}

// TestSuspended stops the process for longer than every limit, as a laptop's lid does, and lets it go on: nobody was
// watching, so nothing is told of that time.
func TestSuspended(t *testing.T) {
	t.Parallel()
	g := newTarget(t)
	s := startService(t, obj{
		"environments": list{envOf("box", "token-box")},
		"servers": list{
			obj{"id": "probed", "environment": "box", "probe": g.probe("/probed")}, unprobed("silent", "box", "running"),
			obj{"id": "outside", "probe": g.probe("/outside")},
		},
		"heartbeat": obj{"late_after": "3s", "lost_after": "4s"},
		"probe":     obj{"timeout": "1s", "slow_after": "900ms", "max_retries": 2},
	})
	beat := heartbeat(container("probed", "running", "Up 2 hours"), container("silent", "running", "Up 2 hours"))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for ctx.Err() == nil {
			s.tryRequest("POST", "/heartbeat", beat, "Authorization", "Bearer token-box")
			pause(ctx, 100*time.Millisecond)
		}
	})
	for _, id := range []string{"probed", "silent", "outside"} {
		s.waitStatus(10*time.Second, id, "running", "healthy", "ok")
	}
	_, before := s.servers("")
	if err := syscall.Kill(s.pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	pause(ctx, 14*time.Second)
	if err := syscall.Kill(s.pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	count := s.status("probed").CheckCount
	waitFor(t, 10*time.Second, "probes go on", func() (bool, string) {
		n := s.status("probed").CheckCount
		return n > count+3, fmt.Sprint(n)
	})
	if got := s.updates(before, "&kinds=status,environment_silent,environment_back,self_doubt"); len(got) > 0 {
		t.Errorf("a suspended process told %v", got)
	}
	cancel()
	wg.Wait()
	s.stop()
}

// TestRegistryChanges removes a server from the configuration and adds it again: its versions go on counting, and who
// resumes across the restarts hears it all.
func TestRegistryChanges(t *testing.T) {
	both := obj{"environments": list{envOf("box", "token-box")}, "servers": list{unprobed("a", "box", "running"), unprobed("b", "box", "running")}}
	one := obj{"environments": list{envOf("box", "token-box")}, "servers": list{unprobed("a", "box", "running")}}
	s := startService(t, both)
	beat := heartbeat(container("a", "running", "Up 2 hours"), container("b", "running", "Up 2 hours"))
	s.postHeartbeat("token-box", beat)
	s.waitStatus(5*time.Second, "b", "running", "healthy", "ok")
	_, start := s.servers("")
	ws, sse := &follower{name: "ws"}, &follower{name: "sse", sse: true}
	s.follow(ws, start)
	s.follow(sse, start)
	for _, conf := range []obj{one, both, one, both} {
		s.stop()
		s.configure(conf)
		s.start()
		s.ready()
		s.postHeartbeat("token-box", beat)
		s.waitStatus(5*time.Second, "a", "running", "healthy", "ok")
		code, _ := s.request("GET", "/api/v1/servers/b", nil)
		if has := len(conf["servers"].(list)) == 2; has != (code == 200) {
			t.Errorf("b answers %d", code)
		} else if has {
			s.waitStatus(5*time.Second, "b", "running", "healthy", "ok")
		}
	}
	journal := s.updates(start, "")
	if _, err := versionsRise(journal); err != nil {
		t.Error(err)
	}
	removed := 0
	for _, e := range journal {
		if e.ServerID == "a" {
			t.Errorf("a was touched: %s", e)
		}
		if e.Kind == "server_removed" {
			removed++
		}
	}
	if removed != 2 {
		t.Errorf("%d server_removed, not 2: %v", removed, journal)
	}
	for _, f := range []*follower{ws, sse} {
		f.waitLast(t, 10*time.Second, journal[len(journal)-1])
		f.check(t, journal)
	}
	s.stop()
}

// TestEvilTargets are servers that answer probes with what should hurt: endless bodies and headers, bombs, drips, long
// promises of silence. The service stays small and quick, and others are probed meanwhile.
func TestEvilTargets(t *testing.T) {
	g := newTarget(t)
	var throttled atomic.Int64
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		junk := strings.Repeat("x", 32<<10)
		switch r.URL.Path {
		case "/endless":
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, junk); err != nil {
					return
				}
			}
		case "/drip":
			for r.Context().Err() == nil {
				io.WriteString(w, "x")
				w.(http.Flusher).Flush()
				pause(r.Context(), 50*time.Millisecond)
			}
		case "/throttle":
			throttled.Add(1)
			w.Header().Set("Retry-After", "999999999")
			w.WriteHeader(429)
		case "/headers":
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for i := 0; ; i++ {
				if _, err := fmt.Fprintf(c, "X-H-%d: %s\r\n", i, junk); err != nil {
					return
				}
			}
		case "/informational":
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			for {
				if _, err := io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"); err != nil {
					return
				}
			}
		case "/text":
			w.WriteHeader(500)
			io.WriteString(w, "\x1b[2J\x1b]0;pwned\x07<script>alert(1)</script>\u202e"+junk)
		}
	}))
	t.Cleanup(evil.Close)
	paths := []string{"endless", "drip", "throttle", "headers", "informational", "text"}
	servers := list{obj{"id": "well", "environment": "box", "probe": g.probe("/well")}}
	for _, p := range paths {
		servers = append(servers, obj{"id": p, "environment": "box", "probe": obj{"url": evil.URL + "/" + p, "timeout": "1s"}})
	}
	s := startService(t, obj{"environments": list{obj{"id": "box"}}, "servers": servers, "probe": obj{"per_environment": 8}})
	s.waitStatus(10*time.Second, "well", "running", "healthy", "ok")
	for _, id := range paths {
		waitFor(t, 30*time.Second, id+" is judged", func() (bool, string) {
			st := s.status(id)
			return st.CheckCount >= 5 || id == "throttle" && st.CheckCount > 0, fmt.Sprintf("%+v", st)
		})
	}
	if n := s.rssKiB("VmHWM"); n > 400<<10 {
		t.Errorf("the service grew to %d MiB", n>>10)
	}
	count := s.status("well").CheckCount
	waitFor(t, 5*time.Second, "the well one is probed meanwhile", func() (bool, string) {
		n := s.status("well").CheckCount
		return n > count+5, fmt.Sprint(n - count)
	})
	// One that asks to be left alone is left alone, and what is known of it does not grow old meanwhile.
	if st := s.status("throttle"); st.State != "running" || throttled.Load() > 2 {
		t.Errorf("the one that throttles is %s after %d probes", st.key(), throttled.Load())
	}
	if st := s.status("text"); strings.ContainsAny(st.LastError, "\x1b\x07\u202e") || len(st.LastError) > 600 {
		t.Errorf("untrusted text is kept as it came: %q", st.LastError)
	}
	s.waitStatus(5*time.Second, "headers", "", "unhealthy", "")
	s.waitStatus(5*time.Second, "informational", "", "unhealthy", "")
	s.stop()
}

// TestProbeFloor asks for the same probe from everywhere at once: the target is asked at most once a second.
func TestProbeFloor(t *testing.T) {
	g := newTarget(t)
	s := startService(t, obj{"servers": list{obj{"id": "a", "probe": obj{"kind": "http", "url": g.url("/a"), "interval": "10m"}}}})
	s.waitStatus(20*time.Second, "a", "", "", "")
	before := g.hits.Load()
	began := time.Now()
	var wg sync.WaitGroup
	var good, limited, other atomic.Int64
	for range 20 {
		wg.Go(func() {
			for range 15 {
				switch code, _, err := s.tryRequest("POST", "/api/v1/servers/a/probe", nil, "Content-Type", "application/json"); {
				case err == nil && code == 200:
					good.Add(1)
				case err == nil && code == 429:
					limited.Add(1)
				default:
					other.Add(1)
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	if hits := g.hits.Load() - before; float64(hits) > took.Seconds()+2 || other.Load() > 0 || good.Load() == 0 {
		t.Errorf("%d probes of one target in %s; %d answered, %d limited, %d failed", hits, took, good.Load(), limited.Load(), other.Load())
	}
	s.stop()
}

// TestStopUnderSiege asks for a stop while clients hold on: readers that don't read, requests that don't end, probes
// that hang, a store that is full. It must end within 3 s, cleanly.
func TestStopUnderSiege(t *testing.T) {
	g := newTarget(t)
	g.set("/hangs", modeHang)
	conf, ids := pulseConfig()
	conf["servers"] = append(conf["servers"].(list), obj{"id": "hangs", "probe": obj{"kind": "http", "url": g.url("/hangs"), "timeout": "30s"}})
	s := startService(t, conf)
	p := s.pulse(ids)
	_, start := s.servers("")
	waitFor(t, 20*time.Second, "a probe hangs", func() (bool, string) { return g.hits.Load() > 0, "" })
	for range 20 {
		c, _, err := dialer(4096).Dial("ws://"+s.addr+"/api/v1/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		send(t, c, obj{"type": "subscribe", "channel": "mcp_server_status", "cursor": start})
	}
	for _, raw := range []string{
		"GET /api/v1/stream?cursor=" + start + " HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"POST /heartbeat HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer token-box\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
		"POST /api/v1/servers/hangs/probe HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n",
		"GET /api/v1/servers HTTP/1.1\r\nHost: loc",
	} {
		for range 5 {
			c, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.(*net.TCPConn).SetReadBuffer(4096)
			io.WriteString(c, raw)
		}
	}
	waitFor(t, 20*time.Second, "enough for nobody to hold", func() (bool, string) {
		n := len(s.updates(start, ""))
		return n > 1000, fmt.Sprint(n)
	})
	s.stop()
	p.end()
}

// TestStoreMishaps takes the store's file away, and locks it, under way; promise 2 holds for both.
func TestStoreMishaps(t *testing.T) {
	conf, ids := pulseConfig()
	s := startService(t, conf)
	p := s.pulse(ids)
	_, start := s.servers("")
	ws, sse := &follower{name: "ws"}, &follower{name: "sse", sse: true}
	s.follow(ws, start)
	s.follow(sse, start)
	ws.waitMore(t, 10*time.Second)
	away := t.TempDir()
	files, err := filepath.Glob(filepath.Join(s.data, "*.db*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no store in %s: %v", s.data, err)
	}
	for _, f := range files {
		if err := os.Rename(f, filepath.Join(away, filepath.Base(f))); err != nil {
			t.Fatal(err)
		}
	}
	s.waitDurable(20*time.Second, false)
	ws.waitMore(t, 5*time.Second)
	sse.waitMore(t, 5*time.Second)
	_, _, volatile := ws.position()
	for _, f := range files {
		if err := os.Rename(filepath.Join(away, filepath.Base(f)), f); err != nil {
			t.Fatal(err)
		}
	}
	s.waitDurable(60*time.Second, true)
	ws.waitMore(t, 5*time.Second)
	s.kill()
	s.start()
	s.ready()
	ws.waitMore(t, 5*time.Second)
	sse.waitMore(t, 5*time.Second)
	_, _, now := ws.position()
	t.Logf("volatile at %s, now at %s", volatile, now)
	p.end()
	settle(t, s, []*follower{ws, sse})
	s.stop()
}

// TestSlowLink is a client on a slow line: it reads, but only some 40 kB a second. It is no dead one, and is not cut.
func TestSlowLink(t *testing.T) {
	t.Parallel()
	const fleet = 300
	var servers list
	for i := range fleet {
		servers = append(servers, obj{"id": fmt.Sprintf("s%03d", i), "name": strings.Repeat("n", 200), "labels": obj{"text": strings.Repeat("l", 800)}})
	}
	s := startService(t, obj{"servers": servers, "probe": obj{"kind": "none"}})
	c, _, err := dialer(4096).Dial("ws://"+s.addr+"/api/v1/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send(t, c, obj{"type": "subscribe", "channel": "mcp_server_status", "snapshot": true})
	nc := c.NetConn()
	buf := make([]byte, 4096)
	total := 0
	for begin := time.Now(); time.Since(begin) < 9*time.Second && total < 350_000; {
		nc.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := nc.Read(buf)
		total += n
		if err != nil {
			t.Fatalf("cut after %d bytes in %s: %v", total, time.Since(begin), err)
		}
		pause(context.Background(), 100*time.Millisecond)
	}
	if v, _ := s.metric(`statussync_ws_closed_total{code="4008"}`); v != 0 {
		t.Errorf("a client that reads was cut as too slow, after %d bytes", total)
	}
	t.Logf("%d bytes read", total)
	s.stop()
}

// TestHangingAgents has many hosts whose agents take a question and never answer. A host that is well gets its question
// at once: its restart alarms nobody.
func TestHangingAgents(t *testing.T) {
	hangs, err := net.Listen("tcp", "127.0.0.1:0") // the kernel takes connections; nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer hangs.Close()
	asked := make(chan struct{}, 100)
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"status":"ok","version":"0.1.0","tool_instances":[{"id":"x","names":["well"],"state":"running","status":"Up 1 second"}]}`)
		asked <- struct{}{}
	}))
	t.Cleanup(good.Close)
	const hosts = 150
	envs, servers := list{obj{"id": "good", "agent_token": "token-good", "agent_url": good.URL}}, list{unprobed("well", "good", "running")}
	for i := range hosts {
		envs = append(envs, obj{"id": fmt.Sprintf("h%d", i), "agent_token": fmt.Sprintf("token-h%d-", i), "agent_url": "http://" + hangs.Addr().String()})
		servers = append(servers, unprobed(fmt.Sprintf("s%d", i), fmt.Sprintf("h%d", i), "running"))
	}
	s := startService(t, obj{"environments": envs, "servers": servers})
	all := func(state, text string) {
		for i := range hosts {
			s.postHeartbeat(fmt.Sprintf("token-h%d-", i), heartbeat(container(fmt.Sprintf("s%d", i), state, text)))
		}
		s.postHeartbeat("token-good", heartbeat(container("well", state, text)))
	}
	all("running", "Up 2 hours")
	s.waitStatus(10*time.Second, "well", "running", "healthy", "ok")
	before := len(s.history("well"))
	all("exited", "Exited (0) 1 second ago")
	began := time.Now()
	select {
	case <-asked:
	case <-time.After(15 * time.Second):
		t.Fatal("the agent that would answer was not asked")
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the agent that would answer was asked only after %s", took)
	}
	s.waitStatus(5*time.Second, "s0", "", "", "")
	if got := s.history("well")[before:]; len(got) > 0 {
		t.Errorf("a restart was told: %v", got)
	}
	s.stop()
}

// TestBookmarks: a subscriber whose filter matches little learns how far it is, and how many entries it should have.
func TestBookmarks(t *testing.T) {
	if !full() {
		t.Skip("bookmarks come every 25 s; E2E_FULL=1 waits for them")
	}
	t.Parallel()
	conf, ids := pulseConfig()
	s := startService(t, conf)
	c := s.ws("/api/v1/ws")
	send(t, c, obj{"type": "subscribe", "channel": "mcp_server_status", "filters": list{obj{"server_ids": list{ids[0]}, "states": list{"stopped"}}}})
	expect(t, c, "subscribed")
	p := s.pulse(ids)
	var got uint64
	var last, mark string
	c.SetReadDeadline(time.Now().Add(40 * time.Second))
	for mark == "" {
		_, b, err := c.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		var f frame
		if err := json.Unmarshal(b, &f); err != nil {
			t.Fatal(err)
		}
		switch f.Type {
		case "status_update":
			got++
			last = f.Cursor
		case "bookmark":
			if f.Sent != got {
				t.Errorf("the bookmark says %d entries, %d came", f.Sent, got)
			}
			mark = f.Cursor
		}
	}
	p.end()
	if got < 50 {
		t.Errorf("only %d entries came", got)
	}
	if later, ok := laterCursor(mark, last); !ok || later {
		t.Errorf("the bookmark is at %s, before the last entry at %s", mark, last)
	}
	f := &follower{name: "resumed", sub: obj{"filters": list{obj{"server_ids": list{ids[0]}, "states": list{"stopped"}}}}}
	s.follow(f, mark)
	want := only(s.updates(mark, ""), func(e *entryJSON) bool { return e.ServerID == ids[0] && e.Current.State == "stopped" })
	if len(want) > 0 {
		f.waitLast(t, 10*time.Second, want[len(want)-1])
	}
	f.check(t, want)
	s.stop()
}
