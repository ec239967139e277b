//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/agentopia/statussync/postgres/pgtest"
	"github.com/agentopia/statussync/supabase/realtimetest"
)

// The ids of the platform's rows.
const (
	ownerID = "00000000-0000-4000-8000-000000000001"
	agentID = "30000000-0000-4000-8000-000000000001"
)

func envID(n int) string      { return fmt.Sprintf("10000000-0000-4000-8000-%012d", n) }
func instanceID(n int) string { return fmt.Sprintf("20000000-0000-4000-8000-%012d", n) }
func rowToken(env int) string { return fmt.Sprintf("token-of-environment-%d", env) }

// platform is a platform's database, which the service is connected to through a wire that can be cut.
type platform struct {
	t    testing.TB
	dsn  string // direct
	wire *cable
}

// newPlatform makes a database with a number of environments, and instances shared out among them in turn.
func newPlatform(t testing.TB, c *pgtest.Cluster, envs, instances int) *platform {
	t.Helper()
	p := &platform{t: t, dsn: c.Database(t)}
	p.wire = newCable(t, fmt.Sprintf("127.0.0.1:%d", c.Port))
	p.exec(`insert into auth.users (id, email) values ($1, 'owner@example.com')`, ownerID)
	for e := 1; e <= envs; e++ {
		p.exec(`insert into account_tool_environments (id, user_id, name, status, dtma_bearer_token) values ($1, $2, $3, 'awaiting_heartbeat', $4)`, envID(e), ownerID, fmt.Sprintf("box-%d", e), rowToken(e))
	}
	for i := 1; i <= instances; i++ {
		p.instance(i, 1+(i-1)%envs, "running")
	}
	return p
}

func (p *platform) instance(n, env int, word string) {
	p.t.Helper()
	p.exec(`insert into account_tool_instances (id, account_tool_environment_id, instance_name_on_toolbox, status_on_toolbox, mcp_server_type, mcp_transport_type)
values ($1, $2, $3, $4::text::account_tool_installation_status_enum, 'custom', 'http')`, instanceID(n), envID(env), toolName(n), word)
}

func toolName(n int) string { return fmt.Sprintf("tool-%d", n) }

func (p *platform) exec(sql string, args ...any) {
	p.t.Helper()
	pgtest.Exec(p.t, p.dsn, sql, args...)
}

// value reads one value as text.
func (p *platform) value(sql string, args ...any) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.dsn)
	if err != nil {
		p.t.Fatal(err)
	}
	defer conn.Close(ctx)
	var v *string
	if err := conn.QueryRow(ctx, sql, args...).Scan(&v); err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
	if v == nil {
		return ""
	}
	return *v
}

// address is the DSN through the wire.
func (p *platform) address() string {
	u, err := url.Parse(p.dsn)
	if err != nil {
		p.t.Fatal(err)
	}
	u.Host = p.wire.addr()
	return u.String()
}

// rows says what of the platform's database the service's configuration has.
func (p *platform) conf(more obj) obj {
	c := obj{"dsn": p.address(), "resync": "30s"}
	for k, v := range more {
		c[k] = v
	}
	return obj{"registries": list{obj{"postgres": c}}}
}

// cable forwards TCP connections, until it is told to swallow what is sent on them.
type cable struct {
	ln    net.Listener
	to    string
	wg    sync.WaitGroup
	mu    sync.Mutex
	black bool
	conns map[net.Conn]bool
}

func newCable(t testing.TB, to string) *cable {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{ln: ln, to: to, conns: map[net.Conn]bool{}}
	c.wg.Go(c.accept)
	t.Cleanup(func() {
		ln.Close()
		c.mu.Lock()
		for conn := range c.conns {
			conn.Close()
		}
		c.mu.Unlock()
		c.wg.Wait()
	})
	return c
}

func (c *cable) addr() string { return c.ln.Addr().String() }

// setBlack makes connections stay open with nothing getting through, in both directions; new ones are taken, and hang.
func (c *cable) setBlack(black bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.black = black
	if !black { // what hung is lost, as after a real hole
		for conn := range c.conns {
			conn.Close()
		}
	}
}

func (c *cable) isBlack() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.black
}

