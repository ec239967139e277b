package sqlite

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/statussynctest"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// seen is what a journal shows of an entry.
type seen struct {
	JSON   string
	Labels map[string]string
	At     statussync.Cursor
}

func look(list []statussync.Encoded) []seen {
	out := []seen{}
	for _, e := range list {
		out = append(out, seen{string(e.JSON), e.Labels, e.Cursor()})
	}
	return out
}

func recordsOf(j statussync.Journal, t *testing.T) (map[recordKey]string, error) {
	out := map[recordKey]string{}
	for r, err := range j.Records(t.Context()) {
		if err != nil {
			return nil, err
		}
		out[recordKey{r.Kind, r.ID}] = string(r.Data)
	}
	return out, nil
}

// TestLikeMemory does the same to the store and to the journal in memory, and sees the same after each step.
func TestLikeMemory(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "sqlite")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		c := new(clock)
		o := Options{Dir: dir, Now: c.now}
		s, err := Open(t.Context(), o)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		m := statussynctest.NewJournal()
		servers := rapid.SampledFrom([]string{"", "a", "b", "c"})
		epochs := rapid.SampledFrom([]statussync.Epoch{"e1", "e1", "e1", "e2", "e3"})
		tick := 0
		grow := func(rt *rapid.T, epoch statussync.Epoch, after uint64, n int) []statussync.Encoded {
			list := make([]statussync.Encoded, n)
			for i := range list {
				tick++
				e := &statussync.Entry{
					Seq: after + 1 + uint64(i), Epoch: epoch, Kind: statussync.KindServerAdded, Source: statussync.SourceSystem,
					Timestamp: start.Add(time.Duration(tick) * time.Second),
				}
				if i < 5 {
					e.ServerID, e.Details = servers.Draw(rt, "server"), rapid.StringN(0, 10, -1).Draw(rt, "details")
					if rapid.Bool().Draw(rt, "labelled") {
						word := rapid.StringMatching(`[a-zé"\\ ]{0,3}`)
						e.Labels = rapid.MapOfN(word, word, 0, 3).Draw(rt, "labels")
					}
				}
				list[i] = statussync.Encoded{Entry: e, JSON: e.AppendJSON(nil)}
			}
			return list
		}
		// Also near the end of a segment, so that it is crossed both ways.
		first := &statussync.Batch{Entries: grow(rt, "e1", 0, rapid.SampledFrom([]int{0, 3, 2040, 4090}).Draw(rt, "begin"))}
		if err := errors.Join(s.Append(t.Context(), first), m.Append(t.Context(), first)); err != nil {
			rt.Fatal(err)
		}

		rt.Repeat(map[string]func(*rapid.T){
			"append": func(rt *rapid.T) {
				head, deleted := m.Head()
				b := &statussync.Batch{}
				if rapid.IntRange(0, 3).Draw(rt, "kind") == 0 {
					to := max(int64(head.Seq)-rapid.Int64Range(-1, 12).Draw(rt, "back"), 0)
					b.Replace = statussync.Cursor{Epoch: epochs.Draw(rt, "replaced"), Seq: uint64(to)}
					head.Seq = b.Replace.Seq
				}
				if rapid.Bool().Draw(rt, "begin") {
					b.Epoch = epochs.Draw(rt, "epoch")
				}
				epoch := b.Epoch
				if epoch == "" || rapid.IntRange(0, 9).Draw(rt, "odd") == 0 {
					epoch = epochs.Draw(rt, "entries' epoch")
				}
				if rapid.IntRange(0, 9).Draw(rt, "gap") == 0 {
					head.Seq++
				}
				b.Entries = grow(rt, epoch, head.Seq, rapid.IntRange(0, 12).Draw(rt, "n"))
				for range rapid.IntRange(0, 4).Draw(rt, "records") {
					r := statussync.Record{Kind: rapid.SampledFrom([]statussync.RecordKind{"server", "engine"}).Draw(rt, "record"), ID: servers.Draw(rt, "id")}
					if rapid.IntRange(0, 2).Draw(rt, "delete") > 0 {
						r.Data = []byte(rapid.SampledFrom([]string{"", "1", "\x00\xff", "3"}).Draw(rt, "data"))
					}
					b.Records = append(b.Records, r)
				}
				want, got := m.Append(t.Context(), b), s.Append(t.Context(), b)
				if statussync.CodeOf(want) != statussync.CodeOf(got) {
					rt.Fatalf("Append at %v (deleted %v): %v, in memory %v", head, deleted, got, want)
				}
			},
			"expire": func(rt *rapid.T) {
				head, deleted := m.Head()
				if head.Seq == deleted.Seq {
					rt.Skip("empty")
				}
				seq := rapid.Uint64Range(deleted.Seq+1, head.Seq).Draw(rt, "seq")
				expire(t, s, c, seq)
				m.Expire(seq)
			},
			"reopen": func(rt *rapid.T) {
				if rapid.Bool().Draw(rt, "killed") {
					crash(t, s)
				} else if err := s.Close(); err != nil {
					rt.Fatal(err)
				}
				if s, err = Open(t.Context(), o); err != nil {
					rt.Fatal(err)
				}
			},
			"read": func(rt *rapid.T) {
				head, _ := m.Head()
				at := statussync.Cursor{Epoch: head.Epoch, Seq: uint64(max(int64(head.Seq)-rapid.Int64Range(-2, 60).Draw(rt, "back"), 0))}
				if rapid.IntRange(0, 9).Draw(rt, "other") == 0 {
					at.Epoch = epochs.Draw(rt, "epoch")
				}
				limit := rapid.IntRange(1, 50).Draw(rt, "limit")
				want, wantErr := m.Read(t.Context(), at, limit, nil)
				got, err := s.Read(t.Context(), at, limit, nil)
				if statussync.CodeOf(wantErr) != statussync.CodeOf(err) {
					rt.Fatalf("Read(%v): %v, in memory %v", at, err, wantErr)
				}
				if d := cmp.Diff(look(want), look(got)); d != "" {
					rt.Fatalf("Read(%v, %d) (-memory +store):\n%s", at, limit, d)
				}
			},
			"history": func(rt *rapid.T) {
				q := statussync.HistoryQuery{ServerID: rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(rt, "id"), Limit: rapid.IntRange(1, 20).Draw(rt, "limit")}
				when := rapid.Custom(func(rt *rapid.T) time.Time {
					if rapid.Bool().Draw(rt, "unbounded") {
						return time.Time{}
					}
					return start.Add(time.Duration(rapid.IntRange(0, tick*1000+1000).Draw(rt, "ms"))*time.Millisecond + 1)
				})
				q.From, q.To = when.Draw(rt, "from"), when.Draw(rt, "to")
				head, _ := m.Head()
				q.Before = rapid.Uint64Range(0, head.Seq+2).Draw(rt, "before")
				want, wantErr := m.History(t.Context(), q)
				got, err := s.History(t.Context(), q)
				if err = errors.Join(err, wantErr); err != nil {
					rt.Fatal(err)
				}
				if d := cmp.Diff(look(want), look(got)); d != "" {
					rt.Fatalf("History(%+v) (-memory +store):\n%s", q, d)
				}
			},
			"": func(rt *rapid.T) {
				wantHead, wantDeleted := m.Head()
				head, deleted := s.Head()
				if head != wantHead || deleted != wantDeleted {
					rt.Fatalf("Head %v, deleted %v; in memory %v, %v", head, deleted, wantHead, wantDeleted)
				}
				if n := uint64(len(m.Entries())); s.Stats().Entries != n {
					rt.Fatalf("Stats: %+v; in memory %d entries", s.Stats(), n)
				} else if n > 0 && !s.Stats().Oldest.Equal(m.Entries()[0].Timestamp) {
					rt.Fatalf("Stats: oldest %v, in memory %v", s.Stats().Oldest, m.Entries()[0].Timestamp)
				}
				want, wantErr := recordsOf(m, t)
				got, err := recordsOf(s, t)
				if err = errors.Join(err, wantErr); err != nil {
					rt.Fatal(err)
				}
				if d := cmp.Diff(want, got, cmp.AllowUnexported(recordKey{})); d != "" {
					rt.Fatalf("Records (-memory +store):\n%s", d)
				}
			},
		})
	})
}
