//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/agentopia/statussync/fleetsim"
)

// simulated is a simulated fleet that reports to a service under test.
type simulated struct {
	*fleetsim.Fleet
	conf obj // what a configuration says of it
}

// simulate starts a fleet for a test; it ends with it. It reports once it has a target.
func simulate(t testing.TB, o fleetsim.Options) *simulated {
	t.Helper()
	f, err := fleetsim.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := f.Run(ctx); err != nil && ctx.Err() == nil {
			t.Errorf("the fleet: %v", err)
		}
	})
	t.Cleanup(func() { stop(); running.Wait() })
	var envs, servers list
	for _, e := range f.Environments() {
		envs = append(envs, obj{"id": e.ID, "name": e.Name, "owner": e.Owner, "address": e.Address, "agent_token": string(e.AgentToken), "agent_url": e.AgentURL})
	}
	for _, s := range f.Servers() {
		probe := obj{"kind": "mcp", "interval": "2s"}
		if s.Kind == fleetsim.KindPlain {
			probe = obj{"kind": "http", "url": s.ProbeURL, "interval": "2s"}
		}
		servers = append(servers, obj{
			"id": s.ID, "name": s.Name, "environment": s.EnvironmentID, "container": s.Container, "endpoint": s.Endpoint, "transport": s.Transport,
			"type": s.Type, "desired": s.Desired, "labels": s.Labels, "probe": probe,
		})
	}
	return &simulated{f, obj{"environments": envs, "servers": servers}}
}

// tile is the selector of a server's tile.
func tile(id string) string { return `.tile[data-id="` + id + `"]` }

// turnsWatch notes when, by the machine's clock in ms, a tile came to have each of its classes.
const turnsWatch = `window.turns = []; new MutationObserver((list) => {
	for (const m of list) if (m.target.matches?.(".tile")) turns.push({id: m.target.dataset.id, is: m.target.className, at: Date.now()});
}).observe(document.body, {subtree: true, attributes: true, attributeFilter: ["class"]}); 0`

// within1s is what a tile may take from the entry's time to its colour; with the race detector, or beside other tests on a
// small machine, the figure is printed and only a failure to be live fails.
func within1s() time.Duration {
	if raceEnabled || os.Getenv("CI") == "true" {
		return 10 * time.Second
	}
	return time.Second
}

