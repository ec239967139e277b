package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The load client: WebSocket connections that read and count as cheaply as Go can, because they share the machine with what
// is measured. It reads the wire itself; one goroutine and one small buffer a connection.

// subscribers are the connections of one process.
type subscribers struct {
	count   atomic.Int64 // entries received
	mu      sync.Mutex
	latency []float64 // ms, of sampled connections
	conns   []net.Conn
	readers sync.WaitGroup
	closed  atomic.Int64 // connections that the server ended

	posted sync.Map // server id → time of the POST that changes it, for endToEnd
}

const (
	sampleEvery = 16        // one connection of so many measures latencies
	maxSamples  = 2_000_000 // kept at most
)

func asSubscribers([]string) error {
	s := &subscribers{}
	defer s.close()
	return serveCommands("", func(q command) (answer, error) {
		switch q.Op {
		case "connect": // Text: what to subscribe to; Servers: over how many servers the connections are spread
			var d dial
			if err := json.Unmarshal([]byte(q.Text), &d); err != nil {
				return answer{}, err
			}
			began := time.Now()
			err := s.connect(d, q.N)
			return answer{Seconds: time.Since(began).Seconds()}, err
		case "wait": // until Total entries were received in all, at most Seconds
			return s.wait(q)
		case "stats":
			return s.stats(), nil
		case "heartbeats":
			return s.heartbeats(q)
		case "close":
			s.close()
			return answer{}, nil
		}
		return answer{}, fmt.Errorf("no such command: %q", q.Op)
	})
}

// dial says how connections are opened.
type dial struct {
	Address    string
	Centrifuge bool
	Cursor     string
	// PerServer: connection i subscribes to server i % Spread; PerEnvironment: to that environment. Neither: to everything.
	PerServer, PerEnvironment bool
	Spread                    int
}

func (s *subscribers) connect(d dial, n int) error {
	type opened struct {
		c   net.Conn
		r   *bufio.Reader
		err error
	}
	out := make([]opened, n)
	var wg sync.WaitGroup
	next := atomic.Int64{}
	for range min(n, 64) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				out[i].c, out[i].r, out[i].err = d.open(i)
			}
		})
	}
	wg.Wait()
	for i := range out {
		if out[i].err != nil {
			return fmt.Errorf("connection %d: %w", i, out[i].err)
		}
	}
	for i := range out {
		s.conns = append(s.conns, out[i].c)
		sample := i%sampleEvery == 0
		s.readers.Go(func() {
			if err := s.read(out[i].c, out[i].r, d.Centrifuge, sample); err != nil {
				s.closed.Add(1)
			}
		})
	}
	return nil
}

// open connects and subscribes, and returns when the server has said that it is.
func (d *dial) open(i int) (net.Conn, *bufio.Reader, error) {
	c, err := net.DialTimeout("tcp", d.Address, 20*time.Second)
	if err != nil {
		return nil, nil, err
	}
	path := "/api/v1/ws"
	if d.Centrifuge {
		path = "/connection/websocket"
	}
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", path, d.Address)
	r := bufio.NewReaderSize(c, 4096)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return nil, nil, fmt.Errorf("%s: %s", resp.Status, b)
	}
	var hello, until string
	if d.Centrifuge {
		hello, until = `{"id":1,"connect":{}}`+"\n"+`{"id":2,"subscribe":{"channel":"updates"}}`, `"id":2`
	} else {
		filter := ""
		switch {
		case d.PerServer:
			filter = fmt.Sprintf(`,"filters":[{"server_ids":[%q]}]`, serverID(i%d.Spread))
		case d.PerEnvironment:
			filter = fmt.Sprintf(`,"filters":[{"environment_ids":[%q]}]`, envID(i%d.Spread))
		}
		if d.Cursor != "" {
			filter += fmt.Sprintf(`,"cursor":%q`, d.Cursor)
		}
		hello, until = `{"type":"subscribe","channel":"mcp_server_status"`+filter+`}`, `"subscribed"`
	}
	if err := writeFrame(c, 1, []byte(hello)); err != nil {
		return nil, nil, err
	}
	for {
		op, p, err := readFrame(r, nil)
		if err != nil {
			return nil, nil, err
		}
		if op == 8 || bytes.Contains(p, []byte(`"error"`)) {
			return nil, nil, fmt.Errorf("refused: %q", p)
		}
		if bytes.Contains(p, []byte(until)) {
			break
		}
	}
	return c, r, c.SetDeadline(time.Time{})
}

