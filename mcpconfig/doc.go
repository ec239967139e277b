// Package mcpconfig reads the configurations in which people already name their MCP servers, and says where the
// well-known clients keep theirs (docs/protocols.md §8).
//
// Guarantees:
//
//   - Tolerance. Comments and trailing commas are accepted, as most clients do. A server that can't be understood is an
//     error with its file, line and name; the others are still read.
//   - Nothing is run and nothing is asked: it only reads. A command is returned, never started.
//   - Secrets. Values of headers and environment variables, and what variables were replaced by, are only in Entry's
//     fields; no error, warning or text for people has them.
//   - Bounds. A file is read to MaxBytes, MaxServers and MaxDepth; beyond them it is refused.
//
// All functions are safe for concurrent use and block for nothing but reading a file.
package mcpconfig

import (
	"strconv"
	"strings"

	"github.com/agentopia/statussync"
)

// Bounds of what is read. The largest configurations seen in use have some dozens of servers.
const (
	MaxBytes   = 8 << 20 // of one file
	MaxServers = 5000    // of one file
	MaxDepth   = 64      // of nested objects and lists
)

// Format is whose configuration a file is.
type Format string

// The formats.
const (
	FormatMCPServers   Format = "mcpServers"        // {"mcpServers":{…}}: Claude Desktop, Claude Code, Cursor, Cline, Windsurf, Gemini, Copilot CLI
	FormatVSCode       Format = "vscode"            // {"inputs":[…],"servers":{…}}
	FormatServerJSON   Format = "server.json"       // the MCP registry's description of one server
	FormatRegistryList Format = "registry"          // its list, GET /v0.1/servers
	FormatToolHive     Format = "toolhive"          // ToolHive's RunConfig
	FormatDocker       Format = "docker-containers" // docker inspect: containers labelled for MCP
)

// Entry is one server as a file names it.
type Entry struct {
	Name      string               // as in the file, cleaned of what a terminal would interpret
	Source    string               // the file's name as given
	Line      int                  // where it begins there, from 1
	Transport statussync.Transport // stdio, streamable-http or sse

	URL     string            // of a remote server; "" for stdio. May hold a secret
	Headers map[string]string // secret

	Command string            // of a stdio server
	Args    []string          // may hold secrets
	Env     map[string]string // beside the environment of whoever starts it; secret
	Dir     string            // to start it in; "" where the file says nothing

	Disabled bool
	// NeedsConfig says what could not be resolved, in words without any value ("GITHUB_TOKEN is not set"); "" where
	// nothing is missing. Such a server can't be reached as it is.
	NeedsConfig string
	// Unshown is what must not be shown, the longest first: every value that a variable was replaced by, of headers and of
	// env, and what is a secret in arguments and in the URL, by its name. Hide replaces it.
	Unshown []string
}

// File is what was read of one file.
type File struct {
	Name    string
	Format  Format
	Entries []Entry             // in the file's order
	Errors  []*statussync.Error // servers that can't be understood; Location is file:line, Detail begins with the server's name
}

// Options say how a file is read.
type Options struct {
	// Lookup finds variables, like os.LookupEnv; nil: none is set.
	Lookup func(name string) (string, bool)
	// Home replaces ${userHome} and a leading "~/"; "": they stay unresolved.
	Home string
	// Project is the folder whose own servers are taken from a file that holds those of many (Claude Code's
	// ~/.claude.json); "": only the servers that hold everywhere.
	Project string
}

// ID makes of a name an id that a registry takes: letters, digits and . _ : - stay, everything else becomes "-".
func ID(name string) string {
	var b strings.Builder
	for _, r := range name {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("._:-", r):
			b.WriteRune(r)
		default:
			b.WriteByte('-')
		}
		if b.Len() >= 120 {
			break
		}
	}
	id := strings.Trim(b.String(), "-._:")
	if id == "" {
		return "server"
	}
	return id
}

// Servers returns the entries as servers of a fleet, with unique ids made of their names; prefix goes before each id. A
// stdio server has no endpoint: it is seen only through its host's agent.
func (f *File) Servers(prefix string) []statussync.Server {
	taken := map[string]bool{}
	out := make([]statussync.Server, 0, len(f.Entries))
	for i := range f.Entries {
		e := &f.Entries[i]
		base := prefix + ID(e.Name)
		id := base
		for n := 2; taken[id]; n++ {
			id = base + "-" + strconv.Itoa(n)
		}
		taken[id] = true
		out = append(out, statussync.Server{
			ID: id, Name: e.Name, Endpoint: e.URL, Transport: e.Transport, Desired: statussync.DesiredRunning,
			Origin: statussync.OriginMCPConfig, NeedsConfig: e.NeedsConfig, Disabled: e.Disabled,
			Probe: statussync.ProbeSpec{Headers: e.Headers},
		})
	}
	return out
}
