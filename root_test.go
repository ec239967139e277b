package statussync

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestCursor(t *testing.T) {
	for _, s := range []string{"e7:41", "e1:0", "e12kq9x:9223372036854775807"} {
		c, err := ParseCursor(s)
		if err != nil || c.String() != s {
			t.Errorf("ParseCursor(%q) = %v, %v", s, c, err)
		}
	}
	for _, s := range []string{
		"", "e7", ":", "e:1", "7:41", "e7:", "e7:-1", "e7:+1", "e7:1.0", "e7:01", "e7: 1", "E7:1", "e7:1:2", "e7:99999999999999999999",
		"e-7:1", "e7\x00:1", strings.Repeat("e", 50) + ":1", "null", "e7:9223372036854775808",
	} {
		if c, err := ParseCursor(s); CodeOf(err) != CodeInvalid {
			t.Errorf("ParseCursor(%q) = %v, %v, want code invalid", s, c, err)
		}
	}
	var c Cursor
	if err := json.Unmarshal([]byte(`""`), &c); err != nil || !c.IsZero() {
		t.Errorf("an empty cursor: %v, %v", c, err)
	}
}

func FuzzParseCursor(f *testing.F) {
	f.Add("e7:41")
	f.Add("e1abc:0")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := ParseCursor(s); err == nil && c.String() != s {
			t.Fatalf("%q became %q", s, c)
		}
	})
}

func TestOverrideComplete(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name   string
		o      Override
		health Health // expected
		bad    string // location of the expected error
	}{
		{name: "running", o: Override{State: StateRunning}, health: HealthHealthy},
		{name: "error", o: Override{State: StateError}, health: HealthUnhealthy},
		{name: "stopped", o: Override{State: StateStopped}, health: HealthUnknown},
		{name: "running degraded", o: Override{State: StateRunning, Health: HealthDegraded}, health: HealthDegraded},
		{name: "stopped unhealthy", o: Override{State: StateStopped, Health: HealthUnhealthy}, health: HealthUnhealthy},
		{name: "stopped healthy", o: Override{State: StateStopped, Health: HealthHealthy}, bad: "health"},
		{name: "starting degraded", o: Override{State: StateStarting, Health: HealthDegraded}, bad: "health"},
		{name: "no state", o: Override{}, bad: "state"},
		{name: "bad health", o: Override{State: StateRunning, Health: "great"}, bad: "health"},
		{name: "past", o: Override{State: StateRunning, ExpiresAt: now}, bad: "expires_in"},
		{name: "too long", o: Override{State: StateRunning, ExpiresAt: now.Add(MaxOverrideFor + 1)}, bad: "expires_in"},
		{name: "30 days", o: Override{State: StateRunning, ExpiresAt: now.Add(MaxOverrideFor)}, health: HealthHealthy},
		{name: "long note", o: Override{State: StateRunning, Note: strings.Repeat("n", MaxNoteLen+1)}, bad: "note"},
	} {
		err := c.o.Complete(now)
		if c.bad != "" {
			var e *Error
			if !errors.As(err, &e) || e.Location != c.bad || e.Code != CodeInvalid {
				t.Errorf("%s: error %v, want one at %s", c.name, err, c.bad)
			}
			continue
		}
		if err != nil || c.o.Health != c.health || c.o.ExpiresAt.IsZero() || !c.o.SetAt.Equal(now) {
			t.Errorf("%s: %+v, %v", c.name, c.o, err)
		}
	}
}

