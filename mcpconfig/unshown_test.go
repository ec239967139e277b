package mcpconfig

import (
	"strings"
	"testing"

	"github.com/agentopia/statussync"
)

// What is a secret by where it stands is hidden, in whatever part of it a server repeats; what is none is not.
func TestHide(t *testing.T) {
	f, err := Parse("mcp.json", []byte(`{"mcpServers":{
		"a": {"command":"docker","args":["run","-e","GITHUB_TOKEN=planted-1","--api-key","planted-2","--password=planted-3","mcp-remote",
			"https://h.example/mcp?api_key=planted-4&mode=read","--header","Authorization: Bearer planted-5","--verbose","visible-1"],
			"env":{"DB":"postgres://u:planted-6@h/d","DEBUG":"true","LONG":"planted-7-and-more","SHORT":"planted-7"}},
		"b": {"url":"https://h.example/visible-2?token=planted+9&x=visible-3","headers":{"Authorization":"Bearer planted-10","Cookie":"sid=planted-11; a=b"}}
	}}`), Options{})
	if err != nil || len(f.Entries) != 2 {
		t.Fatal(err, f)
	}
	for i, text := range []string{
		"-e GITHUB_TOKEN=planted-1 planted-2 planted-3 ?api_key=planted-4 got planted-5; password planted-6 of postgres://u:planted-6@h/d, planted-7-and-more planted-7, debug true visible-1",
		"planted 9 planted+9 planted%209 planted-10 Bearer planted-10 planted-11 plan\x00ted-11 visible-2 visible-3",
	} {
		e := &f.Entries[i]
		got := e.Hide(text, 1000)
		if strings.Contains(got, "planted") || strings.Count(got, "visible") != i+1 || strings.Contains(text, "true") != strings.Contains(got, "true") {
			t.Errorf("%s: %q", e.Name, got)
		}
	}
	// Not even the beginning of one is left where a text was cut.
	e := &f.Entries[0]
	for cut := range len("planted-7-and-more") {
		if got := e.Hide(statussync.CleanText("it says planted-7-and-more and more", len("it says …")+cut), 100); strings.Contains(got, "plan") {
			t.Errorf("%d: %q", cut, got)
		}
	}
	if r := RemoteEntry("h", "command line", "https://h/mcp?key=planted-1", statussync.TransportSSE); r.Hide("got planted-1", 100) != "got ***" {
		t.Errorf("%+v", r)
	}
}
