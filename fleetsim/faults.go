package fleetsim

import (
	"fmt"
	"time"
)

// Truth is what is the case with a server, whoever knows of it.
type Truth struct {
	State    State
	Since    time.Time // running: its start; exited, restarting: its exit; created: when it was made
	ExitCode int       // exited, restarting
	Health   string    // Docker's check: healthy, unhealthy, starting; "" where there is none or nothing runs
	Restarts int       // by its container engine
	// Fault is what is wrong on the wire: slow, status, hang, reset, page, refuse; "" for nothing.
	Fault string
	// Answers says whether anything listens at the server's address. It does not say that the answer is a good one.
	Answers    bool
	PublicPort int
}

// Truth tells what is the case with a server. The error says that there is none with this id.
func (f *Fleet) Truth(id string) (Truth, error) {
	s, err := f.server(id)
	if err != nil {
		return Truth{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now, c := time.Now(), s.c
	t := Truth{
		State: c.state, Since: c.startedAt, Health: c.healthLocked(now), Restarts: c.restarts, Fault: s.fault.kind.String(),
		Answers: s.answersLocked(), PublicPort: s.PublicPort,
	}
	switch c.state {
	case StateExited, StateRestarting:
		t.Since, t.ExitCode = c.finishedAt, c.exitCode
	case StateCreated:
		t.Since = c.created
	}
	return t, nil
}

func (f *Fleet) server(id string) (*server, error) {
	s := f.byID[id]
	if s == nil {
		return nil, fmt.Errorf("fleetsim: there is no server %q", id)
	}
	return s, nil
}

func (f *Fleet) environment(id string) (*environment, error) {
	e := f.byEnv[id]
	if e == nil {
		return nil, fmt.Errorf("fleetsim: there is no environment %q", id)
	}
	return e, nil
}

// change alters the truth about a server and makes the wire agree before it returns. Where its process went away, its
// MCP sessions go with it.
func (f *Fleet) change(id string, alter func(s *server, now time.Time) error) error {
	s, err := f.server(id)
	if err != nil {
		return err
	}
	f.mu.Lock()
	listened := s.c.listening
	started := s.c.startedAt
	err = alter(s, time.Now())
	f.applyLocked(s)
	gone := listened && (!s.c.listening || !s.c.startedAt.Equal(started))
	f.mu.Unlock()
	f.nudge()
	if gone && s.mcp != nil {
		s.mcp.closeSessions()
	}
	return err
}

func (f *Fleet) exitLocked(s *server, now time.Time, code int) error {
	if s.c.state == StateExited || s.c.state == StateCreated {
		return fmt.Errorf("fleetsim: %s can't exit: its container is %s", s.ID, s.c.state)
	}
	f.endLocked(s)
	s.c.exitLocked(now, StateExited, code)
	return nil
}

// Crash ends a server's process with an exit code (137: killed, 1: an error of its own). Nothing starts it again by
// itself. Connections are reset, new ones refused. An error where it does not run.
func (f *Fleet) Crash(id string, exitCode int) error {
	return f.change(id, func(s *server, now time.Time) error { return f.exitLocked(s, now, exitCode) })
}

// StopOnPurpose is a stop by its owner: exit code 0 for MCP servers, which handle the signal, 143 for plain ones, which
// die of it.
func (f *Fleet) StopOnPurpose(id string) error {
	return f.change(id, func(s *server, now time.Time) error {
		code := 0
		if s.Kind == KindPlain {
			code = 143
		}
		return f.exitLocked(s, now, code)
	})
}

// Start starts a container that is not running and ends a crash loop. It does nothing to one that runs.
func (f *Fleet) Start(id string) error {
	return f.change(id, func(s *server, now time.Time) error {
		if s.c.listening {
			return nil
		}
		f.endLocked(s)
		s.c.startLocked(now)
		return nil
	})
}

// Restart stops a server on purpose (exit code 143) and starts it again 5 s × TimeScale later.
func (f *Fleet) Restart(id string) error {
	return f.change(id, func(s *server, now time.Time) error {
		if err := f.exitLocked(s, now, 143); err != nil {
			return err
		}
		f.doLocked(s, doingRestart, now.Add(f.scaled(5*time.Second)), func(now time.Time) time.Time {
			s.c.startLocked(now)
			return time.Time{}
		})
		return nil
	})
}

// setFault puts a fault on the wire in place of an earlier one, and ends flapping.
func (f *Fleet) setFault(id string, m mode) error {
	return f.change(id, func(s *server, _ time.Time) error {
		if s.doing == doingFlapping {
			f.endLocked(s)
		}
		s.fault = m
		return nil
	})
}

// Slow makes a server answer after a latency (real time, not scaled).
func (f *Fleet) Slow(id string, latency time.Duration) error {
	if latency <= 0 {
		return fmt.Errorf("fleetsim: latency %v of %s must be greater than 0", latency, id)
	}
	return f.setFault(id, mode{kind: modeSlow, latency: latency})
}

// Status makes a server answer everything with an HTTP status: 500, 503, 401 (with a challenge), 429 (with
// Retry-After), ….
func (f *Fleet) Status(id string, code int) error {
	if code < 200 || code > 599 {
		return fmt.Errorf("fleetsim: status %d of %s must be 200 to 599", code, id)
	}
	return f.setFault(id, mode{kind: modeStatus, code: code})
}

// Page makes a server answer everything with 200 and a web page, as a proxy's sign-in page in its place does.
func (f *Fleet) Page(id string) error { return f.setFault(id, mode{kind: modePage}) }

// Hang makes a server accept connections and requests and never answer.
func (f *Fleet) Hang(id string) error { return f.setFault(id, mode{kind: modeHang}) }

// Reset makes a server cut each connection when a request comes.
func (f *Fleet) Reset(id string) error { return f.setFault(id, mode{kind: modeReset}) }

// Refuse closes a server's listening socket while its container goes on running.
func (f *Fleet) Refuse(id string) error { return f.setFault(id, mode{kind: modeRefuse}) }

// Heal ends everything that is wrong with a server itself: faults on the wire, a failing check, flapping, a crash loop;
// a container that does not run is started. Faults of its environment stay.
func (f *Fleet) Heal(id string) error {
	return f.change(id, func(s *server, now time.Time) error {
		f.endLocked(s)
		s.fault, s.c.sick = mode{}, false
		if !s.c.listening {
			s.c.startLocked(now)
		}
		return nil
	})
}

// Unhealthy makes Docker's own check of a running container fail; the server goes on answering. An error where it does
// not run.
func (f *Fleet) Unhealthy(id string) error {
	return f.change(id, func(s *server, _ time.Time) error {
		if s.c.state != StateRunning {
			return fmt.Errorf("fleetsim: %s can't be unhealthy: its container is %s", id, s.c.state)
		}
		s.c.sick = true
		return nil
	})
}

// A crash loop's period has no common measure with the heartbeats', so that what agents see moves through it.
const (
	crashLoopDown = 32 * time.Second
	crashLoopUp   = 5 * time.Second
)

// CrashLoop makes a server exit with code 1 again and again: its engine waits 32 s × TimeScale, starts it, and 5 s ×
// TimeScale later it exits, never having listened. Off starts it for good, if it is in a loop.
func (f *Fleet) CrashLoop(id string, on bool) error {
	return f.change(id, func(s *server, now time.Time) error {
		if on == (s.doing == doingCrashLoop) {
			return nil
		}
		if !on {
			f.endLocked(s)
			s.c.startLocked(now)
			return nil
		}
		s.c.restarts++
		s.c.exitLocked(now, StateRestarting, 1)
		f.doLocked(s, doingCrashLoop, now.Add(f.scaled(crashLoopDown)), func(now time.Time) time.Time {
			if s.c.state == StateRestarting {
				s.c.startLocked(now)
				s.c.listening = false
				return now.Add(f.scaled(crashLoopUp))
			}
			s.c.restarts++
			s.c.exitLocked(now, StateRestarting, 1)
			return now.Add(f.scaled(crashLoopDown))
		})
		return nil
	})
}

// StuckStarting replaces a server's container by a new one that was made and never gets started.
func (f *Fleet) StuckStarting(id string) error {
	return f.change(id, func(s *server, now time.Time) error {
		f.endLocked(s)
		s.c.id = replaceID(s.c.id)
		s.c.state, s.c.created, s.c.startedAt, s.c.listening, s.c.sick = StateCreated, now, time.Time{}, false, false
		return nil
	})
}

// flapPhase is how long each phase of flapping lasts: longer than a probe interval of 30 s with its confirmation, so
// that each is seen.
const flapPhase = 60 * time.Second

// Flap makes a server answer 503 and be well in turns of 60 s × TimeScale each, beginning with 503. Off leaves it well.
func (f *Fleet) Flap(id string, on bool) error {
	return f.change(id, func(s *server, now time.Time) error {
		if on == (s.doing == doingFlapping) {
			return nil
		}
		if !on {
			f.endLocked(s)
			s.fault = mode{}
			return nil
		}
		if s.c.state != StateRunning || s.doing != doingNothing {
			return fmt.Errorf("fleetsim: %s can't flap: its container is %s", id, s.c.state)
		}
		bad := mode{kind: modeStatus, code: 503}
		s.fault = bad
		f.doLocked(s, doingFlapping, now.Add(f.scaled(flapPhase)), func(now time.Time) time.Time {
			if s.fault == bad {
				s.fault = mode{}
			} else {
				s.fault = bad
			}
			return now.Add(f.scaled(flapPhase))
		})
		return nil
	})
}

// changeEnvironment alters the truth about an environment and makes the wire agree. Where that brings its agent back, a
// heartbeat is sent at once, as a started agent does.
func (f *Fleet) changeEnvironment(id string, alter func(e *environment)) error {
	e, err := f.environment(id)
	if err != nil {
		return err
	}
	f.mu.Lock()
	was := e.agentUpLocked()
	alter(e)
	is := e.agentUpLocked()
	f.openDoorLocked(e.agent.door, is)
	if e.door != nil {
		f.openDoorLocked(e.door, !e.down)
	}
	for _, s := range e.servers {
		f.applyLocked(s)
	}
	f.mu.Unlock()
	f.nudge()
	if is && !was {
		e.agent.kickNow()
	}
	return nil
}

func (e *environment) agentUpLocked() bool { return !e.down && !e.silent }

// AgentSilent ends an environment's agent, or starts it again: no heartbeats, its port refuses. A heartbeat that is
// under way may still arrive. Servers are not touched.
func (f *Fleet) AgentSilent(environmentID string, on bool) error {
	return f.changeEnvironment(environmentID, func(e *environment) { e.silent = on })
}

// EnvironmentDown takes a whole host away, or brings it back: no heartbeats; its agent and all its servers refuse.
// Containers keep their state, as on a host that lost its network.
func (f *Fleet) EnvironmentDown(environmentID string, on bool) error {
	return f.changeEnvironment(environmentID, func(e *environment) { e.down = on })
}

// EngineDown keeps an environment's agent from its container engine, or lets it back: it goes on reporting, in shape C.
func (f *Fleet) EngineDown(environmentID string, on bool) error {
	return f.changeEnvironment(environmentID, func(e *environment) { e.engineDown = on })
}
