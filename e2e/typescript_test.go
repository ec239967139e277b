//go:build linux

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestTypeScriptClient compiles the client in clients/typescript and runs its tests in Node against the binary.
func TestTypeScriptClient(t *testing.T) {
	missing := func(what string) {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing; .ci/setup installs it", what)
		}
		t.Skipf("%s is missing; .ci/setup installs it", what)
	}
	node, err := exec.LookPath("node")
	if err != nil {
		missing("Node.js")
	}
	const dir = "../clients/typescript"
	tsc, err := filepath.Abs(dir + "/node_modules/typescript/bin/tsc")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(tsc); err != nil {
		missing("what clients/typescript needs from npm")
	}
	t.Parallel()
	run := func(args ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute) // each test in there has a limit of its own
		defer cancel()
		cmd := exec.CommandContext(ctx, node, args...)
		cmd.Dir = dir
		cmd.Env = append(environ(), "STATUSSYNC_BIN="+theBinary(t))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("node %v: %v\n%s", args, err, out)
		}
	}
	run(tsc, "-p", ".")
	files, err := filepath.Glob(dir + "/test/*.test.mjs")
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests in %s: %v", dir, err)
	}
	args := []string{"--test", "--test-reporter=spec", "--test-concurrency=2"} // they mostly wait
	for _, f := range files {
		args = append(args, "test/"+filepath.Base(f))
	}
	run(args...)
}
