package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync/app"
)

func (c *cli) serveCmd() *cobra.Command {
	var (
		file    string
		imports []string
		listen  string
		data    string
	)
	cmd := &cobra.Command{
		Use:   "serve [--config FILE] [--mcp-config FILE]…",
		Short: "Run the service for your own fleet",
		Long: `Runs the service until Ctrl-C or SIGTERM, and then stops it within about 3 s. Logs go to the standard error.
Check a configuration first with "statussync config check FILE". SIGHUP, and "statussync reload", read it again while the
service runs; conf.d/*.yaml beside it belongs to it.

--mcp-config monitors the servers that an mcp.json of Claude, Cursor, VS Code, Windsurf or Gemini names, and follows its changes.
Without --config everything else has its default. Commands in such a file are never started: see "statussync check" for those.`,
		Example: `  statussync serve --config statussync.yaml
  statussync serve --mcp-config ~/.cursor/mcp.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// From the beginning: a SIGHUP that comes while the service starts must not end it. One that waits is enough.
			hangups := make(chan os.Signal, 1)
			signal.Notify(hangups, syscall.SIGHUP)
			defer signal.Stop(hangups)
			if file != "" && (listen != "" || data != "") {
				return usagef("--listen and --data go without --config; with it they are its keys listen and data")
			}
			cfg := app.DefaultConfig()
			if listen != "" || data != "" {
				var err error
				if cfg, err = app.PlainConfig(listen, data); err != nil {
					return &usageError{err}
				}
			}
			if file != "" {
				var err error
				if cfg, err = app.LoadConfig(file); err != nil {
					return &usageError{err}
				}
			}
			for _, f := range imports {
				if err := app.CheckMCPConfig(f); err != nil {
					return &usageError{err}
				}
			}
			return app.Run(cmd.Context(), app.Options{
				ConfigFile: file, Config: cfg, MCPConfigs: imports, LogOutput: c.stderr, Version: c.system.version, Hangups: hangups, Notify: true,
			})
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (YAML)")
	cmd.Flags().StringArrayVar(&imports, "mcp-config", nil, "mcp.json whose servers are monitored (repeatable)")
	cmd.Flags().StringVar(&listen, "listen", "", "without --config: loopback address of the service (default 127.0.0.1:8080)")
	cmd.Flags().StringVar(&data, "data", "", "without --config: folder of the store (default ./data)")
	cmd.MarkFlagsOneRequired("config", "mcp-config")
	if err := cmd.MarkFlagFilename("config", "yaml", "yml"); err != nil {
		panic(err) // the flags stand above
	}
	if err := cmd.MarkFlagFilename("mcp-config", "json"); err != nil {
		panic(err)
	}
	if err := cmd.MarkFlagDirname("data"); err != nil {
		panic(err)
	}
	return cmd
}

func (c *cli) demoCmd() *cobra.Command {
	var (
		o        app.DemoOptions
		logLevel = enum{value: "error", allowed: []string{"debug", "info", "warn", "error"}}
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show it live: the real service with a simulated fleet",
		Long: `Runs the real service and, beside it, a simulated fleet on real loopback sockets: environments with agents, servers,
and faults that keep happening. Times are compressed. Updates are shown as they happen, until Ctrl-C; the other commands
work against it meanwhile.`,
		Example: `  statussync demo
  statussync demo --listen 127.0.0.1:9090 --quiet`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Logger = app.NewLogger(c.stderr, logLevel.value, "auto")
			o.Version, o.Command, o.Out, o.Color = c.system.version, c.system.command, c.stdout, c.colour()
			ctx := cmd.Context()
			if !signal.Ignored(syscall.SIGHUP) { // a terminal that is closed must not leave the demo's folder behind
				var stop context.CancelFunc
				ctx, stop = signal.NotifyContext(ctx, syscall.SIGHUP)
				defer stop()
			}
			return app.RunDemo(ctx, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Listen, "listen", "", "address of the service (default 127.0.0.1:8080, or a free port where that is taken)")
	f.StringVar(&o.Data, "data", "", "folder of the journal (default: a temporary one, removed at the end)")
	f.BoolVar(&o.Quiet, "quiet", false, "only say where to look, without the stream of updates")
	f.Var(&logLevel, "log-level", "what the service logs to the standard error")
	return cmd
}

func (c *cli) configCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Work with configuration files",
		Args:  cobra.ArbitraryArgs,
		RunE:  subcommands,
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration and print what is in effect",
		Long: `Reads and checks a configuration file. A good one is printed whole, with all defaults and with secrets masked. Of a bad
one everything that is wrong is listed, with file and line, and the exit code is 2.`,
		Example: `  statussync config check statussync.yaml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, err := app.LoadConfig(args[0])
			if err != nil {
				return &usageError{err}
			}
			b, err := cfg.Effective()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.stdout, "# %s is valid. This is in effect:\n%s", text(args[0]), b)
			return err
		},
	})
	return cmd
}
