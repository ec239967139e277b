//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMalformedConfigurations: each is refused with exit code 2 and the file and line of what is wrong, by "config
// check" and by "serve" alike, and nothing is started.
func TestMalformedConfigurations(t *testing.T) {
	theBinary(t)
	dir := t.TempDir()
	for i, c := range []struct {
		name, yaml, says string
		line             int // 0: about the whole file
	}{
		{"not YAML", "data: x\nlisten: a: b", "YAML", 2},
		{"a tab", "listen: 127.0.0.1:8080\n\tdata: x", "YAML", 2},
		{"a list", "- listen\n", "mapping", 1},
		{"unknown key", "listen: 127.0.0.1:8080\nlisten_on: x", "listen_on", 2},
		{"unknown key inside", "probe:\n  interval: 30s\n  intervall: 3s", "intervall", 3},
		{"key twice", "data: a\ndata: b", "twice", 2},
		{"not loopback without auth", "data: x\nlisten: 0.0.0.0:8080", "auth", 2},
		{"no port", "listen: localhost", "host:port", 1},
		{"bad duration", "probe:\n  interval: soon", "duration", 2},
		{"interval too short", "probe: {interval: 1ms}", "interval", 1},
		{"negative duration", "probe:\n  timeout: -3s", "duration", 2},
		{"retries not a number", "probe:\n  max_retries: many", "whole number", 2},
		{"bad size", "journal:\n  max_bytes: 10 elephants", "size", 2},
		{"bad sync", "journal:\n  sync: sometimes", "normal, full", 2},
		{"late without lost", "heartbeat:\n  late_after: 5m", "lost_after", 2},
		{"environment twice", "environments:\n  - id: a\n  - id: a", "twice", 3},
		{"server twice", "servers:\n  - id: a\n  - id: b\n  - id: a", "twice", 4},
		{"dangling environment", "servers:\n  - id: a\n    environment: nowhere", "nowhere", 3},
		{"container twice", "environments: [{id: e}]\nservers:\n  - {id: a, environment: e, container: c}\n  - {id: b, environment: e, container: c}", "container", 4},
		{"bad transport", "servers:\n  - id: a\n    transport: pigeon", "pigeon", 3},
		{"bad desired", "servers:\n  - id: a\n    desired: perhaps", "perhaps", 3},
		{"bad endpoint", "servers:\n  - id: a\n    endpoint: ftp://x", "http", 3},
		{"bad id", "servers:\n  - id: \"a b\"", "letters", 2},
		{"no id", "servers:\n  - name: a", "id", 2},
		{"variable not set", "data: ${E2E_NO_SUCH_VARIABLE}", "E2E_NO_SUCH_VARIABLE", 1},
		{"short token", "auth:\n  tokens:\n    - {name: a, role: admin, token: short}", "shorter", 3},
		{"bad role", "auth:\n  tokens:\n    - {name: a, role: king, token: long-enough}", "king", 3},
		{"same token", "environments:\n  - {id: a, agent_token: same-token}\n  - {id: b, agent_token: same-token}", "same", 3},
		{"token file missing", "environments:\n  - id: a\n    agent_token_file: nowhere.txt", "nowhere.txt", 3},
		{"bad network", "allow_networks:\n  - 10.0.0.0/99", "10.0.0.0/99", 2},
		{"bad origin", "allowed_origins:\n  - example.com/path", "origin", 2},
	} {
		file := filepath.Join(dir, fmt.Sprintf("%02d.yaml", i))
		if err := os.WriteFile(file, []byte(c.yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		code, out, errs := cli(t, nil, "config", "check", file)
		where := file
		if c.line > 0 {
			where = fmt.Sprintf("%s:%d", file, c.line)
		}
		if code != 2 || out != "" || !strings.Contains(errs, where) || !strings.Contains(errs, c.says) {
			t.Errorf("%s: exit %d, not 2 with %s and %q\n%s%s", c.name, code, where, c.says, out, errs)
		}
		if strings.Contains(errs, "short}") || strings.Contains(errs, "same-token") {
			t.Errorf("%s: the error shows a token: %s", c.name, errs)
		}
		if i%6 == 0 { // the same code checks for serve
			if code, _, errs := cli(t, nil, "serve", "--config", file); code != 2 || !strings.Contains(errs, where) {
				t.Errorf("%s: serve ended with %d\n%s", c.name, code, errs)
			}
		}
	}
	if code, _, errs := cli(t, nil, "config", "check", filepath.Join(dir, "none.yaml")); code != 2 || !strings.Contains(errs, "none.yaml") {
		t.Errorf("a file that is not there: exit %d\n%s", code, errs)
	}
	if code, _, errs := cli(t, nil, "config", "check", dir); code != 2 || !strings.Contains(errs, dir) {
		t.Errorf("a folder: exit %d\n%s", code, errs)
	}
	// Several faults are told at once, and a good one is printed with its secrets masked, and is itself valid.
	both := filepath.Join(dir, "both.yaml")
	os.WriteFile(both, []byte("probe: {interval: soon}\nservers:\n  - id: a\n    colour: red\n"), 0o600)
	if code, _, errs := cli(t, nil, "config", "check", both); code != 2 || !strings.Contains(errs, both+":1") || !strings.Contains(errs, both+":4") {
		t.Errorf("two faults: exit %d\n%s", code, errs)
	}
	good := filepath.Join(dir, "good.yaml")
	os.WriteFile(filepath.Join(dir, "token.txt"), []byte("from-a-file-9\n"), 0o600)
	os.WriteFile(good, []byte(`auth: {tokens: [{name: ops, role: admin, token: "${E2E_TOKEN}"}]}
environments: [{id: e, agent_token_file: token.txt}]
servers: [{id: a, environment: e, probe: {url: "http://127.0.0.1:1/", headers: {X-Key: "${E2E_TOKEN}-header"}}}]
`), 0o600)
	code, out, errs := cli(t, []string{"E2E_TOKEN=very-secret"}, "config", "check", good)
	if code != 0 || strings.Contains(out, "very-secret") || strings.Contains(out, "from-a-file") || !strings.Contains(out, "30s") {
		t.Errorf("a good one: exit %d\n%s%s", code, out, errs)
	}
}
