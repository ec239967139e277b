package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

func (c *cli) maintenanceCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "maintenance",
		Short: "Announce when servers are worked on",
		Long: `In a maintenance window the status of a server is computed as usual and carries the mark maintenance: nobody is
alerted, nothing is recovered, and the time does not count against its uptime.`,
		Args: cobra.ArbitraryArgs,
		RunE: subcommands,
	}
	cmd.AddCommand(c.maintenanceAddCmd(), c.maintenanceListCmd(), c.maintenanceEndCmd())
	return cmd
}

func (c *cli) maintenanceAddCmd() *cobra.Command {
	var (
		servers              serverIDs
		environments         words
		tags                 labels
		from, to, rule, zone string
		note                 string
		during               duration
	)
	cmd := &cobra.Command{
		Use:   "add (--server ID | --environment ID | --label KEY=VALUE) (--for TIME | --ends-at TIME)",
		Short: "Define a maintenance window, once or recurring",
		Long: `Defines a window on servers, on all servers of environments, or on all servers with a label; any of them selects. It
needs the role operator.

Times are RFC 3339 (2026-03-29T01:00:00+01:00), or local (2026-03-29 01:00): in --time-zone, else in UTC with --rrule and in
this machine's time zone without it.

With --rrule (RFC 5545) the window recurs, and begin and end are those of the first occurrence. Each begins at that time of
day on the wall clock of the time zone, and ends likewise: one from 01:00 to 05:00 ends at 05:00 also in the night in which
clocks change. With --for each lasts exactly that long.`,
		Example: `  statussync maintenance add --server weather,github --for 2h --note "moving to box-9"
  statussync maintenance add --environment box-7 --starts-at "2026-12-01 22:00" --ends-at "2026-12-02 06:00" --time-zone Europe/Berlin
  statussync maintenance add --label team=core --starts-at "2026-12-06 01:00" --ends-at "2026-12-06 05:00" --rrule "FREQ=WEEKLY;BYDAY=SU" --time-zone America/New_York`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := wire.MaintenanceRequest{
				ServerIDs: servers.values, EnvironmentIDs: environments.values, Labels: tags.values, Duration: during.text, RRule: rule, Note: note,
			}
			if r.ServerIDs == nil && r.EnvironmentIDs == nil && r.Labels == nil {
				return usagef("say what is worked on: --server, --environment or --label")
			}
			if (during.text == "") == (to == "") {
				return usagef("say until when: --for or --ends-at, one of them")
			}
			loc := c.now().Location()
			if rule != "" {
				loc = time.UTC
			}
			if zone != "" {
				var err error
				if loc, err = time.LoadLocation(zone); err != nil {
					return usagef("--time-zone: %q is no time zone that is known; one looks like Europe/Berlin", clean(zone))
				}
			}
			if rule != "" {
				r.TimeZone = zone
			}
			for _, t := range []struct {
				flag, text string
				to         *wire.Time
			}{{"--starts-at", from, &r.StartsAt}, {"--ends-at", to, &r.EndsAt}} {
				if t.text == "" || t.text == "now" && t.flag == "--starts-at" && rule == "" {
					continue
				}
				at, err := parseTime(t.text, loc, c.now())
				if err != nil {
					return usagef("%s: %w", t.flag, err)
				}
				t.to.Time = at
			}
			return c.talk(func(cl *client.Client) error {
				m, err := cl.AddMaintenance(cmd.Context(), r)
				if err != nil {
					return err
				}
				return c.window(m)
			})
		},
	}
	f := cmd.Flags()
	f.Var(&servers, "server", "ids of servers (here not the address of the service: that is what STATUSSYNC_SERVER says)")
	f.Var(&environments, "environment", "ids of environments: all their servers")
	f.Var(&tags, "label", "servers with this label; repeated: with all of them")
	f.StringVar(&from, "starts-at", "now", "when it begins; with --rrule for the first time")
	f.StringVar(&to, "ends-at", "", "when it ends")
	f.Var(&during, "for", "how long it lasts, at most 366d")
	f.StringVar(&rule, "rrule", "", "when it comes again, as RFC 5545 has it: FREQ=WEEKLY;BYDAY=SU")
	f.StringVar(&zone, "time-zone", "", "IANA name of the time zone whose wall clock counts")
	f.StringVar(&note, "note", "", "why; shown to people")
	return cmd
}

