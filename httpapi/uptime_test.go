package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/rollup"
	"github.com/agentopia/statussync/sqlite"
	"github.com/agentopia/statussync/statussynctest"
	"github.com/agentopia/statussync/wire"
)

// uptimeService is the API on a real hub, real rollups and a real store, with servers s0 to s4; s0 and s1 were down, s4
// is removed.
func uptimeService(t *testing.T) *service {
	t.Helper()
	h, err := hub.New(hub.Options{Journal: statussynctest.NewJournal()})
	if err != nil {
		t.Fatal(err)
	}
	file, err := sqlite.OpenHistory(t.Context(), sqlite.HistoryOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	r, err := rollup.New(rollup.Options{Store: file, Hub: h})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- h.Run(ctx) }()
	go func() { ended <- r.Run(ctx) }()
	s := serve(t, func(o *Options) { o.Hub, o.Rollups = h, r })
	t.Cleanup(func() {
		cancel()
		<-ended
		<-ended
		file.Close()
	})
	<-h.Started()
	submit := func(obs ...statussync.Observation) {
		t.Helper()
		if _, err := h.Submit(ctx, obs...); err != nil {
			t.Fatal(err)
		}
	}
	reg := &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Environments: []statussync.Environment{{ID: "box", Name: "box"}}}
	for i := range 5 {
		v := statussync.Server{ID: fmt.Sprint("s", i), Name: fmt.Sprint("s", i), Origin: statussync.OriginConfig}
		if i < 2 {
			v.EnvironmentID, v.Labels = "box", map[string]string{"n": fmt.Sprint(i)}
		}
		reg.Servers = append(reg.Servers, v)
	}
	submit(reg)
	force := func(id string, st statussync.State) {
		t.Helper()
		o := statussync.Override{State: st, Actor: "t", Note: "a drill"}
		if err := o.Complete(h.Now()); err != nil {
			t.Fatal(err)
		}
		submit(&statussync.OverrideSet{ServerID: id, Override: o})
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	obs := r.Observer(h)
	for i := range 5 {
		id := fmt.Sprint("s", i)
		for k := range 4 {
			o := statussync.OutcomeSuccess
			if k == 3 {
				o = statussync.OutcomeFailure
			}
			now := time.Now()
			if err := obs.Observe(ctx, &statussync.ProbeResult{ServerID: id, Outcome: o, Latency: 20 * time.Millisecond, StartedAt: now, FinishedAt: now}); err != nil {
				t.Fatal(err)
			}
		}
		if i < 2 {
			force(id, statussync.StateError)
			<-tick.C // what does not last a millisecond does not count
		}
		force(id, statussync.StateRunning)
	}
	submit(&statussync.RegistryUpdate{Origin: statussync.OriginConfig, RemovedServers: []string{"s4"}})
	// The follower is a reader like any other: it is waited for.
	for range 2000 {
		if r.Stats().Position.Seq == h.Ready().Head.Seq {
			return s
		}
		<-tick.C
	}
	t.Fatal("the follower does not follow")
	return nil
}

func getJSON[T any](t *testing.T, s *service, path string) T {
	t.Helper()
	a := s.do(t, viewerToken, "GET /api/v1"+path, "")
	var out T
	if err := json.Unmarshal(a.body, &out); err != nil || a.status != 200 {
		t.Fatalf("%s: %d %s %v", path, a.status, a.body, err)
	}
	return out
}

