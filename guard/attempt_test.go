package guard

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for _, c := range []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0}, {"0", "", 0}, {"120", "", 2 * time.Minute}, {" 5 ", "", 5 * time.Second}, {"3601", "", time.Hour},
		{"99999999999999999999999", "", time.Hour}, {"-5", "", 0}, {"1.5", "", 0}, {"soon", "", 0},
		{at(90 * time.Second), "", 90 * time.Second}, {at(-time.Minute), "", 0}, {at(48 * time.Hour), "", time.Hour},
		// The server's clock is a year behind ours.
		{at(-365*24*time.Hour + time.Minute), at(-365 * 24 * time.Hour), time.Minute},
		{at(time.Minute), "nonsense", time.Minute},
	} {
		h := http.Header{}
		h.Set("Retry-After", c.value)
		h.Set("Date", c.date)
		if got := RetryAfter(h, now); got != c.want {
			t.Errorf("%q, %q: %s, want %s", c.value, c.date, got, c.want)
		}
	}
}

func TestSetHeaders(t *testing.T) {
	r := &http.Request{Header: http.Header{}}
	if err := SetHeaders(r, map[string]string{"x-key": "k", "hOST": "other.example"}); err != nil || r.Host != "other.example" || r.Header.Get("X-Key") != "k" {
		t.Errorf("%v, %+v", err, r)
	}
	for k, v := range map[string]string{"a b": "secret", "": "secret", "X": "secret\r\nY: z", "secret:": "v"} {
		if err := SetHeaders(r, map[string]string{k: v}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", k, err)
		}
	}
}