// TestDashboard looks at a simulated fleet in a real browser, breaks things, acts on them, and kills the service under it.
func TestDashboard(t *testing.T) {
	needBrowser(t)
	f := simulate(t, fleetsim.Options{HeartbeatEvery: time.Second, EventAgents: -1})
	s := startService(t, f.conf)
	if err := f.SetTarget(s.base); err != nil {
		t.Fatal(err)
	}
	b := newTab(t, s.base, 1280, 800)
	b.open("/")
	b.until("24 tiles", `document.querySelectorAll(".tile").length === 24`)
	b.until("a fleet that is well", `document.querySelectorAll(".tile.a-available").length >= 20`)
	b.noViolations()
	evaluate[int](b, "window.stayed = true, 0") // who loads the page anew forgets it
	evaluate[int](b, turnsWatch)

	// A fault turns its tile.
	if err := f.Crash("weather", 137); err != nil {
		t.Fatal(err)
	}
	b.until("the crashed server's tile", `document.querySelector('`+tile("weather")+`').classList.contains("a-unavailable")`)
	e := newest(t, s, "weather", func(e *entryJSON) bool { return e.Current != nil && e.Current.Health == "unhealthy" })
	type turn struct {
		ID, Is string
		At     float64
	}
	for _, x := range evaluate[[]turn](b, "turns") {
		if x.ID == "weather" && strings.Contains(x.Is, "a-unavailable") {
			took := time.UnixMilli(int64(x.At)).Sub(e.Timestamp)
			t.Logf("from the journal entry to the tile: %d ms", took.Milliseconds())
			if took > within1s() {
				t.Errorf("the tile turned %s after the entry", took)
			}
			break
		}
	}

	if !evaluate[bool](b, "window.stayed === true") {
		t.Error("the page was loaded anew")
	}

	// The drill-down explains it. What is wrong is listed a quarter of a second later at most, which moves the tiles down.
	b.until("the crashed server in the list of what is wrong", `document.querySelector('.problem-name[data-id="weather"]')`)
	b.do(chromedp.Click(chromedp.CSS(tile("weather"))))
	b.until("the address of the server's view", `location.pathname === "/servers/weather"`)
	for _, want := range []string{"Unavailable", "Crashed", "exit code 137", "Exited (137)", "decided"} {
		b.sees(want)
	}
	loaded(b)
	if got := evaluate[string](b, "document.title"); !strings.Contains(got, "1") {
		t.Errorf("the title does not tell how many servers are broken: %q", got)
	}
	b.accessibleInBoth("server")
	b.press("Maintenance")
	b.until("the form", `document.querySelector("#maintenance-form")`)
	b.accessible("server, a form")
	b.open("/environments/box-1")
	loaded(b)
	b.accessibleInBoth("environment")
	b.open("/")
	b.until("24 tiles", `document.querySelectorAll(".tile").length === 24`)
	// Every colour that there is.
	for id, o := range map[string]obj{
		"search": {"state": "running", "health": "degraded"}, "calendar": {"state": "starting"}, "slack": {"state": "stopped"}, "jira": {"state": "unknown"},
		"email": {"state": "error"},
	} {
		body, _ := json.Marshal(o)
		if code, answer := s.request("PUT", "/api/v1/servers/"+id+"/override", body); code != 200 {
			t.Fatalf("override: %d %s", code, answer)
		}
	}
	if code, answer := s.request("POST", "/api/v1/maintenance", []byte(`{"server_ids":["email","maps","search"],"duration":"1h"}`)); code != 201 {
		t.Fatalf("maintenance: %d %s", code, answer)
	}
	for _, class := range []string{"unavailable", "limited", "changing", "off", "unknown", "available"} {
		b.until("a tile that is "+class, `document.querySelector(".tile.a-`+class+`")`)
	}
	b.until("tiles in maintenance", `document.querySelectorAll(".tile.in-maintenance").length === 3`)
	b.accessibleInBoth("fleet")
	evaluate[int](b, `[...document.querySelectorAll("button")].find((x) => x.textContent.trim() === "Small tiles").click(), 0`)
	b.accessibleInBoth("fleet, small tiles")
	b.press("Show names")
	b.do(chromedp.KeyEvent("?"))
	b.until("the list of keys", `document.querySelector("dialog[open]")`)
	b.accessible("keys")
	b.do(chromedp.KeyEvent(kb.Escape))
	b.size(390, 844)
	b.accessible("fleet, phone")
	if over := evaluate[int](b, "document.documentElement.scrollWidth - innerWidth"); over > 0 {
		t.Errorf("on a phone the page is %d px too wide", over)
	}
	b.size(1280, 800)
	b.noViolations()
	evaluate[int](b, "window.stayed = true, 0")

	// Killed and started again, the service catches the page up; nothing vanishes meanwhile.
	b.refused()
	s.kill()
	b.until("that it is not live", `/reconnecting/i.test(document.body.innerText)`)
	if n := evaluate[int](b, `document.querySelectorAll(".tile").length`); n != 24 {
		t.Errorf("%d tiles while the service is down", n)
	}
	if err := f.Crash("github", 1); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.ready()
	b.until("that it is live again", `!/reconnecting/i.test(document.body.innerText)`)
	b.until("what happened meanwhile", `document.querySelector('`+tile("github")+`').classList.contains("a-unavailable")`)
	if !evaluate[bool](b, `window.stayed === true && document.querySelectorAll(".tile").length === 24`) {
		t.Error("the page was loaded anew, or lost its tiles")
	}
	b.refused() // what failed while the service was down
	b.noViolations()
}

// newest waits for a server's newest entry that is what is wanted.
func newest(t testing.TB, s *service, id string, want func(*entryJSON) bool) *entryJSON {
	t.Helper()
	var found *entryJSON
	waitFor(t, browserWait, "an entry of "+id, func() (bool, string) {
		for _, e := range s.history(id) {
			if want(e) {
				found = e
			}
		}
		return found != nil, ""
	})
	return found
}

