package engine

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/agentopia/statussync"
)

// FuzzObservations: whatever is seen, in whatever order, everything in watched holds, and nothing panics.
func FuzzObservations(f *testing.F) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 1))
		b := make([]byte, 400)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 2000 {
			b = b[:2000]
		}
		run(t, &dice{b}, nil)
	})
}

// FuzzRestore: a record that cannot be read is an error; one that can, whatever is in it, makes an engine that starts,
// goes on by time and takes observations without a panic and without deadlines in the past.
func FuzzRestore(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, 600)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	w := run(f, &dice{b}, nil)
	var env []byte
	for _, key := range sortedKeys(w.store) {
		rec := w.store[key]
		switch rec.Kind {
		case statussync.RecordEnvironment:
			env = rec.Data
		case statussync.RecordServer:
			f.Add(rec.ID, rec.Data, "e1", env, []byte(nil))
		case statussync.RecordEngine:
			f.Add("s1", []byte(nil), "e1", env, rec.Data)
		}
	}
	f.Add("s1", []byte(`{"V":1,"Def":{"ID":"s1","EnvironmentID":"e1","Endpoint":"http://a","Probe":{"MaxRetries":-5,"Interval":9223372036854775807,"Timeout":-1}},"Pub":{"State":"odd"},"Memory":{"Probe":{"Verdict":9,"Attempts":1,"FailRun":-3,"Taken":9223372036854775807,"LastAt":"9999-12-31T23:59:59Z"},"Flap":{"On":true}}}`),
		"e1", []byte(`{"V":1,"Memory":{"Def":{"ID":"e1","AgentURL":"http://b"},"Gaps":[9223372036854775807,-1,0,3],"LastBeat":"0001-01-02T00:00:00Z","AskFails":-1,"Judged":"odd"}}`),
		[]byte(`{"V":1,"Skipped":9223372036854775807,"Windows":[{"ID":"w","ServerIDs":["s1"],"StartsAt":"9999-01-01T00:00:00Z","EndsAt":"0002-01-01T00:00:00Z"}]}`))
	f.Add("s1", []byte(nil), "e1", env, []byte(`{"V":1,"ID":"w","ServerIDs":["s1"],"StartsAt":"2026-01-01T00:00:00Z","EndsAt":"2026-01-01T00:05:00Z","RRule":"every 12 minutes","Open":true,"Begin":"0001-01-01T00:00:00Z","End":"9999-01-01T00:00:00Z","Done":"9999-12-31T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, id string, server []byte, envID string, env, engine []byte) {
		e, err := New(DefaultPolicy())
		if err != nil {
			t.Fatal(err)
		}
		e.SetRecurrence(func(m *statussync.Maintenance) (statussync.Recurrence, error) {
			if m.StartsAt.Year() < 2025 {
				return nil, statussync.Invalid("starts_at", "is too far away for a rule that counts in minutes")
			}
			return parseEvery12(m)
		})
		for _, rec := range []statussync.Record{
			{Kind: statussync.RecordServer, ID: id, Data: server},
			{Kind: statussync.RecordEnvironment, ID: envID, Data: env},
			{Kind: statussync.RecordEngine, Data: engine},
			{Kind: statussync.RecordMaintenance, ID: "w", Data: engine},
		} {
			if err := e.Restore(rec); err != nil && statussync.CodeOf(err) != statussync.CodeInvalid {
				t.Fatalf("%s: %v", rec.Kind, err)
			}
		}
		now := fuzzBegin
		var eff Effects
		e.Start(now, now.Add(-time.Hour), &eff)
		for _, o := range []statussync.Observation{
			nil,
			&statussync.ProbeResult{ServerID: id, Outcome: statussync.OutcomeFailure, ByConnect: true},
			&statussync.AgentReport{EnvironmentID: envID, Via: statussync.ViaPush, List: statussync.ListComplete, Containers: []statussync.ContainerReport{{Names: []string{id}, Word: "restarting"}}},
			&statussync.AgentReport{EnvironmentID: envID, Via: statussync.ViaPush, List: statussync.ListComplete, Containers: []statussync.ContainerReport{{Names: []string{id}, Word: "running", StartAge: statussync.AgeRange{Min: 1, Max: 2}}}},
			&statussync.AgentFailed{EnvironmentID: envID},
			&statussync.RecordSeen{ServerID: id, Word: "starting"},
			&statussync.RowHeartbeat{ServerID: id, At: now},
			&statussync.ProbeResult{ServerID: id, Outcome: statussync.OutcomeSuccess},
			nil,
		} {
			if o != nil {
				e.Step(now, o, &eff)
			}
			e.Explain(id, now)
			now = now.Add(17 * time.Second)
			for n := 0; ; n++ {
				at, ok := e.Deadline()
				if !ok || at.After(now) {
					break
				}
				if n > 10_000 {
					t.Fatalf("the deadlines do not end: %v", at)
				}
				e.Tick(at, &eff)
			}
			e.Tick(now, &eff)
			if at, ok := e.Deadline(); ok && !at.After(now) {
				t.Fatalf("a deadline in the past: %v, and it is %v", at, now)
			}
			recs, _ := e.Dirty(e.DirtyFor(eff.Entries, nil), 0)
			again, err := New(DefaultPolicy())
			if err != nil {
				t.Fatal(err)
			}
			again.SetRecurrence(parseEvery12)
			for _, rec := range recs {
				if rec.Data == nil {
					continue
				}
				if err := again.Restore(rec); err != nil {
					t.Fatalf("what it stores it cannot read: %v: %s", err, rec.Data)
				}
			}
			eff.Reset()
		}
		e.Tick(now.Add(time.Hour), &eff)
	})
}
