package httpapi

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/rollup"
	"github.com/agentopia/statussync/sqlite"
	"github.com/agentopia/statussync/statussynctest"
	"github.com/agentopia/statussync/wire"
)

// What an agent reports is there to be asked for at once, from the real store and the real hub.
func TestResourceRoutes(t *testing.T) {
	file, err := sqlite.OpenHistory(t.Context(), sqlite.HistoryOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	res, err := rollup.NewResources(rollup.ResourceOptions{Store: file})
	if err != nil {
		t.Fatal(err)
	}
	h, err := hub.New(hub.Options{Journal: statussynctest.NewJournal(), ReportSinks: []statussync.ReportSink{res}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	<-h.Started()
	s := serve(t, func(o *Options) { o.Hub, o.Resources = h, res })
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	reg := &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Environments: []statussync.Environment{{ID: "box", Name: "box", HasToken: true, Origin: statussync.OriginConfig}, {ID: "new", Name: "new", Origin: statussync.OriginConfig}}}
	cpu := 12.345
	rep := &statussync.AgentReport{EnvironmentID: "box", Via: statussync.ViaPush, System: &statussync.SystemStatus{
		CPULoadPercent: &cpu, Memory: &statussync.MemoryStatus{TotalBytes: 4 << 30, ActiveBytes: 1 << 30, UsedBytes: 3 << 30},
		Errors: map[string]string{"disk": "no main file system"},
	}}
	if _, err := h.Submit(ctx, reg, rep); err != nil {
		t.Fatal(err)
	}
	got := getJSON[wire.ResourceReport](t, s, "/environments/box/resources?window=1h&step=5m")
	if len(got.Items) != 1 || got.Resolution != statussync.ResolutionMinute || got.StepSeconds != 300 || got.WindowSeconds != 3600 {
		t.Fatalf("%+v", got)
	}
	x := got.Items[0]
	if *x.CPUPercent != 12.35 || *x.CPUMaxPercent != 12.35 || *x.MemoryBytes != 1<<30 || *x.MemorySizeBytes != 4<<30 || x.DiskBytes != nil || x.Start.Minute()%5 != 0 {
		t.Errorf("%+v", x)
	}
	if got := getJSON[wire.ResourceReport](t, s, "/environments/box/resources"); got.WindowSeconds != (24*time.Hour).Seconds() || got.StepSeconds != 60 {
		t.Errorf("%+v", got)
	}
	if got := getJSON[wire.ResourceReport](t, s, "/environments/new/resources"); got.Items == nil || len(got.Items) != 0 {
		t.Errorf("%+v", got)
	}
	for path, want := range map[string]int{
		"/environments/nowhere/resources": http.StatusNotFound, "/environments/box/resources?window=91d": http.StatusBadRequest,
		"/environments/box/resources?step=90s": http.StatusBadRequest, "/environments/box/resources?window=3d&step=5m": http.StatusBadRequest,
		"/environments/box/resources?window=soon": http.StatusBadRequest,
	} {
		if a := s.do(t, viewerToken, "GET /api/v1"+path, ""); a.status != want {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if a := s.do(t, "", "GET /api/v1/environments/box/resources", ""); a.status != http.StatusUnauthorized {
		t.Errorf("without a credential: %d", a.status)
	}
	// One that was removed is answered while something is kept of it.
	if _, err := h.Submit(ctx, &statussync.RegistryUpdate{Origin: statussync.OriginConfig, RemovedEnvironments: []string{"box"}}); err != nil {
		t.Fatal(err)
	}
	if got := getJSON[wire.ResourceReport](t, s, "/environments/box/resources"); len(got.Items) != 1 {
		t.Errorf("%+v", got)
	}
}

func TestTimelineRoute(t *testing.T) {
	s := uptimeService(t)
	got := getJSON[wire.Timeline](t, s, "/servers/s0/timeline?window=1h")
	var classes []statussync.SpanClass
	for i, x := range got.Items {
		classes = append(classes, x.Class)
		if i > 0 && !got.Items[i-1].End.Equal(x.Begin.Time) {
			t.Errorf("a hole: %+v", got.Items)
		}
	}
	n := len(classes)
	if n < 2 || classes[n-2] != statussync.SpanUnavailable || classes[n-1] != statussync.SpanAvailable || !got.Items[n-1].End.IsZero() || got.WindowSeconds != 3600 {
		t.Errorf("%+v", got)
	}
	if x := got.Items[n-2]; x.State != statussync.StateError || x.Health != statussync.HealthUnhealthy || x.Reason != statussync.ReasonOverride {
		t.Errorf("%+v", x)
	}
	if got := getJSON[wire.Timeline](t, s, "/servers/s4/timeline"); len(got.Items) == 0 || got.Items[len(got.Items)-1].Class != statussync.SpanRemoved {
		t.Errorf("one that was removed: %+v", got)
	}
	for path, want := range map[string]int{"/servers/nobody/timeline": 404, "/servers/s0/timeline?window=91d": 400} {
		if a := s.do(t, viewerToken, "GET /api/v1"+path, ""); a.status != want {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}
