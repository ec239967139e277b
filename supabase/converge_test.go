package supabase_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/supabase/realtimetest"
)

// database is a table, and a reader of it that is a FeedReceiver as the contract describes: it reads everything when told
// that the feed is live, single rows when told of them, and everything each resync.
type database struct {
	mu     sync.Mutex
	rows   map[string]int
	seen   map[string]int
	live   bool
	full   int // full reads
	single int
}

func (d *database) readAll() {
	d.seen = maps.Clone(d.rows)
	d.full++
}

func (d *database) Live() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.live = true
	d.readAll()
}

func (d *database) Lost(error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.live = false
}

func (d *database) Changed(changes []statussync.RowChange) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range changes {
		if c.ID == "" {
			d.readAll()
			continue
		}
		d.single++
		if v, ok := d.rows[c.ID]; ok { // Deleted is no more than a hint either
			d.seen[c.ID] = v
		} else {
			delete(d.seen, c.ID)
		}
	}
}

func (d *database) resync() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readAll()
}

func (d *database) same() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Equal(d.rows, d.seen)
}

// write changes a random row, and returns what the database says about it: whole, cut short, or without its key.
func (d *database) write(r *rand.Rand) realtimetest.Change {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := fmt.Sprint("row", r.IntN(20))
	c := realtimetest.Change{Schema: "public", Table: table, Record: map[string]any{"id": id}, OldRecord: map[string]any{"id": id}}
	switch _, exists := d.rows[id]; {
	case !exists:
		c.Type, c.OldRecord = "INSERT", nil
		d.rows[id] = r.Int()
	case r.IntN(3) == 0:
		c.Type, c.Record = "DELETE", nil
		delete(d.rows, id)
	default:
		c.Type = "UPDATE"
		d.rows[id] = r.Int()
	}
	switch r.IntN(8) {
	case 0:
		c.Errors = []string{"Error 413: Payload Too Large"}
	case 1:
		c.Errors, c.Record, c.OldRecord = []string{"Error 401: Unauthorized"}, nil, nil
	case 2:
		c.Errors, c.Record, c.OldRecord = []string{"Error 400: Bad Request, no primary key"}, nil, nil
	}
	return c
}

// asked reports whether a frame is a question or its answer, the lack of which is noticed. That the server said something
// by itself which did not come, while the connection goes on, is seen by the resync alone.
func asked(f realtimetest.Frame) bool {
	return !f.ToClient || f.Event == "phx_reply"
}

// TestConverges: whatever is lost, doubled or cut, the reader ends up with what the table holds: within the time of a
// resync where any frame may be missing, and without one, as soon as the channel is live again, where the server's own
// words (changes, closes, errors) come as long as the connection lives.
func TestConverges(t *testing.T) {
	const resync = time.Minute
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		drop := rapid.IntRange(0, 30).Draw(rt, "percent of frames dropped")
		double := rapid.IntRange(0, 30).Draw(rt, "percent of frames doubled")
		lossy := rapid.Bool().Draw(rt, "any frame is dropped")
		faults := rapid.SliceOfN(rapid.IntRange(0, 9), 0, 12).Draw(rt, "faults")
		var failed string
		var full, single int
		bubble(t, func(r *rig) {
			r.client.Logger = nil
			d := &database{rows: map[string]int{}, seen: map[string]int{}}
			r.to = d
			var mu sync.Mutex
			rng := rand.New(rand.NewPCG(seed, 1))
			over := r.start.Add(time.Duration(len(faults)+1) * 20 * time.Second)
			r.srv.OnFrame = func(f realtimetest.Frame) realtimetest.Fate {
				mu.Lock()
				defer mu.Unlock()
				if time.Now().After(over) {
					return realtimetest.Pass
				}
				n := rng.IntN(100)
				switch {
				case n < drop && (lossy || asked(f)):
					return realtimetest.Drop
				case n >= 100-double:
					return realtimetest.Double
				}
				return realtimetest.Pass
			}
		}, func(r *rig) {
			d := r.to.(*database)
			rng := rand.New(rand.NewPCG(seed, 2))
			change := func(n int) {
				for range n {
					r.srv.Change(d.write(rng))
					time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
				}
			}
			var stop sync.WaitGroup
			ended := make(chan struct{})
			if lossy {
				stop.Go(func() {
					for tick := time.NewTicker(resync); ; {
						select {
						case <-ended:
							tick.Stop()
							return
						case <-tick.C:
							d.resync()
						}
					}
				})
			}
			change(5)
			for _, f := range faults {
				switch f {
				case 0:
					r.srv.Disconnect()
				case 1:
					r.srv.Crash()
				case 2:
					r.srv.CloseChannels()
				case 3:
					r.srv.Shutdown("Too many messages per second")
				case 4:
					r.srv.LoseDatabase("UnableToSubscribeToPostgres: it is away", 6*time.Second)
				case 5:
					r.srv.LoseDatabase("", 3*time.Second)
				case 6:
					r.srv.SetFrozen(true)
					change(3)
					time.Sleep(55 * time.Second)
					r.srv.SetFrozen(false)
				case 7:
					r.srv.SetDown(true)
					change(3)
					r.srv.SetDown(false)
				case 8:
					r.srv.Raw([]byte("nonsense"))
				case 9:
					r.srv.Drain()
				}
				change(rng.IntN(6))
				time.Sleep(time.Duration(rng.IntN(15_000)) * time.Millisecond)
			}
			if rest := time.Until(r.start.Add(time.Duration(len(faults)+1) * 20 * time.Second)); rest > 0 {
				time.Sleep(rest)
			}
			change(4)
			// The slowest way back: an unanswered heartbeat, then the widest wait of a limited rate, then the join's own time.
			time.Sleep(4 * time.Minute)
			change(5)
			synctest.Wait()
			if lossy {
				time.Sleep(resync)
				synctest.Wait()
			}
			if !d.same() {
				failed = fmt.Sprintf("the table has %v, the reader %v; %+v", d.rows, d.seen, r.feed.Status())
			}
			if !d.live {
				failed += " not live"
			}
			full, single = d.full, d.single
			close(ended)
			stop.Wait()
		})
		if failed != "" {
			rt.Fatal(failed)
		}
		rt.Logf("%d full reads, %d single ones", full, single)
	})
}
