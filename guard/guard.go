// Package guard keeps what the service sends out from going where it must not: probes, questions to agents, webhooks.
//
// Addresses are judged when a connection is about to be made, on the address that is really connected to. Neither a
// redirect nor a name that resolves to something else the second time gets around that. Whether a name, a port or a path
// came from a file on this machine or from a stranger is the caller's knowledge: that is what "trusted" says.
//
// Everything here is safe for concurrent use, and nothing but the returned dialers and transports blocks.
package guard

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"
)

// Options are the settings of a Guard.
type Options struct {
	// AllowNetworks are the networks that untrusted sources may name although they are not public unicast. An IPv4
	// network may be written as IPv4-mapped IPv6. An invalid prefix holds no address. They never open what is always
	// refused.
	AllowNetworks []netip.Prefix
}

// Guard judges addresses. The zero Guard, and a nil one, allow untrusted sources public unicast addresses only.
type Guard struct {
	allow atomic.Pointer[[]netip.Prefix] // replaced whole, never changed
}

// New returns a Guard. It copies what it needs of o.
func New(o Options) *Guard {
	g := &Guard{}
	g.SetAllowNetworks(o.AllowNetworks)
	return g
}

// SetAllowNetworks replaces Options.AllowNetworks for every connection that is made from now on; those that are open stay
// open. It copies what it needs.
func (g *Guard) SetAllowNetworks(networks []netip.Prefix) {
	var allow []netip.Prefix
	for _, p := range networks {
		if !p.IsValid() {
			continue
		}
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		allow = append(allow, p.Masked())
	}
	g.allow.Store(&allow)
}

// RefusedError says that the guard did not let a connection be made. Nothing was sent.
type RefusedError struct {
	Addr   netip.Addr // the address that would have been connected to; invalid where it was no IP address at all
	Class  string     // what kind of address it is: "private", "loopback", …
	Always bool       // no setting opens it
}

// Error names the address and what, if anything, would let it through.
func (e *RefusedError) Error() string {
	if !e.Addr.IsValid() {
		return "refused: not an IP address, and nothing else is dialed"
	}
	s := "refused: " + e.Addr.String() + " (" + e.Class + " address)"
	if e.Always {
		return s + ", which is never dialed; allow_networks does not open it"
	}
	return s + "; add its network to allow_networks to permit it"
}

// class is one range of addresses that is not public unicast.
type class struct {
	prefix netip.Prefix
	name   string
	always bool
	// embed says where an IPv4 address is embedded, as the byte it starts at; 0: nowhere. Teredo hides its client's
	// address by inverting it.
	embed  int
	invert bool
}

