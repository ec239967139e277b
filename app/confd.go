package app

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/agentopia/statussync"
)

// fragmentDir lies beside the configuration file; its *.yaml files are merged into it.
const fragmentDir = "conf.d"

// maxFragments bounds the files in fragmentDir. Together with the main file they may have maxConfigBytes.
const maxFragments = 1000

// sourceFile is one file of a configuration as it was read.
type sourceFile struct {
	name string // as errors name it
	data []byte
}

// readSources reads the configuration file and then the fragments beside it, sorted by name. The error joins everything
// that can't be read.
func readSources(path string) ([]sourceFile, error) {
	main, err := readSource(path, maxConfigBytes)
	if err != nil {
		return nil, err
	}
	files := []sourceFile{main}
	dir := filepath.Join(filepath.Dir(path), fragmentDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return files, nil
	}
	if err != nil {
		return nil, statussync.Invalid(dir, "cannot be read: "+unwrapPath(err).Error())
	}
	var errs []error
	left := maxConfigBytes - len(main.data)
	for _, e := range entries { // sorted by name
		name := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") {
			continue // an editor's, or a mounted volume's own
		}
		switch filepath.Ext(e.Name()) {
		case ".yaml":
		case ".yml": // who wrote it meant it to count
			errs = append(errs, statussync.Invalid(name, "is not read: the name of a fragment ends in .yaml"))
			continue
		default:
			continue
		}
		if len(files) > maxFragments {
			errs = append(errs, statussync.Invalid(dir, "holds more than "+strconv.Itoa(maxFragments)+" fragments"))
			break
		}
		f, err := readSource(name, left)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		left -= len(f.data)
		files = append(files, f)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return files, nil
}

// readSource reads one file of at most limit bytes.
func readSource(name string, limit int) (sourceFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return sourceFile{}, statussync.Invalid(name, "cannot be read: "+unwrapPath(err).Error())
	}
	defer f.Close() // it was only read
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		return sourceFile{}, statussync.Invalid(name, "is a directory, not a configuration file")
	}
	var data []byte
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(f, int64(limit)+1))
	}
	if err != nil {
		return sourceFile{}, statussync.Invalid(name, "cannot be read: "+unwrapPath(err).Error())
	}
	if len(data) > limit {
		return sourceFile{}, statussync.Invalid(name, "is too large: a configuration may have 64 MiB, fragments included")
	}
	return sourceFile{name: name, data: data}, nil
}

