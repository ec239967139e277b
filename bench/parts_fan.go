package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/sqlite"
)

func (d dial) text() string {
	b, _ := json.Marshal(d) // a struct of strings and numbers can be encoded
	return string(b)
}

// audience is subscribers of one service.
type audience struct {
	svc, subs *child
	total     int64 // entries that came to them so far
}

func (b *bench) audience(ctx context.Context, svc *child, n int, d dial) (*audience, error) {
	subs, err := b.spawn(ctx, "as-subscribers")
	if err != nil {
		return nil, err
	}
	d.Address = svc.Address
	if _, err := subs.do(command{Op: "connect", N: n, Text: d.text()}); err != nil {
		subs.stop()
		return nil, err
	}
	return &audience{svc: svc, subs: subs}, nil
}

// burst has the service make updates, and waits until all have arrived at everybody.
func (a *audience) burst(q command, each int64) error {
	q.Op = "updates"
	if _, err := a.svc.do(q); err != nil {
		return err
	}
	a.total += int64(q.N) * each
	_, err := a.subs.do(command{Op: "wait", Total: a.total, Seconds: 60})
	return err
}

// fanOut sends each update to 4,000 subscribers: as many as go through, and then the same few a second on both sides.
func fanOut(ctx context.Context, b *bench) error {
	const clients, servers = 4000, 100
	svc, err := b.service(ctx, fleet{servers: servers, perEnv: perEnv}, "")
	if err != nil {
		return err
	}
	defer svc.stop()
	ours, err := b.audience(ctx, svc, clients, dial{})
	if err != nil {
		return err
	}
	defer ours.subs.stop()
	peer, err := b.spawn(ctx, "as-centrifuge")
	if err != nil {
		return err
	}
	defer peer.stop()
	theirs, err := b.audience(ctx, peer, clients, dial{Centrifuge: true})
	if err != nil {
		return fmt.Errorf("centrifuge: %w", err)
	}
	defer theirs.subs.stop()

	size := int64(len(update("e1", 1, 1, time.Now()).JSON))
	var cpu, peerCPU []float64
	rate := func(a *audience, cpu *[]float64) func() (float64, error) {
		return func() (float64, error) {
			const burst = 50
			began, used, n := time.Now(), a.svc.cpu(), 0
			for time.Since(began) < b.round {
				if err := a.burst(command{N: burst, Servers: servers, Total: size}, clients); err != nil {
					return 0, err
				}
				n += burst * clients
			}
			*cpu = append(*cpu, (a.svc.cpu()-used)/float64(n))
			return float64(n) / time.Since(began).Seconds(), nil
		}
	}
	var o, t []float64
	if err := svc.profiled(ctx, "", func() (err error) {
		o, t, err = b.alternate(rate(ours, &cpu), rate(theirs, &peerCPU))
		return err
	}); err != nil {
		return err
	}
	r := median(o) / median(t)
	b.add(Result{What: "deliveries", Value: median(o), Unit: "/s", Against: "centrifuge", Peer: median(t), Ratio: r, Goal: "≥ 2.5", Met: met(r >= 2.5)})
	b.add(Result{What: "CPU of one", Value: median(cpu), Unit: "µs", Against: "centrifuge", Peer: median(peerCPU), Ratio: median(peerCPU) / median(cpu)})

	// The same rate for both, which both can hold.
	p99 := func(a *audience) func() (float64, error) {
		return func() (float64, error) {
			if _, err := a.subs.do(command{Op: "stats"}); err != nil {
				return 0, err
			}
			if err := a.burst(command{N: int(20 * b.round.Seconds()), Rate: 20, Servers: servers, Total: size}, clients); err != nil {
				return 0, err
			}
			s, err := a.subs.do(command{Op: "stats"})
			if err == nil && s.Samples == 0 {
				err = errors.New("no latency was sampled")
			}
			return s.P99, err
		}
	}
	if o, t, err = b.alternate(p99(ours), p99(theirs)); err != nil {
		return err
	}
	r = median(o) / median(t)
	b.add(Result{What: "p99 at 20 updates/s", Value: median(o), Unit: "ms", Against: "centrifuge", Peer: median(t), Ratio: r, Goal: "≤ 1", Met: met(r <= 1)})
	return nil
}

