package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/dtma"
	"github.com/agentopia/statussync/engine"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/probe"
	"github.com/agentopia/statussync/probe/httpprobe"
)

var requestsPerSecond = regexp.MustCompile(`Requests/sec:\s*([0-9.]+)`)

// wrk asks a URL as fast as it can and returns requests a second.
func (b *bench) wrk(ctx context.Context, connections int, script, url string) (float64, error) {
	path, err := tool("wrk", "wrk")
	if err != nil {
		return 0, err
	}
	args := []string{"-t1", "-c" + strconv.Itoa(connections), "-d" + strconv.Itoa(int(b.round.Seconds())) + "s"}
	if script != "" {
		args = append(args, "-s", script)
	}
	out, err := exec.CommandContext(ctx, path, append(args, url)...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("wrk: %w: %s", err, tail(string(out)))
	}
	if strings.Contains(string(out), "Non-2xx") {
		return 0, fmt.Errorf("wrk met failures: %s", tail(string(out)))
	}
	m := requestsPerSecond.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("wrk said: %s", tail(string(out)))
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// unmarshalHeartbeat is the limit of ingest: it reads and unmarshals a heartbeat into the types that it has, and no more.
func unmarshalHeartbeat(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err == nil {
		var h struct {
			Version string                  `json:"dtma_version"`
			System  statussync.SystemStatus `json:"system_status"`
			Tools   []struct {
				ID      string   `json:"id"`
				Names   []string `json:"names"`
				Image   string   `json:"image"`
				ImageID string   `json:"image_id"`
				Command string   `json:"command"`
				Created int64    `json:"created"`
				State   string   `json:"state"`
				Status  string   `json:"status"`
				Ports   []struct {
					IP          string `json:"ip"`
					PrivatePort int    `json:"private_port"`
					PublicPort  int    `json:"public_port"`
					Type        string `json:"type"`
				} `json:"ports"`
			} `json:"tool_statuses"`
		}
		err = json.Unmarshal(body, &h)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// ingest posts heartbeats of 20 containers that change nothing.
func ingest(ctx context.Context, b *bench) error {
	svc, err := b.service(ctx, fleet{servers: perEnv, perEnv: perEnv, agents: true}, "")
	if err != nil {
		return err
	}
	defer svc.stop()
	target, err := b.spawn(ctx, "as-target")
	if err != nil {
		return err
	}
	defer target.stop()
	body := heartbeatBody(0, perEnv, nil)
	if _, err := dtma.Decode([]byte(body)); err != nil {
		return err
	}
	script := filepath.Join(b.dir, "heartbeat.lua")
	lua := fmt.Sprintf("wrk.method = \"POST\"\nwrk.body = [==[%s]==]\nwrk.headers[\"Content-Type\"] = \"application/json\"\nwrk.headers[\"Authorization\"] = \"Bearer %s0\"\n", body, agentToken)
	if err := os.WriteFile(script, []byte(lua), 0o600); err != nil {
		return err
	}
	var ours, theirs, cpu []float64
	err = svc.profiled(ctx, "", func() (err error) {
		ours, theirs, err = b.alternate(func() (float64, error) {
			began := svc.cpu()
			rate, err := b.wrk(ctx, 16, script, "http://"+svc.Address+"/heartbeat")
			if err == nil {
				cpu = append(cpu, (svc.cpu()-began)/(rate*b.round.Seconds()))
			}
			return rate, err
		}, func() (float64, error) { return b.wrk(ctx, 16, script, "http://"+target.Address+"/unmarshal") })
		return err
	})
	r := median(ours) / max(1, median(theirs))
	b.add(Result{What: "heartbeats taken", Value: median(ours), Unit: "/s", Against: "read and json.Unmarshal", Peer: median(theirs), Ratio: r, Goal: "≥ 0.7", Met: met(r >= 0.7)})
	b.add(Result{What: "CPU of one", Value: median(cpu), Unit: "µs"})
	return err
}

// asProber is schedule → probe → engine → hub, on the embedded store, as fast as it goes: every server is due again at once.
func asProber(args []string) error {
	url, dir := args[0], args[1]
	p := httpprobe.New(httpprobe.Options{MaxIdlePerHost: 64})
	defer p.Close()
	s, err := probe.New(probe.Options{Concurrency: 64, PerEnvironment: 64, Probers: map[statussync.ProbeKind]statussync.Prober{statussync.ProbeHTTP: p.Probe}})
	if err != nil {
		return err
	}
	policy := engine.DefaultPolicy()
	policy.Probe.Interval, policy.BaseInterval = time.Millisecond, time.Millisecond
	h, err := startHub(dir, hub.Options{Requester: s, Policy: policy})
	if err != nil {
		return err
	}
	defer h.stop()
	u := definitions(256, 256)
	for i := range u.Servers {
		u.Servers[i].Endpoint, u.Servers[i].Probe = url, statussync.ProbeSpec{Kind: statussync.ProbeHTTP, URL: url}
	}
	u.Environments[0].HasToken = false
	if _, err := h.Submit(context.Background(), u); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, h) }()
	defer func() { cancel(); <-ended }()
	s.SetEnabled(false)
	return serveCommands("", func(q command) (answer, error) {
		switch q.Op {
		case "run":
			before := s.Stats().Outcomes
			s.SetEnabled(true)
			began := time.Now()
			time.Sleep(time.Duration(q.Seconds * float64(time.Second)))
			after, took := s.Stats().Outcomes, time.Since(began).Seconds()
			s.SetEnabled(false)
			if f := after.Failure - before.Failure; f > 0 {
				return answer{}, fmt.Errorf("%d probes failed", f)
			}
			return answer{Count: int64(after.Success - before.Success), Seconds: took}, nil
		}
		return answer{}, fmt.Errorf("no such command: %q", q.Op)
	})
}

// probes asks one address through the whole path, against wrk on it, and against the CPU of the blackbox exporter.
func probes(ctx context.Context, b *bench) error {
	target, err := b.spawn(ctx, "as-target")
	if err != nil {
		return err
	}
	defer target.stop()
	url := "http://" + target.Address + "/health"
	dir, err := b.temp("prober")
	if err != nil {
		return err
	}
	prober, err := b.spawn(ctx, "as-prober", url, dir)
	if err != nil {
		return err
	}
	defer prober.stop()
	exporter, at, err := b.blackbox(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = exporter.Process.Signal(syscall.SIGTERM); _ = exporter.Wait() }()

	var cpu, peer []float64
	var ours, theirs []float64
	err = prober.profiled(ctx, "", func() (err error) {
		ours, theirs, err = b.alternate(func() (float64, error) {
			began := prober.cpu()
			a, err := prober.do(command{Op: "run", Seconds: b.round.Seconds()})
			if err != nil {
				return 0, err
			}
			cpu = append(cpu, (prober.cpu()-began)/float64(a.Count))
			return float64(a.Count) / a.Seconds, nil
		}, func() (float64, error) {
			began := processCPU(exporter.Process.Pid)
			rate, err := b.wrk(ctx, 8, "", "http://"+at+"/probe?module=http_2xx&target="+url)
			if err != nil {
				return 0, err
			}
			peer = append(peer, (processCPU(exporter.Process.Pid)-began)/(rate*b.round.Seconds()))
			return b.wrk(ctx, 64, "", url)
		})
		return err
	})
	if err != nil {
		return err
	}
	r := median(ours) / median(theirs)
	b.add(Result{What: "probes", Value: median(ours), Unit: "/s", Against: "wrk", Peer: median(theirs), Ratio: r, Goal: "≥ 0.40", Met: met(r >= 0.4)})
	b.add(Result{What: "CPU of one, whole path", Value: median(cpu), Unit: "µs", Goal: "≤ 60 µs", Met: met(median(cpu) <= 60)})
	r = median(peer) / median(cpu)
	b.add(Result{What: "CPU of one", Value: median(cpu), Unit: "µs", Against: "blackbox exporter", Peer: median(peer), Ratio: r, Goal: "≥ 10 × cheaper", Met: met(r >= 10)})
	return nil
}

// blackbox starts Prometheus' prober of HTTP targets as Debian has it.
func (b *bench) blackbox(ctx context.Context) (*exec.Cmd, string, error) {
	path, err := tool("prometheus-blackbox-exporter", "prometheus-blackbox-exporter")
	if err != nil {
		return nil, "", err
	}
	config := filepath.Join(b.dir, "blackbox.yml")
	if err := os.WriteFile(config, []byte("modules: {http_2xx: {prober: http, timeout: 5s, http: {preferred_ip_protocol: ip4}}}\n"), 0o600); err != nil {
		return nil, "", err
	}
	at := fmt.Sprintf("127.0.0.1:%d", freePort())
	cmd := exec.CommandContext(ctx, path, "--config.file="+config, "--web.listen-address="+at, "--log.level=error")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(50 * time.Millisecond) {
		if resp, err := http.Get("http://" + at + "/-/healthy"); err == nil {
			resp.Body.Close()
			return cmd, at, nil
		}
	}
	_ = cmd.Process.Kill()
	return nil, "", fmt.Errorf("the blackbox exporter does not answer")
}

// lateness has the service probe 9,000 servers every 10 s, each on a loopback address of its own; some hang, some refuse.
func lateness(ctx context.Context, b *bench) error {
	const n = 9000
	target, err := b.spawn(ctx, "as-target")
	if err != nil {
		return err
	}
	defer target.stop()
	port := target.Address[strings.LastIndexByte(target.Address, ':')+1:]
	closed := freePort()
	svc, err := b.service(ctx, fleet{servers: n, perEnv: perEnv, more: "probe: {interval: 10s, timeout: 5s, concurrency: 4096}\n", probe: func(i int) string {
		host := fmt.Sprintf("127.%d.%d.%d", 10+i/60000, i/250%250, 1+i%250)
		switch {
		case i%50 == 7: // 2 %
			return fmt.Sprintf(`{kind: http, url: "http://%s:%s/hang"}`, host, port)
		case i%100 == 11 || i%100 == 33 || i%100 == 77: // 3 %
			return fmt.Sprintf(`{kind: http, url: "http://%s:%d/health"}`, host, closed)
		}
		return fmt.Sprintf(`{kind: http, url: "http://%s:%s/health"}`, host, port)
	}}, "")
	if err != nil {
		return err
	}
	defer svc.stop()
	sleep := func(d time.Duration) { time.Sleep(d) }
	sleep(25 * time.Second) // everybody's first two probes, and the falls of those that fail
	before, err := latenessBuckets(svc.Address)
	if err != nil {
		return err
	}
	cpu, began := svc.cpu(), time.Now()
	if err := svc.profiled(ctx, "", func() error { sleep(30 * time.Second); return nil }); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := latenessBuckets(svc.Address)
	if err != nil {
		return err
	}
	count := after.count - before.count
	p99 := after.since(before, 0.99)
	b.add(Result{What: "p99 of how late a probe starts", Value: p99 * 1000, Unit: "ms", Against: "the schedule", Goal: "≤ 250 ms", Met: met(p99 <= 0.25)})
	want := float64(n) * took.Seconds() / 10
	b.add(Result{What: "probes started of those that were due", Value: 100 * count / want, Unit: "%"})
	starved, err := starving(svc.Address, 25*time.Second)
	if err != nil {
		return err
	}
	b.add(Result{What: "servers not probed for 25 s", Value: float64(starved), Unit: "servers", Goal: "none", Met: met(starved == 0)})
	b.add(Result{What: "CPU of the service", Value: 100 * (svc.cpu() - cpu) / 1e6 / took.Seconds(), Unit: "% of one core"})
	return nil
}

// buckets is a Prometheus histogram, cumulative.
type buckets struct {
	le    []float64
	n     []float64
	count float64
}

var bucketLine = regexp.MustCompile(`^statussync_probe_lateness_seconds_bucket\{le="([^"]+)"\} (\S+)`)

func latenessBuckets(address string) (b buckets, err error) {
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		return b, err
	}
	defer resp.Body.Close()
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if m := bucketLine.FindStringSubmatch(s.Text()); m != nil {
			le, _ := strconv.ParseFloat(m[1], 64)
			n, _ := strconv.ParseFloat(m[2], 64)
			b.le, b.n, b.count = append(b.le, le), append(b.n, n), n
		}
	}
	if len(b.le) == 0 {
		return b, fmt.Errorf("/metrics has no lateness")
	}
	return b, nil
}

// since is a quantile of what was counted after an earlier time: the upper bound of its bucket.
func (b buckets) since(before buckets, q float64) float64 {
	total := b.count - before.count
	for i := range b.le {
		if b.n[i]-before.n[i] >= q*total {
			return b.le[i]
		}
	}
	return b.le[len(b.le)-1]
}

// starving counts the probed servers that were not checked for longer than the limit.
func starving(address string, limit time.Duration) (n int, err error) {
	cursor := ""
	for {
		resp, err := http.Get("http://" + address + "/api/v1/servers?limit=1000&cursor=" + cursor)
		if err != nil {
			return 0, err
		}
		var page struct {
			Items []struct {
				Status struct {
					LastChecked time.Time `json:"last_checked"`
				} `json:"status"`
			} `json:"items"`
			Next string `json:"next_cursor"`
		}
		err = json.NewDecoder(resp.Body).Decode(&page)
		resp.Body.Close()
		if err != nil {
			return 0, err
		}
		for _, s := range page.Items {
			if time.Since(s.Status.LastChecked) > limit {
				n++
			}
		}
		if cursor = page.Next; cursor == "" {
			return n, nil
		}
	}
}
