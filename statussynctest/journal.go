package statussynctest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/google/go-cmp/cmp"
)

// OpenJournal makes a new, empty store and opens it. reopen closes it and opens the same store again, as after a
// restart of the process; it may be called several times, each time on what was opened last, and what was open before
// is not used any more. Cleaning up is its own affair (t.Cleanup).
type OpenJournal func(t *testing.T) (j statussync.Journal, reopen func() statussync.Journal)

// Journal is the conformance suite of statussync.Journal: every implementation runs it. What it demands is the
// contract's text and these readings of it:
//
//   - The head of a new store is the zero Cursor, and the first entry has Seq 1.
//   - Positions are compared by Seq alone once the epoch is the head's: a position of the head's epoch that lies before
//     that epoch's beginning reads on through the entries of earlier epochs.
//   - Replace makes its position the head before anything else of the batch counts; a Replace beyond the head is a
//     CodeConflict. Its epoch is not checked, for the append that was given up may have begun the epoch.
//   - Entries come back as they were appended: the same bytes of JSON, the same Labels, times to the millisecond.
//   - Records of every kind, also of one that the store does not know, are kept.
func Journal(t *testing.T, open OpenJournal) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, open OpenJournal)
	}{
		{"Empty", testEmpty},
		{"AppendAndRead", testAppendAndRead},
		{"RoundTrip", testRoundTrip},
		{"Conflict", testConflict},
		{"WholeOrNotAtAll", testWhole},
		{"Paging", testPaging},
		{"Expired", testExpired},
		{"Epochs", testEpochs},
		{"EpochWithoutEntries", testEpochWithoutEntries},
		{"Replace", testReplace},
		{"ReplaceNothing", testReplaceNothing},
		{"Records", testRecords},
		{"History", testHistory},
		{"HistoryAcrossEpochs", testHistoryAcrossEpochs},
		{"AliveAt", testAliveAt},
		{"Reopen", testReopen},
		{"CancelledContext", testCancelled},
		{"LargeBatch", testLargeBatch},
		{"ReadsBesideAppends", testReadsBeside},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open) })
	}
}

// JournalRetention is the part of the suite that needs entries deleted: expire deletes the entries up to and including
// seq of the journal that was opened last, as retention does.
func JournalRetention(t *testing.T, open func(t *testing.T) (j statussync.Journal, expire func(seq uint64), reopen func() statussync.Journal)) {
	t.Run("Expired", func(t *testing.T) {
		j, expire, reopen := open(t)
		mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 1, 10)})
		expire(4)
		for i := 0; i < 2; i++ {
			wantHead(t, j, cur("e1", 10), cur("e1", 4))
			wantSeqs(t, mustRead(t, j, cur("e1", 4), 100), seqs(5, 10))
			wantSeqs(t, mustRead(t, j, cur("e1", 10), 100), nil)
			wantReadCode(t, j, cur("e1", 3), statussync.CodeExpired)
			wantReadCode(t, j, cur("e1", 0), statussync.CodeExpired)
			h, err := j.History(t.Context(), statussync.HistoryQuery{ServerID: "s1", Limit: 100})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range h {
				if e.Seq <= 4 {
					t.Errorf("history still has the deleted entry %d", e.Seq)
				}
			}
			j = reopen()
		}
		mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 11, 1)})
		wantSeqs(t, mustRead(t, j, cur("e1", 4), 100), seqs(5, 11))
	})
	t.Run("All", func(t *testing.T) {
		j, expire, reopen := open(t)
		mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 1, 10), Records: []statussync.Record{rec("server", "s1", "x")}})
		expire(10)
		for i := 0; i < 2; i++ {
			wantHead(t, j, cur("e1", 10), cur("e1", 10))
			wantSeqs(t, mustRead(t, j, cur("e1", 10), 100), nil)
			wantReadCode(t, j, cur("e1", 9), statussync.CodeExpired)
			wantRecords(t, j, rec("server", "s1", "x"))
			j = reopen()
		}
		mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 11, 2)})
		wantSeqs(t, mustRead(t, j, cur("e1", 10), 100), seqs(11, 12))
	})
}

