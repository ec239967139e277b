package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/agentopia/statussync/client"
)

func (c *cli) manCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the manual pages",
		Long: `Writes a manual page for each command into the folder DIR, which is made where it does not exist. Pages that are there
already are replaced. Where SOURCE_DATE_EPOCH is set, the pages bear that date.`,
		Example: `  statussync man ~/.local/share/man/man1
  man statussync-status`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := args[0]
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("the folder for the pages: %w", err)
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			root.PersistentFlags().Lookup("server").DefValue = client.DefaultBaseURL // not what is set where the pages are made
			err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "statussync " + c.version, Manual: "statussync"}, dir)
			if err != nil {
				return fmt.Errorf("writing the pages: %w", err)
			}
			pages, err := filepath.Glob(filepath.Join(dir, "statussync*.1"))
			if err != nil {
				return err
			}
			return printer{c.stdout, c.colour()}.line(plural(len(pages), "page", "pages"), " in ", text(dir))
		},
	}
}