// filtered compares what an update costs that 10 subscribers hear of, beside 8,000 subscribers and beside 100.
func filtered(ctx context.Context, b *bench) error {
	cost := func(clients int, profile string) (*audience, func() (float64, error), error) {
		svc, err := b.service(ctx, fleet{servers: 800, perEnv: perEnv}, "")
		if err != nil {
			return nil, nil, err
		}
		a, err := b.audience(ctx, svc, clients, dial{PerServer: true, Spread: clients / 10})
		if err != nil {
			svc.stop()
			return nil, nil, err
		}
		return a, func() (float64, error) {
			const rate = 1000
			used := svc.cpu()
			n := int(rate * b.round.Seconds())
			if err := a.burst(command{N: n, Rate: rate, Servers: clients / 10}, 10); err != nil {
				return 0, err
			}
			return (svc.cpu() - used) / float64(n), nil
		}, nil
	}
	many, ours, err := cost(8000, "")
	if err != nil {
		return err
	}
	defer many.svc.stop()
	defer many.subs.stop()
	few, theirs, err := cost(100, "")
	if err != nil {
		return err
	}
	defer few.svc.stop()
	defer few.subs.stop()
	var o, t []float64
	if err := many.svc.profiled(ctx, "", func() (err error) {
		o, t, err = b.alternate(ours, theirs)
		return err
	}); err != nil {
		return err
	}
	r := median(o) / median(t)
	b.add(Result{What: "CPU of an update for 10", Value: median(o), Unit: "µs", Against: "the same with 100 subscribers", Peer: median(t), Ratio: r, Goal: "≤ 1.3", Met: met(r <= 1.3)})
	return nil
}

// idle is what a subscriber costs that nothing happens to.
func idle(ctx context.Context, b *bench) error {
	const clients = 8000
	svc, err := b.service(ctx, fleet{servers: 800, perEnv: perEnv}, "")
	if err != nil {
		return err
	}
	defer svc.stop()
	before, err := svc.do(command{Op: "memory"})
	if err != nil {
		return err
	}
	rss := residentBytes(svc.cmd.Process.Pid)
	return svc.profiled(ctx, "", func() error {
		a, err := b.audience(ctx, svc, clients, dial{PerServer: true, Spread: 800})
		if err != nil {
			return err
		}
		defer a.subs.stop()
		time.Sleep(3 * time.Second)
		after, err := svc.do(command{Op: "memory"})
		if err != nil {
			return err
		}
		each := float64(after.Bytes-before.Bytes) / clients / 1000
		b.add(Result{What: "heap and stacks of one", Value: each, Unit: "KB", Goal: "≤ 12 KB", Met: met(each <= 12)})
		b.add(Result{What: "resident memory of one", Value: float64(residentBytes(svc.cmd.Process.Pid)-rss) / clients / 1000, Unit: "KB"})
		return nil
	})
}

// endToEnd posts heartbeats that change a status, each for 10 of 1,000 subscribers.
func endToEnd(ctx context.Context, b *bench) error {
	const envs, servers, clients, rate = 100, 40, 1000, 500
	svc, err := b.service(ctx, fleet{servers: envs * servers, perEnv: servers, agents: true, more: "flapping: {changes: 1000000, window: 30m, quiet: 15m}\n"}, "")
	if err != nil {
		return err
	}
	defer svc.stop()
	a, err := b.audience(ctx, svc, clients, dial{PerEnvironment: true, Spread: envs})
	if err != nil {
		return err
	}
	defer a.subs.stop()
	where := fmt.Sprint(svc.Address, " ", envs)
	// Everybody runs, first.
	if _, err := a.subs.do(command{Op: "heartbeats", N: envs, Rate: rate, Servers: servers, Text: where, Total: -1}); err != nil {
		return err
	}
	if _, err := a.subs.do(command{Op: "wait", Total: envs * servers * 10, Seconds: 30}); err != nil {
		return err
	}
	var p50, p99 []float64
	if err := svc.profiled(ctx, "", func() error {
		for range b.rounds {
			if _, err := a.subs.do(command{Op: "stats"}); err != nil {
				return err
			}
			if _, err := a.subs.do(command{Op: "heartbeats", N: int(rate * b.round.Seconds()), Rate: rate, Servers: servers, Text: where}); err != nil {
				return err
			}
			time.Sleep(time.Second)
			s, err := a.subs.do(command{Op: "stats"})
			if err != nil {
				return err
			}
			if s.Samples < 100 {
				return fmt.Errorf("only %d latencies were sampled", s.Samples)
			}
			p50, p99 = append(p50, s.P50), append(p99, s.P99)
			// The next round begins with everybody running again.
			if _, err := a.subs.do(command{Op: "heartbeats", N: envs, Rate: rate, Servers: servers, Text: where, Total: -1}); err != nil {
				return err
			}
			time.Sleep(time.Second)
		}
		return nil
	}); err != nil {
		return err
	}
	b.add(Result{What: "p50 of POST to frame, 500 updates/s", Value: median(p50), Unit: "ms", Goal: "≤ 2 ms", Met: met(median(p50) <= 2)})
	b.add(Result{What: "p99", Value: median(p99), Unit: "ms", Goal: "≤ 15 ms", Met: met(median(p99) <= 15)})
	return nil
}

