package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/agentopia/statussync"
)

// memoryRows is a table that can be read as the database is: as of one moment, slowly, and not always.
type memoryRows struct {
	mu    sync.Mutex
	rng   *rand.Rand
	rows  map[string]memoryRow
	calm  bool // reads don't fail any more
	reads int
}

type memoryRow struct{ name, word, beat string }

func (m *memoryRows) chance(p float64) bool { return m.rng.Float64() < p }

// some implements rowReader.
func (m *memoryRows) some(ctx context.Context, instances, _ []string, _ func(*environmentRow) error, row func(*instanceRow) error) error {
	m.mu.Lock()
	at := map[string]memoryRow{}
	for _, id := range instances {
		if r, ok := m.rows[id]; ok {
			at[id] = r
		}
	}
	m.mu.Unlock()
	return m.yield(ctx, at, row)
}

// all implements rowReader.
func (m *memoryRows) all(ctx context.Context, env func(*environmentRow) error, row func(*instanceRow) error) error {
	m.mu.Lock()
	at := maps.Clone(m.rows)
	m.mu.Unlock()
	if err := env(&environmentRow{id: []byte("e"), name: []byte("e")}); err != nil {
		return err
	}
	return m.yield(ctx, at, row)
}

func (m *memoryRows) yield(ctx context.Context, rows map[string]memoryRow, row func(*instanceRow) error) error {
	m.mu.Lock()
	m.reads++
	slow := time.Duration(m.rng.Int64N(int64(2 * time.Second)))
	fails := !m.calm && m.chance(0.2)
	after := m.rng.IntN(len(rows) + 1)
	m.mu.Unlock()
	time.Sleep(slow)
	for i, id := range slices.Sorted(maps.Keys(rows)) {
		if fails && i == after {
			break
		}
		r := rows[id]
		if err := row(&instanceRow{id: []byte(id), env: []byte("e"), name: []byte(r.name), typ: []byte("t"), word: []byte(r.word), beat: []byte(r.beat)}); err != nil {
			return err
		}
	}
	if fails {
		return errors.New("the connection was lost")
	}
	return ctx.Err()
}

// told is what an observer knows: the last of everything.
type told struct {
	mu      sync.Mutex
	servers map[string]memoryRow
}

func (o *told) take(obs []statussync.Observation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, x := range obs {
		switch x := x.(type) {
		case *statussync.RegistryUpdate:
			for _, s := range x.Servers {
				r := o.servers[s.ID]
				r.name = s.Name
				o.servers[s.ID] = r
			}
			for _, id := range x.RemovedServers {
				delete(o.servers, id)
			}
		case *statussync.RecordSeen:
			if r, ok := o.servers[x.ServerID]; ok {
				r.word = x.Word
				o.servers[x.ServerID] = r
			}
		}
	}
}

func (o *told) Observe(_ context.Context, obs ...statussync.Observation) error {
	o.take(obs)
	return nil
}

func (o *told) TryObserve(obs ...statussync.Observation) error {
	o.take(obs)
	return nil
}

func (o *told) Submit(_ context.Context, obs ...statussync.Observation) ([]*statussync.Entry, error) {
	o.take(obs)
	return nil, nil
}

// TestLossyFeed changes rows while the feed drops, repeats, delays and mixes what it tells, is lost and comes back, reads
// are slow and fail, and reports are written back between all of it: within one resync everything is as the rows are.
func TestLossyFeed(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		ids := rapid.IntRange(1, 30).Draw(rt, "rows")
		changes := rapid.IntRange(1, 120).Draw(rt, "changes")
		drop := rapid.Float64Range(0, 1).Draw(rt, "drop")
		fault := ""
		synctest.Test(t, func(*testing.T) { fault = lossy(seed, ids, changes, drop) })
		if fault != "" {
			rt.Fatal(fault)
		}
	})
}

