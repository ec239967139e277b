package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	_ "modernc.org/sqlite" // the driver that the store is built on: the limit of "journal"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/sqlite"
)

// definitions of n servers, perEnv on each environment.
func definitions(n, perEnv int) *statussync.RegistryUpdate {
	u := &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Full: true}
	for i := range n {
		if i%perEnv == 0 {
			e := envID(i / perEnv)
			u.Environments = append(u.Environments, statussync.Environment{ID: e, Name: e, Address: "10.0.0.1", HasToken: true, Origin: statussync.OriginConfig})
		}
		id := serverID(i)
		u.Servers = append(u.Servers, statussync.Server{
			ID: id, Name: id, EnvironmentID: envID(i / perEnv), Owner: "owner", Endpoint: "http://10.0.0.1:30000/mcp", Transport: statussync.TransportHTTP,
			Desired: statussync.DesiredRunning, Labels: map[string]string{"team": "core"}, Origin: statussync.OriginConfig,
		})
	}
	return u
}

// report is a heartbeat of an environment: all its containers run.
func report(env, perEnv int) *statussync.AgentReport {
	r := &statussync.AgentReport{EnvironmentID: envID(env), Via: statussync.ViaPush, List: statussync.ListComplete}
	for j := range perEnv {
		r.Containers = append(r.Containers, statussync.ContainerReport{
			Names: []string{serverID(env*perEnv + j)}, Image: "image", Word: "running", Text: "Up 2 hours", HealthCheck: "healthy", PublicPort: 30000 + j,
			StartAge: statussync.AgeRange{Min: 90 * time.Minute, Max: 150 * time.Minute},
		})
	}
	return r
}

func success(id string, at time.Time) *statussync.ProbeResult {
	return &statussync.ProbeResult{ServerID: id, Outcome: statussync.OutcomeSuccess, HTTPStatus: 200, Latency: 20 * time.Millisecond, Auth: statussync.AuthNone, StartedAt: at, FinishedAt: at}
}

const perEnv = 20

// engineObservation steps the pure core: probe results and heartbeats that change nothing.
func engineObservation(ctx context.Context, b *bench) error {
	const n = 100_000
	e, err := engine.New(engine.DefaultPolicy())
	if err != nil {
		return err
	}
	now := time.Now()
	var eff engine.Effects
	e.Start(now, time.Time{}, &eff)
	e.Step(now, definitions(n, perEnv), &eff)
	reports := make([]*statussync.AgentReport, n/perEnv)
	results := make([]*statussync.ProbeResult, n)
	for i := range reports {
		reports[i] = report(i, perEnv)
	}
	for range 4 {
		now = now.Add(20 * time.Second)
		eff.Reset()
		for _, r := range reports {
			e.Step(now, r, &eff)
		}
		for i := range results {
			results[i] = success(serverID(i), now)
			e.Step(now, results[i], &eff)
		}
	}
	var probe, beat []float64
	err = profiledHere(ctx, "", func() error {
		for range b.rounds {
			eff.Reset()
			began, count := time.Now(), 0
			for time.Since(began) < b.round/2 {
				for range 1000 {
					e.Step(now, results[count*97%n], &eff)
					count++
				}
			}
			probe = append(probe, float64(time.Since(began).Nanoseconds())/1000/float64(count))
			began, count = time.Now(), 0
			for time.Since(began) < b.round/2 {
				for range 100 {
					e.Step(now, reports[count*97%len(reports)], &eff)
					count++
				}
			}
			beat = append(beat, float64(time.Since(began).Nanoseconds())/1000/float64(count)/perEnv)
			if len(eff.Entries) > 0 {
				return errors.New("the observations changed something")
			}
		}
		return nil
	})
	b.add(Result{What: "a probe result that changes nothing", Value: median(probe), Unit: "µs", Goal: "≤ 1 µs", Met: met(median(probe) <= 1)})
	b.add(Result{What: "a container of a heartbeat, likewise", Value: median(beat), Unit: "µs", Goal: "≤ 1 µs", Met: met(median(beat) <= 1)})
	return err
}

// running is a hub on a store of its own, in this process.
type running struct {
	*hub.Hub
	store *sqlite.Store
	stop  func() error
}

func startHub(dir string, o hub.Options) (*running, error) {
	store, err := sqlite.Open(context.Background(), sqlite.Options{Dir: dir})
	if err != nil {
		return nil, err
	}
	o.Journal = store
	h, err := hub.New(o)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- h.Run(ctx) }()
	r := &running{Hub: h, store: store, stop: func() error {
		cancel()
		return errors.Join(<-ended, store.Close())
	}}
	select {
	case <-h.Started():
		return r, nil
	case err := <-ended:
		return nil, errors.Join(err, store.Close())
	}
}

