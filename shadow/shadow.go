// Package shadow compares what another status service has written into a platform's database with what statussync said at
// the same times, so that a platform can run both side by side before it relies on this one.
//
// It only reads. A difference is one where statussync did not say the same at any time within the tolerance around the
// other's word: the two don't look at the same moment.
package shadow

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// Word is what the other service said of a server: a row of mcp_server_status_logs, or status_on_toolbox.
type Word struct {
	ID       string // of the row
	ServerID string
	At       time.Time
	State    string // empty: it is not to be compared
	Health   string // empty: not said
	Source   string
	Details  string
}

// ParseStatus reads the JSON of current_status; ok is false where it names no state.
func ParseStatus(data []byte) (state, health string, ok bool) {
	var v struct {
		State  any `json:"state"`
		Status any `json:"status"`
		Health any `json:"health"`
	}
	if json.Unmarshal(data, &v) != nil {
		return "", "", false
	}
	word := func(list ...any) string {
		for _, x := range list {
			if s, ok := x.(string); ok && s != "" {
				return strings.ToLower(strings.TrimSpace(statussync.CleanText(s, statussync.MaxWordText)))
			}
		}
		return ""
	}
	state, health = word(v.State, v.Status), word(v.Health)
	return state, health, state != ""
}

// Said is what statussync said of a server from a time on.
type Said struct {
	From    time.Time // zero: from before anything that is known
	Known   bool      // false: the server was not known then
	State   statussync.State
	Health  statussync.Health
	Reason  statussync.Reason
	Details string
}

// Timeline is what statussync said of one server, oldest first; each word holds until the next.
type Timeline []Said

// NewTimeline makes a Timeline of a server's entries, in any order, and of what it says now; now is nil where the server is
// not known any more.
func NewTimeline(entries []*statussync.Entry, now *Said) Timeline {
	list := make([]*statussync.Entry, 0, len(entries))
	for _, e := range entries {
		if e.Kind == statussync.KindStatus && e.Current != nil || e.Kind == statussync.KindServerRemoved {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b *statussync.Entry) int {
		if c := a.Timestamp.Compare(b.Timestamp); c != 0 {
			return c
		}
		return int(a.Seq) - int(b.Seq)
	})
	var out Timeline
	if len(list) == 0 {
		if now != nil {
			first := *now
			first.From = time.Time{}
			out = Timeline{first}
		}
		return out
	}
	first := Said{} // not known
	if p := list[0].Previous; p != nil && list[0].Version > 1 {
		first = Said{Known: true, State: p.State, Health: p.Health, Reason: p.Reason, Details: p.LastError}
	}
	out = append(out, first)
	for _, e := range list {
		s := Said{From: e.Timestamp}
		if e.Current != nil {
			s = Said{From: e.Timestamp, Known: true, State: e.Current.State, Health: e.Current.Health, Reason: e.Current.Reason, Details: e.Details}
		}
		out = append(out, s)
	}
	return out
}

// At is what was said at t.
func (l Timeline) At(t time.Time) Said {
	out := Said{}
	for i := range l {
		if l[i].From.After(t) {
			break
		}
		out = l[i]
	}
	return out
}

// during lists what was said at any time in [from, to].
func (l Timeline) during(from, to time.Time) []Said {
	out := []Said{l.At(from)}
	for _, s := range l {
		if s.From.After(from) && !s.From.After(to) {
			out = append(out, s)
		}
	}
	return out
}

// Side is one side of a Difference.
type Side struct {
	State  string    `json:"state"`
	Health string    `json:"health,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since,omitzero"`
}

// Difference is one word of the other service that statussync did not say.
type Difference struct {
	At       time.Time `json:"at"`
	ServerID string    `json:"server_id"`
	Where    string    `json:"where"` // mcp_server_status_logs or status_on_toolbox
	Theirs   Side      `json:"theirs"`
	Ours     Side      `json:"ours"`
	Why      string    `json:"why"`
}

// Where a word stands.
const (
	WhereLog    = "mcp_server_status_logs"
	WhereRecord = "status_on_toolbox"
)

// agrees reports whether s says what w does.
func agrees(w *Word, s *Said) bool {
	return s.Known && string(s.State) == w.State && (w.Health == "" || string(s.Health) == w.Health)
}

