//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// agentSpec is what an agent process is told.
type agentSpec struct {
	Base       string   `json:"base"`   // of the service
	Token      string   `json:"token"`  // it reports with
	Listen     string   `json:"listen"` // its own API; "": it has none that can be reached
	Containers []string `json:"containers"`
}

// runAgent is an agent as a process of its own: it reports its containers as running every 300 ms, until SIGUSR1 makes
// it report no more, and answers questions. It prints "ready" when it has reported five times, and "asked" for each
// question.
func runAgent(spec string) int {
	var a agentSpec
	if err := json.Unmarshal([]byte(spec), &a); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() { // ends with the test that started it
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	var containers []obj
	for _, name := range a.Containers {
		containers = append(containers, container(name, "running", "Up 2 hours"))
	}
	if a.Listen != "" {
		ln, err := net.Listen("tcp", a.Listen)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		answer, _ := json.Marshal(obj{"status": "ok", "timestamp": time.Now().UTC(), "version": "0.1.0", "tool_instances": containers, "system_metrics": obj{}})
		go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "GET" || r.URL.Path != "/status" || r.Header.Get("Authorization") != "" {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.Write(answer)
			fmt.Println("asked")
		}))
	}
	silent := make(chan os.Signal, 1)
	signal.Notify(silent, syscall.SIGUSR1)
	beat := heartbeat(containers...)
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; {
		req, err := http.NewRequest("POST", a.Base+"/functions/v1/heartbeat", bytes.NewReader(beat))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		req.Header.Set("Authorization", "Bearer "+a.Token)
		req.Header.Set("Content-Type", "application/json")
		if resp, err := http.DefaultClient.Do(req); err == nil {
			closeBody(resp)
			if n++; n == 5 {
				fmt.Println("ready")
			}
		}
		select {
		case <-tick.C:
		case <-silent:
			fmt.Println("silent")
			select {}
		}
	}
}

// agent is an agent process.
type agent struct {
	cmd    *exec.Cmd
	asked  atomic.Int64
	words  chan string // what it prints beside "asked"
	closed chan struct{}
}

func startAgent(t testing.TB, spec agentSpec) *agent {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{cmd: exec.Command(exe), words: make(chan string, 4), closed: make(chan struct{})}
	a.cmd.Env = append(environ(), childEnv+"="+string(b))
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	a.cmd.Stderr = os.Stderr
	stdin, err := a.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(a.closed)
		for sc := bufio.NewScanner(stdout); sc.Scan(); {
			if sc.Text() == "asked" {
				a.asked.Add(1)
			} else {
				a.words <- sc.Text()
			}
		}
	}()
	t.Cleanup(func() { stdin.Close(); a.kill() })
	a.says(t, "ready")
	return a
}

// says waits until the agent has printed a word.
func (a *agent) says(t testing.TB, word string) {
	t.Helper()
	select {
	case got := <-a.words:
		if got != word {
			t.Fatalf("the agent says %q, not %q", got, word)
		}
	case <-a.closed:
		t.Fatalf("the agent ended before it was %s", word)
	case <-time.After(30 * time.Second):
		t.Fatalf("the agent is not %s", word)
	}
}

// kill ends it with SIGKILL.
func (a *agent) kill() {
	a.cmd.Process.Kill()
	<-a.closed
	a.cmd.Wait()
}

// environmentJSON is what docs/protocols.md says of an environment.
type environmentJSON struct {
	Agent         string    `json:"agent"`
	LastHeartbeat time.Time `json:"last_heartbeat"`
}

func (s *service) environment(id string) environmentJSON {
	s.t.Helper()
	var e environmentJSON
	s.getJSON("/api/v1/environments/"+id, &e)
	return e
}

// brief writes an entry without what differs from run to run.
func (e *entryJSON) brief() string {
	if e.Kind != "status" {
		return e.Kind + " " + strings.Join(e.ServerIDs, " ")
	}
	return fmt.Sprintf("%s %s → %s", e.ServerID, strings.TrimSuffix(e.Previous.key(), "/"), strings.TrimSuffix(e.Current.key(), "/"))
}

