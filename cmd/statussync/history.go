package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

// historyPage is how many entries are asked for at once.
const historyPage = 200

func (c *cli) historyCmd() *cobra.Command {
	var hours, limit int
	cmd := &cobra.Command{
		Use:   "history ID",
		Short: "What happened to a server, newest first",
		Example: `  statussync history weather
  statussync history weather --hours 168 --limit 500
  statussync history weather -o json | jq '.items[].details'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if hours < 1 {
				return usagef("--hours must be at least 1")
			}
			if limit < 1 {
				return usagef("--limit must be at least 1")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			defer cl.CloseIdle()
			return c.history(cmd.Context(), cl, args[0], hours, limit)
		},
	}
	cmd.Flags().IntVar(&hours, "hours", 24, "how far back")
	cmd.Flags().IntVar(&limit, "limit", 100, "at most so many entries")
	return cmd
}

func (c *cli) history(ctx context.Context, cl *client.Client, id string, hours, limit int) error {
	all := wire.Page[*statussync.Entry]{Items: []*statussync.Entry{}}
	q := client.HistoryQuery{Hours: hours}
	for {
		q.Limit = min(limit-len(all.Items), historyPage)
		page, err := cl.History(ctx, id, q)
		if err != nil {
			return err
		}
		if q.Cursor == "" {
			all.Cursor = page.Cursor
		}
		all.Items = append(all.Items, page.Items...)
		all.NextCursor = page.NextCursor
		if len(all.Items) >= limit || page.NextCursor == "" || page.NextCursor == q.Cursor {
			break
		}
		q.Cursor = page.NextCursor
	}
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(all)
	}
	if len(all.Items) == 0 {
		return p.line("Nothing happened to ", clean(id), " in the last ", plural(hours, "hour", "hours"), ".")
	}
	rows := make([][]cell, 0, len(all.Items))
	for _, e := range all.Items {
		row := []cell{
			txt(e.Timestamp.In(c.now().Location()).Format("2006-01-02 15:04:05")), num(version64(e.Version)),
			txt("-"), txt("-"), txt(clean(string(e.Kind))), txt("-"), txt(clean(string(e.Source))), txt(text(e.Details)),
		}
		if s := e.Current; s != nil {
			col := availabilityStyle(s.Availability())
			row[2], row[3] = in(clean(string(s.State)), col), in(clean(string(s.Health)), col)
			row[4], row[5] = txt(cause(s)), txt(marks(s.Marks.Strings()))
		}
		rows = append(rows, row)
	}
	if err := p.table([]string{"TIME", "VERSION", "STATE", "HEALTH", "REASON", "MARKS", "SOURCE", "DETAILS"}, rows); err != nil {
		return err
	}
	if all.NextCursor != "" {
		return p.line("\nThere is more: --limit ", strconv.Itoa(2*limit))
	}
	return nil
}

func version64(v uint64) string {
	if v == 0 {
		return "-"
	}
	return strconv.FormatUint(v, 10)
}