// explainWithin is how far around a word the same word of ours is looked for, to tell who was late.
const explainWithin = time.Hour

// Compare compares a word with what statussync said around its time. skipped is why it can't be compared.
func Compare(w *Word, l Timeline, tolerance time.Duration) (d *Difference, skipped string) {
	around := l.during(w.At.Add(-tolerance), w.At.Add(tolerance))
	known := false
	for i := range around {
		if agrees(w, &around[i]) {
			return nil, ""
		}
		known = known || around[i].Known
	}
	if !known {
		return nil, "statussync did not know the server then"
	}
	ours := l.At(w.At)
	if !ours.Known {
		ours = around[len(around)-1]
	}
	return &Difference{
		At: w.At, ServerID: w.ServerID, Where: WhereLog, Theirs: Side{State: w.State, Health: w.Health},
		Ours: Side{State: string(ours.State), Health: string(ours.Health), Reason: string(ours.Reason), Since: ours.From}, Why: why(w, l, &ours),
	}, ""
}

// why tells people what is behind a difference.
func why(w *Word, l Timeline, ours *Said) string {
	text := "statussync says " + string(ours.Reason)
	if ours.Details != "" {
		text = "statussync: " + ours.Details
	}
	if w.Details != "" {
		text += "; the other: " + statussync.CleanText(w.Details, statussync.MaxErrorText)
	}
	near, best := time.Duration(0), explainWithin+1
	for i, s := range l {
		if !agrees(w, &s) {
			continue
		}
		var off time.Duration
		switch end := l.end(i); {
		case s.From.After(w.At):
			off = s.From.Sub(w.At)
		case end.Before(w.At):
			off = -w.At.Sub(end)
		}
		if d := max(off, -off); d < best {
			near, best = off, d
		}
	}
	switch {
	case best > explainWithin:
	case near > 0:
		text += "; statussync said the same " + short(near) + " later"
	case near < 0:
		text += "; statussync had said the same until " + short(-near) + " before"
	}
	return text
}

// end is until when a word held.
func (l Timeline) end(i int) time.Time {
	if i+1 < len(l) {
		return l[i+1].From
	}
	return time.Unix(1<<40, 0) // still
}

func short(d time.Duration) string { return d.Round(time.Second).String() }

// CompareRecord compares status_on_toolbox as it stands with what statussync says now. A word without a state of its own
// (pending_config, or one that no table knows) can't be compared, and neither can a side that has only just changed.
func CompareRecord(w *Word, now *Said, at time.Time, tolerance time.Duration) (d *Difference, skipped string) {
	state, _ := statussync.RecordState(w.State)
	switch {
	case state == statussync.StateUnknown:
		return nil, "the word " + w.State + " says no state"
	case !now.Known:
		return nil, "statussync does not know the server"
	case state == now.State:
		return nil, ""
	case at.Sub(w.At) < tolerance || at.Sub(now.From) < tolerance:
		return nil, "it has only just changed"
	}
	text := "statussync says " + string(now.Reason)
	if now.Details != "" {
		text += ": " + now.Details
	}
	return &Difference{
		At: at, ServerID: w.ServerID, Where: WhereRecord, Theirs: Side{State: w.State, Since: w.At},
		Ours: Side{State: string(now.State), Health: string(now.Health), Reason: string(now.Reason), Since: now.From}, Why: text,
	}, ""
}

// Place is a position in a Log; without an id it is before everything of its time.
type Place struct {
	At time.Time
	ID string
}

// Log is the other service's memory.
type Log interface {
	// Words returns the words after a place, ordered by time and row id, at most limit.
	Words(ctx context.Context, after Place, limit int) ([]Word, error)
	// Records returns what every MCP server's row says now.
	Records(ctx context.Context) ([]Word, error)
}

// Ours asks a running statussync.
type Ours interface {
	// Timeline returns what was said of a server since a time; CodeNotFound has an empty one and no error.
	Timeline(ctx context.Context, serverID string, since time.Time) (Timeline, error)
	// Now returns what is said of every server.
	Now(ctx context.Context) (map[string]Said, error)
}

// Options of Run.
type Options struct {
	Log       Log
	Ours      Ours
	Since     time.Duration // how far back
	Tolerance time.Duration
	Follow    bool // go on with what is written from now on, until the context ends
	Tell      func(d *Difference) error
	Now       func() time.Time
}