var suiteStart = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func cur(epoch string, seq uint64) statussync.Cursor {
	return statussync.Cursor{Epoch: statussync.Epoch(epoch), Seq: seq}
}

func rec(kind, id, data string) statussync.Record {
	return statussync.Record{Kind: statussync.RecordKind(kind), ID: id, Data: []byte(data)}
}

// entry makes an update of server s1, s2 or s3 by turns, one second after the one before it.
func entry(epoch string, seq uint64) statussync.Encoded {
	at := suiteStart.Add(time.Duration(seq) * time.Second)
	e := &statussync.Entry{
		Seq: seq, Epoch: statussync.Epoch(epoch), Kind: statussync.KindStatus, Timestamp: at,
		Source: statussync.SourceHeartbeat, Details: "probe failed: \"503\" <ünïcode> \u2028", ServerID: fmt.Sprintf("s%d", seq%3+1),
		EnvironmentID: "box", Version: seq/3 + 1,
		Previous: &statussync.Status{State: statussync.StateRunning, Health: statussync.HealthHealthy, Reason: statussync.ReasonOK, Since: suiteStart},
		Current: &statussync.Status{
			State: statussync.StateError, Health: statussync.HealthUnhealthy, Reason: statussync.ReasonProbeFailing,
			Cause: "http_503", LastError: "503", Marks: statussync.MarkFlapping | statussync.MarkMaintenance,
			Since: at, LastStarted: suiteStart,
		},
		Changes: []string{"state", "health", "reason", "marks"},
		Labels:  map[string]string{"team": "core", "": "empty key"},
	}
	return encode(e)
}

func encode(e *statussync.Entry) statussync.Encoded {
	return statussync.Encoded{Entry: e, JSON: e.AppendJSON(nil)}
}

func entries(epoch string, from uint64, n int) []statussync.Encoded {
	out := make([]statussync.Encoded, n)
	for i := range out {
		out[i] = entry(epoch, from+uint64(i))
	}
	return out
}

func seqs(from, to uint64) []uint64 {
	var out []uint64
	for s := from; s <= to; s++ {
		out = append(out, s)
	}
	return out
}

func mustAppend(t *testing.T, j statussync.Journal, b *statussync.Batch) {
	t.Helper()
	if err := j.Append(t.Context(), b); err != nil {
		t.Fatalf("Append: %v", err)
	}
}

func mustRead(t *testing.T, j statussync.Journal, after statussync.Cursor, limit int) []statussync.Encoded {
	t.Helper()
	got, err := j.Read(t.Context(), after, limit, nil)
	if err != nil {
		t.Fatalf("Read(%v, %d): %v", after, limit, err)
	}
	return got
}

func wantSeqs(t *testing.T, got []statussync.Encoded, want []uint64) {
	t.Helper()
	var have []uint64
	for _, e := range got {
		have = append(have, e.Seq)
	}
	if !slices.Equal(have, want) {
		t.Fatalf("entries: got %v, want %v", have, want)
	}
}

func wantHead(t *testing.T, j statussync.Journal, head, deleted statussync.Cursor) {
	t.Helper()
	h, d := j.Head()
	if h != head {
		t.Fatalf("Head: got %v, want %v", h, head)
	}
	if d.Seq != deleted.Seq {
		t.Fatalf("Head: newest deleted is %v, want %v", d, deleted)
	}
}

func wantReadCode(t *testing.T, j statussync.Journal, after statussync.Cursor, code statussync.Code) {
	t.Helper()
	got, err := j.Read(t.Context(), after, 10, nil)
	if err == nil {
		t.Fatalf("Read(%v): got %d entries, want an error with code %s", after, len(got), code)
	}
	if c := statussync.CodeOf(err); c != code {
		t.Fatalf("Read(%v): got code %s (%v), want %s", after, c, err, code)
	}
}

func wantConflict(t *testing.T, j statussync.Journal, b *statussync.Batch) {
	t.Helper()
	if c := statussync.CodeOf(j.Append(t.Context(), b)); c != statussync.CodeConflict {
		t.Fatalf("Append: got code %q, want conflict", c)
	}
}

