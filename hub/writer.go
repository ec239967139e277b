package hub

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
)

// Bounds of the writer's batches, and its rhythm (docs/domain.md, promise 1: evidence within 10 s, alive_at every 10 s).
const (
	maxBatchEntries      = 1024 // a batch that has this many takes no more messages
	maxBatchObservations = 8192
	maxBatchRecords      = 1024 // dirty records beside those of the entries' servers
	houseEvery           = 5 * time.Second
	aliveEvery           = 10 * time.Second
	minSleep             = time.Millisecond // a deadline that does not move must not become a busy loop
)

// writer is the first half of the hub: one goroutine owns it and the engine.
type writer struct {
	h   *Hub
	eng *engine.Engine
	j   statussync.Journal

	epoch statussync.Epoch
	seq   uint64 // of the newest entry that was sealed
	open  *batch // what is being concluded; not sealed yet

	// The append under way, of which there is at most one.
	flying    *flight
	work      chan *flight // to appendLoop
	appended  chan error   // from it, one for each flight
	confirmed statussync.Cursor

	volatile // store.go

	tail chan *published

	nextHouse time.Time // monotonic, like all times here that are not engine time
	nextAlive time.Time
	moreDirty bool
	timer     *time.Timer

	stopping bool
	stopBy   time.Time
	flushed  bool // everything was stored after the stop

	awake   time.Time // engine time by which the writer is to look at the clocks again
	behind  bool      // the wall clock is behind engine time; told once
	tickErr bool
	ids     []string
	json    []byte
}

// batch is what is concluded, made durable and told together.
type batch struct {
	eff          engine.Effects
	receipts     []claim
	answers      []func()
	notes        []statussync.Record
	observations int
	begun        time.Time
	ticked       bool // time passed: facts may have changed without an entry
	synced       bool // a registry, a database or an agent spoke
	started      bool // the first one: everybody may come when it is applied

	// From seal on.
	base    uint64 // Seq before the first entry
	entries []statussync.Encoded
	servers []serverUpdate
	envs    []environmentUpdate
	windows []statussync.MaintenanceView // nil: as before
}

// claim is which of a batch's entries a Submit caused: eff.Entries[from:to].
type claim struct {
	r        *receipt
	from, to int
}

// serverUpdate replaces a server of the view; state nil removes it.
type serverUpdate struct {
	id    string
	state *serverState
}

type environmentUpdate struct {
	id   string
	view *statussync.EnvironmentView
}

// published is a batch on its way to the reader. It is never changed after it was sent.
type published struct {
	epoch    statussync.Epoch
	base     uint64 // Seq before the first entry: the new beginning where epoch is a new one
	entries  []statussync.Encoded
	stored   uint64 // up to here the store has everything
	durable  bool
	servers  []serverUpdate
	envs     []environmentUpdate
	windows  []statussync.MaintenanceView
	requests []statussync.Request
	receipts []claim
	answers  []func()
	started  func()
}

func (b *batch) empty() bool {
	return b.observations == 0 && len(b.eff.Entries) == 0 && len(b.eff.Requests) == 0 && len(b.receipts) == 0 &&
		len(b.answers) == 0 && !b.ticked && !b.started
}

func (b *batch) full() bool {
	return len(b.eff.Entries) >= maxBatchEntries || b.observations >= maxBatchObservations
}

// restore reads the journal and makes the writer. After an error the hub can't run.
func (h *Hub) restore(ctx context.Context) (*writer, error) {
	j := h.opts.Journal
	noted := false
	n := 0
	for r, err := range j.Records(ctx) {
		if err != nil {
			return nil, fmt.Errorf("reading the stored evidence: %w", err)
		}
		if r.Kind == statussync.RecordHub {
			if noted = noted || r.ID == noteID; r.ID != noteID {
				h.notes.Store(r.ID, r.Data)
			}
			continue
		}
		if err := h.eng.Restore(r); err != nil {
			return nil, fmt.Errorf("restoring the %s %q: %w", r.Kind, r.ID, err)
		}
		n++
	}
	head, _ := j.Head()
	alive := j.AliveAt()
	_, lag := h.clock.look()
	h.clock.jump(lag) // the wall clock went on while nothing ran
	now := h.clock.now()
	if alive.After(now) {
		// The wall clock is behind the time at which we were alive before; engine time never goes back.
		h.log.Warn("the wall clock is behind the stored time; going on from the stored one", "stored", alive, "wall", now)
		h.clock.jump(alive.Sub(now))
		now = h.clock.now()
	}
	w := &writer{
		h: h, eng: h.eng, j: j, epoch: head.Epoch, seq: head.Seq, open: &batch{begun: time.Now(), started: true},
		work: make(chan *flight, 1), appended: make(chan error, 1), tail: make(chan *published, 16),
		timer: time.NewTimer(0),
	}
	w.durable = true
	h.count.durable.Store(true)
	if head.Epoch == "" || noted {
		w.epoch = nextEpoch(head.Epoch)
		h.count.epochs.Add(1)
		w.dropNote = noted
		if noted {
			h.log.Warn("an earlier run ended while it was recovering the store; a new epoch begins", "epoch", w.epoch)
		}
	}
	w.confirmed = statussync.Cursor{Epoch: w.epoch, Seq: w.seq}
	h.reader.seed(w.confirmed)
	w.eng.Start(now, alive, &w.open.eff)
	h.log.Info("restored", "records", n, "epoch", w.epoch, "seq", w.seq, "alive_at", alive)
	return w, nil
}

