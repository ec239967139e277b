package postgres

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/agentopia/statussync"
)

// How long is waited between attempts. A database that was away is read within 5 s of its return: one attempt to connect
// (DefaultConnectTimeout) may have begun just before it, and then one pause.
const (
	retryFirst = 50 * time.Millisecond
	retryMax   = 1500 * time.Millisecond

	// keepaliveEvery is how often a database of which nothing is heard is asked whether it is there.
	keepaliveEvery = 2 * time.Second
	// quietMax is how long a statement may give no sign of life; who always takes longer is given four times what it took.
	quietMax = 4 * time.Second
	// settle is how long is waited before a mass disappearance is read again, as for every registry.
	settleWait = time.Second
)

type syncRequest struct {
	ctx   context.Context
	reply chan syncReply // has room for one
}

type syncReply struct {
	out outcome
	err error
}

// Sync reads everything now and waits until what differs was concluded from. It returns the updates that this caused and
// the rows that could not be used. While the database is away it returns an error with CodeUnavailable. Run must be running.
func (r *Registry) Sync(ctx context.Context) (updates []*statussync.Entry, failed []RowFault, err error) {
	q := &syncRequest{ctx: ctx, reply: make(chan syncReply, 1)}
	select {
	case r.syncs <- q:
	case <-ctx.Done():
		return nil, nil, statussync.NewError(statussync.CodeUnavailable, "the database was not read: there was no time left", ctx.Err())
	}
	select {
	case a := <-q.reply:
		_, _, faults, _ := r.fleet.stats()
		return a.out.updates, faults, a.err
	case <-ctx.Done():
		return nil, nil, statussync.NewError(statussync.CodeUnavailable, "the database was not read: there was no time left", ctx.Err())
	}
}

// Run implements statussync.Source: it follows the database until ctx ends, reconnects without limit, and returns nil, or
// the error of an observer that takes nothing more.
func (r *Registry) Run(ctx context.Context, to statussync.Observer) error {
	defer r.closePool()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &readLoop{r: r, to: to, quiet: quietMax, resyncAt: time.Now()}
	l.read = func(progress func()) rowReader { return &database{r: r, s: r.shapeNow(), progress: progress} }
	l.look, l.ping = l.inspect, l.pingPool
	done := make(chan error, 2)
	parts := 0
	if r.feed != nil {
		parts++
		go func() {
			err := r.feed.Run(ctx, r.mail)
			if ctx.Err() == nil {
				if err == nil {
					err = errors.New("the feed has ended")
				}
				r.log.Warn("changes cannot be followed; everything is read again and again", "error", errorText(err), "every", r.o.Resync)
				r.mail.Lost(err)
			}
			done <- nil
		}()
	}
	if r.o.WriteBack {
		parts++
		go func() { done <- r.wb.run(ctx) }()
	}
	err := l.run(ctx)
	cancel()
	for range parts {
		<-done
	}
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

// closeWithin is how long the pool's end is waited for.
const closeWithin = 250 * time.Millisecond

// closePool closes the pool. pgx waits up to 15 s for a database that does not answer to say that it has given a statement up;
// that goes on without us.
func (r *Registry) closePool() {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		r.pool.Close()
	}()
	late := time.NewTimer(closeWithin)
	defer late.Stop()
	select {
	case <-closed:
	case <-late.C:
		r.log.Debug("the database's connections are still being closed")
	}
}

// readLoop is the goroutine that reads.
type readLoop struct {
	r    *Registry
	to   statussync.Observer
	read func(progress func()) rowReader
	look func(ctx context.Context) error // at what the database has
	ping func(ctx context.Context) error

	told     bool // the owner was told of the connection
	up       bool
	retry    int
	retryAt  time.Time // not before; zero: whenever there is a reason
	resyncAt time.Time
	heardAt  time.Time // of the database
	quiet    time.Duration
	primed   bool // a full read was completed
	lastText string
	saidAt   time.Time // when the failure was logged
}

func (l *readLoop) run(ctx context.Context) error {
	r := l.r
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var asked []*syncRequest
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-r.mail.wake:
		case q := <-r.syncs:
			asked = append(asked, q)
		case e := <-r.wb.echoes:
			l.echoes(ctx, e)
		}
		now := time.Now()
		if l.up || !now.Before(l.retryAt) || len(asked) > 0 {
			if err := l.turn(ctx, asked); err != nil {
				return err
			}
		}
		next := l.retryAt
		if l.up {
			next = l.resyncAt
			if k := l.heardAt.Add(keepaliveEvery); k.Before(next) {
				next = k
			}
		}
		timer.Reset(max(0, time.Until(next)))
	}
}