func wantRecords(t *testing.T, j statussync.Journal, want ...statussync.Record) {
	t.Helper()
	got := map[recordKey]string{}
	for r, err := range j.Records(t.Context()) {
		if err != nil {
			t.Fatalf("Records: %v", err)
		}
		k := recordKey{r.Kind, r.ID}
		if _, ok := got[k]; ok {
			t.Errorf("Records: %v came twice", k)
		}
		got[k] = string(r.Data)
	}
	have := map[recordKey]string{}
	for _, r := range want {
		have[recordKey{r.Kind, r.ID}] = string(r.Data)
	}
	if d := cmp.Diff(have, got, cmp.AllowUnexported(recordKey{})); d != "" {
		t.Fatalf("Records (-want +got):\n%s", d)
	}
}

func testEmpty(t *testing.T, open OpenJournal) {
	j, _ := open(t)
	wantHead(t, j, statussync.Cursor{}, statussync.Cursor{})
	if a := j.AliveAt(); !a.IsZero() {
		t.Errorf("AliveAt of a new store: %v", a)
	}
	wantRecords(t, j)
	h, err := j.History(t.Context(), statussync.HistoryQuery{ServerID: "s1", Limit: 10})
	if err != nil || len(h) != 0 {
		t.Errorf("History of a new store: %d entries, %v", len(h), err)
	}
	wantReadCode(t, j, cur("e1", 0), statussync.CodeExpired)
}

func testAppendAndRead(t *testing.T, open OpenJournal) {
	j, _ := open(t)
	mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 1, 3)})
	wantHead(t, j, cur("e1", 3), statussync.Cursor{})
	mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 4, 1)})
	wantHead(t, j, cur("e1", 4), statussync.Cursor{})
	wantSeqs(t, mustRead(t, j, cur("e1", 0), 100), seqs(1, 4))
	wantSeqs(t, mustRead(t, j, cur("e1", 2), 100), seqs(3, 4))
	wantSeqs(t, mustRead(t, j, cur("e1", 4), 100), nil)

	buf := mustRead(t, j, cur("e1", 0), 1)
	buf, err := j.Read(t.Context(), cur("e1", 1), 2, buf)
	if err != nil {
		t.Fatal(err)
	}
	wantSeqs(t, buf, seqs(1, 3)) // appended to what was there
}

func testRoundTrip(t *testing.T, open OpenJournal) {
	j, reopen := open(t)
	in := []statussync.Encoded{
		entry("e1", 1),
		encode(&statussync.Entry{
			Seq: 2, Epoch: "e1", Kind: statussync.KindServerAdded, Timestamp: suiteStart, Source: statussync.SourceSystem,
			ServerID: "s1", EnvironmentID: "box",
		}),
		encode(&statussync.Entry{
			Seq: 3, Epoch: "e1", Kind: statussync.KindServerRemoved, Timestamp: suiteStart, Source: statussync.SourceSystem,
			ServerID: "s1", Version: 7, Previous: &statussync.Status{State: statussync.StateRunning, Health: statussync.HealthDegraded, Reason: statussync.ReasonProbeSlow},
			Labels: map[string]string{"a": "b"},
		}),
		encode(&statussync.Entry{
			Seq: 4, Epoch: "e1", Kind: statussync.KindEnvironmentSilent, Timestamp: suiteStart.Add(time.Millisecond),
			Source: statussync.SourceSystem, EnvironmentID: "box", ServerIDs: []string{"s1", "s2"}, Details: "box is silent",
		}),
		encode(&statussync.Entry{
			Seq: 5, Epoch: "e1", Kind: statussync.KindMaintenanceBegin, Timestamp: suiteStart.Add(time.Millisecond),
			Source: statussync.SourceManual, ServerIDs: []string{"s1"}, MaintenanceID: "w1", Details: "maintenance began: 1 server",
		}),
		encode(&statussync.Entry{
			Seq: 6, Epoch: "e1", Kind: statussync.KindToolDrift, Timestamp: suiteStart.Add(2 * time.Millisecond), Source: statussync.SourceHeartbeat,
			ServerID: "s9", Details: "its tools changed", Tools: statussync.DiffTools(
				[]statussync.ToolRef{{Name: "a", Hash: "1"}, {Name: "b", Hash: "1"}}, []statussync.ToolRef{{Name: "b", Hash: "2"}, {Name: "c <>", Hash: "1"}}),
		}),
	}
	mustAppend(t, j, &statussync.Batch{Entries: in})
	for i := 0; i < 2; i++ {
		got := mustRead(t, j, cur("e1", 0), 100)
		wantSeqs(t, got, seqs(1, 6))
		for k := range in {
			wantEntry(t, got[k], in[k])
		}
		h, err := j.History(t.Context(), statussync.HistoryQuery{ServerID: in[0].ServerID, Limit: 1})
		if err != nil || len(h) != 1 {
			t.Fatalf("History: %d entries, %v", len(h), err)
		}
		wantEntry(t, h[0], in[0])
		j = reopen()
	}
}

