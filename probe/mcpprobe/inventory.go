package mcpprobe

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

const (
	maxTools    = statussync.MaxTools
	maxItems    = 10_000  // resources or prompts that are counted
	maxList     = 4 << 20 // bytes of all pages of one list
	maxPages    = 200
	maxToolName = statussync.MaxToolName
	maxCursor   = 4096
	inventoryIn = 30 * time.Second // an inventory whose plan has a shorter timeout gets this
)

// Inventory is what a server offers (L2). Text in it is untrusted and cleaned.
type Inventory struct {
	Protocol     string   // protocol version that is spoken with it
	Name         string   // as the server calls itself
	Version      string   //
	Capabilities []string // that it declares, of those that the specification names; sorted
	Tools        []Tool   // in its own order
	ToolsHash    string   // statussync.HashTools of Tools
	Resources    int      // -1: not declared, or not told
	Prompts      int      // likewise
	Latency      time.Duration
	Auth         statussync.Auth
}

// Inventory asks a server what it offers: all pages of its tools, and how many resources and prompts it has where it
// declares them. It first probes as Probe does and then goes on in the same session; nothing is answered from a cache.
//
// It blocks for at most 30 s, or plan.Timeout where that is longer, and ends early when ctx does. Bounds: 1,000 tools,
// 4 MiB and 200 pages a list; beyond 10,000 resources or prompts are not counted. With an error the Inventory holds what
// is known so far. Its code is CodeUnavailable where the server does not answer, CodeUnauthorized where it wants a
// login, CodeTooLarge where a bound was met, CodeInvalid where the list is not one or the plan can't be carried out;
// its detail says what is wrong and is fit to be shown.
func (p *Prober) Inventory(ctx context.Context, plan *statussync.ProbePlan) (Inventory, error) {
	c, done := p.talk(ctx, plan, max(timeoutOf(plan), inventoryIn))
	defer done()
	inv := Inventory{Resources: -1, Prompts: -1}
	var res statussync.ProbeResult
	ok := c.probe(&res)
	inv.Auth, inv.Latency = res.Auth, res.Latency
	if !ok {
		return inv, problem(&res)
	}
	s := c.s
	s.mu.Lock()
	inv.Protocol, inv.Name, inv.Version = s.version, s.who.Name, s.who.Version
	caps := s.caps
	s.mu.Unlock()
	for _, name := range [...]string{"completions", "experimental", "extensions", "logging", "prompts", "resources", "tasks", "tools"} {
		if caps[name] {
			inv.Capabilities = append(inv.Capabilities, name)
		}
	}
	began := time.Now()
	var err error
	inv.Tools, err = c.tools()
	inv.Latency = time.Since(began)
	inv.ToolsHash = statussync.HashTools(inv.Tools)
	if err != nil {
		return inv, err
	}
	count := func(method, member string) (int, error) {
		if !caps[member] {
			return -1, nil
		}
		n := 0
		err := c.list(method, member, maxItems, func(json.RawMessage) bool { n++; return true })
		if err == errNoMethod {
			return -1, nil
		}
		return n, err
	}
	if inv.Resources, err = count("resources/list", "resources"); err != nil {
		return inv, err
	}
	inv.Prompts, err = count("prompts/list", "prompts")
	return inv, err
}

// problem is the error of a probe that was no success.
func problem(res *statussync.ProbeResult) error {
	code := statussync.CodeUnavailable
	switch {
	case res.Auth == statussync.AuthRequired || res.Auth == statussync.AuthFailed:
		code = statussync.CodeUnauthorized
	case res.Cause == causeBadConfig || res.NotMCP:
		code = statussync.CodeInvalid
	case res.Throttled:
		code = statussync.CodeRateLimited
	}
	return statussync.NewError(code, res.Cause+": "+res.Detail, nil)
}

var errNoMethod = statussync.NewError(statussync.CodeInvalid, "the server declares a list that it does not have", nil)

