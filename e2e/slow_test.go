//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// TestSlowConsumer measures the latency of 200 subscribers that read, without and with one that never does. The one
// must cost the others nothing, be cut with 4008, and not grow the service.
func TestSlowConsumer(t *testing.T) {
	const (
		fleet   = 100
		readers = 200
	)
	beat := 200 * time.Millisecond // 500 updates a second
	if raceEnabled {
		beat = 500 * time.Millisecond // what two slow cores can do with the race detector on both sides
	}
	run := 5 * time.Second
	if full() {
		run = 20 * time.Second
	} else if testing.Short() {
		run = 2 * time.Second
	}
	// Long ids make large entries, so that the buffers of the kernel, which nobody can bound, are full soon.
	pad := strings.Repeat("x", 100)
	ids := make([]string, fleet)
	var servers list
	beats := [2][]obj{}
	for i := range ids {
		ids[i] = fmt.Sprintf("s%03d-%s", i, pad)
		servers = append(servers, obj{"id": ids[i], "container": fmt.Sprintf("c%03d", i), "environment": "box", "desired": "stopped", "probe": obj{"kind": "none"}})
		beats[0] = append(beats[0], container(fmt.Sprintf("c%03d", i), "running", "Up 2 hours"))
		beats[1] = append(beats[1], container(fmt.Sprintf("c%03d", i), "exited", "Exited (0) 2 hours ago"))
	}
	s := startService(t, obj{"environments": list{envOf("box", "token-box")}, "servers": servers})
	bodies := [2][]byte{heartbeat(beats[0]...), heartbeat(beats[1]...)}
	s.postHeartbeat("token-box", bodies[0])
	s.waitStatus(10*time.Second, ids[fleet-1], "running", "healthy", "")
	view, begin := s.servers("")
	base := make(map[string]uint64, fleet) // version before the first beat
	for id, v := range view {
		base[id] = v.Status.Version
	}

	c := &crowd{base: base}
	ctx, cancel := context.WithCancel(context.Background())
	defer func() { cancel(); c.wg.Wait() }()
	for i := range readers {
		c.join(ctx, s, i)
	}
	phase := func(d time.Duration) (p99 time.Duration, sent int) {
		first := int(c.sent.Load())
		ticker := time.NewTicker(beat)
		defer ticker.Stop()
		for end := time.Now().Add(d); time.Now().Before(end); <-ticker.C {
			k := int(c.sent.Load()) // beat number k makes version base+1+k
			c.at[k] = time.Now()
			c.sent.Add(1)
			s.postHeartbeat("token-box", bodies[(k+1)%2])
		}
		last := int(c.sent.Load())
		want := uint64(last) * fleet
		waitFor(t, 60*time.Second, "all readers get all", func() (bool, string) {
			least := c.least()
			return least >= want, fmt.Sprintf("the last has %d of %d; %v", least, want, c.firstErr())
		})
		return c.p99(first, last), last - first
	}

	phase(time.Second) // connections, buffers and the heap settle
	// Short runs in turn: whatever else the machine does hits both kinds. Each slow one but the last leaves by itself.
	const turns = 3
	var without, with []time.Duration
	var slow *websocket.Conn
	var quiet int
	for turn := range turns {
		p, _ := phase(run / turns)
		without = append(without, p)
		if turn == 0 {
			quiet = s.rssKiB("VmHWM")
		}
		// The one that never reads asks for everything since the beginning, so that there is more for it than the buffers
		// of the kernel hold.
		var err error
		if slow, _, err = dialer(4096).Dial("ws://"+s.addr+"/api/v1/ws", nil); err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		send(t, slow, obj{"type": "subscribe", "channel": "mcp_server_status", "cursor": begin})
		p, _ = phase(run / turns)
		with = append(with, p)
		if turn < turns-1 {
			slow.Close()
		}
	}
	after := s.rssKiB("VmHWM")
	// It is cut once a write to it has been blocked for 5 s; updates go on meanwhile.
	cut := func() float64 { v, _ := s.metric(`statussync_ws_closed_total{code="4008"}`); return v }
	for deadline := time.Now().Add(40 * time.Second); cut() == 0; {
		if time.Now().After(deadline) {
			t.Fatalf("the slow consumer is not cut: no statussync_ws_closed_total{code=\"4008\"} in /metrics")
		}
		phase(beat)
	}
	if n := cut(); n > turns {
		t.Errorf("%v connections were cut as too slow; only %d were slow", n, turns)
	}
	if err := c.firstErr(); err != nil {
		t.Errorf("a reader: %v", err)
	}
	slices.Sort(without)
	slices.Sort(with)
	t.Logf("p99 without %v, with %v; most memory %d MiB before, %d MiB with the slow one", without, with, quiet>>10, after>>10)
	// The medians. Where the machine is so busy that the latency is far from what the service does, only a multiple of
	// it tells anything.
	factor := 1.5
	if raceEnabled {
		factor = 4
	}
	if a, b := without[turns/2], with[turns/2]; b-a > 50*time.Millisecond && float64(b) > factor*float64(a) {
		t.Errorf("p99 is %v with a slow consumer and %v without: more than 50 ms apart", b, a)
	}
	// The newest entries are held in memory for all, up to a bound that these few don't reach; the rest is the slow one's.
	if grown, ring := after-quiet, 4*fleet*int(c.sent.Load()); grown > 64<<10+ring {
		t.Errorf("the service grew by %d MiB, of which its ring is at most %d", grown>>10, ring>>10)
	}
	// The cut one was told truth as far as it was told: what waits in its socket is a prefix of the journal.
	journal := s.updates(begin, "")
	slow.NetConn().(*net.TCPConn).SetReadBuffer(1 << 20)
	slow.SetReadDeadline(time.Now().Add(10 * time.Second))
	n := 0
	for {
		_, b, err := slow.ReadMessage()
		if err != nil {
			var ce *websocket.CloseError
			if errors.As(err, &ce) && ce.Code != 4008 && ce.Code != websocket.CloseAbnormalClosure {
				t.Errorf("the slow consumer was closed with %d", ce.Code)
			}
			break
		}
		if !bytes.Contains(b, []byte(`"status_update"`)) {
			continue
		}
		if !bytes.Contains(b, journal[n].raw) {
			t.Fatalf("entry %d that the slow consumer got is not %s: %s", n, journal[n], clip(b))
		}
		n++
	}
	t.Logf("the slow consumer was told %d of %d", n, len(journal))
	cancel()
	c.wg.Wait()
	s.stop()
}

