package main

import (
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync/wire"
)

func TestResourceAndTimelineCommands(t *testing.T) {
	f := func(v float64) *float64 { return &v }
	n := func(v int64) *int64 { return &v }
	at := func(d time.Duration) wire.Time { return wire.Time{Time: now.Truncate(time.Hour).Add(d)} }
	report := wire.ResourceReport{EnvironmentID: "box", Items: []wire.ResourceStep{
		{Start: at(0), CPUPercent: f(12.35), CPUMaxPercent: f(99.6), MemoryBytes: n(1 << 30), MemoryMaxBytes: n(2 << 30), MemorySizeBytes: n(4 << 30)},
		{Start: at(time.Hour), DiskBytes: n(5 << 30), DiskMaxBytes: n(5 << 30), DiskSizeBytes: n(10 << 30)},
	}}
	line := wire.Timeline{ServerID: "sick", From: at(0), To: at(2 * time.Hour), Items: []wire.Stretch{
		{Begin: at(0), End: at(time.Hour), Class: "available", State: "running", Health: "healthy", Reason: "ok"},
		{Begin: at(time.Hour), End: at(90 * time.Minute), Class: "unavailable", State: "error", Health: "unhealthy", Reason: "probe_failing", Cause: "http_503\x1b[2J", Merged: 3},
		{Begin: at(90 * time.Minute), Class: "maintenance"},
	}}
	url := fake(t, map[string]string{
		"GET /api/v1/environments/box/resources?step=1h&window=24h": jsonOf(t, report),
		"GET /api/v1/environments/new/resources?step=1d&window=30d": `{"environment_id":"new","items":[]}`,
		"GET /api/v1/environments/no/resources?step=1h&window=24h":  `404 {"status":404,"code":"not_found","detail":"no environment has the id \"no\""}`,
		"GET /api/v1/servers/sick/timeline?window=24h":              jsonOf(t, line),
		"GET /api/v1/servers/new/timeline?window=1h":                `{"server_id":"new","items":[]}`,
	})
	for args, want := range map[string]struct {
		code int
		text string
	}{
		"resources box": {0, `FROM              CPU  CPU MAX         MEMORY            DISK
2026-03-01 12:00  12%     100%  1.0GiB/4.0GiB               -
2026-03-01 13:00    -        -              -  5.0GiB/10.0GiB
`},
		"resources box -o json":      {0, `"cpu_max_percent": 99.6`},
		"resources new --window 30d": {0, "The agent of new told nothing of its host in the last 30d.\n"},
		"resources no":               {4, `no environment has the id "no"`},
		"resources":                  {2, "arg"},
		"timeline sick": {0, `FROM                 TO                   LASTED  CLASS        STATE            REASON
2026-03-01 12:00:00  2026-03-01 13:00:00      1h  available    running/healthy  ok
2026-03-01 13:00:00  2026-03-01 13:30:00     30m  unavailable  error/unhealthy  probe_failing (http_503[2J), the worst of 3 short stretches
2026-03-01 13:30:00  goes on                 30m  maintenance  -                -
`},
		"timeline sick -o json":    {0, `"class": "maintenance"`},
		"timeline new --window 1h": {0, "Nothing is known of new in the last 1h.\n"},
		"timeline sick --window x": {2, "is not a duration"},
	} {
		r := exec(t.Context(), append(strings.Fields(args), "--server", url))
		if r.code != want.code || !strings.Contains(r.out+r.err, want.text) {
			t.Errorf("%s: %d\n%s%s\nwant %d\n%s", args, r.code, r.out, r.err, want.code, want.text)
		}
		if strings.ContainsRune(r.out, 0x1b) {
			t.Errorf("%s: an escape reached the terminal: %q", args, r.out)
		}
	}
}
