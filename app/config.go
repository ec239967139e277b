package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/engine"
	"github.com/agentopia/statussync/httpapi"
	"github.com/agentopia/statussync/registry"
)

// Config is the configuration file. DefaultConfig gives the defaults; docs/configuration.md explains every key.
type Config struct {
	Listen         string              `yaml:"listen"`
	Data           string              `yaml:"data"`
	Log            LogConfig           `yaml:"log"`
	BasePath       string              `yaml:"base_path,omitempty"`
	TLS            *TLSConfig          `yaml:"tls,omitempty"`
	Auth           *AuthConfig         `yaml:"auth,omitempty"`
	Limits         LimitsConfig        `yaml:"limits"`
	MCP            MCPConfig           `yaml:"mcp"`
	AllowedHosts   []string            `yaml:"allowed_hosts,omitempty"`
	AllowedOrigins []string            `yaml:"allowed_origins,omitempty"`
	TrustedProxies []string            `yaml:"trusted_proxies,omitempty"`
	AllowNetworks  []string            `yaml:"allow_networks,omitempty"`
	Environments   []EnvironmentConfig `yaml:"environments,omitempty"`
	Servers        []ServerConfig      `yaml:"servers,omitempty"`
	// MCPConfig are files of MCP clients (mcp.json and its cousins) whose servers are monitored too.
	MCPConfig []string `yaml:"mcp_config,omitempty"`
	// Registries are databases that define servers.
	Registries  []RegistryConfig  `yaml:"registries,omitempty"`
	Probe       ProbeDefaults     `yaml:"probe"`
	Heartbeat   HeartbeatConfig   `yaml:"heartbeat"`
	Transitions TransitionsConfig `yaml:"transitions"`
	Flapping    FlappingConfig    `yaml:"flapping"`
	Journal     JournalConfig     `yaml:"journal"`
	Rollups     RollupsConfig     `yaml:"rollups"`

	// scale compresses every time of the rules; only the demo sets it.
	scale float64
	// dir is the file's folder, to which the paths of its certificates are relative.
	dir string
}

// LogConfig says what is logged and how.
type LogConfig struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // auto, text, json
}

// AuthConfig lists who may speak to the service.
type AuthConfig struct {
	Tokens                 []TokenConfig `yaml:"tokens"`
	LegacyViewer           bool          `yaml:"legacy_viewer"` // /ws/mcp-status needs no credential
	LoginFailuresPerMinute int           `yaml:"login_failures_per_minute,omitempty"`
	CommandsPerSecond      int           `yaml:"commands_per_second,omitempty"`
}

// TokenConfig is one credential.
type TokenConfig struct {
	Name      string `yaml:"name"`
	Role      string `yaml:"role"` // viewer, operator, admin
	Token     Secret `yaml:"token"`
	TokenFile string `yaml:"token_file,omitempty"`
	// ExpiresAt is when it is good no more, in RFC 3339; empty: never.
	ExpiresAt string        `yaml:"expires_at,omitempty"`
	Limits    *LimitsConfig `yaml:"limits,omitempty"` // what is absent is taken from Config.Limits
}

// EnvironmentConfig is one host.
type EnvironmentConfig struct {
	ID             string `yaml:"id"`
	Name           string `yaml:"name,omitempty"`
	Owner          string `yaml:"owner,omitempty"`
	Address        string `yaml:"address,omitempty"`
	AgentToken     Secret `yaml:"agent_token,omitempty"`
	AgentTokenFile string `yaml:"agent_token_file,omitempty"`
	AgentURL       string `yaml:"agent_url,omitempty"`
	AgentCert      string `yaml:"agent_cert,omitempty"` // common name or DNS name in its agent's client certificate
}

// ServerConfig is one MCP server.
type ServerConfig struct {
	ID           string            `yaml:"id"`
	Name         string            `yaml:"name,omitempty"`
	Environment  string            `yaml:"environment,omitempty"`
	Owner        string            `yaml:"owner,omitempty"`
	Container    string            `yaml:"container,omitempty"`
	Endpoint     string            `yaml:"endpoint,omitempty"`
	Transport    string            `yaml:"transport,omitempty"`
	Type         string            `yaml:"type,omitempty"`
	Desired      string            `yaml:"desired,omitempty"`
	Labels       map[string]string `yaml:"labels,omitempty"`
	Capabilities map[string]any    `yaml:"capabilities,omitempty"`
	Disabled     bool              `yaml:"disabled,omitempty"`
	Probe        ProbeConfig       `yaml:"probe,omitempty"`
}