func wantEntry(t *testing.T, got, want statussync.Encoded) {
	t.Helper()
	if !bytes.Equal(got.JSON, want.JSON) {
		t.Errorf("entry %d: JSON is not what was appended\n got %s\nwant %s", want.Seq, got.JSON, want.JSON)
	}
	if d := cmp.Diff(want.Entry, got.Entry, allFields); d != "" {
		t.Errorf("entry %d (-want +got):\n%s", want.Seq, d)
	}
}

// plainStatus is a Status without its Equal, which leaves the facts out.
type plainStatus statussync.Status

var allFields = cmp.Transformer("plain", func(s *statussync.Status) *plainStatus { return (*plainStatus)(s) })

func testConflict(t *testing.T, open OpenJournal) {
	j, _ := open(t)
	wantConflict(t, j, &statussync.Batch{Entries: entries("e1", 2, 1)})
	mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 1, 3)})
	for name, list := range map[string][]statussync.Encoded{
		"a gap":              entries("e1", 5, 1),
		"a repeat":           entries("e1", 3, 1),
		"a repeat and more":  entries("e1", 3, 2),
		"from the start":     entries("e1", 1, 5),
		"gap in a new epoch": entries("e2", 5, 1),
		"new epoch from one": entries("e2", 1, 1),
		"a hole inside":      append(entries("e1", 4, 1), entry("e1", 6)),
		"backwards inside":   append(entries("e1", 4, 2), entry("e1", 4)),
	} {
		t.Run(name, func(t *testing.T) {
			wantConflict(t, j, &statussync.Batch{Entries: list})
			wantHead(t, j, cur("e1", 3), statussync.Cursor{})
		})
	}
	mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 4, 1)})
	wantSeqs(t, mustRead(t, j, cur("e1", 0), 100), seqs(1, 4))
}

func testWhole(t *testing.T, open OpenJournal) {
	j, reopen := open(t)
	mustAppend(t, j, &statussync.Batch{
		Entries: entries("e1", 1, 3), Records: []statussync.Record{rec("server", "s1", "old")}, AliveAt: suiteStart,
	})
	for _, b := range []*statussync.Batch{
		{Entries: append(entries("e1", 4, 2), entry("e1", 9)), Epoch: "e1"},
		{Entries: append(entries("e1", 4, 2), entry("e2", 6))},
		{Entries: entries("e9", 9, 1), Replace: cur("e1", 1)},
	} {
		b.Records = []statussync.Record{rec("server", "s1", "new"), rec("server", "s2", "new")}
		b.AliveAt = suiteStart.Add(time.Hour)
		if err := j.Append(t.Context(), b); err == nil {
			t.Fatal("Append took entries that do not belong together")
		}
		wantHead(t, j, cur("e1", 3), statussync.Cursor{})
		wantSeqs(t, mustRead(t, j, cur("e1", 0), 100), seqs(1, 3))
		wantRecords(t, j, rec("server", "s1", "old"))
	}
	j = reopen()
	wantHead(t, j, cur("e1", 3), statussync.Cursor{})
	wantRecords(t, j, rec("server", "s1", "old"))
	if !j.AliveAt().Equal(suiteStart) {
		t.Errorf("AliveAt: got %v, want %v", j.AliveAt(), suiteStart)
	}
}