// run is the writer's loop. It returns when everything is stored after ctx has ended, or that took too long.
func (w *writer) run(ctx context.Context) error {
	defer w.timer.Stop()
	done := ctx.Done()
	for {
		w.tick()
		w.advance()
		if w.stopping {
			if over, err := w.finished(); over {
				return err
			}
		}
		d := w.sleep()
		w.awake = w.h.clock.now().Add(d)
		w.timer.Reset(d)
		inbox := w.h.inbox
		if w.open.full() {
			inbox = nil
		}
		select {
		case m := <-inbox:
			w.take(m)
			w.takeMore()
		case q := <-w.h.questions:
			w.open.answers = append(w.open.answers, q.ask(w), func() { close(q.placed) })
		case id := <-w.h.misses:
			if r := w.h.opts.Requester; r != nil {
				w.h.count.requests.Add(1)
				r.Do([]statussync.Request{{Probe: &statussync.ProbeNow{ServerID: id, Why: "stale"}}})
			}
		case err := <-w.appended:
			w.landed(err)
		case <-w.timer.C:
		case <-done:
			done = nil
			w.stop()
		}
	}
}

// now returns engine time, after it has taken notice of what happened to the clocks.
func (w *writer) now() time.Time {
	now, lag := w.h.clock.look()
	stood := time.Duration(0)
	if !w.awake.IsZero() {
		stood = now.Sub(w.awake)
	}
	switch {
	case lag > clockStep:
		w.h.clock.jump(lag)
		now = w.h.clock.now()
		w.h.count.clockJumps.Add(1)
		w.h.log.Warn("the wall clock went ahead: taken as a time without observations", "gap", lag)
		w.eng.Gap(now, lag, &w.open.eff)
		w.open.ticked = true
		w.behind = false
	case stood > clockStep:
		w.h.log.Warn("the process did not run: taken as a time without observations", "gap", stood)
		w.h.count.clockJumps.Add(1)
		w.eng.Gap(now, stood, &w.open.eff)
		w.open.ticked = true
	case lag < -clockStep && !w.behind:
		w.behind = true
		w.h.log.Warn("the wall clock went back; engine time goes on", "behind", -lag)
	case lag >= 0:
		w.behind = false
	}
	if now.After(w.awake) {
		w.awake = now
	}
	return now
}

// tick has the engine do what is due.
func (w *writer) tick() {
	now := w.now()
	w.tickAt(now)
}

func (w *writer) tickAt(now time.Time) {
	if at, ok := w.eng.Deadline(); !ok || at.After(now) {
		return
	}
	w.eng.Tick(now, &w.open.eff)
	w.open.ticked = true
	w.notes()
	if at, ok := w.eng.Deadline(); ok && !at.After(now) && !w.tickErr {
		w.tickErr = true
		w.h.log.Error("the engine's deadline stays in the past", "deadline", at, "now", now)
	}
}

// takeMore takes what waits in the inbox, so that it goes into one append.
func (w *writer) takeMore() {
	for !w.open.full() {
		select {
		case m := <-w.h.inbox:
			w.take(m)
		default:
			return
		}
	}
}