// ProbeConfig is how one server is probed; what is absent is taken from ProbeDefaults.
type ProbeConfig struct {
	Kind              string            `yaml:"kind,omitempty"`
	URL               string            `yaml:"url,omitempty"`
	Path              string            `yaml:"path,omitempty"`
	Interval          Duration          `yaml:"interval,omitempty"`
	Timeout           Duration          `yaml:"timeout,omitempty"`
	MaxRetries        *int              `yaml:"max_retries,omitempty"`
	BackoffMultiplier float64           `yaml:"backoff_multiplier,omitempty"`
	Rise              int               `yaml:"rise,omitempty"`
	StartGrace        Duration          `yaml:"start_grace,omitempty"`
	SlowAfter         Duration          `yaml:"slow_after,omitempty"`
	Expect            string            `yaml:"expect,omitempty"`
	Canary            *CanaryConfig     `yaml:"canary,omitempty"`
	Headers           map[string]Secret `yaml:"headers,omitempty"`
}

// CanaryConfig is a tool that is called now and then to see whether the server really serves.
type CanaryConfig struct {
	Tool      string         `yaml:"tool"`
	Arguments map[string]any `yaml:"arguments,omitempty"`
	Expect    string         `yaml:"expect,omitempty"`
}

// spec is the same in the domain's words; of a nil one there is none.
func (c *CanaryConfig) spec() (statussync.Canary, error) {
	if c == nil {
		return statussync.Canary{}, nil
	}
	out := statussync.Canary{Tool: c.Tool, Expect: c.Expect}
	if len(c.Arguments) > 0 {
		b, err := json.Marshal(c.Arguments)
		if err != nil {
			return out, err
		}
		out.Arguments = string(b)
	}
	return out, nil
}

// ProbeDefaults is how servers are probed that don't say otherwise, and how many at once.
type ProbeDefaults struct {
	Kind              string   `yaml:"kind,omitempty"` // empty: by the transport
	Path              string   `yaml:"path"`
	Interval          Duration `yaml:"interval"`
	Timeout           Duration `yaml:"timeout"`
	MaxRetries        int      `yaml:"max_retries"`
	BackoffMultiplier float64  `yaml:"backoff_multiplier"`
	Rise              int      `yaml:"rise"`
	StartGrace        Duration `yaml:"start_grace"`
	SlowAfter         Duration `yaml:"slow_after"`
	Concurrency       int      `yaml:"concurrency"`
	PerEnvironment    int      `yaml:"per_environment"`
}

// HeartbeatConfig replaces the learned heartbeat limits by absolute ones.
type HeartbeatConfig struct {
	LateAfter Duration `yaml:"late_after,omitempty"`
	LostAfter Duration `yaml:"lost_after,omitempty"`
}

// TransitionsConfig bounds how long a server may be starting or stopping.
type TransitionsConfig struct {
	StuckAfter Duration `yaml:"stuck_after"`
}

// FlappingConfig says when a server counts as flapping.
type FlappingConfig struct {
	Changes int      `yaml:"changes"`
	Window  Duration `yaml:"window"`
	Quiet   Duration `yaml:"quiet"`
}

// JournalConfig says how much is kept, and how safely.
type JournalConfig struct {
	Retention Duration `yaml:"retention"`
	MaxBytes  Size     `yaml:"max_bytes"`
	Sync      string   `yaml:"sync"` // normal, full
}

