package mcpconfig

import (
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/agentopia/statussync"
)

// expander replaces variables in the strings of one server, and remembers what it put in and what it could not.
type expander struct {
	o       *Options
	folder  string // of the file's project, for ${workspaceFolder}
	vars    map[string]string
	missing []string // in words, each once
	secrets []string
}

// miss notes what is not there.
func (x *expander) miss(what string) {
	if !slices.Contains(x.missing, what) {
		x.missing = append(x.missing, what)
	}
}

// needs is what is missing, in one sentence.
func (x *expander) needs() string {
	return statussync.CleanText(strings.Join(x.missing, ", "), statussync.MaxErrorText)
}

// expand replaces ${VAR}, ${VAR:-default} and ${env:VAR} in s, and VS Code's ${workspaceFolder} and ${userHome}. What
// can't be replaced stays as it is and is noted.
func (x *expander) expand(s string) string {
	if !strings.Contains(s, "${") {
		return s
	}
	var b strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			break
		}
		end := strings.IndexByte(s[i:], '}')
		if end < 0 {
			break
		}
		b.WriteString(s[:i])
		name := s[i+2 : i+end]
		if v, ok := x.value(name); ok {
			b.WriteString(v)
		} else {
			b.WriteString(s[i : i+end+1])
		}
		s = s[i+end+1:]
	}
	b.WriteString(s)
	return b.String()
}

func (x *expander) value(name string) (string, bool) {
	if v, ok := x.vars[name]; ok {
		return v, true
	}
	def, hasDef := "", false
	if i := strings.Index(name, ":-"); i >= 0 {
		name, def, hasDef = name[:i], name[i+2:], true
	}
	name = strings.TrimPrefix(name, "env:")
	shown := statussync.CleanText(name, statussync.MaxWordText)
	switch {
	case strings.HasPrefix(name, "input:"):
		x.miss(strings.TrimPrefix(shown, "input:") + " is asked for by the editor (" + shown + ")")
		return "", false
	case (name == "workspaceFolder" || name == "workspaceRoot") && x.folder != "":
		return x.folder, true
	case name == "workspaceFolderBasename" && x.folder != "":
		return filepath.Base(x.folder), true
	case name == "userHome" && x.o.Home != "":
		return x.o.Home, true
	case name == "pathSeparator" || name == "/":
		return string(filepath.Separator), true
	}
	if x.o.Lookup != nil {
		// As shells read :-, an empty variable counts as one that is not set.
		if v, ok := x.o.Lookup(name); ok && (v != "" || !hasDef) {
			x.hide(v)
			return v, true
		}
	}
	if hasDef {
		return def, true
	}
	x.miss(shown + " is not set")
	return "", false
}

// minSecret is the shortest value that is looked for in texts to hide it: a shorter one would hide parts of words.
const minSecret = 4

// plainWords are values of variables and headers that are no secrets.
var plainWords = []string{"true", "false", "none", "null", "info", "debug", "warn", "error", "production", "development", "stdio", "http", "https", "bearer", "basic"}

// hide notes a value that must not be shown.
//
// Words that tell nothing are not hidden either: what servers say would be hard to read without them.
func (x *expander) hide(v string) {
	if len(v) < minSecret || slices.Contains(plainWords, strings.ToLower(v)) {
		return
	}
	// As it is, and as it stands in a URL.
	for _, s := range []string{v, url.QueryEscape(v), url.PathEscape(v)} {
		if !slices.Contains(x.secrets, s) {
			x.secrets = append(x.secrets, s)
		}
	}
}
