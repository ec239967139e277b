package engine

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"pgregory.net/rapid"
)

// restored makes an engine from what is stored, and starts it.
func restored(t failer, w *watched, p Policy, now, alive time.Time) (*Engine, *Effects) {
	e, err := New(p)
	if err != nil {
		t.Fatalf("%v", err)
	}
	e.SetRecurrence(parseEvery12)
	for _, key := range sortedKeys(w.store) {
		if err := e.Restore(w.store[key]); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
	}
	var eff Effects
	e.Start(now, alive, &eff)
	return e, &eff
}

// content is a record without the time at which it was made.
func content(t failer, data []byte) string {
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	delete(m, "At")
	delete(m, "Skipped")
	return string(encode(m))
}

// forgetful makes an engine what it is after a restart at the same moment: what only a running one remembers is gone.
func forgetful(e *Engine, now time.Time) {
	e.started = now
	for len(e.pending) > 0 {
		e.unfall(e.pending[0])
	}
	for _, s := range e.servers {
		s.stopWait, s.planned, s.replan = nil, false, false
		s.Def.Probe.Headers = nil
	}
	for _, env := range e.envs {
		env.sample, env.groupAt, env.nextAsk, env.discovered = nil, time.Time{}, time.Time{}, nil
	}
	e.doubt = doubt{node: e.doubt.node}
	clear(e.unknown)
}

// TestRestart: an engine that is restored at any moment has the statuses that were told, tells nothing of itself, and
// goes on like one that was never stopped (but for what only a running one remembers).
func TestRestart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 40, 500).Draw(t, "bytes")
		rest := rapid.SliceOfN(rapid.Byte(), 10, 200).Draw(t, "afterwards")
		w := run(t, &dice{b}, nil)
		now := w.now
		for id, s := range w.e.servers {
			if got, want := content(t, w.store["server/"+id].Data), content(t, w.e.serverRecord(s).Data); got != want {
				t.Fatalf("the record of %s is behind: it holds\n%s\nand the engine has\n%s", id, got, want)
			}
		}
		for id, env := range w.e.envs {
			if got, want := content(t, w.store["environment/"+id].Data), content(t, w.e.envRecord(env).Data); got != want {
				t.Fatalf("the record of %s is behind: it holds\n%s\nand the engine has\n%s", id, got, want)
			}
		}
		w.e.allDirty()
		w.eff.Reset()
		w.check() // stores all of it anew: what is stored just now can't be behind
		e, eff := restored(t, w, w.e.p, now, now)
		for _, en := range eff.Entries {
			t.Fatalf("the restart told %s", en.AppendJSON(nil))
		}
		if got, want := len(e.servers), len(w.e.servers); got != want {
			t.Fatalf("%d servers were restored of %d", got, want)
		}
		if got, want := len(e.envs), len(w.e.envs); got != want {
			t.Fatalf("%d environments were restored of %d", got, want)
		}
		for id := range w.e.servers {
			got, _ := e.Status(id)
			want, _ := w.e.Status(id)
			if !got.Equal(&want) || got.Version != want.Version || !got.Since.Equal(want.Since) || got.CheckCount != want.CheckCount || !got.LastHeartbeat.Equal(want.LastHeartbeat) {
				t.Fatalf("%s was %+v and is restored as %+v", id, want, got)
			}
		}
		forgetful(w.e, now)
		var a, c Effects
		w.e.evalAll(now, &a)
		if len(a.Entries) > 0 {
			t.Fatalf("forgetting told %s", a.Entries[0].AppendJSON(nil))
		}
		a.Reset()
		d := &dice{rest}
		for d.more() {
			now = now.Add(d.wait())
			_, list := d.roll(now)
			for _, do := range list {
				do(w.e, now, &a)
				do(e, now, &c)
			}
		}
		now = now.Add(20 * time.Minute)
		w.e.Tick(now, &a)
		e.Tick(now, &c)
		for i := range max(len(a.Entries), len(c.Entries)) {
			text := func(list []*statussync.Entry) string {
				if i < len(list) {
					return string(list[i].AppendJSON(nil))
				}
				return "nothing"
			}
			if text(a.Entries) != text(c.Entries) {
				t.Fatalf("afterwards they differ at %d:\nnever stopped: %s\nrestored:      %s", i, text(a.Entries), text(c.Entries))
			}
		}
	})
}

