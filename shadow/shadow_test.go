package shadow

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
)

var zero = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(s int) time.Time { return zero.Add(time.Duration(s) * time.Second) }

func entry(sec int, version uint64, state statussync.State, health statussync.Health, reason statussync.Reason, prev *statussync.Status) *statussync.Entry {
	return &statussync.Entry{Kind: statussync.KindStatus, Timestamp: at(sec), Seq: version, Version: version, Previous: prev, Details: "because",
		Current: &statussync.Status{State: state, Health: health, Reason: reason}}
}

func TestCompare(t *testing.T) {
	up := &statussync.Status{State: statussync.StateRunning, Health: statussync.HealthHealthy}
	line := NewTimeline([]*statussync.Entry{ // newest first, as the API has them
		entry(200, 3, statussync.StateRunning, statussync.HealthHealthy, statussync.ReasonOK, nil),
		entry(100, 2, statussync.StateError, statussync.HealthUnhealthy, statussync.ReasonProbeFailing, up),
	}, nil)
	born := NewTimeline([]*statussync.Entry{entry(100, 1, statussync.StateRunning, statussync.HealthHealthy, statussync.ReasonOK, &statussync.Status{})}, nil)
	for _, c := range []struct {
		name    string
		line    Timeline
		at      int
		status  string
		why     string // of a difference
		skipped bool
	}{
		{"before it fell", line, 50, `{"state":"running","health":"healthy"}`, "", false},
		{"while it was down", line, 150, `{"state":"error","health":"unhealthy"}`, "", false},
		{"we were 20 s earlier", line, 80, `{"state":"error","health":"unhealthy"}`, "", false},
		{"they noticed 50 s late", line, 150, `{"state":"running","health":"healthy"}`, "statussync: because; statussync had said the same until 50s before", false},
		{"they noticed before us", line, 40, `{"state":"error"}`, "the same 1m0s later", false},
		{"only the state is said", line, 300, `{"status":"Running"}`, "", false},
		{"another health", line, 300, `{"state":"running","health":"degraded"}`, "because", false},
		{"never said", line, 300, `{"state":"stopped","health":"unknown"}`, "because", false},
		{"before it was known", born, 20, `{"state":"running","health":"healthy"}`, "", true},
		{"just before it was known", born, 90, `{"state":"running","health":"healthy"}`, "", false},
		{"just before it was known, another", born, 90, `{"state":"stopped"}`, "because", false},
		{"a server that nobody knows", nil, 20, `{"state":"running"}`, "", true},
	} {
		w := Word{ServerID: "s", At: at(c.at)}
		ok := false
		if w.State, w.Health, ok = ParseStatus([]byte(c.status)); !ok {
			t.Fatal(c.status)
		}
		d, skipped := Compare(&w, c.line, 30*time.Second)
		switch {
		case (skipped != "") != c.skipped:
			t.Errorf("%s: skipped because %q", c.name, skipped)
		case (d != nil) != (c.why != ""):
			t.Errorf("%s: %+v", c.name, d)
		case d != nil && !strings.Contains(d.Why, c.why):
			t.Errorf("%s: %q", c.name, d.Why)
		}
	}
}

func TestCompareRecord(t *testing.T) {
	for _, c := range []struct {
		word    string
		now     Said
		changed int // the row
		differ  bool
		skipped bool
	}{
		{"active", Said{Known: true, State: statussync.StateRunning}, 0, false, false},
		{"stopped", Said{Known: true, State: statussync.StateRunning, Reason: statussync.ReasonOK}, 0, true, false},
		{"stopped", Said{Known: true, State: statussync.StateRunning}, 980, false, true},
		{"stopped", Said{Known: true, State: statussync.StateRunning, From: at(990)}, 0, false, true},
		{"pending_config", Said{Known: true, State: statussync.StateRunning}, 0, false, true},
		{"running", Said{}, 0, false, true},
	} {
		d, skipped := CompareRecord(&Word{ServerID: "s", State: c.word, At: at(c.changed)}, &c.now, at(1000), 30*time.Second)
		if (d != nil) != c.differ || (skipped != "") != c.skipped {
			t.Errorf("%+v: %+v, %q", c, d, skipped)
		}
	}
}

