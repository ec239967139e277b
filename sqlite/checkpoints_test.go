package sqlite

import (
	"testing"

	"github.com/agentopia/statussync"
)

func TestCheckpoints(t *testing.T) {
	dir := t.TempDir()
	open := func() *History {
		h, err := OpenHistory(t.Context(), HistoryOptions{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		return h
	}
	h := open()
	want := map[string]statussync.Cursor{"a": {Epoch: "e7abc", Seq: 41}, "b": {Epoch: "e8", Seq: 1}, "never": {}}
	for _, first := range []bool{true, false} {
		for name, at := range want {
			if first && !at.IsZero() {
				for _, c := range []statussync.Cursor{{Epoch: "e1", Seq: 9}, at} { // the newest counts
					if err := h.PutCheckpoint(t.Context(), name, c); err != nil {
						t.Fatal(err)
					}
				}
			}
			if got, err := h.Checkpoint(t.Context(), name); got != at || err != nil {
				t.Errorf("%s: %v %v", name, got, err)
			}
		}
		h.Close()
		h = open()
	}
}
