package fleetsim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"sync"
	"time"
)

// The wire types of an agent, in the order of its fields. Shapes are docs/protocols.md §1.
type (
	wireHeartbeat struct {
		Version string     `json:"dtma_version"`
		System  wireSystem `json:"system_status"`
		Tools   []any      `json:"tool_statuses"`
	}
	wireEvent struct { // what changed, told at once
		Event   bool   `json:"event"`
		Version string `json:"dtma_version"`
		Tools   []any  `json:"tool_statuses"`
	}
	wireStatus struct { // the agent's own GET /status
		Status    string     `json:"status"`
		Timestamp string     `json:"timestamp"`
		Version   string     `json:"version"`
		Tools     []any      `json:"tool_instances"`
		System    wireSystem `json:"system_metrics"`
	}
	wireSystem struct {
		CPU    float64    `json:"cpu_load_percent"`
		Memory wireMemory `json:"memory"`
		Disk   any        `json:"disk"`
	}
	wireMemory struct {
		Total  int64 `json:"total_bytes"`
		Active int64 `json:"active_bytes"`
		Free   int64 `json:"free_bytes"`
		Used   int64 `json:"used_bytes"`
	}
	wireDisk struct {
		Mount string `json:"mount"`
		Total int64  `json:"total_bytes"`
		Used  int64  `json:"used_bytes"`
		Free  int64  `json:"free_bytes"`
	}
	wireError struct {
		Error string `json:"error"`
	}
	wireA struct {
		ID      string      `json:"account_tool_instance_id"`
		Name    string      `json:"instance_name_on_toolbox"`
		Status  string      `json:"status_on_toolbox"`
		Details wireDetails `json:"runtime_details"`
	}
	wireDetails struct {
		Restarts int  `json:"restart_count"`
		ExitCode *int `json:"exit_code,omitempty"`
	}
	wireB struct {
		ID      string     `json:"id"`
		Names   []string   `json:"names"`
		Image   string     `json:"image"`
		ImageID string     `json:"image_id"`
		Command string     `json:"command"`
		Created int64      `json:"created"`
		State   string     `json:"state"`
		Status  string     `json:"status"`
		Ports   []wirePort `json:"ports"`
	}
	wirePort struct {
		IP      string `json:"ip,omitempty"`
		Private int    `json:"private_port"`
		Public  int    `json:"public_port,omitempty"`
		Type    string `json:"type"`
	}
)

// AgentStats count what an environment's agent did.
type AgentStats struct {
	Sent   uint64 // heartbeats answered with 204
	Failed uint64 // heartbeats answered otherwise, or not at all
	Events uint64 // reports of something that just happened, answered with 204
	// LastError says why the newest heartbeat failed; "" where it did not.
	LastError string
}

// agent reports for one environment.
type agent struct {
	f    *Fleet
	env  *environment
	door *door
	kick chan struct{} // capacity 1: report now

	// Of an agent that reports events; only run looks at told.
	notice chan struct{}              // capacity 1: something may have changed; nil: it reports none
	told   map[*server]containerState // what the service was told last

	mu    sync.Mutex
	stats AgentStats
}

// AgentStats tells what an environment's agent did so far. The error says that there is no such environment.
func (f *Fleet) AgentStats(environmentID string) (AgentStats, error) {
	e, err := f.environment(environmentID)
	if err != nil {
		return AgentStats{}, err
	}
	e.agent.mu.Lock()
	defer e.agent.mu.Unlock()
	return e.agent.stats, nil
}

func (a *agent) kickNow() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// containerState is that of a container whose change is an event.
type containerState struct {
	id      string
	state   State
	started time.Time
	exited  time.Time
	health  string
}

// noticeNow makes an agent that reports events look for some. It does not block.
func (a *agent) noticeNow() {
	select {
	case a.notice <- struct{}{}:
	default: // it will look in any case, or reports no events (nil)
	}
}

