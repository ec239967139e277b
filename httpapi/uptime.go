package httpapi

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Rollups is what this package needs of the counts of probes and of uptime. Its methods are safe for concurrent use. A
// window or step that is not allowed is CodeInvalid, located at window or step; a server of which nothing is known or
// stored is CodeNotFound, one that was removed is not.
type Rollups interface {
	// ServerUptime returns one server's uptime in the last window.
	ServerUptime(ctx context.Context, id string, window time.Duration) (statussync.Uptime, error)
	// Uptimes returns the uptime of each of these servers, in their order; unknown ones are no error.
	Uptimes(ctx context.Context, ids []string, window time.Duration) ([]statussync.Uptime, error)
	// TotalUptime returns the sums over these servers.
	TotalUptime(ctx context.Context, ids []string, window time.Duration) (statussync.Uptime, error)
	// Incidents returns incidents, the newest first, and whether others follow.
	Incidents(ctx context.Context, q statussync.IncidentQuery) ([]statussync.Incident, bool, error)
	// Timeline returns how one server's time was spent in the last window, as stretches.
	Timeline(ctx context.Context, id string, window time.Duration) (statussync.Timeline, error)
	// Probes returns what a server's probes gave; step 0 is the smallest that is allowed.
	Probes(ctx context.Context, id string, window, step time.Duration) (statussync.ProbeReport, error)
}

