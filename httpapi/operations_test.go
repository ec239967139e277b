package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// memControl is a Control and a Syncer in memory.
type memControl struct {
	mu      sync.Mutex
	probing wire.Probing
	calls   []string
	err     error
	entry   *statussync.Entry
}

func (c *memControl) call(what string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, what)
	return c.err
}

func (c *memControl) Reload(_ context.Context, actor string) (wire.Reload, error) {
	return wire.Reload{Settings: []string{"probe.rise"}, NeedsRestart: []string{"listen"}, Warnings: []string{}}, c.call("reload by " + actor)
}

func (c *memControl) Restart(_ context.Context, actor string) error {
	return c.call("restart by " + actor)
}

func (c *memControl) Probing() wire.Probing {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.probing
}

func (c *memControl) SetProbing(_ context.Context, enabled bool, actor string) (wire.Probing, error) {
	err := c.call(fmt.Sprintf("probing %v by %s", enabled, actor))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.probing = wire.Probing{Enabled: enabled, ChangedBy: actor}
	return c.probing, err
}

func (c *memControl) SyncAll(context.Context) (wire.Sync, error) {
	return wire.Sync{Updates: []*statussync.Entry{c.entry}, UpdatesCount: 1, Failed: []wire.SyncFailure{{EnvironmentID: "box", Detail: "refused"}}, FailedCount: 1, DurationMS: 3}, c.call("sync")
}

func (c *memControl) SyncServer(_ context.Context, id string) (wire.Sync, error) {
	return wire.Sync{Failed: []wire.SyncFailure{}}, c.call("sync " + id)
}

func TestOperations(t *testing.T) {
	c := &memControl{probing: wire.Probing{Enabled: true}}
	s := serve(t, func(o *Options) { o.Control, o.Syncer = c, c })
	s.hub.add("a-000")
	c.entry = s.hub.change("a-000", statussync.StateRunning, statussync.HealthHealthy)
	for _, x := range []struct {
		call, body string
		least      Role // below it 403
		status     int
		did        string
		want       string // part of the answer
	}{
		{"POST /api/v1/reload", "", RoleAdmin, 200, "reload by ada", `"needs_restart":["listen"]`},
		{"POST /api/v1/restart", "", RoleAdmin, 202, "restart by ada", `"restarting"`},
		{"GET /api/v1/probing", "", RoleViewer, 200, "", `"enabled":true`},
		{"PUT /api/v1/probing", `{"enabled":false}`, RoleAdmin, 200, "probing false by ada", `"changed_by":"ada"`},
		{"POST /api/v1/sync", "", RoleOperator, 200, "sync", `"updates":[{"seq":1,`},
		{"POST /api/v1/servers/a-000/sync", "", RoleOperator, 200, "sync a-000", `"updates":[]`},
	} {
		for role, token := range map[Role]string{"": "", RoleViewer: viewerToken, RoleOperator: operatorToken, RoleAdmin: adminToken} {
			if role == RoleAdmin {
				continue
			}
			want := map[bool]int{true: x.status, false: 403}[role.rank() >= x.least.rank()]
			if role == "" {
				want = 401
			}
			if got := s.do(t, token, x.call, x.body, "Content-Type: application/json"); got.status != want {
				t.Errorf("%s as %q: %d, want %d: %s", x.call, role, got.status, want, got.body)
			}
		}
		c.mu.Lock()
		c.calls = nil
		c.mu.Unlock()
		got := s.do(t, adminToken, x.call, x.body, "Content-Type: application/json")
		if got.status != x.status || !strings.Contains(string(got.body), x.want) {
			t.Errorf("%s: %d %s", x.call, got.status, got.body)
		}
		if did := strings.Join(c.calls, " "); did != x.did {
			t.Errorf("%s did %q, not %q", x.call, did, x.did)
		}
	}
	// What the switch is stands where people look whether all is well.
	for _, path := range []string{"GET /readyz", "GET /api/v1/sync/metrics"} {
		if got := s.do(t, viewerToken, path, ""); !strings.Contains(string(got.body), `"enabled":false`) && !strings.Contains(string(got.body), `"probing_enabled":false`) {
			t.Errorf("%s does not say that probing is off: %s", path, got.body)
		}
	}
	if got := s.do(t, "", "GET /readyz", ""); strings.Contains(string(got.body), "probing") {
		t.Errorf("without a credential: %s", got.body)
	}
	for _, bad := range []string{``, `{}`, `{"enabled":1}`, `{"enabled":true,"x":1}`, `[]`} {
		if got := s.do(t, adminToken, "PUT /api/v1/probing", bad, "Content-Type: application/json"); got.status/100 != 4 {
			t.Errorf("%q: %d %s", bad, got.status, got.body)
		}
	}
	// Every fault of a file is told with its place, up to a bound.
	var errs []error
	for i := range 3 * maxFaults {
		errs = append(errs, statussync.Invalid(fmt.Sprintf("c.yaml:%d", i+1), "is wrong"))
	}
	c.err = errors.Join(errs...)
	p := s.do(t, adminToken, "POST /api/v1/reload", "").problem(t)
	if p.Code != statussync.CodeInvalid || len(p.Errors) != maxFaults || p.Errors[1].Location != "c.yaml:2" || !strings.Contains(p.Detail, "150 faults") {
		t.Errorf("%+v", p)
	}
	// Who does not hand a Control in serves none.
	none := serve(t, nil)
	if got := none.do(t, adminToken, "POST /api/v1/reload", ""); got.status != 404 {
		t.Errorf("without a Control: %d", got.status)
	}
}

