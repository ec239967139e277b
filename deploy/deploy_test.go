package deploy

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.yaml.in/yaml/v4"
)

type (
	obj  = map[string]any
	list = []any
)

// need returns the path of a program that the tests use; where it is missing the test skips, or fails with CI=true.
func need(t *testing.T, name string) string {
	t.Helper()
	bin, err := exec.LookPath(name)
	if err != nil {
		missing(t, name)
	}
	return bin
}

func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing; .ci/setup installs it", what)
	}
	t.Skipf("%s is missing; .ci/setup installs it", what)
}

// run runs a program and returns what it wrote to both outputs; ok says whether it succeeded.
func run(t *testing.T, dir, bin string, args ...string) (out string, ok bool) {
	t.Helper()
	cmd := exec.Command(bin, args...)
	cmd.Dir = dir
	b, err := cmd.CombinedOutput()
	if _, failed := err.(*exec.ExitError); err != nil && !failed {
		t.Fatal(err)
	}
	return string(b), err == nil
}

var built struct {
	once sync.Once
	dir  string
	err  error
	out  []byte
}

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(built.dir)
	os.Exit(code)
}

// program builds the program, once for all tests, and returns its path.
func program(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "statussync-deploy-"); built.err == nil {
			args := []string{"build", "-o", filepath.Join(built.dir, "statussync")}
			if raceEnabled { // then the rest of the tests has compiled all of it so
				args = append(args, "-race")
			}
			built.out, built.err = exec.Command("go", append(args, "../cmd/statussync")...).CombinedOutput()
		}
	})
	if built.err != nil {
		t.Fatalf("%v\n%s", built.err, built.out)
	}
	return filepath.Join(built.dir, "statussync")
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// documents decodes all YAML documents of a text.
func documents(t *testing.T, text string) []obj {
	t.Helper()
	var out []obj
	d := yaml.NewDecoder(strings.NewReader(text))
	for {
		var o obj
		err := d.Decode(&o)
		if err != nil {
			if err.Error() == "EOF" {
				return out
			}
			t.Fatalf("%v in\n%s", err, text)
		}
		if len(o) > 0 {
			out = append(out, o)
		}
	}
}

// at walks into decoded YAML or JSON: names for objects, numbers for lists. nil: there is nothing.
func at(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			o, _ := v.(obj)
			v = o[p]
		case int:
			l, _ := v.(list)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

// items is at for lists.
func items(v any, path ...any) list {
	l, _ := at(v, path...).(list)
	return l
}

func decodeJSON(t *testing.T, text string) obj {
	t.Helper()
	var o obj
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	if err := d.Decode(&o); err != nil {
		t.Fatal(err)
	}
	return o
}
