package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/postgres"
)

func (c *cli) migrateCmd() *cobra.Command {
	var db databaseFlags
	var apply, down, check bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Install in a platform's database what telling changes at once needs, or remove it",
		Long: `Shows what LISTEN/NOTIFY needs in a platform's database, as SQL; --apply does it: a schema of its own, statussync, and triggers that
tell which rows changed. Nothing of the platform's is altered otherwise. A second call does nothing; --down removes it all.

Without it the service works as well, and reads all rows every minute. The role needs to own the tables, or somebody who
does runs the SQL that is shown.`,
		Example: `  statussync migrate --dsn "$DATABASE_URL"
  statussync migrate --dsn "$DATABASE_URL" --apply
  statussync migrate --check
  statussync migrate --down --apply`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dsn, err := c.address(&db)
			if err != nil {
				return err
			}
			if check {
				if apply || down {
					return usagef("--check changes nothing; leave --apply and --down out")
				}
				r, err := postgres.Check(cmd.Context(), dsn, postgres.CheckOptions{Schema: db.schema})
				if err != nil {
					return c.databaseError(err)
				}
				return c.rights(r)
			}
			plan, err := postgres.Migrate(cmd.Context(), dsn, postgres.MigrateOptions{Apply: apply, Down: down, Schema: db.schema})
			if err != nil {
				return c.databaseError(err)
			}
			return c.migrated(plan)
		},
	}
	db.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&apply, "apply", false, "do it; otherwise it is only shown")
	f.BoolVar(&down, "down", false, "remove what was installed")
	f.BoolVar(&check, "check", false, "only say what this role can do there, and which rights are missing for the rest; exit code 1 where servers can't be read")
	return cmd
}

// features says what each of them is for, for people.
var features = map[postgres.Feature]string{
	postgres.FeatureRegistry: "read servers and environments", postgres.FeatureWriteBack: "write heartbeats (heartbeat_write_back)",
	postgres.FeatureStatusLog: "write updates (status_log)", postgres.FeatureListen: "be told of changes by LISTEN/NOTIFY",
	postgres.FeatureRealtime: "be told of changes by Supabase Realtime", postgres.FeatureConnections: "tell agents' connections",
	postgres.FeatureRetention: "delete old updates (status_log.retention)",
}

// rights shows what a role can do in a database. The error is notHealthy where it can't even read the servers.
func (c *cli) rights(r *postgres.CheckReport) error {
	p := printer{c.stdout, c.colour()}
	reads := false
	rows := make([][]cell, 0, len(r.Features))
	for _, x := range r.Features {
		reads = reads || x.Feature == postgres.FeatureRegistry && x.OK
		ok := in("yes", green)
		if !x.OK {
			ok = in("no", yellow)
		}
		missing := slices.Concat(x.Missing, x.Notes)
		if len(x.Grants) > 0 {
			missing = append(missing, "rights, below")
		}
		for i := range missing { // one by one: what is to be typed must not be cut off
			missing[i] = clean(missing[i])
		}
		rows = append(rows, []cell{txt(features[x.Feature]), ok, txt(strings.Join(missing, "; "))})
	}
	var err error
	if c.json() {
		err = p.json(r)
	} else if err = p.table([]string{"THE ROLE " + clean(r.Role) + " CAN", "", "MISSING"}, rows); err == nil {
		for _, x := range r.Features {
			for _, g := range x.Grants {
				if err = p.line(statussync.CleanText(g, maxErrorLine), ";  -- ", features[x.Feature]); err != nil {
					return err
				}
			}
		}
	}
	if err == nil && !reads {
		err = &notHealthy{"the role can't read servers and environments"}
	}
	return err
}

func (c *cli) migrated(plan *postgres.MigratePlan) error {
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(plan)
	}
	if !plan.Applied {
		for line := range strings.Lines(plan.SQL()) {
			if err := p.line(statussync.CleanText(strings.TrimRight(line, "\n"), maxErrorLine)); err != nil {
				return err
			}
		}
		if len(plan.Statements) > 0 {
			return p.line("-- Nothing was changed; --apply does it.")
		}
		return nil
	}
	for _, n := range plan.Notes {
		if err := p.line(clean(n)); err != nil {
			return err
		}
	}
	what := "Nothing was to be done."
	switch n := len(plan.Statements); {
	case n > 0 && plan.Version == 0:
		what = "Removed."
	case n > 0:
		what = fmt.Sprintf("Installed version %d.", plan.Version)
	}
	return p.line(what)
}
