package wire

import (
	"github.com/agentopia/statussync"
)

// Bounds of the lists in answers about the whole service: what is beyond is only counted.
const (
	MaxListed  = 100  // names in a list of Difference and Reload
	MaxUpdates = 1000 // updates and failures in Sync
)

// Difference is what changed of one kind of thing that has ids or names.
type Difference struct {
	Added        []string `json:"added" nullable:"false" doc:"At most 100; added_count counts all."`
	Changed      []string `json:"changed" nullable:"false" doc:"At most 100; changed_count counts all."`
	Removed      []string `json:"removed" nullable:"false" doc:"At most 100; removed_count counts all."`
	AddedCount   int      `json:"added_count"`
	ChangedCount int      `json:"changed_count"`
	RemovedCount int      `json:"removed_count"`
	Unchanged    int      `json:"unchanged"`
}

// Reload is what a reload of the configuration changed.
type Reload struct {
	Servers      Difference `json:"servers"`
	Environments Difference `json:"environments"`
	Tokens       Difference `json:"tokens" doc:"Credentials by name; never the tokens."`
	Settings     []string   `json:"settings" nullable:"false" doc:"Keys of the configuration whose change is in force."`
	NeedsRestart []string   `json:"needs_restart" nullable:"false" doc:"Keys whose value in the file differs from what is in force, and counts only after a restart."`
	Warnings     []string   `json:"warnings" nullable:"false" doc:"What a person should look at."`
	Updates      int        `json:"updates" doc:"Updates of statuses that followed at once."`
	DurationMS   float64    `json:"duration_ms"`
}

// Restarting is the answer to a request to restart that was accepted.
type Restarting struct {
	Status string `json:"status" enum:"restarting"`
}

// ProbingRequest starts and stops the monitoring.
type ProbingRequest struct {
	Enabled bool `json:"enabled"`
}

// Probing is whether servers are probed, and who decided that.
type Probing struct {
	Enabled   bool   `json:"enabled"`
	Since     Time   `json:"since,omitzero" doc:"Absent where nobody ever switched it."`
	ChangedBy string `json:"changed_by,omitempty" doc:"Who switched it last."`
}

// Sync is what reading the registries again gave; what failed is named, the rest went on.
type Sync struct {
	Updates      []*statussync.Entry `json:"updates" nullable:"false" doc:"Updates of statuses that it caused, at most 1,000; updates_count counts all."`
	UpdatesCount int                 `json:"updates_count"`
	Failed       []SyncFailure       `json:"failed" nullable:"false" doc:"At most 1,000; failed_count counts all."`
	FailedCount  int                 `json:"failed_count"`
	DurationMS   float64             `json:"duration_ms"`
}

// SyncFailure is one thing that could not be read. Where it is about a whole source, it has neither id.
type SyncFailure struct {
	ServerID      string `json:"server_id,omitempty"`
	EnvironmentID string `json:"environment_id,omitempty"`
	Detail        string `json:"detail"`
}