// Report is what a run compared.
type Report struct {
	From        time.Time    `json:"from"`
	To          time.Time    `json:"to"`
	Rows        int          `json:"rows"`    // of the log
	Records     int          `json:"records"` // words of status_on_toolbox
	Agreed      int          `json:"agreed"`
	Skipped     int          `json:"skipped"`
	Reasons     []string     `json:"skipped_because"`
	Differences []Difference `json:"differences"` // at most MaxDifferences
	Count       int          `json:"differences_count"`
}

// Bounds of a run.
const (
	MaxDifferences = 10_000
	page           = 1000
	followEvery    = 2 * time.Second
	maxReasons     = 20
)

// Run compares until it is through, or with Follow until ctx ends (which is no error then). Each difference is told as it is
// found. It blocks, and starts no goroutine.
func Run(ctx context.Context, o Options) (*Report, error) {
	begin := o.Now()
	from := begin.Add(-o.Since)
	r := &Report{From: from, Reasons: []string{}, Differences: []Difference{}}
	seen := map[string]time.Time{} // rows that were compared, as far back as rows may come late
	after := Place{At: from}
	for {
		// Younger words wait: what statussync says within the tolerance after them counts, too.
		until := o.Now()
		if o.Follow {
			until = until.Add(-o.Tolerance)
		}
		more, err := o.pass(ctx, r, &after, until, seen)
		if err != nil {
			if o.Follow && ctx.Err() != nil {
				break
			}
			return r, err
		}
		r.To = until
		if more {
			continue
		}
		if !o.Follow {
			break
		}
		wait := time.NewTimer(followEvery)
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
		if ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return r, nil
	}
	return r, o.records(ctx, r)
}

// lateRows is for how long a row may appear after the time that stands in it.
const lateRows = time.Minute

// pass compares one page of words.
func (o *Options) pass(ctx context.Context, r *Report, after *Place, until time.Time, seen map[string]time.Time) (more bool, err error) {
	words, err := o.Log.Words(ctx, *after, page)
	if err != nil {
		return false, err
	}
	more = len(words) == page
	lines := map[string]Timeline{}
	newest := *after
	for i := range words {
		w := &words[i]
		if w.At.After(until) {
			more = false
			break
		}
		newest = Place{w.At, w.ID}
		if _, ok := seen[w.ID]; ok {
			continue
		}
		if w.State == "" { // our own, or one that says no state
			seen[w.ID] = w.At
			continue
		}
		l, ok := lines[w.ServerID]
		if !ok {
			if l, err = o.Ours.Timeline(ctx, w.ServerID, r.From.Add(-o.Tolerance)); err != nil {
				return false, err
			}
			lines[w.ServerID] = l
		}
		seen[w.ID] = w.At
		r.Rows++
		d, skipped := Compare(w, l, o.Tolerance)
		if err := o.count(r, d, skipped); err != nil {
			return false, err
		}
	}
	*after = newest
	if !more && o.Follow {
		if back := until.Add(-lateRows); after.At.After(back) && back.After(r.From) {
			*after = Place{At: back}
		}
	}
	for id, at := range seen {
		if at.Before(after.At.Add(-lateRows)) {
			delete(seen, id)
		}
	}
	return more, nil
}

func (o *Options) records(ctx context.Context, r *Report) error {
	words, err := o.Log.Records(ctx)
	if err != nil {
		return err
	}
	now, err := o.Ours.Now(ctx)
	if err != nil {
		return err
	}
	at := o.Now()
	for i := range words {
		said := now[words[i].ServerID]
		r.Records++
		d, skipped := CompareRecord(&words[i], &said, at, o.Tolerance)
		if err := o.count(r, d, skipped); err != nil {
			return err
		}
	}
	return nil
}

func (o *Options) count(r *Report, d *Difference, skipped string) error {
	switch {
	case skipped != "":
		r.Skipped++
		if len(r.Reasons) < maxReasons && !slices.Contains(r.Reasons, skipped) {
			r.Reasons = append(r.Reasons, skipped)
		}
	case d == nil:
		r.Agreed++
	default:
		r.Count++
		if len(r.Differences) < MaxDifferences {
			r.Differences = append(r.Differences, *d)
		}
		if o.Tell != nil {
			return o.Tell(d)
		}
	}
	return nil
}
