package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/httpapi"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/postgres"
	"github.com/agentopia/statussync/prom"
	"github.com/agentopia/statussync/supabase"
	"github.com/agentopia/statussync/wire"
)

// databases are the registries that are databases, while the service runs. It implements httpapi.Registries. Its methods
// are safe for concurrent use.
type databases struct {
	s    *service
	log  *slog.Logger
	list []*database

	wake chan struct{} // has room for one
	mu   sync.Mutex
	// What is to be handed on by run; the databases' own goroutines must not wait.
	connected map[statussync.Origin]bool
	tokens    map[string]map[[sha256.Size]byte]string // by registry, to be stored
	agents    map[string]map[[sha256.Size]byte]string // by registry, in force
	told      map[string]bool                         // registries whose tokens were read since the start
}

// database is one of them.
type database struct {
	name, kind string
	origin     statussync.Origin
	source     source
	platform   *platform // nil: a sql one
}

// source is what all databases have in common.
type source interface {
	statussync.Source
	Sync(ctx context.Context) ([]*statussync.Entry, []postgres.RowFault, error)
	Status() postgres.Status
}

// platform is what only a platform's own database has.
type platform struct {
	registry  *postgres.Registry
	realtime  *supabase.Feed      // nil: another feed
	log       *postgres.StatusLog // nil: updates are not written
	retention *postgres.Retention // nil: nothing is deleted
}

// newDatabases makes what the configuration names. It connects to nothing.
func newDatabases(s *service, c *Config, log *slog.Logger) (*databases, error) {
	d := &databases{
		s: s, log: log.With("component", "registries"), wake: make(chan struct{}, 1), connected: map[statussync.Origin]bool{},
		tokens: map[string]map[[sha256.Size]byte]string{}, agents: map[string]map[[sha256.Size]byte]string{}, told: map[string]bool{},
	}
	origins := c.registryOrigins()
	for i := range c.Registries {
		r := &c.Registries[i]
		kind, _ := r.kind()
		db := &database{name: r.Name, kind: kind, origin: origins[i]}
		err := d.open(db, r, log)
		if err != nil {
			var e *statussync.Error
			if errors.As(err, &e) {
				err = &statussync.Error{Code: e.Code, Location: "registries." + r.Name + "." + e.Location, Detail: e.Detail}
			}
			return nil, err
		}
		d.list = append(d.list, db)
	}
	return d, nil
}

// registryOrigins are what the registries' definitions have as their origin: the first platform's is the one that the wire
// has always named; a name tells the others apart.
func (c *Config) registryOrigins() []statussync.Origin {
	out := make([]statussync.Origin, len(c.Registries))
	first := true
	for i := range c.Registries {
		r := &c.Registries[i]
		if r.platform() != nil && first {
			out[i], first = statussync.OriginPostgres, false
			continue
		}
		out[i] = statussync.OriginPostgres + ":" + statussync.Origin(r.Name)
	}
	return out
}

// ofDatabase reports whether an origin is that of a database, configured or not.
func ofDatabase(o statussync.Origin) bool {
	return o == statussync.OriginPostgres || strings.HasPrefix(string(o), string(statussync.OriginPostgres)+":")
}