func (b *bench) temp(name string) (string, error) { return os.MkdirTemp(b.dir, name) }

// hubRates is what the hub takes from the observation to the ring, on the embedded store.
func hubRates(ctx context.Context, b *bench) error {
	dir, err := b.temp("hub")
	if err != nil {
		return err
	}
	h, err := startHub(dir, hub.Options{})
	if err != nil {
		return err
	}
	defer h.stop()
	const servers = 10_000
	if _, err := h.Submit(ctx, definitions(servers, perEnv)); err != nil {
		return err
	}
	var same, updates, cpuSame, cpuUpdates []float64
	turn := 0
	return errors.Join(profiledHere(ctx, "", func() error {
		for round := range b.rounds + 1 {
			began, n, cpu := time.Now(), 0, selfCPU()
			for time.Since(began) < b.round {
				batch := make([]statussync.Observation, 64) // what a scheduler hands over at once
				now := time.Now()
				for i := range batch {
					batch[i] = success(serverID((n+i)%servers), now)
				}
				if err := h.Observe(ctx, batch...); err != nil {
					return err
				}
				n += len(batch)
			}
			if _, err := h.Submit(ctx); err != nil {
				return err
			}
			if round > 0 { // in the first one servers become healthy
				same = append(same, float64(n)/time.Since(began).Seconds())
				cpuSame = append(cpuSame, (selfCPU()-cpu)/float64(n))
			}
			began, n, cpu = time.Now(), 0, selfCPU()
			for time.Since(began) < b.round {
				for range 100 {
					if err := h.Observe(ctx, override(serverID(turn%servers), turn/servers)); err != nil {
						return err
					}
					turn++
				}
				n += 100
			}
			if _, err := h.Submit(ctx); err != nil {
				return err
			}
			if round > 0 {
				updates = append(updates, float64(n)/time.Since(began).Seconds())
				cpuUpdates = append(cpuUpdates, (selfCPU()-cpu)/float64(n))
			}
			for i := range servers { // probes must change nothing again
				if err := h.Observe(ctx, &statussync.OverrideClear{ServerID: serverID(i), Actor: "bench"}); err != nil {
					return err
				}
			}
			turn = 0
			if _, err := h.Submit(ctx); err != nil {
				return err
			}
		}
		b.add(Result{What: "observations without change", Value: median(same), Unit: "/s", Goal: "≥ 300,000/s", Met: met(median(same) >= 300_000)})
		b.add(Result{What: "CPU of one", Value: median(cpuSame), Unit: "µs"})
		b.add(Result{What: "updates journaled and published", Value: median(updates), Unit: "/s", Goal: "≥ 30,000/s", Met: met(median(updates) >= 30_000)})
		b.add(Result{What: "CPU of one", Value: median(cpuUpdates), Unit: "µs"})
		return nil
	}))
}

func selfCPU() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1000
}

// update is an entry of the size that real ones have.
func update(epoch statussync.Epoch, seq uint64, server int, at time.Time) statussync.Encoded {
	up, down := statussync.Status{State: statussync.StateRunning, Health: statussync.HealthHealthy, Reason: statussync.ReasonOK, Since: at},
		statussync.Status{State: statussync.StateRunning, Health: statussync.HealthUnhealthy, Reason: statussync.ReasonProbeFailing, Cause: "http_503", LastError: "HTTP 503 Service Unavailable", Since: at}
	e := &statussync.Entry{
		Seq: seq, Epoch: epoch, Kind: statussync.KindStatus, Timestamp: at, Source: statussync.SourceHeartbeat,
		Details: "its probe fails (HTTP 503)", ServerID: serverID(server), EnvironmentID: envID(server / perEnv), Version: seq,
		Previous: &up, Current: &down, Changes: []string{"health", "reason"}, Labels: map[string]string{"team": "core"},
	}
	return statussync.Encoded{Entry: e, JSON: e.AppendJSON(nil)}
}