// list asks for all pages of one list.
func (c *talk) list(method, member string, most int, take func(json.RawMessage) bool) error {
	left, cursor, n := int64(maxList), "", 0
	tooLarge := func(what string) error {
		return statussync.NewError(statussync.CodeTooLarge, method+": "+what, nil)
	}
	for page := 0; ; page++ {
		if page == maxPages || left <= 0 {
			return tooLarge("more than " + strconv.Itoa(maxPages) + " pages or " + size(maxList))
		}
		q := question{method: method, limit: left}
		if cursor != "" {
			enc, _ := json.Marshal(cursor) // a string: can't fail
			q.fields = `"cursor":` + string(enc)
		}
		a, _, f := c.ask(&q)
		if f != nil {
			return statussync.NewError(statussync.CodeUnavailable, method+": "+f.Cause+": "+f.Detail, nil)
		}
		switch {
		case a.tooLong:
			return tooLarge("more than " + size(maxList))
		case a.status == http.StatusUnauthorized, a.status == http.StatusForbidden:
			con := httpConclusion(a)
			return statussync.NewError(statussync.CodeUnauthorized, method+": "+con.detail, nil)
		case a.rpc == nil:
			what := a.problem
			if a.status < 200 || a.status > 299 {
				what = httpConclusion(a).detail
			}
			return statussync.NewError(statussync.CodeUnavailable, method+": "+what, nil)
		case a.rpc.Error != nil:
			if a.rpc.Error.Code == codeMethodNotFound || strings.HasPrefix(strings.ToLower(a.rpc.Error.Message), "method not found") {
				return errNoMethod
			}
			return statussync.NewError(statussync.CodeUnavailable,
				method+": MCP error "+strconv.Itoa(a.rpc.Error.Code)+": "+clean(a.rpc.Error.Message, 300), nil)
		}
		var res map[string]json.RawMessage
		var items []json.RawMessage
		if json.Unmarshal(a.rpc.Result, &res) != nil || json.Unmarshal(res[member], &items) != nil {
			return statussync.Invalid(method, "the answer has no list "+strconv.Quote(member))
		}
		left -= int64(len(a.rpc.Result))
		for i, item := range items {
			if n++; n > most {
				return tooLarge("more than " + strconv.Itoa(most))
			}
			if !take(item) {
				return statussync.Invalid(method+"["+strconv.Itoa(n-1)+"]", "is no tool: it has no name (element "+strconv.Itoa(i)+" of its page)")
			}
		}
		var next string
		if raw, ok := res["nextCursor"]; ok && string(raw) != "null" {
			if json.Unmarshal(raw, &next) != nil || len(next) > maxCursor {
				return statussync.Invalid(method, "its nextCursor is no cursor")
			}
		}
		if next == "" {
			return nil
		}
		if next == cursor {
			return statussync.Invalid(method, "its nextCursor is the one that it was asked with: the list has no end")
		}
		cursor = next
	}
}

// Causes of a canary.
const (
	causeToolError      = "tool_error"      // the tool says that it failed, or the call was refused
	causeToolUnexpected = "tool_unexpected" // it answered, without what was expected
)

// maxArguments bounds a canary's arguments, in bytes of JSON.
const maxArguments = 64 << 10

// Canary calls one tool (L3), after probing as Probe does and in the same session. args are the tool's arguments, nil for
// none. expect, if not empty, must stand in the text of the answer, or in the JSON of its structured content.
//
// The outcome is a success where the tool did as expected; a failure with the cause tool_error or tool_unexpected where
// it did not; otherwise that of the probe. The call is made at most once: it may have effects. Latency is the call's. It
// blocks as Probe does. A tool that wants arguments mirrored in headers (x-mcp-header) can't be called.
func (p *Prober) Canary(ctx context.Context, plan *statussync.ProbePlan, tool string, args map[string]any, expect string) statussync.ProbeResult {
	res := statussync.ProbeResult{ServerID: plan.ServerID, StartedAt: time.Now()}
	p.canary(ctx, plan, tool, args, expect, &res)
	res.FinishedAt = time.Now()
	return res
}

func (p *Prober) canary(ctx context.Context, plan *statussync.ProbePlan, tool string, args map[string]any, expect string, res *statussync.ProbeResult) {
	bad := func(cause, detail string) {
		res.Outcome, res.Cause, res.Detail = statussync.OutcomeFailure, cause, clean(detail, statussync.MaxErrorText)
	}
	if args == nil {
		args = map[string]any{}
	}
	arguments, err := json.Marshal(args)
	switch {
	case err != nil:
		bad(causeBadConfig, "the canary's arguments are no JSON: "+err.Error())
		return
	case len(arguments) > maxArguments:
		bad(causeBadConfig, "the canary's arguments are longer than "+size(maxArguments))
		return
	case tool == "" || len(tool) > 1024:
		bad(causeBadConfig, "the canary names no tool")
		return
	}
	c, done := p.talk(ctx, plan, timeoutOf(plan))
	defer done()
	if !c.probe(res) {
		return
	}
	name, _ := json.Marshal(tool) // a string: can't fail
	q := question{
		method: "tools/call", name: tool, limit: p.o.MaxBody, once: true,
		fields: `"name":` + string(name) + `,"arguments":` + string(arguments),
	}
	began := time.Now()
	a, inSession, f := c.ask(&q)
	res.Latency = time.Since(began)
	if f != nil {
		bad(f.Cause, f.Detail)
		res.ByConnect, res.HTTPStatus, res.Latency = f.ByConnect, 0, 0
		return
	}
	res.HTTPStatus = a.status
	con := judge(askTools, inSession, a)
	switch {
	case con.login, con.throttled, a.rpc == nil:
		c.status, c.header, c.took = a.status, a.header, res.Latency
		c.result(&con, nil, res)
		return
	case a.rpc.Error != nil:
		bad(causeToolError, con.detail)
		return
	}
	var out struct {
		IsError bool `json:"isError"`
		Content []struct {
			Text string `json:"text"`
		} `json:"content"`
		Structured json.RawMessage `json:"structuredContent"`
	}
	if json.Unmarshal(a.rpc.Result, &out) != nil {
		bad(causeToolError, "the answer is no result of a tool")
		return
	}
	text, found := "", expect == ""
	for _, part := range out.Content {
		if text == "" {
			text = part.Text
		}
		found = found || strings.Contains(part.Text, expect)
	}
	found = found || strings.Contains(string(out.Structured), expect)
	switch {
	case out.IsError:
		bad(causeToolError, "the tool failed: "+clean(text, 300))
	case !found:
		bad(causeToolUnexpected, "the answer does not hold what is expected: "+clean(text, 300))
	default:
		res.Outcome, res.Cause, res.Detail = statussync.OutcomeSuccess, "", ""
	}
}
