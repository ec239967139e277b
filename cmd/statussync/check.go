package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/check"
	"github.com/agentopia/statussync/mcpconfig"
	"github.com/agentopia/statussync/wire"
)

// guardArg is the hidden command with which this binary calls itself to guard a stdio server.
const guardArg = "stdio-guard"

func (c *cli) checkCmd() *cobra.Command {
	var (
		timeout duration
		noStdio bool
		failOn  = enum{value: "failure", allowed: []string{"failure", "alive", "any", "never"}}
	)
	cmd := &cobra.Command{
		Use:   "check [FILE|URL...]",
		Short: "Which of your MCP servers work? Needs no service",
		Long: `Tries every server of the given files (mcp.json and its cousins) or addresses once, side by side, and says in
words what came of it and what to do about it. Without arguments the files of Claude Desktop, Claude Code, Cursor,
VS Code, Windsurf, Gemini CLI, Copilot CLI and Cline are looked for, in this folder and in your home.

A server that runs as a command is started for the check, after the command is shown, and ended again with all its
children. --no-stdio leaves these out. Values of headers and variables, and secrets in arguments, are never shown.

The exit code is 1 where --fail-on says so: at a failure (the default), also where one is alive but does not serve
you ("alive": it wants a login, say), at anything but "works" ("any"), or never.`,
		Example: `  statussync check
  statussync check .mcp.json --timeout 10s
  statussync check https://mcp.example.com/mcp
  statussync check --no-stdio -o json | jq -r '.[] | select(.outcome != "success") | .name'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			limit := check.DefaultTimeout
			if timeout.text != "" {
				limit, _ = wire.ParseDuration(timeout.text) // the flag has checked it
			}
			entries, results, err := c.entries(args)
			if err != nil {
				return err
			}
			return c.check(cmd.Context(), entries, results, limit, noStdio, failOn.value)
		},
	}
	cmd.Flags().Var(&timeout, "timeout", "for each server (default 30s)")
	cmd.Flags().BoolVar(&noStdio, "no-stdio", false, "start no commands")
	cmd.Flags().Var(&failOn, "fail-on", "when the exit code is 1: "+joinWords(failOn.allowed))
	return cmd
}

// entries reads what the arguments name, or finds what is in the well-known places. What can't be understood becomes a
// result at once.
func (c *cli) entries(args []string) (entries []mcpconfig.Entry, faults []check.Result, err error) {
	home, _ := os.UserHomeDir() // "": nothing is found there
	cwd, _ := os.Getwd()
	o := mcpconfig.Options{Lookup: os.LookupEnv, Home: home, Project: cwd}
	take := func(f *mcpconfig.File) {
		entries = append(entries, f.Entries...)
		for _, e := range f.Errors {
			faults = append(faults, badEntry(e))
		}
	}
	for _, a := range args {
		if strings.HasPrefix(a, "http://") || strings.HasPrefix(a, "https://") {
			u, err := url.Parse(a)
			if err != nil || u.Hostname() == "" || u.User != nil {
				return nil, nil, usagef("%q is not an address such as https://host/mcp (credentials belong into a file's headers)", statussync.CleanText(redacted(a), 200))
			}
			transport := statussync.TransportStreamableHTTP
			if strings.HasSuffix(u.Path, "/sse") {
				transport = statussync.TransportSSE
			}
			entries = append(entries, mcpconfig.RemoteEntry(statussync.CleanText(u.Host+u.Path, statussync.MaxNameText), "command line", a, transport))
			continue
		}
		f, err := mcpconfig.ReadFile(a, o)
		if err != nil {
			return nil, nil, &usageError{err}
		}
		take(f)
	}
	if len(args) > 0 {
		if len(entries)+len(faults) == 0 {
			return nil, nil, usagef("no server is named there")
		}
		return entries, faults, nil
	}
	var looked, broken []string
	for _, p := range mcpconfig.Places(runtime.GOOS, home, cwd, c.getenv) {
		f, err := mcpconfig.ReadFile(p.Path, o)
		shown := tilde(p.Path, home)
		switch {
		case statussync.CodeOf(err) == statussync.CodeNotFound: // no file, or one without servers
			looked = append(looked, fmt.Sprintf("%s (%s)", shown, p.Client))
		case err != nil:
			broken = append(broken, fmt.Sprintf("%s: %v", p.Client, err))
		default:
			if n := len(f.Entries) + len(f.Errors); n > 0 {
				fmt.Fprintf(c.stderr, "%s: %s, %s\n", p.Client, shown, plural(n, "server", "servers"))
			}
			take(f)
		}
	}
	for _, b := range broken {
		fmt.Fprintln(c.stderr, "statussync: "+statussync.CleanText(b, maxErrorLine))
	}
	if len(entries)+len(faults) == 0 {
		return nil, nil, usagef("no MCP servers are configured in the places that are known; name a file or a URL.\nLooked at %s", strings.Join(looked, ", "))
	}
	return entries, faults, nil
}

// redacted is a URL without what may be secret in it.
func redacted(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "the argument"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

func tilde(path, home string) string {
	if rest, ok := strings.CutPrefix(path, home+string(filepath.Separator)); ok && home != "" {
		return "~" + string(filepath.Separator) + rest
	}
	return path
}

// badEntry is the result of a server that could not be understood; its error begins with its name in quotes.
func badEntry(e *statussync.Error) check.Result {
	name, detail := "?", e.Detail
	if q, err := strconv.QuotedPrefix(detail); err == nil {
		name, _ = strconv.Unquote(q)
		detail = strings.TrimPrefix(detail[len(q):], ": ")
	}
	return check.Result{
		Name: name, Source: e.Location, Verdict: "cannot be understood", Outcome: check.Failure, Cause: "bad_config",
		Detail: detail, Advice: "correct it at " + e.Location,
	}
}

func (c *cli) check(ctx context.Context, entries []mcpconfig.Entry, faults []check.Result, timeout time.Duration, noStdio bool, failOn string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	remote, end := check.NewRemote(c.version)
	o := check.Options{Timeout: timeout, NoStdio: noStdio, GuardCommand: []string{self, guardArg}, Environ: os.Environ(), Remote: remote}
	if !noStdio {
		for i := range entries {
			if e := &entries[i]; e.Transport == statussync.TransportStdio && e.Command != "" && !e.Disabled && e.NeedsConfig == "" {
				fmt.Fprintf(c.stderr, "starts %s: %s\n", clean(e.Name), commandLine(e))
			}
		}
	}
	progress := c.progress(entries)
	o.Started, o.Ended = progress.started, progress.ended
	results := check.Run(ctx, entries, o)
	progress.stop()
	end()
	results = append(results, faults...)
	if c.json() {
		err = printer{c.stdout, false}.json(results)
	} else {
		err = c.checked(results)
	}
	if err != nil {
		return err
	}
	bad := 0
	for i := range results {
		if fails(&results[i], failOn) {
			bad++
		}
	}
	switch {
	case ctx.Err() != nil:
		return &notHealthy{"the check was interrupted"}
	case bad == 1:
		return &notHealthy{fmt.Sprintf("1 of %s does not work", plural(len(results), "server", "servers"))}
	case bad > 1:
		return &notHealthy{fmt.Sprintf("%d of %d servers do not work", bad, len(results))}
	}
	return nil
}

func fails(r *check.Result, failOn string) bool {
	switch failOn {
	case "failure":
		return r.Outcome == check.Failure
	case "alive":
		return r.Outcome == check.Failure || r.Outcome == check.Alive
	case "any":
		return r.Outcome != check.Success
	}
	return false
}

// commandLine is a command as it is shown, without values that came from variables.
func commandLine(e *mcpconfig.Entry) string {
	parts := []string{e.Command}
	for _, a := range e.Args {
		if a == "" || strings.ContainsAny(a, " \t\"'$\\") {
			a = strconv.Quote(a)
		}
		parts = append(parts, a)
	}
	s := strings.Join(parts, " ")
	return e.Hide(s, 300)
}

// checked writes the table, and below it what to do.
func (c *cli) checked(results []check.Result) error {
	p := printer{c.stdout, c.colour()}
	count := func(n *int) cell {
		if n == nil {
			return num("-")
		}
		return num(strconv.Itoa(*n))
	}
	head := []string{"NAME", "TRANSPORT", "PROTOCOL", "AUTH", "TOOLS", "RESOURCES", "PROMPTS", "LATENCY", "VERDICT"}
	var rows [][]cell
	for i := range results {
		r := &results[i]
		ms := num("-")
		if r.LatencyMS != nil {
			ms = num(wholeMS(*r.LatencyMS))
		}
		st := red
		switch r.Outcome {
		case check.Success:
			st = green
		case check.Alive:
			st = yellow
		case check.Skipped:
			st = grey
		}
		rows = append(rows, []cell{txt(clean(r.Name)), txt(clean(string(r.Transport))), txt(clean(r.ProtocolVersion)), txt(clean(string(r.Auth))),
			count(r.Tools), count(r.Resources), count(r.Prompts), ms, in(clean(r.Verdict), st)})
	}
	head, rows = fit(head, rows, c.columns, "RESOURCES", "PROMPTS", "AUTH", "LATENCY", "PROTOCOL", "TRANSPORT", "TOOLS")
	if err := p.table(head, rows); err != nil {
		return err
	}
	first := true
	for i := range results {
		r := &results[i]
		if r.Outcome == check.Success || (r.Advice == "" && r.Detail == "") {
			continue
		}
		if first {
			if err := p.line(); err != nil {
				return err
			}
			first = false
		}
		why := text(r.Detail)
		if r.Cause == check.CauseNeedsConfig { // the verdict says it
			why = ""
		}
		if err := p.line(p.paint(clean(r.Name)+":", bold), " ", text(r.Verdict)); err != nil {
			return err
		}
		for _, f := range [][2]string{{"why ", why}, {"do  ", text(r.Advice)}, {"from", text(r.Source)}} {
			for i, l := range wrap(f[1], c.columns-8) {
				label := p.paint(f[0], dim)
				if i > 0 {
					label = "    "
				}
				if err := p.line("  ", label, "  ", l); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// wholeMS is a latency of which no more is known than its milliseconds.
func wholeMS(n int64) string {
	switch {
	case n < 1:
		return "<1ms"
	case n < 1000:
		return strconv.FormatInt(n, 10) + "ms"
	}
	return latency(float64(n))
}

// fit leaves out columns, in the order given, until a table is no wider than columns; 0 is as wide as it likes. The rest
// of a verdict that is long by itself may wrap.
func fit(head []string, rows [][]cell, columns int, order ...string) ([]string, [][]cell) {
	const most = 40 // of one cell that counts
	for _, out := range order {
		total := 0
		for i, h := range head {
			w := width(h)
			for _, r := range rows {
				w = max(w, min(width(r[i].text), most))
			}
			total += w + 2
		}
		if columns <= 0 || total-2 <= columns {
			break
		}
		i := slices.Index(head, out)
		head = slices.Delete(head, i, i+1)
		for j := range rows {
			rows[j] = slices.Delete(rows[j], i, i+1)
		}
	}
	return head, rows
}

// wrap breaks text between words into lines of at most limit columns, where a word is not longer itself; a limit below
// 20 breaks nothing. Of an empty text there is no line.
func wrap(s string, limit int) (lines []string) {
	if s == "" {
		return nil
	}
	line := ""
	for _, word := range strings.Fields(s) {
		switch {
		case line == "":
			line = word
		case limit >= 20 && width(line)+1+width(word) > limit:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

// progressLine shows what is going on, on a terminal.
type progressLine struct {
	w     io.Writer
	names []string
	quit  chan struct{}
	done  chan struct{}

	mu      sync.Mutex
	waiting []int
	ready   int
}

func (c *cli) progress(entries []mcpconfig.Entry) *progressLine {
	l := &progressLine{w: c.stderr, quit: make(chan struct{}), done: make(chan struct{})}
	for i := range entries {
		l.names = append(l.names, clean(entries[i].Name))
	}
	if !c.live {
		close(l.done)
		return l
	}
	go func() {
		defer close(l.done)
		t := time.NewTicker(100 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-l.quit:
				fmt.Fprint(l.w, "\r\x1b[K")
				return
			case <-t.C:
				fmt.Fprint(l.w, "\r\x1b[K"+l.text())
			}
		}
	}()
	return l
}

func (l *progressLine) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := fmt.Sprintf("%d of %d done", l.ready, len(l.names))
	for n, i := range l.waiting {
		sep := ", "
		if n == 0 {
			sep = "; waiting for "
		}
		if width(s+sep+l.names[i]) > 76 {
			return s + " …"
		}
		s += sep + l.names[i]
	}
	return s
}

func (l *progressLine) started(i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, i)
}

func (l *progressLine) ended(i int, _ *check.Result) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ready++
	l.waiting = slices.DeleteFunc(l.waiting, func(j int) bool { return j == i })
}

func (l *progressLine) stop() {
	close(l.quit)
	<-l.done
}
