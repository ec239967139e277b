package postgres

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/postgres/pgtest"
)

// outage is a way of losing the database and getting it back.
type outage struct {
	name string
	away func()
	back func() error
	// through is whether the rows can be changed meanwhile by others.
	through bool
}

// proxied returns a DSN that leads through a proxy, and the proxy.
func proxied(t testing.TB, dsn string) (string, *toxiproxy.Proxy) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	log := zerolog.Nop()
	metrics := toxiproxy.NewMetricsContainer(nil)
	server := toxiproxy.NewServer(metrics, log)
	p := toxiproxy.NewProxy(server, "database", "127.0.0.1:0", u.Host)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	u.Host = p.Listen
	return u.String(), p
}

// blackHole swallows everything in both directions, and leaves connections open.
func blackHole(t testing.TB, p *toxiproxy.Proxy) (away func(), back func() error) {
	add := func() {
		for _, direction := range []string{"upstream", "downstream"} {
			if _, err := p.Toxics.AddToxicJson(strings.NewReader(`{"type":"timeout","stream":"` + direction + `","attributes":{"timeout":0}}`)); err != nil {
				t.Error(err)
			}
		}
	}
	remove := func() error {
		p.Toxics.ResetToxics(context.Background())
		return nil
	}
	return add, remove
}

// TestOutages loses the database in every way while agents report and rows change.
func TestOutages(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t)
	direct := migrated(t, c, 5, 4)
	dsn, proxy := proxied(t, direct)
	hole, fill := blackHole(t, proxy)
	r := startRegistry(t, dsn, func(o *Options) { o.Logger = testLog(t) })
	r.dsn = direct
	r.until("all is read and followed", func() bool { return len(r.servers()) == 20 && r.Status().Feed == statussync.FeedLive })
	for round, o := range []outage{
		{"black hole", hole, fill, true},
		{"frozen", c.Freeze, func() error { c.Thaw(); return nil }, false},
		{"killed", c.Kill, c.Up, false},
		{"reset", func() { proxy.Stop() }, func() error { return proxy.Start() }, true},
	} {
		t.Run(o.name, func(t *testing.T) {
			word := []string{"exited", "running"}[round%2]
			r.beat(1, `{"tool_statuses":[{"names":["s1"],"state":"`+[]string{"running", "exited"}[round%2]+`"}]}`)
			r.written()
			o.away()
			r.until("it is noticed", func() bool { return r.Status().Feed == statussync.FeedDown })
			reports := r.Status().WriteBack.Reports
			for i := range 50 {
				began := time.Now()
				for e := 1; e <= 5; e++ {
					r.beat(e, fmt.Sprintf(`{"dtma_version":"v%d.%d","tool_statuses":[{"names":["s1"],"state":%q},{"names":["s2"],"state":"running","status":"Up %d hours"}]}`, round, i, word, i+2))
				}
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("reports were held up for %v", took)
				}
			}
			if w := r.Status().WriteBack; w.Reports != reports+250 || w.Queued > 15 {
				t.Errorf("%+v", w)
			}
			if o.through {
				r.exec("update account_tool_instances set status_on_toolbox = 'error' where id = $1", instID(20))
			}
			if err := o.back(); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			if !o.through {
				r.exec("update account_tool_instances set status_on_toolbox = 'error' where id = $1", instID(20))
			}
			r.until("what was changed meanwhile is seen", func() bool { return r.state(instID(20)) == "error/unhealthy" })
			t.Logf("seen %v after its return", time.Since(back).Round(time.Millisecond))
			r.until("the feed is live", func() bool { return r.Status().Feed == statussync.FeedLive })
			r.until("the rows hold the newest report", func() bool {
				return r.row("select dtma_last_known_version, (select status_on_toolbox from account_tool_instances where id = $2), (select runtime_details->>'status' from account_tool_instances where id = $3) from account_tool_environments where id = $1",
					envID(1), instID(1), instID(2)) == fmt.Sprintf("v%d.49|%s|Up 51 hours", round, word)
			})
			// And the feed tells again.
			r.exec("update account_tool_instances set status_on_toolbox = 'stopped' where id = $1", instID(20))
			r.until("the feed tells", func() bool { return r.state(instID(20)) == "stopped/unknown" })
			r.mu.Lock()
			n := len(r.connected)
			up, before := r.connected[n-1], r.connected[n-2]
			r.mu.Unlock()
			if !up || before {
				t.Errorf("told of the connection: %v", r.connected)
			}
		})
	}
	if n := r.Status().Reconnects; n < 4 {
		t.Error(n, "reconnects")
	}
}

// TestStartWithoutDatabase starts while there is none.
func TestStartWithoutDatabase(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	r := startRegistry(t, "postgres://x@127.0.0.1:"+strconv.Itoa(port)+"/x?sslmode=disable", nil)
	r.until("it says so", func() bool { s := r.Status(); return s.Feed == statussync.FeedDown && s.LastError != "" })
	if _, _, err := r.Sync(t.Context()); statussync.CodeOf(err) != statussync.CodeUnavailable {
		t.Error(err)
	}
	r.Report(&statussync.AgentReport{EnvironmentID: "nobody"})
	r.stop()
}

// TestConnectionEnds ends the connections of the listener alone, as an administrator may: nothing is missed.
func TestConnectionEnds(t *testing.T) {
	t.Parallel()
	r := readyRegistry(t, 1, 3, nil)
	for i := range 5 {
		r.exec("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
		word, want := "error", "error/unhealthy"
		if i%2 == 1 {
			word, want = "stopped", "stopped/unknown"
		}
		r.exec("update account_tool_instances set status_on_toolbox = $1::account_tool_installation_status_enum where id = $2", word, instID(1))
		r.until("the change is seen", func() bool { return r.state(instID(1)) == want })
	}
	r.until("the feed is live again", func() bool { return r.Status().Feed == statussync.FeedLive })
}
