package app

import (
	"slices"
	"testing"
	"time"

	"github.com/agentopia/statussync"
	"github.com/agentopia/statussync/wire"
)

// What an agent tells of its host is answered at once, outlasts a restart, and is forgotten with its host's owner.
func TestResourcesOfAnAgent(t *testing.T) {
	data := t.TempDir()
	r := peopled(t, data)
	c, ctx := r.as("admin-token"), t.Context()
	if _, err := c.AddEnvironment(ctx, wire.EnvironmentSpec{ID: "stays-here", Owner: "someone"}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"box-9", "stays-here"} {
		token, err := c.RotateAgentToken(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if status := r.heartbeat(token.Token, `{"system_status":{"cpu_load_percent":12.5,"disk":{"mount":"/","total_bytes":4096,"used_bytes":1024,"free_bytes":3072}},"tool_statuses":[]}`); status != 204 {
			t.Fatalf("heartbeat: %d", status)
		}
	}
	told := func(id string) {
		t.Helper()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for range 12_000 { // a heartbeat is answered before it is concluded from
			rep, err := c.Resources(ctx, id, "1h", "")
			if err != nil {
				t.Fatal(err)
			}
			if i := len(rep.Items) - 1; i >= 0 {
				if x := rep.Items[i]; *x.CPUPercent != 12.5 || *x.DiskBytes != 1024 || *x.DiskSizeBytes != 4096 || x.MemoryBytes != nil {
					t.Fatalf("%+v", x)
				}
				return
			}
			<-tick.C
		}
		t.Fatalf("nothing is told of %s", id)
	}
	told("box-9")
	told("stays-here")
	rep, err := c.Erase(ctx, wire.EraseRequest{Owner: "u1 & sons"})
	if err != nil || !slices.Contains(rep.EnvironmentsRemoved, "box-9") {
		t.Fatalf("%+v, %v", rep, err)
	}
	_, err = c.Resources(ctx, "box-9", "1h", "")
	wantCode(t, err, statussync.CodeNotFound)
	if in := holding(t, data, "box-9"); in != nil {
		t.Errorf("its id is still in %v", in)
	}
	told("stays-here") // the erasure is a restart, before which the minute that runs was stored
}
