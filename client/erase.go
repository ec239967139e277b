package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

const (
	// EraseTimeout is how long Erase waits at most where its context has no deadline: the service reads its whole store and
	// writes it anew.
	EraseTimeout = 30 * time.Minute
	erasePoll    = 500 * time.Millisecond
	// eraseAsk bounds one question: connections wait while the service erases, or a proxy before it answers for it.
	eraseAsk = 10 * time.Second
)

// StartErase has the service forget a person, which needs the role admin. It returns when that was accepted, with
// wire.ErasureRunning: the service then stops, erases, and starts again. A dry run is done when it returns.
// CodeConflict: another erasure, a backup or a restart is under way.
func (c *Client) StartErase(ctx context.Context, r wire.EraseRequest) (*wire.Erasure, error) {
	return send[wire.Erasure](ctx, c, EraseTimeout, http.MethodPost, wire.PathErase, r)
}

// Erasure returns how an erasure stands. CodeNotFound: the service's process does not know it; it remembers the newest
// few of its own.
func (c *Client) Erasure(ctx context.Context, id string) (*wire.Erasure, error) {
	return get[wire.Erasure](ctx, c, wire.PathErase+"/"+url.PathEscape(id), nil)
}

// Erase is StartErase that blocks until the erasure is over, and asks again through the time in which the service is away.
// The error has the code with which the erasure failed.
func (c *Client) Erase(ctx context.Context, r wire.EraseRequest) (*wire.EraseReport, error) {
	if _, has := ctx.Deadline(); !has {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, EraseTimeout, &UnreachableError{BaseURL: c.BaseURL(), Err: errors.New("the erasure did not end in time; it may still go on")})
		defer cancel()
	}
	e, err := c.StartErase(ctx, r)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(erasePoll)
	defer tick.Stop()
	for e.Status == wire.ErasureRunning {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
		once, cancel := context.WithTimeout(ctx, eraseAsk)
		now, err := c.Erasure(once, e.ID)
		late := once.Err() != nil
		cancel()
		var away *UnreachableError
		switch code := statussync.CodeOf(err); {
		case err == nil:
			e = now
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case late, errors.As(err, &away), code == statussync.CodeUnavailable, code == statussync.CodeRateLimited:
			// It is on its way.
		case code == statussync.CodeNotFound:
			return nil, statussync.NewError(statussync.CodeUnavailable, "the service was started anew meanwhile and does not know how the erasure ended; ask for it again: what is done already stays done", err)
		default:
			return nil, err
		}
	}
	switch {
	case e.Status == wire.ErasureDone && e.Report != nil:
		return e.Report, nil
	case e.Error != nil:
		code := statussync.Code(statussync.CleanText(string(e.Error.Code), statussync.MaxWordText))
		return nil, &statussync.Error{Code: code, Detail: statussync.CleanText(e.Error.Detail, maxDetail), Err: &Problem{Status: wire.HTTPStatus(code)}}
	}
	return nil, c.notService(errors.New("the answer is not what the statussync service sends: an erasure that is over has a report or an error"))
}
