package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
)

// maxPiece is how many observations, or servers of one registry, are concluded from at once.
const maxPiece = 1000

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

// messages is message in pieces: what may cause thousands of entries goes into the journal in batches that one append can
// hold, beside which others are taken. Nothing is concluded in another order.
func (h *Hub) messages(obs []statussync.Observation, wait bool) (ms []message, err error) {
	add := func(obs []statussync.Observation) {
		if err != nil {
			return
		}
		var r *receipt
		if wait {
			r = &receipt{done: make(chan struct{})}
		}
		var m message
		if m, err = h.message(obs, r); err == nil {
			ms = append(ms, m)
		}
	}
	if i := slices.Index(obs, nil); i >= 0 { // before anything of it is taken
		return nil, statussync.Invalid(fmt.Sprintf("observations[%d]", i), "is nil")
	}
	from := 0
	for i, o := range obs {
		u, ok := o.(*statussync.RegistryUpdate)
		if large := ok && len(u.Servers) > maxPiece; !large && i-from < maxPiece {
			continue
		}
		if i > from {
			add(obs[from:i])
		}
		from = i
		if !ok || len(u.Servers) <= maxPiece {
			continue
		}
		for at := 0; at < len(u.Servers); at += maxPiece {
			part := &statussync.RegistryUpdate{Origin: u.Origin, Servers: u.Servers[at:min(at+maxPiece, len(u.Servers))]}
			if at == 0 {
				part.Environments = u.Environments
			}
			add([]statussync.Observation{part})
		}
		if u.Full || len(u.RemovedServers)+len(u.RemovedEnvironments) > 0 { // all are known by then: what is not among them goes
			rest := *u
			if !u.Full {
				rest.Servers, rest.Environments = nil, nil
			}
			add([]statussync.Observation{&rest})
		}
		from = i + 1
	}
	if from < len(obs) || len(ms) == 0 {
		add(obs[from:])
	}
	return ms, err
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
	ms, err := h.messages(obs, false)
	if err != nil {
		return err
	}
	for _, m := range ms {
		if err := h.put(ctx, m); err != nil {
			return err
		}
	}
	return nil
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
// When ctx ends first, the observations that found room in the inbox are concluded from all the same.
func (h *Hub) Submit(ctx context.Context, obs ...statussync.Observation) ([]*statussync.Entry, error) {
	ms, err := h.messages(obs, true)
	if err != nil {
		return nil, err
	}
	return h.submit(ctx, ms...)
}

// submit puts messages with receipts into the inbox and waits for all receipts.
func (h *Hub) submit(ctx context.Context, ms ...message) ([]*statussync.Entry, error) {
	for _, m := range ms {
		if err := h.put(ctx, m); err != nil {
			return nil, err
		}
	}
	var entries []*statussync.Entry
	var errs []error
	for _, m := range ms {
		r := m.receipt
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
		entries, errs = append(entries, r.entries...), append(errs, r.errs...)
	}
	if len(errs) == 1 {
		return entries, errs[0]
	}
	return entries, errors.Join(errs...)
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
