//go:build linux

package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestCommandLine runs every command against the real service and looks at exit codes and output.
func TestCommandLine(t *testing.T) {
	g := newTarget(t)
	g.set("/bad", 503)
	s := newService(t, obj{
		"auth": obj{"tokens": list{
			obj{"name": "ops", "role": "operator", "token": "token-of-ops"}, obj{"name": "eyes", "role": "viewer", "token": "token-of-eyes"},
		}},
		"environments": list{envOf("box", "token-box")},
		"servers": list{
			obj{"id": "well", "environment": "box", "labels": obj{"team": "core"}, "probe": g.probe("/well")},
			obj{"id": "bad", "environment": "box", "probe": g.probe("/bad")},
		},
	})
	s.token = "token-of-eyes"
	s.start()
	s.ready()
	s.postHeartbeat("token-box", heartbeat(container("well", "running", "Up 2 hours"), container("bad", "running", "Up 2 hours")))
	s.waitStatus(10*time.Second, "well", "running", "healthy", "ok")
	s.waitStatus(10*time.Second, "bad", "running", "unhealthy", "probe_failing")

	at := []string{"STATUSSYNC_SERVER=" + s.base}
	eyes, ops, wrong := append(at, "STATUSSYNC_TOKEN=token-of-eyes"), append(at, "STATUSSYNC_TOKEN=token-of-ops"), append(at, "STATUSSYNC_TOKEN=token-of-nobody")
	nowhere := freeAddr(t)
	for _, c := range []struct {
		env  []string
		args string
		code int
		says string // in what is printed, on either output
	}{
		{eyes, "status", 0, "probe_failing"},
		{eyes, "status --fail-on unhealthy", 1, "bad"},
		{eyes, "status --fail-on degraded", 1, "bad"},
		{eyes, "status --fail-on unhealthy --label team=core", 0, "well"},
		{eyes, "status --health unhealthy", 0, "bad"},
		{eyes, "status --state running --environment box", 0, "well"},
		{eyes, "status well", 0, "healthy"},
		{eyes, "status bad --fail-on unhealthy", 1, "probe_failing"},
		{eyes, "status bad --explain", 0, "http_503"},
		{eyes, "status -o json", 0, `"items"`},
		{eyes, "history bad --hours 1", 0, "probe_failing"},
		{eyes, "history bad --hours 1 -o json", 0, `"seq"`},
		{eyes, "metrics", 0, "2"},
		{eyes, "metrics -o json", 0, "total_servers"},
		{eyes, "environments", 0, "box"},
		{eyes, "status nobody", 4, "nobody"},
		{eyes, "probe well", 4, "role"},
		{eyes, "override set well --state error", 4, "role"},
		{ops, "probe well", 0, "well"},
		{ops, "probe bad", 1, "503"},
		{ops, "probe --all", 1, "bad"},
		{ops, "override set well --state error --note drill --for 10m", 0, ""},
		{ops, "status well", 0, "override"},
		{ops, "override clear well", 0, ""},
		{ops, "override set well --state sleepy", 2, "sleepy"},
		{ops, "override set well --state running --for 31d", 4, "30d"},
		{at, "status", 4, "token"},
		{wrong, "status", 4, "token"},
		{eyes, "status --no-such-flag", 2, "no-such-flag"},
		{eyes, "status --health sickly", 2, "sickly"},
		{eyes, "no-such-command", 2, "no-such-command"},
		{eyes, "history", 2, ""},
		{eyes, "serve", 2, "config"},
		{eyes, "watch --since nonsense", 2, "cursor"},
		{eyes, "status --server http://" + nowhere, 3, nowhere},
		{eyes, "probe well --server http://" + nowhere, 3, nowhere},
		{eyes, "status --server ftp://x", 2, "http"},
		{nil, "version", 0, ""},
		{nil, "--help", 0, "demo"},
	} {
		code, out, errs := cli(t, c.env, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(out+errs, c.says) {
			t.Errorf("statussync %s: exit %d, not %d with %q\n%s%s", c.args, code, c.code, c.says, out, errs)
		}
		if code != 0 && code != 1 && (errs == "" || out != "") {
			t.Errorf("statussync %s: exit %d with %q on the standard output and %q on the standard error", c.args, code, out, errs)
		}
		if strings.Contains(out+errs, "token-of-") || strings.Contains(out, "\x1b[") {
			t.Errorf("statussync %s shows a token, or colours without a terminal:\n%s%s", c.args, out, errs)
		}
		if strings.HasSuffix(c.args, "json") && !json.Valid([]byte(out)) {
			t.Errorf("statussync %s: no JSON: %s", c.args, out)
		}
	}
	s.waitStatus(5*time.Second, "well", "running", "healthy", "ok")
	s.stop()
	if code, _, errs := cli(t, eyes, "status"); code != 3 {
		t.Errorf("status of a stopped service: exit %d, not 3\n%s", code, errs)
	}
}