// parseTime reads RFC 3339, "now", or a local time in loc. A local time that does not exist is refused; of two that look
// alike it is the first.
func parseTime(s string, loc *time.Location, now time.Time) (time.Time, error) {
	if s == "now" {
		return now, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	for _, form := range []string{"2006-01-02 15:04", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02T15:04:05", "2006-01-02"} {
		t, err := time.ParseInLocation(form, s, loc)
		if err != nil {
			continue
		}
		if t.Format(form) != s {
			return t, fmt.Errorf("%s does not exist in %s: the clock is put forward over it", s, loc)
		}
		// The offset of a day before is the one from before a change of clocks.
		_, before := t.Add(-24 * time.Hour).Zone()
		_, now := t.Zone()
		if first := t.Add(time.Duration(now-before) * time.Second); first.Before(t) && first.Format(form) == s {
			t = first
		}
		return t, nil
	}
	return time.Time{}, fmt.Errorf("%q is no time; one looks like 2026-03-29T01:00:00+01:00 or 2026-03-29 01:00", clean(s))
}

// stampIn shows a time by the wall clock of a window, with its offset.
func stampIn(t wire.Time, zone string) string {
	if t.IsZero() {
		return "-"
	}
	if zone != "" {
		if loc, err := time.LoadLocation(zone); err == nil {
			return t.In(loc).Format("2006-01-02 15:04:05 -07:00")
		}
	}
	return stamp(t)
}

func (c *cli) window(m *wire.Maintenance) error {
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(m)
	}
	state := "will begin " + stampIn(m.NextBegin, m.TimeZone)
	if m.Open {
		state = "is open until " + stampIn(m.NextEnd, m.TimeZone)
	}
	if err := p.line("the maintenance window ", clean(m.ID), " ", state); err != nil {
		return err
	}
	again := ""
	if m.Open && !m.NextBegin.IsZero() {
		again = stampIn(m.NextBegin, m.TimeZone)
	}
	lasts := ""
	if m.DurationSeconds > 0 {
		lasts = "exactly " + seconds(m.DurationSeconds)
	}
	count := fmt.Sprint(m.Servers)
	if m.Servers == 0 {
		count = "none yet"
	}
	until := ""
	if !m.Open {
		until = stampIn(m.NextEnd, m.TimeZone)
	}
	return p.facts("selects", selection(m), "servers now", count, "ends", until, "comes again", again,
		"rule", orEmpty(m.RRule), "time zone", orEmpty(m.TimeZone), "lasts", lasts, "note", text(m.Note))
}

// selection says whom a window is about.
func selection(m *wire.Maintenance) string {
	var out []string
	if len(m.ServerIDs) > 0 {
		out = append(out, some(m.ServerIDs))
	}
	if len(m.EnvironmentIDs) > 0 {
		out = append(out, "all of "+some(m.EnvironmentIDs))
	}
	if len(m.Labels) > 0 {
		out = append(out, text((&labels{m.Labels}).String()))
	}
	return strings.Join(out, "; ")
}

func (c *cli) maintenanceListCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "Show the maintenance windows that are open or will be",
		Example: `  statussync maintenance list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.talk(func(cl *client.Client) error {
				list := wire.Page[wire.Maintenance]{Items: []wire.Maintenance{}}
				for m, err := range cl.AllMaintenances(cmd.Context()) {
					if err != nil {
						return err
					}
					list.Items = append(list.Items, m)
				}
				p := printer{c.stdout, c.colour()}
				if c.json() {
					return p.json(list)
				}
				var rows [][]cell
				for _, m := range list.Items {
					begins, style := stampIn(m.NextBegin, m.TimeZone), plain
					if m.Open {
						begins, style = "open", yellow
					}
					rule := "once"
					if m.RRule != "" {
						rule = clean(m.RRule)
					}
					rows = append(rows, []cell{txt(clean(m.ID)), in(begins, style), txt(stampIn(m.NextEnd, m.TimeZone)), num(fmt.Sprint(m.Servers)),
						txt(selection(&m)), txt(rule), txt(text(m.Note))})
				}
				if len(rows) > 0 {
					if err := p.table([]string{"ID", "BEGINS", "ENDS", "SERVERS", "SELECTS", "RULE", "NOTE"}, rows); err != nil {
						return err
					}
				}
				return p.line(plural(len(rows), "maintenance window", "maintenance windows"))
			})
		},
	}
}

func (c *cli) maintenanceEndCmd() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "end ID",
		Short: "End a maintenance window and remove it",
		Long: `Ends a window that is open, and removes it in any case. With --this-time only the occurrence that is running ends, and a
recurring window goes on with the next one. The token needs the role operator.`,
		Example: `  statussync maintenance end 0198a2f0-5c1e-7b7e-9a55-3f0a3d2b6c11 --this-time`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				if err := cl.EndMaintenance(cmd.Context(), args[0], once); err != nil {
					return err
				}
				if once {
					p := printer{c.stdout, c.colour()}
					if c.json() {
						return p.json(map[string]string{"ended": args[0]})
					}
					return p.line("the maintenance window ", clean(args[0]), " has ended for this time")
				}
				return c.removed("maintenance window", args[0])
			})
		},
	}
	cmd.Flags().BoolVar(&once, "this-time", false, "end only the occurrence that is running")
	return cmd
}
