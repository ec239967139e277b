package probe_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/probe"
	"github.com/agentopia/statussync/probe/httpprobe"
)

// BenchmarkScheduler measures probes per second and the CPU time of one, through the scheduler and the HTTP prober, over
// kept-alive loopback connections. The server is another process, so that its CPU time is not counted; it still shares
// the machine. It is this test binary, told by an argument to run TestBenchServer alone.
func BenchmarkScheduler(b *testing.B) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestBenchServer$", "--", "-serve-for-benchmark")
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	in, err := cmd.StdinPipe() // its end tells the server to end
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = in.Close()
		_ = cmd.Wait()
	}()
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	addr = addr[:len(addr)-1]

	p := httpprobe.New(httpprobe.Options{MaxIdlePerHost: 64})
	defer p.Close()
	s, err := probe.New(probe.Options{PerEnvironment: 64, Probers: map[statussync.ProbeKind]statussync.Prober{statussync.ProbeHTTP: p.Probe}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	to := &counter{stop: cancel, limit: int64(b.N)}
	// More servers than places, each due again at once: the scheduler always has something to start.
	var reqs []statussync.Request
	for i := range 256 {
		reqs = append(reqs, statussync.Request{Plan: &statussync.ProbePlan{
			ServerID: fmt.Sprint("s", i), EnvironmentID: "e", Kind: statussync.ProbeHTTP, URL: "http://" + addr + "/health",
			Interval: time.Millisecond, Timeout: 10 * time.Second, Trusted: true,
		}})
	}
	s.Do(reqs)
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime(b)
	begin := time.Now()
	if err := s.Run(ctx, to); err != nil {
		b.Fatal(err)
	}
	took := time.Since(begin)
	b.StopTimer()
	n := float64(to.n.Load())
	b.ReportMetric(n/took.Seconds(), "probes/s")
	b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/n, "cpu-µs/probe")
	if f := to.failures.Load(); f > 0 {
		b.Errorf("%d of %.0f probes failed", f, n)
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// counter is an Observer that ends the run after limit results.
type counter struct {
	n, failures atomic.Int64
	limit       int64
	stop        context.CancelFunc
}

func (c *counter) Observe(_ context.Context, obs ...statussync.Observation) error {
	for _, o := range obs {
		if o.(*statussync.ProbeResult).Outcome != statussync.OutcomeSuccess {
			c.failures.Add(1)
		}
	}
	if c.n.Add(int64(len(obs))) >= c.limit {
		c.stop()
	}
	return nil
}

func (c *counter) TryObserve(...statussync.Observation) error { return errors.ErrUnsupported }

func (c *counter) Submit(context.Context, ...statussync.Observation) ([]*statussync.Entry, error) {
	return nil, errors.ErrUnsupported
}

// TestBenchServer is no test: it is the server of BenchmarkScheduler, and does nothing unless started by it.
func TestBenchServer(t *testing.T) {
	if os.Args[len(os.Args)-1] != "-serve-for-benchmark" {
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })}
	ended := make(chan error)
	go func() { ended <- srv.Serve(l) }()
	fmt.Println(l.Addr())
	_, _ = os.Stdin.Read(make([]byte, 1))
	_ = srv.Close()
	<-ended
}
