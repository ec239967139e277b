//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestFieldHeartbeat posts a heartbeat as an agent in the field sends it, with curl where there is one, and asks what
// the service makes of each of its containers.
func TestFieldHeartbeat(t *testing.T) {
	g := newTarget(t)
	s := startService(t, obj{
		"environments": list{obj{"id": "box-7", "owner": "u1", "address": "127.0.0.1", "agent_token": "token-box-7"}},
		"servers": list{
			obj{"id": "weather", "environment": "box-7", "probe": g.probe("/health")},
			unprobed("github", "box-7", "running"),
			unprobed("postgres-tools", "box-7", "running"),
			unprobed("not-listed", "box-7", "running"),
		},
	})
	const file = "testdata/heartbeat-field.json"
	if curl, err := exec.LookPath("curl"); err == nil {
		out, err := exec.Command(curl, "-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", "-X", "POST",
			"-H", "Authorization: Bearer token-box-7", "-H", "Content-Type: application/json", "--data-binary", "@"+file, s.base+"/heartbeat").CombinedOutput()
		if err != nil || string(out) != "204 0" {
			t.Fatalf("curl: %v %s, not 204 without a body", err, out)
		}
	} else {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s.postHeartbeat("token-box-7", body)
	}
	g.waitHit(t)
	weather := s.waitStatus(10*time.Second, "weather", "running", "healthy", "ok")
	if weather.Availability != "available" {
		t.Errorf("weather is %s", weather.Availability)
	}
	github := s.waitStatus(5*time.Second, "github", "stopped", "unhealthy", "crashed")
	if github.Cause != "exit_137" || github.Availability != "unavailable" {
		t.Errorf("github: %+v", github)
	}
	s.waitStatus(5*time.Second, "postgres-tools", "running", "unhealthy", "container_unhealthy")
	if st := s.status("not-listed"); st.Health == "healthy" {
		t.Errorf("a server that no report lists is %+v", st)
	}

	// Explain tells which rule won, and the evidence with its age.
	type explained struct {
		statusJSON
		Explain struct {
			Evidence []struct {
				Kind, Value string
				Fresh       bool
				AgeSeconds  *float64 `json:"age_seconds"`
			}
			Rules []struct {
				Rule, State, Health, Reason, Why string
				Won                              bool
			}
		}
	}
	for _, want := range []struct{ id, rule, evidence, value string }{
		{"weather", "3k", "container", "running"},
		{"github", "3b", "container", "137"},
		{"postgres-tools", "3d", "container", "unhealthy"},
	} {
		var x explained
		s.getJSON("/api/v1/servers/"+want.id+"/status?explain=true", &x)
		var won []string
		for _, r := range x.Explain.Rules {
			if r.Won {
				won = append(won, r.Rule)
			}
		}
		if !strings.Contains(strings.Join(won, " "), want.rule) {
			t.Errorf("%s: the rules that won are %v, without %s", want.id, won, want.rule)
		}
		found := false
		for _, e := range x.Explain.Evidence {
			if e.Kind == want.evidence {
				found = true
				if !strings.Contains(e.Value, want.value) || !e.Fresh || e.AgeSeconds == nil || *e.AgeSeconds < 0 || *e.AgeSeconds > 30 {
					t.Errorf("%s: evidence %+v", want.id, e)
				}
			}
		}
		if !found {
			t.Errorf("%s: no %s evidence in %+v", want.id, want.evidence, x.Explain.Evidence)
		}
		// The command line tells people the same.
		code, out, errs := cli(t, nil, "status", want.id, "--explain", "--server", s.base)
		if !strings.Contains(out, x.Reason) || !strings.Contains(out, want.value) {
			t.Errorf("status %s --explain: exit %d\n%s%s", want.id, code, out, errs)
		}
	}

	// The container that nobody claims is listed, and is no server.
	var found struct{ Items []map[string]any }
	s.getJSON("/api/v1/discovered", &found)
	if len(found.Items) != 1 || found.Items[0]["container"] != "somebody-elses-redis" || found.Items[0]["environment_id"] != "box-7" || found.Items[0]["image"] != "redis:7" {
		t.Errorf("discovered: %v", found.Items)
	}
	if m, _ := s.servers(""); len(m) != 4 {
		t.Errorf("%d servers, not the 4 that were configured", len(m))
	}
	var env struct {
		Agent        string
		AgentVersion string `json:"agent_version"`
		System       struct {
			CPU    float64 `json:"cpu_load_percent"`
			Memory struct {
				Total int64 `json:"total_bytes"`
			}
		}
	}
	s.getJSON("/api/v1/environments/box-7", &env)
	if env.Agent != "ok" || env.AgentVersion != "0.1.0" || env.System.CPU != 37.4182 || env.System.Memory.Total != 2079121408 {
		b, _ := json.Marshal(env)
		t.Errorf("the environment: %s", b)
	}
	s.stop()
}

// waitHit waits for the first probe.
func (g *target) waitHit(t testing.TB) {
	t.Helper()
	waitFor(t, 10*time.Second, "a probe", func() (bool, string) { return g.hits.Load() > 0, "none came" })
}
