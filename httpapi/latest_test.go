package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/hub"
	"github.com/agentopia/statussync/wire"
)

// turn makes one update of server n of a fleet that whole serves.
func (s *service) turn(n, turn int) statussync.Observation {
	now := time.Now()
	o := statussync.Override{State: statussync.States[turn%3], Actor: "test", SetAt: now, ExpiresAt: now.Add(time.Hour)}
	if err := o.Complete(now); err != nil {
		panic(err)
	}
	return &statussync.OverrideSet{ServerID: fmt.Sprintf("s%02d", n), Override: o}
}

func (s *service) inner() *hub.Hub { return s.opts.Hub.(*hub.Hub) }

func (s *service) versions() map[string]uint64 {
	all := map[string]uint64{}
	items, _, _ := s.inner().Servers(statussync.ServerQuery{Limit: 10_000})
	for _, it := range items {
		all[it.Server.ID] = it.Status.Version
	}
	return all
}

// TestLatestSlowReader: a client that reads 10 frames a second from a fleet that makes 1,000 updates a second always
// reads something recent, though the kernels between them could hold thousands of frames, and ends with the truth.
func TestLatestSlowReader(t *testing.T) {
	const (
		servers = 200
		lasting = 3 * time.Second
		recent  = 1500 * time.Millisecond
	)
	s := whole(t, servers)
	c := s.dial(t, viewerToken)
	c.send(subscribe + `,"snapshot":true,"mode":"latest"}`)
	c.want(wire.FrameSubscribed)
	held := map[string]uint64{}
	for _, it := range c.want(wire.FrameSnapshot).Items {
		held[it.ID] = it.Status.Version
	}
	c.want(wire.FrameSnapshotEnd)

	var mu sync.Mutex
	replaced := map[string]map[uint64]time.Time{} // when a version was followed by another
	ctx, cancel := context.WithTimeout(t.Context(), lasting)
	defer cancel()
	var writer sync.WaitGroup
	writer.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		turns := make([]int, servers)
		for n := 0; ctx.Err() == nil; {
			var obs []statussync.Observation
			for range 10 {
				// A tenth of the fleet makes half of the updates; each update differs from the one before it.
				at := n % servers
				if n%2 == 0 {
					at = n % (servers / 10)
				}
				obs = append(obs, s.turn(at, turns[at]))
				turns[at]++
				n++
			}
			made, err := s.inner().Submit(context.Background(), obs...)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			for _, e := range made {
				if replaced[e.ServerID] == nil {
					replaced[e.ServerID] = map[uint64]time.Time{}
				}
				replaced[e.ServerID][e.Version-1] = time.Now()
			}
			mu.Unlock()
			<-tick.C
		}
	})
	read := 0
	apply := func(f *wire.ServerFrame) {
		t.Helper()
		e, err := f.Entry()
		if err != nil {
			t.Fatal(err)
		}
		if e.Version <= held[e.ServerID] {
			t.Fatalf("%s goes from version %d to %d", e.ServerID, held[e.ServerID], e.Version)
		}
		held[e.ServerID] = e.Version
		read++
		mu.Lock()
		at, old := replaced[e.ServerID][e.Version]
		mu.Unlock()
		if age := time.Since(at); old && age > recent {
			t.Errorf("frame %d tells version %d of %s, which was replaced %v ago", read, e.Version, e.ServerID, age)
		}
	}
	slow := time.NewTicker(100 * time.Millisecond)
	defer slow.Stop()
	for ctx.Err() == nil {
		<-slow.C
		apply(c.next())
	}
	if read < 15 {
		t.Errorf("only %d entries came in %v", read, lasting)
	}
	writer.Wait()
	made := s.inner().Stats().Head.Seq
	if made < 1500 {
		t.Errorf("only %d entries were made", made)
	}
	for head := s.inner().Stats().Head; ; {
		c.send(`{"type":"ping"}`) // its answer tells the position, where nothing waits to be told
		f := c.next()
		for ; f.Type != wire.FramePong; f = c.next() {
			apply(f)
		}
		if f.Cursor == head {
			break
		}
	}
	for id, v := range s.versions() {
		if held[id] != v {
			t.Errorf("%s ends with version %d, is %d", id, held[id], v)
		}
	}
	if read > 3*servers {
		t.Errorf("%d entries were told of %d: they were not merged", read, made)
	}
	if st := s.inner().Stats(); st.StoreReads != 0 {
		t.Errorf("%d reads of the store", st.StoreReads)
	}
}

