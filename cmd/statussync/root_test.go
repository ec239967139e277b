package main

import (
	"strings"
	"testing"
)

// TestGroupsAlone: a command that only holds others has not done what a script wanted of it.
func TestGroupsAlone(t *testing.T) {
	for _, group := range []string{"config", "override", "server", "environment"} {
		r := exec(t.Context(), []string{group})
		if r.code != 2 || r.out != "" || !strings.Contains(r.err, "Available Commands:") || !strings.Contains(r.err, `"statussync `+group+`" needs one of its subcommands`) {
			t.Errorf("%s: %+v", group, r)
		}
		if r = exec(t.Context(), []string{group, "--help"}); r.code != 0 || !strings.Contains(r.out, "Available Commands:") || r.err != "" {
			t.Errorf("%s --help: %+v", group, r)
		}
		if r = exec(t.Context(), []string{group, "nonsense"}); r.code != 2 || !strings.Contains(r.err, `unknown command "nonsense"`) {
			t.Errorf("%s nonsense: %+v", group, r)
		}
	}
}
