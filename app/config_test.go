package app

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/agentopia/statussync"
)

const exampleConfig = `listen: 127.0.0.1:8080
data: ./data
log: {level: info, format: auto}
auth:
  tokens:
    - {name: ops, role: admin, token: "${OPS_TOKEN}"}
environments:
  - {id: box-7, name: box-7, owner: u1, address: 127.0.0.1, agent_token: "${BOX7_TOKEN}", agent_url: "http://127.0.0.1:30000"}
servers:
  - {id: weather, name: weather, environment: box-7, endpoint: "http://127.0.0.1:9101/mcp", transport: streamable-http, desired: running, labels: {team: core},
     probe: {kind: http, url: "http://127.0.0.1:9101/health", interval: 30s}}
probe:     {path: /health, interval: 30s, timeout: 10s, max_retries: 3, backoff_multiplier: 2, rise: 2, start_grace: 30s, slow_after: 2s, concurrency: 512, per_environment: 16}
heartbeat: {}
transitions: {stuck_after: 10m}
flapping:  {changes: 6, window: 30m, quiet: 15m}
journal:   {retention: 90d, max_bytes: 10GiB, sync: normal}
`

func TestExampleConfig(t *testing.T) {
	t.Setenv("OPS_TOKEN", "ops-secret-1")
	t.Setenv("BOX7_TOKEN", "box7-secret-1")
	c, err := ParseConfig("statussync.yaml", []byte(exampleConfig))
	if err != nil {
		t.Fatal(err)
	}
	def := DefaultConfig()
	if c.Probe != def.Probe || c.Flapping != def.Flapping || c.Journal != def.Journal || c.Transitions != def.Transitions {
		t.Error("the documented defaults are not the defaults")
	}
	out, err := c.Effective()
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"ops-secret-1", "box7-secret-1"} {
		if strings.Contains(string(out), secret) {
			t.Errorf("the effective configuration shows a secret:\n%s", out)
		}
	}
	// What is printed is a configuration again (with masked secrets).
	t.Run("effective parses", func(t *testing.T) {
		again, err := ParseConfig("effective.yaml", []byte(strings.Replace(strings.Replace(string(out), "'***'", "token-one-1", 1), "'***'", "token-two-2", 1)))
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if again.Servers[0].Probe.URL != "http://127.0.0.1:9101/health" || again.Journal != c.Journal {
			t.Errorf("read back differently:\n%s", out)
		}
	})
	r := c.Registry()
	if len(r.Servers) != 1 || !r.Full || r.Servers[0].Labels["team"] != "core" || !r.Environments[0].HasToken {
		t.Errorf("registry: %+v", r)
	}
}

