package statussync

import (
	"context"
	"iter"
	"time"
)

// Observer takes observations in. The hub is one.
//
// The engine's time is the hub's: it starts at the wall clock, never goes back, and stands in every entry. Senders give
// time.Now() values; the hub translates them.
type Observer interface {
	// Observe hands observations over, in order. It blocks while the inbox is full, until there is room or ctx ends.
	// When it returns nil they will be concluded from, but may not have been yet.
	Observe(ctx context.Context, obs ...Observation) error
	// TryObserve is Observe without waiting: where the inbox has no room for all, none is taken and the error has
	// CodeUnavailable.
	TryObserve(obs ...Observation) error
	// Submit hands observations over and waits until what follows from them is in the journal and visible to readers.
	// It returns the updates that they caused. Errors name what was wrong with an observation (CodeNotFound for an
	// unknown server, CodeInvalid, CodeConflict); the others are then still taken.
	Submit(ctx context.Context, obs ...Observation) ([]*Entry, error)
}

// Source is a long-lived part that observes. Run blocks until ctx ends (it then returns nil) or the source cannot go
// on. It must join every goroutine that it started before it returns.
type Source interface {
	Run(ctx context.Context, to Observer) error
}

// Prober asks one server once. It returns within p.Timeout (plus scheduling) and when ctx ends, never blocks longer,
// and never panics on what a server answers. It is safe for concurrent use.
type Prober func(ctx context.Context, p *ProbePlan) ProbeResult

// Requester is told what the engine wants done. Do must not block and must not call back; requests of one server or
// environment come in order. The slice is reused after Do returns, what its elements point to is not.
type Requester interface {
	Do(reqs []Request)
}

// ReportSink is told of agent reports as they came, after they were accepted. Report must not block.
type ReportSink interface {
	Report(r *AgentReport)
}

// Encoded is an entry with its one encoding. Both are immutable.
type Encoded struct {
	*Entry
	JSON []byte // Entry.AppendJSON
}

// RecordKind says whose memory a Record is.
type RecordKind string

// The kinds of record.
const (
	RecordServer      RecordKind = "server"      // also kept for removed servers, whose version goes on counting
	RecordEnvironment RecordKind = "environment" //
	RecordEngine      RecordKind = "engine"      // ID is empty: learned facts that belong to nobody
	RecordMaintenance RecordKind = "maintenance" // a window
	RecordTools       RecordKind = "tools"       // the tools of a server, and which are pinned
	RecordHub         RecordKind = "hub"         // the hub's own notes; the engine never sees them
)

// Record is what the engine wants to find again after a restart: evidence, verdicts, deadlines, definitions. Its data
// is the engine's own affair.
type Record struct {
	Kind RecordKind
	ID   string
	Data []byte // nil: delete
}

// Batch is what one Journal.Append makes durable at once.
type Batch struct {
	// Entries continue the journal: their Seq count up by one from the head's, and all have the same Epoch. An Epoch
	// that differs from the head's begins it; Seq go on counting across epochs.
	Entries []Encoded
	// Records are stored in the same transaction.
	Records []Record
	// AliveAt, if not zero, is engine time at which the service was alive.
	AliveAt time.Time
	// Epoch, if not empty, becomes the head's even where there are no entries.
	Epoch Epoch
	// Replace, if not zero, is the position after which stored entries were never told to anybody (an append that was
	// given up may yet have succeeded): they are deleted first, in the same transaction.
	Replace Cursor
}

// Journal is the ordered, durable log of entries and the memory beside it. One goroutine appends; reads may happen at
// any time beside it. statussynctest.Journal is the suite that every implementation passes.
type Journal interface {
	// Head returns the position of the newest entry, and of the newest that retention has deleted (Seq 0: none).
	// It answers from memory.
	Head() (head, deleted Cursor)
	// Append makes a batch durable, whole or not at all. It returns once a crash of the process can't lose it; whether
	// a crash of the machine can is the store's setting. CodeConflict: the entries do not continue the head.
	Append(ctx context.Context, b *Batch) error
	// Read appends to buf up to limit entries after the position, oldest first. CodeExpired: entries after it are
	// deleted, or it is of another epoch than the head's, or it lies beyond the head.
	Read(ctx context.Context, after Cursor, limit int, buf []Encoded) ([]Encoded, error)
	// History returns entries of one server, newest first, across epochs.
	History(ctx context.Context, q HistoryQuery) ([]Encoded, error)
	// Records yields every stored record, in no order. After an error it stops.
	Records(ctx context.Context) iter.Seq2[Record, error]
	// AliveAt is the newest stored Batch.AliveAt as it was when the store was opened; zero for a new store.
	AliveAt() time.Time
}

// HistoryQuery selects entries of one server.
type HistoryQuery struct {
	ServerID string
	From, To time.Time // From ≤ timestamp < To; zero: unbounded
	Before   uint64    // only Seq below it; 0: unbounded
	Kind     Kind      // only this one; empty: every
	Limit    int       // at least 1
}

// EventType says what an Event is; the values are the wire's "type".
type EventType string

// The events of a subscription. EventEntry stands for the entry's own kind ("status_update" for KindStatus).
const (
	EventSubscribed  EventType = "subscribed"
	EventSnapshot    EventType = "snapshot"
	EventSnapshotEnd EventType = "snapshot_end"
	EventResync      EventType = "resync"
	EventEntry       EventType = "entry"
)

// ResyncReason says why a subscriber's position could not be continued.
type ResyncReason string

// The resync reasons.
const (
	ResyncExpired ResyncReason = "expired" // retention has passed the cursor
	ResyncEpoch   ResyncReason = "epoch"   // the cursor is of another log
)

// Mode is how a subscriber wants entries.
type Mode string

