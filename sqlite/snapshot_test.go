package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/agentopia/statussync"
)

// BenchmarkSnapshot takes a snapshot of a store with 100,000 entries (130 MB) both ways while 10 entries are appended
// every 2 ms, and tells how long the appends took meanwhile.
func BenchmarkSnapshot(b *testing.B) {
	ways := []struct {
		name string
		copy func(ctx context.Context, from, to string) error
	}{
		{"nothing", func(ctx context.Context, _, _ string) error { pause(ctx, 3*time.Second); return nil }},
		{"backup", SnapshotFile},
		{"vacuum", func(ctx context.Context, from, to string) error {
			db, err := sql.Open("sqlite", dsn(from))
			if err != nil {
				return err
			}
			defer db.Close()
			_, err = db.ExecContext(ctx, `VACUUM INTO ?`, to)
			return err
		}},
	}
	for _, way := range ways {
		b.Run(way.name, func(b *testing.B) {
			dir := b.TempDir()
			s := open(b, Options{Dir: dir})
			seq := uint64(0)
			for ; seq < 100_000; seq += 1000 {
				if err := s.Append(b.Context(), &statussync.Batch{Entries: updates("e1", seq, 1000, 1000)}); err != nil {
					b.Fatal(err)
				}
			}
			var took []time.Duration
			n := 0
			for b.Loop() {
				n++
				done := make(chan error, 1)
				go func() { done <- way.copy(b.Context(), s.path, filepath.Join(dir, fmt.Sprint("copy", n))) }()
				for over := false; !over; {
					batch := &statussync.Batch{Entries: updates("e1", seq, 10, 1000)}
					begun := time.Now()
					if err := s.Append(b.Context(), batch); err != nil {
						b.Fatal(err)
					}
					took = append(took, time.Since(begun))
					seq += 10
					pause(b.Context(), 2*time.Millisecond)
					select {
					case err := <-done:
						if err != nil {
							b.Fatal(err)
						}
						over = true
					default:
					}
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			b.ReportMetric(float64(took[len(took)-1].Microseconds()), "max-µs")
		})
	}
}
