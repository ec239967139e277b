package check

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"go.uber.org/goleak"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/mcpconfig"
)

// The test's own binary is also the guard, the servers that are checked, and a check that can be killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "guard":
			os.Exit(Guard(os.Args[2:]))
		case "server":
			os.Exit(server(os.Args[2:]))
		case "checker":
			r := Run(context.Background(), []mcpconfig.Entry{self("x", "family", os.Args[2])}, opts())
			fmt.Println(r[0].Verdict)
			os.Exit(0)
		}
	}
	goleak.VerifyTestMain(m)
}

func self(name string, args ...string) mcpconfig.Entry {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return mcpconfig.Entry{Name: name, Source: "mcp.json", Transport: statussync.TransportStdio, Command: exe, Args: append([]string{"server"}, args...)}
}

func opts() Options {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	// The race detector would have every process sleep for a second before it ends.
	return Options{GuardCommand: []string{exe, "guard"}, Environ: append(os.Environ(), "GORACE=atexit_sleep_ms=0"), Timeout: 20 * time.Second}
}

// server is a stdio server of some kind.
func server(args []string) int {
	in := bufio.NewScanner(os.Stdin)
	switch args[0] {
	case "sdk":
		s := mcp.NewServer(&mcp.Implementation{Name: "real", Version: "1.2"}, nil)
		for i := range 3 {
			mcp.AddTool(s, &mcp.Tool{Name: "t" + strconv.Itoa(i)}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
				return nil, nil, nil
			})
		}
		s.AddPrompt(&mcp.Prompt{Name: "p"}, nil)
		if err := s.Run(context.Background(), &mcp.StdioTransport{}); err != nil {
			return 1
		}
	case "chatty": // greets people, asks a question, and answers only once it is answered
		fmt.Println("Welcome! Listening on stdio…")
		fmt.Println(`{"jsonrpc":"2.0","id":"q","method":"ping"}`)
		for in.Scan() {
			var m message
			_ = json.Unmarshal(in.Bytes(), &m)
			if m.Method == "initialize" {
				in.Scan()
				if !strings.Contains(in.Text(), `"result"`) {
					return 9
				}
				fmt.Printf(`{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2024-11-05","capabilities":{},"serverInfo":{"name":"chatty\u001b[31m","version":"0"}}}`+"\n", m.ID)
			}
		}
	case "modern": // has no handshake
		for in.Scan() {
			var m message
			_ = json.Unmarshal(in.Bytes(), &m)
			switch {
			case m.Method == "server/discover" && strings.Contains(in.Text(), "2026-07-28"):
				fmt.Printf(`{"jsonrpc":"2.0","id":%s,"result":{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"new","version":"3"}}}}`+"\n", m.ID)
			case m.Method == "tools/list" && strings.Contains(in.Text(), "cursor"):
				fmt.Printf(`{"jsonrpc":"2.0","id":%s,"result":{"tools":[{"name":"b"}]}}`+"\n", m.ID)
			case m.Method == "tools/list":
				fmt.Printf(`{"jsonrpc":"2.0","id":%s,"result":{"tools":[{"name":"a"}],"nextCursor":"2"}}`+"\n", m.ID)
			default:
				fmt.Printf(`{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no such method"}}`+"\n", m.ID)
			}
		}
	case "refuses":
		for in.Scan() {
			var m message
			_ = json.Unmarshal(in.Bytes(), &m)
			fmt.Printf(`{"jsonrpc":"2.0","id":%s,"error":{"code":-32000,"message":"bad key %s"}}`+"\n", m.ID, os.Getenv("KEY"))
		}
	case "flood":
		for line := strings.Repeat("x", 1000); ; {
			if _, err := fmt.Println(line); err != nil {
				return 0
			}
		}
	case "endless": // one line without end
		for {
			if _, err := os.Stdout.WriteString(strings.Repeat("y", 1<<16)); err != nil {
				return 0
			}
		}
	case "deaf": // neither reads nor answers, nor lets itself be asked to go
		ignoreSignals()
		time.Sleep(time.Hour)
	case "exit":
		fmt.Fprintln(os.Stderr, "Error: no module named "+os.Getenv("KEY"))
		n, _ := strconv.Atoi(args[1])
		return n
	case "shell":
		fmt.Println("usage: not-a-server [options]")
	case "family": // a child that leaves the group and outlives everybody
		c := exec.Command(os.Args[0], "server", "orphan", args[1])
		c.SysProcAttr = newSession()
		if err := c.Start(); err != nil {
			return 1
		}
		time.Sleep(time.Hour)
	case "orphan":
		ignoreSignals()
		if err := os.WriteFile(args[1], []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
			return 1
		}
		time.Sleep(time.Hour)
	}
	return 0
}

