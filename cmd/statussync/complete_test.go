package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// completed is what the shell is offered for a command line whose last word is being typed.
func completed(t *testing.T, args ...string) (words []string, directive string) {
	t.Helper()
	r := exec(t.Context(), append([]string{cobra.ShellCompNoDescRequestCmd}, args...))
	if r.code != 0 {
		t.Fatalf("%v: %+v", args, r)
	}
	words = strings.Split(strings.TrimSuffix(r.out, "\n"), "\n")
	return words[:len(words)-1], words[len(words)-1]
}

const noFiles = ":4" // cobra.ShellCompDirectiveNoFileComp

// TestCompletesWhatTheServiceKnows asks a real service.
func TestCompletesWhatTheServiceKnows(t *testing.T) {
	url, _, _ := serve(t)
	for _, c := range []struct {
		line []string
		want []string
	}{
		{[]string{"status", ""}, []string{"unseen", "weather"}},
		{[]string{"status", "w"}, []string{"weather"}},
		{[]string{"status", "weather", ""}, nil},
		{[]string{"watch", "weather", ""}, []string{"unseen"}},
		{[]string{"override", "set", "un"}, []string{"unseen"}},
		{[]string{"server", "show", "x"}, nil},
		{[]string{"environment", "show", ""}, []string{"box-7"}},
		{[]string{"status", "--environment", "box"}, []string{"box-7"}},
		{[]string{"metrics", ""}, nil},
		{[]string{"serve", ""}, []string{"--config", "--mcp-config"}}, // without one of them there is nothing to serve
	} {
		line := append([]string{"--server", url, "--token", "viewer-token"}, c.line...)
		words, directive := completed(t, line...)
		if !slices.Equal(words, c.want) && len(words)+len(c.want) > 0 || directive != noFiles {
			t.Errorf("%v: %v %s, want %v", c.line, words, directive, c.want)
		}
	}
	if r := exec(t.Context(), []string{cobra.ShellCompRequestCmd, "--server", url, "status", "w"}, withEnv("STATUSSYNC_TOKEN", "viewer-token")); !strings.Contains(r.out, "weather\tunknown unknown\n") {
		t.Errorf("with the token of the environment, and with what the server is: %q", r.out)
	}
	if words, _ := completed(t, "--server", url, "--token", "not-the-token", "status", ""); len(words) > 0 {
		t.Errorf("with a wrong token: %v", words)
	}
	if words, d := completed(t, "config", "check", ""); !slices.Equal(words, []string{"yaml", "yml"}) || d != ":8" {
		t.Errorf("a configuration: %v %s", words, d)
	}
}

// TestCompletionDoesNotWait: a shell gets its prompt back although the service hangs.
func TestCompletionDoesNotWait(t *testing.T) {
	hang := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer hang.Close()
	if words, d := completed(t, "--server", hang.URL, "status", ""); len(words) > 0 || d != noFiles {
		t.Errorf("%v %s", words, d)
	}
}

// TestCompletionsNameCommands: a command that is renamed must not lose its completion silently.
func TestCompletionsNameCommands(t *testing.T) {
	root := (&cli{system: system{getenv: os.Getenv}}).root()
	for path := range completions {
		cmd, rest, err := root.Find(strings.Fields(path))
		if err != nil || len(rest) > 0 {
			t.Errorf("%q is no command: %v", path, err)
		} else if cmd.ValidArgsFunction == nil {
			t.Errorf("%q completes nothing", path)
		}
	}
}

