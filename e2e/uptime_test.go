//go:build linux

package e2e

import (
	"fmt"
	"math"
	"strconv"
	"testing"
	"time"
)

type uptimeJSON struct {
	Available   float64  `json:"available_seconds"`
	Unavailable float64  `json:"unavailable_seconds"`
	Changing    float64  `json:"changing_seconds"`
	Unknown     float64  `json:"unknown_seconds"`
	Off         float64  `json:"off_seconds"`
	Percent     *float64 `json:"availability_percent"`
	Incidents   int      `json:"incidents"`
	MTTR        *float64 `json:"mttr_seconds"`
	MTBF        *float64 `json:"mtbf_seconds"`
}

// uptimeOf counts a server's time by the journal, as somebody with a sheet of paper would: seconds by kind of status up
// to the newest entry, which must be a good one, and the incidents' lengths.
func uptimeOf(entries []*entryJSON, id string) (in map[string]float64, incidents []float64, last time.Time) {
	in = map[string]float64{}
	kind := ""
	var down time.Time
	for _, e := range entries {
		if e.ServerID != id || e.Current == nil {
			continue
		}
		if kind != "" {
			in[kind] += e.Timestamp.Sub(last).Seconds()
		}
		last = e.Timestamp
		switch c := e.Current; {
		case c.Health == "unhealthy" || c.State == "error":
			if kind = "down"; down.IsZero() {
				down = e.Timestamp
			}
			continue
		case c.State == "running" && c.Health == "healthy":
			kind = "up"
		case c.State == "starting" || c.State == "stopping":
			kind = "changing"
			continue
		case c.State == "stopped":
			kind = "off"
		default:
			kind = "unknown"
			continue
		}
		if !down.IsZero() {
			incidents = append(incidents, e.Timestamp.Sub(down).Seconds())
			down = time.Time{}
		}
	}
	return in, incidents, last
}

// TestUptime breaks and heals servers of the real service, kills it with SIGKILL and stops it cleanly in between. Uptime
// and incidents are those that the journal tells, a clean stop loses no probe, a kill at most those of the minute that
// runs, and none is counted twice.
func TestUptime(t *testing.T) {
	g := newTarget(t)
	ids := []string{"steady", "errors", "resets"}
	var servers list
	for _, id := range ids {
		servers = append(servers, obj{"id": id, "probe": g.probe("/" + id)})
	}
	s := startService(t, obj{"servers": servers})
	set := func(mode string) {
		t.Helper()
		for id, bad := range map[string]int{"errors": 503, "resets": modeReset} {
			if mode == "well" {
				g.set("/"+id, 200)
			} else {
				g.set("/"+id, bad)
			}
		}
		for _, id := range []string{"errors", "resets"} {
			if mode == "well" {
				s.waitStatus(20*time.Second, id, "running", "healthy", "ok")
			} else {
				s.waitStatus(20*time.Second, id, "", "unhealthy", "probe_failing")
			}
		}
	}
	counted := func() (n int64) {
		t.Helper()
		for _, id := range ids {
			var r struct {
				Total struct {
					Count int64 `json:"count"`
				} `json:"total"`
			}
			s.getJSON("/api/v1/servers/"+id+"/probes?window=1h&step=1h", &r)
			n += r.Total.Count
		}
		return n
	}
	s.waitStatus(20*time.Second, "steady", "running", "healthy", "ok")
	set("well")
	set("bad")
	set("well")
	s.stop()
	hits := g.hits.Load()
	s.start()
	s.ready()
	// What was in flight at the stop, or asked by the kernel again after a reset, gave no result.
	stored := counted()
	if stored > g.hits.Load() || stored < hits-int64(2*len(ids)) {
		t.Errorf("%d probes are counted after a clean stop, %d were answered", stored, hits)
	}
	// What was counted since the start is of the minute that runs, and may be lost.
	stored -= g.hits.Load() - hits
	s.waitStatus(20*time.Second, "errors", "running", "healthy", "ok")
	set("bad")
	s.kill()
	s.start()
	s.ready()
	if n := counted(); n < stored || n > g.hits.Load() {
		t.Errorf("%d probes are counted after a kill, %d were stored before, %d answered", n, stored, g.hits.Load())
	}
	set("well")
	set("bad")
	set("well")
	waitFor(t, 30*time.Second, "uptime to have seen the journal", func() (bool, string) {
		lag, ok := s.metric("statussync_uptime_lag_entries")
		return ok && lag == 0, fmt.Sprint(lag)
	})
	entries := s.updates("", "")
	for _, id := range ids {
		want, incidents, last := uptimeOf(entries, id)
		before := time.Now()
		var u uptimeJSON
		s.getJSON("/api/v1/servers/"+id+"/uptime?window=1h", &u)
		after := time.Now()
		same := func(name string, got, want float64) {
			t.Helper()
			if math.Abs(got-want) > 0.0015 { // numbers have milliseconds
				t.Errorf("%s: %s is %v, the journal says %v", id, name, got, want)
			}
		}
		same("unavailable", u.Unavailable, want["down"])
		same("changing", u.Changing, want["changing"])
		same("off", u.Off, want["off"])
		if lo, hi := want["up"]+before.Sub(last).Seconds()-1, want["up"]+after.Sub(last).Seconds()+1; u.Available < lo || u.Available > hi {
			t.Errorf("%s: available is %v, the journal says %v to %v", id, u.Available, lo, hi)
		}
		same("all", u.Available+u.Unavailable+u.Changing+u.Off+u.Unknown, 3600)
		if u.Incidents != len(incidents) || (id != "steady") != (u.Incidents >= 3) {
			t.Errorf("%s: %d incidents, the journal has %d", id, u.Incidents, len(incidents))
		}
		if len(incidents) > 0 {
			sum := 0.0
			for _, d := range incidents {
				sum += d
			}
			same("MTTR", *u.MTTR, sum/float64(len(incidents)))
			same("MTBF", *u.MTBF, u.Available/float64(len(incidents)))
			share := 100 * u.Available / (u.Available + u.Unavailable + u.Changing)
			if u.Percent == nil || math.Abs(*u.Percent-share) > 0.001 {
				t.Errorf("%s: availability %v, want %v", id, u.Percent, share)
			}
		}
		var p pageJSON[struct {
			Duration float64 `json:"duration_seconds"`
			Cause    string  `json:"cause"`
		}]
		s.getJSON("/api/v1/servers/"+id+"/incidents?window=1h", &p)
		if len(p.Items) != len(incidents) {
			t.Fatalf("%s: %d incidents are listed, the journal has %d", id, len(p.Items), len(incidents))
		}
		for i, x := range p.Items {
			same("incident "+strconv.Itoa(i), x.Duration, incidents[len(incidents)-1-i])
		}
		if id == "errors" && p.Items[0].Cause != "http_503" {
			t.Errorf("%+v", p.Items[0])
		}
	}
	if code, out, errs := cli(t, nil, "uptime", "errors", "--window", "1h", "--server", s.base); code != 0 {
		t.Errorf("statussync uptime: %d %s%s", code, out, errs)
	}
}