// TestLatestGate: nothing more is told before the client has answered the ping that follows what was told, and a
// request for something else is heard meanwhile.
func TestLatestGate(t *testing.T) {
	s := whole(t, 3)
	c := s.dial(t, viewerToken)
	var pings []string
	c.SetPingHandler(func(data string) error { pings = append(pings, data); return nil })
	pong := func() {
		t.Helper()
		if err := c.WriteControl(websocket.PongMessage, []byte(pings[len(pings)-1]), time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	update := func(n, turn int) {
		t.Helper()
		if _, err := s.inner().Submit(t.Context(), s.turn(n, turn)); err != nil {
			t.Fatal(err)
		}
	}
	c.send(subscribe + `,"mode":"latest"}`)
	c.want(wire.FrameSubscribed)
	update(0, 0)
	update(0, 1)
	update(1, 0)
	c.send(`{"type":"ping"}`)
	if f := c.want(wire.FramePong); len(pings) != 1 || !f.Cursor.IsZero() {
		t.Fatalf("%d pings, pong %+v", len(pings), f)
	}
	pong()
	for _, want := range []string{"s00 s01", ""} {
		var got []string
		for len(got) < len(strings.Fields(want)) {
			e, err := c.want(wire.FrameStatusUpdate).Entry()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e.ServerID)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("got %v, want %s", got, want)
		}
	}
	update(2, 0)
	c.send(subscribe + `}`) // mode every has no gate
	c.want(wire.FrameSubscribed)
	update(2, 1)
	update(2, 2)
	for _, want := range []int{1, 2} {
		if e, err := c.want(wire.FrameStatusUpdate).Entry(); err != nil || e.Current.State != statussync.States[want] {
			t.Fatalf("%+v %v", e, err)
		}
	}
}

// TestLatestRefusesType: over every way in.
func TestLatestRefusesType(t *testing.T) {
	s := whole(t, 1)
	c := s.dial(t, viewerToken)
	c.send(subscribe + `,"mode":"latest","filters":[{"type":"recovery"}]}`)
	if f := c.want(wire.FrameError); f.Code != statussync.CodeInvalid || !strings.Contains(f.Detail, "filters.type") {
		t.Errorf("%+v", f)
	}
	if a := s.do(t, viewerToken, "GET /api/v1/stream?mode=latest&type=recovery", ""); a.status != 400 || !bytes.Contains(a.body, []byte("query.type")) {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestLatestEvents: a stream of server-sent events in mode latest, its resumption, and its end with the truth.
func TestLatestEvents(t *testing.T) {
	s := whole(t, 30)
	front := httptest.NewUnstartedServer(s.API)
	front.Config.ConnContext = ConnContext
	front.Start()
	t.Cleanup(front.Close)
	over := &service{API: s.API, srv: front}
	held := map[string]uint64{}
	read := func(c *sseClient, until statussync.Cursor) (last string) {
		t.Helper()
		for {
			b, err := c.next()
			if err != nil {
				t.Fatal(err)
			}
			if b.id != "" {
				last = b.id
			}
			switch b.event {
			case "snapshot":
				var f wire.ServerFrame
				if err := json.Unmarshal([]byte(b.data), &f); err != nil {
					t.Fatal(err)
				}
				for _, it := range f.Items {
					held[it.ID] = it.Status.Version
				}
			case "status_update":
				var e statussync.Entry
				if err := json.Unmarshal([]byte(b.data), &e); err != nil {
					t.Fatal(err)
				}
				held[e.ServerID] = max(held[e.ServerID], e.Version)
			}
			if last == until.String() {
				return last
			}
		}
	}
	c := over.sse(t, "?mode=latest&snapshot=true")
	c.begin()
	read(c, s.inner().Stats().Head)
	update := func(turn int) {
		t.Helper()
		for n := range 30 {
			if _, err := s.inner().Submit(t.Context(), s.turn(n, turn)); err != nil {
				t.Fatal(err)
			}
		}
	}
	update(0)
	at := read(c, s.inner().Stats().Head)
	c.resp.Body.Close()
	update(1)
	update(2)
	update(0)
	c = over.sse(t, "?mode=latest&snapshot=true", "Last-Event-ID: "+at)
	c.begin()
	if b, err := c.next(); err != nil || b.event != "subscribed" || !strings.Contains(b.data, `"recovered":true`) {
		t.Fatalf("%+v %v", b, err)
	}
	read(c, s.inner().Stats().Head)
	for id, v := range s.versions() {
		if held[id] != v {
			t.Errorf("%s ends with version %d, is %d", id, held[id], v)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