// writeFrame writes a masked frame; the mask is zero, which leaves the payload as it is.
func writeFrame(c net.Conn, op byte, p []byte) error {
	b := []byte{0x80 | op}
	switch {
	case len(p) < 126:
		b = append(b, 0x80|byte(len(p)))
	default:
		b = append(b, 0x80|126, byte(len(p)>>8), byte(len(p)))
	}
	b = append(b, 0, 0, 0, 0)
	_, err := c.Write(append(b, p...))
	return err
}

var errFrame = errors.New("a frame that a server must not send")

// readFrame reads one frame into buf, which grows where needed.
func readFrame(r *bufio.Reader, buf []byte) (op byte, p []byte, err error) {
	var h [8]byte
	if _, err := io.ReadFull(r, h[:2]); err != nil {
		return 0, nil, err
	}
	op = h[0] & 15
	if h[0]&0x80 == 0 || h[1]&0x80 != 0 {
		return 0, nil, errFrame
	}
	n := uint64(h[1])
	switch n {
	case 126:
		if _, err := io.ReadFull(r, h[:2]); err != nil {
			return 0, nil, err
		}
		n = uint64(binary.BigEndian.Uint16(h[:2]))
	case 127:
		if _, err := io.ReadFull(r, h[:8]); err != nil {
			return 0, nil, err
		}
		n = binary.BigEndian.Uint64(h[:8])
	}
	if n > 64<<20 {
		return 0, nil, errFrame
	}
	if uint64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	p = buf[:n]
	_, err = io.ReadFull(r, p)
	return op, p, err
}

var (
	publication  = []byte(`"pub":{`)
	statusUpdate = []byte(`"status_update"`)
	madeAt       = []byte("ns=")
)

func (s *subscribers) read(c net.Conn, r *bufio.Reader, centrifuge, sample bool) error {
	var buf []byte
	for {
		op, p, err := readFrame(r, buf)
		if err != nil {
			return err
		}
		buf = p[:0]
		switch op {
		case 8:
			return errors.New("closed by the server")
		case 9:
			if err := writeFrame(c, 10, p); err != nil {
				return err
			}
			continue
		}
		what := statusUpdate
		if centrifuge {
			what = publication
			if string(bytes.TrimSpace(p)) == "{}" { // its ping
				if err := writeFrame(c, 1, []byte("{}")); err != nil {
					return err
				}
				continue
			}
		}
		n := bytes.Count(p, what)
		if n == 0 {
			continue
		}
		if sample {
			s.sample(p)
		}
		s.count.Add(int64(n))
	}
}

// sample notes how old what stands in the message is.
func (s *subscribers) sample(p []byte) {
	now := time.Now()
	for {
		i := bytes.Index(p, madeAt)
		if i < 0 {
			break
		}
		p = p[i+len(madeAt):]
		var ns int64
		for len(p) > 0 && p[0] >= '0' && p[0] <= '9' {
			ns = ns*10 + int64(p[0]-'0')
			p = p[1:]
		}
		if i := bytes.IndexByte(p, '}'); i >= 0 { // the note stands twice in an entry: in its details, too
			if j := bytes.Index(p, statusUpdate); j >= 0 {
				p = p[j:]
			} else if j := bytes.Index(p, publication); j >= 0 {
				p = p[j:]
			} else {
				p = nil
			}
		}
		s.note(float64(now.UnixNano()-ns) / 1e6)
	}
	// Of a heartbeat the frame only tells which server it was.
	const id = `"server_id":"`
	if i := bytes.Index(p, []byte(id)); i >= 0 {
		p = p[i+len(id):]
		if j := bytes.IndexByte(p, '"'); j > 0 {
			if at, ok := s.posted.Load(string(p[:j])); ok {
				s.note(float64(now.Sub(at.(time.Time)).Microseconds()) / 1000)
			}
		}
	}
}

func (s *subscribers) note(ms float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.latency) < maxSamples {
		s.latency = append(s.latency, ms)
	}
}

