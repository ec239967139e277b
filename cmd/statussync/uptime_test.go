package main

import (
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync/wire"
)

func TestUptimeCommands(t *testing.T) {
	f := func(v float64) *float64 { return &v }
	numbers := func(percent *float64, down, unknown float64, incidents int) wire.UptimeNumbers {
		return wire.UptimeNumbers{WindowSeconds: 2592000, AvailabilityPercent: percent, UnavailableSeconds: down, UnknownSeconds: unknown, Incidents: incidents}
	}
	sick := numbers(f(97.25), 7200, 0, 2)
	sick.MTTRSeconds, sick.MTBFSeconds = f(3600), f(1e6)
	first := wire.UptimePage{
		Items: []wire.Uptime{{ServerID: "fine", UptimeNumbers: numbers(f(100), 0, 60, 0)}, {ServerID: "new\x1b[2J", UptimeNumbers: numbers(nil, 0, 2592000, 0)}},
		Total: &wire.UptimeTotal{Servers: 3, UptimeNumbers: numbers(f(98.625), 7200, 2592060, 2)}, NextCursor: "after:new", Cursor: "e7:57",
	}
	second := wire.UptimePage{Items: []wire.Uptime{{ServerID: "sick", UptimeNumbers: sick}}, Cursor: "e7:58"}
	incidents := wire.Page[wire.Incident]{Items: []wire.Incident{
		{ServerID: "sick", Begin: ago_(time.Minute), DurationSeconds: 60, Reason: "probe_failing", Cause: "http_503", Details: "probes fail\x1b[2J"},
		{ServerID: "sick", Begin: ago_(3 * time.Hour), End: ago_(2 * time.Hour), DurationSeconds: 3600, Reason: "crashed"},
	}}
	report := wire.ProbeReport{ServerID: "sick", Resolution: "minute", Items: []wire.ProbeStep{
		{Start: wire.Time{Time: now.Truncate(time.Hour)}, ProbeNumbers: wire.ProbeNumbers{Count: 120, Failures: 3, P50MS: f(12.3), P95MS: f(20), P99MS: f(1500)}},
		{Start: wire.Time{Time: now.Truncate(time.Hour).Add(time.Hour)}, ProbeNumbers: wire.ProbeNumbers{Count: 2, Failures: 2}},
	}, Total: wire.ProbeNumbers{Count: 122, Failures: 5, P50MS: f(12.3), P95MS: f(20), P99MS: f(1500)}}
	url := fake(t, map[string]string{
		"GET /api/v1/uptime?limit=1000&window=30d":                    jsonOf(t, first),
		"GET /api/v1/uptime?cursor=after%3Anew&limit=1000&window=30d": jsonOf(t, second),
		"GET /api/v1/servers/sick/uptime?window=7d":                   jsonOf(t, second.Items[0]),
		"GET /api/v1/servers/sick/incidents?limit=10&window=7d":       jsonOf(t, incidents),
		"GET /api/v1/incidents?limit=100&window=30d":                  jsonOf(t, incidents),
		"GET /api/v1/servers/sick/incidents?limit=100&window=1h":      `{"items":[]}`,
		"GET /api/v1/servers/sick/probes?step=1h&window=24h":          jsonOf(t, report),
		"GET /api/v1/servers/sick/probes?step=1d&window=30d":          `{"server_id":"sick","items":[],"total":{"count":0,"failures":0}}`,
		"GET /api/v1/servers/nobody/uptime?window=30d":                `404 {"status":404,"code":"not_found","detail":"no server has the id \"nobody\""}`,
	})
	for args, want := range map[string]struct {
		code int
		text string
	}{
		"uptime": {0, `ID      AVAILABILITY  DOWN  CHANGING  OFF  MAINTENANCE  UNKNOWN  INCIDENTS  MTTR    MTBF
sick        97.2500%    2h         -    -            -        -          2    1h  11d13h
fine            100%     -         -    -            -       1m          0     -       -
new[2J             -     -         -    -            -      30d          0     -       -
all         98.6250%    2h         -    -            -      30d          2     -       -

3 servers in the last 30d
`},
		"uptime sick --window 7d":            {0, "sick in the last 7d\n  availability  97.2500%\n"},
		"uptime sick --window 7d -o json":    {0, `"mttr_seconds": 3600`},
		"uptime -o json":                     {0, `"servers": 3`},
		"incidents":                          {0, "goes on"},
		"incidents sick --window 1h":         {0, "No incidents in the last 1h.\n"},
		"incidents sick --window 1h -o json": {0, "{\n  \"items\": []\n}\n"},
		"probes sick": {0, `FROM              PROBES  FAILED   P50   P95   P99
2026-03-01 12:00     120       3  12ms  20ms  1.5s
2026-03-01 13:00       2       2     -     -     -
all                  122       5  12ms  20ms  1.5s
`},
		"probes sick --window 30d":     {0, "No probes of sick in the last 30d.\n"},
		"uptime nobody":                {4, `no server has the id "nobody"`},
		"uptime sick --label a=b":      {2, "exclude each other"},
		"uptime --window soon":         {2, "is not a duration"},
		"incidents --limit 0":          {2, "--limit must be at least 1"},
		"probes":                       {2, "arg"},
		"probes sick --step yesterday": {2, "is not a duration"},
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
