package main

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

// incidentsShown is how many incidents "uptime ID" shows; "incidents ID" shows more.
const incidentsShown = 10

func (c *cli) uptimeCmd() *cobra.Command {
	window := duration{"30d"}
	var f filterFlags
	cmd := &cobra.Command{
		Use:   "uptime [ID]",
		Short: "Availability, incidents, MTTR and MTBF, the worst first",
		Long: `Availability is the share of time in which a server could be used (available or limited), of the time that counts:
unknown time, maintenance and being off are left out. With ID also that server's latest incidents.`,
		Example: `  statussync uptime
  statussync uptime weather --window 7d
  statussync uptime --label team=core -o json | jq .total.availability_percent`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				if len(args) == 1 {
					if f.given() {
						return usagef("an ID and conditions exclude each other")
					}
					return c.uptimeOf(cmd.Context(), cl, args[0], window.text)
				}
				return c.uptime(cmd.Context(), cl, &f, window.text)
			})
		},
	}
	cmd.Flags().Var(&window, "window", "how far back, at most 90d")
	f.register(cmd)
	return cmd
}

// given reports whether any condition is.
func (f *filterFlags) given() bool {
	return len(f.states.values)+len(f.healths.values)+len(f.availability.values)+len(f.environments.values)+len(f.labels.values) > 0
}

// query selects the servers that the flags say.
func (f *filterFlags) query() client.ServerQuery {
	return client.ServerQuery{
		States: typed[statussync.State](f.states.values), Healths: typed[statussync.Health](f.healths.values),
		Availabilities: typed[statussync.Availability](f.availability.values), EnvironmentIDs: f.environments.values, Labels: f.labels.values,
	}
}

func (c *cli) uptime(ctx context.Context, cl *client.Client, f *filterFlags, window string) error {
	var all wire.UptimePage
	q := client.UptimeQuery{ServerQuery: f.query(), Window: window}
	q.Limit = pageSize
	for {
		p, err := cl.Uptime(ctx, q)
		if err != nil {
			return err
		}
		if q.Cursor == "" {
			all = *p
		} else {
			all.Items = append(all.Items, p.Items...)
		}
		if all.NextCursor = p.NextCursor; p.NextCursor == "" || p.NextCursor == q.Cursor {
			break
		}
		q.Cursor = p.NextCursor
	}
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(all)
	}
	slices.SortStableFunc(all.Items, worstFirst)
	rows := make([][]cell, 0, len(all.Items))
	for i := range all.Items {
		u := &all.Items[i]
		rows = append(rows, append([]cell{txt(clean(u.ServerID))}, uptimeCells(&u.UptimeNumbers)...))
	}
	if len(rows) > 0 {
		head := []string{"ID", "AVAILABILITY", "DOWN", "CHANGING", "OFF", "MAINTENANCE", "UNKNOWN", "INCIDENTS", "MTTR", "MTBF"}
		if t := all.Total; t != nil && len(rows) > 1 {
			rows = append(rows, append([]cell{in("all", bold)}, uptimeCells(&t.UptimeNumbers)...))
		}
		if err := p.table(head, rows); err != nil {
			return err
		}
		if err := p.line(); err != nil {
			return err
		}
	}
	return p.line(plural(len(all.Items), "server", "servers"), " in the last ", window)
}

// worstFirst orders by availability, those without one last, then by incidents and id.
func worstFirst(a, b wire.Uptime) int {
	of := func(u *wire.Uptime) float64 {
		if u.AvailabilityPercent == nil {
			return 101
		}
		return *u.AvailabilityPercent
	}
	return cmp.Or(cmp.Compare(of(&a), of(&b)), cmp.Compare(b.Incidents, a.Incidents), cmp.Compare(a.ServerID, b.ServerID))
}