// Every malformed configuration is an error that names file, line and key.
func TestBadConfig(t *testing.T) {
	t.Setenv("SET", "a-long-enough-token")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "short"), []byte("abc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "empty"), []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct{ name, yaml, want string }{
		{"not yaml", "listen: [", "c.yaml:"},
		{"tab", "listen:\n\t- x\n", "c.yaml:2"},
		{"top level list", "- a\n", "c.yaml:1: must be a mapping, not a list"},
		{"unknown key", "data: x\nlisten_on: y\n", "c.yaml:2: listen_on: is no key that is known here"},
		{"unknown nested key", "probe:\n  kind: http\n  intervall: 3s\n", "c.yaml:3: probe.intervall: is no key"},
		{"duplicate key", "data: x\ndata: y\n", "c.yaml:2"},
		{"wrong type", "servers: 7\n", "c.yaml:1: servers: must be a list, not a single value"},
		{"bad duration", "probe:\n  interval: fast\n", `c.yaml:2: probe.interval: "fast" is not a duration`},
		{"negative duration", "probe:\n  timeout: -3s\n", "c.yaml:2: probe.timeout"},
		{"zero interval", "probe: {interval: 0s}\n", "c.yaml:1: probe.interval: must be greater than zero"},
		{"bad size", "journal:\n  max_bytes: lots\n", "c.yaml:2: journal.max_bytes"},
		{"bad bool", "auth: {legacy_viewer: maybe}\n", "auth.legacy_viewer: must be true or false"},
		{"bad number", "flapping:\n  changes: many\n", "c.yaml:2: flapping.changes: must be a whole number"},
		{"bad enum", "journal:\n  sync: sometimes\n", "c.yaml:2: journal.sync: must be one of normal, full"},
		{"open to the world", "listen: 0.0.0.0:8080\n", "add auth:"},
		{"open to the world v6", "listen: '[::]:8080'\n", "add auth:"},
		{"listen without port", "listen: localhost\n", "c.yaml:1: listen"},
		{"unset variable", "data: ${NOT_SET_ANYWHERE}\n", "c.yaml:1: data: the environment variable NOT_SET_ANYWHERE is not set"},
		{"duplicate server", "servers:\n  - {id: a}\n  - {id: a}\n", `c.yaml:3: servers[1].id: "a" is given twice`},
		{"duplicate environment", "environments:\n  - {id: a}\n  - {id: a}\n", "c.yaml:3: environments[1].id"},
		{"duplicate container", "environments:\n  - {id: e}\nservers:\n  - {id: a, environment: e, container: c}\n  - {id: b, environment: e, container: c}\n", "c.yaml:5: servers[1].container"},
		{"missing id", "servers:\n  - {name: a}\n", "c.yaml:2: servers[0].id: is missing"},
		{"bad id", "servers:\n  - {id: 'a b'}\n", "c.yaml:2: servers[0].id"},
		{"dangling environment", "servers:\n  - id: a\n    environment: nowhere\n", `c.yaml:3: servers[0].environment: no environment has the id "nowhere"`},
		{"bad transport", "servers:\n  - {id: a, transport: smoke}\n", "servers[0].transport: must be one of"},
		{"bad desired", "servers:\n  - {id: a, desired: flying}\n", "servers[0].desired"},
		{"bad scheme", "servers:\n  - {id: a, endpoint: 'ftp://x/'}\n", "servers[0].endpoint: must begin with http://"},
		{"userinfo", "servers:\n  - {id: a, endpoint: 'http://u:p@h/'}\n", "servers[0].endpoint: must not hold a user name"},
		{"host trick", "servers:\n  - {id: a, probe: {url: 'http://127.0.0.1:30000@10.0.0.5:6379/'}}\n", "servers[0].probe.url"},
		{"the agent's address", "environments:\n  - {id: e, agent_url: 'http://10.0.0.1:30000'}\nservers:\n  - {id: a, environment: e, endpoint: 'http://10.0.0.1:30000/mcp'}\n", "c.yaml:4: servers[0].endpoint: is the address of the agent"},
		{"bad probe path", "servers:\n  - {id: a, probe: {path: '@evil/'}}\n", "servers[0].probe.path: must begin with /"},
		{"bad role", "auth:\n  tokens:\n    - {name: a, role: king, token: 12345678}\n", "c.yaml:3: auth.tokens[0].role"},
		{"missing token", "auth:\n  tokens:\n    - {name: a, role: admin}\n", "auth.tokens[0].token: is missing"},
		{"short token", "auth: {tokens: [{name: a, role: admin, token: abc}]}\n", "is shorter than 8 characters"},
		{"short token file", "auth: {tokens: [{name: a, role: admin, token_file: short}]}\n", "is shorter than 8 characters"},
		{"missing token file", "auth: {tokens: [{name: a, role: admin, token_file: nothere}]}\n", "nothere cannot be read"},
		{"two tokens alike", "auth: {tokens: [{name: a, role: admin, token: '${SET}'}, {name: b, role: viewer, token: '${SET}'}]}\n", "is the same token as"},
		{"late without lost", "heartbeat: {late_after: 5s}\n", "late_after and lost_after go together"},
		{"lost before late", "heartbeat: {late_after: 50s, lost_after: 5s}\n", "heartbeat.lost_after"},
		{"bad network", "allow_networks: [10.0.0.0/99]\n", "allow_networks[0]"},
		{"bad origin", "allowed_origins: ['example.com']\n", "allowed_origins[0]"},
		{"hidden text", "servers:\n  - {id: a, name: \"x\\u202ey\"}\n", "servers[0].name: holds characters"},
		{"the agent by another name", "environments:\n  - {id: e, agent_url: 'http://localhost:30000'}\nservers:\n  - {id: a, environment: e, probe: {url: 'http://[::1]:30000/health'}}\n", "c.yaml:4: servers[0].probe.url: is the address of the agent"},
		{"the agent's port on the host's address", "environments:\n  - {id: e, address: 10.0.0.1, agent_url: 'http://box.example:30000'}\nservers:\n  - {id: a, environment: e, endpoint: 'http://10.0.0.1:30000/mcp'}\n", "c.yaml:4: servers[0].endpoint: is the address of the agent"},
		{"listen on a large port", "data: x\nlisten: 127.0.0.1:99999\n", `c.yaml:2: listen: "99999" is not a port`},
		{"listen on a negative port", "listen: 127.0.0.1:-1\n", `c.yaml:1: listen: "-1" is not a port`},
		{"listen on a word", "listen: 127.0.0.1:http\n", `c.yaml:1: listen: "http" is not a port`},
		{"listen on nothing", "listen: '127.0.0.1:'\n", `c.yaml:1: listen: "" is not a port`},
		{"two documents", "data: x\n---\ndata: y\n", "c.yaml:2: a second YAML document"},
		{"a second document that is not YAML", "data: x\n---\ndata: [\n", "c.yaml:4: is not YAML"},
		{"empty token file", "auth: {tokens: [{name: a, role: admin, token_file: empty}]}\n", "auth.tokens[0].token_file: empty is empty"},
		{"alias bomb", "x: &a [1,2]\n", "x: is no key"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := ParseConfig(filepath.Join(dir, "c.yaml"), []byte(c.yaml))
			if err == nil {
				t.Fatalf("accepted: %+v", cfg)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
			var e *statussync.Error
			if !errors.As(err, &e) || e.Code != statussync.CodeInvalid {
				t.Errorf("not an Error with code invalid: %v", err)
			}
		})
	}
}

