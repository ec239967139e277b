// Package backup is the format of a backup: a tar archive with a manifest and the SQLite files of a data directory
// (docs/operations.md). It writes and reads streams and knows nothing of what the files hold, where they come from or
// where they go.
//
// An archive is manifest.json, then the files in the manifest's order, and nothing else. Read takes exactly what Write
// makes: everything about an archive is untrusted until the last byte was read and every checksum was right. The
// checksums tell damage, not forgery: an archive is not signed, and whoever can change it can change its manifest too.
package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/agentopia/statussync"
)

// FormatVersion is the form that Write makes. Read refuses newer ones.
const FormatVersion = 1

// ManifestName is the name of an archive's first member.
const ManifestName = "manifest.json"

// Bounds of what Read takes.
const (
	MaxFiles     = 16
	MaxFileBytes = 1 << 40 // 1 TiB, a hundred times what a journal has by default
	maxManifest  = 64 << 10
	maxName      = 64
)

// block is the unit of a tar archive (POSIX.1-1988, ustar).
const block = 512

// Manifest says what an archive holds.
type Manifest struct {
	FormatVersion  int               `json:"format_version"`
	CreatedAt      time.Time         `json:"created_at"` // when the snapshot was begun, by the service's clock
	Head           statussync.Cursor `json:"head"`       // newest entry in it; empty for a journal without any
	ServiceVersion string            `json:"service_version"`
	Files          []File            `json:"files"`
}