// turn does what is due. Errors of the database are kept; an error that it returns ends everything.
func (l *readLoop) turn(ctx context.Context, asked []*syncRequest) error {
	r := l.r
	mail := r.mail.take()
	if mail.turned {
		l.turned(&mail)
	}
	full := mail.all || len(asked) > 0 || !l.up || !l.primed || !time.Now().Before(l.resyncAt)
	var out outcome
	var err error
	switch {
	case full:
		r.setCatching(mail.all && mail.live)
		began := time.Now()
		out, err = l.full(ctx, len(asked) > 0)
		if err == nil {
			took := time.Since(began)
			l.resyncAt = time.Now().Add(r.o.Resync)
			l.primed = true
			r.fleet.prime()
			r.wb.prime()
			l.quiet = max(quietMax, min(4*took, 2*time.Minute))
			r.synced(began, took, mail.since)
			r.wb.reachable(true) // not before the rows' words are known as they are now
		} // else everything is read again as soon as the database answers
	case len(mail.instances)+len(mail.envs) > 0:
		if err = l.some(ctx, mail.instances, mail.envs); err == nil {
			r.setLag(mail.since)
		} else {
			r.mail.again(mail.instances, mail.envs)
		}
	case time.Since(l.heardAt) >= keepaliveEvery, mail.turned && !mail.live: // where the feed is lost the database may be
		err = l.ping(ctx)
	default:
		return nil // nothing was heard of the database
	}
	defer func() { // who asked finds the status as the answer says
		for _, q := range asked {
			var e error
			if err != nil {
				e = statussync.NewError(statussync.CodeUnavailable, "the database was not read: "+errorText(err), err)
			}
			q.reply <- syncReply{out: out, err: e}
		}
	}()
	var give *observerError
	switch {
	case err == nil:
		l.connected()
	case ctx.Err() != nil:
		return nil
	case errors.As(err, &give):
		return give.err
	default:
		l.failed(err)
	}
	return nil
}

// observerError is a failure of who takes the observations, not of the database.
type observerError struct{ err error }

func (e *observerError) Error() string { return e.err.Error() }
func (e *observerError) Unwrap() error { return e.err }

func (l *readLoop) connected() {
	r := l.r
	l.heardAt, l.retry, l.retryAt = time.Now(), 0, time.Time{}
	if l.up {
		return
	}
	again := l.told
	l.up, l.told = true, true
	r.mu.Lock()
	r.reachable, r.catching, r.lastError = true, r.feedLive, ""
	r.mu.Unlock()
	if again {
		r.reconnects.Add(1)
		r.log.Info("the database answers again")
	}
	if r.o.Connection != nil {
		r.o.Connection(true)
	}
}

func (l *readLoop) failed(err error) {
	r := l.r
	text := errorText(err)
	// Full jitter, so that many services don't come back in step.
	wait := min(retryMax, retryFirst<<min(l.retry, 10))
	l.retry++
	l.retryAt = time.Now().Add(time.Duration(rand.Int64N(int64(wait)) + 1))
	was := l.up || !l.told
	l.up, l.told = false, true
	r.mu.Lock()
	r.reachable, r.lastError = false, text
	r.mu.Unlock()
	if was || text != l.lastText && time.Since(l.saidAt) > 30*time.Second { // the text may name another port each time
		l.saidAt = time.Now()
		r.log.Warn("the database cannot be read; trying again", "error", text)
	}
	l.lastText = text
	if !was {
		return
	}
	r.wb.reachable(false)
	if r.o.Connection != nil {
		r.o.Connection(false)
	}
}

// watchdog ends a read whose database gives no sign of life.
type watchdog struct {
	timer *time.Timer
	quiet time.Duration
}

func (w *watchdog) alive() { w.timer.Reset(w.quiet) }

// hold is for while something else than the database is waited for; alive ends it.
func (w *watchdog) hold() { w.timer.Stop() }

// patiently runs f with a context that ends when the database has given no sign of life for l.quiet.
func (l *readLoop) patiently(ctx context.Context, f func(ctx context.Context, w *watchdog) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &watchdog{quiet: l.quiet, timer: time.AfterFunc(l.quiet, func() { cancel(context.DeadlineExceeded) })}
	defer w.timer.Stop()
	err := f(ctx, w)
	if err != nil && context.Cause(ctx) == context.DeadlineExceeded {
		if l.up { // it answered before, so it may only be slow
			l.quiet = min(2*l.quiet, 2*time.Minute)
		}
		return context.DeadlineExceeded
	}
	return err
}

