package main

import (
	"context"
	"math"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
)

func (c *cli) resourcesCmd() *cobra.Command {
	window := duration{"24h"}
	var step duration
	cmd := &cobra.Command{
		Use:   "resources ENVIRONMENT",
		Short: "CPU, memory and disk of an environment over time, as its agent told them",
		Example: `  statussync resources box-1
  statussync resources box-1 --window 30d --step 1d
  statussync resources box-1 --window 2h --step 1m -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				return c.resources(cmd.Context(), cl, args[0], window.text, step.text)
			})
		},
	}
	cmd.Flags().Var(&window, "window", "how far back, at most 90d")
	cmd.Flags().Var(&step, "step", "a whole number of minutes; of hours where the window is longer than 48h (default: about 24 steps)")
	return cmd
}

func (c *cli) resources(ctx context.Context, cl *client.Client, environment, window, step string) error {
	if step == "" {
		step = stepFor(window)
	}
	r, err := cl.Resources(ctx, environment, window, step)
	if err != nil {
		return err
	}
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(r)
	}
	if len(r.Items) == 0 {
		return p.line("The agent of ", clean(environment), " told nothing of its host in the last ", window, ".")
	}
	share := func(v *float64) cell {
		if v == nil {
			return num("-")
		}
		return num(strconv.FormatFloat(math.Round(*v), 'f', 0, 64) + "%")
	}
	amount := func(used, of *int64) cell {
		if used == nil || of == nil {
			return num("-")
		}
		return num(size(*used) + "/" + size(*of))
	}
	zone := c.now().Location()
	rows := make([][]cell, len(r.Items))
	for i := range r.Items {
		x := &r.Items[i]
		rows[i] = []cell{
			txt(x.Start.In(zone).Format("2006-01-02 15:04")), share(x.CPUPercent), share(x.CPUMaxPercent),
			amount(x.MemoryBytes, x.MemorySizeBytes), amount(x.DiskBytes, x.DiskSizeBytes),
		}
	}
	return p.table([]string{"FROM", "CPU", "CPU MAX", "MEMORY", "DISK"}, rows)
}

func (c *cli) timelineCmd() *cobra.Command {
	window := duration{"24h"}
	cmd := &cobra.Command{
		Use:   "timeline ID",
		Short: "How a server's time was spent: every stretch of time and why",
		Example: `  statussync timeline weather
  statussync timeline weather --window 30d -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error { return c.timeline(cmd.Context(), cl, args[0], window.text) })
		},
	}
	cmd.Flags().Var(&window, "window", "how far back, at most 90d")
	return cmd
}

func (c *cli) timeline(ctx context.Context, cl *client.Client, id, window string) error {
	t, err := cl.Timeline(ctx, id, window)
	if err != nil {
		return err
	}
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(t)
	}
	if len(t.Items) == 0 {
		return p.line("Nothing is known of ", clean(id), " in the last ", window, ".")
	}
	zone := c.now().Location()
	rows := make([][]cell, len(t.Items))
	for i := range t.Items {
		x := &t.Items[i]
		end, until := in("goes on", bold), t.To.Time
		if !x.End.IsZero() {
			end, until = txt(x.End.In(zone).Format(time.DateTime)), x.End.Time
		}
		state := "-"
		if x.State != "" {
			state = string(x.State) + "/" + string(x.Health)
		}
		reason := clean(string(x.Reason))
		if x.Cause != "" {
			reason += " (" + clean(x.Cause) + ")"
		}
		if x.Merged > 1 {
			reason += ", the worst of " + strconv.Itoa(x.Merged) + " short stretches"
		}
		rows[i] = []cell{
			txt(x.Begin.In(zone).Format(time.DateTime)), end, num(length(until.Sub(x.Begin.Time).Seconds())),
			in(clean(string(x.Class)), availabilityStyle(statussync.Availability(x.Class))), txt(clean(state)), txt(reason),
		}
	}
	return p.table([]string{"FROM", "TO", "LASTED", "CLASS", "STATE", "REASON"}, rows)
}
