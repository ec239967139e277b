package main

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

// maxSpecFile bounds a file with a definition, in bytes; the service takes no more either.
const maxSpecFile = 64 << 10

// readSpec fills spec from a JSON file. A key that nobody knows is an error: it would be a misspelt one.
func readSpec(path string, spec any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return &usageError{err}
	}
	if len(data) > maxSpecFile {
		return usagef("%s: is larger than %d KiB", path, maxSpecFile>>10)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(spec); err != nil {
		return usagef("%s: is not a definition in JSON: %w", path, err)
	}
	if d.More() {
		return usagef("%s: holds more than one definition", path)
	}
	return nil
}

// specFlags are the flags that make a server's definition.
type specFlags struct {
	file, id                                                  string
	name, environment, owner, container, endpoint, serverType string
	transport, desired                                        enum
	labels                                                    labels
	disabled                                                  bool
	probeKind, probeURL, probePath                            string
	probeInterval, probeTimeout                               duration
	probeExpectOpen                                           bool
}

func (f *specFlags) register(cmd *cobra.Command, placed bool) {
	f.transport.allowed = []string{"streamable-http", "sse", "http", "stdio"}
	f.desired.allowed = []string{"running", "stopped"}
	fl := cmd.Flags()
	fl.StringVar(&f.file, "file", "", "read the definition from this JSON file; flags go before what it says. The way to give headers of probes, which are secrets")
	fl.StringVar(&f.name, "name", "", "name for people (default: the id)")
	if placed {
		fl.StringVar(&f.environment, "environment", "", "the environment that runs it")
		fl.StringVar(&f.container, "container", "", "name under which the agent reports it (default: the name)")
	} else {
		fl.StringVar(&f.id, "id", "", "id of the new server (default: the container's name)")
	}
	fl.StringVar(&f.owner, "owner", "", "whose it is (default: the environment's owner)")
	fl.StringVar(&f.endpoint, "endpoint", "", "URL at which clients reach it")
	fl.Var(&f.transport, "transport", "one of "+joinWords(f.transport.allowed)+" (default: streamable-http)")
	fl.StringVar(&f.serverType, "type", "", "kind of server, free text")
	fl.Var(&f.desired, "desired", "running (the default) or stopped: whether a stop is a fault")
	fl.Var(&f.labels, "label", "label of the server; repeated for several")
	fl.BoolVar(&f.disabled, "disabled", false, "don't probe it")
	fl.StringVar(&f.probeKind, "probe-kind", "", "how it is probed: mcp, http, none (default: by the transport; http with a --probe-url or --probe-path)")
	fl.StringVar(&f.probeURL, "probe-url", "", "URL that is probed (default: the endpoint, or its origin and the path)")
	fl.StringVar(&f.probePath, "probe-path", "", "path that is probed at the endpoint's origin")
	fl.Var(&f.probeInterval, "probe-interval", "time between probes of the running server")
	fl.Var(&f.probeTimeout, "probe-timeout", "how long a probe may take")
	fl.BoolVar(&f.probeExpectOpen, "probe-expect-open", false, "that it wants a login is a fault")
}

// spec is the definition that file and flags give.
func (f *specFlags) spec(cmd *cobra.Command) (wire.ServerSpec, error) {
	var s wire.ServerSpec
	if f.file != "" {
		if err := readSpec(f.file, &s); err != nil {
			return s, err
		}
	}
	changed := cmd.Flags().Changed
	set := func(flag, value string, to *string) {
		if changed(flag) {
			*to = value
		}
	}
	set("id", f.id, &s.ID)
	set("name", f.name, &s.Name)
	set("environment", f.environment, &s.EnvironmentID)
	set("container", f.container, &s.Container)
	set("owner", f.owner, &s.Owner)
	set("endpoint", f.endpoint, &s.Endpoint)
	set("type", f.serverType, &s.Type)
	if changed("transport") {
		s.Transport = statussync.Transport(f.transport.value)
	}
	if changed("desired") {
		s.Desired = statussync.Desired(f.desired.value)
	}
	if changed("label") {
		s.Labels = f.labels.values
	}
	if changed("disabled") {
		s.Disabled = f.disabled
	}
	p := s.Probe
	if p == nil {
		p = &wire.ProbeSpec{}
	}
	if changed("probe-kind") {
		p.Kind = statussync.ProbeKind(f.probeKind)
	}
	set("probe-url", f.probeURL, &p.URL)
	set("probe-path", f.probePath, &p.Path)
	set("probe-interval", f.probeInterval.text, &p.Interval)
	set("probe-timeout", f.probeTimeout.text, &p.Timeout)
	if changed("probe-expect-open") {
		if p.Expect = ""; f.probeExpectOpen {
			p.Expect = "open"
		}
	}
	for _, flag := range []string{"probe-kind", "probe-url", "probe-path", "probe-interval", "probe-timeout", "probe-expect-open"} {
		if changed(flag) {
			s.Probe = p
		}
	}
	return s, nil
}

