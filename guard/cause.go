package guard

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"

	"github.com/agentopia/statussync"
)

// The causes: the fine words for why a request got no answer (docs/domain.md, cause). An answer that was not wanted has
// the cause http_<code>, which its receiver makes.
const (
	CauseGuard       = "refused_by_guard" // never sent: the address is not permitted
	CauseRefused     = "refused"          // nobody listens there
	CauseTimeout     = "timeout"          // no answer in time
	CauseDNS         = "dns"              // the name could not be resolved
	CauseTLS         = "tls"              // no secure connection could be agreed upon
	CauseUnreachable = "unreachable"      // no way to the host
	CauseReset       = "reset"            // the connection was ended before an answer
	CauseCanceled    = "canceled"         // we gave up; says nothing about the other side
	CauseLocal       = "local"            // this machine has no file descriptors, ports or memory left; likewise
	CauseProtocol    = "protocol"         // an answer came, but not one of the protocol; also what no other row fits
)

// causes is the one table by which errors are classified. The first row that fits counts: what a row stands before is
// often wrapped around what it stands for (a lookup that was canceled, a handshake that timed out).
var causes = [...]struct {
	cause string
	fits  func(error) bool
}{
	{CauseGuard, isType[*RefusedError]},
	{CauseCanceled, is(context.Canceled)},
	{CauseDNS, isType[*net.DNSError]},
	{CauseRefused, is(syscall.ECONNREFUSED)},
	{CauseReset, is(syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed)},
	// EPERM and EACCES are what a local firewall's reject rule gives.
	{CauseUnreachable, is(syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN, syscall.EPERM, syscall.EACCES)},
	{CauseLocal, is(syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL)},
	{CauseTimeout, isTimeout},
	{CauseTLS, isTLS},
	{CauseProtocol, func(error) bool { return true }},
}

func is(targets ...error) func(error) bool {
	return func(err error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
}

func isType[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) ||
		(errors.As(err, &t) && t.Timeout())
}

func isTLS(err error) bool {
	if isType[*tls.CertificateVerificationError](err) || isType[x509.UnknownAuthorityError](err) ||
		isType[x509.HostnameError](err) || isType[x509.CertificateInvalidError](err) ||
		isType[tls.RecordHeaderError](err) || isType[tls.AlertError](err) || isType[*tls.ECHRejectionError](err) ||
		errors.Is(err, http.ErrSchemeMismatch) {
		return true
	}
	// crypto/tls tells a peer's alert by the operation of a net.OpError, and the rest by text alone.
	var op *net.OpError
	if errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error") {
		return true
	}
	return strings.HasPrefix(unwrapURL(err).Error(), "tls: ")
}

// Cause classifies the error of a request that got no answer; "" for nil.
func Cause(err error) string {
	if err == nil {
		return ""
	}
	for _, c := range causes {
		if c.fits(err) {
			return c.cause
		}
	}
	return CauseProtocol // the last row fits all
}

// CleanError returns an error's cause and a text for people that is fit to be stored and shown: url.Error, which repeats
// the whole URL, is unwrapped, every other URL in the text loses its userinfo, query and fragment, and the rest is
// cleaned and cut as statussync.CleanText does.
func CleanError(err error) (cause, detail string) {
	if err == nil {
		return "", ""
	}
	cause = Cause(err)
	var refused *RefusedError
	switch inner := unwrapURL(err); {
	case errors.As(err, &refused):
		detail = refused.Error()
	case errors.Is(inner, io.EOF), errors.Is(inner, io.ErrUnexpectedEOF):
		detail = "the connection was closed before an answer"
	case inner == context.DeadlineExceeded:
		detail = "no answer in time"
	default:
		detail = cleanURLs(inner.Error())
	}
	return cause, statussync.CleanText(detail, statussync.MaxErrorText)
}

// unwrapURL takes every url.Error off the outside of err.
func unwrapURL(err error) error {
	for {
		ue, ok := err.(*url.Error)
		if !ok || ue.Err == nil {
			return err
		}
		err = ue.Err
	}
}

// cleanURLs replaces every "scheme://…" in s by its scheme, host and path.
func cleanURLs(s string) string {
	var b strings.Builder
	for {
		i := strings.Index(s, "://")
		if i < 0 {
			b.WriteString(s)
			return b.String()
		}
		end := i + 3
		// Up to a space or an unescaped quote: a query may hold every other character.
		for end < len(s) && s[end] > ' ' && (s[end] != '"' || s[end-1] == '\\') {
			end++
		}
		b.WriteString(s[:i+3])
		rest := s[i+3 : end]
		if j := strings.IndexAny(rest, "?#"); j >= 0 {
			rest = rest[:j]
		}
		// What stands before the last "@" of the authority is userinfo; a password may itself hold a "/", so the whole
		// rest is searched.
		if j := strings.LastIndexByte(rest, '@'); j >= 0 {
			rest = rest[j+1:]
		}
		b.WriteString(rest)
		s = s[end:]
	}
}
