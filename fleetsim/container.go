package fleetsim

import (
	"fmt"
	"time"
)

// State is what a container truly does, in Docker's words.
type State string

// The states that a simulated container can be in.
const (
	StateCreated    State = "created" // made, never started
	StateRunning    State = "running"
	StateRestarting State = "restarting" // exited; its engine waits before it starts it again
	StateExited     State = "exited"
)

// container is the truth about one container. Fleet.mu guards it.
type container struct {
	name    string
	id      string
	image   string
	imageID string
	command string
	ports   []port

	created    time.Time
	state      State
	startedAt  time.Time
	finishedAt time.Time // exited, restarting
	exitCode   int       // exited, restarting
	restarts   int
	checked    bool          // its image has a health check
	settle     time.Duration // how long after a start the check says "starting"
	sick       bool          // its check fails
	listening  bool          // a process accepts connections at its ports
}

// port is one line of Docker's port list; public 0 means not published.
type port struct {
	ip              string
	private, public int
}

func (c *container) startLocked(now time.Time) {
	c.state, c.startedAt, c.listening, c.sick = StateRunning, now, true, false
}

func (c *container) exitLocked(now time.Time, s State, code int) {
	c.state, c.finishedAt, c.exitCode, c.listening, c.sick = s, now, code, false, false
}

// healthLocked is Docker's own verdict: healthy, unhealthy, starting, or "" where there is no check or nothing runs.
func (c *container) healthLocked(now time.Time) string {
	switch {
	case c.state != StateRunning:
		return ""
	case c.sick:
		return "unhealthy"
	case !c.checked:
		return ""
	case now.Sub(c.startedAt) < c.settle:
		return "starting"
	}
	return "healthy"
}

// statusLocked is the text that Docker's container list shows.
func (c *container) statusLocked(now time.Time) string {
	switch c.state {
	case StateRunning:
		s := "Up " + humanDuration(now.Sub(c.startedAt))
		switch h := c.healthLocked(now); h {
		case "":
			return s
		case "starting":
			return s + " (health: starting)"
		default:
			return s + " (" + h + ")"
		}
	case StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", c.exitCode, humanDuration(now.Sub(c.finishedAt)))
	case StateExited:
		return fmt.Sprintf("Exited (%d) %s ago", c.exitCode, humanDuration(now.Sub(c.finishedAt)))
	}
	return "Created"
}

// humanDuration rounds as Docker does in its container list: seconds and minutes are cut off, hours are rounded to the
// nearest, and days, weeks and months are counted in whole ones of those rounded hours.
func humanDuration(d time.Duration) string {
	sec, mins, hours := int(d/time.Second), int(d/time.Minute), int(d.Hours()+0.5)
	for _, row := range [...]struct {
		applies bool
		text    string
		n       int
	}{
		{sec < 1, "Less than a second", 0},
		{sec == 1, "1 second", 0},
		{sec < 60, "seconds", sec},
		{mins == 1, "About a minute", 0},
		{mins < 60, "minutes", mins},
		{hours == 1, "About an hour", 0},
		{hours < 48, "hours", hours},
		{hours < 14*24, "days", hours / 24},
		{hours < 60*24, "weeks", hours / (7 * 24)},
		{hours < 2*365*24, "months", hours / (30 * 24)},
	} {
		if row.applies {
			if row.n == 0 {
				return row.text
			}
			return fmt.Sprint(row.n, " ", row.text)
		}
	}
	return fmt.Sprint(int(d.Hours())/(365*24), " years")
}
