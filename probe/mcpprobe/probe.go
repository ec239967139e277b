package mcpprobe

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/guard"
)

// Probe asks one server whether it lives (L1); it is a statussync.Prober. It blocks for at most plan.Timeout (10 s where
// that is zero) and ends early, with the cause "canceled", when ctx does. The last second (or fifth) of a server that Do
// was not told of is kept for ending its session.
//
// Latency is that of the answer that was concluded from, whole. Auth says what is known of the login: with configured
// headers ok or failed, without them none or required. Protocol and ServerInfo are what the server told when it was
// first asked. ByConnect is as httpprobe has it: nobody answered at all.
//
// Where the plan has a canary it is called with the first probe, then every 10 minutes, and, while the tool does not do
// as expected, with every probe: the server is down until it does. A server that Do was not told of has none.
func (p *Prober) Probe(ctx context.Context, plan *statussync.ProbePlan) statussync.ProbeResult {
	if plan.Canary.Tool != "" {
		if s := p.canaryDue(plan); s != nil {
			return p.withCanary(ctx, plan, s)
		}
	}
	res := statussync.ProbeResult{ServerID: plan.ServerID, StartedAt: time.Now()}
	c, done := p.talk(ctx, plan, timeoutOf(plan))
	defer done()
	c.probe(&res)
	res.FinishedAt = time.Now()
	return res
}

// canaryEvery is how often a canary that did well is called: as often as tools are listed (docs/protocols.md §6).
const canaryEvery = 10 * time.Minute

// canaryDue returns the server whose canary is to be called now, nil for none.
func (p *Prober) canaryDue(plan *statussync.ProbePlan) *server {
	p.mu.Lock()
	s := p.servers[plan.ServerID]
	p.mu.Unlock()
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.canary != plan.Canary {
		s.canary, s.canaryAt, s.canaryBad = plan.Canary, time.Time{}, false
	}
	if s.canaryBad || s.canaryAt.IsZero() || time.Since(s.canaryAt) >= canaryEvery {
		return s
	}
	return nil
}

// withCanary probes and calls the canary. It counts as called where the call itself had an outcome.
func (p *Prober) withCanary(ctx context.Context, plan *statussync.ProbePlan, s *server) statussync.ProbeResult {
	res := statussync.ProbeResult{ServerID: plan.ServerID, StartedAt: time.Now()}
	var args map[string]any
	if plan.Canary.Arguments != "" && json.Unmarshal([]byte(plan.Canary.Arguments), &args) != nil {
		res.Outcome, res.Cause, res.Detail = statussync.OutcomeFailure, causeBadConfig, "the canary's arguments are no JSON object"
		res.FinishedAt = time.Now()
		return res
	}
	res = p.Canary(ctx, plan, plan.Canary.Tool, args, plan.Canary.Expect)
	bad := res.Cause == causeToolError || res.Cause == causeToolUnexpected
	if bad || res.Outcome == statussync.OutcomeSuccess {
		s.mu.Lock()
		if s.canary == plan.Canary {
			s.canaryAt, s.canaryBad = time.Now(), bad
		}
		s.mu.Unlock()
	}
	return res
}

func timeoutOf(plan *statussync.ProbePlan) time.Duration {
	if plan.Timeout <= 0 {
		return defaultTimeout
	}
	return plan.Timeout
}

// talk is one conversation with one server: a probe, an inventory or a canary.
type talk struct {
	p      *Prober
	s      *server
	t      *target
	parent context.Context
	ctx    context.Context // parent, until the timeout
	err    error           // the plan can't be carried out

	took         time.Duration // of the last question
	status       int           // of its answer
	header       http.Header
	opened       bool // a session or stream was opened in this conversation
	beforeStatus int
	before       *conclusion // what counts if the server turns out to be no HTTP+SSE either
	asked        [askStream + 1]bool
}

// talk begins a conversation. done must be called at its end.
func (p *Prober) talk(parent context.Context, plan *statussync.ProbePlan, timeout time.Duration) (*talk, func()) {
	c := &talk{p: p, parent: parent}
	p.mu.Lock()
	s, closed := p.servers[plan.ServerID], p.closed
	p.mu.Unlock()
	passing := s == nil
	if passing {
		// Nobody would tell us when it is removed, so nothing is left behind.
		s = newServer(plan)
	}
	deadline := time.Now().Add(timeout)
	asking := deadline
	if passing {
		asking = deadline.Add(-min(timeout/5, closeTimeout))
	} else {
		p.dispose(s.follow(plan))
	}
	c.s = s
	ctx, cancel := context.WithDeadline(parent, asking)
	if closed {
		cancel()
		c.parent = ctx
	}
	c.ctx = ctx
	s.mu.Lock()
	if s.target == nil {
		s.target, c.err = p.newTarget(plan)
	}
	c.t = s.target
	s.mu.Unlock()
	return c, func() {
		cancel()
		if passing {
			if e := s.forget(); e.session != "" {
				ctx, cancel := context.WithDeadline(context.WithoutCancel(parent), deadline)
				p.end(ctx, e)
				cancel()
			}
		}
	}
}

