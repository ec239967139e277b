package mcpserver

import (
	"context"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Hub is what FromHub needs of the running service; its methods are httpapi.Hub's of the same names.
type Hub interface {
	Subscribe(ctx context.Context, r statussync.SubscribeRequest) (statussync.Subscription, error)
	Server(id string) (statussync.ServerView, error)
	Servers(q statussync.ServerQuery) ([]statussync.ServerView, bool, statussync.Cursor)
	Explain(ctx context.Context, id string) (statussync.Explanation, error)
	History(ctx context.Context, q statussync.HistoryQuery) ([]statussync.Encoded, error)
	CheckNow(ctx context.Context, id string) (statussync.ProbeResult, statussync.ServerView, error)
	SetOverride(ctx context.Context, id string, o statussync.Override) (statussync.ServerView, error)
	ClearOverride(ctx context.Context, id, actor string) (statussync.ServerView, error)
	Now() time.Time
}

// FromHub returns the Service of a hub in this process.
func FromHub(h Hub) Service { return hubService{h} }

type hubService struct{ h Hub }

func (s hubService) Servers(_ context.Context, q statussync.ServerQuery, cursor string) (items []wire.Server, next string, err error) {
	q.After = cursor // the last id of the page before
	views, more, _ := s.h.Servers(q)
	if more {
		next = views[len(views)-1].Server.ID
	}
	return wire.FromServers(views), next, nil
}

func (s hubService) Explain(ctx context.Context, id string) (*wire.Explain, error) {
	x, err := s.h.Explain(ctx, id)
	if err != nil {
		return nil, err
	}
	w := wire.FromExplanation(&x)
	return &w, nil
}

func (s hubService) History(ctx context.Context, id string, hours float64, limit int) ([]*statussync.Entry, error) {
	list, err := s.h.History(ctx, statussync.HistoryQuery{
		ServerID: id, From: s.h.Now().Add(-time.Duration(hours * float64(time.Hour))), Limit: limit,
	})
	if err != nil {
		return nil, err
	}
	if len(list) == 0 { // a removed server still has a history; one that never was has neither
		if _, err := s.h.Server(id); err != nil {
			return nil, err
		}
	}
	out := make([]*statussync.Entry, len(list))
	for i := range list {
		out[i] = list[i].Entry
	}
	return out, nil
}

func (s hubService) Probe(ctx context.Context, id string) (*wire.ProbeResult, error) {
	r, v, err := s.h.CheckNow(ctx, id)
	if err != nil {
		return nil, err
	}
	w := wire.FromProbe(id, &r, &v)
	return &w, nil
}

func (s hubService) SetOverride(ctx context.Context, id string, o wire.OverrideRequest, actor string) (*wire.Status, error) {
	set := statussync.Override{State: o.State, Health: o.Health, Note: statussync.CleanText(o.Note, statussync.MaxNoteLen), Actor: actor}
	now := s.h.Now()
	if o.ExpiresIn != "" {
		d, err := wire.ParseDuration(o.ExpiresIn)
		if err != nil {
			return nil, statussync.Invalid("expires_in", "is no duration such as 30m, 2h or 1d")
		}
		set.ExpiresAt = now.Add(d)
	}
	if err := set.Complete(now); err != nil {
		return nil, err
	}
	return status(s.h.SetOverride(ctx, id, set))
}

func (s hubService) ClearOverride(ctx context.Context, id, actor string) (*wire.Status, error) {
	return status(s.h.ClearOverride(ctx, id, actor))
}

func status(v statussync.ServerView, err error) (*wire.Status, error) {
	if err != nil {
		return nil, err
	}
	w := wire.FromStatus(&v.Status, v.Now)
	return &w, nil
}

// Watched returns the kinds of entries after which a server's status or being is another.
func Watched() []statussync.Kind {
	return []statussync.Kind{statussync.KindStatus, statussync.KindServerAdded, statussync.KindServerChanged, statussync.KindServerRemoved}
}

func (s hubService) Watch(ctx context.Context, ids []string, changed func([]string) bool) error {
	var clause statussync.Clause
	clause.Kinds, clause.ServerIDs = Watched(), ids
	sub, err := s.h.Subscribe(ctx, statussync.SubscribeRequest{Filter: statussync.Filter{Clauses: []statussync.Clause{clause}}, Mode: statussync.ModeEvery})
	if err != nil {
		return err
	}
	defer sub.Close()
	buf := make([]statussync.Event, 0, 256)
	for {
		events, err := sub.Next(ctx, buf[:0])
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var named []string
		anew := false
		for _, ev := range events {
			switch ev.Type {
			case statussync.EventEntry:
				named = append(named, ev.Entry.ServerID)
			default: // where it begins, or begins anew
				anew = true
			}
		}
		if anew {
			named = nil
		} else if len(named) == 0 {
			continue
		}
		if !changed(named) {
			return nil
		}
	}
}