func (c *cli) serverCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Define servers while the service runs",
		Long: `The managed registry: servers that are defined by API, beside those of the configuration file, which can only be changed
there. Changes need the role admin; they are stored and in force when the command returns.`,
		Args: cobra.ArbitraryArgs,
		RunE: subcommands,
	}
	cmd.AddCommand(c.serverAddCmd(), c.serverListCmd(), c.serverShowCmd(), c.serverSetCmd(), c.serverRemoveCmd())
	return cmd
}

func (c *cli) serverAddCmd() *cobra.Command {
	var f specFlags
	cmd := &cobra.Command{
		Use:   "add ID",
		Short: "Define a new server",
		Example: `  statussync server add weather --environment box-9 --endpoint https://weather.example.com/mcp
  statussync server add billing --file billing.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := f.spec(cmd)
			if err != nil {
				return err
			}
			spec.ID = args[0]
			return c.talk(func(cl *client.Client) error {
				s, err := cl.AddServer(cmd.Context(), spec)
				if err != nil {
					return err
				}
				return c.definition(s, "added")
			})
		},
	}
	f.register(cmd, true)
	return cmd
}

func (c *cli) serverSetCmd() *cobra.Command {
	var f specFlags
	cmd := &cobra.Command{
		Use:   "set ID",
		Short: "Replace the definition of a server",
		Long: `Replaces the whole definition of a managed server: what is not given has its default afterwards, whatever it was
before. Its status, history and evidence stay.`,
		Example: `  statussync server set weather --environment box-9 --endpoint https://weather.example.com/v2/mcp`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := f.spec(cmd)
			if err != nil {
				return err
			}
			spec.ID = args[0]
			return c.talk(func(cl *client.Client) error {
				s, err := cl.SetServer(cmd.Context(), args[0], spec)
				if err != nil {
					return err
				}
				return c.definition(s, "changed")
			})
		},
	}
	f.register(cmd, true)
	return cmd
}

func (c *cli) serverShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "show ID",
		Short:   "The definition of a server",
		Example: `  statussync server show weather`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				s, err := cl.Server(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return c.definition(s, "")
			})
		},
	}
}

func (c *cli) serverRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "remove ID",
		Short:   "Remove a server",
		Long:    `Removes a managed server. Its history stays; a server that is added again under the same id goes on counting its versions.`,
		Example: `  statussync server remove weather`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				if err := cl.RemoveServer(cmd.Context(), args[0]); err != nil {
					return err
				}
				return c.removed("server", args[0])
			})
		},
	}
}

// removed says that something is gone.
func (c *cli) removed(kind, id string) error {
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(map[string]string{"removed": id})
	}
	return p.line("the ", kind, " ", clean(id), " is removed")
}

