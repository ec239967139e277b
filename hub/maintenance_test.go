package hub

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/recur"
	"github.com/agentopia/statussync/statussynctest"
)

const (
	begin = statussync.KindMaintenanceBegin
	end   = statussync.KindMaintenanceEnd
)

// windowsTold are the entries about windows, and those that changed the mark of a server, in their order.
func windowsTold(entries []statussync.Encoded, zone *time.Location) []string {
	var out []string
	for _, e := range entries {
		at := e.Timestamp.In(zone).Format("Jan 2 15:04:05 -0700 ")
		switch {
		case e.Kind == begin, e.Kind == end:
			out = append(out, at+string(e.Kind)+" "+e.MaintenanceID+" "+strings.Join(e.ServerIDs, ","))
		case e.Kind == statussync.KindStatus && e.Previous.Marks.Has(statussync.MarkMaintenance) != e.Current.Marks.Has(statussync.MarkMaintenance):
			out = append(out, at+e.ServerID+" "+strings.Join(e.Current.Marks.Strings(), ","))
		}
	}
	return out
}

func location(t *testing.T, name string) *time.Location {
	t.Helper()
	l, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestWeeklyWindowOverClockChanges: in virtual time through the whole hub, windows over the nights on which clocks change
// begin and end when they should, by the journal.
func TestWeeklyWindowOverClockChanges(t *testing.T) {
	for _, c := range []struct {
		zone         string
		first        string // local
		length       time.Duration
		exact        bool
		from, to     string // local: what happens between is looked at
		rule         string
		begins, ends []string
	}{
		{zone: "Europe/Berlin", first: "2026-03-01 01:00", length: 4 * time.Hour, from: "2026-03-28 12:00", to: "2026-04-05 12:00", rule: "FREQ=WEEKLY;BYDAY=SU",
			begins: []string{"Mar 29 01:00:00 +0100", "Apr 5 01:00:00 +0200"}, ends: []string{"Mar 29 05:00:00 +0200", "Apr 5 05:00:00 +0200"}},
		{zone: "Europe/Berlin", first: "2026-03-01 01:00", length: 4 * time.Hour, exact: true, from: "2026-03-28 12:00", to: "2026-04-05 12:00", rule: "FREQ=WEEKLY;BYDAY=SU",
			begins: []string{"Mar 29 01:00:00 +0100", "Apr 5 01:00:00 +0200"}, ends: []string{"Mar 29 06:00:00 +0200", "Apr 5 05:00:00 +0200"}},
		{zone: "Europe/Berlin", first: "2026-09-06 01:00", length: 4 * time.Hour, from: "2026-10-24 12:00", to: "2026-11-01 12:00", rule: "FREQ=WEEKLY;BYDAY=SU",
			begins: []string{"Oct 25 01:00:00 +0200", "Nov 1 01:00:00 +0100"}, ends: []string{"Oct 25 05:00:00 +0100", "Nov 1 05:00:00 +0100"}},
		{zone: "Europe/Berlin", first: "2026-09-06 01:00", length: 4 * time.Hour, exact: true, from: "2026-10-24 12:00", to: "2026-11-01 12:00", rule: "FREQ=WEEKLY;BYDAY=SU",
			begins: []string{"Oct 25 01:00:00 +0200", "Nov 1 01:00:00 +0100"}, ends: []string{"Oct 25 04:00:00 +0100", "Nov 1 05:00:00 +0100"}},
		{zone: "America/New_York", first: "2026-02-01 01:30", length: 3 * time.Hour, from: "2026-03-07 12:00", to: "2026-03-15 12:00", rule: "FREQ=WEEKLY",
			begins: []string{"Mar 8 01:30:00 -0500", "Mar 15 01:30:00 -0400"}, ends: []string{"Mar 8 04:30:00 -0400", "Mar 15 04:30:00 -0400"}},
		{zone: "America/New_York", first: "2026-02-01 01:30", length: 3 * time.Hour, exact: true, from: "2026-03-07 12:00", to: "2026-03-15 12:00", rule: "FREQ=WEEKLY",
			begins: []string{"Mar 8 01:30:00 -0500", "Mar 15 01:30:00 -0400"}, ends: []string{"Mar 8 05:30:00 -0400", "Mar 15 04:30:00 -0400"}},
		{zone: "America/New_York", first: "2026-10-04 01:30", length: 3 * time.Hour, from: "2026-10-31 12:00", to: "2026-11-08 12:00", rule: "FREQ=WEEKLY",
			begins: []string{"Nov 1 01:30:00 -0400", "Nov 8 01:30:00 -0500"}, ends: []string{"Nov 1 04:30:00 -0500", "Nov 8 04:30:00 -0500"}},
		{zone: "America/New_York", first: "2026-10-04 01:30", length: 3 * time.Hour, exact: true, from: "2026-10-31 12:00", to: "2026-11-08 12:00", rule: "FREQ=WEEKLY",
			begins: []string{"Nov 1 01:30:00 -0400", "Nov 8 01:30:00 -0500"}, ends: []string{"Nov 1 03:30:00 -0500", "Nov 8 04:30:00 -0500"}},
		{zone: "Europe/Berlin", first: "2026-03-01 02:30", length: 90 * time.Minute, from: "2026-03-28 12:00", to: "2026-03-29 12:00", rule: "FREQ=WEEKLY;BYDAY=SU",
			begins: []string{"Mar 29 03:30:00 +0200"}, ends: []string{"Mar 29 04:00:00 +0200"}},
	} {
		t.Run(fmt.Sprintf("%s %s exact=%v", c.zone, c.from, c.exact), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				zone := location(t, c.zone)
				at := func(s string) time.Time {
					x, err := time.ParseInLocation("2006-01-02 15:04", s, zone)
					if err != nil {
						t.Fatal(err)
					}
					return x
				}
				// Virtual time begins in 2000; the service starts with the hour before the night that is looked at.
				time.Sleep(time.Until(at(c.from)))
				j := statussynctest.NewJournal()
				r := start(t, j, Options{Recurrence: recur.Parse})
				r.define(3)
				m := statussync.Maintenance{ID: "weekly", ServerIDs: []string{"s001"}, StartsAt: at(c.first), RRule: c.rule, TimeZone: c.zone}
				if m.EndsAt = at(c.first).Add(c.length); c.exact {
					m.EndsAt, m.Duration = time.Time{}, c.length
				}
				if _, err := r.SetMaintenance(r.ctx(), m); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Until(at(c.to)))
				synctest.Wait()
				var want []string
				for i := range c.begins {
					want = append(want, c.begins[i]+" maintenance_begin weekly s001", c.begins[i]+" s001 maintenance", c.ends[i]+" maintenance_end weekly s001", c.ends[i]+" s001 ")
				}
				if got := windowsTold(j.Entries(), zone); !slices.Equal(got, want) {
					t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
				checkJournal(t, j)
			})
		})
	}
}