// take concludes from one message.
func (w *writer) take(m message) {
	w.h.taken(m)
	b := w.open
	if b.observations == 0 {
		b.begun = time.Now()
	}
	now := w.now()
	w.tickAt(now)
	entries, errs := len(b.eff.Entries), len(b.eff.Errors)
	if m.policy != nil {
		if err := w.eng.SetPolicy(now, *m.policy, &b.eff); err != nil { // it was checked before
			b.eff.Errors = append(b.eff.Errors, err)
		}
		b.ticked = true
	}
	if m.note != nil {
		b.notes = append(b.notes, *m.note)
	}
	for _, o := range m.obs {
		before := len(b.eff.Errors)
		w.eng.Step(now, w.translate(o, now), &b.eff)
		kind := kindOf(o)
		w.h.count.observations[kind].Add(1)
		switch o := o.(type) {
		case *statussync.AgentReport:
			b.synced = true
			if len(b.eff.Errors) == before {
				for _, s := range w.h.opts.ReportSinks {
					s.Report(o)
				}
			}
		case *statussync.RegistryUpdate, *statussync.RecordSeen:
			b.synced = true
		}
	}
	b.observations += max(1, len(m.obs))
	if failed := b.eff.Errors[errs:]; len(failed) > 0 {
		w.h.count.rejected.Add(uint64(len(failed)))
		if m.receipt != nil {
			m.receipt.errs = slices.Clone(failed)
		} else {
			for _, err := range failed {
				w.h.log.Debug("an observation was not taken", "error", err)
			}
		}
		clear(failed)
		b.eff.Errors = b.eff.Errors[:errs]
	}
	if m.receipt != nil {
		b.receipts = append(b.receipts, claim{r: m.receipt, from: entries, to: len(b.eff.Entries)})
	}
	w.notes()
}

// notes logs and counts what the engine noticed beside its conclusions.
func (w *writer) notes() {
	eff := &w.open.eff
	if eff.Foreign > 0 {
		w.h.count.foreign.Add(uint64(eff.Foreign))
		eff.Foreign = 0
	}
	for _, word := range eff.Unknown {
		w.h.count.unknownWords.Add(1)
		w.h.log.Info("an unknown container or record word; it asserts nothing", "word", statussync.CleanText(word, statussync.MaxWordText))
	}
	eff.Unknown = eff.Unknown[:0]
}

// translate returns o with its sender's clock readings in engine time. o itself is shared and stays as it is.
func (w *writer) translate(o statussync.Observation, now time.Time) statussync.Observation {
	switch o := o.(type) {
	case *statussync.ProbeResult:
		r := *o
		r.StartedAt, r.FinishedAt = w.h.clock.at(o.StartedAt, now), w.h.clock.at(o.FinishedAt, now)
		return &r
	case *statussync.AgentFailed:
		f := *o
		f.StartedAt = w.h.clock.at(o.StartedAt, now)
		return &f
	case *statussync.ToolsSeen:
		s := *o
		s.At = w.h.clock.at(o.At, now)
		return &s
	}
	return o
}

// sleep is how long nothing is to be done if nobody comes.
func (w *writer) sleep() time.Duration {
	mono := time.Now()
	next := w.nextHouse
	earlier := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	if w.flying != nil && !w.flying.late {
		earlier(w.flying.since.Add(w.h.opts.AppendTimeout))
	}
	if !w.durable && w.flying == nil {
		earlier(w.retryAt)
	}
	if w.stopping {
		earlier(w.stopBy)
	}
	d := next.Sub(mono)
	if at, ok := w.eng.Deadline(); ok {
		d = min(d, at.Sub(w.h.clock.now()))
	}
	return max(d, minSleep)
}

// advance moves everything on that can be moved without waiting.
func (w *writer) advance() {
	mono := time.Now()
	if w.flying != nil && !w.flying.late && !mono.Before(w.flying.since.Add(w.h.opts.AppendTimeout)) {
		w.overdue()
	}
	if !w.durable {
		if w.flying == nil || !w.flying.holds {
			if !w.open.empty() {
				b := w.seal()
				w.stash(b.notes)
				w.keepVolatile(b)
				w.publish(b)
			}
			if w.flying == nil && !mono.Before(w.retryAt) {
				w.resume()
			}
		}
		if !mono.Before(w.nextHouse) {
			w.nextHouse = mono.Add(houseEvery)
		}
		return
	}
	if w.flying != nil {
		return
	}
	house := !mono.Before(w.nextHouse) || w.moreDirty || (w.stopping && !w.flushed)
	if w.open.empty() && !house && !w.dropNote {
		return
	}
	b := w.seal()
	jb := &statussync.Batch{Entries: b.entries, Records: w.eng.DirtyFor(b.eff.Entries, nil)}
	jb.Records = append(jb.Records, b.notes...)
	if house {
		// At the stop, too: all of a large fleet in one batch would take too long, and count as a failure.
		jb.Records, w.moreDirty = w.eng.Dirty(jb.Records, maxBatchRecords)
		w.nextHouse = mono.Add(houseEvery)
		if !mono.Before(w.nextAlive) || w.stopping {
			jb.AliveAt = w.h.clock.now()
		}
	}
	if w.dropNote {
		jb.Records = append(jb.Records, statussync.Record{Kind: statussync.RecordHub, ID: noteID})
	}
	if b.started {
		jb.AliveAt = w.h.clock.now()
		jb.Epoch = w.epoch
	}
	if len(jb.Entries) == 0 && len(jb.Records) == 0 && jb.AliveAt.IsZero() {
		w.publish(b)
		w.flushed = w.flushed || w.stopping
		return
	}
	w.fly(&flight{batch: jb, told: b, flush: house && w.stopping && !w.moreDirty})
}