// File is one file of an archive.
type File struct {
	Name   string `json:"name"` // of a file directly in the data directory
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// ValidName reports whether a file may have that name: lower-case letters, digits and . _ -, no dot in front, at most 64
// bytes. So no name is a path, hidden, or reserved by a file system.
func ValidName(name string) bool {
	if name == "" || len(name) > maxName || name[0] == '.' {
		return false
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// invalid is the error of an archive that is not one of ours, or no more.
func invalid(format string, args ...any) error {
	return statussync.NewError(statussync.CodeInvalid, "the backup cannot be used: "+fmt.Sprintf(format, args...), nil)
}

func (m *Manifest) check() error {
	if m.FormatVersion < 1 || m.FormatVersion > FormatVersion {
		return invalid("its format version is %d, this program knows up to %d; use the program that made it, or a newer one", m.FormatVersion, FormatVersion)
	}
	if len(m.Files) == 0 || len(m.Files) > MaxFiles {
		return invalid("it lists %d files, not 1 to %d", len(m.Files), MaxFiles)
	}
	seen := map[string]bool{ManifestName: true}
	for _, f := range m.Files {
		sum, err := hex.DecodeString(f.SHA256)
		switch {
		case !ValidName(f.Name):
			return invalid("it lists a file with the name %s, which no file of a backup has", shown(f.Name))
		case seen[f.Name]:
			return invalid("it lists %s twice", f.Name)
		case f.Size < 0 || f.Size > MaxFileBytes:
			return invalid("it says that %s has %d bytes", f.Name, f.Size)
		case err != nil || len(sum) != sha256.Size:
			return invalid("the checksum of %s is none", f.Name)
		}
		seen[f.Name] = true
	}
	return nil
}

func shown(name string) string { return strconv.Quote(statussync.CleanText(name, 2*maxName)) }

// Bytes is how much all files have together.
func (m *Manifest) Bytes() int64 {
	var n int64
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

func padded(n int64) int64 { return (n + block - 1) / block * block }

// archiveSize is how long an archive with a manifest of that many bytes is: a header before each member, and two empty
// blocks at the end.
func (m *Manifest) archiveSize(manifest int64) int64 {
	n := block + padded(manifest)
	for _, f := range m.Files {
		n += block + padded(f.Size)
	}
	return n + 2*block
}

func (m *Manifest) encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err == nil && len(b) >= maxManifest {
		err = invalid("its manifest has more than %d bytes", maxManifest)
	}
	return append(b, '\n'), err
}

// Size returns how many bytes Write will write.
func Size(m *Manifest) (int64, error) {
	b, err := m.encode()
	return m.archiveSize(int64(len(b))), err
}

// Write writes an archive. open gives the content of each file, which is closed here and must have the size that the
// manifest says; its checksum is the caller's affair. It blocks as w does.
func Write(w io.Writer, m *Manifest, open func(name string) (io.ReadCloser, error)) error {
	head, err := m.encode()
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	header := func(name string, size int64) error {
		// GNU's form has room for sizes over 8 GiB without members beside the file's own.
		return tw.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: m.CreatedAt.Truncate(time.Second), Format: tar.FormatGNU,
		})
	}
	if err := header(ManifestName, int64(len(head))); err != nil {
		return err
	}
	if _, err := tw.Write(head); err != nil {
		return err
	}
	for _, f := range m.Files {
		if err := header(f.Name, f.Size); err != nil {
			return err
		}
		r, err := open(f.Name)
		if err != nil {
			return err
		}
		_, err = io.Copy(tw, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return tw.Close() // fails where a file was shorter than said
}

// ReadOptions say what Read does with an archive.
type ReadOptions struct {
	// Known lists the names that files may have; nil: every valid name.
	Known []string
	// Accept, if not nil, is called with the manifest before any file is read; its error ends Read.
	Accept func(*Manifest) error
	// Create, if not nil, gives the place where the content of a file goes. What was written is good only once Read has
	// returned nil. Read closes it. nil: the content is only checked.
	Create func(f File) (io.WriteCloser, error)
}

// Read reads an archive to its end and checks it against its manifest. It holds no more than 64 KiB of it in memory, and
// writes no byte more than the manifest says. Errors of the archive have statussync.CodeInvalid; those of r, Accept and
// Create come as they are. It blocks as r does.
func Read(r io.Reader, o ReadOptions) (*Manifest, error) {
	in := &counter{r: r}
	tr := tar.NewReader(in)
	h, err := next(tr, in)
	if err != nil {
		return nil, err
	}
	if h.Name != ManifestName || h.Size >= maxManifest {
		return nil, invalid("it does not begin with its manifest; is it a backup of statussync?")
	}
	raw, err := io.ReadAll(io.LimitReader(tr, maxManifest))
	if err != nil {
		return nil, in.explain(err)
	}
	m := &Manifest{}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		if v := version(raw); v > FormatVersion {
			m.FormatVersion = v
			return nil, m.check()
		}
		return nil, invalid("its manifest cannot be read")
	}
	if dec.More() {
		return nil, invalid("its manifest cannot be read")
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	if o.Known != nil {
		known := map[string]bool{}
		for _, n := range o.Known {
			known[n] = true
		}
		for _, f := range m.Files {
			if !known[f.Name] {
				return nil, invalid("it holds %s, which this program does not know; was it made by a newer one?", shown(f.Name))
			}
		}
	}
	if o.Accept != nil {
		if err := o.Accept(m); err != nil {
			return nil, err
		}
	}
	for _, f := range m.Files {
		h, err := next(tr, in)
		switch {
		case err != nil:
			return nil, err
		case h.Name != f.Name:
			return nil, invalid("%s stands where its manifest lists %s", shown(h.Name), f.Name)
		case h.Size != f.Size:
			return nil, invalid("%s has %d bytes, its manifest says %d", f.Name, h.Size, f.Size)
		}
		if err := readFile(tr, in, f, o.Create); err != nil {
			return nil, err
		}
	}
	if h, err := tr.Next(); err == nil {
		return nil, invalid("it holds %s, which its manifest does not list", shown(h.Name))
	} else if !errors.Is(err, io.EOF) {
		return nil, in.explain(err)
	}
	// The tar reader is content with less than the end that Write makes, and looks at nothing after it.
	if _, err := io.CopyN(io.Discard, in, 1); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, err
		}
		return nil, invalid("something follows after its end")
	}
	if want := m.archiveSize(int64(len(raw))); in.n != want {
		return nil, invalid("it has %d bytes, not %d: it was cut short", in.n, want)
	}
	return m, nil
}

// version finds the format version in a manifest that may have keys which we don't know.
func version(raw []byte) int {
	var v struct {
		FormatVersion int `json:"format_version"`
	}
	if json.Unmarshal(raw, &v) != nil {
		return 0
	}
	return v.FormatVersion
}

func readFile(tr *tar.Reader, in *counter, f File, create func(File) (io.WriteCloser, error)) (err error) {
	sum := sha256.New()
	var to io.Writer = sum
	if create != nil {
		w, err := create(f)
		if err != nil {
			return err
		}
		defer func() {
			if cerr := w.Close(); err == nil {
				err = cerr
			}
		}()
		to = io.MultiWriter(w, sum)
	}
	n, err := copyTo(to, tr, in)
	if err != nil {
		return err
	}
	if n != f.Size {
		return invalid("%s has %d bytes, its manifest says %d", f.Name, n, f.Size)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != f.SHA256 {
		return invalid("%s is damaged: its checksum is not that of its manifest", f.Name)
	}
	return nil
}

// copyTo is io.Copy that tells an error of the archive from one of the place that it is written to.
func copyTo(to io.Writer, tr *tar.Reader, in *counter) (n int64, err error) {
	buf := make([]byte, 32<<10)
	for {
		k, err := tr.Read(buf)
		if k > 0 {
			if _, err := to.Write(buf[:k]); err != nil {
				return n, err
			}
			n += int64(k)
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, in.explain(err)
		}
	}
}

// next reads the header of a member, which must be a plain file as Write makes it: nothing sparse, linked or renamed.
func next(tr *tar.Reader, in *counter) (*tar.Header, error) {
	h, err := tr.Next()
	switch {
	case errors.Is(err, io.EOF) && in.n == 0:
		return nil, invalid("it is empty")
	case errors.Is(err, io.EOF):
		return nil, invalid("it ends before everything that its manifest lists")
	case err != nil:
		return nil, in.explain(err)
	case h.Typeflag != tar.TypeReg || len(h.PAXRecords) > 0 || h.Linkname != "" || h.Size < 0:
		return nil, invalid("%s is not a plain file", shown(h.Name))
	}
	return h, nil
}

// counter counts what is read, and keeps the reader's own error apart from those of the archive.
type counter struct {
	r   io.Reader
	n   int64
	err error
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

// explain gives the reader's error where there is one; else it was the archive.
func (c *counter) explain(err error) error {
	switch {
	case c.err != nil:
		return c.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return invalid("it was cut short after %d bytes", c.n)
	}
	return invalid("it is no tar archive, or damaged")
}
