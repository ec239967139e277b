package rollup

import (
	"time"

	"github.com/agentopia/statussync"
)

// track is the last span of a server.
type track struct {
	class  statussync.SpanClass
	begin  time.Time
	state  statussync.State // empty, like health: not known
	health statussync.Health
}

// tracker makes spans of entries and statuses. It is pure: time comes with what it is given.
type tracker struct {
	open map[string]track // servers that are not removed
	at   time.Time        // up to then everything is known
	out  []statussync.Span
}

// put begins a span where class, state or health change. Time does not go back.
func (t *tracker) put(id string, at time.Time, c statussync.SpanClass, st *statussync.Status, details string) {
	at = at.Truncate(time.Millisecond)
	old, known := t.open[id]
	if known {
		at = latest(at, old.begin)
	}
	s := statussync.Span{ServerID: id, Begin: at, Class: c}
	if st != nil {
		s.State, s.Health, s.Reason, s.Cause = st.State, st.Health, st.Reason, st.Cause
	}
	if (known && old.class == c && old.state == s.State && old.health == s.Health) || (!known && c == statussync.SpanRemoved) {
		return
	}
	if c == statussync.SpanUnavailable {
		s.Details = statussync.CleanText(details, statussync.MaxErrorText)
	}
	t.out = append(t.out, s)
	if c == statussync.SpanRemoved {
		delete(t.open, id)
		return
	}
	t.open[id] = track{c, at, s.State, s.Health}
}

// entry takes the next status update or removal.
func (t *tracker) entry(e *statussync.Entry) {
	switch e.Kind {
	case statussync.KindServerRemoved:
		t.put(e.ServerID, e.Timestamp, statussync.SpanRemoved, nil, "")
	case statussync.KindStatus:
		if e.Previous != nil {
			t.before(e.ServerID, e.Previous)
		}
		if e.Current != nil {
			t.put(e.ServerID, e.Timestamp, statussync.SpanClassOf(e.Current), e.Current, e.Details)
		}
	default:
		return
	}
	t.at = latest(t.at, e.Timestamp)
}

// before takes what an update says of the status before it. Where that is not what is known, entries were lost, or it is
// the first that is seen of a server.
func (t *tracker) before(id string, prev *statussync.Status) {
	c := statussync.SpanClassOf(prev)
	old, known := t.open[id]
	switch {
	case !known && c != statussync.SpanUnknown && !prev.Since.IsZero():
		t.put(id, prev.Since, c, prev, prev.LastError)
	case known && old.class != c:
		t.put(id, t.at, statussync.SpanUnknown, nil, "")
		if prev.Since.After(t.at) {
			t.put(id, prev.Since, c, prev, prev.LastError)
		}
	}
}

// present is one server of a snapshot.
type present struct {
	id     string
	status statussync.Status
}

// compare takes the statuses of all servers as they are at now, after a gap since t.at: what has kept its class goes on,
// everything else is unknown from t.at until what it is now began. A maintenance mark has no time of its own: one that
// is new counts from now.
func (t *tracker) compare(all []present, now time.Time) {
	here := make(map[string]bool, len(all))
	for i := range all {
		id, st := all[i].id, &all[i].status
		here[id] = true
		c := statussync.SpanClassOf(st)
		begin := st.Since
		if begin.IsZero() || begin.After(now) {
			begin = now
		}
		old, known := t.open[id]
		if !known {
			if c == statussync.SpanMaintenance {
				begin = now
			}
			if st.Version > 0 { // else nothing was concluded yet
				t.put(id, begin, c, st, st.LastError)
			}
			continue
		}
		if old.class == c && !begin.After(t.at) {
			continue
		}
		t.put(id, t.at, statussync.SpanUnknown, nil, "")
		if c == statussync.SpanMaintenance || !begin.After(t.at) {
			begin = now
		}
		t.put(id, begin, c, st, st.LastError)
	}
	for id := range t.open {
		if !here[id] {
			t.put(id, t.at, statussync.SpanRemoved, nil, "")
		}
	}
	t.at = latest(t.at, now)
}
