package app

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync"
)

// TLSConfig says with what the service proves who it is. Paths are relative to the configuration file.
type TLSConfig struct {
	Cert       string `yaml:"cert"`                  // PEM: the certificate, then its intermediates
	Key        string `yaml:"key"`                   // PEM, not encrypted
	ClientCA   string `yaml:"client_ca,omitempty"`   // PEM: who signs agents' certificates; heartbeats then need one
	MinVersion string `yaml:"min_version,omitempty"` // 1.2 (default) or 1.3
}

var tlsVersions = map[string]uint16{"": tls.VersionTLS12, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

const (
	// certPoll is how often the files are read. They are a few KiB; what they hold is compared, so that neither a clock nor
	// a file system that keeps coarse times can hide a change, nor a link that is swapped.
	certPoll = 2 * time.Second
	// certWarn is how long before its end a certificate is warned of: the day that is left after a renewal has failed for a
	// while, where renewals begin at 30 days.
	certWarn = 14 * 24 * time.Hour
	// certWarnAgain is how often.
	certWarnAgain = 24 * time.Hour
	// maxPEM bounds what is read of a file, in bytes.
	maxPEM = 1 << 20
)

// certificates are the files' content at one time, ready for use.
type certificates struct {
	pair tls.Certificate
	leaf *x509.Certificate
	cas  *x509.CertPool // nil: no client CA is configured
	sum  [sha256.Size]byte
}

// readPEM reads a file that a configuration names; the path is as people wrote it.
func (c *Config) readPEM(location, name string) ([]byte, *statussync.Error) {
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(c.dir, path)
	}
	fail := func(detail string) ([]byte, *statussync.Error) {
		return nil, statussync.Invalid(location, name+" "+detail)
	}
	f, err := os.Open(path)
	if err != nil {
		return fail("cannot be read: " + unwrapPath(err).Error())
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	switch {
	case err != nil:
		return fail("cannot be read: " + unwrapPath(err).Error())
	case len(data) > maxPEM:
		return fail("is larger than 1 MiB")
	}
	return data, nil
}

// readTLS reads and judges what tls: names. The faults are located by the keys of the configuration, and name no content.
func (c *Config) readTLS(now time.Time) (*certificates, []*statussync.Error) {
	var faults []*statussync.Error
	out := &certificates{}
	cert, certFault := c.readPEM("tls.cert", c.TLS.Cert)
	key, keyFault := c.readPEM("tls.key", c.TLS.Key)
	var ca []byte
	var caFault *statussync.Error
	if c.TLS.ClientCA != "" {
		ca, caFault = c.readPEM("tls.client_ca", c.TLS.ClientCA)
	}
	if certFault == nil {
		certFault = c.checkCert(cert, now)
	}
	if keyFault == nil && !hasPEM(key, func(kind string) bool { return strings.HasSuffix(kind, "PRIVATE KEY") }) {
		keyFault = statussync.Invalid("tls.key", c.TLS.Key+" holds no private key in PEM form (BEGIN PRIVATE KEY)")
	}
	if certFault == nil && keyFault == nil {
		var err error
		if out.pair, err = tls.X509KeyPair(cert, key); err != nil {
			keyFault = statussync.Invalid("tls.key", c.TLS.Key+" does not go with "+c.TLS.Cert+": "+strings.TrimPrefix(err.Error(), "tls: "))
			if strings.Contains(string(key), "ENCRYPTED") {
				keyFault = statussync.Invalid("tls.key", c.TLS.Key+" is encrypted; the service has nobody to ask for its password")
			}
		} else {
			out.leaf = out.pair.Leaf
		}
	}
	if c.TLS.ClientCA != "" && caFault == nil {
		if out.cas, caFault = c.clientCAs(ca, now); caFault == nil && out.cas == nil {
			caFault = statussync.Invalid("tls.client_ca", c.TLS.ClientCA+" holds no certificate in PEM form (BEGIN CERTIFICATE)")
		}
	}
	for _, f := range []*statussync.Error{certFault, keyFault, caFault} {
		if f != nil {
			faults = append(faults, f)
		}
	}
	out.sum = sha256.Sum256(bytes.Join([][]byte{cert, key, ca}, []byte{0}))
	return out, faults
}

// hasPEM reports whether data has a block of that kind.
func hasPEM(data []byte, kind func(string) bool) bool {
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			return false
		}
		if kind(b.Type) {
			return true
		}
	}
}