func TestStdio(t *testing.T) {
	one, two, three := 1, 2, 3
	secret := func(e mcpconfig.Entry) mcpconfig.Entry {
		e.Env, e.Unshown = map[string]string{"KEY": "planted-secret"}, []string{"planted-secret"}
		return e
	}
	missing := self("missing")
	missing.Command = "no-such-command-anywhere"
	nowhere := self("nowhere", "sdk")
	nowhere.Dir = filepath.Join(t.TempDir(), "none")
	disabled := self("disabled", "sdk")
	disabled.Disabled = true
	needs := self("needs", "sdk")
	needs.NeedsConfig = "GITHUB_TOKEN is not set"
	folder := self("folder")
	folder.Command = t.TempDir()
	for _, c := range []struct {
		e        mcpconfig.Entry
		timeout  time.Duration
		outcome  Outcome
		cause    string
		verdict  string
		detail   string
		protocol string
		tools    *int
		prompts  *int
	}{
		{e: self("sdk", "sdk"), outcome: Success, verdict: "works", protocol: "2025-11-25", tools: &three, prompts: &one},
		{e: self("chatty", "chatty"), outcome: Success, verdict: "works", protocol: "2024-11-05"},
		{e: self("modern", "modern"), outcome: Success, verdict: "works", protocol: "2026-07-28", tools: &two},
		{e: secret(self("refuses", "refuses")), outcome: Alive, cause: CauseRPC, verdict: "answers with an error", detail: "bad key ***"},
		{e: self("flood", "flood"), outcome: Failure, cause: CauseFlood, verdict: "answers, but not MCP"},
		{e: self("endless", "endless"), outcome: Failure, cause: CauseFlood, verdict: "answers, but not MCP"},
		{e: self("deaf", "deaf"), timeout: time.Second, outcome: Failure, cause: CauseTimeout, verdict: "started, but did not answer in time"},
		{e: secret(self("exit", "exit", "3")), outcome: Failure, cause: "exit_3", verdict: "ended at once with code 3", detail: "no module named ***"},
		{e: self("exit0", "exit", "0"), outcome: Failure, cause: "exit_0", verdict: "ended at once with code 0"},
		{e: self("shell", "shell"), outcome: Failure, cause: CauseNotMCP, verdict: "answers, but not MCP"},
		{e: missing, outcome: Failure, cause: CauseCommandNotFound, verdict: "command not found: no-such-command-anywhere"},
		{e: folder, outcome: Failure, cause: CauseCommandNotFound},
		{e: nowhere, outcome: Failure, cause: "bad_config", detail: "is not there"},
		{e: disabled, outcome: Skipped, cause: CauseDisabled, verdict: "is disabled"},
		{e: needs, outcome: Skipped, cause: CauseNeedsConfig, verdict: "needs config: GITHUB_TOKEN is not set"},
		{e: mcpconfig.Entry{Name: "label", Transport: statussync.TransportStdio}, outcome: Skipped, cause: CauseNeedsConfig},
	} {
		t.Run(c.e.Name, func(t *testing.T) {
			o := opts()
			if c.timeout > 0 {
				o.Timeout = c.timeout
			}
			before := len(descendantsOf(t))
			r := Run(t.Context(), []mcpconfig.Entry{c.e}, o)[0]
			same := func(a, b *int) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
			if r.Outcome != c.outcome || r.Cause != c.cause || (c.verdict != "" && r.Verdict != c.verdict) || r.ProtocolVersion != c.protocol ||
				!strings.Contains(r.Detail, c.detail) || !same(r.Tools, c.tools) || !same(r.Prompts, c.prompts) || r.Verdict == "" {
				t.Errorf("%+v", r)
			}
			if b, _ := json.Marshal(r); strings.Contains(string(b), "planted") || strings.Contains(string(b), `\u001b`) {
				t.Errorf("%s", b)
			}
			if after := len(descendantsOf(t)); after > before {
				t.Errorf("%d processes are left", after-before)
			}
		})
	}
}

// Nothing outlives a check: not a grandchild that left its process group, not where the checker is killed.
func TestNothingIsLeft(t *testing.T) {
	born := func(file string) (pid int) {
		eventually(t, func() bool {
			b, err := os.ReadFile(file)
			pid, _ = strconv.Atoi(string(b))
			return err == nil && pid > 0
		})
		return pid
	}
	gone := func(pid int) func() bool {
		return func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH }
	}
	t.Run("timeout", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "pid")
		o := opts()
		o.Timeout = 3 * time.Second
		if r := Run(t.Context(), []mcpconfig.Entry{self("x", "family", file)}, o)[0]; r.Cause != CauseTimeout {
			t.Errorf("%+v", r)
		}
		if pid := born(file); !gone(pid)() {
			t.Errorf("%d is left", pid)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "pid")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan Result)
		go func() { done <- Run(ctx, []mcpconfig.Entry{self("x", "family", file)}, opts())[0] }()
		pid := born(file)
		cancel()
		if r := <-done; r.Cause != CauseCanceled || !gone(pid)() {
			t.Errorf("%+v, gone %t", r, gone(pid)())
		}
	})
	t.Run("killed", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "pid")
		cmd := exec.Command(os.Args[0], "checker", file)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pid := born(file)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		eventually(t, gone(pid))
	})
}

