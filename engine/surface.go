package engine

import (
	"iter"
	"time"

	"github.com/agentopia/statussync"
)

// Engine is the rules' memory: what is known of every server and environment.
type Engine struct{}

// New returns an empty engine. An invalid policy is a *statussync.Error that names the field.
func New(p Policy) (*Engine, error) { panic("unwritten") }

// Step takes one observation. Nothing else but Tick and Gap makes time pass.
func (e *Engine) Step(now time.Time, o statussync.Observation, eff *Effects) { panic("unwritten") }

// Tick does everything that is due at now. Calling it early or often is harmless.
func (e *Engine) Tick(now time.Time, eff *Effects) { panic("unwritten") }

// Deadline is when Tick should be called next; ok is false when nothing is waiting.
func (e *Engine) Deadline() (at time.Time, ok bool) { panic("unwritten") }

// Gap tells that nothing was observed for d, which ended at now (the process was suspended, or the clock was stepped
// forward): d is taken off heartbeat, evidence, probe, deadline and flapping clocks, not off override and maintenance
// ends.
func (e *Engine) Gap(now time.Time, d time.Duration, eff *Effects) { panic("unwritten") }

// SetPolicy replaces the policy; what follows is concluded at once.
func (e *Engine) SetPolicy(now time.Time, p Policy, eff *Effects) error { panic("unwritten") }

// Restore fills a new engine from a stored record; Start ends the restoration.
func (e *Engine) Restore(r statussync.Record) error { panic("unwritten") }

// Start begins, or goes on after a restoration: alive is when the service was last alive (zero: never before). It emits
// every probe plan. Definitions from configuration are told afterwards by a RegistryUpdate with Full.
func (e *Engine) Start(now, alive time.Time, eff *Effects) { panic("unwritten") }

// DirtyFor appends the records of the servers and environments that entries speak of, so that they are stored in the
// same transaction, and takes them off Dirty's list.
func (e *Engine) DirtyFor(entries []*statussync.Entry, buf []statussync.Record) []statussync.Record {
	panic("unwritten")
}

// Dirty appends the records of what else changed since it was last asked, at most limit of them (0: all), and reports
// whether more is waiting.
func (e *Engine) Dirty(buf []statussync.Record, limit int) (out []statussync.Record, more bool) {
	panic("unwritten")
}

// Touched appends the ids of the servers whose definition, conclusion or facts changed since it was last called; a
// removed server is among them and no longer found.
func (e *Engine) Touched(buf []string) []string { panic("unwritten") }

// TouchedEnvironments is Touched for environments.
func (e *Engine) TouchedEnvironments(buf []string) []string { panic("unwritten") }

// Server returns a server's definition.
func (e *Engine) Server(id string) (*statussync.Server, bool) { panic("unwritten") }

// Status returns a server's conclusion, as last told in an entry, with its facts of now.
func (e *Engine) Status(id string) (statussync.Status, bool) { panic("unwritten") }

// Environment returns what is known of an environment.
func (e *Engine) Environment(id string, now time.Time) (statussync.EnvironmentView, bool) {
	panic("unwritten")
}

// Explain returns all the evidence of a server and what every rule makes of it at now.
func (e *Engine) Explain(id string, now time.Time) (statussync.Explanation, bool) {
	panic("unwritten")
}

// ServerIDs yields the ids of all servers, in no order; the engine must not change meanwhile.
func (e *Engine) ServerIDs() iter.Seq[string] { panic("unwritten") }

// EnvironmentIDs yields the ids of all environments, in no order; the engine must not change meanwhile.
func (e *Engine) EnvironmentIDs() iter.Seq[string] { panic("unwritten") }

// Maintenances returns the windows that have not ended, by id.
func (e *Engine) Maintenances() []statussync.Maintenance { panic("unwritten") }
