package main

import (
	"github.com/spf13/cobra"

	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

func (c *cli) connectionsCmd() *cobra.Command {
	var agent string
	cmd := &cobra.Command{
		Use:   "connections --agent ID",
		Short: "An agent's connections to MCP servers, with live status",
		Long: `Shows the connections of one of the platform's agents (agent_mcp_connections), each with the status of its server now:
connected, disconnected or error. Only where a registry is a platform's database.`,
		Example: `  statussync connections --agent 5b0c6f9e-1b7c-4a57-9a2f-0d3c1c1b6a51
  statussync connections --agent ID -o json | jq -r '.items[] | select(.status=="error") | .server_id'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if agent == "" {
				return usagef("--agent names the agent")
			}
			return c.talk(func(cl *client.Client) error {
				v, err := cl.Connections(cmd.Context(), agent)
				if err != nil {
					return err
				}
				return c.connections(v)
			})
		},
	}
	cmd.Flags().StringVar(&agent, "agent", "", "the agent's id in the platform's database")
	return cmd
}

func (c *cli) connections(v *wire.Connections) error {
	p := printer{c.stdout, c.colour()}
	if c.json() {
		return p.json(v)
	}
	if len(v.Items) == 0 {
		return p.line("This agent has no connections.")
	}
	styles := map[wire.ConnectionStatus]style{wire.ConnectionConnected: green, wire.ConnectionError: red, wire.ConnectionDisconnected: dim}
	rows := make([][]cell, 0, len(v.Items))
	for _, x := range v.Items {
		state, reason := "not known", ""
		if s := x.ServerStatus; s != nil {
			state, reason = string(s.State)+"/"+string(s.Health), string(s.Reason)
		}
		if !x.Active {
			reason = "switched off"
		}
		rows = append(rows, []cell{in(string(x.Status), styles[x.Status]), txt(clean(x.ServerName)), txt(clean(x.ServerID)), txt(state), txt(reason)})
	}
	return p.table([]string{"STATUS", "SERVER", "ID", "STATE", "REASON"}, rows)
}
