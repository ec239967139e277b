package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"strconv"

	"github.com/agentopia/statussync"
)

// TrustCA returns a TLS configuration that takes the service's certificate where one of these authorities (PEM, one or
// more certificates) vouches for it, and no other: those of the machine don't count then. The error has code CodeInvalid.
func TrustCA(pem []byte) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, statussync.Invalid("ca", "holds no certificate in PEM form (BEGIN CERTIFICATE)")
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// ErrUntrusted matches (errors.Is) an UnreachableError whose reason is that the service's certificate was not taken.
var ErrUntrusted = errors.New("the service's certificate is not trusted")

// untrusted is why a certificate was not taken, in words for people.
type untrusted struct {
	text string
	err  error
}

func (u *untrusted) Error() string        { return u.text }
func (u *untrusted) Unwrap() error        { return u.err }
func (u *untrusted) Is(target error) bool { return target == ErrUntrusted }

// tlsCause returns what a failure of TLS means, nil where err is none.
func tlsCause(err error) error {
	var (
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
		alert     tls.AlertError
		op        *net.OpError
	)
	switch {
	case errors.As(err, &authority):
		return &untrusted{"its certificate is signed by an authority that is not trusted here", err}
	case errors.As(err, &host):
		return &untrusted{"its certificate is not for " + strconv.Quote(host.Host), err}
	case errors.As(err, &invalid):
		text := "its certificate is not valid"
		if invalid.Reason == x509.Expired {
			text = "its certificate has expired or is not valid yet"
		}
		return &untrusted{text, err}
	case errors.As(err, &verify):
		return &untrusted{"its certificate is not taken: " + statussync.CleanText(verify.Err.Error(), statussync.MaxErrorText), err}
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return &wrapped{"it does not speak TLS there; maybe the address begins with http://", err}
	case errors.As(err, &alert), errors.As(err, &op) && op.Op == "remote error":
		return &wrapped{"it ended the TLS handshake: " + statussync.CleanText(err.Error(), statussync.MaxErrorText), err}
	}
	return nil
}
