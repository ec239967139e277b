package app

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/agentopia/statussync"
)

// Duration is a time.Duration written as Go writes it, or in whole or fractional days ("90d").
type Duration time.Duration

// ParseDuration reads Go's durations plus d for days. Negative durations are errors.
func ParseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err != nil || !(n >= 0) || n > 100_000 {
			return 0, fmt.Errorf("%q is not a duration such as 30s, 5m, 2h or 90d", s)
		}
		return time.Duration(n * 24 * float64(time.Hour)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration such as 30s, 5m, 2h or 90d", s)
	}
	return d, nil
}

func formatDuration(d time.Duration) string {
	const day = 24 * time.Hour
	if d > 0 && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Size is a number of bytes, written with or without a unit: 500MB, 10GiB.
type Size int64

var sizeUnits = map[string]int64{
	"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}

func parseSize(s string) (Size, error) {
	i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	num, unit := s, ""
	if i >= 0 {
		num, unit = s[:i], strings.ToLower(strings.TrimSpace(s[i:]))
	}
	f, err := strconv.ParseFloat(num, 64)
	mul, ok := sizeUnits[unit]
	if err != nil || !ok || f < 0 || f*float64(mul) > 1<<62 {
		return 0, fmt.Errorf("%q is not a size such as 500MB or 10GiB", s)
	}
	return Size(f * float64(mul)), nil
}

func formatSize(n Size) string {
	for _, u := range []struct {
		name string
		n    Size
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.n && n%u.n == 0 {
			return strconv.FormatInt(int64(n/u.n), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(n), 10)
}

// Secret is a string that is never printed: it shows as "***" wherever a value of it is formatted or encoded.
type Secret string

// String masks the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// GoString masks the secret.
func (s Secret) GoString() string { return s.String() }

// MarshalText masks the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// decoder turns a YAML tree into Go values and collects every error with its line. The yaml package's own decoder
// stops being able to name keys and lines once types of ours are involved, and a misspelt key must name its neighbours.
type decoder struct {
	file  string
	errs  []error
	nodes map[string]*yaml.Node // by path: for errors found later, about meaning
	count int

	parts   []fragmentPart // which elements of lists stand in fragments, in the order of files
	partial bool           // something of a fragment could not be merged, maybe what seems to be missing

	failed  map[string]bool // by path: what could not be read, so that nothing can be said of its meaning
	unknown map[string]bool // by path of a mapping: it holds something unknown, maybe what seems to be missing
}

func newDecoder(file string) *decoder {
	return &decoder{file: file, nodes: map[string]*yaml.Node{}, failed: map[string]bool{}, unknown: map[string]bool{}}
}

// maxConfigNodes bounds what aliases can multiply a file to.
const maxConfigNodes = 2_000_000

// fail tells an error of form: what stands at path has no value.
func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	d.failed[path] = true
	d.tell(n, path, format, args...)
}

// broken reports whether what stands at path, or something that holds it, could not be read.
func (d *decoder) broken(path string) bool {
	for {
		if d.failed[path] {
			return true
		}
		if path == "" {
			return false
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
}

// absent reports whether it can be said of a value without content that the file doesn't give it.
func (d *decoder) absent(path string) bool {
	return !d.broken(path) && !d.unknown[path[:max(0, strings.LastIndexAny(path, ".["))]]
}

func (d *decoder) tell(n *yaml.Node, path, format string, args ...any) {
	file, local := d.place(path)
	d.tellIn(file, n, local, format, args...)
}

// tellIn is tell for what stands at a path of one file.
func (d *decoder) tellIn(file string, n *yaml.Node, path, format string, args ...any) {
	loc := file
	if n != nil && n.Line > 0 {
		loc += ":" + strconv.Itoa(n.Line)
	}
	msg := fmt.Sprintf(format, args...)
	if path != "" {
		msg = path + ": " + msg
	}
	d.errs = append(d.errs, &statussync.Error{Code: statussync.CodeInvalid, Location: loc, Detail: msg})
}

// failAt tells an error of meaning, unless what stands at path could not even be read, which has been told. The line is
// that of the nearest known node of the path.
func (d *decoder) failAt(path, format string, args ...any) {
	if d.broken(path) {
		return
	}
	p := path
	for {
		if n, ok := d.nodes[p]; ok {
			d.tell(n, path, format, args...)
			return
		}
		i := strings.LastIndexAny(p, ".[")
		if i < 0 {
			d.tell(d.nodes[""], path, format, args...)
			return
		}
		p = p[:i]
	}
}

func (d *decoder) err() error {
	// The main file's first, then by file and line. Names of fragments are sorted already.
	sort.SliceStable(d.errs, func(i, j int) bool {
		fi, li := d.lineOf(d.errs[i])
		fj, lj := d.lineOf(d.errs[j])
		if fi != fj {
			return fi == d.file || fj != d.file && fi < fj
		}
		return li < lj
	})
	return errors.Join(d.errs...)
}

// lineOf takes a located error's location apart.
func (d *decoder) lineOf(err error) (file string, line int) {
	var e *statussync.Error
	if !errors.As(err, &e) {
		return d.file, 0
	}
	i := strings.LastIndexByte(e.Location, ':')
	n, err := strconv.Atoi(e.Location[i+1:])
	if err != nil {
		return e.Location, 0
	}
	return e.Location[:i], n
}

// isConfigKey reports whether a path of keys names something in a Config.
func isConfigKey(path string) bool {
	t := reflect.TypeFor[Config]()
next:
	for _, key := range strings.Split(path, ".") {
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct {
			return false
		}
		for i := range t.NumField() {
			if name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); name == key && name != "" {
				t = t.Field(i).Type
				continue next
			}
		}
		return false
	}
	return true
}

var (
	typeDuration = reflect.TypeFor[Duration]()
	typeSize     = reflect.TypeFor[Size]()
	envRef       = regexp.MustCompile(`\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}`)
)

// expand replaces ${NAME} and ${NAME:-default} by the environment's values; $$ is a dollar sign. False: a name is not
// set, which is told.
func (d *decoder) expand(n *yaml.Node, path, s string) (out string, ok bool) {
	if !strings.Contains(s, "$") {
		return s, true
	}
	ok = true
	out = envRef.ReplaceAllStringFunc(s, func(m string) string {
		if m == "$$" {
			return "$"
		}
		sub := envRef.FindStringSubmatch(m)
		if v, ok := os.LookupEnv(sub[1]); ok && (v != "" || sub[2] == "") {
			return v
		}
		if sub[2] != "" {
			return sub[3]
		}
		d.fail(n, path, "the environment variable %s is not set", sub[1])
		ok = false
		return ""
	})
	return out, ok
}

var kindNames = map[yaml.Kind]string{
	yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value",
}

func (d *decoder) decode(n *yaml.Node, path string, v reflect.Value) {
	if d.count++; d.count > maxConfigNodes {
		if d.count == maxConfigNodes+1 {
			d.failed[""] = true // what follows is not read at all
			d.fail(n, path, "the file is too large once its aliases are followed")
		}
		return
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	d.nodes[path] = n
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // a key without a value is an absent key
	}
	want := func(k yaml.Kind) bool {
		if n.Kind == k {
			return true
		}
		d.fail(n, path, "must be %s, not %s", kindNames[k], kindNames[n.Kind])
		return false
	}
	if v.Type() == typeStatusLog && d.decodeStatusLog(n, path, v) {
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.decode(n, path, v.Elem())
	case reflect.Struct:
		if want(yaml.MappingNode) {
			d.decodeStruct(n, path, v)
		}
	case reflect.Map:
		if !want(yaml.MappingNode) {
			return
		}
		m := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
		seen := map[string]bool{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i].Value
			if seen[key] {
				d.tell(n.Content[i], path, "the key %q is given twice", key)
				continue
			}
			seen[key] = true
			e := reflect.New(v.Type().Elem()).Elem()
			d.decode(n.Content[i+1], path+"."+key, e)
			m.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), e)
		}
		v.Set(m)
	case reflect.Slice:
		if !want(yaml.SequenceNode) {
			return
		}
		s := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, c := range n.Content {
			d.decode(c, path+"["+strconv.Itoa(i)+"]", s.Index(i))
		}
		v.Set(s)
	case reflect.Interface:
		var a any
		if err := n.Decode(&a); err != nil {
			d.fail(n, path, "cannot be read: %v", err)
			return
		}
		if a != nil {
			v.Set(reflect.ValueOf(a))
		}
	default:
		if want(yaml.ScalarNode) {
			d.decodeScalar(n, path, v)
		}
	}
}

func (d *decoder) decodeStruct(n *yaml.Node, path string, v reflect.Value) {
	t := v.Type()
	fields := map[string]int{}
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			fields[name] = i
			names = append(names, name)
		}
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		p := k.Value
		if path != "" {
			p = path + "." + k.Value
		}
		f, ok := fields[k.Value]
		switch {
		case !ok:
			d.unknown[path] = true
			d.tell(k, p, "is no key that is known here; known are %s", strings.Join(names, ", "))
		case seen[k.Value]:
			d.tell(k, p, "is given twice")
		default:
			seen[k.Value] = true
			d.decode(n.Content[i+1], p, v.Field(f))
		}
	}
}

func (d *decoder) decodeScalar(n *yaml.Node, path string, v reflect.Value) {
	s, ok := d.expand(n, path, n.Value)
	if !ok {
		return
	}
	switch v.Type() {
	case typeDuration:
		dur, err := ParseDuration(s)
		if err != nil {
			d.fail(n, path, "%v", err)
			return
		}
		v.SetInt(int64(dur))
		return
	case typeSize:
		size, err := parseSize(s)
		if err != nil {
			d.fail(n, path, "%v", err)
			return
		}
		v.SetInt(int64(size))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Bool:
		switch s {
		case "true":
			v.SetBool(true)
		case "false":
			v.SetBool(false)
		default:
			d.fail(n, path, "must be true or false, not %q", s)
		}
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			d.fail(n, path, "must be a whole number, not %q", s)
			return
		}
		v.SetInt(i)
	case reflect.Float64:
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || f != f {
			d.fail(n, path, "must be a number, not %q", s)
			return
		}
		v.SetFloat(f)
	default:
		d.fail(n, path, "cannot be set from a file")
	}
}
