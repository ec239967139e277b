package engine

import (
	"fmt"
	"testing"
	"time"

	"github.com/agentopia/statussync"
)

// fleet makes an engine with n servers, perEnv on each environment, that are all reported and probed, and healthy.
func fleet(tb testing.TB, n, perEnv int) (e *Engine, now time.Time, reports []*statussync.AgentReport) {
	tb.Helper()
	e, err := New(DefaultPolicy())
	if err != nil {
		tb.Fatal(err)
	}
	now = fuzzBegin
	var eff Effects
	e.Start(now, time.Time{}, &eff)
	u := &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Full: true}
	for i := 0; i < n; i += perEnv {
		env := fmt.Sprintf("box-%06d", i/perEnv)
		u.Environments = append(u.Environments, statussync.Environment{ID: env, Name: env, Address: "10.0.0.1", HasToken: true, Origin: statussync.OriginConfig})
		r := &statussync.AgentReport{EnvironmentID: env, Via: statussync.ViaPush, List: statussync.ListComplete}
		for j := range min(perEnv, n-i) {
			id := fmt.Sprintf("server-%06d", i+j)
			u.Servers = append(u.Servers, statussync.Server{
				ID: id, Name: id, EnvironmentID: env, Owner: "owner", Endpoint: "http://10.0.0.1:30000/mcp", Transport: statussync.TransportHTTP,
				Desired: statussync.DesiredRunning, Labels: map[string]string{"team": "core"}, Origin: statussync.OriginConfig,
			})
			r.Containers = append(r.Containers, statussync.ContainerReport{
				Names: []string{id}, Image: "image", Word: "running", Text: "Up 2 hours", HealthCheck: "healthy", PublicPort: 30000,
				StartAge: statussync.AgeRange{Min: 90 * time.Minute, Max: 150 * time.Minute},
			})
		}
		reports = append(reports, r)
	}
	e.Step(now, u, &eff)
	for range 4 {
		now = now.Add(20 * time.Second)
		eff.Reset()
		for _, r := range reports {
			e.Step(now, r, &eff)
			for i := range r.Containers {
				e.Step(now, success(r.Containers[i].Names[0], now), &eff)
			}
		}
	}
	if len(eff.Errors) > 0 || len(eff.Entries) > 0 {
		tb.Fatalf("%v %d", eff.Errors, len(eff.Entries))
	}
	return e, now, reports
}

func success(id string, at time.Time) *statussync.ProbeResult {
	return &statussync.ProbeResult{ServerID: id, Outcome: statussync.OutcomeSuccess, HTTPStatus: 200, Latency: 20 * time.Millisecond, Auth: statussync.AuthNone, StartedAt: at, FinishedAt: at}
}

// TestNothingNewAllocatesNothing: what changes nothing costs no memory.
func TestNothingNewAllocatesNothing(t *testing.T) {
	e, now, reports := fleet(t, 400, 20)
	var eff Effects
	r := success("server-000007", now)
	if n := testing.AllocsPerRun(1000, func() {
		now = now.Add(time.Millisecond)
		r.StartedAt = now
		e.Step(now, r, &eff)
	}); n != 0 {
		t.Errorf("a probe result that changes nothing allocates %v times", n)
	}
	if n := testing.AllocsPerRun(1000, func() {
		now = now.Add(time.Millisecond)
		e.Step(now, reports[3], &eff)
	}); n != 0 {
		t.Errorf("a heartbeat that changes nothing allocates %v times", n)
	}
	if len(eff.Entries) != 0 || len(eff.Requests) != 0 {
		t.Errorf("they were not without effect: %d entries, %d requests", len(eff.Entries), len(eff.Requests))
	}
}

// TestHugeHeartbeat: a report of 100,000 containers costs bounded memory and no more than their number.
func TestHugeHeartbeat(t *testing.T) {
	e, now, _ := fleet(t, 20, 20)
	r := &statussync.AgentReport{EnvironmentID: "box-000000", Via: statussync.ViaPush, List: statussync.ListComplete}
	for i := range 100_000 {
		r.Containers = append(r.Containers, statussync.ContainerReport{Names: []string{fmt.Sprintf("stranger-%d", i)}, Word: fmt.Sprintf("word-%d", i)})
	}
	var eff Effects
	e.Step(now.Add(time.Second), r, &eff)
	view, _ := e.Environment("box-000000", now)
	if len(view.Discovered) != statussync.MaxDiscovered {
		t.Errorf("%d discovered containers are kept", len(view.Discovered))
	}
	if len(eff.Unknown) > maxUnknownWords || len(e.unknown) > maxUnknownWords {
		t.Errorf("%d unknown words are kept", len(e.unknown))
	}
	if len(e.listed) > 100 {
		t.Errorf("%d are listed", len(e.listed))
	}
}

func BenchmarkProbeResultUnchanged(b *testing.B) {
	e, now, _ := fleet(b, 100_000, 20)
	var eff Effects
	results := make([]*statussync.ProbeResult, 1000)
	for i := range results {
		results[i] = success(fmt.Sprintf("server-%06d", i*97), now)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		e.Step(now, results[i%len(results)], &eff)
		i++
	}
}

func BenchmarkHeartbeatUnchanged(b *testing.B) {
	e, now, reports := fleet(b, 100_000, 20)
	var eff Effects
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		e.Step(now, reports[i%1000], &eff)
		i++
	}
}

func BenchmarkRestart(b *testing.B) {
	e, now, _ := fleet(b, 100_000, 20)
	e.allDirty()
	recs, _ := e.Dirty(nil, 0)
	size := 0
	for _, r := range recs {
		if r.Kind == statussync.RecordServer {
			size += len(r.Data)
		}
	}
	b.ReportMetric(float64(size)/100_000, "bytes/server")
	for b.Loop() {
		n, err := New(DefaultPolicy())
		if err != nil {
			b.Fatal(err)
		}
		for _, r := range recs {
			if err := n.Restore(r); err != nil {
				b.Fatal(err)
			}
		}
		var eff Effects
		n.Start(now.Add(time.Hour), now, &eff)
		if len(eff.Entries) > 0 || len(eff.Requests) != 100_000 {
			b.Fatalf("%d entries, %d requests", len(eff.Entries), len(eff.Requests))
		}
	}
	b.ReportMetric(float64(size)/100_000, "bytes/server")
}

func BenchmarkRecord(b *testing.B) {
	e, _, _ := fleet(b, 20, 20)
	s := e.servers["server-000007"]
	b.ReportAllocs()
	for b.Loop() {
		_ = e.serverRecord(s)
	}
}
