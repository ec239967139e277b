package guard

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
)

func opError(op string, err error) error {
	return &url.Error{Op: "Get", URL: "http://u:secret@h/p?key=secret", Err: &net.OpError{Op: op, Net: "tcp", Err: err}}
}

func TestCauses(t *testing.T) {
	errno := func(e syscall.Errno) error { return opError("dial", os.NewSyscallError("connect", e)) }
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{opError("dial", &RefusedError{Addr: netip.MustParseAddr("10.0.0.1"), Class: "private"}), CauseGuard},
		{errno(syscall.ECONNREFUSED), CauseRefused},
		{errno(syscall.EHOSTUNREACH), CauseUnreachable},
		{errno(syscall.ENETUNREACH), CauseUnreachable},
		{errno(syscall.EPERM), CauseUnreachable},
		{errno(syscall.ETIMEDOUT), CauseTimeout},
		{errno(syscall.EMFILE), CauseLocal},
		{errno(syscall.EADDRNOTAVAIL), CauseLocal},
		{opError("read", os.NewSyscallError("read", syscall.ECONNRESET)), CauseReset},
		{opError("write", os.NewSyscallError("write", syscall.EPIPE)), CauseReset},
		{&url.Error{Op: "Get", URL: "http://h/", Err: io.EOF}, CauseReset},
		{fmt.Errorf("net/http: broken: %w", io.ErrUnexpectedEOF), CauseReset},
		{opError("dial", &net.DNSError{Err: "no such host", Name: "h", IsNotFound: true}), CauseDNS},
		{opError("dial", &net.DNSError{Err: "i/o timeout", Name: "h", IsTimeout: true}), CauseDNS},
		{&url.Error{Op: "Get", URL: "http://h/", Err: context.DeadlineExceeded}, CauseTimeout},
		{opError("read", os.ErrDeadlineExceeded), CauseTimeout},
		{&url.Error{Op: "Get", URL: "http://h/", Err: context.Canceled}, CauseCanceled},
		{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, CauseTLS},
		{x509.HostnameError{Certificate: &x509.Certificate{}, Host: "h"}, CauseTLS},
		{tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, CauseTLS},
		{opError("remote error", tls.AlertError(40)), CauseTLS},
		{&url.Error{Op: "Get", URL: "https://h/", Err: errors.New("tls: no supported versions")}, CauseTLS},
		{http.ErrSchemeMismatch, CauseTLS},
		{errors.New(`malformed HTTP response "SSH-2.0"`), CauseProtocol},
	} {
		cause, detail := CleanError(c.err)
		if cause != c.want {
			t.Errorf("%v: cause %q, want %q", c.err, cause, c.want)
		}
		if (c.err == nil) != (detail == "") || strings.Contains(detail, "secret") {
			t.Errorf("%v: detail %q", c.err, detail)
		}
	}
}

func TestCleanErrorHidesSecrets(t *testing.T) {
	for in, want := range map[string]string{
		`bad "http://u:secret@h/p?key=secret#x" here`:       `bad "http://h/p" here`,
		`x https://h/p?a='secret'&b=\"secret\"secret y`:     `x https://h/p y`,
		`two: http://a/?k=secret and ws://u:se/cret@b/ end`: `two: http://a/ and ws://b/ end`,
		`://`:                                  `://`,
		"line\nbreak \x1b[31m\u202esecretless": "line break [31msecretless",
		`Get "http://h/a?token=secret": dial tcp: lookup h: broken`: `Get "http://h/a": dial tcp: lookup h: broken`,
	} {
		if _, got := CleanError(errors.New(in)); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	wrapped := &url.Error{Op: "Get", URL: "http://h/?secret", Err: &url.Error{Op: "parse", URL: "secret", Err: errors.New("inner")}}
	if _, got := CleanError(wrapped); got != "inner" {
		t.Errorf("nested url.Error became %q", got)
	}
	if _, got := CleanError(errors.New(strings.Repeat("x", 9999))); len(got) > 500 {
		t.Errorf("detail of %d bytes", len(got))
	}
}

func FuzzCleanError(f *testing.F) {
	f.Add(`dial http://`, `h/p?`, "x")
	f.Fuzz(func(t *testing.T, before, host, after string) {
		const secret = "hunter2hunter2"
		if strings.ContainsAny(host, "?#\"") {
			return
		}
		q := url.QueryEscape(after)
		_, got := CleanError(errors.New(before + ` "http://user:` + secret + `@h/` + url.PathEscape(host) + `?k=` + secret + q + `": x`))
		if strings.Contains(got, secret) {
			t.Fatalf("the secret is in %q", got)
		}
	})
}
