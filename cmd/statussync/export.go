package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

// exportPage is how many entries are asked for at once: as many as the service gives.
const exportPage = 1000

// exportSlack is how far the search for --from goes back behind it, and the reading on behind --to: after a crash the service's time may repeat the
// seconds since it was last stored (10, docs/domain.md), and nothing must be missed for that.
const exportSlack = time.Minute

// instant is a flag with a moment: RFC 3339, a date (midnight UTC), or how long ago.
type instant struct {
	text string
	at   time.Time
	ago  time.Duration
}

func (i *instant) String() string { return i.text }
func (i *instant) Type() string   { return "time" }
func (i *instant) Set(s string) error {
	i.text = s
	var err error
	if i.at, err = time.Parse(time.RFC3339, s); err == nil {
		return nil
	}
	if i.at, err = time.Parse(time.DateOnly, s); err == nil {
		return nil
	}
	if i.ago, err = wire.ParseDuration(s); err == nil && i.ago > 0 {
		return nil
	}
	return errors.New("is no time; one looks like 2026-03-01T12:00:00Z, 2026-03-01 (midnight UTC) or 24h (ago)")
}

func (i *instant) time(now time.Time) time.Time {
	if i.ago > 0 {
		return now.Add(-i.ago)
	}
	return i.at
}

// exportQuery is what an export holds.
type exportQuery struct {
	from, to time.Time // From ≤ timestamp < To; zero: unbounded
	clause   statussync.Clause
}

func (c *cli) exportCmd() *cobra.Command {
	var (
		from, to     instant
		servers      serverIDs
		environments words
		kinds        = words{allowed: untyped(statussync.Kinds)}
		format       = enum{value: "ndjson", allowed: []string{"ndjson", "csv"}}
		file         string
		force        bool
	)
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the history of a running service to a file, as NDJSON or CSV",
		Long: `Writes the journal of a running service, oldest entry first, up to the newest entry of the moment at which it began.
NDJSON has one entry a line, byte for byte as in the journal. CSV (RFC 4180) has one line for each entry under a header;
a text that begins with = + - @ or a control character gets a ' in front, so that no spreadsheet takes it for a formula.

The exit code is 0 only if everything is there. Where the journal's older entries are deleted faster than they are
read, or the service begins a new epoch meanwhile, the export is not complete: it says so, and the exit code is 4.`,
		Example: `  statussync export --from 24h > yesterday.ndjson
  statussync export --format csv --server weather,billing --from 2026-03-01 --to 2026-04-01 --output march.csv`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := exportQuery{from: from.time(c.now()), to: to.time(c.now()), clause: statussync.Clause{
				Kinds: typed[statussync.Kind](kinds.values), ServerIDs: servers.values, EnvironmentIDs: environments.values,
			}}
			if len(q.clause.Kinds) == 0 {
				q.clause.Kinds = statussync.Kinds
			}
			if !q.from.IsZero() && !q.to.IsZero() && !q.from.Before(q.to) {
				return usagef("--from must be before --to")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			defer cl.CloseIdle()
			write := newNDJSON
			if format.value == "csv" {
				write = newCSV
			}
			if file == "" || file == "-" {
				_, _, err := export(cmd.Context(), cl, q, write(c.stdout))
				return err
			}
			var n int
			var end statussync.Cursor
			err = saveAs(file, force, func(f *os.File) (err error) {
				n, end, err = export(cmd.Context(), cl, q, write(f))
				return err
			})
			if err != nil {
				return err
			}
			p := printer{c.stderr, false}
			return p.line(text(file), ": ", plural(n, "entry", "entries"), " up to ", clean(end.String()))
		},
	}
	f := cmd.Flags()
	f.Var(&format, "format", "ndjson or csv")
	f.Var(&from, "from", "only entries from then on: 2026-03-01T12:00:00Z, 2026-03-01, or 24h ago")
	f.Var(&to, "to", "only entries before it")
	f.Var(&servers, "server", "only entries of these servers (here not the address of the service: that is what STATUSSYNC_SERVER says)")
	f.Var(&environments, "environment", "only entries of these environments")
	f.Var(&kinds, "kinds", "only these kinds: "+joinWords(kinds.allowed)+" (default: all)")
	f.StringVarP(&file, "output", "o", "-", "file to write; - is the standard output")
	f.BoolVar(&force, "force", false, "overwrite the file")
	return cmd
}