// crowd is many readers of the same journal that cost little: they look at frames without decoding JSON.
type crowd struct {
	base map[string]uint64
	at   [4096]time.Time // when beat k was sent; written before sent counts it
	sent atomic.Int64
	wg   sync.WaitGroup

	mu      sync.Mutex
	readers []*reader
}

type reader struct {
	got atomic.Uint64 // updates, in order
	mu  sync.Mutex
	lat [][2]int32 // beat number, microseconds
	err error
}

func (c *crowd) join(ctx context.Context, s *service, n int) {
	s.t.Helper()
	conn, _, err := dialer(0).Dial("ws://"+s.addr+"/api/v1/ws", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	send(s.t, conn, obj{"type": "subscribe", "channel": "mcp_server_status"})
	expect(s.t, conn, "subscribed")
	conn.SetReadDeadline(time.Time{})
	r := &reader{}
	c.mu.Lock()
	c.readers = append(c.readers, r)
	c.mu.Unlock()
	c.wg.Go(func() {
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		if err := c.read(r, conn); ctx.Err() == nil {
			r.mu.Lock()
			r.err = fmt.Errorf("reader %d after %d updates: %w", n, r.got.Load(), err)
			r.mu.Unlock()
		}
	})
}

// read takes frames off the socket by hand, which is several times cheaper than a library.
func (c *crowd) read(r *reader, conn *websocket.Conn) error {
	br := bufio.NewReaderSize(conn.NetConn(), 64<<10)
	var lastSeq uint64
	buf := make([]byte, 0, 4096)
	for {
		var h [10]byte
		if _, err := io.ReadFull(br, h[:2]); err != nil {
			return err
		}
		first, n := h[0], uint64(h[1]&0x7f)
		switch n {
		case 126:
			if _, err := io.ReadFull(br, h[:2]); err != nil {
				return err
			}
			n = uint64(binary.BigEndian.Uint16(h[:2]))
		case 127:
			if _, err := io.ReadFull(br, h[:8]); err != nil {
				return err
			}
			n = binary.BigEndian.Uint64(h[:8])
		}
		if n > 1<<20 {
			return fmt.Errorf("a frame of %d bytes", n)
		}
		buf = slices.Grow(buf[:0], int(n))[:n]
		if _, err := io.ReadFull(br, buf); err != nil {
			return err
		}
		now := time.Now()
		switch op := first; {
		case op == 0x80|websocket.PingMessage:
			if err := conn.WriteControl(websocket.PongMessage, buf, now.Add(time.Second)); err != nil {
				return err
			}
			continue
		case op == 0x80|websocket.CloseMessage:
			return fmt.Errorf("closed: %x", buf)
		case op != 0x80|websocket.TextMessage:
			return fmt.Errorf("a frame with first byte %#x", op)
		}
		if bytes.HasPrefix(buf, []byte(`{"type":"bookmark"`)) {
			continue
		}
		seq, err1 := numberAfter(buf, `"seq":`)
		version, err2 := numberAfter(buf, `"version":`)
		id, err3 := stringAfter(buf, `"server_id":"`)
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		if lastSeq != 0 && seq != lastSeq+1 {
			return fmt.Errorf("seq %d follows %d", seq, lastSeq)
		}
		lastSeq = seq
		k := int64(version) - int64(c.base[id]) - 1
		if k < 0 || k >= c.sent.Load() {
			return fmt.Errorf("version %d of %s, whose base is %d, after %d beats", version, id, c.base[id], c.sent.Load())
		}
		r.mu.Lock()
		r.lat = append(r.lat, [2]int32{int32(k), int32(now.Sub(c.at[k]).Microseconds())})
		r.mu.Unlock()
		r.got.Add(1)
	}
}

func numberAfter(b []byte, key string) (uint64, error) {
	i := bytes.Index(b, []byte(key))
	if i < 0 {
		return 0, fmt.Errorf("no %s in %s", key, clip(b))
	}
	b = b[i+len(key):]
	n := 0
	for n < len(b) && b[n] >= '0' && b[n] <= '9' {
		n++
	}
	return strconv.ParseUint(string(b[:n]), 10, 64)
}

func stringAfter(b []byte, key string) (string, error) {
	i := bytes.Index(b, []byte(key))
	if i < 0 {
		return "", fmt.Errorf("no %s in %s", key, clip(b))
	}
	b = b[i+len(key):]
	return string(b[:max(0, bytes.IndexByte(b, '"'))]), nil
}

func (c *crowd) least() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	least := ^uint64(0)
	for _, r := range c.readers {
		least = min(least, r.got.Load())
	}
	return least
}

func (c *crowd) firstErr() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.readers {
		r.mu.Lock()
		err := r.err
		r.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// p99 is over all readers and the beats from first to before last.
func (c *crowd) p99(first, last int) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []int32
	for _, r := range c.readers {
		r.mu.Lock()
		for _, l := range r.lat {
			if int(l[0]) >= first && int(l[0]) < last {
				all = append(all, l[1])
			}
		}
		r.mu.Unlock()
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return time.Duration(all[len(all)*99/100]) * time.Microsecond
}
