package rollup

import (
	"context"
	"time"

	"github.com/agentopia/statussync"
)

// Timeline returns one server's time in the last window as stretches. CodeInvalid is located at window; CodeNotFound:
// nothing is known of the server, and nothing stored.
func (s *Service) Timeline(ctx context.Context, id string, window time.Duration) (statussync.Timeline, error) {
	out := statussync.Timeline{ServerID: id}
	from, to, err := s.window(window)
	if err != nil {
		return out, err
	}
	out.From, out.To = from, to
	found := false
	err = s.spans(ctx, []string{id}, from, to, func(_ string, spans []statussync.Span) error {
		found = true
		out.Stretches = Stretches(spans, from, to)
		return nil
	})
	if err == nil && !found {
		err = s.known(id)
	}
	return out, err
}

// timelineCells is into how many cells a window is cut where its stretches are too many. L stretches that are longer than
// a cell leave at most timelineCells − L cells of time in L + 1 places, which touch at most timelineCells − L + 2(L + 1)
// cells, each giving one that is merged: all together fewer than 3 · timelineCells.
const timelineCells = statussync.MaxStretches/3 - 10

// Stretches returns the stretches of from ≤ t < to that spans, by Begin, make; those that begin before from are cut. At
// most MaxStretches: where there would be more, those that are shorter than about 1/320 of the window are merged with
// their neighbours in the same part of it.
func Stretches(spans []statussync.Span, from, to time.Time) []statussync.Stretch {
	var out []statussync.Stretch
	for i := range spans {
		x := statussync.Stretch{Span: spans[i]}
		x.Details = "" // incidents have them; here they would be most of what is sent
		if !x.Begin.Before(to) {
			break
		}
		end := to
		if i+1 < len(spans) && spans[i+1].Begin.Before(to) {
			x.End = spans[i+1].Begin
			end = x.End
		}
		x.Begin = latest(x.Begin, from)
		if x.Begin.Before(end) {
			out = append(out, x)
		}
	}
	if len(out) <= statussync.MaxStretches {
		return out
	}
	cell := to.Sub(from)/timelineCells + 1
	var merged []statussync.Stretch
	in := int64(-1) // the cell whose short stretches are being merged into the last
	for _, x := range out {
		end := x.End
		if end.IsZero() {
			end = to
		}
		if end.Sub(x.Begin) >= cell {
			merged, in = append(merged, x), -1
			continue
		}
		at := int64(x.Begin.Sub(from) / cell)
		if at != in {
			merged, in = append(merged, x), at
			continue
		}
		last := &merged[len(merged)-1]
		n := max(last.Merged, 1) + 1
		if x.Class.Worse(last.Class) {
			begin := last.Begin
			last.Span = x.Span
			last.Begin = begin
		}
		last.End, last.Merged = x.End, n
	}
	return merged
}
