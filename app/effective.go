package app

import (
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/agentopia/statussync"
)

// MarshalYAML writes the duration as people write it.
func (d Duration) MarshalYAML() (any, error) { return formatDuration(time.Duration(d)), nil }

// MarshalYAML writes the size with its unit.
func (s Size) MarshalYAML() (any, error) { return formatSize(s), nil }

// MarshalYAML masks the secret.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// Effective returns the configuration as it will be used, defaults filled in and secrets masked, as YAML.
func (c *Config) Effective() ([]byte, error) {
	e := *c
	if c.TLS != nil {
		t := *c.TLS
		t.MinVersion = firstOf(t.MinVersion, "1.2")
		e.TLS = &t
	}
	e.Environments = append([]EnvironmentConfig(nil), c.Environments...)
	for i := range e.Environments {
		e.Environments[i].Name = firstOf(e.Environments[i].Name, e.Environments[i].ID)
	}
	e.Servers = append([]ServerConfig(nil), c.Servers...)
	for i := range e.Servers {
		s := &e.Servers[i]
		s.Name = firstOf(s.Name, s.ID)
		s.Transport = firstOf(s.Transport, string(statussync.TransportStreamableHTTP))
		s.Desired = firstOf(s.Desired, string(statussync.DesiredRunning))
	}
	return yaml.Dump(&e, yaml.WithIndent(2))
}
