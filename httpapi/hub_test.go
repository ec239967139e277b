package httpapi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/agentopia/statussync"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memHub is a Hub in memory: a log, a view, and subscriptions that are positions in the log. It keeps the contracts of
// Hub and statussync.Subscription; what it does not do is conclude. Tests that need a whole service use the real hub.
type memHub struct {
	mu       sync.Mutex
	news     chan struct{} // closed and remade when something changed
	stopped  bool
	epoch    statussync.Epoch
	deleted  uint64 // entries up to it are gone
	log      []statussync.Encoded
	views    map[string]statussync.ServerView
	envs     []statussync.EnvironmentView
	observed []statussync.Observation
	full     bool             // the inbox
	fail     map[string]error // by method
	panics   map[string]any   // by method
	block    chan struct{}    // CheckNow waits for it
	durable  bool             //
	page     int              // servers per snapshot page
	metrics  statussync.SyncMetrics
	actors   []string
}

func newMemHub() *memHub {
	return &memHub{
		news: make(chan struct{}), epoch: "e7", views: map[string]statussync.ServerView{}, durable: true, page: 2,
		fail: map[string]error{}, panics: map[string]any{},
	}
}

// hook is at the beginning of every method: what a test wants to go wrong there.
func (h *memHub) hook(method string) error {
	h.mu.Lock()
	p, err := h.panics[method], h.fail[method]
	h.mu.Unlock()
	if p != nil {
		panic(p)
	}
	return err
}

func (h *memHub) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.news)
	h.news = make(chan struct{})
}

func (h *memHub) add(ids ...string) {
	h.set(func() {
		for _, id := range ids {
			h.views[id] = statussync.ServerView{
				Server: &statussync.Server{ID: id, Name: "name of " + id, EnvironmentID: "box-" + id[:1], Labels: map[string]string{"team": id[:1]}},
				Status: statussync.Status{State: statussync.StateUnknown, Health: statussync.HealthUnknown, Reason: statussync.ReasonNeverSeen},
			}
		}
	})
}

// change journals an update of a server.
func (h *memHub) change(id string, state statussync.State, health statussync.Health) *statussync.Entry {
	var e *statussync.Entry
	h.set(func() {
		v := h.views[id]
		prev, cur := v.Status, v.Status
		cur.State, cur.Health, cur.Reason, cur.Version = state, health, statussync.ReasonOK, prev.Version+1
		v.Status = cur
		h.views[id] = v
		e = &statussync.Entry{
			Seq: h.headLocked() + 1, Epoch: h.epoch, Kind: statussync.KindStatus, Timestamp: h.Now(), Source: statussync.SourceHeartbeat,
			Details: "changed", ServerID: id, EnvironmentID: v.Server.EnvironmentID, Version: cur.Version, Previous: &prev, Current: &cur,
			Changes: statussync.StatusChanges(&prev, &cur), Labels: v.Server.Labels,
		}
		h.log = append(h.log, statussync.Encoded{Entry: e, JSON: e.AppendJSON(nil)})
	})
	return e
}

func (h *memHub) headLocked() uint64 { return h.deleted + uint64(len(h.log)) }

// expire deletes the oldest entries.
func (h *memHub) expire(upTo uint64) {
	h.set(func() { h.log, h.deleted = h.log[upTo-h.deleted:], upTo })
}

func (h *memHub) Observe(_ context.Context, obs ...statussync.Observation) error {
	return h.TryObserve(obs...)
}

func (h *memHub) TryObserve(obs ...statussync.Observation) error {
	if err := h.hook("TryObserve"); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.full {
		return statussync.NewError(statussync.CodeUnavailable, "the inbox is full", nil)
	}
	h.observed = append(h.observed, obs...)
	return nil
}

func (h *memHub) Submit(ctx context.Context, obs ...statussync.Observation) ([]*statussync.Entry, error) {
	return nil, h.Observe(ctx, obs...)
}

