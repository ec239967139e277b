package httpprobe

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/guard"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newProber(t testing.TB, o Options) *Prober {
	p := New(o)
	t.Cleanup(p.Close)
	return p
}

func plan(url string) *statussync.ProbePlan {
	return &statussync.ProbePlan{ServerID: "s", Kind: statussync.ProbeHTTP, URL: url, Timeout: 5 * time.Second, Trusted: true}
}

// serve runs a real HTTP server; what it logs of broken connections is of no interest.
func serve(t testing.TB, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// raw runs a server that does with each connection what handle does; n counts connections. It is closed afterwards.
func raw(t testing.TB, handle func(c *net.TCPConn)) (url string, n *atomic.Int32) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n = new(atomic.Int32)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				handle(c.(*net.TCPConn))
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
	return "http://" + l.Addr().String() + "/health", n
}

// readRequest reads up to the end of a request's header.
func readRequest(c net.Conn) error {
	_, err := http.ReadRequest(bufio.NewReader(c))
	return err
}

// closedPort returns a URL where nobody listens.
func closedPort(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return "http://" + l.Addr().String() + "/"
}

// silent returns a URL where connections are neither accepted nor refused: a listener whose queue is full.
func silent(t testing.TB) string {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
	for range 8 {
		c, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
		if err != nil {
			return "http://" + addr + "/"
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("the listener never stopped accepting")
	return ""
}

func TestAnswers(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		code := 0
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &code)
		if code == 302 {
			w.Header().Set("Location", "/200")
		}
		w.WriteHeader(code)
		if code != 204 && code != 304 {
			_, _ = io.WriteString(w, "body")
		}
	})
	p := newProber(t, Options{})
	creds := map[string]string{"Authorization": "Bearer x"}
	for _, c := range []struct {
		code    int
		headers map[string]string
		outcome statussync.Outcome
		auth    statussync.Auth
	}{
		{200, nil, statussync.OutcomeSuccess, statussync.AuthNone},
		{204, creds, statussync.OutcomeSuccess, statussync.AuthOK},
		{299, nil, statussync.OutcomeSuccess, statussync.AuthNone},
		{401, nil, statussync.OutcomeAlive, statussync.AuthRequired},
		{403, nil, statussync.OutcomeAlive, statussync.AuthRequired},
		{401, creds, statussync.OutcomeAlive, statussync.AuthFailed},
		{403, creds, statussync.OutcomeAlive, statussync.AuthFailed},
		{429, creds, statussync.OutcomeAlive, ""},
		{302, nil, statussync.OutcomeFailure, ""},
		{304, nil, statussync.OutcomeFailure, ""},
		{400, nil, statussync.OutcomeFailure, ""},
		{404, creds, statussync.OutcomeFailure, ""},
		{500, nil, statussync.OutcomeFailure, ""},
		{503, nil, statussync.OutcomeFailure, ""},
		{599, nil, statussync.OutcomeFailure, ""},
	} {
		pl := plan(fmt.Sprintf("%s/%d", s.URL, c.code))
		pl.Headers = c.headers
		before := time.Now()
		r := p.Probe(t.Context(), pl)
		cause := fmt.Sprintf("http_%d", c.code)
		if c.outcome == statussync.OutcomeSuccess {
			cause = ""
		}
		if r.Outcome != c.outcome || r.Auth != c.auth || r.Cause != cause || r.HTTPStatus != c.code || r.ByConnect ||
			r.Throttled != (c.code == 429) || (r.Detail == "") != (cause == "") {
			t.Errorf("%d: %+v", c.code, r)
		}
		if r.ServerID != "s" || r.StartedAt.Before(before) || r.FinishedAt.Before(r.StartedAt) ||
			r.Latency <= 0 || r.Latency > r.FinishedAt.Sub(r.StartedAt) {
			t.Errorf("%d: times %+v", c.code, r)
		}
	}
}

