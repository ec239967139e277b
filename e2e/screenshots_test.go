//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/fleetsim"
	"github.com/agentopia/statussync/rollup"
	"github.com/agentopia/statussync/sqlite"
)

// maxPicture bounds a picture that is kept in the tree, in bytes.
const maxPicture = 250 << 10

// TestScreenshots makes the pictures of docs/screenshots: `make screenshots`. They show the real page of the real service; what
// it tells of the weeks before today is made up.
func TestScreenshots(t *testing.T) {
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		t.Skip("make screenshots")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	shoot := func(b *tab, name string) {
		t.Helper()
		evaluate[int](b, `document.fonts.ready.then(() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(() => r(0)))))`)
		b.noViolations()
		file := filepath.Join(dir, name+".png")
		b.picture(file)
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d KiB", file, info.Size()>>10)
		if info.Size() > maxPicture {
			t.Errorf("%s has %d bytes, more than %d", file, info.Size(), maxPicture)
		}
	}
	t.Run("fleet", func(t *testing.T) {
		f := simulate(t, fleetsim.Options{HeartbeatEvery: time.Second, EventAgents: -1})
		f.conf["heartbeat"] = obj{"late_after": "4s", "lost_after": "7s"}
		s := newService(t, f.conf)
		s.start()
		s.ready()
		if err := f.SetTarget(s.base); err != nil {
			t.Fatal(err)
		}
		s.waitStatus(browserWait, "github", "running", "healthy", "")
		s.stop()
		pretend(t, s.data, f)
		s.start()
		s.ready()
		b := newTab(t, s.base, 1440, 900)
		b.open("/")
		b.until("24 tiles", `document.querySelectorAll(".tile").length === 24`)
		story(t, s, f)
		b.until("the story", `document.querySelectorAll(".tile.a-unavailable").length >= 4`)
		pause(context.Background(), 10*time.Second) // as somebody finds it who was called
		shoot(b, "fleet")
		b.media("dark")
		shoot(b, "dark")
		b.media("light")
		b.size(1440, 1520)
		b.open("/servers/search")
		loaded(b)
		evaluate[int](b, `document.querySelectorAll("input[type=radio][value='7d']").forEach((x) => x.click()), 0`)
		loaded(b)
		shoot(b, "server")
		b.size(1440, 1000)
		b.open("/environments/box-1")
		loaded(b)
		shoot(b, "environment")
		b.size(390, 844)
		b.open("/")
		b.until("what is wrong", `document.querySelector(".problem")`)
		loaded(b)
		shoot(b, "phone")
		b.open("/servers/search")
		loaded(b)
		shoot(b, "phone-server")
	})
	t.Run("thousands", func(t *testing.T) {
		m := thousands(t, 100, 5000)
		b := newTab(t, m.s.base, 1440, 900)
		b.open("/")
		b.until("many tiles", `document.querySelectorAll(".tile").length > 300`)
		m.beatAll()
		loaded(b)
		shoot(b, "5000-servers")
	})
}

// loaded waits until a view has loaded what it shows: nothing says that it is busy, and no request is under way.
func loaded(b *tab) {
	b.t.Helper()
	b.until("the view", `document.querySelector("h1, .tile") && !/Loading/.test(document.body.innerText)`)
	evaluate[int](b, `new Promise((done) => { let n = -1, still = 0; const look = () => {
		const now = performance.getEntriesByType("resource").length + document.body.innerHTML.length;
		still = now === n ? still + 1 : 0; n = now;
		still >= 8 ? done(0) : setTimeout(look, 100); }; setTimeout(() => done(0), 10000); look(); })`)
}

