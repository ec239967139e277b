package postgres

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/agentopia/statussync"
)

const (
	// listenIdle is how long a listening connection may be silent before it is asked whether it is there, and
	// listenAnswer how long it may take to answer.
	listenIdle   = 2 * time.Second
	listenAnswer = 3 * time.Second
	// echoWait is how long a notification of our own may take: it goes through the server's queue, which a busy server
	// may hold up.
	echoWait = 5 * time.Second
	// hopelessWait is the longest pause where listening cannot work: triggers may be installed, a pooler may go.
	hopelessWait = 30 * time.Second
)

// The causes for which there is nothing to listen to, though the database answers.
var (
	errNoTrigger = errors.New("no trigger tells of changed rows; statussync migrate installs them")
	errNoEcho    = errors.New("notifications don't get through: LISTEN needs a direct connection or a pooler in session mode, not one in transaction mode")
)

// notifyFeed is the feed of NOTIFY on Channel. It has a connection of its own.
type notifyFeed struct {
	r      *Registry
	config *pgx.ConnConfig
	bad    uint64
}

// Run implements statussync.ChangeFeed.
func (l *notifyFeed) Run(ctx context.Context, to statussync.FeedReceiver) error {
	tries := 0
	for ctx.Err() == nil {
		began := time.Now()
		err := l.listen(ctx, to)
		if ctx.Err() != nil {
			return nil
		}
		to.Lost(err)
		if time.Since(began) > time.Minute {
			tries = 0
		}
		limit := retryMax
		if errors.Is(err, errNoTrigger) || errors.Is(err, errNoEcho) {
			limit = hopelessWait
			if l.r.o.Feed == FeedNotify && tries == 0 {
				l.r.log.Warn("feed: notify was asked for and cannot work here; rows are read again and again", "error", err, "every", l.r.o.Resync)
			}
		}
		wait := min(limit, retryFirst<<min(tries, 12))
		tries++
		pause := time.NewTimer(time.Duration(rand.Int64N(int64(wait)) + 1))
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
	return nil
}

// listen follows one connection until it is lost.
func (l *notifyFeed) listen(ctx context.Context, to statussync.FeedReceiver) error {
	connecting, cancel := context.WithTimeout(ctx, l.config.ConnectTimeout)
	conn, err := pgx.ConnectConfig(connecting, l.config.Copy())
	cancel()
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(end) // it is not needed any more, whatever it says
	}()
	exec := func(sql string) error {
		ctx, cancel := context.WithTimeout(ctx, listenAnswer)
		defer cancel()
		l.r.queries.Add(1)
		_, err := conn.Exec(ctx, sql)
		return err
	}
	if err := l.installed(ctx, conn); err != nil {
		return err
	}
	if err := exec("listen " + Channel); err != nil {
		return err
	}
	if err := l.hearsItself(ctx, conn, to); err != nil {
		return err
	}
	to.Live()
	looked := time.Now()
	for {
		wait, cancel := context.WithTimeout(ctx, listenIdle)
		n, err := conn.WaitForNotification(wait)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && n != nil:
			l.notified(n, to)
		case wait.Err() != nil && !conn.IsClosed() && time.Since(looked) >= l.r.o.Resync:
			if err := l.installed(ctx, conn); err != nil { // somebody may have removed the triggers
				return err
			}
			looked = time.Now()
		case wait.Err() != nil && !conn.IsClosed():
			if err := exec("select 1"); err != nil { // one that is frozen or behind a black hole says nothing
				return err
			}
		case err != nil:
			return err
		}
	}
}

// installed looks for the triggers of Migrate: without them nothing would ever be told.
func (l *notifyFeed) installed(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, listenAnswer)
	defer cancel()
	l.r.queries.Add(1)
	c, err := readCatalog(ctx, conn, l.r.o.Schema)
	if err != nil {
		return err
	}
	s, err := c.plan(false)
	if err != nil {
		return err
	}
	if !s.trigger {
		return errNoTrigger
	}
	return nil
}

// hearsItself sends a notification on another connection and waits for it. Through a pooler in transaction mode LISTEN
// succeeds and nothing ever comes.
func (l *notifyFeed) hearsItself(ctx context.Context, conn *pgx.Conn, to statussync.FeedReceiver) error {
	word := "statussync-echo " + strconv.FormatUint(rand.Uint64(), 36)
	ctx, cancel := context.WithTimeout(ctx, echoWait)
	defer cancel()
	l.r.queries.Add(1)
	if _, err := l.r.pool.Exec(ctx, "select pg_notify($1, $2)", Channel, word); err != nil {
		return err
	}
	for {
		n, err := conn.WaitForNotification(ctx)
		switch {
		case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) && !conn.IsClosed():
			return errNoEcho
		case err != nil:
			return err
		case n != nil && n.Payload == word:
			return nil
		case n != nil:
			l.notified(n, to)
		}
	}
}

// notified hands on what a notification tells.
func (l *notifyFeed) notified(n *pgconn.Notification, to statussync.FeedReceiver) {
	if n.Channel != Channel || len(n.Payload) > 16 && n.Payload[:16] == "statussync-echo " {
		return
	}
	p, err := ParseNotification(n.Payload)
	if err != nil {
		if l.bad++; l.bad&(l.bad-1) == 0 { // the 1st, 2nd, 4th, 8th, …
			l.r.log.Warn("a notification was not understood", "error", err, "so_far", l.bad)
		}
		return
	}
	to.Changed(p.Changes())
}
