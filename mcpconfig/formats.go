package mcpconfig

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/agentopia/statussync"
)

// urlFault judges a remote server's address; its words hold nothing of it, since it may hold a secret anywhere.
func urlFault(s string) string {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return "is not a URL"
	case u.Scheme == "ws" || u.Scheme == "wss":
		return "is of a WebSocket; MCP speaks http and https"
	case u.Scheme != "http" && u.Scheme != "https":
		return "must begin with http:// or https://"
	case u.Hostname() == "":
		return "has no host"
	case u.User != nil:
		return "holds a user name or password; give these as a header"
	}
	return ""
}

// serverJSON reads the registry's description of one server (its schema 2025-12-11 and the ones before): its first
// remote, streamable HTTP before SSE, else its first package as a command.
func (r *reader) serverJSON(n node) (Entry, error) {
	e, x := r.named(firstOf(n.get("name").text(), n.get("title").text()), n)
	if !n.isObject() {
		return e, n.fault("a server must be an object")
	}
	var remote node
	for _, m := range n.get("remotes").elements() {
		t := remoteType(m)
		if !remote.ok() && (t == statussync.TransportStreamableHTTP || t == statussync.TransportSSE) ||
			t == statussync.TransportStreamableHTTP && remoteType(remote) != statussync.TransportStreamableHTTP {
			remote = m
		}
	}
	if remote.ok() {
		e.Transport = remoteType(remote)
		return r.remote(e, x, remote)
	}
	if packages := n.get("packages").elements(); len(packages) > 0 {
		if t := packages[0].get("transport"); t.get("url").ok() && remoteType(t) != statussync.TransportStdio {
			e.Transport = remoteType(t)
			return r.remote(e, x, t)
		}
		return r.pkg(e, x, packages[0])
	}
	return e, of(e.Name, n.fault("has neither a remote of a known type nor a package"))
}

func remoteType(n node) statussync.Transport {
	return transports[strings.ToLower(firstOf(n.get("type").text(), n.get("transport_type").text()))]
}

func (r *reader) remote(e Entry, x *expander, n node) (Entry, error) {
	u, err := n.get("url").str("url")
	if err != nil {
		return e, of(e.Name, err)
	}
	e.URL = x.template(u, n.get("variables"))
	e.Headers = map[string]string{}
	for _, h := range n.get("headers").elements() {
		name := statussync.CleanText(h.get("name").text(), statussync.MaxWordText)
		v, ok := x.input(h)
		switch required, _ := h.get("isRequired").boolean("isRequired"); {
		case name == "" || strings.ContainsAny(v, "\r\n\x00"):
			return e, of(e.Name, h.fault("a header has no name, or characters that are not allowed"))
		case ok:
			e.Headers[name] = v
			x.hide(v)
		case required:
			x.miss("the header " + name + " has no value")
		}
	}
	if len(e.Headers) == 0 {
		e.Headers = nil
	}
	return r.finish(e, x, n)
}

// input is the value of what the registry calls an input: given, or its default.
func (x *expander) input(n node) (string, bool) {
	v := n.get("value", "default")
	s, err := v.scalar("value")
	if err != nil || v.null() {
		return "", false
	}
	return x.template(s, n.get("variables")), true
}

// template replaces {name} by the variable's value, and ${NAME} as everywhere.
func (x *expander) template(s string, variables node) string {
	s = x.expand(s)
	for _, m := range variables.members() {
		hole := "{" + m.key + "}"
		if !strings.Contains(s, hole) {
			continue
		}
		if v, ok := x.input(m.node); ok {
			s = strings.ReplaceAll(s, hole, v)
			continue
		}
		x.miss(statussync.CleanText(m.key, statussync.MaxWordText) + " has no value")
	}
	if i := strings.IndexByte(s, '{'); i >= 0 && !variables.ok() {
		if end := strings.IndexByte(s[i:], '}'); end > 1 {
			x.miss(statussync.CleanText(s[i+1:i+end], statussync.MaxWordText) + " has no value")
		}
	}
	return s
}

