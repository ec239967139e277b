package app

import (
	"log/slog"
	"net/http"

	"github.com/agentopia/statussync/httpapi"
	"github.com/agentopia/statussync/mcpserver"
)

// MCPConfig is what the service offers as an MCP server, at /mcp.
type MCPConfig struct {
	WriteTools bool `yaml:"write_tools"` // operators' and admins' clients may probe and override
}

// newMCPServer returns the MCP server of the service; it tells subscribers of changes while its Run runs.
func (s *service) newMCPServer(c *Config, log *slog.Logger) (*mcpserver.Server, error) {
	return mcpserver.New(mcpserver.Options{
		Service: mcpserver.FromHub(s.hub), Caller: mcpCaller, WriteTools: c.MCP.WriteTools, Version: s.version,
		Logger: log.With("component", "mcpserver"),
	})
}

// mcpCaller is who sent a request that the API has let in: by /mcp they may do what they may do by the HTTP API.
func mcpCaller(r *http.Request) mcpserver.Caller {
	c := httpapi.CredentialOf(r)
	return mcpserver.Caller{Name: c.Name, Write: c.Role == httpapi.RoleOperator || c.Role == httpapi.RoleAdmin}
}
