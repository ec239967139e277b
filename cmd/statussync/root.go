package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
)

// Exit codes (docs/protocols.md §4).
const (
	exitOK          = 0
	exitNotHealthy  = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitRefused     = 4
)

// system is what a command may touch of the machine it runs on.
type system struct {
	stdin          io.ReadCloser
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
	version        string
	terminal       bool   // stdout is one
	columns        int    // of it; 0: unknown, so nothing is cut or wrapped
	live           bool   // stderr is a terminal: what goes on can be shown there
	command        string // as the user called this program; empty: statussync
}

// cli is one invocation: the global flags, and what commands share.
type cli struct {
	system
	server  string
	token   string
	ca      string
	output  enum
	noColor bool
	started bool // a command's own code was reached: errors before that are usage errors
}

// usageError is a fault in how the command was called.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// notHealthy is the answer to a question of health; it is no failure of the command.
type notHealthy struct{ text string }

func (e *notHealthy) Error() string { return e.text }

// run executes one command line and returns the exit code. It blocks until the command is done or ctx ends.
func run(ctx context.Context, args []string, sys system) int {
	c := &cli{system: sys}
	root := c.root()
	root.SetArgs(args)
	root.SetOut(sys.stdout)
	root.SetErr(sys.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if !c.started {
		if _, ok := err.(*usageError); !ok {
			err = &usageError{err}
		}
	}
	code, lines := c.explain(err)
	for _, l := range lines {
		fmt.Fprintln(sys.stderr, "statussync: "+l)
	}
	if code == exitUsage && !c.started {
		fmt.Fprintf(sys.stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
	}
	return code
}

// explain gives the exit code of an error and the lines that tell it, with what to do where that is known.
func (c *cli) explain(err error) (code int, lines []string) {
	var (
		usage   *usageError
		sick    *notHealthy
		refused *statussync.Error
		problem *client.Problem
		local   *localRefusal
		away    *databaseAway
	)
	one := func(s string) []string { return []string{statussync.CleanText(s, maxErrorLine)} }
	switch {
	case errors.As(err, &sick):
		return exitNotHealthy, one(sick.text)
	case errors.As(err, &usage):
		return exitUsage, errorLines(usage.err)
	case errors.Is(err, client.ErrUntrusted):
		return exitUnreachable, one(err.Error() + " (--ca FILE names the authority to trust)")
	case errors.Is(err, client.ErrUnreachable):
		return exitUnreachable, one(err.Error() + " (is the service running? --server URL)")
	case errors.As(err, &refused) && errors.As(err, &problem) && len(problem.Faults) > 1:
		for _, f := range problem.Faults {
			lines = append(lines, statussync.CleanText("refused: "+f.Error(), maxErrorLine))
		}
		return exitRefused, lines
	case errors.As(err, &away):
		return exitUnreachable, one(away.Error())
	case errors.As(err, &local):
		return exitRefused, errorLines(local.err)
	case errors.As(err, &refused) && errors.As(err, &problem):
		return exitRefused, one(c.refusal(refused, problem))
	}
	return exitNotHealthy, errorLines(err)
}

const maxErrorLine = 2000 // bytes

// errorLines gives joined errors one line each, so that all faults of a configuration are seen at once.
func errorLines(err error) []string {
	var out []string
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range j.Unwrap() {
			out = append(out, errorLines(e)...)
		}
		return out
	}
	return append(out, statussync.CleanText(err.Error(), maxErrorLine))
}

// refusal tells a problem in one line.
func (c *cli) refusal(e *statussync.Error, p *client.Problem) string {
	s := e.Detail
	if s == "" {
		s = string(e.Code)
	}
	if e.Location != "" {
		s = e.Location + ": " + s
	}
	s = "refused: " + s
	switch e.Code {
	case statussync.CodeUnauthorized:
		if c.token == "" {
			s += " (give a token: STATUSSYNC_TOKEN or --token)"
		} else {
			s += " (the token is not one that this service knows)"
		}
	case statussync.CodeForbidden:
		s += " (the token's role does not allow this)"
	case statussync.CodeRateLimited:
		if p.RetryAfter > 0 {
			s += " (try again in " + p.RetryAfter.String() + ")"
		}
	case statussync.CodeUnavailable: // the detail of internal names the request already
		if p.RequestID != "" {
			s += " (the service's log says more under request " + p.RequestID + ")"
		}
	}
	return s
}

// root builds the command tree.
func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "statussync",
		Short: "The true status of a fleet of MCP servers",
		Long: `statussync keeps the true status of a fleet of MCP servers and tells everyone who asks.

"demo" shows it with a simulated fleet, "serve" runs it for yours. The other commands talk to a running service
at --server (STATUSSYNC_SERVER), with the token of --token (STATUSSYNC_TOKEN) where the service wants one.

Exit codes: 0 fine, 1 not healthy or failed, 2 wrong usage or configuration, 3 the service cannot be reached, 4 it refused.`,
		Example: `  statussync demo
  statussync serve --config statussync.yaml
  statussync status --health unhealthy
  statussync watch`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.output = enum{value: "table", allowed: []string{"table", "json"}}
	server := c.getenv("STATUSSYNC_SERVER")
	if server == "" {
		server = client.DefaultBaseURL
	}
	f := root.PersistentFlags()
	f.StringVar(&c.server, "server", server, "address of the service (environment: STATUSSYNC_SERVER)")
	// The environment's token is read later: as a default it would stand in the help text.
	f.StringVar(&c.token, "token", "", "bearer token (environment: STATUSSYNC_TOKEN)")
	f.StringVar(&c.ca, "ca", c.getenv("STATUSSYNC_CA"), "PEM file of the authority that signs the service's certificate, where this machine does not trust it (environment: STATUSSYNC_CA)")
	f.VarP(&c.output, "output", "o", "table, or json as the API has it")
	f.BoolVar(&c.noColor, "no-color", false, "no colours (also: the NO_COLOR variable; never where the output is no terminal)")

	root.AddGroup(&cobra.Group{ID: "run", Title: "Run a service:"}, &cobra.Group{ID: "ask", Title: "Ask a running service:"},
		&cobra.Group{ID: "define", Title: "Define what a running service watches:"}, &cobra.Group{ID: "operate", Title: "Operate a running service:"},
		&cobra.Group{ID: "platform", Title: "Work with a platform's database:"}, &cobra.Group{ID: "keep", Title: "Keep its data, and let it go:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, cmd := range cmds {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	add("run", c.demoCmd(), c.serveCmd(), c.checkCmd(), c.configCmd())
	add("ask", c.statusCmd(), c.watchCmd(), c.historyCmd(), c.uptimeCmd(), c.incidentsCmd(), c.probeCmd(), c.probesCmd(), c.timelineCmd(), c.resourcesCmd(), c.overrideCmd(), c.maintenanceCmd(), c.toolsCmd(), c.environmentsCmd(), c.connectionsCmd(), c.metricsCmd(), c.whoamiCmd(), c.healthcheckCmd(), c.mcpCmd())
	add("define", c.serverCmd(), c.environmentCmd(), c.discoveredCmd(), c.adoptCmd())
	add("operate", c.reloadCmd(), c.restartCmd(), c.probingCmd(), c.syncCmd())
	add("platform", c.migrateCmd(), c.shadowCmd())
	add("keep", c.backupCmd(), c.restoreCmd(), c.exportCmd(), c.eraseCmd())
	root.AddCommand(c.versionCmd(), c.manCmd())
	c.prepare(root)
	c.completeArgs(root)
	return root
}

// prepare marks where a command's own code begins and completes the values of enumerations.
func (c *cli) prepare(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			c.started = true
			c.credentials()
			return run(cmd, args)
		}
	}
	completeEnums(cmd)
	for _, sub := range cmd.Commands() {
		c.prepare(sub)
	}
}

