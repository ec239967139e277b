package wire

import (
	"math"
	"time"

	"github.com/agentopia/statussync"
)

// Uptime is how a server's time was spent in a window that ends now. The seconds of all classes add up to the window.
type Uptime struct {
	ServerID string `json:"server_id"`
	UptimeNumbers
}

// UptimeTotal is the sum of the uptimes of many servers: its seconds are server-seconds, and add up to window_seconds
// times servers.
type UptimeTotal struct {
	Servers int `json:"servers"`
	UptimeNumbers
}

// UptimeNumbers is what an Uptime and an UptimeTotal have in common.
type UptimeNumbers struct {
	WindowSeconds       float64  `json:"window_seconds"`
	AvailabilityPercent *float64 `json:"availability_percent,omitempty" doc:"(available + limited) / (window - unknown - maintenance - off); absent where no time counts."`
	AvailableSeconds    float64  `json:"available_seconds"`
	LimitedSeconds      float64  `json:"limited_seconds"`
	UnavailableSeconds  float64  `json:"unavailable_seconds"`
	ChangingSeconds     float64  `json:"changing_seconds" doc:"Starting and stopping; counts as time in which the server could not be used."`
	OffSeconds          float64  `json:"off_seconds"`
	UnknownSeconds      float64  `json:"unknown_seconds" doc:"Also the time before anything was known of the server, and after its removal."`
	MaintenanceSeconds  float64  `json:"maintenance_seconds"`
	Incidents           int      `json:"incidents" doc:"That overlap the window."`
	MTTRSeconds         *float64 `json:"mttr_seconds,omitempty" doc:"Mean whole length of the incidents that ended in the window; absent where none did."`
	MTBFSeconds         *float64 `json:"mtbf_seconds,omitempty" doc:"(available + limited) / incidents; absent where there was none."`
}

// UptimePage is one part of a list of uptimes, by server id.
type UptimePage struct {
	Items      []Uptime     `json:"items" nullable:"false"`
	Total      *UptimeTotal `json:"total,omitempty" doc:"Of all servers that are selected, not only of this page's; on the first page only."`
	NextCursor string       `json:"next_cursor,omitempty" doc:"Ask for the following page with it; absent on the last one."`
	Cursor     string       `json:"cursor,omitempty" doc:"Position in the journal at which the list of servers was true." example:"e7:57"`
}

// Incident is a time during which a server could not be used, outside maintenance.
type Incident struct {
	ServerID        string            `json:"server_id"`
	Begin           Time              `json:"begin"`
	End             Time              `json:"end,omitzero" doc:"Absent: it goes on."`
	DurationSeconds float64           `json:"duration_seconds" doc:"So far, where it goes on."`
	Reason          statussync.Reason `json:"reason,omitempty" doc:"Of the status with which it began, like cause and details."`
	Cause           string            `json:"cause,omitempty" example:"http_503"`
	Details         string            `json:"details,omitempty" doc:"One sentence for people; untrusted."`
}

// ProbeReport is what one server's probes gave in a window that ends now.
type ProbeReport struct {
	ServerID      string                     `json:"server_id"`
	WindowSeconds float64                    `json:"window_seconds"`
	StepSeconds   float64                    `json:"step_seconds"`
	Resolution    statussync.ProbeResolution `json:"resolution" enum:"minute,hour" doc:"How fine the counts are that this was made from."`
	Items         []ProbeStep                `json:"items" nullable:"false" doc:"By time; steps without a probe are left out. The first and the last may be partial."`
	Total         ProbeNumbers               `json:"total"`
}

// ProbeStep counts the probes of one step of time.
type ProbeStep struct {
	Start Time `json:"start"`
	ProbeNumbers
}

// ProbeNumbers counts probes. The quantiles are of the latencies of those that did not fail, and absent where all did.
type ProbeNumbers struct {
	Count    uint64   `json:"count"`
	Failures uint64   `json:"failures"`
	P50MS    *float64 `json:"p50_ms,omitempty" doc:"Of the probes that did not fail, like p95 and p99; within 1 %."`
	P95MS    *float64 `json:"p95_ms,omitempty"`
	P99MS    *float64 `json:"p99_ms,omitempty"`
}

// FromUptime returns u as the wire has it.
func FromUptime(u *statussync.Uptime) Uptime { return Uptime{u.ServerID, uptimeNumbers(u)} }

// FromUptimes is FromUptime of each; never nil.
func FromUptimes(list []statussync.Uptime) []Uptime {
	out := make([]Uptime, len(list))
	for i := range list {
		out[i] = FromUptime(&list[i])
	}
	return out
}

// FromUptimeTotal returns a total as the wire has it.
func FromUptimeTotal(u *statussync.Uptime) UptimeTotal {
	return UptimeTotal{u.Servers, uptimeNumbers(u)}
}

func uptimeNumbers(u *statussync.Uptime) UptimeNumbers {
	out := UptimeNumbers{
		WindowSeconds: Seconds(u.To.Sub(u.From)), AvailableSeconds: Seconds(u.Available), LimitedSeconds: Seconds(u.Limited),
		UnavailableSeconds: Seconds(u.Unavailable), ChangingSeconds: Seconds(u.Changing), OffSeconds: Seconds(u.Off),
		UnknownSeconds: Seconds(u.Unknown), MaintenanceSeconds: Seconds(u.Maintenance), Incidents: u.Incidents,
	}
	if share, ok := u.Availability(); ok {
		p := math.Round(share*1e6) / 1e4
		if p == 100 && share < 1 { // whoever was down was not up all the time
			p = 99.9999
		}
		out.AvailabilityPercent = &p
	}
	if d, ok := u.MTTR(); ok {
		s := Seconds(d)
		out.MTTRSeconds = &s
	}
	if d, ok := u.MTBF(); ok {
		s := Seconds(d)
		out.MTBFSeconds = &s
	}
	return out
}

// FromIncidents returns incidents as the wire has them; never nil.
func FromIncidents(list []statussync.Incident) []Incident {
	out := make([]Incident, len(list))
	for i := range list {
		x := &list[i]
		out[i] = Incident{
			ServerID: x.ServerID, Begin: Time{x.Begin}, End: Time{x.End}, DurationSeconds: Seconds(x.Duration),
			Reason: x.Reason, Cause: x.Cause, Details: x.Details,
		}
	}
	return out
}

// FromProbeReport returns r as the wire has it.
func FromProbeReport(r *statussync.ProbeReport) ProbeReport {
	out := ProbeReport{
		ServerID: r.ServerID, WindowSeconds: Seconds(r.Window), StepSeconds: Seconds(r.Step), Resolution: r.Resolution,
		Items: make([]ProbeStep, len(r.Steps)), Total: probeNumbers(&r.Total),
	}
	for i := range r.Steps {
		out.Items[i] = ProbeStep{Time{r.Steps[i].Start}, probeNumbers(&r.Steps[i])}
	}
	return out
}

func probeNumbers(s *statussync.ProbeStep) ProbeNumbers {
	out := ProbeNumbers{Count: s.Count, Failures: s.Failures}
	if s.Count > s.Failures {
		ms := func(d time.Duration) *float64 {
			v := Millis(d)
			return &v
		}
		out.P50MS, out.P95MS, out.P99MS = ms(s.P50), ms(s.P95), ms(s.P99)
	}
	return out
}
