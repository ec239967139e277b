package wire

import (
	"github.com/agentopia/statussync"
)

// MaintenanceRequest is the body of POST /maintenance. The actor is the credential's name and can't be given.
type MaintenanceRequest struct {
	ServerIDs      []string          `json:"server_ids,omitempty" maxItems:"1000" doc:"These servers, which must exist."`
	EnvironmentIDs []string          `json:"environment_ids,omitempty" maxItems:"1000" doc:"Servers of these environments, which must exist."`
	Labels         map[string]string `json:"labels,omitempty" doc:"Servers with all of these labels. Of servers, environments and labels at least one is given; a server is selected by any of them, also one that comes later."`
	StartsAt       Time              `json:"starts_at,omitzero" doc:"Default: now. With rrule it is required: the begin of the first occurrence."`
	EndsAt         Time              `json:"ends_at,omitzero" doc:"This or duration. With rrule each occurrence ends at this time of day on the wall clock."`
	Duration       string            `json:"duration,omitempty" example:"4h" doc:"Instead of ends_at: Go's durations and d for days, at most 366d. With rrule each occurrence lasts exactly that long."`
	RRule          string            `json:"rrule,omitempty" maxLength:"500" example:"FREQ=WEEKLY;BYDAY=SU" doc:"RFC 5545: FREQ (DAILY, WEEKLY, MONTHLY, YEARLY), INTERVAL, COUNT, UNTIL, WKST, BYMONTH, BYMONTHDAY, BYDAY, BYSETPOS."`
	TimeZone       string            `json:"time_zone,omitempty" maxLength:"64" example:"Europe/Berlin" doc:"IANA name; only with rrule. Default: UTC."`
	Note           string            `json:"note,omitempty" maxLength:"1000" doc:"Why; shown to people."`
}

// Maintenance returns the window in the domain's words, not yet checked. The error has code CodeInvalid and names the
// field that is no duration.
func (r *MaintenanceRequest) Maintenance() (statussync.Maintenance, error) {
	m := statussync.Maintenance{
		ServerIDs: r.ServerIDs, EnvironmentIDs: r.EnvironmentIDs, Labels: r.Labels, StartsAt: r.StartsAt.Time, EndsAt: r.EndsAt.Time,
		RRule: r.RRule, TimeZone: r.TimeZone, Note: r.Note,
	}
	if r.Duration == "" {
		return m, nil
	}
	d, err := ParseDuration(r.Duration)
	if err != nil {
		return m, statussync.Invalid("duration", Detail(err))
	}
	if d <= 0 {
		return m, statussync.Invalid("duration", "must be greater than zero")
	}
	m.Duration = d
	return m, nil
}

// Maintenance is a maintenance window as it stands now.
type Maintenance struct {
	ID              string            `json:"id"`
	ServerIDs       []string          `json:"server_ids,omitempty"`
	EnvironmentIDs  []string          `json:"environment_ids,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
	StartsAt        Time              `json:"starts_at" doc:"With rrule: the begin of the first occurrence."`
	EndsAt          Time              `json:"ends_at"`
	DurationSeconds float64           `json:"duration_seconds,omitzero" doc:"Each occurrence lasts exactly that long; absent: it ends at the time of day of ends_at."`
	RRule           string            `json:"rrule,omitempty"`
	TimeZone        string            `json:"time_zone,omitempty"`
	Note            string            `json:"note,omitempty" doc:"Untrusted text for people."`
	Actor           string            `json:"actor,omitempty"`
	Open            bool              `json:"open" doc:"It is running."`
	NextBegin       Time              `json:"next_begin,omitzero" doc:"When it begins the next time; absent: never again."`
	NextEnd         Time              `json:"next_end,omitzero" doc:"When it ends the next time."`
	Servers         int               `json:"servers" doc:"How many servers it selects now."`
}

// FromMaintenance returns v as the wire has it.
func FromMaintenance(v *statussync.MaintenanceView) Maintenance {
	w := v.Window
	return Maintenance{
		ID: w.ID, ServerIDs: w.ServerIDs, EnvironmentIDs: w.EnvironmentIDs, Labels: w.Labels, StartsAt: Time{w.StartsAt}, EndsAt: Time{w.EndsAt},
		DurationSeconds: Seconds(w.Duration), RRule: w.RRule, TimeZone: w.TimeZone, Note: w.Note, Actor: w.Actor,
		Open: v.Open, NextBegin: Time{v.NextBegin}, NextEnd: Time{v.NextEnd}, Servers: v.Servers,
	}
}