// TestDashboardSignIn signs in with a token, acts, stays signed in over a restart of the service, and signs out; all below
// a base path.
func TestDashboardSignIn(t *testing.T) {
	needBrowser(t)
	const token, viewer = "operator-token-0001", "viewer-token-00001"
	olga, vera := obj{"name": "olga", "role": "operator", "token": token}, obj{"name": "vera", "role": "viewer", "token": viewer}
	conf := func(tokens ...any) obj {
		return obj{"auth": obj{"tokens": tokens}, "servers": list{unprobed("weather", "", "")}, "base_path": "/status"}
	}
	s := newService(t, conf(olga, vera))
	s.token = token
	s.base += "/status"
	s.start()
	s.ready()
	b := newTab(t, s.base, 1280, 800)
	b.open("/servers/weather")
	b.until("a field for the token", `document.querySelector("#token")`)
	b.accessible("sign-in")
	if failed := b.refused(); len(failed) > 0 {
		t.Errorf("before anybody signs in: %v", failed)
	}
	b.sign("wrong-token-00001")
	b.sees("does not know this token")
	b.sign(token)
	b.sees("olga")
	b.until("the view that was asked for", `location.pathname === "/status/servers/weather" && !document.querySelector("#token")`)
	if got := evaluate[string](b, `document.cookie + JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + location.href`); strings.Contains(got, token) || strings.Contains(got, "statussync_session") {
		t.Errorf("a script can see a secret: %s", got)
	}
	// An override made on the page is in the journal, with who made it.
	b.press("Override")
	b.until("the form", `document.querySelector("#override-form")`)
	evaluate[int](b, `document.querySelector("#override-form input").focus(), 0`)
	b.do(chromedp.KeyEvent("bread and butter <b>"))
	b.press("Set override")
	b.sees("by olga")
	e := newest(t, s, "weather", func(e *entryJSON) bool { return e.Current != nil && e.Current.Reason == "override" })
	if e.Source != "manual" || !strings.Contains(e.Details, "olga") || !strings.Contains(e.Details, "bread and butter") || e.Current.State != "running" {
		t.Errorf("the journal says %s by %s: %s", e, e.Source, e.Details)
	}
	b.accessibleInBoth("server, overridden")
	b.refused()
	s.kill()
	b.until("that it is not live", `/reconnecting|not live|does not answer/i.test(document.body.innerText)`)
	s.start()
	s.ready()
	b.until("that it is live again", `!/reconnecting|not live|does not answer/i.test(document.body.innerText)`)
	if evaluate[bool](b, `!!document.querySelector("#token")`) {
		t.Error("a restart of the service signed people out")
	}
	b.refused()
	b.press("Sign out")
	b.until("a field for the token", `document.querySelector("#token")`)
	if strings.Contains(b.shown(), "weather") {
		t.Errorf("the fleet is still shown: %s", b.shown())
	}
	// Back shows nothing either: what was shown is not kept.
	b.open("/")
	b.until("a field for the token", `document.querySelector("#token")`)
	b.sign(viewer)
	b.sees("vera")
	b.do(chromedp.Click(chromedp.CSS(tile("weather"))))
	b.sees("by olga")
	if evaluate[bool](b, `[...document.querySelectorAll("button")].some((x) => /override|maintenance|probe now/i.test(x.textContent))`) {
		t.Error("a viewer is offered what only operators may do")
	}
	// Who is no longer in the configuration sees no more from its reload on.
	b.refused()
	s.configure(conf(olga))
	if err := syscall.Kill(s.pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	b.until("a field for the token", `document.querySelector("#token")`)
	if strings.Contains(b.shown(), "weather") {
		t.Errorf("the server is still shown: %s", b.shown())
	}
	b.noViolations()
	b.refused() // 401 and what failed while the service was down
}

// sign gives a token to the sign-in form.
func (b *tab) sign(token string) {
	b.t.Helper()
	b.until("the form to be ready", `document.querySelector("#token") && !document.querySelector("#token").disabled`)
	evaluate[int](b, `document.querySelector("#token").value = "", document.querySelector("#token").focus(), 0`)
	b.do(chromedp.KeyEvent(token + kb.Enter))
}

// hostile are texts that a page must show as text. Whatever they hold would set window.pwned if it were more than that.
var hostile = []string{
	`<img src=x onerror="window.pwned=1">`, `<script>window.pwned=1</script>`, `"><svg onload=window.pwned=1>`, `javascript:window.pwned=1`,
	`{{constructor.constructor('window.pwned=1')()}}`, "'\"`;--></style></title></textarea><script>window.pwned=1</script>",
	"שלום עולם", "😀🔥💥 e\u0301\u0327 ﷽", "<b>bold</b> &amp; &lt;i&gt;",
}

// unshowable are characters that turn a text around or can't be seen. The service takes them in no definition; what is
// observed may hold them, and is shown without.
const unshowable = "\u202egnp.exe\u202c \u2066isolated\u2069 \u200fright 👩\u200d👧 \x1b[31mred\x07"

// TestDashboardHostile gives names, labels, errors and notes that would like to be more than text.
func TestDashboardHostile(t *testing.T) {
	needBrowser(t)
	const agent = "agent-token-000001"
	long := strings.Repeat("long text without end ", 500)
	var servers list
	for i, text := range hostile {
		servers = append(servers, obj{
			"id": fmt.Sprintf("h%d", i), "name": text, "environment": "box", "container": fmt.Sprintf("c%d", i), "type": text,
			"labels": obj{"team": text}, "probe": obj{"kind": "none"},
		})
	}
	s := startService(t, obj{
		"environments": list{obj{"id": "box", "name": hostile[0], "agent_token": agent}}, "servers": servers,
	})
	var containers []obj
	for i, text := range hostile {
		containers = append(containers, container(fmt.Sprintf("c%d", i), "dead", "Dead "+text+" "+unshowable+" "+long))
	}
	for _, text := range append(hostile, long, unshowable) {
		containers = append(containers, container("found "+text, "running", "Up 2 hours "+text))
	}
	s.postHeartbeat(agent, heartbeat(containers...))
	note, _ := json.Marshal(obj{"state": "error", "note": hostile[1] + long[:400]})
	if code, body := s.request("PUT", "/api/v1/servers/h0/override", note); code != 200 {
		t.Fatalf("override: %d %s", code, body)
	}
	b := newTab(t, s.base, 1280, 800)
	unharmed := func(view string) {
		t.Helper()
		type harm struct {
			Pwned          bool
			Images, Inline int
			Wide           int
		}
		got := evaluate[harm](b, `({pwned: "pwned" in window, images: document.querySelectorAll("#app img, #app iframe, #app object, #app embed").length,
			inline: document.querySelectorAll("#app script, #app style, #app [onload], #app [onerror], #app b").length,
			wide: document.documentElement.scrollWidth - innerWidth})`)
		if got.Pwned || got.Images != 0 || got.Inline != 0 {
			t.Errorf("%s: text became more than text: %+v", view, got)
		}
		if got.Wide > 0 {
			t.Errorf("%s: a long text makes the page %d px too wide", view, got.Wide)
		}
		b.noViolations()
	}
	b.open("/")
	b.until("the tiles", `document.querySelectorAll(".tile").length === `+fmt.Sprint(len(hostile)))
	for _, text := range []string{hostile[0], hostile[1], hostile[8]} {
		b.sees(text)
	}
	unharmed("fleet")
	for i := range hostile {
		id := fmt.Sprintf("h%d", i)
		b.open("/servers/" + id)
		b.until("the server's view", `document.querySelector("h1")`)
		if i < 2 {
			b.sees(hostile[i])
		}
		unharmed(id)
	}
	b.open("/environments/box")
	b.until("the environment's view", `document.querySelector("h1")`)
	b.sees(hostile[0])
	unharmed("environment")
	// What a link says is data, too.
	b.open("/?q=" + "%3Cimg%20src%3Dx%20onerror%3D%22window.pwned%3D1%22%3E")
	b.until("the fleet", `document.querySelector("#app")`)
	unharmed("search")
	b.size(390, 800)
	b.open("/servers/h0")
	b.until("the server's view", `document.querySelector("h1")`)
	unharmed("phone")
}

// TestDashboardThousands watches 5,000 servers of which a hundred change each second: for 5 minutes no task holds the
// page's main thread for more than 100 ms, and its memory does not grow. It takes six minutes, and a build without the race
// detector to mean something: E2E_FULL=1.
func TestDashboardThousands(t *testing.T) {
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
	loaded(b)
	before := headOf(t, m.s)
	began := time.Now()
	load.Go(func() { m.change(ctx, 100) })
	defer load.Wait()
	defer stop()
	pause(ctx, 30*time.Second) // lists that are bounded fill up
	heap, nodes := b.memory()
	for minute := range 5 {
		long := b.tasks(time.Minute)
		h, n := b.memory()
		t.Logf("minute %d: the longest tasks (took, of which on a processor): %v; %.1f MiB, %.0f nodes", minute+1, long[:min(3, len(long))], h/(1<<20), n)
		for _, l := range long {
			// On a machine that has more to do than it can, a task waits for others: that is not the page's.
			if l.took > 100*time.Millisecond && l.ran > 100*time.Millisecond && !raceEnabled {
				t.Errorf("a task of the main thread took %s, %s of it on a processor", l.took, l.ran)
			}
		}
		if h > heap*1.15+2<<20 || n > nodes*1.2+500 {
			t.Errorf("after %d minutes %.1f MiB and %.0f nodes; at the beginning %.1f MiB and %.0f", minute+1, h/(1<<20), n, heap/(1<<20), nodes)
		}
	}
	rate := float64(headOf(t, m.s)-before) / time.Since(began).Seconds()
	t.Logf("%.0f updates a second", rate)
	if rate < 80 && !raceEnabled {
		t.Errorf("the load was only %.0f updates a second", rate)
	}
	b.until("that it is live", `!/reconnecting|not live/i.test(document.body.innerText)`)
	b.noViolations()
}

// headOf is how many entries the journal has.
func headOf(t testing.TB, s *service) uint64 {
	t.Helper()
	var p pageJSON[serverJSON]
	s.getJSON("/api/v1/servers?limit=1", &p)
	_, seq, _ := strings.Cut(p.Cursor, ":")
	n, err := strconv.ParseUint(seq, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