// story lets things go wrong as they do.
func story(t *testing.T, s *service, f *simulated) {
	t.Helper()
	// Everybody is seen well once, so that what follows has a past.
	for _, id := range []string{"weather", "search", "browser", "crm"} {
		s.waitStatus(browserWait, id, "running", "healthy", "")
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	envOf := func(id string) string {
		for _, v := range f.Servers() {
			if v.ID == id {
				return v.EnvironmentID
			}
		}
		t.Fatalf("no %s", id)
		return ""
	}
	do(f.Crash("email", 137))
	do(f.Status("search", 503))
	do(f.Page("browser")) // an MCP server whose address leads to a web page now
	do(f.Slow("crm", 1950*time.Millisecond))
	do(f.Unhealthy("vector-store"))
	do(f.Crash("translate", 1))
	for _, id := range []string{"email", "search", "browser", "vector-store", "translate"} {
		if envOf(id) == "box-3" {
			t.Fatalf("%s is on the host that fails as a whole", id)
		}
	}
	s.waitStatus(browserWait, "search", "", "unhealthy", "probe_failing")
	s.waitStatus(browserWait, "browser", "", "unhealthy", "not_mcp")
	do(f.EnvironmentDown("box-3", true))
	waitFor(t, browserWait, "a silent host", func() (bool, string) {
		return len(s.updates("", "&kinds=environment_silent")) > 0, ""
	})
	do(f.Start("translate"))
	s.waitStatus(browserWait, "translate", "running", "healthy", "")
	for path, body := range map[string]string{
		"PUT /api/v1/servers/maps/override": `{"state":"running","health":"degraded","note":"Tiles are served from the cache; upstream is informed (INC-204)","expires_in":"4h"}`,
		"POST /api/v1/maintenance":          `{"server_ids":["grafana","sentry"],"duration":"2h","note":"Disk replacement"}`,
	} {
		var method, at string
		if _, err := fmt.Sscan(path, &method, &at); err != nil {
			t.Fatal(err)
		}
		if code, b := s.request(method, at, []byte(body)); code >= 300 {
			t.Fatalf("%s: %d %s", path, code, b)
		}
	}
	s.waitStatus(browserWait, "crm", "running", "", "")
}

// pretend writes 90 days of a past into the history of a service that is stopped.
func pretend(t *testing.T, data string, f *simulated) {
	t.Helper()
	ctx := context.Background()
	h, err := sqlite.OpenHistory(ctx, sqlite.HistoryOptions{Dir: data})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	r := rand.New(rand.NewPCG(7, 11))
	now := time.Now().Truncate(time.Minute)
	begin := now.Add(-89 * 24 * time.Hour)
	var spans []statussync.Span
	for _, v := range f.Servers() {
		well := statussync.Span{ServerID: v.ID, Begin: begin, Class: statussync.SpanAvailable, State: statussync.StateRunning, Health: statussync.HealthHealthy, Reason: statussync.ReasonOK}
		if v.Desired == "stopped" {
			well.Class, well.State, well.Health = statussync.SpanOff, statussync.StateStopped, statussync.HealthUnknown
		}
		spans = append(spans, well)
		rate := 4 + r.Float64()*14 // days between incidents
		if v.ID == "search" {
			rate = 1.4
		}
		for at := begin; v.Desired != "stopped"; {
			at = at.Add(time.Duration(r.ExpFloat64() * rate * 24 * float64(time.Hour)))
			if at.After(now.Add(-40 * time.Minute)) {
				break
			}
			bad := statussync.Span{ServerID: v.ID, Begin: at, Class: statussync.SpanUnavailable, State: statussync.StateRunning, Health: statussync.HealthUnhealthy,
				Reason: statussync.ReasonProbeFailing, Cause: "http_503", Details: "probes fail (4 in a row): HTTP 503 Service Unavailable"}
			switch r.IntN(3) {
			case 0:
				bad.State, bad.Reason, bad.Cause, bad.Details = statussync.StateStopped, statussync.ReasonCrashed, "exit_137", "crashed: Exited (137)"
			case 1:
				bad.Class, bad.Health, bad.Reason, bad.Cause, bad.Details = statussync.SpanLimited, statussync.HealthDegraded, statussync.ReasonProbeSlow, "", ""
			}
			lasts := 25 * time.Minute
			if v.ID == "search" {
				lasts = 100 * time.Minute
			}
			at = at.Add(time.Duration((0.1 + r.ExpFloat64()) * float64(lasts)))
			again := well
			again.Begin = at
			if at.Before(now.Add(-10 * time.Minute)) {
				spans = append(spans, bad, again)
			}
		}
	}
	if err := h.PutSpans(ctx, spans, statussync.SpanCheckpoint{}, false); err != nil {
		t.Fatal(err)
	}
	row := func(at time.Time, every time.Duration) statussync.ProbeRow {
		sketch := rollup.NewSketch()
		day := math.Sin(2*math.Pi*float64(at.Unix()%86400)/86400 - 2)
		row := statussync.ProbeRow{ServerID: "search", Start: at}
		for range max(2, int(every/(2*time.Minute))) {
			row.Count++
			if r.IntN(400) == 0 {
				row.Failures++
				continue
			}
			sketch.Add(time.Duration((38 + 14*day + 9*r.ExpFloat64()) * float64(time.Millisecond)))
		}
		row.Sketch = sketch.Append(nil)
		return row
	}
	hour := now.Truncate(time.Hour)
	for at := hour.Add(-30 * 24 * time.Hour); at.Before(hour); at = at.Add(time.Hour) {
		if err := h.PutHour(ctx, at, []statussync.ProbeRow{row(at, time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	var minutes []statussync.ProbeRow
	var hosts []statussync.ResourceRow
	for at := now.Add(-25 * time.Hour); at.Before(now.Add(-2 * time.Minute)); at = at.Add(time.Minute) {
		minutes = append(minutes, row(at, time.Minute))
		day := math.Sin(2*math.Pi*float64(at.Unix()%86400)/86400 - 2)
		cpu := int64(100 * (34 + 18*day + 6*r.NormFloat64()))
		memory := int64((9.2 + 1.4*day + 0.1*r.NormFloat64()) * (1 << 20))
		disk := int64(52<<20 + at.Unix()%86400*20)
		hosts = append(hosts, statussync.ResourceRow{EnvironmentID: "box-1", Start: at,
			CPU:    statussync.ResourceSum{Count: 1, Sum: cpu, Max: cpu},
			Memory: statussync.ResourceSum{Count: 1, Sum: memory, Max: memory, Total: 16 << 20},
			Disk:   statussync.ResourceSum{Count: 1, Sum: disk, Max: disk, Total: 160 << 20}})
	}
	if err := h.PutMinutes(ctx, "made up", 1, minutes); err != nil {
		t.Fatal(err)
	}
	if err := h.PutResources(ctx, "made up", 1, hosts); err != nil {
		t.Fatal(err)
	}
}

// many is a service with thousands of servers that nobody probes, and agents that tell of them.
type many struct {
	s          *service
	envs       int
	perEnv     int
	containers [][]obj
}

// thousands starts a service with n servers in so many environments; all but a few are well.
func thousands(t testing.TB, envs, n int) *many {
	t.Helper()
	m := &many{envs: envs, perEnv: n / envs}
	var environments, servers list
	kinds := []string{"weather", "github", "search", "calendar", "slack", "files", "jira", "vectors", "browser", "email", "sentry", "payments", "maps", "translate", "notion", "inventory"}
	regions := []string{"fra", "ams", "iad", "sfo", "sin", "syd", "gru", "nrt"}
	r := rand.New(rand.NewPCG(1, 2))
	for e := range envs {
		id := fmt.Sprintf("%s-%02d", regions[e*len(regions)/envs], 1+e%((envs+len(regions)-1)/len(regions)))
		id = fmt.Sprintf("%s-%03d", id[:3], e+1)
		environments = append(environments, obj{"id": id, "agent_token": agentTokenOf(e)})
		var list []obj
		for i := range m.perEnv {
			name := fmt.Sprintf("%s-%d", kinds[i%len(kinds)], e*m.perEnv+i)
			servers = append(servers, obj{"id": name, "environment": id, "labels": obj{"team": kinds[(i+e)%5]}, "probe": obj{"kind": "none"}})
			switch c := r.IntN(1000); {
			case c < 6:
				list = append(list, container(name, "exited", "Exited (137) 2 minutes ago"))
			case c < 10:
				list = append(list, container(name, "running", "Up 3 hours (unhealthy)"))
			case c < 14:
				list = append(list, container(name, "running", "Up 4 seconds (health: starting)"))
			default:
				list = append(list, container(name, "running", "Up 3 days"))
			}
		}
		m.containers = append(m.containers, list)
	}
	m.s = startService(t, obj{"environments": environments, "servers": servers})
	m.beatAll()
	return m
}

func agentTokenOf(e int) string { return fmt.Sprintf("agent-token-%06d", e) }

// beatAll sends every agent's heartbeat.
func (m *many) beatAll() {
	m.s.t.Helper()
	for e := range m.envs {
		m.s.postHeartbeat(agentTokenOf(e), heartbeat(m.containers[e]...))
	}
}

// change lets so many servers a second change, told by events of their agents, until ctx ends.
func (m *many) change(ctx context.Context, perSecond int) {
	const every = 100 * time.Millisecond
	r := rand.New(rand.NewPCG(3, 4))
	sick := map[string]bool{}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		e := r.IntN(m.envs)
		first := r.IntN(m.perEnv)
		var changed list
		for i := range perSecond / int(time.Second/every) {
			name := m.containers[e][(first+i)%m.perEnv]["names"].(list)[0].(string)
			sick[name] = !sick[name]
			text := "Up 3 days (healthy)"
			if sick[name] {
				text = "Up 3 days (unhealthy)"
			}
			changed = append(changed, container(name, "running", text))
		}
		b, err := json.Marshal(obj{"event": true, "tool_statuses": changed})
		if err != nil {
			panic(err)
		}
		code, answer, err := m.s.tryRequest("POST", "/heartbeat", b, "Authorization", "Bearer "+agentTokenOf(e))
		if (err != nil || code != 204) && ctx.Err() == nil {
			m.s.t.Errorf("an event: %d %s %v", code, answer, err)
			return
		}
	}
}
