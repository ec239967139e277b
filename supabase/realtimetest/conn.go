package realtimetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// maxFrame is the server's limit of inbound frames.
const maxFrame = 5 << 20

type outgoing struct {
	data []byte
	text bool
	last bool // close after it
}

// conn is one connection. Frames go out in the order in which they were written.
type conn struct {
	s       *Server
	ws      *websocket.Conn
	ctx     context.Context
	cancel  context.CancelFunc
	key     string
	objects bool // version 1.0.0: frames are objects
	out     chan outgoing
	wg      sync.WaitGroup

	mu       sync.Mutex
	channels map[string]*channel // by topic
}

type wanted struct {
	ID     int    `json:"id"`
	Event  string `json:"event"`
	Schema string `json:"schema"`
	Table  string `json:"table,omitempty"`
	Filter string `json:"filter,omitempty"`
}

type channel struct {
	topic, joinRef string
	wanted         []wanted
	token          string
	following      bool
	ended          bool
	expiry         *time.Timer
	noSystem       bool
}

func (c *conn) run() {
	c.ws.SetReadLimit(maxFrame)
	c.wg.Go(c.writer)
	defer func() {
		c.cancel()
		c.mu.Lock()
		for _, ch := range c.channels {
			if ch.expiry != nil {
				ch.expiry.Stop()
			}
		}
		c.mu.Unlock()
		c.ws.CloseNow()
		c.wg.Wait()
	}()
	for {
		if !c.s.thaw(c.ctx) {
			return
		}
		ctx, cancel := context.WithTimeout(c.ctx, c.s.o.IdleTimeout)
		typ, data, err := c.ws.Read(ctx)
		cancel()
		if err != nil {
			return
		}
		if !c.s.thaw(c.ctx) {
			return
		}
		if typ != websocket.MessageText {
			continue
		}
		f, err := c.decode(data)
		if err != nil {
			c.ws.Close(websocket.StatusInternalError, "") // Phoenix crashes on a frame that its serializer can't read
			return
		}
		for range c.s.fate(f) {
			c.take(f)
		}
	}
}

// fate returns how often a frame passes.
func (s *Server) fate(f Frame) int {
	if s.OnFrame == nil {
		return 1
	}
	switch s.OnFrame(f) {
	case Drop:
		return 0
	case Double:
		return 2
	}
	return 1
}

func (c *conn) writer() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case o := <-c.out:
			if !c.s.thaw(c.ctx) {
				return
			}
			typ := websocket.MessageBinary
			if o.text {
				typ = websocket.MessageText
			}
			if o.data != nil {
				ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
				err := c.ws.Write(ctx, typ, o.data)
				cancel()
				if err != nil {
					c.cancel()
					return
				}
			}
			if o.last {
				c.cancel()
				return
			}
		}
	}
}

func (c *conn) queue(o outgoing) {
	select {
	case c.out <- o:
	default:
		c.cancel() // too slow a reader: the real server kills the connection too
	}
}

func (c *conn) write(data []byte, text bool) { c.queue(outgoing{data: data, text: text}) }

// finish closes the connection after what was written so far.
func (c *conn) finish() { c.queue(outgoing{last: true}) }

func (c *conn) after(d time.Duration, do func()) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.closed {
		return
	}
	c.s.wg.Go(func() {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-c.ctx.Done():
		case <-t.C:
			do()
		}
	})
}

func (c *conn) decode(data []byte) (f Frame, err error) {
	ref := func(p *string) string {
		if p == nil {
			return ""
		}
		return *p
	}
	if c.objects {
		var o struct {
			Topic   string          `json:"topic"`
			Event   string          `json:"event"`
			Payload json.RawMessage `json:"payload"`
			Ref     *string         `json:"ref"`
			JoinRef *string         `json:"join_ref"`
		}
		err = json.Unmarshal(data, &o)
		return Frame{JoinRef: ref(o.JoinRef), Ref: ref(o.Ref), Topic: o.Topic, Event: o.Event, Payload: o.Payload}, err
	}
	var parts [5]json.RawMessage
	var all []json.RawMessage
	if err = json.Unmarshal(data, &all); err == nil && len(all) != 5 {
		err = fmt.Errorf("%d elements", len(all))
	}
	if err != nil {
		return f, err
	}
	copy(parts[:], all)
	var joinRef, r *string
	for i, to := range []any{&joinRef, &r, &f.Topic, &f.Event} {
		if err = json.Unmarshal(parts[i], to); err != nil {
			return f, err
		}
	}
	f.JoinRef, f.Ref, f.Payload = ref(joinRef), ref(r), parts[4]
	return f, nil
}

