package statussync

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func refs(words ...string) []ToolRef {
	var out []ToolRef
	for _, w := range words {
		name, hash, _ := strings.Cut(w, "=")
		out = append(out, ToolRef{name, hash})
	}
	return out
}

func TestDiffTools(t *testing.T) {
	for _, c := range []struct {
		old, now []ToolRef
		says     string
	}{
		{nil, nil, "nothing differs"},
		{refs("a=1", "b=1"), refs("b=1", "a=1"), "nothing differs"},
		{refs("a=1", "a=2"), refs("a=2", "a=1"), "nothing differs"},
		{nil, refs("b=1", "a=1"), "2 added (a, b)"},
		{refs("b=1", "a=1"), nil, "2 removed (a, b)"},
		{refs("a=1"), refs("a=2"), "1 changed (a)"},
		{refs("a=1"), refs("a=1", "a=1"), "1 changed (a)"},
		{refs("a=1", "b=1", "c=1"), refs("d=1", "c=2", "b=1"), "1 added (d), 1 removed (a), 1 changed (c)"},
		{nil, refs("e=1", "d=1", "c=1", "b=1", "a=1"), "5 added (a, b, c, …)"},
	} {
		old, now := slices.Clone(c.old), slices.Clone(c.now)
		if got := DiffTools(c.old, c.now).String(); got != c.says {
			t.Errorf("%v, %v: %s, want %s", c.old, c.now, got, c.says)
		}
		if !slices.Equal(old, c.old) || !slices.Equal(now, c.now) {
			t.Error("the lists were changed")
		}
	}
}

// TestDiffToolsProperties: a difference is empty exactly where the hashes are equal, order never counts, and applied to
// the old set it gives the new one.
func TestDiffToolsProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := func(label string) []ToolRef {
			m := rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c", "d", "<e>"}), rapid.SampledFrom([]string{"1", "2", "3"}), 0, 5).Draw(t, label)
			var out []ToolRef
			for name, h := range m {
				out = append(out, ToolRef{name, h})
			}
			return out
		}
		a, b := set("a"), set("b")
		d := DiffTools(a, b)
		if d.Empty() != (HashTools(a) == HashTools(b)) || d.Hash != HashTools(b) || d.PreviousHash != HashTools(a) {
			t.Fatalf("%v %v: %+v", a, b, d)
		}
		rand.Shuffle(len(a), func(i, k int) { a[i], a[k] = a[k], a[i] })
		if diff := cmp.Diff(d, DiffTools(a, b)); diff != "" {
			t.Fatal(diff)
		}
		m := map[string]string{}
		for _, x := range a {
			m[x.Name] = x.Hash
		}
		for _, x := range d.Added {
			m[x.Name] = x.Hash
		}
		for _, x := range d.Removed {
			if m[x.Name] != x.Hash {
				t.Fatalf("%+v was not there", x)
			}
			delete(m, x.Name)
		}
		for _, x := range d.Changed {
			if m[x.Name] != x.PreviousHash {
				t.Fatalf("%+v was not there", x)
			}
			m[x.Name] = x.Hash
		}
		var made []ToolRef
		for name, h := range m {
			made = append(made, ToolRef{name, h})
		}
		if HashTools(made) != HashTools(b) {
			t.Fatalf("%+v applied to %v gives %v, not %v", d, a, made, b)
		}
	})
}

func TestDriftEntryJSON(t *testing.T) {
	e := &Entry{Seq: 1, Epoch: "e1", Kind: KindToolDrift, Timestamp: time.Unix(1, 0).UTC(), Source: SourceHeartbeat, ServerID: "a",
		Tools: DiffTools(refs("a=1", "b=1"), refs("b=2", "c </script>=1"))}
	var back Entry
	if err := json.Unmarshal(e.AppendJSON(nil), &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(e.Tools, back.Tools); d != "" {
		t.Error(d)
	}
	if strings.Contains(string(e.AppendJSON(nil)), "</script>") {
		t.Error("a tool's name can end a script")
	}
}
