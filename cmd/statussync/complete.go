package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync/client"
)

// completeWithin bounds how long a shell waits for the ids that a running service knows. A service that does not answer
// in that time completes nothing.
const completeWithin = time.Second

// completions names what an argument is, for each command that takes some; what stands last goes for all further ones
// where more is set. Commands that are not listed complete nothing.
var completions = map[string]struct {
	args []completer
	more bool
}{
	"status":                   {args: []completer{servers}},
	"watch":                    {args: []completer{servers}, more: true},
	"history":                  {args: []completer{servers}},
	"tools":                    {args: []completer{servers}},
	"probe":                    {args: []completer{servers}},
	"timeline":                 {args: []completer{servers}},
	"resources":                {args: []completer{environments}},
	"override set":             {args: []completer{servers}},
	"override clear":           {args: []completer{servers}},
	"server set":               {args: []completer{servers}},
	"server show":              {args: []completer{servers}},
	"server remove":            {args: []completer{servers}},
	"environment set":          {args: []completer{environments}},
	"environment show":         {args: []completer{environments}},
	"environment remove":       {args: []completer{environments}},
	"environment rotate-token": {args: []completer{environments}},
	"environment tokens":       {args: []completer{environments}},
	"environment drop-token":   {args: []completer{environments}},
	"adopt":                    {args: []completer{environments, containers}},
	"check":                    {args: []completer{mcpFiles}, more: true},
	"config check":             {args: []completer{configurations}},
	"man":                      {args: []completer{folders}},
}

// completer returns the words that can stand for an argument, given those before it.
type completer func(ctx context.Context, cl *client.Client, before []string) ([]cobra.Completion, cobra.ShellCompDirective)

func configurations(context.Context, *client.Client, []string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return []cobra.Completion{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
}

func mcpFiles(context.Context, *client.Client, []string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return []cobra.Completion{"json"}, cobra.ShellCompDirectiveFilterFileExt
}

func folders(context.Context, *client.Client, []string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

func servers(ctx context.Context, cl *client.Client, _ []string) (out []cobra.Completion, d cobra.ShellCompDirective) {
	for s, err := range cl.AllServers(ctx, client.ServerQuery{Limit: pageSize}) {
		if err != nil {
			break // what was read is better than nothing
		}
		out = append(out, cobra.CompletionWithDesc(clean(s.ID), clean(string(s.Status.State)+" "+string(s.Status.Health))))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func environments(ctx context.Context, cl *client.Client, _ []string) (out []cobra.Completion, d cobra.ShellCompDirective) {
	for e, err := range cl.AllEnvironments(ctx) {
		if err != nil {
			break
		}
		out = append(out, cobra.CompletionWithDesc(clean(e.ID), clean("agent "+string(e.Agent))))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func containers(ctx context.Context, cl *client.Client, before []string) (out []cobra.Completion, d cobra.ShellCompDirective) {
	for cursor := ""; ; {
		p, err := cl.Discovered(ctx, pageSize, cursor)
		if err != nil {
			break
		}
		for _, c := range p.Items {
			if c.EnvironmentID == before[0] {
				out = append(out, cobra.CompletionWithDesc(clean(c.Container), clean(c.Image)))
			}
		}
		if p.NextCursor == "" || p.NextCursor == cursor {
			break
		}
		cursor = p.NextCursor
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeArgs makes the shell complete the arguments and flags of all commands below root whose values a running service
// knows. Nothing else is completed with the names of files, which would only mislead.
func (c *cli) completeArgs(root *cobra.Command) {
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		path := strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), root.Name()), " ")
		if x, ok := completions[path]; ok && cmd.ValidArgsFunction == nil {
			cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
				n := len(args)
				if x.more {
					n = min(n, len(x.args)-1)
				}
				if n >= len(x.args) {
					return nil, cobra.ShellCompDirectiveNoFileComp
				}
				return c.complete(cmd, x.args[n], args, word)
			}
		}
		if f := cmd.LocalFlags().Lookup("environment"); f != nil {
			// The only error is a flag that has a completion already.
			_ = cmd.RegisterFlagCompletionFunc("environment", func(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
				return c.complete(cmd, environments, nil, word)
			})
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// complete asks the service, and leaves out what does not begin with word or stands there already.
func (c *cli) complete(cmd *cobra.Command, by completer, before []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	c.credentials()
	cl, err := c.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer cl.CloseIdle()
	ctx := cmd.Context()
	if ctx == nil { // cobra completes without the context of the execution in some versions
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeWithin)
	defer cancel()
	all, directive := by(ctx, cl, before)
	if directive != cobra.ShellCompDirectiveNoFileComp {
		return all, directive
	}
	var out []cobra.Completion
	for _, x := range all {
		id, _, _ := strings.Cut(string(x), "\t")
		if !strings.HasPrefix(id, word) || slices.Contains(before, id) {
			continue
		}
		out = append(out, x)
	}
	return out, directive
}
