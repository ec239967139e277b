package postgres

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/agentopia/statussync"
)

const (
	// writeEvery is the shortest time between two round trips: what comes meanwhile goes with the next one. At 100 reports
	// a second one round trip writes 30 of them. The status is live before, so nobody waits for this.
	writeEvery = 300 * time.Millisecond
	// writeRetryMax is the longest pause after round trips that failed while the database could be read.
	writeRetryMax = 5 * time.Second
	// writeRows bounds the rows of one statement.
	writeRows = 5000
	// writeLast is for what waits when the service stops, whose parts must have ended within a second.
	writeLast = 500 * time.Millisecond
	// writeTimeout bounds one round trip.
	writeTimeout = 10 * time.Second
	// maxDetails bounds what is written into one JSON column, in bytes. What is longer is left as it was.
	maxDetails = 16 << 10
)

// writeBack writes agents' reports into the platform's rows. What waits is the newest of each row, so hours without a
// database cost one row each.
type writeBack struct {
	sending int // rows that are on their way; guarded by mu

	r      *Registry
	wake   chan struct{}   // has room for one
	echoes chan []wordEcho // what was written, for who reads

	mu     sync.Mutex
	up     bool
	primed bool         // everything was read once: whoever is not known then is nobody
	early  earlyReports // that came before
	envs   map[string]*envWrite
	rows   map[string]*rowWrite
	since  time.Time // of the oldest that waits
	n      WriteBackStatus
}

// envWrite is what an environment's row will be told.
type envWrite struct {
	id      string
	at      time.Time
	version string
	health  string // JSON; empty: not said
}

// rowWrite is what an instance's row will be told.
type rowWrite struct {
	id, env string
	at      time.Time
	words   []string // that say it, the best first; none: the word stays
	state   statussync.State
	details string // JSON; empty: not said
	word    string // as decided when it is sent
	over    string // the word that it may be written over
}

// wordEcho is a word that we wrote.
type wordEcho struct {
	id, word, over string
	reads          uint64 // reads that had begun when it was sent
}

func newWriteBack(r *Registry) *writeBack {
	return &writeBack{r: r, wake: make(chan struct{}, 1), echoes: make(chan []wordEcho, 16), envs: map[string]*envWrite{}, rows: map[string]*rowWrite{}}
}

func (b *writeBack) status() WriteBackStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.n
	n.Enabled, n.Queued = b.r.o.WriteBack, len(b.envs)+len(b.rows)+b.sending
	if !b.since.IsZero() {
		n.Oldest = time.Since(b.since)
	}
	return n
}

// report takes a report that was received at now.
func (b *writeBack) report(rep *statussync.AgentReport, now time.Time) {
	if !b.r.o.WriteBack || rep == nil {
		return
	}
	now = now.UTC().Truncate(time.Microsecond) // what the database keeps
	raw := rawOf(rep)
	env := &envWrite{id: rep.EnvironmentID, at: now, version: strings.ReplaceAll(rep.AgentVersion, "\x00", ""), health: raw.health(rep)}
	rows, foreign, known := b.r.fleet.match(rep)
	for _, m := range rows {
		w := m.write
		w.at = now
		w.words, w.state = wordsOf(m.report)
		w.details = raw.details(m.report)
	}
	b.mu.Lock()
	b.n.Reports++
	b.n.Foreign += uint64(foreign)
	if !known {
		if b.primed {
			b.n.Unknown++
		} else {
			b.early.keep(rep, now)
		}
		b.mu.Unlock()
		return
	}
	b.putLocked(env, rows)
	if b.since.IsZero() {
		b.since = now
	}
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *writeBack) putLocked(env *envWrite, rows []matched) {
	if old := b.envs[env.id]; old != nil { // what this report doesn't say stays as the one before said
		if env.version == "" {
			env.version = old.version
		}
		if env.health == "" {
			env.health = old.health
		}
	}
	b.envs[env.id] = env
	for _, m := range rows {
		w := m.write
		if old := b.rows[w.id]; old != nil && w.details == "" {
			w.details = old.details
		}
		b.rows[w.id] = w
	}
}

