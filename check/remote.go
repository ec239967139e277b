package check

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/guard"
	"github.com/agentopia/statussync/mcpconfig"
	"github.com/agentopia/statussync/probe/mcpprobe"
)

// endTime is for ending the sessions that are left.
const endTime = 2 * time.Second

// NewRemote returns an Options.Remote that asks servers over HTTP, and what ends the sessions that are left when it is no
// longer used; that blocks for some seconds at most. Addresses may be private: the configuration is the user's own.
func NewRemote(version string) (remote func(ctx context.Context, e *mcpconfig.Entry, timeout time.Duration) Result, end func()) {
	p := mcpprobe.New(mcpprobe.Options{Guard: guard.New(guard.Options{}), UserAgent: "statussync/" + version, Version: version})
	remote = func(ctx context.Context, e *mcpconfig.Entry, timeout time.Duration) Result {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		plan := &statussync.ProbePlan{
			// Two entries may have one name; where each stands is its own.
			ServerID: e.Source + "\x00" + e.Name + "\x00" + e.URL, Kind: statussync.ProbeMCP, URL: e.URL, Transport: e.Transport,
			Timeout: timeout, Trusted: true, Headers: e.Headers,
		}
		// Being known to the prober, the server is asked everything in one session.
		p.Do([]statussync.Request{{Plan: plan}})
		defer p.Forget(plan.ServerID)
		res := p.Probe(ctx, plan)
		return remoteResult(ctx, p, plan, &res)
	}
	return remote, func() {
		ctx, cancel := context.WithTimeout(context.Background(), endTime)
		defer cancel()
		p.Close(ctx)
	}
}

func remoteResult(ctx context.Context, p *mcpprobe.Prober, plan *statussync.ProbePlan, res *statussync.ProbeResult) Result {
	r := Result{Outcome: Outcome(res.Outcome), Cause: res.Cause, Detail: res.Detail, Auth: res.Auth, ProtocolVersion: res.Protocol}
	if res.NotMCP {
		r.Cause = CauseNotMCP
		r.Detail = strings.TrimPrefix(r.Detail, "answers, but not MCP: ") // the verdict says it
	}
	if res.Cause == CauseTimeout && !res.ByConnect {
		r.Detail = "connected, but no answer within " + plan.Timeout.String() // of all questions, not of the last
	}
	if res.Latency > 0 && r.Cause != CauseTimeout {
		ms := res.Latency.Milliseconds()
		r.LatencyMS = &ms
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return Result{Outcome: Skipped, Cause: CauseCanceled}
	}
	if res.Outcome != statussync.OutcomeSuccess {
		return r
	}
	inv, err := p.Inventory(ctx, plan)
	if inv.Name != "" {
		r.Server = &Server{Name: inv.Name, Version: inv.Version}
	}
	if inv.Protocol != "" {
		r.ProtocolVersion = inv.Protocol
	}
	if err != nil {
		return unlisted(ctx, r, plan, err)
	}
	tools := len(inv.Tools)
	r.Tools = &tools
	if inv.Resources >= 0 {
		r.Resources = &inv.Resources
	}
	if inv.Prompts >= 0 {
		r.Prompts = &inv.Prompts
	}
	return r
}

// unlisted is the result of a server that greets and then does not say what it offers: that is not working.
func unlisted(ctx context.Context, r Result, plan *statussync.ProbePlan, err error) Result {
	detail := err.Error()
	var se *statussync.Error
	if errors.As(err, &se) {
		detail = se.Detail
		if se.Location != "" {
			detail = se.Location + ": " + detail
		}
	}
	r.Outcome, r.Cause, r.Detail = Alive, CauseRPC, "it greets, but does not list what it offers: "+detail
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return Result{Outcome: Skipped, Cause: CauseCanceled}
	case ctx.Err() != nil:
		r.Outcome, r.Cause, r.Detail = Failure, CauseTimeout, "it greets, but did not list what it offers within "+plan.Timeout.String()
	case statussync.CodeOf(err) == statussync.CodeTooLarge:
		r.Cause = causeTooLarge
	case statussync.CodeOf(err) == statussync.CodeUnauthorized:
		r.Cause = "http_401"
		if r.Auth = statussync.AuthRequired; len(plan.Headers) > 0 {
			r.Auth = statussync.AuthFailed
		}
	}
	return r
}