// TestCompletionScripts: each shell that is installed takes its script.
func TestCompletionScripts(t *testing.T) {
	for _, c := range []struct{ shell, check string }{{"bash", "-n"}, {"zsh", "-n"}, {"fish", "--no-execute"}, {"powershell", ""}} {
		r := exec(t.Context(), []string{"completion", c.shell})
		if r.code != 0 || !strings.Contains(r.out, "statussync") {
			t.Errorf("%s: %+v", c.shell, r)
			continue
		}
		bin, err := osexec.LookPath(c.shell)
		if err != nil || c.check == "" {
			continue // every machine has bash, few the others; none is needed for the service
		}
		file := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(file, []byte(r.out), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := osexec.Command(bin, c.check, file).CombinedOutput(); err != nil {
			t.Errorf("%s does not take its script: %v\n%s", c.shell, err, out)
		}
	}
}

// TestMan: every command has a page, and man has nothing to complain of.
func TestMan(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1767225600") // 2026-01-01
	dir := filepath.Join(t.TempDir(), "share", "man1")
	r := exec(t.Context(), []string{"man", dir}, withEnv("STATUSSYNC_SERVER", "http://builder.example"))
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	root := (&cli{system: system{getenv: func(string) string { return "" }}}).root()
	root.InitDefaultCompletionCmd()
	n := 0
	man, err := osexec.LookPath("man")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Error("man is missing; .ci/setup installs it")
		}
		man = ""
	}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Hidden || cmd.Name() == "help" {
			return
		}
		n++
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
		b, err := os.ReadFile(filepath.Join(dir, name+".1"))
		if err != nil {
			t.Error(err)
			return
		}
		page := string(b)
		if !strings.Contains(page, `"Jan 2026"`) || !strings.Contains(page, strings.ToUpper(name)) || strings.Contains(page, "builder.example") {
			t.Errorf("%s: %s", name, page)
		}
		if man != "" {
			c := osexec.Command(man, "--warnings", "-l", "-Tutf8", filepath.Join(dir, name+".1"))
			var told strings.Builder
			c.Stderr = &told
			if out, err := c.Output(); err != nil || told.Len() > 0 || !strings.Contains(string(out), cmd.Name()) {
				t.Errorf("man %s: %v %s", name, err, told.String())
			}
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
	if pages, _ := filepath.Glob(filepath.Join(dir, "*")); len(pages) != n {
		t.Errorf("%d pages for %d commands", len(pages), n)
	}
	file := filepath.Join(dir, "statussync.1")
	if r := exec(t.Context(), []string{"man", file}); r.code != 1 || !strings.Contains(r.err, "statussync.1") {
		t.Errorf("a file in place of a folder: %+v", r)
	}
}

// TestHealthcheck: 0 where the service is ready, 1 in every other case that its own words can't say.
func TestHealthcheck(t *testing.T) {
	url, _, stop := serve(t)
	for _, args := range [][]string{{}, {"--token", "a-wrong-token"}} {
		if r := exec(t.Context(), append([]string{"healthcheck", "--server", url}, args...)); r.code != 0 || r.out != "ready\n" || r.err != "" {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if r := exec(t.Context(), []string{"healthcheck", "--server", url, "-o", "json"}); r.code != 0 || !strings.Contains(r.out, `"status": "ready"`) {
		t.Errorf("%+v", r)
	}
	stop()
	if r := exec(t.Context(), []string{"healthcheck", "--server", url}); r.code != 1 || !strings.Contains(r.err, "does not answer") {
		t.Errorf("a service that is gone: %+v", r)
	}
	draining := fake(t, map[string]string{"GET /readyz": `503 {"status":"unready","durable":true}`})
	if r := exec(t.Context(), []string{"healthcheck", "--server", draining}); r.code != 1 {
		t.Errorf("a service that stops: %+v", r)
	}
	hang := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer hang.Close()
	if r := exec(t.Context(), []string{"healthcheck", "--server", hang.URL, "--timeout", "100ms"}); r.code != 1 || !strings.Contains(r.err, "does not answer") {
		t.Errorf("a service that hangs: %+v", r)
	}
	if r := exec(t.Context(), []string{"healthcheck", "--timeout", "0s"}); r.code != 2 {
		t.Errorf("no time: %+v", r)
	}
}
