// Package wire is the service's JSON, version 1, as it stands in docs/protocols.md §2 to §4: the shapes of the HTTP API,
// the frames of the WebSocket and the events of the SSE stream, in both directions, and the way from the domain's types
// to them. A service and a client that both use it can't disagree about a field.
//
// Rules that hold for every shape: keys are snake_case, what is absent is null, times are RFC 3339 in UTC with
// milliseconds, and a number carries its unit in its name. Shapes only ever grow: a reader ignores keys that it does not
// know. The other way round is strict: what a client sends must be understood whole, or it is refused with an error that
// names the key at fault, because a misspelt filter must not silently match everything.
//
// URLs lose their userinfo, query and fragment on the way out, as these can hold credentials. All functions are pure and
// safe for concurrent use.
package wire

import (
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// Paths of the API; every other one is BasePath plus what the table of docs/protocols.md §4 says.
const (
	BasePath      = "/api/v1"
	PathWebSocket = "/api/v1/ws"
	PathStream    = "/api/v1/stream"
	PathLegacy    = "/ws/mcp-status"
	PathBackup    = "/api/v1/backup"
	PathErase     = "/api/v1/erase"
)

// Time is a time.Time whose JSON is statussync.TimeFormat. Its zero value is left out by omitzero.
type Time struct{ time.Time }

// MarshalJSON implements json.Marshaler.
func (t Time) MarshalJSON() ([]byte, error) {
	return statussync.AppendTime(make([]byte, 0, len(statussync.TimeFormat)+2), t.Time), nil
}

// Page is one part of a list. NextCursor asks for the part that follows and is absent on the last one. Cursor is the
// position in the journal at which the list was true: a subscription that starts there misses nothing.
type Page[T any] struct {
	Items      []T    `json:"items" nullable:"false"`
	NextCursor string `json:"next_cursor,omitempty" doc:"Ask for the following page with it; absent on the last one."`
	Cursor     string `json:"cursor,omitempty" doc:"Position in the journal at which this list was true." example:"e7:57"`
}

// ParseDuration reads a duration as requests have it: Go's form, and "d" for days of 24 hours, which stands first:
// "90s", "1h30m", "30d", "1d12h". The error has statussync.CodeInvalid and names no location.
func ParseDuration(s string) (time.Duration, error) {
	bad := statussync.Invalid("", strconv.Quote(statussync.CleanText(s, statussync.MaxWordText))+` is not a duration; one looks like "90s", "1h30m" or "30d"`)
	if len(s) > 32 {
		return 0, bad
	}
	rest, neg := strings.CutPrefix(s, "-")
	var sum time.Duration
	if num, after, ok := strings.Cut(rest, "d"); ok {
		days, err := strconv.ParseFloat(num, 64)
		if err != nil || !isDecimal(num) || days > 106751 { // what an int64 of nanoseconds holds
			return 0, bad
		}
		sum = time.Duration(days * float64(24*time.Hour))
		if rest = after; rest == "" {
			rest = "0s"
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || strings.HasPrefix(rest, "-") || strings.HasPrefix(rest, "+") || sum+d < sum {
		return 0, bad
	}
	if sum += d; neg {
		sum = -sum
	}
	return sum, nil
}

// isDecimal reports whether s is digits and at most one point: strconv.ParseFloat also takes "inf", "0x1p4" and "1e9".
func isDecimal(s string) bool {
	points := 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '.':
			points++
		case s[i] < '0' || s[i] > '9':
			return false
		}
	}
	return len(s) > points && points <= 1
}

// Seconds is a duration as numbers on the wire have it: seconds, to the millisecond.
func Seconds(d time.Duration) float64 { return math.Round(float64(d)/1e6) / 1e3 }

// Millis is a duration in milliseconds, to the microsecond.
func Millis(d time.Duration) float64 { return math.Round(float64(d)/1e3) / 1e3 }

// PublicURL returns u without userinfo, query and fragment, and "" where it can't be read: those parts can hold
// credentials, and never reach an answer (docs/protocols.md §9).
func PublicURL(u string) string {
	if !strings.ContainsAny(u, "@?#") {
		return u
	}
	p, err := url.Parse(u)
	if err != nil || p.Opaque != "" {
		return ""
	}
	p.User, p.RawQuery, p.ForceQuery, p.Fragment, p.RawFragment = nil, "", false, "", ""
	return p.String()
}

// HTTPStatus returns the HTTP status of a code: the one place where codes become statuses. Validation may answer
// CodeInvalid with 422 instead of the 400 given here, where the request could be read but its values are wrong.
func HTTPStatus(c statussync.Code) int {
	switch c {
	case statussync.CodeInvalid:
		return 400
	case statussync.CodeUnauthorized:
		return 401
	case statussync.CodeForbidden:
		return 403
	case statussync.CodeNotFound:
		return 404
	case statussync.CodeMethodNotAllowed:
		return 405
	case statussync.CodeConflict:
		return 409
	case statussync.CodeExpired:
		return 410
	case statussync.CodeTooLarge:
		return 413
	case statussync.CodeRateLimited:
		return 429
	case statussync.CodeUnavailable:
		return 503
	}
	return 500
}

// CodeOfHTTP is the inverse of HTTPStatus, for answers whose body says no code. Other 4xx are invalid, the rest internal.
func CodeOfHTTP(status int) statussync.Code {
	switch status {
	case 401:
		return statussync.CodeUnauthorized
	case 403, 421:
		return statussync.CodeForbidden
	case 404:
		return statussync.CodeNotFound
	case 405:
		return statussync.CodeMethodNotAllowed
	case 409:
		return statussync.CodeConflict
	case 410:
		return statussync.CodeExpired
	case 413:
		return statussync.CodeTooLarge
	case 429:
		return statussync.CodeRateLimited
	case 502, 503, 504:
		return statussync.CodeUnavailable
	}
	if status >= 400 && status < 500 {
		return statussync.CodeInvalid
	}
	return statussync.CodeInternal
}

// Problem is an error as RFC 9457 has it, with our members code, request_id and errors.
type Problem struct {
	Type      string          `json:"type" example:"about:blank" doc:"Always about:blank: code tells problems apart."`
	Title     string          `json:"title" example:"Not Found"`
	Status    int             `json:"status" example:"404"`
	Code      statussync.Code `json:"code" enum:"invalid,unauthorized,forbidden,not_found,method_not_allowed,conflict,expired,too_large,rate_limited,internal,unavailable"`
	Detail    string          `json:"detail,omitempty" doc:"What is wrong, for people."`
	RequestID string          `json:"request_id,omitempty" doc:"Names this request in the service's log."`
	Errors    []ProblemError  `json:"errors,omitempty" doc:"Each fault and where it is."`
}

// ProblemError is one fault: where it is (a field, parameter or file:line) and what is wrong there.
type ProblemError struct {
	Location string `json:"location,omitempty" example:"query.states"`
	Message  string `json:"message"`
}

// Err returns the problem as an error with its code, the first fault's location, and a detail that holds all messages.
func (p *Problem) Err() *statussync.Error {
	code := p.Code
	if code == "" {
		code = CodeOfHTTP(p.Status)
	}
	e := &statussync.Error{Code: code, Detail: p.Detail}
	var parts []string
	for i, f := range p.Errors {
		switch {
		case i == 0:
			e.Location = f.Location
			parts = append(parts, f.Message)
		case f.Location != "":
			parts = append(parts, f.Location+": "+f.Message)
		default:
			parts = append(parts, f.Message)
		}
	}
	if len(parts) > 0 && !(len(parts) == 1 && parts[0] == p.Detail) {
		e.Detail = strings.Join(parts, "; ")
	}
	if e.Detail == "" {
		e.Detail = p.Title
	}
	if p.RequestID != "" && code == statussync.CodeInternal {
		e.Detail += fmt.Sprintf(" (request %s)", p.RequestID)
	}
	return e
}

// OverrideRequest is the body of PUT /servers/{id}/override. The actor is the credential's name and can't be given.
type OverrideRequest struct {
	State     statussync.State  `json:"state" enum:"running,stopped,starting,stopping,error,unknown"`
	Health    statussync.Health `json:"health,omitempty" enum:"healthy,degraded,unhealthy,unknown" doc:"Default: running is healthy, error is unhealthy, the others are unknown. healthy and degraded go only with running."`
	Note      string            `json:"note,omitempty" maxLength:"1000" doc:"Why; shown beside the status."`
	ExpiresIn string            `json:"expires_in,omitempty" example:"1h" doc:"How long it holds: Go's durations and d for days. Default 1h, at most 30d."`
}
