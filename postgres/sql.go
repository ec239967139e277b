package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"regexp"
	"slices"
	"strconv"
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
	// Known lists the servers of Origin that the receiver of observations has before the first read, so that a mass of them
	// that is gone is read twice then, too. nil: none.
	Known  func() (servers []string)
	Logger *slog.Logger // nil: discards
}

// SQLColumns are the columns that the query of an SQLRegistry may give, by name. id is required; a column of another name is an
// error, because a misspelt one would leave what it defines out unseen. labels and capabilities are JSON objects, disabled is a
// boolean, status is a word as in status_on_toolbox, error goes with it, and heartbeat_at is when the server's agent was last
// heard. Those that begin with probe_ are the keys of probe in the configuration; durations are an interval, a number of
// seconds, or text such as 30s. A null is as if the column were not there.
var SQLColumns = []string{
	"id", "name", "environment_id", "owner", "container", "endpoint", "transport", "type", "desired", "labels", "capabilities",
	"disabled", "status", "error", "heartbeat_at",
	"probe_kind", "probe_url", "probe_path", "probe_interval", "probe_timeout", "probe_max_retries", "probe_backoff_multiplier",
	"probe_rise", "probe_start_grace", "probe_slow_after", "probe_expect",
}

// sqlTimeout bounds one question, connecting included.
const sqlTimeout = 30 * time.Second

// Bounds of the query's answer.
const (
	maxSQLRows  = 1_000_000
	maxSQLBytes = 512 << 20
)

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
	var known []string // the ids that were told
	if r.o.Known != nil {
		known = r.o.Known()
	}
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
		if err == nil && lost(f.lacks(known), len(known)) { // a mass that is gone is read twice before it is believed
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
			known, retry = known[:0], 0
			for i := range f.update.Servers {
				known = append(known, f.update.Servers[i].ID)
			}
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
	seen   map[string]bool // ids
	words  bool            // there is a column status
}

// fault names and counts a row.
func (f *sqlFound) fault(id string, details ...string) {
	if len(details) == 0 {
		return
	}
	f.count++
	if len(f.faults) < maxFaults {
		f.faults = append(f.faults, RowFault{ID: statussync.CleanText(id, statussync.MaxWordText), Detail: strings.Join(details, "; ")})
	}
}

// lacks counts which of the ids the answer does not have.
func (f *sqlFound) lacks(ids []string) (n int) {
	for _, id := range ids {
		if !f.seen[id] {
			n++
		}
	}
	return n
}

// beginSQL bounds the query at the server, too: one whose reader is gone must not go on.
var beginSQL = "begin read only; set local statement_timeout = " + strconv.FormatInt(sqlTimeout.Milliseconds(), 10)

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
	c.RuntimeParams["datestyle"], c.RuntimeParams["timezone"] = "ISO", "UTC" // poolers know and pass on these two
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(end) // it only read
	}()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{BeginQuery: beginSQL}) // a query, not a change
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback(ctx) }() // before the connection is closed
	rows, err := tx.Query(ctx, r.o.Query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var names []string
	for _, d := range rows.FieldDescriptions() {
		names = append(names, d.Name)
	}
	at, err := sqlColumns(names)
	if err != nil {
		return nil, err
	}
	f := &sqlFound{update: statussync.RegistryUpdate{Origin: r.o.Origin, Full: true}, seen: map[string]bool{}}
	_, f.words = at["status"]
	size := 0
	for n := 0; rows.Next(); n++ {
		raw := rows.RawValues()
		for _, v := range raw {
			size += len(v)
		}
		if n >= maxSQLRows || size > maxSQLBytes {
			return nil, statussync.Invalid("query", "gives more than 1,000,000 rows or 512 MiB")
		}
		r.row(f, func(column string) string {
			if i, ok := at[column]; ok {
				return string(raw[i])
			}
			return ""
		})
	}
	return f, rows.Err()
}

// sqlColumns tells where the columns are that a query gives. Its error names those that are of no use, all at once.
func sqlColumns(names []string) (at map[string]int, err error) {
	at = map[string]int{}
	var unknown, twice []string
	for i, name := range names {
		shown := strconv.Quote(statussync.CleanText(name, statussync.MaxWordText))
		if _, has := at[name]; has {
			twice = append(twice, shown)
		} else if !slices.Contains(SQLColumns, name) && len(unknown) < 10 {
			unknown = append(unknown, shown)
		}
		at[name] = i
	}
	switch {
	case len(unknown) > 0:
		return nil, statussync.Invalid("query", "gives columns that are not known here: "+strings.Join(unknown, ", ")+"; known are "+strings.Join(SQLColumns, ", "))
	case len(twice) > 0:
		return nil, statussync.Invalid("query", "gives more than one column "+strings.Join(twice, ", "))
	}
	if _, ok := at["id"]; !ok {
		return nil, statussync.Invalid("query", "gives no column id")
	}
	return at, nil
}

