package sqlite

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/statussynctest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	for _, sync := range []string{SyncNormal, SyncFull} {
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

// TestQueryPlans pins what makes reads cheap: both find their rows by an index and in its order.
func TestQueryPlans(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	for _, q := range []string{readQuery, historyQuery} {
		rows, err := s.reads.Query("EXPLAIN QUERY PLAN "+q, 1, 2, 3, "x", 5)
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
