package app

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

// authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T, name string, from, to time.Time) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key, a.pem, _ = issue(t, nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: to, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// issue makes a certificate, signed by a or by itself.
func issue(t *testing.T, a *authority, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, []byte, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	parent, signer := c, key
	if a != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return parsed, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kder})
}

// server issues a certificate for this machine's loopback, valid for d.
func (a *authority) server(t *testing.T, name string, d time.Duration) (cert, key []byte) {
	_, _, cert, key = issue(t, a, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(d),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return cert, key
}

// agent issues a client certificate.
func (a *authority) agent(t *testing.T, cn string, dns ...string) tls.Certificate {
	_, _, cert, key := issue(t, a, &x509.Certificate{
		Subject: pkix.Name{CommonName: cn}, DNSNames: dns, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func lasting(t *testing.T, name string) *authority {
	return newAuthority(t, name, time.Now().Add(-time.Hour), time.Now().Add(240*time.Hour))
}

// tlsFolder holds cert.pem, key.pem and, where agents are given, agents.pem.
func tlsFolder(t *testing.T, ca, agents *authority) string {
	dir := t.TempDir()
	cert, key := ca.server(t, "first", 100*24*time.Hour)
	put(t, dir+"/cert.pem", cert)
	put(t, dir+"/key.pem", key)
	if agents != nil {
		put(t, dir+"/agents.pem", agents.pem)
	}
	return dir
}

func tlsConfig(t *testing.T, dir, tlsKeys, rest string) *Config {
	t.Helper()
	c, err := ParseConfig(filepath.Join(dir, "statussync.yaml"), []byte("listen: 127.0.0.1:0\ndata: "+t.TempDir()+"\ntls: {cert: cert.pem, key: key.pem"+tlsKeys+"}\n"+rest))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// httpsClient trusts ca and no other.
func httpsClient(t *testing.T, ca *authority, h2 bool, certs ...tls.Certificate) *http.Client {
	conf, err := client.TrustCA(ca.pem)
	if err != nil {
		t.Fatal(err)
	}
	conf.Certificates = certs
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: h2}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// served returns the name in the certificate that a new connection to base meets.
func servedName(t *testing.T, base string, ca *authority) string {
	t.Helper()
	conf, _ := client.TrustCA(ca.pem)
	c, err := tls.Dial("tcp", strings.TrimPrefix(base, "https://"), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); {
		if time.Now().After(deadline) {
			t.Fatal("not in time: " + what)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// lockedLog collects what is logged.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedLog) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// TestTLS rotates the certificate under open streams of every kind.
func TestTLS(t *testing.T) {
	ca, other := lasting(t, "ca"), lasting(t, "other")
	dir := tlsFolder(t, ca, nil)
	c := tlsConfig(t, dir, "", "servers: [{id: weather, probe: {kind: none}}]\n")
	base, _ := runService(t, c)
	if !strings.HasPrefix(base, "https://127.0.0.1:") {
		t.Fatal("base URL", base)
	}

	conf, _ := client.TrustCA(ca.pem)
	cl, err := client.New(client.Options{BaseURL: base, TLS: conf})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.CloseIdle()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if _, err := cl.Server(ctx, "weather"); err != nil {
		t.Fatal(err)
	}
	// The WebSocket, through the client that otherwise speaks HTTP/2.
	wsGot, wsEnd := make(chan client.Event, 16), make(chan struct{})
	go func() {
		defer close(wsEnd)
		for ev, err := range cl.Subscribe(ctx, client.SubscribeOptions{MustConnect: true}) {
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			wsGot <- ev
		}
	}()
	defer func() { cancel(); <-wsEnd }()
	if ev := <-wsGot; ev.Type != statussync.EventSubscribed {
		t.Fatalf("%+v", ev)
	}
	// Server-sent events, over HTTP/2 and 1.1.
	streams := map[string]*bufio.Reader{}
	for _, h2 := range []bool{true, false} {
		hc := httpsClient(t, ca, h2)
		hc.Timeout = 0
		req, _ := http.NewRequestWithContext(ctx, "GET", base+"/api/v1/stream", nil)
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if want := map[bool]int{true: 2, false: 1}[h2]; resp.ProtoMajor != want || resp.StatusCode != 200 {
			t.Fatalf("%s %s", resp.Proto, resp.Status)
		}
		streams[resp.Proto] = bufio.NewReader(resp.Body)
	}
	wantUpdate := func() {
		t.Helper()
		for proto, r := range streams {
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					t.Fatalf("%s: %v", proto, err)
				}
				if line == "event: status_update\n" {
					break
				}
			}
		}
		for ev := range wsGot {
			if ev.Type == statussync.EventEntry {
				return
			}
		}
	}
	override := func(state statussync.State) {
		t.Helper()
		if _, err := cl.SetOverride(ctx, "weather", wire.OverrideRequest{State: state}); err != nil {
			t.Fatal(err)
		}
	}
	override(statussync.StateRunning)
	wantUpdate()

	// Half-written: the certificate is there, its key is not yet.
	cert, key := ca.server(t, "second", 100*24*time.Hour)
	put(t, dir+"/cert.pem", cert)
	if name := servedName(t, base, ca); name != "first" {
		t.Errorf("half a pair serves %s", name)
	}
	put(t, dir+"/key.pem", key)
	eventually(t, "the new pair", func() bool { return servedName(t, base, ca) == "second" })
	override(statussync.StateError) // the streams that were open go on
	wantUpdate()

	// Who trusts another authority is told so.
	wrong, _ := client.TrustCA(other.pem)
	for what, conf := range map[string]*tls.Config{"another": wrong, "the machine's": nil} {
		cl, _ := client.New(client.Options{BaseURL: base, TLS: conf})
		_, err := cl.Server(ctx, "weather")
		if !errors.Is(err, client.ErrUntrusted) || !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), "authority that is not trusted") {
			t.Errorf("%s authority: %v", what, err)
		}
		for _, err := range cl.Subscribe(ctx, client.SubscribeOptions{MustConnect: true}) {
			if !errors.Is(err, client.ErrUntrusted) {
				t.Errorf("%s authority, WebSocket: %v", what, err)
			}
		}
		cl.CloseIdle()
	}
	plain, _ := client.New(client.Options{BaseURL: strings.Replace(base, "https", "http", 1)})
	if _, err := plain.Server(ctx, "weather"); err == nil || !strings.Contains(err.Error(), "https://") {
		t.Errorf("without TLS: %v", err)
	}
	plain.CloseIdle()
	resp, err := httpsClient(t, ca, true).Get(base + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, _ = b.ReadFrom(resp.Body)
	if want := fmt.Sprintf("statussync_tls_cert_not_after_seconds %s", exposition(certNotAfter(t, cert))); !strings.Contains(b.String(), want) {
		t.Errorf("/metrics lacks %s", want)
	}
}

// exposition is how Prometheus's text format has a time.
func exposition(at time.Time) string {
	return strings.Replace(fmt.Sprintf("%g", float64(at.Unix())), "e+", "e+", 1)
}

func certNotAfter(t *testing.T, data []byte) time.Time {
	b, _ := pem.Decode(data)
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c.NotAfter
}

// TestCertKeeper is about what the files may hold while they change.
func TestCertKeeper(t *testing.T) {
	ca := lasting(t, "ca")
	dir := tlsFolder(t, ca, ca)
	c := tlsConfig(t, dir, ", client_ca: agents.pem, min_version: \"1.3\"", "")
	log := &lockedLog{}
	k, err := newCertKeeper(c, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	name := func() string { return k.inUse.Load().leaf.Subject.CommonName }
	good, goodKey := ca.server(t, "good", 100*24*time.Hour)
	expired, expiredKey := ca.server(t, "expired", -time.Minute)
	for _, step := range []struct {
		what      string
		cert, key []byte
		want      string // in the error; "": taken
	}{
		{"nothing changed", nil, nil, ""},
		{"half a pair", good, nil, "does not go with"},
		{"the same half again", good, nil, "does not go with"},
		{"an empty file", []byte{}, goodKey, "holds no certificate"},
		{"cut short", good[:len(good)/2], goodKey, "holds no certificate"},
		{"no key", good, []byte("-----BEGIN NOTHING-----\n"), "holds no private key"},
		{"expired", expired, expiredKey, "has expired on"},
		{"whole", good, goodKey, ""},
	} {
		before := name()
		if step.cert != nil {
			put(t, dir+"/cert.pem", step.cert)
		}
		if step.key != nil {
			put(t, dir+"/key.pem", step.key)
		}
		err := k.Reload()
		if step.want == "" {
			if err != nil {
				t.Errorf("%s: %v", step.what, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), step.want) || !strings.Contains(err.Error(), "tls.") || name() != before {
			t.Errorf("%s: %v, serving %s", step.what, err, name())
		}
	}
	if name() != "good" {
		t.Errorf("serving %s", name())
	}
	if n := log.count("does not go with"); n != 1 {
		t.Errorf("the same reason was told %d times", n)
	}
	if n := log.count("expires soon"); n != 0 {
		t.Errorf("warned %d times of a certificate that is good for long", n)
	}
	if err := os.Remove(dir + "/key.pem"); err != nil {
		t.Fatal(err)
	}
	if err := k.Reload(); err == nil || !strings.Contains(err.Error(), "tls.key") || name() != "good" {
		t.Errorf("a file that is gone: %v", err)
	}
	if conf := k.inUse.Load().conf; conf.MinVersion != tls.VersionTLS13 || conf.ClientAuth != tls.VerifyClientCertIfGiven {
		t.Errorf("%+v", conf)
	}
	// Ends soon: told at once, and not again the same day.
	soon, soonKey := ca.server(t, "soon", 13*24*time.Hour)
	put(t, dir+"/cert.pem", soon)
	put(t, dir+"/key.pem", soonKey)
	if err := k.Reload(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, at := range []time.Duration{0, time.Hour, 23 * time.Hour, 25 * time.Hour} {
		k.warn(now.Add(at))
	}
	if n := log.count("expires soon"); n != 2 {
		t.Errorf("warned %d times in 25 hours, want 2", n)
	}
	k.warn(now.Add(14 * 24 * time.Hour))
	if log.count("has expired") == 0 {
		t.Error("the end was not told")
	}
	for _, secret := range []string{"PRIVATE KEY", "BEGIN"} {
		if log.count(secret+"-----") > 0 {
			t.Error("the log shows a key")
		}
	}
}

// TestCertKeeperLinks swaps a folder by its link, as Kubernetes does with secrets.
func TestCertKeeperLinks(t *testing.T) {
	ca := lasting(t, "ca")
	dir := t.TempDir()
	version := func(n string) {
		if err := os.Mkdir(filepath.Join(dir, n), 0o700); err != nil {
			t.Fatal(err)
		}
		cert, key := ca.server(t, n, time.Hour)
		put(t, filepath.Join(dir, n, "cert.pem"), cert)
		put(t, filepath.Join(dir, n, "key.pem"), key)
		if err := os.Symlink(n, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("v1")
	for _, f := range []string{"cert.pem", "key.pem"} {
		if err := os.Symlink(filepath.Join("..data", f), filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	k, err := newCertKeeper(tlsConfig(t, dir, "", ""), quiet())
	if err != nil {
		t.Fatal(err)
	}
	version("v2")
	if err := k.Reload(); err != nil || k.inUse.Load().leaf.Subject.CommonName != "v2" {
		t.Errorf("%v, serving %s", err, k.inUse.Load().leaf.Subject.CommonName)
	}
}

// TestAgentCertificates: heartbeats need one, everything else does not.
func TestAgentCertificates(t *testing.T) {
	ca, agents, next := lasting(t, "ca"), lasting(t, "agents"), lasting(t, "next")
	dir := tlsFolder(t, ca, agents)
	c := tlsConfig(t, dir, ", client_ca: agents.pem", `
environments:
  - {id: box, agent_token: box-token-1, agent_cert: box.example}
  - {id: any, agent_token: any-token-1}
`)
	base, _ := runService(t, c)
	beat := func(hc *http.Client, path, token string) (int, string) {
		t.Helper()
		req, _ := http.NewRequest("POST", base+path, strings.NewReader(`{}`))
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := hc.Do(req)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		var b bytes.Buffer
		_, _ = b.ReadFrom(resp.Body)
		return resp.StatusCode, b.String()
	}
	bare := httpsClient(t, ca, true)
	for _, row := range []struct {
		what, token string
		hc          *http.Client
		want        int
		says        string
	}{
		{"no certificate", "any-token-1", bare, 401, "tls.client_ca"},
		{"any name where none is asked for", "any-token-1", httpsClient(t, ca, true, agents.agent(t, "whoever")), 204, ""},
		{"the common name", "box-token-1", httpsClient(t, ca, false, agents.agent(t, "box.example")), 204, ""},
		{"a DNS name", "box-token-1", httpsClient(t, ca, true, agents.agent(t, "x", "other.example", "BOX.example")), 204, ""},
		{"another's name", "box-token-1", httpsClient(t, ca, true, agents.agent(t, "any", "any.example")), 403, "agent_cert"},
		{"a certificate without a token", "wrong-token", httpsClient(t, ca, true, agents.agent(t, "box.example")), 401, "token"},
	} {
		for _, path := range []string{"/heartbeat", "/functions/v1/heartbeat"} {
			if got, says := beat(row.hc, path, row.token); got != row.want || !strings.Contains(says, row.says) {
				t.Errorf("%s at %s: %d %s, want %d with %q", row.what, path, got, says, row.want, row.says)
			}
		}
	}
	// Go's client keeps back a certificate that the service would not take; other agents send it all the same.
	stubborn, stranger := httpsClient(t, ca, true), next.agent(t, "box.example")
	stubborn.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger, nil }
	if got, says := beat(httpsClient(t, ca, true, stranger), "/heartbeat", "box-token-1"); got != 401 {
		t.Errorf("a certificate that was kept back: %d %s", got, says)
	}
	if got, says := beat(stubborn, "/heartbeat", "box-token-1"); got != 0 {
		t.Errorf("a certificate of nobody we know: %d %s", got, says)
	}
	for _, path := range []string{"/healthz", "/api/v1/servers", "/docs"} {
		if resp, err := bare.Get(base + path); err != nil || resp.StatusCode != 200 {
			t.Errorf("%s without a certificate: %v %v", path, resp, err)
		} else {
			resp.Body.Close()
		}
	}
	// The authority is replaced: who was let in by the old one is not any more, on the connection that is open, too.
	old := httpsClient(t, ca, true, agents.agent(t, "box.example"))
	if got, says := beat(old, "/heartbeat", "box-token-1"); got != 204 {
		t.Fatal(got, says)
	}
	put(t, dir+"/agents.pem", next.pem)
	eventually(t, "the new authority", func() bool {
		got, _ := beat(old, "/heartbeat", "box-token-1")
		return got == 401
	})
	if got, says := beat(httpsClient(t, ca, true, next.agent(t, "box.example")), "/heartbeat", "box-token-1"); got != 204 {
		t.Errorf("by the new authority: %d %s", got, says)
	}
}

// TestTLSFaults are what a person reads who made a mistake.
func TestTLSFaults(t *testing.T) {
	ca := lasting(t, "ca")
	dir := tlsFolder(t, ca, ca)
	otherCert, otherKey := ca.server(t, "other", time.Hour)
	_ = otherCert
	put(t, dir+"/other.key", otherKey)
	expired, expiredKey := ca.server(t, "old", -time.Minute)
	put(t, dir+"/old.pem", expired)
	put(t, dir+"/old.key", expiredKey)
	_, _, future, futureKey := issue(t, ca, &x509.Certificate{NotBefore: time.Now().Add(time.Hour), NotAfter: time.Now().Add(2 * time.Hour)})
	put(t, dir+"/future.pem", future)
	put(t, dir+"/future.key", futureKey)
	put(t, dir+"/text", []byte("not PEM"))
	put(t, dir+"/gone-ca.pem", newAuthority(t, "gone", time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)).pem)
	put(t, dir+"/large", bytes.Repeat([]byte("x"), maxPEM+1))
	for yaml, want := range map[string]string{
		"tls: {}":                                                                     "test.yaml:1: tls.cert: is missing",
		"tls: {cert: cert.pem}":                                                       "tls.key: is missing",
		"tls: {cert: nowhere.pem, key: key.pem}":                                      "tls.cert: nowhere.pem cannot be read: no such file",
		"tls: {cert: text, key: key.pem}":                                             "tls.cert: text holds no certificate in PEM form",
		"tls: {cert: key.pem, key: cert.pem}":                                         "tls.key: cert.pem holds no private key in PEM form",
		"tls: {cert: large, key: key.pem}":                                            "tls.cert: large is larger than 1 MiB",
		"tls: {cert: cert.pem, key: other.key}":                                       "tls.key: other.key does not go with cert.pem",
		"tls: {cert: old.pem, key: old.key}":                                          "tls.cert: old.pem has expired on",
		"tls: {cert: future.pem, key: future.key}":                                    "tls.cert: future.pem is valid only from",
		"tls: {cert: ., key: key.pem}":                                                "tls.cert: . cannot be read",
		"tls: {cert: cert.pem, key: key.pem, min_version: '1.1'}":                     "tls.min_version: must be 1.2 or 1.3",
		"tls: {cert: cert.pem, key: key.pem, client_ca: text}":                        "tls.client_ca: text holds no certificate",
		"tls: {cert: cert.pem, key: key.pem, client_ca: gone-ca.pem}":                 "tls.client_ca: gone-ca.pem has expired",
		"tls: {cert: cert.pem, key: key.pem}\nenvironments: [{id: b, agent_cert: x}]": "environments[0].agent_cert: needs tls.client_ca",
		"environments: [{id: b, agent_cert: x}]":                                      "test.yaml:1: environments[0].agent_cert: needs tls.client_ca",
		"base_path: statussync":                                                       "base_path: \"statussync\" must begin with /",
		"base_path: /a/":                                                              "must not end with /",
		"base_path: /":                                                                "must not end with /",
		"base_path: /a//b":                                                            "clean path",
		"base_path: /a/../b":                                                          "clean path",
		"base_path: /a?x=1":                                                           "without a query",
		"base_path: /a b":                                                             "may hold letters",
		"base_path: /metrics":                                                         "also served at the root",
		"limits: {connections: 0}":                                                    "limits.connections: must be between 1 and",
		"limits: {filter_ids: 1001}":                                                  "limits.filter_ids: must be between 1 and 1000",
		"limits: {filter_clauses: 101}":                                               "limits.filter_clauses: must be between 1 and 100",
		"limits: {commands_per_second: 5}\nauth: {commands_per_second: 6}":            "auth.commands_per_second: is given beside",
		"auth: {tokens: [{name: a, role: viewer, token: token-number-1, limits: {subscriptions: -1}}]}": "auth.tokens[0].limits.subscriptions: must be between",
		"auth: {tokens: [{name: a, role: viewer, token: token-number-1, expires_at: tomorrow}]}":        "auth.tokens[0].expires_at: \"tomorrow\" is not a time such as",
		"auth: {tokens: [{name: a, role: viewer, token: token-number-1, limits: {bytes: 1}}]}":          "limits.bytes: is no key that is known here",
	} {
		_, err := ParseConfig(filepath.Join(dir, "test.yaml"), []byte(yaml))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n got %v\nwant %s", yaml, err, want)
		}
	}
}

// TestNetConfig is what a good configuration becomes.
func TestNetConfig(t *testing.T) {
	dir := tlsFolder(t, lasting(t, "ca"), nil)
	c := tlsConfig(t, dir, "", `
base_path: /status/sync
limits: {connections: 50, replay_bytes_per_second: 1MiB}
auth:
  commands_per_second: 7
  tokens:
    - {name: a, role: viewer, token: token-number-1, expires_at: 2026-01-31T12:00:00+01:00, limits: {connections: 2}}
    - {name: b, role: viewer, token: token-number-2}
`)
	if c.Limits.Connections != 50 || c.Limits.Subscriptions != 10_000 || c.Limits.CommandsPerSecond != 7 || c.Limits.ReplayBytesPerSecond != 1<<20 || c.Limits.FilterIDs != 1000 {
		t.Errorf("%+v", c.Limits)
	}
	tok := c.Auth.Tokens[0]
	if l := tok.Limits.api(); l.Connections != 2 || l.Subscriptions != 0 || !tok.expiresAt().Equal(time.Date(2026, 1, 31, 11, 0, 0, 0, time.UTC)) {
		t.Errorf("%+v %v", l, tok.expiresAt())
	}
	if b := c.Auth.Tokens[1]; !b.expiresAt().IsZero() {
		t.Errorf("%+v", b)
	}
	out, err := c.Effective()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"base_path: /status/sync", "min_version: '1.2'", "commands_per_second: 7", "replay_bytes_per_second: 1MiB", "expires_at:"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	again := strings.Replace(strings.Replace(string(out), "'***'", "token-number-1", 1), "'***'", "token-number-2", 1)
	if _, err := ParseConfig(filepath.Join(dir, "again.yaml"), []byte(again)); err != nil {
		t.Errorf("what is printed is no configuration: %v\n%s", err, again)
	}
}

// TestTokensInClear: who serves plain HTTP to other machines is told once what that means.
func TestTokensInClear(t *testing.T) {
	dir := tlsFolder(t, lasting(t, "ca"), nil)
	const auth = "data: d\nauth: {tokens: [{name: a, role: viewer, token: token-number-1}]}\n"
	for yaml, want := range map[string]int{
		"listen: 0.0.0.0:0\n" + auth:                                      1,
		"listen: 127.0.0.1:0\n" + auth:                                    0,
		"listen: 0.0.0.0:0\ntrusted_proxies: [10.0.0.0/8]\n" + auth:       0,
		"listen: 0.0.0.0:0\ntls: {cert: cert.pem, key: key.pem}\n" + auth: 0,
		"listen: 'status.example:0'\n" + auth:                             1,
	} {
		c, err := ParseConfig(filepath.Join(dir, "x.yaml"), []byte(yaml))
		if err != nil {
			t.Fatal(err)
		}
		log := &lockedLog{}
		s := &service{log: slog.New(slog.NewTextHandler(log, nil)), config: c, server: &http.Server{}}
		if c.TLS != nil {
			if s.certs, err = newCertKeeper(c, quiet()); err != nil {
				t.Fatal(err)
			}
		}
		if s.secure(); log.count("travel in clear") != want {
			t.Errorf("%s: told %d times, want %d", yaml, log.count("travel in clear"), want)
		}
	}
}