// seal ends the open batch: its entries get their positions and their encoding, and the view's next state is taken
// from the engine, which is now exactly at the batch's end.
func (w *writer) seal() *batch {
	b := w.open
	w.open = &batch{}
	b.base = w.seq
	if len(b.eff.Entries) > 0 {
		b.entries = make([]statussync.Encoded, 0, len(b.eff.Entries))
		for _, e := range b.eff.Entries {
			w.seq++
			e.Seq, e.Epoch, e.Timestamp = w.seq, w.epoch, e.Timestamp.Truncate(time.Millisecond)
			b.entries = append(b.entries, w.encode(e))
		}
	}
	w.ids = w.eng.Touched(w.ids[:0])
	if b.started {
		w.ids = slices.AppendSeq(w.ids[:0], w.eng.ServerIDs())
	}
	for _, id := range w.ids {
		u := serverUpdate{id: id}
		if s, ok := w.eng.Server(id); ok {
			st, _ := w.eng.Status(id)
			u.state = &serverState{server: s, status: st, probing: w.eng.Probing(id)}
		}
		b.servers = append(b.servers, u)
	}
	w.ids = w.eng.TouchedEnvironments(w.ids[:0])
	if b.started {
		w.ids = slices.AppendSeq(w.ids[:0], w.eng.EnvironmentIDs())
	}
	if len(w.ids) > 0 {
		now := w.h.clock.now()
		for _, id := range w.ids {
			u := environmentUpdate{id: id}
			if v, ok := w.eng.Environment(id, now); ok {
				u.view = &v
			}
			b.envs = append(b.envs, u)
		}
	}
	if w.eng.TouchedMaintenances() || b.started {
		b.windows = w.eng.Maintenances()
	}
	return b
}

func (w *writer) encode(e *statussync.Entry) statussync.Encoded {
	w.json = e.AppendJSON(w.json[:0])
	return statussync.Encoded{Entry: e, JSON: slices.Clone(w.json)}
}

// publish tells the requester, and then the reader. Everything of the batch is durable, or the epoch is volatile.
func (w *writer) publish(b *batch) {
	p := &published{
		epoch: w.epoch, base: b.base, entries: b.entries, stored: w.confirmed.Seq, durable: w.durable,
		servers: b.servers, envs: b.envs, windows: b.windows, requests: b.eff.Requests, receipts: b.receipts, answers: b.answers,
	}
	if b.started {
		p.started = func() { close(w.h.started) }
	}
	// The requester first: whoever is told of a server can have it checked.
	if len(b.eff.Requests) > 0 {
		w.h.count.requests.Add(uint64(len(b.eff.Requests)))
		if r := w.h.opts.Requester; r != nil {
			r.Do(b.eff.Requests)
		}
	}
	w.tail <- p
	w.h.count.entries.Add(uint64(len(b.entries)))
	if b.synced {
		w.h.lastSync.Store(&syncMark{at: w.h.clock.now(), took: time.Since(b.begun)})
	}
}

// stop begins the end: nothing new is taken, what is in the inbox is concluded from.
func (w *writer) stop() {
	w.stopping = true
	w.stopBy = time.Now().Add(stopWithin)
	w.retryAt = time.Now()
	w.h.closeIntake()
	for {
		select {
		case m := <-w.h.inbox:
			w.take(m)
		default:
			return
		}
	}
}

// finished reports whether the stop is complete, or can't be completed.
func (w *writer) finished() (over bool, err error) {
	if w.durable && w.flushed && w.flying == nil && w.open.empty() {
		return true, nil
	}
	if time.Now().Before(w.stopBy) && !w.stopFailed {
		return false, nil
	}
	if w.durable {
		return true, fmt.Errorf("stopped, but the store did not take the last evidence within %v", stopWithin)
	}
	return true, fmt.Errorf("stopped, but the store did not take everything (%d entries were told under the volatile epoch %s): %w",
		len(w.backlog), w.epoch, w.cause)
}