// states are the containers as they are, or nil where the agent can't see them.
func (a *agent) states(now time.Time) map[*server]containerState {
	if a.notice == nil {
		return nil
	}
	a.f.mu.Lock()
	defer a.f.mu.Unlock()
	if !a.env.agentUpLocked() || a.env.engineDown {
		return nil
	}
	out := make(map[*server]containerState, len(a.env.servers))
	for _, s := range a.env.servers {
		out[s] = containerState{s.c.id, s.c.state, s.c.startedAt, s.c.finishedAt, s.c.healthLocked(now)}
	}
	return out
}

// event tells what changed since it was told last, and returns when a health check will turn by itself (zero: none will).
func (a *agent) event(ctx context.Context) (next time.Time) {
	now := time.Now()
	changed := a.states(now)
	var tools []any
	a.f.mu.Lock()
	target := a.f.target
	for _, s := range a.env.servers {
		is, seen := changed[s]
		if !seen {
			continue
		}
		if is.health == "starting" {
			if t := is.started.Add(s.c.settle); next.IsZero() || t.Before(next) {
				next = t
			}
		}
		switch {
		case a.told[s] == is:
			delete(changed, s)
		case a.env.Shape == ShapeDocumented:
			tools = append(tools, documentedLocked(s))
		default:
			tools = append(tools, dockerLocked(s.c, now))
		}
	}
	a.f.mu.Unlock()
	if len(tools) == 0 {
		return next
	}
	if err := a.post(ctx, target, wireEvent{Event: true, Version: a.version(), Tools: tools}); err != nil {
		a.f.log.Debug("an event was not taken; the next heartbeat tells it", "environment", a.env.ID, "error", err)
		return next
	}
	maps.Copy(a.told, changed)
	a.mu.Lock()
	a.stats.Events++
	a.mu.Unlock()
	return next
}

// run reports every HeartbeatEvery, the agents of a fleet evenly spread over it. A report that takes longer delays
// none but its own agent's; missed beats are not made up for.
func (a *agent) run(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-a.f.targetSet:
	}
	every := a.f.opt.HeartbeatEvery
	next := time.Now().Add(every * time.Duration(a.env.index) / time.Duration(len(a.f.envs)))
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	turn := time.NewTimer(time.Hour) // when a health check turns by itself
	defer turn.Stop()
	noticed := func() {
		if at := a.event(ctx); !at.IsZero() {
			turn.Reset(max(time.Until(at), time.Millisecond))
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.notice:
			noticed()
			continue
		case <-turn.C:
			noticed()
			continue
		case <-a.kick:
		case <-timer.C:
			now := time.Now()
			for !next.After(now) {
				next = next.Add(every)
			}
			timer.Reset(next.Sub(now))
		}
		a.beat(ctx)
	}
}

// beat sends one heartbeat, if the agent lives, and counts how it went.
func (a *agent) beat(ctx context.Context) {
	a.f.mu.Lock()
	up, target := a.env.agentUpLocked(), a.f.target
	a.f.mu.Unlock()
	if !up {
		return
	}
	now := time.Now()
	states := a.states(now)
	err := a.post(ctx, target, wireHeartbeat{
		Version: a.version(), System: a.system(), Tools: a.tools(now, a.env.Shape),
	})
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		maps.Copy(a.told, states) // what changed meanwhile is told once more
	}
	a.mu.Lock()
	failing := a.stats.LastError != ""
	if err == nil {
		a.stats.Sent++
		a.stats.LastError = ""
	} else {
		a.stats.Failed++
		a.stats.LastError = err.Error()
	}
	a.mu.Unlock()
	switch {
	case err != nil && !failing:
		a.f.log.Warn("heartbeats fail", "environment", a.env.ID, "error", err)
	case err == nil && failing:
		a.f.log.Info("heartbeats succeed again", "environment", a.env.ID)
	}
}