// DefaultConfig returns the configuration of an empty file.
func DefaultConfig() *Config {
	p := engine.DefaultPolicy()
	return &Config{
		Listen: "127.0.0.1:8080", Data: "./data", Log: LogConfig{Level: "info", Format: "auto"},
		Limits: limitsConfig(httpapi.DefaultLimits()),
		Probe: ProbeDefaults{
			Kind: string(p.Probe.Kind), Path: p.Probe.Path, Interval: Duration(p.Probe.Interval),
			Timeout: Duration(p.Probe.Timeout), MaxRetries: *p.Probe.MaxRetries,
			BackoffMultiplier: p.Probe.BackoffMultiplier, Rise: p.Probe.Rise, StartGrace: Duration(p.Probe.StartGrace),
			SlowAfter: Duration(p.Probe.SlowAfter), Concurrency: 512, PerEnvironment: 16,
		},
		Transitions: TransitionsConfig{StuckAfter: Duration(p.StuckAfter)},
		Flapping:    FlappingConfig{Changes: p.FlapChanges, Window: Duration(p.FlapWindow), Quiet: Duration(p.FlapQuiet)},
		Journal:     JournalConfig{Retention: Duration(90 * 24 * time.Hour), MaxBytes: 10 << 30, Sync: "normal"},
		Rollups:     RollupsConfig{MaxBytes: defaultRollupsBytes},
		scale:       1,
	}
}

// PlainConfig is DefaultConfig with another address and store; empty: the default. It is checked like a file.
func PlainConfig(listen, data string) (*Config, error) {
	def := DefaultConfig()
	doc, err := yaml.Dump(map[string]string{"listen": firstOf(listen, def.Listen), "data": firstOf(data, def.Data)})
	if err != nil {
		return nil, err
	}
	return ParseConfig("the command line", doc)
}

// maxConfigBytes bounds a configuration file.
const maxConfigBytes = 64 << 20

// LoadConfig reads, expands and checks a configuration file and the fragments beside it (conf.d/*.yaml). The error joins
// everything that is wrong, each with file:line and the key at fault; on error there is no configuration.
func LoadConfig(path string) (*Config, error) {
	files, err := readSources(path)
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(files[0].data)) == 0 {
		// A file that is being written, or a disk that is full, looks like this. Read as the defaults, a reload would remove
		// every server and every token.
		return nil, statussync.Invalid(files[0].name, "is empty; a configuration with nothing but defaults is {}")
	}
	return parseSources(files)
}

