package statussync

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of tool lists.
const (
	MaxTools      = 1000 // tools of one server
	MaxToolName   = 128  // bytes of a tool's name
	MaxToolHash   = 128  // bytes of a hash; "sha256:" and its digits are 71
	MaxDriftTools = 100  // tools that each list of a ToolDrift names; its counts have the whole number
)

// ToolRef is one tool as its server lists it: untrusted name and hash of what it says of itself.
type ToolRef struct {
	Name string `json:"name"`
	// Hash is "sha256:" and the hex digest of the tool's name, description, input and output schema and annotations in
	// canonical JSON: the order of keys, the spelling of numbers and strings and the order of a schema's "required" make
	// no difference.
	Hash string `json:"hash"`
}

// ToolChange is a tool that kept its name and says something else of itself.
type ToolChange struct {
	Name         string `json:"name"`
	Hash         string `json:"hash"`
	PreviousHash string `json:"previous_hash"`
}

// ToolDrift is how one set of tools differs from the one before. The lists are sorted by name and hold at most
// MaxDriftTools each; the counts are those of all.
type ToolDrift struct {
	Added        []ToolRef    `json:"added,omitempty" doc:"At most 100, by name."`
	Removed      []ToolRef    `json:"removed,omitempty" doc:"At most 100, by name; with their last hashes."`
	Changed      []ToolChange `json:"changed,omitempty" doc:"At most 100, by name: same name, another description, schema or annotation."`
	AddedCount   int          `json:"added_count" doc:"Of all."`
	RemovedCount int          `json:"removed_count"`
	ChangedCount int          `json:"changed_count"`
	Hash         string       `json:"hash" doc:"Of the whole set; the order of the tools makes no difference."`
	PreviousHash string       `json:"previous_hash"`
}

// Empty reports whether nothing differs.
func (d *ToolDrift) Empty() bool { return d.AddedCount+d.RemovedCount+d.ChangedCount == 0 }

// String is the difference in words, with the first names of each list; fit for a sentence of bounded length.
func (d *ToolDrift) String() string {
	var parts []string
	add := func(what string, n int, names func(i int) string) {
		if n == 0 {
			return
		}
		const most = 3
		t := strconv.Itoa(n) + " " + what + " ("
		for i := range min(n, most) {
			if i > 0 {
				t += ", "
			}
			t += CleanText(names(i), 40)
		}
		if n > most {
			t += ", …"
		}
		parts = append(parts, t+")")
	}
	add("added", d.AddedCount, func(i int) string { return d.Added[i].Name })
	add("removed", d.RemovedCount, func(i int) string { return d.Removed[i].Name })
	add("changed", d.ChangedCount, func(i int) string { return d.Changed[i].Name })
	if parts == nil {
		return "nothing differs"
	}
	return strings.Join(parts, ", ")
}

// DiffTools compares two lists of tools by name and hash. The order of the lists makes no difference. Of a name that is
// listed more than once all hashes count together, as one.
func DiffTools(old, now []ToolRef) *ToolDrift {
	before, after := byToolName(old), byToolName(now)
	d := &ToolDrift{Hash: HashTools(now), PreviousHash: HashTools(old)}
	for i, k := 0, 0; i < len(before) || k < len(after); {
		switch {
		case k == len(after) || i < len(before) && before[i].Name < after[k].Name:
			if d.RemovedCount++; d.RemovedCount <= MaxDriftTools {
				d.Removed = append(d.Removed, before[i])
			}
			i++
		case i == len(before) || after[k].Name < before[i].Name:
			if d.AddedCount++; d.AddedCount <= MaxDriftTools {
				d.Added = append(d.Added, after[k])
			}
			k++
		default:
			if before[i].Hash != after[k].Hash {
				if d.ChangedCount++; d.ChangedCount <= MaxDriftTools {
					d.Changed = append(d.Changed, ToolChange{Name: after[k].Name, Hash: after[k].Hash, PreviousHash: before[i].Hash})
				}
			}
			i++
			k++
		}
	}
	return d
}

// SortTools returns a copy of tools sorted by name and hash.
func SortTools(tools []ToolRef) []ToolRef {
	out := slices.Clone(tools)
	slices.SortFunc(out, func(a, b ToolRef) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Hash, b.Hash)
	})
	return out
}

// byToolName is the list sorted, with one element for each name.
func byToolName(tools []ToolRef) []ToolRef {
	sorted := SortTools(tools)
	out := sorted[:0]
	for i := 0; i < len(sorted); {
		end := i + 1
		for end < len(sorted) && sorted[end].Name == sorted[i].Name {
			end++
		}
		t := sorted[i]
		if end > i+1 {
			t.Hash = HashTools(sorted[i:end])
		}
		out = append(out, t)
		i = end
	}
	return out
}

// HashTools is one hash of a whole list, whatever its order: "sha256:" and a hex digest.
func HashTools(tools []ToolRef) string {
	lines := make([]string, len(tools))
	for i, t := range tools {
		lines[i] = strconv.Quote(t.Name) + " " + t.Hash + "\n"
	}
	slices.Sort(lines)
	sum := sha256.Sum256([]byte(strings.Join(lines, "")))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ToolsSeen is what a server listed as its tools, or that the list could not be read. That it could not is no evidence
// of health: probes tell that.
type ToolsSeen struct {
	ServerID string
	Tools    []ToolRef // all of them, in any order, at most MaxTools
	Error    string    // why the list could not be read; Tools then says nothing
	At       time.Time // when it was asked for; a time.Now() value
}

// ToolsPin says that the tools that a server lists now are the ones that it should have: while another set is seen it is
// degraded, with the reason ReasonToolsChanged. It replaces an earlier pin.
type ToolsPin struct {
	ServerID string
	Hash     string // of the set that was looked at; empty: whichever is the current one
	Actor    string // the credential's name
}

// ToolsUnpin ends a pin.
type ToolsUnpin struct {
	ServerID string
	Actor    string
}

// PinnedTools is the set of tools that a person wants a server to have.
type PinnedTools struct {
	Hash  string
	Actor string
	At    time.Time
	Tools []ToolRef // by name
}

// ToolsView is what is known of a server's tools. What it points to is shared.
type ToolsView struct {
	ServerID  string
	Known     bool      // the list was read at least once
	Tools     []ToolRef // by name
	Hash      string
	Since     time.Time // when this set was first seen
	CheckedAt time.Time // when it was last asked for; after a start, until it is asked again, no later than Since or the pin
	LastError string    // why the last list could not be read; empty: it could
	Pinned    *PinnedTools
	Against   *ToolDrift // from the pinned set to the current one; nil without a pin
}

// Drifted reports whether the current set is not the pinned one.
func (v *ToolsView) Drifted() bool { return v.Against != nil && !v.Against.Empty() }

func (*ToolsSeen) observation()  {}
func (*ToolsPin) observation()   {}
func (*ToolsUnpin) observation() {}
