package app

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"reflect"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
	"github.com/agentopia/statussync/registry"
	"github.com/agentopia/statussync/sqlite"
	"github.com/agentopia/statussync/wire"
)

// swapTimeout bounds the part of a reload that is not given up when its caller goes away.
const swapTimeout = 30 * time.Second

// operations is what the service needs to be operated while it runs: it implements httpapi.Control and httpapi.Syncer.
type operations struct {
	turn     lock // held while the configuration that is in force changes
	syncs    lock // held by a sync
	switches lock // held while probing is switched
	restarts chan *restart
	going    bool            // a restart was accepted; under turn
	stopped  context.Context // ended when the service begins to stop
	stop     context.CancelFunc
	probing  atomic.Pointer[wire.Probing]

	count struct {
		reloads, reloadsRefused, syncs, syncFailures atomic.Uint64
	}
	lastReload atomic.Pointer[reloadMark]
}

type reloadMark struct {
	at time.Time // of the newest one that succeeded, or of the start
	ok bool      // of the newest one
}

func (o *operations) init() {
	o.turn, o.syncs, o.switches, o.restarts = make(lock, 1), make(lock, 1), make(lock, 1), make(chan *restart, 1)
	o.stopped, o.stop = context.WithCancel(context.Background())
	o.probing.Store(&wire.Probing{Enabled: true})
	o.lastReload.Store(&reloadMark{at: time.Now(), ok: true})
}

// lock is a mutex that can be waited for with a context.
type lock chan struct{}

func (l lock) take(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l lock) give() { <-l }

var errStopping = statussync.NewError(statussync.CodeUnavailable, "the service is stopping", nil)

// begin takes a turn; it fails once the service stops.
func (s *service) begin(ctx context.Context, l lock) error {
	if err := l.take(ctx); err != nil {
		return err
	}
	if s.stopped.Err() != nil {
		l.give()
		return errStopping
	}
	return nil
}

// close refuses everything that would begin from now on. A restart that was accepted just when the service was stopped for
// good does not happen.
func (s *service) close() {
	s.stop()
	select {
	case r := <-s.restarts:
		r.door.close()
	default:
	}
}

// hangups reloads whenever Options.Hangups says so.
func (s *service) hangups(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.options.Hangups: // nil: never
			if _, err := s.Reload(ctx, "SIGHUP"); err == errNoFile {
				s.log.Warn("SIGHUP means nothing here", "error", err)
			} // whatever else came of it was logged
		}
	}
}

// Reload implements httpapi.Control. Everything that can fail happens before anything changes.
func (s *service) Reload(ctx context.Context, actor string) (wire.Reload, error) {
	began := time.Now()
	if s.options.ConfigFile == "" && len(s.options.MCPConfigs) == 0 {
		return wire.Reload{}, errNoFile
	}
	if err := s.begin(ctx, s.turn); err != nil {
		return wire.Reload{}, err
	}
	defer s.turn.give()
	if s.options.OnReload != nil {
		s.options.OnReload()
	}
	r, err := s.reload(ctx)
	if s.options.OnReloaded != nil {
		s.options.OnReloaded(err)
	}
	mark := *s.lastReload.Load()
	if mark.ok = err == nil; err != nil {
		s.count.reloadsRefused.Add(1)
		s.lastReload.Store(&mark)
		s.log.Error("the configuration was not reloaded: nothing has changed", "by", actor, "file", s.options.ConfigFile, "error", err)
		return r, err
	}
	mark.at = time.Now()
	s.count.reloads.Add(1)
	s.lastReload.Store(&mark)
	r.DurationMS = wire.Millis(time.Since(began))
	s.log.Info("the configuration was reloaded", "by", actor, "servers_added", r.Servers.AddedCount, "servers_changed", r.Servers.ChangedCount,
		"servers_removed", r.Servers.RemovedCount, "settings", r.Settings, "needs_restart", r.NeedsRestart, "warnings", r.Warnings,
		"updates", r.Updates, "took_ms", r.DurationMS)
	return r, nil
}

