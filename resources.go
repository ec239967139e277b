package statussync

import "time"

// ResourceSum adds up samples of one number. Sum and Max are in the unit of the number; Total is the newest size of what
// is used, 0 where there is none or it is not known.
type ResourceSum struct {
	Count           uint64
	Sum, Max, Total int64
}

// Add adds one sample.
func (s *ResourceSum) Add(v, total int64) {
	s.Merge(ResourceSum{Count: 1, Sum: v, Max: v, Total: total})
}

// Merge adds the samples of o, which are newer.
func (s *ResourceSum) Merge(o ResourceSum) {
	if o.Count == 0 {
		return
	}
	s.Count += o.Count
	s.Sum += o.Sum
	s.Max = max(s.Max, o.Max)
	s.Total = o.Total
}

// Mean is the mean of the samples; 0 where there are none.
func (s *ResourceSum) Mean() float64 {
	if s.Count == 0 {
		return 0
	}
	return float64(s.Sum) / float64(s.Count)
}

// ResourceRow adds up what an environment's agent told of its host in one minute, or one hour.
type ResourceRow struct {
	EnvironmentID string
	Start         time.Time   // of the minute or hour
	CPU           ResourceSum // hundredths of a percent
	Memory        ResourceSum // KiB in use
	Disk          ResourceSum // KiB in use, of the main file system
}

// Merge adds the samples of o, which are newer.
func (r *ResourceRow) Merge(o *ResourceRow) {
	r.CPU.Merge(o.CPU)
	r.Memory.Merge(o.Memory)
	r.Disk.Merge(o.Disk)
}

// ResourceReport is what an environment's agent told of its host in the last Window. Steps begin at multiples of Step
// since 1970-01-01 UTC; those without a report are left out. The first and the last may be partial.
type ResourceReport struct {
	EnvironmentID string
	Window, Step  time.Duration
	Resolution    ProbeResolution
	Steps         []ResourceRow // by time
}

// How long resources are kept.
const (
	KeepResourceMinutes = KeepProbeMinutes
	KeepResourceHours   = KeepProbeHours
)

// Timeline is how one server's time was spent in a window, as stretches of time.
type Timeline struct {
	ServerID string
	From, To time.Time
	// Stretches are by time, without a hole between them; time before the first is unknown, and from the removal on they
	// are of SpanRemoved. At most MaxStretches.
	Stretches []Stretch
}

// Stretch is a part of a Timeline. It has no Details.
type Stretch struct {
	Span
	End time.Time // zero: it goes on
	// Merged is how many stretches, too short for a timeline of that window, this one stands for; it then has the class,
	// and what else there is, of the worst of them (SpanClass.Worse). 0: it is one.
	Merged int
}

// MaxStretches bounds a Timeline.
const MaxStretches = 1000

// spanRank orders classes for Worse.
var spanRank = map[SpanClass]int{
	SpanAvailable: 0, SpanOff: 1, SpanRemoved: 2, SpanMaintenance: 3, SpanUnknown: 4, SpanChanging: 5, SpanLimited: 6, SpanUnavailable: 7,
}

// Worse reports whether c is to be shown before o, where both can't be: what people look for goes before what is well.
func (c SpanClass) Worse(o SpanClass) bool { return spanRank[c] > spanRank[o] }