// TestDowntime: time during which the service was down makes no failure and no recovery, however often it goes down and
// whatever was stored by then.
func TestDowntime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 40, 400).Draw(t, "bytes")
		w := run(t, &dice{b}, nil)
		for _, v := range w.e.Maintenances() { // maintenance and overrides end by the real time
			w.do(w.now, observe(&statussync.MaintenanceEnd{ID: v.Window.ID}))
		}
		for _, s := range w.e.servers {
			s.Override = nil
			w.e.touch(s)
		}
		w.e.dirtySelf = true
		var eff Effects
		w.eff.Reset()
		w.e.Gap(w.now, 0, &w.eff)
		w.check()
		now, alive := w.now, w.now.Add(-time.Duration(rapid.IntRange(0, 10).Draw(t, "unstored"))*time.Second)
		store := w.store
		if recs, _ := w.e.Dirty(nil, 0); len(recs) > 0 {
			t.Fatalf("everything was stored, and then there is more: %d", len(recs))
		}
		for range rapid.IntRange(1, 4).Draw(t, "times") {
			now = now.Add(time.Duration(rapid.SampledFrom([]int{0, 1, 30, 3600, 100000}).Draw(t, "down")) * time.Second)
			e, err := New(w.e.p)
			if err != nil {
				t.Fatal(err)
			}
			for _, key := range sortedKeys(store) {
				if err := e.Restore(store[key]); err != nil {
					t.Fatal(err)
				}
			}
			eff.Reset()
			e.Start(now, alive, &eff)
			for _, en := range eff.Entries {
				t.Fatalf("the restart at %v told %s", now.Sub(fuzzBegin), en.AppendJSON(nil))
			}
			alive = now
			recs := e.DirtyFor(eff.Entries, nil)
			recs, _ = e.Dirty(recs, 1) // the engine's own, and then it goes down again
			for _, r := range recs {
				if r.Data != nil {
					store[string(r.Kind)+"/"+r.ID] = r
				}
			}
		}
	})
}

// TestRestoreRefuses what it cannot read, with an error that names the record.
func TestRestoreRefuses(t *testing.T) {
	for _, r := range []statussync.Record{
		{Kind: statussync.RecordServer, ID: "a"},
		{Kind: statussync.RecordServer, ID: "a", Data: []byte("{")},
		{Kind: statussync.RecordServer, ID: "a", Data: []byte(`{"V":99,"Def":{"ID":"a"},"Pub":{},"Memory":{}}`)},
		{Kind: statussync.RecordServer, ID: "a", Data: []byte(`{"V":1,"Def":{"ID":"b"},"Pub":{},"Memory":{}}`)},
		{Kind: statussync.RecordServer, ID: "a", Data: []byte(`{"V":1,"Def":{"ID":"a"},"Memory":{}}`)},
		{Kind: statussync.RecordEnvironment, ID: "a", Data: []byte(`{"V":1}`)},
		{Kind: statussync.RecordEnvironment, ID: "a", Data: []byte(`{"V":0,"Memory":{"Def":{"ID":"a"}}}`)},
		{Kind: statussync.RecordEngine, Data: []byte(`[]`)},
		{Kind: "something", ID: "a", Data: []byte(`{"V":1}`)},
	} {
		e, err := New(DefaultPolicy())
		if err != nil {
			t.Fatal(err)
		}
		err = e.Restore(r)
		if statussync.CodeOf(err) != statussync.CodeInvalid {
			t.Errorf("%s %s: %v", r.Kind, r.Data, err)
		}
		if slices.Collect(e.ServerIDs()) != nil || slices.Collect(e.EnvironmentIDs()) != nil {
			t.Errorf("%s %s: the engine is not as before", r.Kind, r.Data)
		}
	}
}
