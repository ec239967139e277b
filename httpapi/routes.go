package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// access is what a route wants of a request before its handler is called.
type access uint8

const (
	accessOpen     access = iota // nothing
	accessOptional               // a credential, where there is one, must be good
	accessSelf                   // the handler has its own rules: heartbeats, WebSockets
	accessViewer
	accessOperator
	accessAdmin
)

// Keys of huma.Operation.Metadata.
const (
	metaAccess  = "access"
	metaTimeout = "timeout" // time.Duration that the handler may take; the default is answerTimeout
)

// adapter lets huma mount its operations through API.mount.
type adapter struct{ a *API }

// Handle implements huma.Adapter.
func (d adapter) Handle(op *huma.Operation, h func(huma.Context)) {
	d.a.mount(op, func(w http.ResponseWriter, r *http.Request) { h(humago.NewContext(op, r, w)) })
}

// ServeHTTP implements huma.Adapter.
func (d adapter) ServeHTTP(w http.ResponseWriter, r *http.Request) { d.a.ServeHTTP(w, r) }

// mount is the one place where routes get onto the mux: each with its guard.
func (a *API) mount(op *huma.Operation, h http.HandlerFunc) {
	need, _ := op.Metadata[metaAccess].(access)
	timeout, _ := op.Metadata[metaTimeout].(time.Duration)
	pattern := op.Method + " " + op.Path
	if !op.Hidden {
		a.patterns = append(a.patterns, pattern)
	}
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := a.enter(r, need); err != nil {
			a.fail(w, r, err)
			return
		}
		if timeout > 0 {
			rc := http.NewResponseController(w)
			_ = rc.SetWriteDeadline(time.Now().Add(timeout + answerTimeout)) // no deadlines: nothing to extend
			_ = rc.SetReadDeadline(time.Now().Add(timeout + answerTimeout))
			ctx, cancel := context.WithTimeout(r.Context(), timeout)
			defer cancel()
			r = r.WithContext(ctx)
		}
		h(w, r)
	})
}

// raw mounts a handler that huma does not call, and describes it unless it is hidden.
func (a *API) raw(op huma.Operation, need access, h http.HandlerFunc) {
	op.Metadata = map[string]any{metaAccess: need}
	a.secure(&op, need)
	if !op.Hidden {
		a.huma.OpenAPI().AddOperation(&op)
	}
	a.mount(&op, h)
}

// secure notes in the description that an operation needs a token.
func (a *API) secure(op *huma.Operation, need access) {
	switch need {
	case accessOpen:
	case accessOptional:
		op.Security = []map[string][]string{{}, {"token": {}}, {"session": {}}}
	case accessSelf:
		op.Security = []map[string][]string{{"token": {}}}
	default:
		op.Security = []map[string][]string{{"token": {}}, {"session": {}}}
	}
}

// register mounts an operation with huma: parameters and body are checked before h is called, and h's errors become
// problems.
func register[I, O any](a *API, op huma.Operation, need access, h func(context.Context, *I) (*O, error)) {
	if op.Metadata == nil {
		op.Metadata = map[string]any{}
	}
	op.Metadata[metaAccess] = need
	op.RejectUnknownQueryParameters = true // a misspelt filter must not silently match everything
	a.secure(&op, need)
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := h(ctx, in)
		if err != nil {
			return nil, a.toProblem(ctx, err)
		}
		return out, nil
	})
}

// enter checks who sent r and, for what changes something, how often and in what form.
func (a *API) enter(r *http.Request, need access) error {
	if need == accessOpen || need == accessSelf {
		return nil
	}
	cred, err := a.authenticate(r)
	if err != nil {
		return err
	}
	requestOf(r).cred = cred
	if need == accessOptional {
		return nil
	}
	if err := a.permit(cred, need); err != nil {
		if cred == nil && len(r.CookiesNamed(SessionCookie)) > 0 {
			return errSessionEnded
		}
		return err
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil
	}
	if err := checkJSON(r); err != nil {
		return err
	}
	return a.limits.command(cred.Name, a.limitsOf(cred).CommandsPerSecond)
}