// exporter writes entries one by one.
type exporter interface {
	entry(raw []byte) error
	flush() error
}

// export pages through the journal and returns how many entries it wrote, and up to where. It holds one page in memory.
func export(ctx context.Context, cl *client.Client, q exportQuery, w exporter) (n int, end statussync.Cursor, err error) {
	ready, err := cl.Ready(ctx)
	if err != nil {
		return 0, end, err
	}
	if !ready.Durable {
		// Only the entries since the trouble began can be read then.
		return 0, end, &localRefusal{fmt.Errorf("nothing is exported: the service's store is in trouble, and the journal cannot be read as a whole (%s)", cmp.Or(text(ready.Detail), "see /readyz"))}
	}
	if end, err = statussync.ParseCursor(ready.Cursor); err != nil {
		if ready.Cursor != "" {
			return 0, end, err
		}
		// A journal without entries, or a service that tells its position only to those whom it knows, as it then tells
		// everything else: the next call says which.
	}
	var after statussync.Cursor
	if !q.from.IsZero() && end.Seq > 0 {
		if after, err = position(ctx, cl, end, q.from.Add(-exportSlack)); err != nil {
			return 0, end, unfinished(0, err)
		}
	}
	for {
		page, err := cl.RawUpdates(ctx, client.UpdatesQuery{After: after, Clause: q.clause, Limit: exportPage})
		if err != nil {
			return n, end, unfinished(n, errors.Join(err, w.flush()))
		}
		at, err := statussync.ParseCursor(page.Cursor)
		if err != nil {
			return n, end, err
		}
		past := false
		for _, raw := range page.Items {
			var ok bool
			ok, past, err = q.wants(raw, at, end)
			if err == nil && ok {
				err = w.entry(raw)
				n++
			}
			if err != nil {
				return n, end, err
			}
		}
		if page.NextCursor == "" || at.Seq >= end.Seq || past {
			return n, end, w.flush()
		}
		if at == after {
			return n, end, errors.New("the service answered a page that leads to itself")
		}
		after = at
	}
}

// unfinished says that an export ended before its end.
func unfinished(n int, err error) error {
	if statussync.CodeOf(err) == statussync.CodeExpired {
		return &localRefusal{fmt.Errorf("the export is not complete: after %s the service refused to go on: %w", plural(n, "entry", "entries"), err)}
	}
	return err
}

// wants reports whether an entry of a page that ends at at belongs to the export, and whether none after it can.
func (q *exportQuery) wants(raw []byte, at, end statussync.Cursor) (ok, past bool, err error) {
	if q.from.IsZero() && q.to.IsZero() && at.Seq <= end.Seq {
		return true, false, nil
	}
	var e struct {
		Seq       uint64    `json:"seq"`
		Timestamp time.Time `json:"timestamp"`
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return false, false, fmt.Errorf("the service sent an entry that cannot be read: %w", err)
	}
	past = !q.to.IsZero() && e.Timestamp.After(q.to.Add(exportSlack))
	return e.Seq <= end.Seq && (q.from.IsZero() || !e.Timestamp.Before(q.from)) && (q.to.IsZero() || e.Timestamp.Before(q.to)), past, nil
}

