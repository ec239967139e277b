package postgres

import (
	"fmt"
	"testing"
	"time"

	"github.com/agentopia/statussync"
)

// says lists what a row tells, in brief.
func says(d *delta) (out []string) {
	for _, s := range d.update.Servers {
		out = append(out, "define "+s.ID)
	}
	for _, e := range d.update.Environments {
		out = append(out, "define "+e.ID)
	}
	for _, o := range d.after {
		switch o := o.(type) {
		case *statussync.RecordSeen:
			out = append(out, fmt.Sprintf("%s %v", o.Word, o.Echo))
		case *statussync.RowHeartbeat:
			out = append(out, "beat "+o.At.Format("05"))
		}
	}
	return out
}

// TestOnlyDifferencesCount reads one row again and again.
func TestOnlyDifferencesCount(t *testing.T) {
	k := newKnownRows(&Options{Origin: statussync.OriginPostgres, AgentPort: 30000})
	at := func(s int) time.Time { return time.Date(2026, 1, 1, 0, 0, s, 123456000, time.UTC) }
	text := func(s int) string { return at(s).Format("2006-01-02 15:04:05.999999Z07") }
	wrote := func(s int, word string) {
		k.writing([]*envWrite{{id: "e", at: at(s)}}, []*rowWrite{{id: "x", at: at(s), word: word}})
	}
	for i, step := range []struct {
		before           func()
		name, word, beat string
		want             string
	}{
		{nil, "n", "running", "", "[define x define e running false]"},
		{nil, "n", "running", "", "[]"},
		{nil, "n", "running", text(1), "[beat 01 beat 01]"},
		{nil, "n", "running", text(1), "[]"},
		{func() { wrote(2, "exited") }, "n", "exited", text(2), "[exited true]"},
		{nil, "n", "exited", text(2), "[]"},
		{nil, "n", "error", text(2), "[error false]"},                                                                         // somebody else's word beside our heartbeat
		{func() { wrote(3, "running") }, "n", "error", text(3), "[]"},                                                         // ours was guarded
		{func() { wrote(4, ""); wrote(5, "") }, "n", "error", text(4), "[]"},                                                  // read as it was before the newest
		{nil, "m", "error", text(6), "[define x beat 06 beat 06]"},                                                            // its agent reports elsewhere
		{func() { k.refused("x", "server x is defined by config") }, "m", "error", text(6), "[define x error false beat 06]"}, // offered again as a whole
	} {
		if step.before != nil {
			step.before()
		}
		d := &delta{}
		read := k.begin(true)
		k.environment(&environmentRow{id: []byte("e"), beat: []byte(step.beat)}, read, d)
		k.instance(&instanceRow{id: []byte("x"), env: []byte("e"), name: []byte(step.name), word: []byte(step.word), beat: []byte(step.beat), typ: []byte("t")}, read, time.Now(), d)
		_ = i
		if got := fmt.Sprint(says(d)); got != step.want {
			t.Errorf("%d: %s, want %s", i, got, step.want)
		}
	}
}

// TestNamesInAnEnvironment moves rows that share a name.
func TestNamesInAnEnvironment(t *testing.T) {
	k := newKnownRows(&Options{})
	put := func(id, env, name string) {
		k.instance(&instanceRow{id: []byte(id), env: []byte(env), name: []byte(name), typ: []byte("t")}, k.begin(false), time.Now(), &delta{})
	}
	for _, e := range []string{"e", "f"} {
		k.environment(&environmentRow{id: []byte(e)}, 1, &delta{})
	}
	owner := func(env, name string) string {
		rows, _, _ := k.match(&statussync.AgentReport{EnvironmentID: env, Containers: []statussync.ContainerReport{{Names: []string{name}}}})
		if len(rows) == 0 {
			return ""
		}
		return rows[0].write.id
	}
	put("1", "e", "n")
	put("2", "e", "n")
	put("3", "e", "n")
	put("4", "f", "n")
	if owner("e", "n") != "1" || owner("f", "n") != "4" {
		t.Error(owner("e", "n"), owner("f", "n"))
	}
	put("1", "f", "n")
	if got := owner("e", "n"); got != "3" && got != "2" {
		t.Error(got)
	}
	k.remove([]string{"2"}, nil, &delta{})
	if got := owner("e", "n"); got != "3" {
		t.Error(got)
	}
	k.remove([]string{"3", "4"}, nil, &delta{})
	if owner("e", "n") != "" || owner("f", "n") != "1" {
		t.Error(owner("e", "n"), owner("f", "n"))
	}
	k.remove([]string{"1"}, []string{"e", "f"}, &delta{})
	if len(k.envs)+len(k.rows)+k.faultCount != 0 {
		t.Errorf("%+v", k)
	}
}

func TestLost(t *testing.T) {
	for _, c := range []struct {
		missing, known int
		want           bool
	}{{0, 0, false}, {5, 5, false}, {6, 6, true}, {6, 30, false}, {7, 30, true}, {20, 100, false}, {21, 100, true}} {
		if got := lost(c.missing, c.known); got != c.want {
			t.Errorf("%+v", c)
		}
	}
}