var errRestarting = statussync.NewError(statussync.CodeConflict, "a restart is under way already", nil)

var errNoFile = statussync.NewError(statussync.CodeConflict, "this service was not started from a configuration file", nil)

func (s *service) reload(ctx context.Context) (wire.Reload, error) {
	file, err := s.current.Load(), error(nil)
	if s.options.ConfigFile != "" { // else there are files of mcp_config alone
		if file, err = LoadConfig(s.options.ConfigFile); err != nil {
			return wire.Reload{}, err
		}
	}
	live := func(key string) bool { return isLive(key) && (key != "log.level" || s.level != nil) }
	next, r := reloaded(s.current.Load(), file, live)
	updates, err := s.swap(ctx, next)
	if err != nil {
		return r, err
	}
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), swapTimeout)
	defer cancel()
	imported, faults, _ := s.reimport(actx, s.importPaths(next), false)
	r.Updates, r.Warnings = len(updates)+len(imported), append(r.Warnings, faults...)
	return r, nil
}

// swap puts a configuration in force that differs only in what can change while the service runs: first all is built that
// can fail, then it is exchanged. On error nothing has changed. The caller has the turn.
func (s *service) swap(ctx context.Context, next *Config) ([]*statussync.Entry, error) {
	if s.going { // which goes on with the file as it was when it was accepted
		return nil, errRestarting
	}
	old := s.current.Load()
	if host, _, err := net.SplitHostPort(next.Listen); err == nil && !isLoopback(host) && len(next.tokens()) == 0 {
		return nil, statussync.Invalid("auth", "can't be taken away while "+strconv.Quote(next.Listen)+" is listened on, which other machines can reach; restart with another listen")
	}
	tokens := newTokens(next)
	if err := tokens.Err(); err != nil {
		return nil, err
	}
	set, err := apiSettings(next)
	if err != nil {
		return nil, err
	}
	applyAPI, err := s.api.Prepare(set)
	if err != nil {
		return nil, err
	}
	networks, err := prefixes("allow_networks", next.AllowNetworks)
	if err != nil {
		return nil, err
	}
	oldNetworks, err := prefixes("allow_networks", old.AllowNetworks)
	if err != nil {
		return nil, err
	}
	var policy *engine.Policy
	if p := next.Policy(); !reflect.DeepEqual(p, old.Policy()) {
		if err := p.Validate(); err != nil {
			return nil, err
		}
		policy = &p
	}
	u := next.Registry()
	if err := s.foreign(u); err != nil {
		return nil, err
	}
	var updates []*statussync.Entry
	// From here on the caller can't call it off: nothing may be half in force.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), swapTimeout)
	defer cancel()
	err = s.registry.WithoutConflicts(ctx, u, func() (err error) {
		s.guard.SetAllowNetworks(networks) // before servers that need them are probed
		if _, err := s.retreat(ctx, u); err != nil {
			s.guard.SetAllowNetworks(oldNetworks)
			return err
		}
		if updates, err = s.hub.Reconfigure(ctx, policy, u); err != nil {
			s.guard.SetAllowNetworks(oldNetworks)
			return err
		}
		if !reflect.DeepEqual(networks, oldNetworks) {
			s.prober.Renew()
			s.mcp.Renew()
		}
		if err := s.probes.SetLimits(next.Probe.Concurrency, next.Probe.PerEnvironment); err != nil {
			s.log.Error("the limits of probing were not changed", "error", err) // the configuration's check knows them
		}
		s.asker.SetConcurrency(askConcurrency(next))
		if err := s.tokens.Replace(tokens); err != nil {
			s.log.Error("the tokens were not changed", "error", err) // checked above
		}
		applyAPI()
		if s.certs != nil {
			s.certs.SetAgentCerts(agentCerts(next))
			if err := s.certs.Reload(); err != nil { // the check has just read the same files
				s.log.Warn("the certificate was not replaced", "error", err)
			}
		}
		if s.level != nil {
			s.level.Set(parseLevel(next.Log.Level))
		}
		s.current.Store(next)
		return nil
	})
	return updates, err
}