func (c *conn) send(joinRef, ref, topic, event string, payload any) {
	p, err := encode(payload)
	if err != nil {
		panic(err)
	}
	f := Frame{ToClient: true, JoinRef: joinRef, Ref: ref, Topic: topic, Event: event, Payload: p}
	null := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	var data []byte
	if c.objects {
		m := map[string]any{"topic": topic, "event": event, "payload": f.Payload, "ref": null(ref)}
		if joinRef != "" {
			m["join_ref"] = joinRef
		}
		data, err = encode(m)
	} else {
		data, err = encode([]any{null(joinRef), null(ref), topic, event, f.Payload})
	}
	if err != nil {
		panic(err)
	}
	for range c.s.fate(f) {
		c.write(data, true)
	}
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

func (c *conn) reply(f Frame, status string, response any) {
	c.send(f.JoinRef, f.Ref, f.Topic, "phx_reply", map[string]any{"status": status, "response": response})
}

func (c *conn) system(ch *channel, extension, status, message string) {
	c.send(ch.joinRef, "", ch.topic, "system", map[string]any{
		"extension": extension, "status": status, "message": message, "channel": strings.TrimPrefix(ch.topic, "realtime:"),
	})
}

// each calls do for every channel, without the lock.
func (c *conn) each(do func(*channel)) {
	c.mu.Lock()
	all := slices.Collect(maps.Values(c.channels))
	c.mu.Unlock()
	for _, ch := range all {
		do(ch)
	}
}

func (c *conn) following(ch *channel, on bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch.ended {
		return false
	}
	ch.following = on
	return true
}

// follow makes a channel follow the database and says so, in that order for whoever changes rows.
func (c *conn) follow(ch *channel) {
	if c.following(ch, true) {
		c.system(ch, "postgres_changes", "ok", "Subscribed to PostgreSQL")
	}
}

func (c *conn) end(ch *channel, event string) {
	c.mu.Lock()
	was := ch.ended
	ch.ended, ch.following = true, false
	if ch.expiry != nil {
		ch.expiry.Stop()
	}
	if c.channels[ch.topic] == ch {
		delete(c.channels, ch.topic)
	}
	c.mu.Unlock()
	if !was && event != "" {
		c.send(ch.joinRef, ch.joinRef, ch.topic, event, struct{}{})
	}
}

func (c *conn) shutdown(ch *channel, message string) {
	c.system(ch, "system", "error", message)
	c.end(ch, "phx_close")
}

func (c *conn) change(ch *channel, of Change) {
	c.mu.Lock()
	var ids []int
	if ch.following && !ch.ended {
		for _, w := range ch.wanted {
			if (w.Event == "*" || strings.EqualFold(w.Event, of.Type)) && (w.Schema == "*" || w.Schema == of.Schema) && (w.Table == "" || w.Table == "*" || w.Table == of.Table) {
				ids = append(ids, w.ID)
			}
		}
	}
	c.mu.Unlock()
	if len(ids) == 0 {
		return
	}
	data := map[string]any{
		"schema": of.Schema, "table": of.Table, "type": of.Type,
		"commit_timestamp": time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), "columns": columns(of.Record, of.OldRecord),
	}
	if of.Type != "DELETE" {
		data["record"] = orEmpty(of.Record)
	}
	if of.Type != "INSERT" {
		data["old_record"] = orEmpty(of.OldRecord)
	}
	data["errors"] = of.Errors // null where there are none
	c.send("", "", ch.topic, "postgres_changes", map[string]any{"ids": ids, "data": data})
}

func orEmpty(m map[string]any) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	return m
}

// columns names the columns with types that the JavaScript client converts by.
func columns(records ...map[string]any) []map[string]string {
	out := []map[string]string{}
	seen := map[string]bool{}
	for _, r := range records {
		for _, name := range slices.Sorted(maps.Keys(r)) {
			if seen[name] {
				continue
			}
			seen[name] = true
			typ := "text"
			switch r[name].(type) {
			case bool:
				typ = "bool"
			case int, int64, float64, json.Number:
				typ = "numeric"
			case map[string]any, []any:
				typ = "jsonb"
			}
			out = append(out, map[string]string{"name": name, "type": typ})
		}
	}
	return out
}

