package app

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestHeaderFiles(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"token": "Bearer planted-value\n", "empty": "\n"})
	parse := func(headers string) (*Config, error) {
		return ParseConfig(filepath.Join(dir, "c.yaml"), []byte(`servers: [{id: a, endpoint: "http://127.0.0.1:1/mcp", probe: {headers: `+headers+`}}]`))
	}
	c, err := parse(`{Authorization_file: token, X: y}`)
	if err != nil {
		t.Fatal(err)
	}
	if h := c.Registry().Servers[0].Probe.Headers; len(h) != 2 || h["Authorization"] != "Bearer planted-value" || h["X"] != "y" {
		t.Errorf("%v", h)
	}
	if b, err := c.Effective(); err != nil || strings.Contains(string(b), "planted") {
		t.Errorf("%v %s", err, b)
	}
	for in, want := range map[string]string{
		`{A_file: none}`:          `"A_file": none cannot be read`,
		`{A_file: empty}`:         `"A_file": empty is empty`,
		`{A_file: ""}`:            `"A_file" names no file`,
		`{A_file: token, A: "x"}`: `"A_file" is given beside "A"`,
	} {
		if _, err := parse(in); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "planted") {
			t.Errorf("%s: %v", in, err)
		}
	}
}
