//go:build linux

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// TestDashboardThousandsInUse scrolls and searches 5,000 servers of which a hundred change each second: no task holds the
// page's main thread for more than 100 ms. It takes a minute, and a build without the race detector to mean something:
// E2E_FULL=1.
func TestDashboardThousandsInUse(t *testing.T) {
	if !full() {
		t.Skip("E2E_FULL=1")
	}
	needBrowser(t)
	m := thousands(t, 100, 5000)
	ctx, stop := context.WithCancel(context.Background())
	var load sync.WaitGroup
	b := newTab(t, m.s.base, 1440, 900)
	b.open("/")
	b.until("tiles", `document.querySelectorAll(".tile").length > 300`)
	report(b, "loading", false, func() {
		b.open("/?again") // with the connection and the code warm, as a reload has them
		b.until("tiles", `document.querySelectorAll(".tile").length > 300`)
		loaded(b)
	})
	load.Go(func() { m.change(ctx, 100) })
	defer load.Wait()
	defer stop()
	pause(ctx, 5*time.Second)
	scroll := func(step string) func() {
		return func() {
			evaluate[int](b, `(async () => {
				const end = Math.min(12000, document.documentElement.scrollHeight - innerHeight);
				for (const by of [`+step+`, -`+step+`]) {
					for (let y = by > 0 ? 0 : end; y >= 0 && y <= end; y += by) {
						scrollTo(0, y);
						await new Promise((done) => requestAnimationFrame(done));
					}
				}
				scrollTo(0, 0);
				return 0;
			})()`)
		}
	}
	search := func() {
		b.do(chromedp.KeyEvent("/"))
		for range 3 {
			for _, r := range "weather-4" {
				b.do(chromedp.KeyEvent(string(r)))
				pause(ctx, 60*time.Millisecond)
			}
			for range "weather-4" {
				b.do(chromedp.KeyEvent(kb.Backspace))
				pause(ctx, 60*time.Millisecond)
			}
		}
		b.do(chromedp.KeyEvent(kb.Escape))
	}
	report(b, "scrolling small tiles", true, scroll("120"))
	report(b, "scrolling small tiles by pages", true, scroll("1500"))
	report(b, "searching among small tiles", true, search)
	report(b, "showing names", true, func() {
		b.press("Show names")
		b.until("names", `document.querySelectorAll(".tile-name").length > 20`)
	})
	report(b, "scrolling names", true, scroll("120"))
	report(b, "scrolling names by pages", true, scroll("1500"))
	report(b, "searching among names", true, search)
	b.until("all tiles in sight, after all of it", `document.querySelectorAll(".tile").length > 20`)
	b.until("that it is live", `!/reconnecting|not live/i.test(document.body.innerText)`)
	b.noViolations()
}

func (t task) String() string {
	return fmt.Sprintf("%d ms (%d)", t.took.Milliseconds(), t.ran.Milliseconds())
}

// report prints the tasks of the main thread that were longest while the page was used, by the processor's time, and fails
// the test for one of more than 100 ms where it is held to that.
func report(b *tab, what string, held bool, use func()) {
	b.t.Helper()
	long := b.tasksOf(use)
	slices.SortFunc(long, func(x, y task) int { return cmp.Compare(y.ran, x.ran) })
	b.t.Logf("%s: the longest tasks (took, of which on a processor): %v", what, long[:min(4, len(long))])
	for _, l := range long {
		// On a machine that has more to do than it can, a task waits for others: that is not the page's.
		if held && l.took > 100*time.Millisecond && l.ran > 100*time.Millisecond && !raceEnabled {
			b.t.Errorf("%s: a task of the main thread took %s, %s of it on a processor", what, l.took, l.ran)
		}
	}
}