// reachable is told when the database comes and goes.
func (b *writeBack) reachable(up bool) {
	b.mu.Lock()
	b.up = up
	b.mu.Unlock()
	if up {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
}

// prime is told when everything has been read: what came before is about rows that are known now.
func (b *writeBack) prime() {
	b.mu.Lock()
	var early []earlyReport
	if !b.primed {
		b.primed, early = true, b.early.take()
	}
	b.mu.Unlock()
	for _, e := range early {
		b.report(e.report, e.at)
	}
}

// run writes until ctx ends, and then what still waits, as far as that goes at once.
func (b *writeBack) run(ctx context.Context) error {
	pause := time.NewTimer(0)
	<-pause.C
	defer pause.Stop()
	wait := writeEvery
	for {
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeLast)
			defer cancel()
			b.flush(end)
			return nil
		case <-b.wake:
		}
		if b.flush(ctx) {
			wait = writeEvery
		} else {
			wait = min(2*wait, writeRetryMax)
		}
		pause.Reset(wait)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
	}
}

// flush writes what waits, in as few round trips as its size allows. While the database is away it does nothing; ok is false
// where it failed.
func (b *writeBack) flush(ctx context.Context) (ok bool) {
	for ctx.Err() == nil {
		envs, rows, more := b.take()
		if len(envs)+len(rows) == 0 {
			return true
		}
		s := b.r.shapeNow()
		if s == nil || s.write == "" {
			b.sent()
			b.fail(nil, nil, errors.New("the role may write nothing of what a report tells"))
			return true
		}
		b.decide(rows, s)
		err := b.send(ctx, s, envs, rows)
		b.sent()
		if err != nil {
			b.fail(envs, rows, err)
			return false
		}
		if !more {
			return true
		}
	}
	return true
}

func (b *writeBack) sent() {
	b.mu.Lock()
	b.sending = 0
	b.mu.Unlock()
}

// take removes what waits, up to what one statement holds.
func (b *writeBack) take() (envs []*envWrite, rows []*rowWrite, more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.up {
		return nil, nil, false
	}
	for id, e := range b.envs {
		if len(envs) == writeRows {
			break
		}
		envs = append(envs, e)
		delete(b.envs, id)
	}
	for id, w := range b.rows {
		if len(rows) == writeRows {
			break
		}
		rows = append(rows, w)
		delete(b.rows, id)
	}
	b.sending = len(envs) + len(rows)
	more = len(b.envs)+len(b.rows) > 0
	if !more {
		b.since = time.Time{}
	}
	return envs, rows, more
}

// fail puts back what could not be written, unless something newer waits.
func (b *writeBack) fail(envs []*envWrite, rows []*rowWrite, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n.LastError = errorText(err)
	if len(envs)+len(rows) == 0 {
		return
	}
	b.n.HeldFailed++
	for _, e := range envs {
		if b.envs[e.id] == nil {
			b.envs[e.id] = e
		}
	}
	oldest := b.since
	for _, w := range rows {
		if b.rows[w.id] == nil {
			b.rows[w.id] = w
		}
		if oldest.IsZero() || w.at.Before(oldest) {
			oldest = w.at
		}
	}
	b.since = oldest
	select { // tried again after the pause; while the database is away, when it is back
	case b.wake <- struct{}{}:
	default:
	}
}

// decide chooses the word of each row: only over the word that was last read, never over a command that was not followed,
// and only one that the column takes.
func (b *writeBack) decide(rows []*rowWrite, s *shape) {
	skipped := b.r.fleet.decide(rows, func(words []string) string {
		for _, w := range words {
			if s.words == nil || slices.Contains(s.words, w) {
				return w
			}
		}
		return ""
	})
	b.mu.Lock()
	b.n.Skipped += uint64(skipped)
	b.mu.Unlock()
}

type envJSON struct {
	ID      string `json:"id"`
	At      string `json:"at"`
	Version string `json:"version,omitempty"`
	Health  string `json:"health,omitempty"`
}

type rowJSON struct {
	ID      string `json:"id"`
	Env     string `json:"env"`
	At      string `json:"at"`
	Word    string `json:"word,omitempty"`
	Over    string `json:"over,omitempty"`
	Details string `json:"details,omitempty"`
}

const writeTime = "2006-01-02T15:04:05.000000Z07:00"

