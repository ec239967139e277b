package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/dtma"
	"github.com/agentopia/statussync/postgres/pgtest"
)

// beat is a heartbeat as the service takes it: decoded, observed, and handed to the write-back.
func (r *registryRig) beat(env int, body string) {
	r.t.Helper()
	rep, err := dtma.Decode([]byte(body))
	if err != nil {
		r.t.Fatal(err)
	}
	rep.EnvironmentID, rep.Raw = envID(env), []byte(body)
	if _, err := r.hub.Submit(r.t.Context(), rep); err != nil {
		r.t.Fatal(err)
	}
	r.Report(rep)
}

// written waits until nothing waits any more.
func (r *registryRig) written() {
	r.t.Helper()
	r.until("all is written", func() bool {
		w := r.Status().WriteBack
		return w.Queued == 0 && w.LastWrite.After(time.Time{}) && time.Since(w.LastWrite) > 30*time.Millisecond
	})
}

func readyRegistry(t *testing.T, envs, each int, change func(*Options)) *registryRig {
	t.Helper()
	r := startRegistry(t, migrated(t, shared.Get(t), envs, each), change)
	r.until("all is read and followed", func() bool {
		return len(r.servers()) == envs*each && r.Status().Feed == statussync.FeedLive && r.Status().LastSync.After(time.Time{})
	})
	return r
}

// TestReportsAreWritten sends reports in all shapes.
func TestReportsAreWritten(t *testing.T) {
	t.Parallel()
	r := readyRegistry(t, 2, 4, nil)
	r.beat(1, `{"dtma_version":"0.1.0","system_status":{"cpu_load_percent":12.5,"memory":{"total_bytes":8,"active_bytes":1,"free_bytes":1,"used_bytes":1},"disk":{"error":"no"},"more":"kept"},
"tool_statuses":[
 {"account_tool_instance_id":"`+instID(1)+`","instance_name_on_toolbox":"s1","status_on_toolbox":"error_runtime","runtime_details":{"a":12345678901234567890,"n":"x\u0000y","s":"\ud800"}},
 {"instance_name_on_toolbox":"s4","status_on_toolbox":"stopped"},
 {"id":"c2","names":["/s2"],"image":"img","state":"exited","status":"Exited (137) 5 minutes ago","ports":[]},
 {"id":"c3","names":["s3"],"state":"running","status":"Up 2 hours (healthy)","ports":[{"public_port":30001,"type":"tcp"}]},
 {"account_tool_instance_id":"`+instID(5)+`","status_on_toolbox":"error"},
 {"account_tool_instance_id":"no uuid","status_on_toolbox":"error"}]}`)
	r.written()
	if got := r.row("select status, dtma_last_known_version, dtma_health_details_json->>'cpu_load_percent', dtma_health_details_json->>'more', last_heartbeat_at > now() - interval '1 minute' from account_tool_environments where id = $1", envID(1)); got != "active|0.1.0|12.5|kept|t" {
		t.Error(got)
	}
	const what = "select status_on_toolbox, coalesce(runtime_details::text, 'null'), last_heartbeat_from_dtma is not null from account_tool_instances where id = $1"
	for id, want := range map[int]string{
		1: `error_runtime|{"a": 12345678901234567890, "n": "xy", "s": "` + "\ufffd" + `"}|t`,
		2: `exited|{"image": "img", "state": "exited", "status": "Exited (137) 5 minutes ago", "exit_code": 137, "container_id": "c2"}|t`,
		3: `running|{"state": "running", "health": "healthy", "status": "Up 2 hours (healthy)", "public_port": 30001, "container_id": "c3"}|t`,
		4: "running|null|f", // shape A without an id is never written back
		5: "running|null|f", // another environment's
	} {
		if got := r.row(what, instID(id)); got != want {
			t.Errorf("server %d: %s, want %s", id, got, want)
		}
	}
	if got := r.row("select status, coalesce(last_heartbeat_at::text, 'null') from account_tool_environments where id = $1", envID(2)); got != "awaiting_heartbeat|null" {
		t.Error("another environment was written:", got)
	}
	if w := r.Status().WriteBack; w.Foreign != 2 || w.Failed != 0 {
		t.Errorf("%+v", w)
	}
	// Two agents with containers of the same name.
	r.beat(2, `{"tool_statuses":[{"names":["s3"],"state":"exited","status":"Exited (0) 1 second ago"}]}`)
	r.written()
	if got := r.row("select (select status_on_toolbox from account_tool_instances where id = $1), (select status_on_toolbox from account_tool_instances where id = $2)", instID(3), instID(7)); got != "running|exited" {
		t.Error(got)
	}
	// C, and no list: the environment lives, the rows stay.
	before := r.row("select max(last_heartbeat_from_dtma) from account_tool_instances")
	r.beat(2, `{"tool_statuses":[{"error":"Failed to fetch tool statuses"}]}`)
	r.written()
	if got := r.row("select max(last_heartbeat_from_dtma) from account_tool_instances"); got != before {
		t.Error("rows were written:", got)
	}
}