// pkg makes the command that the registry's clients would run for a package.
func (r *reader) pkg(e Entry, x *expander, n node) (Entry, error) {
	id, version := n.get("identifier", "name").text(), n.get("version").text()
	if id == "" {
		return e, of(e.Name, n.fault("a package has no identifier"))
	}
	at := func(sep string) string {
		if version == "" || version == "latest" {
			return id
		}
		return id + sep + version
	}
	e.Transport = statussync.TransportStdio
	hint := n.get("runtimeHint").text()
	runtime := r.arguments(n.get("runtimeArguments"), x)
	var before, after []string
	switch kind := firstOf(n.get("registryType").text(), n.get("registry_name").text()); kind {
	case "npm":
		hint, after = firstOf(hint, "npx"), []string{at("@")}
		if len(runtime) == 0 && hint == "npx" {
			before = []string{"-y"}
		}
	case "pypi":
		hint, after = firstOf(hint, "uvx"), []string{at("==")}
	case "oci", "docker":
		hint, before, after = firstOf(hint, "docker"), []string{"run", "-i", "--rm"}, []string{id}
		if version != "" && !strings.Contains(id, ":") {
			after = []string{id + ":" + version}
		}
	case "nuget":
		hint, after = firstOf(hint, "dnx"), []string{at("@")}
	default:
		x.miss("packages of the kind " + strconv.Quote(statussync.CleanText(kind, statussync.MaxWordText)) + " have no known command")
	}
	e.Command = hint
	e.Env = map[string]string{}
	for _, v := range n.get("environmentVariables").elements() {
		name := v.get("name").text()
		if name == "" || strings.ContainsAny(name, "=\x00") {
			continue
		}
		val, ok := x.input(v)
		if !ok && r.o.Lookup != nil {
			val, ok = r.o.Lookup(name)
		}
		required, _ := v.get("isRequired").boolean("isRequired")
		switch {
		case ok && !strings.Contains(val, "\x00"):
			e.Env[name] = val
			x.hide(val)
			if hint == "docker" {
				before = append(before, "-e", name) // the name alone: docker takes the value from its own environment
			}
		case required:
			x.miss(statussync.CleanText(name, statussync.MaxWordText) + " is not set")
		}
	}
	if len(e.Env) == 0 {
		e.Env = nil
	}
	e.Args = append(append(before, runtime...), append(after, r.arguments(n.get("packageArguments"), x)...)...)
	return r.finish(e, x, n)
}

// arguments reads the registry's positional and named arguments.
func (r *reader) arguments(n node, x *expander) (out []string) {
	for _, a := range n.elements() {
		if len(out) >= maxArgs {
			break
		}
		v, ok := x.input(a)
		name := a.get("name").text()
		switch required, _ := a.get("isRequired").boolean("isRequired"); {
		case a.get("type").text() == "named" && name != "":
			if out = append(out, name); ok {
				out = append(out, v)
			}
		case ok:
			out = append(out, v)
		case required:
			x.miss("the argument " + statussync.CleanText(firstOf(a.get("valueHint").text(), name, "without a name"), statussync.MaxWordText) + " has no value")
		}
	}
	return out
}

// registryList reads the registry's answer to GET /v0.1/servers: of each server its latest version.
func (r *reader) registryList(list node) error {
	for _, m := range list.elements() {
		s := m.get("server")
		if !s.ok() {
			s = m // the registry's first form had no envelope
		}
		official := m.get("_meta").get("io.modelcontextprotocol.registry/official")
		if latest, err := official.get("isLatest").boolean("isLatest"); err == nil && official.get("isLatest").ok() && !latest {
			continue
		}
		if status := official.get("status").text(); status == "deleted" {
			continue
		}
		if !s.get("remotes").ok() && !s.get("packages").ok() {
			continue // described, but nowhere to be had
		}
		r.add(r.serverJSON(s))
	}
	return nil
}