type uptimeListInput struct {
	Window         string                    `query:"window" default:"30d" doc:"How far back: Go's durations and d for days, at most 90d."`
	States         []statussync.State        `query:"states" enum:"running,stopped,starting,stopping,error,unknown" doc:"In any of these states now."`
	Healths        []statussync.Health       `query:"healths" enum:"healthy,degraded,unhealthy,unknown" doc:"Of any of these healths now."`
	Availability   []statussync.Availability `query:"availability" enum:"available,limited,unavailable,changing,off,unknown" doc:"Of any of these availabilities now."`
	EnvironmentIDs []string                  `query:"environment_ids" doc:"In any of these environments."`
	Label          []string                  `query:"label,explode" doc:"key=value; with several, all must match."`
	Q              string                    `query:"q" maxLength:"200" doc:"In id, name, endpoint or container, in any case."`
	Limit          int                       `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Cursor         string                    `query:"cursor" doc:"next_cursor of the page before."`
}

type uptimeInput struct {
	ID     string `path:"id"`
	Window string `query:"window" default:"30d" doc:"How far back: Go's durations and d for days, at most 90d."`
}

type incidentsInput struct {
	Window string `query:"window" default:"30d" doc:"Incidents that overlap it: Go's durations and d for days, at most 90d."`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Cursor string `query:"cursor" doc:"next_cursor of the page before."`
}

type serverIncidentsInput struct {
	ID     string `path:"id"`
	Window string `query:"window" default:"30d" doc:"Incidents that overlap it: Go's durations and d for days, at most 90d."`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Cursor string `query:"cursor" doc:"next_cursor of the page before."`
}

type probesInput struct {
	ID     string `path:"id"`
	Window string `query:"window" default:"24h" doc:"How far back: Go's durations and d for days, at most 90d. Beyond 48h it is made from hours."`
	Step   string `query:"step" example:"1m" doc:"A whole number of minutes; of hours where the window is longer than 48h. Default: 1m, or 1h."`
}

// uptimeRoutes mounts what Options.Rollups answers.
func (a *API) uptimeRoutes() {
	get := func(path, id, summary string) huma.Operation {
		return huma.Operation{Method: http.MethodGet, Path: wire.BasePath + path, OperationID: id, Tags: []string{"uptime"}, Summary: summary}
	}
	register(a, get("/uptime", "list-uptime", "Availability, incidents, MTTR and MTBF of servers, by id, and of all of them"), accessViewer, a.listUptime)
	register(a, get("/servers/{id}/uptime", "get-uptime", "Availability, incidents, MTTR and MTBF of one server"), accessViewer,
		func(ctx context.Context, in *uptimeInput) (*body[wire.Uptime], error) {
			window, err := durationParam("window", in.Window)
			if err != nil {
				return nil, err
			}
			u, err := a.opts.Rollups.ServerUptime(ctx, in.ID, window)
			if err != nil {
				return nil, inParam(err)
			}
			return &body[wire.Uptime]{wire.FromUptime(&u)}, nil
		})
	register(a, get("/incidents", "list-incidents", "Incidents of all servers, the newest first"), accessViewer,
		func(ctx context.Context, in *incidentsInput) (*body[wire.Page[wire.Incident]], error) {
			return a.incidents(ctx, "", in.Window, in.Limit, in.Cursor)
		})
	register(a, get("/servers/{id}/incidents", "get-incidents", "Incidents of one server, the newest first"), accessViewer,
		func(ctx context.Context, in *serverIncidentsInput) (*body[wire.Page[wire.Incident]], error) {
			return a.incidents(ctx, in.ID, in.Window, in.Limit, in.Cursor)
		})
	register(a, get("/servers/{id}/timeline", "get-timeline", "How one server's time was spent, as stretches of time"), accessViewer,
		func(ctx context.Context, in *uptimeInput) (*body[wire.Timeline], error) {
			window, err := durationParam("window", in.Window)
			if err != nil {
				return nil, err
			}
			t, err := a.opts.Rollups.Timeline(ctx, in.ID, window)
			if err != nil {
				return nil, inParam(err)
			}
			return &body[wire.Timeline]{wire.FromTimeline(&t)}, nil
		})
	register(a, get("/servers/{id}/probes", "get-probes", "What a server's probes gave, by steps of time"), accessViewer,
		func(ctx context.Context, in *probesInput) (*body[wire.ProbeReport], error) {
			window, err := durationParam("window", in.Window)
			if err != nil {
				return nil, err
			}
			var step time.Duration
			if in.Step != "" {
				if step, err = durationParam("step", in.Step); err != nil {
					return nil, err
				}
			}
			r, err := a.opts.Rollups.Probes(ctx, in.ID, window, step)
			if err != nil {
				return nil, inParam(err)
			}
			return &body[wire.ProbeReport]{wire.FromProbeReport(&r)}, nil
		})
}

func (a *API) listUptime(ctx context.Context, in *uptimeListInput) (*body[wire.UptimePage], error) {
	window, err := durationParam("window", in.Window)
	if err != nil {
		return nil, err
	}
	q, err := a.serverQuery(ctx, in.Q, in.Limit, in.Cursor)
	if err != nil {
		return nil, err
	}
	views, more, at := a.opts.Hub.Servers(q)
	ids := make([]string, len(views))
	for i := range views {
		ids[i] = views[i].Server.ID
	}
	list, err := a.opts.Rollups.Uptimes(ctx, ids, window)
	if err != nil {
		return nil, inParam(err)
	}
	out := wire.UptimePage{Items: wire.FromUptimes(list), Cursor: at.String()}
	if more && len(ids) > 0 {
		out.NextCursor = afterPrefix + ids[len(ids)-1]
	}
	if in.Cursor != "" {
		return &body[wire.UptimePage]{out}, nil
	}
	var total statussync.Uptime
	if !more {
		for i := range list {
			total.Add(&list[i])
		}
	} else {
		for q.Limit = maxLimit; more; {
			q.After = ids[len(ids)-1]
			if views, more, _ = a.opts.Hub.Servers(q); len(views) == 0 {
				break
			}
			for i := range views {
				ids = append(ids, views[i].Server.ID)
			}
		}
		if total, err = a.opts.Rollups.TotalUptime(ctx, ids, window); err != nil {
			return nil, inParam(err)
		}
	}
	if total.Servers > 0 {
		t := wire.FromUptimeTotal(&total)
		out.Total = &t
	}
	return &body[wire.UptimePage]{out}, nil
}

func (a *API) incidents(ctx context.Context, id, last string, limit int, cursor string) (*body[wire.Page[wire.Incident]], error) {
	window, err := durationParam("window", last)
	if err != nil {
		return nil, err
	}
	q := statussync.IncidentQuery{ServerID: id, Window: window, Limit: limitParam(limit)}
	if q.After, err = incidentParam(cursor); err != nil {
		return nil, err
	}
	list, more, err := a.opts.Rollups.Incidents(ctx, q)
	if err != nil {
		return nil, inParam(err)
	}
	out := wire.Page[wire.Incident]{Items: wire.FromIncidents(list)}
	if more {
		end := &list[len(list)-1]
		out.NextCursor = afterPrefix + strconv.FormatInt(end.Begin.UnixMilli(), 10) + ":" + end.ServerID
	}
	return &body[wire.Page[wire.Incident]]{out}, nil
}

// incidentParam reads the next_cursor of a list of incidents: begin and server of its last.
func incidentParam(cursor string) (*statussync.Incident, error) {
	at, err := afterParam(cursor)
	if err != nil || at == "" {
		return nil, err
	}
	num, id, ok := strings.Cut(at, ":")
	ms, err := strconv.ParseInt(num, 10, 64)
	if !ok || err != nil || id == "" {
		return nil, statussync.Invalid("query.cursor", "is not the next_cursor of an earlier page")
	}
	return &statussync.Incident{ServerID: id, Begin: time.UnixMilli(ms)}, nil
}

func durationParam(name, s string) (time.Duration, error) {
	d, err := wire.ParseDuration(s)
	if err != nil {
		return 0, statussync.Invalid("query."+name, wire.Detail(err))
	}
	return d, nil
}

// inParam moves an error about a parameter's value to the parameter.
func inParam(err error) error {
	if e, ok := err.(*statussync.Error); ok && (e.Location == "window" || e.Location == "step") {
		moved := *e
		moved.Location = "query." + e.Location
		return &moved
	}
	return err
}
