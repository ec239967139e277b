package dtma

import (
	"bytes"
	"container/heap"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/guard"
)

// AskerOptions are the settings of an Asker.
type AskerOptions struct {
	Guard       *guard.Guard // judges every connection; nil: untrusted agents at public addresses only
	UserAgent   string       // "statussync"
	Logger      *slog.Logger // nil: nothing is logged
	Concurrency int          // questions under way at most; 0: 32
}

const (
	defaultAskTimeout  = 5 * time.Second // where the request has none
	maxAnswer          = 1 << 20         // bytes of an answer, as of a heartbeat
	defaultConcurrency = 32
	maxPending         = 8 // questions that an environment can have waiting
)

// Causes beside those of package guard.
const (
	causeNobody   = "nobody_to_ask" // the agent has no known address
	causeBadURL   = "bad_config"    // its address is no URL
	causeTooLarge = "too_large"     // it answered more than 1 MiB
	causeBad      = "bad_answer"    // it answered something else than a status
)

// Asker asks agents how they do (GET {URL}/status), as the engine requests. No credential is sent. Each answer is an
// AgentReport via pull, everything else an AgentFailed.
//
// Per environment one question is under way at a time, and one answers everything that was asked by when it began. An
// environment has at most 8 questions waiting; one more is merged into its neighbour in time. An answer is with the
// Observer before the environment is asked again.
type Asker struct {
	userAgent          string
	log                *slog.Logger
	trusted, untrusted *http.Transport
	wake               chan struct{}
	jobs               chan *agent // rarely full: it has room for all that could be under way at first

	mu          sync.Mutex
	concurrency int
	ran         bool
	agents      map[string]*agent
	due         agentHeap // those with something waiting and nothing under way
	asking      int
	workers     int
}

// agent is one environment that has a question waiting or under way.
type agent struct {
	id      string
	pending []pendingAsk // by time
	asking  bool
	now     *statussync.AskAgent // the question under way
	index   int
}

type pendingAsk struct {
	at  time.Time
	ask *statussync.AskAgent
}

type agentHeap []*agent

func (h agentHeap) Len() int           { return len(h) }
func (h agentHeap) Less(i, j int) bool { return h[i].pending[0].at.Before(h[j].pending[0].at) }
func (h agentHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *agentHeap) Push(x any) {
	a := x.(*agent)
	a.index = len(*h)
	*h = append(*h, a)
}
func (h *agentHeap) Pop() any {
	old := *h
	n := len(old) - 1
	a := old[n]
	old[n] = nil
	*h = old[:n]
	a.index = -1
	return a
}

// NewAsker returns an Asker. A Concurrency below zero is taken as the default.
func NewAsker(o AskerOptions) *Asker {
	if o.UserAgent == "" {
		o.UserAgent = "statussync"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Concurrency <= 0 {
		o.Concurrency = defaultConcurrency
	}
	transport := func(trusted bool) *http.Transport {
		t := o.Guard.Transport(trusted)
		t.DisableKeepAlives = true // an agent is asked when it is in trouble: nothing old is worth keeping
		return t
	}
	return &Asker{
		userAgent: o.UserAgent, concurrency: o.Concurrency, log: o.Logger.With("component", "agents"),
		trusted: transport(true), untrusted: transport(false),
		wake: make(chan struct{}, 1), jobs: make(chan *agent, o.Concurrency), agents: make(map[string]*agent),
	}
}

// Do takes the questions among reqs and ignores the others. It does not block, and may be called before and while Run
// runs.
func (a *Asker) Do(reqs []statussync.Request) {
	now := time.Now()
	a.mu.Lock()
	for i := range reqs {
		if ask := reqs[i].Ask; ask != nil {
			a.add(ask, now.Add(max(0, ask.After)))
		}
	}
	a.mu.Unlock()
	a.signal()
}

func (a *Asker) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *Asker) add(ask *statussync.AskAgent, at time.Time) {
	g := a.agents[ask.EnvironmentID]
	if g == nil {
		g = &agent{id: ask.EnvironmentID, index: -1}
		a.agents[g.id] = g
	}
	i := len(g.pending)
	for i > 0 && g.pending[i-1].at.After(at) {
		i--
	}
	p := pendingAsk{at: at, ask: ask}
	if len(g.pending) == maxPending {
		g.pending[min(i, maxPending-1)] = p
	} else {
		g.pending = append(g.pending, pendingAsk{})
		copy(g.pending[i+1:], g.pending[i:])
		g.pending[i] = p
	}
	a.place(g)
}

// place puts g into the heap where that is its place.
func (a *Asker) place(g *agent) {
	switch {
	case g.asking || len(g.pending) == 0:
	case g.index >= 0:
		heap.Fix(&a.due, g.index)
	default:
		heap.Push(&a.due, g)
	}
}