func (c *Config) checkCert(data []byte, now time.Time) *statussync.Error {
	for rest := data; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return statussync.Invalid("tls.cert", c.TLS.Cert+" holds no certificate in PEM form (BEGIN CERTIFICATE)")
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		leaf, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return statussync.Invalid("tls.cert", c.TLS.Cert+" holds a certificate that cannot be read: "+statussync.CleanText(err.Error(), statussync.MaxErrorText))
		}
		return validNow("tls.cert", c.TLS.Cert, leaf, now)
	}
}

func validNow(location, name string, cert *x509.Certificate, now time.Time) *statussync.Error {
	switch {
	case now.After(cert.NotAfter):
		return statussync.Invalid(location, name+" has expired on "+cert.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return statussync.Invalid(location, name+" is valid only from "+cert.NotBefore.UTC().Format(time.RFC3339)+" on")
	}
	return nil
}

// clientCAs reads a bundle. One that has expired beside others is no fault: bundles keep the old for a while.
func (c *Config) clientCAs(data []byte, now time.Time) (*x509.CertPool, *statussync.Error) {
	var pool *x509.CertPool
	var expired *statussync.Error
	valid := false
	for rest := data; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		ca, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, statussync.Invalid("tls.client_ca", c.TLS.ClientCA+" holds a certificate that cannot be read: "+statussync.CleanText(err.Error(), statussync.MaxErrorText))
		}
		if pool == nil {
			pool = x509.NewCertPool()
		}
		pool.AddCert(ca)
		if f := validNow("tls.client_ca", c.TLS.ClientCA, ca, now); f == nil {
			valid = true
		} else if expired == nil {
			expired = f
		}
	}
	if !valid && expired != nil {
		return nil, expired
	}
	return pool, nil
}

// certKeeper holds the certificate that the service serves with, and takes a new one over when its files change: for
// connections that begin from then on; open ones go on. Files that don't fit together, as while they are being replaced, are
// passed over, and the old ones stay in use. Its methods are safe for concurrent use.
type certKeeper struct {
	config *Config // only its TLS, environments and folder are used
	log    *slog.Logger
	names  atomic.Pointer[map[string]string] // by environment, the name that its agent's certificate must have
	inUse  atomic.Pointer[served]

	mu     sync.Mutex // of what follows: one reads the files at a time
	refuse string     // why the files that there are now are not in use; told once
	warned time.Time
}

// served are certificates and the configuration of connections that follows from them.
type served struct {
	*certificates
	conf *tls.Config
}

// newCertKeeper reads the files. The error joins everything that is wrong with them, each located as tls.cert, tls.key or
// tls.client_ca.
func newCertKeeper(c *Config, log *slog.Logger) (*certKeeper, error) {
	k := &certKeeper{config: c, log: log.With("component", "tls")}
	k.SetAgentCerts(agentCerts(c))
	certs, faults := c.readTLS(time.Now())
	if len(faults) > 0 {
		return nil, joined(faults)
	}
	k.use(certs)
	k.warn(time.Now())
	return k, nil
}

func agentCerts(c *Config) map[string]string {
	names := map[string]string{}
	for i := range c.Environments {
		if e := &c.Environments[i]; e.AgentCert != "" {
			names[e.ID] = e.AgentCert
		}
	}
	return names
}

