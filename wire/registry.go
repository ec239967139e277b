package wire

import (
	"encoding/json"
	"time"

	"github.com/agentopia/statussync"
)

// ServerSpec is the whole definition of a managed server: the body of POST /servers and PUT /servers/{id}, and of
// adopting a discovered container. What is left out has its default; a PUT keeps nothing of what was there before.
type ServerSpec struct {
	ID            string               `json:"id,omitempty" maxLength:"128" example:"weather" doc:"Letters, digits and . _ : @ -. A PUT may leave it to the path; adopting takes the container's name."`
	Name          string               `json:"name,omitempty" doc:"Default: the id."`
	EnvironmentID string               `json:"environment_id,omitempty" doc:"An environment that exists."`
	Owner         string               `json:"owner,omitempty" doc:"Default: the environment's."`
	Endpoint      string               `json:"endpoint,omitempty" example:"https://weather.example.com/mcp"`
	Transport     statussync.Transport `json:"transport,omitempty" enum:"streamable-http,sse,http,stdio" doc:"Default: streamable-http."`
	Type          string               `json:"type,omitempty"`
	Container     string               `json:"container,omitempty" doc:"Name under which the agent reports it; default: the name. Unique in its environment."`
	Desired       statussync.Desired   `json:"desired,omitempty" enum:"running,stopped" doc:"Default: running."`
	Labels        map[string]string    `json:"labels,omitempty"`
	Capabilities  map[string]any       `json:"capabilities,omitempty"`
	Disabled      bool                 `json:"disabled,omitempty" doc:"It is not probed."`
	Probe         *ProbeSpec           `json:"probe,omitempty"`
}

// ProbeSpec is how a managed server is probed; what is left out is as the service's policy says.
type ProbeSpec struct {
	Kind              statussync.ProbeKind `json:"kind,omitempty" example:"http"`
	URL               string               `json:"url,omitempty" doc:"Default: the endpoint's origin and the path."`
	Path              string               `json:"path,omitempty" example:"/health"`
	Interval          string               `json:"interval,omitempty" example:"30s"`
	Timeout           string               `json:"timeout,omitempty" example:"10s"`
	MaxRetries        *int                 `json:"max_retries,omitempty"`
	BackoffMultiplier float64              `json:"backoff_multiplier,omitempty"`
	Rise              int                  `json:"rise,omitempty"`
	StartGrace        string               `json:"start_grace,omitempty"`
	SlowAfter         string               `json:"slow_after,omitempty"`
	Expect            string               `json:"expect,omitempty" enum:"open"`
	Canary            *CanarySpec          `json:"canary,omitempty" doc:"Only where it is probed as MCP."`
	Headers           map[string]string    `json:"headers,omitempty" writeOnly:"true" doc:"Credentials: sent with each probe, never returned or logged."`
}

// CanarySpec is a tool that is called now and then to see whether an MCP server really serves. It may have effects, and is
// no place for secrets.
type CanarySpec struct {
	Tool      string         `json:"tool"`
	Arguments map[string]any `json:"arguments,omitempty"`
	Expect    string         `json:"expect,omitempty" doc:"Must stand in the answer."`
}

// Server returns the definition in the domain's words, not yet checked. The error has code CodeInvalid and names the
// field that is no duration.
func (s *ServerSpec) Server() (statussync.Server, error) {
	out := statussync.Server{
		ID: s.ID, Name: s.Name, EnvironmentID: s.EnvironmentID, Owner: s.Owner, Endpoint: s.Endpoint, Transport: s.Transport,
		Type: s.Type, Container: s.Container, Desired: s.Desired, Labels: s.Labels, Capabilities: s.Capabilities, Disabled: s.Disabled,
	}
	p := s.Probe
	if p == nil {
		return out, nil
	}
	out.Probe = statussync.ProbeSpec{
		Kind: p.Kind, URL: p.URL, Path: p.Path, MaxRetries: p.MaxRetries, BackoffMultiplier: p.BackoffMultiplier, Rise: p.Rise,
		Expect: p.Expect, Headers: p.Headers,
	}
	if c := p.Canary; c != nil {
		out.Probe.Canary = statussync.Canary{Tool: c.Tool, Expect: c.Expect}
		if len(c.Arguments) > 0 {
			b, err := json.Marshal(c.Arguments)
			if err != nil {
				return out, statussync.Invalid("probe.canary.arguments", "can't be written as JSON")
			}
			out.Probe.Canary.Arguments = string(b)
		}
		if c.Tool == "" {
			return out, statussync.Invalid("probe.canary.tool", "is missing")
		}
	}
	for _, d := range []struct {
		field, text string
		to          *time.Duration
	}{
		{"probe.interval", p.Interval, &out.Probe.Interval}, {"probe.timeout", p.Timeout, &out.Probe.Timeout},
		{"probe.start_grace", p.StartGrace, &out.Probe.StartGrace}, {"probe.slow_after", p.SlowAfter, &out.Probe.SlowAfter},
	} {
		if d.text == "" {
			continue
		}
		v, err := ParseDuration(d.text)
		if err != nil {
			return out, statussync.Invalid(d.field, Detail(err))
		}
		*d.to = v
	}
	return out, nil
}

// EnvironmentSpec is the whole definition of a managed environment: the body of POST /environments and
// PUT /environments/{id}. Its agent's tokens are no part of it.
type EnvironmentSpec struct {
	ID       string `json:"id,omitempty" maxLength:"128" example:"box-7" doc:"Letters, digits and . _ : @ -. A PUT may leave it to the path."`
	Name     string `json:"name,omitempty" doc:"Default: the id."`
	Owner    string `json:"owner,omitempty"`
	Address  string `json:"address,omitempty" doc:"Host name or IP address, without a port."`
	AgentURL string `json:"agent_url,omitempty" doc:"Where a silent agent is asked."`
}

// Environment returns the definition in the domain's words, not yet checked.
func (e *EnvironmentSpec) Environment() statussync.Environment {
	return statussync.Environment{ID: e.ID, Name: e.Name, Owner: e.Owner, Address: e.Address, AgentURL: e.AgentURL}
}

// AgentToken is a valid token of an environment's agent, without the token.
type AgentToken struct {
	ID        string `json:"id" doc:"Names it among those of its environment."`
	CreatedAt Time   `json:"created_at"`
}

// AgentTokens are the valid tokens of an environment's agent, the newest first.
type AgentTokens struct {
	Items []AgentToken `json:"items" nullable:"false"`
}

// NewAgentToken is a token that was just made, the only time that it is shown.
type NewAgentToken struct {
	Token string       `json:"token" doc:"Shown this once; it goes into the agent's configuration."`
	ID    string       `json:"id"`
	Valid []AgentToken `json:"valid" nullable:"false" doc:"All that are valid now, the newest first: this one and the one before."`
}

// FromAgentTokens returns tokens as the wire has them; never nil.
func FromAgentTokens(list []statussync.AgentToken) []AgentToken {
	out := make([]AgentToken, len(list))
	for i := range list {
		out[i] = AgentToken{ID: list[i].ID(), CreatedAt: Time{list[i].CreatedAt}}
	}
	return out
}
