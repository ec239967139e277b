package engine

import (
	"slices"
	"strings"
	"time"

	"github.com/agentopia/statussync"
)

// toolMemory is what a server listed as its tools, and what it should list. It has a record of its own: a list may be a
// hundred times as long as all other evidence, and changes a thousand times less often.
type toolMemory struct {
	Known     bool                    `json:",omitzero"` // the list was read at least once
	Tools     []statussync.ToolRef    `json:",omitzero"` // by name
	Hash      string                  `json:",omitzero"`
	Since     time.Time               `json:",omitzero"` // when this set was first seen
	CheckedAt time.Time               `json:",omitzero"`
	Pin       *statussync.PinnedTools `json:",omitzero"`

	lastError string
	against   *statussync.ToolDrift // from the pinned set to the current one; nil without a pin
	differs   string                // against in words; empty: the set is the pinned one, or none is pinned
}

// compare holds the current set against the pin, after either has changed.
func (m *toolMemory) compare() {
	m.against, m.differs = nil, ""
	if m.Pin == nil {
		return
	}
	if m.against = statussync.DiffTools(m.Pin.Tools, m.Tools); !m.against.Empty() {
		m.differs = m.against.String()
	}
}

// toolsDiffer is whether the server lists other tools than the pinned ones, and how.
func (s *server) toolsDiffer() (how string, differ bool) {
	if s.tools == nil || s.tools.differs == "" {
		return "", false
	}
	return s.tools.differs, true
}

func (e *Engine) touchTools(s *server) { e.dirtyTools[s.Def.ID] = struct{}{} }

// toolsSeen takes a list of tools, or that it could not be read. A set that differs from the one before makes one entry.
func (e *Engine) toolsSeen(now time.Time, o *statussync.ToolsSeen, eff *Effects) {
	s := e.servers[o.ServerID]
	switch {
	case s == nil:
		eff.fail(statussync.NotFound("server", o.ServerID))
		return
	case len(o.Tools) > statussync.MaxTools:
		eff.fail(&statussync.Error{Code: statussync.CodeTooLarge, Location: "tools", Detail: "more than " + itoa(statussync.MaxTools) + " tools"})
		return
	}
	m := s.tools
	if m == nil {
		m = &toolMemory{}
		s.tools = m
	}
	if m.CheckedAt = o.At; m.CheckedAt.IsZero() {
		m.CheckedAt = now
	}
	if m.lastError = cut(o.Error); m.lastError != "" {
		return
	}
	list := make([]statussync.ToolRef, len(o.Tools))
	for i, t := range o.Tools {
		list[i] = statussync.ToolRef{
			Name: statussync.CleanText(t.Name, statussync.MaxToolName), Hash: statussync.CleanText(t.Hash, statussync.MaxToolHash),
		}
	}
	list = statussync.SortTools(list)
	if m.Known && slices.Equal(list, m.Tools) {
		return
	}
	var drift *statussync.ToolDrift
	if m.Known {
		drift = statussync.DiffTools(m.Tools, list)
	}
	m.Known, m.Tools, m.Hash, m.Since = true, list, statussync.HashTools(list), now
	m.compare()
	e.touchTools(s)
	if drift != nil {
		eff.Entries = append(eff.Entries, &statussync.Entry{
			Kind: statussync.KindToolDrift, Timestamp: now, Source: statussync.SourceHeartbeat, ServerID: s.Def.ID,
			EnvironmentID: s.Def.EnvironmentID, Labels: s.Def.Labels, Tools: drift, Details: cut("its tools changed: " + drift.String()),
		})
	}
	e.eval(s, now, statussync.SourceHeartbeat, eff)
}

// toolsPin says that the current set is the one that the server should have.
func (e *Engine) toolsPin(now time.Time, o *statussync.ToolsPin, eff *Effects) {
	s := e.servers[o.ServerID]
	switch {
	case s == nil:
		eff.fail(statussync.NotFound("server", o.ServerID))
		return
	case s.tools == nil || !s.tools.Known:
		eff.fail(&statussync.Error{Code: statussync.CodeConflict, Detail: "its tools have not been read yet: there is nothing to pin"})
		return
	case o.Hash != "" && o.Hash != s.tools.Hash:
		eff.fail(&statussync.Error{Code: statussync.CodeConflict, Location: "hash", Detail: "its tools are not these any more: the current hash is " + s.tools.Hash})
		return
	}
	m := s.tools
	m.Pin = &statussync.PinnedTools{Hash: m.Hash, Actor: statussync.CleanText(o.Actor, statussync.MaxNameText), At: now, Tools: m.Tools}
	m.compare()
	e.touchTools(s)
	e.eval(s, now, statussync.SourceManual, eff)
}

