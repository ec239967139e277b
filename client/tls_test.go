package client

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/agentopia/statussync"
)

func TestTLSCauses(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"name":"x","role":"viewer"}`))
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	plain := httptest.NewServer(srv.Config.Handler)
	defer plain.Close()
	trusting := srv.Client().Transport.(*http.Transport).TLSClientConfig
	misnamed := trusting.Clone()
	misnamed.ServerName = "elsewhere.example"
	for what, row := range map[string]struct {
		base      string
		conf      *tls.Config
		want      string
		untrusted bool
	}{
		"trusted":           {srv.URL, trusting, "", false},
		"unknown authority": {srv.URL, nil, "signed by an authority that is not trusted here", true},
		"another name":      {srv.URL, misnamed, `its certificate is not for "elsewhere.example"`, true},
		"no TLS there":      {strings.Replace(plain.URL, "http", "https", 1), trusting, "does not speak TLS there", false},
		"TLS there":         {strings.Replace(srv.URL, "https", "http", 1), nil, "must begin with https://", false},
		"too old for it":    {srv.URL, &tls.Config{RootCAs: trusting.RootCAs, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}, "ended the TLS handshake", false},
	} {
		c, err := New(Options{BaseURL: row.base, TLS: row.conf})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Whoami(t.Context())
		c.CloseIdle()
		if row.want == "" {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), row.want) || !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrUntrusted) != row.untrusted {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := New(Options{TLS: trusting, HTTPClient: srv.Client()}); statussync.CodeOf(err) != statussync.CodeInvalid {
		t.Errorf("both: %v", err)
	}
	for _, pem := range []string{"", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if _, err := TrustCA([]byte(pem)); statussync.CodeOf(err) != statussync.CodeInvalid {
			t.Errorf("%q: %v", pem, err)
		}
	}
}
