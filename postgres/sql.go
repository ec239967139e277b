package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync"
)

// SQLOptions of an SQLRegistry.
type SQLOptions struct {
	DSN   string // secret; required
	Query string // required; see SQLColumns
	// Resync is how often it is asked. Default DefaultResync, at least 1 s.
	Resync time.Duration
	Origin statussync.Origin // of what is defined here; required
	// Connection is told when the database can be read and when it cannot any more, by one goroutine; it must not block.
	Connection func(connected bool)
	Logger     *slog.Logger // nil: discards
}

// SQLColumns are the columns that the query of an SQLRegistry may give, by name; any others are left out. id is required.
// labels and capabilities are JSON objects, disabled is a boolean, status is a word as in status_on_toolbox, error goes with
// it, and heartbeat_at is when the server's agent was last heard.
var SQLColumns = []string{
	"id", "name", "environment_id", "owner", "container", "endpoint", "transport", "type", "desired", "labels", "capabilities",
	"disabled", "status", "error", "heartbeat_at",
}

// sqlTimeout bounds one question, connecting included.
const sqlTimeout = 30 * time.Second

// maxSQLRows bounds the answer of the query.
const maxSQLRows = 1_000_000

// SQLRegistry is a Source: any table of a PostgreSQL database, as one query gives it. It is asked again and again. Its
// methods are safe for concurrent use; Run is called once.
type SQLRegistry struct {
	o     SQLOptions
	log   *slog.Logger
	syncs chan *syncRequest

	mu sync.Mutex
	st Status
}

// NewSQL checks the options and connects to nothing. Errors are *statussync.Error with CodeInvalid.
func NewSQL(o SQLOptions) (*SQLRegistry, error) {
	switch {
	case o.DSN == "":
		return nil, statussync.Invalid("dsn", "is required")
	case strings.TrimSpace(o.Query) == "":
		return nil, statussync.Invalid("query", "is required")
	case o.Origin == "":
		return nil, statussync.Invalid("origin", "is required")
	case o.Resync == 0:
		o.Resync = DefaultResync
	case o.Resync < time.Second:
		return nil, statussync.Invalid("resync", "must be at least 1s")
	}
	if _, err := pgx.ParseConfig(o.DSN); err != nil {
		return nil, dsnError(err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &SQLRegistry{o: o, log: o.Logger.With("component", "sql"), syncs: make(chan *syncRequest), st: Status{Feed: statussync.FeedDown}}, nil
}

// Status tells how it is doing. It answers from memory.
func (r *SQLRegistry) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.st
	st.Faults = slices.Clone(st.Faults)
	return st
}

// Sync asks now, and returns the updates that this caused and the rows that can't be used. CodeUnavailable: the database
// can't be read. Run must be running.
func (r *SQLRegistry) Sync(ctx context.Context) ([]*statussync.Entry, []RowFault, error) {
	q := &syncRequest{ctx: ctx, reply: make(chan syncReply, 1)}
	late := func() error {
		return statussync.NewError(statussync.CodeUnavailable, "the database was not read: there was no time left", ctx.Err())
	}
	select {
	case r.syncs <- q:
	case <-ctx.Done():
		return nil, nil, late()
	}
	select {
	case a := <-q.reply:
		return a.out.updates, r.Status().Faults, a.err
	case <-ctx.Done():
		return nil, nil, late()
	}
}

// Run implements statussync.Source.
func (r *SQLRegistry) Run(ctx context.Context, to statussync.Observer) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	known := 0
	for retry, reads := 0, uint64(1); ; reads++ {
		var asked *syncRequest
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case asked = <-r.syncs:
		}
		began := time.Now()
		f, err := r.read(ctx)
		if err == nil && lost(known-len(f.update.Servers), known) { // a mass that is gone is read twice before it is believed
			pause := time.NewTimer(settleWait)
			select {
			case <-ctx.Done():
			case <-pause.C:
				f, err = r.read(ctx)
			}
			pause.Stop()
		}
		if ctx.Err() != nil {
			return nil
		}
		var updates []*statussync.Entry
		if err == nil {
			if updates, err = r.submit(ctx, to, f, reads); err != nil {
				return err
			}
			known, retry = len(f.update.Servers), 0
			r.well(f, began)
			timer.Reset(r.o.Resync)
		} else {
			r.failed(err)
			timer.Reset(time.Duration(rand.Int64N(int64(min(retryMax, retryFirst<<min(retry, 10)))) + 1))
			retry++
		}
		if asked != nil {
			if err != nil {
				err = statussync.NewError(statussync.CodeUnavailable, "the database was not read: "+errorText(err), nil)
			}
			asked.reply <- syncReply{out: outcome{updates: updates}, err: err}
		}
	}
}

