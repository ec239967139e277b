package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/google/go-cmp/cmp"
)

var made = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func manifest(files map[string]string, order ...string) *Manifest {
	m := &Manifest{FormatVersion: 1, CreatedAt: made, Head: statussync.Cursor{Epoch: "e3abc", Seq: 41}, ServiceVersion: "v1.2.3"}
	for _, name := range order {
		sum := sha256.Sum256([]byte(files[name]))
		m.Files = append(m.Files, File{Name: name, Size: int64(len(files[name])), SHA256: hex.EncodeToString(sum[:])})
	}
	return m
}

var content = map[string]string{"statussync.db": strings.Repeat("page", 1000), "history.db": "h", "empty.db": ""}

func archive(t testing.TB, m *Manifest) []byte {
	t.Helper()
	var b bytes.Buffer
	err := Write(&b, m, func(name string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content[name])), nil })
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type sink struct {
	bytes.Buffer
	closed bool
}

func (s *sink) Close() error { s.closed = true; return nil }

// read returns what Read wrote, by name.
func read(b []byte, known ...string) (*Manifest, map[string]string, error) {
	got := map[string]*sink{}
	m, err := Read(bytes.NewReader(b), ReadOptions{Known: known, Create: func(f File) (io.WriteCloser, error) {
		got[f.Name] = &sink{}
		return got[f.Name], nil
	}})
	out := map[string]string{}
	for n, s := range got {
		if !s.closed {
			return m, nil, errors.New("not closed: " + n)
		}
		out[n] = s.String()
	}
	return m, out, err
}

func TestRoundTrip(t *testing.T) {
	m := manifest(content, "statussync.db", "history.db", "empty.db")
	b := archive(t, m)
	if n, err := Size(m); err != nil || n != int64(len(b)) {
		t.Errorf("Size is %d, %v; the archive has %d", n, err, len(b))
	}
	got, files, err := read(b, "statussync.db", "history.db", "empty.db")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(content, files); d != "" {
		t.Error(d)
	}
	// Other tools read it too: it is a plain tar.
	tr := tar.NewReader(bytes.NewReader(b))
	for _, want := range []string{ManifestName, "statussync.db", "history.db", "empty.db"} {
		if h, err := tr.Next(); err != nil || h.Name != want || h.Mode != 0o600 {
			t.Errorf("%v, %v", h, err)
		}
	}
}

func TestWriteWantsTheSizeThatIsSaid(t *testing.T) {
	for _, text := range []string{"too short", strings.Repeat("x", 5000)} {
		err := Write(io.Discard, manifest(content, "statussync.db"), func(string) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(text)), nil
		})
		if err == nil {
			t.Errorf("a file of %d bytes went through as one of 4000", len(text))
		}
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	b := archive(t, manifest(content, "statussync.db", "history.db"))
	for n := 0; n < len(b); n += 101 {
		if _, _, err := read(b[:n]); statussync.CodeOf(err) != statussync.CodeInvalid {
			t.Fatalf("the first %d of %d bytes: %v", n, len(b), err)
		}
	}
	for n := len(b) - 1100; n < len(b); n++ { // its end is nothing but zeros
		if _, _, err := read(b[:n]); statussync.CodeOf(err) != statussync.CodeInvalid {
			t.Fatalf("the first %d of %d bytes: %v", n, len(b), err)
		}
	}
	if _, _, err := read(append(bytes.Clone(b), 0)); err == nil {
		t.Error("a byte behind the end was taken")
	}
}

func TestEveryChangedByteOfContentIsRefused(t *testing.T) {
	b := archive(t, manifest(content, "history.db", "statussync.db"))
	from := bytes.Index(b, []byte("pagepage"))
	for i := from; i < from+4000; i += 97 {
		c := bytes.Clone(b)
		c[i] ^= 1
		if _, _, err := read(c); err == nil || !strings.Contains(err.Error(), "statussync.db is damaged") {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
}

// member is one part of an archive that somebody made to do harm.
type member struct {
	tar.Header
	body string
}

func forged(t *testing.T, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := m.Header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Size == 0 {
			h.Size = int64(len(m.body))
		}
		h.Mode = 0o600
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.body); err != nil {
			t.Fatal(err)
		}
	}
	w.Close() // fails where a body is missing; what was written is what is wanted
	return b.Bytes()
}