func TestMaintenanceSelects(t *testing.T) {
	s := &Server{ID: "a", EnvironmentID: "e", Labels: map[string]string{"team": "core", "tier": "1"}}
	for _, c := range []struct {
		name string
		m    Maintenance
		want bool
	}{
		{"nothing selects nothing", Maintenance{}, false},
		{"server", Maintenance{ServerIDs: []string{"b", "a"}}, true},
		{"environment", Maintenance{EnvironmentIDs: []string{"e"}}, true},
		{"labels", Maintenance{Labels: map[string]string{"team": "core"}}, true},
		{"labels all", Maintenance{Labels: map[string]string{"team": "core", "tier": "2"}}, false},
		{"other", Maintenance{ServerIDs: []string{"b"}}, false},
	} {
		if got := c.m.Selects(s); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestEntryJSON(t *testing.T) {
	at := time.Date(2026, 11, 23, 12, 3, 41, 123456789, time.UTC)
	e := &Entry{
		Seq: 58, Epoch: "e7", Kind: KindStatus, Timestamp: at, Source: SourceHeartbeat,
		Details: "probe failing: \"refused\" <b>\u202e\n", ServerID: "weather", EnvironmentID: "box-7", Version: 12,
		Previous: &Status{State: StateRunning, Health: HealthHealthy, Reason: ReasonOK, Since: at.Add(-time.Hour), LastStarted: at.Add(-2 * time.Hour)},
		Current:  &Status{State: StateRunning, Health: HealthUnhealthy, Reason: ReasonProbeFailing, Cause: "refused", Marks: MarkOverride | MarkFlapping, Since: at, LastError: "connection refused", LastStarted: at.Add(-2 * time.Hour)},
		Labels:   map[string]string{"not": "shown"},
	}
	e.Changes = StatusChanges(e.Previous, e.Current)
	want := `{"seq":58,"epoch":"e7","kind":"status","server_id":"weather","environment_id":"box-7","version":12,` +
		`"previous_status":{"state":"running","health":"healthy","reason":"ok","marks":[],"since":"2026-11-23T11:03:41.123Z","last_started":"2026-11-23T10:03:41.123Z","uptime_seconds":7200},` +
		`"current_status":{"state":"running","health":"unhealthy","reason":"probe_failing","cause":"refused","marks":["flapping","override"],"since":"2026-11-23T12:03:41.123Z","last_error":"connection refused","last_started":"2026-11-23T10:03:41.123Z","uptime_seconds":7200},` +
		`"timestamp":"2026-11-23T12:03:41.123Z","source":"heartbeat","details":"probe failing: \"refused\" \u003cb\u003e` + "\u202e" + `\n","changes":["health","reason","marks"]}`
	got := string(e.AppendJSON(nil))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("encoding (-want +got):\n%s", diff)
	}
	var back Entry
	if err := json.Unmarshal([]byte(got), &back); err != nil {
		t.Fatal(err)
	}
	if again := string(back.AppendJSON(nil)); again != got {
		t.Errorf("read back and written again:\n%s\n%s", got, again)
	}
	silent := &Entry{Seq: 1, Epoch: "e1", Kind: KindEnvironmentSilent, EnvironmentID: "box-7", ServerIDs: []string{"a", "b"}, Timestamp: at, Source: SourceSystem, Details: "d"}
	if got := string(silent.AppendJSON(nil)); got != `{"seq":1,"epoch":"e1","kind":"environment_silent","environment_id":"box-7","server_ids":["a","b"],"timestamp":"2026-11-23T12:03:41.123Z","source":"system","details":"d"}` {
		t.Error(got)
	}
}

// Any text survives the one encoding, whatever it holds.
func FuzzEntryJSON(f *testing.F) {
	f.Add("a", "b\x00\"\\", uint64(3))
	f.Fuzz(func(t *testing.T, id, text string, n uint64) {
		if !utf8.ValidString(id) || !utf8.ValidString(text) {
			t.Skip() // decoders replace invalid UTF-8, and nothing invalid is let in
		}
		e := &Entry{Seq: n, Epoch: "e1", Kind: KindStatus, ServerID: id, Details: text, Version: n, Timestamp: time.Unix(int64(n%1e10), 0), Previous: &Status{}, Current: &Status{LastError: text, Cause: id}}
		b := e.AppendJSON(nil)
		var back Entry
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if back.Details != text || back.ServerID != id || back.Current.LastError != text || back.Seq != n {
			t.Fatalf("%s became %+v", b, back)
		}
	})
}

func TestCleanText(t *testing.T) {
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"plain", 10, "plain"},
		{"a\nb\tc\rd", 20, "a b c d"},
		{"a\x1b[31mred\x00\x7f", 20, "a[31mred"},
		{"x\u202ey\u200bz\ufeff", 20, "xyz"},
		{"zażółć", 20, "zażółć"},
		{"żżżżżż", 8, "żż…"},
		{"toolongtext", 8, "toolo…"},
		{"bad\xffutf8", 20, "badutf8"},
		{"abc", 2, ""},
	} {
		if got := CleanText(c.in, c.limit); got != c.want {
			t.Errorf("CleanText(%q, %d) = %q, want %q", c.in, c.limit, got, c.want)
		}
	}
}

func FuzzCleanText(f *testing.F) {
	f.Add("a\u202eb", 3)
	f.Fuzz(func(t *testing.T, s string, n int) {
		n = max(0, min(n, 1000))
		got := CleanText(s, n)
		if len(got) > n || !utf8.ValidString(got) || strings.ContainsAny(got, "\x00\x1b\n\r\u202e\u2066\u200f") {
			t.Fatalf("CleanText(%q, %d) = %q", s, n, got)
		}
		if CleanText(got, n) != got {
			t.Fatalf("cleaning %q twice changes it", s)
		}
	})
}

func TestErrors(t *testing.T) {
	err := fmt.Errorf("outer: %w", &Error{Code: CodeNotFound, Detail: "no such server"})
	if CodeOf(err) != CodeNotFound || !errors.Is(err, &Error{Code: CodeNotFound}) || errors.Is(err, &Error{Code: CodeInvalid}) {
		t.Error("codes are not found in chains")
	}
	if CodeOf(errors.New("x")) != CodeInternal || CodeOf(nil) != "" {
		t.Error("CodeOf of others")
	}
	if got := NotFound("server", "a\x1bb").Error(); strings.ContainsRune(got, 0x1b) {
		t.Errorf("an error shows control characters: %q", got)
	}
}
