package statussync

import (
	"fmt"
	"strings"
	"time"
)

// Maintenance is a window in which nobody is alerted and nothing is recovered. It selects servers that match any of
// its selectors; Labels match when all are equal. Without RRule it is open once, from StartsAt until EndsAt. With it,
// these are its first occurrence, the template of all others (docs/domain.md, step 6).
type Maintenance struct {
	ID             string
	ServerIDs      []string
	EnvironmentIDs []string
	Labels         map[string]string
	StartsAt       time.Time
	EndsAt         time.Time // where an occurrence ends, by the wall clock in TimeZone
	RRule          string    // RFC 5545 RRULE text without DTSTART; empty: one occurrence
	TimeZone       string    // IANA name; only with RRule
	Duration       time.Duration
	Note           string // untrusted text
	Actor          string // the credential's name
}

// Limits of maintenance windows. The number of ids and labels is bounded by MaxFilterIDs.
const (
	MaxMaintenanceFor = 366 * 24 * time.Hour // of one occurrence
	MaxRRuleLen       = 500                  // bytes
	MaxTimeZoneLen    = 64                   // bytes
	MaxMaintenances   = 1000                 // windows that are kept at a time
)

// Complete fills what was left out and checks the rest, but for the rule and the time zone: those are checked by whoever
// can read them (RecurrenceParser). A window that is open once starts now where StartsAt is zero, and ends Duration later
// where that is given instead of EndsAt; its Duration is then zero. A recurring one keeps its Duration, which means that
// each occurrence lasts exactly so long. Complete may be called again on its own result. The error has code CodeInvalid and
// names the field.
func (m *Maintenance) Complete(now time.Time) error {
	recurs := m.RRule != ""
	if m.StartsAt.IsZero() {
		if recurs {
			return Invalid("starts_at", "is required with rrule: it is the first occurrence")
		}
		m.StartsAt = now
	}
	switch {
	case m.Duration < 0:
		return Invalid("duration", "must be greater than zero")
	case m.Duration > MaxMaintenanceFor:
		return Invalid("duration", "must be at most 366d")
	case m.Duration > 0 && !m.EndsAt.IsZero() && !m.EndsAt.Equal(m.StartsAt.Add(m.Duration)):
		return Invalid("duration", "goes instead of ends_at, not with it")
	case m.Duration == 0 && m.EndsAt.IsZero():
		return Invalid("ends_at", "is required, or duration instead")
	}
	if recurs { // calendar rules know whole seconds
		m.StartsAt, m.EndsAt, m.Duration = m.StartsAt.Truncate(time.Second), m.EndsAt.Truncate(time.Second), m.Duration.Truncate(time.Second)
	}
	if m.Duration > 0 {
		m.EndsAt = m.StartsAt.Add(m.Duration)
		if !recurs {
			m.Duration = 0
		}
	}
	for _, t := range []struct {
		field string
		at    time.Time
	}{{"starts_at", m.StartsAt}, {"ends_at", m.EndsAt}} {
		if y := t.at.UTC().Year(); y < 1970 || y > 2999 {
			return Invalid(t.field, "must lie between the years 1970 and 2999")
		}
	}
	switch {
	case !m.EndsAt.After(m.StartsAt):
		return Invalid("ends_at", "must be after starts_at")
	case m.EndsAt.Sub(m.StartsAt) > MaxMaintenanceFor:
		return Invalid("ends_at", "must be at most 366d after starts_at")
	case len(m.RRule) > MaxRRuleLen:
		return Invalid("rrule", fmt.Sprintf("is longer than %d bytes", MaxRRuleLen))
	case len(m.TimeZone) > MaxTimeZoneLen:
		return Invalid("time_zone", fmt.Sprintf("is longer than %d bytes", MaxTimeZoneLen))
	case m.TimeZone != "" && !recurs:
		return Invalid("time_zone", "goes only with rrule; starts_at and ends_at say what they mean")
	case len(m.Note) > MaxNoteLen:
		return Invalid("note", fmt.Sprintf("is longer than %d bytes", MaxNoteLen))
	case len(m.ServerIDs) == 0 && len(m.EnvironmentIDs) == 0 && len(m.Labels) == 0:
		return Invalid("server_ids", "a window needs servers, environments or labels")
	}
	if recurs && m.TimeZone == "" {
		m.TimeZone = "UTC"
	}
	for _, l := range []struct {
		field string
		n     int
	}{{"server_ids", len(m.ServerIDs)}, {"environment_ids", len(m.EnvironmentIDs)}, {"labels", len(m.Labels)}} {
		if l.n > MaxFilterIDs {
			return Invalid(l.field, fmt.Sprintf("holds %d; at most %d are allowed", l.n, MaxFilterIDs))
		}
	}
	for k, v := range m.Labels {
		if k == "" || len(k) > MaxNameText || len(v) > MaxNameText {
			return Invalid("labels", fmt.Sprintf("a key must have 1 to %d bytes, and a value at most as many", MaxNameText))
		}
	}
	return nil
}

// Selects reports whether the window is about s, whatever the time.
func (m *Maintenance) Selects(s *Server) bool {
	for _, id := range m.ServerIDs {
		if id == s.ID {
			return true
		}
	}
	for _, id := range m.EnvironmentIDs {
		if id == s.EnvironmentID {
			return true
		}
	}
	return len(m.Labels) > 0 && hasLabels(s.Labels, m.Labels)
}

// Clean makes the window's text fit to be stored and shown.
func (m *Maintenance) Clean() {
	m.Note = CleanText(m.Note, MaxNoteLen)
	m.RRule, m.TimeZone = strings.TrimSpace(m.RRule), strings.TrimSpace(m.TimeZone)
}

// Recurrence is the rule of a recurring window. It is immutable and safe for concurrent use, and a pure function of the
// window: the same question has the same answer.
type Recurrence interface {
	// Next returns the first occurrence that ends after a time; ok is false where there is none any more. Occurrences come
	// in order, don't overlap, and end after they start.
	Next(after time.Time) (start, end time.Time, ok bool)
}

// RecurrenceParser reads the rule of a complete window whose RRule is not empty. The error is a *Error with code
// CodeInvalid that names the field: rrule, time_zone, starts_at, ends_at or duration. Package recur has one.
type RecurrenceParser func(m *Maintenance) (Recurrence, error)

// MaintenanceView is a window as it stands now. Window is shared.
type MaintenanceView struct {
	Window    *Maintenance
	Open      bool      // an occurrence is running
	NextBegin time.Time // when it begins the next time; zero: never again
	NextEnd   time.Time // when it ends the next time
	Servers   int       // how many servers it selects
}
