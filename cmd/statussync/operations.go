package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

func (c *cli) reloadCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Have the service read its configuration again",
		Long: `The service reads its configuration file and conf.d/*.yaml again and puts them in force without a stop: unchanged
servers keep what is known of them, streams stay open. A bad configuration changes nothing, and every fault is told with
file and line. SIGHUP does the same. The token needs the role admin.`,
		Example: `  statussync reload
  statussync reload -o json | jq .needs_restart`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.talk(func(cl *client.Client) error {
				r, err := cl.Reload(cmd.Context())
				if err != nil {
					return err
				}
				p := printer{c.stdout, c.colour()}
				if c.json() {
					return p.json(r)
				}
				return reloaded(p, r)
			})
		},
	}
}

func reloaded(p printer, r *wire.Reload) error {
	if err := p.line("The configuration is in force, read in ", latency(r.DurationMS), "."); err != nil {
		return err
	}
	keys := func(list []string) string { return orEmpty(strings.Join(list, ", ")) }
	updates := ""
	if r.Updates > 0 {
		updates = plural(r.Updates, "status changed", "statuses changed")
	}
	err := p.facts(
		"servers", changes(&r.Servers), "environments", changes(&r.Environments), "tokens", changes(&r.Tokens),
		"settings", keys(r.Settings), "followed", updates,
	)
	if err != nil {
		return err
	}
	for _, w := range r.Warnings {
		if err := p.line(p.paint("look: ", yellow), text(w)); err != nil {
			return err
		}
	}
	if len(r.NeedsRestart) > 0 {
		return p.line(p.paint("needs a restart: ", yellow), keys(r.NeedsRestart), ` ("statussync restart")`)
	}
	return nil
}

// maxNamed is how many ids of a kind a line names.
const maxNamed = 8

// changes says a difference in words: "1 added (weather), 2 removed (a, b), 12 unchanged".
func changes(d *wire.Difference) string {
	var parts []string
	add := func(n int, ids []string, what string) {
		if n == 0 {
			return
		}
		named := clean(strings.Join(ids[:min(len(ids), maxNamed)], ", "))
		if n > maxNamed {
			named += ", …"
		}
		parts = append(parts, fmt.Sprintf("%d %s (%s)", n, what, named))
	}
	add(d.AddedCount, d.Added, "added")
	add(d.ChangedCount, d.Changed, "changed")
	add(d.RemovedCount, d.Removed, "removed")
	if d.Unchanged > 0 {
		parts = append(parts, fmt.Sprintf("%d unchanged", d.Unchanged))
	}
	return strings.Join(parts, ", ")
}

// Times of waiting for a service that restarts.
const (
	restartPoll = 200 * time.Millisecond
	restartWait = time.Minute
)

func (c *cli) restartCmd() *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use:   "restart",
		Short: "Have the service stop and start again",
		Long: `The service checks its configuration; where that is good it stops everything cleanly and starts again with it, in the
same process. Connections that come meanwhile wait; streams are ended and resume. The command waits until the service is
ready again. The token needs the role admin.`,
		Example: `  statussync restart`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.talk(func(cl *client.Client) error {
				began := time.Now()
				if err := cl.Restart(cmd.Context()); err != nil {
					return err
				}
				p := printer{c.stdout, c.colour()}
				if noWait {
					if c.json() {
						return p.json(wire.Restarting{Status: "restarting"})
					}
					return p.line("The service is restarting.")
				}
				r, err := untilReady(cmd.Context(), cl)
				if err != nil {
					return err
				}
				if c.json() {
					return p.json(r)
				}
				return p.line("The service is ", string(r.Status), " again after ", latency(float64(time.Since(began).Milliseconds())), ".")
			})
		},
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "don't wait until the service is ready again")
	return cmd
}

// untilReady asks until the service says that it is ready.
func untilReady(ctx context.Context, cl *client.Client) (*wire.Ready, error) {
	limit, cancel := context.WithTimeout(ctx, restartWait)
	defer cancel()
	tick := time.NewTicker(restartPoll)
	defer tick.Stop()
	for {
		r, err := cl.Ready(limit)
		if err == nil && r.Status != wire.ReadyNo {
			return r, nil
		}
		select {
		case <-tick.C:
		case <-limit.Done():
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, errors.Join(&notHealthy{"the service is not ready again within " + restartWait.String() + "; its log says why"}, err)
		}
	}
}

