//go:build linux

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/heapprofiler"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/memory"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/tracing"
	"github.com/chromedp/chromedp"

	"github.com/agentopia/statussync/dashboard"
)

// browserWait is how long a test waits for what a page must come to show. It bounds a failure, not a figure.
const browserWait = 60 * time.Second

// tab is a page in a real headless Chromium of its own.
type tab struct {
	t    testing.TB
	ctx  context.Context
	base string

	mu      sync.Mutex
	faults  []string // exceptions, console errors and warnings, violations of the policy
	network []string // requests that failed: expected where the service is down or refuses

	trace  []traceEvent  // of the newest trace
	traced chan struct{} // closed when it is complete
}

// traceEvent is what is of interest in an event of Chromium's trace.
type traceEvent struct {
	Name, Ph string
	Pid, Tid int64
	Dur      float64 // in µs
	Tdur     float64 // of that, on a processor; 0: not measured
	Args     struct{ Name string }
}

// keep says which events of a trace are kept: tasks that are long, and the names of threads.
func (e *traceEvent) keep() bool {
	return e.Ph == "M" && e.Name == "thread_name" || e.Ph == "X" && e.Dur > 20_000 && strings.HasSuffix(e.Name, "RunTask")
}

// task is a task of the page's main thread: how long it took, and how much of that it had a processor.
type task struct{ took, ran time.Duration }

// tasks traces Chromium for a time and returns the tasks of the page's main thread that took more than 20 ms, the longest
// first.
func (b *tab) tasks(d time.Duration) (long []task) {
	b.t.Helper()
	return b.tasksOf(func() { pause(context.Background(), d) })
}

// tasksOf is the same for as long as use takes.
func (b *tab) tasksOf(use func()) (long []task) {
	b.t.Helper()
	b.mu.Lock()
	b.trace, b.traced = nil, make(chan struct{})
	b.mu.Unlock()
	b.do(call(tracing.Start, tracing.StartParams{TraceConfig: &tracing.TraceConfig{
		RecordMode: tracing.TraceConfigRecordModeRecordUntilFull, TraceBufferSizeInKb: 1 << 19,
		IncludedCategories: []string{"toplevel"}, ExcludedCategories: []string{"*"},
	}}))
	use()
	b.do(call(tracing.End, cdp.Empty{}))
	select {
	case <-b.traced:
	case <-time.After(2 * browserWait):
		b.t.Fatal("the trace did not come to its end")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	main := map[[2]int64]bool{}
	for _, e := range b.trace {
		if e.Ph == "M" && e.Args.Name == "CrRendererMain" {
			main[[2]int64{e.Pid, e.Tid}] = true
		}
	}
	if len(main) == 0 {
		b.t.Fatal("the trace has no main thread of a page")
	}
	for _, e := range b.trace {
		if e.Ph == "X" && main[[2]int64{e.Pid, e.Tid}] {
			t := task{time.Duration(e.Dur * float64(time.Microsecond)), time.Duration(e.Tdur * float64(time.Microsecond))}
			if t.ran == 0 {
				t.ran = t.took
			}
			long = append(long, t)
		}
	}
	slices.SortFunc(long, func(a, b task) int { return cmp.Compare(b.took, a.took) })
	return long
}

// memory is what the page's scripts hold, in bytes, and how many nodes there are, once what is not needed was collected.
func (b *tab) memory() (heap, nodes float64) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, browserWait)
	defer cancel()
	_, err := chromedp.Run(ctx, func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		for range 2 {
			if _, err := cdp.Call(ctx, t, heapprofiler.CollectGarbage, cdp.Empty{}); err != nil {
				return chromedp.Void{}, err
			}
		}
		h, err := cdp.Call(ctx, t, runtime.GetHeapUsage, cdp.Empty{})
		if err != nil {
			return chromedp.Void{}, err
		}
		d, err := cdp.Call(ctx, t, memory.GetDOMCounters, cdp.Empty{})
		heap, nodes = h.UsedSize+h.BackingStorageSize, float64(d.Nodes)
		return chromedp.Void{}, err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return heap, nodes
}