func (d *databases) open(db *database, r *RegistryConfig, log *slog.Logger) error {
	log = log.With("registry", db.name)
	if q := r.SQL; q != nil {
		source, err := postgres.NewSQL(postgres.SQLOptions{
			DSN: string(q.DSN), Query: q.Query, Resync: time.Duration(q.Resync), Origin: db.origin, Logger: log,
			Connection: func(connected bool) { d.setConnected(db.origin, connected) },
			Known: func() []string {
				servers, _ := d.known(db.origin)
				return servers
			},
		})
		db.source = source
		return err
	}
	p := r.platform()
	o := postgres.Options{
		DSN: string(p.DSN), Schema: p.Schema, Resync: time.Duration(p.Resync), WriteBack: p.WriteBack == nil || *p.WriteBack,
		Origin: db.origin, Logger: log, Known: func() (servers, environments []string) { return d.known(db.origin) },
		Heard: func(environmentID string) time.Time {
			v, err := d.s.hub.Environment(environmentID)
			if err != nil {
				return time.Time{}
			}
			return v.LastHeartbeat
		},
		Agents:     func(agents map[[sha256.Size]byte]string) { d.setAgents(db.name, agents) },
		Connection: func(connected bool) { d.setConnected(db.origin, connected) },
	}
	pf := &platform{}
	db.platform = pf
	var err error
	switch p.Feed {
	case "realtime", "":
		pf.realtime, err = supabase.New(supabase.Options{
			URL: p.URL, APIKey: string(p.APIKey), Schema: p.Schema, Tables: []string{"account_tool_instances", "account_tool_environments"}, Logger: log,
		})
		if err != nil {
			return err
		}
		o.ChangeFeed = pf.realtime
	default:
		o.Feed = postgres.FeedMode(p.Feed)
	}
	if pf.registry, err = postgres.New(o); err != nil {
		return err
	}
	db.source = pf.registry
	if p.Log.Off {
		return nil
	}
	pf.log, err = postgres.NewStatusLog(postgres.StatusLogOptions{
		DSN: string(p.DSN), Schema: p.Schema, Hub: d.s.hub, Store: checkpoints{d.s.hub}, Name: "status_log " + db.name, Logger: log,
	})
	if err != nil || p.Log.Retention == 0 {
		return err
	}
	pf.retention, err = postgres.NewRetention(postgres.RetentionOptions{DSN: string(p.DSN), Schema: p.Schema, Keep: time.Duration(p.Log.Retention), Logger: log})
	return err
}

// checkpoints are the positions of outlets, kept among the hub's notes. It implements postgres.CheckpointStore.
type checkpoints struct{ hub *hub.Hub }

func checkpointID(name string) string {
	sum := sha256.Sum256([]byte(name)) // a name may be longer than a note's id
	return "checkpoint/" + hex.EncodeToString(sum[:8])
}

// Checkpoint returns the position that was put last, the zero one where none was.
func (c checkpoints) Checkpoint(_ context.Context, name string) (statussync.Cursor, error) {
	note := c.hub.Remembered(checkpointID(name))
	if note == nil {
		return statussync.Cursor{}, nil
	}
	return statussync.ParseCursor(string(note))
}

// PutCheckpoint stores a position; when it returns nil it is durable.
func (c checkpoints) PutCheckpoint(ctx context.Context, name string, at statussync.Cursor) error {
	return c.hub.Remember(ctx, checkpointID(name), []byte(at.String()))
}

// sinks are told of agents' heartbeats.
func (d *databases) sinks() []statussync.ReportSink {
	var out []statussync.ReportSink
	for _, db := range d.list {
		if db.platform != nil && db.platform.registry.Status().WriteBack.Enabled {
			out = append(out, db.platform.registry)
		}
	}
	return out
}

// known lists what the hub has of an origin.
func (d *databases) known(o statussync.Origin) (servers, environments []string) {
	views, _, _ := d.s.hub.Servers(statussync.ServerQuery{Limit: 1 << 30})
	for i := range views {
		if s := views[i].Server; s.Origin == o {
			servers = append(servers, s.ID)
		}
	}
	for _, v := range d.s.hub.Environments() {
		if v.Environment.Origin == o {
			environments = append(environments, v.Environment.ID)
		}
	}
	return servers, environments
}

