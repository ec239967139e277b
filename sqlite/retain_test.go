package sqlite

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentopia/statussync"
)

// TestRetentionBesideWriters appends twice what may be kept, with housekeeping and a reader beside it.
func TestRetentionBesideWriters(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir(), MaxBytes: MinMaxBytes, Now: func() time.Time { return start }})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := s.keepHouse(ctx, s.retain, ""); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	mustAppend(t, s, &statussync.Batch{Epoch: "e1"})
	wg.Go(func() { // a reader that follows; one that falls behind begins at the oldest again
		var at statussync.Cursor
		var buf []statussync.Encoded
		for ctx.Err() == nil {
			if at.IsZero() {
				_, at = s.Head()
				at.Epoch = "e1"
			}
			var err error
			switch buf, err = s.Read(ctx, at, 100, buf[:0]); {
			case statussync.CodeOf(err) == statussync.CodeExpired:
				at = statussync.Cursor{}
				continue
			case ctx.Err() != nil:
				return
			case err != nil:
				t.Error(err)
				return
			}
			for _, e := range buf {
				if e.Seq != at.Seq+1 {
					t.Errorf("after %v came %v", at, e.Cursor())
					return
				}
				at = e.Cursor()
			}
		}
	})
	const total, batch = 4000, 50
	for seq := uint64(0); seq < total; seq += batch {
		mustAppend(t, s, &statussync.Batch{Entries: padded("e1", seq, batch)})
		wantHead(t, s, "e1", seq+batch)
	}
	cancel()
	wg.Wait()
	if err := s.keepHouse(t.Context(), s.retain, ""); err != nil {
		t.Fatal(err)
	}
	st := s.Stats()
	if st.FileBytes+st.LogBytes > MinMaxBytes || st.Entries < keepNewest {
		t.Errorf("%d bytes and %d of log for %d entries, at most %d are allowed", st.FileBytes, st.LogBytes, st.Entries, MinMaxBytes)
	}
	_, deleted := s.Head()
	wantRead(t, s, deleted.Seq, total)
	var segments, index int
	if err := s.reads.QueryRow(`SELECT count(*) FROM segments WHERE segment < ?`, deleted.Seq>>segmentShift).Scan(&segments); err != nil || segments != 0 {
		t.Errorf("%d segments of deleted entries are left: %v", segments, err)
	}
	h, err := s.History(t.Context(), statussync.HistoryQuery{ServerID: serverID(7), Limit: 1 << 30})
	if err == nil {
		err = s.reads.QueryRow(`SELECT count(*) FROM entries WHERE server_id = ?`, serverID(7)).Scan(&index)
	}
	if err != nil || len(h) != index || index == 0 {
		t.Errorf("History has %d entries of %d: %v", len(h), index, err)
	}
	t.Logf("kept %d entries in %d KiB, log %d KiB", st.Entries, st.FileBytes>>10, st.LogBytes>>10)
}

// TestShrink lowers the bound of a store that is much larger.
func TestShrink(t *testing.T) {
	o := Options{Dir: t.TempDir(), Now: func() time.Time { return start }}
	s := open(t, o)
	const total = 4500
	for seq := uint64(0); seq < total; seq += 500 {
		mustAppend(t, s, &statussync.Batch{Entries: padded("e1", seq, 500)})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before := s.Stats().FileBytes
	o.MaxBytes = MinMaxBytes
	s = open(t, o)
	if err := s.keepHouse(t.Context(), s.retain, ""); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); before < 15<<20 || st.FileBytes+st.LogBytes > MinMaxBytes {
		t.Errorf("the file had %d bytes and has %d, with %d of log", before, st.FileBytes, st.LogBytes)
	}
	wantHead(t, s, "e1", total)
}

// TestRun lets time pass: entries go when they are old enough, in the order of seq, whatever their times are.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		at := func(seq uint64, d time.Duration) statussync.Encoded {
			e := *update("e1", seq, 3).Entry
			e.Timestamp = time.Now().Add(d)
			return statussync.Encoded{Entry: &e, JSON: e.AppendJSON(nil)}
		}
		s, err := Open(t.Context(), Options{Dir: dir, Retention: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		mustAppend(t, s, &statussync.Batch{Entries: []statussync.Encoded{at(1, 0), at(2, 10*time.Minute), at(3, -30*time.Minute), at(4, 20*time.Minute)}})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- s.Run(ctx) }()
		for _, c := range []struct {
			wait    time.Duration
			deleted uint64
		}{{59 * time.Minute, 0}, {2 * time.Minute, 1}, {8 * time.Minute, 1}, {2 * time.Minute, 3}, {10 * time.Minute, 4}, {time.Hour, 4}} {
			time.Sleep(c.wait)
			synctest.Wait()
			head, deleted := s.Head()
			if deleted.Seq != c.deleted || head.Seq != 4 || (c.deleted > 0 && deleted.Epoch != "e1") {
				t.Errorf("head %v, deleted %v; want up to %d", head, deleted, c.deleted)
			}
		}
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
