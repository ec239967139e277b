package wire

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/agentopia/statussync"
)

// TestUptimeGolden pins the shapes of uptime and of probes.
func TestUptimeGolden(t *testing.T) {
	from := now.Add(-30 * 24 * time.Hour)
	u := statussync.Uptime{
		ServerID: "weather", Servers: 1, From: from, To: now, Available: 20*24*time.Hour + 1500*time.Millisecond, Limited: time.Hour, Unavailable: 90 * time.Second,
		Changing: 10 * time.Second, Off: 2 * time.Hour, Unknown: 9 * 24 * time.Hour, Maintenance: 3 * time.Hour, Incidents: 3, Ended: 2, Repair: 85 * time.Second,
	}
	nothing := statussync.Uptime{ServerID: "new", Servers: 1, From: from, To: now, Unknown: 30 * 24 * time.Hour}
	var total statussync.Uptime
	total.Add(&u)
	total.Add(&nothing)
	tot := FromUptimeTotal(&total)
	report := statussync.ProbeReport{
		ServerID: "weather", Window: 24 * time.Hour, Step: time.Hour, Resolution: statussync.ResolutionMinute,
		Steps: []statussync.ProbeStep{
			{Start: now.Truncate(time.Hour), Count: 120, Failures: 2, P50: 12345 * time.Microsecond, P95: 20 * time.Millisecond, P99: 1500 * time.Millisecond},
			{Start: now.Truncate(time.Hour).Add(time.Hour), Count: 3, Failures: 3},
		},
		Total: statussync.ProbeStep{Count: 123, Failures: 5, P50: 12345 * time.Microsecond, P95: 20 * time.Millisecond, P99: 1500 * time.Millisecond},
	}
	incidents := FromIncidents([]statussync.Incident{
		{ServerID: "weather", Begin: now.Add(-time.Minute), Duration: time.Minute, Reason: statussync.ReasonProbeFailing, Cause: "http_503", Details: "probes fail"},
		{ServerID: "weather", Begin: now.Add(-time.Hour), End: now.Add(-50 * time.Minute), Duration: 10 * time.Minute, Reason: statussync.ReasonHeartbeatLost},
	})
	for name, v := range map[string]any{
		"uptime": FromUptime(&u), "uptime-page": UptimePage{Items: FromUptimes([]statussync.Uptime{nothing, u}), Total: &tot, NextCursor: "after:weather", Cursor: "e7:57"},
		"incidents": Page[Incident]{Items: incidents, NextCursor: "after:1:weather"}, "probe-report": FromProbeReport(&report),
	} {
		t.Run(name, func(t *testing.T) { golden(t, name, marshal(t, v)) })
	}
	for _, v := range []any{FromIncidents(nil), FromUptimes(nil), FromProbeReport(&statussync.ProbeReport{}).Items} {
		if b, err := json.Marshal(v); err != nil || string(b) != "[]" {
			t.Errorf("an empty list is %s: %v", b, err)
		}
	}
}

// TestAvailabilityIsNotRoundedUp: 100 is said only of no downtime at all.
func TestAvailabilityIsNotRoundedUp(t *testing.T) {
	for _, c := range []struct {
		up, down time.Duration
		want     float64
	}{{time.Hour, 0, 100}, {90 * 24 * time.Hour, time.Millisecond, 99.9999}, {time.Hour, time.Hour, 50}, {0, time.Hour, 0}, {2, 1, 66.6667}} {
		u := FromUptime(&statussync.Uptime{Available: c.up, Unavailable: c.down})
		if u.AvailabilityPercent == nil || *u.AvailabilityPercent != c.want {
			t.Errorf("%v up, %v down: %v, want %v", c.up, c.down, u.AvailabilityPercent, c.want)
		}
	}
	if u := FromUptime(&statussync.Uptime{Unknown: time.Hour}); u.AvailabilityPercent != nil {
		t.Error(*u.AvailabilityPercent)
	}
}