// TestCommandsStay writes reports over a person's words.
func TestCommandsStay(t *testing.T) {
	for _, c := range []struct{ word, report, want string }{
		{"running", "exited", "exited"},
		{"active", "running", "running"},
		{"exited", "running", "running"},
		{"stopped", "exited", "stopped"}, // says so already, and that it is wanted
		{"error", "running", "running"},
		{"starting", "exited", "starting"},
		{"starting", "running", "running"},
		{"starting_on_toolbox", "dead", "starting_on_toolbox"},
		{"pending_install", "exited", "pending_install"},
		{"deploying", "running", "running"},
		{"stopping", "running", "stopping"},
		{"stopping_on_toolbox", "exited", "exited"},
		{"pending_config", "running", "pending_config"},
		{"disabled", "exited", "disabled"},
		{"disabled", "running", "disabled"},
		{"pending_delete", "exited", "pending_delete"},
		{"deleting", "running", "deleting"},
		{"uninstalling", "exited", "uninstalling"},
		{"uninstalled", "running", "uninstalled"},
		{"running", "restarting", "running"}, // no lasting state: it would read like a command
	} {
		k := newKnownRows(&Options{})
		now := time.Now()
		w := &instanceRow{id: []byte("x"), env: []byte("e"), name: []byte("n"), word: []byte(c.word), typ: []byte("t")}
		k.instance(w, k.begin(true), now, &delta{})
		words, state := wordsOf(&statussync.ContainerReport{Word: c.report})
		row := &rowWrite{id: "x", at: now.Add(time.Second), words: words, state: state}
		k.decide([]*rowWrite{row}, func(words []string) string { return words[0] })
		got := c.word
		if row.word != "" {
			if got = row.word; row.over != c.word {
				t.Errorf("%+v: written over %q", c, row.over)
			}
		}
		if got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
		// A report from before the command cannot have followed it.
		if st, _ := statussync.RecordState(c.word); st == statussync.StateStarting || st == statussync.StateStopping {
			row := &rowWrite{id: "x", at: now.Add(-time.Second), words: words, state: state}
			if k.decide([]*rowWrite{row}, func(words []string) string { return words[0] }); row.word != "" {
				t.Errorf("%+v: overwritten by a report that is older", c)
			}
		}
	}
}

// TestNoFeedback writes back for long, with every way of reading going on beside it: nothing follows from it.
func TestNoFeedback(t *testing.T) {
	t.Parallel()
	t.Run("notify", func(t *testing.T) {
		t.Parallel()
		noFeedback(t, func(o *Options) { o.Resync = time.Second })
	})
	t.Run("a feed that tells of what we write", func(t *testing.T) {
		t.Parallel()
		noFeedback(t, func(o *Options) { o.ChangeFeed = chatter{} })
	})
}

// chatter is a feed that tells of every row all the time, as Realtime does while we write.
type chatter struct{}

func (chatter) Run(ctx context.Context, to statussync.FeedReceiver) error {
	to.Live()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			for i := 1; i <= 15; i++ {
				to.Changed([]statussync.RowChange{{Table: tableInstances, ID: instID(i)}, {Table: tableEnvironments, ID: envID((i-1)/5 + 1)}})
			}
		}
	}
}

