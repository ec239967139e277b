package sqlite

import (
	"crypto/sha256"
	"maps"
	"testing"
)

func TestDatabaseAgents(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	hash := func(s string) [sha256.Size]byte { return sha256.Sum256([]byte(s)) }
	s, err := Open(ctx, Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	has := func(registry string, want map[[sha256.Size]byte]string) {
		t.Helper()
		got, err := s.DatabaseAgents(ctx, registry)
		if err != nil || !maps.Equal(got, want) {
			t.Fatalf("%s has %v (%v), want %v", registry, got, err, want)
		}
	}
	has("postgres", nil)
	a := map[[sha256.Size]byte]string{hash("one"): "e1", hash("two"): "e2"}
	if err := s.SetDatabaseAgents(ctx, "postgres", a); err != nil {
		t.Fatal(err)
	}
	if err := s.SetDatabaseAgents(ctx, "other", map[[sha256.Size]byte]string{hash("one"): "x"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(ctx, Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	has("postgres", a)
	// One is rotated, one is given to another environment.
	b := map[[sha256.Size]byte]string{hash("three"): "e1", hash("two"): "e9"}
	if err := s.SetDatabaseAgents(ctx, "postgres", b); err != nil {
		t.Fatal(err)
	}
	has("postgres", b)
	has("other", map[[sha256.Size]byte]string{hash("one"): "x"})
	if err := s.ForgetDatabaseAgents(ctx, []string{"postgres"}); err != nil {
		t.Fatal(err)
	}
	has("postgres", b)
	has("other", nil)
}