// definition shows what defines a server; what, if not empty, is what was done to it.
func (c *cli) definition(s *wire.Server, what string) error {
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(s)
	}
	if what != "" {
		if err := p.line("the server ", clean(s.ID), " is ", what); err != nil {
			return err
		}
	} else if err := p.line(sentence(p, clean(s.ID), &s.Status)); err != nil {
		return err
	}
	probe := ""
	if s.Probe != nil {
		parts := []string{string(s.Probe.Kind), s.Probe.URL, s.Probe.Path}
		if s.Probe.IntervalSeconds > 0 {
			parts = append(parts, "every "+seconds(s.Probe.IntervalSeconds))
		}
		probe = strings.Join(strings.Fields(text(strings.Join(parts, " "))), " ")
	}
	disabled := ""
	if s.Disabled {
		disabled = "not probed"
	}
	tags := ""
	if len(s.Labels) > 0 {
		tags = text((&labels{s.Labels}).String())
	}
	return p.facts("name", text(s.Name), "origin", orEmpty(string(s.Origin)), "environment", orEmpty(s.EnvironmentID),
		"owner", orEmpty(s.Owner), "container", orEmpty(s.Container), "endpoint", orEmpty(s.Endpoint),
		"transport", orEmpty(string(s.Transport)), "type", orEmpty(s.Type), "desired", orEmpty(string(s.Desired)),
		"probe", probe, "disabled", disabled, "labels", tags)
}

func (c *cli) serverListCmd() *cobra.Command {
	var origins words
	var environments words
	var tags labels
	cmd := &cobra.Command{
		Use:   "list",
		Short: "The definitions of all servers",
		Example: `  statussync server list --origin managed
  statussync server list --environment box-7 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.talk(func(cl *client.Client) error {
				all := wire.Page[wire.Server]{Items: []wire.Server{}}
				for s, err := range cl.AllServers(cmd.Context(), client.ServerQuery{EnvironmentIDs: environments.values, Labels: tags.values, Limit: pageSize}) {
					if err != nil {
						return err
					}
					if len(origins.values) == 0 || slices.Contains(origins.values, string(s.Origin)) {
						all.Items = append(all.Items, s)
					}
				}
				p := printer{c.stdout, c.colour()}
				if c.json() {
					return p.json(all)
				}
				var rows [][]cell
				for i := range all.Items {
					s := &all.Items[i]
					rows = append(rows, []cell{
						txt(clean(s.ID)), txt(clean(s.EnvironmentID)), txt(clean(string(s.Origin))), txt(clean(string(s.Transport))),
						txt(clean(string(s.Desired))), txt(clean(s.Container)), txt(clean(s.Endpoint)),
					})
				}
				if len(rows) > 0 {
					if err := p.table([]string{"ID", "ENVIRONMENT", "ORIGIN", "TRANSPORT", "DESIRED", "CONTAINER", "ENDPOINT"}, rows); err != nil {
						return err
					}
					if err := p.line(); err != nil {
						return err
					}
				}
				return p.line(plural(len(rows), "server", "servers"))
			})
		},
	}
	origins.allowed = []string{"config", "managed", "postgres", "mcp_config", "discovered"}
	fl := cmd.Flags()
	fl.Var(&origins, "origin", "only those that come from: "+joinWords(origins.allowed))
	fl.Var(&environments, "environment", "only servers of these environments")
	fl.Var(&tags, "label", "only servers with this label; repeated: with all of them")
	return cmd
}

func (c *cli) environmentCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "environment",
		Short: "Define hosts while the service runs, and make their agents' tokens",
		Long: `The managed registry: environments that are defined by API, beside those of the configuration file, which can only be
changed there. Changes need the role admin; they are stored and in force when the command returns.`,
		Args: cobra.ArbitraryArgs,
		RunE: subcommands,
	}
	cmd.AddCommand(c.environmentAddCmd(), c.environmentListCmd(), c.environmentShowCmd(), c.environmentSetCmd(), c.environmentRemoveCmd(),
		c.rotateTokenCmd(), c.tokensCmd(), c.dropTokenCmd())
	return cmd
}

// environmentFlags are the flags that make an environment's definition.
type environmentFlags struct{ spec wire.EnvironmentSpec }

func (f *environmentFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.spec.Name, "name", "", "name for people (default: the id)")
	fl.StringVar(&f.spec.Owner, "owner", "", "whose it is")
	fl.StringVar(&f.spec.Address, "address", "", "host name or IP address, without a port")
	fl.StringVar(&f.spec.AgentURL, "agent-url", "", "where a silent agent is asked")
}

// addedEnvironment is an environment that was just added, with its agent's token where one was asked for.
type addedEnvironment struct {
	*wire.Environment
	Token *wire.NewAgentToken `json:"token,omitempty"`
}

func (c *cli) environmentAddCmd() *cobra.Command {
	var f environmentFlags
	var withToken bool
	cmd := &cobra.Command{
		Use:     "add ID",
		Short:   "Define a new environment",
		Example: `  statussync environment add box-9 --address box-9.example.com --token-for-agent`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.spec.ID = args[0]
			return c.talk(func(cl *client.Client) error {
				e, err := cl.AddEnvironment(cmd.Context(), f.spec)
				if err != nil {
					return err
				}
				added := addedEnvironment{Environment: e}
				if withToken {
					if added.Token, err = cl.RotateAgentToken(cmd.Context(), args[0]); err != nil {
						return err
					}
				}
				if c.json() {
					return printer{c.stdout, c.colour()}.json(added)
				}
				if err := c.environmentDefinition(e, "added"); err != nil || added.Token == nil {
					return err
				}
				return c.newToken(args[0], added.Token)
			})
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&withToken, "token-for-agent", false, "also make a token for its agent, and show it")
	return cmd
}

func (c *cli) environmentSetCmd() *cobra.Command {
	var f environmentFlags
	cmd := &cobra.Command{
		Use:   "set ID",
		Short: "Replace the definition of an environment",
		Long: `Replaces the whole definition of a managed environment: what is not given has its default afterwards. Its agent's
tokens stay.`,
		Example: `  statussync environment set box-9 --address box-9.example.com --agent-url https://box-9.example.com:30000`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.spec.ID = args[0]
			return c.talk(func(cl *client.Client) error {
				e, err := cl.SetEnvironment(cmd.Context(), args[0], f.spec)
				if err != nil {
					return err
				}
				return c.environmentDefinition(e, "changed")
			})
		},
	}
	f.register(cmd)
	return cmd
}