func unwrapPath(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// ParseConfig is LoadConfig for the bytes of one file, without fragments; name stands in its errors. Paths of token files
// are relative to name's folder.
func ParseConfig(name string, data []byte) (*Config, error) {
	return parseSources([]sourceFile{{name: name, data: data}})
}

func yamlError(name string, err error) error {
	var le *yaml.LoadError
	if errors.As(err, &le) && le.Mark.Line > 0 {
		return statussync.Invalid(fmt.Sprintf("%s:%d", name, le.Mark.Line), "is not YAML: "+le.Message)
	}
	return statussync.Invalid(name, "is not YAML: "+statussync.CleanText(err.Error(), statussync.MaxErrorText))
}

// roles in rising order of rights.
var roles = []string{"viewer", "operator", "admin"}

// minTokenLen is short enough for people's habits and long enough that five guesses a minute find nothing.
const minTokenLen = 8

func (c *Config) check(d *decoder) {
	oneOf := func(path, v string, allowed ...string) {
		if v == "" && !d.absent(path) {
			return
		}
		if !slices.Contains(allowed, v) {
			d.failAt(path, "must be one of %s, not %q", strings.Join(allowed, ", "), v)
		}
	}
	positive := func(path string, v Duration) {
		if v <= 0 {
			d.failAt(path, "must be greater than zero")
		}
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		d.failAt("listen", "%q is not host:port, such as 127.0.0.1:8080", c.Listen)
	} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		d.failAt("listen", "%q is not a port: it must be a number between 0 and 65535", port)
	}
	if err == nil && !isLoopback(host) && (c.Auth == nil && d.absent("auth") || c.Auth != nil && len(c.Auth.Tokens) == 0 && d.absent("auth.tokens")) {
		d.failAt("listen", "%q is reachable from other machines, so somebody must be named who may use it: add auth: {tokens: [{name: ops, role: admin, token: \"${OPS_TOKEN}\"}]}, or listen on 127.0.0.1", c.Listen)
	}
	c.checkNet(d)
	if c.Data == "" {
		d.failAt("data", "must name a folder")
	}
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "auto", "text", "json")
	oneOf("journal.sync", c.Journal.Sync, "normal", "full")
	if c.Journal.Retention < Duration(time.Hour) {
		d.failAt("journal.retention", "must be at least 1h")
	}
	if c.Journal.MaxBytes < 16<<20 {
		d.failAt("journal.max_bytes", "must be at least 16MiB")
	}
	c.checkRollups(d)
	secrets := map[Secret]string{}
	// secret reads and judges a secret; false: whether there is one cannot be said, and why was told.
	secret := func(path string, v *Secret, file string) bool {
		if d.broken(path + "_file") {
			return false
		}
		if file != "" {
			if *v != "" {
				d.failAt(path+"_file", "is given beside %s; one of them is enough", path)
				return false
			}
			p := file
			if !filepath.IsAbs(p) {
				from, _ := d.place(path)
				p = filepath.Join(filepath.Dir(from), p)
			}
			b, err := os.ReadFile(p)
			if err != nil {
				d.failAt(path+"_file", "%s cannot be read: %v", file, unwrapPath(err))
				return false
			}
			if *v = Secret(strings.TrimSpace(string(b))); *v == "" {
				d.failAt(path+"_file", "%s is empty", file)
				return false
			}
		}
		if *v == "" {
			return d.absent(path)
		}
		if len(*v) < minTokenLen {
			d.failAt(path, "is shorter than %d characters", minTokenLen)
		}
		if other, dup := secrets[*v]; dup {
			d.failAt(path, "is the same token as %s (%s)", d.local(other), d.at(other))
		}
		secrets[*v] = path
		return true
	}
	if c.Auth != nil {
		names := map[string]string{}
		if c.Auth.LoginFailuresPerMinute < 0 || c.Auth.CommandsPerSecond < 0 {
			d.failAt("auth", "limits must not be negative")
		}
		for i := range c.Auth.Tokens {
			t := &c.Auth.Tokens[i]
			p := fmt.Sprintf("auth.tokens[%d]", i)
			checkID(d, p+".name", t.Name)
			if first := names[t.Name]; t.Name != "" && first != "" {
				d.failAt(p+".name", "%q is given twice; it stands at %s already", t.Name, d.at(first))
			} else {
				names[t.Name] = p
			}
			oneOf(p+".role", t.Role, roles...)
			checkTokenNet(d, p, t)
			if secret(p+".token", &t.Token, t.TokenFile) && t.Token == "" {
				d.failAt(p+".token", "is missing; give token or token_file")
			}
		}
	}
	for i, s := range c.TrustedProxies {
		if _, err := parsePrefix(s); err != nil {
			d.failAt(fmt.Sprintf("trusted_proxies[%d]", i), "%v", err)
		}
	}
	for i, s := range c.AllowNetworks {
		if _, err := parsePrefix(s); err != nil {
			d.failAt(fmt.Sprintf("allow_networks[%d]", i), "%v", err)
		}
	}
	for i, s := range c.AllowedOrigins {
		u, err := url.Parse(s)
		if err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" {
			d.failAt(fmt.Sprintf("allowed_origins[%d]", i), "%q is not an origin such as https://status.example.com", s)
		}
	}
	c.checkMCPConfig(d)
	c.checkRegistries(d)
	c.checkProbeDefaults(d, oneOf, positive)
	if late, lost := c.Heartbeat.LateAfter, c.Heartbeat.LostAfter; (late == 0) != (lost == 0) {
		if late == 0 && d.absent("heartbeat.late_after") || lost == 0 && d.absent("heartbeat.lost_after") {
			d.failAt("heartbeat", "late_after and lost_after go together")
		}
	} else if late > lost {
		d.failAt("heartbeat.lost_after", "must not be shorter than late_after")
	}
	positive("transitions.stuck_after", c.Transitions.StuckAfter)
	if c.Flapping.Changes < 2 {
		d.failAt("flapping.changes", "must be at least 2")
	}
	positive("flapping.window", c.Flapping.Window)
	positive("flapping.quiet", c.Flapping.Quiet)

	envs := map[string]*EnvironmentConfig{}
	envAt := map[string]string{}
	// Where an id is not known, no reference can be said to lead nowhere.
	allEnvs := !d.partial && !d.broken("environments") && (len(c.Environments) > 0 || d.absent("environments"))
	for i := range c.Environments {
		e := &c.Environments[i]
		p := fmt.Sprintf("environments[%d]", i)
		checkID(d, p+".id", e.ID)
		if e.ID == "" {
			allEnvs = false
		} else if envs[e.ID] != nil {
			d.failAt(p+".id", "%q is given twice; it stands at %s already", e.ID, d.at(envAt[e.ID]))
		} else {
			envAt[e.ID] = p
		}
		envs[e.ID] = e
		checkText(d, p+".name", e.Name)
		secret(p+".agent_token", &e.AgentToken, e.AgentTokenFile)
		if e.AgentURL != "" {
			checkURL(d, p+".agent_url", e.AgentURL)
		}
		c.checkAgentCert(d, p+".agent_cert", e)
		if e.Address != "" && !registry.ValidHost(e.Address) {
			d.failAt(p+".address", "%q is not a host name or an IP address (without a port)", e.Address)
		}
	}
	servers := map[string]string{}
	containers := map[[2]string]string{}
	for i := range c.Servers {
		s := &c.Servers[i]
		p := fmt.Sprintf("servers[%d]", i)
		checkID(d, p+".id", s.ID)
		twice := s.ID != "" && servers[s.ID] != ""
		if twice {
			d.failAt(p+".id", "%q is given twice; it stands at %s already", s.ID, d.at(servers[s.ID]))
		} else {
			servers[s.ID] = p
		}
		checkText(d, p+".name", s.Name)
		env := envs[s.Environment]
		if s.Environment != "" {
			if env == nil && allEnvs {
				d.failAt(p+".environment", "no environment has the id %q", s.Environment)
			}
			if name, ok := containerOf(d, p, s); ok && !(twice && name == s.ID) {
				key := [2]string{s.Environment, name}
				if other := containers[key]; other != "" {
					d.failAt(p+".container", "%q is the container of %s (%s) already", name, d.local(other), d.at(other))
				}
				containers[key] = p
			}
		}
		if s.Transport != "" && !statussync.Transport(s.Transport).Valid() {
			d.failAt(p+".transport", "must be one of streamable-http, sse, http, stdio, not %q", s.Transport)
		}
		if s.Desired != "" {
			oneOf(p+".desired", s.Desired, "running", "stopped")
		}
		if s.Endpoint != "" {
			checkURL(d, p+".endpoint", s.Endpoint)
		}
		c.checkProbe(d, p+".probe", s, env)
	}
}