// probe is L1. It reports whether the server answered with an MCP result.
func (c *talk) probe(res *statussync.ProbeResult) bool {
	if c.err != nil {
		res.Outcome, res.Cause = statussync.OutcomeFailure, causeBadConfig
		res.Detail = clean(c.err.Error(), statussync.MaxErrorText)
		return false
	}
	con := conclusion{}
	var failed *guard.Failure
	k := c.first()
	for range maxSteps {
		con, failed = c.step(k)
		if c.before != nil && k == askStream && con.outcome != statussync.OutcomeSuccess && con.cause != guard.CauseCanceled {
			con, failed, c.status = *c.before, nil, c.beforeStatus
			break
		}
		next, ok := c.next(k, &con)
		if !ok {
			break
		}
		k = next
	}
	c.result(&con, failed, res)
	return res.Outcome == statussync.OutcomeSuccess
}

// first is the question to begin with.
func (c *talk) first() kind {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.sse && (s.stream == nil || s.stream.ended()):
		return askStream
	case s.hello && (s.sse || s.era == eraLegacy):
		if s.list {
			return askTools
		}
		return askPing
	case s.sse:
		return askInitialize
	case s.era == eraLegacy && !time.Now().Before(s.notBefore):
		return askInitialize
	case s.era == eraModern && s.list:
		return askTools
	}
	return askDiscover
}

// step asks one question and judges the answer.
func (c *talk) step(k kind) (conclusion, *guard.Failure) {
	c.asked[k] = true
	s := c.s
	ctx, cancel := c.ctx, context.CancelFunc(func() {})
	var a *answer
	var f *guard.Failure
	inSession := false
	began := time.Now()
	switch k {
	case askStream:
		if a, f = c.openStream(); f == nil {
			c.asked[askInitialize] = false // by POST it was another question
		}
	case askInitialize:
		a, f = c.initialize()
		if a == nil && f == nil { // somebody else has opened it meanwhile
			return up(ping, ""), nil
		}
	case askDiscover:
		s.mu.Lock()
		q := question{method: "server/discover", version: versionModern, modern: true, limit: c.p.o.MaxBody}
		undecided := s.era == eraUnknown
		if s.era == eraModern {
			q.version = s.version
		}
		s.mu.Unlock()
		if undecided {
			// A legacy server may never answer a question that it doesn't know: half of the time is left for initialize.
			if d, ok := ctx.Deadline(); ok {
				ctx, cancel = context.WithDeadline(ctx, began.Add(d.Sub(began)/2))
			}
		}
		a, f = c.p.post(c.parent, ctx, c.t, &q, s.ids.Add(1))
		cancel()
		if f != nil && undecided && f.Cause == guard.CauseTimeout && !f.ByConnect {
			c.took, c.status = time.Since(began), 0
			return conclusion{outcome: statussync.OutcomeFailure, cause: f.Cause, detail: f.Detail, then: initialize, version: versionLegacy}, f
		}
		if a != nil && a.session != "" {
			c.p.dispose(ending{t: c.t, session: a.session})
		}
	default:
		q := question{method: "ping", limit: c.p.o.MaxBody}
		if k == askTools {
			q.method, q.limit = "tools/list", max(q.limit, maxList)
		}
		a, inSession, f = c.ask(&q)
	}
	c.took, c.status, c.header = time.Since(began), 0, nil
	if f != nil {
		return conclusion{outcome: statussync.OutcomeFailure, cause: f.Cause, detail: f.Detail}, f
	}
	c.status, c.header = a.status, a.header
	con := judge(k, inSession, a)
	c.learn(k, a, &con)
	return con, nil
}

// ask asks a question in the way that was agreed upon: stateless, in the session, or on the held stream.
func (c *talk) ask(q *question) (a *answer, inSession bool, f *guard.Failure) {
	s := c.s
	s.mu.Lock()
	q.version, q.session, q.modern = s.version, s.session, s.era == eraModern && !s.sse
	st, same := s.stream, s.target == c.t
	s.mu.Unlock()
	if !same { // the plan changed: the session is another server's
		return nil, false, &guard.Failure{Cause: guard.CauseCanceled, Detail: "the probe was given up"}
	}
	id := s.ids.Add(1)
	if st != nil {
		a, f = st.ask(c.parent, c.ctx, q, id)
		return a, true, f
	}
	a, f = c.p.post(c.parent, c.ctx, c.t, q, id)
	return a, q.session != "", f
}

