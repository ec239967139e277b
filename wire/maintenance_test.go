package wire

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
)

func TestMaintenanceGolden(t *testing.T) {
	w := &statussync.Maintenance{
		ID: "0198a000-0000-7000-8000-000000000000", ServerIDs: []string{"weather"}, EnvironmentIDs: []string{"box-7"}, Labels: map[string]string{"team": "core"},
		StartsAt: now, EndsAt: now.Add(4 * time.Hour), RRule: "FREQ=WEEKLY;BYDAY=SU", TimeZone: "Europe/Berlin", Duration: 4 * time.Hour, Note: "<b>backups</b>", Actor: "ops",
	}
	full := statussync.MaintenanceView{Window: w, Open: true, NextBegin: now.AddDate(0, 0, 7), NextEnd: now.Add(4 * time.Hour), Servers: 3}
	once := statussync.MaintenanceView{Window: &statussync.Maintenance{ID: "w", ServerIDs: []string{"weather"}, StartsAt: now, EndsAt: now.Add(time.Hour)}, NextBegin: now, NextEnd: now.Add(time.Hour)}
	begin := &statussync.Entry{
		Seq: 60, Epoch: "e7", Kind: statussync.KindMaintenanceBegin, Timestamp: now, Source: statussync.SourceSystem, ServerIDs: []string{"weather", "web"},
		MaintenanceID: "w", Details: "maintenance began, until 2026-03-01T16:00:00.000Z: 2 servers",
	}
	golden(t, "maintenance", marshal(t, FromMaintenance(&full)))
	golden(t, "maintenance-once", marshal(t, FromMaintenance(&once)))
	golden(t, "maintenance-request", marshal(t, MaintenanceRequest{ServerIDs: []string{"a"}, StartsAt: Time{now}, Duration: "4h", RRule: "FREQ=DAILY", TimeZone: "UTC"}))
	golden(t, "update-maintenance", begin.AppendJSON(nil))
	golden(t, "frame-maintenance", AppendEntry(nil, begin.Kind, begin.Cursor(), begin.AppendJSON(nil)))

	var back statussync.Entry
	if err := json.Unmarshal(begin.AppendJSON(nil), &back); err != nil || back.MaintenanceID != "w" {
		t.Errorf("%+v, %v", back, err)
	}
	var u Update
	if err := json.Unmarshal(begin.AppendJSON(nil), &u); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(begin.AppendJSON(nil)), string(marshal(t, u))); d != "" {
		t.Errorf("the type that documents entries differs:\n%s", d)
	}
}

func TestMaintenanceRequest(t *testing.T) {
	var r MaintenanceRequest
	err := json.Unmarshal([]byte(`{"server_ids":["a"],"environment_ids":["b"],"labels":{"c":"d"},"starts_at":"2026-03-29T01:00:00+01:00","ends_at":"2026-03-29T05:00:00+02:00","duration":"1d2h","rrule":"R","time_zone":"Z","note":"n"}`), &r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Maintenance()
	if err != nil {
		t.Fatal(err)
	}
	berlin := func(h int) time.Time { return time.Date(2026, 3, 29, h, 0, 0, 0, time.UTC) }
	want := statussync.Maintenance{ServerIDs: []string{"a"}, EnvironmentIDs: []string{"b"}, Labels: map[string]string{"c": "d"}, StartsAt: berlin(0), EndsAt: berlin(3), Duration: 26 * time.Hour, RRule: "R", TimeZone: "Z", Note: "n"}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	for _, bad := range []string{"soon", "-1h", "0s"} {
		_, err := (&MaintenanceRequest{Duration: bad}).Maintenance()
		if e, ok := err.(*statussync.Error); !ok || e.Location != "duration" || strings.Contains(e.Detail, "%") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
