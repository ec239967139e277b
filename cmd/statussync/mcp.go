package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/mcpserver"
	"github.com/agentopia/statussync/wire"
)

func (c *cli) mcpCmd() *cobra.Command {
	var printConfig, write bool
	cmd := &cobra.Command{
		Use:   "mcp",
		Short: "Be an MCP server on standard input and output, for a running service",
		Long: `An MCP client that starts this command asks a running service which servers work: tools list_servers,
get_server_status, wait_for_status, get_history and fleet_summary, and the resource status://fleet to subscribe
to. With --write-tools also probe_server, set_override and clear_override, for a token with the role operator.

Clients that speak HTTP need no bridge: the service itself is an MCP server at /mcp.

--print-config prints what belongs into an mcp.json. It names the variable of the token, never the token.`,
		Example: `  statussync mcp --print-config
  statussync mcp --server https://status.example.com`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if printConfig {
				return c.printMCPConfig(write)
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			defer cl.CloseIdle()
			// Fail now, with a sentence on standard error, rather than at each call.
			if _, err := cl.Servers(cmd.Context(), client.ServerQuery{Limit: 1}); err != nil {
				return err
			}
			return c.bridge(cmd.Context(), cl, write, c.stdin, c.stdout)
		},
	}
	cmd.Flags().BoolVar(&printConfig, "print-config", false, "print the snippet for an mcp.json, and end")
	cmd.Flags().BoolVar(&write, "write-tools", false, "offer the tools that probe and override")
	return cmd
}

// printMCPConfig prints what people paste into their client's configuration.
func (c *cli) printMCPConfig(write bool) error {
	command := "statussync"
	if _, err := osexec.LookPath(command); err != nil { // not on PATH: the client would not find it either
		if exe, err := os.Executable(); err == nil {
			command = filepath.Clean(exe)
		}
	}
	args := []string{"mcp", "--server", c.server}
	if write {
		args = append(args, "--write-tools")
	}
	entry := map[string]any{"command": command, "args": args}
	if c.token != "" {
		entry["env"] = map[string]string{"STATUSSYNC_TOKEN": "${STATUSSYNC_TOKEN}"}
	}
	e := json.NewEncoder(c.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(map[string]any{"mcpServers": map[string]any{"statussync": entry}})
}

// nopCloser keeps the process's own output open for whoever prints after the bridge.
type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// bridge serves one MCP client until it leaves.
func (c *cli) bridge(ctx context.Context, cl *client.Client, write bool, in io.ReadCloser, out io.Writer) error {
	srv, err := mcpserver.New(mcpserver.Options{Service: remote{cl}, WriteTools: write, Version: c.version})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	err = srv.ServeStdio(ctx, mcpserver.Caller{Write: write}, in, nopCloser{out})
	cancel()
	<-ended // always nil
	return err
}

// remote is the service behind a client.
type remote struct{ c *client.Client }

func (r remote) Servers(ctx context.Context, q statussync.ServerQuery, cursor string) ([]wire.Server, string, error) {
	page, err := r.c.Servers(ctx, client.ServerQuery{
		States: q.States, Healths: q.Healths, Availabilities: q.Availabilities, EnvironmentIDs: q.EnvironmentIDs, Labels: q.Labels,
		Text: q.Text, Limit: q.Limit, Cursor: cursor,
	})
	if err != nil {
		return nil, "", err
	}
	return page.Items, page.NextCursor, nil
}

func (r remote) Explain(ctx context.Context, id string) (*wire.Explain, error) {
	return r.c.Explain(ctx, id)
}

func (r remote) History(ctx context.Context, id string, hours float64, limit int) ([]*statussync.Entry, error) {
	page, err := r.c.History(ctx, id, client.HistoryQuery{Hours: max(1, int(hours+0.5)), Limit: limit})
	if err != nil {
		return nil, err
	}
	return page.Items, nil
}

func (r remote) Probe(ctx context.Context, id string) (*wire.ProbeResult, error) {
	return r.c.Probe(ctx, id)
}

// SetOverride leaves the actor to the service: it is the token's.
func (r remote) SetOverride(ctx context.Context, id string, o wire.OverrideRequest, _ string) (*wire.Status, error) {
	return r.c.SetOverride(ctx, id, o)
}

func (r remote) ClearOverride(ctx context.Context, id, _ string) (*wire.Status, error) {
	return r.c.ClearOverride(ctx, id)
}

func (r remote) Watch(ctx context.Context, ids []string, changed func([]string) bool) error {
	var clause statussync.Clause
	clause.Kinds, clause.ServerIDs = mcpserver.Watched(), ids
	for ev, err := range r.c.Subscribe(ctx, client.SubscribeOptions{Filter: statussync.Filter{Clauses: []statussync.Clause{clause}}}) {
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		goOn := true
		switch ev.Type {
		case statussync.EventEntry:
			goOn = changed([]string{ev.Entry.ServerID})
		case statussync.EventSubscribed, statussync.EventResync, statussync.EventSnapshotEnd:
			goOn = changed(nil)
		}
		if !goOn {
			return nil
		}
	}
	return nil
}
