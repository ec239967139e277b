// Package postgres makes the platform's PostgreSQL database a registry of statussync: its rows are servers and
// environments, what is changed in them is seen as it happens, and agents' reports are written back.
//
// What is promised: the database may be away at any time and for any time, also at the start; then nothing is lost but
// freshness, nobody waits, and everything is read again when it is back. A full read takes a number of queries that depends
// on nothing but the number of rows (one for each 10,000). Rows are untrusted: one that cannot be understood is named and
// counted, and the others go on.
package postgres

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/agentopia/statussync"
)

// FeedMode is how changes of rows are followed.
type FeedMode string

// The modes.
const (
	// FeedAuto listens where the triggers of Migrate are installed and a notification gets through, and polls otherwise.
	FeedAuto FeedMode = "auto"
	// FeedNotify is FeedAuto, but it is a warning when nothing can be listened to.
	FeedNotify FeedMode = "notify"
	// FeedPoll never listens: rows are read every Resync.
	FeedPoll FeedMode = "poll"
)

// Defaults and bounds of Options.
const (
	DefaultResync         = time.Minute
	DefaultConnectTimeout = 2500 * time.Millisecond
	DefaultAgentPort      = 30000 // where the platform's agents answer (docs/protocols.md §1)
)

// Options of a Registry.
type Options struct {
	// DSN is the database's address as a URL or in key=value form, with everything that pgx understands: TLS by sslmode and
	// its files, several hosts, connect_timeout, pool_max_conns. Required. It is secret.
	DSN string
	// Schema is where the platform's tables are. Default public.
	Schema string
	// Feed says how changes are followed. Default FeedAuto.
	Feed FeedMode
	// ChangeFeed, if not nil, is followed in place of what Feed says.
	ChangeFeed statussync.ChangeFeed
	// Resync is how often everything is read again whatever the feed told. Default DefaultResync, at least 1 s.
	Resync time.Duration
	// WriteBack writes agents' reports into their rows (docs/protocols.md §5).
	WriteBack bool
	// Origin of what is defined here. Default statussync.OriginPostgres.
	Origin statussync.Origin
	// AgentPort is where agents are asked on their environment's address. 0: DefaultAgentPort; below 0: they are not asked.
	AgentPort int
	// ConnectTimeout bounds one attempt to connect. Default: the DSN's connect_timeout, else DefaultConnectTimeout: short, so
	// that one that began just before the database came back doesn't delay everything.
	ConnectTimeout time.Duration
	// Agents is told of all agents' tokens, by their SHA-256, whenever they change; the map is the receiver's. It is called by
	// one goroutine and must not block. nil: nobody is.
	Agents func(environments map[[sha256.Size]byte]string)
	// Connection is told when the database can be read and when it cannot any more, beginning with the first success or
	// failure. It is called by one goroutine and must not block. nil: nobody is.
	Connection func(connected bool)
	// Known lists the servers and environments of Origin that the receiver of observations has before the first read, so
	// that what vanished from the database meanwhile is removed without telling everything anew. nil: the first read ends
	// with a RegistryUpdate that is Full, which costs more.
	Known func() (servers, environments []string)
	// Heard tells when the receiver last heard of an environment's agent, by the clock of who calls Report; zero: never. It is
	// asked during the first read, so that a heartbeat in a row that an earlier life of ours wrote is not taken for somebody
	// else's. It must not block. nil: nothing is known of an earlier life.
	Heard  func(environmentID string) time.Time
	Logger *slog.Logger // nil: discards
}

// RowFault is a row that could not be used, or not in full.
type RowFault struct {
	Table  string
	ID     string // may be empty
	Detail string // for people; holds no value longer than a word
}

// maxFaults bounds the faults that Status and Sync name; all are counted.
const maxFaults = 100

// Status is how a Registry is doing. It is a value of its own.
type Status struct {
	Feed      statussync.FeedState
	FeedCause string // why the feed is not live; empty while it is
	// Lag is how long the newest changes waited from when the feed told of them until they were handed over; Oldest is how
	// long what is not handed over yet has been waiting.
	Lag, Oldest time.Duration
	Reconnects  uint64 // how often the database, or its feed, was reached again after it was lost
	LastSync    time.Time
	SyncTook    time.Duration
	Syncs       uint64 // full reads
	Queries     uint64 // statements sent
	Changes     uint64 // changes that the feed told of

	Environments int
	Servers      int
	Faults       []RowFault // of the rows as they are, at most 100
	FaultsCount  int
	Missing      []string // columns and rights that are missed; what needs them is left out
	LastError    string   // of the database, for people; empty while all is well

	WriteBack WriteBackStatus
}

// WriteBackStatus is how the write-back of reports is doing.
type WriteBackStatus struct {
	Enabled    bool
	Reports    uint64 // taken
	Queued     int    // rows that wait to be written
	Oldest     time.Duration
	Rows       uint64 // rows written
	Batches    uint64 // round trips
	Failed     uint64 // rows that the database refused; they are dropped
	Skipped    uint64 // status words that were not written: the column's type lacks them, or a person's command is under way
	Foreign    uint64 // entries of reports that named a row of another environment
	Unknown    uint64 // reports of environments that the database does not have
	LastError  string
	LastWrite  time.Time
	HeldFailed uint64 // round trips that failed; their rows were queued again
}