func lossy(seed uint64, ids, changes int, drop float64) (fault string) {
	rng := rand.New(rand.NewPCG(seed, 1))
	rows := &memoryRows{rng: rand.New(rand.NewPCG(seed, 2)), rows: map[string]memoryRow{}}
	to := &told{servers: map[string]memoryRow{}}
	r := &Registry{o: Options{Origin: statussync.OriginPostgres, Resync: time.Minute, Known: func() ([]string, []string) { return nil, nil }},
		log: slog.New(slog.DiscardHandler), mail: newMailbox(), syncs: make(chan *syncRequest)}
	r.fleet, r.wb = newKnownRows(&r.o), newWriteBack(r)
	l := &readLoop{r: r, to: to, quiet: quietMax, resyncAt: time.Now(), read: func(func()) rowReader { return rows }}
	l.look = func(context.Context) error { return nil }
	l.ping = l.look
	ctx, cancel := context.WithCancel(context.Background())
	var all, late sync.WaitGroup
	all.Go(func() { _ = l.run(ctx) })
	words := []string{"running", "exited", "stopped", "error", "starting"}
	name := func(i int) string { return fmt.Sprintf("row-%02d", i) }
	tell := func(id string) {
		for range 1 + rng.IntN(2) {
			if rng.Float64() < drop {
				continue
			}
			delay := time.Duration(rng.Int64N(int64(3 * time.Second)))
			if rng.IntN(2) == 0 {
				delay = 0
			}
			late.Go(func() {
				time.Sleep(delay)
				r.mail.Changed([]statussync.RowChange{{Table: tableInstances, ID: id}})
			})
		}
	}
	r.mail.Live()
	for range changes {
		time.Sleep(time.Duration(rng.Int64N(int64(1500 * time.Millisecond))))
		id := name(rng.IntN(ids))
		switch rng.IntN(8) {
		case 0:
			rows.mu.Lock()
			delete(rows.rows, id)
			rows.mu.Unlock()
			tell(id)
		case 1:
			r.mail.Lost(errors.New("reset"))
		case 2:
			r.mail.Live()
		case 3, 4: // a report is written back; its answer may come late, and its notification does not come
			w := &rowWrite{id: id, env: "e", at: time.Now().UTC().Truncate(time.Microsecond), words: []string{words[rng.IntN(2)]}, state: statussync.StateRunning}
			send, answer := time.Duration(rng.Int64N(int64(2*time.Second))), time.Duration(rng.Int64N(int64(2*time.Second)))
			late.Go(func() {
				r.fleet.decide([]*rowWrite{w}, func(words []string) string { return words[0] })
				reads := r.fleet.writing(nil, []*rowWrite{w})
				time.Sleep(send)
				rows.mu.Lock()
				row, ok := rows.rows[id]
				wrote := false
				if ok {
					row.beat = w.at.Format("2006-01-02 15:04:05.999999Z07")
					if w.word != "" && row.word == w.over {
						row.word, wrote = w.word, true
					}
					rows.rows[id] = row
				}
				rows.mu.Unlock()
				time.Sleep(answer)
				if wrote {
					r.wb.echoes <- []wordEcho{{id: id, word: w.word, over: w.over, reads: reads}}
				}
			})
		default:
			rows.mu.Lock()
			row := rows.rows[id]
			row.name, row.word = "name "+string(rune('a'+rng.IntN(3))), words[rng.IntN(len(words))]
			rows.rows[id] = row
			rows.mu.Unlock()
			tell(id)
		}
	}
	late.Wait() // at most 4 s after the last change
	rows.mu.Lock()
	rows.calm = true
	rows.mu.Unlock()
	// The read that is under way, a pause after a failure, the resync, and what reading twice takes.
	time.Sleep(r.o.Resync + 2*time.Second + retryMax + 3*2*time.Second + settleWait)
	to.mu.Lock()
	rows.mu.Lock()
	for id, row := range rows.rows {
		if got, ok := to.servers[id]; !ok || got.name != row.name || got.word != row.word {
			fault = fmt.Sprintf("%s is %+v and was told as %+v (%v)", id, row, got, ok)
		}
	}
	if fault == "" && len(to.servers) != len(rows.rows) {
		fault = fmt.Sprintf("%d servers, and %d rows", len(to.servers), len(rows.rows))
	}
	rows.mu.Unlock()
	to.mu.Unlock()
	cancel()
	all.Wait()
	return fault
}