// newTab starts a browser for a test; it ends with it. What the page does wrong, by the browser's own word, fails the test.
func newTab(t testing.TB, base string, width, height int) *tab {
	t.Helper()
	chromium := needBrowser(t)
	opts := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(chromium), chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-extensions", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("hide-scrollbars", true), chromedp.Flag("force-color-profile", "srgb"), chromedp.Flag("no-proxy-server", true),
		chromedp.Flag("disable-background-timer-throttling", true), chromedp.Flag("disable-renderer-backgrounding", true),
		chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(width, height), chromedp.Env("LANG=en_US.UTF-8", "TZ=UTC"),
	}
	alloc, endAlloc := chromedp.NewExecAllocator(context.Background(), opts...)
	b := &tab{t: t, base: base}
	ctx, endTab := chromedp.NewContext(alloc, chromedp.WithListener(b.listen))
	b.ctx = ctx
	t.Cleanup(func() {
		endTab()
		endAlloc() // waits for the browser's end
		b.check()
	})
	if err := chromedp.Do(ctx); err != nil { // the browser lives as long as the context of its first call
		t.Fatalf("chromium does not start: %v", err)
	}
	b.do(
		call(log.Enable, cdp.Empty{}), call(audits.Enable, cdp.Empty{}),
		call(emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "UTC"}),
		call(page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: policyWatch}),
	)
	b.size(width, height)
	b.media("light")
	return b
}

// call is a command of the protocol whose result is of no interest.
func call[P, R any](c cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, c, params)
		return err
	})
}

// size sets the size of the window; less than 600 px are a phone.
func (b *tab) size(width, height int) {
	b.t.Helper()
	b.do(call(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: int64(width), Height: int64(height), DeviceScaleFactor: 1, Mobile: width < 600,
	}))
}

// policyWatch notes violations of the policy, which the console does not always show.
const policyWatch = `window.violations = []; addEventListener("securitypolicyviolation",
	(e) => violations.push(e.violatedDirective + " " + e.blockedURI + " " + e.sample), true);`

// needBrowser returns Chromium, and that the page was built: without either a test is skipped, or with CI=true fails.
func needBrowser(t testing.TB) string {
	t.Helper()
	missing := ""
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		missing = "no chromium here"
	} else if _, err := dashboard.Built(); err != nil {
		missing = "the page was not built (make page)"
	}
	if missing != "" {
		if os.Getenv("CI") == "true" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	return chromium
}

func (b *tab) listen(ev any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := ev.(type) {
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if x := e.ExceptionDetails.Exception; x != nil {
			text += " " + x.Description
		}
		b.faults = append(b.faults, "exception: "+text)
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning || e.Type == runtime.ConsoleAPICalledTypeAssert {
			var said []string
			for _, a := range e.Args {
				said = append(said, string(a.Value)+a.Description)
			}
			b.faults = append(b.faults, "console: "+strings.Join(said, " "))
		}
	case *log.EventEntryAdded:
		line := fmt.Sprintf("%s %s: %s %s", e.Entry.Source, e.Entry.Level, e.Entry.Text, e.Entry.URL)
		switch {
		case e.Entry.Source == log.EntrySourceNetwork || strings.Contains(e.Entry.Text, "WebSocket connection to"):
			b.network = append(b.network, line)
		case e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning:
			b.faults = append(b.faults, line)
		}
	case *tracing.EventDataCollected:
		for _, raw := range e.Value {
			var v traceEvent
			if json.Unmarshal(raw, &v) == nil && v.keep() {
				b.trace = append(b.trace, v)
			}
		}
	case *tracing.EventTracingComplete:
		close(b.traced)
	case *audits.EventIssueAdded:
		if d := e.Issue.Details; d != nil && d.ContentSecurityPolicyIssueDetails != nil {
			c := d.ContentSecurityPolicyIssueDetails
			b.faults = append(b.faults, fmt.Sprintf("policy: %s %s", c.ViolatedDirective, c.BlockedURL))
		}
	}
}

// refused returns the requests that failed since it was last asked, and forgets them.
func (b *tab) refused() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.network
	b.network = nil
	return out
}

func (b *tab) check() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.faults {
		b.t.Errorf("the browser says: %s", f)
	}
	for _, f := range b.network {
		b.t.Errorf("a request of the page failed: %s", f)
	}
}

// do runs actions within browserWait.
func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, browserWait)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("the browser: %v\n%s", err, b.shown())
	}
}

// open goes to an address below the service's base.
func (b *tab) open(path string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.base + path))
}

// evaluate evaluates an expression, which may be a promise.
func evaluate[T any](b *tab, expression string) T {
	b.t.Helper()
	v, err := tryEvaluate[T](b, expression)
	if err != nil {
		b.t.Fatalf("%.300s: %v\n%s", expression, err, b.shown())
	}
	return v
}

