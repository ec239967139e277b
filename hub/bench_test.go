package hub

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/statussynctest"
)

// BenchmarkObserveUnchanged is the common case: probe results and heartbeats that change no status.
func BenchmarkObserveUnchanged(b *testing.B) {
	const servers = 1000
	b.Run("probe", func(b *testing.B) {
		r := start(b, nil, Options{})
		r.define(servers)
		i := 0
		for b.Loop() {
			now := time.Now()
			if err := r.Observe(r.ctx(), &statussync.ProbeResult{
				ServerID: serverID(i % servers), Outcome: statussync.OutcomeSuccess, Latency: time.Millisecond, StartedAt: now, FinishedAt: now,
			}); err != nil {
				b.Fatal(err)
			}
			i++
		}
		if _, err := r.Submit(r.ctx()); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "obs/s")
	})
	b.Run("heartbeat of 20 containers", func(b *testing.B) {
		r := start(b, nil, Options{})
		r.define(140)
		reports := make([][]statussync.ContainerReport, 7)
		for i := range 140 {
			reports[i%7] = append(reports[i%7], statussync.ContainerReport{Names: []string{"server " + serverID(i)}, Word: "running", Text: "Up 2 hours"})
		}
		i := 0
		for b.Loop() {
			if err := r.Observe(r.ctx(), &statussync.AgentReport{
				EnvironmentID: fmt.Sprintf("box-%d", i%7), Via: statussync.ViaPush, List: statussync.ListComplete, Containers: reports[i%7],
			}); err != nil {
				b.Fatal(err)
			}
			i++
		}
		if _, err := r.Submit(r.ctx()); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reports/s")
	})
}

// BenchmarkUpdates is what one update costs from the observation to the ring, journaled in memory.
func BenchmarkUpdates(b *testing.B) {
	const servers = 1000
	r := start(b, statussynctest.NewJournal(), Options{})
	r.define(servers)
	i := 0
	for b.Loop() {
		if err := r.Observe(r.ctx(), force(serverID(i%servers), i/servers)); err != nil {
			b.Fatal(err)
		}
		i++
	}
	if _, err := r.Submit(r.ctx()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
	b.ReportMetric(float64(r.Stats().Entries)/float64(r.Stats().Batches), "entries/append")
}

// BenchmarkFanOut is what one update costs beside many subscribers of one server each, who must not be woken, and
// beside some who all are.
func BenchmarkFanOut(b *testing.B) {
	for _, c := range []struct {
		name    string
		clients int
		all     bool
	}{{"100 of one server each", 100, false}, {"8000 of one server each", 8000, false}, {"100 of everything", 100, true}, {"1000 of everything", 1000, true}} {
		b.Run(c.name, func(b *testing.B) {
			const servers = 8000
			r := start(b, nil, Options{})
			if _, err := r.Submit(r.ctx(), registry(servers)); err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(r.ctx())
			var readers sync.WaitGroup
			for i := range c.clients {
				req := statussync.SubscribeRequest{}
				if !c.all {
					req.Filter = statussync.Filter{Clauses: []statussync.Clause{{ServerIDs: []string{serverID(i)}}}}
				}
				sub, err := r.Subscribe(ctx, req)
				if err != nil {
					b.Fatal(err)
				}
				readers.Go(func() {
					buf := make([]statussync.Event, 0, 16)
					for {
						if _, err := sub.Next(ctx, buf); err != nil {
							return
						}
					}
				})
			}
			i := 0
			for b.Loop() {
				// Always a server that somebody watches, so that one of the many is woken each time.
				if _, err := r.Submit(ctx, force(serverID(i%c.clients), i/c.clients)); err != nil {
					b.Fatal(err)
				}
				i++
			}
			cancel()
			readers.Wait()
		})
	}
}
