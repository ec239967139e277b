package check

import (
	"path/filepath"
	"strings"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/guard"
	"github.com/agentopia/statussync/mcpconfig"
)

// Causes of mcpprobe's.
const (
	causeBadConfig   = "bad_config"
	causeSessionLost = "session_lost"
	causeNoVersion   = "unsupported_version"
	causeNoMethod    = "method_not_found"
	causeTooLarge    = "too_large"
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
	case r.Cause == "http_404" && e.Transport == statussync.TransportSSE:
		say("nothing at this path", "check the path of its url, often /sse; a server of streamable HTTP has the type http")
	case r.Cause == "http_404":
		say("nothing at this path", "check the path of its url, often /mcp or /sse")
	case r.Cause == CauseRPC:
		say("answers with an error", "it speaks MCP and refuses what it was asked; its message or its logs say why")
	case strings.HasPrefix(r.Cause, "http_5"):
		say("is broken: it answers "+strings.TrimPrefix(r.Cause, "http_"), "look at its logs")
	case r.Cause == causeBadConfig && e.Transport == statussync.TransportStdio:
		say("cannot be started as configured", "correct it in "+e.Source)
	case r.Cause == causeBadConfig:
		say("cannot be asked as configured", "correct its url or headers in "+e.Source)
	case r.Cause == causeSessionLost:
		say("loses its sessions", "several instances behind one address need sticky sessions, or a server without sessions")
	case r.Cause == causeNoVersion:
		say("speaks another version of MCP", "update the server, or statussync: "+protocolVersion+" and "+modernVersion+" are the newest that are known here")
	case r.Cause == causeNoMethod:
		say("answers, but lacks basic methods", "it knows neither ping nor tools/list: clients will find nothing in it")
	case r.Cause == causeTooLarge:
		say("offers more than can be read", "its list is longer than clients can use: offer fewer tools")
	case r.Cause == guard.CauseUnreachable:
		say("its host cannot be reached", "is it up, and are you in its network (VPN)?")
	case r.Cause == guard.CauseReset:
		say("cuts the connection", "look at its logs; https where http is spoken, or the reverse, does this too")
	case r.Cause == guard.CauseGuard:
		say("has an address that is not allowed", "metadata and link-local addresses are never asked")
	case r.Cause == guard.CauseLocal:
		say("not tried: this machine is short of something", "close some programs and try again")
	case r.Cause == guard.CauseProtocol:
		say("answers, but not HTTP", "check the port, and whether it is http or https")
	case strings.HasPrefix(r.Cause, "http_3"):
		say("has moved: it answers "+strings.TrimPrefix(r.Cause, "http_"), "write the address that it redirects to; redirects are not followed")
	case strings.HasPrefix(r.Cause, "http_4") && e.Transport == statussync.TransportSSE:
		say("refuses: it answers "+strings.TrimPrefix(r.Cause, "http_"), "it may be a server of streamable HTTP: give it the type http")
	case strings.HasPrefix(r.Cause, "http_4"):
		say("refuses: it answers "+strings.TrimPrefix(r.Cause, "http_"), "is this the address of an MCP server? check its path, often /mcp or /sse")
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
