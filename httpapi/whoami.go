package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/agentopia/statussync/wire"
)

// whoamiRoute mounts what tells people who they are here and what they may use.
func (a *API) whoamiRoute() {
	register(a, huma.Operation{
		Method: http.MethodGet, Path: wire.PathWhoami, OperationID: "whoami", Tags: []string{"service"},
		Summary: "The credential's own name, role, limits and end",
	}, accessViewer, func(ctx context.Context, _ *empty) (*body[wire.Whoami], error) {
		return &body[wire.Whoami]{a.whoami(requestIn(ctx).cred)}, nil
	})
}

// whoami describes a credential.
func (a *API) whoami(cred *Credential) wire.Whoami {
	l := a.limitsOf(cred)
	return wire.Whoami{
		Name: cred.Name, Role: string(cred.Role), ExpiresAt: wire.Time{Time: cred.ExpiresAt}, Session: cred.session != nil,
		Limits: wire.Limits{
			Connections: l.Connections, Subscriptions: l.Subscriptions, CommandsPerSecond: l.CommandsPerSecond,
			ReplayBytesPerSecond: l.ReplayBytesPerSecond, FilterIDs: l.FilterIDs, FilterClauses: l.FilterClauses,
		},
	}
}
