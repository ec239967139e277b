package mcpprobe

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/agentopia/statussync"
)

const everything = "testdata/node/node_modules/@modelcontextprotocol/server-everything/dist/index.js"

// everythingServer starts the reference server of the protocol's authors. It returns its base URL, and the counts of
// sessions that it says were opened and ended.
func everythingServer(t *testing.T, mode string) (url string, opened, ended *atomic.Int64, stop func()) {
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
	if _, err := os.Stat(everything); err != nil {
		missing("server-everything")
	}
	path, err := filepath.Abs(everything)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	cmd := exec.Command(node, path, mode)
	cmd.Env = append(os.Environ(), fmt.Sprint("PORT=", port))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	opened, ended = new(atomic.Int64), new(atomic.Int64)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			switch line := sc.Text(); {
			case strings.HasPrefix(line, "Session initialized"), strings.HasPrefix(line, "Client Connected"):
				opened.Add(1)
			case strings.HasPrefix(line, "Transport closed for session"), strings.HasPrefix(line, "Client Disconnected"):
				ended.Add(1)
			}
		}
	}()
	gone := false
	stop = func() {
		if !gone {
			gone = true
			_ = cmd.Process.Kill()
			<-read
			_ = cmd.Wait()
		}
	}
	t.Cleanup(stop)
	await(t, "server-everything listens", func() bool {
		c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return fmt.Sprint("http://127.0.0.1:", port), opened, ended, stop
}

// TestServerEverything asks the reference server in both of its HTTP modes, and counts its sessions by its own log.
func TestServerEverything(t *testing.T) {
	for _, c := range []struct {
		mode, path string
		transport  statussync.Transport
		sessions   int64
	}{
		{"streamableHttp", "/mcp", statussync.TransportStreamableHTTP, 1},
		{"sse", "/sse", statussync.TransportSSE, 1},
	} {
		t.Run(c.mode, func(t *testing.T) {
			base, opened, ended, stop := everythingServer(t, c.mode)
			p := New(Options{})
			defer p.Close(context.Background())
			pl := plan(base + c.path)
			pl.Transport = c.transport
			known(p, pl)
			for range 100 {
				r := p.Probe(t.Context(), pl)
				mustUp(t, r)
				if r.Protocol == "" || !strings.Contains(r.ServerInfo.Name, "everything") {
					t.Fatalf("%+v", r)
				}
			}
			inv, err := p.Inventory(t.Context(), pl)
			if err != nil || len(inv.Tools) < 5 || inv.Resources < 1 || inv.Prompts < 1 {
				t.Errorf("%d tools, %d resources, %d prompts, %v", len(inv.Tools), inv.Resources, inv.Prompts, err)
			}
			again, err := p.Inventory(t.Context(), pl)
			if err != nil || again.ToolsHash != inv.ToolsHash {
				t.Errorf("%v, %+v", err, statussync.DiffTools(inv.Tools, again.Tools))
			}
			mustUp(t, p.Canary(t.Context(), pl, "echo", map[string]any{"message": "is anybody there?"}, "is anybody there?"))
			if n := opened.Load() - ended.Load(); n > 1 || opened.Load() != 1 {
				t.Errorf("%d sessions opened, %d ended", opened.Load(), ended.Load())
			}
			p.Forget("s")
			p.Close(context.Background())
			await(t, "no session", func() bool { return opened.Load() == ended.Load() })
			p = New(Options{})
			defer p.Close(context.Background())
			mustUp(t, p.Probe(t.Context(), known(p, pl)))
			stop()
			if r := p.Probe(t.Context(), pl); r.Outcome != statussync.OutcomeFailure || !r.ByConnect {
				t.Errorf("a dead server: %+v", r)
			}
		})
	}
}
