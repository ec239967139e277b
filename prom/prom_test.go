package prom

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/agentopia/statussync"
)

func fleet(n int) func(statussync.ServerQuery) ([]statussync.ServerView, bool, statussync.Cursor) {
	var all []statussync.ServerView
	for i := range n {
		v := statussync.ServerView{Server: &statussync.Server{ID: fmt.Sprintf("s%05d", i), EnvironmentID: "e"}}
		v.Status = statussync.Status{State: statussync.StateRunning, Health: statussync.HealthHealthy, Latency: 20 * time.Millisecond}
		if i == 0 {
			v.Status = statussync.Status{State: statussync.StateError, Health: statussync.HealthUnhealthy, Marks: statussync.MarkMaintenance | statussync.MarkFlapping}
		}
		all = append(all, v)
	}
	return func(q statussync.ServerQuery) ([]statussync.ServerView, bool, statussync.Cursor) {
		from := 0
		for from < len(all) && all[from].Server.ID <= q.After {
			from++
		}
		to := min(len(all), from+q.Limit)
		return all[from:to], to < len(all), statussync.Cursor{}
	}
}

func TestCollect(t *testing.T) {
	at := time.Unix(1000, 0)
	c := New(Options{
		Servers: fleet(2),
		Environments: func() []statussync.EnvironmentView {
			return []statussync.EnvironmentView{{
				Environment: &statussync.Environment{ID: "e"}, Agent: statussync.AgentLate, LastHeartbeat: at, Now: at.Add(3 * time.Second),
			}}
		},
		Samples: func() []Sample {
			return []Sample{{Name: "ws_closed_total", Help: "WebSocket connections closed by us.", Counter: true, Labels: map[string]string{"code": "4008"}, Value: 2}}
		},
	})
	want := `
# HELP statussync_environment_agent_up 1 where the environment's agent reports in time, 0.5 where it is late, else 0.
# TYPE statussync_environment_agent_up gauge
statussync_environment_agent_up{environment_id="e"} 0.5
# HELP statussync_environment_heartbeat_age_seconds Age of the environment's last heartbeat.
# TYPE statussync_environment_heartbeat_age_seconds gauge
statussync_environment_heartbeat_age_seconds{environment_id="e"} 3
# HELP statussync_server_health Health of a server: 0 unknown, 1 healthy, 2 degraded, 3 unhealthy.
# TYPE statussync_server_health gauge
statussync_server_health{environment_id="e",server_id="s00000"} 3
statussync_server_health{environment_id="e",server_id="s00001"} 1
# HELP statussync_server_mark 1 for each mark that a server has: flapping, maintenance, override.
# TYPE statussync_server_mark gauge
statussync_server_mark{environment_id="e",mark="flapping",server_id="s00000"} 1
statussync_server_mark{environment_id="e",mark="maintenance",server_id="s00000"} 1
# HELP statussync_server_probe_latency_seconds Latency of the server's last answered probe.
# TYPE statussync_server_probe_latency_seconds gauge
statussync_server_probe_latency_seconds{environment_id="e",server_id="s00001"} 0.02
# HELP statussync_server_running 1 where the server's state is running, else 0.
# TYPE statussync_server_running gauge
statussync_server_running{environment_id="e",server_id="s00000"} 0
statussync_server_running{environment_id="e",server_id="s00001"} 1
# HELP statussync_server_series_truncated 1 where there are more servers than get series of their own.
# TYPE statussync_server_series_truncated gauge
statussync_server_series_truncated 0
# HELP statussync_servers Servers by availability.
# TYPE statussync_servers gauge
statussync_servers{availability="available"} 1
statussync_servers{availability="changing"} 0
statussync_servers{availability="limited"} 0
statussync_servers{availability="off"} 0
statussync_servers{availability="unavailable"} 1
statussync_servers{availability="unknown"} 0
# HELP statussync_ws_closed_total WebSocket connections closed by us.
# TYPE statussync_ws_closed_total counter
statussync_ws_closed_total{code="4008"} 2
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestSeriesAreBounded(t *testing.T) {
	c := New(Options{
		Servers: fleet(2500), Environments: func() []statussync.EnvironmentView { return nil }, MaxServers: 1200,
	})
	if got := testutil.CollectAndCount(c, "statussync_server_health"); got != 1200 {
		t.Errorf("%d servers have series, want 1200", got)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	if n, err := testutil.GatherAndCount(reg, "statussync_server_series_truncated"); err != nil || n != 1 {
		t.Error(n, err)
	}
}
