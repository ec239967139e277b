package main

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync/app"
	"github.com/agentopia/statussync/wire"
)

func (c *cli) eraseCmd() *cobra.Command {
	var (
		req  wire.EraseRequest
		data string
	)
	cmd := &cobra.Command{
		Use:   "erase (--owner NAME | --actor NAME)",
		Short: "Take a person's name out of the store",
		Long: `Makes a store forget a person. With --data DIR it works on the data directory of a service that is stopped; without,
the service at --server does it, with the role admin: it stops, erases and starts again, and the command waits for that.

--actor: whoever set overrides or maintenance windows, or switched probing. The name becomes "erased" wherever it stands as an actor, also in
the journal, and the notes that came with it are removed.
--owner: whoever owns servers or environments. Managed ones are removed, with their agents' tokens; others lose the owner
in the store. The journal's entries of the owner's servers keep place, kind, time, version and status; ids are
replaced and texts are gone. Their uptime and probes are deleted.

What the configuration still defines is listed: edit it first, or the name comes back with the next start. Backups and
exports that were made before still hold the name. Afterwards a new epoch begins: clients resync.`,
		Example: `  statussync erase --owner u1 --data ./data --dry-run
  statussync erase --actor ada`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var report *wire.EraseReport
			if data != "" {
				r, err := app.Erase(cmd.Context(), data, app.EraseOptions{
					Owner: req.Owner, Actor: req.Actor, DryRun: req.DryRun, Logger: app.NewLogger(c.stderr, "warn", "auto"),
				})
				if err != nil {
					return &localRefusal{err}
				}
				report = &r
			} else {
				cl, err := c.client()
				if err != nil {
					return err
				}
				defer cl.CloseIdle()
				if report, err = cl.Erase(cmd.Context(), req); err != nil {
					return err
				}
			}
			return c.erased(report)
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Owner, "owner", "", "the owner to forget")
	f.StringVar(&req.Actor, "actor", "", "the actor to forget")
	f.StringVar(&data, "data", "", "work on this data directory; its service must be stopped")
	f.BoolVar(&req.DryRun, "dry-run", false, "only tell what would be done")
	cmd.MarkFlagsOneRequired("owner", "actor")
	cmd.MarkFlagsMutuallyExclusive("owner", "actor")
	if err := cmd.MarkFlagDirname("data"); err != nil {
		panic(err) // the flag stands above
	}
	return cmd
}

func (c *cli) erased(r *wire.EraseReport) error {
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(r)
	}
	head := "Erased:"
	if r.DryRun {
		head = "This would be done (nothing has been changed):"
	}
	if err := p.line(head); err != nil {
		return err
	}
	list := func(ids []string) string {
		if len(ids) == 0 {
			return "0"
		}
		return strconv.Itoa(len(ids)) + ": " + text(strings.Join(ids, ", "))
	}
	var still []string
	for _, d := range r.StillDefined {
		still = append(still, d.ServerID+d.EnvironmentID+" ("+string(d.Origin)+")")
	}
	facts := []string{
		"entries reduced", strconv.Itoa(r.Entries), "records changed", strconv.Itoa(r.Records + r.Rows),
		"rows of uptime and probes changed", strconv.Itoa(r.History),
		"servers removed", list(r.ServersRemoved), "environments removed", list(r.EnvironmentsRemoved),
		"agents' tokens ended", strconv.Itoa(r.Tokens), "servers without owner", list(r.Servers),
		"environments without owner", list(r.Environments), "copies removed", list(r.FilesRemoved),
		"rows that still hold the word", strconv.Itoa(r.Mentions),
	}
	if err := p.facts(facts...); err != nil {
		return err
	}
	if len(still) > 0 {
		if err := p.line("Still defined outside the store: ", text(strings.Join(still, ", ")), ". Edit that, or the name comes back."); err != nil {
			return err
		}
	}
	if r.NewEpoch && !r.DryRun {
		return p.line("A new epoch begins: clients resync. Backups and exports from before still hold the name.")
	}
	return nil
}
