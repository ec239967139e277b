package statussync

import (
	"errors"
	"strconv"
)

// Code is one of the few kinds of error that a client can tell apart. httpapi maps each to one HTTP status.
type Code string

// The codes (docs/protocols.md). CodeInternal is what every unknown error becomes outside.
const (
	CodeInvalid          Code = "invalid"
	CodeUnauthorized     Code = "unauthorized"
	CodeForbidden        Code = "forbidden"
	CodeNotFound         Code = "not_found"
	CodeMethodNotAllowed Code = "method_not_allowed"
	CodeConflict         Code = "conflict"
	CodeExpired          Code = "expired"
	CodeTooLarge         Code = "too_large"
	CodeRateLimited      Code = "rate_limited"
	CodeInternal         Code = "internal"
	CodeUnavailable      Code = "unavailable"
)

// Error is an error whose Detail may be shown to a client. Location names the field, parameter or file:line at fault.
type Error struct {
	Code     Code
	Location string
	Detail   string
	Err      error // the cause, for logs only
}

// Error returns location, detail and cause.
func (e *Error) Error() string {
	s := e.Detail
	if s == "" {
		s = string(e.Code)
	}
	if e.Location != "" {
		s = e.Location + ": " + s
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, &Error{Code: c}) match any Error with that code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Location == "" && t.Detail == "" && t.Err == nil
}

// CodeOf returns the code of the first Error in err's chain, CodeInternal where there is none, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// Invalid returns an Error with CodeInvalid about one location.
func Invalid(location, detail string) *Error {
	return &Error{Code: CodeInvalid, Location: location, Detail: detail}
}

// NotFound returns an Error with CodeNotFound: no thing of that kind has that id.
func NotFound(kind, id string) *Error {
	return &Error{Code: CodeNotFound, Detail: "no " + kind + " has the id " + quote(id)}
}

// NewError is a short way to an Error without a location.
func NewError(code Code, detail string, cause error) *Error {
	return &Error{Code: code, Detail: detail, Err: cause}
}

// quote shows untrusted text in an error: quoted, control characters escaped, at most 64 bytes of it.
func quote(s string) string {
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return strconv.Quote(s)
}
