package wire

import "github.com/agentopia/statussync"

// EraseRequest is the body of POST /erase: exactly one of Owner and Actor is given.
type EraseRequest struct {
	Owner  string `json:"owner,omitempty" doc:"Whose servers and environments are to be forgotten."`
	Actor  string `json:"actor,omitempty" doc:"Who set overrides and maintenance windows, and is to be forgotten."`
	DryRun bool   `json:"dry_run,omitempty" doc:"Only report what would be done."`
}

// EraseReport says what an erasure changed, or with DryRun would change.
type EraseReport struct {
	DryRun   bool `json:"dry_run"`
	NewEpoch bool `json:"new_epoch" doc:"Something changed: clients resync."`

	Entries  int `json:"entries" doc:"Entries of the journal that were reduced."`
	Records  int `json:"records" doc:"Pieces of stored evidence that were changed."`
	Rows     int `json:"rows" doc:"Rows of other tables that were changed."`
	History  int `json:"history_rows" doc:"Servers whose uptime and probes were deleted, and spans of others that were changed."`
	Tokens   int `json:"tokens" doc:"Agents' tokens that ended with their environments."`
	Mentions int `json:"mentions" doc:"Stored rows that still hold the name as a word: in ids, labels or free text, or because it means something else there."`

	ServersRemoved      []string       `json:"servers_removed" nullable:"false" doc:"Managed servers that are gone."`
	EnvironmentsRemoved []string       `json:"environments_removed" nullable:"false" doc:"Managed environments that are gone."`
	Servers             []string       `json:"servers" nullable:"false" doc:"Servers that lost their owner."`
	Environments        []string       `json:"environments" nullable:"false" doc:"Environments that lost their owner."`
	StillDefined        []StillDefined `json:"still_defined" nullable:"false" doc:"Definitions outside the store that name the owner: they bring the name back unless they are edited first."`
	FilesRemoved        []string       `json:"files_removed" nullable:"false" doc:"Copies of the store that migrations had made."`
}

// ErasureStatus says how far an erasure is.
type ErasureStatus string

// Every ErasureStatus.
const (
	ErasureRunning ErasureStatus = "running"
	ErasureDone    ErasureStatus = "done"
	ErasureFailed  ErasureStatus = "failed"
)

// Erasure is the answer to POST /erase, and to GET /erase/{id} afterwards. It never says who it was.
type Erasure struct {
	ID         string        `json:"id" doc:"Ask for it at /erase/{id}: the process remembers its last 10."`
	Status     ErasureStatus `json:"status" enum:"running,done,failed"`
	DryRun     bool          `json:"dry_run"`
	StartedAt  Time          `json:"started_at"`
	FinishedAt *Time         `json:"finished_at,omitempty"`
	Report     *EraseReport  `json:"report,omitempty" doc:"Of one that is done."`
	Error      *ErasureError `json:"error,omitempty" doc:"Of one that failed: nothing was changed, unless it says otherwise."`
}

// ErasureError is why an erasure failed.
type ErasureError struct {
	Code   statussync.Code `json:"code" enum:"invalid,not_found,conflict,internal,unavailable"`
	Detail string          `json:"detail"`
}

// StillDefined is a definition that names an owner who was erased.
type StillDefined struct {
	ServerID      string            `json:"server_id,omitempty"`
	EnvironmentID string            `json:"environment_id,omitempty"`
	Origin        statussync.Origin `json:"origin"`
}
