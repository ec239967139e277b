package check

import (
	"path/filepath"
	"strings"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/mcpconfig"
)

// conclude gives a result its words. It is the one place where a cause becomes a verdict and an advice.
func conclude(e *mcpconfig.Entry, r *Result) {
	say := func(verdict, advice string) { r.Verdict, r.Advice = verdict, advice }
	switch {
	case r.Outcome == Success:
		say("works", "")
		if r.Auth == statussync.AuthOK {
			r.Verdict = "works, with its login"
		}
	case r.Cause == CauseDisabled:
		say("is disabled", "enable it in "+e.Source)
	case r.Cause == CauseNeedsConfig:
		say("needs config: "+r.Detail, "set it before you start the check, or write its value into "+e.Source)
	case r.Cause == CauseLeftOut:
		say("not tried", "commands are left out by --no-stdio")
	case r.Cause == CauseCanceled:
		say("not tried", "the check was interrupted")
	case r.Auth == statussync.AuthRequired:
		say("wants a login", "log in with your MCP client, or give it a header such as Authorization")
	case r.Auth == statussync.AuthFailed:
		say("rejects your login", "the credential in its headers is not accepted: renew it")
	case r.Cause == "http_429" || r.Cause == "throttled":
		say("answers, but limits your requests", "wait a while; it is alive")
	case r.Cause == CauseCommandNotFound:
		say("command not found: "+clean(e, filepath.Base(e.Command)), missingCommand(e.Command))
	case r.Cause == CauseFlood:
		say("answers, but not MCP", "it writes something else than MCP to its standard output, without end; logs belong on standard error")
	case r.Cause == CauseNotMCP && e.Transport == statussync.TransportStdio:
		say("answers, but not MCP", "it writes something else than MCP to its standard output; is this the right command?")
	case r.Cause == CauseNotMCP:
		say("answers, but not MCP", "the address leads to something else: check its path, often /mcp or /sse")
	case strings.HasPrefix(r.Cause, CauseExit+"_"):
		say("ended at once with code "+strings.TrimPrefix(r.Cause, CauseExit+"_"), "run its command by hand to see why")
	case r.Cause == CauseTimeout && e.Transport == statussync.TransportStdio:
		say("started, but did not answer in time", "a first start may have to download it: try again, or give --timeout more")
	case r.Cause == CauseTimeout:
		say("does not answer in time", "is it overloaded or hanging? try --timeout with more")
	case r.Cause == "refused":
		say("is not running", "nobody listens at its address: start it, or correct the port")
	case r.Cause == "dns":
		say("its host has no address", "check the host name")
	case r.Cause == "tls":
		say("its certificate is not trusted", "check its certificate and the host name")
	case r.Cause == "http_404":
		say("nothing at this path", "check the path of its url, often /mcp or /sse")
	case r.Cause == CauseRPC:
		say("answers with an error", "it speaks MCP, but refuses the first question")
	case strings.HasPrefix(r.Cause, "http_5"):
		say("is broken: it answers "+strings.TrimPrefix(r.Cause, "http_"), "look at its logs")
	case r.Outcome == Alive:
		say("is alive, but does not serve you", "")
	default:
		say("does not work", "")
	}
}

// missingCommand says where the usual runners come from.
func missingCommand(command string) string {
	switch strings.TrimSuffix(filepath.Base(command), ".exe") {
	case "uvx", "uv":
		return "install uv (https://docs.astral.sh/uv)"
	case "npx", "node", "npm":
		return "install Node.js (https://nodejs.org)"
	case "docker":
		return "install Docker"
	case "python", "python3", "pipx":
		return "install Python"
	}
	return "install it, or write its full path"
}
