package wire

import (
	"math"

	"github.com/agentopia/statussync"
)

// ResourceReport is what one environment's agent told of its host in a window that ends now.
type ResourceReport struct {
	EnvironmentID string                     `json:"environment_id"`
	WindowSeconds float64                    `json:"window_seconds"`
	StepSeconds   float64                    `json:"step_seconds"`
	Resolution    statussync.ProbeResolution `json:"resolution" enum:"minute,hour" doc:"How fine the counts are that this was made from."`
	Items         []ResourceStep             `json:"items" nullable:"false" doc:"By time; steps without a report are left out. The first and the last may be partial."`
}

// ResourceStep is one step of time. What the agent did not tell is absent. Means are over the reports of the step.
type ResourceStep struct {
	Start           Time     `json:"start"`
	CPUPercent      *float64 `json:"cpu_percent,omitempty" doc:"Mean."`
	CPUMaxPercent   *float64 `json:"cpu_max_percent,omitempty"`
	MemoryBytes     *int64   `json:"memory_bytes,omitempty" doc:"Mean of what is in use: active memory where the agent tells it, else used memory, which has the file cache in it."`
	MemoryMaxBytes  *int64   `json:"memory_max_bytes,omitempty"`
	MemorySizeBytes *int64   `json:"memory_size_bytes,omitempty" doc:"The newest."`
	DiskBytes       *int64   `json:"disk_bytes,omitempty" doc:"Mean of what is used of the main file system."`
	DiskMaxBytes    *int64   `json:"disk_max_bytes,omitempty"`
	DiskSizeBytes   *int64   `json:"disk_size_bytes,omitempty" doc:"The newest."`
}

// FromResourceReport returns r as the wire has it.
func FromResourceReport(r *statussync.ResourceReport) ResourceReport {
	out := ResourceReport{
		EnvironmentID: r.EnvironmentID, WindowSeconds: Seconds(r.Window), StepSeconds: Seconds(r.Step), Resolution: r.Resolution,
		Items: make([]ResourceStep, len(r.Steps)),
	}
	for i := range r.Steps {
		s := &r.Steps[i]
		x := &out.Items[i]
		x.Start = Time{s.Start}
		if s.CPU.Count > 0 {
			mean, most := math.Round(s.CPU.Mean())/100, float64(s.CPU.Max)/100
			x.CPUPercent, x.CPUMaxPercent = &mean, &most
		}
		x.MemoryBytes, x.MemoryMaxBytes, x.MemorySizeBytes = resourceBytes(&s.Memory)
		x.DiskBytes, x.DiskMaxBytes, x.DiskSizeBytes = resourceBytes(&s.Disk)
	}
	return out
}

// resourceBytes returns mean, maximum and size of what was counted in KiB.
func resourceBytes(s *statussync.ResourceSum) (mean, most, size *int64) {
	if s.Count == 0 {
		return nil, nil, nil
	}
	a, b, c := int64(math.Round(s.Mean()))*1024, s.Max*1024, s.Total*1024
	return &a, &b, &c
}

// Timeline is how one server's time was spent in a window that ends now.
type Timeline struct {
	ServerID      string    `json:"server_id"`
	WindowSeconds float64   `json:"window_seconds"`
	From          Time      `json:"from"`
	To            Time      `json:"to"`
	Items         []Stretch `json:"items" nullable:"false" doc:"By time, without holes; time before the first is unknown. At most 1,000."`
}

// Stretch is a part of a timeline.
type Stretch struct {
	Begin  Time                 `json:"begin"`
	End    Time                 `json:"end,omitzero" doc:"Absent: it goes on."`
	Class  statussync.SpanClass `json:"class" enum:"unavailable,available,limited,changing,off,unknown,maintenance,removed" doc:"What the time counts as in the uptime: the availability, or maintenance, or removed."`
	State  statussync.State     `json:"state,omitempty" enum:"running,stopped,starting,stopping,error,unknown" doc:"Absent, like health, where it is not known any more."`
	Health statussync.Health    `json:"health,omitempty" enum:"healthy,degraded,unhealthy,unknown"`
	Reason statussync.Reason    `json:"reason,omitempty" doc:"Of the status with which it began, like cause; incidents have the details."`
	Cause  string               `json:"cause,omitempty"`
	Merged int                  `json:"merged,omitzero" doc:"How many stretches, each too short for this window, it stands for; it is then like the worst of them."`
}

// FromTimeline returns t as the wire has it.
func FromTimeline(t *statussync.Timeline) Timeline {
	out := Timeline{
		ServerID: t.ServerID, WindowSeconds: Seconds(t.To.Sub(t.From)), From: Time{t.From}, To: Time{t.To},
		Items: make([]Stretch, len(t.Stretches)),
	}
	for i := range t.Stretches {
		s := &t.Stretches[i]
		out.Items[i] = Stretch{
			Begin: Time{s.Begin}, End: Time{s.End}, Class: s.Class, State: s.State, Health: s.Health,
			Reason: s.Reason, Cause: s.Cause, Merged: s.Merged,
		}
	}
	return out
}
