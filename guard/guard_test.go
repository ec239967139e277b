package guard

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestCheck(t *testing.T) {
	const (
		ok     = "ok"     // public unicast
		ask    = "ask"    // trusted or allowed only
		always = "always" // never
	)
	for _, c := range []struct{ addr, want string }{
		{"8.8.8.8", ok}, {"1.1.1.1", ok}, {"172.15.255.255", ok}, {"172.32.0.0", ok}, {"100.63.255.255", ok},
		{"100.128.0.0", ok}, {"192.0.1.0", ok}, {"198.17.255.255", ok}, {"198.20.0.0", ok}, {"223.255.255.255", ok},
		{"2606:4700::1111", ok}, {"2a00:1450::1", ok}, {"2001:200::1", ok},

		{"169.254.169.254", always}, {"169.254.0.1", always}, {"169.254.170.2", always}, {"100.100.100.200", always},
		{"168.63.129.16", always}, {"192.0.0.192", always}, {"0.0.0.0", always}, {"0.1.2.3", always},
		{"224.0.0.1", always}, {"239.255.255.255", always}, {"255.255.255.255", always},
		{"fd00:ec2::254", always}, {"fd20:ce::254", always}, {"fd00:c1::a9fe:a9fe", always}, {"fd00:42::42", always},
		{"::", always}, {"fe80::1", always}, {"fe80::1%eth0", always}, {"febf::1", always}, {"ff02::1", always},

		{"127.0.0.1", ask}, {"127.255.255.254", ask}, {"10.0.0.5", ask}, {"172.16.0.1", ask}, {"172.31.255.255", ask},
		{"192.168.1.1", ask}, {"100.64.0.1", ask}, {"192.0.0.8", ask}, {"192.0.2.1", ask}, {"198.51.100.7", ask},
		{"203.0.113.9", ask}, {"192.88.99.1", ask}, {"198.18.0.1", ask}, {"240.0.0.1", ask}, {"255.255.255.254", ask},
		{"::1", ask}, {"::1%lo", ask}, {"fc00::1", ask}, {"fd12:3456::1", ask}, {"2001:db8::1", ask}, {"3fff::1", ask},
		{"2001:20::1", ask}, {"fec0::1", ask}, {"100::1", ask}, {"4000::1", ask}, {"5f00::1", ask},

		// One address inside another: what is inside counts too.
		{"::ffff:8.8.8.8", ask}, {"::ffff:127.0.0.1", ask}, {"::ffff:10.0.0.1", ask},
		{"::ffff:169.254.169.254", always}, {"::ffff:0.0.0.0", always},
		{"64:ff9b::8.8.8.8", ask}, {"64:ff9b::10.0.0.1", ask}, {"64:ff9b::169.254.169.254", always},
		{"64:ff9b:1::7f00:1", ask}, {"64:ff9b:1::a9fe:a9fe", always},
		{"2002:808:808::1", ask}, {"2002:7f00:1::", ask}, {"2002:a9fe:a9fe::1", always},
		{"::10.0.0.1", ask}, {"::169.254.169.254", always}, {"::ffff:0:a9fe:a9fe", always},
		{"2001:0:4136:e378:8000:63bf:3fff:fdd2", ask}, {"2001:0:1::5601:5601", always}, // Teredo inverts: 169.254.169.254
	} {
		a := netip.MustParseAddr(c.addr)
		all := New(Options{AllowNetworks: []netip.Prefix{p("0.0.0.0/0"), p("::/0")}})
		for _, s := range []struct {
			who     string
			g       *Guard
			trusted bool
			allowed bool
		}{
			{"nobody", nil, false, c.want == ok},
			{"no settings", New(Options{}), false, c.want == ok},
			{"trusted", nil, true, c.want != always},
			{"all networks", all, false, c.want != always},
		} {
			err := s.g.Check(a, s.trusted)
			if (err == nil) != s.allowed {
				t.Errorf("%s, %s: %v, want allowed %v", c.addr, s.who, err, s.allowed)
			}
			var r *RefusedError
			if err == nil {
				continue
			}
			if !errors.As(err, &r) || r.Always != (c.want == always) {
				t.Errorf("%s, %s: error is %#v", c.addr, s.who, err)
			}
			if !strings.Contains(err.Error(), r.Addr.String()) || !strings.Contains(err.Error(), "allow_networks") {
				t.Errorf("%s: the text names neither the address nor the setting: %s", c.addr, err)
			}
		}
	}
	if New(Options{}).Check(netip.Addr{}, true) == nil {
		t.Error("no address at all was let through")
	}
}

