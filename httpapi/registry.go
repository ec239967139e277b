package httpapi

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Registry is the managed registry. Its methods are safe for concurrent use; their errors are *statussync.Error, or
// join several, located by the field of the definition at fault. What they return is durable and visible in the Hub.
type Registry interface {
	// AddServer defines a new server; CodeConflict, CodeInvalid.
	AddServer(ctx context.Context, s statussync.Server) (statussync.ServerView, error)
	// SetServer replaces a definition; CodeNotFound, CodeConflict where another registry defines it, CodeInvalid.
	SetServer(ctx context.Context, s statussync.Server) (statussync.ServerView, error)
	// RemoveServer removes a server; CodeNotFound, CodeConflict.
	RemoveServer(ctx context.Context, id string) error
	// Adopt defines a server for a discovered container; CodeNotFound, CodeConflict, CodeInvalid.
	Adopt(ctx context.Context, environmentID, container string, s statussync.Server) (statussync.ServerView, error)
	// AddEnvironment defines a new environment; CodeConflict, CodeInvalid.
	AddEnvironment(ctx context.Context, e statussync.Environment) (statussync.EnvironmentView, error)
	// SetEnvironment replaces a definition; CodeNotFound, CodeConflict, CodeInvalid.
	SetEnvironment(ctx context.Context, e statussync.Environment) (statussync.EnvironmentView, error)
	// RemoveEnvironment removes an environment that has no servers; CodeNotFound, CodeConflict.
	RemoveEnvironment(ctx context.Context, id string) error
	// AgentTokens returns the valid tokens of an environment's agent, the newest first; CodeNotFound, CodeConflict.
	AgentTokens(ctx context.Context, id string) ([]statussync.AgentToken, error)
	// RotateAgentToken makes a new one; CodeNotFound, CodeConflict.
	RotateAgentToken(ctx context.Context, id string) (token string, valid []statussync.AgentToken, err error)
	// DropAgentToken ends one, by its id; CodeNotFound, CodeConflict.
	DropAgentToken(ctx context.Context, id, tokenID string) error
}

// maxDefinition bounds the body of a definition, in bytes.
const maxDefinition = 64 << 10

type addServerInput struct{ Body wire.ServerSpec }

type setServerInput struct {
	ID   string `path:"id"`
	Body wire.ServerSpec
}

type adoptInput struct {
	EnvironmentID string           `path:"environment_id"`
	Container     string           `path:"container" doc:"The container's name."`
	Body          *wire.ServerSpec `required:"false" doc:"What else to define; environment_id and container are given by the path."`
}

type addEnvironmentInput struct{ Body wire.EnvironmentSpec }

type setEnvironmentInput struct {
	ID   string `path:"id"`
	Body wire.EnvironmentSpec
}

type tokenInput struct {
	ID    string `path:"id"`
	Token string `path:"token_id" doc:"The token's id, not the token."`
}

// created is the answer to what made something: 201, and where it is.
type created[T any] struct {
	Location string `header:"Location"`
	Body     T
}

