package statussync_test

import (
	"testing"

	"github.com/agentopia/statussync"
)

// TestAgentsEndpoint: which spellings are one host and port.
func TestAgentsEndpoint(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"http://10.0.0.1:30000", "http://10.0.0.1:30000/mcp?x=1", true},
		{"http://10.0.0.1:30000", "https://10.0.0.1:30000", true},
		{"http://10.0.0.1:30000", "http://10.0.0.1:30001", false},
		{"http://10.0.0.1:30000", "http://10.0.0.2:30000", false},
		{"http://Box.Example", "HTTP://box.example.:80/", true},
		{"https://box.example", "https://BOX.example:443", true},
		{"https://box.example", "http://box.example", false},
		{"http://box.example:", "http://box.example:080", true},
		{"http://localhost:30000", "http://127.0.0.1:30000", true},
		{"http://LOCALHOST:30000", "http://[::1]:30000", true},
		{"http://127.0.0.1:30000", "http://[0:0:0:0:0:0:0:1]:30000", true},
		{"http://127.0.0.1:30000", "http://[::ffff:127.0.0.1]:30000", true},
		{"http://localhost:30000", "http://[::1]:30001", false},
		{"http://127.0.0.1:30000", "http://127.0.0.2:30000", false},
		{"http://[FE80::1]:80", "http://[fe80:0::1]", true},
		{"http://u:p@h:1/", "http://h:1", true},
		{"", "", false},
		{"h:80", "h:80", false},
		{"ftp://h:80", "ftp://h:80", false},
		{"http://h:99999", "http://h:99999", false},
		{"http://:80", "http://:80", false},
	} {
		for _, got := range []bool{answers(c.a, c.b), answers(c.b, c.a)} {
			if got != c.same {
				t.Errorf("%q and %q: same is %v", c.a, c.b, got)
			}
		}
	}
}

func answers(agentURL, target string) bool {
	return (&statussync.Environment{AgentURL: agentURL}).AgentAnswersAt(target)
}

func TestAgentAnswersAt(t *testing.T) {
	for _, c := range []struct {
		address, agent, target string
		want                   bool
	}{
		{"", "http://box.example:30000", "http://box.example:30000/health", true},
		{"10.0.0.1", "http://box.example:30000", "http://10.0.0.1:30000/health", true},
		{"10.0.0.1", "http://box.example:30000", "http://10.0.0.1:30001/health", false},
		{"10.0.0.1", "http://box.example:30000", "http://10.0.0.2:30000/health", false},
		{"10.0.0.1", "https://box.example", "https://10.0.0.1/mcp", false}, // behind a proxy, at the scheme's own port
		{"10.0.0.1", "https://box.example:443", "https://10.0.0.1/mcp", true},
		{"::1", "http://box.example:30000", "http://localhost:30000", true},
		{"[::1]", "http://box.example:30000", "http://127.0.0.1:30000", true},
		{"Box.example", "http://10.0.0.1:30000", "http://box.EXAMPLE:30000", true},
		{"10.0.0.1", "", "http://10.0.0.1", false},
		{"10.0.0.1", "nonsense", "http://10.0.0.1", false},
		{"10.0.0.1", "http://10.0.0.1:30000", "", false},
	} {
		e := statussync.Environment{Address: c.address, AgentURL: c.agent}
		if got := e.AgentAnswersAt(c.target); got != c.want {
			t.Errorf("address %q, agent %q, target %q: %v", c.address, c.agent, c.target, got)
		}
	}
}
