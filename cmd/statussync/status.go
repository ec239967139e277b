package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/client"
	"github.com/agentopia/statussync/wire"
)

func (c *cli) statusCmd() *cobra.Command {
	var (
		filter  filterFlags
		query   string
		failOn  = enum{allowed: []string{"unhealthy", "degraded"}}
		explain bool
	)
	cmd := &cobra.Command{
		Use:   "status [ID]",
		Short: "Status of all servers, or of one",
		Long: `Without an ID: a table of the servers that the flags select, and how many there are of each kind.
With an ID: that server in words; --explain shows every piece of evidence with its age, the rule that
decided, and what the other rules said.

A flag may hold several words (--state error,stopped) or be repeated; several flags must all match.
With --fail-on the exit code is 1 where a server shown is that bad or worse.`,
		Example: `  statussync status
  statussync status --health unhealthy --environment box-7
  statussync status --label team=core --fail-on degraded
  statussync status weather --explain
  statussync status -o json | jq '.items[] | select(.status.reason == "probe_failing") | .id'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.talk(func(cl *client.Client) error {
				if len(args) == 1 {
					for _, name := range []string{"state", "health", "availability", "environment", "label", "query"} {
						if cmd.Flags().Changed(name) {
							return usagef("--%s selects servers; with the ID of one it has no meaning", name)
						}
					}
					return c.statusOne(cmd.Context(), cl, args[0], explain, failOn.value)
				}
				if explain {
					return usagef("--explain wants the ID of a server")
				}
				return c.statusAll(cmd.Context(), cl, client.ServerQuery{
					States:         typed[statussync.State](filter.states.values),
					Healths:        typed[statussync.Health](filter.healths.values),
					Availabilities: typed[statussync.Availability](filter.availability.values),
					EnvironmentIDs: filter.environments.values,
					Labels:         filter.labels.values,
					Text:           query,
					Limit:          pageSize,
				}, failOn.value)
			})
		},
	}
	filter.register(cmd)
	cmd.Flags().StringVarP(&query, "query", "q", "", "only servers with this text in id, name, endpoint or container")
	cmd.Flags().Var(&failOn, "fail-on", "exit with 1 where a server shown is unhealthy; with degraded also where one is degraded")
	cmd.Flags().BoolVar(&explain, "explain", false, "with ID: show how the status came about")
	return cmd
}

// failing reports whether a status is as bad as --fail-on says; degraded takes in what is worse.
func failing(s *wire.Status, failOn string) bool {
	bad := s.Availability == statussync.Unavailable
	switch failOn {
	case "unhealthy":
		return bad
	case "degraded":
		return bad || s.Health == statussync.HealthDegraded
	}
	return false
}

// pageSize is the largest page that the service gives: the fewest requests.
const pageSize = 1000

func (c *cli) statusAll(ctx context.Context, cl *client.Client, q client.ServerQuery, failOn string) error {
	// The pages are shown as one list, whose cursor is the first's: a subscription from there misses nothing.
	all := wire.Page[wire.Server]{Items: []wire.Server{}}
	for first := true; ; first = false {
		p, err := cl.Servers(ctx, q)
		if err != nil {
			return err
		}
		if first {
			all.Cursor = p.Cursor
		}
		all.Items = append(all.Items, p.Items...)
		if p.NextCursor == "" || p.NextCursor == q.Cursor {
			break
		}
		q.Cursor = p.NextCursor
	}
	p := printer{c.stdout, c.colour()}
	var err error
	if c.json() {
		err = p.json(all)
	} else {
		if err = c.statusTable(p, all.Items); err == nil {
			err = c.noteProbing(ctx, cl, p)
		}
	}
	if err != nil {
		return err
	}
	bad := 0
	for i := range all.Items {
		if failing(&all.Items[i].Status, failOn) {
			bad++
		}
	}
	if bad > 0 {
		word := "unhealthy"
		if failOn == "degraded" {
			word = "degraded or unhealthy"
		}
		return &notHealthy{fmt.Sprintf("%d of %s %s", bad, plural(len(all.Items), "server is", "servers are"), word)}
	}
	return nil
}

func (c *cli) statusTable(p printer, items []wire.Server) error {
	now := c.now()
	rows := make([][]cell, 0, len(items))
	count := make(map[statussync.Availability]int)
	for i := range items {
		s := &items[i]
		st := &s.Status
		count[st.Availability]++
		col := availabilityStyle(st.Availability)
		reason := string(st.Reason)
		if st.Cause != "" && st.Cause != reason {
			reason += " (" + st.Cause + ")"
		}
		rows = append(rows, []cell{
			txt(clean(s.ID)), txt(clean(s.EnvironmentID)), in(clean(string(st.State)), col), in(clean(string(st.Health)), col),
			txt(clean(reason)), txt(marks(st.Marks)), num(since(st.Since.Time, now)), num(latency(st.LatencyMS)),
		})
	}
	if len(rows) > 0 {
		if err := p.table([]string{"ID", "ENVIRONMENT", "STATE", "HEALTH", "REASON", "MARKS", "SINCE", "LATENCY"}, rows); err != nil {
			return err
		}
		if err := p.line(); err != nil {
			return err
		}
	}
	return p.line(summary(p, len(items), count))
}

// summary is "24 servers: 18 available, 3 unavailable, …" in the colours of the words.
func summary(p printer, n int, count map[statussync.Availability]int) string {
	var parts []string
	for _, a := range availabilities() {
		if count[a] > 0 {
			parts = append(parts, p.paint(fmt.Sprintf("%d %s", count[a], a), availabilityStyle(a)))
		}
		delete(count, a)
	}
	for a, k := range count { // a word of a newer service
		parts = append(parts, fmt.Sprintf("%d %s", k, clean(string(a))))
	}
	s := plural(n, "server", "servers")
	if len(parts) > 0 {
		s += ": " + strings.Join(parts, ", ")
	}
	return s
}

func marks(list []string) string { return clean(strings.Join(list, ",")) }

func (c *cli) statusOne(ctx context.Context, cl *client.Client, id string, explain bool, failOn string) error {
	p := printer{c.stdout, c.colour()}
	var (
		st  wire.Status
		err error
	)
	switch {
	case explain:
		var x *wire.Explain
		if x, err = cl.Explain(ctx, id); err != nil {
			return err
		}
		st = x.Status
		if c.json() {
			err = p.json(x)
		} else {
			err = c.explanation(p, id, x)
		}
	default:
		var s *wire.Server
		if s, err = cl.Server(ctx, id); err != nil {
			return err
		}
		st = s.Status
		if c.json() {
			err = p.json(s)
		} else {
			if err = c.oneServer(p, s); err == nil {
				err = c.noteProbing(ctx, cl, p)
			}
		}
	}
	if err != nil {
		return err
	}
	if failing(&st, failOn) {
		return &notHealthy{fmt.Sprintf("%s is %s", clean(id), clean(string(st.Health)))}
	}
	return nil
}

// sentence says a status in words: "weather is running but unhealthy: its probe fails (http_503). For 3m12s."
func sentence(p printer, name string, st *wire.Status) string {
	join := " and "
	switch {
	case st.State == statussync.StateRunning && st.Health != statussync.HealthHealthy,
		st.State != statussync.StateRunning && st.Health == statussync.HealthHealthy:
		join = " but "
	}
	s := p.paint(name, bold) + " is "
	what := clean(string(st.State))
	if st.State == statussync.StateError {
		what = "in error"
	}
	if st.State == statussync.StateUnknown {
		what = "in an unknown state"
	}
	health := join + clean(string(st.Health))
	if st.Health == statussync.HealthUnknown {
		health = ", health unknown"
		if st.Reason == statussync.ReasonOK {
			health = "" // stopped, starting, stopping as they should be: nothing to know
		}
	}
	s += p.paint(what+health, availabilityStyle(st.Availability))
	if why := reasonText(st.Reason); why != "" {
		s += ": " + why
	}
	if st.Cause != "" {
		s += " (" + clean(st.Cause) + ")"
	}
	return s + "."
}

// reasonText says a reason in words.
func reasonText(r statussync.Reason) string {
	switch r {
	case statussync.ReasonOK:
		return ""
	case statussync.ReasonNeverSeen:
		return "nothing has been seen of it yet"
	case statussync.ReasonStale:
		return "what was known of it is too old"
	case statussync.ReasonNeedsAgent:
		return "it can only be seen through an agent, and none reports it"
	case statussync.ReasonNeedsConfig:
		return "its configuration is not complete"
	case statussync.ReasonHeartbeatLate:
		return "the heartbeat of its environment is late"
	case statussync.ReasonHeartbeatLost:
		return "the heartbeat of its environment is lost"
	case statussync.ReasonAgentSilent:
		return "it answers, but the agent of its environment is silent"
	case statussync.ReasonProbeFailing:
		return "its probe fails"
	case statussync.ReasonProbeSlow:
		return "it answers slowly"
	case statussync.ReasonNotMCP:
		return "it answers, but not as an MCP server does"
	case statussync.ReasonAuthFailed:
		return "it rejects the configured credential"
	case statussync.ReasonThrottled:
		return "it refuses probes as too many"
	case statussync.ReasonCrashed:
		return "it crashed"
	case statussync.ReasonCrashLoop:
		return "it keeps crashing"
	case statussync.ReasonStoppedUnexpectedly:
		return "it stopped, and nobody wanted that"
	case statussync.ReasonContainerUnhealthy:
		return "its container's own check fails"
	case statussync.ReasonContainerError:
		return "its container is in error"
	case statussync.ReasonStuckStarting:
		return "it has been starting for too long"
	case statussync.ReasonStuckStopping:
		return "it has been stopping for too long"
	case statussync.ReasonToolsChanged:
		return "its tools are not the pinned ones"
	case statussync.ReasonOverride:
		return "a person said so"
	}
	return clean(string(r))
}

func (c *cli) oneServer(p printer, s *wire.Server) error {
	st := &s.Status
	name := clean(s.ID)
	if s.Name != "" && s.Name != s.ID {
		name += " (" + clean(s.Name) + ")"
	}
	if err := p.line(sentence(p, name, st)); err != nil {
		return err
	}
	pairs := []string{"environment", orEmpty(s.EnvironmentID), "endpoint", orEmpty(s.Endpoint)}
	pairs = append(pairs, c.statusFacts(st)...)
	if len(s.Labels) > 0 {
		pairs = append(pairs, "labels", clean((&labels{s.Labels}).String()))
	}
	pairs = append(pairs, "desired", orEmpty(string(s.Desired)), "needs config", text(s.NeedsConfig))
	return p.facts(pairs...)
}

// orEmpty is clean, except that nothing stays nothing.
func orEmpty(s string) string {
	if s == "" {
		return ""
	}
	return clean(s)
}

// statusFacts are the facts beside a status, for printer.facts.
func (c *cli) statusFacts(st *wire.Status) []string {
	now := c.now()
	f := []string{"reason", clean(string(st.Reason)), "marks", strings.Join(st.Marks, ", ")}
	add := func(name, value string) { f = append(f, name, value) }
	if !st.Since.IsZero() {
		add("since", ago(now.Sub(st.Since.Time))+" ("+stamp(st.Since)+")")
	}
	add("last error", text(st.LastError))
	if o := st.Override; o != nil {
		s := fmt.Sprintf("%s/%s by %s", clean(string(o.State)), clean(string(o.Health)), clean(o.Actor))
		if !o.ExpiresAt.IsZero() {
			s += ", for another " + ago(o.ExpiresAt.Sub(now))
		}
		if o.Note != "" {
			s += ": " + text(o.Note)
		}
		add("override", s)
	}
	if !st.LastChecked.IsZero() {
		add("last checked", ago(now.Sub(st.LastChecked.Time))+" ago")
	}
	if st.LatencyMS > 0 {
		add("latency", latency(st.LatencyMS))
	}
	if st.HeartbeatAgeSeconds != nil {
		add("heartbeat", seconds(*st.HeartbeatAgeSeconds)+" ago")
	}
	if st.UptimeSeconds != nil {
		add("uptime", seconds(float64(*st.UptimeSeconds)))
	}
	add("login", orEmpty(string(st.Auth)))
	if st.ProtocolVersion != "" {
		add("protocol", "MCP "+clean(st.ProtocolVersion))
	}
	if st.Server != nil {
		add("calls itself", text(strings.TrimSpace(st.Server.Name+" "+st.Server.Version)))
	}
	if st.CheckCount > 0 {
		add("checks", fmt.Sprintf("%d, of which %d failed", st.CheckCount, st.ErrorCount))
	}
	add("version", fmt.Sprint(st.Version))
	return f
}

func stamp(t wire.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// explanation shows how a status came about: the rules that decided, the evidence, and what the other rules said.
func (c *cli) explanation(p printer, id string, x *wire.Explain) error {
	if err := p.line(sentence(p, clean(id), &x.Status)); err != nil {
		return err
	}
	if err := p.facts(c.statusFacts(&x.Status)...); err != nil {
		return err
	}
	if x.Explain == nil {
		return nil
	}
	var evidence, won, lost [][]cell
	for _, e := range x.Explain.Evidence {
		age, fresh := "-", in("stale", dim)
		if e.AgeSeconds != nil {
			age = seconds(*e.AgeSeconds)
		}
		if e.Fresh {
			fresh = in("fresh", green)
		}
		evidence = append(evidence, []cell{txt(clean(e.Kind)), num(age), fresh, txt(text(e.Value))})
	}
	for _, r := range x.Explain.Rules {
		row := []cell{txt(clean(r.Rule)), txt(gave(&r)), txt(clean(string(r.Reason))), txt(text(r.Why))}
		if r.Won {
			row[1].style = availabilityStyle(x.Status.Availability)
			won = append(won, row)
		} else {
			for i := range row {
				row[i].style = dim
			}
			lost = append(lost, row)
		}
	}
	for _, t := range []struct {
		title string
		head  []string
		rows  [][]cell
	}{
		{"Evidence", []string{"KIND", "AGE", "COUNTS", "VALUE"}, evidence},
		{"Decided by", []string{"RULE", "GAVE", "REASON", "WHY"}, won},
		{"Considered", []string{"RULE", "GAVE", "REASON", "WHY"}, lost},
	} {
		if len(t.rows) == 0 {
			continue
		}
		if err := p.line("\n", p.paint(t.title, bold)); err != nil {
			return err
		}
		if err := p.table(t.head, t.rows); err != nil {
			return err
		}
	}
	return nil
}

// gave is what a rule gave: state, health, both or nothing.
func gave(r *wire.Rule) string {
	switch {
	case r.State != "" && r.Health != "":
		return clean(string(r.State) + "/" + string(r.Health))
	case r.State != "":
		return clean(string(r.State))
	}
	return clean(string(r.Health))
}
