package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync/wire"
)

// selfSigned writes a certificate that vouches for itself, and its key, and returns their paths.
func selfSigned(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: kder}} {
		if err := os.WriteFile(filepath.Join(dir, path), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
}

// TestOverTLS runs the commands against a service with TLS, below a base path, with limits of a token's own.
func TestOverTLS(t *testing.T) {
	dir := t.TempDir()
	ca, _ := selfSigned(t, dir, "service")
	other, _ := selfSigned(t, dir, "other")
	file := filepath.Join(dir, "statussync.yaml")
	config := `
listen: 127.0.0.1:0
data: data
log: {level: info, format: json}
base_path: /statussync
tls: {cert: service.pem, key: service.key}
limits: {connections: 20}
auth:
  tokens:
    - {name: eye, role: viewer, token: viewer-token, expires_at: 2126-01-02T03:04:05Z, limits: {commands_per_second: 3}}
    - {name: gone, role: viewer, token: former-token, expires_at: 2020-01-02T03:04:05Z}
servers:
  - {id: weather, probe: {kind: none}}
`
	config = strings.Replace(config, "data: data", "data: "+filepath.Join(dir, "data"), 1)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := exec(t.Context(), []string{"config", "check", file}); r.code != exitOK || !strings.Contains(r.out, "base_path: /statussync") || !strings.Contains(r.out, "cert: service.pem") {
		t.Errorf("%+v", r)
	}
	_, errOut, stop := start(t, "serve", "--config", file)
	url := errOut.wait(t, `"url":"(https://[0-9.:]+/statussync)"`)[1]
	if !strings.Contains(errOut.String(), `"name":"gone"`) {
		t.Errorf("nobody is told of the token that has expired: %s", errOut)
	}
	as := func(args ...string) result {
		return exec(t.Context(), append(args, "--server", url), func(s *system) { s.now = time.Now })
	}
	for what, row := range map[string]struct {
		r    result
		code int
		says string
	}{
		"with --ca":               {as("status", "--ca", ca, "--token", "viewer-token"), exitOK, "weather"},
		"another authority":       {as("status", "--ca", other, "--token", "viewer-token"), exitUnreachable, "signed by an authority that is not trusted here (--ca FILE names the authority to trust)"},
		"without --ca":            {as("status", "--token", "viewer-token"), exitUnreachable, "(--ca FILE names the authority to trust)"},
		"watch without --ca":      {as("watch", "--token", "viewer-token"), exitUnreachable, "(--ca FILE names the authority to trust)"},
		"a file that is not":      {as("status", "--ca", filepath.Join(dir, "nowhere")), exitUsage, "cannot be read: no such file"},
		"a file that is no PEM":   {as("status", "--ca", file), exitUsage, "holds no certificate in PEM form"},
		"a token that is over":    {as("status", "--ca", ca, "--token", "former-token"), exitRefused, "this token has expired"},
		"without the base path":   {exec(t.Context(), []string{"status", "--ca", ca, "--token", "viewer-token", "--server", strings.TrimSuffix(url, "/statussync")}), exitRefused, "everything is below /statussync/"},
		"http at the port of TLS": {exec(t.Context(), []string{"status", "--server", strings.Replace(url, "https", "http", 1)}), exitUnreachable, "must begin with https://"},
		"the service's version":   {as("version", "--service", "--ca", ca, "--token", "viewer-token"), exitOK, url},
		"whoami":                  {as("whoami", "--ca", ca, "--token", "viewer-token"), exitOK, "viewer"},
	} {
		if row.r.code != row.code || !strings.Contains(row.r.out+row.r.err, row.says) {
			t.Errorf("%s: %+v, want code %d and %q", what, row.r, row.code, row.says)
		}
	}
	var w wire.Whoami
	r := exec(t.Context(), []string{"whoami", "-o", "json"}, withEnv("STATUSSYNC_SERVER", url, "STATUSSYNC_CA", ca, "STATUSSYNC_TOKEN", "viewer-token"))
	d := json.NewDecoder(bytes.NewReader([]byte(r.out)))
	d.DisallowUnknownFields()
	if err := d.Decode(&w); err != nil || r.code != exitOK || w.Name != "eye" || w.Limits.Connections != 20 || w.Limits.CommandsPerSecond != 3 ||
		!w.ExpiresAt.Equal(time.Date(2126, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("%v %+v: %+v", err, r, w)
	}
	// The WebSocket.
	out, _, end := start(t, "watch", "-o", "json", "--server", url, "--ca", ca, "--token", "viewer-token")
	out.wait(t, `"type":"subscribed"`)
	end()
	if code := stop(); code != exitOK {
		t.Errorf("the service ended with %d", code)
	}
}