// parseSources parses, merges and checks: the first file is the main one.
func parseSources(files []sourceFile) (*Config, error) {
	d := newDecoder(files[0].name)
	var root *yaml.Node
	var errs []error
	for i, f := range files {
		top, second, err := yamlDocument(f)
		if err != nil {
			errs = append(errs, err) // nothing can be said of what refers to it
			continue
		}
		if i == 0 {
			root = top
			if second != nil {
				d.unknown[""], d.partial = true, true
				d.tell(second, "", "a second YAML document begins here; the configuration is one document")
			}
			continue
		}
		if second != nil {
			d.unknown[""], d.partial = true, true
			d.tellIn(f.name, second, "", "a second YAML document begins here; a fragment is one document")
			continue
		}
		root = d.merge(root, top, f.name)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	c := DefaultConfig()
	if root != nil {
		d.decode(root, "", reflect.ValueOf(c).Elem())
	}
	if !d.broken("") { // else nothing can be said of any value
		c.dir = filepath.Dir(files[0].name)
		c.check(d)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// yamlDocument returns the top node of a file, nil for an empty one, and of a second document, where there is one.
func yamlDocument(f sourceFile) (top, second *yaml.Node, err error) {
	var one, two yaml.Node
	documents := yaml.NewDecoder(bytes.NewReader(f.data))
	if err := documents.Decode(&one); err != nil && err != io.EOF {
		return nil, nil, yamlError(f.name, err)
	}
	switch err := documents.Decode(&two); {
	case err == nil:
		second = &two
	case err != io.EOF:
		return nil, nil, yamlError(f.name, err)
	}
	if len(one.Content) > 0 {
		top = one.Content[0]
	}
	return top, second, nil
}

// fragmentLists are the paths of the lists that a fragment may add to.
var fragmentLists = []string{"environments", "servers", "auth.tokens"}

// merge appends the lists of a fragment to those of root, and notes which elements are the fragment's.
func (d *decoder) merge(root, top *yaml.Node, file string) *yaml.Node {
	if top == nil || isNull(top) {
		return root
	}
	if root == nil || isNull(root) {
		root = &yaml.Node{Kind: yaml.MappingNode}
	}
	if top = resolved(top); top.Kind != yaml.MappingNode {
		d.unknown[""], d.partial = true, true
		d.tellIn(file, top, "", "must be a mapping, not %s", kindNames[top.Kind])
		return root
	}
	if root = resolved(root); root.Kind != yaml.MappingNode {
		return root // which is told
	}
	d.eachKey(file, "", top, func(k, v *yaml.Node) {
		switch k.Value {
		case "environments", "servers":
			d.extend(root, k.Value, k.Value, v, file)
		case "auth":
			if v = resolved(v); isNull(v) {
				return
			}
			if v.Kind != yaml.MappingNode {
				d.tellIn(file, v, "auth", "must be a mapping, not %s", kindNames[v.Kind])
				return
			}
			d.eachKey(file, "auth.", v, func(k, list *yaml.Node) {
				if k.Value != "tokens" {
					d.misplaced(file, k, "auth."+k.Value)
					return
				}
				auth := childOf(root, "auth")
				if auth != nil {
					auth = resolved(auth)
				}
				if auth == nil || isNull(auth) {
					auth = &yaml.Node{Kind: yaml.MappingNode}
				} else if auth.Kind == yaml.MappingNode {
					copied := *auth // it may be the target of an alias
					copied.Content = slices.Clone(auth.Content)
					auth = &copied
				}
				setChild(root, "auth", auth)
				d.extend(auth, "tokens", "auth.tokens", list, file)
			})
		default:
			d.misplaced(file, k, k.Value)
		}
	})
	return root
}

// eachKey calls f for each key of a mapping, and tells those that are given twice.
func (d *decoder) eachKey(file, prefix string, n *yaml.Node, f func(k, v *yaml.Node)) {
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if seen[k.Value] {
			d.tellIn(file, k, prefix+k.Value, "is given twice")
			continue
		}
		seen[k.Value] = true
		f(k, n.Content[i+1])
	}
}

// misplaced tells of a key that no fragment may have, and where it belongs.
func (d *decoder) misplaced(file string, k *yaml.Node, path string) {
	where := "is no key of a fragment; a fragment may hold " + strings.Join(fragmentLists, ", ")
	if isConfigKey(path) {
		where = fmt.Sprintf("belongs into the main file, %s; a fragment may hold %s", filepath.Base(d.file), strings.Join(fragmentLists, ", "))
	}
	d.unknown[""], d.partial = true, true
	d.tellIn(file, k, path, "%s", where)
}

// extend appends a fragment's list to the list at a key of a mapping.
func (d *decoder) extend(in *yaml.Node, key, path string, list *yaml.Node, file string) {
	if list = resolved(list); isNull(list) {
		return
	}
	if in.Kind != yaml.MappingNode {
		return // which is told
	}
	if list.Kind != yaml.SequenceNode {
		d.tellIn(file, list, path, "must be a list, not %s", kindNames[list.Kind])
		d.unknown[""], d.partial = true, true
		return
	}
	all := &yaml.Node{Kind: yaml.SequenceNode}
	if old := childOf(in, key); old != nil && !isNull(resolved(old)) {
		old = resolved(old)
		if old.Kind != yaml.SequenceNode {
			return // which is told
		}
		all.Line, all.Content = old.Line, slices.Clone(old.Content)
	}
	d.parts = append(d.parts, fragmentPart{list: path, from: len(all.Content), file: file})
	all.Content = append(all.Content, list.Content...)
	setChild(in, key, all)
}

// fragmentPart says that the elements of a list from an index on, up to the next part's, stand in a fragment.
type fragmentPart struct {
	list string
	from int
	file string
}

// place returns the file in which what a path leads to stands, and the path as that file has it.
func (d *decoder) place(path string) (file, local string) {
	file, local = d.file, path
	if len(d.parts) == 0 {
		return file, local
	}
	list, rest, ok := strings.Cut(path, "[")
	if !ok {
		return file, local
	}
	number, tail, _ := strings.Cut(rest, "]")
	index, err := strconv.Atoi(number)
	if err != nil {
		return file, local
	}
	for _, p := range d.parts { // in the order of their indexes
		if p.list == list && p.from <= index {
			file, local = p.file, list+"["+strconv.Itoa(index-p.from)+"]"+tail
		}
	}
	return file, local
}

// local is a path as the file has it in which it stands.
func (d *decoder) local(path string) string {
	_, local := d.place(path)
	return local
}

// at says where something stands that was read before, as "file:line".
func (d *decoder) at(path string) string {
	file, _ := d.place(path)
	if n := d.nodes[path]; n != nil && n.Line > 0 {
		return file + ":" + strconv.Itoa(n.Line)
	}
	return file
}

func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// childOf returns the value of a key of a mapping, or nil.
func childOf(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// setChild replaces the value of a key of a mapping, or adds the key.
func setChild(n *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content[i+1] = value
			return
		}
	}
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, value)
}
