package main

import (
	"fmt"
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
				r, err := postgres.Check(cmd.Context(), dsn, db.schema)
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

func (c *cli) rights(r *postgres.CheckReport) error {
	p := printer{c.stdout, c.colour()}
	var err error
	if c.json() {
		err = p.json(r)
	} else {
		rows := make([][]cell, 0, len(r.Items))
		for _, x := range r.Items {
			ok := in("yes", green)
			if !x.OK {
				ok = in("no", yellow)
			}
			rows = append(rows, []cell{txt(x.Feature), ok, txt(clean(x.Detail))})
		}
		if err = p.table([]string{"THE ROLE " + clean(r.Role) + " CAN", "", "BECAUSE"}, rows); err != nil {
			return err
		}
		for _, x := range r.Items {
			for _, g := range x.Grants {
				if err = p.line(statussync.CleanText(g, maxErrorLine), ";  -- ", x.Feature); err != nil {
					return err
				}
			}
		}
	}
	if err == nil && !r.OK {
		err = &notHealthy{"the role can't read what is needed"}
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