func testPaging(t *testing.T, open OpenJournal) {
	j, _ := open(t)
	const n = 23
	for s := uint64(1); s <= n; s += 4 {
		mustAppend(t, j, &statussync.Batch{Entries: entries("e1", s, min(4, int(n-s+1)))})
	}
	for _, limit := range []int{1, 4, 5, n, 100} {
		var all []statussync.Encoded
		at := cur("e1", 0)
		for {
			page := mustRead(t, j, at, limit)
			if len(page) > limit {
				t.Fatalf("Read with limit %d returned %d", limit, len(page))
			}
			if len(page) == 0 {
				break
			}
			all = append(all, page...)
			at = page[len(page)-1].Cursor()
		}
		wantSeqs(t, all, seqs(1, n))
	}
}

func testExpired(t *testing.T, open OpenJournal) {
	j, _ := open(t)
	mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 1, 3)})
	wantReadCode(t, j, cur("e1", 4), statussync.CodeExpired)
	wantReadCode(t, j, cur("e1", 1<<62), statussync.CodeExpired)
	wantReadCode(t, j, cur("e2", 3), statussync.CodeExpired)
	wantReadCode(t, j, cur("e2", 0), statussync.CodeExpired)
	wantReadCode(t, j, statussync.Cursor{}, statussync.CodeExpired)
}

func testEpochs(t *testing.T, open OpenJournal) {
	j, reopen := open(t)
	mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 1, 3)})
	mustAppend(t, j, &statussync.Batch{Entries: entries("e2x", 4, 2)})
	for i := 0; i < 2; i++ {
		wantHead(t, j, cur("e2x", 5), statussync.Cursor{})
		wantReadCode(t, j, cur("e1", 3), statussync.CodeExpired)
		wantReadCode(t, j, cur("e1", 1), statussync.CodeExpired)
		wantSeqs(t, mustRead(t, j, cur("e2x", 3), 100), seqs(4, 5))
		got := mustRead(t, j, cur("e2x", 1), 100) // before the epoch's beginning: the entries there are real
		wantSeqs(t, got, seqs(2, 5))
		if got[0].Epoch != "e1" || got[3].Epoch != "e2x" {
			t.Errorf("epochs of entries 2 and 5: %s, %s", got[0].Epoch, got[3].Epoch)
		}
		j = reopen()
	}
}

func testEpochWithoutEntries(t *testing.T, open OpenJournal) {
	j, reopen := open(t)
	mustAppend(t, j, &statussync.Batch{Epoch: "e1a"})
	wantHead(t, j, cur("e1a", 0), statussync.Cursor{})
	wantSeqs(t, mustRead(t, j, cur("e1a", 0), 10), nil)
	mustAppend(t, j, &statussync.Batch{Entries: entries("e1a", 1, 2)})
	mustAppend(t, j, &statussync.Batch{Epoch: "e2b"})
	for i := 0; i < 2; i++ {
		wantHead(t, j, cur("e2b", 2), statussync.Cursor{})
		wantReadCode(t, j, cur("e1a", 2), statussync.CodeExpired)
		wantSeqs(t, mustRead(t, j, cur("e2b", 2), 10), nil)
		j = reopen()
	}
	mustAppend(t, j, &statussync.Batch{Epoch: "e2b", Entries: entries("e2b", 3, 1)})
	wantSeqs(t, mustRead(t, j, cur("e2b", 2), 10), seqs(3, 3))
}

