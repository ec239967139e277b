package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

func (c *cli) toolsCmd() *cobra.Command {
	var diff, pin, unpin, now bool
	var hash string
	cmd := &cobra.Command{
		Use:   "tools ID",
		Short: "Show the tools that an MCP server lists, how they changed, and pin them",
		Long: `Shows the tools that a server lists, with a hash of what each says of itself: name, description, schemas, annotations.
The service reads the list every ten minutes, and soon after the server came up; --now has it read at once.

--pin makes the current tools the ones that the server should have: while it lists others it is degraded (tools_changed).
With --hash they are pinned only if they still are the ones that you looked at. --now, --pin and --unpin need the role
operator.`,
		Example: `  statussync tools weather
  statussync tools weather --diff
  statussync tools weather --pin --hash sha256:4f7a…
  statussync tools weather -o json | jq -r '.tools[].name'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if hash != "" && !pin {
				return usagef("--hash goes only with --pin")
			}
			return c.talk(func(cl *client.Client) error {
				ctx, id := cmd.Context(), args[0]
				var v *wire.Tools
				var err error
				switch {
				case pin:
					v, err = cl.PinTools(ctx, id, hash)
				case unpin:
					v, err = cl.UnpinTools(ctx, id)
				case now:
					v, err = cl.ReadTools(ctx, id)
				default:
					v, err = cl.Tools(ctx, id)
				}
				if err != nil {
					return err
				}
				if !diff {
					return c.tools(v, !pin && !unpin)
				}
				last, err := cl.Drift(ctx, id, 1, "")
				if err != nil {
					return err
				}
				return c.toolsDiff(v, last)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&diff, "diff", false, "show what changed last, and what differs from the pinned tools; with -o json the last entry")
	f.BoolVar(&pin, "pin", false, "make the current tools the ones that the server should have")
	f.StringVar(&hash, "hash", "", "with --pin: only if this is still the hash of all")
	f.BoolVar(&unpin, "unpin", false, "end the pin")
	f.BoolVar(&now, "now", false, "have the list read at once")
	cmd.MarkFlagsMutuallyExclusive("pin", "unpin", "now")
	cmd.MarkFlagsMutuallyExclusive("pin", "diff")
	cmd.MarkFlagsMutuallyExclusive("unpin", "diff")
	return cmd
}

// shortHash is enough of a hash to tell two apart by eye.
func shortHash(h string) string {
	h = clean(h)
	if rest, ok := strings.CutPrefix(h, "sha256:"); ok && len(rest) > 12 {
		return rest[:12]
	}
	return h
}

// toolsHead says in a few lines what is known of a server's tools.
func (c *cli) toolsHead(p printer, v *wire.Tools) error {
	id := clean(v.ServerID)
	what := id + " lists " + plural(v.Count, "tool", "tools")
	if v.Hash == "" {
		what = "The tools of " + id + " have not been read yet"
		if v.CheckedAt.IsZero() {
			what += ": an MCP server is asked for them soon after it came up"
		}
	}
	if err := p.line(what); err != nil {
		return err
	}
	at := func(t wire.Time) string {
		if t.IsZero() {
			return ""
		}
		return stamp(t)
	}
	pinned := ""
	if v.Hash != "" {
		pinned = "nothing"
	}
	if v.Pinned != nil {
		by := ""
		if v.Pinned.Actor != "" {
			by = " by " + clean(v.Pinned.Actor)
		}
		pinned = p.paint("these", green)
		if v.Drifted {
			pinned = p.paint("others: "+v.AgainstPin.String(), yellow)
		}
		pinned += ", since " + stamp(v.Pinned.At) + by
	}
	return p.facts("hash", orEmpty(v.Hash), "since", at(v.Since), "read", at(v.CheckedAt), "pinned", pinned, "not read", text(v.LastError))
}

func (c *cli) tools(v *wire.Tools, list bool) error {
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(v)
	}
	if err := c.toolsHead(p, v); err != nil || len(v.Tools) == 0 || !list {
		return err
	}
	rows := make([][]cell, 0, len(v.Tools))
	for _, t := range v.Tools {
		rows = append(rows, []cell{txt(clean(t.Name)), in(shortHash(t.Hash), dim)})
	}
	if err := p.line(); err != nil {
		return err
	}
	return p.table([]string{"TOOL", "HASH"}, rows)
}

func (c *cli) toolsDiff(v *wire.Tools, last *wire.Page[*statussync.Entry]) error {
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(last)
	}
	if err := c.toolsHead(p, v); err != nil {
		return err
	}
	title := "Its tools never changed as far as the journal reaches."
	var drift *statussync.ToolDrift
	if len(last.Items) > 0 {
		drift = last.Items[0].Tools
		title = "Last change, " + stamp(wire.Time{Time: last.Items[0].Timestamp}) + ":"
	}
	if err := p.line("\n", title); err != nil {
		return err
	}
	if err := driftLines(p, drift); err != nil {
		return err
	}
	if v.Pinned == nil {
		return nil
	}
	title = "Nothing differs from the pinned tools."
	if v.Drifted {
		title = "Against the pinned tools:"
	}
	if err := p.line("\n", title); err != nil {
		return err
	}
	return driftLines(p, v.AgainstPin)
}

// driftLines shows what differs, a line for each tool.
func driftLines(p printer, d *statussync.ToolDrift) error {
	if d == nil {
		return nil
	}
	line := func(sign string, st style, name, hashes string) error {
		return p.line("  ", p.paint(sign+" "+clean(name), st), "  ", p.paint(hashes, dim))
	}
	for _, t := range d.Added {
		if err := line("+", green, t.Name, shortHash(t.Hash)); err != nil {
			return err
		}
	}
	for _, t := range d.Removed {
		if err := line("-", red, t.Name, shortHash(t.Hash)); err != nil {
			return err
		}
	}
	for _, t := range d.Changed {
		if err := line("~", yellow, t.Name, shortHash(t.PreviousHash)+" → "+shortHash(t.Hash)); err != nil {
			return err
		}
	}
	all, shown := d.AddedCount+d.RemovedCount+d.ChangedCount, len(d.Added)+len(d.Removed)+len(d.Changed)
	if all > shown {
		return p.line(fmt.Sprintf("  and %d more", all-shown))
	}
	return nil
}
