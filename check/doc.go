// Package check tries MCP servers once each and says which of them work: what `statussync check` does, needing no service.
//
// Guarantees:
//
//   - Bounds. Servers are tried side by side, MaxParallel at a time, each within Options.Timeout and a second in which it is
//     stopped. What a server writes is read to a limit; one that floods is told so and stopped.
//   - Nothing is left behind. A stdio server is started by a guard process of our own (Guard), which ends the server and
//     everything that it started when the check is done, is interrupted, or dies, be it by SIGKILL. On Linux that includes
//     processes which left their process group; elsewhere it is the process group, on Windows the job.
//   - Secrets. Values of headers, environment variables and expanded variables stand in no result: where a server repeats
//     one in what it says, it is replaced by "***".
package check

import (
	"context"
	"strconv"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/mcpconfig"
)

// MaxParallel is how many servers are tried at a time.
const MaxParallel = 64

// DefaultTimeout is what one server gets. A package that npx or uvx fetches first needs seconds of it.
const DefaultTimeout = 30 * time.Second

// Outcome is how the check of one server ended.
type Outcome string

// The outcomes. The first three are a probe's.
const (
	Success Outcome = Outcome(statussync.OutcomeSuccess) // it would serve you
	Alive   Outcome = Outcome(statussync.OutcomeAlive)   // it answers, but not you, or not now: a login, a rate limit
	Failure Outcome = Outcome(statussync.OutcomeFailure)
	Skipped Outcome = "skipped" // it was not tried: disabled, needs configuration, or left out
)

// Server is what a server said of itself.
type Server struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
}

// Result is what the check of one server gave. All text is cleaned for a terminal, and without secrets.
type Result struct {
	Name            string               `json:"name"`
	Source          string               `json:"source"` // the file, with the line where one is known
	Transport       statussync.Transport `json:"transport"`
	Verdict         string               `json:"verdict"` // in words: "works", "wants a login"
	Outcome         Outcome              `json:"outcome"`
	Cause           string               `json:"cause,omitempty"` // one stable word where it is no success
	Auth            statussync.Auth      `json:"auth,omitempty"`
	ProtocolVersion string               `json:"protocol_version,omitempty"`
	Server          *Server              `json:"server,omitempty"`
	// Counts are absent where the server does not offer them or was not asked.
	Tools     *int   `json:"tools,omitempty"`
	Resources *int   `json:"resources,omitempty"`
	Prompts   *int   `json:"prompts,omitempty"`
	LatencyMS *int64 `json:"latency_ms,omitempty"` // to the first answer
	Detail    string `json:"detail,omitempty"`     // what went wrong, as far as is known
	Advice    string `json:"advice,omitempty"`     // what to do about it
}

// The causes that a check has beside a probe's.
const (
	CauseNeedsConfig     = "needs_config"
	CauseDisabled        = "disabled"
	CauseLeftOut         = "left_out"          // stdio servers are not to be started
	CauseCommandNotFound = "command_not_found" // or may not be executed
	CauseExit            = "exit"              // followed by _ and its code: it ended before it answered
	CauseFlood           = "flood"             // it writes without end and not MCP
	CauseNotMCP          = "not_mcp"
	CauseTimeout         = "timeout"
	CauseCanceled        = "canceled"
	CauseRPC             = "mcp_error" // it answered the first question with an error
)

// Options say how servers are tried.
type Options struct {
	Timeout time.Duration // of one server; DefaultTimeout where zero
	NoStdio bool          // commands are not started
	// GuardCommand starts the guard: our own binary and the arguments after which Guard is called with the rest.
	GuardCommand []string
	// Environ is what a command's environment starts from, like os.Environ().
	Environ []string
	// Remote tries one remote server. It blocks for the timeout at most.
	Remote func(ctx context.Context, e *mcpconfig.Entry, timeout time.Duration) Result
	// Started and Ended, where set, are told of each server as it is begun and done, by its index. They are called by
	// several goroutines at once.
	Started func(i int)
	Ended   func(i int, r *Result)
}

// Run tries all entries and returns their results in the same order. It blocks until every server has a result and
// everything that was started is gone; where ctx ends first, the rest is told as canceled.
func Run(ctx context.Context, entries []mcpconfig.Entry, o Options) []Result {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	results := make([]Result, len(entries))
	jobs := make(chan int)
	done := make(chan struct{})
	workers := min(MaxParallel, len(entries))
	for range workers {
		go func() {
			for i := range jobs {
				if o.Started != nil {
					o.Started(i)
				}
				results[i] = one(ctx, &entries[i], &o)
				if o.Ended != nil {
					o.Ended(i, &results[i])
				}
			}
			done <- struct{}{}
		}()
	}
	for i := range entries {
		jobs <- i
	}
	close(jobs)
	for range workers {
		<-done
	}
	return results
}

func one(ctx context.Context, e *mcpconfig.Entry, o *Options) Result {
	var r Result
	switch {
	case e.Disabled:
		r = Result{Outcome: Skipped, Cause: CauseDisabled}
	case e.NeedsConfig != "":
		r = Result{Outcome: Skipped, Cause: CauseNeedsConfig, Detail: e.NeedsConfig}
	case ctx.Err() != nil:
		r = Result{Outcome: Skipped, Cause: CauseCanceled}
	case e.Transport != statussync.TransportStdio:
		r = o.Remote(ctx, e, o.Timeout)
	case o.NoStdio:
		r = Result{Outcome: Skipped, Cause: CauseLeftOut}
	case e.Command == "":
		r = Result{Outcome: Skipped, Cause: CauseNeedsConfig, Detail: "it is known by its container alone: its command is not"}
	default:
		r = stdio(ctx, e, o)
	}
	r.Name, r.Source, r.Transport = e.Name, e.Source, e.Transport
	if e.Line > 0 {
		r.Source += ":" + strconv.Itoa(e.Line)
	}
	r.Detail = clean(e, r.Detail)
	if r.Server != nil {
		r.Server.Name, r.Server.Version = clean(e, r.Server.Name), clean(e, r.Server.Version)
	}
	r.ProtocolVersion = clean(e, r.ProtocolVersion)
	conclude(e, &r)
	return r
}

// clean makes what a server said fit to be shown.
func clean(e *mcpconfig.Entry, s string) string { return e.Hide(s, statussync.MaxErrorText) }
