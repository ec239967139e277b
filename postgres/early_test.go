package postgres

import (
	"testing"
	"time"

	"github.com/agentopia/statussync"
)

func TestEarlyReports(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var e earlyReports
	n := 0
	keep := func(env string, list statussync.ListKind, size int) *statussync.AgentReport {
		r := &statussync.AgentReport{EnvironmentID: env, List: list, Raw: make([]byte, size)}
		e.keep(r, begin.Add(time.Duration(n)*time.Second))
		n++
		return r
	}
	keep("a", statussync.ListComplete, 10)
	b := keep("b", statussync.ListComplete, 10)
	a := keep("a", statussync.ListComplete, 10) // replaces the first
	event := keep("a", statussync.ListPartial, 10)
	got := e.take()
	if len(got) != 3 || got[0].report != b || got[1].report != a || got[2].report != event {
		t.Fatalf("%+v", got)
	}
	if again := e.take(); len(again) != 0 || e.bytes != 0 {
		t.Fatalf("%+v, %d bytes", again, e.bytes)
	}
	for range 100 {
		keep("a", statussync.ListPartial, 1000)
	}
	if got := e.take(); len(got) > maxEarlyEvents+1 {
		t.Errorf("%d events of one environment", len(got))
	}
	for i := range 100 {
		keep(string(rune('a'+i)), statussync.ListComplete, 1<<20)
	}
	if e.bytes > maxEarlyBytes || e.bytes < maxEarlyBytes-2<<20 {
		t.Errorf("%d bytes are kept", e.bytes)
	}
	for i := range 100 { // each is replaced, and none is counted twice
		keep(string(rune('a'+i)), statussync.ListComplete, 100)
	}
	if e.bytes > 100*1200 {
		t.Errorf("%d bytes are kept", e.bytes)
	}
}