// Run asks until ctx ends, and then returns nil; or until the Observer refuses an answer, and then returns its error. It
// may be called once. Questions under way are given up, without an observation, and all goroutines joined.
func (a *Asker) Run(ctx context.Context, to statussync.Observer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.mu.Lock()
	if a.ran {
		a.mu.Unlock()
		return errors.New("dtma: Run may be called once")
	}
	a.ran = true
	a.mu.Unlock()
	defer a.trusted.CloseIdleConnections()
	defer a.untrusted.CloseIdleConnections()

	var workers sync.WaitGroup
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		wait := time.Hour
		for {
			g, next, grow := a.next(time.Now())
			if g == nil {
				if !next.IsZero() {
					wait = time.Until(next)
				}
				break
			}
			if grow {
				workers.Go(func() {
					for g := range a.jobs {
						if err := a.serve(ctx, g, to); err != nil {
							cancel(err)
						}
					}
				})
			}
			a.jobs <- g
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-a.wake:
		}
	}
	close(a.jobs) // only this goroutine sends
	workers.Wait()
	if err := context.Cause(ctx); errors.As(err, new(*refusedError)) {
		return err
	}
	return nil
}

// refusedError tells an Observer's refusal from the end of the context that Run was given.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return "dtma: an answer was refused: " + e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// next takes the agent whose turn it is, or says when the next one's is; zero: when something changes. grow asks for one
// more worker.
func (a *Asker) next(now time.Time) (g *agent, next time.Time, grow bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.due) == 0 || a.asking >= a.concurrency {
		return nil, time.Time{}, false
	}
	if at := a.due[0].pending[0].at; at.After(now) {
		return nil, at, false
	}
	g = heap.Pop(&a.due).(*agent)
	n := 0
	for n < len(g.pending) && !g.pending[n].at.After(now) {
		n++
	}
	g.now = g.pending[n-1].ask // the newest knows the address best
	g.pending = append(g.pending[:0], g.pending[n:]...)
	g.asking = true
	if a.asking++; a.asking > a.workers {
		a.workers++
		grow = true
	}
	return g, time.Time{}, grow
}

// serve asks one agent and hands its answer over.
func (a *Asker) serve(ctx context.Context, g *agent, to statussync.Observer) (err error) {
	if ctx.Err() == nil {
		obs := a.ask(ctx, g.now)
		if ctx.Err() == nil { // an answer that was cut short by the end says nothing
			if err = to.Observe(ctx, obs); err != nil && ctx.Err() == nil {
				err = &refusedError{err}
			} else {
				err = nil
			}
		}
	}
	a.mu.Lock()
	a.asking--
	g.asking, g.now = false, nil
	if len(g.pending) == 0 {
		delete(a.agents, g.id)
	} else {
		a.place(g)
	}
	a.mu.Unlock()
	a.signal()
	return err
}

// SetConcurrency replaces AskerOptions.Concurrency; below 1 it is taken as the default. It does not block.
func (a *Asker) SetConcurrency(n int) {
	if n <= 0 {
		n = defaultConcurrency
	}
	a.mu.Lock()
	a.concurrency = n
	a.mu.Unlock()
	a.signal()
}

// Ask puts one question now, beside those that the engine requests, and returns an *statussync.AgentReport or an
// *statussync.AgentFailed; the Observer is not told. It blocks for at most q.Timeout (5 s where that is zero), whether
// Run runs or not, and q.After is not looked at. Who asks many agents bounds how many at once.
func (a *Asker) Ask(ctx context.Context, q *statussync.AskAgent) statussync.Observation {
	return a.ask(ctx, q)
}

// ask puts one question and returns what became of it.
func (a *Asker) ask(ctx context.Context, q *statussync.AskAgent) statussync.Observation {
	failed := &statussync.AgentFailed{EnvironmentID: q.EnvironmentID, StartedAt: time.Now()}
	if q.URL == "" {
		failed.Cause, failed.Detail, failed.NobodyToAsk = causeNobody, "the environment has no agent_url", true
		return failed
	}
	rep, cause, detail := a.get(ctx, q)
	if rep == nil {
		failed.Cause, failed.Detail = cause, statussync.CleanText(detail, statussync.MaxErrorText)
		a.log.Debug("agent did not answer", "environment", q.EnvironmentID, "cause", cause, "detail", failed.Detail)
		return failed
	}
	rep.EnvironmentID = q.EnvironmentID
	return rep
}

func (a *Asker) get(ctx context.Context, q *statussync.AskAgent) (rep *statussync.AgentReport, cause, detail string) {
	base, err := guard.ParseURL(q.URL)
	if err != nil {
		return nil, causeBadURL, err.Error()
	}
	u := base.JoinPath("status")
	u.RawQuery, u.ForceQuery = "", false
	limit := q.Timeout
	if limit <= 0 {
		limit = defaultAskTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req := (&http.Request{
		Method: http.MethodGet, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"User-Agent": {a.userAgent}, "Accept": {"application/json"}},
	}).WithContext(guard.WithAttempt(ctx))
	transport := a.untrusted
	if q.Trusted {
		transport = a.trusted
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		cause, detail = guard.CleanError(err)
		return nil, cause, detail
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, "http_" + strconv.Itoa(resp.StatusCode), "GET /status was answered with HTTP " + strconv.Itoa(resp.StatusCode)
	}
	var body bytes.Buffer
	n, err := io.Copy(&body, io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		cause, detail = guard.CleanError(err)
		return nil, cause, detail
	case n > maxAnswer:
		return nil, causeTooLarge, "the answer is longer than 1 MiB"
	}
	if rep, err = DecodeStatus(body.Bytes()); err != nil {
		return nil, causeBad, err.Error()
	}
	return rep, "", ""
}
