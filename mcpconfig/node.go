package mcpconfig

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/tailscale/hujson"

	"github.com/agentopia/statussync"
)

// doc is one parsed file.
type doc struct {
	name  string
	lines []int // offsets at which lines end
	root  hujson.Value
}

// node is one value of a doc.
type node struct {
	d *doc
	v *hujson.Value
}

// member is one member of an object.
type member struct {
	key string
	node
}

var lineOf = regexp.MustCompile(`line (\d+), column \d+: ?`)

// parse reads JSON with comments and trailing commas.
func parse(name string, data []byte) (*doc, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // a byte order mark, as some editors write it
	if len(data) > MaxBytes {
		return nil, statussync.Invalid(name, fmt.Sprintf("is larger than %d MiB", MaxBytes>>20))
	}
	if line := tooDeep(data); line > 0 {
		return nil, statussync.Invalid(at(name, line), fmt.Sprintf("objects and lists lie deeper in each other than %d", MaxDepth))
	}
	v, err := hujson.Parse(data)
	if err != nil {
		where, what := name, err.Error()
		if m := lineOf.FindStringSubmatchIndex(what); m != nil {
			where = name + ":" + what[m[2]:m[3]]
			what = what[m[1]:]
		}
		// Of the file, which may hold secrets, no more is shown than one character.
		what, _, _ = strings.Cut(what, "invalid literal: ")
		if what = strings.TrimPrefix(what, "hujson: "); what == "" {
			what = "a value begins here that is none"
		}
		return nil, statussync.Invalid(where, "is not JSON: "+statussync.CleanText(what, statussync.MaxErrorText))
	}
	d := &doc{name: name, root: v}
	for i, c := range data {
		if c == '\n' {
			d.lines = append(d.lines, i)
		}
	}
	return d, nil
}

// tooDeep returns the line at which data nests deeper than MaxDepth, or 0. It sees strings and comments as JSON does.
func tooDeep(data []byte) (line int) {
	line = 1
	depth := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '\n':
			line++
		case '{', '[':
			if depth++; depth > MaxDepth {
				return line
			}
		case '}', ']':
			depth--
		case '"':
			for i++; i < len(data) && data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
		case '/':
			if i+1 >= len(data) {
				break
			}
			switch data[i+1] {
			case '/':
				for i < len(data) && data[i] != '\n' {
					i++
				}
				line++
			case '*':
				end := bytes.Index(data[i+2:], []byte("*/"))
				if end < 0 {
					return 0 // the parser says what is wrong
				}
				line += bytes.Count(data[i:i+2+end], []byte{'\n'})
				i += end + 3
			}
		}
	}
	return 0
}

func at(name string, line int) string { return name + ":" + strconv.Itoa(line) }

func (d *doc) line(offset int) int { return sort.SearchInts(d.lines, offset) + 1 }

func (n node) line() int { return n.d.line(n.v.StartOffset) }

// fault is an error at n.
func (n node) fault(format string, args ...any) *statussync.Error {
	return statussync.Invalid(at(n.d.name, n.line()), fmt.Sprintf(format, args...))
}

func (n node) ok() bool { return n.v != nil }

func (n node) isObject() bool {
	if n.v == nil {
		return false
	}
	_, ok := n.v.Value.(*hujson.Object)
	return ok
}

func (n node) isArray() bool {
	if n.v == nil {
		return false
	}
	_, ok := n.v.Value.(*hujson.Array)
	return ok
}

// null reports whether n is absent or null: for every format that is the same.
func (n node) null() bool {
	l, ok := n.literal()
	return !n.ok() || ok && l.Kind() == 'n'
}

func (n node) literal() (hujson.Literal, bool) {
	if n.v == nil {
		return nil, false
	}
	l, ok := n.v.Value.(hujson.Literal)
	return l, ok
}

// members returns the members of an object in order; a name that is given twice counts with its last value, as clients
// read it.
func (n node) members() []member {
	if n.v == nil {
		return nil
	}
	o, ok := n.v.Value.(*hujson.Object)
	if !ok {
		return nil
	}
	out := make([]member, 0, len(o.Members))
	seen := make(map[string]int, len(o.Members))
	for i := range o.Members {
		m := &o.Members[i]
		key := m.Name.Value.(hujson.Literal).String()
		if j, twice := seen[key]; twice {
			out[j].node = node{n.d, &m.Value}
			continue
		}
		seen[key] = len(out)
		out = append(out, member{key, node{n.d, &m.Value}})
	}
	return out
}

// get returns the first of the members that is there and not null.
func (n node) get(keys ...string) node {
	ms := n.members()
	for _, k := range keys {
		if i := slices.IndexFunc(ms, func(m member) bool { return m.key == k && !m.null() }); i >= 0 {
			return ms[i].node
		}
	}
	return node{d: n.d}
}

func (n node) elements() []node {
	if n.v == nil {
		return nil
	}
	a, ok := n.v.Value.(*hujson.Array)
	if !ok {
		return nil
	}
	out := make([]node, len(a.Elements))
	for i := range a.Elements {
		out[i] = node{n.d, &a.Elements[i]}
	}
	return out
}

// str returns a string; an absent one is "".
func (n node) str(what string) (string, error) {
	if n.null() {
		return "", nil
	}
	if l, ok := n.literal(); ok && l.Kind() == '"' {
		return l.String(), nil
	}
	return "", n.fault("%s must be a string", what)
}

// scalar returns a string, or a number or boolean as it is written: several clients take these in env.
func (n node) scalar(what string) (string, error) {
	if l, ok := n.literal(); ok && !n.null() && l.Kind() != '"' {
		return string(l), nil
	}
	return n.str(what)
}

func (n node) boolean(what string) (bool, error) {
	if n.null() {
		return false, nil
	}
	if l, ok := n.literal(); ok && (l.Kind() == 't' || l.Kind() == 'f') {
		return l.Bool(), nil
	}
	return false, n.fault("%s must be true or false", what)
}

// text is str for what is shown and no more: anything else is "".
func (n node) text() string {
	s, err := n.str("")
	if err != nil {
		return ""
	}
	return s
}