// begin puts in force what is known of the databases from before the start, but for what the configuration claims: its word
// counts more than that of a table that somebody else writes. What a database defined that is not configured any more goes.
func (d *databases) begin(ctx context.Context, claimed *statussync.RegistryUpdate) error {
	servers, envs := map[string]bool{}, map[string]bool{}
	for i := range claimed.Servers {
		servers[claimed.Servers[i].ID] = true
	}
	for i := range claimed.Environments {
		envs[claimed.Environments[i].ID] = true
	}
	configured := map[statussync.Origin]bool{}
	var names []string
	for _, db := range d.list {
		configured[db.origin] = true
		names = append(names, db.name)
	}
	gone := map[statussync.Origin]*statussync.RegistryUpdate{}
	update := func(o statussync.Origin) *statussync.RegistryUpdate {
		if gone[o] == nil {
			gone[o] = &statussync.RegistryUpdate{Origin: o}
		}
		return gone[o]
	}
	views, _, _ := d.s.hub.Servers(statussync.ServerQuery{Limit: 1 << 30})
	for i := range views {
		if s := views[i].Server; ofDatabase(s.Origin) && (!configured[s.Origin] || servers[s.ID]) {
			u := update(s.Origin)
			u.RemovedServers = append(u.RemovedServers, s.ID)
			if servers[s.ID] {
				d.log.Warn("a server of a database is passed over: the configuration defines its id", "server", s.ID, "origin", string(s.Origin))
			}
		}
	}
	for _, v := range d.s.hub.Environments() {
		if e := v.Environment; ofDatabase(e.Origin) && (!configured[e.Origin] || envs[e.ID]) {
			u := update(e.Origin)
			u.RemovedEnvironments = append(u.RemovedEnvironments, e.ID)
		}
	}
	var obs []statussync.Observation
	for _, u := range gone {
		obs = append(obs, u)
	}
	for _, db := range d.list { // not connected, until it is
		obs = append(obs, &statussync.DatabaseConnection{Origin: db.origin})
	}
	if len(obs) > 0 {
		if _, err := d.s.hub.Submit(ctx, obs...); err != nil && statussync.CodeOf(err) != statussync.CodeNotFound {
			return err // not found: an environment that went with its last server
		}
	}
	if err := d.s.store.ForgetDatabaseAgents(ctx, names); err != nil {
		return err
	}
	for _, name := range names {
		agents, err := d.s.store.DatabaseAgents(ctx, name)
		if err != nil {
			return err
		}
		for h, env := range agents {
			if envs[env] {
				delete(agents, h)
			}
		}
		d.mu.Lock()
		d.agents[name] = agents
		d.mu.Unlock()
	}
	d.enforceAgents()
	return nil
}

// setAgents puts a database's tokens in force at once, and has them stored.
func (d *databases) setAgents(name string, agents map[[sha256.Size]byte]string) {
	d.mu.Lock()
	d.agents[name], d.tokens[name], d.told[name] = agents, agents, true
	d.mu.Unlock()
	d.enforceAgents()
	d.nudge()
}

// agentsPending reports whether some database's tokens are not known at all yet: neither read nor stored by an earlier run.
func (d *databases) agentsPending() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.list, func(db *database) bool {
		return db.platform != nil && !d.told[db.name] && len(d.agents[db.name]) == 0
	})
}

// enforceAgents hands the tokens of all databases over. Where two have the same, the first database's counts.
func (d *databases) enforceAgents() {
	all := map[[sha256.Size]byte]string{}
	d.mu.Lock()
	defer d.mu.Unlock() // held while they are handed over, so that an older set never replaces a newer one
	for _, db := range d.list {
		for h, env := range d.agents[db.name] {
			if _, taken := all[h]; !taken {
				all[h] = env
			}
		}
	}
	d.s.tokens.SetDatabaseAgents(all)
}

func (d *databases) setConnected(o statussync.Origin, connected bool) {
	d.mu.Lock()
	d.connected[o] = connected
	d.mu.Unlock()
	d.nudge()
}

func (d *databases) nudge() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// storeAgain is how long is waited before tokens that could not be stored are stored again.
const storeAgain = 5 * time.Second

