package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync/wire"
)

// TestRegistryCommands manages servers and environments of the real service.
func TestRegistryCommands(t *testing.T) {
	url, _, _ := serve(t)
	as := func(token, args string) result {
		return exec(t.Context(), append(strings.Fields(args), "--server", url, "--token", token), func(s *system) { s.now = time.Now })
	}
	expect := func(r result, code int, parts ...string) {
		t.Helper()
		if r.code != code {
			t.Errorf("exit %d, want %d: %s%s", r.code, code, r.out, r.err)
		}
		for _, p := range parts {
			if !regexp.MustCompile(p).MatchString(r.out + r.err) {
				t.Errorf("no %q in\n%s%s", p, r.out, r.err)
			}
		}
	}
	beat := func(token, body string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/heartbeat", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		http.DefaultClient.CloseIdleConnections()
		return resp.StatusCode
	}
	read := func(r result, v any) {
		t.Helper()
		if err := json.Unmarshal([]byte(r.out), v); err != nil || r.code != 0 {
			t.Fatalf("exit %d, %v: %s%s", r.code, err, r.out, r.err)
		}
	}

	// Environments and their agents' tokens.
	expect(as("operator-token", "environment add box-9"), 4, `refused: .*needs the role admin`)
	r := as("admin-token", "environment add box-9 --address box-9.example.com --owner u9 --token-for-agent")
	expect(r, 0, `the environment box-9 is added`, `origin +managed`, `address +box-9.example.com`, `(?m)^  token +ssa_\S+$`, `not shown again`)
	first := regexp.MustCompile(`ssa_\S+`).FindString(r.out)
	if got := beat(first, `{"tool_statuses":[{"names":["loose"],"state":"running","status":"Up 2 hours"}]}`); got != 204 {
		t.Errorf("the token that was shown: %d", got)
	}
	expect(as("admin-token", "environment add box-9"), 4, `refused: body.id: .*box-9.* exists already: it comes from the managed registry`)
	expect(as("admin-token", "environment add box-10 --address host:80 --agent-url nowhere"), 4, `body.address`, `body.agent_url`)
	expect(as("admin-token", "environment set box-9 --owner u10"), 0, `the environment box-9 is changed`, `owner +u10`)
	expect(as("admin-token", "environment set box-7"), 4, `comes from the configuration file and can only be changed there`)
	expect(as("viewer-token", "environment show box-9"), 0, `agent +ok`, `unclaimed +1`)
	expect(as("viewer-token", "environment list"), 0, `(?m)^box-7 `, `(?m)^box-9 `)

	var made wire.NewAgentToken
	read(as("admin-token", "environment rotate-token box-9 -o json"), &made)
	if len(made.Valid) != 2 || beat(first, "{}") != 204 || beat(made.Token, "{}") != 204 {
		t.Errorf("after a rotation two are valid: %+v", made)
	}
	expect(as("admin-token", "environment tokens box-9"), 0, made.ID, made.Valid[1].ID)
	expect(as("admin-token", "environment drop-token box-9 "+made.Valid[1].ID), 0, `is removed`)
	if beat(first, "{}") != 401 || beat(made.Token, "{}") != 204 {
		t.Error("the wrong token was dropped")
	}
	expect(as("admin-token", "environment drop-token box-9 "+made.Valid[1].ID), 4, `no token of the environment`)
	old := made.Token
	made = wire.NewAgentToken{}
	read(as("admin-token", "environment rotate-token box-9 --drop-old -o json"), &made)
	if len(made.Valid) != 1 || beat(old, "{}") != 401 || beat(made.Token, "{}") != 204 {
		t.Errorf("--drop-old: %+v", made)
	}
	expect(as("admin-token", "environment rotate-token box-9"), 0, `the one before +`+made.ID+`, valid until`)

	// Discovered containers.
	expect(as("viewer-token", "discovered"), 0, `(?m)^box-9 +loose +running +- +\d+s ago`, `1 container\n`)
	expect(as("admin-token", "adopt box-9 nothing"), 4, `lists no unclaimed container "nothing"`)
	expect(as("admin-token", "adopt box-9 loose --id caught --label team=core"), 0, `the server caught is added`, `container +loose`, `labels +team=core`)
	expect(as("viewer-token", "discovered -o json"), 0, `"items": \[\]`)

	// Servers.
	file := filepath.Join(t.TempDir(), "billing.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"endpoint":"https://billing.example.com/mcp","labels":{"team":"money"},"probe":{"kind":"none","headers":{"Authorization":"Bearer hidden"}}}`)
	r = as("admin-token", "server add billing --environment box-9 --probe-interval 90s --file "+file)
	expect(r, 0, `the server billing is added`, `endpoint +https://billing.example.com/mcp`, `labels +team=money`, `probe +none every 1m30s`, `origin +managed`)
	if strings.Contains(r.out, "hidden") {
		t.Errorf("a secret is shown: %s", r.out)
	}
	expect(as("admin-token", "server add billing"), 4, `exists already`)
	expect(as("admin-token", "server add weather"), 4, `it comes from the configuration file`)
	expect(as("admin-token", "server set weather --desired stopped"), 4, `comes from the configuration file and can only be changed there`)
	expect(as("admin-token", "server remove weather"), 4, `the configuration file`)
	expect(as("admin-token", "server add worse --endpoint ftp://x --environment nowhere --probe-kind none"), 4, `body.endpoint: must begin with http`)
	expect(as("admin-token", "server add worse --environment nowhere"), 4, `no environment has the id "nowhere"`)
	expect(as("viewer-token", "server list --origin managed"), 0, `(?m)^billing +box-9 +managed +streamable-http +running +billing +https://billing`, `(?m)^caught `, `2 servers\n`)
	expect(as("viewer-token", "server list --environment box-7 -o json"), 0, `"id": "weather"`)
	expect(as("viewer-token", "server show billing"), 0, `billing is in an unknown state|billing is`, `transport +streamable-http`)
	expect(as("admin-token", "server set billing --probe-kind none --desired stopped -o json"), 0, `"desired": "stopped"`)
	if r := as("viewer-token", "server show billing -o json"); strings.Contains(r.out, "money") {
		t.Errorf("set keeps what was not given: %s", r.out)
	}
	expect(as("admin-token", "server remove billing"), 0, `the server billing is removed`)
	expect(as("admin-token", "server remove billing"), 4, `no server has the id "billing"`)
	expect(as("viewer-token", "server show billing"), 4, `no server has the id "billing"`)
	expect(as("admin-token", "environment remove box-9"), 4, `still has servers, such as "caught"`)
	expect(as("admin-token", "server remove caught -o json"), 0, `"removed": "caught"`)
	expect(as("admin-token", "environment remove box-9"), 0, `the environment box-9 is removed`)

	// Faults in how a command is called are found before anything is sent.
	write(`{"endpoit":"x"}`)
	expect(as("admin-token", "server add x --file "+file), 2, `billing.json: is not a definition in JSON: .*endpoit`)
	write(`{} {}`)
	expect(as("admin-token", "server add x --file "+file), 2, `more than one`)
	expect(as("admin-token", "server add x --file /nowhere.json"), 2, `nowhere.json`)
	expect(as("admin-token", "server add x --transport pigeon"), 2, `must be one of streamable-http`)
	expect(as("admin-token", "server add x --probe-interval soon"), 2, `is not a duration`)
	expect(as("admin-token", "server add"), 2, `accepts 1 arg`)
	expect(as("admin-token", "environment nonsense"), 2, `unknown command "nonsense"`)
	expect(as("admin-token", "adopt box-9"), 2, `accepts 2 arg`)
	expect(exec(t.Context(), []string{"server", "list", "--server", "http://127.0.0.1:1"}), 3, `cannot reach`)
}