func (l *readLoop) pingPool(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepaliveEvery+time.Second)
	defer cancel()
	l.r.queries.Add(1)
	return l.r.pool.Ping(ctx)
}

// inspect looks at what the database has, with each full read: rights and columns come and go while the service runs.
func (l *readLoop) inspect(ctx context.Context) error {
	r := l.r
	ctx, cancel := context.WithTimeout(ctx, max(l.quiet, r.pool.Config().ConnConfig.ConnectTimeout))
	defer cancel()
	r.queries.Add(1)
	c, err := readCatalog(ctx, r.pool, r.o.Schema)
	if err != nil {
		return err
	}
	s, err := c.plan(r.o.WriteBack)
	if err != nil {
		return err
	}
	r.setShape(s)
	return nil
}

// full reads everything and hands over what differs.
func (l *readLoop) full(ctx context.Context, keep bool) (outcome, error) {
	r := l.r
	if err := l.look(ctx); err != nil {
		return outcome{}, err
	}
	l.connected() // told before what was missed is
	s := r.newSender(ctx, l.to, keep)
	err := l.scan(ctx, s)
	if err == nil {
		err = l.vanished(ctx, s)
	}
	out, serr := s.finish()
	r.tellAgents()
	if serr != nil && ctx.Err() == nil {
		return out, &observerError{serr}
	}
	if err == nil {
		err = ctx.Err()
	}
	return out, err
}

// scan reads every row once.
func (l *readLoop) scan(ctx context.Context, s *deltaSender) error {
	f := l.r.fleet
	read := f.begin(true)
	d := &delta{}
	now := time.Now()
	pass := func(dog *watchdog, limit int) error {
		if d.size() < limit {
			return nil
		}
		dog.hold()
		defer dog.alive()
		full := d
		d = &delta{}
		return s.send(full)
	}
	err := l.patiently(ctx, func(ctx context.Context, dog *watchdog) error {
		return l.read(dog.alive).all(ctx, func(w *environmentRow) error {
			f.mu.Lock() // held shortly, for each row anew: the write-back looks beside it
			f.environment(w, read, d)
			f.mu.Unlock()
			return pass(dog, chunk)
		}, func(w *instanceRow) error {
			f.mu.Lock()
			f.instance(w, read, now, d)
			f.mu.Unlock()
			return pass(dog, chunk) // a server with its record and heartbeats in one batch, so that its evidence is stored once
		})
	})
	// What was read is known from now on, so it is handed over even where the read broke off.
	if serr := s.send(d); err == nil {
		err = serr
	}
	return err
}

// vanished removes what a full read has not seen. A mass of it is believed when it is read twice.
func (l *readLoop) vanished(ctx context.Context, s *deltaSender) error {
	r, f := l.r, l.r.fleet
	rows, envs, servers := f.gone()
	strayRows, strayEnvs := l.strays()
	known, _, _ := f.known(nil)
	if vanished, of := servers+len(strayRows), known+len(strayRows); lost(vanished, of) {
		r.log.Warn("many servers have vanished from the database at once; it is read again before that is believed", "vanished", vanished, "of", of)
		pause := time.NewTimer(settleWait)
		defer pause.Stop()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pause.C:
		}
		if err := l.scan(ctx, s); err != nil {
			return err
		}
		rows, envs, _ = f.gone()
		strayRows, strayEnvs = l.strays()
	}
	s.wait() // a server that moved is told before its old environment goes
	d := &delta{}
	f.remove(rows, envs, d)
	d.update.RemovedServers = append(d.update.RemovedServers, strayRows...)
	d.update.RemovedEnvironments = append(d.update.RemovedEnvironments, strayEnvs...)
	if !l.primed && r.o.Known == nil {
		d.update.Full = true
		d.update.Servers, d.update.Environments = nil, nil
		return l.fullUpdate(ctx, s, d)
	}
	return s.send(d)
}

// strays lists what the receiver has from an earlier life and the database does not have any more.
func (l *readLoop) strays() (servers, envs []string) {
	r := l.r
	if l.primed || r.o.Known == nil {
		return nil, nil
	}
	has := func(list, of []string) []string {
		in := make(map[string]bool, len(of))
		for _, id := range of {
			in[id] = true
		}
		var out []string
		for _, id := range list {
			if !in[id] {
				out = append(out, id)
			}
		}
		return out
	}
	s, e := r.o.Known()
	return has(s, r.fleet.serversOf(s)), has(e, r.fleet.knownEnvironments(e))
}

