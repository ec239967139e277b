package app

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

const (
	syncAsks    = 64              // agents that a sync asks at once
	syncAskTime = 5 * time.Second // for one agent to answer a sync
)

// syncing is one sync while it goes on.
type syncing struct {
	s      *service
	server string // the one that was asked for; "": all
	began  time.Time

	mu      sync.Mutex
	updates []*statussync.Entry
	failed  []wire.SyncFailure
}

func (y *syncing) took(updates []*statussync.Entry) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.updates = append(y.updates, updates...)
}

func (y *syncing) fail(environment, detail string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.failed = append(y.failed, wire.SyncFailure{ServerID: y.server, EnvironmentID: environment, Detail: statussync.CleanText(detail, statussync.MaxErrorText)})
}

// SyncAll implements httpapi.Syncer.
func (s *service) SyncAll(ctx context.Context) (wire.Sync, error) {
	return s.sync(ctx, "", func(ctx context.Context, y *syncing) error {
		y.managed(ctx)
		y.configured(ctx)
		y.imported(ctx)
		y.databases(ctx, "")
		var ask []statussync.EnvironmentView
		for _, v := range s.hub.Environments() {
			if v.Environment.AgentURL != "" {
				ask = append(ask, v)
			}
		}
		y.agents(ctx, ask)
		return nil
	})
}

// SyncServer implements httpapi.Syncer. A registry can only be read as a whole: what else has changed in it counts from
// now on, too.
func (s *service) SyncServer(ctx context.Context, id string) (wire.Sync, error) {
	return s.sync(ctx, id, func(ctx context.Context, y *syncing) error {
		v, err := s.hub.Server(id)
		if err != nil || v.Server.Origin == statussync.OriginManaged {
			y.managed(ctx)
		}
		if err != nil || v.Server.Origin == statussync.OriginConfig {
			y.configured(ctx)
		}
		if err != nil || v.Server.Origin == statussync.OriginMCPConfig {
			y.imported(ctx)
		}
		if err != nil || ofDatabase(v.Server.Origin) {
			only := statussync.Origin("")
			if err == nil {
				only = v.Server.Origin
			}
			y.databases(ctx, only)
		}
		was := v
		if v, err = s.hub.Server(id); err != nil {
			if was.Server != nil {
				return nil // it has just been removed, which is the answer
			}
			return err
		}
		if env, err := s.hub.Environment(v.Server.EnvironmentID); err == nil && env.Environment.AgentURL != "" {
			y.agents(ctx, []statussync.EnvironmentView{env})
		}
		return nil
	})
}

// sync runs one sync; a second one waits for it, so that agents are not asked by many at once.
func (s *service) sync(ctx context.Context, server string, run func(context.Context, *syncing) error) (wire.Sync, error) {
	if err := s.begin(ctx, s.syncs); err != nil {
		return wire.Sync{}, err
	}
	defer s.syncs.give()
	y := &syncing{s: s, server: server, began: time.Now()}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.stopped, cancel)()
	if err := run(ctx, y); err != nil {
		return wire.Sync{}, err
	}
	took := time.Since(y.began)
	s.hub.Synced(took)
	s.count.syncs.Add(1)
	s.count.syncFailures.Add(uint64(len(y.failed)))
	slices.SortFunc(y.updates, func(a, b *statussync.Entry) int { return cmp.Compare(a.Seq, b.Seq) })
	slices.SortStableFunc(y.failed, func(a, b wire.SyncFailure) int { return cmp.Compare(a.EnvironmentID, b.EnvironmentID) })
	s.log.Info("synced", "server", server, "updates", len(y.updates), "failed", len(y.failed), "took_ms", took.Milliseconds())
	return wire.Sync{
		Updates: append([]*statussync.Entry{}, y.updates[:min(len(y.updates), wire.MaxUpdates)]...), UpdatesCount: len(y.updates),
		Failed: append([]wire.SyncFailure{}, y.failed[:min(len(y.failed), wire.MaxUpdates)]...), FailedCount: len(y.failed),
		DurationMS: wire.Millis(took),
	}, nil
}

// managed reads the managed registry again.
func (y *syncing) managed(ctx context.Context) {
	updates, err := y.s.registry.Reread(ctx)
	y.took(updates)
	if err != nil {
		y.s.log.Warn("the managed registry could not be read", "error", err)
		y.fail("", "the managed registry: "+wire.Detail(err))
	}
}

// configured reads the servers and environments of the configuration file again; settings and people's tokens are a
// reload's affair.
func (y *syncing) configured(ctx context.Context) {
	s := y.s
	if s.options.ConfigFile == "" {
		return
	}
	if err := s.begin(ctx, s.turn); err != nil {
		y.fail("", "the configuration file was not read: "+wire.Detail(err))
		return
	}
	defer s.turn.give()
	file, err := loadSettled(ctx, s.current.Load(), func() (*Config, error) { return LoadConfig(s.options.ConfigFile) })
	if err == nil {
		next := *s.current.Load()
		next.Environments, next.Servers = file.Environments, file.Servers
		var updates []*statussync.Entry
		updates, err = s.swap(ctx, &next)
		y.took(updates)
	}
	if err != nil {
		s.log.Warn("the definitions of the configuration file were not read", "error", err)
		y.fail("", "the configuration file "+s.options.ConfigFile+": "+firstFault(err))
	}
}

// firstFault tells the first of joined errors, and how many more there are.
func firstFault(err error) string {
	more := 0
	for {
		j, ok := err.(interface{ Unwrap() []error })
		if !ok {
			break
		}
		list := j.Unwrap()
		more += len(list) - 1
		err = list[0]
	}
	s := wire.Detail(err)
	if more > 0 {
		s += " (and " + strconv.Itoa(more) + " more; statussync config check tells all)"
	}
	return s
}

// agents asks each environment's agent once. What they answer is concluded from when it returns; that one does not answer
// is only told: how often the engine asked in vain decides whether it is lost, and a person's questions are not to count.
func (y *syncing) agents(ctx context.Context, list []statussync.EnvironmentView) {
	next := make(chan statussync.EnvironmentView)
	var workers sync.WaitGroup
	for range min(syncAsks, len(list)) {
		workers.Go(func() {
			for v := range next {
				y.agent(ctx, v.Environment)
			}
		})
	}
	for _, v := range list {
		next <- v
	}
	close(next)
	workers.Wait()
}

func (y *syncing) agent(ctx context.Context, e *statussync.Environment) {
	if ctx.Err() != nil {
		y.fail(e.ID, "its agent was not asked: there was no time left")
		return
	}
	switch o := y.s.asker.Ask(ctx, &statussync.AskAgent{EnvironmentID: e.ID, URL: e.AgentURL, Trusted: e.Origin.Trusted(), Timeout: syncAskTime}).(type) {
	case *statussync.AgentReport:
		updates, err := y.s.hub.Submit(ctx, o)
		y.took(updates)
		if err != nil {
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
				err = statussync.NewError(statussync.CodeUnavailable, "there was no time left", err)
			}
			y.fail(e.ID, "its agent's answer was not taken: "+wire.Detail(err))
		}
	case *statussync.AgentFailed:
		y.fail(e.ID, "its agent did not answer ("+o.Cause+"): "+o.Detail)
	}
}