func uptimeCells(u *wire.UptimeNumbers) []cell {
	share := num("-")
	if p := u.AvailabilityPercent; p != nil {
		share = cell{text: percent(*p), style: plain, right: true}
		switch {
		case *p < 99:
			share.style = red
		case *p < 99.9:
			share.style = yellow
		}
	}
	return []cell{
		share, num(length(u.UnavailableSeconds)), num(length(u.ChangingSeconds)), num(length(u.OffSeconds)), num(length(u.MaintenanceSeconds)),
		num(length(u.UnknownSeconds)), num(strconv.Itoa(u.Incidents)), num(maybe(u.MTTRSeconds)), num(maybe(u.MTBFSeconds)),
	}
}

// percent shows an availability so that "100" is said only of no downtime at all.
func percent(p float64) string {
	if p == 100 {
		return "100%"
	}
	return strconv.FormatFloat(p, 'f', 4, 64) + "%"
}

// length is a length of time for people; "-" for none.
func length(s float64) string {
	if s <= 0 {
		return "-"
	}
	if s < 1 {
		return "<1s"
	}
	return seconds(s)
}

func maybe(s *float64) string {
	if s == nil {
		return "-"
	}
	return length(*s)
}

func (c *cli) uptimeOf(ctx context.Context, cl *client.Client, id, window string) error {
	u, err := cl.ServerUptime(ctx, id, window)
	if err != nil {
		return err
	}
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(u)
	}
	share := "no time counts"
	if u.AvailabilityPercent != nil {
		share = percent(*u.AvailabilityPercent)
	}
	if err := p.line(clean(u.ServerID), " in the last ", window); err != nil {
		return err
	}
	err = p.facts(
		"availability", share,
		"available", length(u.AvailableSeconds), "limited", length(u.LimitedSeconds), "unavailable", length(u.UnavailableSeconds),
		"changing", length(u.ChangingSeconds), "off", length(u.OffSeconds), "maintenance", length(u.MaintenanceSeconds),
		"unknown", length(u.UnknownSeconds), "incidents", strconv.Itoa(u.Incidents), "MTTR", maybe(u.MTTRSeconds), "MTBF", maybe(u.MTBFSeconds),
	)
	if err != nil || u.Incidents == 0 {
		return err
	}
	page, err := cl.Incidents(ctx, client.IncidentQuery{ServerID: id, Window: window, Limit: incidentsShown})
	if err != nil {
		return err
	}
	if err := p.line(); err != nil {
		return err
	}
	if err := c.incidentTable(p, page.Items, false); err != nil {
		return err
	}
	if page.NextCursor != "" {
		return p.line("\nThere is more: statussync incidents ", clean(id), " --window ", window)
	}
	return nil
}

