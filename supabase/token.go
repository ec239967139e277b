package supabase

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"time"
)

const (
	// tokenTimeout is how long a question for a token may take.
	tokenTimeout = 10 * time.Second
	// tokenRetry is the time between questions for a fresh token while the old one still holds.
	tokenRetry = 10 * time.Second
	// maxTokenLead is how long before its end a token is replaced, where it lives that long.
	maxTokenLead = 2 * time.Minute
	// maxToken is the longest token in bytes.
	maxToken = 16 << 10
)

// StaticToken returns an Options.Token that always gives this one. It works until the token ends.
func StaticToken(t string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return t, nil }
}

// token is an access token.
type token struct {
	text      string
	expires   time.Time // zero: it does not say
	refreshAt time.Time // zero: never
}

// parseToken takes a token in. It is not verified: that is the server's affair.
func parseToken(s string) (token, error) {
	s = strings.TrimSpace(s)
	switch {
	case s == "":
		return token{}, errors.New("the token is empty")
	case len(s) > maxToken:
		return token{}, errors.New("the token is longer than 16 KiB")
	}
	return token{text: s, expires: tokenEnd(s)}, nil
}

// tokenEnd reads the exp claim of a JWT; zero where there is none (keys with the prefix sb_ are no JWTs).
func tokenEnd(s string) time.Time {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	claims, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return time.Time{}
	}
	var c struct {
		Exp float64 `json:"exp"`
	}
	if json.Unmarshal(claims, &c) != nil || c.Exp <= 0 || c.Exp > math.MaxInt32*100 {
		return time.Time{}
	}
	return time.Unix(int64(c.Exp), 0)
}

// planRefresh sets when the token is to be replaced: two minutes before its end, or a third of its life if that is less.
// One that seems to have ended is used all the same, since the clock at fault may be ours.
func (t *token) planRefresh(now time.Time) {
	t.refreshAt = time.Time{}
	if t.expires.IsZero() {
		return
	}
	left := t.expires.Sub(now)
	t.refreshAt = now.Add(max(left-min(maxTokenLead, left/3), tokenRetry))
}
