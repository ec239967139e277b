package wire

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentopia/statussync"
)

func TestToolsGolden(t *testing.T) {
	was := []statussync.ToolRef{{Name: "add", Hash: "sha256:aa"}, {Name: "div", Hash: "sha256:bb"}, {Name: "mul", Hash: "sha256:cc"}}
	is := []statussync.ToolRef{{Name: "add", Hash: "sha256:aa"}, {Name: "div", Hash: "sha256:dd"}, {Name: "pow <b>", Hash: "sha256:ee"}}
	full := statussync.ToolsView{
		ServerID: "weather", Known: true, Tools: is, Hash: statussync.HashTools(is), Since: now, CheckedAt: now.Add(10 * time.Minute), LastError: "timeout: no answer",
		Pinned:  &statussync.PinnedTools{Hash: statussync.HashTools(was), Actor: "ops", At: now.Add(-time.Hour), Tools: was},
		Against: statussync.DiffTools(was, is),
	}
	good := full
	good.Pinned, good.Against, good.LastError = &statussync.PinnedTools{Hash: full.Hash, At: now, Tools: is}, statussync.DiffTools(is, is), ""
	golden(t, "tools", marshal(t, FromTools(&full)))
	golden(t, "tools-as-pinned", marshal(t, FromTools(&good)))
	golden(t, "tools-unknown", marshal(t, FromTools(&statussync.ToolsView{ServerID: "weather"})))
	golden(t, "pin-request", marshal(t, PinRequest{Hash: full.Hash}))

	e := &statussync.Entry{
		Seq: 61, Epoch: "e7", Kind: statussync.KindToolDrift, Timestamp: now, Source: statussync.SourceHeartbeat, ServerID: "weather", EnvironmentID: "box-7",
		Tools: full.Against, Details: "its tools changed: " + full.Against.String(),
	}
	golden(t, "update-tools", e.AppendJSON(nil))
	golden(t, "frame-tools", AppendEntry(nil, e.Kind, e.Cursor(), e.AppendJSON(nil)))
	var u Update
	d := json.NewDecoder(bytes.NewReader(e.AppendJSON(nil)))
	d.DisallowUnknownFields()
	if err := d.Decode(&u); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(e.AppendJSON(nil)), string(marshal(t, u))); diff != "" {
		t.Errorf("the type that documents entries differs:\n%s", diff)
	}
}