func TestConfigErrorsAreAllTold(t *testing.T) {
	_, err := ParseConfig("c.yaml", []byte("log: {level: loud}\nprobe: {path: x}\nservers: [{id: a, environment: b}]\n"))
	if err == nil || strings.Count(err.Error(), "c.yaml:") != 3 {
		t.Errorf("want three errors, got %v", err)
	}
	if !(strings.Index(err.Error(), "c.yaml:1") < strings.Index(err.Error(), "c.yaml:2")) {
		t.Errorf("errors are not in the file's order: %v", err)
	}
}

// TestEachFaultIsToldOnce: errors of form and of meaning are told together, and none of them follows from another.
func TestEachFaultIsToldOnce(t *testing.T) {
	t.Setenv("SET", "a-long-enough-token")
	for _, c := range []struct {
		name, yaml string
		want       []string // how the errors begin, after the name of the file
	}{
		{"form and meaning", "listen: 127.0.0.1:99999\nprobe: {interval: fast}\nlog: {level: loud}\nservers:\n  - {id: a}\n  - {id: a}\n  - {id: b, environment: nowhere}\ncolour: red\nenvironments: [{id: e}]\n",
			[]string{"1: listen: ", "2: probe.interval: \"fast\"", "3: log.level: ", "6: servers[1].id: ", "7: servers[2].environment: no environment", "8: colour: "}},
		{"what is not read is neither missing nor zero", "listen: ${UNSET_A}\ndata: ${UNSET_A}\nlog: {level: '${UNSET_A}', format: [a]}\nprobe: {interval: '${UNSET_A}', timeout: x, rise: '${UNSET_A}'}\njournal: {max_bytes: lots, retention: ''}\n",
			[]string{"1: listen: the env", "2: data: the env", "3: log.level: the env", "3: log.format: must be", "4: probe.interval: the env", "4: probe.timeout: ", "4: probe.rise: the env", "5: journal.max_bytes: ", "5: journal.retention: "}},
		{"a server that is none", "servers:\n  - 7\n  - {id: '${UNSET_A}'}\n  - {id: '${UNSET_A}'}\n", []string{"2: servers[0]: must be a mapping", "3: servers[1].id: the env", "4: servers[2].id: the env"}},
		{"misspelt ids", "environments:\n  - {idd: e}\nservers:\n  - {idd: a, environment: e}\n", []string{"2: environments[0].idd: ", "4: servers[0].idd: "}},
		{"an environment without its id", "environments:\n  - {id: [e]}\nservers:\n  - {id: a, environment: e}\n", []string{"2: environments[0].id: must be"}},
		{"no environments at all", "environments: e\nservers:\n  - {id: a, environment: e}\n", []string{"1: environments: must be a list"}},
		{"misspelt environments", "enviroments: [{id: e}]\nservers:\n  - {id: a, environment: e}\n", []string{"1: enviroments: "}},
		{"missing ids", "environments: [{id: e}]\nservers:\n  - {environment: e}\n  - {environment: e}\n", []string{"3: servers[0].id: is missing", "4: servers[1].id: is missing"}},
		{"a duplicate's container", "environments: [{id: e}]\nservers:\n  - {id: a, environment: e}\n  - {id: a, environment: e}\n", []string{"4: servers[1].id: "}},
		{"an unknown container", "environments: [{id: e}]\nservers:\n  - {id: a, name: x, environment: e}\n  - {id: b, name: x, environment: e, container: '${UNSET_A}'}\n", []string{"4: servers[1].container: the env"}},
		{"auth that is none", "listen: 0.0.0.0:80\nauth: 7\n", []string{"2: auth: must be a mapping"}},
		{"tokens that are none", "listen: 0.0.0.0:80\nauth: {tokens: 7}\n", []string{"2: auth.tokens: must be a list"}},
		{"port and audience", "listen: 0.0.0.0:99999\n", []string{"1: listen: \"99999\"", "1: listen: \"0.0.0.0:99999\" is reachable"}},
		{"token not set", "auth: {tokens: [{name: a, role: admin, token: '${UNSET_A}'}]}\n", []string{"1: auth.tokens[0].token: the env"}},
		{"token file not set", "auth: {tokens: [{name: a, role: admin, token_file: '${UNSET_A}'}]}\n", []string{"1: auth.tokens[0].token_file: the env"}},
		{"token file not there", "auth: {tokens: [{name: a, role: admin, token_file: nothere}]}\n", []string{"1: auth.tokens[0].token_file: nothere cannot be read"}},
		{"misspelt role and token", "auth: {tokens: [{name: a, rule: admin, tokn: x}]}\n", []string{"1: auth.tokens[0].rule: ", "1: auth.tokens[0].tokn: "}},
		{"a token and a role", "auth: {tokens: [{name: a, role: king, token: '${SET}'}, {name: a, role: admin}]}\n", []string{"1: auth.tokens[0].role: ", "1: auth.tokens[1].name: ", "1: auth.tokens[1].token: is missing"}},
		{"heartbeat not read", "heartbeat: {late_after: soon, lost_after: 5s}\n", []string{"1: heartbeat.late_after: "}},
		{"heartbeat misspelt", "heartbeat: {late: 3s, lost_after: 5s}\n", []string{"1: heartbeat.late: "}},
		{"key given twice", "probe: {rise: 0, rise: 1}\n", []string{"1: probe.rise: is given twice", "1: probe.rise: must be between"}},
		{"a second document", "data: ''\nservers: [{id: a, environment: e}]\n---\nenvironments: [{id: e}]\n", []string{"1: data: must name", "3: a second YAML document"}},
		{"a list", "- a\n", []string{"1: must be a mapping"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseConfig(filepath.Join(t.TempDir(), "c.yaml"), []byte(c.yaml))
			if err == nil {
				t.Fatal("accepted")
			}
			got := strings.Split(err.Error(), "\n")
			same := len(got) == len(c.want)
			for i := 0; same && i < len(got); i++ {
				_, after, _ := strings.Cut(got[i], "c.yaml:")
				same = strings.HasPrefix(after, c.want[i])
			}
			if !same {
				t.Errorf("got\n%v\nwant\n%s", err, strings.Join(c.want, "\n"))
			}
		})
	}
}

// What begins or ends a document doesn't make two.
func TestOneDocument(t *testing.T) {
	for _, s := range []string{"", "# nothing\n", "---\ndata: x\n", "%YAML 1.1\n---\ndata: x\n...\n", "data: x\n...\n# the end\n"} {
		if _, err := ParseConfig("c.yaml", []byte(s)); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(exampleConfig))
	f.Add([]byte("servers: [{id: a, probe: {headers: {a: b}}}]"))
	f.Add([]byte("a: &x [*x]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig("f.yaml", b)
		if (c == nil) == (err == nil) {
			t.Fatal("either a configuration or an error")
		}
		if c != nil {
			if _, err := c.Effective(); err != nil {
				t.Fatal(err)
			}
			c.Registry()
		}
	})
}