// send writes one batch. Where the database refuses something in it the batch is halved until the culprit is alone; that
// one is dropped and counted. The error is one of the connection: nothing is known of what was written.
func (b *writeBack) send(ctx context.Context, s *shape, envs []*envWrite, rows []*rowWrite) error {
	err := b.roundTrip(ctx, s, envs, rows)
	var pg *pgconn.PgError
	if err == nil || !errors.As(err, &pg) || ctx.Err() != nil {
		return err
	}
	switch pg.Code[:min(2, len(pg.Code))] {
	case "", "08", "53", "57", "58", "XX", "25", "40", "42", "55": // not the data: away, full, shutting down, read only, deadlock, rights, locked
		return err
	}
	switch {
	case len(envs)+len(rows) == 1:
		b.mu.Lock()
		b.n.Failed++
		b.n.LastError = errorText(err)
		b.mu.Unlock()
		b.r.log.Warn("a row was not written back", "error", errorText(err))
		return nil
	case len(envs) > 0 && len(rows) > 0:
		if err := b.send(ctx, s, envs, nil); err != nil {
			return err
		}
		return b.send(ctx, s, nil, rows)
	case len(envs) > 0:
		half := len(envs) / 2
		if err := b.send(ctx, s, envs[:half], nil); err != nil {
			return err
		}
		return b.send(ctx, s, envs[half:], nil)
	}
	half := len(rows) / 2
	if err := b.send(ctx, s, nil, rows[:half]); err != nil {
		return err
	}
	return b.send(ctx, s, nil, rows[half:])
}

func (b *writeBack) roundTrip(ctx context.Context, s *shape, envs []*envWrite, rows []*rowWrite) error {
	e := make([]envJSON, len(envs))
	for i, w := range envs {
		e[i] = envJSON{ID: w.id, At: w.at.Format(writeTime), Version: w.version, Health: w.health}
	}
	l := make([]rowJSON, len(rows))
	for i, w := range rows {
		l[i] = rowJSON{ID: w.id, Env: w.env, At: w.at.Format(writeTime), Word: w.word, Over: w.over, Details: w.details}
	}
	ej, err := json.Marshal(e)
	if err != nil {
		return err
	}
	lj, err := json.Marshal(l)
	if err != nil {
		return err
	}
	// Noted before it is sent: who reads may see it before the answer is here, and where the answer is lost it counts, too.
	reads := b.r.fleet.writing(envs, rows)
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	batch := &pgx.Batch{} // one message and one transaction: the settings end with it
	batch.Queue("select set_config($1, 'on', true), set_config('statement_timeout', $2, true)", WriterSetting, strconv.Itoa(int(writeTimeout/time.Millisecond)))
	batch.Queue(s.write, string(ej), string(lj))
	b.r.queries.Add(2)
	res := b.r.pool.SendBatch(ctx, batch)
	b.mu.Lock()
	b.n.Batches++
	b.mu.Unlock()
	if _, err := res.Exec(); err != nil {
		_ = res.Close()
		return err
	}
	got, err := res.Query()
	if err != nil {
		_ = res.Close()
		return err
	}
	words := map[string]string{}
	written := 0
	for got.Next() {
		v := got.RawValues()
		written++
		if v[0] != nil {
			words[string(v[0])] = string(v[1])
		}
	}
	err = got.Err()
	got.Close()
	if cerr := res.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	var told []wordEcho
	for _, w := range rows {
		if w.word != "" && words[w.id] == w.word && w.word != w.over {
			told = append(told, wordEcho{id: w.id, word: w.word, over: w.over, reads: reads})
		}
	}
	b.mu.Lock()
	b.n.Rows += uint64(written)
	b.n.LastWrite, b.n.LastError = time.Now(), ""
	b.mu.Unlock()
	if len(told) > 0 {
		select {
		case b.echoes <- told:
		case <-ctx.Done(): // the next full read sees the words, and that they are ours
		}
	}
	return nil
}

// matched is an entry of a report with the row that it is about.
type matched struct {
	write  *rowWrite
	report *statussync.ContainerReport
}

// match finds the rows that a report tells of. An agent speaks for the rows of its own environment only; what names another
// one's is counted. An entry of shape A without an id is never written back (docs/protocols.md §1).
func (f *knownRows) match(rep *statussync.AgentReport) (out []matched, foreign int, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.envs[rep.EnvironmentID]
	if e == nil || !e.known { // one that the configuration defines, too, has a row all the same
		return nil, 0, false
	}
	at := map[string]int{}
	for i := range rep.Containers {
		c := &rep.Containers[i]
		var r *rowState
		switch {
		case c.ServerID != "":
			if r = f.rows[c.ServerID]; r == nil || r.env != e {
				foreign++
				continue
			}
		case c.Shape == statussync.ShapeDocumented:
			continue
		default:
			for _, n := range c.Names {
				if r = e.byName[n]; r != nil {
					break
				}
			}
		}
		if r == nil {
			continue
		}
		m := matched{write: &rowWrite{id: r.id, env: e.id}, report: c}
		if j, twice := at[r.id]; twice { // the platform's own shape is what it would write
			if c.Shape == statussync.ShapeDocumented {
				out[j] = m
			}
			continue
		}
		at[r.id] = len(out)
		out = append(out, m)
	}
	return out, foreign, true
}