// learn remembers what an answer tells of the server.
func (c *talk) learn(k kind, a *answer, con *conclusion) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.rpc == nil || a.rpc.Error != nil {
		return
	}
	switch k {
	case askDiscover:
		s.tell(a.handshake())
		if con.then == conclude {
			c.p.disposeLocked(s.dropLocked()) // it was of the other era before
			if s.era, s.version = eraModern, con.version; s.version == "" {
				s.era = eraUnknown // it speaks nothing that we know
			}
		}
	case askPing, askTools:
		if con.outcome == statussync.OutcomeSuccess {
			s.lost, s.notBefore = 0, time.Time{}
		}
	}
}

func (s *server) tell(h *handshake) {
	s.who = implementation{Name: clean(h.ServerInfo.Name, 128), Version: clean(h.ServerInfo.Version, 64)}
	s.caps = nil
	for _, name := range [...]string{"tools", "resources", "prompts", "logging", "completions", "tasks", "extensions", "experimental"} {
		if v, ok := h.Capabilities[name]; ok && string(v) != "null" {
			if s.caps == nil {
				s.caps = make(map[string]bool, 4)
			}
			s.caps[name] = true
		}
	}
}

// initialize opens a session, if there is none yet. It returns nothing where somebody else did.
func (c *talk) initialize() (*answer, *guard.Failure) {
	s := c.s
	select {
	case <-s.opening:
	case <-c.ctx.Done():
		var at guard.Attempt
		f := at.Failure(c.parent, c.ctx, c.ctx.Err(), timeoutOf(c.t.plan))
		return nil, &f
	}
	defer func() { s.opening <- struct{}{} }()
	s.mu.Lock()
	open, version, st := s.hello && (!s.sse || s.stream != nil), s.version, s.stream
	s.mu.Unlock()
	if open {
		return nil, nil
	}
	if version == "" || version >= versionModern {
		version = versionLegacy
	}
	c.opened = true
	q := question{
		method: "initialize", limit: c.p.o.MaxBody, once: true,
		fields: `"protocolVersion":"` + version + `","capabilities":{},"clientInfo":` + string(c.p.clientInfo),
	}
	var a *answer
	var f *guard.Failure
	if st != nil {
		a, f = st.ask(c.parent, c.ctx, &q, s.ids.Add(1))
	} else {
		a, f = c.p.post(c.parent, c.ctx, c.t, &q, s.ids.Add(1))
	}
	if f != nil {
		return nil, f
	}
	opened := ending{t: c.t, session: a.session}
	if a.rpc == nil || a.rpc.Error != nil || a.status < 200 || a.status > 299 {
		c.p.dispose(opened)
		return a, nil
	}
	h := a.handshake()
	if validVersion(h.ProtocolVersion) {
		version = h.ProtocolVersion
	}
	opened.version = version
	s.mu.Lock()
	if s.gone || s.target != c.t || s.stream != st {
		s.mu.Unlock()
		c.p.dispose(opened) // the plan changed meanwhile
		return a, nil
	}
	s.era, s.version, s.session, s.hello = eraLegacy, version, a.session, true
	s.tell(h)
	s.mu.Unlock()
	const initialized = `{"jsonrpc":"2.0","method":"notifications/initialized"}`
	if st != nil {
		st.notify(c.ctx, version, []byte(initialized))
	} else {
		c.p.send(c.ctx, c.t, c.t.url, a.session, version, []byte(initialized))
	}
	return a, nil
}