// foreign names what the configuration is about to define although another registry does. What is managed, the registry
// itself looks at; what mcp_config defines gives way.
func (s *service) foreign(u *statussync.RegistryUpdate) error {
	ours := func(o statussync.Origin) bool {
		return o == statussync.OriginConfig || o == statussync.OriginManaged || o == statussync.OriginMCPConfig
	}
	var errs []error
	add := func(kind, id string, o statussync.Origin) {
		errs = append(errs, &statussync.Error{Code: statussync.CodeConflict, Location: id, Detail: "the " + kind + " " + strconv.Quote(id) + " is defined by " + string(o) + " already"})
	}
	ids := make(map[string]bool, len(u.Servers))
	for i := range u.Servers {
		ids[u.Servers[i].ID] = true
	}
	views, _, _ := s.hub.Servers(statussync.ServerQuery{Limit: 1 << 30})
	for i := range views {
		if d := views[i].Server; ids[d.ID] && !ours(d.Origin) {
			add("server", d.ID, d.Origin)
		}
	}
	clear(ids)
	for i := range u.Environments {
		ids[u.Environments[i].ID] = true
	}
	for _, v := range s.hub.Environments() {
		if d := v.Environment; ids[d.ID] && !ours(d.Origin) {
			add("environment", d.ID, d.Origin)
		}
	}
	return errors.Join(errs...)
}

// Restart implements httpapi.Control.
func (s *service) Restart(ctx context.Context, actor string) error {
	s.log.Info("a restart was asked for", "by", actor)
	err := s.requestRestart(ctx, nil)
	if err != nil {
		s.log.Error("the restart was refused: nothing has changed", "by", actor, "error", err)
	}
	return err
}

// requestRestart has the service stopped, between run while its store is closed (nil: nothing is), and started again with
// the configuration read anew. It returns before that happens: with an error where the configuration is not good, and then
// nothing happens. From then on /readyz says that the service is not ready, until it is again.
func (s *service) requestRestart(ctx context.Context, between func(ctx context.Context, dataDir string, unclosed error) error) error {
	if err := s.begin(ctx, s.turn); err != nil {
		return err
	}
	defer s.turn.give()
	if s.going {
		return errRestarting
	}
	next, err := s.prepareRestart(ctx)
	if err != nil {
		return err
	}
	if next.between = between; between != nil && filepath.Clean(next.config.Data) != filepath.Clean(s.config.Data) {
		if next.door != nil {
			next.door.close()
		}
		return &statussync.Error{Code: statussync.CodeConflict, Location: "data", Detail: "the configuration file names another data directory than the service runs on; restart the service first"}
	}
	s.going = true
	s.restarts <- next // has room: there is only one
	if s.options.OnReload != nil {
		s.options.OnReload()
	}
	s.api.Drain()
	return nil
}

// prepareRestart does all of a restart that can fail and can be done before the stop.
func (s *service) prepareRestart(ctx context.Context) (*restart, error) {
	next := &restart{config: s.current.Load()}
	if s.options.ConfigFile != "" {
		c, err := LoadConfig(s.options.ConfigFile)
		if err != nil {
			return nil, err
		}
		next.config = c
	}
	for _, f := range s.options.MCPConfigs { // the configuration's own were just checked
		if err := CheckMCPConfig(f); err != nil {
			return nil, err
		}
	}
	c := next.config
	if filepath.Clean(c.Data) == filepath.Clean(s.config.Data) {
		if err := s.registry.Conflicts(ctx, c.Registry()); err != nil {
			return nil, err
		}
	} else if err := s.tryStore(ctx, c); err != nil {
		return nil, err
	}
	if c.Listen == s.config.Listen {
		return next, nil
	}
	door, err := openDoor(c.Listen)
	if err != nil {
		_, port, perr := net.SplitHostPort(c.Listen)
		_, ours, oerr := net.SplitHostPort(s.listener.Addr().String())
		if statussync.CodeOf(err) != statussync.CodeConflict || perr != nil || oerr != nil || port != ours {
			return nil, err
		}
		next.late = true // it is we who are in the way
	}
	next.door = door
	return next, nil
}

