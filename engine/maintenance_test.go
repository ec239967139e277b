package engine

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
)

// TestWindowsOffTheHotPath: what a probe result or a heartbeat costs does not depend on how many windows there are.
func TestWindowsOffTheHotPath(t *testing.T) {
	e, now, reports := fleet(t, 400, 20)
	var eff Effects
	for i := range statussync.MaxMaintenances {
		m := statussync.Maintenance{ID: fmt.Sprintf("w%04d", i), StartsAt: now.Add(-time.Second), EndsAt: now.Add(time.Hour)}
		switch i % 3 {
		case 0:
			m.Labels = map[string]string{"team": "core"}
		case 1:
			m.EnvironmentIDs = []string{"box-000000", "box-000003"}
		case 2:
			m.ServerIDs, m.StartsAt = []string{"server-000007"}, now.Add(30*time.Minute)
		}
		e.Step(now, &statussync.MaintenanceSet{Window: m}, &eff)
	}
	if len(eff.Errors) > 0 {
		t.Fatal(eff.Errors[0])
	}
	e.Step(now, &statussync.MaintenanceSet{Window: statussync.Maintenance{ID: "more", ServerIDs: []string{"server-000007"}, StartsAt: now, EndsAt: now.Add(time.Hour)}}, &eff)
	if len(eff.Errors) != 1 || statussync.CodeOf(eff.Errors[0]) != statussync.CodeTooLarge {
		t.Errorf("one window too many: %v", eff.Errors)
	}
	if st, _ := e.Status("server-000007"); !st.Marks.Has(statussync.MarkMaintenance) {
		t.Errorf("no mark: %+v", st)
	}
	eff.Reset()
	r := success("server-000007", now)
	if n := testing.AllocsPerRun(1000, func() {
		now = now.Add(time.Millisecond)
		r.StartedAt = now
		e.Step(now, r, &eff)
		e.Step(now, reports[3], &eff)
	}); n != 0 {
		t.Errorf("a probe result and a heartbeat that change nothing allocate %v times among windows", n)
	}
}

// TestWindowListIsBounded: the entry of a window over a large fleet lists the first servers and counts all.
func TestWindowListIsBounded(t *testing.T) {
	e, now, _ := fleet(t, 1500, 20)
	var eff Effects
	e.Step(now, &statussync.MaintenanceSet{Window: statussync.Maintenance{ID: "w", Labels: map[string]string{"team": "core"}, EndsAt: now.Add(time.Hour), StartsAt: now}}, &eff)
	begin := eff.Entries[0]
	if begin.Kind != statussync.KindMaintenanceBegin || len(begin.ServerIDs) != statussync.MaxEntryServers || begin.ServerIDs[0] != "server-000000" || !strings.Contains(begin.Details, "1500 servers, of which the first 1000 are listed") {
		t.Errorf("%s: %d listed, %s", begin.Kind, len(begin.ServerIDs), begin.Details)
	}
	if len(eff.Entries) != 1501 {
		t.Errorf("%d entries", len(eff.Entries))
	}
}

// TestLegacyWindows: windows that were stored in the engine's record come back, and move into records of their own.
func TestLegacyWindows(t *testing.T) {
	old, now, _ := fleet(t, 20, 20)
	old.allDirty()
	recs, _ := old.Dirty(nil, 0)
	legacy := fmt.Sprintf(`{"V":1,"At":%[1]q,"Windows":[{"ID":"w","ServerIDs":["server-000007"],"EnvironmentIDs":null,"Labels":null,"StartsAt":%[1]q,"EndsAt":%[2]q,"Note":"n","Actor":"ann"},
		{"ID":"never","ServerIDs":["server-000007"],"StartsAt":"9999-01-01T00:00:00Z","EndsAt":"0002-01-01T00:00:00Z"}]}`, now.Format(time.RFC3339), now.Add(time.Hour).Format(time.RFC3339))
	e, err := New(DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range recs {
		if r.Kind == statussync.RecordEngine {
			continue
		}
		if err := e.Restore(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Restore(statussync.Record{Kind: statussync.RecordEngine, Data: []byte(legacy)}); err != nil {
		t.Fatal(err)
	}
	var eff Effects
	e.Start(now.Add(time.Minute), now, &eff)
	if len(eff.Entries) != 2 || eff.Entries[0].Kind != statussync.KindMaintenanceBegin || !eff.Entries[1].Current.Marks.Has(statussync.MarkMaintenance) {
		t.Fatalf("%d entries: %+v", len(eff.Entries), eff.Entries)
	}
	recs, _ = e.Dirty(nil, 0)
	windowFirst := false
	for _, r := range recs {
		switch r.Kind {
		case statussync.RecordMaintenance:
			var st storedWindow
			if err := json.Unmarshal(r.Data, &st); err != nil || st.ID != "w" || !st.Open || st.Actor != "ann" || st.Note != "n" {
				t.Errorf("%s (%v)", r.Data, err)
			}
			windowFirst = true
		case statussync.RecordEngine:
			if !windowFirst || strings.Contains(string(r.Data), "Windows") {
				t.Errorf("the engine's record comes first, or still has them: %s", r.Data)
			}
		}
	}
	if !windowFirst {
		t.Error("the window was not stored")
	}
	without, err := New(DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	err = without.Restore(statussync.Record{Kind: statussync.RecordMaintenance, ID: "w", Data: []byte(`{"V":1,"ID":"w","ServerIDs":["a"],"StartsAt":"2026-01-01T00:00:00Z","EndsAt":"2026-01-01T01:00:00Z","RRule":"FREQ=DAILY"}`)})
	if statussync.CodeOf(err) != statussync.CodeInvalid || !strings.Contains(err.Error(), "rrule") {
		t.Errorf("a recurring window where nothing reads rules: %v", err)
	}
}