func joined(faults []*statussync.Error) error {
	var errs []error
	for _, f := range faults {
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}

// SetAgentCerts says which name each environment's agent has in its certificate; an environment that is not in the map may
// have any. It takes effect for the next heartbeat. The map must not be changed afterwards.
func (k *certKeeper) SetAgentCerts(names map[string]string) { k.names.Store(&names) }

func (k *certKeeper) use(c *certificates) {
	conf := &tls.Config{
		Certificates: []tls.Certificate{c.pair}, MinVersion: tlsVersions[k.config.TLS.MinVersion],
		NextProtos: []string{"h2", "http/1.1"},
	}
	if c.cas != nil {
		// Only heartbeats need a certificate, and they are known by their path, which comes later: CheckAgent.
		conf.ClientAuth, conf.ClientCAs = tls.VerifyClientCertIfGiven, c.cas
	}
	k.inUse.Store(&served{c, conf})
}

// ServerConfig is for the http.Server. Each connection gets what is in use when it begins.
func (k *certKeeper) ServerConfig() *tls.Config {
	return &tls.Config{
		MinVersion:         tlsVersions[k.config.TLS.MinVersion],
		NextProtos:         []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return k.inUse.Load().conf, nil },
	}
}

// NotAfter is when the certificate in use expires.
func (k *certKeeper) NotAfter() time.Time { return k.inUse.Load().leaf.NotAfter }

// Reload looks at the files now. The error says why they are not in use; then the old ones go on being used.
func (k *certKeeper) Reload() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	certs, faults := k.config.readTLS(time.Now())
	if len(faults) > 0 {
		err := joined(faults)
		// Told once for each reason, however often the files are looked at: they may be half-written for hours.
		if why := err.Error(); why != k.refuse {
			k.refuse = why
			k.log.Warn("the certificate files can't be used; the old ones stay in use", "error", err)
		}
		return err
	}
	if k.refuse != "" {
		k.refuse = ""
		k.log.Info("the certificate files can be used again")
	}
	old := k.inUse.Load()
	if certs.sum == old.sum {
		return nil
	}
	k.use(certs)
	k.warned = time.Time{}
	k.log.Info("new certificate files are in use", "not_after", certs.leaf.NotAfter.UTC().Format(time.RFC3339))
	return nil
}

// warn tells of a certificate that ends soon, once a day.
func (k *certKeeper) warn(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	left := k.NotAfter().Sub(now)
	if left >= certWarn || !k.warned.IsZero() && now.Sub(k.warned) < certWarnAgain {
		return
	}
	k.warned = now
	attrs := []any{"not_after", k.NotAfter().UTC().Format(time.RFC3339), "file", k.config.TLS.Cert}
	if left <= 0 {
		k.log.Error("the certificate has expired; clients will refuse it", attrs...)
		return
	}
	k.log.Warn("the certificate expires soon", append(attrs, "days_left", int(left/(24*time.Hour)))...)
}

// Run looks at the files every few seconds until ctx ends.
func (k *certKeeper) Run(ctx context.Context) error {
	t := time.NewTicker(certPoll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			_ = k.Reload() // it has told why
			k.warn(now)
		}
	}
}

// CheckAgent judges the certificate of a connection that an environment's heartbeat came on. It is verified anew each time:
// the connection may be older than the CA in use, or than the end of the certificate.
func (k *certKeeper) CheckAgent(environmentID string, state *tls.ConnectionState) error {
	if state == nil || len(state.PeerCertificates) == 0 {
		return statussync.NewError(statussync.CodeUnauthorized, "a heartbeat needs a client certificate beside its token (tls.client_ca)", nil)
	}
	leaf := state.PeerCertificates[0]
	opts := x509.VerifyOptions{
		Roots: k.inUse.Load().cas, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return statussync.NewError(statussync.CodeUnauthorized, "the client certificate is not one that tls.client_ca vouches for: "+statussync.CleanText(err.Error(), statussync.MaxErrorText), err)
	}
	want := (*k.names.Load())[environmentID]
	if want == "" || leaf.Subject.CommonName == want || slices.ContainsFunc(leaf.DNSNames, func(n string) bool { return strings.EqualFold(n, want) }) {
		return nil
	}
	return statussync.NewError(statussync.CodeForbidden, "the client certificate is not that of this environment's agent (agent_cert)", nil)
}