func TestAllowNetworks(t *testing.T) {
	g := New(Options{AllowNetworks: []netip.Prefix{
		p("10.1.0.0/16"), p("::ffff:192.168.7.0/120"), p("64:ff9b::/96"), p("fd12::/16"), {},
	}})
	for addr, want := range map[string]bool{
		"10.1.2.3": true, "10.2.0.1": false, "192.168.7.9": true, "192.168.8.1": false, "::ffff:10.1.0.1": true,
		"::ffff:10.2.0.1": false, "64:ff9b::8.8.8.8": true, "64:ff9b::10.1.0.1": true, "64:ff9b::10.2.0.1": false,
		"fd12::5": true, "fd13::5": false, "127.0.0.1": false,
	} {
		if err := g.Check(netip.MustParseAddr(addr), false); (err == nil) != want {
			t.Errorf("%s: %v, want allowed %v", addr, err, want)
		}
	}
}

func TestSetAllowNetworks(t *testing.T) {
	g := New(Options{AllowNetworks: []netip.Prefix{p("10.1.0.0/16")}})
	old, now := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.2.0.1")
	g.SetAllowNetworks([]netip.Prefix{p("::ffff:10.2.0.0/112")})
	if g.Check(old, false) == nil || g.Check(now, false) != nil {
		t.Error("the new networks don't take the place of the old ones")
	}
	g.SetAllowNetworks(nil)
	if g.Check(now, false) == nil {
		t.Error("no network is allowed any more")
	}
}

// listen counts the connections that it gets.
func listen(t *testing.T) (addr string, count *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	count = new(atomic.Int32)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			count.Add(1)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String(), count
}

func TestDialChecksTheAddressConnectedTo(t *testing.T) {
	addr, count := listen(t)
	_, port, _ := net.SplitHostPort(addr)
	ctx := t.Context()
	for _, a := range []string{addr, "localhost:" + port, "[::ffff:127.0.0.1]:" + port} {
		c, err := New(Options{}).DialContext(false)(ctx, "tcp", a)
		if err == nil {
			_ = c.Close()
			t.Fatalf("%s: an untrusted dial came through", a)
		}
		if cause, detail := CleanError(err); cause != CauseGuard || !strings.Contains(detail, "allow_networks") {
			t.Errorf("%s: %s %q", a, cause, detail)
		}
	}
	if n := count.Load(); n != 0 {
		t.Errorf("the listener counts %d connections", n)
	}
	for _, g := range []struct {
		g       *Guard
		trusted bool
	}{{nil, true}, {New(Options{AllowNetworks: []netip.Prefix{p("127.0.0.0/8")}}), false}} {
		c, err := g.g.DialContext(g.trusted)(ctx, "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	if _, err := New(Options{}).DialContext(true)(ctx, "unix", t.TempDir()+"/s"); Cause(err) != CauseGuard {
		t.Errorf("unix socket: %v", err)
	}
	if _, err := New(Options{}).DialContext(true)(ctx, "udp", addr); Cause(err) != CauseGuard {
		t.Errorf("udp: %v", err)
	}
}

func TestTransportIgnoresProxies(t *testing.T) {
	proxy, count := listen(t)
	for _, v := range []string{"HTTP_PROXY", "http_proxy", "ALL_PROXY"} {
		t.Setenv(v, "http://"+proxy)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(WithAttempt(ctx), "GET", "http://10.255.255.1/", nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := New(Options{}).Transport(false)
	if resp, err := tr.RoundTrip(req); err == nil {
		_ = resp.Body.Close()
		t.Error("a private address was answered for")
	} else if Cause(err) != CauseGuard {
		t.Errorf("got %v", err)
	}
	if tr.Proxy != nil || count.Load() != 0 {
		t.Error("the proxy of the environment was used")
	}
}

// A listener whose queue is full leaves further connections without an answer, like a host that drops packets.
func silent(t *testing.T) string {
	t.Helper()
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
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*syscall.SockaddrInet4).Port)).String()
	for range 8 {
		c, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("the listener never stopped accepting")
	return ""
}

func TestDialEndsWithItsAttempt(t *testing.T) {
	addr := silent(t)
	tr := New(Options{}).Transport(true)
	dial, dials := tr.DialContext, make(chan error, 1)
	tr.DialContext = func(ctx context.Context, network, a string) (net.Conn, error) {
		c, err := dial(ctx, network, a)
		dials <- err
		return c, err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(WithAttempt(ctx), "GET", "http://"+addr+"/", nil)
	resp, err := tr.RoundTrip(req)
	if err == nil {
		_ = resp.Body.Close()
	}
	if Cause(err) != CauseTimeout {
		t.Fatalf("got %v", err)
	}
	select {
	case err := <-dials:
		if err == nil {
			t.Error("the dial succeeded")
		}
	case <-time.After(5 * time.Second):
		t.Error("the dial outlived its attempt by seconds")
	}
}
