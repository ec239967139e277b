package supabase

import (
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// pace is how fast it is tried again after a loss.
type pace int

const (
	quick pace = iota // it heals by itself: a restart, a lost connection
	rate              // the server asks for less
	slow              // somebody must change something: the key, a table's publication
)

// paces are the bounds of the wait: the first, and the one that doubling ends at. Those of quick are the official
// client's first and last step (1 and 10 s).
var paces = [...]struct{ first, most time.Duration }{
	quick: {time.Second, 10 * time.Second},
	rate:  {5 * time.Second, time.Minute},
	slow:  {15 * time.Second, 5 * time.Minute},
}

const (
	// steadyAfter is how long the channel must have been live for a loss to be a new affair, tried again at once.
	steadyAfter = 30 * time.Second
	// maxRetryAfter bounds what a server can ask for.
	maxRetryAfter = 5 * time.Minute
)

// loss is why there is no live channel.
type loss struct {
	err   *statussync.Error
	pace  pace
	after time.Duration // not before, as the server asked
	at    time.Time     // when it is tried again, where that is settled already
}

func lossOf(code statussync.Code, p pace, detail string) *loss {
	return &loss{err: statussync.NewError(code, detail, nil), pace: p}
}

// spacing counts attempts in a row and spaces them: a random wait between zero and a limit that doubles (exponential
// backoff with full jitter), so that many who lost the same server come back spread out. It never gives up.
type spacing struct {
	attempt int
	liveAt  time.Time // zero: not live
}

// live notes that the channel is live.
func (s *spacing) live(now time.Time) {
	if s.liveAt.IsZero() {
		s.liveAt = now
	}
}

// next returns how long to wait after l.
func (s *spacing) next(now time.Time, l *loss) time.Duration {
	if !s.liveAt.IsZero() && now.Sub(s.liveAt) >= steadyAfter {
		s.attempt = 0
	}
	s.liveAt = time.Time{}
	limit := paces[l.pace].first
	for i := 0; i < s.attempt && limit < paces[l.pace].most; i++ {
		limit *= 2
	}
	s.attempt++
	wait := rand.N(min(limit, paces[l.pace].most) + 1)
	if l.after > 0 {
		wait += min(l.after, maxRetryAfter)
	}
	return wait
}

// needsHand are what the server says where it will say the same again until somebody changes a setting: the codes that
// begin its reasons, and parts of the messages that have none.
var needsHand = []struct {
	part   string
	code   statussync.Code
	advice string
}{
	{"JwtSignatureError", statussync.CodeUnauthorized, "the key or token is not of this project"},
	{"Failed to validate JWT signature", statussync.CodeUnauthorized, "the key or token is not of this project"},
	{"JwtSignerError", statussync.CodeUnauthorized, "the project's JWT secret or its keys cannot verify this token"},
	{"MalformedJWT", statussync.CodeUnauthorized, "the key or token is not a JWT"},
	{"not a valid JWT", statussync.CodeUnauthorized, "the key or token is not a JWT"},
	{"`role` and `exp`", statussync.CodeUnauthorized, "the token needs the claims role and exp"},
	{"InvalidJWTToken", statussync.CodeUnauthorized, ""},
	{"no longer have permission", statussync.CodeForbidden, ""},
	{"Unauthorized", statussync.CodeForbidden, ""},
	{"PrivateOnly", statussync.CodeForbidden, "allow public channels in the project's Realtime settings"},
	{"TenantNotFound", statussync.CodeNotFound, "the address is of no project"},
	{"RealtimeDisabledForTenant", statussync.CodeForbidden, "Realtime is switched off for the project"},
	{"RealtimeDisabledForConfiguration", statussync.CodeInvalid, "is the table in the publication supabase_realtime?"},
	{"Unable to subscribe to changes", statussync.CodeInvalid, "is the table in the publication supabase_realtime, and may the role read it?"},
	{"TopicNameRequired", statussync.CodeInvalid, ""},
	{"InvalidJoinPayload", statussync.CodeInvalid, ""},
	{"unmatched topic", statussync.CodeInvalid, "this is not a Realtime server"},
}

// judge makes a loss of what the server said. what names the message, freshToken says that the next join brings another
// token. reason is cleaned already.
func judge(what, reason string, freshToken bool) *loss {
	detail := what
	if reason != "" {
		detail += ": " + reason
	}
	low := strings.ToLower(reason)
	switch {
	case strings.Contains(reason, "RateLimitReached"), strings.Contains(low, "too many"):
		return lossOf(statussync.CodeRateLimited, rate, detail)
	case strings.Contains(low, "expired"):
		if freshToken {
			return lossOf(statussync.CodeUnauthorized, quick, detail)
		}
		return lossOf(statussync.CodeUnauthorized, slow, detail+" (the key, which does not change by itself, has ended)")
	}
	for _, n := range needsHand {
		if strings.Contains(reason, n.part) {
			if n.advice != "" {
				detail += " (" + n.advice + ")"
			}
			return lossOf(n.code, slow, detail)
		}
	}
	return lossOf(statussync.CodeUnavailable, quick, detail)
}

// judgeHandshake makes a loss of a refused handshake.
func judgeHandshake(status int, reason string, after time.Duration) *loss {
	what := "the server refused the connection with HTTP " + strconv.Itoa(status)
	if reason != "" {
		what += ": " + reason
	}
	var l *loss
	switch {
	case status == 401:
		l = lossOf(statussync.CodeUnauthorized, slow, what+" (check the API key)")
	case status == 403:
		l = lossOf(statussync.CodeForbidden, slow, what)
	case status == 404:
		l = lossOf(statussync.CodeNotFound, slow, what+" (check the address of the project)")
	case status == 429:
		l = lossOf(statussync.CodeRateLimited, rate, what)
	case status >= 300 && status < 400:
		l = lossOf(statussync.CodeInvalid, slow, what+" (redirects are not followed, since they would carry the key elsewhere)")
	case status >= 500, status == 408, status == 425:
		l = lossOf(statussync.CodeUnavailable, quick, what)
	default:
		l = lossOf(statussync.CodeInvalid, slow, what+" (is this a Realtime server?)")
	}
	l.after = after
	return l
}

// keyLike is how Supabase's keys and tokens look: JWTs, and keys with a prefix.
var keyLike = regexp.MustCompile(`eyJ[A-Za-z0-9_=-]{6,}(\.[A-Za-z0-9_=-]*)*|sb_[a-z]+_[A-Za-z0-9_-]+|(?i:apikey|access_token)=[^&\s"']+`)

// clean makes a server's text fit to be shown: without the secrets given, nor anything that looks like one, and cleaned
// and cut as all untrusted text.
func clean(s string, secrets ...string) string {
	s = statussync.CleanText(s, 8*statussync.MaxErrorText) // before the secrets are sought: a control character in one would hide it
	for _, secret := range secrets {
		if secret != "" {
			s = strings.ReplaceAll(s, secret, "…")
		}
	}
	return statussync.CleanText(keyLike.ReplaceAllString(s, "…"), statussync.MaxErrorText)
}