// fullUpdate repeats all definitions with Full, by which the receiver removes what is not among them.
func (l *readLoop) fullUpdate(ctx context.Context, s *deltaSender, d *delta) error {
	f := l.r.fleet
	err := l.patiently(ctx, func(ctx context.Context, dog *watchdog) error {
		return l.read(dog.alive).all(ctx, func(w *environmentRow) error {
			if faultOfID(string(w.id)) == "" {
				e, _ := w.environment(f.o)
				d.update.Environments = append(d.update.Environments, e)
			}
			return nil
		}, func(w *instanceRow) error {
			if faultOfID(string(w.id)) == "" && w.typ != nil {
				i, _ := w.server(f.o.Origin)
				d.update.Servers = append(d.update.Servers, i)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	return s.send(d)
}

// some reads rows that a feed has told of.
func (l *readLoop) some(ctx context.Context, instances, envs []string) error {
	r, f := l.r, l.r.fleet
	read := f.begin(false)
	now := time.Now()
	d := &delta{}
	seen := make(map[string]struct{}, len(instances))
	seenEnvs := make(map[string]struct{}, len(envs))
	s := r.newSender(ctx, l.to, false)
	err := l.patiently(ctx, func(ctx context.Context, dog *watchdog) error {
		return l.read(dog.alive).some(ctx, instances, envs, func(w *environmentRow) error {
			seenEnvs[string(w.id)] = struct{}{}
			f.mu.Lock()
			f.environment(w, read, d)
			f.mu.Unlock()
			return nil
		}, func(w *instanceRow) error {
			f.mu.Lock()
			if f.instance(w, read, now, d) {
				seen[string(w.id)] = struct{}{}
			}
			f.mu.Unlock()
			if d.size() < 2*chunk {
				return nil
			}
			dog.hold()
			defer dog.alive()
			full := d
			d = &delta{}
			return s.send(full)
		})
	})
	if err == nil {
		total, rows, servers := f.known(missing(instances, seen))
		if lost(servers, total) {
			r.mail.Changed([]statussync.RowChange{{Table: tableInstances}}) // a full read judges that
		} else {
			f.remove(rows, f.knownEnvironments(missing(envs, seenEnvs)), d)
		}
	}
	serr := s.send(d)
	if _, ferr := s.finish(); serr == nil {
		serr = ferr
	}
	r.tellAgents()
	if err == nil && serr != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &observerError{serr}
	}
	return err
}

func missing(asked []string, seen map[string]struct{}) (out []string) {
	for _, id := range asked {
		if _, ok := seen[id]; !ok {
			out = append(out, id)
		}
	}
	return out
}

// echoes takes what the write-back has written, in the order of reads, so that the receiver's last word is always the row's.
func (l *readLoop) echoes(ctx context.Context, list []wordEcho) {
	obs, again := l.r.fleet.echoed(list)
	if len(again) > 0 {
		l.r.mail.again(again, nil)
		l.r.mail.nudge()
	}
	if len(obs) > 0 {
		if err := l.to.Observe(ctx, obs...); err != nil && ctx.Err() == nil {
			l.r.log.Debug("what was written back was not taken", "error", err)
		}
	}
}

func (l *readLoop) turned(m *letters) {
	r := l.r
	r.mu.Lock()
	was := r.feedLive
	r.feedLive, r.feedCause = m.live, ""
	if !m.live && m.cause != nil {
		r.feedCause = errorText(m.cause)
	}
	cause := r.feedCause
	r.mu.Unlock()
	switch {
	case m.live && !was:
		r.log.Info("changes are told as they happen")
	case !m.live && was:
		r.reconnects.Add(1)
		r.log.Warn("changes are not told any more; trying to follow them again", "error", cause)
	}
}

func (r *Registry) tellAgents() {
	if tokens, changed := r.fleet.agents(); changed && r.o.Agents != nil {
		r.o.Agents(tokens)
	}
}

func (r *Registry) shapeNow() *shape {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shape
}

func (r *Registry) setShape(s *shape) {
	r.mu.Lock()
	old := r.shape
	r.shape = s
	r.mu.Unlock()
	if old != nil && slices.Equal(old.missing, s.missing) {
		return
	}
	for _, m := range s.missing {
		r.log.Warn("the database lacks something; what needs it is left out", "missing", m)
	}
}

func (r *Registry) setCatching(catching bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if catching {
		r.catching = true
	}
}

func (r *Registry) synced(began time.Time, took time.Duration, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.catching, r.lastSync, r.syncTook = false, began.Add(took), took
	r.syncCount++
	if !since.IsZero() {
		r.lag = time.Since(since)
	}
}

func (r *Registry) setLag(since time.Time) {
	if since.IsZero() {
		return
	}
	r.mu.Lock()
	r.lag = time.Since(since)
	r.mu.Unlock()
}
