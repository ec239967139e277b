package main

import (
	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

func (c *cli) overrideCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "override",
		Short: "Replace the concluded status of a server for a while",
		Long: `A person's word takes the place of what is concluded, until it expires or is cleared. What is observed meanwhile
goes on being recorded and takes effect the moment the override ends. The token needs the role operator.`,
		Args: cobra.ArbitraryArgs,
		RunE: subcommands,
	}
	cmd.AddCommand(c.overrideSetCmd(), c.overrideClearCmd())
	return cmd
}

func (c *cli) overrideSetCmd() *cobra.Command {
	var (
		state  = enum{allowed: untyped(statussync.States)}
		health = enum{allowed: untyped(statussync.Healths)}
		note   string
		during = duration{text: "1h"}
	)
	cmd := &cobra.Command{
		Use:   "set ID --state STATE",
		Short: "Say what the status of a server is",
		Long: `Sets the status of a server for a time. Without --health, running is healthy, error is unhealthy and the other states
are unknown; healthy and degraded go only with running.`,
		Example: `  statussync override set weather --state stopped --note "moving to box-9" --for 2h
  statussync override set weather --state running --health degraded --for 1d`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				st, err := cl.SetOverride(cmd.Context(), args[0], wire.OverrideRequest{
					State: statussync.State(state.value), Health: statussync.Health(health.value), Note: note, ExpiresIn: during.text,
				})
				if err != nil {
					return err
				}
				return c.overridden(args[0], st)
			})
		},
	}
	f := cmd.Flags()
	f.Var(&state, "state", "one of "+joinWords(state.allowed))
	f.Var(&health, "health", "one of "+joinWords(health.allowed))
	f.StringVar(&note, "note", "", "why; shown beside the status")
	f.Var(&during, "for", "how long it holds, at most 30d")
	if err := cmd.MarkFlagRequired("state"); err != nil {
		panic(err) // the flag stands three lines above
	}
	return cmd
}

func (c *cli) overrideClearCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "clear ID",
		Short:   "End the override of a server",
		Example: `  statussync override clear weather`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				st, err := cl.ClearOverride(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return c.overridden(args[0], st)
			})
		},
	}
}

// overridden shows the status that followed.
func (c *cli) overridden(id string, st *wire.Status) error {
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(st)
	}
	if err := p.line(sentence(p, clean(id), st)); err != nil {
		return err
	}
	return p.facts(c.statusFacts(st)...)
}
