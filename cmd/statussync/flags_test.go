package main

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"github.com/agentopia/statussync"

	"github.com/spf13/cobra"
)

// TestAvailabilityClauses: a subscription by availability gets exactly the updates whose current status has it,
// whatever the state and health.
func TestAvailabilityClauses(t *testing.T) {
	other := &statussync.Status{State: statussync.StateUnknown, Health: statussync.HealthUnknown}
	for _, chosen := range [][]statussync.Availability{
		{statussync.Available}, {statussync.Limited}, {statussync.Unavailable}, {statussync.Changing}, {statussync.Off}, {statussync.AvailabilityUnknown},
		{statussync.Off, statussync.Unavailable},
	} {
		for _, states := range [][]statussync.State{nil, {statussync.StateRunning}, {statussync.StateStopped, statussync.StateError}} {
			for _, healths := range [][]statussync.Health{nil, {statussync.HealthUnhealthy}, {statussync.HealthHealthy, statussync.HealthUnknown}} {
				var f filterFlags
				f.availability.values = untyped(chosen)
				if states != nil {
					f.states.values = untyped(states)
				}
				if healths != nil {
					f.healths.values = untyped(healths)
				}
				m, err := statussync.Filter{Clauses: f.clauses(nil, nil)}.Compile()
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range statussync.States {
					for _, h := range statussync.Healths {
						st := &statussync.Status{State: s, Health: h}
						want := contains(chosen, st.Availability()) && (states == nil || contains(states, s)) && (healths == nil || contains(healths, h))
						got := m.Match(&statussync.Entry{Kind: statussync.KindStatus, ServerID: "x", Previous: other, Current: st})
						if got != want {
							t.Errorf("--availability %v --state %v --health %v: %s/%s matches: %v, want %v", chosen, states, healths, s, h, got, want)
						}
					}
				}
			}
		}
	}
}

func contains[T comparable](list []T, v T) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}

func TestClausesOfOtherFlags(t *testing.T) {
	var f filterFlags
	if got := f.clauses([]string{}, nil); got != nil {
		t.Errorf("no flags make a filter: %+v", got)
	}
	f.environments.values = []string{"box"}
	f.labels.values = map[string]string{"a": "b"}
	f.availability.values = []string{"unavailable"}
	got := f.clauses([]string{"x"}, []statussync.Kind{statussync.KindStatus})
	if len(got) != 2 {
		t.Fatalf("clauses %+v", got)
	}
	for _, c := range got {
		if len(c.ServerIDs) != 1 || len(c.EnvironmentIDs) != 1 || c.Labels["a"] != "b" || len(c.Kinds) != 1 {
			t.Errorf("a clause lost a condition: %+v", c)
		}
	}
}

func TestWidth(t *testing.T) {
	for s, want := range map[string]int{
		"": 0, "abc": 3, "日本": 4, "é": 1, "e\u0301": 1, "ｆｕｌｌ": 8, "한국": 4, "✅ ok": 5, "🚀": 2, "…": 1, "→": 1, "ﾊﾝ": 2, "ก็": 1,
	} {
		if got := width(s); got != want {
			t.Errorf("%q is %d wide, want %d", s, got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b[31m\u202eb\u200dc\x9b")
	f.Fuzz(func(t *testing.T, s string) {
		c := clean(s)
		if c == "" || !utf8.ValidString(c) || width(c) < 0 || width(c) > 2*utf8.RuneCountInString(c) {
			t.Fatalf("%q", c)
		}
		for _, r := range c {
			if r < ' ' || (r >= 0x7f && r < 0xa0) || (r >= 0x202a && r <= 0x202e) {
				t.Fatalf("%q has %U", c, r)
			}
		}
	})
}

// TestHelp: every command and flag says what it does, and every command that does something shows how.
func TestHelp(t *testing.T) {
	c := &cli{system: system{getenv: func(string) string { return "" }}}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" {
			t.Errorf("%s has no short help", cmd.CommandPath())
		}
		if !cmd.HasSubCommands() && cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s has no help", cmd.CommandPath(), f.Name)
			}
		})
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(c.root())
}

// TestServerIDsRefuseAnAddress: who gives the address of the service where --server takes ids would otherwise be answered,
// with exit code 0, by another service that knows no such server.
func TestServerIDsRefuseAnAddress(t *testing.T) {
	for _, args := range [][]string{
		{"export", "--server", "http://127.0.0.1:1"},
		{"export", "--server", "weather,https://status.example.com"},
		{"maintenance", "add", "--for", "1h", "--server", "http://127.0.0.1:1"},
	} {
		r := exec(t.Context(), args)
		if r.code != 2 || !strings.Contains(r.err, "STATUSSYNC_SERVER") {
			t.Errorf("%v: exit code %d: %s", args, r.code, r.err)
		}
	}
}
