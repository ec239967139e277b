// Command bench measures the service against raw limits and against peers, side by side in one run, and writes one table.
//
//	make bench                 everything
//	make bench RUN=fanout      the parts whose names begin so
//	make bench FULL=1          more rounds, and larger stores
//
// Absolute figures belong to a machine; ratios are what carries over. Where a part has a peer, both run by turns and the
// medians of their rounds are compared. The service, its clients and its targets are processes of their own (this binary,
// started again), so that CPU time and memory are the service's alone. Profiles of each part are written beside the results.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// Result is one measured figure.
type Result struct {
	Part    string  `json:"part"`
	What    string  `json:"what"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`
	Against string  `json:"against,omitempty"` // the peer or limit, with its own figure
	Peer    float64 `json:"peer,omitempty"`    // in the same unit
	Ratio   float64 `json:"ratio,omitempty"`   // of what the goal speaks of
	Goal    string  `json:"goal,omitempty"`
	Met     *bool   `json:"met,omitempty"`
}

// part is one line or more of the table.
type part struct {
	name string
	what string
	run  func(ctx context.Context, b *bench) error
}

var parts = []part{
	{"engine", "one observation among 100,000 servers", engineObservation},
	{"hub", "inbox, engine, journal and ring", hubRates},
	{"journal", "updates journaled against raw inserts", journalRate},
	{"memory", "100,000 servers with evidence", memoryAndStart},
	{"ingest", "heartbeats of 20 containers over HTTP", ingest},
	{"probes", "HTTP probes of one address", probes},
	{"lateness", "9,000 servers on addresses of their own", lateness},
	{"fanout", "updates to 4,000 WebSocket subscribers", fanOut},
	{"filtered", "an update for 10 of 8,000 subscribers", filtered},
	{"idle", "8,000 idle subscribers", idle},
	{"endtoend", "heartbeat to frame", endToEnd},
	{"resume", "1,000 clients come back at once", resumeStorm},
	{"history", "history and uptime out of a full store", history},
}

// bench is one run.
type bench struct {
	dir     string // for stores, logs and profiles of this run
	full    bool
	rounds  int
	round   time.Duration
	results []Result
}

func main() {
	if len(os.Args) > 1 {
		if role, ok := roles[os.Args[1]]; ok {
			if err := role(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, os.Args[1]+":", err)
				os.Exit(1)
			}
			return
		}
	}
	run := flag.String("run", "", "run the parts whose names begin so, separated by commas")
	full := flag.Bool("full", false, "more rounds and larger stores")
	out := flag.String("out", "bench", "folder for results.json, README.md and profiles")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, *run, *full, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func measure(ctx context.Context, run string, full bool, out string) error {
	dir, err := os.MkdirTemp("", "statussync-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{dir: dir, full: full, rounds: 3, round: 3 * time.Second}
	if full {
		b.rounds = 7
	}
	profiles := filepath.Join(out, "profiles")
	began := time.Now()
	var failed []string
	for _, p := range parts {
		if run != "" && !slices.ContainsFunc(strings.Split(run, ","), func(s string) bool { return strings.HasPrefix(p.name, s) }) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		fmt.Fprintf(os.Stderr, "%-9s %s …", p.name, p.what)
		at, n := time.Now(), len(b.results)
		pctx := context.WithValue(ctx, profileKey{}, &profiling{dir: profiles, part: p.name})
		if err := p.run(pctx, b); err != nil {
			fmt.Fprintf(os.Stderr, " FAILED: %v\n", err)
			failed = append(failed, p.name)
			continue
		}
		fmt.Fprintf(os.Stderr, " %.0f s\n", time.Since(at).Seconds())
		for i := range b.results[n:] {
			b.results[n+i].Part = p.name
		}
	}
	printTable(os.Stdout, b.results)
	fmt.Printf("%.0f s in all\n", time.Since(began).Seconds())
	if err := write(out, run, b.results); err != nil {
		return err
	}
	if len(failed) > 0 {
		return fmt.Errorf("these parts failed: %s", strings.Join(failed, ", "))
	}
	return nil
}

func (r *Result) cells() []string {
	c := []string{r.Part, r.What, number(r.Value) + " " + r.Unit, "", "", "", ""}
	if r.Against != "" {
		c[3] = r.Against
		if r.Peer != 0 {
			c[3] += ": " + number(r.Peer) + " " + r.Unit
		}
	}
	if r.Ratio != 0 {
		c[4] = fmt.Sprintf("%.2f", r.Ratio)
	}
	c[5] = r.Goal
	if r.Met != nil {
		c[6] = map[bool]string{true: "met", false: "missed"}[*r.Met]
	}
	return c
}

var heads = []string{"part", "what", "value", "against", "ratio", "goal", ""}

func printTable(f *os.File, results []Result) {
	w := tabwriter.NewWriter(f, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(heads, "\t"))
	for i := range results {
		fmt.Fprintln(w, strings.Join(results[i].cells(), "\t"))
	}
	w.Flush()
}

// number writes a figure with three digits that count.
func number(v float64) string {
	switch {
	case v >= 1000:
		s := fmt.Sprintf("%.0f", v)
		for i := len(s) - 3; i > 0; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}

// write stores results.json, and the table between the marks of README.md where all parts ran.
func write(out, run string, results []Result) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	m := thisMachine()
	js, err := json.MarshalIndent(map[string]any{"machine": m, "results": results}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "results.json"), append(js, '\n'), 0o644); err != nil || run != "" {
		return err
	}
	readme := filepath.Join(out, "README.md")
	text, err := os.ReadFile(readme)
	if err != nil {
		return nil // elsewhere there is none to keep
	}
	const from, to = "<!-- results -->\n", "<!-- end of results -->"
	before, rest, ok := strings.Cut(string(text), from)
	_, after, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no marks for the results", readme)
	}
	var t strings.Builder
	fmt.Fprintf(&t, "%s, %s, %d cores, %s, %s.\n\n", m.Date, m.CPU, m.Cores, m.Kernel, m.Go)
	fmt.Fprintf(&t, "| %s |\n|%s\n", strings.Join(heads, " | "), strings.Repeat("---|", len(heads)))
	for i := range results {
		fmt.Fprintf(&t, "| %s |\n", strings.Join(results[i].cells(), " | "))
	}
	return os.WriteFile(readme, []byte(before+from+t.String()+to+after), 0o644)
}

type machine struct {
	Date   string `json:"date"`
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

func thisMachine() machine {
	m := machine{Date: time.Now().UTC().Format(time.DateOnly), Cores: runtime.NumCPU(), Go: runtime.Version(), CPU: runtime.GOARCH, Kernel: runtime.GOOS}
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if name, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	if v, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel += " " + strings.TrimSpace(string(v))
	}
	return m
}

// add notes a result. With a goal, met says whether it is reached.
func (b *bench) add(r Result) { b.results = append(b.results, r) }

func met(ok bool) *bool { return &ok }

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// quantile of unsorted values.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

// alternate runs ours and theirs by turns and returns the figures of each.
func (b *bench) alternate(ours, theirs func() (float64, error)) (o, t []float64, err error) {
	for range b.rounds {
		for _, side := range []struct {
			run func() (float64, error)
			to  *[]float64
		}{{ours, &o}, {theirs, &t}} {
			v, err := side.run()
			if err != nil {
				return nil, nil, err
			}
			*side.to = append(*side.to, v)
		}
	}
	return o, t, nil
}
