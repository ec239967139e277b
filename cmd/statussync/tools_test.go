package main

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

func TestToolsCommand(t *testing.T) {
	hash := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	was := []statussync.ToolRef{{Name: "add", Hash: hash("a")}, {Name: "div", Hash: hash("b")}, {Name: "mul", Hash: hash("c")}}
	is := []statussync.ToolRef{{Name: "add", Hash: hash("a")}, {Name: "div", Hash: hash("d")}, {Name: "pow\x1b[31m\u202e", Hash: hash("e")}}
	plain := statussync.ToolsView{ServerID: "weather", Known: true, Tools: is, Hash: statussync.HashTools(is), Since: now.Add(-time.Hour), CheckedAt: now.Add(-time.Minute)}
	pinned := plain
	pinned.Pinned = &statussync.PinnedTools{Hash: statussync.HashTools(was), Actor: "ops", At: now.Add(-2 * time.Hour), Tools: was}
	pinned.Against = statussync.DiffTools(was, is)
	same := plain
	same.Pinned, same.Against = &statussync.PinnedTools{Hash: plain.Hash, Actor: "ops", At: now, Tools: is}, statussync.DiffTools(is, is)
	sick := statussync.ToolsView{ServerID: "weather", CheckedAt: now, LastError: "refused: nobody listens"}
	page := func(items ...*statussync.Entry) string {
		return jsonOf(t, wire.Page[*statussync.Entry]{Items: items, Cursor: "e7:9"})
	}
	many := statussync.DiffTools(nil, func() (out []statussync.ToolRef) {
		for i := range 150 {
			out = append(out, statussync.ToolRef{Name: "t" + strings.Repeat("x", i), Hash: hash("a")})
		}
		return out
	}())
	drift := &statussync.Entry{Seq: 8, Epoch: "e7", Kind: statussync.KindToolDrift, ServerID: "weather", Timestamp: now.Add(-time.Hour), Tools: statussync.DiffTools(was, is)}
	big := &statussync.Entry{Seq: 8, Epoch: "e7", Kind: statussync.KindToolDrift, ServerID: "weather", Timestamp: now, Tools: many}
	show := func(v statussync.ToolsView) string { return jsonOf(t, wire.FromTools(&v)) }
	const at = "/api/v1/servers/weather/tools"
	for _, c := range []struct {
		args    string
		answers map[string]string
		code    int
		want    []string
		not     string
	}{
		{"tools weather", map[string]string{"GET " + at: show(plain)}, 0,
			[]string{`^weather lists 3 tools\n`, `(?m)^TOOL +HASH`, `(?m)^div +dddddddddddd$`, `(?m)^pow\[31m +eeee`, `read +2026-03-01 11:59:00Z`, `pinned +nothing`}, "these"},
		{"tools weather", map[string]string{"GET " + at: show(same)}, 0, []string{`pinned +these, since 2026-03-01 12:00:00Z by ops`}, "others"},
		{"tools weather", map[string]string{"GET " + at: show(pinned)}, 0, []string{`pinned +others: 1 added \(pow\[31m\), 1 removed \(mul\), 1 changed \(div\), since`}, "these"},
		{"tools weather", map[string]string{"GET " + at: show(sick)}, 0, []string{`^The tools of weather have not been read yet\n`, `not read +refused: nobody listens`}, "TOOL"},
		{"tools weather", map[string]string{"GET " + at: show(statussync.ToolsView{ServerID: "weather"})}, 0, []string{`asked for them soon after it came up`}, "hash"},
		{"tools weather -o json", map[string]string{"GET " + at: show(pinned)}, 0, []string{`"drifted": true`, `"previous_hash"`, `"actor": "ops"`}, "lists"},
		{"tools weather --diff", map[string]string{"GET " + at: show(pinned), "GET /api/v1/servers/weather/drift?limit=1": page(drift)}, 0,
			[]string{`Last change, 2026-03-01 11:00:00Z:\n  \+ pow\[31m  eeeeeeeeeeee\n  - mul  cccccccccccc\n  ~ div  bbbbbbbbbbbb → dddddddddddd\n\nAgainst the pinned tools:\n  \+ pow`}, "TOOL"},
		{"tools weather --diff", map[string]string{"GET " + at: show(same), "GET /api/v1/servers/weather/drift?limit=1": page(big)}, 0, []string{`  and 50 more\n`, `Nothing differs from the pinned tools\.`}, ""},
		{"tools weather --diff", map[string]string{"GET " + at: show(plain), "GET /api/v1/servers/weather/drift?limit=1": page()}, 0, []string{`never changed as far as the journal reaches`}, "Against"},
		{"tools weather --diff -o json", map[string]string{"GET " + at: show(plain), "GET /api/v1/servers/weather/drift?limit=1": page(drift)}, 0, []string{`"kind": "tool_drift"`}, "lists"},
		{"tools weather --pin", map[string]string{"PUT " + at + "/pin {}": show(same)}, 0, []string{`pinned +these`}, "TOOL"},
		{"tools weather --pin --hash h1", map[string]string{"PUT " + at + `/pin {"hash":"h1"}`: `409 {"code":"conflict","detail":"its tools are not these any more","errors":[{"location":"body.hash","message":"its tools are not these any more"}]}`}, 4, []string{`refused: .*not these any more`}, ""},
		{"tools weather --unpin", map[string]string{"DELETE " + at + "/pin": show(plain)}, 0, []string{`weather lists 3 tools`, `pinned +nothing`}, "TOOL"},
		{"tools weather --now", map[string]string{"POST " + at: show(plain)}, 0, []string{`weather lists 3 tools`, `TOOL`}, ""},
		{"tools weather --pin --unpin", nil, 2, []string{`pin unpin`}, ""},
		{"tools weather --hash h1", nil, 2, []string{`--hash goes only with --pin`}, ""},
		{"tools", nil, 2, nil, ""},
	} {
		r := exec(t.Context(), append(strings.Fields(c.args), "--server", fake(t, c.answers)))
		if r.code != c.code {
			t.Errorf("%s: exit %d, want %d: %s%s", c.args, r.code, c.code, r.out, r.err)
		}
		for _, w := range c.want {
			if !regexp.MustCompile(w).MatchString(r.out + r.err) {
				t.Errorf("%s: no %q in\n%s%s", c.args, w, r.out, r.err)
			}
		}
		if c.not != "" && strings.Contains(r.out, c.not) || !strings.Contains(c.args, "json") && strings.ContainsAny(r.out, "\x1b\u202e") {
			t.Errorf("%s: %q in\n%s", c.args, c.not, r.out)
		}
	}
}