func TestRequest(t *testing.T) {
	got := make(chan *http.Request, 1)
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) { got <- r })
	p := newProber(t, Options{UserAgent: "statussync/1.2.3"})
	pl := plan(s.URL + "/a%2Fb?x=1")
	pl.Headers = map[string]string{"x-key": "k", "Host": "other.example"}
	if r := p.Probe(t.Context(), pl); r.Outcome != statussync.OutcomeSuccess {
		t.Fatalf("%+v", r)
	}
	r := <-got
	if r.Method != "GET" || r.RequestURI != "/a%2Fb?x=1" || r.Host != "other.example" || r.Header.Get("X-Key") != "k" ||
		r.UserAgent() != "statussync/1.2.3" || r.Header.Get("Accept-Encoding") != "" {
		t.Errorf("the server saw %s %s of %s, %v", r.Method, r.RequestURI, r.Host, r.Header)
	}
}

func TestBadConfig(t *testing.T) {
	p := newProber(t, Options{})
	for _, u := range []string{"", "x", "ftp://h/", "http://u:secret@h/", "http://:30000@10.0.0.5:6379/"} {
		r := p.Probe(t.Context(), plan(u))
		if r.Outcome != statussync.OutcomeFailure || r.Cause != causeBadConfig || r.ByConnect || r.Detail == "" ||
			strings.Contains(r.Detail, "secret") {
			t.Errorf("%q: %+v", u, r)
		}
	}
	for k, v := range map[string]string{"a b": "secret", "": "secret", "X": "secret\r\nY: z", "X:": "secret"} {
		pl := plan("http://127.0.0.1:1/")
		pl.Headers = map[string]string{k: v}
		if r := p.Probe(t.Context(), pl); r.Cause != causeBadConfig || strings.Contains(r.Detail, "secret") {
			t.Errorf("header %q: %+v", k, r)
		}
	}
}