func p(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// classes4 follows the IANA IPv4 special-purpose registry (RFC 6890 and its updates); the first that holds an address
// counts. The metadata addresses are those of AWS, GCP, Azure, DigitalOcean and others (169.254.169.254, link-local
// anyway), Azure's wire server, Alibaba and Oracle.
var classes4 = [...]class{
	{prefix: p("169.254.169.254/32"), name: "cloud metadata", always: true},
	{prefix: p("168.63.129.16/32"), name: "cloud metadata", always: true},
	{prefix: p("100.100.100.200/32"), name: "cloud metadata", always: true},
	{prefix: p("192.0.0.192/32"), name: "cloud metadata", always: true},
	{prefix: p("169.254.0.0/16"), name: "link-local", always: true},
	// 0.0.0.0 connects to this machine; the rest of its network is no address of anybody.
	{prefix: p("0.0.0.0/8"), name: "unspecified", always: true},
	{prefix: p("224.0.0.0/4"), name: "multicast", always: true},
	{prefix: p("255.255.255.255/32"), name: "broadcast", always: true},
	{prefix: p("127.0.0.0/8"), name: "loopback"},
	{prefix: p("10.0.0.0/8"), name: "private"},
	{prefix: p("172.16.0.0/12"), name: "private"},
	{prefix: p("192.168.0.0/16"), name: "private"},
	{prefix: p("100.64.0.0/10"), name: "carrier-grade NAT"},
	{prefix: p("192.0.0.0/24"), name: "reserved"},
	{prefix: p("192.0.2.0/24"), name: "documentation"},
	{prefix: p("198.51.100.0/24"), name: "documentation"},
	{prefix: p("203.0.113.0/24"), name: "documentation"},
	{prefix: p("192.88.99.0/24"), name: "6to4 relay"},
	{prefix: p("198.18.0.0/15"), name: "benchmarking"},
	{prefix: p("240.0.0.0/4"), name: "reserved"},
}

// classes6 follows the IANA IPv6 special-purpose registry. Only 2000::/3 is allocated for global unicast: what no row
// names and lies outside is reserved. Metadata: AWS, GCP, Oracle, Scaleway.
var classes6 = [...]class{
	{prefix: p("fd00:ec2::254/128"), name: "cloud metadata", always: true},
	{prefix: p("fd20:ce::254/128"), name: "cloud metadata", always: true},
	{prefix: p("fd00:c1::a9fe:a9fe/128"), name: "cloud metadata", always: true},
	{prefix: p("fd00:42::42/128"), name: "cloud metadata", always: true},
	{prefix: p("::/128"), name: "unspecified", always: true},
	{prefix: p("fe80::/10"), name: "link-local", always: true},
	{prefix: p("ff00::/8"), name: "multicast", always: true},
	{prefix: p("::1/128"), name: "loopback"},
	{prefix: p("::ffff:0:0/96"), name: "IPv4-mapped", embed: 12},
	{prefix: p("::ffff:0:0:0/96"), name: "IPv4-translated", embed: 12},
	{prefix: p("::/96"), name: "IPv4-compatible", embed: 12},
	{prefix: p("64:ff9b::/96"), name: "NAT64", embed: 12},
	{prefix: p("64:ff9b:1::/48"), name: "NAT64", embed: 12},
	{prefix: p("2002::/16"), name: "6to4", embed: 2},
	{prefix: p("2001::/32"), name: "Teredo", embed: 12, invert: true},
	{prefix: p("2001::/23"), name: "reserved"},
	{prefix: p("2001:db8::/32"), name: "documentation"},
	{prefix: p("3fff::/20"), name: "documentation"},
	{prefix: p("fc00::/7"), name: "unique local"},
}

var globalUnicast6 = p("2000::/3")

func classOf(a netip.Addr) (c class, special bool) {
	if a.Is4() {
		for _, c := range classes4 {
			if c.prefix.Contains(a) {
				return c, true
			}
		}
		return class{}, false
	}
	// A netip.Prefix never holds an IPv4-mapped address, so that row is asked for by name.
	for _, c := range classes6 {
		if c.prefix.Contains(a) || (a.Is4In6() && c.name == "IPv4-mapped") {
			return c, true
		}
	}
	if !globalUnicast6.Contains(a) {
		return class{name: "reserved"}, true
	}
	return class{}, false
}

// embedded returns the IPv4 address that c says is inside a.
func (c class) embedded(a netip.Addr) netip.Addr {
	b := a.As16()
	v4 := [4]byte(b[c.embed : c.embed+4])
	if c.invert {
		for i := range v4 {
			v4[i] = ^v4[i]
		}
	}
	return netip.AddrFrom4(v4)
}

// Check reports whether a connection to a may be made: nil, or a *RefusedError.
//
// Link-local, cloud metadata, unspecified, multicast and broadcast addresses are always refused, also where they are
// embedded in an IPv6 address. Everything else that is not public unicast needs trusted or a network in AllowNetworks;
// for an address with another one embedded, both must pass.
func (g *Guard) Check(a netip.Addr, trusted bool) error {
	if !a.IsValid() {
		return &RefusedError{Always: true}
	}
	a = a.WithZone("")
	c, special := classOf(a)
	if !special {
		return nil
	}
	if c.always {
		return &RefusedError{Addr: a, Class: c.name, Always: true}
	}
	if c.embed > 0 {
		inner := c.embedded(a)
		if ic, ok := classOf(inner); ok && ic.always {
			return &RefusedError{Addr: a, Class: c.name + " " + ic.name, Always: true}
		}
		if g.Check(inner, trusted) != nil {
			return &RefusedError{Addr: a, Class: c.name}
		}
	}
	if trusted || g.allowed(a) {
		return nil
	}
	return &RefusedError{Addr: a, Class: c.name}
}

func (g *Guard) allowed(a netip.Addr) bool {
	if g == nil {
		return false
	}
	if a.Is4In6() {
		a = a.Unmap()
	}
	allow := g.allow.Load()
	if allow == nil {
		return false
	}
	for _, n := range *allow {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// Dialer returns a dialer that lets only TCP connections to permitted addresses be made. The caller may set its other
// fields before first use, but not ControlContext.
func (g *Guard) Dialer(trusted bool) *net.Dialer {
	return &net.Dialer{
		ControlContext: func(_ context.Context, network, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil || (network != "tcp4" && network != "tcp6") {
				return &RefusedError{Always: true}
			}
			return g.Check(ap.Addr(), trusted)
		},
	}
}

// DialContext returns the DialContext function of Dialer, for an http.Transport.
func (g *Guard) DialContext(trusted bool) func(ctx context.Context, network, address string) (net.Conn, error) {
	return g.Dialer(trusted).DialContext
}

type attemptKey struct{}

// WithAttempt returns a context for requests through a Transport of this package whose dials end when ctx ends.
//
// net/http detaches a dial from its request, so that a later request may use the connection. Against a host that drops
// packets every timed out request would then leave a dial behind for the two minutes that the kernel tries.
func WithAttempt(ctx context.Context) context.Context {
	return context.WithValue(ctx, attemptKey{}, ctx)
}

// maxResponseHeader bounds the header block of an answer, in bytes. Servers themselves commonly refuse more than 8 to
// 16 KiB.
const maxResponseHeader = 64 << 10

// Transport returns a new http.Transport whose connections are judged by g. It ignores proxy settings of the process's
// environment, asks for no compression and inflates nothing, takes at most 64 KiB of response header, speaks HTTP/1.1 and,
// over TLS, HTTP/2. It has no timeout for a whole attempt: make requests with WithAttempt of a context that has a deadline.
//
// The caller may change fields before first use. A transport holds connections of one degree of trust: one must never
// serve both, since an idle connection is used without being judged again.
func (g *Guard) Transport(trusted bool) *http.Transport {
	dial := g.DialContext(trusted)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if attempt, ok := ctx.Value(attemptKey{}).(context.Context); ok {
				var cancel context.CancelFunc
				if deadline, ok := attempt.Deadline(); ok {
					ctx, cancel = context.WithDeadline(ctx, deadline)
				} else {
					ctx, cancel = context.WithCancel(ctx)
				}
				defer cancel()
				defer context.AfterFunc(attempt, cancel)()
			}
			return dial(ctx, network, address)
		},
		Protocols:              protocols,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxResponseHeader,
		TLSHandshakeTimeout:    10 * time.Second,
		IdleConnTimeout:        90 * time.Second,
		// A request that times out does not end an HTTP/2 connection: without pings one that died silently would fail
		// every later request too.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
	}
}