func (c *cli) incidentsCmd() *cobra.Command {
	window := duration{"30d"}
	var limit int
	cmd := &cobra.Command{
		Use:   "incidents [ID]",
		Short: "When servers could not be used, the newest first",
		Example: `  statussync incidents
  statussync incidents weather --window 7d
  statussync incidents -o json | jq '.items[] | select(.end == null) | .server_id'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 {
				return usagef("--limit must be at least 1")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			defer cl.CloseIdle()
			q := client.IncidentQuery{Window: window.text}
			if len(args) == 1 {
				if q.ServerID = args[0]; q.ServerID == "" {
					return usagef("the ID is empty")
				}
			}
			return c.incidents(cmd.Context(), cl, q, limit)
		},
	}
	cmd.Flags().Var(&window, "window", "incidents that overlap it, at most 90d")
	cmd.Flags().IntVar(&limit, "limit", 100, "at most so many incidents")
	return cmd
}

func (c *cli) incidents(ctx context.Context, cl *client.Client, q client.IncidentQuery, limit int) error {
	all := wire.Page[wire.Incident]{Items: []wire.Incident{}}
	for {
		q.Limit = min(limit-len(all.Items), pageSize)
		page, err := cl.Incidents(ctx, q)
		if err != nil {
			return err
		}
		all.Items = append(all.Items, page.Items...)
		if all.NextCursor = page.NextCursor; len(all.Items) >= limit || page.NextCursor == "" || page.NextCursor == q.Cursor {
			break
		}
		q.Cursor = page.NextCursor
	}
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(all)
	}
	if len(all.Items) == 0 {
		return p.line("No incidents in the last ", q.Window, ".")
	}
	if err := c.incidentTable(p, all.Items, true); err != nil {
		return err
	}
	if all.NextCursor != "" {
		return p.line("\nThere is more: --limit ", strconv.Itoa(2*limit))
	}
	return nil
}

func (c *cli) incidentTable(p printer, list []wire.Incident, ids bool) error {
	head := []string{"ID", "BEGIN", "END", "LASTED", "REASON", "DETAILS"}
	zone := c.now().Location()
	rows := make([][]cell, 0, len(list))
	for i := range list {
		x := &list[i]
		end := in("goes on", red)
		if !x.End.IsZero() {
			end = txt(x.End.In(zone).Format(time.DateTime))
		}
		reason := clean(string(x.Reason))
		if x.Cause != "" {
			reason += " (" + clean(x.Cause) + ")"
		}
		rows = append(rows, []cell{txt(clean(x.ServerID)), txt(x.Begin.In(zone).Format(time.DateTime)), end, num(length(x.DurationSeconds)), txt(reason), txt(text(x.Details))})
	}
	if !ids {
		head = head[1:]
		for i := range rows {
			rows[i] = rows[i][1:]
		}
	}
	return p.table(head, rows)
}

func (c *cli) probesCmd() *cobra.Command {
	window := duration{"24h"}
	var step duration
	cmd := &cobra.Command{
		Use:   "probes ID",
		Short: "What a server's probes gave over time: counts and latencies",
		Example: `  statussync probes weather
  statussync probes weather --window 30d --step 1d
  statussync probes weather --window 2h --step 1m -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				return c.probes(cmd.Context(), cl, args[0], window.text, step.text)
			})
		},
	}
	cmd.Flags().Var(&window, "window", "how far back, at most 90d")
	cmd.Flags().Var(&step, "step", "a whole number of minutes; of hours where the window is longer than 48h (default: about 24 steps)")
	return cmd
}

func (c *cli) probes(ctx context.Context, cl *client.Client, id, window, step string) error {
	if step == "" {
		step = stepFor(window)
	}
	r, err := cl.Probes(ctx, id, window, step)
	if err != nil {
		return err
	}
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(r)
	}
	if r.Total.Count == 0 {
		return p.line("No probes of ", clean(id), " in the last ", window, ".")
	}
	zone := c.now().Location()
	rows := make([][]cell, 0, len(r.Items)+1)
	for i := range r.Items {
		x := &r.Items[i]
		rows = append(rows, append([]cell{txt(x.Start.In(zone).Format("2006-01-02 15:04"))}, probeCells(&x.ProbeNumbers)...))
	}
	rows = append(rows, append([]cell{in("all", bold)}, probeCells(&r.Total)...))
	return p.table([]string{"FROM", "PROBES", "FAILED", "P50", "P95", "P99"}, rows)
}

// stepFor divides a window into at most 30 steps that people count in.
func stepFor(window string) string {
	d, err := wire.ParseDuration(window)
	if err != nil {
		return "" // the flag has checked it
	}
	for _, s := range []string{"1m", "5m", "15m", "30m", "1h", "6h", "12h", "1d", "3d"} {
		step, err := wire.ParseDuration(s)
		if err == nil && d <= 30*step && (d <= 48*time.Hour || step >= time.Hour) {
			return s
		}
	}
	return "3d"
}

func probeCells(n *wire.ProbeNumbers) []cell {
	failed := num(strconv.FormatUint(n.Failures, 10))
	if n.Failures > 0 {
		failed.style = red
	}
	ms := func(v *float64) cell {
		if v == nil {
			return num("-")
		}
		return num(latency(*v))
	}
	return []cell{num(strconv.FormatUint(n.Count, 10)), failed, ms(n.P50MS), ms(n.P95MS), ms(n.P99MS)}
}