func TestNoAnswer(t *testing.T) {
	hang, _ := raw(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	drip, _ := raw(t, func(c *net.TCPConn) { // a header that never ends, a byte at a time
		if readRequest(c) != nil {
			return
		}
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for _, b := range []byte("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 10_000)) {
			if _, err := c.Write([]byte{b}); err != nil {
				return
			}
			<-tick.C
		}
	})
	reset, _ := raw(t, func(c *net.TCPConn) {
		_ = readRequest(c)
		_ = c.SetLinger(0)
	})
	closing, _ := raw(t, func(c *net.TCPConn) { _ = readRequest(c) })
	half, _ := raw(t, func(c *net.TCPConn) {
		_ = readRequest(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX: y")
	})
	garbage, _ := raw(t, func(c *net.TCPConn) {
		_ = readRequest(c)
		_, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.9\r\n")
	})
	huge, _ := raw(t, func(c *net.TCPConn) {
		if readRequest(c) != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		line := "X: " + strings.Repeat("x", 4000) + "\r\n"
		for range 1000 {
			if _, err := io.WriteString(c, line); err != nil {
				return
			}
		}
	})
	badTLS := httptest.NewUnstartedServer(http.NotFoundHandler())
	badTLS.Config.ErrorLog = log.New(io.Discard, "", 0)
	badTLS.StartTLS()
	t.Cleanup(badTLS.Close)
	plain := serve(t, func(http.ResponseWriter, *http.Request) {})

	p := newProber(t, Options{})
	for _, c := range []struct {
		name, url string
		cause     string
		byConnect bool
	}{
		{"refused", closedPort(t), guard.CauseRefused, true},
		{"no connection", silent(t), guard.CauseTimeout, true},
		{"unresolved", "http://no-such-host.invalid/", guard.CauseDNS, true},
		{"hang", hang, guard.CauseTimeout, false},
		{"slow header", drip, guard.CauseTimeout, false},
		{"reset", reset, guard.CauseReset, true},
		{"closed", closing, guard.CauseReset, true},
		{"closed after some bytes", half, guard.CauseReset, false},
		{"not HTTP", garbage, guard.CauseProtocol, false},
		{"huge header", huge, guard.CauseProtocol, false},
		{"bad certificate", badTLS.URL, guard.CauseTLS, false},
		{"no TLS", strings.Replace(plain.URL, "http:", "https:", 1), guard.CauseTLS, false},
		{"TLS hangs", strings.Replace(hang, "http:", "https:", 1), guard.CauseTimeout, false},
		{"metadata", "http://169.254.169.254/latest/meta-data", guard.CauseGuard, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			pl := plan(c.url)
			// Only what ends by its timeout gets a short one: the machine may be busy.
			pl.Timeout = 30 * time.Second
			if c.cause == guard.CauseTimeout || c.cause == guard.CauseDNS {
				pl.Timeout = 500 * time.Millisecond
			}
			r := p.Probe(t.Context(), pl)
			if r.Outcome != statussync.OutcomeFailure || r.Cause != c.cause || r.ByConnect != c.byConnect ||
				r.HTTPStatus != 0 || r.Latency != 0 || r.Detail == "" {
				t.Errorf("%+v", r)
			}
			if took := r.FinishedAt.Sub(r.StartedAt); took > 10*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	hang, _ := raw(t, func(c *net.TCPConn) {
		_ = readRequest(c)
		cancel()
		_, _ = io.Copy(io.Discard, c)
	})
	p := newProber(t, Options{})
	if r := p.Probe(ctx, plan(hang)); r.Outcome != statussync.OutcomeFailure || r.Cause != guard.CauseCanceled || r.ByConnect {
		t.Errorf("%+v", r)
	}
}

func TestBodies(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = io.CopyN(z, zeros{}, 4<<20)
	_ = z.Close()
	var written atomic.Int64
	flood := func(w http.ResponseWriter, pause <-chan time.Time) {
		buf := make([]byte, 4096)
		for {
			n, err := w.Write(buf)
			written.Add(int64(n))
			if err != nil {
				return
			}
			if pause != nil {
				_ = http.NewResponseController(w).Flush()
				<-pause
			}
		}
	}
	ended := make(chan string, 8)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		defer func() { ended <- r.URL.Path }()
		switch r.URL.Path {
		case "/endless":
			flood(w, nil)
		case "/drip":
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			flood(w, tick.C)
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case "/bomb":
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(bomb.Bytes())
		case "/cut":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "x")
		}
	})
	p := newProber(t, Options{MaxBody: 16 << 10})
	for _, path := range []string{"/endless", "/drip", "/events", "/bomb", "/cut"} {
		written.Store(0)
		pl := plan(s.URL + path)
		pl.Timeout = time.Minute
		r := p.Probe(t.Context(), pl)
		if r.Outcome != statussync.OutcomeSuccess || r.FinishedAt.Sub(r.StartedAt) > 20*time.Second {
			t.Errorf("%s: took %s, %+v", path, r.FinishedAt.Sub(r.StartedAt), r)
		}
		if got := <-ended; got != path { // the connection was given up, not read to the end
			t.Errorf("%s ended, not %s", got, path)
		}
		if n := written.Load(); n > 16<<20 {
			t.Errorf("%s: the server could write %d bytes", path, n)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestKeepAlive(t *testing.T) {
	var conns atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 10_000))
	}))
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	p := newProber(t, Options{})
	for range 10 {
		if r := p.Probe(t.Context(), plan(s.URL)); r.Outcome != statussync.OutcomeSuccess {
			t.Fatalf("%+v", r)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("10 probes took %d connections", n)
	}
}

// A server that says keep-alive and then closes anyway, as late as it can: when the next request is there.
func TestConnectionClosedWhileIdle(t *testing.T) {
	for _, how := range []string{"closes", "resets"} {
		t.Run(how, func(t *testing.T) {
			url, n := raw(t, func(c *net.TCPConn) {
				if readRequest(c) != nil {
					return
				}
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok")
				_, _ = c.Read(make([]byte, 1))
				if how == "resets" {
					_ = c.SetLinger(0)
				}
			})
			p := newProber(t, Options{})
			for i := range 5 {
				if r := p.Probe(t.Context(), plan(url)); r.Outcome != statussync.OutcomeSuccess {
					t.Fatalf("probe %d: %+v", i, r)
				}
			}
			if n.Load() != 5 {
				t.Errorf("%d connections", n.Load())
			}
		})
	}
}