func (c *Config) checkProbeDefaults(d *decoder, oneOf func(string, string, ...string), positive func(string, Duration)) {
	pr := &c.Probe
	if pr.Kind != "" || !d.absent("probe.kind") {
		oneOf("probe.kind", pr.Kind, "http", "mcp", "none")
	}
	if !strings.HasPrefix(pr.Path, "/") {
		d.failAt("probe.path", "must begin with /")
	}
	positive("probe.interval", pr.Interval)
	positive("probe.timeout", pr.Timeout)
	if pr.Interval > 0 && pr.Interval < Duration(minProbeInterval) {
		d.failAt("probe.interval", "must be at least %s", formatDuration(minProbeInterval))
	}
	if pr.MaxRetries < 0 || pr.MaxRetries > 20 {
		d.failAt("probe.max_retries", "must be between 0 and 20")
	}
	if pr.BackoffMultiplier < 1 || pr.BackoffMultiplier > 10 {
		d.failAt("probe.backoff_multiplier", "must be between 1 and 10")
	}
	if pr.Rise < 1 || pr.Rise > 100 {
		d.failAt("probe.rise", "must be between 1 and 100")
	}
	positive("probe.slow_after", pr.SlowAfter)
	if pr.Concurrency < 1 || pr.Concurrency > 10_000 {
		d.failAt("probe.concurrency", "must be between 1 and 10000")
	}
	if pr.PerEnvironment < 1 {
		d.failAt("probe.per_environment", "must be at least 1")
	}
}

// minProbeInterval protects servers from a configuration's slip.
const minProbeInterval = 100 * time.Millisecond

