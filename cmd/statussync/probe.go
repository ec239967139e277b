package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

func (c *cli) probeCmd() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "probe ID | --all",
		Short: "Check a server now, or all of them",
		Long: `Asks the service to probe now and shows what that gave. The result counts as evidence like any other probe.
The exit code is 1 where a probe failed. The token needs the role operator.`,
		Example: `  statussync probe weather
  statussync probe --all`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0:
				return usagef("give the ID of a server or --all, not both")
			case !all && len(args) != 1:
				return usagef("give the ID of one server, or --all")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				if all {
					r, err := cl.ProbeAll(cmd.Context())
					if err != nil {
						return err
					}
					return c.probedAll(r)
				}
				r, err := cl.Probe(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return c.probed(args[0], r)
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "check all servers")
	return cmd
}

// outcome says how a probe ended.
func outcome(r *wire.ProbeResult) string {
	why := orEmpty(r.Cause)
	if r.HTTPStatus != 0 {
		if why != "" {
			why += ", "
		}
		why += "HTTP " + strconv.Itoa(r.HTTPStatus)
	}
	if why != "" {
		why = " (" + why + ")"
	}
	switch r.Outcome {
	case statussync.OutcomeSuccess:
		return "answered in " + latency(r.LatencyMS) + why
	case statussync.OutcomeAlive:
		return "is alive, but did not give what was asked for" + why
	}
	return "did not answer as it should" + why
}

func (c *cli) probed(id string, r *wire.ProbeResult) error {
	p := printer{c.stdout, c.colour()}
	if c.json() {
		if err := p.json(r); err != nil {
			return err
		}
	} else {
		if err := p.line(p.paint(clean(id), bold), " ", p.paint(outcome(r), outcomeStyle(r.Outcome)), "."); err != nil {
			return err
		}
		if r.Detail != "" {
			if err := p.line("  ", text(r.Detail)); err != nil {
				return err
			}
		}
		if err := p.line(sentence(p, clean(id), &r.Status)); err != nil {
			return err
		}
	}
	if r.Outcome == statussync.OutcomeFailure {
		return &notHealthy{"the probe of " + clean(id) + " failed"}
	}
	return nil
}

func outcomeStyle(o statussync.Outcome) style {
	switch o {
	case statussync.OutcomeSuccess:
		return green
	case statussync.OutcomeAlive:
		return yellow
	}
	return red
}

func (c *cli) probedAll(r *wire.ProbeResults) error {
	p := printer{c.stdout, c.colour()}
	failed, broken := 0, 0
	for i := range r.Items {
		if r.Items[i].Outcome == statussync.OutcomeFailure {
			failed++
		}
	}
	for _, f := range r.Failed {
		// What can't be probed as it is configured says nothing about health; that the service couldn't, does.
		if f.Code == statussync.CodeInternal || f.Code == statussync.CodeUnavailable {
			broken++
		}
	}
	if c.json() {
		if err := p.json(r); err != nil {
			return err
		}
	} else {
		if err := c.probeTable(p, r, failed); err != nil {
			return err
		}
	}
	if failed+broken > 0 {
		return &notHealthy{fmt.Sprintf("%d of %s failed", failed+broken, plural(len(r.Items)+broken, "probe", "probes"))}
	}
	return nil
}

func (c *cli) probeTable(p printer, r *wire.ProbeResults, failed int) error {
	rows := make([][]cell, 0, len(r.Items)+len(r.Failed))
	for i := range r.Items {
		it := &r.Items[i]
		col := availabilityStyle(it.Status.Availability)
		code := "-"
		if it.HTTPStatus != 0 {
			code = strconv.Itoa(it.HTTPStatus)
		}
		rows = append(rows, []cell{
			txt(clean(it.ServerID)), in(clean(string(it.Outcome)), outcomeStyle(it.Outcome)), txt(clean(it.Cause)), num(code),
			num(latency(it.LatencyMS)), in(clean(string(it.Status.State)), col), in(clean(string(it.Status.Health)), col),
			txt(clean(string(it.Status.Reason))),
		})
	}
	for _, f := range r.Failed {
		rows = append(rows, []cell{
			txt(clean(f.ServerID)), in("not checked", dim), txt(clean(string(f.Code))), num("-"), num("-"), txt("-"), txt("-"), txt(text(f.Detail)),
		})
	}
	if len(rows) > 0 {
		if err := p.table([]string{"ID", "OUTCOME", "CAUSE", "HTTP", "LATENCY", "STATE", "HEALTH", "REASON"}, rows); err != nil {
			return err
		}
		if err := p.line(); err != nil {
			return err
		}
	}
	s := plural(len(r.Items), "server", "servers") + " checked in " + latency(r.DurationMS)
	if failed > 0 {
		s += ", " + p.paint(fmt.Sprintf("%d failed", failed), red)
	}
	if len(r.Failed) > 0 {
		s += fmt.Sprintf(", %d not checked", len(r.Failed))
	}
	return p.line(s)
}
