package client

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// ServerQuery selects servers. Empty fields select all; fields combine with "and", the words of one with "or", labels
// with "and".
type ServerQuery struct {
	States         []statussync.State
	Healths        []statussync.Health
	Availabilities []statussync.Availability
	EnvironmentIDs []string
	Labels         map[string]string
	Text           string // case-insensitive, in id, name, endpoint, container
	Limit          int    // of one page; 0: as the service decides
	Cursor         string // NextCursor of the page before; empty: the first page
}

func (q *ServerQuery) values() url.Values {
	v := make(url.Values)
	setList(v, "states", q.States)
	setList(v, "healths", q.Healths)
	setList(v, "availability", q.Availabilities)
	setList(v, "environment_ids", q.EnvironmentIDs)
	setLabels(v, q.Labels)
	setText(v, "q", q.Text)
	setPage(v, q.Limit, q.Cursor)
	return v
}

func setList[T ~string](v url.Values, key string, list []T) {
	if len(list) == 0 {
		return
	}
	parts := make([]string, len(list))
	for i, s := range list {
		parts[i] = string(s)
	}
	v.Set(key, strings.Join(parts, ","))
}

func setLabels(v url.Values, labels map[string]string) {
	for k, val := range labels {
		v.Add("label", k+"="+val)
	}
	slices.Sort(v["label"])
}

func setText(v url.Values, key, s string) {
	if s != "" {
		v.Set(key, s)
	}
}

func setPage(v url.Values, limit int, cursor string) {
	if limit > 0 {
		v.Set("limit", strconv.Itoa(limit))
	}
	setText(v, "cursor", cursor)
}

func serverPath(id, rest string) string {
	return wire.BasePath + "/servers/" + url.PathEscape(id) + rest
}

// Servers returns one page of the servers that q selects, by id, each with its status.
func (c *Client) Servers(ctx context.Context, q ServerQuery) (*wire.Page[wire.Server], error) {
	return get[wire.Page[wire.Server]](ctx, c, wire.BasePath+"/servers", q.values())
}

// AllServers yields all servers that q selects, page by page. Pages are read one after the other, so a server that is
// added or removed meanwhile may or may not be among them. After an error it stops.
func (c *Client) AllServers(ctx context.Context, q ServerQuery) iter.Seq2[wire.Server, error] {
	return pages(q.Cursor, func(cursor string) (*wire.Page[wire.Server], error) {
		q.Cursor = cursor
		return c.Servers(ctx, q)
	})
}

// Server returns one server with its status.
func (c *Client) Server(ctx context.Context, id string) (*wire.Server, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return get[wire.Server](ctx, c, serverPath(id, ""), nil)
}

// Status returns one server's status.
func (c *Client) Status(ctx context.Context, id string) (*wire.Status, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return get[wire.Status](ctx, c, serverPath(id, "/status"), nil)
}

// Explain returns one server's status with all its evidence and what every rule made of it.
func (c *Client) Explain(ctx context.Context, id string) (*wire.Explain, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return get[wire.Explain](ctx, c, serverPath(id, "/status"), url.Values{"explain": {"true"}})
}

// Environments returns one page of the environments, by id.
func (c *Client) Environments(ctx context.Context, limit int, cursor string) (*wire.Page[wire.Environment], error) {
	v := make(url.Values)
	setPage(v, limit, cursor)
	return get[wire.Page[wire.Environment]](ctx, c, wire.BasePath+"/environments", v)
}

// AllEnvironments yields all environments, page by page. After an error it stops.
func (c *Client) AllEnvironments(ctx context.Context) iter.Seq2[wire.Environment, error] {
	return pages("", func(cursor string) (*wire.Page[wire.Environment], error) { return c.Environments(ctx, 0, cursor) })
}

// Environment returns one environment with what its agent told last.
func (c *Client) Environment(ctx context.Context, id string) (*wire.Environment, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return get[wire.Environment](ctx, c, wire.BasePath+"/environments/"+url.PathEscape(id), nil)
}

// Discovered returns one page of the containers that agents listed and no server claims.
func (c *Client) Discovered(ctx context.Context, limit int, cursor string) (*wire.Page[wire.Discovered], error) {
	v := make(url.Values)
	setPage(v, limit, cursor)
	return get[wire.Page[wire.Discovered]](ctx, c, wire.BasePath+"/discovered", v)
}

// Probe checks one server now and returns what that gave, with the status that followed. It blocks until the probe has
// ended; a probe that is under way is shared.
func (c *Client) Probe(ctx context.Context, id string) (*wire.ProbeResult, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return send[wire.ProbeResult](ctx, c, ProbeTimeout, http.MethodPost, serverPath(id, "/probe"), nil)
}

// ProbeAll checks all servers now and returns what that gave. It blocks until every probe has ended.
func (c *Client) ProbeAll(ctx context.Context) (*wire.ProbeResults, error) {
	return send[wire.ProbeResults](ctx, c, ProbeTimeout, http.MethodPost, wire.BasePath+"/probes", nil)
}

// SetOverride replaces a server's conclusion by a person's word until it expires, and returns the status that followed.
func (c *Client) SetOverride(ctx context.Context, id string, o wire.OverrideRequest) (*wire.Status, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return send[wire.Status](ctx, c, DefaultTimeout, http.MethodPut, serverPath(id, "/override"), o)
}