func (c *conn) take(f Frame) {
	if f.Topic == "phoenix" && f.Event == "heartbeat" {
		c.s.mu.Lock()
		c.s.heartbeats++
		c.s.mu.Unlock()
		c.reply(f, "ok", struct{}{})
		return
	}
	if f.Event == "phx_join" {
		c.join(f)
		return
	}
	c.mu.Lock()
	ch := c.channels[f.Topic]
	c.mu.Unlock()
	if ch == nil || f.JoinRef != "" && f.JoinRef != ch.joinRef {
		if f.Event == "phx_leave" {
			c.reply(f, "ok", struct{}{})
			return
		}
		c.reply(f, "error", map[string]string{"reason": "unmatched topic"})
		return
	}
	switch f.Event {
	case "phx_leave":
		c.s.mu.Lock()
		c.s.leaves++
		c.s.mu.Unlock()
		c.reply(f, "ok", struct{}{})
		c.end(ch, "phx_close")
	case "access_token":
		var p struct {
			Token *string `json:"access_token"`
		}
		if json.Unmarshal(f.Payload, &p) != nil || p.Token == nil || *p.Token == ch.token || strings.HasPrefix(*p.Token, "sb_") {
			return // silently
		}
		c.s.mu.Lock()
		c.s.tokens = append(c.s.tokens, *p.Token)
		c.s.mu.Unlock()
		exp, refused := c.s.checkToken(*p.Token)
		if refused != "" {
			_, message, _ := strings.Cut(refused, ": ")
			c.shutdown(ch, message)
			return
		}
		ch.token = *p.Token
		c.watch(ch, exp)
		c.after(c.s.o.SubscribeDelay, func() { c.follow(ch) })
	}
}

// watch ends a channel when its token does.
func (c *conn) watch(ch *channel, exp time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch.expiry != nil {
		ch.expiry.Stop()
	}
	ch.expiry = time.AfterFunc(time.Until(exp)+time.Second, func() {
		if c.ctx.Err() == nil {
			c.shutdown(ch, "Token has expired 1 seconds ago")
		}
	})
}

func (c *conn) join(f Frame) {
	c.s.mu.Lock()
	c.s.joins = append(c.s.joins, JoinSeen{At: time.Now(), Topic: f.Topic, Payload: f.Payload})
	n := len(c.s.joins)
	c.s.mu.Unlock()
	var how Join
	if c.s.OnJoin != nil {
		how = c.s.OnJoin(n)
	}
	if how.Silent {
		return
	}
	var p struct {
		Config struct {
			Changes []wanted `json:"postgres_changes"`
		} `json:"config"`
		Token string `json:"access_token"`
	}
	reason := how.Reason
	if err := json.Unmarshal(f.Payload, &p); err != nil && reason == "" {
		reason = "InvalidJoinPayload: " + err.Error()
	}
	if !strings.HasPrefix(f.Topic, "realtime:") {
		reason = "unmatched topic"
	} else if f.Topic == "realtime:" {
		reason = "TopicNameRequired: You must provide a topic name"
	}
	var exp time.Time
	if p.Token == "" || strings.HasPrefix(p.Token, "sb_") {
		p.Token = "" // the key's
	} else if reason == "" && p.Token != c.key {
		exp, reason = c.s.checkToken(p.Token)
	}
	if reason != "" {
		refuse := func() {
			c.reply(f, "error", map[string]string{"reason": reason})
			if how.Disconnect || strings.HasPrefix(reason, "ClientJoinRateLimitReached") || strings.HasPrefix(reason, "TenantNotFound") {
				c.finish()
			}
		}
		if c.s.o.JoinErrorDelay > 0 {
			c.after(c.s.o.JoinErrorDelay, refuse)
		} else {
			refuse()
		}
		return
	}
	ch := &channel{topic: f.Topic, joinRef: f.JoinRef, token: p.Token, noSystem: how.NoSystem}
	c.s.mu.Lock()
	for _, w := range p.Config.Changes {
		w.ID = c.s.nextID
		c.s.nextID++
		ch.wanted = append(ch.wanted, w)
	}
	c.s.mu.Unlock()
	c.mu.Lock()
	old := c.channels[f.Topic]
	c.mu.Unlock()
	if old != nil {
		c.end(old, "phx_close") // Phoenix closes the channel whose place is taken
	}
	c.mu.Lock()
	c.channels[f.Topic] = ch
	c.mu.Unlock()
	if !exp.IsZero() {
		c.watch(ch, exp)
	}
	if ch.wanted == nil {
		ch.wanted = []wanted{}
	}
	c.reply(f, "ok", map[string]any{"postgres_changes": ch.wanted})
	if how.Disconnect {
		c.finish()
		return
	}
	problem := how.SystemError
	for _, w := range ch.wanted {
		if problem == "" && c.s.o.Publication != nil && w.Table != "" && w.Table != "*" && !slices.Contains(c.s.o.Publication, w.Schema+"."+w.Table) {
			problem = "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given connect parameters: [event: " +
				w.Event + ", schema: " + w.Schema + ", table: " + w.Table + ", filters: []]"
		}
		if problem == "" && w.Filter != "" {
			problem = "Unable to subscribe to changes with given parameters: this server knows no filters"
		}
	}
	switch {
	case len(ch.wanted) == 0 || ch.noSystem:
	case problem != "":
		c.after(c.s.o.SubscribeDelay, func() { c.system(ch, "postgres_changes", "error", problem) })
	default:
		c.after(c.s.o.SubscribeDelay, func() { c.follow(ch) })
	}
}