// The modes.
const (
	ModeEvery  Mode = "every"  // each entry, in order
	ModeLatest Mode = "latest" // the newest per server; versions may skip
)

// SubscribeRequest is what a subscriber asks for.
type SubscribeRequest struct {
	Filter   Filter
	Cursor   Cursor // resume after it; zero: from now
	Snapshot bool   // current statuses first; implies Filter.Leave
	Mode     Mode   // "" is every
}

// Event is one thing that a subscriber is told. Which fields are set depends on Type.
type Event struct {
	Type   EventType
	Cursor Cursor // subscribed, snapshot_end, entry: valid from here on

	Entry *Entry // entry; shared and immutable
	JSON  []byte // entry: its one encoding; shared and immutable

	Items  []ServerView // snapshot: one page
	More   bool         // snapshot: another page follows
	Reason ResyncReason // resync

	Recovered bool // subscribed: the cursor given is continued without a gap
	Durable   bool // subscribed: the store is working
}

// Subscription is a position in the journal and a filter. Its methods may be called by one goroutine at a time, except
// Close, which any may call at any time.
type Subscription interface {
	// Next blocks until there is something to tell, appends as much of it to buf as there is, up to cap(buf)-len(buf)
	// (at least one), and returns. The first event is always "subscribed". It returns ctx's error when ctx ends, and
	// an Error with CodeUnavailable after Close or when the hub stops.
	Next(ctx context.Context, buf []Event) ([]Event, error)
	// Bookmark returns the position up to which everything that matches has been returned by Next; ok is false while
	// something that matches is waiting, or a snapshot is under way.
	Bookmark() (at Cursor, ok bool)
	// Close ends the subscription. A blocked Next returns.
	Close()
}

// ServerView is a server with what is concluded about it. It is a value of its own, but Server, and what it points to,
// is shared.
type ServerView struct {
	Server  *Server
	Status  Status
	Probing Probing   // in effect; the zero value where that is not known
	Now     time.Time // engine time at which it was read: ages and uptime are counted to it
}

// Probing is how a server is probed in effect: its definition, completed by the policy and by what is known of its
// address.
type Probing struct {
	Kind     ProbeKind     // ProbeNone: it is not probed; the other fields are then zero
	URL      string        // whole; its query may hold a secret
	Interval time.Duration // of a running server; other states have cadences of their own
}

// AgentState is how an environment's agent is doing.
type AgentState string

// The agent states.
const (
	AgentNone      AgentState = "none"       // has no agent
	AgentNeverSeen AgentState = "never_seen" // should have one; it never reported
	AgentOK        AgentState = "ok"
	AgentLate      AgentState = "late"
	AgentLost      AgentState = "lost"
)

// EnvironmentView is an environment with what its agent told last.
type EnvironmentView struct {
	Environment   *Environment
	Agent         AgentState
	AgentVersion  string
	LastHeartbeat time.Time     // zero: never
	HeardVia      ReportVia     // how the report of LastHeartbeat came; empty: never, or from the platform's database
	Interval      time.Duration // between heartbeats, as learned
	LateAfter     time.Duration
	LostAfter     time.Duration
	System        *SystemStatus
	Servers       int
	Discovered    []Discovered
	Now           time.Time
}

// Discovered is a container that an agent listed and no server claims.
type Discovered struct {
	EnvironmentID string
	Container     string
	Image         string
	Word          string
	Text          string
	PublicPort    int
	LastSeen      time.Time
}

// MaxDiscovered bounds the discovered containers that are kept of one environment.
const MaxDiscovered = 200

// Explanation is enough to recompute a status by hand.
type Explanation struct {
	Now      time.Time
	Status   Status
	Evidence []ExplainedEvidence
	Rules    []ExplainedRule
}

// ExplainedEvidence is one piece of evidence as it counts at that moment.
type ExplainedEvidence struct {
	Kind       string // container, heartbeat, record, probe, tools, override, maintenance, desired
	Value      string
	AssertedAt time.Time // zero: never
	Fresh      bool
}

// ExplainedRule is one rule of docs/domain.md and what it gave.
type ExplainedRule struct {
	Rule   string // "1 base state", "2 deadline", "3a" … "3l", "4 flapping", "5 override", "6 maintenance"
	State  State  // empty: says nothing of it
	Health Health // empty: gave nothing
	Reason Reason
	Won    bool
	Why    string
}

// ServerQuery selects servers of the current view. Nil lists are absent; fields combine with "and".
type ServerQuery struct {
	States         []State
	Healths        []Health
	Availabilities []Availability
	EnvironmentIDs []string
	Labels         map[string]string
	Text           string // case-insensitive, in id, name, endpoint, container
	After          string // only ids after it, in byte order
	Limit          int    // at least 1
}

// SyncMetrics are the numbers that the original service reported, and keeps reporting.
type SyncMetrics struct {
	TotalServers  int
	ActiveServers int // running
	ErrorServers  int // unhealthy or in state error
	LastSync      time.Time
	SyncDuration  time.Duration
	StatusChanges uint64 // updates journaled since start
	Subscriptions int
	CacheHits     uint64
	CacheMisses   uint64
}

// CheckResult is what a check on demand of one server gave.
type CheckResult struct {
	ServerID string
	Result   ProbeResult
	View     ServerView // after the result was concluded from
	Err      error      // this server could not be checked; the others go on
}

// Readiness is whether the service can do all that it promises.
type Readiness struct {
	Durable   bool    // the store takes entries; otherwise a volatile epoch is open
	Head      Cursor  // the newest entry
	InboxUsed float64 // share of the inbox that is full, 0 to 1
	Detail    string  // what is wrong, for people; empty when nothing is
}
