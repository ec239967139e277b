package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/postgres/pgtest"
)

func TestRowsAreServers(t *testing.T) {
	t.Parallel()
	dsn := migrated(t, shared.Get(t), 2, 3)
	pgtest.Exec(t, dsn, "insert into account_tool_instances (account_tool_environment_id, instance_name_on_toolbox) values ($1, 'no MCP server')", envID(1))
	r := startRegistry(t, dsn, nil)
	r.until("the rows are servers, and followed", func() bool { return len(r.servers()) == 6 && r.Status().Feed == statussync.FeedLive })
	v, err := r.hub.Server(instID(4))
	if err != nil {
		t.Fatal(err)
	}
	s := v.Server
	if s.Name != "s1" || s.EnvironmentID != envID(2) || s.Type != "files" || s.Transport != statussync.TransportStreamableHTTP || s.Capabilities["tools"] != true || s.Origin != statussync.OriginPostgres {
		t.Errorf("server: %+v", s)
	}
	e, err := r.hub.Environment(envID(2))
	if err != nil || e.Environment.Owner != "d0000000-0000-4000-8000-000000000001" || e.Environment.Address != "203.0.113.2" || e.Environment.AgentURL != "http://203.0.113.2:30000" {
		t.Errorf("environment: %+v %v", e.Environment, err)
	}
	r.until("tokens", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.tokens) == 2 && r.tokens[sha256.Sum256([]byte("token-2"))] == envID(2)
	})
	r.until("the record speaks", func() bool { return r.state(instID(1)) == "running/unknown" })

	// Changes, as they happen.
	r.exec("update account_tool_instances set status_on_toolbox = 'error_runtime', instance_error_message = E'out of\\nmemory' where id = $1", instID(1))
	r.until("an error", func() bool { return r.state(instID(1)) == "error/unhealthy" })
	r.exec("update account_tool_instances set instance_name_on_toolbox = 'renamed' where id = $1", instID(2))
	r.until("a new name", func() bool { v, _ := r.hub.Server(instID(2)); return v.Server != nil && v.Server.Name == "renamed" })
	r.exec("delete from account_tool_instances where id = $1", instID(3))
	r.exec("update account_tool_instances set mcp_server_type = null where id = $1", instID(4))
	r.until("two are gone", func() bool { return len(r.servers()) == 4 })
	r.exec("insert into account_tool_instances (id, account_tool_environment_id, mcp_server_type, status_on_toolbox) values ($1, $2, 'x', 'stopped')", instID(99), envID(1))
	r.until("a new one", func() bool { return r.state(instID(99)) == "stopped/unknown" })
	r.exec("update account_tool_environments set dtma_bearer_token = 'other', public_ip_address = 'host.example.com' where id = $1", envID(1))
	r.until("another token", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.tokens[sha256.Sum256([]byte("other"))] == envID(1)
	})
	r.exec("delete from account_tool_environments where id = $1", envID(2))
	r.until("an environment is gone", func() bool { _, err := r.hub.Environment(envID(2)); return err != nil && len(r.servers()) == 3 })
	// Heartbeats that the rows tell of.
	r.exec("update account_tool_environments set last_heartbeat_at = now() - interval '3 seconds' where id = $1", envID(1))
	r.until("a heartbeat", func() bool { e, _ := r.hub.Environment(envID(1)); return !e.LastHeartbeat.IsZero() })
	if s := r.Status(); s.Servers != 3 || s.Environments != 1 || s.FaultsCount != 0 || len(s.Missing) != 0 || s.LastError != "" || s.Lag > 30*time.Second {
		t.Errorf("status: %+v", s)
	}
	_, failed, err := r.Sync(t.Context())
	if err != nil || len(failed) != 0 {
		t.Error(failed, err)
	}
}

// TestOldServersGo starts where a journal knows servers that the database lost meanwhile.
func TestOldServersGo(t *testing.T) {
	t.Parallel()
	for _, withKnown := range []bool{true, false} {
		t.Run(fmt.Sprint(withKnown), func(t *testing.T) {
			dsn := migrated(t, shared.Get(t), 1, 3)
			r := startRegistry(t, dsn, func(o *Options) {
				o.Feed = FeedPoll
				if withKnown {
					o.Known = func() ([]string, []string) { return []string{instID(1), instID(77)}, []string{envID(77)} }
				}
			})
			r.until("all is read", func() bool { return r.Status().Syncs == 1 })
			if n := len(r.servers()); n != 3 {
				t.Error(n, "servers")
			}
			if f := r.Status().Feed; f != statussync.FeedPolling {
				t.Error(f)
			}
		})
	}
}

