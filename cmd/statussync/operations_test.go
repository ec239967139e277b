package main

import (
	"strings"
	"testing"

	"github.com/agentopia/statussync/wire"
)

func TestOperationCommands(t *testing.T) {
	off := jsonOf(t, wire.Probing{Since: ago_(0), ChangedBy: "ops\x1b[31m"})
	url := fake(t, map[string]string{
		"POST /api/v1/reload": jsonOf(t, wire.Reload{Servers: wire.Difference{Added: []string{"a"}, AddedCount: 1, Unchanged: 7}, Settings: []string{"probe.rise"},
			NeedsRestart: []string{"listen"}, Warnings: []string{"9 of 40 servers were removed"}, DurationMS: 12}),
		"POST /api/v1/sync":           jsonOf(t, wire.Sync{FailedCount: 1, Failed: []wire.SyncFailure{{EnvironmentID: "box", Detail: "no answer"}}, DurationMS: 3}),
		"POST /api/v1/servers/x/sync": jsonOf(t, wire.Sync{DurationMS: 3}),
		"GET /api/v1/probing":         off, `PUT /api/v1/probing {"enabled":true}`: `{"enabled":true}`,
		"POST /api/v1/restart": `400 {"status":400,"code":"invalid","detail":"2 faults","errors":[{"location":"c.yaml:1","message":"is wrong"},{"location":"c.yaml:2","message":"is bad"}]}`,
		fleetPath:              jsonOf(t, fleet()),
	})
	for _, c := range []struct {
		args []string
		code int
		want string // part of the output or of the errors
	}{
		{[]string{"reload"}, 0, "The configuration is in force, read in 12ms.\n  servers   1 added (a), 7 unchanged\n  settings  probe.rise\nlook: 9 of 40 servers were removed\nneeds a restart: listen (\"statussync restart\")\n"},
		{[]string{"reload", "-o", "json"}, 0, `"needs_restart": [`},
		{[]string{"sync"}, 1, "  failed box: no answer\nSynced in 3.0ms: 0 statuses changed, 1 failed.\n"},
		{[]string{"sync", "x"}, 0, "Synced in 3.0ms: 0 statuses changed.\n"},
		{[]string{"probing"}, 0, "Probing is off since 2026-03-01 12:00:00 UTC (0s ago), by ops[31m.\n"},
		{[]string{"probing", "on"}, 0, "Probing is on.\n"},
		{[]string{"probing", "perhaps"}, 2, "give on, off, or nothing"},
		{[]string{"status"}, 0, "1 unknown\nProbing is off since"},
		{[]string{"restart"}, 4, "statussync: refused: c.yaml:1: is wrong\nstatussync: refused: c.yaml:2: is bad\n"},
	} {
		r := exec(t.Context(), append(c.args, "--server", url))
		if r.code != c.code || !strings.Contains(r.out+r.err, c.want) {
			t.Errorf("%v: exit %d, want %d with %q:\n%s%s", c.args, r.code, c.code, c.want, r.out, r.err)
		}
	}
}

// A restart is over when the service says that it is ready.
func TestRestartWaits(t *testing.T) {
	url := fake(t, map[string]string{"POST /api/v1/restart": `{"status":"restarting"}`, "GET /readyz": `{"status":"degraded","durable":true}`})
	if r := exec(t.Context(), []string{"restart", "--server", url}); r.code != 0 || !strings.HasPrefix(r.out, "The service is degraded again after ") {
		t.Errorf("exit %d: %s%s", r.code, r.out, r.err)
	}
	if r := exec(t.Context(), []string{"restart", "--no-wait", "--server", url}); r.code != 0 || r.out != "The service is restarting.\n" {
		t.Errorf("exit %d: %s%s", r.code, r.out, r.err)
	}
}
