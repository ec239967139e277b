//go:build linux

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestScratchStopOnPurpose(t *testing.T) {
	c, lives := startChild(t), startChild(t)
	s := startService(t, obj{
		"environments": list{envOf("box", "token-box")},
		"servers": list{
			obj{"id": "stopped", "environment": "box", "desired": "stopped", "probe": obj{"kind": "http", "url": "http://" + c.addr + "/health"}},
			obj{"id": "lives", "environment": "box", "probe": obj{"kind": "http", "url": "http://" + lives.addr + "/health"}},
		},
	})
	s.postHeartbeat("token-box", heartbeat(container("stopped", "running", "Up 2 hours"), container("lives", "running", "Up 2 hours")))
	s.waitStatus(10*time.Second, "stopped", "running", "healthy", "ok")
	c.signal(t, syscall.SIGTERM)
	n := s.status("stopped").CheckCount
	waitFor(t, 10*time.Second, "probes", func() (bool, string) { k := s.status("stopped").CheckCount; return k > n+30, fmt.Sprint(k) })
	t.Logf("%+v", s.status("stopped"))
	for _, e := range s.history("stopped") {
		t.Log(e)
	}
}

func TestScratchLocked(t *testing.T) {
	conf, ids := pulseConfig()
	s := startService(t, conf)
	s.pulse(ids)
	_, start := s.servers("")
	ws, sse := &follower{name: "ws"}, &follower{name: "sse", sse: true}
	s.follow(ws, start)
	s.follow(sse, start)
	ws.waitMore(t, 10*time.Second)
	files, _ := filepath.Glob(filepath.Join(s.data, "*.db"))
	cmd := exec.Command("sqlite3", files[0])
	in, _ := cmd.StdinPipe()
	cmd.Start()
	in.Write([]byte("PRAGMA busy_timeout=5000; BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS x(a);\n"))
	s.waitDurable(20*time.Second, false)
	ws.waitMore(t, 5*time.Second)
	t0 := time.Now()
	s.stop()
	t.Log("stop took", time.Since(t0))
	in.Write([]byte("ROLLBACK;\n"))
	in.Close()
	cmd.Wait()
	s.start()
	s.ready()
	ws.waitMore(t, 10*time.Second)
	sse.waitMore(t, 10*time.Second)
	settleAfter(t, s, ws, sse)
}

func settleAfter(t *testing.T, s *service, f ...*follower) {
	for _, x := range f {
		x.mu.Lock()
		t.Log(x.name, x.resyncs, len(x.before), len(x.told), x.cursor, x.faults)
		x.mu.Unlock()
	}
}

func TestScratchThrottle(t *testing.T) {
	g := newTarget(t)
	g.set("/a", 200)
	_ = g
}