// journalRate appends to the store, and puts the same bytes into a table of two columns with multi-row inserts.
func journalRate(ctx context.Context, b *bench) error {
	const batch = 1000
	dir, err := b.temp("journal")
	if err != nil {
		return err
	}
	store, err := sqlite.Open(ctx, sqlite.Options{Dir: dir})
	if err != nil {
		return err
	}
	defer store.Close()
	raw, err := openRaw(ctx, dir+"/raw.db", batch/4)
	if err != nil {
		return err
	}
	defer raw.close()
	timed := func(seq *uint64, put func([]statussync.Encoded) error) (float64, error) {
		var spent time.Duration
		n := 0
		for began := time.Now(); time.Since(began) < b.round || n == 0; n += batch {
			list := make([]statussync.Encoded, batch)
			for i := range list {
				*seq++
				list[i] = update("e1", *seq, int(*seq*7919%10_000), time.Now())
			}
			at := time.Now()
			if err := put(list); err != nil {
				return 0, err
			}
			spent += time.Since(at)
		}
		return float64(n) / spent.Seconds(), nil
	}
	var seq, rawSeq uint64
	var ours, theirs []float64
	err = profiledHere(ctx, "", func() (err error) {
		ours, theirs, err = b.alternate(func() (float64, error) {
			return timed(&seq, func(l []statussync.Encoded) error { return store.Append(ctx, &statussync.Batch{Entries: l}) })
		}, func() (float64, error) {
			return timed(&rawSeq, func(l []statussync.Encoded) error { return raw.insert(ctx, l) })
		})
		return err
	})
	r := median(ours) / median(theirs)
	b.add(Result{What: "updates journaled", Value: median(ours), Unit: "/s", Against: "raw multi-row inserts", Peer: median(theirs), Ratio: r, Goal: "≥ 0.5", Met: met(r >= 0.5)})
	return err
}

// rawTable is SQLite with nothing around it.
type rawTable struct {
	db   *sql.DB
	conn *sql.Conn
	st   *sql.Stmt
	rows int
}

func openRaw(ctx context.Context, path string, rows int) (*rawTable, error) {
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(wal)&_pragma=synchronous(normal)&_pragma=cache_size(-16000)")
	if err != nil {
		return nil, err
	}
	t := &rawTable{db: db, rows: rows}
	if t.conn, err = db.Conn(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if _, err = t.conn.ExecContext(ctx, `CREATE TABLE entries (seq INTEGER PRIMARY KEY, json BLOB NOT NULL) STRICT`); err == nil {
		t.st, err = t.conn.PrepareContext(ctx, `INSERT INTO entries (seq, json) VALUES `+strings.TrimSuffix(strings.Repeat("(?,?),", rows), ","))
	}
	if err != nil {
		return nil, errors.Join(err, t.conn.Close(), db.Close())
	}
	return t, nil
}

func (t *rawTable) insert(ctx context.Context, list []statussync.Encoded) error {
	if _, err := t.conn.ExecContext(ctx, `BEGIN IMMEDIATE`); err != nil {
		return err
	}
	for ; len(list) > 0; list = list[t.rows:] {
		args := make([]any, 0, 2*t.rows)
		for _, e := range list[:t.rows] {
			args = append(args, int64(e.Seq), e.JSON)
		}
		if _, err := t.st.ExecContext(ctx, args...); err != nil {
			return err
		}
	}
	_, err := t.conn.ExecContext(ctx, `COMMIT`)
	return err
}

func (t *rawTable) close() { _ = errors.Join(t.st.Close(), t.conn.Close(), t.db.Close()) }

// memoryAndStart is what 100,000 servers with evidence cost in memory, and how long a start with their store takes.
func memoryAndStart(ctx context.Context, b *bench) error {
	const n = 100_000
	dir, err := b.temp("memory")
	if err != nil {
		return err
	}
	before := memory().Heap
	h, err := startHub(dir, hub.Options{})
	if err != nil {
		return err
	}
	if _, err := h.Submit(ctx, definitions(n, perEnv)); err != nil {
		return err
	}
	for range 3 {
		for e := range n / perEnv {
			obs := []statussync.Observation{report(e, perEnv)}
			for i := range perEnv {
				obs = append(obs, success(serverID(e*perEnv+i), time.Now()))
			}
			if err := h.Observe(ctx, obs...); err != nil {
				return err
			}
		}
	}
	if _, err := h.Submit(ctx); err != nil {
		return err
	}
	used := float64(memory().Heap-before) / n
	if err := writeHeap(profilePrefix(ctx, "-used")); err != nil {
		return err
	}
	if err := h.stop(); err != nil {
		return err
	}
	b.add(Result{What: "memory of one, with the ring and the store's caches", Value: used / 1024, Unit: "KiB", Goal: "≤ 2 KiB", Met: met(used <= 2048)})
	var starts []float64
	err = profiledHere(ctx, "", func() error {
		for range b.rounds {
			memory() // a process that starts has no garbage
			began := time.Now()
			h, err := startHub(dir, hub.Options{})
			if err != nil {
				return err
			}
			starts = append(starts, time.Since(began).Seconds())
			if got := len(h.Environments()); got != n/perEnv {
				return fmt.Errorf("%d environments are back", got)
			}
			if err := h.stop(); err != nil {
				return err
			}
		}
		return nil
	})
	b.add(Result{What: "cold start from the store", Value: median(starts), Unit: "s", Goal: "≤ 2 s", Met: met(median(starts) <= 2)})
	return err
}