// TestAgentDies lets an agent fall silent, answer when it is asked, die for real, and come back; and beside it one that
// could never be asked. What subscribers and the journal are told is exactly that: nothing while it answers, one cause
// with its servers when it does not any more, one return.
//
// An agent is asked from 20 s of silence on, and every 10 s, whatever limits are configured; hence the length of this.
func TestAgentDies(t *testing.T) {
	t.Parallel()
	const (
		late = 27 * time.Second // between the first question and the second
		lost = 60 * time.Second // the third failure past late comes at 50 s
	)
	web := newTarget(t) // its servers go on when their agent dies
	boxAPI, natAPI := freeAddr(t), freeAddr(t)
	probed := func(id, env string) obj {
		return obj{"id": id, "environment": env, "probe": web.probe("/" + id)}
	}
	s := startService(t, obj{
		"heartbeat": obj{"late_after": late.String(), "lost_after": lost.String()},
		"environments": list{
			obj{"id": "box", "agent_token": "token-box-1", "agent_url": "http://" + boxAPI},
			obj{"id": "nat", "agent_token": "token-nat-1", "agent_url": "http://" + natAPI}, // nobody is there
			obj{"id": "well", "agent_token": "token-well-1"},
		},
		"servers": list{
			probed("box-web", "box"), unprobed("box-job", "box", "running"), unprobed("box-cron", "box", "running"),
			probed("nat-web", "nat"), unprobed("nat-job", "nat", "running"),
			unprobed("well-job", "well", "running"),
		},
	})
	specs := map[string]agentSpec{
		"box":  {s.base, "token-box-1", boxAPI, []string{"box-web", "box-job", "box-cron"}},
		"nat":  {s.base, "token-nat-1", "", []string{"nat-web", "nat-job"}},
		"well": {s.base, "token-well-1", "", []string{"well-job"}},
	}
	agents := map[string]*agent{}
	for env, spec := range specs {
		agents[env] = startAgent(t, spec)
	}
	for _, id := range []string{"box-web", "box-job", "box-cron", "nat-web", "nat-job", "well-job"} {
		s.waitStatus(10*time.Second, id, "running", "healthy", "ok")
	}
	waitFor(t, 10*time.Second, "probes", func() (bool, string) {
		return s.status("box-web").CheckCount > 2 && s.status("nat-web").CheckCount > 2, ""
	})
	_, start := s.servers("")
	listed := func() []*entryJSON { return s.updates(start, kindsQuery) }
	filters := list{obj{"kinds": allKinds}}
	followers := []*follower{
		{name: "ws", sub: obj{"filters": filters}},
		{name: "sse", sse: true, query: map[string][]string{"kinds": {strings.Join(allKinds, ",")}}},
	}
	for _, f := range followers {
		s.follow(f, start)
	}

	// Silent, but it answers. The other one dies at the same time.
	if err := agents["box"].cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	agents["box"].says(t, "silent")
	agents["nat"].kill()
	natAt := time.Now()
	fellSilent := s.environment("box").LastHeartbeat
	waitFor(t, 35*time.Second, "the silent agent is asked, and its answer is a heartbeat", func() (bool, string) {
		e := s.environment("box")
		return agents["box"].asked.Load() > 0 && e.LastHeartbeat.After(fellSilent) && e.Agent == "ok",
			fmt.Sprintf("asked %d times; %+v", agents["box"].asked.Load(), e)
	})
	// Of box nothing was told; of nat by now at most that its agent is late.
	for _, e := range listed() {
		if e.EnvironmentID != "nat" || e.Kind != "status" || e.Current.Reason != "heartbeat_late" {
			t.Errorf("while box answers: %s", e)
		}
	}
	answered := s.environment("box").LastHeartbeat

	// Dead.
	agents["box"].kill()
	silent := func(env string, limit time.Duration) *entryJSON {
		t.Helper()
		var found []*entryJSON
		waitFor(t, limit, env+" is told silent", func() (bool, string) {
			all := listed()
			found = only(all, func(e *entryJSON) bool { return e.EnvironmentID == env && e.Kind == "environment_silent" })
			return len(found) > 0, fmt.Sprint(all)
		})
		return found[0]
	}
	// The one that was never asked with success: however many questions fail, only time counts.
	e := silent("nat", lost+20*time.Second)
	if took := time.Since(natAt); took < lost-time.Second { // its last report was a bit before its death
		t.Errorf("nat was told silent after %s, before %s: %s", took, lost, e)
	}
	if strings.Contains(e.Details, "does not answer") {
		t.Errorf("nat never answered, and yet: %s", e.Details)
	}
	// The one that answered before: three failures past late.
	e = silent("box", lost+20*time.Second)
	if age := e.Timestamp.Sub(answered); age < late+20*time.Second || age >= lost {
		t.Errorf("box was told silent %s after its last answer, which is not by three failed questions past %s: %s", age, late, e)
	}
	if !strings.Contains(e.Details, "does not answer") {
		t.Errorf("box was asked, and did not answer: %s", e.Details)
	}
	if e := s.environment("box"); e.Agent != "lost" || !e.LastHeartbeat.Equal(answered) {
		t.Errorf("box: %+v, its last answer came at %s", e, answered)
	}

	// Back.
	for _, env := range []string{"box", "nat"} {
		agents[env] = startAgent(t, specs[env])
	}
	for _, id := range []string{"box-web", "box-job", "box-cron", "nat-web", "nat-job"} {
		s.waitStatus(10*time.Second, id, "running", "healthy", "ok")
	}
	const ok, late1 = "running/healthy/ok", "running/degraded/heartbeat_late"
	const gone, quiet = "unknown/unhealthy/heartbeat_lost", "running/degraded/agent_silent"
	want := map[string][]string{
		"box": {
			"box-cron " + ok + " → " + late1, "box-job " + ok + " → " + late1,
			"environment_silent box-cron box-job box-web",
			"box-cron " + late1 + " → " + gone, "box-job " + late1 + " → " + gone, "box-web " + ok + " → " + quiet,
			"environment_back box-cron box-job box-web",
			"box-cron " + gone + " → " + ok, "box-job " + gone + " → " + ok, "box-web " + quiet + " → " + ok,
		},
		"nat": {
			"nat-job " + ok + " → " + late1,
			"environment_silent nat-job nat-web",
			"nat-job " + late1 + " → " + gone, "nat-web " + ok + " → " + quiet,
			"environment_back nat-job nat-web",
			"nat-job " + gone + " → " + ok, "nat-web " + quiet + " → " + ok,
		},
	}
	journal := listed()
	got := map[string][]string{}
	for i, e := range journal {
		got[e.EnvironmentID] = append(got[e.EnvironmentID], e.brief())
		// A fall and its cause, and a return and what it brings, are of one batch.
		if e.Kind == "environment_silent" || e.Kind == "environment_back" {
			for k, id := range e.ServerIDs {
				if i+k+1 >= len(journal) || journal[i+k+1].ServerID != id || !journal[i+k+1].Timestamp.Equal(e.Timestamp) {
					t.Errorf("%s is not followed by %s at the same moment", e, id)
				}
			}
		}
		source := "system"
		if e.Current != nil && e.Current.Health == "healthy" {
			source = "dtma"
		}
		if e.Source != source && e.Kind == "status" {
			t.Errorf("%s comes from %s, not %s", e, e.Source, source)
		}
	}
	for env := range want {
		if !slices.Equal(got[env], want[env]) {
			t.Errorf("of %s was told\n%s\nnot\n%s", env, strings.Join(got[env], "\n"), strings.Join(want[env], "\n"))
		}
		delete(got, env)
	}
	if len(got) > 0 {
		t.Errorf("and of others: %v", got)
	}
	for _, f := range followers {
		f.waitLast(t, 10*time.Second, journal[len(journal)-1])
		f.check(t, journal)
	}
	s.stop()
}
