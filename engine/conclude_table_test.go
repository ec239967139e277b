package engine_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
)

// concluded plays script lines and returns the status of server a at their end.
func concluded(t *testing.T, lines string) statussync.Status {
	t.Helper()
	sc := newScript()
	for _, l := range strings.Split(lines, "\n") {
		if l = strings.TrimSpace(l); l == "" {
			continue
		}
		if err := sc.do(l); err != nil {
			t.Fatalf("%s: %v", l, err)
		}
	}
	st, ok := sc.e.Status("a")
	if !ok {
		t.Fatal("no server a")
	}
	return st
}

// TestExitCodes is step 3 b, row by row: what an exit code makes of a stopped container, by what is desired.
func TestExitCodes(t *testing.T) {
	const ok, stopped, crashed = "stopped/unknown ok", "stopped/unhealthy stopped_unexpectedly", "stopped/unhealthy crashed"
	for _, row := range []struct {
		exit                               string
		running, wantStopped, nobodySaidSo string
	}{
		{"exited", stopped, ok, ok}, // not known
		{"exited(0)", stopped, ok, ok},
		{"exited(1)", crashed, ok, crashed},
		{"exited(2)", crashed, ok, crashed},
		{"exited(125)", crashed, ok, crashed},
		{"exited(126)", crashed, ok, crashed},
		{"exited(127)", crashed, ok, crashed},
		{"exited(129)", crashed, ok, crashed},
		{"exited(130)", stopped, ok, ok}, // SIGINT
		{"exited(131)", crashed, ok, crashed},
		{"exited(134)", crashed, ok, crashed}, // SIGABRT
		{"exited(137)", crashed, ok, crashed}, // SIGKILL
		{"exited(139)", crashed, ok, crashed}, // SIGSEGV
		{"exited(142)", crashed, ok, crashed},
		{"exited(143)", stopped, ok, ok}, // SIGTERM
		{"exited(144)", crashed, ok, crashed},
		{"exited(255)", crashed, ok, crashed},
		{"exited(-1)", crashed, ok, crashed},
	} {
		for desired, want := range map[string]string{"desired=running": row.running, "desired=stopped": row.wantStopped, "": row.nobodySaidSo} {
			st := concluded(t, fmt.Sprintf("environment box token\nserver a env=box %s\n+1s heartbeat box a=%s", desired, row.exit))
			if got := words(&st, false); got != want {
				t.Errorf("%s, %q: %s, want %s", row.exit, desired, got, want)
			}
		}
	}
}