// sqlFound is one answer of the query.
type sqlFound struct {
	update statussync.RegistryUpdate
	after  []statussync.Observation
	faults []RowFault
	count  int
}

func (f *sqlFound) fault(id, detail string) {
	f.count++
	if len(f.faults) < maxFaults {
		f.faults = append(f.faults, RowFault{ID: statussync.CleanText(id, statussync.MaxWordText), Detail: detail})
	}
}

// read asks the query once, on a connection of its own: it is seldom.
func (r *SQLRegistry) read(ctx context.Context) (*sqlFound, error) {
	ctx, cancel := context.WithTimeout(ctx, sqlTimeout)
	defer cancel()
	c, err := pgx.ParseConfig(r.o.DSN)
	if err != nil {
		return nil, dsnError(err)
	}
	c.ConnectTimeout = DefaultConnectTimeout
	c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol // everything comes as text
	c.RuntimeParams["application_name"] = "statussync"
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(end) // it only read
	}()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly}) // a query, not a change
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback(ctx) }() // before the connection is closed
	rows, err := tx.Query(ctx, r.o.Query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	f := &sqlFound{update: statussync.RegistryUpdate{Origin: r.o.Origin, Full: true}}
	at := map[string]int{}
	for i, d := range rows.FieldDescriptions() {
		if _, twice := at[d.Name]; !twice && slices.Contains(SQLColumns, d.Name) {
			at[d.Name] = i
		}
	}
	if _, ok := at["id"]; !ok {
		return nil, statussync.Invalid("query", "gives no column id")
	}
	seen := map[string]bool{}
	for n := 0; rows.Next(); n++ {
		if n >= maxSQLRows {
			return nil, statussync.Invalid("query", "gives more than 1,000,000 rows")
		}
		raw := rows.RawValues()
		r.row(f, func(column string) string {
			if i, ok := at[column]; ok {
				return string(raw[i])
			}
			return ""
		}, seen)
	}
	return f, rows.Err()
}

// row takes one row. What of it can't be used is named and left out.
func (r *SQLRegistry) row(f *sqlFound, get func(column string) string, seen map[string]bool) {
	id := get("id")
	if fault := faultOfID(id); fault != "" {
		f.fault(id, fault)
		return
	}
	if seen[id] {
		f.fault(id, "another row has the same id")
		return
	}
	seen[id] = true
	text := func(column string) string { return statussync.CleanText(get(column), statussync.MaxNameText) }
	s := statussync.Server{
		ID: id, Name: text("name"), EnvironmentID: get("environment_id"), Owner: text("owner"), Container: text("container"),
		Endpoint: get("endpoint"), Transport: statussync.Transport(get("transport")), Type: text("type"),
		Desired: statussync.Desired(get("desired")), Origin: r.o.Origin, Disabled: get("disabled") == "t" || get("disabled") == "true",
	}
	if s.Name == "" {
		s.Name = id
	}
	if s.EnvironmentID != "" && faultOfID(s.EnvironmentID) != "" {
		f.fault(id, "its environment_id "+faultOfID(s.EnvironmentID))
		s.EnvironmentID = ""
	}
	if s.Transport == "" {
		s.Transport = statussync.TransportStreamableHTTP
	}
	if !s.Transport.Valid() {
		f.fault(id, "its transport is none of streamable-http, sse, http, stdio")
		s.Transport = statussync.TransportStreamableHTTP
	}
	switch s.Desired {
	case "", statussync.DesiredRunning, statussync.DesiredStopped:
	default:
		f.fault(id, "its desired is neither running nor stopped")
		s.Desired = ""
	}
	if s.Endpoint != "" {
		if u, err := url.Parse(s.Endpoint); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || len(s.Endpoint) > 4096 || strings.ContainsFunc(s.Endpoint, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			f.fault(id, "its endpoint is no http or https URL")
			s.Endpoint = ""
		}
	}
	if v := get("labels"); v != "" {
		if len(v) > maxDetails || json.Unmarshal([]byte(v), &s.Labels) != nil {
			f.fault(id, "its labels are no JSON object of texts")
			s.Labels = nil
		}
	}
	if v := get("capabilities"); v != "" {
		if len(v) > maxDetails || json.Unmarshal([]byte(v), &s.Capabilities) != nil {
			f.fault(id, "its capabilities are no JSON object")
			s.Capabilities = nil
		}
	}
	f.update.Servers = append(f.update.Servers, s)
	if w := get("status"); w != "" {
		f.after = append(f.after, &statussync.RecordSeen{ServerID: id, Word: statussync.CleanText(w, statussync.MaxWordText), Error: statussync.CleanText(get("error"), statussync.MaxErrorText)})
	}
	if h := get("heartbeat_at"); h != "" {
		if at, ok := timeOf([]byte(h)); ok {
			f.after = append(f.after, &statussync.RowHeartbeat{ServerID: id, At: at})
		} else {
			f.fault(id, "its heartbeat_at is no time")
		}
	}
}

