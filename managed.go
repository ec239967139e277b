package statussync

import (
	"encoding/hex"
	"time"
)

// AgentToken is a token of a managed environment's agent as it is kept: only its hash, never the token.
type AgentToken struct {
	EnvironmentID string
	Hash          [32]byte // SHA-256 of the token
	CreatedAt     time.Time
}

// ID names the token among those of its environment. It is the beginning of the hash, which tells nothing about a
// random token.
func (t *AgentToken) ID() string { return hex.EncodeToString(t.Hash[:6]) }

// MaxAgentTokens is how many tokens of one environment are valid at a time: the one that its agent has, and the one
// that it is being given.
const MaxAgentTokens = 2

// Managed is everything that the managed registry defines. All servers and environments have OriginManaged, and
// Environment.HasToken is whether Tokens has one of it.
type Managed struct {
	Environments []Environment
	Servers      []Server // with their secrets
	Tokens       []AgentToken
}

// ManagedChange is a change of the managed registry's store. Removing comes first; what is removed twice, or was never
// there, is no error. An environment that is removed takes its tokens with it.
type ManagedChange struct {
	RemoveServers      []string
	RemoveEnvironments []string
	RemoveTokens       [][32]byte
	PutEnvironments    []Environment
	PutServers         []Server
	PutTokens          []AgentToken
}
