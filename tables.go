package statussync

import "strings"

// normWord is how container and record words are compared: case and surrounding space don't matter.
func normWord(w string) string { return strings.ToLower(strings.TrimSpace(w)) }

// ContainerState maps a container word to a state, and reports whether the word is one we know. healthStarting is
// Docker's "(health: starting)"; wantStopped says that the server is desired stopped (a container that was only created
// is then stopped, not starting). An unknown word maps to StateUnknown, which asserts nothing.
func ContainerState(word string, healthStarting, wantStopped bool) (s State, known bool) {
	switch normWord(word) {
	case "running":
		if healthStarting {
			return StateStarting, true
		}
		return StateRunning, true
	case "created":
		if wantStopped {
			return StateStopped, true
		}
		return StateStarting, true
	case "restarting", "starting":
		return StateStarting, true
	case "removing", "stopping":
		return StateStopping, true
	case "paused", "exited", "stopped":
		return StateStopped, true
	case "dead", "error":
		return StateError, true
	case "unknown":
		return StateUnknown, true
	}
	return StateUnknown, false
}

// RecordState maps a word of the platform's status_on_toolbox to a state, and reports whether the word is one we know.
func RecordState(word string) (s State, known bool) {
	w := normWord(word)
	switch w {
	case "running", "active":
		return StateRunning, true
	case "stopped", "exited", "uninstalled", "disabled":
		return StateStopped, true
	case "starting", "starting_on_toolbox", "installing", "deploying", "pending_install", "pending_deploy":
		return StateStarting, true
	case "stopping", "stopping_on_toolbox", "deleting", "uninstalling", "pending_delete", "pending_uninstall":
		return StateStopping, true
	case "pending_config":
		return StateUnknown, true
	}
	if w == "error" || strings.HasPrefix(w, "error_") {
		return StateError, true
	}
	return StateUnknown, false
}

// RecordDesired maps a record's word to what its writer wants of the server; keep is true where the word says nothing
// about that (exited, errors, pending_config and unknown words) and the desire stays as it was.
func RecordDesired(word string) (d Desired, keep bool) {
	w := normWord(word)
	switch w {
	case "stopped", "stopping", "stopping_on_toolbox", "disabled",
		"uninstalled", "uninstalling", "pending_uninstall", "deleting", "pending_delete":
		return DesiredStopped, false
	case "exited", "pending_config":
		return "", true
	}
	if _, known := RecordState(w); !known || w == "error" || strings.HasPrefix(w, "error_") {
		return "", true
	}
	return DesiredRunning, false
}

// RecordForbids reports whether a record with this word outlives a newer "up" of the probe: stopping, disabled, delete
// and uninstall words are a person's will that an answer does not overrule (docs/domain.md, step 1).
func RecordForbids(word string) bool {
	switch normWord(word) {
	case "stopping", "stopping_on_toolbox", "disabled",
		"uninstalled", "uninstalling", "pending_uninstall", "deleting", "pending_delete":
		return true
	}
	return false
}

// CleanExit reports whether an exit code is one of those that a stop on purpose leaves: 0, 130 (SIGINT), 143 (SIGTERM).
func CleanExit(code int) bool { return code == 0 || code == 130 || code == 143 }