// Registry is a Source, and a ReportSink. Its methods are safe for concurrent use; Run is called once.
type Registry struct {
	o    Options
	log  *slog.Logger
	pool *pgxpool.Pool
	feed statussync.ChangeFeed // nil: polling

	mail  *mailbox
	syncs chan *syncRequest
	fleet *knownRows
	wb    *writeBack

	queries    atomic.Uint64
	reconnects atomic.Uint64

	mu        sync.Mutex // of all below
	shape     *shape     // nil: not known yet
	feedLive  bool
	feedCause string
	reachable bool
	catching  bool
	lag       time.Duration
	lastSync  time.Time
	syncTook  time.Duration
	syncCount uint64
	lastError string
}

// New returns a Registry. It checks the options and does not connect: the service starts while the database is away.
// Errors are *statussync.Error with CodeInvalid; they never hold the DSN.
func New(o Options) (*Registry, error) {
	if o.DSN == "" {
		return nil, statussync.Invalid("dsn", "is required")
	}
	if o.Schema == "" {
		o.Schema = "public"
	}
	switch o.Feed {
	case "":
		o.Feed = FeedAuto
	case FeedAuto, FeedNotify, FeedPoll:
	default:
		return nil, statussync.Invalid("feed", "must be auto, notify or poll, not "+strconv.Quote(statussync.CleanText(string(o.Feed), 32)))
	}
	switch {
	case o.Resync == 0:
		o.Resync = DefaultResync
	case o.Resync < time.Second:
		return nil, statussync.Invalid("resync", "must be at least 1s")
	}
	if o.Origin == "" {
		o.Origin = statussync.OriginPostgres
	}
	if o.AgentPort == 0 {
		o.AgentPort = DefaultAgentPort
	}
	if o.AgentPort > 65535 {
		return nil, statussync.Invalid("agent_port", "must be at most 65535")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	pool, err := newPool(&o)
	if err != nil {
		return nil, err
	}
	r := &Registry{o: o, log: o.Logger.With("component", "postgres"), pool: pool, mail: newMailbox(), syncs: make(chan *syncRequest), feed: o.ChangeFeed}
	r.fleet = newKnownRows(&r.o)
	r.wb = newWriteBack(r)
	if r.feed == nil && o.Feed != FeedPoll {
		r.feed = &notifyFeed{r: r, config: pool.Config().ConnConfig.Copy()}
	}
	return r, nil
}

// newPool makes a pool that works through poolers in transaction mode: nothing is prepared, and no setting outlives a
// transaction.
func newPool(o *Options) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(o.DSN)
	if err != nil {
		return nil, dsnError(err)
	}
	if o.ConnectTimeout > 0 {
		c.ConnConfig.ConnectTimeout = o.ConnectTimeout
	} else if c.ConnConfig.ConnectTimeout == 0 || c.ConnConfig.ConnectTimeout == 2*time.Minute { // pgx's own default
		c.ConnConfig.ConnectTimeout = DefaultConnectTimeout
	}
	c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	c.ConnConfig.StatementCacheCapacity, c.ConnConfig.DescriptionCacheCapacity = 0, 0
	set := func(name, value string) {
		if _, given := c.ConnConfig.RuntimeParams[name]; !given {
			c.ConnConfig.RuntimeParams[name] = value
		}
	}
	set("application_name", "statussync")
	c.ConnConfig.RuntimeParams["datestyle"] = "ISO" // poolers know and pass on these two
	c.ConnConfig.RuntimeParams["timezone"] = "UTC"
	// Reading, writing and the keepalive have a connection each, and one is to spare; the DSN may say otherwise.
	if c.MaxConns > 4 && !hasPoolSize(o.DSN) {
		c.MaxConns = 4
	}
	c.MaxConns = max(c.MaxConns, 2) // a long read must not hold up the write-back
	c.MinConns = 0
	pool, err := pgxpool.NewWithConfig(context.Background(), c)
	if err != nil {
		return nil, dsnError(err)
	}
	return pool, nil
}

// Status tells how it is doing. It answers from memory.
func (r *Registry) Status() Status {
	s := Status{Queries: r.queries.Load(), Reconnects: r.reconnects.Load()}
	s.Changes, s.Oldest = r.mail.stats()
	s.Environments, s.Servers, s.Faults, s.FaultsCount = r.fleet.stats()
	s.WriteBack = r.wb.status()
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Feed, s.FeedCause = r.feedStateLocked(), r.feedCause
	s.Lag, s.LastSync, s.SyncTook, s.Syncs, s.LastError = r.lag, r.lastSync, r.syncTook, r.syncCount, r.lastError
	if r.shape != nil {
		s.Missing = r.shape.missing
	}
	return s
}

func (r *Registry) feedStateLocked() statussync.FeedState {
	switch {
	case !r.reachable:
		return statussync.FeedDown
	case !r.feedLive:
		return statussync.FeedPolling
	case r.catching:
		return statussync.FeedCatchingUp
	}
	return statussync.FeedLive
}

// Report takes an agent's report to be written into the rows that it tells of. It never blocks. What waits is the newest of
// each row.
func (r *Registry) Report(rep *statussync.AgentReport) { r.wb.report(rep, time.Now()) }
