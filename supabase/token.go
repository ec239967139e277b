package supabase

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
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
	// skewedLife is what a token is taken to last where our clock and its end contradict each other.
	skewedLife = 5 * time.Minute
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
	expires   time.Time     // zero: it does not say
	life      time.Duration // from its issue to its end; 0: it does not say
	refreshAt time.Time     // zero: never
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
	t := token{text: s}
	t.expires, t.life = tokenClaims(s)
	return t, nil
}

// tokenClaims reads the exp claim of a JWT, and how long after iat that is; zero where there is none (keys with the prefix
// sb_ are no JWTs).
func tokenClaims(s string) (expires time.Time, life time.Duration) {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return expires, 0
	}
	claims, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return expires, 0
	}
	var c struct {
		Exp float64 `json:"exp"`
		Iat float64 `json:"iat"`
	}
	const most = 1 << 38 // seconds: far beyond any date that is meant
	if json.Unmarshal(claims, &c) != nil || c.Exp <= 0 || c.Exp > most {
		return expires, 0
	}
	expires = time.Unix(int64(c.Exp), 0)
	if c.Iat > 0 && c.Iat < c.Exp {
		life = expires.Sub(time.Unix(int64(c.Iat), 0))
	}
	return expires, life
}

// planRefresh sets when the token is to be replaced: two minutes before its end, or a third of its life if that is less.
// A fresh token that seems to have ended says that our clock is wrong: then its life counts from now, or skewedLife where
// it does not tell that. Were it taken for ended, fresh ones would be asked for and sent without end.
func (t *token) planRefresh(now time.Time) {
	t.refreshAt = time.Time{}
	if t.expires.IsZero() {
		return
	}
	left := t.expires.Sub(now)
	if left <= 0 {
		left = cmp.Or(t.life, skewedLife)
	}
	t.refreshAt = now.Add(max(left-min(maxTokenLead, left/3), tokenRetry))
}