func TestParseStatus(t *testing.T) {
	for _, bad := range []string{"", "null", "[]", "{}", `{"state":7}`, `"running"`, `{"state":""}`} {
		if s, _, ok := ParseStatus([]byte(bad)); ok {
			t.Errorf("%s says %q", bad, s)
		}
	}
}

// both is another service's log and a statussync in memory.
type both struct {
	mu    sync.Mutex // guards words where a Run follows
	words []Word
	lines map[string]Timeline
}

func (b *both) Words(_ context.Context, after Place, limit int) ([]Word, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Word
	for _, w := range b.words {
		if (w.At.After(after.At) || w.At.Equal(after.At) && w.ID > after.ID) && len(out) < limit {
			out = append(out, w)
		}
	}
	return out, nil
}

func (b *both) Records(context.Context) ([]Word, error) {
	return []Word{{ServerID: "a", State: "stopped"}}, nil
}

func (b *both) Timeline(_ context.Context, id string, _ time.Time) (Timeline, error) {
	return b.lines[id], nil
}

func (b *both) Now(context.Context) (map[string]Said, error) {
	return map[string]Said{"a": b.lines["a"][len(b.lines["a"])-1]}, nil
}

func TestRun(t *testing.T) {
	running := Timeline{{Known: true, State: statussync.StateRunning, Health: statussync.HealthHealthy}}
	b := &both{lines: map[string]Timeline{"a": running}}
	for i := range 2500 { // more than two pages, all of one moment in the middle
		sec := i
		if i >= 500 && i < 1700 {
			sec = 500
		}
		w := Word{ID: fmt.Sprintf("%04d", i), ServerID: "a", At: at(sec), State: "running", Health: "healthy"}
		if i == 2000 {
			w.State = "stopped"
		}
		b.words = append(b.words, w)
	}
	slices.SortStableFunc(b.words, func(x, y Word) int { return x.At.Compare(y.At) })
	r, err := Run(t.Context(), Options{Log: b, Ours: b, Since: time.Hour, Tolerance: 30 * time.Second, Now: func() time.Time { return at(3000) }})
	if err != nil || r.Count != 2 || r.Differences[0].Theirs.State != "stopped" || r.Differences[1].Where != WhereRecord {
		t.Fatalf("%+v, %v", r, err)
	}
	if r.Rows != 2500 || r.Rows != r.Agreed+1 {
		t.Errorf("%d rows, %d agreed", r.Rows, r.Agreed)
	}
}

// TestFollow: what is written later is compared once, also where it comes late, and only after the tolerance.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		b := &both{lines: map[string]Timeline{"a": {{Known: true, State: statussync.StateRunning}}}}
		var told []Difference
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan *Report, 1)
		go func() {
			r, err := Run(ctx, Options{Log: b, Ours: b, Since: time.Minute, Tolerance: 10 * time.Second, Follow: true, Now: time.Now,
				Tell: func(d *Difference) error {
					b.mu.Lock()
					defer b.mu.Unlock()
					told = append(told, *d)
					return nil
				}})
			if err != nil {
				t.Error(err)
			}
			done <- r
		}()
		time.Sleep(5 * time.Second)
		b.mu.Lock()
		b.words = append(b.words, Word{ID: "1", ServerID: "a", At: time.Now(), State: "stopped"})
		b.mu.Unlock()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		b.mu.Lock()
		if len(told) > 0 {
			t.Errorf("told at %v, before its time", time.Since(begin))
		}
		b.mu.Unlock()
		time.Sleep(30 * time.Second)
		b.mu.Lock()
		b.words = append([]Word{{ID: "0", ServerID: "a", At: begin.Add(2 * time.Second), State: "error"}}, b.words...)
		b.mu.Unlock()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		b.mu.Lock()
		if len(told) != 2 {
			t.Errorf("told %+v", told)
		}
		b.mu.Unlock()
		cancel()
		if r := <-done; r.Count != 2 || r.Rows != 2 {
			t.Errorf("%+v", r)
		}
	})
}
