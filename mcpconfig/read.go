package mcpconfig

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/agentopia/statussync"
)

// ReadFile is Parse of a file's content. A file that does not exist has CodeNotFound.
func ReadFile(path string, o Options) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		code := statussync.CodeInvalid
		if errors.Is(err, os.ErrNotExist) {
			code = statussync.CodeNotFound
		}
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, &statussync.Error{Code: code, Location: path, Detail: "cannot be read: " + err.Error()}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return nil, &statussync.Error{Code: statussync.CodeInvalid, Location: path, Detail: "cannot be read", Err: err}
	}
	return Parse(path, data, o)
}

// Parse reads a configuration in any of the formats, which it tells apart by their shape. name stands in errors; its
// folder is what ${workspaceFolder} means. The error has CodeInvalid where the file can't be read, and CodeNotFound where it
// is an object that is about something else (editors keep their servers among other settings); single servers that can't be understood are in File.Errors.
func Parse(name string, data []byte, o Options) (*File, error) {
	d, err := parse(name, data)
	if err != nil {
		return nil, err
	}
	r := &reader{o: &o, file: &File{Name: name}, folder: folderOf(name)}
	root := node{d, &d.root}
	if err := r.format(root); err != nil {
		return nil, err
	}
	if n := len(r.file.Entries) + len(r.file.Errors); n > MaxServers {
		return nil, statussync.Invalid(name, "names "+strconv.Itoa(n)+" servers; at most "+strconv.Itoa(MaxServers)+" are read")
	}
	return r.file, nil
}

// folderOf is the project's folder: that of the file, or the one above where clients keep it in a folder of their own.
func folderOf(name string) string {
	dir, err := filepath.Abs(filepath.Dir(name))
	if err != nil {
		return ""
	}
	switch filepath.Base(dir) {
	case ".vscode", ".cursor", ".gemini", ".idea":
		return filepath.Dir(dir)
	}
	return dir
}

type reader struct {
	o      *Options
	file   *File
	folder string
}

// format finds out whose file it is, and reads it.
func (r *reader) format(root node) error {
	switch {
	case root.isArray():
		return r.containers(root)
	case !root.isObject():
		return root.fault("is no configuration of MCP servers: it must be an object")
	case root.get("mcpServers").ok():
		r.file.Format = FormatMCPServers
		return r.claude(root)
	case root.get("servers").isArray():
		r.file.Format = FormatRegistryList
		return r.registryList(root.get("servers"))
	case root.get("servers").isObject():
		r.file.Format = FormatVSCode
		return r.servers(root.get("servers"), "servers", false)
	case root.get("mcp").get("servers").isObject(): // in VS Code's own settings
		r.file.Format = FormatVSCode
		return r.servers(root.get("mcp").get("servers"), "mcp.servers", false)
	case root.get("remotes").isArray() || root.get("packages").isArray():
		r.file.Format = FormatServerJSON
		r.add(r.serverJSON(root))
		return nil
	case root.get("schema_version").ok() || root.get("remote_url").ok() || (root.get("image").ok() && root.get("transport").ok()):
		r.file.Format = FormatToolHive
		r.add(r.toolhive(root))
		return nil
	case root.get("projects").isObject(): // Claude Code's own state, of somebody who has no server yet
		r.file.Format = FormatMCPServers
		return r.claude(root)
	case root.get("Config").isObject() && root.get("Id").ok(): // one container
		return r.containers(root)
	}
	err := root.fault("names no MCP servers: it has none of mcpServers, servers, remotes, packages, schema_version")
	err.Code = statussync.CodeNotFound
	return err
}

// add takes what one server gave.
func (r *reader) add(e Entry, err error) {
	var se *statussync.Error
	switch {
	case err == nil:
		r.file.Entries = append(r.file.Entries, e)
	case errors.As(err, &se):
		r.file.Errors = append(r.file.Errors, se)
	default:
		r.file.Errors = append(r.file.Errors, statussync.Invalid(r.file.Name, err.Error()))
	}
}

// claude reads mcpServers, and the project's of Claude Code's own state file.
func (r *reader) claude(root node) error {
	servers := root.get("mcpServers")
	// Gemini means SSE by url where it also knows httpUrl; no other client has that word.
	gemini := filepath.Base(filepath.Dir(r.file.Name)) == ".gemini"
	for _, m := range servers.members() {
		gemini = gemini || m.get("httpUrl").ok()
	}
	if servers.ok() {
		if err := r.servers(servers, "mcpServers", gemini); err != nil {
			return err
		}
	}
	if r.o.Project != "" {
		if p := root.get("projects").get(r.o.Project).get("mcpServers"); p.ok() {
			r.folder = r.o.Project
			return r.servers(p, "mcpServers of the project", false)
		}
	}
	return nil
}

func (r *reader) servers(list node, key string, urlIsSSE bool) error {
	if !list.isObject() {
		return list.fault("%s must be an object: each server under its name", key)
	}
	for _, m := range list.members() {
		r.add(r.server(m.key, m.node, urlIsSSE))
	}
	return nil
}

// named begins an entry.
func (r *reader) named(name string, n node) (Entry, *expander) {
	shown := statussync.CleanText(name, statussync.MaxNameText)
	if shown == "" {
		shown = "(without a name)"
	}
	return Entry{Name: shown, Source: r.file.Name, Line: n.line()}, &expander{o: r.o, folder: r.folder}
}

// of puts the server's name before an error.
func of(name string, err error) error {
	var se *statussync.Error
	if errors.As(err, &se) {
		c := *se
		c.Detail = strconv.Quote(name) + ": " + se.Detail
		return &c
	}
	return err
}