func noFeedback(t *testing.T, change func(*Options)) {
	r := readyRegistry(t, 3, 5, change)
	word := func(i int) string { return []string{"running", "exited"}[i/20%2] }
	send := func(i int) {
		for e := 1; e <= 3; e++ {
			var list []string
			for s := 1; s <= 5; s++ {
				w := word(i)
				if e != 3 {
					w = "running"
				}
				list = append(list, fmt.Sprintf(`{"names":["s%d"],"state":%q,"status":"Up %d minutes"}`, s, w, i%50+2))
			}
			r.beat(e, `{"tool_statuses":[`+strings.Join(list, ",")+`]}`)
		}
	}
	send(0)
	r.written()
	_, _, err := r.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	quiet := r.head(t)
	changes := r.Status().Changes
	for i := range 19 { // the words stay the same
		send(i)
		if i%5 == 4 {
			r.written()
			if _, _, err := r.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.written()
	if _, _, err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if at := r.head(t); at != quiet {
		t.Errorf("%d entries followed from heartbeats alone", at-quiet)
	}
	if n := r.Status().Changes; n != changes && r.o.ChangeFeed == nil {
		t.Errorf("%d changes came through the feed", n-changes)
	}
	// Words that we change: the update is the agent's, once, and the echo adds nothing.
	for i := 20; i < 22; i++ {
		send(i)
	}
	r.written()
	r.until("the words are the rows'", func() bool {
		return r.row("select count(*) from account_tool_instances where status_on_toolbox = 'exited'") == "5"
	})
	for range 2 {
		if _, _, err := r.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for id := 11; id <= 15; id++ {
		x, err := r.hub.Explain(t.Context(), instID(id))
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range x.Evidence {
			if ev.Kind == "record" && strings.Contains(fmt.Sprint(ev), "stopped") {
				t.Errorf("the echo is evidence: %+v", ev)
			}
		}

	}
	// A person's word after ours counts, though it is the one from before.
	r.exec("update account_tool_instances set status_on_toolbox = 'error' where id = $1", instID(11))
	r.until("the error is told", func() bool { return r.state(instID(11)) == "error/unhealthy" })
}

// head is the number of entries.
func (r *registryRig) head(t *testing.T) uint64 {
	t.Helper()
	if _, err := r.hub.Submit(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, _, at := r.hub.Servers(statussync.ServerQuery{Limit: 1})
	return at.Seq
}

// TestSomeWordsAreMissing has a status column that lacks words.
func TestSomeWordsAreMissing(t *testing.T) {
	t.Parallel()
	dsn := shared.Get(t).Empty(t)
	pgtest.Exec(t, dsn, strings.ReplaceAll(strings.ReplaceAll(pgtest.Platform, "'stopped','exited',", "'stopped',"), "'error_runtime',", ""))
	platform(t, dsn, 1, 3)
	r := startRegistry(t, dsn, nil)
	r.until("all is read", func() bool { return len(r.servers()) == 3 && r.Status().Syncs > 0 })
	r.beat(1, `{"tool_statuses":[{"names":["s1"],"state":"exited"},{"account_tool_instance_id":"`+instID(2)+`","status_on_toolbox":"error_runtime"},{"names":["s3"],"state":"dead"}]}`)
	r.written()
	if got := r.row("select string_agg(status_on_toolbox::text || (last_heartbeat_from_dtma is not null)::text, ' ' order by id) from account_tool_instances"); got != "stoppedtrue runningtrue errortrue" {
		t.Error(got)
	}
	if w := r.Status().WriteBack; w.Skipped != 1 || w.Failed != 0 {
		t.Errorf("%+v", w)
	}
}

// TestOneBadRow has a row that the database refuses to write: the others are written all the same.
func TestOneBadRow(t *testing.T) {
	t.Parallel()
	r := readyRegistry(t, 2, 20, nil)
	r.exec("create function refuse() returns trigger language plpgsql as $$ begin raise exception 'not this one' using errcode = '23514'; end $$; create trigger refuse before update on account_tool_instances for each row when (old.instance_name_on_toolbox = 's7') execute function refuse()")
	var list []string
	for i := 1; i <= 20; i++ {
		list = append(list, fmt.Sprintf(`{"names":["s%d"],"state":"running"}`, i))
	}
	r.beat(1, `{"tool_statuses":[`+strings.Join(list, ",")+`]}`)
	r.beat(2, `{"tool_statuses":[`+strings.Join(list, ",")+`]}`)
	r.written()
	if got := r.row("select count(*) filter (where last_heartbeat_from_dtma is not null), count(*) from account_tool_instances"); got != "38|40" {
		t.Error(got)
	}
	if w := r.Status().WriteBack; w.Failed != 2 || !strings.Contains(w.LastError+"not this one", "not this one") {
		t.Errorf("%+v", w)
	}
}

// TestNeverOlderOverNewer hands reports over in the wrong order, and has a row that somebody else wrote later.
func TestNeverOlderOverNewer(t *testing.T) {
	t.Parallel()
	r := readyRegistry(t, 1, 2, nil)
	now := time.Now()
	report := func(word string) *statussync.AgentReport {
		return &statussync.AgentReport{EnvironmentID: envID(1), List: statussync.ListPartial, Containers: []statussync.ContainerReport{{Names: []string{"s1"}, Word: word}}}
	}
	r.wb.report(report("exited"), now)
	r.written()
	r.wb.report(report("dead"), now.Add(-time.Minute))
	r.written()
	if got := r.row("select status_on_toolbox from account_tool_instances where id = $1", instID(1)); got != "exited" {
		t.Error(got)
	}
	r.exec("update account_tool_instances set last_heartbeat_from_dtma = now() + interval '1 hour' where id = $1", instID(1))
	r.wb.report(report("running"), now.Add(time.Second))
	r.written()
	if got := r.row("select status_on_toolbox from account_tool_instances where id = $1", instID(1)); got != "exited" {
		t.Error(got)
	}
}

// TestReportNeverBlocks reports from many sides while nothing reads.
func TestReportNeverBlocks(t *testing.T) {
	r, err := New(Options{DSN: "postgres://x@127.0.0.1:1/x", WriteBack: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.pool.Close()
	r.wb.prime() // who is not known is nobody
	d := &delta{}
	for i := range 100 {
		r.fleet.environment(&environmentRow{id: []byte(envID(i))}, 1, d)
		r.fleet.instance(&instanceRow{id: []byte(instID(i)), env: []byte(envID(i)), name: []byte("s")}, 1, time.Now(), d)
	}
	r.wb.prime()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 10_000 {
				r.Report(&statussync.AgentReport{EnvironmentID: envID(i % 120), List: statussync.ListPartial, Containers: []statussync.ContainerReport{{Names: []string{"s"}, Word: "running"}}})
			}
		})
	}
	all.Wait()
	if w := r.Status().WriteBack; w.Queued != 200 || w.Reports != 40_000 || w.Unknown == 0 {
		t.Errorf("%+v", w)
	}
}

func TestStorable(t *testing.T) {
	for in, want := range map[string]string{
		`null`: "", ``: "", `{"a":1e400}`: "", `{"a`: "", `"` + strings.Repeat("x", maxDetails) + `"`: "",
		`{"\u0000k":["\u0000",{"x":null}]}`: `{"k":["",{"x":null}]}`, `{"b":9007199254740991}`: `{"b":9007199254740991}`,
		`{"b":[12345678901234567890,-0.10,1e3,1E-999999]}`: `{"b":[12345678901234567890,-0.10,1000,0]}`, `[1] 2`: "",
	} {
		if got := storable(json.RawMessage(in)); got != want {
			t.Errorf("%.50s: %s, want %s", in, got, want)
		}
	}
	nan := math.NaN()
	if got := (&rawReport{}).health(&statussync.AgentReport{System: &statussync.SystemStatus{CPULoadPercent: &nan}}); got != "" {
		t.Error(got)
	}
}

// TestOtherTools has a row that is no MCP server: its agent's reports are written, and nobody is told of it.
func TestOtherTools(t *testing.T) {
	t.Parallel()
	r := readyRegistry(t, 2, 1, nil)
	r.exec("insert into account_tool_instances (id, account_tool_environment_id, instance_name_on_toolbox, status_on_toolbox) values ($1, $2, 'tool', 'starting')", instID(9), envID(1))
	if _, _, err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	const word = "select status_on_toolbox, last_heartbeat_from_dtma is not null from account_tool_instances where id = $1"
	r.beat(2, `{"tool_statuses":[{"account_tool_instance_id":"`+instID(9)+`","status_on_toolbox":"running"}]}`)
	r.written()
	if got := r.row(word, instID(9)); got != "starting|f" {
		t.Error("another environment's agent wrote it:", got)
	}
	r.beat(1, `{"tool_statuses":[{"account_tool_instance_id":"`+instID(9)+`","status_on_toolbox":"running"}]}`)
	r.written()
	if got := r.row(word, instID(9)); got != "running|t" {
		t.Error(got)
	}
	if n := len(r.servers()); n != 2 || r.Status().Servers != 2 {
		t.Error(n, "servers")
	}
	r.exec("update account_tool_instances set mcp_server_type = 'x', status_on_toolbox = 'error' where id = $1", instID(9))
	r.until("it becomes a server", func() bool { return r.state(instID(9)) == "error/unhealthy" })
	r.exec("update account_tool_instances set mcp_server_type = null where id = $1", instID(9))
	r.until("and none again", func() bool { return r.state(instID(9)) == "" })
	if _, _, err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.exec("update account_tool_instances set mcp_server_type = 'x' where id = $1", instID(9))
	r.until("and one again", func() bool { return r.state(instID(9)) == "error/unhealthy" })
}