// openStream opens the stream of HTTP+SSE, if there is none yet.
func (c *talk) openStream() (*answer, *guard.Failure) {
	s := c.s
	select {
	case <-s.opening:
	case <-c.ctx.Done():
		var at guard.Attempt
		f := at.Failure(c.parent, c.ctx, c.ctx.Err(), timeoutOf(c.t.plan))
		return nil, &f
	}
	defer func() { s.opening <- struct{}{} }()
	s.mu.Lock()
	if s.stream != nil && !s.stream.ended() {
		s.mu.Unlock()
		return &answer{status: http.StatusOK, mediaType: mediaEvents}, nil
	}
	s.streamTried = time.Now()
	s.mu.Unlock()
	c.opened = true
	st, a, f := c.p.openStream(c.parent, c.ctx, c.t)
	if st == nil {
		return a, f
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || s.target != c.t {
		st.end()
		return a, nil
	}
	if s.stream != nil {
		s.stream.end()
	}
	s.sse, s.stream, s.session, s.hello, s.era, s.version = true, st, "", false, eraLegacy, ""
	return a, nil
}

// next decides what is asked after a conclusion; false: it counts.
func (c *talk) next(k kind, con *conclusion) (kind, bool) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	inHand := askPing
	if s.list {
		inHand = askTools
	}
	open := func() (kind, bool) {
		switch {
		case s.sse && (s.stream == nil || s.stream.ended()):
			if c.asked[askStream] {
				return 0, false
			}
			return askStream, true
		case s.hello:
			s.era = eraLegacy
			return inHand, !c.asked[inHand]
		case c.asked[askInitialize] && k != askInitialize:
			return 0, false
		case time.Now().Before(s.notBefore):
			*con = s.lossy
			return 0, false
		}
		if con.version != "" {
			s.version = con.version
		}
		return askInitialize, true
	}
	// A stream that ended is opened anew, as a lost session is.
	if k != askStream && s.sse && s.stream != nil && s.stream.ended() && con.outcome == statussync.OutcomeFailure {
		con.then = reopen
	}
	switch con.then {
	case renegotiate:
		if c.asked[askDiscover] && (k != askDiscover || s.version == con.version) {
			return 0, false
		}
		s.era, s.version = eraModern, con.version
		return askDiscover, true
	case discover:
		s.era = eraUnknown
		return askDiscover, !c.asked[askDiscover]
	case initialize:
		if k == askInitialize && s.version == con.version { // refused the version that it offers itself
			return 0, false
		}
		return open()
	case ping:
		if !s.hello { // forgotten while it was opened
			return 0, false
		}
		c.asked[inHand] = false
		return inHand, true
	case listTools:
		s.list = s.list || con.forGood
		return askTools, !c.asked[askTools]
	case tryStream:
		if s.sse || time.Since(s.streamTried) < streamAgain {
			return 0, false
		}
		before := *con
		c.before, c.beforeStatus = &before, c.status
		return askStream, true
	case reopen:
		e := s.dropLocked()
		if c.opened {
			// Lost at once. Each try may leave a session behind in some instance, so there are fewer and fewer.
			if s.lost++; s.lost >= maxLost {
				s.notBefore = time.Now().Add(min(maxLostWait, time.Second<<min(s.lost, 20)))
			}
			s.lossy = *con
			s.lossy.then = conclude
			c.p.disposeLocked(e)
			return 0, false
		}
		c.p.disposeLocked(e)
		c.asked[inHand] = false
		return open()
	}
	return 0, false
}

// result writes down what was concluded.
func (c *talk) result(con *conclusion, f *guard.Failure, res *statussync.ProbeResult) {
	res.Outcome, res.Cause, res.NotMCP, res.Throttled = con.outcome, con.cause, con.notMCP, con.throttled
	res.Detail = clean(con.detail, statussync.MaxErrorText)
	if f != nil && con.cause == f.Cause {
		res.ByConnect = f.ByConnect
	} else {
		res.HTTPStatus, res.Latency = c.status, c.took
	}
	if con.throttled {
		res.RetryAfter = guard.RetryAfter(c.header, time.Now())
	}
	switch {
	case con.login && c.t.login:
		res.Auth = statussync.AuthFailed
	case con.login:
		res.Auth = statussync.AuthRequired
	case con.outcome == statussync.OutcomeSuccess && c.t.login:
		res.Auth = statussync.AuthOK
	case con.outcome == statussync.OutcomeSuccess:
		res.Auth = statussync.AuthNone
	}
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if con.outcome == statussync.OutcomeFailure && f == nil && !s.sse && (s.session == "" || c.status >= 400 && c.status <= 499) {
		// An answer that is no success may be that of another server: the era is decided anew. One that gives no answer
		// has said nothing. Where a session is open and the server fails by itself, the session is asked again.
		s.era, s.list = eraUnknown, false
		if s.session == "" {
			s.hello = false
		}
	}
	if con.outcome == statussync.OutcomeFailure && f == nil && s.sse && s.plan.Transport != statussync.TransportSSE &&
		(s.stream == nil || s.stream.ended()) {
		s.stream, s.sse, s.era, s.hello, s.streamTried = nil, false, eraUnknown, false, time.Time{} // that it was HTTP+SSE was found out, and is not so any more
	}
	if con.outcome == statussync.OutcomeSuccess {
		res.Protocol, res.ServerInfo = s.version, statussync.ServerInfo(s.who)
	}
}
