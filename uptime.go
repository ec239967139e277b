package statussync

import "time"

// SpanClass is what a stretch of a server's time counts as in its uptime: its availability, or maintenance while that
// mark is set, whatever the status; or removed, from when no registry defines the server.
type SpanClass string

// The classes. The first six are the availabilities.
const (
	SpanUnavailable = SpanClass(Unavailable)
	SpanAvailable   = SpanClass(Available)
	SpanLimited     = SpanClass(Limited)
	SpanChanging    = SpanClass(Changing)
	SpanOff         = SpanClass(Off)
	SpanUnknown     = SpanClass(AvailabilityUnknown)

	SpanMaintenance SpanClass = "maintenance"
	SpanRemoved     SpanClass = "removed"
)

// SpanClasses lists every SpanClass. The order is part of what is stored: only ever append.
var SpanClasses = []SpanClass{
	SpanUnavailable, SpanAvailable, SpanLimited, SpanChanging, SpanOff, SpanUnknown, SpanMaintenance, SpanRemoved,
}

// SpanClassOf returns the class of the time during which a server has this status.
func SpanClassOf(s *Status) SpanClass {
	if s.Marks.Has(MarkMaintenance) {
		return SpanMaintenance
	}
	return SpanClass(s.Availability())
}

// EndsIncident reports whether an incident is over when this class begins (docs/domain.md, Uptime). Changing and
// unknown don't end one: a server that is restarted because it was down is not up before it has answered.
func (c SpanClass) EndsIncident() bool {
	switch c {
	case SpanAvailable, SpanLimited, SpanOff, SpanMaintenance, SpanRemoved:
		return true
	}
	return false
}

// Span is the beginning of a stretch of one server's time that counts as Class, and in which State and Health stay the
// same. It lasts until the server's next one.
type Span struct {
	ServerID string
	Begin    time.Time // kept to the millisecond
	Class    SpanClass
	State    State // empty, like Health: not known
	Health   Health
	Reason   Reason // of the status with which it began, like Cause and Details
	Cause    string
	Details  string // only of SpanUnavailable: one sentence for people; untrusted
}

// SpanTrack is the last span that is stored of a server which is not removed.
type SpanTrack struct {
	ServerID string
	Begin    time.Time
	Class    SpanClass
	State    State // empty, like Health: not known
	Health   Health
}

// SpanCheckpoint is how far stored spans reach: all entries up to Cursor went into them, and At is engine time up to
// which it is known that there were no others. Zero: there is none.
type SpanCheckpoint struct {
	Cursor Cursor
	At     time.Time
}

// Uptime is how a server's time was spent between From and To. The durations of all classes add up to the window; time
// before the first span, and after the server's removal, is unknown.
type Uptime struct {
	ServerID string // empty: a total, the sums over Servers
	Servers  int    // 1, or in a total how many
	From, To time.Time

	Available, Limited, Unavailable, Changing, Off, Unknown, Maintenance time.Duration

	Incidents int           // that overlap the window
	Ended     int           // of them, those that ended in it
	Repair    time.Duration // the whole lengths of those that ended, all together
}

// Up is the time during which the server could be used.
func (u *Uptime) Up() time.Duration { return u.Available + u.Limited }

// Availability returns the share (0 to 1) of the time that counts during which the server could be used:
// (available + limited) / (window − unknown − maintenance − off). False: no time counts.
func (u *Uptime) Availability() (share float64, ok bool) {
	counts := u.Up() + u.Unavailable + u.Changing
	if counts <= 0 {
		return 0, false
	}
	return float64(u.Up()) / float64(counts), true
}

// MTTR is the mean time to repair: the mean whole length of the incidents that ended in the window. False: none did.
func (u *Uptime) MTTR() (time.Duration, bool) {
	if u.Ended == 0 {
		return 0, false
	}
	return u.Repair / time.Duration(u.Ended), true
}

// MTBF is the mean time between failures: Up for each incident. False: there was none.
func (u *Uptime) MTBF() (time.Duration, bool) {
	if u.Incidents == 0 {
		return 0, false
	}
	return u.Up() / time.Duration(u.Incidents), true
}

// Add makes u the total of u and o. From and To are o's.
func (u *Uptime) Add(o *Uptime) {
	u.ServerID, u.From, u.To = "", o.From, o.To
	u.Servers += o.Servers
	u.Available += o.Available
	u.Limited += o.Limited
	u.Unavailable += o.Unavailable
	u.Changing += o.Changing
	u.Off += o.Off
	u.Unknown += o.Unknown
	u.Maintenance += o.Maintenance
	u.Incidents += o.Incidents
	u.Ended += o.Ended
	u.Repair += o.Repair
}

// Incident is a time during which a server could not be used, outside maintenance (docs/domain.md, Uptime).
type Incident struct {
	ServerID string
	Begin    time.Time
	End      time.Time     // zero: it goes on
	Duration time.Duration // to End, or to when it was asked for
	Reason   Reason        // of the status with which it began, like Cause and Details
	Cause    string
	Details  string // untrusted
}

// IncidentQuery selects incidents that overlap the last Window.
type IncidentQuery struct {
	ServerID string // empty: of all servers
	Window   time.Duration
	Limit    int // at least 1
	// After is the last incident of the page before: only its ServerID and Begin count. nil: the newest.
	After *Incident
}

// ProbeRow counts the probes of one server that ended in one minute, or one hour.
type ProbeRow struct {
	ServerID string
	Start    time.Time // of the minute or hour
	Count    uint64
	Failures uint64
	Sketch   []byte // of the latencies of those that did not fail; package rollup knows its form. Empty: none
}

// ProbeMarks is how far a store of ProbeRows reaches.
type ProbeMarks struct {
	HoursTo     time.Time // hours before it are made from their minutes; zero: there are no rows at all
	MinutesFrom time.Time // minutes before it are deleted, or will be; it is a whole hour. Zero: none was
	Run         string    // the newest batch of minutes stored: which process stored it,
	Batch       uint64    // and its number there
}

// ProbeResolution is how fine the rows are that a ProbeReport is made from.
type ProbeResolution string

// The resolutions.
const (
	ResolutionMinute ProbeResolution = "minute"
	ResolutionHour   ProbeResolution = "hour"
)

// How long probes and spans are kept.
const (
	KeepProbeMinutes = 48 * time.Hour
	KeepProbeHours   = 90 * 24 * time.Hour
	KeepSpans        = 90 * 24 * time.Hour
)

// ProbeStep counts the probes of one step of time. The quantiles are of the latencies of those that did not fail, within
// 1 %; they mean nothing where Count equals Failures.
type ProbeStep struct {
	Start         time.Time // zero in a total
	Count         uint64
	Failures      uint64
	P50, P95, P99 time.Duration
}

// ProbeReport is what one server's probes gave in the last Window. Steps begin at multiples of Step since 1970-01-01
// UTC; those without a probe are left out. The first and the last may be partial.
type ProbeReport struct {
	ServerID     string
	Window, Step time.Duration
	Resolution   ProbeResolution
	Steps        []ProbeStep // by time
	Total        ProbeStep
}