// toolsUnpin ends a pin.
func (e *Engine) toolsUnpin(now time.Time, o *statussync.ToolsUnpin, eff *Effects) {
	s := e.servers[o.ServerID]
	switch {
	case s == nil:
		eff.fail(statussync.NotFound("server", o.ServerID))
	case s.tools == nil || s.tools.Pin == nil:
		eff.fail(&statussync.Error{Code: statussync.CodeNotFound, Detail: "no tools of the server are pinned"})
	default:
		s.tools.Pin = nil
		s.tools.compare()
		e.touchTools(s)
		e.eval(s, now, statussync.SourceManual, eff)
	}
}

// Tools returns what is known of a server's tools; ok is false for an unknown server.
func (e *Engine) Tools(id string) (v statussync.ToolsView, ok bool) {
	s := e.servers[id]
	if s == nil {
		return v, false
	}
	v.ServerID = id
	if m := s.tools; m != nil {
		v.Known, v.Tools, v.Hash, v.Since, v.CheckedAt = m.Known, m.Tools, m.Hash, m.Since, m.CheckedAt
		v.LastError, v.Pinned, v.Against = m.lastError, m.Pin, m.against
	}
	return v, true
}

// explainTools is the evidence of the tools in words; ok is false where nothing is known of them.
func (s *server) explainTools() (value string, at time.Time, ok bool) {
	m := s.tools
	if m == nil {
		return "", time.Time{}, false
	}
	var parts []string
	if m.Known {
		parts = append(parts, itoa(len(m.Tools))+" tools, "+m.Hash)
	}
	if m.Pin != nil {
		t := "as pinned by " + orSomebody(m.Pin.Actor)
		if m.differs != "" {
			t = "not as pinned by " + orSomebody(m.Pin.Actor) + ": " + m.differs
		}
		parts = append(parts, t)
	}
	if m.lastError != "" {
		parts = append(parts, "the newest list could not be read: "+m.lastError)
	}
	return strings.Join(parts, "; "), m.CheckedAt, true
}

// storedTools is the record of a server's tools. A pinned set that is the current one is stored once.
type storedTools struct {
	V  int
	At time.Time `json:",omitzero"`
	ID string
	toolMemory
}

// nextToolsRecord appends the record of one server whose tools or pin changed.
func (e *Engine) nextToolsRecord(buf []statussync.Record) []statussync.Record {
	for id := range e.dirtyTools {
		delete(e.dirtyTools, id)
		rec := statussync.Record{Kind: statussync.RecordTools, ID: id}
		if s := e.servers[id]; s != nil && s.tools != nil {
			st := storedTools{V: recordVersion, At: e.now, ID: id, toolMemory: *s.tools}
			if p := st.Pin; p != nil && p.Hash == st.Hash {
				short := *p
				short.Tools = nil
				st.Pin = &short
			}
			rec.Data = encode(st)
		}
		return append(buf, rec)
	}
	return buf
}

// restoreTools keeps the tools of a server until Start, when all servers are known.
func (e *Engine) restoreTools(st *storedTools) error {
	m := st.toolMemory
	for _, list := range [][]statussync.ToolRef{m.Tools, pinned(m.Pin)} {
		if len(list) > statussync.MaxTools {
			return statussync.Invalid("Tools", "has more than "+itoa(statussync.MaxTools))
		}
	}
	m.Tools = statussync.SortTools(m.Tools)
	m.Hash = statussync.HashTools(m.Tools)
	if p := m.Pin; p != nil && p.Tools == nil && p.Hash == m.Hash {
		p.Tools = m.Tools
	}
	m.compare()
	e.restoredTools[st.ID] = &m
	return nil
}

func pinned(p *statussync.PinnedTools) []statussync.ToolRef {
	if p == nil {
		return nil
	}
	return p.Tools
}

// startTools gives the restored tools to their servers, and has the records of those that are gone deleted.
func (e *Engine) startTools() {
	for id, m := range e.restoredTools {
		if s := e.servers[id]; s != nil {
			s.tools = m
		} else {
			e.dirtyTools[id] = struct{}{}
		}
	}
	clear(e.restoredTools)
}
