package statussync_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/agentopia/statussync"

// rooms is the table of docs/architecture.md: which room may import which others of the module, beside the root, which
// all may import. A room that is not listed is an error: add it here and there in the same commit.
var rooms = map[string][]string{
	"":                      {},
	"engine":                {},
	"hub":                   {"engine"},
	"sqlite":                {},
	"backup":                {},
	"guard":                 {},
	"probe":                 {},
	"probe/httpprobe":       {"guard"},
	"probe/mcpprobe":        {"guard"},
	"dtma":                  {"guard"},
	"wire":                  {},
	"httpapi":               {"wire", "dtma"},
	"client":                {"wire"},
	"prom":                  {},
	"postgres":              {},
	"postgres/pgtest":       {},
	"registry":              {},
	"shadow":                {},
	"rollup":                {},
	"recur":                 {},
	"drift":                 {},
	"fleetsim":              {},
	"dashboard":             {},
	"mcpconfig":             {},
	"mcpserver":             {"wire"},
	"check":                 {"mcpconfig", "guard", "probe/mcpprobe"},
	"app":                   {"*"},
	"cmd/statussync":        {"app", "client", "wire", "check", "mcpconfig", "mcpserver", "postgres", "shadow"},
	"statussynctest":        {},
	"deploy":                {},
	"e2e":                   {"*"},
	"supabase":              {},
	"supabase/realtimetest": {},
}

// pureRooms do no I/O and know no clock, goroutine or log: these imports are not for them.
var pureRooms = map[string][]string{
	"":       {"net", "net/http", "os", "sync", "log", "log/slog", "database/sql"},
	"recur":  {"net", "net/http", "os", "sync", "sync/atomic", "log", "log/slog", "database/sql", "context", "crypto/rand", "math/rand"},
	"engine": {"net", "net/http", "os", "sync", "sync/atomic", "log", "log/slog", "database/sql", "context", "crypto/rand", "math/rand"},
}

// TestArchitecture holds the tree against the table. Test files may import any room: conformance and integration tests
// need the real neighbours.
func TestArchitecture(t *testing.T) {
	fset := token.NewFileSet()
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && p != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || name == "data") {
			return fs.SkipDir
		}
		if d.IsDir() && p != "." { // a module of its own may import what it likes
			if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil {
				return fs.SkipDir
			}
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		room := path.Dir(filepath.ToSlash(p))
		if room == "." {
			room = ""
		}
		allowed, ok := rooms[room]
		if !ok {
			if !seen[room] {
				t.Errorf("the room %q is not in the table", room)
			}
			seen[room] = true
			return nil
		}
		seen[room] = true
		if strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(fset, p, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, imp := range f.Imports {
			ip, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			if slices.Contains(pureRooms[room], ip) {
				t.Errorf("%s imports %s, but the room %q is pure", p, ip, room)
			}
			if room == "" && strings.Contains(strings.SplitN(ip, "/", 2)[0], ".") {
				t.Errorf("%s imports %s, but the root imports the standard library only", p, ip)
			}
			rest, ours := strings.CutPrefix(ip, module)
			rest = strings.TrimPrefix(rest, "/")
			if !ours || rest == "" || slices.Contains(allowed, rest) || slices.Contains(allowed, "*") {
				continue
			}
			t.Errorf("%s imports %s, which the table does not allow to the room %q", p, ip, room)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for room := range rooms {
		if !seen[room] {
			t.Errorf("the table lists the room %q, which does not exist", room)
		}
	}
}
