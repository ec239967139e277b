package wire

import "github.com/agentopia/statussync"

// Tools is what a server lists as its tools (L2 of docs/protocols.md §6).
type Tools struct {
	ServerID   string                `json:"server_id"`
	Hash       string                `json:"hash,omitempty" doc:"Of the whole set; the order makes no difference. Absent: the list was never read." example:"sha256:…"`
	Tools      []statussync.ToolRef  `json:"tools" nullable:"false" doc:"By name. Names are untrusted text."`
	Count      int                   `json:"count"`
	Since      Time                  `json:"since,omitzero" doc:"When this set was first seen."`
	CheckedAt  Time                  `json:"checked_at,omitzero" doc:"When the list was last asked for; after a restart, until it is asked for again, when what is known was stored."`
	Pinned     *PinnedTools          `json:"pinned,omitempty" doc:"The set that the server should have."`
	Drifted    bool                  `json:"drifted" doc:"A set is pinned, and the current one is another."`
	AgainstPin *statussync.ToolDrift `json:"against_pin,omitempty" doc:"From the pinned set to the current one, where they differ."`
	LastError  string                `json:"last_error,omitempty" doc:"Why the list could not be read the last time; absent: it could. Untrusted text for people."`
}

// PinnedTools says which set of tools a person wants a server to have.
type PinnedTools struct {
	Hash  string `json:"hash"`
	Actor string `json:"actor,omitempty"`
	At    Time   `json:"at"`
}

// FromTools returns v as the wire has it.
func FromTools(v *statussync.ToolsView) Tools {
	out := Tools{
		ServerID: v.ServerID, Hash: v.Hash, Tools: v.Tools, Count: len(v.Tools), Since: Time{v.Since}, CheckedAt: Time{v.CheckedAt},
		Drifted: v.Drifted(), LastError: v.LastError,
	}
	if out.Tools == nil {
		out.Tools = []statussync.ToolRef{}
	}
	if p := v.Pinned; p != nil {
		out.Pinned = &PinnedTools{Hash: p.Hash, Actor: p.Actor, At: Time{p.At}}
	}
	if out.Drifted {
		out.AgainstPin = v.Against
	}
	return out
}

// PinRequest is the body of PUT /servers/{id}/tools/pin, which may be absent. The actor is the credential's name and
// can't be given.
type PinRequest struct {
	Hash string `json:"hash,omitempty" maxLength:"128" doc:"The hash of the set that was looked at: 409 where the server lists another one by now. Absent: whichever is the current one."`
}