// permit checks a credential, which may be nil, against what is needed.
func (a *API) permit(cred *Credential, need access) error {
	want := RoleViewer
	switch need {
	case accessOperator:
		want = RoleOperator
	case accessAdmin:
		want = RoleAdmin
	}
	switch {
	case cred == nil && a.set.Load().openLoopback:
		return statussync.NewError(statussync.CodeUnauthorized, "this service has no tokens configured and serves only its own machine", nil)
	case cred == nil:
		return statussync.NewError(statussync.CodeUnauthorized, "a token is needed: Authorization: Bearer <token>", nil)
	case cred.Role.rank() < want.rank():
		return statussync.NewError(statussync.CodeForbidden, fmt.Sprintf("this needs the role %s; the token %q has %s", want, cred.Name, cred.Role), nil)
	}
	return nil
}

// encoded is an entry's JSON as it is; its schema is wire.Update's.
type encoded []byte

// MarshalJSON implements json.Marshaler.
func (e encoded) MarshalJSON() ([]byte, error) { return e, nil }

// Schema implements huma.SchemaProvider.
func (encoded) Schema(r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[wire.Update](), true, "Update")
}

func encodedOf(list []statussync.Encoded) []encoded {
	out := make([]encoded, len(list))
	for i := range list {
		out[i] = list[i].JSON
	}
	return out
}

type body[T any] struct{ Body T }

type empty struct{}

type idInput struct {
	ID string `path:"id" doc:"The server's id."`
}

type serversInput struct {
	States         []statussync.State        `query:"states" enum:"running,stopped,starting,stopping,error,unknown" doc:"Any of these states."`
	Healths        []statussync.Health       `query:"healths" enum:"healthy,degraded,unhealthy,unknown" doc:"Any of these healths."`
	Availability   []statussync.Availability `query:"availability" enum:"available,limited,unavailable,changing,off,unknown" doc:"Any of these availabilities."`
	EnvironmentIDs []string                  `query:"environment_ids" doc:"In any of these environments."`
	Label          []string                  `query:"label,explode" doc:"key=value; with several, all must match."`
	Q              string                    `query:"q" maxLength:"200" doc:"In id, name, endpoint or container, in any case."`
	Limit          int                       `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Cursor         string                    `query:"cursor" doc:"next_cursor of the page before."`
}

type pageInput struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Cursor string `query:"cursor" doc:"next_cursor of the page before."`
}

type statusInput struct {
	ID      string `path:"id"`
	Explain bool   `query:"explain" doc:"Also tell every piece of evidence, and every rule with what it gave."`
}

type overrideInput struct {
	ID   string `path:"id"`
	Body wire.OverrideRequest
}

type historyInput struct {
	ID     string  `path:"id"`
	Hours  float64 `query:"hours" default:"24" exclusiveMinimum:"0" maximum:"87600" doc:"How far back."`
	Limit  int     `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Cursor string  `query:"cursor" doc:"next_cursor of the page before."`
}