// registryRoutes mounts the managed registry. Every change needs the role admin.
func (a *API) registryRoutes() {
	reg := a.opts.Registry
	op := func(method, path, id, tag, summary string, status int) huma.Operation {
		return huma.Operation{
			Method: method, Path: wire.BasePath + path, OperationID: id, Tags: []string{tag}, Summary: summary,
			DefaultStatus: status, MaxBodyBytes: maxDefinition,
		}
	}
	const ok, made, gone = http.StatusOK, http.StatusCreated, http.StatusNoContent

	register(a, op(http.MethodPost, "/servers", "add-server", "servers", "Define a managed server", made), accessAdmin,
		func(ctx context.Context, in *addServerInput) (*created[wire.Server], error) {
			s, err := in.Body.Server()
			if err != nil {
				return nil, inBody(err)
			}
			v, err := reg.AddServer(ctx, s)
			return a.createdServer(ctx, "added", &v, err)
		})
	register(a, op(http.MethodPut, "/servers/{id}", "set-server", "servers", "Replace the whole definition of a managed server", ok), accessAdmin,
		func(ctx context.Context, in *setServerInput) (*body[wire.Server], error) {
			if err := sameID(&in.Body.ID, in.ID); err != nil {
				return nil, err
			}
			s, err := in.Body.Server()
			if err != nil {
				return nil, inBody(err)
			}
			v, err := reg.SetServer(ctx, s)
			if err != nil {
				return nil, inBody(err)
			}
			a.registryChanged(ctx, "server", "changed", in.ID)
			return &body[wire.Server]{wire.FromServer(&v)}, nil
		})
	register(a, op(http.MethodDelete, "/servers/{id}", "remove-server", "servers", "Remove a managed server", gone), accessAdmin,
		func(ctx context.Context, in *idInput) (*empty, error) {
			if err := reg.RemoveServer(ctx, in.ID); err != nil {
				return nil, err
			}
			a.registryChanged(ctx, "server", "removed", in.ID)
			return nil, nil
		})
	register(a, op(http.MethodPost, "/discovered/{environment_id}/{container}/adopt", "adopt-container", "environments", "Define a managed server for a container that no server claims", made), accessAdmin,
		func(ctx context.Context, in *adoptInput) (*created[wire.Server], error) {
			var s statussync.Server
			if in.Body != nil {
				var err error
				if s, err = in.Body.Server(); err != nil {
					return nil, inBody(err)
				}
			}
			v, err := reg.Adopt(ctx, in.EnvironmentID, in.Container, s)
			return a.createdServer(ctx, "adopted", &v, err)
		})

	register(a, op(http.MethodPost, "/environments", "add-environment", "environments", "Define a managed environment", made), accessAdmin,
		func(ctx context.Context, in *addEnvironmentInput) (*created[wire.Environment], error) {
			v, err := reg.AddEnvironment(ctx, in.Body.Environment())
			if err != nil {
				return nil, inBody(err)
			}
			id := v.Environment.ID
			a.registryChanged(ctx, "environment", "added", id)
			return &created[wire.Environment]{wire.BasePath + "/environments/" + url.PathEscape(id), wire.FromEnvironment(&v)}, nil
		})
	register(a, op(http.MethodPut, "/environments/{id}", "set-environment", "environments", "Replace the whole definition of a managed environment; its tokens stay", ok), accessAdmin,
		func(ctx context.Context, in *setEnvironmentInput) (*body[wire.Environment], error) {
			if err := sameID(&in.Body.ID, in.ID); err != nil {
				return nil, err
			}
			v, err := reg.SetEnvironment(ctx, in.Body.Environment())
			if err != nil {
				return nil, inBody(err)
			}
			a.registryChanged(ctx, "environment", "changed", in.ID)
			return &body[wire.Environment]{wire.FromEnvironment(&v)}, nil
		})
	register(a, op(http.MethodDelete, "/environments/{id}", "remove-environment", "environments", "Remove a managed environment that has no servers, and its tokens", gone), accessAdmin,
		func(ctx context.Context, in *idInput) (*empty, error) {
			if err := reg.RemoveEnvironment(ctx, in.ID); err != nil {
				return nil, err
			}
			a.registryChanged(ctx, "environment", "removed", in.ID)
			return nil, nil
		})
	register(a, op(http.MethodGet, "/environments/{id}/tokens", "list-agent-tokens", "environments", "The valid tokens of a managed environment's agent, without the tokens", ok), accessAdmin,
		func(ctx context.Context, in *idInput) (*body[wire.AgentTokens], error) {
			list, err := reg.AgentTokens(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			return &body[wire.AgentTokens]{wire.AgentTokens{Items: wire.FromAgentTokens(list)}}, nil
		})
	register(a, op(http.MethodPost, "/environments/{id}/tokens", "rotate-agent-token", "environments", "Make a new token for a managed environment's agent; the one before stays valid", made), accessAdmin,
		func(ctx context.Context, in *idInput) (*body[wire.NewAgentToken], error) {
			token, list, err := reg.RotateAgentToken(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			a.registryChanged(ctx, "environment", "given a new token", in.ID)
			return &body[wire.NewAgentToken]{wire.NewAgentToken{Token: token, ID: list[0].ID(), Valid: wire.FromAgentTokens(list)}}, nil
		})
	register(a, op(http.MethodDelete, "/environments/{id}/tokens/{token_id}", "drop-agent-token", "environments", "End a token of a managed environment's agent", gone), accessAdmin,
		func(ctx context.Context, in *tokenInput) (*empty, error) {
			if err := reg.DropAgentToken(ctx, in.ID, in.Token); err != nil {
				return nil, err
			}
			a.registryChanged(ctx, "environment", "deprived of a token", in.ID)
			return nil, nil
		})
}

func (a *API) createdServer(ctx context.Context, what string, v *statussync.ServerView, err error) (*created[wire.Server], error) {
	if err != nil {
		return nil, inBody(err)
	}
	a.registryChanged(ctx, "server", what, v.Server.ID)
	return &created[wire.Server]{wire.BasePath + "/servers/" + url.PathEscape(v.Server.ID), wire.FromServer(v)}, nil
}

// registryChanged notes who did what; entries of the journal tell only what.
func (a *API) registryChanged(ctx context.Context, kind, what, id string) {
	q := requestIn(ctx)
	a.log.Info("the managed registry was changed", "kind", kind, "id", id, "was", what, "by", q.cred.Name, "request_id", q.id)
}

// sameID lets a body leave its id to the path.
func sameID(inBody *string, inPath string) error {
	if *inBody != "" && *inBody != inPath {
		return statussync.Invalid("body.id", "is not the id in the path; an id can't be changed")
	}
	*inBody = inPath
	return nil
}

// inBody says of each fault with a location that it is in the body.
func inBody(err error) error {
	var out []error
	for _, e := range faults(err) {
		if e.Location != "" {
			moved := *e
			moved.Location = "body." + e.Location
			e = &moved
		}
		out = append(out, e)
	}
	if len(out) == 0 {
		return err
	}
	return errors.Join(out...)
}

// faults are the errors that are joined in err, where all of them may be shown.
func faults(err error) []*statussync.Error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var out []*statussync.Error
		for _, e := range j.Unwrap() {
			more := faults(e)
			if more == nil {
				return nil
			}
			out = append(out, more...)
		}
		return out
	}
	if e, ok := err.(*statussync.Error); ok {
		return []*statussync.Error{e}
	}
	return nil
}
