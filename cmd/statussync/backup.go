package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync/app"
	"github.com/agentopia/statussync/client"
)

// localRefusal is what this program refused to do with files of this machine.
type localRefusal struct{ err error }

func (e *localRefusal) Error() string { return e.err.Error() }
func (e *localRefusal) Unwrap() error { return e.err }

// backupReport is what backup says it did.
type backupReport struct {
	File     string              `json:"file"`
	Bytes    int64               `json:"bytes"`
	Manifest *app.BackupManifest `json:"manifest"`
}

func (c *cli) backupCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Save the whole store of a running service to a file",
		Long: `Takes a backup of a running service: a consistent snapshot, while it goes on. Needs the role admin. The file is written
as FILE.partial, checked against its checksums, and only then named FILE; "-" writes to the standard output.

The file holds secrets: the headers with which managed servers are probed, and the hashes of agents' tokens. It is
created with mode 0600; keep it as you keep passwords. The configuration file is not in it.`,
		Example: `  statussync backup statussync.tar
  statussync backup - | age -r RECIPIENT > statussync.tar.age`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				if args[0] == "-" {
					return c.backupToStdout(cmd.Context(), cl)
				}
				return c.backupTo(cmd.Context(), cl, args[0], force)
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "overwrite FILE")
	return cmd
}

// backupToStdout checks what it writes while it writes it: who reads it must look at the exit code.
func (c *cli) backupToStdout(ctx context.Context, cl *client.Client) error {
	if c.terminal {
		return usagef("a backup is no text for a terminal; redirect the output, or name a file")
	}
	body, _, err := cl.Backup(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	m, err := app.CheckBackup(io.TeeReader(body, c.stdout))
	if err != nil {
		return err
	}
	p := printer{c.stderr, false}
	return p.line("backup of ", m.CreatedAt.UTC().Format("2006-01-02 15:04:05"), " UTC, journal up to ", clean(m.Head.String()))
}

func (c *cli) backupTo(ctx context.Context, cl *client.Client, file string, force bool) error {
	var r *backupReport
	err := saveAs(file, force, func(f *os.File) (err error) {
		r, err = c.download(ctx, cl, f)
		return err
	})
	if err != nil {
		return err
	}
	r.File = file
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(r)
	}
	return p.line(text(file), ": ", size(r.Bytes), ", of ", r.Manifest.CreatedAt.In(c.now().Location()).Format("2006-01-02 15:04:05"),
		", journal up to ", clean(r.Manifest.Head.String()), ". It holds secrets (headers of probes, hashes of tokens).")
}

// saveAs has write fill file.partial, makes that durable, and only then gives it its name; after an error there is
// neither. A file that exists is a usage error, unless force is set.
func saveAs(file string, force bool, write func(f *os.File) error) error {
	if fi, err := os.Stat(file); err == nil {
		switch {
		case !fi.Mode().IsRegular():
			return usagef("%s exists and is no plain file", file)
		case !force:
			return usagef("%s exists; --force overwrites it", file)
		}
	}
	part := file + ".partial"
	if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return usagef("%w", err)
	}
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return usagef("%w", err)
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(part, file)
	}
	if err != nil {
		if rerr := os.Remove(part); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return err
	}
	if runtime.GOOS == "windows" { // there a directory can't be synced
		return nil
	}
	d, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// download fills f, makes it durable, and reads it again to check it.
func (c *cli) download(ctx context.Context, cl *client.Client, f *os.File) (*backupReport, error) {
	body, _, err := cl.Backup(ctx)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	n, err := io.Copy(f, body)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, err
	}
	m, err := app.CheckBackup(f)
	return &backupReport{Bytes: n, Manifest: m}, err
}

func (c *cli) restoreCmd() *cobra.Command {
	var (
		dir   string
		force bool
	)
	cmd := &cobra.Command{
		Use:   "restore FILE --data DIR",
		Short: "Make a data directory of a backup",
		Long: `Makes a data directory of a backup, for a service that is not running. Everything in the backup is checked before
anything appears in DIR. DIR must be empty or absent; --force moves what is there to DIR.before-restore-TIME. "-" reads
the backup from the standard input. Run it as the user that runs the service.

The service begins a new epoch with it: clients that come with a cursor from before are told to start afresh.`,
		Example: `  statussync restore statussync.tar --data ./data`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var in io.Reader = os.Stdin
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return usagef("%w", err)
				}
				defer f.Close()
				in = f
			}
			r, err := app.Restore(cmd.Context(), app.RestoreOptions{Archive: in, Dir: dir, Force: force, Now: c.now()})
			if err != nil {
				return &localRefusal{err}
			}
			p := printer{c.stdout, c.colour()}
			if c.json() {
				return p.json(r)
			}
			if err := p.line(text(r.Dir), " holds the backup of ", r.Manifest.CreatedAt.In(c.now().Location()).Format("2006-01-02 15:04:05"),
				", journal up to ", clean(r.Manifest.Head.String()), ". With the next start a new epoch begins: clients resync."); err != nil || r.MovedTo == "" {
				return err
			}
			return p.line("What was there before is in ", text(r.MovedTo), ".")
		},
	}
	cmd.Flags().StringVar(&dir, "data", "", "the data directory")
	cmd.Flags().BoolVar(&force, "force", false, "move what is in DIR to DIR.before-restore-TIME")
	if err := cmd.MarkFlagRequired("data"); err != nil {
		panic(err) // the flag stands three lines above
	}
	if err := cmd.MarkFlagDirname("data"); err != nil {
		panic(err)
	}
	return cmd
}