func (c *cli) environmentListCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "The hosts, their agents and resources",
		Example: `  statussync environment list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.talk(func(cl *client.Client) error { return c.environments(cmd.Context(), cl) })
		},
	}
}

func (c *cli) environmentShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "show ID",
		Short:   "One host and its agent",
		Example: `  statussync environment show box-9`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				e, err := cl.Environment(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return c.environmentDefinition(e, "")
			})
		},
	}
}

func (c *cli) environmentRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "remove ID",
		Short:   "Remove an environment that has no servers, and its tokens",
		Example: `  statussync environment remove box-9`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				if err := cl.RemoveEnvironment(cmd.Context(), args[0]); err != nil {
					return err
				}
				return c.removed("environment", args[0])
			})
		},
	}
}

func (c *cli) environmentDefinition(e *wire.Environment, what string) error {
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(e)
	}
	line := "the environment " + clean(e.ID)
	if what != "" {
		line += " is " + what
	}
	if err := p.line(line); err != nil {
		return err
	}
	agent := p.paint(clean(string(e.Agent)), agentStyle(e.Agent))
	if e.HeartbeatAgeSeconds != nil {
		agent += ", last heard of " + seconds(*e.HeartbeatAgeSeconds) + " ago"
	}
	return p.facts("name", text(e.Name), "origin", orEmpty(string(e.Origin)), "owner", orEmpty(e.Owner), "address", orEmpty(e.Address),
		"agent url", orEmpty(e.AgentURL), "agent", agent, "agent version", orEmpty(e.AgentVersion), "servers", strconv.Itoa(e.Servers),
		"unclaimed", strconv.Itoa(len(e.Discovered)))
}

func (c *cli) rotateTokenCmd() *cobra.Command {
	var drop bool
	cmd := &cobra.Command{
		Use:   "rotate-token ID",
		Short: "Make a new token for the agent of an environment",
		Long: `Makes a new token for the agent of a managed environment and shows it, this once. The one before stays valid until it