// resumeStorm has 1,000 clients resume at once, each 500 entries behind, while others listen.
func resumeStorm(ctx context.Context, b *bench) error {
	const clients, behind, live, servers = 1000, 500, 50, 500
	svc, err := b.service(ctx, fleet{servers: servers, perEnv: perEnv}, "")
	if err != nil {
		return err
	}
	defer svc.stop()
	head, err := svc.do(command{Op: "head"})
	if err != nil {
		return err
	}
	if _, err := svc.do(command{Op: "updates", N: behind, Servers: servers}); err != nil {
		return err
	}
	listeners, err := b.audience(ctx, svc, live, dial{})
	if err != nil {
		return err
	}
	defer listeners.subs.stop()
	subs, err := b.spawn(ctx, "as-subscribers")
	if err != nil {
		return err
	}
	defer subs.stop()
	return svc.profiled(ctx, "", func() error {
		// 20 updates a second go on meanwhile.
		if err := svc.send(command{Op: "updates", N: 200, Rate: 20, Servers: servers}); err != nil {
			return err
		}
		began := time.Now()
		d := dial{Address: svc.Address, Cursor: head.Text}
		if _, err := subs.do(command{Op: "connect", N: clients, Text: d.text()}); err != nil {
			return err
		}
		if _, err := subs.do(command{Op: "wait", Total: clients * behind, Seconds: 60}); err != nil {
			return err
		}
		took := time.Since(began).Seconds()
		if _, err := svc.receive(); err != nil {
			return err
		}
		if _, err := listeners.subs.do(command{Op: "wait", Total: 200 * live, Seconds: 60}); err != nil {
			return err
		}
		s, err := listeners.subs.do(command{Op: "stats"})
		if err != nil {
			return err
		}
		b.add(Result{What: "until all have caught up", Value: took, Unit: "s", Goal: "≤ 10 s", Met: met(took <= 10)})
		b.add(Result{What: "p99 of live subscribers meanwhile", Value: s.P99, Unit: "ms", Goal: "≤ 250 ms", Met: met(s.P99 <= 250)})
		return nil
	})
}

// history asks for the history and the uptime of servers, out of a store with many updates of each.
func history(ctx context.Context, b *bench) error {
	const servers = 10_000
	each := 100
	if b.full {
		each = 1000
	}
	dir, err := b.temp("history")
	if err != nil {
		return err
	}
	if err := fill(ctx, dir, servers, each); err != nil {
		return err
	}
	svc, err := b.service(ctx, fleet{servers: servers, perEnv: perEnv}, dir)
	if err != nil {
		return err
	}
	defer svc.stop()
	// Uptime follows the journal; what is asked for must be there.
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		if lag, err := metric(svc.Address, "statussync_uptime_lag_entries"); err != nil {
			return err
		} else if lag == 0 {
			break
		} else if time.Since(began) > 10*time.Minute {
			return fmt.Errorf("uptime is still %.0f entries behind", lag)
		}
	}
	return svc.profiled(ctx, "", func() error {
		for _, path := range []string{"history?hours=2160&limit=100", "uptime?window=90d"} {
			var ms []float64
			for range 1000 {
				began := time.Now()
				resp, err := http.Get(fmt.Sprintf("http://%s/api/v1/servers/%s/%s", svc.Address, serverID(rand.IntN(servers)), path))
				if err != nil {
					return err
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK {
					return fmt.Errorf("%s: %s %.200s %v", path, resp.Status, body, err)
				}
				ms = append(ms, float64(time.Since(began).Microseconds())/1000)
			}
			name, _, _ := strings.Cut(path, "?")
			p99 := quantile(ms, 0.99)
			b.add(Result{What: fmt.Sprintf("p99 of %s, %d updates in the store", name, servers*each), Value: p99, Unit: "ms", Goal: "≤ 20 ms", Met: met(p99 <= 20)})
		}
		return nil
	})
}

// fill makes a store with updates of the last 80 days.
func fill(ctx context.Context, dir string, servers, each int) error {
	store, err := sqlite.Open(ctx, sqlite.Options{Dir: dir})
	if err != nil {
		return err
	}
	total := servers * each
	from := time.Now().Add(-80 * 24 * time.Hour)
	step := 80 * 24 * time.Hour / time.Duration(total)
	const batch = 1000
	for seq := 0; seq < total; seq += batch {
		list := make([]statussync.Encoded, batch)
		for i := range list {
			n := seq + i
			list[i] = update("e1", uint64(n+1), n*7919%servers, from.Add(time.Duration(n)*step))
		}
		if err := store.Append(ctx, &statussync.Batch{Entries: list}); err != nil {
			return errors.Join(err, store.Close())
		}
	}
	return store.Close()
}
