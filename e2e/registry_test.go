//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestRegistryKill kills the real service with SIGKILL while servers are added and removed by API: what was answered
// holds after each restart, and the one change that was under way is there or not, never halfway.
func TestRegistryKill(t *testing.T) {
	kills := 6
	if full() {
		kills = 40
	}
	s := startService(t, obj{"auth": obj{"commands_per_second": 1000000}})
	if code, b := s.request("POST", "/api/v1/environments", []byte(`{"id":"box-9"}`)); code != 201 {
		t.Fatalf("%d %s", code, b)
	}
	var made struct{ Token string }
	s.postJSON("/api/v1/environments/box-9/tokens", &made)
	have := map[string]bool{} // as answered
	n := 0
	for round := range kills {
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			timer := time.NewTimer(time.Duration(50+rand.IntN(250)) * time.Millisecond)
			<-timer.C
			s.kill()
		}()
		unsure := ""
		for unsure == "" {
			id := fmt.Sprintf("s%04d", n%40) // they come back again and again
			n++
			method, path, body, want := "POST", "/api/v1/servers", []byte(`{"id":"`+id+`","environment_id":"box-9","probe":{"kind":"none"}}`), 201
			if have[id] {
				method, path, body, want = "DELETE", "/api/v1/servers/"+id, []byte(`{}`), 204
			}
			code, b, err := s.tryRequest(method, path, body)
			switch {
			case err != nil:
				unsure = id
			case code != want:
				t.Fatalf("%s %s: %d %s", method, id, code, b)
			default:
				have[id] = method == "POST"
			}
		}
		<-killed
		s.start()
		s.ready()
		var page struct {
			Items []struct {
				ID     string
				Origin string
				Env    string `json:"environment_id"`
				Status struct{ Version uint64 }
			}
		}
		s.getJSON("/api/v1/servers?limit=1000", &page)
		got := map[string]bool{}
		for _, i := range page.Items {
			got[i.ID] = true
			if i.Origin != "managed" || i.Env != "box-9" || i.Status.Version == 0 {
				t.Errorf("round %d: %+v", round, i)
			}
		}
		for id, want := range have {
			if id != unsure && got[id] != want {
				t.Errorf("round %d: %s is there: %v, answered was %v", round, id, got[id], want)
			}
		}
		have[unsure] = got[unsure]
		if code, b := s.request("POST", "/heartbeat", []byte(`{}`), "Authorization", "Bearer "+made.Token); code != 204 {
			t.Fatalf("round %d: the agent's token: %d %s", round, code, b)
		}
	}
	t.Logf("%d changes, %d kills", n, kills)
}

// postJSON makes a call without a body whose answer must be a success, and reads it into out.
func (s *service) postJSON(path string, out any) {
	s.t.Helper()
	code, b := s.request("POST", path, []byte(`{}`))
	if code/100 != 2 {
		s.t.Fatalf("POST %s: %d %s", path, code, b)
	}
	if err := json.Unmarshal(b, out); err != nil {
		s.t.Fatalf("POST %s: %v in %s", path, err, clip(b))
	}
}
