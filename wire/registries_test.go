package wire

import (
	"testing"

	"github.com/agentopia/statussync"
)

func TestConnectionStatusOf(t *testing.T) {
	status := func(s statussync.State, h statussync.Health) *statussync.Status {
		return &statussync.Status{State: s, Health: h}
	}
	for _, c := range []struct {
		name   string
		active bool
		st     *statussync.Status
		want   ConnectionStatus
	}{
		{"works", true, status(statussync.StateRunning, statussync.HealthHealthy), ConnectionConnected},
		{"works, slowly", true, status(statussync.StateRunning, statussync.HealthDegraded), ConnectionConnected},
		{"broken", true, status(statussync.StateRunning, statussync.HealthUnhealthy), ConnectionError},
		{"in error", true, status(statussync.StateError, statussync.HealthUnhealthy), ConnectionError},
		{"its agent is lost", true, status(statussync.StateUnknown, statussync.HealthUnhealthy), ConnectionError},
		{"off", true, status(statussync.StateStopped, statussync.HealthUnknown), ConnectionDisconnected},
		{"starting", true, status(statussync.StateStarting, statussync.HealthUnknown), ConnectionDisconnected},
		{"never seen", true, status(statussync.StateUnknown, statussync.HealthUnknown), ConnectionDisconnected},
		{"gone", true, nil, ConnectionDisconnected},
		{"switched off by its user", false, status(statussync.StateRunning, statussync.HealthHealthy), ConnectionDisconnected},
		{"switched off, and broken", false, status(statussync.StateError, statussync.HealthUnhealthy), ConnectionDisconnected},
	} {
		if got := ConnectionStatusOf(c.active, c.st); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
