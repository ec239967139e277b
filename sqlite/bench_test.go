package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// update makes an entry of the size that real ones have (about 750 bytes), of one of n servers.
func update(epoch statussync.Epoch, seq uint64, servers int) statussync.Encoded {
	at := start.Add(time.Duration(seq) * time.Millisecond)
	n := int(seq*7919) % servers // each server once in a row of as many entries, in no order
	e := &statussync.Entry{
		Seq: seq, Epoch: epoch, Kind: statussync.KindStatus, Timestamp: at, Source: statussync.SourceHeartbeat,
		Details: "weather is unhealthy: its probe fails (HTTP 503)", ServerID: serverID(n),
		EnvironmentID: fmt.Sprintf("2b7c11aa-0000-4222-8333-%012x", n%50), Version: seq,
		Previous: &statussync.Status{State: statussync.StateRunning, Health: statussync.HealthHealthy, Reason: statussync.ReasonOK, Since: start, LastStarted: start},
		Current: &statussync.Status{
			State: statussync.StateRunning, Health: statussync.HealthUnhealthy, Reason: statussync.ReasonProbeFailing,
			Cause: "http_503", LastError: "HTTP 503 Service Unavailable", Since: at, LastStarted: start,
		},
		Changes: []string{"health", "reason"}, Labels: map[string]string{"team": "core", "tier": "1"},
	}
	return statussync.Encoded{Entry: e, JSON: e.AppendJSON(nil)}
}

func serverID(n int) string { return fmt.Sprintf("5d1f2c%02x-1111-4222-8333-%012x", n*31%256, n) }

func updates(epoch statussync.Epoch, after uint64, n, servers int) []statussync.Encoded {
	out := make([]statussync.Encoded, n)
	for i := range out {
		out[i] = update(epoch, after+1+uint64(i), servers)
	}
	return out
}

// padded makes entries of more than 3 KB, so that few of them are much.
func padded(epoch statussync.Epoch, after uint64, n int) []statussync.Encoded {
	out := updates(epoch, after, n, 20)
	for i := range out {
		out[i].Details += strings.Repeat(".", 3000)
		out[i].JSON = out[i].AppendJSON(nil)
	}
	return out
}

// BenchmarkAppend appends batches of 1,000 updates of 1,000 servers; BenchmarkRaw puts the same bytes of JSON into a
// table of two columns with multi-row inserts, as fast as the driver can. The goal is half of its rate.
func BenchmarkAppend(b *testing.B) {
	for _, servers := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprintf("servers=%d", servers), func(b *testing.B) {
			s := open(b, Options{Dir: b.TempDir()})
			var seq uint64
			for b.Loop() {
				b.StopTimer()
				batch := &statussync.Batch{Entries: updates("e1", seq, 1000, servers)}
				b.StartTimer()
				if err := s.Append(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
				seq += 1000
			}
			b.ReportMetric(float64(seq)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

func BenchmarkRaw(b *testing.B) {
	path := b.TempDir() + "/raw.db"
	if err := prepareFile(path); err != nil {
		b.Fatal(err)
	}
	db, err := sql.Open("sqlite", dsn(path, "journal_mode(wal)", "synchronous(normal)", "cache_size(-16000)"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	ctx := context.Background()
	conn, err := db.Conn(ctx)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, `CREATE TABLE entries (seq INTEGER PRIMARY KEY, json BLOB NOT NULL) STRICT`); err != nil {
		b.Fatal(err)
	}
	st, err := conn.PrepareContext(ctx, `INSERT INTO entries (seq, json) VALUES `+strings.TrimSuffix(strings.Repeat("(?,?),", 250), ","))
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	var seq uint64
	for b.Loop() {
		b.StopTimer()
		batch := updates("e1", seq, 1000, 1000)
		b.StartTimer()
		if _, err := conn.ExecContext(ctx, `BEGIN IMMEDIATE`); err != nil {
			b.Fatal(err)
		}
		for i := 0; i < 4; i++ {
			args := make([]any, 0, 500)
			for _, e := range batch[i*250 : i*250+250] {
				args = append(args, int64(e.Seq), e.JSON)
			}
			if _, err := st.ExecContext(ctx, args...); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := conn.ExecContext(ctx, `COMMIT`); err != nil {
			b.Fatal(err)
		}
		seq += 1000
	}
	b.ReportMetric(float64(seq)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkAppendOne is what a single update costs that comes alone.
func BenchmarkAppendOne(b *testing.B) {
	for _, sync := range []string{SyncNormal, SyncFull} {
		b.Run(sync, func(b *testing.B) {
			s := open(b, Options{Dir: b.TempDir(), Sync: sync})
			var seq uint64
			for b.Loop() {
				seq++
				e := update("e1", seq, 1000)
				if err := s.Append(b.Context(), &statussync.Batch{
					Entries: []statussync.Encoded{e}, Records: []statussync.Record{{Kind: statussync.RecordServer, ID: e.ServerID, Data: e.JSON}},
				}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	s := open(b, Options{Dir: b.TempDir()})
	const n, servers = 200_000, 1000
	for seq := uint64(0); seq < n; seq += 1000 {
		if err := s.Append(b.Context(), &statussync.Batch{Entries: updates("e1", seq, 1000, servers)}); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("Read1000", func(b *testing.B) {
		var buf []statussync.Encoded
		var err error
		for b.Loop() {
			if buf, err = s.Read(b.Context(), statussync.Cursor{Epoch: "e1", Seq: 5000}, 1000, buf[:0]); err != nil || len(buf) != 1000 {
				b.Fatal(len(buf), err)
			}
		}
	})
	b.Run("History100", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i++
			h, err := s.History(b.Context(), statussync.HistoryQuery{ServerID: serverID(i % servers), Limit: 100})
			if err != nil || len(h) != 100 {
				b.Fatal(len(h), err)
			}
		}
	})
	b.Run("HistoryOfNobody", func(b *testing.B) { // looks into every segment
		for b.Loop() {
			if h, err := s.History(b.Context(), statussync.HistoryQuery{ServerID: "nobody", Limit: 100}); err != nil || len(h) != 0 {
				b.Fatal(len(h), err)
			}
		}
	})
}
