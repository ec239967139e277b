package dtma

import (
	"strconv"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// StatusText is what Docker's human text for a container says.
type StatusText struct {
	Word        string // container word, or "" where the text is none of Docker's
	HealthCheck string // "healthy", "unhealthy", "starting", or ""
	ExitCode    *int
	StartAge    statussync.AgeRange // "Up …"
	ExitAge     statussync.AgeRange // "Exited … ago", "Restarting … ago": both count from the last exit
}

// ParseStatusText reads the text that Docker and Podman give for a container ("Status" in a list):
//
//	Up 2 hours · Up 2 hours (healthy) · Up 5 seconds (health: starting) · Up 3 minutes (Paused)
//	Exited (137) 5 minutes ago · Restarting (1) 3 seconds ago · Created · Dead · Removal In Progress
//
// Parts that are not understood are left out; it never fails.
func ParseStatusText(s string) StatusText {
	s = strings.TrimSpace(s)
	var t StatusText
	word, rest, _ := strings.Cut(s, " ")
	switch strings.ToLower(word) {
	case "up":
		t.Word = "running"
		if i := strings.LastIndexByte(rest, '('); i >= 0 && strings.HasSuffix(rest, ")") {
			switch strings.ToLower(rest[i+1 : len(rest)-1]) {
			case "healthy":
				t.HealthCheck = "healthy"
			case "unhealthy":
				t.HealthCheck = "unhealthy"
			case "health: starting", "starting":
				t.HealthCheck = "starting"
			case "paused":
				t.Word = "paused"
			}
			rest = rest[:i]
		}
		t.StartAge = parseAge(rest)
	case "exited":
		t.Word = "exited"
		t.ExitCode, t.ExitAge = parseExit(rest)
	case "restarting":
		t.Word = "restarting"
		t.ExitCode, t.ExitAge = parseExit(rest)
	case "created":
		t.Word = "created"
	case "dead":
		t.Word = "dead"
	case "removal":
		if strings.EqualFold(rest, "in progress") {
			t.Word = "removing"
		}
	}
	return t
}

// parseExit reads "(137) 5 minutes ago".
func parseExit(s string) (code *int, age statussync.AgeRange) {
	if !strings.HasPrefix(s, "(") {
		return nil, age
	}
	num, rest, ok := strings.Cut(s[1:], ")")
	if !ok {
		return nil, age
	}
	// 32 bits, signed or not: Windows exit codes are unsigned.
	if n, err := strconv.ParseInt(num, 10, 64); err == nil && n >= -1<<31 && n < 1<<32 {
		c := int(n)
		code = &c
	}
	if rest, ok = strings.CutSuffix(strings.TrimSpace(rest), "ago"); ok {
		age = parseAge(rest)
	}
	return code, age
}

// parseAge inverts HumanDuration of github.com/docker/go-units, which Docker and Podman print ages with. It truncates
// seconds and minutes, rounds hours at the half, and from 48 hours on counts whole days, weeks, months of 30 days and
// years of 365 days of those rounded hours. The units change at 1 minute, 1, 48, 336, 1440 and 17520 hours.
func parseAge(s string) statussync.AgeRange {
	const h = time.Hour
	s = strings.ToLower(strings.TrimSpace(s))
	switch s {
	case "less than a second":
		return statussync.AgeRange{Max: time.Second}
	case "about a minute":
		return statussync.AgeRange{Min: time.Minute, Max: 2 * time.Minute}
	case "about an hour":
		return statussync.AgeRange{Min: h, Max: 90 * time.Minute}
	}
	num, unit, ok := strings.Cut(s, " ")
	if !ok {
		return statussync.AgeRange{}
	}
	v, err := strconv.ParseUint(num, 10, 31)
	if err != nil {
		return statussync.AgeRange{}
	}
	n := time.Duration(v)
	// hours returns the ages whose rounded hours are from a up to, and without, b.
	hours := func(a, b time.Duration) statussync.AgeRange {
		if b > 2_000_000 { // beyond what a time.Duration holds, and beyond any container
			return statussync.AgeRange{}
		}
		return statussync.AgeRange{Min: max(0, a*h-h/2), Max: b*h - h/2}
	}
	switch strings.TrimSuffix(unit, "s") {
	case "second":
		return statussync.AgeRange{Min: n * time.Second, Max: (n + 1) * time.Second}
	case "minute":
		if n < 1_000_000 {
			return statussync.AgeRange{Min: n * time.Minute, Max: (n + 1) * time.Minute}
		}
	case "hour":
		return hours(n, n+1)
	case "day":
		return hours(n*24, (n+1)*24)
	case "week":
		return hours(n*7*24, upTo((n+1)*7*24, n*7*24, 1440))
	case "month":
		return hours(n*30*24, upTo((n+1)*30*24, n*30*24, 17520))
	case "year":
		// Years are counted from the hours before rounding, but only where these round to 17520.
		r := statussync.AgeRange{Min: n * 365 * 24 * h, Max: (n + 1) * 365 * 24 * h}
		if n == 1 {
			r.Min = 17520*h - h/2
		}
		if n <= 200 {
			return r
		}
	}
	return statussync.AgeRange{}
}

// upTo returns end, or where the next unit takes over if that comes first and after the beginning.
func upTo(end, begin, next time.Duration) time.Duration {
	if begin < next {
		return min(end, next)
	}
	return end
}