// TestMassDisappearance empties the table: it is read twice before that is believed.
func TestMassDisappearance(t *testing.T) {
	t.Parallel()
	dsn := migrated(t, shared.Get(t), 1, 10)
	r := startRegistry(t, dsn, func(o *Options) { o.Feed = FeedPoll })
	r.until("all is read", func() bool { return len(r.servers()) == 10 })
	before := time.Now()
	r.exec("update account_tool_instances set mcp_server_type = null")
	back := make(chan struct{})
	go func() {
		defer close(back)
		if _, _, err := r.Sync(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	<-back
	if took := time.Since(before); took < settleWait {
		t.Errorf("believed after %v", took)
	}
	if n := len(r.servers()); n != 0 {
		t.Error(n, "servers")
	}
}

// TestHostileRows has rows that nobody should have written: they are named, and the others go on.
func TestHostileRows(t *testing.T) {
	t.Parallel()
	dsn := migrated(t, shared.Get(t), 1, 1)
	paths := []string{"@127.0.0.1:6379/", "//evil.example/", "/ok/path?x=1", "http://10.0.0.1/", "/a b", "/x#y", "\\\\host", "/%zz", ":6379/", "/" + strings.Repeat("x", 5000)}
	for i, p := range paths {
		pgtest.Exec(t, dsn, "insert into account_tool_instances (id, account_tool_environment_id, instance_name_on_toolbox, mcp_server_type, mcp_endpoint_path, status_on_toolbox) values ($1, $2, $3, 'x', $4, 'running')", instID(10+i), envID(1), fmt.Sprint("p", i), p)
	}
	pgtest.Exec(t, dsn, "update account_tool_environments set public_ip_address = '169.254.169.254' where id = $1", envID(1))
	pgtest.Exec(t, dsn, "insert into account_tool_environments (id, user_id, name, public_ip_address) values ($1, 'd0000000-0000-4000-8000-000000000001', E'bad\\x1bname', '127.0.0.1:6379/@x')", envID(2))
	pgtest.Exec(t, dsn, "insert into account_tool_instances (id, account_tool_environment_id, instance_name_on_toolbox, mcp_server_type, mcp_transport_type, mcp_server_capabilities) values ($1, $2, $3, 'x', 'carrier pigeon', to_jsonb(repeat('x', 100000)))", instID(30), envID(2), strings.Repeat("n", 100000))
	r := startRegistry(t, dsn, nil)
	r.until("all is read", func() bool { return len(r.servers()) == 2+len(paths) })
	for i, p := range paths {
		v, err := r.hub.Server(instID(10 + i))
		if err != nil {
			t.Fatal(err)
		}
		good := p == "/ok/path?x=1"
		if got := v.Server.Probe.Kind != statussync.ProbeNone; got != good {
			t.Errorf("%.40q would be probed: %v", p, got)
		}
		if v.Server.Endpoint != "" || good && v.Server.Probe.Path != p {
			t.Errorf("%.40q: %+v", p, v.Server)
		}
	}
	s := r.Status()
	if s.FaultsCount != len(paths)-1+2 {
		t.Errorf("%d faults: %+v", s.FaultsCount, s.Faults)
	}
	e, err := r.hub.Environment(envID(2))
	if err != nil || e.Environment.Address != "" || e.Environment.AgentURL != "" || e.Environment.Name != "badname" {
		t.Errorf("%+v %v", e.Environment, err)
	}
	if v, _ := r.hub.Server(instID(30)); v.Server == nil || len(v.Server.Name) > statussync.MaxNameText || v.Server.Capabilities != nil {
		t.Errorf("%+v", v.Server)
	}
	// Mended, they are no faults any more.
	r.exec("update account_tool_instances set mcp_endpoint_path = '/mcp' where id >= $1 and id < $2", instID(10), instID(30))
	r.until("faults go", func() bool { return r.Status().FaultsCount == 2 })
}

// TestForeignIDs has rows with ids that the configuration defines.
func TestForeignIDs(t *testing.T) {
	t.Parallel()
	dsn := migrated(t, shared.Get(t), 1, 2)
	r := startRegistry(t, dsn, func(o *Options) { o.Resync = time.Second })
	r.until("all is read", func() bool { return len(r.servers()) == 2 })
	r.exec("delete from account_tool_instances where id = $1", instID(1))
	r.until("gone", func() bool { return len(r.servers()) == 1 })
	if _, err := r.hub.Submit(t.Context(), &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Servers: []statussync.Server{{ID: instID(1), Name: "mine", Origin: statussync.OriginConfig}}}); err != nil {
		t.Fatal(err)
	}
	r.exec("insert into account_tool_instances (id, account_tool_environment_id, instance_name_on_toolbox, mcp_server_type, status_on_toolbox) values ($1, $2, 's1', 'x', 'error')", instID(1), envID(1))
	r.until("it is named", func() bool {
		s := r.Status()
		return s.FaultsCount == 1 && s.Faults[0].ID == instID(1) && strings.Contains(s.Faults[0].Detail, "config")
	})
	if st := r.state(instID(1)); st != "unknown/unknown" {
		t.Error("the row spoke for the configuration's server:", st)
	}
	r.until("the others go on", func() bool { return r.state(instID(2)) == "running/unknown" })
	if _, err := r.hub.Submit(t.Context(), &statussync.RegistryUpdate{Origin: statussync.OriginConfig, RemovedServers: []string{instID(1)}}); err != nil {
		t.Fatal(err)
	}
	r.until("it comes in when the id is free", func() bool { return r.state(instID(1)) == "error/unhealthy" && r.Status().FaultsCount == 0 })
}

// TestOtherPlatforms reads tables that differ.
func TestOtherPlatforms(t *testing.T) {
	t.Parallel()
	dsn := shared.Get(t).Empty(t)
	pgtest.Exec(t, dsn, `create schema agents;
create table agents.account_tool_environments (id text primary key, public_ip_address inet, last_heartbeat_at timestamptz, status text);
create table agents.account_tool_instances (id text primary key, account_tool_environment_id text not null, status_on_toolbox text, mcp_server_type text, last_heartbeat_from_dtma timestamptz);
insert into agents.account_tool_environments values ('box-1', '203.0.113.9/32', null, 'provisioning');
insert into agents.account_tool_instances values ('weather', 'box-1', 'active', 'weather', null), ('odd id''s', 'box-1', 'active', 'x', null), ('null word', 'box-1', null, 'x', null), ('nw', 'box-1', null, 'x', null);`)
	r := startRegistry(t, dsn, func(o *Options) { o.Schema = "agents" })
	r.until("all is read", func() bool { return len(r.servers()) == 2 })
	r.until("the word counts", func() bool { return r.state("weather") == "running/unknown" && r.state("nw") == "unknown/unknown" })
	s := r.Status()
	if s.FaultsCount != 2 || s.Feed != statussync.FeedPolling {
		t.Errorf("%+v", s)
	}
	missing := strings.Join(s.Missing, "\n")
	for _, want := range []string{"agents.account_tool_instances.instance_name_on_toolbox", "agents.account_tool_instances.runtime_details", "agents.account_tool_environments.dtma_bearer_token", "agents.account_tool_environments.dtma_health_details_json"} {
		if !strings.Contains(missing, want) {
			t.Errorf("%s is not named in\n%s", want, missing)
		}
	}
	r.Report(&statussync.AgentReport{EnvironmentID: "box-1", AgentVersion: "1", List: statussync.ListComplete, Containers: []statussync.ContainerReport{{Names: []string{"weather"}, Word: "exited"}}})
	r.until("it is written, as far as there are columns", func() bool { return r.Status().WriteBack.Rows == 2 })
	if got := r.row("select i.status_on_toolbox, i.last_heartbeat_from_dtma is not null, e.status from agents.account_tool_instances i, agents.account_tool_environments e where i.id = 'weather'"); got != "exited|t|active" {
		t.Error(got)
	}
	pgtest.Exec(t, dsn, "alter table agents.account_tool_instances drop column mcp_server_type")
	if _, _, err := r.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "agents.account_tool_instances") || !strings.Contains(err.Error(), "mcp_server_type") {
		t.Error("what is indispensable is not named:", err)
	}
	if n := len(r.servers()); n != 2 {
		t.Error("servers were removed:", n)
	}
}