// transports are the words that the clients have for them.
var transports = map[string]statussync.Transport{
	"stdio": statussync.TransportStdio, "local": statussync.TransportStdio, "command": statussync.TransportStdio,
	"http": statussync.TransportStreamableHTTP, "streamable-http": statussync.TransportStreamableHTTP,
	"streamablehttp": statussync.TransportStreamableHTTP, "streamable_http": statussync.TransportStreamableHTTP,
	"sse": statussync.TransportSSE,
}

// server reads one server in the words of the clients' files, which differ little.
func (r *reader) server(name string, n node, urlIsSSE bool) (Entry, error) {
	e, x := r.named(name, n)
	fail := func(err error) (Entry, error) { return Entry{}, of(e.Name, err) }
	if !n.isObject() {
		return fail(n.fault("must be an object with a command or a url"))
	}
	var err error
	var faults []error
	str := func(keys ...string) (s string) {
		if s, err = n.get(keys...).str(keys[0]); err != nil {
			faults = append(faults, err)
		}
		return s
	}
	word, httpURL, url, command := str("type", "transport"), str("httpUrl"), str("url", "serverUrl", "endpoint"), str("command")
	if _, isWord := transports[strings.ToLower(word)]; word != "" && !isWord {
		faults = append(faults, n.get("type", "transport").fault("type must be one of stdio, http, streamable-http, sse, not %q", statussync.CleanText(word, statussync.MaxWordText)))
	}
	if e.Disabled, err = n.get("disabled").boolean("disabled"); err != nil {
		faults = append(faults, err)
	}
	if on := n.get("enabled"); on.ok() {
		v, err := on.boolean("enabled")
		if err != nil {
			faults = append(faults, err)
		}
		e.Disabled = e.Disabled || !v
	}
	e.Dir = x.home(x.expand(str("cwd")))
	if e.Args, err = r.args(n.get("args"), x); err != nil {
		faults = append(faults, err)
	}
	if e.Env, err = r.values(n.get("env"), "env", x); err != nil {
		faults = append(faults, err)
	}
	if e.Headers, err = r.values(n.get("headers"), "headers", x); err != nil {
		faults = append(faults, err)
	}
	e.Transport = transports[strings.ToLower(word)]
	switch {
	case len(faults) > 0:
		return fail(faults[0])
	case e.Transport == statussync.TransportStdio && command == "":
		return fail(n.fault("has the type stdio and no command"))
	case e.Transport != "" && e.Transport != statussync.TransportStdio && url == "" && httpURL == "":
		return fail(n.fault("has the type %s and no url", word))
	case command == "" && url == "" && httpURL == "":
		return fail(n.fault("has neither a command nor a url"))
	case e.Transport == "" && httpURL == "" && url == "", e.Transport == statussync.TransportStdio:
		e.Transport = statussync.TransportStdio
	case e.Transport != "":
		e.URL = firstOf(url, httpURL)
	case httpURL != "":
		e.Transport, e.URL = statussync.TransportStreamableHTTP, httpURL
	case urlIsSSE:
		e.Transport, e.URL = statussync.TransportSSE, url
	default:
		e.Transport, e.URL = statussync.TransportStreamableHTTP, url
	}
	if e.Transport == statussync.TransportStdio {
		e.Command, e.Headers = x.home(x.expand(command)), nil
	} else {
		e.URL, e.Args, e.Env, e.Dir = x.expand(e.URL), nil, nil, ""
	}
	return r.finish(e, x, n)
}

// finish checks what all formats have in common.
func (r *reader) finish(e Entry, x *expander, n node) (Entry, error) {
	e.NeedsConfig = x.needs()
	x.hideAll(&e)
	e.Unshown = x.secrets
	if e.Transport != statussync.TransportStdio && e.NeedsConfig == "" {
		if fault := urlFault(e.URL); fault != "" {
			return Entry{}, of(e.Name, n.fault("url %s", fault))
		}
	}
	return e, nil
}

func firstOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

// maxArgs bounds a command's arguments.
const maxArgs = 1000

func (r *reader) args(n node, x *expander) ([]string, error) {
	if n.null() {
		return nil, nil
	}
	if !n.isArray() {
		return nil, n.fault("args must be a list of strings")
	}
	list := n.elements()
	if len(list) > maxArgs {
		return nil, n.fault("args has more than %d elements", maxArgs)
	}
	out := make([]string, 0, len(list))
	for i, a := range list {
		s, err := a.scalar(fmt.Sprintf("args[%d]", i))
		if err != nil {
			return nil, err
		}
		out = append(out, x.expand(s))
	}
	return out, nil
}

// values reads env or headers: every value is a secret, wherever it came from.
func (r *reader) values(n node, what string, x *expander) (map[string]string, error) {
	if n.null() {
		return nil, nil
	}
	if !n.isObject() {
		return nil, n.fault("%s must be an object of strings", what)
	}
	out := map[string]string{}
	for _, m := range n.members() {
		s, err := m.scalar(what + "." + statussync.CleanText(m.key, statussync.MaxWordText))
		if err != nil {
			return nil, err
		}
		if m.null() {
			continue // VS Code: take the variable away; there is nothing to set
		}
		if m.key == "" || strings.ContainsAny(m.key, "=\x00\r\n") || strings.ContainsAny(s, "\x00") || what == "headers" && strings.ContainsAny(s, "\r\n") {
			return nil, m.fault("%s has a name or value with characters that are not allowed there", what)
		}
		s = x.expand(s)
		x.hide(s)
		out[m.key] = s
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// home replaces a leading "~/".
func (x *expander) home(s string) string {
	if rest, ok := strings.CutPrefix(s, "~/"); ok && x.o.Home != "" {
		return filepath.Join(x.o.Home, rest)
	}
	return s
}
