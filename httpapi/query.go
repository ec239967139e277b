package httpapi

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// Sizes of pages.
const (
	defaultLimit = 100
	maxLimit     = 1000
)

// listParam reads a comma-separated parameter, which may also be given several times. Absent is nil; present but empty
// is an empty list, which matches nothing (docs/domain.md, Filters).
func listParam[T ~string](q url.Values, name string) []T {
	if !q.Has(name) {
		return nil
	}
	out := []T{}
	for _, v := range q[name] {
		for _, s := range strings.Split(v, ",") {
			if s = strings.TrimSpace(s); s != "" {
				out = append(out, T(s))
			}
		}
	}
	return out
}

// labelParam reads label=key=value, given once per label.
func labelParam(q url.Values) (map[string]string, error) {
	if !q.Has("label") {
		return nil, nil
	}
	out := map[string]string{}
	for _, v := range q["label"] {
		if v == "" {
			continue
		}
		k, val, ok := strings.Cut(v, "=")
		if !ok || k == "" {
			return nil, statussync.Invalid("query.label", "must be key=value")
		}
		if old, twice := out[k]; twice && old != val {
			return nil, statussync.Invalid("query.label", "a label can't have two values")
		}
		out[k] = val
	}
	return out, nil
}

func boolParam(q url.Values, name string) (bool, error) {
	switch q.Get(name) {
	case "", "false", "0":
		return false, nil
	case "true", "1":
		return true, nil
	}
	return false, statussync.Invalid("query."+name, "must be true or false")
}

// filterParams are the parameters that make a filter.
var filterParams = []string{"type", "kinds", "server_ids", "environment_ids", "states", "healths", "label", "leave"}

// filterParam reads a filter of one clause; without any of its parameters it has none and matches the default kinds.
func filterParam(q url.Values) (statussync.Filter, error) {
	var f statussync.Filter
	var err error
	if f.Leave, err = boolParam(q, "leave"); err != nil {
		return f, err
	}
	given := slices.ContainsFunc(filterParams, func(p string) bool { return p != "leave" && q.Has(p) })
	if !given {
		return f, nil
	}
	c := statussync.Clause{
		Type: statussync.FilterType(q.Get("type")), Kinds: listParam[statussync.Kind](q, "kinds"),
		ServerIDs: listParam[string](q, "server_ids"), EnvironmentIDs: listParam[string](q, "environment_ids"),
		States: listParam[statussync.State](q, "states"), Healths: listParam[statussync.Health](q, "healths"),
	}
	if c.Labels, err = labelParam(q); err != nil {
		return f, err
	}
	f.Clauses = []statussync.Clause{c}
	if err := wire.CheckRequest(statussync.SubscribeRequest{Filter: f}); err != nil {
		return f, inQuery(err)
	}
	return f, nil
}

// inQuery moves an error about a filter's field to the parameter that gave it.
func inQuery(err error) error {
	if e, ok := err.(*statussync.Error); ok {
		if field, cut := strings.CutPrefix(e.Location, "filters."); cut {
			if field == "labels" {
				field = "label"
			}
			moved := *e
			moved.Location = "query." + field
			return &moved
		}
		if e.Location == "mode" || e.Location == "cursor" {
			moved := *e
			moved.Location = "query." + e.Location
			return &moved
		}
	}
	return err
}

// cursorParam reads a position in the journal.
func cursorParam(q url.Values, name string) (statussync.Cursor, error) {
	var c statussync.Cursor
	if err := c.UnmarshalText([]byte(q.Get(name))); err != nil {
		e := statussync.Invalid("query."+name, "is not a cursor; one looks like e7:41 and comes from an earlier answer")
		return c, e
	}
	return c, nil
}

// The next_cursor of lists that are ordered by id holds the last id.
const afterPrefix = "after:"

func afterParam(cursor string) (string, error) {
	if cursor == "" {
		return "", nil
	}
	id, ok := strings.CutPrefix(cursor, afterPrefix)
	if !ok || id == "" {
		return "", statussync.Invalid("query.cursor", "is not the next_cursor of an earlier page")
	}
	return id, nil
}

func limitParam(limit int) int {
	if limit <= 0 {
		return defaultLimit
	}
	return min(limit, maxLimit)
}

// checkWords refuses a word that is none of a set.
func checkWords[T ~string](name string, given, known []T) error {
	for _, g := range given {
		if !slices.Contains(known, g) {
			words := make([]string, len(known))
			for i, k := range known {
				words[i] = string(k)
			}
			return statussync.Invalid("query."+name, strconv.Quote(statussync.CleanText(string(g), statussync.MaxWordText))+" is not one of "+strings.Join(words, ", "))
		}
	}
	return nil
}

// knownParams refuses a parameter that is in none of the lists: a misspelt filter must not silently match everything.
func knownParams(q url.Values, lists ...[]string) error {
	names := make([]string, 0, len(q))
	for k := range q {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		if !slices.ContainsFunc(lists, func(l []string) bool { return slices.Contains(l, k) }) {
			return statussync.Invalid("query."+statussync.CleanText(k, statussync.MaxWordText), "unknown query parameter")
		}
	}
	return nil
}
