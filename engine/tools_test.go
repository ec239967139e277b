package engine

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/agentopia/statussync"
)

// toolEngine is an engine with the server a, and what it told.
func toolEngine(t *testing.T) (*Engine, func(o statussync.Observation) *Effects) {
	t.Helper()
	e, err := New(DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	eff := &Effects{}
	e.Start(fuzzBegin, time.Time{}, eff)
	step := func(o statussync.Observation) *Effects {
		eff.Reset()
		e.Step(fuzzBegin, o, eff)
		return eff
	}
	step(&statussync.RegistryUpdate{Origin: statussync.OriginConfig, Servers: []statussync.Server{{
		ID: "a", Name: "a", Origin: statussync.OriginConfig, Labels: map[string]string{"team": "core"}, Endpoint: "http://10.0.0.1:1/mcp",
		Transport: statussync.TransportStreamableHTTP, Probe: statussync.ProbeSpec{Kind: statussync.ProbeMCP},
	}}})
	return e, step
}

func manyTools(n int, name, hash string) []statussync.ToolRef {
	var out []statussync.ToolRef
	for i := range n {
		out = append(out, statussync.ToolRef{Name: fmt.Sprintf("%s%04d", name, i), Hash: hash})
	}
	return out
}

// TestToolBounds: a list of any content stays within its bounds, in memory, entry and record.
func TestToolBounds(t *testing.T) {
	e, step := toolEngine(t)
	see := func(tools []statussync.ToolRef) *Effects {
		t.Helper()
		return step(&statussync.ToolsSeen{ServerID: "a", Tools: tools})
	}
	if eff := see(manyTools(1001, "t", "1")); statussync.CodeOf(slices.Concat(eff.Errors, []error{nil})[0]) != statussync.CodeTooLarge {
		t.Errorf("1,001 tools: %v", eff.Errors)
	}
	if v, _ := e.Tools("a"); v.Known {
		t.Errorf("%+v", v)
	}
	see(manyTools(1000, "t", "1"))
	eff := see(append(manyTools(500, "t", "2"), manyTools(500, "u", "1")...))
	if len(eff.Errors) > 0 || len(eff.Entries) != 1 || eff.Entries[0].Kind != statussync.KindToolDrift {
		t.Fatalf("%v %v", eff.Entries, eff.Errors)
	}
	en := eff.Entries[0]
	d := en.Tools
	if d.AddedCount != 500 || d.RemovedCount != 500 || d.ChangedCount != 500 || len(d.Added) != 100 || len(d.Removed) != 100 || len(d.Changed) != 100 ||
		d.Added[0].Name != "u0000" || d.Removed[99].Name != "t0599" || d.Changed[0] != (statussync.ToolChange{Name: "t0000", Hash: "2", PreviousHash: "1"}) {
		t.Errorf("%+v", d)
	}
	if en.Labels["team"] != "core" || en.Source != statussync.SourceHeartbeat || len(en.Details) > statussync.MaxErrorText {
		t.Errorf("%+v", en)
	}

	hostile := "a\x00\u202e" + strings.Repeat("ü", 5000)
	eff = see([]statussync.ToolRef{{Name: hostile, Hash: strings.Repeat("h", 5000)}})
	v, _ := e.Tools("a")
	if n := v.Tools[0].Name; len(n) > statussync.MaxToolName || !utf8.ValidString(n) || strings.ContainsAny(n, "\x00\u202e") || len(v.Tools[0].Hash) > statussync.MaxToolHash {
		t.Errorf("%+v", v.Tools)
	}
	if en := eff.Entries[0]; strings.ContainsAny(en.Details, "\x00\u202e") || len(en.Details) > statussync.MaxErrorText || len(en.AppendJSON(nil)) > 40_000 {
		t.Errorf("%s", en.AppendJSON(nil))
	}
	if eff := see([]statussync.ToolRef{{Name: hostile, Hash: strings.Repeat("h", 5000)}}); len(eff.Entries) > 0 {
		t.Errorf("the same again: %v", eff.Entries)
	}
}

// TestToolsStored: the set costs a record only when it or its pin changes, never with each look or other evidence.
func TestToolsStored(t *testing.T) {
	e, step := toolEngine(t)
	stored := func() (out []statussync.Record) {
		t.Helper()
		recs, more := e.Dirty(e.DirtyFor(nil, nil), 0)
		if more {
			t.Fatal("more")
		}
		return slices.DeleteFunc(recs, func(r statussync.Record) bool { return r.Kind != statussync.RecordTools })
	}
	tools := manyTools(1000, "t", "sha256:"+strings.Repeat("0", 64))
	step(&statussync.ToolsSeen{ServerID: "a", Tools: tools})
	if r := stored(); len(r) != 1 || r[0].ID != "a" || len(r[0].Data) > 150_000 {
		t.Fatalf("%d records", len(r))
	}
	for range 3 {
		step(&statussync.ProbeResult{ServerID: "a", Outcome: statussync.OutcomeSuccess, StartedAt: fuzzBegin, FinishedAt: fuzzBegin})
		step(&statussync.ToolsSeen{ServerID: "a", Tools: tools})
		step(&statussync.ToolsSeen{ServerID: "a", Error: "timeout"})
	}
	if r := stored(); len(r) != 0 {
		t.Errorf("%d records though nothing changed", len(r))
	}
	step(&statussync.ToolsPin{ServerID: "a", Actor: "ada"})
	// Before any entry: who pins is told that it is kept.
	recs := e.DirtyFor(nil, nil)
	if len(recs) != 1 || recs[0].Kind != statussync.RecordTools || len(recs[0].Data) > 150_000 {
		t.Fatalf("%d records", len(recs))
	}
	x := NewEraser("ada", "", counting())
	x.Decide()
	data, changed, err := x.Record(recs[0])
	if err != nil || !changed || strings.Contains(string(data), "ada") {
		t.Errorf("%v %v: the pin's actor is still there", changed, err)
	}
	for _, data := range [][]byte{recs[0].Data, data} {
		again, err := New(DefaultPolicy())
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Restore(statussync.Record{Kind: statussync.RecordTools, ID: "a", Data: data}); err != nil {
			t.Fatal(err)
		}
		if err := again.Restore(e.serverRecord(e.servers["a"])); err != nil { // in any order
			t.Fatal(err)
		}
		again.Start(fuzzBegin, fuzzBegin, &Effects{})
		v, ok := again.Tools("a")
		if !ok || !v.Known || len(v.Tools) != 1000 || v.Pinned == nil || len(v.Pinned.Tools) != 1000 || v.Drifted() {
			t.Errorf("restored: %v %+v", ok, v.Pinned)
		}
	}
	step(&statussync.RegistryUpdate{Origin: statussync.OriginConfig, RemovedServers: []string{"a"}})
	if r := stored(); len(r) != 1 || r[0].Data != nil {
		t.Errorf("the tools of a removed server stay in the store: %d", len(r))
	}
}

// TestToolsRecordDamaged: what can't be understood is named, and leaves the engine as it was.
func TestToolsRecordDamaged(t *testing.T) {
	long, err := json.Marshal(storedTools{V: 1, ID: "a", toolMemory: toolMemory{Known: true, Tools: manyTools(1001, "t", "1")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range []string{"", "{", `{"V":9,"ID":"a"}`, `{"V":1,"ID":"b"}`, `{"V":1}`, string(long)} {
		e, err := New(DefaultPolicy())
		if err != nil {
			t.Fatal(err)
		}
		err = e.Restore(statussync.Record{Kind: statussync.RecordTools, ID: "a", Data: []byte(data)})
		if statussync.CodeOf(err) != statussync.CodeInvalid || !strings.Contains(err.Error(), "tools a") || len(e.restoredTools) != 0 {
			t.Errorf("%.40s: %v", data, err)
		}
	}
}