is dropped, or until the next rotation, so that the agent can be given the new one without a gap.`,
		Example: `  statussync environment rotate-token box-9
  statussync environment rotate-token box-9 --drop-old -o json | jq -r .token`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				t, err := cl.RotateAgentToken(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if drop {
					for len(t.Valid) > 1 {
						last := len(t.Valid) - 1
						if dropErr := cl.DropAgentToken(cmd.Context(), args[0], t.Valid[last].ID); dropErr != nil {
							err = dropErr // the new token is still told: nobody could read it again
							break
						}
						t.Valid = t.Valid[:last]
					}
				}
				if shown := c.newToken(args[0], t); shown != nil {
					return shown
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&drop, "drop-old", false, "end the tokens before it at once")
	return cmd
}

// newToken shows a token that was just made.
func (c *cli) newToken(environment string, t *wire.NewAgentToken) error {
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(t)
	}
	if err := p.line("a new token for the agent of ", clean(environment), "; it is not shown again:"); err != nil {
		return err
	}
	before := ""
	if len(t.Valid) > 1 {
		before = t.Valid[1].ID + ", valid until it is dropped or the next rotation"
	}
	return p.facts("token", text(t.Token), "id", clean(t.ID), "the one before", before)
}

func (c *cli) tokensCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "tokens ID",
		Short:   "Which tokens of an environment's agent are valid",
		Example: `  statussync environment tokens box-9`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				list, err := cl.AgentTokens(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				p := printer{c.stdout, c.colour()}
				if c.json() {
					return p.json(list)
				}
				var rows [][]cell
				for _, t := range list.Items {
					rows = append(rows, []cell{txt(clean(t.ID)), num(since(t.CreatedAt.Time, c.now()) + " ago")})
				}
				if len(rows) == 0 {
					return p.line("no tokens")
				}
				return p.table([]string{"ID", "MADE"}, rows)
			})
		},
	}
}

func (c *cli) dropTokenCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "drop-token ID TOKEN-ID",
		Short:   "End a token of an environment's agent",
		Example: `  statussync environment drop-token box-9 3f2a90c1d0be`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				if err := cl.DropAgentToken(cmd.Context(), args[0], args[1]); err != nil {
					return err
				}
				return c.removed("token", args[1])
			})
		},
	}
}

func (c *cli) discoveredCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "discovered",
		Short: "The containers that agents list and no server claims",
		Example: `  statussync discovered
  statussync adopt box-7 weather`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.talk(func(cl *client.Client) error {
				all := wire.Page[wire.Discovered]{Items: []wire.Discovered{}}
				for cursor := ""; ; {
					page, err := cl.Discovered(cmd.Context(), pageSize, cursor)
					if err != nil {
						return err
					}
					all.Items = append(all.Items, page.Items...)
					if page.NextCursor == "" || page.NextCursor == cursor {
						break
					}
					cursor = page.NextCursor
				}
				p := printer{c.stdout, c.colour()}
				if c.json() {
					return p.json(all)
				}
				var rows [][]cell
				for i := range all.Items {
					d := &all.Items[i]
					port := "-"
					if d.PublicPort > 0 {
						port = strconv.Itoa(d.PublicPort)
					}
					rows = append(rows, []cell{
						txt(clean(d.EnvironmentID)), txt(clean(d.Container)), txt(clean(d.State)), num(port),
						num(since(d.LastSeen.Time, c.now()) + " ago"), txt(clean(d.Image)),
					})
				}
				if len(rows) > 0 {
					if err := p.table([]string{"ENVIRONMENT", "CONTAINER", "STATE", "PORT", "SEEN", "IMAGE"}, rows); err != nil {
						return err
					}
					if err := p.line(); err != nil {
						return err
					}
				}
				return p.line(plural(len(rows), "container", "containers"))
			})
		},
	}
}

func (c *cli) adoptCmd() *cobra.Command {
	var f specFlags
	cmd := &cobra.Command{
		Use:   "adopt ENVIRONMENT CONTAINER",
		Short: "Make a discovered container a server",
		Long: `Defines a managed server for a container that an agent lists and no server claims. Without an endpoint it is probed at
its published port on the environment's address.`,
		Example: `  statussync adopt box-7 weather
  statussync adopt box-7 weather --id weather-7 --endpoint https://box-7.example.com:9101/mcp`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := f.spec(cmd)
			if err != nil {
				return err
			}
			return c.talk(func(cl *client.Client) error {
				s, err := cl.Adopt(cmd.Context(), args[0], args[1], spec)
				if err != nil {
					return err
				}
				return c.definition(s, "added")
			})
		},
	}
	f.register(cmd, false)
	return cmd
}