// ClearOverride ends a server's override and returns the status that followed.
func (c *Client) ClearOverride(ctx context.Context, id string) (*wire.Status, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return send[wire.Status](ctx, c, DefaultTimeout, http.MethodDelete, serverPath(id, "/override"), nil)
}

// HistoryQuery selects entries of one server.
type HistoryQuery struct {
	Hours  int    // how far back; 0: as the service decides (24)
	Limit  int    // of one page; 0: as the service decides
	Cursor string // NextCursor of the page before; empty: the newest
}

// History returns one page of a server's entries, newest first.
func (c *Client) History(ctx context.Context, id string, q HistoryQuery) (*wire.Page[*statussync.Entry], error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	v := make(url.Values)
	if q.Hours > 0 {
		v.Set("hours", strconv.Itoa(q.Hours))
	}
	setPage(v, q.Limit, q.Cursor)
	return get[wire.Page[*statussync.Entry]](ctx, c, serverPath(id, "/history"), v)
}

// AllHistory yields a server's entries, newest first, page by page. After an error it stops.
func (c *Client) AllHistory(ctx context.Context, id string, q HistoryQuery) iter.Seq2[*statussync.Entry, error] {
	return pages(q.Cursor, func(cursor string) (*wire.Page[*statussync.Entry], error) {
		q.Cursor = cursor
		return c.History(ctx, id, q)
	})
}

// UpdatesQuery selects entries of the journal as a subscription would: what is given must match.
type UpdatesQuery struct {
	After  statussync.Cursor // only entries after it; zero: from the oldest that is kept
	Clause statussync.Clause
	Leave  bool // as Filter.Leave
	Limit  int  // 0: as the service decides
}

// Updates returns one page of the journal, oldest first. Its NextCursor, or where there is none its Cursor, is the next
// After. The error has code CodeExpired where retention has passed After, or it is of another epoch.
func (c *Client) Updates(ctx context.Context, q UpdatesQuery) (*wire.Page[*statussync.Entry], error) {
	return get[wire.Page[*statussync.Entry]](ctx, c, wire.BasePath+"/updates", q.values())
}

// RawUpdates is Updates with each entry as the bytes that the journal holds.
func (c *Client) RawUpdates(ctx context.Context, q UpdatesQuery) (*wire.Page[json.RawMessage], error) {
	return get[wire.Page[json.RawMessage]](ctx, c, wire.BasePath+"/updates", q.values())
}

func (q *UpdatesQuery) values() url.Values {
	v := make(url.Values)
	setText(v, "after", q.After.String())
	setText(v, "type", string(q.Clause.Type))
	setList(v, "kinds", q.Clause.Kinds)
	setList(v, "server_ids", q.Clause.ServerIDs)
	setList(v, "environment_ids", q.Clause.EnvironmentIDs)
	setList(v, "states", q.Clause.States)
	setList(v, "healths", q.Clause.Healths)
	setLabels(v, q.Clause.Labels)
	if q.Leave {
		v.Set("leave", "true")
	}
	setPage(v, q.Limit, "")
	return v
}

// SyncMetrics returns the service's own numbers.
func (c *Client) SyncMetrics(ctx context.Context) (*wire.Metrics, error) {
	return get[wire.Metrics](ctx, c, wire.BasePath+"/sync/metrics", nil)
}

// Ready returns whether the service can do all that it promises. That it can't is an answer, not an error. Without a
// credential it has no details.
func (c *Client) Ready(ctx context.Context) (*wire.Ready, error) {
	out := new(wire.Ready)
	if err := c.call(ctx, DefaultTimeout, http.MethodGet, "/readyz", nil, nil, out, http.StatusServiceUnavailable); err != nil {
		return nil, err
	}
	return out, nil
}

// Version returns the version of the service's program; empty where it tells that only to those with a credential.
func (c *Client) Version(ctx context.Context) (string, error) {
	r, err := c.Ready(ctx)
	if err != nil {
		return "", err
	}
	return statussync.CleanText(r.Version, statussync.MaxWordText), nil
}

func get[T any](ctx context.Context, c *Client, path string, q url.Values) (*T, error) {
	out := new(T)
	if err := c.call(ctx, DefaultTimeout, http.MethodGet, path, q, nil, out); err != nil {
		return nil, err
	}
	return out, nil
}

func send[T any](ctx context.Context, c *Client, timeout time.Duration, method, path string, in any) (*T, error) {
	out := new(T)
	if err := c.call(ctx, timeout, method, path, nil, in, out); err != nil {
		return nil, err
	}
	return out, nil
}

// pages yields the items of one page after the other, from the one at cursor on.
func pages[T any](cursor string, next func(cursor string) (*wire.Page[T], error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		cursor := cursor
		for {
			p, err := next(cursor)
			if err == nil && p.NextCursor != "" && p.NextCursor == cursor {
				err = errors.New("the service answered a page that leads to itself")
			}
			if err != nil {
				var zero T
				yield(zero, err)
				return
			}
			for _, item := range p.Items {
				if !yield(item, nil) {
					return
				}
			}
			if p.NextCursor == "" {
				return
			}
			cursor = p.NextCursor
		}
	}
}

// checkID refuses what would make another path of the request: no id is empty or a dot.
func checkID(id string) error {
	if id == "" || id == "." || id == ".." {
		return statussync.Invalid("id", strconv.Quote(id)+" is no id")
	}
	return nil
}
