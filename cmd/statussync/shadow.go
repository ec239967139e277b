package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/app"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/shadow"
	"github.com/agentopia/statussync/wire"
)

// databaseFlags say which database a command is about.
type databaseFlags struct{ dsn, schema string }

func (d *databaseFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	// The environment's is read later: as a default it would stand in the help text.
	f.StringVar(&d.dsn, "dsn", "", "address of the platform's database, with its password (environment: DATABASE_URL)")
	f.StringVar(&d.schema, "schema", "public", "the schema that the platform's tables are in")
}

// address returns the DSN, from the environment where no flag gave one. It is never shown.
func (c *cli) address(d *databaseFlags) (string, error) {
	dsn := d.dsn
	if dsn == "" {
		dsn = c.getenv("DATABASE_URL")
	}
	if dsn == "" {
		return "", usagef("which database? --dsn or the environment variable DATABASE_URL names it")
	}
	if fault := app.DSNFault(dsn); fault != "" {
		return "", usagef("--dsn (or DATABASE_URL) %s", fault)
	}
	return dsn, nil
}

func (c *cli) shadowCmd() *cobra.Command {
	var db databaseFlags
	var since, tolerance time.Duration
	var follow bool
	cmd := &cobra.Command{
		Use:   "shadow",
		Short: "Compare what another status service writes into the platform's database with this one",
		Long: `Reads what another service wrote into mcp_server_status_logs and status_on_toolbox, asks the service at --server what it said of
the same servers at those times, and shows every difference with both sides and why. Rows that this service wrote itself
are left out. Nothing is written anywhere.

The two don't look at the same moment: where this service said the same within --tolerance, before or after, there is no
difference. --follow goes on with what is written from now on until Ctrl-C.

Exit code 1 where anything differs.`,
		Example: `  statussync shadow --dsn "$DATABASE_URL" --since 24h
  statussync shadow --follow -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since < 0 || tolerance < 0 {
				return usagef("--since and --tolerance must not be negative")
			}
			dsn, err := c.address(&db)
			if err != nil {
				return err
			}
			return c.talk(func(cl *client.Client) error {
				p := printer{c.stdout, c.colour()}
				r, err := shadow.Run(cmd.Context(), shadow.Options{
					Log: &shadow.Database{DSN: dsn, Schema: db.schema, Ours: ownRow}, Ours: ours{cl}, Since: since, Tolerance: tolerance, Follow: follow, Now: c.now,
					Tell: func(d *shadow.Difference) error {
						if c.json() && !follow {
							return nil
						}
						return c.difference(p, d)
					},
				})
				if err != nil {
					return c.databaseError(err)
				}
				if c.json() && !follow {
					err = p.json(r)
				} else if !c.json() {
					err = p.line(fmt.Sprintf("%s, %s compared: %d agree, %s, %d left out%s.", plural(r.Rows, "row", "rows"), plural(r.Records, "status_on_toolbox", "status_on_toolbox"),
						r.Agreed, plural(r.Count, "difference", "differences"), r.Skipped, because(r)))
				}
				if err == nil && r.Count > 0 {
					err = &notHealthy{"the two services differ"}
				}
				return err
			})
		},
	}
	db.add(cmd)
	f := cmd.Flags()
	f.DurationVar(&since, "since", time.Hour, "how far back")
	f.DurationVar(&tolerance, "tolerance", 30*time.Second, "how far apart the two may say the same")
	f.BoolVarP(&follow, "follow", "f", false, "go on until Ctrl-C")
	return cmd
}

// ownRow reports whether the id of a row of the log is one that this service makes: a UUID of version 8 (postgres.StatusLogID).
// Platforms' own are of version 4.
func ownRow(id string) bool { return len(id) == 36 && id[14] == '8' }

func because(r *shadow.Report) string {
	if len(r.Reasons) == 0 {
		return ""
	}
	return " (" + clean(joinWords(r.Reasons)) + ")"
}

func (c *cli) difference(p printer, d *shadow.Difference) error {
	if c.json() {
		return p.json(d)
	}
	side := func(s shadow.Side) string {
		t := clean(s.State)
		if s.Health != "" {
			t += "/" + clean(s.Health)
		}
		return t
	}
	return p.line(stamp(wire.Time{Time: d.At}), "  ", clean(d.ServerID), "  ", p.paint("theirs "+side(d.Theirs), red), "  ", p.paint("ours "+side(d.Ours), green), "\n    ", p.paint(clean(d.Why)+" ("+d.Where+")", dim))
}

// databaseError gives an error of the database its exit code.
func (c *cli) databaseError(err error) error {
	if errors.Is(err, client.ErrUnreachable) {
		return err
	}
	switch statussync.CodeOf(err) {
	case statussync.CodeUnavailable:
		return &databaseAway{err}
	case statussync.CodeForbidden, statussync.CodeConflict:
		return &localRefusal{err}
	case statussync.CodeInvalid:
		return &usageError{err}
	}
	return err
}

// databaseAway is a database that this program could not reach.
type databaseAway struct{ err error }

func (e *databaseAway) Error() string { return e.err.Error() }
func (e *databaseAway) Unwrap() error { return e.err }

// ours asks the running service.
type ours struct{ cl *client.Client }

// Timeline implements shadow.Ours.
func (o ours) Timeline(ctx context.Context, id string, since time.Time) (shadow.Timeline, error) {
	var entries []*statussync.Entry
	hours := int(time.Since(since)/time.Hour) + 1
	for e, err := range o.cl.AllHistory(ctx, id, client.HistoryQuery{Hours: hours, Limit: 1000}) {
		if statussync.CodeOf(err) == statussync.CodeNotFound {
			break
		}
		if err != nil {
			return nil, err
		}
		if entries = append(entries, e); len(entries) >= maxTimeline {
			break
		}
	}
	s, err := o.cl.Status(ctx, id)
	switch {
	case err == nil:
		now := said(s)
		return shadow.NewTimeline(entries, &now), nil
	case statussync.CodeOf(err) == statussync.CodeNotFound:
		return shadow.NewTimeline(entries, nil), nil
	}
	return nil, err
}

// maxTimeline bounds what is asked of one server.
const maxTimeline = 100_000

// Now implements shadow.Ours.
func (o ours) Now(ctx context.Context) (map[string]shadow.Said, error) {
	out := map[string]shadow.Said{}
	for s, err := range o.cl.AllServers(ctx, client.ServerQuery{Limit: 1000}) {
		if err != nil {
			return nil, err
		}
		out[s.ID] = said(&s.Status)
	}
	return out, nil
}

func said(s *wire.Status) shadow.Said {
	return shadow.Said{From: s.Since.Time, Known: true, State: s.State, Health: s.Health, Reason: s.Reason, Details: s.LastError}
}