func TestUptimeRoutes(t *testing.T) {
	s := uptimeService(t)
	ids := func(p wire.UptimePage) (out []string) {
		for _, u := range p.Items {
			out = append(out, u.ServerID)
			if sum := u.AvailableSeconds + u.LimitedSeconds + u.UnavailableSeconds + u.ChangingSeconds + u.OffSeconds + u.UnknownSeconds + u.MaintenanceSeconds; sum < u.WindowSeconds-0.01 || sum > u.WindowSeconds+0.01 {
				t.Errorf("%s: %v of %v", u.ServerID, sum, u.WindowSeconds)
			}
		}
		return out
	}
	for path, want := range map[string]struct {
		ids   []string
		total int
	}{
		"/uptime":                         {[]string{"s0", "s1", "s2", "s3"}, 4},
		"/uptime?window=1h&limit=3":       {[]string{"s0", "s1", "s2"}, 4},
		"/uptime?environment_ids=box":     {[]string{"s0", "s1"}, 2},
		"/uptime?label=n%3D1":             {[]string{"s1"}, 1},
		"/uptime?q=S2":                    {[]string{"s2"}, 1},
		"/uptime?states=stopped":          {nil, 0},
		"/uptime?limit=3&cursor=after:s2": {[]string{"s3"}, 0},
	} {
		p := getJSON[wire.UptimePage](t, s, path)
		total := 0
		if p.Total != nil {
			total = p.Total.Servers
		}
		if !slices.Equal(ids(p), want.ids) || total != want.total {
			t.Errorf("%s: %v, total of %d", path, ids(p), total)
		}
		if more := p.NextCursor != ""; more != (path == "/uptime?window=1h&limit=3") {
			t.Errorf("%s: next %q", path, p.NextCursor)
		}
	}
	if p := getJSON[wire.UptimePage](t, s, "/uptime?limit=1"); p.Total.Incidents != 2 || p.Total.MTTRSeconds == nil {
		t.Errorf("%+v", p.Total)
	}
	if u := getJSON[wire.Uptime](t, s, "/servers/s0/uptime?window=7d"); u.Incidents != 1 || u.WindowSeconds != 7*86400 || u.AvailabilityPercent == nil {
		t.Errorf("%+v", u)
	}
	if u := getJSON[wire.Uptime](t, s, "/servers/s4/uptime"); u.ServerID != "s4" || u.Incidents != 0 { // removed, and not forgotten
		t.Errorf("%+v", u)
	}
	var seen []string
	for cursor := ""; ; {
		p := getJSON[wire.Page[wire.Incident]](t, s, "/incidents?limit=1&cursor="+url.QueryEscape(cursor))
		for _, i := range p.Items {
			seen = append(seen, i.ServerID)
			if i.Reason != "override" || i.End.IsZero() || i.Details == "" {
				t.Errorf("%+v", i)
			}
		}
		if cursor = p.NextCursor; cursor == "" {
			break
		}
	}
	if !slices.Equal(seen, []string{"s1", "s0"}) {
		t.Errorf("incidents, newest first: %v", seen)
	}
	if p := getJSON[wire.Page[wire.Incident]](t, s, "/servers/s1/incidents"); len(p.Items) != 1 || p.Items[0].ServerID != "s1" {
		t.Errorf("%+v", p)
	}
	r := getJSON[wire.ProbeReport](t, s, "/servers/s4/probes?window=1h&step=5m")
	if r.Total.Count != 4 || r.Total.Failures != 1 || r.Total.P50MS == nil || *r.Total.P50MS < 19.8 || *r.Total.P50MS > 20.2 || r.Resolution != "minute" || r.StepSeconds != 300 {
		t.Errorf("%+v", r)
	}
	if r := getJSON[wire.ProbeReport](t, s, "/servers/s0/probes?window=30d"); r.Resolution != "hour" || r.StepSeconds != 3600 || r.Total.Count != 4 {
		t.Errorf("%+v", r)
	}

	for path, want := range map[string]struct {
		status int
		at     string
	}{
		"/servers/nobody/uptime":                {404, ""},
		"/servers/nobody/incidents":             {404, ""},
		"/servers/nobody/probes":                {404, ""},
		"/uptime?window=soon":                   {400, "query.window"},
		"/uptime?window=0s":                     {400, "query.window"},
		"/uptime?window=1000d":                  {400, "query.window"},
		"/uptime?cursor=x":                      {400, "query.cursor"},
		"/uptime?windows=1d":                    {422, "query.windows"},
		"/servers/s0/uptime?window=-1h":         {400, "query.window"},
		"/incidents?cursor=after:x":             {400, "query.cursor"},
		"/incidents?cursor=after:1:":            {400, "query.cursor"},
		"/incidents?window=1":                   {400, "query.window"},
		"/servers/s0/probes?step=90s":           {400, "query.step"},
		"/servers/s0/probes?step=x":             {400, "query.step"},
		"/servers/s0/probes?window=90d&step=1m": {400, "query.step"},
	} {
		a := s.do(t, viewerToken, "GET /api/v1"+path, "")
		p := a.problem(t)
		at := ""
		if len(p.Errors) > 0 {
			at = p.Errors[0].Location
		}
		if (a.status != want.status && !(want.status == 422 && a.status == 400)) || at != want.at {
			t.Errorf("%s: %d at %q: %s", path, a.status, at, a.body)
		}
	}
	if a := s.do(t, "", "GET /api/v1/uptime", ""); a.status != 401 {
		t.Errorf("without a token: %d", a.status)
	}
}