// toolhive reads ToolHive's RunConfig: its proxy on this machine, else the remote server.
func (r *reader) toolhive(n node) (Entry, error) {
	e, x := r.named(firstOf(n.get("name").text(), n.get("container_name").text(), n.get("image").text()), n)
	word := strings.ToLower(n.get("transport").text())
	if mode := n.get("proxy_mode").text(); word == "stdio" || word == "" {
		word = firstOf(mode, "sse") // what ToolHive's proxy speaks for a stdio server where nothing is said
	}
	e.Transport = transports[word]
	if e.Transport == "" || e.Transport == statussync.TransportStdio {
		return e, of(e.Name, n.fault("transport must be one of stdio, sse, streamable-http"))
	}
	port, err := n.get("port", "proxy_port").scalar("port")
	if err != nil {
		return e, of(e.Name, err)
	}
	switch remote := n.get("remote_url").text(); {
	case port != "" && port != "0":
		p, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return e, of(e.Name, n.get("port", "proxy_port").fault("port must be a number between 1 and 65535"))
		}
		e.URL = proxyURL(firstOf(n.get("host").text(), "127.0.0.1"), int(p), e.Transport)
	case remote != "":
		e.URL = x.expand(remote)
	default:
		x.miss("its port is not known")
	}
	return r.finish(e, x, n)
}

func proxyURL(host string, port int, t statussync.Transport) string {
	if a, err := netip.ParseAddr(host); err == nil && a.IsUnspecified() {
		host = "127.0.0.1" // listened on everywhere is reached here
	}
	path := "/mcp"
	if t == statussync.TransportSSE {
		path = "/sse"
	}
	return (&url.URL{Scheme: "http", Host: net.JoinHostPort(host, strconv.Itoa(port)), Path: path}).String()
}

// containers reads what docker inspect prints, and takes the containers that are labelled as MCP servers.
func (r *reader) containers(root node) error {
	r.file.Format = FormatDocker
	list := root.elements()
	if root.isObject() {
		list = []node{root}
	}
	for _, c := range list {
		labels := map[string]string{}
		for _, m := range c.get("Config").get("Labels").members() {
			labels[m.key] = m.text()
		}
		if !c.get("Config").ok() {
			return c.fault("is no configuration of MCP servers that is known; a list must be what docker inspect prints")
		}
		e, ok := FromLabels(strings.TrimPrefix(c.get("Name").text(), "/"), labels, publishedPort(c))
		if !ok {
			continue
		}
		e.Source, e.Line = r.file.Name, c.line()
		r.add(e, nil)
	}
	return nil
}

// publishedPort is the first TCP port of a container that is published, or 0.
func publishedPort(c node) int {
	for _, p := range c.get("NetworkSettings").get("Ports").members() {
		if !strings.HasSuffix(p.key, "/tcp") {
			continue
		}
		for _, b := range p.elements() {
			if n, err := strconv.ParseUint(b.get("HostPort").text(), 10, 16); err == nil && n > 0 {
				return int(n)
			}
		}
	}
	return 0
}

// FromLabels makes an entry of a container's labels, of ToolHive ("toolhive": "true") or Docker's MCP gateway
// ("docker-mcp": "true"); ok is false for any other container. publicPort is the port under which this machine reaches
// it, 0 where none is published: such a server is seen through its host's agent only.
func FromLabels(container string, labels map[string]string, publicPort int) (e Entry, ok bool) {
	var word, name string
	port := publicPort
	switch {
	case labels["toolhive"] == "true":
		name, word = firstOf(labels["toolhive-name"], labels["toolhive-basename"]), labels["toolhive-transport"]
		if n, err := strconv.ParseUint(labels["toolhive-port"], 10, 16); err == nil && n > 0 {
			port = int(n)
		}
		if word == "stdio" && port > 0 {
			word = "sse" // its proxy speaks that
		}
	case labels["docker-mcp"] == "true":
		name, word = labels["docker-mcp-name"], labels["docker-mcp-transport"]
	default:
		return Entry{}, false
	}
	e = Entry{Name: statussync.CleanText(firstOf(name, container, "(without a name)"), statussync.MaxNameText), Transport: transports[strings.ToLower(word)]}
	switch {
	case e.Transport == "" && port == 0:
		e.Transport = statussync.TransportStdio
	case e.Transport == "":
		e.Transport = statussync.TransportStreamableHTTP
	}
	if e.Transport != statussync.TransportStdio {
		if port > 0 {
			e.URL = proxyURL("127.0.0.1", port, e.Transport)
		} else {
			e.NeedsConfig = "its container publishes no port"
		}
	}
	return e, true
}