// TestConclusions is steps 1 and 3 where container, verdict and agent speak at once: one row for each pair that can
// disagree. The probe speaks after the container where the row says so.
func TestConclusions(t *testing.T) {
	const (
		define  = "environment box token\nserver a env=box desired=running probe=http://10.0.0.1/h retries=0\n"
		up      = "probe a ok\n"
		down    = "probe a ok\n+1s probe a fail http_500\n"
		running = "+1s heartbeat box a=running\n"
		exited  = "+1s heartbeat box a=exited(1)\n"
		dead    = "+1s heartbeat box a=dead\n"
		paused  = "+1s heartbeat box a=restarting\n"
		nothing = "+1s heartbeat box\n"
		late    = "+150s "
		lost    = "+240s "
	)
	for _, row := range []struct{ name, script, want string }{
		{"nothing", define, "unknown/unknown never_seen"},
		{"an agent that says nothing of it", define + nothing, "unknown/unknown never_seen"},
		{"up", define + up, "running/healthy ok"},
		{"down", define + down, "error/unhealthy probe_failing"},
		{"running", define + running, "running/healthy ok"},
		{"running, up", define + running + up, "running/healthy ok"},
		{"running, down", define + running + down, "running/unhealthy probe_failing"},
		{"down, then running", define + down + running, "running/unhealthy probe_failing"},
		{"exited, then up", define + exited + "+1s " + up, "running/healthy ok"},
		{"up, then exited", define + up + exited, "stopped/unhealthy crashed"},
		{"exited, then down", define + exited + "+1s probe a fail refused\n+31s probe a fail refused", "stopped/unhealthy crashed"},
		{"down, then exited", define + down + exited, "stopped/unhealthy crashed"},
		{"dead, then up", define + dead + "+1s " + up, "running/healthy ok"},
		{"up, then dead", define + up + dead, "error/unhealthy container_error"},
		{"down, then dead", define + down + dead, "error/unhealthy container_error"},
		{"restarting, then up", define + paused + "+1s " + up, "running/healthy ok"},
		{"up, then restarting", define + up + paused, "starting/unknown ok"},
		{"late, nothing else", define + running + late + "status a", "running/degraded heartbeat_late"},
		{"late, up", define + running + late + up, "running/healthy ok"},
		{"late, down", define + running + up + "+149s probe a ok\n+1s probe a fail http_500", "running/unhealthy probe_failing"},
		{"lost, nothing else", define + running + lost + "status a", "unknown/unhealthy heartbeat_lost"},
		{"lost, up", define + running + lost + up, "running/degraded agent_silent"},
		{"lost, down", define + running + "+239s probe a ok\n+1s probe a fail http_500", "error/unhealthy probe_failing"},
		{"lost, exited before", define + exited + lost + "status a", "unknown/unhealthy heartbeat_lost"},
		{"record running, nothing else", define + "record a running", "running/unknown never_seen"},
		{"record stopped, then up", define + "record a stopped\n+1s " + up, "running/healthy ok"},
		{"record disabled, then up", define + "record a disabled\n+1s " + up, "stopped/unhealthy stopped_unexpectedly"},
		{"running, then record error", define + running + "+1s record a error", "error/unhealthy container_error"},
		{"record error, then running", define + "record a error\n" + running, "running/healthy ok"},
		{"running, then record stopping, then running", define + running + "+1s record a stopping\n" + running, "stopping/unknown ok"},
		{"exited, then record starting, then exited", define + exited + "+1s record a starting\n" + exited, "starting/unknown ok"},
		{"unknown word, up", define + "+1s heartbeat box a=hibernated\n" + up, "running/healthy ok"},
		{"unknown word, record stopping", define + "record a stopping\n+1s heartbeat box a=hibernated", "stopping/unknown ok"},
	} {
		if st := concluded(t, row.script); words(&st, false) != row.want {
			t.Errorf("%s: %s, want %s", row.name, words(&st, false), row.want)
		}
	}
}

// TestTimeNeverGoesBack: an older now is the newest seen, in entries, ages and limits.
func TestTimeNeverGoesBack(t *testing.T) {
	e, err := engine.New(engine.DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	var eff engine.Effects
	e.Start(scriptZero, time.Time{}, &eff)
	def := func(id string) *statussync.RegistryUpdate {
		return &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Servers: []statussync.Server{{ID: id, Name: id, Origin: statussync.OriginConfig}}}
	}
	at := scriptZero.Add(time.Hour)
	e.Step(at, def("a"), &eff)
	e.Step(at.Add(-24*time.Hour), def("b"), &eff)
	e.Step(at.Add(-time.Nanosecond), &statussync.RecordSeen{ServerID: "b", Word: "starting"}, &eff)
	if len(eff.Entries) != 5 {
		t.Fatalf("%d entries, want 5", len(eff.Entries))
	}
	for _, en := range eff.Entries {
		if !en.Timestamp.Equal(at) {
			t.Errorf("%s %s at %s, want %s", en.Kind, en.ServerID, en.Timestamp, at)
		}
	}
	if due, ok := e.Deadline(); !ok || !due.Equal(at.Add(10*time.Minute)) {
		t.Errorf("stuck_starting is due at %s (%v), want 10 min after %s", due, ok, at)
	}
}

// TestDiscoveredBound: whatever an agent lists, so many unclaimed containers of an environment are kept, and no more.
func TestDiscoveredBound(t *testing.T) {
	line := "heartbeat box"
	for i := range 3 * statussync.MaxDiscovered {
		line += fmt.Sprintf(" c%04d=running", i)
	}
	sc := newScript()
	for _, l := range []string{"environment box token", line, "+60s " + line} {
		if err := sc.do(l); err != nil {
			t.Fatal(err)
		}
	}
	v, _ := sc.e.Environment("box", sc.now)
	if len(v.Discovered) != statussync.MaxDiscovered {
		t.Errorf("%d are kept, want %d", len(v.Discovered), statussync.MaxDiscovered)
	}
}
