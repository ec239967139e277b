package statussynctest_test

import (
	"context"
	"strings"
	"testing"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/statussynctest"
)

// scripted is a subscription that tells what the test says, right or wrong.
type scripted struct{ events []statussync.Event }

func (s *scripted) Next(_ context.Context, buf []statussync.Event) ([]statussync.Event, error) {
	if len(s.events) == 0 {
		return buf, context.Canceled
	}
	buf = append(buf, s.events[0])
	s.events = s.events[1:]
	return buf, nil
}

func (s *scripted) Bookmark() (statussync.Cursor, bool) { return statussync.Cursor{}, false }
func (s *scripted) Close()                              {}

func at(seq uint64) statussync.Cursor { return statussync.Cursor{Epoch: "e1", Seq: seq} }

var (
	up   = statussync.Status{State: statussync.StateRunning, Health: statussync.HealthHealthy, Reason: statussync.ReasonOK}
	down = statussync.Status{State: statussync.StateError, Health: statussync.HealthUnhealthy, Reason: statussync.ReasonProbeFailing}
)

func item(id string, st statussync.Status, version uint64) statussync.ServerView {
	st.Version = version
	return statussync.ServerView{Server: &statussync.Server{ID: id}, Status: st}
}

func update(seq uint64, id string, version uint64, prev, cur statussync.Status) statussync.Event {
	e := &statussync.Entry{Seq: seq, Epoch: "e1", Kind: statussync.KindStatus, ServerID: id, Version: version, Previous: &prev, Current: &cur}
	return statussync.Event{Type: statussync.EventEntry, Cursor: at(seq), Entry: e, JSON: e.AppendJSON(nil)}
}

func snapshot(seq uint64, items ...statussync.ServerView) []statussync.Event {
	return []statussync.Event{
		{Type: statussync.EventSnapshot, Items: items},
		{Type: statussync.EventSnapshotEnd, Cursor: at(seq)},
	}
}

// TestRecorderSees shows that the recorder notes each kind of broken promise, and nothing where none is broken.
func TestRecorderSees(t *testing.T) {
	subscribed := statussync.Event{Type: statussync.EventSubscribed, Cursor: at(5), Durable: true}
	begin := append([]statussync.Event{subscribed}, snapshot(5, item("a", up, 1), item("b", up, 3))...)
	truth := []statussync.ServerView{item("a", down, 2), item("b", up, 3)}
	good := update(6, "a", 2, up, down)
	spoilt := update(6, "a", 2, up, down)
	spoilt.JSON = []byte(`{}`)
	otherEpoch := update(6, "a", 2, up, down)
	otherEpoch.Cursor.Epoch = "e2"
	for name, c := range map[string]struct {
		events []statussync.Event
		want   string // part of what is wrong; empty: nothing
	}{
		"nothing wrong":            {append(begin[:3:3], good), ""},
		"resynced":                 {append(append(begin[:3:3], statussync.Event{Type: statussync.EventResync, Reason: statussync.ResyncEpoch}), snapshot(9, truth...)...), ""},
		"lost the last":            {begin, "version 1, and is error/unhealthy version 2"},
		"a gap in versions":        {append(begin[:3:3], update(6, "a", 3, up, down)), "from version 1 to 3"},
		"a repeat":                 {append(begin[:3:3], good, good), "again"},
		"out of order":             {append(begin[:3:3], update(8, "b", 4, up, down), update(7, "a", 2, up, down)), "out of order"},
		"another history":          {append(begin[:3:3], update(6, "a", 2, down, up)), "was believed running"},
		"no snapshot":              {[]statussync.Event{subscribed, good}, "while a snapshot is due"},
		"no subscribed":            {begin[1:], "subscribed comes first"},
		"end without a page":       {[]statussync.Event{subscribed, {Type: statussync.EventSnapshotEnd, Cursor: at(5)}}, "without a last page"},
		"end before the last page": {[]statussync.Event{subscribed, {Type: statussync.EventSnapshot, Items: []statussync.ServerView{item("a", up, 1)}, More: true}, {Type: statussync.EventSnapshotEnd}}, "without a last page"},
		"unsorted":                 {append([]statussync.Event{subscribed}, snapshot(5, item("b", up, 3), item("a", up, 1))...), `"a" after "b"`},
		"foreign JSON":             {append(begin[:3:3], spoilt), "its JSON is another's"},
		"an epoch without resync":  {append(begin[:3:3], otherEpoch), "without a resync"},
		"a server too many":        {append(begin[:3:3], good, update(7, "c", 1, down, up)), "c is believed, but is not there"},
		"a resync without snapshot": {append(begin[:3:3], statussync.Event{Type: statussync.EventResync, Reason: statussync.ResyncExpired}, good),
			"while a snapshot is due"},
	} {
		t.Run(name, func(t *testing.T) {
			r := statussynctest.NewRecorder(&scripted{c.events}, statussync.SubscribeRequest{Snapshot: true})
			if err := r.Run(t.Context()); err != context.Canceled {
				t.Fatal(err)
			}
			err := r.Check(truth)
			if c.want == "" && err != nil {
				t.Errorf("found %v", err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("found %v, want %q", err, c.want)
			}
		})
	}
}

func TestRecorderResume(t *testing.T) {
	req := statussync.SubscribeRequest{Snapshot: true}
	first := append([]statussync.Event{{Type: statussync.EventSubscribed, Cursor: at(5)}}, snapshot(5, item("a", up, 1))...)
	for name, c := range map[string]struct {
		sub  statussync.Event
		more []statussync.Event
		want string
	}{
		"continued":               {statussync.Event{Type: statussync.EventSubscribed, Cursor: at(5), Recovered: true}, []statussync.Event{update(6, "a", 2, up, down)}, ""},
		"continued with a hole":   {statussync.Event{Type: statussync.EventSubscribed, Cursor: at(5), Recovered: true}, []statussync.Event{update(7, "a", 3, up, down)}, "from version 1 to 3"},
		"continued elsewhere":     {statussync.Event{Type: statussync.EventSubscribed, Cursor: at(6), Recovered: true}, nil, "asked for e1:5"},
		"not continued, no word":  {statussync.Event{Type: statussync.EventSubscribed, Cursor: at(9)}, []statussync.Event{update(10, "a", 2, up, down)}, "want resync"},
		"not continued, resynced": {statussync.Event{Type: statussync.EventSubscribed, Cursor: at(9)}, append([]statussync.Event{{Type: statussync.EventResync, Reason: statussync.ResyncExpired}}, snapshot(9, item("a", down, 2))...), ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := statussynctest.NewRecorder(&scripted{first}, req)
			_ = r.Run(t.Context())
			r.Resume(&scripted{append([]statussync.Event{c.sub}, c.more...)}, statussync.SubscribeRequest{Cursor: r.Cursor()})
			_ = r.Run(t.Context())
			err := r.Check([]statussync.ServerView{item("a", down, 2)})
			if (c.want == "") != (err == nil) || (c.want != "" && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("found %v, want %q", err, c.want)
			}
		})
	}
}
