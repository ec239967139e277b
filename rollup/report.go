package rollup

import (
	"time"

	"github.com/agentopia/statussync"
)

// Report counts how one server's time was spent in from ≤ t < to, and returns the incidents that overlap it, by begin.
// spans are the server's, by Begin; they should reach back to the last one at or before from that ends an incident. Time
// before the first of them is unknown. The rules are those of docs/domain.md, Uptime.
func Report(id string, spans []statussync.Span, from, to time.Time) (statussync.Uptime, []statussync.Incident) {
	u := statussync.Uptime{ServerID: id, Servers: 1, From: from, To: to}
	if !from.Before(to) {
		return u, nil
	}
	var incidents []statussync.Incident
	var open *statussync.Incident
	close := func(end time.Time) {
		open.End, open.Duration = end, end.Sub(open.Begin)
		if end.After(from) {
			incidents = append(incidents, *open)
			u.Ended++
			u.Repair += open.Duration
		}
		open = nil
	}
	known := to // where the first span begins
	for i := range spans {
		s := &spans[i]
		if !s.Begin.Before(to) {
			break
		}
		if i == 0 {
			known = s.Begin
		}
		end := to
		if i+1 < len(spans) && spans[i+1].Begin.Before(to) {
			end = spans[i+1].Begin
		}
		if d := end.Sub(latest(s.Begin, from)); d > 0 {
			*timeOf(&u, s.Class) += d
		}
		switch {
		case open != nil && s.Class.EndsIncident():
			close(s.Begin)
		case open == nil && s.Class == statussync.SpanUnavailable:
			open = &statussync.Incident{ServerID: id, Begin: s.Begin, Reason: s.Reason, Cause: s.Cause, Details: s.Details}
		}
	}
	if d := known.Sub(from); d > 0 {
		u.Unknown += d
	}
	if open != nil {
		open.Duration = to.Sub(open.Begin)
		incidents = append(incidents, *open)
	}
	u.Incidents = len(incidents)
	return u, incidents
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// timeOf is where the time of a class is counted.
func timeOf(u *statussync.Uptime, c statussync.SpanClass) *time.Duration {
	switch c {
	case statussync.SpanAvailable:
		return &u.Available
	case statussync.SpanLimited:
		return &u.Limited
	case statussync.SpanUnavailable:
		return &u.Unavailable
	case statussync.SpanChanging:
		return &u.Changing
	case statussync.SpanOff:
		return &u.Off
	case statussync.SpanMaintenance:
		return &u.Maintenance
	}
	return &u.Unknown
}
