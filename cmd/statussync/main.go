// Command statussync runs the status service and talks to a running one.
//
// This package holds flags, signals and output only: the service itself is package app, the calls are package client.
// Exit codes: 0 fine, 1 what was asked for is not healthy (or the service failed while it ran), 2 usage or
// configuration, 3 cannot reach the service, 4 the service refused, or restore, erase or export could not do what was
// asked for.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"

	"github.com/agentopia/statussync/check"
)

// version is set by the linker: -ldflags "-X main.version=v1.2.3". Empty: what the Go toolchain recorded.
var version string

func main() {
	if len(os.Args) > 2 && os.Args[1] == guardArg {
		os.Exit(check.Guard(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the process at once
	}()
	os.Exit(run(ctx, os.Args[1:], system{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, now: time.Now, version: buildVersion(),
		terminal: isatty.IsTerminal(os.Stdout.Fd()), columns: columns(os.Stdout), live: isatty.IsTerminal(os.Stderr.Fd()), command: os.Args[0],
	}))
}

// buildVersion is the linker's word, else the module version, else the commit it was built from.
func buildVersion() string {
	if version != "" {
		return version
	}
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := bi.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	rev, dirty := "", ""
	for _, s := range bi.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	if rev == "" {
		return "devel"
	}
	return "devel-" + rev + dirty
}
