package httpapi

import (
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/agentopia/statussync"
)

// Settings are the options of an API that may change while it serves. They mean what the fields of Options with the same
// names do.
type Settings struct {
	OpenLoopback           bool
	LegacyViewer           bool
	AllowedHosts           []string
	AllowedOrigins         []string
	TrustedProxies         []netip.Prefix
	LoginFailuresPerMinute int
	Limits                 Limits // of credentials without their own; a zero number means the default
}

// settings are Settings in the form in which requests need them. A value is never changed once it is in force.
type settings struct {
	openLoopback bool
	legacyViewer bool
	hosts        hostList
	origins      *http.CrossOriginProtection
	allowed      map[string]bool // AllowedOrigins, lower case
	proxies      []netip.Prefix
	failures     int
	limits       Limits
}

func newSettings(listen string, s Settings) (*settings, error) {
	if s.LoginFailuresPerMinute < 0 {
		return nil, statussync.Invalid("LoginFailuresPerMinute", "must not be negative")
	}
	if err := s.Limits.check("Max"); err != nil { // as Options calls them
		return nil, err
	}
	if s.LoginFailuresPerMinute == 0 {
		s.LoginFailuresPerMinute = defaultLoginFailures
	}
	out := &settings{
		openLoopback: s.OpenLoopback, legacyViewer: s.LegacyViewer, origins: http.NewCrossOriginProtection(),
		allowed: make(map[string]bool), proxies: s.TrustedProxies, failures: s.LoginFailuresPerMinute, limits: s.Limits.Or(DefaultLimits()),
	}
	for _, origin := range s.AllowedOrigins {
		origin = strings.TrimSuffix(origin, "/")
		if err := out.origins.AddTrustedOrigin(origin); err != nil {
			return nil, &statussync.Error{Code: statussync.CodeInvalid, Location: "AllowedOrigins", Detail: "an origin looks like https://host or https://host:port", Err: err}
		}
		out.allowed[strings.ToLower(origin)] = true
	}
	var err error
	out.hosts, err = newHostList(listen, s.AllowedHosts)
	return out, err
}

// Prepare checks settings and returns what puts them in force; until that is called nothing has changed. The error is a
// *statussync.Error with CodeInvalid that names the setting. Both are safe for concurrent use and don't block.
func (a *API) Prepare(s Settings) (apply func(), err error) {
	next, err := newSettings(a.opts.Listen, s)
	if err != nil {
		return nil, err
	}
	return func() {
		a.logins.setRate(next.failures)
		a.beats.setRate(next.failures)
		a.set.Store(next)
		a.CheckCredentials()
	}, nil
}

// CheckCredentials has every open stream look again whether its credential is still good: one that is not any more, or has
// another role now, is closed as one that has expired (4001). It does not wait for that.
func (a *API) CheckCredentials() {
	a.sessions.prune(time.Now())
	a.generation.Add(1)
	a.streams.each(stream.wake)
}

// Verifier is what an Authenticator can be, too.
type Verifier interface {
	// Valid reports whether a credential that Token returned is what it would return for the same token now.
	Valid(c Credential) bool
}

// current reports whether a credential is still good. Nobody's is.
func (a *API) current(c *Credential) bool {
	if c == nil {
		return true
	}
	switch c.via {
	case viaLoopback:
		return a.set.Load().openLoopback
	case viaLegacy:
		return a.set.Load().legacyViewer
	case viaSession:
		return !c.session.ended.Load() && a.current(c.token)
	}
	v, ok := a.opts.Auth.(Verifier)
	return !ok || v.Valid(*c)
}

// setRate changes how fast an address may fail from now on.
func (l *logins) setRate(perMinute int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.perMinute == perMinute {
		return
	}
	l.perMinute = perMinute
	for e := l.fails.order.Front(); e != nil; e = e.Next() {
		setLimit(e.Value.(*lruItem[netip.Addr, *rate.Limiter]).val, float64(perMinute)/60, perMinute)
	}
}

func setLimit(l *rate.Limiter, perSecond float64, burst int) {
	l.SetLimit(rate.Limit(perSecond))
	l.SetBurst(burst)
}
