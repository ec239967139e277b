//go:build linux

package e2e

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestLegacyClient runs an existing client of the original design, in Node, with its exact frames.
func TestLegacyClient(t *testing.T) {
	missing := func(what string) {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing; .ci/setup installs it", what)
		}
		t.Skipf("%s is missing; .ci/setup installs it", what)
	}
	node, err := exec.LookPath("node")
	if err != nil {
		missing("Node.js")
	}
	if _, err := os.Stat("node/node_modules/ws"); err != nil {
		missing("Node's ws package")
	}
	s := startService(t, obj{
		"environments": list{envOf("box", "token-box")},
		"servers":      list{unprobed("weather", "box", "running"), unprobed("github", "box", "running")},
	})
	cmd := exec.Command(node, "node/legacy.mjs", "ws://"+s.addr+"/ws/mcp-status")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	type event struct {
		Event, Old, New, Source, Details, Timestamp, LastError, Error string
		ServerID                                                      string `json:"server_id"`
		Code                                                          int
		When                                                          *float64
		IsBinary                                                      bool
		Message                                                       struct{ Type, Code string }
	}
	events := make(chan event, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(events)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			var e event
			if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
				e.Error = err.Error() + " in " + sc.Text()
			}
			events <- e
		}
	}()
	defer func() { cmd.Process.Kill(); <-done; cmd.Wait() }()
	next := func(what string, is func(event) bool) event {
		t.Helper()
		limit := time.After(15 * time.Second)
		for {
			select {
			case e, ok := <-events:
				if !ok {
					t.Fatalf("the client ended before %s", what)
				}
				if e.Error != "" || e.Event == "close" {
					t.Fatalf("the client, before %s: %+v", what, e)
				}
				if is(e) {
					return e
				}
			case <-limit:
				t.Fatalf("no %s within 15 s", what)
			}
		}
	}
	say := func(line string) {
		t.Helper()
		if _, err := in.Write([]byte(line + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	message := func(typ string) func(event) bool {
		return func(e event) bool { return e.Event == "message" && e.Message.Type == typ }
	}
	update := func(id, status string) func(event) bool {
		return func(e event) bool { return e.Event == "update" && e.ServerID == id && e.New == status }
	}
	next("open", func(e event) bool { return e.Event == "open" })
	say("ping")
	next("pong", message("pong")) // so the subscribe before it was taken too

	s.postHeartbeat("token-box", heartbeat(container("weather", "running", "Up 2 hours"), container("github", "running", "Up 2 hours")))
	e := next("update of weather", update("weather", "running/healthy"))
	if e.IsBinary || e.When == nil || e.Source != "dtma" || e.Details == "" {
		t.Errorf("the update is %+v", e)
	}
	say("publish")
	if e := next("error", message("error")); e.Message.Code != "forbidden" {
		t.Errorf("publish was answered with %+v, not with forbidden", e.Message)
	}
	say("ping") // the connection is kept, and subscribed
	next("pong", message("pong"))
	s.postHeartbeat("token-box", heartbeat(container("weather", "running", "Up 2 hours"), container("github", "exited", "Exited (137) 1 second ago")))
	if e := next("update of github", update("github", "stopped/unhealthy")); e.Old != "running/healthy" {
		t.Errorf("the old status is %s", e.Old)
	}
	if st := s.status("weather"); st.Health != "healthy" {
		t.Errorf("a publish changed a status: %+v", st)
	}
	in.Close()
	limit := time.After(10 * time.Second)
	for {
		select {
		case e, ok := <-events:
			if ok && e.Event != "close" {
				continue
			}
			if !ok || e.Code != 1000 {
				t.Errorf("the client's close was answered with %+v", e)
			}
		case <-limit:
			t.Error("the client's close was not answered")
		}
		break
	}
	s.stop()
}