func (h *memHub) Server(id string) (statussync.ServerView, error) {
	if err := h.hook("Server"); err != nil {
		return statussync.ServerView{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	v, ok := h.views[id]
	if !ok {
		return v, statussync.NotFound("server", id)
	}
	v.Now = h.Now()
	return v, nil
}

func (h *memHub) sortedLocked() []statussync.ServerView {
	var out []statussync.ServerView
	for _, v := range h.views {
		v.Now = h.Now()
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b statussync.ServerView) int { return cmp.Compare(a.Server.ID, b.Server.ID) })
	return out
}

func (h *memHub) Servers(q statussync.ServerQuery) ([]statussync.ServerView, bool, statussync.Cursor) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []statussync.ServerView
	for _, v := range h.sortedLocked() {
		s, st := v.Server, v.Status
		labels := true
		for k, want := range q.Labels {
			labels = labels && s.Labels[k] == want
		}
		if (q.States != nil && !slices.Contains(q.States, st.State)) || (q.Healths != nil && !slices.Contains(q.Healths, st.Health)) ||
			(q.Availabilities != nil && !slices.Contains(q.Availabilities, st.Availability())) ||
			(q.EnvironmentIDs != nil && !slices.Contains(q.EnvironmentIDs, s.EnvironmentID)) || !labels ||
			!strings.Contains(strings.ToLower(s.ID+s.Name), strings.ToLower(q.Text)) || s.ID <= q.After {
			continue
		}
		if len(out) == q.Limit {
			return out, true, statussync.Cursor{Epoch: h.epoch, Seq: h.headLocked()}
		}
		out = append(out, v)
	}
	return out, false, statussync.Cursor{Epoch: h.epoch, Seq: h.headLocked()}
}

func (h *memHub) Environments() []statussync.EnvironmentView {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.envs)
}

func (h *memHub) Environment(id string) (statussync.EnvironmentView, error) {
	for _, e := range h.Environments() {
		if e.Environment.ID == id {
			return e, nil
		}
	}
	return statussync.EnvironmentView{}, statussync.NotFound("environment", id)
}

func (h *memHub) Explain(_ context.Context, id string) (statussync.Explanation, error) {
	v, err := h.Server(id)
	return statussync.Explanation{Now: v.Now, Status: v.Status, Rules: []statussync.ExplainedRule{{Rule: "3l", Won: true, Reason: v.Status.Reason}}}, err
}

func (h *memHub) History(_ context.Context, q statussync.HistoryQuery) ([]statussync.Encoded, error) {
	if err := h.hook("History"); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []statussync.Encoded
	for _, e := range slices.Backward(h.log) {
		if e.ServerID == q.ServerID && !e.Timestamp.Before(q.From) && (q.Before == 0 || e.Seq < q.Before) && len(out) < q.Limit {
			out = append(out, e)
		}
	}
	return out, nil
}

func (h *memHub) Updates(_ context.Context, after statussync.Cursor, limit int, m *statussync.Matcher) ([]statussync.Encoded, statussync.Cursor, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !after.IsZero() && (after.Epoch != h.epoch || after.Seq < h.deleted || after.Seq > h.headLocked()) {
		return nil, after, statussync.NewError(statussync.CodeExpired, "entries after "+after.String()+" are not kept any more", nil)
	}
	var out []statussync.Encoded
	for _, e := range h.log {
		if e.Seq <= after.Seq || !m.Match(e.Entry) {
			continue
		}
		if out = append(out, e); len(out) == limit {
			return out, e.Cursor(), nil
		}
	}
	return out, statussync.Cursor{Epoch: h.epoch, Seq: h.headLocked()}, nil
}

func (h *memHub) CheckNow(ctx context.Context, id string) (statussync.ProbeResult, statussync.ServerView, error) {
	if err := h.hook("CheckNow"); err != nil {
		return statussync.ProbeResult{}, statussync.ServerView{}, err
	}
	if h.block != nil {
		select {
		case <-h.block:
		case <-ctx.Done():
			return statussync.ProbeResult{}, statussync.ServerView{}, ctx.Err()
		}
	}
	v, err := h.Server(id)
	return statussync.ProbeResult{ServerID: id, Outcome: statussync.OutcomeSuccess, HTTPStatus: 200, Latency: time.Millisecond, FinishedAt: h.Now()}, v, err
}

func (h *memHub) CheckAll(ctx context.Context) ([]statussync.CheckResult, error) {
	h.mu.Lock()
	views := h.sortedLocked()
	h.mu.Unlock()
	var out []statussync.CheckResult
	for i, v := range views {
		r, _, err := h.CheckNow(ctx, v.Server.ID)
		if i == 0 {
			err = statussync.NewError(statussync.CodeConflict, "is not probed", nil)
		}
		out = append(out, statussync.CheckResult{ServerID: v.Server.ID, Result: r, View: v, Err: err})
	}
	return out, nil
}

func (h *memHub) SetOverride(_ context.Context, id string, o statussync.Override) (statussync.ServerView, error) {
	v, err := h.Server(id)
	if err == nil {
		h.set(func() {
			v.Status.Override, v.Status.State, v.Status.Health = &o, o.State, o.Health
			h.views[id] = v
		})
	}
	return v, err
}

