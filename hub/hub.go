// Package hub is the embeddable service: it takes observations in, has the engine conclude, journals what follows and
// tells everybody who subscribed.
//
// # Two halves
//
// The writer is one goroutine that owns one engine: bounded inbox → engine → entries with consecutive Seq → one
// Journal.Append for all that waited (group commit) → published. The reader is another one that applies what was
// published to the status view, the ring of encoded entries and the subscriptions. They meet only in the channel of
// published batches.
//
// # Guarantees
//
// Order: entries are journaled and told in the order in which they were concluded. Observations of one caller are
// concluded from in their order.
//
// Durable before told: no entry, view, receipt or request is seen by anybody before the batch that it belongs to is in
// the journal, except in a volatile epoch (below). While one batch is being appended the next is concluded.
//
// Read your write: when Submit, SetOverride, ClearOverride or CheckNow returns, every read of the hub sees what
// followed.
//
// Volatile epoch: when an append fails or takes longer than Options.AppendTimeout, the hub goes on without the store
// under a new epoch. Subscribers get a resync (reason epoch) and a snapshot in-band; Ready and "subscribed" say
// durable=false. When the store is back, the entries told meanwhile are appended under that epoch if the hub still has
// them all (at most RingSize), otherwise another epoch begins. A note in the store, kept from the first of these appends
// to the first after the last, makes a hub that starts from a half-finished recovery begin a new epoch. An append that
// hangs holds one goroutine and no more.
//
// Blocking: the hub never waits for a subscriber, a sink or the requester. Observe and Submit wait while the inbox is
// full. Queries answer from memory, but History, and Updates and subscriptions that lie behind the ring, read the store.
//
// Loss: nothing that was taken by Observe is lost while the process lives. A subscription is a position, not a queue:
// a slow one loses nothing but is fed from the store, and where that no longer reaches it is told to resync. In
// ModeLatest it is fed the newest entry of each server from memory: it never ends with anything but the final state.
//
// Bounds: the inbox (Options.InboxSize), the ring (Options.RingSize), the subscriptions (Options.MaxSubscriptions), and
// the view and what a subscription in ModeLatest has before it by the servers that registries define.
package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
)

// Defaults of Options.
const (
	DefaultInboxSize        = 16384
	DefaultRingSize         = 65536
	DefaultAppendTimeout    = time.Second
	DefaultMaxSubscriptions = 50000
)

// Options says what a Hub works with. Only Journal is required.
type Options struct {
	// Journal is where entries and evidence are kept. The hub is its only writer; closing it after Run has returned is
	// its owner's affair.
	Journal statussync.Journal
	// Policy holds the numbers of the rules. The zero Policy stands for engine.DefaultPolicy().
	Policy engine.Policy
	// Requester is told what the engine wants probed or asked. nil: requests are dropped, nothing is probed. Do is called
	// by one goroutine.
	Requester statussync.Requester
	// ReportSinks are told of every agent report that the engine took, in order, by one goroutine.
	ReportSinks []statussync.ReportSink
	// Checker probes on demand. nil: CheckNow and CheckAll answer CodeUnavailable.
	Checker Checker
	// Logger: nil logs nothing. The hub adds component=hub.
	Logger *slog.Logger
	// InboxSize bounds the observations that wait; a large one counts as several (one for each 4 KiB or 16 containers
	// of a report, 16 definitions of a registry). 0: DefaultInboxSize.
	InboxSize int
	// RingSize is how many of the newest entries are kept in memory, and how many entries a volatile epoch may hold
	// until the store is back. 0: DefaultRingSize.
	RingSize int
	// AppendTimeout is how long an append may take before a volatile epoch begins. 0: DefaultAppendTimeout.
	AppendTimeout time.Duration
	// Recurrence reads the rules of recurring maintenance windows; recur.Parse does. nil: such windows are refused, and a
	// journal that holds one can't be restored.
	Recurrence statussync.RecurrenceParser
	// MaxSubscriptions bounds the subscriptions that are open. 0: DefaultMaxSubscriptions.
	MaxSubscriptions int
}

// Checker probes one server now. The probing scheduler is one.
type Checker interface {
	// Check probes the server, sharing a probe in flight, and returns the result, which has by then also been handed
	// to the hub's Observe. It returns when ctx ends. It is safe for concurrent use.
	Check(ctx context.Context, serverID string) (statussync.ProbeResult, error)
}

// CheckResult is what a check on demand of one server gave.
type CheckResult = statussync.CheckResult

// Readiness is whether the service can do all that it promises.
type Readiness = statussync.Readiness

// Hub is the service. All methods are safe for concurrent use.
type Hub struct {
	opts  Options
	log   *slog.Logger
	clock *clock
	eng   *engine.Engine // the writer's, once Run is called

	// Intake.
	inboxSize    int64
	room         *semaphore.Weighted
	inbox        chan message
	inboxUsed    atomic.Int64
	intake       sync.RWMutex // guards intakeClosed
	intakeClosed bool
	questions    chan question
	misses       chan string // ids that Server found too old

	reader *reader

	ran     atomic.Bool
	active  atomic.Bool
	started chan struct{}
	stopped chan struct{}

	trouble  atomic.Pointer[string] // why the store is not trusted now; nil: it is
	lastSync atomic.Pointer[syncMark]
	notes    sync.Map // of Remember: []byte by the record's id
	count    counters
}

