package fleetsim

import (
	"testing"
	"time"
)

// The texts are those of Docker's own list at the edges of each of its roundings.
func TestHumanDuration(t *testing.T) {
	const day = 24 * time.Hour
	for _, tc := range []struct {
		d    time.Duration
		want string
	}{
		{-time.Second, "Less than a second"},
		{0, "Less than a second"},
		{999 * time.Millisecond, "Less than a second"},
		{time.Second, "1 second"},
		{1999 * time.Millisecond, "1 second"},
		{2 * time.Second, "2 seconds"},
		{59*time.Second + 999*time.Millisecond, "59 seconds"},
		{time.Minute, "About a minute"},
		{119 * time.Second, "About a minute"},
		{2 * time.Minute, "2 minutes"},
		{59*time.Minute + 59*time.Second, "59 minutes"},
		{time.Hour, "About an hour"},
		{89 * time.Minute, "About an hour"},
		{90 * time.Minute, "2 hours"},
		{149 * time.Minute, "2 hours"},
		{150 * time.Minute, "3 hours"},
		{26 * time.Hour, "26 hours"},
		{47*time.Hour + 29*time.Minute, "47 hours"},
		{47*time.Hour + 30*time.Minute, "2 days"},
		{3*day - 31*time.Minute, "2 days"},
		{3*day - 30*time.Minute, "3 days"},
		{14*day - 31*time.Minute, "13 days"},
		{14*day - 30*time.Minute, "2 weeks"},
		{21*day - time.Hour, "2 weeks"},
		{21 * day, "3 weeks"},
		{60*day - 31*time.Minute, "8 weeks"},
		{60*day - 30*time.Minute, "2 months"},
		{90 * day, "3 months"},
		{730*day - 31*time.Minute, "24 months"},
		{730*day + time.Hour, "2 years"},
		{1095 * day, "3 years"},
	} {
		if got := humanDuration(tc.d); got != tc.want {
			t.Errorf("humanDuration(%v) = %q, want %q", tc.d, got, tc.want)
		}
	}
}

func TestStatusText(t *testing.T) {
	now := time.Unix(1732300000, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, tc := range []struct {
		c    container
		want string
	}{
		{container{state: StateCreated}, "Created"},
		{container{state: StateRunning, startedAt: ago(2 * time.Hour)}, "Up 2 hours"},
		{container{state: StateRunning, startedAt: ago(2 * time.Hour), checked: true}, "Up 2 hours (healthy)"},
		{container{state: StateRunning, startedAt: ago(3 * time.Minute), checked: true, sick: true}, "Up 3 minutes (unhealthy)"},
		{container{state: StateRunning, startedAt: ago(3 * time.Minute), sick: true}, "Up 3 minutes (unhealthy)"},
		{container{state: StateRunning, startedAt: ago(4 * time.Second), checked: true, settle: 5 * time.Second}, "Up 4 seconds (health: starting)"},
		{container{state: StateRunning, startedAt: ago(5 * time.Second), checked: true, settle: 5 * time.Second}, "Up 5 seconds (healthy)"},
		{container{state: StateExited, exitCode: 137, finishedAt: ago(5 * time.Minute)}, "Exited (137) 5 minutes ago"},
		{container{state: StateRestarting, exitCode: 1, finishedAt: ago(7 * time.Second), checked: true}, "Restarting (1) 7 seconds ago"},
	} {
		if got := tc.c.statusLocked(now); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}