func (h *memHub) ClearOverride(_ context.Context, id, actor string) (statussync.ServerView, error) {
	v, err := h.Server(id)
	if err == nil {
		h.set(func() {
			v.Status.Override = nil
			h.views[id] = v
			h.actors = append(h.actors, actor)
		})
	}
	return v, err
}

func (h *memHub) SyncMetrics() statussync.SyncMetrics { return h.metrics }

func (h *memHub) Ready() statussync.Readiness {
	h.mu.Lock()
	defer h.mu.Unlock()
	return statussync.Readiness{Durable: h.durable, Head: statussync.Cursor{Epoch: h.epoch, Seq: h.headLocked()}, InboxUsed: 0.25}
}

func (h *memHub) Now() time.Time { return time.Now() }

func (h *memHub) Subscribe(_ context.Context, r statussync.SubscribeRequest) (statussync.Subscription, error) {
	if err := h.hook("Subscribe"); err != nil {
		return nil, err
	}
	m, err := r.Filter.Compile()
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	head := statussync.Cursor{Epoch: h.epoch, Seq: h.headLocked()}
	s := &memSub{h: h, m: m, pos: head.Seq, closed: make(chan struct{})}
	known := !r.Cursor.IsZero() && r.Cursor.Epoch == h.epoch && r.Cursor.Seq >= h.deleted && r.Cursor.Seq <= head.Seq
	snapshot := r.Snapshot
	first := statussync.Event{Type: statussync.EventSubscribed, Cursor: head, Durable: h.durable}
	if known && !r.Snapshot {
		first.Cursor, first.Recovered = r.Cursor, true
		s.pos = r.Cursor.Seq
	}
	s.queue = append(s.queue, first)
	if !r.Cursor.IsZero() && !known {
		reason := statussync.ResyncExpired
		if r.Cursor.Epoch != h.epoch {
			reason = statussync.ResyncEpoch
		}
		s.queue, snapshot = append(s.queue, statussync.Event{Type: statussync.EventResync, Reason: reason}), true
	}
	if snapshot {
		var items []statussync.ServerView
		for _, v := range h.sortedLocked() {
			if m.MatchServer(v.Server, &v.Status) {
				items = append(items, v)
			}
		}
		for {
			n := min(h.page, len(items))
			s.queue = append(s.queue, statussync.Event{Type: statussync.EventSnapshot, Items: items[:n], More: n < len(items)})
			if items = items[n:]; len(items) == 0 {
				break
			}
		}
		s.queue = append(s.queue, statussync.Event{Type: statussync.EventSnapshotEnd, Cursor: head})
	}
	return s, nil
}

type memSub struct {
	h      *memHub
	m      *statussync.Matcher
	pos    uint64
	queue  []statussync.Event
	once   sync.Once
	closed chan struct{}
}

func (s *memSub) Next(ctx context.Context, buf []statussync.Event) ([]statussync.Event, error) {
	for {
		s.h.mu.Lock()
		had := len(buf)
		for len(s.queue) > 0 && len(buf) < cap(buf) {
			buf, s.queue = append(buf, s.queue[0]), s.queue[1:]
		}
		if len(s.queue) == 0 {
			for head := s.h.headLocked(); s.pos < head && len(buf) < cap(buf); s.pos++ {
				if e := s.h.log[s.pos-s.h.deleted]; s.m.Match(e.Entry) {
					buf = append(buf, statussync.Event{Type: statussync.EventEntry, Cursor: e.Cursor(), Entry: e.Entry, JSON: e.JSON})
				}
			}
		}
		news, stopped := s.h.news, s.h.stopped
		s.h.mu.Unlock()
		if len(buf) > had {
			return buf, nil
		}
		if stopped {
			return buf, statussync.NewError(statussync.CodeUnavailable, "stopped", nil)
		}
		select {
		case <-news:
		case <-ctx.Done():
			return buf, ctx.Err()
		case <-s.closed:
			return buf, statussync.NewError(statussync.CodeUnavailable, "closed", nil)
		}
	}
}

func (s *memSub) Bookmark() (statussync.Cursor, bool) {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if len(s.queue) > 0 {
		return statussync.Cursor{}, false
	}
	for _, e := range s.h.log {
		if e.Seq > s.pos && s.m.Match(e.Entry) {
			return statussync.Cursor{}, false
		}
	}
	return statussync.Cursor{Epoch: s.h.epoch, Seq: s.h.headLocked()}, true
}

func (s *memSub) Close() { s.once.Do(func() { close(s.closed) }) }

var _ Hub = (*memHub)(nil)

func ids(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%c-%03d", 'a'+i%3, i)
	}
	return out
}