func (c *Config) checkProbe(d *decoder, p string, s *ServerConfig, env *EnvironmentConfig) {
	pr := &s.Probe
	switch pr.Kind {
	case "", "http", "mcp", "none":
	default:
		d.failAt(p+".kind", "must be one of http, mcp, none, not %q", pr.Kind)
	}
	if pr.Path != "" && !strings.HasPrefix(pr.Path, "/") {
		d.failAt(p+".path", "must begin with /")
	}
	if pr.Interval != 0 && pr.Interval < Duration(minProbeInterval) {
		d.failAt(p+".interval", "must be at least %s", formatDuration(minProbeInterval))
	}
	if pr.MaxRetries != nil && (*pr.MaxRetries < 0 || *pr.MaxRetries > 20) {
		d.failAt(p+".max_retries", "must be between 0 and 20")
	}
	if pr.BackoffMultiplier != 0 && (pr.BackoffMultiplier < 1 || pr.BackoffMultiplier > 10) {
		d.failAt(p+".backoff_multiplier", "must be between 1 and 10")
	}
	if pr.Rise < 0 || pr.Rise > 100 {
		d.failAt(p+".rise", "must be between 1 and 100")
	}
	if pr.Expect != "" && pr.Expect != "open" {
		d.failAt(p+".expect", "must be open or absent, not %q", pr.Expect)
	}
	if pr.Canary != nil && !d.broken(p+".canary") {
		canary, err := pr.Canary.spec()
		switch {
		case err != nil:
			d.failAt(p+".canary.arguments", "can't be written as JSON")
		case pr.Kind == "http" || pr.Kind == "none" || s.Transport == "http" || s.Transport == "stdio":
			d.failAt(p+".canary", "needs a server that is probed as MCP")
		default:
			if field, fault := registry.CanaryFault(canary); fault != "" && !(field == "tool" && !d.absent(p+".canary.tool") && canary.Tool == "") {
				d.failAt(p+".canary."+field, "%s", fault)
			}
		}
	}
	where, target := p+".url", pr.URL
	if target == "" {
		where, target = strings.TrimSuffix(p, ".probe")+".endpoint", s.Endpoint
	} else {
		checkURL(d, where, target)
	}
	if env == nil || pr.Kind == "none" || d.broken(p+".kind") || d.broken(p+".url") {
		target = "" // what is probed, if anything, is not this
	}
	if target != "" && (&statussync.Environment{Address: env.Address, AgentURL: env.AgentURL}).AgentAnswersAt(target) {
		d.failAt(where, "is the address of the agent of %q, not of the server: a probe there would only prove that the agent lives", env.ID)
	}
	c.headerFiles(d, p+".headers", pr.Headers)
	for k, v := range pr.Headers {
		if k == "" || strings.ContainsAny(k, " \t\r\n:") || strings.ContainsAny(string(v), "\r\n") {
			d.failAt(p+".headers", "%q is not a header", k)
		}
	}
}

// fileSuffix of a header's name says that its value is in a file, as token_file says it of a token.
const fileSuffix = "_file"

// headerFiles replaces the headers that are given as files by what the files hold. Errors name the file and never a value.
func (c *Config) headerFiles(d *decoder, path string, headers map[string]Secret) {
	for _, k := range slices.Sorted(maps.Keys(headers)) {
		name, isFile := strings.CutSuffix(k, fileSuffix)
		if !isFile || name == "" {
			continue
		}
		file := string(headers[k])
		delete(headers, k)
		if _, twice := headers[name]; twice {
			d.failAt(path, "%q is given beside %q; one of them is enough", k, name)
			continue
		}
		p := file
		if !filepath.IsAbs(p) {
			from, _ := d.place(path)
			p = filepath.Join(filepath.Dir(from), p)
		}
		b, err := os.ReadFile(p)
		switch v := strings.TrimSpace(string(b)); {
		case file == "":
			d.failAt(path, "%q names no file", k)
		case err != nil:
			d.failAt(path, "%q: %s cannot be read: %v", k, file, unwrapPath(err))
		case v == "":
			d.failAt(path, "%q: %s is empty", k, file)
		default:
			headers[name] = Secret(v)
		}
	}
}

// containerOf is the name of a server's container; false: it, or what would take its place, is not known.
func containerOf(d *decoder, path string, s *ServerConfig) (name string, ok bool) {
	for _, f := range []struct{ key, value string }{{"container", s.Container}, {"name", s.Name}, {"id", s.ID}} {
		if f.value != "" {
			return f.value, true
		}
		if !d.absent(path + "." + f.key) {
			break
		}
	}
	return "", false
}

