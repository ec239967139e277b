package mcpconfig

import "path/filepath"

// Place is where a client keeps its configuration.
type Place struct {
	Client string // for people: "Claude Desktop"
	Path   string
}

// Places are the files of the well-known clients, those of the project at cwd first. They need not exist. goos is
// runtime.GOOS, home the user's folder, and getenv gives APPDATA and XDG_CONFIG_HOME where these are used.
func Places(goos, home, cwd string, getenv func(string) string) []Place {
	var out []Place
	add := func(client string, path ...string) {
		for _, p := range path {
			if p == "" {
				return // a part that is not known
			}
		}
		out = append(out, Place{client, filepath.Join(path...)})
	}
	if cwd != "" {
		add("Claude Code (project)", cwd, ".mcp.json")
		add("Cursor (project)", cwd, ".cursor", "mcp.json")
		add("VS Code (project)", cwd, ".vscode", "mcp.json")
		add("Gemini CLI (project)", cwd, ".gemini", "settings.json")
	}
	if home == "" {
		return out
	}
	config := getenv("XDG_CONFIG_HOME")
	switch {
	case goos == "windows":
		config = getenv("APPDATA")
		if config == "" {
			config = filepath.Join(home, "AppData", "Roaming")
		}
	case goos == "darwin":
		config = filepath.Join(home, "Library", "Application Support")
	case config == "":
		config = filepath.Join(home, ".config")
	}
	add("Claude Desktop", config, "Claude", "claude_desktop_config.json")
	add("Claude Code", home, ".claude.json")
	add("Cursor", home, ".cursor", "mcp.json")
	add("VS Code", config, "Code", "User", "mcp.json")
	add("VS Code (settings)", config, "Code", "User", "settings.json")
	add("Windsurf", home, ".codeium", "windsurf", "mcp_config.json")
	add("Gemini CLI", home, ".gemini", "settings.json")
	add("Copilot CLI", home, ".copilot", "mcp-config.json")
	add("Cline", config, "Code", "User", "globalStorage", "saoudrizwan.claude-dev", "settings", "cline_mcp_settings.json")
	return out
}