func TestNoRedirectIsFollowed(t *testing.T) {
	target, n := raw(t, func(*net.TCPConn) {})
	for _, to := range []string{target, "http://169.254.169.254/latest/meta-data/", "%zz://", "//"} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusTemporaryRedirect)
		})
		r := newProber(t, Options{}).Probe(t.Context(), plan(s.URL))
		if r.Outcome != statussync.OutcomeFailure || r.Cause != "http_307" {
			t.Errorf("%q: %+v", to, r)
		}
	}
	if n.Load() != 0 {
		t.Errorf("%d connections to the redirect's target", n.Load())
	}
}

func TestTrust(t *testing.T) {
	s := serve(t, func(http.ResponseWriter, *http.Request) {})
	p := newProber(t, Options{})
	if r := p.Probe(t.Context(), plan(s.URL)); r.Outcome != statussync.OutcomeSuccess {
		t.Fatalf("trusted: %+v", r)
	}
	// There is now an idle connection to the very same address.
	pl := plan(s.URL)
	pl.Trusted = false
	if r := p.Probe(t.Context(), pl); r.Cause != guard.CauseGuard || !strings.Contains(r.Detail, "127.0.0.1") ||
		!strings.Contains(r.Detail, "allow_networks") {
		t.Errorf("untrusted: %+v", r)
	}
	g := guard.New(guard.Options{AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if r := newProber(t, Options{Guard: g}).Probe(t.Context(), pl); r.Outcome != statussync.OutcomeSuccess {
		t.Errorf("allowed: %+v", r)
	}
}

// A network that is not allowed any more is not reached by a connection that is still open, either.
func TestRenew(t *testing.T) {
	s := serve(t, func(http.ResponseWriter, *http.Request) {})
	g := guard.New(guard.Options{AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	p := newProber(t, Options{Guard: g})
	pl := plan(s.URL)
	pl.Trusted = false
	if r := p.Probe(t.Context(), pl); r.Outcome != statussync.OutcomeSuccess {
		t.Fatalf("allowed: %+v", r)
	}
	g.SetAllowNetworks(nil)
	p.Renew()
	if r := p.Probe(t.Context(), pl); r.Cause != guard.CauseGuard {
		t.Errorf("not allowed any more: %+v", r)
	}
	if r := p.Probe(t.Context(), plan(s.URL)); r.Outcome != statussync.OutcomeSuccess {
		t.Errorf("trusted: %+v", r)
	}
}

func TestHTTP2(t *testing.T) {
	protocol := make(chan string, 1)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { protocol <- r.Proto }))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	r := newProber(t, Options{RootCAs: roots}).Probe(t.Context(), plan(s.URL))
	if r.Outcome != statussync.OutcomeSuccess || <-protocol != "HTTP/2.0" {
		t.Errorf("%+v", r)
	}
}

func TestThrottled(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "30")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	if r := newProber(t, Options{}).Probe(t.Context(), plan(s.URL)); !r.Throttled || r.RetryAfter != 30*time.Second {
		t.Errorf("%+v", r)
	}
}

func TestConcurrentProbes(t *testing.T) {
	s := serve(t, func(http.ResponseWriter, *http.Request) {})
	p := newProber(t, Options{})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 50 {
				if r := p.Probe(t.Context(), plan(s.URL)); r.Outcome != statussync.OutcomeSuccess {
					t.Errorf("%+v", r)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkProbe(b *testing.B) {
	s := serve(b, func(http.ResponseWriter, *http.Request) {})
	p := newProber(b, Options{})
	pl := plan(s.URL)
	b.ReportAllocs()
	for b.Loop() {
		if r := p.Probe(b.Context(), pl); r.Outcome != statussync.OutcomeSuccess {
			b.Fatalf("%+v", r)
		}
	}
}
