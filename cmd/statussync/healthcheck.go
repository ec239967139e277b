package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

func (c *cli) healthcheckCmd() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Whether the service at --server is ready: exit code 0 or 1",
		Long: `Asks the service at --server whether it is ready (GET /readyz), without a token. For the health checks of containers: the exit
code is 0 where the service takes and tells statuses, also where its store has trouble just then, and 1 where it does
not answer in time or is stopping.`,
		Example: `  statussync healthcheck
  statussync healthcheck --server http://127.0.0.1:9090 --timeout 1s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 {
				return usagef("--timeout must be greater than zero")
			}
			c.token = "" // nothing is asked for that needs one, and a wrong one would be refused
			cl, err := c.client()
			if err != nil {
				return err
			}
			defer cl.CloseIdle()
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			r, err := cl.Ready(ctx)
			switch {
			case errors.Is(err, client.ErrUnreachable), ctx.Err() != nil:
				// Not the exit code of other commands: health checks of containers know only 0 and 1.
				return &notHealthy{"the service at " + text(c.server) + " does not answer"}
			case err != nil:
				return &notHealthy{err.Error()}
			}
			p := printer{c.stdout, c.colour()}
			if c.json() {
				err = p.json(r)
			} else {
				err = p.line(clean(r.Status))
			}
			if err == nil && r.Status == wire.ReadyNo {
				err = &notHealthy{"the service is not ready"}
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long the service may take to answer")
	return cmd
}