func (a *agent) post(ctx context.Context, target string, report any) error {
	body, err := json.Marshal(report)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target+"/functions/v1/heartbeat", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+string(a.env.AgentToken))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "dtma/"+a.version())
	res, err := a.f.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	io.Copy(io.Discard, io.LimitReader(res.Body, 4096))
	if res.StatusCode != http.StatusNoContent { // the reference agent takes nothing else for success
		return fmt.Errorf("the service answered %s", res.Status)
	}
	return nil
}

func (a *agent) version() string {
	if a.env.Shape == ShapeDocumented {
		return "0.2.0"
	}
	return "0.1.0"
}

// tools lists the environment's containers as its agent sees them at now, or why it sees none (shape C). The list is never nil: an agent without
// containers sends an empty one.
func (a *agent) tools(now time.Time, shape Shape) []any {
	a.f.mu.Lock()
	defer a.f.mu.Unlock()
	if a.env.engineDown {
		return []any{wireError{"Failed to fetch tool statuses"}}
	}
	out := make([]any, 0, len(a.env.servers)+len(a.env.extra))
	for _, s := range a.env.servers {
		if shape == ShapeDocumented {
			out = append(out, documentedLocked(s))
		} else {
			out = append(out, dockerLocked(s.c, now))
		}
	}
	if shape == ShapeDocker {
		for _, c := range a.env.extra {
			out = append(out, dockerLocked(c, now))
		}
	}
	return out
}

// documentedLocked is shape A, which knows the platform's words only: a container that its engine is about to start
// again is starting, and an exit is told apart by its code.
func documentedLocked(s *server) wireA {
	out := wireA{ID: s.ID, Name: s.c.name, Details: wireDetails{Restarts: s.c.restarts}}
	switch s.c.state {
	case StateRunning:
		out.Status = "running"
	case StateExited:
		out.Status = "exited"
		code := s.c.exitCode
		out.Details.ExitCode = &code
	default:
		out.Status = "starting"
	}
	return out
}

// dockerLocked is shape B. A container that does not run lists no ports, as Docker has it.
func dockerLocked(c *container, now time.Time) wireB {
	out := wireB{
		ID: c.id, Names: []string{c.name}, Image: c.image, ImageID: c.imageID, Command: c.command, Created: c.created.Unix(),
		State: string(c.state), Status: c.statusLocked(now), Ports: []wirePort{},
	}
	if c.state == StateRunning {
		for _, p := range c.ports {
			out.Ports = append(out.Ports, wirePort{IP: p.ip, Private: p.private, Public: p.public, Type: "tcp"})
		}
	}
	return out
}

// system makes up a host whose load wanders a little with time. An agent of shape A can't find its disk, as some in
// the field can't.
func (a *agent) system() wireSystem {
	const memory, disk = 2079121408, 51848359936
	wave := int64(time.Now().Unix()/7+int64(a.env.index)*13) % 40
	used := memory/2 + wave*(memory/100)
	sys := wireSystem{
		CPU:    float64(5+wave) + 0.25,
		Memory: wireMemory{Total: memory, Active: used / 2, Free: memory - used, Used: used},
		Disk:   wireDisk{Mount: "/", Total: disk, Used: disk / 3, Free: disk - disk/3},
	}
	if a.env.Shape == ShapeDocumented {
		sys.Disk = wireError{"Could not determine main filesystem usage."}
	}
	return sys
}

// ServeHTTP is the agent's own API: GET /health and GET /status, both without a credential. /status is always in
// shape B, whatever the shape of the heartbeats.
func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	case r.URL.Path == "/health":
		io.WriteString(w, "OK")
	case r.URL.Path == "/status":
		now := time.Now()
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(wireStatus{
			Status: "ok", Timestamp: now.UTC().Format("2006-01-02T15:04:05.000Z"), Version: a.version(),
			Tools: a.tools(now, ShapeDocker), System: a.system(),
		})
	default:
		http.NotFound(w, r)
	}
}
