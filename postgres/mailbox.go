package postgres

import (
	"sync"
	"time"

	"github.com/agentopia/statussync"
)

// maxPending bounds the ids that wait to be read; more than that, and everything is read.
const maxPending = 20_000

// mailbox is where a feed leaves what it tells. Its methods never block. It merges: a row that is told of many times is
// read once.
type mailbox struct {
	wake chan struct{} // has room for one

	mu        sync.Mutex
	instances map[string]struct{}
	envs      map[string]struct{}
	all       bool // everything is to be read
	live      bool
	turned    bool // live or cause has changed since take
	cause     error
	since     time.Time // when the oldest of what waits was told; zero: nothing waits
	changes   uint64
}

func newMailbox() *mailbox {
	return &mailbox{wake: make(chan struct{}, 1), instances: map[string]struct{}{}, envs: map[string]struct{}{}}
}

func (m *mailbox) nudge() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Live implements statussync.FeedReceiver.
func (m *mailbox) Live() {
	m.mu.Lock()
	m.live, m.turned, m.cause, m.all = true, true, nil, true
	m.mu.Unlock()
	m.nudge()
}

// Lost implements statussync.FeedReceiver.
func (m *mailbox) Lost(cause error) {
	m.mu.Lock()
	m.live, m.turned, m.cause = false, true, cause
	m.mu.Unlock()
	m.nudge()
}

// Changed implements statussync.FeedReceiver.
func (m *mailbox) Changed(changes []statussync.RowChange) {
	now := time.Now()
	m.mu.Lock()
	m.changes += uint64(len(changes))
	some := false
	for i := range changes {
		some = m.addLocked(changes[i].Table, changes[i].ID) || some
	}
	if some && m.since.IsZero() {
		m.since = now
	}
	m.mu.Unlock()
	if some {
		m.nudge()
	}
}

func (m *mailbox) addLocked(table, id string) bool {
	var set map[string]struct{}
	switch table {
	case tableInstances:
		set = m.instances
	case tableEnvironments:
		set = m.envs
	default:
		return false
	}
	switch {
	case m.all:
	case id == "", len(m.instances)+len(m.envs) >= maxPending:
		m.all = true
	case faultOfID(id) == "": // no row that we know has another; the payload is anybody's
		set[id] = struct{}{}
	default:
		return false
	}
	return true
}

// letters is what was in the mailbox.
type letters struct {
	instances, envs []string
	all             bool
	live, turned    bool
	cause           error
	since           time.Time
}

// take empties the mailbox.
func (m *mailbox) take() letters {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := letters{all: m.all, live: m.live, turned: m.turned, cause: m.cause, since: m.since}
	if !m.all { // else these rows are read, too
		l.instances, l.envs = keys(m.instances), keys(m.envs)
	}
	clear(m.instances)
	clear(m.envs)
	m.all, m.turned, m.since = false, false, time.Time{}
	return l
}

// again puts back what could not be read.
func (m *mailbox) again(instances, envs []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range instances {
		m.addLocked(tableInstances, id)
	}
	for _, id := range envs {
		m.addLocked(tableEnvironments, id)
	}
}

func (m *mailbox) stats() (changes uint64, oldest time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.since.IsZero() {
		oldest = time.Since(m.since)
	}
	return m.changes, oldest
}

func keys(set map[string]struct{}) []string {
	if len(set) == 0 {
		return nil
	}
	out := make([]string, 0, len(set))
	for id := range set {
		out = append(out, id)
	}
	return out
}