func testReplace(t *testing.T, open OpenJournal) {
	j, reopen := open(t)
	mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 1, 5), Records: []statussync.Record{rec("server", "s1", "told")}})
	// 4 and 5 were given up by their writer, who told 4, 5 and 6 under another epoch.
	mustAppend(t, j, &statussync.Batch{
		Replace: cur("e1", 3), Entries: entries("e2", 4, 3), Records: []statussync.Record{rec("server", "s1", "new")},
	})
	for i := 0; i < 2; i++ {
		wantHead(t, j, cur("e2", 6), statussync.Cursor{})
		got := mustRead(t, j, cur("e2", 0), 100)
		wantSeqs(t, got, seqs(1, 6))
		for _, e := range got {
			if want := statussync.Epoch(map[bool]string{true: "e1", false: "e2"}[e.Seq <= 3]); e.Epoch != want {
				t.Errorf("entry %d is of epoch %s, want %s", e.Seq, e.Epoch, want)
			}
		}
		h, err := j.History(t.Context(), statussync.HistoryQuery{ServerID: "s2", Limit: 10}) // 1 and 4
		if err != nil {
			t.Fatal(err)
		}
		wantSeqs(t, h, []uint64{4, 1})
		if h[0].Epoch != "e2" {
			t.Errorf("history still has the replaced entry %v", h[0].Cursor())
		}
		wantRecords(t, j, rec("server", "s1", "new"))
		j = reopen()
	}
	// Again, with nothing after it, and the epoch that the position names.
	mustAppend(t, j, &statussync.Batch{Replace: cur("e2", 4)})
	wantHead(t, j, cur("e2", 4), statussync.Cursor{})
	// With an epoch only.
	mustAppend(t, j, &statussync.Batch{Replace: cur("e2", 3), Epoch: "e3"})
	wantHead(t, j, cur("e3", 3), statussync.Cursor{})
	// To the very beginning.
	mustAppend(t, j, &statussync.Batch{Replace: cur("e1", 0), Entries: entries("e4", 1, 2)})
	j = reopen()
	wantHead(t, j, cur("e4", 2), statussync.Cursor{})
	wantSeqs(t, mustRead(t, j, cur("e4", 0), 100), seqs(1, 2))
}

func testReplaceNothing(t *testing.T, open OpenJournal) {
	j, _ := open(t)
	// A store that was new when its first append was given up.
	mustAppend(t, j, &statussync.Batch{Replace: cur("e1", 0), Entries: entries("e2", 1, 2)})
	wantHead(t, j, cur("e2", 2), statussync.Cursor{})
	// The append that was given up failed after all: the head is the position itself.
	mustAppend(t, j, &statussync.Batch{Replace: cur("e2", 2), Entries: entries("e3", 3, 2)})
	wantHead(t, j, cur("e3", 4), statussync.Cursor{})
	wantSeqs(t, mustRead(t, j, cur("e3", 0), 100), seqs(1, 4))
	// Beyond the head: entries that were told are missing here.
	wantConflict(t, j, &statussync.Batch{Replace: cur("e3", 9), Entries: entries("e4", 10, 1)})
	// Entries must continue the position, not the old head.
	wantConflict(t, j, &statussync.Batch{Replace: cur("e3", 2), Entries: entries("e4", 5, 1)})
	wantHead(t, j, cur("e3", 4), statussync.Cursor{})
	wantSeqs(t, mustRead(t, j, cur("e3", 0), 100), seqs(1, 4))
}

