package mcpprobe

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"syscall"
	"testing"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/probe/httpprobe"
)

// cheap answers with as little work as a server can, so that the prober's own is seen.
func cheap(session string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, "ok")
			return
		}
		id := ""
		for i := len(`{"jsonrpc":"2.0","id":`); i < len(body) && body[i] >= '0' && body[i] <= '9'; i++ {
			id += string(body[i])
		}
		w.Header().Set("Content-Type", mediaJSON)
		if session != "" {
			w.Header().Set(headerSession, session)
		}
		versions := `"2026-07-28","2025-11-25"`
		if session != "" {
			versions = `"2025-11-25"`
		}
		_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":`+id+`,"result":{"supportedVersions":[`+versions+`],"protocolVersion":"2025-11-25",
			"capabilities":{"tools":{"listChanged":true}},"ttlMs":0,"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"x","version":"1"}}}}`)
	})
}

// cpu is the processor time that this process has used.
func cpu() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkProbe compares a probe of each era with a plain HTTP probe of the same server. The server's own work, which
// counts in all three, is in the same process.
func BenchmarkProbe(b *testing.B) {
	run := func(name, session string, probe func(url string) (func() statussync.ProbeResult, func())) {
		b.Run(name, func(b *testing.B) {
			once, done := probe(serve(b, cheap(session)).URL)
			defer done()
			if r := once(); r.Outcome != statussync.OutcomeSuccess {
				b.Fatalf("%+v", r)
			}
			b.ReportAllocs()
			before := cpu()
			for b.Loop() {
				if r := once(); r.Outcome != statussync.OutcomeSuccess {
					b.Fatalf("%+v", r)
				}
			}
			b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op") // true on a busy machine too
		})
	}
	run("http", "", func(url string) (func() statussync.ProbeResult, func()) {
		p := httpprobe.New(httpprobe.Options{})
		pl := plan(url)
		return func() statussync.ProbeResult { return p.Probe(b.Context(), pl) }, p.Close
	})
	mcp := func(url string) (func() statussync.ProbeResult, func()) {
		p := New(Options{})
		pl := known(p, plan(url))
		return func() statussync.ProbeResult { return p.Probe(b.Context(), pl) }, func() { p.Close(context.Background()) }
	}
	run("modern", "", mcp)
	run("legacy", "x", mcp)
}

// BenchmarkSessions reports what a monitored legacy session costs in memory, beside its idle connection (about 20 KiB,
// Options.MaxIdle).
func BenchmarkSessions(b *testing.B) {
	url := serve(b, cheap("0123456789abcdef0123456789abcdef")).URL
	const n = 2000
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		p := New(Options{})
		pl := plan(url)
		pl.ServerID = "first"
		p.Probe(b.Context(), known(p, pl))
		plans := make([]*statussync.ProbePlan, n)
		for i := range plans {
			plans[i] = plan(url)
			plans[i].ServerID = fmt.Sprint("s", i)
		}
		before := heap()
		for _, pl := range plans {
			if r := p.Probe(b.Context(), known(p, pl)); r.Outcome != statussync.OutcomeSuccess {
				b.Fatalf("%+v", r)
			}
		}
		after := heap()
		b.ReportMetric(float64(after-before)/n, "B/session")
		if st := p.Stats(); st.Sessions != n+1 {
			b.Fatalf("%+v", st)
		}
		p.Close(context.Background())
	}
}
