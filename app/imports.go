package app

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/mcpconfig"
	"github.com/agentopia/statussync/prom"
	"github.com/agentopia/statussync/wire"
)

// importEvery is how often the files of mcp_config are read.
const importEvery = 2 * time.Second

// maxImports bounds the files of mcp_config.
const maxImports = 32

// importPath is where a file of mcp_config is: relative to dir, and below home where it begins with "~/".
func importPath(dir, file string) string {
	if rest, ok := strings.CutPrefix(file, "~/"); ok {
		if home, err := os.UserHomeDir(); err == nil {
			return filepath.Join(home, rest)
		}
	}
	if filepath.IsAbs(file) {
		return filepath.Clean(file)
	}
	return filepath.Join(dir, file)
}

// importPaths are the files that define servers beside the configuration: its own, then those of the command line.
func (s *service) importPaths(c *Config) []string {
	var out []string
	for _, f := range c.MCPConfig {
		out = append(out, importPath(c.dir, f))
	}
	for _, f := range s.options.MCPConfigs {
		if p := importPath("", f); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// CheckMCPConfig reads a file as --mcp-config does. The error has CodeInvalid and names file and line, where there is one.
func CheckMCPConfig(file string) error {
	p := importPath("", file)
	data, err := readImport(p)
	if err == nil {
		_, err = parseImport(p, data)
	}
	return err
}

// checkMCPConfig checks the files of mcp_config. Single servers that can't be understood are told when they are imported.
func (c *Config) checkMCPConfig(d *decoder) {
	if len(c.MCPConfig) > maxImports {
		d.failAt("mcp_config", "lists %d files; at most %d are read", len(c.MCPConfig), maxImports)
		return
	}
	seen := map[string]bool{}
	for i, f := range c.MCPConfig {
		at := fmt.Sprintf("mcp_config[%d]", i)
		if d.broken(at) {
			continue
		}
		if f == "" {
			if d.absent(at) {
				d.failAt(at, "must name a file")
			}
			continue
		}
		p := importPath(c.dir, f)
		if seen[p] {
			d.failAt(at, "%q is given twice", f)
			continue
		}
		seen[p] = true
		data, err := readImport(p)
		if err == nil {
			_, err = parseImport(p, data)
		}
		if err != nil {
			d.failAt(at, "%v", err)
		}
	}
}

// readImport returns the bytes of a file of mcp_config. Only regular files are opened: another one could block for ever.
func readImport(path string) ([]byte, error) {
	fail := func(code statussync.Code, detail string) error {
		return &statussync.Error{Code: code, Location: path, Detail: detail}
	}
	unreadable := func(err error) error {
		code := statussync.CodeInvalid
		if errors.Is(err, os.ErrNotExist) {
			code = statussync.CodeNotFound
		}
		return fail(code, "cannot be read: "+unwrapPath(err).Error())
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, unreadable(err)
	}
	if !st.Mode().IsRegular() {
		return nil, fail(statussync.CodeInvalid, "is no file that can be read again and again")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, unreadable(err)
	}
	defer f.Close() // it was only read
	data, err := io.ReadAll(io.LimitReader(f, mcpconfig.MaxBytes+1))
	if err != nil {
		return nil, unreadable(err)
	}
	if len(data) > mcpconfig.MaxBytes {
		return nil, fail(statussync.CodeInvalid, "is larger than "+strconv.Itoa(mcpconfig.MaxBytes>>20)+" MiB")
	}
	return data, nil
}

func parseImport(path string, data []byte) (*mcpconfig.File, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, statussync.Invalid(path, "is empty")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "" // ${userHome} then stays unresolved, which is told
	}
	return mcpconfig.Parse(path, data, mcpconfig.Options{Lookup: os.LookupEnv, Home: home})
}

// imports are the servers of the files of mcp_config as they were last read. The service's turn is held by whoever calls a
// method, except stats.
type imports struct {
	files  []*importedFile
	hidden map[string]bool // ids that other registries define, as last told

	mu  sync.Mutex // guards sum
	sum importStats
}

type importStats struct{ files, bad, servers, conflicts int }

// importedFile is one file.
type importedFile struct {
	path    string
	entries []mcpconfig.Entry // in force
	fault   string            // what was last told of it; "": it is good
	// drastic is the content that would remove many servers; it counts when it is read a second time.
	drastic [sha256.Size]byte
}

// refresh reads the files. What can't be read or understood leaves in force what the file, or the server of that name in
// it, was before, and is an error. With doubt a content that removes more than 20 % and more than 5 of a file's servers
// (docs/domain.md) counts only when it is read again; again then reports that it should be.
func (m *imports) refresh(paths []string, doubt bool) (faults []*importFault, again bool) {
	old := m.files
	m.files = nil
	for _, path := range paths {
		i := slices.IndexFunc(old, func(f *importedFile) bool { return f.path == path })
		f := &importedFile{path: path}
		if i >= 0 {
			f = old[i]
		}
		m.files = append(m.files, f)
		wait, unusable, err := f.read(doubt)
		again = again || wait
		fault := ""
		if err != nil {
			fault = err.Error()
			faults = append(faults, &importFault{err: err, unusable: unusable, told: fault == f.fault})
		}
		f.fault = fault
	}
	return faults, again
}

// importFault is what is wrong with a file.
type importFault struct {
	err      error
	unusable bool // as a whole; else single servers are
	told     bool // it was so the last time, too
}

func (f *importedFile) read(doubt bool) (again, unusable bool, err error) {
	data, err := readImport(f.path)
	if err != nil {
		return false, true, err
	}
	parsed, err := parseImport(f.path, data)
	if err != nil {
		return false, true, err
	}
	entries := parsed.Entries
	var errs []error
	for _, e := range parsed.Errors {
		errs = append(errs, e)
		for _, was := range f.entries { // a server that is being edited is not one that was removed
			if strings.HasPrefix(e.Detail, strconv.Quote(was.Name)+":") && !named(entries, was.Name) {
				entries = append(entries, was)
			}
		}
	}
	lost := 0
	for _, was := range f.entries {
		if !named(entries, was.Name) {
			lost++
		}
	}
	if sum := sha256.Sum256(data); doubt && lost > 5 && lost*5 > len(f.entries) && f.drastic != sum {
		f.drastic = sum
		return true, false, errors.Join(errs...)
	}
	f.drastic = [sha256.Size]byte{}
	f.entries = entries
	return false, false, errors.Join(errs...)
}

func named(entries []mcpconfig.Entry, name string) bool {
	return slices.ContainsFunc(entries, func(e mcpconfig.Entry) bool { return e.Name == name })
}

// servers are what the files define, with unique ids: where a file names one that an earlier file has, the later one's gets
// its file's prefix.
func (m *imports) servers() []statussync.Server {
	var out []statussync.Server
	taken := map[string]bool{}
	for _, f := range m.files {
		list := (&mcpconfig.File{Name: f.path, Entries: f.entries}).Servers("")
		for i := range list {
			s := &list[i]
			if base := importPrefix(f.path) + s.ID; taken[s.ID] {
				s.ID = base
				for n := 2; taken[s.ID]; n++ {
					s.ID = base + "-" + strconv.Itoa(n)
				}
			}
			taken[s.ID] = true
			keepSecret(s, &f.entries[i])
			out = append(out, *s)
		}
	}
	return out
}

// importPrefix tells a file's servers from another's: cursor. for ~/.cursor/mcp.json, claude_desktop_config. for that file.
func importPrefix(path string) string {
	base := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
	switch strings.TrimPrefix(filepath.Base(path), ".") {
	case "mcp.json", "settings.json", "server.json", "config.json": // said by every client
		base = filepath.Base(filepath.Dir(path))
	}
	return mcpconfig.ID(base) + "."
}

// keepSecret lets a definition be shown and stored without the secrets that its address may hold.
func keepSecret(s *statussync.Server, e *mcpconfig.Entry) {
	if e.URL == "" {
		return
	}
	s.Endpoint = shownURL(e.URL, e.Unshown)
	if s.Endpoint != e.URL && s.NeedsConfig == "" {
		s.Probe.SecretURL = e.URL
	}
	s.Probe.Unshown = e.Unshown
}

// shownURL is an address without what may be a secret: user and query, in the path the values of variables, and segments
// that look like a key. "" where it is no address.
func shownURL(address string, unshown []string) string {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return ""
	}
	segments := strings.Split(u.EscapedPath(), "/")
	for i, s := range segments {
		plain, err := url.PathUnescape(s)
		if err != nil {
			plain = s
		}
		if hide(plain, unshown) != plain || looksLikeKey(plain) {
			segments[i] = hidden
		}
	}
	path := strings.Join(segments, "/")
	if hide(u.Path, unshown) != u.Path && !strings.Contains(path, hidden) { // a value that is several segments
		path = "/" + hidden
	}
	return u.Scheme + "://" + u.Host + path
}

