package statussync

import (
	"strings"
	"testing"
)

// Every word of the record layer, as docs/domain.md lists them.
func TestRecordWords(t *testing.T) {
	const keep = Desired("keep")
	cases := map[string]struct {
		state   State
		desired Desired
	}{
		"pending_install": {StateStarting, DesiredRunning}, "installing": {StateStarting, DesiredRunning},
		"pending_config": {StateUnknown, keep}, "active": {StateRunning, DesiredRunning}, "running": {StateRunning, DesiredRunning},
		"starting": {StateStarting, DesiredRunning}, "starting_on_toolbox": {StateStarting, DesiredRunning},
		"stopping": {StateStopping, DesiredStopped}, "stopping_on_toolbox": {StateStopping, DesiredStopped},
		"stopped": {StateStopped, DesiredStopped}, "exited": {StateStopped, keep}, "deploying": {StateStarting, DesiredRunning},
		"pending_deploy": {StateStarting, DesiredRunning}, "pending_delete": {StateStopping, DesiredStopped},
		"deleting": {StateStopping, DesiredStopped}, "pending_uninstall": {StateStopping, DesiredStopped},
		"uninstalling": {StateStopping, DesiredStopped}, "uninstalled": {StateStopped, DesiredStopped},
		"disabled": {StateStopped, DesiredStopped}, "error": {StateError, keep}, "error_starting": {StateError, keep},
		"error_stopping": {StateError, keep}, "error_install": {StateError, keep}, "error_uninstall": {StateError, keep},
		"error_runtime": {StateError, keep}, "error_deploying": {StateError, keep}, "error_deleting": {StateError, keep},
	}
	for word, want := range cases {
		for _, w := range []string{word, " " + strings.ToUpper(word) + "\t"} {
			s, known := RecordState(w)
			if s != want.state || !known {
				t.Errorf("RecordState(%q) = %s, %v, want %s, true", w, s, known, want.state)
			}
			d, k := RecordDesired(w)
			if k {
				d = keep
			}
			if d != want.desired {
				t.Errorf("RecordDesired(%q) = %s, want %s", w, d, want.desired)
			}
		}
	}
	if s, known := RecordState("on_fire"); s != StateUnknown || known {
		t.Errorf("an unknown word gives %s, %v", s, known)
	}
	if _, k := RecordDesired("on_fire"); !k {
		t.Error("an unknown word changes what is desired")
	}
	for word := range cases {
		want := cases[word].desired == DesiredStopped && word != "stopped"
		if RecordForbids(word) != want {
			t.Errorf("RecordForbids(%q) = %v, want %v", word, !want, want)
		}
	}
}

// Every word of the container layer.
func TestContainerWords(t *testing.T) {
	cases := map[string]State{
		"created": StateStarting, "running": StateRunning, "paused": StateStopped, "restarting": StateStarting,
		"removing": StateStopping, "exited": StateStopped, "dead": StateError, "starting": StateStarting,
		"stopping": StateStopping, "stopped": StateStopped, "error": StateError, "unknown": StateUnknown,
	}
	for word, want := range cases {
		if s, known := ContainerState(" "+strings.ToUpper(word), false, false); s != want || !known {
			t.Errorf("ContainerState(%q) = %s, %v, want %s", word, s, known, want)
		}
	}
	if s, _ := ContainerState("running", true, false); s != StateStarting {
		t.Errorf("running (health: starting) is %s", s)
	}
	if s, _ := ContainerState("created", false, true); s != StateStopped {
		t.Errorf("created, desired stopped, is %s", s)
	}
	if s, known := ContainerState("levitating", false, false); s != StateUnknown || known {
		t.Errorf("an unknown word gives %s, %v", s, known)
	}
	for code, want := range map[int]bool{0: true, 130: true, 143: true, 1: false, 137: false, 139: false} {
		if CleanExit(code) != want {
			t.Errorf("CleanExit(%d) = %v", code, !want)
		}
	}
}

// The user layer: the first row that matches.
func TestAvailability(t *testing.T) {
	for _, c := range []struct {
		s    State
		h    Health
		want Availability
	}{
		{StateRunning, HealthHealthy, Available}, {StateRunning, HealthDegraded, Limited},
		{StateRunning, HealthUnhealthy, Unavailable}, {StateRunning, HealthUnknown, AvailabilityUnknown},
		{StateStopped, HealthUnknown, Off}, {StateStopped, HealthUnhealthy, Unavailable},
		{StateStarting, HealthUnknown, Changing}, {StateStopping, HealthUnknown, Changing},
		{StateStarting, HealthUnhealthy, Unavailable}, {StateError, HealthUnhealthy, Unavailable},
		{StateError, HealthUnknown, Unavailable}, {StateUnknown, HealthUnknown, AvailabilityUnknown},
		{StateUnknown, HealthUnhealthy, Unavailable},
	} {
		st := Status{State: c.s, Health: c.h}
		if got := st.Availability(); got != c.want {
			t.Errorf("%s+%s is %s, want %s", c.s, c.h, got, c.want)
		}
	}
}