// run hands on what the databases tell of their connections, and stores their agents' tokens. It blocks until ctx ends.
func (d *databases) run(ctx context.Context) error {
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		case <-again.C:
		}
		d.mu.Lock()
		connected, tokens := d.connected, d.tokens
		d.connected, d.tokens = map[statussync.Origin]bool{}, map[string]map[[sha256.Size]byte]string{}
		d.mu.Unlock()
		for o, is := range connected {
			for _, db := range d.list {
				if is && db.origin == o {
					d.log.Info("a database can be read", "registry", db.name)
				}
			}
			if err := d.s.hub.Observe(ctx, &statussync.DatabaseConnection{Origin: o, Connected: is}); err != nil && ctx.Err() == nil {
				d.log.Error("the state of a database connection was not taken", "origin", string(o), "error", err)
			}
		}
		for name, agents := range tokens {
			if err := d.s.store.SetDatabaseAgents(ctx, name, agents); err != nil && ctx.Err() == nil {
				d.log.Error("agents' tokens of a database could not be stored; after a restart without it they would not be known", "registry", name, "error", err)
				d.mu.Lock()
				if d.tokens[name] == nil {
					d.tokens[name] = agents
				}
				d.mu.Unlock()
				again.Reset(storeAgain)
			}
		}
	}
}

// registryPart begins the names of the parts that follow databases.
const registryPart = "registry "

// parts are what runs while the service does.
func (d *databases) parts(ended chan<- error) []*part {
	if len(d.list) == 0 {
		return nil
	}
	out := []*part{start("registries", ended, d.run)}
	for _, db := range d.list {
		out = append(out, start(registryPart+db.name, ended, func(ctx context.Context) error { return db.source.Run(ctx, d.s.hub) }))
		if db.platform != nil && db.platform.log != nil {
			out = append(out, start(registryPart+db.name+" (status log)", ended, db.platform.log.Run))
		}
		if db.platform != nil && db.platform.retention != nil {
			out = append(out, start(registryPart+db.name+" (retention)", ended, db.platform.retention.Run))
		}
	}
	return out
}

// maxShownFaults bounds the rows that Registries names.
const maxShownFaults = 20

// Registries implements httpapi.Registries.
func (d *databases) Registries() []wire.Registry {
	out := make([]wire.Registry, 0, len(d.list))
	for _, db := range d.list {
		st := db.source.Status()
		r := wire.Registry{
			Name: db.name, Kind: db.kind, Feed: st.Feed, Detail: firstOf(st.LastError, st.FeedCause), LagMS: wire.Millis(max(st.Lag, st.Oldest)), Reconnects: st.Reconnects,
			LastSync: wire.Time{Time: st.LastSync}, SyncDurationMS: wire.Millis(st.SyncTook), Servers: st.Servers, Environments: st.Environments,
			FaultsCount: st.FaultsCount, Missing: st.Missing,
		}
		if r.Feed == statussync.FeedDown && r.Detail == "" {
			r.Detail = "it was not reached yet"
		}
		for _, f := range st.Faults[:min(len(st.Faults), maxShownFaults)] {
			r.Faults = append(r.Faults, wire.RegistryFault{Table: f.Table, ID: f.ID, Detail: f.Detail})
		}
		if w := st.WriteBack; w.Enabled {
			r.WriteBack = &wire.WriteBack{
				Queued: w.Queued, OldestMS: wire.Millis(w.Oldest), Rows: w.Rows, RoundTrips: w.Batches, Failed: w.Failed,
				Detail: w.LastError, LastWritten: wire.Time{Time: w.LastWrite},
			}
		}
		if db.platform != nil && db.platform.log != nil {
			l := db.platform.log.Status()
			r.StatusLog = &wire.StatusLog{Behind: l.Lag, Rows: l.Written, Skipped: l.Gone, Failed: l.Refused, Lost: l.Lost}
			if !l.Connected || l.Lag > 0 { // else it is an old story
				r.StatusLog.Detail = l.LastError
			}
			if !l.Position.IsZero() {
				r.StatusLog.Cursor = l.Position.String()
			}
			if db.platform.retention != nil {
				r.StatusLog.Deleted = db.platform.retention.Deleted()
			}
		}
		out = append(out, r)
	}
	return out
}

