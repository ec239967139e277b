package rollup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/sqlite"
)

const gib = 1 << 30

func report(env string, cpu float64, memory, disk int64) *statussync.AgentReport {
	return &statussync.AgentReport{EnvironmentID: env, System: &statussync.SystemStatus{
		CPULoadPercent: &cpu,
		Memory:         &statussync.MemoryStatus{TotalBytes: 8 * gib, ActiveBytes: memory, UsedBytes: 7 * gib},
		Disk:           &statussync.DiskStatus{TotalBytes: 100 * gib, UsedBytes: disk},
	}}
}

func newResources(t testing.TB, store ResourceStore, now func() time.Time) *Resources {
	t.Helper()
	r, err := NewResources(ResourceOptions{Store: store, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// told is a report in short: minutes after day, samples, CPU mean and maximum, GiB of memory and of disk.
func told(t testing.TB, r *Resources, window, step time.Duration) (out []string) {
	t.Helper()
	rep, known, err := r.Resources(t.Context(), "box", window, step)
	if err != nil || !known {
		t.Fatalf("%+v %v %v", rep, known, err)
	}
	for _, s := range rep.Steps {
		out = append(out, fmt.Sprintf("%v n=%d cpu=%.4g/%.4g mem=%.3g/%d of %d disk=%.3g", s.Start.Sub(day).Minutes(), s.CPU.Count, s.CPU.Mean()/100, float64(s.CPU.Max)/100,
			s.Memory.Mean()/(1<<20), s.Memory.Max>>20, s.Memory.Total>>20, s.Disk.Mean()/(1<<20)))
	}
	return out
}

func TestResources(t *testing.T) {
	dir := t.TempDir()
	c := &clock{t: day}
	store := openStore(t, dir, c.now)
	r := newResources(t, store, c.now)
	if rep, known, err := r.Resources(t.Context(), "box", time.Hour, 0); err != nil || known || len(rep.Steps) != 0 {
		t.Fatalf("%+v %v %v", rep, known, err)
	}
	for i := range 3 {
		c.set(day.Add(time.Duration(i) * 30 * time.Second))
		r.Report(report("box", 10*float64(i+1), int64(i+1)*gib, 50*gib))
		r.Report(report("other", 99, 8*gib, 100*gib))
		r.Report(&statussync.AgentReport{EnvironmentID: "quiet"}) // says nothing of its host
	}
	want := []string{"0 n=2 cpu=15/20 mem=1.5/2 of 8 disk=50", "1 n=1 cpu=30/30 mem=3/3 of 8 disk=50"}
	if d := cmp.Diff(want, told(t, r, time.Hour, 0)); d != "" {
		t.Error("before it is stored", d)
	}
	if err := r.flush(t.Context(), false); err != nil { // minute 1 runs still
		t.Fatal(err)
	}
	if st := r.Stats(); st.Waiting != 2 {
		t.Errorf("%+v", st)
	}
	if d := cmp.Diff(want, told(t, r, time.Hour, 0)); d != "" {
		t.Error("a part stored", d)
	}
	if err := r.flush(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	// A process that starts within the same minute adds to it.
	r = newResources(t, store, c.now)
	r.Report(report("box", 50, 5*gib, 60*gib))
	want[1] = "1 n=2 cpu=40/50 mem=4/5 of 8 disk=55"
	for _, stored := range []bool{false, true} {
		if d := cmp.Diff(want, told(t, r, time.Hour, 0)); d != "" {
			t.Error(stored, d)
		}
		if err := r.flush(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
	both := []string{"0 n=4 cpu=27.5/50 mem=2.75/5 of 8 disk=52.5"}
	if d := cmp.Diff(both, told(t, r, time.Hour, 5*time.Minute)); d != "" {
		t.Error("steps of five minutes", d)
	}
	if d := cmp.Diff(both, told(t, r, 72*time.Hour, 0)); d != "" {
		t.Error("from hours", d)
	}
	if rep, known, err := r.Resources(t.Context(), "quiet", time.Hour, 0); err != nil || known {
		t.Errorf("%+v %v %v", rep, known, err)
	}
	for _, bad := range []struct {
		window, step time.Duration
		at           string
	}{{time.Second, 0, "window"}, {91 * 24 * time.Hour, 0, "window"}, {time.Hour, 90 * time.Second, "step"}, {72 * time.Hour, time.Minute, "step"}} {
		_, _, err := r.Resources(t.Context(), "box", bad.window, bad.step)
		var e *statussync.Error
		if !errors.As(err, &e) || e.Code != statussync.CodeInvalid || e.Location != bad.at {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestSampleOf: what an agent says is not believed beyond reason.
func TestSampleOf(t *testing.T) {
	for _, c := range []struct {
		name string
		in   *statussync.SystemStatus
		want string
	}{
		{"nothing", nil, "false"},
		{"all failed", &statussync.SystemStatus{Errors: map[string]string{"system": "x"}}, "false"},
		{"no active", &statussync.SystemStatus{Memory: &statussync.MemoryStatus{TotalBytes: 4096, UsedBytes: 2048}}, "true 0 2/4 0"},
		{"no size", &statussync.SystemStatus{Memory: &statussync.MemoryStatus{UsedBytes: 2048}, Disk: &statussync.DiskStatus{UsedBytes: 1}}, "false"},
		{"huge", &statussync.SystemStatus{CPULoadPercent: of(math.MaxFloat64), Memory: &statussync.MemoryStatus{TotalBytes: math.MaxInt64, UsedBytes: math.MaxInt64}}, fmt.Sprintf("true %d %d/%d 0", int64(maxLoad*100), int64(maxKiB), int64(maxKiB))},
		{"negative", &statussync.SystemStatus{CPULoadPercent: of(-1), Disk: &statussync.DiskStatus{TotalBytes: 1024, UsedBytes: -1}}, "true 0 0/0 1"},
		{"no number", &statussync.SystemStatus{CPULoadPercent: of(math.NaN())}, "false"},
	} {
		x, ok := sampleOf(c.in)
		got := fmt.Sprint(ok)
		if ok {
			got += fmt.Sprintf(" %d %d/%d %d", x.CPU.Sum, x.Memory.Sum, x.Memory.Total, x.Disk.Count)
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	// The sums of an hour full of the largest numbers don't overflow.
	if maxKiB*int64(maxResourceSamples)*60 < 0 || float64(maxKiB)*maxResourceSamples*60 > math.MaxInt64 {
		t.Error("an hour's sum overflows")
	}
}

func of(f float64) *float64 { return &f }

// losing is the real store, which fails before or after it wrote.
type losing struct {
	ResourceStore
	mu            sync.Mutex
	before, after error
}

func (l *losing) PutResources(ctx context.Context, run string, batch uint64, rows []statussync.ResourceRow) error {
	l.mu.Lock()
	before, after := l.before, l.after
	l.mu.Unlock()
	if before != nil {
		return before
	}
	if err := l.ResourceStore.PutResources(ctx, run, batch, rows); err != nil {
		return err
	}
	return after
}

func (l *losing) fail(before, after error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.before, l.after = before, after
}

// TestResourcesOnce: an answer that was lost makes nothing count twice, and a store that fails loses the oldest first.
func TestResourcesOnce(t *testing.T) {
	c := &clock{t: day}
	store := &losing{ResourceStore: openStore(t, t.TempDir(), c.now)}
	r := newResources(t, store, c.now)
	r.Report(report("box", 10, gib, gib))
	store.fail(nil, errors.New("the answer is lost"))
	if err := r.flush(t.Context(), true); err == nil {
		t.Fatal("no error")
	}
	r.Report(report("box", 30, gib, gib)) // the same minute, while the first part of it is being stored
	want := []string{"0 n=2 cpu=20/30 mem=1/1 of 8 disk=1"}
	if d := cmp.Diff(want, told(t, r, time.Hour, 0)); d != "" {
		t.Error(d)
	}
	store.fail(nil, nil)
	if err := r.flush(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, told(t, r, time.Hour, 0)); d != "" {
		t.Error(d)
	}
	store.fail(errors.New("full"), nil)
	r.limit = 3
	for i := range 6 {
		c.set(day.Add(time.Duration(i+1) * time.Minute))
		r.Report(report("box", float64(i), gib, gib))
		if err := r.flush(t.Context(), true); err == nil {
			t.Fatal("no error")
		}
	}
	if st := r.Stats(); st.Waiting != 3 || st.Dropped != 3 || st.Failures != 7 {
		t.Errorf("%+v", st)
	}
	store.fail(nil, nil)
	if err := r.flush(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	want = append(want, "4 n=1 cpu=3/3 mem=1/1 of 8 disk=1", "5 n=1 cpu=4/4 mem=1/1 of 8 disk=1", "6 n=1 cpu=5/5 mem=1/1 of 8 disk=1")
	if d := cmp.Diff(want, told(t, r, time.Hour, 0)); d != "" {
		t.Error(d)
	}
}

// TestResourcesRun: minutes are stored when they end, and the one that runs at the end.
func TestResourcesRun(t *testing.T) {
	dir := t.TempDir()
	real := openStore(t, dir, nil)
	synctest.Test(t, func(t *testing.T) {
		mem := &kept{}
		r := newResources(t, mem, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		r.Report(report("box", 10, gib, gib))
		time.Sleep(time.Minute + flushAfter + time.Second)
		synctest.Wait()
		if n := mem.count(); n != 1 {
			t.Errorf("%d batches after a minute", n)
		}
		r.Report(report("box", 20, gib, gib))
		cancel()
		if err := <-done; err != nil || mem.count() != 2 {
			t.Errorf("%v, %d batches", err, mem.count())
		}
		for i, rows := range mem.batches {
			if err := real.PutResources(context.Background(), "run", uint64(i+1), rows); err != nil {
				t.Error(err)
			}
		}
	})
	rows, _, batch, known, err := real.Resources(t.Context(), "box", true, time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2000, 1, 2, 0, 0, 0, 0, time.UTC))
	if err != nil || !known || batch != 2 || len(rows) != 1 || rows[0].CPU.Count != 2 || rows[0].CPU.Max != 2000 {
		t.Errorf("%+v %v %v %v", rows, batch, known, err)
	}
}

// kept remembers batches: a real file can't be waited for within a bubble.
type kept struct {
	ResourceStore
	mu      sync.Mutex
	batches [][]statussync.ResourceRow
}

func (k *kept) PutResources(_ context.Context, _ string, _ uint64, rows []statussync.ResourceRow) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.batches = append(k.batches, rows)
	return nil
}

func (k *kept) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.batches)
}

var _ ResourceStore = (*sqlite.History)(nil)