func (c *cli) probingCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "probing [on|off]",
		Short: "Whether servers are probed; switch the monitoring on or off",
		Long: `Without an argument: whether the monitoring is on. "off" stops all probes but those that somebody asks for, also across
restarts, until "on". What probes found ages meanwhile: a server that only probes speak of becomes unknown, never
unhealthy. Switching needs a token with the role admin.`,
		Example: `  statussync probing
  statussync probing off`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && args[0] != "on" && args[0] != "off" {
				return usagef("give on, off, or nothing")
			}
			return nil
		},
		ValidArgs: []string{"on", "off"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				var r *wire.Probing
				var err error
				if len(args) == 0 {
					r, err = cl.Probing(cmd.Context())
				} else {
					r, err = cl.SetProbing(cmd.Context(), args[0] == "on")
				}
				if err != nil {
					return err
				}
				p := printer{c.stdout, c.colour()}
				if c.json() {
					return p.json(r)
				}
				return p.line(c.probingLine(p, r))
			})
		},
	}
}

// probingLine says whether servers are probed.
func (c *cli) probingLine(p printer, r *wire.Probing) string {
	s := "Probing is on"
	if !r.Enabled {
		s = p.paint("Probing is off", yellow)
	}
	if !r.Since.IsZero() {
		s += " since " + r.Since.UTC().Format("2006-01-02 15:04:05") + " UTC (" + since(r.Since.Time, c.now()) + " ago)"
		if r.ChangedBy != "" {
			s += ", by " + clean(r.ChangedBy)
		}
	}
	return s + "."
}

// noteProbing adds a line where the monitoring is off: statuses are then older than they look. A service that can't say
// is taken to probe.
func (c *cli) noteProbing(ctx context.Context, cl *client.Client, p printer) error {
	r, err := cl.Probing(ctx)
	if err != nil || r.Enabled {
		return nil
	}
	return p.line(c.probingLine(p, r))
}

func (c *cli) syncCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "sync [ID]",
		Short: "Read the registries again now, and ask the agents",
		Long: `Without an ID: the service reads the managed registry and the servers and environments of its configuration file again,
and asks every agent that has an address. With an ID: the registry that defines this server, and its agent. What could not
be read is named, the rest goes on; the exit code is then 1. The token needs the role operator.`,
		Example: `  statussync sync
  statussync sync weather`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				var r *wire.Sync
				var err error
				if len(args) == 0 {
					r, err = cl.SyncAll(cmd.Context())
				} else {
					r, err = cl.SyncServer(cmd.Context(), args[0])
				}
				if err != nil {
					return err
				}
				return c.synced(r)
			})
		},
	}
}

func (c *cli) synced(r *wire.Sync) error {
	p := printer{c.stdout, c.colour()}
	if c.json() {
		if err := p.json(r); err != nil {
			return err
		}
	} else {
		for _, e := range r.Updates {
			if err := p.line("  ", p.paint(clean(e.ServerID), bold), "  ", text(e.Details)); err != nil {
				return err
			}
		}
		if more := r.UpdatesCount - len(r.Updates); more > 0 {
			if err := p.line("  … and ", strconv.Itoa(more), " more"); err != nil {
				return err
			}
		}
		for _, f := range r.Failed {
			what := orEmpty(f.ServerID)
			if f.EnvironmentID != "" {
				if what != "" {
					what += " on "
				}
				what += clean(f.EnvironmentID)
			}
			if what != "" {
				what += ": "
			}
			if err := p.line("  ", p.paint("failed ", red), what, text(f.Detail)); err != nil {
				return err
			}
		}
		s := "Synced in " + latency(r.DurationMS) + ": " + plural(r.UpdatesCount, "status changed", "statuses changed")
		if r.FailedCount > 0 {
			s += fmt.Sprintf(", %d failed", r.FailedCount)
		}
		if err := p.line(s + "."); err != nil {
			return err
		}
	}
	if r.FailedCount > 0 {
		return &notHealthy{plural(r.FailedCount, "source or agent", "sources or agents") + " could not be read"}
	}
	return nil
}