// FuzzRow makes servers of anything: no path leads to another host, and nothing is longer than it may be.
func FuzzRow(f *testing.F) {
	for _, p := range []string{"@127.0.0.1:6379/", "/mcp", "//h/x", "/\\h", "http://h/", "/a?b=c", "/%00", "/.."} {
		f.Add("id", "name", "http", p, `{"a":1}`, "203.0.113.1")
	}
	f.Fuzz(func(t *testing.T, id, name, transport, path, caps, address string) {
		w := &instanceRow{id: []byte(id), name: []byte(name), transport: []byte(transport), path: []byte(path), caps: []byte(caps)}
		s, _ := w.server(statussync.OriginPostgres)
		if len(s.Name) > max(statussync.MaxNameText, len(id)) || s.Endpoint != "" || s.Probe.URL != "" {
			t.Errorf("%+v", s)
		}
		if p := s.Probe.Path; p != "" && (p[0] != '/' || len(p) > 1 && p[1] == '/') {
			t.Errorf("path %q", p)
		}
		e, _ := (&environmentRow{id: []byte(id), address: []byte(address)}).environment(&Options{AgentPort: 30000})
		if e.AgentURL != "" && !e.AgentAnswersAt(e.AgentURL) {
			t.Errorf("%+v", e)
		}
	})
}

// TestTokensOfRefusedEnvironments: an agent's token counts while its row's environment does.
func TestTokensOfRefusedEnvironments(t *testing.T) {
	k := newKnownRows(&Options{Origin: statussync.OriginPostgres})
	row := &environmentRow{id: []byte("e"), token: []byte("secret-token")}
	told := func(refused bool) string {
		k.environment(row, k.begin(true), &delta{})
		if refused {
			k.refused("e", `environment "e" is defined by config already`)
		}
		tokens, changed := k.agents()
		return fmt.Sprint(len(tokens), changed)
	}
	for i, step := range []struct {
		refused bool
		want    string
	}{
		{true, "0 true"}, {true, "0 false"}, // offered and refused with each read: nothing to tell
		{false, "1 true"}, {false, "0 false"}, // its id is free again, and nothing of the row has changed
	} {
		if got := told(step.refused); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
	k.refused("e", `environment "e" is defined by config already`) // somebody else defines it from now on
	if tokens, changed := k.agents(); !changed || len(tokens) != 0 {
		t.Errorf("refused later: %d %v", len(tokens), changed)
	}
}

// TestFaultsGo: a row whose id can't be used is named while it is there.
func TestFaultsGo(t *testing.T) {
	k := newKnownRows(&Options{Origin: statussync.OriginPostgres})
	read := func(ids ...string) int {
		n := k.begin(true)
		for _, id := range ids {
			k.environment(&environmentRow{id: []byte(id)}, n, &delta{})
			k.instance(&instanceRow{id: []byte(id), typ: []byte("t")}, n, time.Now(), &delta{})
		}
		k.gone()
		_, _, _, count := k.stats()
		return count
	}
	if got := fmt.Sprint(read("a b", "c d", "e"), read("c d", "e"), read("e"), len(k.nameless)); got != "4 2 0 0" {
		t.Error(got)
	}
}

// TestWordThatGoes: a row whose word becomes null says nothing any more.
func TestWordThatGoes(t *testing.T) {
	k := newKnownRows(&Options{Origin: statussync.OriginPostgres})
	var got []string
	for _, word := range [][]byte{[]byte("error"), nil, nil, []byte("running")} {
		d := &delta{}
		k.instance(&instanceRow{id: []byte("x"), typ: []byte("t"), word: word}, k.begin(true), time.Now(), d)
		got = append(got, fmt.Sprintf("%q", says(d)))
	}
	if want := `[["define x" "error false"] [" false"] [] ["running false"]]`; fmt.Sprint(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestEarlierLife: what we wrote before a restart is no heartbeat of somebody else, and what came after it is one.
func TestEarlierLife(t *testing.T) {
	heard := time.Date(2026, 1, 1, 0, 0, 30, 0, time.UTC)
	k := newKnownRows(&Options{Origin: statussync.OriginPostgres, Heard: func(env string) time.Time {
		if env == "e" {
			return heard
		}
		return time.Time{}
	}})
	read := func(env string, s int) []string {
		beat := []byte(heard.Truncate(time.Minute).Add(time.Duration(s) * time.Second).Format("2006-01-02 15:04:05Z07"))
		d, n := &delta{}, k.begin(true)
		k.environment(&environmentRow{id: []byte(env), beat: beat}, n, d)
		k.instance(&instanceRow{id: []byte("of-" + env), env: []byte(env), typ: []byte("t"), beat: beat}, n, time.Now(), d)
		d.update = statussync.RegistryUpdate{}
		return says(d)
	}
	for i, step := range []struct {
		env  string
		s    int
		want string
	}{
		{"e", 29, "[ false]"}, {"e", 31, "[]"}, // as we heard, and as it was written for that a moment later
		{"e", 50, "[beat 50 beat 50]"},           // while we were down
		{"other", 1, "[beat 01  false beat 01]"}, // of which nothing was heard
	} {
		if got := fmt.Sprint(read(step.env, step.s)); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
	k.prime()
	if got := fmt.Sprint(read("e", 20)); got != "[beat 20 beat 20]" { // from then on every move is told
		t.Error(got)
	}
}

// TestRefusalIsToldOnce: the same refusal with each full read is no news.
func TestRefusalIsToldOnce(t *testing.T) {
	k := newKnownRows(&Options{Origin: statussync.OriginPostgres})
	k.instance(&instanceRow{id: []byte("x"), typ: []byte("t")}, k.begin(true), time.Now(), &delta{})
	for i, step := range []struct {
		id, detail  string
		known, news bool
	}{
		{"x", "server x is defined by config", true, true}, {"x", "server x is defined by config", true, false},
		{"x", "server x is defined by managed", true, true}, {"y", "server y is defined by config", false, false},
	} {
		if known, news := k.refused(step.id, step.detail); known != step.known || news != step.news {
			t.Errorf("step %d: %v %v", i, known, news)
		}
	}
}