// wordsOf are the words of a row that say what an entry says, the best first, and the state that they mean.
//
// Shape A's own word is what the platform's function writes. Of Docker's words those are written that are a lasting state:
// a container that is being restarted or made would leave a word that reads like a person's command. A container that
// stopped is "exited", which says nothing of what is wanted, rather than "stopped", which does.
func wordsOf(c *statussync.ContainerReport) ([]string, statussync.State) {
	if c.Shape == statussync.ShapeDocumented {
		for _, w := range [...]string{c.Text, c.Word} {
			w = strings.ToLower(strings.TrimSpace(w))
			if st, ok := statussync.RecordState(w); ok {
				return []string{w}, st
			}
		}
	}
	st, _ := statussync.ContainerState(c.Word, c.HealthCheck == "starting", true)
	switch w := strings.ToLower(strings.TrimSpace(c.Word)); {
	case w == "created", st == statussync.StateStarting, st == statussync.StateStopping, st == statussync.StateUnknown:
		return nil, st
	case st == statussync.StateRunning:
		return []string{"running", "active"}, st
	case st == statussync.StateStopped:
		return []string{"exited", "stopped"}, st
	default:
		return []string{"error", "error_runtime"}, st
	}
}

// decide sets word and over of each row, and returns how many words were kept back.
func (f *knownRows) decide(rows []*rowWrite, choose func(words []string) string) (skipped int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range rows {
		w.word, w.over = "", ""
		r := f.rows[w.id]
		if r == nil || r.word == "" || len(w.words) == 0 {
			continue
		}
		word := choose(w.words)
		switch {
		case slices.Contains(w.words, strings.ToLower(r.word)) && (word == "" || len(w.words) > 1 && w.state == statussync.StateStopped):
			// It says so already; "stopped" is not made "exited", which would lose that it is wanted.
		case word == "":
			skipped++
		case word == r.word:
		case !r.mayBecome(w):
			skipped++
		default:
			w.word, w.over = word, r.word
		}
	}
	return skipped
}

// mayBecome reports whether a report may replace a row's word. A command is replaced only by a report that came after it
// and shows its goal; where the goal is that the row goes, or is never tried again, no report shows it.
func (r *rowState) mayBecome(w *rowWrite) bool {
	if r.mine {
		return true
	}
	word := strings.ToLower(strings.TrimSpace(r.word))
	switch word {
	case "stopping", "stopping_on_toolbox":
		return w.state == statussync.StateStopped && w.at.After(r.wordAt)
	case "stopped", "exited":
		return true
	}
	if statussync.RecordForbids(word) || word == "pending_config" {
		return false
	}
	if st, _ := statussync.RecordState(word); st == statussync.StateStarting {
		return w.state == statussync.StateRunning && w.at.After(r.wordAt)
	}
	return true
}

// writing notes what is about to be written, and returns how many reads have begun.
func (f *knownRows) writing(envs []*envWrite, rows []*rowWrite) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range envs {
		if e := f.envs[w.id]; e != nil && !e.ours.wrote(w.at) {
			e.ours.note(w.at, "")
		}
	}
	for _, w := range rows {
		r := f.rows[w.id]
		if r == nil {
			continue
		}
		if r.ours == nil {
			r.ours = &ours{}
		}
		if !r.ours.wroteWord(w.at, f.word([]byte(w.word))) {
			r.ours.note(w.at, f.word([]byte(w.word)))
		}
	}
	return f.reads
}