func tryEvaluate[T any](b *tab, expression string) (T, error) {
	ctx, cancel := context.WithTimeout(b.ctx, browserWait)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// until waits until an expression is true.
func (b *tab) until(what, expression string) {
	b.t.Helper()
	waitFor(b.t, browserWait, what, func() (bool, string) {
		ok, err := tryEvaluate[bool](b, "!!("+expression+")")
		if err != nil {
			return false, err.Error() // while it goes from one page to the next
		}
		return ok, ""
	})
}

// sees waits until a text stands in the page as people see it.
func (b *tab) sees(text string) {
	b.t.Helper()
	deadline := time.Now().Add(browserWait)
	for {
		got := b.shown()
		if strings.Contains(got, text) {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("the page does not show %q; it shows:\n%s", text, got)
		}
		pause(context.Background(), 50*time.Millisecond)
	}
}

// shown is the text of the page.
func (b *tab) shown() string {
	s, err := tryEvaluate[string](b, `document.body ? document.body.innerText : ""`)
	if err != nil {
		return err.Error()
	}
	return s
}

// media sets what the user prefers of colours.
func (b *tab) media(scheme string) {
	b.t.Helper()
	b.do(call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}, // pictures are of what stands still
	}}))
}

// noViolations fails the test where the page met its policy.
func (b *tab) noViolations() {
	b.t.Helper()
	if list := evaluate[[]string](b, "window.violations"); len(list) > 0 {
		b.t.Errorf("violations of the policy: %v", list)
	}
}

// axe is the library of accessibility checks.
func axe(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("axe", "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("axe-core is not installed (.ci/setup)")
	}
	return string(b)
}

// accessible runs axe-core's rules of WCAG 2.2 AA and its best practices on the page as it is. What it calls serious or critical fails.
func (b *tab) accessible(view string) {
	b.t.Helper()
	evaluate[int](b, axe(b.t)+";0") // the debugger's scripts are not the page's: the policy stays in force
	raw := evaluate[string](b, `axe.run(document, {resultTypes: ["violations"], runOnly: ["wcag2a","wcag2aa","wcag21a","wcag21aa","wcag22aa","best-practice"]})
		.then((r) => JSON.stringify(r.violations.map((v) => ({id: v.id, impact: v.impact, help: v.help, nodes: v.nodes.slice(0, 5).map((n) => n.html.slice(0, 200) + " — " + n.failureSummary)}))))`)
	var found []struct {
		ID, Impact, Help string
		Nodes            []string
	}
	if err := json.Unmarshal([]byte(raw), &found); err != nil {
		b.t.Fatal(err)
	}
	for _, v := range found {
		text := fmt.Sprintf("%s: axe: %s (%s): %s\n  %s", view, v.ID, v.Impact, v.Help, strings.Join(v.Nodes, "\n  "))
		if v.Impact == "serious" || v.Impact == "critical" {
			b.t.Error(text)
		} else {
			b.t.Log(text)
		}
	}
}

// accessibleInBoth checks a view in light and in dark.
func (b *tab) accessibleInBoth(view string) {
	b.t.Helper()
	b.accessible(view)
	b.media("dark")
	b.accessible(view + ", dark")
	b.media("light")
}

// picture writes the page as it is to a file.
func (b *tab) picture(file string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, browserWait)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(file, png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// press clicks the first visible button, or the like, that is called so.
func (b *tab) press(name string) {
	b.t.Helper()
	quoted, _ := json.Marshal(name)
	var at []float64
	waitFor(b.t, browserWait, "a button "+name, func() (bool, string) {
		var err error
		at, err = tryEvaluate[[]float64](b, `(() => {
			const found = [...document.querySelectorAll("button, summary, [role=button], a.button, [role=tab]")].filter((e) =>
				(e.getAttribute("aria-label") ?? e.textContent).trim() === `+string(quoted)+` && !e.disabled && e.checkVisibility());
			if (found.length === 0) return [];
			found[0].scrollIntoView({block: "center"});
			const r = found[0].getBoundingClientRect();
			return [r.left + r.width / 2, r.top + r.height / 2];
		})()`)
		return err == nil && len(at) == 2, fmt.Sprint(err)
	})
	b.do(chromedp.MouseClickXY(at[0], at[1]))
}