var _ statussync.Observer = (*Hub)(nil)

// syncMark is when a registry, a database or an agent last told something, and how long it took to be visible.
type syncMark struct {
	at   time.Time
	took time.Duration
}

// counters are what Stats shows. All only grow.
type counters struct {
	observations [obsKinds]atomic.Uint64
	rejected     atomic.Uint64
	refused      atomic.Uint64
	foreign      atomic.Uint64
	unknownWords atomic.Uint64
	batches      atomic.Uint64
	entries      atomic.Uint64
	records      atomic.Uint64
	appendNanos  atomic.Uint64
	appendFails  atomic.Uint64
	epochs       atomic.Uint64
	clockJumps   atomic.Uint64
	requests     atomic.Uint64
	hits, misses atomic.Uint64
	durable      atomic.Bool
	backlog      atomic.Int64
}

// New checks the options and returns a Hub that has loaded nothing yet. An error names the field.
func New(o Options) (*Hub, error) { return newHub(o, machineClocks) }

func newHub(o Options, clocks func() (mono, wall time.Time)) (*Hub, error) {
	if o.Journal == nil {
		return nil, statussync.Invalid("Options.Journal", "is required")
	}
	for i, s := range o.ReportSinks {
		if s == nil {
			return nil, statussync.Invalid(fmt.Sprintf("Options.ReportSinks[%d]", i), "is nil")
		}
	}
	for _, f := range []struct {
		name string
		v    *int
		def  int
	}{
		{"InboxSize", &o.InboxSize, DefaultInboxSize},
		{"RingSize", &o.RingSize, DefaultRingSize},
		{"MaxSubscriptions", &o.MaxSubscriptions, DefaultMaxSubscriptions},
	} {
		if *f.v < 0 {
			return nil, statussync.Invalid("Options."+f.name, "must not be negative")
		}
		if *f.v == 0 {
			*f.v = f.def
		}
	}
	if o.AppendTimeout < 0 {
		return nil, statussync.Invalid("Options.AppendTimeout", "must not be negative")
	}
	if o.AppendTimeout == 0 {
		o.AppendTimeout = DefaultAppendTimeout
	}
	if reflect.ValueOf(o.Policy).IsZero() {
		o.Policy = engine.DefaultPolicy()
	}
	eng, err := engine.New(o.Policy)
	if err != nil {
		return nil, fmt.Errorf("hub: policy: %w", err)
	}
	eng.SetRecurrence(o.Recurrence)
	log := o.Logger
	if log == nil {
		log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	h := &Hub{
		opts:      o,
		log:       log.With("component", "hub"),
		clock:     newClock(clocks),
		eng:       eng,
		inboxSize: int64(o.InboxSize),
		room:      semaphore.NewWeighted(int64(o.InboxSize)),
		inbox:     make(chan message, o.InboxSize),
		questions: make(chan question),
		misses:    make(chan string, 256),
		started:   make(chan struct{}),
		stopped:   make(chan struct{}),
	}
	h.reader = newReader(o.Journal, o.RingSize, o.MaxSubscriptions, h.clock.now, h.log)
	return h, nil
}

// stopWithin bounds how long Run goes on after its context has ended.
const stopWithin = 5 * time.Second

// Run restores what the journal holds, serves until ctx ends, and then concludes from what is still in the inbox, stores
// everything that is not stored yet and closes all subscriptions; that takes at most 5 s. It returns nil after a clean
// stop, and an error when the journal could not be read at the start or did not take the last records at the end.
//
// Run may be called once. It joins every goroutine that it started, except one that a Journal.Append which ignores its
// context holds; that one ends when the append returns.
func (h *Hub) Run(ctx context.Context) error {
	if !h.ran.CompareAndSwap(false, true) {
		return errors.New("hub: Run may be called only once")
	}
	defer h.abandonInbox()
	defer close(h.stopped)
	defer h.closeIntake()

	w, err := h.restore(ctx)
	if err != nil {
		h.reader.stop()
		return err
	}
	var tail sync.WaitGroup
	tail.Go(func() { h.reader.run(w.tail) })
	appender := make(chan struct{})
	go func() {
		defer close(appender)
		w.appendLoop()
	}()
	h.active.Store(true)
	err = w.run(ctx)
	h.active.Store(false)
	close(w.work)
	if w.flying == nil {
		<-appender
	}
	close(w.tail)
	tail.Wait()
	h.reader.stop()
	return err
}

// abandonInbox gives back the room of messages that nobody will take, so that blocked callers learn that the hub has
// stopped.
func (h *Hub) abandonInbox() {
	for {
		select {
		case m := <-h.inbox:
			h.taken(m)
		default:
			return
		}
	}
}

// Started returns a channel that is closed when the hub has restored and is serving.
func (h *Hub) Started() <-chan struct{} { return h.started }

// Active reports whether the hub is serving.
func (h *Hub) Active() bool {
	select {
	case <-h.started:
		return h.active.Load()
	default:
		return false
	}
}

// Now returns engine time.
func (h *Hub) Now() time.Time { return h.clock.now() }
