package hub

import (
	"context"
	"errors"
	"fmt"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
)

// message is what one call of Observe, TryObserve or Submit put into the inbox.
type message struct {
	obs     []statussync.Observation
	weight  int64
	receipt *receipt // nil: nobody waits

	policy *engine.Policy     // replaced before obs are taken; nil: it stays
	note   *statussync.Record // stored with what follows from obs; nil: none
}

// receipt is where a Submit waits. Its fields are written before done is closed.
type receipt struct {
	done    chan struct{}
	entries []*statussync.Entry
	errs    []error
}

// question is asked of the engine by the writer; its answer is given with the batch of that moment, so that it never
// tells what is not durable yet.
type question struct {
	ask    func(w *writer) (answer func())
	placed chan struct{} // closed when answered
}

var errStopped = statussync.NewError(statussync.CodeUnavailable, "the hub is not running any more", nil)

// weightOf is how much room an observation takes: 1, and more for one that is large, so that the inbox is bounded in
// bytes too.
func weightOf(o statussync.Observation) int64 {
	switch o := o.(type) {
	case *statussync.AgentReport:
		return 1 + int64(max(len(o.Containers)/16, len(o.Raw)/4096))
	case *statussync.RegistryUpdate:
		return 1 + int64(len(o.Servers)+len(o.Environments)+len(o.RemovedServers)+len(o.RemovedEnvironments))/16
	case *statussync.ToolsSeen:
		return 1 + int64(len(o.Tools)/16)
	}
	return 1
}

func (h *Hub) message(obs []statussync.Observation, r *receipt) (message, error) {
	m := message{obs: obs, receipt: r}
	for i, o := range obs {
		if o == nil {
			return m, statussync.Invalid(fmt.Sprintf("observations[%d]", i), "is nil")
		}
		m.weight += weightOf(o)
	}
	m.weight = min(max(m.weight, 1), h.inboxSize)
	return m, nil
}

// enqueue puts a message for which room was acquired into the inbox.
func (h *Hub) enqueue(m message) error {
	h.intake.RLock()
	defer h.intake.RUnlock()
	if h.intakeClosed {
		h.room.Release(m.weight)
		return errStopped
	}
	// This never blocks: the channel has a place for each unit of room, and a message holds at least one.
	h.inbox <- m
	h.inboxUsed.Add(m.weight)
	return nil
}

// taken gives a message's room back.
func (h *Hub) taken(m message) {
	h.inboxUsed.Add(-m.weight)
	h.room.Release(m.weight)
}

// closeIntake refuses every later observation. What is in the inbox stays there.
func (h *Hub) closeIntake() {
	h.intake.Lock()
	defer h.intake.Unlock()
	h.intakeClosed = true
}

func (h *Hub) put(ctx context.Context, m message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := h.room.Acquire(ctx, m.weight); err != nil {
		h.count.refused.Add(uint64(len(m.obs)))
		return err
	}
	return h.enqueue(m)
}

// Observe implements statussync.Observer. Observations of one caller are concluded from in their order. It may be
// called before Run: they then wait in the inbox.
func (h *Hub) Observe(ctx context.Context, obs ...statussync.Observation) error {
	if len(obs) == 0 {
		return nil
	}
	m, err := h.message(obs, nil)
	if err != nil {
		return err
	}
	return h.put(ctx, m)
}

// TryObserve implements statussync.Observer. It never blocks.
func (h *Hub) TryObserve(obs ...statussync.Observation) error {
	if len(obs) == 0 {
		return nil
	}
	m, err := h.message(obs, nil)
	if err != nil {
		return err
	}
	if !h.room.TryAcquire(m.weight) {
		h.count.refused.Add(uint64(len(obs)))
		return statussync.NewError(statussync.CodeUnavailable, "the inbox is full; try again later", nil)
	}
	return h.enqueue(m)
}

// Submit implements statussync.Observer. The updates that it returns are the entries of kind status. Without
// observations it waits until everything that was handed over before it is concluded from, durable and visible.
//
// When ctx ends first, the observations are concluded from all the same.
func (h *Hub) Submit(ctx context.Context, obs ...statussync.Observation) ([]*statussync.Entry, error) {
	m, err := h.message(obs, &receipt{done: make(chan struct{})})
	if err != nil {
		return nil, err
	}
	return h.submit(ctx, m)
}

// submit puts a message with a receipt into the inbox and waits for the receipt.
func (h *Hub) submit(ctx context.Context, m message) ([]*statussync.Entry, error) {
	r := m.receipt
	if err := h.put(ctx, m); err != nil {
		return nil, err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-h.stopped:
		select {
		case <-r.done:
		default:
			return nil, errStopped
		}
	}
	switch len(r.errs) {
	case 0:
		return r.entries, nil
	case 1:
		return r.entries, r.errs[0]
	}
	return r.entries, errors.Join(r.errs...)
}

// ask puts a question to the writer and waits for the answer.
func (h *Hub) ask(ctx context.Context, f func(w *writer) (answer func())) error {
	q := question{ask: f, placed: make(chan struct{})}
	select {
	case h.questions <- q:
	case <-ctx.Done():
		return ctx.Err()
	case <-h.stopped:
		return errStopped
	}
	select {
	case <-q.placed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-h.stopped:
		select {
		case <-q.placed:
			return nil
		default:
			return errStopped
		}
	}
}

// The kinds of observation, as Stats names them.
const (
	obsReport = iota
	obsAgentFailed
	obsRowHeartbeat
	obsRecord
	obsProbe
	obsRegistry
	obsOverride
	obsMaintenance
	obsTools
	obsConnection
	obsKinds
)

var obsNames = [obsKinds]string{
	"agent_report", "agent_failed", "row_heartbeat", "record", "probe", "registry", "override", "maintenance", "tools",
	"database_connection",
}

func kindOf(o statussync.Observation) int {
	switch o.(type) {
	case *statussync.AgentReport:
		return obsReport
	case *statussync.AgentFailed:
		return obsAgentFailed
	case *statussync.RowHeartbeat:
		return obsRowHeartbeat
	case *statussync.RecordSeen:
		return obsRecord
	case *statussync.ProbeResult:
		return obsProbe
	case *statussync.RegistryUpdate:
		return obsRegistry
	case *statussync.OverrideSet, *statussync.OverrideClear:
		return obsOverride
	case *statussync.DatabaseConnection:
		return obsConnection
	case *statussync.ToolsSeen, *statussync.ToolsPin, *statussync.ToolsUnpin:
		return obsTools
	}
	return obsMaintenance
}
