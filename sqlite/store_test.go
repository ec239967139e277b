package sqlite

import (
	"context"
	"errors"
	"flag"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/statussynctest"
	"go.uber.org/goleak"
)

// childEnv makes this test binary run as one of the processes that the tests start; its value says which.
const childEnv = "SQLITE_TEST_CHILD"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		os.Exit(childMain(mode, os.Getenv("SQLITE_TEST_DIR")))
	}
	// Each check opens real files several times; -rapid.checks asks for more.
	if err := flag.Set("rapid.checks", strconv.Itoa(quantity(25, 6))); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// quantity is how much of something a test does: less in a race build.
func quantity(plain, race int) int {
	if raced {
		return race
	}
	return plain
}

// open opens a store in dir and closes it with the test.
func open(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	for _, sync := range []string{SyncNormal, SyncFull}[:quantity(2, 1)] {
		t.Run(sync, func(t *testing.T) {
			statussynctest.Journal(t, func(t *testing.T) (statussync.Journal, func() statussync.Journal) {
				o := Options{Dir: t.TempDir(), Sync: sync}
				s := open(t, o)
				return s, func() statussync.Journal {
					if err := s.Close(); err != nil {
						t.Fatalf("Close: %v", err)
					}
					s = open(t, o)
					return s
				}
			})
		})
	}
}

// clock is a settable Options.Now.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

// expire deletes the entries up to and including seq, by making just these too old; entries must be apart by more than a
// millisecond.
func expire(t testing.TB, s *Store, c *clock, seq uint64) {
	t.Helper()
	var ts int64
	if err := s.reads.QueryRow(`SELECT ts FROM entries WHERE seq = ?`, int64(seq)).Scan(&ts); err != nil {
		t.Fatal(err)
	}
	c.t = time.UnixMilli(ts + 1).Add(s.opts.Retention)
	if err := s.retain(context.Background()); err != nil {
		t.Fatalf("retain: %v", err)
	}
	c.t = time.Time{}
}

func TestConformanceRetention(t *testing.T) {
	statussynctest.JournalRetention(t, func(t *testing.T) (statussync.Journal, func(uint64), func() statussync.Journal) {
		c := new(clock)
		o := Options{Dir: t.TempDir(), Now: c.now}
		s := open(t, o)
		return s, func(seq uint64) { expire(t, s, c, seq) }, func() statussync.Journal {
			if err := s.Close(); err != nil {
				t.Fatalf("Close: %v", err)
			}
			s = open(t, o)
			return s
		}
	})
}

// TestQueryPlans pins what makes reads cheap: both find their rows by an index and in its order.
func TestQueryPlans(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	for _, q := range []string{readQuery, historyQuery} {
		rows, err := s.reads.Query("EXPLAIN QUERY PLAN "+q, 1, 2, 3, "x", 5, "")
		if err != nil {
			t.Fatal(err)
		}
		steps := 0
		for ; rows.Next(); steps++ {
			var id, parent, unused int
			var step string
			if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(step, "SEARCH") {
				t.Errorf("the plan of %s has the step %q", q, step)
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil || steps == 0 {
			t.Fatalf("%d steps, %v", steps, err)
		}
	}
}
