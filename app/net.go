package app

import (
	"fmt"
	"net"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/httpapi"
)

// LimitsConfig is what one credential may use; docs/protocols.md §9. Of a token, a zero number is taken from Config.Limits.
type LimitsConfig struct {
	Connections          int  `yaml:"connections,omitempty"`
	Subscriptions        int  `yaml:"subscriptions,omitempty"`
	CommandsPerSecond    int  `yaml:"commands_per_second,omitempty"`
	ReplayBytesPerSecond Size `yaml:"replay_bytes_per_second,omitempty"`
	FilterIDs            int  `yaml:"filter_ids,omitempty"`
	FilterClauses        int  `yaml:"filter_clauses,omitempty"`
}

func limitsConfig(l httpapi.Limits) LimitsConfig {
	return LimitsConfig{
		Connections: l.Connections, Subscriptions: l.Subscriptions, CommandsPerSecond: l.CommandsPerSecond,
		ReplayBytesPerSecond: Size(l.ReplayBytesPerSecond), FilterIDs: l.FilterIDs, FilterClauses: l.FilterClauses,
	}
}

// api is the same as httpapi wants it; of a nil one everything is the default.
func (l *LimitsConfig) api() httpapi.Limits {
	if l == nil {
		return httpapi.Limits{}
	}
	return httpapi.Limits{
		Connections: l.Connections, Subscriptions: l.Subscriptions, CommandsPerSecond: l.CommandsPerSecond,
		ReplayBytesPerSecond: int(l.ReplayBytesPerSecond), FilterIDs: l.FilterIDs, FilterClauses: l.FilterClauses,
	}
}

// given reports whether the file gives a value for path.
func (d *decoder) given(path string) bool {
	n, ok := d.nodes[path]
	return ok && n.Tag != "!!null"
}

// Bounds of limits: what is larger is a slip, or more than one machine can serve.
const (
	maxLimit       = 1_000_000
	maxReplayBytes = 1 << 40
)

func checkLimits(d *decoder, path string, l *LimitsConfig) {
	for _, f := range []struct {
		name    string
		v, most int64
	}{
		{"connections", int64(l.Connections), maxLimit}, {"subscriptions", int64(l.Subscriptions), maxLimit},
		{"commands_per_second", int64(l.CommandsPerSecond), maxLimit},
		{"replay_bytes_per_second", int64(l.ReplayBytesPerSecond), maxReplayBytes},
		{"filter_ids", int64(l.FilterIDs), statussync.MaxFilterIDs}, {"filter_clauses", int64(l.FilterClauses), statussync.MaxClauses},
	} {
		if p := path + "." + f.name; d.given(p) && (f.v < 1 || f.v > f.most) {
			d.failAt(p, "must be between 1 and %d", f.most)
		}
	}
}

// checkNet checks how the service is reached.
func (c *Config) checkNet(d *decoder) {
	if fault := httpapi.BasePathFault(c.BasePath); fault != "" {
		d.failAt("base_path", "%q %s", c.BasePath, fault)
	}
	checkLimits(d, "limits", &c.Limits)
	if c.Auth != nil && c.Auth.CommandsPerSecond != 0 {
		if d.given("limits.commands_per_second") {
			d.failAt("auth.commands_per_second", "is given beside limits.commands_per_second; one of them is enough")
		} else if c.Auth.CommandsPerSecond > 0 {
			c.Limits.CommandsPerSecond, c.Auth.CommandsPerSecond = c.Auth.CommandsPerSecond, 0 // an older place of the same
		}
	}
	if c.TLS == nil || d.broken("tls") {
		return
	}
	for _, f := range []struct{ name, v string }{{"cert", c.TLS.Cert}, {"key", c.TLS.Key}} {
		if f.v == "" && d.absent("tls."+f.name) {
			d.failAt("tls."+f.name, "is missing; tls needs cert and key, each a PEM file")
		}
	}
	if _, known := tlsVersions[c.TLS.MinVersion]; !known {
		d.failAt("tls.min_version", "must be 1.2 or 1.3, not %q", c.TLS.MinVersion)
	}
	if d.broken("tls.cert") || d.broken("tls.key") || d.broken("tls.client_ca") || c.TLS.Cert == "" || c.TLS.Key == "" {
		return
	}
	if _, faults := c.readTLS(time.Now()); len(faults) > 0 {
		for _, f := range faults {
			d.failAt(f.Location, "%s", f.Detail)
		}
	}
}

func checkTokenNet(d *decoder, path string, t *TokenConfig) {
	if t.ExpiresAt != "" && t.expiresAt().IsZero() {
		d.failAt(path+".expires_at", "%q is not a time such as 2027-01-31T00:00:00Z", t.ExpiresAt)
	}
	if t.Limits != nil {
		checkLimits(d, path+".limits", t.Limits)
	}
}

// expiresAt is when the token ends; zero: never.
func (t *TokenConfig) expiresAt() time.Time {
	at, err := time.Parse(time.RFC3339, t.ExpiresAt)
	if err != nil {
		return time.Time{}
	}
	return at
}

func (c *Config) checkAgentCert(d *decoder, path string, e *EnvironmentConfig) {
	checkText(d, path, e.AgentCert)
	if e.AgentCert != "" && (c.TLS == nil && d.absent("tls") || c.TLS != nil && c.TLS.ClientCA == "" && d.absent("tls.client_ca")) {
		d.failAt(path, "needs tls.client_ca: without it no agent's certificate is looked at")
	}
}

// netOptions says to the API how it is reached and what credentials may use.
func (s *service) netOptions(c *Config, o *httpapi.Options) {
	l := c.Limits.api()
	o.MaxConnections, o.MaxSubscriptions, o.CommandsPerSecond = l.Connections, l.Subscriptions, l.CommandsPerSecond
	o.ReplayBytesPerSecond, o.MaxFilterIDs, o.MaxFilterClauses = l.ReplayBytesPerSecond, l.FilterIDs, l.FilterClauses
	o.BasePath = c.BasePath
	if s.certs != nil && c.TLS.ClientCA != "" {
		o.AgentCert = s.certs.CheckAgent
	}
}

// secure sets the server's TLS, and warns where tokens can be read on the way or are over.
func (s *service) secure() {
	host, _, err := net.SplitHostPort(s.config.Listen)
	if s.certs != nil {
		s.server.TLSConfig = s.certs.ServerConfig()
	} else if err == nil && !isLoopback(host) && len(s.config.TrustedProxies) == 0 {
		s.log.Warn("without TLS, tokens travel in clear: give tls: {cert, key}, or stand behind a proxy that has it and name it in trusted_proxies", "listen", s.config.Listen)
	}
	now := time.Now()
	if s.config.Auth != nil {
		for i := range s.config.Auth.Tokens {
			t := &s.config.Auth.Tokens[i]
			if at := t.expiresAt(); !at.IsZero() && !now.Before(at) {
				s.log.Warn("a token has expired and is refused", "name", t.Name, "expires_at", t.ExpiresAt)
			}
		}
	}
}

// serve takes connections until the server is shut down.
func (s *service) serve() error {
	if s.certs != nil {
		return s.server.ServeTLS(s.listener, "", "")
	}
	return s.server.Serve(s.listener)
}

// baseURL is where the service is reached from this machine.
func (s *service) baseURL() string {
	scheme := "http"
	if s.certs != nil {
		scheme = "https"
	}
	return fmt.Sprintf("%s://%s%s", scheme, s.listener.Addr(), s.config.BasePath)
}
