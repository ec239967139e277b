package main

import (
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync/client"
)

func (c *cli) whoamiCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "whoami",
		Short: "Who the token makes you, and what it may use",
		Example: `  statussync whoami
  statussync whoami -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.talk(func(cl *client.Client) error {
				w, err := cl.Whoami(cmd.Context())
				if err != nil {
					return err
				}
				p := printer{c.stdout, c.colour()}
				if c.json() {
					return p.json(w)
				}
				expires := "never"
				if !w.ExpiresAt.IsZero() {
					expires = w.ExpiresAt.Local().Format(time.DateTime)
				}
				l := &w.Limits
				return p.facts(
					"name", text(w.Name),
					"role", text(w.Role),
					"expires", expires,
					"connections", strconv.Itoa(l.Connections),
					"subscriptions", strconv.Itoa(l.Subscriptions),
					"commands", strconv.Itoa(l.CommandsPerSecond)+" per second",
					"replay", size(int64(l.ReplayBytesPerSecond))+" per second",
					"filter", strconv.Itoa(l.FilterClauses)+" clauses of "+strconv.Itoa(l.FilterIDs)+" ids",
				)
			})
		},
	}
}