// tryStore finds out whether a service could run on another store.
func (s *service) tryStore(ctx context.Context, c *Config) (err error) {
	store, err := sqlite.Open(ctx, sqlite.Options{Dir: c.Data, Sync: c.Journal.Sync, Retention: time.Duration(c.Journal.Retention), MaxBytes: int64(c.Journal.MaxBytes)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	m, err := registry.New(ctx, registry.Options{Store: store, Hub: s.hub})
	if err != nil {
		return err
	}
	return m.Conflicts(ctx, c.Registry())
}

// probingNote is under which id the hub remembers whether servers are probed.
const probingNote = "probing"

// recallProbing puts in force what was decided before the start.
func (s *service) recallProbing() {
	note := s.hub.Remembered(probingNote)
	if note == nil {
		return
	}
	var p struct {
		Enabled   bool      `json:"enabled"`
		Since     time.Time `json:"since"`
		ChangedBy string    `json:"changed_by"`
	}
	if err := json.Unmarshal(note, &p); err != nil {
		s.log.Error("whether servers are to be probed can't be read from the store; they are", "error", err)
		return
	}
	s.probing.Store(&wire.Probing{Enabled: p.Enabled, Since: wire.Time{Time: p.Since}, ChangedBy: p.ChangedBy})
	s.probes.SetEnabled(p.Enabled)
	s.drift.SetEnabled(p.Enabled)
	if !p.Enabled {
		s.log.Warn("probing is switched off", "since", p.Since, "by", p.ChangedBy)
	}
}

// Probing implements httpapi.Control.
func (s *service) Probing() wire.Probing { return *s.probing.Load() }

// SetProbing implements httpapi.Control.
func (s *service) SetProbing(ctx context.Context, enabled bool, actor string) (wire.Probing, error) {
	if err := s.begin(ctx, s.switches); err != nil {
		return wire.Probing{}, err
	}
	defer s.switches.give()
	if now := s.Probing(); now.Enabled == enabled {
		return now, nil
	}
	next := wire.Probing{Enabled: enabled, Since: wire.Time{Time: s.hub.Now()}, ChangedBy: statussync.CleanText(actor, statussync.MaxNameText)}
	note, err := json.Marshal(next)
	if err != nil {
		return wire.Probing{}, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), swapTimeout)
	defer cancel()
	if err := s.hub.Remember(ctx, probingNote, note); err != nil {
		return wire.Probing{}, err
	}
	s.probes.SetEnabled(enabled)
	s.drift.SetEnabled(enabled)
	s.probing.Store(&next)
	s.log.Warn("probing was switched", "enabled", enabled, "by", actor)
	return next, nil
}

// operationSamples are the numbers of what was done to the service since it was started last.
func (s *service) operationSamples(labeled func(name, help, label, value string, v uint64), gauge func(name, help string, v float64), counter func(name, help string, v uint64), boolean func(bool) float64) {
	labeled("config_reloads_total", "Reloads of the configuration, by outcome.", "outcome", "applied", s.count.reloads.Load())
	labeled("config_reloads_total", "Reloads of the configuration, by outcome.", "outcome", "refused", s.count.reloadsRefused.Load())
	mark := s.lastReload.Load()
	gauge("config_last_reload_successful", "1 where the newest reload was applied, or there was none.", boolean(mark.ok))
	gauge("config_last_reload_success_timestamp_seconds", "When the configuration that is in force was read.", float64(mark.at.Unix()))
	counter("syncs_total", "Times that registries and agents were read on demand.", s.count.syncs.Load())
	counter("sync_failures_total", "Sources and agents that could not be read on demand.", s.count.syncFailures.Load())
}
