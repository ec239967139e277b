package client

import (
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Backup takes a backup of the running service, which needs the role admin, and returns it as a stream, and its size in
// bytes. The caller closes it; it must be read within ctx, which should have no short deadline. Whether it is whole tells
// only the check of its content. CodeConflict: another backup is being taken.
func (c *Client) Backup(ctx context.Context) (io.ReadCloser, int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.endpoint(wire.PathBackup, nil), nil)
	if err != nil {
		return nil, 0, statussync.Invalid("request", err.Error())
	}
	c.setHeaders(req.Header)
	req.Header.Set("Accept", "application/x-tar, application/problem+json")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, 0, c.unreachable(ctx, err)
	}
	ctype, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch {
	case resp.StatusCode != http.StatusOK:
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
		if err != nil {
			return nil, 0, c.unreachable(ctx, err)
		}
		return nil, 0, c.refusal(resp, b)
	case ctype != "application/x-tar" || resp.ContentLength < 0:
		resp.Body.Close()
		return nil, 0, c.notService(fmt.Errorf("something answered with content type %q, which is not a backup of the statussync service", statussync.CleanText(ctype, statussync.MaxWordText)))
	}
	return &reachable{resp.Body, c, ctx}, resp.ContentLength, nil
}

// reachable is a body whose errors say that the service was lost.
type reachable struct {
	io.ReadCloser
	c   *Client
	ctx context.Context
}

func (r *reachable) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = r.c.unreachable(r.ctx, err)
	}
	return n, err
}