// echoed takes words that we wrote as the rows' words. again lists the rows that were read meanwhile: which came first is
// not known of them, so they are read once more.
func (f *knownRows) echoed(list []wordEcho) (obs []statussync.Observation, again []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range list {
		r := f.rows[e.id]
		switch {
		case r == nil:
		case r.read > e.reads:
			again = append(again, e.id)
		case r.word == e.over:
			r.word, r.mine = f.word([]byte(e.word)), true
			if !r.server || r.foul {
				continue
			}
			obs = append(obs, &statussync.RecordSeen{ServerID: e.id, Word: e.word, Echo: true, Origin: f.o.Origin})
		}
	}
	return obs, again
}

// rawReport is the body of a report, as far as it is written as it came.
type rawReport struct {
	System  json.RawMessage `json:"system_status"`
	Metrics json.RawMessage `json:"system_metrics"`
	List    json.RawMessage `json:"tool_statuses"`

	byID map[string]json.RawMessage // shape A's runtime_details; read when the first is asked for
}

func rawOf(rep *statussync.AgentReport) (r rawReport) {
	if len(rep.Raw) > 0 {
		_ = json.Unmarshal(rep.Raw, &r) // it was decoded once already; what is not there is made from what was decoded
	}
	return r
}

// health is what the environment's row gets as its health.
func (r *rawReport) health(rep *statussync.AgentReport) string {
	for _, raw := range []json.RawMessage{r.System, r.Metrics} {
		if s := storable(raw); s != "" {
			return s
		}
	}
	if rep.System == nil {
		return ""
	}
	b, err := json.Marshal(rep.System)
	if err != nil { // numbers that JSON lacks
		return ""
	}
	return storable(b)
}

// details is what the row gets as its runtime details: shape A's own, or what Docker's shape tells.
func (r *rawReport) details(c *statussync.ContainerReport) string {
	if c.Shape == statussync.ShapeDocumented {
		return storable(r.documented()[c.ServerID])
	}
	d := struct {
		ContainerID string `json:"container_id,omitempty"`
		Image       string `json:"image,omitempty"`
		State       string `json:"state,omitempty"`
		Status      string `json:"status,omitempty"`
		Health      string `json:"health,omitempty"`
		ExitCode    *int   `json:"exit_code,omitempty"`
		Restarts    *int   `json:"restart_count,omitempty"`
		PublicPort  int    `json:"public_port,omitempty"`
	}{c.ContainerID, c.Image, c.Word, c.Text, c.HealthCheck, c.ExitCode, c.Restarts, c.PublicPort}
	b, err := json.Marshal(&d)
	if err != nil {
		return ""
	}
	return storable(b)
}

func (r *rawReport) documented() map[string]json.RawMessage {
	if r.byID == nil {
		r.byID = map[string]json.RawMessage{}
		var list []json.RawMessage
		_ = json.Unmarshal(r.List, &list) // what is no list has none
		for _, item := range list {
			var i struct {
				ID      string          `json:"account_tool_instance_id"`
				Details json.RawMessage `json:"runtime_details"`
			}
			if json.Unmarshal(item, &i) == nil && i.ID != "" {
				r.byID[i.ID] = i.Details
			}
		}
	}
	return r.byID
}

// storable returns JSON that a jsonb column takes, or "" for null and what none can take: PostgreSQL refuses U+0000, lone
// surrogates and numbers that nothing can hold, and one refused value would fail a whole batch.
func storable(raw json.RawMessage) string {
	if len(raw) == 0 || len(raw) > maxDetails || string(raw) == "null" {
		return ""
	}
	if !json.Valid(raw) {
		return ""
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber() // a large id stays what it is
	var v any
	if d.Decode(&v) != nil {
		return ""
	}
	v, ok := tidy(v)
	if !ok {
		return ""
	}
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}

// tidy replaces what jsonb refuses; ok is false where nothing can stand for it.
func tidy(v any) (_ any, ok bool) {
	switch v := v.(type) {
	case string:
		return strings.ReplaceAll(v, "\x00", ""), true
	case json.Number:
		f, err := v.Float64()
		if err != nil { // larger than anything means
			return nil, false
		}
		if len(v) <= 40 && !strings.ContainsAny(string(v), "eE") {
			return v, true // digits as they are
		}
		return f, true
	case []any:
		for i := range v {
			if v[i], ok = tidy(v[i]); !ok {
				return nil, false
			}
		}
	case map[string]any:
		clean := make(map[string]any, len(v))
		for k, x := range v {
			if x, ok = tidy(x); !ok {
				return nil, false
			}
			clean[strings.ReplaceAll(k, "\x00", "")] = x
		}
		return clean, true
	}
	return v, true
}