// looksLikeKey reports whether a part of a path is long and has letters and digits, as keys and no usual words do.
func looksLikeKey(s string) bool {
	return len(s) >= 16 && strings.ContainsAny(s, "0123456789") &&
		strings.ContainsFunc(s, func(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' })
}

// stats are the numbers of the newest reading.
func (m *imports) stats() importStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sum
}

// firstImport reads the files before anything runs. A file that can't be used is an error; single servers in it are not.
func (s *service) firstImport(c *Config) error {
	found, _ := s.imports.refresh(s.importPaths(c), false)
	var errs []error
	for _, f := range found {
		if f.unusable {
			errs = append(errs, fmt.Errorf("mcp_config: %w", f.err))
		} else {
			s.log.Warn("a server of mcp_config can't be understood and is left out", "error", f.err)
		}
	}
	return errors.Join(errs...)
}

// reimport reads the files of mcp_config and hands over what they define. The caller has the turn.
func (s *service) reimport(ctx context.Context, paths []string, doubt bool) (updates []*statussync.Entry, faults []string, again bool) {
	found, again := s.imports.refresh(paths, doubt)
	for _, f := range found {
		text := firstFault(f.err)
		faults = append(faults, text)
		if !f.told {
			s.log.Warn("a file of mcp_config, or a server in it, is not as it should be; what was known of it stays", "error", f.err)
		}
	}
	updates, skipped, err := s.advance(ctx)
	faults = append(faults, skipped...)
	if err != nil {
		s.log.Error("the servers of mcp_config could not be handed over", "error", err)
		faults = append(faults, "the servers of mcp_config: "+wire.Detail(err))
		again = true
	}
	return updates, faults, again
}

// retreat withdraws the servers of mcp_config that the configuration claims for itself: its word counts more than that of a
// file which somebody else writes.
func (s *service) retreat(ctx context.Context, claimed *statussync.RegistryUpdate) ([]*statussync.Entry, error) {
	claims := make(map[string]bool, len(claimed.Servers))
	for i := range claimed.Servers {
		claims[claimed.Servers[i].ID] = true
	}
	u := &statussync.RegistryUpdate{Origin: statussync.OriginMCPConfig, Full: true}
	for _, sv := range s.imports.servers() {
		if v, err := s.hub.Server(sv.ID); err == nil && v.Server.Origin == statussync.OriginMCPConfig && !claims[sv.ID] {
			u.Servers = append(u.Servers, sv)
		}
	}
	return s.hub.Submit(ctx, u)
}

// advance hands over what mcp_config defines and nobody else does. Those that somebody else defines are named, and logged
// when they are new.
func (s *service) advance(ctx context.Context) (updates []*statussync.Entry, skipped []string, err error) {
	all := s.imports.servers()
	u := &statussync.RegistryUpdate{Origin: statussync.OriginMCPConfig, Full: true}
	hiddenNow := map[string]bool{}
	for _, sv := range all {
		v, err := s.hub.Server(sv.ID)
		if err != nil || v.Server.Origin == statussync.OriginMCPConfig {
			u.Servers = append(u.Servers, sv)
			continue
		}
		hiddenNow[sv.ID] = true
		skipped = append(skipped, "the server "+strconv.Quote(sv.ID)+" of mcp_config is defined by "+string(v.Server.Origin)+" already")
		if !s.imports.hidden[sv.ID] {
			s.log.Warn("a server of mcp_config is passed over: another registry defines its id", "server", sv.ID, "origin", string(v.Server.Origin))
		}
	}
	s.imports.hidden = hiddenNow
	sum := importStats{files: len(s.imports.files), servers: len(u.Servers), conflicts: len(hiddenNow)}
	for _, f := range s.imports.files {
		if f.fault != "" {
			sum.bad++
		}
	}
	s.imports.mu.Lock()
	s.imports.sum = sum
	s.imports.mu.Unlock()
	updates, err = s.hub.Submit(ctx, u)
	return updates, skipped, err
}

// followImports reads the files again and again and puts in force what has changed. It blocks until ctx ends.
func (s *service) followImports(ctx context.Context) error {
	tick := time.NewTicker(importEvery)
	defer tick.Stop()
	looked := map[string][sha256.Size]byte{}
	conflicts := false
	for first := true; ; first = false {
		paths := s.importPaths(s.current.Load())
		changed := false
		for _, p := range paths {
			data, err := readImport(p)
			if err != nil {
				data = []byte(err.Error())
			}
			sum := sha256.Sum256(data)
			if was, ok := looked[p]; !ok || was != sum {
				looked[p], changed = sum, true
			}
		}
		if changed || conflicts { // at first, too: what changed since the start began would be missed
			if err := s.begin(ctx, s.turn); err != nil {
				return nil // the service stops
			}
			before := s.imports.stats()
			actx, cancel := context.WithTimeout(ctx, swapTimeout)
			updates, _, again := s.reimport(actx, paths, true)
			cancel()
			s.turn.give()
			if now := s.imports.stats(); changed && !first {
				s.log.Info("mcp_config was read again", "files", now.files, "servers", now.servers, "servers_before", before.servers, "updates", len(updates))
			}
			if again {
				clear(looked)
			}
		}
		conflicts = s.imports.stats().conflicts > 0 // the other registry may give the id up
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// imported is the part of a sync that reads the files of mcp_config.
func (y *syncing) imported(ctx context.Context) {
	s := y.s
	paths := s.importPaths(s.current.Load())
	if len(paths) == 0 {
		return
	}
	if err := s.begin(ctx, s.turn); err != nil {
		y.fail("", "the files of mcp_config were not read: "+wire.Detail(err))
		return
	}
	defer s.turn.give()
	updates, faults, _ := s.reimport(ctx, paths, false)
	y.took(updates)
	for _, f := range faults {
		y.fail("", f)
	}
}

// mcpSamples are the numbers of MCP probes and of the files of mcp_config.
func (s *service) mcpSamples() []prom.Sample {
	st, im := s.mcp.Stats(), s.imports.stats()
	return []prom.Sample{
		{Name: "mcp_servers", Help: "Servers that are probed as MCP.", Value: float64(st.Servers)},
		{Name: "mcp_sessions", Help: "MCP sessions held, at most one of each server.", Value: float64(st.Sessions)},
		{Name: "mcp_streams", Help: "HTTP+SSE streams held, at most one of each server.", Value: float64(st.Streams)},
		{Name: "mcp_sessions_closing", Help: "MCP sessions that wait for their end.", Value: float64(st.Closing)},
		{Name: "mcp_sessions_unclosed_total", Help: "MCP sessions whose end could not be told to their server.", Counter: true, Value: float64(st.Unclosed)},
		{Name: "mcp_config_files", Help: "Files of mcp_config.", Value: float64(im.files)},
		{Name: "mcp_config_files_bad", Help: "Files of mcp_config in which something can't be read or understood.", Value: float64(im.bad)},
		{Name: "mcp_config_servers", Help: "Servers that the files of mcp_config define.", Value: float64(im.servers)},
		{Name: "mcp_config_conflicts", Help: "Servers of mcp_config that are passed over because another registry defines their id.", Value: float64(im.conflicts)},
	}
}