func (s *subscribers) wait(q command) (answer, error) {
	began := time.Now()
	limit := time.Duration(q.Seconds * float64(time.Second))
	for s.count.Load() < q.Total {
		if time.Since(began) > limit {
			return answer{}, fmt.Errorf("%d of %d entries came within %s; %d connections were closed", s.count.Load(), q.Total, limit, s.closed.Load())
		}
		time.Sleep(200 * time.Microsecond)
	}
	return answer{Seconds: time.Since(began).Seconds(), Count: s.count.Load()}, nil
}

// stats returns what was counted since the last call, and begins anew.
func (s *subscribers) stats() answer {
	s.mu.Lock()
	l := s.latency
	s.latency = nil
	s.mu.Unlock()
	return answer{Count: s.count.Load(), P50: quantile(l, 0.5), P99: quantile(l, 0.99), Max: quantile(l, 1), Samples: len(l)}
}

func (s *subscribers) close() {
	for _, c := range s.conns {
		c.Close()
	}
	s.readers.Wait()
	s.conns = nil
	s.count.Store(0)
	s.closed.Store(0)
}

// heartbeats posts q.N heartbeats at q.Rate a second, each of which crashes a server or has it run again: environment by
// environment, each with q.Servers servers (Text: "address environments").
func (s *subscribers) heartbeats(q command) (answer, error) {
	var address string
	var envs int
	if _, err := fmt.Sscan(q.Text, &address, &envs); err != nil {
		return answer{}, err
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, MaxConnsPerHost: 64}, Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	down := make([][]bool, envs)
	for e := range down {
		down[e] = make([]bool, q.Servers)
	}
	type post struct{ env, server int }
	work := make(chan post)
	var mu sync.Mutex
	var first error
	var posts sync.WaitGroup
	for range 32 {
		posts.Go(func() {
			for p := range work {
				mu.Lock()
				if p.server >= 0 {
					down[p.env][p.server] = !down[p.env][p.server]
				}
				body := heartbeatBody(p.env, q.Servers, down[p.env])
				mu.Unlock()
				req, err := http.NewRequest(http.MethodPost, "http://"+address+"/heartbeat", strings.NewReader(body))
				if err == nil {
					req.Header.Set("Authorization", fmt.Sprintf("Bearer %s%d", agentToken, p.env))
					req.Header.Set("Content-Type", "application/json")
					if p.server >= 0 {
						s.posted.Store(serverID(p.env*q.Servers+p.server), time.Now())
					}
					var resp *http.Response
					if resp, err = client.Do(req); err == nil {
						_, _ = io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
						if resp.StatusCode != http.StatusNoContent {
							err = errors.New(resp.Status)
						}
					}
				}
				if err != nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	began := time.Now()
	for i := range q.N {
		if q.Rate > 0 {
			if wait := time.Until(began.Add(time.Duration(float64(i) / q.Rate * 1e9))); wait > 0 {
				time.Sleep(wait)
			}
		}
		p := post{env: i % envs, server: i / envs % q.Servers}
		if q.Total < 0 { // a first round that changes nothing
			p.server = -1
		}
		mu.Lock()
		err := first
		mu.Unlock()
		if err != nil {
			break
		}
		work <- p
	}
	close(work)
	posts.Wait()
	return answer{Seconds: time.Since(began).Seconds()}, first
}

// heartbeatBody is what the agent of an environment sends: Docker's words for each of its containers.
func heartbeatBody(env, servers int, down []bool) string {
	var b strings.Builder
	b.WriteString(`{"dtma_version":"0.1.0","system_status":{"cpu_load_percent":12.5,"memory":{"total_bytes":8323072000,"active_bytes":2123072000,"free_bytes":4323072000,"used_bytes":4000000000},"disk":{"mount":"/","total_bytes":80000000000,"used_bytes":20000000000,"free_bytes":60000000000}},"tool_statuses":[`)
	for i := range servers {
		if i > 0 {
			b.WriteByte(',')
		}
		id := env*servers + i
		state, status := "running", "Up 2 hours"
		if down != nil && down[i] {
			state, status = "exited", "Exited (137) 5 seconds ago"
		}
		fmt.Fprintf(&b, `{"id":"c%063x","names":["%s"],"image":"ghcr.io/example/mcp-server:1.4.2","image_id":"sha256:%064x","command":"node /app/index.js","created":1732300000,"state":"%s","status":"%s","ports":[{"ip":"0.0.0.0","private_port":8080,"public_port":%d,"type":"tcp"}]}`,
			id, serverID(id), id, state, status, 30000+i)
	}
	b.WriteString("]}")
	return b.String()
}