func (c *cable) keep(conn net.Conn, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if on {
		c.conns[conn] = true
	} else {
		delete(c.conns, conn)
	}
}

func (c *cable) accept() {
	for {
		in, err := c.ln.Accept()
		if err != nil {
			return
		}
		c.keep(in, true)
		c.wg.Go(func() {
			defer func() { in.Close(); c.keep(in, false) }()
			if c.isBlack() {
				io.Copy(io.Discard, in) // until it gives up, or the hole is gone
				return
			}
			out, err := net.Dial("tcp", c.to)
			if err != nil {
				return
			}
			c.keep(out, true)
			defer func() { out.Close(); c.keep(out, false) }()
			c.wg.Go(func() { c.copy(in, out); in.Close() })
			c.copy(out, in)
			out.Close()
		})
	}
}

func (c *cable) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !c.isBlack() {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// registryJSON is a registry in /readyz.
type registryJSON struct {
	Name        string `json:"name"`
	Feed        string `json:"feed"`
	Detail      string `json:"detail"`
	Servers     int    `json:"servers"`
	FaultsCount int    `json:"faults_count"`
	Faults      []struct {
		ID     string `json:"id"`
		Detail string `json:"detail"`
	} `json:"faults"`
	Missing   []string `json:"missing"`
	StatusLog *struct {
		Behind uint64 `json:"behind"`
		Rows   uint64 `json:"rows"`
	} `json:"status_log"`
}

// waitFeed waits until the first registry's feed is in a state.
func (s *service) waitFeed(states ...string) registryJSON {
	s.t.Helper()
	var r registryJSON
	waitFor(s.t, 60*time.Second, "the feed "+strings.Join(states, " or "), func() (bool, string) {
		var v struct {
			Registries []registryJSON `json:"registries"`
		}
		_, b := s.request("GET", "/readyz", nil)
		decode(s.t, b, &v)
		if len(v.Registries) == 0 {
			return false, string(b)
		}
		r = v.Registries[0]
		for _, f := range states {
			if r.Feed == f {
				return true, ""
			}
		}
		return false, string(b)
	})
	return r
}

// waitServer waits until a server is known.
func (s *service) waitServer(id string) {
	s.t.Helper()
	waitFor(s.t, 60*time.Second, "the server "+id, func() (bool, string) {
		code, b := s.request("GET", "/api/v1/servers/"+id, nil)
		return code == 200, clip(b)
	})
}

// migrate installs the triggers.
func (p *platform) migrate() {
	p.t.Helper()
	if code, out, errs := cli(p.t, []string{"DATABASE_URL=" + p.dsn}, "migrate", "--apply"); code != 0 {
		p.t.Fatalf("migrate: %d %s%s", code, out, errs)
	}
	p.exec("checkpoint") // the test's cluster does not wait for its disk, and must not lose this when it is killed
}

func TestPlatformDatabase(t *testing.T) {
	cluster := pgtest.Start(t)
	t.Run("rows are servers", func(t *testing.T) { testRows(t, cluster) })
	t.Run("a heartbeat with a row's token", func(t *testing.T) { testRowHeartbeats(t, cluster) })
	t.Run("hostile rows", func(t *testing.T) { testHostileRows(t, cluster) })
	t.Run("ids that conflict", func(t *testing.T) { testRowConflicts(t, cluster) })
	t.Run("a role with few rights", func(t *testing.T) { testLeastRights(t, cluster) })
	t.Run("any table", func(t *testing.T) { testAnyTable(t, cluster) })
	t.Run("shadow", func(t *testing.T) { testShadow(t, cluster) })
	t.Run("realtime", func(t *testing.T) { testRealtime(t, cluster) })
	t.Run("black-holed", func(t *testing.T) {
		p := newPlatform(t, cluster, 2, 4)
		testOutage(t, p, outage{
			begin: func() { p.wire.setBlack(true) }, end: func() { p.wire.setBlack(false) }, reachable: true,
		})
	})
	t.Run("frozen", func(t *testing.T) {
		p := newPlatform(t, cluster, 2, 4)
		testOutage(t, p, outage{begin: cluster.Freeze, end: cluster.Thaw})
	})
	t.Run("killed, and the service restarted meanwhile", func(t *testing.T) { // the last: it takes the others' connections down
		p := newPlatform(t, cluster, 2, 4)
		testOutage(t, p, outage{begin: cluster.Kill, end: func() {
			if err := cluster.Up(); err != nil {
				t.Fatal(err)
			}
		}, restart: true})
	})
}

// testRows: what the rows say is live, and what is changed in them reaches a subscriber of the WebSocket.
func testRows(t *testing.T, cluster *pgtest.Cluster) {
	p := newPlatform(t, cluster, 2, 5)
	p.migrate()
	s := startService(t, p.conf(nil))
	r := s.waitFeed("live")
	if r.Servers != 5 || len(r.Missing) > 0 {
		t.Errorf("%+v", r)
	}
	all, cursor := s.servers("")
	if len(all) != 5 || all[instanceID(1)].EnvironmentID != envID(1) || all[instanceID(1)].Status.State != "running" {
		t.Fatalf("%+v", all)
	}
	ws := s.ws("/api/v1/ws")
	defer ws.Close()
	send(t, ws, obj{"type": "subscribe", "channel": "mcp_server_status", "cursor": cursor, "filters": list{obj{"server_ids": list{instanceID(3)}}}})
	expect(t, ws, "subscribed")
	p.exec(`update account_tool_instances set status_on_toolbox = 'error_runtime', instance_error_message = 'out of memory' where id = $1`, instanceID(3))
	f := expect(t, ws, "status_update")
	e, err := decodeEntry(f.Data)
	if err != nil || e.ServerID != instanceID(3) || e.Current.State != "error" || e.Source != "dtma" {
		t.Errorf("%v, %v", e, err)
	}
	// An agent's connections, live.
	p.exec(`insert into agents (id, user_id, name) values ($1, $2, 'planner')`, agentID, ownerID)
	p.exec(`insert into agent_mcp_connections (agent_id, mcp_server_instance_id, is_active) values ($1, $2, true), ($1, $3, true), ($1, $4, false)`, agentID, instanceID(1), instanceID(3), instanceID(2))
	s.postHeartbeat(rowToken(1), heartbeat(container(toolName(1), "running", "Up 2 hours"), container(toolName(3), "exited", "Exited (137) 5 minutes ago")))
	s.waitStatus(60*time.Second, instanceID(1), "running", "healthy", "ok")
	var c struct {
		Cursor string `json:"cursor"`
		Items  []struct {
			ServerID string      `json:"server_id"`
			Status   string      `json:"status"`
			Server   *statusJSON `json:"server_status"`
		} `json:"items"`
	}
	s.getJSON("/api/v1/connections?agent_id="+agentID, &c)
	got := map[string]string{}
	for _, x := range c.Items {
		got[x.ServerID] = x.Status
	}
	if len(got) != 3 || got[instanceID(1)] != "connected" || got[instanceID(3)] != "error" || got[instanceID(2)] != "disconnected" || c.Cursor == "" {
		t.Errorf("connections: %+v", c)
	}
	if code, b := s.request("GET", "/api/v1/connections?agent_id=30000000-0000-4000-8000-000000000009", nil); code != 404 {
		t.Errorf("the connections of nobody: %d %s", code, b)
	}
	if code, b := s.request("GET", "/api/v1/connections?agent_id=no-uuid", nil); code != 400 && code != 404 && code != 422 {
		t.Errorf("the connections of no id: %d %s", code, b)
	}
	if code, out, errs := cli(t, []string{"STATUSSYNC_SERVER=" + s.base}, "connections", "--agent", agentID); code != 0 || !strings.Contains(out, "connected") {
		t.Errorf("connections: %d %s%s", code, out, errs)
	}
	// A row that goes is a server that goes; what the platform's rows define can only be changed there.
	p.exec(`delete from account_tool_instances where id = $1`, instanceID(5))
	waitFor(t, 60*time.Second, "the removal", func() (bool, string) {
		code, b := s.request("GET", "/api/v1/servers/"+instanceID(5), nil)
		return code == 404, string(b)
	})
	if code, b := s.request("DELETE", "/api/v1/servers/"+instanceID(1), nil); code != 409 || !strings.Contains(string(b), "the platform's database") {
		t.Errorf("a delete by API: %d %s", code, b)
	}
	// What the log and the answers show has no password in it.
	if b, err := os.ReadFile(s.logFile); err != nil || strings.Contains(string(b), rowToken(1)) {
		t.Errorf("a token in the log: %v", err)
	}
}

// testRowHeartbeats: an agent's heartbeat is taken with its row's token, and written into the rows of its environment alone.
func testRowHeartbeats(t *testing.T, cluster *pgtest.Cluster) {
	p := newPlatform(t, cluster, 2, 4)
	s := startService(t, p.conf(obj{"resync": "1s"}))
	s.waitServer(instanceID(4))
	rows := func() string {
		return p.value(`select string_agg(concat_ws(',', status_on_toolbox, last_heartbeat_from_dtma, runtime_details), ';' order by id) from account_tool_instances`) +
			p.value(`select string_agg(concat_ws(',', status, last_heartbeat_at, dtma_last_known_version), ';' order by id) from account_tool_environments`)
	}
	before := rows()
	for _, token := range []string{"", "nobody's-token", rowToken(1) + "x"} {
		if code, b := s.request("POST", "/heartbeat", heartbeat(container(toolName(1), "exited", "Exited (1) 1 second ago")), "Authorization", "Bearer "+token); code != 401 && code != 429 {
			t.Errorf("token %q: %d %s", token, code, b)
		}
	}
	// The other environment's ids, and its containers' names, mean nothing in this one's mouth.
	foreign, err := jsonOf(obj{"tool_statuses": list{
		obj{"account_tool_instance_id": instanceID(2), "instance_name_on_toolbox": toolName(2), "status_on_toolbox": "error"},
		container(toolName(1), "running", "Up 3 minutes"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.postHeartbeat(rowToken(1), foreign)
	s.waitStatus(60*time.Second, instanceID(1), "running", "healthy", "ok")
	waitFor(t, 60*time.Second, "the write-back", func() (bool, string) { v := rows(); return v != before, v })
	if got := p.value(`select status_on_toolbox::text || coalesce(last_heartbeat_from_dtma::text, '') from account_tool_instances where id = $1`, instanceID(2)); got != "running" {
		t.Errorf("a foreign row is %q", got)
	}
	if got := p.value(`select status from account_tool_environments where id = $1`, envID(1)); got != "active" {
		t.Errorf("the environment is %q", got)
	}
	if got := p.value(`select status || coalesce(last_heartbeat_at::text, '') from account_tool_environments where id = $1`, envID(2)); got != "awaiting_heartbeat" {
		t.Errorf("the other environment is %q", got)
	}
	if st := s.status(instanceID(2)); st.State != "running" || st.Health == "healthy" {
		t.Errorf("a foreign server is %+v", st)
	}
	// A token that is exchanged in the row counts from the next read on, and the old one no more.
	p.exec(`update account_tool_environments set dtma_bearer_token = 'the-next-token' where id = $1`, envID(1))
	waitFor(t, 60*time.Second, "the new token", func() (bool, string) {
		code, b := s.request("POST", "/heartbeat", heartbeat(), "Authorization", "Bearer the-next-token")
		return code == 204, fmt.Sprint(code, string(b))
	})
	if code, _ := s.request("POST", "/heartbeat", heartbeat(), "Authorization", "Bearer "+rowToken(1)); code != 401 && code != 429 {
		t.Errorf("the old token: %d", code)
	}
}

// testHostileRows: what rows say of addresses leads nowhere that it may not.
func testHostileRows(t *testing.T, cluster *pgtest.Cluster) {
	p := newPlatform(t, cluster, 1, 0)
	trap, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var caught atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := trap.Accept()
			if err != nil {
				return
			}
			caught.Add(1)
			c.Close()
		}
	}()
	t.Cleanup(func() { trap.Close(); <-done })
	port := netip.MustParseAddrPort(trap.Addr().String()).Port()
	for i, address := range []string{"127.0.0.1", "localhost", "169.254.169.254", "0.0.0.0", "[::1]", "10.0.0.1@127.0.0.1", "::ffff:127.0.0.1"} {
		p.exec(`insert into account_tool_environments (id, user_id, name, public_ip_address, status, dtma_bearer_token) values ($1, $2, $3, $3, 'active', $4)`, envID(10+i), ownerID, address, rowToken(10+i))
		for j, path := range []string{"/mcp", fmt.Sprintf("@127.0.0.1:%d/", port), fmt.Sprintf("//127.0.0.1:%d/x", port), fmt.Sprintf("http://127.0.0.1:%d/", port), "/a\r\nHost: evil", strings.Repeat("/x", 5000)} {
			p.exec(`insert into account_tool_instances (id, account_tool_environment_id, instance_name_on_toolbox, status_on_toolbox, mcp_server_type, mcp_transport_type, mcp_endpoint_path)
values ($1, $2, $3, 'running', 'custom', 'http', $4)`, instanceID(100*(i+1)+j), envID(10+i), toolName(j), path)
		}
	}
	s := startService(t, p.conf(obj{"resync": "1s"}))
	s.waitServer(instanceID(100))
	// With a published port their addresses are complete.
	for i := range 7 {
		var cs []obj
		for j := range 6 {
			c := container(toolName(j), "running", "Up 2 hours")
			c["ports"] = list{obj{"ip": "0.0.0.0", "private_port": 8080, "public_port": port, "type": "tcp"}}
			cs = append(cs, c)
		}
		s.postHeartbeat(rowToken(10+i), heartbeat(cs...))
	}
	// Wait until each that has an address was tried, on demand too.
	s.request("POST", "/api/v1/probes", []byte("{}"))
	s.request("POST", "/api/v1/sync", []byte("{}"))
	if n := caught.Load(); n > 0 {
		t.Errorf("%d connections were made to an address of a row that is not public", n)
	}
}

// testRowConflicts: what the configuration defines counts; the row is named, and comes in when the id is free.
func testRowConflicts(t *testing.T, cluster *pgtest.Cluster) {
	p := newPlatform(t, cluster, 1, 2)
	conf := p.conf(obj{"resync": "1s"})
	conf["servers"] = list{obj{"id": instanceID(1), "name": "ours", "probe": obj{"kind": "none"}}}
	s := startService(t, conf)
	s.waitServer(instanceID(2))
	var v struct {
		Name   string `json:"name"`
		Origin string `json:"origin"`
	}
	s.getJSON("/api/v1/servers/"+instanceID(1), &v)
	if v.Origin != "config" || v.Name != "ours" {
		t.Fatalf("%+v", v)
	}
	r := s.waitFeed("polling", "live")
	if r.FaultsCount == 0 || r.Faults[0].ID != instanceID(1) {
		t.Errorf("%+v", r)
	}
	code, b := s.request("POST", "/api/v1/sync", []byte("{}"))
	if code != 200 || !strings.Contains(string(b), `"server_id":"`+instanceID(1)+`"`) {
		t.Errorf("sync: %d %s", code, b)
	}
	s.configure(p.conf(obj{"resync": "1s"}))
	if code, b := s.request("POST", "/api/v1/reload", []byte("{}")); code != 200 {
		t.Fatalf("reload: %d %s", code, b)
	}
	waitFor(t, 60*time.Second, "the row", func() (bool, string) {
		code, b := s.request("GET", "/api/v1/servers/"+instanceID(1), nil)
		return code == 200 && strings.Contains(string(b), `"origin":"postgres"`), string(b)
	})
	// The other way round, too: at a start the configuration takes what was the row's.
	s.configure(conf)
	s.stop()
	s.start()
	s.ready()
	if s.getJSON("/api/v1/servers/"+instanceID(1), &v); v.Origin != "config" {
		t.Errorf("%+v", v)
	}
}

// testRealtime: changes come through Supabase Realtime.
func testRealtime(t *testing.T, cluster *pgtest.Cluster) {
	p := newPlatform(t, cluster, 1, 2)
	double := realtimetest.New(realtimetest.Options{APIKey: "project-key"})
	srv := httptest.NewServer(double)
	t.Cleanup(func() { double.Close(); srv.Close() })
	s := startService(t, obj{"registries": list{obj{"supabase": obj{"url": srv.URL, "api_key": "project-key", "dsn": p.address(), "resync": "10m"}}}})
	s.waitFeed("live")
	p.exec(`update account_tool_instances set status_on_toolbox = 'stopped' where id = $1`, instanceID(1))
	double.Change(realtimetest.Change{Schema: "public", Table: "account_tool_instances", Type: "UPDATE", Record: obj{"id": instanceID(1)}, OldRecord: obj{"id": instanceID(1)}})
	s.waitStatus(60*time.Second, instanceID(1), "stopped", "", "")
	// While the server is away a change is missed; it is seen once the channel is live again.
	double.SetDown(true)
	s.waitFeed("polling")
	p.exec(`update account_tool_instances set status_on_toolbox = 'stopped' where id = $1`, instanceID(2))
	double.SetDown(false)
	s.waitStatus(60*time.Second, instanceID(2), "stopped", "", "")
	if b, err := os.ReadFile(s.logFile); err != nil || strings.Contains(string(b), "project-key") {
		t.Errorf("the key is in the log: %v", err)
	}
}

// outage is a way in which a database goes away.
type outage struct {
	begin, end func()
	reachable  bool // directly: only the service's way to it is cut
	restart    bool // the service is restarted meanwhile
}

// testOutage: while the database is away agents are answered and statuses move on; when it is back nothing is missing.
func testOutage(t *testing.T, p *platform, o outage) {
	p.migrate()
	s := startService(t, p.conf(nil))
	s.waitFeed("live")
	crash := func(n int) []byte {
		return heartbeat(container(toolName(1), "running", "Up 2 hours"), container(toolName(3), "exited", fmt.Sprintf("Exited (%d) 5 seconds ago", n)))
	}
	up := heartbeat(container(toolName(1), "running", "Up 2 hours"), container(toolName(3), "running", "Up 1 second"))
	s.postHeartbeat(rowToken(1), up)
	s.waitStatus(60*time.Second, instanceID(3), "running", "healthy", "ok")

	o.begin()
	ended := false
	defer func() {
		if !ended {
			o.end()
		}
	}()
	s.waitFeed("down")
	for n := range 4 {
		s.postHeartbeat(rowToken(1), crash(n+1))
		s.waitStatus(60*time.Second, instanceID(3), "stopped", "unhealthy", "crashed")
		if o.restart && n == 1 {
			s.stop()
			s.start()
			s.ready()
		}
		s.postHeartbeat(rowToken(1), up)
		s.waitStatus(60*time.Second, instanceID(3), "running", "healthy", "ok")
	}
	s.postHeartbeat(rowToken(1), crash(9))
	s.waitStatus(60*time.Second, instanceID(3), "stopped", "unhealthy", "crashed")
	if code, _ := s.request("POST", "/heartbeat", up, "Authorization", "Bearer nobody's"); code != 401 {
		t.Errorf("a wrong token: %d", code)
	}
	if code, r := s.readyz(); code != 200 || r.Status != "degraded" {
		t.Errorf("/readyz: %d %+v", code, r)
	}
	if code, b := s.request("GET", "/api/v1/connections?agent_id="+agentID, nil); code != 503 {
		t.Errorf("connections: %d %s", code, b)
	}
	if o.reachable {
		p.instance(7, 2, "running")
	}
	o.end()
	ended = true
	back := time.Now()
	if !o.reachable {
		p.instance(7, 2, "running")
	}
	s.waitServer(instanceID(7))
	t.Logf("what was changed meanwhile was seen %s after the return", time.Since(back).Round(time.Millisecond))
	waitFor(t, 60*time.Second, "the newest report in the row", func() (bool, string) {
		v := p.value(`select status_on_toolbox || ' ' || coalesce(runtime_details->>'exit_code', '') from account_tool_instances where id = $1`, instanceID(3))
		return v == "exited 9", v
	})
	s.waitFeed("live")
	p.logIsComplete(s)
}

// logIsComplete waits until every update of the journal is in mcp_server_status_logs, and each once.
func (p *platform) logIsComplete(s *service) {
	p.t.Helper()
	waitFor(p.t, 60*time.Second, "every update in mcp_server_status_logs", func() (bool, string) {
		want := map[string]int{}
		for _, e := range s.updates("", "&kinds=status") {
			want[fmt.Sprintf("%s %s %s/%s", e.ServerID, e.Timestamp.UTC().Format("15:04:05.000"), e.Current.State, e.Current.Health)]++
		}
		got := map[string]int{}
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, p.dsn)
		if err != nil {
			p.t.Fatal(err)
		}
		defer conn.Close(ctx)
		rows, err := conn.Query(ctx, `select server_id::text || ' ' || to_char("timestamp" at time zone 'UTC', 'HH24:MI:SS.MS') || ' ' || (current_status->>'state') || '/' || (current_status->>'health') from mcp_server_status_logs`)
		if err != nil {
			p.t.Fatal(err)
		}
		list, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			p.t.Fatal(err)
		}
		for _, r := range list {
			got[r]++
		}
		for k, n := range want {
			if got[k] < n {
				return false, fmt.Sprintf("%d of %d rows; missing %s", len(list), len(want), k)
			}
		}
		for k, n := range got {
			if n != want[k] {
				p.t.Fatalf("%s is in the log %d times, and in the journal %d times", k, n, want[k])
			}
		}
		return true, ""
	})
}

func decode(t testing.TB, b []byte, out any) {
	t.Helper()
	if err := json.Unmarshal(b, out); err != nil {
		t.Fatalf("%v in %s", err, clip(b))
	}
}

func jsonOf(v any) ([]byte, error) { return json.Marshal(v) }

// testLeastRights: with exactly the rights that migrate --check asks for everything works; with fewer, it is said which one
// is missing.
func testLeastRights(t *testing.T, cluster *pgtest.Cluster) {
	p := newPlatform(t, cluster, 1, 2)
	p.exec(`drop role if exists syncer`)
	p.exec(`create role syncer login`)
	p.exec(`revoke all on schema public from public`)
	u, err := url.Parse(p.dsn)
	if err != nil {
		t.Fatal(err)
	}
	role := cluster.DSNAs("syncer", strings.TrimPrefix(u.Path, "/"))
	type report struct {
		Items []struct {
			Feature string   `json:"feature"`
			OK      bool     `json:"ok"`
			Missing []string `json:"missing"`
			Grants  []string `json:"grants"`
		} `json:"features"`
	}
	check := func(want int) (r report) {
		t.Helper()
		code, out, errs := cli(t, []string{"DATABASE_URL=" + role}, "migrate", "--check", "-o", "json")
		if code != want {
			t.Fatalf("migrate --check: %d %s%s", code, out, errs)
		}
		decode(t, []byte(out), &r)
		return r
	}
	p.migrate()
	before := check(1)
	// Without any right the service runs, and says what it lacks.
	s := startService(t, obj{"registries": list{obj{"postgres": obj{"dsn": role, "resync": "1s"}}}})
	waitFor(t, 60*time.Second, "the missing right", func() (bool, string) {
		r := s.waitFeed("down")
		return strings.Contains(r.Detail, "syncer lacks USAGE on schema public"), r.Detail
	})
	for _, item := range before.Items {
		if item.Feature == "retention" || item.Feature == "realtime" { // not used here
			continue
		}
		for _, g := range item.Grants {
			p.exec(g)
		}
	}
	for _, item := range check(0).Items {
		if !item.OK && item.Feature != "retention" && item.Feature != "realtime" {
			t.Errorf("%+v", item)
		}
	}
	waitFor(t, 60*time.Second, "the rights that were given", func() (bool, string) {
		r := s.waitFeed("live")
		return len(r.Missing) == 0, strings.Join(r.Missing, ", ")
	})
	s.postHeartbeat(rowToken(1), heartbeat(container(toolName(1), "running", "Up 2 hours"), container(toolName(2), "exited", "Exited (3) 5 seconds ago")))
	waitFor(t, 60*time.Second, "the write-back", func() (bool, string) {
		v := p.value(`select status_on_toolbox::text from account_tool_instances where id = $1`, instanceID(2))
		return v == "exited", v
	})
	p.logIsComplete(s)
}

// testAnyTable: one query over any table defines servers.
func testAnyTable(t *testing.T, cluster *pgtest.Cluster) {
	dsn := cluster.Empty(t)
	pgtest.Exec(t, dsn, `create table inventory (key text, title text, url text, tags jsonb)`)
	pgtest.Exec(t, dsn, `insert into inventory values ('crm', 'CRM', 'https://crm.example.com/mcp', '{"team":"core"}'), ('bad id!', '', '', null), ('ftp', 'FTP', 'ftp://x', null)`)
	s := startService(t, obj{"registries": list{obj{"name": "inventory", "sql": obj{
		"driver": "postgres", "dsn": dsn, "resync": "1s", "query": "select key as id, title as name, url as endpoint, tags as labels, 'none' as probe_kind from inventory",
	}}}, "probe": obj{"kind": "none"}})
	s.waitServer("crm")
	var v struct {
		Name     string            `json:"name"`
		Endpoint string            `json:"endpoint"`
		Origin   string            `json:"origin"`
		Labels   map[string]string `json:"labels"`
	}
	s.getJSON("/api/v1/servers/crm", &v)
	if v.Name != "CRM" || v.Endpoint != "https://crm.example.com/mcp" || v.Origin != "postgres:inventory" || v.Labels["team"] != "core" {
		t.Errorf("%+v", v)
	}
	if r := s.waitFeed("polling"); r.FaultsCount != 2 || r.Servers != 2 {
		t.Errorf("%+v", r)
	}
	pgtest.Exec(t, dsn, `delete from inventory where key = 'ftp'`)
	waitFor(t, 60*time.Second, "the removal", func() (bool, string) {
		code, b := s.request("GET", "/api/v1/servers/ftp", nil)
		return code == 404, string(b)
	})
	pgtest.Exec(t, dsn, `drop table inventory`)
	s.waitFeed("down")
	s.waitServer("crm") // what was known stays
}

// testShadow: what another service wrote is compared with what this one said.
func testShadow(t *testing.T, cluster *pgtest.Cluster) {
	p := newPlatform(t, cluster, 1, 2)
	s := startService(t, p.conf(obj{"resync": "1s"}))
	s.waitServer(instanceID(2))
	s.postHeartbeat(rowToken(1), heartbeat(container(toolName(1), "running", "Up 2 hours"), container(toolName(2), "running", "Up 2 hours")))
	s.waitStatus(60*time.Second, instanceID(1), "running", "healthy", "ok")
	s.waitStatus(60*time.Second, instanceID(2), "running", "healthy", "ok")
	p.logIsComplete(s)
	env := []string{"DATABASE_URL=" + p.dsn, "STATUSSYNC_SERVER=" + s.base}
	other := `insert into mcp_server_status_logs (server_id, current_status, source, details) values ($1, $2, 'heartbeat', 'health check')`
	p.exec(other, instanceID(1), `{"state":"running","health":"healthy","uptime":7}`)
	if code, out, errs := cli(t, env, "shadow"); code != 0 || !strings.Contains(out, "1 row, 2 status_on_toolbox compared") {
		t.Errorf("where the two agree: %d %s%s", code, out, errs)
	}
	p.exec(other, instanceID(2), `{"state":"error","health":"unhealthy"}`)
	code, out, errs := cli(t, env, "shadow", "-o", "json")
	var r struct {
		Rows        int `json:"rows"`
		Differences []struct {
			ServerID string `json:"server_id"`
			Theirs   struct{ State, Health string }
			Ours     struct{ State, Health, Reason string }
			Why      string `json:"why"`
		} `json:"differences"`
	}
	decode(t, []byte(out), &r)
	if code != 1 || r.Rows != 2 || len(r.Differences) != 1 || r.Differences[0].ServerID != instanceID(2) || r.Differences[0].Theirs.State != "error" ||
		r.Differences[0].Ours.State != "running" || r.Differences[0].Ours.Reason != "ok" || r.Differences[0].Why == "" {
		t.Errorf("where they differ: %d %s%s", code, out, errs)
	}
	if code, out, errs := cli(t, []string{"STATUSSYNC_SERVER=" + s.base}, "shadow", "--dsn", "postgres://u:hushhush@127.0.0.1:1/x"); code != 3 || strings.Contains(out+errs, "hushhush") {
		t.Errorf("no database: %d %s%s", code, out, errs)
	}
}
