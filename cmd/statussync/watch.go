package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

func (c *cli) watchCmd() *cobra.Command {
	var (
		filter   filterFlags
		kinds    words
		since    cursor
		snapshot bool
		latest   bool
	)
	cmd := &cobra.Command{
		Use:   "watch [ID...]",
		Short: "Follow updates as they happen",
		Long: `Shows each update the moment that the service tells it, until Ctrl-C. The flags select as those of
"status" do, by what a server is after the update; with --snapshot the current statuses are shown first, and
updates by which a server leaves the selection are shown too.

A lost connection is repaired: watch comes back and goes on where it was, without a gap or a repeat, and says so
on the standard error. With -o json each frame of the service is one line; the cursor of the last one, given to
--since, continues there.

With --latest, where updates come faster than they can be shown, older ones of a server give way to its newest:
what is shown is always recent and ends with the truth, but not every step on the way is seen.`,
		Example: `  statussync watch
  statussync watch --health unhealthy --snapshot
  statussync watch weather --since e7:41
  statussync watch --latest --snapshot
  statussync watch --kind status,environment_silent,environment_back
  statussync watch -o json | jq -c 'select(.data) | [.data.server_id, .data.current_status.health]'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				o := client.SubscribeOptions{
					Filter:   statussync.Filter{Clauses: filter.clauses(args, typed[statussync.Kind](kinds.values))},
					Cursor:   since.Cursor,
					Snapshot: snapshot, MustConnect: true,
				}
				if latest {
					o.Mode = statussync.ModeLatest
				}
				return c.watch(cmd.Context(), cl, o)
			})
		},
	}
	filter.register(cmd)
	kinds.allowed = untyped(statussync.Kinds)
	cmd.Flags().Var(&kinds, "kind", "these kinds of entry instead of status and server_removed: "+joinWords(kinds.allowed))
	cmd.Flags().Var(&since, "since", "continue after this position, for example e7:41")
	cmd.Flags().BoolVar(&snapshot, "snapshot", false, "show the current statuses first")
	cmd.Flags().BoolVar(&latest, "latest", false, "only the newest of each server, where there is too much for this reader")
	return cmd
}

// watcher shows one subscription.
type watcher struct {
	c        *cli
	p        printer
	base     string
	live     bool // was connected before
	idWidth  int
	snapshot []wire.Server // of the snapshot under way
}

func (c *cli) watch(ctx context.Context, cl *client.Client, o client.SubscribeOptions) error {
	w := &watcher{c: c, p: printer{c.stdout, c.colour()}, base: cl.BaseURL(), idWidth: 12}
	o.OnState = w.state
	for ev, err := range cl.Subscribe(ctx, o) {
		if err != nil {
			if ctx.Err() != nil {
				return nil // Ctrl-C is how a watch ends
			}
			return err
		}
		if c.json() {
			err = w.frame(ev.Frame)
		} else {
			err = w.event(ev)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// note tells something beside the updates.
func (w *watcher) note(format string, args ...any) {
	fmt.Fprintln(w.c.stderr, "statussync: "+statussync.CleanText(fmt.Sprintf(format, args...), maxErrorLine))
}

func (w *watcher) state(s client.ConnState) {
	at := ""
	if !s.Cursor.IsZero() {
		at = " after " + s.Cursor.String()
	}
	switch {
	case !s.Connected:
		w.note("%v; trying again in %s", s.Err, s.RetryIn.Round(10*time.Millisecond))
	case w.live:
		w.note("reconnected, going on%s", at)
	default:
		w.live = true
		w.note("watching %s%s; Ctrl-C ends", w.base, at)
	}
}

func (w *watcher) frame(f json.RawMessage) error {
	var b bytes.Buffer
	if err := json.Compact(&b, f); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err := w.p.w.Write(b.Bytes())
	return err
}

func (w *watcher) event(ev client.Event) error {
	switch ev.Type {
	case statussync.EventSubscribed:
		w.snapshot = nil
		if !ev.Durable {
			w.note("the service cannot write to its store: what it tells now will not survive a restart")
		}
	case statussync.EventResync:
		w.snapshot = nil
		w.note("%s; the current statuses follow", resyncText(ev.Reason))
	case statussync.EventSnapshot:
		w.snapshot = append(w.snapshot, ev.Items...)
	case statussync.EventSnapshotEnd:
		items := w.snapshot
		w.snapshot = nil
		for i := range items {
			w.idWidth = max(w.idWidth, min(width(clean(items[i].ID)), maxIDWidth))
		}
		if err := w.c.statusTable(w.p, items); err != nil {
			return err
		}
		return w.p.line()
	case statussync.EventEntry:
		return w.entry(ev.Entry)
	}
	return nil
}

// maxIDWidth bounds the column of ids: one long id must not push all later lines to the right.
const maxIDWidth = 40

func resyncText(r statussync.ResyncReason) string {
	switch r {
	case statussync.ResyncExpired:
		return "the journal no longer reaches back that far"
	case statussync.ResyncEpoch:
		return "the service has begun a new journal"
	case client.ResyncGap:
		return "something was missing in what came"
	}
	return "cannot go on from there (" + clean(string(r)) + ")"
}

// entry shows an entry in one line.
func (w *watcher) entry(e *statussync.Entry) error {
	id := e.ServerID
	if id == "" {
		id = e.EnvironmentID + e.MaintenanceID // at most one of them
	}
	id = clean(id)
	w.idWidth = max(w.idWidth, min(width(id), maxIDWidth))
	id += strings.Repeat(" ", max(0, w.idWidth-width(id)))
	what := ""
	switch {
	case e.Current != nil && e.Previous != nil:
		from, to := conclusion(e.Previous), conclusion(e.Current)
		what = w.p.paint(from, dim) + " → " + w.p.paint(to, availabilityStyle(e.Current.Availability())) +
			strings.Repeat(" ", max(0, conclusionWidth-width(from)-width(to)))
		what += "  " + cause(e.Current)
		if m := e.Current.Marks.Strings(); len(m) > 0 {
			what += " [" + strings.Join(m, ",") + "]"
		}
	default:
		what = w.p.paint(strings.ReplaceAll(clean(string(e.Kind)), "_", " "), kindStyle(e.Kind))
		if len(e.ServerIDs) > 0 {
			what += " (" + plural(len(e.ServerIDs), "server", "servers") + ": " + some(e.ServerIDs) + ")"
		}
	}
	line := w.p.paint(e.Timestamp.In(w.c.now().Location()).Format("15:04:05"), dim) + "  " + id + "  " + what
	if d := text(e.Details); d != "" {
		line += "  " + w.p.paint(d, dim)
	}
	return w.p.line(line)
}

// conclusionWidth is room for most pairs: "running/unhealthy" and "stopped/unhealthy".
const conclusionWidth = 34

func conclusion(s *statussync.Status) string { return clean(string(s.State) + "/" + string(s.Health)) }

// cause is reason and fine word.
func cause(s *statussync.Status) string {
	if s.Cause == "" || s.Cause == string(s.Reason) {
		return clean(string(s.Reason))
	}
	return clean(string(s.Reason) + " (" + s.Cause + ")")
}

func kindStyle(k statussync.Kind) style {
	switch k {
	case statussync.KindEnvironmentSilent:
		return red
	case statussync.KindEnvironmentBack:
		return green
	case statussync.KindSelfDoubt, statussync.KindMaintenanceBegin, statussync.KindToolDrift:
		return yellow
	}
	return blue
}

// some names the first few of a list.
func some(ids []string) string {
	const most = 5
	var out []string
	for i, id := range ids {
		if i == most {
			out = append(out, fmt.Sprintf("and %d more", len(ids)-most))
			break
		}
		out = append(out, clean(id))
	}
	return strings.Join(out, ", ")
}