// TestRights gives a role less and less.
func TestRights(t *testing.T) {
	t.Parallel()
	c := shared.Get(t)
	dsn := migrated(t, c, 1, 1)
	name := dsn[strings.LastIndex(dsn, "/")+1 : strings.Index(dsn, "?")]
	role := "reader_" + name // roles are the cluster's
	as := func(s string) string { return strings.ReplaceAll(s, "reader", role) }
	pgtest.Exec(t, dsn, as("create role reader login; grant usage on schema public to reader; grant select on account_tool_instances, account_tool_environments to reader; grant update (last_heartbeat_at) on account_tool_environments to reader"))
	r := startRegistry(t, c.DSNAs(role, name), nil)
	r.until("all is read and followed", func() bool { return len(r.servers()) == 1 && r.Status().Feed == statussync.FeedLive })
	if m := strings.Join(r.Status().Missing, "\n"); !strings.Contains(m, as("role reader lacks UPDATE on public.account_tool_instances (column status_on_toolbox)")) || strings.Contains(m, "lacks SELECT") {
		t.Error(m)
	}
	r.Report(&statussync.AgentReport{EnvironmentID: envID(1), List: statussync.ListComplete, Containers: []statussync.ContainerReport{{Names: []string{"s1"}, Word: "running"}}})
	r.until("what may be written is", func() bool { return r.Status().WriteBack.Rows == 1 })
	if got := rowOf(t, dsn, "select last_heartbeat_at is not null, status, last_heartbeat_from_dtma from account_tool_environments e, account_tool_instances i where e.id = $1 limit 1", envID(1)); got != "t|awaiting_heartbeat|null" {
		t.Error(got)
	}
	for _, step := range []struct{ revoke, want string }{
		{"revoke select on account_tool_instances from reader", "role reader lacks SELECT on public.account_tool_instances"},
		{"grant select (id) on account_tool_instances to reader", "role reader lacks SELECT on public.account_tool_instances (column account_tool_environment_id)"},
		{"revoke usage on schema public from reader, public", "role reader lacks USAGE on schema public"},
	} {
		pgtest.Exec(t, dsn, as(step.revoke))
		_, _, err := r.Sync(t.Context())
		if err == nil || !strings.Contains(err.Error(), as(step.want)) {
			t.Errorf("%s: %v", step.revoke, err)
		}
		if got := r.Status().LastError; !strings.Contains(got, as(step.want)) {
			t.Errorf("%s: %s", step.revoke, got)
		}
	}
	if len(r.servers()) != 1 {
		t.Error("servers were removed")
	}
	pgtest.Exec(t, dsn, as("grant usage on schema public to reader; grant select on account_tool_instances to reader"))
	r.until("it goes on by itself", func() bool { return r.Status().LastError == "" })
}

func TestOptionsAreChecked(t *testing.T) {
	for name, o := range map[string]Options{
		"dsn":        {},
		"feed":       {DSN: "postgres://x@h/d", Feed: "telepathy"},
		"resync":     {DSN: "postgres://x@h/d", Resync: time.Millisecond},
		"agent_port": {DSN: "postgres://x@h/d", AgentPort: 70000},
	} {
		_, err := New(o)
		if statussync.CodeOf(err) != statussync.CodeInvalid || !strings.HasPrefix(err.Error(), name+":") {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := New(Options{DSN: "postgres://user:geheim1234@h:port/db?sslmode=nonsense"})
	if err == nil || strings.Contains(err.Error(), "geheim1234") {
		t.Error(err)
	}
	r, err := New(Options{DSN: "postgres://user:geheim1234@127.0.0.1:1/db?connect_timeout=7"})
	if err != nil {
		t.Fatal(err)
	}
	if c := r.pool.Config().ConnConfig.ConnectTimeout; c != 7*time.Second {
		t.Error(c)
	}
	r.pool.Close()
	b, _ := json.Marshal(r.Status())
	if strings.Contains(string(b), "geheim1234") {
		t.Error(string(b))
	}
}