// Connections implements httpapi.Registries.
func (d *databases) Connections(ctx context.Context, agentID string) ([]httpapi.AgentConnection, error) {
	first := statussync.NewError(statussync.CodeNotFound, "no registry is a database that has agents", nil)
	var found error = first
	for _, db := range d.list {
		if db.platform == nil {
			continue
		}
		rows, err := db.platform.registry.Connections(ctx, agentID)
		if err != nil {
			if found == error(first) || statussync.CodeOf(err) != statussync.CodeNotFound {
				found = err // who can't be asked might know the agent
			}
			continue
		}
		out := make([]httpapi.AgentConnection, len(rows))
		for i, r := range rows {
			out[i] = httpapi.AgentConnection{ID: r.ID, ServerID: r.ServerID, Active: r.Active, CreatedAt: r.CreatedAt}
		}
		return out, nil
	}
	return nil, found
}

// databases reads all databases again, or only the one that an origin names, and names the rows that can't be used.
func (y *syncing) databases(ctx context.Context, only statussync.Origin) {
	for _, db := range y.s.databases.list {
		if only != "" && db.origin != only {
			continue
		}
		updates, faults, err := db.source.Sync(ctx)
		y.took(updates)
		if err != nil {
			y.fail("", "the database "+db.name+": "+wire.Detail(err))
			continue
		}
		for _, f := range faults {
			if y.server != "" && f.ID != y.server {
				continue
			}
			y.failRow(f)
		}
	}
}

// failRow names a row that can't be used.
func (y *syncing) failRow(f postgres.RowFault) {
	x := wire.SyncFailure{Detail: statussync.CleanText(f.Table+": "+f.Detail, statussync.MaxErrorText)}
	if f.Table == "account_tool_environments" {
		x.EnvironmentID = f.ID
	} else {
		x.ServerID = f.ID
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	y.failed = append(y.failed, x)
}

// feedStates in the order in which the metric has them.
var feedStates = []statussync.FeedState{statussync.FeedLive, statussync.FeedCatchingUp, statussync.FeedPolling, statussync.FeedDown}

// samples are the numbers of the databases.
func (d *databases) samples() []prom.Sample {
	var out []prom.Sample
	for _, r := range d.Registries() {
		labels := map[string]string{"registry": r.Name}
		gauge := func(name, help string, v float64) {
			out = append(out, prom.Sample{Name: name, Help: help, Labels: labels, Value: v})
		}
		counter := func(name, help string, v uint64) {
			out = append(out, prom.Sample{Name: name, Help: help, Labels: labels, Counter: true, Value: float64(v)})
		}
		for _, f := range feedStates {
			v := 0.0
			if r.Feed == f {
				v = 1
			}
			out = append(out, prom.Sample{Name: "registry_feed", Help: "1 for the state of the feed of a database's changes.", Labels: map[string]string{"registry": r.Name, "state": string(f)}, Value: v})
		}
		gauge("registry_lag_seconds", "How long the newest changes of a database waited until they were handed over.", r.LagMS/1000)
		counter("registry_reconnects_total", "Times that a database, or its feed, was reached again.", r.Reconnects)
		if !r.LastSync.IsZero() {
			gauge("registry_last_sync_timestamp_seconds", "When everything was last read.", float64(r.LastSync.Unix()))
		}
		gauge("registry_servers", "Servers that a database defines.", float64(r.Servers))
		gauge("registry_faults", "Rows that can't be used, or not in full.", float64(r.FaultsCount))
		if w := r.WriteBack; w != nil {
			gauge("registry_write_back_queued", "Rows that wait to be written.", float64(w.Queued))
			counter("registry_write_back_rows_total", "Rows written.", w.Rows)
			counter("registry_write_back_round_trips_total", "Round trips of the rows written.", w.RoundTrips)
			counter("registry_write_back_failed_total", "Rows that the database refused.", w.Failed)
		}
		if l := r.StatusLog; l != nil {
			gauge("registry_status_log_behind", "Entries of the journal that the status log has not looked at yet.", float64(l.Behind))
			counter("registry_status_log_rows_total", "Rows written to mcp_server_status_logs.", l.Rows)
			counter("registry_status_log_skipped_total", "Updates of servers that the database does not have any more.", l.Skipped)
		}
	}
	return out
}
