package main

import (
	"context"
	"fmt"
	"runtime"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

func (c *cli) environmentsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "environments",
		Aliases: []string{"envs"},
		Short:   "The hosts, their agents and resources",
		Example: `  statussync environments
  statussync environments -o json | jq '.items[] | select(.agent != "ok") | .id'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.talk(func(cl *client.Client) error {
				return c.environments(cmd.Context(), cl)
			})
		},
	}
}

func (c *cli) environments(ctx context.Context, cl *client.Client) error {
	all := wire.Page[wire.Environment]{Items: []wire.Environment{}}
	for cursor, first := "", true; ; first = false {
		p, err := cl.Environments(ctx, pageSize, cursor)
		if err != nil {
			return err
		}
		if first {
			all.Cursor = p.Cursor
		}
		all.Items = append(all.Items, p.Items...)
		if p.NextCursor == "" || p.NextCursor == cursor {
			break
		}
		cursor = p.NextCursor
	}
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(all)
	}
	var rows [][]cell
	for i := range all.Items {
		e := &all.Items[i]
		beat, every := "-", "-"
		if e.HeartbeatAgeSeconds != nil {
			beat = seconds(*e.HeartbeatAgeSeconds) + " ago"
		}
		if e.HeartbeatIntervalSeconds > 0 {
			every = seconds(e.HeartbeatIntervalSeconds)
		}
		cpu, memory, disk := resources(e.System)
		rows = append(rows, []cell{
			txt(clean(e.ID)), in(clean(string(e.Agent)), agentStyle(e.Agent)), txt(clean(e.AgentVersion)), num(beat), num(every),
			num(strconv.Itoa(e.Servers)), num(strconv.Itoa(len(e.Discovered))), num(cpu), num(memory), num(disk), txt(clean(e.Address)),
		})
	}
	if len(rows) > 0 {
		if err := p.table([]string{"ID", "AGENT", "VERSION", "HEARTBEAT", "EVERY", "SERVERS", "UNCLAIMED", "CPU", "MEMORY", "DISK", "ADDRESS"}, rows); err != nil {
			return err
		}
		if err := p.line(); err != nil {
			return err
		}
	}
	return p.line(plural(len(rows), "environment", "environments"))
}

func agentStyle(a statussync.AgentState) style {
	switch a {
	case statussync.AgentOK:
		return green
	case statussync.AgentLate:
		return yellow
	case statussync.AgentLost:
		return red
	}
	return grey
}

// resources says how full a host is.
func resources(s *statussync.SystemStatus) (cpu, memory, disk string) {
	cpu, memory, disk = "-", "-", "-"
	if s == nil {
		return
	}
	if s.CPULoadPercent != nil {
		cpu = strconv.FormatFloat(*s.CPULoadPercent, 'f', 0, 64) + "%"
	}
	if m := s.Memory; m != nil && m.TotalBytes > 0 {
		memory = size(m.UsedBytes) + "/" + size(m.TotalBytes)
	}
	if d := s.Disk; d != nil && d.TotalBytes > 0 {
		disk = size(d.UsedBytes) + "/" + size(d.TotalBytes)
	}
	return
}

func (c *cli) metricsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "The service's own numbers",
		Example: `  statussync metrics
  statussync metrics -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.talk(func(cl *client.Client) error {
				m, err := cl.SyncMetrics(cmd.Context())
				if err != nil {
					return err
				}
				p := printer{c.stdout, c.colour()}
				if c.json() {
					return p.json(m)
				}
				hits := "no reads yet"
				if m.CacheHitRate != nil {
					hits = fmt.Sprintf("%.1f%% (%d hits, %d misses)", *m.CacheHitRate*100, m.CacheHits, m.CacheMisses)
				}
				last := "never"
				if !m.LastSyncTime.IsZero() {
					last = fmt.Sprintf("%s ago, took %s", since(m.LastSyncTime.Time, c.now()), latency(m.SyncDurationMS))
				}
				return p.facts(
					"servers", strconv.Itoa(m.TotalServers),
					"running", strconv.Itoa(m.ActiveServers),
					"in error", strconv.Itoa(m.ErrorServers),
					"status changes", strconv.FormatUint(m.StatusChanges, 10),
					"subscriptions", strconv.Itoa(m.Subscriptions),
					"last sync", last,
					"cache hit rate", hits,
				)
			})
		},
	}
}

// versions is what the command version tells.
type versions struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Service string `json:"service,omitempty"`
}

func (c *cli) versionCmd() *cobra.Command {
	var service bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "The version of this program, and of the service",
		Example: `  statussync version
  statussync version --service --server https://status.example.org`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Version: c.version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
			if service {
				cl, err := c.client()
				if err != nil {
					return err
				}
				defer cl.CloseIdle()
				if v.Service, err = cl.Version(cmd.Context()); err != nil {
					return err
				}
			}
			p := printer{c.stdout, c.colour()}
			if c.json() {
				return p.json(v)
			}
			if err := p.line("statussync ", v.Version, " (", v.Go, " ", v.OS, "/", v.Arch, ")"); err != nil || !service {
				return err
			}
			if v.Service == "" {
				v.Service = "tells its version only to those with a token"
			}
			return p.line("service    ", v.Service, " (", c.server, ")")
		},
	}
	cmd.Flags().BoolVar(&service, "service", false, "ask the service at --server for its version, too")
	return cmd
}