func testRecords(t *testing.T, open OpenJournal) {
	j, reopen := open(t)
	mustAppend(t, j, &statussync.Batch{Records: []statussync.Record{
		rec("server", "a", "1"), rec("environment", "a", "2"), rec("engine", "", "3"), rec("hub", "note", "4"),
		rec("later", "a", "5"), rec("server", "b", "\x00\xff binary"), rec("server", "ünï", "6"),
	}})
	wantRecords(t, j, rec("server", "a", "1"), rec("environment", "a", "2"), rec("engine", "", "3"), rec("hub", "note", "4"),
		rec("later", "a", "5"), rec("server", "b", "\x00\xff binary"), rec("server", "ünï", "6"))
	mustAppend(t, j, &statussync.Batch{Records: []statussync.Record{
		rec("server", "a", "new"), {Kind: "server", ID: "b"}, {Kind: "hub", ID: "note"}, {Kind: "server", ID: "never there"},
	}})
	for i := 0; i < 2; i++ {
		wantRecords(t, j, rec("server", "a", "new"), rec("environment", "a", "2"), rec("engine", "", "3"), rec("later", "a", "5"),
			rec("server", "ünï", "6"))
		j = reopen()
	}
	// The last word on one id in a batch is the one that counts.
	mustAppend(t, j, &statussync.Batch{Records: []statussync.Record{
		rec("server", "a", "x"), {Kind: "server", ID: "a"}, rec("server", "c", "1"), rec("server", "c", "2"),
	}})
	wantRecords(t, j, rec("environment", "a", "2"), rec("engine", "", "3"), rec("later", "a", "5"), rec("server", "ünï", "6"), rec("server", "c", "2"))
	for r, err := range j.Records(t.Context()) { // breaking off is allowed
		if err != nil {
			t.Fatal(err)
		}
		_ = r
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	failed := false
	for _, err := range j.Records(ctx) {
		failed = failed || err != nil
	}
	if !failed {
		t.Error("Records with a cancelled context ended without an error: its caller would take it for all")
	}
}

func testHistory(t *testing.T, open OpenJournal) {
	j, reopen := open(t)
	mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 1, 12)}) // s1: 3 6 9 12, s2: 1 4 7 10, s3: 2 5 8 11
	at := func(seq int) time.Time { return suiteStart.Add(time.Duration(seq) * time.Second) }
	for i := 0; i < 2; i++ {
		for _, c := range []struct {
			name string
			q    statussync.HistoryQuery
			want []uint64
		}{
			{"all", statussync.HistoryQuery{ServerID: "s1", Limit: 100}, []uint64{12, 9, 6, 3}},
			{"limit", statussync.HistoryQuery{ServerID: "s1", Limit: 2}, []uint64{12, 9}},
			{"next page", statussync.HistoryQuery{ServerID: "s1", Limit: 2, Before: 9}, []uint64{6, 3}},
			{"before is exclusive", statussync.HistoryQuery{ServerID: "s1", Limit: 9, Before: 3}, nil},
			{"from is inclusive", statussync.HistoryQuery{ServerID: "s1", Limit: 9, From: at(6)}, []uint64{12, 9, 6}},
			{"from a millisecond later", statussync.HistoryQuery{ServerID: "s1", Limit: 9, From: at(6).Add(time.Millisecond)}, []uint64{12, 9}},
			{"to is exclusive", statussync.HistoryQuery{ServerID: "s1", Limit: 9, To: at(9)}, []uint64{6, 3}},
			{"both", statussync.HistoryQuery{ServerID: "s1", Limit: 9, From: at(6), To: at(10)}, []uint64{9, 6}},
			{"in another zone", statussync.HistoryQuery{ServerID: "s1", Limit: 9, From: at(6).In(time.FixedZone("x", 7200)), To: at(10).In(time.FixedZone("y", -7200))}, []uint64{9, 6}},
			{"all four", statussync.HistoryQuery{ServerID: "s1", Limit: 1, From: at(3), To: at(12), Before: 9}, []uint64{6}},
			{"its kind", statussync.HistoryQuery{ServerID: "s1", Limit: 2, Kind: statussync.KindStatus}, []uint64{12, 9}},
			{"another kind", statussync.HistoryQuery{ServerID: "s1", Limit: 9, Kind: statussync.KindToolDrift}, nil},
			{"another server", statussync.HistoryQuery{ServerID: "s2", Limit: 9}, []uint64{10, 7, 4, 1}},
			{"nobody", statussync.HistoryQuery{ServerID: "s9", Limit: 9}, nil},
		} {
			got, err := j.History(t.Context(), c.q)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			t.Run(c.name, func(t *testing.T) { wantSeqs(t, got, c.want) })
		}
		j = reopen()
	}
}

func testHistoryAcrossEpochs(t *testing.T, open OpenJournal) {
	j, _ := open(t)
	mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 1, 3)})
	mustAppend(t, j, &statussync.Batch{Epoch: "e2"})
	mustAppend(t, j, &statussync.Batch{Entries: entries("e3", 4, 3)})
	got, err := j.History(t.Context(), statussync.HistoryQuery{ServerID: "s1", Limit: 9})
	if err != nil {
		t.Fatal(err)
	}
	wantSeqs(t, got, []uint64{6, 3})
	if got[0].Epoch != "e3" || got[1].Epoch != "e1" {
		t.Errorf("epochs: %s, %s", got[0].Epoch, got[1].Epoch)
	}
}