type updatesInput struct {
	After          string                `query:"after" example:"e7:41" doc:"Entries after this position; without it from the oldest that is kept."`
	Limit          int                   `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Type           statussync.FilterType `query:"type" enum:"status_change,health_change,error_state,recovery"`
	Kinds          []statussync.Kind     `query:"kinds" doc:"Kinds of entries; default status and server_removed."`
	ServerIDs      []string              `query:"server_ids"`
	EnvironmentIDs []string              `query:"environment_ids"`
	States         []statussync.State    `query:"states" enum:"running,stopped,starting,stopping,error,unknown"`
	Healths        []statussync.Health   `query:"healths" enum:"healthy,degraded,unhealthy,unknown"`
	Label          []string              `query:"label,explode" doc:"key=value; with several, all must match."`
	Leave          bool                  `query:"leave" doc:"Also what left the states or healths that are listed."`
}

type readyOutput struct {
	Status int
	Body   wire.Ready
}

type healthz struct {
	Status string `json:"status" enum:"alive"`
}

// routes mounts everything. After it the mux and the description don't change.
func (a *API) routes() error {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	registry.RegisterTypeAlias(reflect.TypeFor[wire.Time](), reflect.TypeFor[time.Time]())
	format := huma.Format{
		Marshal:   huma.DefaultJSONFormat.Marshal,
		Unmarshal: json.Unmarshal,
	}
	var servers []*huma.Server
	if a.opts.BasePath != "" {
		servers = []*huma.Server{{URL: a.opts.BasePath}}
	}
	a.huma = huma.NewAPI(huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0", Servers: servers,
			Info: &huma.Info{
				Title: "statussync", Version: cmp.Or(a.opts.Version, "0"),
				Description: "The true status of a fleet of MCP servers. Errors are RFC 9457 problems with a code. " +
					"Where the service has tokens, calls need one: `Authorization: Bearer …`; its role (viewer, operator, admin) says which calls are allowed.",
			},
			Components: &huma.Components{
				Schemas: registry,
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"token": {Type: "http", Scheme: "bearer"}, "session": {Type: "apiKey", In: "cookie", Name: SessionCookie, Description: "What POST /api/v1/session sets."},
				},
			},
		},
		// The document is rendered once, below: huma's own handlers render it at the first request, without a lock.
		Formats:       map[string]huma.Format{"application/json": format, "json": format},
		DefaultFormat: "application/json",
		Transformers:  []huma.Transformer{a.transform},
	}, adapter{a})

	op := func(method, path, id, tag, summary string) huma.Operation {
		return huma.Operation{Method: method, Path: path, OperationID: id, Tags: []string{tag}, Summary: summary}
	}
	get := func(path, id, tag, summary string) huma.Operation { return op(http.MethodGet, path, id, tag, summary) }

	register(a, get(wire.BasePath+"/servers", "list-servers", "servers", "Servers with their status, by id"), accessViewer, a.listServers)
	register(a, get(wire.BasePath+"/servers/{id}", "get-server", "servers", "One server with its status"), accessViewer,
		func(_ context.Context, in *idInput) (*body[wire.Server], error) {
			v, err := a.opts.Hub.Server(in.ID)
			if err != nil {
				return nil, err
			}
			return &body[wire.Server]{wire.FromServer(&v)}, nil
		})
	register(a, get(wire.BasePath+"/servers/{id}/status", "get-status", "servers", "The status, and on request how it came about"), accessViewer, a.getStatus)
	register(a, op(http.MethodPut, wire.BasePath+"/servers/{id}/override", "set-override", "servers", "Put a person's word over the status until it expires"), accessOperator, a.setOverride)
	register(a, op(http.MethodDelete, wire.BasePath+"/servers/{id}/override", "clear-override", "servers", "End an override"), accessOperator,
		func(ctx context.Context, in *idInput) (*body[wire.Status], error) {
			v, err := a.opts.Hub.ClearOverride(ctx, in.ID, requestIn(ctx).cred.Name)
			return statusOf(v, err)
		})
	probeOne := op(http.MethodPost, wire.BasePath+"/servers/{id}/probe", "probe-server", "servers", "Probe one server now")
	probeOne.Metadata = map[string]any{metaTimeout: 90 * time.Second}
	register(a, probeOne, accessOperator, func(ctx context.Context, in *idInput) (*body[wire.ProbeResult], error) {
		res, v, err := a.opts.Hub.CheckNow(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		return &body[wire.ProbeResult]{wire.FromProbe(in.ID, &res, &v)}, nil
	})
	probeAll := op(http.MethodPost, wire.BasePath+"/probes", "probe-all", "servers", "Probe all servers now")
	probeAll.Metadata = map[string]any{metaTimeout: 3 * time.Minute}
	register(a, probeAll, accessOperator, a.probeAll)

	register(a, get(wire.BasePath+"/environments", "list-environments", "environments", "Hosts with their agent, by id"), accessViewer, a.listEnvironments)
	register(a, get(wire.BasePath+"/environments/{id}", "get-environment", "environments", "One host with its agent"), accessViewer,
		func(_ context.Context, in *idInput) (*body[wire.Environment], error) {
			v, err := a.opts.Hub.Environment(in.ID)
			if err != nil {
				return nil, err
			}
			return &body[wire.Environment]{wire.FromEnvironment(&v)}, nil
		})
	register(a, get(wire.BasePath+"/discovered", "list-discovered", "environments", "Containers that no server claims"), accessViewer, a.listDiscovered)

	if a.opts.Registry != nil {
		a.registryRoutes()
	}
	if a.opts.Backup != nil {
		a.backupRoutes()
	}
	if a.opts.Eraser != nil {
		a.eraseRoutes()
	}
	if a.opts.Maintenance != nil {
		a.maintenanceRoutes()
	}
	if a.opts.Tools != nil {
		a.toolRoutes()
	}

	if a.opts.Registries != nil {
		a.registryStateRoutes()
	}

	a.operationRoutes()

	if a.opts.Rollups != nil {
		a.uptimeRoutes()
	}
	if a.opts.Resources != nil {
		a.resourceRoutes()
	}
	register(a, get(wire.BasePath+"/servers/{id}/history", "get-history", "journal", "Entries of one server, newest first"), accessViewer, a.history)
	register(a, get(wire.BasePath+"/updates", "list-updates", "journal", "The journal, oldest first"), accessViewer, a.updates)
	register(a, get(wire.BasePath+"/sync/metrics", "sync-metrics", "service", "Numbers of the fleet"), accessViewer,
		func(context.Context, *empty) (*body[wire.Metrics], error) {
			m := a.opts.Hub.SyncMetrics()
			out := wire.FromMetrics(&m)
			if a.opts.Control != nil {
				p := a.opts.Control.Probing()
				out.ProbingEnabled = &p.Enabled
			}
			if a.opts.Registries != nil {
				out.Registries = a.opts.Registries.Registries()
			}
			return &body[wire.Metrics]{out}, nil
		})

	a.whoamiRoute()
	a.sessionRoutes(registry)
	register(a, get("/healthz", "healthz", "service", "The process is alive"), accessOpen,
		func(context.Context, *empty) (*body[healthz], error) { return &body[healthz]{healthz{"alive"}}, nil })
	register(a, get("/readyz", "readyz", "service", "The service can do what it promises; details only for a credential"), accessOptional, a.readyz)

	a.rawRoutes(registry)
	if err := a.docsRoutes(); err != nil {
		return err
	}
	return a.describe(registry)
}

func statusOf(v statussync.ServerView, err error) (*body[wire.Status], error) {
	if err != nil {
		return nil, err
	}
	return &body[wire.Status]{wire.FromStatus(&v.Status, v.Now)}, nil
}

func (a *API) listServers(ctx context.Context, in *serversInput) (*body[wire.Page[wire.Server]], error) {
	q, err := a.serverQuery(ctx, in.Q, in.Limit, in.Cursor)
	if err != nil {
		return nil, err
	}
	views, more, at := a.opts.Hub.Servers(q)
	out := wire.Page[wire.Server]{Items: wire.FromServers(views), Cursor: at.String()}
	if more && len(views) > 0 {
		out.NextCursor = afterPrefix + views[len(views)-1].Server.ID
	}
	return &body[wire.Page[wire.Server]]{out}, nil
}

// serverQuery reads the parameters that select servers, within what the credential may give.
func (a *API) serverQuery(ctx context.Context, text string, limit int, cursor string) (statussync.ServerQuery, error) {
	p := queryIn(ctx)
	q := statussync.ServerQuery{
		States: listParam[statussync.State](p, "states"), Healths: listParam[statussync.Health](p, "healths"),
		Availabilities: listParam[statussync.Availability](p, "availability"),
		EnvironmentIDs: listParam[string](p, "environment_ids"), Text: text, Limit: limitParam(limit),
	}
	// A list that is given twice has been checked only in part so far.
	if err := checkWords("states", q.States, statussync.States); err != nil {
		return q, err
	}
	if err := checkWords("healths", q.Healths, statussync.Healths); err != nil {
		return q, err
	}
	if err := checkWords("availability", q.Availabilities, availabilities()); err != nil {
		return q, err
	}
	if err := a.limitsOf(requestIn(ctx).cred).checkList("query.environment_ids", len(q.EnvironmentIDs)); err != nil {
		return q, err
	}
	var err error
	if q.Labels, err = labelParam(p); err != nil {
		return q, err
	}
	q.After, err = afterParam(cursor)
	return q, err
}

func availabilities() []statussync.Availability {
	return []statussync.Availability{
		statussync.Available, statussync.Limited, statussync.Unavailable, statussync.Changing, statussync.Off, statussync.AvailabilityUnknown,
	}
}

func (a *API) getStatus(ctx context.Context, in *statusInput) (*body[wire.Explain], error) {
	if !in.Explain {
		v, err := a.opts.Hub.Server(in.ID)
		if err != nil {
			return nil, err
		}
		return &body[wire.Explain]{wire.Explain{Status: wire.FromStatus(&v.Status, v.Now)}}, nil
	}
	x, err := a.opts.Hub.Explain(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &body[wire.Explain]{wire.FromExplanation(&x)}, nil
}

func (a *API) setOverride(ctx context.Context, in *overrideInput) (*body[wire.Status], error) {
	o := statussync.Override{
		State: in.Body.State, Health: in.Body.Health, Note: statussync.CleanText(in.Body.Note, math.MaxInt),
		Actor: requestIn(ctx).cred.Name,
	}
	now := a.opts.Hub.Now()
	if in.Body.ExpiresIn != "" {
		d, err := wire.ParseDuration(in.Body.ExpiresIn)
		if err != nil {
			return nil, statussync.Invalid("body.expires_in", wire.Detail(err))
		}
		o.ExpiresAt = now.Add(d)
	}
	if err := o.Complete(now); err != nil {
		if e, ok := err.(*statussync.Error); ok {
			return nil, statussync.Invalid("body."+e.Location, e.Detail)
		}
		return nil, err
	}
	v, err := a.opts.Hub.SetOverride(ctx, in.ID, o)
	return statusOf(v, err)
}

func (a *API) probeAll(ctx context.Context, _ *empty) (*body[wire.ProbeResults], error) {
	began := time.Now()
	list, err := a.opts.Hub.CheckAll(ctx)
	if err != nil {
		return nil, err
	}
	out := wire.ProbeResults{Items: []wire.ProbeResult{}, Failed: []wire.Failed{}}
	for i := range list {
		if c := &list[i]; c.Err != nil {
			out.Failed = append(out.Failed, wire.Failed{ServerID: c.ServerID, Code: statussync.CodeOf(c.Err), Detail: wire.Detail(c.Err)})
		} else {
			out.Items = append(out.Items, wire.FromProbe(c.ServerID, &c.Result, &c.View))
		}
	}
	out.DurationMS = wire.Millis(time.Since(began))
	return &body[wire.ProbeResults]{out}, nil
}

func (a *API) listEnvironments(_ context.Context, in *pageInput) (*body[wire.Page[wire.Environment]], error) {
	after, err := afterParam(in.Cursor)
	if err != nil {
		return nil, err
	}
	views := a.environments()
	from, found := slices.BinarySearchFunc(views, after, func(v statussync.EnvironmentView, id string) int {
		return cmp.Compare(v.Environment.ID, id)
	})
	if found {
		from++
	}
	to := min(len(views), from+limitParam(in.Limit))
	out := wire.Page[wire.Environment]{Items: make([]wire.Environment, 0, to-from), Cursor: a.opts.Hub.Ready().Head.String()}
	for i := from; i < to; i++ {
		out.Items = append(out.Items, wire.FromEnvironment(&views[i]))
	}
	if to < len(views) {
		out.NextCursor = afterPrefix + views[to-1].Environment.ID
	}
	return &body[wire.Page[wire.Environment]]{out}, nil
}

// environments returns all of them by id.
func (a *API) environments() []statussync.EnvironmentView {
	views := a.opts.Hub.Environments()
	slices.SortFunc(views, func(x, y statussync.EnvironmentView) int { return cmp.Compare(x.Environment.ID, y.Environment.ID) })
	return views
}

func (a *API) listDiscovered(_ context.Context, in *pageInput) (*body[wire.Page[wire.Discovered]], error) {
	after, err := afterParam(in.Cursor)
	if err != nil {
		return nil, err
	}
	// A container has no id of its own: its place is that of its environment, then its name.
	key := func(d *statussync.Discovered) string {
		return url.PathEscape(d.EnvironmentID) + "/" + url.PathEscape(d.Container)
	}
	limit := limitParam(in.Limit)
	var all []statussync.Discovered
	for _, v := range a.environments() {
		all = append(all, v.Discovered...)
	}
	slices.SortFunc(all, func(x, y statussync.Discovered) int { return cmp.Compare(key(&x), key(&y)) })
	out := wire.Page[wire.Discovered]{Items: []wire.Discovered{}, Cursor: a.opts.Hub.Ready().Head.String()}
	last := ""
	for i := range all {
		k := key(&all[i])
		if k <= after {
			continue
		}
		if len(out.Items) == limit {
			out.NextCursor = afterPrefix + last
			break
		}
		out.Items = append(out.Items, wire.FromDiscovered(&all[i]))
		last = k
	}
	return &body[wire.Page[wire.Discovered]]{out}, nil
}

func (a *API) history(ctx context.Context, in *historyInput) (*body[wire.Page[encoded]], error) {
	q := statussync.HistoryQuery{
		ServerID: in.ID, From: a.opts.Hub.Now().Add(-time.Duration(in.Hours * float64(time.Hour))), Limit: limitParam(in.Limit),
	}
	before, err := cursorParam(queryIn(ctx), "cursor")
	if err != nil {
		return nil, err
	}
	q.Before = before.Seq
	limit := q.Limit
	q.Limit++ // one more tells whether a page follows
	list, err := a.opts.Hub.History(ctx, q)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 && before.IsZero() {
		// A removed server still has a history; one that never was has neither.
		if _, err := a.opts.Hub.Server(in.ID); err != nil {
			return nil, err
		}
	}
	out := wire.Page[encoded]{Cursor: a.opts.Hub.Ready().Head.String()}
	if len(list) > limit {
		list = list[:limit]
		out.NextCursor = list[limit-1].Cursor().String()
	}
	out.Items = encodedOf(list)
	return &body[wire.Page[encoded]]{out}, nil
}

func (a *API) updates(ctx context.Context, in *updatesInput) (*body[wire.Page[encoded]], error) {
	p := queryIn(ctx)
	after, err := cursorParam(p, "after")
	if err != nil {
		return nil, err
	}
	f, err := filterParam(p)
	if err != nil {
		return nil, err
	}
	if err := a.limitsOf(requestIn(ctx).cred).checkFilter(f); err != nil {
		return nil, inQuery(err)
	}
	m, err := f.Compile()
	if err != nil {
		return nil, inQuery(err)
	}
	list, at, err := a.opts.Hub.Updates(ctx, after, limitParam(in.Limit), m)
	if err != nil {
		return nil, err
	}
	out := wire.Page[encoded]{Items: encodedOf(list), Cursor: at.String()}
	// A filter may pass over many entries: a page can be short, or empty, and still not be the last.
	if at != a.opts.Hub.Ready().Head && at != after {
		out.NextCursor = out.Cursor
	}
	return &body[wire.Page[encoded]]{out}, nil
}

// readyTimeout is how long one dependency may take to say how it is.
const readyTimeout = 2 * time.Second

func (a *API) readyz(ctx context.Context, _ *empty) (*readyOutput, error) {
	rd := a.opts.Hub.Ready()
	full := wire.Ready{Status: wire.ReadyYes, Durable: rd.Durable, Cursor: rd.Head.String(), Detail: rd.Detail, Version: a.opts.Version}
	used := math.Round(rd.InboxUsed*1000) / 10
	full.InboxUsedPercent = &used
	if !rd.Durable || rd.Detail != "" {
		full.Status = wire.ReadyDegraded
	}
	type answer struct {
		name string
		err  error
	}
	answers := make(chan answer, len(a.opts.ReadyChecks))
	cctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for name, check := range a.opts.ReadyChecks {
		go func() { answers <- answer{name, check(cctx)} }()
	}
	if len(a.opts.ReadyChecks) > 0 {
		full.Checks = make(map[string]wire.ReadyCheck, len(a.opts.ReadyChecks))
	}
	for range a.opts.ReadyChecks {
		an := <-answers // a check obeys its context, so this is bounded
		c := wire.ReadyCheck{OK: an.err == nil}
		if an.err != nil {
			c.Detail = wire.Detail(an.err)
			// The live path needs none of them: who takes the only instance away for a full disk makes it worse.
			full.Status = wire.ReadyDegraded
			a.log.Debug("a dependency is not well", "check", an.name, "error", an.err)
		}
		full.Checks[an.name] = c
	}
	if a.opts.Control != nil {
		p := a.opts.Control.Probing()
		full.Probing = &p
	}
	if a.opts.Registries != nil {
		full.Registries = a.opts.Registries.Registries()
		for i := range full.Registries {
			if r := &full.Registries[i]; r.Feed == statussync.FeedDown {
				full.Status = wire.ReadyDegraded
			}
		}
	}
	if a.draining.Load() {
		full.Status, full.Detail = wire.ReadyNo, "the service is stopping"
	}
	out := &readyOutput{Status: http.StatusOK, Body: full}
	if full.Status == wire.ReadyNo {
		out.Status = http.StatusServiceUnavailable
	}
	if requestIn(ctx).cred == nil {
		out.Body = wire.Ready{Status: full.Status, Durable: full.Durable}
	}
	return out, nil
}
