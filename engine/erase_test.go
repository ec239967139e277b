package engine

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
)

func counting() func() string {
	n := 0
	return func() string { n++; return fmt.Sprintf("erased-%d", n) }
}

// remembered is an engine that knows servers of several owners, an override and a window, with what it would store.
func remembered(t *testing.T) (records []statussync.Record, entries []*statussync.Entry) {
	t.Helper()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	e, err := New(DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	var eff Effects
	e.Start(at, time.Time{}, &eff)
	none := statussync.ProbeSpec{Kind: statussync.ProbeNone}
	step := func(o statussync.Observation) {
		t.Helper()
		at = at.Add(time.Second)
		e.Step(at, o, &eff)
		if len(eff.Errors) > 0 {
			t.Fatal(eff.Errors)
		}
	}
	step(&statussync.RegistryUpdate{Origin: statussync.OriginConfig, Full: true,
		Environments: []statussync.Environment{{ID: "box-c", Owner: "u1", Origin: statussync.OriginConfig}},
		Servers: []statussync.Server{
			{ID: "conf", EnvironmentID: "box-c", Origin: statussync.OriginConfig, Probe: none},
			{ID: "conf-other", EnvironmentID: "box-c", Owner: "u2", Origin: statussync.OriginConfig, Probe: none},
		}})
	step(&statussync.RegistryUpdate{Origin: statussync.OriginManaged, Full: true,
		Environments: []statussync.Environment{{ID: "box-m", Owner: "u1", Origin: statussync.OriginManaged}, {ID: "box-s", Owner: "u1", Origin: statussync.OriginManaged}},
		Servers: []statussync.Server{
			{ID: "mine", EnvironmentID: "box-m", Origin: statussync.OriginManaged, Labels: map[string]string{"of": "u1"}, Probe: none},
			{ID: "named", Owner: "u1", Origin: statussync.OriginManaged, Probe: none},
			{ID: "guest", EnvironmentID: "box-s", Owner: "u2", Origin: statussync.OriginManaged, Probe: none},
		}})
	set := func(id, actor, note string) {
		step(&statussync.OverrideSet{ServerID: id, Override: statussync.Override{State: statussync.StateError, Health: statussync.HealthUnhealthy,
			Actor: actor, Note: note, SetAt: at, ExpiresAt: at.Add(time.Hour)}})
	}
	set("mine", "ada", "ada's own <words>")
	set("guest", "bob", "ada told me")
	step(&statussync.MaintenanceSet{Window: statussync.Maintenance{ID: "w1", ServerIDs: []string{"mine", "guest"}, StartsAt: at.Add(time.Hour), EndsAt: at.Add(2 * time.Hour), Actor: "ada", Note: "by ada"}})
	step(&statussync.MaintenanceSet{Window: statussync.Maintenance{ID: "w2", ServerIDs: []string{"mine", "named"}, StartsAt: at.Add(time.Hour), EndsAt: at.Add(2 * time.Hour), Actor: "bob"}})
	records, more := e.Dirty(nil, 0)
	if more {
		t.Fatal("more")
	}
	return append(records, statussync.Record{Kind: statussync.RecordHub, ID: "volatile", Data: []byte("e7abc")},
		statussync.Record{Kind: statussync.RecordHub, ID: "owner/probing", Data: []byte(`{"enabled":false,"since":"2026-03-01T12:00:00.000Z","changed_by":"ada"}`)}), eff.Entries
}

// erase does what a store does, and returns what is left by kind and id.
func erase(t *testing.T, x *Eraser, records []statussync.Record, entries []*statussync.Entry) (left map[string]string, ids ErasedIDs, changed int) {
	t.Helper()
	for _, kind := range []statussync.RecordKind{statussync.RecordEnvironment, statussync.RecordServer, statussync.RecordMaintenance} {
		for _, r := range records {
			if r.Kind == kind {
				if err := x.Definition(r); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, e := range entries {
		x.Told(e)
	}
	ids = x.Decide()
	left = map[string]string{}
	again, err := New(DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		data, did, err := x.Record(r)
		if err != nil {
			t.Fatal(err)
		}
		if did {
			changed++
		} else if string(data) != string(r.Data) {
			t.Errorf("%s %s is said to be as it was, and is not", r.Kind, r.ID)
		}
		if data == nil {
			continue
		}
		left[string(r.Kind)+" "+r.ID] = string(data)
		if r.Kind != statussync.RecordHub {
			if err := again.Restore(statussync.Record{Kind: r.Kind, ID: r.ID, Data: data}); err != nil {
				t.Errorf("what is left cannot be restored: %v", err)
			}
		}
	}
	for _, e := range entries {
		x.Entry(e)
	}
	return left, ids, changed
}

func TestEraseActor(t *testing.T) {
	records, entries := remembered(t)
	left, ids, changed := erase(t, NewEraser("ada", "", counting()), records, entries)
	if d := cmp.Diff(ErasedIDs{}, ids); d != "" {
		t.Error(d)
	}
	if changed != 3 { // the server's, the window's, and the switch's of probing
		t.Errorf("%d records were changed", changed)
	}
	for k, v := range left {
		// Somebody else's words stay, whoever they are about.
		if HasName([]byte(v), "ada") && (k != "server guest" || strings.Count(v, "ada") != 1) {
			t.Errorf("%s: %s", k, v)
		}
	}
	var st storedServer
	if err := json.Unmarshal([]byte(left["server mine"]), &st); err != nil || st.Memory.Override.Actor != Erased || st.Memory.Override.Note != "" || st.Memory.Override.State != statussync.StateError {
		t.Errorf("%+v, %v: the override is to stay in force", st.Memory, err)
	}
	var w storedWindow
	if err := json.Unmarshal([]byte(left["maintenance w1"]), &w); err != nil || w.Actor != Erased || w.Note != "" || len(w.ServerIDs) != 2 {
		t.Errorf("%+v, %v: the window is to stay", w, err)
	}
	if d := cmp.Diff(`{"changed_by":"erased","enabled":false,"since":"2026-03-01T12:00:00.000Z"}`, left["hub owner/probing"]); d != "" {
		t.Error(d)
	}
	var said []string
	for _, e := range entries {
		if strings.Contains(e.Details, "overridden") {
			said = append(said, e.Details)
		}
	}
	if d := cmp.Diff([]string{"overridden by erased: error, unhealthy", "overridden by bob: error, unhealthy (ada told me)"}, said); d != "" {
		t.Error(d)
	}
}

func TestEraseOwner(t *testing.T) {
	records, entries := remembered(t)
	type place struct {
		seq     int
		kind    statussync.Kind
		at      time.Time
		version uint64
		state   statussync.State
	}
	places := func() (out []place) {
		for i, e := range entries {
			p := place{i, e.Kind, e.Timestamp, e.Version, ""}
			if e.Current != nil {
				p.state = e.Current.State
			}
			out = append(out, p)
		}
		return out
	}
	before := places()
	var theirs []int
	for i, e := range entries {
		switch e.ServerID {
		case "conf", "mine", "named":
			theirs = append(theirs, i)
		}
	}
	entries = append(entries, &statussync.Entry{Kind: statussync.KindEnvironmentSilent, Timestamp: time.Unix(0, 0), EnvironmentID: "box-s", ServerIDs: []string{"guest", "named"}, Details: "environment box-s is silent"},
		&statussync.Entry{Kind: statussync.KindEnvironmentSilent, Timestamp: time.Unix(0, 0), EnvironmentID: "box-m", Details: "environment box-m is silent"})
	left, ids, _ := erase(t, NewEraser("", "u1", counting()), records, entries)
	want := ErasedIDs{
		RemovedServers: []string{"mine", "named"}, RemovedEnvironments: []string{"box-m"}, Servers: []string{"conf"},
		Environments: []string{"box-c", "box-s"}, Defined: []DefinedElsewhere{{Environment: "box-c", Origin: statussync.OriginConfig}},
	}
	if d := cmp.Diff(want, ids); d != "" {
		t.Error(d)
	}
	for k, v := range left {
		if HasName([]byte(v), "u1") || HasName([]byte(v), "mine") || HasName([]byte(v), "named") || strings.Contains(v, "box-m") {
			t.Errorf("%s: %s", k, v)
		}
	}
	var w storedWindow
	if err := json.Unmarshal([]byte(left["maintenance w1"]), &w); err != nil || len(w.ServerIDs) != 1 || w.Note != "by ada" {
		t.Errorf("%+v, %v: the window is to stay for the other server", w, err)
	}
	if len(left) != len(records)-4 { // two servers, an environment, and a window for nobody else
		t.Errorf("%d of %d records are left", len(left), len(records))
	}
	if d := cmp.Diff(before, places()[:len(before)], cmp.AllowUnexported(place{})); d != "" {
		t.Errorf("the journal is not whole: %s", d)
	}
	pseudonyms := map[string]bool{}
	for i, e := range entries[:len(before)] {
		their := len(theirs) > 0 && theirs[0] == i
		if !their {
			if e.Details == Erased || strings.HasPrefix(e.ServerID, "erased") {
				t.Errorf("somebody else's entry is gone: %+v", e)
			}
			continue
		}
		theirs = theirs[1:]
		pseudonyms[e.ServerID] = true
		if e.Details != Erased || e.Labels != nil || !strings.HasPrefix(e.ServerID, "erased-") || (e.Current != nil && !e.Current.Since.IsZero()) {
			t.Errorf("%+v", e)
		}
	}
	if len(pseudonyms) != 3 {
		t.Errorf("3 servers became %v", pseudonyms)
	}
	for _, e := range entries {
		if b := e.AppendJSON(nil); HasName(b, "u1") || HasName(b, "mine") || HasName(b, "named") || strings.Contains(string(b), "box-m") {
			t.Errorf("%s", b)
		}
	}
	if e := entries[len(before)]; e.ServerIDs[0] != "guest" || e.EnvironmentID != "box-s" || e.Details != "environment box-s is silent" {
		t.Errorf("%+v", e)
	}
}

// The journal tells of a window again and again, and repeats a note without its author.
func TestEraseActorOfWindows(t *testing.T) {
	for _, tc := range []struct {
		name    string
		details []string // of entries about one window
		record  string   // the window's own, where there still is one
		want    []string
	}{
		{"known by the entry", []string{"maintenance began, set by ada, until 1: 2 servers (her words)", "maintenance ended: 2 servers (her words)"}, "",
			[]string{"maintenance begin by erased", "maintenance ended: 2 servers"}},
		{"known by the record", []string{"maintenance began, until 1: 1 server (her (own) words)", "maintenance was ended by bob: 1 server (her words)"}, `{"V":1,"Actor":"ada","ServerIDs":["a"]}`,
			[]string{"maintenance began, until 1: 1 server", "maintenance was ended by bob: 1 server"}},
		{"somebody else's", []string{"maintenance began, set by adam, until 1: 1 server (his words of ada)", "maintenance ended: 1 server (his words)"}, `{"V":1,"Actor":"adam","ServerIDs":["a"]}`,
			[]string{"maintenance began, set by adam, until 1: 1 server (his words of ada)", "maintenance ended: 1 server (his words)"}},
		{"ended by her", []string{"maintenance was ended by ada: 1 server (his words)"}, "", []string{"maintenance begin by erased"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := NewEraser("ada", "", counting())
			if tc.record != "" {
				if err := x.Definition(statussync.Record{Kind: statussync.RecordMaintenance, ID: "w", Data: []byte(tc.record)}); err != nil {
					t.Fatal(err)
				}
			}
			var entries []*statussync.Entry
			for _, d := range tc.details {
				e := &statussync.Entry{Kind: statussync.KindMaintenanceBegin, MaintenanceID: "w", Details: d}
				x.Told(e)
				entries = append(entries, e)
			}
			x.Decide()
			var got []string
			for i, e := range entries {
				if x.Entry(e) != (e.Details != tc.details[i]) {
					t.Errorf("%q: it is not said whether it was changed", e.Details)
				}
				got = append(got, e.Details)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestEraseSpans(t *testing.T) {
	owner := NewEraser("", "u1", counting())
	owner.Environment(&statussync.Environment{ID: "box-m", Owner: "u1", Origin: statussync.OriginManaged})
	owner.Server(&statussync.Server{ID: "mine", EnvironmentID: "box-m", Origin: statussync.OriginManaged})
	owner.Server(&statussync.Server{ID: "conf", Owner: "u1", Origin: statussync.OriginConfig})
	owner.Decide()
	for _, tc := range []struct {
		x               *Eraser
		server, details string
		want            string
		remove          bool
	}{
		{owner, "mine", "crashed", "crashed", true},
		{owner, "conf", "crashed", "crashed", true},
		{owner, "guest", "crashed", "crashed", false},
		{owner, "guest", "its owner u1 stopped it", Erased, false},
		{owner, "guest", "environment box-m is silent", Erased, false},
		{owner, "guest", "environment box-m2 is silent", "environment box-m2 is silent", false},
		{NewEraser("ada", "", counting()), "a", "overridden by ada: error, unhealthy (her words)", "overridden by erased: error, unhealthy", false},
		{NewEraser("ada", "", counting()), "a", "overridden by ada: error, unhealthy", "overridden by erased: error, unhealthy", false},
		{NewEraser("ada", "", counting()), "a", "overridden by adam: error, unhealthy (ada)", "overridden by adam: error, unhealthy (ada)", false},
		{NewEraser("ada", "", counting()), "a", "", "", false},
	} {
		s := statussync.Span{ServerID: tc.server, Details: tc.details}
		changed, remove := tc.x.Span(&s)
		if s.Details != tc.want || remove != tc.remove || changed != (remove || s.Details != tc.details) {
			t.Errorf("%s %q became %q, changed %v, remove %v", tc.server, tc.details, s.Details, changed, remove)
		}
	}
}

func TestHasName(t *testing.T) {
	for _, tc := range []struct {
		text, name string
		want       bool
	}{
		{"by ada: x", "ada", true}, {"ada", "ada", true}, {"adamant", "ada", false}, {"canada", "ada", false}, {"canada ada", "ada", true},
		{`{"a":"Ada \u0026 Co"}`, "Ada & Co", true}, {"Zoë", "Zoë", true}, {"Zoës", "Zoë", false}, {"x", "", false}, {"", "ada", false},
	} {
		if got := HasName([]byte(tc.text), tc.name); got != tc.want {
			t.Errorf("%q in %q: %v", tc.name, tc.text, got)
		}
	}
}

func TestEraserRow(t *testing.T) {
	x := NewEraser("ada", "", counting())
	row := map[string]any{"id": "w1", "actor": "ada", "note": "mine", "n": int64(3), "json": []byte(`{"Actor":"ada","Note":"n","T":1772366400000000001}`)}
	if !x.Row(row) {
		t.Error("not changed")
	}
	if d := cmp.Diff(map[string]any{"id": "w1", "actor": Erased, "note": "", "n": int64(3), "json": []byte(`{"Actor":"erased","Note":"","T":1772366400000000001}`)}, row); d != "" {
		t.Error(d)
	}
	if x.Row(map[string]any{"actor": "adam", "note": "ada", "json": "{no JSON"}) {
		t.Error("changed what is somebody else's")
	}
}