func TestHostileArchives(t *testing.T) {
	text := func(m *Manifest) string {
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	head := func(m *Manifest) member { return member{tar.Header{Name: ManifestName}, text(m)} }
	file := func(name string) member { return member{tar.Header{Name: name}, content["history.db"]} }
	good := manifest(content, "history.db")
	named := func(names ...string) *Manifest {
		m := manifest(content, "history.db")
		f := m.Files[0]
		m.Files = nil
		for _, n := range names {
			f.Name = n
			m.Files = append(m.Files, f)
		}
		return m
	}
	changed := func(f func(m *Manifest)) *Manifest {
		m := manifest(content, "history.db")
		f(m)
		return m
	}
	var many []string
	for i := range 17 {
		many = append(many, "f"+string(rune('a'+i)))
	}
	for name, tc := range map[string]struct {
		archive []byte
		say     string
	}{
		"empty":                {nil, "it is empty"},
		"no tar":               {[]byte(strings.Repeat("no tar at all\n", 100)), "no tar archive"},
		"no manifest":          {forged(t, file("history.db")), "does not begin with its manifest"},
		"manifest second":      {forged(t, file("history.db"), head(good)), "does not begin with its manifest"},
		"huge manifest":        {forged(t, member{tar.Header{Name: ManifestName}, strings.Repeat(" ", maxManifest)}), "does not begin with its manifest"},
		"no JSON":              {forged(t, member{tar.Header{Name: ManifestName}, "{"}), "manifest cannot be read"},
		"unknown key":          {forged(t, member{tar.Header{Name: ManifestName}, `{"format_version":1,"run":"rm"}`}), "manifest cannot be read"},
		"two manifests":        {forged(t, member{tar.Header{Name: ManifestName}, text(good) + text(good)}), "manifest cannot be read"},
		"newer format":         {forged(t, member{tar.Header{Name: ManifestName}, `{"format_version":2,"more":1}`}), "format version is 2"},
		"format 0":             {forged(t, head(changed(func(m *Manifest) { m.FormatVersion = 0 })), file("history.db")), "format version is 0"},
		"no files":             {forged(t, head(named())), "lists 0 files"},
		"too many files":       {forged(t, head(named(many...))), "lists 17 files"},
		"parent":               {forged(t, head(named("../evil.db")), file("../evil.db")), `"../evil.db"`},
		"absolute":             {forged(t, head(named("/etc/passwd")), file("/etc/passwd")), `"/etc/passwd"`},
		"sub folder":           {forged(t, head(named("a/b.db")), file("a/b.db")), `"a/b.db"`},
		"back slash":           {forged(t, head(named(`..\evil.db`)), file(`..\evil.db`)), "no file of a backup has"},
		"hidden":               {forged(t, head(named(".ssh")), file(".ssh")), `".ssh"`},
		"manifest as a file":   {forged(t, head(named(ManifestName)), file(ManifestName)), "twice"},
		"twice in manifest":    {forged(t, head(named("history.db", "history.db")), file("history.db"), file("history.db")), "twice"},
		"twice in archive":     {forged(t, head(good), file("history.db"), file("history.db")), "does not list"},
		"not listed":           {forged(t, head(good), file("history.db"), file("evil.db")), "does not list"},
		"another in its place": {forged(t, head(good), file("evil.db")), "stands where its manifest lists"},
		"missing":              {forged(t, head(good)), "ends before everything"},
		"unknown":              {forged(t, head(named("other.db")), file("other.db")), "does not know"},
		"negative size":        {forged(t, head(changed(func(m *Manifest) { m.Files[0].Size = -1 })), file("history.db")), "-1 bytes"},
		"huge size":            {forged(t, head(changed(func(m *Manifest) { m.Files[0].Size = 1 << 50 })), file("history.db")), "bytes"},
		"larger than said":     {forged(t, head(good), member{tar.Header{Name: "history.db"}, "hh"}), "has 2 bytes"},
		"no checksum":          {forged(t, head(changed(func(m *Manifest) { m.Files[0].SHA256 = "" })), file("history.db")), "checksum"},
		"wrong checksum":       {forged(t, head(good), member{tar.Header{Name: "history.db"}, "x"}), "damaged"},
		"symbolic link":        {forged(t, head(good), member{Header: tar.Header{Name: "history.db", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}}), "not a plain file"},
		"hard link":            {forged(t, head(good), member{Header: tar.Header{Name: "history.db", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}}), "not a plain file"},
		"device":               {forged(t, head(good), member{Header: tar.Header{Name: "history.db", Typeflag: tar.TypeChar}}), "not a plain file"},
		"folder":               {forged(t, head(good), member{Header: tar.Header{Name: "history.db", Typeflag: tar.TypeDir}}), "not a plain file"},
		"extended headers": {forged(t, head(good), member{tar.Header{Name: "history.db", Format: tar.FormatPAX,
			PAXRecords: map[string]string{"STATUSSYNC.x": "1"}}, content["history.db"]}), "not a plain file"},
	} {
		t.Run(name, func(t *testing.T) {
			m, _, err := read(tc.archive, "statussync.db", "history.db")
			if m != nil || statussync.CodeOf(err) != statussync.CodeInvalid || !strings.Contains(err.Error(), tc.say) {
				t.Errorf("%v, %v; not CodeInvalid with %q", m, err, tc.say)
			}
		})
	}
}

func TestErrorsOfOthersStayWhatTheyAre(t *testing.T) {
	b := archive(t, manifest(content, "statussync.db"))
	mine := errors.New("mine")
	if _, err := Read(io.MultiReader(bytes.NewReader(b[:2000]), failing{mine}), ReadOptions{}); !errors.Is(err, mine) {
		t.Error(err)
	}
	if _, err := Read(bytes.NewReader(b), ReadOptions{Accept: func(*Manifest) error { return mine }}); !errors.Is(err, mine) {
		t.Error(err)
	}
	if _, err := Read(bytes.NewReader(b), ReadOptions{Create: func(File) (io.WriteCloser, error) { return nil, mine }}); !errors.Is(err, mine) {
		t.Error(err)
	}
	if _, err := Read(bytes.NewReader(b), ReadOptions{Create: func(File) (io.WriteCloser, error) { return full{mine}, nil }}); !errors.Is(err, mine) {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type full struct{ err error }

func (f full) Write([]byte) (int, error) { return 0, f.err }
func (f full) Close() error              { return nil }

// FuzzRead reads anything. What is taken must be exactly what its manifest says, and be written as it came.
func FuzzRead(f *testing.F) {
	f.Add(archive(f, manifest(content, "statussync.db", "history.db")))
	f.Add(archive(f, manifest(content, "empty.db")))
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, files, err := read(b)
		if err != nil {
			if statussync.CodeOf(err) != statussync.CodeInvalid {
				t.Fatalf("code of %v", err)
			}
			return
		}
		if len(files) != len(m.Files) {
			t.Fatalf("%d files of %d", len(files), len(m.Files))
		}
		for _, f := range m.Files {
			sum := sha256.Sum256([]byte(files[f.Name]))
			if !ValidName(f.Name) || int64(len(files[f.Name])) != f.Size || hex.EncodeToString(sum[:]) != strings.ToLower(f.SHA256) {
				t.Fatalf("%+v", f)
			}
		}
		var out bytes.Buffer
		if err := Write(&out, m, func(n string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(files[n])), nil }); err != nil {
			t.Fatal(err)
		}
		if m2, again, err := read(out.Bytes()); err != nil || !cmp.Equal(m, m2) || !cmp.Equal(files, again) {
			t.Fatalf("written again: %v", err)
		}
	})
}