// credentials takes the token from the environment where no flag gave one.
func (c *cli) credentials() {
	if c.token == "" {
		c.token = c.getenv("STATUSSYNC_TOKEN")
	}
}

// client makes the client of the service that the flags name.
func (c *cli) client() (*client.Client, error) {
	conf, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	cl, err := client.New(client.Options{BaseURL: c.server, Token: c.token, TLS: conf, UserAgent: "statussync/" + c.version})
	if err != nil {
		return nil, &usageError{err}
	}
	return cl, nil
}

// talk runs f with a client of the service.
func (c *cli) talk(f func(cl *client.Client) error) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	defer cl.CloseIdle()
	return f(cl)
}

func (c *cli) json() bool { return c.output.value == "json" }

// colour reports whether the output may be coloured: on a terminal that can, unless somebody said no
// (https://no-color.org).
func (c *cli) colour() bool {
	return c.terminal && !c.noColor && c.getenv("NO_COLOR") == "" && c.getenv("TERM") != "dumb"
}

// subcommands is the RunE of a command that only holds others: called by itself it does nothing, which a script must
// not take for success.
func subcommands(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unknown command %q for %q", statussync.CleanText(args[0], 64), cmd.CommandPath())
	}
	cmd.SetOut(cmd.ErrOrStderr())
	if err := cmd.Help(); err != nil {
		return err
	}
	return usagef("%q needs one of its subcommands", cmd.CommandPath())
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func joinWords(words []string) string { return strings.Join(words, ", ") }