// eventually polls the world outside, which no clock of ours moves.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 6000 {
		if ok() {
			return
		}
		<-tick.C
	}
	t.Fatal("it never came")
}

func TestRunOrder(t *testing.T) {
	var entries []mcpconfig.Entry
	for i := range 3 * MaxParallel {
		entries = append(entries, mcpconfig.Entry{Name: strconv.Itoa(i), Transport: statussync.TransportSSE, URL: "http://h"})
	}
	ctx, cancel := context.WithCancel(t.Context())
	o := Options{Remote: func(ctx context.Context, e *mcpconfig.Entry, d time.Duration) Result {
		if e.Name == "100" {
			cancel()
		}
		if d != DefaultTimeout {
			t.Errorf("%s", d)
		}
		return Result{Outcome: Success}
	}}
	skipped := 0
	for i, r := range Run(ctx, entries, o) {
		if r.Name != strconv.Itoa(i) {
			t.Fatalf("%d: %+v", i, r)
		}
		if r.Cause == CauseCanceled {
			skipped++
		}
	}
	if skipped == 0 || skipped >= len(entries) {
		t.Errorf("%d skipped", skipped)
	}
}

// Every cause has words, and those that somebody can do something about an advice.
func TestVerdicts(t *testing.T) {
	e := &mcpconfig.Entry{Name: "x", Source: "m.json", Command: "/usr/bin/uvx", Transport: statussync.TransportStreamableHTTP}
	for _, c := range []struct {
		r       Result
		verdict string
		advice  bool
	}{
		{Result{Outcome: Success, Auth: statussync.AuthNone}, "works", false},
		{Result{Outcome: Success, Auth: statussync.AuthOK}, "works, with its login", false},
		{Result{Outcome: Alive, Cause: "http_401", Auth: statussync.AuthRequired}, "wants a login", true},
		{Result{Outcome: Alive, Cause: "http_403", Auth: statussync.AuthFailed}, "rejects your login", true},
		{Result{Outcome: Alive, Cause: "http_429"}, "answers, but limits your requests", true},
		{Result{Outcome: Failure, Cause: "refused"}, "is not running", true},
		{Result{Outcome: Failure, Cause: "dns"}, "its host has no address", true},
		{Result{Outcome: Failure, Cause: "tls"}, "its certificate is not trusted", true},
		{Result{Outcome: Failure, Cause: "not_mcp"}, "answers, but not MCP", true},
		{Result{Outcome: Failure, Cause: "http_404"}, "nothing at this path", true},
		{Result{Outcome: Failure, Cause: "http_503"}, "is broken: it answers 503", true},
		{Result{Outcome: Failure, Cause: "timeout"}, "does not answer in time", true},
		{Result{Outcome: Failure, Cause: "command_not_found"}, "command not found: uvx", true},
		{Result{Outcome: Failure, Cause: "reset"}, "cuts the connection", true},
		{Result{Outcome: Failure, Cause: "unreachable"}, "its host cannot be reached", true},
		{Result{Outcome: Failure, Cause: "protocol"}, "answers, but not HTTP", true},
		{Result{Outcome: Failure, Cause: "session_lost"}, "loses its sessions", true},
		{Result{Outcome: Failure, Cause: "bad_config"}, "cannot be asked as configured", true},
		{Result{Outcome: Failure, Cause: "http_301"}, "has moved: it answers 301", true},
		{Result{Outcome: Failure, Cause: "http_405"}, "refuses: it answers 405", true},
		{Result{Outcome: Alive, Cause: "mcp_error"}, "answers with an error", true},
		{Result{Outcome: Alive, Cause: "method_not_found"}, "answers, but lacks basic methods", true},
		{Result{Outcome: Alive, Cause: "unsupported_version"}, "speaks another version of MCP", true},
		{Result{Outcome: Alive, Cause: "too_large"}, "offers more than can be read", true},
		{Result{Outcome: Failure, Cause: "something else"}, "does not work", false},
		{Result{Outcome: Skipped, Cause: "left_out"}, "not tried", true},
	} {
		r := c.r
		conclude(e, &r)
		if r.Verdict != c.verdict || (r.Advice != "") != c.advice {
			t.Errorf("%+v: %q, %q", c.r, r.Verdict, r.Advice)
		}
	}
}
