// Package engine concludes: observations in, entries and requests out. It holds every rule of docs/domain.md and
// nothing else: no clock, lock, goroutine, I/O or log. Time is an argument, effects are data.
//
// An Engine is owned by one goroutine; none of its methods may be called concurrently. Time never goes back: a now that
// is older than the newest seen is taken as the newest seen.
package engine

import "github.com/agentopia/statussync"

// Effects is what follows from a step. The caller owns it and reuses it: the engine only appends. What the elements
// point to is immutable from then on.
type Effects struct {
	// Entries are to be journaled in this order, in one batch where several came of one call. Seq and Epoch are left
	// for the journal's writer.
	Entries []*statussync.Entry
	// Requests are to be handed to a statussync.Requester after the entries are durable.
	Requests []statussync.Request
	// Errors are observations that could not be taken, in the order of the call; each is a *statussync.Error.
	Errors []error
	// Unknown are container and record words that no table knows, each told once in the engine's life.
	Unknown []string
	// Foreign counts containers in agent reports that named a server of another environment.
	Foreign int
}

// Reset empties e and keeps its memory.
func (e *Effects) Reset() {
	clear(e.Entries)
	clear(e.Requests)
	clear(e.Errors)
	*e = Effects{Entries: e.Entries[:0], Requests: e.Requests[:0], Errors: e.Errors[:0], Unknown: e.Unknown[:0]}
}