func checkID(d *decoder, path, id string) {
	if id != "" || d.absent(path) {
		failIf(d, path, registry.IDFault(id))
	}
}

func checkText(d *decoder, path, s string) { failIf(d, path, registry.TextFault(s)) }

func checkURL(d *decoder, path, s string) { failIf(d, path, registry.URLFault(s)) }

func failIf(d *decoder, path, fault string) {
	if fault != "" {
		d.failAt(path, "%s", fault)
	}
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

func parsePrefix(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.Prefix{}, fmt.Errorf("%q is not a network such as 10.0.0.0/8", s)
}

func firstOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

// Policy returns the engine's policy with what the configuration says of it.
func (c *Config) Policy() engine.Policy {
	p := engine.DefaultPolicy()
	retries := c.Probe.MaxRetries
	p.Probe = statussync.ProbeSpec{
		Kind: statussync.ProbeKind(c.Probe.Kind), Path: c.Probe.Path, Interval: time.Duration(c.Probe.Interval),
		Timeout: time.Duration(c.Probe.Timeout), MaxRetries: &retries, BackoffMultiplier: c.Probe.BackoffMultiplier,
		Rise: c.Probe.Rise, StartGrace: time.Duration(c.Probe.StartGrace), SlowAfter: time.Duration(c.Probe.SlowAfter),
	}
	p.LateAfter, p.LostAfter = time.Duration(c.Heartbeat.LateAfter), time.Duration(c.Heartbeat.LostAfter)
	p.StuckAfter = time.Duration(c.Transitions.StuckAfter)
	p.FlapChanges, p.FlapWindow, p.FlapQuiet = c.Flapping.Changes, time.Duration(c.Flapping.Window), time.Duration(c.Flapping.Quiet)
	if c.scale != 1 {
		p = p.Scaled(c.scale)
	}
	return p
}

// Registry returns the servers and environments that the configuration defines.
func (c *Config) Registry() *statussync.RegistryUpdate {
	r := &statussync.RegistryUpdate{Origin: statussync.OriginConfig, Full: true}
	for i := range c.Environments {
		e := &c.Environments[i]
		r.Environments = append(r.Environments, statussync.Environment{
			ID: e.ID, Name: firstOf(e.Name, e.ID), Owner: e.Owner, Address: e.Address, AgentURL: e.AgentURL,
			HasToken: e.AgentToken != "", Origin: statussync.OriginConfig,
		})
	}
	for i := range c.Servers {
		s := &c.Servers[i]
		desired := statussync.Desired(s.Desired)
		if desired == "" {
			desired = statussync.DesiredRunning
		}
		transport := statussync.Transport(s.Transport)
		if transport == "" {
			transport = statussync.TransportStreamableHTTP
		}
		var headers map[string]string
		if len(s.Probe.Headers) > 0 {
			headers = make(map[string]string, len(s.Probe.Headers))
			for k, v := range s.Probe.Headers {
				headers[k] = string(v)
			}
		}
		canary, _ := s.Probe.Canary.spec() // the check has made it before
		scale := func(d Duration) time.Duration { return time.Duration(float64(d) * c.scale) }
		r.Servers = append(r.Servers, statussync.Server{
			ID: s.ID, Name: firstOf(s.Name, s.ID), EnvironmentID: s.Environment, Owner: s.Owner, Container: s.Container,
			Endpoint: s.Endpoint, Transport: transport, Type: s.Type, Desired: desired, Labels: s.Labels,
			Capabilities: s.Capabilities, Origin: statussync.OriginConfig, Disabled: s.Disabled,
			Probe: statussync.ProbeSpec{
				Kind: statussync.ProbeKind(s.Probe.Kind), URL: s.Probe.URL, Path: s.Probe.Path,
				Interval: scale(s.Probe.Interval), Timeout: scale(s.Probe.Timeout), MaxRetries: s.Probe.MaxRetries,
				BackoffMultiplier: s.Probe.BackoffMultiplier, Rise: s.Probe.Rise, StartGrace: scale(s.Probe.StartGrace),
				SlowAfter: scale(s.Probe.SlowAfter), Expect: s.Probe.Expect, Canary: canary, Headers: headers,
			},
		})
	}
	return r
}