// row takes one row. What of it can't be used is named and left out.
func (r *SQLRegistry) row(f *sqlFound, get func(column string) string) {
	id := get("id")
	if fault := faultOfID(id); fault != "" {
		f.fault(id, fault)
		return
	}
	if f.seen[id] {
		f.fault(id, "another row has the same id")
		return
	}
	f.seen[id] = true
	var faults []string
	fault := func(detail string) { faults = append(faults, detail) }
	defer func() { f.fault(id, faults...) }()
	text := func(column string) string {
		v := get(column)
		clean := statussync.CleanText(v, statussync.MaxNameText)
		if clean != v {
			fault("its " + column + " holds characters that cannot be shown, or is longer than " + strconv.Itoa(statussync.MaxNameText) + " bytes")
		}
		return clean
	}
	s := statussync.Server{
		ID: id, Name: text("name"), EnvironmentID: get("environment_id"), Owner: text("owner"), Container: text("container"),
		Endpoint: get("endpoint"), Transport: statussync.Transport(get("transport")), Type: text("type"),
		Desired: statussync.Desired(get("desired")), Origin: r.o.Origin,
	}
	if s.Name == "" {
		s.Name = id
	}
	if s.EnvironmentID != "" && faultOfID(s.EnvironmentID) != "" {
		fault("its environment_id " + strings.TrimPrefix(faultOfID(s.EnvironmentID), "its "))
		s.EnvironmentID = ""
	}
	if s.Transport == "" {
		s.Transport = statussync.TransportStreamableHTTP
	}
	if !s.Transport.Valid() {
		fault("its transport is none of streamable-http, sse, http, stdio")
		s.Transport = statussync.TransportStreamableHTTP
	}
	switch s.Desired {
	case "", statussync.DesiredRunning, statussync.DesiredStopped:
	default:
		fault("its desired is neither running nor stopped")
		s.Desired = ""
	}
	switch v := strings.ToLower(get("disabled")); v {
	case "", "f", "false", "0":
	case "t", "true", "1":
		s.Disabled = true
	default:
		fault("its disabled is no boolean")
	}
	if s.Endpoint != "" {
		if what := endpointFault(s.Endpoint); what != "" {
			fault("its endpoint " + what)
			s.Endpoint = ""
		}
	}
	if v := get("labels"); v != "" {
		if len(v) > maxDetails || json.Unmarshal([]byte(v), &s.Labels) != nil || !labelsFit(s.Labels) {
			fault("its labels are no JSON object of at most 64 short texts")
			s.Labels = nil
		}
	}
	if v := get("capabilities"); v != "" {
		if len(v) > maxDetails || json.Unmarshal([]byte(v), &s.Capabilities) != nil {
			fault("its capabilities are no JSON object, or larger than 16 KiB")
			s.Capabilities = nil
		}
	}
	sqlProbe(&s.Probe, get, fault)
	f.update.Servers = append(f.update.Servers, s)
	// Without a word, too: what the row said before does not count any more.
	if f.words {
		f.after = append(f.after, &statussync.RecordSeen{ServerID: id, Word: statussync.CleanText(get("status"), statussync.MaxWordText),
			Error: statussync.CleanText(get("error"), statussync.MaxErrorText), Origin: r.o.Origin})
	}
	if h := get("heartbeat_at"); h != "" {
		if at, ok := timeOf([]byte(h)); ok {
			f.after = append(f.after, &statussync.RowHeartbeat{ServerID: id, At: at, Origin: r.o.Origin})
		} else {
			fault("its heartbeat_at is no time")
		}
	}
}

// Bounds of a definition, as everywhere (docs/configuration.md).
const (
	maxURLLen      = 2048
	maxLabelCount  = 64
	minInterval    = 100 * time.Millisecond
	maxInterval    = 30 * 24 * time.Hour
	maxRetryCount  = 20
	maxRiseCount   = 100
	maxBackoffRate = 10
)