// position finds a position before the first entry that is not older than from. The journal is in the order of time.
func position(ctx context.Context, cl *client.Client, end statussync.Cursor, from time.Time) (statussync.Cursor, error) {
	entry := func(after statussync.Cursor) (seq uint64, at time.Time, err error) {
		page, err := cl.Updates(ctx, client.UpdatesQuery{After: after, Clause: statussync.Clause{Kinds: statussync.Kinds}, Limit: 1})
		if err != nil || len(page.Items) == 0 {
			return 0, at, err
		}
		return page.Items[0].Seq, page.Items[0].Timestamp, nil
	}
	first, at, err := entry(statussync.Cursor{})
	if err != nil || first == 0 || !at.Before(from) {
		return statussync.Cursor{}, err
	}
	// Everything up to lo is older; the one after hi is not, or there is none.
	lo, hi := first, end.Seq
	for lo < hi {
		mid := lo + (hi-lo)/2
		seq, at, err := entry(statussync.Cursor{Epoch: end.Epoch, Seq: mid})
		switch {
		case err != nil:
			return statussync.Cursor{}, err
		case seq == 0 || !at.Before(from):
			hi = mid
		default:
			lo = seq
		}
	}
	return statussync.Cursor{Epoch: end.Epoch, Seq: lo}, nil
}

type ndjson struct{ w *bufio.Writer }

func newNDJSON(w io.Writer) exporter { return &ndjson{bufio.NewWriterSize(w, 64<<10)} }

func (x *ndjson) entry(raw []byte) error {
	if _, err := x.w.Write(raw); err != nil {
		return err
	}
	return x.w.WriteByte('\n')
}

func (x *ndjson) flush() error { return x.w.Flush() }

// csvColumns are the columns of an export as CSV; they are only ever added to, at the end (docs/operations.md).
var csvColumns = [...]string{
	"seq", "epoch", "timestamp", "kind", "source", "server_id", "environment_id", "version", "previous_state", "previous_health",
	"previous_reason", "state", "health", "reason", "cause", "marks", "changes", "server_ids", "last_error", "details", "maintenance_id",
}

type csvExport struct {
	w     *csv.Writer
	begun bool
	row   []string
}

func newCSV(w io.Writer) exporter {
	cw := csv.NewWriter(w)
	cw.UseCRLF = true
	return &csvExport{w: cw}
}

func (x *csvExport) header() error {
	if x.begun {
		return nil
	}
	x.begun = true
	return x.w.Write(csvColumns[:])
}

func (x *csvExport) entry(raw []byte) error {
	if err := x.header(); err != nil {
		return err
	}
	var e statussync.Entry
	if err := e.UnmarshalJSON(raw); err != nil {
		return fmt.Errorf("the service sent an entry that cannot be read: %w", err)
	}
	version := ""
	if e.Version > 0 {
		version = strconv.FormatUint(e.Version, 10)
	}
	status := func(s *statussync.Status) []string {
		if s == nil {
			return []string{"", "", ""}
		}
		return []string{string(s.State), string(s.Health), string(s.Reason)}
	}
	x.row = append(x.row[:0], strconv.FormatUint(e.Seq, 10), string(e.Epoch), e.Timestamp.UTC().Format(statussync.TimeFormat), string(e.Kind),
		string(e.Source), e.ServerID, e.EnvironmentID, version)
	x.row = append(x.row, status(e.Previous)...)
	x.row = append(x.row, status(e.Current)...)
	cur := e.Current
	if cur == nil {
		cur = &statussync.Status{}
	}
	x.row = append(x.row, cur.Cause, strings.Join(cur.Marks.Strings(), " "), strings.Join(e.Changes, " "), strings.Join(e.ServerIDs, " "), cur.LastError, e.Details, e.MaintenanceID)
	for i := range x.row {
		x.row[i] = noFormula(x.row[i])
	}
	return x.w.Write(x.row)
}

func (x *csvExport) flush() error {
	if err := x.header(); err != nil {
		return err
	}
	x.w.Flush()
	return x.w.Error()
}

// noFormula puts a ' before what a spreadsheet would take for a formula (OWASP, CSV injection).
func noFormula(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r\n", rune(s[0])) {
		return "'" + s
	}
	return s
}
