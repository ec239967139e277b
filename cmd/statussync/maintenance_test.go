package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync/wire"
)

// TestMaintenanceCommands manages windows of the real service.
func TestMaintenanceCommands(t *testing.T) {
	url, _, _ := serve(t)
	as := func(token string, args ...string) result {
		return exec(t.Context(), append(args, "--token", token), func(s *system) {
			s.now = time.Now
			s.getenv = func(k string) string { return map[string]string{"STATUSSYNC_SERVER": url}[k] }
		})
	}
	expect := func(r result, code int, parts ...string) {
		t.Helper()
		if r.code != code {
			t.Errorf("exit %d, want %d: %s%s", r.code, code, r.out, r.err)
		}
		for _, p := range parts {
			if !regexp.MustCompile(p).MatchString(r.out + r.err) {
				t.Errorf("no %q in\n%s%s", p, r.out, r.err)
			}
		}
	}
	const op, viewer = "operator-token", "viewer-token"
	expect(as(viewer, "maintenance", "list"), 0, `^0 maintenance windows\n$`)
	expect(as(viewer, "maintenance", "list", "-o", "json"), 0, `"items": \[\]`)
	expect(as(op, "maintenance"), 2, `needs one of its subcommands`)
	expect(as(op, "maintenance", "add", "--for", "1h"), 2, `--server, --environment or --label`)
	expect(as(op, "maintenance", "add", "--server", "weather"), 2, `--for or --ends-at`)
	expect(as(op, "maintenance", "add", "--server", "weather", "--for", "1h", "--ends-at", "2026-01-01 10:00"), 2, `one of them`)
	expect(as(op, "maintenance", "add", "--server", "weather", "--ends-at", "tomorrow"), 2, `--ends-at: "tomorrow" is no time`)
	expect(as(op, "maintenance", "add", "--server", "weather", "--for", "1h", "--time-zone", "Europe/Berlni"), 2, `Europe/Berlni`)
	expect(as(op, "maintenance", "add", "--server", "weather", "--for", "1h", "--starts-at", "2027-03-28 02:30", "--time-zone", "Europe/Berlin"), 2, `does not exist in Europe/Berlin`)
	expect(as(op, "maintenance", "add", "--server", "wether", "--for", "1h"), 4, `refused: body.server_ids: no server has the id "wether"`)
	expect(as(op, "maintenance", "add", "--server", "weather", "--for", "1h", "--rrule", "FREQ=DAILY", "--starts-at", "2026-01-01 10:00", "--time-zone", "UTC", "--label", "a=b", "--environment", "nowhere"), 4, `body.environment_ids`)
	expect(as(viewer, "maintenance", "add", "--server", "weather", "--for", "1h"), 4, `role operator`)

	expect(as(op, "maintenance", "add", "--server", "weather", "--for", "1h", "--note", "moving"), 0, `the maintenance window \S+ is open until \d{4}-`, `selects +weather`, `servers now +1`, `note +moving`)
	expect(as(viewer, "status", "weather"), 0, `maintenance`)
	r := as(op, "maintenance", "add", "--environment", "box-7", "--starts-at", "2027-03-21 01:00", "--ends-at", "2027-03-21 05:00", "--rrule", "FREQ=WEEKLY;BYDAY=SU", "--time-zone", "Europe/Berlin")
	expect(r, 0, `will begin 2027-03-21 01:00:00 \+01:00`, `ends +2027-03-21 05:00:00 \+01:00`, `rule +FREQ=WEEKLY;BYDAY=SU`, `time zone +Europe/Berlin`, `selects +all of box-7`)
	weekly := regexp.MustCompile(`window (\S+) will`).FindStringSubmatch(r.out)
	expect(as(viewer, "maintenance", "list"), 0, `(?m)^ID +BEGINS +ENDS +SERVERS +SELECTS +RULE +NOTE`, `(?m)^\S+ +open +\S+ \S+ +1 +weather +once +moving`, `2027-03-21 01:00:00 \+01:00`, `2 maintenance windows`)
	var list wire.Page[wire.Maintenance]
	if r := as(viewer, "maintenance", "list", "-o", "json"); json.Unmarshal([]byte(r.out), &list) != nil || len(list.Items) != 2 {
		t.Fatalf("%s%s", r.out, r.err)
	}
	expect(as(op, "maintenance", "end", weekly[1], "--this-time"), 4, `the window is not open now`)
	expect(as(op, "maintenance", "end", weekly[1]), 0, `the maintenance window \S+ is removed`)
	for _, m := range list.Items {
		if m.ID != weekly[1] {
			expect(as(op, "maintenance", "end", m.ID, "--this-time"), 0, `has ended for this time`)
		}
	}
	expect(as(op, "maintenance", "end", weekly[1]), 4, `no maintenance window has the id`)
	if r := as(viewer, "status", "weather"); strings.Contains(r.out, "maintenance") {
		t.Errorf("the mark stays: %s", r.out)
	}
}

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct{ in, zone, want string }{
		{"now", "UTC", "2026-01-01T00:00:00Z"},
		{"2026-03-29T01:00:00+01:00", "America/New_York", "2026-03-29T00:00:00Z"},
		{"2026-03-29 01:00", "Europe/Berlin", "2026-03-29T00:00:00Z"},
		{"2026-03-29T05:00:30", "Europe/Berlin", "2026-03-29T03:00:30Z"},
		{"2026-03-29", "Europe/Berlin", "2026-03-28T23:00:00Z"},
		{"2026-03-29 02:30", "Europe/Berlin", ""},
		{"2026-10-25 02:30", "Europe/Berlin", "2026-10-25T00:30:00Z"}, // the first of both
		{"2026-11-01 01:30", "America/New_York", "2026-11-01T05:30:00Z"},
		{"2026-10-25 03:30", "Europe/Berlin", "2026-10-25T02:30:00Z"},
		{"2026-02-30 10:00", "UTC", ""},
		{"10:00", "UTC", ""},
	} {
		loc, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseTime(c.in, loc, now)
		if (err != nil) != (c.want == "") || err == nil && got.UTC().Format(time.RFC3339) != c.want {
			t.Errorf("%s in %s: %v, %v; want %s", c.in, c.zone, got.UTC(), err, c.want)
		}
	}
}