func testAliveAt(t *testing.T, open OpenJournal) {
	j, reopen := open(t)
	first := suiteStart.Add(1234 * time.Millisecond)
	mustAppend(t, j, &statussync.Batch{AliveAt: first})
	if !j.AliveAt().IsZero() {
		t.Errorf("AliveAt: got %v; it is as it was at opening, zero", j.AliveAt())
	}
	j = reopen()
	if !j.AliveAt().Equal(first) {
		t.Errorf("AliveAt after reopening: got %v, want %v", j.AliveAt(), first)
	}
	second := first.Add(10 * time.Second)
	mustAppend(t, j, &statussync.Batch{AliveAt: second})
	mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 1, 1)}) // says nothing of it
	if !j.AliveAt().Equal(first) {
		t.Errorf("AliveAt: got %v; it is as it was at opening, %v", j.AliveAt(), first)
	}
	if j = reopen(); !j.AliveAt().Equal(second) {
		t.Errorf("AliveAt after reopening: got %v, want %v", j.AliveAt(), second)
	}
}

func testReopen(t *testing.T, open OpenJournal) {
	j, reopen := open(t)
	for s := uint64(1); s <= 30; s += 3 {
		mustAppend(t, j, &statussync.Batch{
			Entries: entries("e1", s, 3), Records: []statussync.Record{rec("server", "s1", fmt.Sprint(s))},
		})
		j = reopen()
		wantHead(t, j, cur("e1", s+2), statussync.Cursor{})
		wantSeqs(t, mustRead(t, j, cur("e1", 0), 100), seqs(1, s+2))
		wantRecords(t, j, rec("server", "s1", fmt.Sprint(s)))
	}
}

func testCancelled(t *testing.T, open OpenJournal) {
	j, reopen := open(t)
	mustAppend(t, j, &statussync.Batch{Entries: entries("e1", 1, 1)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// An append whose context has ended may be stored or not, but whole, and the journal goes on.
	_ = j.Append(ctx, &statussync.Batch{Entries: entries("e1", 2, 2), Records: []statussync.Record{rec("server", "s1", "x")}})
	mustAppend(t, j, &statussync.Batch{Replace: cur("e1", 1), Entries: entries("e2", 2, 1)})
	for i := 0; i < 2; i++ {
		wantHead(t, j, cur("e2", 2), statussync.Cursor{})
		wantSeqs(t, mustRead(t, j, cur("e2", 0), 100), seqs(1, 2))
		j = reopen()
	}
}

func testLargeBatch(t *testing.T, open OpenJournal) {
	j, _ := open(t)
	const n = 5000
	b := &statussync.Batch{Entries: entries("e1", 1, n)}
	for i := 0; i < n; i++ {
		b.Records = append(b.Records, rec("server", fmt.Sprintf("s%d", i), "x"))
	}
	mustAppend(t, j, b)
	wantHead(t, j, cur("e1", n), statussync.Cursor{})
	if got := mustRead(t, j, cur("e1", 0), n+1); len(got) != n {
		t.Errorf("read %d entries of %d", len(got), n)
	}
}

// testReadsBeside has readers page through the journal while it is being appended to: what they read never has a hole,
// and never goes beyond a head that they see afterwards.
func testReadsBeside(t *testing.T, open OpenJournal) {
	j, _ := open(t)
	const total, batch = 300, 10
	mustAppend(t, j, &statussync.Batch{Epoch: "e1"})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			at := cur("e1", 0)
			var buf []statussync.Encoded
			for at.Seq < total && t.Context().Err() == nil {
				var err error
				if buf, err = j.Read(t.Context(), at, 7, buf[:0]); err != nil {
					t.Errorf("Read(%v): %v", at, err)
					return
				}
				for _, e := range buf {
					if e.Seq != at.Seq+1 {
						t.Errorf("after %v came %v", at, e.Cursor())
						return
					}
					at = e.Cursor()
				}
				if head, _ := j.Head(); head.Seq < at.Seq {
					t.Errorf("read up to %v, but the head is %v", at, head)
					return
				}
				if _, err := j.History(t.Context(), statussync.HistoryQuery{ServerID: "s1", Limit: 5}); err != nil {
					t.Errorf("History: %v", err)
					return
				}
			}
		})
	}
	for s := uint64(1); s <= total; s += batch {
		if err := j.Append(t.Context(), &statussync.Batch{
			Entries: entries("e1", s, batch), Records: []statussync.Record{rec("server", "s1", fmt.Sprint(s))},
		}); err != nil {
			t.Errorf("Append: %v", err)
			break
		}
	}
	wg.Wait()
}
