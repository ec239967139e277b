// Package prom shows the service to Prometheus: the fleet's statuses and the service's own numbers.
//
// Collecting reads from memory only and never blocks the hub. The number of series is bounded: three per server and one
// for each mark that it has just then (at most three), up to Options.MaxServers servers (the first by id), and a fixed
// number beside them. The registerer is injected.
package prom

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentopia/statussync"
)

// DefaultMaxServers is how many servers get series of their own where Options does not say otherwise.
const DefaultMaxServers = 10_000

// Options configures New.
type Options struct {
	// Servers answers queries of the current view; required. It must be safe for concurrent use and not block.
	Servers func(statussync.ServerQuery) (items []statussync.ServerView, more bool, at statussync.Cursor)
	// Environments lists the environments; required, like Servers.
	Environments func() []statussync.EnvironmentView
	// Samples returns the service's own numbers at this moment; nil: none.
	Samples func() []Sample
	// MaxServers bounds the servers that get series of their own; 0: DefaultMaxServers.
	MaxServers int
}

// Sample is one number of the service itself. Samples of one Name have the same Help, Counter and label names.
type Sample struct {
	Name    string // with its unit, without the prefix "statussync_"
	Help    string
	Counter bool // else a gauge
	Labels  map[string]string
	Value   float64
	// Histogram, where not nil, replaces Value: Counts below or at each upper bound, all together, and the sum.
	Histogram *Histogram
}

// Histogram is a distribution: Below[bound] counts what is at most bound, cumulatively.
type Histogram struct {
	Below map[float64]uint64
	Count uint64
	Sum   float64
}

var healthCode = map[statussync.Health]float64{
	statussync.HealthUnknown: 0, statussync.HealthHealthy: 1, statussync.HealthDegraded: 2, statussync.HealthUnhealthy: 3,
}

var agentUp = map[statussync.AgentState]float64{
	statussync.AgentOK: 1, statussync.AgentLate: 0.5,
}

var availabilities = []statussync.Availability{
	statussync.Unavailable, statussync.Available, statussync.Limited, statussync.Changing, statussync.Off,
	statussync.AvailabilityUnknown,
}

type collector struct {
	o                                       Options
	health, running, latency, mark          *prometheus.Desc
	servers, agent, heartbeatAge, truncated *prometheus.Desc
}

// New returns a collector of everything that Options gives. It is safe for concurrent use.
func New(o Options) prometheus.Collector {
	if o.MaxServers <= 0 {
		o.MaxServers = DefaultMaxServers
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("statussync_"+name, help, labels, nil)
	}
	return &collector{
		o:            o,
		health:       desc("server_health", "Health of a server: 0 unknown, 1 healthy, 2 degraded, 3 unhealthy.", "server_id", "environment_id"),
		running:      desc("server_running", "1 where the server's state is running, else 0.", "server_id", "environment_id"),
		latency:      desc("server_probe_latency_seconds", "Latency of the server's last answered probe.", "server_id", "environment_id"),
		mark:         desc("server_mark", "1 for each mark that a server has: flapping, maintenance, override.", "server_id", "environment_id", "mark"),
		servers:      desc("servers", "Servers by availability.", "availability"),
		agent:        desc("environment_agent_up", "1 where the environment's agent reports in time, 0.5 where it is late, else 0.", "environment_id"),
		heartbeatAge: desc("environment_heartbeat_age_seconds", "Age of the environment's last heartbeat.", "environment_id"),
		truncated:    desc("server_series_truncated", "1 where there are more servers than get series of their own."),
	}
}

// Describe sends nothing: the set of metrics depends on what there is, so the collector is unchecked.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect reads the current view.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counts := map[statussync.Availability]float64{}
	n, cut := 0, 0.0
	for q := (statussync.ServerQuery{Limit: 1000}); ; {
		items, more, _ := c.o.Servers(q)
		for i := range items {
			v := &items[i]
			counts[v.Status.Availability()]++
			if n++; n > c.o.MaxServers {
				cut = 1
				continue
			}
			id, env := v.Server.ID, v.Server.EnvironmentID
			gauge(c.health, healthCode[v.Status.Health], id, env)
			up := 0.0
			if v.Status.State == statussync.StateRunning {
				up = 1
			}
			gauge(c.running, up, id, env)
			for _, m := range v.Status.Marks.Strings() {
				gauge(c.mark, 1, id, env, m)
			}
			if v.Status.Latency > 0 {
				gauge(c.latency, v.Status.Latency.Seconds(), id, env)
			}
		}
		if !more || len(items) == 0 {
			break
		}
		q.After = items[len(items)-1].Server.ID
	}
	gauge(c.truncated, cut)
	for _, a := range availabilities {
		gauge(c.servers, counts[a], string(a))
	}
	for _, e := range c.o.Environments() {
		if e.Agent == statussync.AgentNone {
			continue
		}
		gauge(c.agent, agentUp[e.Agent], e.Environment.ID)
		if !e.LastHeartbeat.IsZero() {
			gauge(c.heartbeatAge, max(0, e.Now.Sub(e.LastHeartbeat).Seconds()), e.Environment.ID)
		}
	}
	if c.o.Samples == nil {
		return
	}
	for _, s := range c.o.Samples() {
		kind := prometheus.GaugeValue
		if s.Counter {
			kind = prometheus.CounterValue
		}
		names, values := make([]string, 0, len(s.Labels)), make([]string, 0, len(s.Labels))
		for k, v := range s.Labels {
			names, values = append(names, k), append(values, v)
		}
		desc := prometheus.NewDesc("statussync_"+s.Name, s.Help, names, nil)
		var m prometheus.Metric
		var err error
		if h := s.Histogram; h != nil {
			m, err = prometheus.NewConstHistogram(desc, h.Count, h.Sum, h.Below, values...)
		} else {
			m, err = prometheus.NewConstMetric(desc, kind, s.Value, values...)
		}
		if err != nil {
			m = prometheus.NewInvalidMetric(prometheus.NewInvalidDesc(err), err)
		}
		ch <- m
	}
}