// endpointFault judges an address. It never quotes it: it may hold a secret, and then is not taken, for it would be shown.
func endpointFault(v string) string {
	u, err := url.Parse(v)
	switch {
	case len(v) > maxURLLen:
		return "is longer than " + strconv.Itoa(maxURLLen) + " bytes"
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "", v != statussync.CleanText(v, maxURLLen):
		return "is no http or https URL"
	case u.User != nil:
		return "holds a user name or password"
	}
	return ""
}

func labelsFit(labels map[string]string) bool {
	for k, v := range labels {
		if k == "" || strings.Contains(k, "=") || k != statussync.CleanText(k, statussync.MaxNameText) || v != statussync.CleanText(v, statussync.MaxNameText) {
			return false
		}
	}
	return len(labels) <= maxLabelCount
}

// sqlProbe takes how a server is probed.
func sqlProbe(p *statussync.ProbeSpec, get func(column string) string, fault func(string)) {
	switch k := statussync.ProbeKind(get("probe_kind")); k {
	case "", statussync.ProbeMCP, statussync.ProbeHTTP, statussync.ProbeNone:
		p.Kind = k
	default:
		fault("its probe_kind is none of mcp, http, none")
	}
	if v := get("probe_url"); v != "" {
		if what := endpointFault(v); what != "" {
			fault("its probe_url " + what)
		} else {
			p.URL = v
		}
	}
	if v := get("probe_path"); v != "" {
		if what := pathFault(v); what != "" {
			fault("its probe_path: " + what)
		} else {
			p.Path = v
		}
	}
	for _, d := range [...]struct {
		column string
		to     *time.Duration
		least  time.Duration
	}{{"probe_interval", &p.Interval, minInterval}, {"probe_timeout", &p.Timeout, 0}, {"probe_start_grace", &p.StartGrace, 0}, {"probe_slow_after", &p.SlowAfter, 0}} {
		v := get(d.column)
		if v == "" {
			continue
		}
		if got, ok := durationOf(v); !ok || got < d.least || got > maxInterval {
			fault("its " + d.column + " is no duration between " + d.least.String() + " and 30 days")
		} else {
			*d.to = got
		}
	}
	number := func(column string, least, most int) (n int, ok bool) {
		v := get(column)
		if v == "" {
			return 0, false
		}
		n, err := strconv.Atoi(v)
		if err != nil || n < least || n > most {
			fault("its " + column + " is no whole number from " + strconv.Itoa(least) + " to " + strconv.Itoa(most))
			return 0, false
		}
		return n, true
	}
	if n, ok := number("probe_max_retries", 0, maxRetryCount); ok {
		p.MaxRetries = &n
	}
	if n, ok := number("probe_rise", 1, maxRiseCount); ok {
		p.Rise = n
	}
	if v := get("probe_backoff_multiplier"); v != "" {
		if n, err := strconv.ParseFloat(v, 64); err != nil || !(n >= 1 && n <= maxBackoffRate) {
			fault("its probe_backoff_multiplier is no number from 1 to " + strconv.Itoa(maxBackoffRate))
		} else {
			p.BackoffMultiplier = n
		}
	}
	switch v := get("probe_expect"); v {
	case "", "open":
		p.Expect = v
	default:
		fault("its probe_expect is not open")
	}
}

// pgInterval is an interval as PostgreSQL writes it by default, up to days. Months have no length.
var pgInterval = regexp.MustCompile(`^(?:(\d{1,5}) days?)? ?(?:(\d{1,6}):(\d\d):(\d\d(?:\.\d{1,6})?))?$`)

// durationOf reads an interval, a number of seconds, or text such as 1m30s.
func durationOf(v string) (time.Duration, bool) {
	v = strings.TrimSpace(v)
	if n, err := strconv.ParseFloat(v, 64); err == nil {
		return time.Duration(n * float64(time.Second)), n >= 0 && n <= maxInterval.Seconds()
	}
	if d, err := time.ParseDuration(v); err == nil {
		return d, true
	}
	m := pgInterval.FindStringSubmatch(v)
	if v == "" || m == nil {
		return 0, false
	}
	var d time.Duration
	for i, unit := range []time.Duration{24 * time.Hour, time.Hour, time.Minute, time.Second} {
		if m[i+1] == "" {
			continue
		}
		n, err := strconv.ParseFloat(m[i+1], 64)
		if err != nil {
			return 0, false
		}
		d += time.Duration(n * float64(unit))
	}
	return d, true
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