// TestOverrideEndsInsideWindow: an override that expires inside a window is journaled, and what was under it is shown.
func TestOverrideEndsInsideWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := statussynctest.NewJournal()
		r := start(t, j, Options{})
		r.define(2)
		if _, err := r.SetOverride(r.ctx(), "s001", statussync.Override{State: statussync.StateStopped, Actor: "ann", ExpiresAt: r.Now().Add(30 * time.Minute)}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.SetMaintenance(r.ctx(), statussync.Maintenance{ServerIDs: []string{"s001"}, StartsAt: r.Now().Add(10 * time.Minute), Duration: time.Hour}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		v, err := r.Server("s001")
		if err != nil || v.Status.Marks != statussync.MarkMaintenance || v.Status.State != statussync.StateUnknown || v.Status.Override != nil {
			t.Errorf("%+v, %v", v.Status, err)
		}
		last := j.Entries()[len(j.Entries())-1]
		if last.ServerID != "s001" || !last.Previous.Marks.Has(statussync.MarkOverride|statussync.MarkMaintenance) || last.Current.Marks != statussync.MarkMaintenance || last.Source != statussync.SourceSystem {
			t.Errorf("the journal ends with %s", last.JSON)
		}
	})
}

// TestWindowSurvives: whatever moment a crash comes, a window that was acknowledged is kept, and its begin and its end are
// told once each.
func TestWindowSurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{Recurrence: recur.Parse}
		j := statussynctest.NewJournal()
		r := start(t, j, o)
		r.define(2)
		first := r.Now().Add(time.Hour).Truncate(time.Second)
		m := statussync.Maintenance{ID: "w", EnvironmentIDs: []string{"box-1"}, StartsAt: first, EndsAt: first.Add(time.Hour), RRule: "FREQ=DAILY;COUNT=2", Note: "n", Actor: "ann"}
		v, err := r.SetMaintenance(r.ctx(), m)
		if err != nil || v.Open || !v.NextBegin.Equal(first) || v.Servers != 1 {
			t.Fatalf("%+v, %v", v, err)
		}
		j = r.crash() // at once: it has no entry that would have carried it to the disk
		again := func() {
			t.Helper()
			r = start(t, j, o)
			if v, err := r.Maintenance("w"); err != nil || v.Window.Note != "n" || v.Window.Actor != "ann" || v.Window.RRule != m.RRule {
				t.Fatalf("%+v, %v", v, err)
			}
		}
		again()
		for _, wait := range []time.Duration{time.Hour, time.Nanosecond, 10 * time.Minute, 50 * time.Minute, 0} { // at its begin, in it, at its end
			time.Sleep(wait)
			synctest.Wait()
			j = r.crash()
			again()
		}
		if err := r.EndMaintenance(r.ctx(), "w", "bob", true); statussync.CodeOf(err) != statussync.CodeConflict {
			t.Errorf("no occurrence is running: %v", err)
		}
		time.Sleep(23*time.Hour + time.Minute)
		if err := r.EndMaintenance(r.ctx(), "w", "bob", true); err != nil {
			t.Error(err)
		}
		if list := r.Maintenances(); len(list) != 0 {
			t.Errorf("that was the last one: %+v", list)
		}
		j = r.crash()
		r = start(t, j, o)
		if _, err := r.Maintenance("w"); statussync.CodeOf(err) != statussync.CodeNotFound {
			t.Errorf("it is back: %v", err)
		}
		wantCode(t, r.EndMaintenance(r.ctx(), "w", "bob", false), statussync.CodeNotFound)
		var kinds []string
		for _, e := range j.Entries() {
			if e.MaintenanceID != "" {
				kinds = append(kinds, string(e.Kind)+" "+string(e.Source))
			} else if e.Kind == statussync.KindStatus && e.ServerID == "s001" {
				kinds = append(kinds, strings.Join(e.Current.Marks.Strings(), ","))
			}
		}
		want := []string{"", "maintenance_begin system", "maintenance", "maintenance_end system", "", "maintenance_begin system", "maintenance", "maintenance_end manual", ""}
		if !slices.Equal(kinds, want) {
			t.Errorf("got %q, want %q", kinds, want)
		}
		checkJournal(t, j)
	})
}

func TestSetMaintenanceRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil, Options{})
		r.define(2)
		hour := time.Hour
		for _, c := range []struct {
			name string
			m    statussync.Maintenance
			code statussync.Code
			says string
		}{
			{"nobody", statussync.Maintenance{Duration: hour}, statussync.CodeInvalid, "server_ids"},
			{"no end", statussync.Maintenance{ServerIDs: []string{"s001"}}, statussync.CodeInvalid, "ends_at"},
			{"a misspelt server", statussync.Maintenance{ServerIDs: []string{"s001", "s01"}, Duration: hour}, statussync.CodeNotFound, `"s01"`},
			{"a misspelt environment", statussync.Maintenance{EnvironmentIDs: []string{"bx"}, Duration: hour}, statussync.CodeNotFound, `"bx"`},
			{"a rule that nobody reads", statussync.Maintenance{ServerIDs: []string{"s001"}, StartsAt: r.Now(), Duration: hour, RRule: "FREQ=DAILY"}, statussync.CodeInvalid, "rrule"},
		} {
			_, err := r.SetMaintenance(r.ctx(), c.m)
			if statussync.CodeOf(err) != c.code || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if n := len(r.Maintenances()); n != 0 {
			t.Errorf("%d windows", n)
		}
	})
}

// TestLatestMergesWindows: in mode latest the newest of a window is told, and windows that are over don't pile up.
func TestLatestMergesWindows(t *testing.T) {
	n := newNewest(0)
	var seq uint64
	push := func(k statussync.Kind, id string) {
		seq++
		n.push(statussync.Encoded{Entry: &statussync.Entry{Seq: seq, Kind: k, MaintenanceID: id}})
	}
	push(begin, "running")
	for i := range 5 * minGone {
		id := fmt.Sprint(i)
		push(begin, id)
		push(end, id)
	}
	if len(n.topics) > minGone+2 || len(n.log) > 4*minGone {
		t.Errorf("%d windows are remembered, in a log of %d", len(n.topics), len(n.log))
	}
	if m := n.topics[topic{begin, "running"}]; m == nil || m.Kind != begin || n.live != 1 {
		t.Errorf("the one that runs is %+v, %d are live", m, n.live)
	}
	last := n.topics[topic{begin, fmt.Sprint(5*minGone - 1)}]
	if last == nil || last.Kind != end || n.floor == 0 || n.floor >= last.Seq {
		t.Errorf("the newest is %+v, positions begin at %d", last, n.floor)
	}
}
