package httpapi

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// lister lists tools for one server, as drift.Service does, and knows no other.
type lister struct {
	id  string
	see func(ctx context.Context) error
}

func (l *lister) Now(ctx context.Context, id string) error {
	if id != l.id {
		return statussync.NotFound("server", id)
	}
	return l.see(ctx)
}

// TestTools goes the whole way over the real hub: what is listed, how it changed, who may pin what, what a stream tells.
func TestTools(t *testing.T) {
	var h Hub
	l := &lister{id: "s01"}
	s := whole(t, 2, func(o *Options) { h, o.ToolLooker = o.Hub, l })
	see := func(words ...string) {
		t.Helper()
		o := &statussync.ToolsSeen{ServerID: "s01", At: time.Now()}
		for _, w := range words {
			name, hash, _ := strings.Cut(w, "=")
			o.Tools = append(o.Tools, statussync.ToolRef{Name: name, Hash: hash})
		}
		if _, err := h.Submit(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	tools := func(token, what, body string) wire.Tools {
		t.Helper()
		a := s.do(t, token, what, body)
		if a.status != 200 {
			t.Fatalf("%s: %d %s", what, a.status, a.body)
		}
		return decode[wire.Tools](t, a)
	}
	refused := func(token, what, body string, status int, in string) {
		t.Helper()
		if a := s.do(t, token, what, body); a.status != status || !strings.Contains(string(a.body), in) {
			t.Errorf("%s: %d %s, want %d %s", what, a.status, a.body, status, in)
		}
	}
	const at = " /api/v1/servers/s01/tools"
	ws := s.dial(t, viewerToken)
	ws.send(subscribe + `,"filters":[{"kinds":["tool_drift"]}]}`)
	ws.want(wire.FrameSubscribed)
	if a := s.do(t, viewerToken, "GET"+at, ""); string(a.body) != `{"server_id":"s01","tools":[],"count":0,"drifted":false}`+"\n" {
		t.Errorf("before anything is known: %s", a.body)
	}
	refused(viewerToken, "GET /api/v1/servers/nobody/tools", "", 404, `"not_found"`)
	refused(viewerToken, "GET /api/v1/servers/nobody/drift", "", 404, `"not_found"`)
	refused(viewerToken, "GET /api/v1/servers/s01/drift?cursor=x", "", 400, "query.cursor")
	refused(operatorToken, "PUT"+at+"/pin", "", 409, "not been read yet")
	see("add=1", "div=1")
	v := tools(viewerToken, "GET"+at, "")
	if v.Count != 2 || v.Tools[0].Name != "add" || v.Hash == "" || v.CheckedAt.IsZero() || v.Since.IsZero() || v.Pinned != nil || v.Drifted {
		t.Errorf("%+v", v)
	}
	refused(viewerToken, "PUT"+at+"/pin", "", 403, "forbidden")
	refused(viewerToken, "DELETE"+at+"/pin", "", 403, "forbidden")
	refused(viewerToken, "POST"+at, "", 403, "forbidden")
	refused(operatorToken, "DELETE"+at+"/pin", "", 404, "pinned")
	refused(operatorToken, "PUT"+at+"/pin", `{"hash":"sha256:other"}`, 409, "body.hash")
	refused(operatorToken, "PUT"+at+"/pin", `{"hahs":"x"}`, 422, "body.hahs")
	refused(operatorToken, "PUT"+at+"/pin", `{"hash":"`+strings.Repeat("x", 129)+`"}`, 422, "body.hash")
	if p := tools(operatorToken, "PUT"+at+"/pin", `{"hash":"`+v.Hash+`"}`); p.Pinned == nil || p.Pinned.Hash != v.Hash || p.Pinned.Actor != "otto" || p.Drifted || p.AgainstPin != nil {
		t.Errorf("%+v", p)
	}

	see("div=1", "add=1")
	see("div=2", "pow<b>=1")
	f := ws.want("tool_drift")
	e, err := f.Entry()
	if err != nil || e.ServerID != "s01" || e.Tools == nil || e.Tools.String() != "1 added (pow<b>), 1 removed (add), 1 changed (div)" {
		t.Errorf("%s", f.Data)
	}
	if d := tools(viewerToken, "GET"+at, ""); !d.Drifted || d.AgainstPin == nil || d.AgainstPin.ChangedCount != 1 {
		t.Errorf("%+v", d)
	}
	x := decode[wire.Explain](t, s.do(t, viewerToken, "GET /api/v1/servers/s01/status?explain=true", ""))
	told := false
	for _, ev := range x.Explain.Evidence {
		told = told || ev.Kind == "tools" && strings.Contains(ev.Value, "not as pinned by otto")
	}
	if !told {
		t.Errorf("%+v", x.Explain.Evidence)
	}
	see("a=1")
	see("b=1")
	var names []string
	for cursor := ""; ; {
		page := decode[wire.Page[*statussync.Entry]](t, s.do(t, viewerToken, "GET /api/v1/servers/s01/drift?limit=1"+cursor, ""))
		if len(page.Items) != 1 || page.Items[0].Kind != statussync.KindToolDrift || page.Cursor == "" {
			t.Fatalf("%+v", page)
		}
		if names = append(names, page.Items[0].Tools.String()); page.NextCursor == "" {
			break
		}
		cursor = "&cursor=" + page.NextCursor
	}
	if got := strings.Join(names, "; "); got != "1 added (b), 1 removed (a); 1 added (a), 2 removed (div, pow<b>); 1 added (pow<b>), 1 removed (add), 1 changed (div)" {
		t.Error(got)
	}
	if a := s.do(t, viewerToken, "GET /api/v1/servers/s00/drift", ""); a.status != 200 || !strings.Contains(string(a.body), `"items":[]`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if p := tools(operatorToken, "PUT"+at+"/pin", ""); p.Drifted || p.Pinned.Hash != p.Hash {
		t.Errorf("pinned without a body: %+v", p)
	}
	if p := tools(operatorToken, "DELETE"+at+"/pin", ""); p.Pinned != nil {
		t.Errorf("%+v", p)
	}

	// On demand. That the list can't be read is an answer.
	l.see = func(context.Context) error { see("now=1"); return nil }
	if v := tools(operatorToken, "POST"+at, ""); v.Count != 1 || v.Tools[0].Name != "now" {
		t.Errorf("%+v", v)
	}
	l.see = func(ctx context.Context) error {
		_, err := h.Submit(ctx, &statussync.ToolsSeen{ServerID: "s01", Error: "refused", At: time.Now()})
		if err != nil {
			return err
		}
		return statussync.NewError(statussync.CodeUnavailable, "refused", nil)
	}
	if v := tools(operatorToken, "POST"+at, ""); v.Count != 1 || v.LastError != "refused" {
		t.Errorf("%+v", v)
	}
	refused(operatorToken, "POST /api/v1/servers/s00/tools", "", 409, "not probed as an MCP server")
	refused(operatorToken, "POST /api/v1/servers/nobody/tools", "", 404, "not_found")
}
