package httpapi

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/agentopia/statussync"
)

// Limits are what one credential may use (docs/protocols.md §9). They are plain values; a zero number means the default.
type Limits struct {
	Connections          int // WebSockets and SSE streams open at once
	Subscriptions        int // how many of them may have a subscription at once
	CommandsPerSecond    int // calls that change something, and frames per WebSocket; as many may come at once
	ReplayBytesPerSecond int // bytes of stored entries and snapshots
	FilterIDs            int // values in one list of a filter; at most statussync.MaxFilterIDs
	FilterClauses        int // clauses of a filter; at most statussync.MaxClauses
}

// DefaultLimits are those of a credential of which nothing else is said. Connections and bytes protect the service's memory
// and disk from a client that runs wild, and are far above what a page or a program needs.
func DefaultLimits() Limits {
	return Limits{
		Connections: 10_000, Subscriptions: 10_000, CommandsPerSecond: 100, ReplayBytesPerSecond: 64 << 20,
		FilterIDs: statussync.MaxFilterIDs, FilterClauses: statussync.MaxClauses,
	}
}

// Or returns l with its zero numbers taken from d.
func (l Limits) Or(d Limits) Limits {
	for _, f := range []struct{ to, from *int }{
		{&l.Connections, &d.Connections}, {&l.Subscriptions, &d.Subscriptions}, {&l.CommandsPerSecond, &d.CommandsPerSecond},
		{&l.ReplayBytesPerSecond, &d.ReplayBytesPerSecond}, {&l.FilterIDs, &d.FilterIDs}, {&l.FilterClauses, &d.FilterClauses},
	} {
		if *f.to == 0 {
			*f.to = *f.from
		}
	}
	return l
}

// check reports the first number that is out of its range, as an error at at.
func (l Limits) check(at string) error {
	for _, f := range []struct {
		name    string
		v, most int
	}{
		{"Connections", l.Connections, 0}, {"Subscriptions", l.Subscriptions, 0}, {"CommandsPerSecond", l.CommandsPerSecond, 0},
		{"ReplayBytesPerSecond", l.ReplayBytesPerSecond, 0}, {"FilterIDs", l.FilterIDs, statussync.MaxFilterIDs},
		{"FilterClauses", l.FilterClauses, statussync.MaxClauses},
	} {
		switch {
		case f.v < 0:
			return statussync.Invalid(at+f.name, "must not be negative")
		case f.most > 0 && f.v > f.most:
			return statussync.Invalid(at+f.name, "must be at most "+strconv.Itoa(f.most))
		}
	}
	return nil
}

// checkFilter refuses a filter that is larger than the credential may give. Locations are those of Clause.Validate.
func (l Limits) checkFilter(f statussync.Filter) error {
	if n := len(f.Clauses); n > l.FilterClauses {
		return statussync.Invalid("filters", fmt.Sprintf("holds %d clauses; this credential may give %d (limit filter_clauses)", n, l.FilterClauses))
	}
	for i := range f.Clauses {
		c := &f.Clauses[i]
		for _, list := range []struct {
			name string
			n    int
		}{
			{"kinds", len(c.Kinds)}, {"server_ids", len(c.ServerIDs)}, {"environment_ids", len(c.EnvironmentIDs)},
			{"states", len(c.States)}, {"healths", len(c.Healths)}, {"labels", len(c.Labels)},
		} {
			if err := l.checkList("filters."+list.name, list.n); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkList refuses a list of n values that is longer than the credential may give.
func (l Limits) checkList(at string, n int) error {
	if n <= l.FilterIDs {
		return nil
	}
	return statussync.Invalid(at, fmt.Sprintf("holds %d values; this credential may give %d (limit filter_ids)", n, l.FilterIDs))
}

// limitsOf returns what a credential, nil where there is none, may use.
func (a *API) limitsOf(cred *Credential) Limits {
	defaults := a.set.Load().limits
	if cred == nil {
		return defaults
	}
	return cred.Limits.Or(defaults)
}

// tooMany is the words for a cap on things that are open at once.
func tooMany(what string, most int, limit string) string {
	return fmt.Sprintf("more than %d %s with this credential (limit %s)", most, what, limit)
}

// limits count what credentials use, by their names. The caps themselves come with each call, so they may change.
type limits struct {
	mu   sync.Mutex
	open map[string]int // connections; an entry is removed at 0
	subs map[string]int // subscriptions, likewise
	cmds lru[string, *rate.Limiter]
	read lru[string, *rate.Limiter]
}

// maxCredentials bounds whose rates are remembered.
const maxCredentials = 10_000

func newLimits() *limits {
	return &limits{
		open: make(map[string]int), subs: make(map[string]int),
		cmds: newLRU[string, *rate.Limiter](maxCredentials), read: newLRU[string, *rate.Limiter](maxCredentials),
	}
}

// connect counts a connection of a credential; false: it has most already. disconnect is its inverse.
func (l *limits) connect(name string, most int) bool { return l.take(l.open, name, most) }
func (l *limits) disconnect(name string)             { l.give(l.open, name) }

// subscribe counts a subscription of a credential; false: it has most already. unsubscribe is its inverse.
func (l *limits) subscribe(name string, most int) bool { return l.take(l.subs, name, most) }
func (l *limits) unsubscribe(name string)              { l.give(l.subs, name) }

func (l *limits) take(m map[string]int, name string, most int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m[name] >= most {
		return false
	}
	m[name]++
	return true
}

func (l *limits) give(m map[string]int, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m[name]--; m[name] <= 0 {
		delete(m, name)
	}
}

// limiter returns a credential's rate limiter of n per second and at once.
func (l *limits) limiter(m *lru[string, *rate.Limiter], name string, n int) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	lim, ok := m.get(name)
	if !ok {
		lim = rate.NewLimiter(rate.Limit(n), n)
		m.put(name, lim)
	}
	setRate(lim, n)
	return lim
}

func setRate(lim *rate.Limiter, n int) {
	if lim.Burst() != n {
		lim.SetLimit(rate.Limit(n))
		lim.SetBurst(n)
	}
}

// command counts a command of a credential. The error has CodeRateLimited.
func (l *limits) command(name string, perSecond int) error {
	if !l.limiter(&l.cmds, name, perSecond).Allow() {
		return statussync.NewError(statussync.CodeRateLimited, "more than "+strconv.Itoa(perSecond)+" commands per second with this credential (limit commands_per_second)", nil)
	}
	return nil
}

// replayed counts n bytes of replay of a credential and returns how long to wait before sending more.
func (l *limits) replayed(name string, perSecond, n int) time.Duration {
	return l.limiter(&l.read, name, perSecond).ReserveN(time.Now(), min(n, perSecond)).Delay()
}