// submit hands over what was found. Ids that another registry defines are faults; what the rows say of those is dropped.
func (r *SQLRegistry) submit(ctx context.Context, to statussync.Observer, f *sqlFound, read uint64) ([]*statussync.Entry, error) {
	updates, err := to.Submit(ctx, &f.update)
	foul := map[string]bool{}
	for _, e := range joined(err) {
		var se *statussync.Error
		if !errors.As(e, &se) || se.Location == "" {
			if ctx.Err() != nil {
				return nil, nil
			}
			return nil, e
		}
		foul[se.Location] = true
		f.fault(se.Location, se.Detail)
	}
	for i := 0; i < len(f.after); i += chunk {
		var obs []statussync.Observation
		for _, o := range f.after[i:min(len(f.after), i+chunk)] {
			switch o := o.(type) {
			case *statussync.RecordSeen:
				if foul[o.ServerID] {
					continue
				}
			case *statussync.RowHeartbeat:
				if o.Read = read; foul[o.ServerID] {
					continue
				}
			}
			obs = append(obs, o)
		}
		more, err := to.Submit(ctx, obs...)
		if err != nil && statussync.CodeOf(err) == statussync.CodeUnavailable {
			if ctx.Err() != nil {
				return nil, nil
			}
			return nil, err
		}
		updates = append(updates, more...)
	}
	return updates, nil
}

// joined takes joined errors apart.
func joined(err error) []error {
	if err == nil {
		return nil
	}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range j.Unwrap() {
			out = append(out, joined(e)...)
		}
		return out
	}
	return []error{err}
}

func (r *SQLRegistry) well(f *sqlFound, began time.Time) {
	r.mu.Lock()
	was := r.st.Feed
	again := r.st.Syncs > 0 && was == statussync.FeedDown
	r.st.Feed, r.st.FeedCause, r.st.LastError = statussync.FeedPolling, "the query is asked every "+r.o.Resync.String(), ""
	r.st.LastSync, r.st.SyncTook = time.Now(), time.Since(began)
	r.st.Syncs++
	r.st.Queries++
	r.st.Servers, r.st.Faults, r.st.FaultsCount = len(f.update.Servers), f.faults, f.count
	if again {
		r.st.Reconnects++
	}
	r.mu.Unlock()
	if was == statussync.FeedDown {
		r.log.Info("the query was answered", "servers", len(f.update.Servers), "faults", f.count)
		if r.o.Connection != nil {
			r.o.Connection(true)
		}
	}
}

func (r *SQLRegistry) failed(err error) {
	text := errorText(err)
	r.mu.Lock()
	news := text != r.st.LastError
	was := r.st.Feed
	r.st.Feed, r.st.LastError = statussync.FeedDown, text
	r.st.Queries++
	first := r.st.Syncs == 0 && r.st.Queries == 1
	r.mu.Unlock()
	if news {
		r.log.Warn("the query was not answered; trying again", "error", text)
	}
	if (was != statussync.FeedDown || first) && r.o.Connection != nil {
		r.o.Connection(false)
	}
}
