package httpapi

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// TestMaintenance goes the whole way over the real hub: who may do what, what is refused and where, what a stream tells.
func TestMaintenance(t *testing.T) {
	s := whole(t, 3)
	add := func(token, body string) (int, wire.Maintenance, wire.Problem, string) {
		t.Helper()
		a := s.do(t, token, "POST /api/v1/maintenance", body)
		var m wire.Maintenance
		var p wire.Problem
		if err := json.Unmarshal(a.body, &m); err != nil {
			t.Fatalf("%v: %s", err, a.body)
		}
		_ = json.Unmarshal(a.body, &p) // a window is no problem
		return a.status, m, p, string(a.body)
	}
	ws := s.dial(t, viewerToken)
	ws.send(subscribe + `,"filters":[{"kinds":["maintenance_begin","maintenance_end"],"server_ids":["s01"]}]}`)
	ws.want(wire.FrameSubscribed)

	if code, _, p, _ := add(viewerToken, `{"server_ids":["s01"],"duration":"1h"}`); code != 403 || p.Code != statussync.CodeForbidden {
		t.Errorf("a viewer: %d %+v", code, p)
	}
	for _, c := range []struct {
		body   string
		code   int
		at, in string
	}{
		{`{"duration":"1h"}`, 400, "body.server_ids", "needs servers"},
		{`{"server_ids":["s01"]}`, 400, "body.ends_at", "required"},
		{`{"server_ids":["s01"],"duration":"soon"}`, 400, "body.duration", "soon"},
		{`{"server_ids":["s01"],"ends_at":"tomorrow"}`, 422, "body.ends_at", ""},
		{`{"server_ids":["s01"],"ends_at":"2001-01-01T00:00:00Z","starts_at":"2000-01-01T00:00:00Z"}`, 400, "body.ends_at", "past"},
		{`{"server_ids":["s01","s1"],"duration":"1h"}`, 404, "body.server_ids", `\"s1\"`},
		{`{"environment_ids":["box-8"],"duration":"1h"}`, 404, "body.environment_ids", "box-8"},
		{`{"server_ids":["s01"],"duration":"1h","rrule":"FREQ=WEEKLY"}`, 400, "body.starts_at", "required with rrule"},
		{`{"server_ids":["s01"],"duration":"1h","starts_at":"2026-03-29T01:00:00Z","rrule":"FREQ=SECONDLY"}`, 400, "body.rrule", "SECONDLY"},
		{`{"server_ids":["s01"],"duration":"1h","starts_at":"2026-03-29T01:00:00Z","rrule":"FREQ=DAILY","time_zone":"Mars"}`, 400, "body.time_zone", "Mars"},
		{`{"server_ids":["s01"],"duration":"1h","servers":["x"]}`, 422, "body.servers", ""},
		{`{"server_ids":["s01"],"duration":"1h","rrule":"` + strings.Repeat("x", 501) + `"}`, 422, "body.rrule", ""},
	} {
		code, _, p, raw := add(operatorToken, c.body)
		if code/100 != 4 || (c.code == 404) != (code == 404) || len(p.Errors) != 1 || p.Errors[0].Location != c.at || !strings.Contains(raw, c.in) {
			t.Errorf("%s: %d %s", c.body, code, raw)
		}
	}

	a := s.do(t, operatorToken, "POST /api/v1/maintenance", `{"server_ids":["s01"],"labels":{"n":"02"},"duration":"1h","note":"a\u202eb"}`)
	var w wire.Maintenance
	if err := json.Unmarshal(a.body, &w); err != nil || a.status != 201 || a.header.Get("Location") != "/api/v1/maintenance/"+w.ID {
		t.Fatalf("%d %v %s", a.status, a.header, a.body)
	}
	if !w.Open || w.Servers != 2 || w.Actor != "otto" || w.Note != "ab" || !w.NextBegin.IsZero() || w.NextEnd.Sub(w.StartsAt.Time) != time.Hour || !w.EndsAt.Equal(w.NextEnd.Time) {
		t.Errorf("%s", a.body)
	}
	if f := ws.want("maintenance_begin"); !strings.Contains(string(f.Data), `"maintenance_id":"`+w.ID+`"`) || !strings.Contains(string(f.Data), `"server_ids":["s01","s02"]`) {
		t.Errorf("%s", f.Data)
	}
	for id, marked := range map[string]bool{"s00": false, "s01": true, "s02": true} {
		if b := s.do(t, viewerToken, "GET /api/v1/servers/"+id, ""); strings.Contains(string(b.body), `"marks":["maintenance"]`) != marked {
			t.Errorf("%s: %s", id, b.body)
		}
	}
	code, rec, _, raw := add(operatorToken, `{"environment_ids":["box-7"],"starts_at":"2026-03-22T00:00:00Z","ends_at":"2026-03-22T04:00:00Z","rrule":"FREQ=WEEKLY;BYDAY=SU","time_zone":"Europe/Berlin"}`)
	if code != 201 || rec.Servers != 3 || rec.TimeZone != "Europe/Berlin" || rec.NextEnd.IsZero() || !rec.NextBegin.IsZero() && rec.NextBegin.Before(time.Now()) {
		t.Errorf("%d %s", code, raw)
	}

	var page wire.Page[wire.Maintenance]
	var seen []string
	for cursor := ""; ; cursor = "&cursor=" + page.NextCursor {
		page = wire.Page[wire.Maintenance]{}
		b := s.do(t, viewerToken, "GET /api/v1/maintenance?limit=1"+cursor, "")
		if err := json.Unmarshal(b.body, &page); err != nil || len(page.Items) != 1 || page.Cursor == "" {
			t.Fatalf("%d %s", b.status, b.body)
		}
		if seen = append(seen, page.Items[0].ID); page.NextCursor == "" {
			break
		}
	}
	if want := []string{w.ID, rec.ID}; fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("listed %v, want %v", seen, want)
	}
	if b := s.do(t, viewerToken, "GET /api/v1/maintenance/"+rec.ID, ""); b.status != 200 || !strings.Contains(string(b.body), `"rrule":"FREQ=WEEKLY;BYDAY=SU"`) {
		t.Errorf("%d %s", b.status, b.body)
	}
	for call, want := range map[string]int{"GET /api/v1/maintenance/nope": 404, "DELETE /api/v1/maintenance/nope": 404, "GET /api/v1/maintenance?state=open": 422} {
		if b := s.do(t, operatorToken, call, ""); b.status != want && !(want == 422 && b.status == 400) {
			t.Errorf("%s: %d %s", call, b.status, b.body)
		}
	}
	if b := s.do(t, viewerToken, "DELETE /api/v1/maintenance/"+w.ID, ""); b.status != 403 {
		t.Errorf("a viewer ends it: %d", b.status)
	}
	if b := s.do(t, operatorToken, "DELETE /api/v1/maintenance/"+w.ID+"?occurrence=true", ""); b.status != 204 || len(b.body) > 0 {
		t.Errorf("%d %s", b.status, b.body)
	}
	if f := ws.want("maintenance_end"); !strings.Contains(string(f.Data), `"source":"manual"`) || !strings.Contains(string(f.Data), "was ended by otto") {
		t.Errorf("%s", f.Data)
	}
	if b := s.do(t, operatorToken, "GET /api/v1/maintenance/"+w.ID, ""); b.status != 404 {
		t.Errorf("it was open once and is over: %d %s", b.status, b.body)
	}
	if b := s.do(t, operatorToken, "DELETE /api/v1/maintenance/"+rec.ID, ""); b.status != 204 {
		t.Errorf("%d %s", b.status, b.body)
	}
	if b := s.do(t, viewerToken, "GET /api/v1/updates?kinds=maintenance_begin,maintenance_end", ""); strings.Count(string(b.body), `"maintenance_id"`) < 2 {
		t.Errorf("%s", b.body)
	}
}