// Settings count from the next request on, and a bad one changes nothing.
func TestPrepare(t *testing.T) {
	s := serve(t, func(o *Options) { o.AllowedHosts = []string{"old.example"} })
	status := func(host, token string) int {
		return s.do(t, token, "GET /api/v1/servers", "", "Host: "+host).status
	}
	if a, b := status("old.example", viewerToken), status("new.example", viewerToken); a != 200 || b != 403 {
		t.Fatalf("at first %d %d", a, b)
	}
	for name, bad := range map[string]Settings{
		"hosts": {AllowedHosts: []string{"a b"}}, "origins": {AllowedOrigins: []string{"x"}}, "limits": {Limits: Limits{CommandsPerSecond: -1}},
	} {
		if _, err := s.Prepare(bad); statussync.CodeOf(err) != statussync.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	apply, err := s.Prepare(Settings{AllowedHosts: []string{"new.example"}, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Limits: Limits{CommandsPerSecond: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := status("old.example", viewerToken), status("new.example", viewerToken); a != 200 || b != 403 {
		t.Errorf("prepared, and in force already: %d %d", a, b)
	}
	apply()
	if a, b := status("old.example", viewerToken), status("new.example", viewerToken); a != 403 || b != 200 {
		t.Errorf("applied: %d %d", a, b)
	}
	s.hub.add("a-000")
	limited := false
	for range 5 {
		limited = limited || s.do(t, operatorToken, "DELETE /api/v1/servers/a-000/override", "").status == 429
	}
	if !limited {
		t.Error("the new limit of commands does not count")
	}
}

// A change of limits counts for those who are known already.
func TestRatesChange(t *testing.T) {
	l := newLimits()
	if err := l.command("ops", 1000); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for range 10 {
		if l.command("ops", 1) != nil {
			refused++
		}
	}
	if refused < 8 {
		t.Errorf("%d of 10 refused", refused)
	}
	addr := netip.MustParseAddr("192.0.2.1")
	g := newLogins(1)
	_ = g.refuse(addr)
	if err := g.refuse(addr); statussync.CodeOf(err) != statussync.CodeRateLimited {
		t.Fatal(err)
	}
	g.setRate(60_000)
	for range 100_000 { // 1,000 a second: what was owed is soon paid
		if err := g.refuse(addr); statussync.CodeOf(err) == statussync.CodeUnauthorized {
			return
		}
	}
	t.Error("the new rate does not count")
}

func TestReplaceTokens(t *testing.T) {
	tk := tokens()
	ada, _ := tk.Token(adminToken)
	eve, _ := tk.Token(viewerToken)
	if bad := NewTokens([]TokenSpec{{Name: "x", Role: "king", Token: "t"}}, nil); bad.Err() == nil || tk.Replace(bad) == nil || !tk.Valid(ada) {
		t.Fatal("a bad set was taken")
	}
	if err := tk.Replace(NewTokens([]TokenSpec{{Name: "ada", Role: RoleAdmin, Token: adminToken}, {Name: "eve", Role: RoleOperator, Token: viewerToken}}, map[string][]string{"box-8": {agentToken}})); err != nil {
		t.Fatal(err)
	}
	if !tk.Valid(ada) || tk.Valid(eve) {
		t.Error("who is unchanged is valid, who has another role is not")
	}
	if _, ok := tk.Token(operatorToken); ok {
		t.Error("a removed token is good")
	}
	if env, _ := tk.Agent(agentToken); env != "box-8" {
		t.Errorf("the agent's token belongs to %q", env)
	}
	if b, err := json.Marshal(ada); err != nil || strings.Contains(string(b), "ash") {
		t.Errorf("a credential shows its hash: %s %v", b, err)
	}
}
